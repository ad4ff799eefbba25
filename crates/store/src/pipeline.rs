//! PURE: the commit pipeline. It packs the leader's writes into transactions, keeps the order of writes to a key, and makes certain of
//! each what has become of it. No IO, no clock and no tokio here: [`Executor`](crate::Executor) carries out what it hands over, and a
//! simulator can do the same against a model of etcd.
//!
//! In the wheel this is the first half of store::commit.

use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc};

use evenkeel_model::Revision;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    batch::{Batch, BatchId, Outcome, Resolution},
    locks::{KeyLocks, Mode, Taken},
    types::{Compare, Kv, Op, Txn},
};

/// The most operations, and the most compares, in one transaction; what the slot and the fence need is part of it.
pub const MAX_OPS: usize = 128;
/// The most bytes in one transaction, as estimated. etcd takes 1.5 MiB.
pub const MAX_BYTES: usize = 1 << 20;

/// The operation that puts the slot.
const OWN_OPS: usize = 1;
/// The compares of the fence and of the slot.
const OWN_COMPARES: usize = 2;
/// What an operation or a compare takes beside its key and value, generously.
const OVERHEAD: usize = 32;

/// Whose writes these are.
#[derive(Clone, Debug)]
pub struct PipelineConfig {
    /// The leader's election key.
    pub fence_key: Vec<u8>,
    /// Its create revision, which every transaction compares.
    pub fence: Revision,
    /// The lease of the election key; the slots are bound to it.
    pub lease: i64,
    /// Where the slots stand: `<slot_prefix>0` and so on. It belongs to this pipeline alone, so let it contain the lease's id.
    pub slot_prefix: Vec<u8>,
    /// Where the history stands: a batch puts the entries of its writes under `<journal_prefix><the batch's id as 16 hex digits>`. It belongs
    /// to this pipeline alone, as the slots do: another one numbers its batches anew.
    pub journal_prefix: Vec<u8>,
    /// How many batches may be in flight.
    pub in_flight: usize,
}

/// A write that happens whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// What [`Done`] will name it by. The pipeline does not look at it.
    pub token: u64,
    /// Its own conditions.
    pub compares: Vec<Compare>,
    /// Puts and deletes, of each key one.
    pub ops: Vec<Op>,
    /// An entry of the history: one JSON object, which is written in the same transaction, with those of the other writes in it.
    pub entry: Option<Vec<u8>>,
}

/// Why a write is not taken on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The fence is lost: this leader writes nothing any more.
    #[error("leadership is lost: the next leader has to do this")]
    FenceLost,
    /// It does not fit into one transaction.
    #[error("the write has {ops} operations, {compares} compares and {bytes} bytes; a transaction has room for 127, 126 and {MAX_BYTES}")]
    TooLarge {
        /// Its operations; its entry is one.
        ops: usize,
        /// Its compares.
        compares: usize,
        /// Its size, estimated.
        bytes: usize,
    },
    /// It writes a key twice, which etcd refuses.
    #[error("the write has the key {} twice", String::from_utf8_lossy(.key))]
    KeyTwice {
        /// The key.
        key: Vec<u8>,
    },
    /// It has an operation that is neither the put nor the delete of one key.
    #[error("a write is made of puts and deletes of single keys")]
    NotAWrite,
}

/// A write that is done with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Which.
    pub token: u64,
    /// What has become of it.
    pub result: WriteResult,
    /// Whether its entry was written with it; of a write that has none it was not.
    pub journaled: bool,
}

/// What stood under one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The key.
    pub key: Vec<u8>,
    /// None: it did not exist.
    pub kv: Option<Kv>,
}

/// What has become of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteResult {
    /// It is written.
    Committed {
        /// The revision of all its keys.
        revision: Revision,
    },
    /// One of its own compares failed; nothing was written.
    Conflict {
        /// The store's revision at which they were made.
        at: Revision,
        /// What stood at that revision under each key that the write compares, each once.
        found: Vec<Found>,
    },
    /// The leader's fence is lost; nothing was written.
    FenceLost,
    /// etcd has no space; nothing was written.
    NoSpace,
    /// etcd will not do it; nothing was written.
    Rejected {
        /// etcd's words.
        reason: String,
    },
    /// It is not known, because the fence was lost or the executor given up before it could be found out. It may even be written later.
    Unknown,
}

/// Takes writes, hands out batches, and says what became of each write, exactly once. The owner calls [`Pipeline::next_batch`] until it has
/// nothing, after each submission and after each [`Pipeline::finished`]; so a write that comes while nothing is in flight goes at once.
pub struct Pipeline {
    config: PipelineConfig,
    /// The writes that are not done, by the order of their submission.
    writes: FxHashMap<u64, Waiting>,
    locks: KeyLocks,
    /// The writes that have all their keys and are not in flight, the earliest first.
    ready: BinaryHeap<Reverse<u64>>,
    slots: Vec<Slot>,
    next_write: u64,
    last_batch: u64,
    fence_lost: bool,
}

struct Waiting {
    write: Write,
    keys: Vec<Taken>,
    bytes: usize,
    /// At how many keys it still has to wait.
    waits: usize,
    /// It was in a batch that etcd rejected, and goes by itself so that the culprit is found.
    alone: bool,
}

struct Slot {
    key: Vec<u8>,
    /// Its mod revision, as the batch before has left it.
    modified: Revision,
    flight: Option<Flight>,
}

struct Flight {
    batch: BatchId,
    writes: Vec<u64>,
}

impl Pipeline {
    /// An empty pipeline.
    #[must_use]
    pub fn new(config: PipelineConfig) -> Self {
        let slot = |n: usize| {
            let key = [config.slot_prefix.as_slice(), n.to_string().as_bytes()].concat();
            Slot { key, modified: Revision(0), flight: None }
        };
        let slots = (0..config.in_flight.max(1)).map(slot).collect();
        Self {
            config,
            writes: FxHashMap::default(),
            locks: KeyLocks::default(),
            ready: BinaryHeap::new(),
            slots,
            next_write: 0,
            last_batch: 0,
            fence_lost: false,
        }
    }

    /// Takes on a write. Writes to a key are carried out in the order of their submission, and a compare sees all writes to its key that
    /// were submitted before and none that were submitted after.
    ///
    /// # Errors
    /// [`SubmitError`]; the write was then not taken on and will not be named in a [`Done`].
    pub fn submit(&mut self, write: Write) -> Result<(), SubmitError> {
        if self.fence_lost {
            return Err(SubmitError::FenceLost);
        }
        let keys = keys_of(&write)?;
        let bytes = bytes_of(&write);
        let (ops, compares) = (ops_of(&write), write.compares.len());
        if ops + OWN_OPS > MAX_OPS || compares + OWN_COMPARES > MAX_OPS || bytes + self.own_bytes() > MAX_BYTES {
            return Err(SubmitError::TooLarge { ops, compares, bytes });
        }
        let number = self.next_write;
        self.next_write += 1;
        let waits = self.locks.queue(number, &keys);
        if waits == 0 {
            self.ready.push(Reverse(number));
        }
        self.writes.insert(number, Waiting { write, keys, bytes, waits, alone: false });
        Ok(())
    }

    /// The next batch to send, if there is something to write and a slot is free.
    pub fn next_batch(&mut self) -> Option<Batch> {
        let slot = self.slots.iter().position(|slot| slot.flight.is_none())?;
        if self.fence_lost || self.ready.is_empty() {
            return None;
        }
        let mut packing = Packing::new(self.own_bytes());
        while let Some(Reverse(number)) = self.ready.peek() {
            let Some(waiting) = self.writes.get(number) else { break };
            if !packing.add(*number, waiting) {
                break;
            }
            self.ready.pop();
        }
        self.last_batch += 1;
        let id = BatchId(self.last_batch);
        let resolution = self.resolution(id, slot);
        let (txn, writes) = packing.finish(&resolution, &self.config.journal_prefix, &self.writes);
        self.slots[slot].flight = Some(Flight { batch: id, writes });
        Some(Batch { id, txn, resolution })
    }

    /// Takes in what has become of a batch, and returns the writes that are done with. The others of the batch will be in another one.
    /// A batch that is not in flight is ignored.
    #[must_use = "each write is reported once"]
    pub fn finished(&mut self, batch: BatchId, outcome: Outcome) -> Vec<Done> {
        let in_flight = |slot: &Slot| slot.flight.as_ref().is_some_and(|flight| flight.batch == batch);
        let Some(at) = self.slots.iter().position(in_flight) else { return Vec::new() };
        let Some(flight) = self.slots[at].flight.take() else { return Vec::new() };
        let mut done = Vec::with_capacity(flight.writes.len());
        match outcome {
            Outcome::Applied { revision } => {
                self.slots[at].modified = revision;
                self.all_done(&flight.writes, &WriteResult::Committed { revision }, &mut done);
            }
            Outcome::Refused { revision, reads } => self.refused(at, &flight.writes, revision, &reads, &mut done),
            Outcome::Void { slot } => {
                self.slots[at].modified = slot;
                self.again(&flight.writes);
            }
            Outcome::FenceLost => {
                self.fence_lost = true;
                self.all_done(&flight.writes, &WriteResult::Unknown, &mut done);
            }
            Outcome::NoSpace => self.all_done(&flight.writes, &WriteResult::NoSpace, &mut done),
            Outcome::Rejected { reason } => self.rejected(&flight.writes, reason, &mut done),
            Outcome::GivenUp => self.all_done(&flight.writes, &WriteResult::Unknown, &mut done),
        }
        if self.fence_lost {
            self.give_up_queued(&mut done);
        }
        done
    }

    /// Takes back all writes that are in no batch under way, and returns their tokens in the order of their submission. They have had no
    /// effect and will have none, and no [`Done`] will name them.
    #[must_use = "nobody else tells of these writes any more"]
    pub fn withdraw_unsent(&mut self) -> Vec<u64> {
        let mut sent: Vec<u64> = self.slots.iter().filter_map(|slot| slot.flight.as_ref()).flat_map(|f| f.writes.iter().copied()).collect();
        sent.sort_unstable();
        let mut unsent: Vec<u64> = self.writes.keys().copied().filter(|number| sent.binary_search(number).is_err()).collect();
        unsent.sort_unstable();
        let withdrawn = unsent.iter().filter_map(|number| self.writes.remove(number)).map(|waiting| waiting.write.token).collect();
        self.ready.clear();
        // What is under way has all of its keys, and now nobody waits behind it.
        self.locks = KeyLocks::default();
        for number in sent {
            if let Some(waiting) = self.writes.get(&number) {
                self.locks.queue(number, &waiting.keys);
            }
        }
        withdrawn
    }

    /// How many writes are not done, in flight or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// Whether every write is done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// How many batches are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.iter().filter(|slot| slot.flight.is_some()).count()
    }

    /// Whether a batch was refused because the fence is lost.
    #[must_use]
    pub fn fence_lost(&self) -> bool {
        self.fence_lost
    }

    /// Finds out who is to blame for a refusal. The batch was sent once and this is its answer, so it will not be applied later.
    fn refused(&mut self, at: usize, writes: &[u64], revision: Revision, reads: &[Vec<Kv>], done: &mut Vec<Done>) {
        let found: FxHashMap<&[u8], &Kv> = reads.iter().flatten().map(|kv| (kv.key.as_slice(), kv)).collect();
        let fence = found.get(self.config.fence_key.as_slice()).map_or(Revision(0), |kv| kv.created);
        if fence != self.config.fence {
            self.fence_lost = true;
            self.all_done(writes, &WriteResult::FenceLost, done);
            return;
        }
        // A slot that is not as it was left is one whose batch was given up, or one of a pipeline before this: it is taken as it is.
        self.slots[at].modified = found.get(self.slots[at].key.as_slice()).map_or(Revision(0), |kv| kv.modified);
        let holds = |compare: &Compare| compare.holds(found.get(compare.key()).copied());
        let conflicting = |number: &u64| self.writes.get(number).is_some_and(|waiting| !waiting.write.compares.iter().all(holds));
        let (conflicts, others): (Vec<u64>, Vec<u64>) = writes.iter().copied().partition(conflicting);
        for number in conflicts {
            let compares = self.writes.get(&number).map_or(&[][..], |waiting| &waiting.write.compares);
            let found = found_of(compares, &found);
            self.all_done(&[number], &WriteResult::Conflict { at: revision, found }, done);
        }
        self.again(&others);
    }

    fn rejected(&mut self, writes: &[u64], reason: String, done: &mut Vec<Done>) {
        if let [_] = writes {
            self.all_done(writes, &WriteResult::Rejected { reason }, done);
            return;
        }
        for number in writes {
            if let Some(waiting) = self.writes.get_mut(number) {
                waiting.alone = true;
            }
        }
        self.again(writes);
    }

    /// Queues writes that keep their keys, so that they come before all that wait for those.
    fn again(&mut self, writes: &[u64]) {
        self.ready.extend(writes.iter().copied().map(Reverse));
    }

    fn all_done(&mut self, writes: &[u64], result: &WriteResult, done: &mut Vec<Done>) {
        for number in writes {
            let Some(finished) = self.writes.remove(number) else { continue };
            let journaled = finished.write.entry.is_some() && matches!(result, WriteResult::Committed { .. });
            done.push(Done { token: finished.write.token, result: result.clone(), journaled });
            let (writes, ready) = (&mut self.writes, &mut self.ready);
            self.locks.give_back(&finished.keys, |number| {
                if let Some(waiting) = writes.get_mut(&number) {
                    waiting.waits -= 1;
                    if waiting.waits == 0 {
                        ready.push(Reverse(number));
                    }
                }
            });
        }
    }

    /// The fence is lost: nothing that is not in flight will ever be sent.
    fn give_up_queued(&mut self, done: &mut Vec<Done>) {
        while let Some(Reverse(number)) = self.ready.pop() {
            self.all_done(&[number], &WriteResult::FenceLost, done);
        }
    }

    fn resolution(&self, id: BatchId, slot: usize) -> Resolution {
        Resolution {
            id,
            fence_key: self.config.fence_key.clone(),
            fence: self.config.fence,
            lease: self.config.lease,
            slot_key: self.slots[slot].key.clone(),
            slot: self.slots[slot].modified,
        }
    }

    /// What fence, slot and the key of the entries take of a transaction's bytes.
    fn own_bytes(&self) -> usize {
        let slot = 3 * (self.config.slot_prefix.len() + 2 * OVERHEAD);
        2 * (self.config.fence_key.len() + OVERHEAD) + slot + self.config.journal_prefix.len() + 2 * OVERHEAD
    }
}

/// A batch while it is being filled.
struct Packing<'a> {
    numbers: Vec<u64>,
    ops: usize,
    bytes: usize,
    /// Whether one of the writes has an entry: then one more key is put.
    journal: bool,
    /// Each compare once, in order: many writes may have the same one.
    compares: Vec<&'a Compare>,
    known: FxHashSet<&'a Compare>,
    /// Each compared key once.
    keys: FxHashSet<&'a [u8]>,
    closed: bool,
}

impl<'a> Packing<'a> {
    fn new(bytes: usize) -> Self {
        Self {
            numbers: Vec::new(),
            ops: OWN_OPS,
            bytes,
            journal: false,
            compares: Vec::new(),
            known: FxHashSet::default(),
            keys: FxHashSet::default(),
            closed: false,
        }
    }

    /// Adds a write if it fits. The first one always does: [`Pipeline::submit`] has seen to that.
    fn add(&mut self, number: u64, waiting: &'a Waiting) -> bool {
        let compares = waiting.write.compares.iter().filter(|compare| !self.known.contains(compare)).count();
        let journal = self.journal || waiting.write.entry.is_some();
        let fits = self.ops + waiting.write.ops.len() + usize::from(journal) <= MAX_OPS
            && self.compares.len() + OWN_COMPARES + compares <= MAX_OPS
            && self.bytes + waiting.bytes <= MAX_BYTES;
        if !self.numbers.is_empty() && (self.closed || waiting.alone || !fits) {
            return false;
        }
        self.closed = waiting.alone;
        self.numbers.push(number);
        self.ops += waiting.write.ops.len();
        self.journal = journal;
        self.bytes += waiting.bytes;
        for compare in &waiting.write.compares {
            if self.known.insert(compare) {
                self.compares.push(compare);
                self.keys.insert(compare.key());
            }
        }
        true
    }

    /// The batch's transaction, and the writes in it.
    fn finish(self, resolution: &Resolution, journal_prefix: &[u8], writes: &FxHashMap<u64, Waiting>) -> (Txn, Vec<u64>) {
        let compares = self.compares.into_iter().cloned().collect();
        let writes = || self.numbers.iter().filter_map(|number| writes.get(number)).map(|waiting| &waiting.write);
        let mut ops: Vec<Op> = writes().flat_map(|write| write.ops.iter().cloned()).collect();
        let entries: Vec<&[u8]> = writes().filter_map(|write| write.entry.as_deref()).collect();
        if !entries.is_empty() {
            let key = [journal_prefix, format!("{:016x}", resolution.id.0).as_bytes()].concat();
            ops.push(Op::put(key, [b"[", entries.join(&b',').as_slice(), b"]"].concat()));
        }
        let reads = self.keys.into_iter().map(Op::get);
        (resolution.batch_txn(compares, ops, reads), self.numbers)
    }
}

/// What stood under the keys that are compared, each once.
fn found_of(compares: &[Compare], found: &FxHashMap<&[u8], &Kv>) -> Vec<Found> {
    let mut seen = FxHashSet::default();
    let keys = compares.iter().map(Compare::key).filter(|key| seen.insert(*key));
    keys.map(|key| Found { key: key.to_vec(), kv: found.get(key).map(|kv| (*kv).clone()) }).collect()
}

/// How many operations of a transaction a write takes, if it is the only one with an entry.
fn ops_of(write: &Write) -> usize {
    write.ops.len() + usize::from(write.entry.is_some())
}

/// The keys that a write takes, each once.
fn keys_of(write: &Write) -> Result<Vec<Taken>, SubmitError> {
    let mut keys: Vec<Taken> = Vec::with_capacity(write.ops.len() + write.compares.len());
    let mut seen: FxHashSet<&[u8]> = FxHashSet::default();
    for op in &write.ops {
        let (Op::Put { key, .. } | Op::Delete { key }) = op else { return Err(SubmitError::NotAWrite) };
        if !seen.insert(key) {
            return Err(SubmitError::KeyTwice { key: key.clone() });
        }
        keys.push(Taken { key: Arc::from(key.as_slice()), mode: Mode::Alone });
    }
    for compare in &write.compares {
        if seen.insert(compare.key()) {
            keys.push(Taken { key: Arc::from(compare.key()), mode: Mode::Shared });
        }
    }
    Ok(keys)
}

/// What a write takes in a transaction, estimated from above. A compared key is there twice: the other branch reads it.
fn bytes_of(write: &Write) -> usize {
    let ops = write.ops.iter().map(|op| match op {
        Op::Put { key, value, .. } => key.len() + value.len() + OVERHEAD,
        Op::Delete { key } | Op::Get { key } => key.len() + OVERHEAD,
        Op::DeleteRange { range } | Op::Range { range } => range.start.len() + range.end.len() + OVERHEAD,
    });
    let compares = write.compares.iter().map(|compare| 2 * (compare.key().len() + OVERHEAD));
    // An entry is in a list: a comma goes before it.
    let entry = write.entry.as_ref().map_or(0, |entry| entry.len() + 1);
    ops.sum::<usize>() + compares.sum::<usize>() + entry
}

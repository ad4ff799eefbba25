//! PURE: the commit pipeline. It packs the leader's writes into transactions, keeps the order of writes to a key, and makes certain of
//! each what has become of it. No IO, no clock and no tokio here: [`Executor`](crate::Executor) carries out what it hands over, and a
//! simulator can do the same against a model of etcd.
//!
//! In the wheel this is the first half of store::commit.

use evenkeel_model::Revision;
use rustc_hash::{FxHashMap, FxHashSet};

pub use crate::packing::{MAX_BYTES, MAX_OPS};
use crate::{
    batch::{Batch, BatchId, Outcome, Resolution, unmarked_txn},
    locks::{KeyLocks, Taken},
    packing::{Item, Kind, OVERHEAD, OWN_COMPARES, OWN_OPS, Packing, Ready, bytes_of, keys_of, ops_of, witnesses},
    types::{Compare, Kv, Op},
};

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
    /// How many batches may be in flight; without space, so many of those that have a slot and so many of those that need none.
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
    /// Whether its entry was written with it: not if it has none or was not committed, nor if it was committed while etcd had no space.
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
        /// The revision of all its keys. If it deletes, and was sent again since an answer was lost: one at which they were all seen to be
        /// gone, which may be later.
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
    /// etcd has no space; nothing was written. Without space are done: writes that only compare, and those that delete, compare one at least
    /// of the keys that they delete, and compare none with nothing.
    NoSpace,
    /// etcd will not do it; nothing was written.
    Rejected {
        /// etcd's words.
        reason: String,
    },
    /// It is not known: the fence was lost or the executor given up before it could be found out, and it may even be written later; or
    /// something new stands under a key that it deletes, after its answer was lost without space.
    Unknown,
}

/// Takes writes, hands out batches, and says what became of each write, exactly once. The owner calls [`Pipeline::next_batch`] until it has
/// nothing, after each submission and after each [`Pipeline::finished`]; so a write that comes while nothing is in flight goes at once.
pub struct Pipeline {
    config: PipelineConfig,
    /// The writes that are not done, by the order of their submission.
    writes: FxHashMap<u64, Waiting>,
    locks: KeyLocks,
    ready: Ready,
    slots: Vec<Slot>,
    /// The batches without a slot that are in flight. What became of one with a slot may be found out only when there is space again, so
    /// these do not wait for those.
    unmarked: Vec<Flight>,
    /// etcd has said that it has no space, and no batch with a mark was applied since: what puts nothing goes without one.
    no_space: bool,
    next_write: u64,
    last_batch: u64,
    fence_lost: bool,
}

struct Waiting {
    write: Write,
    keys: Vec<Taken>,
    kind: Kind,
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

/// The answer to a batch of which a compare has failed.
struct Refusal {
    at: Revision,
    found: FxHashMap<Vec<u8>, Kv>,
    /// An answer to an earlier copy of the batch was lost.
    repeated: bool,
}

impl Refusal {
    fn holds(&self, compare: &Compare) -> bool {
        compare.holds(self.found.get(compare.key()))
    }

    /// What stood under the keys that are compared, each once.
    fn found(&self, compares: &[Compare]) -> Vec<Found> {
        let mut seen = FxHashSet::default();
        let keys = compares.iter().map(Compare::key).filter(|key| seen.insert(*key));
        keys.map(|key| Found { key: key.to_vec(), kv: self.found.get(key).cloned() }).collect()
    }

    /// What has become of a write; none: it has not been carried out, and nothing speaks against doing so. `undone`: the batch was not applied.
    fn judge(&self, write: &Write, undone: bool) -> Option<WriteResult> {
        if write.compares.iter().all(|compare| self.holds(compare)) {
            return None;
        }
        Some(if undone {
            WriteResult::Conflict { at: self.at, found: self.found(&write.compares) }
        } else if write.ops.iter().all(|op| !self.found.contains_key(op.first_key())) {
            WriteResult::Committed { revision: self.at }
        } else {
            WriteResult::Unknown
        })
    }
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
            ready: Ready::default(),
            slots,
            unmarked: Vec::new(),
            no_space: false,
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
        let kind = Kind::of(&write, keys.len());
        let waits = self.locks.queue(number, &keys);
        if waits == 0 {
            self.ready.push(number, kind);
        }
        self.writes.insert(number, Waiting { write, keys, kind, bytes, waits, alone: false });
        Ok(())
    }

    /// The next batch to send, if there is something to write and a slot is free.
    pub fn next_batch(&mut self) -> Option<Batch> {
        if self.fence_lost {
            return None;
        }
        let slot = self.slots.iter().position(|slot| slot.flight.is_none());
        let has_room = |kind: &Kind| if *kind == Kind::Put { slot.is_some() } else { self.unmarked.len() < self.slots.len() };
        let only = if self.no_space { Some(self.ready.kinds().find(has_room)?) } else { None };
        self.ready.earliest(only)?;
        let slot = if only.is_none_or(|kind| kind == Kind::Put) { Some(slot?) } else { None };
        let mut packing = Packing::new(slot.is_some(), self.own_bytes());
        while let Some((number, kind)) = self.ready.earliest(only) {
            let Some(Waiting { write, keys, bytes, alone, .. }) = self.writes.get(&number) else { break };
            if !packing.add(&Item { number, write, keys, bytes: *bytes, alone: *alone }) {
                break;
            }
            self.ready.pop(kind);
        }
        self.last_batch += 1;
        let id = BatchId(self.last_batch);
        let journal_key = || [self.config.journal_prefix.as_slice(), format!("{:016x}", id.0).as_bytes()].concat();
        let (compares, ops, reads) = (packing.compares(), packing.ops(journal_key), packing.reads());
        let resolution = slot.map(|slot| self.resolution(id, slot));
        let txn = match &resolution {
            Some(resolution) => resolution.batch_txn(compares, ops, reads),
            None => unmarked_txn(&self.config.fence_key, self.config.fence, compares, ops, reads),
        };
        let flight = Flight { batch: id, writes: packing.writes.iter().map(|(number, _)| *number).collect() };
        match slot {
            Some(slot) => self.slots[slot].flight = Some(flight),
            None => self.unmarked.push(flight),
        }
        Some(Batch { id, txn, resolution })
    }

    /// Takes in what has become of a batch, and returns the writes that are done with. The others of the batch will be in another one.
    /// A batch that is not in flight is ignored.
    #[must_use = "each write is reported once"]
    pub fn finished(&mut self, batch: BatchId, outcome: Outcome) -> Vec<Done> {
        if outcome == Outcome::WaitsForSpace {
            // It keeps its slot. With all slots kept like this what needs no space goes on, apart from them.
            self.no_space |= self.slots.iter().any(|slot| slot.flight.as_ref().is_some_and(|flight| flight.batch == batch));
            return Vec::new();
        }
        let Some((at, flight)) = self.landed(batch) else { return Vec::new() };
        let mut done = Vec::with_capacity(flight.writes.len());
        match outcome {
            Outcome::Applied { revision } => {
                if let Some(at) = at {
                    self.slots[at].modified = revision;
                    self.no_space = false;
                }
                for number in &flight.writes {
                    self.done(*number, WriteResult::Committed { revision }, at.is_some(), &mut done);
                }
            }
            Outcome::Refused { revision, reads, repeated } => {
                let found = reads.into_iter().flatten().map(|kv| (kv.key.clone(), kv)).collect();
                self.refused(at, &flight.writes, &Refusal { at: revision, found, repeated }, &mut done);
            }
            Outcome::Void { slot } => {
                if let Some(at) = at {
                    self.slots[at].modified = slot;
                }
                self.again(&flight.writes);
            }
            Outcome::FenceLost => {
                self.fence_lost = true;
                self.all_done(&flight.writes, &WriteResult::Unknown, &mut done);
            }
            Outcome::WaitsForSpace => {}
            Outcome::NoSpace => self.without_space(at.is_some(), &flight.writes, &mut done),
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
        let mut sent: Vec<u64> = self.flights().flat_map(|flight| flight.writes.iter().copied()).collect();
        sent.sort_unstable();
        let mut unsent: Vec<u64> = self.writes.keys().copied().filter(|number| sent.binary_search(number).is_err()).collect();
        unsent.sort_unstable();
        let withdrawn = unsent.iter().filter_map(|number| self.writes.remove(number)).map(|waiting| waiting.write.token).collect();
        self.ready = Ready::default();
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
        self.flights().count()
    }

    fn flights(&self) -> impl Iterator<Item = &Flight> {
        self.slots.iter().filter_map(|slot| slot.flight.as_ref()).chain(&self.unmarked)
    }

    /// Takes a batch out of the air, and says which slot it has. None: it is not in flight.
    fn landed(&mut self, batch: BatchId) -> Option<(Option<usize>, Flight)> {
        if let Some(at) = self.unmarked.iter().position(|flight| flight.batch == batch) {
            return Some((None, self.unmarked.remove(at)));
        }
        let at = self.slots.iter().position(|slot| slot.flight.as_ref().is_some_and(|flight| flight.batch == batch))?;
        Some((Some(at), self.slots[at].flight.take()?))
    }

    /// Whether a batch was refused because the fence is lost.
    #[must_use]
    pub fn fence_lost(&self) -> bool {
        self.fence_lost
    }

    /// Finds out who is to blame for a refusal. What was refused will not be applied later: see [`batch`](crate::batch).
    fn refused(&mut self, at: Option<usize>, writes: &[u64], refusal: &Refusal, done: &mut Vec<Done>) {
        let undone = !refusal.repeated || self.is_undone(writes, refusal);
        let fence = refusal.found.get(&self.config.fence_key).map_or(Revision(0), |kv| kv.created);
        if fence != self.config.fence {
            self.fence_lost = true;
            let result = if undone { WriteResult::FenceLost } else { WriteResult::Unknown };
            self.all_done(writes, &result, done);
            return;
        }
        if let Some(at) = at {
            // A slot that is not as it was left is one whose batch was given up, or one of a pipeline before this: it is taken as it is.
            self.slots[at].modified = refusal.found.get(&self.slots[at].key).map_or(Revision(0), |kv| kv.modified);
        }
        for number in writes {
            match self.writes.get(number).and_then(|waiting| refusal.judge(&waiting.write, undone)) {
                Some(result) => self.done(*number, result, false, done),
                None => self.again(&[*number]),
            }
        }
    }

    /// Whether no copy of a batch was applied: one of its writes has no effect, and so has none, or a key that one of them deletes is still as
    /// that one compares it.
    fn is_undone(&self, writes: &[u64], refusal: &Refusal) -> bool {
        writes.iter().filter_map(|number| self.writes.get(number)).any(|Waiting { write, .. }| {
            write.ops.is_empty() || witnesses(&write.compares, &write.ops).any(|compare| refusal.holds(compare))
        })
    }

    /// etcd has no space for a batch: those of its writes that need none go again, without a mark.
    fn without_space(&mut self, marked: bool, writes: &[u64], done: &mut Vec<Done>) {
        self.no_space = true;
        for number in writes {
            let needs_space = self.writes.get(number).is_none_or(|waiting| waiting.kind == Kind::Put);
            // Early versions of etcd refuse those as well.
            if needs_space || !marked {
                self.done(*number, WriteResult::NoSpace, false, done);
            } else {
                self.again(&[*number]);
            }
        }
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
        for number in writes {
            if let Some(waiting) = self.writes.get(number) {
                self.ready.push(*number, waiting.kind);
            }
        }
    }

    fn all_done(&mut self, writes: &[u64], result: &WriteResult, done: &mut Vec<Done>) {
        for number in writes {
            self.done(*number, result.clone(), false, done);
        }
    }

    /// A write is done with. `journaled`: if it has an entry, that was written as well.
    fn done(&mut self, number: u64, result: WriteResult, journaled: bool, done: &mut Vec<Done>) {
        let Some(finished) = self.writes.remove(&number) else { return };
        let journaled = journaled && finished.write.entry.is_some();
        done.push(Done { token: finished.write.token, result, journaled });
        let (writes, ready) = (&mut self.writes, &mut self.ready);
        self.locks.give_back(&finished.keys, |number| {
            if let Some(waiting) = writes.get_mut(&number) {
                waiting.waits -= 1;
                if waiting.waits == 0 {
                    ready.push(number, waiting.kind);
                }
            }
        });
    }

    /// The fence is lost: nothing that is not in flight will ever be sent.
    fn give_up_queued(&mut self, done: &mut Vec<Done>) {
        while let Some((number, kind)) = self.ready.earliest(None) {
            self.ready.pop(kind);
            self.done(number, WriteResult::FenceLost, false, done);
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

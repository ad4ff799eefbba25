//! PURE: what fits into one transaction, and which writes may share one.
//!
//! In the wheel it is the part of store::commit that fills a batch. It does not choose the order, and knows nothing of what becomes of a
//! batch.

use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc};

use rustc_hash::FxHashSet;

use crate::{
    locks::{Mode, Taken},
    pipeline::{SubmitError, Write},
    types::{Compare, Op},
};

/// The most operations, and the most compares, in one transaction; what the slot and the fence need is part of it.
pub const MAX_OPS: usize = 128;
/// The most bytes in one transaction, as estimated. etcd takes 1.5 MiB.
pub const MAX_BYTES: usize = 1 << 20;

/// The operation that puts the slot.
pub(crate) const OWN_OPS: usize = 1;
/// The compares of the fence and of the slot; the other branch reads both.
pub(crate) const OWN_COMPARES: usize = 2;
/// What an operation or a compare takes beside its key and value, generously.
pub(crate) const OVERHEAD: usize = 32;

/// What a write does. While etcd has no space only writes of one kind share a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing: it only compares.
    Check,
    /// It deletes, and can be sent again without harm: see [`batch`](crate::batch).
    Delete,
    /// It needs space: it puts a key, or has an effect only by its entry, or could do harm if it were sent again.
    Put,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Check, Self::Delete, Self::Put];

    /// `keys`: how many keys the write compares or writes. The other branch of a batch without a mark reads all of them.
    pub(crate) fn of(write: &Write, keys: usize) -> Self {
        let puts = write.ops.iter().any(|op| !matches!(op, Op::Delete { .. }));
        match write.ops.as_slice() {
            _ if puts || keys + OWN_COMPARES > MAX_OPS => Self::Put,
            [] if write.entry.is_none() => Self::Check,
            [] => Self::Put,
            _ if is_repeatable(write) => Self::Delete,
            _ => Self::Put,
        }
    }
}

/// Whether a write that deletes can be sent again without harm: it compares no key with nothing, and one at least that it deletes.
fn is_repeatable(write: &Write) -> bool {
    write.compares.iter().all(|compare| compare.equals().0 > 0) && witnesses(&write.compares, &write.ops).next().is_some()
}

/// The compares of keys that are deleted: each fails from then on, and for ever if it names a revision.
pub(crate) fn witnesses<'a>(compares: &'a [Compare], ops: &'a [Op]) -> impl Iterator<Item = &'a Compare> {
    let is_deleted = |key: &[u8]| ops.iter().any(|op| matches!(op, Op::Delete { key: deleted } if deleted == key));
    compares.iter().filter(move |compare| compare.equals().0 > 0 && is_deleted(compare.key()))
}

/// The writes that have all their keys and are not in flight, the earliest first.
#[derive(Default)]
pub(crate) struct Ready([BinaryHeap<Reverse<u64>>; 3]);

impl Ready {
    pub(crate) fn push(&mut self, number: u64, kind: Kind) {
        self.0[kind as usize].push(Reverse(number));
    }

    /// The earliest, of one kind or of all.
    pub(crate) fn earliest(&self, only: Option<Kind>) -> Option<(u64, Kind)> {
        let kinds = Kind::ALL.into_iter().filter(|kind| only.is_none_or(|only| only == *kind));
        kinds.filter_map(|kind| Some((self.0[kind as usize].peek()?.0, kind))).min_by_key(|(number, _)| *number)
    }

    /// The kinds of which there are any, that of the earliest write first.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = Kind> {
        let mut kinds = Kind::ALL.map(|kind| (self.0[kind as usize].peek().map_or(u64::MAX, |first| first.0), kind));
        kinds.sort_unstable_by_key(|(first, _)| *first);
        kinds.into_iter().map(|(_, kind)| kind).filter(|kind| !self.0[*kind as usize].is_empty())
    }

    /// Takes the earliest of a kind out.
    pub(crate) fn pop(&mut self, kind: Kind) {
        self.0[kind as usize].pop();
    }
}

/// A batch while it is being filled.
pub(crate) struct Packing<'a> {
    /// Whether it puts slot and entries.
    marked: bool,
    pub(crate) writes: Vec<(u64, &'a Write)>,
    ops: usize,
    bytes: usize,
    /// Whether one of the writes has an entry: then one more key is put.
    journal: bool,
    /// Each compare once, in order: many writes may have the same one.
    compares: Vec<&'a Compare>,
    known: FxHashSet<&'a Compare>,
    /// Each key once that the other branch reads.
    reads: FxHashSet<&'a [u8]>,
    closed: bool,
}

/// A write as the packing needs it.
pub(crate) struct Item<'a> {
    pub(crate) number: u64,
    pub(crate) write: &'a Write,
    pub(crate) keys: &'a [Taken],
    pub(crate) bytes: usize,
    /// It shares a batch with no other.
    pub(crate) alone: bool,
}

impl<'a> Packing<'a> {
    /// An empty one, of which fence, slot and entries' key take so many bytes.
    pub(crate) fn new(marked: bool, bytes: usize) -> Self {
        Self {
            marked,
            writes: Vec::new(),
            ops: OWN_OPS,
            bytes,
            journal: false,
            compares: Vec::new(),
            known: FxHashSet::default(),
            reads: FxHashSet::default(),
            closed: false,
        }
    }

    /// Adds a write if it fits. The first one always does: [`Pipeline::submit`](crate::Pipeline::submit) has seen to that.
    pub(crate) fn add(&mut self, item: &Item<'a>) -> bool {
        let write = item.write;
        let compares = write.compares.iter().filter(|compare| !self.known.contains(compare)).count();
        // Without a mark the other branch reads what is deleted as well.
        let is_read = |taken: &&Taken| !self.marked || taken.mode == Mode::Shared;
        let reads = item.keys.iter().filter(is_read).filter(|taken| !self.reads.contains(&*taken.key)).count();
        let journal = self.journal || (self.marked && write.entry.is_some());
        let fits = self.ops + write.ops.len() + usize::from(journal) <= MAX_OPS
            && self.compares.len() + OWN_COMPARES + compares <= MAX_OPS
            && self.reads.len() + OWN_COMPARES + reads <= MAX_OPS
            && self.bytes + item.bytes <= MAX_BYTES
            // What has neither operations nor compares of its own, such as an entry by itself, takes a place as well.
            && self.writes.len() < MAX_OPS;
        if !self.writes.is_empty() && (self.closed || item.alone || !fits) {
            return false;
        }
        self.closed = item.alone;
        self.writes.push((item.number, write));
        self.ops += write.ops.len();
        self.journal = journal;
        self.bytes += item.bytes;
        for compare in &write.compares {
            if self.known.insert(compare) {
                self.compares.push(compare);
                self.reads.insert(compare.key());
            }
        }
        if !self.marked {
            self.reads.extend(write.ops.iter().map(Op::first_key));
        }
        true
    }

    /// Each compare once, in order.
    pub(crate) fn compares(&self) -> Vec<Compare> {
        self.compares.iter().copied().cloned().collect()
    }

    /// The operations of the writes, and the one that puts their entries under the key.
    pub(crate) fn ops(&self, journal_key: impl FnOnce() -> Vec<u8>) -> Vec<Op> {
        let writes = || self.writes.iter().map(|(_, write)| *write);
        let mut ops: Vec<Op> = writes().flat_map(|write| write.ops.iter().cloned()).collect();
        if self.journal {
            let entries: Vec<&[u8]> = writes().filter_map(|write| write.entry.as_deref()).collect();
            ops.push(Op::put(journal_key(), [b"[", entries.join(&b',').as_slice(), b"]"].concat()));
        }
        ops
    }

    /// What the other branch reads.
    pub(crate) fn reads(&self) -> impl Iterator<Item = Op> {
        self.reads.iter().map(|key| Op::get(*key))
    }
}

/// How many operations of a transaction a write takes, if it is the only one with an entry.
pub(crate) fn ops_of(write: &Write) -> usize {
    write.ops.len() + usize::from(write.entry.is_some())
}

/// The keys that a write takes, each once.
pub(crate) fn keys_of(write: &Write) -> Result<Vec<Taken>, SubmitError> {
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

/// What a write takes in a transaction, estimated from above. A compared key is there twice, since the other branch reads it, and so is a
/// deleted one of a batch without a mark.
pub(crate) fn bytes_of(write: &Write) -> usize {
    let ops = write.ops.iter().map(|op| match op {
        Op::Put { key, value, .. } => key.len() + value.len() + OVERHEAD,
        Op::Delete { key } | Op::Get { key } => 2 * (key.len() + OVERHEAD),
        Op::DeleteRange { range } | Op::Range { range } => range.start.len() + range.end.len() + OVERHEAD,
    });
    let compares = write.compares.iter().map(|compare| 2 * (compare.key().len() + OVERHEAD));
    // An entry is in a list: a comma goes before it.
    let entry = write.entry.as_ref().map_or(0, |entry| entry.len() + 1);
    ops.sum::<usize>() + compares.sum::<usize>() + entry
}

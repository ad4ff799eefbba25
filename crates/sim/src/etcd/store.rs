//! PURE: what etcd keeps and what each request does to it: keys by revision, transactions, compaction, and the history for watches.
//!
//! In the wheel it is the truth behind the model of etcd, and what an oracle looks at. No task, no clock and no randomness here: one
//! request after the other, in the order in which etcd's members have agreed on. The rules are those of etcd 3.4 and 3.5 as their source
//! has them (`mvcc`, `lease`, `etcdserver/apply.go`, `v3rpc/key.go`), checked against the real one in `tests/etcd_conformance.rs`.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
};

use evenkeel_store::{KeyChange, KeyRange, Kv, Op, RangeReply, RangeRequest, Revision, Txn, TxnReply};

use super::{leases::Leases, refusal::Refusal};

/// A transaction takes at most so many compares, and operations in each branch.
const MAX_OPS: usize = 128;
/// A request takes at most so many bytes.
const MAX_BYTES: usize = 3 << 19;

/// Everything that etcd keeps.
#[derive(Clone, Debug)]
pub struct Store {
    revision: Revision,
    /// The revision of the last compaction: what is older cannot be read.
    compacted: Revision,
    /// Each key that stands or has stood since the compaction, with its versions by growing revision.
    keys: BTreeMap<Vec<u8>, Vec<Version>>,
    /// The changes of each revision up to the present one; the first is that of the last compaction, if there was one.
    history: VecDeque<Vec<KeyChange>>,
    pub(super) leases: Leases,
    no_space: bool,
}

/// A key from a revision on.
#[derive(Clone, Debug)]
struct Version {
    from: Revision,
    /// None: it was deleted.
    kv: Option<Kv>,
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// An empty one, as etcd begins: at revision 1.
    #[must_use]
    pub fn new() -> Self {
        Self {
            revision: Revision(1),
            compacted: Revision(-1),
            keys: BTreeMap::new(),
            history: VecDeque::new(),
            leases: Leases::default(),
            no_space: false,
        }
    }

    /// An empty one at a later revision, to which it has been compacted.
    #[must_use]
    pub fn at(revision: Revision) -> Self {
        Self { revision, compacted: revision, ..Self::new() }
    }

    /// The present revision.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The oldest revision that can be read; negative: there was no compaction yet.
    #[must_use]
    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    /// The key as it stands.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&Kv> {
        self.keys.get(key)?.last()?.kv.as_ref()
    }

    /// The keys of the range as they stand, in order.
    pub fn iter(&self, range: &KeyRange) -> impl Iterator<Item = &Kv> {
        self.versions(range).filter_map(|(_, versions)| versions.last()?.kv.as_ref())
    }

    /// The leases that stand, in the order of their ids.
    pub fn leases(&self) -> impl Iterator<Item = i64> {
        self.leases.ids()
    }

    /// Reads a range. Order and limit are etcd's.
    ///
    /// # Errors
    /// A revision that was compacted away or is still to come, and an empty key.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeReply, Refusal> {
        let at = request.revision;
        if request.range.start.is_empty() {
            return Err(Refusal::EmptyKey);
        }
        if at > self.revision {
            return Err(Refusal::FutureRevision);
        }
        if at > Revision(0) && at < self.compacted {
            return Err(Refusal::Compacted);
        }
        let at = if at > Revision(0) { at } else { self.revision };
        let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let standing = |versions: &'_ Vec<Version>| versions.iter().rposition(|version| version.from <= at);
        let mut found = self.versions(&request.range).filter_map(|(_, versions)| versions[standing(versions)?].kv.as_ref());
        let mut kvs = Vec::new();
        for kv in found.by_ref().take(limit) {
            kvs.push(if request.keys_only { Kv { key: kv.key.clone(), value: Vec::new(), ..*kv } } else { kv.clone() });
        }
        Ok(RangeReply { kvs, more: found.next().is_some(), revision: self.revision })
    }

    /// Carries out a transaction. All of its writes have one revision; its reads see the writes before them.
    ///
    /// # Errors
    /// What etcd refuses; nothing was done then.
    pub fn txn(&mut self, txn: Txn) -> Result<TxnReply, Refusal> {
        check(&txn)?;
        // etcd looks at both branches, whichever would be done.
        let puts = |ops: &[Op]| ops.iter().any(|op| matches!(op, Op::Put { .. }));
        if self.no_space && (puts(&txn.then) || puts(&txn.otherwise)) {
            return Err(Refusal::NoSpace);
        }
        let succeeded = txn.compares.iter().all(|compare| compare.holds(self.get(compare.key())));
        let ops = if succeeded { txn.then } else { txn.otherwise };
        if ops.iter().any(|op| matches!(op, Op::Put { lease, .. } if *lease != 0 && !self.leases.exists(*lease))) {
            return Err(Refusal::LeaseNotFound);
        }
        let mut writing = Writing { revision: next(self.revision), changes: Vec::new(), reads: Vec::new() };
        for op in ops {
            self.apply(op, &mut writing);
        }
        let reads = std::mem::take(&mut writing.reads);
        self.commit(writing);
        Ok(TxnReply { succeeded, revision: self.revision, reads })
    }

    /// Puts a key that is bound to no lease.
    ///
    /// # Errors
    /// As for [`Store::txn`].
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<Revision, Refusal> {
        let put = Op::Put { key, value, lease: 0 };
        self.txn(Txn { then: vec![put], ..Txn::default() }).map(|reply| reply.revision)
    }

    /// Revokes a lease: its keys are deleted in one revision, in order.
    ///
    /// # Errors
    /// There is no such lease.
    pub fn revoke(&mut self, lease: i64) -> Result<(), Refusal> {
        let keys = self.leases.remove(lease).ok_or(Refusal::LeaseNotFound)?;
        let mut writing = Writing { revision: next(self.revision), changes: Vec::new(), reads: Vec::new() };
        for key in keys {
            self.delete(key, &mut writing);
        }
        self.commit(writing);
        Ok(())
    }

    /// Forgets all revisions before this one. What was deleted in this very revision is forgotten by etcd 3.4 and kept, as an event of
    /// the history, by later ones.
    ///
    /// # Errors
    /// A revision to which it was compacted already, and one that is still to come.
    pub fn compact(&mut self, revision: Revision, keep_deletions: bool) -> Result<(), Refusal> {
        if revision <= self.compacted {
            return Err(Refusal::Compacted);
        }
        if revision > self.revision {
            return Err(Refusal::FutureRevision);
        }
        self.compacted = revision;
        while self.first() < revision && self.history.pop_front().is_some() {}
        if let Some(oldest) = self.history.front_mut().filter(|_| !keep_deletions && self.revision >= revision) {
            let is_oldest = |change: &KeyChange| change.revision() == revision;
            oldest.retain(|change| matches!(change, KeyChange::Put(_)) || !is_oldest(change));
        }
        self.keys.retain(|_, versions| {
            let standing = versions.iter().rposition(|version| version.from <= revision).unwrap_or(0);
            versions.drain(..standing);
            let gone = versions.first().is_some_and(|version| version.kv.is_none() && version.from <= revision);
            versions.drain(..usize::from(gone));
            !versions.is_empty()
        });
        Ok(())
    }

    /// The changes of one revision; empty if it is not in the history.
    #[must_use]
    pub fn changes(&self, revision: Revision) -> &[KeyChange] {
        let index = usize::try_from(revision.0 - self.first().0).ok();
        index.and_then(|index| self.history.get(index)).map_or(&[], Vec::as_slice)
    }

    /// Whether etcd has no space: it takes no puts and grants no leases.
    #[must_use]
    pub fn has_no_space(&self) -> bool {
        self.no_space
    }

    /// Raises or clears the alarm.
    pub fn set_no_space(&mut self, no_space: bool) {
        self.no_space = no_space;
    }

    /// The revision of the first entry of the history.
    fn first(&self) -> Revision {
        Revision(self.revision.0 - i64::try_from(self.history.len()).unwrap_or(0) + 1)
    }

    fn versions(&self, range: &KeyRange) -> impl Iterator<Item = (&Vec<u8>, &Vec<Version>)> {
        let start = Bound::Included(range.start.as_slice());
        let end = match range.end.as_slice() {
            [] => Bound::Included(range.start.as_slice()),
            [0] => Bound::Unbounded,
            end => Bound::Excluded(end.max(range.start.as_slice())),
        };
        // A range from a key to itself has nothing, which the map takes for a mistake only if both ends are excluded.
        self.keys.range::<[u8], _>((start, end))
    }

    fn apply(&mut self, op: Op, writing: &mut Writing) {
        match op {
            Op::Put { key, value, lease } => self.write(key, value, lease, writing),
            Op::Delete { key } => self.delete(key, writing),
            Op::DeleteRange { range } => {
                let keys: Vec<Vec<u8>> = self.iter(&range).map(|kv| kv.key.clone()).collect();
                for key in keys {
                    self.delete(key, writing);
                }
            }
            Op::Get { key } => writing.reads.push(self.get(&key).cloned().into_iter().collect()),
            Op::Range { range } => writing.reads.push(self.iter(&range).cloned().collect()),
        }
    }

    fn write(&mut self, key: Vec<u8>, value: Vec<u8>, lease: i64, writing: &mut Writing) {
        let old = self.get(&key).map(|kv| (kv.created, kv.lease));
        if let Some((_, old_lease)) = old {
            self.leases.detach(old_lease, &key);
        }
        self.leases.attach(lease, &key);
        let created = old.map_or(writing.revision, |(created, _)| created);
        let kv = Kv { key: key.clone(), value, created, modified: writing.revision, lease };
        writing.changes.push(KeyChange::Put(kv.clone()));
        self.keys.entry(key).or_default().push(Version { from: writing.revision, kv: Some(kv) });
    }

    fn delete(&mut self, key: Vec<u8>, writing: &mut Writing) {
        let Some(lease) = self.get(&key).map(|kv| kv.lease) else { return };
        self.leases.detach(lease, &key);
        if let Some(versions) = self.keys.get_mut(&key) {
            versions.push(Version { from: writing.revision, kv: None });
        }
        writing.changes.push(KeyChange::Delete { key, revision: writing.revision });
    }

    /// What has changed nothing has no revision.
    fn commit(&mut self, writing: Writing) {
        if !writing.changes.is_empty() {
            self.revision = writing.revision;
            self.history.push_back(writing.changes);
        }
    }
}

/// A transaction that is being carried out.
struct Writing {
    revision: Revision,
    changes: Vec<KeyChange>,
    reads: Vec<Vec<Kv>>,
}

/// What etcd refuses whatever it has stored.
fn check(txn: &Txn) -> Result<(), Refusal> {
    if txn.compares.len().max(txn.then.len()).max(txn.otherwise.len()) > MAX_OPS {
        return Err(Refusal::TooManyOperations);
    }
    let ops = || txn.then.iter().chain(&txn.otherwise);
    if txn.compares.iter().any(|compare| compare.key().is_empty()) || ops().any(|op| op.first_key().is_empty()) {
        return Err(Refusal::EmptyKey);
    }
    check_branch(&txn.then)?;
    check_branch(&txn.otherwise)?;
    let bytes: usize = ops().map(|op| if let Op::Put { value, .. } = op { value.len() } else { 0 } + op.first_key().len()).sum();
    if bytes > MAX_BYTES { Err(Refusal::TooLarge) } else { Ok(()) }
}

/// No key is put twice, or put and deleted. That it is deleted twice does not matter to etcd, and a deletion without an upper end is
/// overlooked by its check.
fn check_branch(ops: &[Op]) -> Result<(), Refusal> {
    let mut puts: Vec<&[u8]> = ops.iter().filter_map(|op| if let Op::Put { key, .. } = op { Some(key.as_slice()) } else { None }).collect();
    puts.sort_unstable();
    let twice = puts.windows(2).any(|pair| pair[0] == pair[1]);
    let deleted = |key: &[u8]| {
        ops.iter().any(|op| match op {
            Op::Delete { key: deleted } => deleted == key,
            Op::DeleteRange { range } => range.end != [0] && range.contains(key),
            _ => false,
        })
    };
    let deletes = ops.iter().any(|op| matches!(op, Op::Delete { .. } | Op::DeleteRange { .. }));
    if twice || (deletes && puts.iter().any(|key| deleted(key))) { Err(Refusal::DuplicateKey) } else { Ok(()) }
}

fn next(revision: Revision) -> Revision {
    Revision(revision.0 + 1)
}

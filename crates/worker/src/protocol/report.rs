//! PURE: which statuses are to be written, and in which transactions.
//!
//! The wheel: worker::driver -> **worker::report** -> etcd. It writes a status when it has changed, in batches, one batch at a time.
//!
//! Each write compares four things: the session, the admission, the assignment's create revision, and the status key itself. The first
//! three are the protocol's: a late status must fail. The fourth keeps a transaction whose answer was lost, and which takes effect late,
//! from undoing a newer one.

use std::collections::{BTreeMap, BTreeSet};

use evenkeel_model::{Observed, ResourceName, Revision, Session, Status, WorkerId};
use evenkeel_store::{Compare, Kv, Op, Txn, keys::Keys};

/// Each status takes two of etcd's 128 compares, and two of 128 reads if a compare fails.
const BATCH: usize = 60;
/// The longest message, in bytes.
const MAX_MESSAGE: usize = 1024;

/// What the transaction that writes statuses compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusGuard {
    /// The session.
    pub session: Session,
    /// The modification revision of its admission.
    pub admission: Revision,
}

/// What is known of one status.
#[derive(Clone, Debug, Default)]
struct Entry {
    /// What is to stand in etcd.
    wanted: Option<Status>,
    /// What stands there, as far as is known.
    written: Option<Status>,
    /// The modification revision of the key, as far as is known; zero: it does not exist.
    modified: Revision,
}

/// The statuses of this worker.
#[derive(Clone, Debug, Default)]
pub struct Reporter {
    entries: BTreeMap<ResourceName, Entry>,
    /// What is to be written and somebody waits for: ends.
    urgent: BTreeSet<ResourceName>,
    /// What is to be written besides.
    dirty: BTreeSet<ResourceName>,
    in_flight: bool,
}

/// One transaction's worth of statuses.
#[derive(Clone, Debug)]
pub struct Batch {
    guard: StatusGuard,
    items: Vec<Item>,
}

#[derive(Clone, Debug)]
struct Item {
    name: ResourceName,
    status: Status,
    modified: Revision,
}

/// What became of a batch.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It was written at this revision.
    Written(Revision),
    /// A compare failed; this is what stands.
    Refused(Vec<Vec<Kv>>),
    /// Nobody knows; or it certainly was not written, which comes to the same.
    Unknown,
}

/// What a batch's outcome means beyond the statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Fine,
    /// The session is gone: its key is not ours.
    SessionLost,
}

impl Reporter {
    /// All own statuses as they stand, with their modification revisions. Whatever is not assigned any more is forgotten.
    pub fn list(&mut self, mut statuses: BTreeMap<ResourceName, (Option<Status>, Revision)>, is_told: impl Fn(&ResourceName) -> bool) {
        self.retain(&is_told);
        for (name, (written, modified)) in std::mem::take(&mut statuses) {
            if is_told(&name) {
                let entry = self.entries.entry(name).or_default();
                (entry.written, entry.modified) = (written, modified);
            }
        }
        let names: Vec<ResourceName> = self.entries.keys().cloned().collect();
        names.iter().for_each(|name| self.queue(name));
    }

    /// Forgets whatever is not assigned any more.
    pub fn retain(&mut self, is_told: impl Fn(&ResourceName) -> bool) {
        self.entries.retain(|name, _| is_told(name));
        self.urgent.retain(|name| is_told(name));
        self.dirty.retain(|name| is_told(name));
    }

    /// What is known to stand under a name.
    #[must_use]
    pub fn written(&self, name: &ResourceName) -> Option<&Status> {
        self.entries.get(name)?.written.as_ref()
    }

    /// What was last said of a name, be it written or not.
    #[must_use]
    pub fn last(&self, name: &ResourceName) -> Option<&Status> {
        let entry = self.entries.get(name)?;
        entry.wanted.as_ref().or(entry.written.as_ref())
    }

    /// This is how it is now.
    pub fn set(&mut self, name: &ResourceName, mut status: Status) {
        if status.message.len() > MAX_MESSAGE {
            let end = (0..=MAX_MESSAGE).rev().find(|at| status.message.is_char_boundary(*at)).unwrap_or_default();
            status.message.truncate(end);
        }
        self.entries.entry(name.clone()).or_default().wanted = Some(status);
        self.queue(name);
    }

    /// Puts a name where it belongs.
    fn queue(&mut self, name: &ResourceName) {
        self.urgent.remove(name);
        self.dirty.remove(name);
        let Some(entry) = self.entries.get(name) else { return };
        match &entry.wanted {
            Some(wanted) if entry.wanted != entry.written => {
                let queue = if wanted.phase == Observed::Stopped || wanted.finished { &mut self.urgent } else { &mut self.dirty };
                queue.insert(name.clone());
            }
            _ => {}
        }
    }

    /// The assignment is gone, and its status with it.
    pub fn forget(&mut self, name: &ResourceName) {
        self.entries.remove(name);
        self.queue(name);
    }

    /// Something is to be written, and nothing is being written.
    #[must_use]
    pub fn is_due(&self) -> bool {
        !(self.in_flight || self.dirty.is_empty() && self.urgent.is_empty())
    }

    /// Somebody waits for what is to be written.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        !self.urgent.is_empty()
    }

    /// The next batch: what somebody waits for goes first. Its outcome must be told before there is another.
    #[must_use]
    pub fn next(&mut self, guard: StatusGuard) -> Option<Batch> {
        if self.in_flight {
            return None;
        }
        let wanted = |name: &ResourceName| {
            let entry = self.entries.get(name)?;
            Some(Item { name: name.clone(), status: entry.wanted.clone()?, modified: entry.modified })
        };
        let items: Vec<Item> = self.urgent.iter().chain(&self.dirty).filter_map(wanted).take(BATCH).collect();
        self.in_flight = !items.is_empty();
        self.in_flight.then_some(Batch { guard, items })
    }

    /// Nobody will tell what became of the batch that is out: its session has ended.
    pub fn abandon(&mut self) {
        self.in_flight = false;
    }

    /// Takes in what became of the batch.
    pub fn done(&mut self, batch: &Batch, outcome: Outcome) -> Verdict {
        self.in_flight = false;
        match outcome {
            Outcome::Written(revision) => {
                for item in &batch.items {
                    self.stands(&item.name, Some(item.status.clone()), revision);
                }
                Verdict::Fine
            }
            Outcome::Unknown => Verdict::Fine,
            Outcome::Refused(reads) => self.refused(batch, reads),
        }
    }

    /// Finds out which compare failed, and corrects what is known. What is still to be written comes with the next batch.
    fn refused(&mut self, batch: &Batch, reads: Vec<Vec<Kv>>) -> Verdict {
        let mut reads = reads.into_iter().map(|mut kvs| kvs.pop());
        let mut next = || reads.next().flatten();
        if next().is_none_or(|worker| worker.created.0 != batch.guard.session.0) {
            return Verdict::SessionLost;
        }
        // Another admission than ours makes this guard fail. The agent sees it by itself, and comes with another.
        let _ = next();
        for item in &batch.items {
            let (assignment, status) = (next(), next());
            if assignment.is_none_or(|kv| kv.created.0 != item.status.epoch.0) {
                self.drop_epoch(item);
                continue;
            }
            let (written, modified) = status.map_or((None, Revision(0)), |kv| (serde_json::from_slice(&kv.value).ok(), kv.modified));
            self.stands(&item.name, written, modified);
        }
        Verdict::Fine
    }

    fn stands(&mut self, name: &ResourceName, written: Option<Status>, modified: Revision) {
        if let Some(entry) = self.entries.get_mut(name) {
            (entry.written, entry.modified) = (written, modified);
            self.queue(name);
        }
    }

    /// Nothing is to be said any more of this epoch. A later one may be wanted by now.
    fn drop_epoch(&mut self, item: &Item) {
        if self.entries.get(&item.name).and_then(|e| e.wanted.as_ref()).is_some_and(|wanted| wanted.epoch == item.status.epoch) {
            self.forget(&item.name);
        }
    }
}

impl Batch {
    /// The transaction that writes it.
    #[must_use]
    pub fn txn(&self, keys: &Keys, worker: &WorkerId) -> Txn {
        let created = |key: String, equals: i64| Compare::CreateRevision { key: key.into_bytes(), equals: Revision(equals) };
        let modified = |key: String, equals: Revision| Compare::ModRevision { key: key.into_bytes(), equals };
        let mut txn = Txn {
            compares: vec![created(keys.worker(worker), self.guard.session.0), modified(keys.admission(worker), self.guard.admission)],
            then: Vec::new(),
            otherwise: vec![Op::get(keys.worker(worker)), Op::get(keys.admission(worker))],
        };
        for item in &self.items {
            let (assignment, status) = (keys.assignment(worker, &item.name), keys.status(worker, &item.name));
            txn.compares.push(created(assignment.clone(), item.status.epoch.0));
            txn.compares.push(modified(status.clone(), item.modified));
            txn.otherwise.push(Op::get(assignment));
            txn.otherwise.push(Op::get(status.clone()));
            txn.then.push(Op::put(status, serde_json::to_vec(&item.status).unwrap_or_default()));
        }
        txn
    }

    /// How many statuses it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// It holds none; never so for one that was handed out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;

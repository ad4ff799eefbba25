//! What a master knows, shared between the control loop, which alone changes it, and the API, which reads it. It decides nothing.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use evenkeel_model::{Brake, Cluster, HistoryEntry, MasterRecord, Moment, ResourceName, Revision, Versioned};
use tokio::sync::watch;

use crate::{measures::Measures, time::Clock};

/// How many entries of the history are kept in memory.
const HISTORY: usize = 20_000;
/// How many changes of resources are remembered for those who watch; who falls behind further lists again.
const CHANGES: usize = 65_536;
/// A control loop that has not turned for so long hangs: a timer turns it every few seconds, whatever else happens or does not.
const HANGS: Duration = Duration::from_secs(30);

/// The shared knowledge with the wake-ups of those who wait for it to change. A wake-up carries no data.
#[derive(Debug)]
pub(crate) struct Shared {
    state: RwLock<State>,
    /// Who leads.
    pub(crate) leadership: watch::Sender<Leadership>,
    /// Grows with every change of a resource.
    pub(crate) changed: watch::Sender<u64>,
    /// Grows with every entry of the history.
    pub(crate) happened: watch::Sender<u64>,
    /// What is counted and timed.
    pub(crate) measures: Measures,
    clock: Arc<dyn Clock>,
    /// When the control loop last turned, in milliseconds.
    turned: AtomicU64,
    /// What this master waits for before it begins; none: it has begun.
    waits_for: Mutex<Option<String>>,
}

/// Who leads, as far as this master knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// Nobody, or nobody who has become the leader.
    Nobody,
    /// This master.
    Mine,
    /// Another one: where its gRPC is served.
    Other {
        /// Its id.
        id: String,
        /// Its gRPC address.
        address: String,
    },
}

/// What a master knows.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// The cluster; as the leader has decided it, where this master leads.
    pub(crate) cluster: Cluster,
    /// The masters by their create revisions: the first leads.
    pub(crate) masters: BTreeMap<Revision, (String, MasterRecord)>,
    /// Whether a whole list has been taken in.
    pub(crate) is_synced: bool,
    /// etcd cannot be followed at the moment.
    pub(crate) is_cut_off: bool,
    /// How much the last plan of this master left undone.
    pub(crate) undone: usize,
    /// Whether that plan held what lost workers ran.
    pub(crate) brake: Option<Brake>,
    /// The entries by their numbers.
    history: VecDeque<(i64, HistoryEntry)>,
    /// The highest number that a key of the history is called by.
    last_batch: u64,
    changes: VecDeque<ResourceName>,
    /// The number of the first of `changes`.
    first_change: u64,
}

impl Shared {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            state: RwLock::default(),
            leadership: watch::Sender::new(Leadership::Nobody),
            changed: watch::Sender::new(0),
            happened: watch::Sender::new(0),
            measures: Measures::default(),
            turned: AtomicU64::new(millis(clock.now())),
            waits_for: Mutex::default(),
            clock,
        }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// This master's monotonic clock.
    pub(crate) fn now(&self) -> Moment {
        self.clock.now()
    }

    /// The control loop has turned.
    pub(crate) fn turned(&self) {
        self.turned.store(millis(self.now()), Ordering::Relaxed);
    }

    /// For how long the control loop has not turned, if that is too long.
    pub(crate) fn hangs_for(&self) -> Option<Duration> {
        let since = millis(self.now()).saturating_sub(self.turned.load(Ordering::Relaxed));
        Some(Duration::from_millis(since)).filter(|since| *since >= HANGS)
    }

    /// Notes what this master waits for before it begins; none: it has begun.
    pub(crate) fn set_waits_for(&self, what: Option<String>) {
        *self.waits_for.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    /// What this master waits for before it begins.
    pub(crate) fn waits_for(&self) -> Option<String> {
        self.waits_for.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What it goes by.
    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    pub(crate) fn set_leadership(&self, leadership: Leadership) {
        self.leadership.send_if_modified(|old| {
            let is_new = *old != leadership;
            if is_new {
                *old = leadership;
            }
            is_new
        });
    }

    /// Wakes those who watch, after the lock has been given back.
    pub(crate) fn wake(&self, changes: u64, last_event: u64) {
        self.changed.send_if_modified(|old| std::mem::replace(old, changes) != changes);
        self.happened.send_if_modified(|old| std::mem::replace(old, last_event) != last_event);
    }
}

fn millis(moment: Moment) -> u64 {
    u64::try_from(moment.0.as_millis()).unwrap_or(u64::MAX)
}

impl State {
    /// Remembers that a resource has changed.
    pub(crate) fn touch(&mut self, name: &ResourceName) {
        if self.changes.len() == CHANGES {
            self.changes.pop_front();
            self.first_change += 1;
        }
        self.changes.push_back(name.clone());
    }

    /// The number that the next change will have.
    pub(crate) fn next_change(&self) -> u64 {
        self.first_change + self.changes.len() as u64
    }

    /// What has changed since a number; none: too much, so that a list is needed.
    pub(crate) fn changes_since(&self, number: u64) -> Option<impl Iterator<Item = &ResourceName>> {
        let skip = usize::try_from(number.checked_sub(self.first_change)?).ok()?;
        Some(self.changes.iter().skip(skip))
    }

    /// This knowledge replaces another as a whole: who watched that one must list again.
    pub(crate) fn forget_changes_of(&mut self, old: &Self) {
        self.first_change = old.next_change() + 1;
        self.changes.clear();
    }

    /// The number of the next batch of the history.
    pub(crate) fn next_batch(&self) -> u64 {
        self.last_batch + 1
    }

    /// Takes in a part of the history: the entries of one key, which was created at a revision. One that is known already changes nothing.
    pub(crate) fn remember(&mut self, suffix: &str, revision: Revision, entries: Vec<HistoryEntry>) {
        self.last_batch = self.last_batch.max(suffix.parse().unwrap_or(0));
        for (index, entry) in entries.into_iter().enumerate() {
            self.remember_one(sequence(revision, index), entry);
        }
    }

    /// A list brings the entries in the order of their keys, which need not be that of their numbers.
    fn remember_one(&mut self, sequence: i64, entry: HistoryEntry) {
        let at = self.history.partition_point(|(known, _)| *known < sequence);
        if self.history.get(at).is_some_and(|(known, _)| *known == sequence) {
            return;
        }
        self.history.insert(at, (sequence, entry));
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
    }

    /// The history after a sequence number, oldest first.
    pub(crate) fn history_after(&self, after: i64) -> impl DoubleEndedIterator<Item = &(i64, HistoryEntry)> {
        let from = self.history.partition_point(|(sequence, _)| *sequence <= after);
        self.history.range(from..)
    }

    pub(crate) fn last_event(&self) -> i64 {
        self.history.back().map_or(0, |(sequence, _)| *sequence)
    }

    /// Takes in that a master campaigns, or has ceased to.
    pub(crate) fn candidate(&mut self, lease: String, value: Option<Versioned<MasterRecord>>) {
        self.masters.retain(|_, (state, _)| *state != lease);
        if let Some(Versioned { revision, value }) = value {
            self.masters.insert(revision, (lease, value));
        }
    }
}

/// The largest number of entries that one key of the history has.
const ENTRIES: i64 = 1000;

/// The number of an entry: the create revision of its key, then its place there. etcd gives out revisions once, so no number comes twice,
/// whoever leads; and 10^15 revisions fit.
fn sequence(revision: Revision, index: usize) -> i64 {
    let index = i64::try_from(index).unwrap_or(i64::MAX).min(ENTRIES - 1);
    revision.0.saturating_mul(ENTRIES).saturating_add(index)
}

#[cfg(test)]
mod tests {
    use evenkeel_model::{EntryKind, Epoch};

    use super::*;

    fn entry(time: i64) -> HistoryEntry {
        let none = String::new;
        let (kind, epoch) = (EntryKind::Leading, Epoch::default());
        HistoryEntry { time, kind, resource: none(), worker: none(), from: none(), reason: none(), master: none(), epoch }
    }

    #[test]
    fn entries_are_numbered_by_the_revision_that_wrote_them_in_whichever_order_they_come() {
        let mut state = State::default();
        let numbers = |state: &State, after| state.history_after(after).map(|(number, entry)| (*number, entry.time)).collect::<Vec<_>>();
        state.remember("0000000000000005", Revision(40), vec![entry(1), entry(2)]);
        state.remember("000000000000002f-0000000000000001", Revision(60), vec![entry(4)]);
        // A list has the keys in their order, not in that of their revisions; a watch may bring again what a list had.
        state.remember("0000000000000030-0000000000000001", Revision(50), vec![entry(3)]);
        state.remember("000000000000002f-0000000000000001", Revision(60), vec![entry(4)]);
        assert_eq!(numbers(&state, 0), [(40_000, 1), (40_001, 2), (50_000, 3), (60_000, 4)]);
        assert_eq!(numbers(&state, 40_001), [(50_000, 3), (60_000, 4)]);
        assert_eq!((state.last_event(), state.next_batch()), (60_000, 6));
        // The end of a key takes nothing back.
        state.remember("0000000000000005", Revision::default(), Vec::new());
        assert_eq!(numbers(&state, 0).len(), 4);
    }

    #[test]
    fn the_oldest_entries_go_first() {
        let mut state = State::default();
        (1..=HISTORY as i64 + 1).for_each(|n| state.remember("x", Revision(n), vec![entry(n)]));
        assert_eq!(state.history_after(0).count(), HISTORY);
        assert_eq!(state.history_after(0).next().map(|(number, _)| *number), Some(2_000));
        state.remember("x", Revision(1), vec![entry(1)]);
        assert_eq!(state.history_after(0).next().map(|(number, _)| *number), Some(2_000), "what is older is not taken in");
    }
}

//! The state of a master, shared between the control loop, which alone changes it, and the API, which reads it. It decides nothing.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use evenkeel_model::{Brake, Change, Cluster, Entry, HistoryEntry, MasterRecord, Moment, ResourceName, Revision, Versioned};
use tokio::{sync::watch, time::Instant};

use crate::{leader_lease::LeaderLease, measures::Measures, time::Clock};

/// How many entries of the history are kept, in memory and in etcd, and how many keys those may take in etcd: 200 bytes an entry make 4 MB, and where
/// one thing happens at a time each has a key of its own.
const HISTORY: usize = 20_000;
const HISTORY_KEYS: usize = 5_000;
/// How many keys are deleted at once: as many as fit one transaction with room to spare, so that it is seldom.
const HISTORY_DELETED: usize = 100;
/// The numbers of two keys of the history differ by so much at the least. A key has fewer entries than a transaction has writes.
const NUMBERS: i64 = 1000;
/// How many changes of resources are remembered for those who watch; who falls behind further lists again.
const CHANGES: usize = 65_536;
/// A control loop that has not turned for so long hangs: a timer turns it every few seconds, whatever else happens or does not.
const HANGS: Duration = Duration::from_secs(30);
/// How often a leader whose lease has ended looks whether it is confirmed again: callers wait for that.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The shared knowledge with the wake-ups of those who wait for it to change. A wake-up carries no data.
#[derive(Debug)]
pub(crate) struct Shared {
    state: RwLock<State>,
    /// Who leads, as the control loop sees it. Whoever answers callers asks [`Shared::leader`].
    pub(crate) leadership: watch::Sender<Leadership>,
    /// Until when this master may answer as the leader.
    pub(crate) lease: Arc<LeaderLease>,
    /// Until when this master answers, once it ends.
    ends: watch::Sender<Option<Instant>>,
    /// Grows with every change of a resource.
    pub(crate) changed: watch::Sender<u64>,
    /// Grows with every change of a task.
    pub(crate) tasks: watch::Sender<u64>,
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

/// What a master has taken in of etcd: what is committed, and nothing else.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// The cluster. What this leader has decided and not committed is reserved in it, for the planner alone.
    pub(crate) cluster: Cluster,
    /// The masters by their create revisions: the first leads.
    pub(crate) masters: BTreeMap<Revision, (String, MasterRecord)>,
    /// Whether a whole list has been taken in.
    pub(crate) is_synced: bool,
    /// etcd cannot be followed at the moment.
    pub(crate) is_cut_off: bool,
    /// Up to which revision list and watch have brought everything.
    pub(crate) followed: Revision,
    /// The highest revision at which this leader has committed something that the watch brings. The cluster has all of that, too.
    pub(crate) answered: Revision,
    /// Since when the watch has yet to bring a commit of this leader; none: it has brought all.
    pub(crate) lags_since: Option<Moment>,
    /// How much the last plan of this master left undone.
    pub(crate) undone: usize,
    /// Whether that plan held what lost workers ran.
    pub(crate) brake: Option<Brake>,
    /// By growing numbers.
    history: VecDeque<(i64, HistoryEntry)>,
    /// The keys of the history in etcd, oldest first.
    batches: VecDeque<Batch>,
    /// How many entries those have.
    kept: usize,
    changes: VecDeque<ResourceName>,
    /// The number of the first of `changes`.
    first_change: u64,
    /// How many changes of tasks have come.
    pub(crate) task_changes: u64,
}

/// One key of the history in etcd.
#[derive(Debug)]
pub(crate) struct Batch {
    suffix: Box<str>,
    created: Revision,
    entries: usize,
}

impl Batch {
    /// What its key ends in.
    pub(crate) fn suffix(&self) -> &str {
        &self.suffix
    }
}

impl Shared {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            state: RwLock::default(),
            leadership: watch::Sender::new(Leadership::Nobody),
            lease: Arc::default(),
            ends: watch::Sender::new(None),
            changed: watch::Sender::new(0),
            tasks: watch::Sender::new(0),
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

    /// What this master waits for before it begins, or until etcd lets itself be read again.
    pub(crate) fn waits_for(&self) -> Option<String> {
        let before = self.waits_for.lock().unwrap_or_else(PoisonError::into_inner).clone();
        before.or_else(|| self.lease.refusal())
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

    /// Who leads now: this master only while its lease has been confirmed. Asked whenever something is answered, since a master that was
    /// stopped for a while hears of nothing before it goes on. Nobody, while etcd refuses to be read.
    pub(crate) fn leader(&self) -> Leadership {
        match &*self.leadership.borrow() {
            _ if self.lease.refusal().is_some() => Leadership::Nobody,
            Leadership::Mine if self.lease.until(&*self.clock).is_none() => Leadership::Nobody,
            leadership => leadership.clone(),
        }
    }

    /// Whether this master leads now.
    pub(crate) fn leads(&self) -> bool {
        *self.leadership.borrow() == Leadership::Mine && self.lease.until(&*self.clock).is_some()
    }

    /// Wakes those who wait for a change of leadership when the lease has ended, or is confirmed again after it had: nobody else says so.
    pub(crate) async fn keep_looking_at_lease(&self) {
        let mut leadership = self.leadership.subscribe();
        let mut did_hold = false;
        loop {
            let is_mine = *leadership.borrow_and_update() == Leadership::Mine;
            let until = self.lease.until(&*self.clock).filter(|_| is_mine);
            if did_hold != until.is_some() {
                did_hold = until.is_some();
                // This wakes the loop as well, which finds nothing more to say.
                self.leadership.send_modify(|_| {});
            }
            let look = until.unwrap_or_else(|| Instant::now() + LOOK_AGAIN);
            tokio::select! {
                _ = leadership.changed() => {}
                () = tokio::time::sleep_until(look), if is_mine => {}
            }
        }
    }

    /// This master ends, and answers until then.
    pub(crate) fn end_by(&self, at: Instant) {
        self.ends.send_replace(Some(at));
    }

    /// Waits until this master ends; then says until when it answers.
    pub(crate) async fn ends(&self) -> Instant {
        let mut ends = self.ends.subscribe();
        loop {
            let at = *ends.borrow_and_update();
            match at {
                Some(at) => return at,
                // The sender lives as long as this.
                None => drop(ends.changed().await),
            }
        }
    }

    /// Wakes those who watch, after the lock has been given back.
    pub(crate) fn wake(&self, changes: u64, last_event: u64, tasks: u64) {
        self.tasks.send_if_modified(|old| std::mem::replace(old, tasks) != tasks);
        self.changed.send_if_modified(|old| std::mem::replace(old, changes) != changes);
        self.happened.send_if_modified(|old| std::mem::replace(old, last_event) != last_event);
    }
}

fn is_of_task(entry: &Entry) -> bool {
    matches!(entry, Entry::Task(..) | Entry::TaskIntent(..) | Entry::Order(..) | Entry::TaskResult(..))
}

fn millis(moment: Moment) -> u64 {
    u64::try_from(moment.0.as_millis()).unwrap_or(u64::MAX)
}

impl State {
    /// Remembers that a resource has changed.
    fn touch(&mut self, name: &ResourceName) {
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

    /// This list replaces the state before it as a whole: who watched that one must list again.
    pub(crate) fn replace(&mut self, before: &Self) {
        self.first_change = before.next_change() + 1;
        self.changes.clear();
        self.task_changes = before.task_changes + 1;
        self.cluster.keep_waits_of(&before.cluster);
        (self.undone, self.brake, self.answered, self.lags_since) = (before.undone, before.brake, before.answered, before.lags_since);
    }

    /// Takes a change of the cluster in.
    pub(crate) fn take(&mut self, change: Change, now: Moment) {
        if let Some(name) = change.entry.resource() {
            self.touch(name);
        }
        self.task_changes += u64::from(is_of_task(&change.entry));
        self.cluster.apply(change, now);
    }

    /// Takes in a key of the history, each after those that are older; without entries: it was deleted, in etcd.
    pub(crate) fn take_history(&mut self, suffix: Box<str>, created: Revision, entries: Vec<HistoryEntry>) {
        if entries.is_empty() {
            // The oldest go, and those that this leader deletes are not among them any more.
            if let Some(at) = self.batches.iter().take(2 * HISTORY_DELETED).position(|batch| batch.suffix == suffix) {
                self.kept -= self.batches.remove(at).map_or(0, |batch| batch.entries);
            }
            return;
        }
        if self.batches.back().is_some_and(|last| last.created >= created) {
            return;
        }
        self.kept += entries.len();
        self.batches.push_back(Batch { suffix, created, entries: entries.len() });
        for (index, entry) in (0..).zip(entries) {
            if self.history.len() == HISTORY {
                self.history.pop_front();
            }
            self.history.push_back((created.0.saturating_mul(NUMBERS).saturating_add(index), entry));
        }
    }

    /// etcd keeps more of the history than it should, by so much that it is worth a transaction.
    pub(crate) fn has_old_history(&self) -> bool {
        self.old() >= HISTORY_DELETED
    }

    /// Takes out the oldest keys of the history, of which there are too many in etcd.
    pub(crate) fn take_old_history(&mut self) -> Vec<Batch> {
        let old: Vec<Batch> = self.batches.drain(..self.old().min(HISTORY_DELETED)).collect();
        self.kept -= old.iter().map(|batch| batch.entries).sum::<usize>();
        old
    }

    /// They could not be deleted, and are there still.
    pub(crate) fn put_back(&mut self, old: Vec<Batch>) {
        // A list may have brought them meanwhile.
        if self.batches.front().zip(old.last()).is_some_and(|(first, last)| first.created <= last.created) {
            return;
        }
        self.kept += old.iter().map(|batch| batch.entries).sum::<usize>();
        old.into_iter().rev().for_each(|batch| self.batches.push_front(batch));
    }

    /// By how many keys there are too many. What has many entries in few keys is counted by entries.
    fn old(&self) -> usize {
        let keys = self.batches.len().saturating_sub(HISTORY_KEYS);
        if self.kept < 2 * HISTORY {
            return keys;
        }
        let mut excess = self.kept - HISTORY;
        let old = self.batches.iter().take_while(|batch| {
            let is_old = excess >= batch.entries;
            excess = excess.saturating_sub(batch.entries);
            is_old
        });
        keys.max(old.count())
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

#[cfg(test)]
mod tests {
    use evenkeel_model::{EntryKind, Epoch};

    use super::*;

    fn entries(count: usize) -> Vec<HistoryEntry> {
        let entry = |n: usize| HistoryEntry {
            time: 0,
            kind: EntryKind::Lost,
            resource: n.to_string(),
            worker: String::new(),
            from: String::new(),
            reason: String::new(),
            master: String::new(),
            epoch: Epoch::default(),
            task: evenkeel_model::TaskId::default(),
        };
        (0..count).map(entry).collect()
    }

    fn with_keys(count: usize, each: usize) -> State {
        let mut state = State::default();
        for n in 1..=count {
            state.take_history(n.to_string().into(), Revision(i64::try_from(n).expect("few")), entries(each));
        }
        state
    }

    #[test]
    fn an_entry_has_the_number_that_etcd_gave_it_and_is_taken_in_once() {
        let mut state = with_keys(2, 2);
        state.take_history("2".into(), Revision(2), entries(2));
        let numbers: Vec<i64> = state.history_after(0).map(|(number, _)| *number).collect();
        assert_eq!(numbers, [1000, 1001, 2000, 2001]);
        assert_eq!(state.history_after(1001).count(), 2);
        state.take_history("1".into(), Revision(1), Vec::new());
        assert_eq!((state.history_after(0).count(), state.batches.len(), state.kept), (4, 1, 2), "it is still known here");
    }

    #[test]
    fn the_oldest_keys_go_when_there_are_too_many_keys_or_entries() {
        assert!(!with_keys(HISTORY_KEYS + HISTORY_DELETED - 1, 1).has_old_history());
        let mut state = with_keys(HISTORY_KEYS + HISTORY_DELETED, 1);
        assert!(state.has_old_history());
        let old = state.take_old_history();
        assert_eq!((old.len(), old[0].suffix(), old[99].suffix()), (HISTORY_DELETED, "1", "100"));
        assert!(!state.has_old_history(), "they are being deleted");
        state.put_back(old);
        assert!(state.has_old_history(), "they could not be deleted");
        assert_eq!((state.batches.len(), state.kept), (HISTORY_KEYS + HISTORY_DELETED, HISTORY_KEYS + HISTORY_DELETED));
        assert!(!with_keys(390, 100).has_old_history());
        let mut state = with_keys(400, 100);
        assert!(state.has_old_history() && state.take_old_history().len() == HISTORY_DELETED);
        assert_eq!(state.history_after(0).count(), HISTORY);
    }
}

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
use tokio::{sync::watch, time::Instant};

use crate::{leader_lease::LeaderLease, measures::Measures, time::Clock};

/// How many entries of the history are kept in memory.
const HISTORY: usize = 20_000;
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
    /// Up to which revision of etcd this has been followed.
    pub(crate) followed: Revision,
    /// The revision of the last write that this master has answered.
    pub(crate) answered: Revision,
    /// Whether a whole list has been taken in.
    pub(crate) is_synced: bool,
    /// etcd cannot be followed at the moment.
    pub(crate) is_cut_off: bool,
    /// How much the last plan of this master left undone.
    pub(crate) undone: usize,
    /// Whether that plan held what lost workers ran.
    pub(crate) brake: Option<Brake>,
    history: VecDeque<(i64, HistoryEntry)>,
    changes: VecDeque<ResourceName>,
    /// The number of the first of `changes`.
    first_change: u64,
}

impl Shared {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            state: RwLock::default(),
            leadership: watch::Sender::new(Leadership::Nobody),
            lease: Arc::default(),
            ends: watch::Sender::new(None),
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

    /// Who leads now: this master only while its lease has been confirmed. Asked whenever something is answered, since a master that was
    /// stopped for a while hears of nothing before it goes on.
    pub(crate) fn leader(&self) -> Leadership {
        match &*self.leadership.borrow() {
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
                self.leadership.send_modify(|_| {});
                leadership.mark_unchanged();
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
    pub(crate) fn wake(&self, changes: u64, last_event: u64) {
        self.changed.send_if_modified(|old| std::mem::replace(old, changes) != changes);
        self.happened.send_if_modified(|old| std::mem::replace(old, last_event) != last_event);
    }
}

fn millis(moment: Moment) -> u64 {
    u64::try_from(moment.0.as_millis()).unwrap_or(u64::MAX)
}

impl State {
    /// Whether everything that was answered has been followed.
    pub(crate) fn is_followed(&self) -> bool {
        self.answered <= self.followed
    }

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
        u64::try_from(self.last_event()).unwrap_or(0) / BATCH as u64 + 1
    }

    /// Takes a batch of the history in; its entries are numbered within the batch.
    pub(crate) fn remember(&mut self, number: u64, entries: Vec<HistoryEntry>) {
        for (index, entry) in entries.into_iter().enumerate() {
            self.remember_one(number, index, entry);
        }
    }

    /// Takes in one entry of a batch, if it is not known yet.
    pub(crate) fn remember_one(&mut self, number: u64, index: usize, entry: HistoryEntry) {
        let sequence = sequence(number, index);
        if self.history.back().is_some_and(|(last, _)| *last >= sequence) {
            return;
        }
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back((sequence, entry));
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

/// The largest number of entries in one batch of the history.
pub(crate) const BATCH: usize = 1000;

/// The sequence number of an entry: that of its batch, then its place.
fn sequence(number: u64, index: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX / 2_000).saturating_mul(BATCH as i64) + index as i64
}

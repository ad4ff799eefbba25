//! All that is known of one task: what was asked for, what is wanted of it, and each of its hosts, with totals that keep a plan as cheap as what goes
//! on. Under model::task. The states of hosts are concluded here, and nowhere else.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::{OnLost, Order, OrderIntent, Outcome, ResultPhase, Task, TaskGoal, TaskIntent, TaskResult};
use crate::{Moment, Revision, Seen, Versioned, WorkerId};

/// What a host of a task is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostState {
    /// Its turn has not come.
    Waiting,
    /// It is ordered, and its worker has not begun.
    Pending,
    /// It was begun, and goes on.
    Running,
    /// It ended with exit status 0.
    Succeeded,
    /// A person has said that it counts no more.
    Ignored,
    /// It was never begun: somebody wanted that.
    Cancelled,
    /// It was never begun: its worker did not begin in time.
    Undelivered,
    /// It was never begun: its worker does not take it.
    Rejected,
    /// It was stopped, by a person or with its worker.
    Killed,
    /// It ended with another exit status, or by a signal.
    Failed,
    /// It was stopped at its timeout.
    TimedOut,
    /// It was begun, and how it ended is not known.
    Lost,
}

impl HostState {
    /// All of them; the worst comes last.
    pub const ALL: [Self; 12] = [
        Self::Waiting,
        Self::Pending,
        Self::Running,
        Self::Succeeded,
        Self::Ignored,
        Self::Cancelled,
        Self::Undelivered,
        Self::Rejected,
        Self::Killed,
        Self::Failed,
        Self::TimedOut,
        Self::Lost,
    ];

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Ignored => "ignored",
            Self::Cancelled => "cancelled",
            Self::Undelivered => "undelivered",
            Self::Rejected => "rejected",
            Self::Killed => "killed",
            Self::Failed => "failed",
            Self::TimedOut => "timed-out",
            Self::Lost => "lost",
        }
    }

    /// Nothing more comes of it by itself.
    #[must_use]
    pub fn is_end(self) -> bool {
        !matches!(self, Self::Waiting | Self::Pending | Self::Running)
    }

    /// It takes a place in the batch.
    #[must_use]
    pub fn is_active(self) -> bool {
        matches!(self, Self::Pending | Self::Running)
    }
}

impl fmt::Display for HostState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a task is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// Hosts are ordered, or are about to be.
    Running,
    /// Nothing more is ordered until somebody resumes it.
    Paused,
    /// Every host is at an end, and that is written down.
    Done,
}

impl TaskState {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Done => "done",
        }
    }
}

/// How many hosts are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts([u32; HostState::ALL.len()]);

impl Counts {
    /// How many are in this one.
    #[must_use]
    pub fn of(&self, state: HostState) -> usize {
        self.0[state as usize] as usize
    }

    /// Those that any host is in, with how many are, the worst last.
    pub fn each(&self) -> impl Iterator<Item = (HostState, usize)> + '_ {
        HostState::ALL.into_iter().map(|state| (state, self.of(state))).filter(|(_, count)| *count > 0)
    }

    fn change(&mut self, from: Option<HostState>, to: Option<HostState>) {
        from.into_iter().for_each(|state| self.0[state as usize] -= 1);
        to.into_iter().for_each(|state| self.0[state as usize] += 1);
    }
}

/// One host of a task.
#[derive(Clone, Debug, Default)]
pub struct TaskHost {
    /// What is wanted of it; none: nothing was ordered.
    pub order: Option<Box<Versioned<Order>>>,
    /// What its worker says; none: nothing.
    pub result: Option<Box<Versioned<TaskResult>>>,
    /// Since when its worker is not registered, while something of it may go on, as this observer saw it; none: it is.
    pub gone_since: Option<Moment>,
    /// Something is decided of it, and not written yet.
    is_reserved: bool,
}

impl TaskHost {
    pub(super) fn set_order(&mut self, order: Option<Order>, revision: Revision) {
        self.order = order.map(|value| Box::new(Versioned { revision, value }));
    }

    pub(super) fn set_result(&mut self, result: Option<TaskResult>, revision: Revision) {
        self.result = result.map(|value| Box::new(Versioned { revision, value }));
    }

    /// Which attempt was ordered last; 0: none.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.order.as_ref().map_or(0, |order| order.value.attempt)
    }

    /// What its worker says of the attempt that was ordered last.
    #[must_use]
    pub fn current(&self) -> Option<&TaskResult> {
        self.result.as_deref().map(|result| &result.value).filter(|result| result.is_of(self.attempt()))
    }

    /// The revision of what its worker says; zero: it says nothing.
    #[must_use]
    pub fn result_revision(&self) -> Revision {
        self.result.as_ref().map_or(Revision::default(), |result| result.revision)
    }

    /// What its worker says cannot be read: its end never will be.
    #[must_use]
    pub fn is_unreadable(&self) -> bool {
        self.result.as_deref().is_some_and(|result| result.value.attempt == 0)
    }

    /// What the last attempt is at, whatever else is wanted.
    fn observed(&self) -> Option<HostState> {
        let order = &self.order.as_deref()?.value;
        Some(match (self.current().map(|result| (result.phase, result.outcome)), order.intent) {
            (Some((ResultPhase::Ended, outcome)), _) => match outcome.unwrap_or(Outcome::Lost) {
                Outcome::Succeeded => HostState::Succeeded,
                Outcome::Failed => HostState::Failed,
                Outcome::TimedOut => HostState::TimedOut,
                Outcome::Killed => HostState::Killed,
                Outcome::Rejected => HostState::Rejected,
                Outcome::Lost => HostState::Lost,
            },
            (_, OrderIntent::Lost) => HostState::Lost,
            (Some((ResultPhase::Running, _)), _) => HostState::Running,
            (None, OrderIntent::Cancelled) => HostState::Cancelled,
            (None, OrderIntent::Undelivered) => HostState::Undelivered,
            (None, OrderIntent::Run | OrderIntent::Stop) => HostState::Pending,
        })
    }

    /// It is a host of its task though the definition does not name it: it was ordered, or is about to be.
    fn is_host(&self) -> bool {
        self.order.is_some() || self.is_reserved
    }

    fn is_empty(&self) -> bool {
        self.order.is_none() && self.result.is_none() && !self.is_reserved
    }
}

/// One task.
#[derive(Clone, Debug, Default)]
pub struct TaskEntry {
    task: Option<Box<Versioned<Task>>>,
    /// Why its definition cannot be used.
    unreadable: Option<Box<str>>,
    intent: Option<Box<Versioned<TaskIntent>>>,
    hosts: BTreeMap<WorkerId, TaskHost>,
    /// The hosts in the order in which their turn comes: those of the definition, then those that came late.
    order: Vec<WorkerId>,
    places: BTreeMap<WorkerId, usize>,
    counts: Counts,
    /// The places of those that wait, and of those that take a place in the batch or are about to.
    waiting: BTreeSet<usize>,
    active: BTreeSet<usize>,
    weight: Weight,
    /// The intent is being written.
    is_intent_reserved: bool,
}

/// What a task takes up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Weight {
    /// How many hosts it has: each has a result some day.
    pub(super) hosts: usize,
    /// How many bytes of output etcd keeps of it, at the most.
    pub(super) tail_bytes: u64,
}

impl TaskEntry {
    /// What was asked for.
    #[must_use]
    pub fn task(&self) -> Option<&Task> {
        self.task.as_deref().map(|task| &task.value)
    }

    /// The revision that wrote it; zero: it is not there, or cannot be read.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.task.as_ref().map_or(Revision::default(), |task| task.revision)
    }

    /// Why what was asked for cannot be read.
    #[must_use]
    pub fn unreadable(&self) -> Option<&str> {
        self.unreadable.as_deref()
    }

    /// What is wanted of it, as it stands in etcd.
    #[must_use]
    pub fn intent(&self) -> Option<&Versioned<TaskIntent>> {
        self.intent.as_deref()
    }

    /// What is wanted of it, in a word. What is left of a task without a definition is deleted; one whose intent somebody has deleted waits for a
    /// person.
    #[must_use]
    pub fn goal(&self) -> TaskGoal {
        match self.intent() {
            _ if self.task.is_none() && self.unreadable.is_none() => TaskGoal::Remove,
            Some(intent) => intent.value.goal,
            None => TaskGoal::Pause,
        }
    }

    /// When every host was at an end; 0: it goes on.
    #[must_use]
    pub fn done_at(&self) -> i64 {
        self.intent().map_or(0, |intent| intent.value.done_at)
    }

    /// What it is at.
    #[must_use]
    pub fn state(&self) -> TaskState {
        match self.goal() {
            _ if self.done_at() != 0 => TaskState::Done,
            TaskGoal::Pause => TaskState::Paused,
            _ => TaskState::Running,
        }
    }

    /// The worst that came of a host; none: it goes on.
    #[must_use]
    pub fn outcome(&self) -> Option<HostState> {
        if self.state() != TaskState::Done {
            return None;
        }
        self.counts.each().last().map(|(state, _)| state)
    }

    /// How many hosts count as failed: their scripts failed, timed out or are lost, or, where that was asked for, they were not reached.
    #[must_use]
    pub fn failed(&self) -> usize {
        HostState::ALL.into_iter().filter(|state| self.counts_as_failed(*state)).map(|state| self.counts.of(state)).sum()
    }

    /// A host in this state counts as failed.
    #[must_use]
    pub fn counts_as_failed(&self, state: HostState) -> bool {
        match state {
            HostState::Failed | HostState::TimedOut | HostState::Lost => true,
            HostState::Undelivered => self.task().is_some_and(|task| task.count_undelivered),
            _ => false,
        }
    }

    /// How many hosts are in each state.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// All hosts, in the order in which their turn comes.
    #[must_use]
    pub fn order(&self) -> &[WorkerId] {
        &self.order
    }

    /// It is one of its hosts.
    #[must_use]
    pub fn has(&self, worker: &WorkerId) -> bool {
        self.places.contains_key(worker)
    }

    /// Where its turn comes, from 0.
    #[must_use]
    pub fn place(&self, worker: &WorkerId) -> Option<usize> {
        self.places.get(worker).copied()
    }

    /// What is known of a host; none: nothing was ordered.
    #[must_use]
    pub fn host(&self, worker: &WorkerId) -> Option<&TaskHost> {
        self.hosts.get(worker)
    }

    /// The hosts whose turn has not come, with their places, in order.
    pub fn waiting(&self) -> impl Iterator<Item = (usize, &WorkerId)> {
        self.waiting.iter().map(|place| (*place, &self.order[*place]))
    }

    /// The hosts that take a place in the batch, with something decided of them or not.
    pub fn active(&self) -> impl Iterator<Item = &WorkerId> {
        self.active.iter().map(|place| &self.order[*place])
    }

    /// How many take a place in the batch.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.active.len()
    }

    /// Something is decided of this host, and not written yet.
    #[must_use]
    pub fn is_reserved(&self, worker: &WorkerId) -> bool {
        self.hosts.get(worker).is_some_and(|host| host.is_reserved)
    }

    /// What is wanted of all of it is being written.
    #[must_use]
    pub fn is_intent_reserved(&self) -> bool {
        self.is_intent_reserved
    }

    /// What this host is at; none: it is none of its hosts.
    #[must_use]
    pub fn state_of(&self, worker: &WorkerId) -> Option<HostState> {
        self.places.contains_key(worker).then(|| self.conclude(worker))
    }

    /// The attempt that is to be ordered next of this host.
    #[must_use]
    pub fn next_attempt(&self, worker: &WorkerId) -> u32 {
        let wanted = self.intent().and_then(|intent| intent.value.attempts.get(worker).copied()).unwrap_or_default();
        self.hosts.get(worker).map_or(1, |host| host.attempt().saturating_add(1)).max(wanted)
    }

    /// From order and result alone, and what is wanted.
    fn conclude(&self, worker: &WorkerId) -> HostState {
        let intent = self.intent().map(|intent| &intent.value);
        if intent.is_some_and(|intent| intent.ignored.contains(worker)) {
            return HostState::Ignored;
        }
        let host = self.hosts.get(worker);
        let attempt = host.map_or(0, TaskHost::attempt);
        let wanted = intent.and_then(|intent| intent.attempts.get(worker).copied()).unwrap_or(1);
        let is_final = self.goal().is_final() || intent.is_some_and(|intent| intent.killed.contains(worker));
        let observed = host.and_then(TaskHost::observed);
        let retries = self.task().is_some_and(|task| task.on_lost == OnLost::Retry) && attempt < Task::MOST_ATTEMPTS;
        match observed {
            None if is_final => HostState::Cancelled,
            None => HostState::Waiting,
            Some(state) if is_final || !state.is_end() => state,
            Some(_) if wanted > attempt => HostState::Waiting,
            Some(HostState::Lost) if retries => HostState::Waiting,
            Some(state) => state,
        }
    }

    pub(super) fn set_task(&mut self, task: Option<Task>, seen: Seen) {
        self.task = task.map(|value| Box::new(Versioned { revision: seen.modified, value }));
        self.unreadable = seen.error;
        self.recount();
    }

    pub(super) fn set_intent(&mut self, intent: Option<TaskIntent>, revision: Revision) {
        self.intent = intent.map(|value| Box::new(Versioned { revision, value }));
        self.recount();
    }

    pub(super) fn reserve_intent(&mut self, is_reserved: bool) {
        self.is_intent_reserved = is_reserved;
    }

    pub(super) fn reserve_host(&mut self, worker: &WorkerId, is_reserved: bool) {
        self.with_host(worker, |host| host.is_reserved = is_reserved);
    }

    /// Changes what is known of a host, and keeps the totals true.
    pub(super) fn with_host(&mut self, worker: &WorkerId, change: impl FnOnce(&mut TaskHost)) {
        let (before, light) = (self.state_of(worker), self.tail_of(worker));
        let host = self.hosts.entry(worker.clone()).or_default();
        change(host);
        let is_host = host.is_host();
        let is_late = is_host && !self.places.contains_key(worker);
        if host.is_empty() {
            self.hosts.remove(worker);
        }
        if is_late {
            self.places.insert(worker.clone(), self.order.len());
            self.order.push(worker.clone());
        }
        let heavy = self.tail_of(worker);
        self.weight.hosts = self.order.len();
        self.weight.tail_bytes = self.weight.tail_bytes + heavy - light;
        let Some(place) = self.place(worker) else { return };
        let named = self.task().map_or(0, |task| task.on.workers.len());
        if place >= named && !is_host {
            // It came late, and is none of its hosts any more.
            return self.recount();
        }
        let after = self.conclude(worker);
        self.counts.change(before, Some(after));
        self.put(place, worker, after);
    }

    /// The worker of something that goes on is registered, or is gone since then at the latest.
    pub(super) fn see_worker(&mut self, worker: &WorkerId, gone: Option<Moment>) {
        if let Some(host) = self.hosts.get_mut(worker) {
            host.gone_since = gone.map(|now| host.gone_since.unwrap_or(now));
        }
    }

    fn put(&mut self, place: usize, worker: &WorkerId, state: HostState) {
        let is_reserved = self.is_reserved(worker);
        set(&mut self.waiting, place, state == HostState::Waiting && !is_reserved);
        // What is being ordered counts already, and what is being closed still.
        set(&mut self.active, place, state.is_active() || is_reserved);
    }

    /// Everything anew: what concerns all hosts has changed.
    fn recount(&mut self) {
        let named = self.task.as_deref().map(|task| task.value.on.workers.as_slice()).unwrap_or_default();
        let is_ordered = |worker: &&WorkerId| self.hosts.get(*worker).is_some_and(TaskHost::is_host);
        // Those that came late keep the order in which they were seen.
        let late = self.order.iter().chain(self.hosts.keys()).filter(is_ordered);
        let (mut order, mut places) = (Vec::with_capacity(named.len()), BTreeMap::new());
        for worker in named.iter().chain(late) {
            if !places.contains_key(worker) {
                places.insert(worker.clone(), order.len());
                order.push(worker.clone());
            }
        }
        (self.order, self.places) = (order, places);
        (self.counts, self.waiting, self.active) = (Counts::default(), BTreeSet::new(), BTreeSet::new());
        for place in 0..self.order.len() {
            let worker = self.order[place].clone();
            let state = self.conclude(&worker);
            self.counts.change(None, Some(state));
            self.put(place, &worker, state);
        }
        let tail_bytes = self.hosts.keys().map(|worker| self.tail_of(worker)).sum();
        self.weight = Weight { hosts: self.order.len(), tail_bytes };
    }

    /// What it takes up.
    pub(super) fn weight(&self) -> Weight {
        self.weight
    }

    /// How many bytes of output etcd keeps of a host, at the most.
    fn tail_of(&self, worker: &WorkerId) -> u64 {
        let Some(result) = self.hosts.get(worker).and_then(|host| host.result.as_deref()) else { return 0 };
        let deleted = self.intent().map_or(0, |intent| intent.value.tails_deleted as usize);
        let most = self.task().filter(|_| self.place(worker).is_some_and(|place| place >= deleted)).map_or(0, |task| task.tail() as u64);
        result.value.out.min(most) + result.value.err.min(most)
    }

    /// Nothing is known of it.
    pub(super) fn is_empty(&self) -> bool {
        self.task.is_none() && self.unreadable.is_none() && self.intent.is_none() && self.hosts.is_empty() && !self.is_intent_reserved
    }

    /// The hosts of which something stands in etcd.
    pub fn known_hosts(&self) -> impl Iterator<Item = (&WorkerId, &TaskHost)> {
        self.hosts.iter()
    }

    pub(super) fn hosts_mut(&mut self) -> impl Iterator<Item = (&WorkerId, &mut TaskHost)> {
        self.hosts.iter_mut()
    }

    /// The totals that it caches, and the same counted anew: they are equal. For checks.
    #[must_use]
    pub fn is_true(&self) -> bool {
        let mut anew = self.clone();
        anew.recount();
        (anew.counts, anew.weight, &anew.waiting, &anew.active, &anew.order)
            == (self.counts, self.weight, &self.waiting, &self.active, &self.order)
    }
}

fn set(places: &mut BTreeSet<usize>, place: usize, is_in: bool) {
    if is_in {
        places.insert(place);
    } else {
        places.remove(&place);
    }
}

#[cfg(test)]
#[path = "entry_tests.rs"]
mod tests;

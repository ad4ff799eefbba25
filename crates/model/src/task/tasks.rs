//! All tasks of a Cluster: which go on, which are kept, and what they take up. Under model::task. It decides nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::{NextTask, TaskEntry, TaskGoal, TaskHost, TaskState, entry::Weight};
use crate::{Cluster, Entry, Moment, Revision, TaskId, WorkerId, Write};

/// All tasks.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    entries: BTreeMap<TaskId, TaskEntry>,
    /// Those that are not done, or are being deleted.
    live: BTreeSet<TaskId>,
    /// Those that are done, by when they were.
    done: BTreeSet<(i64, TaskId)>,
    /// Those that have a key of their caller's.
    keys: BTreeMap<Box<str>, TaskId>,
    /// On which workers something of which task goes on.
    active_on: BTreeMap<WorkerId, BTreeSet<TaskId>>,
    next: (Revision, u32),
    weight: Weight,
}

/// What a task adds to the totals of all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Part {
    is_live: bool,
    done_at: i64,
    key: Box<str>,
    weight: Weight,
}

impl Part {
    fn of(entry: &TaskEntry) -> Self {
        let is_done = entry.state() == TaskState::Done && entry.goal() != TaskGoal::Remove;
        Self {
            is_live: !is_done,
            done_at: entry.done_at(),
            key: entry.task().map(|task| task.key.clone()).unwrap_or_default(),
            weight: entry.weight(),
        }
    }
}

impl Tasks {
    /// Each of them, the oldest first.
    pub fn each(&self) -> impl DoubleEndedIterator<Item = (TaskId, &TaskEntry)> {
        self.entries.iter().map(|(id, entry)| (*id, entry))
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, id: TaskId) -> Option<&TaskEntry> {
        self.entries.get(&id)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Those of which something may have to be done, the oldest first.
    pub fn live(&self) -> impl Iterator<Item = (TaskId, &TaskEntry)> {
        self.live.iter().filter_map(|id| Some((*id, self.entries.get(id)?)))
    }

    /// How many are done and kept.
    #[must_use]
    pub fn count_done(&self) -> usize {
        self.done.len()
    }

    /// Those that are done and kept, with the time at which they were, the longest ago first.
    pub fn done(&self) -> impl Iterator<Item = (i64, TaskId)> + '_ {
        self.done.iter().copied()
    }

    /// The task that has this key of its caller's.
    #[must_use]
    pub fn of_key(&self, key: &str) -> Option<TaskId> {
        self.keys.get(key).copied()
    }

    /// The revision of the counter of ids, and the id of the next one; none: no ids are left.
    #[must_use]
    pub fn next(&self) -> (Revision, Option<TaskId>) {
        let after = self.entries.keys().next_back().map_or(Some(1), |id| id.0.checked_add(1));
        let next = after.map(|after| TaskId(self.next.1.max(after))).filter(|id| id.0 < u32::MAX);
        (self.next.0, next)
    }

    /// How many hosts all of them have together: so many results are kept in the end.
    #[must_use]
    pub fn hosts(&self) -> usize {
        self.weight.hosts
    }

    /// How many bytes of output etcd keeps of all, at the most.
    #[must_use]
    pub fn tail_bytes(&self) -> u64 {
        self.weight.tail_bytes
    }

    fn with(&mut self, id: TaskId, change: impl FnOnce(&mut TaskEntry)) {
        let is_new = !self.entries.contains_key(&id);
        let entry = self.entries.entry(id).or_default();
        let before = if is_new { Part::default() } else { Part::of(entry) };
        change(entry);
        let is_gone = entry.is_empty();
        let after = if is_gone { Part::default() } else { Part::of(entry) };
        if is_gone {
            self.entries.remove(&id);
        }
        if before == after && !is_new {
            return;
        }
        self.done.remove(&(before.done_at, id));
        if after.is_live {
            self.live.insert(id)
        } else {
            self.live.remove(&id)
        };
        if !is_gone && !after.is_live {
            self.done.insert((after.done_at, id));
        }
        if before.key != after.key {
            if self.keys.get(&before.key) == Some(&id) {
                self.keys.remove(&before.key);
            }
            if !after.key.is_empty() {
                self.keys.insert(after.key.clone(), id);
            }
        }
        self.weight.hosts = self.weight.hosts + after.weight.hosts - before.weight.hosts;
        self.weight.tail_bytes = self.weight.tail_bytes + after.weight.tail_bytes - before.weight.tail_bytes;
    }

    fn with_host(&mut self, id: TaskId, worker: &WorkerId, gone: Option<Moment>, change: impl FnOnce(&mut TaskHost)) {
        self.with(id, |entry| entry.with_host(worker, change));
        let host = self.entries.get_mut(&id);
        let is_active = host.as_ref().is_some_and(|entry| entry.state_of(worker).is_some_and(super::HostState::is_active));
        if is_active {
            self.active_on.entry(worker.clone()).or_default().insert(id);
        } else if let Some(tasks) = self.active_on.get_mut(worker) {
            tasks.remove(&id);
            if tasks.is_empty() {
                self.active_on.remove(worker);
            }
        }
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.see_worker(worker, gone.filter(|_| is_active));
        }
    }

    /// A worker is registered, or is gone since then.
    fn see_worker(&mut self, worker: &WorkerId, gone: Option<Moment>) {
        for id in self.active_on.get(worker).into_iter().flatten() {
            if let Some(entry) = self.entries.get_mut(id) {
                entry.see_worker(worker, gone);
            }
        }
    }

    pub(crate) fn begin_term(&mut self, now: Moment) {
        let hosts = self.entries.values_mut().flat_map(TaskEntry::hosts_mut);
        hosts.for_each(|(_, host)| host.gone_since = host.gone_since.map(|_| now));
    }

    pub(crate) fn keep_waits_of(&mut self, old: &Self) {
        for (id, entry) in &mut self.entries {
            let Some(before) = old.entries.get(id) else { continue };
            for (worker, host) in entry.hosts_mut() {
                if let (Some(_), Some(since)) = (host.gone_since, before.host(worker).and_then(|host| host.gone_since)) {
                    host.gone_since = Some(since);
                }
            }
        }
    }

    /// The totals, counted anew, are these: for checks.
    #[must_use]
    pub fn is_true(&self) -> bool {
        let shares = || self.entries.iter().map(|(id, entry)| (*id, Part::of(entry)));
        self.entries.values().all(TaskEntry::is_true)
            && shares().filter(|(_, share)| share.is_live).map(|(id, _)| id).eq(self.live.iter().copied())
            && shares().filter(|(_, share)| !share.is_live).map(|(id, share)| (share.done_at, id)).collect::<BTreeSet<_>>() == self.done
            && shares().map(|(_, share)| share.weight.hosts).sum::<usize>() == self.weight.hosts
            && shares().map(|(_, share)| share.weight.tail_bytes).sum::<u64>() == self.weight.tail_bytes
    }
}

impl Cluster {
    /// The tasks.
    #[must_use]
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    pub(crate) fn with_task(&mut self, id: TaskId, change: impl FnOnce(&mut TaskEntry)) {
        self.tasks.with(id, change);
    }

    pub(crate) fn with_task_host(&mut self, id: TaskId, worker: &WorkerId, now: Moment, change: impl FnOnce(&mut TaskHost)) {
        let gone = self.worker(worker.as_str()).and_then(|worker| worker.registration()).is_none().then_some(now);
        self.tasks.with_host(id, worker, gone, change);
    }

    pub(crate) fn see_worker_of_tasks(&mut self, worker: &WorkerId, gone: Option<Moment>) {
        self.tasks.see_worker(worker, gone);
    }

    pub(crate) fn set_next_task(&mut self, next: Option<NextTask>, revision: Revision) {
        // It does not go back, whoever writes it. Where somebody has deleted it, it counts from the tasks that there are.
        self.tasks.next = (revision, next.map_or(0, |next| next.next.max(self.tasks.next.1)));
    }

    /// Counts what is decided of tasks where it will be, or no longer.
    pub(crate) fn reserve_tasks(&mut self, writes: &[Write], is_reserved: bool) {
        for write in writes {
            match &write.entry {
                Entry::Order(worker, id, _) => self.tasks.with(*id, |entry| entry.reserve_host(worker, is_reserved)),
                Entry::TaskIntent(id, _) => self.tasks.with(*id, |entry| entry.reserve_intent(is_reserved)),
                _ => {}
            }
        }
    }
}

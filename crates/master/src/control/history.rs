//! The history that people read: what was decided, when and why. What tells of a decision is written in its own transaction, so that it is lost
//! with the decision only; what tells of something that was seen waits here for a transaction. An entry is numbered by etcd, by the revision that
//! writes it, and is shown when the watch brings it.
//!
//! Under master::control.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use evenkeel_model::{Action, Cluster, EndReason, EntryKind, Epoch, HistoryEntry, Holder, Moment, Status, StopReason, TaskId};

/// How long the first entry waits for others. The history is never what a caller waits for.
const DELAY: Duration = Duration::from_millis(50);
/// How long entries wait after etcd has refused them.
const REST: Duration = Duration::from_secs(1);
/// How many wait at most, while etcd takes none: as many workers as may be lost at once and told of. The oldest go.
const WAITING: usize = 10_000;
/// How long what happens to hosts of a task is gathered: a task of ten thousand hosts leaves few entries, whatever comes of them.
const GATHER: Duration = Duration::from_secs(1);

/// The entries that are written by themselves.
#[derive(Debug, Default)]
pub(super) struct History {
    waiting: VecDeque<HistoryEntry>,
    due: Moment,
    dropped: usize,
    /// What is told of hosts together: how many there are, and the entry of the first.
    gathered: BTreeMap<(TaskId, EntryKind), (usize, HistoryEntry)>,
    gathered_due: Moment,
}

impl History {
    /// Takes an entry in, to be written soon.
    pub(super) fn note(&mut self, entry: HistoryEntry, now: Moment) {
        self.keep(entry, now.after(DELAY));
    }

    /// Takes an entry about a host of a task in, to be written with those like it.
    pub(super) fn gather(&mut self, entry: HistoryEntry, now: Moment) {
        if self.gathered.is_empty() {
            self.gathered_due = now.after(GATHER);
        }
        self.gathered.entry((entry.task, entry.kind)).or_insert((0, entry)).0 += 1;
    }

    /// Takes an entry back that was not written.
    pub(super) fn again(&mut self, entry: HistoryEntry, now: Moment) {
        self.keep(entry, now.after(REST));
        self.due = self.due.max(now.after(REST));
    }

    fn keep(&mut self, entry: HistoryEntry, due: Moment) {
        if self.waiting.is_empty() {
            self.due = due;
        }
        if self.waiting.len() == WAITING {
            self.waiting.pop_front();
            if self.dropped == 0 {
                tracing::warn!(kept = WAITING, "etcd takes no entries of the history; the oldest are dropped");
            }
            self.dropped += 1;
        }
        self.waiting.push_back(entry);
    }

    /// When what waits is to be written; none: nothing waits.
    pub(super) fn due(&self) -> Option<Moment> {
        let gathered = (!self.gathered.is_empty()).then_some(self.gathered_due);
        gathered.into_iter().chain((!self.waiting.is_empty()).then_some(self.due)).min()
    }

    /// What is to be written now, oldest first.
    pub(super) fn take_due(&mut self, now: Moment) -> VecDeque<HistoryEntry> {
        if !self.gathered.is_empty() && self.gathered_due <= now {
            for (_, (count, first)) in std::mem::take(&mut self.gathered) {
                self.keep(told_together(count, first), now);
            }
        }
        if self.waiting.is_empty() || self.due > now {
            return VecDeque::new();
        }
        self.dropped = 0;
        std::mem::take(&mut self.waiting)
    }
}

/// The entry of so many hosts, of which this is the first.
fn told_together(count: usize, first: HistoryEntry) -> HistoryEntry {
    match count {
        1 => first,
        _ => HistoryEntry { reason: format!("{count} hosts, {} first: {}", first.worker, first.reason), ..first },
    }
}

/// An entry about a resource, or about none.
pub(super) fn entry(kind: EntryKind, time: i64, master: &str, resource: &str, reason: &str) -> HistoryEntry {
    HistoryEntry {
        time,
        kind,
        resource: resource.to_owned(),
        worker: String::new(),
        from: String::new(),
        reason: reason.to_owned(),
        master: master.to_owned(),
        epoch: Epoch::default(),
        task: TaskId::default(),
    }
}

/// The entry of an action; the correction of a view leaves none.
pub(super) fn of_action(action: &Action, cluster: &Cluster, time: i64, master: &str) -> Option<HistoryEntry> {
    let resource = action.resource().map(ToString::to_string).unwrap_or_default();
    let entry = |kind, reason: &str| entry(kind, time, master, &resource, reason);
    Some(match action {
        Action::Admit { worker, reason, .. } => HistoryEntry { worker: worker.to_string(), ..entry(EntryKind::Admitted, reason.as_str()) },
        // Of one that was lost the history knows since its session ended.
        Action::Forget { reason: EndReason::Waited, .. } => return None,
        Action::Forget { worker, reason } => HistoryEntry { worker: worker.to_string(), ..entry(EntryKind::Released, reason.as_str()) },
        Action::Place { worker, reason, .. } => HistoryEntry { worker: worker.to_string(), ..entry(EntryKind::Assigned, reason.as_str()) },
        Action::Stop { resource, worker, epoch, reason: StopReason::Failing, .. } => {
            let holder = cluster.unit(resource.as_str()).and_then(|unit| unit.holders.first());
            let failure = holder.and_then(Holder::observed).map(Status::failure).unwrap_or_default();
            let reason = format!("{}: {failure}", StopReason::Failing.as_str());
            HistoryEntry { worker: worker.to_string(), epoch: *epoch, ..entry(EntryKind::Stopping, &reason) }
        }
        Action::Stop { worker, epoch, reason, .. } => {
            HistoryEntry { worker: worker.to_string(), epoch: *epoch, ..entry(EntryKind::Stopping, reason.as_str()) }
        }
        Action::Update { worker, epoch, .. } => {
            HistoryEntry { worker: worker.to_string(), epoch: *epoch, ..entry(EntryKind::Updated, StopReason::Changed.as_str()) }
        }
        Action::Move { from, to, reason, .. } => {
            HistoryEntry { worker: to.to_string(), from: from.to_string(), ..entry(EntryKind::Moved, reason.as_str()) }
        }
        Action::End { worker, epoch, reason, .. } => {
            HistoryEntry { from: worker.to_string(), epoch: *epoch, ..entry(EntryKind::Ended, reason.as_str()) }
        }
        Action::Finish { worker, epoch, message, .. } => {
            HistoryEntry { worker: worker.to_string(), epoch: *epoch, ..entry(EntryKind::Finished, message) }
        }
        Action::View { .. } => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment(Duration::from_millis(millis))
    }

    fn lost(worker: &str) -> HistoryEntry {
        HistoryEntry { worker: worker.to_owned(), ..entry(EntryKind::Lost, 0, "m", "", "") }
    }

    #[test]
    fn entries_go_together_soon_and_again_after_a_rest_when_they_were_refused() {
        let mut history = History::default();
        history.note(lost("a"), at(100));
        history.note(lost("b"), at(140));
        assert_eq!(history.due(), Some(at(150)));
        assert!(history.take_due(at(149)).is_empty());
        let taken = history.take_due(at(150));
        assert_eq!(taken, [lost("a"), lost("b")]);
        history.again(lost("a"), at(160));
        history.note(lost("c"), at(170));
        assert_eq!(history.due(), Some(at(1160)));
        assert_eq!(history.take_due(at(1160)).len(), 2);
        assert_eq!(history.due(), None);
    }

    #[test]
    fn hosts_of_a_task_are_told_together() {
        let host = |task, kind, worker: &str, why: &str| HistoryEntry {
            task: TaskId(task),
            worker: worker.to_owned(),
            ..entry(kind, 0, "m", "", why)
        };
        let mut history = History::default();
        history.gather(host(1, EntryKind::TaskLost, "a", "gone"), at(100));
        history.gather(host(1, EntryKind::TaskLost, "b", "gone, too"), at(1099));
        history.gather(host(1, EntryKind::TaskUndelivered, "c", "late"), at(1099));
        history.gather(host(2, EntryKind::TaskLost, "a", "gone"), at(1099));
        history.note(lost("a"), at(500));
        assert_eq!(history.due(), Some(at(550)));
        assert_eq!(history.take_due(at(550)), [lost("a")]);
        assert_eq!(history.due(), Some(at(1100)));
        assert!(history.take_due(at(1099)).is_empty());
        let expected = [
            host(1, EntryKind::TaskUndelivered, "c", "late"),
            host(1, EntryKind::TaskLost, "a", "2 hosts, a first: gone"),
            host(2, EntryKind::TaskLost, "a", "gone"),
        ];
        let told = history.take_due(at(1100));
        assert!(told.len() == 3 && expected.iter().all(|entry| told.contains(entry)), "{told:?}");
        assert_eq!(history.due(), None);
        // While etcd takes none, they wait with the others.
        history.again(lost("a"), at(2000));
        history.gather(host(1, EntryKind::TaskLost, "a", "gone"), at(1000));
        assert!(history.take_due(at(2500)).is_empty());
        assert_eq!(history.take_due(at(3000)).len(), 2);
    }

    #[test]
    fn no_more_wait_than_may() {
        let mut history = History::default();
        (0..=WAITING).for_each(|n| history.note(lost(&n.to_string()), at(0)));
        let taken = history.take_due(at(50));
        assert_eq!((taken.len(), taken.front()), (WAITING, Some(&lost("1"))));
    }
}

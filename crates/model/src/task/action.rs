//! What the leader does for a task, each with its reason, and what that writes: the keys, and the conditions under which it may. Under model::task. An
//! action that does not fit what is known is refused here, whoever has planned it.

use std::fmt;

use super::{HostState, NextTask, Order, OrderIntent, TaskEntry, TaskGoal, TaskIntent};
use crate::{Cluster, Decision, Entry, Guard, Key, NotYet, Revision, TaskId, WorkerId, Write};

/// Something that the leader does for a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskAction {
    /// Orders a host: the attempt is to run.
    Order {
        /// The task.
        task: TaskId,
        /// The host.
        worker: WorkerId,
        /// Which attempt.
        attempt: u32,
        /// When, by the time of day.
        since: i64,
    },
    /// Closes an attempt that was not begun, or whose worker is gone.
    Close {
        /// The task.
        task: TaskId,
        /// The host.
        worker: WorkerId,
        /// As what.
        close: Close,
        /// Why, for people.
        why: Box<str>,
    },
    /// Tells a worker to stop what runs.
    Stop {
        /// The task.
        task: TaskId,
        /// The host.
        worker: WorkerId,
        /// Why, for people.
        why: Box<str>,
    },
    /// Orders nothing more of it until somebody resumes it.
    Pause {
        /// The task.
        task: TaskId,
        /// Why, for people.
        why: Box<str>,
        /// The host of `PauseAfter` that is the reason.
        passed: Option<WorkerId>,
    },
    /// Every host is at an end.
    Done {
        /// The task.
        task: TaskId,
        /// When, by the time of day.
        at: i64,
    },
    /// It is kept no longer.
    Remove {
        /// The task.
        task: TaskId,
    },
    /// Deletes something of a task that is kept no longer: so many hosts, and itself once there are none.
    Delete {
        /// The task.
        task: TaskId,
    },
    /// Deletes the tails of so many of its hosts, to make room.
    DeleteTails {
        /// The task.
        task: TaskId,
    },
}

/// As what an attempt is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// It was not begun, and is not wanted any more.
    Cancelled,
    /// It was not begun in time.
    Undelivered,
    /// It was begun, and its worker is gone.
    Lost,
}

impl Close {
    fn intent(self) -> OrderIntent {
        match self {
            Self::Cancelled => OrderIntent::Cancelled,
            Self::Undelivered => OrderIntent::Undelivered,
            Self::Lost => OrderIntent::Lost,
        }
    }
}

/// How many hosts are deleted in one transaction: order, result and tail of each, beside what the transaction needs itself, are below 127 operations.
const PAGE: usize = 40;

impl TaskAction {
    /// The task that it is about.
    #[must_use]
    pub fn task(&self) -> TaskId {
        match self {
            Self::Order { task, .. }
            | Self::Close { task, .. }
            | Self::Stop { task, .. }
            | Self::Pause { task, .. }
            | Self::Done { task, .. }
            | Self::Remove { task }
            | Self::Delete { task }
            | Self::DeleteTails { task } => *task,
        }
    }

    /// The host that it is about, if it is about one.
    #[must_use]
    pub fn worker(&self) -> Option<&WorkerId> {
        match self {
            Self::Order { worker, .. } | Self::Close { worker, .. } | Self::Stop { worker, .. } => Some(worker),
            _ => None,
        }
    }

    /// What carrying it out writes.
    ///
    /// # Errors
    /// It does not fit what is known.
    pub fn decide(&self, cluster: &Cluster) -> Result<Decision, NotYet> {
        let id = self.task();
        let entry = cluster.tasks().get(id).ok_or(NotYet)?;
        match self {
            Self::Order { worker, attempt, since, .. } => order(entry, id, worker, *attempt, *since),
            Self::Close { worker, close, why, .. } => {
                let state = entry.state_of(worker);
                let fits = matches!((state, close), (Some(HostState::Pending), Close::Cancelled | Close::Undelivered))
                    || (state, *close) == (Some(HostState::Running), Close::Lost);
                if fits { rewrite(entry, id, worker, close.intent(), why) } else { Err(NotYet) }
            }
            Self::Stop { worker, why, .. } => match entry.state_of(worker) {
                Some(HostState::Running) => rewrite(entry, id, worker, OrderIntent::Stop, why),
                _ => Err(NotYet),
            },
            Self::Pause { why, passed, .. } => Ok(with_intent(entry, id, |intent| {
                (intent.goal, intent.why) = (TaskGoal::Pause, why.clone());
                intent.passed.extend(passed.clone());
            })),
            Self::Done { at, .. } => Ok(with_intent(entry, id, |intent| intent.done_at = *at)),
            Self::Remove { .. } => Ok(with_intent(entry, id, |intent| intent.goal = TaskGoal::Remove)),
            Self::Delete { .. } => delete(entry, id),
            Self::DeleteTails { .. } => delete_tails(entry, id),
        }
    }
}

impl TaskIntent {
    /// What writing another intent of a task needs to be so.
    #[must_use]
    pub fn guard(entry: &TaskEntry, id: TaskId) -> Guard {
        Guard::Modified(Key::TaskIntent(id), entry.intent().map_or(Revision::default(), |intent| intent.revision))
    }
}

/// Writes the intent with something changed in it.
pub fn with_intent(entry: &TaskEntry, id: TaskId, change: impl FnOnce(&mut TaskIntent)) -> Decision {
    let paused = || TaskIntent { goal: TaskGoal::Pause, ..TaskIntent::default() };
    let mut intent = entry.intent().map_or_else(paused, |intent| intent.value.clone());
    change(&mut intent);
    let writes = vec![Write::new(Entry::TaskIntent(id, Some(intent)))];
    Decision { guards: vec![TaskIntent::guard(entry, id)], writes }
}

fn order(entry: &TaskEntry, id: TaskId, worker: &WorkerId, attempt: u32, since: i64) -> Result<Decision, NotYet> {
    let is_late = !entry.has(worker);
    let is_wanted = entry.goal() == TaskGoal::Run && entry.done_at() == 0;
    if !is_wanted || !(is_late || entry.state_of(worker) == Some(HostState::Waiting)) || attempt != entry.next_attempt(worker) {
        return Err(NotYet);
    }
    let mut guards = vec![TaskIntent::guard(entry, id)];
    let host = entry.host(worker);
    let stood = host.and_then(|host| host.order.as_deref()).map_or(Revision::default(), |order| order.revision);
    guards.push(Guard::Modified(Key::Order(worker.clone(), id), stood));
    if stood != Revision::default() {
        // What came of the attempt before is what was looked at.
        let said = host.map_or(Revision::default(), super::TaskHost::result_revision);
        guards.push(Guard::Modified(Key::TaskResult(worker.clone(), id), said));
    }
    Ok(Decision { guards, writes: vec![Write::new(Entry::Order(worker.clone(), id, Some(Order::run(attempt, since))))] })
}

/// Rewrites an order under the condition that its worker has said nothing more meanwhile.
fn rewrite(entry: &TaskEntry, id: TaskId, worker: &WorkerId, intent: OrderIntent, why: &str) -> Result<Decision, NotYet> {
    let host = entry.host(worker).ok_or(NotYet)?;
    let order = host.order.as_deref().ok_or(NotYet)?;
    let guards = vec![
        Guard::Modified(Key::Order(worker.clone(), id), order.revision),
        Guard::Modified(Key::TaskResult(worker.clone(), id), host.result_revision()),
    ];
    let entry = Entry::Order(worker.clone(), id, Some(order.value.with(intent, why)));
    Ok(Decision { guards, writes: vec![Write::new(entry)] })
}

fn delete(entry: &TaskEntry, id: TaskId) -> Result<Decision, NotYet> {
    if entry.goal() != TaskGoal::Remove {
        return Err(NotYet);
    }
    // Each page rewrites the intent: one after another, and whoever sees only a part of the task sees that it is going.
    let mut decision = with_intent(entry, id, |intent| intent.goal = TaskGoal::Remove);
    for (worker, _) in entry.known_hosts().take(PAGE) {
        let keys = [Key::Order(worker.clone(), id), Key::TaskResult(worker.clone(), id), Key::TaskTail(worker.clone(), id)];
        decision.writes.extend(keys.map(Write::delete));
    }
    if decision.writes.len() == 1 {
        decision.writes = [Key::Task(id), Key::TaskScript(id), Key::TaskIntent(id)].map(Write::delete).into();
    }
    Ok(decision)
}

fn delete_tails(entry: &TaskEntry, id: TaskId) -> Result<Decision, NotYet> {
    let deleted = entry.intent().map_or(0, |intent| intent.value.tails_deleted as usize);
    if deleted >= entry.order().len() {
        return Err(NotYet);
    }
    let hosts = entry.order().iter().skip(deleted).take(2 * PAGE);
    let tails: Vec<Write> = hosts.map(|worker| Write::delete(Key::TaskTail(worker.clone(), id))).collect();
    let mut decision = with_intent(entry, id, |intent| {
        intent.tails_deleted = u32::try_from(deleted + tails.len()).unwrap_or(u32::MAX);
    });
    decision.writes.extend(tails);
    Ok(decision)
}

impl NextTask {
    /// The counter after this id.
    #[must_use]
    pub fn after(id: TaskId) -> Self {
        Self { next: id.0.saturating_add(1) }
    }
}

impl fmt::Display for TaskAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Order { task, worker, attempt, .. } => write!(f, "order attempt {attempt} of task {task} on {worker}"),
            Self::Close { task, worker, close, why } => write!(f, "close task {task} on {worker} as {close:?}: {why}"),
            Self::Stop { task, worker, why } => write!(f, "stop task {task} on {worker}: {why}"),
            Self::Pause { task, why, .. } => write!(f, "pause task {task}: {why}"),
            Self::Done { task, .. } => write!(f, "task {task} is done"),
            Self::Remove { task } => write!(f, "keep task {task} no longer"),
            Self::Delete { task } => write!(f, "delete of task {task}"),
            Self::DeleteTails { task } => write!(f, "delete tails of task {task}"),
        }
    }
}

//! What a person wants of a task that there is, of all of it or of some of its hosts. Under control::task. What is wanted already is answered, and
//! not written again.

use evenkeel_model::{
    EntryKind, TaskId, TaskIntent, WorkerId,
    task::{HostState, TaskEntry, TaskGoal},
};

use super::{Redone, TaskVerb, by_whom, known, stands, told, writes};
use crate::control::{
    judge::Judge,
    request::{Command, Refusal, Ruling},
    subjects::Subject,
};

/// Wants something of a whole task.
#[derive(Debug)]
pub(super) struct SetIntent {
    pub(super) id: TaskId,
    pub(super) verb: TaskVerb,
    pub(super) from: Box<str>,
}

/// Runs hosts once more.
#[derive(Debug)]
pub(super) struct Redo {
    pub(super) id: TaskId,
    pub(super) hosts: Redone,
    pub(super) from: Box<str>,
}

/// Stops one host, or does not begin with it.
#[derive(Debug)]
pub(super) struct KillHost {
    pub(super) id: TaskId,
    pub(super) worker: WorkerId,
    pub(super) from: Box<str>,
}

/// Counts one host no more.
#[derive(Debug)]
pub(super) struct IgnoreHost {
    pub(super) id: TaskId,
    pub(super) worker: WorkerId,
    pub(super) from: Box<str>,
}

impl Command for SetIntent {
    type Answer = ();

    fn subject(&self) -> Subject {
        Subject::Task(self.id)
    }

    fn judge(&self, by: &mut Judge<'_>) -> Ruling<()> {
        let id = self.id;
        let (entry, mut intent) = match known(by, id) {
            Ok(known) => known,
            Err(ruling) => return *ruling,
        };
        let by_whom = by_whom(&self.from);
        let refused = |why: String| stands(entry, id, Err(Refusal::TaskState(why)));
        let (is_done, before) = (intent.done_at != 0, intent.goal);
        let kind = match (self.verb, before) {
            (TaskVerb::Pause | TaskVerb::Resume, TaskGoal::Cancel | TaskGoal::Kill) => {
                return refused(format!("task {id} was {}, and that is final; create it again", past(before)));
            }
            (TaskVerb::Pause | TaskVerb::Resume, _) if is_done => {
                return refused(format!("task {id} is done; redo hosts of it, or create it again"));
            }
            (TaskVerb::Pause, TaskGoal::Pause) | (TaskVerb::Resume, TaskGoal::Run) => return stands(entry, id, Ok(())),
            (TaskVerb::Cancel, TaskGoal::Cancel | TaskGoal::Kill) | (TaskVerb::Kill, TaskGoal::Kill) => return stands(entry, id, Ok(())),
            // Nothing begins or runs any more.
            (TaskVerb::Cancel | TaskVerb::Kill, _) if is_done => return stands(entry, id, Ok(())),
            (TaskVerb::Pause, _) => {
                (intent.goal, intent.why) = (TaskGoal::Pause, format!("paused {by_whom}").into());
                EntryKind::TaskPaused
            }
            (TaskVerb::Resume, _) => {
                resume(entry, &mut intent);
                EntryKind::TaskResumed
            }
            (TaskVerb::Cancel, _) => {
                (intent.goal, intent.why) = (TaskGoal::Cancel, format!("cancelled {by_whom}").into());
                EntryKind::TaskCancelled
            }
            (TaskVerb::Kill, _) => {
                (intent.goal, intent.why) = (TaskGoal::Kill, format!("killed {by_whom}").into());
                EntryKind::TaskKilled
            }
        };
        let told = told(by, kind, id, None, &by_whom);
        writes(entry, id, intent, told)
    }
}

/// What has failed so far is accepted, and so is every canary that is at its end.
fn resume(entry: &TaskEntry, intent: &mut TaskIntent) {
    intent.goal = TaskGoal::Run;
    intent.why = Box::default();
    intent.accepted = u32::try_from(entry.failed()).unwrap_or(u32::MAX);
    let canaries = entry.task().map(|task| task.pause_after.as_slice()).unwrap_or_default();
    intent.passed.extend(canaries.iter().filter(|worker| entry.state_of(worker).is_some_and(HostState::is_end)).cloned());
}

/// These failed no more, or count no more: what was accepted of them is not credit for others.
fn accept_no_more(entry: &TaskEntry, intent: &mut TaskIntent, workers: &[WorkerId]) {
    let failed = workers.iter().filter(|worker| entry.state_of(worker).is_some_and(|state| entry.counts_as_failed(state))).count();
    let left = entry.failed().saturating_sub(failed);
    intent.accepted = intent.accepted.min(u32::try_from(left).unwrap_or(u32::MAX));
}

impl Command for Redo {
    type Answer = ();

    fn subject(&self) -> Subject {
        Subject::Task(self.id)
    }

    fn judge(&self, by: &mut Judge<'_>) -> Ruling<()> {
        let id = self.id;
        let (entry, mut intent) = match known(by, id) {
            Ok(known) => known,
            Err(ruling) => return *ruling,
        };
        if intent.goal.is_final() {
            let why = format!("task {id} was {}, and that is final; create it again", past(intent.goal));
            return stands(entry, id, Err(Refusal::TaskState(why)));
        }
        let workers = match &self.hosts {
            Redone::Failed => entry.order().iter().filter(|worker| entry.state_of(worker).is_some_and(has_failed)).cloned().collect(),
            Redone::Hosts(workers) => workers.clone(),
        };
        for worker in &workers {
            match entry.state_of(worker) {
                None => return stands(entry, id, Err(Refusal::NoHost(id, worker.clone()))),
                Some(state) if state.is_end() => {}
                Some(state) => {
                    let why = format!("{worker} is {state}; it can be done again when it is at an end, and to kill it ends it");
                    return stands(entry, id, Err(Refusal::TaskState(why)));
                }
            }
        }
        if workers.is_empty() {
            return stands(entry, id, Ok(()));
        }
        if std::mem::take(&mut intent.done_at) != 0 && intent.goal == TaskGoal::Pause {
            // It had come to its end while it was paused: to do some of it again is to go on.
            resume(entry, &mut intent);
        }
        accept_no_more(entry, &mut intent, &workers);
        for worker in &workers {
            let attempt = entry.next_attempt(worker);
            if attempt <= entry.host(worker).map_or(0, evenkeel_model::task::TaskHost::attempt) {
                return stands(entry, id, Err(Refusal::TaskState(format!("{worker} has no attempts left; create the task again"))));
            }
            intent.attempts.insert(worker.clone(), attempt);
            intent.ignored.remove(worker);
            intent.killed.remove(worker);
            intent.passed.remove(worker);
        }
        let only = if let [only] = workers.as_slice() { Some(only) } else { None };
        let told = told(by, EntryKind::TaskRedone, id, only, &format!("{} hosts, {}", workers.len(), by_whom(&self.from)));
        writes(entry, id, intent, told)
    }
}

impl Command for KillHost {
    type Answer = ();

    fn subject(&self) -> Subject {
        Subject::Task(self.id)
    }

    fn judge(&self, by: &mut Judge<'_>) -> Ruling<()> {
        let (id, worker) = (self.id, &self.worker);
        let (entry, mut intent) = match known(by, id) {
            Ok(known) => known,
            Err(ruling) => return *ruling,
        };
        match entry.state_of(worker) {
            None => return stands(entry, id, Err(Refusal::NoHost(id, worker.clone()))),
            // Nothing runs there any more, or that is wanted already.
            Some(state) if state.is_end() || intent.killed.contains(worker) => return stands(entry, id, Ok(())),
            Some(_) => {}
        }
        intent.killed.insert(worker.clone());
        let told = told(by, EntryKind::TaskKilled, id, Some(worker), &by_whom(&self.from));
        writes(entry, id, intent, told)
    }
}

impl Command for IgnoreHost {
    type Answer = ();

    fn subject(&self) -> Subject {
        Subject::Task(self.id)
    }

    fn judge(&self, by: &mut Judge<'_>) -> Ruling<()> {
        let (id, worker) = (self.id, &self.worker);
        let (entry, mut intent) = match known(by, id) {
            Ok(known) => known,
            Err(ruling) => return *ruling,
        };
        let state = match entry.state_of(worker) {
            None => return stands(entry, id, Err(Refusal::NoHost(id, worker.clone()))),
            Some(HostState::Ignored) => return stands(entry, id, Ok(())),
            // Its order may be on its way.
            Some(HostState::Waiting) if entry.is_reserved(worker) => HostState::Pending,
            Some(state) => state,
        };
        if state.is_active() {
            return stands(entry, id, Err(Refusal::TaskState(format!("{worker} is {state}; kill it first"))));
        }
        accept_no_more(entry, &mut intent, std::slice::from_ref(worker));
        intent.ignored.insert(worker.clone());
        let told = told(by, EntryKind::TaskIgnored, id, Some(worker), &format!("was {state}, {}", by_whom(&self.from)));
        writes(entry, id, intent, told)
    }
}

/// What is done again where all that failed is.
fn has_failed(state: HostState) -> bool {
    matches!(
        state,
        HostState::Failed | HostState::TimedOut | HostState::Killed | HostState::Rejected | HostState::Lost | HostState::Undelivered
    )
}

fn past(goal: TaskGoal) -> &'static str {
    if goal == TaskGoal::Cancel { "cancelled" } else { "killed" }
}

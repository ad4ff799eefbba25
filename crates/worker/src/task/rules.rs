//! PURE: what follows for one task from its order, from what this worker has recorded, and from what etcd says came of it.
//!
//! The wheel: under worker::task, whose runner gathers the facts and carries out the step. Nothing here reads, writes, waits or starts.
//!
//! What it keeps, whatever crashes in between: an attempt is executed at most once. The record of an attempt is what it rests on: an attempt whose record
//! says *begun* may have been executed, and is never executed again; one that says *ordered* was certainly not.

use evenkeel_model::{
    Origin, Revision,
    task::{Order, OrderIntent, Outcome, TaskResult},
};

use super::journal::{Record, Stage};

/// An order as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SeenOrder {
    /// What it says.
    pub(crate) order: Order,
    /// The revision that wrote it: where it says *run*, that names the attempt.
    pub(crate) modified: Revision,
}

/// A result as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SeenResult {
    /// What it says.
    pub(crate) result: TaskResult,
    /// The revision that wrote it.
    pub(crate) modified: Revision,
}

/// What this agent does for the task at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    /// Nothing.
    None,
    /// It carries out a step that ends by itself.
    Busy,
    /// This attempt is on its way to its end: it is begun, it runs, or its end is being said.
    Attempt(u32),
}

/// Whether something may begin now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Permit {
    /// It may.
    Granted,
    /// This worker has no authority, or is not admitted.
    NoAuthority,
    /// As many run as may.
    Full,
    /// The worker leaves.
    Leaving,
}

/// All that is known of one task.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    /// What the leader wants; none: the task is gone.
    pub(crate) order: Option<&'a SeenOrder>,
    /// What etcd says came of it.
    pub(crate) result: Option<&'a SeenResult>,
    /// The record of the latest attempt.
    pub(crate) record: Option<&'a Record>,
    /// What goes on here.
    pub(crate) activity: Activity,
    /// Of the guard that runs now, on the machine as it is booted now.
    pub(crate) origin: &'a Origin,
    /// Whether something may begin.
    pub(crate) permit: Permit,
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing.
    Nothing,
    /// Something would begin if it might.
    Wait(Permit),
    /// Begin this attempt, which was not begun: record it, tell etcd, record that, execute.
    Begin {
        /// Which.
        attempt: u32,
        /// The revision of its order.
        order: Revision,
    },
    /// Execute an attempt that etcd was told of, and that was certainly not executed.
    Execute,
    /// Stop what runs.
    Stop(String),
    /// Record the end of an attempt that nobody stays with any more, and say it.
    Close(Outcome, String),
    /// Say the end that is recorded.
    Say,
    /// Say the end of an attempt of which there is no record.
    SayLost(String),
    /// Say the end that is recorded of this very order, of which etcd knows nothing any more.
    SayAgain,
    /// An attempt of this number, or a later one, may have been executed by another order, which etcd knows no more: of the same task, it is lost; another
    /// task's record is none.
    Compare {
        /// Which is ordered now.
        attempt: u32,
        /// The revision of its order.
        order: Revision,
    },
    /// The task is gone: remove what is recorded of it.
    Forget,
}

/// What follows from these facts.
#[must_use]
pub(crate) fn decide(facts: &Facts<'_>) -> Step {
    match facts.activity {
        Activity::Busy => return Step::Nothing,
        Activity::Attempt(attempt) => return why_stop(facts.order, attempt).map_or(Step::Nothing, Step::Stop),
        Activity::None => {}
    }
    if facts.order.is_none() && facts.result.is_none() {
        return if facts.record.is_some() { Step::Forget } else { Step::Nothing };
    }
    facts.record.and_then(|record| of_record(facts, record)).unwrap_or_else(|| of_order(facts))
}

/// Why an attempt that goes on is stopped.
fn why_stop(order: Option<&SeenOrder>, attempt: u32) -> Option<String> {
    let Some(SeenOrder { order, .. }) = order else { return Some("the task was deleted".to_owned()) };
    let why = |else_said: &str| if order.why.is_empty() { else_said.to_owned() } else { order.why.to_string() };
    match order.intent {
        _ if order.attempt > attempt => Some(format!("attempt {} was ordered", order.attempt)),
        OrderIntent::Stop => Some(why("its order says so")),
        // The worker was given up and is there all the same: its script goes on, and its end will be said. What was never begun is not begun by
        // the compare of the transaction that begins.
        OrderIntent::Run | OrderIntent::Lost | OrderIntent::Cancelled | OrderIntent::Undelivered => None,
    }
}

/// What follows from the record of an attempt; none: it is settled, and the order counts.
fn of_record(facts: &Facts<'_>, record: &Record) -> Option<Step> {
    let is_told = facts.result.is_some_and(|seen| is_running(&seen.result, record));
    match &record.stage {
        Stage::Ended(_) if is_told => Some(Step::Say),
        Stage::Ended(_) | Stage::Unreadable => None,
        Stage::Begun => {
            let (outcome, why) = after_death(&record.origin, facts.origin);
            Some(Step::Close(outcome, why.to_owned()))
        }
        // Nobody was told: it is as if it had not been recorded.
        Stage::Ordered if !is_told => None,
        Stage::Ordered => Some(of_told(facts, record)),
    }
}

/// Why an attempt of which etcd was told, and that was not executed, is not wanted any more; none: it is.
pub(crate) fn why_not(order: Option<&SeenOrder>, record: &Record) -> Option<String> {
    let is_wanted =
        |seen: &SeenOrder| seen.order.intent == OrderIntent::Run && seen.order.attempt == record.attempt && seen.modified == record.order;
    let is_refused = !order.is_some_and(is_wanted);
    is_refused.then(|| why_stop(order, record.attempt).unwrap_or_else(|| "its worker was given up".to_owned()))
}

/// What follows where etcd was told that an attempt begins, and it was certainly not executed.
fn of_told(facts: &Facts<'_>, record: &Record) -> Step {
    if let Some(why) = why_not(facts.order, record) {
        return Step::Close(Outcome::Killed, format!("{why}, before it was executed"));
    }
    match facts.permit {
        Permit::Granted => Step::Execute,
        Permit::Leaving => Step::Close(Outcome::Killed, "the worker left before it was executed".to_owned()),
        held => Step::Wait(held),
    }
}

/// What became of an attempt that may have been executed by an agent that is no more. The guard ends all work of an agent that has died before it starts
/// another: so it is known that it was killed, where the guard is the same.
fn after_death(recorded: &Origin, now: &Origin) -> (Outcome, &'static str) {
    if recorded.boot_id != now.boot_id {
        (Outcome::Lost, "the machine was rebooted")
    } else if recorded.guard == now.guard {
        (Outcome::Killed, "the agent died")
    } else {
        (Outcome::Lost, "the guard and the agent died")
    }
}

/// Etcd says that this attempt goes on.
pub(super) fn is_running(result: &TaskResult, record: &Record) -> bool {
    result.end().is_none() && result.attempt == record.attempt && result.order == record.order
}

/// What follows from the order alone.
fn of_order(facts: &Facts<'_>) -> Step {
    let unrecorded = facts.result.filter(|seen| seen.result.end().is_none()).filter(|seen| !has_record(facts.record, &seen.result));
    if unrecorded.is_some() {
        return match facts.permit {
            // Who may begin something has the id: nobody else can be running it.
            Permit::Granted | Permit::Full => Step::SayLost(match facts.record {
                Some(Record { stage: Stage::Unreadable, .. }) => "its record cannot be read".to_owned(),
                _ => "its data folder has no record of it".to_owned(),
            }),
            held => Step::Wait(held),
        };
    }
    let Some(SeenOrder { order, modified }) = facts.order else { return Step::Nothing };
    if order.intent != OrderIntent::Run || facts.result.is_some_and(|seen| seen.result.attempt >= order.attempt) {
        return Step::Nothing;
    }
    if let Some(record) = facts.record.filter(|record| may_have_been_executed(record, order.attempt)) {
        // Somebody has deleted the result, or etcd was restored from a backup: what may have been executed never is again, and that is said.
        return match facts.permit {
            Permit::Granted | Permit::Full if (record.attempt, record.order) == (order.attempt, *modified) => Step::SayAgain,
            Permit::Granted | Permit::Full => Step::Compare { attempt: order.attempt, order: *modified },
            held => Step::Wait(held),
        };
    }
    match facts.permit {
        Permit::Granted => Step::Begin { attempt: order.attempt, order: *modified },
        held => Step::Wait(held),
    }
}

/// An attempt of this number, or a later one, may have been executed here.
fn may_have_been_executed(record: &Record, attempt: u32) -> bool {
    record.attempt > attempt || record.attempt == attempt && record.stage != Stage::Ordered
}

fn has_record(record: Option<&Record>, result: &TaskResult) -> bool {
    record.is_some_and(|record| record.stage != Stage::Unreadable && record.attempt == result.attempt && record.order == result.order)
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;

//! The commands about tasks, and how the history and the log tell of them. Only what is wanted is written here: a definition, or the intent of a
//! task. What follows of it, host by host, is the next plan's.
//!
//! Under master::control. `create.rs`: a new task; `intents.rs`: pause, resume, cancel, kill, and the same of one host; `planned.rs`: what the leader
//! itself decides of tasks.

mod create;
mod intents;
pub(super) mod planned;

use evenkeel_model::{
    Decision, Entry, EntryKind, Guard, HistoryEntry, Key, TaskId, TaskIntent, WorkerId, Write,
    task::{NewTask, TaskEntry, TaskGoal},
};

pub use self::create::Created;
use super::{
    judge::Judge,
    request::{Refusal, Reply, Request, Ruling},
};

/// What a person wants of a whole task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskVerb {
    /// Nothing more is ordered.
    Pause,
    /// It goes on.
    Resume,
    /// Nothing more begins, for good.
    Cancel,
    /// The same, and what runs is stopped.
    Kill,
}

impl TaskVerb {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Cancel => "cancel",
            Self::Kill => "kill",
        }
    }
}

/// Which hosts of a task run once more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redone {
    /// These, each of which must be at an end.
    Hosts(Vec<WorkerId>),
    /// All that failed in any way, or were not reached.
    Failed,
}

impl Request {
    /// Asks for a new task.
    #[must_use]
    pub fn create_task(task: Box<NewTask>, reply: Reply<Created>) -> Self {
        Self::new(create::Create { task }, reply)
    }

    /// Asks for something of a whole task. `from` is the address of who asks, for the history.
    #[must_use]
    pub fn task_intent(id: TaskId, verb: TaskVerb, from: Box<str>, reply: Reply<()>) -> Self {
        Self::new(intents::SetIntent { id, verb, from }, reply)
    }

    /// Asks to run hosts of a task once more.
    #[must_use]
    pub fn redo_task(id: TaskId, hosts: Redone, from: Box<str>, reply: Reply<()>) -> Self {
        Self::new(intents::Redo { id, hosts, from }, reply)
    }

    /// Asks to stop a task on one host, or not to begin it there.
    #[must_use]
    pub fn kill_task_host(id: TaskId, worker: WorkerId, from: Box<str>, reply: Reply<()>) -> Self {
        Self::new(intents::KillHost { id, worker, from }, reply)
    }

    /// Asks to count what comes of one host no more.
    #[must_use]
    pub fn ignore_task_host(id: TaskId, worker: WorkerId, from: Box<str>, reply: Reply<()>) -> Self {
        Self::new(intents::IgnoreHost { id, worker, from }, reply)
    }
}

/// A task with which something can still be done, and what is wanted of it; else the answer for who asked, with the conditions under which it is
/// true.
fn known<'a, A>(by: &Judge<'a>, id: TaskId) -> Result<(&'a TaskEntry, TaskIntent), Box<Ruling<A>>> {
    let entry = by.cluster.tasks().get(id);
    if let Some(entry) = entry.filter(|entry| entry.goal() != TaskGoal::Remove) {
        // Of one whose intent somebody has deleted, what is wanted now is what is asked for.
        let lost = || TaskIntent { goal: entry.goal(), ..TaskIntent::default() };
        return Ok((entry, entry.intent().map_or_else(lost, |intent| intent.value.clone())));
    }
    let revision = entry.and_then(TaskEntry::intent).map(|intent| intent.revision).unwrap_or_default();
    let guards = vec![Guard::Modified(Key::TaskIntent(id), revision)];
    Err(Box::new(Ruling::Stands(guards, Err(Refusal::NoTask(id)))))
}

/// Nothing is to be written, as long as what is wanted of the task is what was looked at.
fn stands<A>(entry: &TaskEntry, id: TaskId, answer: Result<A, Refusal>) -> Ruling<A> {
    Ruling::Stands(vec![TaskIntent::guard(entry, id)], answer)
}

/// Another intent of a task, and what the history says of it.
fn writes(entry: &TaskEntry, id: TaskId, intent: TaskIntent, told: HistoryEntry) -> Ruling<()> {
    let decision = Decision { guards: vec![TaskIntent::guard(entry, id)], writes: vec![Write::new(Entry::TaskIntent(id, Some(intent)))] };
    Ruling::Write(Box::new(decision), Some(told), ())
}

/// An entry of the history about a task.
fn told(by: &Judge<'_>, kind: EntryKind, id: TaskId, worker: Option<&WorkerId>, reason: &str) -> HistoryEntry {
    let worker = worker.map(ToString::to_string).unwrap_or_default();
    HistoryEntry { task: id, worker, ..by.entry(kind, "", reason) }
}

/// Who has asked, as the history says it.
fn by_whom(from: &str) -> String {
    if from.is_empty() { "by a person".to_owned() } else { format!("by a person, from {from}") }
}

#[cfg(test)]
mod tests;

//! What is reserved, and who waits: of each subject one decision at a time is under way, and requests about it wait for that, in order.
//!
//! Under master::control. It decides nothing and writes nothing.

use std::{
    collections::{VecDeque, hash_map::Entry},
    fmt,
};

use evenkeel_model::{Action, ResourceName, TaskId, WorkerId};
use rustc_hash::FxHashMap;

use super::request::Request;

/// What a decision or a request is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// A resource and its assignments.
    Resource(ResourceName),
    /// A worker: its admission, and what is wanted of it.
    Worker(WorkerId),
    /// The workers whose return is waited for no longer.
    Brake,
    /// The next task: each takes the next id.
    Tasks,
    /// What is wanted of a task.
    Task(TaskId),
    /// The order of one host of a task.
    Order(WorkerId, TaskId),
}

impl Subject {
    /// Whether to ask once more may do it twice, in words.
    pub(crate) fn again(&self) -> &'static str {
        match self {
            Self::Tasks => "with the same key trying again is safe; without a key look first whether it is there",
            _ => "trying again is safe",
        }
    }

    /// The subject of an action.
    pub(super) fn of(action: &Action) -> Self {
        match action {
            Action::Admit { worker, .. } | Action::Forget { worker, .. } => Self::Worker(worker.clone()),
            Action::Place { resource, .. }
            | Action::Stop { resource, .. }
            | Action::Update { resource, .. }
            | Action::Move { resource, .. }
            | Action::End { resource, .. }
            | Action::Finish { resource, .. }
            | Action::View { resource, .. } => Self::Resource(resource.clone()),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resource(name) => name.fmt(f),
            Self::Worker(id) => write!(f, "what is wanted of {id}"),
            Self::Brake => f.write_str("the release of the brake"),
            Self::Tasks => f.write_str("the task"),
            Self::Task(id) => write!(f, "what is wanted of task {id}"),
            Self::Order(worker, id) => write!(f, "the order of task {id} on {worker}"),
        }
    }
}

/// The subjects with which something is under way, or about which requests wait.
#[derive(Debug, Default)]
pub(super) struct Subjects {
    busy: FxHashMap<Subject, Busy>,
    /// Those whose requests wait no more for what was under way, only for the plan.
    freed: Vec<Subject>,
}

#[derive(Debug, Default)]
struct Busy {
    is_under_way: bool,
    waiting: VecDeque<Request>,
}

impl Subjects {
    /// Something is under way with it.
    pub(super) fn is_under_way(&self, subject: &Subject) -> bool {
        self.busy.get(subject).is_some_and(|busy| busy.is_under_way)
    }

    /// Something begins with it.
    pub(super) fn begin(&mut self, subject: &Subject) {
        let busy = match self.busy.get_mut(subject) {
            Some(busy) => busy,
            None => self.busy.entry(subject.clone()).or_default(),
        };
        debug_assert!(!busy.is_under_way, "one thing after another is done with {subject}");
        busy.is_under_way = true;
    }

    /// It is done with. Those are the first in turn that were judged by a state that did not hold.
    pub(super) fn end(&mut self, subject: Subject, again: Vec<Request>) {
        let Entry::Occupied(mut entry) = self.busy.entry(subject) else { return };
        let busy = entry.get_mut();
        busy.is_under_way = false;
        again.into_iter().rev().for_each(|request| busy.waiting.push_front(request));
        if busy.waiting.is_empty() {
            entry.remove();
        } else {
            self.freed.push(entry.key().clone());
        }
    }

    /// Lets a request wait for what is under way. Back: nothing is, and nobody is before it.
    pub(super) fn wait(&mut self, request: Request) -> Option<Request> {
        match self.busy.get_mut(&request.subject()) {
            Some(busy) => {
                busy.waiting.push_back(request);
                None
            }
            None => Some(request),
        }
    }

    /// The requests about subjects with which nothing is under way any more, by subject.
    pub(super) fn take_freed(&mut self) -> Vec<(Subject, VecDeque<Request>)> {
        let freed = std::mem::take(&mut self.freed);
        let waiting = freed.into_iter().filter_map(|subject| {
            // The plan may have begun something with it, whose end frees it again.
            let busy = self.busy.get(&subject).filter(|busy| !busy.is_under_way)?;
            debug_assert!(!busy.waiting.is_empty());
            self.busy.remove(&subject).map(|busy| (subject, busy.waiting))
        });
        waiting.collect()
    }

    /// Puts those back that wait for what has begun meanwhile.
    pub(super) fn wait_on(&mut self, subject: &Subject, mut waiting: VecDeque<Request>) {
        if waiting.is_empty() {
            return;
        }
        let busy = self.busy.entry(subject.clone()).or_default();
        waiting.append(&mut busy.waiting);
        busy.waiting = waiting;
    }

    /// Takes all who wait.
    pub(super) fn take_waiting(&mut self) -> Vec<Request> {
        self.freed.clear();
        let waiting = self.busy.values_mut().flat_map(|busy| std::mem::take(&mut busy.waiting)).collect();
        self.busy.retain(|_, busy| busy.is_under_way);
        waiting
    }
}

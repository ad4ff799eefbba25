//! A new task: which workers it means is settled here, once, and all of it is written in one transaction. Under control::task. Only one task is
//! created at a time, since each takes the next id.

use evenkeel_model::{
    Decision, Entry, EntryKind, Guard, Key, Revision, TaskId, TaskIntent, WorkerId, Write,
    limits::{MAX_HOSTS, MAX_RESULTS, MAX_TASKS},
    task::{NewTask, NextTask, TaskError, TaskGoal},
};

use super::told;
use crate::control::{
    judge::Judge,
    request::{Answer, Command, Refusal, Ruling},
    subjects::Subject,
};

/// Creates a task.
#[derive(Debug)]
pub(super) struct Create {
    pub(super) task: Box<NewTask>,
}

/// The task that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Created {
    /// Its id.
    pub id: TaskId,
    /// False: a task of the same key was there already, and nothing was written.
    pub is_new: bool,
}

impl Answer for Created {}

impl Command for Create {
    type Answer = Created;

    fn subject(&self) -> Subject {
        Subject::Tasks
    }

    fn judge(&self, by: &mut Judge<'_>) -> Ruling<Created> {
        if let Some(ruling) = self.known_by_key(by) {
            return ruling;
        }
        let workers = match self.workers(by) {
            Ok(workers) => workers,
            Err(error) => return Ruling::Refuse(Refusal::WrongTask(error)),
        };
        if let Some(refusal) = no_room(by, workers.len()) {
            return Ruling::Refuse(refusal);
        }
        let (counted, Some(id)) = by.cluster.tasks().next() else { return Ruling::Refuse(Refusal::NoTaskIds) };
        let task = match self.task.with_workers(id, by.time, workers, by.cluster) {
            Ok(task) => task,
            Err(error) => return Ruling::Refuse(Refusal::WrongTask(error)),
        };
        let hosts =
            if task.on.late { format!("{} hosts and those that come later", task.on.workers.len()) } else { count(task.on.workers.len()) };
        let account = if task.account.is_empty() { "the worker's own account".to_owned() } else { format!("account {}", task.account) };
        let who = [("by", &task.creator), ("from", &task.from)]
            .map(|(word, who)| if who.is_empty() { String::new() } else { format!(", {word} {who}") });
        let reason = format!("{hosts}, {account}, SHA-256 {}{}", task.sha256, who.concat());
        let entry = told(by, EntryKind::TaskCreated, id, None, &reason);
        let decision = Decision {
            guards: vec![
                Guard::Modified(Key::NextTask(), counted),
                Guard::Modified(Key::Task(id), Revision::default()),
                Guard::Modified(Key::TaskIntent(id), Revision::default()),
            ],
            writes: vec![
                Write::new(Entry::Task(id, Some(task))),
                Write::new(Entry::TaskScript(id, Some(self.task.script.clone()))),
                Write::new(Entry::TaskIntent(id, Some(TaskIntent::default()))),
                Write::new(Entry::NextTask(Some(NextTask::after(id)))),
            ],
        };
        Ruling::Write(Box::new(decision), Some(entry), Created { id, is_new: true })
    }
}

impl Create {
    /// The answer to a repetition: whoever sends the same key again gets the same task.
    fn known_by_key(&self, by: &Judge<'_>) -> Option<Ruling<Created>> {
        let wanted = &self.task.task;
        if wanted.key.is_empty() {
            return None;
        }
        let id = by.cluster.tasks().of_key(&wanted.key)?;
        let entry = by.cluster.tasks().get(id).filter(|entry| entry.goal() != TaskGoal::Remove)?;
        let is_same = entry.task().is_some_and(|task| task.content == wanted.content);
        let answer = if is_same { Ok(Created { id, is_new: false }) } else { Err(Refusal::KeyTaken(wanted.key.clone(), id)) };
        Some(Ruling::Stands(vec![Guard::Modified(Key::Task(id), entry.revision())], answer))
    }

    /// The workers that it means now.
    fn workers(&self, by: &Judge<'_>) -> Result<Vec<WorkerId>, TaskError> {
        let mut workers = self.task.resolve(by.cluster)?;
        let any = self.task.task.on.any as usize;
        if any == 0 {
            return Ok(workers);
        }
        // Of many that would do, none is chosen that is known to take no task.
        let takes = |id: &WorkerId| by.cluster.worker(id.as_str()).and_then(|w| w.registration()).is_some_and(|r| r.tasks);
        if workers.iter().any(takes) {
            workers.retain(takes);
        }
        if workers.len() < any {
            let rule = format!("{any} hosts are asked for, and {} match that take tasks", workers.len());
            return Err(TaskError { field: "any", rule });
        }
        Ok(evenkeel_planner::tasks::least_loaded(by.cluster, &workers, any))
    }
}

/// How many more tasks there may be than are kept, while those that are done are being deleted.
const SLACK: usize = MAX_TASKS / 10;

/// Those that are done make room; where so many go on, nothing does.
fn no_room(by: &Judge<'_>, hosts: usize) -> Option<Refusal> {
    let tasks = by.cluster.tasks();
    let evictable: usize = tasks.done().filter_map(|(_, id)| tasks.get(id)).map(|entry| entry.order().len()).sum();
    let is_full = tasks.len() - tasks.count_done() >= MAX_TASKS
        || tasks.len() >= MAX_TASKS + SLACK
        || tasks.hosts() - evictable + hosts > MAX_RESULTS
        || tasks.hosts() + hosts > MAX_RESULTS + MAX_HOSTS;
    is_full.then(|| Refusal::TooManyTasks { tasks: tasks.len(), hosts: tasks.hosts() })
}

fn count(hosts: usize) -> String {
    if hosts == 1 { "1 host".to_owned() } else { format!("{hosts} hosts") }
}

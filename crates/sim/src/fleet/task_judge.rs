//! Looks at every change of what etcd says of tasks, and holds it against the promises of tasks: what was said stays said, one of worker and leader wins,
//! and nothing goes before its time. Under [`judge`](super::judge).

use std::collections::BTreeMap;

use evenkeel_model::{
    TaskId, WorkerId,
    task::{Order, OrderIntent, Outcome, Task, TaskGoal, TaskIntent, TaskResult},
};
use evenkeel_store::{KeyChange, keys::Key};
use serde::de::DeserializeOwned;

use super::{ledger::Ledger, task_book::Attempt};

/// See the module.
pub(super) struct TaskJudge {
    ledger: Ledger,
    keys: BTreeMap<Box<str>, TaskId>,
    goals: BTreeMap<TaskId, TaskGoal>,
    /// With the revision that wrote it.
    orders: BTreeMap<(WorkerId, TaskId), (Order, i64)>,
    results: BTreeMap<(WorkerId, TaskId), TaskResult>,
}

impl TaskJudge {
    pub(super) fn new(ledger: Ledger) -> Self {
        Self { ledger, keys: BTreeMap::new(), goals: BTreeMap::new(), orders: BTreeMap::new(), results: BTreeMap::new() }
    }

    /// One key has changed.
    pub(super) fn see(&mut self, key: Key, change: &KeyChange) {
        let kv = match change {
            KeyChange::Put(kv) => kv,
            // Tasks are kept for longer than any run is.
            KeyChange::Delete { .. } => {
                if matches!(key, Key::Task(_) | Key::TaskIntent(_) | Key::Order(..) | Key::TaskResult(..) | Key::TaskScript(_)) {
                    self.ledger.violate(format_args!("{key:?} is deleted before its time"));
                }
                return;
            }
        };
        match key {
            Key::Task(id) => self.read(&kv.value, |this, task| this.task(id, &task)),
            Key::TaskIntent(id) => self.read(&kv.value, |this, intent| this.intent(id, &intent)),
            Key::Order(worker, id) => self.read(&kv.value, |this, order| this.order(worker, id, order, kv.modified.0)),
            Key::TaskResult(worker, id) => self.read(&kv.value, |this, result| this.result(worker, id, result)),
            _ => {}
        }
    }

    fn read<T: DeserializeOwned>(&mut self, json: &[u8], take: impl FnOnce(&mut Self, T)) {
        match serde_json::from_slice(json) {
            Ok(value) => take(self, value),
            Err(error) => self.ledger.violate(format_args!("a record of a task cannot be read: {error}")),
        }
    }

    fn task(&mut self, id: TaskId, task: &Task) {
        self.ledger.note(format_args!("etcd: task {id} (key {:?}) on {:?}", task.key, task.on.workers));
        self.ledger.count(|counts| counts.tasks += 1);
        if !task.key.is_empty()
            && let Some(other) = self.keys.insert(task.key.clone(), id)
        {
            self.ledger.violate(format_args!("tasks {other} and {id} have the key {}", task.key));
        }
    }

    fn intent(&mut self, id: TaskId, intent: &TaskIntent) {
        let TaskIntent { goal, why, done_at, .. } = intent;
        let is_done = if *done_at == 0 { "" } else { ", and done" };
        self.ledger.note(format_args!("etcd: task {id} is to {}{is_done} {why}", goal.as_str()));
        let before = self.goals.insert(id, *goal);
        if before.is_some_and(|before| before.is_final() && !goal.is_final()) {
            self.ledger.violate(format_args!("task {id} is to {goal:?}, and was to {before:?}, which is final"));
        }
        self.ledger.count(|counts| counts.tasks_paused += u64::from(*goal == TaskGoal::Pause && before != Some(TaskGoal::Pause)));
    }

    fn order(&mut self, worker: WorkerId, id: TaskId, order: Order, revision: i64) {
        self.ledger.note(format_args!("etcd {revision}: {worker} is ordered attempt {} of task {id}: {:?}", order.attempt, order.intent));
        let attempt = attempt(&worker, id, order.attempt);
        let result = self.results.get(&(worker.clone(), id)).filter(|result| result.attempt == order.attempt);
        match order.intent {
            OrderIntent::Cancelled | OrderIntent::Undelivered => {
                if let Some(result) = result {
                    self.ledger.violate(format_args!("{attempt} is closed as {:?}, and its worker said {:?}", order.intent, result.phase));
                }
                let how = if order.intent == OrderIntent::Cancelled { "was cancelled" } else { "was not delivered" };
                self.ledger.told_never(attempt.clone(), how);
            }
            OrderIntent::Lost => self.ledger.told_given_up(&attempt),
            OrderIntent::Run | OrderIntent::Stop => {}
        }
        let before = self.orders.insert((worker, id), (order.clone(), revision));
        let Some((before, _)) = before else { return };
        let is_next = order.attempt > before.attempt && order.intent == OrderIntent::Run;
        let is_change = order.attempt == before.attempt && before.intent == OrderIntent::Run && order.intent != OrderIntent::Run;
        let gives_up = order.attempt == before.attempt && before.intent == OrderIntent::Stop && order.intent == OrderIntent::Lost;
        self.ledger.count(|counts| counts.tasks_again += u64::from(is_next));
        if !is_next && !is_change && !gives_up {
            self.ledger
                .violate(format_args!("{attempt}: its order becomes {:?} after {:?} of {}", order.intent, before.intent, before.attempt));
        }
    }

    fn result(&mut self, worker: WorkerId, id: TaskId, result: TaskResult) {
        let attempt = attempt(&worker, id, result.attempt);
        self.ledger.note(format_args!("etcd: {attempt}: {:?} {:?} {}", result.phase, result.outcome, result.message));
        let before = self.results.insert((worker.clone(), id), result.clone());
        let began = before.filter(|before| before.attempt >= result.attempt);
        if let Some(before) = &began
            && (before.attempt > result.attempt || before.end().is_some() || result.end().is_none() || before.order != result.order)
        {
            self.ledger.violate(format_args!("{attempt}: its result was {before:?}, and becomes {result:?}"));
        }
        // Whoever says the first word of an attempt does it by an order that stands.
        let stands = self.orders.get(&(worker, id)).is_some_and(|(order, revision)| {
            order.intent == OrderIntent::Run && order.attempt == result.attempt && *revision == result.order.0
        });
        if began.is_none() && !stands {
            self.ledger.violate(format_args!("{attempt}: it begins by an order that does not stand: {result:?}"));
        }
        match result.end() {
            None => self.ledger.told_running(attempt),
            Some(Outcome::Rejected) => self.ledger.told_never(attempt, "was rejected"),
            Some(outcome) => self.ledger.told_ended(attempt, outcome),
        }
    }
}

fn attempt(worker: &WorkerId, task: TaskId, number: u32) -> Attempt {
    Attempt { machine: worker.to_string(), task, number }
}

//! PURE: what is to be done next of tasks: which hosts are ordered, closed or stopped, when a task pauses, is done, and is kept no longer.
//!
//! The wheel: planner::plan, beside the plan of resources, with which it shares nothing but the leader. It is a function of definitions, orders, results
//! and intents, so a leader goes on where another has stopped; the time of day is an argument, and counts for deliveries and retention alone. Its cost
//! grows with what goes on, not with what is kept.

use std::time::Duration;

use evenkeel_model::{
    Cluster, Moment, TaskId, WorkerId,
    limits::{KEEP_TASKS_S, MAX_HOSTS, MAX_RESULTS, MAX_TAILS, MAX_TASKS},
    process::in_units,
    task::{Close, HostState, Order, OrderIntent, Share, Task, TaskAction, TaskEntry, TaskGoal, TaskHost, TaskState},
};

/// What is to be done of tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "a plan that is not carried out is a bug"]
pub struct TaskPlan {
    /// In the order in which they are to be written.
    pub actions: Vec<TaskAction>,
    /// When another plan is due though nothing happened; none: only changes matter.
    pub wake: Option<Moment>,
}

/// When it is.
#[derive(Clone, Copy, Debug)]
struct Now {
    moment: Moment,
    /// Nanoseconds since the Unix epoch.
    unix_ns: i64,
    /// G: see [`crate::PlannerConfig`].
    wait: Duration,
}

impl Now {
    /// What is left of a span that began at a time of day; none: it is over.
    fn left(self, since: i64, span: Duration) -> Option<Duration> {
        let passed = u64::try_from(self.unix_ns.saturating_sub(since)).map_or(Duration::ZERO, Duration::from_nanos);
        span.checked_sub(passed).filter(|left| !left.is_zero())
    }
}

struct Turn<'a> {
    cluster: &'a Cluster,
    now: Now,
    most: usize,
    plan: TaskPlan,
}

/// Decides what is to be done next of tasks. `wait` is G, the leader's wait for a session that is gone. The plan of what was just planned is empty, as
/// far as its actions have no sequel.
pub fn plan(cluster: &Cluster, now: Moment, unix_ns: i64, wait: Duration, most_actions: usize) -> TaskPlan {
    let now = Now { moment: now, unix_ns, wait };
    let mut turn = Turn { cluster, now, most: most_actions, plan: TaskPlan::default() };
    for (id, entry) in cluster.tasks().live() {
        if turn.plan.actions.len() >= turn.most {
            turn.wake_in(Duration::ZERO);
            break;
        }
        turn.task(id, entry);
    }
    turn.retain();
    turn.plan
}

/// So many of these workers, those with the lowest payload for their capacity first; by their ids where that is the same.
#[must_use]
pub fn least_loaded(cluster: &Cluster, workers: &[WorkerId], count: usize) -> Vec<WorkerId> {
    let load = |worker: &WorkerId| {
        let known = cluster.worker(worker.as_str());
        let capacity = known.and_then(|known| known.registration()?.capacity).unwrap_or(1).max(1);
        evenkeel_model::Load { payload: known.map_or(0, |known| known.load), share: capacity }
    };
    let mut ranked: Vec<&WorkerId> = workers.iter().collect();
    ranked.sort_by_cached_key(|worker| (load(worker), (*worker).clone()));
    ranked.into_iter().take(count).cloned().collect()
}

impl<'a> Turn<'a> {
    fn wake_in(&mut self, span: Duration) {
        let at = self.now.moment.after(span);
        self.plan.wake = Some(self.plan.wake.map_or(at, |wake| wake.min(at)));
    }

    fn task(&mut self, id: TaskId, entry: &'a TaskEntry) {
        if entry.is_intent_reserved() {
            return;
        }
        if entry.goal() == TaskGoal::Remove {
            return self.plan.actions.push(TaskAction::Delete { task: id });
        }
        for worker in entry.active().filter(|worker| !entry.is_reserved(worker)) {
            if self.plan.actions.len() >= self.most {
                return;
            }
            match (entry.task(), entry.host(worker)) {
                (Some(task), Some(host)) => self.attend(id, task, entry, worker, host),
                (None, Some(_)) => self.attend_unreadable(id, entry, worker),
                (_, None) => {}
            }
        }
        let Some(task) = entry.task() else {
            if entry.goal().is_final() {
                self.end(id, entry);
            }
            return;
        };
        let late = self.late(task, entry);
        if entry.goal() == TaskGoal::Run {
            self.order(id, task, entry, late);
        } else if !late.goes_on || entry.goal().is_final() {
            self.end(id, entry);
        }
    }

    /// What follows for a host that is pending or running.
    fn attend(&mut self, id: TaskId, task: &Task, entry: &TaskEntry, worker: &WorkerId, host: &TaskHost) {
        let Some(order) = host.order.as_deref().map(|order| &order.value) else { return };
        let is_killed = entry.intent().is_some_and(|intent| intent.value.killed.contains(worker));
        match entry.state_of(worker) {
            Some(HostState::Pending) => self.attend_pending(id, task, entry, worker, (order, is_killed)),
            Some(HostState::Running) => {
                if let Some(since) = host.gone_since {
                    // Its script has ended by then, with its worker's process or by its timeout.
                    let end = since.after(task.timeout()).after(task.grace()).after(self.now.wait);
                    if end <= self.now.moment {
                        let why = "its worker is gone, and how the script ended is not known";
                        return self.close(id, worker, Close::Lost, why);
                    }
                    self.wake_in(end.0.saturating_sub(self.now.moment.0));
                }
                let is_killed = is_killed || entry.goal() == TaskGoal::Kill;
                if host.is_unreadable() {
                    // Its worker cannot say an end in its place either.
                    let longest = task.timeout() + task.grace() + self.now.wait;
                    match self.now.left(order.since, longest).filter(|_| !is_killed) {
                        Some(left) => self.wake_in(left),
                        None => self.close(id, worker, Close::Lost, "what its worker said of it cannot be read"),
                    }
                } else if order.intent == OrderIntent::Run && is_killed {
                    self.stop(id, entry, worker);
                }
            }
            _ => {}
        }
    }

    /// Of a task whose definition cannot be read nothing begins; what was begun can be stopped.
    fn attend_unreadable(&mut self, id: TaskId, entry: &TaskEntry, worker: &WorkerId) {
        let is_told = entry.host(worker).and_then(|host| host.order.as_deref()).is_some_and(|order| order.value.intent != OrderIntent::Run);
        match entry.state_of(worker) {
            Some(HostState::Pending) if entry.goal().is_final() => {
                self.close(id, worker, Close::Cancelled, &why(entry, "cancelled by a person"))
            }
            Some(HostState::Running) if entry.goal() == TaskGoal::Kill && !is_told => {
                self.stop(id, entry, worker);
            }
            _ => {}
        }
    }

    fn attend_pending(&mut self, id: TaskId, task: &Task, entry: &TaskEntry, worker: &WorkerId, (order, is_killed): (&Order, bool)) {
        if is_killed || entry.goal().is_final() {
            return self.close(id, worker, Close::Cancelled, &why(entry, "cancelled by a person"));
        }
        match self.now.left(order.since, task.deliver()) {
            Some(left) => self.wake_in(left),
            None => {
                let why = format!("its worker did not begin it within {}", in_units(task.deliver()));
                self.close(id, worker, Close::Undelivered, &why);
            }
        }
    }

    fn stop(&mut self, task: TaskId, entry: &TaskEntry, worker: &WorkerId) {
        self.plan.actions.push(TaskAction::Stop { task, worker: worker.clone(), why: why(entry, "killed by a person") });
    }

    fn close(&mut self, task: TaskId, worker: &WorkerId, close: Close, why: &str) {
        self.plan.actions.push(TaskAction::Close { task, worker: worker.clone(), close, why: why.into() });
    }

    /// Who may come later, and who has.
    fn late(&mut self, task: &Task, entry: &TaskEntry) -> Late<'a> {
        let none = Late { goes_on: false, workers: Vec::new() };
        let Some(left) = task.on.late.then(|| self.now.left(task.created, task.deliver())).flatten() else { return none };
        self.wake_in(left);
        // Nobody looks at all workers while there is no room for another.
        let room = room(task, entry);
        let Ok(selector) = task.on.select.parse::<evenkeel_model::Selector>() else { return none };
        if room == 0 || entry.goal() != TaskGoal::Run {
            return Late { goes_on: true, workers: Vec::new() };
        }
        let registered = self.cluster.workers().filter_map(|(worker, known)| Some((worker, known.registration()?)));
        let matching = registered.filter(|(_, registration)| selector.matches(&registration.labels)).map(|(worker, _)| worker);
        let most = MAX_HOSTS.saturating_sub(entry.order().len());
        Late { goes_on: true, workers: matching.filter(|worker| !entry.has(worker)).take(most).collect() }
    }

    /// Orders what the batch has room for, unless so many have failed, or one was reached after which it pauses.
    fn order(&mut self, id: TaskId, task: &Task, entry: &'a TaskEntry, late: Late<'a>) {
        let is_waited_for = entry.waiting().next().is_some();
        if !is_waited_for && late.workers.is_empty() {
            if !late.goes_on {
                self.end(id, entry);
            }
            return;
        }
        if let Some(why) = too_many_failed(task, entry) {
            return self.plan.actions.push(TaskAction::Pause { task: id, why: why.into(), passed: None });
        }
        let canary = next_canary(task, entry);
        if let Some((worker, _)) = canary
            && entry.state_of(worker).is_some_and(HostState::is_end)
            && is_waited_for
        {
            let why = format!("after {worker}, as it was asked for").into();
            return self.plan.actions.push(TaskAction::Pause { task: id, why, passed: Some(worker.clone()) });
        }
        let room = room(task, entry).min(self.most.saturating_sub(self.plan.actions.len()));
        let until = canary.map_or(usize::MAX, |(_, place)| place);
        let waiting = entry.waiting().take_while(|(place, _)| *place <= until).map(|(_, worker)| worker);
        // Those that came late come after the others, and after who goes ahead.
        let late = late.workers.into_iter().filter(|_| canary.is_none());
        for worker in waiting.chain(late).take(room) {
            let attempt = entry.next_attempt(worker);
            self.plan.actions.push(TaskAction::Order { task: id, worker: worker.clone(), attempt, since: self.now.unix_ns });
        }
    }

    /// The task is done once every host is at an end.
    fn end(&mut self, id: TaskId, entry: &TaskEntry) {
        let goes_on = entry.batch() > 0 || entry.waiting().next().is_some();
        if !goes_on && entry.state() != TaskState::Done {
            self.plan.actions.push(TaskAction::Done { task: id, at: self.now.unix_ns });
        }
    }

    /// What is kept no longer: what is old, and the oldest of too much. One at a time: what is being deleted makes room.
    fn retain(&mut self) {
        let tasks = self.cluster.tasks();
        let Some((done_at, oldest)) = tasks.done().next() else { return };
        let is_reserved = tasks.get(oldest).is_none_or(TaskEntry::is_intent_reserved);
        if is_reserved || tasks.live().any(|(_, entry)| entry.goal() == TaskGoal::Remove) {
            return;
        }
        let left = self.now.left(done_at, Duration::from_secs(KEEP_TASKS_S));
        left.into_iter().for_each(|left| self.wake_in(left));
        if left.is_none() || tasks.len() > MAX_TASKS || tasks.hosts() > MAX_RESULTS {
            return self.plan.actions.push(TaskAction::Remove { task: oldest });
        }
        if tasks.tail_bytes() > MAX_TAILS {
            let has_tails = |id: &TaskId| {
                tasks.get(*id).is_some_and(|entry| {
                    let deleted = entry.intent().map_or(0, |intent| intent.value.tails_deleted as usize);
                    !entry.is_intent_reserved() && deleted < entry.order().len()
                })
            };
            let task = tasks.done().map(|(_, id)| id).find(has_tails);
            self.plan.actions.extend(task.map(|task| TaskAction::DeleteTails { task }));
        }
    }
}

/// Workers that register after the task was created.
struct Late<'a> {
    /// Others may still come.
    goes_on: bool,
    workers: Vec<&'a WorkerId>,
}

/// How many more hosts the batch takes.
fn room(task: &Task, entry: &TaskEntry) -> usize {
    task.batch.rounded_up(entry.order().len().max(1)).max(1).saturating_sub(entry.batch())
}

/// Why something of a task is stopped or closed.
fn why(entry: &TaskEntry, usual: &str) -> Box<str> {
    let said = entry.intent().map(|intent| &intent.value.why).filter(|why| !why.is_empty() && entry.goal().is_final());
    said.cloned().unwrap_or_else(|| usual.into())
}

/// More have failed than the task and those who resumed it accept.
fn too_many_failed(task: &Task, entry: &TaskEntry) -> Option<String> {
    if task.tolerance == Share::All {
        return None;
    }
    let accepted = entry.intent().map_or(0, |intent| intent.value.accepted as usize);
    let tolerated = task.tolerance.rounded_down(entry.order().len());
    let failed = entry.failed();
    (failed > accepted + tolerated).then(|| match accepted {
        0 => format!("tolerance: {failed} failed, and {tolerated} may"),
        _ => format!("tolerance: {} more failed than were accepted, and {tolerated} may", failed - accepted),
    })
}

/// The first host after which the task is yet to pause, with its place.
fn next_canary<'a>(task: &'a Task, entry: &TaskEntry) -> Option<(&'a WorkerId, usize)> {
    let passed = entry.intent().map(|intent| &intent.value.passed);
    let ahead = task.pause_after.iter().filter(|worker| passed.is_none_or(|passed| !passed.contains(*worker)));
    ahead.filter_map(|worker| Some((worker, entry.place(worker)?))).min_by_key(|(_, place)| *place)
}

#[cfg(test)]
#[path = "tasks_tests.rs"]
mod tests;

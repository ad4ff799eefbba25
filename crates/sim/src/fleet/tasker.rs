//! Callers who create tasks, and want something of them afterwards: redo, cancel, kill, pause, resume, ignore, and the same creation once more.
//!
//! A creation with a key is repeated until its answer is certain, as a client does, and each answer must name the same task. What is asked for under a key
//! follows from the key, so that whoever uses it asks for the same.

use std::{sync::Arc, time::Duration};

use evenkeel_master::engine::{Created, Redone, Refusal, Reply as To, Request, TaskVerb};
use evenkeel_model::{TaskId, WorkerId, task::TaskDraft};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use super::{dice::Dice, ledger::Ledger, master::Master, sign::Sign};

/// How long a caller waits for an answer.
const PATIENCE: Duration = Duration::from_secs(6);
const PAUSE: Duration = Duration::from_millis(250);
/// The longest from one call to the next.
const LEISURE: Duration = Duration::from_secs(9);
/// The same where a task is not wanted any more: about what it takes from its creation to the beginning of its scripts.
const HURRY: Duration = Duration::from_millis(150);
/// So many keys are used by all callers of tasks.
const COMMON_KEYS: u64 = 12;

/// One caller.
pub(super) struct Tasker {
    pub(super) number: usize,
    pub(super) masters: Vec<Master>,
    pub(super) ledger: Ledger,
    pub(super) dice: Dice,
    pub(super) seed: u64,
    /// How many workers there are.
    pub(super) workers: usize,
    /// Whether a task stands in etcd.
    pub(super) stands: Arc<dyn Fn(TaskId) -> bool + Send + Sync>,
    /// True: finish what is under way, and rest.
    pub(super) rest: Sign<bool>,
    /// How many callers have something under way.
    pub(super) busy: Sign<usize>,
    /// The tasks that it was told of.
    pub(super) known: Vec<TaskId>,
    /// The keys that it has used.
    pub(super) keys: Vec<String>,
}

/// What a caller wants.
#[derive(Clone, Debug)]
enum Call {
    Create(Box<TaskDraft>),
    Verb(TaskId, TaskVerb),
    Redo(TaskId, Redone),
    KillHost(TaskId, WorkerId),
    Ignore(TaskId, WorkerId),
}

/// What came back.
enum Heard<A> {
    Done(A),
    Refused(Refusal),
    /// It was certainly not done, and may be tried again.
    Again,
    /// It may have been done.
    Unknown,
}

impl Tasker {
    pub(super) async fn run(mut self) {
        loop {
            self.rest.shows(|rests| !rests).await;
            sleep(self.dice.span(PAUSE, LEISURE)).await;
            if self.rest.get() {
                continue;
            }
            self.busy.change(|busy| *busy += 1);
            let call = self.choose();
            let told_of = self.known.len();
            self.see_through(call).await;
            // Who has just asked for a task may want it gone while its hosts are ordered and begin.
            if let Some(id) = self.known.get(told_of).copied().filter(|_| self.dice.per_mille(250)) {
                sleep(self.dice.span(Duration::ZERO, HURRY)).await;
                let call = self.choose_against(id);
                self.see_through(call).await;
            }
            self.busy.change(|busy| *busy -= 1);
        }
    }

    fn choose(&mut self) -> Call {
        let dice = self.dice.clone();
        let Some(id) = (!self.known.is_empty()).then(|| *dice.pick(&self.known)) else { return self.create() };
        // Most of what is wanted of tasks is wanted of the last.
        let id = if dice.per_mille(600) { self.known.last().copied().unwrap_or(id) } else { id };
        match dice.below(20) {
            0 => Call::Verb(id, TaskVerb::Cancel),
            1 => Call::Verb(id, TaskVerb::Kill),
            2 => Call::Verb(id, TaskVerb::Pause),
            3..6 => Call::Verb(id, TaskVerb::Resume),
            6 | 7 => Call::Redo(id, Redone::Failed),
            8 => Call::Redo(id, Redone::Hosts(self.worker().into_iter().collect())),
            9 => self.worker().map_or_else(|| self.create(), |worker| Call::KillHost(id, worker)),
            10 => self.worker().map_or_else(|| self.create(), |worker| Call::Ignore(id, worker)),
            11 | 12 if !self.keys.is_empty() => {
                Call::Create(Box::new(draft_of_key(self.seed, self.workers, dice.pick::<String>(&self.keys))))
            }
            _ => self.create(),
        }
    }

    fn choose_against(&self, id: TaskId) -> Call {
        match (self.dice.below(3), self.worker()) {
            (0, _) => Call::Verb(id, TaskVerb::Cancel),
            (1, Some(worker)) => Call::KillHost(id, worker),
            _ => Call::Verb(id, TaskVerb::Kill),
        }
    }

    fn worker(&self) -> Option<WorkerId> {
        WorkerId::new(&format!("worker-{}", self.dice.below(self.workers as u64))).ok()
    }

    fn create(&mut self) -> Call {
        let key = match self.dice.below(10) {
            0..4 => return Call::Create(Box::new(draft(&self.dice, self.workers))),
            4 | 5 => format!("common-{}", self.dice.below(COMMON_KEYS)),
            _ => format!("own-{}-{}", self.number, self.keys.len()),
        };
        let draft = draft_of_key(self.seed, self.workers, &key);
        self.keys.push(key);
        Call::Create(Box::new(draft))
    }

    /// Calls, and tries again, until the answer is certain; now and then it gives up before.
    async fn see_through(&mut self, call: Call) {
        loop {
            let is_certain = match &call {
                Call::Create(draft) => self.ask_for(draft).await,
                Call::Verb(id, verb) => {
                    let heard = self.ask(|reply| Request::task_intent(*id, *verb, "".into(), reply)).await;
                    self.is_certain(&call, &heard)
                }
                Call::Redo(id, hosts) => {
                    let heard = self.ask(|reply| Request::redo_task(*id, hosts.clone(), "".into(), reply)).await;
                    self.is_certain(&call, &heard)
                }
                Call::KillHost(id, worker) => {
                    let heard = self.ask(|reply| Request::kill_task_host(*id, worker.clone(), "".into(), reply)).await;
                    self.is_certain(&call, &heard)
                }
                Call::Ignore(id, worker) => {
                    let heard = self.ask(|reply| Request::ignore_task_host(*id, worker.clone(), "".into(), reply)).await;
                    self.is_certain(&call, &heard)
                }
            };
            if is_certain || self.dice.per_mille(50) && !self.rest.get() {
                return;
            }
            sleep(self.dice.span(PAUSE / 5, PAUSE)).await;
        }
    }

    /// Asks for a task. True: the answer is certain, or asking once more would make a second one.
    async fn ask_for(&mut self, draft: &TaskDraft) -> bool {
        let Ok(task) = draft.clone().check() else {
            self.ledger.violate(format_args!("a task of the simulator's own is refused: {draft:?}"));
            return true;
        };
        let heard = self.ask::<Created>(|reply| Request::create_task(Box::new(task), reply)).await;
        let TaskDraft { key, .. } = draft;
        match heard {
            Heard::Done(Created { id, is_new }) => {
                self.ledger.note(format_args!("tasker {}: key {key:?} is task {id} (new: {is_new})", self.number));
                self.ledger.count(|counts| {
                    counts.acknowledged += 1;
                    counts.tasks_repeated += u64::from(!is_new);
                });
                if !(self.stands)(id) {
                    self.ledger.violate(format_args!("task {id} was acknowledged, and is not there"));
                }
                if key.is_empty() != is_new && key.is_empty() {
                    self.ledger.violate(format_args!("task {id} has no key, and is said to be a repetition"));
                }
                if !key.is_empty() {
                    self.ledger.answered_key(key, id, is_new);
                }
                if !self.known.contains(&id) {
                    self.known.push(id);
                }
                true
            }
            Heard::Refused(Refusal::WrongTask(error)) if !draft.selector.is_empty() => {
                // None that matches is registered.
                self.ledger.note(format_args!("tasker {}: {error}", self.number));
                true
            }
            Heard::Refused(refusal) => {
                self.ledger.violate(format_args!("a task under the key {key:?} is refused: {refusal}"));
                true
            }
            Heard::Again => false,
            Heard::Unknown => {
                self.ledger.note(format_args!("tasker {}: key {key:?}: unknown", self.number));
                self.ledger.count(|counts| counts.unknown += 1);
                key.is_empty()
            }
        }
    }

    fn is_certain(&self, call: &Call, heard: &Heard<()>) -> bool {
        let number = self.number;
        match heard {
            Heard::Done(()) => {
                self.ledger.note(format_args!("tasker {number}: {call:?}: done"));
                self.ledger.count(|counts| {
                    counts.acknowledged += 1;
                    counts.task_requests += 1;
                });
                true
            }
            Heard::Refused(Refusal::NoTask(id)) => {
                self.ledger.violate(format_args!("task {id} was acknowledged, and is not known"));
                true
            }
            Heard::Refused(refusal) => {
                self.ledger.note(format_args!("tasker {number}: {call:?}: {refusal}"));
                true
            }
            Heard::Again => false,
            Heard::Unknown => {
                self.ledger.note(format_args!("tasker {number}: {call:?}: unknown"));
                self.ledger.count(|counts| counts.unknown += 1);
                false
            }
        }
    }

    async fn ask<A>(&self, request: impl FnOnce(To<A>) -> Request) -> Heard<A> {
        let leaders: Vec<&Master> = self.masters.iter().filter(|master| master.leads()).collect();
        let handle = if leaders.is_empty() { None } else { self.dice.pick(&leaders).handle() };
        let Some(handle) = handle else { return Heard::Again };
        let (reply, answer) = oneshot::channel();
        if handle.ask(request(reply.into())).is_err() {
            return Heard::Again;
        }
        match timeout(PATIENCE, answer).await {
            Ok(Ok(Ok(answer))) => Heard::Done(answer),
            Ok(Ok(Err(refusal))) => of_refusal(refusal),
            Ok(Err(_)) | Err(_) => Heard::Unknown,
        }
    }
}

fn of_refusal<A>(refusal: Refusal) -> Heard<A> {
    match refusal {
        Refusal::Unknown(_) | Refusal::UnknownOutcome => Heard::Unknown,
        Refusal::Conflict(_) | Refusal::NoSpace | Refusal::Rejected(_) | Refusal::Busy | Refusal::NotLeader => Heard::Again,
        refusal => Heard::Refused(refusal),
    }
}

/// What is asked for under this key, whoever asks.
fn draft_of_key(seed: u64, workers: usize, key: &str) -> TaskDraft {
    TaskDraft { key: key.to_owned(), ..draft(&Dice::new(seed, &format!("task {key}")), workers) }
}

/// A task whose scripts, deliveries and graces are short enough for a run.
fn draft(dice: &Dice, workers: usize) -> TaskDraft {
    let mut hosts: Vec<String> = (0..workers).map(|n| format!("worker-{n}")).collect();
    let mut selector = String::new();
    let (mut any, mut late) = (0, false);
    match dice.below(10) {
        0 => selector = "zone=a".to_owned(),
        1 => (selector, any) = ("zone in (a, b)".to_owned(), 1),
        2 => (selector, late) = ("zone".to_owned(), true),
        // There is none of this name.
        3 => hosts.push("worker-9".to_owned()),
        4..7 => drop(hosts.drain(1..)),
        _ => {}
    }
    if !selector.is_empty() {
        hosts.clear();
    }
    let pause_after = if hosts.len() > 1 && dice.per_mille(100) { vec![hosts[0].clone()] } else { Vec::new() };
    let text = |of: &[&str]| (*dice.pick(of)).to_owned();
    TaskDraft {
        script: "what it does is drawn by the kernel".to_owned(),
        hosts,
        selector,
        any,
        late,
        pause_after,
        timeout_ms: 1_500 + dice.below(5_000),
        grace_ms: Some(200 + dice.below(800)),
        deliver_ms: 6_000 + dice.below(19_000),
        batch: text(&["", "1", "50%", "all"]),
        tolerance: text(&["", "1", "50%", "all", "all", "all"]),
        on_lost: text(&["", "", "retry"]),
        count_undelivered: dice.per_mille(300),
        ..TaskDraft::default()
    }
}

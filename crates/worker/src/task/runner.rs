//! Runs the tasks of a worker: looks at each that has changed, and carries out what follows.
//!
//! The wheel: it joins worker::task::{follow, rules, attempt}, and lives as long as the agent: a session or an authority that is lost ends no script. The
//! agent's loop tells it where the worker stands; it tells that loop what still runs. It decides nothing that the rules have not decided.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
    time::Duration,
};

use evenkeel_model::{Revision, TaskId, task::Outcome};
use evenkeel_store::task::of_this_process;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{
    attempt::{Admitted, Attempt, Done, GATE_PERIOD, LEFT, Shared},
    follow::Followed,
    journal::{Journal, Record, Stage},
    keeper::Told,
    rules::{Activity, Facts, Permit, SeenOrder, SeenResult, Step, decide, is_running},
    script::Scripts,
};
use crate::driver::process::cells::Cells;

/// Records that cannot be read are read again: nothing begins before.
const AGAIN: Duration = Duration::from_secs(1);
/// How often what is kept is looked through: it is kept for days.
const PRUNE: Duration = Duration::from_secs(3600);
/// For how long a worker that leaves waits for etcd to take the ends of what it ran. What it does not take is told by the next agent.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Where the worker stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Its session and the admission of it; none: it has none.
    pub admitted: Option<Admitted>,
    /// It leaves: nothing begins any more.
    pub leaving: bool,
}

/// What goes on for one task.
struct Live {
    activity: Activity,
    told: watch::Sender<Told>,
}

pub(super) struct Runner<C, J, S> {
    pub(super) shared: Arc<Shared<C, J, S>>,
    pub(super) standing: watch::Receiver<Standing>,
    /// False: nothing runs, and no end is to be told.
    pub(super) is_busy: watch::Sender<bool>,
    /// From the request to leave to the kill.
    pub(super) grace: Duration,
    pub(super) places: Arc<Semaphore>,
}

/// What changes.
struct State {
    orders: Followed<SeenOrder>,
    results: Followed<SeenResult>,
    /// Of each task the record of its last attempt.
    records: BTreeMap<TaskId, Record>,
    /// All attempts that have a record.
    attempts: BTreeSet<(TaskId, u32)>,
    live: BTreeMap<TaskId, Live>,
    /// Tasks that are to be looked at.
    dirty: BTreeSet<TaskId>,
    /// Tasks that would begin if they might.
    waiting: BTreeSet<TaskId>,
    /// One of them waits for authority, of whose return nobody tells.
    lacks_authority: bool,
    done: mpsc::UnboundedReceiver<(TaskId, Done)>,
    sender: mpsc::UnboundedSender<(TaskId, Done)>,
    /// Both lists were seen.
    is_listed: bool,
    /// When what runs is killed, as the worker leaves.
    kill_at: Option<Instant>,
    killed: bool,
    /// Until when the ends of what ran are told, once the worker leaves and nothing runs any more.
    last_words: Option<Instant>,
    /// None: that goes on.
    prune_at: Option<Instant>,
    pruned: mpsc::UnboundedReceiver<Vec<(TaskId, u32)>>,
    pruner: mpsc::UnboundedSender<Vec<(TaskId, u32)>>,
}

impl<C: Cells, J: Journal, S: Scripts> Runner<C, J, S> {
    /// Until the process ends.
    pub(super) async fn run(mut self) {
        let mut state = self.begin().await;
        loop {
            self.turn(&mut state);
            self.wait(&mut state).await;
        }
    }

    async fn begin(&self) -> State {
        let shared = &self.shared;
        let records = loop {
            match shared.journal.load().await {
                Ok(records) => break records,
                Err(error) => tracing::error!(%error, "the records of tasks cannot be read: no script begins"),
            }
            sleep(AGAIN).await;
        };
        let (sender, done) = mpsc::unbounded_channel();
        let (pruner, pruned) = mpsc::unbounded_channel();
        let mut state = State {
            orders: Followed::orders(&shared.client, &shared.keys, &shared.worker),
            results: Followed::results(&shared.client, &shared.keys, &shared.worker),
            records: BTreeMap::new(),
            attempts: BTreeSet::new(),
            live: BTreeMap::new(),
            dirty: BTreeSet::new(),
            waiting: BTreeSet::new(),
            lacks_authority: false,
            done,
            sender,
            is_listed: false,
            kill_at: None,
            killed: false,
            last_words: None,
            prune_at: Some(Instant::now()),
            pruned,
            pruner,
        };
        records.into_iter().for_each(|record| state.take_record(record));
        state
    }

    fn turn(&self, state: &mut State) {
        self.watch_leaving(state);
        if state.orders.all.is_none() || state.results.all.is_none() {
            return;
        }
        if !std::mem::replace(&mut state.is_listed, true) {
            // Of what is recorded some may be gone.
            state.dirty.extend(state.records.keys().copied());
        }
        while let Some(id) = state.dirty.pop_first() {
            self.look_at(state, id);
        }
        let has_unsaid = state.records.values().any(|record| is_unsaid(record, state.results.get(record.id)));
        let is_silent = self.standing.borrow().leaving && self.shared.counts.running() == 0;
        state.last_words = is_silent.then(|| state.last_words.unwrap_or_else(|| Instant::now() + LAST_WORDS));
        let may_say = state.last_words.is_none_or(|until| Instant::now() < until);
        let is_busy = may_say && (!state.live.is_empty() || has_unsaid);
        self.is_busy.send_if_modified(|busy| std::mem::replace(busy, is_busy) != is_busy);
    }

    async fn wait(&mut self, state: &mut State) {
        let polls = std::mem::take(&mut state.lacks_authority);
        let kill_at = state.kill_at.filter(|_| !state.killed);
        let prune_at = state.prune_at.filter(|_| state.is_listed);
        tokio::select! {
            Some((id, done)) = state.done.recv() => self.take_done(state, id, done),
            ids = state.orders.next() => state.dirty.extend(ids),
            ids = state.results.next() => state.dirty.extend(ids),
            changed = self.standing.changed() => match changed {
                Ok(()) => state.look_at_all(),
                // The agent's loop has ended, and with it this process.
                Err(_) => std::future::pending().await,
            },
            () = self.shared.counts.freed.notified() => state.dirty.append(&mut state.waiting),
            () = sleep(GATE_PERIOD), if polls => {}
            () = sleep_until(kill_at.unwrap_or_else(Instant::now)), if kill_at.is_some() => {}
            () = sleep_until(state.last_words.unwrap_or_else(Instant::now)), if state.last_words.is_some_and(|until| Instant::now() < until) => {}
            Some(removed) = state.pruned.recv() => state.take_pruned(&removed),
            () = sleep_until(prune_at.unwrap_or_else(Instant::now)), if prune_at.is_some() => self.prune(state),
        }
        if polls {
            state.dirty.append(&mut state.waiting);
        }
    }

    /// What runs is killed when the grace of a worker that leaves is over.
    fn watch_leaving(&self, state: &mut State) {
        if !self.standing.borrow().leaving {
            return;
        }
        let kill_at = match state.kill_at {
            Some(at) => at,
            None => {
                state.tell_all(|told| told.leaving = true);
                *state.kill_at.insert(Instant::now() + self.grace)
            }
        };
        if Instant::now() >= kill_at && !std::mem::replace(&mut state.killed, true) {
            state.tell_all(|told| *told = Told { stop: Some(LEFT.to_owned()), kill: true, leaving: true });
        }
    }

    fn permit(&self) -> (Permit, Option<(Admitted, OwnedSemaphorePermit)>) {
        let Standing { admitted, leaving } = *self.standing.borrow();
        let Some(admitted) = admitted.filter(|_| !leaving && self.shared.gate.is_open()) else {
            return (if leaving { Permit::Leaving } else { Permit::NoAuthority }, None);
        };
        match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => (Permit::Granted, Some((admitted, place))),
            Err(_) => (Permit::Full, None),
        }
    }

    fn look_at(&self, state: &mut State, id: TaskId) {
        let (permit, granted) = self.permit();
        let (order, result, record) = (state.orders.get(id), state.results.get(id), state.records.get(&id));
        let activity = state.live.get(&id).map_or(Activity::None, |live| live.activity);
        let facts = Facts { order, result, record, activity, origin: &self.shared.origin, permit };
        let step = decide(&facts);
        state.waiting.remove(&id);
        let (result, record) = (result.cloned(), record.cloned());
        match (step, granted, record, result) {
            (Step::Nothing, ..) => {}
            (Step::Wait(held), ..) => {
                state.waiting.insert(id);
                state.lacks_authority |= held == Permit::NoAuthority;
            }
            (Step::Stop(why), ..) => stop(state, id, why),
            (Step::Begin { attempt, order }, Some((admitted, place)), _, result) => {
                let before = revision_of(result);
                self.spawn(
                    state,
                    id,
                    Activity::Attempt(attempt),
                    |it| async move { it.begin((attempt, order), admitted, before, place).await },
                );
            }
            (Step::Execute, Some((_, place)), Some(record), Some(told)) => {
                let activity = Activity::Attempt(record.attempt);
                self.spawn(state, id, activity, |it| it.go_on(record, told.modified, place));
            }
            (Step::Close(outcome, why), _, Some(record), result) => {
                let told_at = result.filter(|seen| is_running(&seen.result, &record)).map(|seen| seen.modified);
                self.spawn(state, id, Activity::Busy, |it| it.close(record, told_at, outcome, why));
            }
            (Step::Say, _, Some(Record { stage: Stage::Ended(end), .. }), Some(told)) => {
                self.spawn(state, id, Activity::Busy, |it| async move { it.say(&end, told.modified).await });
            }
            (Step::SayLost(why), _, _, Some(seen)) => {
                self.spawn(state, id, Activity::Busy, |it| it.say_lost(seen, why));
            }
            (Step::Forget, ..) => self.forget(state, id),
            (Step::SayAgain, _, Some(record), result) => {
                let (before, Some(admitted)) = (revision_of(result), self.standing.borrow().admitted) else { return };
                self.spawn(state, id, Activity::Busy, |it| it.say_again(record, admitted, before));
            }
            (Step::Compare { attempt, order }, _, Some(record), result) => {
                let (before, Some(admitted)) = (revision_of(result), self.standing.borrow().admitted) else { return };
                self.spawn(state, id, Activity::Busy, |it| it.compare(record, (attempt, order), admitted, before));
            }
            (
                Step::SayAgain | Step::Compare { .. } | Step::Begin { .. } | Step::Execute | Step::Close(..) | Step::Say | Step::SayLost(_),
                ..,
            ) => {
                tracing::error!(task = %id, "a step follows from facts that are not there");
            }
        }
    }

    fn spawn<F>(&self, state: &mut State, id: TaskId, activity: Activity, step: impl FnOnce(Attempt<C, J, S>) -> F)
    where
        F: Future<Output = Done> + Send + 'static,
    {
        let (sender, told) = watch::channel(Told::default());
        state.live.insert(id, Live { activity, told: sender });
        let attempt = Attempt { shared: Arc::clone(&self.shared), id, told };
        let (done, step) = (state.sender.clone(), step(attempt));
        tokio::spawn(of_this_process(async move {
            let _ = done.send((id, step.await));
        }));
    }

    fn take_done(&self, state: &mut State, id: TaskId, done: Done) {
        let Done { record, result, pause, is_forgotten } = done;
        if is_forgotten && let Some(record) = state.records.remove(&id) {
            state.attempts.remove(&(id, record.attempt));
        }
        if let Some(record) = record {
            state.take_record(record);
        }
        if let Some(result) = result {
            state.results.wrote(id, result);
        }
        state.live.remove(&id);
        state.dirty.insert(id);
        // It may have had a place.
        state.dirty.append(&mut state.waiting);
        if let Some(pause) = pause {
            self.spawn(state, id, Activity::Busy, |_| async move {
                sleep(pause).await;
                Done::default()
            });
        }
    }

    /// The task is gone: all that is kept of it goes too.
    fn forget(&self, state: &mut State, id: TaskId) {
        state.records.remove(&id);
        let attempts: Vec<(TaskId, u32)> = state.attempts.range((id, 0)..=(id, u32::MAX)).copied().collect();
        state.attempts.retain(|(of, _)| *of != id);
        self.spawn(state, id, Activity::Busy, |it| async move {
            for (id, attempt) in attempts {
                it.shared.journal.remove(id, attempt).await;
            }
            Done::default()
        });
    }

    /// Removes what is too old or too much, but nothing that goes on, and nothing whose end is yet to be told. A disk that hangs holds up nobody.
    fn prune(&self, state: &mut State) {
        state.prune_at = None;
        let is_settled = |record: &Record| {
            let has_end = state.results.get(record.id).is_some_and(|seen| seen.result.end().is_some());
            matches!(record.stage, Stage::Ended(_)) && has_end && !state.live.contains_key(&record.id)
        };
        let unsettled = state.records.values().filter(|record| !is_settled(record)).map(|record| (record.id, record.attempt));
        // The record of one that goes on may be of an attempt before it.
        let live = state.live.iter().filter_map(|(id, live)| match live.activity {
            Activity::Attempt(attempt) => Some((*id, attempt)),
            Activity::None | Activity::Busy => None,
        });
        let kept = unsettled.chain(live).collect();
        let (shared, pruner) = (Arc::clone(&self.shared), state.pruner.clone());
        tokio::spawn(of_this_process(async move {
            let _ = pruner.send(shared.journal.prune(kept).await);
        }));
    }
}

impl State {
    /// These attempts have no record any more.
    fn take_pruned(&mut self, removed: &[(TaskId, u32)]) {
        self.prune_at = Some(Instant::now() + PRUNE);
        for key in removed {
            self.attempts.remove(key);
            if self.records.get(&key.0).is_some_and(|record| record.attempt == key.1) {
                self.records.remove(&key.0);
            }
        }
    }

    fn take_record(&mut self, record: Record) {
        self.attempts.insert((record.id, record.attempt));
        if self.records.get(&record.id).is_none_or(|before| before.attempt <= record.attempt) {
            self.records.insert(record.id, record);
        }
    }

    fn tell_all(&self, tell: impl Fn(&mut Told)) {
        self.live.values().for_each(|live| live.told.send_modify(&tell));
    }

    fn look_at_all(&mut self) {
        let orders = self.orders.all.iter().flat_map(BTreeMap::keys).copied();
        let all: Vec<TaskId> = orders.chain(self.results.all.iter().flat_map(BTreeMap::keys).copied()).collect();
        self.dirty.extend(all);
    }
}

fn stop(state: &State, id: TaskId, why: String) {
    if let Some(live) = state.live.get(&id) {
        live.told.send_if_modified(|told| {
            let is_new = told.stop.is_none();
            told.stop.get_or_insert(why);
            is_new
        });
    }
}

fn revision_of(result: Option<SeenResult>) -> Revision {
    result.map(|seen| seen.modified).unwrap_or_default()
}

/// It has ended, and etcd says that it goes on.
fn is_unsaid(record: &Record, seen: Option<&SeenResult>) -> bool {
    matches!(record.stage, Stage::Ended(_) | Stage::Begun) && seen.is_some_and(|seen| is_running(&seen.result, record))
}

/// What the agent's loop has of the tasks.
#[derive(Clone, Debug)]
pub struct Tasks {
    pub(super) standing: Arc<watch::Sender<Standing>>,
    pub(super) is_busy: watch::Receiver<bool>,
    /// From the request to leave to the kill.
    pub(super) grace: Duration,
    /// See [`Self::leave_by`].
    pub(super) leave_by: Arc<OnceLock<Instant>>,
}

impl Tasks {
    /// The worker stands here now.
    pub(crate) fn stand(&self, admitted: Option<Admitted>, leaving: bool) {
        if leaving {
            self.leave_by();
        }
        self.standing.send_if_modified(|standing| {
            let now = Standing { admitted, leaving: standing.leaving || leaving };
            std::mem::replace(standing, now) != now
        });
    }

    /// Nothing runs, and no end is to be told.
    pub(crate) fn is_idle(&self) -> bool {
        !*self.is_busy.borrow()
    }

    /// Waits until that changes.
    pub(crate) async fn changed(&mut self) {
        if self.is_busy.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Ends what runs as the worker leaves, and waits for it; not for long for an etcd that is away.
    pub(crate) async fn leave(&mut self) {
        self.stand(None, true);
        let until = self.leave_by();
        let _ = tokio::time::timeout_at(until, self.is_busy.wait_for(|is_busy| !is_busy)).await;
    }

    /// Until when at the most a worker that leaves waits for its tasks, from when it was first told to.
    pub(crate) fn leave_by(&self) -> Instant {
        *self.leave_by.get_or_init(|| Instant::now() + self.grace + LAST_WORDS)
    }
}

/// The outcomes, as metrics name them.
pub(crate) const OUTCOMES: [(Outcome, &str); 6] = [
    (Outcome::Succeeded, "succeeded"),
    (Outcome::Failed, "failed"),
    (Outcome::TimedOut, "timed-out"),
    (Outcome::Killed, "killed"),
    (Outcome::Rejected, "rejected"),
    (Outcome::Lost, "lost"),
];

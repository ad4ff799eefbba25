//! One session, from its registration to its end: waits for what happens, takes it in, and then acts.
//!
//! The wheel: the loop of worker::agent. A wake-up carries facts into worker::desired, the table or the authority; what follows from
//! them is found out in `act`.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use evenkeel_model::{Admission, Observed, Registration, ResourceName, Revision, Session};
use evenkeel_store::{KeyChange, KeyRange, Kv, LeaseState, LeasedKey, Update, mirror, task::of_this_process};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    Agent, State,
    follow::{Followed, Follower},
    proof::{Proof, prove_on},
    register::{self, Begun},
    survivors::{self, Unanswered},
};
use crate::{
    config::WorkerError,
    driver::{Event, EventKind, Lives},
    protocol::authority::{Authority, BootTime},
    protocol::reconcile::{RunState, StopWhy},
    protocol::report::{Batch, Outcome, StatusGuard, Verdict},
    task::{Admitted, Tasks},
};

/// Changes that come together are written together.
const TOGETHER: Duration = Duration::from_millis(30);
const AFTER_REFUSAL: Duration = Duration::from_millis(20);
const AFTER_FAILURE: Duration = Duration::from_millis(200);
const WRITE_DEADLINE: Duration = Duration::from_secs(2);

/// How a session ended. Nothing runs any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Its key is gone: another session may begin.
    Lost,
    /// The worker has left.
    Left,
}

/// A session.
pub(super) struct Serving<'a> {
    pub(super) agent: &'a Agent,
    pub(super) state: &'a mut State,
    pub(super) session: Session,
    pub(super) authority: Authority,
    /// No proof reaches to now. What was seen before counts no more.
    pub(super) lapsed: bool,
    /// Why the last proof did not come through, if it did not.
    pub(super) unproved: Option<String>,
    /// The key is gone, for certain.
    pub(super) lost: bool,
    pub(super) leaving: bool,
    /// The end of authority at which everything was last ordered to be killed.
    pub(super) forced_at: Option<BootTime>,
    pub(super) follower: Option<Follower>,
    /// Names about which something has changed.
    pub(super) dirty: BTreeSet<ResourceName>,
    /// Names that could not be started for want of authority.
    pub(super) deferred: BTreeSet<ResourceName>,
    /// The kinds whose drivers have not said what of earlier sessions lives, and why not.
    pub(super) unanswered: Unanswered,
    /// When statuses that have changed are written.
    report_at: Option<Instant>,
    /// Nothing is written before: the last attempt failed.
    hold_until: Instant,
    /// When a worker that leaves waits for its tasks no more.
    leave_by: Option<Instant>,
    key: Arc<LeasedKey>,
    pub(super) registration: Registration,
    lease: watch::Receiver<LeaseState>,
    admission: mpsc::Receiver<Update>,
    proofs: mpsc::Receiver<Proof>,
    written: mpsc::Receiver<(Batch, Outcome)>,
    writer: mpsc::Sender<(Batch, Outcome)>,
    answered: mpsc::Receiver<Box<Registration>>,
    tasks: JoinSet<()>,
    /// What asks the drivers that have not answered, and writes the registration when one has.
    asks: JoinSet<()>,
    /// What writes that the worker leaves.
    says: JoinSet<()>,
}

/// Something that happens.
enum Wake {
    Admission(Update),
    Followed(Followed),
    Proof(Proof),
    Driver(Event),
    Written(Batch, Outcome),
    /// More drivers have answered: what is registered by now.
    Answered(Box<Registration>),
    KeyGone,
    Leave,
    Time,
}

impl<'a> Serving<'a> {
    pub(super) fn begin(agent: &'a Agent, state: &'a mut State, begun: Begun) -> Self {
        let key = Arc::new(begun.key);
        let session = Session(key.created().0);
        state.desired.begin(Some(session));
        state.reporter.abandon();
        let (sender, proofs) = mpsc::channel(4);
        let (writer, written) = mpsc::channel(1);
        let leaving = *state.leave.borrow();
        let mut tasks = JoinSet::new();
        tasks.spawn(of_this_process(prove_on(Arc::clone(&key), agent.timing, Arc::clone(&agent.clock), sender)));
        let (answerer, answered) = mpsc::channel(1);
        let mut asks = JoinSet::new();
        if !leaving && !begun.unanswered.is_empty() {
            let (registry, registration) = (agent.registry.clone(), begun.registration.clone());
            asks.spawn(of_this_process(survivors::ask_on(registry, Arc::clone(&key), registration, answerer)));
        }
        Self {
            session,
            authority: Authority::none(agent.timing),
            lapsed: true,
            unproved: None,
            lost: false,
            leaving,
            forced_at: None,
            follower: None,
            dirty: BTreeSet::new(),
            deferred: BTreeSet::new(),
            report_at: None,
            hold_until: Instant::now(),
            leave_by: None,
            lease: key.state(),
            admission: mirror(&agent.client, KeyRange::key(agent.keys.admission(&agent.id))),
            registration: begun.registration,
            unanswered: begun.unanswered,
            answered,
            key,
            proofs,
            written,
            writer,
            tasks,
            asks,
            says: JoinSet::new(),
            agent,
            state,
        }
    }

    pub(super) async fn run(mut self) -> Result<Ended, WorkerError> {
        loop {
            self.act();
            self.tell_tasks();
            self.agent.board.turned();
            if self.lost && !self.state.table.is_busy() && !self.waits_for_tasks() {
                return Ok(if self.leaving { Ended::Left } else { Ended::Lost });
            }
            if self.leaving && self.state.table.is_empty() && !self.owes_ends() {
                if !self.waits_for_tasks() {
                    return Ok(self.leave().await);
                }
                self.say_leaving();
            }
            let wake = self.wait().await;
            self.take_in(wake)?;
        }
    }

    /// Where the worker stands, for what runs beside its session.
    fn tell_tasks(&mut self) {
        let Some(tasks) = &self.state.tasks else { return };
        let session = self.session;
        let admitted = self.admission().filter(|_| !self.lost).map(|admission| Admitted { session, admission });
        tasks.stand(admitted, self.leaving);
        if self.leaving {
            self.leave_by = Some(tasks.leave_by());
        }
    }

    /// The worker leaves, and scripts run on, or their ends are yet to be told.
    fn waits_for_tasks(&self) -> bool {
        let is_idle = self.state.tasks.as_ref().is_none_or(Tasks::is_idle);
        self.leaving && !is_idle && self.leave_by.is_none_or(|at| Instant::now() < at)
    }

    /// Says that all resources have stopped, while scripts still run: others need not wait for those.
    fn say_leaving(&mut self) {
        if self.lost || std::mem::replace(&mut self.registration.leaving, true) {
            return;
        }
        tracing::info!(id = %self.agent.id, session = %self.session, "all resources have stopped; scripts of tasks run on for a while");
        let (key, value) = (Arc::clone(&self.key), serde_json::to_vec(&self.registration).unwrap_or_default());
        self.says.spawn(of_this_process(async move {
            while let Err(error) = key.update(value.clone(), WRITE_DEADLINE).await {
                tracing::debug!(%error, "that the worker leaves could not be written: trying again");
                sleep(AFTER_FAILURE).await;
            }
        }));
    }

    async fn leave(mut self) -> Ended {
        self.agent.gate.open_until(None);
        self.tasks.abort_all();
        // A write that is under way could come after the release. An etcd that does not answer is not waited for any longer than once.
        let said = async { while self.says.join_next().await.is_some() {} };
        let _ = timeout(WRITE_DEADLINE + AFTER_FAILURE, said).await;
        register::release(&self.agent.client, &self.key, self.registration.clone(), &self.agent.id).await;
        tracing::info!(id = %self.agent.id, session = %self.session, "left");
        Ended::Left
    }

    async fn wait(&mut self) -> Wake {
        let timer = self.next_time().map(|at| self.agent.clock.instant(at));
        let leave_by = self.leave_by.filter(|_| self.waits_for_tasks());
        let wake_at = timer.into_iter().chain(self.report_time()).chain(leave_by).min();
        let (lost, leaving) = (self.lost, self.leaving);
        let followed = async {
            match &mut self.follower {
                Some(follower) => follower.followed.recv().await,
                None => pending().await,
            }
        };
        let tasks = async {
            match &mut self.state.tasks {
                Some(tasks) => tasks.changed().await,
                None => pending().await,
            }
        };
        let time = async {
            match wake_at {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            Some(proof) = self.proofs.recv() => Wake::Proof(proof),
            Some(update) = self.admission.recv() => Wake::Admission(update),
            Some(followed) = followed => Wake::Followed(followed),
            Some(event) = self.state.events.recv() => Wake::Driver(event),
            Some((batch, outcome)) = self.written.recv() => Wake::Written(batch, outcome),
            Some(registration) = self.answered.recv() => Wake::Answered(registration),
            Ok(_) = self.lease.wait_for(|state| *state != LeaseState::Alive), if !lost => Wake::KeyGone,
            Ok(_) = self.state.leave.wait_for(|leave| *leave), if !leaving => Wake::Leave,
            () = tasks, if leaving => Wake::Time,
            () = time => Wake::Time,
        }
    }

    fn take_in(&mut self, wake: Wake) -> Result<(), WorkerError> {
        match wake {
            Wake::Admission(update) => self.see_admission(&update),
            Wake::Followed(followed) => self.take_followed(followed),
            Wake::Proof(proof) => self.take_proof(proof),
            Wake::Driver(event) => self.observe(event)?,
            Wake::Written(batch, outcome) => self.take_outcome(&batch, outcome),
            Wake::Answered(registration) => {
                self.unanswered.retain(|kind, _| !registration.kinds.contains(kind));
                self.registration = Registration { leaving: self.registration.leaving, ..*registration };
                self.touch_all();
            }
            Wake::KeyGone => self.lose(),
            Wake::Leave => {
                tracing::info!("leaving: all work is stopped");
                self.leaving = true;
                // It would write the registration of a worker that stays.
                self.asks.abort_all();
                self.touch_all();
            }
            Wake::Time => {}
        }
        Ok(())
    }

    fn see_admission(&mut self, update: &Update) {
        let kv: Option<&Kv> = match update {
            Update::Reset { kvs, .. } => kvs.first(),
            Update::Changes { changes, .. } => match changes.last() {
                Some(KeyChange::Put(kv)) => Some(kv),
                _ => None,
            },
            Update::Lost { .. } | Update::Recovered => return,
        };
        let admission = kv.and_then(|kv| Some((serde_json::from_slice::<Admission>(&kv.value).ok()?, kv.modified)));
        let before = self.state.desired.admitted();
        self.state.desired.see_admission(admission.as_ref().map(|(admission, revision)| (admission, *revision)));
        let after = self.state.desired.admitted();
        if before != after {
            // Another admission, or none: what was listed under the one before is too old.
            self.follower = None;
            match after {
                Some(_) => tracing::info!(session = %self.session, "admitted"),
                None => tracing::warn!(session = %self.session, "not admitted any more"),
            }
            self.touch_all();
        }
    }

    fn take_followed(&mut self, followed: Followed) {
        let desired = &mut self.state.desired;
        match followed {
            Followed::Whole { revision, assignments, statuses } => {
                let read = statuses.iter().filter_map(|(name, (status, _))| Some((name.clone(), status.clone()?))).collect();
                if desired.list(revision, assignments, &read) {
                    self.state.reporter.list(statuses, |name| desired.assignment(name).is_some());
                } else {
                    tracing::warn!(%revision, "a list that is older than the admission is not acted on");
                    self.follower = None;
                }
                self.touch_all();
            }
            Followed::Again { revision, assignments } => {
                if desired.list(revision, assignments, &BTreeMap::new()) {
                    self.state.reporter.retain(|name| desired.assignment(name).is_some());
                }
                self.touch_all();
            }
            Followed::Changes(changes) => {
                for (name, assigned) in changes {
                    match assigned {
                        Some(assigned) => desired.put(name.clone(), assigned),
                        None => {
                            desired.delete(&name);
                            self.state.reporter.forget(&name);
                        }
                    }
                    self.dirty.insert(name);
                }
            }
        }
    }

    fn take_proof(&mut self, proof: Proof) {
        match proof {
            Proof::Held { sent } => {
                self.agent.board.proofs_held.fetch_add(1, Ordering::Relaxed);
                self.authority.proved(sent);
                if self.unproved.take().is_some() {
                    self.agent.board.set_waits_for(None);
                }
                self.dirty.append(&mut self.deferred);
                self.arm_guard();
            }
            Proof::Failed { why, refused } => {
                self.agent.board.proofs_failed.fetch_add(1, Ordering::Relaxed);
                if refused && self.unproved.is_none() {
                    tracing::warn!(session = %self.session, error = why, "etcd refuses to confirm the session: authority ends soon");
                }
                let shown = format!("etcd does not confirm the session, without which nothing may run: {why}");
                self.agent.board.set_waits_for(Some(shown));
                self.unproved = Some(why);
            }
            Proof::Lost => self.lose(),
        }
    }

    fn lose(&mut self) {
        if !std::mem::replace(&mut self.lost, true) {
            tracing::warn!(session = %self.session, "the session is lost: all work is stopped");
            self.state.desired.begin(None);
            self.follower = None;
            self.touch_all();
        }
    }

    fn observe(&mut self, event: Event) -> Result<(), WorkerError> {
        let Event { name, epoch, kind } = event;
        match kind {
            EventKind::Observed(mut seen) => {
                self.watch_guard(self.agent.clock.now());
                let was_killed =
                    self.state.table.get(&name).is_some_and(|row| row.lapsed && row.run.epoch == epoch) && seen.lives == Lives::Nothing;
                if was_killed {
                    (seen.phase, seen.lives) = (Observed::Backoff, Lives::Maybe);
                }
                if let Some(status) = self.state.table.observe(&name, epoch, seen, self.agent.clock.unix_ns()) {
                    if status.finished {
                        self.state.desired.exited(&name, epoch);
                    }
                    self.state.reporter.set(&name, status.clone());
                }
                self.agent.board.show(&name, self.state.table.get(&name));
                // Its driver rests, though it was interrupted: it is told to stop, and then it is started anew where that is still wanted.
                if was_killed && self.state.table.run(&name).is_some_and(|run| run.state == RunState::Live) {
                    self.stop(&name, epoch, StopWhy::Authority);
                }
                self.dirty.insert(name);
                Ok(())
            }
            EventKind::Updated(hash) => {
                self.updated(&name, epoch, hash);
                Ok(())
            }
            EventKind::NeedsRestart(hash, why) => {
                self.needs_restart(&name, epoch, hash, &why);
                Ok(())
            }
            EventKind::Ended => {
                if self.state.table.run(&name).is_some_and(|run| run.epoch == epoch) {
                    self.end(&name);
                }
                Ok(())
            }
            EventKind::Broken => Err(WorkerError::Broken(name)),
        }
    }

    fn take_outcome(&mut self, batch: &Batch, outcome: Outcome) {
        let pause = match &outcome {
            Outcome::Written(_) => {
                self.agent.board.statuses_written.fetch_add(batch.len() as u64, Ordering::Relaxed);
                Duration::ZERO
            }
            Outcome::Refused(_) => AFTER_REFUSAL,
            Outcome::Unknown => AFTER_FAILURE,
        };
        self.hold_until = Instant::now() + pause;
        self.report_at = Some(self.hold_until);
        if self.state.reporter.done(batch, outcome) == Verdict::SessionLost {
            self.lose();
        }
    }

    /// When statuses are to be written. None: there are none, or nobody would take them.
    fn report_time(&mut self) -> Option<Instant> {
        let State { desired, reporter, .. } = &*self.state;
        let is_due = if self.leaving { reporter.is_urgent() && reporter.is_due() } else { reporter.is_due() };
        if self.lapsed || !desired.has_view() || !is_due {
            return None;
        }
        let now = Instant::now();
        let at = *self.report_at.get_or_insert(now + TOGETHER);
        Some(if reporter.is_urgent() { now } else { at }.max(self.hold_until))
    }

    /// A worker that leaves has ends to report, and can: what has finished is not to be run again elsewhere.
    fn owes_ends(&self) -> bool {
        let State { desired, reporter, .. } = &*self.state;
        reporter.is_urgent() && !self.lapsed && !self.lost && desired.admitted().is_some() && desired.has_view()
    }

    /// Hands the next batch to a task of its own, if it is time.
    pub(super) fn report(&mut self) {
        let Some(admission) = self.state.desired.admitted() else { return };
        if self.report_time().is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.report_at = None;
        let Some(batch) = self.state.reporter.next(StatusGuard { session: self.session, admission }) else { return };
        let (client, writer) = (self.agent.client.clone(), self.writer.clone());
        let txn = batch.txn(&self.agent.keys, &self.agent.id);
        self.tasks.spawn(of_this_process(async move {
            let outcome = match client.txn(txn, WRITE_DEADLINE).await {
                Ok(reply) if reply.succeeded => Outcome::Written(reply.revision),
                Ok(reply) => Outcome::Refused(reply.reads),
                Err(error) => {
                    tracing::debug!(%error, "statuses could not be written");
                    Outcome::Unknown
                }
            };
            let _ = writer.send((batch, outcome)).await;
        }));
        // Tasks that are done are cleared away.
        while self.tasks.try_join_next().is_some() {}
    }

    /// Tells the guard until when work may live, if any does. False if it could not be told. What it knows is not said again: ten
    /// thousand starts at once would fill the socket to it.
    pub(super) fn arm_guard(&mut self) -> bool {
        self.watch_guard(self.agent.clock.now());
        let Some(kill_at) = self.authority.kill_at() else { return false };
        if !self.state.table.is_busy() || self.state.guard_told == Some(kill_at) {
            return true;
        }
        if !self.agent.link.authority(Some(kill_at)) {
            tracing::warn!("the guard does not hear how long work may live");
            return false;
        }
        self.state.guard_told = Some(kill_at);
        true
    }

    /// Everything is to be looked at again.
    pub(super) fn touch_all(&mut self) {
        let names = self.state.desired.names().chain(self.state.table.names()).cloned();
        self.dirty.extend(names);
    }

    /// The revision of the admission that this session has, for the log.
    pub(super) fn admission(&self) -> Option<Revision> {
        self.state.desired.admitted()
    }
}

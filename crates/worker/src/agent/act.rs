//! What follows from the state of a session: asks worker::reconcile about each name that was touched, and carries out the answer.
//!
//! The wheel: worker::reconcile -> **worker::agent** -> worker::driver. It decides nothing itself, and never waits.

use std::{sync::atomic::Ordering, time::Duration};

use evenkeel_model::{self as model, Assignment, Epoch, Observed, ResourceName, Revision, Spec, Status, fit};

use super::{
    follow::Follower,
    serve::Serving,
    table::{HeldBack, Row},
};
use crate::{
    driver::{Driver, Observer, StopOrder, Work},
    protocol::{
        authority::BootTime,
        desired::{Content, DesiredAssignment},
        reconcile::{Action, AdmissionState, Change, Facts, Run, RunState, StopWhy, decide},
    },
};

/// By how much the agent's own kill comes before the guard's.
const BEFORE_GUARD: Duration = Duration::from_millis(100);

impl Serving<'_> {
    /// One turn.
    pub(super) fn act(&mut self) {
        let now = self.agent.clock.now();
        self.watch_guard(now);
        self.watch_authority(now);
        self.watch_answers(now);
        self.follow();
        while let Some(name) = self.dirty.pop_first() {
            self.act_on(&name, now);
        }
        let open = !self.leaving && !self.lost && self.admission().is_some();
        self.agent.gate.open_until(self.authority.tell_at(self.agent.timing.grace).filter(|_| open));
        if !self.state.table.is_busy() {
            self.agent.disarm_guard(self.state);
        }
        self.report();
    }

    /// The guard kills what lives when the time is over that it was told, and an agent that was stopped for a while sees only the ends.
    pub(super) fn watch_guard(&mut self, now: BootTime) {
        if self.state.guard_told.is_some_and(|at| at <= now) {
            self.state.table.lapse();
        }
    }

    /// Sees authority come and go.
    fn watch_authority(&mut self, now: BootTime) {
        let reaches = self.authority.reaches(now, self.agent.timing.grace);
        if reaches {
            self.lapsed = false;
        } else if !self.lapsed {
            let error = self.unproved.as_deref().unwrap_or("no proof was answered");
            tracing::warn!(session = %self.session, error, "authority ends: etcd has not confirmed the session for too long; work is stopped");
            self.lapsed = true;
            // By the time that authority is back, others may have acted.
            self.state.desired.forget_view();
            self.follower = None;
        }
        if let Some(longest) = self.state.table.longest_grace()
            && !self.authority.reaches(now, longest)
        {
            let due = self.shortest_grace_due(now, longest);
            self.dirty.extend(self.state.table.live_with_grace(due));
        }
        let end = self.own_kill_at();
        if self.state.table.has_stopping() && end.is_none_or(|at| at <= now) && self.forced_at != end {
            self.forced_at = end;
            self.state.table.hurry(StopOrder { kill_by: Some(now), why: None });
        }
    }

    /// The shortest grace whose time to be told has come, given that `longest` is due.
    fn shortest_grace_due(&self, now: BootTime, longest: Duration) -> Duration {
        let left = self.authority.kill_at().map_or(Duration::ZERO, |at| at.since(now));
        // Beyond the longest that authority grants, all are told at the same time.
        left.min(longest).min(self.agent.timing.longest_grace())
    }

    /// When the agent itself kills what was told to stop.
    fn own_kill_at(&self) -> Option<BootTime> {
        self.authority.kill_at().map(|at| at.before(BEFORE_GUARD))
    }

    /// When something has to be done although nothing happens.
    pub(super) fn next_time(&self) -> Option<BootTime> {
        let tell = self.state.table.longest_grace().and_then(|grace| self.authority.tell_at(grace));
        let lapse = self.authority.tell_at(self.agent.timing.grace).filter(|_| !self.lapsed);
        let kill = self.own_kill_at().filter(|at| self.state.table.has_stopping() && self.forced_at != Some(*at));
        tell.into_iter().chain(lapse).chain(kill).chain(self.state.table.next_answer()).min()
    }

    /// Lists and follows the assignments as soon as that counts: with authority, and under an admission that was seen.
    fn follow(&mut self) {
        if self.follower.is_none() && !self.lapsed && !self.lost && self.state.desired.needs_list() {
            let agent = self.agent;
            self.follower = Some(Follower::begin(agent.client.clone(), agent.keys.clone(), agent.id.clone()));
        }
    }

    fn admission_state(&self) -> AdmissionState {
        if self.leaving {
            AdmissionState::Leaving
        } else if self.lost || self.admission().is_none() {
            AdmissionState::Unadmitted
        } else if self.state.desired.has_view() {
            AdmissionState::Current
        } else {
            AdmissionState::Stale
        }
    }

    fn act_on(&mut self, name: &ResourceName, now: BootTime) {
        let assigned = self.state.desired.assignment(name).cloned();
        self.reconsider(name, assigned.as_ref());
        let facts = Facts {
            assignment: assigned.as_ref(),
            run: self.state.table.run(name),
            past: self.state.desired.past(name),
            admission: self.admission_state(),
            authority: &self.authority,
            grace: self.agent.timing.grace,
            ran: self.state.desired.ran(name),
            all_answered: self.unanswered.is_empty(),
        };
        let waits_for_drivers = !facts.all_answered && facts.run.is_none() && self.admission_state() == AdmissionState::Current;
        match decide(&facts, now) {
            Some(Action::Start(epoch)) => {
                if let Some(assigned) = assigned {
                    self.start(name, epoch, &assigned, now);
                }
            }
            Some(Action::Rest(epoch)) => self.rest(name, epoch),
            Some(Action::Stop(epoch, why)) => self.stop(name, epoch, why),
            Some(Action::ReportStopped(epoch)) => {
                tracing::info!(resource = %name, %epoch, "reported as stopped");
                self.state.desired.stopped(name, epoch);
                let has_ended = |status: &&Status| status.epoch == epoch && (status.finished || status.phase == Observed::Exited);
                let status = match self.state.reporter.last(name).filter(has_ended).cloned() {
                    // It ended by itself before it was told to: whoever ends its assignment is to know.
                    Some(end) => Status { phase: Observed::Stopped, finished: true, ..end },
                    None => self.status(epoch, self.last_run(name), Observed::Stopped, String::new()),
                };
                self.state.reporter.set(name, status);
            }
            Some(Action::Change(epoch)) => {
                if let Some(assigned) = assigned {
                    self.change(name, epoch, &assigned, now);
                }
            }
            Some(Action::AskRestart(epoch)) => self.ask_restart(name, epoch),
            None if waits_for_drivers && assigned.as_ref().is_some_and(|assigned| assigned.is_to_stop()) => {
                self.show_unanswered(name);
            }
            // It was not started for want of authority.
            None if assigned.is_some() && facts.run.is_none() && self.lapsed => {
                self.deferred.insert(name.clone());
            }
            None => {}
        }
    }

    fn start(&mut self, name: &ResourceName, epoch: Epoch, assigned: &DesiredAssignment, now: BootTime) {
        let kind = assigned.assignment.as_ref().map(|assignment| self.agent.catalog.resolve(name, assignment).0);
        if let Ok(Some(why)) = kind.map(|kind| self.unanswered.get(&kind)) {
            let why = format!("its driver has not said what of an earlier session still lives: {why}");
            let status = self.status(epoch, self.last_run(name), Observed::Starting, why);
            return self.state.reporter.set(name, status);
        }
        // From here on the epoch stands for this content, whether it can be started or not.
        self.state.desired.runs(name, epoch, Some(assigned.content()));
        let resolved = match &assigned.assignment {
            Ok(assignment) => {
                if let Err(why) = self.may_run(name, assignment) {
                    return self.refuse(name, epoch, assigned, &why);
                }
                let (kind, spec) = self.agent.catalog.resolve(name, assignment);
                self.prepare(&kind, &spec).map(|(driver, grace)| (driver, grace, kind, spec))
            }
            Err(error) => Err(format!("its assignment cannot be read: {error}")),
        };
        let (driver, grace, kind, spec) = match resolved {
            Ok(resolved) => resolved,
            Err(message) => return self.fail(name, epoch, assigned, message),
        };
        let content = assigned.content();
        let run = Run { epoch, state: RunState::Live, grace, content, change: Change::Settled };
        let status = self.status(epoch, content, Observed::Starting, String::new());
        let row = Row { work: model::Work::of(&kind, &spec), ..Row::new(run, kind, status) };
        self.state.table.insert(name.clone(), row);
        // The guard knows of the end before there is anything to end.
        if !self.authority.reaches(now, grace) || !self.arm_guard() {
            self.state.table.remove(name);
            self.deferred.insert(name.clone());
            return;
        }
        let observer = Observer::new(name.clone(), epoch, self.agent.events.clone());
        match driver.start(
            Work { name: name.clone(), epoch, spec, gate: self.agent.gate.clone(), log: self.agent.board.log(name, epoch) },
            observer,
        ) {
            Ok(handle) => {
                self.agent.board.starts.fetch_add(1, Ordering::Relaxed);
                if let Some(row) = self.state.table.get_mut(name) {
                    row.handle = Some(handle);
                    self.state.reporter.set(name, row.status.clone());
                }
            }
            Err((error, observer)) => {
                observer.unused();
                self.fail(name, epoch, assigned, error.to_string());
            }
        }
        self.agent.board.show(name, self.state.table.get(name));
    }

    pub(super) fn prepare(&self, kind: &str, spec: &Spec) -> Result<(std::sync::Arc<dyn Driver>, Duration), String> {
        let registry = &self.agent.registry;
        let driver =
            registry.get(kind).ok_or_else(|| format!("kind {kind:?} has no driver here; there are {}", registry.kinds().join(", ")))?;
        let grace = driver.grace(spec).map_err(|error| error.to_string())?;
        Ok((std::sync::Arc::clone(driver), grace))
    }

    /// The worker holds what it is given against the same rules as the leader, whose view of this worker may be of its session before; and it runs
    /// nothing of which the leader would conclude more than its driver keeps.
    fn may_run(&self, name: &ResourceName, assignment: &Assignment) -> Result<(), String> {
        fit::may_run(assignment.needs(), &self.registration.id, &self.registration).map_err(|misfit| misfit.to_string())?;
        let (kind, _) = self.agent.catalog.resolve(name, assignment);
        let holds = self.agent.registry.get(&kind).map_or(assignment.holds, |driver| driver.traits().holds);
        if holds.may_run(assignment.holds) {
            return Ok(());
        }
        let (made_for, here) = (assignment.holds.as_str(), holds.as_str());
        Err(format!("kind {kind} is {here} here, and the assignment was made for {made_for} work; name the kind in the resource"))
    }

    fn refuse(&mut self, name: &ResourceName, epoch: Epoch, assigned: &DesiredAssignment, why: &str) {
        self.fail(name, epoch, assigned, format!("this worker may not run it: {why}"));
        if let Some(row) = self.state.table.get_mut(name) {
            row.held_back = Some(HeldBack::Infeasible);
        }
    }

    /// What was held back is looked at again when that for which it was has changed.
    fn reconsider(&mut self, name: &ResourceName, assigned: Option<&DesiredAssignment>) {
        let Some(assignment) = assigned.and_then(|assigned| assigned.assignment.as_ref().ok()) else { return };
        let Some(row) = self.state.table.get(name) else { return };
        let may_start = match row.held_back {
            None => false,
            Some(HeldBack::Infeasible) => self.may_run(name, assignment).is_ok(),
            Some(HeldBack::Changed) => self.last_run(name).hash == assignment.hash,
        };
        if may_start {
            self.state.table.remove(name);
        }
    }

    /// It cannot be started here, whatever is tried: that is its status until its assignment changes. Another worker may have what this one lacks.
    fn fail(&mut self, name: &ResourceName, epoch: Epoch, assigned: &DesiredAssignment, message: String) {
        tracing::warn!(resource = %name, %epoch, message, "cannot be started");
        let content = assigned.content();
        let status = Status { failures: 1, ..self.status(epoch, content, Observed::Failed, message) };
        self.put(name, Row::resting(content, assigned.kind(), status));
    }

    /// Shows and reports a row of which nothing runs.
    pub(super) fn put(&mut self, name: &ResourceName, row: Row) {
        self.state.reporter.set(name, row.status.clone());
        self.state.table.insert(name.clone(), row);
        self.agent.board.show(name, self.state.table.get(name));
    }

    /// An earlier session has run it to its end: its status stands, and says that it has finished, which earlier versions did not.
    fn rest(&mut self, name: &ResourceName, epoch: Epoch) {
        let stands = self.state.reporter.last(name).filter(|status| status.epoch == epoch).cloned();
        let kind = self.state.desired.assignment(name).map(DesiredAssignment::kind).unwrap_or_default();
        let content = self.last_run(name);
        let status = stands.unwrap_or_else(|| self.status(epoch, content, Observed::Exited, String::new()));
        self.put(name, Row::resting(content, kind, Status { finished: true, ..status }));
    }

    /// It was told to stop, and an earlier agent may have run it: its end is reported once all drivers have answered.
    fn show_unanswered(&mut self, name: &ResourceName) {
        let Some((assigned, (kind, why))) = self.state.desired.assignment(name).zip(self.unanswered.first_key_value()) else { return };
        let stands = self.state.reporter.last(name);
        if self.state.desired.past(name).is_some() || stands.is_some_and(|status| status.phase == Observed::Stopping) {
            return;
        }
        let why = format!("the driver of kind {kind} has not said what of an earlier session still lives: {why}");
        let status = self.status(assigned.epoch, self.last_run(name), Observed::Stopping, why);
        self.state.reporter.set(name, status);
    }

    /// What the epoch of its assignment last ran; empty: that is not known for certain.
    pub(super) fn last_run(&self, name: &ResourceName) -> Content {
        let assigned = self.state.desired.assignment(name);
        assigned.and_then(|assigned| assigned.last_run(self.state.desired.ran(name))).unwrap_or_default()
    }

    pub(super) fn stop(&mut self, name: &ResourceName, epoch: Epoch, why: StopWhy) {
        tracing::info!(resource = %name, %epoch, why = %why, "stopping");
        let kill_by = match why {
            StopWhy::Authority | StopWhy::Unadmitted => self.own_kill_at(),
            StopWhy::Told(_) | StopWhy::Gone | StopWhy::Replaced | StopWhy::Leaving => None,
        };
        let over = self.state.table.stop(name, StopOrder { kill_by, why: Some(why) }, self.agent.clock.unix_ns());
        // Of an assignment that is gone there is nothing to report, and without authority nobody listens.
        if let (StopWhy::Told(_), Some(row)) = (why, self.state.table.get(name)) {
            self.state.reporter.set(name, row.status.clone());
        }
        self.agent.board.show(name, self.state.table.get(name));
        if over {
            self.end(name);
        }
    }

    /// Nothing of a run is left.
    pub(super) fn end(&mut self, name: &ResourceName) {
        self.state.table.remove(name);
        self.agent.board.show(name, None);
        self.dirty.insert(name.clone());
    }

    pub(super) fn status(&self, epoch: Epoch, content: Content, phase: Observed, message: String) -> Status {
        let Content { hash, answers } = content;
        Status { hash, answers: answers_of(epoch, answers), message, ..Status::new(phase, epoch, self.agent.clock.unix_ns()) }
    }
}

/// The revision that a status answers, as it is written: that which created the assignment is not said.
pub(super) fn answers_of(epoch: Epoch, answers: Revision) -> Revision {
    if answers.0 == epoch.0 { Revision::default() } else { answers }
}

//! A world for the planner: a store that only counts revisions, workers that do as they are told, and a leader that carries out each plan
//! after checking it. It finds faults by panicking: it is for tests alone.

use std::{collections::BTreeMap, time::Duration};

use evenkeel_model::{
    Change, Cluster, Decision, Definition, Entry, Epoch, Guard, Hash, Holder, Holds, Intent, IntentKind, Key, Moment, Observed, Phase,
    Plan, Record, Registration, ResourceName, Revision, Standing, Status, WorkerId, Write, check,
};
use evenkeel_planner::{PlannerConfig, plan};

/// See the module.
#[derive(Default)]
pub struct World {
    /// What stands.
    pub cluster: Cluster,
    /// What steers its plans.
    pub config: PlannerConfig,
    /// The leader's clock.
    pub now: Moment,
    revision: i64,
    /// Assignments created, less those that took the place of none: what a person would call moves.
    pub moves: usize,
    /// What is decided and neither written nor refused yet.
    under_way: Vec<Decision>,
    /// What the workers run: of each name the latest epoch, and the hash that it runs with.
    runs: BTreeMap<ResourceName, (Epoch, Hash)>,
}

fn name(text: &str) -> ResourceName {
    ResourceName::new(text).expect("a resource's name")
}

fn worker(text: &str) -> WorkerId {
    WorkerId::new(text).expect("a worker's id")
}

fn status(phase: Observed, epoch: Epoch, failures: u32, finished: bool, message: String) -> Status {
    Status { failures, finished, message, ..Status::new(phase, epoch, 0) }
}

/// Both are about the same worker, and about no resource.
fn about_one_worker(one: &Decision, other: &Decision) -> bool {
    let of =
        |decision: &Decision| decision.writes.iter().find(|write| write.resource().is_none()).and_then(|write| write.worker().cloned());
    of(one).is_some_and(|id| of(other) == Some(id))
}

impl World {
    fn next(&mut self) -> Revision {
        self.revision += 1;
        Revision(self.revision)
    }

    /// Takes in an event, and checks what came of it.
    ///
    /// # Panics
    /// When the cluster violates an invariant.
    pub fn apply(&mut self, event: Change) {
        self.cluster.apply(event, self.now);
        assert_eq!(check::check_cluster(&self.cluster), []);
    }

    /// Wants a resource.
    pub fn put(&mut self, definition: Definition) {
        let revision = self.next();
        let unit = self.cluster.unit(definition.name.as_str());
        let name = definition.name.clone();
        let old = unit.and_then(|u| u.record.as_ref()).map(|r| r.value.clone());
        let value = match old {
            Some(old) => old.with_definition(definition),
            None => {
                Record { id: 1, creation_time: 1, assigned_node: "".into(), source: "".into(), finished: None, failed: None, definition }
            }
        };
        self.apply(Change::at(revision, Entry::Resource(name, Some(value))));
    }

    /// Wants a resource no more.
    pub fn delete(&mut self, text: &str) {
        self.apply(Change::gone(Key::Resource(name(text))));
    }

    /// Another hand writes what cannot be read.
    pub fn garble(&mut self, text: &str) {
        let (entry, error) = Key::Resource(name(text)).read(b"garbage");
        let revision = self.next();
        self.apply(Change { error, ..Change::at(revision, entry) });
    }

    /// A new session of a worker; an earlier one is gone.
    pub fn join(&mut self, registration: Registration) {
        let session = self.next();
        self.apply(Change::gone(Key::Worker(registration.id.clone())));
        self.apply(Change::at(session, Entry::Worker(registration.id.clone(), Some(registration))));
    }

    /// The worker's session ends without a word.
    pub fn crash(&mut self, id: &str) {
        self.apply(Change::gone(Key::Worker(worker(id))));
    }

    /// The worker stops everything and says so.
    ///
    /// # Panics
    /// Never: a worker that is ready is registered.
    pub fn leave(&mut self, id: &str) {
        let Some(w) = self.cluster.worker(id) else { return };
        if w.standing() != Standing::Ready {
            return;
        }
        let (session, registration) = *w.registered.clone().expect("registered");
        let released = Registration { released: true, ..registration };
        let revision = self.next();
        self.apply(Change::over(Revision(session.0), revision, Entry::Worker(worker(id), Some(released))));
    }

    /// A person wants something of a worker, or nothing more.
    pub fn want(&mut self, id: &str, intent: Option<IntentKind>) {
        let intent = intent.map(|kind| Intent { kind, since: 0 });
        let revision = self.next();
        self.apply(Change::at(revision, Entry::Intent(worker(id), intent)));
    }

    /// A person waits no longer for the workers that are gone.
    pub fn release_brake(&mut self) {
        let gone = self.cluster.workers().filter(|(_, w)| matches!(w.standing(), Standing::Lost | Standing::Returning));
        let sessions = gone.filter_map(|(id, w)| Some((id.clone(), w.admission.as_ref()?.value.session))).collect();
        let revision = self.next();
        self.apply(Change::at(revision, Entry::WrittenOff(Some(sessions))));
    }

    /// Every live worker stops what it was told to stop, and takes what was changed in place.
    ///
    /// # Panics
    /// When the cluster violates an invariant.
    pub fn acknowledge(&mut self) {
        for name in self.all_untaken() {
            self.take(name.as_str());
        }
        let stopping: Vec<ResourceName> = self.cluster.agenda().stopping.keys().cloned().collect();
        for name in stopping {
            let unit = self.cluster.unit(name.as_str()).expect("unit").clone();
            for holder in unit.holders.iter().filter(|h| matches!(h.held.phase, Phase::Stop { .. })) {
                let standing = self.cluster.worker(holder.worker.as_str()).map(|w| w.standing());
                if standing == Some(Standing::Ready) {
                    let end = holder.observed().filter(|status| status.finished);
                    let (finished, message) = end.map_or((false, String::new()), |end| (true, end.message.clone()));
                    let epoch = holder.held.epoch;
                    self.say(&name, &holder.worker, status(Observed::Stopped, epoch, 0, finished, message));
                }
            }
        }
    }

    fn say(&mut self, name: &ResourceName, id: &WorkerId, status: Status) {
        let hash = self.runs.get(name).filter(|(epoch, _)| *epoch == status.epoch).map(|(_, hash)| *hash);
        let status = Status { hash: hash.unwrap_or_default(), ..status };
        let revision = self.next();
        self.apply(Change::at(revision, Entry::Status(id.clone(), name.clone(), Some(status))));
    }

    /// The worker that runs a resource says how it does there, if that worker lives and the resource has not come to its end.
    pub fn observe(&mut self, text: &str, phase: Observed, failures: u32, message: &str) {
        if let Some((id, epoch)) = self.runs_on(text) {
            self.say(&name(text), &id, status(phase, epoch, failures, false, message.to_owned()));
        }
    }

    /// A resource ends by itself, and its restart policy leaves it so. It may have been told to stop a moment ago.
    pub fn exit(&mut self, text: &str, message: &str) {
        if let Some((id, epoch)) = self.runs_on(text) {
            self.say(&name(text), &id, status(Observed::Exited, epoch, 0, true, message.to_owned()));
        }
    }

    /// Its worker takes the change that it was given; where nothing of it runs any more, that needs another epoch.
    pub fn take(&mut self, text: &str) {
        let Some((id, holder)) = self.untaken(text) else { return };
        let before = holder.observed().cloned().unwrap_or_else(|| Status::new(Observed::Running, holder.held.epoch, 0));
        if before.finished || matches!(before.phase, Observed::Exited | Observed::Failed | Observed::Stopped) {
            return self.refuse_change(text);
        }
        self.runs.insert(name(text), (holder.held.epoch, holder.held.hash));
        self.say(&name(text), &id, Status { restart_for: Hash::default(), ..before });
    }

    /// Its worker cannot take the change that it was given without a restart.
    pub fn refuse_change(&mut self, text: &str) {
        let Some((id, holder)) = self.untaken(text) else { return };
        let before = holder.observed().cloned().unwrap_or_else(|| Status::new(Observed::Running, holder.held.epoch, 0));
        self.say(&name(text), &id, Status { restart_for: holder.held.hash, ..before });
    }

    /// A live worker is to run it with another spec than it does, and has not said that it cannot.
    fn untaken(&self, text: &str) -> Option<(WorkerId, Holder)> {
        let holder = self.cluster.unit(text)?.holders.first()?;
        let is_ready = self.cluster.worker(holder.worker.as_str()).is_some_and(|w| w.standing() == Standing::Ready);
        let differs = self.runs.get(text).is_some_and(|runs| *runs != (holder.held.epoch, holder.held.hash));
        (is_ready && holder.held.runs() && differs && !holder.needs_restart()).then(|| (holder.worker.clone(), holder.clone()))
    }

    fn all_untaken(&self) -> Vec<ResourceName> {
        let names = self.cluster.units_after(None).map(|(name, _)| name);
        names.filter(|name| self.untaken(name.as_str()).is_some()).cloned().collect()
    }

    /// What is written is what workers go by.
    fn write(&mut self, write: &Write, revision: Revision) {
        if let (Some(name), Some(assignment), true) = (write.resource(), write.assignment(), write.creates_assignment()) {
            self.runs.insert(name.clone(), (Epoch(revision.0), assignment.hash));
        }
        self.apply(write.change(revision));
    }

    /// Where it may run, told to stop or not: a live worker that has not said that it ended.
    fn runs_on(&self, text: &str) -> Option<(WorkerId, Epoch)> {
        let holder = self.cluster.unit(text)?.holders.first()?;
        let is_ready = self.cluster.worker(holder.worker.as_str()).is_some_and(|w| w.standing() == Standing::Ready);
        let is_over = holder.observed().is_some_and(|status| status.finished || status.phase == Observed::Stopped);
        (is_ready && !is_over).then(|| (holder.worker.clone(), holder.held.epoch))
    }

    /// Lets time pass.
    pub fn pass(&mut self, span: Duration) {
        self.now = self.now.after(span);
    }

    /// Plans, checks the plan, and carries it out.
    ///
    /// # Panics
    /// When the plan or what comes of it violates an invariant.
    pub fn turn(&mut self) -> Plan {
        let plan = plan(&self.cluster, self.now, &self.config);
        assert_eq!(check::check_plan(&self.cluster, &plan, self.now, self.config.wait), []);
        for action in &plan.actions {
            let decision = Decision::of(action, &self.cluster).expect("a plan builds on what is known");
            let revision = self.next();
            self.moves += usize::from(matches!(action, evenkeel_model::Action::Move { .. }));
            for write in &decision.writes {
                self.write(write, revision);
            }
        }
        plan
    }

    /// Plans, checks the plan, and reserves what it decides; [`World::finish`] says what becomes of each.
    ///
    /// # Panics
    /// When the plan or a reservation violates an invariant.
    pub fn decide(&mut self) {
        let plan = plan(&self.cluster, self.now, &self.config);
        assert_eq!(check::check_plan(&self.cluster, &plan, self.now, self.config.wait), []);
        for action in &plan.actions {
            let decision = Decision::of(action, &self.cluster).expect("a plan builds on what is known");
            // Of a worker, too, one thing at a time is decided.
            if action.resource().is_some() || !self.under_way.iter().any(|other| about_one_worker(other, &decision)) {
                self.cluster.reserve(&decision.writes, self.now);
                self.under_way.push(decision);
            }
        }
        assert_eq!(check::check_cluster(&self.cluster), []);
    }

    /// A person wants something of a worker, which is reserved until [`World::finish`].
    pub fn ask(&mut self, id: &str, intent: Option<IntentKind>) {
        let entry = Entry::Intent(worker(id), intent.map(|kind| Intent { kind, since: 0 }));
        let decision = Decision { guards: Vec::new(), writes: vec![evenkeel_model::Write::new(entry)] };
        if !self.under_way.iter().any(|other| about_one_worker(other, &decision)) {
            self.cluster.reserve(&decision.writes, self.now);
            self.under_way.push(decision);
        }
        assert_eq!(check::check_cluster(&self.cluster), []);
    }

    /// What becomes of one of the decisions under way: it is written if what it was made by is still so and etcd takes it, else nothing comes of it.
    ///
    /// # Panics
    /// When the cluster violates an invariant.
    pub fn finish(&mut self, which: usize, is_taken: bool) {
        if self.under_way.is_empty() {
            return;
        }
        let decision = self.under_way.swap_remove(which % self.under_way.len());
        if is_taken && decision.guards.iter().all(|guard| self.holds(guard)) {
            let revision = self.next();
            for write in &decision.writes {
                self.write(write, revision);
            }
        }
        self.cluster.release(&decision.writes, self.now);
        assert_eq!(check::check_cluster(&self.cluster), []);
    }

    /// Every decision under way comes to its end.
    pub fn finish_all(&mut self) {
        while !self.under_way.is_empty() {
            self.finish(0, true);
        }
        assert_eq!(self.cluster.reserved().count(), 0);
    }

    fn holds(&self, guard: &Guard) -> bool {
        let (Guard::Modified(key, revision) | Guard::Created(key, revision)) = guard;
        let is = match key {
            Key::Resource(name) => self.cluster.unit(name.as_str()).and_then(|u| u.record.as_ref()).map(|r| r.revision),
            Key::Assignment(worker, name) => {
                let unit = self.cluster.unit(name.as_str());
                unit.and_then(|u| u.holders.iter().find(|h| h.worker == *worker)).map(|h| Revision(h.held.epoch.0))
            }
            Key::Admission(id) => self.cluster.worker(id.as_str()).and_then(|w| w.admission.as_ref()).map(|a| a.revision),
            Key::Worker(id) => self.cluster.worker(id.as_str()).and_then(|w| w.registered.as_ref()).map(|r| Revision(r.0.0)),
            other => panic!("no decision has a condition on {other:?}"),
        };
        is.unwrap_or_default() == *revision
    }

    /// Lets time pass and workers answer until nothing is left to do; gives the last, empty plan.
    ///
    /// # Panics
    /// When that does not come to be.
    pub fn settle(&mut self) -> Plan {
        for _ in 0..200 {
            let plan = self.turn();
            // Whoever is not back by now does not come back, and a person says so.
            if plan.brake.is_some() && plan.actions.is_empty() {
                self.release_brake();
            } else if plan.actions.is_empty() && plan.wake.is_none() && !self.is_any_stopping() && self.all_untaken().is_empty() {
                return plan;
            }
            self.acknowledge();
            if plan.actions.is_empty() {
                self.pass(self.config.wait);
            }
        }
        panic!("does not settle: {:?}", self.cluster.agenda());
    }

    /// Something that was told to stop may be heard of again: not what a worker held loosely that is gone.
    fn is_any_stopping(&self) -> bool {
        let is_open = |holder: &Holder| {
            let standing = self.cluster.worker(holder.worker.as_str()).map(|w| w.standing());
            holder.held.holds == Holds::Loose && matches!(standing, Some(Standing::Lost | Standing::Returning))
        };
        let unit = |name: &ResourceName| self.cluster.unit(name.as_str());
        self.cluster.agenda().stopping.keys().filter_map(unit).any(|unit| !unit.holders.iter().all(is_open))
    }

    /// Where a resource is, or is going.
    #[must_use]
    pub fn home(&self, text: &str) -> Option<String> {
        self.cluster.unit(text).and_then(|u| u.home()).map(ToString::to_string)
    }

    /// The payload of each ready worker.
    #[must_use]
    pub fn payloads(&self) -> Vec<u64> {
        self.cluster.workers().filter(|(_, w)| w.standing() == Standing::Ready).map(|(_, w)| w.payload).collect()
    }
}

//! Finds every violation of an invariant: in a Cluster (what the store holds, and the totals that are kept of it), and in a Plan before
//! it is written. An action that violates anything is not carried out, and the others are.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    Action, AdmitReason, Agenda, ClassId, Classes, Cluster, End, EndReason, Epoch, Holds, IntentKind, Moment, PlaceReason, Plan, Rankings,
    ResourceName, Session, Standing, StopReason, Unit, Worker, WorkerId, ends, fit,
};

/// Something that must never be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// I1: two assignments stand for one resource.
    #[error("{0} is assigned to {1} and to {2}")]
    TwoOwners(ResourceName, WorkerId, WorkerId),
    /// A cached total differs from what it sums up.
    #[error("{0} does not agree with what it is made from")]
    Total(&'static str),
    /// I1: the plan assigns what is assigned already.
    #[error("the plan places {0}, which {1} holds")]
    PlacedWhileHeld(ResourceName, WorkerId),
    /// I1: the plan ends an assignment whose end is not known.
    #[error("the plan ends {0} on {1}, where it may still run")]
    EndedWhileOpen(ResourceName, WorkerId),
    /// The plan speaks of an assignment that does not stand.
    #[error("the plan speaks of {0} on {1} with epoch {2}, which does not stand")]
    NotHeld(ResourceName, WorkerId, Epoch),
    /// A stop is final for its epoch.
    #[error("the plan stops {0} on {1} again")]
    StoppedAgain(ResourceName, WorkerId),
    /// A stop is final for its epoch: nothing is changed in what is told to stop.
    #[error("the plan changes {0} on {1} in place, which was told to stop")]
    UpdatedWhileStopping(ResourceName, WorkerId),
    /// The plan gives work another spec under the same epoch that cannot take it so.
    #[error("the plan changes {0} on {1} in place, which cannot take it without a restart")]
    NotInPlace(ResourceName, WorkerId),
    /// The plan places a resource where it may not run.
    #[error("the plan places {0} on {1}, which may not run it")]
    Misplaced(ResourceName, WorkerId),
    /// The plan places a resource that has finished.
    #[error("the plan places {0} on {1}, and it has finished")]
    RunAgain(ResourceName, WorkerId),
    /// The plan takes a resource for finished of which its worker says no such thing.
    #[error("the plan takes {0} on {1} for finished, which it is not known to be")]
    NotFinished(ResourceName, WorkerId),
    /// The plan moves a resource because it fails, to nowhere, or to where it is.
    #[error("the plan stops {0}, which fails on {1}, and names no other worker for it")]
    TriedNowhere(ResourceName, WorkerId),
    /// The plan has two actions for one resource.
    #[error("the plan has two actions for {0}")]
    TwoActions(ResourceName),
    /// The plan has an action for a resource of which something is decided already.
    #[error("the plan has an action for {0}, with which another is under way")]
    UnderWay(ResourceName),
    /// The plan admits a session that may not be admitted.
    #[error("the plan admits session {1} of {0} ({2:?}), which may not be")]
    Admitted(WorkerId, Session, AdmitReason),
    /// The plan lets something follow on what only a fence ends where nothing shows its epoch to the fence.
    #[error("the plan moves {0}, which only its fence ends, to {1}, which is not fenced")]
    Unfenced(ResourceName, WorkerId),
    /// The plan forgets a worker that may still run something.
    #[error("the plan forgets {0}, which may still run something")]
    Forgotten(WorkerId),
}

/// Checks a cluster: one owner, and every cached total.
#[must_use]
pub fn check_cluster(cluster: &Cluster) -> Vec<Violation> {
    let mut recount = Recount::default();
    for (name, unit) in cluster.units_after(None) {
        recount.unit(cluster, name, unit);
        recount.counted(cluster, name);
    }
    for name in cluster.reserved().filter(|name| cluster.unit(name.as_str()).is_none()) {
        recount.counted(cluster, name);
    }
    for (id, worker) in cluster.workers() {
        recount.worker(id, worker);
    }
    recount.compare(cluster)
}

/// Every total of a cluster, made anew from what it sums up.
#[derive(Default)]
struct Recount {
    /// What is at home, and what is assigned.
    workers: BTreeMap<WorkerId, Worker>,
    classes: BTreeMap<ClassId, usize>,
    agenda: Agenda,
    rankings: Rankings,
    closed: BTreeSet<WorkerId>,
    fenced: BTreeMap<Box<str>, usize>,
    relative: usize,
    /// How many have finished, and of how many it is remembered where they have failed.
    noted: (usize, usize),
    found: Vec<Violation>,
}

impl Recount {
    fn expect(&mut self, holds: bool, what: &'static str) {
        if !holds {
            self.found.push(Violation::Total(what));
        }
    }

    fn unit(&mut self, cluster: &Cluster, name: &ResourceName, unit: &Unit) {
        if let [first, second, ..] = unit.holders.as_slice() {
            self.found.push(Violation::TwoOwners(name.clone(), first.worker.clone(), second.worker.clone()));
        }
        for holder in &unit.holders {
            self.workers.entry(holder.worker.clone()).or_default().names.insert(name.clone());
        }
        if let Some((home, burden)) = unit.burden() {
            self.workers.entry(home).or_default().payload += burden.weight;
        }
        let pattern = unit.class.and_then(|class| cluster.classes().pattern(class));
        self.expect(pattern.map(Classes::key_of) == unit.definition().map(Classes::key_of), "a resource's class");
        self.noted.0 += usize::from(unit.is_finished());
        self.noted.1 += usize::from(unit.has_failed());
        if let Some(class) = unit.class {
            *self.classes.entry(class).or_default() += 1;
        }
    }

    /// One name with what is reserved of it.
    fn counted(&mut self, cluster: &Cluster, name: &ResourceName) {
        let counted = cluster.counted(name);
        if let Some((home, burden)) = counted.burden() {
            self.workers.entry(home).or_default().take_up(burden);
        }
        self.agenda.put(name, cluster.due_of(name));
        self.relative += usize::from(counted.definition().is_some_and(|d| d.rules().is_relative()));
    }

    fn worker(&mut self, id: &WorkerId, worker: &Worker) {
        let sum = self.workers.remove(id).unwrap_or_default();
        self.expect(worker.payload == sum.payload, "a worker's payload");
        self.expect((worker.load, worker.homes, &worker.movable) == (sum.load, sum.homes, &sum.movable), "a worker's load");
        self.expect(worker.names == sum.names, "a worker's list of names");
        let standing = worker.standing();
        let is_gone = matches!(standing, Standing::Lost | Standing::Returning);
        self.expect(worker.gone_since.is_some() == is_gone, "the moment of a worker's loss");
        self.expect(
            worker.draining_since.is_some() == worker.intent_kind().is_some_and(IntentKind::is_drain),
            "the moment of a worker's drain",
        );
        self.expect(worker.shape.is_some() == worker.is_open(), "a worker's shape");
        if let Some(capacity) = worker.ready_capacity() {
            self.rankings.enter(capacity);
        }
        if let Some(registration) = worker.registration().filter(|_| worker.is_open()) {
            self.rankings.insert(id, registration, worker.load);
        }
        if worker.is_closed() {
            self.closed.insert(id.clone());
        }
        for kind in crate::cluster::fenced_kinds(worker.registration()) {
            *self.fenced.entry(kind.into()).or_default() += 1;
        }
        self.agenda.put_worker(id, worker);
    }

    fn compare(mut self, cluster: &Cluster) -> Vec<Violation> {
        self.expect(self.workers.is_empty(), "the list of workers");
        self.expect(self.rankings.agrees_with(cluster.rankings()), "the rankings");
        let classes = cluster.classes();
        let each = self.classes.iter().all(|(class, count)| classes.resources(*class) == *count);
        self.expect(each && classes.len() == self.classes.len(), "the number of resources of a class");
        self.expect(self.closed == *cluster.closed(), "the workers on which nothing can be placed");
        self.expect(self.fenced == *cluster.fenced(), "the number of workers that hold a kind by a fence");
        let relations = (self.relative > 0).then(|| cluster.relations_anew());
        self.expect(relations.as_ref() == cluster.relations(), "the relations");
        self.expect(cluster.tasks().is_true(), "the tasks");
        self.expect(self.agenda == *cluster.agenda(), "the agenda");
        self.expect(self.noted == (cluster.finished(), cluster.failed()), "the number of resources that have finished or failed");
        self.found
    }
}

/// Checks a plan against the cluster that it was made from; `wait` is G.
#[must_use]
pub fn check_plan(cluster: &Cluster, plan: &Plan, now: Moment, wait: Duration) -> Vec<Violation> {
    flaws(cluster, plan, now, wait).into_iter().flat_map(|flaw| flaw.violations).collect()
}

/// Takes out of a plan what violates an invariant, and returns that. What is left can be carried out: no action builds on another but the end of
/// an assignment, which is one with what follows it, and what a session may run that is admitted.
#[must_use = "what was taken out is a bug of the planner, and belongs into the log"]
pub fn take_out_flaws(cluster: &Cluster, plan: &mut Plan, now: Moment, wait: Duration) -> Vec<Flaw> {
    let found = flaws(cluster, plan, now, wait);
    // Of two actions for one resource nobody knows which is meant.
    let subjects: BTreeSet<ResourceName> = found.iter().filter_map(|flaw| flaw.action.resource()).cloned().collect();
    plan.actions.retain(|action| {
        let is_flawed = found.iter().any(|flaw| flaw.action == *action);
        !is_flawed && !action.resource().is_some_and(|name| subjects.contains(name))
    });
    found
}

/// An action that violates invariants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// Which.
    pub action: Action,
    /// What it violates.
    pub violations: Vec<Violation>,
}

fn flaws(cluster: &Cluster, plan: &Plan, now: Moment, wait: Duration) -> Vec<Flaw> {
    let mut checker = PlanChecker { cluster, now, wait, seen: BTreeSet::new(), admitted: BTreeSet::new(), found: Vec::new() };
    let mut flaws = Vec::new();
    for action in &plan.actions {
        checker.action(action);
        let violations = std::mem::take(&mut checker.found);
        if !violations.is_empty() {
            flaws.push(Flaw { action: action.clone(), violations });
        }
    }
    flaws
}

struct PlanChecker<'a> {
    cluster: &'a Cluster,
    now: Moment,
    wait: Duration,
    seen: BTreeSet<&'a ResourceName>,
    admitted: BTreeSet<&'a WorkerId>,
    found: Vec<Violation>,
}

impl<'a> PlanChecker<'a> {
    fn action(&mut self, action: &'a Action) {
        if let Some(name) = action.resource() {
            if !self.seen.insert(name) {
                self.found.push(Violation::TwoActions(name.clone()));
            }
            if self.cluster.is_reserved(name) {
                self.found.push(Violation::UnderWay(name.clone()));
            }
        }
        match action {
            Action::Admit { worker, session, reason } => self.admit(worker, *session, *reason),
            Action::Forget { worker, .. } => self.forget(worker),
            Action::Place { resource, worker, reason } => {
                if let Some(holder) = self.cluster.unit(resource.as_str()).and_then(|u| u.holders.first()) {
                    self.found.push(Violation::PlacedWhileHeld(resource.clone(), holder.worker.clone()));
                }
                self.place(resource, worker, *reason == PlaceReason::Stays);
            }
            Action::Stop { resource, worker, epoch, reason, to } => {
                if *reason == StopReason::Failing && to.as_ref().is_none_or(|to| to == worker) {
                    self.found.push(Violation::TriedNowhere(resource.clone(), worker.clone()));
                }
                self.stop(resource, worker, *epoch);
            }
            Action::Update { resource, worker, epoch } => self.update(resource, worker, *epoch),
            Action::Finish { resource, worker, epoch, .. } => self.finish(resource, worker, *epoch),
            Action::Move { resource, from, epoch, to, reason } => {
                self.end(resource, from, *epoch);
                self.place(resource, to, false);
                if *reason == EndReason::Fenced && !self.is_fenced(resource, to) {
                    self.found.push(Violation::Unfenced(resource.clone(), to.clone()));
                }
            }
            Action::End { resource, worker, epoch, .. } => self.end(resource, worker, *epoch),
            Action::View { .. } => {}
        }
    }

    fn admit(&mut self, id: &'a WorkerId, session: Session, reason: AdmitReason) {
        self.admitted.insert(id);
        let worker = self.cluster.worker(id.as_str());
        let allowed = worker.is_some_and(|worker| {
            let Some((registered, registration)) = worker.registered.as_deref() else { return false };
            let is_live = *registered == session && !registration.released;
            let admission = worker.admission.as_deref().map(|a| &a.value);
            // A session whose registration cannot be used goes on with nothing: its authority may be longer than a leader waits.
            let may_inherit = registration.refused.is_none() || (worker.names.is_empty() && worker.homes == 0);
            is_live
                && may_inherit
                && match reason {
                    AdmitReason::New => admission.is_none(),
                    AdmitReason::Attested => admission.is_some_and(|a| registration.attests_end_of(a, session)),
                    // The fence lets an epoch in again that it has seen: a session that nobody attests gets others.
                    AdmitReason::Waited => {
                        worker.authority_ends(self.wait).is_some_and(|until| until <= self.now) && !self.has_fenced(id, worker)
                    }
                }
        });
        if !allowed {
            self.found.push(Violation::Admitted(id.clone(), session, reason));
        }
    }

    fn has_fenced(&self, id: &WorkerId, worker: &Worker) -> bool {
        let holders = worker.names.iter().filter_map(|name| self.cluster.unit(name.as_str())).flat_map(|unit| &unit.holders);
        holders.filter(|holder| holder.worker == *id).any(|holder| holder.held.holds == Holds::Fenced)
    }

    fn is_fenced(&self, name: &ResourceName, id: &WorkerId) -> bool {
        let kind = self.cluster.unit(name.as_str()).and_then(Unit::definition).map(|definition| &*definition.kind);
        let registration = self.cluster.worker(id.as_str()).and_then(Worker::registration);
        kind.zip(registration).is_some_and(|(kind, registration)| registration.driver(kind).holds == Holds::Fenced)
    }

    fn forget(&mut self, id: &WorkerId) {
        let worker = self.cluster.worker(id.as_str());
        let allowed = worker.is_some_and(|worker| match worker.standing() {
            Standing::Released => true,
            Standing::Lost => worker.names.is_empty() && worker.authority_ends(self.wait).is_some_and(|until| until <= self.now),
            Standing::Absent | Standing::New | Standing::Returning | Standing::Ready | Standing::Leaving => false,
        });
        if !allowed {
            self.found.push(Violation::Forgotten(id.clone()));
        }
    }

    /// One that was there before may be cordoned meanwhile; one that is new to the resource may not.
    fn place(&mut self, name: &ResourceName, id: &WorkerId, stays: bool) {
        let unit = self.cluster.unit(name.as_str());
        if unit.is_some_and(Unit::is_finished) {
            self.found.push(Violation::RunAgain(name.clone(), id.clone()));
        }
        let definition = unit.and_then(|u| u.definition());
        let place = self.cluster.worker(id.as_str()).and_then(|w| w.place(id));
        let fits = match (definition, place) {
            (Some(definition), Some(place)) => {
                let may = fit::may_run(definition.needs(), id, place.registration).is_ok();
                let shares = self.cluster.shares_fence(definition, place.registration).is_ok();
                may && shares && (stays || place.intent.is_none())
            }
            _ => false,
        };
        if !fits {
            self.found.push(Violation::Misplaced(name.clone(), id.clone()));
        }
    }

    fn stop(&mut self, name: &ResourceName, id: &WorkerId, epoch: Epoch) {
        match self.holder(name, id, epoch) {
            None => self.found.push(Violation::NotHeld(name.clone(), id.clone(), epoch)),
            Some(holder) if !holder.held.runs() => self.found.push(Violation::StoppedAgain(name.clone(), id.clone())),
            Some(_) => {}
        }
    }

    fn update(&mut self, name: &ResourceName, id: &WorkerId, epoch: Epoch) {
        let Some(holder) = self.holder(name, id, epoch) else {
            return self.found.push(Violation::NotHeld(name.clone(), id.clone(), epoch));
        };
        if !holder.held.runs() {
            return self.found.push(Violation::UpdatedWhileStopping(name.clone(), id.clone()));
        }
        let unit = self.cluster.unit(name.as_str());
        let definition = unit.filter(|unit| !unit.is_finished()).and_then(Unit::definition);
        if !definition.is_some_and(|definition| holder.takes_in_place(self.cluster.worker(id.as_str()), definition)) {
            self.found.push(Violation::NotInPlace(name.clone(), id.clone()));
        }
    }

    fn finish(&mut self, name: &ResourceName, id: &WorkerId, epoch: Epoch) {
        let noted = self.cluster.unit(name.as_str()).and_then(Unit::unnoted_finish);
        if noted.is_none_or(|(holder, _)| holder.worker != *id || holder.held.epoch != epoch) {
            self.found.push(Violation::NotFinished(name.clone(), id.clone()));
        }
    }

    fn end(&mut self, name: &ResourceName, id: &WorkerId, epoch: Epoch) {
        let Some(holder) = self.holder(name, id, epoch) else {
            return self.found.push(Violation::NotHeld(name.clone(), id.clone(), epoch));
        };
        let definition = self.cluster.unit(name.as_str()).and_then(Unit::definition);
        let end = ends::end_of(holder, self.cluster.worker(id.as_str()), definition, self.now, self.wait);
        // A session that the same plan admits may run what is assigned to it, however surely the one before has ended.
        let revived = self.admitted.contains(id) && !holder.is_stopped();
        if revived || !matches!(end, End::Known(_)) {
            self.found.push(Violation::EndedWhileOpen(name.clone(), id.clone()));
        }
    }

    fn holder(&self, name: &ResourceName, id: &WorkerId, epoch: Epoch) -> Option<&'a crate::Holder> {
        let unit = self.cluster.unit(name.as_str())?;
        unit.holders.iter().find(|h| h.worker == *id && h.held.epoch == epoch && epoch != Epoch::default())
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;

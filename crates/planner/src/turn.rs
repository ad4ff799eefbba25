//! One plan, phase by phase: workers that come and go, ends that are known, what is not as wanted, what is placed nowhere, balance.

use std::collections::{BTreeMap, BTreeSet};

use evenkeel_model::{
    Action, AdmitReason, Cluster, Definition, End, EndReason, Epoch, Holder, Moment, Ownership, Pending, PlaceReason, Plan, Record,
    ResourceName, Standing, StopReason, Subject, Undone, Unit, Worker, WorkerId, ends, fit,
};

use crate::{PlannerConfig, choose, loads::Loads, rebalance};

/// A plan in the making.
pub(crate) struct Turn<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) now: Moment,
    pub(crate) config: &'a PlannerConfig,
    pub(crate) loads: Loads<'a>,
    pub(crate) plan: Plan,
    /// Workers of which the plan admits a session: what is assigned to them may run again.
    admitted: BTreeSet<WorkerId>,
    /// Resources that the plan has dealt with.
    seen: BTreeSet<ResourceName>,
    /// Why a class of resources that looks the same to the planner fits nowhere, so that each class is tried once.
    hopeless: BTreeMap<FitClass, Pending>,
}

/// What distinguishes resources when a worker is chosen.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct FitClass {
    kind: Box<str>,
    require: String,
    pin: Option<WorkerId>,
    weight: u32,
}

impl FitClass {
    fn of(definition: &Definition) -> Self {
        Self {
            kind: definition.kind.clone(),
            require: definition.require.to_string(),
            pin: definition.pin.clone(),
            weight: definition.weight,
        }
    }
}

impl<'a> Turn<'a> {
    pub(crate) fn new(cluster: &'a Cluster, now: Moment, config: &'a PlannerConfig) -> Self {
        Self {
            cluster,
            now,
            config,
            loads: Loads::new(cluster),
            plan: Plan::default(),
            admitted: BTreeSet::new(),
            seen: BTreeSet::new(),
            hopeless: BTreeMap::new(),
        }
    }

    pub(crate) fn run(mut self) -> Plan {
        for id in &self.cluster.agenda().workers {
            self.worker(id);
        }
        for name in &self.cluster.agenda().attention {
            self.attend(name);
        }
        for name in &self.cluster.agenda().unplaced {
            self.place(name);
        }
        if self.recovery_is_done() {
            rebalance::rebalance(&mut self);
        }
        self.plan
    }

    pub(crate) fn is_full(&self) -> bool {
        self.plan.actions.len() >= self.config.max_actions
    }

    /// Recovery goes first: as long as anything waits for its end, a balance would be struck too early.
    fn recovery_is_done(&self) -> bool {
        let waits = |id: &WorkerId| self.cluster.worker(id.as_str()).is_some_and(|w| !w.names.is_empty());
        !self.is_full() && !self.cluster.agenda().workers.iter().any(waits)
    }

    fn undone(&mut self, subject: Subject, reason: Pending) {
        self.plan.undone.push(Undone { subject, reason });
    }

    fn worker(&mut self, id: &'a WorkerId) {
        let Some(worker) = self.cluster.worker(id.as_str()) else { return };
        match worker.standing() {
            Standing::Ready => {}
            Standing::New => self.admit(id, worker, AdmitReason::New),
            Standing::Returning => self.readmit(id, worker),
            Standing::Released => {
                self.plan.actions.push(Action::Forget { worker: id.clone(), reason: EndReason::Released });
                self.evacuate(id, worker, EndReason::Released);
            }
            Standing::Absent => self.evacuate(id, worker, EndReason::Released),
            Standing::Lost => self.lost(id, worker),
        }
    }

    fn admit(&mut self, id: &WorkerId, worker: &Worker, reason: AdmitReason) {
        if let Some((session, _)) = worker.registered.as_deref() {
            self.admitted.insert(id.clone());
            self.plan.actions.push(Action::Admit { worker: id.clone(), session: *session, reason });
        }
    }

    /// Admission of a new session while an earlier one is the admitted one: DESIGN.md section 5, rule 5.
    fn readmit(&mut self, id: &WorkerId, worker: &Worker) {
        let (Some(admission), Some((session, registration))) = (worker.admission.as_deref(), worker.registered.as_deref()) else { return };
        let attested = registration.attests_end_of(&admission.value, *session);
        if attested && !registration.released {
            return self.admit(id, worker, AdmitReason::Attested);
        }
        match self.wait_of(worker) {
            Some(until) => self.wait_for(id, until),
            // It left again before it was ever admitted; its key goes with its lease, and then it is lost.
            None if registration.released => {}
            None => self.admit(id, worker, AdmitReason::Waited),
        }
    }

    fn lost(&mut self, id: &'a WorkerId, worker: &'a Worker) {
        match self.wait_of(worker) {
            Some(until) => self.wait_for(id, until),
            None if worker.names.is_empty() => {
                self.plan.actions.push(Action::Forget { worker: id.clone(), reason: EndReason::Waited });
            }
            None => self.evacuate(id, worker, EndReason::Waited),
        }
    }

    /// When the authority of the admitted session that is gone has surely ended; none: it has.
    fn wait_of(&self, worker: &Worker) -> Option<Moment> {
        let least = self.config.wait;
        let until = worker.authority_ends(least).unwrap_or_else(|| self.now.after(worker.wait(least)));
        (until > self.now).then_some(until)
    }

    fn wait_for(&mut self, id: &WorkerId, until: Moment) {
        self.plan.wake = Some(self.plan.wake.map_or(until, |wake| wake.min(until)));
        self.undone(Subject::Worker(id.clone()), Pending::Authority { worker: id.clone(), until });
    }

    /// Nothing runs on this worker any more: all of its assignments end.
    fn evacuate(&mut self, id: &'a WorkerId, worker: &'a Worker, reason: EndReason) {
        for name in &worker.names {
            if self.is_full() {
                return self.undone(Subject::Worker(id.clone()), Pending::Budget);
            }
            let Some(unit) = self.cluster.unit(name.as_str()) else { continue };
            let Some(holder) = unit.holders.iter().find(|h| h.worker == *id) else { continue };
            if unit.holders.len() == 1 {
                self.ended(name, unit, holder, reason);
            }
        }
    }

    fn attend(&mut self, name: &'a ResourceName) {
        if self.is_full() || self.seen.contains(name) {
            return;
        }
        let Some(unit) = self.cluster.unit(name.as_str()) else { return };
        match unit.holders.as_slice() {
            [] => {}
            [holder] => self.attend_one(name, unit, holder),
            [_, rest @ ..] => self.separate(name, unit, rest),
        }
    }

    fn attend_one(&mut self, name: &'a ResourceName, unit: &'a Unit, holder: &'a Holder) {
        match self.end_of(unit, holder) {
            End::Known(reason) => return self.ended(name, unit, holder, reason),
            End::At(_) | End::Open if !holder.held.runs() => return,
            End::At(_) | End::Open => {}
        }
        let Some(record) = unit.record.as_deref() else { return self.stop(name, holder, StopReason::Deleted, None) };
        let definition = &record.value.definition;
        let Some(registration) = self.loads.ready_worker(&holder.worker) else { return };
        if fit::may_run(definition, &holder.worker, registration).is_err() {
            let to = choose::choose(&self.loads, definition).ok();
            self.shift(definition, &holder.worker, to.as_ref());
            self.stop(name, holder, StopReason::Unfit, to);
        } else if definition.hash() != holder.held.hash {
            self.stop(name, holder, StopReason::Changed, Some(holder.worker.clone()));
        } else if *record.value.assigned_node != *Record::node(&holder.worker, &registration.address) {
            self.plan.actions.push(Action::View { resource: name.clone(), worker: Some(holder.worker.clone()) });
        }
    }

    /// The protocol never makes two assignments of one resource; should they stand all the same, the oldest stays.
    fn separate(&mut self, name: &ResourceName, unit: &Unit, rest: &[Holder]) {
        for holder in rest {
            if let End::Known(reason) = self.end_of(unit, holder) {
                let action = Action::End { resource: name.clone(), worker: holder.worker.clone(), epoch: holder.held.epoch, reason };
                return self.plan.actions.push(action);
            }
        }
        if let Some(holder) = rest.iter().find(|h| h.held.runs()) {
            self.stop(name, holder, StopReason::Duplicate, None);
        }
    }

    fn end_of(&self, unit: &Unit, holder: &Holder) -> End {
        if self.admitted.contains(&holder.worker) && !holder.is_stopped() {
            return End::Open;
        }
        let ownership = unit.record.as_ref().map_or(Ownership::Exclusive, |r| r.value.definition.ownership);
        ends::end_of(holder, self.cluster.worker(holder.worker.as_str()), ownership, self.now, self.config.wait)
    }

    pub(crate) fn stop(&mut self, name: &ResourceName, holder: &Holder, reason: StopReason, to: Option<WorkerId>) {
        self.seen.insert(name.clone());
        self.plan.actions.push(Action::Stop {
            resource: name.clone(),
            worker: holder.worker.clone(),
            epoch: holder.held.epoch,
            reason,
            to,
        });
    }

    /// Counts a resource where it goes.
    fn shift(&mut self, definition: &Definition, from: &WorkerId, to: Option<&WorkerId>) {
        let weight = u64::from(definition.weight);
        self.loads.remove(from, weight);
        if let Some(to) = to {
            self.loads.add(to, weight);
        }
    }

    /// The end of an assignment is known: its successor takes its place, if there is to be one.
    fn ended(&mut self, name: &ResourceName, unit: &Unit, holder: &Holder, reason: EndReason) {
        if holder.held.epoch == Epoch::default() || !self.seen.insert(name.clone()) {
            return;
        }
        let from = holder.worker.clone();
        let epoch = holder.held.epoch;
        let to = unit.record.as_deref().and_then(|record| self.successor(&record.value.definition, unit));
        self.plan.actions.push(match to {
            // One transaction takes a key only once: on the same worker the next assignment is created after this.
            Some(to) if to == from => Action::End { resource: name.clone(), worker: from, epoch, reason },
            Some(to) => Action::Move { resource: name.clone(), from, epoch, to, reason },
            None => Action::End { resource: name.clone(), worker: from, epoch, reason },
        });
    }

    /// Where a resource goes: where it was meant to go, if that worker can still take it; else where there is least to do.
    fn successor(&mut self, definition: &Definition, unit: &Unit) -> Option<WorkerId> {
        let weight = u64::from(definition.weight);
        if let Some(home) = unit.home() {
            let may_stay = |registration| fit::may_run(definition, home, registration).is_ok();
            if self.loads.ready_worker(home).is_some_and(may_stay) {
                return Some(home.clone());
            }
            self.loads.remove(home, weight);
        }
        let to = choose::choose(&self.loads, definition).ok()?;
        self.loads.add(&to, weight);
        Some(to)
    }

    fn place(&mut self, name: &ResourceName) {
        if self.is_full() {
            return self.undone(Subject::Resource(name.clone()), Pending::Budget);
        }
        let Some(record) = self.cluster.unit(name.as_str()).and_then(|u| u.record.as_deref()) else { return };
        let definition = &record.value.definition;
        match self.choose_for(&record.value) {
            Ok((worker, reason)) => {
                self.loads.add(&worker, u64::from(definition.weight));
                self.plan.actions.push(Action::Place { resource: name.clone(), worker, reason });
            }
            Err(reason) => {
                if !record.value.assigned_node.is_empty() {
                    self.plan.actions.push(Action::View { resource: name.clone(), worker: None });
                }
                self.undone(Subject::Resource(name.clone()), reason);
            }
        }
    }

    fn choose_for(&mut self, record: &Record) -> Result<(WorkerId, PlaceReason), Pending> {
        let definition = &record.definition;
        if let Some(id) = record.assigned_worker().and_then(|id| WorkerId::new(id).ok()) {
            let fits = |r| fit::can_run(definition, &id, r, self.loads.payload(&id)).is_ok();
            if self.loads.ready_worker(&id).is_some_and(fits) {
                return Ok((id, PlaceReason::Stays));
            }
        }
        if self.loads.ready() == 0 {
            return Err(Pending::NoWorkers);
        }
        // Without a rule a resource fits anywhere but for its weight, and the memory is not worth its keys.
        if self.hopeless.is_empty() {
            return self.choose_or_remember(definition);
        }
        match self.hopeless.get(&FitClass::of(definition)) {
            Some(reason) => Err(reason.clone()),
            None => self.choose_or_remember(definition),
        }
    }

    fn choose_or_remember(&mut self, definition: &Definition) -> Result<(WorkerId, PlaceReason), Pending> {
        match choose::choose(&self.loads, definition) {
            Ok(worker) => Ok((worker, PlaceReason::LeastPayload)),
            Err(reason) => {
                self.hopeless.insert(FitClass::of(definition), reason.clone());
                Err(reason)
            }
        }
    }
}

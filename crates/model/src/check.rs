//! Finds every violation of an invariant: in a Cluster (what the store holds, and the totals that are kept of it), and in a Plan before
//! it is written. A plan that violates anything is not carried out.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    Action, AdmitReason, Agenda, Cluster, End, Epoch, Moment, Ownership, Plan, Rank, ResourceName, Session, Standing, WorkerId,
    cluster::Class, ends, fit,
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
    /// The plan places a resource where it may not run.
    #[error("the plan places {0} on {1}, which may not run it")]
    Misplaced(ResourceName, WorkerId),
    /// The plan has two actions for one resource.
    #[error("the plan has two actions for {0}")]
    TwoActions(ResourceName),
    /// The plan admits a session that may not be admitted.
    #[error("the plan admits session {1} of {0} ({2:?}), which may not be")]
    Admitted(WorkerId, Session, AdmitReason),
    /// The plan forgets a worker that may still run something.
    #[error("the plan forgets {0}, which may still run something")]
    Forgotten(WorkerId),
}

/// Checks a cluster: one owner, and every cached total.
#[must_use]
pub fn check_cluster(cluster: &Cluster) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut payloads: BTreeMap<WorkerId, u64> = BTreeMap::new();
    let mut names: BTreeMap<WorkerId, BTreeSet<ResourceName>> = BTreeMap::new();
    let mut agenda = Agenda::default();
    for (name, unit) in cluster.units_after(None) {
        if let [first, second, ..] = unit.holders.as_slice() {
            found.push(Violation::TwoOwners(name.clone(), first.worker.clone(), second.worker.clone()));
        }
        for holder in &unit.holders {
            names.entry(holder.worker.clone()).or_default().insert(name.clone());
        }
        if let (Some(home), Some(record)) = (unit.home(), &unit.record) {
            *payloads.entry(home.clone()).or_default() += u64::from(record.value.definition.weight);
        }
        match cluster.class_of(unit) {
            Class::Settled => false,
            Class::Unplaced => agenda.unplaced.insert(name.clone()),
            Class::Attention => agenda.attention.insert(name.clone()),
            Class::Stopping => agenda.stopping.insert(name.clone()),
        };
    }
    let mut ranking = BTreeSet::new();
    for (id, worker) in cluster.workers() {
        if worker.payload != payloads.remove(id).unwrap_or_default() {
            found.push(Violation::Total("a worker's payload"));
        }
        if worker.names != names.remove(id).unwrap_or_default() {
            found.push(Violation::Total("a worker's list of names"));
        }
        let standing = worker.standing();
        if worker.gone_since.is_some() != matches!(standing, Standing::Lost | Standing::Returning) {
            found.push(Violation::Total("the moment of a worker's loss"));
        }
        if standing == Standing::Ready {
            ranking.insert(Rank { payload: worker.payload, worker: id.clone() });
        }
        if worker.is_on_agenda() {
            agenda.workers.insert(id.clone());
        }
    }
    if !payloads.is_empty() || !names.is_empty() {
        found.push(Violation::Total("the list of workers"));
    }
    if ranking != *cluster.ranking() {
        found.push(Violation::Total("the ranking"));
    }
    if agenda != *cluster.agenda() {
        found.push(Violation::Total("the agenda"));
    }
    found
}

/// Checks a plan against the cluster that it was made from; `wait` is G.
#[must_use]
pub fn check_plan(cluster: &Cluster, plan: &Plan, now: Moment, wait: Duration) -> Vec<Violation> {
    let mut checker = PlanChecker { cluster, now, wait, seen: BTreeSet::new(), admitted: BTreeSet::new(), found: Vec::new() };
    for action in &plan.actions {
        checker.action(action);
    }
    checker.found
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
        if let Some(name) = action.resource()
            && !self.seen.insert(name)
        {
            self.found.push(Violation::TwoActions(name.clone()));
        }
        match action {
            Action::Admit { worker, session, reason } => self.admit(worker, *session, *reason),
            Action::Forget { worker, .. } => self.forget(worker),
            Action::Place { resource, worker, .. } => {
                if let Some(holder) = self.cluster.unit(resource.as_str()).and_then(|u| u.holders.first()) {
                    self.found.push(Violation::PlacedWhileHeld(resource.clone(), holder.worker.clone()));
                }
                self.place(resource, worker);
            }
            Action::Stop { resource, worker, epoch, .. } => self.stop(resource, worker, *epoch),
            Action::Move { resource, from, epoch, to, .. } => {
                self.end(resource, from, *epoch);
                self.place(resource, to);
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
            is_live
                && match reason {
                    AdmitReason::New => admission.is_none(),
                    AdmitReason::Attested => admission.is_some_and(|a| registration.attests_end_of(a, session)),
                    AdmitReason::Waited => worker.authority_ends(self.wait).is_some_and(|until| until <= self.now),
                }
        });
        if !allowed {
            self.found.push(Violation::Admitted(id.clone(), session, reason));
        }
    }

    fn forget(&mut self, id: &WorkerId) {
        let worker = self.cluster.worker(id.as_str());
        let allowed = worker.is_some_and(|worker| match worker.standing() {
            Standing::Released => true,
            Standing::Lost => worker.names.is_empty() && worker.authority_ends(self.wait).is_some_and(|until| until <= self.now),
            Standing::Absent | Standing::New | Standing::Returning | Standing::Ready => false,
        });
        if !allowed {
            self.found.push(Violation::Forgotten(id.clone()));
        }
    }

    fn place(&mut self, name: &ResourceName, id: &WorkerId) {
        let definition = self.cluster.unit(name.as_str()).and_then(|u| u.record.as_ref()).map(|r| &r.value.definition);
        let worker = self.cluster.worker(id.as_str()).filter(|w| w.standing() == Standing::Ready);
        let fits = match (definition, worker.and_then(|w| w.registration())) {
            (Some(definition), Some(registration)) => fit::may_run(definition, id, registration).is_ok(),
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

    fn end(&mut self, name: &ResourceName, id: &WorkerId, epoch: Epoch) {
        let Some(holder) = self.holder(name, id, epoch) else {
            return self.found.push(Violation::NotHeld(name.clone(), id.clone(), epoch));
        };
        let record = self.cluster.unit(name.as_str()).and_then(|u| u.record.as_ref());
        let ownership = record.map_or(Ownership::Exclusive, |r| r.value.definition.ownership);
        let end = ends::end_of(holder, self.cluster.worker(id.as_str()), ownership, self.now, self.wait);
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

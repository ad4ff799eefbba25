//! What an action writes: the keys, and the guards that make a write from a stale view fail. The commit pipeline turns a decision into
//! one transaction; the leader applies the same decision to its own Cluster.

use std::collections::BTreeMap;

use crate::{
    Action, Admission, Assignment, Change, Cluster, Definition, Epoch, Held, Holder, Intent, Phase, Record, ResourceName, Revision,
    Selector, Session, Spec, Versioned, WorkerId,
};

/// One transaction's worth of writes, without the leader's fence, which the pipeline adds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// What must still be so.
    pub guards: Vec<Guard>,
    /// What is written; no key twice.
    pub writes: Vec<Write>,
}

/// A condition on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// The resource was last written at this revision; zero: it does not stand.
    Resource(ResourceName, Revision),
    /// The assignment has this epoch; zero: it does not stand.
    Assignment(WorkerId, ResourceName, Epoch),
    /// The admission was last written at this revision; zero: it does not stand.
    Admission(WorkerId, Revision),
    /// The worker is registered with this session.
    Registration(WorkerId, Session),
}

/// One key that is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Puts `/resources/<name>`.
    Resource(Box<Record>),
    /// Deletes `/resources/<name>`.
    NoResource(ResourceName),
    /// Puts `/assignments/<worker>/<name>`. Epoch zero: this creates it.
    Assignment(WorkerId, ResourceName, Box<Assignment>, Epoch),
    /// Deletes `/assignments/<worker>/<name>` and the status that belongs to it.
    NoAssignment(WorkerId, ResourceName),
    /// Puts `/admissions/<worker>`.
    Admission(WorkerId, Box<Admission>),
    /// Deletes `/admissions/<worker>`.
    NoAdmission(WorkerId),
    /// Deletes `/workers/<id>`.
    NoRegistration(WorkerId),
    /// Puts `/intents/workers/<id>`; none: deletes it.
    Intent(WorkerId, Option<Intent>),
    /// Puts `/intents/brake`: the lost sessions that are let go; with none, deletes it.
    WrittenOff(BTreeMap<WorkerId, Session>),
}

impl Write {
    /// The event that a watch shows when this is written at a revision; zero while that is not known.
    #[must_use]
    pub fn change(&self, revision: Revision) -> Change {
        match self {
            Self::Resource(record) => Change::Resource {
                name: record.definition.name.clone(),
                value: Some(Box::new(Versioned { revision, value: (**record).clone() })),
            },
            Self::NoResource(name) => Change::Resource { name: name.clone(), value: None },
            Self::Assignment(worker, name, assignment, epoch) => {
                let epoch = if *epoch == Epoch::default() { Epoch(revision.0) } else { *epoch };
                Change::Assignment { worker: worker.clone(), name: name.clone(), value: Some(Held::of(epoch, assignment)) }
            }
            Self::NoAssignment(worker, name) => Change::Assignment { worker: worker.clone(), name: name.clone(), value: None },
            Self::Admission(worker, admission) => {
                Change::Admission { worker: worker.clone(), value: Some(Box::new(Versioned { revision, value: (**admission).clone() })) }
            }
            Self::NoAdmission(worker) => Change::Admission { worker: worker.clone(), value: None },
            Self::NoRegistration(id) => Change::Worker { id: id.clone(), value: None },
            Self::Intent(worker, intent) => Change::Intent { worker: worker.clone(), value: *intent },
            Self::WrittenOff(sessions) => Change::WrittenOff { sessions: sessions.clone() },
        }
    }
}

/// The action speaks of something that is not, or not yet, known to stand. It is planned again when more is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what the action builds on is not known to be written yet")]
pub struct NotYet;

impl Decision {
    /// What carrying out an action writes.
    ///
    /// # Errors
    /// When it builds on a write whose revision is not known yet.
    pub fn of(action: &Action, cluster: &Cluster) -> Result<Self, NotYet> {
        let mut decision = Self::default();
        match action {
            Action::Admit { worker, session, .. } => decision.admit(cluster, worker, *session)?,
            Action::Forget { worker, .. } => decision.forget(cluster, worker)?,
            Action::Place { resource, worker, .. } => decision.create(cluster, resource, worker)?,
            Action::Stop { resource, worker, epoch, reason, to } => {
                let held = &holder(cluster, resource, worker, *epoch)?.held;
                decision.stop(resource, worker, held, Phase::Stop { reason: *reason, to: to.clone() });
            }
            Action::Move { resource, from, epoch, to, .. } => {
                decision.end(cluster, resource, from, *epoch)?;
                decision.create(cluster, resource, to)?;
            }
            Action::End { resource, worker, epoch, reason } => {
                decision.end(cluster, resource, worker, *epoch)?;
                let stays = matches!(reason, crate::EndReason::Stopped(crate::StopReason::Changed));
                if !stays {
                    decision.view(cluster, resource, "".into())?;
                }
            }
            Action::View { resource, worker: Some(worker) } => decision.view(cluster, resource, node(cluster, worker)?)?,
            Action::View { resource, worker: None } => decision.view(cluster, resource, "".into())?,
        }
        Ok(decision)
    }

    /// Creates the assignment of a resource to a worker, where none stands.
    pub fn assign(&mut self, definition: &Definition, worker: &WorkerId) {
        self.put_assignment(definition, worker, Epoch::default());
    }

    /// Gives a worker new rules for what it runs; what it runs stays the same.
    pub fn give_rules(&mut self, definition: &Definition, worker: &WorkerId, held: &Held) {
        debug_assert_eq!(definition.hash(), held.hash, "what it runs stays the same");
        self.put_assignment(definition, worker, held.epoch);
    }

    /// Epoch zero: none stands yet.
    fn put_assignment(&mut self, definition: &Definition, worker: &WorkerId, epoch: Epoch) {
        let name = definition.name.clone();
        let (kind, spec, require) = (definition.kind.to_string(), definition.spec.clone(), definition.require.clone());
        let assignment = Assignment { kind, spec, require, hash: definition.hash(), phase: Phase::Run };
        self.guards.push(Guard::Assignment(worker.clone(), name.clone(), epoch));
        self.writes.push(Write::Assignment(worker.clone(), name, Box::new(assignment), epoch));
    }

    /// Tells a worker to stop what it holds. It has what it runs; the hash alone says which content is being stopped.
    pub fn stop(&mut self, name: &ResourceName, worker: &WorkerId, held: &Held, phase: Phase) {
        let assignment = Assignment { kind: String::new(), spec: Spec::default(), require: Selector::EMPTY, hash: held.hash, phase };
        self.guards.push(Guard::Assignment(worker.clone(), name.clone(), held.epoch));
        self.writes.push(Write::Assignment(worker.clone(), name.clone(), Box::new(assignment), held.epoch));
    }

    fn admit(&mut self, cluster: &Cluster, id: &WorkerId, session: Session) -> Result<(), NotYet> {
        let worker = cluster.worker(id.as_str()).ok_or(NotYet)?;
        let registration = worker.registration().ok_or(NotYet)?;
        let admission = Admission { session, authority_ms: registration.authority_ms, origin: registration.origin.clone() };
        self.guards.push(Guard::Admission(id.clone(), admission_revision(cluster, id)?));
        self.guards.push(Guard::Registration(id.clone(), session));
        self.writes.push(Write::Admission(id.clone(), Box::new(admission)));
        Ok(())
    }

    fn forget(&mut self, cluster: &Cluster, id: &WorkerId) -> Result<(), NotYet> {
        let worker = cluster.worker(id.as_str()).ok_or(NotYet)?;
        let revision = admission_revision(cluster, id)?;
        self.guards.push(Guard::Admission(id.clone(), revision));
        if revision != Revision::default() {
            self.writes.push(Write::NoAdmission(id.clone()));
        }
        if let Some((session, _)) = worker.registered.as_deref() {
            self.guards.push(Guard::Registration(id.clone(), *session));
            self.writes.push(Write::NoRegistration(id.clone()));
        }
        Ok(())
    }

    fn create(&mut self, cluster: &Cluster, name: &ResourceName, id: &WorkerId) -> Result<(), NotYet> {
        self.assign(&record(cluster, name)?.value.definition, id);
        self.view(cluster, name, node(cluster, id)?)
    }

    fn end(&mut self, cluster: &Cluster, name: &ResourceName, id: &WorkerId, epoch: Epoch) -> Result<(), NotYet> {
        let holder = holder(cluster, name, id, epoch)?;
        if !holder.is_stopped() {
            // The end is known from the admission alone, so it must not have changed: a session that is admitted may run this again.
            self.guards.push(Guard::Admission(id.clone(), admission_revision(cluster, id)?));
        }
        self.guards.push(Guard::Assignment(id.clone(), name.clone(), epoch));
        self.writes.push(Write::NoAssignment(id.clone(), name.clone()));
        Ok(())
    }

    /// Writes the view for people, where the resource stands and says something else.
    fn view(&mut self, cluster: &Cluster, name: &ResourceName, node: Box<str>) -> Result<(), NotYet> {
        let Ok(record) = record(cluster, name) else { return Ok(()) };
        if record.value.assigned_node == node {
            return Ok(());
        }
        if record.revision == Revision::default() {
            return Err(NotYet);
        }
        self.guards.push(Guard::Resource(name.clone(), record.revision));
        self.writes.push(Write::Resource(Box::new(Record { assigned_node: node, ..record.value.clone() })));
        Ok(())
    }
}

fn record<'a>(cluster: &'a Cluster, name: &ResourceName) -> Result<&'a Versioned<Record>, NotYet> {
    cluster.unit(name.as_str()).and_then(|u| u.record.as_deref()).ok_or(NotYet)
}

fn holder<'a>(cluster: &'a Cluster, name: &ResourceName, id: &WorkerId, epoch: Epoch) -> Result<&'a Holder, NotYet> {
    let unit = cluster.unit(name.as_str()).ok_or(NotYet)?;
    let known = |h: &&Holder| h.worker == *id && h.held.epoch == epoch && epoch != Epoch::default();
    unit.holders.iter().find(known).ok_or(NotYet)
}

fn node(cluster: &Cluster, id: &WorkerId) -> Result<Box<str>, NotYet> {
    let registration = cluster.worker(id.as_str()).and_then(|w| w.registration()).ok_or(NotYet)?;
    Ok(Record::node(id, &registration.address))
}

/// The mod revision of a worker's admission; zero when none stands.
fn admission_revision(cluster: &Cluster, id: &WorkerId) -> Result<Revision, NotYet> {
    match cluster.worker(id.as_str()).and_then(|w| w.admission.as_deref()) {
        None => Ok(Revision::default()),
        Some(admission) if admission.revision == Revision::default() => Err(NotYet),
        Some(admission) => Ok(admission.revision),
    }
}

#[cfg(test)]
#[path = "decision_tests.rs"]
mod tests;

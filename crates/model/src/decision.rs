//! What an action writes: the keys, and the guards that make a write from a stale view fail. The commit pipeline turns a decision into
//! one transaction; the leader applies the same decision to its own Cluster.

use crate::{
    Action, Admission, Assignment, Change, Cluster, Definition, Entry, Epoch, FailedOn, Finish, Held, Holder, Holds, Key, Phase, Record,
    ResourceName, Revision, Selector, Session, Spec, StopReason, Versioned, WorkerId,
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
    /// The key was last written at this revision; zero: it does not exist.
    Modified(Key, Revision),
    /// The key was created at this revision; zero: it does not exist.
    Created(Key, Revision),
}

impl Guard {
    /// The assignment has this epoch; zero: it does not exist.
    #[must_use]
    pub fn epoch(worker: &WorkerId, name: &ResourceName, epoch: Epoch) -> Self {
        Self::Created(Key::Assignment(worker.clone(), name.clone()), Revision(epoch.0))
    }

    /// The worker is registered with this session; zero: it is not registered.
    #[must_use]
    pub fn session(worker: &WorkerId, session: Session) -> Self {
        Self::Created(Key::Worker(worker.clone()), Revision(session.0))
    }
}

/// One key that is written: put, or deleted where its entry has no value. With an assignment its status is deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The key, and what it is to have.
    pub entry: Entry,
    /// The revision that created the key; zero: this write creates it, or it does not matter to the Cluster.
    pub created: Revision,
}

impl Write {
    /// Puts or deletes a key.
    #[must_use]
    pub fn new(entry: Entry) -> Self {
        Self { entry, created: Revision::default() }
    }

    /// Deletes a key.
    #[must_use]
    pub fn delete(key: Key) -> Self {
        Self::new(key.absent())
    }

    /// The change that a watch shows when this is written at a revision.
    #[must_use]
    pub fn change(&self, revision: Revision) -> Change {
        let created = if self.created == Revision::default() { revision } else { self.created };
        Change::over(created, revision, self.entry.clone())
    }

    /// The resource that it is about.
    #[must_use]
    pub fn resource(&self) -> Option<&ResourceName> {
        self.entry.resource()
    }

    /// The worker that it is about.
    #[must_use]
    pub fn worker(&self) -> Option<&WorkerId> {
        self.entry.worker()
    }

    /// The record that it puts.
    #[must_use]
    pub fn record(&self) -> Option<&Record> {
        if let Entry::Resource(_, record) = &self.entry { record.as_ref() } else { None }
    }

    /// The assignment that it puts.
    #[must_use]
    pub fn assignment(&self) -> Option<&Assignment> {
        if let Entry::Assignment(_, _, assignment) = &self.entry { assignment.as_ref() } else { None }
    }

    /// It puts an assignment where none exists: the revision of the transaction becomes its epoch.
    #[must_use]
    pub fn creates_assignment(&self) -> bool {
        self.assignment().is_some() && self.created == Revision::default()
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
                if *reason == StopReason::Failing {
                    decision.note_failure(cluster, resource, worker)?;
                }
            }
            Action::Update { resource, worker, epoch } => {
                let holder = holder(cluster, resource, worker, *epoch)?;
                decision.update(&record(cluster, resource)?.value.definition, worker, &holder.held);
            }
            Action::Move { resource, from, epoch, to, .. } => {
                decision.end(cluster, resource, from, *epoch)?;
                decision.create(cluster, resource, to)?;
            }
            Action::End { resource, worker, epoch, reason } => {
                decision.end(cluster, resource, worker, *epoch)?;
                let stays = matches!(reason, crate::EndReason::Stopped(StopReason::Changed) | crate::EndReason::Fenced);
                if !stays {
                    decision.view(cluster, resource, "".into())?;
                }
            }
            Action::Finish { resource, worker, epoch, .. } => decision.finish(cluster, resource, worker, *epoch)?,
            Action::View { resource, worker: Some(worker) } => decision.view(cluster, resource, node(cluster, worker)?)?,
            Action::View { resource, worker: None } => decision.view(cluster, resource, "".into())?,
        }
        Ok(decision)
    }

    /// Creates the assignment of a resource to a worker, where none stands. `holds` is how that worker holds its kind.
    pub fn assign(&mut self, definition: &Definition, worker: &WorkerId, holds: Holds) {
        self.put_assignment(definition, worker, Epoch::default(), holds);
    }

    /// Gives a worker new rules for what it runs; what it runs stays the same.
    pub fn give_rules(&mut self, definition: &Definition, worker: &WorkerId, held: &Held) {
        debug_assert!(held.has_work_of(definition), "what it runs stays the same");
        self.put_assignment(definition, worker, held.epoch, held.holds);
    }

    /// Gives a worker another spec for what it runs, under the same epoch: see [`crate::Holder::takes_in_place`].
    pub fn update(&mut self, definition: &Definition, worker: &WorkerId, held: &Held) {
        debug_assert!(held.runs(), "a stop is final");
        self.put_assignment(definition, worker, held.epoch, held.holds);
    }

    /// Epoch zero: none stands yet.
    fn put_assignment(&mut self, definition: &Definition, worker: &WorkerId, epoch: Epoch, holds: Holds) {
        let name = definition.name.clone();
        let (kind, spec, require) = (definition.kind.to_string(), definition.spec.clone(), definition.require.clone());
        let assignment = Assignment { kind, spec, require, hash: definition.hash(), holds, phase: Phase::Run };
        self.guards.push(Guard::epoch(worker, &name, epoch));
        self.writes.push(Write { entry: Entry::Assignment(worker.clone(), name, Some(assignment)), created: Revision(epoch.0) });
    }

    /// Tells a worker to stop what it holds. It has what it runs; the hash alone says which content is being stopped.
    pub fn stop(&mut self, name: &ResourceName, worker: &WorkerId, held: &Held, phase: Phase) {
        let assignment =
            Assignment { kind: String::new(), spec: Spec::default(), require: Selector::EMPTY, hash: held.hash, holds: held.holds, phase };
        self.guards.push(Guard::epoch(worker, name, held.epoch));
        let entry = Entry::Assignment(worker.clone(), name.clone(), Some(assignment));
        self.writes.push(Write { entry, created: Revision(held.epoch.0) });
    }

    fn admit(&mut self, cluster: &Cluster, id: &WorkerId, session: Session) -> Result<(), NotYet> {
        let worker = cluster.worker(id.as_str()).ok_or(NotYet)?;
        let registration = worker.registration().ok_or(NotYet)?;
        let admission = Admission { session, authority_ms: registration.authority_ms, origin: registration.origin.clone() };
        self.guards.push(Guard::Modified(Key::Admission(id.clone()), admission_revision(cluster, id)?));
        self.guards.push(Guard::session(id, session));
        self.writes.push(Write::new(Entry::Admission(id.clone(), Some(admission))));
        Ok(())
    }

    fn forget(&mut self, cluster: &Cluster, id: &WorkerId) -> Result<(), NotYet> {
        let worker = cluster.worker(id.as_str()).ok_or(NotYet)?;
        let revision = admission_revision(cluster, id)?;
        self.guards.push(Guard::Modified(Key::Admission(id.clone()), revision));
        if revision != Revision::default() {
            self.writes.push(Write::delete(Key::Admission(id.clone())));
        }
        if let Some((session, _)) = worker.registered.as_deref() {
            self.guards.push(Guard::session(id, *session));
            self.writes.push(Write::delete(Key::Worker(id.clone())));
        }
        Ok(())
    }

    fn create(&mut self, cluster: &Cluster, name: &ResourceName, id: &WorkerId) -> Result<(), NotYet> {
        let definition = &record(cluster, name)?.value.definition;
        let registration = cluster.worker(id.as_str()).and_then(|w| w.registration()).ok_or(NotYet)?;
        self.assign(definition, id, registration.driver(&definition.kind).holds);
        self.view(cluster, name, node(cluster, id)?)
    }

    fn end(&mut self, cluster: &Cluster, name: &ResourceName, id: &WorkerId, epoch: Epoch) -> Result<(), NotYet> {
        let holder = holder(cluster, name, id, epoch)?;
        if !holder.is_stopped() {
            // The end is known from the admission alone, so it must not have changed: a session that is admitted may run this again.
            self.guards.push(Guard::Modified(Key::Admission(id.clone()), admission_revision(cluster, id)?));
        }
        self.guards.push(Guard::epoch(id, name, epoch));
        self.writes.push(Write::delete(Key::Assignment(id.clone(), name.clone())));
        Ok(())
    }

    /// Writes down how the resource came to its end, and tells its worker to let go of it, unless it was told to stop already.
    fn finish(&mut self, cluster: &Cluster, name: &ResourceName, id: &WorkerId, epoch: Epoch) -> Result<(), NotYet> {
        let holder = holder(cluster, name, id, epoch)?;
        let status = holder.observed().ok_or(NotYet)?;
        if holder.held.runs() {
            self.stop(name, id, &holder.held, Phase::Stop { reason: StopReason::Finished, to: None });
        } else {
            self.guards.push(Guard::epoch(id, name, epoch));
        }
        self.rewrite(cluster, name, |record| {
            // The record may spell the same work in another way than the assignment.
            let finish = Finish::of(record.definition.hash(), id, status);
            (record.finished, record.failed) = (Some(Box::new(finish)), None);
        })
    }

    /// Writes down that a resource has failed on a worker.
    fn note_failure(&mut self, cluster: &Cluster, name: &ResourceName, id: &WorkerId) -> Result<(), NotYet> {
        self.rewrite(cluster, name, |record| {
            let failed = FailedOn::with(record.failed.as_deref(), record.definition.hash(), id);
            record.failed = Some(Box::new(failed));
        })
    }

    /// Writes the record with something changed in it.
    fn rewrite(&mut self, cluster: &Cluster, name: &ResourceName, change: impl FnOnce(&mut Record)) -> Result<(), NotYet> {
        let record = record(cluster, name)?;
        if record.revision == Revision::default() {
            return Err(NotYet);
        }
        self.guards.push(Guard::Modified(Key::Resource(name.clone()), record.revision));
        let mut record = record.value.clone();
        change(&mut record);
        self.writes.push(Write::new(Entry::Resource(name.clone(), Some(record))));
        Ok(())
    }

    /// Writes the view for people, where the resource stands and says something else.
    fn view(&mut self, cluster: &Cluster, name: &ResourceName, node: Box<str>) -> Result<(), NotYet> {
        let Ok(record) = record(cluster, name) else { return Ok(()) };
        if record.value.assigned_node == node {
            return Ok(());
        }
        self.rewrite(cluster, name, |record| record.assigned_node = node)
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

//! The commands about a resource: the one place where adding, changing and deleting are judged.

use evenkeel_model::{
    Decision, Definition, Entry, EntryKind, Epoch, Guard, HistoryEntry, Holder, Holds, Key, Pending, Phase, PlaceReason, Record,
    ResourceName, Revision, StopReason, Unit, Versioned, WorkerId, Write,
};

use super::{
    judge::Judge,
    request::{Answer, Command, Refusal, Reply, Request, Ruling},
    subjects::Subject,
};

/// What may stand already when a resource is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutMode {
    /// Nothing with a different definition.
    Add,
    /// It must stand.
    Update,
    /// Anything.
    Apply,
}

/// What was done with a resource, and where it is.
#[derive(Clone, Debug)]
pub struct PutAnswer {
    /// What was done.
    pub effect: Effect,
    /// What stands now.
    pub record: Record,
    /// Where it is assigned to run, with that worker's address.
    pub node: Option<(WorkerId, String)>,
    /// How that worker holds it.
    pub holds: Holds,
    /// Why there, if that was chosen just now.
    pub reason: Option<PlaceReason>,
    /// The epoch of that assignment.
    pub epoch: Epoch,
    /// Why it is assigned nowhere.
    pub pending: Option<Pending>,
}

/// The effect of a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It is new.
    Created,
    /// It existed with a definition that says something else.
    Changed,
    /// It existed like this.
    Unchanged,
}

impl Answer for PutAnswer {
    fn written_at(&mut self, revision: Revision) {
        // The assignment that it speaks of is part of this very write.
        if self.node.is_some() && self.epoch == Epoch::default() {
            self.epoch = Epoch(revision.0);
        }
    }
}

/// Adds a resource, or replaces its definition where that is allowed.
#[derive(Debug)]
struct Put {
    definition: Box<Definition>,
    mode: PutMode,
    /// Empty: the API.
    source: Box<str>,
}

/// Deletes a resource.
#[derive(Debug)]
struct Delete {
    name: ResourceName,
    source: Box<str>,
    id: Option<u64>,
}

impl Request {
    /// Asks to add a resource, or to replace its definition where `mode` allows that. `source` is the inventory that asks, which keeps what it adds
    /// and changes only what it keeps; empty: the API. It is the door's to say, never the caller's.
    #[must_use]
    pub fn put(definition: Box<Definition>, mode: PutMode, source: Box<str>, reply: Reply<PutAnswer>) -> Self {
        Self::new(Put { definition, mode, source }, reply)
    }

    /// Asks to delete a resource; with an id, only the one with that. `source` is the inventory that asks, which deletes only what it keeps; empty:
    /// the API, which deletes anything.
    #[must_use]
    pub fn delete(name: ResourceName, source: Box<str>, id: Option<u64>, reply: Reply<()>) -> Self {
        Self::new(Delete { name, source, id }, reply)
    }
}

impl Command for Put {
    type Answer = PutAnswer;

    fn subject(&self) -> Subject {
        Subject::Resource(self.definition.name.clone())
    }

    fn judge(&self, by: &mut Judge<'_>) -> Ruling<PutAnswer> {
        let name = &self.definition.name;
        let unit = by.cluster.unit(name.as_str());
        if unit.is_some_and(|u| u.unreadable.is_some()) {
            return Ruling::Refuse(Refusal::Rejected(format!("the record of {name} cannot be read; delete it first")));
        }
        let Some(old) = unit.and_then(|u| u.record.as_deref()) else {
            return match self.mode {
                PutMode::Update => stands(name, Revision::default(), Err(Refusal::NotFound(name.clone()))),
                PutMode::Add | PutMode::Apply => self.create(by),
            };
        };
        if !self.source.is_empty() && *old.value.source != *self.source {
            return stands(name, old.revision, Err(of_another(name, &old.value)));
        }
        if old.value.definition.is_same_as(&self.definition) {
            let answer = match by.unchanged.clone() {
                Some(answer) => answer,
                None => by.unchanged.insert(standing(by, name, old.value.clone(), Effect::Unchanged)).clone(),
            };
            return stands(name, old.revision, Ok(answer));
        }
        match self.mode {
            PutMode::Add => stands(name, old.revision, Err(Refusal::AlreadyExists(name.clone()))),
            PutMode::Update | PutMode::Apply => self.change(by, old),
        }
    }
}

impl Put {
    /// The resource and its assignment are written in one transaction.
    fn create(&self, by: &mut Judge<'_>) -> Ruling<PutAnswer> {
        let name = &self.definition.name;
        let holder = by.cluster.unit(name.as_str()).and_then(|u| u.holders.first()).map(|h| h.worker.clone());
        let choice = match holder {
            Some(worker) => Err(Pending::PreviousRun(worker)),
            None => evenkeel_planner::choose(by.cluster, &self.definition, by.now, by.planner),
        };
        let reason = choice.as_ref().ok().map(|(_, reason)| *reason);
        let (node, pending) = match choice {
            Ok((worker, _)) => (Some(by.node(&worker)), None),
            Err(pending) => (None, Some(pending)),
        };
        let record = Record {
            id: by.next_id(),
            creation_time: by.time,
            assigned_node: node.as_ref().map(|(worker, address)| Record::node(worker, address)).unwrap_or_default(),
            source: self.source.clone(),
            finished: None,
            failed: None,
            definition: (*self.definition).clone(),
        };
        let source = shown(&self.source);
        let why = reason.map_or_else(|| source.to_owned(), |reason| format!("{source}, {}", reason.as_str()));
        let mut decision = Decision {
            guards: vec![Guard::Modified(Key::Resource(name.clone()), Revision::default())],
            writes: vec![Write::new(Entry::Resource(name.clone(), Some(record.clone())))],
        };
        let mut holds = Holds::default();
        if let Some((worker, _)) = &node {
            let registration = by.cluster.worker(worker.as_str()).and_then(|w| w.registration());
            holds = registration.map(|registration| registration.driver(&record.definition.kind).holds).unwrap_or_default();
            decision.assign(&record.definition, worker, holds);
        }
        let worker = node.as_ref().map(|(worker, _)| worker.to_string()).unwrap_or_default();
        let entry = HistoryEntry { worker, ..by.entry(EntryKind::Added, name.as_str(), &why) };
        let answer = PutAnswer { effect: Effect::Created, record, node, holds, reason, epoch: Epoch::default(), pending };
        Ruling::Write(Box::new(decision), Some(entry), answer)
    }

    /// The resource is written, and what its worker can take of it while the work runs; the planner sees what else follows from it.
    fn change(&self, by: &Judge<'_>, old: &Versioned<Record>) -> Ruling<PutAnswer> {
        let name = &self.definition.name;
        let rules_changed = old.value.definition.require != self.definition.require;
        let record = old.value.with_definition((*self.definition).clone());
        let mut decision = Decision {
            guards: vec![Guard::Modified(Key::Resource(name.clone()), old.revision)],
            writes: vec![Write::new(Entry::Resource(name.clone(), Some(record.clone())))],
        };
        let mut entry = by.entry(EntryKind::Changed, name.as_str(), shown(&self.source));
        let unit = by.cluster.unit(name.as_str());
        // Of two assignments, which the protocol never makes, the planner knows which goes on.
        if let Some([holder]) = unit.map(|unit| unit.holders.as_slice()) {
            let has_work = holder.held.runs() && holder.held.has_work_of(&record.definition);
            if has_work && rules_changed {
                // The worker checks them too, and it is to check those that are in force.
                decision.give_rules(&record.definition, &holder.worker, &holder.held);
            } else if !has_work && holder.takes_in_place(by.cluster.worker(holder.worker.as_str()), &record.definition) {
                decision.update(&record.definition, &holder.worker, &holder.held);
                entry = HistoryEntry { kind: EntryKind::Updated, worker: holder.worker.to_string(), epoch: holder.held.epoch, ..entry };
            }
        }
        let mut answer = standing(by, name, record, Effect::Changed);
        if answer.record.finish().is_none() && by.cluster.unit(name.as_str()).is_some_and(|u| u.holders.is_empty()) {
            answer.pending = evenkeel_planner::choose(by.cluster, &answer.record.definition, by.now, by.planner).err();
        }
        Ruling::Write(Box::new(decision), Some(entry), answer)
    }
}

impl Command for Delete {
    type Answer = ();

    fn subject(&self) -> Subject {
        Subject::Resource(self.name.clone())
    }

    /// The resource goes and its work is told to stop, in one transaction.
    fn judge(&self, by: &mut Judge<'_>) -> Ruling<()> {
        let name = &self.name;
        let Some(unit) = by.cluster.unit(name.as_str()).filter(|u| u.record.is_some() || u.unreadable.is_some()) else {
            return stands(name, Revision::default(), Err(Refusal::NotFound(name.clone())));
        };
        if let Some(record) = unit.record.as_deref().filter(|r| self.id.is_some_and(|id| id != r.value.id)) {
            return stands(name, record.revision, Err(Refusal::NotFound(name.clone())));
        }
        if let Some(record) = unit.record.as_deref().filter(|r| !self.source.is_empty() && *r.value.source != *self.source) {
            return stands(name, record.revision, Err(of_another(name, &record.value)));
        }
        let mut decision = Decision { guards: Vec::new(), writes: vec![Write::delete(Key::Resource(name.clone()))] };
        if let Some(record) = unit.record.as_deref() {
            decision.guards.push(Guard::Modified(Key::Resource(name.clone()), record.revision));
        }
        // One that was told to stop for another reason is told anew, so that its end says nothing of what may be added under this name.
        let is_told = |holder: &&Holder| matches!(holder.held.phase, Phase::Stop { reason: StopReason::Deleted, .. });
        for holder in unit.holders.iter().filter(|holder| !is_told(holder)) {
            decision.stop(name, &holder.worker, &holder.held, Phase::Stop { reason: StopReason::Deleted, to: None });
        }
        let entry = by.entry(EntryKind::Deleted, name.as_str(), shown(&self.source));
        Ruling::Write(Box::new(decision), Some(HistoryEntry { from: holder_of(unit), ..entry }), ())
    }
}

/// Nothing is to be written, as long as the record is the one that was looked at.
fn stands<A>(name: &ResourceName, revision: Revision, answer: Result<A, Refusal>) -> Ruling<A> {
    Ruling::Stands(vec![Guard::Modified(Key::Resource(name.clone()), revision)], answer)
}

/// The answer for a resource that there is already, from what the Cluster shows of it.
fn standing(by: &Judge<'_>, name: &ResourceName, record: Record, effect: Effect) -> PutAnswer {
    let holder = by.cluster.unit(name.as_str()).and_then(|u| u.holders.first()).filter(|h| h.held.runs());
    let node = holder.map(|h| by.node(&h.worker));
    let pending = match node {
        Some(_) => None,
        None => evenkeel_planner::why_pending(by.cluster, name.as_str(), by.now, by.planner),
    };
    let (holds, epoch) = holder.map(|h| (h.held.holds, h.held.epoch)).unwrap_or_default();
    PutAnswer { effect, record, node, holds, reason: None, epoch, pending }
}

fn of_another(name: &ResourceName, record: &Record) -> Refusal {
    Refusal::OfAnother(name.clone(), shown(&record.source).into())
}

/// A source as people read it.
fn shown(source: &str) -> &str {
    if source.is_empty() { "api" } else { source }
}

fn holder_of(unit: &Unit) -> String {
    unit.holders.first().map(|h| h.worker.to_string()).unwrap_or_default()
}

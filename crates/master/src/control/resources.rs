//! What becomes of a request about a resource: the one place where adding, changing and deleting are decided. The answer waits for the commit.

use std::collections::{BTreeMap, VecDeque};

use evenkeel_model::{
    Decision, Definition, Entry, EntryKind, Epoch, Guard, HistoryEntry, Holder, Key, Moment, Pending, Phase, Record, ResourceName,
    Revision, Session, StopReason, Unit, Versioned, WorkerId, Write,
};

use super::{
    history,
    request::{Effect, PutAnswer, PutMode, Refusal, Reply, Request},
    term::{Decided, Term},
};
use crate::state::State;

/// An answer that waits for its commit.
pub(super) enum Answer {
    Put(Reply<PutAnswer>, Result<Box<PutAnswer>, Refusal>),
    Delete(Reply<()>, Result<(), Refusal>),
    Intent(Reply<()>, Result<(), Refusal>),
    Brake(Reply<BTreeMap<WorkerId, Session>>, BTreeMap<WorkerId, Session>),
}

impl Answer {
    /// It is written.
    pub(super) fn give(self, revision: Revision) {
        match self {
            Self::Put(reply, Ok(mut answer)) => {
                // The assignment that it speaks of is part of this very write.
                if answer.node.is_some() && answer.epoch == Epoch::default() {
                    answer.epoch = Epoch(revision.0);
                }
                reply.give(Ok(*answer));
            }
            Self::Put(reply, Err(refusal)) => reply.give(Err(refusal)),
            Self::Delete(reply, answer) | Self::Intent(reply, answer) => reply.give(answer),
            Self::Brake(reply, sessions) => reply.give(Ok(sessions)),
        }
    }

    pub(super) fn refuse(self, refusal: Refusal) {
        match self {
            Self::Put(reply, _) => reply.give(Err(refusal)),
            Self::Delete(reply, _) | Self::Intent(reply, _) => reply.give(Err(refusal)),
            Self::Brake(reply, _) => reply.give(Err(refusal)),
        }
    }
}

/// What is to be done for a request. None of it is done yet.
enum Ruling {
    /// Nothing, whatever else happens.
    Refuse(Refusal),
    /// Nothing is to be written, provided that the resource's record is the one that was looked at.
    Stands(Revision, Outcome),
    /// Something is to be written.
    Write(Box<Decision>, HistoryEntry, Outcome),
}

/// What is answered when it is certain.
enum Outcome {
    Put(Box<PutAnswer>),
    Deleted,
    Refused(Refusal),
}

/// What is asked of a resource, apart from who asks.
enum Asked<'a> {
    Put { definition: &'a Definition, mode: PutMode, source: &'a str },
    Delete { name: &'a ResourceName, source: &'a str, id: Option<u64> },
}

impl Term {
    /// Decides what was asked for one resource with which nothing is under way, in order, as far as it comes to one write: what finds
    /// nothing more to be written is answered by the same commit. What is left over waits for that.
    pub(super) fn decide_requests(&mut self, state: &mut State, name: &ResourceName, waiting: &mut VecDeque<Request>, now: Moment) {
        // What is answered from memory waits for a transaction all the same, which shows that this master still leads and that the record which
        // it goes by is the one in etcd. A leader that was stopped for a while may go on before it learns that another has led since; what
        // it answers from memory would be what was so then. One transaction shows that for all of them, as long as it is not sent yet.
        let mut answers = Vec::new();
        let mut guard = None;
        let mut written = None;
        // Of many who want what there is already, the first finds out where it is, or why it is nowhere.
        let mut unchanged = None;
        while let Some(request) = waiting.pop_front() {
            if request.is_abandoned() {
                continue;
            }
            let Some(asked) = Asked::of(&request) else { continue };
            match self.rule(state, asked, &mut unchanged, now) {
                Ruling::Refuse(refusal) => request.refuse(refusal),
                Ruling::Stands(revision, outcome) => {
                    guard.get_or_insert(revision);
                    answers.extend(answer(request, outcome));
                }
                // The second write waits for the first.
                Ruling::Write(..) if written.is_some() => {
                    waiting.push_front(request);
                    break;
                }
                Ruling::Write(decision, happening, outcome) => {
                    answers.extend(answer(request, outcome));
                    let decided = Decided {
                        decision: *decision,
                        name: Some(name),
                        happening: Some(happening),
                        answers: std::mem::take(&mut answers),
                    };
                    unchanged = None;
                    written = self.decide(state, decided, now);
                    if written.is_none() {
                        // It is not written, and says why. What comes after it goes on from what there was before.
                        guard = None;
                    }
                }
            }
        }
        match (written, guard) {
            (Some(token), _) => self.answer_with(token, answers),
            (None, Some(stands)) => {
                let decision = Decision { guards: vec![Guard::Modified(Key::Resource(name.clone()), stands)], writes: Vec::new() };
                self.decide(state, Decided { decision, name: Some(name), happening: None, answers }, now);
            }
            (None, None) => {}
        }
    }

    fn rule(&mut self, state: &State, asked: Asked<'_>, unchanged: &mut Option<PutAnswer>, now: Moment) -> Ruling {
        match asked {
            Asked::Put { definition, mode, source } => self.rule_put(state, definition, (mode, source), unchanged, now),
            Asked::Delete { name, source, id } => self.rule_delete(state, name, source, id),
        }
    }

    fn rule_put(
        &mut self,
        state: &State,
        definition: &Definition,
        (mode, source): (PutMode, &str),
        unchanged: &mut Option<PutAnswer>,
        now: Moment,
    ) -> Ruling {
        let name = &definition.name;
        let unit = state.cluster.unit(name.as_str());
        if unit.is_some_and(|u| u.unreadable.is_some()) {
            return Ruling::Refuse(Refusal::Rejected(format!("the record of {name} cannot be read; delete it first")));
        }
        let Some(old) = unit.and_then(|u| u.record.as_deref()) else {
            return match mode {
                PutMode::Update => Ruling::Stands(Revision::default(), Outcome::Refused(Refusal::NotFound(name.clone()))),
                PutMode::Add | PutMode::Apply => self.create(state, definition, source, now),
            };
        };
        let stands = |outcome| Ruling::Stands(old.revision, outcome);
        if !source.is_empty() && *old.value.source != *source {
            return stands(Outcome::Refused(Refusal::OfAnother(name.clone(), source_of(&old.value).into())));
        }
        if old.value.definition == *definition {
            let answer = unchanged.get_or_insert_with(|| self.standing_answer(state, name, old.value.clone(), Effect::Unchanged, now));
            return stands(Outcome::Put(Box::new(answer.clone())));
        }
        match mode {
            PutMode::Add => stands(Outcome::Refused(Refusal::AlreadyExists(name.clone()))),
            PutMode::Update | PutMode::Apply => self.change(state, definition, old, now),
        }
    }

    /// The resource and its assignment are written in one transaction.
    fn create(&mut self, state: &State, definition: &Definition, source: &str, now: Moment) -> Ruling {
        let name = &definition.name;
        let holder = state.cluster.unit(name.as_str()).and_then(|u| u.holders.first()).map(|h| h.worker.clone());
        let choice = match holder {
            Some(worker) => Err(Pending::PreviousRun(worker)),
            None => evenkeel_planner::choose(&state.cluster, definition, now, &self.planner),
        };
        let reason = choice.as_ref().ok().map(|(_, reason)| *reason);
        let choice = choice.map(|(worker, _)| {
            let address = state.cluster.worker(worker.as_str()).and_then(|w| w.registration()).map(|r| r.address.clone());
            (worker, address.unwrap_or_default())
        });
        let time = self.clock.unix_ns();
        let record = Record {
            id: self.snowflakes.next(time),
            creation_time: time,
            assigned_node: choice.as_ref().map(|(worker, address)| Record::node(worker, address)).unwrap_or_default(),
            source: source.into(),
            definition: definition.clone(),
        };
        let source = source_of(&record);
        let why = reason.map_or_else(|| source.to_owned(), |reason| format!("{source}, {}", reason.as_str()));
        let entry = history::about_resource(EntryKind::Added, time, &self.master, name.as_str(), &why);
        let mut decision = Decision {
            guards: vec![Guard::Modified(Key::Resource(name.clone()), Revision::default())],
            writes: vec![Write::new(Entry::Resource(name.clone(), Some(record.clone())))],
        };
        let (node, pending) = match choice {
            Ok((worker, address)) => {
                decision.assign(&record.definition, &worker);
                (Some((worker, address)), None)
            }
            Err(pending) => (None, Some(pending)),
        };
        let happening = HistoryEntry { worker: node.as_ref().map(|(w, _)| w.to_string()).unwrap_or_default(), ..entry };
        let answer = PutAnswer { effect: Effect::Created, record, node, reason, epoch: Epoch::default(), pending };
        Ruling::Write(Box::new(decision), happening, Outcome::Put(Box::new(answer)))
    }

    /// Only the resource is written; the planner sees what follows from it.
    fn change(&self, state: &State, definition: &Definition, old: &Versioned<Record>, now: Moment) -> Ruling {
        let name = &definition.name;
        let rules_changed = old.value.definition.require != definition.require;
        let record = Record { definition: definition.clone(), ..old.value.clone() };
        let mut decision = Decision {
            guards: vec![Guard::Modified(Key::Resource(name.clone()), old.revision)],
            writes: vec![Write::new(Entry::Resource(name.clone(), Some(record.clone())))],
        };
        let holder = state.cluster.unit(name.as_str()).and_then(|u| u.holders.first());
        let goes_on = |h: &&Holder| h.held.runs() && h.held.epoch != Epoch::default() && h.held.hash == record.definition.hash();
        if let Some(holder) = holder.filter(goes_on).filter(|_| rules_changed) {
            // The worker checks them too, and it is to check those that are in force.
            decision.give_rules(&record.definition, &holder.worker, &holder.held);
        }
        let happening = history::about_resource(EntryKind::Changed, self.clock.unix_ns(), &self.master, name.as_str(), source_of(&record));
        let mut answer = self.standing_answer(state, name, record, Effect::Changed, now);
        if state.cluster.unit(name.as_str()).is_some_and(|u| u.holders.is_empty()) {
            answer.pending = evenkeel_planner::choose(&state.cluster, &answer.record.definition, now, &self.planner).err();
        }
        Ruling::Write(Box::new(decision), happening, Outcome::Put(Box::new(answer)))
    }

    /// The resource goes and its work is told to stop, in one transaction.
    fn rule_delete(&self, state: &State, name: &ResourceName, source: &str, id: Option<u64>) -> Ruling {
        let Some(unit) = state.cluster.unit(name.as_str()).filter(|u| u.record.is_some() || u.unreadable.is_some()) else {
            return Ruling::Stands(Revision::default(), Outcome::Refused(Refusal::NotFound(name.clone())));
        };
        if let Some(record) = unit.record.as_deref().filter(|r| id.is_some_and(|id| id != r.value.id)) {
            return Ruling::Stands(record.revision, Outcome::Refused(Refusal::NotFound(name.clone())));
        }
        if let Some(record) = unit.record.as_deref().filter(|r| !source.is_empty() && *r.value.source != *source) {
            let refusal = Refusal::OfAnother(name.clone(), source_of(&record.value).into());
            return Ruling::Stands(record.revision, Outcome::Refused(refusal));
        }
        let mut decision = Decision { guards: Vec::new(), writes: vec![Write::delete(Key::Resource(name.clone()))] };
        if let Some(record) = unit.record.as_deref() {
            decision.guards.push(Guard::Modified(Key::Resource(name.clone()), record.revision));
        }
        for holder in unit.holders.iter().filter(|h| h.held.runs() && h.held.epoch != Epoch::default()) {
            decision.stop(name, &holder.worker, &holder.held, Phase::Stop { reason: StopReason::Deleted, to: None });
        }
        let source = if source.is_empty() { "api" } else { source };
        let entry = history::about_resource(EntryKind::Deleted, self.clock.unix_ns(), &self.master, name.as_str(), source);
        let happening = HistoryEntry { from: holder_of(unit), ..entry };
        Ruling::Write(Box::new(decision), happening, Outcome::Deleted)
    }

    /// The answer for a resource that there is already, from what the Cluster shows of it.
    fn standing_answer(&self, state: &State, name: &ResourceName, record: Record, effect: Effect, now: Moment) -> PutAnswer {
        let holder = state.cluster.unit(name.as_str()).and_then(|u| u.holders.first()).filter(|h| h.held.runs());
        let node = holder.map(|h| {
            let address = state.cluster.worker(h.worker.as_str()).and_then(|w| w.registration()).map(|r| r.address.clone());
            (h.worker.clone(), address.unwrap_or_default())
        });
        let pending = match node {
            Some(_) => None,
            None => evenkeel_planner::why_pending(&state.cluster, name.as_str(), now, &self.planner),
        };
        PutAnswer { effect, record, node, reason: None, epoch: holder.map(|h| h.held.epoch).unwrap_or_default(), pending }
    }
}

impl<'a> Asked<'a> {
    /// None: it is about a worker.
    fn of(request: &'a Request) -> Option<Self> {
        match request {
            Request::Put { definition, mode, source, .. } => Some(Self::Put { definition, mode: *mode, source }),
            Request::Delete { name, source, id, .. } => Some(Self::Delete { name, source, id: *id }),
            Request::Intent { .. } | Request::ReleaseBrake { .. } => None,
        }
    }
}

/// The answer of a request, to be given when it is certain.
fn answer(request: Request, outcome: Outcome) -> Option<Answer> {
    match (request, outcome) {
        (Request::Put { reply, .. }, Outcome::Put(answer)) => Some(Answer::Put(reply, Ok(answer))),
        (Request::Put { reply, .. }, Outcome::Refused(refusal)) => Some(Answer::Put(reply, Err(refusal))),
        (Request::Delete { reply, .. }, Outcome::Deleted) => Some(Answer::Delete(reply, Ok(()))),
        (Request::Delete { reply, .. }, Outcome::Refused(refusal)) => Some(Answer::Delete(reply, Err(refusal))),
        _ => None,
    }
}

fn source_of(record: &Record) -> &str {
    if record.source.is_empty() { "api" } else { &record.source }
}

fn holder_of(unit: &Unit) -> String {
    unit.holders.first().map(|h| h.worker.to_string()).unwrap_or_default()
}

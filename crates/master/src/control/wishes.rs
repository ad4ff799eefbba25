//! What becomes of a wish: the one place where adding, changing and deleting are decided. The answer waits for the commit.

use std::collections::BTreeMap;

use evenkeel_model::{
    Decision, Definition, Epoch, Guard, Happening, HappeningKind, Holder, Moment, Pending, Phase, Record, ResourceName, Revision, Session,
    StopReason, Unit, Versioned, WorkerId, Write,
};
use tokio::sync::oneshot;

use super::{
    history,
    request::{Effect, PutAnswer, PutMode, Refusal, Request},
    term::{Decided, Term},
};
use crate::known::Known;

/// An answer that waits for its commit.
pub(super) enum Answer {
    Put {
        reply: oneshot::Sender<Result<PutAnswer, Refusal>>,
        answer: Box<PutAnswer>,
        assigns: bool,
    },
    Delete(oneshot::Sender<Result<(), Refusal>>),
    /// Nothing is written, and this is why.
    NoPut(oneshot::Sender<Result<PutAnswer, Refusal>>, Refusal),
    NoDelete(oneshot::Sender<Result<(), Refusal>>, Refusal),
    Wish(oneshot::Sender<Result<(), Refusal>>),
    NoWish(oneshot::Sender<Result<(), Refusal>>, Refusal),
    Brake(oneshot::Sender<Result<BTreeMap<WorkerId, Session>, Refusal>>, BTreeMap<WorkerId, Session>),
}

impl Answer {
    /// It is written. Who asked may have gone.
    pub(super) fn give(self, revision: Revision) {
        match self {
            Self::Put { reply, mut answer, assigns } => {
                if assigns {
                    answer.epoch = Epoch(revision.0);
                }
                drop(reply.send(Ok(*answer)));
            }
            Self::Delete(reply) | Self::Wish(reply) => drop(reply.send(Ok(()))),
            Self::Brake(reply, sessions) => drop(reply.send(Ok(sessions))),
            Self::NoPut(reply, refusal) => drop(reply.send(Err(refusal))),
            Self::NoDelete(reply, refusal) | Self::NoWish(reply, refusal) => drop(reply.send(Err(refusal))),
        }
    }

    pub(super) fn refuse(self, refusal: Refusal) {
        match self {
            Self::Put { reply, .. } | Self::NoPut(reply, _) => drop(reply.send(Err(refusal))),
            Self::Delete(reply) | Self::NoDelete(reply, _) | Self::Wish(reply) | Self::NoWish(reply, _) => drop(reply.send(Err(refusal))),
            Self::Brake(reply, _) => drop(reply.send(Err(refusal))),
        }
    }
}

/// A put, taken apart.
struct Put {
    definition: Definition,
    mode: PutMode,
    source: Box<str>,
    reply: oneshot::Sender<Result<PutAnswer, Refusal>>,
}

impl Term {
    /// Decides a wish for a resource with which nothing is under way.
    pub(super) fn grant(&mut self, known: &mut Known, request: Request, now: Moment) {
        match request {
            Request::Put { definition, mode, source, reply } => {
                self.put(known, Put { definition: *definition, mode, source, reply }, now);
            }
            Request::Delete { name, source, reply } => self.delete(known, &name, &source, reply, now),
            Request::Wish { worker, wish, reply } => self.want(known, &worker, wish, reply, now),
            Request::ReleaseBrake { reply } => self.release_brake(known, reply, now),
        }
    }

    fn put(&mut self, known: &mut Known, put: Put, now: Moment) {
        let unit = known.cluster.unit(put.definition.name.as_str());
        if unit.is_some_and(|u| u.unreadable.is_some()) {
            let refusal = Refusal::Rejected(format!("the record of {} cannot be read; delete it first", put.definition.name));
            return drop(put.reply.send(Err(refusal)));
        }
        let name = put.definition.name.clone();
        match (unit.and_then(|u| u.record.as_deref()).cloned(), put.mode) {
            (None, PutMode::Update) => {
                let answer = Answer::NoPut(put.reply, Refusal::NotFound(name.clone()));
                self.confirm(known, &name, Revision::default(), answer, now);
            }
            (None, PutMode::Add | PutMode::Apply) => self.create(known, put, now),
            (Some(old), _) if !put.source.is_empty() && old.value.source != put.source => {
                let answer = Answer::NoPut(put.reply, Refusal::OfAnother(name.clone(), source_of(&old.value).into()));
                self.confirm(known, &name, old.revision, answer, now);
            }
            (Some(old), _) if old.value.definition == put.definition => {
                let answer = Box::new(self.standing_answer(known, &name, old.value, Effect::Unchanged, now));
                self.confirm(known, &name, old.revision, Answer::Put { reply: put.reply, answer, assigns: false }, now);
            }
            (Some(old), PutMode::Add) => {
                let answer = Answer::NoPut(put.reply, Refusal::AlreadyExists(name.clone()));
                self.confirm(known, &name, old.revision, answer, now);
            }
            (Some(old), PutMode::Update | PutMode::Apply) => self.change(known, put, old, now),
        }
    }

    /// An answer for which nothing is to be written waits for a transaction all the same, which shows that this master still leads and
    /// that the record which it goes by still stands. A leader that was stopped for a while may go on before it learns that another has
    /// led since; what it answers from memory would be what stood then.
    fn confirm(&mut self, known: &mut Known, name: &ResourceName, stands: Revision, answer: Answer, now: Moment) {
        let decision = Decision { guards: vec![Guard::Resource(name.clone(), stands)], writes: Vec::new() };
        self.decide(known, Decided { decision, name: Some(name), happening: None, answer: Some(answer) }, now);
    }

    /// The resource and its assignment are written in one transaction.
    fn create(&mut self, known: &mut Known, put: Put, now: Moment) {
        let name = put.definition.name.clone();
        let holder = known.cluster.unit(name.as_str()).and_then(|u| u.holders.first()).map(|h| h.worker.clone());
        let choice = match holder {
            Some(worker) => Err(Pending::PreviousRun(worker)),
            None => evenkeel_planner::choose(&known.cluster, &put.definition, now, &self.planner),
        };
        let reason = choice.as_ref().ok().map(|(_, reason)| *reason);
        let choice = choice.map(|(worker, _)| {
            let address = known.cluster.worker(worker.as_str()).and_then(|w| w.registration()).map(|r| r.address.clone());
            (worker, address.unwrap_or_default())
        });
        let time = self.clock.unix_ns();
        let record = Record {
            id: self.snowflakes.next(time),
            creation_time: time,
            assigned_node: choice.as_ref().map(|(worker, address)| Record::node(worker, address)).unwrap_or_default(),
            source: put.source,
            definition: put.definition,
        };
        let source = source_of(&record);
        let why = reason.map_or_else(|| source.to_owned(), |reason| format!("{source}, {}", reason.as_str()));
        let entry = history::about_resource(HappeningKind::Added, time, &self.master, name.as_str(), &why);
        let mut decision = Decision {
            guards: vec![Guard::Resource(name.clone(), Revision::default())],
            writes: vec![Write::Resource(Box::new(record.clone()))],
        };
        let (node, pending) = match choice {
            Ok((worker, address)) => {
                decision.assign(&record.definition, &worker);
                (Some((worker, address)), None)
            }
            Err(pending) => (None, Some(pending)),
        };
        let happening = Some(Happening { worker: node.as_ref().map(|(w, _)| w.to_string()).unwrap_or_default(), ..entry });
        let assigns = node.is_some();
        let answer = PutAnswer { effect: Effect::Created, record, node, reason, epoch: Epoch::default(), pending };
        let answer = Answer::Put { reply: put.reply, answer: Box::new(answer), assigns };
        self.decide(known, Decided { decision, name: Some(&name), happening, answer: Some(answer) }, now);
    }

    /// Only the resource is written; the planner sees what follows from it.
    fn change(&mut self, known: &mut Known, put: Put, old: Versioned<Record>, now: Moment) {
        let name = put.definition.name.clone();
        let rules_changed = old.value.definition.require != put.definition.require;
        let record = Record { definition: put.definition, ..old.value };
        let mut decision =
            Decision { guards: vec![Guard::Resource(name.clone(), old.revision)], writes: vec![Write::Resource(Box::new(record.clone()))] };
        let holder = known.cluster.unit(name.as_str()).and_then(|u| u.holders.first());
        let goes_on = |h: &&Holder| h.held.runs() && h.held.epoch != Epoch::default() && h.held.hash == record.definition.hash();
        if let Some(holder) = holder.filter(goes_on).filter(|_| rules_changed) {
            // The worker checks them too, and it is to check those that are in force.
            decision.give_rules(&record.definition, &holder.worker, &holder.held);
        }
        let happening =
            Some(history::about_resource(HappeningKind::Changed, self.clock.unix_ns(), &self.master, name.as_str(), source_of(&record)));
        let mut answer = self.standing_answer(known, &name, record, Effect::Changed, now);
        if known.cluster.unit(name.as_str()).is_some_and(|u| u.holders.is_empty()) {
            answer.pending = evenkeel_planner::choose(&known.cluster, &answer.record.definition, now, &self.planner).err();
        }
        let answer = Answer::Put { reply: put.reply, answer: Box::new(answer), assigns: false };
        self.decide(known, Decided { decision, name: Some(&name), happening, answer: Some(answer) }, now);
    }

    /// The resource goes and its work is told to stop, in one transaction.
    fn delete(&mut self, known: &mut Known, name: &ResourceName, source: &str, reply: oneshot::Sender<Result<(), Refusal>>, now: Moment) {
        let Some(unit) = known.cluster.unit(name.as_str()).filter(|u| u.record.is_some() || u.unreadable.is_some()) else {
            let answer = Answer::NoDelete(reply, Refusal::NotFound(name.clone()));
            return self.confirm(known, name, Revision::default(), answer, now);
        };
        if let Some(record) = unit.record.as_deref().filter(|r| !source.is_empty() && *r.value.source != *source) {
            let answer = Answer::NoDelete(reply, Refusal::OfAnother(name.clone(), source_of(&record.value).into()));
            let revision = record.revision;
            return self.confirm(known, name, revision, answer, now);
        }
        let mut decision = Decision { guards: Vec::new(), writes: vec![Write::NoResource(name.clone())] };
        if let Some(record) = unit.record.as_deref() {
            decision.guards.push(Guard::Resource(name.clone(), record.revision));
        }
        for holder in unit.holders.iter().filter(|h| h.held.runs() && h.held.epoch != Epoch::default()) {
            decision.stop(name, &holder.worker, &holder.held, Phase::Stop { reason: StopReason::Deleted, to: None });
        }
        let entry = history::about_resource(
            HappeningKind::Deleted,
            self.clock.unix_ns(),
            &self.master,
            name.as_str(),
            if source.is_empty() { "api" } else { source },
        );
        let happening = Some(Happening { from: holder_of(unit), ..entry });
        self.decide(known, Decided { decision, name: Some(name), happening, answer: Some(Answer::Delete(reply)) }, now);
    }

    /// The answer for a resource that stands already, from what the Cluster shows of it.
    fn standing_answer(&self, known: &Known, name: &ResourceName, record: Record, effect: Effect, now: Moment) -> PutAnswer {
        let holder = known.cluster.unit(name.as_str()).and_then(|u| u.holders.first()).filter(|h| h.held.runs());
        let node = holder.map(|h| {
            let address = known.cluster.worker(h.worker.as_str()).and_then(|w| w.registration()).map(|r| r.address.clone());
            (h.worker.clone(), address.unwrap_or_default())
        });
        let pending = match node {
            Some(_) => None,
            None => evenkeel_planner::why_pending(&known.cluster, name.as_str(), now, &self.planner),
        };
        PutAnswer { effect, record, node, reason: None, epoch: holder.map(|h| h.held.epoch).unwrap_or_default(), pending }
    }
}

fn source_of(record: &Record) -> &str {
    if record.source.is_empty() { "api" } else { &record.source }
}

fn holder_of(unit: &Unit) -> String {
    unit.holders.first().map(|h| h.worker.to_string()).unwrap_or_default()
}

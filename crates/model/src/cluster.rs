//! The Cluster: everything the leader knows, built by applying events one by one, with the totals and the agenda that keep planning
//! proportional to what changed. Place in the wheel: between store::watch, which brings the events, and planner::plan, which reads it.
//!
//! It must not decide anything. Each cached total is recomputed by [`crate::check`].

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    Agenda, Change, Classes, Epoch, Held, Holder, Moment, Phase, Rankings, Recent, Record, Relations, ResourceName, Seen, Session,
    Standing, Status, StopReason, Unit, Versioned, Worker, WorkerId,
    agenda::{Due, due_of},
    relations::Count,
};

/// All that is known of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    units: BTreeMap<ResourceName, Unit>,
    workers: BTreeMap<WorkerId, Worker>,
    classes: Classes,
    rankings: Rankings,
    agenda: Agenda,
    /// The workers that are ready, and on which nothing can be placed.
    closed: BTreeSet<WorkerId>,
    /// How many resources have a rule that is relative to others, and, if any, where all resources stand to each other.
    relative: usize,
    relations: Option<Box<Relations>>,
    /// The worker that an assignment was created for last.
    cursor: Option<(Epoch, WorkerId)>,
    /// Workers that were admitted when nothing stood under their id, or that were uncordoned.
    joins: Recent<WorkerId>,
    /// Sessions that ended without a word.
    losses: Recent<WorkerId>,
    /// Resources that were told to move for balance.
    moves: Recent<ResourceName>,
    /// The lost sessions whose work a person has given up waiting for.
    pub(crate) written_off: BTreeMap<WorkerId, Session>,
}

impl Cluster {
    /// Builds a cluster from a whole list.
    #[must_use]
    pub fn from_list(events: impl IntoIterator<Item = Change>, now: Moment) -> Self {
        let mut cluster = Self::default();
        for event in events {
            cluster.apply(event, now);
        }
        cluster
    }

    /// A new leader knows nothing of how long a session has been gone: every wait begins anew.
    pub fn begin_term(&mut self, now: Moment) {
        for worker in self.workers.values_mut() {
            worker.gone_since = worker.gone_since.map(|_| now);
        }
    }

    /// The same observer has listed everything anew: what it had seen of the past stays seen. A session that is gone never comes back,
    /// so it has been gone since then.
    pub fn keep_waits_of(&mut self, old: &Self) {
        let session = |worker: &Worker| worker.admission.as_ref().map(|a| a.value.session);
        for (id, worker) in &mut self.workers {
            let Some(before) = old.workers.get(id) else { continue };
            if let (Some(_), Some(since), true) = (worker.gone_since, before.gone_since, session(before) == session(worker)) {
                worker.gone_since = Some(since);
            }
            if let (Some(_), Some(since), true) = (worker.draining_since, before.draining_since, worker.intent == before.intent) {
                worker.draining_since = Some(since);
            }
        }
        self.joins = old.joins.clone();
        self.losses = old.losses.clone();
        self.moves = old.moves.clone();
    }

    /// Takes in one change. What the Cluster does with it stands with its kind: `Stored::apply` of each value.
    pub fn apply(&mut self, change: Change, now: Moment) {
        let Change { entry, created, modified, error } = change;
        entry.apply(self, Seen { created, modified, error, now });
    }

    pub(crate) fn apply_status(&mut self, worker: &WorkerId, name: &ResourceName, status: Option<Box<Status>>) {
        let Some(unit) = self.units.get_mut(name) else { return };
        // A status without its assignment speaks of an end that is known already.
        if let Some(holder) = unit.holders.iter_mut().find(|h| h.worker == *worker) {
            holder.status = status;
            self.agenda.put(name, due_of(&self.workers, unit));
        }
    }

    pub(crate) fn apply_record(&mut self, name: &ResourceName, record: Option<Box<Versioned<Record>>>, unreadable: Option<Box<str>>) {
        let class = record.as_deref().map(|record| self.classes.enter(&record.value.definition));
        let mut old = None;
        self.with_unit(name, |unit| {
            (unit.record, unit.unreadable) = (record, unreadable);
            old = std::mem::replace(&mut unit.class, class);
        });
        if let Some(old) = old {
            self.classes.leave(old);
        }
    }

    pub(crate) fn apply_assignment(&mut self, id: WorkerId, name: &ResourceName, value: Option<Held>, now: Moment) {
        let worker = self.workers.entry(id.clone()).or_default();
        if value.is_some() {
            worker.names.insert(name.clone());
        } else {
            worker.names.remove(name);
        }
        self.agenda.put_worker(&id, worker);
        let new = value.clone();
        let mut before = None;
        self.with_unit(name, |unit| {
            let at = unit.holders.iter().position(|h| h.worker == id);
            match (at, value) {
                (Some(at), Some(held)) => before = Some(std::mem::replace(&mut unit.holders[at].held, held)),
                (None, Some(held)) => unit.holders.push(Holder { worker: id.clone(), held, status: None }),
                (Some(at), None) => before = Some(unit.holders.remove(at).held),
                (None, None) => {}
            }
        });
        if let Some(new) = new {
            self.note_assignment(&id, name, before.as_ref(), &new, now);
        } else if self.workers.get(&id).is_some_and(Worker::is_empty) {
            self.workers.remove(&id);
        }
    }

    /// Remembers what an assignment tells about the past.
    fn note_assignment(&mut self, id: &WorkerId, name: &ResourceName, before: Option<&Held>, held: &Held, now: Moment) {
        let newest = self.cursor.as_ref().map_or(Epoch::default(), |(epoch, _)| *epoch);
        // Epoch zero: it has just been decided.
        if before.is_none() && (held.epoch == Epoch::default() || held.epoch >= newest) {
            self.cursor = Some((held.epoch.max(newest), id.clone()));
        }
        let is_balance = |held: &Held| matches!(held.phase, Phase::Stop { reason: StopReason::Rebalance, .. });
        if is_balance(held) && !before.is_some_and(is_balance) {
            self.moves.note(name.clone(), now);
        }
    }

    /// Changes one unit and keeps payloads, rankings, relations and agenda true.
    fn with_unit(&mut self, name: &ResourceName, change: impl FnOnce(&mut Unit)) {
        let unit = self.units.entry(name.clone()).or_default();
        let is_relative = |unit: &Unit| unit.definition().is_some_and(|d| d.rules().is_relative());
        let (before, was_relative) = (unit.burden(), is_relative(unit));
        if let Some(relations) = &mut self.relations {
            relate(relations, &self.workers, unit, -1);
        }
        change(unit);
        let (after, is_relative) = (unit.burden(), is_relative(unit));
        if let Some(relations) = &mut self.relations {
            relate(relations, &self.workers, unit, 1);
        }
        self.agenda.put(name, due_of(&self.workers, unit));
        if unit.record.is_none() && unit.unreadable.is_none() && unit.holders.is_empty() {
            self.units.remove(name);
        }
        if before != after {
            if let Some((home, burden)) = before {
                self.carry(&home, |worker| worker.lay_down(burden));
            }
            if let Some((home, burden)) = after {
                self.carry(&home, |worker| worker.take_up(burden));
            }
        }
        self.relative = self.relative + usize::from(is_relative) - usize::from(was_relative);
        match (&self.relations, self.relative) {
            (Some(_), 0) => self.relations = None,
            (None, 1..) => self.relations = Some(Box::new(self.relations_anew())),
            _ => {}
        }
    }

    /// Changes what a worker has to carry, and keeps rankings and agenda true.
    fn carry(&mut self, id: &WorkerId, change: impl FnOnce(&mut Worker)) {
        let worker = self.workers.entry(id.clone()).or_default();
        let old = worker.payload;
        change(worker);
        if let Some(shape) = worker.shape {
            self.rankings.change(id, shape, old, worker.payload);
        }
        self.agenda.put_worker(id, worker);
        if worker.is_empty() {
            self.workers.remove(id);
        }
    }

    /// Where resources stand to each other, counted anew: it costs as much as there are resources.
    #[must_use]
    pub fn relations_anew(&self) -> Relations {
        let mut relations = Relations::default();
        for unit in self.units.values() {
            relate(&mut relations, &self.workers, unit, 1);
        }
        relations
    }

    /// Changes one worker and keeps rankings, relations, agenda and the moments of its loss and its drain true.
    pub(crate) fn with_worker(&mut self, id: &WorkerId, now: Moment, change: impl FnOnce(&mut Worker)) {
        let worker = self.workers.entry(id.clone()).or_default();
        if let Some(shape) = worker.shape.take() {
            self.rankings.remove(id, shape, worker.payload);
        }
        if let Some(capacity) = worker.ready_capacity() {
            self.rankings.leave(capacity);
        }
        let (standing, admitted) = (worker.standing(), worker.admission.as_ref().map(|a| a.value.session));
        let (intent, registered) = (worker.intent, worker.registered.clone());
        change(worker);
        let standing_after = worker.standing();
        let registration_changed = standing != standing_after || registered != worker.registered;
        let admitted_is_gone = matches!(standing_after, Standing::Lost | Standing::Returning);
        let same_loss = admitted == worker.admission.as_ref().map(|a| a.value.session);
        worker.gone_since = match worker.gone_since {
            since @ Some(_) if admitted_is_gone && same_loss => since,
            _ => admitted_is_gone.then_some(now),
        };
        worker.draining_since = match worker.draining_since {
            since @ Some(_) if intent == worker.intent => since,
            _ => worker.intent_kind().is_some_and(crate::IntentKind::is_drain).then_some(now),
        };
        if let Some(capacity) = worker.ready_capacity() {
            self.rankings.enter(capacity);
        }
        if worker.is_closed() {
            self.closed.insert(id.clone());
        } else {
            self.closed.remove(id);
        }
        if worker.is_open()
            && let Some((_, registration)) = worker.registered.as_deref()
        {
            worker.shape = Some(self.rankings.insert(id, registration, worker.payload));
        }
        let is_uncordoned = intent.is_some() && worker.is_open();
        if is_uncordoned || (standing, standing_after) == (Standing::New, Standing::Ready) {
            self.joins.note(id.clone(), now);
        }
        if let Some((session, old)) = registered.as_deref()
            && worker.registered.as_ref().map(|r| r.0) != Some(*session)
            && !old.released
        {
            self.losses.note(id.clone(), now);
        }
        let labels = |registered: &Option<Box<(Session, crate::Registration)>>| registered.as_ref().map(|r| r.1.labels.clone());
        let (old_labels, new_labels) = (labels(&registered), labels(&worker.registered));
        if let Some(relations) = self.relations.as_mut().filter(|_| old_labels != new_labels) {
            relations.relabel(id, old_labels.as_ref(), new_labels.as_ref());
        }
        let names = if registration_changed { worker.names.clone() } else { BTreeSet::new() };
        self.agenda.put_worker(id, worker);
        if worker.is_empty() {
            self.workers.remove(id);
        }
        for name in names {
            if let Some(unit) = self.units.get(&name) {
                self.agenda.put(&name, due_of(&self.workers, unit));
            }
        }
    }

    pub(crate) fn due_of(&self, unit: &Unit) -> Due {
        due_of(&self.workers, unit)
    }

    /// What stands under a name.
    #[must_use]
    pub fn unit(&self, name: &str) -> Option<&Unit> {
        self.units.get(name)
    }

    /// All names in order, from a lower bound on.
    pub fn units_after(&self, after: Option<&str>) -> impl Iterator<Item = (&ResourceName, &Unit)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let lower = after.map_or(Unbounded, Excluded);
        self.units.range::<str, _>((lower, Unbounded))
    }

    /// All names in order, from this one on.
    pub fn units_from(&self, name: &ResourceName) -> impl Iterator<Item = (&ResourceName, &Unit)> + use<'_> {
        self.units.range::<ResourceName, _>(name..)
    }

    /// What stands under a worker's id.
    #[must_use]
    pub fn worker(&self, id: &str) -> Option<&Worker> {
        self.workers.get(id)
    }

    /// All workers in order of their ids.
    pub fn workers(&self) -> impl Iterator<Item = (&WorkerId, &Worker)> {
        self.workers.iter()
    }

    /// The workers on which something can be placed, in the order of their loads.
    #[must_use]
    pub fn rankings(&self) -> &Rankings {
        &self.rankings
    }

    /// How many workers are ready, whatever is wanted of them.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.rankings.ready()
    }

    /// The workers that are ready, and on which nothing can be placed.
    #[must_use]
    pub fn closed(&self) -> &BTreeSet<WorkerId> {
        &self.closed
    }

    /// The workers after one in order of their ids.
    pub fn workers_after(&self, after: &str) -> impl Iterator<Item = &WorkerId> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.workers.range::<str, _>((Excluded(after), Unbounded)).map(|(id, _)| id)
    }

    /// The classes of resources that look the same when a worker is chosen.
    #[must_use]
    pub fn classes(&self) -> &Classes {
        &self.classes
    }

    /// Where resources stand to each other; none: no resource has a rule that depends on it.
    #[must_use]
    pub fn relations(&self) -> Option<&Relations> {
        self.relations.as_deref()
    }

    /// The worker that an assignment was created for last.
    #[must_use]
    pub fn cursor(&self) -> Option<&WorkerId> {
        self.cursor.as_ref().map(|(_, worker)| worker)
    }

    /// Workers that were admitted when nothing stood under their id, or that were uncordoned, as far as this observer has seen it.
    #[must_use]
    pub fn joins(&self) -> &Recent<WorkerId> {
        &self.joins
    }

    /// Sessions that ended without a word, as far as this observer has seen it.
    #[must_use]
    pub fn losses(&self) -> &Recent<WorkerId> {
        &self.losses
    }

    /// Resources that were told to move for balance, as far as this observer has seen it.
    #[must_use]
    pub fn moves(&self) -> &Recent<ResourceName> {
        &self.moves
    }

    /// The lost sessions whose work a person has given up waiting for.
    #[must_use]
    pub fn written_off(&self) -> &BTreeMap<WorkerId, Session> {
        &self.written_off
    }

    /// What may need an action.
    #[must_use]
    pub fn agenda(&self) -> &Agenda {
        &self.agenda
    }

    /// How many resources are wanted or still assigned.
    #[must_use]
    pub fn len(&self) -> usize {
        self.units.len()
    }

    /// Nothing is wanted and nothing is assigned.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }
}

/// Counts a unit in all its places, or takes it away.
fn relate(relations: &mut Relations, workers: &BTreeMap<WorkerId, Worker>, unit: &Unit, sign: i64) {
    let Some(definition) = unit.definition() else { return };
    let home = unit.home();
    for worker in unit.places() {
        let labels = workers.get(worker).and_then(Worker::registration).map(|r| &r.labels);
        let by = Count { home: sign * i64::from(home == Some(worker)), present: sign };
        relations.add(definition, worker, labels, by);
    }
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;

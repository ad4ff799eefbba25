//! The Cluster: everything the leader knows, built by applying events one by one, with the totals and the agenda that keep planning
//! proportional to what changed. Place in the wheel: between store::watch, which brings the events, and planner::plan, which reads it.
//!
//! It must not decide anything. Each cached total is recomputed by [`crate::check`].

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    Agenda, Change, Classes, Definition, Epoch, Held, Holds, Misfit, Moment, Ownership, Phase, Rankings, Recent, Record, Registration,
    Relations, ResourceName, Seen, Session, Standing, Status, StopReason, Unit, Versioned, Worker, WorkerId,
    agenda::{Due, due_of},
    relations::Count,
    reservation::{Counted, Reservation},
    standing::Burden,
    task::Tasks,
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
    /// How many registered workers hold each kind by a fence.
    fenced: BTreeMap<Box<str>, usize>,
    /// How many resources have a rule that is relative to others, and, if any, where all resources stand to each other.
    relative: usize,
    /// How many resources have finished, and of how many it is remembered where they have failed.
    finished: usize,
    failed: usize,
    relations: Option<Box<Relations>>,
    /// The worker that an assignment was created for last.
    cursor: Option<(Epoch, WorkerId)>,
    /// Workers that were admitted when nothing stood under their id, or that were uncordoned.
    joins: Recent<WorkerId>,
    /// Sessions that ended without a word.
    losses: Recent<WorkerId>,
    /// Resources that were told to move for balance.
    moves: Recent<ResourceName>,
    /// Resources that were told to move because they fail.
    failing_moves: Recent<ResourceName>,
    /// When this observer became the leader; zero: it never was.
    leads_since: Moment,
    /// The lost sessions whose work a person has given up waiting for.
    pub(crate) written_off: BTreeMap<WorkerId, Session>,
    pub(crate) tasks: Tasks,
    /// What the leader has decided, by name, until its outcome is known.
    reserved: BTreeMap<ResourceName, Box<Reservation>>,
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
        self.leads_since = now;
        for worker in self.workers.values_mut() {
            worker.gone_since = worker.gone_since.map(|_| now);
        }
        self.tasks.begin_term(now);
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
        self.tasks.keep_waits_of(&old.tasks);
        self.joins = old.joins.clone();
        self.losses = old.losses.clone();
        self.moves = old.moves.clone();
        self.failing_moves = old.failing_moves.clone();
        self.leads_since = old.leads_since;
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
            self.put_on_agenda(name);
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
        self.with_unit(name, |unit| before = unit.assign(&id, value));
        if let Some(new) = new {
            self.note_assignment(&id, name, before.as_ref(), &new, now);
        } else if self.workers.get(&id).is_some_and(Worker::is_empty) {
            self.workers.remove(&id);
        }
    }

    /// Remembers what an assignment tells about the past.
    fn note_assignment(&mut self, id: &WorkerId, name: &ResourceName, before: Option<&Held>, held: &Held, now: Moment) {
        let newest = self.cursor.as_ref().map_or(Epoch::default(), |(epoch, _)| *epoch);
        if before.is_none() && held.epoch >= newest {
            // What this leader has decided itself has had its turn then.
            let worker = self.cursor.take().map(|(_, worker)| worker).filter(|_| self.is_reserved(name)).unwrap_or_else(|| id.clone());
            self.cursor = Some((held.epoch, worker));
        }
        let stops_for = |held: &Held| if let Phase::Stop { reason, .. } = held.phase { Some(reason) } else { None };
        match stops_for(held).filter(|reason| before.and_then(stops_for) != Some(*reason)) {
            Some(StopReason::Rebalance) => self.moves.note(name.clone(), now),
            Some(StopReason::Failing) => self.failing_moves.note(name.clone(), now),
            _ => {}
        }
    }

    /// The worker has been chosen.
    pub(crate) fn pass_turn(&mut self, id: WorkerId) {
        let newest = self.cursor.take().map_or(Epoch::default(), |(epoch, _)| epoch);
        self.cursor = Some((newest, id));
    }

    /// Something is decided of a name, and its outcome is not known yet.
    #[must_use]
    pub fn is_reserved(&self, name: &ResourceName) -> bool {
        self.reserved.contains_key(name)
    }

    /// The names of which something is decided, in order.
    pub fn reserved(&self) -> impl Iterator<Item = &ResourceName> {
        self.reserved.keys()
    }

    fn with_unit(&mut self, name: &ResourceName, change: impl FnOnce(&mut Unit)) {
        self.with_entry(name, |unit, _| change(unit));
    }

    pub(crate) fn with_reservation(&mut self, name: &ResourceName, reservation: Option<Box<Reservation>>) {
        self.with_entry(name, |_, reserved| *reserved = reservation);
    }

    /// One name as the planner counts it.
    pub(crate) fn counted(&self, name: &ResourceName) -> Counted<'_> {
        Counted::new(self.units.get(name), self.reserved.get(name).map(|reservation| &**reservation))
    }

    fn put_on_agenda(&mut self, name: &ResourceName) {
        let due = self.due_of(name);
        self.agenda.put(name, due);
    }

    /// Changes what there is under a name, or what is reserved of it, and keeps payloads, rankings, relations and agenda true.
    fn with_entry(&mut self, name: &ResourceName, change: impl FnOnce(&mut Unit, &mut Option<Box<Reservation>>)) {
        let unit = self.units.entry(name.clone()).or_default();
        let mut reserved = self.reserved.remove(name);
        let is_relative = |counted: Counted<'_>| counted.definition().is_some_and(|d| d.rules().is_relative());
        let counted = Counted::new(Some(unit), reserved.as_deref());
        let (payload, burden, was_relative) = (unit.burden(), counted.burden(), is_relative(counted));
        let (had_finished, had_failed) = (unit.is_finished(), unit.has_failed());
        if let Some(relations) = &mut self.relations {
            relate(relations, &self.workers, counted, -1);
        }
        change(unit, &mut reserved);
        let counted = Counted::new(Some(unit), reserved.as_deref());
        let (payload_after, burden_after, is_relative) = (unit.burden(), counted.burden(), is_relative(counted));
        if let Some(relations) = &mut self.relations {
            relate(relations, &self.workers, counted, 1);
        }
        self.finished = self.finished + usize::from(unit.is_finished()) - usize::from(had_finished);
        self.failed = self.failed + usize::from(unit.has_failed()) - usize::from(had_failed);
        self.agenda.put(name, counted.due().unwrap_or_else(|| due_of(&self.workers, unit)));
        if unit.is_empty() {
            self.units.remove(name);
        }
        if let Some(reserved) = reserved {
            self.reserved.insert(name.clone(), reserved);
        }
        let weigh = |burden: Option<(WorkerId, Burden)>| burden.map(|(home, burden)| (home, burden.weight));
        let (payload, payload_after) = (weigh(payload), weigh(payload_after));
        if payload != payload_after {
            payload.into_iter().for_each(|(home, weight)| self.carry(&home, |worker| worker.payload -= weight));
            payload_after.into_iter().for_each(|(home, weight)| self.carry(&home, |worker| worker.payload += weight));
        }
        if burden != burden_after {
            burden.into_iter().for_each(|(home, burden)| self.carry(&home, |worker| worker.lay_down(burden)));
            burden_after.into_iter().for_each(|(home, burden)| self.carry(&home, |worker| worker.take_up(burden)));
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
        let old = worker.load;
        change(worker);
        if let Some(shape) = worker.shape
            && old != worker.load
        {
            self.rankings.change(id, shape, old, worker.load);
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
        let new = self.reserved.keys().filter(|name| !self.units.contains_key(*name));
        for name in self.units.keys().chain(new) {
            relate(&mut relations, &self.workers, self.counted(name), 1);
        }
        relations
    }

    /// Changes one worker and keeps rankings, relations, agenda and the moments of its loss and its drain true.
    pub(crate) fn with_worker(&mut self, id: &WorkerId, now: Moment, change: impl FnOnce(&mut Worker)) {
        let worker = self.workers.entry(id.clone()).or_default();
        if let Some(shape) = worker.shape.take() {
            self.rankings.remove(id, shape, worker.load);
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
            worker.shape = Some(self.rankings.insert(id, registration, worker.load));
        }
        if registered != worker.registered {
            count_fenced(&mut self.fenced, registered.as_deref(), worker.registered.as_deref());
        }
        let is_uncordoned = intent.is_some() && worker.is_open();
        if is_uncordoned || (standing, standing_after) == (Standing::New, Standing::Ready) {
            self.joins.note(id.clone(), now);
        }
        if let Some((session, old)) = registered.as_deref()
            && worker.registered.as_ref().map(|r| r.0) != Some(*session)
            && !old.released
            && !old.leaving
        {
            self.losses.note(id.clone(), now);
        }
        let labels = |registered: &Option<Box<(Session, crate::Registration)>>| registered.as_ref().map(|r| r.1.labels.clone());
        let (old_labels, new_labels) = (labels(&registered), labels(&worker.registered));
        if let Some(relations) = self.relations.as_mut().filter(|_| old_labels != new_labels) {
            relations.relabel(id, old_labels.as_ref(), new_labels.as_ref());
        }
        let was_registered = registered.is_some();
        let is_registered = worker.registered.is_some();
        let names = if registration_changed { worker.names.clone() } else { BTreeSet::new() };
        self.agenda.put_worker(id, worker);
        if worker.is_empty() {
            self.workers.remove(id);
        }
        if was_registered != is_registered {
            self.see_worker_of_tasks(id, (!is_registered).then_some(now));
        }
        for name in names {
            self.put_on_agenda(&name);
        }
    }

    pub(crate) fn due_of(&self, name: &ResourceName) -> Due {
        let due = || self.units.get(name).map_or(Due::Nothing, |unit| due_of(&self.workers, unit));
        self.counted(name).due().unwrap_or_else(due)
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

    /// A worker may follow on what others have run of a definition: where a kind is fenced anywhere, only a worker that shows its epoch to the fence may
    /// run what is exclusive. What ran by the fence alone would not notice any other.
    ///
    /// # Errors
    /// [`Misfit::Unfenced`].
    pub fn shares_fence(&self, definition: &Definition, worker: &Registration) -> Result<(), Misfit> {
        let kind = &*definition.kind;
        if self.fenced.is_empty() || !self.fenced.contains_key(kind) || definition.ownership == Ownership::Available {
            return Ok(());
        }
        if worker.driver(kind).holds == Holds::Fenced { Ok(()) } else { Err(Misfit::Unfenced(kind.into())) }
    }

    /// How many registered workers hold each kind by a fence.
    pub(crate) fn fenced(&self) -> &BTreeMap<Box<str>, usize> {
        &self.fenced
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

    /// Resources that were told to move because they fail, as far as this observer has seen it.
    #[must_use]
    pub fn failing_moves(&self) -> &Recent<ResourceName> {
        &self.failing_moves
    }

    /// When this observer became the leader, before which it may have seen nothing; zero: it never was.
    #[must_use]
    pub fn leads_since(&self) -> Moment {
        self.leads_since
    }

    /// How many resources have finished.
    #[must_use]
    pub fn finished(&self) -> usize {
        self.finished
    }

    /// Of how many resources it is remembered on which workers they have failed.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.failed
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

/// Counts a name in all its places, or takes it away.
fn relate(relations: &mut Relations, workers: &BTreeMap<WorkerId, Worker>, counted: Counted<'_>, sign: i64) {
    let Some(definition) = counted.definition() else { return };
    let home = counted.home();
    for worker in counted.places() {
        let labels = workers.get(worker).and_then(Worker::registration).map(|r| &r.labels);
        let by = Count { home: sign * i64::from(home == Some(worker)), present: sign };
        relations.add(definition, worker, labels, by);
    }
}

/// Counts how many registered workers hold each kind by a fence, now that one says something else.
fn count_fenced(fenced: &mut BTreeMap<Box<str>, usize>, before: Option<&(Session, Registration)>, after: Option<&(Session, Registration)>) {
    for (session, adds) in [(before, false), (after, true)] {
        for kind in fenced_kinds(session.map(|(_, registration)| registration)) {
            let count = fenced.entry(kind.into()).or_default();
            *count = if adds { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                fenced.remove(kind);
            }
        }
    }
}

/// The kinds that a worker holds by a fence.
pub(crate) fn fenced_kinds(registration: Option<&Registration>) -> impl Iterator<Item = &str> {
    let drivers = registration.into_iter().flat_map(|registration| &registration.drivers);
    drivers.filter(|(_, driver)| driver.holds == Holds::Fenced).map(|(kind, _)| kind.as_str())
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;

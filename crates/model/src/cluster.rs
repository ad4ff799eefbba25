//! The Cluster: everything the leader knows, built by applying events one by one, with the totals and the agenda that keep planning
//! proportional to what changed. Place in the wheel: between store::watch, which brings the events, and planner::plan, which reads it.
//!
//! It must not decide anything. Each cached total is recomputed by [`crate::check`].

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    Admission, Epoch, Event, Held, Moment, Observed, Ownership, Phase, Record, Registration, ResourceName, Session, Status, Versioned,
    WorkerId, fit,
};

/// All that is known of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    units: BTreeMap<ResourceName, Unit>,
    workers: BTreeMap<WorkerId, Worker>,
    ranking: BTreeSet<Rank>,
    agenda: Agenda,
}

/// One name: the resource that is wanted, and the assignments that stand for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// What is wanted; none: nothing of that name.
    pub record: Option<Box<Versioned<Record>>>,
    /// A record stands that cannot be read; then nothing is known of what is wanted.
    pub unreadable: Option<Box<str>>,
    /// At most one, as long as the protocol holds.
    pub holders: Vec<Holder>,
}

/// An assignment of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Whose assignment it is.
    pub worker: WorkerId,
    /// What it says.
    pub held: Held,
    /// What the worker last said of it; none: unknown.
    pub status: Option<Box<Status>>,
}

/// A worker id, with what stands under it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Worker {
    /// The live session and what it says of itself.
    pub registered: Option<Box<(Session, Registration)>>,
    /// The session that may run the worker's assignments.
    pub admission: Option<Box<Versioned<Admission>>>,
    /// When the admitted session was first seen to be gone, by this observer's clock.
    pub gone_since: Option<Moment>,
    /// What is assigned to it.
    pub names: BTreeSet<ResourceName>,
    /// The weights of the resources that are at home here: assigned to run, or on their way here.
    pub payload: u64,
}

/// What a worker's keys say of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Neither registered nor admitted: nothing runs there.
    Absent,
    /// Registered, not admitted, and no earlier session is: nothing runs there yet.
    New,
    /// Registered; an earlier session that is gone is still the admitted one.
    Returning,
    /// The registered session is the admitted one.
    Ready,
    /// The admitted session has stopped everything and says so.
    Released,
    /// The admitted session is gone and no other has come.
    Lost,
}

/// A ready worker in the order of its payload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// See [`Worker::payload`].
    pub payload: u64,
    /// Ties are broken by id.
    pub worker: WorkerId,
}

/// What may need an action. A settled cluster has an empty agenda.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agenda {
    /// Wanted, and assigned nowhere.
    pub unplaced: BTreeSet<ResourceName>,
    /// Assigned, and not as wanted.
    pub attention: BTreeSet<ResourceName>,
    /// Told to stop, and not yet heard of.
    pub stopping: BTreeSet<ResourceName>,
    /// Not ready, and something stands under their id.
    pub workers: BTreeSet<WorkerId>,
}

impl Unit {
    /// The worker where the unit's weight counts: where it is to run, or where it is meant to go.
    #[must_use]
    pub fn home(&self) -> Option<&WorkerId> {
        self.record.as_ref()?;
        let running = self.holders.iter().find(|h| h.held.runs());
        running.map(|h| &h.worker).or_else(|| self.holders.iter().find_map(Holder::destination))
    }

    fn weight(&self) -> u64 {
        self.record.as_ref().map_or(0, |r| u64::from(r.value.definition.weight))
    }
}

impl Holder {
    fn destination(&self) -> Option<&WorkerId> {
        match &self.held.phase {
            Phase::Stop { to, .. } => to.as_ref(),
            Phase::Run => None,
        }
    }

    /// The worker has reported that this very epoch is stopped.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        let epoch = self.held.epoch;
        epoch != Epoch::default() && self.status.as_ref().is_some_and(|s| s.epoch == epoch && s.phase == Observed::Stopped)
    }
}

impl Worker {
    /// What its keys say of it.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match (self.registered.as_deref(), self.admission.as_deref()) {
            (None, None) => Standing::Absent,
            (None, Some(_)) => Standing::Lost,
            (Some((_, registration)), None) if registration.released => Standing::Released,
            (Some(_), None) => Standing::New,
            (Some((session, registration)), Some(admission)) if admission.value.session == *session => {
                if registration.released {
                    Standing::Released
                } else {
                    Standing::Ready
                }
            }
            (Some(_), Some(_)) => Standing::Returning,
        }
    }

    /// How long a leader that waits for `least` has to wait for the end of the admitted session's authority: no less than that session
    /// said when it was admitted, by whichever leader.
    #[must_use]
    pub fn wait(&self, least: Duration) -> Duration {
        let said = self.admission.as_deref().and_then(|admission| admission.value.authority_ms);
        said.map_or(least, |ms| least.max(crate::wait_for(Duration::from_millis(ms))))
    }

    /// When the authority of the admitted session has surely ended, for a leader that waits for `least`; none: it was not seen to be gone.
    #[must_use]
    pub fn authority_ends(&self, least: Duration) -> Option<Moment> {
        self.gone_since.map(|since| since.after(self.wait(least)))
    }

    /// The registration of the live session.
    #[must_use]
    pub fn registration(&self) -> Option<&Registration> {
        self.registered.as_ref().map(|r| &r.1)
    }

    fn is_empty(&self) -> bool {
        self.is_bare() && self.payload == 0
    }

    /// Nothing stands under its id; at most something is on its way here.
    fn is_bare(&self) -> bool {
        self.registered.is_none() && self.admission.is_none() && self.names.is_empty()
    }

    pub(crate) fn is_on_agenda(&self) -> bool {
        self.standing() != Standing::Ready && !self.is_bare()
    }
}

impl Cluster {
    /// Builds a cluster from a whole list.
    #[must_use]
    pub fn from_list(events: impl IntoIterator<Item = Event>, now: Moment) -> Self {
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

    /// The same observer has listed everything anew: a session that it had seen to be gone has been gone since then, for it never
    /// comes back.
    pub fn keep_waits_of(&mut self, old: &Self) {
        let session = |worker: &Worker| worker.admission.as_ref().map(|a| a.value.session);
        for (id, worker) in &mut self.workers {
            let Some(before) = old.workers.get(id).filter(|before| session(before) == session(worker)) else { continue };
            if let (Some(_), Some(since)) = (worker.gone_since, before.gone_since) {
                worker.gone_since = Some(since);
            }
        }
    }

    /// Takes in one event.
    pub fn apply(&mut self, event: Event, now: Moment) {
        match event {
            Event::Resource { name, value } => self.with_unit(&name, |unit| {
                unit.record = value;
                unit.unreadable = None;
            }),
            Event::Unreadable { name, error } => self.with_unit(&name, |unit| {
                unit.record = None;
                unit.unreadable = Some(error);
            }),
            Event::Worker { id, value } => self.with_worker(&id, now, |worker| worker.registered = value),
            Event::Admission { worker, value } => self.with_worker(&worker, now, |w| w.admission = value),
            Event::Assignment { worker, name, value } => self.apply_assignment(worker, &name, value, now),
            Event::Status { worker, name, value } => self.with_unit(&name, |unit| {
                // A status without its assignment speaks of an end that is known already.
                if let Some(holder) = unit.holders.iter_mut().find(|h| h.worker == worker) {
                    holder.status = value;
                }
            }),
        }
    }

    fn apply_assignment(&mut self, id: WorkerId, name: &ResourceName, value: Option<Held>, now: Moment) {
        let stands = value.is_some();
        self.with_unit(name, |unit| {
            let at = unit.holders.iter().position(|h| h.worker == id);
            match (at, value) {
                (Some(at), Some(held)) => unit.holders[at].held = held,
                (None, Some(held)) => unit.holders.push(Holder { worker: id.clone(), held, status: None }),
                (Some(at), None) => drop(unit.holders.remove(at)),
                (None, None) => {}
            }
        });
        self.with_worker(&id, now, |worker| {
            if stands {
                worker.names.insert(name.clone());
            } else {
                worker.names.remove(name);
            }
        });
        // The unit was classified before its worker was known to exist.
        self.classify(name);
    }

    /// Changes one unit and keeps payloads, ranking and agenda true.
    fn with_unit(&mut self, name: &ResourceName, change: impl FnOnce(&mut Unit)) {
        let unit = self.units.entry(name.clone()).or_default();
        let before = unit.home().cloned().map(|home| (home, unit.weight()));
        change(unit);
        let after = unit.home().cloned().map(|home| (home, unit.weight()));
        if unit.record.is_none() && unit.unreadable.is_none() && unit.holders.is_empty() {
            self.units.remove(name);
        }
        if before != after {
            if let Some((home, weight)) = before {
                self.add_payload(&home, |payload| payload - weight);
            }
            if let Some((home, weight)) = after {
                self.add_payload(&home, |payload| payload + weight);
            }
        }
        self.classify(name);
    }

    fn add_payload(&mut self, id: &WorkerId, change: impl FnOnce(u64) -> u64) {
        let worker = self.workers.entry(id.clone()).or_default();
        let ready = worker.standing() == Standing::Ready;
        let old = worker.payload;
        worker.payload = change(old);
        if ready {
            let payload = worker.payload;
            self.ranking.remove(&Rank { payload: old, worker: id.clone() });
            self.ranking.insert(Rank { payload, worker: id.clone() });
        } else if worker.is_empty() {
            self.workers.remove(id);
        }
    }

    /// Changes one worker and keeps ranking, agenda and the moment of its loss true.
    fn with_worker(&mut self, id: &WorkerId, now: Moment, change: impl FnOnce(&mut Worker)) {
        let worker = self.workers.entry(id.clone()).or_default();
        let (standing, session) = (worker.standing(), worker.admission.as_ref().map(|a| a.value.session));
        let registered = worker.registered.as_ref().map(|r| r.0);
        let names = worker.names.len();
        change(worker);
        let standing_after = worker.standing();
        let admitted_is_gone = matches!(standing_after, Standing::Lost | Standing::Returning);
        let same_loss = session == worker.admission.as_ref().map(|a| a.value.session);
        worker.gone_since = match worker.gone_since {
            since @ Some(_) if admitted_is_gone && same_loss => since,
            _ => admitted_is_gone.then_some(now),
        };
        let rank = Rank { payload: worker.payload, worker: id.clone() };
        if standing_after == Standing::Ready {
            self.ranking.insert(rank);
        } else {
            self.ranking.remove(&rank);
        }
        let registration_changed = registered != worker.registered.as_ref().map(|r| r.0) || standing != standing_after;
        if worker.is_on_agenda() {
            self.agenda.workers.insert(id.clone());
        } else {
            self.agenda.workers.remove(id);
        }
        if worker.is_empty() {
            self.workers.remove(id);
        }
        if registration_changed && names > 0 {
            for name in self.workers.get(id).map(|w| w.names.clone()).unwrap_or_default() {
                self.classify(&name);
            }
        }
    }

    /// Puts one unit where it belongs on the agenda.
    fn classify(&mut self, name: &ResourceName) {
        let class = self.units.get(name).map_or(Class::Settled, |unit| self.class_of(unit));
        let agenda = &mut self.agenda;
        for (set, wanted) in
            [(&mut agenda.unplaced, Class::Unplaced), (&mut agenda.attention, Class::Attention), (&mut agenda.stopping, Class::Stopping)]
        {
            if class == wanted {
                set.insert(name.clone());
            } else {
                set.remove(name);
            }
        }
    }

    pub(crate) fn class_of(&self, unit: &Unit) -> Class {
        if unit.unreadable.is_some() {
            return Class::Settled;
        }
        match (&unit.record, unit.holders.as_slice()) {
            (None, []) => Class::Settled,
            (Some(_), []) => Class::Unplaced,
            // Decided, and not yet known to be written: nothing can be said to its epoch.
            (_, [holder]) if holder.held.epoch == Epoch::default() => Class::Settled,
            (_, [holder]) if holder.is_stopped() => Class::Attention,
            (_, [holder]) if !holder.held.runs() => Class::Stopping,
            (Some(record), [holder]) if self.is_as_wanted(&record.value, holder) => Class::Settled,
            _ => Class::Attention,
        }
    }

    fn is_as_wanted(&self, record: &Record, holder: &Holder) -> bool {
        if record.definition.hash() != holder.held.hash {
            return false;
        }
        let Some(worker) = self.workers.get(&holder.worker) else { return true };
        let standing = worker.standing();
        if matches!(standing, Standing::Lost | Standing::Returning) {
            return record.definition.ownership == Ownership::Exclusive;
        }
        // Of a worker that is not ready nothing is known that could be held against it.
        let Some(registration) = worker.registration().filter(|_| standing == Standing::Ready) else { return true };
        fit::may_run(&record.definition, &holder.worker, registration).is_ok()
            && *record.assigned_node == *Record::node(&holder.worker, &registration.address)
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

    /// What stands under a worker's id.
    #[must_use]
    pub fn worker(&self, id: &str) -> Option<&Worker> {
        self.workers.get(id)
    }

    /// All workers in order of their ids.
    pub fn workers(&self) -> impl Iterator<Item = (&WorkerId, &Worker)> {
        self.workers.iter()
    }

    /// The ready workers, least loaded first.
    #[must_use]
    pub fn ranking(&self) -> &BTreeSet<Rank> {
        &self.ranking
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

/// Which set of the agenda a unit belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Settled,
    Unplaced,
    Attention,
    Stopping,
}

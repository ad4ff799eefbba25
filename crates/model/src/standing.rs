//! What stands under one resource's name and under one worker's id, and what follows from the keys alone. Held by the Cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    Admission, ClassId, Definition, Epoch, Held, Holds, Intent, IntentKind, Moment, Observed, Ownership, Phase, Rebalance, Record,
    Registration, ResourceName, Session, ShapeId, Status, StopReason, Versioned, WorkerId, fit,
};

/// One name: the resource that is wanted, and the assignments that stand for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// What is wanted; none: nothing of that name.
    pub record: Option<Box<Versioned<Record>>>,
    /// A record stands that cannot be read; then nothing is known of what is wanted.
    pub unreadable: Option<Box<str>>,
    /// At most one, as long as the protocol holds.
    pub holders: Vec<Holder>,
    /// What it looks like when a worker is chosen; none: nothing is wanted.
    pub class: Option<ClassId>,
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
    /// The weights of the resources that are at home here, by what is committed: assigned to run, or on their way here.
    pub payload: u64,
    /// The same with what is decided and under way, which is what the planner goes by.
    pub load: u64,
    /// How many are at home here, counted as in `load`.
    pub homes: usize,
    /// How many of those balance may move, by class.
    pub movable: BTreeMap<ClassId, usize>,
    /// What a person wants of it; none: nothing.
    pub intent: Option<Intent>,
    /// A cordon or a drain that is decided and under way: nothing is placed here from then on.
    pub closing: Option<IntentKind>,
    /// When it was first seen that it is to be drained, by this observer's clock.
    pub draining_since: Option<Moment>,
    /// What rules can see of it, while something can be placed on it.
    pub shape: Option<ShapeId>,
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
    /// The session has stopped all resources and runs none any more; it keeps its id, for scripts of tasks that still run.
    Leaving,
    /// The admitted session has stopped everything and says so.
    Released,
    /// The admitted session is gone and no other has come.
    Lost,
}

impl Unit {
    /// The worker where the unit's weight counts: where it is to run, or where it is meant to go.
    #[must_use]
    pub fn home(&self) -> Option<&WorkerId> {
        self.record.as_ref()?;
        let running = self.holders.iter().find(|h| h.held.runs());
        running.map(|h| &h.worker).or_else(|| self.holders.iter().find_map(Holder::destination))
    }

    /// What is wanted.
    #[must_use]
    pub fn definition(&self) -> Option<&Definition> {
        self.record.as_deref().map(|record| &record.value.definition)
    }

    /// It has finished: it is wanted, and runs no more.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.record.as_deref().is_some_and(|record| record.value.finish().is_some())
    }

    /// It is remembered on which workers it has failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.record.as_deref().is_some_and(|record| !record.value.failed_on().is_empty())
    }

    /// The assignment whose status says that the resource has finished, where its record does not say so yet.
    #[must_use]
    pub fn unnoted_finish(&self) -> Option<(&Holder, &Status)> {
        let (record, [holder]) = (&self.record.as_deref()?.value, self.holders.as_slice()) else { return None };
        let status = holder.observed().filter(|status| status.finished)?;
        // An end that was noted already, or came before the resource was deleted, says nothing of what was added since.
        let is_of_past = matches!(holder.held.phase, Phase::Stop { reason: StopReason::Deleted | StopReason::Finished, .. });
        // What has ended before it took a change is not what is wanted now.
        let is_wanted = holder.held.has_work_of(&record.definition) && status.is_of(holder.held.hash);
        (!is_of_past && record.finish().is_none() && is_wanted).then_some((holder, status))
    }

    /// Nothing stands under the name.
    pub(crate) fn is_empty(&self) -> bool {
        self.record.is_none() && self.unreadable.is_none() && self.holders.is_empty()
    }

    /// Every worker where something of it is, or is meant to be.
    pub(crate) fn places(&self) -> BTreeSet<&WorkerId> {
        self.holders.iter().map(|h| &h.worker).chain(self.home()).collect()
    }

    /// What it adds to its home's totals.
    pub(crate) fn burden(&self) -> Option<(WorkerId, Burden)> {
        let (home, definition) = (self.home()?, self.definition()?);
        Some((home.clone(), Burden { weight: u64::from(definition.weight), movable: self.class.filter(|_| definition.is_movable()) }))
    }
}

/// What one unit adds to its home's totals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Burden {
    pub(crate) weight: u64,
    /// Its class, if balance may move it.
    pub(crate) movable: Option<ClassId>,
}

impl Definition {
    /// Balance may move it.
    #[must_use]
    pub fn is_movable(&self) -> bool {
        self.pin.is_none() && self.rules().rebalance == Rebalance::Auto
    }
}

impl Holder {
    fn destination(&self) -> Option<&WorkerId> {
        match &self.held.phase {
            Phase::Stop { to, .. } => to.as_ref(),
            Phase::Run => None,
        }
    }

    /// The worker runs what the assignment said before: a change in place is not taken yet.
    #[must_use]
    pub fn is_changing(&self) -> bool {
        self.held.runs() && self.observed().is_some_and(|status| !status.hash.is_empty() && status.hash != self.held.hash)
    }

    /// The worker cannot take what the assignment says now without a restart, which needs another epoch.
    #[must_use]
    pub fn needs_restart(&self) -> bool {
        let asks = |status: &Status| !status.restart_for.is_empty() && status.restart_for == self.held.hash;
        self.held.runs() && self.observed().is_some_and(asks)
    }

    /// How it is owned: as the definition says, and where none is left as strictly as it can be. Loose work is never placed to be exclusive.
    #[must_use]
    pub fn ownership(&self, definition: Option<&Definition>) -> Ownership {
        let without = if self.held.holds == Holds::Loose { Ownership::Available } else { Ownership::Exclusive };
        definition.map_or(without, |definition| definition.ownership)
    }

    /// Its worker keeps what the leader concludes from the assignment, and that is enough for how the definition is to be owned.
    #[must_use]
    pub fn is_held_well(&self, registration: &Registration, definition: &Definition) -> bool {
        registration.driver(&definition.kind).holds.may_run(self.held.holds) && self.held.is_held_well_for(definition)
    }

    /// The work that `worker` runs may be given this definition under the same epoch: it runs, and its driver takes such a change. What rests is started
    /// anew instead, with another epoch.
    #[must_use]
    pub fn takes_in_place(&self, worker: Option<&Worker>, definition: &Definition) -> bool {
        let rests = |status: &Status| {
            status.finished || matches!(status.phase, Observed::Exited | Observed::Failed | Observed::Stopping | Observed::Stopped)
        };
        if !self.held.runs() || self.observed().is_some_and(rests) {
            return false;
        }
        let registration = worker.filter(|worker| worker.standing() == Standing::Ready).and_then(Worker::registration);
        registration.is_some_and(|registration| {
            let driver = registration.driver(&definition.kind);
            self.is_held_well(registration, definition) && self.held.work.is_in_place(definition.work(), driver)
        })
    }

    /// What the worker says of this very epoch.
    #[must_use]
    pub fn observed(&self) -> Option<&Status> {
        self.status.as_deref().filter(|status| status.epoch == self.held.epoch && status.epoch != Epoch::default())
    }

    /// The worker has reported that this very epoch is stopped.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.observed().is_some_and(|status| status.phase == Observed::Stopped)
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
            (Some((_, registration)), None) if registration.leaving => Standing::Leaving,
            (Some(_), None) => Standing::New,
            (Some((session, registration)), Some(admission)) if admission.value.session == *session => {
                match (registration.released, registration.leaving) {
                    (true, _) => Standing::Released,
                    (false, true) => Standing::Leaving,
                    (false, false) => Standing::Ready,
                }
            }
            (Some(_), Some(_)) => Standing::Returning,
        }
    }

    /// How long a leader that waits for `least` has to wait for the end of the admitted session's authority: no less than that session
    /// said when it was admitted, by whichever leader, up to [`crate::limits::MAX_AUTHORITY`].
    #[must_use]
    pub fn wait(&self, least: Duration) -> Duration {
        self.authority().map_or(least, |(authority, _)| least.max(crate::wait_for(authority)))
    }

    /// The admitted session claims more authority than a leader waits for.
    #[must_use]
    pub fn claims_too_much(&self) -> bool {
        self.authority().is_some_and(|(_, claims_too_much)| claims_too_much)
    }

    fn authority(&self) -> Option<(Duration, bool)> {
        self.admission.as_deref().and_then(|admission| admission.value.authority())
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

    /// What is wanted of it.
    #[must_use]
    pub fn intent_kind(&self) -> Option<IntentKind> {
        self.intent.map(|intent| intent.kind)
    }

    /// It is ready, and something can be placed on it as far as persons are concerned.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.standing() == Standing::Ready && !self.is_unwanted()
    }

    fn is_unwanted(&self) -> bool {
        self.intent.is_some() || self.closing.is_some()
    }

    /// It is ready, and nothing can be placed on it.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.standing() == Standing::Ready && self.is_unwanted()
    }

    /// Its capacity, if it is ready.
    pub(crate) fn ready_capacity(&self) -> Option<Option<u64>> {
        self.registration().filter(|_| self.standing() == Standing::Ready).map(|r| r.capacity)
    }

    /// Its admitted session is gone, and something is assigned to it.
    #[must_use]
    pub fn is_gone_with_work(&self) -> bool {
        matches!(self.standing(), Standing::Lost | Standing::Returning) && !self.names.is_empty()
    }

    /// It is ready, and what it has is to leave it.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.standing() == Standing::Ready && self.intent_kind().is_some_and(IntentKind::is_drain)
    }

    /// As a place for something, if it is ready.
    #[must_use]
    pub fn place<'a>(&'a self, id: &'a WorkerId) -> Option<fit::Place<'a>> {
        let registration = self.registration().filter(|_| self.standing() == Standing::Ready)?;
        Some(fit::Place { id, registration, intent: self.intent_kind().or(self.closing), payload: self.load })
    }

    /// What it has is more than its capacity. One that takes nothing, since its registration cannot be read, keeps what it has.
    #[must_use]
    pub fn is_over_capacity(&self) -> bool {
        let capacity = self.registration().filter(|_| self.standing() == Standing::Ready).and_then(|r| r.capacity);
        capacity.is_some_and(|capacity| capacity > 0 && self.load > capacity)
    }

    pub(crate) fn take_up(&mut self, burden: Burden) {
        self.load += burden.weight;
        self.homes += 1;
        if let Some(class) = burden.movable {
            *self.movable.entry(class).or_default() += 1;
        }
    }

    pub(crate) fn lay_down(&mut self, burden: Burden) {
        self.load -= burden.weight;
        self.homes -= 1;
        let Some(class) = burden.movable else { return };
        let count = self.movable.entry(class).or_default();
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.movable.remove(&class);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.is_bare() && self.payload == 0 && self.load == 0 && !self.is_unwanted()
    }

    /// Nothing stands under its id; at most something is on its way here.
    fn is_bare(&self) -> bool {
        self.registered.is_none() && self.admission.is_none() && self.names.is_empty()
    }

    pub(crate) fn is_on_agenda(&self) -> bool {
        self.standing() != Standing::Ready && !self.is_bare()
    }
}

//! Reservations: what the leader has decided and etcd has not confirmed yet, beside the committed state of the Cluster. Place in the wheel: a
//! decision is reserved before store::commit has it, and released when its outcome is known, whatever that is.
//!
//! Whoever reads the Cluster sees what is committed. Planner and checks see the reservations too: what is reserved counts where it will be,
//! and nothing is planned for it. A reservation decides nothing, and a Cluster without reservations is the Cluster of any follower.

use std::collections::BTreeSet;

use crate::{
    Cluster, Definition, Entry, Epoch, Held, Holder, IntentKind, Moment, ResourceName, Revision, Unit, Versioned, WorkerId, Write,
    agenda::Due, standing::Burden,
};

/// What will be of one name when what is decided of it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reservation {
    expected: Unit,
}

/// One name as the planner counts it: as it is, or as it will be.
#[derive(Clone, Copy)]
pub(crate) struct Counted<'a> {
    unit: Option<&'a Unit>,
    reservation: Option<&'a Reservation>,
}

impl Reservation {
    /// What `writes` make of what there is under a name.
    fn of(unit: Option<&Unit>, writes: &[Write]) -> Self {
        let mut expected = unit.cloned().unwrap_or_default();
        // Balance moves nothing that is under way.
        expected.class = None;
        for write in writes {
            match &write.entry {
                Entry::Resource(_, value) => {
                    let versioned = |value| Box::new(Versioned { revision: Revision::default(), value });
                    expected.record = value.clone().map(versioned);
                }
                Entry::Assignment(worker, _, value) => {
                    let held = value.as_ref().map(|assignment| Held::of(Epoch(write.created.0), assignment));
                    drop(expected.assign(worker, held));
                }
                _ => {}
            }
        }
        Self { expected }
    }
}

impl Unit {
    /// Puts or takes away the assignment to a worker, and returns the one before.
    pub(crate) fn assign(&mut self, worker: &WorkerId, held: Option<Held>) -> Option<Held> {
        match (self.holders.iter().position(|h| h.worker == *worker), held) {
            (Some(at), Some(held)) => Some(std::mem::replace(&mut self.holders[at].held, held)),
            (None, Some(held)) => {
                self.holders.push(Holder { worker: worker.clone(), held, status: None });
                None
            }
            (Some(at), None) => Some(self.holders.remove(at).held),
            (None, None) => None,
        }
    }
}

impl<'a> Counted<'a> {
    pub(crate) fn new(unit: Option<&'a Unit>, reservation: Option<&'a Reservation>) -> Self {
        Self { unit, reservation }
    }

    /// As it will be, where something is decided.
    fn expected(self) -> Option<&'a Unit> {
        self.reservation.map(|reservation| &reservation.expected).or(self.unit)
    }

    /// What is wanted.
    pub(crate) fn definition(self) -> Option<&'a Definition> {
        self.expected().and_then(Unit::definition)
    }

    /// Where it counts.
    pub(crate) fn home(self) -> Option<&'a WorkerId> {
        self.expected().and_then(Unit::home)
    }

    /// What it adds to its home's totals.
    pub(crate) fn burden(self) -> Option<(WorkerId, Burden)> {
        self.expected().and_then(Unit::burden)
    }

    /// Every worker where something of it is, or is meant to be: what is to go is there until that is written.
    pub(crate) fn places(self) -> BTreeSet<&'a WorkerId> {
        let now = self.unit.into_iter().flat_map(Unit::places);
        now.chain(self.expected().into_iter().flat_map(Unit::places)).collect()
    }

    /// What is due with it while something is under way: nothing, but a stop counts as one from the moment it is decided.
    pub(crate) fn due(self) -> Option<Due> {
        let expected = &self.reservation?.expected;
        let stops = |holder: &Holder| match &holder.held.phase {
            crate::Phase::Stop { reason, .. } => Some(*reason),
            crate::Phase::Run => None,
        };
        Some(expected.holders.iter().find_map(stops).map_or(Due::Nothing, Due::Stopping))
    }
}

impl Cluster {
    /// Counts what is decided where it will be. At most one decision of a name, and one of a worker, is under way at a time.
    pub fn reserve(&mut self, writes: &[Write], now: Moment) {
        for write in writes {
            match &write.entry {
                Entry::Intent(worker, intent) => self.close(worker, intent.map(|intent| intent.kind), now),
                // The next choice in turn goes by what is decided.
                Entry::Assignment(worker, ..) if write.creates_assignment() => self.pass_turn(worker.clone()),
                _ => {}
            }
        }
        self.reserve_tasks(writes, true);
        if let Some(name) = resource_of(writes) {
            debug_assert!(!self.is_reserved(name), "one thing after another is done with {name}");
            let reservation = Reservation::of(self.unit(name.as_str()), writes);
            self.with_reservation(name, Some(Box::new(reservation)));
        }
    }

    /// What was reserved is committed, and was applied before this; or it never will be.
    pub fn release(&mut self, writes: &[Write], now: Moment) {
        for write in writes {
            if let Entry::Intent(worker, _) = &write.entry {
                self.close(worker, None, now);
            }
        }
        self.reserve_tasks(writes, false);
        if let Some(name) = resource_of(writes) {
            self.with_reservation(name, None);
        }
    }

    /// Nothing is placed on a worker from the moment on that a person wants it, and not only when that is written.
    fn close(&mut self, id: &WorkerId, kind: Option<IntentKind>, now: Moment) {
        self.with_worker(id, now, |worker| worker.closing = kind);
    }
}

fn resource_of(writes: &[Write]) -> Option<&ResourceName> {
    writes.iter().find_map(Write::resource)
}

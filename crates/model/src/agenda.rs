//! The agenda: what may need an action. The Cluster keeps it; a settled cluster's is empty.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Holds, Ownership, Phase, Record, ResourceName, Standing, StopReason, Unit, Worker, WorkerId, fit, standing::Holder};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agenda {
    /// Wanted, and assigned nowhere.
    pub unplaced: BTreeSet<ResourceName>,
    /// Assigned, and not as wanted.
    pub attention: BTreeSet<ResourceName>,
    /// Told to stop for this reason, and not yet heard of.
    pub stopping: BTreeMap<ResourceName, StopReason>,
    /// Assigned as wanted, and failing there again and again.
    pub failing: BTreeSet<ResourceName>,
    /// How many of those that were told to stop, for each reason.
    pub stopping_for: BTreeMap<StopReason, usize>,
    /// Not ready, and something stands under their id.
    pub workers: BTreeSet<WorkerId>,
    /// Of those, the ones whose admitted session is gone, and to which something is assigned.
    pub gone: BTreeSet<WorkerId>,
    /// Ready, to be drained, and not empty.
    pub draining: BTreeSet<WorkerId>,
    /// Ready, with more than their capacity.
    pub over: BTreeSet<WorkerId>,
}

/// Which set of the agenda a unit belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    Unplaced,
    Attention,
    Failing,
    Stopping(StopReason),
}

impl Agenda {
    /// Puts a unit where it belongs.
    pub(crate) fn put(&mut self, name: &ResourceName, due: Due) {
        let sets = [
            (&mut self.unplaced, due == Due::Unplaced),
            (&mut self.attention, due == Due::Attention),
            (&mut self.failing, due == Due::Failing),
        ];
        for (set, belongs) in sets {
            if belongs {
                set.insert(name.clone());
            } else {
                set.remove(name);
            }
        }
        let reason = if let Due::Stopping(reason) = due { Some(reason) } else { None };
        let before = match reason {
            Some(reason) => self.stopping.insert(name.clone(), reason),
            None => self.stopping.remove(name),
        };
        if before != reason {
            if let Some(count) = before.and_then(|before| self.stopping_for.get_mut(&before)) {
                *count -= 1;
            }
            self.stopping_for.retain(|_, count| *count > 0);
            if let Some(reason) = reason {
                *self.stopping_for.entry(reason).or_default() += 1;
            }
        }
    }

    /// Puts a worker where it belongs.
    pub(crate) fn put_worker(&mut self, id: &WorkerId, worker: &Worker) {
        let is_draining = worker.is_draining() && !worker.names.is_empty();
        let sets = [
            (&mut self.workers, worker.is_on_agenda()),
            (&mut self.gone, worker.is_gone_with_work()),
            (&mut self.draining, is_draining),
            (&mut self.over, worker.is_over_capacity()),
        ];
        for (set, belongs) in sets {
            if !belongs {
                set.remove(id);
            } else if !set.contains(id) {
                set.insert(id.clone());
            }
        }
    }
}

/// What is due with a unit, given the workers.
pub(crate) fn due_of(workers: &BTreeMap<WorkerId, Worker>, unit: &Unit) -> Due {
    if unit.unreadable.is_some() {
        return Due::Nothing;
    }
    let holder = match unit.holders.as_slice() {
        [] if unit.record.is_some() && !unit.is_finished() => return Due::Unplaced,
        [] => return Due::Nothing,
        [holder] => holder,
        [_, _, ..] => return Due::Attention,
    };
    match (&holder.held.phase, &unit.record) {
        _ if holder.is_stopped() || unit.unnoted_finish().is_some() => Due::Attention,
        (Phase::Stop { .. }, record) if ends_with_its_session(workers, record.as_deref().map(|r| &r.value), holder) => Due::Attention,
        (Phase::Stop { reason, .. }, _) => Due::Stopping(*reason),
        (Phase::Run, Some(record)) if is_as_wanted(workers, &record.value, holder) => {
            if holder.observed().is_some_and(|status| status.is_of(holder.held.hash) && status.is_failing()) {
                Due::Failing
            } else {
                Due::Nothing
            }
        }
        (Phase::Run, _) => Due::Attention,
    }
}

fn is_as_wanted(workers: &BTreeMap<WorkerId, Worker>, record: &Record, holder: &Holder) -> bool {
    if !holder.held.has_work_of(&record.definition) || record.finish().is_some() {
        return false;
    }
    let Some(worker) = workers.get(&holder.worker) else { return true };
    let standing = worker.standing();
    if matches!(standing, Standing::Lost | Standing::Returning) {
        return !ends_with_its_session(workers, Some(record), holder);
    }
    // Of a worker that is not ready nothing is known that could be held against it.
    let Some(registration) = worker.registration().filter(|_| standing == Standing::Ready) else { return true };
    fit::may_run(record.definition.needs(), &holder.worker, registration).is_ok()
        && holder.is_held_well(registration, &record.definition)
        && !holder.needs_restart()
        && Record::is_node(&record.assigned_node, &holder.worker, &registration.address)
}

/// Its worker's session is gone, and its end is known by that alone. All else waits for the end of that session's authority, or for the worker.
fn ends_with_its_session(workers: &BTreeMap<WorkerId, Worker>, record: Option<&Record>, holder: &Holder) -> bool {
    let is_gone = |worker: &Worker| matches!(worker.standing(), Standing::Lost | Standing::Returning);
    let definition = record.map(|record| &record.definition);
    let is_available = holder.ownership(definition) == Ownership::Available;
    let is_fenced = holder.held.holds == Holds::Fenced && definition.is_some_and(|definition| holder.held.has_work_of(definition));
    (is_available || is_fenced) && workers.get(&holder.worker).is_some_and(is_gone)
}

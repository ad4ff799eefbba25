//! Resources that are to leave their worker while it lives: it is drained, it has more than its capacity, or a rule that is relative to
//! other resources does not hold there any more.

use std::cmp::Reverse;

use evenkeel_model::{IntentKind, Pending, ResourceName, StopReason, Subject, WorkerId};

use crate::{
    loads::Assumed,
    turn::{Settled, Turn},
};

/// Looks at each worker that something is to leave.
pub(crate) fn turn<'a>(turn: &mut Turn<'a>, assumed: &'a [(WorkerId, Assumed)]) {
    let drained = |assumption: &Assumed| matches!(assumption, Assumed::Intent(Some(intent)) if intent.is_drain());
    let more = assumed.iter().filter(|(_, assumption)| drained(assumption)).map(|(id, _)| id);
    let draining: std::collections::BTreeSet<&WorkerId> = turn.cluster.agenda().draining.iter().chain(more).collect();
    for id in draining {
        if turn.loads.intent_kind(id).is_some_and(IntentKind::is_drain) {
            drain(turn, id);
        }
    }
    if let Some(relations) = turn.cluster.relations() {
        for id in relations.broken() {
            // Of one that is drained all goes anyway; to one that is not ready nothing can be told.
            if turn.loads.place(id).is_some_and(|place| !place.intent.is_some_and(IntentKind::is_drain)) {
                mend(turn, id);
            }
        }
    }
    for id in &turn.cluster.agenda().over {
        relieve(turn, id);
    }
}

/// What runs on a worker as wanted; those that want to be with others last.
fn settled_on<'a>(turn: &Turn<'a>, id: &WorkerId) -> Vec<Settled<'a>> {
    let Some(worker) = turn.cluster.worker(id.as_str()) else { return Vec::new() };
    let attention = &turn.cluster.agenda().attention;
    let names = worker.names.iter().filter(|name: &&ResourceName| !attention.contains(*name));
    let mut found: Vec<Settled<'_>> = names.filter_map(|name| turn.settled(name, id)).collect();
    found.sort_by_key(|on| !on.definition.rules().together.is_empty());
    found
}

/// True: no more may be sent on their way.
fn is_exhausted(turn: &mut Turn<'_>, id: &WorkerId) -> bool {
    let limit = turn.config.recovery_in_flight;
    let reason = if turn.is_full() {
        Pending::Budget
    } else if turn.recovers_enough() {
        Pending::InFlight(limit)
    } else {
        return false;
    };
    turn.undone(Subject::Worker(id.clone()), reason);
    true
}

fn drain<'a>(turn: &mut Turn<'a>, id: &'a WorkerId) {
    let since = turn.cluster.worker(id.as_str()).and_then(|w| w.draining_since);
    let span = turn.loads.intent_kind(id).and_then(IntentKind::deadline);
    let deadline = since.zip(span).map(|(since, span)| since.after(span));
    let is_over = deadline.is_some_and(|deadline| deadline <= turn.now);
    // All are to go, so none of them counts as a companion of another there, or stands in its way.
    let mut leaving = settled_on(turn, id).into_iter();
    for on in leaving.as_slice() {
        turn.loads.leave(on.definition, id, false);
    }
    while !leaving.as_slice().is_empty() && !is_exhausted(turn, id) {
        let Some(on) = leaving.next() else { break };
        let chosen = turn.choose(on.definition, &[id]);
        turn.loads.come_back(on.definition, id);
        match chosen {
            Ok(choice) => turn.send(on, StopReason::Drain, Some(choice.worker)),
            Err(_) if is_over => turn.send(on, StopReason::Drain, None),
            Err(why) => {
                if let Some(deadline) = deadline {
                    turn.wake_at(deadline);
                }
                turn.undone(Subject::Resource(on.name.clone()), Pending::Drain { worker: id.clone(), why: Box::new(why) });
            }
        }
    }
    for on in leaving {
        turn.loads.come_back(on.definition, id);
    }
}

/// The newest go first, so that who was there first stays.
fn mend<'a>(turn: &mut Turn<'a>, id: &'a WorkerId) {
    let mut candidates = settled_on(turn, id);
    candidates.sort_by_key(|on| Reverse(on.holder.held.epoch));
    for on in candidates {
        let Some(misfit) = turn.loads.related().broken(on.definition, id) else { continue };
        if is_exhausted(turn, id) {
            return;
        }
        match turn.relocate(on, StopReason::Unfit) {
            Ok(()) => {}
            Err(_) => turn.undone(Subject::Resource(on.name.clone()), Pending::Stays { worker: id.clone(), misfit }),
        }
    }
}

/// The fewest go that bring the payload within the capacity, as far as others can take them: each time the lightest that is enough, or
/// the heaviest.
fn relieve<'a>(turn: &mut Turn<'a>, id: &'a WorkerId) {
    let mut candidates = settled_on(turn, id);
    candidates.retain(|on| on.definition.pin.is_none());
    candidates.sort_by_key(|on| on.definition.weight);
    loop {
        let Some(place) = turn.loads.place(id) else { return };
        let (payload, capacity) = (place.payload, place.registration.capacity.unwrap_or(u64::MAX));
        if payload <= capacity || is_exhausted(turn, id) {
            return;
        }
        let enough = candidates.partition_point(|on| u64::from(on.definition.weight) < payload - capacity);
        if candidates.is_empty() {
            return turn.undone(Subject::Worker(id.clone()), Pending::Over { payload, capacity });
        }
        let on = candidates.remove(enough.min(candidates.len() - 1));
        // What no other takes stays, and the next is tried.
        let _ = turn.relocate(on, StopReason::Capacity);
    }
}

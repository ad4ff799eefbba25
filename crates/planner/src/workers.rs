//! Workers that come and go: who is admitted, who is waited for, and whose assignments have ended. DESIGN.md section 5, rules 2, 3 and 5.

use evenkeel_model::{
    Action, AdmitReason, End, EndReason, Holder, Holds, Moment, Ownership, Pending, ResourceName, Standing, Subject, Unit, Worker, WorkerId,
};

use crate::{attend, loads::Assumed, turn::Turn};

/// So many of what a lost worker holds loosely are listed one by one: as much as a person reads of one worker. They stay as long as it is lost, so each
/// plan lists them again.
pub(crate) const LISTED: usize = 16;

/// Looks at each worker that is not ready, and at those that are taken to be gone.
pub(crate) fn turn<'a>(turn: &mut Turn<'a>, assumed: &'a [(WorkerId, Assumed)]) {
    for id in &turn.cluster.agenda().workers {
        look_at(turn, id);
    }
    if turn.plan.brake.is_some() {
        end_what_is_deleted(turn);
    }
    for (id, _) in assumed.iter().filter(|(_, assumption)| *assumption == Assumed::Gone) {
        if let Some(worker) = turn.cluster.worker(id.as_str()).filter(|w| w.standing() == Standing::Ready) {
            evacuate(turn, id, worker, EndReason::Waited);
        }
    }
}

/// The brake holds what is wanted. What is not wanted any more, or has finished, and has surely ended, goes.
fn end_what_is_deleted(turn: &mut Turn<'_>) {
    for name in turn.cluster.agenda().stopping.keys() {
        let Some(unit) = turn.cluster.unit(name.as_str()).filter(|unit| unit.record.is_none() || unit.is_finished()) else { continue };
        if let ([holder], false) = (unit.holders.as_slice(), turn.is_full()) {
            attend::end_if_known(turn, name, unit, holder);
        }
    }
}

fn look_at<'a>(turn: &mut Turn<'a>, id: &'a WorkerId) {
    let Some(worker) = turn.cluster.worker(id.as_str()) else { return };
    match worker.standing() {
        Standing::Ready => {}
        Standing::New if may_inherit(worker) => admit(turn, id, worker, AdmitReason::New),
        Standing::New => evacuate(turn, id, worker, EndReason::Released),
        Standing::Returning => readmit(turn, id, worker),
        Standing::Released => {
            // Their ends rest on the admission, which is removed after them.
            evacuate(turn, id, worker, EndReason::Released);
            turn.plan.actions.push(Action::Forget { worker: id.clone(), reason: EndReason::Released });
        }
        Standing::Absent | Standing::Leaving => evacuate(turn, id, worker, EndReason::Released),
        Standing::Lost => lost(turn, id, worker),
    }
}

fn admit(turn: &mut Turn<'_>, id: &WorkerId, worker: &Worker, reason: AdmitReason) {
    if let Some((session, _)) = worker.registered.as_deref() {
        turn.admitted.insert(id.clone());
        turn.plan.actions.push(Action::Admit { worker: id.clone(), session: *session, reason });
    }
}

/// Admission of a new session while an earlier one is the admitted one: DESIGN.md section 5, rule 5.
fn readmit<'a>(turn: &mut Turn<'a>, id: &'a WorkerId, worker: &'a Worker) {
    let (Some(admission), Some((session, registration))) = (worker.admission.as_deref(), worker.registered.as_deref()) else { return };
    let attested = registration.attests_end_of(&admission.value, *session);
    if attested && !registration.released && may_inherit(worker) {
        return admit(turn, id, worker, AdmitReason::Attested);
    }
    match wait_of(turn, worker) {
        Some(until) => wait_for(turn, id, until),
        // It left again before it was ever admitted; its key goes with its lease, and then it is lost.
        None if registration.released => {}
        None if !may_inherit(worker) => part(turn, id, worker),
        None if fenced(turn, id, worker).next().is_some() => {
            // What stays keeps the session out, and what else was assigned to it has ended.
            if end_fenced(turn, id, worker) {
                part(turn, id, worker);
            }
        }
        None => admit(turn, id, worker, AdmitReason::Waited),
    }
}

/// What is assigned to this worker and held by a fence alone.
fn fenced<'a>(turn: &Turn<'a>, id: &'a WorkerId, worker: &'a Worker) -> impl Iterator<Item = (&'a ResourceName, &'a Holder)> + use<'a> {
    let cluster = turn.cluster;
    worker.names.iter().filter_map(move |name| {
        let holder = cluster.unit(name.as_str())?.holders.iter().find(|holder| holder.worker == *id)?;
        (holder.held.holds == Holds::Fenced).then_some((name, holder))
    })
}

/// Of what the session before ran, only the fence ends this, and it lets the same epoch in again: the next session gets others. The brake, which keeps
/// things where they were, does not keep these from that. True: some stay, since nobody who is fenced takes them.
fn end_fenced<'a>(turn: &mut Turn<'a>, id: &'a WorkerId, worker: &'a Worker) -> bool {
    let mut kept = false;
    let found: Vec<_> = fenced(turn, id, worker).collect();
    for (name, holder) in found {
        let Some(unit) = turn.cluster.unit(name.as_str()).filter(|_| !turn.is_dealt_with(name)) else { continue };
        if let Some((_, status)) = unit.unnoted_finish() {
            turn.finish(name, unit, holder, status);
            continue;
        }
        if turn.is_full() {
            turn.undone(Subject::Worker(id.clone()), Pending::Budget);
            return false;
        }
        let End::Known(reason) = attend::end_of(turn, unit, holder) else { continue };
        // It must go on where its epoch is shown to the same fence, and that may be here.
        let is_fenced = |kind| worker.registration().is_some_and(|registration| registration.driver(kind).holds == Holds::Fenced);
        if reason == EndReason::Fenced && !unit.definition().is_some_and(|definition| is_fenced(&definition.kind)) {
            kept = true;
            continue;
        }
        turn.seen.insert(name.clone());
        let (resource, worker, epoch) = (name.clone(), id.clone(), holder.held.epoch);
        turn.plan.actions.push(Action::End { resource, worker, epoch, reason });
    }
    kept
}

/// What is assigned to this worker may start under its live session. It may not under one whose registration cannot be used: for how long
/// such a session runs without the leader is unknown, or longer than any leader waits.
fn may_inherit(worker: &Worker) -> bool {
    (worker.names.is_empty() && worker.homes == 0) || worker.registration().is_some_and(|registration| registration.refused.is_none())
}

fn lost<'a>(turn: &mut Turn<'a>, id: &'a WorkerId, worker: &'a Worker) {
    match wait_of(turn, worker) {
        Some(until) => wait_for(turn, id, until),
        None if worker.names.is_empty() => {
            turn.plan.actions.push(Action::Forget { worker: id.clone(), reason: EndReason::Waited });
        }
        None => part(turn, id, worker),
    }
}

/// The admitted session has ended, and no other may go on with what it ran: that goes, unless the brake holds it.
fn part<'a>(turn: &mut Turn<'a>, id: &WorkerId, worker: &'a Worker) {
    match turn.held_at(id) {
        Some(brake) => turn.undone(Subject::Worker(id.clone()), Pending::Brake(brake)),
        None => evacuate(turn, id, worker, EndReason::Waited),
    }
}

/// When the authority of the admitted session that is gone has surely ended; none: it has.
fn wait_of(turn: &Turn<'_>, worker: &Worker) -> Option<Moment> {
    let least = turn.config.wait;
    let until = worker.authority_ends(least).unwrap_or_else(|| turn.now.after(worker.wait(least)));
    (until > turn.now).then_some(until)
}

fn wait_for(turn: &mut Turn<'_>, id: &WorkerId, until: Moment) {
    let capped = turn.cluster.worker(id.as_str()).is_some_and(Worker::claims_too_much);
    turn.wake_at(until);
    turn.undone(Subject::Worker(id.clone()), Pending::Authority { worker: id.clone(), until, capped });
}

/// Its effects may outlive its worker's session and guard, and nothing else may begin while they do.
fn is_open(unit: &Unit, holder: &Holder) -> bool {
    let is_exclusive = holder.ownership(unit.definition()) == Ownership::Exclusive;
    holder.held.holds == Holds::Loose && is_exclusive && !holder.is_stopped()
}

/// Nothing runs on this worker any more: all of its assignments end, but for those of which only the worker itself could say so.
fn evacuate<'a>(turn: &mut Turn<'a>, id: &WorkerId, worker: &'a Worker, reason: EndReason) {
    let mut open = 0;
    for name in &worker.names {
        if turn.is_full() {
            return turn.undone(Subject::Worker(id.clone()), Pending::Budget);
        }
        let Some(unit) = turn.cluster.unit(name.as_str()) else { continue };
        let Some(holder) = unit.holders.iter().find(|h| h.worker == *id) else { continue };
        if reason == EndReason::Waited && is_open(unit, holder) {
            open += 1;
            if open <= LISTED {
                turn.undone(Subject::Resource(name.clone()), Pending::Loose(id.clone()));
            }
        } else if unit.holders.len() == 1 {
            // Of one that was waited for it may be known in another way: it accepts an overlap, or only the fence ends it.
            match attend::end_of(turn, unit, holder) {
                End::Known(known) if reason == EndReason::Waited => attend::ended(turn, name, unit, holder, known),
                _ => attend::ended(turn, name, unit, holder, reason),
            }
        }
    }
    if open > LISTED {
        turn.undone(Subject::More(open - LISTED), Pending::Loose(id.clone()));
    }
    if open == worker.names.len() && open > 0 {
        turn.holding.insert(id.clone());
    }
}

//! Resources that are not as wanted: ends that are known, changes, and what is placed nowhere. DESIGN.md section 5, rule 4.

use evenkeel_model::{
    Action, Definition, End, EndReason, Holder, Holds, IntentKind, Pending, PlaceReason, Record, ResourceName, Standing, StopReason,
    Subject, Unit, WorkerId, ends, fit,
};

use crate::{choose::Choice, turn::Turn};

/// Looks at each assignment that is not as wanted.
pub(crate) fn turn(turn: &mut Turn<'_>) {
    for name in &turn.cluster.agenda().attention {
        if turn.is_full() {
            return;
        }
        let Some(unit) = turn.cluster.unit(name.as_str()).filter(|_| !turn.is_dealt_with(name)) else { continue };
        match unit.holders.as_slice() {
            [] => {}
            [holder] => attend(turn, name, unit, holder),
            [_, rest @ ..] => separate(turn, name, unit, rest),
        }
    }
}

fn attend<'a>(turn: &mut Turn<'a>, name: &'a ResourceName, unit: &'a Unit, holder: &'a Holder) {
    if let Some((_, status)) = unit.unnoted_finish() {
        return turn.finish(name, unit, holder, status);
    }
    match end_of(turn, unit, holder) {
        End::Known(reason) => return ended(turn, name, unit, holder, reason),
        // The end of authority is waited for by the worker's turn.
        End::At(until) if holder.held.holds == Holds::Fenced => return turn.wake_at(until),
        End::At(_) | End::Open if !holder.held.runs() => return,
        End::At(_) | End::Open => {}
    }
    let Some(record) = unit.record.as_deref() else { return turn.stop(name, holder, StopReason::Deleted, None) };
    if unit.is_finished() {
        return turn.stop(name, holder, StopReason::Finished, None);
    }
    let definition = &record.value.definition;
    let worker = turn.cluster.worker(holder.worker.as_str());
    let Some(place) = worker.and_then(|w| w.place(&holder.worker)) else { return };
    let registration = place.registration;
    let on = crate::turn::Settled { name, holder, definition };
    if fit::may_run(definition.needs(), &holder.worker, registration).is_err() {
        if turn.recovers_enough() {
            return turn.undone(Subject::Resource(name.clone()), Pending::InFlight(turn.config.recovery_in_flight));
        }
        if turn.relocate(on, StopReason::Unfit).is_err() {
            turn.send(on, StopReason::Unfit, None);
        }
    } else if !holder.held.has_work_of(definition) {
        if holder.takes_in_place(worker, definition) {
            turn.update(name, holder);
        } else {
            restart(turn, on);
        }
    } else if holder.needs_restart() || !holder.is_held_well(registration, definition) {
        // Nobody has asked for this at this moment, and what runs goes on meanwhile: as many wait as at a loss.
        if turn.restarts_enough() {
            return turn.undone(Subject::Resource(name.clone()), Pending::InFlight(turn.config.recovery_in_flight));
        }
        restart(turn, on);
    } else if *record.value.assigned_node != *Record::node(&holder.worker, &registration.address) {
        turn.plan.actions.push(Action::View { resource: name.clone(), worker: Some(holder.worker.clone()) });
    }
}

/// Stops what is to go on with another epoch: where it is, or elsewhere if its worker is being drained.
fn restart<'a>(turn: &mut Turn<'a>, on: crate::turn::Settled<'a>) {
    let worker = &on.holder.worker;
    let leaves = turn.loads.intent_kind(worker).is_some_and(IntentKind::is_drain);
    if !leaves || turn.relocate(on, StopReason::Changed).is_err() {
        turn.stop(on.name, on.holder, StopReason::Changed, Some(worker.clone()));
    }
}

/// The protocol never makes two assignments of one resource; should they stand all the same, the oldest stays.
fn separate(turn: &mut Turn<'_>, name: &ResourceName, unit: &Unit, rest: &[Holder]) {
    for holder in rest {
        if let End::Known(reason) = end_of(turn, unit, holder) {
            let action = Action::End { resource: name.clone(), worker: holder.worker.clone(), epoch: holder.held.epoch, reason };
            return turn.plan.actions.push(action);
        }
    }
    if let Some(holder) = rest.iter().find(|h| h.held.runs()) {
        turn.stop(name, holder, StopReason::Duplicate, None);
    }
}

pub(crate) fn end_of(turn: &Turn<'_>, unit: &Unit, holder: &Holder) -> End {
    if turn.admitted.contains(&holder.worker) && !holder.is_stopped() {
        return End::Open;
    }
    ends::end_of(holder, turn.cluster.worker(holder.worker.as_str()), unit.definition(), turn.now, turn.config.wait)
}

/// Ends an assignment, if its end is known.
pub(crate) fn end_if_known<'a>(turn: &mut Turn<'a>, name: &ResourceName, unit: &'a Unit, holder: &Holder) {
    if let End::Known(reason) = end_of(turn, unit, holder) {
        ended(turn, name, unit, holder, reason);
    }
}

/// The end of an assignment is known: its successor takes its place, if there is to be one.
pub(crate) fn ended<'a>(turn: &mut Turn<'a>, name: &ResourceName, unit: &'a Unit, holder: &Holder, reason: EndReason) {
    if turn.is_dealt_with(name) {
        return;
    }
    if let Some((_, status)) = unit.unnoted_finish() {
        return turn.finish(name, unit, holder, status);
    }
    let wanted = unit.definition().filter(|_| !unit.is_finished());
    // One that is only taken to be gone is gone for good.
    let is_gone = turn.cluster.worker(holder.worker.as_str()).is_none_or(|w| w.standing() != Standing::Ready);
    if let Some(brake) = turn.held_at(&holder.worker).filter(|_| is_gone && reason.is_of_lost() && wanted.is_some()) {
        return turn.undone(Subject::Resource(name.clone()), Pending::Brake(brake));
    }
    turn.seen.insert(name.clone());
    let (from, epoch) = (holder.worker.clone(), holder.held.epoch);
    let to = match (reason, wanted) {
        (EndReason::Fenced, Some(definition)) => match fenced_successor(turn, definition, unit, &from) {
            Some(to) => Some(to),
            None => return turn.kept_by_fence(name, from),
        },
        _ => wanted.and_then(|definition| successor(turn, definition, unit, &from)),
    };
    turn.plan.actions.push(match to {
        // One transaction takes a key only once: on the same worker the next assignment is created after this.
        Some(to) if to == from => Action::End { resource: name.clone(), worker: from, epoch, reason },
        Some(to) => Action::Move { resource: name.clone(), from, epoch, to, reason },
        None => Action::End { resource: name.clone(), worker: from, epoch, reason },
    });
}

/// Where a resource goes: where it was meant to go, if that worker can still take it; else where a new choice puts it.
fn successor<'a>(turn: &mut Turn<'a>, definition: &'a Definition, unit: &Unit, from: &WorkerId) -> Option<WorkerId> {
    let home = unit.home();
    give_up(turn, definition, home, from);
    let to = next_home(turn, definition, home, home == Some(from)).ok()?.worker;
    turn.loads.come(definition, &to);
    Some(to)
}

/// Where a resource goes whose last run only the fence ends: to a worker that shows its epoch to the fence.
fn fenced_successor<'a>(turn: &mut Turn<'a>, definition: &'a Definition, unit: &Unit, from: &WorkerId) -> Option<WorkerId> {
    let to = turn.choose_fenced(definition)?;
    give_up(turn, definition, unit.home(), from);
    turn.loads.come(definition, &to);
    Some(to)
}

/// What has ended on a worker counts neither there nor at its home.
fn give_up<'a>(turn: &mut Turn<'a>, definition: &'a Definition, home: Option<&WorkerId>, from: &WorkerId) {
    if let Some(home) = home {
        turn.loads.leave(definition, home, true);
    }
    if home != Some(from) {
        turn.loads.vacate(definition, from);
    }
}

/// Where it is meant to be, if it can be there; where it was before, neither a cordon nor, if no other takes it, a drain is an obstacle.
fn next_home<'a>(turn: &mut Turn<'a>, definition: &'a Definition, home: Option<&WorkerId>, was_there: bool) -> Result<Choice, Pending> {
    let Some(home) = home else { return turn.choose(definition, &[]) };
    let stays = || Choice { worker: home.clone(), reason: PlaceReason::Stays };
    let Some(place) = turn.loads.place(home) else { return turn.choose(definition, &[]) };
    if !was_there {
        let fits = turn.loads.fits(definition, &place).is_ok();
        return if fits { Ok(stays()) } else { turn.choose(definition, &[]) };
    }
    let is_drained = place.intent.is_some_and(IntentKind::is_drain);
    let may = fit::may_run(definition.needs(), home, place.registration).and_then(|()| fit::has_room(definition, &place));
    let may = may.and_then(|()| turn.cluster.shares_fence(definition, place.registration));
    let related = turn.loads.related();
    let can = may.is_ok() && related.allow(definition, home, &|| related.is_first(definition)).is_ok();
    match (can, is_drained) {
        (true, false) => Ok(stays()),
        (true, true) => turn.choose(definition, &[]).or_else(|_| Ok(stays())),
        (false, _) => turn.choose(definition, &[]),
    }
}

/// Places what is assigned nowhere. Those that want to be with others come last, so that the others are there.
pub(crate) fn place_all(turn: &mut Turn<'_>) {
    let unplaced = &turn.cluster.agenda().unplaced;
    let follows = |name: &&ResourceName| {
        let definition = turn.cluster.unit(name.as_str()).and_then(Unit::definition);
        definition.is_some_and(|d| !d.rules().together.is_empty())
    };
    let most = turn.config.max_unplaced;
    let looked_at = || unplaced.iter().take(most);
    let last: Vec<&ResourceName> = if turn.cluster.relations().is_some() { looked_at().filter(follows).collect() } else { Vec::new() };
    let is_last = |name: &&ResourceName| last.binary_search(name).is_ok();
    let in_order = looked_at().filter(|name| last.is_empty() || !is_last(name)).chain(last.iter().copied());
    // Many that are placed together stand together, so that the next one is mostly found where the one before was.
    let Some(first) = unplaced.first() else { return };
    let mut units = turn.cluster.units_from(first);
    for (done, name) in in_order.enumerate() {
        if turn.is_full() {
            return turn.undone(Subject::More(unplaced.len() - done), Pending::Budget);
        }
        let mut next = units.next().filter(|(found, _)| *found == name);
        if next.is_none() {
            units = turn.cluster.units_from(name);
            next = units.next();
        }
        if let Some(record) = next.and_then(|(_, unit)| unit.record.as_deref()) {
            place(turn, name, &record.value);
        }
    }
    if unplaced.len() > most {
        turn.undone(Subject::More(unplaced.len() - most), Pending::Budget);
    }
}

fn place<'a>(turn: &mut Turn<'a>, name: &'a ResourceName, record: &'a Record) {
    // It was there before, and may go on there as soon as its session is admitted.
    if record.assigned_worker().is_some_and(|before| turn.admitted.iter().any(|id| id.as_str() == before)) {
        return turn.undone(Subject::Resource(name.clone()), Pending::Budget);
    }
    match choose_for(turn, record) {
        Ok(Choice { worker, reason }) => {
            turn.loads.come(&record.definition, &worker);
            turn.plan.actions.push(Action::Place { resource: name.clone(), worker, reason });
        }
        Err(reason) => {
            if !record.assigned_node.is_empty() {
                turn.plan.actions.push(Action::View { resource: name.clone(), worker: None });
            }
            turn.undone(Subject::Resource(name.clone()), reason);
        }
    }
}

fn choose_for<'a>(turn: &mut Turn<'a>, record: &'a Record) -> Result<Choice, Pending> {
    if turn.loads.ready() == 0 {
        return Err(Pending::NoWorkers);
    }
    let before = record.assigned_worker().and_then(|id| WorkerId::new(id).ok());
    next_home(turn, &record.definition, before.as_ref(), true)
}

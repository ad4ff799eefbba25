//! Resources that fail on their worker again and again: each is tried on another that may run it, once on each, and stays on the last.
//!
//! That cannot go on for ever, and cannot shuffle a fleet whose database is away: a worker on which a resource has failed is out of the question for
//! it for a span, no more than a handful move at a time, and nobody moves who has been to many.

use std::time::Duration;

use evenkeel_model::{
    Cluster, IntentKind, MAX_FAILED_ON, Moment, NotElsewhere, Observed, Pending, Record, ResourceName, StopReason, Subject, WorkerId,
};

use crate::{
    choose,
    turn::{Settled, Turn},
};

/// So many are moved within a cool-down. What fails does no work, so that it loses nothing by waiting; and when a whole fleet fails, moves do not
/// help: with ten seconds of cool-down that is a hundred a minute, whatever the number of resources.
const MOVES: usize = 16;
/// So many are looked at in one plan, which bounds its cost when a whole fleet fails. With more, each plan begins elsewhere.
const LOOKED_AT: usize = 64;
/// For how long a failure on a worker counts against it, from the last move because of a failure on. What ails a worker may be mended without
/// anybody's telling; then one more move an hour costs nothing.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// Looks at those that fail, as many as one plan takes on.
pub(crate) fn turn(turn: &mut Turn<'_>) {
    let failing = &turn.cluster.agenda().failing;
    if turn.config.move_failing_after == 0 || failing.is_empty() {
        return;
    }
    let mut places = Places::of(turn);
    let first = if failing.len() > LOOKED_AT { usize::try_from(turn.now.0.as_millis()).unwrap_or_default() % failing.len() } else { 0 };
    for name in failing.iter().skip(first).chain(failing.iter().take(first)).take(LOOKED_AT) {
        let Some(on) = movable(turn, name) else { continue };
        if turn.is_full() {
            return turn.undone(Subject::Worker(on.holder.worker.clone()), Pending::Budget);
        }
        if turn.recovers_enough() {
            return turn.undone(Subject::Resource(name.clone()), Pending::InFlight(turn.config.recovery_in_flight));
        }
        match try_elsewhere(turn, on, places.left) {
            Ok(to) => {
                turn.send(on, StopReason::Failing, Some(to));
                places.left -= 1;
            }
            Err(why) => {
                if let (NotElsewhere::Paced(_), Some(at)) = (why, places.next) {
                    turn.wake_at(at);
                }
                let worker = on.holder.worker.clone();
                turn.undone(Subject::Resource(name.clone()), Pending::Fails { worker, why });
            }
        }
    }
}

/// How many more may be moved now, and when there is room for another.
struct Places {
    left: usize,
    next: Option<Moment>,
}

impl Places {
    fn of(turn: &Turn<'_>) -> Self {
        let cool_down = turn.config.cool_down;
        if cool_down.is_zero() {
            return Self { left: usize::MAX, next: None };
        }
        let lately = turn.cluster.failing_moves().since(turn.now.before(cool_down));
        let cooling: Vec<Moment> = lately.map(|(at, _)| at.after(cool_down)).filter(|at| *at > turn.now).take(MOVES).collect();
        Self { left: MOVES - cooling.len(), next: cooling.last().copied() }
    }
}

/// A resource that has failed as often as it takes, waits to be started again, and is not about to leave its worker for another reason.
fn movable<'a>(turn: &Turn<'a>, name: &'a ResourceName) -> Option<Settled<'a>> {
    let holder = turn.cluster.unit(name.as_str())?.holders.first()?;
    let on = turn.settled(name, &holder.worker)?;
    let status = holder.observed()?;
    let has_failed = status.phase == Observed::Backoff && status.failures >= turn.config.move_failing_after;
    let place = turn.loads.place(&holder.worker)?;
    let leaves = place.intent.is_some_and(IntentKind::is_drain);
    ((has_failed || status.cannot_start_here()) && !leaves).then_some(on)
}

fn try_elsewhere<'a>(turn: &mut Turn<'a>, on: Settled<'a>, left: usize) -> Result<WorkerId, NotElsewhere> {
    let mut out: Vec<&WorkerId> = failed_on(turn.cluster, &on.definition.name, turn.now);
    let before = out.iter().filter(|id| ***id != on.holder.worker).count();
    if before + 1 >= MAX_FAILED_ON {
        return Err(NotElsewhere::TriedEnough(before));
    }
    out.push(&on.holder.worker);
    turn.loads.leave(on.definition, &on.holder.worker, false);
    let choice = choose::choose(&turn.loads, on.definition, &out);
    turn.loads.come_back(on.definition, &on.holder.worker);
    match choice {
        Err(_) => Err(NotElsewhere::NoneLeft),
        Ok(_) if left == 0 => Err(NotElsewhere::Paced(MOVES)),
        Ok(choice) => Ok(choice.worker),
    }
}

/// The workers on which a resource has failed of late, and which have not joined anew since.
pub(crate) fn failed_on<'a>(cluster: &'a Cluster, name: &ResourceName, now: Moment) -> Vec<&'a WorkerId> {
    if cluster.failed() == 0 {
        return Vec::new();
    }
    let record = cluster.unit(name.as_str()).and_then(|unit| unit.record.as_deref());
    let failed_on = record.map_or(&[] as &[WorkerId], |record| Record::failed_on(&record.value));
    if failed_on.is_empty() {
        return Vec::new();
    }
    // A leader that has seen no move counts from when it began.
    let moved = cluster.failing_moves().last(name).unwrap_or(cluster.leads_since());
    if moved.after(REMEMBERED) <= now {
        return Vec::new();
    }
    let has_joined = |id: &&WorkerId| cluster.joins().last(id).is_some_and(|at| at > moved);
    failed_on.iter().filter(|id| !has_joined(id)).collect()
}

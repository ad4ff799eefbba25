//! When is the end of an assignment known? The rule on which "one owner" rests, in one place: DESIGN.md section 5, rule 3.

use std::time::Duration;

use crate::{Definition, EndReason, Holder, Holds, Moment, Ownership, Phase, Standing, Worker};

/// For how long a worker whose session is gone may come back before what only a fence ends is given to another: an agent that dies under its guard is
/// back within some 0.3 s, and then nothing moves.
pub const COMES_BACK: Duration = Duration::from_secs(1);

/// What is known of an assignment's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing of it runs, and nothing of it can start again.
    Known(EndReason),
    /// That will be so from this moment on, unless its worker is admitted again before.
    At(Moment),
    /// It may run for as long as its worker lives, or, where it is held loosely, until its worker says that it has ended.
    Open,
}

/// Decides what is known of the end of `holder`, which stands on `worker` and after which `definition` is wanted; `wait` is G, the leader's wait, which the worker's own authority may lengthen.
#[must_use]
pub fn end_of(holder: &Holder, worker: Option<&Worker>, definition: Option<&Definition>, now: Moment, wait: Duration) -> End {
    if holder.is_stopped() {
        return End::Known(match holder.held.phase {
            Phase::Stop { reason, .. } => EndReason::Stopped(reason),
            Phase::Run => EndReason::StoppedItself,
        });
    }
    let Some(worker) = worker else { return End::Known(EndReason::Released) };
    match worker.standing() {
        // No session is admitted, and a worker runs nothing without an admission.
        Standing::Absent | Standing::New | Standing::Leaving | Standing::Released => End::Known(EndReason::Released),
        Standing::Ready => End::Open,
        Standing::Lost | Standing::Returning if holder.ownership(definition) == Ownership::Available => End::Known(EndReason::Available),
        Standing::Lost | Standing::Returning => match holder.held.holds {
            // What it works on refuses the epoch that was, once it has seen the next one. Other work has another fence, or none.
            Holds::Fenced if definition.is_some_and(|definition| holder.held.has_work_of(definition)) => {
                match worker.gone_since.map(|since| since.after(COMES_BACK)) {
                    Some(over) if over <= now => End::Known(EndReason::Fenced),
                    Some(over) => End::At(over),
                    None => End::Open,
                }
            }
            Holds::Strict | Holds::Fenced => match worker.authority_ends(wait) {
                Some(until) if until <= now => End::Known(EndReason::Waited),
                Some(until) => End::At(until),
                None => End::Open,
            },
            // Its effects outlive the session, its authority and its guard: only the worker itself can say that they have ended.
            Holds::Loose => End::Open,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Admission, Epoch, Held, Observed, Origin, Registration, Revision, Session, Status, StopReason, Versioned, WorkerId};

    const G: Duration = Duration::from_secs(5);
    const GONE: u64 = 10;

    fn id() -> WorkerId {
        WorkerId::new("worker-1").expect("id")
    }

    fn at(seconds: u64) -> Moment {
        Moment(Duration::from_secs(seconds))
    }

    fn holder(phase: Phase, status: Option<(Observed, i64)>) -> Holder {
        held(Holds::Strict, phase, status)
    }

    fn held(holds: Holds, phase: Phase, status: Option<(Observed, i64)>) -> Holder {
        let said = |(phase, epoch)| Box::new(Status::new(phase, Epoch(epoch), 0));
        Holder {
            worker: id(),
            held: Held { epoch: Epoch(7), hash: wanted(Ownership::Exclusive).hash(), work: crate::Work::unknown(), holds, phase },
            status: status.map(said),
        }
    }

    /// One whose session 3 was admitted; session `live` is registered now.
    fn worker(live: Option<i64>, released: bool, authority_ms: Option<u64>) -> Worker {
        let registration = || Registration { released, ..Registration::bare(id(), String::new()) };
        let admission = Admission { session: Session(3), origin: Origin::default(), authority_ms };
        Worker {
            registered: live.map(|session| Box::new((Session(session), registration()))),
            admission: Some(Box::new(Versioned { revision: Revision(4), value: admission })),
            gone_since: (live != Some(3)).then(|| at(GONE)),
            ..Worker::default()
        }
    }

    /// What runs, and is wanted still.
    fn wanted(ownership: Ownership) -> Definition {
        Definition { ownership, kind: "object".into(), ..Definition::named(crate::ResourceName::new("a").expect("a name")) }
    }

    fn of(worker: &Worker, ownership: Ownership, now: Moment) -> End {
        end_of(&holder(Phase::Run, Some((Observed::Running, 7))), Some(worker), Some(&wanted(ownership)), now, G)
    }

    #[test]
    fn a_lost_worker_is_waited_for() {
        for live in [None, Some(9)] {
            let lost = worker(live, false, None);
            assert_eq!(of(&lost, Ownership::Exclusive, at(GONE)), End::At(at(GONE + 5)));
            assert_eq!(of(&lost, Ownership::Exclusive, at(GONE + 4)), End::At(at(GONE + 5)));
            assert_eq!(of(&lost, Ownership::Exclusive, at(GONE + 5)), End::Known(EndReason::Waited));
            assert_eq!(of(&lost, Ownership::Available, at(GONE)), End::Known(EndReason::Available));
            let unseen = Worker { gone_since: None, ..lost };
            assert_eq!(of(&unseen, Ownership::Exclusive, at(GONE + 50)), End::Open, "nobody has seen it go");
        }
    }

    #[test]
    fn only_what_is_strict_ends_by_waiting() {
        let stop = || Phase::Stop { reason: StopReason::Changed, to: None };
        let end = |holds, phase, status, worker: &Worker, ownership, now| {
            end_of(&held(holds, phase, status), Some(worker), Some(&wanted(ownership)), now, G)
        };
        let running = Some((Observed::Running, 7));
        for (live, phase) in [(None, Phase::Run), (Some(9), Phase::Run), (None, stop())] {
            let lost = worker(live, false, None);
            let of = |holds, ownership, now| end(holds, phase.clone(), running, &lost, ownership, now);
            for now in [at(GONE), at(GONE + 5), at(GONE + 5_000)] {
                let fenced = if now == at(GONE) { End::At(at(GONE + 1)) } else { End::Known(EndReason::Fenced) };
                assert_eq!(of(Holds::Fenced, Ownership::Exclusive, now), fenced, "{live:?}: unless it comes back at once");
                assert_eq!(of(Holds::Loose, Ownership::Exclusive, now), End::Open, "{live:?}");
                assert_eq!(of(Holds::Loose, Ownership::Available, now), End::Known(EndReason::Available), "{live:?}");
                assert_eq!(of(Holds::Fenced, Ownership::Available, now), End::Known(EndReason::Available), "{live:?}");
            }
        }
        // What follows is no work of the same fence, or nothing: what is left of the worker's authority ends, as that of any other does.
        let lost = worker(None, false, None);
        let other = Definition { kind: "process".into(), ..wanted(Ownership::Exclusive) };
        for follows in [None, Some(&other)] {
            let of = |holds, now| end_of(&held(holds, Phase::Run, running), Some(&lost), follows, now, G);
            assert_eq!(of(Holds::Fenced, at(GONE + 4)), End::At(at(GONE + 5)));
            assert_eq!(of(Holds::Fenced, at(GONE + 5)), End::Known(EndReason::Waited));
        }
        // Nothing loose was ever placed to be exclusive.
        assert_eq!(end_of(&held(Holds::Loose, Phase::Run, running), Some(&lost), None, at(GONE), G), End::Known(EndReason::Available));
        for holds in [Holds::Fenced, Holds::Loose] {
            let of = |worker: &Worker, status| end(holds, stop(), status, worker, Ownership::Exclusive, at(GONE));
            assert_eq!(of(&worker(Some(3), false, None), running), End::Open, "{holds:?}: its worker lives");
            assert_eq!(of(&worker(Some(3), true, None), running), End::Known(EndReason::Released), "{holds:?}");
            let stopped = of(&worker(None, false, None), Some((Observed::Stopped, 7)));
            assert_eq!(stopped, End::Known(EndReason::Stopped(StopReason::Changed)), "{holds:?}: it was the last that it said");
        }
    }

    #[test]
    fn who_has_more_authority_is_waited_for_longer() {
        let lost = worker(None, false, Some(9_900));
        assert_eq!(of(&lost, Ownership::Exclusive, at(GONE + 5)), End::At(at(GONE).after(Duration::from_millis(10_100))));
        assert_eq!(of(&lost, Ownership::Exclusive, at(GONE + 11)), End::Known(EndReason::Waited));
    }

    #[test]
    fn who_lives_keeps_its_work_and_who_has_released_it_does_not() {
        assert_eq!(of(&worker(Some(3), false, None), Ownership::Exclusive, at(GONE + 50)), End::Open);
        assert_eq!(of(&worker(Some(3), false, None), Ownership::Available, at(GONE + 50)), End::Open);
        assert_eq!(of(&worker(Some(3), true, None), Ownership::Exclusive, at(0)), End::Known(EndReason::Released));
        let unadmitted = Worker { admission: None, ..worker(Some(9), false, None) };
        assert_eq!(of(&unadmitted, Ownership::Exclusive, at(0)), End::Known(EndReason::Released));
        assert_eq!(
            end_of(&holder(Phase::Run, None), None, Some(&wanted(Ownership::Exclusive)), at(0), G),
            End::Known(EndReason::Released),
            "nothing stands of it"
        );
    }

    #[test]
    fn only_a_report_that_this_epoch_has_stopped_ends_it_while_its_worker_lives() {
        let stop = || Phase::Stop { reason: StopReason::Changed, to: None };
        let live = worker(Some(3), false, None);
        let end = |phase, status| end_of(&holder(phase, status), Some(&live), Some(&wanted(Ownership::Exclusive)), at(0), G);
        assert_eq!(end(stop(), Some((Observed::Stopped, 7))), End::Known(EndReason::Stopped(StopReason::Changed)));
        assert_eq!(end(Phase::Run, Some((Observed::Stopped, 7))), End::Known(EndReason::StoppedItself));
        for status in
            [None, Some((Observed::Stopping, 7)), Some((Observed::Exited, 7)), Some((Observed::Stopped, 6)), Some((Observed::Stopped, 8))]
        {
            assert_eq!(end(stop(), status), End::Open, "{status:?}");
        }
    }
}

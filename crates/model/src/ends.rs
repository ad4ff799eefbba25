//! When is the end of an assignment known? The rule on which "one owner" rests, in one place: DESIGN.md section 5, rule 3.

use std::time::Duration;

use crate::{EndReason, Holder, Moment, Ownership, Phase, Standing, Worker};

/// What is known of an assignment's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing of it runs, and nothing of it can start again.
    Known(EndReason),
    /// That will be so from this moment on, unless its worker is admitted again before.
    At(Moment),
    /// It may run for as long as its worker lives.
    Open,
}

/// Decides what is known of the end of `holder`, which stands on `worker`; `wait` is G, the leader's wait, which the worker's own authority may lengthen.
#[must_use]
pub fn end_of(holder: &Holder, worker: Option<&Worker>, ownership: Ownership, now: Moment, wait: Duration) -> End {
    if holder.is_stopped() {
        return End::Known(match holder.held.phase {
            Phase::Stop { reason, .. } => EndReason::Stopped(reason),
            Phase::Run => EndReason::StoppedItself,
        });
    }
    let Some(worker) = worker else { return End::Known(EndReason::Released) };
    match worker.standing() {
        // No session is admitted, and a worker runs nothing without an admission.
        Standing::Absent | Standing::New | Standing::Released => End::Known(EndReason::Released),
        Standing::Ready => End::Open,
        Standing::Lost | Standing::Returning if ownership == Ownership::Available => End::Known(EndReason::Available),
        Standing::Lost | Standing::Returning => match worker.gone_since.map(|since| since.after(worker.wait(wait))) {
            Some(until) if until <= now => End::Known(EndReason::Waited),
            Some(until) => End::At(until),
            None => End::Open,
        },
    }
}

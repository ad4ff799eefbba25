//! Where a master's time comes from. Decisions go by a monotonic clock of its own; the time of day stands in records and in the history,
//! and no decision depends on it.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use evenkeel_model::Moment;
use tokio::time::Instant;

/// A master's clock. A simulator has one that runs fast or slow.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Now, since this master began.
    fn now(&self) -> Moment;

    /// Nanoseconds since the Unix epoch.
    fn unix_ns(&self) -> i64;

    /// The instant for the runtime's timers at which this clock will have gone on by `span`.
    fn after(&self, span: Duration) -> Instant {
        Instant::now() + span
    }

    /// For how long the machine has slept since this master began: so long the runtime's timers have stood still. They do not everywhere.
    fn slept(&self) -> Duration {
        Duration::ZERO
    }
}

/// The machine's clock.
#[derive(Debug)]
pub(crate) struct SystemClock {
    started: Instant,
    slept_before: Duration,
}

impl SystemClock {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now(), slept_before: slept() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Moment {
        Moment(self.started.elapsed())
    }

    fn unix_ns(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    }

    fn slept(&self) -> Duration {
        slept().saturating_sub(self.slept_before)
    }
}

/// For how long the machine has slept since it was booted.
#[cfg(target_os = "linux")]
fn slept() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let read = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
    // The one that stands still is read first, so that the difference is no less than the sleep.
    let awake = read(ClockId::Monotonic);
    read(ClockId::Boottime).saturating_sub(awake)
}

/// Elsewhere it cannot be told.
#[cfg(not(target_os = "linux"))]
fn slept() -> Duration {
    Duration::ZERO
}

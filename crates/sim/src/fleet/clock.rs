//! Clocks of machines: each starts somewhere and runs a little fast or slow, as DESIGN.md's rho allows.

use std::time::Duration;

use evenkeel_master::engine;
use evenkeel_model::Moment;
use evenkeel_worker::protocol::authority::{self, BootTime};
use tokio::time::Instant;

/// Where the time of day begins, in nanoseconds since the Unix epoch.
const DAY_ONE: i64 = 1_700_000_000_000_000_000;
const MILLION: u128 = 1_000_000;

/// The clock of one machine since its last boot.
#[derive(Clone, Copy, Debug)]
pub struct MachineClock {
    booted: Instant,
    /// So many of its seconds pass in a million true ones.
    rate: u128,
    /// How long after the first day began it was started: its time of day is right then.
    day: Duration,
}

impl MachineClock {
    /// A clock that starts now, and gains `gain` microseconds each second.
    #[must_use]
    pub fn boot(gain: i32) -> Self {
        Self::boot_at(Duration::ZERO, gain)
    }

    /// The same, in a world that is so old.
    #[must_use]
    pub fn boot_at(day: Duration, gain: i32) -> Self {
        let rate = u128::try_from(1_000_000 + i64::from(gain)).unwrap_or(MILLION);
        Self { booted: Instant::now(), rate, day }
    }

    fn shown(&self) -> Duration {
        scale(self.booted.elapsed(), self.rate, MILLION)
    }

    /// The instant at which it has gone on by `span`; rounded up, so that it never shows less then.
    fn in_a(&self, span: Duration) -> Instant {
        Instant::now() + scale(span, MILLION, self.rate) + Duration::from_nanos(1)
    }
}

fn scale(span: Duration, by: u128, per: u128) -> Duration {
    Duration::from_nanos(u64::try_from(span.as_nanos() * by / per).unwrap_or(u64::MAX))
}

/// A machine's time of day, which nobody sets right.
fn time_of_day(shown: Duration) -> i64 {
    DAY_ONE + i64::try_from(shown.as_nanos()).unwrap_or(i64::MAX)
}

impl authority::Clock for MachineClock {
    fn now(&self) -> BootTime {
        BootTime::default() + self.shown()
    }

    fn instant(&self, at: BootTime) -> Instant {
        self.in_a(at.since(authority::Clock::now(self)))
    }

    fn unix_ns(&self) -> i64 {
        time_of_day(self.day + self.shown())
    }
}

impl engine::Clock for MachineClock {
    fn now(&self) -> Moment {
        Moment(self.shown())
    }

    fn unix_ns(&self) -> i64 {
        time_of_day(self.day + self.shown())
    }

    fn after(&self, span: Duration) -> Instant {
        self.in_a(span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_fast_clock_is_early_and_wakes_early() {
        use authority::Clock;
        let clock = MachineClock::boot(10_000);
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(clock.now(), BootTime(101_000_000_000));
        let at = clock.now() + Duration::from_millis(1010);
        tokio::time::sleep_until(clock.instant(at)).await;
        assert!(clock.now() >= at && clock.now().since(at) < Duration::from_millis(3));
    }
}

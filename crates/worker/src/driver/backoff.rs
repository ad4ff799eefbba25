//! How long work that ended waits before it is started again. Pure.
//!
//! The wheel: under worker::driver. Processes and pieces in this process go by the same pauses.

use std::time::Duration;

/// The first pause, as Docker's: work that ended once is soon back. It would be longer if a start cost much.
const FIRST: Duration = Duration::from_millis(100);
/// The longest pause, and so how long work waits at most once the cause of its failures is mended; Docker's is a minute. Work that always fails is started
/// six times a minute, and its status is written each time: if thousands fail together and etcd has too much to write, this wants to be longer.
const LONGEST: Duration = Duration::from_secs(10);
/// A run of this length went well, as for Docker. No shorter than [`LONGEST`], so that work which fails again and again, soon or late, is started no more
/// often than that in the long run. It would be longer if work commonly failed a little later than this.
pub(super) const WELL: Duration = Duration::from_secs(10);
/// How often a shut gate is asked again, which costs the load of an atomic. A start comes this much later than authority at most: a tenth of the half second
/// from one proof of authority to the next ([`Timing`](crate::protocol::authority::Timing)). It would follow that period.
pub(super) const GATE_PERIOD: Duration = Duration::from_millis(50);

/// Counts the runs in a row that were too short.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backoff {
    short_runs: u32,
}

impl Backoff {
    /// The pause after a run of this length.
    pub(super) fn after(&mut self, ran: Duration) -> Duration {
        if ran >= WELL {
            self.short_runs = 0;
        }
        let pause = FIRST.saturating_mul(1 << self.short_runs.min(10)).min(LONGEST);
        self.short_runs = self.short_runs.saturating_add(1);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_a_bound_and_starts_anew_after_a_good_run() {
        let mut backoff = Backoff::default();
        let short = Duration::from_millis(5);
        let pauses: Vec<u128> = (0..9).map(|_| backoff.after(short).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(backoff.after(WELL), FIRST);
        assert_eq!(backoff.after(short), FIRST * 2);
    }
}

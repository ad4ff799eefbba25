//! PURE: for how long this worker may still run things, counted from the send of its last proof.
//!
//! The wheel: beside worker::reconcile, which asks it, and worker::driver, whose every effect asks its [`Gate`]. Nothing here reads a
//! clock but through [`Clock`], and nothing decides what runs.

use std::{
    fmt,
    ops::Add,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

/// A point of CLOCK_BOOTTIME, in nanoseconds: the clock that goes on while the machine sleeps. Guard and agent share it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(pub u64);

impl BootTime {
    /// How long from `earlier` to here; zero if that is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Earlier by `span`, and not before the boot.
    #[must_use]
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(nanoseconds(span)))
    }
}

impl Add<Duration> for BootTime {
    type Output = Self;
    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(nanoseconds(span)))
    }
}

fn nanoseconds(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// Where the time comes from.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Now.
    fn now(&self) -> BootTime;

    /// The instant for the runtime's timers at which this clock shows `at`; now, if that has passed.
    fn instant(&self, at: BootTime) -> Instant {
        Instant::now() + at.since(self.now())
    }

    /// The time of day for statuses, in nanoseconds since the Unix epoch. No decision depends on it.
    fn unix_ns(&self) -> i64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    }
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> BootTime {
        boot_time()
    }
}

#[cfg(target_os = "linux")]
const BOOT_CLOCK: nix::time::ClockId = nix::time::ClockId::CLOCK_BOOTTIME;
// On macOS this clock goes on while the machine sleeps.
#[cfg(not(target_os = "linux"))]
const BOOT_CLOCK: nix::time::ClockId = nix::time::ClockId::CLOCK_MONOTONIC;

/// Reads the clock. A system on which that fails has no such clock, and then every authority has ended.
pub(crate) fn boot_time() -> BootTime {
    nix::time::clock_gettime(BOOT_CLOCK).map_or(BootTime(u64::MAX), |t| BootTime(nanoseconds(Duration::from(t))))
}

/// By how much the clocks of two machines may differ in rate, in percent (rho).
const RATE_PERCENT: u128 = 1;
/// etcd grants no shorter lease at its default election timeout.
const SHORTEST_LEASE: Duration = Duration::from_secs(2);

/// The spans of the ownership protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From one proof to the next.
    pub proof_period: Duration,
    /// After this long a proof without an answer is given up, and sent again.
    pub proof_deadline: Duration,
    /// D: for how long a proof gives authority, from its send.
    pub authority: Duration,
    /// What the system may take to end a killed process.
    pub kill: Duration,
    /// What work gets from the stop signal to the kill, unless its spec says otherwise.
    pub grace: Duration,
    /// What scheduling may delay.
    pub slack: Duration,
    /// G: what the leader waits after a session was observed gone.
    pub wait: Duration,
    /// The lease of the registration, in whole seconds.
    pub lease: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            proof_period: Duration::from_millis(500),
            proof_deadline: Duration::from_secs(1),
            authority: Duration::from_secs(5),
            kill: Duration::from_millis(500),
            grace: Duration::from_millis(500),
            slack: Duration::from_millis(250),
            // 5.1 s would break the inequality by a millisecond.
            wait: Duration::from_millis(5110),
            lease: Duration::from_secs(4),
        }
    }
}

/// An inequality that the spans break.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimingError {
    /// A span that must be more than nothing.
    #[error("timing: {0} is 0; it must be more")]
    Zero(&'static str),
    /// A single lost proof would stop the work.
    #[error(
        "timing: proof period + proof deadline < authority - kill - slack - grace does not hold: {:?} + {:?} < {:?} - {:?} - {:?} - {:?}; \
         the defaults would do: 500ms + 1s < 5s - 500ms - 250ms - 500ms",
        .0.proof_period, .0.proof_deadline, .0.authority, .0.kill, .0.slack, .0.grace
    )]
    Proof(Box<Timing>),
    /// The leader would hand on work that may still run.
    #[error(
        "timing: wait >= authority * (1 + rho) / (1 - rho) does not hold: {:?} >= {:?} * 1.01 / 0.99; the defaults would do: 5.11s >= 5s * 1.01 / 0.99",
        .0.wait, .0.authority
    )]
    Wait(Box<Timing>),
    /// etcd does not grant it.
    #[error("timing: lease >= {SHORTEST_LEASE:?} in whole seconds does not hold: {0:?}; the default would do: 4s")]
    Lease(Duration),
}

impl Timing {
    /// Checks that the spans keep the promise of one owner.
    ///
    /// # Errors
    /// The first inequality that does not hold, with its values.
    pub fn check(&self) -> Result<(), TimingError> {
        let spans = [
            ("proof period", self.proof_period),
            ("proof deadline", self.proof_deadline),
            ("authority", self.authority),
            ("kill", self.kill),
            ("slack", self.slack),
        ];
        if let Some((name, _)) = spans.iter().find(|(_, span)| span.is_zero()) {
            return Err(TimingError::Zero(name));
        }
        if self.proof_period + self.proof_deadline + self.grace >= self.until_kill() {
            return Err(TimingError::Proof(Box::new(*self)));
        }
        if self.wait.as_nanos() * (100 - RATE_PERCENT) < self.authority.as_nanos() * (100 + RATE_PERCENT) {
            return Err(TimingError::Wait(Box::new(*self)));
        }
        if self.lease < SHORTEST_LEASE || self.lease.subsec_nanos() != 0 {
            return Err(TimingError::Lease(self.lease));
        }
        Ok(())
    }

    /// From the send of a proof to the kill.
    #[must_use]
    pub fn until_kill(&self) -> Duration {
        self.authority.saturating_sub(self.kill).saturating_sub(self.slack)
    }

    /// The longest grace that work can have when authority ends. More would leave too little for a proof that is lost and sent again.
    #[must_use]
    pub fn longest_grace(&self) -> Duration {
        self.until_kill().saturating_sub(self.proof_period).saturating_sub(self.proof_deadline)
    }
}

/// What one session has proved.
#[derive(Clone, Copy, Debug)]
pub struct Authority {
    timing: Timing,
    sent: Option<BootTime>,
}

impl Authority {
    /// None yet.
    #[must_use]
    pub fn none(timing: Timing) -> Self {
        Self { timing, sent: None }
    }

    /// A proof held that was *sent* at this time; when its answer came does not matter. Answers may come out of order.
    pub fn proved(&mut self, sent: BootTime) {
        self.sent = self.sent.max(Some(sent));
    }

    /// When work that needs `grace` to stop is told to. None without any proof.
    #[must_use]
    pub fn tell_at(&self, grace: Duration) -> Option<BootTime> {
        self.kill_at().map(|at| at.before(grace.min(self.timing.longest_grace())))
    }

    /// When whatever still runs is killed.
    #[must_use]
    pub fn kill_at(&self) -> Option<BootTime> {
        self.sent.map(|sent| sent + self.timing.until_kill())
    }

    /// When nothing runs any more.
    #[must_use]
    pub fn gone_by(&self) -> Option<BootTime> {
        self.sent.map(|sent| sent + self.timing.authority)
    }

    /// Whether work with this grace may run now.
    #[must_use]
    pub fn reaches(&self, now: BootTime, grace: Duration) -> bool {
        self.tell_at(grace).is_some_and(|at| now < at)
    }
}

/// What each effect asks right before it happens. Shut unless the agent opened it until some time.
#[derive(Clone, Debug)]
pub struct Gate {
    open_until: Arc<AtomicU64>,
    clock: Arc<dyn Clock>,
}

impl Gate {
    /// A gate that is shut.
    #[must_use]
    pub fn shut(clock: Arc<dyn Clock>) -> Self {
        Self { open_until: Arc::new(AtomicU64::new(0)), clock }
    }

    /// Opens it until then; none shuts it.
    pub fn open_until(&self, end: Option<BootTime>) {
        self.open_until.store(end.map_or(0, |at| at.0), Ordering::SeqCst);
    }

    /// Whether something may be started now.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.clock.now().0 < self.open_until.load(Ordering::SeqCst)
    }

    /// The clock that it goes by.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn at(millis: u64) -> BootTime {
        BootTime(millis * 1_000_000)
    }

    #[test]
    fn the_start_values_hold() {
        assert_eq!(Timing::default().check(), Ok(()));
        assert_eq!(Timing::default().longest_grace(), ms(2750));
    }

    #[test]
    fn each_inequality_is_checked_and_named() {
        let base = Timing::default();
        let cases = [
            (Timing { kill: ms(0), ..base }, "timing: kill is 0"),
            (
                Timing { grace: ms(2750), ..base },
                "proof period + proof deadline < authority - kill - slack - grace does not hold: 500ms + 1s < 5s",
            ),
            (Timing { wait: ms(5101), ..base }, "wait >= authority * (1 + rho) / (1 - rho) does not hold: 5.101s >= 5s * 1.01 / 0.99"),
            (Timing { lease: ms(1000), ..base }, "timing: lease >= 2s in whole seconds does not hold: 1s"),
            (Timing { lease: ms(2500), ..base }, "timing: lease >= 2s in whole seconds does not hold: 2.5s"),
        ];
        for (timing, expected) in cases {
            let message = timing.check().expect_err("broken").to_string();
            assert!(message.contains(expected), "{message}");
        }
        assert_eq!(Timing { grace: ms(2749), ..base }.check(), Ok(()));
        assert_eq!(Timing { wait: ms(5102), ..base }.check(), Ok(()));
    }

    #[test]
    fn authority_counts_from_the_send_of_the_latest_proof() {
        let mut authority = Authority::none(Timing::default());
        assert!(!authority.reaches(at(0), ms(0)), "no proof, no authority");
        authority.proved(at(1000));
        assert_eq!(
            (authority.tell_at(ms(500)), authority.kill_at(), authority.gone_by()),
            (Some(at(4750)), Some(at(5250)), Some(at(6000)))
        );
        authority.proved(at(700));
        assert_eq!(authority.kill_at(), Some(at(5250)), "an answer that comes late takes nothing away");
        assert!(authority.reaches(at(4749), ms(500)) && !authority.reaches(at(4750), ms(500)));
        assert!(!authority.reaches(at(3250), ms(2000)), "a longer grace shortens what is left");
        assert_eq!(authority.tell_at(ms(60_000)), Some(at(2500)), "and is bounded");
    }

    #[test]
    fn a_gate_shuts_by_itself() {
        #[derive(Debug)]
        struct Hand(AtomicU64);
        impl Clock for Hand {
            fn now(&self) -> BootTime {
                BootTime(self.0.load(Ordering::SeqCst))
            }
        }
        let clock = Arc::new(Hand(AtomicU64::new(10)));
        let gate = Gate::shut(clock.clone());
        assert!(!gate.is_open());
        gate.open_until(Some(BootTime(20)));
        assert!(gate.is_open());
        clock.0.store(20, Ordering::SeqCst);
        assert!(!gate.is_open());
        gate.open_until(Some(BootTime(30)));
        gate.open_until(None);
        assert!(!gate.is_open());
    }
}

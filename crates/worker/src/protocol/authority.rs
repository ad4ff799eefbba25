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

use evenkeel_model::wait_for;
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

/// etcd grants no shorter lease at its default election timeout.
pub const SHORTEST_LEASE: Duration = Duration::from_secs(2);
/// No span is longer: beyond this nobody means it, and no leader would wait for it.
pub const LONGEST_SPAN: Duration = Duration::from_secs(evenkeel_model::limits::MAX_AUTHORITY);
/// What is computed is rounded up to this.
const STEP: Duration = Duration::from_millis(10);

/// An inequality that the spans break, with spans beside them that keep all of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimingError {
    /// A span that must be more than nothing.
    #[error("timing: {0} > 0 does not hold; {would_do}", would_do = .1.beside(&.2))]
    Zero(&'static str, Box<Timing>, Box<Timing>),
    /// A span that nobody means.
    #[error("timing: {0} <= 1h does not hold: {3:?}; {would_do}", would_do = .1.beside(&.2))]
    Long(&'static str, Box<Timing>, Box<Timing>, Duration),
    /// A single lost proof would stop the work.
    #[error(
        "timing: proof period + proof deadline < authority - kill - slack - grace does not hold: {:?} + {:?} < {:?} - {:?} - {:?} - {:?}; {}",
        .0.proof_period, .0.proof_deadline, .0.authority, .0.kill, .0.slack, .0.grace, .0.beside(&.1)
    )]
    Proof(Box<Timing>, Box<Timing>),
    /// The leader would hand on work that may still run.
    #[error(
        "timing: wait >= authority * (1 + rho) / (1 - rho) does not hold: {:?} >= {:?} * 1.01 / 0.99; {}",
        .0.wait, .0.authority, .0.beside(&.1)
    )]
    Wait(Box<Timing>, Box<Timing>),
    /// etcd does not grant it.
    #[error("timing: worker lease >= {SHORTEST_LEASE:?} in whole seconds does not hold: {:?}; {}", .0.lease, .0.beside(&.1))]
    Lease(Box<Timing>, Box<Timing>),
}

impl Timing {
    /// Checks that the spans keep the promise of one owner.
    ///
    /// # Errors
    /// The first inequality that does not hold, with its values and the nearest spans that keep all of them.
    pub fn check(&self) -> Result<(), TimingError> {
        let (this, nearest) = (Box::new(*self), || Box::new(self.nearest()));
        if let Some((name, span)) = self.named().into_iter().find(|(_, span)| *span > LONGEST_SPAN) {
            return Err(TimingError::Long(name, this, nearest(), span));
        }
        if let Some((name, _)) = self.named().into_iter().find(|(name, span)| *name != "grace" && span.is_zero()) {
            return Err(TimingError::Zero(name, this, nearest()));
        }
        if self.proof_period + self.proof_deadline + self.grace >= self.until_kill() {
            return Err(TimingError::Proof(this, nearest()));
        }
        if self.wait < wait_for(self.authority) {
            return Err(TimingError::Wait(this, nearest()));
        }
        if self.lease < SHORTEST_LEASE || self.lease.subsec_nanos() != 0 {
            return Err(TimingError::Lease(this, nearest()));
        }
        Ok(())
    }

    /// The spans by the names of their flags.
    fn named(&self) -> [(&'static str, Duration); 8] {
        [
            ("proof period", self.proof_period),
            ("proof deadline", self.proof_deadline),
            ("authority", self.authority),
            ("kill", self.kill),
            ("grace", self.grace),
            ("slack", self.slack),
            ("wait", self.wait),
            ("worker lease", self.lease),
        ]
    }

    /// Spans that keep every inequality: what may be kept is, and the authority, the wait and the lease are no longer than they must be.
    #[must_use]
    pub fn nearest(&self) -> Self {
        let usual = Self::default();
        // Of what is nothing, or too long for five of them to have room in an authority, the start value.
        let longest = LONGEST_SPAN / 12;
        let part = |span: Duration, usual: Duration| if span.is_zero() || span > longest { usual } else { span };
        let mut near = Self {
            proof_period: part(self.proof_period, usual.proof_period),
            proof_deadline: part(self.proof_deadline, usual.proof_deadline),
            kill: part(self.kill, usual.kill),
            slack: part(self.slack, usual.slack),
            grace: if self.grace > longest { usual.grace } else { self.grace },
            ..*self
        };
        let least = near.proof_period + near.proof_deadline + near.kill + near.slack + near.grace + Duration::from_nanos(1);
        if near.authority < least {
            near.authority = round_up(least, STEP);
        }
        // The wait must not be too long either.
        near.authority = near.authority.min(LONGEST_SPAN / 2);
        if near.wait < wait_for(near.authority) {
            near.wait = round_up(wait_for(near.authority), STEP);
        }
        near.wait = near.wait.min(LONGEST_SPAN);
        near.lease = round_up(near.lease.clamp(SHORTEST_LEASE, LONGEST_SPAN), Duration::from_secs(1));
        near
    }

    /// Says which spans of `near` differ from these.
    fn beside(&self, near: &Self) -> String {
        let differ = self.named().into_iter().zip(near.named()).filter(|(own, near)| own.1 != near.1);
        let text: Vec<String> = differ.map(|(_, (name, span))| format!("{} {span:?}", name.replace(' ', "-"))).collect();
        format!("with what else is given, this would do: {}", text.join(", "))
    }

    /// D as a registration says it: in milliseconds, and no shorter.
    #[must_use]
    pub fn authority_ms(&self) -> u64 {
        u64::try_from(self.authority.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
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

fn round_up(span: Duration, step: Duration) -> Duration {
    let steps = span.as_nanos().div_ceil(step.as_nanos().max(1));
    step * u32::try_from(steps).unwrap_or(u32::MAX)
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
        self.opens_until().is_some()
    }

    /// Until when something may be started; none: not now.
    #[must_use]
    pub fn opens_until(&self) -> Option<BootTime> {
        let until = BootTime(self.open_until.load(Ordering::SeqCst));
        (self.clock.now() < until).then_some(until)
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
            (Timing { kill: ms(0), ..base }, "timing: kill > 0 does not hold; with what else is given, this would do: kill 500ms"),
            (Timing { wait: ms(0), ..base }, "timing: wait > 0 does not hold; with what else is given, this would do: wait 5.11s"),
            (
                Timing { grace: ms(2750), ..base },
                "proof period + proof deadline < authority - kill - slack - grace does not hold: 500ms + 1s < 5s - 500ms - 250ms - 2.75s; \
                 with what else is given, this would do: authority 5.01s, wait 5.12s",
            ),
            (
                Timing { wait: ms(5101), ..base },
                "wait >= authority * (1 + rho) / (1 - rho) does not hold: 5.101s >= 5s * 1.01 / 0.99; \
                 with what else is given, this would do: wait 5.11s",
            ),
            (Timing { authority: ms(10_000), ..base }, "this would do: wait 10.21s"),
            (
                Timing { lease: ms(1000), ..base },
                "timing: worker lease >= 2s in whole seconds does not hold: 1s; with what else is given, this would do: worker-lease 2s",
            ),
            (Timing { lease: ms(2500), ..base }, "this would do: worker-lease 3s"),
            (Timing { authority: Duration::MAX, ..base }, "timing: authority <= 1h does not hold"),
        ];
        for (timing, expected) in cases {
            let message = timing.check().expect_err("broken").to_string();
            assert!(message.contains(expected), "{message}");
        }
        assert_eq!(Timing { grace: ms(2749), ..base }.check(), Ok(()));
        assert_eq!(Timing { wait: ms(5102), ..base }.check(), Ok(()));
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn what_is_said_to_do_does(spans in proptest::collection::vec(proptest::prop_oneof![
            proptest::strategy::Just(0), 1..10_000_u64, 100_000..500_000_u64, 0..10_000_000_000_u64, proptest::strategy::Just(u64::MAX)
        ], 8)) {
            let [proof_period, proof_deadline, authority, kill, grace, slack, wait, lease] =
                <[Duration; 8]>::try_from(spans.into_iter().map(ms).collect::<Vec<_>>()).expect("eight");
            let given = Timing { proof_period, proof_deadline, authority, kill, grace, slack, wait, lease };
            proptest::prop_assert_eq!(given.nearest().check(), Ok(()));
            if given.check().is_ok() {
                proptest::prop_assert_eq!(given.nearest().authority, given.authority.min(LONGEST_SPAN / 2));
            }
        }
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

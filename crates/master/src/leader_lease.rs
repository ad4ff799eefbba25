//! The leader's lease: until when this master may answer as the leader without asking etcd.
//!
//! Beside the wheel. The candidacy says what etcd has confirmed; whoever answers callers asks here each time, because a master that was
//! stopped by a signal, or is cut off, learns last that it has been replaced. It decides nothing about who leads, and nothing that is
//! written depends on it: each write is guarded by the fence.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::time::Clock;

/// The share of the lease by which it may end earlier than this master counts: clocks differ in rate by less than 1% (DESIGN.md, section 4,
/// I1), and etcd counts by its own.
const DRIFT_PERCENT: u32 = 1;
/// Taken off the lease for what the clocks do not cover: the check and the reading that follows it are two steps, and timers are coarse by
/// some milliseconds. A small part of the shortest lease, which is 2 s.
const SLACK: Duration = Duration::from_millis(50);
/// A difference between the two clocks of the machine that is no sleep: each is read by itself, so they differ by microseconds.
const READ_APART: Duration = Duration::from_millis(10);

/// What etcd has confirmed of the candidacy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Confirmed {
    /// When the keep-alive (or the grant) that was answered last was sent. From its answer it could be counted only if answers took no time.
    pub(crate) sent: Instant,
    /// For how long the lease lasts from then on. etcd may extend it by itself (a new leader of etcd does), and never shortens it, unless
    /// somebody revokes it.
    pub(crate) ttl: Duration,
}

/// Asks the candidacy what is confirmed; none: it is gone.
type Ask = Box<dyn Fn() -> Option<Confirmed> + Send>;

/// The lease of the candidacy that this master has at the moment, if it has one.
#[derive(Default)]
pub(crate) struct LeaderLease {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    confirmed: Option<Ask>,
    /// What etcd says while it refuses to be read. It may extend leases all the same: its authentication does not cover them.
    refusal: Option<String>,
    /// For how long the machine had slept in all when that was looked at last.
    slept: Duration,
    /// When it was seen that the machine has slept: what was confirmed before says nothing, since timers stand still meanwhile.
    woken: Option<Instant>,
}

impl LeaderLease {
    /// There is a new candidacy, which says by itself what is confirmed of it.
    pub(crate) fn hold(&self, confirmed: impl Fn() -> Option<Confirmed> + Send + 'static) {
        let mut state = self.state();
        // It was created, and read, a moment ago.
        state.confirmed = Some(Box::new(confirmed));
        state.refusal = None;
    }

    /// etcd refuses to be read, with these words, or does so no longer. What this master has taken in may be old by any span then. Returns
    /// whether that is new.
    pub(crate) fn refuse(&self, refusal: Option<String>) -> bool {
        let mut state = self.state();
        let is_new = state.refusal.is_some() != refusal.is_some();
        state.refusal = refusal;
        is_new
    }

    /// What etcd says, if it refuses to be read.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.state().refusal.clone()
    }

    /// The candidacy is given up. Afterwards nobody looks at it any more.
    pub(crate) fn give_up(&self) {
        self.state().confirmed = None;
    }

    /// Until when this master may answer as the leader, if it leads; none: not now.
    pub(crate) fn until(&self, clock: &dyn Clock) -> Option<Instant> {
        let mut state = self.state();
        let (now, slept) = (Instant::now(), clock.slept());
        if slept > state.slept + READ_APART {
            state.woken = Some(now);
        }
        state.slept = state.slept.max(slept);
        if state.refusal.is_some() {
            return None;
        }
        let Confirmed { sent, ttl } = state.confirmed.as_ref()?()?;
        let until = sent + (ttl - ttl * DRIFT_PERCENT / 100).saturating_sub(SLACK);
        let is_awake_since = state.woken.is_none_or(|woken| sent > woken);
        (is_awake_since && now < until).then_some(until)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for LeaderLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaderLease").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use evenkeel_model::Moment;
    use tokio::time::advance;

    use super::*;

    /// A clock of a machine that sleeps.
    #[derive(Debug, Default)]
    struct Machine {
        slept: Mutex<Duration>,
    }

    impl Clock for Machine {
        fn now(&self) -> Moment {
            Moment::default()
        }

        fn unix_ns(&self) -> i64 {
            0
        }

        fn slept(&self) -> Duration {
            *self.slept.lock().expect("no panic")
        }
    }

    const TTL: Duration = Duration::from_secs(3);
    /// 3 s less 1%, less the slack.
    const LASTS: Duration = Duration::from_millis(2_920);
    const MILLISECOND: Duration = Duration::from_millis(1);

    /// A lease whose confirmations are given by the test.
    fn lease() -> (LeaderLease, Arc<Mutex<Option<Instant>>>) {
        let (lease, sent) = (LeaderLease::default(), Arc::new(Mutex::new(Some(Instant::now()))));
        let shown = Arc::clone(&sent);
        lease.hold(move || shown.lock().expect("no panic").map(|sent| Confirmed { sent, ttl: TTL }));
        (lease, sent)
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_before_another_can_lead_and_is_extended_from_what_was_sent() {
        let machine = Machine::default();
        let (lease, sent) = lease();
        let begun = Instant::now();
        assert_eq!(lease.until(&machine), Some(begun + LASTS));
        advance(LASTS - MILLISECOND).await;
        assert!(lease.until(&machine).is_some());
        advance(MILLISECOND).await;
        assert_eq!(lease.until(&machine), None, "another may lead soon");
        // The answer to what was sent a second after the beginning comes late, and extends it all the same.
        *sent.lock().expect("no panic") = Some(begun + Duration::from_secs(1));
        assert_eq!(lease.until(&machine), Some(begun + Duration::from_secs(1) + LASTS));
        *sent.lock().expect("no panic") = None;
        assert_eq!(lease.until(&machine), None, "the candidacy is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn it_does_not_hold_while_etcd_refuses_to_be_read() {
        let machine = Machine::default();
        let (lease, _sent) = lease();
        assert!(lease.refuse(Some("who are you".to_owned())));
        assert_eq!((lease.until(&machine), lease.refusal().as_deref()), (None, Some("who are you")));
        assert!(!lease.refuse(Some("who are you".to_owned())), "known");
        assert!(lease.refuse(None));
        assert!(lease.until(&machine).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_nobodys_without_a_candidacy() {
        let (lease, _) = lease();
        lease.give_up();
        assert_eq!(lease.until(&Machine::default()), None);
        assert_eq!(LeaderLease::default().until(&Machine::default()), None);
    }

    /// Timers stand still while the machine sleeps, and etcd's do not.
    #[tokio::test(start_paused = true)]
    async fn after_a_sleep_of_the_machine_it_wants_to_be_confirmed_anew() {
        let machine = Machine::default();
        let (lease, sent) = lease();
        *machine.slept.lock().expect("no panic") = Duration::from_micros(50);
        assert!(lease.until(&machine).is_some(), "the clocks are read one after the other");
        *machine.slept.lock().expect("no panic") = Duration::from_secs(60);
        assert_eq!(lease.until(&machine), None);
        advance(MILLISECOND).await;
        *sent.lock().expect("no panic") = Some(Instant::now());
        assert_eq!(lease.until(&machine), Some(Instant::now() + LASTS));
    }
}

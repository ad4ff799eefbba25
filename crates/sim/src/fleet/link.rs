//! The line from an agent to its guard: a socket, which loses what finds no room in it, and a guard that reads late.
//!
//! The wheel: between worker::agent and worker::guard. What was sent arrives in its order.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{dice::Dice, ledger::Ledger};

/// See the module. Clones are the same line.
#[derive(Clone)]
pub(super) struct Line(Arc<Inner>);

struct Inner {
    ledger: Ledger,
    dice: Dice,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    loses: bool,
    delay: Duration,
    /// What is under way, and when the last of it arrives.
    under_way: Option<(mpsc::UnboundedSender<Sent>, Instant)>,
}

struct Sent {
    arrives_at: Instant,
    arrives: Box<dyn FnOnce() + Send>,
}

impl Line {
    pub(super) fn new(ledger: Ledger, dice: Dice) -> Self {
        Self(Arc::new(Inner { ledger, dice, state: Mutex::default() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on it loses all that is said, or nothing.
    pub(super) fn lose(&self, loses: bool) {
        self.state().loses = loses;
    }

    /// From now on what is said arrives so much later.
    pub(super) fn delay(&self, delay: Duration) {
        self.state().delay = delay;
    }

    /// Whether anything of it is out of order.
    pub(super) fn is_bad(&self) -> bool {
        let state = self.state();
        state.loses || !state.delay.is_zero()
    }

    /// Carries a message, which does this when it arrives. False: it was not taken, and whoever speaks knows.
    pub(super) fn carry(&self, arrives: impl FnOnce() + Send + 'static) -> bool {
        let Inner { ledger, dice, .. } = &*self.0;
        let mut state = self.state();
        if state.loses {
            ledger.count(|counts| counts.messages_lost += 1);
            // Some do not learn of it.
            return dice.per_mille(500);
        }
        let now = Instant::now();
        let last = state.under_way.as_ref().map(|(_, at)| *at).filter(|at| *at > now);
        if state.delay.is_zero() && last.is_none() {
            drop(state);
            arrives();
            return true;
        }
        ledger.count(|counts| counts.messages_late += 1);
        let arrives_at = last.into_iter().chain([now + state.delay]).max().unwrap_or(now);
        let way = match &state.under_way {
            Some((way, _)) => way.clone(),
            None => begin(),
        };
        let _ = way.send(Sent { arrives_at, arrives: Box::new(arrives) });
        state.under_way = Some((way, arrives_at));
        true
    }
}

fn begin() -> mpsc::UnboundedSender<Sent> {
    let (way, mut under_way) = mpsc::unbounded_channel::<Sent>();
    // No part of any process: what was sent arrives.
    tokio::spawn(async move {
        while let Some(sent) = under_way.recv().await {
            sleep_until(sent.arrives_at).await;
            (sent.arrives)();
        }
    });
    way
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn what_is_late_arrives_in_its_order_and_what_is_lost_never() {
        let line = Line::new(Ledger::begin(), Dice::new(1, "line"));
        let arrived: Arc<Mutex<Vec<u32>>> = Arc::default();
        let carry = |number| {
            let arrived = Arc::clone(&arrived);
            line.carry(move || arrived.lock().expect("not poisoned").push(number))
        };
        let seen = || arrived.lock().expect("not poisoned").clone();
        assert!(carry(1));
        assert_eq!(seen(), [1], "at once");
        line.delay(100 * MS);
        assert!(carry(2));
        line.delay(Duration::ZERO);
        assert!(carry(3));
        sleep(50 * MS).await;
        assert_eq!(seen(), [1], "behind what is under way");
        sleep(60 * MS).await;
        assert_eq!(seen(), [1, 2, 3]);
        line.lose(true);
        let taken: Vec<bool> = (4..40).map(carry).collect();
        assert!(taken.contains(&true) && taken.contains(&false));
        line.lose(false);
        assert!(carry(40));
        sleep(1000 * MS).await;
        assert_eq!(seen(), [1, 2, 3, 40]);
    }
}

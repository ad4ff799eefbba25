//! What the keeper of a run is told, from its handle to the task that keeps it: the last of each kind of order counts.
//!
//! The wheel: under worker::driver. It carries orders and hands each change on once. It starts and stops nothing.

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{Change, Handle, StopOrder};

/// What a keeper is told.
#[derive(Clone, Debug, Default)]
struct Orders {
    /// Stop.
    stop: Option<StopOrder>,
    /// The last change, which takes the place of those before.
    change: Option<Numbered>,
}

/// A change, and which one it is: counted from 1. Its content may come again after something else ran, and is another order then.
#[derive(Clone, Debug)]
struct Numbered {
    number: u64,
    change: Change,
}

/// The handle of a run that a task keeps.
pub(super) struct Run(watch::Sender<Orders>);

/// The keeper's end of it.
pub(super) struct OrderReceiver {
    received: watch::Receiver<Orders>,
    /// The number of the change that was handed on last; 0: none was.
    handed_on: u64,
}

impl Run {
    /// A handle, and what its keeper receives.
    pub(super) fn new() -> (Self, OrderReceiver) {
        let (orders, received) = watch::channel(Orders::default());
        (Self(orders), OrderReceiver { received, handed_on: 0 })
    }
}

impl Handle for Run {
    fn stop(&self, order: StopOrder) {
        self.0.send_modify(|orders| {
            let before = orders.stop.unwrap_or_default();
            let kill_by = before.kill_by.into_iter().chain(order.kill_by).min();
            orders.stop = Some(StopOrder { kill_by, why: before.why.or(order.why) });
        });
    }

    fn update(&self, change: Change) {
        self.0.send_if_modified(|orders| {
            // A stop is final.
            let takes = orders.stop.is_none();
            if takes {
                let number = orders.change.as_ref().map_or(1, |before| before.number + 1);
                orders.change = Some(Numbered { number, change });
            }
            takes
        });
    }
}

impl OrderReceiver {
    /// The order to stop, if there is one.
    pub(super) fn stop(&self) -> Option<StopOrder> {
        self.received.borrow().stop
    }

    /// Whether there is an order to stop, or nobody left to give one.
    pub(super) fn is_told_to_stop(&self) -> bool {
        self.stop().is_some() || self.received.has_changed().is_err()
    }

    /// Returns once there is an order to stop, or nobody left to give one.
    pub(super) async fn told_to_stop(&mut self) {
        let _ = self.received.wait_for(|orders| orders.stop.is_some()).await;
    }

    /// Waits for the next order.
    ///
    /// # Errors
    /// Nobody is left who could give one.
    pub(super) async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.received.changed().await
    }

    /// The last change that was ordered, if it was not handed on yet.
    pub(super) fn new_change(&mut self) -> Option<Change> {
        let last = self.received.borrow().change.clone()?;
        if last.number == self.handed_on {
            return None;
        }
        self.handed_on = last.number;
        Some(last.change)
    }

    /// The next change; none: it is this time, or there is an order to stop, or nobody is left to give one. Without a time it waits without end.
    pub(super) async fn change_before(&mut self, end: Option<Instant>) -> Option<Change> {
        let over = async {
            match end {
                Some(end) => sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(over);
        while !self.is_told_to_stop() {
            if let Some(change) = self.new_change() {
                return Some(change);
            }
            tokio::select! {
                biased;
                _ = self.received.changed() => {}
                () = &mut over => return None,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use evenkeel_model::{Hash, Spec};
    use serde_json::json;

    use super::*;

    fn change(word: &str) -> Change {
        let spec = Spec::from_value(json!({"word": word})).expect("spec");
        Change { hash: Hash::of("probe", &spec), spec }
    }

    #[test]
    fn each_change_is_handed_on_once_and_the_last_takes_the_place_of_those_before() {
        let (run, mut orders) = Run::new();
        assert_eq!(orders.new_change(), None);
        run.update(change("a"));
        run.update(change("b"));
        assert_eq!((orders.new_change(), orders.new_change()), (Some(change("b")), None));
        run.update(change("b"));
        assert_eq!((orders.new_change(), orders.new_change()), (Some(change("b")), None), "the same content again is another order");
        run.stop(StopOrder::default());
        run.update(change("c"));
        assert_eq!(orders.new_change(), None, "a stop is final");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_with_a_change_its_time_a_stop_or_the_last_handle() {
        let (run, mut orders) = Run::new();
        let begun = Instant::now();
        let end = Some(begun + Duration::from_secs(3));
        run.update(change("a"));
        assert_eq!(orders.change_before(end).await, Some(change("a")));
        assert_eq!((orders.change_before(end).await, begun.elapsed()), (None, Duration::from_secs(3)));
        run.stop(StopOrder::default());
        assert_eq!(orders.change_before(None).await, None);
        let (run, mut orders) = Run::new();
        drop(run);
        assert_eq!((orders.change_before(None).await, orders.is_told_to_stop()), (None, true));
    }
}

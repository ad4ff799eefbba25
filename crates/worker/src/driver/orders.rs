//! What the keeper of a run is told, from its handle to the task that keeps it: the last of each kind of order counts.
//!
//! The wheel: under worker::driver. It carries words, and does nothing about them.

use tokio::sync::watch;

use super::{Change, Handle, StopOrder};

/// What a keeper is told.
#[derive(Clone, Debug, Default)]
pub(super) struct Orders {
    /// Stop.
    pub(super) stop: Option<StopOrder>,
    /// The last change, which takes the place of those before.
    pub(super) change: Option<Change>,
}

/// The handle of a run that a task keeps.
pub(super) struct Run(watch::Sender<Orders>);

impl Run {
    /// A handle, and what its keeper hears.
    pub(super) fn new() -> (Self, watch::Receiver<Orders>) {
        let (orders, heard) = watch::channel(Orders::default());
        (Self(orders), heard)
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
                orders.change = Some(change);
            }
            takes
        });
    }
}

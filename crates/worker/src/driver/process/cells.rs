//! What the driver of processes needs of its surroundings: cells, which hold the processes of runs. (Output goes to the work's own log, and time
//! is that of its gate's clock.)
//!
//! The wheel: between worker::driver and worker::hold. On a machine, cells are the containment of the worker. A simulator puts its own there and
//! runs the keeper as it is: its restart policy, its pauses, how it stops and kills, what it does about a shim that says nothing. Nothing here
//! decides.

use std::{io, sync::Arc, time::Duration};

use tokio::sync::OwnedSemaphorePermit;

use crate::hold;

pub use crate::hold::{
    FromShim,
    wire::{Account, STUCK_EVERY, Start, Terms, ToAgent},
};

/// A shim that ends a run says now and then that it still tries. One that says nothing for much longer was stopped or killed: the spawner ends it.
pub(crate) const SILENCE: Duration = STUCK_EVERY.saturating_mul(5).checked_div(2).expect("not by zero");
/// A shim is there within milliseconds. If not, the spawner is asked whether it lives.
pub(crate) const NO_SHIM: Duration = Duration::from_secs(5);

/// Makes cells.
pub trait Cells: Send + Sync + 'static {
    /// Holds one run.
    type Cell: Cell;

    /// What every process bears in its environment, beside its resource and its epoch: it names who holds it.
    fn mark(&self) -> &str;

    /// Work may be let gain privileges: whatever user it becomes, it can be killed.
    fn ends_any_user(&self) -> bool;

    /// A place among those whose shims are on their way; none: everything is being ended.
    fn place_to_start(&self) -> impl Future<Output = Option<OwnedSemaphorePermit>> + Send;

    /// A cell for one run, with a shim on its way. The label is for people, and has no slash.
    ///
    /// # Errors
    /// There can be none now. Nothing was started then.
    fn cell(self: &Arc<Self>, label: &str) -> io::Result<Self::Cell>;

    /// Everything is being killed for good: what ends now has not ended by itself.
    fn is_ending(&self) -> bool;

    /// Ends this process if nothing can be held any more in what holds all work.
    fn check_cgroup(&self);

    /// Makes sure that shims can be had; if not, this process has lost its hold on the work, and ends.
    fn check_spawner(&self) -> impl Future<Output = ()> + Send;
}

/// Holds every process of one run.
pub trait Cell: Send + 'static {
    /// Asks the shim to start this. Said once, first. It never waits, as no order does.
    fn start(&mut self, start: Start);

    /// Sends a signal to the main process and its group.
    fn signal(&mut self, number: i32);

    /// Kills all of it.
    fn kill(&mut self);

    /// What its shim says next. It may be dropped before it is ready, and loses nothing by that.
    fn next(&mut self) -> impl Future<Output = FromShim> + Send;

    /// Makes sure that nothing of it is left, by force where its shim has not said so. Returns when all of it is dead.
    fn clear(self) -> impl Future<Output = ()> + Send;
}

impl Cells for hold::Containment {
    type Cell = hold::Cell;

    fn mark(&self) -> &str {
        self.mark()
    }

    fn ends_any_user(&self) -> bool {
        self.ends_any_user()
    }

    fn place_to_start(&self) -> impl Future<Output = Option<OwnedSemaphorePermit>> + Send {
        self.place_to_start()
    }

    fn cell(self: &Arc<Self>, label: &str) -> io::Result<hold::Cell> {
        Self::cell(self, label)
    }

    fn is_ending(&self) -> bool {
        self.is_ending()
    }

    fn check_cgroup(&self) {
        self.check_cgroup();
    }

    fn check_spawner(&self) -> impl Future<Output = ()> + Send {
        self.check_spawner()
    }
}

impl Cell for hold::Cell {
    fn start(&mut self, start: Start) {
        self.start(start);
    }

    fn signal(&mut self, number: i32) {
        self.signal(number);
    }

    fn kill(&mut self) {
        self.kill();
    }

    fn next(&mut self) -> impl Future<Output = FromShim> + Send {
        self.next()
    }

    fn clear(self) -> impl Future<Output = ()> + Send {
        self.clear()
    }
}

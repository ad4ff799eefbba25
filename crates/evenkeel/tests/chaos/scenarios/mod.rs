//! The scenarios: what is attacked, in the order of the table.
//!
//! Beside the wheel. Each draws its fault, waits until all runs again, and is judged.

mod clocks;
mod etcd;
mod figures;
mod network;
mod processes;

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::summary::Row;

/// One scenario.
#[derive(Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// Runs with the other tests, too.
    pub(crate) quick: bool,
    pub(crate) run: fn(Shared) -> Running,
}

/// The row that a scenario fills.
pub(crate) type Shared = Arc<Mutex<Row>>;
pub(crate) type Running = Pin<Box<dyn Future<Output = ()>>>;

/// Longer than a worker may run things without a proof.
const BEYOND_AUTHORITY: Duration = Duration::from_secs(8);
/// Shorter, and so short that no lease ends that was extended right before it was due.
const WITHIN_AUTHORITY: Duration = Duration::from_millis(1_500);

/// A list of scenarios: `quick` or `long`, and the function of that name.
macro_rules! scenarios {
    ($($speed:ident $name:ident),+ $(,)?) => {
        pub(super) fn all() -> Vec<super::Scenario> {
            vec![$(super::Scenario {
                name: stringify!($name),
                quick: matches!(stringify!($speed), "quick"),
                run: |row| Box::pin($name(row)),
            }),+]
        }
    };
}
use scenarios;

/// All of them that this machine can run.
pub(crate) fn all() -> Vec<Scenario> {
    let clocks = if clocks::library().is_some() { clocks::all() } else { Vec::new() };
    [processes::all(), etcd::all(), network::all(), clocks, figures::all()].concat()
}

/// What is left out on this machine, and why.
pub(crate) fn left_out() -> Option<&'static str> {
    clocks::library().is_none().then_some("left out: slow clocks, for want of libfaketime (package faketime on Debian and Ubuntu)")
}

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

use crate::summary::{Held, Row};

/// One scenario.
#[derive(Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// Runs with the other tests, too.
    pub(crate) quick: bool,
    pub(crate) held: Held,
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
                held: crate::summary::Held::default(),
                run: |row| Box::pin($name(row)),
            }),+]
        }
    };
}
use scenarios;

/// All of them that this machine can run.
pub(crate) fn all() -> Vec<Scenario> {
    let clocks = if clocks::library().is_some() { clocks::all() } else { Vec::new() };
    let usual = [processes::all(), etcd::all(), network::all(), clocks, figures::all()].concat();
    let [without, unprivileged] = [("without_cgroups", Held::WithoutCgroups), ("unprivileged", Held::Unprivileged)];
    [usual.clone(), held_otherwise(&usual, without), held_otherwise(&usual, unprivileged)].concat()
}

/// Those that are tried without cgroups as well: whatever ends work, stops it, or has it run elsewhere.
const HELD_OTHERWISE: [&str; 22] = [
    "agent_killed",
    "agent_frozen_beyond_authority",
    "guard_killed_and_started_again",
    "guard_frozen_beyond_authority",
    "guard_and_agent_killed_at_once",
    "host_lost_and_started_again_at_once",
    "leader_and_a_host_lost_at_once",
    "rolling_restart_of_everything",
    "children_that_are_deaf",
    "children_that_escape",
    "children_that_fork_without_end",
    "children_that_hold_their_output",
    "children_that_become_another_user",
    "children_that_are_made_siblings",
    "children_without_an_environment",
    "children_that_are_bombs",
    "lease_revoked_under_a_live_worker",
    "etcd_away_for_10_s",
    "worker_cut_off_until_its_work_is_elsewhere",
    "worker_that_hears_no_answers",
    "worker_that_is_not_heard",
    "everybody_cut_off_briefly",
];

fn held_otherwise(usual: &[Scenario], (prefix, held): (&str, Held)) -> Vec<Scenario> {
    let named = |name: &&str| {
        let found = usual.iter().find(|scenario| scenario.name == *name).unwrap_or_else(|| panic!("no scenario {name}"));
        let quick = held == Held::Unprivileged && *name == "children_that_become_another_user";
        // A name is for ever, and there are few of them.
        Scenario { name: format!("{prefix}::{name}").leak(), quick, held, run: found.run }
    };
    HELD_OTHERWISE.iter().map(named).collect()
}

/// What is left out on this machine, and why.
pub(crate) fn left_out() -> Option<&'static str> {
    clocks::library().is_none().then_some("left out: slow clocks, for want of libfaketime (package faketime on Debian and Ubuntu)")
}

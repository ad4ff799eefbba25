//! Work that will not die, on real processes: held by cgroups and without, under root and under nobody. Nothing is left of what was
//! reported stopped, and nothing survives its agent, its guard, both of them, or its authority; and what is beside it lives on.
//!
//! A chosen few of the trials run with the other tests; `make chaos` runs all of them. Each says how its work was held, and fails where it
//! was held otherwise. See docs/chaos.md.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bed;
mod faults;
mod holders;
mod kinds;
mod lives;
mod matrix;
mod neighbours;
mod scale;
#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use crate::bed::Case;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They would take the processors from each other.
    arguments.test_threads.get_or_insert(1);
    let trials = [checks(), matrix::all(), holders::all(), neighbours::all(), faults::all(), scale::all()].into_iter().flatten().collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// The oracle is tried before anything is judged by it.
fn checks() -> Vec<Trial> {
    vec![
        Trial::test("check::a_limit_is_read", || {
            lives::a_limit_is_read();
            Ok(())
        }),
        Trial::test("check::what_hides_is_found", || {
            lives::what_hides_is_found(tempfile::tempdir().expect("a folder").path());
            Ok(())
        }),
    ]
}

/// How often a trial is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speed {
    /// With the other tests.
    Quick,
    /// By `make chaos`.
    Long,
}

/// A trial of a name, in one case.
fn trial<F: Future<Output = ()> + 'static>(name: &str, case: Case, speed: Speed, run: fn(Case) -> F) -> Trial {
    let test = move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(run(case));
        Ok(())
    };
    Trial::test(format!("{name}::{}", case.as_str()), test).with_ignored_flag(speed == Speed::Long)
}

/// A trial in every case, of which these run with the other tests.
fn trials<F: Future<Output = ()> + 'static>(name: &str, quick: &[&str], run: fn(Case) -> F) -> Vec<Trial> {
    let speed = |case: Case| if quick.contains(&case.as_str()) { Speed::Quick } else { Speed::Long };
    assert!(quick.iter().all(|name| Case::ALL.iter().any(|case| case.as_str() == *name)), "{quick:?}");
    Case::ALL.into_iter().map(|case| trial(name, case, speed(case), run)).collect()
}

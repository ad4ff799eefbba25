//! Attacks on real processes: masters and workers with a real etcd of three members, under faults, judged by two oracles.
//!
//! A chosen few scenarios run with the other tests; `make chaos` runs all of them and ends with a table. See docs/chaos.md.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod callers;
mod field;
mod held;
mod history;
#[allow(dead_code, unused_imports, unreachable_pub, reason = "only what this test needs of it is used")]
#[path = "../../../sim/src/linearizability.rs"]
mod linearizability;
mod links;
mod oracle;
mod processes;
mod scenarios;
mod sharers;
mod summary;
#[path = "../support/mod.rs"]
mod support;
mod work;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::{scenarios::Scenario, summary::Row};

type Rows = Arc<Mutex<Vec<Row>>>;

fn main() -> ExitCode {
    if let Some(ended) = work::run_if_asked() {
        return ended;
    }
    let mut arguments = Arguments::from_args();
    let all = arguments.include_ignored || arguments.ignored;
    // Each scenario wants the machine for itself.
    arguments.test_threads.get_or_insert(1);
    let rows = Rows::default();
    let scenarios = scenarios::all().into_iter().map(|scenario| trial(scenario, &rows));
    let conclusion = libtest_mimic::run(&arguments, checks().into_iter().chain(scenarios).collect());
    let rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
    if all && !rows.is_empty() && !arguments.list {
        let table = summary::table(&rows, &etcd_version());
        print!("\n{table}");
        if let Some(left_out) = scenarios::left_out() {
            println!("{left_out}");
        }
        if let Err(error) = std::fs::write(summary::file(), &table) {
            eprintln!("{}: {error}", summary::file().display());
        }
    }
    conclusion.exit_code()
}

/// The oracles and the network are tried before anything is judged by them.
fn checks() -> Vec<Trial> {
    let check = |name: &str, run: fn()| {
        Trial::test(format!("check::{name}"), move || {
            run();
            Ok(())
        })
    };
    vec![
        check("a_good_log_is_found_good", oracle::tests::good_is_good),
        check("each_bad_course_is_found_bad", oracle::tests::bad_courses_are_bad),
        check("each_bad_end_is_found_bad", oracle::tests::bad_ends_are_bad),
        check("a_good_history_is_found_good", history::tests::good_is_good),
        check("each_loss_is_found", history::tests::losses_are_bad),
        check("cuts_hold_back_and_deliver_late", || runtime().block_on(links::tests::cuts_hold_back_and_deliver_late())),
    ]
}

fn trial(scenario: Scenario, rows: &Rows) -> Trial {
    let rows = Arc::clone(rows);
    Trial::test(scenario.name, move || {
        let row = Arc::new(Mutex::new(Row { scenario: scenario.name, held: scenario.held, ..Row::default() }));
        let ran = catch_unwind(AssertUnwindSafe(|| {
            let runtime = runtime();
            // The scenario itself stays on this thread, which its processes are tied to; network and callers are elsewhere.
            runtime.block_on((scenario.run)(Arc::clone(&row)));
            runtime.shutdown_background();
        }));
        let failure = ran.err().map(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned())).unwrap_or_else(|| "it panicked".to_owned())
        });
        let mut row = row.lock().unwrap_or_else(PoisonError::into_inner).clone();
        row.failure.clone_from(&failure);
        rows.lock().unwrap_or_else(PoisonError::into_inner).push(row);
        failure.map_or(Ok(()), |text| Err(Failed::from(text)))
    })
    .with_ignored_flag(!scenario.quick)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// The etcd that all of it ran on.
fn etcd_version() -> String {
    let binary = std::env::var("EVENKEEL_TEST_ETCD").unwrap_or_else(|_| "etcd".to_owned());
    let version = support::run(std::process::Command::new(&binary).arg("--version"));
    format!("{}, three members with etcd's own settings on this machine", version.lines().next().unwrap_or_default())
}

//! The shipped compose file, run unchanged, and broken on purpose: containers killed, paused, cut off and replaced under load, and judged by
//! the oracles of `chaos`. `make compose-test` runs it, after it has made images that cannot be pulled. See docs/chaos.md.
//!
//! The scenarios follow on each other on one stack, in the order of the table; a part of them runs by their names, as with any test, and
//! several by names with commas between them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../chaos/callers.rs"]
mod callers;
mod faults;
mod field;
#[path = "../chaos/history.rs"]
#[allow(dead_code, reason = "chaos tries the oracle itself")]
mod history;
#[path = "../chaos/oracle.rs"]
#[allow(dead_code, reason = "chaos tries the oracle itself")]
mod oracle;
mod probe;
mod stack;
mod start;
#[path = "../chaos/summary.rs"]
#[allow(dead_code, reason = "chaos has a file of its own")]
mod summary;
#[path = "../chaos/work.rs"]
mod work;
mod wrong;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::{field::Field, summary::Row};

/// One scenario: on the stack that stands, or on one that it brings up itself.
type Scenario = (&'static str, fn(&mut Field));

fn main() -> ExitCode {
    if let Some(ended) = work::run_if_asked() {
        return ended;
    }
    let mut arguments = Arguments::from_args();
    // They follow on each other, in the order in which they are listed.
    arguments.test_threads = Some(1);
    let asked_for = arguments.include_ignored || arguments.ignored;
    let field: Arc<Mutex<Option<Field>>> = Arc::default();
    let rows: Arc<Mutex<Vec<Row>>> = Arc::default();
    let mut scenarios = [start::ALL, faults::ALL, wrong::ALL].concat();
    if let Some(several) = arguments.filter.take_if(|filter| filter.contains(',')) {
        let names: Vec<&str> = several.split(',').collect();
        let unknown = names.iter().find(|name| scenarios.iter().all(|(known, _)| known != *name));
        assert!(unknown.is_none(), "there is no scenario {unknown:?}");
        scenarios.retain(|(name, _)| names.contains(name));
    }
    let trials = scenarios.into_iter().map(|(name, run)| {
        let (field, rows) = (Arc::clone(&field), Arc::clone(&rows));
        Trial::test(name, move || trial(name, run, &mut lock(&field), &rows)).with_ignored_flag(true)
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    // Whatever stands is taken down here, be it that something has failed.
    drop(lock(&field).take());
    let rows = lock(&rows);
    if asked_for && !rows.is_empty() && !arguments.list {
        let table = summary::table(&rows, &stack::versions());
        print!("\n{table}");
        if let Err(error) = std::fs::write(file(), &table) {
            eprintln!("{}: {error}", file().display());
        }
    }
    conclusion.exit_code()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn trial(name: &'static str, run: fn(&mut Field), field: &mut Option<Field>, rows: &Mutex<Vec<Row>>) -> Result<(), Failed> {
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let field = field.get_or_insert_with(Field::open);
        field.begin(name);
        run(field);
    }));
    let failure = ran.err().map(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned())).unwrap_or_else(|| "it panicked".to_owned())
    });
    let mut row = field.as_mut().map_or_else(|| Row { scenario: name, ..Row::default() }, Field::take_row);
    row.failure.clone_from(&failure);
    lock(rows).push(row);
    let Some(text) = failure else { return Ok(()) };
    // The next one begins on a stack of its own.
    if let Some(field) = field.take() {
        field.keep(name);
    }
    Err(Failed::from(text))
}

/// Where the table is written, too.
fn file() -> PathBuf {
    summary::file().with_file_name("compose.txt")
}

//! Work in a fleet: what a resource of each name asks for, and what runs it.
//!
//! | file | |
//! |---|---|
//! | `kernel.rs` | the processes of a machine and their shims, over which the real keeper of processes runs |
//! | `outside.rs` | work that is no process: what refuses smaller epochs, and what outlives its agent and its guard; with their drivers |
//! | `script.rs` | the disk and the scripts that the real runner of tasks finds |
//! | `erring.rs` | a driver that errs, around each of the others |
//!
//! Contents are numbers, each of another meaning: so whoever sees a spec, in etcd or in the hands of a driver, knows whose it is.

mod erring;
mod kernel;
mod outside;
mod script;

use evenkeel_model::{Draft, Holds, ResourceName, process};
use serde_json::{Value, json};

use super::{ledger::AVAILABLE, sharer::is_shared};

pub(super) use erring::ErringDriver;
pub(super) use kernel::{Kernel, SimCells, fails_on, refuses_on};
pub(super) use outside::{Outside, OutsideDriver};
pub(super) use script::{SimJournal, SimScripts};

/// The one switch of how work is held: off, all work is held strictly, for who looks for a fault in that alone.
pub(super) const KNOWS_HOLDS: bool = true;

/// The kind of work that an outside holds which refuses smaller epochs.
pub(super) const FENCED: &str = "fenced";
/// The kind of work that outlives agent and guard.
pub(super) const LOOSE: &str = "loose";
/// Names that begin with this are of resources that want one owner of work that nobody can hold so: they run nowhere.
const UNHELD: &str = "unheld-";
/// Two contents of so many in a row differ in how the process is stopped, and in nothing that it was started with.
const ALIKE: u64 = 3;
/// The shortest grace of a process, and by how much those of contents in a row differ, in milliseconds. None is longer than what is usual, since
/// work that needs longer has less authority.
const GRACE_MS: u64 = 350;
const GRACE_STEP_MS: u64 = 50;
/// One content in so many is work that comes to its end and is not to be started again.
const ENDS: u64 = 7;
/// Of so many contents of work outside, one needs a restart.
const RESTARTS: u64 = 4;

/// The name of the resource with this number, in the fleet of this seed.
pub(super) fn name_of(number: usize, seed: u64) -> String {
    let held = if KNOWS_HOLDS { number.wrapping_add(usize::try_from(seed % 8).unwrap_or(0)) % 8 } else { 0 };
    match held {
        1 => format!("{FENCED}-{number}"),
        3 => format!("{LOOSE}-{number}"),
        7 => format!("{UNHELD}{number}"),
        _ if number % 8 == 5 => format!("{AVAILABLE}{number}"),
        _ => format!("resource-{number}"),
    }
}

/// The kind of the resource of this name.
pub(super) fn kind_of(name: &ResourceName) -> &'static str {
    if name.as_str().starts_with(FENCED) {
        FENCED
    } else if is_unheld(name) || name.as_str().starts_with(LOOSE) {
        LOOSE
    } else {
        process::KIND
    }
}

/// How work of this name is held.
pub(super) fn holds_of(name: &ResourceName) -> Holds {
    match kind_of(name) {
        FENCED => Holds::Fenced,
        LOOSE => Holds::Loose,
        _ => Holds::Strict,
    }
}

/// It can run nowhere.
pub(super) fn is_unheld(name: &ResourceName) -> bool {
    name.as_str().starts_with(UNHELD)
}

/// Whether a resource accepts several owners for a while.
pub(super) fn is_available(name: &ResourceName) -> bool {
    name.as_str().starts_with(AVAILABLE) || name.as_str().starts_with(LOOSE)
}

/// The resource of this name with this content.
pub(super) fn draft(name: &ResourceName, content: u64) -> Draft {
    Draft {
        name: name.to_string(),
        kind: kind_of(name).to_owned(),
        ownership: if is_available(name) { "available".to_owned() } else { String::new() },
        spec: Some(spec_of(name, content)),
        ..Draft::default()
    }
}

fn spec_of(name: &ResourceName, content: u64) -> Value {
    if kind_of(name) != process::KIND {
        return json!({ "content": content });
    }
    let ends = content.is_multiple_of(ENDS) && !is_shared(name);
    json!({
        "command": ["work", (content / ALIKE).to_string()],
        "restart": if ends { "on-failure" } else { "always" },
        "stop_grace": format!("{}ms", GRACE_MS + content % ALIKE * GRACE_STEP_MS),
    })
}

/// The content that a spec has.
pub(super) fn content_of(spec: &Value) -> Option<u64> {
    if let Some(content) = spec.get("content") {
        return content.as_u64();
    }
    let started_with: u64 = spec.get("command")?.get(1)?.as_str()?.parse().ok()?;
    let grace: u64 = spec.get("stop_grace")?.as_str()?.strip_suffix("ms")?.parse().ok()?;
    Some(started_with * ALIKE + (grace - GRACE_MS) / GRACE_STEP_MS)
}

/// What a process of this content is started with.
pub(super) fn started_with(content: u64) -> u64 {
    content / ALIKE
}

/// A process that was started with this may be of a content that comes to its end.
fn may_end(started_with: u64) -> bool {
    (started_with * ALIKE..(started_with + 1) * ALIKE).any(|content| content.is_multiple_of(ENDS))
}

/// What a driver of work outside cannot change while it runs.
fn needs_restart(content: u64) -> bool {
    content.is_multiple_of(RESTARTS)
}

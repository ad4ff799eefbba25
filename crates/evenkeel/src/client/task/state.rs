//! What is known of a task, as JSON, tables and sentences. Under client::task. PURE but for the clock of a table's ages. What a worker or a script has
//! said may be anything: nothing of it reaches a terminal that would obey it.

use std::{collections::BTreeMap, time::Duration};

use evenkeel_model::{process::in_units, shown::sentence, task::HostState};
use evenkeel_proto::v1::{TaskHost, TaskState};
use serde_json::Value;

use crate::{
    client::{ClientError, convert},
    output::{self, Row, Tone, age, or_dash, processor_time},
};

/// How many hosts a summary names.
const NAMED: usize = 50;

/// Every field with the name of the proto. Times are texts, as everywhere: as numbers they would lose digits in many a program.
pub(super) fn value(task: &TaskState) -> Result<Value, ClientError> {
    let mut value = convert::to_whole_json("TaskState", task)?;
    times(&mut value, &["created", "done"]);
    let hosts = value.get_mut("hosts").and_then(Value::as_array_mut);
    hosts.into_iter().flatten().for_each(|host| times(host, &["ordered", "began", "ended"]));
    // A task is shown without its script, unless that was asked for.
    let definition = value.get_mut("task").and_then(Value::as_object_mut);
    if let Some(definition) = definition.filter(|definition| definition.get("script").and_then(Value::as_str) == Some("")) {
        definition.remove("script");
        definition.remove("stdin");
    }
    Ok(value)
}

/// The same without the hosts, which a list leaves out.
pub(super) fn value_of_list(task: &TaskState) -> Result<Value, ClientError> {
    let mut value = value(task)?;
    if let Some(fields) = value.as_object_mut() {
        fields.remove("hosts");
    }
    Ok(value)
}

/// One host, as a line of `watch`.
pub(super) fn value_of_host(id: u32, host: &TaskHost) -> Result<Value, ClientError> {
    let mut value = convert::to_whole_json("TaskHost", host)?;
    times(&mut value, &["ordered", "began", "ended"]);
    if let Some(fields) = value.as_object_mut() {
        fields.insert("task".to_owned(), id.into());
    }
    Ok(value)
}

fn times(value: &mut Value, fields: &[&str]) {
    for field in fields {
        if let Some(time) = value.get_mut(*field) {
            *time = time.to_string().into();
        }
    }
}

/// Nothing more comes of a host in this state.
pub(super) fn is_at_end(state: &str) -> bool {
    !matches!(state, "waiting" | "pending" | "running")
}

/// Nobody has to look at a host in this state.
pub(super) fn is_well(state: &str) -> bool {
    matches!(state, "succeeded" | "ignored")
}

/// What stands against a host, where anything does, in this state.
pub(super) fn has_failed(state: &str) -> bool {
    is_at_end(state) && !is_well(state)
}

/// How many hosts are in which state.
pub(super) fn counts(task: &TaskState) -> BTreeMap<String, u32> {
    if task.hosts.is_empty() {
        return task.counts.clone().into_iter().collect();
    }
    let mut counts = BTreeMap::new();
    task.hosts.iter().for_each(|host| *counts.entry(host.state.clone()).or_default() += 1);
    counts
}

/// `2 succeeded, 1 failed`, in the order in which hosts go through them.
fn counted(counts: &BTreeMap<String, u32>) -> String {
    let known = HostState::ALL.iter().map(|state| state.as_str());
    let others = counts.keys().map(String::as_str).filter(|state| HostState::ALL.iter().all(|known| known.as_str() != *state));
    let parts: Vec<String> = known
        .chain(others)
        .filter_map(|state| counts.get(state).filter(|count| **count > 0).map(|count| format!("{count} {state}")))
        .collect();
    if parts.is_empty() { "no host yet".to_owned() } else { parts.join(", ") }
}

/// `task 7 "disk.sh": running; 2 succeeded, 1 running`, and why it is paused with the ways on.
pub(super) fn headline(task: &TaskState) -> String {
    let title = task.task.as_ref().map(|task| task.title.as_str()).filter(|title| !title.is_empty());
    let title = title.map(|title| format!(" \"{}\"", sentence(&title))).unwrap_or_default();
    let outcome = if task.outcome.is_empty() || task.outcome == task.state { String::new() } else { format!(", {}", task.outcome) };
    let line = format!("task {}{title}: {}{outcome}; {}", task.id, task.state, counted(&counts(task)));
    let mut text = output::printable(&line);
    match (task.state.as_str(), task.why.as_str()) {
        ("paused", _) => text.push_str(&format!("\n{}", paused(task))),
        (_, "") => {}
        (_, why) => text.push_str(&format!("\n{}", sentence(&why))),
    }
    text + "\n"
}

/// Why a task is paused, and what leads on.
pub(super) fn paused(task: &TaskState) -> String {
    let (id, why) = (task.id, sentence(&task.why));
    let state = match why.as_str() {
        "" => "paused".to_owned(),
        why if why.starts_with("paused") => why.to_owned(),
        why => format!("paused: {why}"),
    };
    format!(
        "{state}; `evenkeel task resume {id}` goes on and accepts what has failed, `evenkeel task redo {id} --failed` before that lets it run again there, `evenkeel task cancel {id}` ends it"
    )
}

const HOSTS: [&str; 6] = ["WORKER", "STATE", "ATTEMPT", "EXIT", "TOOK", "MESSAGE"];

/// One task with its hosts.
pub(super) fn whole(task: &TaskState, now_ns: i64, colour: bool) -> String {
    let mut text = headline(task);
    text.push_str(&asked(task, now_ns));
    if !task.hosts.is_empty() {
        let rows: Vec<Row> = task.hosts.iter().map(|host| host_row(host, now_ns)).collect();
        text.push_str(&format!("\n{}", output::table(&HOSTS, &rows, colour)));
    }
    let script = task.task.as_ref().map(|task| task.script.as_str()).unwrap_or_default();
    if !script.is_empty() {
        let lines: String = script.lines().map(|line| format!("    {}\n", output::printable(line))).collect();
        text.push_str(&format!("\n{lines}"));
    }
    text
}

/// `by ada, 5m ago; as root; batch 10%, tolerance 0, timeout 5m, deliver 1h`.
fn asked(task: &TaskState, now_ns: i64) -> String {
    let definition = task.task.clone().unwrap_or_default();
    let from = |who: &str, address: &str| match (who, address) {
        ("", "") => "created".to_owned(),
        ("", address) => format!("from {address}"),
        (who, "") => format!("by {who}"),
        (who, address) => format!("by {who} from {address}"),
    };
    let account = if definition.account.is_empty() { "the worker's own user" } else { definition.account.as_str() };
    let text = |ms: u64| in_units(Duration::from_millis(ms));
    let line = format!(
        "{}, {} ago; as {account}; batch {}, tolerance {}, timeout {}, deliver {}",
        from(&sentence(&definition.creator), &task.from),
        age(task.created, now_ns),
        or_dash(&definition.batch),
        or_dash(&definition.tolerance),
        text(definition.timeout_ms),
        text(definition.deliver_ms),
    );
    output::printable(&line) + "\n"
}

/// A host as a row of [`table_of_hosts`].
fn host_row(host: &TaskHost, now_ns: i64) -> Row {
    let until = |end: i64| processor_time(Duration::from_nanos(u64::try_from(end.saturating_sub(host.began)).unwrap_or(0)));
    let took = match (host.began, host.ended) {
        (0, _) => "-".to_owned(),
        // Nobody knows how long.
        (_, 0) if is_at_end(&host.state) => "-".to_owned(),
        (_, 0) => until(now_ns),
        (_, ended) => until(ended),
    };
    let attempt = if host.attempt == 0 { "-".to_owned() } else { host.attempt.to_string() };
    let exit = match (host.exit, host.signal) {
        (Some(exit), _) => exit.to_string(),
        (None, 0) => "-".to_owned(),
        (None, signal) => format!("signal {signal}"),
    };
    Row { cells: vec![host.worker.clone(), host.state.clone(), attempt, exit, took, said(host)], tone: tone(&host.state) }
}

fn tone(state: &str) -> Tone {
    match state {
        "waiting" | "pending" | "paused" => Tone::Waiting,
        _ if has_failed(state) && !matches!(state, "running" | "done") => Tone::Trouble,
        _ => Tone::Plain,
    }
}

/// What the worker says of it, and what it left behind.
fn said(host: &TaskHost) -> String {
    let message = sentence(&host.message);
    match (host.leftover, message.is_empty()) {
        (0, _) => message,
        (left, true) => format!("{left} of its processes were killed"),
        (left, false) => format!("{message}; {left} of its processes were killed"),
    }
}

/// Rows of hosts that are watched; the header comes once.
pub(super) fn table_of_hosts(table: &mut output::Growing, hosts: &[TaskHost], now_ns: i64, colour: bool) -> String {
    table.more(&HOSTS, &hosts.iter().map(|host| host_row(host, now_ns)).collect::<Vec<_>>(), colour)
}

/// `worker-1: failed, exit 3: the message`.
pub(super) fn change(host: &TaskHost) -> String {
    let how = match (host.exit, host.signal) {
        (Some(exit), _) if exit != 0 => format!(", exit {exit}"),
        (_, signal) if signal != 0 => format!(", signal {signal}"),
        _ => String::new(),
    };
    let again = if host.attempt > 1 { format!(" (attempt {})", host.attempt) } else { String::new() };
    let said = said(host);
    let said = if said.is_empty() { said } else { format!(": {said}") };
    output::printable(&format!("{}: {}{how}{again}{said}", host.worker, host.state))
}

/// How a task ended: each host that did not succeed, with its message.
pub(super) fn summary(task: &TaskState) -> String {
    let mut text = headline(task);
    let ill: Vec<&TaskHost> = task.hosts.iter().filter(|host| !is_well(&host.state)).collect();
    ill.iter().take(NAMED).for_each(|host| text.push_str(&format!("  {}\n", change(host))));
    if ill.len() > NAMED {
        text.push_str(&format!("  and {} more: evenkeel task get {}\n", ill.len() - NAMED, task.id));
    }
    // What was never begun has written nothing.
    if let Some(first) = ill.iter().find(|host| host.began != 0) {
        text.push_str(&format!("what they wrote: evenkeel task output {} {}\n", task.id, output::printable(&first.worker)));
    }
    text
}

/// Whether every host succeeded; those that are ignored do not count.
///
/// # Errors
/// How many did not, for the exit status.
pub(super) fn verdict(task: &TaskState) -> Result<(), ClientError> {
    let ill = task.hosts.iter().filter(|host| !is_well(&host.state)).count();
    match (ill, task.hosts.len()) {
        (_, 0) => Err(ClientError::Failed(format!("task {}: it ran nowhere: no worker matched", task.id))),
        (0, _) => Ok(()),
        (ill, all) => Err(ClientError::Failed(format!("task {}: {ill} of {all} hosts did not succeed", task.id))),
    }
}

/// All tasks of a list.
pub(super) fn table(tasks: &[TaskState], now_ns: i64, colour: bool) -> String {
    let headers = ["ID", "STATE", "OUTCOME", "HOSTS", "ENDED", "RUNNING", "FAILED", "TITLE", "CREATOR", "AGE"];
    output::table(&headers, &tasks.iter().map(|task| row(task, now_ns)).collect::<Vec<_>>(), colour)
}

fn row(task: &TaskState, now_ns: i64) -> Row {
    let counts = counts(task);
    let of = |wanted: fn(&str) -> bool| counts.iter().filter(|(state, _)| wanted(state)).map(|(_, count)| count).sum::<u32>().to_string();
    let definition = task.task.clone().unwrap_or_default();
    let cells = vec![
        task.id.to_string(),
        task.state.clone(),
        or_dash(&task.outcome),
        of(|_| true),
        of(is_at_end),
        of(|state| state == "running"),
        of(has_failed),
        or_dash(&sentence(&definition.title)),
        or_dash(&sentence(&definition.creator)),
        age(task.created, now_ns),
    ];
    let tone = if task.outcome.is_empty() { tone_of_task(&task.state) } else { tone(&task.outcome) };
    Row { cells, tone }
}

fn tone_of_task(state: &str) -> Tone {
    if state == "paused" { Tone::Waiting } else { Tone::Plain }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;

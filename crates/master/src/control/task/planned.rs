//! What the leader decides of tasks by itself, as the rest of the control loop sees it: its subject, and what the history says of it. Under
//! control::task. No single order is told, since each host's state shows it.

use evenkeel_model::{
    Cluster, EntryKind, HistoryEntry, WorkerId,
    task::{Close, HostState, TaskAction, TaskEntry},
};

use crate::control::{history, subjects::Subject};

/// The subject of an action.
pub(in crate::control) fn subject(action: &TaskAction) -> Subject {
    match action.worker() {
        Some(worker) => Subject::Order(worker.clone(), action.task()),
        None => Subject::Task(action.task()),
    }
}

/// The entry of an action, where it has one.
pub(in crate::control) fn entry(action: &TaskAction, cluster: &Cluster, time: i64, master: &str) -> Option<HistoryEntry> {
    let (kind, reason) = match action {
        TaskAction::Close { close: Close::Undelivered, why, .. } => (EntryKind::TaskUndelivered, why.to_string()),
        TaskAction::Close { close: Close::Lost, why, .. } => (EntryKind::TaskLost, why.to_string()),
        TaskAction::Pause { why, .. } => (EntryKind::TaskPaused, why.to_string()),
        TaskAction::Done { .. } => (EntryKind::TaskDone, cluster.tasks().get(action.task()).map(counted).unwrap_or_default()),
        TaskAction::Remove { .. } => (EntryKind::TaskRemoved, "it is kept no longer".to_owned()),
        TaskAction::Order { .. }
        | TaskAction::Close { close: Close::Cancelled, .. }
        | TaskAction::Stop { .. }
        | TaskAction::Delete { .. }
        | TaskAction::DeleteTails { .. } => return None,
    };
    let worker = action.worker().map(ToString::to_string).unwrap_or_default();
    Some(HistoryEntry { worker, task: action.task(), ..history::entry(kind, time, master, "", &reason) })
}

/// How many hosts are in each state.
fn counted(entry: &TaskEntry) -> String {
    let counts: Vec<String> = entry.counts().each().map(|(state, count)| format!("{count} {state}")).collect();
    counts.join(", ")
}

/// What a host has come to by a change, if that is an end.
pub(in crate::control) fn new_end(before: Option<HostState>, entry: Option<&TaskEntry>, worker: &WorkerId) -> Option<HostState> {
    entry?.state_of(worker).filter(|state| state.is_end() && before != Some(*state))
}

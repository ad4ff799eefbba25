//! The history that the leader writes: what it decided, when and why, in batches of one key each, bounded in number.

use evenkeel_model::{Action, EndReason, EntryKind, Epoch, HistoryEntry};

/// An entry about a resource.
pub(super) fn about_resource(kind: EntryKind, time: i64, master: &str, resource: &str, reason: &str) -> HistoryEntry {
    HistoryEntry {
        time,
        kind,
        resource: resource.to_owned(),
        worker: String::new(),
        from: String::new(),
        reason: reason.to_owned(),
        master: master.to_owned(),
        epoch: Epoch::default(),
    }
}

/// The entry of an action; the correction of a view leaves none.
pub(super) fn of_action(action: &Action, time: i64, master: &str) -> Option<HistoryEntry> {
    let resource = action.resource().map(ToString::to_string).unwrap_or_default();
    let entry = |kind, reason: &str| about_resource(kind, time, master, &resource, reason);
    Some(match action {
        Action::Admit { worker, reason, .. } => HistoryEntry { worker: worker.to_string(), ..entry(EntryKind::Admitted, reason.as_str()) },
        // Of one that was lost the history knows since its session ended.
        Action::Forget { reason: EndReason::Waited, .. } => return None,
        Action::Forget { worker, reason } => HistoryEntry { worker: worker.to_string(), ..entry(EntryKind::Released, reason.as_str()) },
        Action::Place { worker, reason, .. } => HistoryEntry { worker: worker.to_string(), ..entry(EntryKind::Assigned, reason.as_str()) },
        Action::Stop { worker, epoch, reason, .. } => {
            HistoryEntry { worker: worker.to_string(), epoch: *epoch, ..entry(EntryKind::Stopping, reason.as_str()) }
        }
        Action::Move { from, to, reason, .. } => {
            HistoryEntry { worker: to.to_string(), from: from.to_string(), ..entry(EntryKind::Moved, reason.as_str()) }
        }
        Action::End { worker, epoch, reason, .. } => {
            HistoryEntry { from: worker.to_string(), epoch: *epoch, ..entry(EntryKind::Ended, reason.as_str()) }
        }
        Action::View { .. } => return None,
    })
}

//! What the leader decides of tasks by itself, as the rest of the control loop sees it: its subject, and what the history says of it. Under
//! control::task. No single order is told, since each host's state shows it.

use evenkeel_model::{
    Cluster, Entry, EntryKind, HistoryEntry, TaskId, TaskResult, WorkerId,
    task::{Counts, HostState, OrderIntent, Outcome, TaskAction, TaskEntry},
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
        TaskAction::Pause { why, .. } => (EntryKind::TaskPaused, why.to_string()),
        TaskAction::Done { .. } => (EntryKind::TaskDone, cluster.tasks().get(action.task()).map(counted).unwrap_or_default()),
        TaskAction::Remove { .. } => (EntryKind::TaskRemoved, "it is kept no longer".to_owned()),
        TaskAction::Order { .. }
        // What is told of it is gathered from what is written.
        | TaskAction::Close { .. }
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

/// What a change says of a host that people are to know: it was not reached, or how its script ended is not known.
pub(in crate::control) fn told_of_host<'a>(cluster: &Cluster, entry: &'a Entry) -> Option<(TaskId, &'a WorkerId, EntryKind, &'a str)> {
    let stood =
        |worker, id| cluster.tasks().get(id).and_then(|entry| Some((entry.host(worker)?, &entry.host(worker)?.order.as_deref()?.value)));
    match entry {
        Entry::Order(worker, id, Some(order)) => {
            let kind = match order.intent {
                OrderIntent::Undelivered => EntryKind::TaskUndelivered,
                OrderIntent::Lost => EntryKind::TaskLost,
                OrderIntent::Run | OrderIntent::Stop | OrderIntent::Cancelled => return None,
            };
            let (_, before) = stood(worker, *id)?;
            let is_new = (before.attempt, before.intent) != (order.attempt, order.intent);
            is_new.then_some((*id, worker, kind, &*order.why))
        }
        Entry::TaskResult(worker, id, Some(result)) if result.end() == Some(Outcome::Lost) => {
            let (host, order) = stood(worker, *id)?;
            let is_told = order.intent == OrderIntent::Lost || host.current().and_then(TaskResult::end) == Some(Outcome::Lost);
            (result.is_of(order.attempt) && !is_told).then_some((*id, worker, EntryKind::TaskLost, &*result.message))
        }
        _ => None,
    }
}

/// The task that this change is about, if hosts of it may come to an end by that.
pub(in crate::control) fn ends(entry: &Entry) -> Option<TaskId> {
    match entry {
        Entry::Order(_, id, Some(_)) | Entry::TaskResult(_, id, Some(_)) | Entry::TaskIntent(id, Some(_)) => Some(*id),
        _ => None,
    }
}

/// To which ends how many hosts have come by a change. An end that takes the place of another, as one that is told late does of `lost`, is none that
/// comes beside it, unless a person wants it.
pub(in crate::control) fn new_ends(before: &Counts, after: &Counts, is_intent: bool) -> Vec<(HostState, usize)> {
    let ends = || HostState::ALL.into_iter().filter(|state| state.is_end());
    let all = |counts: &Counts| ends().map(|state| counts.of(state)).sum::<usize>();
    if !is_intent && all(after) <= all(before) {
        return Vec::new();
    }
    let more = |state| after.of(state).saturating_sub(before.of(state));
    ends().map(|state| (state, more(state))).filter(|(_, more)| *more > 0).collect()
}

#[cfg(test)]
mod tests {
    use evenkeel_model::{
        Change, Moment, Revision, TaskIntent,
        task::{Order, TaskDraft, TaskGoal},
    };

    use super::*;

    #[test]
    fn each_end_is_counted_once_and_what_a_person_wants_of_it_as_well() {
        let draft = TaskDraft { script: "id".to_owned(), hosts: vec!["a".to_owned(), "b".to_owned()], ..TaskDraft::default() };
        let mut task = draft.check().expect("a task").task;
        let [a, b] = ["a", "b"].map(|id| WorkerId::new(id).expect("an id"));
        task.on.workers = vec![a.clone(), b.clone()];
        let (id, order, running) = (TaskId(1), Order::run(1, 0), TaskResult::running(1, Revision(4), 1));
        let lost = order.with(OrderIntent::Lost, "gone");
        let ignoring = |goal| TaskIntent { goal, ignored: [a.clone()].into(), ..TaskIntent::default() };
        let intent = |intent| Entry::TaskIntent(id, Some(intent));
        let changes = [
            (Entry::Task(id, Some(task)), vec![]),
            (intent(TaskIntent::default()), vec![]),
            (Entry::Order(a.clone(), id, Some(order.clone())), vec![]),
            (Entry::TaskResult(a.clone(), id, Some(running.clone())), vec![]),
            (Entry::Order(a.clone(), id, Some(lost.clone())), vec![(HostState::Lost, 1)]),
            (Entry::Order(a.clone(), id, Some(lost)), vec![]),
            // Its end is told late, and again.
            (Entry::TaskResult(a.clone(), id, Some(running.clone().with_end(Outcome::Succeeded, 2, ""))), vec![]),
            (Entry::TaskResult(a.clone(), id, Some(running.with_end(Outcome::Failed, 2, ""))), vec![]),
            (intent(ignoring(TaskGoal::Run)), vec![(HostState::Ignored, 1)]),
            (intent(ignoring(TaskGoal::Cancel)), vec![(HostState::Cancelled, 1)]),
            (intent(ignoring(TaskGoal::Remove)), vec![]),
            (Entry::Order(a.clone(), id, None), vec![]),
        ];
        let mut cluster = Cluster::default();
        let mut told = Vec::new();
        for (revision, (entry, expected)) in (1..).zip(changes) {
            told.extend(told_of_host(&cluster, &entry).map(|(_, worker, kind, why)| (worker.to_string(), kind, why.to_owned())));
            let text = format!("{entry:?}");
            let counts = |cluster: &Cluster| cluster.tasks().get(id).map(|entry| *entry.counts()).unwrap_or_default();
            let (before, is_intent, is_about) = (counts(&cluster), matches!(entry, Entry::TaskIntent(..)), ends(&entry));
            cluster.apply(Change::over(Revision(revision), Revision(revision), entry), Moment::default());
            let found = is_about.map(|_| new_ends(&before, &counts(&cluster), is_intent)).unwrap_or_default();
            assert_eq!(found, expected, "{text}");
        }
        assert_eq!(told, [("a".to_owned(), EntryKind::TaskLost, "gone".to_owned())], "once");
    }
}

//! A task as the API shows it, with what is said of each host at once: why it waits, why nothing was begun, how it ended. Under api::tasks. It decides
//! nothing.

use std::time::Duration;

use evenkeel_model::{
    Order, Registration, TaskId, TaskResult, WorkerId,
    process::in_units,
    task::{Children, HostState, OnLost, Task, TaskDraft, TaskEntry, TaskGoal, TaskHost},
};
use evenkeel_proto::v1;
use tonic::Status;

use crate::{
    api::{
        room::{Room, Step},
        service::Service,
    },
    control::request::Refusal,
    state::State,
};

/// What a person asks for, before it is checked.
pub(super) fn draft(task: v1::Task) -> TaskDraft {
    let on = task.on.unwrap_or_default();
    TaskDraft {
        title: task.title,
        script: task.script,
        stdin: task.stdin,
        account: task.account,
        args: task.args,
        env: task.env.into_iter().collect(),
        secrets: task.secrets.into_iter().collect(),
        hosts: on.hosts,
        selector: on.selector,
        any: on.any,
        late: on.late,
        timeout_ms: task.timeout_ms,
        grace_ms: task.grace_ms,
        deliver_ms: task.deliver_ms,
        batch: task.batch,
        tolerance: task.tolerance,
        on_lost: task.on_lost,
        children: task.children,
        pause_after: task.pause_after,
        count_undelivered: task.count_undelivered,
        creator: task.creator,
        hosts_as_sent: task.hosts_as_sent,
        key: String::new(),
        from: String::new(),
    }
}

/// What was asked for, without the script. What was left out is left out here, too.
fn definition(task: &Task) -> v1::Task {
    let ms = |span: Option<Duration>| span.map_or(0, |span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
    let names = |workers: &[WorkerId]| workers.iter().map(ToString::to_string).collect();
    v1::Task {
        title: task.title.to_string(),
        account: task.account.to_string(),
        args: task.args.clone(),
        env: task.env.clone().into_iter().collect(),
        secrets: task.secrets.clone().into_iter().collect(),
        on: Some(v1::TaskTargets {
            hosts: if task.on.select.is_empty() { names(&task.on.workers) } else { Vec::new() },
            selector: task.on.select.to_string(),
            any: task.on.any,
            late: task.on.late,
        }),
        timeout_ms: ms(task.timeout),
        grace_ms: task.grace.map(|grace| ms(Some(grace))),
        deliver_ms: ms(task.deliver),
        batch: task.batch.to_string(),
        tolerance: task.tolerance.to_string(),
        on_lost: match task.on_lost {
            OnLost::Report => "report".to_owned(),
            OnLost::Retry => "retry".to_owned(),
        },
        children: match task.children {
            Children::Kill => "kill".to_owned(),
            Children::Leave => "leave".to_owned(),
        },
        pause_after: names(&task.pause_after),
        count_undelivered: task.count_undelivered,
        creator: task.creator.to_string(),
        hosts_as_sent: task.hosts_as_sent.to_string(),
        ..v1::Task::default()
    }
}

/// A task that is kept.
///
/// # Errors
/// NOT_FOUND.
#[allow(clippy::result_large_err, reason = "tonic's own error type")]
pub(super) fn find(state: &State, id: TaskId) -> Result<&TaskEntry, Status> {
    state.cluster.tasks().get(id).filter(|entry| is_kept(entry)).ok_or_else(|| Refusal::NoTask(id).into())
}

/// It is not being deleted, and is no mere remainder.
pub(super) fn is_kept(entry: &TaskEntry) -> bool {
    entry.goal() != TaskGoal::Remove
}

/// A task without its hosts.
pub(super) fn task(id: TaskId, entry: &TaskEntry) -> v1::TaskState {
    let intent = entry.intent().map(|intent| &intent.value);
    let unreadable = entry.unreadable().map(|why| format!("its definition in etcd cannot be read: {why}"));
    let why = unreadable.or_else(|| intent.map(|intent| intent.why.to_string())).unwrap_or_default();
    let known = entry.task();
    v1::TaskState {
        id: id.0,
        task: Some(known.map(definition).unwrap_or_default()),
        state: entry.state().as_str().to_owned(),
        outcome: entry.outcome().map(|outcome| outcome.as_str().to_owned()).unwrap_or_default(),
        why,
        intent: entry.goal().as_str().to_owned(),
        from: known.map(|task| task.from.to_string()).unwrap_or_default(),
        created: known.map_or(0, |task| task.created),
        done: entry.done_at(),
        sha256: known.map(|task| task.sha256.to_string()).unwrap_or_default(),
        counts: entry.counts().each().map(|(state, count)| (state.as_str().to_owned(), u32::try_from(count).unwrap_or(u32::MAX))).collect(),
        hosts: Vec::new(),
    }
}

/// A task as a list has it: its hosts are counted, and not named.
pub(super) fn row(id: TaskId, entry: &TaskEntry) -> v1::TaskState {
    let mut state = task(id, entry);
    if let Some(task) = &mut state.task {
        task.hosts_as_sent.clear();
        task.on.iter_mut().for_each(|on| on.hosts.clear());
    }
    state
}

/// A task with all of its hosts.
pub(super) async fn whole(service: &Service, id: TaskId) -> Result<v1::TaskState, Status> {
    let (mut hosts, mut room) = (Vec::new(), Room::of_a_page());
    loop {
        {
            let state = service.shared().read();
            let entry = find(&state, id)?;
            let step = Step::begin();
            while let Some(worker) = entry.order().get(hosts.len()) {
                hosts.push(within(&mut room, host(&state, entry, worker)));
                if step.is_over() {
                    break;
                }
            }
            if hosts.len() >= entry.order().len() {
                return Ok(v1::TaskState { hosts, ..task(id, entry) });
            }
        }
        tokio::task::yield_now().await;
    }
}

/// A host of very many goes without its words.
pub(super) fn within(room: &mut Room, host: v1::TaskHost) -> v1::TaskHost {
    if room.takes(&host) { host } else { v1::TaskHost { message: String::new(), ..host } }
}

/// One host of a task.
pub(super) fn host(state: &State, entry: &TaskEntry, worker: &WorkerId) -> v1::TaskHost {
    let known = entry.host(worker);
    let at = entry.state_of(worker).unwrap_or(HostState::Waiting);
    let order = known.and_then(|host| host.order.as_deref()).map(|order| &order.value);
    let result = known.and_then(TaskHost::current);
    let registration = state.cluster.worker(worker.as_str()).and_then(|worker| worker.registration());
    let message = match at {
        HostState::Pending => pending(worker, entry, order, registration),
        HostState::Waiting => String::new(),
        _ => said(result, order),
    };
    v1::TaskHost {
        worker: worker.to_string(),
        state: at.as_str().to_owned(),
        exit: result.and_then(|result| result.exit),
        signal: result.map_or(0, |result| result.signal),
        attempt: known.map_or(0, TaskHost::attempt),
        ordered: order.map_or(0, |order| order.since),
        began: result.map_or(0, |result| result.began),
        ended: result.map_or(0, |result| result.ended),
        out: result.map_or(0, |result| result.out),
        err: result.map_or(0, |result| result.err),
        leftover: result.map_or(0, |result| result.leftover),
        message,
    }
}

/// What its worker says of an attempt, else why it is not to run. What the leader has concluded of one that has ended after all holds no more.
fn said(result: Option<&TaskResult>, order: Option<&Order>) -> String {
    let message = result.map(|result| &result.message).filter(|message| !message.is_empty());
    let why = order.map(|order| &order.why).filter(|_| result.is_none_or(|result| result.end().is_none()));
    message.or(why).map(ToString::to_string).unwrap_or_default()
}

/// Why a host that was ordered has not begun.
fn pending(worker: &WorkerId, entry: &TaskEntry, order: Option<&Order>, registration: Option<&Registration>) -> String {
    match registration {
        Some(registration) if registration.tasks => String::new(),
        Some(_) => format!("tasks are off on this worker: it waits until {}; start the worker with --tasks on", deadline(entry, order)),
        None => format!("no worker is known as {worker}: it waits until {}", deadline(entry, order)),
    }
}

/// When a host's delivery ends.
fn deadline(entry: &TaskEntry, order: Option<&Order>) -> String {
    let deliver = entry.task().map_or(Task::DELIVER, Task::deliver);
    order.map_or_else(
        || format!("{} after its order", in_units(deliver)),
        |order| rfc3339(order.since.saturating_add(i64::try_from(deliver.as_nanos()).unwrap_or(i64::MAX))),
    )
}

/// A time of day, to the second.
pub(super) fn rfc3339(unix_ns: i64) -> String {
    prost_types::Timestamp { seconds: unix_ns.div_euclid(1_000_000_000), nanos: 0 }.to_string()
}

#[cfg(test)]
mod tests {
    use evenkeel_model::{
        Change, Cluster, Entry, Moment, Revision,
        task::{OrderIntent, Outcome},
    };

    use super::*;

    #[test]
    fn a_host_that_has_ended_after_all_is_not_said_to_be_lost() {
        let order = Order::run(1, 0).with(OrderIntent::Lost, "its worker is gone");
        let running = TaskResult::running(1, Revision(4), 1);
        let ended = |message| running.clone().with_end(Outcome::Succeeded, 2, message);
        assert_eq!(said(None, Some(&order)), "its worker is gone");
        assert_eq!(said(Some(&running), Some(&order)), "its worker is gone");
        assert_eq!(said(Some(&ended("")), Some(&order)), "");
        assert_eq!(said(Some(&ended("a note")), Some(&order)), "a note");
    }

    #[test]
    fn a_list_names_no_hosts() {
        let draft =
            TaskDraft { script: "id".to_owned(), hosts: vec!["a".to_owned()], hosts_as_sent: "a".to_owned(), ..TaskDraft::default() };
        let mut definition = draft.check().expect("a task").task;
        definition.on.workers = vec![WorkerId::new("a").expect("an id")];
        let mut cluster = Cluster::default();
        let entry = Entry::Task(TaskId(1), Some(definition));
        cluster.apply(Change::over(Revision(1), Revision(1), entry), Moment::default());
        let entry = cluster.tasks().get(TaskId(1)).expect("a task");
        let named = |state: v1::TaskState| {
            let task = state.task.expect("a definition");
            (task.on.expect("targets").hosts, task.hosts_as_sent, state.counts.values().sum::<u32>())
        };
        assert_eq!(named(task(TaskId(1), entry)), (vec!["a".to_owned()], "a".to_owned(), 1));
        assert_eq!(named(row(TaskId(1), entry)), (Vec::new(), String::new(), 1));
    }
}

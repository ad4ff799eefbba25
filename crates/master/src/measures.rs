//! What a master counts and times, and the page that shows it beside what it knows. Nothing is decided from it.
//!
//! Beside the wheel: the control loop and the API add to it, a scrape reads it.

use std::{fmt, sync::Arc, time::Duration};

use evenkeel_metrics::gauge;
use evenkeel_model::{
    Action, EntryKind, IntentKind, Standing,
    task::{HostState, TaskAction, TaskState},
};
use evenkeel_store::Outcome;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet},
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use crate::state::Shared;

/// What is counted and timed. Cheap to clone; all clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Measures {
    plans: Histogram,
    actions: Family<ActionLabels, Counter>,
    commits: Family<OutcomeLabels, Counter>,
    commit_times: Histogram,
    losses: Counter,
    flaws: Counter,
    task_actions: Family<ActionLabels, Counter>,
    task_ends: Family<StateLabels, Counter>,
    tasks_created: Counter,
    tasks_done: Counter,
    calls: Family<CallLabels, Histogram>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ActionLabels {
    action: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    method: String,
    code: &'static str,
}

/// What actions are called here.
const ACTIONS: [&str; 8] = ["admit", "forget", "place", "stop", "move", "end", "finish", "view"];
/// What actions for tasks are called here.
const TASK_ACTIONS: [&str; 7] = ["order", "close", "stop", "pause", "done", "remove", "delete"];
/// What may become of a transaction.
const OUTCOMES: [&str; 7] = ["written", "refused", "void", "fence_lost", "no_space", "rejected", "unknown"];

impl Default for Measures {
    fn default() -> Self {
        let measures = Self::empty();
        // A series that begins with its first event hides that event from rates.
        for action in ACTIONS {
            drop(measures.actions.get_or_create(&ActionLabels { action }));
        }
        for action in TASK_ACTIONS {
            drop(measures.task_actions.get_or_create(&ActionLabels { action }));
        }
        for state in HostState::ALL.into_iter().filter(|state| state.is_end()) {
            drop(measures.task_ends.get_or_create(&StateLabels { state: state.as_str() }));
        }
        for outcome in OUTCOMES {
            drop(measures.commits.get_or_create(&OutcomeLabels { outcome }));
        }
        measures
    }
}

/// From half a millisecond to some sixteen seconds by doubling: a call waits no longer than ten.
fn latencies() -> Histogram {
    Histogram::new(exponential_buckets(0.000_5, 2.0, 16))
}

impl Measures {
    fn empty() -> Self {
        Self {
            // From 10 us to 10 s by fours.
            plans: Histogram::new(exponential_buckets(0.000_01, 4.0, 11)),
            actions: Family::default(),
            commits: Family::default(),
            commit_times: latencies(),
            losses: Counter::default(),
            flaws: Counter::default(),
            task_actions: Family::default(),
            task_ends: Family::default(),
            tasks_created: Counter::default(),
            tasks_done: Counter::default(),
            calls: Family::new_with_constructor(latencies),
        }
    }

    /// A worker that was ready is gone without having left.
    pub(crate) fn lost(&self) {
        self.losses.inc();
    }

    /// So many actions of a plan violated an invariant, and were not carried out.
    pub(crate) fn flawed(&self, actions: usize) {
        self.flaws.inc_by(actions as u64);
    }

    /// A plan was made.
    pub(crate) fn planned(&self, took: Duration) {
        self.plans.observe(took.as_secs_f64());
    }

    /// An action of a plan was handed to the pipeline.
    pub(crate) fn decided(&self, action: &Action) {
        let action = match action {
            Action::Admit { .. } => "admit",
            Action::Forget { .. } => "forget",
            Action::Place { .. } => "place",
            Action::Stop { .. } => "stop",
            Action::Update { .. } => "update",
            Action::Move { .. } => "move",
            Action::End { .. } => "end",
            Action::Finish { .. } => "finish",
            Action::View { .. } => "view",
        };
        self.actions.get_or_create(&ActionLabels { action }).inc();
    }

    /// An action for a task was handed to the pipeline.
    pub(crate) fn decided_of_task(&self, action: &TaskAction) {
        let action = match action {
            TaskAction::Order { .. } => "order",
            TaskAction::Close { .. } => "close",
            TaskAction::Stop { .. } => "stop",
            TaskAction::Pause { .. } => "pause",
            TaskAction::Done { .. } => "done",
            TaskAction::Remove { .. } => "remove",
            TaskAction::Delete { .. } | TaskAction::DeleteTails { .. } => "delete",
        };
        self.task_actions.get_or_create(&ActionLabels { action }).inc();
    }

    /// So many hosts of a task have come to this end.
    pub(crate) fn hosts_of_task_ended(&self, state: HostState, count: usize) {
        self.task_ends.get_or_create(&StateLabels { state: state.as_str() }).inc_by(count as u64);
    }

    /// What the history says of something is written.
    pub(crate) fn told(&self, kind: EntryKind) {
        match kind {
            EntryKind::TaskCreated => self.tasks_created.inc(),
            EntryKind::TaskDone => self.tasks_done.inc(),
            _ => return,
        };
    }

    /// It is certain what has become of a transaction.
    pub(crate) fn finished(&self, outcome: &Outcome, took: Duration) {
        let outcome = match outcome {
            Outcome::Applied { .. } => "written",
            Outcome::Refused { .. } => "refused",
            Outcome::Void { .. } => "void",
            Outcome::FenceLost => "fence_lost",
            // It has not finished.
            Outcome::WaitsForSpace => return,
            Outcome::NoSpace => "no_space",
            Outcome::Rejected { .. } => "rejected",
            Outcome::GivenUp => "unknown",
        };
        self.commits.get_or_create(&OutcomeLabels { outcome }).inc();
        self.commit_times.observe(took.as_secs_f64());
    }

    /// A call was answered, or its stream has begun.
    pub(crate) fn called(&self, method: &str, code: tonic::Code, took: Duration) {
        let labels = CallLabels { method: method.to_owned(), code: code_name(code) };
        self.calls.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// A registry that shows all of it, with what this master knows.
    pub(crate) fn registry(&self, version: &str, shared: Arc<Shared>) -> Registry {
        let mut registry = evenkeel_metrics::registry(version);
        registry.register_collector(Box::new(Sight(shared)));
        let seconds = || Unit::Seconds;
        registry.register_with_unit("evenkeel_plan_duration", "Making one plan, while this master leads", seconds(), self.plans.clone());
        registry.register("evenkeel_actions", "Actions of plans that this master has handed on to be written", self.actions.clone());
        let help = "One transaction of the leader, from its sending until it was certain what had become of it";
        registry.register_with_unit("evenkeel_commit_duration", help, seconds(), self.commit_times.clone());
        registry.register("evenkeel_commits", "Transactions of the leader by what has become of them", self.commits.clone());
        registry.register("evenkeel_worker_losses", "Workers that this leader has seen go without having left", self.losses.clone());
        let help = "Actions of plans that violated an invariant and were not carried out; each is a bug";
        registry.register("evenkeel_plan_flaws", help, self.flaws.clone());
        let help = "Actions for tasks that this master has handed on to be written";
        registry.register("evenkeel_task_actions", help, self.task_actions.clone());
        registry.register("evenkeel_task_hosts_ended", "Hosts of tasks that this leader has seen come to an end", self.task_ends.clone());
        registry.register("evenkeel_tasks_created", "Tasks that this leader has created", self.tasks_created.clone());
        registry.register("evenkeel_tasks_done", "Tasks of which this leader has seen the last host end", self.tasks_done.clone());
        let help = "One call of the API at this master, be it passed on to the leader; a stream until it begins";
        registry.register_with_unit("evenkeel_rpc_duration", help, seconds(), self.calls.clone());
        registry
    }
}

/// The names that gRPC itself gives to its codes.
fn code_name(code: tonic::Code) -> &'static str {
    use tonic::Code;
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// What a master knows at the time of a scrape.
#[derive(Debug)]
struct Sight(Arc<Shared>);

impl Collector for Sight {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let leads = self.0.leads();
        let state = self.0.read();
        let ready = state.cluster.workers().filter(|(_, w)| w.standing() == Standing::Ready).count();
        let lost = state.cluster.workers().filter(|(_, w)| matches!(w.standing(), Standing::Lost | Standing::Returning)).count();
        let agenda = state.cluster.agenda();
        let (mut cordoned, mut draining) = (0, 0);
        for (_, worker) in state.cluster.workers() {
            cordoned += usize::from(worker.intent_kind().is_some());
            draining += usize::from(worker.intent_kind().is_some_and(IntentKind::is_drain));
        }
        let gauges = [
            ("evenkeel_leader", "1 if this master leads.", usize::from(leads)),
            ("evenkeel_etcd_up", "1 while this master follows etcd.", usize::from(state.is_synced && !state.is_cut_off)),
            ("evenkeel_masters", "Masters that lead or campaign.", state.masters.len()),
            ("evenkeel_resources", "Resources that are wanted or still assigned.", state.cluster.len()),
            ("evenkeel_resources_unplaced", "Resources that are assigned nowhere.", agenda.unplaced.len()),
            ("evenkeel_resources_failing", "Resources that fail on their worker again and again.", agenda.failing.len()),
            ("evenkeel_resources_finished", "Resources that have finished and are not started again.", state.cluster.finished()),
            ("evenkeel_resources_stopping", "Assignments that were told to stop and have not ended.", agenda.stopping.len()),
            ("evenkeel_undone", "What the last plan of this leader left undone.", state.undone),
            ("evenkeel_brake_engaged", "1 if so many workers are gone that what they ran is held.", usize::from(state.brake.is_some())),
            ("evenkeel_workers_cordoned", "Workers on which nothing more is placed.", cordoned),
            ("evenkeel_workers_draining", "Workers that are being drained, or are drained.", draining),
            ("evenkeel_workers_ready", "Workers that are registered and admitted.", ready),
            ("evenkeel_workers_lost", "Workers whose admitted session is gone.", lost),
        ];
        let (tasks, hosts) = counted_of_tasks(&state);
        let lag = state.lags_since.map_or(Duration::ZERO, |since| self.0.now().0.saturating_sub(since.0));
        drop(state);
        let help = "For how long the oldest commit of this leader has waited for the watch to bring it.";
        evenkeel_metrics::gauge_of_seconds(&mut encoder, "evenkeel_watch_lag_seconds", help, lag)?;
        evenkeel_metrics::gauges_by(&mut encoder, "evenkeel_tasks", "Tasks that are kept.", "state", &tasks)?;
        evenkeel_metrics::gauges_by(&mut encoder, "evenkeel_task_hosts", "Hosts of the tasks that are not done.", "state", &hosts)?;
        gauges.into_iter().try_for_each(|(name, help, value)| gauge(&mut encoder, name, help, value as u64))
    }
}

/// A number for each of a few words.
type Counted = Vec<(&'static str, u64)>;

/// How many tasks are in each state, and how many hosts of those that are not done.
fn counted_of_tasks(state: &crate::state::State) -> (Counted, Counted) {
    let tasks = state.cluster.tasks();
    let done = tasks.done().count() as u64;
    let is_paused = |task: &evenkeel_model::task::TaskEntry| task.state() == TaskState::Paused;
    let paused = tasks.live().filter(|(_, task)| is_paused(task)).count() as u64;
    let running = (tasks.len() as u64).saturating_sub(done + paused);
    let states = [(TaskState::Running, running), (TaskState::Paused, paused), (TaskState::Done, done)];
    let hosts = HostState::ALL.map(|state| (state.as_str(), tasks.live().map(|(_, task)| task.counts().of(state) as u64).sum()));
    (states.map(|(state, count)| (state.as_str(), count)).to_vec(), hosts.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_on_the_page_from_the_start_under_its_name() {
        let measures = Measures::default();
        let mut registry = Registry::default();
        registry.register("evenkeel_actions", "", measures.actions.clone());
        registry.register("evenkeel_commits", "", measures.commits.clone());
        measures.finished(&Outcome::NoSpace, Duration::from_millis(3));
        let page = evenkeel_metrics::page(&registry);
        assert_eq!(page.lines().filter(|line| line.ends_with(" 0")).count(), ACTIONS.len() + OUTCOMES.len() - 1, "{page}");
        assert!(page.contains("evenkeel_commits_total{outcome=\"no_space\"} 1\n"), "{page}");
        for (outcome, name) in [
            (Outcome::FenceLost, "fence_lost"),
            (Outcome::GivenUp, "unknown"),
            (Outcome::Refused { revision: evenkeel_store::Revision(0), reads: vec![], repeated: false }, "refused"),
        ] {
            measures.finished(&outcome, Duration::ZERO);
            assert!(evenkeel_metrics::page(&registry).contains(&format!("{{outcome=\"{name}\"}} 1\n")), "{name} is one of OUTCOMES");
        }
    }
}

//! A plan as the API shows it.

use evenkeel_model::{Action, Cluster, Definition, IntentKind, Plan, Standing, Subject, limits::MAX_PLAN, task::TaskAction};
use evenkeel_planner::{PlannerConfig, Supposition};
use evenkeel_proto::v1::{self, plan_request::Suppose};
use tonic::Status;

use super::{
    convert,
    room::Room,
    service::{Service, worker_id},
};

/// What the leader does next, or would do if something were so.
pub(super) async fn plan(service: &Service, supposed: Option<Suppose>) -> Result<v1::PlanResponse, Status> {
    let planner = PlannerConfig { max_actions: MAX_PLAN, max_unplaced: MAX_PLAN, ..service.config.planner.clone() };
    // What is wrong with a resource is found before anybody waits for it.
    let supposed = supposed.map(checked).transpose()?;
    let shared = service.shared();
    let plan = service.turns.compute(|| {
        let (now, state) = (shared.now(), shared.read());
        Ok::<_, Status>(match supposed {
            None => {
                let tasks = evenkeel_planner::tasks::plan(&state.cluster, now, shared.clock().unix_ns(), planner.wait, MAX_PLAN);
                (evenkeel_planner::plan(&state.cluster, now, &planner), tasks.actions)
            }
            Some(supposed) => {
                let supposition = supposition(supposed, &state.cluster)?;
                (evenkeel_planner::suppose(&state.cluster, now, &planner, &supposition), Vec::new())
            }
        })
    });
    plan.await?.map(|(plan, tasks)| show(&plan, &tasks))
}

/// What is to be taken to be so, as far as it can be checked by itself.
enum Supposed {
    Added(Box<Definition>),
    Of(Box<Suppose>),
}

#[allow(clippy::result_large_err, reason = "tonic's own error type")]
fn checked(supposed: Suppose) -> Result<Supposed, Status> {
    match supposed {
        Suppose::Add(resource) => Ok(Supposed::Added(Box::new(convert::definition(Some(resource))?))),
        Suppose::Rebalance(false) => Err(Status::invalid_argument("rebalance: is false; leave it out")),
        other => Ok(Supposed::Of(Box::new(other))),
    }
}

/// Every action and everything undone, each with its reason.
fn show(plan: &Plan, tasks: &[TaskAction]) -> v1::PlanResponse {
    let undone = plan.undone.iter().map(|undone| {
        let (resource, worker, reason) = match &undone.subject {
            Subject::Resource(name) => {
                (name.to_string(), undone.reason.worker().map(ToString::to_string).unwrap_or_default(), undone.reason.to_string())
            }
            Subject::Worker(id) => (String::new(), id.to_string(), undone.reason.to_string()),
            Subject::More(count) => (String::new(), String::new(), format!("{count} resources more: {}", undone.reason)),
        };
        v1::Undone { resource, worker, reason }
    });
    let brake = plan.brake.map(|brake| brake.to_string()).unwrap_or_default();
    let (mut actions, mut undone): (Vec<_>, Vec<_>) = (plan.actions.iter().map(action).collect(), undone.collect());
    let mut room = Room::of_a_page();
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let (more_actions, more_undone) = (number(room.cut(&mut actions)), number(room.cut(&mut undone)));
    let mut task_actions: Vec<_> = tasks.iter().map(task_action).collect();
    let more_actions = more_actions.saturating_add(number(room.cut(&mut task_actions)));
    v1::PlanResponse { actions, undone, brake, more_actions, more_undone, task_actions }
}

/// What the plan is to take to be so.
///
/// # Errors
/// What is wrong with it.
#[allow(clippy::result_large_err, reason = "tonic's own error type")]
fn supposition(supposed: Supposed, cluster: &Cluster) -> Result<Supposition, Status> {
    let worker = |field: &'static str, id: &str| {
        let id = worker_id(field, id)?;
        let stands = cluster.worker(id.as_str()).is_some_and(|w| w.standing() != Standing::Absent);
        if stands { Ok(id) } else { Err(Status::not_found(format!("{field}: no such worker"))) }
    };
    let supposed = match supposed {
        Supposed::Added(definition) => {
            if cluster.unit(definition.name.as_str()).is_some_and(|unit| unit.record.is_some() || unit.unreadable.is_some()) {
                return Err(Status::already_exists(already_exists(&definition, cluster)));
            }
            return Ok(Supposition::Add(definition));
        }
        Supposed::Of(supposed) => *supposed,
    };
    Ok(match supposed {
        Suppose::Cordon(id) => Supposition::Intent(worker("cordon", &id)?, Some(IntentKind::Cordon)),
        Suppose::Uncordon(id) => Supposition::Intent(worker("uncordon", &id)?, None),
        Suppose::Drain(id) => Supposition::Intent(worker("drain", &id)?, Some(IntentKind::Drain { deadline_ms: None })),
        Suppose::Lose(id) => Supposition::Lost(worker("lose", &id)?),
        Suppose::Rebalance(_) => Supposition::Rebalance,
        Suppose::Add(_) => return Err(Status::internal("add: was not checked")),
    })
}

/// To add it would be refused; what `apply` would do to the work that runs is said all the same.
fn already_exists(definition: &Definition, cluster: &Cluster) -> String {
    let name = &definition.name;
    let unit = cluster.unit(name.as_str());
    let holder = unit.and_then(|unit| unit.holders.first()).filter(|holder| holder.held.runs() && !holder.held.has_work_of(definition));
    let Some(holder) = holder else { return format!("add: resource {name} already exists; see `evenkeel explain {name}`") };
    let worker = &holder.worker;
    let change = if holder.takes_in_place(cluster.worker(worker.as_str()), definition) {
        format!("this is taken in place on {worker}")
    } else {
        format!("this restarts it on {worker}")
    };
    format!("add: resource {name} already exists with a different definition; by `evenkeel apply` {change}")
}

fn task_action(action: &TaskAction) -> v1::PlannedTaskAction {
    let (word, attempt, reason) = match action {
        TaskAction::Order { attempt, .. } => ("order", *attempt, "its turn has come"),
        TaskAction::Close { why, .. } => ("close", 0, &**why),
        TaskAction::Stop { why, .. } => ("stop", 0, &**why),
        TaskAction::Pause { why, .. } => ("pause", 0, &**why),
        TaskAction::Done { .. } => ("done", 0, "every host is at an end"),
        TaskAction::Remove { .. } | TaskAction::Delete { .. } => ("remove", 0, "it is kept no longer"),
        TaskAction::DeleteTails { .. } => ("remove", 0, "the ends of its output make room"),
    };
    v1::PlannedTaskAction {
        action: word.to_owned(),
        task: action.task().0,
        worker: action.worker().map(ToString::to_string).unwrap_or_default(),
        attempt,
        reason: reason.to_owned(),
    }
}

fn action(action: &Action) -> v1::PlannedAction {
    let shown = |word: &str, worker: String, to: String, reason: &str| v1::PlannedAction {
        action: word.to_owned(),
        resource: action.resource().map(ToString::to_string).unwrap_or_default(),
        worker,
        to,
        reason: reason.to_owned(),
    };
    match action {
        Action::Admit { worker, reason, .. } => shown("admit", worker.to_string(), String::new(), reason.as_str()),
        Action::Forget { worker, reason } => shown("forget", worker.to_string(), String::new(), reason.as_str()),
        Action::Place { worker, reason, .. } => shown("assign", worker.to_string(), String::new(), reason.as_str()),
        Action::Stop { worker, reason, to, .. } => {
            shown("stop", worker.to_string(), to.as_ref().map(ToString::to_string).unwrap_or_default(), reason.as_str())
        }
        Action::Update { worker, .. } => shown("update", worker.to_string(), String::new(), "changed in place"),
        Action::Move { from, to, reason, .. } => shown("move", from.to_string(), to.to_string(), reason.as_str()),
        Action::End { worker, reason, .. } => shown("remove", worker.to_string(), String::new(), reason.as_str()),
        Action::Finish { worker, message, .. } => shown("finish", worker.to_string(), String::new(), message),
        Action::View { worker, .. } => {
            shown("view", worker.as_ref().map(ToString::to_string).unwrap_or_default(), String::new(), "the view for people is out of date")
        }
    }
}

#[cfg(test)]
mod tests {
    use evenkeel_model::{
        Admission, Change, Decision, Draft, DriverTraits, Entry, Holds, Moment, Origin, Record, Registration, Revision, Session, WorkerId,
    };

    use super::*;

    fn process(command: &str, restart: &str) -> Definition {
        let spec = Some(serde_json::json!({"command": [command], "restart": restart}));
        Draft { name: "a".to_owned(), kind: "process".to_owned(), spec, ..Draft::default() }.check().expect("a definition")
    }

    #[test]
    fn who_would_add_what_there_is_hears_what_a_change_would_do() {
        let id = WorkerId::new("w").expect("id");
        let definition = process("a", "always");
        let record = Record {
            id: 1,
            creation_time: 1,
            assigned_node: "".into(),
            source: "".into(),
            finished: None,
            failed: None,
            definition: definition.clone(),
        };
        let drivers = [("process".to_owned(), DriverTraits { updates: true, ..DriverTraits::default() })].into();
        let registration = Registration { kinds: vec!["process".to_owned()], drivers, ..Registration::bare(id.clone(), String::new()) };
        let mut decision = Decision::default();
        decision.assign(&definition, &id, Holds::Strict);
        let mut entries = vec![
            Entry::Worker(id.clone(), Some(registration)),
            Entry::Admission(id, Some(Admission { session: Session(3), authority_ms: None, origin: Origin::default() })),
            Entry::Resource(definition.name.clone(), Some(record)),
        ];
        let cluster =
            |entries: &[Entry]| Cluster::from_list(entries.iter().cloned().map(|entry| Change::at(Revision(3), entry)), Moment::default());
        let said = |cluster: &Cluster, definition: &Definition| already_exists(definition, cluster);
        let plain = "add: resource a already exists; see `evenkeel explain a`";
        assert_eq!(said(&cluster(&entries), &process("b", "never")), plain, "it runs nowhere");
        entries.extend(decision.writes.into_iter().map(|write| write.entry));
        let cluster = cluster(&entries);
        assert_eq!(said(&cluster, &definition), plain);
        let differs = "add: resource a already exists with a different definition; by `evenkeel apply` this";
        assert_eq!(said(&cluster, &process("a", "never")), format!("{differs} is taken in place on w"));
        assert_eq!(said(&cluster, &process("b", "never")), format!("{differs} restarts it on w"));
    }
}

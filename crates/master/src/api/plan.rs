//! A plan as the API shows it.

use evenkeel_model::{Action, Cluster, Definition, IntentKind, Plan, Standing, Subject, limits::MAX_PLAN};
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
            None => evenkeel_planner::plan(&state.cluster, now, &planner),
            Some(supposed) => evenkeel_planner::suppose(&state.cluster, now, &planner, &supposition(supposed, &state.cluster)?),
        })
    });
    plan.await?.map(|plan| show(&plan))
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
fn show(plan: &Plan) -> v1::PlanResponse {
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
    v1::PlanResponse { actions, undone, brake, more_actions, more_undone }
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
                let name = &definition.name;
                return Err(Status::already_exists(format!("add: resource {name} already exists; see `evenkeel explain {name}`")));
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

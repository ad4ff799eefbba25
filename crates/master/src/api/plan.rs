//! A plan as the API shows it.

use evenkeel_model::{Action, Cluster, Plan, Standing, Subject, WorkerWish};
use evenkeel_planner::Supposition;
use evenkeel_proto::v1::{self, plan_request::Suppose};
use tonic::Status;

use super::{convert, service::worker_id};

/// Every action and everything undone, each with its reason.
pub(crate) fn show(plan: &Plan) -> v1::PlanResponse {
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
    v1::PlanResponse { actions: plan.actions.iter().map(action).collect(), undone: undone.collect(), brake }
}

/// What the plan is to take to be so.
///
/// # Errors
/// What is wrong with it.
#[allow(clippy::result_large_err, reason = "tonic's own error type")]
pub(crate) fn supposition(supposed: Suppose, cluster: &Cluster) -> Result<Supposition, Status> {
    let worker = |field: &'static str, id: &str| {
        let id = worker_id(field, id)?;
        let stands = cluster.worker(id.as_str()).is_some_and(|w| w.standing() != Standing::Absent);
        if stands { Ok(id) } else { Err(Status::not_found(format!("{field}: no such worker"))) }
    };
    Ok(match supposed {
        Suppose::Add(resource) => {
            let definition = convert::definition(Some(resource))?;
            if cluster.unit(definition.name.as_str()).is_some_and(|unit| unit.record.is_some() || unit.unreadable.is_some()) {
                let name = &definition.name;
                return Err(Status::already_exists(format!("add: resource {name} already exists; see `evenkeel explain {name}`")));
            }
            Supposition::Add(Box::new(definition))
        }
        Suppose::Cordon(id) => Supposition::Wish(worker("cordon", &id)?, Some(WorkerWish::Cordon)),
        Suppose::Uncordon(id) => Supposition::Wish(worker("uncordon", &id)?, None),
        Suppose::Drain(id) => Supposition::Wish(worker("drain", &id)?, Some(WorkerWish::Drain { deadline_ms: None })),
        Suppose::Lose(id) => Supposition::Lost(worker("lose", &id)?),
        Suppose::Rebalance(true) => Supposition::Rebalance,
        Suppose::Rebalance(false) => return Err(Status::invalid_argument("rebalance: is false; leave it out")),
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
        Action::Move { from, to, reason, .. } => shown("move", from.to_string(), to.to_string(), reason.as_str()),
        Action::End { worker, reason, .. } => shown("remove", worker.to_string(), String::new(), reason.as_str()),
        Action::View { worker, .. } => {
            shown("view", worker.as_ref().map(ToString::to_string).unwrap_or_default(), String::new(), "the view for people is out of date")
        }
    }
}

//! A plan as the API shows it.

use evenkeel_model::{Action, Plan, Subject};
use evenkeel_proto::v1;

/// Every action and everything undone, each with its reason.
pub(crate) fn show(plan: &Plan) -> v1::PlanResponse {
    let undone = plan.undone.iter().map(|undone| {
        let (resource, worker) = match &undone.subject {
            Subject::Resource(name) => (name.to_string(), String::new()),
            Subject::Worker(id) => (String::new(), id.to_string()),
        };
        v1::Undone { resource, worker, reason: undone.reason.to_string() }
    });
    v1::PlanResponse { actions: plan.actions.iter().map(action).collect(), undone: undone.collect() }
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

//! Why a resource is where it is and not elsewhere, or why it is nowhere: what the planner thinks of each worker, and what the history tells.

use evenkeel_model::{ResourceName, Standing};
use evenkeel_planner::{Considered, Explainer, Explanation, Looked, Penalty, Verdict};
use evenkeel_proto::v1;

use tonic::Status;

use super::{convert, lists, room::Room, service::Service, states};
use crate::control::request::Refusal;

/// How many workers an explanation speaks of at most: those that can run it first.
const CANDIDATES: usize = 1000;
/// How many events an explanation shows at most.
const EVENTS: usize = 100;
/// How many workers are looked at before others may have their turn: some ten microseconds each where there are many rules.
const WORKERS: usize = 50;

/// Why it is where it is.
///
/// # Errors
/// NOT_FOUND when nothing of that name is wanted.
pub(crate) async fn explain(service: &Service, name: &ResourceName) -> Result<v1::ExplainResponse, Status> {
    let (shared, planner) = (service.shared(), &service.config.planner);
    lists::for_history(shared).await;
    let _place = service.turns.search().await?;
    let (shown, events, definition) = {
        let state = shared.read();
        let shown = states::resource(&state.cluster, name.as_str(), shared.now(), planner);
        let shown = shown.ok_or_else(|| Status::from(Refusal::NotFound(name.clone())))?;
        let history = state.history_after(0).rev().filter(|(_, entry)| entry.resource == name.as_str()).take(EVENTS);
        let mut events: Vec<v1::Event> = history.map(|(sequence, entry)| convert::event(*sequence, entry)).collect();
        events.reverse();
        (shown, events, state.cluster.unit(name.as_str()).and_then(|u| u.definition()).cloned())
    };
    let Some(definition) = definition else {
        let summary = format!("{name} is {}: {}.", shown.phase, shown.reason);
        return Ok(v1::ExplainResponse { resource: Some(shown), summary, events, ..v1::ExplainResponse::default() });
    };
    let mut explainer = Explainer::new(definition, planner);
    while explainer.look(&shared.read().cluster, shared.now(), WORKERS) == Looked::AtSome {
        tokio::task::yield_now().await;
    }
    let explanation = explainer.explain();
    let summary = summary(&shown, &explanation, &events);
    let failed = explanation.failed.iter().map(|failed| v1::FailedRule {
        rule: failed.misfit.rule().to_owned(),
        reason: failed.misfit.to_string(),
        workers: failed.count as u64,
    });
    let failed = failed.collect();
    let mut candidates: Vec<v1::Candidate> = explanation.considered.iter().map(candidate).collect();
    if candidates.len() > CANDIDATES {
        candidates.sort_by_key(|c| (!c.eligible, c.place));
        candidates.truncate(CANDIDATES);
    }
    Room::of_a_page().cut(&mut candidates);
    let policy = explanation.policy.to_string();
    Ok(v1::ExplainResponse { resource: Some(shown), summary, candidates, events, policy, failed })
}

fn candidate(considered: &Considered) -> v1::Candidate {
    let shown = v1::Candidate { worker: considered.worker.to_string(), payload: considered.payload, ..v1::Candidate::default() };
    match &considered.verdict {
        Verdict::Eligible { place, preference, penalty } => v1::Candidate {
            eligible: true,
            place: u32::try_from(*place).unwrap_or(u32::MAX),
            preference: *preference,
            reason: penalty.map(penalty_in_words).unwrap_or_default().to_owned(),
            ..shown
        },
        Verdict::Misfit(misfit) => v1::Candidate { reason: misfit.to_string(), ..shown },
        Verdict::NotReady(standing) => v1::Candidate { reason: not_ready(*standing).to_owned(), ..shown },
    }
}

fn penalty_in_words(penalty: Penalty) -> &'static str {
    match penalty {
        Penalty::Aside => "it is set aside: its sessions ended too often of late",
        Penalty::Failed => "it comes last: the resource has failed there of late",
    }
}

fn not_ready(standing: Standing) -> &'static str {
    match standing {
        Standing::Lost => "it is not ready: its session is gone",
        Standing::Leaving | Standing::Released => "it is not ready: it leaves",
        Standing::New | Standing::Returning => "it is not ready: its session is not admitted yet",
        Standing::Absent | Standing::Ready => "it is not ready",
    }
}

fn summary(state: &v1::ResourceState, explanation: &Explanation, events: &[v1::Event]) -> String {
    let name = state.resource.as_ref().map(|r| r.name.as_str()).unwrap_or_default();
    if state.worker.is_empty() {
        return format!("{name} is pending: {}.", state.reason);
    }
    if state.epoch == 0 {
        return format!("{name} has finished, and is not started again: only another spec does that, or to delete it and add it anew.");
    }
    let came = events.iter().rev().find(|e| e.worker == state.worker && matches!(e.r#type.as_str(), "added" | "assigned" | "moved"));
    let why = match came.map(|e| (e.r#type.as_str(), e)) {
        Some(("moved", e)) => format!("it moved there from {} ({})", e.from, e.reason),
        Some(("added", e)) => format!("it was placed there when it was added ({})", e.reason),
        Some((_, e)) => format!("it was assigned there ({})", e.reason),
        None => "what brought it there is older than the history".to_owned(),
    };
    let eligible = explanation.considered.iter().filter(|c| matches!(c.verdict, Verdict::Eligible { .. })).count();
    let all = explanation.considered.len();
    let here = explanation.considered.iter().find(|c| c.worker.as_str() == state.worker);
    let now = match here.map(|c| &c.verdict) {
        Some(Verdict::Eligible { place: 1, .. }) => format!(" It would be chosen again by {}.", explanation.policy),
        Some(Verdict::Eligible { place, .. }) => {
            format!(" By {} it would be number {place} now; what runs and may stay, stays.", explanation.policy)
        }
        Some(Verdict::Misfit(misfit)) => format!(" It would not be chosen again: {misfit}."),
        Some(Verdict::NotReady(_)) | None => String::new(),
    };
    let held = match state.holds.as_str() {
        "fenced" => {
            " Its epoch fences it: if its worker is lost and does not come back, it goes on at another that is fenced, without a wait."
        }
        "loose" => " Its worker holds it loosely: it may outlive its worker, and nobody would know.",
        _ => "",
    };
    let reason = if state.reason.is_empty() { String::new() } else { format!(" It is {}: {}.", state.phase, state.reason) };
    format!("{name} is on {}: {why}. {eligible} of {all} workers can run it.{now}{held}{reason}", state.worker)
}

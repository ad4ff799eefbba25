//! What people and programs are shown: resources, workers and explanations, read from what the master knows. It changes nothing.

use evenkeel_model::{Cluster, Definition, Holder, Moment, Phase, Record, ResourceName, Standing, StopReason, Unit, Worker, WorkerId, fit};
use evenkeel_planner::PlannerConfig;
use evenkeel_proto::v1;

use super::convert;
use crate::known::Known;

/// How many workers an explanation speaks of at most.
const CANDIDATES: usize = 1000;
/// How many events an explanation shows at most.
const EVENTS: usize = 100;

/// A resource with what is known of it; none: nothing of that name is wanted.
pub(crate) fn resource(cluster: &Cluster, name: &str, now: Moment, planner: &PlannerConfig) -> Option<v1::ResourceState> {
    state_of(cluster, cluster.unit(name)?, name, now, planner)
}

fn state_of(cluster: &Cluster, unit: &Unit, name: &str, now: Moment, planner: &PlannerConfig) -> Option<v1::ResourceState> {
    let reason = |cluster| evenkeel_planner::why_pending(cluster, name, now, planner).map(|p| p.to_string()).unwrap_or_default();
    let Some(record) = unit.record.as_deref().map(|r| &r.value) else {
        unit.unreadable.as_ref()?;
        let resource = Some(v1::Resource { name: name.to_owned(), ..v1::Resource::default() });
        return Some(v1::ResourceState { resource, phase: "unknown".to_owned(), reason: reason(cluster), ..Default::default() });
    };
    let mut state = wanted(record);
    let Some(holder) = unit.holders.first() else {
        "pending".clone_into(&mut state.phase);
        state.reason = reason(cluster);
        return Some(state);
    };
    let worker = cluster.worker(holder.worker.as_str());
    let address = worker.and_then(Worker::registration).map(|r| r.address.clone());
    state.worker = holder.worker.to_string();
    state.address = address.or_else(|| record.assigned_node.split_once('|').map(|(_, a)| a.to_owned())).unwrap_or_default();
    state.epoch = holder.held.epoch.0;
    observe(&mut state, holder, worker);
    if state.phase != "running" && state.reason.is_empty() {
        state.reason = reason(cluster);
    }
    Some(state)
}

/// A resource that was just put.
pub(crate) fn wanted(record: &Record) -> v1::ResourceState {
    v1::ResourceState {
        resource: Some(convert::resource(&record.definition)),
        id: record.id.to_string(),
        creation_time: record.creation_time,
        hash: record.definition.hash().to_string(),
        source: if record.source.is_empty() { "api".to_owned() } else { record.source.to_string() },
        ..v1::ResourceState::default()
    }
}

/// What the worker says, as far as it speaks of this very assignment.
fn observe(state: &mut v1::ResourceState, holder: &Holder, worker: Option<&Worker>) {
    let status = holder.status.as_deref().filter(|s| s.epoch == holder.held.epoch);
    if let Some(status) = status {
        state.since = status.since;
        state.restarts = status.restarts;
        state.message.clone_from(&status.message);
    }
    let is_ready = worker.is_some_and(|w| w.standing() == Standing::Ready);
    let phase = match (&holder.held.phase, status) {
        (Phase::Stop { reason, to }, _) => {
            state.reason = stop_reason(*reason, to.as_ref());
            "stopping"
        }
        (Phase::Run, _) if !is_ready => "unknown",
        (Phase::Run, Some(status)) => status.phase.as_str(),
        (Phase::Run, None) => "starting",
    };
    phase.clone_into(&mut state.phase);
}

fn stop_reason(reason: StopReason, to: Option<&WorkerId>) -> String {
    match to {
        Some(to) => format!("{}, goes on on {to}", reason.as_str()),
        None => reason.as_str().to_owned(),
    }
}

/// All workers that are known, in order.
pub(crate) fn workers(cluster: &Cluster) -> Vec<v1::WorkerState> {
    let shown = cluster.workers().filter(|(_, w)| w.standing() != Standing::Absent || !w.names.is_empty());
    shown.map(|(id, worker)| worker_state(id, worker)).collect()
}

fn worker_state(id: &WorkerId, worker: &Worker) -> v1::WorkerState {
    let (phase, reason) = match worker.standing() {
        Standing::Ready => ("ready", ""),
        Standing::New => ("joining", "it has just registered"),
        Standing::Returning => ("joining", "waits until nothing of its session before can run"),
        Standing::Released => ("leaving", "it has stopped everything"),
        Standing::Lost => ("lost", "its session is gone; its resources move when nothing can run there any more"),
        Standing::Absent => ("lost", "it has left"),
    };
    let registration = worker.registration();
    v1::WorkerState {
        id: id.to_string(),
        grpc_address: registration.map(|r| r.address.clone()).unwrap_or_default(),
        http_address: registration.map(|r| r.http.clone()).unwrap_or_default(),
        labels: registration.map(|r| r.labels.clone().into_iter().collect()).unwrap_or_default(),
        capacity: registration.and_then(|r| r.capacity).unwrap_or_default(),
        kinds: registration.map(|r| r.kinds.clone()).unwrap_or_default(),
        version: registration.map(|r| r.version.clone()).unwrap_or_default(),
        session: worker.registered.as_ref().map_or(0, |r| r.0.0),
        phase: phase.to_owned(),
        reason: reason.to_owned(),
        resources: worker.names.len() as u64,
        payload: worker.payload,
        cordoned: false,
        draining: false,
    }
}

/// Why a resource is where it is, or why it is nowhere; none: nothing of that name is wanted.
pub(crate) fn explain(known: &Known, name: &ResourceName, now: Moment, planner: &PlannerConfig) -> Option<v1::ExplainResponse> {
    let cluster = &known.cluster;
    let state = resource(cluster, name.as_str(), now, planner)?;
    let definition = cluster.unit(name.as_str()).and_then(|u| u.record.as_deref()).map(|r| &r.value.definition);
    let candidates = definition.map(|d| candidates(cluster, d, &state.worker)).unwrap_or_default();
    let mut events: Vec<v1::Event> = known
        .history_after(0)
        .rev()
        .filter(|(_, happening)| happening.resource == name.as_str())
        .take(EVENTS)
        .map(|(sequence, happening)| convert::event(*sequence, happening))
        .collect();
    events.reverse();
    Some(v1::ExplainResponse { summary: summary(&state, &candidates, &events), resource: Some(state), candidates, events })
}

fn candidates(cluster: &Cluster, definition: &Definition, at: &str) -> Vec<v1::Candidate> {
    let candidate = |(id, worker): (&WorkerId, &Worker)| {
        // Where it is already, its own weight does not stand in its way.
        let own = if id.as_str() == at { u64::from(definition.weight) } else { 0 };
        let reason = match worker.registration().filter(|_| worker.standing() == Standing::Ready) {
            None => "it is not ready".to_owned(),
            Some(registration) => {
                let misfit = fit::can_run(definition, id, registration, worker.payload.saturating_sub(own));
                misfit.err().map(|m| m.to_string()).unwrap_or_default()
            }
        };
        v1::Candidate { worker: id.to_string(), eligible: reason.is_empty(), reason, payload: worker.payload }
    };
    cluster.workers().filter(|(_, w)| w.standing() != Standing::Absent).take(CANDIDATES).map(candidate).collect()
}

fn summary(state: &v1::ResourceState, candidates: &[v1::Candidate], events: &[v1::Event]) -> String {
    let name = state.resource.as_ref().map(|r| r.name.as_str()).unwrap_or_default();
    if state.worker.is_empty() {
        return format!("{name} is pending: {}.", state.reason);
    }
    let eligible = candidates.iter().filter(|c| c.eligible).count();
    let came = events.iter().rev().find(|e| e.worker == state.worker && matches!(e.r#type.as_str(), "added" | "assigned" | "moved"));
    let why = match came.map(|e| (e.r#type.as_str(), e)) {
        Some(("moved", e)) => format!("it moved there from {} ({})", e.from, e.reason),
        Some(("added", _)) => "it had the least payload of those that can run it when it was added".to_owned(),
        Some((_, e)) => format!("it was assigned there: {}", e.reason),
        None => "what brought it there is older than the history".to_owned(),
    };
    let all = candidates.len();
    let reason = if state.reason.is_empty() { String::new() } else { format!(" It is {}: {}.", state.phase, state.reason) };
    format!("{name} is on {}: {why}. {eligible} of {all} workers can run it.{reason}", state.worker)
}

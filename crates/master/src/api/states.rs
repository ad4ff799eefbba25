//! What people and programs are shown: resources and workers, read from what the master knows. It changes nothing.

use evenkeel_model::{
    Cluster, Holder, IntentKind, Moment, Phase, Record, Standing, StopReason, Unit, Worker, WorkerId, limits::MAX_AUTHORITY,
};
use evenkeel_planner::PlannerConfig;
use evenkeel_proto::v1;

use super::convert;

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
        state.failures = status.failures;
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

/// Something is known of it that people may want to see.
pub(crate) fn is_shown(worker: &Worker) -> bool {
    worker.standing() != Standing::Absent || !worker.names.is_empty() || worker.intent.is_some()
}

/// One worker.
pub(crate) fn worker(cluster: &Cluster, id: &WorkerId, worker: &Worker, now: Moment, planner: &PlannerConfig) -> v1::WorkerState {
    let (phase, reason) = match worker.standing() {
        Standing::Ready if evenkeel_planner::aside_until(cluster, id, now, planner).is_some() => {
            ("ready", "set aside: its sessions ended too often of late, so it is chosen after all others for a while")
        }
        Standing::Ready => ("ready", ""),
        Standing::New => ("joining", "it has just registered"),
        Standing::Returning => ("joining", "waits until nothing of its session before can run"),
        Standing::Released => ("leaving", "it has stopped everything"),
        Standing::Lost => ("lost", "its session is gone; its resources move when nothing can run there any more"),
        Standing::Absent if worker.names.is_empty() => ("left", "nothing stands of it but what is wanted; uncordon it to forget that"),
        Standing::Absent => ("lost", "it has left"),
    };
    let registration = worker.registration();
    let refused =
        registration.and_then(|r| r.refused.as_deref()).map(|why| format!("takes nothing: its registration cannot be used: {why}"));
    let capped = worker
        .claims_too_much()
        .then(|| format!("it claims more authority than {MAX_AUTHORITY} seconds, and no more than that is waited for"));
    let reasons: Vec<String> = [refused, capped].into_iter().flatten().chain((!reason.is_empty()).then(|| reason.to_owned())).collect();
    let intent = worker.intent_kind();
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
        reason: reasons.join("; "),
        resources: worker.names.len() as u64,
        payload: worker.payload,
        cordoned: intent.is_some(),
        draining: intent.is_some_and(IntentKind::is_drain),
    }
}

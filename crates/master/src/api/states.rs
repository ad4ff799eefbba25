//! What people and programs are shown: resources and workers, read from what the master knows. It changes nothing.

use evenkeel_model::{
    Cluster, DriverTraits, FAILING, Finish, Holder, IntentKind, Moment, Phase, Record, Registration, Standing, StopReason, Unit, Worker,
    WorkerId, limits::MAX_AUTHORITY,
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
    if let Some(finish) = record.finish() {
        show_finish(&mut state, finish);
        let worker = cluster.worker(finish.worker.as_str());
        state.address = worker.and_then(Worker::registration).map(|r| r.address.clone()).unwrap_or_default();
        return Some(state);
    }
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
    holder.held.holds.as_str().clone_into(&mut state.holds);
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

/// A resource that has finished is shown where it ran last, and has its output there; it is assigned to nobody.
pub(crate) fn show_finish(state: &mut v1::ResourceState, finish: &Finish) {
    state.worker = finish.worker.to_string();
    finish.phase.as_str().clone_into(&mut state.phase);
    state.since = finish.since;
    state.restarts = finish.restarts;
    state.message.clone_from(&finish.message);
}

/// What the worker says, as far as it speaks of this very assignment.
fn observe(state: &mut v1::ResourceState, holder: &Holder, worker: Option<&Worker>) {
    let status = holder.observed();
    if let Some(status) = status {
        state.since = status.since;
        state.restarts = status.restarts;
        state.failures = status.failures;
        state.message.clone_from(&status.message);
        if holder.is_changing() {
            state.running_hash = status.hash.to_string();
        }
    }
    let is_ready = worker.is_some_and(|w| w.standing() == Standing::Ready);
    let phase = match (&holder.held.phase, status) {
        (Phase::Stop { reason, to }, _) => {
            state.reason = stop_reason(*reason, to.as_ref());
            "stopping"
        }
        (Phase::Run, _) if !is_ready => "unknown",
        (Phase::Run, Some(status)) => {
            if status.is_failing() && status.failures >= FAILING {
                state.reason = format!("failing on {}: {}", holder.worker, status.failure());
            } else if holder.needs_restart() {
                state.reason = format!(
                    "{} cannot take the change while it runs; it is stopped and started again within --recovery-in-flight",
                    holder.worker
                );
            } else if holder.is_changing() {
                state.reason = format!("{} has not taken the change yet", holder.worker);
            }
            status.phase.as_str()
        }
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
        Standing::Leaving => ("leaving", "it has stopped its resources, and waits for its tasks"),
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
        containment: registration.map(|r| r.containment.clone()).unwrap_or_default(),
        drivers: registration.into_iter().flat_map(drivers).collect(),
    }
}

fn drivers(registration: &Registration) -> impl Iterator<Item = (String, v1::DriverTraits)> {
    registration.kinds.iter().map(|kind| {
        let DriverTraits { holds, updates } = registration.driver(kind);
        (kind.clone(), v1::DriverTraits { holds: holds.as_str().to_owned(), updates })
    })
}

#[cfg(test)]
mod tests {
    use evenkeel_model::{Change, Definition, Entry, Epoch, Hash, Observed, Origin, ResourceName, Revision, Session, Status};

    use super::*;

    fn status(phase: Observed, failures: u32, finished: bool, message: &str) -> Status {
        Status { restarts: 2, failures, finished, message: message.to_owned(), ..Status::new(phase, Epoch(7), 5) }
    }

    fn noop() -> Definition {
        Definition { kind: "noop".into(), ..Definition::named(ResourceName::new("a").expect("name")) }
    }

    /// A resource that is assigned to a ready worker, which says this of it; or one that has finished there.
    fn shown(status: &Status) -> v1::ResourceState {
        let (name, id) = (ResourceName::new("a").expect("name"), WorkerId::new("worker-1").expect("id"));
        let definition = noop();
        let finish = status.finished.then(|| Box::new(Finish::of(definition.hash(), &id, status)));
        let mut decision = evenkeel_model::Decision::default();
        decision.assign(&definition, &id, evenkeel_model::Holds::Strict);
        let record =
            Record { id: 1, creation_time: 1, assigned_node: "".into(), source: "".into(), finished: finish, failed: None, definition };
        let registration = Registration::bare(id.clone(), "worker-1:9090".to_owned());
        let admission = evenkeel_model::Admission { session: Session(3), authority_ms: None, origin: Origin::default() };
        let mut entries = vec![
            (3, Entry::Worker(id.clone(), Some(registration))),
            (4, Entry::Admission(id.clone(), Some(admission))),
            (6, Entry::Resource(name.clone(), Some(record))),
        ];
        if !status.finished {
            entries.extend(decision.writes.into_iter().map(|write| (7, write.entry)));
            entries.push((8, Entry::Status(id, name, Some(status.clone()))));
        }
        let changes = entries.into_iter().map(|(at, entry)| Change::at(Revision(at), entry));
        let cluster = Cluster::from_list(changes, Moment::default());
        resource(&cluster, "a", Moment::default(), &PlannerConfig::default()).expect("it is wanted")
    }

    #[test]
    fn a_change_that_is_not_taken_yet_is_shown_and_so_is_how_it_is_held() {
        let running = status(Observed::Running, 0, false, "");
        let held = noop().hash();
        let of = |hash, restart_for| {
            let state = shown(&Status { hash, restart_for, ..running.clone() });
            (state.running_hash, state.reason)
        };
        let none = Hash::default();
        let before = Hash::of("process", &evenkeel_model::Spec::default());
        assert_eq!(of(none, none), (String::new(), String::new()));
        assert_eq!(of(held, before), (String::new(), String::new()), "that was another change");
        assert_eq!(of(before, none), (before.to_string(), "worker-1 has not taken the change yet".to_owned()));
        let restart = "worker-1 cannot take the change while it runs; it is stopped and started again within --recovery-in-flight";
        assert_eq!(of(before, held), (before.to_string(), restart.to_owned()));
        assert_eq!(shown(&running).holds, "strict");
    }

    #[test]
    fn what_fails_is_shown_with_its_worker_how_and_how_often() {
        let state = shown(&status(Observed::Backoff, 12, false, "exit status 1"));
        assert_eq!((state.phase.as_str(), state.failures), ("backoff", 12));
        assert_eq!(state.reason, "failing on worker-1: exit status 1, 12 times in a row");
        assert_eq!(shown(&status(Observed::Running, 3, false, "")).reason, "failing on worker-1: 3 times in a row");
        assert_eq!(shown(&status(Observed::Backoff, 2, false, "exit status 1")).reason, "", "a passing trouble");
    }

    #[test]
    fn what_has_finished_is_shown_where_it_ran_and_is_assigned_to_nobody() {
        let state = shown(&status(Observed::Exited, 1, true, "exit status 0"));
        let expected = ("exited", "worker-1", "worker-1:9090", "exit status 0", "");
        let is = (&*state.phase, &*state.worker, &*state.address, &*state.message, &*state.reason);
        assert_eq!((is, state.epoch, state.since, state.restarts), (expected, 0, 5, 2));
        assert_eq!(shown(&status(Observed::Failed, 1, true, "no such file or directory")).phase, "failed");
    }
}

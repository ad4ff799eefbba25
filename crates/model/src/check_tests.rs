//! A plan with flaws loses those, and nothing else.

use super::*;
use crate::{
    Admission, Change, Decision, Definition, DriverTraits, EndReason, Entry, Holds, Observed, Origin, Phase, Record, Registration,
    Revision, Spec, Status,
};

const WAIT: Duration = Duration::from_secs(5);

fn name(text: &str) -> ResourceName {
    ResourceName::new(text).expect("a name")
}

fn id(text: &str) -> WorkerId {
    WorkerId::new(text).expect("an id")
}

/// Worker `w` is ready; `held` runs there, and `a`, `b` and `c` are nowhere.
fn cluster() -> Cluster {
    let mut cluster = Cluster::default();
    let mut see = |entry| cluster.apply(Change::at(Revision(1), entry), Moment::default());
    let registration = Registration { kinds: vec!["noop".to_owned()], ..Registration::bare(id("w"), "w:1".to_owned()) };
    see(Entry::Worker(id("w"), Some(registration)));
    see(Entry::Admission(id("w"), Some(Admission { session: Session(1), origin: Origin::default(), authority_ms: None })));
    for text in ["a", "b", "c", "held"] {
        let definition = Definition::named(name(text));
        let record =
            Record { id: 1, creation_time: 1, assigned_node: "".into(), source: "".into(), finished: None, failed: None, definition };
        if text == "held" {
            let mut decision = Decision::default();
            decision.assign(&record.definition, &id("w"), crate::Holds::Strict);
            see(decision.writes.remove(0).entry);
        }
        see(Entry::Resource(name(text), Some(record)));
    }
    cluster
}

fn place(resource: &str) -> Action {
    Action::Place { resource: name(resource), worker: id("w"), reason: PlaceReason::Pinned }
}

fn end(resource: &str) -> Action {
    Action::End { resource: name(resource), worker: id("w"), epoch: Epoch(1), reason: EndReason::Stopped(StopReason::Deleted) }
}

/// What is left of these actions, and what was wrong with the others.
fn left(cluster: &Cluster, actions: Vec<Action>) -> (Vec<Action>, Vec<Violation>) {
    let mut plan = Plan { actions, ..Plan::default() };
    let flaws = take_out_flaws(cluster, &mut plan, Moment::default(), WAIT);
    assert_eq!(check_plan(cluster, &plan, Moment::default(), WAIT), [], "what is left is sound");
    (plan.actions, flaws.into_iter().flat_map(|flaw| flaw.violations).collect())
}

#[test]
fn what_violates_nothing_is_carried_out_beside_what_does() {
    let cluster = cluster();
    let open = Violation::EndedWhileOpen(name("held"), id("w"));
    assert_eq!(left(&cluster, vec![place("a"), end("held"), place("b")]), (vec![place("a"), place("b")], vec![open]));
    let held = Violation::PlacedWhileHeld(name("held"), id("w"));
    assert_eq!(left(&cluster, vec![place("held"), place("c")]), (vec![place("c")], vec![held]));
    assert_eq!(left(&cluster, vec![place("a"), place("b")]), (vec![place("a"), place("b")], vec![]));
}

#[test]
fn of_two_actions_for_one_resource_neither_is_carried_out() {
    let cluster = cluster();
    let show = Action::View { resource: name("a"), worker: None };
    assert_eq!(left(&cluster, vec![place("a"), place("b"), show]), (vec![place("b")], vec![Violation::TwoActions(name("a"))]));
}

#[test]
fn nothing_is_done_with_what_is_under_way() {
    let mut cluster = cluster();
    let decision = Decision::of(&place("a"), &cluster).expect("known");
    cluster.reserve(&decision.writes, Moment::default());
    assert_eq!(left(&cluster, vec![place("a"), place("b")]), (vec![place("b")], vec![Violation::UnderWay(name("a"))]));
    cluster.release(&decision.writes, Moment::default());
    assert_eq!(left(&cluster, vec![place("a")]), (vec![place("a")], vec![]));
}

#[test]
fn nothing_is_taken_for_finished_and_nothing_that_has_finished_is_run_again() {
    let mut cluster = cluster();
    let finish = Action::Finish { resource: name("held"), worker: id("w"), epoch: Epoch(1), message: "".into() };
    let unknown = Violation::NotFinished(name("held"), id("w"));
    assert_eq!(left(&cluster, vec![finish.clone(), place("b")]), (vec![place("b")], vec![unknown]));
    let status = Status { finished: true, ..Status::new(Observed::Exited, Epoch(1), 0) };
    cluster.apply(Change::at(Revision(2), Entry::Status(id("w"), name("held"), Some(status))), Moment::default());
    assert_eq!(left(&cluster, vec![finish.clone()]), (vec![finish.clone()], vec![]));
    for write in Decision::of(&finish, &cluster).expect("known").writes {
        cluster.apply(write.change(Revision(3)), Moment::default());
    }
    assert_eq!(check_cluster(&cluster), []);
    cluster.apply(Change::gone(crate::Key::Assignment(id("w"), name("held"))), Moment::default());
    let again = Violation::RunAgain(name("held"), id("w"));
    assert_eq!(left(&cluster, vec![place("held")]), (vec![], vec![again]));
}

#[test]
fn what_fails_is_stopped_for_another_worker_only() {
    let cluster = cluster();
    let stop = |to: Option<&str>| {
        let (resource, worker, reason) = (name("held"), id("w"), StopReason::Failing);
        vec![Action::Stop { resource, worker, epoch: Epoch(1), reason, to: to.map(id) }]
    };
    for to in [None, Some("w")] {
        assert_eq!(left(&cluster, stop(to)), (vec![], vec![Violation::TriedNowhere(name("held"), id("w"))]));
    }
    assert_eq!(left(&cluster, stop(Some("v"))), (stop(Some("v")), vec![]));
}

/// `held`, which is a process and of this restart policy, where `w` holds it.
fn process(cluster: &mut Cluster, revision: i64, restart: &str) -> Definition {
    let spec = Spec::from_value(serde_json::json!({"command": ["a"], "restart": restart})).expect("a spec");
    let definition = Definition { kind: "process".into(), spec, ..Definition::named(name("held")) };
    let record = Record {
        id: 1,
        creation_time: 1,
        assigned_node: "".into(),
        source: "".into(),
        finished: None,
        failed: None,
        definition: definition.clone(),
    };
    cluster.apply(Change::at(Revision(revision), Entry::Resource(name("held"), Some(record))), Moment::default());
    definition
}

#[test]
fn only_what_runs_and_can_take_it_is_changed_in_place_and_never_what_is_told_to_stop() {
    let mut cluster = cluster();
    let mut registration = Registration { kinds: vec!["process".to_owned()], ..Registration::bare(id("w"), "w:1".to_owned()) };
    registration.drivers.insert("process".to_owned(), DriverTraits { updates: true, holds: Holds::Fenced });
    let mut see = |revision, entry| cluster.apply(Change::over(Revision(1), Revision(revision), entry), Moment::default());
    see(2, Entry::Worker(id("w"), Some(registration.clone())));
    let with_updates = registration.clone();
    let before = process(&mut cluster, 3, "always");
    let mut decision = Decision::default();
    decision.assign(&before, &id("w"), Holds::Fenced);
    cluster.apply(Change::over(Revision(1), Revision(3), decision.writes.remove(0).entry), Moment::default());
    let after = process(&mut cluster, 4, "never");
    let update = Action::Update { resource: name("held"), worker: id("w"), epoch: Epoch(1) };
    let refused = |cluster: &Cluster| left(cluster, vec![update.clone()]).1;
    assert_eq!(refused(&cluster), []);
    // It keeps its epoch, and how it is held.
    let decision = Decision::of(&update, &cluster).expect("known");
    let [write] = decision.writes.as_slice() else { panic!("{decision:?}") };
    let assignment = write.assignment().expect("an assignment");
    assert_eq!((write.created, assignment.hash, assignment.holds), (Revision(1), after.hash(), Holds::Fenced));
    assert!(!write.creates_assignment() && assignment.phase == Phase::Run);
    assert_eq!(decision.guards, [crate::Guard::epoch(&id("w"), &name("held"), Epoch(1))]);

    let not_in_place = [Violation::NotInPlace(name("held"), id("w"))];
    let mut others = Vec::new();
    let mut other = |entry| {
        let mut other = cluster.clone();
        other.apply(Change::over(Revision(1), Revision(5), entry), Moment::default());
        others.push(other);
    };
    for (phase, finished) in [(Observed::Exited, false), (Observed::Failed, false), (Observed::Running, true)] {
        other(Entry::Status(id("w"), name("held"), Some(Status { finished, ..Status::new(phase, Epoch(1), 0) })));
    }
    other(Entry::Worker(id("w"), None));
    other(Entry::Worker(id("w"), Some(Registration { drivers: BTreeMap::new(), ..registration })));
    // Another session has come, and is not admitted yet.
    let mut returning = cluster.clone();
    let session = Entry::Worker(id("w"), Some(with_updates));
    returning.apply(Change::at(Revision(9), session), Moment::default());
    others.push(returning);
    for (n, other) in others.iter().enumerate() {
        assert_eq!(refused(other), not_in_place, "{n}");
    }
    for phase in [Observed::Starting, Observed::Running, Observed::Backoff] {
        let mut other = cluster.clone();
        let status = Status::new(phase, Epoch(1), 0);
        other.apply(Change::at(Revision(5), Entry::Status(id("w"), name("held"), Some(status))), Moment::default());
        assert_eq!(refused(&other), [], "{phase:?}");
    }
    let mut other = cluster.clone();
    let other_work = Definition { spec: Spec::from_value(serde_json::json!({"command": ["b"]})).expect("a spec"), ..after };
    let record = cluster.unit("held").and_then(|unit| unit.record.as_deref()).expect("a record").value.with_definition(other_work);
    other.apply(Change::at(Revision(5), Entry::Resource(name("held"), Some(record))), Moment::default());
    assert_eq!(refused(&other), not_in_place, "it is another program");

    let stop = Action::Stop { resource: name("held"), worker: id("w"), epoch: Epoch(1), reason: StopReason::Changed, to: None };
    let decision = Decision::of(&stop, &cluster).expect("known");
    assert_eq!(decision.writes[0].assignment().map(|assignment| assignment.holds), Some(Holds::Fenced), "it is held as it was");
    for write in decision.writes {
        cluster.apply(write.change(Revision(6)), Moment::default());
    }
    assert_eq!(refused(&cluster), [Violation::UpdatedWhileStopping(name("held"), id("w"))]);
    let gone = Action::Update { resource: name("held"), worker: id("w"), epoch: Epoch(2) };
    assert_eq!(left(&cluster, vec![gone]).1, [Violation::NotHeld(name("held"), id("w"), Epoch(2))]);
}

#[test]
fn an_assignment_is_held_as_its_worker_held_that_kind_when_it_was_made() {
    let mut cluster = cluster();
    let mut registration = Registration { kinds: vec!["noop".to_owned(), "k8s".to_owned()], ..Registration::bare(id("w"), String::new()) };
    registration.drivers.insert("k8s".to_owned(), DriverTraits { holds: Holds::Fenced, ..DriverTraits::default() });
    cluster.apply(Change::at(Revision(1), Entry::Worker(id("w"), Some(registration))), Moment::default());
    let record = cluster.unit("a").and_then(|unit| unit.record.as_deref()).expect("a record").value.clone();
    for (kind, holds) in [("", Holds::Strict), ("noop", Holds::Strict), ("k8s", Holds::Fenced)] {
        let record = record.with_definition(Definition { kind: kind.into(), ..record.definition.clone() });
        cluster.apply(Change::at(Revision(2), Entry::Resource(name("a"), Some(record))), Moment::default());
        let decision = Decision::of(&place("a"), &cluster).expect("known");
        assert_eq!(decision.writes.iter().find_map(crate::Write::assignment).map(|assignment| assignment.holds), Some(holds), "{kind}");
    }
}

/// The fence lets in again what it has seen, and does not see who shows it nothing.
#[test]
fn what_only_a_fence_ends_is_neither_kept_by_a_session_that_nobody_attests_nor_given_to_who_is_not_fenced() {
    let fenced = BTreeMap::from([("object".to_owned(), DriverTraits { holds: Holds::Fenced, updates: false })]);
    let registration = |worker: &str, drivers: &BTreeMap<String, DriverTraits>| Registration {
        kinds: vec!["object".to_owned()],
        drivers: drivers.clone(),
        ..Registration::bare(id(worker), format!("{worker}:1"))
    };
    let mut cluster = Cluster::default();
    let mut see = |revision, entry| cluster.apply(Change::at(Revision(revision), entry), Moment::default());
    for (worker, drivers) in [("w", &fenced), ("strict", &BTreeMap::new())] {
        see(1, Entry::Worker(id(worker), Some(registration(worker, drivers))));
        see(1, Entry::Admission(id(worker), Some(Admission { session: Session(1), origin: Origin::default(), authority_ms: None })));
    }
    let definition = Definition { kind: "object".into(), ..Definition::named(name("held")) };
    let mut decision = Decision::default();
    decision.assign(&definition, &id("w"), Holds::Fenced);
    see(1, decision.writes.remove(0).entry);
    let record = Record { id: 1, creation_time: 1, assigned_node: "".into(), source: "".into(), finished: None, failed: None, definition };
    see(1, Entry::Resource(name("held"), Some(record)));
    see(2, Entry::Worker(id("w"), None));
    let to_strict = Action::Move { resource: name("held"), from: id("w"), epoch: Epoch(1), to: id("strict"), reason: EndReason::Fenced };
    let later = Moment(WAIT * 2);
    let plan = Plan { actions: vec![to_strict], ..Plan::default() };
    assert_eq!(check_plan(&cluster, &plan, later, WAIT), [Violation::Unfenced(name("held"), id("strict"))]);
    cluster.apply(Change::at(Revision(9), Entry::Worker(id("w"), Some(registration("w", &fenced)))), Moment::default());
    let admit = Action::Admit { worker: id("w"), session: Session(9), reason: AdmitReason::Waited };
    let mut plan = Plan { actions: vec![admit.clone()], ..Plan::default() };
    assert_eq!(check_plan(&cluster, &plan, later, WAIT), [Violation::Admitted(id("w"), Session(9), AdmitReason::Waited)]);
    let end = Action::End { resource: name("held"), worker: id("w"), epoch: Epoch(1), reason: EndReason::Fenced };
    plan.actions = vec![end.clone()];
    assert_eq!(check_plan(&cluster, &plan, later, WAIT), []);
    for write in Decision::of(&end, &cluster).expect("known").writes {
        cluster.apply(write.change(Revision(10)), Moment::default());
    }
    plan.actions = vec![admit];
    assert_eq!(check_plan(&cluster, &plan, later, WAIT), []);
    // Once a kind is fenced anywhere, nobody else may run it.
    plan.actions = vec![Action::Place { resource: name("held"), worker: id("strict"), reason: PlaceReason::Pinned }];
    assert_eq!(check_plan(&cluster, &plan, later, WAIT), [Violation::Misplaced(name("held"), id("strict"))]);
}

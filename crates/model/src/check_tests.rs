//! A plan with flaws loses those, and nothing else.

use super::*;
use crate::{Admission, Change, Definition, EndReason, Entry, Hash, Observed, Origin, Record, Registration, Revision, Status};

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
            let mut decision = crate::Decision::default();
            decision.assign(&record.definition, &id("w"));
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
    let decision = crate::Decision::of(&place("a"), &cluster).expect("known");
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
    let status = Status {
        phase: Observed::Exited,
        epoch: Epoch(1),
        since: 0,
        hash: Hash::default(),
        restart_for: Hash::default(),
        overran: false,
        restarts: 0,
        failures: 0,
        finished: true,
        message: String::new(),
    };
    cluster.apply(Change::at(Revision(2), Entry::Status(id("w"), name("held"), Some(status))), Moment::default());
    assert_eq!(left(&cluster, vec![finish.clone()]), (vec![finish.clone()], vec![]));
    for write in crate::Decision::of(&finish, &cluster).expect("known").writes {
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

//! Under which conditions each action is written: what must still be so when the transaction comes to etcd.

use super::*;
use crate::{AdmitReason, EndReason, Hash, Moment, Observed, Origin, PlaceReason, Registration, Status};

const EPOCH: Epoch = Epoch(7);

fn id(text: &str) -> WorkerId {
    WorkerId::new(text).expect("id")
}

fn name() -> ResourceName {
    ResourceName::new("a").expect("name")
}

fn admission(session: i64) -> Admission {
    Admission { session: Session(session), origin: Origin::default(), authority_ms: None }
}

fn of_admission(worker: &str, revision: i64) -> Guard {
    Guard::Modified(Key::Admission(id(worker)), Revision(revision))
}

/// `a` is assigned to w, whose session 3 is admitted; v is ready as well; new has come and is not admitted.
fn cluster(observed: Observed) -> Cluster {
    let mut cluster = Cluster::default();
    let mut see = |revision, entry| cluster.apply(Change::at(Revision(revision), entry), Moment::default());
    for (worker, session, admitted) in [("w", 3, true), ("v", 13, true), ("new", 23, false)] {
        see(session, Entry::Worker(id(worker), Some(Registration::bare(id(worker), format!("{worker}:1")))));
        if admitted {
            see(session + 1, Entry::Admission(id(worker), Some(admission(session))));
        }
    }
    let record = Record {
        id: 1,
        creation_time: 1,
        assigned_node: "".into(),
        source: "".into(),
        finished: None,
        failed: None,
        definition: Definition::named(name()),
    };
    see(6, Entry::Resource(name(), Some(record)));
    let (spec, require) = (Spec::default(), Selector::EMPTY);
    let assignment = Assignment { kind: String::new(), spec, require, hash: Hash::default(), holds: Holds::Strict, phase: Phase::Run };
    see(EPOCH.0, Entry::Assignment(id("w"), name(), Some(assignment)));
    let status = Status { finished: observed == Observed::Exited, ..Status::new(observed, EPOCH, 0) };
    see(8, Entry::Status(id("w"), name(), Some(status)));
    cluster
}

fn guards(action: &Action, observed: Observed) -> Vec<Guard> {
    Decision::of(action, &cluster(observed)).expect("everything is known").guards
}

fn of_assignment(worker: &str, epoch: Epoch) -> Guard {
    Guard::Created(Key::Assignment(id(worker), name()), Revision(epoch.0))
}

#[test]
fn what_is_created_must_not_stand() {
    let place = Action::Place { resource: name(), worker: id("v"), reason: PlaceReason::Pinned };
    assert!(guards(&place, Observed::Running).contains(&of_assignment("v", Epoch::default())));
}

#[test]
fn what_is_stopped_must_be_what_was_seen() {
    let stop = Action::Stop { resource: name(), worker: id("w"), epoch: EPOCH, reason: StopReason::Drain, to: None };
    assert_eq!(guards(&stop, Observed::Running), [of_assignment("w", EPOCH)]);
}

#[test]
fn what_ends_for_its_worker_is_gone_ends_only_while_nobody_else_is_admitted_there() {
    let reason = EndReason::Waited;
    let of_admission = of_admission("w", 4);
    let end = Action::End { resource: name(), worker: id("w"), epoch: EPOCH, reason };
    assert_eq!(guards(&end, Observed::Running), [of_admission.clone(), of_assignment("w", EPOCH)]);
    let move_ = Action::Move { resource: name(), from: id("w"), epoch: EPOCH, to: id("v"), reason };
    let of_move = guards(&move_, Observed::Running);
    assert!([of_admission, of_assignment("w", EPOCH), of_assignment("v", Epoch::default())].iter().all(|guard| of_move.contains(guard)));
}

#[test]
fn what_was_reported_as_stopped_ends_whoever_is_admitted() {
    let end = Action::End { resource: name(), worker: id("w"), epoch: EPOCH, reason: EndReason::StoppedItself };
    assert_eq!(guards(&end, Observed::Stopped), [of_assignment("w", EPOCH)]);
}

#[test]
fn who_is_admitted_must_be_registered_and_no_other_be_admitted() {
    let admit = Action::Admit { worker: id("new"), session: Session(23), reason: AdmitReason::New };
    assert_eq!(guards(&admit, Observed::Running), [of_admission("new", 0), Guard::Created(Key::Worker(id("new")), Revision(23))]);
}

#[test]
fn who_is_forgotten_must_be_the_session_that_was_seen() {
    let forget = Action::Forget { worker: id("w"), reason: EndReason::Released };
    let decision = Decision::of(&forget, &cluster(Observed::Running)).expect("everything is known");
    assert_eq!(decision.guards, [of_admission("w", 4), Guard::Created(Key::Worker(id("w")), Revision(3))]);
    assert_eq!(decision.writes, [Write::delete(Key::Admission(id("w"))), Write::delete(Key::Worker(id("w")))]);
}

#[test]
fn nothing_is_built_on_a_write_that_is_not_known_to_be_written() {
    let mut unknown = cluster(Observed::Running);
    unknown.apply(Change::at(Revision::default(), Entry::Admission(id("w"), Some(admission(3)))), Moment::default());
    let end = Action::End { resource: name(), worker: id("w"), epoch: EPOCH, reason: EndReason::Waited };
    assert_eq!(Decision::of(&end, &unknown), Err(NotYet));
    let other = Action::Stop { resource: name(), worker: id("w"), epoch: Epoch(8), reason: StopReason::Drain, to: None };
    assert_eq!(Decision::of(&other, &unknown), Err(NotYet));
}

fn written(decision: &Decision) -> (&Assignment, &Record) {
    let assignment = decision.writes.iter().find_map(Write::assignment).expect("an assignment");
    (assignment, decision.writes.iter().find_map(Write::record).expect("a record"))
}

#[test]
fn that_it_has_finished_is_written_with_the_order_to_let_go() {
    let finish = Action::Finish { resource: name(), worker: id("w"), epoch: EPOCH, message: "".into() };
    let decision = Decision::of(&finish, &cluster(Observed::Exited)).expect("everything is known");
    assert_eq!(decision.guards, [of_assignment("w", EPOCH), Guard::Modified(Key::Resource(name()), Revision(6))]);
    let (assignment, record) = written(&decision);
    assert_eq!(assignment.phase, Phase::Stop { reason: StopReason::Finished, to: None });
    assert_eq!(record.finish().map(|finish| (finish.worker.as_str(), finish.epoch)), Some(("w", EPOCH)));
}

#[test]
fn where_it_fails_is_written_with_the_order_to_stop_there() {
    let stop = Action::Stop { resource: name(), worker: id("w"), epoch: EPOCH, reason: StopReason::Failing, to: Some(id("v")) };
    let decision = Decision::of(&stop, &cluster(Observed::Backoff)).expect("everything is known");
    assert_eq!(decision.guards, [of_assignment("w", EPOCH), Guard::Modified(Key::Resource(name()), Revision(6))]);
    assert_eq!(written(&decision).1.failed_on(), [id("w")]);
}

#[test]
fn other_rules_leave_the_epoch_and_how_it_is_held_as_they_are() {
    let mut decision = Decision::default();
    decision.assign(&Definition::named(name()), &id("w"), Holds::Loose);
    let held = Held::of(EPOCH, decision.writes[0].assignment().expect("an assignment"));
    let mut decision = Decision::default();
    decision.give_rules(&Definition { require: "gpu=true".parse().expect("a selector"), ..Definition::named(name()) }, &id("w"), &held);
    let [write] = decision.writes.as_slice() else { panic!("{decision:?}") };
    let assignment = write.assignment().expect("an assignment");
    assert_eq!((write.created, assignment.holds, assignment.require.to_string()), (Revision(7), Holds::Loose, "gpu=true".to_owned()));
}

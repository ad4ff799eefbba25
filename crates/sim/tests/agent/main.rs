//! One agent under a testbed: the real agent over the model of etcd, on virtual time, with a driver that writes down what it is told and a
//! guard that only listens. The test plays everybody else: the leader, other workers, somebody with etcdctl. Each test is a rule of the
//! ownership protocol that runs from seeds reach only in rare orders.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod changes;
mod survivors;
mod testbed;

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use evenkeel_model::Phase;
use evenkeel_model::{Admission, Epoch, Observed, Registration, Session, WorkerId};
use evenkeel_sim::etcd::Direction;
use evenkeel_store::{KeyName, KeyRange, LeasedKey, NewLeasedKey, Op, Txn, codec::json, keys::Keys};
use evenkeel_worker::{WorkerError, driver::Survivor, protocol::authority::Timing};
use tokio::time::{sleep, timeout};

use testbed::{Armed, SECOND, Testbed, Told, etcd, origin};

#[tokio::test(start_paused = true)]
async fn authority_counts_from_the_send_however_late_the_answer_comes() {
    let testbed = Testbed::running().await;
    let late = Duration::from_millis(300);
    testbed.link.delay(late);
    // Whatever was under way when the network became slow has come.
    sleep(2 * SECOND).await;
    testbed.armed.lock().unwrap().clear();
    sleep(10 * SECOND).await;
    let armed = testbed.armed.lock().unwrap().clone();
    assert!(armed.len() > 5, "proofs come through: {armed:?}");
    for Armed { at, kill_at } in armed {
        let left = kill_at.since(at);
        assert!(left <= Timing::default().until_kill() - 2 * late, "{left:?} is left of a proof that was under way for {:?}", 2 * late);
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_starts_while_the_guard_does_not_hear_of_its_end() {
    let testbed = Testbed::start();
    testbed.deaf.store(true, SeqCst);
    testbed.admit().await;
    testbed.assign(Phase::Run).await;
    sleep(10 * SECOND).await;
    assert!(!testbed.armed.lock().unwrap().is_empty(), "the agent has tried");
    assert_eq!(testbed.probe.told(), []);
    testbed.deaf.store(false, SeqCst);
    testbed.started().await;
}

#[tokio::test(start_paused = true)]
async fn an_epoch_that_was_reported_stopped_never_starts_again() {
    let testbed = Testbed::running().await;
    let before = testbed.probe.told();
    testbed.assign(Testbed::stop()).await;
    testbed.told_to_stop().await;
    testbed.probe.end();
    let status = testbed.keys.status(&testbed.id, &testbed.name);
    let stopped = |testbed: &Testbed| {
        testbed.etcd.peek(|store| String::from_utf8_lossy(&store.get(status.as_bytes())?.value).contains("stopped").then_some(()))
    };
    testbed.within(5 * SECOND, "reported", stopped).await;
    // No leader takes a stop back; somebody else's hand may.
    testbed.assign(Phase::Run).await;
    sleep(10 * SECOND).await;
    assert_eq!(testbed.probe.told(), [before, vec![Told::Stop]].concat());
}

#[tokio::test(start_paused = true)]
async fn the_gate_is_shut_for_whoever_is_not_admitted() {
    let testbed = Testbed::start();
    testbed.within(5 * SECOND, "registered", Testbed::registration).await;
    sleep(2 * SECOND).await;
    assert!(!testbed.gate.is_open(), "nobody has admitted it");
    testbed.admit().await;
    testbed.within(SECOND, "open", |testbed| testbed.gate.is_open().then_some(())).await;
    let gone = Txn { then: vec![Op::delete(testbed.keys.admission(&testbed.id))], ..Txn::default() };
    testbed.hand.txn(gone, SECOND).await.unwrap();
    testbed.within(SECOND, "shut", |testbed| (!testbed.gate.is_open()).then_some(())).await;
    sleep(2 * SECOND).await;
    assert!(!testbed.gate.is_open(), "and proofs do not open it");
}

#[tokio::test(start_paused = true)]
async fn the_gate_is_shut_for_whoever_leaves() {
    let testbed = Testbed::running().await;
    testbed.leave.send_replace(true);
    testbed.told_to_stop().await;
    sleep(2 * SECOND).await;
    assert!(!testbed.gate.is_open());
    assert!(!testbed.registration().unwrap().1.released, "it has not left while its work lives");
    testbed.probe.end();
    timeout(60 * SECOND, testbed.agent).await.unwrap().unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn no_session_follows_on_another_whose_work_lives() {
    let testbed = Testbed::running().await;
    let (session, _, lease) = testbed.registration().unwrap();
    testbed.etcd.revoke_early(lease).unwrap();
    testbed.told_to_stop().await;
    sleep(10 * SECOND).await;
    assert_eq!(testbed.registration(), None, "nobody attests what still runs");
    testbed.probe.end();
    let (next, registration, _) = testbed.within(5 * SECOND, "registered again", Testbed::registration).await;
    assert!(next > session);
    assert_eq!(registration.attests, Some(session), "it has ended, and the admission is this guard's");
}

#[tokio::test(start_paused = true)]
async fn a_live_worker_of_another_guard_keeps_its_id() {
    let (etcd, hand) = etcd();
    let (keys, id) = (Keys::new(""), WorkerId::new("worker-1").unwrap());
    let other = Registration { origin: origin("other"), ..Registration::bare(id.clone(), "elsewhere:1".to_owned()) };
    let key = KeyName::Exact(keys.worker(&id).into_bytes());
    let new = NewLeasedKey { key, value: json(&other), ttl: 4 * SECOND, replaces: None };
    let held = LeasedKey::create(&hand, new, SECOND).await.unwrap();
    // What its drivers find under this id is that worker's.
    let probe = testbed::Probe::default();
    let survivor = Survivor { name: "a".parse().unwrap(), epoch: Epoch(3), id: "alive".to_owned() };
    probe.survivors.lock().unwrap().push(survivor);
    let testbed = Testbed::start_with(etcd, hand, probe);
    let told = testbed.probe.clone();
    let error = timeout(60 * SECOND, testbed.agent).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(&error, WorkerError::IdTaken { address, .. } if address == "elsewhere:1"), "{error}");
    assert_eq!(told.told(), [], "and its work");
    let stands = testbed.etcd.peek(|store| store.iter(&KeyRange::prefix("/workers/")).map(|kv| kv.created).collect::<Vec<_>>());
    assert_eq!(stands, [held.created()]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_etcd_refuses_registers_when_it_is_taken() {
    // At its first start, and when its session is lost.
    let (etcd, hand) = etcd();
    etcd.overload(true);
    let testbed = Testbed::start_on(etcd, hand);
    sleep(60 * SECOND).await;
    assert!(testbed.registration().is_none() && !testbed.agent.is_finished(), "it waits");
    testbed.etcd.overload(false);
    let (session, _, lease) = testbed.within(10 * SECOND, "registered", Testbed::registration).await;
    testbed.etcd.overload(true);
    testbed.etcd.revoke_early(lease).unwrap();
    sleep(60 * SECOND).await;
    assert!(testbed.registration().is_none() && !testbed.agent.is_finished(), "it waits again");
    testbed.etcd.overload(false);
    let (next, _, _) = testbed.within(10 * SECOND, "registered again", Testbed::registration).await;
    assert!(next > session);
}

#[tokio::test(start_paused = true)]
async fn a_session_attests_for_its_own_guard_alone() {
    let (etcd, hand) = etcd();
    let (keys, id) = (Keys::new(""), WorkerId::new("worker-1").unwrap());
    let admission = Admission { session: Session(1), authority_ms: None, origin: origin("other") };
    hand.put(keys.admission(&id), json(&admission)).await.unwrap();
    let testbed = Testbed::start_on(etcd, hand);
    let (_, registration, _) = testbed.within(5 * SECOND, "registered", Testbed::registration).await;
    assert_eq!(registration.attests, None);
}

#[tokio::test(start_paused = true)]
async fn work_of_a_session_that_is_lost_is_stopped() {
    let testbed = Testbed::running().await;
    let (_, _, lease) = testbed.registration().unwrap();
    // The admission stays, and so does the assignment; and there would be authority for longer.
    testbed.etcd.revoke_early(lease).unwrap();
    testbed.within(SECOND, "told to stop", |testbed| (testbed.probe.told().last() == Some(&Told::Stop)).then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn what_ended_before_it_was_told_to_stop_says_so() {
    for told_first in [false, true] {
        let testbed = Testbed::running().await;
        if told_first {
            testbed.assign(Testbed::stop()).await;
            testbed.told_to_stop().await;
            testbed.probe.exits("exit status 3");
        } else {
            testbed.probe.exits("exit status 3");
            assert!(testbed.status_of(Observed::Exited).await.finished);
            testbed.assign(Testbed::stop()).await;
            testbed.told_to_stop().await;
        }
        testbed.probe.end();
        let status = testbed.status_of(Observed::Stopped).await;
        assert_eq!((status.finished, status.message.as_str()), (true, "exit status 3"), "told first: {told_first}");
    }
    // What was interrupted has not finished.
    let testbed = Testbed::running().await;
    testbed.assign(Testbed::stop()).await;
    testbed.told_to_stop().await;
    testbed.probe.end();
    assert!(!testbed.status_of(Observed::Stopped).await.finished);
}

#[tokio::test(start_paused = true)]
async fn an_end_is_reported_before_the_worker_leaves() {
    let testbed = Testbed::running().await;
    testbed.status_of(Observed::Starting).await;
    // What it sends first is lost.
    testbed.link.cut(Direction::Both);
    testbed.probe.exits("exit status 0");
    testbed.leave.send_replace(true);
    testbed.told_to_stop().await;
    testbed.probe.end();
    sleep(Duration::from_millis(300)).await;
    testbed.link.heal();
    let status = testbed.status_of(Observed::Exited).await;
    assert!(status.finished, "whoever runs it next is to know that nobody is to");
    let Testbed { agent, etcd, keys, id, .. } = testbed;
    timeout(60 * SECOND, agent).await.unwrap().unwrap().unwrap();
    let released = etcd.peek(|store| {
        let kv = store.get(keys.worker(&id).as_bytes()).unwrap();
        serde_json::from_slice::<Registration>(&kv.value).unwrap().released
    });
    assert!(released);
}

#[tokio::test(start_paused = true)]
async fn what_the_guard_may_have_killed_has_not_ended_by_itself() {
    let testbed = Testbed::running().await;
    let before = testbed.probe.told().len();
    testbed.link.cut(Direction::Both);
    testbed.told_to_stop().await;
    // The guard has killed it by now, and its end looks like any other.
    sleep(6 * SECOND).await;
    testbed.probe.exits("killed by signal 9 (SIGKILL)");
    testbed.probe.end();
    testbed.link.heal();
    testbed.admit().await;
    testbed.within(10 * SECOND, "started again", |testbed| (testbed.probe.told().len() > before + 1).then_some(())).await;
    assert!(!testbed.status_of(Observed::Starting).await.finished);
}

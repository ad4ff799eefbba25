//! What of earlier sessions lives: the drivers are asked before anything is attested, and their kinds are offered only when they have answered.

use std::sync::atomic::Ordering::SeqCst;

use evenkeel_model::{Admission, Epoch, Observed, Phase, ResourceName, Session};
use evenkeel_store::codec::json;
use evenkeel_worker::driver::Survivor;
use tokio::time::sleep;

use super::testbed::{Probe, SECOND, Testbed, Told, etcd, origin};

fn survivor(epoch: i64) -> Survivor {
    Survivor { name: ResourceName::new("a").unwrap(), epoch: Epoch(epoch), id: "left".to_owned() }
}

/// An agent of a guard whose last session was admitted, with this driver.
async fn next_agent(probe: Probe) -> Testbed {
    let (etcd, hand) = etcd();
    let admission = Admission { session: Session(1), authority_ms: None, origin: origin("own") };
    let key = evenkeel_store::keys::Keys::new("").admission(&evenkeel_model::WorkerId::new("worker-1").unwrap());
    hand.put(key, json(&admission)).await.unwrap();
    Testbed::start_with(etcd, hand, probe)
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_session_has_left_is_ended_before_its_end_is_attested() {
    let probe = Probe::default();
    probe.survivors.lock().unwrap().extend([survivor(3), survivor(4)]);
    let testbed = next_agent(probe).await;
    let (_, registration, _) = testbed.within(5 * SECOND, "registered", Testbed::registration).await;
    assert_eq!((registration.attests, registration.kinds.len()), (Some(Session(1)), 1));
    assert_eq!(testbed.probe.told(), [Told::End(Epoch(3)), Told::End(Epoch(4))]);
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_nothing_is_attested_and_the_kind_is_not_offered_until_it_comes() {
    let probe = Probe::default();
    probe.survivors.lock().unwrap().push(survivor(3));
    probe.is_silent.store(true, SeqCst);
    let testbed = next_agent(probe).await;
    let (session, registration, _) = testbed.within(10 * SECOND, "registered", Testbed::registration).await;
    assert_eq!((registration.attests, registration.kinds.len()), (None, 0));
    // The leader has waited, and an assignment of the session before still stands: nobody knows what of it lives.
    testbed.assign(Phase::Run).await;
    testbed.admit().await;
    let status = testbed.status_of(Observed::Starting).await;
    assert!(status.message.ends_with("still lives: no answer within 5 s"), "{}", status.message);
    testbed.assign(Testbed::stop()).await;
    sleep(20 * SECOND).await;
    assert_eq!(testbed.probe.told(), []);
    let status = testbed.status().unwrap();
    assert_eq!(status.phase, Observed::Stopping, "none of it is reported as stopped");
    assert!(status.message.ends_with("still lives: no answer within 5 s"), "{}", status.message);
    testbed.probe.is_silent.store(false, SeqCst);
    testbed.status_of(Observed::Stopped).await;
    assert_eq!(testbed.probe.told(), [Told::End(Epoch(3))]);
    let (same, registration, _) = testbed.registration().unwrap();
    assert_eq!((same, registration.attests, registration.kinds.len()), (session, None, 1), "offered by the same session");
}

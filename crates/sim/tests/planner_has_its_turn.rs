//! The planner's work on a resource is done however much callers ask about that resource.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{sync::Arc, time::Duration};

use evenkeel_master::{
    MasterConfig,
    engine::{Engine, Handle, PutMode, Request},
};
use evenkeel_model::{Draft, MasterId, MasterRecord, Registration, ResourceName, WorkerId};
use evenkeel_sim::{
    etcd::{Etcd, Settings},
    fleet::{clock::MachineClock, dice::generator},
};
use evenkeel_store::keys::Keys;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

const SECOND: Duration = Duration::from_secs(1);

fn engine(etcd: &Etcd) -> Engine {
    let id = MasterId::new("master-1").unwrap();
    let config = MasterConfig::new(id.clone(), Vec::new());
    let record = MasterRecord { id, address: String::new(), http: String::new(), version: String::new(), leads_since: 0 };
    Engine::new(Arc::new(config), etcd.link("master").client(SECOND), record, Arc::new(MachineClock::boot(0)))
}

/// Adds the same resource again and again, each time as soon as the answer has come. Returns when it has done so for so long.
async fn add_again_and_again(handle: Handle, until: Instant) -> u64 {
    let mut answers = 0;
    while Instant::now() < until {
        let draft = Draft { name: "a".to_owned(), kind: "sim".to_owned(), ..Draft::default() };
        let (reply, answer) = oneshot::channel();
        let definition = Box::new(draft.check().unwrap());
        handle.ask(Request::put(definition, PutMode::Add, "".into(), reply.into())).unwrap();
        match answer.await.unwrap() {
            Ok(_) => answers += 1,
            Err(_) => sleep(SECOND / 10).await,
        }
    }
    answers
}

/// Callers who ask about a resource without a pause kept the leader from placing it: it was never free when the plan was made.
#[tokio::test(start_paused = true)]
async fn a_resource_that_is_always_asked_for_is_placed_all_the_same() {
    let etcd = Etcd::start(Settings { members: 1, ..Settings::default() }, generator(1, "etcd"));
    let engine = engine(&etcd);
    let handle = engine.handle();
    let (_stop, stops) = oneshot::channel();
    tokio::spawn(engine.run(stops));
    let until = Instant::now() + 60 * SECOND;
    let callers: Vec<_> = (0..3).map(|_| tokio::spawn(add_again_and_again(handle.clone(), until))).collect();
    // It stands, and is assigned nowhere, since there is no worker yet.
    sleep(10 * SECOND).await;
    let (keys, id, name) = (Keys::new(""), WorkerId::new("worker-1").unwrap(), ResourceName::new("a").unwrap());
    let registration = Registration { kinds: vec!["sim".into()], ..Registration::bare(id.clone(), "worker-1:1".to_owned()) };
    etcd.link("worker").client(SECOND).put(keys.worker(&id), serde_json::to_vec(&registration).unwrap()).await.unwrap();
    sleep(20 * SECOND).await;
    let stands = |key: String| etcd.peek(|store| store.get(key.as_bytes()).is_some());
    assert!(stands(keys.resource(&name)) && stands(keys.admission(&id)), "the leader leads");
    assert!(stands(keys.assignment(&id, &name)), "it is assigned nowhere, 20 s after there is a worker");
    for caller in callers {
        assert!(caller.await.unwrap() > 100, "they have asked all the time");
    }
}

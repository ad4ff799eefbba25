//! A thousand real agents in one process, which share a client, beside a real master: all register, are given work, run it, report it, and leave.

mod support;

use std::{sync::Arc, time::Duration};

use evenkeel_model::{Observed, Status, WorkerId};
use evenkeel_store::{Client, Config, KeyRange, Kv};
use evenkeel_worker::{
    agent::many::{Agents, AgentsConfig},
    driver::{Noop, Registry},
    protocol::authority::Timing,
};
use support::Stage;

const AGENTS: usize = 1000;
const EACH: usize = 3;

/// With the usual spans a thousand proofs each half second would be what is measured.
fn timing() -> Timing {
    let second = Duration::from_secs(1);
    let timing = Timing {
        proof_period: 5 * second,
        proof_deadline: 10 * second,
        authority: 40 * second,
        wait: 41 * second,
        lease: 30 * second,
        ..Timing::default()
    };
    timing.check().expect("spans that hold");
    timing
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_agents_of_one_process_run_what_they_are_given() {
    let mut testbed = Stage::start().await;
    testbed.masters(1, &[]).await;
    let client = Client::new(Config::new([testbed.etcd.endpoint(0)])).expect("a client");
    let registry = Registry::default().with(Arc::new(Noop)).expect("one driver");
    let config = AgentsConfig { client, prefix: String::new(), registry, timing: timing(), takes_tasks: true };
    let ids: Vec<WorkerId> = (0..AGENTS).map(|n| WorkerId::new(&format!("agent-{n}")).expect("an id")).collect();
    let mut agents = Agents::start(&config, ids.iter().cloned());
    testbed
        .eventually("all are ready", async || {
            let ready = testbed.list_workers().await?.into_iter().filter(|worker| worker.phase == "ready").count();
            (ready == AGENTS).then_some(())
        })
        .await;
    let names: Vec<String> = (0..AGENTS * EACH).map(|n| format!("r{n}")).collect();
    let resources: Vec<_> = names.iter().map(|name| serde_json::json!({"name": name, "kind": "noop"})).collect();
    let file = testbed.path().join("resources.json");
    std::fs::write(&file, serde_json::json!({ "resources": resources }).to_string()).expect("written");
    let applied = testbed.cli("master-1", &["apply", "-f", file.to_str().expect("utf-8")]);
    assert!(applied.status.success(), "{applied:?}");
    testbed
        .eventually("all run, spread evenly", async || {
            let statuses = testbed.client.list(&KeyRange::prefix("/status/")).await.ok()?.kvs;
            let runs = |kv: &Kv| serde_json::from_slice::<Status>(&kv.value).is_ok_and(|status| status.phase == Observed::Running);
            let even = testbed.counts().await.iter().all(|count| *count == EACH);
            (statuses.iter().filter(|kv| runs(kv)).count() == names.len() && even).then_some(())
        })
        .await;
    let hosts: Vec<&str> = ids.iter().map(WorkerId::as_str).collect();
    let task = testbed.cli("master-1", &["task", "run", "--on", &hosts.join(","), "--batch", "all", "--wait", "--", "true"]);
    assert!(task.status.success(), "a script on each of them: {}", String::from_utf8_lossy(&task.stderr));
    tokio::select! {
        ended = agents.ended() => panic!("one has ended: {ended:?}"),
        () = std::future::ready(()) => {}
    }
    agents.leave().await.expect("all have left");
    testbed
        .eventually("nobody is registered", async || {
            testbed.client.list(&KeyRange::prefix("/workers/")).await.ok().filter(|listed| listed.kvs.is_empty()).map(drop)
        })
        .await;
}

//! Placement as people steer it and ask about it: rules, drain, what-if, why, and the brake, on a real etcd with real processes.

mod support;

use std::collections::BTreeMap;

use serde_json::Value;
use support::{Assigned, Stage};

/// What a client command prints as JSON.
fn json(stage: &Stage, master: &str, arguments: &[&str]) -> Value {
    let output = stage.cli(master, &[arguments, &["-o", "json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("json")
}

fn done(stage: &Stage, master: &str, arguments: &[&str]) -> String {
    let output = stage.cli(master, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn on<'a>(assignments: &'a BTreeMap<String, Assigned>, worker: &str) -> Vec<&'a str> {
    assignments.iter().filter(|(_, assigned)| assigned.worker == worker).map(|(name, _)| name.as_str()).collect()
}

#[tokio::test]
async fn a_gpu_job_goes_to_a_gpu_worker_only() {
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    stage.spawn("worker-1", &[]);
    stage.spawn("worker-2", &["--label", "gpu=true"]);
    stage.ready(2).await;
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/gpu.yaml");
    done(&stage, "master-1", &["apply", "-f", file]);
    let settled = stage.settled(5).await;
    assert!(!on(&settled, "worker-1").iter().any(|name| name.starts_with("train")), "{settled:?}");
    assert_eq!(stage.counts().await, [3, 2]);
    // It waits, and says for what, when there is no such worker.
    done(&stage, "master-1", &["cordon", "worker-2"]);
    let added = done(&stage, "master-1", &["add", "train-3", "--require", "gpu=true"]);
    let expected = "pending: none of the 2 ready workers fits: it is cordoned (1 of 2); require: gpu=true does not hold (1 of 2)";
    let also = "pending: none of the 2 ready workers fits: require: gpu=true does not hold (1 of 2); it is cordoned (1 of 2)";
    assert!(added.contains(expected) || added.contains(also), "{added}");
    let why = json(&stage, "master-1", &["explain", "train-3"]);
    let reasons: Vec<&str> = why["candidates"].as_array().expect("some").iter().filter_map(|c| c["reason"].as_str()).collect();
    assert_eq!(reasons, ["require: gpu=true does not hold", "it is cordoned"]);
    assert_eq!((&why["policy"], why["failed"].as_array().map(Vec::len)), (&Value::from("least-payload"), Some(2)));
    done(&stage, "master-1", &["uncordon", "worker-2"]);
    let settled = stage.settled(6).await;
    assert_eq!(settled["train-3"].worker, "worker-2");
}

#[tokio::test]
async fn a_drain_names_what_cannot_move_and_outlives_the_leader() {
    let mut stage = Stage::start().await;
    stage.masters(2, &[]).await;
    stage.workers(3).await;
    let leader = stage.leader().await;
    for n in 1..=8 {
        done(&stage, &leader, &["add", &format!("r{n}"), "--kind", "noop"]);
    }
    done(&stage, &leader, &["add", "stuck", "--pin", "worker-1"]);
    let before = stage.settled(9).await;
    let there = on(&before, "worker-1").len();

    let foreseen = json(&stage, &leader, &["plan", "drain", "worker-1"]);
    assert_eq!(foreseen["actions"].as_array().map(Vec::len), Some(there - 1), "{foreseen}");
    assert_eq!(foreseen["undone"][0]["resource"], "stuck", "{foreseen}");
    assert_eq!(stage.assignments().await, before, "nothing is done by asking");

    let drained = stage.cli(&leader, &["drain", "worker-1", "--wait"]);
    assert_eq!(drained.status.code(), Some(1));
    let said = String::from_utf8_lossy(&drained.stderr).into_owned();
    assert!(said.contains("stuck: cannot leave worker-1, which is being drained: it is pinned to worker-1"), "{said}");
    let after = stage.settled(9).await;
    assert_eq!(on(&after, "worker-1"), ["stuck"]);
    assert!(stage.etcdctl("/intents/workers/worker-1").contains(r#"{"Wish":"drain","Since":"#));

    stage.cut(&leader).await;
    let other = if leader == "master-1" { "master-2" } else { "master-1" };
    stage.eventually("the other leads", async || stage.cli(other, &["add", "later"]).status.success().then_some(())).await;
    let settled = stage.settled(10).await;
    assert_eq!(on(&settled, "worker-1"), ["stuck"], "the drain goes on");
    // What is wanted twice is wanted once, and a cordon ends the drain.
    done(&stage, other, &["cordon", "worker-1"]);
    let workers = json(&stage, other, &["workers"]);
    assert_eq!((&workers[0]["cordoned"], &workers[0]["draining"]), (&Value::Bool(true), &Value::Null));
    done(&stage, other, &["delete", "stuck"]);
    let emptied = done(&stage, other, &["drain", "worker-1", "--wait"]);
    assert_eq!(emptied, "worker-1 drained\n");

    done(&stage, other, &["uncordon", "worker-1"]);
    stage.eventually("it has its share again", async || (stage.counts().await == [3, 3, 3]).then_some(())).await;
    let events = done(&stage, other, &["events"]);
    for kind in ["draining", "cordoned", "uncordoned"] {
        assert!(events.contains(kind), "{events}");
    }
}

#[tokio::test]
async fn a_deadline_stops_what_cannot_move() {
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    stage.workers(2).await;
    done(&stage, "master-1", &["add", "stuck", "--pin", "worker-1"]);
    stage.settled(1).await;
    let drained = done(&stage, "master-1", &["drain", "worker-1", "--wait", "--deadline", "1s"]);
    assert_eq!(drained, "worker-1 drained\n");
    let state = stage.get("stuck").await.expect("it is wanted all the same");
    assert_eq!(
        (state.phase.as_str(), state.reason.as_str()),
        ("pending", "it is pinned to worker-1, which cannot take it: it is being drained")
    );
}

#[tokio::test]
async fn everything_can_be_asked_why_and_what_if() {
    let mut stage = Stage::start().await;
    stage.masters(2, &["--policy", "pack"]).await;
    stage.spawn("worker-1", &["--label", "zone=a", "--capacity", "10"]);
    stage.spawn("worker-2", &["--label", "zone=b", "--capacity", "10"]);
    stage.ready(2).await;
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/placement.yaml");
    done(&stage, "master-2", &["apply", "-f", file]);
    let names: Vec<String> = json(&stage, "master-2", &["get"])
        .as_array()
        .expect("a list")
        .iter()
        .map(|r| r["resource"]["name"].as_str().expect("a name").to_owned())
        .collect();
    assert!(names.len() > 6, "{names:?}");
    let settled = stage
        .eventually("it settles", async || {
            let plan: Value = serde_json::from_str(&stage.curl("master-2", "/v1/plan", &[])).ok()?;
            plan["actions"].as_array().is_none_or(Vec::is_empty).then_some(stage.assignments().await)
        })
        .await;
    for name in &names {
        let why = done(&stage, "master-1", &["explain", name]);
        let known = match settled.get(name) {
            Some(assigned) => format!("{name} is on {}: it was", assigned.worker),
            None => format!("{name} is pending: "),
        };
        assert!(why.contains(&known), "{known}: {why}");
    }
    // The same by HTTP, and with a resource that is not there.
    let supposed = r#"{"add":{"name":"new","weight":3,"require":"zone=b"}}"#;
    let plan: Value = serde_json::from_str(&stage.curl("master-1", "/v1/plan", &["-d", supposed])).expect("json");
    assert_eq!(
        (&plan["actions"][0]["action"], &plan["actions"][0]["worker"]),
        (&Value::from("assign"), &Value::from("worker-2")),
        "{plan}"
    );
    let plan = json(&stage, "master-1", &["plan", "add", "new", "--require", "zone=c"]);
    assert_eq!(plan["undone"][0]["resource"], "new", "{plan}");
    for arguments in
        [&["plan", "lose", "worker-1"][..], &["plan", "cordon", "worker-2"], &["plan", "uncordon", "worker-2"], &["plan", "rebalance"]]
    {
        done(&stage, "master-2", arguments);
    }
    assert_eq!(stage.assignments().await, settled, "nothing is done by asking");
}

#[tokio::test]
async fn the_brake_holds_what_many_lost_workers_ran_until_it_is_released() {
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    stage.workers(4).await;
    for n in 1..=8 {
        done(&stage, "master-1", &["add", &format!("r{n}"), "--kind", "noop"]);
    }
    let before = stage.settled(8).await;
    for worker in ["worker-1", "worker-2", "worker-3"] {
        stage.cut(worker).await;
    }
    let held = stage
        .eventually("the brake holds", async || {
            let plan: Value = serde_json::from_str(&stage.curl("master-1", "/v1/plan", &[])).ok()?;
            let undone = plan["undone"].as_array()?.iter().filter(|u| u["reason"].as_str().is_some_and(|r| r.contains("is held")));
            (undone.count() == 3).then(|| plan["brake"].as_str().unwrap_or_default().to_owned())
        })
        .await;
    assert_eq!(held, "3 of 4 workers are gone, more than 50%: what they ran is held until they return or the brake is released");
    assert_eq!(stage.assignments().await, before);
    assert!(stage.curl("master-1", "/metrics", &[]).contains("\nevenkeel_brake_engaged 1\n"));
    let warned = stage.cli("master-1", &["workers"]);
    assert!(String::from_utf8_lossy(&warned.stderr).contains("the brake holds: 3 of 4 workers are gone"));
    // What is new is placed, on the one that is left.
    assert!(done(&stage, "master-1", &["add", "new"]).contains("on worker-4"));
    // One comes back, with what it had: two of four are no more than may be, and what the others ran moves.
    let released = done(&stage, "master-1", &["brake", "release"]);
    assert_eq!(released, "waited for no longer: worker-1, worker-2, worker-3\n");
    let after = stage.settled(9).await;
    assert!(after.values().all(|assigned| assigned.worker == "worker-4"), "{after:?}");
    assert_eq!(done(&stage, "master-1", &["brake"]), "it holds nothing\n");
    // That it holds nothing more is an entry by itself.
    let told = async || {
        let events = done(&stage, "master-1", &["events"]);
        ["held", "letgo", "resumed"].into_iter().all(|entry| events.contains(entry)).then_some(())
    };
    stage.eventually("the history tells all of it", told).await;
}

/// A job that ended is not run again, weighs nothing, and has its output where it ran; another spec is another job.
#[tokio::test]
async fn what_has_ended_and_is_not_to_be_started_again_has_finished() {
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    stage.workers(2).await;
    let job = r#"{"name": "job", "kind": "process", "spec": {"command": ["sh", "-c", "echo once; exit 3"], "restart": "never"}}"#;
    let add = |stage: &Stage| stage.curl("master-1", "/v1/resources", &["-X", "POST", "-d", job]);
    add(&stage);
    let finished = |stage: &Stage| json(stage, "master-1", &["get", "job"]);
    let shown = stage
        .eventually("it has finished, and its worker has let go of it", async || {
            let shown = finished(&stage);
            (shown["phase"] == "exited" && shown["epoch"].is_null() && stage.assignments().await.is_empty()).then_some(shown)
        })
        .await;
    assert_eq!((&shown["message"], &shown["restarts"]), (&Value::from("exit status 3"), &Value::Null));
    let worker = shown["worker"].as_str().expect("where it ran").to_owned();
    // Neither a drain nor the same definition runs it again.
    assert_eq!(done(&stage, "master-1", &["drain", &worker, "--wait"]), format!("{worker} drained\n"));
    add(&stage);
    let other = if worker == "worker-1" { "worker-2" } else { "worker-1" };
    done(&stage, "master-1", &["add", "later", "--kind", "noop"]);
    assert_eq!(on(&stage.settled(1).await, other), ["later"]);
    let again = finished(&stage);
    assert_eq!((&again["phase"], &again["since"], &again["worker"]), (&shown["phase"], &shown["since"], &shown["worker"]));
    assert_eq!(done(&stage, "master-1", &["logs", "job"]), "once\n");
    assert_eq!(done(&stage, "master-1", &["logs", "job", "--follow"]), "once\n", "it ends");
    let kinds: Vec<Value> =
        json(&stage, "master-1", &["events", "job"]).as_array().expect("a list").iter().map(|e| e["type"].clone()).collect();
    assert_eq!(kinds, ["added", "finished", "ended"]);
    // To delete it and add it anew does.
    done(&stage, "master-1", &["delete", "job"]);
    add(&stage);
    stage
        .eventually("it has run on the other worker", async || {
            let shown = finished(&stage);
            (shown["phase"] == "exited" && shown["worker"] == other).then_some(())
        })
        .await;
    // Of one that wrote nothing that is said, and nobody waits.
    let quiet = r#"{"name": "quiet", "kind": "process", "spec": {"command": ["true"], "restart": "never"}}"#;
    stage.curl("master-1", "/v1/resources", &["-X", "POST", "-d", quiet]);
    let shown = || json(&stage, "master-1", &["get", "quiet"]);
    stage.eventually("it has finished", async || (shown()["phase"] == "exited" && shown()["epoch"].is_null()).then_some(())).await;
    for more in [&["logs", "quiet"][..], &["logs", "quiet", "--follow"]] {
        let output = stage.cli("master-1", more);
        let said = format!("error: quiet: wrote nothing; it exited on {other} (exit status 0)\n");
        assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(1), said.as_str()));
    }
    let refused = stage.cli("master-1", &["get", "--watch", "-o", "wide"]);
    let said = "error: --watch shows no usage; leave -o wide out\n";
    assert_eq!((refused.status.code(), String::from_utf8_lossy(&refused.stderr).as_ref()), (Some(2), said));
}

/// What fails on one worker alone runs where it does not, and the history says why it moved.
#[tokio::test]
async fn what_fails_again_and_again_is_tried_on_another_worker() {
    let mut stage = Stage::start().await;
    stage.masters(1, &["--move-failing-after", "3"]).await;
    stage.spawn("worker-1", &[]);
    stage.ready(1).await;
    let job = r#"{"name": "picky", "kind": "process", "spec": {"command": ["sh", "-c", "test $EVENKEEL_WORKER = worker-2 || exit 3; exec sleep 1000"]}}"#;
    stage.curl("master-1", "/v1/resources", &["-X", "POST", "-d", job]);
    let shown = async |stage: &Stage| {
        let shown = json(stage, "master-1", &["get", "picky"]);
        shown["failures"].as_u64().is_some_and(|failures| failures >= 3).then_some(shown)
    };
    let failing = stage.eventually("it is shown to fail", async || shown(&stage).await).await;
    assert_eq!(failing["worker"], "worker-1");
    let table = done(&stage, "master-1", &["get"]);
    assert!(table.contains("failing on worker-1: exit status 3, "), "{table}");
    stage.spawn("worker-2", &[]);
    stage.ready(2).await;
    let moved = stage
        .eventually("it runs on the other worker", async || {
            let shown = json(&stage, "master-1", &["get", "picky"]);
            (shown["phase"] == "running" && shown["worker"] == "worker-2").then_some(shown)
        })
        .await;
    assert_eq!(moved["failures"], Value::Null);
    let events = done(&stage, "master-1", &["events", "picky"]);
    assert!(events.contains("failing"), "{events}");
}

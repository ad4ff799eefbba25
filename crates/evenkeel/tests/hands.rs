//! What other hands do to etcd: keys that are edited, garbage, a state that is put back. None of it may run anything twice, stop the
//! leader for good, or change what it was not about.

mod support;

use std::{path::Path, process::Command};

use nix::sys::signal::Signal;
use support::{Stage, is_alive, run};

fn names(count: usize) -> Vec<String> {
    (1..=count).map(|n| format!("r{n}")).collect()
}

/// A settled cluster with so many resources that lock their names on so many workers.
async fn cluster(workers: usize, resources: usize) -> Stage {
    let mut stage = Stage::start().await;
    let file = stage.manifest(&names(resources));
    stage.masters(1, &[]).await;
    stage.workers(workers).await;
    let applied = stage.cli("master-1", &["apply", "-f", &file.display().to_string()]);
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    stage.settled(resources).await;
    stage.begun(&names(resources)).await;
    stage
}

fn put(stage: &Stage, key: &str, value: &str) {
    run(Command::new("etcdctl").env("ETCDCTL_API", "3").args(["--endpoints", &stage.etcd.endpoint(0), "put", "--", key, value]));
}

fn delete(stage: &Stage, key: &str) {
    run(Command::new("etcdctl").env("ETCDCTL_API", "3").args(["--endpoints", &stage.etcd.endpoint(0), "del", key]));
}

fn value(stage: &Stage, key: &str) -> String {
    stage.etcdctl(key).lines().nth(1).unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_deleted_assignment_is_made_anew_and_a_deleted_resource_stops() {
    let stage = cluster(2, 3).await;
    let before = stage.assignments().await;
    delete(&stage, &format!("/assignments/{}/r1", before["r1"].worker));
    stage
        .eventually("it is assigned anew", async || {
            stage.assignments().await.get("r1").is_some_and(|a| a.epoch != before["r1"].epoch).then_some(())
        })
        .await;
    stage.settled(3).await;
    let work = stage.work("r2");
    delete(&stage, "/resources/r2");
    stage.eventually("its work is gone", async || (!is_alive(work)).then_some(())).await;
    stage.settled(2).await;
    stage.starts();
}

#[tokio::test]
async fn garbage_is_left_alone_and_changes_nothing_else() {
    let mut stage = cluster(2, 4).await;
    let before = stage.assignments().await;
    let r2 = value(&stage, "/resources/r2");
    let work = stage.work("r1");
    for garbage in ["", "{", "null", "[]", &r2, "{\"Name\":\"r1\",\"Weight\":0}"] {
        put(&stage, "/resources/r1", garbage);
        stage.eventually("it is seen to be unreadable", async || (stage.get("r1").await?.phase == "unknown").then_some(())).await;
    }
    assert_eq!(stage.assignments().await, before, "what cannot be read is neither stopped nor moved");
    assert_eq!(value(&stage, "/resources/r2"), r2, "another's record is not written from a copy of it");
    assert!(is_alive(work));
    for key in ["/status/worker-1/none", "/admissions/nobody", "/events/x", "/resources/a b", "/assignments/worker-9/none", "/workers/"] {
        put(&stage, key, "\u{1}garbage");
    }

    // The worker of the unreadable one leaves; the rest goes on, and a new one gets its share.
    let left = before["r1"].worker.clone();
    stage.signal(&left, Signal::SIGTERM);
    stage.ended(&left).await;
    stage.spawn("worker-3", &[]);
    stage
        .eventually("the new worker has a share", async || {
            let now = stage.assignments().await;
            let at = |worker: &str| now.iter().filter(|(name, a)| a.worker == worker && *name != "none").count();
            (now.len() == 3 && at("worker-3") >= 1 && at(&left) == 0).then_some(())
        })
        .await;
    // Written anew, it is placed again.
    put(&stage, "/resources/r1", &value(&stage, "/resources/r2").replace("r2", "r1"));
    stage.settled(4).await;
    stage.starts();
}

#[tokio::test]
async fn a_registration_that_cannot_be_read_does_not_make_its_worker_a_lost_one() {
    let stage = cluster(2, 4).await;
    put(&stage, "/workers/worker-1", "garbage");
    // Its session is over, since the key is off its lease: it stops everything and begins another.
    stage.ready(2).await;
    stage.settled(4).await;
    stage.starts();
}

#[tokio::test]
async fn a_worker_that_leaves_while_nobody_leads_is_not_taken_for_a_lost_one() {
    let mut stage = cluster(2, 4).await;
    stage.cut("master-1").await;
    stage.signal("worker-1", Signal::SIGINT);
    assert_eq!(stage.ended("worker-1").await, Some(0));
    stage.spawn("master-1", &[]);
    stage.leader().await;
    stage
        .eventually("its work is elsewhere", async || {
            let now = stage.assignments().await;
            (now.len() == 4 && now.values().all(|a| a.worker == "worker-2")).then_some(())
        })
        .await;
    stage.settled(4).await;
    stage.starts();
}

#[tokio::test]
async fn an_etcd_that_is_put_back_takes_the_cluster_back_with_it() {
    let mut stage = cluster(2, 3).await;
    let data = stage.path().join("etcd");
    let backup = stage.path().join("backup");
    stage.etcd.kill(0).expect("killed");
    run(Command::new("cp").arg("-a").args([&data, &backup]));
    stage.etcd.restart(0).await.expect("back");
    stage.leader().await;
    for name in ["later-1", "later-2"] {
        stage.eventually("it is added", async || stage.cli("master-1", &["add", name]).status.success().then_some(())).await;
    }
    stage.settled(5).await;

    stage.etcd.kill(0).expect("killed");
    std::fs::remove_dir_all(&data).expect("removed");
    run(Command::new("cp").arg("-a").args([Path::new(&backup), Path::new(&data)]));
    stage.etcd.restart(0).await.expect("back");
    stage.eventually("adding works again", async || stage.cli("master-1", &["add", "after"]).status.success().then_some(())).await;
    stage.ready(2).await;
    let settled = stage.settled(4).await;
    assert!(settled.contains_key("after") && !settled.contains_key("later-1"), "{settled:?}");
    stage.starts();
}

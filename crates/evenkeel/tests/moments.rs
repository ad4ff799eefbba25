//! The moments that must look right, each on a real etcd with real processes that lock their name: two owners at once would show.

mod support;

use std::collections::BTreeMap;

use nix::sys::signal::{self, Signal};
use support::{Assigned, Stage, is_alive};

fn names(count: usize) -> Vec<String> {
    (1..=count).map(|n| format!("r{n}")).collect()
}

/// A settled cluster with so many resources on so many workers.
async fn cluster(workers: usize, resources: usize) -> (Stage, BTreeMap<String, Assigned>) {
    let mut stage = Stage::start().await;
    let file = stage.manifest(&names(resources));
    stage.masters(2, &[]).await;
    stage.workers(workers).await;
    let leader = stage.leader().await;
    let applied = stage.cli(&leader, &["apply", "-f", &file.display().to_string()]);
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    let settled = stage.settled(resources).await;
    stage.begun(&names(resources)).await;
    (stage, settled)
}

fn moved(before: &BTreeMap<String, Assigned>, after: &BTreeMap<String, Assigned>) -> usize {
    before.iter().filter(|(name, assigned)| after[*name].worker != assigned.worker).count()
}

#[tokio::test]
async fn a_killed_agent_s_work_dies_at_once_and_comes_back_on_the_same_worker() {
    let (stage, before) = cluster(2, 5).await;
    let work: Vec<_> = names(5).iter().map(|name| (name.clone(), stage.work(name))).collect();
    let (victims, others): (Vec<_>, Vec<_>) = work.into_iter().partition(|(name, _)| before[name].worker == "worker-1");
    signal::kill(stage.agent("worker-1").await, Signal::SIGKILL).expect("killed");
    stage.eventually("its work is dead", async || victims.iter().all(|(_, pid)| !is_alive(*pid)).then_some(())).await;
    stage
        .eventually("its work is back", async || {
            victims.iter().all(|(name, old)| stage.work(name) != *old && is_alive(stage.work(name))).then_some(())
        })
        .await;
    assert_eq!(stage.settled(5).await, before, "nothing was assigned anew");
    assert!(others.iter().all(|(name, pid)| stage.work(name) == *pid && is_alive(*pid)), "the other worker's work went on");
}

#[tokio::test]
async fn a_killed_leader_moves_nothing_and_the_next_call_succeeds() {
    let (mut stage, before) = cluster(2, 5).await;
    let starts = stage.starts().len();
    let leader = stage.leader().await;
    stage.cut(&leader).await;
    let other = if leader == "master-1" { "master-2" } else { "master-1" };
    stage.eventually("a retry succeeds", async || stage.cli(other, &["add", "later"]).status.success().then_some(())).await;
    let mut after = stage.settled(6).await;
    after.remove("later");
    assert_eq!(after, before);
    assert_eq!(stage.starts().len(), starts, "nothing was started again");
}

#[tokio::test]
async fn a_third_worker_gets_its_share_with_the_fewest_moves() {
    let (mut stage, before) = cluster(2, 5).await;
    stage.spawn("worker-3", &[]);
    stage.ready(3).await;
    let after = stage
        .eventually("it is even", async || {
            let after = stage.settled(5).await;
            (stage.counts().await == [2, 2, 1]).then_some(after)
        })
        .await;
    assert_eq!(moved(&before, &after), 1);
    assert_eq!(stage.starts().len(), 6);
}

#[tokio::test]
async fn a_lost_worker_s_work_is_elsewhere_and_nothing_ran_twice() {
    let (mut stage, before) = cluster(3, 6).await;
    stage.cut("worker-2").await;
    let after = stage
        .eventually("the others have it", async || {
            let after = stage.settled(6).await;
            after.values().all(|assigned| assigned.worker != "worker-2").then_some(after)
        })
        .await;
    assert_eq!(moved(&before, &after), 2);
    assert_eq!(stage.starts().len(), 8);
    stage.spawn("worker-2", &[]);
    stage.ready(3).await;
    stage.eventually("it has its share again", async || (stage.counts().await == [2, 2, 2]).then_some(())).await;
    stage.settled(6).await;
    stage.starts();
}

#[tokio::test]
async fn a_deleted_resource_s_process_is_gone_and_a_changed_one_starts_anew_in_its_place() {
    let (stage, before) = cluster(2, 3).await;
    let pid = stage.work("r1");
    let leader = stage.leader().await;
    assert!(stage.cli(&leader, &["delete", "r1"]).status.success());
    assert_eq!(stage.etcdctl("/resources/r1"), "");
    stage.eventually("its process is gone", async || (!is_alive(pid)).then_some(())).await;
    stage.eventually("its assignment is gone", async || (!stage.assignments().await.contains_key("r1")).then_some(())).await;

    let old = stage.work("r2");
    let changed = r#"{"name":"r2","kind":"process","spec":{"command":["sh","-c","sleep 1000"]}}"#;
    let answer = stage.curl(&leader, "/v1/resources/r2", &["-X", "PUT", "-d", changed]);
    assert!(answer.contains(r#""changed":true"#), "{answer}");
    let after = stage
        .eventually("it is assigned anew", async || {
            let after = stage.settled(2).await;
            (after["r2"].epoch != before["r2"].epoch).then_some(after)
        })
        .await;
    assert_eq!(after["r2"].worker, before["r2"].worker, "an update stays where it is");
    assert!(!is_alive(old));
}

#[tokio::test]
async fn a_hiccup_of_etcd_restarts_nothing_and_an_outage_stops_the_work_in_time() {
    let (mut stage, before) = cluster(2, 4).await;
    let starts = stage.starts().len();
    stage.etcd.kill(0).expect("killed");
    stage.etcd.restart(0).await.expect("back");
    let leader = stage.leader().await;
    assert_eq!(stage.settled(4).await, before);
    assert_eq!(stage.starts().len(), starts, "nothing was started again");

    stage.etcd.kill(0).expect("killed");
    let work: Vec<_> = names(4).iter().map(|name| stage.work(name)).collect();
    stage.eventually("nothing runs any more", async || work.iter().all(|pid| !is_alive(*pid)).then_some(())).await;
    for master in ["master-1", "master-2"] {
        stage
            .eventually("the masters say that they know nothing for certain", async || {
                stage.curl(master, "/readyz", &[]).starts_with("not ready").then_some(())
            })
            .await;
    }
    let refused = stage.curl("master-1", "/v1/resources/r1", &[]);
    assert!(refused.starts_with(r#"{"code":14,"#), "what may be stale is not told: {refused}");
    stage.etcd.restart(0).await.expect("back");
    stage.eventually("it runs again", async || names(4).iter().all(|name| is_alive(stage.work(name))).then_some(())).await;
    stage.settled(4).await;
    assert!(stage.cli(&leader, &["add", "later"]).status.success());
    stage.starts();
}

#[tokio::test]
async fn everything_can_be_cut_off_and_comes_back_as_it_was() {
    let (mut stage, before) = cluster(2, 4).await;
    let records = stage.etcdctl("/resources/");
    for name in ["worker-1", "worker-2", "master-1", "master-2"] {
        stage.cut(name).await;
    }
    stage.etcd.kill(0).expect("killed");
    stage.etcd.restart(0).await.expect("back");
    for name in ["worker-1", "worker-2", "master-1", "master-2"] {
        stage.spawn(name, &[]);
    }
    stage.ready(2).await;
    assert_eq!(stage.settled(4).await.len(), before.len());
    let id = |text: &str| -> Vec<String> {
        let records = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        records.map(|r| format!("{} {} {}", r["ID"], r["Name"], r["CreationTime"])).collect()
    };
    assert_eq!(id(&stage.etcdctl("/resources/")), id(&records));
    stage.eventually("all of it runs", async || names(4).iter().all(|name| is_alive(stage.work(name))).then_some(())).await;
    stage.starts();
}

//! Two figures, taken while the oracles look: how long a lost host's work is away, and how soon ten thousand resources are in order again
//! after a partition.

use std::{collections::BTreeSet, time::Duration};

use evenkeel_proto::v1::{ListRunningRequest, PlanRequest, worker_client::WorkerClient};

use super::{Shared, scenarios};
use crate::{
    field::{Field, Setup},
    links::Weather,
    oracle::What,
    work::boot_time,
};

scenarios! {
    long thirty_hosts_lost,
    long thirty_workers_cut_off,
    long ten_thousand_resources_and_their_worker_is_cut_off,
    long ten_thousand_resources_and_the_leader_is_cut_off,
    long ten_thousand_resources_and_all_are_cut_off,
}

const WORKERS: usize = 12;
const VICTIMS: usize = 5;
const ROUNDS: usize = 6;
/// From one loss to the next. All are gone before the work of the first can move, so that it does not move to one that is lost as well.
const BETWEEN: Duration = Duration::from_millis(400);

/// A worker that was lost, when, and what it ran.
struct Loss {
    worker: String,
    stamp: u64,
    ran: BTreeSet<String>,
}

/// What runs on a worker, by the log.
fn running_on(field: &Field, worker: &str) -> BTreeSet<String> {
    let mut running = BTreeSet::new();
    for line in field.log().iter().filter(|line| line.what == What::Start) {
        if line.worker == worker {
            running.insert(line.resource.clone());
        } else {
            running.remove(&line.resource);
        }
    }
    running
}

/// Loses five workers one after the other, six times, and measures each loss by the log: until all that it ran runs elsewhere.
async fn lost_in_turn(row: Shared, killed: bool) {
    let setup = Setup { workers: WORKERS, resources: 2 * WORKERS, callers: 0, ..Setup::default() };
    let mut field = Field::open(setup, &row).await;
    field.did(format!(
        "{} times a worker of {WORKERS} is lost ({}), five at a time, one every {BETWEEN:?}",
        ROUNDS * VICTIMS,
        if killed { "SIGKILL to guard, agent and work" } else { "cut off from etcd" }
    ));
    let mut spans = Vec::new();
    for _ in 0..ROUNDS {
        let mut losses = Vec::new();
        for victim in 1..=VICTIMS {
            let worker = format!("worker-{victim}");
            let ran = running_on(&field, &worker);
            let stamp = if killed {
                field.kill_host(&worker).await
            } else {
                field.weather(&worker, Weather::CUT);
                boot_time()
            };
            losses.push(Loss { worker, stamp, ran });
            field.span(BETWEEN).await;
        }
        for loss in losses.iter().filter(|loss| !loss.ran.is_empty()) {
            spans.push(field.stage.eventually("its work runs elsewhere", async || elsewhere_after(&field, loss)).await);
        }
        if killed {
            losses.iter().for_each(|loss| field.stage.spawn(&loss.worker, &[]));
        } else {
            field.links.clear();
        }
        field.stage.ready(WORKERS).await;
        field.until_settled(None).await;
        // Even again, so that each has something to lose.
        field.stage.eventually("the work is spread", async || field.calm().await).await;
    }
    spans.sort();
    let at = |share: usize| spans[(spans.len() * share).div_ceil(100).max(1) - 1].as_secs_f64();
    field.note(format!("{} losses: to running elsewhere p50 {:.2} s, p99 {:.2} s, least {:.2} s", spans.len(), at(50), at(99), at(0)));
    field.healed();
    field.judged().await;
}

/// How long it took until all that the worker ran had been started by another.
fn elsewhere_after(field: &Field, loss: &Loss) -> Option<Duration> {
    let log = field.log();
    let first = |name: &String| {
        let starts = log.iter().filter(|line| line.what == What::Start && line.resource == *name && line.worker != loss.worker);
        starts.filter(|line| line.stamp > loss.stamp).map(|line| line.stamp).min()
    };
    let last = loss.ran.iter().map(first).collect::<Option<Vec<u64>>>()?.into_iter().max()?;
    Some(Duration::from_nanos(last - loss.stamp))
}

async fn thirty_hosts_lost(row: Shared) {
    lost_in_turn(row, true).await;
}

async fn thirty_workers_cut_off(row: Shared) {
    lost_in_turn(row, false).await;
}

const MANY: usize = 10_000;
/// Longer than the authority of a worker and the wait of the leader together.
const PARTITION: Duration = Duration::from_secs(12);

/// A field with ten thousand more resources of kind `noop`, which run.
async fn with_many(row: &Shared, workers: usize) -> Field {
    let field = Field::open(Setup { workers, callers: 1, ..Setup::default() }, row).await;
    let many: Vec<_> = (0..MANY).map(|n| serde_json::json!({"name": format!("noop-{n}"), "kind": "noop"})).collect();
    let file = field.stage.path().join("many.json");
    std::fs::write(&file, serde_json::json!({ "resources": many }).to_string()).expect("written");
    let applied = field.stage.cli("master-1", &["apply", "-f", &file.display().to_string()]);
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    all_run(&field, workers).await;
    field
}

/// Waits until the workers themselves say that all of the many run, and no master has anything left to do about them.
async fn all_run(field: &Field, workers: usize) {
    field
        .stage
        .eventually("all of the many run", async || {
            let mut running = BTreeSet::new();
            for number in 1..=workers {
                let port = field.stage.process(&format!("worker-{number}")).grpc;
                let client = WorkerClient::connect(format!("http://127.0.0.1:{port}")).await.ok()?;
                let mut client = client.max_decoding_message_size(64 << 20);
                let answer = client.list_running(ListRunningRequest::default()).await.ok()?.into_inner();
                running.extend(answer.running.into_iter().filter(|r| r.kind == "noop" && r.phase == "running").map(|r| r.name));
            }
            (running.len() == MANY).then_some(())?;
            let plan = field.stage.any_master().await?.plan(PlanRequest::default()).await.ok()?.into_inner();
            plan.actions.iter().all(|action| !action.resource.starts_with("noop-")).then_some(())
        })
        .await;
}

async fn partition_of_many(row: Shared, what: &str, workers: usize, who: impl AsyncFn(&Field) -> Vec<String>) {
    let mut field = with_many(&row, workers).await;
    let names = who(&field).await;
    field.did(format!("{MANY} more resources of kind noop; nothing passes between {what} and etcd for {PARTITION:?}"));
    names.iter().for_each(|name| field.weather(name, Weather::CUT));
    field.span(PARTITION).await;
    field.links.clear();
    field.healed();
    let healed = boot_time();
    all_run(&field, workers).await;
    let span = Duration::from_nanos(boot_time() - healed);
    field.note(format!("all {MANY} ran, and nothing was left to do, {:.1} s after it was healed", span.as_secs_f64()));
    field.judged().await;
}

async fn ten_thousand_resources_and_their_worker_is_cut_off(row: Shared) {
    partition_of_many(row, "their only worker", 1, async |_| vec!["worker-1".to_owned()]).await;
}

async fn ten_thousand_resources_and_the_leader_is_cut_off(row: Shared) {
    partition_of_many(row, "the leader", 3, async |field| vec![field.stage.leader().await]).await;
}

async fn ten_thousand_resources_and_all_are_cut_off(row: Shared) {
    let all = ["master-1", "master-2", "worker-1", "worker-2", "worker-3"];
    partition_of_many(row, "all masters and workers", 3, async |_| all.map(str::to_owned).to_vec()).await;
}

//! Somebody writes within the masters' range faster than a watch can bring it: adds are answered all the same, and how far the watch is
//! behind can be seen.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use evenkeel_proto::v1::{AddResourceRequest, Resource, master_client::MasterClient};
use evenkeel_store::{Client, Config};
use futures::future::join_all;
use support::Stage;
use tokio::time::timeout;
use tonic::transport::Channel;

/// Connections on which somebody writes, and how many writes each has under way.
const CONNECTIONS: usize = 4;
const UNDER_WAY: usize = 64;
/// For how long.
const LOAD: Duration = Duration::from_secs(4);
/// An add has a loaded machine to itself with thousands of writes, so its answer takes longer than usual; it must come.
const ANSWER: Duration = Duration::from_secs(8);

async fn write(client: Client, writer: usize, ends: Arc<AtomicBool>, written: Arc<AtomicU64>) {
    let one = async |n: usize| {
        while !ends.load(Ordering::Relaxed) {
            client.put(format!("/status/nobody/x{writer}-{n}"), "load").await.expect("written");
            written.fetch_add(1, Ordering::Relaxed);
        }
    };
    join_all((0..UNDER_WAY).map(one)).await;
}

async fn add(mut master: MasterClient<Channel>, caller: usize, ends: Arc<AtomicBool>) -> usize {
    let mut added = 0;
    while !ends.load(Ordering::Relaxed) {
        let resource = Some(Resource { name: format!("{caller}-{added}"), ..Resource::default() });
        let answer = timeout(ANSWER, master.add_resource(AddResourceRequest { resource })).await.expect("an answer");
        assert!(answer.expect("added").into_inner().created);
        added += 1;
    }
    added
}

/// How many seconds the leader's watch is behind; none: the leader does not say.
fn lag(stage: &Stage) -> Option<f64> {
    let page = stage.curl("master-1", "/metrics", &[]);
    let line = page.lines().find_map(|line| line.strip_prefix("evenkeel_watch_lag_seconds "))?;
    Some(line.parse().unwrap_or_else(|_| panic!("not a number: {line:?}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn adds_are_answered_while_others_flood_the_watch_and_the_lag_is_shown() {
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    stage.workers(1).await;
    let (ends, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut writers = Vec::new();
    for writer in 0..CONNECTIONS {
        let client = Client::new(Config::new(stage.etcd.endpoints())).expect("a client");
        writers.push(tokio::spawn(write(client, writer, ends.clone(), written.clone())));
    }
    let mut callers = Vec::new();
    for caller in 0..2 {
        let master = stage.connect("master-1").await.expect("connected");
        callers.push(tokio::spawn(add(master, caller, ends.clone())));
    }
    let (begun, mut most) = (Instant::now(), Some(0.0_f64));
    while begun.elapsed() < LOAD {
        most = most.and_then(|most| Some(most.max(lag(&stage)?)));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ends.store(true, Ordering::Relaxed);
    join_all(writers).await.into_iter().for_each(|ended| ended.expect("written"));
    let added: usize = join_all(callers).await.into_iter().map(|added| added.expect("answered")).sum();
    let written = written.load(Ordering::Relaxed);
    assert!(added >= 4 && written > 4_000, "{added} adds beside {written} writes");
    let most = most.expect("the leader says how far its watch is behind");
    assert!((0.0..LOAD.as_secs_f64() + ANSWER.as_secs_f64()).contains(&most), "{most} seconds");
    stage.eventually("the watch has come as far as the leader", async || (lag(&stage) == Some(0.0)).then_some(())).await;
    stage.settled(added).await;
}

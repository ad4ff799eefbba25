//! Many callers at once, on real processes: all of them are answered, nobody is told that nothing is known, and a flood from streams starves
//! neither a single call nor an operator.

mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use evenkeel_proto::v1::{
    AddResourceRequest, AddResourcesRequest, DrainWorkerRequest, ReleaseBrakeRequest, Resource, UncordonWorkerRequest,
    master_client::MasterClient,
};
use futures::{StreamExt, future::join_all, stream};
use support::Stage;
use tonic::{Code, transport::Channel};

/// Connections that the callers share; one carries as many calls as the master lets it.
const CONNECTIONS: usize = 32;

fn named(name: String) -> Option<Resource> {
    Some(Resource { name, ..Resource::default() })
}

async fn connections(stage: &Stage) -> Vec<MasterClient<Channel>> {
    join_all((0..CONNECTIONS).map(async |_| stage.connect("master-1").await.expect("connected"))).await
}

/// How often each code was answered when so many callers add one name at once, with a message of it; the second number counts those who created
/// it.
async fn add_at_once(clients: &[MasterClient<Channel>], name: &str, callers: usize) -> (BTreeMap<i32, (usize, String)>, usize) {
    let calls = (0..callers).map(|n| {
        let mut client = clients[n % clients.len()].clone();
        let request = AddResourceRequest { resource: named(name.to_owned()) };
        tokio::spawn(async move { client.add_resource(request).await })
    });
    let mut codes = BTreeMap::new();
    let mut created = 0;
    for call in calls.collect::<Vec<_>>() {
        let answer = call.await.expect("no panic");
        created += usize::from(answer.as_ref().is_ok_and(|answer| answer.get_ref().created));
        let (code, message) = answer.err().map_or((0, String::new()), |status| (status.code() as i32, status.message().to_owned()));
        codes.entry(code).or_insert((0, message)).0 += 1;
    }
    (codes, created)
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_who_want_the_same_thing_are_all_answered() {
    let mut stage = Stage::start().await;
    // A machine that has too much to do for seconds may cost a leader its lease, and that is another matter.
    stage.masters(1, &["--master-lease", "60s"]).await;
    let clients = connections(&stage).await;
    let (codes, created) = add_at_once(&clients, "a", 2000).await;
    assert_eq!((codes, created), (BTreeMap::from([(0, (2000, String::new()))]), 1));
    let (codes, created) = add_at_once(&clients, "b", 9000).await;
    let answered: usize = codes.values().map(|(count, _)| count).sum();
    assert_eq!((answered, created), (9000, 1));
    let exhausted = Code::ResourceExhausted as i32;
    assert!(codes.keys().all(|code| *code == 0 || *code == exhausted), "{codes:?}");
}

/// Sends until it is told to end, as fast as it is let; counts what was answered.
async fn flood(mut client: MasterClient<Channel>, stream: usize, ends: Arc<AtomicBool>, answered: Arc<AtomicU64>) {
    let requests = stream::iter(0_u64..).take_while(move |_| futures::future::ready(!ends.load(Ordering::Relaxed)));
    let requests = requests.map(move |n| {
        // A stream keeps 64 KiB that are not read yet: few of these.
        let labels = (0..16).map(|n| (format!("label-{n}"), "x".repeat(250))).collect();
        let resource = Resource { name: format!("s{stream}.{}", n % 300), labels, ..Resource::default() };
        AddResourcesRequest { resource: Some(resource), ..AddResourcesRequest::default() }
    });
    let mut answers = client.add_resources(requests).await.expect("accepted").into_inner();
    while let Some(answer) = answers.message().await.expect("answered") {
        assert_eq!(answer.code, 0, "{}", answer.message);
        answered.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_starve_neither_a_single_caller_nor_an_operator() {
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    stage.workers(1).await;
    let (ends, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut floods = Vec::new();
    for stream in 0..7 {
        let client = stage.connect("master-1").await.expect("connected");
        floods.push(tokio::spawn(flood(client, stream, ends.clone(), answered.clone())));
    }
    stage.eventually("the streams are under way", async || (answered.load(Ordering::Relaxed) > 5000).then_some(())).await;
    let mut client = stage.connect("master-1").await.expect("connected");
    for n in 0..5 {
        let request = AddResourceRequest { resource: named(format!("one.{n}")) };
        assert!(client.add_resource(request).await.expect("added").into_inner().created);
    }
    let id = "worker-1".to_owned();
    let drained = client.drain_worker(DrainWorkerRequest { id: id.clone(), deadline_ms: None }).await.expect("drained").into_inner();
    assert!(drained.worker.is_some_and(|worker| worker.draining));
    client.release_brake(ReleaseBrakeRequest {}).await.expect("released");
    client.uncordon_worker(UncordonWorkerRequest { id }).await.expect("uncordoned");
    assert!(floods.iter().all(|flood| !flood.is_finished()), "the streams go on all the time");
    ends.store(true, Ordering::Relaxed);
    for flood in floods {
        flood.await.expect("every request was answered");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_carried_out_in_its_order() {
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    let mut client = stage.connect("master-1").await.expect("connected");
    let requests = (1..=200).map(|weight| AddResourcesRequest {
        resource: Some(Resource { name: "a".to_owned(), weight: Some(weight), ..Resource::default() }),
        replace: true,
        ..AddResourcesRequest::default()
    });
    let answers = client.add_resources(stream::iter(requests)).await.expect("accepted").into_inner();
    let outcomes: Vec<String> = answers.map(|answer| answer.expect("answered").outcome).collect().await;
    assert_eq!((outcomes[0].as_str(), outcomes.iter().filter(|outcome| *outcome == "changed").count()), ("created", 199));
    assert_eq!(stage.get("a").await.and_then(|state| state.resource).and_then(|resource| resource.weight), Some(200));
}

//! Readers see what etcd has committed and nothing else: while etcd is frozen, a call that has no answer yet shows nowhere.

mod support;

use std::time::{Duration, Instant};

use evenkeel_proto::v1::{
    AddResourceRequest, GetResourceRequest, ListResourcesRequest, ListWorkersRequest, Resource, WatchResourcesRequest,
    WatchResourcesResponse, master_client::MasterClient,
};
use support::Stage;
use tokio::sync::mpsc;
use tonic::{Code, Streaming, transport::Channel};

/// For how long etcd is frozen: shorter than any lease, and long enough for a leader that shows what it has only decided.
const FROZEN: Duration = Duration::from_millis(1_500);

/// Hands on what a watch tells until it ends.
async fn follow(mut watch: Streaming<WatchResourcesResponse>, told: mpsc::UnboundedSender<WatchResourcesResponse>) {
    while let Ok(Some(message)) = watch.message().await {
        if told.send(message).is_err() {
            return;
        }
    }
}

fn name_of(message: &WatchResourcesResponse) -> &str {
    message.resource.as_ref().and_then(|state| state.resource.as_ref()).map_or("", |resource| &resource.name)
}

/// What readers are shown of a name, or of its weight on a worker. None: they are told that nothing is certain.
async fn shown(master: &mut MasterClient<Channel>, name: &str, payload: u64) -> Option<Vec<String>> {
    let mut shown = Vec::new();
    match master.get_resource(GetResourceRequest { name: name.to_owned() }).await {
        Ok(found) => shown.push(format!("get: {:?}", found.into_inner().resource)),
        Err(refused) if refused.code() == Code::NotFound => {}
        Err(_) => return None,
    }
    let list = master.list_resources(ListResourcesRequest::default()).await.ok()?.into_inner().resources;
    if list.iter().any(|state| state.resource.as_ref().is_some_and(|resource| resource.name == name)) {
        shown.push("list".to_owned());
    }
    let workers = master.list_workers(ListWorkersRequest::default()).await.ok()?.into_inner().workers;
    let more = workers.iter().filter(|worker| worker.payload != payload);
    shown.extend(more.map(|worker| format!("{} with a payload of {}", worker.id, worker.payload)));
    Some(shown)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_committed_yet_is_shown_to_nobody() {
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    stage.workers(1).await;
    let mut master = stage.connect("master-1").await.expect("connected");
    let resource = |name: &str| Some(Resource { name: name.to_owned(), weight: Some(7), ..Resource::default() });
    master.add_resource(AddResourceRequest { resource: resource("before") }).await.expect("added");
    stage.settled(1).await;
    let watch = master.watch_resources(WatchResourcesRequest::default()).await.expect("watched").into_inner();
    let (sender, mut told) = mpsc::unbounded_channel();
    tokio::spawn(follow(watch, sender));
    while told.recv().await.expect("told").r#type != "SYNCED" {}

    stage.etcd.stop(0).expect("frozen");
    let mut caller = stage.connect("master-1").await.expect("connected");
    let hangs = tokio::spawn(async move { caller.add_resource(AddResourceRequest { resource: resource("hangs") }).await });
    let (frozen, mut looks) = (Instant::now(), 0);
    while frozen.elapsed() < FROZEN {
        if let Some(shown) = shown(&mut master, "hangs", 7).await {
            assert!(hangs.is_finished() || shown.is_empty(), "after {:?}: {shown:?}", frozen.elapsed());
            looks += 1;
        }
        let seen = told.try_recv().ok().filter(|message| name_of(message) == "hangs");
        assert_eq!(seen, None, "a watcher is told");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(looks > 0 && !hangs.is_finished(), "it was asked while the call had no answer");

    stage.etcd.cont(0).expect("goes on");
    // Its caller may be told that nothing is known; trying again is safe.
    let answer = hangs.await.expect("no panic");
    if answer.is_err() {
        stage.eventually("it is added", async || master.add_resource(AddResourceRequest { resource: resource("hangs") }).await.ok()).await;
    }
    assert_eq!(shown(&mut master, "hangs", 14).await.map(|shown| shown.len()), Some(2), "get and list show it, and its weight counts");
    while name_of(&told.recv().await.expect("told")) != "hangs" {}
}

/// That nobody leads by then says nothing of the try before.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_says_that_it_may_have_had_its_effect() {
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    stage.etcd.stop(0).expect("frozen");
    let refused = stage.cli("master-1", &["add", "hangs"]);
    stage.etcd.cont(0).expect("goes on");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("it is not known whether hangs was written"), "{said}");
}

//! The history, from outside: nothing that was acknowledged is missing from it, whatever becomes of the leader; a number stands for one
//! entry; and an entry says who asked.

mod support;

use std::{collections::BTreeMap, fs, time::Instant};

use evenkeel_proto::v1::{
    AddResourceRequest, DeleteResourceRequest, Event, ListEventsRequest, Resource, UpdateResourceRequest, master_client::MasterClient,
};
use nix::sys::signal::Signal;
use support::{PATIENCE, Stage};
use tonic::transport::Channel;

/// How often a leader is killed. Each costs a lease.
const ROUNDS: usize = 2;

fn resource(name: &str, label: &str) -> Option<Resource> {
    let labels = [("label".to_owned(), label.to_owned())].into();
    Some(Resource { name: name.to_owned(), labels, ..Resource::default() })
}

/// The whole history; none: nobody leads who could tell it.
async fn history(master: &mut MasterClient<Channel>) -> Option<Vec<Event>> {
    let request = ListEventsRequest { page_size: 5000, ..ListEventsRequest::default() };
    Some(master.list_events(request).await.ok()?.into_inner().events)
}

fn by_number(events: &[Event]) -> BTreeMap<i64, &Event> {
    events.iter().map(|event| (event.sequence, event)).collect()
}

/// Adds a resource, waits until the history tells of it if that is wanted, kills the leader at once, and looks at what its successor tells.
async fn kill_leaders_after_adds(is_read: bool) {
    let mut stage = Stage::start().await;
    stage.masters(2, &[]).await;
    let mut leader = stage.leader().await;
    for round in 0..ROUNDS {
        let other = if leader == "master-1" { "master-2" } else { "master-1" };
        let mut master = stage.connect(&leader).await.expect("connected");
        let name = format!("added-{round}");
        let mut before = Vec::new();
        master.add_resource(AddResourceRequest { resource: resource(&name, "a") }).await.expect("added");
        let asked = Instant::now();
        while is_read && !before.iter().any(|event: &Event| event.resource == name) {
            assert!(asked.elapsed() < PATIENCE, "the history lacks {name}: {before:?}");
            before = history(&mut master).await.expect("told");
        }
        stage.signal(&leader, Signal::SIGKILL);
        stage.ended(&leader).await;
        let after = stage.eventually("the other leads", async || history(&mut stage.connect(other).await.ok()?).await).await;
        stage.spawn(&leader, &[]);
        leader = other.to_owned();

        let entries: Vec<&Event> = after.iter().filter(|event| event.resource == name).collect();
        assert!(matches!(entries[..], [added] if added.r#type == "added"), "round {round}: {name} was acknowledged: {entries:?}");
        assert!(after.is_sorted_by(|one, next| one.sequence < next.sequence), "round {round}: {after:?}");
        let after = by_number(&after);
        for (number, event) in by_number(&before) {
            assert_eq!(after.get(&number), Some(&event), "round {round}: number {number} stood for this");
        }
        stage
            .eventually("both campaign", async || {
                let candidates = stage.client.list(&evenkeel_store::KeyRange::prefix("/election/")).await.ok()?.kvs.len();
                (candidates == 2).then_some(())
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_in_the_history_though_its_leader_was_killed_at_once() {
    kill_leaders_after_adds(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_has_read_in_the_history_stays_there_under_its_number() {
    kill_leaders_after_adds(true).await;
}

/// The entries of a resource so far: what was done, and who asked.
async fn told(stage: &Stage, name: &str) -> Vec<(String, String)> {
    let mut master = stage.connect("master-1").await.expect("connected");
    let events = history(&mut master).await.unwrap_or_default();
    let who = |reason: &str| reason.split(',').next().unwrap_or_default().to_owned();
    events.into_iter().filter(|event| event.resource == name).map(|event| (event.r#type, who(&event.reason))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_says_who_asked_and_not_who_keeps_the_resource() {
    let mut stage = Stage::start().await;
    let file = stage.path().join("resources.yaml");
    fs::write(&file, "resources:\n- {name: a}\n- {name: b}\n").expect("written");
    stage.masters(1, &["--resources", &file.display().to_string()]).await;
    stage.eventually("both are added", async || stage.get("b").await).await;
    let mut master = stage.connect("master-1").await.expect("connected");
    let changed = master.update_resource(UpdateResourceRequest { resource: resource("a", "by-the-api") }).await.expect("updated");
    assert!(changed.into_inner().changed);
    // The file puts its own back.
    let entries = stage.eventually("the file has changed it", async || Some(told(&stage, "a").await).filter(|told| told.len() == 3)).await;
    let wanted = [("added", "file"), ("changed", "api"), ("changed", "file")].map(|(what, who)| (what.to_owned(), who.to_owned()));
    assert_eq!(entries, wanted);

    fs::write(&file, "resources:\n- {name: a}\n- {name: b, labels: {label: by-the-file}}\n").expect("written");
    stage.eventually("it is changed", async || Some(told(&stage, "b").await).filter(|told| told.len() == 2)).await;
    let request = DeleteResourceRequest { name: "b".to_owned(), ..DeleteResourceRequest::default() };
    master.delete_resource(request).await.expect("deleted");
    let entries = stage.eventually("the file adds it again", async || Some(told(&stage, "b").await).filter(|told| told.len() == 4)).await;
    let wanted = [("added", "file"), ("changed", "file"), ("deleted", "api"), ("added", "file")];
    assert_eq!(entries, wanted.map(|(what, who)| (what.to_owned(), who.to_owned())));

    // What the API keeps, the API changes.
    master.add_resource(AddResourceRequest { resource: resource("c", "a") }).await.expect("added");
    master.update_resource(UpdateResourceRequest { resource: resource("c", "b") }).await.expect("updated");
    let entries = stage.eventually("both are told", async || Some(told(&stage, "c").await).filter(|told| told.len() == 2)).await;
    assert_eq!(entries, [("added", "api"), ("changed", "api")].map(|(what, who)| (what.to_owned(), who.to_owned())));
}

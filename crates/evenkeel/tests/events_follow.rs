//! `evenkeel events --follow` while leaders are killed, on real processes: everything that was acknowledged is told once, in order.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::{Child, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use evenkeel_proto::v1::{AddResourceRequest, Resource, master_client::MasterClient};
use support::{Stage, evenkeel};

/// A client command that ends with the test.
struct Follower(Child);

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Adds resource after resource by either master, and notes what was acknowledged. A try of which nothing is known counts as none.
async fn add(masters: Vec<String>, caller: usize, acknowledged: Arc<Mutex<BTreeSet<String>>>, ends: Arc<AtomicBool>) {
    for number in 0.. {
        if ends.load(Ordering::Relaxed) {
            return;
        }
        let name = format!("r{caller}.{number}");
        let Ok(mut client) = MasterClient::connect(masters[number % masters.len()].clone()).await else { continue };
        let resource = Some(Resource { name: name.clone(), ..Resource::default() });
        if client.add_resource(AddResourceRequest { resource }).await.is_ok() {
            acknowledged.lock().expect("no panic").insert(name);
        }
    }
}

/// The lines that a follower has written whole: number, type and resource.
fn followed(text: &str) -> Vec<(i64, String, String)> {
    let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let event = |line: &str| {
        let event: serde_json::Value = serde_json::from_str(line).expect("an event");
        let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
        (text("sequence").parse().expect("a number"), text("type"), text("resource"))
    };
    lines.map(event).collect()
}

/// Entries were lost with the leader that had not written them yet, and their numbers were given again.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_is_told_each_acknowledged_add_once_although_leaders_are_killed() {
    let mut stage = Stage::start().await;
    stage.masters(2, &[]).await;
    let masters: Vec<String> = ["master-1", "master-2"].map(|name| format!("http://127.0.0.1:{}", stage.process(name).grpc)).into();
    let file = stage.path().join("events");
    let out = fs::File::create(&file).expect("a file");
    let arguments = ["events", "--follow", "--output", "json", "--master", &masters.join(",")];
    let mut follower = Follower(evenkeel().args(arguments).stdin(Stdio::null()).stdout(out).spawn().expect("started"));
    let (acknowledged, ends) = (Arc::<Mutex<BTreeSet<String>>>::default(), Arc::<AtomicBool>::default());
    let callers: Vec<_> =
        (0..8).map(|caller| tokio::spawn(add(masters.clone(), caller, Arc::clone(&acknowledged), Arc::clone(&ends)))).collect();
    let count = || acknowledged.lock().expect("no panic").len();
    for _ in 0..3 {
        let before = count();
        stage.eventually("adds are acknowledged", async || (count() >= before + 200).then_some(())).await;
        let leader = stage.leader().await;
        stage.cut(&leader).await;
        stage.spawn(&leader, &[]);
        let before = count();
        stage.eventually("adds are acknowledged again", async || (count() >= before + 50).then_some(())).await;
    }
    ends.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.expect("no panic");
    }
    let acknowledged = acknowledged.lock().expect("no panic").clone();
    let text = || fs::read_to_string(&file).expect("read");
    let told = |text: &str| -> BTreeMap<String, usize> {
        let mut told = BTreeMap::new();
        for (_, kind, resource) in followed(text) {
            if kind == "added" {
                *told.entry(resource).or_default() += 1;
            }
        }
        told
    };
    // An add that comes last is told last.
    let mut client = stage.any_master().await.expect("a master");
    let last = Some(Resource { name: "last".to_owned(), ..Resource::default() });
    client.add_resource(AddResourceRequest { resource: last }).await.expect("added");
    stage.eventually("the last is told", async || told(&text()).contains_key("last").then_some(())).await;
    assert!(follower.0.try_wait().expect("waited").is_none(), "it goes on");
    let (text, told) = (text(), told(&text()));
    let missing: Vec<_> = acknowledged.iter().filter(|name| !told.contains_key(*name)).collect();
    let repeated: Vec<_> = told.iter().filter(|(_, times)| **times != 1).collect();
    assert!(missing.is_empty() && repeated.is_empty(), "of {}: lost {missing:?}, repeated {repeated:?}", acknowledged.len());
    let numbers: Vec<i64> = followed(&text).into_iter().map(|(number, ..)| number).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "the numbers grow");
}

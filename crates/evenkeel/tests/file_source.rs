//! The file of resources as a source, on real processes: nothing is deleted by a file that is missing, broken, empty or half, and exactly
//! what a person has seen goes when it is released.

mod support;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use evenkeel_proto::v1::{AddResourcesRequest, Resource};
use nix::sys::signal::Signal;
use serde_json::Value;
use support::Stage;

const COUNT: usize = 20;

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("r{n:02}")).collect()
}

/// A file of resources that nobody needs to run.
fn write(path: &Path, names: &[String]) {
    let entries: Vec<String> = names.iter().map(|name| format!("- name: {name}\n")).collect();
    fs::write(path, format!("resources:\n{}", entries.concat())).expect("written");
}

/// `evenkeel source get file -o json`, when it can be had.
fn source(stage: &Stage, master: &str) -> Option<Value> {
    let output = stage.cli(master, &["source", "get", "file", "-o", "json"]);
    serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success())
}

async fn source_is(stage: &Stage, master: &str, state: &str) -> Value {
    stage.eventually(state, async || source(stage, master).filter(|source| source["state"] == state)).await
}

async fn standing(stage: &Stage) -> usize {
    stage.client.list(&evenkeel_store::KeyRange::prefix("/resources/")).await.expect("listed").kvs.len()
}

/// For how long a file must have said the same before what it lacks is deleted, and a little more.
const SETTLED: Duration = Duration::from_millis(2500);

/// Turns have passed for so long that what they would have deleted would be gone: each is one more reading of the same file.
async fn turns_pass(stage: &Stage, master: &str) {
    let began = Instant::now();
    stage
        .eventually("the file has been read for long enough", async || {
            stage.cli(master, &["source", "sync", "file"]);
            (began.elapsed() > SETTLED).then_some(())
        })
        .await;
}

#[tokio::test]
async fn a_new_leader_whose_file_is_missing_or_broken_deletes_nothing() {
    for (case, content) in [("missing", None), ("broken", Some("resources: [{name: a b}]")), ("cut", Some("resources:\n- name: r00\n- na"))]
    {
        let mut stage = Stage::start().await;
        let (mine, theirs) = (stage.path().join("one.yaml"), stage.path().join("two.yaml"));
        write(&mine, &names(COUNT));
        write(&theirs, &names(COUNT));
        stage.spawn("master-1", &["--resources", &mine.display().to_string()]);
        stage.eventually("the first leads", async || (stage.leader().await == "master-1").then_some(())).await;
        stage.spawn("master-2", &["--resources", &theirs.display().to_string()]);
        stage.eventually("all are added", async || (standing(&stage).await == COUNT).then_some(())).await;
        stage
            .eventually("the second campaigns", async || {
                (stage.client.list(&evenkeel_store::KeyRange::prefix("/election/")).await.ok()?.kvs.len() == 2).then_some(())
            })
            .await;
        match content {
            None => fs::remove_file(&theirs).expect("removed"),
            Some(content) => fs::write(&theirs, content).expect("written"),
        }
        stage.signal("master-1", Signal::SIGKILL);
        let failing = source_is(&stage, "master-2", "failing").await;
        turns_pass(&stage, "master-2").await;
        assert_eq!(standing(&stage).await, COUNT, "{case}: {failing}");
        assert!(failing["reason"].as_str().is_some_and(|reason| reason.contains("two.yaml")), "{case}: {failing}");
        assert!(stage.logs().contains("nothing of it is added, changed or deleted"), "{case}: {}", stage.logs());
        // Mended, it is followed, and nothing has changed.
        write(&theirs, &names(COUNT));
        let ok = source_is(&stage, "master-2", "ok").await;
        assert_eq!((ok["records"].as_u64(), ok["present"].as_u64()), (Some(20), Some(20)), "{case}: {ok}");
        assert_eq!(standing(&stage).await, COUNT, "{case}");
    }
}

#[tokio::test]
async fn what_a_file_lacks_beyond_the_limit_waits_for_its_release() {
    let mut stage = Stage::start().await;
    let file = stage.path().join("resources.yaml");
    write(&file, &names(COUNT));
    stage.masters(1, &["--resources", &file.display().to_string()]).await;
    stage.eventually("all are added", async || (standing(&stage).await == COUNT).then_some(())).await;

    // Empty, and half: both are whole YAML.
    for (content, held) in [("resources: []\n".to_owned(), 20), ("resources:\n- {name: r00}\n- {name: r01}\n".to_owned(), 18)] {
        fs::write(&file, content).expect("written");
        let shown =
            stage.eventually("it is held", async || source(&stage, "master-1").filter(|s| s["state"] == "held" && s["held"] == held)).await;
        assert_eq!((&shown["delete"]["wanted"], &shown["delete"]["done"]), (&Value::from(held), &Value::from(0)), "{shown}");
        turns_pass(&stage, "master-1").await;
        assert_eq!(standing(&stage).await, COUNT);
    }
    let half = source(&stage, "master-1").expect("shown");

    // Another digest, or no digest at all, releases nothing.
    for (digest, says) in [("0123456789abcdef", "other deletes are held now: 18 of them"), ("many", "digest: invalid \"many\"")] {
        let refused = stage.cli("master-1", &["source", "release", "file", digest]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(1) && said.contains(says), "{said}");
    }
    // What is added meanwhile is added, and the release is then for another set than was shown.
    fs::write(&file, "resources:\n- {name: r00}\n- {name: r01}\n- {name: r02}\n- {name: new}\n").expect("written");
    stage.eventually("the new one is added", async || (standing(&stage).await == COUNT + 1).then_some(())).await;
    let digest = half["digest"].as_str().expect("a digest").to_owned();
    assert_eq!(stage.cli("master-1", &["source", "release", "file", &digest]).status.code(), Some(1));
    assert_eq!(standing(&stage).await, COUNT + 1);

    let held = source_is(&stage, "master-1", "held").await;
    let released = stage.cli("master-1", &["source", "release", "file", held["digest"].as_str().expect("a digest"), "-o", "json"]);
    let released: Value = serde_json::from_slice(&released.stdout).expect("json");
    assert_eq!((&released["delete"]["wanted"], &released["delete"]["done"]), (&Value::from(17), &Value::from(17)), "{released}");
    assert_eq!(standing(&stage).await, 4);
    // It was for once.
    let again = stage.cli("master-1", &["source", "release", "file", held["digest"].as_str().expect("a digest")]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("holds nothing"), "{}", String::from_utf8_lossy(&again.stderr));

    // A part within the limit goes by itself.
    write(&file, &["r00".to_owned(), "r01".to_owned()]);
    stage.eventually("two are deleted", async || (standing(&stage).await == 2).then_some(())).await;
    assert!(stage.curl("master-1", "/v1/sources", &[]).contains("\"state\":\"ok\""));
}

/// Read again at once, because somebody asks for it, a file that is being written confirms nothing.
#[tokio::test]
async fn who_asks_for_a_turn_does_not_hasten_a_delete() {
    let mut stage = Stage::start().await;
    let file = stage.path().join("resources.yaml");
    write(&file, &names(COUNT));
    stage.masters(1, &["--resources", &file.display().to_string()]).await;
    stage.eventually("all are added", async || (standing(&stage).await == COUNT).then_some(())).await;
    // Within the limit, so it would go by itself. Two readings and the look at what there is are over long before it may.
    write(&file, &names(COUNT - 3));
    let written = Instant::now();
    for _ in 0..2 {
        stage.cli("master-1", &["source", "sync", "file"]);
    }
    let left = standing(&stage).await;
    assert!(left == COUNT || written.elapsed() > Duration::from_millis(1500), "{left} are left after {:?}", written.elapsed());
    stage.eventually("they are deleted in their time", async || (standing(&stage).await == COUNT - 3).then_some(())).await;
}

/// The source of a resource is the door by which it came, whatever a caller says.
#[tokio::test]
async fn a_caller_cannot_hand_a_resource_to_the_file() {
    let mut stage = Stage::start().await;
    let file = stage.path().join("resources.yaml");
    write(&file, &names(3));
    stage.masters(1, &["--resources", &file.display().to_string()]).await;
    stage.eventually("all are added", async || (standing(&stage).await == 3).then_some(())).await;
    let mut client = stage.connect("master-1").await.expect("connected");
    #[allow(deprecated, reason = "the field that callers must not use")]
    let request = AddResourcesRequest {
        resource: Some(Resource { name: "mine".to_owned(), ..Resource::default() }),
        source: "file".to_owned(),
        ..AddResourcesRequest::default()
    };
    client.add_resources(futures::stream::iter([request])).await.expect("answered").into_inner().message().await.expect("an answer");
    assert_eq!(stage.get("mine").await.expect("it is there").source, "api");
    turns_pass(&stage, "master-1").await;
    assert_eq!(standing(&stage).await, 4);
    // Nor can the file take what the API has.
    write(&file, &["r00".to_owned(), "r01".to_owned(), "r02".to_owned(), "mine".to_owned()]);
    stage.eventually("the conflict is shown", async || source(&stage, "master-1").filter(|s| s["conflict"] == 1)).await;
    assert_eq!(stage.get("mine").await.expect("it is there").source, "api");
    write(&file, &names(3));
    stage.eventually("the conflict is gone", async || source(&stage, "master-1").filter(|s| s["conflict"] == 0)).await;
    turns_pass(&stage, "master-1").await;
    assert_eq!(standing(&stage).await, 4);
}

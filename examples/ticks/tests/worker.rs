//! The example as it is started: guard and agent, its settings from the environment, its kind among those of the worker. And the guide shows it.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use evenkeel_local_etcd::{LocalCluster, LocalOptions};
use evenkeel_model::{Admission, Assignment, Hash, Holds, Phase, Registration, ResourceName, Selector, Session, Spec, WorkerId};
use evenkeel_store::{Client, Config, keys::Keys};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

const DEADLINE: Duration = Duration::from_secs(30);

async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(begun.elapsed() < DEADLINE, "{what} does not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn worker() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ticks-worker"));
    command.env_clear().stdin(Stdio::null());
    command
}

/// Ends with its test, and all of its work with it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn it_registers_runs_what_it_is_assigned_and_leaves() {
    let folder = tempfile::tempdir().expect("folder");
    let options = LocalOptions { no_fsync: true, ..LocalOptions::new(folder.path().join("etcd")) };
    let etcd = LocalCluster::start(options).await.expect("etcd");
    let client = Client::new(Config::new(etcd.endpoints())).expect("client");
    let (keys, id, data) = (Keys::new(""), WorkerId::new("ticks-example").expect("id"), folder.path().join("data"));
    let environment = [
        ("EVENKEEL_ID", id.as_str().to_owned()),
        ("EVENKEEL_ETCD", etcd.endpoints().join(",")),
        ("EVENKEEL_HTTP", ":0".to_owned()),
        ("EVENKEEL_GRPC", ":0".to_owned()),
        ("EVENKEEL_DATA_DIR", data.display().to_string()),
    ];
    let mut guard = Running(worker().envs(environment).spawn().expect("started"));

    let (session, registration) = eventually("a registration", async || {
        let kv = client.get(keys.worker(&id).as_bytes()).await.expect("read").kv?;
        Some((Session(kv.created.0), serde_json::from_slice::<Registration>(&kv.value).expect("registration")))
    })
    .await;
    assert_eq!(registration.kinds, ["noop", "process", "ticks"]);
    let admission = Admission { session, authority_ms: None, origin: registration.origin };
    client.put(keys.admission(&id), serde_json::to_vec(&admission).expect("json")).await.expect("admitted");
    let spec = Spec::from_value(json!({"says": "tick", "every_ms": 10})).expect("spec");
    let (hash, name) = (Hash::of("ticks", &spec), ResourceName::new("a").expect("name"));
    let assignment = Assignment { kind: "ticks".to_owned(), hash, spec, require: Selector::EMPTY, holds: Holds::Strict, phase: Phase::Run };
    let epoch = client.put(keys.assignment(&id, &name), serde_json::to_vec(&assignment).expect("json")).await.expect("assigned");
    let log = data.join("logs/a/out.log");
    let expected = format!("tick (tick 2 of epoch {})\n", epoch.0);
    eventually("its ticks", async || std::fs::read_to_string(&log).ok().filter(|text| text.contains(&expected))).await;

    kill(Pid::from_raw(guard.0.id().cast_signed()), Signal::SIGTERM).expect("told to leave");
    let status = eventually("its end", async || guard.0.try_wait().expect("waited")).await;
    assert_eq!(status.code(), Some(0));
}

#[test]
fn without_an_id_it_says_what_to_give() {
    let output = worker().output().expect("run");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        (output.status.code(), said.as_str()),
        (Some(2), "error: EVENKEEL_ID: is missing; give this worker an id of its own, such as worker-1\n")
    );
}

/// What a reader of the guide copies is what is built and tried here.
#[test]
fn the_guide_shows_this_very_example() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let guide = read("docs/drivers.md");
    for path in ["examples/ticks/src/main.rs", "examples/ticks/resources.yaml"] {
        assert!(guide.contains(read(path).trim_end()), "docs/drivers.md does not show {path} as it is");
    }
}

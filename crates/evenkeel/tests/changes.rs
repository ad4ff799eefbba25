//! Changes of what runs, from a resource file to the process: what is taken in place keeps its process and its epoch, and what is not is started
//! anew, once.

mod support;

use std::path::PathBuf;

use evenkeel_proto::v1::ResourceState;
use serde_json::{Value, json};
use support::Stage;

const MASTER: &str = "master-1";

struct Changed {
    stage: Stage,
    file: PathBuf,
}

impl Changed {
    /// A cluster of one worker that runs this.
    async fn running(spec: &Value) -> Self {
        let mut stage = Stage::start().await;
        stage.masters(1, &[]).await;
        stage.workers(1).await;
        let file = stage.path().join("resources.json");
        let changed = Self { stage, file };
        changed.apply(spec, &[]);
        changed.state("it runs", |state| state.phase == "running").await;
        changed
    }

    /// Applies the resource with this spec; what is said.
    fn apply(&self, spec: &Value, flags: &[&str]) -> String {
        let text = json!({"resources": [{"name": "a", "kind": "process", "spec": spec}]}).to_string();
        std::fs::write(&self.file, text).expect("written");
        let output = self.stage.cli(MASTER, &[&["apply", "-f", self.file.to_str().expect("utf-8")], flags].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("utf-8")
    }

    async fn state(&self, what: &str, is_it: impl Fn(&ResourceState) -> bool) -> ResourceState {
        self.stage.eventually(what, async || self.stage.get("a").await.filter(|state| is_it(state))).await
    }

    /// What is reported of the resource in etcd.
    async fn status(&self) -> Value {
        let status = self.stage.etcdctl("/status/");
        serde_json::from_str(status.lines().nth(1).expect("a status")).expect("JSON")
    }
}

fn spec(stage: &std::path::Path, script: &str) -> Value {
    json!({"command": ["sh", "-c", format!("echo $$ > pid; {script}")], "cwd": stage.to_str().expect("utf-8")})
}

#[tokio::test(flavor = "multi_thread")]
async fn how_a_process_is_stopped_is_changed_under_its_epoch_and_what_it_is_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = spec(folder.path(), "exec sleep 300");
    let changed = Changed::running(&first).await;
    let pid = || std::fs::read_to_string(folder.path().join("pid")).expect("a pid");
    let before = (changed.status().await, pid());
    let mut graceful = first.clone();
    graceful["stop_grace"] = json!("3s");
    assert_eq!(changed.apply(&graceful, &["--dry-run"]).lines().nth(1), Some("~ a (spec; taken in place)"));
    changed.apply(&graceful, &[]);
    changed.stage.eventually("it is taken", async || (changed.status().await["Hash"] != before.0["Hash"]).then_some(())).await;
    let after = changed.status().await;
    assert_eq!((&after["Epoch"], &after["Phase"], pid()), (&before.0["Epoch"], &json!("running"), before.1.clone()));
    let events = changed.stage.cli(MASTER, &["events"]);
    let events = String::from_utf8_lossy(&events.stdout).into_owned();
    assert!(events.contains("updated"), "{events}");

    let other = spec(folder.path(), "exec sleep 301");
    assert_eq!(changed.apply(&other, &["--dry-run"]).lines().nth(1), Some("~ a (spec; restarts it)"));
    changed.apply(&other, &[]);
    changed
        .stage
        .eventually("it is started anew", async || {
            let status = changed.stage.etcdctl("/status/");
            let status: Value = serde_json::from_str(status.lines().nth(1)?).ok()?;
            (status["Epoch"] != before.0["Epoch"] && status["Phase"] == "running").then_some(())
        })
        .await;
    assert_ne!(pid(), before.1);
}

/// What a driver could take is not taken while nothing runs: a process that has ended for good is started anew, with another epoch.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_finished_is_run_again_when_it_is_changed_however_little() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut once = spec(folder.path(), "echo run >> runs");
    once["restart"] = json!("never");
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    stage.workers(1).await;
    let file = stage.path().join("resources.json");
    let changed = Changed { stage, file };
    changed.apply(&once, &[]);
    let runs = || std::fs::read_to_string(folder.path().join("runs")).unwrap_or_default().lines().count();
    changed.state("it has finished", |state| state.phase == "exited").await;
    assert_eq!(runs(), 1);
    once["stop_grace"] = json!("3s");
    assert_eq!(changed.apply(&once, &["--dry-run"]).lines().nth(1), Some("~ a (spec; restarts it)"));
    changed.apply(&once, &[]);
    changed.stage.eventually("it runs again", async || (runs() == 2).then_some(())).await;
    changed.state("it has finished again", |state| state.phase == "exited").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_loose_wherever_it_runs_is_not_exclusive() {
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    stage.workers(1).await;
    let refused = stage.cli(MASTER, &["add", "targets", "--kind", "scrape"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("kind scrape cannot be held exclusively; say ownership: available"), "{said}");
}

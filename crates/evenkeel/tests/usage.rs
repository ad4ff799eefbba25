//! What people look at every day, on real processes: what work uses, and what a file that spells the same otherwise would change.

mod support;

use std::fs;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use support::Stage;

/// The cells of a row of a table, by the first of them.
fn row(text: &str, first: &str) -> Vec<String> {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(first));
    line.unwrap_or_else(|| panic!("no {first} in:\n{text}")).split_whitespace().map(str::to_owned).collect()
}

fn said(stage: &Stage, arguments: &[&str]) -> (String, String) {
    let output = stage.cli("master-1", arguments);
    let (out, err) = (String::from_utf8(output.stdout).expect("text"), String::from_utf8(output.stderr).expect("text"));
    assert!(output.status.success(), "{arguments:?}: {out}{err}");
    (out, err)
}

/// Two shells with a child each, and a resource without any process.
#[tokio::test]
async fn what_work_uses_is_shown_for_each_resource_and_worker_and_a_worker_that_hangs_is_named() {
    let mut stage = Stage::start().await;
    stage.masters(2, &[]).await;
    stage.workers(2).await;
    let file = stage.path().join("work.yaml");
    let shell = |name: &str, worker: &str| {
        format!(
            "- {{name: {name}, kind: process, pin: {worker}, spec: {{command: [sh, -c, 'i=0; while [ $i -lt 500000 ]; do i=$((i+1)); done; sleep 1000; true']}}}}\n"
        )
    };
    fs::write(&file, format!("{}{}- {{name: held, kind: noop, pin: worker-1}}\n", shell("a", "worker-1"), shell("b", "worker-2")))
        .expect("a file");
    said(&stage, &["apply", "-f", &file.display().to_string()]);
    stage.settled(3).await;
    // Both have begun their second process.
    let wide = stage
        .eventually("two processes of each", async || {
            let (text, _) = said(&stage, &["get", "-o", "wide"]);
            ["a", "b"].iter().all(|name| row(&text, name).last().map(String::as_str) == Some("2")).then_some(text)
        })
        .await;
    let headers: Vec<&str> = wide.lines().next().expect("headers").split_whitespace().collect();
    assert_eq!(headers, ["NAME", "KIND", "WEIGHT", "WORKER", "PHASE", "RESTARTS", "AGE", "CPU", "MEMORY", "PROCESSES"]);
    assert!(row(&wide, "a")[8].ends_with("iB") && row(&wide, "a")[7] != "0.0s", "{wide}");
    assert_eq!(row(&wide, "held")[7..], ["-", "-", "-"].map(str::to_owned));
    assert_eq!(row(&said(&stage, &["get", "b", "-o", "wide"]).0, "b")[9], "2");
    assert!(!said(&stage, &["get"]).0.contains("MEMORY"));

    let used: Value = serde_json::from_str(&stage.curl("master-2", "/v1/usage?name=a", &[])).expect("json");
    assert_eq!(
        (&used["workers"][0]["worker"], &used["workers"][0]["resources"][0]["processes"]),
        (&"worker-1".into(), &2.into()),
        "{used}"
    );

    let agent = stage.agent("worker-2").await;
    kill(agent, Signal::SIGSTOP).expect("it lives");
    let (workers, why) = said(&stage, &["workers", "-o", "wide"]);
    kill(agent, Signal::SIGCONT).expect("it lives");
    assert!(why.contains("worker-2: what it uses is not known: worker-2 at "), "{why}");
    let processes = workers.lines().next().expect("headers").split_whitespace().position(|header| header == "PROCESSES").expect("a column");
    assert_eq!((row(&workers, "worker-1")[processes].as_str(), row(&workers, "worker-2")[processes].as_str()), ("2", "-"), "{workers}");
}

/// It restarted the work.
#[tokio::test]
async fn a_file_that_spells_out_defaults_changes_nothing_and_the_dry_run_says_what_restarts() {
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    stage.workers(1).await;
    let file = stage.path().join("work.yaml");
    let path = file.display().to_string();
    let write = |text: &str| fs::write(&file, text).expect("a file");
    write("- {name: a, kind: process, spec: {command: [sleep, '1000'], stop_grace: 3s}}\n");
    said(&stage, &["apply", "-f", &path]);
    let before = stage.settled(1).await;

    let spelled = "spec: {command: [sleep, '1000'], stop_grace: 3000ms, restart: always, env: {}, stop_signal: SIGTERM}";
    write(&format!("- {{name: a, kind: process, weight: 1, labels: {{}}, ownership: exclusive, {spelled}}}\n"));
    let nothing = "to add 0, to change 0, to delete 0, unchanged 1\n";
    assert_eq!(said(&stage, &["apply", "-f", &path, "--dry-run"]).0, nothing);
    assert!(said(&stage, &["apply", "-f", &path]).0.starts_with(nothing));

    write(&format!("- {{name: a, kind: process, weight: 2, {spelled}}}\n"));
    assert_eq!(said(&stage, &["apply", "-f", &path, "--dry-run"]).0, "to add 0, to change 1, to delete 0, unchanged 0\n~ a (weight)\n");
    said(&stage, &["apply", "-f", &path]);

    write(&format!("- {{name: a, kind: process, weight: 2, {}}}\n", spelled.replace("'1000'", "'1001'")));
    let (text, _) = said(&stage, &["apply", "-f", &path, "--dry-run"]);
    assert_eq!(text, "to add 0, to change 1, to delete 0, unchanged 0\n~ a (spec; restarts it)\n");
    let json: Value = serde_json::from_str(&said(&stage, &["apply", "-f", &path, "--dry-run", "-o", "json"]).0).expect("json");
    assert_eq!(json["change"], serde_json::json!([{"name": "a", "fields": ["spec"], "restarts": true, "in_place": false}]));
    assert_eq!(stage.settled(1).await, before, "the same assignment all along");

    said(&stage, &["apply", "-f", &path]);
    let epoch = before["a"].epoch;
    stage.eventually("it is started again", async || stage.assignments().await.get("a").filter(|a| a.epoch != epoch).cloned()).await;
}

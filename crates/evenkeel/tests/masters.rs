//! Client commands against real masters: what one of them does that hangs, and what is said on the way.

mod support;

use std::{
    fs,
    net::TcpListener,
    process::{Output, Stdio},
};

use nix::sys::signal::Signal;
use support::{Stage, evenkeel};

/// Takes connections as far as the kernel does, and never answers.
fn hanging() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    (listener, url)
}

fn url(stage: &Stage, master: &str) -> String {
    format!("http://127.0.0.1:{}", stage.process(master).grpc)
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn every_command_is_answered_although_the_first_master_hangs() {
    let mut stage = Stage::start().await;
    let source = stage.path().join("source.yaml");
    fs::write(&source, "resources: [{name: s}]").expect("written");
    stage.masters(1, &["--resources", &source.display().to_string()]).await;
    stage.workers(1).await;
    let (_listener, hangs) = hanging();
    let masters = format!("{hangs},{}", url(&stage, "master-1"));
    let file = stage.path().join("more.yaml");
    fs::write(&file, "resources: [{name: b}, {name: c}]").expect("written");
    let file = file.display().to_string();
    let commands: [&[&str]; 10] = [
        &["add", "a", "--", "echo", "said"],
        &["apply", "-f", &file],
        &["get"],
        &["events"],
        &["plan"],
        &["cordon", "worker-1"],
        &["brake", "release"],
        &["source", "sync", "file"],
        &["source", "get", "file"],
        &["delete", "b", "c"],
    ];
    for arguments in commands {
        let output = evenkeel().env("EVENKEEL_MASTER", &masters).args(arguments).stdin(Stdio::null()).output().expect("run");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output));
    }
    stage
        .eventually("its output is read", async || {
            let output = evenkeel().args(["logs", "a", "--master", &masters]).output().expect("run");
            (output.stdout.starts_with(b"said\n")).then_some(())
        })
        .await;
    let missing = evenkeel().args(["delete", "none", "--master", &url(&stage, "master-1")]).output().expect("run");
    assert_eq!((missing.status.code(), text(&missing).as_str()), (Some(1), "error: none: no such resource\n"));
}

#[tokio::test]
async fn streams_leave_a_master_that_is_frozen() {
    let mut stage = Stage::start().await;
    stage.masters(2, &[]).await;
    stage.workers(1).await;
    let leader = stage.leader().await;
    let standby = if leader == "master-1" { "master-2" } else { "master-1" };
    let masters = format!("{},{}", url(&stage, standby), url(&stage, &leader));
    let follow = |arguments: &[&str], file: &str| {
        let out = fs::File::create(stage.path().join(file)).expect("a file");
        evenkeel().args(arguments).args(["--master", &masters]).stdin(Stdio::null()).stdout(out).spawn().expect("started")
    };
    let ticking = ["add", "before", "--", "sh", "-c", "while :; do date +%s%N; sleep 0.1; done"];
    assert!(evenkeel().env("EVENKEEL_MASTER", &masters).args(ticking).output().expect("run").status.success());
    stage.settled(1).await;
    let mut followers =
        [follow(&["get", "--watch"], "watch"), follow(&["events", "--follow"], "events"), follow(&["logs", "before", "--follow"], "logs")];
    let shows = |file: &str, what: &str| fs::read_to_string(stage.path().join(file)).is_ok_and(|text| text.contains(what)).then_some(());
    stage.eventually("the list is there", async || shows("watch", "before")).await;
    stage.eventually("the events are there", async || shows("events", "before")).await;
    stage.eventually("the output is there", async || shows("logs", "\n")).await;

    stage.signal(standby, Signal::SIGSTOP);
    assert!(stage.cli(&leader, &["add", "after"]).status.success());
    let later = fs::read_to_string(stage.path().join("logs")).expect("read").len();
    stage.eventually("the watch goes on", async || shows("watch", "after")).await;
    stage.eventually("the events go on", async || shows("events", "after")).await;
    let longer = |text: String| text.len() > later + 1_000;
    stage.eventually("the output goes on", async || fs::read_to_string(stage.path().join("logs")).is_ok_and(longer).then_some(())).await;
    for follower in &mut followers {
        assert!(follower.try_wait().expect("waited").is_none(), "none of them has ended");
        follower.kill().expect("killed");
        follower.wait().expect("waited");
    }
    stage.signal(standby, Signal::SIGCONT);
}

#[tokio::test]
async fn flags_after_the_dashes_are_warned_of_and_passed_on() {
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    stage.workers(1).await;
    let master = url(&stage, "master-1");
    let run = |arguments: &[&str]| evenkeel().env("EVENKEEL_MASTER", &master).args(arguments).output().expect("run");
    let (plain, flagged) = (run(&["add", "a", "--", "sleep", "300"]), run(&["add", "b", "--", "sleep", "300", "--weight", "3", "--pin=w"]));
    let replaced = String::from_utf8_lossy(&plain.stdout).replacen('a', "b", 1);
    assert_eq!((flagged.status.code(), String::from_utf8_lossy(&flagged.stdout)), (Some(0), replaced.into()));
    let warning = "warning: --weight, --pin=w stand after -- and are passed to the command; put them before -- to give them to evenkeel\n";
    assert_eq!((String::from_utf8_lossy(&plain.stderr), String::from_utf8_lossy(&flagged.stderr)), ("".into(), warning.into()));
    let resource = stage.get("b").await.and_then(|state| state.resource).expect("stored");
    assert_eq!(resource.weight, Some(1));
    let planned = run(&["plan", "add", "c", "--", "sleep", "300", "--spread", "zone"]);
    assert_eq!(planned.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&planned.stderr).starts_with("warning: --spread stands after -- and is passed"), "{}", text(&planned));
}

#[tokio::test]
async fn the_http_port_of_a_master_is_called_one() {
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    let http = format!("http://127.0.0.1:{}", stage.process("master-1").http);
    let output = evenkeel().args(["get", "--master", &http]).output().expect("run");
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let grpc = stage.process("master-1").grpc;
    assert!(text.contains(&format!("this port speaks HTTP and JSON; gRPC is served at 127.0.0.1:{grpc}")), "{text}");
}

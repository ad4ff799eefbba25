//! A worker as others see it: its servers, its logs, its refusals, and its leaving.

mod support;

use std::fs;

use evenkeel_model::{Observed, Session};
use evenkeel_proto::v1::{ListRunningRequest, LogsRequest, worker_client::WorkerClient};
use nix::sys::signal::Signal;
use serde_json::json;
use support::{Testbed, dead, eventually, http_get};
use tonic::{Code, transport::Channel};

async fn connect(address: &str) -> WorkerClient<Channel> {
    WorkerClient::connect(format!("http://{address}")).await.expect("connected")
}

async fn logs(client: &mut WorkerClient<Channel>, name: &str, follow: bool, tail: u32) -> String {
    let request = LogsRequest { name: name.to_owned(), follow, tail, ..LogsRequest::default() };
    let mut stream = client.logs(request).await.expect("logs").into_inner();
    let mut all = Vec::new();
    while let Some(message) = stream.message().await.expect("message") {
        all.extend(message.chunk);
    }
    String::from_utf8(all).expect("text")
}

/// The leader may have seen an earlier registration of this worker, with other labels.
#[tokio::test]
async fn a_worker_refuses_what_its_own_labels_do_not_allow_until_its_rules_change() {
    let testbed = Testbed::start("svc-refuses").await;
    let _worker = testbed.worker(json!({"labels": {"zone": "a"}}));
    testbed.admit_after(Session(0)).await;
    let allowed = testbed.assign_requiring("allowed", "zone in (a,b)").await;
    let refused = testbed.assign_requiring("refused", "gpu=true").await;
    testbed.phase("allowed", allowed, Observed::Running).await;
    let why = testbed.phase("refused", refused, Observed::Failed).await.message;
    assert_eq!(why, "this worker may not run it: require: gpu=true does not hold");
    // The same assignment with other rules, as the leader writes it when they change.
    testbed.assign_requiring("refused", "zone=a").await;
    testbed.phase("refused", refused, Observed::Running).await;
}

#[tokio::test]
async fn what_runs_and_what_it_says_can_be_seen() {
    let testbed = Testbed::start("svc-seen").await;
    let catalog = testbed.path("catalog.yaml");
    fs::write(&catalog, "known: {kind: process, spec: {command: [sh, -c, 'for n in 1 2 3; do echo line $n; done; exec sleep 300']}}")
        .expect("catalog");
    let _worker = testbed.worker(json!({"catalog": catalog, "labels": {"zone": "a"}}));
    let (_, registration) = testbed.admit_after(Session(0)).await;
    assert_eq!(registration.labels["zone"], "a");
    let epoch = testbed.assign("known", "", &json!({})).await;
    let unknown = testbed.assign("unknown", "", &json!({})).await;
    let failed = testbed.assign("failed", "process", &json!({"comand": ["x"]})).await;
    let docker = testbed.assign("docker", "docker", &json!({})).await;
    testbed.phase("known", epoch, Observed::Running).await;
    testbed.phase("unknown", unknown, Observed::Running).await;
    let why = testbed.phase("failed", failed, Observed::Failed).await.message;
    assert_eq!(
        why,
        "spec.comand: unknown field; use one of command, env, env_pass, cwd, restart, stop_signal, stop_grace, allow_privilege_escalation"
    );
    let why = testbed.phase("docker", docker, Observed::Failed).await.message;
    assert_eq!(why, "kind \"docker\" has no driver here; there are noop, process");

    let mut client = connect(&registration.address).await;
    let answer = client.list_running(ListRunningRequest::default()).await.expect("list").into_inner();
    let rows: Vec<(&str, &str, &str, bool)> =
        answer.running.iter().map(|r| (r.name.as_str(), r.kind.as_str(), r.phase.as_str(), r.pid > 0)).collect();
    let expected = [
        ("docker", "docker", "failed", false),
        ("failed", "process", "failed", false),
        ("known", "process", "running", true),
        ("unknown", "noop", "running", false),
    ];
    assert_eq!((answer.worker.as_str(), rows), ("svc-seen", expected.to_vec()));
    assert_eq!(answer.running[2].epoch, epoch.0);
    let used: Vec<_> = answer.running.iter().map(|r| (r.cpu_ns.is_some(), r.memory_bytes.unwrap_or(0) > 0, r.processes)).collect();
    let none = (false, false, None);
    assert_eq!(used, [none, none, (true, true, Some(1)), none]);
    assert_eq!((answer.processes, answer.memory_bytes), (Some(1), answer.running[2].memory_bytes), "{answer:?}");
    let request = |name: &str, only_totals| ListRunningRequest { name: name.to_owned(), only_totals };
    let one = client.list_running(request("known", false)).await.expect("list").into_inner();
    assert_eq!((one.running.len(), one.running[0].name.as_str()), (1, "known"));
    let totals = client.list_running(request("", true)).await.expect("list").into_inner();
    assert_eq!((totals.running.len(), totals.processes), (0, Some(1)));

    eventually("the output", async || (logs(&mut client, "known", false, 0).await == "line 1\nline 2\nline 3\n").then_some(())).await;
    assert_eq!(logs(&mut client, "known", false, 2).await, "line 2\nline 3\n");
    let request = LogsRequest { name: "unknown".to_owned(), ..LogsRequest::default() };
    let nothing = client.logs(request).await.expect_err("nothing is kept");
    let why = "worker svc-seen keeps no output of unknown: work of kind noop does nothing and has no output; the worker's own log says when it was held";
    assert_eq!((nothing.code(), nothing.message()), (Code::FailedPrecondition, why));
    for (name, code) in [("a b", Code::InvalidArgument), ("nobody", Code::NotFound)] {
        let request = LogsRequest { name: name.to_owned(), ..LogsRequest::default() };
        assert_eq!(client.logs(request).await.expect_err(name).code(), code);
    }

    let (code, metrics) = http_get(&registration.http, "/metrics").await.expect("metrics");
    assert_eq!(code, 200);
    for line in [
        "evenkeel_worker_resources{phase=\"failed\"} 2",
        "evenkeel_worker_resources{phase=\"running\"} 2",
        "evenkeel_worker_ready 1",
        "evenkeel_worker_resource_processes{resource=\"known\"} 1",
        "evenkeel_worker_work_processes 1",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    assert_eq!(http_get(&registration.http, "/healthz").await.expect("health"), (200, "ok\n".to_owned()));
    assert_eq!(http_get(&registration.http, "/none").await.expect("answer").0, 404);
}

#[tokio::test]
async fn a_log_is_followed_until_its_resource_has_gone() {
    let testbed = Testbed::start("svc-follow").await;
    let _worker = testbed.worker(json!({}));
    let (_, registration) = testbed.admit_after(Session(0)).await;
    let spec = testbed.script("a", "exec 2>/dev/null; echo first; trap 'echo last; exit' TERM; while :; do sleep 0.02; done");
    let epoch = testbed.assign("a", "process", &spec).await;
    testbed.started("a", 1).await;
    let mut client = connect(&registration.address).await;
    eventually("the output", async || (logs(&mut client, "a", false, 0).await == "first\n").then_some(())).await;
    let following = tokio::spawn(async move { logs(&mut client, "a", true, 1).await });
    testbed.tell_stop("a", &spec).await;
    testbed.phase("a", epoch, Observed::Stopped).await;
    let all = tokio::time::timeout(support::DEADLINE, following).await.expect("it ends").expect("followed");
    assert_eq!(all, "first\nlast\n");
}

#[tokio::test]
async fn a_reader_goes_on_where_it_was_and_is_not_shown_an_earlier_owners_output() {
    let testbed = Testbed::start("svc-position").await;
    let _worker = testbed.worker(json!({}));
    let (_, registration) = testbed.admit_after(Session(0)).await;
    let mut client = connect(&registration.address).await;
    let first = testbed.assign("a", "process", &json!({"command": ["echo", "of the first"], "restart": "never"})).await;
    testbed.phase("a", first, Observed::Exited).await;
    let all = |request: LogsRequest| {
        let mut client = client.clone();
        async move {
            let mut stream = client.logs(request).await.expect("logs").into_inner();
            let (mut text, mut position) = (String::new(), String::new());
            while let Some(part) = stream.message().await.expect("message") {
                text += std::str::from_utf8(&part.chunk).expect("text");
                position = part.position;
            }
            (text, position)
        }
    };
    let of = |since_epoch: i64, position: &str| LogsRequest {
        name: "a".to_owned(),
        tail: 1,
        position: position.to_owned(),
        since_epoch,
        ..LogsRequest::default()
    };
    let (text, position) = all(of(0, "")).await;
    assert_eq!(text, "of the first\n");
    testbed.unassign("a").await;
    let second = testbed.assign("a", "process", &json!({"command": ["echo", "of the second"], "restart": "never"})).await;
    testbed.phase("a", second, Observed::Exited).await;
    assert_eq!(all(of(second.0, "")).await.0, "of the second\n");
    assert_eq!(all(of(second.0, &position)).await.0, "of the second\n");
    assert_eq!(all(of(first.0, &position)).await.0, "of the second\n", "a place of this worker counts more than an epoch");
    let elsewhere = position.replace("svc-position", "worker-2");
    assert_eq!(all(of(second.0, &elsewhere)).await.0, "of the second\n", "another worker's place is none of this one's");
    assert_eq!(all(of(second.0 + 1, &elsewhere)).await.0, "", "nobody of that epoch has written yet");
    for position in ["x", "svc-position/1.2", "svc-position/1.2.x"] {
        let refused = client.logs(of(0, position)).await.expect_err("wrong");
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(refused.message(), format!("position: unknown position {position:?}; give back one of an answer"));
    }
    // Who follows what has written nothing is told so, and is sent what comes.
    let script = testbed.script("b", "while ! [ -e $DIR/go ]; do sleep 0.02; done; echo gone; exec sleep 300");
    testbed.assign("b", "process", &script).await;
    testbed.started("b", 1).await;
    let request = LogsRequest { name: "b".to_owned(), follow: true, ..LogsRequest::default() };
    let mut stream = client.logs(request).await.expect("logs").into_inner();
    let part = stream.message().await.expect("message").expect("a note");
    assert_eq!((part.chunk.len(), part.note.as_str()), (0, "b has written nothing on svc-position yet"));
    fs::write(testbed.path("go"), "").expect("write");
    let part = stream.message().await.expect("message").expect("output");
    assert_eq!((part.chunk.as_slice(), part.note.as_str()), (b"gone\n".as_slice(), ""));
}

#[tokio::test]
async fn a_second_worker_of_a_live_id_is_refused_and_a_dead_ones_is_waited_for() {
    let testbed = Testbed::start("svc-taken").await;
    let mut first = testbed.worker(json!({}));
    let (session, registration) = testbed.admit_after(Session(0)).await;
    testbed.assign_script("a", "(setsid sh -c 'echo $$ > $DIR/child.pid; exec sleep 300' &); exec sleep 300").await;
    let (pid, child) = (testbed.started("a", 1).await, testbed.number("child.pid").await);
    let mut second = testbed.worker(json!({"data_dir": testbed.path("data-2")}));
    assert_eq!(second.ended().await, Some(1));
    let refusal =
        format!("the id svc-taken is taken by a live worker at {}; stop that one, or give this one another --id", registration.address);
    assert!(second.log().contains(&refusal), "{}", second.log());
    assert_eq!(testbed.registration().await.map(|(session, _)| session), Some(session));

    // Killed at one stroke: its lease outlives it for a while.
    let agent = first.agent_pid().await;
    support::signal(agent, Signal::SIGSTOP);
    first.signal(Signal::SIGKILL);
    support::signal(agent, Signal::SIGKILL);
    assert_eq!(first.ended().await, None);
    // The system kills the child of a dead agent, and only that.
    dead(pid).await;
    let _third = testbed.worker(json!({"data_dir": testbed.path("data-2")}));
    let (_, registration) = testbed.registered_after(session).await;
    assert_eq!(registration.attests, None, "it cannot know what another guard has left");
    if fs::exists("/sys/fs/cgroup/unified").expect("known") {
        // But the next guard ends what it finds of a dead one.
        dead(child).await;
    }
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), Signal::SIGKILL);
}

#[tokio::test]
async fn what_is_wrong_is_said_once_and_the_guard_does_not_insist() {
    let testbed = Testbed::start("svc-wrong").await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
    let port = taken.local_addr().expect("address").port();
    let cases = [
        (json!({"grpc_port": port}), 1, format!("--grpc 127.0.0.1:{port}: Address already in use")),
        (json!({"drivers": ["docker"]}), 2, "--drivers: unknown driver \"docker\"; use one of noop, process".to_owned()),
        (json!({"catalog": "/none.yaml"}), 1, "--catalog /none.yaml: No such file".to_owned()),
        (json!({"data_dir": "/proc/none"}), 1, "--data-dir /proc/none".to_owned()),
    ];
    for (given, status, message) in cases {
        let mut worker = testbed.worker(given);
        assert_eq!(worker.ended().await, Some(status), "{message}");
        assert!(worker.log().contains(&message), "{message} in {}", worker.log());
        assert!(testbed.registration().await.is_none(), "before anything is registered");
        fs::remove_file(testbed.path("worker.log")).expect("log");
    }
}

/// Its first start is over: whatever is wrong now was right before, and may be so again.
#[tokio::test]
async fn after_its_first_registration_a_worker_waits_for_what_is_wrong_to_be_mended() {
    let testbed = Testbed::start("svc-mended").await;
    let catalog = testbed.path("catalog.yaml");
    fs::write(&catalog, "known: {kind: noop}").expect("catalog");
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("port").port();
    let mut worker = testbed.worker(json!({"catalog": catalog, "grpc_port": port}));
    let (first, _) = testbed.admit_after(Session(0)).await;
    let end_agent = async |worker: &support::Worker| {
        let agent = worker.agent_pid().await;
        support::signal(agent, Signal::SIGKILL);
        dead(agent).await;
    };
    fs::write(&catalog, "known: {kind: no").expect("catalog");
    end_agent(&worker).await;
    eventually("the complaint", async || worker.log().contains("it is a map from names to {kind, spec}").then_some(())).await;
    fs::write(&catalog, "known: {kind: noop}").expect("catalog");
    let (second, _) = testbed.registered_after(first).await;

    // Somebody else has its port for a while.
    end_agent(&worker).await;
    let taken = eventually("the port", async || match std::net::TcpListener::bind(("127.0.0.1", port)) {
        Ok(taken) => Some(taken),
        // The next agent was faster.
        Err(_) => {
            end_agent(&worker).await;
            None
        }
    })
    .await;
    eventually("the complaint", async || worker.log().contains("Address already in use").then_some(())).await;
    drop(taken);
    let (third, _) = testbed.registered_after(second).await;

    // Its folder is in its way.
    let data = testbed.path("data");
    let aside = testbed.path("aside");
    fs::rename(&data, &aside).expect("moved");
    fs::write(&data, "").expect("a file in its place");
    end_agent(&worker).await;
    eventually("the complaint", async || worker.log().contains("--data-dir ").then_some(())).await;
    fs::remove_file(&data).expect("removed");
    fs::rename(&aside, &data).expect("back");
    testbed.registered_after(third).await;
    worker.signal(Signal::SIGTERM);
    assert_eq!(worker.ended().await, Some(0));
}

#[tokio::test]
async fn two_workers_on_one_machine_never_write_into_one_folder() {
    let testbed = Testbed::start("svc-folder").await;
    let _first = testbed.worker(json!({}));
    testbed.admit_after(Session(0)).await;
    let mut second = testbed.worker(json!({"id": "svc-folder-2"}));
    assert_eq!(second.ended().await, Some(1));
    let refusal = format!("--data-dir {}: another worker (process ", testbed.path("data").display());
    assert!(second.log().contains(&refusal), "{}", second.log());
    assert!(second.log().contains("has it; give each worker of this machine a folder of its own"), "{}", second.log());
}

#[tokio::test]
async fn two_requests_to_end_end_it_at_once() {
    let testbed = Testbed::start("svc-twice").await;
    let mut worker = testbed.worker(json!({}));
    testbed.admit_after(Session(0)).await;
    let spec = json!({"command": ["sh", "-c", "trap '' TERM; echo $$ > $DIR/pid; while :; do sleep 0.05; done"],
        "stop_grace": "1h", "env": {"DIR": testbed.folder.path().to_str().expect("utf-8")}});
    testbed.assign("stubborn", "process", &spec).await;
    let pid = testbed.number("pid").await;
    worker.signal(Signal::SIGINT);
    eventually("the request", async || worker.log().contains("leaving").then_some(())).await;
    // One that comes at once is taken for an echo of the first.
    eventually("the end", async || {
        worker.signal(Signal::SIGINT);
        support::is_dead(pid).then_some(())
    })
    .await;
    assert_eq!(worker.ended().await, Some(130));
}

//! The classic run, step by step, as a person does it: curl, etcdctl, a reflection client and the binary.

mod support;

use std::process::Command;

use nix::sys::signal::Signal;
use support::{Stage, run};

fn examples(file: &str) -> String {
    format!("{}/../../examples/{file}", env!("CARGO_MANIFEST_DIR"))
}

#[tokio::test]
async fn two_workers_five_resources_and_everything_that_is_done_to_them() {
    let mut stage = Stage::start().await;
    stage.masters(2, &["--resources", &examples("classic.yaml")]).await;
    stage.workers(2).await;
    let before = stage.settled(5).await;
    assert_eq!(stage.counts().await, [3, 2]);

    a_new_leader_changes_nothing(&mut stage, &before).await;
    curl_adds_and_deletes(&stage).await;

    let left = "worker-1";
    stage.signal(left, Signal::SIGINT);
    assert_eq!(stage.ended(left).await, Some(0));
    stage.settled(5).await;
    assert_eq!(stage.counts().await, [5]);
    assert_eq!(stage.session(left).await, None, "a worker that left is registered no more");
}

async fn a_new_leader_changes_nothing(stage: &mut Stage, before: &std::collections::BTreeMap<String, support::Assigned>) {
    let old = stage.leader().await;
    stage.signal(&old, Signal::SIGTERM);
    assert_eq!(stage.ended(&old).await, Some(0));
    stage
        .eventually("another master leads", async || {
            let leader = stage.leader().await;
            (leader != old).then_some(leader)
        })
        .await;
    assert_eq!(stage.settled(5).await, *before);
    stage.spawn(&old, &["--resources", &examples("classic.yaml")]);
    stage
        .eventually("the old leader is ready as a standby", async || {
            stage.connect(&old).await.ok()?;
            let ready =
                Command::new("curl").args(["-s", &format!("http://127.0.0.1:{}/readyz", stage.process(&old).http)]).output().ok()?;
            String::from_utf8_lossy(&ready.stdout).starts_with("ready: master").then_some(())
        })
        .await;
}

async fn curl_adds_and_deletes(stage: &Stage) {
    for master in ["master-1", "master-2"] {
        let answer = stage.curl(master, "/crawler/resource", &["-d", r#"{"id":"zjx","name":"task-test-4"}"#]);
        let assigned = stage.assignments().await["task-test-4"].worker.clone();
        let port = stage.process(&assigned).grpc;
        assert_eq!(answer, format!(r#"{{"id":"{assigned}","Address":"127.0.0.1:{port}"}}"#));
        let shown = stage.etcdctl("/resources/task-test-4");
        let mut lines = shown.lines();
        assert_eq!(lines.next(), Some("/resources/task-test-4"));
        let record: serde_json::Value = serde_json::from_str(lines.next().expect("a value")).expect("json");
        assert_eq!(record["Name"], "task-test-4");
        assert_eq!(record["AssignedNode"], format!("{assigned}|127.0.0.1:{port}"));
        assert!(record["ID"].as_str().is_some_and(|id| id.parse::<u64>().is_ok_and(|id| id > 1 << 60)));
        assert!(record["CreationTime"].as_i64().is_some_and(|ns| ns > 1_600_000_000_000_000_000));
        assert_eq!(record.as_object().map(serde_json::Map::len), Some(4), "{record}");

        let again = stage.curl(master, "/crawler/resource", &["-d", r#"{"id":"zjx","name":"task-test-4"}"#]);
        assert_eq!(again, answer, "the same again has no effect");
        assert_eq!(stage.etcdctl("/resources/task-test-4"), shown);

        let gone = stage.curl(master, "/crawler/resource", &["-X", "DELETE", "-d", r#"{"name":"task-test-4"}"#]);
        assert_eq!(gone, "{}");
        assert_eq!(stage.etcdctl("/resources/task-test-4"), "");
        let unknown = stage.curl(master, "/crawler/resource", &["-X", "DELETE", "-d", r#"{"name":"task-test-4"}"#]);
        assert_eq!(unknown, r#"{"code":5,"message":"no such resource","details":[]}"#);
        stage.settled(5).await;
    }
}

/// The reflection client that `make test` installs; none: it was left out on purpose.
fn reflection_client() -> Option<String> {
    if std::env::var("EVENKEEL_SKIP_BUF").is_ok_and(|v| v == "1") {
        return None;
    }
    let installed = format!("{}/../../target/tools/bin/buf", env!("CARGO_MANIFEST_DIR"));
    Some(if std::path::Path::new(&installed).exists() { installed } else { "buf".to_owned() })
}

#[tokio::test]
async fn a_reflection_client_finds_and_calls_everything() {
    let Some(buf) = reflection_client() else { return };
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    stage.workers(1).await;
    let master = format!("http://127.0.0.1:{}", stage.process("master-1").grpc);
    let worker = format!("http://127.0.0.1:{}", stage.process("worker-1").grpc);
    let curl = |arguments: &[&str]| run(Command::new(&buf).args(["curl", "--protocol", "grpc", "--http2-prior-knowledge"]).args(arguments));

    let services = curl(&["--list-services", &master]);
    for service in ["CrawlerMaster", "evenkeel.v1.Master", "grpc.health.v1.Health"] {
        assert!(services.lines().any(|line| line == service), "{services}");
    }
    let services = curl(&["--list-services", &worker]);
    assert!(services.lines().any(|line| line == "evenkeel.v1.Worker"), "{services}");
    assert!(!services.contains("Master"), "{services}");

    let added = curl(&["-d", r#"{"name":"a"}"#, &format!("{master}/CrawlerMaster/AddResource")]);
    let added: serde_json::Value = serde_json::from_str(&added).expect("json");
    assert_eq!(added["id"], "worker-1");
    let spec = r#"{"resource":{"name":"b","kind":"process","spec":{"command":["sleep","1000"]}}}"#;
    curl(&["-d", spec, &format!("{master}/evenkeel.v1.Master/AddResource")]);
    stage.settled(2).await;
    let running: serde_json::Value = serde_json::from_str(&curl(&[&format!("{worker}/evenkeel.v1.Worker/ListRunning")])).expect("json");
    assert_eq!(running["running"].as_array().map(Vec::len), Some(2), "{running}");
    let health = curl(&["-d", "{}", &format!("{worker}/grpc.health.v1.Health/Check")]);
    assert!(health.contains("SERVING"), "{health}");
    assert_eq!(curl(&["-d", r#"{"name":"a"}"#, &format!("{master}/CrawlerMaster/DeleteResource")]).trim(), "{}");
}

#[tokio::test]
async fn output_is_followed_to_where_the_work_goes() {
    let mut stage = Stage::start().await;
    stage.masters(1, &["--resources", &examples("classic.yaml")]).await;
    stage.workers(2).await;
    let from = stage.settled(5).await["xxx"].worker.clone();
    let printed = stage.path().join("printed");
    let master = format!("http://127.0.0.1:{}", stage.process("master-1").grpc);
    let mut follower = support::evenkeel()
        .args(["logs", "xxx", "--follow", "--master", &master])
        .stdout(std::fs::File::create(&printed).expect("a file"))
        .spawn()
        .expect("started");
    let shows = |worker: &str| std::fs::read_to_string(&printed).is_ok_and(|text| text.contains("xxx epoch=") && text.contains(worker));
    stage.eventually("its output is shown", async || shows(&format!("on {from}:")).then_some(())).await;
    // Two at once are one request: the second is an echo, and the release is not cut short.
    stage.signal(&from, Signal::SIGINT);
    stage.signal(&from, Signal::SIGINT);
    assert_eq!(stage.ended(&from).await, Some(0));
    let to = stage.settled(5).await["xxx"].worker.clone();
    stage.eventually("its output is shown from there", async || shows(&format!("on {to}:")).then_some(())).await;
    assert!(stage.cli("master-1", &["delete", "xxx"]).status.success());
    stage.eventually("the follower ends", async || follower.try_wait().expect("waited")).await;
}

#[tokio::test]
async fn a_follower_is_shown_each_owners_output_once() {
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    stage.workers(2).await;
    let script = "echo before $EVENKEEL_EPOCH on $EVENKEEL_WORKER; echo begun $EVENKEEL_EPOCH; exec sleep 1000";
    let master = format!("http://127.0.0.1:{}", stage.process("master-1").grpc);
    let added = support::evenkeel().args(["add", "a", "--master", &master, "--", "sh", "-c", script]).output().expect("run");
    assert!(added.status.success());
    let first = stage.settled(1).await["a"].clone();
    let (printed, said) = (stage.path().join("printed"), stage.path().join("said"));
    let mut follower = support::evenkeel()
        .args(["logs", "a", "--follow", "--tail", "1", "--master", &master])
        .stdout(std::fs::File::create(&printed).expect("a file"))
        .stderr(std::fs::File::create(&said).expect("a file"))
        .spawn()
        .expect("started");
    let text = || std::fs::read_to_string(&printed).expect("read");
    let mut expected = format!("begun {}\n", first.epoch);
    stage.eventually("the last line is shown", async || (text() == expected).then_some(())).await;
    // There and back again: on the first worker is what the first owner wrote.
    let mut at = first;
    for _ in 0..2 {
        assert!(stage.cli("master-1", &["drain", &at.worker]).status.success());
        let before = at.clone();
        at = stage
            .eventually("it moves", async || {
                let at = stage.settled(1).await["a"].clone();
                (at.worker != before.worker).then_some(at)
            })
            .await;
        expected += &format!("before {} on {}\nbegun {}\n", at.epoch, at.worker, at.epoch);
        stage.eventually("its output is shown, once", async || (text() == expected).then_some(())).await;
        assert!(stage.cli("master-1", &["uncordon", &before.worker]).status.success());
    }
    assert!(stage.cli("master-1", &["delete", "a"]).status.success());
    let status = stage.eventually("the follower ends", async || follower.try_wait().expect("waited")).await;
    assert_eq!((status.code(), text()), (Some(0), expected));
}

#[tokio::test]
async fn who_asks_for_output_that_is_not_there_is_told_why() {
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    let master = format!("http://127.0.0.1:{}", stage.process("master-1").grpc);
    let logs = |more: &[&str]| {
        let output = support::evenkeel().args(["logs", "--master", &master]).args(more).output().expect("run");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(logs(&["none", "--follow"]), (Some(1), "error: none: no such resource\n".to_owned()));
    assert!(stage.cli("master-1", &["add", "silent", "--kind", "process", "--spec", r#"{"command":["sleep","300"]}"#]).status.success());
    let (status, said) = logs(&["silent"]);
    assert!(status == Some(1) && said.contains("silent: is pending, so no worker has output of it"), "{said}");
    // A follower says what it waits for, and waits.
    let said = stage.path().join("said");
    let mut follower = support::evenkeel()
        .args(["logs", "silent", "--follow", "--master", &master])
        .stderr(std::fs::File::create(&said).expect("a file"))
        .spawn()
        .expect("started");
    let says = |what: &str| std::fs::read_to_string(&said).expect("read").contains(what).then_some(());
    stage.eventually("it says that it is pending", async || says("silent is pending: ")).await;
    stage.workers(1).await;
    stage.eventually("it says that nothing was written", async || says("silent has written nothing on worker-1 yet; waiting\n")).await;
    assert_eq!(logs(&["silent"]), (Some(1), "error: silent: has written nothing on worker-1 yet; --follow waits for it\n".to_owned()));
    assert!(follower.try_wait().expect("waited").is_none());
    assert!(stage.cli("master-1", &["add", "held", "--kind", "noop"]).status.success());
    let why = "worker-1 keeps no output of held: work of kind noop does nothing";
    stage.eventually("its kind has no output", async || logs(&["held"]).1.contains(why).then_some(())).await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(follower.id().cast_signed()), Signal::SIGINT).expect("signalled");
    let status = stage.eventually("Ctrl+C ends it", async || follower.try_wait().expect("waited")).await;
    assert!(!status.success());
}

#[tokio::test]
async fn the_file_of_resources_is_followed_and_what_came_by_the_api_stays() {
    let mut stage = Stage::start().await;
    let file = stage.manifest(&["kept".to_owned(), "goes".to_owned()]);
    let path = file.display().to_string();
    stage.masters(1, &["--resources", &path]).await;
    stage.workers(1).await;
    stage.curl("master-1", "/crawler/resource", &["-d", r#"{"name":"by-api"}"#]);
    let before = stage.settled(3).await;
    stage.manifest(&["kept".to_owned(), "comes".to_owned()]);
    let after = stage
        .eventually("the file is followed", async || {
            let after = stage.assignments().await;
            (after.len() == 3 && !after.contains_key("goes")).then_some(after)
        })
        .await;
    assert_eq!((&after["kept"], &after["by-api"]), (&before["kept"], &before["by-api"]));
    assert!(after.contains_key("comes"));
    assert!(stage.cli("master-1", &["delete", "kept"]).status.success());
    stage
        .eventually("what the file has comes back", async || {
            stage.assignments().await.get("kept").is_some_and(|a| a.epoch != before["kept"].epoch).then_some(())
        })
        .await;
}

//! Tasks on real processes: the original's two calls as written, each row of the failure table of docs/tasks.md, rolling, and bad input. A script
//! makes a folder of its task, attempt and worker when it begins, and says so if it was there: nothing is begun twice.

mod support;

use std::{fs, path::PathBuf};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::{Stage, is_alive};

/// The user that the tests run as, which each worker takes.
fn account() -> String {
    nix::unistd::User::from_uid(nix::unistd::getuid()).expect("users").expect("a user").name
}

/// A stage, where scripts write down what they do.
struct Bed {
    stage: Stage,
    oracle: PathBuf,
}

impl Bed {
    async fn with(masters: usize, workers: usize) -> Self {
        let mut stage = Stage::start().await;
        stage.masters(masters, &[]).await;
        let oracle = stage.path().join("oracle");
        fs::create_dir(&oracle).expect("made");
        let mut bed = Self { stage, oracle };
        for number in 1..=workers {
            bed.worker(number);
        }
        bed.stage.ready(workers).await;
        bed
    }

    fn worker(&mut self, number: usize) {
        let zone = if number.is_multiple_of(2) { "zone=b" } else { "zone=a" };
        let flags = ["--tasks", "on", "--task-accounts", &account(), "--task-grace", "20s", "--label", zone];
        self.stage.spawn(&format!("worker-{number}"), &flags);
    }

    /// A script that says that it begins, and then does this.
    fn script(&self, then: &str) -> String {
        let oracle = self.oracle.display();
        format!(
            "#!/bin/sh\nme=$EVENKEEL_TASK.$EVENKEEL_ATTEMPT.$EVENKEEL_WORKER\nmkdir \"{oracle}/$me\" || echo \"$me\" >> \"{oracle}/twice\"\n\
             echo $$ > \"{oracle}/$me/pid\"\n{then}\n"
        )
    }

    /// What was begun: task, attempt and worker.
    fn begun(&self) -> Vec<String> {
        assert!(
            !self.oracle.join("twice").exists(),
            "{:?} was begun twice\n{}",
            fs::read_to_string(self.oracle.join("twice")),
            self.stage.logs()
        );
        let entries = fs::read_dir(&self.oracle).expect("the folder").map(|entry| entry.expect("an entry").file_name());
        let mut begun: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
        begun.sort();
        begun
    }

    async fn has_begun(&self, what: &str) -> nix::unistd::Pid {
        let file = self.oracle.join(what).join("pid");
        let pid = self.stage.eventually("the script has begun", async || fs::read_to_string(&file).ok()?.trim().parse().ok()).await;
        nix::unistd::Pid::from_raw(pid)
    }

    /// Lets every script go on that waits for it.
    fn let_go(&self, word: &str) {
        fs::write(self.stage.path().join(word), "").expect("written");
    }

    /// Waits for [`Self::let_go`].
    fn waits_for(&self, word: &str) -> String {
        format!("while [ ! -e {}/{word} ]; do sleep 0.05; done", self.stage.path().display())
    }

    fn post(&self, body: &Value) -> Value {
        let answer = self.stage.curl("master-1", "/v1/tasks", &["-d", &body.to_string()]);
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}"))
    }

    /// Creates a task; its id.
    fn create(&self, script: &str, more: Value) -> u64 {
        let mut body = json!({"script": script, "batch": "all", "tolerance": "all"});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let answer = self.post(&body);
        answer["task"]["id"].as_u64().unwrap_or_else(|| panic!("{answer}"))
    }

    async fn get(&self, id: u64) -> Option<Value> {
        let master = self.stage.leader().await;
        let answer = self.stage.cli(&master, &["task", "get", &id.to_string(), "-o", "json"]);
        answer.status.success().then(|| serde_json::from_slice(&answer.stdout).expect("json"))
    }

    /// Waits until a task is in this state.
    async fn is(&self, id: u64, state: &str) -> Value {
        self.stage.eventually(state, async || self.get(id).await.filter(|task| task["state"] == state)).await
    }

    /// Waits until each host of a task is in a state, in its order.
    async fn hosts_are(&self, id: u64, states: &[&str]) -> Value {
        self.stage
            .eventually(&format!("the hosts are {states:?}"), async || self.get(id).await.filter(|task| states_of(task) == states))
            .await
    }
}

fn states_of(task: &Value) -> Vec<String> {
    let hosts = task["hosts"].as_array().expect("hosts");
    hosts.iter().map(|host| host["state"].as_str().expect("a state").to_owned()).collect()
}

fn on(hosts: &[&str]) -> Value {
    json!({"on": {"hosts": hosts}})
}

#[tokio::test]
async fn the_calls_of_the_original_work_as_written_through_any_master() {
    let bed = Bed::with(2, 2).await;
    let post = |master: &str, body: &str| bed.stage.curl(master, "/api/v1/task", &["-d", body]);
    let list = |master: &str| -> Value { serde_json::from_str(&bed.stage.curl(master, "/api/v1/task", &[])).expect("json") };
    assert_eq!(bed.stage.curl("master-1", "/api/v1/task", &[]), "[]");
    let body = json!({"script": "#!/bin/sh\necho out; echo err >&2", "account": account(), "title": "test01", "timeout": 5,
        "hosts": r#"["worker-1","worker-2"]"#, "creator": "ada"});
    assert_eq!(post("master-1", &body.to_string()), "1");
    let as_list = json!({"script": "echo $1-$2; exit 3", "account": account(), "title": "t2", "timeout": 5, "args": "a,,b", "hosts": ["worker-2", "nowhere"], "creator": "ada"});
    assert_eq!(post("master-2", &as_list.to_string()), "2");
    for master in ["master-1", "master-2"] {
        let tasks = bed.stage.eventually("the first is done", async || Some(list(master)).filter(|tasks| tasks[0]["done"] == 1)).await;
        let mut first = tasks[0].as_object().expect("an object").clone();
        let created = first.remove("created").expect("a time");
        assert!(created.as_str().is_some_and(|time| time.len() >= 20 && time.ends_with('Z')), "{created}");
        let expected = json!({"id": 1, "title": "test01", "account": account(), "timeout": 5, "hosts": r#"["worker-1","worker-2"]"#,
            "script": "#!/bin/sh\necho out; echo err >&2", "args": "", "creator": "ada", "done": 1});
        assert_eq!(Value::Object(first), expected);
        assert_eq!(
            (&tasks[1]["done"], &tasks[1]["args"], &tasks[1]["hosts"]),
            (&json!(0), &json!("a,,b"), &json!(r#"["worker-2","nowhere"]"#))
        );
    }
    let second = bed.hosts_are(2, &["failed", "pending"]).await;
    assert_eq!(second["hosts"][0]["exit"], 3);
    assert!(second["hosts"][1]["message"].as_str().is_some_and(|message| message.contains("nowhere")), "it is said at once: {second}");
    let output = |args: &[&str]| bed.stage.cli("master-2", &[&["task", "output"], args].concat());
    assert_eq!(String::from_utf8_lossy(&output(&["1", "worker-1"]).stdout), "out\n");
    assert_eq!(String::from_utf8_lossy(&output(&["1", "worker-2", "--stderr"]).stdout), "err\n");
    assert_eq!(String::from_utf8_lossy(&output(&["2", "worker-2"]).stdout), "a-b\n");
    assert_eq!(bed.stage.curl("master-1", "/api/v1/kill-task?task_id=2", &["-X", "POST"]), r#"{"message":"success"}"#);
    bed.hosts_are(2, &["failed", "cancelled"]).await;
}

#[tokio::test]
async fn what_is_wrong_gets_one_line_with_field_and_rule_and_does_nothing() {
    let bed = Bed::with(1, 1).await;
    let base = || json!({"script": "id", "account": account(), "title": "t", "timeout": 5, "hosts": ["worker-1"], "creator": "ada"});
    let with = |field: &str, value: Value| {
        let mut body = base();
        body[field] = value;
        body.to_string()
    };
    let mut no_account = base();
    no_account.as_object_mut().expect("an object").remove("account");
    let cases = [
        ("{".to_owned(), ""),
        (with("hosts", json!("worker-1")), "hosts"),
        (with("hosts", json!("[]")), "hosts"),
        (with("hosts", json!(["worker-1", "no such host"])), "hosts"),
        (with("script", json!("")), "script"),
        (with("script", json!("x".repeat(65_537))), "script"),
        (with("script", json!("a\u{0}b")), "script"),
        (with("timeout", json!(-1)), "timeout"),
        (with("title", json!("x".repeat(256))), "title"),
        (with("args", json!("x".repeat(513))), "args"),
        (no_account.to_string(), "account"),
    ];
    for (body, field) in cases {
        let answer = bed.stage.curl("master-1", "/api/v1/task", &["-w", " %{http_code}", "-d", &body]);
        let (answer, code) = answer.rsplit_once(' ').expect("a code");
        assert_eq!(code, "400", "{field}: {answer}");
        let answer: Value = serde_json::from_str(answer).expect("json");
        let error = answer["error"].as_str().expect("an error");
        assert!(error.contains(field) && !error.contains('\n') && error.len() < 400, "{field}: {error}");
    }
    assert_eq!(bed.stage.curl("master-1", "/api/v1/task", &[]), "[]", "nothing of it was begun");
    assert_eq!(bed.stage.etcdctl("/tasks"), "");
    // An account that the worker does not take: never begun, and said.
    let id = bed.create(&bed.script("true"), json!({"on": {"hosts": ["worker-1"]}, "account": "daemon"}));
    let task = bed.is(id, "done").await;
    assert_eq!((states_of(&task), bed.begun()), (vec!["rejected".to_owned()], Vec::new()));
    assert!(task["hosts"][0]["message"].as_str().is_some_and(|message| message.contains("daemon")), "{task}");
}

#[tokio::test]
async fn what_is_refused_is_in_the_log_as_well() {
    let bed = Bed::with(1, 1).await;
    let cases: [(&str, &[&str], &str, &str); 6] = [
        ("/v1/tasks/1:redo", &["-d", "{}"], "redo", "workers: are missing"),
        ("/v1/tasks/1:redo", &["-d", r#"{"workers":["a b"]}"#], "redo", "workers: "),
        ("/v1/tasks/1:redo", &["-d", r#"{"workers":["a"],"failed":true}"#], "redo", "cannot be given beside workers"),
        ("/v1/tasks/0:kill", &["-X", "POST"], "kill", "id: is missing"),
        ("/v1/tasks/1/hosts/a%20b:ignore", &["-X", "POST"], "ignore", "worker: "),
        ("/v1/tasks", &["-H", "Idempotency-Key: a", "-H", "Idempotency-Key: b", "-d", r#"{"script":"id"}"#], "create", "given twice"),
    ];
    for (place, (path, flags, action, why)) in cases.into_iter().enumerate() {
        let answer = bed.stage.curl("master-1", path, flags);
        assert!(answer.contains(why), "{path}: {answer}");
        // The log is written beside what is answered.
        let lines = || -> Vec<String> {
            bed.stage.log("master-1").lines().filter(|line| line.contains("asked for by a person")).map(str::to_owned).collect()
        };
        let line = bed.stage.eventually("it is in the log", async || lines().get(place).cloned()).await;
        assert_eq!(lines().len(), place + 1, "{path}");
        assert!(line.contains(action) && line.contains(why) && line.contains("InvalidArgument"), "{path}: {line}");
    }
}

#[tokio::test]
async fn a_key_makes_a_repetition_the_same_task() {
    let bed = Bed::with(1, 1).await;
    let body = json!({"script": bed.script("true"), "on": {"hosts": ["worker-1"]}}).to_string();
    let post = |body: &str| bed.stage.curl("master-1", "/v1/tasks", &["-H", "Idempotency-Key: deploy-42", "-d", body]);
    let first: Value = serde_json::from_str(&post(&body)).expect("json");
    let again: Value = serde_json::from_str(&post(&body)).expect("json");
    assert_eq!((&first["created"], &again["task"]["id"]), (&json!(true), &first["task"]["id"]));
    assert_ne!(again["created"], json!(true));
    let other = post(&json!({"script": "id", "on": {"hosts": ["worker-1"]}}).to_string());
    assert!(other.contains("\"code\":6"), "{other}");
    bed.is(1, "done").await;
    assert_eq!(bed.begun(), ["1.1.worker-1"]);
}

#[tokio::test]
async fn a_killed_agent_s_script_is_dead_and_is_said_to_be_killed() {
    let bed = Bed::with(1, 1).await;
    let id = bed.create(&bed.script("setsid sleep 1000 & exec sleep 1000"), on(&["worker-1"]));
    let pid = bed.has_begun("1.1.worker-1").await;
    let agent = bed.stage.agent("worker-1").await;
    nix::sys::signal::kill(agent, Signal::SIGKILL).expect("killed");
    bed.hosts_are(id, &["killed"]).await;
    assert!(!is_alive(pid));
    assert_eq!(bed.begun(), ["1.1.worker-1"]);
}

#[tokio::test]
async fn a_script_whose_guard_and_agent_died_is_lost_and_never_begun_again() {
    let mut bed = Bed::with(1, 1).await;
    let id = bed.create(&bed.script("exec sleep 1000"), on(&["worker-1"]));
    let pid = bed.has_begun("1.1.worker-1").await;
    bed.stage.cut("worker-1").await;
    bed.worker(1);
    bed.hosts_are(id, &["lost"]).await;
    bed.stage
        .eventually("the history says so", async || {
            let events = bed.stage.cli("master-1", &["events"]);
            String::from_utf8_lossy(&events.stdout)
                .lines()
                .any(|line| line.contains("task-lost") && line.contains("worker-1"))
                .then_some(())
        })
        .await;
    assert!(!is_alive(pid));
    assert_eq!(bed.begun(), ["1.1.worker-1"]);
}

#[tokio::test]
async fn a_worker_whose_data_was_wiped_says_that_it_does_not_know() {
    let mut bed = Bed::with(1, 1).await;
    let id = bed.create(&bed.script("exec sleep 1000"), on(&["worker-1"]));
    bed.has_begun("1.1.worker-1").await;
    bed.stage.cut("worker-1").await;
    fs::remove_dir_all(bed.stage.path().join("worker-1")).expect("wiped");
    bed.worker(1);
    let task = bed.hosts_are(id, &["lost"]).await;
    assert!(task["hosts"][0]["message"].as_str().is_some_and(|message| !message.is_empty()), "{task}");
    assert_eq!(bed.begun(), ["1.1.worker-1"]);
}

#[tokio::test]
async fn a_worker_that_is_away_is_undelivered_at_the_deadline_and_does_not_begin_afterwards() {
    let mut bed = Bed::with(1, 2).await;
    bed.stage.cut("worker-2").await;
    let id = bed.create(&bed.script("true"), json!({"on": {"hosts": ["worker-1", "worker-2"]}, "deliver_ms": 3000}));
    bed.hosts_are(id, &["succeeded", "undelivered"]).await;
    bed.worker(2);
    bed.stage.ready(2).await;
    // One that is created after it has come is begun, so that it has looked at its orders.
    let next = bed.create(&bed.script("true"), on(&["worker-2"]));
    bed.hosts_are(next, &["succeeded"]).await;
    assert_eq!(bed.begun(), ["1.1.worker-1", "2.1.worker-2"]);
}

#[tokio::test]
async fn etcd_is_away_and_a_running_script_goes_on_while_work_is_stopped() {
    let bed = Bed::with(1, 1).await;
    bed.stage.cli("master-1", &["add", "a", "--", "sleep", "1000"]);
    bed.stage.settled(1).await;
    let wait = bed.waits_for("go");
    let id = bed.create(&bed.script(&format!("{wait}; echo done")), on(&["worker-1"]));
    let pid = bed.has_begun("1.1.worker-1").await;
    bed.hosts_are(id, &["running"]).await;
    bed.stage.etcd.stop(0).expect("frozen");
    // What needs authority ends; the script does not.
    bed.stage.eventually("authority has ended", async || bed.stage.log("worker-1").contains("authority ends").then_some(())).await;
    bed.let_go("go");
    bed.stage.eventually("the script has ended without etcd", async || (!is_alive(pid)).then_some(())).await;
    bed.stage.etcd.cont(0).expect("thawed");
    bed.hosts_are(id, &["succeeded"]).await;
    let output = bed.stage.cli("master-1", &["task", "output", &id.to_string()]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "done\n");
    assert_eq!(bed.begun(), ["1.1.worker-1"]);
}

#[tokio::test]
async fn work_that_overruns_authority_costs_the_scripts_beside_it_and_that_is_said() {
    let bed = Bed::with(1, 1).await;
    bed.stage.cli("master-1", &["add", "a", "--", "sleep", "1000"]);
    bed.stage.settled(1).await;
    let id = bed.create(&bed.script("exec sleep 1000"), on(&["worker-1"]));
    let pid = bed.has_begun("1.1.worker-1").await;
    // It cannot stop its work in time: the guard ends all of it.
    let agent = bed.stage.agent("worker-1").await;
    nix::sys::signal::kill(agent, Signal::SIGSTOP).expect("stopped");
    bed.hosts_are(id, &["killed"]).await;
    assert!(!is_alive(pid));
    assert_eq!(bed.begun(), ["1.1.worker-1"]);
}

#[tokio::test]
async fn a_leader_that_dies_while_a_task_rolls_leaves_the_rest_to_the_next() {
    let mut bed = Bed::with(2, 4).await;
    let wait = bed.waits_for("go");
    let id = bed.create(&bed.script(&wait), json!({"on": {"selector": "zone in (a,b)"}, "batch": "1", "tolerance": "0"}));
    bed.has_begun("1.1.worker-1").await;
    let leader = bed.stage.leader().await;
    bed.stage.signal(&leader, Signal::SIGKILL);
    bed.stage.ended(&leader).await;
    bed.let_go("go");
    bed.stage.eventually("another leads", async || (bed.stage.leader().await != leader).then_some(())).await;
    bed.hosts_are(id, &["succeeded"; 4]).await;
    bed.is(id, "done").await;
    assert_eq!(bed.begun(), ["1.1.worker-1", "1.1.worker-2", "1.1.worker-3", "1.1.worker-4"]);
}

#[tokio::test]
async fn a_timeout_ends_the_whole_tree_and_a_kill_does() {
    let bed = Bed::with(1, 2).await;
    let tree =
        "(setsid sh -c 'trap \"\" TERM; while :; do sleep 1; done' &) ; sh -c 'sleep 1000' & trap '' TERM; while :; do sleep 0.1; done";
    let late = bed.create(&bed.script(tree), json!({"on": {"hosts": ["worker-1"]}, "timeout_ms": 1000, "grace_ms": 200}));
    let killed = bed.create(&bed.script(tree), json!({"on": {"hosts": ["worker-2"]}, "grace_ms": 200}));
    let pids = [bed.has_begun("1.1.worker-1").await, bed.has_begun("2.1.worker-2").await];
    let answer = bed.stage.cli("master-1", &["task", "kill", &killed.to_string()]);
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    bed.hosts_are(late, &["timed-out"]).await;
    bed.hosts_are(killed, &["killed"]).await;
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    let marks = [format!("EVENKEEL_TASK={late}"), format!("EVENKEEL_TASK={killed}")];
    for entry in fs::read_dir("/proc").expect("proc").flatten() {
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        let text = String::from_utf8_lossy(&environment).into_owned();
        let is_of_this_test = text.contains(&*bed.stage.path().to_string_lossy());
        assert!(!is_of_this_test || !marks.iter().any(|mark| text.split('\0').any(|variable| variable == mark)), "{text:?} lives");
    }
}

#[tokio::test]
async fn failures_pause_it_and_a_person_resumes_redoes_and_ignores() {
    let bed = Bed::with(1, 4).await;
    let flag = bed.stage.path().join("mended");
    let script = bed.script(&format!("[ $EVENKEEL_WORKER != worker-2 ] || [ -e {} ] || exit 7", flag.display()));
    let id = bed.create(&script, json!({"on": {"selector": "zone in (a,b)"}, "batch": "1", "tolerance": "0"}));
    let cli = |args: &[&str]| {
        let answer = bed.stage.cli("master-1", &[&["task"], args].concat());
        assert!(answer.status.success(), "{args:?}: {}", String::from_utf8_lossy(&answer.stderr));
    };
    let task = bed.is(id, "paused").await;
    assert_eq!(states_of(&task), ["succeeded", "failed", "waiting", "waiting"]);
    assert!(task["why"].as_str().is_some_and(|why| why.contains("1 failed")), "{task}");
    fs::write(&flag, "").expect("written");
    let id_text = id.to_string();
    cli(&["redo", &id_text, "--failed"]);
    cli(&["resume", &id_text]);
    bed.is(id, "done").await;
    let task = bed.hosts_are(id, &["succeeded"; 4]).await;
    assert_eq!(task["hosts"][1]["attempt"], 2);
    assert_eq!(bed.begun(), ["1.1.worker-1", "1.1.worker-2", "1.1.worker-3", "1.1.worker-4", "1.2.worker-2"]);
    let next = bed.create("exit 1", json!({"on": {"hosts": ["worker-1"]}}));
    bed.is(next, "done").await;
    cli(&["ignore", &next.to_string(), "worker-1"]);
    bed.hosts_are(next, &["ignored"]).await;
    let gone = bed.stage.cli("master-1", &["task", "cancel", "77"]);
    assert_eq!(gone.status.code(), Some(1));
}

#[tokio::test]
async fn a_worker_that_leaves_gives_its_resources_up_at_once_and_its_id_when_its_scripts_have_ended() {
    let mut bed = Bed::with(1, 2).await;
    for name in ["a", "b", "c", "d"] {
        bed.stage.cli("master-1", &["add", name, "--", "sleep", "1000"]);
    }
    bed.stage.settled(4).await;
    let wait = bed.waits_for("go");
    let id = bed.create(&bed.script(&wait), on(&["worker-1"]));
    bed.has_begun("1.1.worker-1").await;
    bed.stage.signal("worker-1", Signal::SIGINT);
    bed.stage
        .eventually("all resources are on the other", async || {
            let assignments = bed.stage.assignments().await;
            assignments.values().all(|assigned| assigned.worker == "worker-2").then_some(())
        })
        .await;
    assert!(bed.stage.session("worker-1").await.is_some(), "it keeps its id for its script");
    let refused = bed.create(&bed.script("true"), json!({"on": {"hosts": ["worker-1"]}, "deliver_ms": 60_000}));
    bed.let_go("go");
    bed.hosts_are(id, &["succeeded"]).await;
    assert_eq!(bed.stage.ended("worker-1").await, Some(0));
    assert_eq!(bed.stage.session("worker-1").await, None);
    bed.hosts_are(refused, &["pending"]).await;
    assert_eq!(bed.begun(), ["1.1.worker-1"]);
}

#[tokio::test]
async fn a_person_runs_it_from_the_command_line_and_waits() {
    let bed = Bed::with(1, 4).await;
    let file = bed.stage.path().join("script.sh");
    fs::write(&file, bed.script("echo hello from $EVENKEEL_WORKER")).expect("written");
    let file = file.display().to_string();
    let run = |args: &[&str]| bed.stage.cli("master-1", &[&["task", "run"], args].concat());
    let done = run(&["-l", "zone=a", "--batch", "50%", "--wait", &file]);
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(String::from_utf8_lossy(&done.stdout).lines().next(), Some("1"), "the id comes first");
    assert_eq!(bed.begun(), ["1.1.worker-1", "1.1.worker-3"]);
    assert_eq!(run(&["--on", "worker-2", "--wait", "--", "sh", "-c", "exit 4"]).status.code(), Some(1), "it failed");
    assert_eq!(run(&["--wait", &file]).status.code(), Some(2), "it does not say where");
    assert_eq!(run(&["--on", "worker-2", "/no/such/file"]).status.code(), Some(2));
    let any = run(&["-l", "zone=b", "--any", "1", "--wait", &file]);
    assert_eq!(any.status.code(), Some(0), "{}", String::from_utf8_lossy(&any.stderr));
    assert_eq!(bed.begun().len(), 3);
    let list = bed.stage.cli("master-1", &["task", "ls"]);
    assert!(String::from_utf8_lossy(&list.stdout).lines().count() >= 4, "{}", String::from_utf8_lossy(&list.stdout));
}

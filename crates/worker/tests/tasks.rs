//! Tasks on real processes and a real etcd: what a script gets, what ends it, what is said of it, and that no attempt is ever executed twice. The test
//! plays the leader.

mod support;

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::PathBuf,
    process::Command,
    time::Duration,
};

use evenkeel_model::{
    Key, Observed, Revision, Session, TaskId,
    task::{Order, OrderIntent, Outcome, ResultPhase, TaskResult, TaskTail},
};
use evenkeel_proto::v1::{TaskOutputRequest, worker_client::WorkerClient};
use evenkeel_store::{Compare, Op, Txn};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::{DEADLINE, Testbed, Worker, dead, descendants, eventually, http_get, is_dead, program, signal};

/// Appends itself to `$DIR/begun`. A second execution of the same attempt finds its folder.
const ORACLE: &str =
    "mkdir $DIR/lock.$EVENKEEL_TASK.$EVENKEEL_ATTEMPT || echo twice >> $DIR/twice; echo $EVENKEEL_TASK.$EVENKEEL_ATTEMPT >> $DIR/begun\n";

struct Bed {
    testbed: Testbed,
}

/// The account of this process.
fn own() -> String {
    nix::unistd::User::from_uid(nix::unistd::geteuid()).expect("asked").expect("a user").name
}

/// Other accounts take root.
fn needs_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "scripts of other accounts are tried: run this test as root, or leave it out: cargo nextest run -E 'not (package(evenkeel-worker) & binary(tasks))'"
    );
}

impl Bed {
    async fn start(id: &str) -> Self {
        let testbed = Testbed::start(id).await;
        // Other accounts pass through it.
        fs::set_permissions(testbed.folder.path(), fs::Permissions::from_mode(0o777)).expect("opened");
        Self { testbed }
    }

    /// A worker that takes tasks of its own account.
    fn worker(&self) -> Worker {
        self.worker_with(json!({}))
    }

    fn worker_with(&self, more: Value) -> Worker {
        self.testbed.worker(Self::given(more))
    }

    fn given(more: Value) -> Value {
        let mut given = json!({"task_accounts": [own(), "nobody"]});
        given.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
        given
    }

    /// A worker in which this place fails as long as its file is there; by `KILL` the agent dies.
    fn worker_failing_at(&self, place: &str, how: &str) -> Worker {
        fs::write(self.fault(), "").expect("written");
        let mut command = Command::new(program());
        command.env("EVENKEEL_FAULTS", format!("{place}={how}@{}", self.fault().display()));
        self.testbed.worker_by(command, Self::given(json!({})))
    }

    fn fault(&self) -> PathBuf {
        self.testbed.path("fault")
    }

    fn key(&self, key: impl FnOnce(evenkeel_model::WorkerId) -> Key) -> String {
        self.testbed.keys.spell(&key(self.testbed.id.clone()))
    }

    /// Orders a script, with these fields of its task beside what each has; the revision of the order.
    async fn order(&self, id: u32, script: &str, more: Value) -> Revision {
        self.define(id, script, more).await;
        self.put_order(id, &Order::run(1, 7)).await
    }

    async fn define(&self, id: u32, script: &str, more: Value) {
        let dir = self.testbed.folder.path().to_str().expect("utf-8");
        let mut task = json!({
            "ID": id, "Created": 1, "SHA256": "", "On": {"Workers": [self.testbed.id.as_str()]}, "Batch": "50", "Tolerance": "0",
            "Env": {"DIR": dir}
        });
        let stdin = more.get("Stdin").cloned().unwrap_or_default();
        task.as_object_mut()
            .expect("object")
            .extend(more.as_object().expect("object").clone().into_iter().filter(|(field, _)| field != "Stdin"));
        self.testbed.put(self.testbed.keys.spell(&Key::Task(TaskId(id))), task.to_string().into_bytes()).await;
        let script = json!({"Script": script, "Stdin": stdin.as_str().unwrap_or_default()});
        self.testbed.put(self.testbed.keys.spell(&Key::TaskScript(TaskId(id))), script.to_string().into_bytes()).await;
    }

    async fn put_order(&self, id: u32, order: &Order) -> Revision {
        self.testbed.put(self.key(|worker| Key::Order(worker, TaskId(id))), serde_json::to_vec(order).expect("json")).await
    }

    async fn result(&self, id: u32) -> Option<TaskResult> {
        let kv = self.testbed.get(self.key(|worker| Key::TaskResult(worker, TaskId(id)))).await?;
        Some(serde_json::from_slice(&kv.value).expect("result"))
    }

    async fn tail(&self, id: u32) -> TaskTail {
        let kv = self.testbed.get(self.key(|worker| Key::TaskTail(worker, TaskId(id)))).await.expect("a tail");
        serde_json::from_slice(&kv.value).expect("tail")
    }

    async fn running(&self, id: u32, attempt: u32) -> TaskResult {
        let is_so = |result: &TaskResult| result.attempt == attempt && result.phase == ResultPhase::Running;
        eventually(&format!("task {id} running"), async || self.result(id).await.filter(is_so)).await
    }

    async fn ended(&self, id: u32, attempt: u32) -> TaskResult {
        let is_so = |result: &TaskResult| result.attempt == attempt && result.end().is_some();
        eventually(&format!("the end of task {id}"), async || self.result(id).await.filter(is_so)).await
    }

    /// Admits each session as it comes, as a leader does.
    fn admits(&self) -> tokio::task::JoinHandle<()> {
        let (client, keys, id) = (self.testbed.client.clone(), self.testbed.keys.clone(), self.testbed.id.clone());
        tokio::spawn(async move {
            let mut before = Session(0);
            loop {
                if let Ok(read) = client.get(keys.worker(&id).as_bytes()).await
                    && let Some(kv) = read.kv.filter(|kv| Session(kv.created.0) > before)
                {
                    let registration: evenkeel_model::Registration = serde_json::from_slice(&kv.value).expect("registration");
                    let session = Session(kv.created.0);
                    let admission = evenkeel_model::Admission { session, authority_ms: None, origin: registration.origin };
                    if client.put(keys.admission(&id), serde_json::to_vec(&admission).expect("json")).await.is_ok() {
                        before = session;
                    }
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
    }

    fn text(&self, file: &str) -> String {
        fs::read_to_string(self.testbed.path(file)).unwrap_or_default()
    }

    fn begun(&self) -> Vec<String> {
        assert_eq!(self.text("twice"), "", "no attempt is executed twice");
        self.text("begun").lines().map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn a_script_runs_once_and_what_came_of_it_is_said() {
    let bed = Bed::start("task-once").await;
    let _worker = bed.worker();
    let (_, registration) = bed.testbed.admit_after(Session(0)).await;
    assert!(registration.tasks);
    let order = bed.order(1, &format!("{ORACLE}cat; echo out $1; echo err >&2"), json!({"Args": ["a b"], "Stdin": "given "})).await;
    let result = bed.ended(1, 1).await;
    let expected = TaskResult { exit: Some(0), out: 14, err: 4, kept: "disk".into(), ..result.clone() };
    assert_eq!((&result, result.outcome, result.order), (&expected, Some(Outcome::Succeeded), order));
    assert!(result.began > 0 && result.ended >= result.began && result.message.is_empty(), "{result:?}");
    let tail = bed.tail(1).await;
    assert_eq!((tail.attempt, &tail.out[..], &tail.err[..]), (1, &b"given out a b\n"[..], &b"err\n"[..]));

    bed.order(2, "#!/bin/sh -u\r\necho $0; exit 3\r\n", json!({})).await;
    let result = bed.ended(2, 1).await;
    assert_eq!((result.outcome, result.exit, result.signal), (Some(Outcome::Failed), Some(3), 0));
    assert_eq!(&*result.message, "its lines ended in CR LF, and were written with LF alone");
    bed.order(3, "kill -9 $$", json!({})).await;
    let result = bed.ended(3, 1).await;
    assert_eq!((result.outcome, result.exit, result.signal), (Some(Outcome::Failed), None, 9));

    // It is not begun again, whatever is written over its order, but by another attempt.
    bed.put_order(1, &Order::run(1, 8)).await;
    bed.put_order(1, &Order::run(2, 9)).await;
    assert_eq!(bed.ended(1, 2).await.outcome, Some(Outcome::Succeeded));
    assert_eq!(bed.begun(), ["1.1", "1.2"]);

    let mut client = WorkerClient::connect(format!("http://{}", registration.address)).await.expect("connected");
    let mut output = async |stream: &str, tail: u32| {
        let request = TaskOutputRequest { id: 1, attempt: 0, stream: stream.to_owned(), tail };
        let mut answer = client.task_output(request).await.expect("output").into_inner();
        let mut all = Vec::new();
        while let Some(message) = answer.message().await.expect("message") {
            all.extend(message.chunk);
        }
        String::from_utf8(all).expect("text")
    };
    assert_eq!((output("", 0).await, output("stderr", 1).await), ("given out a b\n".to_owned(), "err\n".to_owned()));
    let metrics = http_get(&registration.http, "/metrics").await.expect("answer").1;
    for line in [
        "evenkeel_worker_tasks_running 0",
        "evenkeel_worker_tasks_begun_total 4",
        "evenkeel_worker_tasks_ended_total{outcome=\"failed\"} 2",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }

    // A task that is gone leaves nothing here.
    let kept = bed.testbed.path("data/tasks/1.1");
    assert!(kept.exists());
    bed.testbed.delete(&[bed.key(|worker| Key::Order(worker, TaskId(1))), bed.key(|worker| Key::TaskResult(worker, TaskId(1)))]).await;
    eventually("its records removed", async || (!kept.exists() && !bed.testbed.path("data/tasks/1.2").exists()).then_some(())).await;
}

#[tokio::test]
async fn what_a_worker_does_not_take_is_rejected_and_never_begun() {
    needs_root();
    let bed = Bed::start("task-reject").await;
    let _worker = bed.worker_with(json!({"task_accounts": ["nobody"]}));
    bed.testbed.admit_after(Session(0)).await;
    let cases: [(&str, Value, &str); 7] = [
        (ORACLE, json!({}), "not allowed on this worker, which allows nobody; start it with --task-accounts"),
        (ORACLE, json!({"Account": "no-such"}), "account \"no-such\": not allowed on this worker"),
        ("#!/no/such\n", json!({"Account": "nobody"}), "is a script whose interpreter \"/no/such\" does not exist on this worker"),
        (
            ORACLE,
            json!({"Account": "nobody", "Secrets": {"A": "vault:x"}}),
            "secret \"A\": \"vault:x\" is no reference; use one of file:PATH, env:NAME",
        ),
        (
            ORACLE,
            json!({"Account": "nobody", "Secrets": {"A": "file:/etc/shadow"}}),
            "may not be given to another account than the worker's own",
        ),
        (ORACLE, json!({"Account": "nobody", "Secrets": {"A": "env:PATH"}}), "start it with --env-pass PATH"),
        (ORACLE, json!({"Account": "nobody", "Secrets": {"../A": "env:PATH"}}), "secret \"../A\": invalid name"),
    ];
    for (id, (script, more, expected)) in (1..).zip(cases) {
        let order = bed.order(id, script, more).await;
        let result = bed.ended(id, 1).await;
        assert_eq!((result.outcome, result.order, result.exit), (Some(Outcome::Rejected), order, None));
        assert!(result.message.contains(expected), "{expected}: {result:?}");
    }
    assert_eq!(bed.begun(), [""; 0]);
}

#[tokio::test]
async fn a_worker_that_takes_no_tasks_says_so() {
    let bed = Bed::start("task-off").await;
    let _worker = bed.testbed.worker(json!({}));
    let (_, registration) = bed.testbed.admit_after(Session(0)).await;
    assert!(!registration.tasks);
    bed.order(1, ORACLE, json!({})).await;
    let result = bed.ended(1, 1).await;
    assert_eq!((result.outcome, &*result.message), (Some(Outcome::Rejected), "this worker takes no tasks; start it with --tasks on"));
    assert_eq!(bed.begun(), [""; 0]);
}

/// A tree that ignores every polite signal, some of it in other sessions.
const HOSTILE: &str = "trap '' TERM INT HUP
    (setsid sh -c 'trap \"\" TERM INT HUP; echo $$ > $DIR/child; while :; do sleep 0.05; done' &)
    while [ ! -s $DIR/child ]; do sleep 0.01; done; echo $$ > $DIR/main; echo ready; while :; do sleep 0.05; done";

#[tokio::test]
async fn a_timeout_and_a_stop_end_the_whole_tree() {
    let bed = Bed::start("task-ends").await;
    let _worker = bed.worker();
    bed.testbed.admit_after(Session(0)).await;
    bed.order(1, HOSTILE, json!({"Timeout": "2s", "Grace": "100ms"})).await;
    let (main, child) = (bed.testbed.number("main").await, bed.testbed.number("child").await);
    let result = bed.ended(1, 1).await;
    assert_eq!((result.outcome, result.signal), (Some(Outcome::TimedOut), 9));
    assert_eq!(&*result.message, "it was stopped after its timeout of 2s");
    assert!(is_dead(main) && is_dead(child));
    assert_eq!(bed.tail(1).await.out, b"ready\n");

    bed.order(2, "trap 'echo bye; exit 5' TERM; echo $$ > $DIR/polite; while :; do sleep 0.05; done", json!({})).await;
    bed.testbed.number("polite").await;
    bed.running(2, 1).await;
    bed.put_order(2, &Order::run(1, 7).with(OrderIntent::Stop, "killed by a person")).await;
    let result = bed.ended(2, 1).await;
    assert_eq!((result.outcome, result.exit, &*result.message), (Some(Outcome::Killed), Some(5), "killed by a person"));
    assert_eq!(bed.tail(2).await.out, b"bye\n");
}

#[tokio::test]
async fn what_a_script_leaves_is_killed_and_counted_or_lives_on() {
    let bed = Bed::start("task-left").await;
    let worker = bed.worker();
    bed.testbed.admit_after(Session(0)).await;
    let script = |file: &str| {
        format!("setsid sh -c 'echo $$ > $DIR/{file}; exec sleep 300' & while [ ! -s $DIR/{file} ]; do sleep 0.01; done; echo done")
    };
    bed.order(1, &script("killed"), json!({})).await;
    let result = bed.ended(1, 1).await;
    assert_eq!((result.outcome, result.leftover, result.out), (Some(Outcome::Succeeded), 1, 5));
    assert!(is_dead(bed.testbed.number("killed").await));
    bed.order(2, &script("left"), json!({"Children": "leave"})).await;
    let result = bed.ended(2, 1).await;
    assert_eq!((result.outcome, result.leftover, result.out), (Some(Outcome::Succeeded), 0, 5));
    let left = bed.testbed.number("left").await;
    assert!(!is_dead(left));
    // It is the worker's all the same.
    signal(worker.agent_pid().await, Signal::SIGKILL);
    dead(left).await;
}

#[tokio::test]
async fn no_more_run_at_once_than_may() {
    let bed = Bed::start("task-max").await;
    let _worker = bed.worker_with(json!({"task_max": 2}));
    bed.testbed.admit_after(Session(0)).await;
    for id in 1..=5 {
        bed.order(
            id,
            "touch $DIR/run.$EVENKEEL_TASK; n=$(ls $DIR | grep -c ^run); echo $n >> $DIR/at-once; sleep 0.2; rm $DIR/run.$EVENKEEL_TASK",
            json!({}),
        )
        .await;
    }
    for id in 1..=5 {
        assert_eq!(bed.ended(id, 1).await.outcome, Some(Outcome::Succeeded));
    }
    let at_once: Vec<u32> = bed.text("at-once").lines().map(|line| line.parse().expect("a number")).collect();
    assert!(at_once.len() == 5 && at_once.iter().all(|at_once| *at_once <= 2), "{at_once:?}");
}

#[tokio::test]
async fn another_account_has_its_own_and_nothing_of_the_worker() {
    needs_root();
    let bed = Bed::start("task-account").await;
    let mut command = Command::new(program());
    command.env("AWS_SECRET", "worker's").env("DB_PW", "hunter22-hunter22");
    let worker = bed.testbed.worker_by(command, Bed::given(json!({})));
    bed.testbed.admit_after(Session(0)).await;
    bed.order(
        1,
        "id -un; id -G; pwd; umask; env | sort; ls -l $0; cat /proc/self/status | grep -c ^Groups",
        json!({"Account": "nobody", "Env": {"A": "b"}}),
    )
    .await;
    let result = bed.ended(1, 1).await;
    assert_eq!(result.outcome, Some(Outcome::Succeeded), "{result:?}");
    let text = String::from_utf8(bed.tail(1).await.out).expect("text");
    let nobody = nix::unistd::User::from_name("nobody").expect("asked").expect("nobody");
    let home = nobody.dir.to_str().expect("utf-8").to_owned();
    assert!(text.starts_with(&format!("nobody\n{}\n", nobody.gid)), "{text}");
    for line in [
        "USER=nobody",
        "LOGNAME=nobody",
        "A=b",
        "EVENKEEL_TASK=1",
        "EVENKEEL_ATTEMPT=1",
        "EVENKEEL_RESOURCE=task/1.1",
        "EVENKEEL_WORKER=task-account",
        "LANG=C.UTF-8",
        "PATH=/usr/local/bin:/usr/bin:/bin",
        "0022",
        &format!("HOME={home}"),
        &format!("EVENKEEL_EPOCH={}", result.order),
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    let names: Vec<&str> = text.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
    let expected = [
        "A",
        "EVENKEEL_ATTEMPT",
        "EVENKEEL_EPOCH",
        "EVENKEEL_GUARD",
        "EVENKEEL_RESOURCE",
        "EVENKEEL_TASK",
        "EVENKEEL_WORKER",
        "HOME",
        "LANG",
        "LOGNAME",
        "PATH",
        "PWD",
        "SHELL",
        "USER",
    ];
    assert_eq!(names.into_iter().filter(|name| *name != "OLDPWD" && *name != "_").collect::<Vec<_>>(), expected);
    let script = fs::metadata(bed.testbed.path("data/tasks/1.1/script")).expect("the script");
    assert_eq!((script.uid(), script.mode() & 0o7777), (nobody.uid.as_raw(), 0o700));
    assert_eq!(fs::metadata(bed.testbed.path("data/tasks/1.1")).expect("folder").mode() & 0o7777, 0o711);

    // It may open its streams anew.
    let streams = "echo out > /dev/stdout; echo err > /dev/stderr; cat /dev/stdin; : < /dev/null; ls -l /dev/null | cut -c 8-10";
    bed.order(3, streams, json!({"Account": "nobody", "Stdin": "given\n"})).await;
    let result = bed.ended(3, 1).await;
    let tail = bed.tail(3).await;
    assert_eq!((String::from_utf8_lossy(&tail.out).as_ref(), String::from_utf8_lossy(&tail.err).as_ref()), ("out\ngiven\nrw-\n", "err\n"));
    assert_eq!(result.outcome, Some(Outcome::Succeeded));
    bed.order(4, "cat /dev/stdin", json!({"Account": "nobody"})).await;
    assert_eq!(bed.ended(4, 1).await.outcome, Some(Outcome::Succeeded));
    assert_eq!(fs::metadata("/dev/null").expect("metadata").uid(), 0);

    // Of another account, and it does not die of itself: whatever it is, the worker ends it.
    bed.order(2, "trap '' TERM; echo $$ > $DIR/other; while :; do sleep 0.05; done", json!({"Account": "nobody"})).await;
    let other = bed.testbed.number("other").await;
    signal(worker.agent_pid().await, Signal::SIGKILL);
    dead(other).await;
}

#[tokio::test]
async fn secrets_are_files_in_memory_and_blotted_out_of_tails() {
    let bed = Bed::start("task-secrets").await;
    let _worker = bed.worker();
    bed.testbed.admit_after(Session(0)).await;
    let file = bed.testbed.path("secret");
    fs::write(&file, "hunter22-hunter22\n").expect("written");
    let secrets = json!({"Secrets": {"DB": format!("file:{}", file.display())}});
    bed.order(1, "stat -f -c %T $EVENKEEL_SECRETS; stat -c %a $EVENKEEL_SECRETS/DB; cat $EVENKEEL_SECRETS/DB; echo $EVENKEEL_SECRETS > $DIR/where; env | grep -c hunter", secrets).await;
    let result = bed.ended(1, 1).await;
    let text = String::from_utf8(bed.tail(1).await.out).expect("text");
    assert_eq!((text.as_str(), result.exit), ("tmpfs\n400\n[secret]\n0\n", Some(1)));
    assert!(!PathBuf::from(bed.text("where").trim()).exists(), "it is removed at the end");
}

#[tokio::test]
async fn a_killed_agent_takes_its_script_along_and_says_so() {
    let bed = Bed::start("task-agent-killed").await;
    let worker = bed.worker();
    let admits = bed.admits();
    bed.order(1, &format!("{ORACLE}echo before; {HOSTILE}"), json!({})).await;
    let main = bed.testbed.number("main").await;
    signal(worker.agent_pid().await, Signal::SIGKILL);
    dead(main).await;
    let result = bed.ended(1, 1).await;
    assert_eq!((result.outcome, &*result.message), (Some(Outcome::Killed), "the agent died"));
    assert!(bed.tail(1).await.out.starts_with(b"before\n"), "what it wrote before is kept");
    // Attempts beside it go on being possible.
    bed.put_order(1, &Order::run(2, 9)).await;
    bed.running(1, 2).await;
    eventually("the second", async || (bed.begun() == ["1.1", "1.2"]).then_some(())).await;
    admits.abort();
}

#[tokio::test]
async fn a_guard_that_is_killed_with_its_agent_leaves_a_script_lost() {
    let bed = Bed::start("task-guard-killed").await;
    let worker = bed.worker();
    let admits = bed.admits();
    bed.order(1, &format!("{ORACLE}{HOSTILE}"), json!({})).await;
    let main = bed.testbed.number("main").await;
    bed.running(1, 1).await;
    let agent = worker.agent_pid().await;
    worker.signal(Signal::SIGKILL);
    signal(agent, Signal::SIGKILL);
    dead(main).await;
    let _again = bed.worker();
    let result = bed.ended(1, 1).await;
    assert_eq!((result.outcome, &*result.message), (Some(Outcome::Lost), "the guard and the agent died"));
    assert_eq!(bed.begun(), ["1.1"]);
    admits.abort();
}

#[tokio::test]
async fn a_worker_whose_data_was_wiped_says_lost_and_begins_nothing_again() {
    let bed = Bed::start("task-wiped").await;
    let worker = bed.worker();
    let admits = bed.admits();
    bed.order(1, &format!("{ORACLE}{HOSTILE}"), json!({})).await;
    let main = bed.testbed.number("main").await;
    bed.running(1, 1).await;
    let agent = worker.agent_pid().await;
    worker.signal(Signal::SIGKILL);
    signal(agent, Signal::SIGKILL);
    dead(main).await;
    fs::remove_dir_all(bed.testbed.path("data/tasks")).expect("wiped");
    let _again = bed.worker();
    let result = bed.ended(1, 1).await;
    assert_eq!((result.outcome, &*result.message), (Some(Outcome::Lost), "its data folder has no record of it"));
    assert_eq!(bed.begun(), ["1.1"]);
    admits.abort();
}

/// The agent dies before each step, and so after the one before it. What it did is found, and what it did not do is done, or said.
async fn dies_at(place: &str, is_begun: bool, expected: Outcome) {
    let bed = Bed::start(&place.replace('.', "-dies-")).await;
    let worker = bed.worker_failing_at(place, "KILL");
    let admits = bed.admits();
    let agent = worker.agent_pid().await;
    bed.order(1, &format!("{ORACLE}echo out"), json!({})).await;
    dead(agent).await;
    fs::remove_file(bed.fault()).expect("removed");
    let result = bed.ended(1, 1).await;
    assert_eq!(result.outcome, Some(expected), "{place}: {result:?}");
    assert_eq!(bed.begun().len(), usize::from(is_begun), "{place}");
    bed.put_order(1, &Order::run(2, 9)).await;
    assert_eq!(bed.ended(1, 2).await.outcome, Some(Outcome::Succeeded));
    assert_eq!(bed.begun().len(), usize::from(is_begun) + 1);
    admits.abort();
}

#[tokio::test]
async fn an_agent_that_dies_before_it_records_an_order_begins_it_later() {
    dies_at("task.order", true, Outcome::Succeeded).await;
}

#[tokio::test]
async fn an_agent_that_dies_before_it_tells_etcd_begins_it_later() {
    dies_at("task.begin", true, Outcome::Succeeded).await;
}

#[tokio::test]
async fn an_agent_that_dies_after_it_told_etcd_executes_it_later() {
    dies_at("task.begun", true, Outcome::Succeeded).await;
}

/// Nobody can know whether it was executed.
#[tokio::test]
async fn an_agent_that_dies_right_before_the_execution_never_executes_it() {
    dies_at("task.exec", false, Outcome::Killed).await;
}

#[tokio::test]
async fn an_agent_that_dies_before_it_records_an_end_knows_none() {
    dies_at("task.ended", true, Outcome::Killed).await;
}

#[tokio::test]
async fn an_agent_that_dies_before_it_tells_an_end_tells_it_later() {
    dies_at("task.end", true, Outcome::Succeeded).await;
}

#[tokio::test]
async fn an_agent_that_dies_after_it_told_an_end_has_nothing_to_do() {
    dies_at("task.done", true, Outcome::Succeeded).await;
}

/// A disk that is full before anything was executed.
#[tokio::test]
async fn what_cannot_be_recorded_is_rejected_and_never_begun() {
    for (place, expected) in [("task.order", "it cannot be recorded: "), ("task.begun", "it cannot be recorded, and was not executed: ")] {
        let bed = Bed::start(&place.replace('.', "-full-")).await;
        let _worker = bed.worker_failing_at(place, "ENOSPC");
        bed.testbed.admit_after(Session(0)).await;
        bed.order(1, ORACLE, json!({})).await;
        let result = bed.ended(1, 1).await;
        assert!(result.outcome == Some(Outcome::Rejected) && result.message.starts_with(expected), "{result:?}");
        fs::remove_file(bed.fault()).expect("removed");
        bed.put_order(1, &Order::run(2, 9)).await;
        assert_eq!((bed.ended(1, 2).await.outcome, bed.begun()), (Some(Outcome::Succeeded), vec!["1.2".to_owned()]));
    }
}

#[tokio::test]
async fn a_worker_without_rights_runs_its_own_account_alone() {
    const NOBODY: u32 = 65_534;
    needs_root();
    let bed = Bed::start("task-no-root").await;
    let mut command = Command::new(bed.testbed.open_to_all());
    command.uid(NOBODY).gid(NOBODY);
    let _worker = bed.testbed.worker_by(command, Bed::given(json!({})));
    bed.testbed.admit_after(Session(0)).await;
    bed.order(1, ORACLE, json!({"Account": "root"})).await;
    let result = bed.ended(1, 1).await;
    assert_eq!(result.outcome, Some(Outcome::Rejected));
    assert!(result.message.contains("only root can become another"), "{result:?}");
    for (id, account) in [(2, ""), (3, "nobody")] {
        bed.order(id, "id -un", json!({"Account": account})).await;
        assert_eq!(bed.ended(id, 1).await.outcome, Some(Outcome::Succeeded));
        assert_eq!(bed.tail(id).await.out, b"nobody\n");
    }
    assert_eq!(bed.begun(), [""; 0]);
}

#[tokio::test]
async fn a_script_runs_on_while_etcd_is_away_and_its_result_follows() {
    let bed = Bed::start("task-away").await;
    let worker = bed.worker();
    let admits = bed.admits();
    let work = bed.testbed.assign_script("work", "exec sleep 300").await;
    let pid = bed.testbed.started("work", 1).await;
    bed.testbed.phase("work", work, Observed::Running).await;
    bed.order(1, &format!("{ORACLE}echo $$ > $DIR/main; while [ ! -e $DIR/go ]; do sleep 0.05; done; echo done"), json!({})).await;
    let main = bed.testbed.number("main").await;
    bed.running(1, 1).await;
    let agent = worker.agent_pid().await;
    bed.testbed.etcd.stop(0).expect("stopped");
    // Work is bound to authority, a script is not.
    dead(pid).await;
    assert!(!is_dead(main), "the script goes on");
    fs::write(bed.testbed.path("go"), "").expect("written");
    dead(main).await;
    bed.testbed.etcd.cont(0).expect("continued");
    let result = bed.ended(1, 1).await;
    assert_eq!((result.outcome, result.out), (Some(Outcome::Succeeded), 5));
    assert_eq!((bed.begun(), worker.agent_pid().await), (vec!["1.1".to_owned()], agent));
    admits.abort();
}

#[tokio::test]
async fn nothing_begins_without_an_admission_and_a_closed_order_never_does() {
    let bed = Bed::start("task-admission").await;
    let _worker = bed.worker();
    bed.order(1, ORACLE, json!({})).await;
    bed.order(2, ORACLE, json!({})).await;
    let (_, registration) = bed.testbed.registered_after(Session(0)).await;
    let proofs = async || http_get(&registration.http, "/metrics").await.ok().filter(|(_, text)| text.contains("proofs_held_total 2"));
    eventually("proofs", proofs).await;
    assert_eq!((bed.result(1).await, bed.begun()), (None, vec![]));
    // The leader closes one, by a transaction that compares that nothing was begun.
    let (order, result) = (bed.key(|worker| Key::Order(worker, TaskId(2))), bed.key(|worker| Key::TaskResult(worker, TaskId(2))));
    let closed = serde_json::to_vec(&Order::run(1, 7).with(OrderIntent::Cancelled, "by a person")).expect("json");
    let txn = Txn { compares: vec![Compare::absent(result)], then: vec![Op::put(order, closed)], ..Txn::default() };
    assert!(bed.testbed.client.txn(txn, DEADLINE).await.expect("written").succeeded);
    bed.testbed.admit_after(Session(0)).await;
    bed.ended(1, 1).await;
    assert_eq!((bed.result(2).await, bed.begun()), (None, vec!["1.1".to_owned()]));
}

#[tokio::test]
async fn a_worker_that_leaves_lets_scripts_end_and_says_that_its_work_has() {
    let bed = Bed::start("task-leaves").await;
    let mut worker = bed.worker();
    let (session, _) = bed.testbed.admit_after(Session(0)).await;
    bed.testbed.assign_script("work", "exec sleep 300").await;
    let pid = bed.testbed.started("work", 1).await;
    bed.order(1, &format!("{ORACLE}echo $$ > $DIR/main; while [ ! -e $DIR/go ]; do sleep 0.05; done"), json!({})).await;
    let main = bed.testbed.number("main").await;
    worker.signal(Signal::SIGTERM);
    let leaving = eventually("leaving", async || bed.testbed.registration().await.filter(|(_, found)| found.leaving)).await;
    assert!(leaving.0 == session && !leaving.1.released && is_dead(pid) && !is_dead(main));
    // Nothing begins any more.
    bed.order(2, ORACLE, json!({})).await;
    fs::write(bed.testbed.path("go"), "").expect("written");
    assert_eq!(bed.ended(1, 1).await.outcome, Some(Outcome::Succeeded));
    let released = eventually("the release", async || bed.testbed.registration().await.filter(|(_, found)| found.released)).await;
    assert_eq!(released.0, session);
    bed.testbed.delete(&[bed.testbed.keys.worker(&bed.testbed.id), bed.testbed.keys.admission(&bed.testbed.id)]).await;
    assert_eq!(worker.ended().await, Some(0));
    assert_eq!((bed.result(2).await, bed.begun()), (None, vec!["1.1".to_owned()]));
}

#[tokio::test]
async fn a_worker_that_leaves_kills_what_takes_longer_than_its_grace() {
    let bed = Bed::start("task-leaves-grace").await;
    let worker = bed.worker_with(json!({"task_grace_ms": 300}));
    bed.testbed.admit_after(Session(0)).await;
    bed.order(1, &format!("{ORACLE}{HOSTILE}"), json!({})).await;
    let main = bed.testbed.number("main").await;
    worker.signal(Signal::SIGTERM);
    let result = bed.ended(1, 1).await;
    assert_eq!((result.outcome, &*result.message), (Some(Outcome::Killed), "the worker left"));
    assert!(is_dead(main));
    eventually("the release", async || bed.testbed.registration().await.filter(|(_, found)| found.released)).await;
}

#[tokio::test]
async fn who_insists_that_a_worker_ends_does_not_wait_for_scripts() {
    let bed = Bed::start("task-insists").await;
    let mut worker = bed.worker();
    bed.testbed.admit_after(Session(0)).await;
    bed.order(1, HOSTILE, json!({})).await;
    let main = bed.testbed.number("main").await;
    worker.signal(Signal::SIGTERM);
    eventually("leaving", async || bed.testbed.registration().await.filter(|(_, found)| found.leaving)).await;
    // A second request right after the first is an echo of it.
    let insists = async || {
        worker.signal(Signal::SIGTERM);
        is_dead(main).then_some(())
    };
    eventually("the end", insists).await;
    assert_eq!(worker.ended().await, Some(143));
}

#[tokio::test]
async fn a_hundred_megabytes_of_output_are_bounded_and_hold_up_nobody() {
    let bed = Bed::start("task-volume").await;
    let _worker = bed.worker();
    bed.testbed.admit_after(Session(0)).await;
    bed.order(1, "echo first; head -c 104857600 /dev/zero | tr '\\0' x; echo; echo last", json!({})).await;
    let result = bed.ended(1, 1).await;
    assert_eq!((result.outcome, result.out), (Some(Outcome::Succeeded), 104_857_600 + 12));
    let folder = fs::read_dir(bed.testbed.path("data/tasks/1.1")).expect("folder");
    let kept: u64 = folder.flatten().map(|entry| entry.metadata().expect("metadata").len()).sum();
    assert!(kept < 2 << 20, "{kept}");
    let tail = bed.tail(1).await.out;
    assert!(tail.len() == 4096 && tail.ends_with(b"x\nlast\n"));
}

/// Bounded by a limit of processes, so that a fault here harms only the test.
#[tokio::test]
async fn a_fork_bomb_ends_at_its_timeout() {
    needs_root();
    let bed = Bed::start("task-bomb").await;
    let worker = bed.worker();
    bed.testbed.admit_after(Session(0)).await;
    let bomb = "ulimit -u 300; echo $$ > $DIR/main; f() { f | f & wait; }; f";
    bed.order(1, bomb, json!({"Account": "nobody", "Timeout": "2s", "Grace": "100ms"})).await;
    let main = bed.testbed.number("main").await;
    bed.running(1, 1).await;
    let result = bed.ended(1, 1).await;
    // Where it leaves the agent no time, the guard ends both.
    let is_starved = result.outcome == Some(Outcome::Killed) && &*result.message == "the agent died";
    assert!(is_starved || matches!(result.outcome, Some(Outcome::TimedOut | Outcome::Failed | Outcome::Succeeded)), "{result:?}");
    assert!(is_dead(main));
    // Guard, agent and spawner, and nothing of the script.
    let left: Vec<i32> = descendants(worker.guard_pid()).into_iter().filter(|pid| !is_dead(*pid)).collect();
    assert!(left.len() <= 4, "{left:?}");
}

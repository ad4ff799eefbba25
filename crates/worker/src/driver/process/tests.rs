//! The driver on real processes, held by descent alone.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Instant,
};

use evenkeel_model::{Epoch, Observed, ResourceName};
use nix::{errno::Errno, sys::signal::kill, unistd::Pid};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::timeout};

use super::*;
use crate::{
    driver::{
        Event, EventKind, Observation, StopOrder,
        log::{Log, Logs},
    },
    guard::{Hello, Mark},
    hold::{Containment, spawner},
    protocol::authority::{BootTime, Gate, SystemClock, boot_time},
};

const DEADLINE: Duration = Duration::from_secs(20);

/// Its spawner is a fork of this process, which holds nothing that the spawner needs.
fn containment() -> Arc<Containment> {
    let worker = WorkerId::new("driver-test").expect("id");
    let spawned = spawner::fork().expect("a spawner");
    let hello = Hello { guard: 0, generation: 1, previous: None, by_cgroup: false, pid_namespace: 0, started: 0 };
    Arc::new(Containment::find(&worker, hello, Mark::of_this_process().expect("mark"), spawned).expect("containment"))
}

struct Testbed {
    folder: tempfile::TempDir,
    driver: ProcessDriver<Containment>,
    logs: Logs,
    gate: Gate,
    epoch: Epoch,
}

struct Started {
    handle: Box<dyn Handle>,
    events: mpsc::UnboundedReceiver<Event>,
}

impl Testbed {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let gate = Gate::shut(Arc::new(SystemClock));
        gate.open_until(Some(BootTime(u64::MAX)));
        let config = ProcessConfig {
            worker: WorkerId::new("worker-7").expect("id"),
            grace: Duration::from_millis(500),
            env_pass: EnvPass::default(),
        };
        let driver = ProcessDriver::new(config, containment());
        let logs = Logs::start(log::log_folder(folder.path()), 1 << 20, Duration::MAX).expect("threads");
        Self { folder, driver, logs, gate, epoch: Epoch(42) }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    fn start(&self, spec: Value) -> Started {
        self.start_spec(Spec::from_value(spec).expect("spec"))
    }

    fn env(&self) -> Value {
        json!({"DIR": self.folder.path().to_str().expect("utf-8")})
    }

    fn start_spec(&self, spec: Spec) -> Started {
        let log = self.logs.writer(&name()).of(self.epoch);
        let work = Work { name: name(), epoch: self.epoch, spec, gate: self.gate.clone(), log };
        let (sender, events) = mpsc::unbounded_channel();
        let observer = Observer::new(name(), self.epoch, sender);
        let handle = self.driver.start(work, observer).map_err(|(error, observer)| {
            observer.unused();
            error
        });
        Started { handle: handle.expect("started"), events }
    }

    fn shell(&self, script: &str) -> Started {
        self.start(
            json!({"command": ["sh", "-c", script], "restart": "never", "env": {"DIR": self.folder.path().to_str().expect("utf-8")}}),
        )
    }

    fn output(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_else(|error| panic!("there is no log: {error}"))
    }

    fn log(&self) -> PathBuf {
        log::log_folder(self.folder.path()).join(name().as_str()).join("out.log")
    }
}

impl Started {
    async fn next(&mut self) -> EventKind {
        timeout(DEADLINE, self.events.recv()).await.expect("in time").expect("open").kind
    }

    async fn until(&mut self, phase: Observed) -> Observation {
        loop {
            match self.next().await {
                EventKind::Observed(observation) if observation.phase == phase => return observation,
                EventKind::Observed(_) => {}
                other => panic!("{other:?} before {phase:?}"),
            }
        }
    }

    async fn stop(mut self) -> Duration {
        let begun = Instant::now();
        self.handle.stop(StopOrder::default());
        loop {
            match self.next().await {
                EventKind::Ended => return begun.elapsed(),
                EventKind::Observed(_) | EventKind::Updated(_) | EventKind::NeedsRestart(..) => {}
                EventKind::Broken => panic!("broken"),
            }
        }
    }
}

fn name() -> ResourceName {
    ResourceName::new("work").expect("name")
}

async fn number_in(file: &Path) -> i32 {
    let begun = Instant::now();
    loop {
        if let Some(number) = fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()) {
            return number;
        }
        assert!(begun.elapsed() < DEADLINE, "{} does not come", file.display());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn exists(file: &Path) {
    let begun = Instant::now();
    while !file.exists() {
        assert!(begun.elapsed() < DEADLINE, "{} does not come", file.display());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn is_dead(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH)
}

#[tokio::test]
async fn a_process_gets_its_environment_and_its_last_output_is_kept() {
    let testbed = Testbed::new();
    let mut run = testbed.shell(
        "echo $EVENKEEL_RESOURCE $EVENKEEL_EPOCH $EVENKEEL_WORKER; echo err >&2; head -c 200000 /dev/zero | tr '\\0' x; printf END; exit 3",
    );
    let exited = run.until(Observed::Exited).await;
    assert_eq!((exited.message.as_str(), exited.restarts, exited.pid), ("exit status 3", 0, 0));
    let output = testbed.output();
    let begin = format!("work {} worker-7\nerr\n", testbed.epoch);
    assert!(output.starts_with(&begin), "{}", &output[..40]);
    assert!(output.ends_with("xEND"));
    assert_eq!(output.len(), begin.len() + 200_000 + 3);
    run.stop().await;
}

#[tokio::test]
async fn what_was_stored_beyond_a_limit_of_today_still_starts() {
    let testbed = Testbed::new();
    let mut command = vec!["sh", "-c", "echo $#", "sh"];
    command.resize(command.len() + 5000, "a");
    let mut run = testbed.start(json!({"command": command, "restart": "never"}));
    run.until(Observed::Exited).await;
    assert_eq!(testbed.output(), "5000\n");
    run.stop().await;
}

#[tokio::test]
async fn a_process_that_ignores_the_signal_is_killed_after_its_grace() {
    let testbed = Testbed::new();
    let mut run = testbed.shell("trap '' TERM; echo $$ > $DIR/pid; while :; do sleep 0.05; done");
    let pid = number_in(&testbed.path("pid")).await;
    run.until(Observed::Running).await;
    let took = run.stop().await;
    assert!(took >= Duration::from_millis(500), "{took:?}");
    assert!(is_dead(pid));
}

#[tokio::test]
async fn an_order_can_be_made_more_urgent() {
    let testbed = Testbed::new();
    let mut run =
        testbed.start(json!({"command": ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"], "stop_grace": "1h"}));
    run.until(Observed::Running).await;
    run.handle.stop(StopOrder::default());
    run.handle.stop(StopOrder { kill_by: Some(boot_time() + Duration::from_millis(100)), why: None });
    run.stop().await;
}

#[tokio::test]
async fn a_child_in_another_session_that_holds_the_pipe_dies_with_its_resource() {
    let testbed = Testbed::new();
    let mut run =
        testbed.shell("echo said; (setsid sh -c 'trap \"\" TERM HUP; echo $$ > $DIR/pid; while :; do sleep 0.05; done' &); exec sleep 300");
    let pid = number_in(&testbed.path("pid")).await;
    run.until(Observed::Running).await;
    run.stop().await;
    assert!(is_dead(pid));
    assert_eq!(testbed.output(), "said\n");
}

#[tokio::test]
async fn an_orphan_without_any_mark_does_not_outlive_the_stop() {
    let testbed = Testbed::new();
    let mut run =
        testbed.shell("(sh -c 'echo $$ > $DIR/pid; exec env -i setsid sh -c \"while :; do sleep 0.05; done\"' &); exec sleep 300");
    let pid = number_in(&testbed.path("pid")).await;
    run.until(Observed::Running).await;
    run.stop().await;
    assert!(is_dead(pid));
}

#[tokio::test]
async fn what_a_process_left_behind_is_dead_before_it_is_started_again() {
    let testbed = Testbed::new();
    let script = "if [ -f $DIR/pid ]; then kill -0 $(cat $DIR/pid) 2>/dev/null && echo overlap; sleep 300; fi
        (setsid sh -c 'echo $$ > $DIR/pid; exec sleep 300' &); while [ ! -s $DIR/pid ]; do sleep 0.01; done; exit 1";
    let env = json!({"DIR": testbed.folder.path().to_str().expect("utf-8")});
    let mut run = testbed.start(json!({"command": ["sh", "-c", script], "env": env}));
    assert_eq!(run.until(Observed::Backoff).await.message, "exit status 1");
    assert_eq!(run.until(Observed::Running).await.restarts, 1);
    run.stop().await;
    assert!(!testbed.log().exists(), "nothing overlapped");
}

#[tokio::test]
async fn the_restart_policy_decides_what_follows_an_end() {
    let cases = [
        ("always", "exit 0", Observed::Backoff),
        ("on-failure", "exit 0", Observed::Exited),
        ("on-failure", "exit 1", Observed::Backoff),
        ("never", "kill -9 $$", Observed::Exited),
    ];
    for (restart, script, phase) in cases {
        let testbed = Testbed::new();
        let mut run = testbed.start(json!({"command": ["sh", "-c", script], "restart": restart}));
        let seen = run.until(phase).await;
        assert_eq!(seen.message.contains("SIGKILL"), script.contains("-9"), "{}", seen.message);
        run.stop().await;
    }
}

#[tokio::test]
async fn restarts_come_slower_and_slower() {
    let testbed = Testbed::new();
    // Each run notes its own start: what this test sees of it may come late, and then the next pause would look short.
    let env = json!({"DIR": testbed.folder.path().to_str().expect("utf-8")});
    let mut run = testbed.start(json!({"command": ["sh", "-c", "date +%s%N >> $DIR/starts; exit 1"], "env": env}));
    while run.until(Observed::Backoff).await.restarts < 4 {}
    run.stop().await;
    let text = fs::read_to_string(testbed.path("starts")).expect("starts");
    let starts: Vec<u64> = text.lines().map(|line| line.parse().expect("nanoseconds")).collect();
    let pauses: Vec<u64> = starts.windows(2).map(|pair| (pair[1] - pair[0]) / 1_000_000).collect();
    assert_eq!(pauses.len(), 4, "{pauses:?}");
    assert!(pauses.iter().zip([100, 200, 400, 800]).all(|(pause, at_least)| *pause >= at_least), "{pauses:?}");
}

#[tokio::test]
async fn an_attempt_that_fails_before_it_runs_is_a_restart_as_well() {
    let testbed = Testbed::new();
    let mut run = testbed.start(json!({"command": ["./crawl"]}));
    let seen = [run.until(Observed::Backoff).await, run.until(Observed::Backoff).await, run.until(Observed::Backoff).await];
    assert_eq!(seen.map(|seen| seen.restarts), [0, 1, 2]);
    run.stop().await;
}

#[tokio::test]
async fn what_cannot_be_started_says_so_in_words() {
    let testbed = Testbed::new();
    let program = |name: &str, text: &str, mode: u32| {
        let path = testbed.path(name);
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode");
        path.to_str().expect("utf-8").to_owned()
    };
    let (windows, perl) = (program("windows", "#!/bin/sh\r\necho\r\n", 0o755), program("perl", "#!/opt/none/perl -w\n", 0o755));
    let (plain, text) = (program("plain", "#!/bin/sh\n", 0o644), program("text", "\x01\x02 no program", 0o755));
    let large = "x".repeat(200_000);
    let cases = [
        (
            json!({"command": ["./crawl"]}),
            "spec.command[0]: \"./crawl\" does not exist in \"/\" on this worker; set spec.cwd, or name it with its full path".to_owned(),
        ),
        (
            json!({"command": ["crawl"], "env": {"PATH": "/none:/bin"}}),
            "spec.command[0]: \"crawl\" is in no folder of PATH (/none:/bin)".to_owned(),
        ),
        (json!({"command": ["/etc"]}), "spec.command[0]: \"/etc\" is a folder; name a program".to_owned()),
        (
            json!({"command": [plain]}),
            format!(
                "spec.command[0]: {plain:?} may not be executed by the user of this worker: its mode, a folder above it, or a mount with noexec"
            ),
        ),
        (
            json!({"command": [windows]}),
            format!(
                "spec.command[0]: {windows:?} is a script whose lines end in CR LF, so that its interpreter \"/bin/sh\" is not found; write it with LF alone"
            ),
        ),
        (
            json!({"command": [perl]}),
            format!("spec.command[0]: {perl:?} is a script whose interpreter \"/opt/none/perl\" does not exist on this worker"),
        ),
        (
            json!({"command": [text]}),
            format!("spec.command[0]: {text:?} is neither a program for this machine nor a script that begins with #! and its interpreter"),
        ),
        (json!({"command": ["true"], "cwd": "/none"}), "spec.cwd: \"/none\" does not exist on this worker".to_owned()),
        (json!({"command": ["true"], "cwd": "/etc/passwd"}), "spec.cwd: \"/etc/passwd\" is no folder on this worker".to_owned()),
    ];
    for (mut spec, message) in cases {
        for (restart, phase) in [("always", Observed::Backoff), ("never", Observed::Failed)] {
            spec["restart"] = json!(restart);
            let mut run = testbed.start(spec.clone());
            assert_eq!(run.until(phase).await.message, message);
            run.stop().await;
        }
    }
    // What was stored before there were limits.
    let spec = Spec::stored(json!({"command": ["true"], "env": {"A": large}})).expect("an object");
    let mut run = testbed.start_spec(spec);
    let seen = run.until(Observed::Backoff).await.message;
    assert!(seen.starts_with("spec.command and spec.env: ") && seen.contains("131072 bytes for each of them"), "{seen}");
    run.stop().await;
}

/// Of the worker it has neither signals that are ignored or blocked, nor the mask of files, the folder, soft limits or files.
#[tokio::test]
async fn work_begins_as_on_a_machine_that_nobody_has_changed() {
    let _left_open = fs::File::open("/etc/passwd").expect("opened");
    let testbed = Testbed::new();
    let mut run = testbed.shell(
        "grep -E '^(SigIgn|SigBlk|NoNewPrivs)' /proc/self/status; umask; pwd; ulimit -S -c; ulimit -S -n; ls /proc/self/fd | tr '\n' ' '; \
         ps -o sid= -p $$ | tr -d ' ' | grep -c \"^$$\\$\"; env | cut -d= -f1 | sort | tr '\n' ' '",
    );
    run.until(Observed::Exited).await;
    let expected = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\nNoNewPrivs:\t1\n0022\n/\n0\n1024\n0 1 2 3 1\n\
                    DIR EVENKEEL_EPOCH EVENKEEL_GUARD EVENKEEL_RESOURCE EVENKEEL_WORKER HOME LANG PATH PWD USER ";
    let lines = |text: &str| {
        text.replace("SHLVL ", "")
            .replace("OLDPWD ", "")
            .replace(" _ ", " ")
            .lines()
            .map(str::to_owned)
            .collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(lines(&testbed.output()), lines(expected));
    run.stop().await;
}

/// A shell unblocks signals by itself, so that this one is asked without.
#[tokio::test]
async fn work_begins_with_no_signal_blocked_or_ignored() {
    let testbed = Testbed::new();
    let mut run = testbed.start(json!({"command": ["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"], "restart": "never"}));
    run.until(Observed::Exited).await;
    assert_eq!(testbed.output(), "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
    run.stop().await;
}

#[tokio::test]
async fn a_shim_that_its_work_kills_or_stops_ends_the_run_all_the_same() {
    let testbed = Testbed::new();
    for signal in ["KILL", "STOP"] {
        let script = format!(
            "(setsid sh -c 'echo $$ > $DIR/{signal}.pid; exec sleep 300' &); while [ ! -s $DIR/{signal}.pid ]; do sleep 0.01; done; \
             kill -{signal} $PPID; touch $DIR/{signal}.done; sleep 300"
        );
        let mut run = testbed.start(json!({"command": ["sh", "-c", script], "env": testbed.env()}));
        let pid = number_in(&testbed.path(&format!("{signal}.pid"))).await;
        if signal == "KILL" {
            assert_eq!(run.until(Observed::Backoff).await.message, "how it ended is not known: its shim was killed");
            assert!(is_dead(pid), "what it left behind is dead before anything is started again");
        } else {
            exists(&testbed.path("STOP.done")).await;
        }
        run.stop().await;
        let pid = number_in(&testbed.path(&format!("{signal}.pid"))).await;
        assert!(is_dead(pid), "{signal}");
    }
}

#[tokio::test]
async fn only_a_worker_that_can_end_them_lets_work_gain_privileges() {
    let testbed = Testbed::new();
    let spec = json!({"command": ["grep", "NoNewPrivs", "/proc/self/status"], "restart": "never", "allow_privilege_escalation": true});
    assert!(testbed.driver.0.cells.ends_any_user(), "these tests run as root");
    let mut run = testbed.start(spec);
    run.until(Observed::Exited).await;
    assert_eq!(testbed.output(), "NoNewPrivs:\t0\n");
    run.stop().await;
}

#[tokio::test]
async fn nothing_is_started_without_authority() {
    let testbed = Testbed::new();
    testbed.gate.open_until(None);
    let mut run = testbed.shell("echo started");
    assert_eq!(run.until(Observed::Backoff).await.message, "waits for authority");
    testbed.gate.open_until(Some(BootTime(u64::MAX)));
    run.until(Observed::Exited).await;
    assert_eq!(testbed.output(), "started\n");
    run.stop().await;
}

#[tokio::test]
async fn a_wrong_spec_starts_nothing() {
    let testbed = Testbed::new();
    let gate = Gate::shut(Arc::new(SystemClock));
    let work = Work { name: name(), epoch: Epoch(1), spec: Spec::default(), gate, log: Log::nowhere() };
    let (sender, _events) = mpsc::unbounded_channel();
    let Err((error, observer)) = testbed.driver.start(work, Observer::new(name(), Epoch(1), sender)) else { panic!("started") };
    observer.unused();
    assert!(error.to_string().starts_with("spec.command: is missing"), "{error}");
}

/// A file system that never answers, as a dead NFS server's: mounted, and nobody serves it. Root may do that.
struct Hung {
    folder: PathBuf,
    holder: std::process::Child,
}

impl Hung {
    const MOUNT: &str = "import ctypes, os, sys, time
fd = os.open('/dev/fuse', os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
options = f'fd={fd},rootmode=40000,user_id=0,group_id=0'.encode()
assert libc.mount(b'hung', sys.argv[1].encode(), b'fuse', 0, options) == 0, os.strerror(ctypes.get_errno())
print('mounted', flush=True)
time.sleep(600)
";

    fn mount(folder: PathBuf) -> Self {
        use std::io::Read;
        fs::create_dir(&folder).expect("folder");
        let mut command = std::process::Command::new("python3");
        let mut holder = command.args(["-c", Self::MOUNT]).arg(&folder).stdout(std::process::Stdio::piped()).spawn().expect("python3");
        let mut said = [0; 8];
        holder.stdout.as_mut().expect("piped").read_exact(&mut said).expect("mounted");
        Self { folder, holder }
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.folder).status();
    }
}

#[tokio::test]
async fn a_file_system_that_does_not_answer_holds_up_its_own_resource_alone() {
    let testbed = Testbed::new();
    let hung = Hung::mount(testbed.path("hung"));
    let folder = hung.folder.to_str().expect("utf-8");
    let program = format!("{folder}/program");
    let cases = [
        (json!({"command": ["true"], "cwd": format!("{folder}/cwd")}), format!("spec.cwd: \"{folder}/cwd\"")),
        (json!({"command": [program]}), format!("spec.command[0]: \"{program}\"")),
    ];
    for (spec, field) in cases {
        let mut held_up = testbed.start(spec);
        let mut other = testbed.shell("echo runs");
        other.until(Observed::Exited).await;
        assert_eq!(held_up.until(Observed::Starting).await.message, format!("{field}: the file system has not answered yet"));
        other.stop().await;
        held_up.stop().await;
    }
}

#[tokio::test]
async fn a_flood_of_output_holds_up_no_stop() {
    let testbed = Testbed::new();
    let mut run = testbed.start(json!({"command": ["sh", "-c", "trap '' TERM; yes & yes"], "stop_grace": "100ms"}));
    run.until(Observed::Running).await;
    run.stop().await;
}

#[tokio::test]
async fn runs_that_do_not_go_well_are_counted_in_a_row() {
    let testbed = Testbed::new();
    for command in [json!(["sh", "-c", "exit 1"]), json!(["./crawl"])] {
        let mut run = testbed.start(json!({"command": command}));
        let seen = [run.until(Observed::Backoff).await, run.until(Observed::Backoff).await, run.until(Observed::Backoff).await];
        assert_eq!(seen.map(|seen| seen.failures), [1, 2, 3]);
        run.stop().await;
    }
}

/// Neither an end that the kill of everything brought, nor a start that it refused, is one of the work's own: `never` would take it for good.
#[tokio::test]
async fn what_ends_because_the_guard_has_ended_is_told_to_nobody() {
    let testbed = Testbed::new();
    let mut runs = testbed.shell("sleep 300");
    runs.until(Observed::Running).await;
    testbed.driver.0.cells.kill_all();
    let mut late = testbed.shell("sleep 300");
    for run in [&mut runs, &mut late] {
        let said = timeout(Duration::from_millis(500), run.events.recv()).await;
        assert!(said.is_err(), "{said:?}");
    }
}

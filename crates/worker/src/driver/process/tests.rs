//! The driver on real processes, held by process groups: this process plays the guard that adopts orphans.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Instant,
};

use evenkeel_model::{Epoch, Observed, ResourceName};
use nix::{errno::Errno, sys::signal::kill, unistd::Pid};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::timeout};

use super::*;
use crate::{
    authority::{BootTime, SystemClock, boot_time},
    driver::{Event, Observation, What},
};

const DEADLINE: Duration = Duration::from_secs(20);

/// All tests share it, as all runs of an agent do: it takes an unmarked orphan for work that nobody owns.
fn containment() -> Arc<Containment> {
    static SHARED: OnceLock<Arc<Containment>> = OnceLock::new();
    let shared = SHARED.get_or_init(|| {
        #[cfg(target_os = "linux")]
        nix::sys::prctl::set_child_subreaper(true).expect("subreaper");
        let worker = WorkerId::new("driver-test").expect("id");
        Arc::new(Containment::find(&worker, std::process::id(), "driver-test", false).expect("containment"))
    });
    Arc::clone(shared)
}

struct Bench {
    /// One test at a time: this process plays agent and guard at once, so a child of one test that is not marked yet looks like an orphan to
    /// another one that clears up. An agent's child is never its guard's.
    _alone: MutexGuard<'static, ()>,
    folder: tempfile::TempDir,
    driver: ProcessDriver,
    gate: Gate,
    /// No other test has it: it is part of the mark.
    epoch: Epoch,
}

struct Started {
    handle: Box<dyn Handle>,
    events: mpsc::UnboundedReceiver<Event>,
}

impl Bench {
    fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().expect("folder");
        let gate = Gate::shut(Arc::new(SystemClock));
        gate.open_until(Some(BootTime(u64::MAX)));
        let config = ProcessConfig {
            worker: WorkerId::new("worker-7").expect("id"),
            data_dir: folder.path(),
            max_log_bytes: 1 << 20,
            grace: Duration::from_millis(500),
            gate: gate.clone(),
        };
        let driver = ProcessDriver::new(config, containment()).expect("driver");
        static EPOCHS: AtomicI64 = AtomicI64::new(42);
        Self { _alone: alone, folder, driver, gate, epoch: Epoch(EPOCHS.fetch_add(1, Ordering::SeqCst)) }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    fn start(&self, spec: Value) -> Started {
        let work = Work { name: name(), epoch: self.epoch, spec: Spec::from_value(spec).expect("spec") };
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
        let (bytes, _) = self.driver.0.logs.read(&name()).expect("readable").unwrap_or_else(|| panic!("there is no log"));
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Started {
    async fn next(&mut self) -> What {
        timeout(DEADLINE, self.events.recv()).await.expect("in time").expect("open").what
    }

    async fn until(&mut self, phase: Observed) -> Observation {
        loop {
            match self.next().await {
                What::Is(observation) if observation.phase == phase => return observation,
                What::Is(_) => {}
                other => panic!("{other:?} before {phase:?}"),
            }
        }
    }

    async fn stop(mut self) -> Duration {
        let begun = Instant::now();
        self.handle.stop(StopOrder::default());
        loop {
            match self.next().await {
                What::Ended => return begun.elapsed(),
                What::Is(_) => {}
                What::Broken => panic!("broken"),
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

/// Dead, or a zombie that this process, being its guard here, has yet to reap.
fn is_dead(pid: i32) -> bool {
    let pid = Pid::from_raw(pid);
    let _ = nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
    kill(pid, None) == Err(Errno::ESRCH)
}

#[tokio::test]
async fn a_process_gets_its_environment_and_its_last_output_is_kept() {
    let bench = Bench::new();
    let mut run = bench.shell(
        "echo $EVENKEEL_RESOURCE $EVENKEEL_EPOCH $EVENKEEL_WORKER; echo err >&2; head -c 200000 /dev/zero | tr '\\0' x; printf END; exit 3",
    );
    let exited = run.until(Observed::Exited).await;
    assert_eq!((exited.message.as_str(), exited.restarts, exited.pid), ("exit status 3", 0, 0));
    let output = bench.output();
    let begin = format!("work {} worker-7\nerr\n", bench.epoch);
    assert!(output.starts_with(&begin), "{}", &output[..40]);
    assert!(output.ends_with("xEND"));
    assert_eq!(output.len(), begin.len() + 200_000 + 3);
    run.stop().await;
}

#[tokio::test]
async fn what_was_stored_beyond_a_limit_of_today_still_starts() {
    let bench = Bench::new();
    let mut command = vec!["sh", "-c", "echo $#", "sh"];
    command.resize(command.len() + 5000, "a");
    let mut run = bench.start(json!({"command": command, "restart": "never"}));
    run.until(Observed::Exited).await;
    assert_eq!(bench.output(), "5000\n");
    run.stop().await;
}

#[tokio::test]
async fn a_process_that_ignores_the_signal_is_killed_after_its_grace() {
    let bench = Bench::new();
    let mut run = bench.shell("trap '' TERM; echo $$ > $DIR/pid; while :; do sleep 0.05; done");
    let pid = number_in(&bench.path("pid")).await;
    run.until(Observed::Running).await;
    let took = run.stop().await;
    assert!(took >= Duration::from_millis(500), "{took:?}");
    assert!(is_dead(pid));
}

#[tokio::test]
async fn an_order_can_be_made_more_urgent() {
    let bench = Bench::new();
    let mut run =
        bench.start(json!({"command": ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"], "stop_grace": "1h"}));
    run.until(Observed::Running).await;
    run.handle.stop(StopOrder::default());
    run.handle.stop(StopOrder { kill_by: Some(boot_time() + Duration::from_millis(100)) });
    run.stop().await;
}

#[tokio::test]
async fn a_child_in_another_session_that_holds_the_pipe_dies_with_its_resource() {
    let bench = Bench::new();
    let mut run =
        bench.shell("echo said; (setsid sh -c 'trap \"\" TERM HUP; echo $$ > $DIR/pid; while :; do sleep 0.05; done' &); exec sleep 300");
    let pid = number_in(&bench.path("pid")).await;
    run.until(Observed::Running).await;
    run.stop().await;
    assert!(is_dead(pid));
    assert_eq!(bench.output(), "said\n");
}

#[tokio::test]
async fn an_orphan_without_any_mark_does_not_outlive_the_stop() {
    let bench = Bench::new();
    let mut run = bench.shell("(sh -c 'echo $$ > $DIR/pid; exec env -i setsid sh -c \"while :; do sleep 0.05; done\"' &); exec sleep 300");
    let pid = number_in(&bench.path("pid")).await;
    run.until(Observed::Running).await;
    run.stop().await;
    assert!(is_dead(pid));
}

#[tokio::test]
async fn what_a_process_left_behind_is_dead_before_it_is_started_again() {
    let bench = Bench::new();
    let script = "if [ -f $DIR/pid ]; then kill -0 $(cat $DIR/pid) 2>/dev/null && echo overlap; sleep 300; fi
        (setsid sh -c 'echo $$ > $DIR/pid; exec sleep 300' &); while [ ! -s $DIR/pid ]; do sleep 0.01; done; exit 1";
    let env = json!({"DIR": bench.folder.path().to_str().expect("utf-8")});
    let mut run = bench.start(json!({"command": ["sh", "-c", script], "env": env}));
    assert_eq!(run.until(Observed::Backoff).await.message, "exit status 1");
    // A zombie of ours would look alive to the script.
    is_dead(number_in(&bench.path("pid")).await);
    assert_eq!(run.until(Observed::Running).await.restarts, 1);
    run.stop().await;
    assert!(bench.driver.0.logs.read(&name()).expect("readable").is_none(), "nothing overlapped");
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
        let bench = Bench::new();
        let mut run = bench.start(json!({"command": ["sh", "-c", script], "restart": restart}));
        let seen = run.until(phase).await;
        assert_eq!(seen.message.contains("SIGKILL"), script.contains("-9"), "{}", seen.message);
        run.stop().await;
    }
}

#[tokio::test]
async fn restarts_come_slower_and_slower() {
    let bench = Bench::new();
    // Each run notes its own start: what this test sees of it may come late, and then the next pause would look short.
    let env = json!({"DIR": bench.folder.path().to_str().expect("utf-8")});
    let mut run = bench.start(json!({"command": ["sh", "-c", "date +%s%N >> $DIR/starts; exit 1"], "env": env}));
    while run.until(Observed::Backoff).await.restarts < 4 {}
    run.stop().await;
    let text = fs::read_to_string(bench.path("starts")).expect("starts");
    let starts: Vec<u64> = text.lines().map(|line| line.parse().expect("nanoseconds")).collect();
    let pauses: Vec<u64> = starts.windows(2).map(|pair| (pair[1] - pair[0]) / 1_000_000).collect();
    assert_eq!(pauses.len(), 4, "{pauses:?}");
    assert!(pauses.iter().zip([100, 200, 400, 800]).all(|(pause, at_least)| *pause >= at_least), "{pauses:?}");
}

#[tokio::test]
async fn an_attempt_that_fails_before_it_runs_is_a_restart_as_well() {
    let bench = Bench::new();
    let mut run = bench.start(json!({"command": ["./crawl"]}));
    let seen = [run.until(Observed::Backoff).await, run.until(Observed::Backoff).await, run.until(Observed::Backoff).await];
    assert_eq!(seen.map(|seen| seen.restarts), [0, 1, 2]);
    run.stop().await;
}

#[tokio::test]
async fn what_cannot_be_started_says_so_in_words() {
    let cases = [
        (json!({"command": ["./crawl"]}), Observed::Backoff, "cannot start \"./crawl\": no such file or directory"),
        (json!({"command": ["./crawl"], "restart": "never"}), Observed::Failed, "cannot start \"./crawl\": no such file or directory"),
        (json!({"command": ["/etc/passwd"]}), Observed::Backoff, "cannot start \"/etc/passwd\": permission denied"),
        (json!({"command": ["true"], "cwd": "/none"}), Observed::Backoff, "cannot start \"true\": cwd \"/none\" is no folder"),
    ];
    for (spec, phase, message) in cases {
        let bench = Bench::new();
        let mut run = bench.start(spec);
        assert_eq!(run.until(phase).await.message, message);
        run.stop().await;
    }
}

#[tokio::test]
async fn nothing_is_started_without_authority() {
    let bench = Bench::new();
    bench.gate.open_until(None);
    let mut run = bench.shell("echo started");
    assert_eq!(run.until(Observed::Backoff).await.message, "waits for authority");
    bench.gate.open_until(Some(BootTime(u64::MAX)));
    run.until(Observed::Exited).await;
    assert_eq!(bench.output(), "started\n");
    run.stop().await;
}

#[tokio::test]
async fn a_wrong_spec_starts_nothing() {
    let bench = Bench::new();
    let work = Work { name: name(), epoch: Epoch(1), spec: Spec::default() };
    let (sender, _events) = mpsc::unbounded_channel();
    let Err((error, observer)) = bench.driver.start(work, Observer::new(name(), Epoch(1), sender)) else { panic!("started") };
    observer.unused();
    assert!(error.to_string().starts_with("spec.command: is missing"), "{error}");
}

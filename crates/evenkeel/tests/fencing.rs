//! A machine that is paused and goes on: its work may act before any guard can kill it, and a sink that checks the epoch keeps that out.
//! Sink, work and resource file are those of `examples/fencing`.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use support::{Stage, descendants, evenkeel, is_alive, run};

const LEDGERS: [&str; 3] = ["ledger-1", "ledger-2", "ledger-3"];

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/fencing").join(name)
}

/// The sink of the example, on a free port.
struct Sink {
    child: Child,
    said: PathBuf,
    address: String,
}

impl Sink {
    async fn start(stage: &Stage) -> Self {
        let said = stage.path().join("sink.log");
        let child = Self::spawn(stage, "127.0.0.1:0", &said);
        let mut sink = Self { child, said, address: String::new() };
        sink.address = sink.listens(stage, 1).await;
        sink
    }

    fn spawn(stage: &Stage, listen: &str, said: &Path) -> Child {
        let output = fs::File::options().create(true).append(true).open(said).expect("a log");
        evenkeel()
            .args(["tied", "--parent", &std::process::id().to_string(), "--signal", "kill", "--", "python3"])
            .arg(example("sink.py"))
            .args(["--listen", listen, "--store"])
            .arg(stage.path().join("sink.db"))
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a log"))
            .stderr(output)
            .spawn()
            .expect("started")
    }

    /// Waits until it has said so often that it listens, and gives the address.
    async fn listens(&self, stage: &Stage, starts: usize) -> String {
        let address = |said: &str| {
            let mut lines = said.lines().filter_map(|line| line.strip_prefix("listening on "));
            Some(lines.nth(starts - 1)?.split_once(',')?.0.to_owned())
        };
        stage.eventually("the sink listens", async || address(&self.said())).await
    }

    /// Kills it, and starts it again with what it has on disk.
    async fn cut(&mut self, stage: &Stage) {
        self.child.kill().and_then(|()| self.child.wait()).expect("killed");
        self.child = Self::spawn(stage, &self.address, &self.said);
        self.listens(stage, 2).await;
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.said).expect("read")
    }

    /// The epochs of the lines that are kept for a resource, in the order in which they came.
    fn epochs(&self, resource: &str) -> Vec<i64> {
        let lines = run(Command::new("curl").args(["-sSf", "-m", "20", &format!("http://{}/{resource}", self.address)]));
        lines.lines().map(|line| line.split(' ').nth(1).and_then(|epoch| epoch.parse().ok()).expect("an epoch")).collect()
    }

    /// Whether a write was refused for this epoch.
    fn refused(&self, resource: &str, epoch: i64) -> bool {
        self.said().contains(&format!("refused {resource} {epoch}: "))
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The resource file of the example, with paths and an address that hold here.
fn manifest(stage: &Stage, sink: &Sink) -> PathBuf {
    let text = fs::read_to_string(example("resources.yaml")).expect("read");
    let here =
        text.replace("examples/fencing/writer.py", &example("writer.py").display().to_string()).replace("127.0.0.1:8090", &sink.address);
    let path = stage.path().join("resources.yaml");
    fs::write(&path, here).expect("written");
    path
}

fn is_stopped(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
}

/// The process among these that works on a resource.
fn writer_of(resource: &str, among: &[Pid]) -> Option<Pid> {
    let variable = format!("EVENKEEL_RESOURCE={resource}");
    let has =
        |pid: &&Pid| fs::read(format!("/proc/{pid}/environ")).is_ok_and(|all| all.split(|b| *b == 0).any(|v| v == variable.as_bytes()));
    among.iter().find(has).copied()
}

/// Stops every process of a worker, as a pause of its machine would; guard and agent come first in what it gives.
async fn pause(stage: &Stage, worker: &str) -> Vec<Pid> {
    let mut paused = vec![stage.pid(worker), stage.agent(worker).await];
    for pid in &paused {
        signal::kill(*pid, Signal::SIGSTOP).expect("stopped");
    }
    stage.eventually("guard and agent are stopped", async || paused.iter().all(|pid| is_stopped(*pid)).then_some(())).await;
    // From here on nothing is started or ended by them.
    let work: Vec<Pid> = descendants(paused[0]).into_iter().filter(|pid| *pid != paused[1]).collect();
    for pid in &work {
        signal::kill(*pid, Signal::SIGSTOP).expect("stopped");
    }
    stage.eventually("the work is stopped", async || work.iter().all(|pid| is_stopped(*pid)).then_some(())).await;
    paused.extend(work);
    paused
}

#[tokio::test]
async fn what_a_paused_machine_still_writes_when_it_goes_on_is_refused() {
    let mut stage = Stage::start().await;
    let mut sink = Sink::start(&stage).await;
    stage.masters(1, &[]).await;
    stage.workers(2).await;
    let applied = stage.cli("master-1", &["apply", "-f", &manifest(&stage, &sink).display().to_string()]);
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    let before = stage.settled(LEDGERS.len()).await;
    stage.eventually("all of them write", async || LEDGERS.iter().all(|l| !sink.epochs(l).is_empty()).then_some(())).await;

    // The worker with two of three: one of them is to act, the other is to be found as it was by the guard.
    let old = ["worker-1", "worker-2"].into_iter().find(|w| before.values().filter(|a| a.worker == *w).count() == 2).expect("one has two");
    let lost: Vec<&str> = LEDGERS.into_iter().filter(|l| before[*l].worker == old).collect();
    let paused = pause(&stage, old).await;
    let (guard, agent, work) = (paused[0], paused[1], &paused[2..]);
    let [zombie, other] = [lost[0], lost[1]].map(|ledger| writer_of(ledger, work).expect("it runs"));

    let (ledger, epoch) = (lost[0], before[lost[0]].epoch.0);
    let next = stage
        .eventually("the next owners write", async || {
            let all_write = lost.iter().all(|l| sink.epochs(l).last().is_some_and(|e| *e > before[*l].epoch.0));
            all_write.then(|| *sink.epochs(ledger).last().expect("it writes"))
        })
        .await;
    sink.cut(&stage).await;
    assert!(paused.iter().all(|pid| is_stopped(*pid)), "the old owner is as it was");

    signal::kill(zombie, Signal::SIGCONT).expect("woken");
    stage.eventually("what it writes is refused", async || sink.refused(ledger, epoch).then_some(())).await;
    stage.eventually("it has ended by itself", async || (!is_alive(zombie)).then_some(())).await;
    assert!([guard, agent, other].into_iter().all(is_stopped), "nobody else has acted");
    let kept = sink.epochs(ledger).len();
    stage.eventually("the next owner goes on", async || (sink.epochs(ledger).len() > kept).then_some(())).await;
    let epochs = sink.epochs(ledger);
    let first = epochs.iter().position(|e| *e == next).expect("it has written");
    assert!(epochs[first..].iter().all(|e| *e == next), "{epochs:?}");

    for pid in [agent, guard] {
        signal::kill(pid, Signal::SIGCONT).expect("woken");
    }
    stage.eventually("all of the old work is dead", async || work.iter().all(|pid| !is_alive(*pid)).then_some(())).await;
    stage.ready(2).await;
    stage.settled(LEDGERS.len()).await;
    for ledger in LEDGERS {
        let epochs = sink.epochs(ledger);
        assert!(epochs.is_sorted(), "{ledger}: {epochs:?}");
    }
}

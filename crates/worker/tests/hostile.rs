//! Work that will not die, on real processes: each kind is dead when its worker says that it stopped, when its agent was killed, and
//! when its authority ended; by cgroups, and by process groups.

mod support;

use std::{fs, time::Instant};

use evenkeel_model::{Epoch, Observed, Session};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::{Testbed, Worker, eventually, signal};

/// Each writes `$DIR/<name>.ready` when the worst of it is there.
const KINDS: [(&str, &str); 6] = [
    ("deaf", "trap '' TERM INT HUP QUIT; touch $DIR/deaf.ready; while :; do sleep 0.05; done"),
    (
        "forked-twice",
        "(setsid sh -c 'trap \"\" TERM INT HUP; (setsid sh -c \"touch $DIR/forked-twice.ready; exec sleep 300\" &); exec sleep 300' &); exec sleep 300",
    ),
    // It has no mark any more, and holds the output.
    ("unmarked", "(env -i DIR=$DIR setsid sh -c 'touch $DIR/unmarked.ready; while :; do sleep 0.05; done' &); exec sleep 300"),
    // Generations that live for a moment each, every one in a session of its own.
    ("hopping", "echo 'setsid sh $DIR/hop.sh & touch $DIR/hopping.ready; sleep 0.02' > $DIR/hop.sh; sh $DIR/hop.sh & exec sleep 300"),
    (
        "forking",
        "fork() { while :; do (sleep 1 &); sleep 0.05; done; }; for i in 1 2 3 4 5; do fork & done; touch $DIR/forking.ready; trap '' TERM; wait",
    ),
    ("stopped", "(setsid sh -c 'touch $DIR/stopped.ready; kill -STOP $$' &); trap '' TERM; while :; do kill -STOP $$; done"),
];

/// A process that is stopped by its tracer, which does not let it go on.
const TRACED: &str = "import ctypes, os, signal
def trace():
    ctypes.CDLL(None).ptrace(0, 0, 0, 0)
    os.setsid()
    os.kill(os.getpid(), signal.SIGSTOP)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    trace()
os.waitpid(-1, os.WUNTRACED)
open(os.environ['DIR'] + '/traced.ready', 'w').close()
while True:
    signal.pause()
";

struct Hostile {
    testbed: Testbed,
    worker: Worker,
    session: Session,
    epochs: Vec<(String, Epoch, Value)>,
}

impl Hostile {
    /// All kinds run side by side.
    async fn start(id: &str, given: Value) -> Self {
        let testbed = Testbed::start(id).await;
        let worker = testbed.worker(given);
        let (session, _) = testbed.admit_after(Session(0)).await;
        let mut specs: Vec<(String, Value)> =
            KINDS.iter().map(|(name, script)| ((*name).to_owned(), testbed.script(name, script))).collect();
        let env = json!({"DIR": testbed.folder.path().to_str().expect("utf-8")});
        specs.push(("traced".to_owned(), json!({"command": ["python3", "-c", TRACED], "env": env})));
        let mut epochs = Vec::new();
        for (name, spec) in specs {
            let epoch = testbed.assign(&name, "process", &spec).await;
            epochs.push((name, epoch, spec));
        }
        for (name, ..) in &epochs {
            let ready = testbed.path(&format!("{name}.ready"));
            eventually(&format!("{name} at its worst"), async || ready.exists().then_some(())).await;
        }
        Self { testbed, worker, session, epochs }
    }

    /// The processes that are alive of all this: their environment has the testbed's folder.
    fn alive(&self) -> Vec<String> {
        let mark = format!("DIR={}", self.testbed.folder.path().display());
        let mut alive = Vec::new();
        for entry in fs::read_dir("/proc").expect("proc").flatten() {
            let path = entry.path();
            let Ok(environment) = fs::read(path.join("environ")) else { continue };
            if environment.split(|b| *b == 0).any(|line| line == mark.as_bytes()) {
                let line = fs::read(path.join("cmdline")).unwrap_or_default();
                alive.push(format!("{} {}", entry.file_name().display(), String::from_utf8_lossy(&line).replace('\0', " ")));
            }
        }
        alive
    }

    /// A list is read process by process, so that one that hops could slip through a single one.
    fn nothing_lives(&self) {
        for _ in 0..5 {
            assert_eq!(self.alive(), Vec::<String>::new());
        }
    }

    fn end_unmarked(&self) {
        for line in self.alive().iter().filter(|line| line.contains("unmarked.ready")) {
            let pid = line.split(' ').next().and_then(|pid| pid.parse().ok()).expect("pid");
            // The guard may have been in time.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    /// Waits for the end of all of it, and prints how long that took.
    async fn dies(&self, since: Instant, what: &str) {
        eventually("the end of all work", async || self.alive().is_empty().then_some(())).await;
        println!("{what}: all of it was dead {:?} later", since.elapsed());
    }
}

fn groups() -> Value {
    json!({"containment": "processes"})
}

#[tokio::test]
async fn nothing_is_left_of_what_was_reported_stopped_cgroups() {
    nothing_is_left_of_what_was_reported_stopped("hostile-stop-cgroups", json!({})).await;
}

#[tokio::test]
async fn nothing_is_left_of_what_was_reported_stopped_groups() {
    nothing_is_left_of_what_was_reported_stopped("hostile-stop-groups", groups()).await;
}

async fn nothing_is_left_of_what_was_reported_stopped(id: &str, given: Value) {
    let hostile = Hostile::start(id, given).await;
    assert!(hostile.alive().len() > 10, "{:?}", hostile.alive());
    let told = Instant::now();
    for (name, _, spec) in &hostile.epochs {
        hostile.testbed.tell_stop(name, spec).await;
    }
    for (name, epoch, _) in &hostile.epochs {
        hostile.testbed.phase(name, *epoch, Observed::Stopped).await;
        println!("{id}: {name} was reported stopped {:?} later", told.elapsed());
    }
    hostile.nothing_lives();
}

#[tokio::test]
async fn nothing_survives_its_agent_cgroups() {
    nothing_survives_its_agent("hostile-kill-cgroups", json!({})).await;
}

#[tokio::test]
async fn nothing_survives_its_agent_groups() {
    nothing_survives_its_agent("hostile-kill-groups", groups()).await;
}

async fn nothing_survives_its_agent(id: &str, given: Value) {
    let hostile = Hostile::start(id, given).await;
    let agent = hostile.worker.agent_pid().await;
    let killed = Instant::now();
    signal(agent, Signal::SIGKILL);
    hostile.dies(killed, id).await;
    hostile.nothing_lives();
    // Whoever is not admitted yet starts nothing; and the guard attests only when all was reaped.
    let (_, registration) = hostile.testbed.registered_after(hostile.session).await;
    assert_eq!(registration.attests, Some(hostile.session));
    hostile.nothing_lives();
}

#[tokio::test]
async fn nothing_outlives_its_authority_cgroups() {
    nothing_outlives_its_authority("hostile-end-cgroups", json!({})).await;
}

#[tokio::test]
async fn nothing_outlives_its_authority_groups() {
    nothing_outlives_its_authority("hostile-end-groups", groups()).await;
}

/// The agent does nothing any more, so that the guard has to.
async fn nothing_outlives_its_authority(id: &str, given: Value) {
    let hostile = Hostile::start(id, given).await;
    let frozen = Instant::now();
    signal(hostile.worker.agent_pid().await, Signal::SIGSTOP);
    hostile.dies(frozen, id).await;
    // D, from the send of a proof that was sent before.
    assert!(frozen.elapsed() < evenkeel_worker::authority::Timing::default().authority, "{:?}", frozen.elapsed());
    hostile.nothing_lives();
}

#[tokio::test]
async fn nothing_survives_its_guard_cgroups() {
    nothing_survives_its_guard("hostile-orphan-cgroups", json!({}), Signal::SIGCONT).await;
}

#[tokio::test]
async fn nothing_survives_its_guard_groups() {
    nothing_survives_its_guard("hostile-orphan-groups", groups(), Signal::SIGCONT).await;
}

/// The kernel wakes the agent when its guard has died.
#[tokio::test]
async fn nothing_survives_its_guard_if_the_agent_was_stopped() {
    nothing_survives_its_guard("hostile-orphan-stopped", json!({}), Signal::SIGSTOP).await;
}

async fn nothing_survives_its_guard(id: &str, given: Value, agent_gets: Signal) {
    let by_cgroup = given.get("containment").is_none();
    let hostile = Hostile::start(id, given).await;
    let agent = hostile.worker.agent_pid().await;
    signal(agent, agent_gets);
    let killed = Instant::now();
    hostile.worker.signal(Signal::SIGKILL);
    if !by_cgroup {
        // Without the guard, which adopts orphans, nobody can tell whose it is.
        hostile.end_unmarked();
    }
    hostile.dies(killed, id).await;
    support::dead(agent).await;
    hostile.nothing_lives();
}

/// A program with the rights to do so can leave its cgroup. It is still the guard's to adopt.
#[tokio::test]
async fn what_left_its_cgroup_does_not_survive_its_agent() {
    let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].into_iter().find(|p| fs::exists(format!("{p}/cgroup.procs")).unwrap_or(false));
    let testbed = Testbed::start("hostile-left").await;
    let worker = testbed.worker(json!({}));
    let (session, _) = testbed.admit_after(Session(0)).await;
    let root = root.unwrap_or("/none");
    let script = format!(
        "(setsid sh -c 'echo $$ > {root}/cgroup.procs; trap \"\" TERM HUP; echo $$ > $DIR/child.pid; while :; do sleep 0.05; done' &); exec sleep 300"
    );
    testbed.assign_script("a", &script).await;
    let child = testbed.number("child.pid").await;
    signal(worker.agent_pid().await, Signal::SIGKILL);
    support::dead(child).await;
    let (_, registration) = testbed.registered_after(session).await;
    assert_eq!(registration.attests, Some(session));
}

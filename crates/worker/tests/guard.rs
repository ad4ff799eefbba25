//! The guard on real processes: what may not hold it up, what it starts, and what it makes of what dead guards left behind.

mod support;

use std::{
    fs::{self, File},
    io::{ErrorKind, Read, Write},
    os::{fd::OwnedFd, unix::fs::MetadataExt, unix::process::CommandExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Instant,
};

use evenkeel_model::Session;
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::signal::Signal,
};
use serde_json::{Value, json};
use support::{Testbed, Worker, dead, eventually, is_dead, program, signal};

const QUIET: &str = "exec sleep 300";

/// The writing end of a pipe that has no room left, and the reading end.
fn full_pipe() -> (OwnedFd, File) {
    let (reader, writer) = std::io::pipe().expect("pipe");
    let (reader, mut writer) = (File::from(OwnedFd::from(reader)), File::from(OwnedFd::from(writer)));
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("set");
    let mut room = 0;
    let full = loop {
        match writer.write(&[b'.'; 4096]) {
            Ok(count) => room += count,
            Err(error) => break error.kind(),
        }
    };
    assert!(full == ErrorKind::WouldBlock && room > 0);
    // Whoever writes from now on waits.
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).expect("set");
    (writer.into(), reader)
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_no_guard_up_cgroups() {
    a_log_that_nobody_reads_holds_no_guard_up("guard-log-cgroups", "cgroup").await;
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_no_guard_up_processes() {
    a_log_that_nobody_reads_holds_no_guard_up("guard-log-processes", "processes").await;
}

/// Nothing of it is read from the start on, and the agent does nothing any more: the guard has to.
async fn a_log_that_nobody_reads_holds_no_guard_up(id: &str, containment: &str) {
    let testbed = Testbed::start(id).await;
    let (stderr, mut reader) = full_pipe();
    let given = testbed.given(&json!({"containment": containment}));
    let mut command = Command::new(program());
    let guard = command.arg(given.to_string()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().expect("started");
    // This process must not hold the pipe open.
    drop(command);
    let worker = Worker::of(guard);
    let (session, registration) = testbed.admit_after(Session(0)).await;
    assert_eq!(registration.containment, containment);
    testbed.assign_script("a", QUIET).await;
    let pid = testbed.started("a", 1).await;

    let frozen = Instant::now();
    signal(worker.agent_pid().await, Signal::SIGSTOP);
    dead(pid).await;
    assert!(frozen.elapsed() < evenkeel_worker::protocol::authority::Timing::default().authority, "{:?}", frozen.elapsed());
    // What the guard says of that is said after the kill, and holds up nothing either.
    testbed.registered_after(session).await;

    let read = tokio::task::spawn_blocking(move || {
        let (mut text, mut part) = (String::new(), [0; 4096]);
        while !text.contains("authority ended and was not extended") {
            let count = reader.read(&mut part).expect("read");
            assert!(count > 0, "{text}");
            text.push_str(&String::from_utf8_lossy(&part[..count]));
        }
        reader
    });
    let _reader = tokio::time::timeout(support::DEADLINE, read).await.expect("it is there for whoever reads").expect("read");
}

/// A package manager puts another file in the place of a program that runs, or removes it.
#[tokio::test]
async fn an_agent_is_of_the_version_of_its_guard() {
    let testbed = Testbed::start("guard-version").await;
    let place = testbed.path("worker");
    fs::copy(program(), &place).expect("copied");
    let worker = testbed.worker_by(Command::new(&place), json!({}));
    let (first, _) = testbed.registered_after(Session(0)).await;

    let other = testbed.path("other");
    fs::copy("/bin/false", &other).expect("copied");
    fs::rename(&other, &place).expect("replaced");
    signal(worker.agent_pid().await, Signal::SIGKILL);
    let (second, _) = testbed.registered_after(first).await;

    fs::remove_file(&place).expect("removed");
    let agent = worker.agent_pid().await;
    signal(agent, Signal::SIGKILL);
    testbed.registered_after(second).await;

    // Lists of processes read as ever.
    let agent = eventually("the next agent", async || Some(worker.agent_pid().await).filter(|pid| *pid != agent)).await;
    let line = fs::read(format!("/proc/{agent}/cmdline")).expect("command line");
    assert_eq!(line.split(|b| *b == 0).next(), Some(place.to_str().expect("utf-8").as_bytes()));
    assert_eq!(fs::read_to_string(format!("/proc/{agent}/comm")).expect("name").trim(), "evenkeel-agent");
}

/// The folder of all work of a worker that holds it by a cgroup.
fn work_folder(testbed: &Testbed) -> PathBuf {
    let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].into_iter().find(|p| fs::exists(format!("{p}/cgroup.procs")).unwrap_or(false));
    let membership = fs::read_to_string("/proc/self/cgroup").expect("membership");
    let own = membership.lines().find_map(|line| line.strip_prefix("0::/")).expect("a cgroup (v2)");
    let own = PathBuf::from(root.expect("this test needs a cgroup tree (v2)")).join(own);
    let prefix = format!("evenkeel-{}-", testbed.id);
    let mut folders = fs::read_dir(own).expect("folder").flatten().map(|entry| entry.path());
    folders.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))).expect("the worker's folder")
}

#[tokio::test]
async fn a_work_cgroup_that_was_removed_is_made_anew() {
    let testbed = Testbed::start("guard-removed").await;
    let _worker = testbed.worker(json!({"containment": "cgroup"}));
    let (session, registration) = testbed.admit_after(Session(0)).await;
    assert_eq!(registration.containment, "cgroup");
    fs::remove_dir(work_folder(&testbed)).expect("removed: it is empty");
    testbed.assign_script("a", QUIET).await;
    // Its agent has noticed.
    let (_, registration) = testbed.admit_after(session).await;
    assert_eq!((registration.attests, registration.containment.as_str()), (Some(session), "cgroup"));
    let pid = testbed.started("a", 1).await;
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("membership");
    let folder = work_folder(&testbed);
    let name = folder.file_name().and_then(|name| name.to_str()).expect("name");
    assert!(cgroup.lines().any(|line| line.starts_with("0::") && line.contains(name)), "{cgroup}");
}

fn as_root() {
    assert_eq!(fs::metadata("/proc/self").expect("proc").uid(), 0, "this test needs root");
}

#[tokio::test]
async fn a_guard_in_another_pid_namespace_leaves_living_work_alone_cgroups() {
    a_guard_in_another_pid_namespace_leaves_living_work_alone("guard-namespace-cgroups", "cgroup").await;
}

#[tokio::test]
async fn a_guard_in_another_pid_namespace_leaves_living_work_alone_processes() {
    a_guard_in_another_pid_namespace_leaves_living_work_alone("guard-namespace-processes", "processes").await;
}

/// Two workers of one id, of which the second sees no process of the first: the number of the first one's guard is nobody's there.
async fn a_guard_in_another_pid_namespace_leaves_living_work_alone(id: &str, containment: &str) {
    as_root();
    let testbed = Testbed::start(id).await;
    let given = json!({"containment": containment});
    let worker = testbed.worker(given.clone());
    let (session, registration) = testbed.admit_after(Session(0)).await;
    assert_eq!(registration.containment, containment);
    testbed.assign_script("a", QUIET).await;
    let pid = testbed.started("a", 1).await;

    let mut other = testbed.given(&given);
    other["data_dir"] = json!(testbed.path("other-data"));
    let log = File::create(testbed.path("other.log")).expect("log");
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).arg(program()).arg(other.to_string());
    let mut second = command.stdin(Stdio::null()).stderr(log).spawn().expect("unshare");
    let log = || fs::read_to_string(testbed.path("other.log")).unwrap_or_default();
    // Its agent is there, so its guard has ended what it takes for leftovers. The id is not given to it.
    let ended = eventually("its end", async || second.try_wait().expect("wait")).await;
    assert_eq!(ended.code(), Some(1), "{}", log());
    assert!(log().contains(&format!("the id {} is taken by a live worker", testbed.id)), "{}", log());
    assert!(!is_dead(pid));
    assert_eq!((testbed.starts("a"), testbed.registration().await.map(|(session, _)| session)), (1, Some(session)));
    drop(worker);
}

/// A process that bears the mark of a guard.
struct Marked(Child);

impl Marked {
    fn start(testbed: &Testbed, mark: &str) -> Self {
        let mut command = Command::new("sleep");
        command.arg("300").env("EVENKEEL_WORKER", testbed.id.as_str()).env("EVENKEEL_GUARD", mark);
        Self(command.process_group(0).spawn().expect("started"))
    }

    fn lives(&self) -> bool {
        !is_dead(i32::try_from(self.0.id()).expect("pid"))
    }
}

impl Drop for Marked {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

#[tokio::test]
async fn what_a_dead_guard_left_is_dead_before_an_agent_is_started_cgroups() {
    what_a_dead_guard_left_is_dead_before_an_agent_is_started("guard-left-cgroups", "cgroup").await;
}

#[tokio::test]
async fn what_a_dead_guard_left_is_dead_before_an_agent_is_started_processes() {
    what_a_dead_guard_left_is_dead_before_an_agent_is_started("guard-left-processes", "processes").await;
}

async fn what_a_dead_guard_left_is_dead_before_an_agent_is_started(id: &str, containment: &str) {
    let testbed = Testbed::start(id).await;
    let namespace = fs::metadata("/proc/self/ns/pid").expect("namespace").ino();
    let own = std::process::id();
    let stat = fs::read_to_string("/proc/self/stat").expect("stat");
    let started: u64 = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(19)?.parse().ok()).expect("start");
    // This test plays a living guard, and one that had its number before it.
    let left = Marked::start(&testbed, &format!("{namespace}-{own}-{}", started - 1));
    let living = Marked::start(&testbed, &format!("{namespace}-{own}-{started}"));
    let far = Marked::start(&testbed, &format!("1-{own}-{}", started - 1));

    let worker = testbed.worker(json!({"containment": containment}));
    let agent = worker.agent_pid().await;
    assert!(!left.lives(), "{agent} runs beside it");
    let log = eventually("the log", async || Some(worker.log()).filter(|log| log.contains("that a killed guard left behind"))).await;
    assert!(log.contains(&format!("pids=[{}]", left.0.id())), "{log}");
    assert!(living.lives() && far.lives());
    let (_, registration) = testbed.registered_after(Session(0)).await;
    assert_eq!(registration.containment, containment);
}

/// It is another user's, whom the guard may look into by a capability, and not kill.
#[tokio::test]
async fn nothing_is_started_beside_leftovers_that_do_not_die() {
    as_root();
    let testbed = Testbed::start("guard-left-waits").await;
    let namespace = fs::metadata("/proc/self/ns/pid").expect("namespace").ino();
    let left = Marked::start(&testbed, &format!("{namespace}-{}-1", std::process::id()));
    let place = testbed.open_to_all();
    let worker = || {
        let mut command = Command::new("setpriv");
        let only = [
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--inh-caps=+sys_ptrace,+dac_read_search",
            "--ambient-caps=+sys_ptrace,+dac_read_search",
        ];
        command.args(only).arg(&place);
        testbed.worker_by(command, json!({}))
    };
    let said = |worker: &Worker| worker.log().matches("that a killed guard left behind").count();

    let mut first = worker();
    eventually("it is said", async || (said(&first) == 1).then_some(())).await;
    first.signal(Signal::SIGTERM);
    assert_eq!(first.ended().await, Some(128 + Signal::SIGTERM as i32), "it ends when it is asked to");

    let second = worker();
    eventually("it is said", async || (said(&second) == 2).then_some(())).await;
    eventually("it is said again", async || second.log().contains("nothing is started beside it").then_some(())).await;
    assert!(testbed.registration().await.is_none() && left.lives(), "{}", second.log());
    drop(left);
    testbed.registered_after(Session(0)).await;
}

#[tokio::test]
async fn a_worker_that_is_to_hold_work_by_a_cgroup_does_not_start_without() {
    as_root();
    const NOBODY: u32 = 65_534;
    let testbed = Testbed::start("guard-no-cgroup").await;
    let given: Value = testbed.given(&json!({"containment": "cgroup"}));
    let place = testbed.open_to_all();
    let output = Command::new(place).arg(given.to_string()).uid(NOBODY).gid(NOBODY).output().expect("started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let expected = "--containment cgroup: no cgroup can be made here: Permission denied (os error 13); give the worker one that it may write to \
                    (Linux 5.14 or later; under systemd Delegate=yes), or leave --containment out";
    assert!(said.contains(expected), "{said}");
    assert!(testbed.registration().await.is_none());
}

//! A worker with hostile work, held as a case says, and known to be held so: nothing is left out in silence.
//!
//! Beside the wheel. The test plays the leader; `Lives` judges.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use evenkeel_model::{Epoch, Observed, Session};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    kinds::{BECOME, Kind, WORK},
    lives::Lives,
    support::{self, DEADLINE, Testbed, Worker, eventually, signal},
};

/// The means of holding work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Means {
    Cgroup,
    Processes,
}

/// Who runs the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum User {
    Root,
    Nobody,
}

/// One column of the matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) means: Means,
    pub(crate) user: User,
}

impl Case {
    pub(crate) const ALL: [Self; 4] = [
        Self { means: Means::Cgroup, user: User::Root },
        Self { means: Means::Cgroup, user: User::Nobody },
        Self { means: Means::Processes, user: User::Root },
        Self { means: Means::Processes, user: User::Nobody },
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match (self.means, self.user) {
            (Means::Cgroup, User::Root) => "cgroup_root",
            (Means::Cgroup, User::Nobody) => "cgroup_nobody",
            (Means::Processes, User::Root) => "processes_root",
            (Means::Processes, User::Nobody) => "processes_nobody",
        }
    }
}

/// One piece of work.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) name: String,
    /// By which `Lives` knows it.
    pub(crate) number: usize,
    pub(crate) spec: Value,
    pub(crate) epoch: Epoch,
}

/// How long work may take to stop before it is killed, as the specs say it.
pub(crate) const GRACE: Duration = Duration::from_millis(300);

/// A worker and its work. What is left of it at the end is killed.
pub(crate) struct Bed {
    pub(crate) case: Case,
    pub(crate) worker: Worker,
    pub(crate) lives: Lives,
    pub(crate) session: Session,
    pub(crate) runs: Vec<Run>,
    pub(crate) testbed: Testbed,
    /// After all of the above.
    delegated: Option<Delegated>,
}

impl Bed {
    /// An admitted worker without work.
    pub(crate) async fn open(test: &str, case: Case) -> Self {
        Self::open_with_faults(test, case, &[]).await
    }

    /// The same, whose places fail like this for as long as [`Bed::fault`] is there: a place and an error.
    pub(crate) async fn open_with_faults(test: &str, case: Case, faults: &[(&str, &str)]) -> Self {
        assert!(
            fs::metadata("/proc/self").expect("proc").uid() == 0,
            "hostile work is tried under root and under nobody: run these tests as root, or leave them out: \
             cargo nextest run -E 'not binary(hostile)'"
        );
        let id = format!("{test}-{}", case.as_str()).replace('_', "-");
        let testbed = Testbed::start(&id).await;
        let folder = testbed.folder.path();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).expect("opened");
        fs::write(folder.join("work.py"), WORK).expect("written");
        make_become(folder);
        let delegated = (case.means == Means::Cgroup && case.user == User::Nobody).then(|| Delegated::new(&id));
        let lives = Lives::new(&folder.join("work.py"));
        let fault = |(place, error): &(&str, &str)| format!("{place}={error}@{}", testbed.path(&format!("fault.{place}")).display());
        let faults = faults.iter().map(fault).collect::<Vec<_>>().join(",");
        let worker = start_worker(&testbed, case, delegated.as_ref(), &faults);
        let (session, _) = testbed.admit_after(Session(0)).await;
        Self { case, worker, lives, session, runs: Vec::new(), testbed, delegated }
    }

    /// The same, with work of each of these kinds, at its worst.
    pub(crate) async fn with(test: &str, case: Case, kinds: &[Kind]) -> Self {
        let mut bed = Self::open(test, case).await;
        for kind in kinds {
            bed.assign(kind.0, *kind).await;
        }
        for run in 0..bed.runs.len() {
            bed.ready(run).await;
        }
        bed.is_held_as_the_case_says().await;
        bed
    }

    /// The file that is there while a place fails.
    pub(crate) fn fault(&self, place: &str) -> PathBuf {
        self.path(&format!("fault.{place}"))
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.testbed.path(file)
    }

    /// Assigns work of this kind; gives its index.
    pub(crate) async fn assign(&mut self, name: &str, kind: Kind) -> usize {
        let number = self.runs.len();
        let script = format!("echo $$ > $DIR/$NAME.pid; {}", kind.1);
        let command = self.lives.command(number, &["sh", "-c", &script]);
        let env =
            json!({"DIR": self.testbed.folder.path().to_str().expect("utf-8"), "NAME": name, "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"});
        let spec = json!({"command": command, "env": env, "stop_grace": format!("{}ms", GRACE.as_millis())});
        let epoch = self.testbed.assign(name, "process", &spec).await;
        self.runs.push(Run { name: name.to_owned(), number, spec, epoch });
        number
    }

    /// Waits until the worst of it is there.
    pub(crate) async fn ready(&self, run: usize) {
        let name = &self.runs[run].name;
        let ready = self.path(&format!("{name}.ready"));
        eventually(&format!("{name} at its worst"), async || ready.exists().then_some(())).await;
    }

    pub(crate) async fn main_pid(&self, run: usize) -> i32 {
        self.testbed.number(&format!("{}.pid", self.runs[run].name)).await
    }

    pub(crate) async fn tell_stop(&self, run: usize) {
        self.testbed.tell_stop(&self.runs[run].name, &self.runs[run].spec).await;
    }

    pub(crate) async fn reported_stopped(&self, run: usize) {
        self.testbed.phase(&self.runs[run].name, self.runs[run].epoch, Observed::Stopped).await;
    }

    /// Tells it to stop and waits for the report. How long that took.
    pub(crate) async fn stop(&self, run: usize) -> Duration {
        let told = Instant::now();
        self.tell_stop(run).await;
        self.reported_stopped(run).await;
        told.elapsed()
    }

    /// Waits until all of it is dead. How long that took since then.
    pub(crate) async fn all_dead(&self, since: Instant, what: &str) -> Duration {
        let took = self.dead_but(&[], since, what).await;
        self.lives.nothing_lives();
        took
    }

    /// The same, but for what these have left.
    pub(crate) async fn dead_but(&self, left: &[&str], since: Instant, what: &str) -> Duration {
        let began = Instant::now();
        // One list may pass over what hops from process to process.
        let mut clean = 0;
        while clean < 5 {
            let mut all = self.lives.all();
            all.retain(|run, _| !left.contains(&self.runs[*run].name.as_str()));
            if all.is_empty() {
                clean += 1;
                continue;
            }
            clean = 0;
            let names: Vec<&str> = all.keys().map(|run| self.runs[*run].name.as_str()).collect();
            assert!(began.elapsed() < DEADLINE, "{what}: of {names:?} there lives {all:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let took = since.elapsed();
        println!("{}: {what}: it was dead {took:?} later", self.case.as_str());
        took
    }

    /// Every process that holds the work or its holders, the guard first.
    pub(crate) fn holders(&self) -> Vec<i32> {
        support::descendants(self.worker.guard_pid()).into_iter().filter(|pid| self.lives.is_work(*pid) == Some(false)).collect()
    }

    /// Another worker of the same id: the one before has died.
    pub(crate) fn start_worker_again(&mut self) {
        self.worker = start_worker(&self.testbed, self.case, self.delegated.as_ref(), "");
    }

    /// Waits for this, and admits whoever registers meanwhile.
    pub(crate) async fn admitted_until(&self, mut ask: impl AsyncFnMut() -> Option<()>) {
        let mut admitted = self.session;
        eventually("it", async || {
            let (session, _) = self.testbed.registration().await?;
            if session != admitted {
                admitted = self.testbed.admit_after(admitted).await.0;
            }
            ask().await
        })
        .await;
    }

    pub(crate) async fn signal_agent(&self, number: Signal) -> i32 {
        let agent = self.worker.agent_pid().await;
        signal(agent, number);
        agent
    }

    /// Says how the work is held, by the kernel's word, and fails if that is not what was wanted.
    pub(crate) async fn is_held_as_the_case_says(&self) {
        let pid = self.main_pid(0).await;
        let membership = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its cgroups");
        let own = membership.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
        let found = if own.contains(&format!("/evenkeel-{}-", self.testbed.id)) { Means::Cgroup } else { Means::Processes };
        let owner = fs::metadata(format!("/proc/{}", self.worker.guard_pid())).expect("the guard").uid();
        println!("{}: work is held by {found:?} in {own:?}, the worker is user {owner}", self.case.as_str());
        assert_eq!(found, self.case.means, "work is held by another means; the worker's log:\n{}", self.worker.log());
        assert_eq!(owner, if self.case.user == User::Root { 0 } else { NOBODY }, "the worker is another user's");
    }
}

const NOBODY: u32 = 65_534;

/// The guard's program, its user, and its cgroup.
fn start_worker(testbed: &Testbed, case: Case, delegated: Option<&Delegated>, faults: &str) -> Worker {
    let more = match case.means {
        Means::Cgroup => json!({"containment": "cgroup"}),
        Means::Processes => json!({"containment": "processes"}),
    };
    // Where nobody may read, too: the folder of this program may be root's alone.
    let program = testbed.path("worker");
    if !program.exists() {
        fs::copy(support::program(), &program).expect("copied; `cargo build -p evenkeel-worker --examples` builds it");
    }
    let join = delegated.map(|folder| format!("echo $$ > {}/cgroup.procs && ", folder.0.display())).unwrap_or_default();
    let user = if case.user == User::Nobody { "setpriv --reuid=65534 --regid=65534 --clear-groups -- " } else { "" };
    let mut command = Command::new("sh");
    if !faults.is_empty() {
        command.env("EVENKEEL_FAULTS", faults);
    }
    command.args(["-c", &format!("{join}exec {user}\"$0\" \"$@\""), program.to_str().expect("utf-8")]);
    testbed.worker_by(command, more)
}

/// What a helper that may become anybody is, in a folder from which it may be that.
fn make_become(folder: &Path) {
    let path = folder.join(BECOME);
    fs::copy("/usr/bin/setpriv", &path).expect("setpriv, of util-linux");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).expect("setuid");
    let mount = nix::sys::statvfs::statvfs(folder).expect("a file system");
    assert!(!mount.flags().contains(nix::sys::statvfs::FsFlags::ST_NOSUID), "{} is mounted nosuid: set TMPDIR", folder.display());
}

/// A cgroup that is given to nobody, as a service manager would.
struct Delegated(PathBuf);

impl Delegated {
    fn new(id: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let root = mounts.lines().find_map(|line| {
            let (place, kind) = line.split_once(" - ")?;
            kind.starts_with("cgroup2 ").then(|| PathBuf::from(place.split(' ').nth(4).expect("a mount")))
        });
        let root = root.expect("cgroups (v2) are needed here, and are not mounted");
        let membership = fs::read_to_string("/proc/self/cgroup").expect("cgroups");
        let own = membership.lines().find_map(|line| line.strip_prefix("0::/")).expect("a cgroup");
        let folder = root.join(own).join(format!("test-{id}"));
        remove(&folder);
        fs::create_dir(&folder).expect("a cgroup of its own");
        for path in [folder.clone(), folder.join("cgroup.procs"), folder.join("cgroup.threads"), folder.join("cgroup.subtree_control")] {
            std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY)).expect("given away");
        }
        Self(folder)
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// A cgroup and those below it.
fn remove(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(folder);
}

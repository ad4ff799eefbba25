//! A testbed for worker processes: an etcd of its own, workers as real processes, and the test itself in the part of the leader.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part of it")]

use std::{
    fs::{self, File},
    io,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use evenkeel_local_etcd::{LocalCluster, LocalOptions};
use evenkeel_model::{
    Admission, Assignment, Epoch, Hash, Observed, Phase, Registration, ResourceName, Revision, Selector, Session, Spec, Status, StopReason,
    WorkerId,
};
use evenkeel_store::{Client, Config, Kv, Op, Txn, keys::Keys};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

pub const DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

pub fn name(text: &str) -> ResourceName {
    ResourceName::new(text).expect("name")
}

pub struct Testbed {
    pub etcd: LocalCluster,
    pub client: Client,
    pub keys: Keys,
    pub id: WorkerId,
    pub folder: tempfile::TempDir,
}

impl Testbed {
    /// The worker's id is the test's own: ids name cgroups.
    pub async fn start(id: &str) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let options = LocalOptions { no_fsync: true, ..LocalOptions::new(folder.path().join("etcd")) };
        let etcd = LocalCluster::start(options).await.expect("etcd");
        let client = Client::new(Config::new(etcd.endpoints())).expect("client");
        Self { etcd, client, keys: Keys::new(""), id: WorkerId::new(id).expect("id"), folder }
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// Starts the worker, guard first. `more` is what else it is given.
    pub fn worker(&self, more: Value) -> Worker {
        self.spawn(Command::new(program()), more)
    }

    /// Starts the worker as a user without rights. Only root can.
    pub fn worker_as_nobody(&self) -> Option<Worker> {
        const NOBODY: u32 = 65_534;
        if fs::metadata("/proc/self").expect("proc").uid() != 0 {
            return None;
        }
        let mut command = Command::new(self.open_to_all());
        command.uid(NOBODY).gid(NOBODY);
        Some(self.spawn(command, json!({})))
    }

    /// A copy of the program where any user may read it, and write beside it: the folder of this program may be root's alone.
    pub fn open_to_all(&self) -> PathBuf {
        let copy = self.path("worker");
        fs::copy(program(), &copy).expect("copied");
        fs::set_permissions(self.folder.path(), fs::Permissions::from_mode(0o777)).expect("opened");
        copy
    }

    /// Starts the worker by a command of the test's own: what is given to it is its last argument.
    pub fn worker_by(&self, command: Command, more: Value) -> Worker {
        self.spawn(command, more)
    }

    /// What a worker is given.
    pub fn given(&self, more: &Value) -> Value {
        let mut given = json!({"etcd": self.etcd.endpoints(), "id": self.id.as_str(), "data_dir": self.path("data")});
        given.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
        given
    }

    fn spawn(&self, mut command: Command, more: Value) -> Worker {
        let given = self.given(&more);
        let log = self.path("worker.log");
        let output = File::options().create(true).append(true).open(&log).expect("log");
        let guard = command
            .arg(given.to_string())
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("log"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; build it with `cargo build -p evenkeel-worker --examples`", program().display()));
        Worker { guard, log }
    }

    pub async fn get(&self, key: String) -> Option<Kv> {
        self.client.get(key.as_bytes()).await.expect("read").kv
    }

    pub async fn registration(&self) -> Option<(Session, Registration)> {
        let kv = self.get(self.keys.worker(&self.id)).await?;
        Some((Session(kv.created.0), serde_json::from_slice(&kv.value).expect("registration")))
    }

    /// Waits for a session after this one.
    pub async fn registered_after(&self, before: Session) -> (Session, Registration) {
        eventually("a registration", async || self.registration().await.filter(|(session, _)| *session > before)).await
    }

    /// Admits the next session after this one.
    pub async fn admit_after(&self, before: Session) -> (Session, Registration) {
        let (session, registration) = self.registered_after(before).await;
        let admission = Admission { session, authority_ms: None, origin: registration.origin.clone() };
        self.put(self.keys.admission(&self.id), serde_json::to_vec(&admission).expect("json")).await;
        (session, registration)
    }

    pub async fn put(&self, key: String, value: Vec<u8>) -> Revision {
        self.client.put(key, value).await.expect("put")
    }

    pub async fn delete(&self, keys: &[String]) {
        let then = keys.iter().map(|key| Op::delete(key.as_bytes())).collect();
        self.client.txn(Txn { then, ..Txn::default() }, DEADLINE).await.expect("delete");
    }

    pub async fn write(&self, resource: &str, kind: &str, spec: &Value, phase: Phase) -> Revision {
        self.write_requiring(resource, kind, spec, phase, Selector::EMPTY).await
    }

    async fn write_requiring(&self, resource: &str, kind: &str, spec: &Value, phase: Phase, require: Selector) -> Revision {
        let spec = Spec::from_value(spec.clone()).expect("spec");
        let assignment =
            Assignment { kind: kind.to_owned(), hash: Hash::of(kind, &spec), require, spec, holds: evenkeel_model::Holds::Strict, phase };
        self.put(self.keys.assignment(&self.id, &name(resource)), serde_json::to_vec(&assignment).expect("json")).await
    }

    pub async fn assign(&self, resource: &str, kind: &str, spec: &Value) -> Epoch {
        Epoch(self.write(resource, kind, spec, Phase::Run).await.0)
    }

    /// Assigns a resource, or gives what is assigned other rules.
    pub async fn assign_requiring(&self, resource: &str, require: &str) -> Epoch {
        let require = require.parse().expect("a selector");
        Epoch(self.write_requiring(resource, "noop", &json!({}), Phase::Run, require).await.0)
    }

    /// Assigns a shell script, which appends its start to `starts` and then runs on.
    pub async fn assign_script(&self, resource: &str, script: &str) -> Epoch {
        self.assign(resource, "process", &self.script(resource, script)).await
    }

    pub fn script(&self, resource: &str, script: &str) -> Value {
        let dir = self.folder.path().to_str().expect("utf-8");
        let script = format!("echo $$ > $DIR/{resource}.pid; echo $EVENKEEL_EPOCH >> $DIR/{resource}.starts; {script}");
        json!({"command": ["sh", "-c", script], "env": {"DIR": dir}})
    }

    pub async fn tell_stop(&self, resource: &str, spec: &Value) {
        self.write(resource, "process", spec, Phase::Stop { reason: StopReason::Rebalance, to: None }).await;
    }

    /// What the leader does when a stop was reported.
    pub async fn unassign(&self, resource: &str) {
        self.delete(&[self.keys.assignment(&self.id, &name(resource)), self.keys.status(&self.id, &name(resource))]).await;
    }

    pub async fn status(&self, resource: &str) -> Option<Status> {
        let kv = self.get(self.keys.status(&self.id, &name(resource))).await?;
        Some(serde_json::from_slice(&kv.value).expect("status"))
    }

    pub async fn phase(&self, resource: &str, epoch: Epoch, phase: Observed) -> Status {
        let what = format!("{resource} {}", phase.as_str());
        eventually(&what, async || self.status(resource).await.filter(|s| s.phase == phase && s.epoch == epoch)).await
    }

    /// The number that a script wrote.
    pub async fn number(&self, file: &str) -> i32 {
        let path = self.path(file);
        eventually(file, async || fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok())).await
    }

    /// How often a script was started.
    pub fn starts(&self, resource: &str) -> usize {
        fs::read_to_string(self.path(&format!("{resource}.starts"))).map_or(0, |text| text.lines().count())
    }

    pub async fn started(&self, resource: &str, times: usize) -> i32 {
        eventually(&format!("start {times} of {resource}"), async || (self.starts(resource) >= times).then_some(())).await;
        self.number(&format!("{resource}.pid")).await
    }
}

/// The worker's program.
pub fn program() -> PathBuf {
    let test = std::env::current_exe().expect("this program");
    test.parent().and_then(Path::parent).expect("target folder").join("examples").join("worker")
}

/// A worker: its guard is our child.
pub struct Worker {
    guard: Child,
    log: PathBuf,
}

impl Worker {
    /// One that the test started itself, and whose log it reads.
    pub fn of(guard: Child) -> Self {
        Self { guard, log: PathBuf::new() }
    }

    pub fn guard_pid(&self) -> i32 {
        i32::try_from(self.guard.id()).expect("pid")
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.guard_pid()), signal).expect("signal");
    }

    /// The agent that runs now: the guard's child whose command line says so.
    pub async fn agent_pid(&self) -> i32 {
        eventually("the agent", async || {
            children(self.guard_pid())
                .into_iter()
                .find(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.split(|b| *b == 0).nth(1) == Some(b"agent")))
        })
        .await
    }

    /// Waits for the guard's end: its exit status.
    pub async fn ended(&mut self) -> Option<i32> {
        let guard = &mut self.guard;
        eventually("the guard's end", async || guard.try_wait().expect("wait")).await.code()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Twice: everything dies at once, and the guard cleans up.
        for _ in 0..2 {
            let _ = kill(Pid::from_raw(self.guard_pid()), Signal::SIGCONT);
            let _ = kill(Pid::from_raw(self.guard_pid()), Signal::SIGTERM);
            std::thread::sleep(Duration::from_millis(50));
        }
        let begun = Instant::now();
        while matches!(self.guard.try_wait(), Ok(None)) {
            if begun.elapsed() > Duration::from_secs(10) {
                let _ = self.guard.kill();
                let _ = self.guard.wait();
            }
            std::thread::sleep(POLL);
        }
        if std::thread::panicking() {
            eprintln!("--- the worker's log:\n{}", self.log());
        }
    }
}

fn children(parent: i32) -> Vec<i32> {
    parents().into_iter().filter(|(_, of)| *of == parent).map(|(pid, _)| pid).collect()
}

/// A process and every one below it.
pub fn descendants(root: i32) -> Vec<i32> {
    let parents = parents();
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found
}

/// Every process, with its parent.
fn parents() -> Vec<(i32, i32)> {
    let parent_of = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        Some((pid, stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?))
    };
    fs::read_dir("/proc").expect("proc").flatten().filter_map(parent_of).collect()
}

/// Whether nothing of a process runs any more. Reaping it is its parent's part: that of a process whose guard was killed is the first
/// process of the machine, and one of those that looks only every two seconds was seen. The first thread of a process may end before
/// its others do.
pub fn is_dead(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name in brackets, whatever that holds: the state first, and the number of threads seventeen fields later.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    match fields.first() {
        None | Some(&("X" | "x")) => true,
        Some(&"Z") => fields.get(17).is_none_or(|threads| matches!(*threads, "0" | "1")),
        Some(_) => false,
    }
}

pub fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("signal");
}

pub async fn dead(pid: i32) {
    eventually("a death", async || is_dead(pid).then_some(())).await;
}

/// Polls until there is an answer.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(begun.elapsed() < DEADLINE, "{what} does not come");
        tokio::time::sleep(POLL).await;
    }
}

/// One request over HTTP: status and body.
pub async fn http_get(address: &str, path: &str) -> io::Result<(u16, String)> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default();
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    Ok((code, body))
}

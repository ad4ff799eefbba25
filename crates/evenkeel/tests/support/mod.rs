//! A stage for tests of the whole: an etcd, masters and workers as real processes, on free ports, in a temporary folder. Nothing of it
//! outlives the test.

#![allow(dead_code, reason = "each test file uses a part of it")]

mod space;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use evenkeel_local_etcd::{LocalCluster, LocalOptions, unused_port};
use evenkeel_model::{Revision, WorkerId};
use evenkeel_proto::v1::{
    GetResourceRequest, ListMastersRequest, ListWorkersRequest, PlanRequest, ResourceState, WorkerState, master_client::MasterClient,
};
use evenkeel_store::{Client, Config, KeyRange, keys::Key, keys::Keys};
use nix::{
    errno::Errno,
    sys::signal::{self, Signal},
    unistd::Pid,
};
use tempfile::TempDir;
use tonic::transport::Channel;

/// How long anything may take before a test gives up. It decides nothing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// See the module.
pub(crate) struct Stage {
    pub(crate) etcd: LocalCluster,
    pub(crate) client: Client,
    pub(crate) keys: Keys,
    /// The URLs at which a process finds etcd, where they are not etcd's own.
    pub(crate) routes: BTreeMap<String, Vec<String>>,
    /// What a single process has in its environment.
    pub(crate) environment: BTreeMap<String, Vec<(String, String)>>,
    /// What every process has in its environment, beside its name as `STAGE_NAME`.
    pub(crate) marks: Vec<(String, String)>,
    /// What starts a worker: words before its command line.
    pub(crate) worker_launcher: Vec<String>,
    processes: BTreeMap<String, Process>,
    folder: TempDir,
}

/// The variable in whose value a process, and all that it starts, has its name on the stage.
pub(crate) const NAME_MARK: &str = "STAGE_NAME";

/// A master or a worker.
pub(crate) struct Process {
    child: Child,
    pub(crate) grpc: u16,
    pub(crate) http: u16,
    log: PathBuf,
}

/// An assignment as it stands in etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Assigned {
    pub(crate) worker: String,
    pub(crate) epoch: Revision,
    pub(crate) modified: Revision,
}

impl Stage {
    pub(crate) async fn start() -> Self {
        Self::with_members(1).await
    }

    pub(crate) async fn with_members(members: usize) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let options = LocalOptions {
            members,
            binary: std::env::var_os("EVENKEEL_TEST_ETCD").map(Into::into),
            ..LocalOptions::new(folder.path().join("etcd"))
        };
        let etcd = LocalCluster::start(options).await.expect("etcd");
        Self::on(etcd, folder)
    }

    /// A stage on this etcd, whose files are in a folder that goes with the stage.
    pub(crate) fn on(etcd: LocalCluster, folder: TempDir) -> Self {
        let client = Client::new(Config::new(etcd.endpoints())).expect("client");
        fs::create_dir(folder.path().join("work")).expect("made");
        Self {
            etcd,
            client,
            keys: Keys::new(""),
            routes: BTreeMap::new(),
            environment: BTreeMap::new(),
            marks: Vec::new(),
            worker_launcher: Vec::new(),
            processes: BTreeMap::new(),
            folder,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Starts `evenkeel ROLE --id ID` with free ports and more flags; `master-1` is role master, id 1.
    pub(crate) fn spawn(&mut self, name: &str, more: &[&str]) {
        let (role, id) = name.split_once('-').expect("a role and a number");
        let (grpc, http) = self.processes.get(name).map_or_else(|| (free_port(), free_port()), |p| (p.grpc, p.http));
        let log = self.folder.path().join(format!("{name}.log"));
        let output = fs::File::options().create(true).append(true).open(&log).expect("a log");
        let etcd = self.routes.get(name).cloned().unwrap_or_else(|| self.etcd.endpoints());
        let launcher: &[String] = if role == "worker" { &self.worker_launcher } else { &[] };
        let mut command = evenkeel_by(launcher);
        command
            .envs(self.marks.iter().map(|(mark, value)| (mark, value)))
            .envs(self.environment.get(name).into_iter().flatten().map(|(variable, value)| (variable, value)))
            .env(NAME_MARK, name)
            // The marks by which processes are found are in the environment of work as well.
            .env("EVENKEEL_ENV_PASS", "*")
            .args(["tied", "--parent", &std::process::id().to_string(), "--signal", "kill", "--", env!("CARGO_BIN_EXE_evenkeel")])
            .args([role, "--id", id, "--etcd", &etcd.join(",")])
            .args(["--grpc", &format!("127.0.0.1:{grpc}"), "--http", &format!("127.0.0.1:{http}")])
            .args(more)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a log"))
            .stderr(output);
        if role == "worker" {
            command.arg("--data-dir").arg(self.folder.path().join(name));
        }
        let child = command.spawn().expect("started");
        self.processes.insert(name.to_owned(), Process { child, grpc, http, log });
    }

    pub(crate) async fn masters(&mut self, count: usize, more: &[&str]) {
        for number in 1..=count {
            self.spawn(&format!("master-{number}"), more);
        }
        self.leader().await;
    }

    pub(crate) async fn workers(&mut self, count: usize) {
        for number in 1..=count {
            self.spawn(&format!("worker-{number}"), &[]);
        }
        self.ready(count).await;
    }

    /// Waits until so many workers are ready.
    pub(crate) async fn ready(&self, count: usize) {
        self.eventually("the workers are ready", async || {
            let workers = self.list_workers().await?;
            (workers.iter().filter(|w| w.phase == "ready").count() == count).then_some(())
        })
        .await;
    }

    pub(crate) fn process(&self, name: &str) -> &Process {
        &self.processes[name]
    }

    pub(crate) fn pid(&self, name: &str) -> Pid {
        Pid::from_raw(i32::try_from(self.processes[name].child.id()).expect("a pid"))
    }

    pub(crate) fn signal(&self, name: &str, signal: Signal) {
        signal::kill(self.pid(name), signal).expect("signalled");
    }

    /// Waits for the end of a process and gives its exit status; none: a signal ended it.
    pub(crate) async fn ended(&mut self, name: &str) -> Option<i32> {
        let process = self.processes.get_mut(name).expect("known");
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = process.child.try_wait().expect("waited") {
                return status.code();
            }
            assert!(Instant::now() < end, "{name} does not end; its log:\n{}", fs::read_to_string(&process.log).unwrap_or_default());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Kills a process and everything of it, as a power cut would.
    pub(crate) async fn cut(&mut self, name: &str) {
        let guard = self.pid(name);
        for pid in descendants(guard).into_iter().chain([guard]) {
            // One that has ended in between needs no signal.
            let _ = signal::kill(pid, Signal::SIGKILL);
        }
        self.ended(name).await;
    }

    /// The agent of a worker: the guard's child that runs `worker-agent`.
    pub(crate) async fn agent(&self, name: &str) -> Pid {
        let guard = self.pid(name);
        self.eventually("the agent runs", async || {
            let is_agent = |pid: &Pid| {
                fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains("worker-agent"))
            };
            descendants(guard).into_iter().find(is_agent)
        })
        .await
    }

    /// The name of the master that leads.
    pub(crate) async fn leader(&self) -> String {
        self.eventually("a master leads", async || {
            for (name, _) in self.processes.iter().filter(|(name, _)| name.starts_with("master")) {
                let Ok(mut client) = self.connect(name).await else { continue };
                let Ok(masters) = client.list_masters(ListMastersRequest {}).await else { continue };
                let leader = masters.into_inner().masters.into_iter().find(|m| m.leader);
                if let Some(leader) = leader.filter(|l| self.processes.contains_key(&l.id)) {
                    return Some(leader.id);
                }
            }
            None
        })
        .await
    }

    pub(crate) async fn connect(&self, name: &str) -> Result<MasterClient<Channel>, tonic::transport::Error> {
        MasterClient::connect(format!("http://127.0.0.1:{}", self.processes[name].grpc)).await
    }

    pub(crate) async fn any_master(&self) -> Option<MasterClient<Channel>> {
        for name in self.processes.keys().filter(|name| name.starts_with("master")) {
            if let Ok(client) = self.connect(name).await {
                return Some(client);
            }
        }
        None
    }

    pub(crate) async fn list_workers(&self) -> Option<Vec<WorkerState>> {
        Some(self.any_master().await?.list_workers(ListWorkersRequest::default()).await.ok()?.into_inner().workers)
    }

    pub(crate) async fn get(&self, name: &str) -> Option<ResourceState> {
        let request = GetResourceRequest { name: name.to_owned() };
        self.any_master().await?.get_resource(request).await.ok()?.into_inner().resource
    }

    /// What stands under `/assignments/`, by resource.
    pub(crate) async fn assignments(&self) -> BTreeMap<String, Assigned> {
        self.try_assignments().await.expect("listed")
    }

    /// The same, if etcd answers.
    pub(crate) async fn try_assignments(&self) -> Option<BTreeMap<String, Assigned>> {
        let list = self.client.list(&KeyRange::prefix("/assignments/")).await.ok()?;
        let parse = |kv: evenkeel_store::Kv| match self.keys.parse(&kv.key) {
            Some(Key::Assignment(worker, name)) => {
                (name.to_string(), Assigned { worker: worker.to_string(), epoch: kv.created, modified: kv.modified })
            }
            other => panic!("{other:?} under /assignments/"),
        };
        Some(list.kvs.into_iter().map(parse).collect())
    }

    /// How many resources each worker has, most first.
    pub(crate) async fn counts(&self) -> Vec<usize> {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for assigned in self.assignments().await.into_values() {
            *counts.entry(assigned.worker).or_default() += 1;
        }
        let mut counts: Vec<usize> = counts.into_values().collect();
        counts.sort_by_key(|count| std::cmp::Reverse(*count));
        counts
    }

    /// Waits until the leader has nothing more to do, and everything that is assigned runs.
    pub(crate) async fn settled(&self, resources: usize) -> BTreeMap<String, Assigned> {
        self.eventually("the cluster settles", async || {
            let plan = self.any_master().await?.plan(PlanRequest::default()).await.ok()?.into_inner();
            let assignments = self.assignments().await;
            if !plan.actions.is_empty() || assignments.len() != resources {
                return None;
            }
            for name in assignments.keys() {
                if self.get(name).await?.phase != "running" {
                    return None;
                }
            }
            (self.assignments().await == assignments).then_some(assignments)
        })
        .await
    }

    /// Registered sessions by worker.
    pub(crate) async fn session(&self, worker: &str) -> Option<Revision> {
        let key = self.keys.worker(&WorkerId::new(worker).expect("an id"));
        self.client.get(key.as_bytes()).await.expect("read").kv.map(|kv| kv.created)
    }

    /// Runs a client command against a master.
    pub(crate) fn cli(&self, master: &str, arguments: &[&str]) -> Output {
        let url = format!("http://127.0.0.1:{}", self.processes[master].grpc);
        // Not as a flag: what follows on two dashes is a command line of its own.
        evenkeel().args(arguments).env("EVENKEEL_MASTER", &url).stdin(Stdio::null()).output().expect("run")
    }

    /// What `curl ARGUMENTS http://MASTER/PATH` prints.
    pub(crate) fn curl(&self, master: &str, path: &str, arguments: &[&str]) -> String {
        let url = format!("http://127.0.0.1:{}{path}", self.processes[master].http);
        run(Command::new("curl").args(["-sS", "-m", "20", "-H", "content-type: application/json"]).args(arguments).arg(url))
    }

    /// What `etcdctl get --prefix PREFIX` prints.
    pub(crate) fn etcdctl(&self, prefix: &str) -> String {
        let mut command = Command::new("etcdctl");
        run(command.env("ETCDCTL_API", "3").args(["--endpoints", &self.etcd.endpoint(0), "get", "--prefix", prefix]))
    }

    /// Asks again and again until there is an answer.
    pub(crate) async fn eventually<T>(&self, what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            assert!(Instant::now() < end, "it does not come to be that {what}\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// All that a process has logged.
    pub(crate) fn log(&self, name: &str) -> String {
        fs::read_to_string(&self.processes[name].log).unwrap_or_default()
    }

    /// The end of every log, for a test that fails.
    pub(crate) fn logs(&self) -> String {
        let tail = |(name, process): (&String, &Process)| {
            let log = fs::read_to_string(&process.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().rev().take(15).collect();
            format!("--- {name}\n{}\n", lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
        };
        self.processes.iter().map(tail).collect()
    }

    /// A resource file whose processes take a lock on their name and write down each start; two at once write `overlap`.
    pub(crate) fn manifest(&self, names: &[String]) -> PathBuf {
        let work = self.folder.path().join("work");
        let script = "echo \"start $EVENKEEL_RESOURCE $EVENKEEL_EPOCH $EVENKEEL_WORKER $$\" >> \"$WORK/log\"; \
            exec 9> \"$WORK/$EVENKEEL_RESOURCE.lock\"; \
            flock -n 9 || { echo \"overlap $EVENKEEL_RESOURCE\" >> \"$WORK/log\"; exit 1; }; \
            while true; do sleep 0.2; done";
        let resource = |name: &String| {
            serde_json::json!({"name": name, "kind": "process",
                "spec": {"command": ["sh", "-c", script], "env": {"WORK": work.display().to_string()}}})
        };
        let text = serde_json::json!({ "resources": names.iter().map(resource).collect::<Vec<_>>() }).to_string();
        let path = self.folder.path().join("resources.json");
        fs::write(&path, text).expect("written");
        path
    }

    /// The starts so far: resource, epoch, worker, pid.
    pub(crate) fn starts(&self) -> Vec<(String, String, String, Pid)> {
        let log = fs::read_to_string(self.folder.path().join("work/log")).unwrap_or_default();
        assert!(!log.contains("overlap"), "two owners at once:\n{log}\n{}", self.logs());
        let start = |line: &str| {
            let mut words = line.split(' ').skip(1).map(str::to_owned);
            let mut next = || words.next().expect("a whole line");
            (next(), next(), next(), Pid::from_raw(next().parse().expect("a pid")))
        };
        log.lines().filter(|line| line.starts_with("start ")).map(start).collect()
    }

    /// Waits until the process of each of these has written that it began. Its status says so a little earlier.
    pub(crate) async fn begun(&self, names: &[String]) {
        let all = || names.iter().all(|name| self.starts().iter().any(|(resource, ..)| resource == name));
        self.eventually("all of it has begun", async || all().then_some(())).await;
    }

    /// The process that last started for a resource.
    pub(crate) fn work(&self, name: &str) -> Pid {
        self.starts().into_iter().rev().find(|(resource, ..)| resource == name).expect("it has started").3
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for process in self.processes.values_mut() {
            // A worker's agent ends its work when its guard is gone.
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }
}

/// The binary, with nothing of the caller's environment that concerns it.
pub(crate) fn evenkeel() -> Command {
    evenkeel_by(&[])
}

/// The same, started by another program.
fn evenkeel_by(launcher: &[String]) -> Command {
    let mut words = launcher.iter().map(String::as_str).chain([env!("CARGO_BIN_EXE_evenkeel")]);
    let mut command = Command::new(words.next().expect("one at least"));
    command.args(words);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("EVENKEEL_") {
            command.env_remove(name);
        }
    }
    command
}

pub(crate) fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("run");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// One that no outgoing connection takes before the process listens on it.
pub(crate) fn free_port() -> u16 {
    unused_port().expect("a port")
}

/// Whether a process is there; one that waits to be reaped is not.
pub(crate) fn is_alive(pid: Pid) -> bool {
    let zombie = fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')));
    signal::kill(pid, None) != Err(Errno::ESRCH) && !zombie
}

/// Every process below one.
pub(crate) fn descendants(root: Pid) -> Vec<Pid> {
    let mut found = Vec::new();
    let parents: Vec<(Pid, Pid)> =
        fs::read_dir("/proc").expect("/proc").filter_map(|entry| parent_of(&entry.ok()?.file_name().to_string_lossy())).collect();
    let mut at = vec![root];
    while let Some(parent) = at.pop() {
        let children: Vec<Pid> = parents.iter().filter(|(_, p)| *p == parent).map(|(child, _)| *child).collect();
        at.extend(&children);
        found.extend(children);
    }
    found
}

fn parent_of(pid: &str) -> Option<(Pid, Pid)> {
    let number = pid.parse().ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
    Some((Pid::from_raw(number), Pid::from_raw(parent)))
}

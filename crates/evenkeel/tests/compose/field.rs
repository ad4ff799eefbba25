//! A stack with work that locks its name, callers that never rest, and both oracles. What `chaos` has on processes, on containers.
//!
//! Beside the wheel, around `Stack`. A scenario waits for conditions; the only spans that it sleeps are faults.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use evenkeel_proto::v1::{
    AddResourceRequest, DeleteResourceRequest, ListMastersRequest, PlanRequest, Resource, master_client::MasterClient,
};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

use crate::{
    callers::{self, Callers},
    history,
    oracle::{self, Alive, Line, Wanted, What},
    probe::{self, Probe},
    stack::{self, Container, ETCD, MASTERS, Stack, docker, try_docker},
    summary::Row,
    work::{CONTENT, FOLDER, Manner, boot_time},
};

/// How long anything may take before a test gives up. It decides nothing.
const PATIENCE: Duration = Duration::from_secs(120);
/// Resources that nobody changes.
const BASE: usize = 9;
/// Callers that add, update and delete others.
const CALLERS: usize = 3;

/// See the module.
pub(crate) struct Field {
    pub(crate) stack: Stack,
    pub(crate) runtime: Runtime,
    /// What the work of all workers writes to: a folder that they share, under the same path as here.
    folder: PathBuf,
    row: Row,
    callers: Option<Callers>,
    /// Looks whether etcd answers.
    probe: Option<Probe>,
    /// The resources that nobody changes have been added.
    has_base: bool,
    /// When the scenario began.
    began: u64,
    healed: u64,
    seed: u64,
    /// What the oracle had found before this scenario.
    known: BTreeSet<String>,
}

/// An assignment as it stands in etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Assigned {
    pub(crate) worker: String,
    pub(crate) epoch: u64,
}

impl Field {
    /// Prepares a stack, and takes down what an earlier run has left. Nothing runs yet.
    pub(crate) fn open() -> Self {
        let folder = stack::root().canonicalize().expect("the repository").join("target/compose/field");
        // What is left of the last run may be another user's, as work writes there.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("a folder");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o1777)).expect("open to all");
        let program = std::env::current_exe().expect("the own program");
        let volumes = format!("[\"{0}:{0}\", \"{1}:{1}:ro\"]", folder.display(), program.display());
        let over = folder.join("override.yml");
        fs::write(&over, format!("services:\n  worker:\n    volumes: {volumes}\n")).expect("written");
        let stack = Stack::new(over);
        stack.sweep();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        Self {
            stack,
            runtime,
            folder,
            row: Row::default(),
            callers: None,
            probe: None,
            has_base: false,
            began: 0,
            healed: 0,
            seed: 0,
            known: BTreeSet::new(),
        }
    }

    /// A scenario begins.
    pub(crate) fn begin(&mut self, scenario: &'static str) {
        self.row = Row { scenario, ..Row::default() };
        (self.began, self.healed) = (boot_time(), 0);
        self.known = self.course().into_iter().collect();
    }

    /// What lives as long as the stack.
    pub(crate) fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    pub(crate) fn take_row(&mut self) -> Row {
        std::mem::take(&mut self.row)
    }

    /// Writes down what is being done.
    pub(crate) fn did(&mut self, what: impl Into<String>) {
        self.row.done.push(what.into());
    }

    /// Adds to what there is to tell.
    pub(crate) fn note(&mut self, what: impl Into<String>) {
        self.row.notes.push(what.into());
    }

    pub(crate) fn means_to_overlap(&mut self) {
        self.row.meant_to_overlap = true;
    }

    /// Waits for something, and says how long it took.
    pub(crate) fn eventually<T>(&self, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(begun.elapsed() < PATIENCE, "{}: not within {PATIENCE:?}: {what}", self.row.scenario);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    // ---- what can be seen ---------------------------------------------------------------------------------------------------------------

    /// A connection to any master that answers.
    async fn master() -> Option<MasterClient<Channel>> {
        for (_, _, port) in MASTERS {
            let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("a URL");
            let endpoint = endpoint.connect_timeout(Duration::from_secs(1)).timeout(Duration::from_secs(8));
            let Ok(channel) = endpoint.connect().await else { continue };
            let mut client = MasterClient::new(channel);
            if client.list_masters(ListMastersRequest::default()).await.is_ok() {
                return Some(client);
            }
        }
        None
    }

    /// The service of the master that leads, as a master says.
    pub(crate) fn leader(&self) -> Container {
        let leader = self.eventually("somebody leads", |field| {
            field.runtime.block_on(async {
                let masters = Self::master().await?.list_masters(ListMastersRequest::default()).await.ok()?.into_inner();
                masters.masters.into_iter().find(|master| master.leader).map(|master| master.id)
            })
        });
        self.stack.one(&leader)
    }

    /// Asks etcd from within the container of a member that answers.
    pub(crate) fn etcdctl(arguments: &[&str]) -> Option<String> {
        ETCD.into_iter().find_map(|member| {
            let name = container_name(member)?;
            let command = [&["exec", &name, "/usr/local/bin/etcdctl", "--command-timeout=2s"], arguments].concat();
            try_docker(&command)
        })
    }

    /// The member of etcd that leads the others.
    pub(crate) fn etcd_leader(&self) -> Container {
        let leader = self.eventually("etcd has a leader", |_| {
            ETCD.into_iter().find(|member| {
                let Some(name) = container_name(member) else { return false };
                let status = try_docker(&["exec", &name, "/usr/local/bin/etcdctl", "endpoint", "status", "--write-out=json"]);
                let status: serde_json::Value = status.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
                let status = &status[0]["Status"];
                status["leader"].is_number() && status["leader"] == status["header"]["member_id"]
            })
        });
        self.stack.one(leader)
    }

    /// Who owns what, as it stands in etcd.
    pub(crate) fn assignments() -> Option<BTreeMap<String, Assigned>> {
        let fields = Self::etcdctl(&["get", "--prefix", "/assignments/", "--write-out=fields"])?;
        let (mut found, mut key) = (BTreeMap::new(), None);
        for line in fields.lines() {
            let Some((field, value)) = line.split_once(" : ") else { continue };
            match field {
                "\"Key\"" => key = Some(value.trim_matches('"').trim_start_matches("/assignments/").to_owned()),
                "\"CreateRevision\"" => {
                    let key = key.take()?;
                    let (worker, name) = key.split_once('/')?;
                    found.insert(name.to_owned(), Assigned { worker: worker.to_owned(), epoch: value.parse().ok()? });
                }
                _ => {}
            }
        }
        Some(found)
    }

    /// What is wanted, as it stands in etcd: the content of each.
    fn records() -> Option<BTreeMap<String, String>> {
        let text = Self::etcdctl(&["get", "--prefix", "/resources/", "--print-value-only"])?;
        let record = |line: &str| {
            let value: serde_json::Value = serde_json::from_str(line).expect("json");
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            (text(&value["Name"]), text(&value["Spec"]["env"][CONTENT]))
        };
        Some(text.lines().filter(|line| !line.is_empty()).map(record).collect())
    }

    fn log(&self) -> Vec<Line> {
        oracle::parse(&fs::read_to_string(self.folder.join("log")).unwrap_or_default())
    }

    /// Everything that the oracle finds in the log.
    fn course(&self) -> Vec<String> {
        let judgement = oracle::judge_course(&self.log());
        [judgement.overlaps, judgement.faults].concat()
    }

    /// The work that lives in a worker's container; nothing, where the container does not run.
    fn alive_in(&self, worker: &Container) -> Vec<Alive> {
        // The first line of each process is its number, then come its variables.
        let script = "for p in /proc/[0-9]*; do echo \"pid ${p#/proc/}\"; (tr '\\0' '\\n' <$p/environ) 2>/dev/null; done; true";
        let Some(text) = try_docker(&["exec", &worker.name, "sh", "-c", script]) else { return Vec::new() };
        let folder = format!("{FOLDER}={}", self.folder.display());
        let mut alive = Vec::new();
        for process in text.split("pid ").skip(1) {
            let value = |name: &str| process.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            if !process.lines().any(|line| line == folder) {
                continue;
            }
            let (Some(resource), Some(epoch)) = (value("EVENKEEL_RESOURCE"), value("EVENKEEL_EPOCH")) else { continue };
            let pid = process.lines().next().and_then(|pid| pid.parse().ok()).expect("a number");
            alive.push(Alive { resource: resource.to_owned(), epoch: epoch.parse().expect("an epoch"), pid });
        }
        alive
    }

    /// Whether all base resources run as they are assigned; where, if so.
    pub(crate) fn settled(&self) -> Option<BTreeMap<String, Assigned>> {
        let assigned: BTreeMap<_, _> = Self::assignments()?.into_iter().filter(|(name, _)| name.starts_with("base-")).collect();
        let log = self.log();
        let runs = |(name, assigned): (&String, &Assigned)| {
            let last = log.iter().rev().find(|line| line.resource == *name && line.what != What::Refused);
            last.is_some_and(|line| line.what == What::Start && (line.epoch, &line.worker) == (assigned.epoch, &assigned.worker))
        };
        (assigned.len() == BASE && assigned.iter().all(runs)).then_some(assigned)
    }

    /// How long after this time the first work was started that nobody has changed since the beginning.
    pub(crate) fn first_start_since(&self, stamp: u64) -> Option<Duration> {
        let is_meant = |line: &&Line| line.what == What::Start && line.stamp > stamp && !line.resource.starts_with("call-");
        let first = self.log().iter().filter(is_meant).map(|line| line.stamp).min()?;
        Some(Duration::from_nanos(first - stamp))
    }

    pub(crate) fn has_overlap(&self) -> bool {
        self.course().into_iter().any(|found| !self.known.contains(&found))
    }

    /// Work that ended because a sink knew of a later owner.
    pub(crate) fn refusals(&self) -> usize {
        self.log().iter().filter(|line| line.what == What::Refused && line.stamp > self.began).count()
    }

    // ---- what can be done ---------------------------------------------------------------------------------------------------------------

    /// Brings everything up as the file has it, and waits until all of it is healthy.
    pub(crate) fn up(&self, arguments: &[&str]) {
        self.stack.compose(&[&["up", "--detach", "--no-build"], arguments].concat());
        self.until_healthy();
    }

    pub(crate) fn until_healthy(&self) {
        self.eventually("all containers are healthy", |field| {
            let is_healthy = |container: &Container| {
                let state = try_docker(&["inspect", "--format", "{{.State.Health.Status}}", &container.name]);
                state.is_some_and(|state| state.trim() == "healthy")
            };
            field.stack.all().iter().all(is_healthy).then_some(())
        });
    }

    /// Adds one, as often as it takes.
    pub(crate) fn add(&self, resource: &Resource) {
        self.eventually("it is added", |field| {
            let request = AddResourceRequest { resource: Some(resource.clone()) };
            field.runtime.block_on(async { Self::master().await?.add_resource(request).await.ok() })
        });
    }

    pub(crate) fn delete(&self, name: &str) {
        self.eventually("it is deleted", |field| {
            let request = DeleteResourceRequest { name: name.to_owned(), ..DeleteResourceRequest::default() };
            field.runtime.block_on(async {
                match Self::master().await?.delete_resource(request).await {
                    Ok(_) => Some(()),
                    Err(status) => (status.code() == tonic::Code::NotFound).then_some(()),
                }
            })
        });
    }

    /// A resource whose work locks its name in the folder that all workers share.
    pub(crate) fn resource(&self, name: &str, manner: Manner) -> Resource {
        let mut resource = callers::resource(name, "base", &self.folder, manner);
        // So much that what callers add and delete moves nothing of it for balance.
        resource.weight = Some(100);
        resource
    }

    /// Brings the stack up if it is not, with work on it, and starts the callers.
    pub(crate) fn under_load(&mut self) -> BTreeMap<String, Assigned> {
        if self.stack.all().len() < ETCD.len() + MASTERS.len() + 3 {
            self.up(&[]);
        }
        if !std::mem::replace(&mut self.has_base, true) {
            for number in 1..=BASE {
                self.add(&self.resource(&format!("base-{number}"), Manner::Good));
            }
        }
        let before = self.eventually("all runs", Self::settled);
        self.seed += 1;
        let urls = MASTERS.map(|(_, _, port)| format!("http://127.0.0.1:{port}"));
        let (folder, seed) = (self.folder.clone(), self.seed);
        self.callers = Some(self.runtime.block_on(async { Callers::start(CALLERS, &urls, &folder, seed) }));
        self.eventually("the callers are at work", |field| field.answered_since(0));
        self.began = boot_time();
        before
    }

    /// A fault in which the cluster goes on: every caller is told of the success of something that it begins within it.
    pub(crate) fn answered_during(&self, fault: impl FnOnce(&Self)) {
        let begun = boot_time();
        fault(self);
        self.answered_since(begun).unwrap_or_else(|| panic!("the callers are not answered during the fault"));
    }

    fn answered_since(&self, stamp: u64) -> Option<()> {
        self.callers.as_ref().is_none_or(|callers| callers.all_answered_since(stamp)).then_some(())
    }

    /// From here on it is measured for how long these members do not answer. What that restarts is etcd's affair, if it is long.
    pub(crate) fn watch_etcd(&mut self, members: &[Container]) {
        self.probe = Some(Probe::start(&self.runtime, members));
    }

    /// From here on the cluster has time to settle.
    pub(crate) fn healed(&mut self) {
        self.healed = boot_time();
    }

    /// Everything that was wanted is taken away, with the volumes.
    pub(crate) fn clear(&mut self) {
        self.stack.remove();
        self.has_base = false;
        let _ = fs::remove_file(self.folder.join("log"));
        self.known.clear();
    }

    // ---- the end ------------------------------------------------------------------------------------------------------------------------

    /// Waits until all runs again as wanted, and lets both oracles judge. So often may work have started again that nobody has changed.
    pub(crate) fn judge(&mut self, mut restarts: std::ops::RangeInclusive<usize>) {
        if self.healed == 0 {
            self.healed();
        }
        let healed = self.healed;
        self.eventually("all runs again", Self::settled);
        self.eventually("the callers are answered", |field| field.answered_since(healed));
        self.row.settled = Some(Duration::from_nanos(boot_time() - healed));
        let histories = match self.callers.take() {
            Some(callers) => self.runtime.block_on(callers.end()),
            None => Vec::new(),
        };
        self.eventually("nothing is left to do", |field| {
            field.runtime.block_on(async {
                let plan = Self::master().await?.plan(PlanRequest::default()).await.ok()?.into_inner();
                (plan.actions.is_empty() && plan.undone.is_empty()).then_some(())
            })
        });
        if let Some(probe) = self.probe.take() {
            let away = probe.end(&self.runtime);
            self.note(format!("etcd did not answer for {:.1} s", away.as_secs_f64()));
            restarts = *restarts.start()..=restarts.end() + probe::restarts(away, BASE);
        }
        let records = self.eventually("etcd answers", |_| Self::records());
        // Between a look at etcd and one at the processes something may still be on its way; at the end nothing is.
        let mut ends = Vec::new();
        for _ in 0..50 {
            ends = self.judge_end(&records);
            if ends.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        let called: BTreeMap<String, String> = records.into_iter().filter(|(name, _)| name.starts_with("call-")).collect();
        let lost = history::judge(&histories, &called);
        let overlaps: Vec<String> = self.course().into_iter().filter(|found| !self.known.contains(found)).collect();
        self.row.restarts = oracle::starts_since(&self.log(), self.began, |name| name.starts_with("base-"));
        self.row.overlaps = overlaps.len();
        self.row.acknowledged = histories.iter().map(history::History::acknowledged).sum();
        self.row.lost = lost.len();
        let overlaps = if self.row.meant_to_overlap { Vec::new() } else { overlaps };
        let times = self.row.restarts;
        let many = (!restarts.contains(&times)).then(|| format!("{times} restarts of work, and {restarts:?} are right"));
        let faults = [overlaps, lost, ends, many.into_iter().collect()].concat();
        // The names are the next callers' again.
        called.keys().for_each(|name| self.delete(name));
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }

    fn judge_end(&self, records: &BTreeMap<String, String>) -> Vec<String> {
        let Some(assigned) = Self::assignments() else { return vec!["etcd does not answer".to_owned()] };
        let gone = assigned.keys().filter(|name| !records.contains_key(*name));
        let mut faults: Vec<String> = gone.map(|name| format!("{name}: assigned, and gone")).collect();
        let mut wanted = Wanted::new();
        for (name, content) in records {
            match assigned.get(name) {
                Some(assigned) => drop(wanted.insert(name.clone(), (assigned.epoch, content.clone()))),
                None => faults.push(format!("{name}: wanted, and not assigned")),
            }
        }
        let alive: Vec<Alive> = self.stack.containers("worker").iter().flat_map(|worker| self.alive_in(worker)).collect();
        faults.extend(oracle::judge_end(&self.log(), &alive, &wanted));
        faults
    }

    /// Keeps the logs of a scenario that fails.
    pub(crate) fn keep(&self, scenario: &str) {
        let kept = crate::file().with_file_name("compose-failed").join(scenario);
        let copy = || {
            fs::create_dir_all(&kept)?;
            for container in self.stack.all() {
                fs::write(kept.join(format!("{}.log", container.name)), stack::logs(&container.name))?;
            }
            fs::copy(self.folder.join("log"), kept.join("work.txt")).map(drop)
        };
        match copy() {
            Ok(()) => eprintln!("{scenario}: the logs are kept in {}", kept.display()),
            Err(error) => eprintln!("{scenario}: the logs could not be kept: {error}"),
        }
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        drop(self.callers.take());
        self.stack.sweep();
    }
}

/// The running container of a service that has one.
fn container_name(service: &str) -> Option<String> {
    let project = format!("label=com.docker.compose.project={}", stack::PROJECT);
    let of = format!("label=com.docker.compose.service={service}");
    let name = docker(&["ps", "--filter", &project, "--filter", &of, "--filter", "status=running", "--format", "{{.Names}}"]);
    name.lines().next().map(str::to_owned)
}

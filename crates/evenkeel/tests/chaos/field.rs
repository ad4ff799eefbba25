//! Where a scenario takes place: three members of etcd, masters and workers as real processes, a network that can be cut between any two
//! of them, work that locks its name, and callers that never rest. At the end both oracles judge.
//!
//! Beside the wheel, around `Stage`. A scenario waits for conditions; the only spans that it sleeps are faults.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::RangeInclusive,
    process::Child,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use evenkeel_local_etcd::{LocalCluster, LocalOptions, MemberPorts, Ports};
use evenkeel_proto::v1::{AddResourceRequest, PlanRequest, Resource};
use evenkeel_store::{Client, Config, KeyRange};
use nix::sys::signal::Signal;

use crate::{
    callers::{self, Callers},
    held, history,
    links::Links,
    oracle::{self, Line, Wanted, What},
    processes::{self, Found, STAGE_MARK},
    sharers::{self, Sharers},
    summary::Row,
    support::{Assigned, Stage, is_alive},
    work::{Manner, boot_time},
};

/// What a scenario begins with.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) masters: usize,
    pub(crate) workers: usize,
    /// Resources that nobody changes.
    pub(crate) resources: usize,
    pub(crate) manner: Manner,
    /// Accept an overlap (`ownership: available`).
    pub(crate) available: bool,
    /// Callers that add, update and delete others.
    pub(crate) callers: usize,
    /// Further flags of etcd.
    pub(crate) etcd_flags: Vec<String>,
    /// Workers that know the first member of etcd only.
    pub(crate) tied_to_first: Vec<&'static str>,
    /// What single processes have in their environment.
    pub(crate) environment: Vec<(&'static str, Vec<(String, String)>)>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            masters: 2,
            workers: 3,
            resources: 6,
            manner: Manner::Good,
            available: false,
            callers: 2,
            etcd_flags: Vec::new(),
            tied_to_first: Vec::new(),
            environment: Vec::new(),
        }
    }
}

/// See the module.
pub(crate) struct Field {
    pub(crate) stage: Stage,
    pub(crate) links: Links,
    /// The ids with which the members of etcd introduce themselves to each other.
    pub(crate) member_ids: Vec<String>,
    /// The resources that nobody changes, and where they were in the beginning.
    pub(crate) before: BTreeMap<String, Assigned>,
    row: Arc<Mutex<Row>>,
    setup: Setup,
    callers: Option<Callers>,
    sharers: Option<Sharers>,
    /// When all of it ran for the first time.
    began: u64,
    healed: u64,
    /// A worker that is gone for good.
    lost: Option<String>,
    /// How many restarts there may be.
    may_restart: RangeInclusive<usize>,
    watchdog: Child,
}

/// A resource as it stands in etcd.
struct Record {
    kind: String,
    content: String,
    /// What its sharers have given it.
    shared: Option<u64>,
}

/// The members of etcd, as the network knows them.
pub(crate) const MEMBERS: [&str; 3] = ["etcd-1", "etcd-2", "etcd-3"];

impl Field {
    /// Starts everything, and waits until all runs.
    pub(crate) async fn open(setup: Setup, row: &Arc<Mutex<Row>>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let watchdog = processes::watchdog(folder.path());
        let links = Links::default();
        let ports = member_ports(&links).await;
        let options = LocalOptions {
            binary: std::env::var_os("EVENKEEL_TEST_ETCD").map(Into::into),
            ports: Ports::Given(ports.clone()),
            flags: setup.etcd_flags.clone(),
            ..LocalOptions::new(folder.path().join("etcd"))
        };
        let etcd = LocalCluster::start(options).await.expect("etcd");
        let mark = (STAGE_MARK.to_owned(), folder.path().display().to_string());
        let mut stage = Stage::on(etcd, folder);
        stage.marks.push(mark);
        let member_ids = member_ids(&stage);
        let held = row.lock().unwrap_or_else(PoisonError::into_inner).held;
        held::prepare(&mut stage, held);
        let mut field = Self {
            stage,
            links,
            member_ids,
            before: BTreeMap::new(),
            row: Arc::clone(row),
            setup,
            callers: None,
            sharers: None,
            began: 0,
            healed: 0,
            lost: None,
            may_restart: 0..=usize::MAX,
            watchdog,
        };
        field.begin(&ports).await;
        field
    }

    async fn begin(&mut self, ports: &[MemberPorts]) {
        let names = |role: &str, count: usize| (1..=count).map(|n| format!("{role}-{n}")).collect::<Vec<_>>();
        for name in names("master", self.setup.masters).into_iter().chain(names("worker", self.setup.workers)) {
            let mut route = Vec::new();
            for (member, ports) in MEMBERS.iter().zip(ports) {
                let front = self.links.open(&name, member, ports.client).await;
                route.push(format!("http://127.0.0.1:{front}"));
            }
            if self.setup.tied_to_first.contains(&name.as_str()) {
                route.truncate(1);
            }
            self.stage.routes.insert(name, route);
        }
        for (name, environment) in &self.setup.environment {
            self.stage.environment.insert((*name).to_owned(), environment.clone());
        }
        self.stage.masters(self.setup.masters, &[]).await;
        self.stage.workers(self.setup.workers).await;
        for number in 1..=self.setup.resources {
            self.add(self.resource(&format!("base-{number}"))).await;
        }
        self.before = self.until_settled(None).await;
        self.is_held_as_the_scenario_says();
        self.began = boot_time();
        let folder = self.stage.path().join("work");
        if self.setup.callers > 0 {
            let callers = Callers::start(self.setup.callers, &self.master_urls(), &folder, 7);
            self.stage.eventually("the callers are at work", async || callers.all_answered_since(0).then_some(())).await;
            self.callers = Some(callers);
            self.sharers = Some(Sharers::start(&self.master_urls(), 7));
        }
    }

    /// Writes down how the work is held, by the kernel's word, and fails if that is not what the scenario is about.
    fn is_held_as_the_scenario_says(&self) {
        let work: Vec<Found> = processes::all(self.stage.path()).into_iter().filter(Found::is_main).collect();
        let held = self.row().held;
        match held::judge(held, &work) {
            Ok(how) => self.note(how),
            Err(how) => panic!("{how}\n{}", self.stage.logs()),
        }
    }

    fn master_urls(&self) -> Vec<String> {
        (1..=self.setup.masters).map(|n| format!("http://127.0.0.1:{}", self.stage.process(&format!("master-{n}")).grpc)).collect()
    }

    /// A resource of this scenario's manner.
    pub(crate) fn resource(&self, name: &str) -> Resource {
        let mut resource = callers::resource(name, "base", &self.stage.path().join("work"), self.setup.manner);
        // So much that what callers add and delete moves nothing of it for balance.
        resource.weight = Some(100);
        if self.setup.available {
            "available".clone_into(&mut resource.ownership);
        }
        resource
    }

    /// Adds one, as often as it takes.
    pub(crate) async fn add(&self, resource: Resource) {
        self.stage
            .eventually("it is added", async || {
                let request = AddResourceRequest { resource: Some(resource.clone()) };
                self.stage.any_master().await?.add_resource(request).await.ok()
            })
            .await;
    }

    pub(crate) fn row(&self) -> MutexGuard<'_, Row> {
        self.row.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down what is being done.
    pub(crate) fn did(&self, what: impl Into<String>) {
        self.row().done.push(what.into());
    }

    /// Adds to what there is to tell.
    pub(crate) fn note(&self, what: impl Into<String>) {
        self.row().notes.push(what.into());
    }

    /// From here on the cluster has time to settle.
    pub(crate) fn healed(&mut self) {
        self.healed = boot_time();
    }

    /// From here on, too; and this worker does not come back.
    pub(crate) fn lost(&mut self, worker: &str) {
        self.healed();
        self.lost = Some(worker.to_owned());
    }

    /// So often, and not otherwise, may work start again that nobody has changed.
    pub(crate) fn may_restart(&mut self, times: RangeInclusive<usize>) {
        self.may_restart = times;
    }

    /// A fault that has a span.
    pub(crate) async fn span(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }

    // ---- what can be seen -------------------------------------------------------------------------------------------------------------

    /// What the work has written down so far.
    pub(crate) fn log(&self) -> Vec<Line> {
        oracle::parse(&fs::read_to_string(self.stage.path().join("work/log")).unwrap_or_default())
    }

    /// Starts of the resources that nobody changes, since all of them ran.
    pub(crate) fn restarts(&self) -> usize {
        oracle::starts_since(&self.log(), self.began, |name| name.starts_with("base-"))
    }

    /// The resources of the beginning that are, or were, on this worker.
    pub(crate) fn of(&self, worker: &str) -> BTreeSet<String> {
        self.before.iter().filter(|(_, assigned)| assigned.worker == worker).map(|(name, _)| name.clone()).collect()
    }

    /// The processes of a master or of a worker's host.
    pub(crate) fn host(&self, name: &str) -> Vec<Found> {
        processes::all(self.stage.path()).into_iter().filter(|found| found.name == name).collect()
    }

    /// Waits until the oracle sees two owners.
    pub(crate) async fn until_overlap(&self) {
        let seen = async || (!oracle::judge_course(&self.log()).overlaps.is_empty()).then_some(());
        self.stage.eventually("the oracle sees two owners", seen).await;
    }

    /// Waits until all base resources run as they are assigned, on any worker but this one.
    pub(crate) async fn until_settled(&self, lost: Option<&str>) -> BTreeMap<String, Assigned> {
        self.stage
            .eventually("all that is wanted runs", async || {
                let assigned = self.stage.try_assignments().await?;
                let base: BTreeMap<String, Assigned> = assigned.into_iter().filter(|(name, _)| name.starts_with("base-")).collect();
                let log = self.log();
                let runs = |(name, assigned): (&String, &Assigned)| {
                    let last = log.iter().rev().find(|line| line.resource == *name && line.what != What::Refused);
                    let epoch = u64::try_from(assigned.epoch.0).expect("a revision");
                    Some(assigned.worker.as_str()) != lost
                        && last.is_some_and(|line| {
                            line.what == What::Start && line.epoch == epoch && is_alive(nix::unistd::Pid::from_raw(line.pid))
                        })
                };
                (base.len() == self.setup.resources && base.iter().all(runs)).then_some(base)
            })
            .await
    }

    /// Waits until none of these processes is alive.
    pub(crate) async fn until_dead(&self, found: &[Found]) {
        self.stage.eventually("it is dead", async || found.iter().all(|one| !is_alive(one.pid)).then_some(())).await;
    }

    /// The member of etcd that leads the others.
    pub(crate) async fn etcd_leader(&self) -> usize {
        self.stage
            .eventually("etcd has a leader", async || {
                for member in 0..MEMBERS.len() {
                    let client = Client::new(Config::new([self.stage.etcd.endpoint(member)])).ok()?;
                    if client.status().await.is_ok_and(|status| status.leads) && client.get(b"/").await.is_ok() {
                        return Some(member);
                    }
                }
                None
            })
            .await
    }

    // ---- what can be done -------------------------------------------------------------------------------------------------------------

    /// Kills a host: the guard, the agent and all work, as a power cut would.
    pub(crate) async fn kill_host(&mut self, name: &str) -> u64 {
        let stamp = boot_time();
        // Frozen first, so that nobody on it notices that another has gone.
        processes::signal_all(&self.host(name), Signal::SIGSTOP);
        processes::end(self.stage.path(), |found| found.name == name);
        self.stage.ended(name).await;
        stamp
    }

    /// Cuts the network between a process and all members of etcd, or some of its directions.
    pub(crate) fn weather(&self, name: &str, weather: crate::links::Weather) {
        self.links.set(&[name], &MEMBERS, weather);
    }

    // ---- the end ----------------------------------------------------------------------------------------------------------------------

    /// Waits until all runs again as wanted, and lets both oracles judge.
    pub(crate) async fn judged(mut self) {
        let healed = if self.healed == 0 { boot_time() } else { self.healed };
        self.until_settled(self.lost.as_deref()).await;
        let answered = || self.callers.as_ref().is_none_or(|callers| callers.all_answered_since(healed)).then_some(());
        self.stage.eventually("the callers are answered", async || answered()).await;
        self.row().settled = Some(Duration::from_nanos(boot_time() - healed));
        let histories = match self.callers.take() {
            Some(callers) => callers.end().await,
            None => Vec::new(),
        };
        let judge_shared = match self.sharers.take() {
            Some(sharers) => Some(sharers.end().await),
            None => None,
        };
        self.stage.eventually("nothing is left to do", async || self.calm().await).await;
        let mut ends = Vec::new();
        // Between a look at etcd and one at the processes something may still be on its way; at the end nothing is.
        for _ in 0..200 {
            ends = self.judge_end().await;
            if ends.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let course = oracle::judge_course(&self.log());
        let mut lost = history::judge(&histories, &self.called().await);
        let mut acknowledged: usize = histories.iter().map(history::History::acknowledged).sum();
        if let Some(judge) = judge_shared {
            match judge(self.records().await.get(sharers::NAME).and_then(|record| record.shared)) {
                Ok(calls) => acknowledged += calls,
                Err(why) => lost.push(why),
            }
        }
        let mut row = self.row();
        row.restarts = self.restarts();
        row.overlaps = course.overlaps.len();
        row.acknowledged = acknowledged;
        row.lost = lost.len();
        let overlaps = if row.meant_to_overlap { Vec::new() } else { [course.overlaps, course.faults].concat() };
        let allowed = &self.may_restart;
        let restarts = (!allowed.contains(&row.restarts)).then(|| format!("{} restarts of work, and {allowed:?} are right", row.restarts));
        let faults = [overlaps, lost, ends, restarts.into_iter().collect()].concat();
        drop(row);
        assert!(faults.is_empty(), "{}\n{}", faults.join("\n"), self.stage.logs());
    }

    /// Whether the leader has nothing to do and nothing to wait for.
    pub(crate) async fn calm(&self) -> Option<()> {
        let plan = self.stage.any_master().await?.plan(PlanRequest::default()).await.ok()?.into_inner();
        (plan.actions.is_empty() && plan.undone.is_empty()).then_some(())
    }

    async fn judge_end(&self) -> Vec<String> {
        let records = self.records().await;
        let assigned = self.stage.assignments().await;
        let gone = assigned.keys().filter(|name| !records.contains_key(*name));
        let mut faults: Vec<String> = gone.map(|name| format!("{name}: assigned, and gone")).collect();
        let mut wanted = Wanted::new();
        for (name, record) in records {
            match assigned.get(&name) {
                Some(_) if record.kind != "process" => {}
                Some(assigned) => drop(wanted.insert(name, (u64::try_from(assigned.epoch.0).expect("a revision"), record.content))),
                None => faults.push(format!("{name}: wanted, and not assigned")),
            }
        }
        let found = processes::all(self.stage.path());
        faults.extend(oracle::judge_end(&self.log(), &processes::alive(&found), &wanted));
        let stray = |one: &Found| {
            let (name, epoch) = one.work.as_ref()?;
            let is_wanted = wanted.get(name).is_some_and(|(wanted, _)| wanted == epoch);
            (!is_wanted).then(|| format!("{name}: {} is left of epoch {epoch}: {}", one.pid, one.line))
        };
        faults.extend(found.iter().filter_map(stray));
        faults
    }

    /// What stands in etcd as wanted.
    async fn records(&self) -> BTreeMap<String, Record> {
        let list = self.stage.client.list(&KeyRange::prefix("/resources/")).await.expect("listed");
        let record = |kv: evenkeel_store::Kv| {
            let value: serde_json::Value = serde_json::from_slice(&kv.value).expect("json");
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            let content = text(&value["Spec"]["env"][crate::work::CONTENT]);
            (text(&value["Name"]), Record { kind: text(&value["Kind"]), content, shared: sharers::content_of(&value) })
        };
        list.kvs.into_iter().map(record).collect()
    }

    /// The content of each of the callers' resources.
    async fn called(&self) -> BTreeMap<String, String> {
        let records = self.records().await.into_iter().filter(|(name, _)| name.starts_with("call-"));
        records.map(|(name, record)| (name, record.content)).collect()
    }

    /// Keeps the logs of a scenario that fails.
    fn keep(&self) {
        let scenario = self.row().scenario;
        let kept = crate::summary::file().with_file_name("chaos-failed").join(scenario);
        let copy = || {
            fs::create_dir_all(&kept)?;
            for entry in fs::read_dir(self.stage.path())?.chain(fs::read_dir(self.stage.path().join("etcd"))?) {
                let path = entry?.path();
                if path.extension().is_some_and(|ending| ending == "log") {
                    fs::copy(&path, kept.join(path.file_name().unwrap_or_default()))?;
                }
            }
            fs::copy(self.stage.path().join("work/log"), kept.join("work.txt")).map(drop)
        };
        match copy() {
            Ok(()) => eprintln!("{scenario}: the logs are kept in {}", kept.display()),
            Err(error) => eprintln!("{scenario}: the logs could not be kept: {error}"),
        }
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep();
        }
        processes::end(self.stage.path(), |_| true);
        // Nothing is left that it would have to end.
        let _ = self.watchdog.kill().and_then(|()| self.watchdog.wait());
    }
}

/// Ports for three members, and the network between them.
async fn member_ports(links: &Links) -> Vec<MemberPorts> {
    let mut held = Vec::new();
    let mut free = || loop {
        let port = fastrand::u16(15_000..32_000);
        if let Ok(listener) = std::net::TcpListener::bind(("127.0.0.1", port)) {
            held.push(listener);
            return port;
        }
    };
    let mut ports = Vec::new();
    for member in MEMBERS {
        let (client, peer) = (free(), free());
        ports.push(MemberPorts { client, peer, peer_front: links.open_for_peers(member, peer).await });
    }
    ports
}

/// The members' ids, in their order.
fn member_ids(stage: &Stage) -> Vec<String> {
    let mut command = std::process::Command::new("etcdctl");
    let list = crate::support::run(command.env("ETCDCTL_API", "3").args(["--endpoints", &stage.etcd.endpoint(0), "member", "list"]));
    let id = |member: &&str| {
        let line = list.lines().find(|line| line.split(", ").nth(2) == Some(member));
        line.and_then(|line| line.split(", ").next()).expect("a member").to_owned()
    };
    MEMBERS.iter().map(id).collect()
}

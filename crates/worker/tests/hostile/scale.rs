//! Ten thousand real processes on one worker: how long it takes to start all, to stop all, and to kill all by the guard; what that holds of
//! memory, threads and descriptors; and what it costs to stop one among them. `EVENKEEL_MANY` gives another number.
//!
//! Beside the wheel. What depends on the machine is printed; what does not is asserted.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use evenkeel_model::{Assignment, Hash, Holds, Observed, Phase, ResourceName, Selector, Spec, Status, StopReason};
use evenkeel_store::{KeyRange, Op, Txn};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    Speed,
    bed::{Bed, Case, Means, User},
    support::{is_dead, name},
    trial,
};

pub(crate) fn all() -> Vec<Trial> {
    let case = |means| Case { means, user: User::Root };
    [Means::Processes, Means::Cgroup].map(|means| trial("ten_thousand_processes", case(means), Speed::Long, many)).into()
}

/// How many operations etcd takes in one transaction, with its own settings.
const OPERATIONS: usize = 100;
/// How many are stopped one by one. The kernel counts processor time by hundredths of a second.
const ONE_BY_ONE: usize = 50;
/// How much processor one stop may take, of everything that holds work.
const PROCESSOR: Duration = Duration::from_millis(50);
/// How many descriptors and threads an agent has that do not grow with what it runs.
const DESCRIPTORS: usize = 200;
const THREADS: usize = 64;
/// In a second, as `/proc` counts processor time: the same for every program on Linux.
const TICKS: f64 = 100.0;
/// Nothing here waits longer.
const PATIENCE: Duration = Duration::from_secs(180);

async fn many(case: Case) {
    let count = std::env::var("EVENKEEL_MANY").map_or(10_000, |text| text.parse().expect("a number"));
    let many = Many { bed: Bed::open("h-many", case).await, count, seconds: (1_000_000 + std::process::id()).to_string() };
    let mut rows: Vec<(&str, String)> = vec![("processes", count.to_string())];

    let began = Instant::now();
    many.tell_all(Phase::Run).await;
    many.until("all run", async || many.living() == count).await;
    rows.push(("all run", in_seconds(began)));
    many.until("all are reported to run", async || many.reported(Observed::Running).await == count).await;
    rows.push(("all are reported to run", in_seconds(began)));
    many.is_held_as_the_case_says();

    let held = many.holders().await;
    for (role, holders) in &held {
        let memory = |field: &str| holders.iter().map(|pid| rollup(*pid, field)).sum::<usize>() / 1024;
        rows.push((role, format!("{} of them, PSS {} MiB, RSS {} MiB", holders.len(), memory("Pss:"), memory("Rss:"))));
    }
    let agent = many.bed.worker.agent_pid().await;
    let descriptors = fs::read_dir(format!("/proc/{agent}/fd")).expect("its files").count();
    let threads = fs::read_dir(format!("/proc/{agent}/task")).expect("its threads").count();
    rows.push(("descriptors of the agent", descriptors.to_string()));
    rows.push(("threads of the agent", threads.to_string()));

    let before = many.processor().await;
    for number in 0..ONE_BY_ONE {
        many.stop_one(number).await;
    }
    let one = (many.processor().await - before) / u32::try_from(ONE_BY_ONE).expect("few");
    rows.push(("processor to stop one", format!("{:.1} ms, all holders together", one.as_secs_f64() * 1_000.0)));

    many.bed.signal_agent(Signal::SIGSTOP).await;
    let level = many.living();
    many.until("the guard kills", async || many.living() < level).await;
    let killed = Instant::now();
    many.until("the guard has killed all", async || many.living() == 0).await;
    rows.push(("killed by the guard, from the first death seen", in_seconds(killed)));

    let (again, _) = many.bed.testbed.admit_after(many.bed.session).await;
    let began = Instant::now();
    let left = count - ONE_BY_ONE;
    many.until("all run again", async || many.living() == left).await;
    rows.push(("all run again, from the admission", in_seconds(began)));
    many.until("all are reported again", async || many.reported(Observed::Running).await == left).await;
    let began = Instant::now();
    many.tell_all(Phase::Stop { reason: StopReason::Rebalance, to: None }).await;
    many.until("all are dead", async || many.living() == 0).await;
    rows.push(("all are dead, from the first order to stop", in_seconds(began)));
    many.until("all are reported stopped", async || many.reported(Observed::Stopped).await == count).await;
    rows.push(("all are reported stopped", in_seconds(began)));
    let session = many.bed.testbed.registration().await.expect("a registration").0;

    let text: String = rows.iter().map(|(what, figure)| format!("{what:48} {figure}\n")).collect();
    println!("{}, {}:\n{text}", case.as_str(), if cfg!(debug_assertions) { "a debug build" } else { "a release build" });
    assert_eq!(session, again, "its authority ended");
    assert!(descriptors <= count + DESCRIPTORS, "{descriptors} descriptors for {count} runs");
    assert!(threads <= THREADS, "{threads} threads for {count} runs");
    assert!(one < PROCESSOR, "{one:?} of processor to stop one among {count}");
}

fn in_seconds(since: Instant) -> String {
    format!("{:.2} s", since.elapsed().as_secs_f64())
}

struct Many {
    bed: Bed,
    count: usize,
    /// What the work sleeps, so that it is known by its command line.
    seconds: String,
}

impl Many {
    fn resource(number: usize) -> ResourceName {
        name(&format!("r{number:05}"))
    }

    fn assignment(&self, phase: Phase) -> Vec<u8> {
        let spec = Spec::from_value(json!({"command": ["/bin/sleep", self.seconds]})).expect("spec");
        let kind = "process".to_owned();
        let assignment = Assignment { hash: Hash::of(&kind, &spec), holds: Holds::Strict, kind, require: Selector::EMPTY, spec, phase };
        serde_json::to_vec(&assignment).expect("json")
    }

    async fn tell_all(&self, phase: Phase) {
        let keys = &self.bed.testbed.keys;
        let value = self.assignment(phase);
        let numbers: Vec<usize> = (0..self.count).collect();
        for some in numbers.chunks(OPERATIONS) {
            let put = |number: &usize| Op::put(keys.assignment(&self.bed.testbed.id, &Self::resource(*number)), value.clone());
            let txn = Txn { then: some.iter().map(put).collect(), ..Txn::default() };
            self.bed.testbed.client.txn(txn, crate::support::DEADLINE).await.expect("written");
        }
    }

    async fn stop_one(&self, number: usize) {
        let resource = Self::resource(number);
        let key = self.bed.testbed.keys.assignment(&self.bed.testbed.id, &resource);
        self.bed.testbed.put(key, self.assignment(Phase::Stop { reason: StopReason::Rebalance, to: None })).await;
        let stopped = async || self.bed.testbed.status(resource.as_str()).await.is_some_and(|status| status.phase == Observed::Stopped);
        self.until("it is stopped", stopped).await;
    }

    async fn until(&self, what: &str, mut ask: impl AsyncFnMut() -> bool) {
        let began = Instant::now();
        while !ask().await {
            assert!(began.elapsed() < PATIENCE, "{what} does not come; {} live; log:\n{}", self.living(), tail(&self.bed.worker.log()));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// How many of the work live.
    fn living(&self) -> usize {
        self.work().len()
    }

    fn work(&self) -> Vec<i32> {
        let line = format!("/bin/sleep\0{}\0", self.seconds);
        pids()
            .filter(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|found| found == line.as_bytes()) && !is_dead(*pid))
            .collect()
    }

    async fn reported(&self, phase: Observed) -> usize {
        let prefix = self.bed.testbed.keys.statuses_of(&self.bed.testbed.id);
        let list = self.bed.testbed.client.list(&KeyRange::prefix(prefix)).await.expect("listed");
        list.kvs.iter().filter(|kv| serde_json::from_slice::<Status>(&kv.value).expect("status").phase == phase).count()
    }

    /// The guard, its agent, and what is between the agent and the work.
    async fn holders(&self) -> BTreeMap<&'static str, Vec<i32>> {
        let (guard, agent) = (self.bed.worker.guard_pid(), self.bed.worker.agent_pid().await);
        let work = self.work();
        let parents: BTreeMap<i32, i32> = pids().filter_map(|pid| Some((pid, fields(pid)?.get(1)?.parse().ok()?))).collect();
        let is_below = |mut pid: i32| {
            while let Some(parent) = parents.get(&pid) {
                if *parent == guard {
                    return true;
                }
                pid = *parent;
            }
            false
        };
        let mut holders = BTreeMap::from([("guard", vec![guard]), ("agent", vec![agent])]);
        for (pid, parent) in &parents {
            if *pid != agent && is_below(*pid) && work.binary_search(pid).is_err() {
                let role = if *parent == agent { "spawner" } else { "parents of work" };
                holders.entry(role).or_default().push(*pid);
            }
        }
        holders
    }

    /// Processor time of all holders so far, and of whoever they have reaped.
    async fn processor(&self) -> Duration {
        let of = |pid: i32| fields(pid).map_or(0.0, |fields| fields[11..15].iter().map(|ticks| ticks.parse::<f64>().expect("ticks")).sum());
        Duration::from_secs_f64(self.holders().await.into_values().flatten().map(of).sum::<f64>() / TICKS)
    }

    fn is_held_as_the_case_says(&self) {
        let pid = self.work()[0];
        let membership = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its cgroups");
        let by_cgroup = membership.contains(&format!("/evenkeel-{}-", self.bed.testbed.id));
        assert_eq!(by_cgroup, self.bed.case.means == Means::Cgroup, "{membership}");
    }
}

impl Drop for Many {
    fn drop(&mut self) {
        // What a test that fails has left: the bed knows only of its own kinds.
        for pid in self.work() {
            if std::thread::panicking() {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

fn pids() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").expect("proc").flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// What stands after the name in `/proc/<pid>/stat`.
fn fields(pid: i32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit(')').next()?.split_whitespace().map(str::to_owned).collect())
}

/// Memory of a process, in KiB.
fn rollup(pid: i32, field: &str) -> usize {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().rev().take(20).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

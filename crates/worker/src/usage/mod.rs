//! What work uses: processor time, memory and processes, of each run and of all of them.
//!
//! Beside the wheel: worker::server asks here, and nothing is decided from the answer. One pass over the list of processes serves all runs, and
//! all who ask within a while. It is made on a thread of its own, never on the runtime, and as often as a small part of one processor allows,
//! whoever asks. It is not written to etcd, and it touches no process.

mod list;

use std::{
    collections::{BTreeMap, HashMap},
    fmt, io,
    sync::{Arc, Mutex as StdMutex, PoisonError},
    time::Duration,
};

use evenkeel_metrics::{gauge, gauge_of_seconds};
use evenkeel_model::ResourceName;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};
use tokio::{
    sync::{Mutex, OwnedMutexGuard, oneshot},
    time::Instant,
};

use self::list::Process;

/// The least time from one pass to the next. Prometheus asks every 15 s or so, and a person who watches looks no closer.
const KEPT: Duration = Duration::from_secs(2);
/// After a pass nobody makes another for so many times as long as it took, so that callers cost 5% of one processor at most. The kernel needs
/// some 20 us for a process: with 20,000 a pass takes 0.4 s, and is kept for 8 s.
const REST_FACTOR: u32 = 20;

/// The process from which all processes of one run descend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) pid: i32,
    /// It is part of the work itself. Otherwise it only looks after the work: what it has reaped counts, and itself it does not.
    pub(crate) is_work: bool,
}

/// What some processes use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) cpu: Duration,
    /// Bytes in RAM; what processes share is counted for each.
    pub(crate) memory: u64,
    pub(crate) processes: u32,
}

/// One pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    /// Of each run that has a process; the processor time is that of the run, since it was started.
    pub(crate) runs: BTreeMap<ResourceName, Used>,
    /// Of all runs together; the processor time is that of all that ever ran since this agent began.
    pub(crate) total: Used,
    /// How long the pass took.
    pub(crate) took: Duration,
}

/// What was read, or why it could not be.
pub(crate) type Read = Result<Arc<Reading>, Arc<str>>;

type Roots = dyn Fn() -> Vec<(ResourceName, Root)> + Send + Sync;
type List = dyn Fn() -> io::Result<Vec<Process>> + Send + Sync;

/// Reads what work uses, for whoever asks.
#[derive(Clone)]
pub(crate) struct Usage {
    roots: Arc<Roots>,
    list: Arc<List>,
    kept: Arc<Mutex<Kept>>,
    /// The last pass, for the page of metrics.
    shown: Arc<StdMutex<Option<Arc<Reading>>>>,
}

/// What was read last, and what is counted from pass to pass.
#[derive(Debug, Default)]
struct Kept {
    last: Option<(Instant, Read)>,
    /// When the next pass may begin.
    next: Option<Instant>,
    ledger: Ledger,
}

impl Usage {
    /// Of the runs that descend from `roots`, which are looked up for each pass.
    pub(crate) fn new(roots: impl Fn() -> Vec<(ResourceName, Root)> + Send + Sync + 'static) -> Self {
        Self::over(roots, list::processes)
    }

    fn over(
        roots: impl Fn() -> Vec<(ResourceName, Root)> + Send + Sync + 'static,
        list: impl Fn() -> io::Result<Vec<Process>> + Send + Sync + 'static,
    ) -> Self {
        Self { roots: Arc::new(roots), list: Arc::new(list), kept: Arc::default(), shown: Arc::default() }
    }

    /// What work uses: read now, or within the last seconds. Those who ask meanwhile wait for one pass.
    pub(crate) async fn read(&self) -> Read {
        let kept = Arc::clone(&self.kept).lock_owned().await;
        if let Some((_, read)) = kept.last.as_ref().filter(|_| kept.next.is_some_and(|next| Instant::now() < next)) {
            return read.clone();
        }
        let (sender, answer) = oneshot::channel();
        let usage = self.clone();
        // The lock goes with the pass: a caller who has gone does not let another one begin beside it.
        let pass = move || drop(sender.send(usage.pass(kept)));
        let failed = |error: &dyn fmt::Display| Arc::from(format!("what work uses cannot be read: {error}"));
        std::thread::Builder::new().name("usage".to_owned()).spawn(pass).map_err(|error| failed(&error))?;
        answer.await.map_err(|error| failed(&error))?
    }

    fn pass(&self, mut kept: OwnedMutexGuard<Kept>) -> Read {
        let began = std::time::Instant::now();
        let roots = (self.roots)();
        let read = (self.list)().map(|processes| kept.ledger.enter(&roots, &processes));
        let took = began.elapsed();
        let read: Read = match read {
            Ok(reading) => Ok(Arc::new(Reading { took, ..reading })),
            Err(error) => Err(format!("the list of processes cannot be read: {error}").into()),
        };
        if let Err(error) = &read
            && kept.last.as_ref().is_none_or(|(_, last)| last != &read)
        {
            tracing::warn!(%error, "what work uses is not known");
        }
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = read.clone().ok();
        let now = Instant::now();
        kept.next = Some(now + rest_after(took));
        kept.last = Some((now, read.clone()));
        read
    }

    fn shown(&self) -> Option<Arc<Reading>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Usage").field("shown", &self.shown()).finish_non_exhaustive()
    }
}

/// How long a pass is kept.
fn rest_after(took: Duration) -> Duration {
    (took * REST_FACTOR).max(KEPT)
}

/// Counts processor time from pass to pass, so that it never goes back.
#[derive(Debug, Default)]
struct Ledger {
    runs: BTreeMap<ResourceName, Entry>,
    /// Of all that ever ran.
    cpu: Duration,
}

/// What one run had used when it was last seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    pid: i32,
    /// When that process began: a pid may be another's later.
    began: u64,
    cpu: Duration,
}

impl Ledger {
    fn enter(&mut self, roots: &[(ResourceName, Root)], processes: &[Process]) -> Reading {
        let mut reading = Reading::default();
        let mut runs = BTreeMap::new();
        for ((name, root), sum) in roots.iter().zip(sums(roots, processes)) {
            let Some(Sum { began, mut used }) = sum else { continue };
            let before = self.runs.get(name).filter(|entry| (entry.pid, entry.began) == (root.pid, began));
            let before = before.map(|entry| entry.cpu).unwrap_or_default();
            // What somebody else has reaped is in no sum any more.
            used.cpu = used.cpu.max(before);
            self.cpu += used.cpu - before;
            reading.total.memory += used.memory;
            reading.total.processes += used.processes;
            runs.insert(name.clone(), Entry { pid: root.pid, began, cpu: used.cpu });
            reading.runs.insert(name.clone(), used);
        }
        self.runs = runs;
        reading.total.cpu = self.cpu;
        reading
    }
}

/// What the processes of one run use together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sum {
    /// When the root began.
    began: u64,
    used: Used,
}

/// Of each root what descends from it, in their order; none: it is not in the list. Below two roots the nearer one counts.
fn sums(roots: &[(ResourceName, Root)], processes: &[Process]) -> Vec<Option<Sum>> {
    let owners = owners(roots, processes);
    let mut sums = vec![None; roots.len()];
    for (process, owner) in processes.iter().zip(&owners) {
        if let Some(index) = owner.filter(|index| roots[*index].1.pid == process.pid) {
            sums[index] = Some(Sum { began: process.began, used: Used::default() });
        }
    }
    for (process, owner) in processes.iter().zip(owners) {
        let Some(index) = owner else { continue };
        let (root, Some(Sum { used, .. })) = (roots[index].1, &mut sums[index]) else { continue };
        used.cpu += process.reaped;
        if root.pid == process.pid && !root.is_work {
            continue;
        }
        used.cpu += process.own;
        if !process.is_dead {
            used.memory += process.memory;
            used.processes += 1;
        }
    }
    sums
}

/// For each process the index of the root that it descends from.
fn owners(roots: &[(ResourceName, Root)], processes: &[Process]) -> Vec<Option<usize>> {
    let by_pid: HashMap<i32, usize> = processes.iter().enumerate().map(|(index, process)| (process.pid, index)).collect();
    let mut owners: Vec<Owner> = vec![Owner::Unknown; processes.len()];
    for (index, (_, root)) in roots.iter().enumerate() {
        if let Some(process) = by_pid.get(&root.pid) {
            owners[*process] = Owner::Root(index);
        }
    }
    let mut path = Vec::new();
    for start in 0..processes.len() {
        let mut next = Some(start);
        let found = loop {
            let Some(index) = next else { break Owner::Nobody };
            match owners[index] {
                Owner::Unknown => {}
                known => break known,
            }
            // Seen on the way up once: a list that is read while processes come and go may lead in a circle.
            owners[index] = Owner::Nobody;
            path.push(index);
            next = by_pid.get(&processes[index].parent).copied();
        };
        path.drain(..).for_each(|index| owners[index] = found);
    }
    owners
        .into_iter()
        .map(|owner| match owner {
            Owner::Root(index) => Some(index),
            Owner::Unknown | Owner::Nobody => None,
        })
        .collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Unknown,
    Nobody,
    Root(usize),
}

impl Collector for Usage {
    /// As the last pass has it. Nothing is shown where it failed: no value is better than one that is not true.
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(reading) = self.shown() else { return Ok(()) };
        let help = "Processor time that the processes of a resource have used since it was last started.";
        let mut cpu = encoder.encode_descriptor("evenkeel_worker_resource_cpu", help, Some(&Unit::Seconds), MetricType::Counter)?;
        for (name, used) in &reading.runs {
            ConstCounter::new(used.cpu.as_secs_f64()).encode(cpu.encode_family(&[("resource", name.as_str())])?)?;
        }
        let help = "Memory in RAM of the processes of a resource; what they share is counted for each.";
        let mut memory = encoder.encode_descriptor("evenkeel_worker_resource_memory", help, Some(&Unit::Bytes), MetricType::Gauge)?;
        for (name, used) in &reading.runs {
            let bytes = i64::try_from(used.memory).unwrap_or(i64::MAX);
            ConstGauge::new(bytes).encode(memory.encode_family(&[("resource", name.as_str())])?)?;
        }
        let help = "Processes of a resource.";
        let mut processes = encoder.encode_descriptor("evenkeel_worker_resource_processes", help, None, MetricType::Gauge)?;
        for (name, used) in &reading.runs {
            ConstGauge::new(i64::from(used.processes)).encode(processes.encode_family(&[("resource", name.as_str())])?)?;
        }
        let help = "Processor time that all work has used since this agent began.";
        let cpu = encoder.encode_descriptor("evenkeel_worker_work_cpu", help, Some(&Unit::Seconds), MetricType::Counter)?;
        ConstCounter::new(reading.total.cpu.as_secs_f64()).encode(cpu)?;
        gauge(&mut encoder, "evenkeel_worker_work_memory_bytes", "Memory in RAM of all work.", reading.total.memory)?;
        gauge(&mut encoder, "evenkeel_worker_work_processes", "Processes of all work.", reading.total.processes.into())?;
        gauge_of_seconds(&mut encoder, "evenkeel_worker_usage_pass_seconds", "How long reading what work uses took.", reading.took)
    }
}

#[cfg(test)]
mod tests;

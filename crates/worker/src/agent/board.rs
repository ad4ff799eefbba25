//! What the servers show: a copy of the table for readers, and a few counters.
//!
//! The wheel: between worker::agent, which alone writes it, and worker::server. Nothing is decided from it.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use evenkeel_metrics::{counter, gauge};
use evenkeel_model::{Epoch, Hash, ResourceName, Status, WorkerId};
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, metrics::MetricType, registry::Registry};

use crate::{
    agent::table::Row,
    driver::log::{Log, Logs},
    protocol::authority::{BootTime, Clock, Gate},
    task::Counts,
    usage::Root,
};

/// An agent that has not turned for so long hangs: with a session, a proof turns it every second at the least. Its guard has killed its work by
/// then, and has started another agent if there was any.
const HANGS: Duration = Duration::from_secs(30);

/// What is shown of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) kind: String,
    pub(crate) hash: Hash,
    pub(crate) pid: u32,
    /// The process that all of it descends from; 0: none.
    pub(crate) root: u32,
    pub(crate) status: Status,
}

/// What the servers show.
#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) worker: WorkerId,
    /// By which means the processes of its work are held; empty: none are said to be.
    containment: String,
    gate: Gate,
    clock: Arc<dyn Clock>,
    /// When the agent last turned within its session, in nanoseconds of boot time; 0: there is no session.
    turned: AtomicU64,
    rows: Mutex<BTreeMap<ResourceName, Shown>>,
    /// What it waits for before it can register, or why it is without authority; none: nothing that it knows.
    waits_for: Mutex<Option<String>>,
    logs: Option<Logs>,
    tasks: Option<Arc<Counts>>,
    pub(crate) starts: AtomicU64,
    pub(crate) restarts: AtomicU64,
    pub(crate) proofs_held: AtomicU64,
    pub(crate) proofs_failed: AtomicU64,
    pub(crate) sessions: AtomicU64,
    pub(crate) statuses_written: AtomicU64,
}

impl Board {
    pub(crate) fn new(worker: WorkerId, gate: Gate, clock: Arc<dyn Clock>) -> Self {
        Self {
            worker,
            containment: String::new(),
            gate,
            clock,
            turned: AtomicU64::new(0),
            rows: Mutex::default(),
            waits_for: Mutex::new(Some("etcd has not answered yet".to_owned())),
            logs: None,
            tasks: None,
            starts: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
            proofs_held: AtomicU64::new(0),
            proofs_failed: AtomicU64::new(0),
            sessions: AtomicU64::new(0),
            statuses_written: AtomicU64::new(0),
        }
    }

    /// The same, of a worker that holds the processes of its work by this means.
    pub(crate) fn held_by(self, containment: &str) -> Self {
        Self { containment: containment.to_owned(), ..self }
    }

    /// With what is measured of these logs.
    pub(crate) fn with_logs(self, logs: Logs) -> Self {
        Self { logs: Some(logs), ..self }
    }

    /// With what is counted of tasks.
    pub(crate) fn with_tasks(self, counts: Arc<Counts>) -> Self {
        Self { tasks: Some(counts), ..self }
    }

    /// Where work of this epoch writes its output: nowhere, if no output is kept here.
    pub(crate) fn log(&self, name: &ResourceName, epoch: Epoch) -> Log {
        self.logs.as_ref().map_or_else(Log::nowhere, |logs| logs.writer(name).of(epoch))
    }

    fn rows(&self) -> MutexGuard<'_, BTreeMap<ResourceName, Shown>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows a row as it is now; none: it is gone.
    pub(crate) fn show(&self, name: &ResourceName, row: Option<&Row>) {
        let Some(row) = row else {
            self.rows().remove(name);
            return;
        };
        let shown = Shown { kind: row.kind.clone(), hash: row.run.content.hash, pid: row.pid, root: row.root, status: row.status.clone() };
        let mut rows = self.rows();
        if let Some(before) = rows.get(name).filter(|before| before.status.epoch == shown.status.epoch) {
            let more = shown.status.restarts.saturating_sub(before.status.restarts);
            self.restarts.fetch_add(u64::from(more), Ordering::Relaxed);
        }
        rows.insert(name.clone(), shown);
    }

    pub(crate) fn all(&self) -> Vec<(ResourceName, Shown)> {
        self.rows().iter().map(|(name, shown)| (name.clone(), shown.clone())).collect()
    }

    /// The process that each run descends from, for [`crate::usage`]: one that only looks after it, or its main process where there is none.
    pub(crate) fn roots(&self) -> Vec<(ResourceName, Root)> {
        let root = |shown: &Shown| {
            let roots = [(shown.root, false), (shown.pid, true)];
            let (pid, is_work) = roots.into_iter().find(|(pid, _)| *pid > 0)?;
            Some(Root { pid: i32::try_from(pid).ok()?, is_work })
        };
        self.rows().iter().filter_map(|(name, shown)| Some((name.clone(), root(shown)?))).collect()
    }

    /// The kind of what runs under a name.
    pub(crate) fn kind(&self, name: &ResourceName) -> Option<String> {
        self.rows().get(name).map(|shown| shown.kind.clone())
    }

    pub(crate) fn has(&self, name: &ResourceName) -> bool {
        self.rows().contains_key(name)
    }

    /// Notes what it waits for before it can register, or why it is without authority; none: nothing that it knows.
    pub(crate) fn set_waits_for(&self, what: Option<String>) {
        *self.waits_for.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    /// What was noted last by [`Board::set_waits_for`].
    pub(crate) fn waits_for(&self) -> Option<String> {
        self.waits_for.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Admitted, and with authority.
    pub(crate) fn is_ready(&self) -> bool {
        self.gate.is_open()
    }

    /// The agent has taken in what happened and acted on it, within a session.
    pub(crate) fn turned(&self) {
        self.turned.store(self.clock.now().0.max(1), Ordering::Relaxed);
    }

    /// There is no session at the moment: the agent waits for etcd, or for its id.
    pub(crate) fn waits(&self) {
        self.turned.store(0, Ordering::Relaxed);
    }

    /// For how long the agent has not turned within a session, if that is too long.
    pub(crate) fn hangs_for(&self) -> Option<Duration> {
        let turned = BootTime(self.turned.load(Ordering::Relaxed));
        let span = self.clock.now().since(turned);
        (turned != BootTime(0) && span >= HANGS).then_some(span)
    }

    /// A registry that shows all of it.
    pub(crate) fn registry(self: &Arc<Self>, version: &str) -> Registry {
        let mut registry = evenkeel_metrics::registry(version);
        registry.register_collector(Box::new(Arc::clone(self)));
        registry
    }
}

impl Collector for Board {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut by_phase = BTreeMap::new();
        for shown in self.rows().values() {
            *by_phase.entry(shown.status.phase.as_str()).or_insert(0_u32) += 1;
        }
        let help = "Resources on this worker by what they do.";
        let mut resources = encoder.encode_descriptor("evenkeel_worker_resources", help, None, MetricType::Gauge)?;
        for (phase, count) in by_phase {
            resources.encode_family(&[("phase", phase)])?.encode_gauge(&count)?;
        }
        gauge(&mut encoder, "evenkeel_worker_ready", "1 while the worker is admitted and has authority.", u64::from(self.is_ready()))?;
        if !self.containment.is_empty() {
            let help = "1 for the means by which the processes of work are held.";
            let mut containment = encoder.encode_descriptor("evenkeel_worker_containment", help, None, MetricType::Gauge)?;
            containment.encode_family(&[("means", self.containment.as_str())])?.encode_gauge(&1_u32)?;
        }
        for (name, help, value) in [
            ("starts", "Resources started.", &self.starts),
            ("restarts", "Resources started again after they ended.", &self.restarts),
            ("proofs_held", "Proofs of the session that held.", &self.proofs_held),
            ("proofs_failed", "Proofs of the session that did not come through.", &self.proofs_failed),
            ("sessions", "Sessions registered by this agent.", &self.sessions),
            ("statuses_written", "Statuses written to etcd.", &self.statuses_written),
        ] {
            counter(&mut encoder, &format!("evenkeel_worker_{name}"), help, value.load(Ordering::Relaxed))?;
        }
        if let Some(tasks) = &self.tasks {
            tasks.encode(&mut encoder)?;
        }
        if let Some(logs) = &self.logs {
            let measured = logs.measured();
            let help = "Bytes of output that were lost because the disk did not take them.";
            counter(&mut encoder, "evenkeel_worker_log_lost_bytes", help, measured.lost)?;
            gauge(&mut encoder, "evenkeel_worker_log_pending_bytes", "Bytes of output that are yet to be written.", measured.pending)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64 as Time;

    use super::*;

    /// A clock that the test sets.
    #[derive(Debug, Default)]
    struct Hand(Time);

    impl Clock for Hand {
        fn now(&self) -> BootTime {
            BootTime(self.0.load(Ordering::Relaxed))
        }
        fn instant(&self, _: BootTime) -> tokio::time::Instant {
            unreachable!("nobody waits")
        }
        fn unix_ns(&self) -> i64 {
            0
        }
    }

    #[test]
    fn the_metrics_say_by_which_means_work_is_held() {
        let clock = Arc::new(Hand::default());
        let board = || Board::new(WorkerId::new("w").expect("id"), Gate::shut(clock.clone()), clock.clone());
        let page = |board: Board| evenkeel_metrics::page(&Arc::new(board).registry("1.2.3"));
        let page_of_one = page(board().held_by("processes"));
        assert!(page_of_one.contains("evenkeel_worker_containment{means=\"processes\"} 1\n"), "{page_of_one}");
        assert!(!page(board()).contains("evenkeel_worker_containment"));
    }

    #[test]
    fn an_agent_that_does_not_turn_within_a_session_hangs() {
        let clock = Arc::new(Hand::default());
        let board = Board::new(WorkerId::new("w").expect("id"), Gate::shut(clock.clone()), clock.clone());
        let set = |span: Duration| clock.0.store(u64::try_from(span.as_nanos()).expect("small"), Ordering::Relaxed);
        set(2 * HANGS);
        assert_eq!(board.hangs_for(), None, "it has no session yet");
        board.turned();
        assert_eq!(board.hangs_for(), None);
        set(3 * HANGS);
        assert_eq!(board.hangs_for(), Some(HANGS));
        board.waits();
        assert_eq!(board.hangs_for(), None);
    }
}

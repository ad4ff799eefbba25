//! What the servers show: a copy of the table for readers, and a few counters.
//!
//! The wheel: between worker::agent, which alone writes it, and worker::server. Nothing is decided from it.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use evenkeel_model::{Hash, ResourceName, Status, WorkerId};

use crate::{agent::table::Row, authority::Gate};

/// What is shown of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) kind: String,
    pub(crate) hash: Hash,
    pub(crate) pid: u32,
    pub(crate) status: Status,
}

/// What the servers show.
#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) worker: WorkerId,
    gate: Gate,
    rows: Mutex<BTreeMap<ResourceName, Shown>>,
    pub(crate) starts: AtomicU64,
    pub(crate) restarts: AtomicU64,
    pub(crate) proofs_held: AtomicU64,
    pub(crate) proofs_failed: AtomicU64,
    pub(crate) sessions: AtomicU64,
    pub(crate) statuses_written: AtomicU64,
}

impl Board {
    pub(crate) fn new(worker: WorkerId, gate: Gate) -> Self {
        Self {
            worker,
            gate,
            rows: Mutex::default(),
            starts: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
            proofs_held: AtomicU64::new(0),
            proofs_failed: AtomicU64::new(0),
            sessions: AtomicU64::new(0),
            statuses_written: AtomicU64::new(0),
        }
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
        let shown = Shown { kind: row.kind.clone(), hash: row.hash, pid: row.pid, status: row.status.clone() };
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

    pub(crate) fn has(&self, name: &ResourceName) -> bool {
        self.rows().contains_key(name)
    }

    /// Admitted, and with authority.
    pub(crate) fn is_ready(&self) -> bool {
        self.gate.is_open()
    }

    /// Everything in the text format of Prometheus.
    pub(crate) fn metrics(&self) -> String {
        let mut by_phase = BTreeMap::new();
        for shown in self.rows().values() {
            *by_phase.entry(shown.status.phase.as_str()).or_insert(0_u64) += 1;
        }
        let mut text = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, samples: &[(String, u64)]| {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(text, "{name}{labels} {value}");
            }
        };
        let phases: Vec<(String, u64)> = by_phase.into_iter().map(|(phase, n)| (format!("{{phase=\"{phase}\"}}"), n)).collect();
        metric("evenkeel_worker_resources", "gauge", "Resources on this worker by what they do.", &phases);
        let ready = (String::new(), u64::from(self.is_ready()));
        metric("evenkeel_worker_ready", "gauge", "1 while the worker is admitted and has authority.", &[ready]);
        for (name, help, value) in [
            ("starts", "Resources started.", &self.starts),
            ("restarts", "Resources started again after they ended.", &self.restarts),
            ("proofs_held", "Proofs of the session that held.", &self.proofs_held),
            ("proofs_failed", "Proofs of the session that did not come through.", &self.proofs_failed),
            ("sessions", "Sessions registered by this agent.", &self.sessions),
            ("statuses_written", "Statuses written to etcd.", &self.statuses_written),
        ] {
            let sample = (String::new(), value.load(Ordering::Relaxed));
            metric(&format!("evenkeel_worker_{name}_total"), "counter", help, &[sample]);
        }
        text
    }
}

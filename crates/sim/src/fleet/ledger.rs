//! The oracle: which processes of which work live, as the kernel would know it, whatever masters and workers believe.
//!
//! It keeps what has happened, for the one who reads of a violation, and a digest of it, by which two runs are compared.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::{self, Display},
    hash::Hasher,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use evenkeel_model::{Epoch, ResourceName};
use rustc_hash::FxHasher;
use tokio::time::Instant;

/// Names that begin with this are of resources that accept two owners for a while.
pub const AVAILABLE: &str = "available-";

/// Whether a resource has one owner at most.
#[must_use]
pub fn is_exclusive(name: &ResourceName) -> bool {
    !name.as_str().starts_with(AVAILABLE)
}

/// How much of what has happened is kept.
const TRACE: usize = 2_000;

/// See the module.
#[derive(Clone)]
pub struct Ledger(Arc<Mutex<Inner>>);

/// Names a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunId(u64);

/// A run of work whose processes live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveRun {
    /// The machine that it runs on.
    pub machine: String,
    /// The resource.
    pub name: ResourceName,
    /// The epoch that it was started for.
    pub epoch: Epoch,
    /// What is wanted of it.
    pub content: Option<u64>,
}

/// How much has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Runs of work that began.
    pub starts: u64,
    /// Runs of work that were made to end: told to, or killed.
    pub stops: u64,
    /// Faults that were done.
    pub faults: u64,
    /// Calls that were acknowledged.
    pub acknowledged: u64,
    /// Calls whose outcome their caller never learned.
    pub unknown: u64,
    /// Transactions of etcd that changed something.
    pub revisions: u64,
    /// Work that has finished.
    pub finished: u64,
    /// Moves because of failures.
    pub failing: u64,
}

struct Inner {
    began: Instant,
    live: BTreeMap<RunId, LiveRun>,
    highest: BTreeMap<ResourceName, Epoch>,
    /// Work neither fails nor finishes, so that nothing has a reason to move.
    is_quiet: bool,
    /// No work comes to its end by itself for good: what that leads to is no lack of calm.
    holds_ends: bool,
    /// What has finished, by name and content.
    finished: BTreeSet<(ResourceName, u64)>,
    counts: Counts,
    trace: VecDeque<String>,
    digest: FxHasher,
    violation: Option<String>,
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ledger of {:?}", self.counts())
    }
}

impl Ledger {
    /// Nothing has happened yet.
    #[must_use]
    pub fn begin() -> Self {
        Self(Arc::new(Mutex::new(Inner {
            began: Instant::now(),
            live: BTreeMap::new(),
            highest: BTreeMap::new(),
            is_quiet: false,
            holds_ends: false,
            finished: BTreeSet::new(),
            counts: Counts::default(),
            trace: VecDeque::new(),
            digest: FxHasher::default(),
            violation: None,
        })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something has happened.
    pub fn note(&self, what: impl Display) {
        self.inner().note(&what);
    }

    /// Something must never happen, and has. The first time counts.
    pub fn violate(&self, what: impl Display) {
        self.inner().violate(&what);
    }

    /// Work begins to live.
    pub fn start(&self, run: LiveRun) -> RunId {
        let mut inner = self.inner();
        inner.note(&format_args!("{} runs {} (epoch {})", run.machine, run.name, run.epoch));
        let other = inner.live.values().find(|other| other.name == run.name && is_exclusive(&run.name)).cloned();
        if let Some(other) = other {
            inner.violate(&format_args!(
                "two owners of {}: {} begins to run it (epoch {}) while {} does (epoch {})",
                run.name, run.machine, run.epoch, other.machine, other.epoch
            ));
        }
        if run.content.is_some_and(|content| inner.finished.contains(&(run.name.clone(), content))) {
            inner.violate(&format_args!("{} runs {} (content {:?}) again, which has finished", run.machine, run.name, run.content));
        }
        let highest = inner.highest.get(&run.name).copied().unwrap_or_default();
        if run.epoch < highest && is_exclusive(&run.name) {
            inner.violate(&format_args!("{} runs {} with the epoch {} after one of {highest}", run.machine, run.name, run.epoch));
        }
        let highest = highest.max(run.epoch);
        inner.highest.insert(run.name.clone(), highest);
        let id = RunId(inner.counts.starts);
        inner.counts.starts += 1;
        inner.live.insert(id, run);
        id
    }

    /// Every process of it is dead.
    pub fn end(&self, id: RunId) {
        let mut inner = self.inner();
        if let Some(run) = inner.live.remove(&id) {
            inner.note(&format_args!("{} is dead on {} (epoch {})", run.name, run.machine, run.epoch));
        }
    }

    /// This epoch of this resource has ended for good: nothing may begin to run with it any more.
    pub fn close(&self, name: &ResourceName, epoch: Epoch) {
        let mut inner = self.inner();
        let highest = inner.highest.entry(name.clone()).or_default();
        *highest = (*highest).max(Epoch(epoch.0 + 1));
    }

    /// From now on work neither fails nor finishes.
    pub fn be_quiet(&self) {
        self.inner().is_quiet = true;
    }

    /// Whether it was said so.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.inner().is_quiet
    }

    /// Whether work may come to its end by itself for good.
    pub fn hold_ends(&self, holds: bool) {
        self.inner().holds_ends = holds;
    }

    /// Whether it may not.
    #[must_use]
    pub fn holds_ends(&self) -> bool {
        self.inner().holds_ends
    }

    /// It stands that this content of this resource has finished: it is never run again.
    pub fn finish(&self, name: &ResourceName, content: u64) {
        let mut inner = self.inner();
        if inner.finished.insert((name.clone(), content)) {
            inner.counts.finished += 1;
        }
    }

    /// Whether a process of this epoch of this resource lives.
    #[must_use]
    pub fn lives(&self, name: &ResourceName, epoch: Epoch) -> bool {
        self.inner().live.values().any(|run| run.name == *name && run.epoch == epoch)
    }

    /// Everything that lives.
    #[must_use]
    pub fn live(&self) -> Vec<LiveRun> {
        self.inner().live.values().cloned().collect()
    }

    /// Counts something.
    pub fn count(&self, add: impl FnOnce(&mut Counts)) {
        add(&mut self.inner().counts);
    }

    /// What was counted.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.inner().counts
    }

    /// What must not have happened, if it has.
    #[must_use]
    pub fn violation(&self) -> Option<String> {
        self.inner().violation.clone()
    }

    /// The last of what has happened, oldest first.
    #[must_use]
    pub fn trace(&self) -> Vec<String> {
        self.inner().trace.iter().cloned().collect()
    }

    /// A digest of everything that has happened, and when.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.inner().digest.finish()
    }

    /// For how long it has been kept.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.inner().began.elapsed()
    }
}

impl Inner {
    fn note(&mut self, what: &dyn Display) {
        let line = format!("{:>10.3} {what}", self.began.elapsed().as_secs_f64());
        self.digest.write(line.as_bytes());
        tracing::info!(target: "fleet", "{line}");
        // What follows a violation explains nothing.
        if self.violation.is_some() {
            return;
        }
        if self.trace.len() == TRACE {
            self.trace.pop_front();
        }
        self.trace.push_back(line);
    }

    fn violate(&mut self, what: &dyn Display) {
        if self.violation.is_none() {
            self.note(&format_args!("VIOLATION: {what}"));
            self.violation = Some(what.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(machine: &str, epoch: i64) -> LiveRun {
        LiveRun { machine: machine.to_owned(), name: ResourceName::new("a").expect("name"), epoch: Epoch(epoch), content: None }
    }

    #[tokio::test(start_paused = true)]
    async fn two_owners_are_seen_and_one_after_the_other_is_fine() {
        let ledger = Ledger::begin();
        let first = ledger.start(run("worker-1", 5));
        ledger.end(first);
        ledger.start(run("worker-2", 6));
        assert_eq!(ledger.violation(), None);
        assert!(ledger.lives(&run("worker-2", 6).name, Epoch(6)) && !ledger.lives(&run("worker-1", 5).name, Epoch(5)));
        ledger.start(run("worker-1", 7));
        assert!(ledger.violation().is_some_and(|text| text.contains("two owners")));
        assert!(ledger.trace().last().is_some_and(|line| line.contains("VIOLATION")));
    }

    #[tokio::test(start_paused = true)]
    async fn an_epoch_that_goes_back_is_seen() {
        let ledger = Ledger::begin();
        let first = ledger.start(run("worker-1", 5));
        ledger.end(first);
        ledger.start(run("worker-2", 4));
        assert!(ledger.violation().is_some_and(|text| text.contains("after one of 5")));
    }

    #[tokio::test(start_paused = true)]
    async fn an_epoch_that_has_ended_must_not_begin() {
        let ledger = Ledger::begin();
        ledger.close(&run("worker-1", 5).name, Epoch(5));
        ledger.start(run("worker-1", 6));
        assert_eq!(ledger.violation(), None);
        let ledger = Ledger::begin();
        ledger.close(&run("worker-1", 5).name, Epoch(5));
        ledger.start(run("worker-1", 5));
        assert!(ledger.violation().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_digest_tells_runs_apart() {
        let [one, same, other] = [1, 1, 2].map(|epoch| {
            let ledger = Ledger::begin();
            ledger.start(run("worker-1", epoch));
            ledger.digest()
        });
        assert!(one == same && one != other);
    }
}

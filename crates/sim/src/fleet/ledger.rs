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

use evenkeel_model::{Epoch, Holds, ResourceName};
use rustc_hash::FxHasher;
use tokio::time::Instant;

use super::{
    task_book::TaskBook,
    work::{holds_of, is_available, started_with},
};

/// Names that begin with this are of resources that accept two owners for a while.
pub const AVAILABLE: &str = "available-";

/// Whether a resource has one owner at most.
#[must_use]
pub fn is_exclusive(name: &ResourceName) -> bool {
    !is_available(name)
}

/// Whether a resource has one owner at most because its work ends with its owner.
fn is_held_strictly(name: &ResourceName) -> bool {
    is_exclusive(name) && holds_of(name) == Holds::Strict
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

/// Defines what is counted, so that all of it can be gone through.
macro_rules! counts {
    ($($(#[$doc:meta])* $field:ident,)*) => {
        /// How much has happened.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counts {
            $($(#[$doc])* pub $field: u64,)*
        }

        impl Counts {
            /// All of them by their names.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($field), self.$field)),*].into_iter()
            }

            /// The sum of two runs.
            #[must_use]
            pub fn and(self, other: Self) -> Self {
                Self { $($field: self.$field + other.$field),* }
            }
        }
    };
}

counts! {
    /// Runs of work that began.
    starts,
    /// Runs of work that were made to end: told to, or killed.
    stops,
    /// Faults that were done.
    faults,
    /// Calls that were acknowledged.
    acknowledged,
    /// Calls whose outcome their caller never learned.
    unknown,
    /// Transactions of etcd that changed something.
    revisions,
    /// Work that has finished.
    finished,
    /// Moves because of failures.
    failing,
    /// Runs for which there was no cell.
    no_cell,
    /// Runs for which the kernel made no process.
    no_process,
    /// Runs that were not begun since authority had ended.
    too_late,
    /// Shims that came so late that the keeper asked after them.
    late_shims,
    /// How often a keeper asked whether shims can be had.
    spawner_checked,
    /// Programs that were executed late.
    held_up,
    /// Runs of which something did not die for a while.
    stuck,
    /// Shims that were stopped.
    shims_stopped,
    /// Shims that were killed.
    shims_killed,
    /// Runs that a keeper had ended by force, since their shims said nothing.
    ended_by_spawner,
    /// Starts that a driver refused.
    starts_refused,
    /// Drivers that failed in the middle.
    drivers_broken,
    /// How often a driver did not say what survives.
    survivors_unsaid,
    /// Effects of earlier sessions that were ended.
    survivors_ended,
    /// Assignments that were changed under their epoch.
    changed,
    /// Changes that a driver was asked to take.
    changes_asked,
    /// Changes that a driver took.
    changes_taken,
    /// Changes that a driver did not take, against its word.
    changes_refused,
    /// Changes that a driver did not answer.
    changes_unanswered,
    /// Effects that were taken over from another epoch.
    taken_over,
    /// Claims that the outside refused, since it had seen a larger epoch.
    claims_refused,
    /// Guards that were stopped by a signal.
    guards_stopped,
    /// Messages to guards that were lost.
    messages_lost,
    /// Messages to guards that came late.
    messages_late,
    /// Of those that a guard ended everything since it was not told otherwise in time.
    guards_uninformed,
    /// Tasks that were created.
    tasks,
    /// Creations that were answered with a task that was there.
    tasks_repeated,
    /// What else was wanted of tasks, and done.
    task_requests,
    /// Tasks that were paused, by a person or since too many had failed.
    tasks_paused,
    /// Attempts that were ordered after the first.
    tasks_again,
    /// Attempts that were cancelled, undelivered or rejected.
    tasks_never_begun,
    /// Scripts that were executed.
    scripts_begun,
    /// Scripts that ended by themselves.
    scripts_ended,
    /// Scripts that were ended at their timeout.
    scripts_timed_out,
    /// Scripts that were killed.
    scripts_killed,
    /// Scripts of which a worker said that nobody knows their end.
    scripts_lost,
    /// Scripts whose workers a leader gave up.
    scripts_given_up,
    /// Disks that were wiped.
    disks_wiped,
    /// What a disk did not take of a task, or took and did not say so.
    task_disk_errors,
}

pub(super) struct Inner {
    began: Instant,
    pub(super) tasks: TaskBook,
    live: BTreeMap<RunId, LiveRun>,
    highest: BTreeMap<ResourceName, Epoch>,
    /// Work neither fails nor finishes, so that nothing has a reason to move.
    is_quiet: bool,
    /// No work comes to its end by itself for good: what that leads to is no lack of calm.
    holds_ends: bool,
    /// What has finished, by name and content.
    finished: BTreeSet<(ResourceName, u64)>,
    /// What may be believed that an epoch ran last: what it does run is the last of these, and those before it may be what its status says.
    ran: BTreeMap<(ResourceName, Epoch), Vec<u64>>,
    /// What a driver has said to rest, on its machine.
    rests: BTreeSet<(String, ResourceName, Epoch)>,
    pub(super) counts: Counts,
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
            tasks: TaskBook::default(),
            live: BTreeMap::new(),
            highest: BTreeMap::new(),
            is_quiet: false,
            holds_ends: false,
            finished: BTreeSet::new(),
            ran: BTreeMap::new(),
            rests: BTreeSet::new(),
            counts: Counts::default(),
            trace: VecDeque::new(),
            digest: FxHasher::default(),
            violation: None,
        })))
    }

    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
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
        let one_at_most = is_exclusive(&run.name);
        let other = inner.live.values().find(|other| other.name == run.name && one_at_most).cloned();
        if let Some(other) = other {
            inner.violate(&format_args!(
                "two owners of {}: {} begins to run it (epoch {}) while {} does (epoch {})",
                run.name, run.machine, run.epoch, other.machine, other.epoch
            ));
        }
        if one_at_most && holds_of(&run.name) == Holds::Loose {
            inner.violate(&format_args!("{} runs {}, which nobody can hold to one owner", run.machine, run.name));
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

    /// A process begins to live, which was started with this.
    pub fn start_process(&self, machine: &str, name: ResourceName, epoch: Epoch, with: u64) -> RunId {
        let mut inner = self.inner();
        let content = inner.ran.get(&(name.clone(), epoch)).and_then(|ran| ran.last()).copied();
        if content.map(started_with) != Some(with) {
            inner.violate(&format_args!("{machine} starts {name} (epoch {epoch}) with {with}, and its driver was told {content:?}"));
        }
        if inner.rests.contains(&(machine.to_owned(), name.clone(), epoch)) {
            inner.violate(&format_args!("{machine} starts {name} (epoch {epoch}) again, of which its driver said that nothing lives"));
        }
        drop(inner);
        self.start(LiveRun { machine: machine.to_owned(), name, epoch, content })
    }

    /// A driver is told to run this content.
    pub fn driver_starts(&self, machine: &str, name: &ResourceName, epoch: Epoch, content: u64) {
        let mut inner = self.inner();
        inner.note(&format_args!("{machine}: {name} (epoch {epoch}) is to run with content {content}"));
        if inner.finished.contains(&(name.clone(), content)) {
            inner.violate(&format_args!("{machine} runs {name} (content {content}) again, which has finished"));
        }
        let ran = inner.ran.insert((name.clone(), epoch), vec![content]).unwrap_or_default();
        if !ran.is_empty() && !ran.contains(&content) {
            inner.violate(&format_args!("{machine} starts {name} (epoch {epoch}) with content {content}, and it ran with {ran:?}"));
        }
        inner.rests.remove(&(machine.to_owned(), name.clone(), epoch));
    }

    /// A driver has taken this content for work that runs.
    pub fn updated(&self, machine: &str, name: &ResourceName, epoch: Epoch, content: u64) {
        let mut inner = self.inner();
        inner.note(&format_args!("{machine}: {name} (epoch {epoch}) goes on with content {content}"));
        inner.counts.changes_taken += 1;
        inner.ran.entry((name.clone(), epoch)).or_default().push(content);
        let of_it = inner.live.values_mut().filter(|run| run.name == *name && run.epoch == epoch && run.machine == machine);
        of_it.for_each(|run| run.content = Some(content));
    }

    /// It stands that this epoch runs this content: nobody believes what it ran before.
    pub fn reported(&self, name: &ResourceName, epoch: Epoch, content: u64) {
        let mut inner = self.inner();
        if let Some(ran) = inner.ran.get_mut(&(name.clone(), epoch))
            && let Some(at) = ran.iter().rposition(|ran| *ran == content)
        {
            ran.drain(..at);
        }
    }

    /// A driver says that nothing of it lives, and that it starts nothing more.
    pub fn rests(&self, machine: &str, name: &ResourceName, epoch: Epoch) {
        let mut inner = self.inner();
        inner.rests.insert((machine.to_owned(), name.clone(), epoch));
        if inner.live.values().any(|run| run.name == *name && run.epoch == epoch && run.machine == machine) {
            inner.violate(&format_args!(
                "the driver of {name} (epoch {epoch}) on {machine} says that nothing of it lives, and something does"
            ));
        }
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
        if !is_held_strictly(name) {
            // Whoever comes late is refused by the next, or ended by its own machine.
            return;
        }
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

    /// Whether what is unusual may happen.
    #[must_use]
    pub fn is_rough(&self) -> bool {
        let inner = self.inner();
        !inner.is_quiet && !inner.holds_ends
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
    pub(super) fn note(&mut self, what: &dyn Display) {
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

    pub(super) fn violate(&mut self, what: &dyn Display) {
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

    fn named(text: &str) -> ResourceName {
        ResourceName::new(text).expect("name")
    }

    fn finds(part: &str, happens: impl FnOnce(&Ledger)) {
        let ledger = Ledger::begin();
        happens(&ledger);
        let found = ledger.violation();
        assert!(found.as_ref().is_some_and(|text| text.contains(part)), "{part}: {found:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_epoch_that_is_started_with_another_content_is_seen() {
        let (name, epoch) = (named("a"), Epoch(5));
        finds("it ran with [6]", |ledger| {
            ledger.driver_starts("worker-1", &name, epoch, 6);
            ledger.driver_starts("worker-1", &name, epoch, 7);
        });
        // What was changed while it ran, and is not known to be: either may be believed.
        let ledger = Ledger::begin();
        ledger.driver_starts("worker-1", &name, epoch, 6);
        ledger.updated("worker-1", &name, epoch, 7);
        ledger.driver_starts("worker-1", &name, epoch, 6);
        assert_eq!(ledger.violation(), None);
        finds("it ran with [7]", |ledger| {
            ledger.driver_starts("worker-1", &name, epoch, 6);
            ledger.updated("worker-1", &name, epoch, 7);
            ledger.reported(&name, epoch, 7);
            ledger.driver_starts("worker-1", &name, epoch, 6);
        });
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_of_other_work_and_one_of_work_that_rests_are_seen() {
        let (name, epoch) = (named("a"), Epoch(5));
        let start = |ledger: &Ledger, with| ledger.start_process("worker-1", name.clone(), epoch, with);
        finds("its driver was told Some(6)", |ledger| {
            ledger.driver_starts("worker-1", &name, epoch, 6);
            start(ledger, started_with(6) + 1);
        });
        finds("that nothing lives", |ledger| {
            ledger.driver_starts("worker-1", &name, epoch, 6);
            let id = start(ledger, started_with(6));
            ledger.end(id);
            ledger.rests("worker-1", &name, epoch);
            start(ledger, started_with(6));
        });
        finds("and something does", |ledger| {
            ledger.driver_starts("worker-1", &name, epoch, 6);
            start(ledger, started_with(6));
            ledger.rests("worker-1", &name, epoch);
        });
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_held_to_one_owner_must_not_run_and_what_need_not_be_may() {
        finds("nobody can hold", |ledger| {
            ledger.start(LiveRun { name: named("unheld-1"), ..run("worker-1", 5) });
        });
        let ledger = Ledger::begin();
        for machine in ["worker-1", "worker-2"] {
            ledger.start(LiveRun { name: named("loose-1"), ..run(machine, 5) });
        }
        assert_eq!(ledger.violation(), None);
        finds("two owners", |ledger| {
            for machine in ["worker-1", "worker-2"] {
                ledger.start(LiveRun { name: named("fenced-1"), ..run(machine, 5) });
            }
        });
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

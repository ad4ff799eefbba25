//! Drivers: what runs one kind of resource on this worker.
//!
//! The wheel: worker::reconcile -> **worker::driver** -> worker::report. A driver starts, stops and observes. It decides neither what
//! runs nor where; before each effect it asks the authority's gate, and it says that a run has ended only when all of it is dead.

mod backoff;
pub mod catalog;
pub mod conformance;
pub mod in_process;
pub(crate) mod log;
mod noop;
mod orders;
pub mod process;

use std::{collections::BTreeMap, fmt, pin::Pin, sync::Arc, time::Duration};

use evenkeel_model::{DefinitionError, DriverTraits, Epoch, Hash, Observed, ResourceName, Spec};
use tokio::sync::mpsc;

use crate::protocol::{
    authority::{BootTime, Gate},
    reconcile::StopWhy,
};

pub use log::Log;
pub use noop::Noop;
pub use process::{ProcessConfig, ProcessDriver, environment::EnvPass};

/// The kinds for which each worker has a driver, unless it was limited to others.
pub const BUILT_IN: [&str; 2] = [noop::KIND, evenkeel_model::process::KIND];

/// What a driver is to run.
#[derive(Clone, Debug)]
pub struct Work {
    /// The resource.
    pub name: ResourceName,
    /// Its fencing token.
    pub epoch: Epoch,
    /// What to run, in the driver's own terms.
    pub spec: Spec,
    /// Asked before each effect: it is open while this worker may run the work.
    pub gate: Gate,
    /// Keeps its output, for whoever reads the resource's logs.
    pub log: Log,
}

/// Where the output of a kind's work can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogSource {
    /// In the worker's files, which [`Work::log`] writes.
    Worker,
    /// Not from this worker: why, and where it is instead, for people.
    Elsewhere(String),
}

/// A change of work that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Names the content, for the answer.
    pub hash: Hash,
    /// What to run from now on.
    pub spec: Spec,
}

/// Something of an earlier session that still lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survivor {
    /// The resource.
    pub name: ResourceName,
    /// The epoch that it was started for.
    pub epoch: Epoch,
    /// What the driver knows it by, beside these.
    pub id: String,
}

/// Why a driver does not take a spec: the field and the rule that it breaks, for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SpecError(pub String);

impl From<DefinitionError> for SpecError {
    fn from(error: DefinitionError) -> Self {
        Self(error.to_string())
    }
}

/// Why a driver cannot say what lives, or cannot end it, for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DriverError(pub String);

/// An answer that a driver takes its time for.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, DriverError>> + Send + 'a>>;

/// Runs one kind of resource. docs/drivers.md says how to write one.
pub trait Driver: Send + Sync {
    /// What it is called in a resource.
    fn kind(&self) -> &str;

    /// How it holds work, and whether it takes changes while work runs. The same for as long as the process lives.
    fn traits(&self) -> DriverTraits;

    /// How long work of this spec needs to stop. Checks the whole spec.
    ///
    /// # Errors
    /// What is wrong with the spec.
    fn grace(&self, spec: &Spec) -> Result<Duration, SpecError>;

    /// Begins to run it, and goes on until it is told to stop: it is the driver that starts it again. Never waits.
    ///
    /// # Errors
    /// What is wrong with the spec. Nothing runs then, and the observer was not used.
    fn start(&self, work: Work, observer: Observer) -> Result<Box<dyn Handle>, (SpecError, Observer)>;

    /// What of earlier sessions still lives, by whichever agent or guard it was started. It is asked before each registration, when nothing of
    /// this agent's own runs. Without an answer the worker attests nothing, and does not offer the kind.
    fn survivors(&self) -> Answer<'_, Vec<Survivor>>;

    /// Ends a survivor for good: once it has answered, nothing of it lives and nothing of it can start again.
    fn end<'a>(&'a self, survivor: &'a Survivor) -> Answer<'a, ()>;

    /// Where the output of its work can be read.
    fn logs(&self) -> LogSource {
        LogSource::Worker
    }
}

/// One run.
pub trait Handle: Send {
    /// Stops it: gently first, and by force at the end of its grace, or at the order's time if that is earlier. Said again, the earlier
    /// time counts. Never waits: the end is observed.
    fn stop(&self, order: StopOrder);

    /// Takes a change while the work runs. Never waits: the answer is [`Observer::updated`] or [`Observer::needs_restart`], with the change's hash. Only a
    /// driver that says that it updates is asked. After a stop it has no effect.
    fn update(&self, change: Change);
}

/// How to stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StopOrder {
    /// When the last process is killed at the latest; none: the spec alone says.
    pub kill_by: Option<BootTime>,
    /// Why it is stopped; none: an order before this one has said that.
    pub why: Option<StopWhy>,
}

/// What an observation means for the guard, which ends what lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lives {
    /// Something of it lives, or its driver may start it at any time.
    Maybe,
    /// Nothing of it lives, and its driver starts nothing more.
    Nothing,
}

/// What a driver observes of a run. One of which nothing lives has come to its end for good: by its own restart policy it is not started again, here
/// or elsewhere. What fails and is started again is in backoff.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// What the work does.
    pub phase: Observed,
    /// Whether anything of it lives.
    pub lives: Lives,
    /// Its main process; 0: none.
    pub pid: u32,
    /// The process that all of it descends from, which is not of the work itself; 0: none.
    pub root: u32,
    /// How often it was started again, attempts that failed before it ran included.
    pub restarts: u32,
    /// How many runs in a row ended, or could not be started, before they had run well: for 10 s where a process runs.
    pub failures: u32,
    /// It does not end, and its driver gives up: the agent will end, and with it all that runs inside it.
    pub overran: bool,
    /// For people.
    pub message: String,
}

impl Observation {
    /// Something lives, or may be started; nothing more is known.
    #[must_use]
    pub fn of(phase: Observed) -> Self {
        Self { phase, lives: Lives::Maybe, pid: 0, root: 0, restarts: 0, failures: 0, overran: false, message: String::new() }
    }
}

/// Something that a driver tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The resource.
    pub name: ResourceName,
    /// The epoch that runs.
    pub epoch: Epoch,
    /// What of it.
    pub kind: EventKind,
}

/// What of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// This is how it is now.
    Observed(Observation),
    /// A change was taken: this content runs now.
    Updated(Hash),
    /// A change to this content cannot be taken while the work runs, which goes on as it is.
    NeedsRestart(Hash, String),
    /// It was told to stop, and nothing of it runs any more.
    Ended,
    /// The driver has failed: nobody knows what runs. Only the guard can help.
    Broken,
}

/// Where a driver tells what it observes of one run.
#[derive(Debug)]
pub struct Observer {
    name: ResourceName,
    epoch: Epoch,
    events: mpsc::UnboundedSender<Event>,
    over: bool,
}

impl Observer {
    /// For a run of this epoch.
    #[must_use]
    pub fn new(name: ResourceName, epoch: Epoch, events: mpsc::UnboundedSender<Event>) -> Self {
        Self { name, epoch, events, over: false }
    }

    /// It is like this now.
    pub fn observed(&self, observation: Observation) {
        self.tell(EventKind::Observed(observation));
    }

    /// The change to this content was taken.
    pub fn updated(&self, hash: Hash) {
        self.tell(EventKind::Updated(hash));
    }

    /// The change to this content needs a restart, for this reason; what ran before it goes on.
    pub fn needs_restart(&self, hash: Hash, why: impl Into<String>) {
        self.tell(EventKind::NeedsRestart(hash, why.into()));
    }

    /// It was told to stop, and nothing of it runs any more.
    pub fn ended(mut self) {
        self.over = true;
        self.tell(EventKind::Ended);
    }

    /// It was never started.
    pub(crate) fn unused(mut self) {
        self.over = true;
    }

    fn tell(&self, kind: EventKind) {
        // Nobody listens when the agent has ended, and then the guard acts.
        let _ = self.events.send(Event { name: self.name.clone(), epoch: self.epoch, kind });
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        if !self.over {
            self.tell(EventKind::Broken);
        }
    }
}

/// The drivers that this worker has.
#[derive(Clone, Default)]
pub struct Registry(BTreeMap<String, Arc<dyn Driver>>);

/// Drivers that cannot be had, or not together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// A name that is no driver's.
    #[error("--drivers: unknown driver {unknown:?}; use one of {known}")]
    Unknown {
        /// What was given.
        unknown: String,
        /// What there is.
        known: String,
    },
    /// Two drivers of one kind.
    #[error("a driver of kind {0:?} already exists; give one of them another name, or leave it out")]
    Twice(String),
    /// A kind that no resource can have.
    #[error("invalid kind {kind:?}: it {why}; a kind follows the rule for names of resources")]
    Kind {
        /// The kind.
        kind: String,
        /// Which rule it breaks.
        why: String,
    },
}

impl Registry {
    /// What a name means that has no kind and that no catalog knows.
    pub const DEFAULT_KIND: &'static str = noop::KIND;

    /// Adds one.
    ///
    /// # Errors
    /// There is one of its kind already, or its kind is not one that a resource can have.
    pub fn with(mut self, driver: Arc<dyn Driver>) -> Result<Self, RegistryError> {
        let kind = driver.kind().to_owned();
        if let Err(error) = ResourceName::new(&kind) {
            return Err(RegistryError::Kind { kind, why: error.to_string() });
        }
        if self.0.contains_key(&kind) {
            return Err(RegistryError::Twice(kind));
        }
        self.0.insert(kind, driver);
        Ok(self)
    }

    /// Keeps only these; all, if none are named.
    ///
    /// # Errors
    /// The first name that no driver has.
    pub fn limited_to(mut self, kinds: &[String]) -> Result<Self, RegistryError> {
        if let Some(unknown) = kinds.iter().find(|kind| !self.0.contains_key(kind.as_str())) {
            return Err(RegistryError::Unknown { unknown: unknown.clone(), known: self.kinds().join(", ") });
        }
        self.0.retain(|kind, _| kinds.is_empty() || kinds.iter().any(|k| k == kind));
        Ok(self)
    }

    /// What the drivers are called.
    #[must_use]
    pub fn kinds(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// What is registered of the drivers: of those that hold work strictly and change it by a restart, nothing needs to be said.
    #[must_use]
    pub fn traits(&self) -> BTreeMap<String, DriverTraits> {
        let said = self.0.iter().map(|(kind, driver)| (kind.clone(), driver.traits()));
        said.filter(|(_, traits)| *traits != DriverTraits::default()).collect()
    }

    /// All of them, in the order of their kinds.
    pub fn drivers(&self) -> impl Iterator<Item = &Arc<dyn Driver>> {
        self.0.values()
    }

    /// The driver of a kind.
    #[must_use]
    pub fn get(&self, kind: &str) -> Option<&Arc<dyn Driver>> {
        self.0.get(kind)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observer() -> (Observer, mpsc::UnboundedReceiver<Event>) {
        let (events, received) = mpsc::unbounded_channel();
        (Observer::new(ResourceName::new("a").expect("name"), Epoch(3), events), received)
    }

    #[test]
    fn a_run_that_is_dropped_without_an_end_is_broken() {
        let (dropped, mut received) = observer();
        drop(dropped);
        assert_eq!(received.try_recv().map(|event| event.kind), Ok(EventKind::Broken));
        let (ended, mut received) = observer();
        ended.ended();
        assert_eq!(received.try_recv().map(|event| event.kind), Ok(EventKind::Ended));
        assert!(received.try_recv().is_err());
    }

    struct Nothing;

    impl in_process::Kind for Nothing {
        type Spec = serde_json::Value;

        async fn run(&self, _: in_process::Piece<serde_json::Value>) -> Result<(), in_process::Failure> {
            Ok(())
        }
    }

    #[test]
    fn drivers_are_limited_by_name() {
        let all = || Registry::default().with(Arc::new(Noop)).expect("one");
        assert_eq!(all().limited_to(&[]).expect("all").kinds(), ["noop"]);
        let error = all().limited_to(&["docker".to_owned()]).expect_err("unknown");
        assert_eq!(error.to_string(), "--drivers: unknown driver \"docker\"; use one of noop");
        let error = all().with(Arc::new(Noop)).expect_err("twice");
        assert_eq!(error.to_string(), "a driver of kind \"noop\" already exists; give one of them another name, or leave it out");
        let named = |kind: &str| Registry::default().with(Arc::new(in_process::InProcess::new(kind, Nothing)));
        let error = named("a b").expect_err("no name").to_string();
        assert!(error.starts_with(r#"invalid kind "a b": it has ' ' at position 2"#), "{error}");
        assert!(error.ends_with("; a kind follows the rule for names of resources"), "{error}");
        assert_eq!(named("mine").expect("a name").kinds(), ["mine"]);
    }
}

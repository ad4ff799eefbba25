//! Drivers: what runs one kind of resource on this worker.
//!
//! The wheel: worker::reconcile -> **worker::driver** -> worker::report. A driver starts, stops and observes. It decides neither what
//! runs nor where; before each effect it asks the authority's gate, and it says that a run has ended only when all of it is dead.

mod noop;
pub(crate) mod process;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use evenkeel_model::{DefinitionError, Epoch, Observed, ResourceName, Spec};
use tokio::sync::mpsc;

use crate::authority::BootTime;

pub use noop::Noop;
pub use process::{ProcessConfig, ProcessDriver, environment::EnvPass};

/// What a driver is to run.
#[derive(Clone, Debug)]
pub struct Work {
    /// The resource.
    pub name: ResourceName,
    /// Its fencing token.
    pub epoch: Epoch,
    /// What to run, in the driver's own terms.
    pub spec: Spec,
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

/// Runs one kind of resource.
pub trait Driver: Send + Sync {
    /// What it is called in a resource.
    fn kind(&self) -> &'static str;

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
}

/// One run.
pub trait Handle: Send {
    /// Stops it: gently first, and by force at the end of its grace, or at the order's time if that is earlier. Said again, the earlier
    /// time counts. Never waits: the end is observed.
    fn stop(&self, order: StopOrder);
}

/// How to stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StopOrder {
    /// When the last process is killed at the latest; none: the spec alone says.
    pub kill_by: Option<BootTime>,
}

/// What a driver observes of a run. Exited and failed are for good: the work has come to its end, and by its own restart policy it is not started
/// again, here or elsewhere. What fails and is started again is in backoff.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// What the work does.
    pub phase: Observed,
    /// Its main process; 0: none.
    pub pid: u32,
    /// The process that all of it descends from, which is not of the work itself; 0: none.
    pub root: u32,
    /// How often it was started again, attempts that failed before it ran included.
    pub restarts: u32,
    /// How many runs in a row ended, or could not be started, before they had run well: for 10 s where a process runs.
    pub failures: u32,
    /// For people.
    pub message: String,
}

/// Something that a driver tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The resource.
    pub name: ResourceName,
    /// The epoch that runs.
    pub epoch: Epoch,
    /// What of it.
    pub what: What,
}

/// What of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// This is how it is now.
    Is(Observation),
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
    pub fn is(&self, observation: Observation) {
        self.tell(What::Is(observation));
    }

    /// It was told to stop, and nothing of it runs any more.
    pub fn ended(mut self) {
        self.over = true;
        self.tell(What::Ended);
    }

    /// It was never started.
    pub(crate) fn unused(mut self) {
        self.over = true;
    }

    fn tell(&self, what: What) {
        // Nobody listens when the agent has ended, and then the guard acts.
        let _ = self.events.send(Event { name: self.name.clone(), epoch: self.epoch, what });
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        if !self.over {
            self.tell(What::Broken);
        }
    }
}

/// The drivers that this worker has.
#[derive(Clone, Default)]
pub struct Registry(BTreeMap<&'static str, Arc<dyn Driver>>);

/// A name that is no driver's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--drivers: there is no driver {unknown:?}; known are {known}")]
pub struct UnknownDriver {
    /// What was given.
    pub unknown: String,
    /// What there is.
    pub known: String,
}

impl Registry {
    /// Adds one.
    #[must_use]
    pub fn with(mut self, driver: Arc<dyn Driver>) -> Self {
        self.0.insert(driver.kind(), driver);
        self
    }

    /// Keeps only these; all, if none are named.
    ///
    /// # Errors
    /// The first name that no driver has.
    pub fn limited_to(mut self, kinds: &[String]) -> Result<Self, UnknownDriver> {
        if let Some(unknown) = kinds.iter().find(|kind| !self.0.contains_key(kind.as_str())) {
            return Err(UnknownDriver { unknown: unknown.clone(), known: self.kinds().join(", ") });
        }
        self.0.retain(|kind, _| kinds.is_empty() || kinds.iter().any(|k| k == kind));
        Ok(self)
    }

    /// What the drivers are called.
    #[must_use]
    pub fn kinds(&self) -> Vec<String> {
        self.0.keys().map(|&kind| kind.to_owned()).collect()
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
        assert_eq!(received.try_recv().map(|event| event.what), Ok(What::Broken));
        let (ended, mut received) = observer();
        ended.ended();
        assert_eq!(received.try_recv().map(|event| event.what), Ok(What::Ended));
        assert!(received.try_recv().is_err());
    }

    #[test]
    fn drivers_are_limited_by_name() {
        let all = || Registry::default().with(Arc::new(Noop));
        assert_eq!(all().limited_to(&[]).expect("all").kinds(), ["noop"]);
        let error = all().limited_to(&["docker".to_owned()]).expect_err("unknown");
        assert_eq!(error.to_string(), "--drivers: there is no driver \"docker\"; known are noop");
    }
}

//! The driver `noop`: it holds a resource and does nothing but say so in the log.
//!
//! The wheel: one of worker::driver. It has no effect that could outlive it.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use evenkeel_model::{DriverTraits, Holds, Observed, Spec};

use super::{Answer, Change, Driver, Handle, LogSource, Observation, Observer, SpecError, StopOrder, Survivor, Work};

/// What it is called.
pub(super) const KIND: &str = "noop";

/// Only logs start and stop.
#[derive(Clone, Copy, Debug, Default)]
pub struct Noop;

struct Held {
    work: Work,
    observer: Mutex<Option<Observer>>,
}

impl Driver for Noop {
    fn kind(&self) -> &str {
        KIND
    }

    fn traits(&self) -> DriverTraits {
        DriverTraits { holds: Holds::Strict, updates: true }
    }

    fn grace(&self, _: &Spec) -> Result<Duration, SpecError> {
        Ok(Duration::ZERO)
    }

    fn start(&self, work: Work, observer: Observer) -> Result<Box<dyn Handle>, (SpecError, Observer)> {
        tracing::info!(resource = %work.name, epoch = %work.epoch, "noop: started");
        observer.observed(Observation::of(Observed::Running));
        Ok(Box::new(Held { work, observer: Mutex::new(Some(observer)) }))
    }

    /// Nothing of it outlives its agent.
    fn survivors(&self) -> Answer<'_, Vec<Survivor>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn end<'a>(&'a self, _: &'a Survivor) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn logs(&self) -> LogSource {
        LogSource::Elsewhere(format!("work of kind {KIND} does nothing and has no output; the worker's own log says when it was held"))
    }
}

impl Held {
    fn observer(&self) -> MutexGuard<'_, Option<Observer>> {
        self.observer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handle for Held {
    fn update(&self, change: Change) {
        if let Some(observer) = &*self.observer() {
            tracing::info!(resource = %self.work.name, epoch = %self.work.epoch, "noop: changed");
            observer.updated(change.hash);
        }
    }

    fn stop(&self, _: StopOrder) {
        let observer = self.observer().take();
        if let Some(observer) = observer {
            tracing::info!(resource = %self.work.name, epoch = %self.work.epoch, "noop: stopped");
            observer.ended();
        }
    }
}

//! The driver `noop`: it holds a resource and does nothing but say so in the log.
//!
//! The wheel: one of worker::driver. It has no effect that could outlive it.

use std::{sync::Mutex, time::Duration};

use evenkeel_model::{Observed, Spec};

use super::{Driver, Handle, Observation, Observer, SpecError, StopOrder, Work};

/// Only logs start and stop.
#[derive(Clone, Copy, Debug, Default)]
pub struct Noop;

struct Held {
    work: Work,
    observer: Mutex<Option<Observer>>,
}

impl Driver for Noop {
    fn kind(&self) -> &'static str {
        "noop"
    }

    fn grace(&self, _: &Spec) -> Result<Duration, SpecError> {
        Ok(Duration::ZERO)
    }

    fn start(&self, work: Work, observer: Observer) -> Result<Box<dyn Handle>, (SpecError, Observer)> {
        tracing::info!(resource = %work.name, epoch = %work.epoch, "noop: started");
        observer.is(Observation { phase: Observed::Running, pid: 0, root: 0, restarts: 0, failures: 0, message: String::new() });
        Ok(Box::new(Held { work, observer: Mutex::new(Some(observer)) }))
    }
}

impl Handle for Held {
    fn stop(&self, _: StopOrder) {
        let observer = self.observer.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(observer) = observer {
            tracing::info!(resource = %self.work.name, epoch = %self.work.epoch, "noop: stopped");
            observer.ended();
        }
    }
}

//! The driver `process`: a command, held in a cell, its output kept, started again when it ends.
//!
//! The wheel: one of worker::driver. Every process of a run is dead when the run's end is observed.

mod backoff;
mod keeper;
pub(crate) mod log;
mod output;
mod spawner;

#[cfg(test)]
mod tests;

use std::{io, sync::Arc, time::Duration};

use evenkeel_model::{Spec, WorkerId, process::ProcessSpec};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::watch;

use self::{backoff::Backoff, keeper::Keeper, log::Logs, spawner::Spawner};
use super::{Driver, Handle, Observer, SpecError, StopOrder, Work};
use crate::{authority::Gate, containment::Containment};

/// What the driver needs.
#[derive(Debug)]
pub struct ProcessConfig {
    /// Handed to every process.
    pub worker: WorkerId,
    /// Where the output is kept.
    pub(crate) logs: Logs,
    /// What a process gets from the stop signal to the kill, unless its spec says otherwise.
    pub grace: Duration,
    /// Asked before each start.
    pub gate: Gate,
}

/// What every keeper uses.
#[derive(Debug)]
struct Tools {
    worker: WorkerId,
    containment: Arc<Containment>,
    spawner: Spawner,
    logs: Logs,
    grace: Duration,
    gate: Gate,
    /// The limit of open files (soft, hard) as it was: what work gets.
    open_files: Option<(u64, u64)>,
}

/// Runs processes.
#[derive(Debug)]
pub struct ProcessDriver(Arc<Tools>);

struct Run(watch::Sender<Option<StopOrder>>);

impl ProcessDriver {
    /// Starts its thread. It must be called within a tokio runtime.
    ///
    /// # Errors
    /// No thread can be had.
    pub(crate) fn new(config: ProcessConfig, containment: Arc<Containment>) -> io::Result<Self> {
        let ProcessConfig { worker, logs, grace, gate } = config;
        let spawner = Spawner::start(gate.clone())?;
        Ok(Self(Arc::new(Tools { worker, containment, spawner, logs, grace, gate, open_files: raise_open_files() })))
    }
}

/// Each run takes two files: this process may need more than work is used to.
fn raise_open_files() -> Option<(u64, u64)> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).ok()?;
    Some((soft, hard))
}

impl Driver for ProcessDriver {
    fn kind(&self) -> &'static str {
        "process"
    }

    fn grace(&self, spec: &Spec) -> Result<Duration, SpecError> {
        Ok(ProcessSpec::stored(spec)?.stop_grace.unwrap_or(self.0.grace))
    }

    fn start(&self, work: Work, observer: Observer) -> Result<Box<dyn Handle>, (SpecError, Observer)> {
        let spec = match ProcessSpec::stored(&work.spec) {
            Ok(spec) => spec,
            Err(error) => return Err((error.into(), observer)),
        };
        let (order, orders) = watch::channel(None);
        let log = self.0.logs.writer(&work.name).of(work.epoch);
        let tools = Arc::clone(&self.0);
        let keeper = Keeper { work, spec, tools, log, observer, orders, starts: 0, backoff: Backoff::default() };
        tokio::spawn(keeper.keep());
        Ok(Box::new(Run(order)))
    }
}

impl Handle for Run {
    fn stop(&self, order: StopOrder) {
        self.0.send_modify(|current| {
            let earlier = current.and_then(|c| c.kill_by).into_iter().chain(order.kill_by).min();
            *current = Some(StopOrder { kill_by: earlier });
        });
    }
}

//! The driver `process`: a command, held in a cell, its output kept, started again when it ends.
//!
//! The wheel: one of worker::driver. Every process of a run is dead when the run's end is observed.

pub mod cells;
pub(crate) mod environment;
mod keeper;

#[cfg(test)]
mod keeper_tests;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use self::{
    cells::Cells,
    environment::{EnvPass, Inherited},
    keeper::Keeper,
};
use super::{
    Answer, Driver, Handle, Observer, SpecError, Survivor, Work,
    backoff::{self, Backoff},
    log,
    orders::{OrderReceiver, Run},
};
use evenkeel_model::{
    DriverTraits, Holds, Spec, WorkerId,
    process::{self, ProcessSpec},
};
use evenkeel_store::task::of_this_process;

/// How processes are held, and that they take changes.
const TRAITS: DriverTraits = DriverTraits { holds: Holds::Strict, updates: true };

/// What the driver needs.
#[derive(Debug)]
pub struct ProcessConfig {
    /// Handed to every process.
    pub worker: WorkerId,
    /// What a process gets from the stop signal to the kill, unless its spec says otherwise.
    pub grace: Duration,
    /// What work may have of this process's environment.
    pub env_pass: EnvPass,
}

/// What every keeper uses.
#[derive(Debug)]
struct Tools<C> {
    worker: WorkerId,
    cells: Arc<C>,
    inherited: Inherited,
    grace: Duration,
}

/// Runs processes, held by such cells.
#[derive(Debug)]
pub struct ProcessDriver<C>(Arc<Tools<C>>);

impl<C: Cells> ProcessDriver<C> {
    /// A driver that holds its runs by these cells.
    #[must_use]
    pub fn new(config: ProcessConfig, cells: Arc<C>) -> Self {
        let ProcessConfig { worker, grace, env_pass } = config;
        Self(Arc::new(Tools { worker, cells, inherited: Inherited::take(env_pass), grace }))
    }

    /// A spec that this worker can run as it is.
    fn spec(&self, spec: &Spec) -> Result<ProcessSpec, SpecError> {
        let spec = ProcessSpec::stored(spec)?;
        self.0.inherited.check(&spec)?;
        if spec.allow_privilege_escalation && !self.0.cells.ends_any_user() {
            return Err(SpecError(
                "spec.allow_privilege_escalation: this worker could not end what becomes another user: it neither has the capability CAP_KILL \
                 nor holds work by cgroups; leave it out, or require a worker that can"
                    .to_owned(),
            ));
        }
        Ok(spec)
    }
}

impl<C: Cells> Driver for ProcessDriver<C> {
    fn kind(&self) -> &str {
        process::KIND
    }

    fn traits(&self) -> DriverTraits {
        TRAITS
    }

    fn grace(&self, spec: &Spec) -> Result<Duration, SpecError> {
        Ok(self.spec(spec)?.stop_grace.unwrap_or(self.0.grace))
    }

    fn start(&self, work: Work, observer: Observer) -> Result<Box<dyn Handle>, (SpecError, Observer)> {
        let spec = match self.spec(&work.spec) {
            Ok(spec) => spec,
            Err(error) => return Err((error, observer)),
        };
        let (run, orders) = Run::new();
        let log = work.log.clone();
        let tools = Arc::clone(&self.0);
        let backoff = Backoff::default();
        let keeper = Keeper { work, spec, tools, log, observer, orders, starts: 0, failures: 0, backoff };
        tokio::spawn(of_this_process(keeper.keep()));
        Ok(Box::new(run))
    }

    /// The guard has ended all of it before it starts an agent, and an agent ends all of a session before it begins another.
    fn survivors(&self) -> Answer<'_, Vec<Survivor>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn end<'a>(&'a self, _: &'a Survivor) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }
}

//! What a piece has in its hand while it runs: who it is, what it is to do, whether it still may, and when it must stop.
//!
//! The wheel: under worker::driver::in_process, between the keeper, which tells, and the kind, which asks. It decides nothing.

use std::{fmt, sync::Arc};

use evenkeel_model::{Epoch, ResourceName};
use tokio::{sync::watch, time::Instant};

use crate::{
    driver::{Log, Work},
    protocol::{authority::Gate, reconcile::StopWhy},
};

/// One piece of work while it runs; a copy is the same piece.
pub struct Piece<S>(Arc<Shared<S>>);

struct Shared<S> {
    name: ResourceName,
    epoch: Epoch,
    gate: Gate,
    log: Log,
    spec: watch::Sender<Arc<S>>,
    stopping: watch::Sender<Option<Stopping>>,
    report: watch::Sender<String>,
}

/// A piece has been told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopping {
    /// When it is aborted, if it has not returned. It may come earlier still, if authority ends meanwhile.
    pub deadline: Instant,
    /// Why; none: nobody is left who could say.
    pub why: Option<StopWhy>,
}

/// This worker may not run the piece now: authority has ended, or is about to. An effect that was about to happen must not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this worker may not run {0} now: it has no authority; nothing was done")]
pub struct NoAuthority(ResourceName);

impl<S> Piece<S> {
    pub(super) fn new(work: &Work, spec: Arc<S>) -> Self {
        Self(Arc::new(Shared {
            name: work.name.clone(),
            epoch: work.epoch,
            gate: work.gate.clone(),
            log: work.log.clone(),
            spec: watch::Sender::new(spec),
            stopping: watch::Sender::new(None),
            report: watch::Sender::new(String::new()),
        }))
    }

    /// The resource.
    #[must_use]
    pub fn name(&self) -> &ResourceName {
        &self.0.name
    }

    /// The fencing token: it grows with every assignment in the whole cluster. Hand it on with each write to what can refuse a smaller one.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.0.epoch
    }

    /// What the piece is to do, by now.
    #[must_use]
    pub fn spec(&self) -> Arc<S> {
        Arc::clone(&self.0.spec.borrow())
    }

    /// Waits for another spec than this one.
    pub async fn changed(&self, from: &Arc<S>) -> Arc<S> {
        let mut specs = self.0.spec.subscribe();
        // The sender lives as long as this piece does.
        let changed = specs.wait_for(|spec| !Arc::ptr_eq(spec, from)).await;
        changed.map_or_else(|_| self.spec(), |spec| Arc::clone(&spec))
    }

    /// Asked right before each effect: whether it may still happen.
    ///
    /// # Errors
    /// It may not. Handed on as the error of [`Kind::run`](super::Kind::run) it counts as no failure.
    pub fn check(&self) -> Result<(), NoAuthority> {
        if self.0.gate.is_open() { Ok(()) } else { Err(NoAuthority(self.0.name.clone())) }
    }

    /// Returns once the piece is told to stop, and at once if it has been.
    pub async fn stopping(&self) -> Stopping {
        let mut told = self.0.stopping.subscribe();
        match told.wait_for(Option::is_some).await.map(|stopping| *stopping) {
            Ok(Some(stopping)) => stopping,
            // The sender lives as long as this piece does.
            _ => std::future::pending().await,
        }
    }

    /// Whether the piece has been told to stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.0.stopping.borrow().is_some()
    }

    /// Its output, which `evenkeel logs` shows.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.0.log
    }

    /// Says how it goes: the message of its status, which `evenkeel get` shows. Said often, it is written once a second at most.
    pub fn report(&self, message: impl Into<String>) {
        self.0.report.send_replace(message.into());
    }

    pub(super) fn set_spec(&self, spec: Arc<S>) {
        self.0.spec.send_replace(spec);
    }

    pub(super) fn stop(&self, stopping: Stopping) {
        self.0.stopping.send_replace(Some(stopping));
    }

    pub(super) fn reports(&self) -> watch::Receiver<String> {
        self.0.report.subscribe()
    }
}

impl<S> Clone for Piece<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> fmt::Debug for Piece<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Piece").field("name", &self.0.name).field("epoch", &self.0.epoch).finish_non_exhaustive()
    }
}

//! May this worker run that resource? One function that planner and worker share, so that they cannot disagree.

use std::fmt;

use crate::{Definition, Registration, WorkerId};

/// The hard rule that a worker breaks for a resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Misfit {
    /// It is pinned to another worker.
    Pinned(WorkerId),
    /// The worker has no driver of its kind.
    Kind(Box<str>),
    /// A term of its `require` does not hold for the worker's labels.
    Require(String),
    /// The worker's capacity would be exceeded.
    Capacity {
        /// What the worker has left.
        free: u64,
        /// What the resource weighs.
        weight: u32,
    },
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pinned(worker) => write!(f, "it is pinned to {worker}"),
            Self::Kind(kind) => write!(f, "no driver for kind {kind}"),
            Self::Require(term) => write!(f, "require: {term} does not hold"),
            Self::Capacity { free, weight } => write!(f, "capacity: weight {weight} is more than the {free} that is left"),
        }
    }
}

/// Whether the rules that do not depend on load let this worker run this resource: the condition for staying.
///
/// # Errors
/// The rule that it breaks.
pub fn may_run(definition: &Definition, id: &WorkerId, worker: &Registration) -> Result<(), Misfit> {
    if let Some(pin) = definition.pin.as_ref().filter(|pin| *pin != id) {
        return Err(Misfit::Pinned(pin.clone()));
    }
    if !definition.kind.is_empty() && !worker.kinds.iter().any(|k| **k == *definition.kind) {
        return Err(Misfit::Kind(definition.kind.clone()));
    }
    match definition.require.first_miss(&worker.labels) {
        None => Ok(()),
        Some(term) => Err(Misfit::Require(term)),
    }
}

/// Whether this worker, with this payload already, can take this resource as well: the condition for coming.
///
/// # Errors
/// The rule that it breaks.
pub fn can_run(definition: &Definition, id: &WorkerId, worker: &Registration, payload: u64) -> Result<(), Misfit> {
    may_run(definition, id, worker)?;
    let free = worker.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(payload));
    if u64::from(definition.weight) <= free {
        return Ok(());
    }
    Err(Misfit::Capacity { free, weight: definition.weight })
}

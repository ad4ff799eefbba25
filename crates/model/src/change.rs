//! What can happen to a Cluster: a key of etcd was written or deleted. A list and a watch give the same events.

use std::{collections::BTreeMap, time::Duration};

use crate::{Admission, Assignment, Epoch, Hash, Intent, Phase, Record, Registration, ResourceName, Revision, Session, Status, WorkerId};

/// A point in time by the observer's own monotonic clock, counted from any origin that does not change while it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub Duration);

impl Moment {
    /// The moment that lies so much later.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }

    /// The moment that lies so much earlier, or the origin.
    #[must_use]
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(span))
    }
}

/// One key as it is after a write; `None`: it was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// `/resources/<name>`
    Resource {
        /// Its name.
        name: ResourceName,
        /// What stands there.
        value: Option<Box<Versioned<Record>>>,
    },
    /// `/resources/<name>` holds something that cannot be read. It is left alone: neither run nor stopped.
    Unreadable {
        /// Its name.
        name: ResourceName,
        /// Why it cannot be read.
        error: Box<str>,
    },
    /// `/workers/<id>`
    Worker {
        /// Its id.
        id: WorkerId,
        /// The session and what it says of itself.
        value: Option<Box<(Session, Registration)>>,
    },
    /// `/admissions/<worker>`
    Admission {
        /// The worker.
        worker: WorkerId,
        /// What stands there.
        value: Option<Box<Versioned<Admission>>>,
    },
    /// `/assignments/<worker>/<name>`
    Assignment {
        /// The worker.
        worker: WorkerId,
        /// The resource.
        name: ResourceName,
        /// What stands there.
        value: Option<Held>,
    },
    /// `/intents/workers/<id>`
    Intent {
        /// The worker.
        worker: WorkerId,
        /// What is wanted of it.
        value: Option<Intent>,
    },
    /// `/intents/brake`
    WrittenOff {
        /// The lost sessions whose work a person has given up waiting for.
        sessions: BTreeMap<WorkerId, Session>,
    },
    /// `/status/<worker>/<name>`
    Status {
        /// The worker.
        worker: WorkerId,
        /// The resource.
        name: ResourceName,
        /// What the worker observes.
        value: Option<Box<Status>>,
    },
}

impl Change {
    /// The resource that it is about, if it is about one.
    #[must_use]
    pub fn resource(&self) -> Option<&ResourceName> {
        match self {
            Self::Resource { name, .. } | Self::Unreadable { name, .. } | Self::Assignment { name, .. } | Self::Status { name, .. } => {
                Some(name)
            }
            Self::Worker { .. } | Self::Admission { .. } | Self::Intent { .. } | Self::WrittenOff { .. } => None,
        }
    }
}

/// A value and the revision that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The mod revision of the key; zero while the write is under way.
    pub revision: Revision,
    /// The value.
    pub value: T,
}

/// What the leader keeps of an assignment: all but the spec, which the resource has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The create revision of the key.
    pub epoch: Epoch,
    /// The hash that the worker was given.
    pub hash: Hash,
    /// Run or stop.
    pub phase: Phase,
}

impl Held {
    /// The part of an assignment that the leader keeps.
    #[must_use]
    pub fn of(epoch: Epoch, assignment: &Assignment) -> Self {
        Self { epoch, hash: assignment.hash, phase: assignment.phase.clone() }
    }

    /// The leader wants it to run.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.phase == Phase::Run
    }
}

//! What can happen to a Cluster: a key of etcd was written or deleted. A list and a watch give the same changes.

use std::time::Duration;

use crate::{Assignment, Definition, Entry, Epoch, Hash, Holds, Key, Ownership, Phase, Revision, Work};

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

/// One key as it is after a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key, and what it has now.
    pub entry: Entry,
    /// The revision that created the key; zero: it does not exist.
    pub created: Revision,
    /// The revision that wrote the value; zero: the key does not exist.
    pub modified: Revision,
    /// Why the value cannot be used; then the entry has what is safe in its place.
    pub error: Option<Box<str>>,
}

impl Change {
    /// A key is created at a revision. Where the entry says that it does not exist, the revision does not matter.
    #[must_use]
    pub fn at(revision: Revision, entry: Entry) -> Self {
        Self::over(revision, revision, entry)
    }

    /// A key that was created at one revision is written at another.
    #[must_use]
    pub fn over(created: Revision, modified: Revision, entry: Entry) -> Self {
        let (created, modified) = if entry.is_absent() { (Revision::default(), Revision::default()) } else { (created, modified) };
        Self { entry, created, modified, error: None }
    }

    /// The key does not exist, or no longer.
    #[must_use]
    pub fn gone(key: Key) -> Self {
        Self::at(Revision::default(), key.absent())
    }
}

/// A value and the revision that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The mod revision of the key; zero in what is only reserved.
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
    /// The work that the worker was given; unknown of one that is to stop, which has no spec any more.
    pub work: Work,
    /// How the worker holds it.
    pub holds: Holds,
    /// Run or stop.
    pub phase: Phase,
}

impl Held {
    /// The part of an assignment that the leader keeps.
    #[must_use]
    pub fn of(epoch: Epoch, assignment: &Assignment) -> Self {
        let Assignment { kind, spec, require: _, hash, holds, phase } = assignment;
        let is_known = *phase == Phase::Run && *hash != Hash::unknown();
        let work = if is_known { Work::of(kind, spec) } else { Work::unknown() };
        Self { epoch, hash: *hash, work, holds: *holds, phase: phase.clone() }
    }

    /// What the worker was given is what a definition asks for, however either is spelled: there is no need to start it again.
    #[must_use]
    pub fn has_work_of(&self, definition: &Definition) -> bool {
        // The same text is the commonest case, and needs no spec to be read.
        self.hash == definition.hash() || self.work == definition.work()
    }

    /// What the leader concludes from the loss of its worker is enough for how a definition is to be owned.
    #[must_use]
    pub fn is_held_well_for(&self, definition: &Definition) -> bool {
        self.holds != Holds::Loose || definition.ownership == Ownership::Available
    }

    /// The leader wants it to run.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.phase == Phase::Run
    }
}

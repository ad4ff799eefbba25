//! Assignments, the truth of ownership, and what workers observe of them.

use serde::{Deserialize, Serialize};

use crate::{Cluster, Epoch, Hash, Held, Holds, Needs, Ownership, Read, ResourceName, Revision, Seen, Selector, Spec, Stored, WorkerId};

/// The value of `/assignments/<worker>/<name>`: everything that the worker needs to run the resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Assignment {
    /// Empty: the worker's catalog says what the name means.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// What the driver is given.
    #[serde(default, skip_serializing_if = "Spec::is_empty")]
    pub spec: Spec,
    /// Which workers may run it: the worker looks for itself.
    #[serde(default, skip_serializing_if = "Selector::is_empty")]
    pub require: Selector,
    /// Covers kind and spec.
    #[serde(default, skip_serializing_if = "Hash::is_empty")]
    pub hash: Hash,
    /// How the worker held this kind when the assignment was made: what the leader concludes from its loss.
    #[serde(default, skip_serializing_if = "Holds::is_strict")]
    pub holds: Holds,
    /// Whether it is to run or to stop.
    #[serde(flatten)]
    pub phase: Phase,
}

impl Assignment {
    /// What the worker checks for itself, before it asks its drivers about the kind. The key says which worker it is for, and `holds` what its
    /// driver has to keep: see [`Holds::may_run`].
    #[must_use]
    pub fn needs(&self) -> Needs<'_> {
        Needs { kind: "", require: &self.require, pin: None, ownership: Ownership::Available }
    }
}

impl Stored for Assignment {
    type Ids = (WorkerId, ResourceName);

    /// An assignment that cannot be read may run, and has a hash that no resource has: it is stopped and made anew.
    fn read(_: &Self::Ids, json: &[u8]) -> Read<Self> {
        let unknown = || Self {
            kind: String::new(),
            spec: Spec::default(),
            require: Selector::EMPTY,
            hash: Hash::unknown(),
            holds: Holds::Strict,
            phase: Phase::Run,
        };
        Read::or(json, || Some(unknown()))
    }

    fn apply(cluster: &mut Cluster, (worker, name): Self::Ids, assignment: Option<Self>, seen: Seen) {
        let held = assignment.map(|a| Held::of(Epoch(seen.created.0), &a));
        cluster.apply_assignment(worker, &name, held, seen.now);
    }
}

/// What the leader wants of an assignment. `Stop` is final for its epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "Phase", rename_all = "lowercase")]
pub enum Phase {
    /// The worker is to run it.
    Run,
    /// The worker is to stop it and report; then the leader ends the assignment.
    #[serde(rename_all = "PascalCase")]
    Stop {
        /// Why.
        reason: StopReason,
        /// Where the resource is meant to run next, if anywhere; the same worker for an update.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<WorkerId>,
    },
}

/// Why an assignment is ended while its worker lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopReason {
    /// The resource was deleted.
    Deleted,
    /// The resource asks for other work.
    Changed,
    /// The worker may not run it any more.
    Unfit,
    /// Another worker has less to do.
    Rebalance,
    /// The worker is being drained.
    Drain,
    /// The worker has more than its capacity.
    Capacity,
    /// It fails there again and again.
    Failing,
    /// It has finished, and is not to be started again.
    Finished,
    /// A second assignment of the same resource, which the protocol never makes.
    Duplicate,
}

impl StopReason {
    /// The word that people read.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::Changed => "changed",
            Self::Unfit => "unfit",
            Self::Rebalance => "rebalance",
            Self::Drain => "drain",
            Self::Capacity => "capacity",
            Self::Failing => "failing",
            Self::Finished => "finished",
            Self::Duplicate => "duplicate",
        }
    }
}

/// The value of `/status/<worker>/<name>`: what the worker observes. Written on change only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Status {
    /// What the work does.
    pub phase: Observed,
    /// The assignment that this speaks of.
    pub epoch: Epoch,
    /// When the phase was entered: nanoseconds since the Unix epoch.
    pub since: i64,
    /// The hash of what it runs: another than its assignment's until a change in place is taken. Empty: that is not known, or not said, as by earlier
    /// versions.
    #[serde(default, skip_serializing_if = "Hash::is_empty")]
    pub hash: Hash,
    /// The revision at which the assignment was written that `hash` answers; of what was written later it says nothing. Zero: the first one, which
    /// created it.
    #[serde(default, skip_serializing_if = "Revision::is_zero")]
    pub answers: Revision,
    /// The hash of an assignment of this epoch that cannot be taken without a restart, which needs another epoch. Empty: none.
    #[serde(default, skip_serializing_if = "Hash::is_empty")]
    pub restart_for: Hash,
    /// How often the work was started again within this epoch, attempts that failed before it ran included.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub restarts: u32,
    /// How many runs in a row ended, or could not be started, before they had run well.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failures: u32,
    /// It has come to its end: it ended by itself, or could not be started, and by its own restart policy it is not to be started again, here
    /// or elsewhere. Once said of an epoch, it stays said, whatever the phase is.
    #[serde(default, skip_serializing_if = "is_false")]
    pub finished: bool,
    /// It did not end when it was told to, and nobody can end it alone: the process that it runs in is ended, with all else in there.
    #[serde(default, skip_serializing_if = "is_false")]
    pub overran: bool,
    /// For people: an exit status, an error.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl Stored for Status {
    type Ids = (WorkerId, ResourceName);

    /// A status that cannot be read says nothing.
    fn read(_: &Self::Ids, json: &[u8]) -> Read<Self> {
        Read::or(json, || None)
    }

    fn apply(cluster: &mut Cluster, (worker, name): Self::Ids, status: Option<Self>, _: Seen) {
        cluster.apply_status(&worker, &name, status.map(Box::new));
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

/// So many runs in a row that did not go well are no accident: one or two quick ends come with a neighbour that starts a moment later. With the
/// pauses of a process that is some 0.3 s.
pub const FAILING: u32 = 3;

impl Status {
    /// What has just entered a phase, and of which nothing more is known.
    #[must_use]
    pub fn new(phase: Observed, epoch: Epoch, since: i64) -> Self {
        let (hash, restart_for) = (Hash::default(), Hash::default());
        Self {
            phase,
            epoch,
            since,
            hash,
            answers: Revision::default(),
            restart_for,
            restarts: 0,
            failures: 0,
            finished: false,
            overran: false,
            message: String::new(),
        }
    }

    /// It speaks of work of this hash, which its assignment has: not of what ran before a change that is not taken yet, or that is not taken
    /// without a restart.
    #[must_use]
    pub fn is_of(&self, hash: Hash) -> bool {
        (self.hash.is_empty() || self.hash == hash) && (self.restart_for.is_empty() || self.restart_for != hash)
    }

    /// It fails again and again; or it cannot be started on this worker at all, which says nothing of others.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        !self.finished && (self.failures >= FAILING || self.cannot_start_here())
    }

    /// How it fails, for people: how its last run ended, and how many did in a row.
    #[must_use]
    pub fn failure(&self) -> String {
        let times = format!("{} {} in a row", self.failures, if self.failures == 1 { "time" } else { "times" });
        // What it says while it runs is no failure.
        if self.message.is_empty() || self.phase == Observed::Running { times } else { format!("{}, {times}", self.message) }
    }

    /// It cannot be started on this worker, whatever is tried.
    #[must_use]
    pub fn cannot_start_here(&self) -> bool {
        // A worker that counts no failures is older than the leader's word that it fails, and would not hear it.
        self.phase == Observed::Failed && !self.finished && self.failures > 0
    }
}

/// What the work does, as its worker sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Observed {
    /// Told to start.
    Starting,
    /// It runs.
    Running,
    /// It ended, and waits to be started again.
    Backoff,
    /// It ended by itself, and its restart policy leaves it so.
    Exited,
    /// It cannot be started: its spec is wrong, or its kind is not known here; or it could not be, and is not to be started again.
    Failed,
    /// Told to stop.
    Stopping,
    /// It has stopped, every process of it, and this worker never starts this epoch again.
    Stopped,
}

impl Observed {
    /// The word that people read.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Backoff => "backoff",
            Self::Exited => "exited",
            Self::Failed => "failed",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_work_says_while_it_runs_is_no_failure() {
        let status = |phase| Status { failures: 3, message: "exit status 1".to_owned(), ..Status::new(phase, Epoch(1), 0) };
        assert_eq!(status(Observed::Backoff).failure(), "exit status 1, 3 times in a row");
        assert_eq!(status(Observed::Running).failure(), "3 times in a row");
    }
}

//! What stands in etcd for people and for other masters: who campaigns, and what happened.

use serde::{Deserialize, Serialize};

use crate::{Epoch, MasterId, Read, Revision, Stored, Suffix, TaskId};

/// The value of `/election/<lease>`: a master that leads or would lead. The key with the lowest create revision leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MasterRecord {
    /// Its id.
    #[serde(rename = "ID")]
    pub id: MasterId,
    /// `host:port` of its gRPC server, where standbys forward to.
    pub address: String,
    /// `host:port` of its HTTP server.
    #[serde(rename = "HTTP", default, skip_serializing_if = "String::is_empty")]
    pub http: String,
    /// The version of its binary.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// When it became the leader: nanoseconds since the Unix epoch; zero while it has not.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub leads_since: i64,
}

impl Stored for MasterRecord {
    type Ids = String;

    /// A master may hold this key, whatever the key says: its place in the order counts.
    fn read(_: &String, json: &[u8]) -> Read<Self> {
        let unknown = |id| Self { id, address: String::new(), http: String::new(), version: String::new(), leads_since: 0 };
        Read::or(json, || MasterId::new("unknown").ok().map(unknown))
    }
}

/// One entry of the history under `/events/`; a key there has a list of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HistoryEntry {
    /// Nanoseconds since the Unix epoch.
    pub time: i64,
    /// What happened.
    #[serde(rename = "Type")]
    pub kind: EntryKind,
    /// The resource that it is about, if any.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub resource: String,
    /// The worker that it is about, or where the resource is now.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub worker: String,
    /// Where the resource was.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub from: String,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The master that decided it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub master: String,
    /// The assignment that it speaks of.
    #[serde(default, skip_serializing_if = "is_no_epoch")]
    pub epoch: Epoch,
    /// The task that it is about, if any.
    #[serde(default, skip_serializing_if = "is_no_task")]
    pub task: TaskId,
}

impl HistoryEntry {
    /// The entry as the transaction of this revision wrote it. One that tells of a new assignment has no epoch where it was written together
    /// with the assignment: the epoch is that revision.
    #[must_use]
    pub fn written_at(self, revision: Revision) -> Self {
        let creates = matches!(self.kind, EntryKind::Added | EntryKind::Assigned | EntryKind::Moved) && !self.worker.is_empty();
        if creates && is_no_epoch(&self.epoch) { Self { epoch: Epoch(revision.0), ..self } } else { self }
    }
}

impl Stored for Vec<HistoryEntry> {
    type Ids = Suffix;

    /// Nothing is decided from the history, so a part that cannot be read is empty.
    fn read(_: &Suffix, json: &[u8]) -> Read<Self> {
        Read::or(json, || Some(Self::new()))
    }
}

/// What an entry of the history is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntryKind {
    /// A resource was added.
    Added,
    /// A resource's definition was replaced.
    Changed,
    /// The work of a resource was given another spec while it runs.
    Updated,
    /// A resource was deleted.
    Deleted,
    /// A resource was assigned to a worker.
    Assigned,
    /// A worker was told to stop a resource.
    Stopping,
    /// An assignment ended, and another took its place.
    Moved,
    /// An assignment ended, and nothing took its place.
    Ended,
    /// A resource has finished, and is not started again.
    Finished,
    /// A resource did not end when it was told to, and its worker's process is ended for it.
    Overran,
    /// A session of a worker was admitted.
    Admitted,
    /// A worker's session is gone.
    Lost,
    /// A worker left.
    Released,
    /// Nothing more is placed on a worker.
    Cordoned,
    /// A worker is being drained.
    Draining,
    /// Nothing is wanted of a worker any more.
    Uncordoned,
    /// The brake holds what lost workers ran.
    Held,
    /// It holds nothing any more.
    Resumed,
    /// A person lets workers go that are gone.
    #[serde(rename = "letgo")]
    WrittenOff,
    /// A master became the leader.
    Leading,
    /// A task was created.
    TaskCreated,
    /// Nothing more of it is ordered.
    TaskPaused,
    /// It goes on.
    TaskResumed,
    /// Nothing more of it begins.
    TaskCancelled,
    /// The same, and what runs is stopped; or one host of it.
    TaskKilled,
    /// Hosts of it run once more.
    TaskRedone,
    /// What came of one host counts no more.
    TaskIgnored,
    /// A host was not reached in time.
    TaskUndelivered,
    /// How it ended on a host is not known.
    TaskLost,
    /// All hosts are at an end.
    TaskDone,
    /// It is kept no longer.
    TaskRemoved,
}

impl EntryKind {
    /// The word that people read.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Updated => "updated",
            Self::Deleted => "deleted",
            Self::Assigned => "assigned",
            Self::Stopping => "stopping",
            Self::Moved => "moved",
            Self::Ended => "ended",
            Self::Finished => "finished",
            Self::Overran => "overran",
            Self::Admitted => "admitted",
            Self::Lost => "lost",
            Self::Released => "released",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
            Self::Uncordoned => "uncordoned",
            Self::Held => "held",
            Self::Resumed => "resumed",
            Self::WrittenOff => "letgo",
            Self::Leading => "leading",
            Self::TaskCreated => "task-created",
            Self::TaskPaused => "task-paused",
            Self::TaskResumed => "task-resumed",
            Self::TaskCancelled => "task-cancelled",
            Self::TaskKilled => "task-killed",
            Self::TaskRedone => "task-redone",
            Self::TaskIgnored => "task-ignored",
            Self::TaskUndelivered => "task-undelivered",
            Self::TaskLost => "task-lost",
            Self::TaskDone => "task-done",
            Self::TaskRemoved => "task-removed",
        }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(n: &i64) -> bool {
    *n == 0
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_no_epoch(epoch: &Epoch) -> bool {
    *epoch == Epoch::default()
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_no_task(task: &TaskId) -> bool {
    *task == TaskId::default()
}

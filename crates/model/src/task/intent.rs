//! The value of `/intents/tasks/<id>`: what is wanted of a whole task. Under model::task. It is written with the task, and changed by people's
//! requests and by the leader's own conclusions.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::is_default;
use crate::{Cluster, Read, Seen, Stored, TaskId, WorkerId};

/// What is wanted of a task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TaskIntent {
    /// What.
    #[serde(rename = "Intent")]
    pub goal: TaskGoal,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub why: Box<str>,
    /// What came of these hosts counts no more.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub ignored: BTreeSet<WorkerId>,
    /// The attempt that is wanted of a host, where that is not the first.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attempts: BTreeMap<WorkerId, u32>,
    /// The hosts to stop, or not to begin with.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub killed: BTreeSet<WorkerId>,
    /// The hosts of `PauseAfter` after which it has paused.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub passed: BTreeSet<WorkerId>,
    /// How many failed hosts a person has accepted by resuming it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub accepted: u32,
    /// When every host was at an end: nanoseconds since the Unix epoch; 0: it goes on.
    #[serde(default, skip_serializing_if = "is_default")]
    pub done_at: i64,
    /// Of how many of its hosts the tails were deleted, to make room.
    #[serde(default, skip_serializing_if = "is_default")]
    pub tails_deleted: u32,
}

/// What is wanted of a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskGoal {
    /// It goes on.
    #[default]
    Run,
    /// Nothing more is ordered.
    Pause,
    /// Nothing more begins.
    Cancel,
    /// Nothing more begins, and what runs is stopped.
    Kill,
    /// All that is kept of it is being deleted.
    Remove,
}

impl TaskGoal {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Pause => "pause",
            Self::Cancel => "cancel",
            Self::Kill => "kill",
            Self::Remove => "remove",
        }
    }

    /// Nothing of it begins any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Cancel | Self::Kill | Self::Remove)
    }
}

impl Stored for TaskIntent {
    type Ids = TaskId;

    /// Until it is known what is wanted, nothing more is ordered.
    fn read(_: &TaskId, json: &[u8]) -> Read<Self> {
        Read::or(json, || Some(Self { goal: TaskGoal::Pause, why: "its intent in etcd cannot be read".into(), ..Self::default() }))
    }

    fn apply(cluster: &mut Cluster, id: TaskId, value: Option<Self>, seen: Seen) {
        cluster.with_task(id, |entry| entry.set_intent(value, seen.modified));
    }
}

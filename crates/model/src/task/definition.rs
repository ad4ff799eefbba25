//! The value of `/tasks/<id>`: what was asked for, with the hosts that it was resolved to. It never changes. The script stands apart, as it is
//! large and no master needs it. Under model::task.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Share, is_default};
use crate::{Cluster, Read, Seen, Stored, TaskId, WorkerId, process::duration_text};

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Task {
    /// Its id.
    #[serde(rename = "ID")]
    pub id: TaskId,
    /// For people.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub title: Box<str>,
    /// Who asked, as they said.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub creator: Box<str>,
    /// The address of who asked.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub from: Box<str>,
    /// Nanoseconds since the Unix epoch, by the leader's time of day.
    pub created: i64,
    /// Of the script, as hexadecimal digits.
    #[serde(rename = "SHA256")]
    pub sha256: Box<str>,
    /// The user that it runs as; empty: that of the worker.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub account: Box<str>,
    /// What the script is called with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Its environment, beside what each script has.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// References to what each worker knows, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, String>,
    /// Where it runs.
    pub on: TaskTargets,
    /// From its beginning to the stop signal; none: [`Self::TIMEOUT`].
    #[serde(default, with = "duration_text", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// From the stop signal to the kill; none: [`Self::GRACE`].
    #[serde(default, with = "duration_text", skip_serializing_if = "Option::is_none")]
    pub grace: Option<Duration>,
    /// From a host's order to the end of its delivery; none: [`Self::DELIVER`].
    #[serde(default, with = "duration_text", skip_serializing_if = "Option::is_none")]
    pub deliver: Option<Duration>,
    /// How many hosts may be pending or running at a time.
    pub batch: Share,
    /// How many may fail before it pauses.
    pub tolerance: Share,
    /// What follows when an end is not known.
    #[serde(default, skip_serializing_if = "OnLost::is_report")]
    pub on_lost: OnLost,
    /// What becomes of what a script leaves behind.
    #[serde(default, skip_serializing_if = "Children::is_kill")]
    pub children: Children,
    /// It pauses when each of these is at an end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pause_after: Vec<WorkerId>,
    /// Hosts that were not reached count as failed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub count_undelivered: bool,
    /// The caller's own name of it, by which a repetition is known.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub key: Box<str>,
    /// SHA-256 of all that was asked for, where it has a key: another content under the same key shows.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub content: Box<str>,
    /// The hosts as the door of the original was given them.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub hosts_as_sent: Box<str>,
}

/// Where a task runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TaskTargets {
    /// The hosts that it was resolved to when it was created, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub workers: Vec<WorkerId>,
    /// The selector that chose them; empty: they were named.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub select: Box<str>,
    /// So many were chosen of those that match; 0: all.
    #[serde(default, skip_serializing_if = "is_default")]
    pub any: u32,
    /// Also those that register later and match, until the delivery ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
}

/// What follows when the end of a script is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLost {
    /// It is said.
    #[default]
    Report,
    /// It runs again, though it may have run.
    Retry,
}

impl OnLost {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_report(&self) -> bool {
        *self == Self::Report
    }
}

/// What becomes of what a script leaves behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Children {
    /// It is killed.
    #[default]
    Kill,
    /// It lives on, for scripts that start daemons.
    Leave,
}

impl Children {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_kill(&self) -> bool {
        *self == Self::Kill
    }
}

impl Task {
    /// The timeout of a task that says none.
    pub const TIMEOUT: Duration = Duration::from_secs(3600);
    /// Its grace.
    pub const GRACE: Duration = Duration::from_secs(5);
    /// For how long an order of it waits for its worker.
    pub const DELIVER: Duration = Duration::from_secs(3600);
    /// How many of its hosts may be pending or running at a time.
    pub const BATCH: Share = Share::Count(50);
    /// How many of them may fail.
    pub const TOLERANCE: Share = Share::Count(0);
    /// How often a script is begun on one host at the most where [`OnLost::Retry`] was asked for: a worker that dies by it would go on for ever.
    pub const MOST_ATTEMPTS: u32 = 5;
    /// Of the output of one stream so much is kept in etcd at the most.
    pub const TAIL: usize = 4 << 10;
    /// The tails of one stream of all hosts of a task have so much in etcd at the most.
    pub const TAILS: usize = 16 << 20;

    /// From its beginning to the stop signal.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(Self::TIMEOUT)
    }

    /// From the stop signal to the kill.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.grace.unwrap_or(Self::GRACE)
    }

    /// From a host's order to the end of its delivery.
    #[must_use]
    pub fn deliver(&self) -> Duration {
        self.deliver.unwrap_or(Self::DELIVER)
    }

    /// How many bytes of one stream of a host are kept in etcd.
    #[must_use]
    pub fn tail(&self) -> usize {
        Self::TAIL.min(Self::TAILS / self.on.workers.len().max(1))
    }
}

impl Stored for Task {
    type Ids = TaskId;

    /// What cannot be read is ordered nowhere.
    fn read(id: &TaskId, json: &[u8]) -> Read<Self> {
        let read = Read::<Self>::or(json, || None);
        match &read.value {
            Some(task) if task.id != *id => Read::unusable(format!("it is task {}", task.id), None),
            _ => read,
        }
    }

    fn apply(cluster: &mut Cluster, id: TaskId, value: Option<Self>, seen: Seen) {
        cluster.with_task(id, |entry| entry.set_task(value, seen));
    }
}

/// The value of `/x/scripts/<id>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TaskScript {
    /// What runs.
    pub script: String,
    /// What it reads.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stdin: String,
}

impl Stored for TaskScript {
    type Ids = TaskId;

    fn read(_: &TaskId, json: &[u8]) -> Read<Self> {
        Read::or(json, || None)
    }
}

/// The value of `/intents/next-task`: the id of the next task. It never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NextTask {
    /// That id.
    pub next: u32,
}

impl Stored for NextTask {
    type Ids = ();

    /// The ids of the tasks that there are say as much.
    fn read((): &(), json: &[u8]) -> Read<Self> {
        Read::or(json, || None)
    }

    fn apply(cluster: &mut Cluster, (): (), value: Option<Self>, seen: Seen) {
        cluster.set_next_task(value, seen.modified);
    }
}

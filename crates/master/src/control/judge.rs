//! What a command is judged by: the committed state, and what a decision needs beside it. Nothing is changed here but the next id.

use evenkeel_model::{Cluster, EntryKind, HistoryEntry, Moment, WorkerId};
use evenkeel_planner::PlannerConfig;

use super::{history, resources::PutAnswer, snowflake::Snowflakes};

/// One look at the committed state, for the requests about one subject.
pub(crate) struct Judge<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) planner: &'a PlannerConfig,
    pub(super) now: Moment,
    /// The time of day, in nanoseconds since the Unix epoch.
    pub(super) time: i64,
    pub(super) master: &'a str,
    pub(super) snowflakes: &'a mut Snowflakes,
    /// Of many who want what there is already, the first finds out where it is, or why it is nowhere.
    pub(super) unchanged: Option<PutAnswer>,
}

impl Judge<'_> {
    /// An entry of the history about something that is decided now.
    pub(super) fn entry(&self, kind: EntryKind, resource: &str, reason: &str) -> HistoryEntry {
        history::entry(kind, self.time, self.master, resource, reason)
    }

    /// A worker with its address, for people.
    pub(super) fn node(&self, worker: &WorkerId) -> (WorkerId, String) {
        let address = self.cluster.worker(worker.as_str()).and_then(|w| w.registration()).map(|r| r.address.clone());
        (worker.clone(), address.unwrap_or_default())
    }

    /// A new record's id.
    pub(super) fn next_id(&mut self) -> u64 {
        self.snowflakes.next(self.time)
    }
}

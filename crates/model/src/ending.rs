//! What a resource's record keeps of how its work went: that it has finished, or on which workers it has failed. Written by the leader alone,
//! with the assignment that it speaks of, so that it outlives assignments, workers and leaders. It decides nothing.

use serde::{Deserialize, Serialize};

use crate::{Epoch, Hash, Observed, Status, WorkerId};

/// How many workers are remembered of one resource on which it has failed. With so many of them it is rather the work than the workers, and
/// the names of so many still fit into a record.
pub const MAX_FAILED_ON: usize = 16;
/// The longest message that is kept of an end, in bytes: a line of a terminal or two. A status holds twice as much.
const MAX_MESSAGE: usize = 512;

/// The work has come to its end, and by its own restart policy it is not started again: not here, not elsewhere, until it is other work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Finish {
    /// What has finished: a resource of another hash is other work.
    pub hash: Hash,
    /// `exited` or `failed`.
    pub phase: Observed,
    /// How it ended.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// When, by its worker's clock: nanoseconds since the Unix epoch.
    pub since: i64,
    /// Where.
    pub worker: WorkerId,
    /// The assignment under which it ran last.
    pub epoch: Epoch,
    /// How often it was started again under that.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub restarts: u32,
}

impl Finish {
    /// What a status says of the end of this work.
    #[must_use]
    pub fn of(hash: Hash, worker: &WorkerId, status: &Status) -> Self {
        let end = (0..=MAX_MESSAGE.min(status.message.len())).rev().find(|at| status.message.is_char_boundary(*at));
        Self {
            hash,
            // One that was told to stop meanwhile had ended before.
            phase: if status.phase == Observed::Failed { Observed::Failed } else { Observed::Exited },
            message: status.message[..end.unwrap_or_default()].to_owned(),
            since: status.since,
            worker: worker.clone(),
            epoch: status.epoch,
            restarts: status.restarts,
        }
    }
}

/// The workers on which the work has failed again and again, the latest last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct FailedOn {
    /// What has failed: a resource of another hash is other work.
    pub hash: Hash,
    /// Where; at most [`MAX_FAILED_ON`], none twice.
    pub workers: Vec<WorkerId>,
}

impl FailedOn {
    /// The same with one worker more. Where there are too many, the oldest is forgotten.
    #[must_use]
    pub fn with(before: Option<&Self>, hash: Hash, worker: &WorkerId) -> Self {
        let kept = before.filter(|before| before.hash == hash).into_iter().flat_map(|before| &before.workers);
        let mut workers: Vec<WorkerId> = kept.filter(|id| *id != worker).chain([worker]).cloned().collect();
        let excess = workers.len().saturating_sub(MAX_FAILED_ON);
        workers.drain(..excess);
        Self { hash, workers }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(n: usize) -> WorkerId {
        WorkerId::new(&format!("w{n}")).expect("id")
    }

    #[test]
    fn each_worker_is_remembered_once_the_latest_last_and_no_more_than_fit() {
        let (hash, other) = (Hash::default(), Hash::unknown());
        let after = |workers: &[usize]| {
            workers.iter().fold(None, |before: Option<FailedOn>, n| Some(FailedOn::with(before.as_ref(), hash, &worker(*n)))).expect("some")
        };
        assert_eq!(after(&[1, 2, 1]).workers, [worker(2), worker(1)]);
        let many: Vec<usize> = (0..MAX_FAILED_ON + 2).collect();
        let kept: Vec<WorkerId> = (2..MAX_FAILED_ON + 2).map(worker).collect();
        assert_eq!(after(&many).workers, kept);
        assert_eq!(FailedOn::with(Some(&after(&[1, 2])), other, &worker(3)).workers, [worker(3)], "it is other work");
    }

    #[test]
    fn of_a_long_message_a_line_is_kept() {
        let status = |phase, message: &str| Status {
            restarts: 2,
            failures: 1,
            finished: true,
            message: message.to_owned(),
            ..Status::new(phase, Epoch(7), 5)
        };
        let long = "é".repeat(MAX_MESSAGE);
        let finish = Finish::of(Hash::default(), &worker(1), &status(Observed::Failed, &long));
        assert_eq!((finish.message.len(), finish.phase), (MAX_MESSAGE, Observed::Failed));
        let finish = Finish::of(Hash::default(), &worker(1), &status(Observed::Stopped, "exit status 0"));
        assert_eq!(
            (finish.message.as_str(), finish.phase, finish.epoch, finish.restarts),
            ("exit status 0", Observed::Exited, Epoch(7), 2)
        );
    }
}

//! Carries out the batches of the [`Pipeline`](crate::Pipeline) on etcd.
//!
//! In the wheel this is the second half of store::commit, the one that does IO. It sends each batch once, and where the answer is lost it
//! asks until the outcome is certain; what follows from an outcome is decided by the pipeline. A batch that etcd has not taken on, since it
//! has too many requests, is sent again as it is after a pause: as long as it waits it holds one of the pipeline's places, so that fewer
//! batches are sent.

use std::time::Duration;

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep},
};
use tracing::{debug, warn};

use crate::{
    batch::{Batch, BatchId, Outcome, Resolution},
    client::Client,
    error::Error,
    task::of_this_process,
};

/// The first and the longest pause between two attempts to send a batch, or to find out what became of it.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Pauses that grow.
struct Pauses(Duration);

impl Pauses {
    fn new() -> Self {
        Self(PAUSE)
    }

    async fn next(&mut self) {
        sleep(self.0).await;
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
    }
}

/// A batch whose outcome is certain.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Which.
    pub batch: BatchId,
    /// What has become of it.
    pub outcome: Outcome,
    /// How long it took until that was certain.
    pub took: Duration,
}

/// Carries out batches side by side. Dropping it gives up those under way: they may be applied or not.
#[derive(Debug)]
pub struct Executor {
    client: Client,
    deadline: Duration,
    finished: mpsc::UnboundedSender<Finished>,
    tasks: JoinSet<()>,
}

impl Executor {
    /// An executor, and the channel on which it tells of finished batches, in the order in which they finish, and of those that wait for space. The
    /// channel holds no more than twice what the pipeline has in flight. `deadline` is for each request.
    #[must_use]
    pub fn new(client: Client, deadline: Duration) -> (Self, mpsc::UnboundedReceiver<Finished>) {
        let (finished, receiver) = mpsc::unbounded_channel();
        (Self { client, deadline, finished, tasks: JoinSet::new() }, receiver)
    }

    /// Starts to carry out a batch, and returns at once. It must be called within a tokio runtime.
    pub fn execute(&mut self, batch: Batch) {
        while self.tasks.try_join_next().is_some() {}
        let (client, deadline, finished) = (self.client.clone(), self.deadline, self.finished.clone());
        self.tasks.spawn(of_this_process(async move {
            let id = batch.id;
            let begun = Instant::now();
            let waits_for_space = || drop(finished.send(Finished { batch: id, outcome: Outcome::WaitsForSpace, took: begun.elapsed() }));
            let outcome = match &batch.resolution {
                Some(resolution) => carry_out(&client, &batch, resolution, deadline, waits_for_space).await,
                None => carry_out_unmarked(&client, &batch, deadline).await,
            };
            // Nobody listens any more only when the owner has given up.
            let _ = finished.send(Finished { batch: id, outcome, took: begun.elapsed() });
        }));
    }
}

/// Sends the batch, and makes certain of its outcome.
async fn carry_out(client: &Client, batch: &Batch, resolution: &Resolution, deadline: Duration, waits_for_space: impl FnOnce()) -> Outcome {
    let mut pauses = Pauses::new();
    loop {
        match client.send(&batch.txn, deadline).await {
            Ok(reply) => return Batch::judge(reply, false),
            Err(error @ Error::Overloaded { .. }) => debug!(batch = batch.id.0, %error, "a batch of writes is sent again"),
            Err(error @ Error::NoSpace { .. }) => {
                // Who is refused is told so, and what is planned says so once a second.
                debug!(%error, "a batch of writes was refused");
                return after_no_space(client, resolution).await;
            }
            Err(error) if error.outcome_unknown() || error.blames_member() => {
                warn!(batch = batch.id.0, %error, "the answer to a batch of writes is lost: finding out what became of it");
                return resolve(client, resolution, deadline, waits_for_space).await;
            }
            Err(error) => return Outcome::Rejected { reason: error.to_string() },
        }
        pauses.next().await;
    }
}

/// Sends a batch that can be sent again until there is an answer.
async fn carry_out_unmarked(client: &Client, batch: &Batch, deadline: Duration) -> Outcome {
    let (mut pauses, mut repeated) = (Pauses::new(), false);
    loop {
        match client.send(&batch.txn, deadline).await {
            Ok(reply) => return Batch::judge(reply, repeated),
            Err(Error::NoSpace { .. }) if !repeated => return unmarked_after_no_space(client, batch).await,
            Err(error) if repeated || error.outcome_unknown() || error.blames_member() || matches!(error, Error::Overloaded { .. }) => {
                repeated |= error.outcome_unknown();
                debug!(batch = batch.id.0, %error, "a batch of deletions is sent again");
            }
            Err(error) => return Outcome::Rejected { reason: error.to_string() },
        }
        pauses.next().await;
    }
}

/// Asks until it is certain, and says so once if that is to wait for space.
async fn resolve(client: &Client, resolution: &Resolution, deadline: Duration, waits_for_space: impl FnOnce()) -> Outcome {
    let (mut pauses, mut waits_for_space) = (Pauses::new(), Some(waits_for_space));
    loop {
        match client.txn(resolution.txn(), deadline).await {
            Ok(reply) => return resolution.judge(&reply),
            // The void mark finds no space either, but what stands in the slot may be enough to know.
            Err(Error::NoSpace { .. }) => {
                if let Some(outcome) = read_slot(client, resolution).await.flatten() {
                    return outcome;
                }
                if let Some(waits_for_space) = waits_for_space.take() {
                    waits_for_space();
                }
            }
            Err(error) => debug!(%error, "it is not known yet what became of a batch"),
        }
        pauses.next().await;
    }
}

/// etcd has answered that it has no space. It may say so of a transaction that it has just applied, but once it has answered nothing
/// of it is under way any more, so the slot tells.
async fn after_no_space(client: &Client, resolution: &Resolution) -> Outcome {
    loop {
        match read_slot(client, resolution).await {
            Some(known) => return known.unwrap_or(Outcome::NoSpace),
            None => sleep(PAUSE).await,
        }
    }
}

/// None: etcd did not answer.
async fn read_slot(client: &Client, resolution: &Resolution) -> Option<Option<Outcome>> {
    let read = client.get(resolution.slot_key()).await.ok()?;
    Some(resolution.judge_slot(read.kv.as_ref()))
}

/// The same of a batch without a slot, of versions of etcd before 3.4.19 and 3.5.2: others take it without space.
async fn unmarked_after_no_space(client: &Client, batch: &Batch) -> Outcome {
    let Some(witness) = batch.witness() else { return Outcome::NoSpace };
    loop {
        match client.get(witness.key()).await {
            Ok(read) if witness.holds(read.kv.as_ref()) => return Outcome::NoSpace,
            Ok(_) => return Outcome::GivenUp,
            Err(_) => sleep(PAUSE).await,
        }
    }
}

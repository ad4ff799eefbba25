//! What keeps readers from holding up the control loop, and answers from outgrowing their clients: steps, turns, and room for one answer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use evenkeel_model::limits::{MAX_PAGE_BYTES, MAX_PLANS_WAITING, MAX_SEARCHES, MAX_SEARCHES_WAITING, MAX_USAGES, MAX_WATCHES};
use futures::{Stream, StreamExt};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

/// For how long a reader holds what the control loop waits for, at a stretch. A commit takes several times as long.
const STEP: Duration = Duration::from_micros(500);
/// After a computation that cannot be cut into steps the next one waits for so many times its length, so that most of the time is the loop's.
const REST_FACTOR: u32 = 3;

/// One step of a reader.
pub(crate) struct Step {
    began: Instant,
}

impl Step {
    pub(crate) fn begin() -> Self {
        Self { began: Instant::now() }
    }

    /// The step has taken long enough, and others are to have their turn. Asked after each entry: one may take long by itself.
    pub(crate) fn is_over(&self) -> bool {
        self.began.elapsed() >= STEP
    }
}

/// The room of one answer.
pub(super) struct Room {
    left: usize,
    is_empty: bool,
}

impl Room {
    pub(super) fn of_a_page() -> Self {
        Self { left: MAX_PAGE_BYTES, is_empty: true }
    }

    /// Whether there is room for this entry; it is taken then. There is for the first, whatever its size.
    pub(super) fn takes(&mut self, entry: &impl Message) -> bool {
        // A field's number and length, which are at most six bytes at these sizes.
        let size = entry.encoded_len() + 6;
        let takes = self.is_empty || size <= self.left;
        if takes {
            self.left = self.left.saturating_sub(size);
            self.is_empty = false;
        }
        takes
    }

    /// As many of the first entries as there is room for; how many are left out.
    pub(super) fn cut<T: Message>(&mut self, entries: &mut Vec<T>) -> usize {
        let fits = entries.iter().position(|entry| !self.takes(entry)).unwrap_or(entries.len());
        let more = entries.len() - fits;
        entries.truncate(fits);
        more
    }
}

/// Whose turn it is to compute what holds up the control loop, how many may search, and how many may watch.
#[derive(Clone, Debug)]
pub(crate) struct Turns {
    /// One plan at a time.
    one: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// Lists and explanations, which give way between their steps, and take the processors all the same.
    searches: Arc<Semaphore>,
    searches_waiting: Arc<Semaphore>,
    watches: Arc<Semaphore>,
    /// Those that ask workers what work uses.
    usages: Arc<Semaphore>,
}

impl Default for Turns {
    fn default() -> Self {
        let semaphore = |count| Arc::new(Semaphore::new(count));
        Self {
            one: semaphore(1),
            waiting: semaphore(MAX_PLANS_WAITING),
            searches: semaphore(MAX_SEARCHES),
            searches_waiting: semaphore(MAX_SEARCHES_WAITING),
            watches: semaphore(MAX_WATCHES),
            usages: semaphore(MAX_USAGES),
        }
    }
}

impl Turns {
    /// A place for a list or an explanation, until it is made.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when too many wait already.
    pub(super) async fn search(&self) -> Result<OwnedSemaphorePermit, Status> {
        let full = |_| Status::resource_exhausted(format!("{MAX_SEARCHES_WAITING} lists and explanations wait already; try again"));
        let _waits = self.searches_waiting.clone().try_acquire_owned().map_err(full)?;
        self.searches.clone().acquire_owned().await.map_err(|e| Status::internal(e.to_string()))
    }

    /// Computes something, when it is its turn.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when too many wait already.
    pub(super) async fn compute<T>(&self, compute: impl FnOnce() -> T) -> Result<T, Status> {
        let full = |_| Status::resource_exhausted(format!("{MAX_PLANS_WAITING} plans wait already; try again"));
        let _waits = self.waiting.clone().try_acquire_owned().map_err(full)?;
        let turn = self.one.clone().acquire_owned().await.map_err(|e| Status::internal(e.to_string()))?;
        let began = Instant::now();
        let computed = compute();
        let rest = began.elapsed() * REST_FACTOR;
        tokio::spawn(async move {
            tokio::time::sleep(rest).await;
            drop(turn);
        });
        Ok(computed)
    }

    /// A place for one that watches, for as long as it is kept.
    #[allow(clippy::result_large_err, reason = "tonic's own error type")]
    pub(super) fn watch(&self) -> Result<OwnedSemaphorePermit, Status> {
        let full = |_| Status::resource_exhausted(format!("{MAX_WATCHES} streams watch already; end some, or try again later"));
        self.watches.clone().try_acquire_owned().map_err(full)
    }

    /// A place for one that asks workers what work uses, for as long as it is kept.
    #[allow(clippy::result_large_err, reason = "tonic's own error type")]
    pub(super) fn usage(&self) -> Result<OwnedSemaphorePermit, Status> {
        let full = |_| Status::resource_exhausted(format!("{MAX_USAGES} callers ask workers already what work uses; try again"));
        self.usages.clone().try_acquire_owned().map_err(full)
    }
}

/// A stream that keeps its place until it has ended.
pub(super) fn with_place<S: Stream>(stream: S, place: OwnedSemaphorePermit) -> impl Stream<Item = S::Item> {
    stream.map(move |item| {
        let _kept = &place;
        item
    })
}

#[cfg(test)]
mod tests {
    use evenkeel_proto::v1::MasterState;

    use super::*;

    fn entry(size: usize) -> MasterState {
        MasterState { id: "x".repeat(size), ..MasterState::default() }
    }

    #[test]
    fn a_page_ends_before_it_is_too_large_and_has_one_entry_at_least() {
        let mut entries = vec![entry(MAX_PAGE_BYTES / 3 - 100); 5];
        assert_eq!((Room::of_a_page().cut(&mut entries), entries.len()), (2, 3));
        let mut entries = vec![entry(2 * MAX_PAGE_BYTES), entry(1)];
        assert_eq!((Room::of_a_page().cut(&mut entries), entries.len()), (1, 1));
        let mut few = vec![entry(1); 100];
        assert_eq!(Room::of_a_page().cut(&mut few), 0);
    }

    #[tokio::test]
    async fn one_is_computed_at_a_time_and_few_wait() {
        let turns = Turns::default();
        let held = turns.one.clone().acquire_owned().await.expect("free");
        let waiting: Vec<_> = (0..MAX_PLANS_WAITING)
            .map(|n| {
                let turns = turns.clone();
                tokio::spawn(async move { turns.compute(move || n).await })
            })
            .collect();
        tokio::task::yield_now().await;
        let refused = turns.compute(|| 0).await.expect_err("too many");
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        drop(held);
        for (n, computed) in waiting.into_iter().enumerate() {
            assert_eq!(computed.await.expect("no panic").expect("its turn"), n);
        }
        // Most of the time is the loop's: after a long computation the next one waits.
        turns.compute(|| std::thread::sleep(Duration::from_millis(20))).await.expect("its turn");
        assert_eq!(turns.one.available_permits(), 0);
    }
}

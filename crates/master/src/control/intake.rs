//! How much may wait to be decided and written, over all callers: in number and in bytes. Who asks for one thing is refused when there is no
//! place; who sends many is held back until there is one, and leaves places free for those who ask for one.

use std::sync::Arc;

use evenkeel_model::limits::{MAX_WAITING, MAX_WAITING_BYTES, MAX_WAITING_OF_STREAMS};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use super::request::Refusal;

/// What one place in bytes stands for: a semaphore counts to a few hundred million only where pointers are short.
const UNIT: usize = 1024;

/// The places that requests take up from when they are read until they are answered.
#[derive(Clone, Debug)]
pub(crate) struct Intake {
    places: Arc<Semaphore>,
    /// Of those, what all streams and sources together may take.
    streams: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    /// Of those, half: who waits for more in turn would otherwise be given all that gets free.
    bytes_of_streams: Arc<Semaphore>,
}

/// The place of one request; it is free again when this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Ticket(#[allow(dead_code, reason = "held, not read")] [Option<OwnedSemaphorePermit>; 4]);

impl Default for Intake {
    fn default() -> Self {
        Self::new(MAX_WAITING, MAX_WAITING_OF_STREAMS, MAX_WAITING_BYTES)
    }
}

impl Intake {
    fn new(places: usize, of_streams: usize, bytes: usize) -> Self {
        let semaphore = |count| Arc::new(Semaphore::new(count));
        Self {
            places: semaphore(places),
            streams: semaphore(of_streams),
            bytes: semaphore(bytes / UNIT),
            bytes_of_streams: semaphore(bytes / UNIT / 2),
        }
    }

    /// A place for one request of so many bytes.
    ///
    /// # Errors
    /// [`Refusal::Busy`] when there is none.
    pub(crate) fn one(&self, bytes: usize) -> Result<Ticket, Refusal> {
        let busy = |_: TryAcquireError| Refusal::Busy;
        let place = self.places.clone().try_acquire_owned().map_err(busy)?;
        let bytes = self.bytes.clone().try_acquire_many_owned(units(bytes)).map_err(busy)?;
        Ok(Ticket([Some(place), Some(bytes), None, None]))
    }

    /// A place for one of many, as soon as there is one: first come, first served.
    pub(crate) async fn one_of_many(&self, bytes: usize) -> Ticket {
        // The semaphores are never closed.
        let of_streams = self.streams.clone().acquire_owned().await.ok();
        let bytes_of_streams = self.bytes_of_streams.clone().acquire_many_owned(units(bytes)).await.ok();
        let bytes = self.bytes.clone().acquire_many_owned(units(bytes)).await.ok();
        let place = self.places.clone().acquire_owned().await.ok();
        Ticket([of_streams, bytes_of_streams, bytes, place])
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes / UNIT + 1).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn streams_leave_places_for_single_requests_and_all_are_bounded() {
        let intake = Intake::new(4, 2, 64 * UNIT);
        let many: Vec<Ticket> = (0..2).map(|_| intake.one_of_many(1).now_or_never().expect("a place")).collect();
        let mut waits = std::pin::pin!(intake.one_of_many(1));
        assert!(waits.as_mut().now_or_never().is_none(), "streams have what they may");
        let single: Vec<Ticket> = (0..2).map(|_| intake.one(1).expect("a place")).collect();
        assert!(matches!(intake.one(1), Err(Refusal::Busy)));
        drop(many);
        let third = waits.now_or_never().expect("a place again");
        drop((single, third));
        // Few large ones are as much as many small ones.
        let large = intake.one(50 * UNIT).expect("a place");
        assert!(matches!(intake.one(20 * UNIT), Err(Refusal::Busy)));
        drop(large);
        assert!(intake.one(20 * UNIT).is_ok());
    }

    /// Large requests of streams took all bytes, and a stream that waited for more was given what got free.
    #[test]
    fn large_requests_of_streams_leave_bytes_for_single_ones() {
        let intake = Intake::new(100, 50, 64 * UNIT);
        let many: Vec<Ticket> = (0..3).map(|_| intake.one_of_many(9 * UNIT).now_or_never().expect("a place")).collect();
        let mut waits = std::pin::pin!(intake.one_of_many(9 * UNIT));
        assert!(waits.as_mut().now_or_never().is_none(), "streams have what they may");
        assert!(intake.one(20 * UNIT).is_ok());
        drop(many);
        assert!(waits.now_or_never().is_some());
    }
}

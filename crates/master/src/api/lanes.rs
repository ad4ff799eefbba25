//! A standby's connections to the leader, so that no caller holds up another. One HTTP/2 connection takes so many calls at once and no more,
//! and all of them share its window.
//!
//! Under master::api::forward. Calls that stream never share a connection with others; how many streams one has is counted here, and their
//! windows together are no larger than that of the connection. It knows no call, and who leads is said to it.

use std::{sync::Arc, time::Duration};

use evenkeel_model::limits::{CONNECTION_WINDOW, MAX_FORWARDED_STREAMS, MAX_WATCHES, STREAM_WINDOW};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

const CONNECT: Duration = Duration::from_secs(1);
const PING: Duration = Duration::from_secs(5);
const PONG: Duration = Duration::from_secs(3);
/// Connections for calls that do not stream. Each takes 128 at once, further ones wait, and the leader answers in milliseconds.
const UNARY: usize = 4;
/// Connections for streams: as many as the leader lets watch at all.
const MOST: usize = MAX_WATCHES.div_ceil(MAX_FORWARDED_STREAMS);

/// The place of a stream on its connection, until it is dropped.
pub(super) type Place = OwnedSemaphorePermit;

/// The connections to one leader. Each is made when it is first needed, and made again when it has broken.
#[derive(Debug)]
pub(super) struct Lanes {
    address: String,
    endpoint: Endpoint,
    unary: [Channel; UNARY],
    next: usize,
    streams: Vec<(Channel, Arc<Semaphore>)>,
}

impl Lanes {
    /// Lanes to this address.
    ///
    /// # Errors
    /// It is none: UNAVAILABLE.
    pub(super) fn to(address: &str) -> Result<Self, Status> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|e| Status::unavailable(format!("the leader's address {address:?} is not usable: {e}")))?
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PONG);
        let unary = std::array::from_fn(|_| endpoint.connect_lazy());
        Ok(Self { address: address.to_owned(), endpoint, unary, next: 0, streams: Vec::new() })
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// For a call that does not stream: each in its turn.
    pub(super) fn unary(&mut self) -> Channel {
        self.next = (self.next + 1) % UNARY;
        self.unary[self.next].clone()
    }

    /// For a call that streams: the first with a free place.
    ///
    /// # Errors
    /// As many streams are open as may be: RESOURCE_EXHAUSTED.
    pub(super) fn stream(&mut self) -> Result<(Channel, Place), Status> {
        for (channel, places) in &self.streams {
            if let Ok(place) = Arc::clone(places).try_acquire_owned() {
                return Ok((channel.clone(), place));
            }
        }
        let places = Arc::new(Semaphore::new(MAX_FORWARDED_STREAMS));
        match Arc::clone(&places).try_acquire_owned() {
            Ok(place) if self.streams.len() < MOST => {
                let channel = self.endpoint.connect_lazy();
                self.streams.push((channel.clone(), places));
                Ok((channel, place))
            }
            _ => {
                let most = MOST * MAX_FORWARDED_STREAMS;
                Err(Status::resource_exhausted(format!("this master passes on {most} streams already; end one, or ask the leader itself")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use evenkeel_model::limits::MAX_STREAMS;

    use super::*;

    #[tokio::test]
    async fn as_many_streams_as_may_watch_have_a_place_and_one_that_ends_gives_it_back() {
        let mut lanes = Lanes::to("127.0.0.1:1").expect("an address");
        let mut places = Vec::new();
        for n in 0..MOST * MAX_FORWARDED_STREAMS {
            places.push(lanes.stream().unwrap_or_else(|e| panic!("stream {n}: {e}")).1);
        }
        assert!(places.len() >= MAX_WATCHES && lanes.streams.len() == MOST);
        assert_eq!(lanes.stream().expect_err("full").code(), tonic::Code::ResourceExhausted);
        drop(places.remove(250));
        places.push(lanes.stream().expect("a place").1);
        assert_eq!(lanes.stream().expect_err("full").code(), tonic::Code::ResourceExhausted);
        assert_eq!(lanes.streams.len(), MOST);
    }

    #[test]
    fn a_connection_has_room_for_all_of_its_streams() {
        assert!(MAX_FORWARDED_STREAMS < MAX_STREAMS as usize);
        assert!(u64::from(STREAM_WINDOW) * MAX_FORWARDED_STREAMS as u64 <= u64::from(CONNECTION_WINDOW));
    }
}

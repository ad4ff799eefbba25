//! What one process allows those who connect to it. The values are in `evenkeel_model::limits`, section "Connections".
//!
//! Under net::serve. Parsed once, handed down.

use std::time::Duration;

use evenkeel_model::limits::{
    BODY_READ_S, HEADER_READ_S, IDLE_S, KEEP_ALIVE_ANSWER_S, KEEP_ALIVE_S, MAX_CONNECTIONS, MAX_CONNECTIONS_OF_ADDRESS, MAX_HEADER,
    MAX_HEADERS, MAX_LOCAL_RESETS, MAX_PENDING_RESETS, MAX_STREAMS,
};

/// The least number of connections, however few files the process may open: enough for the other masters and a person.
const LEAST_CONNECTIONS: usize = 16;

/// The limits of connections and requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From the first byte of a request's headers to their end.
    pub header_read: Duration,
    /// The bytes of a request's headers.
    pub header_bytes: usize,
    /// The number of a request's headers.
    pub headers: usize,
    /// From a request's headers to the end of its body, unless the call streams its requests.
    pub body_read: Duration,
    /// Without a request in flight.
    pub idle: Duration,
    /// Connections in all.
    pub connections: usize,
    /// Connections from one address that is not a loopback address.
    pub connections_of_address: usize,
    /// Requests in flight on one HTTP/2 connection.
    pub streams: u32,
    /// Silence on an HTTP/2 connection before a ping.
    pub keep_alive: Duration,
    /// For the answer to that ping.
    pub keep_alive_answer: Duration,
    /// Streams that the caller reset before they were taken up.
    pub pending_resets: usize,
    /// Streams that were reset for a fault of the caller's.
    pub local_resets: usize,
    /// How long a connection that ends before its request's body was read takes in what still comes, so that the answer arrives.
    pub linger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_read: Duration::from_secs(HEADER_READ_S),
            header_bytes: MAX_HEADER,
            headers: MAX_HEADERS,
            body_read: Duration::from_secs(BODY_READ_S),
            idle: Duration::from_secs(IDLE_S),
            connections: MAX_CONNECTIONS,
            connections_of_address: MAX_CONNECTIONS_OF_ADDRESS,
            streams: MAX_STREAMS,
            keep_alive: Duration::from_secs(KEEP_ALIVE_S),
            keep_alive_answer: Duration::from_secs(KEEP_ALIVE_ANSWER_S),
            pending_resets: MAX_PENDING_RESETS,
            local_resets: MAX_LOCAL_RESETS,
            // A round trip across the world and a retransmission.
            linger: Duration::from_secs(1),
        }
    }
}

impl Limits {
    /// With no more connections than this share of the files that the process may open: the rest is for its own work.
    #[must_use]
    pub fn within(mut self, descriptors: u64, share: u64) -> Self {
        let most = usize::try_from(descriptors / share.max(1)).unwrap_or(usize::MAX);
        self.connections = self.connections.min(most.max(LEAST_CONNECTIONS));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_other_files() {
        for (descriptors, share, expected) in
            [(1_048_576, 2, 4096), (1024, 2, 512), (1024, 4, 256), (20, 2, 16), (u64::MAX, 1, 4096), (9000, 0, 4096)]
        {
            assert_eq!(Limits::default().within(descriptors, share).connections, expected, "{descriptors} / {share}");
        }
    }
}

//! Watch and lease keep-alive on the member in use, with a deadline on every step that waits for an answer.
//!
//! In the wheel they feed the mirror and hold the leased keys. A stream is never repaired here: it ends with an error, its owner leaves
//! the member and opens another.

use std::time::Duration;

use evenkeel_model::Revision;
use tokio::time::timeout;

use crate::{
    client::Client,
    error::Error,
    transport::{KeepAlive, Watch, WatchMessage},
    types::KeyRange,
};

/// One watch of one range on one member.
pub(crate) struct WatchStream {
    member: usize,
    endpoint: String,
    watch: Box<dyn Watch>,
}

impl WatchStream {
    /// Opens a watch on the member in use that begins with the revision `seen`, which its owner knows already and has to leave out. Later
    /// versions of etcd do not answer progress requests for a watch whose first revision is still to come. It is open when etcd says so.
    pub(crate) async fn open(client: &Client, range: &KeyRange, seen: Revision, deadline: Duration) -> Result<Self, Error> {
        let member = client.current();
        let endpoint = client.endpoint_of(member).to_owned();
        let opening = client.member(member).watch(range.clone(), seen.max(Revision(1)));
        let opened = in_time(opening, deadline, &endpoint).await;
        let watch = opened.inspect_err(|error| client.left_because(member, error))?;
        Ok(Self { member, endpoint, watch })
    }

    /// The member that serves the stream.
    pub(crate) fn member(&self) -> usize {
        self.member
    }

    /// The revision of the member when it created the watch.
    pub(crate) fn created_at(&self) -> Revision {
        self.watch.created_at()
    }

    /// The next message. It may be dropped before it is done without losing anything.
    pub(crate) async fn next(&mut self) -> Result<WatchMessage, Error> {
        self.watch.next().await
    }

    /// Sends a liveness probe.
    pub(crate) async fn ask(&mut self, deadline: Duration) -> Result<(), Error> {
        in_time(self.watch.ask(), deadline, &self.endpoint).await
    }

    /// The failure of a member that did not answer a liveness probe.
    pub(crate) fn silent(&self, after: Duration) -> Error {
        Error::Deadline { endpoint: self.endpoint.clone(), after }
    }
}

/// A keep-alive stream for one lease on one member.
pub(crate) struct LeaseStream {
    member: usize,
    endpoint: String,
    stream: Box<dyn KeepAlive>,
}

impl LeaseStream {
    /// Opens the stream on the member in use, which extends the lease once.
    pub(crate) async fn open(client: &Client, lease: i64, deadline: Duration) -> Result<Self, Error> {
        let member = client.current();
        let endpoint = client.endpoint_of(member).to_owned();
        let opened = in_time(client.member(member).keep_alive(lease), deadline, &endpoint).await;
        let stream = opened.inspect_err(|error| client.left_because(member, error))?;
        Ok(Self { member, endpoint, stream })
    }

    /// The member that serves the stream.
    pub(crate) fn member(&self) -> usize {
        self.member
    }

    /// Extends the lease once; [`Error::LeaseNotFound`] if it is gone.
    pub(crate) async fn extend(&mut self, deadline: Duration) -> Result<(), Error> {
        in_time(self.stream.extend(), deadline, &self.endpoint).await
    }
}

async fn in_time<T>(step: impl Future<Output = Result<T, Error>>, deadline: Duration, endpoint: &str) -> Result<T, Error> {
    match timeout(deadline, step).await {
        Ok(done) => done,
        Err(_) => Err(Error::Deadline { endpoint: endpoint.to_owned(), after: deadline }),
    }
}

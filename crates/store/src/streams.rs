//! etcd's two streams, watch and lease keep-alive, with a deadline on their opening.
//!
//! In the wheel they feed the mirror and hold the leased keys. A stream is never repaired here: it ends with an error, its owner leaves
//! the member and opens another.

use std::time::Duration;

use etcd_client as etcd;
use evenkeel_model::Revision;
use tokio::time::timeout;

use crate::{client::Client, error::Error, member::Use, mirror::Change, types::KeyRange, wire};

/// What a watch says.
pub(crate) enum WatchMessage {
    /// Whole transactions, in order. Never empty.
    Changes(Vec<Change>),
    /// The member lives. With a revision: everything up to it has been sent.
    Alive(Option<Revision>),
    /// The revision to start from is gone.
    Compacted(Revision),
}

/// One watch of one range on one member.
pub(crate) struct WatchStream {
    member: usize,
    endpoint: String,
    stream: etcd::WatchStream,
    /// The revision of the member when it created the watch.
    pub(crate) created_at: Revision,
}

impl WatchStream {
    /// Opens a watch on the member in use that begins with the revision `seen`, which its owner knows already and has to leave out. Later
    /// versions of etcd do not answer progress requests for a watch whose first revision is still to come. It is open when etcd says so.
    pub(crate) async fn open(client: &Client, range: &KeyRange, seen: Revision, deadline: Duration) -> Result<Self, Error> {
        let member = client.current();
        let opened = match timeout(deadline, Self::open_on(client, member, range, seen)).await {
            Ok(opened) => opened,
            Err(_) => Err(Error::Deadline { endpoint: client.endpoint_of(member).to_owned(), after: deadline }),
        };
        opened.inspect_err(|error| client.left_because(member, error))
    }

    async fn open_on(client: &Client, member: usize, range: &KeyRange, seen: Revision) -> Result<Self, Error> {
        let endpoint = client.endpoint_of(member).to_owned();
        let mut options = etcd::WatchOptions::new().with_start_revision(seen.0.max(1)).with_progress_notify();
        if !range.end.is_empty() {
            options = options.with_range(range.end.clone());
        }
        let mut connection = client.connection(member, Use::Watches).await?;
        let mut stream = connection.watch.watch(range.start.clone(), Some(options)).await.map_err(|e| Error::of(e, &endpoint))?;
        let first = stream.message().await.map_err(|e| Error::of(e, &endpoint))?;
        match first {
            Some(first) if first.created() && !first.canceled() => {
                Ok(Self { member, endpoint, stream, created_at: wire::revision(first.header()) })
            }
            first => Err(ended(&endpoint, first.as_ref().map_or("", etcd::WatchResponse::cancel_reason))),
        }
    }

    /// The member that serves the stream.
    pub(crate) fn member(&self) -> usize {
        self.member
    }

    /// The next message. It may be dropped before it is done without losing anything.
    pub(crate) async fn next(&mut self) -> Result<WatchMessage, Error> {
        let message = self.stream.message().await.map_err(|e| Error::of(e, &self.endpoint))?;
        let Some(message) = message else { return Err(ended(&self.endpoint, "")) };
        if message.compact_revision() != 0 {
            return Ok(WatchMessage::Compacted(Revision(message.compact_revision())));
        }
        if message.canceled() {
            return Err(ended(&self.endpoint, message.cancel_reason()));
        }
        let changes: Vec<Change> = message.events().iter().filter_map(wire::change).collect();
        if !changes.is_empty() {
            return Ok(WatchMessage::Changes(changes));
        }
        // The answer to a progress request has no watch id (-1), and older versions of etcd send it past events that are still to come.
        // What etcd sends for this watch by itself is in order.
        let ordered = message.watch_id() >= 0 && !message.created();
        Ok(WatchMessage::Alive(ordered.then(|| wire::revision(message.header()))))
    }

    /// Asks for a sign of life. It costs etcd neither a read of its store nor a word with the other members.
    pub(crate) async fn ask(&mut self, deadline: Duration) -> Result<(), Error> {
        match timeout(deadline, self.stream.request_progress()).await {
            Ok(sent) => sent.map_err(|e| Error::of(e, &self.endpoint)),
            Err(_) => Err(Error::Deadline { endpoint: self.endpoint.clone(), after: deadline }),
        }
    }

    /// The failure of a member that gave no sign of life.
    pub(crate) fn silent(&self, after: Duration) -> Error {
        Error::Deadline { endpoint: self.endpoint.clone(), after }
    }
}

/// A keep-alive stream for one lease on one member.
pub(crate) struct LeaseStream {
    member: usize,
    endpoint: String,
    keeper: etcd::LeaseKeeper,
    answers: etcd::LeaseKeepAliveStream,
}

impl LeaseStream {
    /// Opens the stream on the member in use, which extends the lease once.
    pub(crate) async fn open(client: &Client, lease: i64, deadline: Duration) -> Result<Self, Error> {
        let member = client.current();
        let endpoint = client.endpoint_of(member).to_owned();
        let open = async {
            let mut connection = client.connection(member, Use::Calls).await?;
            connection.lease.keep_alive(lease).await.map_err(|e| Error::of(e, &endpoint))
        };
        let opened = match timeout(deadline, open).await {
            Ok(opened) => opened,
            Err(_) => Err(Error::Deadline { endpoint: endpoint.clone(), after: deadline }),
        };
        let (keeper, answers) = opened.inspect_err(|error| client.left_because(member, error))?;
        Ok(Self { member, endpoint, keeper, answers })
    }

    /// The member that serves the stream.
    pub(crate) fn member(&self) -> usize {
        self.member
    }

    /// Extends the lease once.
    ///
    /// # Errors
    /// [`Error::LeaseNotFound`] when etcd answers with the time to live zero, which is its way of saying so.
    pub(crate) async fn extend(&mut self, deadline: Duration) -> Result<(), Error> {
        let ask = async {
            self.keeper.keep_alive().await?;
            self.answers.message().await
        };
        match timeout(deadline, ask).await {
            Ok(Ok(Some(answer))) if answer.ttl() > 0 => Ok(()),
            Ok(Ok(Some(_))) => Err(Error::LeaseNotFound),
            Ok(Ok(None)) => Err(ended(&self.endpoint, "")),
            // The channel to a stream that has ended is closed, which the client reports as it reports a lease that is gone.
            Ok(Err(etcd::Error::LeaseKeepAliveError(reason))) => Err(ended(&self.endpoint, &reason)),
            Ok(Err(error)) => Err(Error::of(error, &self.endpoint)),
            Err(_) => Err(Error::Deadline { endpoint: self.endpoint.clone(), after: deadline }),
        }
    }
}

fn ended(endpoint: &str, reason: &str) -> Error {
    let reason = if reason.is_empty() { "it has ended the stream" } else { reason };
    Error::Unavailable { endpoint: endpoint.into(), reason: reason.into(), sent: true, source: None }
}

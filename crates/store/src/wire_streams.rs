//! etcd's two streams, watch and lease keep-alive, as the etcd client has them.
//!
//! In the wheel they are the lower side of the seam. They convert messages; deadlines and repair are not their business.

use etcd_client as etcd;
use evenkeel_model::Revision;
use futures::{FutureExt, future::BoxFuture};

use crate::{
    error::Error,
    member::Connection,
    mirror::KeyChange,
    transport::{KeepAlive, Watch, WatchMessage},
    types::KeyRange,
    wire,
};

/// One watch of one range on one member.
pub(crate) struct WireWatch {
    endpoint: String,
    stream: etcd::WatchStream,
    created_at: Revision,
}

impl WireWatch {
    pub(crate) async fn open(mut connection: Connection, endpoint: &str, range: KeyRange, start: Revision) -> Result<Self, Error> {
        let mut options = etcd::WatchOptions::new().with_start_revision(start.0).with_progress_notify();
        if !range.end.is_empty() {
            options = options.with_range(range.end);
        }
        let mut stream = connection.watch.watch(range.start, Some(options)).await.map_err(|e| Error::of(e, endpoint))?;
        let first = stream.message().await.map_err(|e| Error::of(e, endpoint))?;
        match first {
            Some(first) if first.created() && !first.canceled() => {
                Ok(Self { endpoint: endpoint.to_owned(), stream, created_at: wire::revision(first.header()) })
            }
            first => Err(Error::ended(endpoint, first.as_ref().map_or("", etcd::WatchResponse::cancel_reason))),
        }
    }

    async fn message(&mut self) -> Result<WatchMessage, Error> {
        let message = self.stream.message().await.map_err(|e| Error::of(e, &self.endpoint))?;
        let Some(message) = message else { return Err(Error::ended(&self.endpoint, "")) };
        if message.compact_revision() != 0 {
            return Ok(WatchMessage::Compacted(Revision(message.compact_revision())));
        }
        if message.canceled() {
            return Err(Error::ended(&self.endpoint, message.cancel_reason()));
        }
        let changes: Vec<KeyChange> = message.events().iter().filter_map(wire::change).collect();
        if !changes.is_empty() {
            return Ok(WatchMessage::Changes(changes));
        }
        // The answer to a progress request has no watch id (-1), and older versions of etcd send it past events that are still to come.
        // What etcd sends for this watch by itself is in order.
        let ordered = message.watch_id() >= 0 && !message.created();
        Ok(WatchMessage::Alive(ordered.then(|| wire::revision(message.header()))))
    }
}

impl Watch for WireWatch {
    fn created_at(&self) -> Revision {
        self.created_at
    }

    fn next(&mut self) -> BoxFuture<'_, Result<WatchMessage, Error>> {
        self.message().boxed()
    }

    fn ask(&mut self) -> BoxFuture<'_, Result<(), Error>> {
        // It costs etcd neither a read of its store nor a word with the other members.
        async { self.stream.request_progress().await.map_err(|e| Error::of(e, &self.endpoint)) }.boxed()
    }
}

/// A keep-alive stream for one lease on one member.
pub(crate) struct WireKeepAlive {
    endpoint: String,
    keeper: etcd::LeaseKeeper,
    answers: etcd::LeaseKeepAliveStream,
}

impl WireKeepAlive {
    pub(crate) async fn open(mut connection: Connection, endpoint: &str, lease: i64) -> Result<Self, Error> {
        let (keeper, answers) = connection.lease.keep_alive(lease).await.map_err(|e| Error::of(e, endpoint))?;
        Ok(Self { endpoint: endpoint.to_owned(), keeper, answers })
    }

    async fn ask(&mut self) -> Result<Option<etcd::LeaseKeepAliveResponse>, etcd::Error> {
        self.keeper.keep_alive().await?;
        self.answers.message().await
    }
}

impl KeepAlive for WireKeepAlive {
    fn extend(&mut self) -> BoxFuture<'_, Result<(), Error>> {
        async {
            match self.ask().await {
                // The time to live zero is etcd's way of saying that there is no such lease.
                Ok(Some(answer)) if answer.ttl() > 0 => Ok(()),
                Ok(Some(_)) => Err(Error::LeaseNotFound),
                Ok(None) => Err(Error::ended(&self.endpoint, "")),
                // The channel to a stream that has ended is closed, which the client reports as it reports a lease that is gone.
                Err(etcd::Error::LeaseKeepAliveError(reason)) => Err(Error::ended(&self.endpoint, &reason)),
                Err(error) => Err(Error::of(error, &self.endpoint)),
            }
        }
        .boxed()
    }
}

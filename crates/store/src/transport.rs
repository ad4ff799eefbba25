//! The seam between the store and etcd: one member, as the rest of this crate sees it.
//!
//! In the wheel both watch and commit end here. Below stand the connections to a real member, or a model of one. Deadlines, the choice
//! of a member, retries, lists in pages and the repair of streams stand above, so that whoever puts a model here runs all of them.
//! Nothing here may mention the etcd client.

use std::{fmt::Debug, time::Duration};

use evenkeel_model::Revision;
use futures::future::BoxFuture;

use crate::{
    error::Error,
    mirror::KeyChange,
    ready::MemberStatus,
    types::{KeyRange, Kv, Txn, TxnReply},
};

/// One member of etcd. A call is made once, with no deadline: whoever calls drops it when he has waited long enough, and what was asked
/// for may be carried out all the same. Calls that write or read keys are linearizable.
pub trait Transport: Debug + Send + Sync {
    /// The member's URL.
    fn endpoint(&self) -> &str;

    /// Reads a range, or a page of it.
    fn range(&self, request: RangeRequest) -> BoxFuture<'_, Result<RangeReply, Error>>;

    /// Carries out a transaction, linearizably even if it has no operations.
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnReply, Error>>;

    /// Puts a key that is bound to no lease, and returns the revision of the write.
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> BoxFuture<'_, Result<Revision, Error>>;

    /// Grants a lease for at least so many seconds.
    fn grant(&self, seconds: i64) -> BoxFuture<'_, Result<Granted, Error>>;

    /// Revokes a lease and deletes its keys; [`Error::LeaseNotFound`] if there is none.
    fn revoke(&self, lease: i64) -> BoxFuture<'_, Result<(), Error>>;

    /// How long the lease lasts if it is not extended, to the second; none: there is no such lease.
    fn time_to_live(&self, lease: i64) -> BoxFuture<'_, Result<Option<Duration>, Error>>;

    /// Forgets all revisions before this one. The keys as they stand at it stay readable.
    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), Error>>;

    /// What the member says of itself. It answers alone, if it has a leader.
    fn status(&self) -> BoxFuture<'_, Result<MemberStatus, Error>>;

    /// Opens a watch that begins with the revision `start`, which may lie ahead. It is done when the member has created the watch. The
    /// watch ends if the member has no leader.
    fn watch(&self, range: KeyRange, start: Revision) -> BoxFuture<'_, Result<Box<dyn Watch>, Error>>;

    /// Opens a stream that keeps a lease alive, and extends it once; [`Error::LeaseNotFound`] if there is none.
    fn keep_alive(&self, lease: i64) -> BoxFuture<'_, Result<Box<dyn KeepAlive>, Error>>;

    /// Gives up the connections: the next call makes a new one. Calls and streams that are under way go on.
    fn forget(&self);
}

/// An open watch.
pub trait Watch: Send + Sync {
    /// The member's revision when it created the watch.
    fn created_at(&self) -> Revision;

    /// The next message. The future may be dropped before it is done without losing anything.
    fn next(&mut self) -> BoxFuture<'_, Result<WatchMessage, Error>>;

    /// Sends a liveness probe, which is answered by [`WatchMessage::Alive`]. It is done when the question is on its way.
    fn ask(&mut self) -> BoxFuture<'_, Result<(), Error>>;
}

/// An open stream that keeps a lease alive.
pub trait KeepAlive: Send + Sync {
    /// Extends the lease once; [`Error::LeaseNotFound`] if it is gone.
    fn extend(&mut self) -> BoxFuture<'_, Result<(), Error>>;
}

/// What is to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeRequest {
    /// The keys.
    pub range: KeyRange,
    /// At which revision; zero: the latest.
    pub revision: Revision,
    /// At most so many keys; zero: all.
    pub limit: i64,
    /// Leave out the values.
    pub keys_only: bool,
}

impl RangeRequest {
    /// All of the range with its values, as it stands now.
    #[must_use]
    pub fn all(range: KeyRange) -> Self {
        Self { range, revision: Revision(0), limit: 0, keys_only: false }
    }
}

/// The answer to a [`RangeRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeReply {
    /// What was found, in the order of the keys.
    pub kvs: Vec<Kv>,
    /// Whether the limit has left something out.
    pub more: bool,
    /// The store's revision, whatever revision was asked for.
    pub revision: Revision,
}

/// A lease that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Its id.
    pub lease: i64,
    /// Its time to live, which may be longer than was asked for.
    pub ttl: Duration,
}

/// What a watch says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchMessage {
    /// Whole transactions, in order. Never empty.
    Changes(Vec<KeyChange>),
    /// The member lives. With a revision: everything up to it has been sent.
    Alive(Option<Revision>),
    /// The revision to go on from is gone; this is the oldest that is left. The watch is over.
    Compacted(Revision),
}

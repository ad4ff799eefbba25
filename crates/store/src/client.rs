//! The connection to etcd's members: one client for each, a deadline on every call, and rotation when the one in use fails.
//!
//! In the wheel it carries watch and commit. It retries only what cannot take effect twice, and it decides nothing about the content.
//!
//! Why not one etcd client with all endpoints: that one spreads its calls over the members and goes on sending a share of them to a
//! member that is dead or frozen. This one stays with a member while it answers, and leaves it at the first failure or missed deadline.

use std::{sync::Arc, time::Duration};

use evenkeel_model::Revision;
use futures::future::BoxFuture;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use crate::{
    error::Error,
    in_use::{InUse, Moves},
    member,
    transport::{Granted, RangeReply, RangeRequest, Transport},
    types::{KeyRange, Read, Snapshot, Txn, TxnReply},
};

/// The first page of a list. Every later one is sized by [`PAGE_BYTES`].
const FIRST_PAGE: i64 = 2_000;
const LARGEST_PAGE: usize = 100_000;
const PAGE_BYTES: usize = 16 << 20;
/// A page takes longer than an ordinary call.
const PAGE_DEADLINE_FACTOR: u32 = 10;
/// How to reach etcd.
#[derive(Clone, Debug)]
pub struct Config {
    /// The members' URLs: `http://host:port`, or `host:port`.
    pub endpoints: Vec<String>,
    /// How long a call may take for which the caller names no deadline of its own.
    pub deadline: Duration,
}

impl Config {
    /// These endpoints, and a deadline of one second.
    pub fn new<S: Into<String>>(endpoints: impl IntoIterator<Item = S>) -> Self {
        Self { endpoints: endpoints.into_iter().map(Into::into).collect(), deadline: Duration::from_secs(1) }
    }
}

/// A handle on etcd; cheap to clone, all clones share the member in use.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    members: Vec<Arc<dyn Transport>>,
    /// Streams learn from it when calls had to leave their member.
    in_use: Arc<InUse>,
    deadline: Duration,
}

/// Whether a call may be sent again although it may have had its effect.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    /// A read: as often as the deadline allows.
    Any,
    /// Only if the first one certainly did not reach etcd.
    Unsent,
}

impl Client {
    /// Checks the endpoints. No connection is made before the first call.
    ///
    /// # Errors
    /// [`Error::InvalidEndpoint`] for an endpoint that is no `http://` URL, or when there is none.
    pub fn new(config: Config) -> Result<Self, Error> {
        if config.endpoints.is_empty() {
            return Err(Error::InvalidEndpoint { given: String::new(), reason: "give at least one, such as http://127.0.0.1:2379".into() });
        }
        let members = config.endpoints.iter().map(|given| member::connect(given)).collect::<Result<Vec<_>, Error>>()?;
        Ok(Self::over(members, config.deadline))
    }

    /// A client of members that somebody else has made, of which there must be one at least. The deadline is as in [`Config`].
    #[must_use]
    pub fn over(members: Vec<Arc<dyn Transport>>, deadline: Duration) -> Self {
        debug_assert!(!members.is_empty(), "a client needs a member");
        Self { shared: Arc::new(Shared { members, in_use: Arc::default(), deadline }) }
    }

    /// The deadline of calls for which none is given.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.shared.deadline
    }

    /// The URL of the member in use.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        self.endpoint_of(self.current())
    }

    /// The URLs of all members.
    pub fn endpoints(&self) -> impl Iterator<Item = &str> {
        self.shared.members.iter().map(|member| member.endpoint())
    }

    /// Reads one key, linearizably.
    ///
    /// # Errors
    /// Those of a read: see [`Error`].
    pub async fn get(&self, key: &[u8]) -> Result<Read, Error> {
        self.read(key, false, self.shared.deadline).await
    }

    /// Whether the key stands, was created by this revision and is still bound to this lease: a linearizable read of the key without its value. It needs no space,
    /// so it works while etcd refuses puts. The instant before the call is the one that the answer is good for.
    ///
    /// # Errors
    /// Those of a read: see [`Error`].
    pub async fn stands(&self, key: &[u8], created: Revision, lease: i64, deadline: Duration) -> Result<bool, Error> {
        let read = self.read(key, true, deadline).await?;
        Ok(read.kv.is_some_and(|kv| kv.created == created && kv.lease == lease))
    }

    async fn read(&self, key: &[u8], keys_only: bool, deadline: Duration) -> Result<Read, Error> {
        let request = RangeRequest { keys_only, ..RangeRequest::all(KeyRange::key(key)) };
        let mut found = self.range(request, deadline).await?;
        Ok(Read { revision: found.revision, kv: found.kvs.pop() })
    }

    async fn range(&self, request: RangeRequest, deadline: Duration) -> Result<RangeReply, Error> {
        self.call(deadline, Repeat::Any, |member| member.range(request.clone())).await
    }

    /// Reads a whole range, linearizably and at one revision. It comes in pages, since a message has a limit and etcd builds it whole.
    /// A page is sized by bytes: for every page etcd walks its index up to the end of the range, so that many small pages cost more
    /// than they save. If etcd compacts the revision in between, the list starts again.
    ///
    /// # Errors
    /// Those of a read: see [`Error`]. Each page has ten times the configured deadline.
    pub async fn list(&self, range: &KeyRange) -> Result<Snapshot, Error> {
        loop {
            match self.list_once(range).await {
                Err(Error::Compacted { revision }) => debug!(%revision, "etcd compacted a revision that was being listed: listing again"),
                done => return done,
            }
        }
    }

    async fn list_once(&self, range: &KeyRange) -> Result<Snapshot, Error> {
        let mut listed = Snapshot { kvs: Vec::new(), revision: Revision(0) };
        let mut request = RangeRequest { limit: FIRST_PAGE, ..RangeRequest::all(range.clone()) };
        let mut bytes = 0;
        loop {
            let mut page = match self.range(request.clone(), self.shared.deadline * PAGE_DEADLINE_FACTOR).await {
                Err(Error::Compacted { .. }) => return Err(Error::Compacted { revision: listed.revision }),
                page => page?,
            };
            if listed.revision == Revision(0) {
                listed.revision = page.revision;
                request.revision = page.revision;
            }
            let more = page.more;
            bytes += page.kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum::<usize>();
            listed.kvs.append(&mut page.kvs);
            let Some(last) = listed.kvs.last().filter(|_| more) else { return Ok(listed) };
            request.range.start.clone_from(&last.key);
            request.range.start.push(0);
            let average = bytes / listed.kvs.len() + 1;
            request.limit = i64::try_from((PAGE_BYTES / average).clamp(1, LARGEST_PAGE)).unwrap_or(FIRST_PAGE);
        }
    }

    /// Carries out a transaction, linearizably. It is sent once: again only if it certainly did not reach etcd.
    ///
    /// # Errors
    /// See [`Error`]; ask [`Error::outcome_unknown`] before concluding that nothing was written.
    pub async fn txn(&self, txn: Txn, deadline: Duration) -> Result<TxnReply, Error> {
        let mut txn = Some(txn);
        // The transaction is copied for each try only where there is another member to try.
        let only_one = self.shared.members.len() == 1;
        let mut copy = || if only_one { txn.take() } else { txn.clone() }.unwrap_or_default();
        self.call(deadline, Repeat::Unsent, |member| member.txn(copy())).await
    }

    /// The same for a caller who may have to send it once more.
    pub(crate) async fn send(&self, txn: &Txn, deadline: Duration) -> Result<TxnReply, Error> {
        self.call(deadline, Repeat::Unsent, |member| member.txn(txn.clone())).await
    }

    /// Puts one key that is bound to no lease, and returns the revision of the write.
    ///
    /// # Errors
    /// Those of [`Client::txn`].
    pub async fn put(&self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Result<Revision, Error> {
        let (key, value) = (key.into(), value.into());
        self.call(self.shared.deadline, Repeat::Unsent, |member| member.put(key.clone(), value.clone())).await
    }

    /// Grants a lease. etcd rounds the time to live up to a second, and up to its own minimum.
    ///
    /// # Errors
    /// See [`Error`]. A lease whose answer was lost expires by itself.
    pub(crate) async fn grant(&self, ttl: Duration, deadline: Duration) -> Result<Granted, Error> {
        let seconds = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
        self.call(deadline, Repeat::Unsent, |member| member.grant(seconds)).await
    }

    /// Revokes a lease, and with it deletes its keys. A lease that does not exist is as good as revoked.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn revoke(&self, lease: i64, deadline: Duration) -> Result<(), Error> {
        match self.call(deadline, Repeat::Any, |member| member.revoke(lease)).await {
            Ok(()) | Err(Error::LeaseNotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// How long a lease lasts if it is not extended, to the second; none: it is gone.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remaining(&self, lease: i64) -> Result<Option<Duration>, Error> {
        match self.call(self.shared.deadline, Repeat::Any, |member| member.time_to_live(lease)).await {
            Err(Error::LeaseNotFound) => Ok(None),
            answer => answer,
        }
    }

    /// Asks etcd to forget all revisions before this one.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.call(self.shared.deadline * PAGE_DEADLINE_FACTOR, Repeat::Unsent, |member| member.compact(revision)).await
    }

    /// Runs one call against the member in use, and against the others in turn while the failure is theirs and a repetition is harmless.
    async fn call<T, F>(&self, deadline: Duration, repeat: Repeat, mut run: F) -> Result<T, Error>
    where
        F: for<'a> FnMut(&'a dyn Transport) -> BoxFuture<'a, Result<T, Error>>,
    {
        let end = Instant::now() + deadline;
        let mut left = self.shared.members.len();
        loop {
            let at = self.current();
            let error = match self.try_member(at, end, deadline, &mut run).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            self.left_because(at, &error);
            left -= 1;
            let harmless = repeat == Repeat::Any || !error.outcome_unknown();
            if left == 0 || !harmless || !error.blames_member() || Instant::now() >= end {
                return Err(error);
            }
        }
    }

    pub(crate) async fn try_member<T, F>(&self, at: usize, end: Instant, deadline: Duration, run: F) -> Result<T, Error>
    where
        F: for<'a> FnOnce(&'a dyn Transport) -> BoxFuture<'a, Result<T, Error>>,
    {
        let member = self.member(at);
        match timeout_at(end, run(member)).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::Deadline { endpoint: member.endpoint().to_owned(), after: deadline }),
        }
    }

    /// Leaves the member if the failure is its own.
    pub(crate) fn left_because(&self, at: usize, error: &Error) {
        if error.blames_member() {
            self.leave(at);
        }
    }

    /// Goes on to the next member, unless another call has done so already. The connection is given up even if it is the only one:
    /// one that hangs may hang for minutes, where a new one works at once.
    pub(crate) fn leave(&self, at: usize) {
        self.shared.members[at].forget();
        if let Some(next) = self.shared.in_use.leave(at, self.shared.members.len()) {
            debug!(from = self.endpoint_of(at), to = self.endpoint_of(next), "another etcd member is used from now on");
        }
    }

    /// The index of the member in use.
    pub(crate) fn current(&self) -> usize {
        self.shared.in_use.current(self.shared.members.len())
    }

    /// Tells of every change of the member in use.
    pub(crate) fn current_changes(&self) -> Moves {
        Moves::of(&self.shared.in_use)
    }

    pub(crate) fn endpoint_of(&self, at: usize) -> &str {
        self.shared.members[at].endpoint()
    }

    /// A member by its index.
    pub(crate) fn member(&self, at: usize) -> &dyn Transport {
        &*self.shared.members[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_needs_an_endpoint() {
        assert!(Client::new(Config::new(Vec::<String>::new())).is_err());
    }

    #[tokio::test]
    async fn a_member_is_left_once_however_many_calls_fail_on_it() {
        let client = Client::new(Config::new(["a:1", "b:1", "c:1"])).unwrap();
        client.leave(0);
        client.leave(0);
        assert_eq!(client.endpoint(), "http://b:1");
        client.leave(1);
        client.leave(2);
        assert_eq!(client.endpoint(), "http://a:1");
    }
}

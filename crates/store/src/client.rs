//! The connection to etcd's members: one client for each, a deadline on every call, and rotation when the one in use fails.
//!
//! In the wheel it carries watch and commit. It retries only what cannot take effect twice, and it decides nothing about the content.
//!
//! Why not one etcd client with all endpoints: that one spreads its calls over the members and goes on sending a share of them to a
//! member that is dead or frozen. This one stays with a member while it answers, and leaves it at the first failure or missed deadline.

use std::{future::Future, sync::Arc, time::Duration};

use etcd_client as etcd;
use evenkeel_model::Revision;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use tracing::debug;

use crate::{
    error::Error,
    member::{Connection, Member, Use},
    types::{KeyRange, Read, Snapshot, Txn, TxnReply},
    wire,
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
    members: Vec<Member>,
    /// The index of the member in use. A watch channel, so that streams learn when calls had to leave their member.
    current: watch::Sender<usize>,
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
        let members = config.endpoints.iter().map(|given| Member::new(given)).collect::<Result<Vec<_>, Error>>()?;
        Ok(Self { shared: Arc::new(Shared { members, current: watch::Sender::new(0), deadline: config.deadline }) })
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

    /// Reads one key, linearizably.
    ///
    /// # Errors
    /// Those of a read: see [`Error`].
    pub async fn get(&self, key: &[u8]) -> Result<Read, Error> {
        self.read(key, etcd::GetOptions::new(), self.shared.deadline).await
    }

    /// Whether the key stands, was created by this revision and is still bound to this lease: a linearizable read of the key without its value. It needs no space,
    /// so it works while etcd refuses puts. The instant before the call is the one that the answer is good for.
    ///
    /// # Errors
    /// Those of a read: see [`Error`].
    pub async fn stands(&self, key: &[u8], created: Revision, lease: i64, deadline: Duration) -> Result<bool, Error> {
        let read = self.read(key, etcd::GetOptions::new().with_keys_only(), deadline).await?;
        Ok(read.kv.is_some_and(|kv| kv.created == created && kv.lease == lease))
    }

    async fn read(&self, key: &[u8], options: etcd::GetOptions, deadline: Duration) -> Result<Read, Error> {
        let mut response = self
            .call(deadline, Repeat::Any, |mut connection| {
                let (key, options) = (key.to_vec(), options.clone());
                async move { connection.kv.get(key, Some(options)).await }
            })
            .await?;
        Ok(Read { revision: wire::revision(response.header()), kv: wire::kvs(response.take_kvs()).pop() })
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
        let mut start = range.start.clone();
        let mut limit = FIRST_PAGE;
        let mut bytes = 0;
        loop {
            let options = wire::range_options(range).with_revision(listed.revision.0).with_limit(limit);
            let page = self.call(self.shared.deadline * PAGE_DEADLINE_FACTOR, Repeat::Any, |mut connection| {
                let (start, options) = (start.clone(), options.clone());
                async move { connection.kv.get(start, Some(options)).await }
            });
            let mut page = match page.await {
                Err(Error::Compacted { .. }) => return Err(Error::Compacted { revision: listed.revision }),
                page => page?,
            };
            if listed.revision == Revision(0) {
                listed.revision = wire::revision(page.header());
            }
            let more = page.more();
            listed.kvs.extend(page.take_kvs().into_iter().map(|kv| {
                bytes += kv.key().len() + kv.value().len();
                wire::kv(kv)
            }));
            let Some(last) = listed.kvs.last().filter(|_| more) else { return Ok(listed) };
            start.clone_from(&last.key);
            start.push(0);
            let average = bytes / listed.kvs.len() + 1;
            limit = i64::try_from((PAGE_BYTES / average).clamp(1, LARGEST_PAGE)).unwrap_or(FIRST_PAGE);
        }
    }

    /// Carries out a transaction, linearizably. It is sent once: again only if it certainly did not reach etcd.
    ///
    /// # Errors
    /// See [`Error`]; ask [`Error::outcome_unknown`] before concluding that nothing was written.
    pub async fn txn(&self, txn: Txn, deadline: Duration) -> Result<TxnReply, Error> {
        let reads = !(txn.then.is_empty() && txn.otherwise.is_empty());
        let mut txn = Some(wire::txn(txn));
        // The transaction is copied for each try only where there is another member to try.
        let only_one = self.shared.members.len() == 1;
        let response = self
            .call(deadline, Repeat::Unsent, |mut connection| {
                let txn = if only_one { txn.take() } else { txn.clone() }.unwrap_or_default();
                async move { connection.kv.txn(txn).await }
            })
            .await?;
        Ok(wire::reply(&response, reads))
    }

    /// Puts one key that is bound to no lease, and returns the revision of the write.
    ///
    /// # Errors
    /// Those of [`Client::txn`].
    pub async fn put(&self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Result<Revision, Error> {
        let (key, value) = (key.into(), value.into());
        let put = |mut connection: Connection| {
            let (key, value) = (key.clone(), value.clone());
            async move { connection.kv.put(key, value, None).await }
        };
        let reply = self.call(self.shared.deadline, Repeat::Unsent, put).await?;
        Ok(Revision(reply.header().map_or(0, |header| header.revision())))
    }

    /// Grants a lease. etcd rounds the time to live up to a second, and up to its own minimum.
    ///
    /// # Errors
    /// See [`Error`]. A lease whose answer was lost expires by itself.
    pub(crate) async fn grant(&self, ttl: Duration, deadline: Duration) -> Result<(i64, Duration), Error> {
        let seconds = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
        let grant = |mut connection: Connection| async move { connection.lease.grant(seconds, None).await };
        let granted = self.call(deadline, Repeat::Unsent, grant).await?;
        Ok((granted.id(), Duration::from_secs(granted.ttl().unsigned_abs())))
    }

    /// Revokes a lease, and with it deletes its keys. A lease that does not exist is as good as revoked.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn revoke(&self, lease: i64, deadline: Duration) -> Result<(), Error> {
        let revoke = |mut connection: Connection| async move { connection.lease.revoke(lease).await };
        match self.call(deadline, Repeat::Any, revoke).await {
            Ok(_) | Err(Error::LeaseNotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// How long a lease lasts if it is not extended, to the second; none: it is gone.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remaining(&self, lease: i64) -> Result<Option<Duration>, Error> {
        let ask = |mut connection: Connection| async move { connection.lease.time_to_live(lease, None).await };
        match self.call(self.shared.deadline, Repeat::Any, ask).await {
            Ok(answer) => Ok(u64::try_from(answer.ttl()).ok().map(Duration::from_secs)),
            Err(Error::LeaseNotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks etcd to forget all revisions before this one.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn compact(&self, revision: Revision) -> Result<(), Error> {
        let compact = |mut connection: Connection| async move { connection.kv.compact(revision.0, None).await };
        self.call(self.shared.deadline * PAGE_DEADLINE_FACTOR, Repeat::Unsent, compact).await.map(drop)
    }

    /// Runs one call against the member in use, and against the others in turn while the failure is theirs and a repetition is harmless.
    async fn call<T, F, Fut>(&self, deadline: Duration, repeat: Repeat, mut run: F) -> Result<T, Error>
    where
        F: FnMut(Connection) -> Fut,
        Fut: Future<Output = Result<T, etcd::Error>>,
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

    pub(crate) async fn try_member<T, F, Fut>(&self, at: usize, end: Instant, deadline: Duration, run: F) -> Result<T, Error>
    where
        F: FnOnce(Connection) -> Fut,
        Fut: Future<Output = Result<T, etcd::Error>>,
    {
        let member = &self.shared.members[at];
        let connection = member.connection(Use::Calls).await?;
        match timeout_at(end, run(connection)).await {
            Ok(answer) => answer.map_err(|error| Error::of(error, member.endpoint())),
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
        let next = (at + 1) % self.shared.members.len();
        self.shared.members[at].forget();
        let moved = self.shared.current.send_if_modified(|current| {
            let moves = *current == at && next != at;
            if moves {
                *current = next;
            }
            moves
        });
        if moved {
            debug!(from = self.endpoint_of(at), to = self.endpoint_of(next), "another etcd member is used from now on");
        }
    }

    /// The index of the member in use.
    pub(crate) fn current(&self) -> usize {
        *self.shared.current.borrow()
    }

    /// Tells of every change of the member in use.
    pub(crate) fn current_changes(&self) -> watch::Receiver<usize> {
        self.shared.current.subscribe()
    }

    pub(crate) fn endpoint_of(&self, at: usize) -> &str {
        self.shared.members[at].endpoint()
    }

    /// The connection to a member.
    pub(crate) async fn connection(&self, at: usize, to: Use) -> Result<Connection, Error> {
        self.shared.members[at].connection(to).await
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

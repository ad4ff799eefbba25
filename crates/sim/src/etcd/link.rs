//! One caller's way to etcd: the members as `Transport`s, and the faults of the network between.
//!
//! In the wheel it is the upper side of the model of etcd, where the real client of `store` stands on it. It decides nothing: requests
//! go into the world, and come back when their events have happened.

use std::{
    fmt,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use evenkeel_store::{
    Client, Error, Granted, KeepAlive, KeyRange, MemberStatus, RangeReply, RangeRequest, Revision, Transport, Txn, TxnReply, Watch,
    WatchMessage,
};
use futures::{FutureExt, future::BoxFuture};
use tokio::sync::mpsc;

use super::{
    calls::Kind,
    core::{Core, Event, World},
    leases::Renewal,
    refusal::Refusal,
    settings::Version,
    wires::Direction,
};

/// The network between one caller and all members.
#[derive(Clone)]
pub struct Link {
    pub(super) world: Arc<World>,
    pub(super) wire: usize,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "link {}", self.world.core().wires[self.wire].name)
    }
}

impl Link {
    /// The members, for [`Client::over`]. The connections belong to the link: its callers share them.
    #[must_use]
    pub fn transports(&self) -> Vec<Arc<dyn Transport>> {
        let endpoints: Vec<String> = self.world.core().cluster.members.iter().map(|member| member.endpoint.clone()).collect();
        let member =
            |(member, endpoint)| Arc::new(Member { world: self.world.clone(), wire: self.wire, member, endpoint }) as Arc<dyn Transport>;
        endpoints.into_iter().enumerate().map(member).collect()
    }

    /// A client of its own on this link, with a deadline for calls that have none.
    #[must_use]
    pub fn client(&self, deadline: Duration) -> Client {
        Client::over(self.transports(), deadline)
    }

    /// Nothing passes in this direction any more. What was under way is held up, and connections break if it lasts.
    pub fn cut(&self, direction: Direction) {
        self.world.core().cut(self.wire, direction);
    }

    /// All passes again, and what was held up goes on.
    pub fn heal(&self) {
        self.world.core().heal(self.wire);
    }

    /// The answer to the next request that a member carries out is lost.
    pub fn lose_next_answer(&self) {
        self.world.core().wires[self.wire].loses_next_answer = true;
    }

    /// Each message takes so much longer from now on.
    pub fn delay(&self, delay: Duration) {
        self.world.core().wires[self.wire].delay = delay;
    }
}

/// One member over one link.
struct Member {
    world: Arc<World>,
    wire: usize,
    member: usize,
    endpoint: String,
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.endpoint)
    }
}

impl Member {
    /// Makes a call when it is polled first. It waits for ever if the answer is lost.
    async fn call<T, F>(&self, kind: Kind, run: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&mut Core, &str) -> Result<T, Error> + Send + 'static,
    {
        let answer = self.world.core().send(self.wire, self.member, kind, run);
        match answer.await {
            Ok(answer) => answer,
            Err(_) => pending().await,
        }
    }

    fn ask<T, F>(&self, kind: Kind, run: F) -> BoxFuture<'_, Result<T, Error>>
    where
        T: Send + 'static,
        F: FnOnce(&mut Core) -> Result<T, Refusal> + Send + 'static,
    {
        let run = move |core: &mut Core| if kind == Kind::Write && core.is_overloaded { Err(Refusal::TooManyRequests) } else { run(core) };
        self.call(kind, move |core, endpoint| run(core).map_err(|refusal| refusal.error(endpoint))).boxed()
    }
}

impl Transport for Member {
    fn endpoint(&self) -> &str {
        &self.endpoint
    }

    fn range(&self, request: RangeRequest) -> BoxFuture<'_, Result<RangeReply, Error>> {
        self.ask(Kind::Read, move |core| core.store.range(&request))
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnReply, Error>> {
        let writes = txn.then.iter().chain(&txn.otherwise).any(evenkeel_store::Op::writes);
        self.ask(if writes { Kind::Write } else { Kind::Read }, move |core| core.change(|store| store.txn(txn)))
    }

    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> BoxFuture<'_, Result<Revision, Error>> {
        self.ask(Kind::Write, move |core| core.change(|store| store.put(key, value)))
    }

    fn grant(&self, seconds: i64) -> BoxFuture<'_, Result<Granted, Error>> {
        self.ask(Kind::Write, move |core| core.grant(seconds).map(|(lease, ttl)| Granted { lease, ttl }))
    }

    fn revoke(&self, lease: i64) -> BoxFuture<'_, Result<(), Error>> {
        self.ask(Kind::Write, move |core| core.revoke(lease))
    }

    fn time_to_live(&self, lease: i64) -> BoxFuture<'_, Result<Option<Duration>, Error>> {
        self.ask(Kind::Read, move |core| {
            let now = core.now();
            Ok(core.store.time_to_live(lease, now))
        })
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), Error>> {
        self.ask(Kind::Write, move |core| core.compact(revision))
    }

    fn status(&self) -> BoxFuture<'_, Result<MemberStatus, Error>> {
        let member = self.member;
        self.call(Kind::Alone, move |core, endpoint| {
            let version = match core.settings.version {
                Version::V3_4 => "3.4.0",
                Version::V3_5 => "3.5.0",
            };
            let leads = core.cluster.leader() == Some(member);
            Ok(MemberStatus { endpoint: endpoint.to_owned(), version: version.to_owned(), db_size: 0, leads })
        })
        .boxed()
    }

    fn watch(&self, range: KeyRange, start: Revision) -> BoxFuture<'_, Result<Box<dyn Watch>, Error>> {
        async move {
            let (wire, member) = (self.wire, self.member);
            let opened = self.call(Kind::Alone, move |core, endpoint| core.open_watch(wire, member, range, start, endpoint)).await?;
            let watch = OpenWatch {
                world: self.world.clone(),
                wire,
                endpoint: self.endpoint.clone(),
                id: opened.id,
                created_at: opened.created_at,
                messages: opened.messages,
                unread: opened.unread,
            };
            Ok(Box::new(watch) as Box<dyn Watch>)
        }
        .boxed()
    }

    fn keep_alive(&self, lease: i64) -> BoxFuture<'_, Result<Box<dyn KeepAlive>, Error>> {
        async move {
            let member = Self { world: self.world.clone(), wire: self.wire, member: self.member, endpoint: self.endpoint.clone() };
            member.extend(lease).await?;
            let broken = self.world.core().wires[self.wire].broken[self.member];
            Ok(Box::new(OpenKeepAlive { member, lease, broken }) as Box<dyn KeepAlive>)
        }
        .boxed()
    }

    fn forget(&self) {
        self.world.core().wires[self.wire].forget(self.member);
    }
}

impl Member {
    async fn extend(&self, lease: i64) -> Result<(), Error> {
        let extend = move |core: &mut Core| {
            let now = core.now();
            match core.store.renew(lease, now) {
                Renewal::Extended => Ok(()),
                Renewal::Expired | Renewal::NotFound => Err(Refusal::LeaseNotFound),
            }
        };
        self.ask(Kind::Renew(lease), extend).await
    }
}

/// The reader's end of a watch.
struct OpenWatch {
    world: Arc<World>,
    wire: usize,
    endpoint: String,
    id: u64,
    created_at: Revision,
    messages: mpsc::UnboundedReceiver<Result<WatchMessage, Error>>,
    unread: Arc<AtomicUsize>,
}

impl Watch for OpenWatch {
    fn created_at(&self) -> Revision {
        self.created_at
    }

    fn next(&mut self) -> BoxFuture<'_, Result<WatchMessage, Error>> {
        async {
            match self.messages.recv().await {
                Some(message) => {
                    self.unread.fetch_sub(usize::from(message.is_ok()), Relaxed);
                    message
                }
                None => Err(ended(&self.endpoint)),
            }
        }
        .boxed()
    }

    fn ask(&mut self) -> BoxFuture<'_, Result<(), Error>> {
        async {
            let mut core = self.world.core();
            let delay = core.latency(self.wire);
            core.after(delay, Event::Asked(self.id));
            Ok(())
        }
        .boxed()
    }
}

/// A stream that keeps a lease alive.
struct OpenKeepAlive {
    member: Member,
    lease: i64,
    broken: u64,
}

impl KeepAlive for OpenKeepAlive {
    fn extend(&mut self) -> BoxFuture<'_, Result<(), Error>> {
        async {
            let broken = self.member.world.core().wires[self.member.wire].broken[self.member.member];
            if broken == self.broken { self.member.extend(self.lease).await } else { Err(ended(&self.member.endpoint)) }
        }
        .boxed()
    }
}

fn ended(endpoint: &str) -> Error {
    Error::Unavailable { endpoint: endpoint.to_owned(), reason: "it has ended the stream".to_owned(), sent: true, source: None }
}

//! A key that is bound to a lease and is created once: a worker's session, a master's candidacy.
//!
//! In the wheel it is the ground under both ends: the key's create revision is the session, or the leader's fence. Here it is created,
//! kept alive, proved and given up. What its loss means is for its owner to decide.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use evenkeel_model::Revision;
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, warn};

use crate::{
    client::Client,
    error::Error,
    streams::LeaseStream,
    task::of_this_process,
    transport::Granted,
    types::{Compare, Kv, Op, Txn},
};

/// The pause before etcd is asked again after a failure.
const PAUSE: Duration = Duration::from_millis(200);

/// What is to be created.
#[derive(Clone, Debug)]
pub struct NewLeasedKey {
    /// The key's name.
    pub key: KeyName,
    /// Its first value.
    pub value: Vec<u8>,
    /// How long the key outlives its holder. etcd counts whole seconds, and takes no less than 2 s with its default settings.
    pub ttl: Duration,
    /// The create revision of a key of this name that is to be deleted first. The caller answers for the right to do so.
    pub replaces: Option<Revision>,
}

/// How the key is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyName {
    /// By itself: whoever is there first holds it.
    Exact(Vec<u8>),
    /// By this prefix and the lease's id in hexadecimal: everyone gets one, in the order of their create revisions.
    UnderPrefix(Vec<u8>),
}

/// Why a leased key was not created. Nothing is left behind but, if etcd could not be asked to take it back, a lease that expires.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Another holds the key.
    #[error("the key {} is held by another (create revision {})", String::from_utf8_lossy(&.kv.key), .kv.created)]
    Held {
        /// The key as it stands.
        kv: Kv,
    },
    /// etcd could not do it in time.
    #[error(transparent)]
    Store(#[from] Error),
}

/// Whether the key is still ours, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// Nothing speaks against it. etcd may have been out of reach for a while; only [`LeasedKey::prove`] makes sure.
    Alive,
    /// It is not, for certain, and never will be again.
    Lost {
        /// How it went.
        reason: LostReason,
    },
}

/// How a leased key was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostReason {
    /// The lease has expired or was revoked, and the key is gone with it.
    LeaseGone,
    /// The key was deleted, or deleted and created again by another.
    KeyGone,
}

impl LostReason {
    /// For people.
    fn as_str(self) -> &'static str {
        match self {
            Self::LeaseGone => "its lease has expired or was revoked",
            Self::KeyGone => "somebody has deleted it",
        }
    }
}

/// What became of the holder of a leased key that was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Its key went, or changed hands.
    Gone,
    /// It lives: it extends its lease, or keeps its key without one.
    Lives,
}

/// So many of its leases may pass before a holder that neither extends nor loses its key is taken to live.
const LEASES: u32 = 5;
/// What etcd rounds a lease's remaining time down by, at the most.
const ROUNDED: Duration = Duration::from_secs(1);
/// Between two looks at a holder.
const LOOK: Duration = Duration::from_millis(100);

impl Holder {
    /// Waits until it is known whether the holder of a key lives. `ttl` is how long a lease usually is; a longer one is waited for as well. One
    /// that has died loses its key with its lease. A lease that was extended once proves nothing, since etcd does so for all of them when it
    /// starts or changes its leader.
    pub async fn wait_for(client: &Client, held: &Kv, ttl: Duration) -> Self {
        let mut until = Instant::now() + ttl * LEASES;
        let (mut first_look, mut extended) = (None, 0);
        while held.lease != 0 && Instant::now() < until {
            match client.get(&held.key).await {
                Ok(read) if read.kv.as_ref().is_none_or(|kv| kv.created != held.created) => return Self::Gone,
                Ok(_) => {}
                Err(error) => {
                    debug!(%error, "the holder of a key cannot be looked up");
                    until = Instant::now() + ttl * LEASES;
                }
            }
            if let Ok(Some(left)) = client.remaining(held.lease).await {
                let now = Instant::now();
                until = until.max(now + left + ttl);
                let (seen, at) = *first_look.get_or_insert((left, now));
                // etcd tells whole seconds, rounded down: so much may be left of what was seen then.
                let unextended = (seen + ROUNDED).saturating_sub(now - at);
                if left > unextended && !left.is_zero() {
                    extended += 1;
                    first_look = Some((left, now));
                }
            }
            if extended >= 2 {
                return Self::Lives;
            }
            sleep(LOOK).await;
        }
        Self::Lives
    }
}

/// A key of ours with its lease, which a task keeps alive until this is dropped. Dropping it leaves the key to expire;
/// [`LeasedKey::end`] deletes it at once.
#[derive(Debug)]
pub struct LeasedKey {
    held: Arc<Held>,
    keeper: AbortHandle,
}

#[derive(Debug)]
struct Held {
    client: Client,
    key: Vec<u8>,
    created: Revision,
    lease: i64,
    ttl: Duration,
    confirmed: Mutex<Instant>,
    state: watch::Sender<LeaseState>,
}

impl LeasedKey {
    /// Creates the key, and trusts no silence: where an answer is lost, etcd is asked until it is known whether the key is ours.
    ///
    /// If it replaces an older key, that one is deleted in a transaction of its own, since a key that is overwritten keeps its create
    /// revision.
    ///
    /// # Errors
    /// [`CreateError::Held`] if the key is held by another; [`CreateError::Store`] if etcd could not do it before the deadline, which
    /// is for all of it together.
    pub async fn create(client: &Client, new: NewLeasedKey, deadline: Duration) -> Result<Self, CreateError> {
        let end = Instant::now() + deadline;
        if let (KeyName::Exact(key), Some(old)) = (&new.key, new.replaces) {
            delete_old(client, key, old, end).await?;
        }
        let mut asked = Instant::now();
        let grant = || {
            asked = Instant::now();
            client.grant(new.ttl, client.deadline())
        };
        let Granted { lease, ttl } = until(end, grant).await?;
        let key = match new.key {
            KeyName::Exact(key) => key,
            KeyName::UnderPrefix(mut prefix) => {
                prefix.extend(format!("{lease:x}").bytes());
                prefix
            }
        };
        match claim(client, &key, &new.value, lease, end).await {
            Ok(created) => {
                let (confirmed, state) = (Mutex::new(asked), watch::Sender::new(LeaseState::Alive));
                Ok(Self::keep(Held { client: client.clone(), key, created, lease, ttl, confirmed, state }))
            }
            Err(error) => {
                if let Err(error) = client.revoke(lease, client.deadline()).await {
                    debug!(lease, %error, "a lease that is not needed could not be revoked: it will expire");
                }
                Err(error)
            }
        }
    }

    fn keep(held: Held) -> Self {
        let held = Arc::new(held);
        let keeper = tokio::spawn(of_this_process(keep_alive(held.clone()))).abort_handle();
        Self { held, keeper }
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.held.key
    }

    /// The key's create revision: the session, or the fence.
    #[must_use]
    pub fn created(&self) -> Revision {
        self.held.created
    }

    /// The lease's id.
    #[must_use]
    pub fn lease(&self) -> i64 {
        self.held.lease
    }

    /// The time to live that etcd has granted.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.held.ttl
    }

    /// When the last request was sent that etcd has answered with a time to live: an extension of the lease, or its grant. It never goes
    /// back. The lease lasts for [`LeasedKey::ttl`] from then at the least, as clocks run equally fast.
    #[must_use]
    pub fn confirmed(&self) -> Instant {
        *self.held.confirmed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells when the key is lost.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<LeaseState> {
        self.held.state.subscribe()
    }

    /// The condition that the key is still ours, for transactions that must fail when it is not.
    #[must_use]
    pub fn compare(&self) -> Compare {
        Compare::CreateRevision { key: self.held.key.clone(), equals: self.held.created }
    }

    /// Whether the key stood, as ours, at a time after this was called: see [`Client::stands`]. A "no" is final.
    ///
    /// # Errors
    /// Those of a read. They say nothing about the key.
    pub async fn prove(&self, deadline: Duration) -> Result<bool, Error> {
        let held = &self.held;
        let stands = held.client.stands(&held.key, held.created, held.lease, deadline).await?;
        if !stands {
            held.lost(LostReason::KeyGone);
        }
        Ok(stands)
    }

    /// Gives the key a new value and returns the revision of that; none: the key is not ours any more, and nothing was written.
    ///
    /// # Errors
    /// Those of a transaction. It may be repeated as it is, whatever became of it: nobody else writes the key.
    pub async fn update(&self, value: Vec<u8>, deadline: Duration) -> Result<Option<Revision>, Error> {
        let held = &self.held;
        let put = Op::Put { key: held.key.clone(), value, lease: held.lease };
        let reply = held.client.txn(Txn { compares: vec![self.compare()], then: vec![put], otherwise: vec![] }, deadline).await?;
        if !reply.succeeded {
            held.lost(LostReason::KeyGone);
        }
        Ok(reply.succeeded.then_some(reply.revision))
    }

    /// Ends it at once: the lease is revoked, and the key goes with it, in one step.
    ///
    /// # Errors
    /// Those of the revocation. The key then stays until it expires: nothing keeps it alive any more.
    pub async fn end(self, deadline: Duration) -> Result<(), Error> {
        self.keeper.abort();
        self.held.client.revoke(self.held.lease, deadline).await
    }
}

impl Drop for LeasedKey {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Held {
    fn lost(&self, reason: LostReason) {
        self.state.send_if_modified(|state| {
            let first = *state == LeaseState::Alive;
            if first {
                warn!(key = %String::from_utf8_lossy(&self.key), why = reason.as_str(), "a leased key is lost");
                *state = LeaseState::Lost { reason };
            }
            first
        });
    }

    /// etcd has answered the extension that was sent at this time.
    fn extended(&self, sent: Instant) {
        let mut confirmed = self.confirmed.lock().unwrap_or_else(PoisonError::into_inner);
        *confirmed = sent.max(*confirmed);
    }

    fn is_lost(&self) -> bool {
        *self.state.borrow() != LeaseState::Alive
    }

    /// How often the lease is extended: twice in vain are survived.
    fn period(&self) -> Duration {
        self.ttl / 3
    }

    /// How long an answer may take, so that another member can be tried before the lease expires.
    fn answer(&self) -> Duration {
        self.client.deadline().min(self.ttl / 4)
    }
}

/// Deletes the key if it still is the one that is to be replaced.
async fn delete_old(client: &Client, key: &[u8], old: Revision, end: Instant) -> Result<(), CreateError> {
    let txn = Txn {
        compares: vec![Compare::CreateRevision { key: key.to_vec(), equals: old }],
        then: vec![Op::delete(key)],
        otherwise: vec![Op::get(key)],
    };
    let mut reply = until(end, || client.txn(txn.clone(), client.deadline())).await?;
    match reply.reads.pop().and_then(|mut kvs| kvs.pop()) {
        Some(kv) => Err(CreateError::Held { kv }),
        None => Ok(()),
    }
}

/// Puts the key if it does not exist, and finds out whether it is ours. The transaction can be repeated: the second time it is refused
/// by the key of the first, which bears our lease. If all answers are lost the lease is revoked, and a request that comes late fails.
async fn claim(client: &Client, key: &[u8], value: &[u8], lease: i64, end: Instant) -> Result<Revision, CreateError> {
    let txn = Txn {
        compares: vec![Compare::absent(key)],
        then: vec![Op::Put { key: key.to_vec(), value: value.to_vec(), lease }],
        otherwise: vec![Op::get(key)],
    };
    let mut reply = until(end, || client.txn(txn.clone(), client.deadline())).await?;
    match reply.reads.pop().and_then(|mut kvs| kvs.pop()) {
        Some(kv) if kv.lease == lease => Ok(kv.created),
        Some(kv) => Err(CreateError::Held { kv }),
        None => Ok(reply.revision),
    }
}

/// Repeats a call, whose repetition must be harmless, until it has an answer or the time is up.
async fn until<T, Fut: Future<Output = Result<T, Error>>>(end: Instant, mut call: impl FnMut() -> Fut) -> Result<T, Error> {
    loop {
        match call().await {
            Err(error) if (error.blames_member() || matches!(error, Error::Overloaded { .. })) && Instant::now() + PAUSE < end => {
                debug!(%error, "asking etcd again");
                sleep(PAUSE).await;
            }
            done => return done,
        }
    }
}

/// Where the keeping alive of a lease stands.
enum Keeping {
    /// No stream is open. Opening one extends the lease.
    Opening,
    /// The lease was extended; the next time is due at `due`.
    Resting { stream: Box<LeaseStream>, due: Instant },
    /// etcd has said that there is no such lease. A member that has just become leader can be wrong about it, so the key decides.
    Doubting,
    /// It is over.
    Lost,
}

/// Keeps the lease alive until it is known to be gone. An outage of etcd ends nothing: its leases are extended when it comes back.
async fn keep_alive(held: Arc<Held>) {
    let mut at = Keeping::Opening;
    while !matches!(at, Keeping::Lost) && !held.is_lost() {
        at = step(&held, at).await;
    }
}

async fn step(held: &Held, at: Keeping) -> Keeping {
    match at {
        Keeping::Opening => {
            let sent = Instant::now();
            match LeaseStream::open(&held.client, held.lease, held.answer()).await {
                Ok(stream) => {
                    held.extended(sent);
                    Keeping::Resting { stream: Box::new(stream), due: sent + held.period() }
                }
                Err(error) => failed(held, &error).await,
            }
        }
        Keeping::Resting { mut stream, due } => {
            sleep_until(due).await;
            // The stream stays with its member; where other calls have left that one, it is not worth waiting for.
            if stream.member() != held.client.current() {
                return Keeping::Opening;
            }
            let sent = Instant::now();
            match stream.extend(held.answer()).await {
                Ok(()) => {
                    held.extended(sent);
                    Keeping::Resting { stream, due: sent + held.period() }
                }
                Err(error) => {
                    held.client.left_because(stream.member(), &error);
                    failed(held, &error).await
                }
            }
        }
        Keeping::Doubting => match held.client.get(&held.key).await {
            Ok(read) if read.kv.as_ref().is_some_and(|kv| kv.created == held.created && kv.lease == held.lease) => {
                sleep(PAUSE).await;
                Keeping::Opening
            }
            Ok(_) => {
                held.lost(LostReason::LeaseGone);
                Keeping::Lost
            }
            Err(error) => {
                debug!(lease = held.lease, %error, "it is not known whether the lease is gone");
                sleep(PAUSE).await;
                Keeping::Doubting
            }
        },
        Keeping::Lost => Keeping::Lost,
    }
}

async fn failed(held: &Held, error: &Error) -> Keeping {
    if matches!(error, Error::LeaseNotFound) {
        return Keeping::Doubting;
    }
    debug!(lease = held.lease, %error, "the lease could not be extended, trying again");
    sleep(PAUSE).await;
    Keeping::Opening
}

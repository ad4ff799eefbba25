//! Candidacy: a key of this master's own under `/election/`, bound to a lease. The one that was created first leads. Becoming the leader is a
//! transaction that is guarded by the key; nothing is decided here about what a leader does.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Weak},
    time::Duration,
};

use evenkeel_model::{MasterId, MasterRecord, Revision};
use evenkeel_store::{
    Client, Error, Holder, KeyName, KeyRange, Kv, LeaseState, LeasedKey, LostReason, NewLeasedKey, Update,
    codec::{self, Meaning},
    keys::Keys,
    mirror,
    task::of_this_process,
};
use futures::{FutureExt, future::BoxFuture};
use tokio::{sync::watch, time::timeout};

use crate::{
    leader_lease::{Confirmed, LeaderLease},
    state::{Leadership, Shared},
    time::Clock,
};

/// How long one attempt to campaign may take, and the pause after one that failed.
const ATTEMPT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(500);
/// How long a key that is being created when the candidacy is given up is waited for. It takes milliseconds; an etcd that does not answer for
/// so long does not revoke it either.
const LAST_ATTEMPT: Duration = Duration::from_secs(1);

/// This master's candidacy.
pub(crate) struct Candidacy {
    client: Client,
    election: String,
    record: MasterRecord,
    lease: Duration,
    clock: Arc<dyn Clock>,
    /// Is told of the key that is held.
    shown: Arc<LeaderLease>,
    /// True when it is given up for good.
    resigns: watch::Sender<bool>,
    state: State,
}

enum State {
    /// A key is being created, again and again until etcd grants it; none: it was given up in between.
    Campaigning(BoxFuture<'static, Result<Option<LeasedKey>, IdTaken>>),
    /// The key stands.
    Candidate(Arc<LeasedKey>),
    /// The guarded transaction is under way.
    Taking(Arc<LeasedKey>, BoxFuture<'static, Option<Revision>>),
}

/// Another master that lives has this one's id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the id {id} is taken by a live master at {address}; stop that one, or give this one another --id \
     (one that was killed a moment ago loses its id within {} s)", within.as_secs()
)]
pub struct IdTaken {
    /// The id.
    pub id: MasterId,
    /// Where the other is reached.
    pub address: String,
    /// How long an id outlives its master.
    pub within: Duration,
}

/// What has happened to the candidacy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CandidacyEvent {
    /// A new candidacy stands.
    Candidate,
    /// The guarded transaction is written.
    Taken { revision: Revision },
    /// It is gone.
    Lost,
    /// It cannot be: two masters of one id look like one.
    IdTaken(IdTaken),
}

impl Candidacy {
    pub(crate) fn new(
        client: Client,
        keys: &Keys,
        record: MasterRecord,
        lease: Duration,
        clock: Arc<dyn Clock>,
        shown: Arc<LeaderLease>,
    ) -> Self {
        let (election, resigns) = (keys.election(), watch::Sender::new(false));
        let state = State::Campaigning(std::future::pending().boxed());
        let mut candidacy = Self { client, election, record, lease, clock, shown, resigns, state };
        candidacy.campaign(None);
        candidacy
    }

    /// Campaigns anew, after an older key that may still be there has been given up.
    fn campaign(&mut self, older: Option<LeasedKey>) {
        let campaign = Campaign {
            client: self.client.clone(),
            election: self.election.clone(),
            record: self.record.clone(),
            lease: self.lease,
            resigns: self.resigns.subscribe(),
        };
        self.state = State::Campaigning(campaign.run(older).boxed());
    }

    /// The create revision of the key, if it stands.
    pub(super) fn fence(&self) -> Option<Revision> {
        self.candidate().map(LeasedKey::created)
    }

    pub(super) fn candidate(&self) -> Option<&LeasedKey> {
        match &self.state {
            State::Campaigning(_) => None,
            State::Candidate(key) | State::Taking(key, _) => Some(key),
        }
    }

    /// Waits for the next thing that happens to the candidacy.
    pub(super) async fn event(&mut self) -> CandidacyEvent {
        match &mut self.state {
            State::Campaigning(campaign) => match campaign.await {
                Ok(Some(key)) => {
                    let key = Arc::new(key);
                    let held = Arc::downgrade(&key);
                    self.shown.hold(move || held.upgrade().map(|key| Confirmed { sent: key.confirmed(), ttl: key.ttl() }));
                    let reads = Reads { client: self.client.clone(), key: Arc::downgrade(&key), shown: Arc::clone(&self.shown) };
                    tokio::spawn(of_this_process(reads.watch(key.ttl() / 3)));
                    self.state = State::Candidate(key);
                    CandidacyEvent::Candidate
                }
                Ok(None) => {
                    self.state = State::Campaigning(std::future::pending().boxed());
                    std::future::pending().await
                }
                Err(taken) => {
                    self.state = State::Campaigning(std::future::pending().boxed());
                    CandidacyEvent::IdTaken(taken)
                }
            },
            State::Candidate(key) => {
                lost(key).await;
                CandidacyEvent::Lost
            }
            State::Taking(key, taking) => {
                let taken = tokio::select! {
                    biased;
                    taken = taking => taken,
                    () = lost(key) => None,
                };
                self.state = State::Candidate(key.clone());
                taken.map_or(CandidacyEvent::Lost, |revision| CandidacyEvent::Taken { revision })
            }
        }
    }

    /// Becomes the leader, since this key is the first one.
    pub(super) fn take(&mut self) {
        if let State::Candidate(key) = &self.state {
            self.record.leads_since = self.clock.unix_ns();
            let value = codec::json(&self.record);
            let taking = promote(key.clone(), value, self.client.deadline()).boxed();
            self.state = State::Taking(key.clone(), taking);
        }
    }

    /// The key is gone, or is given up: campaign anew.
    pub(super) fn lost(&mut self) {
        self.record.leads_since = 0;
        let key = self.take_key();
        let is_gone = |key: &LeasedKey| matches!(*key.state().borrow(), LeaseState::Lost { reason: LostReason::LeaseGone });
        self.campaign(key.filter(|key| !is_gone(key)));
    }

    /// Deletes the key, so that the next master leads at once: whatever this one is, and also if the key is only being created.
    pub(super) async fn resign(mut self) {
        self.resigns.send_replace(true);
        let key = match self.take_key() {
            Some(key) => Some(key),
            None => match std::mem::replace(&mut self.state, State::Campaigning(std::future::pending().boxed())) {
                State::Campaigning(campaign) => timeout(LAST_ATTEMPT, campaign).await.ok().and_then(Result::ok).flatten(),
                State::Candidate(_) | State::Taking(..) => None,
            },
        };
        if let Some(key) = key {
            give_up(&self.client, key).await;
        }
    }

    /// The key, if it is held; nobody else has it then.
    fn take_key(&mut self) -> Option<LeasedKey> {
        if matches!(self.state, State::Campaigning(_)) {
            return None;
        }
        self.shown.give_up();
        match std::mem::replace(&mut self.state, State::Campaigning(std::future::pending().boxed())) {
            State::Campaigning(_) => None,
            State::Candidate(key) => Arc::into_inner(key),
            State::Taking(key, taking) => {
                // It has the key as well. What it has sent fails without the key.
                drop(taking);
                Arc::into_inner(key)
            }
        }
    }
}

/// Asks, as long as a candidacy stands, whether etcd lets itself be read: where its authentication was switched on it extends leases, and
/// tells what changes to those who watch already, but takes no write and answers no read.
struct Reads {
    client: Client,
    key: Weak<LeasedKey>,
    shown: Arc<LeaderLease>,
}

impl Reads {
    async fn watch(self, period: Duration) {
        loop {
            tokio::time::sleep(period).await;
            // The key itself is not kept: its candidacy may give it up meanwhile.
            let Some(key) = self.key.upgrade().map(|key| key.key().to_vec()) else { return };
            match self.client.get(&key).await {
                Ok(_) => {
                    if self.shown.refuse(None) {
                        tracing::info!("etcd lets itself be read again");
                    }
                }
                // An outage says nothing here: the lease ends of it.
                Err(error) if error.may_pass() => {}
                Err(error) => {
                    if self.shown.refuse(Some(error.to_string())) {
                        tracing::error!(%error, "etcd refuses to be read: this master answers as the leader no longer");
                    }
                }
            }
        }
    }
}

async fn lost(key: &LeasedKey) {
    let mut state = key.state();
    // The sender lives in the key, so the wait ends only with the loss.
    let _ = state.wait_for(|s| matches!(s, LeaseState::Lost { .. })).await;
}

/// What a campaign is made with.
struct Campaign {
    client: Client,
    election: String,
    record: MasterRecord,
    lease: Duration,
    resigns: watch::Receiver<bool>,
}

impl Campaign {
    /// Creates a key, once no other master of this id has one; none: it is given up. That ends a wait, and never an attempt, which may have
    /// created a key already.
    async fn run(mut self, older: Option<LeasedKey>) -> Result<Option<LeasedKey>, IdTaken> {
        if let Some(older) = older {
            give_up(&self.client, older).await;
        }
        let resigns = self.resigns.clone();
        while !*resigns.borrow() {
            let tried = campaign_once(&self.client, &self.election, &self.record, self.lease).await;
            let wait = async {
                match tried {
                    Ok(Ok(key)) => return Ok(Some(key)),
                    Ok(Err(namesake)) => wait_for_end(&self.client, &namesake, &self.record, self.lease).await?,
                    Err(why) => {
                        tracing::warn!(error = why, "cannot campaign for leadership yet");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                Ok(None)
            };
            tokio::select! {
                biased;
                waited = wait => if let Some(key) = waited? { return Ok(Some(key)) },
                // Its sender may have gone with the candidacy; then this is not asked any more.
                _ = self.resigns.wait_for(|resigns| *resigns) => {}
            }
        }
        Ok(None)
    }
}

/// Tells who leads, as the election says, for a master that does not stand in it any more and still has callers.
pub(crate) async fn follow_election(client: &Client, prefix: &str, shared: &Shared) -> Infallible {
    let keys = Keys::new(prefix);
    let mut updates = mirror(client, KeyRange::prefix(keys.election()));
    let mut leaders: BTreeMap<String, (Revision, MasterRecord)> = BTreeMap::new();
    while let Some(update) = updates.recv().await {
        let meanings: Vec<Meaning> = match update {
            Update::Reset { kvs, .. } => {
                leaders.clear();
                kvs.iter().map(|kv| codec::meaning(&keys, kv)).collect()
            }
            Update::Changes { changes, .. } => changes.iter().map(|change| codec::meaning_of_change(&keys, change)).collect(),
            Update::Lost { .. } | Update::Recovered => continue,
        };
        for meaning in meanings {
            match meaning {
                Meaning::Candidate { lease, value: Some(value) } => drop(leaders.insert(lease, (value.revision, value.value))),
                Meaning::Candidate { lease, value: None } => drop(leaders.remove(&lease)),
                _ => {}
            }
        }
        let first = leaders.values().min_by_key(|(created, _)| *created).map(|(_, record)| record);
        shared.set_leadership(match first.filter(|record| record.leads_since != 0) {
            Some(MasterRecord { id, address, .. }) => Leadership::Other { id: id.to_string(), address: address.clone() },
            None => Leadership::Nobody,
        });
    }
    // The mirror ends only with its receiver.
    std::future::pending().await
}

/// The key, or the one of another master of the same id.
async fn campaign_once(client: &Client, election: &str, record: &MasterRecord, lease: Duration) -> Result<Result<LeasedKey, Kv>, String> {
    let failed = |error: Error| error.to_string();
    if let Some(namesake) = namesakes(client, election, &record.id).await.map_err(failed)?.into_iter().next() {
        return Ok(Err(namesake));
    }
    let new =
        NewLeasedKey { key: KeyName::UnderPrefix(election.as_bytes().to_vec()), value: codec::json(record), ttl: lease, replaces: None };
    let key = LeasedKey::create(client, new, ATTEMPT).await.map_err(|e| e.to_string())?;
    // Of two that began at the same time, the one whose key came first stays; both see that now.
    let namesakes = namesakes(client, election, &record.id).await;
    let older = namesakes.map(|namesakes| namesakes.into_iter().find(|kv| kv.created < key.created()));
    match older {
        Ok(None) => Ok(Ok(key)),
        Ok(Some(older)) => {
            give_up(client, key).await;
            Ok(Err(older))
        }
        Err(error) => {
            give_up(client, key).await;
            Err(failed(error))
        }
    }
}

async fn give_up(client: &Client, key: LeasedKey) {
    if let Err(error) = key.end(client.deadline()).await {
        tracing::warn!(%error, "the candidacy could not be given up; it ends with its lease");
    }
}

/// The keys of candidates of this id, in the order in which they were created.
async fn namesakes(client: &Client, election: &str, id: &MasterId) -> Result<Vec<Kv>, Error> {
    let is_of = |kv: &Kv| serde_json::from_slice::<MasterRecord>(&kv.value).is_ok_and(|record| record.id == *id);
    let mut found: Vec<Kv> = client.list(&KeyRange::prefix(election)).await?.kvs.into_iter().filter(is_of).collect();
    found.sort_by_key(|kv| kv.created);
    Ok(found)
}

/// Waits for the end of a master of the same id, which may be this one's predecessor that was killed.
async fn wait_for_end(client: &Client, namesake: &Kv, record: &MasterRecord, lease: Duration) -> Result<(), IdTaken> {
    let address = serde_json::from_slice::<MasterRecord>(&namesake.value).map(|record| record.address).unwrap_or_default();
    tracing::warn!(id = %record.id, address, "the id is held by another master: waiting for its end");
    match Holder::wait_for(client, namesake, lease).await {
        Holder::Gone => Ok(()),
        Holder::Lives => Err(IdTaken { id: record.id.clone(), address, within: lease + Duration::from_secs(1) }),
    }
}

/// Writes that this master leads. Nobody else writes the key, so a lost answer is answered by writing again.
async fn promote(key: Arc<LeasedKey>, value: Vec<u8>, deadline: Duration) -> Option<Revision> {
    loop {
        match key.update(value.clone(), deadline).await {
            Ok(revision) => return revision,
            Err(error) => log_retry(&error),
        }
        tokio::time::sleep(PAUSE / 5).await;
    }
}

fn log_retry(error: &Error) {
    tracing::warn!(%error, "becoming the leader: asking etcd again");
}

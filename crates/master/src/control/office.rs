//! Candidacy: a key of this master's own under `/election/`, bound to a lease. The one that was created first leads. Taking office is a
//! transaction that is guarded by the key; nothing is decided here about what a leader does.

use std::{sync::Arc, time::Duration};

use evenkeel_model::{MasterRecord, Revision};
use evenkeel_store::{Client, Error, KeyName, LeaseState, LeasedKey, NewLeasedKey, codec, keys::Keys};
use futures::{FutureExt, future::BoxFuture};

use crate::time::Clock;

/// How long one attempt to campaign may take, and the pause after one that failed.
const ATTEMPT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(500);

/// This master's candidacy.
pub(crate) struct Office {
    client: Client,
    election: String,
    record: MasterRecord,
    lease: Duration,
    clock: Arc<dyn Clock>,
    state: State,
}

enum State {
    /// A key is being created, again and again until etcd grants it.
    Campaigning(BoxFuture<'static, LeasedKey>),
    /// The key stands.
    Candidate(Arc<LeasedKey>),
    /// The guarded transaction is under way.
    Taking(Arc<LeasedKey>, BoxFuture<'static, Option<Revision>>),
}

/// What has happened to the candidacy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OfficeEvent {
    /// A new candidacy stands.
    Candidate,
    /// The guarded transaction is written.
    Taken { revision: Revision },
    /// It is gone.
    Lost,
}

impl Office {
    pub(crate) fn new(client: Client, keys: &Keys, record: MasterRecord, lease: Duration, clock: Arc<dyn Clock>) -> Self {
        let election = keys.election();
        let state = State::Campaigning(campaign(client.clone(), election.clone(), record.clone(), lease).boxed());
        Self { client, election, record, lease, clock, state }
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
    pub(super) async fn event(&mut self) -> OfficeEvent {
        match &mut self.state {
            State::Campaigning(campaign) => {
                let key = campaign.await;
                self.state = State::Candidate(Arc::new(key));
                OfficeEvent::Candidate
            }
            State::Candidate(key) => {
                lost(key).await;
                OfficeEvent::Lost
            }
            State::Taking(key, taking) => {
                let taken = tokio::select! {
                    biased;
                    taken = taking => taken,
                    () = lost(key) => None,
                };
                self.state = State::Candidate(key.clone());
                taken.map_or(OfficeEvent::Lost, |revision| OfficeEvent::Taken { revision })
            }
        }
    }

    /// Takes office, since this key is the first one.
    pub(super) fn take(&mut self) {
        if let State::Candidate(key) = &self.state {
            self.record.leads_since = self.clock.unix_ns();
            let value = codec::json(&self.record);
            let taking = take_office(key.clone(), value, self.client.deadline()).boxed();
            self.state = State::Taking(key.clone(), taking);
        }
    }

    /// The key is gone, or is given up: campaign anew.
    pub(super) fn lost(&mut self) {
        self.record.leads_since = 0;
        let next = campaign(self.client.clone(), self.election.clone(), self.record.clone(), self.lease).boxed();
        self.state = State::Campaigning(next);
    }

    /// Deletes the key, so that the next master leads at once.
    pub(super) async fn resign(self) {
        let (State::Candidate(key) | State::Taking(key, _)) = self.state else { return };
        if let Some(key) = Arc::into_inner(key)
            && let Err(error) = key.end(self.client.deadline()).await
        {
            tracing::warn!(%error, "the candidacy could not be given up; it ends with its lease");
        }
    }
}

async fn lost(key: &LeasedKey) {
    let mut state = key.state();
    // The sender lives in the key, so the wait ends only with the loss.
    let _ = state.wait_for(|s| matches!(s, LeaseState::Lost { .. })).await;
}

async fn campaign(client: Client, election: String, record: MasterRecord, lease: Duration) -> LeasedKey {
    loop {
        let new = NewLeasedKey {
            key: KeyName::UnderPrefix(election.clone().into_bytes()),
            value: codec::json(&record),
            ttl: lease,
            replaces: None,
        };
        match LeasedKey::create(&client, new, ATTEMPT).await {
            Ok(key) => return key,
            Err(error) => tracing::warn!(%error, "cannot campaign for leadership yet"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Writes that this master leads. Nobody else writes the key, so a lost answer is answered by writing again.
async fn take_office(key: Arc<LeasedKey>, value: Vec<u8>, deadline: Duration) -> Option<Revision> {
    loop {
        match key.update(value.clone(), deadline).await {
            Ok(revision) => return revision,
            Err(error) => log_retry(&error),
        }
        tokio::time::sleep(PAUSE / 5).await;
    }
}

fn log_retry(error: &Error) {
    tracing::warn!(%error, "taking office: asking etcd again");
}

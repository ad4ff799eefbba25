//! The control loop of a master: the one writer of the state. It takes in the watch, the requests of the API and the outcomes of
//! commits; where this master leads it plans, checks the plan, and commits it. Everything of the wheel between store::watch and
//! store::commit is turned here; what is to be done is decided by the planner, not here.
//!
//! A term of leadership has three rooms: `commits` (what is on its way to etcd, and `echoes` of it), `subjects` (what is reserved, and who waits),
//! `history` (what people read of it). A verb of the API is a command in a file of its own: `resources`, `intents`, `task`.

pub(crate) mod candidacy;
mod commits;
mod echoes;
mod history;
pub(crate) mod intake;
mod intents;
mod judge;
pub(crate) mod request;
pub(crate) mod resources;
mod snowflake;
pub(crate) mod subjects;
pub(crate) mod task;
mod term;

use std::{sync::Arc, time::Duration};

use evenkeel_model::{Moment, Revision};
use evenkeel_store::{
    Client, Executor, Finished, Update,
    codec::{self, Meaning},
    keys::Keys,
    mirror,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use self::{
    candidacy::{Candidacy, CandidacyEvent, IdTaken},
    request::{Queue, Refusal, Request},
    term::Term,
};
use crate::{
    config::MasterConfig,
    state::{Leadership, Shared, State},
};

/// How many requests of operators may wait for the loop; more are refused. Nobody cordons thousands of workers at once.
pub(crate) const OPERATIONS: usize = 1024;
/// How many requests one turn takes on, so that commits are answered in between.
const REQUESTS_A_TURN: usize = 512;
/// A slow timer stands behind every wake-up.
const SLOW: Duration = Duration::from_secs(5);
/// How long a leader that ends waits for what it has sent.
const LAST_WRITES: Duration = Duration::from_secs(2);
/// The deadline of one request of the commit pipeline.
const COMMIT_DEADLINE: Duration = Duration::from_secs(2);

/// The loop's state.
pub(crate) struct Control {
    config: Arc<MasterConfig>,
    client: Client,
    keys: Keys,
    shared: Arc<Shared>,
    updates: mpsc::Receiver<Update>,
    queues: Queues,
    executor: Executor,
    finished: mpsc::UnboundedReceiver<Finished>,
    candidacy: Candidacy,
    role: Role,
    /// The revision up to which this mirror has brought everything; zero: it has brought nothing yet.
    revision: Revision,
    /// When the planner wants to be asked again.
    wake: Option<Moment>,
    /// Since when etcd cannot be followed.
    lost_since: Option<Moment>,
}

/// What is asked of the loop: operators do not wait behind callers.
pub(crate) struct Queues {
    pub(crate) operations: Queue,
    pub(crate) requests: Queue,
}

/// What this master is at the moment.
enum Role {
    /// It follows.
    Standby,
    /// It has won, and waits until the watch has come to the revision at which it became the leader.
    Promoting { until: Revision },
    /// It leads.
    Leading(Box<Term>),
}

/// What woke the loop.
enum Wake {
    Update(Option<Update>),
    Request(Request),
    Finished(Finished),
    Candidacy(CandidacyEvent),
    Timer,
    Stop,
}

impl Control {
    pub(crate) fn new(config: Arc<MasterConfig>, client: Client, shared: Arc<Shared>, queues: Queues, candidacy: Candidacy) -> Self {
        let keys = Keys::new(config.prefix.clone());
        let updates = mirror(&client, keys.everything());
        let (executor, finished) = Executor::new(client.clone(), COMMIT_DEADLINE);
        Self {
            config,
            client,
            keys,
            shared,
            updates,
            queues,
            executor,
            finished,
            candidacy,
            role: Role::Standby,
            revision: Revision::default(),
            wake: None,
            lost_since: None,
        }
    }

    /// Runs until it is told to stop; then hands leadership over.
    ///
    /// # Errors
    /// When another master that lives has this one's id.
    pub(crate) async fn run(mut self, mut stop: oneshot::Receiver<()>) -> Result<(), IdTaken> {
        loop {
            let wake = match self.next_wake(&mut stop).await {
                Wake::Stop => break,
                Wake::Candidacy(CandidacyEvent::IdTaken(taken)) => return Err(taken),
                wake => wake,
            };
            self.take_in(wake).await;
            self.turn();
            self.shared.turned();
        }
        self.hand_over().await;
        Ok(())
    }

    async fn next_wake(&mut self, stop: &mut oneshot::Receiver<()>) -> Wake {
        let timer = self.timer();
        // What operators ask waits for no backlog.
        let (takes_operations, takes_requests) = match &self.role {
            Role::Leading(term) => (true, term.takes_requests()),
            Role::Standby => (true, true),
            Role::Promoting { .. } => (false, false),
        };
        // What is done comes before what is asked: a flood of the one kind can not hold up the other for long.
        tokio::select! {
            biased;
            _ = stop => Wake::Stop,
            Some(finished) = self.finished.recv() => Wake::Finished(finished),
            update = self.updates.recv() => Wake::Update(update),
            event = self.candidacy.event() => Wake::Candidacy(event),
            Some(request) = self.queues.operations.recv(), if takes_operations => Wake::Request(request),
            Some(request) = self.queues.requests.recv(), if takes_requests => Wake::Request(request),
            () = tokio::time::sleep_until(timer) => Wake::Timer,
        }
    }

    fn timer(&self) -> Instant {
        let now = self.shared.now();
        let history = match &self.role {
            Role::Leading(term) => term.history_due(),
            Role::Standby | Role::Promoting { .. } => None,
        };
        let doubt = self.lost_since.map(|since| since.after(self.config.lease)).filter(|at| *at > now);
        let next = self.wake.into_iter().chain(history).chain(doubt).min();
        let due = next.map_or(SLOW, |next| next.0.saturating_sub(now.0));
        self.shared.clock().after(due.min(SLOW))
    }

    async fn take_in(&mut self, wake: Wake) {
        match wake {
            Wake::Update(Some(update)) => self.take_update(update),
            // The mirror ends only with its receiver; it is started again all the same.
            Wake::Update(None) => self.list_again(),
            Wake::Request(request) => self.take_requests(request),
            Wake::Stop => {}
            Wake::Timer => self.mark_due(),
            Wake::Finished(finished) => self.take_finished(finished),
            Wake::Candidacy(event) => self.take_candidacy(event),
        }
        // What has come in the meantime belongs to the same turn.
        while let Ok(finished) = self.finished.try_recv() {
            self.take_finished(finished);
        }
    }

    fn mark_due(&mut self) {
        if let Role::Leading(term) = &mut self.role {
            term.is_due = true;
        }
    }

    fn list_again(&mut self) {
        self.updates = mirror(&self.client, self.keys.everything());
        // Nothing has been taken in of it, and it may begin earlier than the one before has come: etcd can be put back.
        self.revision = Revision::default();
    }

    fn take_update(&mut self, update: Update) {
        match update {
            Update::Lost { .. } => {
                self.lost_since = Some(self.shared.now());
                self.shared.write().is_cut_off = true;
            }
            Update::Recovered => self.trust(),
            Update::Reset { kvs, revision, begun } => {
                self.take_list(&kvs, revision, begun);
                self.trust();
            }
            Update::Changes { changes, revision } => {
                let shared = self.shared.clone();
                let mut state = shared.write();
                let now = shared.now();
                for change in &changes {
                    if !matches!(&self.role, Role::Leading(term) if term.is_echo(change)) {
                        self.take_meaning(&mut state, codec::meaning_of_change(&self.keys, change), now);
                    }
                }
                if let Role::Leading(term) = &mut self.role {
                    term.followed(revision);
                }
                state.followed = revision;
                self.revision = revision;
                drop(state);
                self.reconsider();
            }
        }
    }

    /// Without etcd for as long as a candidacy lasts, nobody can say who leads, and what is known may be stale: callers are told so.
    fn doubt(&self) {
        if self.lost_since.is_some_and(|since| since.after(self.config.lease) <= self.shared.now()) {
            self.shared.set_leadership(Leadership::Nobody);
        }
    }

    /// etcd is followed again.
    fn trust(&mut self) {
        self.lost_since = None;
        self.shared.write().is_cut_off = false;
        if matches!(self.role, Role::Leading(_)) {
            self.shared.set_leadership(Leadership::Mine);
        }
        self.reconsider();
    }

    fn take_meaning(&mut self, state: &mut State, meaning: Meaning, now: Moment) {
        match (meaning, &mut self.role) {
            (Meaning::Foreign, _) => {}
            (Meaning::Candidate { lease, value }, _) => state.candidate(lease, value.map(|v| *v)),
            (Meaning::History { suffix, revision, entries }, _) => state.take_history(suffix.into(), revision, entries),
            (Meaning::Cluster(change), Role::Leading(term)) => term.take_change(state, change, now),
            (Meaning::Cluster(change), _) => state.take(change, now),
        }
    }

    /// A whole list has come: at the start, and when the watch was interrupted for so long that etcd has forgotten what came between. It replaces
    /// the state; what a leader has committed since is laid over it, and what it has decided stays reserved.
    fn take_list(&mut self, kvs: &[evenkeel_store::Kv], revision: Revision, begun: Instant) {
        let shared = self.shared.clone();
        let now = shared.now();
        if let Role::Leading(term) = &self.role
            && term.went_back(&shared.read(), revision, begun)
        {
            return self.step_down("etcd was restored from a backup");
        }
        let mut fresh = self.listed(kvs, revision, now);
        let mut state = shared.write();
        fresh.replace(&state);
        if let Role::Leading(term) = &mut self.role {
            term.complete(&mut fresh, revision, now);
        }
        *state = fresh;
        drop(state);
        tracing::debug!(revision = revision.0, keys = kvs.len(), "took in a whole list");
        self.revision = revision;
        self.reconsider();
    }

    fn listed(&self, kvs: &[evenkeel_store::Kv], revision: Revision, now: Moment) -> State {
        let mut fresh = State::default();
        (fresh.is_synced, fresh.followed) = (true, revision);
        let mut history = Vec::new();
        for kv in kvs {
            match codec::meaning(&self.keys, kv) {
                Meaning::Cluster(change) => fresh.cluster.apply(change, now),
                Meaning::Candidate { lease, value } => fresh.candidate(lease, value.map(|v| *v)),
                Meaning::History { suffix, revision, entries } => history.push((revision, suffix, entries)),
                Meaning::Foreign => {}
            }
        }
        history.sort_by_key(|(created, ..)| *created);
        history.into_iter().for_each(|(created, suffix, entries)| fresh.take_history(suffix.into(), created, entries));
        fresh
    }

    /// What has come may change who leads.
    fn reconsider(&mut self) {
        let shared = self.shared.clone();
        let state = shared.read();
        let mine = self.candidacy.fence();
        let is_followed = |mine: Revision| mine <= self.revision && !state.is_cut_off;
        let is_gone = mine.is_some_and(|mine| is_followed(mine) && !state.masters.contains_key(&mine));
        if is_gone {
            drop(state);
            // Somebody has deleted the key; its lease lives, and says nothing.
            return self.step_down("its key in etcd is gone");
        }
        if let Role::Leading(term) = &mut self.role {
            term.is_due = true;
            return;
        }
        let leader = state.masters.first_key_value().map(|(created, (_, record))| (*created, record.clone()));
        drop(state);
        match (&self.role, leader) {
            (Role::Promoting { until }, _) if self.revision >= *until => self.begin_term(),
            (Role::Standby, Some((created, _))) if Some(created) == mine => self.candidacy.take(),
            (Role::Standby, Some((_, record))) if record.leads_since != 0 => {
                shared.set_leadership(Leadership::Other { id: record.id.to_string(), address: record.address });
            }
            (Role::Standby, _) => shared.set_leadership(Leadership::Nobody),
            (Role::Promoting { .. } | Role::Leading(_), _) => {}
        }
    }

    fn take_candidacy(&mut self, event: CandidacyEvent) {
        match event {
            CandidacyEvent::Candidate => self.reconsider(),
            CandidacyEvent::Taken { revision } => {
                if matches!(self.role, Role::Standby) {
                    self.role = Role::Promoting { until: revision };
                }
                self.reconsider();
            }
            CandidacyEvent::Lost => self.step_down("the candidacy in etcd is lost"),
            CandidacyEvent::IdTaken(_) => {}
        }
    }

    fn begin_term(&mut self) {
        let Some(candidate) = self.candidacy.candidate() else { return self.step_down("the candidacy in etcd is lost") };
        let term = Term::begin(&self.config, &self.keys, &self.shared, candidate);
        tracing::info!(fence = candidate.created().0, revision = self.revision.0, "this master leads");
        self.role = Role::Leading(Box::new(term));
        self.shared.set_leadership(Leadership::Mine);
    }

    /// Leads no more: everything that was only decided is dropped, and the cluster is read anew.
    fn step_down(&mut self, why: &str) {
        match std::mem::replace(&mut self.role, Role::Standby) {
            Role::Leading(term) => {
                tracing::warn!(why, "this master steps down");
                term.abandon();
                let (executor, finished) = Executor::new(self.client.clone(), COMMIT_DEADLINE);
                (self.executor, self.finished) = (executor, finished);
                self.list_again();
            }
            Role::Promoting { .. } => tracing::info!(why, "this master does not become the leader"),
            Role::Standby => {}
        }
        let mut state = self.shared.write();
        (state.undone, state.brake, state.lags_since, state.answered) = (0, None, None, Revision::default());
        drop(state);
        self.wake = None;
        self.candidacy.lost();
        self.shared.set_leadership(Leadership::Nobody);
    }

    fn take_requests(&mut self, first: Request) {
        let Role::Leading(term) = &mut self.role else { return first.refuse(Refusal::NotLeader) };
        let shared = self.shared.clone();
        let mut state = shared.write();
        let now = shared.now();
        term.take_on(&mut state, first, now);
        for _ in 1..REQUESTS_A_TURN {
            let next = self.queues.operations.try_recv().or_else(|_| self.queues.requests.try_recv());
            let Ok(request) = next else { break };
            term.take_on(&mut state, request, now);
        }
    }

    fn take_finished(&mut self, finished: Finished) {
        let Role::Leading(term) = &mut self.role else { return };
        let shared = self.shared.clone();
        let mut state = shared.write();
        let fence_is_lost = term.finished(&mut state, finished, shared.now());
        drop(state);
        if fence_is_lost {
            self.step_down("its fence in etcd is gone");
        }
    }

    /// One turn of the wheel: plan, check, decide, and send off what there is to write.
    fn turn(&mut self) {
        self.doubt();
        let shared = self.shared.clone();
        let mut wants_list = false;
        if let Role::Leading(term) = &mut self.role {
            let mut state = shared.write();
            let now = shared.now();
            if term.is_due {
                self.wake = term.plan(&mut state, now);
            }
            term.take_on_freed(&mut state, now);
            term.write_history(&mut state, now);
            // A mirror that has brought nothing yet is still at its list, and one that etcd has lost takes care of itself.
            wants_list = self.revision != Revision::default() && !state.is_cut_off && term.wants_list(&mut state, now);
        }
        let state = shared.read();
        let (changes, last, tasks) = (state.next_change(), state.last_event(), state.task_changes);
        drop(state);
        shared.wake(changes, u64::try_from(last).unwrap_or(0), tasks);
        if let Role::Leading(term) = &mut self.role {
            term.send(&mut self.executor);
        }
        if wants_list {
            self.list_again();
        }
    }

    /// Ends what was only decided, waits for what is being written, and gives leadership up at once, so that another master need not wait for the
    /// lease.
    async fn hand_over(mut self) {
        // Whoever asks from now on is sent to the next leader, and so is who has asked and was not heard yet.
        self.shared.set_leadership(Leadership::Nobody);
        self.queues.operations.close();
        self.queues.requests.close();
        if let Role::Leading(mut term) = std::mem::replace(&mut self.role, Role::Standby) {
            tracing::info!("handing leadership over");
            let shared = self.shared.clone();
            term.withdraw(shared.now());
            // Whatever has happened is due now.
            term.write_history(&mut shared.write(), Moment(Duration::MAX));
            term.send(&mut self.executor);
            let deadline = Instant::now() + LAST_WRITES;
            while !term.is_idle() {
                let Ok(Some(finished)) = tokio::time::timeout_at(deadline, self.finished.recv()).await else { break };
                if term.finished(&mut shared.write(), finished, shared.now()) {
                    break;
                }
                // What was put off by that is ended as well; the history takes the place that is free now.
                term.withdraw(shared.now());
                term.write_history(&mut shared.write(), Moment(Duration::MAX));
                term.send(&mut self.executor);
            }
            term.abandon();
        }
        self.candidacy.resign().await;
    }
}

//! One term of leadership. It carries out plans and requests and chooses nothing: what is decided is reserved beside the committed state, goes
//! through [`Commits`], and is applied to the state when it is committed, before anybody is answered. A refusal concerns its own decision.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use evenkeel_model::{
    Brake, Change, Decision, Entry, EntryKind, HistoryEntry, Holder, Moment, ResourceName, Revision, Standing, Status, WorkerId, check,
};
use evenkeel_planner::PlannerConfig;
use evenkeel_store::{
    Executor, Finished, Found, KeyChange, LeasedKey, WriteResult,
    codec::{self, Meaning},
    keys::Keys,
};
use tokio::time::Instant;

use super::{
    commits::{Commits, Decided, Settled},
    echoes::Echoes,
    history::{self, History},
    judge::Judge,
    request::{Refusal, Request, Verdict},
    snowflake::Snowflakes,
    subjects::{Subject, Subjects},
    task::planned,
};
use crate::{
    config::MasterConfig,
    measures::Measures,
    state::{Batch, Shared, State},
    time::Clock,
};

/// How many writes may wait in the pipeline before requests wait outside.
const BACKLOG: usize = 4096;
/// How many commits the watch may have yet to bring before requests wait outside: what they wrote is kept until then, some hundred megabytes at the most.
const UNSEEN: usize = 65_536;
/// How long planning rests after etcd has refused a planned write for a reason that time may mend.
const REST: Duration = Duration::from_secs(1);
/// The first rest after planned writes whose conditions did not hold, once that has happened a few times in a row; it doubles up to [`REST`].
const SHORT_REST: Duration = Duration::from_millis(10);
const CONFLICTS: u32 = 3;
/// How often a request is judged anew, because what it was judged by did not hold in etcd. Each time the state is corrected first, so that once is
/// enough but where somebody else writes the same key again and again.
const TRIES: u32 = 5;
/// A plan that takes longer is followed by a rest of so many times its length.
const LONG: Duration = Duration::from_millis(2);
const REST_FACTOR: u32 = 3;
/// With more writes of earlier plans under way nothing is planned: what builds on them would only be planned again.
const PLANNED: usize = 1024;
/// How many actions one plan of tasks has at the most: a few transactions' worth, so that resources have their turn in between.
const TASK_ACTIONS: usize = 1000;
/// How many actions of one plan the log shows.
const SHOWN: usize = 20;
/// By how much the watch may lag behind the own commits before everything is listed anew: longer than the mirror takes to leave a member that is
/// silent, so that it is a watch that etcd feeds too slowly.
const LAG: Duration = Duration::from_secs(5);
/// The pause after such a list. It doubles each time, since a list costs etcd more than what it is to relieve it of, and begins anew when the watch
/// has caught up.
const LIST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_LIST_PAUSE: Duration = Duration::from_secs(160);

/// What came of a plan of tasks.
struct TasksPlanned {
    /// There may be more to do at once.
    is_full: bool,
    wake: Option<Moment>,
}

/// What a leader has beside the state. It ends with the leadership.
pub(super) struct Term {
    keys: Keys,
    clock: Arc<dyn Clock>,
    master: String,
    planner: PlannerConfig,
    measures: Measures,
    snowflakes: Snowflakes,
    /// Something has changed since the last plan.
    pub(super) is_due: bool,
    commits: Commits,
    subjects: Subjects,
    history: History,
    echoes: Echoes,
    rests_until: Option<Moment>,
    /// How many batches in a row had planned writes whose conditions did not hold.
    conflicts: u32,
    /// When the watch may be given up for a list again, and for how long it rests then.
    next_list: Moment,
    list_pause: Duration,
    /// The keys of the history that are being deleted, and when others may be.
    trimmed: Option<Vec<Batch>>,
    next_trim: Moment,
    /// Until when further flaws of plans are not logged.
    flaws_told_until: Moment,
}

impl Term {
    /// Takes over the state as the watch has built it, up to the revision at which this master became the leader.
    pub(super) fn begin(config: &MasterConfig, keys: &Keys, shared: &Shared, candidate: &LeasedKey) -> Self {
        let now = shared.now();
        shared.write().cluster.begin_term(now);
        let mut term = Self {
            keys: keys.clone(),
            clock: Arc::clone(shared.clock()),
            master: config.id.to_string(),
            planner: config.planner.clone(),
            measures: shared.measures.clone(),
            snowflakes: Snowflakes::new(candidate.created().0),
            is_due: true,
            commits: Commits::new(keys, candidate),
            subjects: Subjects::default(),
            history: History::default(),
            echoes: Echoes::default(),
            rests_until: None,
            conflicts: 0,
            next_list: Moment::default(),
            list_pause: LIST_PAUSE,
            trimmed: None,
            next_trim: now,
            flaws_told_until: Moment::default(),
        };
        // It comes before all that this leader decides, and waits for nothing else.
        let entry = history::entry(EntryKind::Leading, term.clock.unix_ns(), &term.master, config.id.as_str(), "became the leader");
        term.write_entry(entry);
        term
    }

    pub(super) fn takes_requests(&self) -> bool {
        self.commits.len() < BACKLOG && self.echoes.len() < UNSEEN
    }

    /// A change that the watch brings: the state has it already, or is ahead of it.
    pub(super) fn is_echo(&self, change: &KeyChange) -> bool {
        self.echoes.has(change.key(), change.revision())
    }

    /// The watch has brought everything up to this revision.
    pub(super) fn followed(&mut self, revision: Revision) {
        self.echoes.followed(revision);
    }

    /// Takes a change of the cluster into the state, and tells the history what it means.
    pub(super) fn take_change(&mut self, state: &mut State, change: Change, now: Moment) {
        match &change.entry {
            Entry::Worker(id, None) => self.see_loss(state, id, now),
            Entry::Status(worker, name, Some(status)) if status.overran => self.see_overrun(state, worker, name, status, now),
            _ => {}
        }
        let task = planned::ends(&change.entry);
        let is_intent = matches!(change.entry, Entry::TaskIntent(..));
        let counts = |state: &State| task.and_then(|id| state.cluster.tasks().get(id)).map(|entry| *entry.counts()).unwrap_or_default();
        let before = counts(state);
        self.see_host_of_task(state, &change.entry, now);
        state.take(change, now);
        for (end, count) in planned::new_ends(&before, &counts(state), is_intent) {
            self.measures.hosts_of_task_ended(end, count);
        }
    }

    fn see_host_of_task(&mut self, state: &State, entry: &Entry, now: Moment) {
        let Some((id, worker, kind, why)) = planned::told_of_host(&state.cluster, entry) else { return };
        if matches!(entry, Entry::TaskResult(..)) {
            tracing::warn!(task = %id, %worker, %why, "how a script ended is not known");
        }
        let entry = history::entry(kind, self.clock.unix_ns(), &self.master, "", why);
        self.history.gather(HistoryEntry { task: id, worker: worker.to_string(), ..entry }, now);
    }

    fn see_loss(&mut self, state: &State, id: &WorkerId, now: Moment) {
        let worker = state.cluster.worker(id.as_str()).filter(|w| w.standing() == Standing::Ready);
        let Some(worker) = worker else { return };
        self.measures.lost();
        let resources = worker.names.len();
        tracing::warn!(worker = %id, resources, "a worker is lost; its resources move when nothing can run there any more");
        let entry = history::entry(EntryKind::Lost, self.clock.unix_ns(), &self.master, "", "its session ended without a release");
        self.history.note(HistoryEntry { worker: id.to_string(), ..entry }, now);
    }

    /// Who made a worker end its process is to be known when that worker is back, and its status says something else.
    fn see_overrun(&mut self, state: &State, worker: &WorkerId, name: &ResourceName, status: &Status, now: Moment) {
        let before = state.cluster.unit(name.as_str()).into_iter().flat_map(|unit| &unit.holders);
        if before.filter_map(Holder::observed).any(|before| before.overran && before.epoch == status.epoch) {
            return;
        }
        tracing::warn!(resource = %name, worker = %worker, status.message, "it did not end when it was told to");
        let entry = history::entry(EntryKind::Overran, self.clock.unix_ns(), &self.master, name.as_str(), &status.message);
        self.history.note(HistoryEntry { worker: worker.to_string(), epoch: status.epoch, ..entry }, now);
    }

    /// Adds to the history what tells of no decision.
    fn note(&mut self, kind: EntryKind, resource: &str, reason: &str, now: Moment) {
        self.history.note(history::entry(kind, self.clock.unix_ns(), &self.master, resource, reason), now);
    }

    /// A list of this revision, begun then, is of an earlier history of etcd than the one that this term has written.
    pub(super) fn went_back(&self, state: &State, revision: Revision, begun: Instant) -> bool {
        revision < state.followed || self.echoes.went_back(revision, begun)
    }

    /// Brings a list of this revision up to what this term has committed since, and reserves in it what is under way.
    pub(super) fn complete(&mut self, listed: &mut State, revision: Revision, now: Moment) {
        for (at, write) in self.echoes.beyond(revision) {
            listed.take(write.change(at), now);
        }
        for writes in self.commits.writes() {
            listed.cluster.reserve(writes, now);
        }
        self.is_due = true;
    }

    /// Whether the watch lags so much that everything is to be listed anew. It is answered with yes once a pause.
    pub(super) fn wants_list(&mut self, state: &mut State, now: Moment) -> bool {
        state.lags_since = self.echoes.waits_since();
        let Some(since) = state.lags_since else {
            self.list_pause = LIST_PAUSE;
            return false;
        };
        if since.after(LAG) > now || self.next_list > now {
            return false;
        }
        tracing::warn!(
            followed = state.followed.0,
            committed = state.answered.0,
            "the watch lags behind what this master commits; everything is listed anew"
        );
        self.next_list = now.after(self.list_pause);
        self.list_pause = (self.list_pause * 2).min(LONGEST_LIST_PAUSE);
        true
    }

    /// Takes a request on, or lets it wait for what is under way with its subject. One whose caller has gone is dropped.
    pub(super) fn take_on(&mut self, state: &mut State, request: Request, now: Moment) {
        if request.is_abandoned() {
            return;
        }
        if let Some(request) = self.subjects.wait(request) {
            self.decide_requests(state, &request.subject(), VecDeque::from([request]), now);
        }
    }

    /// Takes on the requests that have waited for what was under way with their subject. The plan comes first: however much a resource is
    /// asked for, what has to be done with it is done.
    pub(super) fn take_on_freed(&mut self, state: &mut State, now: Moment) {
        for (subject, waiting) in self.subjects.take_freed() {
            self.decide_requests(state, &subject, waiting, now);
        }
    }

    /// Decides what was asked about one subject with which nothing is under way, in order, up to the first write; the rest waits for that.
    ///
    /// What is answered from the state waits for a transaction all the same, which shows that this master still leads and that what it goes by is
    /// what etcd has: a leader that was stopped for a while may go on before it learns that another has led since. One transaction shows that for
    /// all of them, and that of a write as well as one of its own.
    fn decide_requests(&mut self, state: &mut State, subject: &Subject, mut waiting: VecDeque<Request>, now: Moment) {
        while !waiting.is_empty() {
            let decided = self.judge_requests(state, subject, &mut waiting, now);
            if decided.request.is_none() && decided.riders.is_empty() {
                return;
            }
            let Err(others) = self.decide(state, decided, now) else { break };
            // It cannot be written, and whoever wanted it knows. The others go on from what there was before.
            others.into_iter().rev().for_each(|rider| waiting.push_front(rider));
        }
        self.subjects.wait_on(subject, waiting);
    }

    fn judge_requests(&mut self, state: &State, subject: &Subject, waiting: &mut VecDeque<Request>, now: Moment) -> Decided {
        let mut by = Judge {
            cluster: &state.cluster,
            planner: &self.planner,
            now,
            time: self.clock.unix_ns(),
            master: &self.master,
            snowflakes: &mut self.snowflakes,
            unchanged: None,
        };
        let mut decided = Decided { subject: Some(subject.clone()), ..Decided::default() };
        let mut stands = Vec::new();
        while let Some(mut request) = waiting.pop_front() {
            if request.is_abandoned() {
                continue;
            }
            match request.judge(&mut by) {
                Verdict::Refuse(refusal) => request.refuse(refusal),
                Verdict::Stands(guards) => {
                    stands.extend(guards);
                    decided.riders.push(request);
                }
                Verdict::Write(decision, entry) => {
                    (decided.decision, decided.entry, decided.request) = (*decision, entry, Some(request));
                    break;
                }
            }
        }
        for guard in stands {
            if !decided.decision.guards.contains(&guard) {
                decided.decision.guards.push(guard);
            }
        }
        decided
    }

    /// Reserves a decision and hands it on to be written.
    ///
    /// # Errors
    /// It cannot be written: nothing is changed, and who wanted it has been told. Those who wait for something else with it are back.
    fn decide(&mut self, state: &mut State, decided: Decided, now: Moment) -> Result<(), Vec<Request>> {
        let subject = decided.subject.clone();
        let (refusal, mut decided) = match self.commits.submit(decided) {
            Ok(writes) => {
                state.cluster.reserve(writes, now);
                subject.into_iter().for_each(|subject| self.subjects.begin(&subject));
                return Ok(());
            }
            Err((refusal, decided)) => (refusal, *decided),
        };
        // It was too much of one; without that one the others may go on.
        let others =
            if decided.request.is_some() && refusal != Refusal::NotLeader { std::mem::take(&mut decided.riders) } else { Vec::new() };
        decided.refuse(&refusal);
        Err(others)
    }

    /// Plans, takes out of the plan what must never be, and decides the rest. Answers when the planner wants to be asked again.
    pub(super) fn plan(&mut self, state: &mut State, now: Moment) -> Option<Moment> {
        if let Some(until) = self.rests_until.filter(|until| *until > now) {
            return Some(until);
        }
        if self.commits.planned() > PLANNED {
            return None;
        }
        self.is_due = false;
        let began = self.clock.now();
        let mut plan = evenkeel_planner::plan(&state.cluster, now, &self.planner);
        let flaws = check::take_out_flaws(&state.cluster, &mut plan, now, self.planner.wait);
        if !flaws.is_empty() {
            self.tell_flaws(&flaws, now);
            let again = now.after(REST);
            plan.wake = Some(plan.wake.map_or(again, |wake| wake.min(again)));
        }
        state.undone = plan.undone.len();
        self.see_brake(state, plan.brake, now);
        if plan.actions.len() > SHOWN {
            tracing::info!(actions = plan.actions.len(), undone = plan.undone.len(), "decided many; the history has each");
        }
        for action in &plan.actions {
            let subject = Subject::of(action);
            // What it builds on may be under way; then it is planned again when that is done.
            if self.subjects.is_under_way(&subject) {
                continue;
            }
            let Ok(decision) = Decision::of(action, &state.cluster) else { continue };
            if plan.actions.len() <= SHOWN {
                tracing::info!(%action, "decided");
            }
            let entry = history::of_action(action, &state.cluster, self.clock.unix_ns(), &self.master);
            if self.decide(state, Decided { subject: Some(subject), decision, entry, ..Decided::default() }, now).is_ok() {
                self.measures.decided(action);
            }
        }
        let tasks = self.plan_tasks(state, now);
        self.is_due = tasks.is_full || plan.actions.len() >= self.planner.max_actions;
        // However much there is to plan, most of the time is left to the callers.
        let took = self.clock.now().0.saturating_sub(began.0);
        self.measures.planned(took);
        self.rests_until = Some(took).filter(|took| *took > LONG).map(|took| now.after(took * REST_FACTOR));
        plan.wake.into_iter().chain(tasks.wake).min()
    }

    /// Plans what is next of tasks, and decides it.
    fn plan_tasks(&mut self, state: &mut State, now: Moment) -> TasksPlanned {
        let time = self.clock.unix_ns();
        let plan = evenkeel_planner::tasks::plan(&state.cluster, now, time, self.planner.wait, TASK_ACTIONS);
        for action in &plan.actions {
            let subject = planned::subject(action);
            if self.subjects.is_under_way(&subject) {
                continue;
            }
            let Ok(decision) = action.decide(&state.cluster) else { continue };
            if plan.actions.len() <= SHOWN {
                tracing::info!(%action, "decided");
            }
            let entry = planned::entry(action, &state.cluster, time, &self.master);
            if self.decide(state, Decided { subject: Some(subject), decision, entry, ..Decided::default() }, now).is_ok() {
                self.measures.decided_of_task(action);
            }
        }
        TasksPlanned { is_full: plan.actions.len() >= TASK_ACTIONS, wake: plan.wake }
    }

    /// A plan had actions that must never be. They were taken out; what is planned again and again is told once a second.
    fn tell_flaws(&mut self, flaws: &[check::Flaw], now: Moment) {
        self.measures.flawed(flaws.len());
        if self.flaws_told_until > now {
            return;
        }
        self.flaws_told_until = now.after(REST);
        for check::Flaw { action, violations } in flaws.iter().take(SHOWN) {
            let violations: Vec<String> = violations.iter().map(ToString::to_string).collect();
            tracing::error!(%action, violations = violations.join("; "), "an action violates an invariant and is not carried out: please report this");
        }
    }

    /// Tells when the brake begins to hold, and when it does no longer.
    fn see_brake(&mut self, state: &mut State, brake: Option<Brake>, now: Moment) {
        let before = std::mem::replace(&mut state.brake, brake);
        match (before, brake) {
            (None, Some(brake)) => {
                tracing::warn!(lost = brake.lost, of = brake.of, "the brake holds what the lost workers ran");
                self.note(EntryKind::Held, "", &brake.to_string(), now);
            }
            (Some(_), None) => {
                tracing::info!("the brake holds nothing any more");
                let is_written_off = evenkeel_planner::is_any_written_off(&state.cluster);
                let why =
                    if is_written_off { "a person has written those off that are gone" } else { "no more workers are gone than may be" };
                self.note(EntryKind::Resumed, "", why, now);
            }
            _ => {}
        }
    }

    /// Takes in what has become of a batch. True: the fence is lost.
    pub(super) fn finished(&mut self, state: &mut State, finished: Finished, now: Moment) -> bool {
        self.measures.finished(&finished.outcome, finished.took);
        let (mut refused, mut is_done) = (None, false);
        for settled in self.commits.finished(finished) {
            let is_planned = settled.decided.is_planned();
            // Now and then a worker begins with what the leader is about to close: one of them wins, and that is all.
            let refusal = self.settle(state, settled, now).filter(|refusal| !matches!(refusal, Refusal::Conflict(Subject::Order(..))));
            is_done |= is_planned && refusal.is_none();
            refused = refusal.filter(|_| is_planned).or(refused);
        }
        if let Some(refusal) = refused {
            tracing::warn!(why = %refusal, "what was planned was not written; it is planned again");
            self.rest_after(&refusal, now);
        } else if is_done {
            self.conflicts = 0;
        }
        self.is_due = true;
        self.commits.fence_lost()
    }

    /// What follows from the outcome of one decision, for that one alone. Back: why it was not written.
    fn settle(&mut self, state: &mut State, settled: Settled, now: Moment) -> Option<Refusal> {
        let Settled { mut decided, keys, result, is_journaled } = settled;
        let writes = std::mem::take(&mut decided.decision.writes);
        let Some(subject) = decided.subject.clone() else {
            self.settle_history(state, decided, &result, now);
            return None;
        };
        let refusal = match result {
            WriteResult::Committed { revision } => {
                self.commit(state, revision, (keys, writes), now);
                decided.entry.iter().for_each(|entry| self.measures.told(entry.kind));
                if let Some(entry) = decided.entry.take().filter(|_| !is_journaled) {
                    self.history.note(entry, now);
                }
                decided.request.into_iter().chain(decided.riders).for_each(|request| request.complete(Ok(revision)));
                self.subjects.end(subject, Vec::new());
                return None;
            }
            WriteResult::Conflict { at, found } => {
                self.correct(state, at, found, now);
                Refusal::Conflict(subject.clone())
            }
            WriteResult::FenceLost => Refusal::NotLeader,
            WriteResult::NoSpace => Refusal::NoSpace,
            WriteResult::Rejected { reason } => Refusal::Rejected(reason),
            WriteResult::Unknown => Refusal::Unknown(subject.clone()),
        };
        state.cluster.release(&writes, now);
        let again = judged_again(decided, &refusal);
        self.subjects.end(subject, again);
        Some(refusal)
    }

    /// A decision is written: it becomes part of the state, once, in place of what was reserved.
    fn commit(&mut self, state: &mut State, revision: Revision, (keys, writes): (Vec<Vec<u8>>, Vec<evenkeel_model::Write>), now: Moment) {
        self.echoes.mark(revision, Instant::now());
        let is_ahead = revision > state.followed && !writes.is_empty();
        if is_ahead {
            state.answered = state.answered.max(revision);
            for write in &writes {
                self.take_change(state, write.change(revision), now);
            }
        }
        state.cluster.release(&writes, now);
        if is_ahead {
            self.echoes.committed(keys, writes, revision, now);
        }
    }

    /// A decision was made by a state that etcd does not have: what etcd has of it is taken in, as it was at that revision.
    fn correct(&mut self, state: &mut State, at: Revision, found: Vec<Found>, now: Moment) {
        if at <= state.followed {
            return;
        }
        let mut keys = Vec::with_capacity(found.len());
        for Found { key, kv } in found {
            if !self.echoes.has(&key, at) {
                let meaning = kv.as_ref().map_or_else(|| codec::meaning_of_absence(&self.keys, &key), |kv| codec::meaning(&self.keys, kv));
                if let Meaning::Cluster(change) = meaning {
                    self.take_change(state, change, now);
                }
                keys.push(key);
            }
        }
        self.echoes.found(keys, at);
    }

    /// An entry of the history, or the deletion of old ones.
    fn settle_history(&mut self, state: &mut State, decided: Decided, result: &WriteResult, now: Moment) {
        match (decided.entry, result) {
            (Some(_), WriteResult::Committed { revision }) => state.answered = state.answered.max(*revision),
            (Some(entry), _) => self.history.again(entry, now),
            (None, WriteResult::Committed { .. }) => self.trimmed = None,
            (None, _) => {
                state.put_back(self.trimmed.take().unwrap_or_default());
                self.next_trim = now.after(REST);
            }
        }
    }

    /// Planned writes of one batch were refused: planning goes on after a rest, and at once where only the state was not the one of etcd, unless
    /// that happens again and again.
    fn rest_after(&mut self, refusal: &Refusal, now: Moment) {
        let rest = match refusal {
            Refusal::Conflict(_) => {
                self.conflicts = self.conflicts.saturating_add(1);
                let Some(more) = self.conflicts.checked_sub(CONFLICTS) else { return };
                SHORT_REST.saturating_mul(1 << more.min(10)).min(REST)
            }
            _ => REST,
        };
        self.rests_until = Some(now.after(rest));
    }

    /// When the history wants to be written, if there is anything.
    pub(super) fn history_due(&self) -> Option<Moment> {
        self.history.due()
    }

    /// Writes what has happened and no decision tells of, if that is due, and deletes what is too old.
    pub(super) fn write_history(&mut self, state: &mut State, now: Moment) {
        for entry in self.history.take_due(now) {
            self.write_entry(entry);
        }
        if self.trimmed.is_none() && self.next_trim <= now && state.has_old_history() {
            let old = state.take_old_history();
            self.commits.delete_events(old.iter().map(Batch::suffix));
            self.trimmed = Some(old);
        }
    }

    /// Writes an entry by itself. What cannot be written is lost with the leadership.
    fn write_entry(&mut self, entry: HistoryEntry) {
        drop(self.commits.submit(Decided { entry: Some(entry), ..Decided::default() }));
    }

    /// Sends off what there is to write.
    pub(super) fn send(&mut self, executor: &mut Executor) {
        self.commits.send(executor);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.commits.is_idle()
    }

    /// Ends what was not sent off: nothing has come of it, and whoever waits for it is told so at once.
    pub(super) fn withdraw(&mut self, now: Moment) {
        self.subjects.take_waiting().into_iter().for_each(|request| request.refuse(Refusal::NotLeader));
        for mut decided in self.commits.withdraw() {
            if let Some(entry) = decided.entry.take().filter(|_| decided.subject.is_none()) {
                self.history.note(entry, now);
            }
            decided.refuse(&Refusal::NotLeader);
        }
    }

    /// The term is over: whoever waits for an answer gets one.
    pub(super) fn abandon(mut self) {
        self.subjects.take_waiting().into_iter().for_each(|request| request.refuse(Refusal::NotLeader));
        self.commits.abandon();
    }
}

/// Those of a refused decision who are judged anew: all, where it was made by a wrong state, for a number of times; else those who had only waited to
/// be confirmed by what somebody else wanted.
fn judged_again(decided: Decided, refusal: &Refusal) -> Vec<Request> {
    let is_wrong_state = matches!(refusal, Refusal::Conflict(_));
    let concerns_all = matches!(refusal, Refusal::NotLeader | Refusal::Unknown(_)) || (decided.request.is_none() && !is_wrong_state);
    let mut again = Vec::new();
    let riders = decided.riders.into_iter().map(|rider| (rider, false));
    for (mut request, is_wanted) in riders.chain(decided.request.map(|request| (request, true))) {
        request.tries += u32::from(is_wrong_state);
        if concerns_all || (is_wanted && !is_wrong_state) || request.tries > TRIES {
            request.refuse(refusal.clone());
        } else {
            again.push(request);
        }
    }
    again
}

//! One term of leadership: the commit pipeline with the leader's fence, what was decided and is not yet known to be written, and the
//! history. It carries out plans and requests; it chooses nothing.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use evenkeel_model::{Change, Decision, EntryKind, Epoch, HistoryEntry, Moment, ResourceName, Revision, Standing, Write, check};
use evenkeel_planner::PlannerConfig;
use evenkeel_store::{Compare, Executor, Finished, LeasedKey, Op, Pipeline, PipelineConfig, SubmitError, WriteResult, codec, keys::Keys};
use rustc_hash::FxHashMap;

use super::{
    history,
    own_writes::{OwnWrites, Written},
    request::{Refusal, Request},
    resources::Answer,
    snowflake::Snowflakes,
};
use crate::{
    config::MasterConfig,
    measures::Measures,
    state::{Shared, State},
    time::Clock,
};

/// How many batches may be in flight.
const IN_FLIGHT: usize = 3;
/// How many writes may wait in the pipeline before requests wait outside.
const BACKLOG: usize = 4096;
/// How many batches of the history are kept in etcd, and how many entries one has at most.
const HISTORY_BATCHES: u64 = 500;
const HISTORY_ENTRIES: usize = 100;
/// How long the first entry of a batch waits for others. The history is never what a caller waits for.
const HISTORY_DELAY: Duration = Duration::from_millis(50);
/// How long planning rests after etcd has refused a write for a reason that time may mend.
const REST: Duration = Duration::from_secs(1);

/// A plan that takes longer is followed by a rest of so many times its length.
const LONG: Duration = Duration::from_millis(2);
const REST_FACTOR: u32 = 3;
/// With more writes of earlier plans under way nothing is planned: what builds on them would only be planned again.
const PLANNED: usize = 1024;
/// How many actions of one plan the log shows.
const SHOWN: usize = 20;

/// See the module.
pub(super) struct Term {
    pub(super) keys: Keys,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) master: String,
    pub(super) planner: PlannerConfig,
    pub(super) own: OwnWrites,
    pub(super) snowflakes: Snowflakes,
    measures: Measures,
    /// Something has changed since the last plan.
    pub(super) is_due: bool,
    pipeline: Pipeline,
    next_token: u64,
    pending: FxHashMap<u64, Pending>,
    busy: FxHashMap<ResourceName, Busy>,
    /// How many writes about resources are under way for which nobody waits.
    planned: usize,
    /// Resources whose requests wait no more for what was under way, only for the plan.
    freed: Vec<ResourceName>,
    list: List,
    last_written: Revision,
    rests_until: Option<Moment>,
    /// What has happened since the last batch of the history was written, and since when.
    happenings: Vec<HistoryEntry>,
    happenings_since: Moment,
    next_batch: u64,
}

/// A write that was decided.
struct Pending {
    writes: Vec<(Vec<u8>, Write)>,
    /// Further keys that it writes, which no event tells of.
    more_keys: Vec<Vec<u8>>,
    name: Option<ResourceName>,
    /// Told when it is written.
    happening: Option<HistoryEntry>,
    answers: Vec<Answer>,
}

/// A decision with what belongs to it.
pub(super) struct Decided<'a> {
    pub(super) decision: Decision,
    /// The resource that it is about.
    pub(super) name: Option<&'a ResourceName>,
    /// What the history says of it, once it is written.
    pub(super) happening: Option<HistoryEntry>,
    /// Who waits for it; none: the planner wanted it.
    pub(super) answers: Vec<Answer>,
}

/// A resource with writes under way: requests about it wait for them, and then for the plan.
#[derive(Default)]
struct Busy {
    writes: usize,
    waiting: VecDeque<Request>,
}

/// Whether the Cluster can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    /// It can.
    Good,
    /// A decision failed, or the watch was interrupted: nothing more is decided until a whole list has come.
    Needed,
    /// It has been asked for.
    Asked,
}

/// What a whole list is to a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ListVerdict {
    /// It replaces the Cluster.
    Good,
    /// It may lack writes that are under way, or were when it was made: another is needed.
    TooEarly,
    /// It lacks writes that were done before it was asked for: etcd was put back to an earlier state.
    WentBack,
}

impl ListVerdict {
    /// Judges a list of this revision, where the last write that is known to be done has that one. `is_idle`: none is under way. `is_asked`: it
    /// was asked for when none was.
    fn of(revision: Revision, last_written: Revision, is_idle: bool, is_asked: bool) -> Self {
        if revision >= last_written && is_idle {
            Self::Good
        } else if is_asked && is_idle {
            // It would hold every write, if this were still the same history.
            Self::WentBack
        } else {
            Self::TooEarly
        }
    }
}

impl Term {
    /// Takes over the Cluster as the watch has built it, up to the revision at which this master became the leader.
    pub(super) fn begin(config: &MasterConfig, keys: &Keys, shared: &Shared, candidate: &LeasedKey) -> Self {
        let mut state = shared.write();
        state.cluster.begin_term(shared.now());
        let fence = candidate.created();
        let pipeline = Pipeline::new(PipelineConfig {
            fence_key: candidate.key().to_vec(),
            fence,
            lease: candidate.lease(),
            slot_prefix: format!("{}{:x}/", keys.writers(), candidate.lease()).into_bytes(),
            in_flight: IN_FLIGHT,
        });
        let mut term = Self {
            keys: keys.clone(),
            clock: Arc::clone(shared.clock()),
            master: config.id.to_string(),
            planner: config.planner.clone(),
            own: OwnWrites::default(),
            snowflakes: Snowflakes::new(fence.0),
            measures: shared.measures.clone(),
            is_due: true,
            pipeline,
            next_token: 0,
            pending: FxHashMap::default(),
            busy: FxHashMap::default(),
            planned: 0,
            freed: Vec::new(),
            list: List::Good,
            last_written: Revision::default(),
            rests_until: None,
            happenings: Vec::new(),
            happenings_since: Moment::default(),
            next_batch: state.next_batch(),
        };
        let entry = history::about_resource(EntryKind::Leading, term.clock.unix_ns(), config.id.as_str(), "", "became the leader");
        term.happen(&mut state, entry, shared.now());
        term
    }

    /// Adds to the history: at once in memory, with the next batch in etcd.
    pub(super) fn happen(&mut self, state: &mut State, happening: HistoryEntry, now: Moment) {
        if self.happenings.is_empty() {
            self.happenings_since = now;
        }
        let index = self.happenings.len();
        if index < HISTORY_ENTRIES {
            state.remember_one(self.next_batch, index, happening.clone());
        }
        self.happenings.push(happening);
    }

    pub(super) fn takes_requests(&self) -> bool {
        self.list == List::Good && self.pipeline.len() < BACKLOG
    }

    /// What operators ask waits for no backlog.
    pub(super) fn takes_operations(&self) -> bool {
        self.list == List::Good
    }

    pub(super) fn is_idle(&self) -> bool {
        self.pipeline.is_empty()
    }

    pub(super) fn needs_list(&self) -> bool {
        self.list != List::Good
    }

    /// Whether the list is to be asked for now: once, when no write is under way any more.
    pub(super) fn asks_for_list(&mut self) -> bool {
        let asks = self.list == List::Needed && self.is_idle();
        if asks {
            self.list = List::Asked;
        }
        asks
    }

    /// Whether a list of this revision can replace the Cluster: it must hold every write of this term.
    pub(super) fn judge_list(&mut self, revision: Revision) -> ListVerdict {
        let verdict = ListVerdict::of(revision, self.last_written, self.is_idle(), self.list == List::Asked);
        if verdict == ListVerdict::TooEarly {
            self.list = List::Needed;
        }
        verdict
    }

    /// A whole list has replaced the Cluster.
    pub(super) fn begin_with_list(&mut self) {
        self.own = OwnWrites::default();
        self.list = List::Good;
        self.is_due = true;
    }

    /// Notes what an event means for the history before the Cluster takes it in.
    pub(super) fn observe(&mut self, state: &mut State, event: &Change, now: Moment) {
        let Change::Worker { id, value: None } = event else { return };
        let worker = state.cluster.worker(id.as_str());
        if worker.is_some_and(|w| w.standing() == Standing::Ready) {
            let resources = worker.map_or(0, |w| w.names.len());
            self.measures.lost();
            tracing::warn!(worker = %id, resources, "a worker is lost; its resources move when nothing can run there any more");
            let entry =
                history::about_resource(EntryKind::Lost, self.clock.unix_ns(), &self.master, "", "its session ended without a release");
            self.happen(state, HistoryEntry { worker: id.to_string(), ..entry }, now);
        }
    }

    /// Takes a request on, or lets it wait for what is under way with the same resource. One whose caller has gone is dropped.
    pub(super) fn take_on(&mut self, state: &mut State, request: Request, now: Moment) {
        if request.is_abandoned() {
            return;
        }
        let Some(name) = request.name() else {
            return match request {
                Request::Intent { worker, intent, reply } => self.want(state, &worker, intent, reply, now),
                Request::ReleaseBrake { reply } => self.release_brake(state, reply, now),
                Request::Put { .. } | Request::Delete { .. } => {}
            };
        };
        if let Some(busy) = self.busy.get_mut(name) {
            return busy.waiting.push_back(request);
        }
        let name = name.clone();
        self.decide_requests(state, &name, &mut VecDeque::from([request]), now);
    }

    /// Takes on the requests that have waited for what was under way with their resource. The plan comes first: however much a resource is
    /// asked for, what has to be done with it is done.
    pub(super) fn take_on_freed(&mut self, state: &mut State, now: Moment) {
        for name in std::mem::take(&mut self.freed) {
            // The plan may have begun something with it, whose end frees it again.
            if self.is_busy(&name) {
                continue;
            }
            let Some(Busy { mut waiting, .. }) = self.busy.remove(&name) else { continue };
            self.decide_requests(state, &name, &mut waiting, now);
            if !waiting.is_empty() {
                self.busy.entry(name).or_default().waiting = waiting;
            }
        }
    }

    /// Writes of this resource are under way.
    fn is_busy(&self, name: &ResourceName) -> bool {
        self.busy.get(name).is_some_and(|busy| busy.writes > 0)
    }

    /// Further answers wait for a decision that has not been sent off yet.
    pub(super) fn answer_with(&mut self, token: u64, answers: Vec<Answer>) {
        match self.pending.get_mut(&token) {
            Some(pending) => pending.answers.extend(answers),
            None => answers.into_iter().for_each(|answer| answer.refuse(Refusal::NotLeader)),
        }
    }

    /// Decides: the Cluster shows the decision at once, the pipeline writes it. None: it cannot be written, and nothing is changed.
    pub(super) fn decide(&mut self, state: &mut State, decided: Decided<'_>, now: Moment) -> Option<u64> {
        let Decided { decision, name, happening, answers } = decided;
        debug_assert!(name.is_none_or(|name| !self.is_busy(name)), "one thing after another is done with a resource");
        let token = self.next_token;
        self.next_token += 1;
        let (compares, ops) = codec::encode(&self.keys, &decision);
        let mut keys: Vec<Vec<u8>> = ops.iter().map(|op| op.first_key().to_vec()).collect();
        if let Err(refusal) = self.submit(token, compares, ops, &keys) {
            answers.into_iter().for_each(|answer| answer.refuse(refusal.clone()));
            return None;
        }
        let mut writes = Vec::with_capacity(decision.writes.len());
        for write in decision.writes {
            // The first key of a write is the one that its event speaks of; a deleted assignment takes its status along.
            let key = keys.remove(0);
            let further = usize::from(matches!(write, Write::NoAssignment(..)));
            keys.rotate_left(further);
            let event = write.change(Revision::default());
            super::touch(state, &event);
            state.cluster.apply(event, now);
            writes.push((key, write));
        }
        if let Some(name) = name {
            self.busy.entry(name.clone()).or_default().writes += 1;
        }
        self.planned += usize::from(name.is_some() && answers.is_empty());
        self.pending.insert(token, Pending { writes, more_keys: keys, name: name.cloned(), happening, answers });
        Some(token)
    }

    /// Gives a write to the pipeline. One that it does not take has changed nothing, and says why.
    fn submit(&mut self, token: u64, compares: Vec<Compare>, ops: Vec<Op>, keys: &[Vec<u8>]) -> Result<(), Refusal> {
        match self.pipeline.submit(evenkeel_store::Write { token, compares, ops }) {
            Ok(()) => {
                for key in keys {
                    self.own.decided(key, token);
                }
                Ok(())
            }
            Err(SubmitError::FenceLost) => Err(Refusal::NotLeader),
            Err(error) => {
                tracing::error!(%error, key = %keys.first().map(|key| String::from_utf8_lossy(key)).unwrap_or_default(), "a decision cannot be written");
                Err(Refusal::TooLarge(error.to_string()))
            }
        }
    }

    /// Plans, checks the plan, and decides what it says. Answers when the planner wants to be asked again.
    pub(super) fn plan(&mut self, state: &mut State, now: Moment) -> Option<Moment> {
        if let Some(until) = self.rests_until.filter(|until| *until > now) {
            return Some(until);
        }
        if self.planned > PLANNED {
            return None;
        }
        self.is_due = false;
        let began = self.clock.now();
        let plan = evenkeel_planner::plan(&state.cluster, now, &self.planner);
        let violations = check::check_plan(&state.cluster, &plan, now, self.planner.wait);
        if !violations.is_empty() {
            tracing::error!(?violations, "the plan violates an invariant and is not carried out");
            return Some(now.after(REST));
        }
        state.undone = plan.undone.len();
        self.see_brake(state, plan.brake, now);
        if plan.actions.len() > SHOWN {
            tracing::info!(actions = plan.actions.len(), undone = plan.undone.len(), "decided many; the history has each");
        }
        for action in &plan.actions {
            // What builds on a write under way is planned again when that is done. The Cluster shows it as done already, but it may fail,
            // or come late, and the assignment that it ends would stand beside the one that follows.
            if action.resource().is_some_and(|name| self.is_busy(name)) {
                continue;
            }
            let Ok(decision) = Decision::of(action, &state.cluster) else { continue };
            if plan.actions.len() <= SHOWN {
                tracing::info!(?action, "decided");
            }
            let happening = history::of_action(action, self.clock.unix_ns(), &self.master);
            if self.decide(state, Decided { decision, name: action.resource(), happening, answers: Vec::new() }, now).is_some() {
                self.measures.decided(action);
            }
        }
        self.is_due = plan.actions.len() >= self.planner.max_actions;
        // However much there is to plan, most of the time is left to the callers.
        let took = self.clock.now().0.saturating_sub(began.0);
        self.measures.planned(took);
        self.rests_until = Some(took).filter(|took| *took > LONG).map(|took| now.after(took * REST_FACTOR));
        plan.wake
    }

    /// Takes in what has become of a batch. True: the fence is lost.
    pub(super) fn finished(&mut self, state: &mut State, finished: Finished, now: Moment) -> bool {
        self.measures.finished(&finished.outcome, finished.took);
        let mut freed = Vec::new();
        for done in self.pipeline.finished(finished.batch, finished.outcome) {
            let Some(pending) = self.pending.remove(&done.token) else { continue };
            if let Some(name) = &pending.name
                && let Some(busy) = self.busy.get_mut(name)
            {
                busy.writes -= 1;
                if busy.writes == 0 {
                    if busy.waiting.is_empty() {
                        self.busy.remove(name);
                    } else {
                        freed.push(name.clone());
                    }
                }
            }
            self.planned -= usize::from(pending.name.is_some() && pending.answers.is_empty());
            self.done(state, done.token, pending, &done.result, now);
        }
        self.is_due = true;
        if self.pipeline.fence_lost() {
            return true;
        }
        for name in freed {
            if self.list == List::Good {
                self.freed.push(name);
            } else if let Some(busy) = self.busy.remove(&name) {
                busy.waiting.into_iter().for_each(|request| request.refuse(Refusal::Conflict(name.clone())));
            }
        }
        false
    }

    fn done(&mut self, state: &mut State, token: u64, pending: Pending, result: &WriteResult, now: Moment) {
        let name = pending.name.clone();
        let refusal = match result {
            WriteResult::Committed { revision } => return self.committed(state, token, pending, *revision, now),
            WriteResult::FenceLost => Refusal::NotLeader,
            WriteResult::Conflict => name.map_or(Refusal::NotLeader, Refusal::Conflict),
            WriteResult::NoSpace => Refusal::NoSpace,
            WriteResult::Rejected { reason } => Refusal::Rejected(reason.clone()),
            WriteResult::Unknown => name.map_or(Refusal::UnknownOutcome, Refusal::Unknown),
        };
        if *result != WriteResult::FenceLost {
            tracing::warn!(?result, name = ?pending.name, "a decision was not written; the cluster is read anew");
            self.list = List::Needed;
            self.rests_until = Some(now.after(REST));
        }
        pending.answers.into_iter().for_each(|answer| answer.refuse(refusal.clone()));
    }

    fn committed(&mut self, state: &mut State, token: u64, pending: Pending, revision: Revision, now: Moment) {
        self.last_written = self.last_written.max(revision);
        for (key, write) in &pending.writes {
            let stands = self.own.written(key, token, revision);
            if stands == Written::Superseded {
                continue;
            }
            let event = write.change(revision);
            super::touch(state, &event);
            state.cluster.apply(event, now);
            if stands == Written::Overtaken {
                tracing::info!(key = %String::from_utf8_lossy(key), "was written by another hand as well; the cluster is read anew");
                self.list = List::Needed;
            }
        }
        for key in &pending.more_keys {
            // No event tells of these, so there is none that could have been missed.
            let _ = self.own.written(key, token, revision);
        }
        if let Some(mut happening) = pending.happening {
            let creates = |(_, write): &(Vec<u8>, Write)| matches!(write, Write::Assignment(_, _, _, epoch) if *epoch == Epoch::default());
            if pending.writes.iter().any(creates) {
                happening.epoch = Epoch(revision.0);
            }
            self.happen(state, happening, now);
        }
        pending.answers.into_iter().for_each(|answer| answer.give(revision));
    }

    /// When the next batch of the history is due, if anything has happened.
    pub(super) fn history_due(&self) -> Option<Moment> {
        (!self.happenings.is_empty()).then(|| self.happenings_since.after(HISTORY_DELAY))
    }

    /// Writes what has happened since the last time, if that is due, and deletes what is too old.
    pub(super) fn write_history(&mut self, state: &mut State, now: Moment) {
        let is_due = self.happenings.len() >= HISTORY_ENTRIES || self.history_due().is_some_and(|due| due <= now);
        while is_due && !self.happenings.is_empty() && self.list == List::Good {
            let rest = self.happenings.split_off(self.happenings.len().min(HISTORY_ENTRIES));
            let entries = std::mem::replace(&mut self.happenings, rest);
            let number = self.next_batch;
            self.next_batch += 1;
            let mut ops = vec![Op::put(self.keys.event(number), codec::json(&entries))];
            if let Some(old) = number.checked_sub(HISTORY_BATCHES) {
                ops.push(Op::delete(self.keys.event(old)));
            }
            state.remember(number, entries);
            let keys: Vec<Vec<u8>> = ops.iter().map(|op| op.first_key().to_vec()).collect();
            let token = self.next_token;
            self.next_token += 1;
            if self.submit(token, Vec::new(), ops, &keys).is_ok() {
                self.pending
                    .insert(token, Pending { writes: Vec::new(), more_keys: keys, name: None, happening: None, answers: Vec::new() });
            }
        }
    }

    /// Sends off what there is to write.
    pub(super) fn send(&mut self, executor: &mut Executor) {
        while let Some(batch) = self.pipeline.next_batch() {
            executor.execute(batch);
        }
    }

    /// The term is over: whoever waits for an answer gets this one.
    pub(super) fn abandon(self, refusal: Refusal) {
        for pending in self.pending.into_values() {
            let refusal = pending.name.map_or(Refusal::UnknownOutcome, Refusal::Unknown);
            pending.answers.into_iter().for_each(|answer| answer.refuse(refusal.clone()));
        }
        for busy in self.busy.into_values() {
            busy.waiting.into_iter().for_each(|request| request.refuse(refusal.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_good_only_if_it_holds_every_write() {
        let judge = |revision, is_idle, is_asked| ListVerdict::of(Revision(revision), Revision(9), is_idle, is_asked);
        let (idle, busy, asked, unasked) = (true, false, true, false);
        assert_eq!((judge(9, idle, asked), judge(12, idle, unasked)), (ListVerdict::Good, ListVerdict::Good));
        // What is under way may have been written after it was made.
        assert_eq!((judge(12, busy, asked), judge(12, busy, unasked)), (ListVerdict::TooEarly, ListVerdict::TooEarly));
        assert_eq!((judge(8, idle, unasked), judge(8, busy, unasked)), (ListVerdict::TooEarly, ListVerdict::TooEarly));
        assert_eq!(judge(8, idle, asked), ListVerdict::WentBack);
    }
}

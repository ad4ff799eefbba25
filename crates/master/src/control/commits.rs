//! What commits: decisions on their way through the pipeline, until it is known what has become of each. It is asked for nothing else: what follows
//! from an outcome is the term's.
//!
//! Under master::control, before store::commit.

use evenkeel_model::{Decision, HistoryEntry, Write};
use evenkeel_store::{Executor, Finished, LeasedKey, Op, Pipeline, PipelineConfig, SubmitError, WriteResult, codec, keys::Keys};
use rustc_hash::FxHashMap;

use super::{
    request::{Refusal, Request},
    subjects::Subject,
};

/// How many batches may be in flight.
const IN_FLIGHT: usize = 3;

/// A decision with what belongs to it.
#[derive(Debug, Default)]
pub(super) struct Decided {
    /// What it is about; none: the history itself.
    pub(super) subject: Option<Subject>,
    /// Conditions and writes; the conditions are given away with the submission.
    pub(super) decision: Decision,
    /// What the history says of it. It is written in the same transaction.
    pub(super) entry: Option<HistoryEntry>,
    /// Who wants it; none: the planner, or nobody.
    pub(super) request: Option<Request>,
    /// Those whose answers it confirms.
    pub(super) riders: Vec<Request>,
}

/// A decision whose outcome is known.
pub(super) struct Settled {
    pub(super) decided: Decided,
    /// The keys that it was to write.
    pub(super) keys: Vec<Vec<u8>>,
    pub(super) result: WriteResult,
    /// Its entry went along.
    pub(super) is_journaled: bool,
}

/// See the module.
pub(super) struct Commits {
    keys: Keys,
    pipeline: Pipeline,
    next_token: u64,
    under_way: FxHashMap<u64, UnderWay>,
    /// How many of them the planner wanted.
    planned: usize,
}

struct UnderWay {
    decided: Decided,
    keys: Vec<Vec<u8>>,
}

impl Decided {
    /// The planner wanted it.
    pub(super) fn is_planned(&self) -> bool {
        self.subject.is_some() && self.request.is_none() && self.riders.is_empty()
    }

    /// Everyone who waits for it is told the same.
    pub(super) fn refuse(self, refusal: &Refusal) {
        self.request.into_iter().chain(self.riders).for_each(|request| request.refuse(refusal.clone()));
    }

    /// Nobody knows whether it was written.
    fn refuse_unknown(mut self) {
        if let Some(subject) = self.subject.take() {
            self.refuse(&Refusal::Unknown(subject));
        }
    }
}

impl Commits {
    /// For the holder of this candidacy.
    pub(super) fn new(keys: &Keys, candidate: &LeasedKey) -> Self {
        let (fence, lease) = (candidate.created(), candidate.lease());
        let pipeline = Pipeline::new(PipelineConfig {
            fence_key: candidate.key().to_vec(),
            fence,
            lease,
            slot_prefix: format!("{}{lease:x}/", keys.writers()).into_bytes(),
            // Each leader's entries come after those of the leaders before it.
            journal_prefix: format!("{}{:016x}-", keys.events(), fence.0).into_bytes(),
            in_flight: IN_FLIGHT,
        });
        Self { keys: keys.clone(), pipeline, next_token: 0, under_way: FxHashMap::default(), planned: 0 }
    }

    /// Takes a decision on. Its writes are back, for the reservation.
    ///
    /// # Errors
    /// Why it cannot be written; nothing has come of it, and it is back.
    pub(super) fn submit(&mut self, mut decided: Decided) -> Result<&[Write], (Refusal, Box<Decided>)> {
        let (compares, ops) = codec::encode(&self.keys, &decided.decision);
        let keys: Vec<Vec<u8>> = ops.iter().map(|op| op.first_key().to_vec()).collect();
        let entry = decided.entry.as_ref().map(codec::json);
        let token = self.next_token;
        match self.pipeline.submit(evenkeel_store::Write { token, compares, ops, entry }) {
            Ok(()) => {
                self.next_token += 1;
                self.planned += usize::from(decided.is_planned());
                decided.decision.guards = Vec::new();
                let under_way = self.under_way.entry(token).insert_entry(UnderWay { decided, keys });
                Ok(&under_way.into_mut().decided.decision.writes)
            }
            Err(SubmitError::FenceLost) => Err((Refusal::NotLeader, Box::new(decided))),
            Err(error) => {
                tracing::error!(%error, key = %keys.first().map(|key| String::from_utf8_lossy(key)).unwrap_or_default(), "a decision cannot be written");
                Err((Refusal::TooLarge(error.to_string()), Box::new(decided)))
            }
        }
    }

    /// Deletes what is old of the history.
    pub(super) fn delete_events<'a>(&mut self, suffixes: impl Iterator<Item = &'a str>) {
        let prefix = self.keys.events();
        let ops: Vec<Op> = suffixes.map(|suffix| Op::delete(format!("{prefix}{suffix}"))).collect();
        let token = self.next_token;
        // With the fence lost this term is over, and the next one looks for itself.
        if self.pipeline.submit(evenkeel_store::Write { token, compares: Vec::new(), ops, entry: None }).is_ok() {
            self.next_token += 1;
            self.under_way.insert(token, UnderWay { decided: Decided::default(), keys: Vec::new() });
        }
    }

    /// Sends off what there is to write.
    pub(super) fn send(&mut self, executor: &mut Executor) {
        while let Some(batch) = self.pipeline.next_batch() {
            executor.execute(batch);
        }
    }

    /// Takes in what has become of a batch: the decisions that are done with.
    pub(super) fn finished(&mut self, finished: Finished) -> Vec<Settled> {
        let mut settled = Vec::new();
        for done in self.pipeline.finished(finished.batch, finished.outcome) {
            let Some(UnderWay { decided, keys }) = self.take(done.token) else { continue };
            settled.push(Settled { decided, keys, result: done.result, is_journaled: done.journaled });
        }
        settled
    }

    fn take(&mut self, token: u64) -> Option<UnderWay> {
        let under_way = self.under_way.remove(&token)?;
        self.planned -= usize::from(under_way.decided.is_planned());
        Some(under_way)
    }

    /// Takes back what was not sent off. Nothing has come of it, and nothing will.
    pub(super) fn withdraw(&mut self) -> Vec<Decided> {
        let unsent = self.pipeline.withdraw_unsent();
        unsent.into_iter().filter_map(|token| self.take(token)).map(|under_way| under_way.decided).collect()
    }

    /// It is over: whoever waits for an answer gets one.
    pub(super) fn abandon(mut self) {
        self.withdraw().into_iter().for_each(|decided| decided.refuse(&Refusal::NotLeader));
        self.under_way.into_values().for_each(|under_way| under_way.decided.refuse_unknown());
    }

    /// The writes of all decisions under way.
    pub(super) fn writes(&self) -> impl Iterator<Item = &[Write]> {
        self.under_way.values().map(|under_way| under_way.decided.decision.writes.as_slice())
    }

    /// How many writes are not done.
    pub(super) fn len(&self) -> usize {
        self.pipeline.len()
    }

    /// How many of those the planner wanted.
    pub(super) fn planned(&self) -> usize {
        self.planned
    }

    pub(super) fn is_idle(&self) -> bool {
        self.pipeline.is_empty()
    }

    pub(super) fn fence_lost(&self) -> bool {
        self.pipeline.fence_lost()
    }
}

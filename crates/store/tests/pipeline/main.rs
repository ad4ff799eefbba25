//! The commit pipeline against a small model of etcd that loses answers, loses requests, and carries some out much later.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet, HashMap};

use evenkeel_store::{
    Batch, Compare, Done, Found, Kv, MAX_BYTES, MAX_OPS, Op, Outcome, Pipeline, PipelineConfig, Resolution, Revision, SubmitError, Txn,
    TxnReply, Write, WriteResult,
};
use proptest::prelude::*;

const FENCE: &[u8] = b"/election/1";
const SLOTS: &str = "/commit/1/";

fn pipeline() -> Pipeline {
    Pipeline::new(config())
}

fn config() -> PipelineConfig {
    PipelineConfig {
        fence_key: FENCE.to_vec(),
        fence: Revision(1),
        lease: 7,
        slot_prefix: SLOTS.as_bytes().to_vec(),
        journal_prefix: b"/events/".to_vec(),
        in_flight: 3,
    }
}

/// etcd, as far as transactions need it.
struct Model {
    revision: i64,
    kvs: BTreeMap<Vec<u8>, Kv>,
    /// Every put that was applied: revision, key, value.
    log: Vec<(Revision, Vec<u8>, Vec<u8>)>,
}

impl Model {
    fn new() -> Self {
        let mut model = Self { revision: 0, kvs: BTreeMap::new(), log: Vec::new() };
        model.apply(&Txn { then: vec![Op::put(FENCE, "leader")], ..Txn::default() });
        model
    }

    fn apply(&mut self, txn: &Txn) -> TxnReply {
        let succeeded = txn.compares.iter().all(|compare| compare.holds(self.kvs.get(compare.key())));
        let mut reads = Vec::new();
        let next = self.revision + 1;
        for op in if succeeded { &txn.then } else { &txn.otherwise } {
            match op {
                Op::Put { key, value, lease } => {
                    let created = self.kvs.get(key).map_or(Revision(next), |kv| kv.created);
                    self.log.push((Revision(next), key.clone(), value.clone()));
                    let kv = Kv { key: key.clone(), value: value.clone(), created, modified: Revision(next), lease: *lease };
                    self.kvs.insert(key.clone(), kv);
                    self.revision = next;
                }
                Op::Delete { key } => {
                    if self.kvs.remove(key).is_some() {
                        self.revision = next;
                    }
                }
                Op::Get { key } => reads.push(self.kvs.get(key).cloned().into_iter().collect()),
                Op::DeleteRange { .. } | Op::Range { .. } => panic!("the pipeline has no use for ranges"),
            }
        }
        TxnReply { succeeded, revision: Revision(self.revision), reads }
    }

    /// The leader's lease is gone, and with it the election key and the slots.
    fn lose_fence(&mut self) {
        self.revision += 1;
        self.kvs.retain(|key, _| key != FENCE && !key.starts_with(SLOTS.as_bytes()));
    }
}

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    Submit {
        puts: BTreeSet<u8>,
        deletes: BTreeSet<u8>,
        compares: BTreeSet<u8>,
    },
    /// All batches that there are go out.
    Send,
    /// Something happens to one of the batches under way.
    Batch(usize, Fate),
    /// A request of old reaches etcd.
    Late(usize),
    /// Somebody else writes a key that is compared.
    Meddle(u8),
    LoseFence,
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Answered,
    AnswerLost,
    RequestLost,
    /// The request waits somewhere, and may be carried out at a [`Step::Late`].
    Delayed,
    NoSpace,
    Rejected,
}

fn step() -> impl Strategy<Value = Step> {
    let keys = |most| prop::collection::btree_set(0u8..6, 0..most);
    let fate = prop_oneof![
        6 => Just(Fate::Answered), 2 => Just(Fate::AnswerLost), 2 => Just(Fate::RequestLost), 3 => Just(Fate::Delayed),
        1 => Just(Fate::NoSpace), 1 => Just(Fate::Rejected),
    ];
    prop_oneof![
        8 => (keys(3), keys(2), keys(3)).prop_map(|(puts, deletes, compares)| Step::Submit { puts, deletes, compares }),
        4 => Just(Step::Send),
        8 => (0usize..3, fate).prop_map(|(at, fate)| Step::Batch(at, fate)),
        3 => (0usize..4).prop_map(Step::Late),
        1 => (0u8..6).prop_map(Step::Meddle),
    ]
}

/// A batch under way; without a transaction its answer is lost and it is being resolved.
struct Flight {
    id: evenkeel_store::BatchId,
    txn: Option<Txn>,
    resolution: Resolution,
    touches: Touches,
}

#[derive(Default)]
struct Touches {
    written: BTreeSet<Vec<u8>>,
    compared: BTreeSet<Vec<u8>>,
}

struct World {
    model: Model,
    pipeline: Pipeline,
    flights: Vec<Flight>,
    late: Vec<Txn>,
    submitted: u64,
    done: HashMap<u64, WriteResult>,
}

impl World {
    fn new() -> Self {
        Self { model: Model::new(), pipeline: pipeline(), flights: vec![], late: vec![], submitted: 0, done: HashMap::new() }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Submit { puts, deletes, compares } => self.submit(&puts, &deletes, &compares),
            Step::Send => self.send(),
            Step::Batch(at, fate) if !self.flights.is_empty() => self.batch(at % self.flights.len(), fate),
            Step::Late(at) if !self.late.is_empty() => {
                let txn = self.late.swap_remove(at % self.late.len());
                self.model.apply(&txn);
            }
            Step::Meddle(key) => {
                let then = vec![Op::put(format!("/compared/{key}"), "meddled")];
                self.model.apply(&Txn { then, ..Txn::default() });
            }
            Step::LoseFence => self.model.lose_fence(),
            Step::Batch(..) | Step::Late(_) => {}
        }
    }

    fn submit(&mut self, puts: &BTreeSet<u8>, deletes: &BTreeSet<u8>, compares: &BTreeSet<u8>) {
        let token = self.submitted;
        self.submitted += 1;
        // Every write has a key of its own, so that the log tells whether it was applied.
        let mut ops = vec![Op::put(format!("/own/{token}"), token.to_string())];
        ops.extend(puts.iter().map(|key| Op::put(format!("/k/{key}"), token.to_string())));
        ops.extend(deletes.difference(puts).map(|key| Op::delete(format!("/k/{key}"))));
        // Some compare what only others write, some what the pipeline itself writes.
        let compares = compares.iter().map(|key| match key {
            0..3 => Compare::absent(format!("/compared/{key}")),
            _ => Compare::absent(format!("/k/{key}")),
        });
        let write = Write { token, compares: compares.collect(), ops, entry: None };
        if let Err(error) = self.pipeline.submit(write) {
            assert_eq!(error, SubmitError::FenceLost);
            self.done.insert(token, WriteResult::FenceLost);
        }
    }

    fn send(&mut self) {
        while let Some(Batch { id, txn, resolution }) = self.pipeline.next_batch() {
            let touches = check(&txn);
            for other in &self.flights {
                let disjoint = |a: &BTreeSet<_>, b: &BTreeSet<_>| assert!(a.is_disjoint(b), "two batches in flight share a key");
                disjoint(&touches.written, &other.touches.written);
                disjoint(&touches.written, &other.touches.compared);
                disjoint(&touches.compared, &other.touches.written);
            }
            self.flights.push(Flight { id, txn: Some(txn), resolution, touches });
            assert!(self.flights.len() <= 3 && self.pipeline.in_flight() == self.flights.len());
        }
    }

    fn batch(&mut self, at: usize, fate: Fate) {
        let flight = &mut self.flights[at];
        let first = flight.txn.is_some();
        let request = flight.txn.take().unwrap_or_else(|| flight.resolution.txn());
        let outcome = match fate {
            Fate::Answered => {
                let reply = self.model.apply(&request);
                Some(if first { Batch::judge(reply) } else { flight.resolution.judge(&reply) })
            }
            Fate::AnswerLost => {
                self.model.apply(&request);
                None
            }
            Fate::RequestLost => None,
            Fate::Delayed => {
                self.late.push(request);
                None
            }
            // etcd may say so of a transaction that it has applied: it is the slot that counts.
            Fate::NoSpace => {
                if self.submitted.is_multiple_of(2) {
                    self.model.apply(&request);
                }
                let slot = flight.resolution.judge_slot(self.model.kvs.get(flight.resolution.slot_key()));
                if first { Some(slot.unwrap_or(Outcome::NoSpace)) } else { slot }
            }
            Fate::Rejected => first.then(|| Outcome::Rejected { reason: "no".into() }),
        };
        if let Some(outcome) = outcome {
            let flight = self.flights.swap_remove(at);
            for Done { token, result, .. } in self.pipeline.finished(flight.id, outcome) {
                assert_eq!(self.done.insert(token, result), None, "{token} is done twice");
            }
        }
    }

    /// The network heals: everything is sent and answered, and at last all that was delayed arrives.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.send();
            if self.flights.is_empty() {
                break;
            }
            self.batch(0, Fate::Answered);
        }
        for txn in std::mem::take(&mut self.late) {
            self.model.apply(&txn);
        }
        assert!(self.pipeline.is_empty(), "everything is done with");
    }

    fn judge(&self) {
        let mut applied: HashMap<u64, Vec<Revision>> = HashMap::new();
        let mut order: HashMap<&[u8], Vec<u64>> = HashMap::new();
        for (revision, key, value) in &self.model.log {
            let token = || std::str::from_utf8(value).unwrap().parse::<u64>().unwrap();
            if key.starts_with(b"/own/") {
                applied.entry(token()).or_default().push(*revision);
            } else if key.starts_with(b"/k/") {
                order.entry(key).or_default().push(token());
            }
        }
        for token in 0..self.submitted {
            let applied = applied.get(&token).map_or(&[][..], Vec::as_slice);
            match &self.done[&token] {
                WriteResult::Committed { revision } => assert_eq!(applied, [*revision], "{token} is committed once"),
                WriteResult::Unknown => assert!(applied.len() <= 1, "{token} is unknown, and applied at most once"),
                result => assert_eq!(applied, [], "{token} is {result:?}"),
            }
        }
        for (key, tokens) in order {
            assert!(tokens.is_sorted(), "{}: written in the order {tokens:?}", String::from_utf8_lossy(key));
        }
    }
}

/// The limits of one transaction, and what it touches beside fence and slot.
fn check(txn: &Txn) -> Touches {
    assert!(txn.compares.len() <= MAX_OPS && txn.then.len() <= MAX_OPS && txn.otherwise.len() <= MAX_OPS);
    assert_eq!(txn.compares[0], Compare::CreateRevision { key: FENCE.to_vec(), equals: Revision(1) });
    let mut touches = Touches::default();
    let mut bytes = 0;
    for op in &txn.then {
        let (key, value) = match op {
            Op::Put { key, value, .. } => (key, value.len()),
            Op::Delete { key } => (key, 0),
            other => panic!("{other:?} in a batch"),
        };
        bytes += key.len() + value;
        assert!(touches.written.insert(key.clone()), "a key twice");
    }
    touches.written.retain(|key| !key.starts_with(SLOTS.as_bytes()));
    touches.compared.extend(txn.compares[2..].iter().map(|compare| compare.key().to_vec()));
    assert!(bytes < MAX_BYTES);
    touches
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_write_is_done_once_and_its_result_is_true(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.step(step));
        world.settle();
        world.judge();
    }

    #[test]
    fn the_loss_of_the_fence_ends_everything_and_no_result_is_false(
        before in prop::collection::vec(step(), 1..40),
        after in prop::collection::vec(step(), 1..20),
    ) {
        let mut world = World::new();
        before.into_iter().for_each(|step| world.step(step));
        world.step(Step::LoseFence);
        let lost_at = Revision(world.model.revision);
        after.into_iter().for_each(|step| world.step(step));
        world.settle();
        world.judge();
        let late = |(revision, key, _): &&(Revision, Vec<u8>, Vec<u8>)| *revision > lost_at && !key.starts_with(b"/compared/");
        prop_assert!(world.model.log.iter().find(late).is_none(), "nothing is written without the fence");
    }
}

fn put(token: u64, key: &str, size: usize) -> Write {
    Write { token, compares: vec![Compare::absent(key)], ops: vec![Op::put(key, vec![b'x'; size])], entry: None }
}

/// Submits, packs everything without an answer in between, and returns the sizes of the batches.
fn packed(writes: impl IntoIterator<Item = Write>) -> Vec<usize> {
    let mut pipeline = pipeline();
    writes.into_iter().for_each(|write| pipeline.submit(write).unwrap());
    let mut sizes = Vec::new();
    while let Some(batch) = pipeline.next_batch() {
        sizes.push(check(&batch.txn).written.len());
        let done = pipeline.finished(batch.id, Outcome::Applied { revision: Revision(9) });
        assert_eq!(done.len(), *sizes.last().unwrap());
    }
    sizes
}

#[test]
fn batches_are_as_large_as_the_limits_allow() {
    // 126 compares beside those of fence and slot.
    assert_eq!(packed((0..300).map(|n| put(n, &format!("/k/{n}"), 10))), [126, 126, 48]);
    // The same compare in all of them is made once: now 127 puts beside the slot's are the limit.
    let same = |n| Write { token: n, compares: vec![Compare::absent("/one")], ops: vec![Op::put(format!("/k/{n}"), "")], entry: None };
    assert_eq!(packed((0..300).map(same)), [127, 127, 46]);
    // 64 KiB each: fifteen of them are under a MiB.
    assert_eq!(packed((0..20).map(|n| put(n, &format!("/k/{n}"), 64 << 10))), [15, 5]);
}

#[test]
fn a_write_that_fits_no_transaction_is_refused_at_once() {
    let mut pipeline = pipeline();
    let too_large = |write| matches!(write, Err(SubmitError::TooLarge { .. }));
    assert!(too_large(pipeline.submit(put(1, "/k", MAX_BYTES))));
    let many = |n: usize| (0..n).map(|n| Op::put(format!("/k/{n}"), "")).collect();
    assert!(too_large(pipeline.submit(Write { token: 1, compares: vec![], ops: many(128), entry: None })));
    assert_eq!(pipeline.submit(Write { token: 1, compares: vec![], ops: many(127), entry: None }), Ok(()));
    let twice = Write { token: 1, compares: vec![], ops: vec![Op::put("/a", ""), Op::delete("/a")], entry: None };
    assert_eq!(pipeline.submit(twice), Err(SubmitError::KeyTwice { key: b"/a".to_vec() }));
    assert_eq!(pipeline.submit(Write { token: 1, compares: vec![], ops: vec![Op::get("/a")], entry: None }), Err(SubmitError::NotAWrite));
    assert_eq!(pipeline.len(), 1);
}

#[test]
fn a_write_goes_at_once_when_idle_and_together_with_others_when_not() {
    let mut pipeline = pipeline();
    let mut batches = Vec::new();
    for n in 0..10 {
        pipeline.submit(put(n, &format!("/k/{n}"), 1)).unwrap();
        batches.extend(pipeline.next_batch());
    }
    assert_eq!(batches.len(), 3, "as many as may be in flight, and no more");
    assert_eq!(pipeline.finished(batches[1].id, Outcome::Applied { revision: Revision(5) }).len(), 1);
    let next = pipeline.next_batch().unwrap();
    assert_eq!(check(&next.txn).written.len(), 7, "all that have waited");
    assert!(pipeline.finished(batches[1].id, Outcome::Void { slot: Revision(6) }).is_empty(), "it is no longer in flight");
}

#[test]
fn what_etcd_rejects_is_found_among_many() {
    let mut pipeline = pipeline();
    (0..5).for_each(|n| pipeline.submit(put(n, &format!("/k/{n}"), 1)).unwrap());
    let mut results = BTreeMap::new();
    while let Some(batch) = pipeline.next_batch() {
        let culprit = batch.txn.then.iter().any(|op| matches!(op, Op::Put { key, .. } if key == b"/k/3"));
        let outcome = if culprit { Outcome::Rejected { reason: "no".into() } } else { Outcome::Applied { revision: Revision(4) } };
        results.extend(pipeline.finished(batch.id, outcome).into_iter().map(|done| (done.token, done.result)));
    }
    let rejected: Vec<_> = results.iter().filter(|(_, result)| matches!(result, WriteResult::Rejected { .. })).collect();
    assert_eq!((results.len(), rejected.len(), *rejected[0].0), (5, 1, 3));
}

/// Sends what there is and answers it, until all is done; returns how many batches it took.
fn carried_out(model: &mut Model, pipeline: &mut Pipeline) -> usize {
    let mut sent = 0;
    while let Some(batch) = pipeline.next_batch() {
        sent += 1;
        assert!(sent < 100, "it goes round in circles");
        for done in pipeline.finished(batch.id, Batch::judge(model.apply(&batch.txn))) {
            assert!(matches!(done.result, WriteResult::Committed { .. }), "{done:?}");
        }
    }
    sent
}

#[test]
fn each_slot_goes_on_where_the_batch_before_has_left_it() {
    let (mut model, mut pipeline) = (Model::new(), pipeline());
    for n in 0..5 {
        pipeline.submit(put(n, &format!("/k/{n}"), 1)).unwrap();
        assert_eq!(carried_out(&mut model, &mut pipeline), 1, "no batch is refused for its slot");
    }
    pipeline.submit(put(5, "/k/5", 1)).unwrap();
    let lost = pipeline.next_batch().unwrap();
    let void = lost.resolution.judge(&model.apply(&lost.resolution.txn()));
    assert!(pipeline.finished(lost.id, void).is_empty());
    assert_eq!(carried_out(&mut model, &mut pipeline), 1, "not even after a void one");
}

#[test]
fn a_pipeline_that_comes_upon_used_slots_takes_them_as_they_are() {
    let (mut model, mut before) = (Model::new(), pipeline());
    for n in 0..2 {
        before.submit(put(n, &format!("/k/{n}"), 1)).unwrap();
        carried_out(&mut model, &mut before);
    }
    // The slot now names batch 2 of the first pipeline. The second one's batch 1 is refused for it, and batch 2 goes.
    let mut after = pipeline();
    after.submit(put(2, "/k/2", 1)).unwrap();
    let refused = after.next_batch().unwrap();
    assert!(after.finished(refused.id, Batch::judge(model.apply(&refused.txn))).is_empty());
    let second = after.next_batch().unwrap();
    let slot = model.kvs.get(second.resolution.slot_key());
    assert_eq!(second.resolution.judge_slot(slot), None, "what a batch of the same number has left is not this one's mark");
    assert!(matches!(Batch::judge(model.apply(&second.txn)), Outcome::Applied { .. }));
}

fn with_entry(token: u64, key: &str) -> Write {
    Write { token, compares: vec![], ops: vec![Op::put(key, "")], entry: Some(format!("{{\"n\":{token}}}").into_bytes()) }
}

#[test]
fn entries_are_written_with_their_writes_as_one_list_under_one_key() {
    let (mut model, mut pipeline) = (Model::new(), pipeline());
    for n in 0..4 {
        let write = with_entry(n, &format!("/k/{n}"));
        pipeline.submit(Write { entry: write.entry.filter(|_| n != 1), ..write }).unwrap();
    }
    let mut batches = vec![];
    let mut done = BTreeMap::new();
    while let Some(batch) = pipeline.next_batch() {
        let outcome = Batch::judge(model.apply(&batch.txn));
        done.extend(pipeline.finished(batch.id, outcome).into_iter().map(|done| (done.token, (done.result, done.journaled))));
        batches.push(batch.id);
    }
    assert_eq!(batches.len(), 1);
    let journal = model.kvs.get(b"/events/0000000000000001".as_slice()).unwrap();
    assert_eq!(String::from_utf8_lossy(&journal.value), r#"[{"n":0},{"n":2},{"n":3}]"#);
    let committed = WriteResult::Committed { revision: journal.created };
    assert!((0..4).all(|n| done[&n] == (committed.clone(), n != 1)), "{done:?}");

    pipeline.submit(put(4, "/k/4", 1)).unwrap();
    let batch = pipeline.next_batch().unwrap();
    assert_eq!(check(&batch.txn).written.len(), 1, "without entries nothing is put for them");
}

#[test]
fn an_entry_takes_its_place_in_the_batch() {
    // One operation for all entries of a batch: 126 puts beside slot and entries.
    let sizes = |entry: fn(u64) -> bool| {
        let writes = (0..140).map(|n| with_entry(n, &format!("/k/{n}"))).map(|write| {
            let entry = write.entry.filter(|_| entry(write.token));
            Write { entry, ..write }
        });
        let mut pipeline = pipeline();
        writes.for_each(|write| pipeline.submit(write).unwrap());
        std::iter::from_fn(|| pipeline.next_batch()).map(|batch| batch.txn.then.len()).collect::<Vec<_>>()
    };
    assert_eq!(sizes(|_| true), [MAX_OPS, 14 + 2]);
    assert_eq!(sizes(|n| n == 126), [MAX_OPS - 1, 14 + 2], "one that comes last finds no room for its entry");
    // Its bytes count: 64 KiB each, fifteen of them under a MiB.
    let long = |token| Write { entry: Some(vec![b'x'; 64 << 10]), ..with_entry(token, &format!("/k/{token}")) };
    let mut pipeline = pipeline();
    (0..20).for_each(|n| pipeline.submit(long(n)).unwrap());
    let sizes: Vec<usize> = std::iter::from_fn(|| pipeline.next_batch()).map(|batch| batch.txn.then.len() - 2).collect();
    assert_eq!(sizes, [15, 5]);
    let too_large = |write| matches!(write, Err(SubmitError::TooLarge { .. }));
    let many = |n: usize| (0..n).map(|n| Op::put(format!("/m/{n}"), "")).collect();
    assert!(too_large(pipeline.submit(Write { ops: many(127), ..with_entry(30, "") })));
    assert_eq!(pipeline.submit(Write { ops: many(126), ..with_entry(30, "") }), Ok(()));
    assert!(too_large(pipeline.submit(Write { entry: Some(vec![b'x'; MAX_BYTES]), ..with_entry(31, "/n") })));
}

#[test]
fn a_conflict_tells_what_stands_and_at_which_revision() {
    let (mut model, mut pipeline) = (Model::new(), pipeline());
    model.apply(&Txn { then: vec![Op::put("/taken", "by another")], ..Txn::default() });
    let modified = Compare::ModRevision { key: b"/taken".to_vec(), equals: Revision(0) };
    let compares = vec![Compare::absent("/taken"), Compare::absent("/free"), modified];
    pipeline.submit(Write { token: 1, compares, ops: vec![Op::put("/k/1", "")], entry: None }).unwrap();
    pipeline.submit(Write { token: 2, compares: vec![Compare::absent("/other")], ops: vec![], entry: None }).unwrap();
    let batch = pipeline.next_batch().unwrap();
    let at = Revision(model.revision);
    let done = pipeline.finished(batch.id, Batch::judge(model.apply(&batch.txn)));
    let found = |key: &str| Found { key: key.into(), kv: model.kvs.get(key.as_bytes()).cloned() };
    let result = WriteResult::Conflict { at, found: vec![found("/taken"), found("/free")] };
    assert_eq!(done, [Done { token: 1, result, journaled: false }], "each key once, and none of the other write's");
    assert_eq!(carried_out(&mut model, &mut pipeline), 1, "the other one goes again");
}

#[test]
fn what_is_in_no_batch_under_way_can_be_taken_back() {
    let mut pipeline = Pipeline::new(PipelineConfig { in_flight: 1, ..config() });
    pipeline.submit(put(1, "/k/1", 1)).unwrap();
    let batch = pipeline.next_batch().unwrap();
    // One waits for a batch, one for the key that is under way, one for both and for the key of another that waits.
    pipeline.submit(put(2, "/k/2", 1)).unwrap();
    pipeline.submit(put(3, "/k/1", 1)).unwrap();
    let both = vec![Op::put("/k/1", ""), Op::put("/k/2", ""), Op::put("/k/4", "")];
    pipeline.submit(Write { token: 4, compares: vec![], ops: both, entry: None }).unwrap();
    assert_eq!(pipeline.withdraw_unsent(), [2, 3, 4]);
    assert_eq!((pipeline.len(), pipeline.withdraw_unsent()), (1, vec![]));
    // Their keys are free again; that of the write under way is not.
    pipeline.submit(put(5, "/k/1", 1)).unwrap();
    pipeline.submit(put(6, "/k/4", 1)).unwrap();
    let done = pipeline.finished(batch.id, Outcome::Void { slot: Revision(4) });
    assert_eq!(done, []);
    let again = pipeline.next_batch().unwrap();
    assert_eq!(check(&again.txn).written.len(), 2, "the write of the void batch, and the one whose key is free");
    let done = pipeline.finished(again.id, Outcome::Applied { revision: Revision(5) });
    assert_eq!(done.iter().map(|done| done.token).collect::<Vec<_>>(), [1, 6]);
    assert!(pipeline.next_batch().is_some_and(|last| check(&last.txn).written.len() == 1));
}

//! The pipeline case by case: what a batch holds, who is to blame for a refusal, how a slot goes on.

use std::collections::BTreeMap;

use evenkeel_store::{
    Batch, Compare, Done, Found, MAX_BYTES, MAX_OPS, Op, Outcome, Pipeline, PipelineConfig, Revision, SubmitError, Txn, Write, WriteResult,
};

use crate::model::{Model, check, config, pipeline};

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
        for done in pipeline.finished(batch.id, Batch::judge(model.apply(&batch.txn), false)) {
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
    let resolution = lost.resolution.as_ref().unwrap();
    let void = resolution.judge(&model.apply(&resolution.txn()));
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
    assert!(after.finished(refused.id, Batch::judge(model.apply(&refused.txn), false)).is_empty());
    let second = after.next_batch().unwrap();
    let resolution = second.resolution.as_ref().unwrap();
    let slot = model.kvs.get(resolution.slot_key());
    assert_eq!(resolution.judge_slot(slot), None, "what a batch of the same number has left is not this one's mark");
    assert!(matches!(Batch::judge(model.apply(&second.txn), false), Outcome::Applied { .. }));
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
        let outcome = Batch::judge(model.apply(&batch.txn), false);
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

/// Entries have numbers within their key, of which there are a thousand.
#[test]
fn what_has_nothing_but_an_entry_takes_a_place_as_well() {
    let alone = |token| Write { ops: Vec::new(), ..with_entry(token, "") };
    let mut pipeline = pipeline();
    (0..300).for_each(|token| pipeline.submit(alone(token)).unwrap());
    let mut sizes = Vec::new();
    while let Some(batch) = pipeline.next_batch() {
        sizes.push(pipeline.finished(batch.id, Outcome::Applied { revision: Revision(9) }).len());
    }
    assert_eq!(sizes, [128, 128, 44]);
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
    let done = pipeline.finished(batch.id, Batch::judge(model.apply(&batch.txn), false));
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

//! The pipeline while etcd has no space: what puts nothing goes on, and its outcome is true although its batch has no slot.

use std::collections::BTreeMap;

use evenkeel_store::{Batch, Compare, Done, Found, Op, Outcome, Pipeline, Revision, Write, WriteResult};

use crate::model::{Model, check, pipeline};

/// A pipeline that knows that there is no space, in a model where that is so.
fn without_space() -> (Model, Pipeline) {
    let (mut model, mut pipeline) = (Model::new(), pipeline());
    model.no_space = true;
    pipeline.submit(put(0)).unwrap();
    let done = carried_out(&mut model, &mut pipeline);
    assert_eq!(done[&0], (WriteResult::NoSpace, false));
    (model, pipeline)
}

/// Sends what there is and answers it, until all is done.
fn carried_out(model: &mut Model, pipeline: &mut Pipeline) -> BTreeMap<u64, (WriteResult, bool)> {
    let mut all = BTreeMap::new();
    for _ in 0..100 {
        let Some(batch) = pipeline.next_batch() else { return all };
        check(&batch.txn);
        let outcome = model.ask(&batch.txn).map_or(Outcome::NoSpace, |reply| Batch::judge(reply, false));
        all.extend(pipeline.finished(batch.id, outcome).into_iter().map(|done| (done.token, (done.result, done.journaled))));
    }
    panic!("it goes round in circles");
}

fn entry(token: u64) -> Option<Vec<u8>> {
    Some(format!("{{\"n\":{token}}}").into_bytes())
}

fn put(token: u64) -> Write {
    Write { token, compares: vec![], ops: vec![Op::put(format!("/put/{token}"), "")], entry: entry(token) }
}

/// Deletes a key that stands, as long as it is not written meanwhile.
fn delete(model: &mut Model, token: u64) -> Write {
    let key = format!("/k/{token}");
    model.put(&key);
    let equals = model.kvs[key.as_bytes()].modified;
    let compares = vec![Compare::ModRevision { key: key.clone().into(), equals }];
    Write { token, compares, ops: vec![Op::delete(key)], entry: entry(token) }
}

fn is_committed(done: &(WriteResult, bool)) -> bool {
    matches!(done.0, WriteResult::Committed { .. })
}

#[test]
fn a_refusal_for_space_concerns_only_what_needs_it() {
    let (mut model, mut pipeline) = (Model::new(), pipeline());
    model.no_space = true;
    let both = delete(&mut model, 5);
    for write in [
        put(1),
        delete(&mut model, 2),
        Write { token: 3, compares: vec![Compare::absent("/none")], ops: vec![], entry: None },
        Write { token: 4, compares: vec![], ops: vec![], entry: entry(4) },
        Write { ops: [both.ops, put(5).ops].concat(), ..both },
    ] {
        pipeline.submit(write).unwrap();
    }
    let done = carried_out(&mut model, &mut pipeline);
    let refused: Vec<u64> = done.iter().filter(|(_, done)| done.0 == WriteResult::NoSpace).map(|(token, _)| *token).collect();
    assert_eq!(refused, [1, 4, 5], "{done:?}");
    assert!(is_committed(&done[&2]) && !done[&2].1 && is_committed(&done[&3]), "{done:?}");
    assert!(!model.kvs.contains_key(b"/k/2".as_slice()) && model.kvs.contains_key(b"/k/5".as_slice()));
}

/// The answers to all batches in flight are lost, somebody fills the quota, and the marks that would settle them find no space.
#[test]
fn batches_that_wait_for_space_hold_up_nothing_that_needs_none() {
    let (mut model, mut pipeline) = (Model::new(), pipeline());
    let mut stuck = Vec::new();
    for token in 0..3 {
        pipeline.submit(put(token)).unwrap();
        stuck.push(pipeline.next_batch().expect("a slot").id);
    }
    let gone = delete(&mut model, 10);
    pipeline.submit(gone).unwrap();
    pipeline.submit(Write { token: 11, compares: vec![Compare::absent("/none")], ops: vec![], entry: None }).unwrap();
    assert!(pipeline.next_batch().is_none(), "as far as is known they will be settled soon");
    model.no_space = true;
    for id in &stuck {
        assert_eq!(pipeline.finished(*id, Outcome::WaitsForSpace), [], "it is not known what became of them");
    }
    let done = carried_out(&mut model, &mut pipeline);
    assert!(is_committed(&done[&10]) && is_committed(&done[&11]), "{done:?}");
    let late: Vec<u64> =
        stuck.iter().flat_map(|id| pipeline.finished(*id, Outcome::Applied { revision: Revision(99) })).map(|d| d.token).collect();
    assert_eq!(late, [0, 1, 2]);
}

#[test]
fn with_space_batches_have_their_marks_and_entries_again() {
    let (mut model, mut pipeline) = without_space();
    model.no_space = false;
    let before = delete(&mut model, 1);
    pipeline.submit(before).unwrap();
    assert!(!carried_out(&mut model, &mut pipeline)[&1].1, "nothing has shown yet that there is space");
    pipeline.submit(put(2)).unwrap();
    assert!(carried_out(&mut model, &mut pipeline)[&2].1);
    let after = delete(&mut model, 3);
    pipeline.submit(after).unwrap();
    let done = carried_out(&mut model, &mut pipeline);
    assert!(is_committed(&done[&3]) && done[&3].1, "{done:?}");
}

#[test]
fn what_could_do_harm_when_sent_again_waits_for_space() {
    let (mut model, mut pipeline) = without_space();
    let [blind, mut absent] = [1, 2].map(|token| delete(&mut model, token));
    absent.compares.push(Compare::absent("/none"));
    pipeline.submit(Write { compares: vec![], ..blind }).unwrap();
    pipeline.submit(absent).unwrap();
    let done = carried_out(&mut model, &mut pipeline);
    assert!(done.values().all(|done| done.0 == WriteResult::NoSpace), "{done:?}");
}

#[test]
fn each_kind_goes_in_batches_of_its_own() {
    let (mut model, mut pipeline) = without_space();
    for token in (1..300).step_by(3) {
        let check = Write { token: token + 2, compares: vec![Compare::absent("/none")], ops: vec![], entry: None };
        [put(token), delete(&mut model, token + 1), check].into_iter().for_each(|write| pipeline.submit(write).unwrap());
    }
    let batches: Vec<Batch> = std::iter::from_fn(|| pipeline.next_batch()).collect();
    let sizes: Vec<(bool, usize)> = batches.iter().map(|batch| (batch.resolution.is_some(), check(&batch.txn).written.len())).collect();
    assert_eq!(sizes, [(true, 100), (false, 100), (false, 0)]);
    for batch in batches.iter().skip(1) {
        assert!(batch.txn.otherwise.iter().all(|op| matches!(op, Op::Get { .. })), "a put in either branch needs space");
    }
}

#[test]
fn what_needs_no_space_waits_for_no_batch_whose_outcome_needs_some() {
    let (mut model, mut pipeline) = (Model::new(), pipeline());
    // Their answers are lost, and while there is no space nothing can be put into their slots.
    let lost: Vec<Batch> = (0..3).filter_map(|token| pipeline.submit(put(token)).ok().and_then(|()| pipeline.next_batch())).collect();
    model.no_space = true;
    assert!(lost.iter().all(|batch| model.ask(&batch.resolution.as_ref().unwrap().txn()).is_none()));
    // One of them is known to have had no space; its slot is taken again by the next.
    assert_eq!(pipeline.finished(lost[0].id, Outcome::NoSpace).len(), 1);
    pipeline.submit(put(3)).unwrap();
    let stuck = pipeline.next_batch().unwrap();
    let deletions: Vec<Write> = (4..8).map(|token| delete(&mut model, token)).collect();
    deletions.into_iter().for_each(|write| pipeline.submit(write).unwrap());
    let done = carried_out(&mut model, &mut pipeline);
    assert!(done.len() == 4 && done.values().all(is_committed), "{done:?}");
    assert!(pipeline.next_batch().is_none() && pipeline.in_flight() == 3);
    assert_eq!(pipeline.finished(stuck.id, Outcome::NoSpace).len(), 1);
}

/// Sends a deletion twice, and does something before the second time; what has become of it.
fn sent_twice(first_arrives: bool, meanwhile: impl FnOnce(&mut Model)) -> (WriteResult, Model) {
    let (mut model, mut pipeline) = without_space();
    let write = delete(&mut model, 1);
    pipeline.submit(write).unwrap();
    let batch = pipeline.next_batch().unwrap();
    if first_arrives {
        model.ask(&batch.txn).unwrap();
    }
    meanwhile(&mut model);
    let reply = model.ask(&batch.txn).unwrap();
    let mut done = pipeline.finished(batch.id, Batch::judge(reply, true));
    // However late another copy comes, it changes nothing.
    let before = model.kvs.clone();
    model.ask(&batch.txn).unwrap();
    assert_eq!(model.kvs, before);
    (done.pop().unwrap().result, model)
}

#[test]
fn a_lost_answer_is_made_up_for_by_sending_again() {
    let (result, model) = sent_twice(true, |_| ());
    assert_eq!(result, WriteResult::Committed { revision: Revision(model.revision) });
    let (result, _) = sent_twice(false, |_| ());
    assert!(matches!(result, WriteResult::Committed { .. }));
    // Somebody else has deleted it: the same to whoever wanted that.
    let (result, _) = sent_twice(false, |model| drop(model.kvs.remove(b"/k/1".as_slice())));
    assert!(matches!(result, WriteResult::Committed { .. }));
    // What stands there is not what was to be deleted, and nobody can tell who has deleted that.
    for first_arrives in [true, false] {
        let (result, model) = sent_twice(first_arrives, |model| {
            model.kvs.remove(b"/k/1".as_slice());
            model.put("/k/1");
        });
        assert_eq!(result, WriteResult::Unknown);
        assert!(model.kvs.contains_key(b"/k/1".as_slice()));
    }
    let (result, _) = sent_twice(true, Model::lose_fence);
    assert_eq!(result, WriteResult::Unknown);
    let (result, _) = sent_twice(false, Model::lose_fence);
    assert_eq!(result, WriteResult::FenceLost, "the key is as it was, so it was not deleted");
}

#[test]
fn a_conflict_after_a_lost_answer_is_told_if_a_neighbour_shows_that_nothing_was_done() {
    let (mut model, mut pipeline) = without_space();
    for token in [1, 2] {
        let write = delete(&mut model, token);
        pipeline.submit(write).unwrap();
    }
    let batch = pipeline.next_batch().unwrap();
    model.kvs.remove(b"/k/1".as_slice());
    let reply = model.ask(&batch.txn).unwrap();
    let at = reply.revision;
    let done = pipeline.finished(batch.id, Batch::judge(reply, true));
    let found = vec![Found { key: b"/k/1".to_vec(), kv: None }];
    assert_eq!(done, [Done { token: 1, result: WriteResult::Conflict { at, found }, journaled: false }]);
    assert!(is_committed(&carried_out(&mut model, &mut pipeline)[&2]));
}

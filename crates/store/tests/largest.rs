//! The largest resource that all limits let through fits a transaction together with its assignment, with room to spare.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use evenkeel_model::{
    Decision, Draft, Entry, Guard, Key, Record, Revision, WorkerId, Write as Wanted,
    limits::{MAX_ADDRESS, MAX_LABEL, MAX_LABELS, MAX_NAME, MAX_PREFERENCES, MAX_RECORD, MAX_SELECTOR, MAX_SPEC, MAX_WEIGHT},
};
use evenkeel_store::{MAX_BYTES, Pipeline, PipelineConfig, Write, codec, keys::Keys};
use serde_json::json;

/// A selector that is as long as any may be, and that any labels satisfy.
fn selector(mark: char) -> String {
    let terms: String = (0..32).map(|n| format!("{mark}{n:02}!={},", "v".repeat(249))).collect();
    let selector = format!("{terms}z!={}", "v".repeat(29));
    assert_eq!(selector.len(), MAX_SELECTOR);
    selector
}

#[test]
fn the_largest_resource_fits_a_transaction_with_its_assignment() {
    let name = "n".repeat(MAX_NAME);
    let spec = json!({"a": "x".repeat(MAX_SPEC - r#"{"a":""}"#.len())});
    let draft = Draft {
        name: name.clone(),
        kind: name.clone(),
        weight: Some(u64::from(MAX_WEIGHT)),
        labels: (0..MAX_LABELS).map(|n| (format!("{n:0MAX_LABEL$}"), "v".repeat(MAX_LABEL))).collect(),
        require: selector('r'),
        prefer: (0..MAX_PREFERENCES).map(|_| json!({"selector": selector('p'), "weight": 1_000_000})).collect(),
        pin: name.clone(),
        spread: "s".repeat(MAX_LABEL),
        together: selector('t'),
        apart: selector('a'),
        policy: "weighted-round-robin".to_owned(),
        rebalance: "never".to_owned(),
        ownership: "available".to_owned(),
        spec: Some(spec),
    };
    let definition = draft.check().expect("it is within all limits");
    let worker = WorkerId::new(&name).unwrap();
    let record = Record {
        id: u64::MAX,
        creation_time: i64::MAX,
        assigned_node: Record::node(&worker, &"h".repeat(MAX_ADDRESS)),
        source: name.clone().into(),
        finished: None,
        failed: None,
        definition: definition.clone(),
    };
    assert!(codec::json(&record).len() < MAX_RECORD, "{} bytes", codec::json(&record).len());
    let guards = vec![Guard::Modified(Key::Resource(definition.name.clone()), Revision::default())];
    let mut decision = Decision { guards, writes: vec![Wanted::new(Entry::Resource(definition.name.clone(), Some(record)))] };
    decision.assign(&definition, &worker, evenkeel_model::Holds::Strict);
    let (compares, ops) = codec::encode(&Keys::new("/prefix"), &decision);
    let write = Write { token: 1, compares, ops, entry: None };
    let mut pipeline = Pipeline::new(PipelineConfig {
        fence_key: b"/election/1".to_vec(),
        fence: Revision(1),
        lease: 7,
        slot_prefix: b"/writers/1/".to_vec(),
        journal_prefix: b"/events/".to_vec(),
        in_flight: 1,
    });
    pipeline.submit(write).expect("it fits");
    let txn = pipeline.next_batch().expect("a batch").txn;
    let values = txn.then.iter().map(|op| if let evenkeel_store::Op::Put { value, .. } = op { value.len() } else { 0 });
    let bytes: usize = values.sum();
    assert!(bytes < MAX_BYTES / 2, "{bytes} bytes: half of what a transaction takes, so that limits can still grow");
}

//! A small model of etcd, as far as the pipeline needs it, and what every transaction of a pipeline keeps to.

use std::collections::{BTreeMap, BTreeSet};

use evenkeel_store::{Compare, Kv, MAX_BYTES, MAX_OPS, Op, Pipeline, PipelineConfig, Revision, Txn, TxnReply};

pub(crate) const FENCE: &[u8] = b"/election/1";
pub(crate) const SLOTS: &str = "/commit/1/";

pub(crate) fn pipeline() -> Pipeline {
    Pipeline::new(config())
}

pub(crate) fn config() -> PipelineConfig {
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
pub(crate) struct Model {
    pub(crate) revision: i64,
    pub(crate) kvs: BTreeMap<Vec<u8>, Kv>,
    /// It takes no puts.
    pub(crate) no_space: bool,
    /// Every put and every deletion that was applied.
    pub(crate) log: Vec<Logged>,
}

pub(crate) struct Logged {
    pub(crate) revision: Revision,
    pub(crate) key: Vec<u8>,
    /// None: it was deleted.
    pub(crate) value: Option<Vec<u8>>,
}

impl Model {
    pub(crate) fn new() -> Self {
        let mut model = Self { revision: 0, kvs: BTreeMap::new(), no_space: false, log: Vec::new() };
        model.apply(&Txn { then: vec![Op::put(FENCE, "leader")], ..Txn::default() });
        model
    }

    /// Carries a transaction out, if it has the space for it.
    pub(crate) fn ask(&mut self, txn: &Txn) -> Option<TxnReply> {
        let puts = txn.then.iter().chain(&txn.otherwise).any(|op| matches!(op, Op::Put { .. }));
        (!self.no_space || !puts).then(|| self.apply(txn))
    }

    /// Somebody else puts a key.
    pub(crate) fn put(&mut self, key: &str) {
        self.revision += 1;
        let (key, at) = (key.as_bytes().to_vec(), Revision(self.revision));
        let created = self.kvs.get(&key).map_or(at, |kv| kv.created);
        self.kvs.insert(key.clone(), Kv { key, value: b"another's".to_vec(), created, modified: at, lease: 0 });
    }

    pub(crate) fn apply(&mut self, txn: &Txn) -> TxnReply {
        let succeeded = txn.compares.iter().all(|compare| compare.holds(self.kvs.get(compare.key())));
        let mut reads = Vec::new();
        let next = self.revision + 1;
        for op in if succeeded { &txn.then } else { &txn.otherwise } {
            match op {
                Op::Put { key, value, lease } => {
                    let created = self.kvs.get(key).map_or(Revision(next), |kv| kv.created);
                    self.log.push(Logged { revision: Revision(next), key: key.clone(), value: Some(value.clone()) });
                    let kv = Kv { key: key.clone(), value: value.clone(), created, modified: Revision(next), lease: *lease };
                    self.kvs.insert(key.clone(), kv);
                    self.revision = next;
                }
                Op::Delete { key } => {
                    if self.kvs.remove(key).is_some() {
                        self.revision = next;
                    }
                    // Also if there was nothing to delete: it was carried out.
                    self.log.push(Logged { revision: Revision(self.revision), key: key.clone(), value: None });
                }
                Op::Get { key } => reads.push(self.kvs.get(key).cloned().into_iter().collect()),
                Op::DeleteRange { .. } | Op::Range { .. } => panic!("the pipeline has no use for ranges"),
            }
        }
        TxnReply { succeeded, revision: Revision(self.revision), reads }
    }

    /// The leader's lease is gone, and with it the election key and the slots.
    pub(crate) fn lose_fence(&mut self) {
        self.revision += 1;
        self.kvs.retain(|key, _| key != FENCE && !key.starts_with(SLOTS.as_bytes()));
    }
}

#[derive(Default)]
pub(crate) struct Touches {
    pub(crate) written: BTreeSet<Vec<u8>>,
    pub(crate) compared: BTreeSet<Vec<u8>>,
}
pub(crate) fn is_slot(key: &[u8]) -> bool {
    key.starts_with(SLOTS.as_bytes())
}

/// The limits of one transaction, and what it touches beside fence, slot and entries.
pub(crate) fn check(txn: &Txn) -> Touches {
    assert!(txn.compares.len() <= MAX_OPS && txn.then.len() <= MAX_OPS && txn.otherwise.len() <= MAX_OPS);
    assert_eq!(txn.compares[0], Compare::CreateRevision { key: FENCE.to_vec(), equals: Revision(1) });
    let marked = matches!(txn.then.first(), Some(Op::Put { key, .. }) if is_slot(key));
    let mut touches = Touches::default();
    let mut bytes = 0;
    for op in &txn.then {
        let (key, value) = match op {
            Op::Put { key, value, .. } if marked => (key, value.len()),
            Op::Delete { key } => (key, 0),
            other => panic!("{other:?} in a batch"),
        };
        bytes += key.len() + value;
        assert!(touches.written.insert(key.clone()), "a key twice");
    }
    touches.written.retain(|key| !is_slot(key) && !key.starts_with(b"/events/"));
    touches.compared.extend(txn.compares[if marked { 2 } else { 1 }..].iter().map(|compare| compare.key().to_vec()));
    assert!(bytes < MAX_BYTES);
    touches
}

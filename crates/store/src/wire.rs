//! Our plain types to and from those of the etcd client.
//!
//! In the wheel this is the seam behind the connection. It converts and decides nothing.

use etcd_client as etcd;
use evenkeel_model::Revision;

use crate::{
    mirror::KeyChange,
    transport::RangeRequest,
    types::{Compare, KeyRange, Kv, Op, Txn, TxnReply},
};

pub(crate) fn kv(kv: etcd::KeyValue) -> Kv {
    let (created, modified, lease) = (Revision(kv.create_revision()), Revision(kv.mod_revision()), kv.lease());
    let (key, value) = kv.into_key_value();
    Kv { key, value, created, modified, lease }
}

pub(crate) fn kvs(kvs: Vec<etcd::KeyValue>) -> Vec<Kv> {
    kvs.into_iter().map(kv).collect()
}

/// The store's revision in the header of an answer. Every answer of etcd has a header.
pub(crate) fn revision(header: Option<&etcd::ResponseHeader>) -> Revision {
    Revision(header.map_or(0, etcd::ResponseHeader::revision))
}

/// A read: its key and its options.
pub(crate) fn range(request: RangeRequest) -> (Vec<u8>, etcd::GetOptions) {
    let RangeRequest { range, revision, limit, keys_only } = request;
    let (start, mut options) = range_of(range);
    options = options.with_revision(revision.0).with_limit(limit);
    (start, if keys_only { options.with_keys_only() } else { options })
}

fn range_of(range: KeyRange) -> (Vec<u8>, etcd::GetOptions) {
    let options = etcd::GetOptions::new();
    (range.start, if range.end.is_empty() { options } else { options.with_range(range.end) })
}

/// A transaction that etcd carries out linearizably. etcd takes one without any operation for a serializable read and answers it from
/// what the member happens to know, so such a transaction is given a read, whose result is dropped again by [`reply`].
pub(crate) fn txn(txn: Txn) -> etcd::Txn {
    let then: Vec<etcd::TxnOp> = if txn.then.is_empty() && txn.otherwise.is_empty() {
        let key = txn.compares.first().map_or_else(|| vec![0], |c| c.key().to_vec());
        vec![etcd::TxnOp::get(key, Some(etcd::GetOptions::new().with_keys_only()))]
    } else {
        ops(txn.then)
    };
    etcd::Txn::new().when(txn.compares.into_iter().map(compare).collect::<Vec<_>>()).and_then(then).or_else(ops(txn.otherwise))
}

/// The answer to a transaction; `reads` is false if it had no operations of its own.
pub(crate) fn reply(response: &etcd::TxnResponse, reads: bool) -> TxnReply {
    let found = |response| match response {
        etcd::TxnOpResponse::Get(mut get) => Some(kvs(get.take_kvs())),
        _ => None,
    };
    TxnReply {
        succeeded: response.succeeded(),
        revision: revision(response.header()),
        reads: if reads { response.op_responses().into_iter().filter_map(found).collect() } else { Vec::new() },
    }
}

/// One event of a watch; none if etcd sent an event without a key, which it does not do.
pub(crate) fn change(event: &etcd::Event) -> Option<KeyChange> {
    let kv = event.kv()?;
    Some(match event.event_type() {
        etcd::EventType::Put => KeyChange::Put(Kv {
            key: kv.key().to_vec(),
            value: kv.value().to_vec(),
            created: Revision(kv.create_revision()),
            modified: Revision(kv.mod_revision()),
            lease: kv.lease(),
        }),
        etcd::EventType::Delete => KeyChange::Delete { key: kv.key().to_vec(), revision: Revision(kv.mod_revision()) },
    })
}

fn compare(compare: Compare) -> etcd::Compare {
    match compare {
        Compare::CreateRevision { key, equals } => etcd::Compare::create_revision(key, etcd::CompareOp::Equal, equals.0),
        Compare::ModRevision { key, equals } => etcd::Compare::mod_revision(key, etcd::CompareOp::Equal, equals.0),
    }
}

fn ops(ops: Vec<Op>) -> Vec<etcd::TxnOp> {
    ops.into_iter().map(op).collect()
}

fn op(op: Op) -> etcd::TxnOp {
    match op {
        Op::Put { key, value, lease } => {
            let options = (lease != 0).then(|| etcd::PutOptions::new().with_lease(lease));
            etcd::TxnOp::put(key, value, options)
        }
        Op::Delete { key } => etcd::TxnOp::delete(key, None),
        Op::DeleteRange { range } => {
            let options = (!range.end.is_empty()).then(|| etcd::DeleteOptions::new().with_range(range.end));
            etcd::TxnOp::delete(range.start, options)
        }
        Op::Get { key } => etcd::TxnOp::get(key, None),
        Op::Range { range } => {
            let (start, options) = range_of(range);
            etcd::TxnOp::get(start, Some(options))
        }
    }
}

//! The model of etcd against the real one where it takes time, space or size: limits of a transaction, leases that expire, a full database.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "conformance/sides.rs"]
mod sides;

use std::{
    fmt::Debug,
    sync::Arc,
    time::{Duration, Instant},
};

use evenkeel_sim::etcd::Refusal;
use evenkeel_store::{Client, Compare, Error, KeyChange, KeyRange, Op, RangeRequest, Revision, Transport, Txn, WatchMessage};
use sides::{Model, Real, Side, kind};

const SECOND: Duration = Duration::from_secs(1);

fn both(flags: &[&str]) -> (Real, Model) {
    let real = Real::start(flags);
    let model = Model::start(real.clean(), real.version, 1);
    (real, model)
}

/// What a call came to, without revisions and names.
fn said<T: Debug>(done: Result<T, Error>) -> String {
    match done {
        Ok(done) => format!("{done:?}"),
        Err(error) => kind(&error),
    }
}

fn then(ops: Vec<Op>) -> Txn {
    Txn { then: ops, ..Txn::default() }
}

fn puts(count: usize) -> Vec<Op> {
    (0..count).map(|n| Op::put(format!("p{n}"), "")).collect()
}

/// A name for each transaction, and how each side is to answer.
fn limits() -> Vec<(&'static str, Txn, Result<bool, Refusal>)> {
    let compares = |count| (0..count).map(|n| Compare::absent(format!("none{n}"))).collect();
    let delete_range = |start: &str, end: &[u8]| Op::DeleteRange { range: KeyRange::between(start, end) };
    let bytes = |size: usize| then(vec![Op::put("big", vec![0; size])]);
    let duplicate = Err(Refusal::DuplicateKey);
    vec![
        ("nothing", Txn::default(), Ok(true)),
        ("only a compare that holds", Txn { compares: compares(1), ..Txn::default() }, Ok(true)),
        ("as many operations as it takes", then(puts(128)), Ok(true)),
        ("one more", then(puts(129)), Err(Refusal::TooManyOperations)),
        ("as many compares as it takes", Txn { compares: compares(128), ..Txn::default() }, Ok(true)),
        ("one more compare", Txn { compares: compares(129), ..Txn::default() }, Err(Refusal::TooManyOperations)),
        ("too many in the branch not taken", Txn { otherwise: puts(129), ..Txn::default() }, Err(Refusal::TooManyOperations)),
        ("a key put twice", then(vec![Op::put("k", "1"), Op::put("k", "2")]), duplicate),
        (
            "a key put twice in the branch not taken",
            Txn { otherwise: vec![Op::put("k", "1"), Op::put("k", "2")], ..Txn::default() },
            duplicate,
        ),
        ("a key in each branch", Txn { then: puts(1), otherwise: puts(1), ..Txn::default() }, Ok(true)),
        ("a key put and deleted", then(vec![Op::put("k", "1"), Op::delete("k")]), duplicate),
        ("a key deleted and put", then(vec![Op::delete("k"), Op::put("k", "1")]), duplicate),
        ("a key deleted twice", then(vec![Op::delete("p1"), Op::delete("p1")]), Ok(true)),
        ("a key put in a range that is deleted", then(vec![delete_range("a", b"z"), Op::put("k", "")]), duplicate),
        ("a key put beside a range that is deleted", then(vec![delete_range("a", b"k"), Op::put("k", "")]), Ok(true)),
        ("a key put in an open range that is deleted", then(vec![delete_range("a", &[0]), Op::put("k", "")]), Ok(true)),
        ("a key put, then an open range deleted", then(vec![Op::put("k", ""), delete_range("a", &[0])]), Ok(true)),
        ("ranges deleted that overlap", then(vec![delete_range("a", b"m"), delete_range("b", b"z")]), Ok(true)),
        ("no key", then(vec![Op::get("")]), Err(Refusal::EmptyKey)),
        ("no key in a compare", Txn { compares: vec![Compare::absent("")], ..Txn::default() }, Err(Refusal::EmptyKey)),
        ("a megabyte", bytes(1 << 20), Ok(true)),
        ("more bytes than it takes", bytes((3 << 19) + 1), Err(Refusal::TooLarge)),
    ]
}

#[test]
fn the_limits_of_a_transaction_are_those_of_etcd() {
    let (real, model) = both(&[]);
    for (name, txn, expected) in limits() {
        let expected = expected.map_err(|refusal| kind(&refusal.error("")));
        for side in [&real.side, &model.side] {
            let done = side.run(side.member.txn(txn.clone())).unwrap();
            let done = done.map(|reply| reply.succeeded).map_err(|error| kind(&error));
            assert_eq!(done, expected, "{}: {name}", side.name);
        }
        let revision = |side: &Side| side.run(side.member.range(RangeRequest::all(KeyRange::prefix("")))).unwrap().unwrap();
        assert_eq!(revision(&real.side), revision(&model.side), "{name}");
    }
}

/// What becomes of two leases, one of which is extended: everything that a caller sees of it, and how long it took on the side's clock.
async fn expiry(member: Arc<dyn Transport>, now: impl Fn() -> Duration) -> (Vec<String>, Duration) {
    let client = Client::over(vec![member.clone()], SECOND);
    let mut seen = Vec::new();
    let shortest = member.grant(0).await.unwrap();
    let start = now();
    let (short, long) = (member.grant(3).await.unwrap(), member.grant(60).await.unwrap());
    seen.push(format!("{:?} {:?} {:?}", shortest.ttl, short.ttl, long.ttl));
    let granted = now();
    let put = |key: &str, lease| Op::Put { key: key.into(), value: vec![], lease };
    let ops = ["/l/c", "/l/a", "/l/b", "/l/moves", "/l/again"].map(|key| put(key, short.lease));
    let created = client.txn(then(ops.to_vec()), SECOND).await.unwrap().revision;
    client.txn(then(vec![put("/l/moves", long.lease), Op::delete("/l/again")]), SECOND).await.unwrap();
    // These are bound no more.
    client.txn(then(vec![put("/l/b", 0), put("/l/again", 0)]), SECOND).await.unwrap();
    let (asked, left, answered) = (now(), client.remaining(long.lease).await.unwrap().unwrap(), now());
    let (least, most) = (long.ttl - (answered - start), long.ttl - asked.saturating_sub(granted));
    assert!(least.as_secs() <= left.as_secs() && left.as_secs() <= most.as_secs(), "{left:?}, rounded down, is in {least:?}..{most:?}");
    assert!(left < long.ttl, "some of it is over");
    let mut watch = member.watch(KeyRange::prefix("/l/"), Revision(created.0 + 3)).await.unwrap();
    let message = watch.next().await.unwrap();
    let lived = now() - start;
    let WatchMessage::Changes(changes) = message else { panic!("{message:?}") };
    seen.push(format!("{:?}", changes.iter().map(|c| (c.key().to_vec(), c.revision().0 - created.0)).collect::<Vec<_>>()));
    assert!(changes.iter().all(|change| matches!(change, KeyChange::Delete { .. })));
    seen.push(format!("{:?} {}", client.remaining(short.lease).await, said(member.keep_alive(short.lease).await.map(drop))));
    seen.push(said(client.txn(then(vec![put("/l/late", short.lease)]), SECOND).await));
    seen.push(said(member.revoke(short.lease).await));
    seen.push(format!("{:?}", client.revoke(short.lease, SECOND).await));
    let left = client.list(&KeyRange::prefix("/l/")).await.unwrap();
    seen.push(format!("{:?}", left.kvs.iter().map(|kv| (kv.key.clone(), kv.lease == long.lease)).collect::<Vec<_>>()));
    seen.push(said(member.revoke(long.lease).await));
    let left = client.list(&KeyRange::prefix("/l/")).await.unwrap();
    seen.push(format!("{:?} {}", left.kvs.len(), left.revision.0 - created.0));
    (seen, lived)
}

#[test]
fn a_lease_ends_as_in_etcd() {
    let (real, model) = both(&[]);
    let started = Instant::now();
    let (said, lived) = real.side.run(expiry(real.side.member.clone(), || started.elapsed())).unwrap();
    let virtual_time = async {
        let started = tokio::time::Instant::now();
        expiry(model.side.member.clone(), move || started.elapsed()).await
    };
    let (modelled, modelled_lived) = model.side.run(virtual_time).unwrap();
    assert_eq!(said, modelled);
    assert_eq!(said[0], "2s 3s 60s", "the first is the shortest lease that etcd takes");
    assert_eq!(said[1], "[([47, 108, 47, 97], 3), ([47, 108, 47, 99], 3)]", "in order and at once");
    for lived in [lived, modelled_lived] {
        assert!(lived >= 3 * SECOND, "a lease is never short: {lived:?}");
    }
    assert!(modelled_lived < 5 * SECOND, "{modelled_lived:?}");
}

/// What a full etcd does and does not do.
async fn without_space(member: Arc<dyn Transport>, lease: i64) -> Vec<String> {
    let put = || Op::put("/n/new", "");
    let mut seen = Vec::new();
    seen.push(said(member.put(b"/n/new".to_vec(), vec![]).await.map(drop)));
    let txns = [
        ("a put", then(vec![put()])),
        ("a put in the branch not taken", Txn { then: vec![Op::delete("/n/1")], otherwise: vec![put()], ..Txn::default() }),
        ("a put in the only branch, not taken", Txn { otherwise: vec![put()], ..Txn::default() }),
        ("a read", then(vec![Op::get("/n/2")])),
        ("a deletion", then(vec![Op::delete("/n/1")])),
        ("a deletion of nothing", then(vec![Op::delete("/n/1")])),
        ("nothing", Txn::default()),
    ];
    for (name, txn) in txns {
        seen.push(format!("{name}: {}", said(member.txn(txn).await.map(|reply| (reply.succeeded, reply.reads.concat().len())))));
    }
    seen.push(said(member.grant(60).await.map(drop)));
    seen.push(said(member.keep_alive(lease).await.map(drop)));
    let read = member.range(RangeRequest::all(KeyRange::prefix("/n/"))).await;
    seen.push(said(read.map(|reply| reply.kvs.into_iter().map(|kv| kv.key).collect::<Vec<_>>())));
    seen.push(said(member.revoke(lease).await));
    let read = member.range(RangeRequest::all(KeyRange::prefix("/n/"))).await;
    let revision = read.as_ref().map(|reply| reply.revision).unwrap();
    seen.push(said(read.map(|reply| reply.kvs.into_iter().map(|kv| kv.key).collect::<Vec<_>>())));
    seen.push(said(member.compact(revision).await));
    seen
}

/// Three keys, one of which is bound to a lease.
async fn before(member: Arc<dyn Transport>) -> i64 {
    let lease = member.grant(60).await.unwrap().lease;
    let bound = Op::Put { key: b"/n/3".to_vec(), value: vec![], lease };
    member.txn(then(vec![Op::put("/n/1", ""), Op::put("/n/2", ""), bound])).await.unwrap();
    lease
}

#[test]
fn a_full_etcd_refuses_what_the_model_refuses() {
    let (real, model) = both(&["--quota-backend-bytes=4194304"]);
    let lease = real.side.run(before(real.side.member.clone())).unwrap();
    let fill = async {
        loop {
            match real.side.member.put(b"fill".to_vec(), vec![0; 64 << 10]).await {
                Err(Error::NoSpace { .. }) => return,
                done => drop(done.unwrap()),
            }
        }
    };
    real.side.run(fill).unwrap();
    let said = real.side.run(without_space(real.side.member.clone(), lease)).unwrap();
    let lease = model.side.run(before(model.side.member.clone())).unwrap();
    model.etcd.no_space(true);
    let modelled = model.side.run(without_space(model.side.member.clone(), lease)).unwrap();
    assert_eq!(said, modelled);
    assert_eq!(said.iter().filter(|said| said.contains("no space")).count(), 5, "{said:#?}");
}

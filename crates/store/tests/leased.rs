//! Leased keys on a real etcd: created once, kept, proved, lost.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{Etcd, LONG, eventually, put_surely, within};
use evenkeel_store::{Client, Compare, CreateError, Error, KeyName, LeaseState, LeasedKey, LostReason, NewLeasedKey, Op, Revision, Txn};

const SECOND: Duration = Duration::from_secs(1);

fn session(value: &str, ttl_s: u64, replaces: Option<Revision>) -> NewLeasedKey {
    let key = KeyName::Exact(b"/workers/w".to_vec());
    NewLeasedKey { key, value: value.into(), ttl: Duration::from_secs(ttl_s), replaces }
}

async fn create(client: &Client, new: NewLeasedKey) -> Result<LeasedKey, CreateError> {
    within(LONG, "a leased key", LeasedKey::create(client, new, LONG)).await
}

async fn lost(key: &LeasedKey) -> LostReason {
    let mut state = key.state();
    let state = within(LONG, "the loss", state.wait_for(|state| *state != LeaseState::Alive)).await.unwrap();
    match *state {
        LeaseState::Lost { reason } => reason,
        LeaseState::Alive => unreachable!("it was waited for"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_created_once_replaced_by_right_and_gone_when_ended() {
    let etcd = Etcd::start(1).await;
    let client = etcd.client();
    let first = create(&client, session("first", 10, None)).await.unwrap();
    let stands = client.get(b"/workers/w").await.unwrap().kv.unwrap();
    assert_eq!((stands.created, stands.lease, stands.value.as_slice()), (first.created(), first.lease(), &b"first"[..]));
    assert_eq!(first.ttl(), Duration::from_secs(10));
    assert!(first.prove(SECOND).await.unwrap());

    let Err(CreateError::Held { kv }) = create(&client, session("second", 10, None)).await else { panic!("it is held") };
    assert_eq!((kv.created, kv.value.as_slice()), (first.created(), &b"first"[..]));
    let wrong = Some(Revision(first.created().0 - 1));
    assert!(matches!(create(&client, session("second", 10, wrong)).await, Err(CreateError::Held { .. })), "that is not the one to replace");

    // A new value leaves the session what it is; somebody who compares it fails when it is replaced.
    let updated = first.update(b"again".to_vec(), SECOND).await.unwrap().unwrap();
    assert!(updated > first.created() && first.prove(SECOND).await.unwrap());
    let second = create(&client, session("second", 10, Some(first.created()))).await.unwrap();
    assert!(second.created() > first.created());
    assert!(!first.prove(SECOND).await.unwrap());
    assert_eq!(lost(&first).await, LostReason::KeyGone);
    assert_eq!(first.update(b"late".to_vec(), SECOND).await.unwrap(), None);
    let fenced = |key: &LeasedKey| Txn { compares: vec![key.compare()], then: vec![Op::put("/x", "")], otherwise: vec![] };
    assert!(!client.txn(fenced(&first), SECOND).await.unwrap().succeeded);
    assert!(client.txn(fenced(&second), SECOND).await.unwrap().succeeded);
    // The first one's end does not touch the second.
    first.end(SECOND).await.unwrap();
    assert!(second.prove(SECOND).await.unwrap());
    second.end(SECOND).await.unwrap();
    assert_eq!(client.get(b"/workers/w").await.unwrap().kv, None);

    // What is to be replaced may be gone already.
    let third = create(&client, session("third", 10, Some(Revision(5)))).await.unwrap();
    assert!(third.prove(SECOND).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn candidates_stand_side_by_side_in_the_order_of_their_creation() {
    let etcd = Etcd::start(1).await;
    let client = etcd.client();
    let candidate = || {
        let key = KeyName::UnderPrefix(b"/election/".to_vec());
        create(&client, NewLeasedKey { key, value: vec![], ttl: Duration::from_secs(5), replaces: None })
    };
    let (one, two) = (candidate().await.unwrap(), candidate().await.unwrap());
    assert!(one.created() < two.created());
    assert_eq!(one.key(), format!("/election/{:x}", one.lease()).as_bytes());
    let all = client.list(&evenkeel_store::KeyRange::prefix("/election/")).await.unwrap();
    assert_eq!(all.kvs.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_kept_beyond_its_time_and_expires_when_dropped() {
    let etcd = Etcd::start(1).await;
    let client = etcd.client();
    let kept = create(&client, session("kept", 2, None)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(kept.prove(SECOND).await.unwrap());
    assert_eq!(*kept.state().borrow(), LeaseState::Alive);
    drop(kept);
    assert!(client.get(b"/workers/w").await.unwrap().kv.is_some(), "dropping deletes nothing by itself");
    eventually(LONG, "the key's expiry", async || client.get(b"/workers/w").await.unwrap().kv.is_none().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_revoked_by_hand_is_noticed() {
    let etcd = Etcd::start(1).await;
    let client = etcd.client();
    let key = create(&client, session("v", 3, None)).await.unwrap();
    client.revoke(key.lease(), SECOND).await.unwrap();
    assert_eq!(lost(&key).await, LostReason::LeaseGone);
    assert!(!key.prove(SECOND).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_another_hand_took_off_its_lease_is_ours_no_more() {
    let etcd = Etcd::start(1).await;
    let client = etcd.client();
    let key = create(&client, session("v", 3, None)).await.unwrap();
    client.put(key.key(), "the same, without a lease").await.unwrap();
    assert!(!key.prove(SECOND).await.unwrap(), "it would outlive its holder");
    assert_eq!(lost(&key).await, LostReason::KeyGone);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_etcd_ends_no_lease() {
    let mut etcd = Etcd::start(1).await;
    let client = etcd.client();
    let key = create(&client, session("v", 2, None)).await.unwrap();
    etcd.cluster.kill(0).unwrap();
    // Longer than the lease's time to live: while etcd does not run its clock stands.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(*key.state().borrow(), LeaseState::Alive);
    assert!(key.prove(Duration::from_millis(300)).await.is_err(), "no proof without etcd");
    etcd.cluster.restart(0).await.unwrap();
    assert!(eventually(LONG, "a proof", async || key.prove(SECOND).await.ok()).await);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(key.prove(SECOND).await.unwrap(), "it is being extended again");
    assert_eq!(*key.state().borrow(), LeaseState::Alive);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_space_proofs_and_leases_go_on_and_puts_say_so() {
    let etcd = Etcd::with_flags(1, &["--quota-backend-bytes=4194304"]).await;
    let client = etcd.client();
    let key = create(&client, session("v", 2, None)).await.unwrap();
    let value = vec![b'x'; 256 << 10];
    let full = eventually(LONG, "a full database", async || client.put("/big", value.clone()).await.err()).await;
    assert!(matches!(full, Error::NoSpace { .. }), "{full:?}");
    assert!(full.outcome_unknown(), "etcd says so also of a put that it has just applied");
    assert!(full.to_string().contains("alarm disarm"), "{full}");
    let puts = client.put("/small", "").await.unwrap_err();
    assert!(matches!(puts, Error::NoSpace { .. }), "{puts:?}");
    assert!(matches!(key.update(b"new".to_vec(), SECOND).await, Err(Error::NoSpace { .. })));
    let other = NewLeasedKey { key: KeyName::Exact(b"/other".to_vec()), ..session("v", 2, None) };
    assert!(matches!(create(&client, other).await, Err(CreateError::Store(Error::NoSpace { .. }))));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(key.prove(SECOND).await.unwrap(), "the lease was extended and the proof needs no space");
    // A transaction that only compares is a proof as well, and is linearizable.
    let proof = client.txn(Txn { compares: vec![key.compare(), Compare::absent("/none")], ..Txn::default() }, SECOND).await.unwrap();
    assert!(proof.succeeded && proof.reads.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_to_the_creation_leaves_one_session() {
    let etcd = Etcd::start(1).await;
    let client = etcd.client();
    put_surely(&client, "/ready", "").await;
    // The member freezes for longer than any single call waits, in the middle of the creation, again and again.
    for round in 0..6u64 {
        let creation = create(&client, NewLeasedKey { key: KeyName::Exact(format!("/workers/{round}").into()), ..session("v", 10, None) });
        let freeze = async {
            tokio::time::sleep(Duration::from_micros(300 * round)).await;
            etcd.cluster.stop(0).unwrap();
            tokio::time::sleep(Duration::from_millis(1200)).await;
            etcd.cluster.cont(0).unwrap();
        };
        let (created, ()) = tokio::join!(creation, freeze);
        let created = created.unwrap();
        let kv = client.get(created.key()).await.unwrap().kv.unwrap();
        assert_eq!((kv.created, kv.lease), (created.created(), created.lease()));
    }
}

//! Three members of etcd, of which one dies or freezes: watch, calls and leases go on with the others.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::{Copy, Etcd, LONG, eventually, put_surely, within};
use evenkeel_store::{Client, KeyName, KeyRange, LeaseState, LeasedKey, NewLeasedKey};

const SECOND: Duration = Duration::from_secs(1);
/// A lease of this length must survive the loss of any one member.
const TTL: Duration = Duration::from_secs(4);

/// Breaks one member under a client that uses it, and sees everything go on.
async fn rides_out(etcd: &mut Etcd, broken: usize, fault: impl FnOnce(&mut Etcd)) {
    let client = etcd.client_of(broken);
    // Another client, which does nothing but follow: it has no failed call to learn from.
    let idle = etcd.client_of(broken);
    client.put("/m/before", "").await.unwrap();
    let new = NewLeasedKey { key: KeyName::Exact(b"/lease".to_vec()), value: vec![], ttl: TTL, replaces: None };
    let key = LeasedKey::create(&client, new, LONG).await.unwrap();
    let (mut copy, mut idle_copy) = (Copy::of(&client, KeyRange::prefix("/m/")), Copy::of(&idle, KeyRange::prefix("/m/")));
    copy.until("the list", |copy| copy.has("/m/before")).await;
    idle_copy.until("the list", |copy| copy.has("/m/before")).await;
    let proofs = tokio::spawn(proofs(client.clone(), key.key().to_vec(), key.created(), key.lease()));

    let start = Instant::now();
    fault(etcd);
    within(LONG, "a write", put_surely(&client, "/m/during", "")).await;
    let written = start.elapsed();
    within(LONG, "its arrival", copy.until("the write", |copy| copy.has("/m/during"))).await;
    let arrived = start.elapsed();
    within(LONG, "its arrival at the idle one", idle_copy.until("the write", |copy| copy.has("/m/during"))).await;
    let arrived_idle = start.elapsed();
    eprintln!("written after {written:?}, seen after {arrived:?}, by the idle client after {arrived_idle:?}");
    assert_ne!(client.endpoint(), etcd.cluster.endpoint(broken));
    assert_ne!(idle.endpoint(), etcd.cluster.endpoint(broken), "it was the watch that moved this one on");
    assert_eq!((copy.resets, idle_copy.resets), (1, 1), "nothing had to be listed again");

    // Longer than the lease would have lived without being extended.
    tokio::time::sleep((TTL + 2 * SECOND).saturating_sub(start.elapsed())).await;
    assert_eq!(*key.state().borrow(), LeaseState::Alive);
    assert!(eventually(LONG, "a proof", async || key.prove(SECOND).await.ok()).await, "the lease is not lost");
    proofs.abort();
    key.end(SECOND).await.unwrap();
}

/// Proves a key twice a second, as a worker does.
async fn proofs(client: Client, key: Vec<u8>, created: evenkeel_store::Revision, lease: i64) {
    loop {
        // What a proof says is for the worker; here it is what makes the client leave a member that does not answer.
        let _ = client.stands(&key, created, lease, SECOND).await;
        tokio::time::sleep(SECOND / 2).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_is_killed() {
    let mut etcd = Etcd::start(3).await;
    let leader = etcd.leader().await;
    rides_out(&mut etcd, leader, |etcd| etcd.cluster.kill(leader).unwrap()).await;
    // It comes back and the next one goes: nobody has kept anything that was bound to the first.
    etcd.cluster.restart(leader).await.unwrap();
    let client = etcd.client_of(leader);
    within(LONG, "the member's return", client.wait_ready(LONG)).await.unwrap();
    assert_eq!(client.endpoint(), etcd.cluster.endpoint(leader));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_is_frozen() {
    let mut etcd = Etcd::start(3).await;
    let leader = etcd.leader().await;
    rides_out(&mut etcd, leader, |etcd| etcd.cluster.stop(leader).unwrap()).await;
    etcd.cluster.cont(leader).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_is_frozen() {
    let mut etcd = Etcd::start(3).await;
    let follower = (etcd.leader().await + 1) % 3;
    rides_out(&mut etcd, follower, |etcd| etcd.cluster.stop(follower).unwrap()).await;
    etcd.cluster.cont(follower).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_calls_fail_and_all_goes_on_when_it_is_back() {
    let mut etcd = Etcd::start(3).await;
    let client = etcd.client();
    client.put("/m/before", "").await.unwrap();
    let mut copy = Copy::of(&client, KeyRange::prefix("/m/"));
    copy.until("the list", |copy| copy.has("/m/before")).await;
    etcd.cluster.kill(0).unwrap();
    etcd.cluster.stop(1).unwrap();
    // That each ends at its deadline is held where time is virtual: `sim/tests/etcd_world.rs`.
    for _ in 0..4 {
        assert!(within(LONG, "the end of a put", client.put("/m/never", "")).await.is_err());
        assert!(within(LONG, "the end of a read", client.get(b"/m/before")).await.is_err(), "a linearizable read needs the quorum");
    }
    copy.until("the news that etcd cannot be followed", |copy| copy.lost == 1).await;
    etcd.cluster.cont(1).unwrap();
    etcd.cluster.revive(0).unwrap();
    put_surely(&client, "/m/after", "").await;
    copy.until("what came after", |copy| copy.has("/m/after")).await;
    assert_eq!(copy.resets, 1);
}

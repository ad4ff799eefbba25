//! List and watch on a real etcd: nothing lost, nothing doubled, through compaction, restarts and slow readers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{Copy, Etcd, LONG, eventually, fill, put_surely, within};
use evenkeel_store::{Client, Config, KeyRange, Op, Revision, Txn, Update};

/// Writes keys of its own: each round a pair in one transaction, and from time to time a deletion.
async fn writer(client: Client, name: usize, rounds: usize) {
    for round in 0..rounds {
        let mut then = vec![
            Op::put(format!("/m/{name}/{:02}/left", round % 7), round.to_string()),
            Op::put(format!("/m/{name}/{:02}/right", round % 7), round.to_string()),
        ];
        if round % 3 == 2 {
            then.push(Op::delete(format!("/m/{name}/{:02}/left", (round + 1) % 7)));
            then.push(Op::delete(format!("/m/{name}/{:02}/right", (round + 1) % 7)));
        }
        client.txn(Txn { then, ..Txn::default() }, LONG).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_joined_with_a_watch_under_concurrent_writes_loses_nothing_and_doubles_nothing() {
    let etcd = Etcd::start(1).await;
    let client = etcd.client();
    let writers: Vec<_> = (0..4).map(|name| tokio::spawn(writer(client.clone(), name, 400))).collect();
    // Mirrors that begin at different times, each in the middle of the writing.
    let mut copies = Vec::new();
    for part in 1..=4 {
        let key = format!("/m/0/{part:02}/left");
        eventually(LONG, "the writers have begun", async || client.get(key.as_bytes()).await.unwrap().kv).await;
        copies.push(Copy::of(&client, KeyRange::prefix("/m/")));
    }
    for writer in writers {
        within(LONG, "a writer", writer).await.unwrap();
    }
    client.put("/m/last", "").await.unwrap();
    let truth = client.list(&KeyRange::prefix("/m/")).await.unwrap();
    for copy in &mut copies {
        while !copy.has("/m/last") {
            if let Update::Changes { changes, .. } = within(LONG, "an update", copy.step()).await {
                let sides = |side: &[u8]| changes.iter().filter(|c| c.key().ends_with(side)).count();
                assert_eq!(sides(b"left"), sides(b"right"), "a transaction comes whole");
            }
        }
        assert!(copy.kvs.values().eq(truth.kvs.iter()), "the copy is the truth");
        assert_eq!((copy.resets, copy.lost), (1, 0));
    }
    assert!(copies.iter().any(|copy| copy.changes > 100), "some of it has come by watch");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_lags_behind_a_compaction_lists_again() {
    let etcd = Etcd::start(1).await;
    let client = etcd.client();
    client.put("/m/0", "first").await.unwrap();
    let mut copy = Copy::of(&client, KeyRange::prefix("/m/"));
    copy.until("the first list", |copy| copy.resets == 1).await;
    // The reader sleeps. What is written fills every buffer on the way, so that etcd's side of the watch stays behind.
    let value = vec![b'x'; 64 << 10];
    let mut last = Revision(0);
    for n in 0..800 {
        last = client.put(format!("/m/{}", n % 5), value.clone()).await.unwrap();
    }
    client.compact(last).await.unwrap();
    let last = client.put("/m/last", "").await.unwrap();
    copy.until("all of it", |copy| copy.revision >= last).await;
    assert_eq!(copy.resets, 2, "what was compacted away came as a list");
    assert_eq!(copy.lost, 1, "the owner was told that its view was stale");
    assert!(copy.changes < 800);
    let truth = client.list(&KeyRange::prefix("/m/")).await.unwrap();
    assert!(copy.kvs.values().eq(truth.kvs.iter()), "the copy is the truth");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_many_pages_is_of_one_revision_even_if_it_is_compacted_underneath() {
    let etcd = Etcd::start(1).await;
    let client = etcd.client();
    let keys = 7_000;
    fill(&client, "/m/", keys, &[b'v'; 3000]).await;
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    // Every transaction writes the first and the last key: a list of two revisions would show a difference.
    let writing = tokio::spawn({
        let client = client.clone();
        async move {
            let mut round = 0;
            while stopped.try_recv().is_err() {
                let (first, last) = ("/m/000000".to_owned(), format!("/m/{:06}", keys - 1));
                let then = vec![Op::put(first, round.to_string()), Op::put(last, round.to_string())];
                let reply = client.txn(Txn { then, ..Txn::default() }, LONG).await.unwrap();
                if round % 25 == 0 {
                    client.compact(reply.revision).await.unwrap();
                }
                round += 1;
            }
            round
        }
    });
    for _ in 0..5 {
        let listed = within(LONG, "a list", client.list(&KeyRange::prefix("/m/"))).await.unwrap();
        assert_eq!(listed.kvs.len(), keys);
        assert_eq!(listed.kvs.first().map(|kv| &kv.value), listed.kvs.last().map(|kv| &kv.value));
        assert!(listed.kvs.is_sorted_by(|a, b| a.key < b.key));
        assert!(listed.kvs.iter().all(|kv| kv.modified <= listed.revision));
    }
    stop.send(()).unwrap();
    assert!(writing.await.unwrap() > 25, "it was written and compacted meanwhile");
    let one = client.list(&KeyRange::key("/m/000001")).await.unwrap();
    assert_eq!(one.kvs.len(), 1);
    let some = client.list(&KeyRange::between("/m/000010", "/m/000020")).await.unwrap();
    assert_eq!(some.kvs.len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_waits_for_an_etcd_that_is_not_up_and_survives_its_restart() {
    let mut etcd = Etcd::start(1).await;
    let client = etcd.client();
    client.put("/m/1", "").await.unwrap();
    etcd.cluster.kill(0).unwrap();

    let client = etcd.client();
    let error = client.wait_ready(Duration::from_millis(500)).await.unwrap_err().to_string();
    assert!(error.contains("did not become ready") && error.contains(client.endpoint()), "{error}");
    let mut copy = Copy::of(&client, KeyRange::prefix("/m/"));
    copy.until("the news that etcd is away", |copy| copy.lost == 1).await;
    etcd.cluster.revive(0).unwrap();
    within(LONG, "etcd", client.wait_ready(LONG)).await.unwrap();
    copy.until("the first list", |copy| copy.has("/m/1")).await;

    etcd.cluster.kill(0).unwrap();
    copy.until("the news that etcd is away again", |copy| copy.lost == 2).await;
    etcd.cluster.restart(0).await.unwrap();
    put_surely(&client, "/m/2", "").await;
    copy.until("what was written after the restart", |copy| copy.has("/m/2")).await;
    assert_eq!((copy.resets, copy.recovered), (1, 1), "the watch went on where it had ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_was_started_anew_with_less_history_is_listed_again() {
    let mut etcd = Etcd::start(1).await;
    let client = etcd.client();
    for n in 0..50 {
        client.put("/m/old", n.to_string()).await.unwrap();
    }
    let mut copy = Copy::of(&client, KeyRange::prefix("/m/"));
    copy.until("the list", |copy| copy.has("/m/old")).await;
    etcd.cluster.kill(0).unwrap();
    std::fs::remove_dir_all(etcd.dir.path().join("etcd-1")).unwrap();
    etcd.cluster.restart(0).await.unwrap();
    put_surely(&client, "/m/new", "").await;
    copy.until("the new history", |copy| copy.has("/m/new")).await;
    assert!(!copy.has("/m/old"));
    assert_eq!(copy.resets, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_ends_with_its_receiver_and_does_not_mind_a_quiet_range() {
    let etcd = Etcd::start(1).await;
    let client = etcd.client();
    let mut copy = Copy::of(&client, KeyRange::prefix("/m/"));
    copy.until("the list", |copy| copy.resets == 1).await;
    // Longer than a stream may be quiet: it is asked by a liveness probe, and answers it.
    let quiet = tokio::time::timeout(Duration::from_secs(4), copy.step()).await;
    assert!(quiet.is_err(), "nothing has happened, and nothing is told: {quiet:?}");
    client.put("/m/1", "").await.unwrap();
    copy.until("a change after the quiet", |copy| copy.has("/m/1")).await;

    let receiver = evenkeel_store::mirror(&client, KeyRange::prefix("/m/"));
    drop(receiver);
    let lonely = Client::new(Config::new(["127.0.0.1:1"])).unwrap();
    drop(evenkeel_store::mirror(&lonely, KeyRange::prefix("/m/")));
    let tasks = tokio::runtime::Handle::current();
    drop((copy, client, lonely));
    // Only the connections' own tasks may be left, and these end with the clients.
    eventually(LONG, "the end of all mirrors", async || (tasks.metrics().num_alive_tasks() == 0).then_some(())).await;
}

//! The commit pipeline with its executor on a real etcd: conflicts, lost fences, lost answers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    process::Command,
    time::Duration,
};

use common::{Etcd, LONG, eventually, within};
use evenkeel_store::{
    Client, Compare, Executor, Finished, KeyChange, KeyName, KeyRange, LeasedKey, NewLeasedKey, Op, Pipeline, PipelineConfig, Revision,
    SubmitError, Txn, Update, Write, WriteResult,
};
use tokio::sync::mpsc;

const SECOND: Duration = Duration::from_secs(1);

/// A leader as far as committing is concerned.
struct Leader {
    key: LeasedKey,
    pipeline: Pipeline,
    executor: Executor,
    finished: mpsc::UnboundedReceiver<Finished>,
    results: HashMap<u64, WriteResult>,
    /// Those whose entries were written.
    journaled: BTreeSet<u64>,
}

impl Leader {
    async fn elect(client: &Client, deadline: Duration) -> Self {
        let key = KeyName::UnderPrefix(b"/election/".to_vec());
        let new = NewLeasedKey { key, value: vec![], ttl: Duration::from_secs(30), replaces: None };
        let key = LeasedKey::create(client, new, LONG).await.unwrap();
        let pipeline = Pipeline::new(PipelineConfig {
            fence_key: key.key().to_vec(),
            fence: key.created(),
            lease: key.lease(),
            slot_prefix: format!("/commit/{:x}/", key.lease()).into_bytes(),
            journal_prefix: b"/events/".to_vec(),
            in_flight: 3,
        });
        let (executor, finished) = Executor::new(client.clone(), deadline);
        Self { key, pipeline, executor, finished, results: HashMap::new(), journaled: BTreeSet::new() }
    }

    fn submit(&mut self, write: Write) {
        self.pipeline.submit(write).unwrap();
        self.send();
    }

    fn send(&mut self) {
        while let Some(batch) = self.pipeline.next_batch() {
            self.executor.execute(batch);
        }
    }

    /// Until everything is done.
    async fn drain(&mut self) {
        while !self.pipeline.is_empty() {
            let Finished { batch, outcome, .. } = within(LONG, "a batch", self.finished.recv()).await.unwrap();
            for done in self.pipeline.finished(batch, outcome) {
                self.journaled.extend(done.journaled.then_some(done.token));
                assert_eq!(self.results.insert(done.token, done.result), None, "{} is done twice", done.token);
            }
            self.send();
        }
    }

    fn committed(&self, token: u64) -> Option<Revision> {
        match self.results[&token] {
            WriteResult::Committed { revision } => Some(revision),
            _ => None,
        }
    }
}

fn put(token: u64, key: impl Into<String>) -> Write {
    Write { token, compares: vec![], ops: vec![Op::put(key.into(), token.to_string())], entry: None }
}

/// Reads every put under `/k/` from the history: key to values in the order of their writing.
async fn history(client: &Client, from_the_start: &mut mpsc::Receiver<Update>) -> BTreeMap<String, Vec<(u64, Revision)>> {
    let end = client.put("/k/end", "0").await.unwrap();
    let mut all: BTreeMap<String, Vec<(u64, Revision)>> = BTreeMap::new();
    loop {
        let update = within(LONG, "the history", from_the_start.recv()).await.unwrap();
        let Update::Changes { changes, revision } = update else { continue };
        for change in changes {
            if let KeyChange::Put(kv) = change {
                let value = String::from_utf8(kv.value).unwrap().parse().unwrap();
                all.entry(String::from_utf8(kv.key).unwrap()).or_default().push((value, kv.modified));
            }
        }
        if revision >= end {
            return all;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_are_committed_in_order_and_conflicts_hurt_nobody_else() {
    let etcd = Etcd::start(1).await;
    let client = etcd.client();
    client.put("/k/taken", "1").await.unwrap();
    let mut leader = Leader::elect(&client, SECOND).await;
    for token in 0..2_000u64 {
        let mut write = put(token, format!("/k/{:03}", token % 500));
        if token % 100 == 99 {
            write.compares.push(Compare::absent("/k/taken"));
        }
        leader.submit(write);
    }
    leader.drain().await;
    for token in 0..2_000 {
        assert_eq!(leader.committed(token).is_none(), token % 100 == 99, "{token}: {:?}", leader.results[&token]);
    }
    // 99 of each hundred: what stands is the last one that was committed.
    let listed = client.list(&KeyRange::prefix("/k/")).await.unwrap();
    for kv in listed.kvs.iter().filter(|kv| kv.key != b"/k/taken") {
        let value: u64 = std::str::from_utf8(&kv.value).unwrap().parse().unwrap();
        assert_eq!(leader.committed(value), Some(kv.modified));
        assert!(
            value >= 1_500 || value % 100 == 99 || leader.committed(value + 500).is_none(),
            "{value} was overwritten by an earlier one"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_fence_ends_it() {
    let etcd = Etcd::start(1).await;
    let client = etcd.client();
    let mut leader = Leader::elect(&client, SECOND).await;
    leader.submit(put(0, "/k/0"));
    leader.drain().await;
    assert!(leader.committed(0).is_some());
    let slots = client.list(&KeyRange::prefix("/commit/")).await.unwrap();
    assert_eq!((slots.kvs.len(), slots.kvs[0].lease), (1, leader.key.lease()));

    client.revoke(leader.key.lease(), SECOND).await.unwrap();
    for token in 1..300 {
        leader.submit(put(token, format!("/k/{}", token % 40)));
    }
    leader.drain().await;
    assert!((1..300).all(|token| leader.results[&token] == WriteResult::FenceLost));
    assert!(leader.pipeline.fence_lost());
    assert_eq!(leader.pipeline.submit(put(300, "/k/0")), Err(SubmitError::FenceLost));
    assert_eq!(client.list(&KeyRange::prefix("/k/")).await.unwrap().kvs.len(), 1, "nothing was written");
    assert!(client.list(&KeyRange::prefix("/commit/")).await.unwrap().kvs.is_empty(), "nothing is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_lost_in_a_frozen_member_are_made_up_for() {
    let etcd = Etcd::start(3).await;
    let observer = etcd.client();
    let mut updates = evenkeel_store::mirror(&observer, KeyRange::prefix("/k/"));
    let frozen = etcd.leader().await;
    // The deadline is short, so that answers are given up while the requests wait in the frozen member.
    let mut leader = Leader::elect(&etcd.client_of(frozen), Duration::from_millis(300)).await;
    let mut token = 0;
    for _ in 0..3 {
        let mut submit = |leader: &mut Leader, count: u64| {
            for _ in 0..count {
                leader.submit(put(token, format!("/k/{:02}", token % 20)));
                token += 1;
            }
        };
        submit(&mut leader, 30);
        etcd.cluster.stop(frozen).unwrap();
        submit(&mut leader, 30);
        leader.drain().await;
        // What waited in the member may be carried out now, and must have no effect.
        etcd.cluster.cont(frozen).unwrap();
        submit(&mut leader, 30);
        leader.drain().await;
    }
    let history = history(&observer, &mut updates).await;
    let mut seen = 0;
    for (key, values) in history.iter().filter(|(key, _)| *key != "/k/end") {
        assert!(values.is_sorted_by(|a, b| a.0 < b.0), "{key}: nothing twice, nothing out of order: {values:?}");
        for (value, revision) in values {
            assert_eq!(leader.committed(*value), Some(*revision), "{key}");
            seen += 1;
        }
    }
    assert_eq!(seen, token, "everything that was submitted is there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_lost_with_a_killed_member_are_made_up_for() {
    let mut etcd = Etcd::start(1).await;
    let client = etcd.client();
    let mut leader = Leader::elect(&client, SECOND).await;
    let mut token = 0;
    for round in 0..4u64 {
        for _ in 0..200 {
            leader.submit(put(token, format!("/k/{token:04}")));
            token += 1;
        }
        tokio::time::sleep(Duration::from_micros(700 * round)).await;
        etcd.cluster.kill(0).unwrap();
        etcd.cluster.revive(0).unwrap();
        leader.drain().await;
    }
    let listed = client.list(&KeyRange::prefix("/k/")).await.unwrap();
    assert_eq!(listed.kvs.len() as u64, token);
    for kv in listed.kvs {
        let value: u64 = std::str::from_utf8(&kv.value).unwrap().parse().unwrap();
        assert_eq!(leader.committed(value), Some(kv.modified), "the revision is that of the one write");
        assert_eq!(kv.created, kv.modified);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_space_every_write_says_so_and_none_is_half_done() {
    let etcd = Etcd::with_flags(1, &["--quota-backend-bytes=4194304"]).await;
    let client = etcd.client();
    let mut leader = Leader::elect(&client, SECOND).await;
    let value = vec![b'x'; 100 << 10];
    // etcd counts its size some time after the writes, so it is written until it says no.
    let full = |leader: &Leader| leader.results.values().any(|result| *result == WriteResult::NoSpace);
    let mut token = 0;
    while !full(&leader) {
        assert!(token < 2_000, "the quota is long passed");
        for _ in 0..30 {
            leader.submit(Write { token, compares: vec![], ops: vec![Op::put(format!("/k/{token:04}"), value.clone())], entry: None });
            token += 1;
        }
        leader.drain().await;
    }
    let listed = client.list(&KeyRange::prefix("/k/")).await.unwrap();
    let stands = |token: u64| listed.kvs.iter().find(|kv| kv.key == format!("/k/{token:04}").as_bytes()).map(|kv| kv.modified);
    for token in 0..token {
        assert_eq!(leader.committed(token), stands(token), "what was said of {token} is what stands: {:?}", leader.results[&token]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_etcd_will_not_take_is_rejected_by_itself() {
    let etcd = Etcd::start(1).await;
    let client = etcd.client();
    let mut leader = Leader::elect(&client, SECOND).await;
    for token in 0..20 {
        let lease = if token == 7 { 4711 } else { 0 };
        leader.submit(Write {
            token,
            compares: vec![],
            ops: vec![Op::Put { key: format!("/k/{token}").into(), value: vec![], lease }],
            entry: None,
        });
    }
    leader.drain().await;
    let rejected: Vec<_> = leader.results.iter().filter(|(_, r)| matches!(r, WriteResult::Rejected { .. })).collect();
    assert_eq!(rejected.len(), 1);
    assert!(matches!(rejected[0], (7, WriteResult::Rejected { reason }) if reason.contains("lease is gone")), "{rejected:?}");
    assert_eq!(client.list(&KeyRange::prefix("/k/")).await.unwrap().kvs.len(), 19);
    // The order of things is kept for those who come after.
    let late = Txn { compares: vec![leader.key.compare()], then: vec![Op::put("/k/7", "")], otherwise: vec![] };
    assert!(eventually(LONG, "a write", async || client.txn(late.clone(), SECOND).await.ok()).await.succeeded);
}

/// Deletes a key as it was last written, and has an entry.
fn delete(token: u64, key: &str, equals: Revision) -> Write {
    let compares = vec![Compare::ModRevision { key: key.into(), equals }];
    Write { token, compares, ops: vec![Op::delete(key)], entry: Some(format!("{{\"n\":{token}}}").into_bytes()) }
}

/// Puts until etcd says that it has no space. It counts its size some time after the writes.
async fn fill_up(client: &Client) {
    let fill = async {
        for n in 0.. {
            let then = vec![Op::put(format!("/fill/{n}"), vec![b'x'; 100 << 10])];
            if matches!(client.txn(Txn { then, ..Txn::default() }, LONG).await, Err(evenkeel_store::Error::NoSpace { .. })) {
                return;
            }
        }
    };
    within(LONG, "a full database", fill).await;
}

/// What a person does to make room.
async fn make_room(etcd: &Etcd, client: &Client) {
    let then = vec![Op::DeleteRange { range: KeyRange::prefix("/fill/") }];
    let revision = client.txn(Txn { then, ..Txn::default() }, LONG).await.unwrap().revision;
    let etcdctl = |arguments: &[&str]| {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", etcd.cluster.endpoint(0))).args(arguments);
        assert!(command.output().unwrap().status.success(), "{arguments:?}");
    };
    etcdctl(&["compact", "--physical", &revision.to_string()]);
    etcdctl(&["defrag"]);
    etcdctl(&["alarm", "disarm"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_space_what_needs_none_is_done() {
    let etcd = Etcd::with_flags(1, &["--quota-backend-bytes=4194304"]).await;
    let client = etcd.client();
    let mut leader = Leader::elect(&client, Duration::from_millis(300)).await;
    let mut stands = Vec::new();
    for n in 0..4 {
        stands.push(client.put(format!("/d/{n}"), "").await.unwrap());
    }
    fill_up(&client).await;

    // All in one batch.
    let check = Write { token: 2, compares: vec![Compare::absent("/none")], ops: vec![], entry: None };
    for write in [put(0, "/k/0"), delete(1, "/d/1", stands[1]), check] {
        leader.pipeline.submit(write).unwrap();
    }
    leader.send();
    assert_eq!(leader.pipeline.in_flight(), 1);
    leader.drain().await;
    assert_eq!(leader.results[&0], WriteResult::NoSpace);
    assert!(leader.committed(1).is_some() && leader.committed(2).is_some(), "{:?}", leader.results);
    assert!(client.get(b"/d/1").await.unwrap().kv.is_none() && leader.journaled.is_empty());

    // The member comes to it when the first answer is given up already, and finds the request again in what has come since.
    etcd.cluster.stop(0).unwrap();
    leader.submit(delete(3, "/d/2", stands[2]));
    tokio::time::sleep(SECOND).await;
    etcd.cluster.cont(0).unwrap();
    leader.drain().await;
    assert!(leader.committed(3).is_some_and(|revision| revision > stands[2]), "{:?}", leader.results);
    assert!(client.get(b"/d/2").await.unwrap().kv.is_none());

    make_room(&etcd, &client).await;
    leader.submit(put(4, "/k/4"));
    leader.drain().await;
    leader.submit(delete(5, "/d/3", stands[3]));
    leader.drain().await;
    assert!(leader.committed(4).is_some() && leader.journaled == BTreeSet::from([5]), "{:?}", leader.results);
    let journal = client.list(&KeyRange::prefix("/events/")).await.unwrap();
    assert!(matches!(&journal.kvs[..], [kv] if kv.value == br#"[{"n":5}]"#), "{journal:?}");
}

//! What the tests on a real etcd share: starting one, and waiting with a deadline.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test binary uses a part of it, and fails by panicking")]

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use evenkeel_local_etcd::{LocalCluster, LocalOptions};
use evenkeel_store::{Client, Config, KeyChange, KeyRange, Kv, Op, Revision, Txn, Update};
use tempfile::TempDir;
use tokio::{sync::mpsc, time::timeout};

/// Within this anything must have happened that is to happen.
pub const LONG: Duration = Duration::from_secs(30);

/// An etcd of the test's own, in a folder of its own.
pub struct Etcd {
    pub cluster: LocalCluster,
    pub dir: TempDir,
}

impl Etcd {
    pub async fn start(members: usize) -> Self {
        Self::with_flags(members, &[]).await
    }

    pub async fn with_flags(members: usize, flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = LocalOptions::new(dir.path());
        options.binary = std::env::var_os("EVENKEEL_TEST_ETCD").map(PathBuf::from);
        options.members = members;
        options.no_fsync = true;
        options.flags = flags.iter().map(ToString::to_string).collect();
        Self { cluster: LocalCluster::start(options).await.unwrap(), dir }
    }

    pub fn client(&self) -> Client {
        Client::new(Config::new(self.cluster.endpoints())).unwrap()
    }

    /// A client that begins with this member.
    pub fn client_of(&self, member: usize) -> Client {
        let mut endpoints = self.cluster.endpoints();
        endpoints.rotate_left(member);
        Client::new(Config::new(endpoints)).unwrap()
    }

    /// The member that leads.
    pub async fn leader(&self) -> usize {
        for member in 0..self.cluster.endpoints().len() {
            let client = Client::new(Config::new([self.cluster.endpoint(member)])).unwrap();
            if client.status().await.is_ok_and(|status| status.leads) {
                return member;
            }
        }
        panic!("no member leads");
    }
}

/// Fails the test if it takes too long.
pub async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    timeout(limit, future).await.unwrap_or_else(|_| panic!("{what}: not within {limit:?}"))
}

/// Repeats a step until it has a result.
pub async fn eventually<T>(limit: Duration, what: &str, mut step: impl AsyncFnMut() -> Option<T>) -> T {
    let repeated = async {
        loop {
            if let Some(found) = step().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(limit, what, repeated).await
}

/// A copy of a range that is kept by a mirror, and that checks what the mirror promises.
pub struct Copy {
    updates: mpsc::Receiver<Update>,
    pub kvs: BTreeMap<Vec<u8>, Kv>,
    pub revision: Revision,
    pub resets: usize,
    pub lost: usize,
    pub recovered: usize,
    pub changes: usize,
}

impl Copy {
    pub fn of(client: &Client, range: KeyRange) -> Self {
        let updates = evenkeel_store::mirror(client, range);
        Self { updates, kvs: BTreeMap::new(), revision: Revision(0), resets: 0, lost: 0, recovered: 0, changes: 0 }
    }

    /// Takes in one update.
    pub async fn step(&mut self) -> Update {
        let update = self.updates.recv().await.expect("a mirror goes on as long as its receiver");
        match &update {
            Update::Reset { kvs, revision, .. } => {
                self.resets += 1;
                self.revision = *revision;
                self.kvs = kvs.iter().map(|kv| (kv.key.clone(), kv.clone())).collect();
                assert!(kvs.iter().all(|kv| kv.modified <= *revision), "a list holds nothing newer than itself");
            }
            Update::Changes { changes, revision } => {
                assert!(self.resets > 0, "changes need a list before them");
                assert_eq!(changes.last().map(KeyChange::revision), Some(*revision));
                for change in changes {
                    self.change(change);
                }
            }
            Update::Lost { .. } => self.lost += 1,
            Update::Recovered => self.recovered += 1,
        }
        update
    }

    fn change(&mut self, change: &KeyChange) {
        assert!(change.revision() >= self.revision, "{change:?} comes after {}", self.revision);
        self.revision = change.revision();
        self.changes += 1;
        match change {
            KeyChange::Put(kv) => {
                if let Some(old) = self.kvs.insert(kv.key.clone(), kv.clone()) {
                    assert!(old.modified < kv.modified, "{change:?} doubles {old:?}");
                }
            }
            KeyChange::Delete { key, .. } => {
                assert!(self.kvs.remove(key).is_some(), "{change:?} deletes what is not known");
            }
        }
    }

    /// Takes in updates until the copy is as wanted.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) {
        let steps = async {
            while !wanted(self) {
                self.step().await;
            }
        };
        within(LONG, what, steps).await;
    }

    pub fn has(&self, key: &str) -> bool {
        self.kvs.contains_key(key.as_bytes())
    }
}

/// Puts a key, again and again until etcd has said that it did.
pub async fn put_surely(client: &Client, key: &str, value: &str) -> Revision {
    eventually(LONG, "a put", async || client.put(key, value).await.ok()).await
}

/// Puts many keys, in transactions of a hundred.
pub async fn fill(client: &Client, prefix: &str, count: usize, value: &[u8]) {
    let keys: Vec<usize> = (0..count).collect();
    for part in keys.chunks(100) {
        let then = part.iter().map(|n| Op::put(format!("{prefix}{n:06}"), value)).collect();
        client.txn(Txn { then, ..Txn::default() }, LONG).await.unwrap();
    }
}

//! The two sides of the comparison, a real etcd and the model, each with a clock of its own, behind the same `Transport`.
#![allow(dead_code, clippy::unwrap_used, reason = "each test binary uses a part of it, and fails by panicking")]

use std::{path::PathBuf, sync::Arc, time::Duration};

use evenkeel_local_etcd::{LocalCluster, LocalOptions};
use evenkeel_sim::etcd::{Etcd, Settings, Store, Version};
use evenkeel_store::{Error, KeyRange, Op, RangeRequest, Revision, Transport, Txn, connect};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use tempfile::TempDir;
use tokio::{
    runtime::{Builder, Runtime},
    time::timeout,
};

/// Within this anything must have happened that is to happen.
const LONG: Duration = Duration::from_secs(30);

/// One etcd, and the runtime on which it is asked.
pub(crate) struct Side {
    pub(crate) name: &'static str,
    pub(crate) member: Arc<dyn Transport>,
    runtime: Runtime,
}

impl Side {
    /// Runs until it is done. None: it hangs.
    pub(crate) fn run<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.runtime.block_on(async { timeout(LONG, work).await.ok() })
    }
}

/// A real etcd of the test's own.
pub(crate) struct Real {
    pub(crate) side: Side,
    pub(crate) version: Version,
    cluster: LocalCluster,
    _dir: TempDir,
}

impl Real {
    pub(crate) fn start(flags: &[&str]) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut options = LocalOptions::new(dir.path());
        options.binary = std::env::var_os("EVENKEEL_TEST_ETCD").map(PathBuf::from);
        options.no_fsync = true;
        options.flags = flags.iter().map(ToString::to_string).collect();
        let cluster = runtime.block_on(LocalCluster::start(options)).unwrap();
        let version = if cluster.version().starts_with("3.4.") { Version::V3_4 } else { Version::V3_5 };
        let member = {
            let _entered = runtime.enter();
            connect(&cluster.endpoint(0)).unwrap()
        };
        Self { side: Side { name: "etcd", member, runtime }, version, cluster, _dir: dir }
    }

    /// Empties it, and returns its revision, to which it is compacted.
    pub(crate) fn clean(&self) -> Revision {
        let everything = KeyRange::prefix("");
        let clean = async {
            self.side.member.put(b"base".to_vec(), vec![]).await?;
            let delete = Op::DeleteRange { range: everything.clone() };
            let done = self.side.member.txn(Txn { then: vec![delete], ..Txn::default() }).await?;
            self.side.member.compact(done.revision).await?;
            let left = self.side.member.range(RangeRequest::all(everything.clone())).await?;
            assert!(left.kvs.is_empty() && left.revision == done.revision);
            Ok::<_, Error>(done.revision)
        };
        let cleaned = self.side.run(clean).map(|cleaned| cleaned.map_err(|error| format!("{error}\n{}", self.last_words())));
        cleaned.unwrap().unwrap_or_else(|error| panic!("{error}"))
    }

    /// The end of etcd's log, in case that it has died of what it was asked.
    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.cluster.log(0)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// A model at a revision, whose messages take no longer than a few milliseconds.
pub(crate) struct Model {
    pub(crate) side: Side,
    pub(crate) etcd: Etcd,
}

impl Model {
    pub(crate) fn start(at: Revision, version: Version, seed: u64) -> Self {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let settings = Settings { members: 1, version, slow_one_in: 0, ..Settings::default() };
        let etcd = {
            let _entered = runtime.enter();
            Etcd::with_store(Store::at(at), settings, ChaCha8Rng::seed_from_u64(seed))
        };
        let member = etcd.link("test").transports()[0].clone();
        Self { side: Side { name: "model", member, runtime }, etcd }
    }

    /// Lets pass what is under way.
    pub(crate) fn settle(&self) {
        self.side.runtime.block_on(async { tokio::time::sleep(Duration::from_secs(1)).await });
    }
}

/// A failure without the names that differ between two etcds.
pub(crate) fn kind(error: &Error) -> String {
    match error {
        Error::Refused { code, message, .. } => format!("refused: {code}, {message}"),
        Error::Compacted { .. } => "compacted".to_owned(),
        Error::NoSpace { .. } => "no space".to_owned(),
        Error::Overloaded { .. } => "too many requests".to_owned(),
        Error::LeaseNotFound => "no such lease".to_owned(),
        Error::Unavailable { .. } => "unavailable".to_owned(),
        other => format!("{other:?}"),
    }
}

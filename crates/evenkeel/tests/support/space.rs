//! An etcd that has little space: it is filled up by something that masters do not watch, and room is made in it as a person would.

use std::process::Command;

use evenkeel_local_etcd::{LocalCluster, LocalOptions};
use evenkeel_store::Error;

use super::{Stage, run};

/// So little that it is full after some dozen writes, and enough for all that a test adds.
const QUOTA: usize = 8 << 20;
/// Written again and again; compacted, all but the last of it is gone. It lies outside of what masters watch.
const FILL: &str = "zz/fill";
const FILL_SIZE: usize = 256 << 10;

impl Stage {
    /// A stage whose etcd has little space.
    pub(crate) async fn with_little_space() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let options = LocalOptions {
            binary: std::env::var_os("EVENKEEL_TEST_ETCD").map(Into::into),
            flags: vec![format!("--quota-backend-bytes={QUOTA}")],
            ..LocalOptions::new(folder.path().join("etcd"))
        };
        Self::on(LocalCluster::start(options).await.expect("etcd"), folder)
    }

    /// Fills etcd until it takes no more.
    pub(crate) async fn fill(&self) {
        for _ in 0..4 * QUOTA / FILL_SIZE {
            match self.client.put(FILL, vec![b'x'; FILL_SIZE]).await {
                Ok(_) => {}
                Err(Error::NoSpace { .. }) => return,
                Err(error) => panic!("{error}"),
            }
        }
        panic!("etcd takes more than its quota");
    }

    /// Compacts, defragments, disarms the alarm.
    pub(crate) async fn make_room(&self) {
        let revision = self.client.get(FILL.as_bytes()).await.expect("read").revision;
        self.client.compact(revision).await.expect("compacted");
        for arguments in [&["defrag"][..], &["alarm", "disarm"]] {
            let mut command = Command::new("etcdctl");
            run(command.env("ETCDCTL_API", "3").args(["--endpoints", &self.etcd.endpoint(0)]).args(arguments));
        }
    }
}

//! The etcd of our own: it comes up, says why when it does not, and never outlives us.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use evenkeel_local_etcd::{LocalCluster, LocalError, LocalOptions, Ports};
use evenkeel_store::{Client, Config};

/// Within this anything must have happened that is to happen.
const LONG: Duration = Duration::from_secs(30);

fn options(dir: &tempfile::TempDir) -> LocalOptions {
    let mut options = LocalOptions::new(dir.path());
    options.binary = std::env::var_os("EVENKEEL_TEST_ETCD").map(PathBuf::from);
    options.no_fsync = true;
    options
}

/// Whether a process is there; one that waits to be reaped is not, and some first processes of a machine reap late or never.
fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.trim().starts_with(['Z', 'X']))
}

#[tokio::test]
async fn a_member_is_killed_frozen_restarted_and_gone_in_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut etcd = LocalCluster::start(options(&dir)).await.unwrap();
    let client = Client::new(Config::new(etcd.endpoints())).unwrap();
    let status = client.wait_ready(LONG).await.unwrap();
    assert_eq!(status.version, etcd.version());
    assert!(status.leads && status.db_size > 0);
    client.put("/kept", "1").await.unwrap();
    let first = etcd.pid(0).unwrap();
    etcd.kill(0).unwrap();
    assert!(!alive(first) && etcd.pid(0).is_none());
    assert!(matches!(etcd.stop(0), Err(LocalError::Process { member: 0, .. })));
    etcd.restart(0).await.unwrap();
    let second = etcd.pid(0).unwrap();
    assert!(client.get(b"/kept").await.unwrap().kv.is_some(), "the data is kept, and the port");
    etcd.stop(0).unwrap();
    assert!(client.get(b"/kept").await.is_err());
    drop(etcd);
    assert!(!alive(second), "also a frozen one");
}

#[tokio::test]
async fn the_usual_ports_are_taken_if_they_are_free() {
    let port = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (client, peer) = (port(), port());
    let ports = |l: &TcpListener| l.local_addr().unwrap().port();
    let prefer = Ports::Prefer { client: ports(&client), peer: ports(&peer) };
    let (wanted, dir) = (ports(&peer), tempfile::tempdir().unwrap());
    drop(peer);
    // The port for clients is in use: another is taken.
    let cluster = LocalCluster::start(LocalOptions { ports: prefer, ..options(&dir) }).await.unwrap();
    assert_ne!(cluster.endpoint(0), format!("http://127.0.0.1:{}", ports(&client)));
    assert!(TcpListener::bind(("127.0.0.1", wanted)).is_err(), "the other one is used");
}

#[tokio::test]
async fn what_does_not_come_up_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let missing = LocalOptions { binary: Some("/nowhere/etcd".into()), ..options(&dir) };
    let error = LocalCluster::start(missing).await.unwrap_err();
    assert!(matches!(error, LocalError::Binary { .. }) && error.to_string().contains("install etcd"), "{error}");
    let other = LocalOptions { binary: Some("/bin/true".into()), ..options(&dir) };
    assert!(matches!(LocalCluster::start(other).await, Err(LocalError::Binary { .. })));
    let wrong = LocalOptions { flags: vec!["--no-such-flag".into()], ..options(&dir) };
    let error = LocalCluster::start(wrong).await.unwrap_err();
    assert!(matches!(error, LocalError::DidNotStart { .. }) && error.to_string().contains("no-such-flag"), "{error}");
}

/// Not a test of its own: the process that the next one kills.
#[tokio::test]
async fn helper_that_is_killed() {
    if std::env::var_os("EVENKEEL_TEST_HELPER").is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let etcd = LocalCluster::start(options(&dir)).await.unwrap();
    println!("pid {}", etcd.pid(0).unwrap());
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_member_does_not_outlive_the_process_that_started_it() {
    let mut helper = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "helper_that_is_killed", "--nocapture"])
        .env("EVENKEEL_TEST_HELPER", "1")
        // A flag of etcd in our environment is none of its business.
        .env("ETCD_NAME", "somebody-else")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(helper.stdout.take().unwrap()).lines();
    let pid = lines.find_map(|line| line.unwrap().split("pid ").nth(1).map(|pid| pid.trim().parse::<u32>().unwrap())).unwrap();
    assert!(alive(pid));
    helper.kill().unwrap();
    helper.wait().unwrap();
    let ended = async {
        while alive(pid) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, ended).await.unwrap();
}

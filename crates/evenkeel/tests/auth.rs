//! etcd's authentication is switched on under a running cluster: leases are extended and watches go on, but nothing is read or written. Work
//! stops, everybody says why, and nobody shows it as running.

mod support;

use std::process::Command;

use support::Stage;

fn etcdctl(stage: &Stage, arguments: &[&str]) {
    let output = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", &stage.etcd.endpoints().join(",")])
        .args(arguments)
        .output()
        .expect("etcdctl, which comes with etcd");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn a_cluster_whose_etcd_asks_for_authentication_says_so_and_comes_back() {
    let mut stage = Stage::start().await;
    stage.masters(2, &[]).await;
    stage.workers(1).await;
    let leader = stage.leader().await;
    assert!(stage.cli(&leader, &["add", "a", "--kind", "process", "--spec", r#"{"command":["sleep","1000"]}"#]).status.success());
    let before = stage.settled(1).await["a"].clone();
    for arguments in [
        ["user", "add", "root", "--new-user-password=secret"].as_slice(),
        &["role", "add", "root"],
        &["user", "grant-role", "root", "root"],
        &["auth", "enable"],
    ] {
        etcdctl(&stage, arguments);
    }
    let why = "asks for authentication (etcdserver: user name is empty), and evenkeel has no credentials to give; switch it off with `etcdctl auth disable`";
    for name in ["worker-1", "master-1", "master-2"] {
        let what = format!("{name} is not ready, and says why");
        let ready = || stage.curl(name, "/readyz", &[]);
        stage
            .eventually(&what, async || {
                let said = ready();
                (said.starts_with("not ready: ") && said.contains(why)).then_some(())
            })
            .await;
        stage.eventually("its log says so, too", async || stage.log(name).contains(why).then_some(())).await;
    }
    // Nobody says that it runs.
    let shown = stage.cli(&leader, &["get"]);
    assert!(!shown.status.success() && shown.stdout.is_empty(), "{}", String::from_utf8_lossy(&shown.stdout));
    assert!(String::from_utf8_lossy(&shown.stderr).contains("asks for authentication"), "{}", String::from_utf8_lossy(&shown.stderr));
    etcdctl(&stage, &["--user", "root:secret", "auth", "disable"]);
    let after = stage.settled(1).await["a"].clone();
    assert_eq!((after.worker, after.epoch), (before.worker, before.epoch), "its assignment was never taken away");
    stage.ready(1).await;
}

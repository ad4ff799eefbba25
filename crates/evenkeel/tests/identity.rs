//! Two masters of one id, on real processes: the second is refused, and says by whom the id is held.

mod support;

use support::{Stage, evenkeel};

#[tokio::test]
async fn a_second_master_of_one_id_is_refused() {
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    let first = format!("127.0.0.1:{}", stage.process("master-1").grpc);
    let etcd = stage.etcd.endpoints().join(",");
    let second = evenkeel().args(["master", "--id", "1", "--etcd", &etcd, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]).output();
    let second = second.expect("run");
    let said = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("error: the id master-1 is taken by a live master at {first}")), "{said}");
    assert_eq!(stage.leader().await, "master-1");
    // One that was killed is followed by another of its id.
    stage.cut("master-1").await;
    stage.spawn("master-1", &[]);
    assert_eq!(stage.leader().await, "master-1");
}

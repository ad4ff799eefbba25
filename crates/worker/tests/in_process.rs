//! Work inside a real worker process: what it says is seen, a change is taken, and one that cannot be ended ends its process.

mod support;

use evenkeel_model::{Observed, Phase, Session, StopReason};
use evenkeel_proto::v1::{LogsRequest, worker_client::WorkerClient};
use serde_json::json;
use support::{Testbed, dead, eventually};

async fn output(address: &str, name: &str) -> String {
    let mut client = WorkerClient::connect(format!("http://{address}")).await.expect("connected");
    let request = LogsRequest { name: name.to_owned(), ..LogsRequest::default() };
    let Ok(stream) = client.logs(request).await else { return String::new() };
    let (mut stream, mut all) = (stream.into_inner(), Vec::new());
    while let Some(message) = stream.message().await.expect("message") {
        all.extend(message.chunk);
    }
    String::from_utf8(all).expect("text")
}

#[tokio::test]
async fn a_piece_is_seen_changed_and_stopped_as_a_process_is() {
    let testbed = Testbed::start("in-process-seen").await;
    let _worker = testbed.worker(json!({"in_process": true}));
    let (_, registration) = testbed.admit_after(Session(0)).await;
    assert_eq!(registration.kinds, ["noop", "piece", "process"]);
    assert!(registration.driver("piece").updates);
    let spec = json!({"says": "first"});
    let epoch = testbed.assign("a", "piece", &spec).await;
    testbed.phase("a", epoch, Observed::Running).await;
    eventually("its output", async || (output(&registration.address, "a").await == "first\n").then_some(())).await;
    testbed.assign("a", "piece", &json!({"says": "second"})).await;
    eventually("the output of the same run", async || (output(&registration.address, "a").await == "first\nsecond\n").then_some(())).await;
    let wrong = testbed.assign("wrong", "piece", &json!({"says": 1})).await;
    let why = testbed.phase("wrong", wrong, Observed::Failed).await.message;
    assert_eq!(why, "spec.says: invalid type: integer `1`, expected a string");
    testbed.write("a", "piece", &spec, Phase::Stop { reason: StopReason::Rebalance, to: None }).await;
    testbed.phase("a", epoch, Observed::Stopped).await;
}

#[tokio::test]
async fn one_that_cannot_be_ended_is_named_and_ends_its_process_which_comes_back() {
    let testbed = Testbed::start("in-process-blocks").await;
    let worker = testbed.worker(json!({"in_process": true}));
    let (session, _) = testbed.admit_after(Session(0)).await;
    let culprit = json!({"says": "mine", "blocks": true});
    let (blocks, other) =
        (testbed.assign("blocks", "piece", &culprit).await, testbed.assign("other", "piece", &json!({"says": "x"})).await);
    testbed.phase("blocks", blocks, Observed::Running).await;
    testbed.phase("other", other, Observed::Running).await;
    let agent = worker.agent_pid().await;
    testbed.write("blocks", "piece", &culprit, Phase::Stop { reason: StopReason::Drain, to: None }).await;
    let said = eventually("who it is", async || testbed.status("blocks").await.filter(|status| status.overran)).await;
    assert!(said.phase == Observed::Stopping && said.message.starts_with("it blocks its thread and ignores its stop"), "{said:?}");
    dead(agent).await;
    let (_, registration) = testbed.admit_after(session).await;
    assert_eq!(registration.attests, Some(session), "nothing of it runs any more");
    let stopped = testbed.phase("blocks", blocks, Observed::Stopped).await;
    assert!(!stopped.overran);
    testbed.phase("other", other, Observed::Running).await;
}

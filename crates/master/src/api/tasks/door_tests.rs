//! What the door of the original takes, what it refuses and with which words, and what it shows, without a master behind it.

use http_body_util::BodyExt;
use serde_json::json;

use super::*;

fn refused(body: &str) -> String {
    match sent(body.as_bytes()) {
        Ok(task) => panic!("taken: {task:?}"),
        Err(Wrong(status, message)) => {
            assert_eq!(status, StatusCode::BAD_REQUEST, "{message}");
            message
        }
    }
}

#[test]
fn the_body_of_the_original_is_a_task() {
    let body = r##"{"script":"#!/bin/bash\nss -ntlp","account":"root","title":"test01","timeout":5,"hosts":"[\"192.168.3.200\",\"192.168.3.201\"]","creator":"xiaoyi","args":"a,,b c","created":"2023-01-01T00:00:00Z","done":1,"clock":7,"action":"x"}"##;
    let task = sent(body.as_bytes()).map_err(|Wrong(_, why)| why).expect("a task");
    assert_eq!(task.script, "#!/bin/bash\nss -ntlp");
    assert_eq!((task.account.as_str(), task.title.as_str(), task.creator.as_str()), ("root", "test01", "xiaoyi"));
    assert_eq!((task.timeout_ms, task.batch.as_str(), task.tolerance.as_str()), (5000, "all", "all"));
    assert_eq!(task.args, ["a", "b c"]);
    assert_eq!(task.hosts_as_sent, r#"["192.168.3.200","192.168.3.201"]"#);
    assert_eq!(task.on.expect("hosts").hosts, ["192.168.3.200", "192.168.3.201"]);
    let list = sent(br#"{"script":"id","account":"root","hosts":["w1", "w2"]}"#).map_err(|Wrong(_, why)| why).expect("a task");
    assert_eq!((list.hosts_as_sent.as_str(), list.timeout_ms), (r#"["w1","w2"]"#, 0));
    assert_eq!((list.on.expect("hosts").hosts, list.args.len()), (vec!["w1".to_owned(), "w2".to_owned()], 0));
}

#[test]
fn what_is_wrong_is_said_with_its_field() {
    let with = |field: &str, value: serde_json::Value| {
        let mut body = json!({"script": "id", "account": "root", "hosts": "[\"w1\"]"});
        body[field] = value;
        body.to_string()
    };
    let array = r#"must be a JSON array of texts, or a text that holds one, such as "[\"worker-1\",\"worker-2\"]""#;
    let span = "a number of seconds from 0 to 604800";
    let cases = [
        ("[]".to_owned(), "body: must be a JSON object".to_owned()),
        ("{".to_owned(), "body: EOF while parsing an object at line 1 column 1".to_owned()),
        (with("timeout", json!(-1)), format!("timeout: invalid \"-1\": {span}")),
        (with("timeout", json!("5")), format!("timeout: invalid \"\\\"5\\\"\": {span}")),
        (with("timeout", json!(5.5)), format!("timeout: invalid \"5.5\": {span}")),
        (with("timeout", json!(604_801)), format!("timeout: invalid \"604801\": {span}")),
        (with("hosts", json!("w1,w2")), format!("hosts: invalid \"w1,w2\": {array}")),
        (with("hosts", json!("{}")), format!("hosts: invalid \"{{}}\": {array}")),
        (with("hosts", json!([1])), format!("hosts: invalid \"[1]\": {array}")),
        (with("hosts", json!("[]")), "hosts: are missing; name the workers that run it".to_owned()),
        (with("hosts", json!(null)), "hosts: are missing; name the workers that run it".to_owned()),
        (with("account", json!("")), "account: is missing; name the user that the script runs as".to_owned()),
        (with("script", json!(7)), "script: invalid \"7\": must be a text".to_owned()),
        (with("args", json!("x".repeat(513))), "args: has 513 characters; at most 512 are taken".to_owned()),
    ];
    for (body, expected) in cases {
        assert_eq!(refused(&body), expected, "{body}");
    }
}

#[test]
fn a_caller_who_can_mend_it_is_told_400() {
    let cases = [
        (Status::invalid_argument("a"), 400),
        (Status::not_found("a"), 400),
        (Status::already_exists("a"), 400),
        (Status::failed_precondition("a"), 400),
        (Status::unavailable("a"), 500),
        (Status::resource_exhausted("a"), 500),
        (Status::permission_denied("a"), 500),
    ];
    for (status, expected) in cases {
        let Wrong(code, message) = status.clone().into();
        assert_eq!((code.as_u16(), message.as_str()), (expected, "a"), "{status}");
    }
}

fn state(id: u32) -> v1::TaskState {
    let task = v1::Task {
        title: "test01".to_owned(),
        account: "root".to_owned(),
        script: "id".to_owned(),
        args: vec!["a".to_owned(), "b".to_owned()],
        timeout_ms: 5000,
        hosts_as_sent: if id == 1 { r#"["w1"]"#.to_owned() } else { String::new() },
        ..v1::Task::default()
    };
    let hosts = vec![v1::TaskHost { worker: "w2".to_owned(), ..v1::TaskHost::default() }];
    let done = if id == 1 { "done" } else { "paused" };
    v1::TaskState { id, task: Some(task), hosts, state: done.to_owned(), created: 1_795_246_511_794_988_804, ..v1::TaskState::default() }
}

async fn listed(rows: Vec<Result<v1::TaskState, Status>>) -> Option<String> {
    let body = rows_as_json(stream::iter(rows)).into_body().collect().await.ok()?;
    String::from_utf8(body.to_bytes().to_vec()).ok()
}

#[tokio::test]
async fn the_list_is_an_array_whatever_there_is() {
    assert_eq!(listed(Vec::new()).await.as_deref(), Some("[]"));
    let first = r#"{"id":1,"title":"test01","account":"root","timeout":5,"hosts":"[\"w1\"]","script":"id","args":"a,,b","creator":"","created":"2026-11-21T07:35:11Z","done":1}"#;
    let second = first.replace("\"id\":1,", "\"id\":2,").replace("w1", "w2").replace("\"done\":1", "\"done\":0");
    assert_eq!(listed(vec![Ok(state(1)), Ok(state(2))]).await, Some(format!("[{first},{second}]")));
    // Half a list is none: it is broken off, and nobody takes it for all.
    assert_eq!(listed(vec![Ok(state(1)), Err(Status::unavailable("etcd"))]).await, None);
}

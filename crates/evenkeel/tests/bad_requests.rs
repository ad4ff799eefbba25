//! Bad input to a running cluster, by HTTP and gRPC: each gets a clear error that names the field and the rule, and leaves nothing behind.

mod support;

use evenkeel_proto::v1::{AddResourceRequest, AddResourcesRequest, Resource};
use futures::StreamExt;
use support::{Stage, evenkeel, run};
use tonic::Code;

/// An HTTP request, the status that it gets, the gRPC code in the answer, and what the message contains.
struct Case(&'static str, &'static str, String, u16, i32, &'static str);

fn case(method: &'static str, path: &'static str, body: impl Into<String>, status: u16, code: i32, says: &'static str) -> Case {
    Case(method, path, body.into(), status, code, says)
}

fn adds() -> Vec<Case> {
    let add = |body: &str, says| case("POST", "/v1/resources", body, 400, 3, says);
    let long = format!(r#"{{"name":"{}"}}"#, "x".repeat(254));
    let labels: Vec<String> = (0..65).map(|n| format!(r#""l{n}":"v""#)).collect();
    let labels = format!(r#"{{"name":"a","labels":{{{}}}}}"#, labels.join(","));
    vec![
        add("", "name: \"\" is empty"),
        add("{}", "name: \"\" is empty"),
        add("{", "body: EOF"),
        add("[]", "body: "),
        add("null", "body: "),
        add("\"a\"", "body: "),
        add("name=a", "body: "),
        add(r#"{"name":"a"}{}"#, "body: trailing characters"),
        add(r#"{"name":"a","name":"b"}"#, "body: \"name\" is given twice; give it once"),
        add(r#"{"name":"a","spec":{"a":{"b":1,"b":1}}}"#, "body: \"b\" is given twice"),
        add(r#"{"name":"a","labels":{"a":"b","a":"b"}}"#, "body: \"a\" is given twice"),
        case("DELETE", "/crawler/resource", r#"{"name":"a","name":"b"}"#, 400, 3, "body: \"name\" is given twice"),
        add(r#"{"name":7}"#, "body: "),
        add(r#"{"name":["a"]}"#, "body: "),
        add(r#"{"nmae":"a"}"#, "nmae"),
        add(r#"{"resource":{"name":"a"}}"#, "resource"),
        add(r#"{"name":"a b"}"#, "' ' at position 2"),
        add(r#"{"name":"/a"}"#, "'/' at position 1"),
        add(r#"{"name":"a/b"}"#, "'/' at position 2"),
        add(r#"{"name":"../a"}"#, "'/' at position 3"),
        add(r#"{"name":"-a"}"#, "begins with '-'"),
        add(r#"{"name":".a"}"#, "begins with '.'"),
        add(r#"{"name":"é"}"#, "'é' at position 1"),
        add("{\"name\":\"a\\u0000\"}", "position 2"),
        add("{\"name\":\"a\\n\"}", "position 2"),
        add(&long, "has 254 characters"),
        add(r#"{"name":"a","weight":0}"#, "weight: 0 is not within 1 to 1000000"),
        add(r#"{"name":"a","weight":1000001}"#, "weight: 1000001"),
        add(r#"{"name":"a","weight":-1}"#, "body: "),
        add(r#"{"name":"a","weight":1.5}"#, "body: "),
        add(r#"{"name":"a","weight":99999999999}"#, "body: "),
        add(r#"{"name":"a","kind":"a b"}"#, "kind: \"a b\""),
        add(r#"{"name":"a","kind":"/bin/sh"}"#, "kind: \"/bin/sh\""),
        add(r#"{"name":"a","pin":"worker 1"}"#, "pin: \"worker 1\""),
        add(r#"{"name":"a","require":"a in b"}"#, "at character 6: expected '('"),
        add(r#"{"name":"a","require":","}"#, "at character 1: expected a label's key"),
        add(r#"{"name":"a","require":"a=b,,c"}"#, "at character 5"),
        add(r#"{"name":"a","ownership":"shared"}"#, "ownership: must be exclusive or available, not \"shared\""),
        add(r#"{"name":"a","require":"a=b,a=c"}"#, "require: a=b and a=c can never hold together"),
        add(r#"{"name":"a","require":"a,!a"}"#, "require: a and !a can never hold together"),
        add(r#"{"name":"a","policy":"fastest"}"#, "policy: unknown policy \"fastest\"; use one of least-payload, round-robin"),
        add(r#"{"name":"a","prefer":[{"selector":"a in b","weight":1}]}"#, "prefer: selector \"a in b\": at character 6"),
        add(r#"{"name":"a","prefer":[{"weight":1}]}"#, "prefer: selector: is empty"),
        add(r#"{"name":"a","prefer":[{"selector":"a","weight":-1}]}"#, "prefer: invalid value: integer `-1`"),
        add(r#"{"name":"a","prefer":[{"selector":"a","weight":0}]}"#, "prefer: weight: 0 is not within 1 to 1000000"),
        add(r#"{"name":"a","spread":"a zone"}"#, "spread: invalid key \"a zone\""),
        add(r#"{"name":"a","together":"a in ()"}"#, "together: selector \"a in ()\": at character 7"),
        add(r#"{"name":"a","apart":"a>b"}"#, "apart: selector \"a>b\": at character 2"),
        add(r#"{"name":"a","apart":"a=b","together":"a=b"}"#, "apart: a=b is what together asks for as well"),
        add(r#"{"name":"a","rebalance":"sometimes"}"#, "rebalance: must be auto or never, not \"sometimes\""),
        add(r#"{"name":"a","labels":{"":"b"}}"#, "labels: invalid key \"\""),
        add(r#"{"name":"a","labels":{"a b":"c"}}"#, "labels: invalid key \"a b\""),
        add(r#"{"name":"a","labels":{"a":"b,c"}}"#, "labels: invalid value \"b,c\" of a"),
        add(r#"{"name":"a","labels":{"a":7}}"#, "body: "),
        add(&labels, "labels: 65 labels are more than 64"),
        case("POST", "/v1/resources", "x".repeat((1 << 20) + 1), 413, 8, "larger than"),
        case("POST", "/crawler/resource", "", 400, 3, "name: \"\" is empty"),
        case("POST", "/crawler/resource", r#"{"name":"a b"}"#, 400, 3, "name: \"a b\""),
        case("POST", "/crawler/resource", r#"{"name":"a","weight":2}"#, 400, 3, "weight"),
        case("POST", "/crawler/resource", r#"{"name":"a","creation_time":"soon"}"#, 400, 3, "body: "),
    ]
}

fn specs() -> Vec<Case> {
    let add = |body: &str, says| case("POST", "/v1/resources", body, 400, 3, says);
    let spec = |spec: &str| format!(r#"{{"name":"a","spec":{spec}}}"#);
    let process = |spec: &str| format!(r#"{{"name":"a","kind":"process","spec":{spec}}}"#);
    let large = spec(&format!(r#"{{"a":"{}"}}"#, "x".repeat(65_536)));
    let deep = spec(&format!(r#"{{"a":{}{}}}"#, "[".repeat(60), "]".repeat(60)));
    vec![
        add(&spec("[]"), "body: "),
        add(&spec("3"), "body: "),
        add(&large, "spec: 65544 bytes are more than 65536"),
        add(&deep, "body: is nested deeper than 36 levels"),
        add(&spec(r#"{"a":9007199254740994}"#), "cannot be held exactly"),
        add(&spec(r#"{"a":1e999}"#), "body: "),
        add(r#"{"name":"a","kind":"process"}"#, "spec.command: is missing"),
        add(&process(r#"{"command":"ls"}"#), "spec.command: must be a list of strings"),
        add(
            &process(r#"{"command":["ls"],"restart":"sometimes"}"#),
            "spec.restart: must be always, on-failure or never, not \"sometimes\"",
        ),
        add(&process(r#"{"command":["ls"],"stop_grace":"2"}"#), "spec.stop_grace: invalid span \"2\""),
        add(&process(r#"{"command":["ls"],"stop_signal":"FOO"}"#), "spec.stop_signal: unknown signal \"FOO\""),
        add(&process(r#"{"command":["ls"],"env":{"EVENKEEL_EPOCH":"1"}}"#), "spec.env.EVENKEEL_EPOCH"),
        add(&process(r#"{"command":["ls"],"bogus":1}"#), "spec.bogus: unknown field"),
    ]
}

fn others() -> Vec<Case> {
    vec![
        case("GET", "/v1/resources/none", "", 404, 5, "no such resource"),
        case("GET", "/v1/resources/a%20b", "", 400, 3, "name: \"a b\""),
        case("GET", "/v1/resources/%ff", "", 400, 3, "is not UTF-8 when decoded"),
        case("GET", "/v1/resources?selector=a%20in%20b", "", 400, 3, "selector: selector \"a in b\": at character 6"),
        case("GET", "/v1/resources?page_size=many", "", 400, 3, "page_size: \"many\""),
        case("GET", "/v1/resources?page_size=-2", "", 400, 3, "page_size: -2 is less than 0"),
        case("GET", "/v1/resources?page_token=%20", "", 400, 3, "page_token: invalid: it must be one"),
        case("PUT", "/v1/resources/one", r#"{"name":"two"}"#, 400, 3, "the body says \"two\" and the path \"one\""),
        case("GET", "/v1/resources?sort=name", "", 400, 3, "sort: no such field"),
        case("GET", "/v1/resources:watch?selector=,", "", 400, 3, "at character 1"),
        case("GET", "/v1/resources/none:explain", "", 404, 5, "no such resource"),
        case("GET", "/v1/resources/none:logs", "", 404, 5, "no such resource"),
        case("GET", "/v1/usage?name=none", "", 404, 5, "no such resource"),
        case("GET", "/v1/usage?worker=nobody", "", 404, 5, "no such worker"),
        case("GET", "/v1/usage?worker=a%20b", "", 400, 3, "worker: \"a b\""),
        case("GET", "/v1/usage?page_token=%20", "", 400, 3, "page_token: invalid: it must be one"),
        case("GET", "/v1/resources/none:fly", "", 404, 5, "nothing is at GET /v1/resources/none:fly"),
        case("GET", "/v1/events?after=yesterday", "", 400, 3, "after: \"yesterday\""),
        case("PUT", "/v1/resources/none", r#"{"spec":{}}"#, 404, 5, "no such resource"),
        case("PUT", "/v1/resources/none", "{", 400, 3, "body: EOF"),
        case("PUT", "/v1/resources/a%2fb", "{}", 400, 3, "name: \"a/b\""),
        case("DELETE", "/v1/resources/none", "", 404, 5, "no such resource"),
        case("DELETE", "/v1/resources/none?id=x", "", 400, 3, "id: invalid \"x\""),
        case("DELETE", "/v1/resources", "", 405, 12, "DELETE is not allowed for /v1/resources; allowed: POST, GET, HEAD"),
        case("DELETE", "/crawler/resource", "{}", 400, 3, "name: \"\" is empty"),
        case("DELETE", "/crawler/resource", r#"{"name":"none"}"#, 404, 5, "no such resource"),
        case("GET", "/crawler/resource", "", 405, 12, "allowed: POST, DELETE"),
        case("PATCH", "/v1/resources/none", "{}", 405, 12, "PATCH is not allowed"),
        case("POST", "/v1/workers/none:cordon", "", 404, 5, "no such worker"),
        case("POST", "/v1/workers/none:uncordon", "", 404, 5, "no such worker"),
        case("POST", "/v1/workers/none:drain", "", 404, 5, "no such worker"),
        case("POST", "/v1/workers/a%20b:drain", "", 400, 3, "id: \"a b\" has ' ' at position 2"),
        case("POST", "/v1/workers/none:drain", r#"{"deadlineMs":"soon"}"#, 400, 3, "body: "),
        case("GET", "/v1/plan?drain=w&add.name=a", "", 400, 3, "add.name: drain is given as well; leave out one of them"),
        case("GET", "/v1/plan?drain=none", "", 404, 5, "drain: no such worker"),
        case("GET", "/v1/plan?lose=", "", 400, 3, "lose: \"\" is empty"),
        case("GET", "/v1/plan?rebalance=false", "", 400, 3, "rebalance: is false; leave it out"),
        case("POST", "/v1/plan", r#"{"add":{"name":"a b"}}"#, 400, 3, "name: \"a b\""),
        case("POST", "/v1/plan", r#"{"add":{"name":"a"},"drain":"w"}"#, 400, 3, "body: "),
        case("GET", "/", "", 404, 5, "nothing is at GET /"),
        case("GET", "/v1", "", 404, 5, "nothing is at GET /v1"),
        case("GET", "/v2/resources", "", 404, 5, "nothing is at"),
        case("GET", "//v1//resources", "", 404, 5, "nothing is at"),
        case("POST", "/metrics", "", 405, 12, "POST is not allowed for /metrics; allowed: GET, HEAD"),
    ]
}

#[tokio::test]
async fn every_bad_request_is_named_and_leaves_nothing_behind() {
    let mut stage = Stage::start().await;
    stage.masters(2, &[]).await;
    stage.workers(1).await;
    let mut wrong = Vec::new();
    let mut count = 0;
    for master in ["master-1", "master-2"] {
        for Case(method, path, body, status, code, says) in adds().into_iter().chain(specs()).chain(others()) {
            count += 1;
            let file = stage.path().join("body");
            std::fs::write(&file, &body).expect("written");
            let data = format!("@{}", file.display());
            let answer = stage.curl(master, path, &["--path-as-is", "-X", method, "--data-binary", &data, "-w", "\n%{http_code}"]);
            let (answer, got) = answer.rsplit_once('\n').expect("a status");
            let json: serde_json::Value = serde_json::from_str(answer).unwrap_or_default();
            let message = json["message"].as_str().unwrap_or_default();
            let code_fits = code == 0 || json["code"] == code;
            if got != status.to_string() || !code_fits || !message.contains(says) {
                let body: String = body.chars().take(100).collect();
                wrong.push(format!("{method} {path} {body}\n  got {got} {answer}\n  expected {status} {code} {says:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(stage.etcdctl("/resources/"), "");
    assert!(stage.assignments().await.is_empty());
    stage.curl("master-1", "/crawler/resource", &["-d", r#"{"name":"still-works"}"#]);
    stage.settled(1).await;
}

#[tokio::test]
async fn what_stands_already_is_not_overwritten_and_one_bad_request_does_not_end_a_stream() {
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    stage.workers(1).await;
    let mut client = stage.connect("master-1").await.expect("connected");
    let resource = |name: &str, weight| Some(Resource { name: name.to_owned(), weight: Some(weight), ..Resource::default() });
    let first = client.add_resource(AddResourceRequest { resource: resource("a", 1) }).await.expect("added").into_inner();
    assert!(first.created);
    let again = client.add_resource(AddResourceRequest { resource: resource("a", 1) }).await.expect("the same").into_inner();
    assert_eq!((again.created, again.resource.map(|r| r.id)), (false, first.resource.map(|r| r.id)));
    let other = client.add_resource(AddResourceRequest { resource: resource("a", 2) }).await.expect_err("other content");
    assert_eq!(
        (other.code(), other.message()),
        (Code::AlreadyExists, "resource a already exists with a different definition; update it, or delete it first")
    );

    let request =
        |name: &str, weight, replace| AddResourcesRequest { resource: resource(name, weight), replace, ..AddResourcesRequest::default() };
    let requests = vec![
        request("b", 1, false),
        request("b c", 1, false),
        request("a", 2, false),
        request("a", 2, true),
        request("b", 1, false),
        AddResourcesRequest::default(),
    ];
    let answers = client.add_resources(futures::stream::iter(requests)).await.expect("a stream").into_inner();
    let answers: Vec<(String, i32)> = answers.map(|a| a.map(|a| (a.outcome, a.code)).expect("an answer")).collect().await;
    let refused = |code: Code| (String::new(), code as i32);
    let done = |outcome: &str| (outcome.to_owned(), 0);
    let expected = [
        done("created"),
        refused(Code::InvalidArgument),
        refused(Code::AlreadyExists),
        done("changed"),
        done("unchanged"),
        refused(Code::InvalidArgument),
    ];
    assert_eq!(answers, expected);
}

#[tokio::test]
async fn a_second_worker_with_a_live_id_and_ports_in_use_are_refused() {
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    stage.workers(1).await;
    stage.curl("master-1", "/crawler/resource", &["-d", r#"{"name":"a"}"#]);
    let before = stage.settled(1).await;
    let session = stage.session("worker-1").await;
    let etcd = stage.etcd.endpoint(0);
    let (grpc, http) = (stage.process("worker-1").grpc, stage.process("master-1").http);
    let data = stage.path().join("second").display().to_string();
    let cases: [(&[&str], &str); 3] = [
        (
            &["worker", "--id", "1", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data-dir", &data],
            "the id worker-1 is taken by a live worker",
        ),
        (
            &["worker", "--id", "2", "--grpc", &format!("127.0.0.1:{grpc}"), "--http", "127.0.0.1:0", "--data-dir", &data],
            "--grpc 127.0.0.1",
        ),
        (&["master", "--id", "2", "--grpc", "127.0.0.1:0", "--http", &format!("127.0.0.1:{http}")], "--http 127.0.0.1"),
    ];
    for (arguments, says) in cases {
        let output = evenkeel().args(arguments).args(["--etcd", &etcd]).output().expect("run");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains(says), "{arguments:?}: {said}");
    }
    assert_eq!(stage.session("worker-1").await, session);
    assert_eq!(stage.settled(1).await, before);
    assert!(run(evenkeel().arg("version")).starts_with("evenkeel "));
}

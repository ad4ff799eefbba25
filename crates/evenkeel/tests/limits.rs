//! The limits of input from outside: the largest resource goes through and reads back as itself, one more of anything is refused by its
//! name, and what stands in etcd beyond the limits holds up nobody.

mod support;

use std::collections::BTreeMap;

use evenkeel_store::{Op, Txn};
use serde_json::{Value, json};
use support::{PATIENCE, Stage};

/// As long as any may be, and any labels satisfy it.
fn selector(mark: char) -> String {
    let terms: String = (0..32).map(|n| format!("{mark}{n:02}!={},", "v".repeat(249))).collect();
    format!("{terms}z!={}", "v".repeat(29))
}

fn largest() -> Value {
    let labels: BTreeMap<String, String> = (0..64).map(|n| (format!("l{n:0252}"), "v".repeat(253))).collect();
    let prefer: Vec<Value> = (0..16).map(|_| json!({"selector": selector('p'), "weight": 1_000_000})).collect();
    json!({"name": "n".repeat(253), "kind": "noop", "weight": 1_000_000, "labels": labels, "require": selector('r'), "pin": "worker-1",
        "ownership": "available", "prefer": prefer, "spread": "s".repeat(253), "together": "", "apart": selector('a'), "policy": "pack",
        "rebalance": "never", "spec": {"a": "x".repeat(65_536 - 8)}})
}

impl Stage {
    /// What a POST is answered, and its status.
    fn post(&self, path: &str, body: &Value) -> (Value, String) {
        let file = self.path().join("body");
        std::fs::write(&file, body.to_string()).expect("written");
        let data = format!("@{}", file.display());
        let answer = self.curl("master-1", path, &["-d", &data, "-w", "\n%{http_code}"]);
        let (answer, status) = answer.rsplit_once('\n').expect("a status");
        (serde_json::from_str(answer).unwrap_or_else(|e| panic!("{e}: {answer}")), status.to_owned())
    }

    async fn put(&self, key: &str, value: impl Into<Vec<u8>>) {
        self.client.put(key, value).await.expect("written");
    }

    /// The reason that is shown for a worker.
    async fn reason_of(&self, worker: &str) -> Option<String> {
        self.list_workers().await?.into_iter().find(|w| w.id == worker).map(|w| w.reason)
    }
}

#[tokio::test]
async fn the_largest_resource_reads_back_as_itself_and_a_larger_one_is_refused_by_its_field() {
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    stage.workers(1).await;
    let (answer, status) = stage.post("/v1/resources", &largest());
    assert_eq!((status.as_str(), &answer["resource"]["worker"]), ("200", &json!("worker-1")), "{}", answer["message"]);
    let path = format!("/v1/resources/{}", "n".repeat(253));
    let read: Value = serde_json::from_str(&stage.curl("master-1", &path, &[])).expect("JSON");
    assert_eq!(read["resource"]["resource"], largest());
    stage.settled(1).await;

    let more = |field: &str, value: Value| {
        let mut body = largest();
        body["name"] = json!("b");
        body[field] = value;
        body
    };
    let values: Vec<String> = (0..64_000).map(|n| format!("v{n:06}")).collect();
    let too_deep = (0..32).fold(json!({}), |inner, _| json!({"a": inner}));
    let labels: BTreeMap<String, String> = (0..65).map(|n| (format!("l{n}"), String::new())).collect();
    let cases = [
        (more("require", json!(format!("{}v", selector('r')))), "require: selector \"r00!=vvvvv", ": 8193 characters are more than 8192"),
        (
            more("require", json!(format!("a in ({})", values.join(",")))),
            "require: selector \"a in (",
            ": 512006 characters are more than 8192",
        ),
        (more("apart", json!(format!("{}v", selector('a')))), "apart: selector", "8193 characters are more than 8192"),
        (more("prefer", json!([{"selector": format!("{}v", selector('p')), "weight": 1}])), "prefer: selector", "more than 8192"),
        (
            more("prefer", json!(vec![json!({"selector": "a", "weight": 1}); 17])),
            "prefer: 17 preferences are more than 16",
            "leave some out",
        ),
        (more("labels", json!(labels)), "labels: 65 labels are more than 64", "leave some out"),
        (more("labels", json!({"a": "v".repeat(254)})), "labels: invalid value \"vvv", "at most 253"),
        (more("spread", json!("s".repeat(254))), "spread: invalid key \"sss", "1 to 253"),
        (more("spec", json!({"a": "x".repeat(65_536 - 7)})), "spec: 65537 bytes are more than 65536", ""),
        (more("spec", too_deep), "spec: is nested deeper than 32 levels", ""),
        (more("kind", json!("k".repeat(254))), "kind: \"kkk", "has 254 characters; a name has 1 to 253"),
        (more("name", json!("n".repeat(254))), "name: \"nnn", "has 254 characters; a name has 1 to 253"),
    ];
    for (body, begins, says) in cases {
        let (answer, status) = stage.post("/v1/resources", &body);
        let message = answer["message"].as_str().unwrap_or_default();
        assert!(status == "400" && answer["code"] == 3, "{begins}: {status} {answer}");
        assert!(message.starts_with(begins) && message.contains(says) && message.len() < 400, "{begins}: {message}");
    }
    let terms = json!({"add": {"name": "a", "require": "a,".repeat(500_000) + "a"}});
    let (answer, status) = stage.post("/v1/plan", &terms);
    assert_eq!((status.as_str(), &answer["code"]), ("400", &json!(3)), "{answer}");
    assert!(answer["message"].as_str().is_some_and(|m| m.contains("1000001 characters are more than 8192")), "{answer}");
    assert!(!stage.logs().contains("cannot be written"), "{}", stage.logs());
    assert_eq!(stage.assignments().await.len(), 1);
}

#[tokio::test]
async fn what_stands_beyond_the_limits_is_placed_and_what_cannot_be_written_is_left_alone() {
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    stage.workers(1).await;
    let terms: Vec<String> = (0..10_000).map(|n| format!("k{n}!=v")).collect();
    let labels: BTreeMap<String, String> = (0..100).map(|n| (format!("l {n}"), "v".repeat(300))).collect();
    let record = |name: &str, spec: Value| {
        json!({"ID": "7", "Name": name, "AssignedNode": "", "CreationTime": 1, "Kind": "noop", "Labels": labels, "Require": terms.join(","),
            "Prefer": vec![json!({"selector": "a,!a", "weight": 7}); 100], "Spec": spec})
    };
    stage.put("/resources/beyond", record("beyond", json!({"n": u64::MAX})).to_string()).await;
    stage.put("/resources/huge", record("huge", json!({"a": "x".repeat(600_000)})).to_string()).await;
    let placed = stage.settled(1).await;
    assert!(placed.contains_key("beyond"), "{placed:?}");
    let shown = stage.eventually("it runs", async || stage.get("beyond").await.filter(|state| state.phase == "running")).await;
    let resource = shown.resource.expect("a resource");
    assert_eq!((resource.require, resource.labels.len()), (terms.join(","), 100));
    let huge = stage.get("huge").await.expect("it is listed");
    assert_eq!(huge.phase, "unknown");
    assert!(huge.reason.contains("more than 491520"), "{}", huge.reason);
    let listed = stage.cli("master-1", &["get", "-o", "name"]);
    assert_eq!(String::from_utf8_lossy(&listed.stdout), "beyond\nhuge\n");

    // A change of what may be changed is judged anew, and names the field.
    let yaml = stage.path().join("beyond.yaml");
    std::fs::write(&yaml, "name: beyond\nkind: noop\n").expect("written");
    let applied = stage.cli("master-1", &["apply", "-f", &yaml.display().to_string()]);
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    assert!(stage.cli("master-1", &["delete", "huge"]).status.success());
    stage.eventually("it is gone", async || stage.get("huge").await.is_none().then_some(())).await;
    stage.settled(1).await;
    assert!(!stage.logs().contains("cannot be written"), "{}", stage.logs());
}

#[tokio::test]
async fn a_worker_that_says_too_much_of_itself_takes_nothing_and_says_why() {
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    stage.workers(1).await;
    let kinds: Vec<String> = (0..65).map(|n| format!("k{n}")).collect();
    stage.put("/workers/many", json!({"ID": "many", "Address": "h:1", "Kinds": kinds, "BootID": "b".repeat(900_000)}).to_string()).await;
    let reason = "BootID: 900000 characters are more than 128";
    stage.eventually("it says why", async || stage.reason_of("many").await.filter(|r| r.contains(reason))).await;
    stage
        .put("/workers/long", json!({"ID": "long", "Address": "h:1", "Kinds": ["noop"], "AuthorityMs": 999_999_999_999_u64}).to_string())
        .await;
    stage
        .eventually("it claims too much", async || stage.reason_of("long").await.filter(|r| r.contains("AuthorityMs: 999999999999")))
        .await;
    stage
        .eventually("both are admitted", async || (stage.etcdctl("/admissions/").matches("/admissions/").count() == 3).then_some(()))
        .await;

    for (name, worker, says) in [("a", "many", reason), ("b", "long", "AuthorityMs: 999999999999 are more than 3600 seconds")] {
        let (answer, _) = stage.post("/v1/resources", &json!({"name": name, "kind": "noop", "pin": worker}));
        assert!(answer["resource"]["reason"].as_str().is_some_and(|r| r.contains(says)), "{answer}");
    }
    let (answer, _) = stage.post("/v1/resources", &json!({"name": "c", "kind": "noop"}));
    assert_eq!(answer["resource"]["worker"], "worker-1", "{answer}");
    let why: Value = serde_json::from_str(&stage.curl("master-1", "/v1/resources/c:explain", &[])).expect("JSON");
    let said = why["candidates"].as_array().expect("a list").iter().map(|c| c["reason"].as_str().unwrap_or_default());
    assert_eq!(said.filter(|r| r.starts_with("its registration cannot be used: ")).count(), 2, "{why}");

    // Gone, it is waited for no longer than an hour asks for, and that is said as well.
    let gone = Txn { then: vec![Op::delete("/workers/long")], ..Txn::default() };
    stage.client.txn(gone, PATIENCE).await.expect("deleted");
    let capped = "it claims more authority than 3600 seconds, and no more than that is waited for";
    stage.eventually("it is lost", async || stage.reason_of("long").await.filter(|r| r.contains(capped))).await;
}

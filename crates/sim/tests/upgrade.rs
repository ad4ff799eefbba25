//! What version 0.1.0 stored and started is left as it is by a leader of today, however it was spelled.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use evenkeel_model::{
    Action, Change, Cluster, Definition, Hash, Key, Moment, ResourceName, Revision, Spec, WorkerId,
    diff::diff,
    manifest::{self, File},
};
use evenkeel_planner::{PlannerConfig, plan};
use serde_json::json;

fn name(text: &str) -> ResourceName {
    ResourceName::new(text).unwrap()
}

fn worker() -> WorkerId {
    WorkerId::new("worker-1").unwrap()
}

/// An etcd as 0.1.0 leaves it: `plain` as ARCHITECTURE.md shows it, `spelled` with the defaults that its owner had written out.
fn cluster() -> Cluster {
    let mut cluster = Cluster::default();
    let mut see = |created: i64, key: Key, json: &str| {
        let (entry, error) = key.read(json.as_bytes());
        assert_eq!(error, None, "{json}");
        cluster.apply(Change { error, ..Change::over(Revision(created), Revision(created), entry) }, Moment::default());
    };
    see(
        7,
        Key::Worker(worker()),
        r#"{"ID":"worker-1","Address":"127.0.0.1:9090","HTTP":"127.0.0.1:8080","Kinds":["noop","process"],"Version":"0.1.0","BootID":"3289f53d-bfc4-4179-97d2-d8bed1e4e8ec","Guard":"1c59ad391efd76b3"}"#,
    );
    see(8, Key::Admission(worker()), r#"{"Session":7,"BootID":"3289f53d-bfc4-4179-97d2-d8bed1e4e8ec","Guard":"1c59ad391efd76b3"}"#);
    for (text, spec) in [
        ("plain", r#"{"command":["sleep","1000"]}"#),
        ("spelled", r#"{"command":["sleep","1000"],"env":{},"restart":"always","stop_grace":"3000ms","stop_signal":"SIGTERM"}"#),
    ] {
        let hash = Hash::of("process", &Spec::stored(serde_json::from_str(spec).unwrap()).unwrap());
        see(
            9,
            Key::Resource(name(text)),
            &format!(
                r#"{{"ID":"2124043930835099652","Name":"{text}","AssignedNode":"worker-1|127.0.0.1:9090","CreationTime":1795246510596629451,"Kind":"process","Spec":{spec},"Hash":"{hash}"}}"#
            ),
        );
        see(9, Key::Assignment(worker(), name(text)), &format!(r#"{{"Kind":"process","Spec":{spec},"Hash":"{hash}","Phase":"run"}}"#));
        see(9, Key::Status(worker(), name(text)), r#"{"Phase":"running","Epoch":9,"Since":1795246510618343219}"#);
    }
    cluster
}

fn actions(cluster: &Cluster) -> Vec<Action> {
    plan(cluster, Moment::default(), &PlannerConfig::default()).actions
}

/// The record is written anew with another spec, as an external writer or `UpdateResource` does.
fn respell(cluster: &mut Cluster, text: &str, spec: serde_json::Value) {
    let mut record = cluster.unit(text).unwrap().record.as_deref().unwrap().value.clone();
    record.definition.spec = Spec::from_value(spec).unwrap();
    let (entry, error) = Key::Resource(name(text)).read(&serde_json::to_vec(&record).unwrap());
    assert_eq!(error, None);
    cluster.apply(Change::over(Revision(9), Revision(20), entry), Moment::default());
}

#[test]
fn the_hash_of_0_1_0_is_the_hash_of_today() {
    let spec = Spec::stored(json!({"command": ["sleep", "1000"]})).unwrap();
    assert_eq!(Hash::of("process", &spec).to_string(), "9c174d61cc5d0ba3");
}

#[test]
fn an_upgrade_restarts_nothing() {
    assert_eq!(actions(&cluster()), []);
}

#[test]
fn a_spec_that_0_1_0_started_may_be_spelled_otherwise_and_goes_on() {
    let mut cluster = cluster();
    respell(&mut cluster, "plain", json!({"command": ["sleep", "1000"], "restart": "always", "stop_signal": "TERM", "env": {}}));
    respell(&mut cluster, "spelled", json!({"command": ["sleep", "1000"], "stop_grace": "3s"}));
    assert_eq!(actions(&cluster), []);
    respell(&mut cluster, "plain", json!({"command": ["sleep", "1000"], "restart": "never"}));
    let stops = actions(&cluster);
    assert!(matches!(stops.as_slice(), [Action::Stop { resource, .. }] if *resource == name("plain")), "{stops:?}");
}

#[test]
fn a_file_that_spells_it_otherwise_changes_nothing_of_it() {
    let file = br#"
resources:
- {name: plain, kind: process, weight: 1, ownership: exclusive, rebalance: auto, labels: {}, require: "", pin: "", prefer: [],
   spec: {command: [sleep, "1000"], restart: always, env: {}, stop_signal: SIGTERM}}
- {name: spelled, kind: process, spec: {command: [sleep, "1000"], stop_grace: 3s}}
"#;
    let wanted = manifest::read([File { label: "f", bytes: file }]).unwrap();
    let cluster = cluster();
    let stands: BTreeMap<ResourceName, Definition> =
        cluster.units_after(None).map(|(name, unit)| (name.clone(), unit.definition().unwrap().clone())).collect();
    let same = diff(&stands, &wanted);
    assert!(same.is_empty(), "{same:?}");
    assert_eq!(same.unchanged, 2);
}

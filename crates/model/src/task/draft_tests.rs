//! What is refused, with its field and its rule; which workers a host means.

use super::*;
use crate::{Change, Entry, Moment, Registration, Revision};

fn draft() -> TaskDraft {
    TaskDraft { script: "id".to_owned(), hosts: vec!["w1".to_owned()], ..TaskDraft::default() }
}

/// An id, an address, and labels.
type Known<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);

fn cluster(workers: &[Known<'_>]) -> Cluster {
    let mut cluster = Cluster::default();
    for (n, (id, address, labels)) in (1..).zip(workers) {
        let id = WorkerId::new(id).expect("id");
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let registration = Registration { labels, ..Registration::bare(id.clone(), (*address).to_owned()) };
        cluster.apply(Change::over(Revision(n), Revision(n), Entry::Worker(id, Some(registration))), Moment::default());
    }
    cluster
}

#[test]
fn what_is_wrong_names_its_field_and_its_rule() {
    let long = |length: usize| "x".repeat(length);
    let cases: Vec<(TaskDraft, &str)> = vec![
        (TaskDraft { script: " \n".to_owned(), ..draft() }, "script: is empty; say what to run"),
        (TaskDraft { script: long(MAX_SCRIPT + 1), ..draft() }, "script: has 65537 bytes; at most 65536 are taken"),
        (TaskDraft { script: "a\0b".to_owned(), ..draft() }, "script: has a NUL character"),
        (TaskDraft { stdin: long(MAX_STDIN + 1), ..draft() }, "stdin: has 16385 bytes"),
        (TaskDraft { title: long(256), ..draft() }, "title: has 256 characters; at most 255 are taken"),
        (TaskDraft { account: "a:b".to_owned(), ..draft() }, "account: \"a:b\" is no name of a user"),
        (TaskDraft { hosts: Vec::new(), ..draft() }, "hosts: are missing; name workers, or give a selector"),
        (TaskDraft { selector: "a=b".to_owned(), ..draft() }, "selector: cannot be given beside hosts"),
        (TaskDraft { any: 1, ..draft() }, "any: and late need a selector"),
        (TaskDraft { hosts: vec!["h".to_owned(); MAX_HOSTS + 1], ..draft() }, "hosts: are 10001; at most 10000 are taken"),
        (TaskDraft { hosts_as_sent: long(600_000), ..draft() }, "hosts: have 600005 bytes; at most 524288 are taken"),
        (TaskDraft { batch: "0".to_owned(), ..draft() }, "batch: invalid value \"0\": at least one host at a time"),
        (TaskDraft { batch: "ten".to_owned(), ..draft() }, "batch: invalid value \"ten\" is a number of hosts"),
        (TaskDraft { tolerance: "101%".to_owned(), ..draft() }, "tolerance: invalid value \"101%\""),
        (TaskDraft { on_lost: "again".to_owned(), ..draft() }, "on_lost: unknown value \"again\"; use report or retry"),
        (TaskDraft { children: "x".to_owned(), ..draft() }, "children: unknown value \"x\"; use kill or leave"),
        (TaskDraft { timeout_ms: u64::MAX, ..draft() }, "timeout: 18446744073709551615 ms are more than 604800 seconds"),
        (TaskDraft { args: vec![long(5000)], ..draft() }, "args: have 5001 bytes; at most 4096 are taken"),
        (TaskDraft { env: [("EVENKEEL_TASK".to_owned(), String::new())].into(), ..draft() }, "env: \"EVENKEEL_TASK\" is set by the worker"),
        (TaskDraft { secrets: [("pw".to_owned(), "hunter2".to_owned())].into(), ..draft() }, "secrets: \"pw\": must be file:"),
    ];
    for (draft, expected) in cases {
        let error = draft.check().expect_err(expected).to_string();
        assert!(error.starts_with(expected), "{error}");
        assert!(!error.contains("hunter2"), "what may be a secret is not shown");
    }
}

#[test]
fn what_is_left_out_has_its_default() {
    let task = draft().check().expect("a task").task;
    assert_eq!((task.timeout(), task.deliver(), task.grace()), (Task::TIMEOUT, Task::DELIVER, Task::GRACE));
    assert_eq!((task.batch, task.tolerance), (Share::Count(50), Share::Count(0)));
    assert_eq!(task.sha256.as_ref(), "a56145270ce6b3bebd1dd012b73948677dd618d496488bc608a3cb43ce3547dd");
    let grace = TaskDraft { grace_ms: Some(0), ..draft() }.check().expect("a task").task;
    assert_eq!(grace.grace(), std::time::Duration::ZERO, "no grace is a grace");
}

#[test]
fn a_host_is_an_id_a_label_or_an_address_and_each_worker_is_meant_once() {
    let cluster = cluster(&[
        ("worker-1", "10.0.0.1:9090", &[]),
        ("worker-2", "[fe80::2]:9090", &[("ip", "192.168.3.200")]),
        ("worker-3", "10.0.0.1:9091", &[("host", "db")]),
    ]);
    let resolve = |hosts: &[&str]| {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        let resolved = TaskDraft { hosts, ..draft() }.check().expect("a task").resolve(&cluster);
        resolved.map(|workers| workers.iter().map(ToString::to_string).collect::<Vec<_>>()).map_err(|error| error.to_string())
    };
    let ok = |workers: &[&str]| Ok(workers.iter().map(|worker| (*worker).to_owned()).collect::<Vec<_>>());
    assert_eq!(resolve(&["worker-3", "worker-1"]), ok(&["worker-3", "worker-1"]), "in their order");
    assert_eq!(resolve(&["192.168.3.200", "db", "fe80::2"]), ok(&["worker-2", "worker-3"]));
    assert_eq!(resolve(&["10.0.0.1"]), ok(&["worker-1"]), "a machine is meant, and the least id stands for it");
    assert_eq!(resolve(&["10.9.9.9", "worker-1"]), ok(&["10.9.9.9", "worker-1"]), "one may come under that id");
    let error = resolve(&["worker-1", "no such host"]).expect_err("none can come");
    assert!(error.starts_with("hosts: \"no such host\" is known of no worker, and is no id of one that may come"), "{error}");
}

#[test]
fn a_selector_means_who_is_registered_now() {
    let cluster = cluster(&[("b", "h:1", &[("zone", "a")]), ("a", "h:2", &[("zone", "a")]), ("c", "h:3", &[("zone", "b")])]);
    let of =
        |selector: &str, late| TaskDraft { hosts: Vec::new(), selector: selector.to_owned(), late, ..draft() }.check().expect("a task");
    let found = of("zone=a", false).resolve(&cluster).expect("two");
    assert_eq!(found.iter().map(WorkerId::as_str).collect::<Vec<_>>(), ["a", "b"]);
    let error = of("zone=z", false).resolve(&cluster).expect_err("none");
    assert_eq!(error.to_string(), "selector: \"zone=z\" matches none of the workers that are registered");
    assert_eq!(of("zone=z", true).resolve(&cluster), Ok(Vec::new()), "they may come");
}

#[test]
fn the_same_content_is_known_again_whoever_asks_from_where() {
    let of = |change: fn(&mut TaskDraft)| {
        let mut draft = TaskDraft { key: "k".to_owned(), ..draft() };
        change(&mut draft);
        draft.check().expect("a task").task.content
    };
    let content = of(|_| {});
    assert_eq!(content.len(), 64);
    assert_eq!(of(|draft| (draft.from, draft.creator) = ("10.0.0.9".to_owned(), "ada".to_owned())), content);
    assert_eq!(&*content, "73cc5944c0a0c0e0c79df99b78390e571059bf35293a7bbff11965642eb9bafc", "it is the same in every version");
    assert_ne!(of(|draft| draft.script = "id -u".to_owned()), content);
    assert_ne!(of(|draft| draft.hosts.push("w2".to_owned())), content);
}

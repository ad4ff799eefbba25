//! Tests of how tasks are shown.

use evenkeel_proto::v1::Task;
use serde_json::json;

use super::*;

const S: i64 = 1_000_000_000;

fn host(worker: &str, state: &str) -> TaskHost {
    TaskHost { worker: worker.to_owned(), state: state.to_owned(), ..TaskHost::default() }
}

fn task(state: &str, outcome: &str, hosts: Vec<TaskHost>) -> TaskState {
    let definition = Task {
        title: "disk.sh".to_owned(),
        creator: "ada".to_owned(),
        account: "root".to_owned(),
        batch: "10%".to_owned(),
        tolerance: "0".to_owned(),
        timeout_ms: 300_000,
        deliver_ms: 3_600_000,
        ..Task::default()
    };
    TaskState {
        id: 7,
        task: Some(definition),
        state: state.to_owned(),
        outcome: outcome.to_owned(),
        created: S,
        hosts,
        ..TaskState::default()
    }
}

fn ended(worker: &str, state: &str, exit: i32, message: &str) -> TaskHost {
    let message = message.to_owned();
    TaskHost { exit: Some(exit), attempt: 1, ordered: S, began: 2 * S, ended: 5 * S, message, ..host(worker, state) }
}

#[test]
fn json_has_the_names_of_the_proto_and_numbers() {
    let mut done = task("done", "failed", vec![ended("w-1", "failed", 3, ""), host("w-2", "undelivered")]);
    done.counts = [("failed".to_owned(), 1), ("undelivered".to_owned(), 1)].into();
    let expected_host = json!({"worker": "w-1", "state": "failed", "exit": 3, "signal": 0, "attempt": 1, "ordered": "1000000000",
        "began": "2000000000", "ended": "5000000000", "out": 0, "err": 0, "leftover": 0, "message": ""});
    let shown = value(&done).expect("json");
    assert_eq!(shown["hosts"][0], expected_host);
    assert!(shown["hosts"][1].get("exit").is_none(), "it has none");
    for (field, expected) in [
        ("id", json!(7)),
        ("state", json!("done")),
        ("outcome", json!("failed")),
        ("created", json!("1000000000")),
        ("done", json!("0")),
        ("counts", json!({"failed": 1, "undelivered": 1})),
    ] {
        assert_eq!(shown[field], expected, "{field}");
    }
    assert_eq!((&shown["task"]["timeout_ms"], &shown["task"]["pause_after"]), (&json!(300_000), &json!([])));
    assert!(shown["task"].get("script").is_none(), "it was not asked for");
    done.task.as_mut().expect("a task").script = "df".to_owned();
    assert_eq!(value(&done).expect("json")["task"]["script"], "df");
    assert!(value_of_list(&done).expect("json").get("hosts").is_none());
}

#[test]
fn a_task_reads_like_this() {
    let mut running = host("w-3", "running");
    (running.attempt, running.began) = (2, 2 * S);
    let killed = TaskHost { signal: 9, exit: None, leftover: 3, ..ended("w-4", "killed", 0, "the agent died") };
    let mut shown =
        task("paused", "", vec![ended("w-1", "succeeded", 0, ""), ended("w-2", "failed", 3, ""), running, killed, host("w-5", "waiting")]);
    shown.why = "tolerance: 1 failed, and 0 may".to_owned();
    let expected = "\
task 7 \"disk.sh\": paused; 1 waiting, 1 running, 1 succeeded, 1 killed, 1 failed
paused: tolerance: 1 failed, and 0 may; `evenkeel task resume 7` goes on and accepts what has failed, `evenkeel task redo 7 --failed` before that lets it run again there, `evenkeel task cancel 7` ends it
by ada, 10s ago; as root; batch 10%, tolerance 0, timeout 5m, deliver 1h

WORKER   STATE       ATTEMPT   EXIT       TOOK   MESSAGE
w-1      succeeded   1         0          3.0s
w-2      failed      1         3          3.0s
w-3      running     2         -          9.0s
w-4      killed      1         signal 9   3.0s   the agent died; 3 of its processes were killed
w-5      waiting     -         -          -
";
    assert_eq!(whole(&shown, 11 * S, false), expected);
}

#[test]
fn a_pause_says_why() {
    let of = |why: &str| {
        let why = why.to_owned();
        paused(&TaskState { id: 7, why, ..TaskState::default() }).split(';').next().unwrap_or_default().to_owned()
    };
    assert_eq!(of(""), "paused");
    assert_eq!(of("paused from 10.0.0.9"), "paused from 10.0.0.9");
    assert_eq!(of("after w-1, as it was asked for"), "paused: after w-1, as it was asked for");
}

#[test]
fn a_list_reads_like_this() {
    let mut running = task("running", "", Vec::new());
    running.counts = [("waiting".to_owned(), 5), ("running".to_owned(), 2), ("succeeded".to_owned(), 3), ("lost".to_owned(), 1)].into();
    let mut done = task("done", "succeeded", Vec::new());
    (done.id, done.task) = (6, None);
    done.counts = [("succeeded".to_owned(), 2)].into();
    let expected = "\
ID   STATE     OUTCOME     HOSTS   ENDED   RUNNING   FAILED   TITLE     CREATOR   AGE
7    running   -           11      4       2         1        disk.sh   ada       10s
6    done      succeeded   2       2       0         0        -         -         10s
";
    assert_eq!(table(&[running, done], 11 * S, false), expected);
}

#[test]
fn a_summary_names_who_did_not_succeed() {
    let well = task("done", "succeeded", vec![ended("w-1", "succeeded", 0, ""), host("w-2", "ignored")]);
    assert_eq!(summary(&well), "task 7 \"disk.sh\": done, succeeded; 1 succeeded, 1 ignored\n");
    assert!(verdict(&well).is_ok());
    let ill = task(
        "done",
        "lost",
        vec![ended("w-1", "succeeded", 0, ""), ended("w-2", "failed", 3, "no\u{1b}[2Jspace"), host("w-3", "undelivered")],
    );
    let expected = "\
task 7 \"disk.sh\": done, lost; 1 succeeded, 1 undelivered, 1 failed
  w-2: failed, exit 3: no?[2Jspace
  w-3: undelivered
what they wrote: evenkeel task output 7 w-2
";
    assert_eq!(summary(&ill), expected);
    assert_eq!(verdict(&ill).expect_err("not all").to_string(), "task 7: 2 of 3 hosts did not succeed");
    let rejected = task("done", "rejected", vec![host("w-1", "rejected")]);
    assert!(!summary(&rejected).contains("task output"), "it has written nothing");
    assert!(verdict(&task("done", "", Vec::new())).is_err(), "it ran nowhere");
    let many = task("done", "failed", (0..60).map(|n| host(&format!("w-{n}"), "failed")).collect());
    let text = summary(&many);
    assert!(text.contains("\n  and 10 more: evenkeel task get 7\n") && text.lines().count() == 52, "{text}");
}

#[test]
fn every_state_is_told_apart() {
    let states = HostState::ALL.map(HostState::as_str);
    assert!(HostState::ALL.iter().all(|state| is_at_end(state.as_str()) == state.is_end()));
    let well: Vec<_> = states.into_iter().filter(|state| is_well(state)).collect();
    assert_eq!(well, ["succeeded", "ignored"]);
    let failed: Vec<_> = states.into_iter().filter(|state| has_failed(state)).collect();
    assert_eq!(failed, ["cancelled", "undelivered", "rejected", "killed", "failed", "timed-out", "lost"]);
}

#[test]
fn nothing_that_a_terminal_obeys_is_shown() {
    let evil = "a\u{1b}]0;x\u{7}\u{9b}2J\nb".to_owned();
    let mut shown = task("done", &evil, vec![TaskHost { message: evil.clone(), ..host(&evil, &evil) }]);
    (shown.why, shown.from, shown.intent) = (evil.clone(), evil.clone(), evil.clone());
    let definition = shown.task.as_mut().expect("a task");
    (definition.title, definition.creator, definition.account) = (evil.clone(), evil.clone(), evil.clone());
    definition.script = evil;
    for text in [whole(&shown, S, false), summary(&shown), table(&[shown.clone()], S, false), change(&shown.hosts[0])] {
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    }
}

//! Many resources, and one that multiplies: all of them are dead in time.

mod support;

use std::time::{Duration, Instant};

use evenkeel_model::{Observed, Session};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::{Testbed, dead, eventually, is_dead, signal};

const MANY: usize = 100;

async fn run_many(testbed: &Testbed) -> Vec<i32> {
    for n in 0..MANY {
        testbed.assign_script(&format!("r{n}"), "(setsid sleep 300 &); exec sleep 300").await;
    }
    let mut pids = Vec::new();
    for n in 0..MANY {
        pids.push(testbed.started(&format!("r{n}"), 1).await);
    }
    pids
}

#[tokio::test]
async fn many_are_stopped_in_time_cgroups() {
    many_are_stopped_in_time("many-cgroups", json!({})).await;
}

#[tokio::test]
async fn many_are_stopped_in_time_groups() {
    many_are_stopped_in_time("many-groups", json!({"containment": "processes"})).await;
}

/// When authority ends the agent itself is in time, and on a request to leave all of them stop together.
async fn many_are_stopped_in_time(id: &str, given: Value) {
    let testbed = Testbed::start(id).await;
    let mut worker = testbed.worker(given);
    let (session, _) = testbed.admit_after(Session(0)).await;
    let pids = run_many(&testbed).await;
    let agent = worker.agent_pid().await;
    let away = Instant::now();
    testbed.etcd.stop(0).expect("stopped");
    for pid in pids {
        dead(pid).await;
    }
    assert!(away.elapsed() < evenkeel_worker::protocol::authority::Timing::default().authority, "{:?}", away.elapsed());
    assert_eq!(worker.agent_pid().await, agent, "the guard did not have to");
    testbed.etcd.cont(0).expect("continued");

    let back = async || {
        let (now, _) = testbed.registration().await?;
        if now != session {
            testbed.admit_after(session).await;
        }
        (0..MANY).all(|n| testbed.starts(&format!("r{n}")) >= 2).then_some(())
    };
    eventually("all again", back).await;
    let mut pids = Vec::new();
    for n in 0..MANY {
        pids.push(testbed.number(&format!("r{n}.pid")).await);
    }
    worker.signal(Signal::SIGTERM);
    eventually("the release", async || testbed.registration().await.filter(|(_, r)| r.released)).await;
    assert!(pids.into_iter().all(is_dead));
    testbed.delete(&[testbed.keys.worker(&testbed.id), testbed.keys.admission(&testbed.id)]).await;
    assert_eq!(worker.ended().await, Some(0));
}

/// Far more than the socket to the guard holds words for, while the guard does not read them. One word about the same end is enough.
#[tokio::test]
async fn many_are_started_at_once_while_the_guard_is_slow_to_listen() {
    let testbed = Testbed::start("many-at-once").await;
    let worker = testbed.worker(json!({}));
    testbed.registered_after(Session(0)).await;
    let mut last = None;
    for n in 0..1_000 {
        last = Some(testbed.assign(&format!("n{n:03}"), "noop", &json!({})).await);
    }
    signal(worker.guard_pid(), Signal::SIGSTOP);
    testbed.admit_after(Session(0)).await;
    testbed.phase("n999", last.expect("an epoch"), Observed::Running).await;
    signal(worker.guard_pid(), Signal::SIGCONT);
    assert!(!worker.log().contains("does not hear"), "the guard was told more often than it could listen");
}

/// Each process makes the next one, in a session of its own, and ends: no list of processes holds still for it.
const RUNNER: &str =
    "cat > $DIR/next.sh <<'END'\nsleep 0.002; echo x >> $DIR/steps; setsid sh $DIR/next.sh & exit\nEND\nsh $DIR/next.sh; exec sleep 300";

#[tokio::test]
async fn work_that_runs_away_is_caught_cgroups() {
    work_that_runs_away_is_caught("runaway-cgroups", json!({})).await;
}

#[tokio::test]
async fn work_that_runs_away_is_caught_groups() {
    work_that_runs_away_is_caught("runaway-groups", json!({"containment": "processes"})).await;
}

async fn work_that_runs_away_is_caught(id: &str, given: Value) {
    let testbed = Testbed::start(id).await;
    let worker = testbed.worker(given);
    let (session, _) = testbed.admit_after(Session(0)).await;
    let spec = testbed.script("a", RUNNER);
    let steps = || std::fs::read(testbed.path("steps")).map_or(0, |text| text.len());
    let running = async |before: usize| eventually("steps", async || (steps() > before + 20).then_some(())).await;
    let epoch = testbed.assign("a", "process", &spec).await;
    running(0).await;
    testbed.tell_stop("a", &spec).await;
    testbed.phase("a", epoch, Observed::Stopped).await;
    let after = steps();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(steps(), after, "nothing goes on after its end was reported");

    testbed.unassign("a").await;
    testbed.assign("a", "process", &spec).await;
    running(after).await;
    let agent = worker.agent_pid().await;
    signal(agent, Signal::SIGKILL);
    testbed.registered_after(session).await;
    let after = steps();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(steps(), after, "nothing goes on when the next agent attests");
}

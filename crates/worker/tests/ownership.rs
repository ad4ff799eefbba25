//! The ownership rules on real processes and a real etcd: what dies when, what is started again, and what never is.

mod support;

use std::{
    fs,
    time::{Duration, Instant},
};

use evenkeel_model::{Admission, Hash, Observed, Session, Spec};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::{Testbed, dead, eventually, http_get, is_dead, signal};

/// A child in another session that ignores every polite signal and holds the output.
const HOSTILE: &str = "(setsid sh -c 'trap \"\" TERM INT HUP; echo $$ > $DIR/child.pid; while :; do sleep 0.05; done' &)
    trap '' TERM; while :; do sleep 0.05; done";
const QUIET: &str = "exec sleep 300";
/// An absence of etcd that is shorter restarts nothing.
const HICCUP: Duration = Duration::from_secs(3);

/// Nothing runs for longer than this after the last proof was sent: each fault here comes later than that.
fn authority() -> Duration {
    evenkeel_worker::protocol::authority::Timing::default().authority
}

/// What the tests below go by. A zombie runs nothing, and nobody promises when it is reaped.
#[tokio::test]
async fn a_death_is_seen_before_anybody_reaps_it() {
    let mut child = std::process::Command::new("sleep").arg("300").spawn().expect("started");
    let pid = i32::try_from(child.id()).expect("pid");
    assert!(!is_dead(pid));
    signal(pid, Signal::SIGSTOP);
    assert!(!is_dead(pid), "stopped is alive");
    signal(pid, Signal::SIGKILL);
    dead(pid).await;
    child.wait().expect("reaped");
    assert!(is_dead(pid));
}

#[tokio::test]
async fn work_starts_only_under_an_admission_and_stops_for_good() {
    let testbed = Testbed::start("own-admission").await;
    let spec = testbed.script("a", QUIET);
    let first = testbed.assign("a", "process", &spec).await;
    testbed.tell_stop("b", &spec).await;
    let mut worker = testbed.worker(json!({}));
    let (session, registration) = testbed.registered_after(Session(0)).await;
    assert_eq!((registration.kinds.as_slice(), registration.attests), (["noop".to_owned(), "process".to_owned()].as_slice(), None));
    // Proofs hold by now, and yet nothing may happen.
    let proofs = async || http_get(&registration.http, "/metrics").await.ok().filter(|(_, text)| text.contains("proofs_held_total 2"));
    eventually("proofs", proofs).await;
    assert_eq!((testbed.starts("a"), testbed.status("b").await), (0, None));
    assert_eq!(http_get(&registration.http, "/readyz").await.expect("answer").0, 503);

    testbed.admit_after(Session(0)).await;
    let pid = testbed.started("a", 1).await;
    testbed.phase("a", first, Observed::Running).await;
    eventually("the end of b", async || testbed.status("b").await.filter(|s| s.phase == Observed::Stopped)).await;
    assert_eq!(http_get(&registration.http, "/readyz").await.expect("answer").0, 200);

    testbed.tell_stop("a", &spec).await;
    testbed.phase("a", first, Observed::Stopped).await;
    assert!(is_dead(pid));
    // The leader never takes a stop back. If it did, the epoch would stay ended all the same.
    testbed.assign("a", "process", &spec).await;
    testbed.assign("c", "process", &testbed.script("c", QUIET)).await;
    testbed.started("c", 1).await;
    assert_eq!(testbed.starts("a"), 1);
    testbed.unassign("a").await;
    let second = testbed.assign("a", "process", &spec).await;
    let pid = testbed.started("a", 2).await;
    testbed.phase("a", second, Observed::Running).await;

    worker.signal(Signal::SIGTERM);
    let released = eventually("the release", async || testbed.registration().await.filter(|(_, r)| r.released)).await;
    assert_eq!(released.0, session);
    assert!(is_dead(pid), "nothing runs when it says so");
    testbed.delete(&[testbed.keys.worker(&testbed.id), testbed.keys.admission(&testbed.id)]).await;
    assert_eq!(worker.ended().await, Some(0));
}

#[tokio::test]
async fn a_killed_agent_takes_its_work_along_and_comes_back_cgroups() {
    a_killed_agent_takes_its_work_along_and_comes_back("own-kill-cgroups", json!({})).await;
}

#[tokio::test]
async fn a_killed_agent_takes_its_work_along_and_comes_back_groups() {
    a_killed_agent_takes_its_work_along_and_comes_back("own-kill-groups", json!({"containment": "processes"})).await;
}

async fn a_killed_agent_takes_its_work_along_and_comes_back(id: &str, given: Value) {
    let testbed = Testbed::start(id).await;
    let worker = testbed.worker(given);
    let (session, before) = testbed.admit_after(Session(0)).await;
    let epoch = testbed.assign_script("a", HOSTILE).await;
    let once = testbed.assign("once", "process", &json!({"command": ["true"], "restart": "never"})).await;
    let (pid, child) = (testbed.started("a", 1).await, testbed.number("child.pid").await);
    testbed.phase("a", epoch, Observed::Running).await;
    testbed.phase("once", once, Observed::Exited).await;

    let agent = worker.agent_pid().await;
    let killed = Instant::now();
    signal(agent, Signal::SIGKILL);
    dead(pid).await;
    dead(child).await;
    assert!(killed.elapsed() < Duration::from_secs(1), "promised is a second: {:?}", killed.elapsed());
    let (second, registration) = testbed.admit_after(session).await;
    assert_eq!((registration.attests, &registration.origin), (Some(session), &before.origin));
    testbed.started("a", 2).await;
    assert!(killed.elapsed() < Duration::from_secs(2), "promised are two seconds: {:?}", killed.elapsed());
    testbed.phase("a", epoch, Observed::Running).await;

    // What ran to its end is not run again: its status says so.
    let agent = worker.agent_pid().await;
    signal(agent, Signal::SIGKILL);
    let (_, registration) = testbed.admit_after(second).await;
    assert_eq!(registration.attests, Some(second));
    testbed.started("a", 3).await;
    assert_eq!(testbed.status("once").await.map(|s| (s.phase, s.restarts)), Some((Observed::Exited, 0)));
}

#[tokio::test]
async fn a_frozen_agent_is_killed_with_its_work_when_authority_ends() {
    let testbed = Testbed::start("own-frozen").await;
    let worker = testbed.worker(json!({}));
    let (session, _) = testbed.admit_after(Session(0)).await;
    testbed.assign_script("a", HOSTILE).await;
    let (pid, child) = (testbed.started("a", 1).await, testbed.number("child.pid").await);
    let agent = worker.agent_pid().await;
    let frozen = Instant::now();
    signal(agent, Signal::SIGSTOP);
    for pid in [pid, child, agent] {
        dead(pid).await;
    }
    let after = frozen.elapsed();
    assert!(after > HICCUP && after < authority(), "{after:?}");
    let (_, registration) = testbed.admit_after(session).await;
    assert_eq!(registration.attests, Some(session));
    testbed.started("a", 2).await;
}

#[tokio::test]
async fn without_its_guard_the_agent_ends_all_work_cgroups() {
    without_its_guard_the_agent_ends_all_work("own-orphan-cgroups", json!({})).await;
}

#[tokio::test]
async fn without_its_guard_the_agent_ends_all_work_groups() {
    without_its_guard_the_agent_ends_all_work("own-orphan-groups", json!({"containment": "processes"})).await;
}

async fn without_its_guard_the_agent_ends_all_work(id: &str, given: Value) {
    let testbed = Testbed::start(id).await;
    let worker = testbed.worker(given);
    testbed.admit_after(Session(0)).await;
    testbed.assign_script("a", HOSTILE).await;
    let (pid, child) = (testbed.started("a", 1).await, testbed.number("child.pid").await);
    let agent = worker.agent_pid().await;
    let killed = Instant::now();
    worker.signal(Signal::SIGKILL);
    for pid in [pid, child, agent] {
        dead(pid).await;
    }
    assert!(killed.elapsed() < authority(), "{:?}", killed.elapsed());
}

#[tokio::test]
async fn a_session_that_was_revoked_ends_its_work_and_another_begins() {
    let testbed = Testbed::start("own-revoked").await;
    let worker = testbed.worker(json!({}));
    let (session, _) = testbed.admit_after(Session(0)).await;
    let epoch = testbed.assign_script("a", QUIET).await;
    let pid = testbed.started("a", 1).await;
    testbed.phase("a", epoch, Observed::Running).await;
    let agent = worker.agent_pid().await;
    let lease = testbed.get(testbed.keys.worker(&testbed.id)).await.expect("key").lease;
    let revoked = Instant::now();
    testbed.client.revoke(lease, support::DEADLINE).await.expect("revoked");
    dead(pid).await;
    assert!(revoked.elapsed() < authority(), "{:?}", revoked.elapsed());
    let (second, registration) = testbed.registered_after(session).await;
    assert_eq!((registration.attests, worker.agent_pid().await), (Some(session), agent), "the same agent");
    assert_eq!(testbed.starts("a"), 1, "not admitted yet");
    assert!(second > session);
    testbed.admit_after(session).await;
    testbed.started("a", 2).await;
    testbed.phase("a", epoch, Observed::Running).await;
}

#[tokio::test]
async fn etcd_away_for_a_moment_restarts_nothing_and_for_long_stops_everything_for_a_while() {
    let testbed = Testbed::start("own-away").await;
    let worker = testbed.worker(json!({}));
    let (session, _) = testbed.admit_after(Session(0)).await;
    testbed.assign_script("a", HOSTILE).await;
    let (pid, child) = (testbed.started("a", 1).await, testbed.number("child.pid").await);
    // What is measured is the time itself.
    testbed.etcd.stop(0).expect("stopped");
    tokio::time::sleep(Duration::from_millis(2500)).await;
    testbed.etcd.cont(0).expect("continued");
    let status = testbed.assign("b", "noop", &json!({})).await;
    testbed.phase("b", status, Observed::Running).await;
    assert!(!is_dead(pid) && testbed.starts("a") == 1);

    let agent = worker.agent_pid().await;
    let away = Instant::now();
    testbed.etcd.stop(0).expect("stopped");
    dead(pid).await;
    dead(child).await;
    let after = away.elapsed();
    assert!(after > HICCUP && after < authority(), "{after:?}");
    assert_eq!(worker.agent_pid().await, agent, "the agent itself has stopped it in time");
    testbed.etcd.cont(0).expect("continued");
    // The lease may or may not have outlived that.
    let back = async || {
        let (now, registration) = testbed.registration().await?;
        if now != session {
            assert_eq!(registration.attests, Some(session));
            testbed.admit_after(session).await;
        }
        (testbed.starts("a") == 2).then_some(())
    };
    eventually("the second start", back).await;
}

#[tokio::test]
async fn an_agent_that_was_killed_while_etcd_is_away_comes_back_with_it() {
    let testbed = Testbed::start("own-away-killed").await;
    let worker = testbed.worker(json!({}));
    let (session, _) = testbed.admit_after(Session(0)).await;
    testbed.assign_script("a", QUIET).await;
    let pid = testbed.started("a", 1).await;
    testbed.etcd.stop(0).expect("stopped");
    let agent = worker.agent_pid().await;
    signal(agent, Signal::SIGKILL);
    dead(pid).await;
    eventually("a new agent, without etcd", async || (worker.agent_pid().await != agent).then_some(())).await;
    testbed.etcd.cont(0).expect("continued");
    let (_, registration) = testbed.admit_after(session).await;
    assert_eq!(registration.attests, Some(session));
    testbed.started("a", 2).await;
}

/// While the guard does nothing, the agent ends the work when authority ends; and the guard goes on as if nothing had been.
#[tokio::test]
async fn a_stopped_guard_leaves_the_end_of_authority_to_the_agent() {
    let testbed = Testbed::start("own-guard-stopped").await;
    let worker = testbed.worker(json!({}));
    testbed.admit_after(Session(0)).await;
    testbed.assign_script("a", HOSTILE).await;
    let (pid, child) = (testbed.started("a", 1).await, testbed.number("child.pid").await);
    let agent = worker.agent_pid().await;
    worker.signal(Signal::SIGSTOP);
    testbed.etcd.stop(0).expect("stopped");
    let away = Instant::now();
    eventually("the end of the work", async || (is_dead(pid) && is_dead(child)).then_some(())).await;
    assert!(away.elapsed() < authority(), "{:?}", away.elapsed());
    worker.signal(Signal::SIGCONT);
    testbed.etcd.cont(0).expect("continued");
    let back = async || {
        let (session, registration) = testbed.registration().await?;
        let admission = Admission { session, authority_ms: None, origin: registration.origin };
        testbed.put(testbed.keys.admission(&testbed.id), serde_json::to_vec(&admission).expect("json")).await;
        (testbed.starts("a") == 2).then_some(())
    };
    eventually("the second start", back).await;
    assert_eq!(worker.agent_pid().await, agent, "an extension that lay in the link counts");
}

/// Ctrl+Z, a curious person, a service manager that signals everybody: the worker goes on, or leaves in order.
#[tokio::test]
async fn no_signal_ends_or_stops_a_worker_out_of_order() {
    let testbed = Testbed::start("own-signals").await;
    let mut worker = testbed.worker(json!({}));
    let (session, _) = testbed.admit_after(Session(0)).await;
    testbed.assign_script("a", QUIET).await;
    let pid = testbed.started("a", 1).await;
    let agent = worker.agent_pid().await;
    for number in [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGALRM, Signal::SIGPIPE, Signal::SIGXCPU] {
        worker.signal(number);
    }
    for number in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        signal(agent, number);
    }
    // Whoever still does what it is told has survived that.
    let epoch = testbed.assign_script("b", QUIET).await;
    testbed.phase("b", epoch, Observed::Running).await;
    assert_eq!((worker.agent_pid().await, is_dead(pid), testbed.starts("a")), (agent, false, 1));

    worker.signal(Signal::SIGQUIT);
    signal(agent, Signal::SIGQUIT);
    let released = eventually("the release", async || testbed.registration().await.filter(|(_, r)| r.released)).await;
    assert_eq!((released.0, is_dead(pid)), (session, true));
    testbed.delete(&[testbed.keys.worker(&testbed.id), testbed.keys.admission(&testbed.id)]).await;
    assert_eq!(worker.ended().await, Some(0));
}

/// What work gets: three streams, the score that everybody has, no priority, no blocked signal, and no more.
#[tokio::test]
async fn work_inherits_nothing_of_its_guard() {
    let testbed = Testbed::start("own-inherits").await;
    let _worker = testbed.worker(json!({}));
    testbed.admit_after(Session(0)).await;
    // A shell blocks all signals for as long as it begins a command, so the command says what it has of it.
    let script = "(exec ls /proc/self/fd > $DIR/fds); cat /proc/$$/oom_score_adj > $DIR/oom; grep SigBlk /proc/self/status > $DIR/blocked
        cut -d' ' -f 19,41 /proc/$$/stat > $DIR/priority; echo 1 > $DIR/done; exec sleep 300";
    testbed.assign_script("a", script).await;
    testbed.number("done").await;
    let text = |file: &str| std::fs::read_to_string(testbed.path(file)).expect(file);
    assert_eq!(text("fds").split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"], "the last one is the list itself");
    assert_eq!(text("oom"), std::fs::read_to_string("/proc/self/oom_score_adj").expect("own"));
    assert_eq!(text("blocked").split_whitespace().nth(1), Some("0000000000000000"));
    assert_eq!(text("priority"), "0 0\n", "nice, and the class of scheduling");
}

/// Without rights there is no cgroup, no lock on memory, no priority: the same rules hold.
#[tokio::test]
async fn a_worker_without_rights_holds_its_work_by_processes() {
    let testbed = Testbed::start("own-nobody").await;
    let as_nobody = testbed.worker_as_nobody();
    // Whoever is not root has no rights to give up.
    let is_root = as_nobody.is_some();
    let worker = as_nobody.unwrap_or_else(|| testbed.worker(json!({"containment": "processes"})));
    let (session, _) = testbed.admit_after(Session(0)).await;
    testbed.assign_script("a", HOSTILE).await;
    let (pid, child) = (testbed.started("a", 1).await, testbed.number("child.pid").await);
    assert!(!is_root || worker.log().contains("work is not held by a cgroup"), "{}", worker.log());
    signal(worker.agent_pid().await, Signal::SIGKILL);
    dead(pid).await;
    dead(child).await;
    let (_, registration) = testbed.admit_after(session).await;
    assert_eq!(registration.attests, Some(session));
    testbed.started("a", 2).await;
}

#[tokio::test]
async fn killed_agents_are_back_soon_cgroups() {
    killed_agents_are_back_soon("own-r5-cgroups", json!({})).await;
}

#[tokio::test]
async fn killed_agents_are_back_soon_groups() {
    killed_agents_are_back_soon("own-r5-groups", json!({"containment": "processes"})).await;
}

/// R5, for the record: `ROUNDS=20 cargo nextest run -p evenkeel-worker --test ownership killed_agents_are_back --no-capture`.
async fn killed_agents_are_back_soon(id: &str, given: Value) {
    let rounds: usize = std::env::var("ROUNDS").map_or(1, |text| text.parse().expect("a number"));
    let testbed = Testbed::start(id).await;
    let worker = testbed.worker(given);
    let (mut session, _) = testbed.admit_after(Session(0)).await;
    testbed.assign_script("a", HOSTILE).await;
    let (mut dead_after, mut back_after) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        let (pid, child) = (testbed.started("a", round).await, testbed.number("child.pid").await);
        let agent = worker.agent_pid().await;
        if round > 1 {
            // An agent that lives for less than ten seconds is started again ever slower.
            tokio::time::sleep(Duration::from_millis(10_100)).await;
        }
        std::fs::remove_file(testbed.path("child.pid")).expect("removed");
        let killed = Instant::now();
        signal(agent, Signal::SIGKILL);
        while !is_dead(pid) || !is_dead(child) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        dead_after.push(killed.elapsed().as_millis());
        session = testbed.admit_after(session).await.0;
        testbed.number("child.pid").await;
        back_after.push(killed.elapsed().as_millis());
        assert_eq!(testbed.starts("a"), round + 1);
    }
    for (what, mut spans) in [("dead", dead_after), ("back", back_after)] {
        spans.sort_unstable();
        let at = |percent: usize| spans[(spans.len() - 1) * percent / 100];
        println!("{id}: {what} after ms: min {} p50 {} p90 {} max {} of {}", at(0), at(50), at(90), at(100), spans.len());
    }
}

/// How it is stopped is changed while it runs: the process and its epoch stay. What it is is not.
#[tokio::test]
async fn a_process_that_runs_is_stopped_as_its_assignment_says_by_then() {
    let testbed = Testbed::start("changed").await;
    let _worker = testbed.worker(json!({}));
    testbed.admit_after(Session(0)).await;
    let spec =
        testbed.script("a", "trap 'echo int > $DIR/got; exit' INT; trap 'echo term > $DIR/got; exit' TERM; while :; do sleep 0.05; done");
    let epoch = testbed.assign("a", "process", &spec).await;
    let pid = testbed.started("a", 1).await;
    let first = testbed.phase("a", epoch, Observed::Running).await.hash;
    let mut changed = spec.clone();
    (changed["stop_signal"], changed["stop_grace"]) = (json!("INT"), json!("2s"));
    testbed.assign("a", "process", &changed).await;
    let status = eventually("taken", async || testbed.status("a").await.filter(|status| status.hash != first)).await;
    assert_eq!((status.phase, status.epoch, status.restarts), (Observed::Running, epoch, 0));
    assert_eq!(testbed.number("a.pid").await, pid);
    // Another command is other work: it is asked for another epoch, and goes on.
    let mut other = changed.clone();
    other["command"] = json!(["true"]);
    testbed.assign("a", "process", &other).await;
    eventually("asked for", async || {
        testbed.status("a").await.filter(|s| s.restart_for == Hash::of("process", &Spec::from_value(other.clone()).expect("spec")))
    })
    .await;
    assert!(!is_dead(pid));
    testbed.tell_stop("a", &other).await;
    testbed.phase("a", epoch, Observed::Stopped).await;
    assert_eq!(fs::read_to_string(testbed.path("got")).expect("a signal").trim(), "int");
    assert_eq!(testbed.starts("a"), 1);
}

/// The next agent does not know with what the last one ran an epoch but from its status: what was changed meanwhile is not started with that epoch.
#[tokio::test]
async fn an_epoch_is_not_started_again_with_another_command() {
    let testbed = Testbed::start("other-command").await;
    let worker = testbed.worker(json!({}));
    let (session, _) = testbed.admit_after(Session(0)).await;
    let (old, new) = (testbed.script("a", "exec sleep 300"), testbed.script("a", "touch $DIR/new; exec sleep 300"));
    let epoch = testbed.assign("a", "process", &old).await;
    let pid = testbed.started("a", 1).await;
    testbed.phase("a", epoch, Observed::Running).await;
    signal(worker.agent_pid().await, Signal::SIGKILL);
    dead(pid).await;
    testbed.assign("a", "process", &new).await;
    testbed.admit_after(session).await;
    let status = eventually("asked for", async || testbed.status("a").await.filter(|status| !status.restart_for.is_empty())).await;
    assert_eq!((status.epoch, status.phase), (epoch, Observed::Starting));
    assert!(!testbed.path("new").exists() && testbed.starts("a") == 1);
    testbed.tell_stop("a", &new).await;
    testbed.phase("a", epoch, Observed::Stopped).await;
    testbed.unassign("a").await;
    testbed.assign("a", "process", &new).await;
    testbed.started("a", 2).await;
}

//! Containers that are killed, stopped, cut off, paused and replaced under load.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use prost_types::{ListValue, Value, value::Kind};

use crate::{
    Scenario,
    field::{Assigned, Field},
    stack::{self, Container, ETCD, MASTERS, connect, disconnect, docker},
    work::{Manner, boot_time},
    wrong::Extra,
};

pub(crate) const ALL: &[Scenario] = &[
    ("worker_killed", worker_killed),
    ("worker_stopped", worker_stopped),
    ("agent_killed", agent_killed),
    ("leader_killed", leader_killed),
    ("leader_stopped", leader_stopped),
    ("etcd_leader_killed", etcd_leader_killed),
    ("etcd_killed_whole", etcd_killed_whole),
    ("worker_cut_off", worker_cut_off),
    ("leader_cut_off", leader_cut_off),
    ("etcd_leader_cut_off", etcd_leader_cut_off),
    ("worker_paused_for_a_moment", worker_paused_for_a_moment),
    ("worker_paused_for_long", worker_paused_for_long),
    ("leader_paused", leader_paused),
    ("etcd_leader_paused", etcd_leader_paused),
    ("fork_bomb", fork_bomb),
    ("rolling_restart", rolling_restart),
];

/// Longer than a worker may run things without a proof, and than any lease.
const LONG: Duration = Duration::from_secs(15);

type Before = std::collections::BTreeMap<String, Assigned>;

/// A worker that runs something, and how much.
fn busy_worker(field: &Field, before: &Before) -> (Container, usize) {
    let worker = field.stack.containers("worker").into_iter().next().expect("a worker");
    let count = before.values().filter(|assigned| assigned.worker == worker.id).count();
    assert!(count > 0, "{} has work", worker.id);
    (worker, count)
}

/// What one worker had, moved and, when that worker is back, moved for balance.
fn share(count: usize) -> std::ops::RangeInclusive<usize> {
    count..=2 * count + 1
}

/// A worker that is gone has nothing left; then it is started again, and gets work again.
fn moved_and_back(field: &mut Field, worker: &Container, count: usize) {
    field.eventually("its work runs elsewhere", |field| field.settled()?.values().all(|at| at.worker != worker.id).then_some(()));
    docker(&["start", &worker.name]);
    field.until_healthy();
    let is_back = |field: &Field| field.settled()?.values().any(|at| at.worker == worker.id).then_some(());
    field.eventually("it has work again", is_back);
    field.judge(share(count));
}

fn worker_killed(field: &mut Field) {
    let before = field.under_load();
    let (worker, count) = busy_worker(field, &before);
    field.did(format!("docker kill of a worker with {count} of 9; docker start once all runs elsewhere"));
    let killed = boot_time();
    docker(&["kill", &worker.name]);
    field.healed();
    let moved = field.eventually("some of its work runs elsewhere", |field| field.first_start_since(killed));
    field.note(format!("first of it elsewhere after {:.1} s", moved.as_secs_f64()));
    moved_and_back(field, &worker, count);
}

fn worker_stopped(field: &mut Field) {
    let before = field.under_load();
    let (worker, count) = busy_worker(field, &before);
    field.did(format!("docker stop of a worker with {count} of 9, then docker start"));
    docker(&["stop", &worker.name]);
    assert_eq!(stack::inspect(&worker.name, "{{.State.ExitCode}}"), "0", "it has left in order");
    field.healed();
    moved_and_back(field, &worker, count);
}

fn agent_killed(field: &mut Field) {
    let before = field.under_load();
    let (worker, count) = busy_worker(field, &before);
    field.did(format!("kill -9 of the agent in a worker's container with {count} of 9"));
    let killed = boot_time();
    let script = "for p in /proc/[0-9]*; do grep -qs evenkeel-agent $p/comm && kill -9 ${p#/proc/}; done; true";
    docker(&["exec", &worker.name, "sh", "-c", script]);
    let back = field.eventually("it is back", |field| field.first_start_since(killed));
    field.note(format!("back after {:.1} s", back.as_secs_f64()));
    field.judge(count..=count);
    assert_eq!(stack::inspect(&worker.name, "{{.RestartCount}}"), "0", "its guard has started another");
}

fn leader_killed(field: &mut Field) {
    field.under_load();
    let leader = field.leader();
    field.did("docker kill of the leader; docker start once the other leads");
    docker(&["kill", &leader.name]);
    field.healed();
    field.eventually("another leads", |field| (field.leader() != leader).then_some(()));
    docker(&["start", &leader.name]);
    field.until_healthy();
    field.judge(0..=0);
}

fn leader_stopped(field: &mut Field) {
    field.under_load();
    let leader = field.leader();
    field.did("docker restart of the leader");
    docker(&["restart", &leader.name]);
    field.healed();
    field.until_healthy();
    field.judge(0..=0);
}

fn etcd_leader_killed(field: &mut Field) {
    field.did("docker kill of etcd's leader, docker start 15 s later");
    etcd_leader_away(field, |member| drop(docker(&["kill", &member.name])), |member| drop(docker(&["start", &member.name])));
}

/// The others choose another leader. How long that takes is etcd's affair, and restarts nothing if it is short.
fn etcd_leader_away(field: &mut Field, away: fn(&Container), back: fn(&Container)) {
    field.under_load();
    let member = field.etcd_leader();
    let others: Vec<Container> = ETCD.into_iter().map(|name| field.stack.one(name)).filter(|other| *other != member).collect();
    field.watch_etcd(&others);
    away(&member);
    field.answered_during(|_| std::thread::sleep(LONG));
    back(&member);
    field.healed();
    field.until_healthy();
    field.judge(0..=0);
}

fn etcd_killed_whole(field: &mut Field) {
    field.under_load();
    field.did("docker kill of all members of etcd, docker start 15 s later");
    let members: Vec<Container> = ETCD.into_iter().map(|member| field.stack.one(member)).collect();
    let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
    docker(&[&["kill"], &names[..]].concat());
    std::thread::sleep(LONG);
    docker(&[&["start"], &names[..]].concat());
    field.healed();
    field.until_healthy();
    // All of it stops when authority ends, and starts again; and a worker that comes back a little later than others may have lost some.
    field.judge(9..=18);
}

fn worker_cut_off(field: &mut Field) {
    let before = field.under_load();
    let (worker, count) = busy_worker(field, &before);
    field.did(format!("docker network disconnect of a worker with {count} of 9 for 15 s"));
    let address = stack::address(&worker);
    disconnect(&worker);
    // Somebody else gets its address meanwhile.
    let squatter = Extra::run("squatter", &["--entrypoint", "sleep"], "evenkeel/worker:0.1.0", &["600"]);
    std::thread::sleep(LONG);
    connect(&worker);
    drop(squatter);
    field.healed();
    field.until_healthy();
    assert_ne!(stack::address(&worker), address, "it has another address");
    // A master must find it there.
    field.eventually("it has work again, and a master reads its logs", |field| {
        let name = field.settled()?.into_iter().find(|(_, at)| at.worker == worker.id).map(|(name, _)| name)?;
        let url = format!("http://localhost:{}/v1/resources/{name}:logs", MASTERS[0].1);
        let mut command = Command::new("curl");
        let read = stack::output(command.args(["--silent", "--fail", "--max-time", "5", &url]).stdin(Stdio::null()));
        read.status.success().then_some(())
    });
    field.judge(share(count));
}

fn leader_cut_off(field: &mut Field) {
    field.did("docker network disconnect of the leader for 15 s");
    leader_away(field, disconnect, connect);
}

/// Another leads meanwhile, and callers are answered; nothing restarts.
fn leader_away(field: &mut Field, away: fn(&Container), back: fn(&Container)) {
    field.under_load();
    let leader = field.leader();
    away(&leader);
    field.eventually("another leads, and callers are answered", |field| (field.leader() != leader).then_some(()));
    field.answered_during(|_| std::thread::sleep(LONG));
    back(&leader);
    field.healed();
    field.until_healthy();
    field.judge(0..=0);
}

fn etcd_leader_cut_off(field: &mut Field) {
    field.did("docker network disconnect of etcd's leader for 15 s");
    etcd_leader_away(field, disconnect, connect);
}

fn worker_paused_for_a_moment(field: &mut Field) {
    let before = field.under_load();
    let (worker, count) = busy_worker(field, &before);
    field.did(format!("docker pause of a worker with {count} of 9 for 1.5 s"));
    docker(&["pause", &worker.name]);
    std::thread::sleep(Duration::from_millis(1_500));
    docker(&["unpause", &worker.name]);
    field.judge(0..=0);
}

/// The guard is paused with all the rest: that is outside of one owner, and what the epoch is for. The work here asks a sink that remembers
/// the largest epoch.
fn worker_paused_for_long(field: &mut Field) {
    field.under_load();
    field.means_to_overlap();
    for number in 1..=3 {
        field.add(&field.resource(&format!("sink-{number}"), Manner::Sinks));
    }
    let owner = field.eventually("a sink has an owner", |_| Some(Field::assignments()?.get("sink-1")?.worker.clone()));
    let worker = field.stack.containers("worker").into_iter().find(|worker| worker.id == owner).expect("it is there");
    field.did("docker pause of a worker for 15 s; a guard that is paused cannot kill");
    docker(&["pause", &worker.name]);
    field.eventually("the oracle sees two owners", |field| field.has_overlap().then_some(()));
    std::thread::sleep(LONG);
    docker(&["unpause", &worker.name]);
    field.healed();
    field.until_healthy();
    field.eventually("it has work again", |field| field.settled()?.values().any(|at| at.worker == worker.id).then_some(()));
    for number in 1..=3 {
        let sink = std::fs::read_to_string(field.folder().join(format!("sink-{number}.sink"))).expect("a sink");
        let epochs: Vec<u64> = sink.lines().map(|line| line.parse().expect("an epoch")).collect();
        assert!(epochs.is_sorted(), "sink-{number} took an older epoch after a newer one");
    }
    let refused = field.refusals();
    field.note(format!("the sink has refused {refused} late writers"));
    (1..=3).for_each(|number| field.delete(&format!("sink-{number}")));
    // A third of twelve is moved, and comes back; what the sinks leave is made even.
    field.judge(1..=18);
}

fn leader_paused(field: &mut Field) {
    field.did("docker pause of the leader for 15 s");
    let (pause, unpause) = (|one: &Container| drop(docker(&["pause", &one.name])), |one: &Container| drop(docker(&["unpause", &one.name])));
    leader_away(field, pause, unpause);
}

fn etcd_leader_paused(field: &mut Field) {
    field.under_load();
    let member = field.etcd_leader();
    field.did("docker pause of etcd's leader for 15 s");
    docker(&["pause", &member.name]);
    std::thread::sleep(LONG);
    docker(&["unpause", &member.name]);
    field.healed();
    field.until_healthy();
    // When it goes on, etcd's old leader may revoke leases that its successor has extended (etcd's issue 15247): work then starts anew where
    // it is.
    field.judge(0..=18);
}

/// In the setting that is shipped: the worker's limit of processes is full, and whoever is to end that still can.
fn fork_bomb(field: &mut Field) {
    let before = field.under_load();
    let (worker, count) = busy_worker(field, &before);
    let limit: u64 = stack::inspect(&worker.name, "{{.HostConfig.PidsLimit}}").parse().expect("a limit of processes");
    field.did(format!("a fork bomb on a worker with {count} of 9, up to its limit of {limit} processes; then it is deleted"));
    let policy = docker(&["exec", &worker.name, "cut", "-d", " ", "-f", "41", "/proc/1/stat"]);
    field.note(if policy.trim() == "2" { "its guard runs first" } else { "its guard has no priority here" });
    let running = || stack::processes(&worker.name);
    let quiet = running();
    let mut bomb = field.resource("bomb", Manner::Good);
    (bomb.kind, bomb.pin) = ("process".to_owned(), worker.id.clone());
    let script = ["sh", "-c", "bomb() { bomb | bomb & }; bomb; while :; do sleep 1; done"];
    let values = script.map(|text| Value { kind: Some(Kind::StringValue(text.to_owned())) }).to_vec();
    let fields = &mut bomb.spec.as_mut().expect("a spec").fields;
    fields.insert("command".to_owned(), Value { kind: Some(Kind::ListValue(ListValue { values })) });
    field.add(&bomb);
    // Each of them ends when it cannot fork, so that the limit is reached again and again and not held.
    field.eventually("the limit is all but reached", |_| (running() > limit * 9 / 10).then_some(()));
    field.delete("bomb");
    field.healed();
    let deleted = boot_time();
    field.eventually("all of it is dead", |_| {
        let is_gone = !Field::assignments()?.contains_key("bomb");
        (is_gone && running() < quiet + 100).then_some(())
    });
    field.note(format!("dead {:.1} s after it was deleted", Duration::from_nanos(boot_time() - deleted).as_secs_f64()));
    field.until_healthy();
    assert_eq!(stack::inspect(&worker.name, "{{.RestartCount}}"), "0", "its guard has seen to it");
    // The machine is starved: what could not prove its session in time was killed, here and on the other workers, and is back.
    field.judge(0..=90);
}

fn rolling_restart(field: &mut Field) {
    field.under_load();
    field.did("docker restart of each container, one after the other: etcd, masters, workers");
    let all = field.stack.all();
    for container in &all {
        docker(&["restart", &container.name]);
        field.until_healthy();
        field.eventually("all runs", Field::settled);
    }
    field.healed();
    // A worker that is restarted gives its work away, and gets some when it is back.
    field.judge(9..=40);
    field.note(format!("{} containers", all.len()));
}

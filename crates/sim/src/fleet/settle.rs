//! When the faults have ended: everything wanted runs, each once, on a live worker; then all is calm.
//!
//! These are the invariants I2, I4 and I5 of DESIGN.md, section 4, looked at from outside.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use evenkeel_model::{Cluster, Epoch, Moment, ResourceName, Standing, Subject, Undone, Worker, check, process, task::TaskState};
use evenkeel_store::{
    codec::{self, Meaning},
    keys::Key,
};
use tokio::time::{Instant, sleep};

use super::{
    judge::{content_of, is_finished},
    master::planner,
    sharer::is_shared,
    work::{fails_on, is_unheld, kind_of},
    world::World,
};
use crate::linearizability::Content;

/// How long it may take from the end of the last fault until everything is as it should be: a lease, an election, the leader's wait, a
/// second one for whom the first was interrupted, and the pauses of those who try again.
const BOUND: Duration = Duration::from_secs(50);
/// Until then every lease has ended whose holder was dead when the faults ended.
const LEASES: Duration = Duration::from_secs(7);
/// By so much longer where there are tasks: their deliveries, their timeouts, one host after another.
const TASKS: Duration = Duration::from_secs(90);
const LOOK: Duration = Duration::from_millis(500);
/// For how long nothing may move then.
const CALM: Duration = Duration::from_secs(12);

/// Heals everything, and waits until all is as it should be. True if it is. With `quiet`, callers go on resting then.
pub(super) async fn settle(world: &Arc<World>, quiet: bool) -> bool {
    world.ledger.hold_ends(true);
    let is_settled = settles(world, quiet).await;
    world.ledger.hold_ends(false);
    is_settled
}

async fn settles(world: &Arc<World>, quiet: bool) -> bool {
    world.heal();
    world.let_callers_rest(true);
    let bound = if world.size.tasks > 0 { BOUND + TASKS } else { BOUND };
    let end = Instant::now() + bound;
    // Of what happened last the leases tell first.
    sleep(LEASES).await;
    let mut noted = String::new();
    loop {
        if world.ledger.violation().is_some() {
            return false;
        }
        let wrong = if world.is_busy() { Some("a caller has no answer yet".to_owned()) } else { unsettled(world) };
        let Some(wrong) = wrong else { break };
        if wrong != noted {
            world.ledger.note(format_args!("not settled yet: {wrong}"));
            noted.clone_from(&wrong);
        }
        if Instant::now() >= end {
            world.ledger.violate(format_args!("not settled {bound:?} after the last fault: {wrong}"));
            return false;
        }
        sleep(LOOK).await;
    }
    world.ledger.note("settled");
    let calm = stays_calm(world).await;
    // By now nothing that was asked for is under way any more.
    for name in world.histories.names() {
        if let Err(wrong) = world.histories.settled(&name, content(world, &name)) {
            world.ledger.violate(wrong);
        }
    }
    world.let_callers_rest(quiet);
    calm && world.ledger.violation().is_none()
}

/// What is not as it should be.
fn unsettled(world: &World) -> Option<String> {
    let cluster = cluster(world);
    for machine in &world.machines {
        let standing = cluster.worker(machine.id().as_str()).map(Worker::standing);
        if standing != Some(Standing::Ready) {
            return Some(format!("{} is {standing:?}", machine.id()));
        }
    }
    let plan = evenkeel_planner::plan(&cluster, Moment(Duration::ZERO), &planner());
    // What nobody can hold is left undone for good, and the plan says so.
    let is_for_good = |undone: &Undone| matches!(&undone.subject, Subject::Resource(name) if is_unheld(name));
    let undone: Vec<&Undone> = plan.undone.iter().filter(|undone| !is_for_good(undone)).collect();
    if !plan.actions.is_empty() || !undone.is_empty() {
        return Some(format!("there is something left to do: {:?} {undone:?}", plan.actions));
    }
    let assigned = assignments(world);
    let mut runs: BTreeMap<ResourceName, Epoch> = BTreeMap::new();
    for run in world.ledger.live() {
        if assigned.get(&run.name) != Some(&(run.machine.clone(), run.epoch)) {
            return Some(format!("{} runs on {} (epoch {}), which nobody wants", run.name, run.machine, run.epoch));
        }
        let is_process = kind_of(&run.name) == process::KIND;
        if is_process && fails_on(&run.name, &run.machine) && !world.ledger.is_quiet() {
            return Some(format!("{} runs on {}, where it fails again and again", run.name, run.machine));
        }
        if run.content != content(world, &run.name) {
            return Some(format!("{} runs with content {:?}, and {:?} is wanted", run.name, run.content, content(world, &run.name)));
        }
        runs.insert(run.name, run.epoch);
    }
    for name in world.history.names().into_iter().chain(world.histories.names()) {
        let stands = content(world, &name);
        if !is_shared(&name)
            && let Err(wrong) = world.history.stands(&name, stands)
        {
            return Some(wrong);
        }
        match (stands, runs.get(&name), assigned.get(&name)) {
            (Some(_), None, None) if has_finished(world, &name) || is_unheld(&name) => {}
            (Some(_), None, _) => {
                let status = cluster.unit(name.as_str()).and_then(|unit| unit.holders.first()?.status.clone());
                return Some(format!("{name} runs nowhere; it is assigned to {:?}, whose status is {status:?}", assigned.get(&name)));
            }
            (None, _, Some(worker)) => return Some(format!("{name} was deleted, and is assigned to {worker:?}")),
            _ => {}
        }
    }
    unsettled_tasks(world, &cluster)
}

/// What of tasks is not as it should be: each is done, or waits for a person, and nothing of it goes on; the end of each script is said, by whoever knows it.
fn unsettled_tasks(world: &World, cluster: &Cluster) -> Option<String> {
    if let Some(attempt) = world.ledger.live_script() {
        return Some(format!("{attempt} lives"));
    }
    for (id, entry) in cluster.tasks().each() {
        let goes_on = entry.state() == TaskState::Running || entry.batch() > 0;
        if goes_on {
            let counts: Vec<_> = entry.counts().each().collect();
            return Some(format!("task {id} is {} with {counts:?}", entry.state().as_str()));
        }
        for (worker, host) in entry.known_hosts() {
            if let Some(result) = host.result.as_deref().filter(|result| result.value.end().is_none()) {
                return Some(format!("task {id} on {worker} is {:?}, and {:?} is said of it", entry.state_of(worker), result.value));
            }
        }
    }
    let most = usize::from(u8::MAX);
    let plan = evenkeel_planner::tasks::plan(cluster, Moment(Duration::ZERO), 0, planner().wait, most);
    (!plan.actions.is_empty()).then(|| format!("there is something left to do of tasks: {:?}", plan.actions))
}

/// When something was last said of a host of a task.
fn last_of_tasks(world: &World) -> Option<i64> {
    // One that is paused, and waited for those that come late, is done when none can any more.
    let is_of_task = |kv: &evenkeel_store::Kv| matches!(world.keys.parse(&kv.key), Some(Key::Order(..) | Key::TaskResult(..)));
    world.etcd.peek(|store| store.iter(&world.keys.everything()).filter(|kv| is_of_task(kv)).map(|kv| kv.modified.0).max())
}

/// What stands in etcd under a name.
fn content(world: &World, name: &ResourceName) -> Content {
    world.etcd.peek(|store| store.get(world.keys.resource(name).as_bytes()).and_then(content_of))
}

fn has_finished(world: &World, name: &ResourceName) -> bool {
    world.etcd.peek(|store| store.get(world.keys.resource(name).as_bytes()).is_some_and(is_finished))
}

fn assignments(world: &World) -> BTreeMap<ResourceName, (String, Epoch)> {
    world.etcd.peek(|store| {
        let of = |kv: &evenkeel_store::Kv| match world.keys.parse(&kv.key)? {
            Key::Assignment(worker, name) => Some((name, (worker.to_string(), Epoch(kv.created.0)))),
            _ => None,
        };
        store.iter(&world.keys.everything()).filter_map(of).collect()
    })
}

/// Nothing moves, and there is nothing to plan.
async fn stays_calm(world: &Arc<World>) -> bool {
    // What the last moves have left to write is written by then.
    sleep(CALM / 2).await;
    let before = (assignments(world), last_of_tasks(world));
    sleep(CALM).await;
    let after = (assignments(world), last_of_tasks(world));
    if before.0 != after.0 {
        world.ledger.violate(format_args!("a settled cluster has moved: {:?}, then {:?}", before.0, after.0));
    }
    if before.1 != after.1 {
        world.ledger.violate(format_args!("something was said of settled tasks: at {:?}", after.1));
    }
    // Work ends by itself now and then, and is started again: its statuses are the only writes.
    if let Some(wrong) = unsettled(world).filter(|wrong| !wrong.contains("runs nowhere")) {
        world.ledger.violate(format_args!("a settled cluster came apart: {wrong}"));
    }
    let cluster = cluster(world);
    let violations = check::check_cluster(&cluster);
    if !violations.is_empty() {
        world.ledger.violate(format_args!("what stands in etcd violates an invariant: {violations:?}"));
    }
    world.ledger.violation().is_none()
}

fn cluster(world: &World) -> Cluster {
    let mut cluster = Cluster::default();
    world.etcd.peek(|store| {
        for kv in store.iter(&world.keys.everything()) {
            if let Meaning::Cluster(event) = codec::meaning(&world.keys, kv) {
                cluster.apply(event, Moment(Duration::ZERO));
            }
        }
    });
    cluster
}

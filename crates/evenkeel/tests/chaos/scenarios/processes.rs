//! Agents, guards, hosts and masters: killed, frozen, restarted, alone and together.

use nix::sys::signal::{self, Signal};

use super::{BEYOND_AUTHORITY, Shared, WITHIN_AUTHORITY, scenarios};
use crate::{
    field::{Field, Setup},
    oracle,
    processes::{self, Found},
    work::Manner,
};

scenarios! {
    quick agent_killed,
    long agent_frozen_briefly,
    quick agent_frozen_beyond_authority,
    long guard_killed_and_started_again,
    long guard_frozen_briefly,
    long guard_frozen_beyond_authority,
    long guard_and_agent_killed_at_once,
    quick host_lost,
    long host_lost_and_started_again_at_once,
    long host_frozen_is_fenced_by_the_epoch,
    long guard_and_agent_frozen_are_fenced_by_the_epoch,
    quick leader_killed,
    long leader_frozen_briefly,
    quick leader_frozen_beyond_its_lease,
    long standby_killed,
    long standby_frozen,
    long all_masters_killed,
    long leader_killed_three_times_in_a_burst,
    long rolling_restart_of_everything,
    long leader_and_a_host_lost_at_once,
    long children_that_are_deaf,
    long children_that_escape,
    long children_that_fork_without_end,
    long children_that_hold_their_output,
    long children_that_become_another_user,
    long children_that_are_made_siblings,
    long children_without_an_environment,
    long children_that_are_bombs,
}

async fn usual(row: &Shared) -> Field {
    Field::open(Setup::default(), row).await
}

/// The work of a worker as it runs now.
fn work_of(field: &Field, worker: &str) -> Vec<Found> {
    field.host(worker).into_iter().filter(|found| found.work.as_ref().is_some_and(|(name, _)| name.starts_with("base-"))).collect()
}

async fn agent_killed(row: Shared) {
    let mut field = usual(&row).await;
    let (work, share) = (work_of(&field, "worker-1"), field.of("worker-1").len());
    field.did("SIGKILL to the agent of worker-1");
    signal::kill(field.stage.agent("worker-1").await, Signal::SIGKILL).expect("killed");
    field.healed();
    field.until_dead(&work).await;
    field.may_restart(share..=share);
    field.judged().await;
}

async fn agent_frozen_briefly(row: Shared) {
    let mut field = usual(&row).await;
    let agent = field.stage.agent("worker-1").await;
    field.did(format!("SIGSTOP to the agent of worker-1, SIGCONT after {WITHIN_AUTHORITY:?}"));
    signal::kill(agent, Signal::SIGSTOP).expect("stopped");
    field.span(WITHIN_AUTHORITY).await;
    signal::kill(agent, Signal::SIGCONT).expect("continued");
    field.healed();
    field.may_restart(0..=0);
    field.judged().await;
}

async fn agent_frozen_beyond_authority(row: Shared) {
    let mut field = usual(&row).await;
    let (work, share) = (work_of(&field, "worker-1"), field.of("worker-1").len());
    let agent = field.stage.agent("worker-1").await;
    field.did("SIGSTOP to the agent of worker-1, never continued: its guard replaces it");
    signal::kill(agent, Signal::SIGSTOP).expect("stopped");
    field.healed();
    field.until_dead(&work).await;
    field.may_restart(share..=usize::MAX);
    field.judged().await;
}

async fn guard_killed_and_started_again(row: Shared) {
    let mut field = usual(&row).await;
    let work = work_of(&field, "worker-1");
    field.did("SIGKILL to the guard of worker-1; once its work is dead the worker is started again");
    field.stage.signal("worker-1", Signal::SIGKILL);
    field.stage.ended("worker-1").await;
    field.until_dead(&work).await;
    field.stage.spawn("worker-1", &[]);
    field.healed();
    field.judged().await;
}

async fn guard_frozen(row: Shared, span: std::time::Duration) {
    let mut field = usual(&row).await;
    field.did(format!("SIGSTOP to the guard of worker-1, SIGCONT after {span:?}"));
    field.stage.signal("worker-1", Signal::SIGSTOP);
    field.span(span).await;
    field.stage.signal("worker-1", Signal::SIGCONT);
    field.healed();
    // What the agent has told its guard meanwhile counts before the time that has come.
    field.may_restart(0..=0);
    field.judged().await;
}

async fn guard_frozen_briefly(row: Shared) {
    guard_frozen(row, WITHIN_AUTHORITY).await;
}

async fn guard_frozen_beyond_authority(row: Shared) {
    guard_frozen(row, BEYOND_AUTHORITY).await;
}

/// Neither acts on the other's end; what holds each run has to.
async fn guard_and_agent_killed_at_once(row: Shared) {
    let mut field = Field::open(Setup { manner: Manner::Escapes, callers: 1, ..Setup::default() }, &row).await;
    let work = work_of(&field, "worker-1");
    field.did("SIGKILL to guard and agent of worker-1 at once; once all of its work is dead the worker is started again");
    let both = [field.stage.pid("worker-1"), field.stage.agent("worker-1").await];
    for number in [Signal::SIGSTOP, Signal::SIGKILL] {
        for pid in both {
            signal::kill(pid, number).expect("signalled");
        }
    }
    field.stage.ended("worker-1").await;
    field.until_dead(&work).await;
    field.stage.spawn("worker-1", &[]);
    field.healed();
    field.judged().await;
}

async fn host_lost(row: Shared) {
    let mut field = usual(&row).await;
    let share = field.of("worker-1").len();
    field.did("SIGKILL to guard, agent and work of worker-1 at once");
    field.kill_host("worker-1").await;
    field.lost("worker-1");
    field.may_restart(share..=share);
    field.judged().await;
}

async fn host_lost_and_started_again_at_once(row: Shared) {
    let mut field = usual(&row).await;
    let share = field.of("worker-1").len();
    field.did("SIGKILL to guard, agent and work of worker-1 at once; started again at once");
    field.kill_host("worker-1").await;
    field.stage.spawn("worker-1", &[]);
    field.healed();
    field.may_restart(share..=share);
    field.judged().await;
}

/// Freezes what is meant of a host until its resources run elsewhere, and lets it go on: this is outside of the promise, so the oracle must
/// see the overlap, and a sink that checks epochs must refuse what comes late.
async fn frozen_and_fenced(row: Shared, what: &str, is_meant: fn(&Found) -> bool) {
    let setup = Setup { manner: Manner::Sinks, callers: 0, ..Setup::default() };
    let mut field = Field::open(setup, &row).await;
    field.row().meant_to_overlap = true;
    let share = field.of("worker-1");
    let old = work_of(&field, "worker-1");
    let frozen: Vec<Found> = field.host("worker-1").into_iter().filter(is_meant).collect();
    field.did(format!("SIGSTOP to {what} of worker-1 until all of it was assigned to others, then SIGCONT"));
    processes::signal_all(&frozen, Signal::SIGSTOP);
    // A new owner cannot take the lock, so it says that there is an overlap; the sink tells who is late.
    field
        .stage
        .eventually("the others try to run it", async || {
            let overlaps = oracle::judge_course(&field.log()).overlaps;
            share.iter().all(|name| overlaps.iter().any(|overlap| overlap.starts_with(name.as_str()))).then_some(())
        })
        .await;
    processes::signal_all(&frozen, Signal::SIGCONT);
    field.healed();
    field.until_dead(&old).await;
    let stage = field.stage.path().to_owned();
    let refused = field.log().iter().filter(|line| line.what == oracle::What::Refused).count();
    field.note(format!("the sinks refused {refused} of the old owners; no sink took a smaller epoch after a larger one"));
    for name in &share {
        let sink = std::fs::read_to_string(stage.join("work").join(format!("{name}.sink"))).expect("a sink");
        let epochs: Vec<u64> = sink.lines().map(|line| line.parse().expect("an epoch")).collect();
        assert!(epochs.is_sorted(), "{name}: the sink took an older epoch after a newer one");
    }
    field.judged().await;
    assert!(row.lock().expect("whole").overlaps > 0, "the oracle does not see what is certain to overlap");
}

async fn host_frozen_is_fenced_by_the_epoch(row: Shared) {
    frozen_and_fenced(row, "guard, agent and work", |_| true).await;
}

async fn guard_and_agent_frozen_are_fenced_by_the_epoch(row: Shared) {
    frozen_and_fenced(row, "guard and agent, but not the work", |found| found.work.is_none()).await;
}

async fn leader_killed(row: Shared) {
    let mut field = usual(&row).await;
    let leader = field.stage.leader().await;
    field.did("SIGKILL to the leader; started again as a standby");
    field.stage.cut(&leader).await;
    field.healed();
    field.stage.spawn(&leader, &[]);
    field.may_restart(0..=0);
    field.judged().await;
}

async fn leader_frozen(row: Shared, span: std::time::Duration) {
    let mut field = usual(&row).await;
    let leader = field.stage.leader().await;
    field.did(format!("SIGSTOP to the leader, SIGCONT after {span:?}"));
    field.stage.signal(&leader, Signal::SIGSTOP);
    field.span(span).await;
    field.stage.signal(&leader, Signal::SIGCONT);
    field.healed();
    field.may_restart(0..=0);
    field.judged().await;
}

async fn leader_frozen_briefly(row: Shared) {
    leader_frozen(row, WITHIN_AUTHORITY).await;
}

async fn leader_frozen_beyond_its_lease(row: Shared) {
    leader_frozen(row, BEYOND_AUTHORITY).await;
}

/// The master that does not lead.
async fn standby(field: &Field) -> &'static str {
    if field.stage.leader().await == "master-1" { "master-2" } else { "master-1" }
}

async fn standby_killed(row: Shared) {
    let mut field = usual(&row).await;
    let standby = standby(&field).await;
    field.did("SIGKILL to the standby; started again");
    field.stage.cut(standby).await;
    field.stage.spawn(standby, &[]);
    field.healed();
    field.may_restart(0..=0);
    field.judged().await;
}

async fn standby_frozen(row: Shared) {
    let mut field = usual(&row).await;
    let standby = standby(&field).await;
    field.did(format!("SIGSTOP to the standby with calls in it, SIGCONT after {BEYOND_AUTHORITY:?}"));
    field.stage.signal(standby, Signal::SIGSTOP);
    field.span(BEYOND_AUTHORITY).await;
    field.stage.signal(standby, Signal::SIGCONT);
    field.healed();
    field.may_restart(0..=0);
    field.judged().await;
}

async fn all_masters_killed(row: Shared) {
    let mut field = usual(&row).await;
    field.did(format!("SIGKILL to both masters; started again after {BEYOND_AUTHORITY:?}"));
    for master in ["master-1", "master-2"] {
        field.stage.cut(master).await;
    }
    field.span(BEYOND_AUTHORITY).await;
    for master in ["master-1", "master-2"] {
        field.stage.spawn(master, &[]);
    }
    field.healed();
    field.may_restart(0..=0);
    field.judged().await;
}

async fn leader_killed_three_times_in_a_burst(row: Shared) {
    let mut field = Field::open(Setup { masters: 3, callers: 6, ..Setup::default() }, &row).await;
    field.did("6 callers; three times: SIGKILL to the leader, which is started again once another leads");
    for _ in 0..3 {
        let leader = field.stage.leader().await;
        field.stage.cut(&leader).await;
        let next = field.stage.leader().await;
        assert_ne!(next, leader);
        field.stage.spawn(&leader, &[]);
    }
    field.healed();
    field.may_restart(0..=0);
    field.judged().await;
}

async fn rolling_restart_of_everything(row: Shared) {
    let mut field = usual(&row).await;
    field.did("SIGTERM to each master and each worker in turn, each started again before the next");
    for name in ["master-1", "master-2", "worker-1", "worker-2", "worker-3"] {
        field.stage.signal(name, Signal::SIGTERM);
        assert_eq!(field.stage.ended(name).await, Some(0), "{name} leaves in order");
        field.stage.spawn(name, &[]);
        field.stage.leader().await;
        field.stage.ready(3).await;
        field.until_settled(None).await;
    }
    field.healed();
    field.judged().await;
}

async fn leader_and_a_host_lost_at_once(row: Shared) {
    let mut field = usual(&row).await;
    let leader = field.stage.leader().await;
    let share = field.of("worker-2").len();
    field.did("SIGKILL to the leader, and to guard, agent and work of worker-2");
    field.stage.signal(&leader, Signal::SIGKILL);
    field.kill_host("worker-2").await;
    field.lost("worker-2");
    field.stage.ended(&leader).await;
    field.stage.spawn(&leader, &[]);
    field.may_restart(share..=share);
    field.judged().await;
}

/// Work that does not want to end, under an agent that is killed, then under a guard that is killed, then under a worker that is cut off.
async fn hostile(row: Shared, manner: Manner) {
    let mut field = Field::open(Setup { manner, callers: 1, ..Setup::default() }, &row).await;
    field.did("SIGKILL to the agent of worker-1");
    let work = work_of(&field, "worker-1");
    signal::kill(field.stage.agent("worker-1").await, Signal::SIGKILL).expect("killed");
    field.until_dead(&work).await;
    field.until_settled(None).await;

    field.did("then to the guard of worker-2, which is started again");
    let work = work_of(&field, "worker-2");
    field.stage.signal("worker-2", Signal::SIGKILL);
    field.stage.ended("worker-2").await;
    field.until_dead(&work).await;
    field.stage.spawn("worker-2", &[]);
    field.until_settled(None).await;

    field.did("then worker-3 is cut off from etcd until others have its work");
    field.weather("worker-3", crate::links::Weather::CUT);
    field.until_settled(Some("worker-3")).await;
    field.links.clear();
    field.healed();
    field.judged().await;
}

async fn children_that_are_deaf(row: Shared) {
    hostile(row, Manner::Deaf).await;
}

async fn children_that_escape(row: Shared) {
    hostile(row, Manner::Escapes).await;
}

async fn children_that_fork_without_end(row: Shared) {
    hostile(row, Manner::Forks).await;
}

async fn children_that_hold_their_output(row: Shared) {
    hostile(row, Manner::Pipe).await;
}

async fn children_that_become_another_user(row: Shared) {
    hostile(row, Manner::Becomes).await;
}

async fn children_that_are_made_siblings(row: Shared) {
    hostile(row, Manner::Sibling).await;
}

async fn children_without_an_environment(row: Shared) {
    hostile(row, Manner::Unmarked).await;
}

async fn children_that_are_bombs(row: Shared) {
    hostile(row, Manner::Bomb).await;
}

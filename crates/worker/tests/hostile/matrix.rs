//! All kinds of hostile work side by side, against each way in which work ends.
//!
//! Beside the wheel. What is awaited has no bound but patience; what is promised in time is asserted.

use std::time::Instant;

use evenkeel_worker::protocol::authority::Timing;
use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::{
    bed::{Bed, Case, Means},
    kinds,
    support::{dead, signal},
    trials,
};

pub(crate) fn all() -> Vec<Trial> {
    [
        trials("nothing_is_left_of_what_was_reported_stopped", &["cgroup_root", "processes_nobody"], stopped),
        trials("nothing_survives_its_agent", &["cgroup_nobody", "processes_root"], agent_killed),
        trials("nothing_outlives_its_authority", &["processes_nobody"], authority_ended),
        trials("nothing_survives_its_guard", &["processes_root"], guard_killed),
        trials("nothing_survives_its_guard_while_the_agent_is_stopped", &[], guard_killed_and_agent_stopped),
        trials("nothing_survives_guard_and_agent", &["processes_nobody"], guard_and_agent_killed),
        trials("nothing_survives_what_holds_it", &["cgroup_root"], all_holders_killed),
    ]
    .into_iter()
    .flatten()
    .collect()
}

async fn stopped(case: Case) {
    let bed = Bed::with("h-stop", case, &kinds::ALL).await;
    assert!(bed.lives.all().len() == kinds::ALL.len(), "{:?}", bed.lives.all());
    let told = Instant::now();
    for run in 0..bed.runs.len() {
        bed.tell_stop(run).await;
    }
    for run in &bed.runs {
        bed.reported_stopped(run.number).await;
        println!("{}: {} was reported stopped {:?} later", case.as_str(), run.name, told.elapsed());
        bed.lives.nothing_lives_of(run.number, &run.name);
    }
    bed.lives.nothing_lives();
}

async fn agent_killed(case: Case) {
    let bed = Bed::with("h-agent", case, &kinds::ALL).await;
    let killed = Instant::now();
    bed.signal_agent(Signal::SIGKILL).await;
    bed.all_dead(killed, "SIGKILL to the agent").await;
    // Whoever is not admitted yet starts nothing; and the guard attests only when all was reaped.
    let (_, registration) = bed.testbed.registered_after(bed.session).await;
    assert_eq!(registration.attests, Some(bed.session));
    bed.lives.nothing_lives();
}

/// The agent does nothing any more, so that the guard has to.
async fn authority_ended(case: Case) {
    let bed = Bed::with("h-end", case, &kinds::ALL).await;
    let frozen = Instant::now();
    bed.signal_agent(Signal::SIGSTOP).await;
    let took = bed.all_dead(frozen, "SIGSTOP to the agent").await;
    // D, from the send of a proof that was sent before.
    assert!(took < Timing::default().authority, "{took:?}");
}

async fn guard_killed(case: Case) {
    guard_killed_while(case, "h-guard", Signal::SIGCONT).await;
}

/// The kernel wakes the agent when its guard has died.
async fn guard_killed_and_agent_stopped(case: Case) {
    guard_killed_while(case, "h-guard-stop", Signal::SIGSTOP).await;
}

async fn guard_killed_while(case: Case, test: &str, agent_gets: Signal) {
    let bed = Bed::with(test, case, &kinds::ALL).await;
    let agent = bed.signal_agent(agent_gets).await;
    let killed = Instant::now();
    bed.worker.signal(Signal::SIGKILL);
    bed.all_dead(killed, &format!("{agent_gets} to the agent and SIGKILL to the guard")).await;
    dead(agent).await;
}

/// Nobody is left who would know of any work, but for what holds each run.
async fn guard_and_agent_killed(case: Case) {
    let bed = Bed::with("h-both", case, &kinds::ALL).await;
    let agent = bed.worker.agent_pid().await;
    // Stopped first, so that neither acts on the other's end.
    for number in [Signal::SIGSTOP, Signal::SIGKILL] {
        bed.worker.signal(number);
        signal(agent, number);
    }
    bed.all_dead(Instant::now(), "SIGKILL to guard and agent at once").await;
}

/// Everything that is not work is killed at once. The kernel ends most main processes then; what is left is ended by the next worker of that
/// id on this machine, which finds it in its cgroup, or else by its environment.
async fn all_holders_killed(case: Case) {
    let mut bed = Bed::with("h-all", case, &kinds::ALL).await;
    let holders = bed.holders();
    for number in [Signal::SIGSTOP, Signal::SIGKILL] {
        for pid in &holders {
            // Some of them end with others.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), number);
        }
    }
    let killed = Instant::now();
    bed.start_worker_again();
    // By no environment can be found who has overwritten it, or has none.
    let not_found: &[&str] = if case.means == Means::Cgroup { &[] } else { &["unmarked", "hidden", "headless"] };
    bed.dead_but(not_found, killed, "SIGKILL to everything but the work, and the worker started again").await;
}

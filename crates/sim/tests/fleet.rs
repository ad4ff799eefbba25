//! Whole fleets from seeds: the real code on virtual time, with faults. More of the same, for hours, by `make soak`.

use std::time::Duration;

use evenkeel_sim::{
    etcd::Direction,
    fleet::{
        Plan,
        fault::{Fault, Host, Planned, Size},
        ledger::Counts,
        run,
    },
};

/// Few, since each is a fleet for minutes: what was found by more of them has a test of its own.
const SEEDS: u64 = 25;

#[test]
fn no_seed_finds_anything() {
    let mut counts = Counts::default();
    for seed in 0..SEEDS {
        let report = run(&Plan::of(seed));
        assert_eq!(report.violation, None, "to see it: cargo run -p evenkeel-sim --bin fleet -- --seed {seed}\n{}", tail(&report.trace));
        assert!(report.counts.starts > 0 && report.counts.acknowledged > 0, "seed {seed}: nothing happened");
        counts = counts.and(report.counts);
    }
    // What is of tasks has its own tests.
    let is_of_tasks = |name: &str| ["task", "script", "disk"].iter().any(|word| name.starts_with(word));
    let never: Vec<&str> = counts.each().filter(|(name, count)| *count == 0 && !is_of_tasks(name)).map(|(name, _)| name).collect();
    assert!(never.is_empty(), "this can go wrong in a fleet, and never did: {never:?}");
}

/// Three callers of one name at a time: whatever goes wrong, there is one order in which what each was told is true.
#[test]
fn what_the_callers_of_one_name_are_told_is_linearizable() {
    for seed in 0..SEEDS / 2 {
        let report = run(&Plan::of_shared_names(seed));
        assert_eq!(
            report.violation,
            None,
            "to see it: cargo run -p evenkeel-sim --bin fleet -- --shared --seed {seed}\n{}",
            tail(&report.trace)
        );
        assert!(report.counts.acknowledged > 50, "seed {seed}: nothing happened");
    }
}

#[test]
fn a_hiccup_of_etcd_stops_nothing() {
    for seed in 0..6 {
        let report = run(&Plan::of_hiccups(seed));
        assert_eq!(report.violation, None, "seed {seed}\n{}", tail(&report.trace));
        assert!(report.counts.faults >= 4 && report.counts.starts >= 4, "seed {seed}: nothing happened");
    }
}

/// Each of agent and guard ends work without the other: docs/guarantees.md.
#[test]
fn a_guard_that_is_stopped_leaves_the_end_of_work_to_its_agent() {
    let second = Duration::from_secs(1);
    let at = |number, at, fault| Planned { number, at, fault };
    let mut counts = Counts::default();
    for seed in 0..6 {
        let size = Size { workers: 2, masters: 1, members: 1, resources: 8, shared: 0, tasks: 0 };
        let alone = |worker| {
            vec![
                at(2 * worker, 5 * second, Fault::StopGuard(worker, 25 * second)),
                at(2 * worker + 1, 7 * second, Fault::Cut(Host::Worker(worker), Direction::Both, 20 * second)),
            ]
        };
        let report = run(&Plan { seed, size, quiet: false, rounds: vec![alone(0), alone(1)] });
        assert_eq!(report.violation, None, "seed {seed}\n{}", tail(&report.trace));
        counts = counts.and(report.counts);
    }
    assert_eq!(counts.guards_stopped, 12);
    assert!(counts.starts > 12 * 8, "what was lost goes on elsewhere, and comes back: {counts:?}");
}

/// Once a leader that had been stopped answered from memory what another leader had changed since.
#[test]
fn a_leader_that_was_stopped_answers_nothing_from_memory() {
    let stop = |number: usize| Planned {
        number,
        at: Duration::from_secs(10 * u64::try_from(number).unwrap()),
        fault: Fault::StopMaster(number % 2, Duration::from_millis(7_500)),
    };
    for seed in 0..8 {
        let size = Size { workers: 2, masters: 2, members: 1, resources: 12, shared: 0, tasks: 0 };
        let plan = Plan { seed, size, quiet: false, rounds: vec![(0..7).map(stop).collect()] };
        let report = run(&plan);
        assert_eq!(report.violation, None, "seed {seed}\n{}", tail(&report.trace));
    }
}

/// Once a resource was given to another worker while the end of its old assignment was decided, and not yet known to be written: for a
/// while it had two assignments, and a new leader would have found both. This is the run that showed it, shrunk.
#[test]
fn nothing_is_assigned_anew_before_its_old_assignment_is_known_to_be_gone() {
    let at = |number, ms, fault| Planned { number, at: Duration::from_millis(ms), fault };
    let size = Size { workers: 2, masters: 3, members: 1, resources: 2, shared: 0, tasks: 0 };
    let masters = vec![at(6, 3_489, Fault::EndMaster(1)), at(7, 11_063, Fault::KillMaster(1)), at(8, 39_209, Fault::KillMaster(1))];
    let agent = vec![at(15, 32_398, Fault::KillAgent(1)), at(17, 67_750, Fault::Revoke(Host::Master(0)))];
    let report = run(&Plan { seed: 211, size, quiet: false, rounds: vec![vec![], masters, vec![], agent] });
    assert_eq!(report.violation, None, "{}", tail(&report.trace));
}

#[test]
fn a_seed_gives_the_same_run_again() {
    // Those are among them in which a guard kills several pieces of work at once.
    for seed in [3, 5, 9] {
        let plan = Plan::of(seed);
        let (first, second) = (run(&plan), run(&plan));
        assert_eq!(first.digest, second.digest, "seed {seed}");
        assert_eq!(first, second);
        assert_ne!(first.digest, run(&Plan::of(seed + 1)).digest);
    }
}

fn tail(trace: &[String]) -> String {
    trace[trace.len().saturating_sub(40)..].join("\n")
}

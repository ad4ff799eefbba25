//! One run of a fleet: from a seed and a choice of faults to a report.

use std::{collections::BTreeSet, time::Duration};

use tokio::runtime::Builder;

use super::{
    dice::Dice,
    fault::{Fault, Planned, Size, draw, draw_wipes},
    ledger::Counts,
    process::take_panic,
    settle::settle,
    world::World,
};

/// How long the faults of one round go on.
const ROUND: Duration = Duration::from_secs(75);
/// How long it goes without faults first.
const BEGINNING: Duration = Duration::from_secs(20);

/// A run that can be made, and made again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Everything that is random follows from it.
    pub seed: u64,
    /// How many of what there are.
    pub size: Size,
    /// Callers rest while there are faults.
    pub quiet: bool,
    /// The faults of each round.
    pub rounds: Vec<Vec<Planned>>,
}

/// What a run has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What must never happen, and has.
    pub violation: Option<String>,
    /// What happened before it.
    pub trace: Vec<String>,
    /// How much happened.
    pub counts: Counts,
    /// How long it was, in virtual time.
    pub lasted: Duration,
    /// Two runs of one plan have the same.
    pub digest: u64,
}

impl Plan {
    /// The plan of a seed: its size, and what goes wrong in each of its rounds.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let dice = Dice::new(seed, "plan");
        let pick = |of: &[usize]| *dice.pick(of);
        let size = Size {
            workers: pick(&[2, 3, 3, 4]),
            masters: pick(&[1, 2, 2, 3]),
            members: pick(&[1, 3, 3]),
            resources: pick(&[2, 5, 8]),
            shared: 0,
            tasks: 0,
        };
        let mut number = 0;
        let rounds = (0..1 + dice.below(4))
            .map(|_| {
                let faults = draw(&dice, size, ROUND, number);
                number += faults.len();
                faults
            })
            .collect();
        Self { seed, size, quiet: false, rounds }
    }

    /// The plan of a seed in which callers share some names.
    #[must_use]
    pub fn of_shared_names(seed: u64) -> Self {
        let plan = Self::of(seed);
        Self { size: Size { shared: 2, ..plan.size }, ..plan }
    }

    /// The plan of a seed whose workers run tasks, and whose disks are wiped now and then: beside that, the same as without.
    #[must_use]
    pub fn of_tasks(seed: u64) -> Self {
        let mut plan = Self::of(seed);
        let dice = Dice::new(seed, "tasks");
        plan.size.tasks = *dice.pick(&[1, 2, 3]);
        let mut number = plan.faults().count();
        for round in &mut plan.rounds {
            for (at, fault) in draw_wipes(&dice, plan.size, ROUND) {
                round.push(Planned { number, at, fault });
                number += 1;
            }
            round.sort_by_key(|planned| planned.at);
        }
        plan
    }

    /// A plan in which etcd hiccups, each time for less than 3 s, and nothing else happens: no work may be stopped for that.
    #[must_use]
    pub fn of_hiccups(seed: u64) -> Self {
        let dice = Dice::new(seed, "hiccups");
        let size = Size { workers: 3, masters: 2, members: 3, resources: 8, shared: 0, tasks: 0 };
        let hiccup = |number| {
            let span = dice.span(Duration::from_millis(100), Duration::from_secs(3));
            let member = usize::try_from(dice.below(3)).unwrap_or(0);
            let fault = match dice.below(4) {
                0 => Fault::FreezeAll(span),
                1 => Fault::FreezeMember(member, span),
                2 => Fault::KillMember(member, span),
                _ => Fault::IsolateMember(member, span),
            };
            Planned { number, at: Duration::from_secs(1), fault }
        };
        Self { seed, size, quiet: true, rounds: (0..4).map(|number| vec![hiccup(number)]).collect() }
    }

    /// All faults, in the order of their numbers.
    pub fn faults(&self) -> impl Iterator<Item = &Planned> {
        self.rounds.iter().flatten()
    }

    /// The same with only these faults.
    #[must_use]
    pub fn with_only(&self, numbers: &BTreeSet<usize>) -> Self {
        let mut plan = self.clone();
        for round in &mut plan.rounds {
            round.retain(|planned| numbers.contains(&planned.number));
        }
        plan
    }

    /// The same without the rounds after this one.
    #[must_use]
    pub fn up_to_round(&self, rounds: usize) -> Self {
        let mut plan = self.clone();
        plan.rounds.truncate(rounds);
        plan
    }
}

/// Makes a run. It has a runtime of its own, in which time goes on by itself whenever there is nothing to do.
///
/// # Panics
/// When the machine has no memory for a runtime.
#[must_use]
pub fn run(plan: &Plan) -> Report {
    // Of an earlier run.
    let _ = take_panic();
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let world = World::start(plan.seed, plan.size);
        if plan.quiet {
            world.ledger.be_quiet();
        }
        // Everything begins at once, with the callers.
        world.round(&[], BEGINNING).await;
        let mut fine = settle(&world, plan.quiet).await;
        let stops_before = world.ledger.counts().stops;
        for faults in &plan.rounds {
            if fine {
                world.round(faults, ROUND).await;
                fine = settle(&world, plan.quiet).await;
            }
        }
        let ledger = &world.ledger;
        let stopped = ledger.counts().stops - stops_before;
        if plan.quiet && stopped > 0 {
            ledger.violate(format_args!("work was stopped {stopped} times, and nobody wanted it"));
        }
        Report {
            violation: ledger.violation().or_else(|| take_panic().map(|text| format!("a process has panicked: {text}"))),
            trace: ledger.trace(),
            counts: ledger.counts(),
            lasted: ledger.elapsed(),
            digest: ledger.digest(),
        }
    })
}

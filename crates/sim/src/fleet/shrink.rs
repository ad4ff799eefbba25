//! From a run that finds something to a short one that still does: rounds and faults are left out as long as a violation remains.

use std::collections::BTreeSet;

use super::{Plan, Report, run};

/// A shrunk run.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// What is left of the plan.
    pub plan: Plan,
    /// What it comes to.
    pub report: Report,
    /// How many runs it took.
    pub runs: usize,
}

/// Leaves out what is not needed. `most` bounds the number of runs. None: the plan finds nothing.
#[must_use]
pub fn shrink(plan: &Plan, most: usize) -> Option<Shrunk> {
    let report = run(plan);
    report.violation.as_ref()?;
    let mut shrunk = Shrunk { plan: plan.clone(), report, runs: 1 };
    for rounds in 0..plan.rounds.len() {
        if shrunk.takes(&plan.up_to_round(rounds)) {
            break;
        }
    }
    // Large parts first, then smaller ones, down to one fault.
    let mut part = shrunk.plan.faults().count().div_ceil(2).max(1);
    while shrunk.runs < most {
        let numbers: Vec<usize> = shrunk.plan.faults().map(|planned| planned.number).collect();
        let mut left_out = false;
        for chunk in numbers.chunks(part) {
            let kept: BTreeSet<usize> = shrunk.plan.faults().map(|planned| planned.number).filter(|n| !chunk.contains(n)).collect();
            if shrunk.runs < most && shrunk.takes(&plan.with_only(&kept).up_to_round(shrunk.plan.rounds.len())) {
                left_out = true;
            }
        }
        if part == 1 && !left_out {
            break;
        }
        part = if left_out { part } else { part.div_ceil(2) };
    }
    Some(shrunk)
}

impl Shrunk {
    /// Tries a smaller plan, and takes it if it still finds something.
    fn takes(&mut self, plan: &Plan) -> bool {
        self.runs += 1;
        let report = run(plan);
        let finds = report.violation.is_some();
        if finds {
            (self.plan, self.report) = (plan.clone(), report);
        }
        finds
    }
}

//! Why a resource is where it is and not elsewhere: what the planner thinks of each worker for it, by the same rules and scores by which
//! it chooses.

use std::collections::BTreeMap;

use evenkeel_model::{Cluster, Definition, Failed, Misfit, Moment, PolicyName, Standing, WorkerId};

use crate::{
    PlannerConfig,
    choose::{Ask, Score, Tally},
    loads::Loads,
    policy,
};

/// What the planner thinks of all workers for one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The policy that chooses for it.
    pub policy: PolicyName,
    /// Each worker of which anything stands, in the order of ids.
    pub considered: Vec<Considered>,
    /// How many break which rule, the commonest first.
    pub failed: Vec<Failed>,
}

/// What the planner thinks of one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Considered {
    /// The worker.
    pub worker: WorkerId,
    /// What it has to carry without the resource.
    pub payload: u64,
    /// Whether it could take it, or why not.
    pub verdict: Verdict,
}

/// Whether a worker could take a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It could.
    Eligible {
        /// 1: it would be chosen now; 2: it would be the next; and so on.
        place: usize,
        /// What it is worth to the resource to be there.
        preference: u64,
        /// Its sessions end too often, so it comes after all others.
        aside: bool,
    },
    /// It breaks a hard rule.
    Misfit(Misfit),
    /// It is not ready.
    NotReady(Standing),
}

/// Explains a resource that stands, as if it were to be placed anew, or one that does not.
#[must_use]
pub fn explain(cluster: &Cluster, definition: &Definition, now: Moment, config: &PlannerConfig) -> Explanation {
    let mut loads = Loads::new(cluster, now, config);
    loads.prepare_for(definition);
    if let Some(unit) = cluster.unit(definition.name.as_str())
        && let (Some(standing), Some(home)) = (unit.definition(), unit.home())
    {
        // Where it is already, it does not stand in its own way.
        loads.leave(standing, home, true);
    }
    let name = definition.rules().policy.unwrap_or(config.policy);
    let policy = policy::of(name);
    let ask = Ask::new(&loads, definition, None);
    let mut scores: Vec<(Score, WorkerId)> = Vec::new();
    let mut failed = Tally::default();
    let mut considered = Vec::new();
    for (id, worker) in cluster.workers().filter(|(_, w)| w.standing() != Standing::Absent) {
        let verdict = match (loads.place(id), ask.candidate(id)) {
            (None, _) => Verdict::NotReady(worker.standing()),
            (Some(_), Some(candidate)) => {
                scores.push((ask.score(policy, &candidate), id.clone()));
                Verdict::Eligible { place: 0, preference: candidate.preference, aside: loads.aside_until(id).is_some() }
            }
            (Some(place), None) => match ask.fits(&place) {
                Ok(()) => continue,
                Err(misfit) => {
                    failed.count(misfit.clone(), 1);
                    Verdict::Misfit(misfit)
                }
            },
        };
        let payload = loads.place(id).map_or(worker.payload, |place| place.payload);
        considered.push(Considered { worker: id.clone(), payload, verdict });
    }
    scores.sort();
    let places: BTreeMap<WorkerId, usize> = scores.into_iter().enumerate().map(|(n, (_, id))| (id, n + 1)).collect();
    for one in &mut considered {
        if let (Verdict::Eligible { place, .. }, Some(found)) = (&mut one.verdict, places.get(&one.worker)) {
            *place = *found;
        }
    }
    Explanation { policy: name, considered, failed: failed.in_order() }
}

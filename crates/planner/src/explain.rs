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
        /// Why it comes after all others, if it does.
        penalty: Option<Penalty>,
    },
    /// It breaks a hard rule.
    Misfit(Misfit),
    /// It is not ready.
    NotReady(Standing),
}

/// Why a worker comes after all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Penalty {
    /// Its sessions end too often.
    Aside,
    /// The resource has failed there of late.
    Failed,
}

fn penalty(ask: &Ask<'_, '_>, id: &WorkerId) -> Option<Penalty> {
    let reason = if ask.has_failed_on(id) { Penalty::Failed } else { Penalty::Aside };
    ask.is_penalised(id).then_some(reason)
}

/// Explains a resource that there is, as if it were to be placed anew, or one that there is not.
#[must_use]
pub fn explain(cluster: &Cluster, definition: &Definition, now: Moment, config: &PlannerConfig) -> Explanation {
    let mut explainer = Explainer::new(definition.clone(), config);
    while explainer.look(cluster, now, usize::MAX) == Looked::AtSome {}
    explainer.explain()
}

/// An explanation in the making: it looks at some workers at a time, so that the Cluster is free for others in between. What changes
/// meanwhile is seen for the workers that are looked at after it.
#[derive(Debug)]
pub struct Explainer {
    definition: Definition,
    config: PlannerConfig,
    considered: Vec<Considered>,
    scores: Vec<(Score, WorkerId)>,
    failed: Tally,
    /// The last worker that was looked at.
    after: Option<WorkerId>,
}

/// How far an [`Explainer`] has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looked {
    /// There are more workers to look at.
    AtSome,
    /// All of them were looked at.
    AtAll,
}

impl Explainer {
    /// One that has looked at nothing.
    #[must_use]
    pub fn new(definition: Definition, config: &PlannerConfig) -> Self {
        Self { definition, config: config.clone(), considered: Vec::new(), scores: Vec::new(), failed: Tally::default(), after: None }
    }

    /// Looks at so many workers more.
    pub fn look(&mut self, cluster: &Cluster, now: Moment, count: usize) -> Looked {
        let mut loads = Loads::new(cluster, now, &self.config);
        loads.prepare_for(&self.definition);
        if let Some(unit) = cluster.unit(self.definition.name.as_str())
            && let (Some(standing), Some(home)) = (unit.definition(), unit.home())
        {
            // Where it is already, it does not stand in its own way.
            loads.leave(standing, home, true);
        }
        let ask = Ask::new(&loads, &self.definition, &[]);
        let policy = policy::of(self.definition.rules().policy.unwrap_or(self.config.policy));
        let after = self.after.clone();
        let mut workers = cluster.workers_after(after.as_ref().map_or("", WorkerId::as_str));
        for id in workers.by_ref().take(count) {
            self.after = Some(id.clone());
            let Some(worker) = cluster.worker(id.as_str()).filter(|w| w.standing() != Standing::Absent) else { continue };
            let verdict = match (loads.place(id), ask.candidate(id)) {
                (None, _) => Verdict::NotReady(worker.standing()),
                (Some(_), Some(candidate)) => {
                    self.scores.push((ask.score(policy, &candidate), id.clone()));
                    Verdict::Eligible { place: 0, preference: candidate.preference, penalty: penalty(&ask, id) }
                }
                (Some(place), None) => match ask.fits(&place) {
                    Ok(()) => continue,
                    Err(misfit) => {
                        self.failed.count(misfit.clone(), 1);
                        Verdict::Misfit(misfit)
                    }
                },
            };
            // What is decided and under way steers the choice, and is no part of what is.
            let payload = loads.place(id).map_or(worker.payload, |place| (worker.payload + place.payload).saturating_sub(worker.load));
            self.considered.push(Considered { worker: id.clone(), payload, verdict });
        }
        if workers.next().is_some() { Looked::AtSome } else { Looked::AtAll }
    }

    /// What came of it.
    #[must_use]
    pub fn explain(self) -> Explanation {
        let Self { definition, config, mut considered, mut scores, failed, .. } = self;
        scores.sort();
        let places: BTreeMap<WorkerId, usize> = scores.into_iter().enumerate().map(|(n, (_, id))| (id, n + 1)).collect();
        for one in &mut considered {
            if let (Verdict::Eligible { place, .. }, Some(found)) = (&mut one.verdict, places.get(&one.worker)) {
                *place = *found;
            }
        }
        let policy = definition.rules().policy.unwrap_or(config.policy);
        Explanation { policy, considered, failed: failed.in_order() }
    }
}

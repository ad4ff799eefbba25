//! Choice: of the workers that can run a resource the one with the best score. A policy says how candidates are walked through and what
//! each costs; what comes before that, whatever the policy, stands here.

use std::{cell::OnceCell, cmp::Reverse, collections::BTreeMap};

use evenkeel_model::{Definition, Failed, Load, Misfit, Pending, Place, PlaceReason, Rank, WorkerId, fit};

use crate::{
    loads::Loads,
    policy::{self, Amount, Cost, Policy, Walk},
};

/// How many workers are tried in the order of their loads before each shape's workers are looked at.
const PROBES: usize = 16;

/// Where a resource goes, and why there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) worker: WorkerId,
    pub(crate) reason: PlaceReason,
}

/// What is asked for: a worker for this resource, as things will be.
pub(crate) struct Ask<'q, 'l> {
    pub(crate) definition: &'q Definition,
    pub(crate) loads: &'q Loads<'l>,
    /// The label that the policy `spread` goes by.
    pub(crate) label: &'q str,
    /// The workers that are out of the question.
    except: &'q [&'q WorkerId],
    /// The workers on which it has failed of late.
    failed_on: Vec<&'l WorkerId>,
    by_value: OnceCell<BTreeMap<Option<String>, u64>>,
    is_first: OnceCell<bool>,
}

/// A worker that can run it.
pub(crate) struct Candidate<'q> {
    pub(crate) place: Place<'q>,
    pub(crate) load: Load,
    /// What it is worth to the resource to be there.
    pub(crate) preference: u64,
}

/// The less, the better.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Score {
    /// The resource has failed there of late.
    failed: bool,
    /// Its sessions end too often.
    aside: bool,
    /// How many of the resource's group are at home on workers with the same value of its `spread`.
    crowd: i64,
    /// What it is worth to be there, where the policy does not count that in.
    preference: Reverse<u64>,
    cost: Cost,
    worker: WorkerId,
}

/// Chooses a worker; never one of `except`.
///
/// # Errors
/// Why there is none.
pub(crate) fn choose(loads: &Loads<'_>, definition: &Definition, except: &[&WorkerId]) -> Result<Choice, Pending> {
    if let Some(pin) = &definition.pin {
        return choose_pinned(loads, definition, pin, except);
    }
    let ask = Ask::new(loads, definition, except);
    let name = definition.rules().policy.unwrap_or(loads.config.policy);
    let found = ask.best(policy::of(name)).ok_or_else(|| why_none(loads, definition))?;
    Ok(Choice { worker: found, reason: PlaceReason::Policy(name) })
}

/// Of a pinned resource only one worker is asked, however many there are.
fn choose_pinned(loads: &Loads<'_>, definition: &Definition, pin: &WorkerId, except: &[&WorkerId]) -> Result<Choice, Pending> {
    let misfit = match loads.place(pin) {
        None => None,
        Some(place) => match loads.fits(definition, &place) {
            Ok(()) if except.contains(&pin) => None,
            Ok(()) => return Ok(Choice { worker: pin.clone(), reason: PlaceReason::Pinned }),
            Err(misfit) => Some(misfit),
        },
    };
    Err(Pending::Pin { worker: pin.clone(), misfit })
}

impl<'q, 'l> Ask<'q, 'l> {
    pub(crate) fn new(loads: &'q Loads<'l>, definition: &'q Definition, except: &'q [&'q WorkerId]) -> Self {
        Self { failed_on: loads.failed_on(&definition.name), ..Self::of_class(loads, definition, except) }
    }

    /// The same for any resource that looks like this one, whatever that one has met with.
    pub(crate) fn of_class(loads: &'q Loads<'l>, definition: &'q Definition, except: &'q [&'q WorkerId]) -> Self {
        let label = definition.rules().spread.as_deref().unwrap_or(&loads.config.spread_label);
        Self { definition, loads, label, except, failed_on: Vec::new(), by_value: OnceCell::new(), is_first: OnceCell::new() }
    }

    fn best(&self, policy: &dyn Policy) -> Option<WorkerId> {
        let rules = self.definition.rules();
        if !rules.together.is_empty() {
            let homes = self.loads.related().homes_of(&rules.together);
            if !homes.is_empty() {
                return self.best_of(policy, homes.into_iter());
            }
        }
        // Nothing but the order of the walk counts, so that the first that fits is the best.
        let is_plain = rules.prefer.is_empty() && rules.spread.is_none();
        match policy.walk() {
            Walk::LeastLoaded => {
                let quick = is_plain && !self.loads.cluster.rankings().is_relative();
                let first = if quick { self.first_of(self.loads.ascending().take(PROBES).map(|rank| &rank.worker)) } else { None };
                first.or_else(|| self.best_of_shapes(policy, Self::least_of_shape))
            }
            Walk::LeastOfShape => self.best_of_shapes(policy, Self::least_of_shape),
            Walk::MostLoaded => self.best_of_shapes(policy, Self::most_of_shape),
            Walk::InTurn => {
                let first = if is_plain { self.first_of(self.loads.in_turn()) } else { None };
                first.or_else(|| self.best_of(policy, self.loads.ascending().map(|rank| &rank.worker)))
            }
            Walk::All => self.best_of(policy, self.loads.ascending().map(|rank| &rank.worker)),
        }
    }

    /// It is chosen after all that are not: it is set aside, or the resource has failed there.
    pub(crate) fn is_penalised(&self, id: &WorkerId) -> bool {
        self.has_failed_on(id) || self.loads.aside_until(id).is_some()
    }

    pub(crate) fn has_failed_on(&self, id: &WorkerId) -> bool {
        self.failed_on.contains(&id)
    }

    /// The first that fits and is not penalised.
    fn first_of<'w>(&self, mut workers: impl Iterator<Item = &'w WorkerId>) -> Option<WorkerId>
    where
        'q: 'w,
    {
        workers.find(|id| self.candidate(id).is_some() && !self.is_penalised(id)).cloned()
    }

    fn best_of<'w>(&self, policy: &dyn Policy, workers: impl Iterator<Item = &'w WorkerId>) -> Option<WorkerId>
    where
        'q: 'w,
    {
        workers.filter_map(|id| self.candidate(id).map(|c| self.score(policy, &c))).min().map(|score| score.worker)
    }

    /// One candidate, or those of equal load, from each shape whose workers may run it, and those of no shape.
    fn best_of_shapes(&self, policy: &dyn Policy, pick: fn(&Self, Shape<'q>) -> Vec<&'q WorkerId>) -> Option<WorkerId> {
        let shapes = self.loads.cluster.rankings().shapes();
        let picked = shapes.filter_map(|(id, shaped)| {
            fit::suits(self.definition.needs(), &shaped.shape.kinds, &shaped.shape.drivers, &shaped.shape.labels).ok()?;
            Some(pick(self, Shape { id, shaped }))
        });
        self.best_of(policy, picked.flatten().chain(self.loads.unshaped()))
    }

    /// The least loaded that fits, and the least loaded that also is not penalised.
    fn least_of_shape(&self, shape: Shape<'q>) -> Vec<&'q WorkerId> {
        let mut fitting = self.loads.of_shape(shape.id, shape.shaped).map(|rank| &rank.worker).filter(|id| self.candidate(id).is_some());
        let Some(first) = fitting.next() else { return Vec::new() };
        let steady = |id: &&WorkerId| !self.is_penalised(id);
        if steady(&first) {
            return vec![first];
        }
        // Of those that are penalised, the ones on which it has failed come last.
        let mut found = vec![first];
        let mut has_untried = !self.has_failed_on(first);
        for id in fitting {
            if steady(&id) {
                found.push(id);
                break;
            }
            if !has_untried && !self.has_failed_on(id) {
                has_untried = true;
                found.push(id);
            }
        }
        found
    }

    /// The most loaded that fit: those that are equally full, so that ids can decide.
    fn most_of_shape(&self, shape: Shape<'q>) -> Vec<&'q WorkerId> {
        let fits = |rank: &&Rank| self.candidate(&rank.worker).is_some();
        let mut fitting = self.loads.of_shape_from_full(shape.id, shape.shaped).filter(fits);
        let mut found: Vec<&WorkerId> = Vec::new();
        let mut steady_at: Option<Load> = None;
        for rank in fitting.by_ref() {
            if steady_at.is_some_and(|load| rank.load < load) {
                break;
            }
            if !self.is_penalised(&rank.worker) {
                steady_at = Some(rank.load);
            }
            found.push(&rank.worker);
        }
        found
    }

    /// A worker as a candidate, if it can run the resource.
    pub(crate) fn candidate<'w>(&'w self, id: &'w WorkerId) -> Option<Candidate<'w>> {
        let place = self.loads.place(id).filter(|_| !self.except.contains(&id))?;
        self.fits(&place).ok()?;
        Some(self.candidate_at(place))
    }

    /// A worker as a candidate, if it can run the resource as far as that does not depend on others.
    pub(crate) fn alone<'w>(&'w self, id: &'w WorkerId) -> Option<Candidate<'w>> {
        let place = self.loads.place(id).filter(|_| !self.except.contains(&id))?;
        fit::can_run(self.definition, &place).ok()?;
        self.loads.cluster.shares_fence(self.definition, place.registration).ok()?;
        Some(self.candidate_at(place))
    }

    fn candidate_at<'w>(&'w self, place: Place<'w>) -> Candidate<'w> {
        let preference = self.definition.rules().preference(&place.registration.labels);
        Candidate { load: self.loads.load(&place), place, preference }
    }

    /// Whether a place can take it, by every hard rule.
    pub(crate) fn fits(&self, place: &Place<'_>) -> Result<(), Misfit> {
        fit::can_run(self.definition, place)?;
        self.loads.cluster.shares_fence(self.definition, place.registration)?;
        let is_first = || *self.is_first.get_or_init(|| self.loads.related().is_first(self.definition));
        self.loads.related().allow(self.definition, place.id, &is_first)
    }

    pub(crate) fn score(&self, policy: &dyn Policy, candidate: &Candidate<'_>) -> Score {
        let labels = &candidate.place.registration.labels;
        let spread = self.definition.rules().spread.as_deref();
        Score {
            failed: self.has_failed_on(candidate.place.id),
            aside: self.loads.aside_until(candidate.place.id).is_some(),
            crowd: spread.map_or(0, |key| self.loads.related().crowd(self.definition, key, labels)),
            preference: Reverse(if policy.counts_preference() { 0 } else { candidate.preference }),
            cost: policy.cost(self, candidate),
            worker: candidate.place.id.clone(),
        }
    }

    /// The payload of all open workers that have the same value of the label as these.
    pub(crate) fn payload_of_value(&self, value: Option<&String>) -> u64 {
        let sums = self.by_value.get_or_init(|| {
            let mut sums: BTreeMap<Option<String>, u64> = BTreeMap::new();
            for (id, shaped) in self.loads.cluster.rankings().shapes() {
                *sums.entry(shaped.shape.labels.get(self.label).cloned()).or_default() += self.loads.payload_of(id, shaped);
            }
            sums
        });
        sums.get(&value.cloned()).copied().unwrap_or_default()
    }
}

#[derive(Clone, Copy)]
struct Shape<'q> {
    id: evenkeel_model::ShapeId,
    shaped: &'q evenkeel_model::Shaped,
}

/// How full a candidate would be with the resource, less what it is worth to be there: what most policies go by.
pub(crate) fn fullness(ask: &Ask<'_, '_>, candidate: &Candidate<'_>) -> Amount {
    let payload = i128::from(candidate.load.payload) + i128::from(ask.definition.weight);
    Amount { number: payload - i128::from(candidate.preference), share: candidate.load.share }
}

/// Why no worker that is ready can take it. Workers of one shape are asked together, as far as they break the same rule.
pub(crate) fn why_none(loads: &Loads<'_>, definition: &Definition) -> Pending {
    let ask = Ask::new(loads, definition, &[]);
    let mut failed = Tally::default();
    for (id, shaped) in loads.cluster.rankings().shapes() {
        let shape = &shaped.shape;
        let least = loads.of_shape(id, shaped).next().and_then(|rank| loads.place(&rank.worker));
        let of_all = shape.refused.clone().map(Misfit::Refused);
        let of_all = of_all.or_else(|| fit::suits(definition.needs(), &shape.kinds, &shape.drivers, &shape.labels).err());
        // Where the least loaded has no room, none has.
        let of_all = of_all.or_else(|| least.and_then(|place| fit::has_room(definition, &place).err()));
        match of_all {
            Some(misfit) => failed.count(misfit, loads.of_shape(id, shaped).count()),
            None => failed.ask_each(&ask, loads.of_shape(id, shaped).map(|rank| &rank.worker)),
        }
    }
    failed.ask_each(&ask, loads.cluster.closed().iter());
    failed.ask_each(&ask, loads.closed_by_assumption());
    if loads.ready() == 0 {
        return Pending::NoWorkers;
    }
    Pending::NoneFits { workers: loads.ready(), failed: failed.in_order() }
}

/// How many workers break which rule.
#[derive(Debug, Default)]
pub(crate) struct Tally(BTreeMap<Rule, Failed>);

impl Tally {
    pub(crate) fn count(&mut self, misfit: Misfit, count: usize) {
        let entry = self.0.entry(Rule::of(&misfit)).or_insert_with(|| Failed { misfit: misfit.clone(), count: 0 });
        entry.count += count;
        entry.misfit = roomier(&entry.misfit, misfit);
    }

    fn ask_each<'w>(&mut self, ask: &Ask<'_, '_>, workers: impl Iterator<Item = &'w WorkerId>) {
        for id in workers {
            let misfit = ask.loads.place(id).and_then(|place| ask.fits(&place).err());
            if let Some(misfit) = misfit {
                self.count(misfit, 1);
            }
        }
    }

    /// The commonest first; of equals the first in order, so that the answer does not change from plan to plan.
    pub(crate) fn in_order(self) -> Vec<Failed> {
        let mut failed: Vec<Failed> = self.0.into_values().filter(|failed| failed.count > 0).collect();
        failed.sort_by_key(|failed| Reverse(failed.count));
        failed
    }
}

/// By what misfits are counted together: the rule as it is written, and of capacities the rule alone.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rule(&'static str, Option<Misfit>);

impl Rule {
    fn of(misfit: &Misfit) -> Self {
        Self(misfit.rule(), (!matches!(misfit, Misfit::Capacity { .. })).then(|| misfit.clone()))
    }
}

fn roomier(a: &Misfit, b: Misfit) -> Misfit {
    match (a, &b) {
        (Misfit::Capacity { free, .. }, Misfit::Capacity { free: more, .. }) if more > free => b,
        _ => a.clone(),
    }
}

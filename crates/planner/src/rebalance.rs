//! Balance: the fewest moves that bring the highest load within tolerance of the lowest. Each move leaves its recipient less loaded than
//! its donor was, so that a balanced cluster is left alone and nothing goes back and forth.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use evenkeel_model::{ClassId, Definition, Labels, Load, Moment, Pending, PolicyName, Rank, Rules, StopReason, Subject, WorkerId, fit};

use crate::{
    choose::{Ask, Candidate},
    policy::{self, Amount, Balance, beats},
    turn::{FitClass, Settled, Turn, fit_class},
};

/// For how long a worker counts as a newcomer, unless it has its part before: longer than a drain or a brake keeps balance waiting.
const JOINED: Duration = Duration::from_secs(3600);

/// Pulls from the most loaded workers until the spread is within tolerance or nothing more helps.
pub(crate) fn turn(turn: &mut Turn<'_>) {
    let limit = turn.config.moves_in_flight;
    if limit == 0 || is_even(turn) {
        return;
    }
    let in_flight = turn.cluster.agenda().stopping_for.get(&StopReason::Rebalance).copied().unwrap_or_default();
    let mut budget = limit.saturating_sub(in_flight);
    let mut donors = Donors::of(turn);
    while !turn.is_full() {
        let Some((on, to)) = donors.next_move(turn) else { break };
        if budget == 0 {
            turn.undone(Subject::Worker(on.holder.worker.clone()), Pending::InFlight(limit));
            break;
        }
        turn.send(on, StopReason::Rebalance, Some(to));
        budget -= 1;
    }
    if let Some((worker, until)) = donors.cooling {
        turn.wake_at(until);
        turn.undone(Subject::Worker(worker), Pending::Cooling(until));
    }
}

/// Nobody has too much: most plans end here, whatever there is.
fn is_even(turn: &Turn<'_>) -> bool {
    let least = least_with(turn, turn.config.tolerance);
    let most = turn.loads.descending().next().map(|rank| rank.load);
    least.zip(most).is_none_or(|(least, most)| most <= least)
}

/// The workers that have too much, with what might go from each by weight. Looked at once in a plan: recipients only gain and donors
/// only lose, so what fits nowhere now fits nowhere later. Donors come in descending order of their loads, so what one cannot give away no
/// later one can.
#[derive(Default)]
struct Donors<'a> {
    /// The classes of which something may still move.
    alive: BTreeSet<ClassId>,
    candidates: BTreeMap<WorkerId, BTreeMap<u64, Vec<Settled<'a>>>>,
    exhausted: BTreeSet<WorkerId>,
    /// What fits nowhere, by what distinguishes it and the place that it would leave.
    hopeless: BTreeSet<(FitClass<'a>, Seat)>,
    /// The first moment at which something that was moved lately may be moved again, and where it is.
    cooling: Option<(WorkerId, Moment)>,
}

/// What a place is to a resource apart from its load: what it is worth to be there, and the value of the label that it is spread over.
type Seat = (u64, Option<String>);

impl<'a> Donors<'a> {
    fn of(turn: &Turn<'a>) -> Self {
        let classes = turn.cluster.classes().patterns();
        let alive = classes.filter(|(_, pattern)| may_move(turn, pattern)).map(|(class, _)| class).collect();
        Self { alive, ..Self::default() }
    }

    fn next_move(&mut self, turn: &Turn<'a>) -> Option<(Settled<'a>, WorkerId)> {
        let least = least_with(turn, turn.config.tolerance)?;
        for donor in turn.loads.descending().take_while(|rank| rank.load > least) {
            if self.alive.is_empty() {
                return None;
            }
            if self.exhausted.contains(&donor.worker) {
                continue;
            }
            if !self.candidates.contains_key(&donor.worker) {
                let found = self.candidates_of(turn, donor);
                self.candidates.insert(donor.worker.clone(), found);
            }
            match self.take_best(turn, donor) {
                Some(pull) => return Some(pull),
                None => self.exhausted.insert(donor.worker.clone()),
            };
        }
        None
    }

    /// What may go from a worker, by weight and in the order of names. Its names are looked at only if a class of what it has can go.
    fn candidates_of(&mut self, turn: &Turn<'a>, donor: &Rank) -> BTreeMap<u64, Vec<Settled<'a>>> {
        let mut by_weight: BTreeMap<u64, Vec<Settled<'a>>> = BTreeMap::new();
        let Some(worker) = turn.cluster.worker(donor.worker.as_str()) else { return by_weight };
        let movable: Vec<ClassId> = worker.movable.keys().copied().filter(|class| self.alive.contains(class)).collect();
        let can_go: BTreeSet<ClassId> = movable.into_iter().filter(|class| self.can_go(turn, *class, donor)).collect();
        if can_go.is_empty() {
            return by_weight;
        }
        for name in worker.names.iter().rev() {
            let unit = turn.cluster.unit(name.as_str());
            if !unit.and_then(|unit| unit.class).is_some_and(|class| can_go.contains(&class)) {
                continue;
            }
            let Some(on) = turn.settled(name, &donor.worker).filter(|_| !turn.cluster.agenda().attention.contains(name)) else { continue };
            let cools_until = turn.cluster.moves().last(name).map(|at| at.after(turn.config.cool_down)).filter(|until| *until > turn.now);
            match cools_until {
                None => by_weight.entry(u64::from(on.definition.weight)).or_default().push(on),
                Some(until) if self.cooling.as_ref().is_none_or(|(_, first)| until < *first) => {
                    self.cooling = Some((donor.worker.clone(), until));
                }
                Some(_) => {}
            }
        }
        by_weight
    }

    /// Whether anybody would take a resource of this class, as far as that does not depend on the single resource: by its labels others may
    /// be kept from it, which leaves fewer and never more.
    fn can_go(&mut self, turn: &Turn<'a>, class: ClassId, donor: &Rank) -> bool {
        let Some(pattern) = turn.cluster.classes().pattern(class) else { return false };
        // These depend on the name, or on what a move before has changed for a value.
        let by_value = pattern.rules().spread.is_some() || policy_of(turn, pattern.rules()) == PolicyName::Spread;
        if by_value || balance_of(turn, pattern.rules()) == Balance::ByHash {
            return true;
        }
        let seat = seat_of(turn, pattern, &donor.worker);
        let key = ((Some(class), None), seat);
        if self.hopeless.contains(&key) {
            return false;
        }
        let found = recipient(turn, pattern, donor, Scope::Class).is_some();
        if !found {
            // Where all places are worth the same, no later donor gives any of it away either.
            if pattern.rules().prefer.is_empty() {
                self.alive.remove(&class);
            }
            self.hopeless.insert(key);
        }
        found
    }

    /// Takes the candidate whose going narrows the spread most, with the worker that takes it. What nobody takes is dropped.
    fn take_best(&mut self, turn: &Turn<'a>, donor: &Rank) -> Option<(Settled<'a>, WorkerId)> {
        let by_weight = self.candidates.get_mut(&donor.worker)?;
        let lowest = turn.loads.ascending().next()?.load;
        let mut weights: Vec<u64> = by_weight.keys().copied().collect();
        weights.sort_by_key(|weight| distance_from_ideal(*weight, donor.load, lowest));
        for weight in weights {
            let candidates = by_weight.get_mut(&weight)?;
            while let Some(on) = candidates.pop() {
                let key = (fit_class(turn.cluster, on.definition), seat_of(turn, on.definition, &donor.worker));
                if self.hopeless.contains(&key) || turn.loads.related().is_needed(on.definition, &donor.worker) {
                    continue;
                }
                match recipient(turn, on.definition, donor, Scope::Resource) {
                    Some(to) => return Some((on, to)),
                    // By hash each name is a case of its own.
                    None if balance_of(turn, on.definition.rules()) == Balance::ByHash => false,
                    // And so is what is kept from workers by its own past.
                    None if !turn.loads.failed_on(on.name).is_empty() => false,
                    None => self.hopeless.insert(key),
                };
            }
            by_weight.remove(&weight);
        }
        None
    }
}

/// What a recipient is looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// One resource, with all that its labels mean to others.
    Resource,
    /// A class, without that.
    Class,
}

fn seat_of(turn: &Turn<'_>, definition: &Definition, id: &WorkerId) -> Seat {
    let rules = definition.rules();
    let by_value = (policy_of(turn, rules) == PolicyName::Spread).then_some(turn.config.spread_label.as_str());
    let key = rules.spread.as_deref().or(by_value);
    if rules.prefer.is_empty() && key.is_none() {
        return (0, None);
    }
    let labels = turn.cluster.worker(id.as_str()).and_then(|w| w.registration()).map(|r| &r.labels);
    let value = labels.zip(key).and_then(|(labels, key)| labels.get(key)).cloned();
    (labels.map_or(0, |labels| rules.preference(labels)), value)
}

/// Whether balance may move it: not what is pinned, is to stay, wants to be with others, or follows a policy that is not about balance.
fn may_move(turn: &Turn<'_>, definition: &Definition) -> bool {
    let rules = definition.rules();
    let follows = match balance_of(turn, rules) {
        Balance::ByLoad => true,
        Balance::ToNewcomers | Balance::ByHash => somebody_has_joined(turn),
        Balance::Never => false,
    };
    follows && definition.is_movable() && rules.together.is_empty()
}

/// By some policies something may move only while there is a newcomer.
fn somebody_has_joined(turn: &Turn<'_>) -> bool {
    turn.cluster.joins().since(turn.now.before(JOINED)).next().is_some() || turn.loads.unshaped().next().is_some()
}

fn policy_of(turn: &Turn<'_>, rules: &Rules) -> PolicyName {
    rules.policy.unwrap_or(turn.config.policy)
}

fn balance_of(turn: &Turn<'_>, rules: &Rules) -> Balance {
    policy::of(policy_of(turn, rules)).balance()
}

/// The least load that a worker would have with so much more.
fn least_with(turn: &Turn<'_>, more: u64) -> Option<Load> {
    if !turn.cluster.rankings().is_relative() {
        return turn.loads.ascending().next().map(|rank| rank.load.plus(more));
    }
    let shapes = turn.cluster.rankings().shapes();
    let shaped = shapes.filter_map(|(id, shaped)| turn.loads.of_shape(id, shaped).next().map(|rank| rank.load.plus(more)));
    let unshaped = turn.loads.unshaped().filter_map(|id| turn.loads.place(id)).map(|place| turn.loads.load(&place).plus(more));
    shaped.chain(unshaped).min()
}

/// How far a weight is from the one whose going would make two workers equal, in units that are the same for all weights.
fn distance_from_ideal(weight: u64, donor: Load, recipient: Load) -> u128 {
    let cross = |a: u64, b: u64| u128::from(a) * u128::from(b);
    let difference = cross(donor.payload, recipient.share).saturating_sub(cross(recipient.payload, donor.share));
    (u128::from(weight) * (u128::from(donor.share) + u128::from(recipient.share))).abs_diff(difference)
}

/// The least loaded worker that can take a resource and would have less than its donor has now.
fn recipient(turn: &Turn<'_>, definition: &Definition, donor: &Rank, scope: Scope) -> Option<WorkerId> {
    let except = [&donor.worker];
    let ask = match scope {
        Scope::Resource => Ask::new(&turn.loads, definition, &except),
        Scope::Class => Ask::of_class(&turn.loads, definition, &except),
    };
    let rules = definition.rules();
    let from = turn.loads.place(&donor.worker)?;
    let home = Candidate { load: donor.load, preference: rules.preference(&from.registration.labels), place: from };
    let balance = balance_of(turn, rules);
    let takes = |rank: &&Rank| {
        let candidate = match scope {
            Scope::Resource => ask.candidate(&rank.worker),
            Scope::Class => ask.alone(&rank.worker),
        };
        let Some(candidate) = candidate else { return false };
        let follows = match balance {
            Balance::ByLoad => true,
            Balance::ToNewcomers => is_newcomer(turn, rank, balance),
            Balance::ByHash => is_newcomer(turn, rank, balance) && ranks_before(definition, &home, &candidate),
            Balance::Never => false,
        };
        follows && keeps_spread(&ask, &home, &candidate) && !ask.is_penalised(&rank.worker)
    };
    let suiting = turn.cluster.rankings().shapes().filter(|(_, shaped)| {
        let shape = &shaped.shape;
        fit::suits(definition.needs(), &shape.kinds, &shape.drivers, &shape.labels).is_ok()
    });
    // Within a shape all are worth the same, so that one that gains nothing is followed by none that does.
    let firsts = suiting.filter_map(|(id, shaped)| {
        let preference = rules.preference(&shaped.shape.labels);
        let mut gaining = turn.loads.of_shape(id, shaped).take_while(|rank| improves(turn, definition, &home, rank.load, preference));
        gaining.find(takes).map(|rank| (worth(rank.load, preference), rank.worker.clone()))
    });
    let unshaped = turn.loads.unshaped().filter_map(|id| {
        let place = turn.loads.place(id)?;
        let rank = Rank { load: turn.loads.load(&place), worker: id.clone() };
        let preference = rules.preference(&place.registration.labels);
        let gains = improves(turn, definition, &home, rank.load, preference);
        (gains && takes(&&rank)).then(|| (worth(rank.load, preference), rank.worker))
    });
    firsts.chain(unshaped).min().map(|(_, worker)| worker)
}

/// How full a place is, less what it is worth to be there.
fn worth(load: Load, preference: u64) -> Amount {
    Amount { number: i128::from(load.payload) - i128::from(preference), share: load.share }
}

/// The recipient would have less than the donor has, what it is worth to be on each counted in.
fn improves(turn: &Turn<'_>, definition: &Definition, home: &Candidate<'_>, to: Load, preference: u64) -> bool {
    let weight = u64::from(definition.weight).max(turn.config.tolerance);
    let side = |payload: u64, preference: u64, share: u64| (i128::from(payload) - i128::from(preference)) * i128::from(share);
    side(to.payload.saturating_add(weight), preference, home.load.share) < side(home.load.payload, home.preference, to.share)
}

/// Balance never crowds a value more than the one that is left: neither with the resource's own group, nor, by the policy `spread`, with all
/// that there is.
fn keeps_spread(ask: &Ask<'_, '_>, home: &Candidate<'_>, to: &Candidate<'_>) -> bool {
    let labels = |candidate: &Candidate<'_>| candidate.place.registration.labels.clone();
    let (home, to) = (labels(home), labels(to));
    let rules = ask.definition.rules();
    if let Some(key) = rules.spread.as_deref() {
        let crowd = |labels| ask.loads.related().crowd(ask.definition, key, labels);
        if home.get(key) != to.get(key) && crowd(&to) >= crowd(&home) {
            return false;
        }
    }
    if rules.policy.unwrap_or(ask.loads.config.policy) != PolicyName::Spread || home.get(ask.label) == to.get(ask.label) {
        return true;
    }
    let all = |labels: &Labels| ask.payload_of_value(labels.get(ask.label));
    all(&to) + u64::from(ask.definition.weight) < all(&home)
}

/// By these policies loads differ, by chance or by intent. Only a worker that something can be placed on since a moment ago is given some.
fn is_newcomer(turn: &Turn<'_>, rank: &Rank, balance: Balance) -> bool {
    let shares = turn.cluster.rankings().total().1;
    let parts = if balance == Balance::ByHash { 2 } else { 1 };
    let lacks = u128::from(rank.load.payload) * parts * shares < u128::from(turn.loads.total()) * u128::from(rank.load.share);
    let has_joined = turn.cluster.joins().last(&rank.worker).is_some_and(|at| at.after(JOINED) > turn.now);
    lacks && (has_joined || turn.loads.unshaped().any(|id| *id == rank.worker))
}

/// The name ranks the recipient before where it is.
fn ranks_before(definition: &Definition, home: &Candidate<'_>, to: &Candidate<'_>) -> bool {
    beats(&definition.name, (to.place.id, to.load.share), (home.place.id, home.load.share))
}

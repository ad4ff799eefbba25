//! Balance: the fewest moves that bring the highest payload within tolerance of the lowest. Each move narrows the spread, so that a
//! balanced cluster is left alone.

use std::collections::{BTreeMap, BTreeSet};

use evenkeel_model::{Definition, Holder, Rank, ResourceName, StopReason, WorkerId};

use crate::{choose, turn::Turn};

/// Pulls from the most loaded workers until the spread is within tolerance or nothing more helps.
pub(crate) fn rebalance(turn: &mut Turn<'_>) {
    let in_flight = turn.cluster.agenda().stopping.len();
    let mut budget = turn.config.moves_in_flight.saturating_sub(in_flight);
    let mut donors = Donors::default();
    while budget > 0 && !turn.is_full() {
        let Some((candidate, to)) = donors.next_move(turn) else { return };
        let weight = u64::from(candidate.definition.weight);
        turn.loads.remove(&candidate.holder.worker, weight);
        turn.loads.add(&to, weight);
        turn.stop(candidate.name, candidate.holder, StopReason::Rebalance, Some(to));
        budget -= 1;
    }
}

/// A resource that might go.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    name: &'a ResourceName,
    holder: &'a Holder,
    definition: &'a Definition,
}

/// The workers that have too much, with what might go from each by weight. Looked at once in a plan: recipients only gain and donors
/// only lose, so what fits nowhere now fits nowhere later.
#[derive(Default)]
struct Donors<'a> {
    candidates: BTreeMap<WorkerId, BTreeMap<u64, Vec<Candidate<'a>>>>,
    exhausted: BTreeSet<WorkerId>,
}

impl<'a> Donors<'a> {
    fn next_move(&mut self, turn: &Turn<'a>) -> Option<(Candidate<'a>, WorkerId)> {
        let lowest = turn.loads.ascending().next()?.payload;
        loop {
            let donor = turn.loads.descending().find(|rank| !self.exhausted.contains(&rank.worker))?;
            if donor.payload - lowest <= turn.config.tolerance {
                return None;
            }
            let by_weight = self.candidates.entry(donor.worker.clone()).or_insert_with(|| candidates_of(turn, &donor.worker));
            match take_best(turn, by_weight, donor, donor.payload - lowest) {
                Some(pull) => return Some(pull),
                None => self.exhausted.insert(donor.worker.clone()),
            };
        }
    }
}

/// What runs on a worker as wanted, is not pinned there, and is free of other actions; by weight, and in order of names.
fn candidates_of<'a>(turn: &Turn<'a>, donor: &WorkerId) -> BTreeMap<u64, Vec<Candidate<'a>>> {
    let mut by_weight: BTreeMap<u64, Vec<Candidate<'a>>> = BTreeMap::new();
    let Some(worker) = turn.cluster.worker(donor.as_str()) else { return by_weight };
    for name in worker.names.iter().rev() {
        let Some(unit) = turn.cluster.unit(name.as_str()) else { continue };
        let ([holder], Some(record)) = (unit.holders.as_slice(), unit.record.as_deref()) else { continue };
        let definition = &record.value.definition;
        let is_settled = holder.held.runs() && holder.held.epoch.0 != 0;
        let is_free = !turn.cluster.agenda().attention.contains(name) && definition.pin.is_none();
        if is_settled && is_free {
            by_weight.entry(u64::from(definition.weight)).or_default().push(Candidate { name, holder, definition });
        }
    }
    by_weight
}

/// Takes the candidate whose going narrows the spread most, with the worker that takes it. What nobody takes is dropped.
fn take_best<'a>(
    turn: &Turn<'a>,
    by_weight: &mut BTreeMap<u64, Vec<Candidate<'a>>>,
    donor: &Rank,
    spread: u64,
) -> Option<(Candidate<'a>, WorkerId)> {
    let gain = |weight: u64| weight.saturating_mul(spread.saturating_sub(weight));
    let mut weights: Vec<u64> = by_weight.keys().copied().filter(|weight| gain(*weight) > 0).collect();
    weights.sort_by_key(|weight| std::cmp::Reverse(gain(*weight)));
    for weight in weights {
        let candidates = by_weight.get_mut(&weight)?;
        while let Some(candidate) = candidates.pop() {
            if let Some(to) = recipient(turn, candidate.definition, donor.payload) {
                return Some((candidate, to));
            }
        }
        by_weight.remove(&weight);
    }
    None
}

/// The least loaded worker that can take a resource and would have less than its donor has now.
fn recipient(turn: &Turn<'_>, definition: &Definition, donor_payload: u64) -> Option<WorkerId> {
    let weight = u64::from(definition.weight);
    let candidates = turn.loads.ascending().take_while(|rank| rank.payload + weight < donor_payload);
    let mut fitting = candidates.filter(|rank| choose::fits(&turn.loads, definition, rank).is_ok());
    fitting.next().map(|rank| rank.worker.clone())
}

//! The workers on which something can be placed, in the order of their loads: all of them, and by what rules can tell apart. Kept by the
//! Cluster, so that a choice looks at the first of each shape and not at each worker.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use crate::{DriverTraits, Labels, Registration, WorkerId};

/// How full a worker is: its payload for each unit of its share. Equal loads may have different payloads.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// The sum of the weights.
    pub payload: u64,
    /// 1, or the worker's capacity where loads are relative; never 0.
    pub share: u64,
}

impl Load {
    /// The load with so much more on it.
    #[must_use]
    pub fn plus(self, weight: u64) -> Self {
        Self { payload: self.payload.saturating_add(weight), ..self }
    }
}

impl Ord for Load {
    fn cmp(&self, other: &Self) -> Ordering {
        if self.share == other.share {
            return self.payload.cmp(&other.payload);
        }
        let cross = |a: u64, b: u64| u128::from(a) * u128::from(b);
        cross(self.payload, other.share).cmp(&cross(other.payload, self.share))
    }
}

impl PartialOrd for Load {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Load {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Load {}

/// A worker in the order of its load.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// How full it is.
    pub load: Load,
    /// Ties are broken by id.
    pub worker: WorkerId,
}

/// What rules can see of a worker. Workers of one shape differ by their ids, their payloads and what runs there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    /// The drivers that it has.
    pub kinds: Vec<String>,
    /// What it says of them.
    pub drivers: BTreeMap<String, DriverTraits>,
    /// Its labels.
    pub labels: Labels,
    /// Its capacity.
    pub capacity: Option<u64>,
    /// Why nothing is placed on it, whatever else it is like.
    pub refused: Option<Box<str>>,
}

/// Identifies a [`Shape`] for as long as a worker has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShapeId(u32);

/// The workers of one shape.
#[derive(Clone, Debug)]
pub struct Shaped {
    /// What they have in common.
    pub shape: Shape,
    /// Least loaded first.
    pub ranks: BTreeSet<Rank>,
    /// The sum of their payloads.
    pub payload: u64,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Rankings {
    all: BTreeSet<Rank>,
    shapes: BTreeMap<ShapeId, Shaped>,
    ids: BTreeMap<Shape, ShapeId>,
    next: u32,
    /// How many workers are ready, those included on which nothing can be placed, and how many of them give no capacity: with none, loads
    /// are relative to capacities.
    ready: usize,
    without_capacity: usize,
    payload: u64,
    capacity: u128,
}

impl Shape {
    fn of(registration: &Registration) -> Self {
        Self {
            kinds: registration.kinds.clone(),
            drivers: registration.drivers.clone(),
            labels: registration.labels.clone(),
            capacity: registration.capacity,
            refused: registration.refused.clone(),
        }
    }
}

impl Rankings {
    /// All of them, least loaded first.
    #[must_use]
    pub fn all(&self) -> &BTreeSet<Rank> {
        &self.all
    }

    /// By shape, in no order that matters.
    pub fn shapes(&self) -> impl Iterator<Item = (ShapeId, &Shaped)> {
        self.shapes.iter().map(|(id, shaped)| (*id, shaped))
    }

    /// The workers of one shape.
    #[must_use]
    pub fn shape(&self, id: ShapeId) -> Option<&Shaped> {
        self.shapes.get(&id)
    }

    /// Loads are payloads for each unit of capacity, since every worker gives one.
    #[must_use]
    pub fn is_relative(&self) -> bool {
        self.without_capacity == 0 && self.ready > 0
    }

    /// How many workers are ready, whatever is wanted of them.
    pub(crate) fn ready(&self) -> usize {
        self.ready
    }

    /// A worker of this capacity has become ready.
    pub(crate) fn enter(&mut self, capacity: Option<u64>) {
        self.count_ready(capacity, |n| n + 1);
    }

    /// A worker of this capacity is not ready any more.
    pub(crate) fn leave(&mut self, capacity: Option<u64>) {
        self.count_ready(capacity, |n| n - 1);
    }

    fn count_ready(&mut self, capacity: Option<u64>, count: fn(usize) -> usize) {
        let was_relative = self.is_relative();
        self.ready = count(self.ready);
        if capacity.is_none() {
            self.without_capacity = count(self.without_capacity);
        }
        if was_relative != self.is_relative() {
            self.rank_anew(!was_relative);
        }
    }

    /// The share that a worker of this capacity has in loads.
    #[must_use]
    pub fn share(&self, capacity: Option<u64>) -> u64 {
        capacity.filter(|_| self.is_relative()).unwrap_or(1).max(1)
    }

    /// The sum of all payloads, and of all shares.
    #[must_use]
    pub fn total(&self) -> (u64, u128) {
        (self.payload, if self.is_relative() { self.capacity } else { self.all.len() as u128 })
    }

    /// Takes a worker in that was not in. It is ready, and was counted so.
    pub(crate) fn insert(&mut self, worker: &WorkerId, registration: &Registration, payload: u64) -> ShapeId {
        let shape = Shape::of(registration);
        let id = match self.ids.get(&shape) {
            Some(id) => *id,
            None => {
                let id = ShapeId(self.next);
                self.next += 1;
                self.ids.insert(shape.clone(), id);
                self.shapes.insert(id, Shaped { shape, ranks: BTreeSet::new(), payload: 0 });
                id
            }
        };
        self.capacity += u128::from(registration.capacity.unwrap_or_default().max(1));
        let share = self.share(registration.capacity);
        self.put(id, Rank { load: Load { payload, share }, worker: worker.clone() });
        id
    }

    /// Takes a worker out that was in, with this payload.
    pub(crate) fn remove(&mut self, worker: &WorkerId, id: ShapeId, payload: u64) {
        let Some(capacity) = self.shapes.get(&id).map(|shaped| shaped.shape.capacity) else { return };
        self.take(id, &Rank { load: Load { payload, share: self.share(capacity) }, worker: worker.clone() });
        self.capacity -= u128::from(capacity.unwrap_or_default().max(1));
        if self.shapes.get(&id).is_some_and(|shaped| shaped.ranks.is_empty())
            && let Some(shaped) = self.shapes.remove(&id)
        {
            self.ids.remove(&shaped.shape);
        }
    }

    /// The payload of a worker that is in has changed.
    pub(crate) fn change(&mut self, worker: &WorkerId, id: ShapeId, old: u64, new: u64) {
        let Some(share) = self.shapes.get(&id).map(|shaped| self.share(shaped.shape.capacity)) else { return };
        let rank = |payload| Rank { load: Load { payload, share }, worker: worker.clone() };
        self.take(id, &rank(old));
        self.put(id, rank(new));
    }

    fn put(&mut self, id: ShapeId, rank: Rank) {
        self.payload += rank.load.payload;
        if let Some(shaped) = self.shapes.get_mut(&id) {
            shaped.payload += rank.load.payload;
            shaped.ranks.insert(rank.clone());
        }
        self.all.insert(rank);
    }

    fn take(&mut self, id: ShapeId, rank: &Rank) {
        self.payload -= rank.load.payload;
        if let Some(shaped) = self.shapes.get_mut(&id) {
            shaped.payload -= rank.load.payload;
            shaped.ranks.remove(rank);
        }
        self.all.remove(rank);
    }

    /// What loads are has changed: rare, and the one thing here that costs as much as there are workers.
    fn rank_anew(&mut self, is_relative: bool) {
        self.all.clear();
        for shaped in self.shapes.values_mut() {
            let share = shaped.shape.capacity.filter(|_| is_relative).unwrap_or(1).max(1);
            let ranks = std::mem::take(&mut shaped.ranks).into_iter();
            shaped.ranks = ranks.map(|rank| Rank { load: Load { share, ..rank.load }, ..rank }).collect();
            self.all.extend(shaped.ranks.iter().cloned());
        }
    }

    /// Whether another one, built anew, says the same, whatever ids its shapes have.
    pub(crate) fn agrees_with(&self, other: &Self) -> bool {
        let by_shape = |rankings: &Self| -> BTreeMap<Shape, (BTreeSet<Rank>, u64)> {
            rankings.shapes.values().map(|s| (s.shape.clone(), (s.ranks.clone(), s.payload))).collect()
        };
        let shares = |rankings: &Self| -> Vec<(u64, u64)> { rankings.all.iter().map(|r| (r.load.payload, r.load.share)).collect() };
        self.all == other.all
            && shares(self) == shares(other)
            && (self.ready, self.without_capacity, self.payload, self.capacity)
                == (other.ready, other.without_capacity, other.payload, other.capacity)
            && by_shape(self) == by_shape(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(payload: u64, share: u64) -> Load {
        Load { payload, share }
    }

    #[test]
    fn loads_are_fractions() {
        assert_eq!(load(1, 2), load(2, 4));
        assert!(load(1, 3) < load(1, 2));
        assert!(load(7, 10) > load(2, 3));
        assert!(load(u64::MAX, 1) > load(u64::MAX, 2));
        assert!(load(0, 1) == load(0, u64::MAX));
    }

    fn worker(id: &str, capacity: Option<u64>) -> (WorkerId, Registration) {
        let id = WorkerId::new(id).expect("id");
        (id.clone(), Registration { capacity, ..Registration::bare(id, String::new()) })
    }

    fn order(rankings: &Rankings) -> Vec<&str> {
        rankings.all().iter().map(|rank| rank.worker.as_str()).collect()
    }

    #[test]
    fn capacities_count_only_where_every_worker_gives_one() {
        let mut rankings = Rankings::default();
        let (small, small_worker) = worker("small", Some(4));
        let (large, large_worker) = worker("large", Some(40));
        let (plain, plain_worker) = worker("plain", None);
        for worker in [&small_worker, &large_worker] {
            rankings.enter(worker.capacity);
        }
        rankings.insert(&small, &small_worker, 3);
        rankings.insert(&large, &large_worker, 20);
        assert_eq!((rankings.is_relative(), order(&rankings)), (true, vec!["large", "small"]));
        assert_eq!(rankings.total(), (23, 44));
        rankings.enter(None);
        let shape = rankings.insert(&plain, &plain_worker, 5);
        assert_eq!((rankings.is_relative(), order(&rankings)), (false, vec!["small", "plain", "large"]));
        assert_eq!(rankings.total(), (28, 3));
        rankings.change(&plain, shape, 5, 1);
        assert_eq!(order(&rankings), ["plain", "small", "large"]);
        // Also one on which nothing can be placed counts: a cordon changes no load.
        rankings.remove(&plain, shape, 1);
        assert_eq!((rankings.is_relative(), order(&rankings)), (false, vec!["small", "large"]));
        rankings.leave(None);
        assert_eq!((rankings.is_relative(), order(&rankings)), (true, vec!["large", "small"]));
        assert_eq!((rankings.shapes().count(), rankings.total()), (2, (23, 44)));
    }
}

//! The payloads of the ready workers as they will be when the plan so far is carried out: the Cluster's ranking, which is not copied,
//! with the workers that the plan has touched laid over it.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter::Peekable,
};

use evenkeel_model::{Cluster, Rank, Registration, Standing, WorkerId};

/// See the module.
pub(crate) struct Loads<'a> {
    cluster: &'a Cluster,
    /// Payloads that differ from the Cluster's.
    touched: BTreeMap<WorkerId, u64>,
    /// The touched workers that are ready, in order.
    ranked: BTreeSet<Rank>,
    /// The Cluster's ranking without its leading touched workers.
    rest: Peekable<std::collections::btree_set::Iter<'a, Rank>>,
}

impl<'a> Loads<'a> {
    pub(crate) fn new(cluster: &'a Cluster) -> Self {
        Self { cluster, touched: BTreeMap::new(), ranked: BTreeSet::new(), rest: cluster.ranking().iter().peekable() }
    }

    /// How many workers are ready.
    pub(crate) fn ready(&self) -> usize {
        self.cluster.ranking().len()
    }

    pub(crate) fn payload(&self, id: &WorkerId) -> u64 {
        let known = || self.cluster.worker(id.as_str()).map_or(0, |w| w.payload);
        self.touched.get(id).copied().unwrap_or_else(known)
    }

    /// The registration of a worker, if it is ready.
    pub(crate) fn ready_worker(&self, id: &WorkerId) -> Option<&'a Registration> {
        let worker = self.cluster.worker(id.as_str())?;
        worker.registration().filter(|_| worker.standing() == Standing::Ready)
    }

    /// Counts a weight at a worker.
    pub(crate) fn add(&mut self, id: &WorkerId, weight: u64) {
        self.set(id, self.payload(id) + weight);
    }

    /// Counts a weight at a worker no more.
    pub(crate) fn remove(&mut self, id: &WorkerId, weight: u64) {
        self.set(id, self.payload(id).saturating_sub(weight));
    }

    fn set(&mut self, id: &WorkerId, payload: u64) {
        if let Some(old) = self.touched.insert(id.clone(), payload) {
            self.ranked.remove(&Rank { payload: old, worker: id.clone() });
        }
        if self.ready_worker(id).is_some() {
            self.ranked.insert(Rank { payload, worker: id.clone() });
        }
        while self.rest.peek().is_some_and(|rank| self.touched.contains_key(&rank.worker)) {
            self.rest.next();
        }
    }

    /// The ready workers, least loaded first.
    pub(crate) fn ascending(&self) -> impl Iterator<Item = &Rank> {
        let rest = self.rest.clone().filter(|rank| !self.touched.contains_key(&rank.worker)).map(shorten);
        merge(self.ranked.iter(), rest, |a, b| a < b)
    }

    /// The ready workers, most loaded first.
    pub(crate) fn descending(&self) -> impl Iterator<Item = &Rank> {
        let rest = self.cluster.ranking().iter().rev().filter(|rank| !self.touched.contains_key(&rank.worker)).map(shorten);
        merge(self.ranked.iter().rev(), rest, |a, b| a > b)
    }
}

/// Gives two sequences of ranks, one of the Cluster and one of this plan, the lifetime that both have.
fn shorten<'s, 'l: 's>(rank: &'l Rank) -> &'s Rank {
    rank
}

/// Merges two sequences that are in order.
fn merge<'r>(
    a: impl Iterator<Item = &'r Rank>,
    b: impl Iterator<Item = &'r Rank>,
    first: impl Fn(&Rank, &Rank) -> bool,
) -> impl Iterator<Item = &'r Rank> {
    let (mut a, mut b) = (a.peekable(), b.peekable());
    std::iter::from_fn(move || match (a.peek(), b.peek()) {
        (Some(x), Some(y)) if first(x, y) => a.next(),
        (_, Some(_)) => b.next(),
        (_, None) => a.next(),
    })
}

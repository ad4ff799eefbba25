//! Rendezvous hashing (Thaler and Ravishankar, 1998), weighted by capacity by the logarithmic method (Schindelhauer and Schomaker, 2005),
//! with a bound on the payload (Mirrokni, Thorup and Zadimoghaddam, 2016): a resource goes to the worker that its name ranks first, among
//! those that stay within the bound. A worker that comes or goes changes the place of its own resources only.

use evenkeel_model::{ResourceName, WorkerId};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{Amount, Balance, Cost, Policy, Walk};
use crate::choose::{Ask, Candidate};

/// See the module.
pub(super) struct ConsistentHash;

impl Policy for ConsistentHash {
    fn walk(&self) -> Walk {
        Walk::All
    }

    fn cost(&self, ask: &Ask<'_, '_>, candidate: &Candidate<'_>) -> Cost {
        let payload = u128::from(candidate.load.payload) + u128::from(ask.definition.weight);
        let is_beyond = payload > bound(ask, candidate.load.share);
        let amount = distance(&ask.definition.name, candidate.place.id, candidate.load.share);
        Cost { tier: u8::from(is_beyond), ..Cost::of(amount) }
    }

    fn balance(&self) -> Balance {
        Balance::ByHash
    }
}

/// The most that a worker of this share is to have: its part of all that there is with the resource, and so many percent more; and the
/// resource alone, however heavy it is.
fn bound(ask: &Ask<'_, '_>, share: u64) -> u128 {
    let shares = ask.loads.cluster.rankings().total().1.max(1);
    let all = u128::from(ask.loads.total()) + u128::from(ask.definition.weight);
    let percent = 100 + u128::from(ask.loads.config.hash_bound_percent);
    (all * percent * u128::from(share)).div_ceil(shares * 100).max(ask.definition.weight.into())
}

/// An exponentially distributed number whose rate is the worker's share: the least wins with a chance in proportion to the share.
fn distance(name: &ResourceName, worker: &WorkerId, share: u64) -> Amount {
    const SCALE: f64 = (1_u64 << 40) as f64;
    let hash = xxh3_64_with_seed(worker.as_str().as_bytes(), xxh3_64(name.as_str().as_bytes()));
    // The 53 bits that a double holds, moved off zero: within (0, 1).
    let uniform = ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    #[allow(clippy::cast_possible_truncation, reason = "at most 37 times the scale")]
    let number = (-libm::log(uniform) * SCALE) as i128;
    Amount { number, share }
}

/// Whether a name ranks one worker before another; each with its share.
pub(crate) fn beats(name: &ResourceName, worker: (&WorkerId, u64), other: (&WorkerId, u64)) -> bool {
    (distance(name, worker.0, worker.1), worker.0) < (distance(name, other.0, other.1), other.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(name: u32, shares: &[u64]) -> usize {
        let name = ResourceName::new(&format!("r{name}")).expect("a name");
        let ids: Vec<WorkerId> = (0..shares.len()).map(|n| WorkerId::new(&format!("w{n}")).expect("an id")).collect();
        (0..shares.len()).min_by_key(|n| (distance(&name, &ids[*n], shares[*n]), *n)).expect("some")
    }

    #[test]
    fn shares_are_kept_and_a_newcomer_takes_only_its_own() {
        let before: Vec<usize> = (0..12_000).map(|n| first(n, &[1, 1, 2])).collect();
        let count = |worker: usize| before.iter().filter(|first| **first == worker).count();
        for (worker, expected) in [(0, 3000), (1, 3000), (2, 6000)] {
            assert!(count(worker).abs_diff(expected) < 300, "{worker}: {}", count(worker));
        }
        let after: Vec<usize> = (0..12_000).map(|n| first(n, &[1, 1, 2, 4])).collect();
        assert!(before.iter().zip(&after).all(|(before, after)| after == before || *after == 3));
        assert!(after.iter().filter(|first| **first == 3).count().abs_diff(6000) < 300);
    }
}

//! Turns by capacity, whatever resources weigh: the worker whose number of resources is furthest below its part, by the divisors of Webster
//! and Sainte-Laguë, which favour neither the large nor the small. A worker without a capacity counts as one of capacity 1.

use super::{Amount, Balance, Cost, Policy, Walk};
use crate::choose::{Ask, Candidate};

/// See the module.
pub(super) struct WeightedRoundRobin;

impl Policy for WeightedRoundRobin {
    fn walk(&self) -> Walk {
        Walk::All
    }

    fn cost(&self, ask: &Ask<'_, '_>, candidate: &Candidate<'_>) -> Cost {
        let number = 2 * i128::from(ask.loads.number(candidate.place.id)) + 1;
        Cost::of(Amount { number, share: candidate.place.registration.capacity.unwrap_or(1).max(1) })
    }

    fn balance(&self) -> Balance {
        Balance::ToNewcomers
    }
}

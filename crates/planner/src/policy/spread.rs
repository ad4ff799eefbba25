//! Evenly over the values of a label of workers (zones, racks), however many workers each has: the value whose workers have the lowest
//! payload together, and there the least loaded worker. The label is the resource's `spread`, or the cluster's.

use super::{Cost, Policy, Walk};
use crate::choose::{Ask, Candidate, fullness};

/// See the module.
pub(super) struct Spread;

impl Policy for Spread {
    fn walk(&self) -> Walk {
        Walk::LeastOfShape
    }

    fn cost(&self, ask: &Ask<'_, '_>, candidate: &Candidate<'_>) -> Cost {
        Cost { group: ask.payload_of_value(candidate.place.registration.labels.get(ask.label)), ..Cost::of(fullness(ask, candidate)) }
    }

    fn counts_preference(&self) -> bool {
        true
    }
}

//! The lowest payload, or the lowest payload for its capacity where every worker gives one. A preference counts as so much less payload.

use super::{Cost, Policy, Walk};
use crate::choose::{Ask, Candidate, fullness};

/// See the module.
pub(super) struct LeastPayload;

impl Policy for LeastPayload {
    fn walk(&self) -> Walk {
        Walk::LeastLoaded
    }

    fn cost(&self, ask: &Ask<'_, '_>, candidate: &Candidate<'_>) -> Cost {
        Cost::of(fullness(ask, candidate))
    }

    fn counts_preference(&self) -> bool {
        true
    }
}

//! The fullest worker that has room, so that others stay empty and can go. A preference counts as so much more payload.

use super::{Amount, Balance, Cost, Policy, Walk};
use crate::choose::{Ask, Candidate};

/// See the module.
pub(super) struct Pack;

impl Policy for Pack {
    fn walk(&self) -> Walk {
        Walk::MostLoaded
    }

    fn cost(&self, _: &Ask<'_, '_>, candidate: &Candidate<'_>) -> Cost {
        let payload = i128::from(candidate.load.payload) + i128::from(candidate.preference);
        Cost::of(Amount { number: -payload, share: candidate.load.share })
    }

    fn counts_preference(&self) -> bool {
        true
    }

    fn balance(&self) -> Balance {
        Balance::Never
    }
}

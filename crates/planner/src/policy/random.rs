//! Any worker, all with the same chance. What is drawn depends on the seed and the names alone, so that a plan can be made again.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{Amount, Balance, Cost, Policy, Walk};
use crate::choose::{Ask, Candidate};

/// See the module.
pub(super) struct Random;

impl Policy for Random {
    fn walk(&self) -> Walk {
        Walk::All
    }

    fn cost(&self, ask: &Ask<'_, '_>, candidate: &Candidate<'_>) -> Cost {
        let lot = xxh3_64_with_seed(ask.definition.name.as_str().as_bytes(), ask.loads.config.seed);
        let drawn = xxh3_64_with_seed(candidate.place.id.as_str().as_bytes(), lot);
        Cost::of(Amount::whole(i128::from(drawn)))
    }

    fn balance(&self) -> Balance {
        Balance::ToNewcomers
    }
}

//! The worker after the one that was chosen last, in the order of ids. Which that was is read from the assignments: the newest is its.

use super::{Amount, Balance, Cost, Policy, Walk};
use crate::choose::{Ask, Candidate};

/// See the module.
pub(super) struct RoundRobin;

impl Policy for RoundRobin {
    fn walk(&self) -> Walk {
        Walk::InTurn
    }

    fn cost(&self, ask: &Ask<'_, '_>, candidate: &Candidate<'_>) -> Cost {
        let has_had_its_turn = ask.loads.cursor().is_some_and(|last| candidate.place.id <= last);
        Cost { tier: u8::from(has_had_its_turn), ..Cost::of(Amount::whole(0)) }
    }

    fn balance(&self) -> Balance {
        Balance::ToNewcomers
    }
}

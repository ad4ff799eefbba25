//! Policies: how a worker is chosen among those that can run a resource. Each is a file of its own, and a line in [`of`].
//!
//! A policy says what a candidate costs, and in which order candidates are walked through, so that not each must be looked at. What comes
//! before that for every policy (hard rules, workers that are set aside, `spread`) is not its business. To add one: a word in the model's
//! list of policies, a file here, a line in [`of`]; docs/placement.md shows it.

mod consistent_hash;
mod least_payload;
mod pack;
mod random;
mod round_robin;
mod spread;
mod weighted_round_robin;

use std::cmp::Ordering;

use evenkeel_model::PolicyName;

use crate::choose::{Ask, Candidate};

pub(crate) use consistent_hash::beats;

/// See the module.
pub(crate) trait Policy: Sync {
    /// In which order candidates are walked through.
    fn walk(&self) -> Walk;

    /// What a candidate costs: the least is chosen, of equals the one with the first id. Within a shape it must not contradict the walk.
    fn cost(&self, ask: &Ask<'_, '_>, candidate: &Candidate<'_>) -> Cost;

    /// Whether the cost has the resource's preferences in it already; otherwise the preferred come first, whatever they cost.
    fn counts_preference(&self) -> bool {
        false
    }

    /// How resources that are placed by it are moved for balance.
    fn balance(&self) -> Balance {
        Balance::ByLoad
    }
}

/// In which order candidates are walked through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Walk {
    /// By load alone: the least loaded that fits is the one, where the resource has no preference of its own.
    LeastLoaded,
    /// Of workers that rules cannot tell apart only the least loaded is a candidate.
    LeastOfShape,
    /// Only the most loaded that has room.
    MostLoaded,
    /// By id, beginning after the worker that was chosen last; the first that fits is the one.
    InTurn,
    /// Each is looked at: the choice costs as much as there are workers.
    All,
}

/// How resources are moved for balance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Balance {
    /// From the most to the least loaded.
    ByLoad,
    /// Only to a worker that something can be placed on since a moment ago, until it has its part.
    ToNewcomers,
    /// The same, until it has half of its part, and only what ranks it before where it is.
    ByHash,
    /// Not at all.
    Never,
}

/// What a candidate costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cost {
    /// Those of a higher tier come only when there is none of a lower one.
    pub(crate) tier: u8,
    /// What all of a group of candidates cost together.
    pub(crate) group: u64,
    pub(crate) amount: Amount,
}

/// A fraction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amount {
    pub(crate) number: i128,
    /// Never 0.
    pub(crate) share: u64,
}

impl Cost {
    pub(crate) fn of(amount: Amount) -> Self {
        Self { tier: 0, group: 0, amount }
    }
}

impl Amount {
    pub(crate) fn whole(number: i128) -> Self {
        Self { number, share: 1 }
    }
}

impl Ord for Amount {
    fn cmp(&self, other: &Self) -> Ordering {
        let cross = |a: i128, b: u64| a.saturating_mul(i128::from(b));
        cross(self.number, other.share).cmp(&cross(other.number, self.share))
    }
}

impl PartialOrd for Amount {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Amount {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Amount {}

/// The policy of this name.
pub(crate) fn of(name: PolicyName) -> &'static dyn Policy {
    match name {
        PolicyName::LeastPayload => &least_payload::LeastPayload,
        PolicyName::RoundRobin => &round_robin::RoundRobin,
        PolicyName::WeightedRoundRobin => &weighted_round_robin::WeightedRoundRobin,
        PolicyName::Random => &random::Random,
        PolicyName::Spread => &spread::Spread,
        PolicyName::Pack => &pack::Pack,
        PolicyName::ConsistentHash => &consistent_hash::ConsistentHash,
    }
}

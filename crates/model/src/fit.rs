//! May this worker run that resource? One function that planner and worker share, so that they cannot disagree.

use std::{collections::BTreeMap, fmt};

use crate::{Definition, DriverTraits, Holds, IntentKind, Labels, Needs, Ownership, Registration, WorkerId};

/// The hard rule that a worker breaks for a resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Misfit {
    /// What the worker says of itself cannot be used, for this reason.
    Refused(Box<str>),
    /// It is pinned to another worker.
    Pinned(WorkerId),
    /// The worker has no driver of its kind.
    Kind(Box<str>),
    /// The worker holds its kind loosely, and it is to be owned exclusively.
    Holds(Box<str>),
    /// The kind is fenced on another worker, and not on this one, so that its runs would not notice each other.
    Unfenced(Box<str>),
    /// A term of its `require` does not hold for the worker's labels.
    Require(String),
    /// Nothing more is to come to the worker.
    Cordoned,
    /// The worker is being drained.
    Draining,
    /// It would be with another that it is to be apart from, by this selector of its own.
    Apart(String),
    /// It would be with another that is to be apart from it, by this selector of the other's.
    KeptApart(String),
    /// No other that it is to be together with, by this selector, is there.
    Together(String),
    /// The worker's capacity would be exceeded.
    Capacity {
        /// What the worker has left.
        free: u64,
        /// What the resource weighs.
        weight: u32,
    },
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(reason) => write!(f, "its registration cannot be used: {reason}"),
            Self::Pinned(worker) => write!(f, "it is pinned to {worker}"),
            Self::Kind(kind) => write!(f, "no driver for kind {kind}"),
            Self::Unfenced(kind) => {
                write!(f, "fence: kind {kind} is fenced on another worker, and what runs there would not notice this one")
            }
            Self::Holds(kind) => {
                write!(f, "holds: kind {kind} is held loosely there, and nobody would know its end; say ownership: available")
            }
            Self::Require(term) => write!(f, "require: {term} does not hold"),
            Self::Cordoned => f.write_str("it is cordoned"),
            Self::Draining => f.write_str("it is being drained"),
            Self::Apart(selector) => write!(f, "apart: another with {selector} is there"),
            Self::KeptApart(selector) => write!(f, "another is there that is to be apart from {selector}"),
            Self::Together(selector) => write!(f, "together: no other with {selector} is there"),
            Self::Capacity { free, weight } => write!(f, "capacity: weight {weight} is more than the {free} that is left"),
        }
    }
}

/// A worker as a place for something: what rules can see of it.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Its id.
    pub id: &'a WorkerId,
    /// What it says of itself.
    pub registration: &'a Registration,
    /// What is wanted of it.
    pub intent: Option<IntentKind>,
    /// The sum of the weights that count there.
    pub payload: u64,
}

impl Misfit {
    /// The rule in one word, by which workers are counted.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Refused(_) => "registration",
            Self::Pinned(_) => "pin",
            Self::Kind(_) => "kind",
            Self::Holds(_) => "holds",
            Self::Unfenced(_) => "fence",
            Self::Require(_) => "require",
            Self::Cordoned => "cordon",
            Self::Draining => "drain",
            Self::Apart(_) | Self::KeptApart(_) => "apart",
            Self::Together(_) => "together",
            Self::Capacity { .. } => "capacity",
        }
    }
}

/// Whether the rules that depend on nothing but the worker itself let it run this: the condition for staying, which the worker checks
/// for itself too.
///
/// # Errors
/// The rule that it breaks.
pub fn may_run(needs: Needs<'_>, id: &WorkerId, worker: &Registration) -> Result<(), Misfit> {
    if let Some(reason) = &worker.refused {
        return Err(Misfit::Refused(reason.clone()));
    }
    if let Some(pin) = needs.pin.filter(|pin| *pin != id) {
        return Err(Misfit::Pinned(pin.clone()));
    }
    suits(needs, &worker.kinds, &worker.drivers, &worker.labels)
}

/// The part of [`may_run`] in which all workers of one [`crate::Shape`] are equal.
///
/// # Errors
/// The rule that they break.
pub fn suits(needs: Needs<'_>, kinds: &[String], drivers: &BTreeMap<String, DriverTraits>, labels: &Labels) -> Result<(), Misfit> {
    if !needs.kind.is_empty() && !kinds.iter().any(|k| *k == needs.kind) {
        return Err(Misfit::Kind(needs.kind.into()));
    }
    let is_loose = drivers.get(needs.kind).is_some_and(|driver| driver.holds == Holds::Loose);
    if is_loose && needs.ownership == Ownership::Exclusive {
        return Err(Misfit::Holds(needs.kind.into()));
    }
    match needs.require.first_miss(labels) {
        None => Ok(()),
        Some(term) => Err(Misfit::Require(term)),
    }
}

/// Whether this worker can take this resource as well: the condition for coming, but for rules that are relative to other resources
/// ([`crate::Related::allow`]).
///
/// # Errors
/// The rule that it breaks.
pub fn can_run(definition: &Definition, place: &Place<'_>) -> Result<(), Misfit> {
    may_run(definition.needs(), place.id, place.registration)?;
    match place.intent {
        None => {}
        Some(IntentKind::Cordon) => return Err(Misfit::Cordoned),
        Some(IntentKind::Drain { .. }) => return Err(Misfit::Draining),
    }
    has_room(definition, place)
}

/// Whether the worker's capacity has room for this resource as well.
///
/// # Errors
/// [`Misfit::Capacity`].
pub fn has_room(definition: &Definition, place: &Place<'_>) -> Result<(), Misfit> {
    let free = place.registration.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(place.payload));
    if u64::from(definition.weight) <= free {
        return Ok(());
    }
    Err(Misfit::Capacity { free, weight: definition.weight })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Definition, ResourceName};

    #[test]
    fn a_worker_whose_registration_cannot_be_used_may_not_go_on_with_anything() {
        let id = WorkerId::new("w").expect("id");
        let definition = Definition::named(ResourceName::new("a").expect("name"));
        assert_eq!(may_run(definition.needs(), &id, &Registration::bare(id.clone(), String::new())), Ok(()));
        let refused = Registration::unusable(id.clone(), "why");
        assert_eq!(may_run(definition.needs(), &id, &refused), Err(Misfit::Refused("why".into())));
    }

    #[test]
    fn what_is_loose_there_is_owned_by_nobody_alone() {
        let id = WorkerId::new("w").expect("id");
        let with = |kind: &str, holds| Registration {
            kinds: vec!["scrape".into(), "noop".into()],
            drivers: BTreeMap::from([(kind.to_owned(), DriverTraits { holds, updates: true })]),
            ..Registration::bare(id.clone(), String::new())
        };
        let definition =
            |kind: &str, ownership| Definition { kind: kind.into(), ownership, ..Definition::named(ResourceName::new("a").expect("name")) };
        for holds in [Holds::Strict, Holds::Fenced, Holds::Loose] {
            for ownership in [Ownership::Exclusive, Ownership::Available] {
                let may = may_run(definition("scrape", ownership).needs(), &id, &with("scrape", holds));
                let is_refused = (holds, ownership) == (Holds::Loose, Ownership::Exclusive);
                assert_eq!(may, if is_refused { Err(Misfit::Holds("scrape".into())) } else { Ok(()) }, "{holds:?}, {ownership:?}");
            }
        }
        assert_eq!(may_run(definition("noop", Ownership::Exclusive).needs(), &id, &with("scrape", Holds::Loose)), Ok(()), "another kind");
        assert_eq!(
            may_run(definition("", Ownership::Exclusive).needs(), &id, &with("scrape", Holds::Loose)),
            Ok(()),
            "the catalog decides"
        );
    }
}

//! Choice: the least loaded of the workers that can run a resource; ties by id.

use std::collections::BTreeMap;

use evenkeel_model::{Definition, Misfit, Pending, Rank, WorkerId, fit};

use crate::loads::Loads;

/// The least loaded worker that can run it.
///
/// # Errors
/// Why there is none.
pub(crate) fn choose(loads: &Loads<'_>, definition: &Definition) -> Result<WorkerId, Pending> {
    if let Some(pin) = &definition.pin {
        return choose_pinned(loads, definition, pin);
    }
    let found = loads.ascending().find(|rank| fits(loads, definition, rank).is_ok());
    found.map(|rank| rank.worker.clone()).ok_or_else(|| why_none(loads, definition))
}

/// Of a pinned resource only one worker is asked, however many there are.
fn choose_pinned(loads: &Loads<'_>, definition: &Definition, pin: &WorkerId) -> Result<WorkerId, Pending> {
    let misfit = match loads.ready_worker(pin) {
        None => None,
        Some(registration) => match fit::can_run(definition, pin, registration, loads.payload(pin)) {
            Ok(()) => return Ok(pin.clone()),
            Err(misfit) => Some(misfit),
        },
    };
    Err(Pending::Pin { worker: pin.clone(), misfit })
}

/// Whether a ready worker can take one more resource.
pub(crate) fn fits(loads: &Loads<'_>, definition: &Definition, rank: &Rank) -> Result<(), Misfit> {
    match loads.ready_worker(&rank.worker) {
        Some(registration) => fit::can_run(definition, &rank.worker, registration, rank.payload),
        None => Ok(()),
    }
}

fn why_none(loads: &Loads<'_>, definition: &Definition) -> Pending {
    let mut counts: BTreeMap<Misfit, usize> = BTreeMap::new();
    for rank in loads.ascending() {
        if let Err(misfit) = fits(loads, definition, rank) {
            *counts.entry(misfit).or_default() += 1;
        }
    }
    // The commonest; of equals the first in order, so that the answer does not change from plan to plan.
    let commonest = counts.into_iter().rev().max_by_key(|(_, count)| *count);
    commonest.map_or(Pending::NoWorkers, |(commonest, count)| Pending::NoneFits { workers: loads.ready(), commonest, count })
}

//! The brake: whether so many workers are gone at once that what they ran is better held than moved.

use evenkeel_model::{Brake, Cluster, WorkerId};

use crate::PlannerConfig;

/// None: no more workers are gone than may be.
pub(crate) fn judge(cluster: &Cluster, config: &PlannerConfig) -> Option<Brake> {
    let gone = &cluster.agenda().gone;
    let written_off = cluster.written_off().keys().filter(|id| gone.contains(*id) && is_written_off(cluster, id)).count();
    let lost = gone.len() - written_off;
    let of = cluster.ready() + lost;
    let share = u64::from(config.brake.percent) * of as u64;
    let holds = lost >= config.brake.least && lost as u64 * 100 > share;
    holds.then_some(Brake { lost, of, percent: config.brake.percent })
}

/// A person has written off some of the workers that are gone.
pub(crate) fn is_any_written_off(cluster: &Cluster) -> bool {
    cluster.written_off().keys().any(|id| cluster.agenda().gone.contains(id) && is_written_off(cluster, id))
}

/// A person has given up waiting for the session of this worker that is gone.
pub(crate) fn is_written_off(cluster: &Cluster, id: &WorkerId) -> bool {
    let admitted = cluster.worker(id.as_str()).and_then(|w| w.admission.as_ref()).map(|a| a.value.session);
    admitted.is_some() && cluster.written_off().get(id).copied() == admitted
}

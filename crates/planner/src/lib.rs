//! PURE: what should be done next, decided from a [`Cluster`] alone: needs, choice, rebalance, plan and report.
//!
//! The wheel: store::watch -> model::Cluster -> **planner::plan** -> model::check -> store::commit -> etcd, and back by
//! worker::desired -> worker::reconcile -> worker::driver -> worker::report.
//!
//! The cost of a plan grows with the agenda, which holds what changed, and not with what exists. Nothing here does IO or reads a clock.

mod choose;
mod loads;
mod rebalance;
mod turn;

use std::time::Duration;

use evenkeel_model::{Cluster, Definition, Moment, Pending, Plan, WorkerId};

/// What steers a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannerConfig {
    /// G: how long after a session was seen to be gone its authority may last. At least D(1+rho)/(1-rho), where D is the authority that
    /// one proof gives and rho bounds how far clock rates differ: DESIGN.md section 5, rule 3. A worker that says a longer D is waited for
    /// as long as that asks for: `Worker::wait`.
    pub wait: Duration,
    /// The spread of payloads, highest less lowest, that is left alone.
    pub tolerance: u64,
    /// How many resources may be on their way from one live worker to another at a time, for balance alone.
    pub moves_in_flight: usize,
    /// How many actions one plan has at most; the next one goes on.
    pub max_actions: usize,
}

impl Default for PlannerConfig {
    fn default() -> Self {
        Self { wait: Duration::from_millis(5110), tolerance: 1, moves_in_flight: 256, max_actions: 4096 }
    }
}

/// Decides what is to be done next. The plan of a settled cluster is empty, and so is that of a cluster to which the plan before was
/// applied, as far as its actions have no sequel.
pub fn plan(cluster: &Cluster, now: Moment, config: &PlannerConfig) -> Plan {
    turn::Turn::new(cluster, now, config).run()
}

/// Chooses the worker for a resource that is about to be added.
///
/// # Errors
/// Why it stays pending.
pub fn choose(cluster: &Cluster, definition: &Definition) -> Result<WorkerId, Pending> {
    choose::choose(&loads::Loads::new(cluster), definition)
}

/// Why a resource that stands has no assignment that runs; none: it has one, or the next plan gives it one.
#[must_use]
pub fn why_pending(cluster: &Cluster, name: &str, now: Moment, config: &PlannerConfig) -> Option<Pending> {
    let unit = cluster.unit(name)?;
    if let Some(error) = &unit.unreadable {
        return Some(Pending::Unreadable(error.clone()));
    }
    let record = unit.record.as_deref()?;
    let Some(holder) = unit.holders.first() else { return choose(cluster, &record.value.definition).err() };
    let worker = cluster.worker(holder.worker.as_str());
    let ownership = record.value.definition.ownership;
    match evenkeel_model::ends::end_of(holder, worker, ownership, now, config.wait) {
        evenkeel_model::End::At(until) => Some(Pending::Authority { worker: holder.worker.clone(), until }),
        _ if !holder.held.runs() => Some(Pending::PreviousRun(holder.worker.clone())),
        _ => None,
    }
}

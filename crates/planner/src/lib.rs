//! PURE: what should be done next, decided from a [`Cluster`] alone: needs, choice, rebalance, plan and report.
//!
//! The wheel: store::watch -> model::Cluster -> **planner::plan** -> model::check -> store::commit -> etcd, and back by
//! worker::desired -> worker::reconcile -> worker::driver -> worker::report.
//!
//! The cost of a plan grows with the agenda, which holds what changed, and not with what exists. Nothing here does IO or reads a clock.

mod attend;
mod brake;
mod choose;
mod config;
mod explain;
mod failing;
mod leave;
mod loads;
mod policy;
mod rebalance;
mod suppose;
pub mod tasks;
mod turn;
mod workers;

use evenkeel_model::{Cluster, Definition, Holds, Moment, Pending, PlaceReason, Plan, Standing, WorkerId};

pub use config::{BrakeConfig, Flapping, PlannerConfig};
pub use explain::{Considered, Explainer, Explanation, Looked, Penalty, Verdict, explain};
pub use suppose::{Supposition, suppose};

/// Decides what is to be done next. The plan of a settled cluster is empty, and so is that of a cluster to which the plan before was
/// applied, as far as its actions have no sequel.
pub fn plan(cluster: &Cluster, now: Moment, config: &PlannerConfig) -> Plan {
    turn::Turn::new(cluster, now, config).run(&[])
}

/// Chooses the worker for a resource that is about to be added, and says why that one.
///
/// # Errors
/// Why it stays pending.
pub fn choose(cluster: &Cluster, definition: &Definition, now: Moment, config: &PlannerConfig) -> Result<(WorkerId, PlaceReason), Pending> {
    let mut loads = loads::Loads::new(cluster, now, config);
    loads.prepare_for(definition);
    choose::choose(&loads, definition, &[]).map(|choice| (choice.worker, choice.reason))
}

/// Why a resource that stands has no assignment that runs; none: it has one, or the next plan gives it one, or it has finished.
#[must_use]
pub fn why_pending(cluster: &Cluster, name: &str, now: Moment, config: &PlannerConfig) -> Option<Pending> {
    let unit = cluster.unit(name)?;
    if let Some(error) = &unit.unreadable {
        return Some(Pending::Unreadable(error.clone()));
    }
    let definition = unit.definition().filter(|_| !unit.is_finished())?;
    let Some(holder) = unit.holders.first() else { return choose(cluster, definition, now, config).err() };
    let worker = cluster.worker(holder.worker.as_str());
    let is_gone = worker.is_some_and(|w| matches!(w.standing(), Standing::Lost | Standing::Returning));
    match evenkeel_model::ends::end_of(holder, worker, Some(definition), now, config.wait) {
        evenkeel_model::End::Open if is_gone && holder.held.holds == Holds::Loose => Some(Pending::Loose(holder.worker.clone())),
        evenkeel_model::End::At(until) => {
            let capped = worker.is_some_and(evenkeel_model::Worker::claims_too_much);
            Some(Pending::Authority { worker: holder.worker.clone(), until, capped })
        }
        evenkeel_model::End::Known(reason) if reason.is_of_lost() && !brake::is_written_off(cluster, &holder.worker) => {
            brake::judge(cluster, config).map(Pending::Brake)
        }
        _ if !holder.held.runs() => Some(Pending::PreviousRun(holder.worker.clone())),
        _ => None,
    }
}

/// Whether so many workers are gone at once that what they ran is held.
#[must_use]
pub fn brake(cluster: &Cluster, config: &PlannerConfig) -> Option<evenkeel_model::Brake> {
    brake::judge(cluster, config)
}

/// Whether a person has written off some of the workers that are gone.
#[must_use]
pub fn is_any_written_off(cluster: &Cluster) -> bool {
    brake::is_any_written_off(cluster)
}

/// Until when a worker is set aside, because its sessions end too often; none: it is not.
#[must_use]
pub fn aside_until(cluster: &Cluster, id: &WorkerId, now: Moment, config: &PlannerConfig) -> Option<Moment> {
    loads::Loads::new(cluster, now, config).aside_until(id)
}

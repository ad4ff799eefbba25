//! What would be done if something were so: the plan of a cluster that is not. Nothing is changed, and nothing waits for a budget.

use std::time::Duration;

use evenkeel_model::{Action, Cluster, Definition, IntentKind, Moment, Plan, Subject, Undone, WorkerId};

use crate::{PlannerConfig, choose, loads::Assumed, loads::Loads, turn::Turn};

/// What is taken to be so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Supposition {
    /// This resource is added.
    Add(Box<Definition>),
    /// This is wanted of the worker; none: nothing more is.
    Intent(WorkerId, Option<IntentKind>),
    /// The worker is gone, and the wait for its authority is over.
    Lost(WorkerId),
    /// Balance waits for nothing.
    Rebalance,
}

/// The whole plan, as if nothing had to wait its turn; only the plan's own size is bounded, by the configuration.
pub fn suppose(cluster: &Cluster, now: Moment, config: &PlannerConfig, supposed: &Supposition) -> Plan {
    let config = PlannerConfig {
        // Who wants no balance wants none here.
        moves_in_flight: if config.moves_in_flight == 0 { 0 } else { usize::MAX },
        recovery_in_flight: usize::MAX,
        cool_down: Duration::ZERO,
        ..config.clone()
    };
    let assumed: Vec<(WorkerId, Assumed)> = match supposed {
        Supposition::Intent(id, intent) => vec![(id.clone(), Assumed::Intent(*intent))],
        Supposition::Lost(id) => vec![(id.clone(), Assumed::Gone)],
        Supposition::Add(_) | Supposition::Rebalance => Vec::new(),
    };
    let plan = Turn::new(cluster, now, &config).run(&assumed);
    match supposed {
        Supposition::Add(definition) => with_added(cluster, now, &config, plan, definition),
        _ => plan,
    }
}

/// The plan with the place of one resource more, chosen as it would be if it were added before anything else happens.
fn with_added(cluster: &Cluster, now: Moment, config: &PlannerConfig, mut plan: Plan, definition: &Definition) -> Plan {
    let mut loads = Loads::new(cluster, now, config);
    loads.prepare_for(definition);
    match choose::choose(&loads, definition, &[]) {
        Ok(choice) => {
            plan.actions.insert(0, Action::Place { resource: definition.name.clone(), worker: choice.worker, reason: choice.reason });
        }
        Err(reason) => plan.undone.insert(0, Undone { subject: Subject::Resource(definition.name.clone()), reason }),
    }
    plan
}

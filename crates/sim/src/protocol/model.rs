//! The model as stateright sees it, its properties, and what a run of the checker tells.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use stateright::{Checker, HasDiscoveries, Model, Path, Property};

use super::{
    rules::{Rules, Weakening},
    seen::Seen,
    settle::Settling,
    state::{Holds, NAMES, Process, Revision, State},
    step::{Step, all, carry_out},
};

/// I1: no two processes run the same resource; of fenced work, no two have an epoch that is not refused.
pub const ONE_OWNER: &str = "one owner";
/// I3: a leader's write is applied only while its key exists.
pub const FENCED: &str = "the leader writes with its fence";
/// An epoch that ran is started again only with what it last ran with.
pub const SAME_SPEC: &str = "an epoch keeps its spec";
/// I4: from every state, without further faults, each resource comes to run, with the spec that is wanted.
pub const SETTLES: &str = "it settles";

/// All of them.
pub const PROPERTIES: &[&str] = &[ONE_OWNER, FENCED, SAME_SPEC, SETTLES];

/// An instance of the protocol.
#[derive(Debug)]
pub struct Protocol {
    rules: Rules,
    begin: State,
    /// The properties that are checked, by name.
    checks: Vec<&'static str>,
    settling: Settling,
    /// How often each kind of event was seen.
    seen: [AtomicU64; Seen::COUNT],
}

impl Protocol {
    /// An instance that begins here.
    #[must_use]
    pub fn new(rules: Rules, begin: State, checks: Vec<&'static str>) -> Self {
        Self { rules, begin: begin.canonical(), checks, settling: Settling::default(), seen: Default::default() }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![self.begin]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Step>) {
        actions.extend(all(state, &self.rules));
    }

    fn next_state(&self, before: &State, step: Step) -> Option<State> {
        let after = carry_out(before, step, &self.rules)?;
        if let Some(seen) = Seen::in_step(before, step, &after, &self.rules) {
            self.seen[seen as usize].fetch_add(1, Ordering::Relaxed);
        }
        Some(after)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let all = [
            Property::<Self>::always(ONE_OWNER, |model, state| has_one_owner(state, &model.rules)),
            Property::<Self>::always(FENCED, |_, state| !state.unfenced),
            Property::<Self>::always(SAME_SPEC, |_, state| !state.respecified),
            Property::<Self>::always(SETTLES, |model, state| model.settling.settles(state, &model.rules)),
        ];
        all.into_iter().filter(|property| self.checks.contains(&property.name)).collect()
    }
}

fn has_one_owner(state: &State, rules: &Rules) -> bool {
    (0..NAMES).all(|name| {
        let counts = |process: &Process, epoch: Revision| {
            let fenced = process.holds[name] == Holds::Fenced && !rules.weak(Weakening::OutsideAccepts);
            epoch != 0 && !(fenced && epoch < state.outside[name])
        };
        let of = |p: &Process| usize::from(counts(p, p.runs[name])) + usize::from(counts(p, p.strays[name]));
        state.processes.iter().map(of).sum::<usize>() <= 1
    })
}

/// What one run of the checker has found.
#[derive(Debug)]
pub struct Found {
    /// States that were generated.
    pub states: usize,
    /// Different ones among them.
    pub unique: usize,
    /// The longest of the shortest ways to a state.
    pub depth: usize,
    /// How long it took.
    pub took: Duration,
    /// Each property that does not hold, with the steps to a state in which it does not.
    pub broken: Vec<(&'static str, Vec<Step>)>,
    /// How often each kind of event was seen.
    pub seen: Vec<(Seen, u64)>,
}

/// When a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Every state was seen.
    Exhausted,
    /// A property was found broken.
    Broken,
}

/// Goes through the states of an instance, those that are few steps away first.
#[must_use]
pub fn check(protocol: Protocol, until: Until, threads: usize) -> Found {
    let began = Instant::now();
    let finish = if until == Until::Broken { HasDiscoveries::AnyFailures } else { HasDiscoveries::AllFailures };
    let checker = protocol.checker().threads(threads).finish_when(finish).spawn_bfs().join();
    let took = began.elapsed();
    let steps = |path: Path<State, Step>| path.into_actions();
    let broken = checker.discoveries().into_iter().map(|(name, path)| (name, steps(path))).collect();
    let seen = Seen::ALL.map(|kind| (kind, checker.model().seen[kind as usize].load(Ordering::Relaxed))).to_vec();
    Found { states: checker.state_count(), unique: checker.unique_state_count(), depth: checker.max_depth(), took, broken, seen }
}

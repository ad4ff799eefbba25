//! "It settles": what must happen from every state when nothing goes wrong any more.
//!
//! stateright's `eventually` is not sound where paths meet or go in circles, and time makes them do both. So this follows one fair course
//! from a state, without any fault: each process does what it can do, and when only time is left, time goes on. The course is a function
//! of the state, so it either comes to rest in a settled state, or to rest in another one, or it goes in a circle; the last two are
//! counterexamples. Every state of a course is a state of the model, so what is learnt of one holds for all that lead to it.

use std::{
    collections::HashSet,
    hash::{Hash, Hasher},
    sync::Mutex,
};

use rustc_hash::FxHasher;

use super::{
    leader,
    rules::Rules,
    state::{Holds, ID_OF, IDS, MASTERS, Mode, NAMES, PROCESSES, Spec, State},
    step::{Step, carry_out},
};

/// Which states are known to settle: by fingerprint, as the checker itself knows states.
#[derive(Debug, Default)]
pub(super) struct Settling(Mutex<HashSet<u64>>);

impl Settling {
    /// Whether the course from this state comes to rest where it should.
    #[must_use]
    pub(super) fn settles(&self, state: &State, rules: &Rules) -> bool {
        let mut state = State { budget: Default::default(), ..*state };
        let mut course = HashSet::new();
        let settled = loop {
            let fingerprint = fingerprint(&state);
            if self.0.lock().is_ok_and(|known| known.contains(&fingerprint)) {
                break true;
            }
            if !course.insert(fingerprint) {
                break false;
            }
            state = match next(&state, rules) {
                Some(next) => next,
                None if is_settled(&state, rules) => break true,
                // Work may still wait for a clock; if not, the circle is found.
                None => match carry_out(&state, Step::Tick, rules) {
                    Some(next) => next,
                    None => break false,
                },
            };
        };
        if settled && let Ok(mut known) = self.0.lock() {
            known.extend(course);
        }
        settled
    }
}

/// Where the course from a state comes to rest.
#[must_use]
pub(super) fn rest_of(mut state: State, rules: &Rules) -> State {
    while let Some(next) = next(&state, rules) {
        state = next;
    }
    state
}

fn fingerprint(state: &State) -> u64 {
    let mut hasher = FxHasher::default();
    state.hash(&mut hasher);
    hasher.finish()
}

/// The first thing that somebody can do.
fn next(state: &State, rules: &Rules) -> Option<State> {
    let of_processes = (0..PROCESSES).flat_map(|p| {
        let first = [Step::Thaw(p), Step::Proved(p), Step::StatusArrives(p), Step::LearnLoss(p), Step::EndSurvivors(p)];
        let then = [Step::ReplaceOwn(p), Step::Register(p), Step::Prove(p), Step::SeeAdmission(p), Step::List(p), Step::Release(p)];
        let on_work = move |name: usize| {
            [Step::Halt(p, name), Step::Report(p, name), Step::Start(p, name), Step::Take(p, name), Step::NeedRestart(p, name)]
        };
        let work = (0..NAMES).flat_map(on_work);
        first.into_iter().chain(then).chain(work)
    });
    let of_masters = (0..MASTERS).flat_map(|m| {
        let choices = leader::choices(&state.masters[m], rules);
        let decision = choices.writes.into_iter().take(choices.needed).map(move |write| Step::Decide(m, write));
        [Step::Commit(m), Step::StepDown(m), Step::Campaign(m), Step::BecomeLeader(m), Step::Follow(m)].into_iter().chain(decision)
    });
    let leases = (0..IDS).map(Step::LeaseEnds);
    of_processes.chain(leases).chain(of_masters).find_map(|step| carry_out(state, step, rules))
}

/// Each resource that is wanted runs, as its assignment says, with the spec that is wanted, and no other does. What is left to wait for is
/// loose work of a worker that is not there: nobody can know whether it goes on.
fn is_settled(state: &State, rules: &Rules) -> bool {
    let lives = state.processes.iter().any(|process| process.mode == Mode::On);
    (0..NAMES).all(|name| {
        let wanted = state.etcd.wanted[name];
        let assigned: Vec<_> = state.etcd.workers.iter().filter_map(|worker| worker.assignments[name]).collect();
        let running: Vec<_> = state.processes.iter().map(|process| process.runs[name]).filter(|epoch| *epoch != 0).collect();
        match assigned.as_slice() {
            [one] if one.holds == Holds::Loose && is_deserted(state, name) => running.is_empty(),
            [one] if wanted != 0 => running == [one.epoch] && !one.stop && one.spec == wanted && runs_with(state, name, wanted, rules),
            [] => running.is_empty() && !(wanted != 0 && lives),
            _ => false,
        }
    })
}

/// Nobody is left to say anything of the work of this name.
fn is_deserted(state: &State, name: usize) -> bool {
    (0..PROCESSES).all(|p| state.processes[p].mode == Mode::Off || state.etcd.workers[ID_OF[p]].assignments[name].is_none())
}

fn runs_with(state: &State, name: usize, wanted: Spec, rules: &Rules) -> bool {
    !rules.changes || state.processes.iter().all(|process| process.runs[name] == 0 || process.memory[name].spec == wanted)
}

//! What an agent does about the spec of an epoch: rule 8 of the protocol. It takes a change while the work runs, or says that it needs a
//! restart; and it starts an epoch again only with the spec that this epoch last ran with.
//!
//! What it last ran with is known in three ways: the assignment was given one spec only; the agent remembers it; or a status says so that
//! answers the very version of the assignment which is there now. An older status may be of before a change that was taken, and not yet
//! reported when the agent crashed.

use super::{
    rules::{Rules, Weakening},
    state::{Assignment, ID_OF, LastRun, Memory, NAMES, Process, Spec, State, Status, WorkerKeys},
};

/// Takes from the statuses in etcd what the agent does not remember, and forgets what no assignment asks for any more.
pub(super) fn learn(process: &mut Process, keys: &WorkerKeys, rules: &Rules) {
    for name in (0..NAMES).filter(|name| process.runs[*name] == 0) {
        let (assignment, status) = (keys.assignments[name].unwrap_or_default(), keys.statuses[name]);
        if process.memory[name].epoch == assignment.epoch {
            continue;
        }
        let answers = status.version == assignment.version || rules.weak(Weakening::StatusOfAnyVersion);
        let speaks = assignment.epoch != 0 && status.epoch == assignment.epoch && !status.stopped && answers;
        let Status { epoch, spec, version, restart_for, .. } = status;
        process.memory[name] = if speaks { Memory { epoch, spec, version, restart_for } } else { Memory::default() };
    }
}

/// What the epoch of this assignment last ran with, if the agent remembers it; zero: it does not.
fn remembered(process: &Process, name: usize, assignment: &Assignment) -> Spec {
    Some(process.memory[name]).filter(|memory| memory.epoch == assignment.epoch).map_or(0, |memory| memory.spec)
}

/// May this epoch be started with the spec that the assignment has now?
pub(super) fn may_start(process: &Process, name: usize, assignment: &Assignment, rules: &Rules) -> bool {
    assignment.version == 1 || remembered(process, name, assignment) == assignment.spec || rules.weak(Weakening::AnySpecAgain)
}

/// Notes that an epoch runs with the spec of its assignment: because it was started, or because the change was taken.
pub(super) fn runs_with_it(state: &mut State, p: usize, name: usize, assignment: &Assignment, started: bool) {
    let Assignment { epoch, spec, version, .. } = *assignment;
    let last = &mut state.last[ID_OF[p]][name];
    state.respecified |= started && last.epoch == epoch && last.spec != spec;
    *last = LastRun { epoch, spec };
    state.processes[p].memory[name] = Memory { epoch, spec, version, restart_for: 0 };
}

/// The assignment of work that runs and whose change it has not dealt with.
fn changed(process: &Process, name: usize, assigned: Option<Assignment>) -> Option<Assignment> {
    let memory = &process.memory[name];
    assigned.filter(|a| !a.stop && a.epoch == process.runs[name] && a.epoch == memory.epoch && a.version != memory.version)
}

/// Takes a change while the work runs.
pub(super) fn take(state: &mut State, p: usize, name: usize, assigned: Option<Assignment>) -> bool {
    let Some(assignment) = changed(&state.processes[p], name, assigned) else { return false };
    runs_with_it(state, p, name, &assignment, false);
    true
}

/// Finds that what its assignment asks for needs another epoch: the driver cannot change to it, or it is unknown what this one last ran with.
pub(super) fn need_restart(process: &mut Process, name: usize, assigned: Option<Assignment>, rules: &Rules) -> bool {
    let refused = |a: &Assignment| a.spec != process.memory[name].spec;
    let idle = |a: &Assignment| !a.stop && process.runs[name] == 0 && process.past[name] < a.epoch && !may_start(process, name, a, rules);
    let running = changed(process, name, assigned).filter(refused);
    let Some(assignment) = running.or_else(|| assigned.filter(idle)) else { return false };
    let spec = remembered(process, name, &assignment);
    let Assignment { epoch, version, .. } = assignment;
    let memory = Memory { epoch, spec, version, restart_for: assignment.spec };
    std::mem::replace(&mut process.memory[name], memory) != memory
}

/// What is to be reported of work that is not told to stop, if the agent knows anything of it.
pub(super) fn status(process: &Process, name: usize, assignment: &Assignment, rules: &Rules) -> Option<Status> {
    let Memory { epoch, spec, version, restart_for } = process.memory[name];
    let spec = if rules.weak(Weakening::StatusSaysAssigned) { assignment.spec } else { spec };
    let restart_for = if rules.weak(Weakening::SilentAboutRestart) { 0 } else { restart_for };
    let status = Status { epoch, stopped: false, spec, version, restart_for };
    (epoch == assignment.epoch && version == assignment.version).then_some(status)
}

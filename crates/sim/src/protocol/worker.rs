//! What guard and agent of a worker do: rules 1, 2, 4, 5, 6 and 9 of the protocol, one step at a time.
//!
//! A view lags by not being refreshed: whatever a process knows is what etcd had at some earlier step. Each function does one
//! step and tells whether it was one; it makes no choice.

use super::{
    change, etcd,
    rules::{Rules, Weakening},
    state::{Assignment, Holds, ID_OF, Keys, Mode, NAMES, Process, Registration, Report, Revision, State, Status},
};

/// May it act on its assignments?
fn acts(process: &Process, rules: &Rules) -> bool {
    process.session != 0 && (process.admitted || rules.weak(Weakening::AdmissionSkipped))
}

/// Does this process hold the session that etcd has?
fn holds_session(process: &Process, id: usize, etcd: &Keys) -> bool {
    process.session != 0 && etcd.workers[id].session() == process.session
}

/// A proof reaches etcd, which confirms the session. What it is worth counts from here: a session that exists when the request is
/// judged also existed when it was sent, so judging it later would only give less.
pub(super) fn prove(state: &mut State, p: usize, rules: &Rules) -> bool {
    let process = &mut state.processes[p];
    let any = rules.weak(Weakening::ProofOfAnySession) && state.etcd.workers[ID_OF[p]].registration.is_some();
    let due = process.mode == Mode::On && process.session != 0 && process.proof == 0 && process.authority < rules.authority;
    if !due || !(holds_session(process, ID_OF[p], &state.etcd) || any) {
        return false;
    }
    process.proof = rules.authority;
    true
}

/// The answer arrives.
pub(super) fn proved(state: &mut State, p: usize, rules: &Rules) -> bool {
    let process = &mut state.processes[p];
    if process.mode != Mode::On || process.proof == 0 {
        return false;
    }
    let worth = if rules.weak(Weakening::ReceiveTime) { rules.authority } else { process.proof };
    process.authority = process.authority.max(worth + u8::from(rules.weak(Weakening::KillLate)));
    process.proof = 0;
    true
}

/// The worker's clock goes on by one tick.
pub(super) fn tick(process: &mut Process, rules: &Rules) {
    let late = rules.weak(Weakening::ReceiveTime);
    if process.proof > u8::from(late) {
        process.proof -= 1;
    }
    if process.authority > 0 {
        process.authority -= 1;
        if process.authority == 0 {
            authority_ends(process, rules);
        }
    }
    if process.proof <= process.authority && !late {
        process.proof = 0;
    }
}

/// A living agent has stopped everything by then that it can be sure to end, and forgets what it saw. For any other the guard kills its work,
/// if it has any, and it.
fn authority_ends(process: &mut Process, rules: &Rules) {
    if rules.weak(Weakening::NobodyKills) {
        return;
    }
    match process.mode {
        Mode::On => {
            for name in (0..NAMES).filter(|name| process.holds[*name] == Holds::Strict) {
                process.runs[name] = 0;
            }
            process.view = process.view.filter(|_| rules.weak(Weakening::ViewKept));
        }
        Mode::Frozen if process.runs != [0; NAMES] && !rules.weak(Weakening::GuardSleeps) => restart_agent(process, rules),
        Mode::Frozen | Mode::Off => {}
    }
}

/// The agent has died: the guard kills all work and starts it again.
pub(super) fn restart_agent(process: &mut Process, rules: &Rules) {
    let before = *process;
    *process = Process {
        mode: if before.leaving { Mode::Off } else { Mode::On },
        origin: before.origin,
        previous: if before.session == 0 { before.previous } else { before.session },
        strays: strays(&before, rules.weak(Weakening::AttestWithoutReaping)),
        report: before.report,
        holds: before.holds,
        ..Process::default()
    };
}

/// What is left of the work when an agent or its session has ended: what nobody ends with it.
pub(super) fn strays(process: &Process, unreaped: bool) -> [Revision; NAMES] {
    std::array::from_fn(|name| match process.runs[name] {
        running if running != 0 && (unreaped || process.holds[name] != Holds::Strict) => running,
        _ => process.strays[name],
    })
}

/// It finds out that its session is gone: all work is stopped, then the session is given up.
pub(super) fn learn_loss(state: &mut State, p: usize, rules: &Rules) -> bool {
    let process = &mut state.processes[p];
    if process.mode != Mode::On || process.session == 0 || holds_session(process, ID_OF[p], &state.etcd) {
        return false;
    }
    let (past, memory) = (process.past, process.memory);
    restart_agent(process, rules);
    (process.past, process.memory) = (past, memory);
    true
}

/// Asks its drivers what of earlier sessions goes on, and has it ended.
pub(super) fn end_survivors(process: &mut Process, rules: &Rules) -> bool {
    let may = process.mode == Mode::On && process.session == 0 && !rules.weak(Weakening::AttestWithoutReaping);
    may && std::mem::take(&mut process.strays) != [0; NAMES]
}

/// Deletes the registration that an earlier agent of the same guard has left.
pub(super) fn replace_own(state: &mut State, p: usize, rules: &Rules) -> bool {
    let process = &state.processes[p];
    let registration = &mut state.etcd.workers[ID_OF[p]].registration;
    let own = registration.is_some_and(|r| r.origin == process.origin);
    if process.mode != Mode::On || process.session != 0 || !own || rules.weak(Weakening::SessionOverwritten) {
        return false;
    }
    *registration = None;
    true
}

/// Registers: creates the key, where there is none.
pub(super) fn register(state: &mut State, p: usize, rules: &Rules) -> bool {
    let process = state.processes[p];
    let keys = state.etcd.workers[ID_OF[p]];
    let free = keys.registration.is_none() || rules.weak(Weakening::SessionOverwritten);
    let ended = process.strays == [0; NAMES] || rules.weak(Weakening::AttestWithoutAsking) || rules.weak(Weakening::AttestWithoutReaping);
    if process.mode != Mode::On || process.session != 0 || !free || !ended {
        return false;
    }
    let attests = match keys.admission {
        Some(admission) if admission.origin == process.origin || rules.weak(Weakening::AttestsForOthers) => admission.session,
        Some(_) => 0,
        None => process.previous,
    };
    // A key that is put over another keeps that one's create revision.
    let session = if keys.registration.is_some() { keys.session() } else { state.next_revision() };
    let Process { origin, holds, .. } = process;
    state.etcd.workers[ID_OF[p]].registration = Some(Registration { session, origin, attests, released: false, holds });
    state.processes[p].session = session;
    true
}

/// Looks at its admission. Another one than before makes the view too old.
pub(super) fn see_admission(state: &mut State, p: usize, rules: &Rules) -> bool {
    let process = &mut state.processes[p];
    let admitted = state.etcd.workers[ID_OF[p]].admitted();
    let mine = admitted != 0 && (admitted == process.session || rules.weak(Weakening::AdmissionOfAnySession));
    if process.mode != Mode::On || process.session == 0 || process.admitted == mine {
        return false;
    }
    process.admitted = mine;
    if !(mine && rules.weak(Weakening::ListBeforeAdmission)) {
        process.view = None;
    }
    true
}

/// Lists its assignments, or hears of changes.
pub(super) fn list(state: &mut State, p: usize, rules: &Rules) -> bool {
    let process = &mut state.processes[p];
    let keys = &state.etcd.workers[ID_OF[p]];
    let early = rules.weak(Weakening::ListBeforeAdmission) || rules.weak(Weakening::ReportsUnadmitted);
    let may = process.mode == Mode::On && process.session != 0 && (acts(process, rules) || early);
    let lapsed = process.authority == 0 && process.view.is_none();
    if !may || lapsed || process.view == Some(keys.assignments) {
        return false;
    }
    process.view = Some(keys.assignments);
    for name in 0..NAMES {
        let epoch = keys.assignments[name].map_or(0, |a| a.epoch);
        let stopped = process.past[name].max(keys.statuses[name].stopped());
        process.past[name] = if epoch == 0 || stopped < epoch || rules.weak(Weakening::ForgetsPast) { 0 } else { stopped };
    }
    if rules.changes {
        change::learn(process, keys, rules);
    }
    true
}

fn assigned(process: &Process, name: usize) -> Option<Assignment> {
    process.view.and_then(|view| view[name])
}

/// Starts work.
pub(super) fn start(state: &mut State, p: usize, name: usize, rules: &Rules) -> bool {
    let process = &mut state.processes[p];
    let Some(assignment) = assigned(process, name).filter(|a| !a.stop) else { return false };
    let may = process.mode == Mode::On && acts(process, rules) && !process.leaving;
    let reaches = process.authority > 0 || rules.weak(Weakening::StartUnchecked);
    let holds = process.holds[name];
    let keeps = holds.may_run(assignment.holds) || rules.weak(Weakening::RunsBetterHold);
    let knows = !rules.changes || change::may_start(process, name, &assignment, rules);
    // What fenced work works on refuses an epoch that is behind.
    let refused = holds == Holds::Fenced && assignment.epoch < state.outside[name] && !rules.weak(Weakening::OutsideAccepts);
    if !may || !reaches || !keeps || !knows || refused || process.runs[name] != 0 || process.past[name] >= assignment.epoch {
        return false;
    }
    process.runs[name] = assignment.epoch;
    if holds == Holds::Fenced {
        state.outside[name] = state.outside[name].max(assignment.epoch);
    }
    if rules.changes {
        change::runs_with_it(state, p, name, &assignment, true);
    }
    true
}

/// May it deal with a change of this work?
fn deals(process: &Process, rules: &Rules) -> bool {
    rules.changes && process.mode == Mode::On && acts(process, rules) && !process.leaving && process.authority > 0
}

/// Takes a change of work that runs.
pub(super) fn take(state: &mut State, p: usize, name: usize, rules: &Rules) -> bool {
    let process = &state.processes[p];
    let assigned = assigned(process, name);
    deals(process, rules) && change::take(state, p, name, assigned)
}

/// Finds that what is assigned needs a restart.
pub(super) fn need_restart(state: &mut State, p: usize, name: usize, rules: &Rules) -> bool {
    let process = &mut state.processes[p];
    let assigned = assigned(process, name);
    deals(process, rules) && change::need_restart(process, name, assigned, rules)
}

/// Stops work, all of it.
pub(super) fn halt(state: &mut State, p: usize, name: usize, rules: &Rules) -> bool {
    let process = &mut state.processes[p];
    let running = process.runs[name];
    let unwanted = process.view.is_some_and(|view| view[name].is_none_or(|a| a.stop || a.epoch != running));
    let lapsed = process.authority == 0 && process.holds[name] != Holds::Strict;
    let why = process.leaving || !acts(process, rules) || unwanted || lapsed;
    if process.mode != Mode::On || running == 0 || !why {
        return false;
    }
    process.runs[name] = 0;
    true
}

/// Reports that the epoch which it was told to stop is stopped, as often as it takes; or what any other runs with.
pub(super) fn report(state: &mut State, p: usize, name: usize, rules: &Rules) -> bool {
    let process = &mut state.processes[p];
    let Some(assignment) = assigned(process, name) else { return false };
    let may = process.mode == Mode::On && process.session != 0 && !process.leaving;
    let admitted = acts(process, rules) || rules.weak(Weakening::ReportsUnadmitted);
    let stopped = process.runs[name] == 0 || rules.weak(Weakening::AckBeforeStop);
    let status = match assignment.stop {
        true => stopped.then(|| Status { epoch: assignment.epoch, stopped: true, ..Status::default() }),
        false => Some(&*process).filter(|_| rules.changes).and_then(|process| change::status(process, name, &assignment, rules)),
    };
    let Some(status) = status.filter(|status| state.etcd.workers[ID_OF[p]].statuses[name] != *status) else { return false };
    if !may || !admitted || process.report.is_some() {
        return false;
    }
    if assignment.stop {
        process.past[name] = assignment.epoch;
    }
    process.report = Some(Report { name, status, session: process.session, admitted: process.session });
    true
}

/// A status write reaches etcd. It may do so when its sender is long gone.
pub(super) fn status_arrives(state: &mut State, p: usize, rules: &Rules) -> bool {
    let Some(report) = state.processes[p].report.take() else { return false };
    etcd::report(&mut state.etcd, ID_OF[p], &report, rules);
    true
}

/// Gives its id up, once everything is stopped.
pub(super) fn release(state: &mut State, p: usize, rules: &Rules) -> bool {
    let process = &mut state.processes[p];
    if process.mode != Mode::On || !process.leaving {
        return false;
    }
    if process.session == 0 {
        process.mode = Mode::Off;
        return true;
    }
    let stopped = process.runs == [0; NAMES];
    if !holds_session(process, ID_OF[p], &state.etcd) || !(stopped || rules.weak(Weakening::ReleaseBeforeStop)) {
        return false;
    }
    let Some(registration) = &mut state.etcd.workers[ID_OF[p]].registration else { return false };
    if std::mem::replace(&mut registration.released, true) {
        return false;
    }
    if stopped {
        let Process { origin, report, strays, holds, .. } = *process;
        *process = Process { origin, report, strays, holds, ..Process::default() };
    }
    true
}

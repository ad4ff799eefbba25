//! What guard and agent of a worker do: rules 1, 2, 4, 5 and 6 of the protocol, one step at a time.
//!
//! A view lags by not being refreshed: whatever a process knows is what stood in etcd at some earlier step. Each function does one
//! step and tells whether it was one; it makes no choice.

use super::{
    etcd,
    rules::{Rules, Weakening},
    state::{Assignment, ID_OF, Keys, Mode, NAMES, Process, Registration, Report, State},
};

/// May it act on its assignments?
fn acts(process: &Process, rules: &Rules) -> bool {
    process.session != 0 && (process.admitted || rules.weak(Weakening::AdmissionSkipped))
}

/// Does this process hold the session that etcd has?
fn holds_session(process: &Process, id: usize, etcd: &Keys) -> bool {
    process.session != 0 && etcd.workers[id].session() == process.session
}

/// A proof reaches etcd, which confirms the session. What it is worth counts from here: a session that stands when the request is
/// judged also stood when it was sent, so judging it later would only give less.
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

/// A living agent has stopped everything by then, and forgets what it saw. For any other the guard kills its work, if it has any, and it.
fn authority_ends(process: &mut Process, rules: &Rules) {
    if rules.weak(Weakening::NobodyKills) {
        return;
    }
    match process.mode {
        Mode::On => {
            process.runs = [0; NAMES];
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
        strays: strays(&before, rules),
        report: before.report,
        ..Process::default()
    };
}

/// What is left of the work when an agent or its session has ended.
fn strays(process: &Process, rules: &Rules) -> [u8; NAMES] {
    if rules.weak(Weakening::AttestWithoutReaping) && process.runs != [0; NAMES] { process.runs } else { process.strays }
}

/// It finds out that its session is gone: all work is stopped, then the session is given up.
pub(super) fn learn_loss(state: &mut State, p: usize, rules: &Rules) -> bool {
    let process = &mut state.processes[p];
    if process.mode != Mode::On || process.session == 0 || holds_session(process, ID_OF[p], &state.etcd) {
        return false;
    }
    let past = process.past;
    restart_agent(process, rules);
    process.past = past;
    true
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

/// Registers: creates the key, where none stands.
pub(super) fn register(state: &mut State, p: usize, rules: &Rules) -> bool {
    let process = state.processes[p];
    let keys = state.etcd.workers[ID_OF[p]];
    let free = keys.registration.is_none() || rules.weak(Weakening::SessionOverwritten);
    if process.mode != Mode::On || process.session != 0 || !free {
        return false;
    }
    let attests = match keys.admission {
        Some(admission) if admission.origin == process.origin || rules.weak(Weakening::AttestsForOthers) => admission.session,
        Some(_) => 0,
        None => process.previous,
    };
    // A key that is put over another keeps that one's create revision.
    let session = if keys.registration.is_some() { keys.session() } else { state.next_revision() };
    state.etcd.workers[ID_OF[p]].registration = Some(Registration { session, origin: process.origin, attests, released: false });
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
        let stopped = process.past[name].max(keys.stopped[name]);
        process.past[name] = if epoch == 0 || stopped < epoch || rules.weak(Weakening::ForgetsPast) { 0 } else { stopped };
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
    if !may || !reaches || process.runs[name] != 0 || process.past[name] >= assignment.epoch {
        return false;
    }
    process.runs[name] = assignment.epoch;
    true
}

/// Stops work, all of it.
pub(super) fn halt(state: &mut State, p: usize, name: usize, rules: &Rules) -> bool {
    let process = &mut state.processes[p];
    let running = process.runs[name];
    let unwanted = process.view.is_some_and(|view| view[name].is_none_or(|a| a.stop || a.epoch != running));
    let why = process.leaving || !acts(process, rules) || unwanted;
    if process.mode != Mode::On || running == 0 || !why {
        return false;
    }
    process.runs[name] = 0;
    true
}

/// Reports that the epoch which it was told to stop is stopped, as often as it takes.
pub(super) fn report(state: &mut State, p: usize, name: usize, rules: &Rules) -> bool {
    let process = &mut state.processes[p];
    let Some(assignment) = assigned(process, name).filter(|a| a.stop) else { return false };
    let may = process.mode == Mode::On && process.session != 0 && !process.leaving;
    let admitted = acts(process, rules) || rules.weak(Weakening::ReportsUnadmitted);
    let stopped = process.runs[name] == 0 || rules.weak(Weakening::AckBeforeStop);
    let written = state.etcd.workers[ID_OF[p]].stopped[name] == assignment.epoch;
    if !may || !admitted || !stopped || written || process.report.is_some() {
        return false;
    }
    process.past[name] = assignment.epoch;
    process.report = Some(Report { name, epoch: assignment.epoch, session: process.session, admitted: process.session });
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
        *process = Process { origin: process.origin, report: process.report, strays: process.strays, ..Process::default() };
    }
    true
}

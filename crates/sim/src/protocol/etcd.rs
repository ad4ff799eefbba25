//! What etcd does with the transactions of the protocol: compare, then write all or nothing.
//!
//! It is linearizable, so a transaction is one step. It decides nothing.

use super::{
    rules::{Rules, Weakening},
    state::{Admission, Assignment, Keys, Report, Revision, Sent, State, WorkerKeys, Write},
};

/// What became of a leader's transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was applied at this revision.
    Applied(Revision),
    /// A guard of its own failed.
    Conflict,
    /// The leader's key is gone.
    FenceLost,
}

/// Carries out a leader's transaction.
pub(super) fn commit(state: &mut State, sent: &Sent, rules: &Rules) -> Outcome {
    let fenced = state.election.contains(&sent.fence);
    if !fenced && !rules.weak(Weakening::FenceLeftOut) {
        return Outcome::FenceLost;
    }
    if !guards_hold(&state.etcd, &sent.write) {
        return Outcome::Conflict;
    }
    state.unfenced |= !fenced;
    let revision = state.next_revision();
    apply(&mut state.etcd, &sent.write, revision, rules);
    Outcome::Applied(revision)
}

fn guards_hold(keys: &Keys, write: &Write) -> bool {
    let epoch = |id: usize, name: usize| keys.workers[id].assignments[name].map_or(0, |a| a.epoch);
    let admission = |id: usize, admitted: Option<Revision>| admitted.is_none_or(|admitted| keys.workers[id].admitted() == admitted);
    match *write {
        Write::Admit { id, session, before, .. } => keys.workers[id].admitted() == before && keys.workers[id].session() == session,
        Write::Forget { id, admitted, released } => {
            keys.workers[id].admitted() == admitted && (released == 0 || keys.workers[id].session() == released)
        }
        Write::Place { name, id } => epoch(id, name) == 0 && keys.wanted[name],
        Write::Stop { name, id, epoch: held } | Write::Resume { name, id, epoch: held } => epoch(id, name) == held,
        Write::End { name, id, epoch: held, admitted } => epoch(id, name) == held && admission(id, admitted),
        Write::Move { name, from, epoch: held, admitted, to } => {
            epoch(from, name) == held && admission(from, admitted) && epoch(to, name) == 0 && keys.wanted[name]
        }
        Write::Delete { name, holder } => keys.wanted[name] && holder.is_none_or(|(id, held)| epoch(id, name) == held),
        Write::Add { name } => !keys.wanted[name],
    }
}

/// Makes the changes of a transaction whose compares hold. A leader makes the same changes to its view.
pub(super) fn apply(keys: &mut Keys, write: &Write, revision: Revision, rules: &Rules) {
    match *write {
        Write::Admit { id, session, origin, .. } => keys.workers[id].admission = Some(Admission { session, origin }),
        Write::Forget { id, released, .. } => {
            keys.workers[id].admission = None;
            if released != 0 {
                keys.workers[id].registration = None;
            }
        }
        Write::Place { name, id } => keys.workers[id].assignments[name] = Some(Assignment { epoch: revision, stop: false }),
        Write::Stop { name, id, epoch } => keys.workers[id].assignments[name] = Some(Assignment { epoch, stop: true }),
        Write::Resume { name, id, epoch } => keys.workers[id].assignments[name] = Some(Assignment { epoch, stop: false }),
        Write::End { name, id, .. } => end(&mut keys.workers[id], name, rules),
        Write::Move { name, from, to, .. } => {
            end(&mut keys.workers[from], name, rules);
            keys.workers[to].assignments[name] = Some(Assignment { epoch: revision, stop: false });
        }
        Write::Delete { name, holder } => {
            keys.wanted[name] = false;
            if let Some((id, epoch)) = holder {
                if rules.weak(Weakening::DeleteFreesName) {
                    end(&mut keys.workers[id], name, rules);
                } else {
                    keys.workers[id].assignments[name] = Some(Assignment { epoch, stop: true });
                }
            }
        }
        Write::Add { name } => keys.wanted[name] = true,
    }
}

fn end(worker: &mut WorkerKeys, name: usize, rules: &Rules) {
    worker.assignments[name] = None;
    if !rules.weak(Weakening::StatusOutlivesAssignment) {
        worker.stopped[name] = 0;
    }
}

/// Carries out a worker's status write; false: it was refused.
pub(super) fn report(keys: &mut Keys, id: usize, report: &Report, rules: &Rules) -> bool {
    let worker = &mut keys.workers[id];
    let session = worker.session() == report.session || rules.weak(Weakening::StatusWithoutSession);
    let admission = worker.admitted() == report.admitted || rules.weak(Weakening::StatusWithoutAdmission);
    let assignment =
        worker.assignments[report.name].is_some_and(|a| a.epoch == report.epoch) || rules.weak(Weakening::StatusWithoutAssignment);
    let holds = session && admission && assignment;
    if holds {
        worker.stopped[report.name] = report.epoch;
    }
    holds
}

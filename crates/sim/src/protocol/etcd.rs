//! What etcd does with the transactions of the protocol: compare, then write all or nothing.
//!
//! It is linearizable, so a transaction is one step. It decides nothing.

use super::{
    rules::{Rules, Weakening},
    state::{Admission, Assignment, FIRST, Holds, Keys, Report, Revision, Sent, Spec, State, Status, WorkerKeys, Write},
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
        Write::Place { name, id, .. } => epoch(id, name) == 0 && keys.wanted[name] != 0,
        Write::Update { name, id, epoch: held, .. } | Write::Stop { name, id, epoch: held } | Write::Resume { name, id, epoch: held } => {
            epoch(id, name) == held
        }
        Write::End { name, id, epoch: held, admitted } => epoch(id, name) == held && admission(id, admitted),
        Write::Move { name, from, epoch: held, admitted, to, .. } => {
            epoch(from, name) == held && admission(from, admitted) && epoch(to, name) == 0 && keys.wanted[name] != 0
        }
        Write::Delete { name, holder } => keys.wanted[name] != 0 && holder.is_none_or(|(id, held)| epoch(id, name) == held),
        Write::Add { name } => keys.wanted[name] == 0,
        Write::Change { name, .. } => keys.wanted[name] != 0,
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
        Write::Place { name, id, spec, holds } => keys.workers[id].assignments[name] = Some(created(revision, spec, holds)),
        Write::Update { name, id, epoch, spec } => {
            let before = keys.workers[id].assignments[name].unwrap_or_default();
            keys.workers[id].assignments[name] = Some(Assignment { epoch, stop: false, spec, version: before.version + 1, ..before });
        }
        Write::Stop { name, id, epoch } => tell(&mut keys.workers[id], name, epoch, true),
        Write::Resume { name, id, epoch } => tell(&mut keys.workers[id], name, epoch, false),
        Write::End { name, id, .. } => end(&mut keys.workers[id], name, rules),
        Write::Move { name, from, to, spec, holds, .. } => {
            end(&mut keys.workers[from], name, rules);
            keys.workers[to].assignments[name] = Some(created(revision, spec, holds));
        }
        Write::Delete { name, holder } => {
            keys.wanted[name] = 0;
            if let Some((id, epoch)) = holder {
                if rules.weak(Weakening::DeleteFreesName) {
                    end(&mut keys.workers[id], name, rules);
                } else {
                    tell(&mut keys.workers[id], name, epoch, true);
                }
            }
        }
        Write::Add { name } => keys.wanted[name] = FIRST,
        Write::Change { name, spec } => keys.wanted[name] = spec,
    }
}

fn created(epoch: Revision, spec: Spec, holds: Holds) -> Assignment {
    Assignment { epoch, stop: false, spec, version: 1, holds }
}

fn tell(worker: &mut WorkerKeys, name: usize, epoch: Revision, stop: bool) {
    worker.assignments[name] = Some(Assignment { epoch, stop, ..worker.assignments[name].unwrap_or_default() });
}

fn end(worker: &mut WorkerKeys, name: usize, rules: &Rules) {
    worker.assignments[name] = None;
    if !rules.weak(Weakening::StatusOutlivesAssignment) {
        worker.statuses[name] = Status::default();
    }
}

/// Carries out a worker's status write; false: it was refused.
pub(super) fn report(keys: &mut Keys, id: usize, report: &Report, rules: &Rules) -> bool {
    let worker = &mut keys.workers[id];
    let session = worker.session() == report.session || rules.weak(Weakening::StatusWithoutSession);
    let admission = worker.admitted() == report.admitted || rules.weak(Weakening::StatusWithoutAdmission);
    let assignment =
        worker.assignments[report.name].is_some_and(|a| a.epoch == report.status.epoch) || rules.weak(Weakening::StatusWithoutAssignment);
    let holds = session && admission && assignment;
    if holds {
        worker.statuses[report.name] = report.status;
    }
    holds
}

//! What a master does: rules 3, 4, 5, 7, 8 and 9 of the protocol, one step at a time.
//!
//! A leader decides on what it knows, which may be old; its writes may arrive late. Which of several things that it may do it does, the
//! checker chooses: all of them.

use super::{
    etcd::{self, Outcome},
    rules::{Rules, Weakening},
    state::{FIRST, Holds, IDS, Keys, Master, NAMES, OTHER, Sent, Standing, State, Write},
};

/// Takes in what it sees, and notes whose session is gone.
fn observe(master: &mut Master, keys: Keys, rules: &Rules) {
    for id in 0..IDS {
        let (before, after) = (&master.view.workers[id], &keys.workers[id]);
        let gone = matches!(after.standing(), Standing::Lost | Standing::Returning);
        let same = before.admitted() == after.admitted();
        master.waits[id] = match master.waits[id] {
            Some(left) if gone && same || rules.weak(Weakening::WaitNotReset) => Some(left),
            _ => gone.then_some(rules.wait),
        };
    }
    master.view = keys;
}

/// A master without a candidacy campaigns. One that finds another's key queues behind it, which comes to waiting here.
pub(super) fn campaign(state: &mut State, m: usize) -> bool {
    if state.election.iter().any(|key| *key != 0) || state.masters[m].leads != 0 {
        return false;
    }
    state.election[m] = state.next_revision();
    true
}

/// The first candidate becomes the leader, catches up with etcd, and begins every wait anew.
pub(super) fn become_leader(state: &mut State, m: usize, rules: &Rules) -> bool {
    let first = state.election.iter().copied().filter(|key| *key != 0).min();
    let master = &mut state.masters[m];
    if master.leads != 0 || first.is_none() || first != Some(state.election[m]) {
        return false;
    }
    master.leads = state.election[m];
    master.waits = [None; IDS];
    let keys = if rules.weak(Weakening::ActsBeforeCatchingUp) { master.view } else { state.etcd };
    observe(master, keys, rules);
    if rules.weak(Weakening::NewLeaderDoesNotWait) {
        master.waits.iter_mut().flatten().for_each(|left| *left = 0);
    }
    true
}

/// The watch brings it up to date.
pub(super) fn follow(state: &mut State, m: usize, rules: &Rules) -> bool {
    let master = &mut state.masters[m];
    // A standby follows as well, but begins its term with what it then finds: so what it saw before does not matter.
    let follows = master.leads != 0 || rules.weak(Weakening::ActsBeforeCatchingUp);
    if !follows || master.view == state.etcd {
        return false;
    }
    observe(master, state.etcd, rules);
    true
}

/// It learns that its key is gone.
pub(super) fn step_down(state: &mut State, m: usize) -> bool {
    let master = &mut state.masters[m];
    if master.leads == 0 || state.election.contains(&master.leads) {
        return false;
    }
    *master = Master { sent: master.sent, ..Master::default() };
    true
}

/// Sends a write.
pub(super) fn decide(state: &mut State, m: usize, write: Write) {
    let master = &mut state.masters[m];
    master.sent = Some(Sent { fence: master.leads, write });
}

/// Its write reaches etcd, and it hears what became of it. It may have lost the leadership in between.
pub(super) fn commit(state: &mut State, m: usize, rules: &Rules) -> bool {
    let Some(sent) = state.masters[m].sent.take() else { return false };
    let outcome = etcd::commit(state, &sent, rules);
    if state.masters[m].leads != sent.fence {
        return true;
    }
    match outcome {
        Outcome::Applied(revision) => {
            let mut keys = state.masters[m].view;
            etcd::apply(&mut keys, &sent.write, revision, rules);
            observe(&mut state.masters[m], keys, rules);
        }
        Outcome::Conflict => observe(&mut state.masters[m], state.etcd, rules),
        Outcome::FenceLost => state.masters[m] = Master::default(),
    }
    true
}

/// What a leader may decide on what it knows; what only a person or the balance asks for comes last, after `needed` of them.
pub(super) struct Choices {
    pub(super) writes: Vec<Write>,
    pub(super) needed: usize,
}

/// See [`Choices`].
pub(super) fn choices(master: &Master, rules: &Rules) -> Choices {
    let mut writes = Vec::new();
    if master.leads == 0 || master.sent.is_some() {
        return Choices { writes, needed: 0 };
    }
    for id in 0..IDS {
        writes.extend(about_worker(master, id, rules));
    }
    let mut requested = Vec::new();
    for name in 0..NAMES {
        about_resource(master, name, rules, &mut writes, &mut requested);
    }
    let needed = writes.len();
    writes.append(&mut requested);
    Choices { writes, needed }
}

fn waited(master: &Master, id: usize, rules: &Rules) -> bool {
    master.waits[id] == Some(0) || master.waits[id].is_some() && rules.weak(Weakening::WaitLeftOut)
}

fn about_worker(master: &Master, id: usize, rules: &Rules) -> Option<Write> {
    let keys = &master.view.workers[id];
    let admit = keys.registration.map(|r| Write::Admit { id, session: r.session, origin: r.origin, before: keys.admitted() });
    match keys.standing() {
        Standing::New => admit,
        Standing::Returning => {
            let (registration, admission) = (keys.registration?, keys.admission?);
            let attests = registration.attests != 0
                && registration.attests <= admission.session
                && (registration.origin == admission.origin || rules.weak(Weakening::AttestsForOthers))
                && admission.session < registration.session;
            let waited = waited(master, id, rules) && !rules.weak(Weakening::NeverReadmits);
            // The next session of another guard would start it again beside the one that goes on, with an epoch that is not refused.
            let fenced = keys.assignments.iter().flatten().any(|a| a.holds == Holds::Fenced) && !rules.weak(Weakening::FencedEpochKept);
            let may = attests || waited && !fenced || rules.weak(Weakening::AdmitsUnattested);
            admit.filter(|_| may && !registration.released)
        }
        Standing::Released => Some(Write::Forget { id, admitted: keys.admitted(), released: keys.session() }),
        Standing::Lost => {
            let empty = keys.assignments.iter().all(Option::is_none);
            let may = empty && waited(master, id, rules) || rules.weak(Weakening::ForgetsTooEarly);
            may.then_some(Write::Forget { id, admitted: keys.admitted(), released: 0 })
        }
        Standing::Absent | Standing::Ready => None,
    }
}

/// Is the end of this assignment known? Some: it is; with the admission that it is known from, unless the worker itself has reported it.
fn end_of(master: &Master, id: usize, name: usize, rules: &Rules) -> Option<Option<u8>> {
    let keys = &master.view.workers[id];
    let assignment = keys.assignments[name]?;
    let stopped = keys.statuses[name].stopped();
    if stopped == assignment.epoch || stopped != 0 && rules.weak(Weakening::AnyEpochsStatus) {
        return Some(None);
    }
    if assignment.stop && rules.weak(Weakening::MovesWithoutAck) || rules.weak(Weakening::MovesWithoutStop) {
        return Some(None);
    }
    match keys.standing() {
        Standing::Absent | Standing::New | Standing::Released => Some(Some(keys.admitted())),
        Standing::Lost | Standing::Returning => {
            let known = match assignment.holds {
                Holds::Strict => waited(master, id, rules),
                Holds::Fenced => true,
                Holds::Loose => rules.weak(Weakening::LooseAsStrict) && waited(master, id, rules),
            };
            known.then_some(Some(keys.admitted()))
        }
        Standing::Ready => (assignment.holds == Holds::Fenced && rules.weak(Weakening::FencedAtAnyTime)).then_some(Some(keys.admitted())),
    }
}

fn about_resource(master: &Master, name: usize, rules: &Rules, writes: &mut Vec<Write>, requested: &mut Vec<Write>) {
    let view = &master.view;
    let spec = view.wanted[name];
    let wanted = spec != 0;
    let ready = |id: &usize| view.workers[*id].standing() == Standing::Ready;
    let holder = (0..IDS).find_map(|id| view.workers[id].assignments[name].map(|a| (id, a)));
    let holds_at = |id: usize| view.workers[id].registration.map(|r| r.holds[name]).unwrap_or_default();
    let copied = |to: usize| if rules.weak(Weakening::HoldsNotCopied) { Holds::Strict } else { holds_at(to) };
    let place = |to: usize| Write::Place { name, id: to, spec, holds: copied(to) };
    let Some((id, assignment)) = holder else {
        if wanted {
            writes.extend((0..IDS).filter(ready).map(place));
            requested.push(change(name, spec));
            requested.push(Write::Delete { name, holder: None });
        } else {
            requested.push(Write::Add { name });
        }
        return;
    };
    let epoch = assignment.epoch;
    if rules.weak(Weakening::PlacesWhileHeld) && wanted {
        writes.extend((0..IDS).filter(|to| *to != id).filter(ready).map(place));
    }
    match end_of(master, id, name, rules) {
        Some(admitted) => {
            let before = writes.len();
            let others = (0..IDS).filter(|to| wanted && *to != id).filter(ready);
            writes.extend(others.map(|to| Write::Move { name, from: id, epoch, admitted, to, spec, holds: copied(to) }));
            if writes.len() == before || ready(&id) {
                writes.push(Write::End { name, id, epoch, admitted });
            }
        }
        None if !assignment.stop && ready(&id) => {
            let status = &view.workers[id].statuses[name];
            let differs = wanted && assignment.spec != spec;
            let restart = status.epoch == epoch && status.restart_for == assignment.spec && !rules.weak(Weakening::RestartIgnored);
            let unfit = !holds_at(id).may_run(assignment.holds) && !rules.weak(Weakening::UnfitKept);
            if differs {
                writes.push(Write::Update { name, id, epoch, spec });
            }
            let stop = Write::Stop { name, id, epoch };
            if wanted && !differs && !restart && !unfit { requested.push(stop) } else { writes.push(stop) }
        }
        None => {}
    }
    if assignment.stop && rules.weak(Weakening::StopTakenBack) && wanted {
        writes.push(Write::Resume { name, id, epoch });
    }
    if assignment.stop && rules.weak(Weakening::UpdatesStopping) && wanted && assignment.spec != spec {
        writes.push(Write::Update { name, id, epoch, spec });
    }
    if wanted {
        requested.push(change(name, spec));
        requested.push(Write::Delete { name, holder: Some((id, epoch)).filter(|_| !assignment.stop) });
    } else {
        requested.push(Write::Add { name });
    }
}

fn change(name: usize, spec: u8) -> Write {
    Write::Change { name, spec: if spec == FIRST { OTHER } else { FIRST } }
}

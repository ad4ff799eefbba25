//! What becomes of a request about workers: cordon, drain, the end of either, and the release of the brake. Only what is wanted is written;
//! what follows from it is the next plan's.

use std::collections::BTreeMap;

use evenkeel_model::{
    Brake, Decision, Entry, EntryKind, Guard, HistoryEntry, Intent, IntentKind, Key, Moment, Revision, Session, Standing, WorkerId, Write,
};

use super::{
    history,
    request::{Refusal, Reply},
    resources::Answer,
    term::{Decided, Term},
};
use crate::state::State;

impl Term {
    /// Writes what is wanted of a worker, or that nothing is any more.
    pub(super) fn want(&mut self, state: &mut State, id: &WorkerId, intent: Option<IntentKind>, reply: Reply<()>, now: Moment) {
        let worker = state.cluster.worker(id.as_str()).filter(|w| w.standing() != Standing::Absent || w.intent.is_some());
        let Some(worker) = worker else {
            // What is answered from memory waits for a transaction that shows it true: see `decide_requests`.
            let of_admission = Guard::Modified(Key::Admission(id.clone()), Revision::default());
            let guards = vec![Guard::session(id, Session::default()), of_admission];
            let answers = vec![Answer::Intent(reply, Err(Refusal::NoWorker(id.clone())))];
            let decision = Decision { guards, writes: Vec::new() };
            self.decide(state, Decided { decision, name: None, happening: None, answers }, now);
            return;
        };
        let before = worker.intent;
        let time = self.clock.unix_ns();
        let since = before.filter(|before| Some(before.kind) == intent).map_or(time, |before| before.since);
        let kind = match intent {
            None => EntryKind::Uncordoned,
            Some(IntentKind::Cordon) => EntryKind::Cordoned,
            Some(IntentKind::Drain { .. }) => EntryKind::Draining,
        };
        let intent = intent.map(|kind| Intent { kind, since });
        let entry = history::about_resource(kind, time, &self.master, "", "api");
        let happening = (before != intent).then(|| HistoryEntry { worker: id.to_string(), ..entry });
        let decision = Decision { guards: Vec::new(), writes: vec![Write::new(Entry::Intent(id.clone(), intent))] };
        self.decide(state, Decided { decision, name: None, happening, answers: vec![Answer::Intent(reply, Ok(()))] }, now);
    }

    /// Lets all sessions go that are gone now. Those that were let go before and stand no more are forgotten.
    pub(super) fn release_brake(&mut self, state: &mut State, reply: Reply<BTreeMap<WorkerId, Session>>, now: Moment) {
        let is_gone = |standing| matches!(standing, Standing::Lost | Standing::Returning);
        let gone = state.cluster.workers().filter(|(_, w)| is_gone(w.standing()));
        let sessions: BTreeMap<WorkerId, Session> =
            gone.filter_map(|(id, w)| Some((id.clone(), w.admission.as_deref()?.value.session))).collect();
        let reason = format!("{} workers that are gone are waited for no longer", sessions.len());
        let entry = history::about_resource(EntryKind::WrittenOff, self.clock.unix_ns(), &self.master, "", &reason);
        let happening = (!sessions.is_empty()).then_some(entry);
        let entry = Entry::WrittenOff(Some(sessions.clone()).filter(|sessions| !sessions.is_empty()));
        let decision = Decision { guards: Vec::new(), writes: vec![Write::new(entry)] };
        self.decide(state, Decided { decision, name: None, happening, answers: vec![Answer::Brake(reply, sessions)] }, now);
    }

    /// Tells when the brake begins to hold, and when it does no longer.
    pub(super) fn see_brake(&mut self, state: &mut State, brake: Option<Brake>, now: Moment) {
        let before = std::mem::replace(&mut state.brake, brake);
        let (kind, reason) = match (before, brake) {
            (None, Some(brake)) => {
                tracing::warn!(lost = brake.lost, of = brake.of, "the brake holds what the lost workers ran");
                (EntryKind::Held, brake.to_string())
            }
            (Some(_), None) => {
                tracing::info!("the brake holds nothing any more");
                let is_written_off = evenkeel_planner::is_any_written_off(&state.cluster);
                let why = if is_written_off { "a person has let those go that are gone" } else { "no more workers are gone than may be" };
                (EntryKind::Resumed, why.to_owned())
            }
            _ => return,
        };
        let entry = history::about_resource(kind, self.clock.unix_ns(), &self.master, "", &reason);
        self.happen(state, entry, now);
    }
}

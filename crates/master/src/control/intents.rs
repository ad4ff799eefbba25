//! The commands about workers: cordon, drain, the end of either, and the release of the brake. Only what is wanted is written; what follows from
//! it is the next plan's.

use std::collections::BTreeMap;

use evenkeel_model::{
    Decision, Entry, EntryKind, Guard, HistoryEntry, Intent, IntentKind, Key, Revision, Session, Standing, WorkerId, Write,
};

use super::{
    judge::Judge,
    request::{Answer, Command, Refusal, Reply, Request, Ruling},
    subjects::Subject,
};

/// Wants a cordon or a drain of a worker, or neither any more.
#[derive(Debug)]
struct SetIntent {
    worker: WorkerId,
    intent: Option<IntentKind>,
}

/// Waits no longer for the workers that are gone.
#[derive(Debug)]
struct ReleaseBrake;

impl Request {
    /// Asks for a cordon or a drain of a worker; none: for neither any more.
    #[must_use]
    pub fn intent(worker: WorkerId, intent: Option<IntentKind>, reply: Reply<()>) -> Self {
        Self::new(SetIntent { worker, intent }, reply)
    }

    /// Asks to wait no longer for the workers that are gone, so that what they ran moves though the brake holds. The answer says whose sessions
    /// are waited for no longer.
    #[must_use]
    pub fn release_brake(reply: Reply<BTreeMap<WorkerId, Session>>) -> Self {
        Self::new(ReleaseBrake, reply)
    }
}

impl Command for SetIntent {
    type Answer = ();

    fn subject(&self) -> Subject {
        Subject::Worker(self.worker.clone())
    }

    fn judge(&self, by: &mut Judge<'_>) -> Ruling<()> {
        let id = &self.worker;
        let worker = by.cluster.worker(id.as_str()).filter(|w| w.standing() != Standing::Absent || w.intent.is_some());
        let Some(worker) = worker else {
            let guards = vec![Guard::session(id, Session::default()), Guard::Modified(Key::Admission(id.clone()), Revision::default())];
            return Ruling::Stands(guards, Err(Refusal::NoWorker(id.clone())));
        };
        let before = worker.intent;
        if before.is_none() && self.intent.is_none() {
            return Ruling::Stands(vec![Guard::Modified(Key::Intent(id.clone()), Revision::default())], Ok(()));
        }
        let since = before.filter(|before| Some(before.kind) == self.intent).map_or(by.time, |before| before.since);
        let kind = match self.intent {
            None => EntryKind::Uncordoned,
            Some(IntentKind::Cordon) => EntryKind::Cordoned,
            Some(IntentKind::Drain { .. }) => EntryKind::Draining,
        };
        let intent = self.intent.map(|kind| Intent { kind, since });
        let entry = HistoryEntry { worker: id.to_string(), ..by.entry(kind, "", "api") };
        let decision = Decision { guards: Vec::new(), writes: vec![Write::new(Entry::Intent(id.clone(), intent))] };
        Ruling::Write(Box::new(decision), (before != intent).then_some(entry), ())
    }
}

impl Answer for BTreeMap<WorkerId, Session> {}

impl Command for ReleaseBrake {
    type Answer = BTreeMap<WorkerId, Session>;

    fn subject(&self) -> Subject {
        Subject::Brake
    }

    /// Writes all sessions off that are gone now. Those that were written off before and are there no more are forgotten.
    fn judge(&self, by: &mut Judge<'_>) -> Ruling<Self::Answer> {
        let is_gone = |standing| matches!(standing, Standing::Lost | Standing::Returning);
        let gone = by.cluster.workers().filter(|(_, w)| is_gone(w.standing()));
        let sessions: BTreeMap<WorkerId, Session> =
            gone.filter_map(|(id, w)| Some((id.clone(), w.admission.as_deref()?.value.session))).collect();
        if sessions.is_empty() && by.cluster.written_off().is_empty() {
            return Ruling::Stands(vec![Guard::Modified(Key::WrittenOff(), Revision::default())], Ok(sessions));
        }
        let reason = format!("{} workers that are gone are waited for no longer", sessions.len());
        let entry = by.entry(EntryKind::WrittenOff, "", &reason);
        let decision =
            Decision { guards: Vec::new(), writes: vec![Write::new(Entry::WrittenOff((!sessions.is_empty()).then(|| sessions.clone())))] };
        Ruling::Write(Box::new(decision), (!sessions.is_empty()).then_some(entry), sessions)
    }
}

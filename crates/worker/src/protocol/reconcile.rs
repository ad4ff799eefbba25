//! PURE: from what is told and what runs to what is to be done, one name at a time.
//!
//! The wheel: worker::desired -> **worker::reconcile** -> worker::driver. It keeps nothing and starts nothing. An action names its
//! epoch and, for a stop, its reason; carrying it out leaves no choice.

use std::{fmt, time::Duration};

use evenkeel_model::{Epoch, Phase, StopReason};

use crate::{
    protocol::authority::{Authority, BootTime},
    protocol::desired::{DesiredAssignment, Past},
};

/// What runs under one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The epoch that it was started for.
    pub epoch: Epoch,
    /// What it does.
    pub state: RunState,
    /// What it needs to stop.
    pub grace: Duration,
}

/// What a run does, as far as decisions go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// It runs, or is about to, or waits to be started again by its driver.
    Live,
    /// No process of it is left and none is started again: it exited, or it cannot be started.
    Resting,
    /// It was told to stop, and its end is not known yet.
    Stopping,
}

/// How the worker is admitted, and how fresh its view is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdmissionState {
    /// Admitted, with a view to act on.
    Current,
    /// Admitted, and the view is too old to act on: nothing is started, and nothing is stopped for what a view says.
    Stale,
    /// Not admitted: the session was lost, or its admission is gone.
    Unadmitted,
    /// The worker leaves.
    Leaving,
}

/// Why work is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopWhy {
    /// The leader says so.
    Told(StopReason),
    /// Its assignment is gone.
    Gone,
    /// Its assignment is another one by now.
    Replaced,
    /// Authority ends.
    Authority,
    /// The session is not admitted, or not any more.
    Unadmitted,
    /// The worker leaves.
    Leaving,
}

impl fmt::Display for StopWhy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Told(reason) => reason.as_str(),
            Self::Gone => "its assignment is gone",
            Self::Replaced => "its assignment was replaced",
            Self::Authority => "authority ends: no proof of the session came through",
            Self::Unadmitted => "the session is not admitted",
            Self::Leaving => "the worker leaves",
        })
    }
}

/// What is to be done for one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start it for this epoch.
    Start(Epoch),
    /// Take it as exited, as its status says: an earlier session ran it to its end.
    Rest(Epoch),
    /// Stop the run of this epoch.
    Stop(Epoch, StopWhy),
    /// Nothing of this epoch runs, and nothing ever will: report it as stopped.
    ReportStopped(Epoch),
}

/// All that bears on one name.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// What the view says; none: not assigned, or no view.
    pub assignment: Option<&'a DesiredAssignment>,
    /// What runs; none: nothing does.
    pub run: Option<Run>,
    /// The end that is known.
    pub past: Option<Past>,
    /// Where the worker stands.
    pub admission: AdmissionState,
    /// For how long it may go on.
    pub authority: &'a Authority,
    /// What this work would need to stop, if it is started.
    pub grace: Duration,
}

/// Decides for one name. At most one action; the next one follows from the state that it leads to.
#[must_use]
pub fn decide(facts: &Facts<'_>, now: BootTime) -> Option<Action> {
    match facts.run {
        Some(Run { state: RunState::Stopping, .. }) => None,
        Some(run) => whether_to_stop(facts, run, now).map(|why| Action::Stop(run.epoch, why)),
        None => whether_to_start(facts, now),
    }
}

fn whether_to_stop(facts: &Facts<'_>, run: Run, now: BootTime) -> Option<StopWhy> {
    let live = run.state == RunState::Live;
    match facts.admission {
        AdmissionState::Leaving => return Some(StopWhy::Leaving),
        AdmissionState::Unadmitted => return live.then_some(StopWhy::Unadmitted),
        AdmissionState::Stale | AdmissionState::Current => {}
    }
    if live && !facts.authority.reaches(now, run.grace) {
        return Some(StopWhy::Authority);
    }
    if facts.admission == AdmissionState::Stale {
        return None;
    }
    match facts.assignment {
        None => Some(StopWhy::Gone),
        Some(assigned) if assigned.epoch != run.epoch => Some(StopWhy::Replaced),
        Some(assigned) => stop_reason(assigned).map(StopWhy::Told),
    }
}

fn whether_to_start(facts: &Facts<'_>, now: BootTime) -> Option<Action> {
    let assigned = facts.assignment.filter(|_| facts.admission == AdmissionState::Current)?;
    let past = facts.past.filter(|past| past.epoch() >= assigned.epoch);
    if let Some(Past::Stopped(_)) = past {
        return None;
    }
    if stop_reason(assigned).is_some() {
        return Some(Action::ReportStopped(assigned.epoch));
    }
    if let Some(Past::Exited(_)) = past {
        return Some(Action::Rest(assigned.epoch));
    }
    facts.authority.reaches(now, facts.grace).then_some(Action::Start(assigned.epoch))
}

fn stop_reason(assigned: &DesiredAssignment) -> Option<StopReason> {
    match assigned.assignment.as_ref().map(|assignment| &assignment.phase) {
        Ok(Phase::Stop { reason, .. }) => Some(*reason),
        Ok(Phase::Run) | Err(_) => None,
    }
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;

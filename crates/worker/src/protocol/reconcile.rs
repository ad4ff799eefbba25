//! PURE: from what is told and what runs to what is to be done, one name at a time.
//!
//! The wheel: worker::desired -> **worker::reconcile** -> worker::driver. It keeps nothing and starts nothing. An action names its
//! epoch and, for a stop, its reason; carrying it out leaves no choice.

use std::{fmt, time::Duration};

use evenkeel_model::{Assignment, Epoch, Hash, Phase, StopReason};

use crate::{
    protocol::authority::{Authority, BootTime},
    protocol::desired::{Content, DesiredAssignment, Past, Ran},
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
    /// What it runs.
    pub content: Content,
    /// What has become of the last change of its assignment.
    pub change: Change,
}

/// What has become of a change of an assignment whose work runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Change {
    /// There is none, or it was taken.
    #[default]
    Settled,
    /// The driver was given this content, and has not answered.
    Offered(Hash),
    /// This content needs a restart, and with it another epoch: the leader knows, or is about to.
    NeedsRestart(Hash),
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
    /// Take what its assignment says by now, with the epoch that runs.
    Change(Epoch),
    /// Report that this epoch is not started, since it may have run something else than what its assignment says by now.
    AskRestart(Epoch),
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
    /// What was last run under this name, as far as is known.
    pub ran: Option<Ran>,
    /// Every driver has said what of earlier sessions lives, and has ended it.
    pub all_answered: bool,
}

/// Decides for one name. At most one action; the next one follows from the state that it leads to.
#[must_use]
pub fn decide(facts: &Facts<'_>, now: BootTime) -> Option<Action> {
    match facts.run {
        Some(Run { state: RunState::Stopping, .. }) => None,
        Some(run) => match whether_to_stop(facts, run, now) {
            Some(why) => Some(Action::Stop(run.epoch, why)),
            None => whether_to_change(facts, run),
        },
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
        // Of a run that this agent did not see end, a driver that has not answered may still have something.
        let ended_here = facts.ran.is_some_and(|ran| ran.epoch == assigned.epoch && ran.is_of_this_agent);
        return (facts.all_answered || ended_here).then_some(Action::ReportStopped(assigned.epoch));
    }
    if let Some(Past::Exited(_)) = past {
        return Some(Action::Rest(assigned.epoch));
    }
    if !keeps_its_spec(assigned, facts.ran) {
        return Some(Action::AskRestart(assigned.epoch));
    }
    facts.authority.reaches(now, facts.grace).then_some(Action::Start(assigned.epoch))
}

/// An epoch stands for what it runs, also to others who have seen it: it is never started again with anything else.
fn keeps_its_spec(assigned: &DesiredAssignment, ran: Option<Ran>) -> bool {
    let Ok(assignment) = &assigned.assignment else { return true };
    assigned.last_run(ran).is_some_and(|content| content.hash == assignment.hash)
}

fn whether_to_change(facts: &Facts<'_>, run: Run) -> Option<Action> {
    let assigned = facts.assignment.filter(|_| facts.admission == AdmissionState::Current)?;
    let assignment: &Assignment = assigned.assignment.as_deref().ok()?;
    if assigned.epoch != run.epoch {
        return None;
    }
    match run.change {
        Change::Settled if assigned.content() == run.content => None,
        // One after the other: what the driver answers next is of this one.
        Change::Offered(_) => None,
        Change::NeedsRestart(hash) if hash == assignment.hash => None,
        // Also back to what runs: a driver that did not answer may have taken the change by now.
        Change::Settled | Change::NeedsRestart(_) => Some(Action::Change(run.epoch)),
    }
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

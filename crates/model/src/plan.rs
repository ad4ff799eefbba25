//! A plan: what is to be done next, each action with its reason, and what is left undone with its reason. It leaves no choice to its
//! execution.

use std::fmt;

use crate::{Epoch, Misfit, Moment, PolicyName, ResourceName, Session, StopReason, WorkerId, limits::MAX_AUTHORITY};

/// An immutable list of actions made from one state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "a plan that is not carried out, and a report that is not read, are bugs"]
pub struct Plan {
    /// In the order in which they are to be written.
    pub actions: Vec<Action>,
    /// What is wanted and not done.
    pub undone: Vec<Undone>,
    /// When a wait ends and another plan is due though nothing happened; none: only events matter.
    pub wake: Option<Moment>,
    /// So many workers are gone that what they ran is held; none: no more than may be.
    pub brake: Option<Brake>,
}

/// Many workers are gone at once. That is rather the network or etcd than the workers, so nothing moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Brake {
    /// How many workers are gone that had something to run.
    pub lost: usize,
    /// How many there are with those that are ready.
    pub of: usize,
    /// The share of them that may be gone before it holds, in percent.
    pub percent: u32,
}

impl fmt::Display for Brake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lost, of, percent } = self;
        write!(f, "{lost} of {of} workers are gone, more than {percent}%: what they ran is held until they return or the brake is released")
    }
}

/// One step of the leader. Each is one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Lets a session run its worker's assignments.
    Admit {
        /// The worker.
        worker: WorkerId,
        /// Its new session.
        session: Session,
        /// Why it may.
        reason: AdmitReason,
    },
    /// Removes a worker's admission, and its registration if it is released: nothing runs there.
    Forget {
        /// The worker.
        worker: WorkerId,
        /// How that is known.
        reason: EndReason,
    },
    /// Creates an assignment where none stands.
    Place {
        /// The resource.
        resource: ResourceName,
        /// Where it is to run.
        worker: WorkerId,
        /// Why there.
        reason: PlaceReason,
    },
    /// Tells a worker to stop a resource and to report.
    Stop {
        /// The resource.
        resource: ResourceName,
        /// Where it runs.
        worker: WorkerId,
        /// The assignment that is to end.
        epoch: Epoch,
        /// Why.
        reason: StopReason,
        /// Where it is meant to go next.
        to: Option<WorkerId>,
    },
    /// Gives a worker another spec for what it runs there, under the same epoch.
    Update {
        /// The resource.
        resource: ResourceName,
        /// Where it runs.
        worker: WorkerId,
        /// The assignment that goes on.
        epoch: Epoch,
    },
    /// Deletes an assignment whose end is known, and creates the next one in the same transaction.
    Move {
        /// The resource.
        resource: ResourceName,
        /// Where it was.
        from: WorkerId,
        /// The assignment that has ended.
        epoch: Epoch,
        /// Where it is to run now.
        to: WorkerId,
        /// How the end is known.
        reason: EndReason,
    },
    /// Deletes an assignment whose end is known; nothing takes its place in this transaction.
    End {
        /// The resource.
        resource: ResourceName,
        /// Where it was.
        worker: WorkerId,
        /// The assignment that has ended.
        epoch: Epoch,
        /// How the end is known.
        reason: EndReason,
    },
    /// Writes down that a resource has finished, and tells its worker to let go of it.
    Finish {
        /// The resource.
        resource: ResourceName,
        /// Where it came to its end.
        worker: WorkerId,
        /// The assignment that has its end in its status.
        epoch: Epoch,
        /// How it ended.
        message: Box<str>,
    },
    /// Corrects the view for people: the worker's address is another, or the resource is nowhere any more.
    View {
        /// The resource.
        resource: ResourceName,
        /// Where it runs; none: it is pending.
        worker: Option<WorkerId>,
    },
}

impl Action {
    /// The resource that it is about, if it is about one.
    #[must_use]
    pub fn resource(&self) -> Option<&ResourceName> {
        match self {
            Self::Admit { .. } | Self::Forget { .. } => None,
            Self::Place { resource, .. }
            | Self::Stop { resource, .. }
            | Self::Update { resource, .. }
            | Self::Move { resource, .. }
            | Self::End { resource, .. }
            | Self::Finish { resource, .. }
            | Self::View { resource, .. } => Some(resource),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admit { worker, session, reason } => write!(f, "admit session {session} of {worker} ({})", reason.as_str()),
            Self::Forget { worker, reason } => write!(f, "forget {worker} ({})", reason.as_str()),
            Self::Place { resource, worker, reason } => write!(f, "place {resource} on {worker} ({})", reason.as_str()),
            Self::Stop { resource, worker, epoch, reason, to } => {
                write!(f, "stop {resource} on {worker}, epoch {epoch}")?;
                to.iter().try_for_each(|to| write!(f, ", for {to}"))?;
                write!(f, " ({})", reason.as_str())
            }
            Self::Update { resource, worker, epoch } => write!(f, "change {resource} on {worker} in place, epoch {epoch}"),
            Self::Move { resource, from, epoch, to, reason } => {
                write!(f, "move {resource} from {from}, epoch {epoch}, to {to} ({})", reason.as_str())
            }
            Self::End { resource, worker, epoch, reason } => write!(f, "end {resource} on {worker}, epoch {epoch} ({})", reason.as_str()),
            Self::Finish { resource, worker, epoch, message } => write!(f, "finish {resource} on {worker}, epoch {epoch} ({message})"),
            Self::View { resource, worker: Some(worker) } => write!(f, "show {resource} on {worker}"),
            Self::View { resource, worker: None } => write!(f, "show {resource} as pending"),
        }
    }
}

/// Why a session is admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AdmitReason {
    /// No session of this worker may run anything.
    New,
    /// The same guard attests that nothing of the admitted session runs any more.
    Attested,
    /// The admitted session is gone, and its authority has surely ended.
    Waited,
}

/// Why a resource is placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PlaceReason {
    /// The first by this policy among those that can run it.
    Policy(PolicyName),
    /// It is pinned there.
    Pinned,
    /// It was there before, and may stay.
    Stays,
}

/// How it is known that an assignment has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EndReason {
    /// The worker reported this epoch stopped, as it was told to, for this reason.
    Stopped(StopReason),
    /// The worker reported this epoch stopped without being told to.
    StoppedItself,
    /// The worker stopped everything and left.
    Released,
    /// The admitted session is gone, and its authority has surely ended.
    Waited,
    /// The session is gone, and the resource accepts an overlap.
    Available,
    /// The session is gone, and what the resource works on refuses its epoch once it has seen the next one.
    Fenced,
}

/// Something that is wanted and not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undone {
    /// What it is about.
    pub subject: Subject,
    /// Why it is not done.
    pub reason: Pending,
}

/// What an [`Undone`] is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A resource that has no assignment.
    Resource(ResourceName),
    /// A worker that is not ready, or whose assignments wait.
    Worker(WorkerId),
    /// So many resources more, which are not told one by one.
    More(usize),
}

/// Why something is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pending {
    /// No worker is ready.
    NoWorkers,
    /// Workers are ready, and each breaks a hard rule.
    NoneFits {
        /// How many workers are ready.
        workers: usize,
        /// How many break which rule, the commonest first; never empty.
        failed: Vec<Failed>,
    },
    /// It is pinned to a worker that cannot take it; none: that worker is not ready.
    Pin {
        /// The worker.
        worker: WorkerId,
        /// The rule that it breaks.
        misfit: Option<Misfit>,
    },
    /// The name's previous run has not ended yet, on this worker.
    PreviousRun(WorkerId),
    /// The admitted session of this worker is gone; its authority may last until this moment.
    Authority {
        /// The worker.
        worker: WorkerId,
        /// The end of the wait, by the leader's clock.
        until: Moment,
        /// The session claimed more than a leader waits for.
        capped: bool,
    },
    /// The admitted session of this worker is gone, and it held this loosely: nobody knows whether it still runs.
    Loose(WorkerId),
    /// What this worker ran, which is lost, only the fence ends, and no other worker that can take it is fenced.
    Fenced(WorkerId),
    /// More is due than one plan takes on; the next one goes on.
    Budget,
    /// As many as may be are on their way already.
    InFlight(usize),
    /// It was moved for balance lately, and is left alone until this moment.
    Cooling(Moment),
    /// Too many workers are gone at once.
    Brake(Brake),
    /// It is to leave this worker, which is being drained, and no other takes it.
    Drain {
        /// The worker.
        worker: WorkerId,
        /// Why no other takes it.
        why: Box<Pending>,
    },
    /// Its worker breaks a rule for it, and no other takes it.
    Stays {
        /// The worker.
        worker: WorkerId,
        /// The rule.
        misfit: Misfit,
    },
    /// It fails on its worker again and again, and stays there.
    Fails {
        /// The worker.
        worker: WorkerId,
        /// Why it is not tried elsewhere.
        why: NotElsewhere,
    },
    /// The worker has more than its capacity, and no other takes any of it.
    Over {
        /// What it has.
        payload: u64,
        /// What it takes.
        capacity: u64,
    },
    /// The record in etcd cannot be read, so it is neither run nor stopped.
    Unreadable(Box<str>),
}

impl Pending {
    /// The worker on which something is, or was last, if that is why.
    #[must_use]
    pub fn worker(&self) -> Option<&WorkerId> {
        match self {
            Self::PreviousRun(worker)
            | Self::Loose(worker)
            | Self::Fenced(worker)
            | Self::Authority { worker, .. }
            | Self::Drain { worker, .. }
            | Self::Stays { worker, .. }
            | Self::Fails { worker, .. } => Some(worker),
            _ => None,
        }
    }
}

/// Why a resource that fails on its worker is not tried on another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotElsewhere {
    /// There is no other that may run it and on which it has not failed of late.
    NoneLeft,
    /// It has failed on so many that it is rather the work than the workers.
    TriedEnough(usize),
    /// So many were moved for that within a short time that others wait for their turn.
    Paced(usize),
}

/// How many workers break one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The rule, as one of them breaks it; of capacities, the one with the most room.
    pub misfit: Misfit,
    /// How many break it.
    pub count: usize,
}

/// How many rules a sentence names.
const NAMED: usize = 3;

impl fmt::Display for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoWorkers => f.write_str("no worker is ready"),
            Self::NoneFits { workers: 1, failed } => {
                f.write_str("the one ready worker does not fit")?;
                failed.first().map_or(Ok(()), |failed| write!(f, ": {}", failed.misfit))
            }
            Self::NoneFits { workers, failed } => {
                write!(f, "none of the {workers} ready workers fits")?;
                for (n, Failed { misfit, count }) in failed.iter().take(NAMED).enumerate() {
                    write!(f, "{} {misfit} ({count} of {workers})", if n == 0 { ":" } else { ";" })?;
                }
                if failed.len() > NAMED { write!(f, "; and {} rules more", failed.len() - NAMED) } else { Ok(()) }
            }
            Self::Pin { worker, misfit: None } => write!(f, "it is pinned to {worker}, which is not ready"),
            Self::Pin { worker, misfit: Some(misfit) } => write!(f, "it is pinned to {worker}, which cannot take it: {misfit}"),
            Self::PreviousRun(worker) => write!(f, "waits for its previous run on {worker} to end"),
            Self::Authority { worker, capped: false, .. } => write!(f, "{worker} is lost; waits until nothing can run there any more"),
            Self::Authority { worker, capped: true, .. } => {
                write!(f, "{worker} is lost; it claimed more authority than {MAX_AUTHORITY} seconds, and no more than that is waited for")
            }
            Self::Loose(worker) => write!(
                f,
                "{worker} is lost and held it loosely, so nobody knows whether it still runs; start {worker} again, or say ownership: available"
            ),
            Self::Fenced(worker) => write!(
                f,
                "{worker} is lost, and only the fence ends what it ran: no other worker that can take it holds its kind fenced; start {worker} again, \
                 or a worker that does"
            ),
            Self::Budget => f.write_str("its turn comes with the next plan"),
            Self::InFlight(limit) => write!(f, "{limit} are on their way already, and no more may be at a time"),
            Self::Cooling(_) => f.write_str("it was moved for balance lately, and is left alone for a while"),
            Self::Brake(brake) => brake.fmt(f),
            Self::Drain { worker, why } => write!(f, "cannot leave {worker}, which is being drained: {why}"),
            Self::Stays { worker, misfit } => write!(f, "stays on {worker}, since no other can take it, though {misfit}"),
            Self::Fails { worker, why: NotElsewhere::NoneLeft } => {
                write!(f, "fails on {worker}, and there is no other that may run it and on which it has not failed")
            }
            Self::Fails { worker, why: NotElsewhere::TriedEnough(workers) } => {
                write!(f, "fails on {worker}, as it did on {workers} workers before: it is rather the work than the workers")
            }
            Self::Fails { worker, why: NotElsewhere::Paced(moves) } => {
                write!(f, "fails on {worker}; {moves} were moved for that a moment ago, and its turn comes")
            }
            Self::Over { payload, capacity } => {
                write!(f, "has {payload}, more than its capacity of {capacity}, and no other can take any of it")
            }
            Self::Unreadable(error) => write!(f, "its record in etcd cannot be read: {error}"),
        }
    }
}

impl AdmitReason {
    /// For people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "nothing runs under this id",
            Self::Attested => "its guard attests that nothing of the session before runs",
            Self::Waited => "the session before has lost its authority",
        }
    }
}

impl PlaceReason {
    /// For people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Policy(policy) => policy.reason(),
            Self::Pinned => "pinned",
            Self::Stays => "it was there before",
        }
    }
}

impl EndReason {
    /// It is known only from a session that is gone.
    #[must_use]
    pub fn is_of_lost(self) -> bool {
        matches!(self, Self::Waited | Self::Available | Self::Fenced)
    }

    /// For people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped(reason) => reason.as_str(),
            Self::StoppedItself => "its worker stopped it",
            Self::Released => "its worker left",
            Self::Waited => "its worker was lost",
            Self::Available => "its worker was lost, and it accepts an overlap",
            Self::Fenced => "its worker was lost, and its epoch is fenced off",
        }
    }
}

//! The state of the protocol model: what etcd has, and what each process knows, believes and runs. Plain, small and hashable.
//!
//! It must not hold a rule: those are in `worker`, `leader` and `etcd`.

pub use evenkeel_model::Holds;

/// A revision of etcd; zero: none. Only its order counts, so revisions are numbered anew after each step ([`State::canonical`]).
pub type Revision = u8;
/// A guard of one boot of one machine.
pub type Origin = u8;
/// What a resource asks of its worker; zero: nothing, or it is unknown. Only whether two are the same counts.
pub type Spec = u8;

/// What a resource asks for when it is added.
pub const FIRST: Spec = 1;
/// What it asks for after a change; the next change asks for the first again.
pub const OTHER: Spec = 2;

/// Worker ids.
pub const IDS: usize = 2;
/// Processes that run work. The last one has the id of the first: the same worker, started again elsewhere.
pub const PROCESSES: usize = 3;
/// Masters.
pub const MASTERS: usize = 2;
/// Names of resources.
pub const NAMES: usize = 2;
/// The worker id of each process.
pub const ID_OF: [usize; PROCESSES] = [0, 1, 0];

/// `/workers/<id>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Registration {
    /// Its create revision.
    pub session: Revision,
    /// Whose it is.
    pub origin: Origin,
    /// The session of which nothing runs any more, by the guard's word; zero: it gives none.
    pub attests: Revision,
    /// Everything was stopped; the session's last write.
    pub released: bool,
    /// How its drivers hold the work of each name.
    pub holds: [Holds; NAMES],
}

/// `/admissions/<id>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Admission {
    /// The admitted session.
    pub session: Revision,
    /// Whose it is.
    pub origin: Origin,
}

/// `/assignments/<id>/<name>`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Assignment {
    /// Its create revision.
    pub epoch: Revision,
    /// Phase `stop`.
    pub stop: bool,
    /// What is to run.
    pub spec: Spec,
    /// How many specs this epoch was given: one, unless it was changed in place. In etcd the key's modification revision says the same.
    pub version: u8,
    /// How the worker that it was made for held such work.
    pub holds: Holds,
}

/// `/status/<id>/<name>`: what a worker says of an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Status {
    /// Of which epoch; zero: there is no status.
    pub epoch: Revision,
    /// It is stopped. If not, the rest counts.
    pub stopped: bool,
    /// What it runs, or last ran; zero: unknown.
    pub spec: Spec,
    /// The version of the assignment that this answers.
    pub version: u8,
    /// The spec of that version, if it cannot be taken without a restart; else zero.
    pub restart_for: Spec,
}

impl Status {
    /// The epoch that is reported stopped; zero: none is.
    #[must_use]
    pub fn stopped(&self) -> Revision {
        if self.stopped { self.epoch } else { 0 }
    }
}

/// One worker's assignments.
pub type Assignments = [Option<Assignment>; NAMES];

/// All keys of one worker's id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct WorkerKeys {
    /// Its registration.
    pub registration: Option<Registration>,
    /// Its admission.
    pub admission: Option<Admission>,
    /// Its assignments.
    pub assignments: Assignments,
    /// Its statuses.
    pub statuses: [Status; NAMES],
}

/// What masters watch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Keys {
    /// What each resource asks for; zero: it is not wanted.
    pub wanted: [Spec; NAMES],
    /// By worker id.
    pub workers: [WorkerKeys; IDS],
}

/// What a leader writes in one transaction, with its guards: epochs, and sessions that must be the admitted or the registered one.
#[expect(missing_docs, reason = "the fields are named by what they are")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Write {
    /// Admits a session, in place of `before`.
    Admit { id: usize, session: Revision, origin: Origin, before: Revision },
    /// Removes an admission, and with it the registration of a released session.
    Forget { id: usize, admitted: Revision, released: Revision },
    /// Creates an assignment.
    Place { name: usize, id: usize, spec: Spec, holds: Holds },
    /// Gives an assignment another spec.
    Update { name: usize, id: usize, epoch: Revision, spec: Spec },
    /// Tells a worker to stop.
    Stop { name: usize, id: usize, epoch: Revision },
    /// Takes a stop back. No rule allows it.
    Resume { name: usize, id: usize, epoch: Revision },
    /// Deletes an assignment; `admitted`: the end is known from this admission alone.
    End { name: usize, id: usize, epoch: Revision, admitted: Option<Revision> },
    /// Deletes an assignment and creates the next one.
    Move { name: usize, from: usize, epoch: Revision, admitted: Option<Revision>, to: usize, spec: Spec, holds: Holds },
    /// Deletes a resource and tells its work to stop.
    Delete { name: usize, holder: Option<(usize, Revision)> },
    /// Adds a resource.
    Add { name: usize },
    /// Changes what a resource asks for.
    Change { name: usize, spec: Spec },
}

/// A write that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sent {
    /// The fence that it compares.
    pub fence: Revision,
    /// What it does.
    pub write: Write,
}

/// A master.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Master {
    /// It believes that it leads, with this fence; zero: it follows.
    pub leads: Revision,
    /// What it knows: etcd as it was at some time, and its own writes since.
    pub view: Keys,
    /// For each worker whose admitted session it has seen gone: the ticks of its own clock that it still waits.
    pub waits: [Option<u8>; IDS],
    /// Its write under way.
    pub sent: Option<Sent>,
}

/// What an agent is able to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// It does not exist.
    #[default]
    Off,
    /// It lives.
    On,
    /// It is stopped by a signal, or hangs. Its guard lives.
    Frozen,
}

/// A status that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Report {
    /// Which resource.
    pub name: usize,
    /// What it says; its epoch is the assignment's create revision, which it compares.
    pub status: Status,
    /// The session, which it compares.
    pub session: Revision,
    /// The admission, which it compares.
    pub admitted: Revision,
}

/// What an agent remembers of the epoch of a name that runs, or last ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Memory {
    /// Which epoch; zero: it remembers none.
    pub epoch: Revision,
    /// What it runs, or last ran; zero: unknown.
    pub spec: Spec,
    /// The version of the assignment that the agent has dealt with.
    pub version: u8,
    /// The spec of that version, if it needs a restart; else zero.
    pub restart_for: Spec,
}

/// Guard and agent of a worker on one machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Process {
    /// What the agent is able to do.
    pub mode: Mode,
    /// Its guard.
    pub origin: Origin,
    /// The session that it believes to have; zero: none.
    pub session: Revision,
    /// The session before, as the guard remembers it.
    pub previous: Revision,
    /// For how many ticks of its clock it still has authority.
    pub authority: u8,
    /// The answer to a proof that is under way: what it will be worth, counted from the send.
    pub proof: u8,
    /// It has seen that its session is admitted.
    pub admitted: bool,
    /// Its assignments, as it knows them.
    pub view: Option<Assignments>,
    /// The last epoch of each name that it reported stopped.
    pub past: [Revision; NAMES],
    /// What runs: epochs.
    pub runs: [Revision; NAMES],
    /// What it knows of the specs of what runs, or last ran. Kept where specs change.
    pub memory: [Memory; NAMES],
    /// How its drivers hold the work of each name.
    pub holds: [Holds; NAMES],
    /// What goes on although the agent that started it has ended.
    pub strays: [Revision; NAMES],
    /// It was asked to leave.
    pub leaving: bool,
    /// Its status write under way.
    pub report: Option<Report>,
}

/// How many faults, and acts of people, may still come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Leases of workers that end although their holder lives.
    pub revocations: u8,
    /// Agents that crash; the guard kills their work and starts them again.
    pub crashes: u8,
    /// Agents that are frozen.
    pub freezes: u8,
    /// Machines that are started again, or lose guard and agent at once.
    pub reboots: u8,
    /// Workers that are started a second time, elsewhere.
    pub twins: u8,
    /// Leaders that lose their key and do not know.
    pub depositions: u8,
    /// Ticks by which a leader's clock runs ahead.
    pub drift: u8,
    /// Workers that are asked to leave.
    pub leaves: u8,
    /// Moves for balance.
    pub moves: u8,
    /// Resources that are deleted.
    pub deletes: u8,
    /// Resources that are added.
    pub adds: u8,
    /// Resources that are changed.
    pub changes: u8,
    /// Agents that are started again with drivers that hold work worse.
    pub downgrades: u8,
}

/// What an epoch last ran with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LastRun {
    /// The epoch.
    pub epoch: Revision,
    /// Its spec.
    pub spec: Spec,
}

/// Everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    /// What etcd has.
    pub etcd: Keys,
    /// The election keys: their create revisions.
    pub election: [Revision; MASTERS],
    /// The masters.
    pub masters: [Master; MASTERS],
    /// The workers' processes.
    pub processes: [Process; PROCESSES],
    /// What may still go wrong.
    pub budget: Budget,
    /// The greatest epoch that was seen by what the fenced work of each name works on.
    pub outside: [Revision; NAMES],
    /// What the newest epoch of each worker and name last ran with. No process knows it; kept where specs change.
    pub last: [[LastRun; NAMES]; IDS],
    /// A leader's transaction was applied although its key was gone.
    pub unfenced: bool,
    /// An epoch was started with another spec than it last ran with.
    pub respecified: bool,
}

impl State {
    /// The next revision.
    #[must_use]
    pub fn next_revision(&mut self) -> Revision {
        let mut last = 0;
        self.each_revision(&mut |revision| last = last.max(*revision));
        last + 1
    }

    /// The same state with its revisions numbered from one, so that runs of different length meet. Rules compare revisions and do
    /// nothing else with them, so this changes nothing of what can happen.
    #[must_use]
    pub fn canonical(mut self) -> Self {
        let mut present: u64 = 1;
        self.each_revision(&mut |revision| present |= 1 << *revision);
        self.each_revision(&mut |revision| {
            let below = present & ((1 << *revision) - 1);
            *revision = u8::try_from(below.count_ones()).unwrap_or(u8::MAX);
        });
        self
    }

    fn each_revision(&mut self, visit: &mut impl FnMut(&mut Revision)) {
        self.election.iter_mut().chain(&mut self.outside).for_each(&mut *visit);
        self.last.iter_mut().flatten().for_each(|last| visit(&mut last.epoch));
        self.etcd.each_revision(visit);
        for master in &mut self.masters {
            visit(&mut master.leads);
            master.view.each_revision(visit);
            if let Some(sent) = &mut master.sent {
                visit(&mut sent.fence);
                sent.write.each_revision(visit);
            }
        }
        for process in &mut self.processes {
            visit(&mut process.session);
            visit(&mut process.previous);
            process.view.iter_mut().flatten().flatten().for_each(|a| visit(&mut a.epoch));
            process.past.iter_mut().chain(&mut process.runs).chain(&mut process.strays).for_each(&mut *visit);
            process.memory.iter_mut().for_each(|memory| visit(&mut memory.epoch));
            if let Some(report) = &mut process.report {
                visit(&mut report.status.epoch);
                visit(&mut report.session);
                visit(&mut report.admitted);
            }
        }
    }
}

impl Keys {
    fn each_revision(&mut self, visit: &mut impl FnMut(&mut Revision)) {
        for worker in &mut self.workers {
            if let Some(registration) = &mut worker.registration {
                visit(&mut registration.session);
                visit(&mut registration.attests);
            }
            worker.admission.iter_mut().for_each(|a| visit(&mut a.session));
            worker.assignments.iter_mut().flatten().for_each(|a| visit(&mut a.epoch));
            worker.statuses.iter_mut().for_each(|status| visit(&mut status.epoch));
        }
    }
}

impl Write {
    fn each_revision(&mut self, visit: &mut impl FnMut(&mut Revision)) {
        match self {
            Self::Admit { session, before, .. } => {
                visit(session);
                visit(before);
            }
            Self::Forget { admitted, released, .. } => {
                visit(admitted);
                visit(released);
            }
            Self::Update { epoch, .. } | Self::Stop { epoch, .. } | Self::Resume { epoch, .. } => visit(epoch),
            Self::End { epoch, admitted, .. } | Self::Move { epoch, admitted, .. } => {
                visit(epoch);
                admitted.iter_mut().for_each(visit);
            }
            Self::Delete { holder, .. } => holder.iter_mut().for_each(|(_, epoch)| visit(epoch)),
            Self::Place { .. } | Self::Add { .. } | Self::Change { .. } => {}
        }
    }
}

/// What a worker's keys say of it: `Standing` of evenkeel-model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Neither registered nor admitted.
    Absent,
    /// Registered, and nobody is admitted.
    New,
    /// Registered; an earlier session that is gone is the admitted one.
    Returning,
    /// The registered session is the admitted one.
    Ready,
    /// The registered session has stopped everything.
    Released,
    /// The admitted session is gone.
    Lost,
}

impl WorkerKeys {
    /// See [`Standing`].
    #[must_use]
    pub fn standing(&self) -> Standing {
        match (&self.registration, &self.admission) {
            (None, None) => Standing::Absent,
            (None, Some(_)) => Standing::Lost,
            (Some(registration), None) if registration.released => Standing::Released,
            (Some(_), None) => Standing::New,
            (Some(registration), Some(admission)) if admission.session == registration.session => {
                if registration.released {
                    Standing::Released
                } else {
                    Standing::Ready
                }
            }
            (Some(_), Some(_)) => Standing::Returning,
        }
    }

    /// The registered session; zero: none.
    #[must_use]
    pub fn session(&self) -> Revision {
        self.registration.map_or(0, |r| r.session)
    }

    /// The admitted session; zero: none.
    #[must_use]
    pub fn admitted(&self) -> Revision {
        self.admission.map_or(0, |a| a.session)
    }
}

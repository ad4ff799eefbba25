//! Which noteworthy events a run of the checker has gone through: a model in which nothing happens proves nothing.

use super::{
    rules::Rules,
    state::{Holds, ID_OF, IDS, MASTERS, Mode, NAMES, Process, State, Write},
    step::Step,
};

/// Kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Seen {
    /// A resource went to another worker after stop and report.
    MovedByReport,
    /// A resource went to another worker after the leader's wait.
    MovedByWait,
    /// A session was admitted at once, since it attests the end of the one before.
    AdmittedByAttest,
    /// A session was admitted in place of another after the leader's wait.
    AdmittedByWait,
    /// A released worker was taken away.
    Forgotten,
    /// A write of an earlier leader failed on its fence.
    FenceHeld,
    /// Two masters believe that they lead.
    TwoBelieve,
    /// A late status was refused.
    StatusRefused,
    /// The answer to a proof came ticks after its send.
    LateProof,
    /// A living agent stopped its work because authority ended.
    AgentStopped,
    /// The guard killed the work of a frozen agent.
    GuardKilled,
    /// Authority ended while the session still existed.
    EndedBeforeLease,
    /// Work ran on although its session was gone: for that there is the wait.
    OutlivedSession,
    /// A worker that was started twice ran work in its second place.
    TwinRan,
    /// A change was taken while the work ran.
    ChangeTaken,
    /// A change of work that ran was answered by asking for a restart.
    RestartNeeded,
    /// Work was not started again, since nobody knew what its epoch last ran with.
    NotStartedAgain,
    /// The leader told work to stop whose worker had asked for a restart.
    StoppedForRestart,
    /// An agent learnt from a status what an epoch last ran with.
    LearntFromStatus,
    /// An epoch that was changed was started again, with what it last ran with.
    ChangedStartedAgain,
    /// Work went on when its agent ended.
    OutlivedAgent,
    /// What went on of an earlier session was ended before the next one began.
    SurvivorEnded,
    /// Fenced work got its next epoch while the wait went on.
    MovedByFence,
    /// Fenced work was started while an earlier epoch of it went on, which is refused from then on.
    Superseded,
    /// The leader's wait ended, and a loose assignment stayed.
    LooseKept,
    /// The leader told work to stop that its worker does not start, since its driver holds it worse.
    StoppedAsUnfit,
}

impl Seen {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();
    /// All of them.
    pub const ALL: [Self; 26] = [
        Self::MovedByReport,
        Self::MovedByWait,
        Self::AdmittedByAttest,
        Self::AdmittedByWait,
        Self::Forgotten,
        Self::FenceHeld,
        Self::TwoBelieve,
        Self::StatusRefused,
        Self::LateProof,
        Self::AgentStopped,
        Self::GuardKilled,
        Self::EndedBeforeLease,
        Self::OutlivedSession,
        Self::TwinRan,
        Self::ChangeTaken,
        Self::RestartNeeded,
        Self::NotStartedAgain,
        Self::StoppedForRestart,
        Self::LearntFromStatus,
        Self::ChangedStartedAgain,
        Self::OutlivedAgent,
        Self::SurvivorEnded,
        Self::MovedByFence,
        Self::Superseded,
        Self::LooseKept,
        Self::StoppedAsUnfit,
    ];

    /// What is noteworthy in a step, if anything.
    #[must_use]
    pub fn in_step(before: &State, step: Step, after: &State, rules: &Rules) -> Option<Self> {
        match step {
            Step::Decide(_, write) | Step::Request(_, write) if !rules.late_messages => Self::in_write(before, write),
            Step::Commit(m) => {
                let sent = before.masters[m].sent?;
                if before.election.contains(&sent.fence) { Self::in_write(before, sent.write) } else { Some(Self::FenceHeld) }
            }
            Step::BecomeLeader(_) => after.masters.iter().all(|m| m.leads != 0).then_some(Self::TwoBelieve),
            Step::StatusArrives(_) => (before.etcd == after.etcd).then_some(Self::StatusRefused),
            Step::Proved(p) => (before.processes[p].proof < rules.authority).then_some(Self::LateProof),
            Step::Start(p, name) => Self::in_start(before, p, name, after),
            Step::Revoke(_) | Step::LeaseEnds(_) => {
                let runs = |id: usize| (0..NAMES).any(|n| after.processes[id].runs[n] != 0);
                let gone = |id: usize| before.etcd.workers[id].registration.is_some() && after.etcd.workers[id].registration.is_none();
                (0..before.etcd.workers.len()).any(|id| gone(id) && runs(id)).then_some(Self::OutlivedSession)
            }
            Step::Tick => Self::in_tick(before, after),
            Step::Take(..) => Some(Self::ChangeTaken),
            Step::NeedRestart(p, name) => {
                Some(if after.processes[p].runs[name] != 0 { Self::RestartNeeded } else { Self::NotStartedAgain })
            }
            Step::List(p) => {
                let learnt = |n: usize| before.processes[p].memory[n].epoch != after.processes[p].memory[n].epoch;
                (0..NAMES).any(|n| learnt(n) && after.processes[p].memory[n].epoch != 0).then_some(Self::LearntFromStatus)
            }
            Step::Crash(p) | Step::Reboot(p) => (before.processes[p].strays != after.processes[p].strays).then_some(Self::OutlivedAgent),
            Step::EndSurvivors(_) => Some(Self::SurvivorEnded),
            _ => None,
        }
    }

    fn in_write(before: &State, write: Write) -> Option<Self> {
        let assignment = |id: usize, name: usize| before.etcd.workers[id].assignments[name];
        match write {
            Write::Move { admitted: None, .. } => Some(Self::MovedByReport),
            Write::Move { from, name, .. } => {
                let fenced = assignment(from, name).is_some_and(|a| a.holds == Holds::Fenced);
                Some(if fenced { Self::MovedByFence } else { Self::MovedByWait })
            }
            Write::Admit { id, before: earlier, .. } if earlier != 0 => {
                let attests = before.etcd.workers[id].registration.is_some_and(|r| r.attests != 0);
                Some(if attests { Self::AdmittedByAttest } else { Self::AdmittedByWait })
            }
            Write::Forget { released, .. } if released != 0 => Some(Self::Forgotten),
            Write::Stop { name, id, .. } => {
                let (worker, assignment) = (&before.etcd.workers[id], assignment(id, name)?);
                let driver = worker.registration?.holds[name];
                let restart = worker.statuses[name].restart_for == assignment.spec;
                let unfit = driver == Holds::Loose && assignment.holds != Holds::Loose;
                if restart { Some(Self::StoppedForRestart) } else { unfit.then_some(Self::StoppedAsUnfit) }
            }
            _ => None,
        }
    }

    fn in_start(before: &State, p: usize, name: usize, after: &State) -> Option<Self> {
        let started = after.processes[p].runs[name];
        let older = |epoch: u8| epoch != 0 && epoch < before.outside[name].max(started);
        let goes_on = |other: &Process| older(other.runs[name]) || older(other.strays[name]);
        if after.outside != before.outside && before.processes.iter().any(goes_on) {
            return Some(Self::Superseded);
        }
        if before.processes[p].view?[name]?.version > 1 {
            return Some(Self::ChangedStartedAgain);
        }
        (p == before.processes.len() - 1).then_some(Self::TwinRan)
    }

    fn in_tick(before: &State, after: &State) -> Option<Self> {
        let of_process = before.processes.iter().zip(&after.processes).enumerate().find_map(|(p, (was, is))| {
            if was.runs == [0; NAMES] || is.runs != [0; NAMES] {
                return None;
            }
            let same_session = before.etcd.workers[ID_OF[p]].session() == was.session;
            Some(match was.mode {
                _ if was.strays != is.strays => Self::OutlivedAgent,
                Mode::Frozen => Self::GuardKilled,
                _ if same_session => Self::EndedBeforeLease,
                _ => Self::AgentStopped,
            })
        });
        let waited = |m: usize, id: usize| before.masters[m].waits[id] == Some(1) && after.masters[m].waits[id] == Some(0);
        let loose = |id: usize| after.etcd.workers[id].assignments.iter().flatten().any(|a| a.holds == Holds::Loose);
        let kept = (0..MASTERS).any(|m| (0..IDS).any(|id| waited(m, id) && loose(id)));
        of_process.or_else(|| kept.then_some(Self::LooseKept))
    }
}

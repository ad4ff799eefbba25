//! Which noteworthy events a run of the checker has gone through: a model in which nothing happens proves nothing.

use super::{
    rules::Rules,
    state::{ID_OF, Mode, NAMES, State, Write},
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
    /// Authority ended while the session still stood.
    EndedBeforeLease,
    /// Work ran on although its session was gone: for that there is the wait.
    OutlivedSession,
    /// A worker that was started twice ran work in its second place.
    TwinRan,
}

impl Seen {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();
    /// All of them.
    pub const ALL: [Self; 14] = [
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
            Step::Start(p, _) => (p == before.processes.len() - 1).then_some(Self::TwinRan),
            Step::Revoke(_) | Step::LeaseEnds(_) => {
                let runs = |id: usize| (0..NAMES).any(|n| after.processes[id].runs[n] != 0);
                let gone = |id: usize| before.etcd.workers[id].registration.is_some() && after.etcd.workers[id].registration.is_none();
                (0..before.etcd.workers.len()).any(|id| gone(id) && runs(id)).then_some(Self::OutlivedSession)
            }
            Step::Tick => Self::in_tick(before, after),
            _ => None,
        }
    }

    fn in_write(before: &State, write: Write) -> Option<Self> {
        match write {
            Write::Move { admitted, .. } => Some(if admitted.is_some() { Self::MovedByWait } else { Self::MovedByReport }),
            Write::Admit { id, before: earlier, .. } if earlier != 0 => {
                let attests = before.etcd.workers[id].registration.is_some_and(|r| r.attests != 0);
                Some(if attests { Self::AdmittedByAttest } else { Self::AdmittedByWait })
            }
            Write::Forget { released, .. } if released != 0 => Some(Self::Forgotten),
            _ => None,
        }
    }

    fn in_tick(before: &State, after: &State) -> Option<Self> {
        before.processes.iter().zip(&after.processes).enumerate().find_map(|(p, (was, is))| {
            if was.runs == [0; NAMES] || is.runs != [0; NAMES] {
                return None;
            }
            let stood = before.etcd.workers[ID_OF[p]].session() == was.session;
            Some(match was.mode {
                Mode::Frozen => Self::GuardKilled,
                _ if stood => Self::EndedBeforeLease,
                _ => Self::AgentStopped,
            })
        })
    }
}

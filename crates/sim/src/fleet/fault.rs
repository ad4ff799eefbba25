//! What goes wrong, and when: drawn from the seed before the run begins, so that a run can be repeated with fewer of them.

use std::{fmt, time::Duration};

use super::dice::Dice;
use crate::etcd::Direction;

/// How many of each there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Machines with a worker.
    pub workers: usize,
    /// Machines with a master.
    pub masters: usize,
    /// Members of etcd.
    pub members: usize,
    /// Resources, each with a caller.
    pub resources: usize,
    /// Resources that several callers share.
    pub shared: usize,
    /// Callers who create tasks; with none of them, no worker takes tasks.
    pub tasks: usize,
}

/// A machine by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// One with a worker.
    Worker(usize),
    /// One with a master.
    Master(usize),
}

/// Something that goes wrong. What lasts is undone at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL to an agent.
    KillAgent(usize),
    /// SIGSTOP to an agent, then SIGCONT.
    StopAgent(usize, Duration),
    /// SIGKILL to a guard.
    KillGuard(usize),
    /// SIGSTOP to a guard, then SIGCONT.
    StopGuard(usize, Duration),
    /// What an agent says to its guard is lost.
    LoseLink(usize, Duration),
    /// What an agent says to its guard arrives later.
    DelayLink(usize, Duration, Duration),
    /// An agent is killed, and the drivers of the next one do not say what survives.
    MuteDrivers(usize, Duration),
    /// A worker is told to leave; it is started again.
    Leave(usize),
    /// A machine with a worker loses its power, and gets it back.
    PowerOff(usize, Duration),
    /// A machine with a worker loses its power and its disk, and gets back another.
    WipeDisk(usize, Duration),
    /// An agent is killed, and what it has recorded is removed before the next one looks.
    WipeData(usize),
    /// SIGKILL to a master.
    KillMaster(usize),
    /// SIGSTOP to a master, then SIGCONT.
    StopMaster(usize, Duration),
    /// A master is told to end; it is started again.
    EndMaster(usize),
    /// A machine is cut off from etcd.
    Cut(Host, Direction, Duration),
    /// What a machine and etcd say to each other takes longer.
    Slow(Host, Duration, Duration),
    /// The answer to the next request of a machine is lost.
    LoseAnswer(Host),
    /// etcd ends the lease of a live worker, or of a master.
    Revoke(Host),
    /// The worst moment for a worker: messages take so long that a proof is answered well after its lease was revoked, and before the next one
    /// tells, nothing passes any more.
    Ambush(usize, Duration, Duration),
    /// SIGSTOP to a member of etcd.
    FreezeMember(usize, Duration),
    /// SIGKILL to a member of etcd; it is started again.
    KillMember(usize, Duration),
    /// A member's watches lag behind.
    LagMember(usize, Duration),
    /// A member is cut off from the others.
    IsolateMember(usize, Duration),
    /// All of etcd is frozen.
    FreezeAll(Duration),
    /// etcd forgets its history.
    Compact,
    /// etcd has no space.
    NoSpace(Duration),
}

/// A fault and its time, counted from the beginning of its round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Its number in the whole run.
    pub number: usize,
    /// When.
    pub at: Duration,
    /// What.
    pub fault: Fault,
}

const SECOND: Duration = Duration::from_secs(1);

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{} at {:.3} s: {:?}", self.number, self.at.as_secs_f64(), self.fault)
    }
}

/// Draws the faults of one round of this length, in the order of their times.
#[must_use]
pub fn draw(dice: &Dice, size: Size, round: Duration, first_number: usize) -> Vec<Planned> {
    let count = 2 + dice.below(9);
    let mut times: Vec<Duration> = (0..count).map(|_| dice.span(Duration::ZERO, round)).collect();
    times.sort_unstable();
    let mut drawn: Vec<(Duration, Fault)> = Vec::new();
    for at in times {
        let fault = fault(dice, size);
        drawn.push((at, fault));
        // What hurts most comes together: who hears nothing any more loses its lease as well, before its time.
        if let Some(host) = deaf(fault).filter(|_| dice.per_mille(400)) {
            drawn.push((at + dice.span(Duration::ZERO, SECOND), Fault::Revoke(host)));
        }
    }
    drawn.sort_by_key(|(at, _)| *at);
    drawn.into_iter().enumerate().map(|(index, (at, fault))| Planned { number: first_number + index, at, fault }).collect()
}

/// Disks that are wiped in one round, and data that is: what matters to tasks alone.
#[must_use]
pub fn draw_wipes(dice: &Dice, size: Size, round: Duration) -> Vec<(Duration, Fault)> {
    let mut drawn = Vec::new();
    for _ in 0..dice.below(3) {
        let (at, worker) = (dice.span(Duration::ZERO, round), index(dice, size.workers));
        drawn.push((at, if dice.per_mille(500) { Fault::WipeDisk(worker, lasting(dice)) } else { Fault::WipeData(worker) }));
        if dice.per_mille(500) {
            // What the agent has sent last comes late, and what the next one sends does not.
            let (delay, span) = (dice.span(SECOND / 4, SECOND * 2), dice.span(SECOND / 4, SECOND));
            drawn.push((at.saturating_sub(span), Fault::Slow(Host::Worker(worker), delay, span)));
        }
    }
    drawn
}

/// Who hears nothing of etcd for a while.
fn deaf(fault: Fault) -> Option<Host> {
    match fault {
        Fault::StopAgent(n, _) => Some(Host::Worker(n)),
        Fault::StopMaster(n, _) => Some(Host::Master(n)),
        Fault::Cut(host, ..) | Fault::Slow(host, ..) => Some(host),
        _ => None,
    }
}

/// A span for which something lasts: often about as long as the waits of the protocol, which is where it matters.
fn lasting(dice: &Dice) -> Duration {
    match dice.below(4) {
        0 => dice.span(SECOND / 20, SECOND * 2),
        1 => dice.span(SECOND * 2, SECOND * 5),
        2 => dice.span(SECOND * 4, SECOND * 8),
        _ => dice.span(SECOND * 5, SECOND * 25),
    }
}

fn index(dice: &Dice, bound: usize) -> usize {
    usize::try_from(dice.below(bound as u64)).unwrap_or(0)
}

fn host(dice: &Dice, size: Size) -> Host {
    if dice.per_mille(600) { Host::Worker(index(dice, size.workers)) } else { Host::Master(index(dice, size.masters)) }
}

fn fault(dice: &Dice, size: Size) -> Fault {
    let worker = index(dice, size.workers);
    let master = index(dice, size.masters);
    let member = index(dice, size.members);
    let span = lasting(dice);
    match dice.below(32) {
        0 | 1 => Fault::KillAgent(worker),
        2 | 3 => Fault::StopAgent(worker, span),
        4 => Fault::KillGuard(worker),
        5 => Fault::Leave(worker),
        6 => Fault::PowerOff(worker, span),
        7 | 8 => Fault::KillMaster(master),
        9 | 10 => Fault::StopMaster(master, span),
        11 => Fault::EndMaster(master),
        12..15 => Fault::Cut(host(dice, size), *dice.pick(&[Direction::Both, Direction::ToEtcd, Direction::FromEtcd]), span),
        15 => Fault::Slow(host(dice, size), dice.span(SECOND / 20, SECOND), span),
        16 => Fault::LoseAnswer(host(dice, size)),
        17 => Fault::Revoke(host(dice, size)),
        18 => Fault::FreezeMember(member, span),
        19 => Fault::KillMember(member, span),
        20 => Fault::LagMember(member, span),
        21 => Fault::IsolateMember(member, span),
        22 => Fault::FreezeAll(span),
        24 | 25 => Fault::Ambush(worker, dice.span(SECOND / 4, SECOND * 9 / 20), SECOND * 12),
        26 | 27 => Fault::StopGuard(worker, span),
        28 => Fault::LoseLink(worker, span),
        29 => Fault::DelayLink(worker, dice.span(SECOND / 10, SECOND * 5), span),
        30 | 31 => Fault::MuteDrivers(worker, span),
        _ if dice.per_mille(700) => Fault::Compact,
        _ => Fault::NoSpace(span),
    }
}

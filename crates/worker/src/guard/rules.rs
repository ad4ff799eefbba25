//! PURE: what the guard decides. Dead agent, dead work; end of authority, dead agent and dead work; then a new agent.
//!
//! The wheel: under worker::guard, which carries out what is decided here and tells what has happened; a simulator may do both in its
//! place. Nothing here reads a clock, waits, starts or kills.
//!
//! Whoever drives this asks [`Rules::next`], carries that out, and tells the outcome, again and again:
//!
//! | `next` says | what is done | what is told then |
//! |---|---|---|
//! | [`Next::Wait`] | sleep until something happens, or until that time | whatever happened: `heard`, `closed`, `ended`, `asked_to_end` |
//! | [`Next::AskToLeave`] | pass the request on to the agent | nothing |
//! | [`Next::Kill`] | kill the agent and all work; everything is dead and reaped | `killed` |
//! | [`Next::Start`] | start an agent and greet it | `started` or `not_started` |
//! | [`Next::Exit`] | end; nothing runs | nothing |
//!
//! What the agent has said must be told before the clock is asked: an extension that has arrived counts, however late it is read.

use std::time::Duration;

use super::{
    FINAL_STATUSES,
    wire::{Registered, ToGuard},
};
use crate::protocol::authority::BootTime;

/// An agent that lived for less died young.
const YOUNG: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A second request to end within this time is an echo of the first: some programs signal a process and then its whole group.
const ECHO: Duration = Duration::from_millis(300);
/// The exit status where the guard was asked to end and the agent did not leave in order.
const STATUS_NOT_LEFT: u8 = 1;

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Wait until something happens, and not beyond this time.
    Wait(Option<BootTime>),
    /// Ask the agent to leave. This is said once for each agent.
    AskToLeave,
    /// Kill the agent and all work, until all of it is dead and reaped. Nothing else is said before [`Rules::killed`].
    Kill(Why),
    /// Start an agent.
    Start(Start),
    /// End with this status. Nothing runs.
    Exit(u8),
}

/// Why everything is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Authority ended and was not extended.
    Authority,
    /// A script of a task outlives its time, and the agent has not ended it.
    Scripts,
    /// The agent ended, or closed its link, which it holds open to its end.
    Agent,
    /// The guard was asked to end more than once.
    Insisted,
}

/// The agent that is to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Its number, counted from 1 by this guard.
    pub generation: u64,
    /// The last session that an agent before it registered. Everything of it has been reaped.
    pub previous: Option<Registered>,
}

/// How an agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With this exit status.
    Exited(i32),
    /// By a signal.
    Signaled,
}

/// What the guard knows, and what follows from it.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    phase: Phase,
    /// The agents that were started so far.
    generation: u64,
    previous: Option<Registered>,
    /// Agents in a row that died young, or could not be started.
    young_deaths: u32,
    asked: Option<Asked>,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// No agent, and nothing runs.
    Idle { start_at: BootTime },
    /// The agent runs, or has just ended.
    Agent(Agent),
    /// Everything is being killed. Whatever the agent says now takes nothing back.
    Killing { agent: Agent, why: Why, since: BootTime },
    /// That was all.
    Over { status: u8 },
}

impl Default for Phase {
    fn default() -> Self {
        Self::Idle { start_at: BootTime(0) }
    }
}

#[derive(Clone, Copy, Debug)]
struct Agent {
    begun: BootTime,
    /// The end of its authority; none: nothing runs.
    kill_at: Option<BootTime>,
    /// When the first of its scripts has to have been killed; none: none runs.
    scripts_end: Option<BootTime>,
    /// It has closed its end of the link: it is ending, or as good as dead.
    silent: bool,
    ended: Option<Ended>,
    told_to_leave: bool,
}

/// A request to end.
#[derive(Clone, Copy, Debug)]
struct Asked {
    since: BootTime,
    signal: i32,
    insists: bool,
}

impl Rules {
    /// What is to be done now. A kill that was decided stays decided.
    pub fn next(&mut self, now: BootTime) -> Next {
        match &mut self.phase {
            Phase::Over { status } => Next::Exit(*status),
            Phase::Killing { why, .. } => Next::Kill(*why),
            Phase::Idle { start_at } => {
                if let Some(asked) = self.asked {
                    let status = status_of_signal(asked.signal);
                    self.phase = Phase::Over { status };
                    return Next::Exit(status);
                }
                if now < *start_at {
                    return Next::Wait(Some(*start_at));
                }
                Next::Start(Start { generation: self.generation + 1, previous: self.previous })
            }
            Phase::Agent(agent) => {
                if let Some(why) = why_kill(agent, self.asked, now) {
                    self.phase = Phase::Killing { agent: *agent, why, since: now };
                    return Next::Kill(why);
                }
                if self.asked.is_some() && !std::mem::replace(&mut agent.told_to_leave, true) {
                    return Next::AskToLeave;
                }
                Next::Wait(agent.kill_at.into_iter().chain(agent.scripts_end).min())
            }
        }
    }

    /// An agent was started, as [`Next::Start`] said.
    pub fn started(&mut self, now: BootTime) {
        self.generation += 1;
        self.phase = Phase::Agent(Agent { begun: now, kill_at: None, scripts_end: None, silent: false, ended: None, told_to_leave: false });
    }

    /// It could not be started: another attempt follows.
    pub fn not_started(&mut self, now: BootTime) {
        self.start_later(now, true);
    }

    /// The agent of this generation has said something. Nobody but the agent that lives extends anything: what another has said comes
    /// too late. A session that the last one registered counts even after its death, for the next one is to know of it.
    pub fn heard(&mut self, generation: u64, said: ToGuard) {
        if generation == 0 || generation != self.generation {
            return;
        }
        match (said, &mut self.phase) {
            (ToGuard::Authority(end), Phase::Agent(agent)) => agent.kill_at = end,
            (ToGuard::Scripts(end), Phase::Agent(agent)) => agent.scripts_end = end,
            (ToGuard::Authority(_) | ToGuard::Scripts(_), _) => {}
            (ToGuard::Registered(registered), _) => {
                if self.previous.is_none_or(|previous| previous.session < registered.session) {
                    self.previous = Some(registered);
                }
            }
        }
    }

    /// The agent of this generation has closed its link.
    pub fn closed(&mut self, generation: u64) {
        if let Some(agent) = self.agent(generation) {
            agent.silent = true;
        }
    }

    /// The agent of this generation has ended and was reaped.
    pub fn ended(&mut self, generation: u64, how: Ended) {
        if let Some(agent) = self.agent(generation) {
            agent.ended = agent.ended.or(Some(how));
        }
    }

    /// The guard was asked by a signal of this number to end.
    pub fn asked_to_end(&mut self, now: BootTime, signal: i32) {
        match &mut self.asked {
            None => self.asked = Some(Asked { since: now, signal, insists: false }),
            Some(asked) if now.since(asked.since) >= ECHO => (asked.signal, asked.insists) = (signal, true),
            Some(_) => {}
        }
    }

    /// Everything is dead and reaped, as [`Next::Kill`] said.
    pub fn killed(&mut self) {
        let Phase::Killing { agent, why, since } = self.phase else { return };
        let status = match (why, self.asked) {
            (Why::Insisted, Some(asked)) => Some(status_of_signal(asked.signal)),
            (_, asked) => final_status(agent.ended).or(asked.map(|_| STATUS_NOT_LEFT)),
        };
        match status {
            Some(status) => self.phase = Phase::Over { status },
            None => self.start_later(since, since.since(agent.begun) < YOUNG),
        }
    }

    /// Whether there will be no further agent.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over { .. })
    }

    /// Whether the guard was asked to end.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// The number of the agent that was started last; zero before the first.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    fn agent(&mut self, generation: u64) -> Option<&mut Agent> {
        match &mut self.phase {
            Phase::Agent(agent) | Phase::Killing { agent, .. } if generation == self.generation => Some(agent),
            _ => None,
        }
    }

    fn start_later(&mut self, now: BootTime, young: bool) {
        self.young_deaths = if young { self.young_deaths.saturating_add(1) } else { 0 };
        self.phase = Phase::Idle { start_at: now + pause_after(self.young_deaths) };
    }
}

fn why_kill(agent: &Agent, asked: Option<Asked>, now: BootTime) -> Option<Why> {
    if asked.is_some_and(|asked| asked.insists) {
        Some(Why::Insisted)
    } else if agent.kill_at.is_some_and(|at| at <= now) {
        Some(Why::Authority)
    } else if agent.scripts_end.is_some_and(|at| at <= now) {
        Some(Why::Scripts)
    } else if agent.ended.is_some() || agent.silent {
        Some(Why::Agent)
    } else {
        None
    }
}

/// The agent's own word that it is not to be started again.
fn final_status(ended: Option<Ended>) -> Option<u8> {
    match ended {
        Some(Ended::Exited(code)) if FINAL_STATUSES.contains(&code) => u8::try_from(code).ok(),
        _ => None,
    }
}

/// As shells tell it.
fn status_of_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(STATUS_NOT_LEFT)
}

/// How long after its death the agent is started again: at once the first time.
fn pause_after(young_deaths: u32) -> Duration {
    match young_deaths {
        0 | 1 => Duration::ZERO,
        n => FIRST_PAUSE.saturating_mul(1 << (n - 2).min(10)).min(LONGEST_PAUSE),
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;

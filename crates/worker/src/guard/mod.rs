//! The guard: a small process that starts the agent, holds all of its work, and kills it when authority ends or the agent dies.
//!
//! The wheel: around worker::agent, which it outlives. It decides nothing but this: dead agent, dead work; end of authority, dead agent
//! and dead work; then a new agent. It allocates nothing while it kills, and it never speaks to etcd. It runs on one thread, before any
//! other exists.

mod link;
mod reap;
mod wake;
pub(crate) mod wire;

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use evenkeel_model::WorkerId;
use nix::{sys::wait::WaitStatus, unistd::Pid};

use self::{
    reap::Reaper,
    wake::Wake,
    wire::{Inbox, ToAgent},
};
use crate::{
    authority::{BootTime, boot_time},
    containment::ContainmentMode,
    sys::{self, ChildSetup},
};

pub use link::{GuardLink, LinkError, LinkSender};
pub use wire::{Hello, Registered, ToGuard};

/// Exit statuses of the agent after which it is not started again, and which become the guard's own: it left (0), it was refused or
/// cannot go on as it is configured (1), it was called wrongly (2). After any other, or a signal, it is started again.
pub const FINAL_STATUSES: std::ops::RangeInclusive<i32> = 0..=2;
/// Exit status of an agent that wants to be started again.
pub const STATUS_AGAIN: u8 = 70;

/// An agent that lived for less died young.
const YOUNG: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A second request to end within this time is an echo of the first: some programs signal a process and then its whole group.
const ECHO: Duration = Duration::from_millis(300);

/// What the guard starts.
#[derive(Clone, Debug)]
pub struct GuardConfig {
    /// The agent's program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Names the cgroup of the work.
    pub worker: WorkerId,
    /// How work is held.
    pub containment: ContainmentMode,
}

/// Why there can be no guard.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The system refused something that the guard needs.
    #[error("the guard cannot {what}: {source}")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The agent could not be started even once.
    #[error("the guard cannot start its agent {}: {source}", program.display())]
    Agent {
        /// Its program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn system(what: &'static str) -> impl Fn(io::Error) -> GuardError {
    move |source| GuardError::System { what, source }
}

/// Runs until the worker has left or cannot go on; returns the exit status. Call it before any other thread exists.
///
/// # Errors
/// The guard could not begin. Nothing runs then.
pub fn run(config: GuardConfig) -> Result<u8, GuardError> {
    let mut guard = Guard {
        wake: Wake::new().map_err(system("watch signals"))?,
        reaper: Reaper::new(&config.worker, config.containment).map_err(system("hold processes"))?,
        id: draw_id().map_err(system("draw its id"))?,
        config,
        agent: None,
        start_at: None,
        young_deaths: 0,
        generation: 0,
        previous: None,
        leaving_since: None,
    };
    let status = guard.run();
    guard.reaper.end_all(None);
    guard.reaper.remove_cgroup();
    status
}

fn draw_id() -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

#[derive(Debug)]
struct Guard {
    config: GuardConfig,
    wake: Wake,
    reaper: Reaper,
    id: u64,
    agent: Option<Agent>,
    /// When the next agent is started, while there is none.
    start_at: Option<BootTime>,
    young_deaths: u32,
    generation: u64,
    previous: Option<Registered>,
    /// When it was asked to end.
    leaving_since: Option<BootTime>,
}

#[derive(Debug)]
struct Agent {
    pid: Pid,
    link: UnixStream,
    inbox: Inbox,
    begun: BootTime,
    /// The end of its authority; none: nothing runs.
    kill_at: Option<BootTime>,
    /// It has ended.
    ended: Option<WaitStatus>,
    /// It has closed its end of the link: it is ending, or as good as dead.
    silent: bool,
}

impl Guard {
    fn run(&mut self) -> Result<u8, GuardError> {
        self.start_agent().map_err(|source| GuardError::Agent { program: self.config.program.clone(), source })?;
        loop {
            if let Some(status) = self.step()? {
                return Ok(status);
            }
        }
    }

    /// Waits for one thing to happen and does what follows from it; the exit status, if that is the end.
    fn step(&mut self) -> Result<Option<u8>, GuardError> {
        let link = self.agent.as_ref().map(|agent| agent.link.as_fd());
        let until = self.agent.as_ref().map_or(self.start_at, |agent| agent.kill_at);
        let woken = self.wake.wait(link, until).map_err(system("wait"))?;

        // What the agent has said counts before its death, and before the time that has come.
        self.hear();
        let agent = self.agent.as_ref().map(|agent| agent.pid);
        let mut ended = None;
        self.reaper.reap(|pid, status| {
            if agent == Some(pid) {
                ended = Some(status);
            }
        });
        if let Some(agent) = &mut self.agent {
            agent.ended = ended.or(agent.ended);
        }
        if let Some(signal) = woken.asked_to_end {
            let now = boot_time();
            let insists = self.leaving_since.is_some_and(|since| now.since(since) >= ECHO);
            if insists || self.agent.is_none() {
                self.end_agent();
                return Ok(Some(u8::try_from(128 + signal).unwrap_or(1)));
            }
            if self.leaving_since.is_none() {
                self.leaving_since = Some(now);
                self.ask_to_leave();
            }
        }
        Ok(self.look_after_agent())
    }

    fn look_after_agent(&mut self) -> Option<u8> {
        let now = boot_time();
        let Some(agent) = &self.agent else {
            if self.start_at.is_some_and(|at| at <= now)
                && let Err(error) = self.start_agent()
            {
                tracing::error!(%error, program = %self.config.program.display(), "the agent cannot be started");
                self.start_later(now);
            }
            return None;
        };
        let over = agent.kill_at.is_some_and(|at| at <= now);
        if agent.ended.is_none() && !agent.silent && !over {
            return None;
        }
        let (pid, begun) = (agent.pid, agent.begun);
        let status = self.end_agent();
        if let Some(code) = final_status(status).or(self.leaving_since.map(|_| 1)) {
            return Some(code);
        }
        if over {
            tracing::error!(agent = %pid, "authority ended and was not extended: the agent and all work were killed; a new agent is started");
        } else {
            tracing::error!(agent = %pid, ended = ?status, "the agent ended: all of its work was killed; a new agent is started");
        }
        self.young_deaths = if now.since(begun) < YOUNG { self.young_deaths.saturating_add(1) } else { 0 };
        self.start_later(now);
        None
    }

    fn start_later(&mut self, now: BootTime) {
        self.start_at = Some(now + pause_after(self.young_deaths));
    }

    /// Kills the agent and all work, and returns when all of it is dead: how the agent ended.
    fn end_agent(&mut self) -> Option<WaitStatus> {
        let agent = self.agent.as_ref().map(|agent| (agent.pid, agent.ended));
        // The number of an agent that was reaped may be another's by now.
        let status = match agent {
            Some((_, Some(ended))) => {
                self.reaper.end_all(None);
                Some(ended)
            }
            Some((pid, None)) => self.reaper.end_all(Some(pid)),
            None => self.reaper.end_all(None),
        };
        // It may have registered a session right before its end.
        self.hear();
        self.agent = None;
        status
    }

    fn start_agent(&mut self) -> io::Result<()> {
        let (own, theirs) = UnixStream::pair()?;
        own.set_nonblocking(true)?;
        let hello = Hello { guard: self.id, generation: self.generation + 1, previous: self.previous, by_cgroup: self.reaper.by_cgroup() };
        io::Write::write_all(&mut &own, &ToAgent::Hello(hello).encode())?;
        // Of a group of its own: Ctrl+C at a terminal is for the guard, which asks the agent to leave.
        let mut command = Command::new(&self.config.program);
        command.args(&self.config.args).stdin(Stdio::from(OwnedFd::from(theirs))).process_group(0);
        sys::set_up(&mut command, ChildSetup::default());
        let child = command.spawn()?;
        let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
        self.generation += 1;
        self.start_at = None;
        self.agent = Some(Agent { pid, link: own, inbox: Inbox::new(), begun: boot_time(), kill_at: None, ended: None, silent: false });
        Ok(())
    }

    /// Takes in what the agent has said.
    fn hear(&mut self) {
        let Some(agent) = &mut self.agent else { return };
        loop {
            match (&agent.link).read(agent.inbox.room()) {
                Ok(0) => {
                    agent.silent = true;
                    return;
                }
                Ok(count) => match agent.inbox.filled(count).as_ref().and_then(ToGuard::decode) {
                    Some(ToGuard::Authority(end)) => agent.kill_at = end,
                    Some(ToGuard::Registered(registered)) => self.previous = Some(registered),
                    None => {}
                },
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn ask_to_leave(&mut self) {
        if let Some(agent) = &self.agent {
            let _ = io::Write::write_all(&mut &agent.link, &ToAgent::Leave.encode());
        }
    }
}

/// The agent's own word that it is not to be started again.
fn final_status(status: Option<WaitStatus>) -> Option<u8> {
    match status {
        Some(WaitStatus::Exited(_, code)) if FINAL_STATUSES.contains(&code) => u8::try_from(code).ok(),
        _ => None,
    }
}

/// How long after its death the agent is started again: at once the first time.
fn pause_after(young_deaths: u32) -> Duration {
    match young_deaths {
        0 | 1 => Duration::ZERO,
        n => FIRST_PAUSE.saturating_mul(1 << (n - 2).min(10)).min(LONGEST_PAUSE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restart_is_at_once_and_the_pause_is_bounded() {
        let pauses: Vec<u128> = (0..8).map(|n| pause_after(n).as_millis()).collect();
        assert_eq!(pauses, [0, 0, 500, 1000, 2000, 4000, 5000, 5000]);
        assert_eq!(pause_after(u32::MAX), LONGEST_PAUSE);
    }

    #[test]
    fn only_the_agents_own_word_is_final() {
        let exited = |code| Some(WaitStatus::Exited(Pid::from_raw(5), code));
        assert_eq!([exited(0), exited(1), exited(2)].map(final_status), [Some(0), Some(1), Some(2)]);
        let signaled = Some(WaitStatus::Signaled(Pid::from_raw(5), nix::sys::signal::Signal::SIGKILL, false));
        assert_eq!([exited(101), exited(i32::from(STATUS_AGAIN)), signaled, None].map(final_status), [None; 4]);
    }
}

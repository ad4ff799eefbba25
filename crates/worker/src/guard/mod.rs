//! The guard: a small process that starts the agent, holds all of its work, and kills it when authority ends or the agent dies.
//!
//! The wheel: around worker::agent, which it outlives. What it decides stands in [`rules`]; this file carries it out. It never speaks to etcd.
//! It runs on the first thread of its process. The only other one is the log's writer ([`crate::log_writer`]), which lets no signal through.
//! While anything runs the guard logs nothing, and while it kills it allocates nothing: neither a log that nobody reads nor a machine without
//! memory holds it up.

#[doc(hidden)]
pub mod fuzzing;
mod hardening;
mod leftovers;
mod link;
mod mark;
mod reap;
pub mod rules;
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
use nix::{
    sys::{signal::Signal, wait::WaitStatus},
    unistd::Pid,
};

use self::{
    leftovers::{Left, Leftovers},
    reap::Reaper,
    rules::{Ended, Next, Rules, Start, Why},
    wake::Wake,
    wire::{Inbox, ToAgent},
};
use crate::{
    hold::ContainmentMode,
    protocol::authority::{BootTime, boot_time},
    sys::{self, ChildSetup, OomScore},
};

pub use link::{GuardLink, LinkError, LinkSender};
pub use mark::{Mark, NoMark};
pub use wire::{Hello, Registered, ToGuard};

/// Exit statuses of the agent after which it is not started again, and which become the guard's own: it left (0), it was refused or
/// cannot go on as it is configured (1), it was called wrongly (2). After any other, or a signal, it is started again.
pub const FINAL_STATUSES: std::ops::RangeInclusive<i32> = 0..=2;
/// Exit status of an agent that wants to be started again.
pub const STATUS_AGAIN: u8 = 70;

/// These ask the guard to end.
pub(crate) const REQUESTS: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP];
/// More than the socket holds: whatever was said before the guard reads is heard.
const MESSAGES_AT_ONCE: u32 = 8192;
/// A list of processes is read one by one: what hops from process to process may be missed by one round, hardly by three in a row.
const CLEAN_ROUNDS: u32 = 3;
/// Between two looks at what a dead guard left: what was killed needs a moment.
const LEFTOVERS_PAUSE: Duration = Duration::from_millis(5);
/// What a dead guard left is said to be there for longer than a kill takes, and then every so often.
const LEFTOVERS_LATE: Duration = Duration::from_secs(5);
const LEFTOVERS_AGAIN: Duration = Duration::from_secs(60);

/// What the guard starts.
#[derive(Clone, Debug)]
pub struct GuardConfig {
    /// The agent's program: [`this_program`].
    pub program: PathBuf,
    /// What its command line begins with, for those who read lists of processes.
    pub arg0: OsString,
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
    /// Work is to be held by a cgroup, and none can be had.
    #[error(
        "--containment cgroup: no cgroup can be made here: {source}; give the worker one that it may write to \
         (Linux 5.14 or later; under systemd Delegate=yes), or leave --containment out"
    )]
    NoCgroup {
        /// Why not.
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

/// The program of this process, to be started again: the very file that runs, be it that another one was put in its place, or that it was
/// removed. So guard and agent are of one version.
///
/// # Errors
/// The system does not tell.
pub fn this_program() -> io::Result<PathBuf> {
    // The kernel follows this link to the file itself, not to its name.
    if cfg!(target_os = "linux") { Ok("/proc/self/exe".into()) } else { std::env::current_exe() }
}

/// Prepares this process for a guard: call it first of all, before the log has its thread.
pub fn prepare() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    sys::share_one_heap();
}

/// Runs until the worker has left or cannot go on; returns the exit status. Call it before any other thread exists than the log's writer.
///
/// # Errors
/// The guard could not begin. Nothing runs then.
pub fn run(config: GuardConfig) -> Result<u8, GuardError> {
    let mut guard = Guard::new(config)?;
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
    mark: Mark,
    /// What the agent gets back.
    oom_score: Option<OomScore>,
    rules: Rules,
    agent: Option<Agent>,
}

#[derive(Debug)]
struct Agent {
    generation: u64,
    pid: Pid,
    link: UnixStream,
    inbox: Inbox,
    /// How it ended, once it was reaped: its number may be another's by then.
    ended: Option<WaitStatus>,
}

impl Guard {
    fn new(config: GuardConfig) -> Result<Self, GuardError> {
        // Before anything is opened that the agent is to have.
        let oom_score = hardening::secure();
        let id = draw_id().map_err(system("draw its id"))?;
        let guard = Self {
            wake: Wake::new().map_err(system("watch signals"))?,
            reaper: Reaper::new(config.worker.clone(), id, config.containment)?,
            id,
            mark: Mark::of_this_process().map_err(system("tell itself from other guards"))?,
            config,
            oom_score,
            rules: Rules::default(),
            agent: None,
        };
        sys::keep_out().map_err(system("keep others from looking into it"))?;
        Ok(guard)
    }

    fn run(&mut self) -> Result<u8, GuardError> {
        self.end_leftovers()?;
        loop {
            match self.rules.next(boot_time()) {
                Next::Wait(until) => self.wait(until)?,
                Next::AskToLeave => self.ask_to_leave(),
                Next::Kill(why) => self.kill(why),
                Next::Start(start) => self.start(start)?,
                Next::Exit(status) => return Ok(status),
            }
        }
    }

    /// Ends what a guard of this worker left behind that was killed together with its agent. As long as any of it lives, no agent is started
    /// beside it: it might run the same work.
    fn end_leftovers(&mut self) -> Result<(), GuardError> {
        let look = system("look for what a killed guard left behind");
        let mut leftovers = Leftovers::of(self.config.worker.clone(), self.mark).map_err(&look)?;
        let begun = boot_time();
        let (mut say_at, mut clean, mut said) = (begun, 0, false);
        while clean < CLEAN_ROUNDS && !self.rules.is_asked() {
            let (left, now) = (leftovers.round(), boot_time());
            clean = if left.as_ref().is_ok_and(Left::is_empty) { clean + 1 } else { 0 };
            if clean == 0 && now >= say_at {
                say_at = if said { now + LEFTOVERS_AGAIN } else { now + LEFTOVERS_LATE };
                tell_of_leftovers(&left, std::mem::replace(&mut said, true));
            }
            let woken = self.wake.wait(None, Some(now + LEFTOVERS_PAUSE)).map_err(system("wait"))?;
            self.reaper.reap(|_, _| {});
            if let Some(signal) = woken.asked_to_end {
                self.rules.asked_to_end(boot_time(), signal);
            }
        }
        if said && clean > 0 {
            tracing::info!("nothing is left of the work of a killed guard");
        }
        Ok(())
    }

    /// Waits for something to happen, or for this time, and tells the rules what it was.
    fn wait(&mut self, until: Option<BootTime>) -> Result<(), GuardError> {
        let link = self.agent.as_ref().map(|agent| agent.link.as_fd());
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
        self.note_end(ended);
        if let Some(signal) = woken.asked_to_end {
            self.rules.asked_to_end(boot_time(), signal);
        }
        Ok(())
    }

    fn note_end(&mut self, ended: Option<WaitStatus>) {
        let (Some(agent), Some(status)) = (&mut self.agent, ended) else { return };
        agent.ended = Some(status);
        let how = match status {
            WaitStatus::Exited(_, code) => Ended::Exited(code),
            _ => Ended::Signaled,
        };
        self.rules.ended(agent.generation, how);
    }

    /// Kills the agent and all work, and returns when all of it is dead.
    fn kill(&mut self, why: Why) {
        let living = self.agent.as_ref().filter(|agent| agent.ended.is_none()).map(|agent| agent.pid);
        let ended = self.reaper.end_all(living);
        self.note_end(ended);
        // It may have registered a session right before its end.
        self.hear();
        self.rules.killed();
        let Some(agent) = self.agent.take() else { return };
        let (pid, ended) = (agent.pid, agent.ended);
        match why {
            _ if self.rules.is_over() => {}
            Why::Authority => {
                tracing::error!(agent = %pid, "authority ended and was not extended: the agent and all work were killed; a new agent is started");
            }
            Why::Scripts => {
                tracing::error!(agent = %pid, "a script of a task outlived its time: the agent and all work were killed; a new agent is started");
            }
            Why::Agent | Why::Insisted => {
                tracing::error!(agent = %pid, ?ended, "the agent ended: all of its work was killed; a new agent is started");
            }
        }
    }

    /// Starts an agent. That the first one cannot be started is the end.
    fn start(&mut self, start: Start) -> Result<(), GuardError> {
        match self.spawn(start) {
            Ok(agent) => {
                self.agent = Some(agent);
                self.rules.started(boot_time());
            }
            Err(source) if self.rules.generation() == 0 => {
                return Err(GuardError::Agent { program: self.config.program.clone(), source });
            }
            Err(error) => {
                tracing::error!(%error, program = %self.config.program.display(), "the agent cannot be started");
                self.rules.not_started(boot_time());
            }
        }
        Ok(())
    }

    fn spawn(&mut self, Start { generation, previous }: Start) -> io::Result<Agent> {
        self.reaper.renew().map_err(io::Error::other)?;
        let (own, theirs) = UnixStream::pair()?;
        own.set_nonblocking(true)?;
        let Mark { pid_namespace, started, .. } = self.mark;
        let hello = Hello { guard: self.id, generation, previous, by_cgroup: self.reaper.by_cgroup(), pid_namespace, started };
        io::Write::write_all(&mut &own, &ToAgent::Hello(hello).encode())?;
        // Of a group of its own: Ctrl+C at a terminal is for the guard, which asks the agent to leave.
        let mut command = Command::new(&self.config.program);
        command.arg0(&self.config.arg0).args(&self.config.args).stdin(Stdio::from(OwnedFd::from(theirs))).process_group(0);
        // If this process ends, the agent ends all work and itself: also one that was stopped, which this signal wakes.
        let (parent, death_signal) = (Some(nix::unistd::getpid()), Some(Signal::SIGCONT));
        // A signal to every process of a service is for the guard alone, too. If the agent died of it, nothing would be handed over.
        let blocked = Some(REQUESTS.into_iter().collect());
        sys::set_up(&mut command, ChildSetup { blocked, parent, death_signal, oom_score: self.oom_score, ..ChildSetup::default() });
        let child = command.spawn()?;
        let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
        Ok(Agent { generation, pid, link: own, inbox: Inbox::new(), ended: None })
    }

    /// Takes in what the agent has said. An agent that goes on and on is not listened to for ever: the time may have come.
    fn hear(&mut self) {
        let Some(agent) = &mut self.agent else { return };
        for _ in 0..MESSAGES_AT_ONCE {
            match (&agent.link).read(agent.inbox.room()) {
                Ok(0) => return self.rules.closed(agent.generation),
                Ok(count) => {
                    if let Some(said) = agent.inbox.filled(count).as_ref().and_then(ToGuard::decode) {
                        self.rules.heard(agent.generation, said);
                    }
                }
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

fn tell_of_leftovers(left: &io::Result<Left>, again: bool) {
    match left {
        Err(error) => tracing::error!(%error, "what a killed guard may have left behind cannot be seen: nothing is started meanwhile"),
        Ok(Left { cgroups, pids, refused }) if again => {
            tracing::error!(?cgroups, ?pids, ?refused, "the work of a killed guard does not die: nothing is started beside it");
        }
        Ok(Left { cgroups, pids, .. }) => tracing::warn!(?cgroups, ?pids, "ending the work that a killed guard left behind"),
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::time::Instant;

    use super::*;

    const ALONE: &str = "EVENKEEL_TEST_ALONE";

    /// Whether this process is the test's own. If it is not, the test was run in one. Other tests of a process that is shared kill what they do
    /// not know, or have children that this one would kill.
    pub(super) fn is_alone(name: &str) -> bool {
        let is_alone = std::env::var_os(ALONE).is_some();
        if !is_alone {
            let this = std::env::current_exe().expect("this program");
            let status = Command::new(this).args(["--exact", name, "--nocapture"]).env(ALONE, "1").status().expect("started");
            assert!(status.success());
        }
        is_alone
    }

    #[test]
    fn killing_allocates_nothing() {
        if !is_alone("guard::tests::killing_allocates_nothing") {
            return;
        }
        for containment in [ContainmentMode::Cgroup, ContainmentMode::Processes] {
            let worker = WorkerId::new("kill-allocates").expect("id");
            let script = "(setsid sh -c 'sleep 300 & sleep 300' &) ; sleep 300 & trap '' TERM; echo ready >&0; sleep 300";
            let args = ["-c".into(), script.into()].to_vec();
            let config = GuardConfig { program: "/bin/sh".into(), arg0: "sh".into(), args, worker: worker.clone(), containment };
            let mut guard = Guard::new(config).expect("guard");
            let Next::Start(start) = guard.rules.next(boot_time()) else { panic!("no start") };
            guard.start(start).expect("started");
            let agent = guard.agent.as_ref().map(|agent| agent.pid).expect("agent");
            if guard.reaper.by_cgroup() {
                let own = crate::hold::cgroup::own().expect("cgroup");
                let procs = crate::hold::cgroup::work_folder(&own, &worker, guard.id).join("cgroup.procs");
                std::fs::write(procs, agent.to_string()).expect("joined");
            }
            let mut said = [0; 6];
            let link = &guard.agent.as_ref().expect("agent").link;
            let begun = Instant::now();
            while (&mut &*link).read_exact(&mut said).is_err() {
                assert!(begun.elapsed() < Duration::from_secs(20));
            }
            guard.rules.heard(1, ToGuard::Authority(Some(BootTime(1))));
            let mut next = Next::Wait(None);
            let counted = allocation_counter::measure(|| {
                guard.hear();
                next = guard.rules.next(boot_time());
                guard.kill(Why::Authority);
            });
            assert_eq!((next, counted.count_total), (Next::Kill(Why::Authority), 0));
            assert_eq!(nix::sys::wait::waitpid(None, None), Err(nix::errno::Errno::ECHILD), "nobody is left");
            guard.reaper.remove_cgroup();
        }
    }
}

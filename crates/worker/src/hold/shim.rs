//! The shim: the small parent of one run. It starts the main process, reaps whatever descends from it, and knows when nothing is left.
//!
//! The wheel: between worker::driver and the work. It is a fork of the spawner and a subreaper: what loses its parent becomes its child,
//! whatever it has done to its session, its group, its environment or its user; so a run is over exactly when its shim has no child left. It
//! decides nothing but that: when the main process has ended, or its agent has gone, all that is left is killed.
//!
//! One thread, one loop: wait; hear the agent; hear the child; pass the output on; reap; kill what is to be killed; speak.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    path::PathBuf,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{Signal, kill, killpg},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getpid, getppid},
};

use super::{
    cgroup::Cgroup,
    child::{self, Streams, in_words, report},
    signals::Signals,
    sweep::{self, Rounds},
    wire::{Inbox, STUCK_EVERY, Start, ToAgent, ToShim},
};
use crate::{fault, protocol::authority::boot_time, sys};

/// So much output waits for the agent at most; beyond that the pipe holds it, and then the work waits.
const MOST_WAITING: usize = 256 << 10;
/// One read of output. A pipe holds 64 KiB unless it was told otherwise.
const CHUNK: usize = 16 << 10;
/// So many reads at most when all is dead, should somebody else hold the pipe and write on.
const LAST_CHUNKS: usize = 64;
/// So many processes that a main process has left are counted at the most: they live on meanwhile.
const MOST_COUNTED: u32 = 1000;
/// When a child that executes no program yet is told of. A file system that answers needs milliseconds: a second is well beyond, and short for who
/// waits.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is told again.
const REMINDER: Duration = Duration::from_secs(5);

/// What a run is about.
enum Phase {
    /// Nothing was asked for yet.
    Waiting,
    /// The child is on its way to its program.
    Starting(Starting),
    /// The main process executes its program.
    Running,
    /// The main process has ended, and what it has left lives on.
    Left,
    /// What is left is killed.
    Ending(Ending),
    /// Nothing is left.
    Over,
}

struct Starting {
    report: File,
    /// What the child has told so far.
    told: Vec<u8>,
    /// When it is told that this takes long.
    complain_at: Instant,
}

struct Ending {
    rounds: Rounds,
    next_round: Instant,
    complain_at: Instant,
}

/// The shim of one run.
pub(super) struct Shim {
    /// None: the agent has gone.
    agent: Option<UnixStream>,
    inbox: Inbox,
    outbox: Vec<u8>,
    signals: Signals,
    spawner: Pid,
    start: Option<Start>,
    phase: Phase,
    /// The main process, until it is reaped: its number may be another's then.
    main: Option<Pid>,
    output: Option<OwnedFd>,
    /// Stderr, where that is apart.
    errors: Option<OwnedFd>,
    cgroup: Option<Cgroup>,
}

/// Serves one run and ends this process.
pub(super) fn run(agent: UnixStream, spawner: Pid) -> ! {
    let status = match Shim::new(agent, spawner) {
        Ok(mut shim) => {
            shim.serve();
            0
        }
        // The agent sees the socket's end, and asks the spawner.
        Err(_) => 1,
    };
    sys::exit_now(status)
}

impl Shim {
    fn new(agent: UnixStream, spawner: Pid) -> io::Result<Self> {
        #[cfg(target_os = "linux")]
        {
            nix::sys::prctl::set_child_subreaper(true)?;
            let _ = nix::sys::prctl::set_name(c"evenkeel-shim");
            // It wakes a shim that was stopped, which then sees that its spawner has ended.
            nix::sys::prctl::set_pdeathsig(Signal::SIGCONT)?;
        }
        agent.set_nonblocking(true)?;
        let signals = Signals::hold()?;
        let outbox = ToAgent::Ready(getpid().as_raw()).encode();
        Ok(Self {
            agent: Some(agent),
            inbox: Inbox::default(),
            outbox,
            signals,
            spawner,
            start: None,
            phase: Phase::Waiting,
            main: None,
            output: None,
            errors: None,
            cgroup: None,
        })
    }

    fn serve(&mut self) {
        while !matches!(self.phase, Phase::Over) {
            self.speak();
            self.wait();
            self.hear_agent();
            self.hear_child();
            self.relay_output();
            let childless = self.reap();
            if childless && matches!(self.phase, Phase::Left) {
                self.end();
            }
            self.end_what_is_left(childless);
        }
        self.relay_last_output();
        if let Some(cgroup) = &self.cgroup {
            cgroup.remove();
        }
        self.say(&ToAgent::Empty);
        self.speak_to_the_end();
    }

    /// Waits until something happens, or the next thing is due.
    fn wait(&self) {
        let now = Instant::now();
        let due = match &self.phase {
            Phase::Starting(starting) => Some(starting.complain_at),
            Phase::Ending(ending) => Some(ending.next_round.min(ending.complain_at)),
            Phase::Waiting | Phase::Running | Phase::Left | Phase::Over => None,
        };
        let due = due.map(|at| at.saturating_duration_since(now)).into_iter().chain(Signals::PERIOD).min();
        let timeout = due.map_or(PollTimeout::NONE, |due| {
            // Rounded up: a wait that ends too early would only be made again.
            PollTimeout::try_from(due.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
        });
        let mut files = Vec::with_capacity(5);
        if let Some(signals) = self.signals.file() {
            files.push(PollFd::new(signals, PollFlags::POLLIN));
        }
        if let Some(agent) = &self.agent {
            let flags = if self.outbox.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLIN | PollFlags::POLLOUT };
            files.push(PollFd::new(agent.as_fd(), flags));
        }
        if self.takes_output() {
            files.extend([&self.output, &self.errors].into_iter().flatten().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        }
        if let Phase::Starting(Starting { report, .. }) = &self.phase {
            files.push(PollFd::new(report.as_fd(), PollFlags::POLLIN));
        }
        // An interrupted or failed wait is one that was short.
        let _ = poll(&mut files, timeout);
        self.signals.take();
    }

    fn takes_output(&self) -> bool {
        self.outbox.len() < MOST_WAITING
    }

    fn hear_agent(&mut self) {
        if getppid() != self.spawner {
            // Nobody reaps this process's orphans any more: the agent ends as well.
            self.agent = None;
        }
        let mut room = [0; CHUNK];
        while let Some(agent) = &mut self.agent {
            match agent.read(&mut room) {
                Ok(0) => self.agent = None,
                Ok(count) => self.inbox.add(&room[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.agent = None,
            }
        }
        loop {
            match self.inbox.take() {
                Ok(Some(frame)) => match ToShim::decode(&frame) {
                    Some(said) => self.obey(said),
                    None => self.agent = None,
                },
                Ok(None) => break,
                Err(_) => {
                    (self.agent, self.inbox) = (None, Inbox::default());
                    break;
                }
            }
        }
        if self.agent.is_none() {
            // Nobody reads it any more.
            (self.output, self.errors) = (None, None);
            self.end();
        }
    }

    fn obey(&mut self, said: ToShim) {
        match said {
            ToShim::Start(start) if matches!(self.phase, Phase::Waiting) => self.start(start),
            // A second one would be a second owner.
            ToShim::Start(_) => self.end(),
            ToShim::Signal(number) => self.signal(number),
            ToShim::Kill => self.end(),
        }
    }

    fn start(&mut self, start: Start) {
        if boot_time() >= start.not_after {
            self.say(&ToAgent::TooLate);
            return self.end();
        }
        match self.try_start(&start) {
            Ok((pid, starting)) => {
                self.main = Some(pid);
                self.phase = Phase::Starting(starting);
                self.start = Some(start);
                self.say(&ToAgent::Forked(pid.as_raw()));
            }
            Err(why) => {
                self.say(&ToAgent::Refused(why));
                self.end();
            }
        }
    }

    fn try_start(&mut self, start: &Start) -> Result<(Pid, Starting), String> {
        let system = |what: &'static str| move |error: io::Error| format!("cannot {what}: {}", in_words(&error));
        if !start.cgroup.is_empty() {
            let path = PathBuf::from(OsStr::from_bytes(start.cgroup.as_bytes()));
            let made = fault::at("shim.cgroup").and_then(|()| Cgroup::create(path));
            self.cgroup = Some(made.map_err(system("make the cgroup of the run"))?);
        }
        // No program inherits an end of them by itself.
        let pipe = || {
            let (read, write) = fault::at("shim.pipe").and_then(|()| io::pipe()).map_err(system("make a pipe"))?;
            Ok::<_, String>((OwnedFd::from(read), OwnedFd::from(write)))
        };
        let (output, output_end) = pipe()?;
        let (errors, errors_end) = if start.errors_apart { pipe().map(|(read, write)| (Some(read), Some(write)))? } else { (None, None) };
        let (report, report_end) = pipe()?;
        for file in [&output, &report].into_iter().chain(&errors) {
            // This end alone: work is to find its end as usual.
            fcntl(file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(io::Error::from).map_err(system("set up a pipe"))?;
        }
        let shim = getpid();
        let forked = fault::at("shim.fork").and_then(|()| sys::fork()).map_err(|error| child::fork_refused(&error))?;
        match forked {
            // The shim has one thread, so its fork may do what it likes.
            sys::Forked::Child => {
                // The agent's socket is none of the work's.
                self.agent = None;
                child::become_program(start, Streams { output: output_end, errors: errors_end, report: File::from(report_end) }, shim)
            }
            sys::Forked::Parent(pid) => {
                let _ = fault::at("shim.forked");
                drop((output_end, errors_end, report_end));
                (self.output, self.errors) = (Some(output), errors);
                Ok((pid, Starting { report: File::from(report), told: Vec::new(), complain_at: Instant::now() + PATIENCE }))
            }
        }
    }

    /// What the child has told on the way to its program, and whether it is there.
    fn hear_child(&mut self) {
        let Phase::Starting(starting) = &mut self.phase else { return };
        let mut room = [0; 1024];
        let arrived = loop {
            match starting.report.read(&mut room) {
                Ok(0) => break true,
                Ok(count) => starting.told.extend_from_slice(&room[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break false,
                // The end of the child shows all the same.
                Err(_) => break true,
            }
        };
        if arrived {
            let why = starting.told.iter().position(|byte| *byte == report::FAILED).map(|at| starting.told.split_off(at + 1));
            match why {
                Some(why) => {
                    self.say(&ToAgent::Refused(String::from_utf8_lossy(&why).into_owned()));
                    // It ends by itself, and its status is nobody's business.
                    self.end();
                }
                None if starting.told.last() == Some(&report::EXEC) => {
                    self.phase = Phase::Running;
                    self.say(&ToAgent::Started);
                }
                // It was killed on the way.
                None => self.end(),
            }
        } else if starting.complain_at <= Instant::now() {
            starting.complain_at += REMINDER;
            let step = starting.told.last().copied();
            let what = self.start.as_ref().map(|start| held_up(start, step)).unwrap_or_default();
            self.say(&ToAgent::HeldUp(what));
        }
    }

    fn signal(&self, number: i32) {
        let (Some(main), Ok(signal)) = (self.main, Signal::try_from(number)) else { return };
        // A child that has no group of its own yet is alone.
        if killpg(main, signal) == Err(Errno::ESRCH) {
            let _ = kill(main, signal);
        }
        // What was stopped could not hear it.
        let _ = killpg(main, Signal::SIGCONT);
    }

    /// From now on whatever lives is killed.
    fn end(&mut self) {
        if !matches!(self.phase, Phase::Ending(_) | Phase::Over) {
            let now = Instant::now();
            self.phase = Phase::Ending(Ending { rounds: Rounds::new(), next_round: now, complain_at: now + STUCK_EVERY });
        }
    }

    /// Reaps whoever has ended. True: this process has no child.
    fn reap(&mut self) -> bool {
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => return false,
                Ok(status) => status,
                Err(Errno::EINTR) => continue,
                Err(errno) => return errno == Errno::ECHILD,
            };
            let (pid, raw) = match status {
                WaitStatus::Exited(pid, code) => (pid, code << 8),
                WaitStatus::Signaled(pid, signal, dumped) => (pid, signal as i32 | if dumped { 0x80 } else { 0 }),
                _ => continue,
            };
            if self.main == Some(pid) {
                // What it told before its end counts first.
                self.hear_child();
                self.main = None;
                let was_running = matches!(self.phase, Phase::Running);
                // Who stays with the main process alone has all of its output.
                if self.start.as_ref().is_some_and(|start| start.leaves_children) {
                    self.relay_last_output();
                }
                if was_running || matches!(self.phase, Phase::Ending(_)) {
                    self.say(&ToAgent::Exited(raw));
                }
                if was_running {
                    self.main_has_ended();
                } else {
                    self.end();
                }
            }
        }
    }

    /// By itself, or by a signal: how many it has left is told, if that is asked, and then they are killed, unless they are to live on.
    fn main_has_ended(&mut self) {
        // Who tells the streams of a run apart asks what became of it; for others nothing waits for the count.
        let is_asked = self.start.as_ref().is_some_and(|start| start.errors_apart);
        match if is_asked { sweep::living(MOST_COUNTED) } else { 0 } {
            0 => {}
            left => self.say(&ToAgent::Left(left)),
        }
        if self.start.as_ref().is_some_and(|start| start.leaves_children) {
            self.phase = Phase::Left;
        } else {
            self.end();
        }
    }

    fn end_what_is_left(&mut self, childless: bool) {
        let Phase::Ending(ending) = &mut self.phase else { return };
        let now = Instant::now();
        // A cgroup that cannot be asked may have somebody in it.
        let empty = self.cgroup.as_ref().is_none_or(|cgroup| cgroup.is_empty().unwrap_or(false));
        if childless && empty {
            self.phase = Phase::Over;
            return;
        }
        let complains = ending.complain_at <= now;
        if now < ending.next_round && !complains {
            return;
        }
        if complains {
            ending.complain_at = now + STUCK_EVERY;
        }
        if let Some(cgroup) = self.cgroup.as_ref().filter(|_| !empty) {
            let _ = fault::at("shim.cgroup.kill").and_then(|()| cgroup.kill());
        }
        if let Some(main) = self.main {
            let _ = killpg(main, Signal::SIGKILL);
            let _ = kill(main, Signal::SIGKILL);
        }
        let (pause, listed) = ending.rounds.round(|_| false);
        ending.next_round = now + pause;
        if complains {
            let what = match listed {
                Ok(()) => sweep::what_does_not_die(),
                Err(error) => format!("its processes cannot be listed: {}", in_words(&error)),
            };
            self.say(&ToAgent::Stuck(what));
        }
    }

    fn relay_output(&mut self) {
        while self.takes_output() && self.relay_once() {}
    }

    /// What those wrote that are dead by now is in the pipes.
    fn relay_last_output(&mut self) {
        for _ in 0..LAST_CHUNKS {
            if !self.relay_once() {
                return;
            }
        }
    }

    /// One read of each stream, so that none keeps the other waiting. False: there is nothing to read now.
    fn relay_once(&mut self) -> bool {
        let output = relay(&mut self.output).map(ToAgent::Output);
        let read = [output, relay(&mut self.errors).map(ToAgent::Errors)];
        read.iter().flatten().for_each(|said| self.say(said));
        read.iter().any(Option::is_some)
    }

    fn say(&mut self, said: &ToAgent) {
        if self.agent.is_some() {
            self.outbox.extend_from_slice(&said.encode());
        }
    }

    /// Writes what the socket takes.
    fn speak(&mut self) {
        while let Some(agent) = self.agent.as_mut().filter(|_| !self.outbox.is_empty()) {
            match agent.write(&self.outbox) {
                Ok(count) => drop(self.outbox.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.agent = None,
            }
        }
        self.outbox = Vec::new();
    }

    /// Nothing is left but to say so: it may wait for as long as the agent lives.
    fn speak_to_the_end(&mut self) {
        self.speak();
        while let Some(agent) = self.agent.as_ref().filter(|_| !self.outbox.is_empty()) {
            let _ = poll(&mut [PollFd::new(agent.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE);
            self.speak();
        }
    }
}

/// What there is to read; none: nothing now. A pipe whose other end nobody holds any more is given up.
fn relay(pipe: &mut Option<OwnedFd>) -> Option<Vec<u8>> {
    let mut room = [0; CHUNK];
    loop {
        match nix::unistd::read(pipe.as_ref()?, &mut room) {
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return None,
            Ok(count) if count > 0 => return Some(room[..count].to_vec()),
            Ok(_) | Err(_) => {
                *pipe = None;
                return None;
            }
        }
    }
}

/// What a child waits for that has told this step last.
fn held_up(start: &Start, step: Option<u8>) -> String {
    let waits = "the file system has not answered yet";
    match step {
        Some(report::CWD) => format!("{} {:?}: {waits}", start.terms.cwd(), start.cwd),
        Some(report::EXEC) => {
            format!("{} {:?}: {waits}", start.terms.program(), start.command.first().cloned().unwrap_or_default())
        }
        _ => "its process is being set up".to_owned(),
    }
}

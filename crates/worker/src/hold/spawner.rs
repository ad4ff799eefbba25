//! The spawner: a small process between the agent and its shims. It forks one shim a run, reaps it, and kills whatever a shim leaves behind.
//!
//! The wheel: under worker::hold. It is a fork of the agent, made while that had one thread, and stays of one thread, so that its own
//! forks are whole processes that share its memory. It is a subreaper: what a shim that was killed leaves behind becomes its child, and a
//! child that is no shim is somebody's leftover. It decides nothing, and speaks to no one but the agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getpid},
};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::{
    child, shim,
    signals::Signals,
    sweep::{self, Rounds},
    wire::ToAgent,
};
use crate::{fault, sys};

/// The pause before what could not be done is tried again.
const PAUSE: Duration = Duration::from_millis(2);
#[cfg(target_os = "linux")]
const RECEIVE: RecvFlags = RecvFlags::CMSG_CLOEXEC;
#[cfg(not(target_os = "linux"))]
const RECEIVE: RecvFlags = RecvFlags::empty();
/// The size of an order and of an answer: a verb and a run, 64 bits each, little-endian.
const SIZE: usize = 16;

/// What the agent asks of the spawner, and what the spawner answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Fork a shim for this run; its end of the run's socket comes with it. It is not answered: the shim speaks.
    Fork(u64),
    /// Kill the shim of this run and whatever it leaves behind; the answer is the same word, when all of it is dead.
    End(u64),
    /// Kill everything; the answer is the same word, when all of it is dead. Nothing is forked from then on.
    EndAll,
    /// Answer with the same word, at once.
    Ping,
}

impl Order {
    fn encode(self) -> [u8; SIZE] {
        let (verb, run) = match self {
            Self::Fork(run) => (1_u64, run),
            Self::End(run) => (2, run),
            Self::EndAll => (3, 0),
            Self::Ping => (4, 0),
        };
        let mut bytes = [0; SIZE];
        bytes[..8].copy_from_slice(&verb.to_le_bytes());
        bytes[8..].copy_from_slice(&run.to_le_bytes());
        bytes
    }

    fn decode(bytes: [u8; SIZE]) -> Option<Self> {
        let word = |at: usize| bytes[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or_default();
        match word(0) {
            1 => Some(Self::Fork(word(8))),
            2 => Some(Self::End(word(8))),
            3 => Some(Self::EndAll),
            4 => Some(Self::Ping),
            _ => None,
        }
    }

    /// Sends it, and waits until it is sent. A run's socket goes with it.
    pub(super) fn send(self, to: &UnixStream, socket: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let sockets = socket.map(|socket| [socket]);
        if let Some(sockets) = &sockets {
            ancillary.push(SendAncillaryMessage::ScmRights(sockets));
        }
        let bytes = self.encode();
        let sent = rustix::io::retry_on_intr(|| sendmsg(to, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::empty()))?;
        // The socket went with the first byte.
        (&mut &*to).write_all(&bytes[sent..])
    }

    /// Receives the next one; none at the end.
    pub(super) fn receive(from: &UnixStream) -> io::Result<Option<(Self, Option<OwnedFd>)>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; SIZE];
        let received = recvmsg(from, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RECEIVE)?.bytes;
        if received == 0 {
            return Ok(None);
        }
        if received < SIZE {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut socket = None;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                socket = files.last();
            }
        }
        let order = Self::decode(bytes).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Some((order, socket)))
    }
}

/// The agent's end of the socket to its spawner.
#[derive(Debug)]
pub(crate) struct Spawned(pub(super) UnixStream);

/// Forks the spawner. Call it before any other thread exists.
///
/// # Errors
/// The system refuses: too many processes, no memory, too few files.
pub(crate) fn fork() -> io::Result<Spawned> {
    let (agents, own) = UnixStream::pair()?;
    let agent = getpid();
    match sys::fork()? {
        sys::Forked::Parent(_) => Ok(Spawned(agents)),
        // Of the agent it touches nothing but its memory: no log, no runtime, none of its files.
        sys::Forked::Child => {
            drop(agents);
            sys::close_all_but(own.as_fd());
            sys::exit_now(match Spawner::new(own, agent).and_then(|mut spawner| spawner.serve()) {
                Ok(()) => 0,
                Err(_) => 1,
            })
        }
    }
}

struct Spawner {
    agent: UnixStream,
    signals: Signals,
    /// The living shims, with their runs.
    shims: BTreeMap<i32, u64>,
    runs: BTreeMap<u64, i32>,
    /// The runs whose end the agent asked for, and is not told yet.
    asked: BTreeSet<u64>,
    /// Everything is to end.
    ends: bool,
    leftovers: Leftovers,
    rounds: Rounds,
    next_round: Instant,
    /// A ping is to be answered.
    pinged: bool,
}

impl Spawner {
    fn new(agent: UnixStream, parent: Pid) -> io::Result<Self> {
        sys::hear_of_children()?;
        #[cfg(target_os = "linux")]
        {
            nix::sys::prctl::set_child_subreaper(true)?;
            let _ = nix::sys::prctl::set_name(c"evenkeel-spawn");
            // It wakes a spawner that was stopped, which then sees the socket's end.
            nix::sys::prctl::set_pdeathsig(Signal::SIGCONT)?;
        }
        if nix::unistd::getppid() != parent {
            return Err(Errno::ESRCH.into());
        }
        agent.set_nonblocking(true)?;
        Ok(Self {
            agent,
            signals: Signals::hold()?,
            shims: BTreeMap::new(),
            runs: BTreeMap::new(),
            asked: BTreeSet::new(),
            ends: false,
            leftovers: Leftovers::default(),
            rounds: Rounds::new(),
            next_round: Instant::now(),
            pinged: false,
        })
    }

    /// Until everything is dead that was to end, or nobody asks any more.
    fn serve(&mut self) -> io::Result<()> {
        let mut pause = None;
        loop {
            self.wait(pause);
            let listens = self.hear();
            let childless = self.reap();
            if self.ends && childless {
                // Nobody may hear it.
                let _ = Order::EndAll.send(&self.agent, None);
                return Ok(());
            }
            self.ends |= !listens;
            let next_round = self.end_leftovers()?.map(|at| at.saturating_duration_since(Instant::now()).max(PAUSE));
            let unsaid = (!self.answer()).then_some(PAUSE);
            pause = next_round.into_iter().chain(unsaid).min();
        }
    }

    fn wait(&self, pause: Option<Duration>) {
        let begun = Instant::now();
        let timeout = pause.into_iter().chain(Signals::PERIOD).min();
        let timeout = timeout.map_or(PollTimeout::NONE, |pause| PollTimeout::try_from(pause).unwrap_or(PollTimeout::MAX));
        let mut files = Vec::with_capacity(2);
        files.extend(self.signals.file().map(|signals| PollFd::new(signals, PollFlags::POLLIN)));
        if !self.ends {
            files.push(PollFd::new(self.agent.as_fd(), PollFlags::POLLIN));
        }
        // An interrupted or failed wait is one that was short; without a file it would be none.
        if poll(&mut files, timeout).is_err() && begun.elapsed() < PAUSE {
            std::thread::sleep(PAUSE);
        }
        self.signals.take();
    }

    /// Takes in what the agent asks for. False: it has gone.
    fn hear(&mut self) -> bool {
        loop {
            match Order::receive(&self.agent) {
                Ok(Some((Order::Fork(run), Some(socket)))) => self.fork(run, UnixStream::from(socket)),
                // The kernel had no room for the socket and has closed it: the agent sees its end, and asks.
                Ok(Some((Order::Fork(_), None))) => {}
                Ok(None) => return false,
                Ok(Some((Order::End(run), _))) => {
                    self.asked.insert(run);
                    if let Some(pid) = self.runs.get(&run) {
                        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
                    }
                }
                Ok(Some((Order::EndAll, _))) => self.ends = true,
                Ok(Some((Order::Ping, _))) => self.pinged = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            }
        }
    }

    fn fork(&mut self, run: u64, socket: UnixStream) {
        if self.ends {
            return;
        }
        let own = getpid();
        match fault::at("spawner.fork").and_then(|()| sys::fork()) {
            // The spawner has one thread, so its fork may do what it likes. Its files close with it.
            Ok(sys::Forked::Child) => {
                sys::close_all_but(socket.as_fd());
                shim::run(socket, own)
            }
            Ok(sys::Forked::Parent(pid)) => {
                self.shims.insert(pid.as_raw(), run);
                self.runs.insert(run, pid.as_raw());
            }
            Err(error) => {
                let said = [ToAgent::Refused(child::fork_refused(&error)), ToAgent::Empty].map(|said| said.encode()).concat();
                // What the agent has asked already is taken out: a socket that is closed over it would be reset, and the answer lost.
                let _ = socket.shutdown(Shutdown::Read);
                let mut unread = [0; 4096];
                while matches!((&mut &socket).read(&mut unread), Ok(count) if count > 0) {}
                // It is new, so that it has room for that. If not, the agent sees its end, and asks.
                let _ = (&mut &socket).write_all(&said);
            }
        }
    }

    /// Reaps whoever has ended. True: this process has no child.
    fn reap(&mut self) -> bool {
        loop {
            let (pid, well) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => return false,
                Ok(WaitStatus::Exited(pid, status)) => (pid, status == 0),
                Ok(WaitStatus::Signaled(pid, ..)) => (pid, false),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(errno) => return errno == Errno::ECHILD,
            };
            self.leftovers.of.remove(&pid.as_raw());
            if let Some(run) = self.shims.remove(&pid.as_raw()) {
                self.runs.remove(&run);
                // A shim that ended by itself had no child left.
                if !well {
                    self.leftovers.suspects.insert(run);
                }
            }
        }
    }

    /// Kills what shims have left behind; when to go on, if anything of that is there.
    fn end_leftovers(&mut self) -> io::Result<Option<Instant>> {
        if self.leftovers.is_empty() && !self.ends {
            return Ok(None);
        }
        let now = Instant::now();
        if self.leftovers.suspects.is_empty() && now < self.next_round {
            return Ok(Some(self.next_round));
        }
        // This process alone reaps its children, and does not meanwhile: the list is whole.
        match sweep::children(getpid().as_raw()) {
            Ok(children) => self.leftovers.ascribe(children.into_iter().filter(|pid| !self.shims.contains_key(pid))),
            // Without the list nobody could say that it is over: the agent sees this process end, and the guard ends all.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.ends => return Err(error),
            // A round that failed is followed by another.
            Err(_) => {}
        }
        if self.leftovers.is_empty() && !self.ends {
            self.rounds = Rounds::new();
            return Ok(None);
        }
        let (shims, ends) = (&self.shims, self.ends);
        let (pause, _) = self.rounds.round(|pid| !ends && shims.contains_key(&pid));
        self.next_round = now + pause;
        Ok(Some(self.next_round))
    }

    /// Tells the agent which of the runs that it asked about are over. False: the socket did not take all of it.
    fn answer(&mut self) -> bool {
        let mut all = true;
        if self.pinged {
            self.pinged = Order::Ping.send(&self.agent, None).is_err();
            all &= !self.pinged;
        }
        let is_over = |run: &u64| !self.runs.contains_key(run) && !self.leftovers.may_be_of(*run);
        let over: Vec<u64> = self.asked.iter().copied().filter(is_over).collect();
        for run in over {
            if Order::End(run).send(&self.agent, None).is_ok() {
                self.asked.remove(&run);
            } else {
                all = false;
            }
        }
        all
    }
}

/// What shims have left behind, with the runs that each process may be of: what does not die of one run holds up no other. PURE.
#[derive(Debug, Default)]
struct Leftovers {
    /// The runs whose shims have not ended by themselves since the children were last listed.
    suspects: BTreeSet<u64>,
    of: BTreeMap<i32, BTreeSet<u64>>,
}

impl Leftovers {
    fn is_empty(&self) -> bool {
        self.suspects.is_empty() && self.of.is_empty()
    }

    /// Takes in a whole list of the children that are no shims. One that was not there before is of a run whose shim has died since, or
    /// descends from what was left before.
    fn ascribe(&mut self, children: impl Iterator<Item = i32>) {
        let runs: BTreeSet<u64> = self.suspects.iter().copied().chain(self.of.values().flatten().copied()).collect();
        for pid in children {
            self.of.entry(pid).or_insert_with(|| runs.clone());
        }
        self.suspects.clear();
    }

    /// Something of this run may live.
    fn may_be_of(&self, run: u64) -> bool {
        self.suspects.contains(&run) || self.of.values().any(|runs| runs.contains(&run))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_die_of_one_run_holds_up_no_other() {
        let mut left = Leftovers::default();
        left.suspects.insert(1);
        assert!(left.may_be_of(1), "nobody has looked yet");
        left.ascribe([70].into_iter());
        // It does not die. Another shim dies, and leaves something that does.
        left.suspects.insert(2);
        assert!(left.may_be_of(2));
        left.ascribe([70, 71].into_iter());
        assert!(left.may_be_of(1) && left.may_be_of(2));
        left.of.remove(&71);
        assert!(left.may_be_of(1) && !left.may_be_of(2));
        // A third leaves nothing.
        left.suspects.insert(3);
        left.ascribe([70].into_iter());
        assert!(!left.may_be_of(3));
        // What the first has left has a child, which outlives it.
        left.ascribe([70, 72].into_iter());
        left.of.remove(&70);
        assert!(left.may_be_of(1) && !left.is_empty());
        left.of.remove(&72);
        assert!(!left.may_be_of(1) && left.is_empty());
    }

    #[test]
    fn every_order_comes_back_with_its_socket() {
        let (a, b) = UnixStream::pair().expect("pair");
        let (run, other) = UnixStream::pair().expect("pair");
        Order::Fork(7).send(&a, Some(run.as_fd())).expect("sent");
        Order::End(u64::MAX).send(&a, None).expect("sent");
        Order::EndAll.send(&a, None).expect("sent");
        Order::Ping.send(&a, None).expect("sent");
        drop((a, run));
        let (order, socket) = Order::receive(&b).expect("received").expect("an order");
        assert_eq!(order, Order::Fork(7));
        drop(socket.expect("the socket"));
        assert_eq!(std::io::Read::read(&mut &other, &mut [0]).expect("read"), 0, "all its ends are closed");
        let next = || Order::receive(&b).expect("received").map(|(order, socket)| (order, socket.is_some()));
        let expected = [Order::End(u64::MAX), Order::EndAll, Order::Ping].map(|order| Some((order, false)));
        assert_eq!([next(), next(), next()], expected);
        assert_eq!(next(), None);
    }
}

//! The agent's end of the socket to its guard.
//!
//! The wheel: beside worker::agent. It says what it is told to say, and hears two things: a request to leave, and the guard's death.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, OnceLock},
    time::Duration,
};

use nix::sys::socket::{MsgFlags, send};
use tokio::sync::watch;

use super::{
    mark::Mark,
    wire::{FORMAT, Hello, Inbox, Registered, ToAgent, ToGuard},
};
use crate::{
    hold::spawner::{self, Spawned},
    protocol::authority::BootTime,
    sys,
};

/// The guard speaks at once.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);

static OPEN_TO_THE_END: OnceLock<Arc<UnixStream>> = OnceLock::new();

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Standard input is not the guard's socket.
    #[error("no guard started this process; run `evenkeel worker` instead")]
    NoGuard,
    /// The guard is of another version than this agent.
    #[error("the guard speaks format {theirs} and this agent format {FORMAT}: they are of two versions; restart the worker")]
    Format {
        /// What it speaks.
        theirs: u64,
    },
    /// The system refused something.
    #[error("the link to the guard fails: {0}")]
    Io(#[from] io::Error),
}

/// The agent's link to its guard.
#[derive(Debug)]
pub struct GuardLink {
    /// What the guard said first.
    pub hello: Hello,
    /// The guard's process.
    pub guard_pid: u32,
    stream: Arc<UnixStream>,
    /// What forks the shims of work, until it is taken over.
    spawned: Option<Spawned>,
}

/// Speaks to the guard, from anywhere.
#[derive(Clone)]
pub struct LinkSender(Arc<dyn Fn(ToGuard) -> bool + Send + Sync>);

impl GuardLink {
    /// Takes the link over from standard input, where the guard put it, and forks the process that is to hold work. Call it once, first of
    /// all: no other thread may exist yet.
    ///
    /// # Errors
    /// No guard started this process, or it says nothing; or no process can be made.
    pub fn open() -> Result<Self, LinkError> {
        let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        stream.local_addr().map_err(|_| LinkError::NoGuard)?;
        // No child may inherit the link: the guard's death is seen by its end.
        nix::unistd::dup2_stdin(OwnedFd::from(File::open("/dev/null")?)).map_err(io::Error::from)?;
        #[cfg(target_os = "linux")]
        let _ = nix::sys::prctl::set_name(c"evenkeel-agent");
        sys::keep_out()?;
        // Again: a program with capabilities of its own loses it when it is executed.
        #[cfg(target_os = "linux")]
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGCONT).map_err(io::Error::from)?;
        let mut link = Self::over(stream, nix::unistd::getppid().as_raw().unsigned_abs())?;
        link.spawned = Some(spawner::fork()?);
        // The guard takes the end of the link for the end of this process, so it must not come before.
        let _ = OPEN_TO_THE_END.set(Arc::clone(&link.stream));
        Ok(link)
    }

    /// A link over this socket, at whose other end the guard is.
    pub(crate) fn over(stream: UnixStream, guard_pid: u32) -> Result<Self, LinkError> {
        stream.set_read_timeout(Some(HELLO_DEADLINE))?;
        let hello = hear_hello(&stream)?;
        stream.set_read_timeout(None)?;
        Ok(Self { hello, guard_pid, stream: Arc::new(stream), spawned: None })
    }

    /// The process that holds work; there is one, and it is taken once.
    pub(crate) fn take_spawner(&mut self) -> Result<Spawned, LinkError> {
        self.spawned.take().ok_or(LinkError::NoGuard)
    }

    /// What speaks.
    #[must_use]
    pub fn sender(&self) -> LinkSender {
        let stream = Arc::clone(&self.stream);
        LinkSender::new(move |message| send_now(&stream, message))
    }

    /// Whether an agent of this guard has registered a session before.
    #[must_use]
    pub fn has_registered(&self) -> bool {
        self.hello.previous.is_some()
    }

    /// The guard's id as text.
    #[must_use]
    pub fn guard_id(&self) -> String {
        format!("{:016x}", self.hello.guard)
    }

    /// What all work bears in its environment: which guard holds it.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark { pid_namespace: self.hello.pid_namespace, pid: self.guard_pid, started: self.hello.started }
    }

    /// Listens on a thread of its own, which nothing else can hold up. The receiver turns true when the worker is to leave; when the
    /// guard has ended, `orphaned` is called on that thread, and must kill all work and end this process.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn listen(self, orphaned: impl FnOnce() + Send + 'static) -> io::Result<watch::Receiver<bool>> {
        let (leave, receiver) = watch::channel(false);
        std::thread::Builder::new().name("guard-link".to_owned()).spawn(move || {
            let mut inbox = Inbox::new();
            // A message that is not known is nothing to obey.
            while let Ok(message) = read(&self.stream, &mut inbox) {
                if message == Some(ToAgent::Leave) {
                    leave.send_replace(true);
                }
            }
            orphaned();
        })?;
        Ok(receiver)
    }
}

/// The first message. Its format is looked at before its size is: a guard of another version may say less.
fn hear_hello(mut stream: &UnixStream) -> Result<Hello, LinkError> {
    let mut inbox = Inbox::new();
    loop {
        let count = match stream.read(inbox.room()) {
            Ok(0) => return Err(LinkError::NoGuard),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        let message = inbox.filled(count);
        if let Some(theirs) = inbox.format_of_hello().filter(|theirs| *theirs != FORMAT) {
            return Err(LinkError::Format { theirs });
        }
        match message.as_ref().map(ToAgent::decode) {
            None => {}
            Some(Some(ToAgent::Hello(hello))) => return Ok(hello),
            Some(_) => return Err(LinkError::NoGuard),
        }
    }
}

/// The next message; none if its tag is not known.
fn read(mut stream: &UnixStream, inbox: &mut Inbox) -> io::Result<Option<ToAgent>> {
    loop {
        match stream.read(inbox.room()) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                if let Some(message) = inbox.filled(count) {
                    return Ok(ToAgent::decode(&message));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl LinkSender {
    /// Speaks by `send`, which must not wait, and answers whether the message is on its way.
    pub fn new(send: impl Fn(ToGuard) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(send))
    }

    /// Tells when everything is to be killed; none: nothing runs. False if the guard cannot be told: then nothing may be started.
    #[must_use]
    pub fn authority(&self, kill_at: Option<BootTime>) -> bool {
        (self.0)(ToGuard::Authority(kill_at))
    }

    /// Tells by when the first script of a task has to have been killed; none: none runs. False if the guard cannot be told: then none may be executed.
    #[must_use]
    pub fn scripts(&self, end: Option<BootTime>) -> bool {
        (self.0)(ToGuard::Scripts(end))
    }

    /// Tells what was registered. False if the guard cannot be told.
    #[must_use]
    pub fn registered(&self, registered: Registered) -> bool {
        (self.0)(ToGuard::Registered(registered))
    }
}

impl fmt::Debug for LinkSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkSender").finish_non_exhaustive()
    }
}

/// Never waits: a guard that does not read is a guard that does not guard.
fn send_now(stream: &UnixStream, message: ToGuard) -> bool {
    let message = message.encode();
    send(std::os::fd::AsRawFd::as_raw_fd(stream), &message, MsgFlags::MSG_DONTWAIT) == Ok(message.len())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use evenkeel_model::Session;

    use super::*;

    #[test]
    fn both_sides_understand_each_other() {
        let (mut guard, agent) = UnixStream::pair().expect("pair");
        let previous = Some(Registered { session: Session(4), lease: 9 });
        let hello = Hello { guard: 0xab, generation: 2, previous, by_cgroup: false, pid_namespace: 3, started: 4 };
        guard.write_all(&ToAgent::Hello(hello).encode()).expect("hello");
        let link = GuardLink::over(agent, 1).expect("link");
        assert_eq!((link.hello, link.guard_id()), (hello, "00000000000000ab".to_owned()));
        assert_eq!(link.mark().to_string(), "3-1-4");

        let sender = link.sender();
        assert!(sender.authority(Some(BootTime(5))));
        let mut inbox = Inbox::new();
        let count = guard.read(inbox.room()).expect("read");
        assert_eq!(inbox.filled(count).as_ref().and_then(ToGuard::decode), Some(ToGuard::Authority(Some(BootTime(5)))));

        let (orphaned, when) = std::sync::mpsc::channel();
        let leave = link.listen(move || orphaned.send(()).expect("heard")).expect("thread");
        guard.write_all(&[9; super::super::wire::SIZE]).expect("unknown");
        guard.write_all(&ToAgent::Leave.encode()).expect("leave");
        drop(guard);
        when.recv_timeout(Duration::from_secs(10)).expect("the guard's end is seen");
        assert!(*leave.borrow(), "and the request that came before it");
        assert!(!sender.authority(None), "nobody hears any more");
    }

    /// The binary was replaced under a running guard of 0.1.0, whose hello has 48 bytes and no format; or under one to come.
    #[test]
    fn a_guard_of_another_version_is_refused_by_name() {
        let hello = |first: u64, size: usize| {
            let mut message = vec![0; size];
            message[..8].copy_from_slice(&first.to_le_bytes());
            message
        };
        for (message, expected) in [
            (hello(1, 48), "the guard speaks format 0 and this agent format 2: they are of two versions; restart the worker"),
            (hello(1 | 3 << 32, 128), "the guard speaks format 3 and this agent format 2: they are of two versions; restart the worker"),
            (hello(2, 64), "no guard started this process; run `evenkeel worker` instead"),
            (Vec::new(), "no guard started this process; run `evenkeel worker` instead"),
        ] {
            let (mut guard, agent) = UnixStream::pair().expect("pair");
            guard.write_all(&message).expect("said");
            // One that says less than is expected has not ended.
            let open = (!message.is_empty()).then_some(guard);
            assert_eq!(GuardLink::over(agent, 1).expect_err(expected).to_string(), expected);
            drop(open);
        }
    }
}

//! What the resources of a scenario run: this test binary itself, as `chaos work`. It takes an exclusive lock on its resource's name and
//! writes down what becomes of it, for the oracle to judge.
//!
//! Beside the wheel. It knows nothing of workers and masters but what the environment tells every piece of work.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Write},
    os::fd::IntoRawFd,
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{SigSet, Signal},
    time::{ClockId, clock_gettime},
};

/// The folder of locks and of the log.
pub(crate) const FOLDER: &str = "CHAOS_WORK";
/// What the definition says that its owner may change.
pub(crate) const CONTENT: &str = "CHAOS_CONTENT";
/// How it behaves: see [`Manner`].
pub(crate) const MANNER: &str = "CHAOS_MANNER";

/// How a piece of work behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Ends when it is asked to.
    #[default]
    Good,
    /// Does not end when it is asked to.
    Deaf,
    /// Leaves a grandchild in a session of its own, which holds the lock.
    Escapes,
    /// Grandchildren that go on forking, each of which holds the lock.
    Forks,
    /// A deaf child that holds its output.
    Pipe,
    /// A setuid helper makes a child another user's, in a session of its own.
    Becomes,
    /// A child that is its parent's, as `clone(CLONE_PARENT)` makes it.
    Sibling,
    /// A grandchild in a session of its own, without the environment by which workers know theirs.
    Unmarked,
    /// Each process makes others, until their user may have no more of them, and again when one dies.
    Bomb,
    /// Writes to a sink that remembers the largest epoch, and ends when it is refused.
    Sinks,
}

impl Manner {
    const ALL: [(Self, &'static str); 10] = [
        (Self::Good, "good"),
        (Self::Deaf, "deaf"),
        (Self::Escapes, "escapes"),
        (Self::Forks, "forks"),
        (Self::Pipe, "pipe"),
        (Self::Becomes, "becomes"),
        (Self::Sibling, "sibling"),
        (Self::Unmarked, "unmarked"),
        (Self::Bomb, "bomb"),
        (Self::Sinks, "sinks"),
    ];

    pub(crate) fn as_str(self) -> &'static str {
        Self::ALL.into_iter().find(|(manner, _)| *manner == self).map_or("good", |(_, word)| word)
    }

    fn of(word: &str) -> Self {
        Self::ALL.into_iter().find(|(_, known)| *known == word).map_or(Self::Good, |(manner, _)| manner)
    }
}

/// Now, by the clock that all processes of a machine share and that never stands still, in nanoseconds.
pub(crate) fn boot_time() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("a clock");
    u64::try_from(now.tv_sec()).expect("after the boot") * 1_000_000_000 + u64::try_from(now.tv_nsec()).expect("after the boot")
}

/// A copy of `setpriv` beside the locks, which is root's and setuid where a scenario wants it.
pub(crate) const BECOME: &str = "become";
/// The marks of chaos itself, by which it finds what it has started.
const STAGE: &str = "CHAOS_STAGE";
const HOST: &str = "STAGE_NAME";

/// Root itself has no bound, so it becomes somebody who has.
const BOMB: &str = "
import os, resource, signal, time
if os.getuid() == 0:
    os.setgroups([])
    os.setresgid(61236, 61236, 61236)
    os.setresuid(61236, 61236, 61236)
resource.setrlimit(resource.RLIMIT_NPROC, (200, 200))
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    try:
        if os.fork() == 0:
            os.setsid()
    except OSError:
        time.sleep(0.05)
";

/// Its parent gets another child, and it waits for its own end.
const SIBLING: &str = "
import ctypes, os, platform, signal, sys
number = {\"x86_64\": 56, \"aarch64\": 220}[platform.machine()]
if ctypes.CDLL(None).syscall(number, 0x8000 | signal.SIGCHLD, 0, 0, 0, 0) == 0:
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.execvp(\"sleep\", [\"sleep\", \"1000\"])
signal.sigwait([signal.SIGTERM])
";

struct Work {
    folder: PathBuf,
    resource: String,
    epoch: String,
    worker: String,
    content: String,
}

/// Runs as a piece of work if this program was started as one.
pub(crate) fn run_if_asked() -> Option<ExitCode> {
    if std::env::args().nth(1).as_deref() != Some("work") {
        return None;
    }
    Some(run().map_or_else(
        |error| {
            eprintln!("{error}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    ))
}

/// Runs until it is told to end.
fn run() -> io::Result<()> {
    // Before any child exists: the request to end is waited for, so that nothing interrupts a line of the log.
    let mut asked = SigSet::empty();
    asked.add(Signal::SIGTERM);
    asked.thread_block()?;
    let word = |name: &str| std::env::var(name).unwrap_or_default();
    let work = Work {
        folder: word(FOLDER).into(),
        resource: word("EVENKEEL_RESOURCE"),
        epoch: word("EVENKEEL_EPOCH"),
        worker: word("EVENKEEL_WORKER"),
        content: word(CONTENT),
    };
    let manner = Manner::of(&word(MANNER));
    let lock = work.lock(manner)?;
    work.note("start")?;
    match manner {
        Manner::Good | Manner::Deaf => {}
        Manner::Escapes => hostile(&lock, "setsid sh -c \"trap '' TERM; setsid sleep 1000 & sleep 1000\" &")?,
        Manner::Forks => {
            // Two chains in which each process starts the next and ends, and a tree of sixteen that sleep.
            let chain = "hop() { (sleep 0.02; hop) & }; hop; hop";
            let tree = "grow() { [ $1 -gt 0 ] && { grow $(($1 - 1)) & grow $(($1 - 1)) & }; sleep 1000; }; grow 3 &";
            hostile(&lock, &format!("trap '' TERM; {chain}; {tree}"))?;
        }
        Manner::Pipe => hostile(&lock, "trap '' TERM; sleep 1000 &")?,
        Manner::Becomes => {
            let become_another = format!("{}/{BECOME} --reuid=61235 --regid=61235 --clear-groups", work.folder.display());
            let deaf = "sh -c 'trap \"\" TERM; sleep 1000'";
            hostile(&lock, &format!("setsid {become_another} {deaf} || setsid {deaf} &"))?;
        }
        Manner::Unmarked => {
            let keeps = [STAGE, HOST].map(|name| format!("{name}={}", word(name))).join(" ");
            hostile(&lock, &format!("env -i {keeps} setsid sh -c 'trap \"\" TERM; setsid sleep 1000 & sleep 1000' &"))?;
        }
        Manner::Bomb => hostile(&lock, &format!("python3 -c '{BOMB}' &"))?,
        Manner::Sibling => return Err(becomes_a_sibling(&lock)),
        Manner::Sinks => return work.sink(),
    }
    loop {
        asked.wait()?;
        if manner != Manner::Deaf {
            break;
        }
    }
    // What it leaves behind still holds the lock: the end of the work is then not this process's to tell.
    if manner == Manner::Good { work.note("stop") } else { Ok(()) }
}

/// Starts a script with a copy of the lock that stays open in all that it starts.
fn hostile(lock: &File, script: &str) -> io::Result<()> {
    // Unlike a file that the standard library opens, a plain copy is not closed when a program is executed.
    let _copy = nix::unistd::dup(lock)?.into_raw_fd();
    let mut child = Command::new("sh").args(["-c", script]).stdin(Stdio::null()).spawn()?;
    child.wait().map(drop)
}

/// Goes on as another program, which is the same process, and holds the lock.
fn becomes_a_sibling(lock: &File) -> io::Error {
    use std::os::unix::process::CommandExt;
    match nix::unistd::dup(lock) {
        // The last word tells a resource's own process.
        Ok(copy) => {
            let _copy = copy.into_raw_fd();
            Command::new("python3").args(["-c", SIBLING, "work"]).stdin(Stdio::null()).exec()
        }
        Err(error) => error.into(),
    }
}

impl Work {
    /// The lock, held. If somebody has it, that is written down before it is waited for.
    fn lock(&self, manner: Manner) -> io::Result<File> {
        let path = self.folder.join(format!("{}.lock", self.resource));
        let file = OpenOptions::new().create(true).write(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                self.note("overlap")?;
                // Who asks a sink need not wait: the sink knows who is late.
                if manner != Manner::Sinks {
                    file.lock()?;
                }
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        Ok(file)
    }

    fn note(&self, what: &str) -> io::Result<()> {
        let Self { resource, epoch, worker, content, .. } = self;
        let line = format!("{what} {} {resource} {epoch} {worker} {} {content}\n", boot_time(), std::process::id());
        OpenOptions::new().create(true).append(true).open(self.folder.join("log"))?.write_all(line.as_bytes())
    }

    /// Brings its epoch to the sink again and again, until the sink has seen a larger one.
    fn sink(&self) -> io::Result<()> {
        let own: u64 = self.epoch.parse().map_err(io::Error::other)?;
        let path = self.folder.join(format!("{}.sink", self.resource));
        loop {
            let mut sink = OpenOptions::new().create(true).read(true).append(true).open(&path)?;
            sink.lock()?;
            let seen = io::read_to_string(&sink)?.lines().filter_map(|line| line.parse::<u64>().ok()).max().unwrap_or(0);
            if own < seen {
                self.note("refused")?;
                return Ok(());
            }
            writeln!(sink, "{own}")?;
            drop(sink);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

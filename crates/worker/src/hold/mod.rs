//! Containment: what holds every process of one run, so that all of them can be killed, and known to be dead.
//!
//! The wheel: under worker::driver. Each run has a shim, the small parent of all of its processes; the shims are children of the spawner; where
//! the guard has a cgroup, a run has a cgroup of its own below it as well. This file is the agent's end: it asks the spawner for shims, and
//! speaks to them. It decides nothing: it kills when it is told to.
//!
//! | file | |
//! |---|---|
//! | `spawner.rs` | the process that forks shims, and ends what a killed shim leaves behind |
//! | `shim.rs`, `child.rs` | the parent of one run; its child on the way to the program |
//! | `wire.rs` | what agent and shim say to each other |
//! | `sweep.rs`, `procfs.rs`, `cgroup.rs`, `signals.rs` | one round of killing; the list of processes; cgroups; signals as a file |

pub(crate) mod cgroup;
pub(crate) mod child;
pub(crate) mod procfs;
mod shim;
mod signals;
pub(crate) mod spawner;
mod sweep;
pub(crate) mod wire;

use std::{
    collections::BTreeMap,
    ffi::CString,
    io,
    os::unix::{ffi::OsStringExt, net::UnixStream as StdStream},
    path::PathBuf,
    process::exit,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use evenkeel_model::WorkerId;
use nix::{
    errno::Errno,
    sys::signal::{Signal, killpg},
    unistd::getpgrp,
};
use tokio::{
    io::Interest,
    net::UnixStream,
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
};

use self::{
    cgroup::Cgroup,
    spawner::{Order, Spawned},
    wire::{Inbox, Start, ToAgent, ToShim},
};
use crate::{
    fault,
    guard::{Hello, Mark, STATUS_AGAIN},
    log_writer,
};

/// By which means a worker is to hold the processes of its work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContainmentMode {
    /// By a cgroup where it can be had, else as [`Self::Processes`].
    #[default]
    Auto,
    /// By a cgroup, or not at all: there is no guard without.
    Cgroup,
    /// By descent alone: who was born of whom, as subreapers keep it.
    Processes,
}

/// How a registration, a metric and the log call the means that is used.
#[must_use]
pub fn means_name(by_cgroup: bool) -> &'static str {
    if by_cgroup { "cgroup" } else { "processes" }
}

/// The environment variable that tells the processes of one guard from those of another.
pub(crate) const GUARD_MARK: &str = "EVENKEEL_GUARD";

/// Makes cells.
#[derive(Debug)]
pub(crate) struct Containment {
    /// The cgroup of all work; none: work is held by descent alone.
    work: Option<Cgroup>,
    mark: String,
    runs: AtomicU64,
    /// All work is being killed for good: nothing is started any more.
    ending: AtomicBool,
    orders: mpsc::Sender<(Order, Option<StdStream>)>,
    answers: Arc<Answers>,
    places: Arc<Semaphore>,
}

/// How many shims may be on their way at a time. The spawner forks one after another, so that more only wait.
const PLACES: usize = 256;

/// What the spawner has yet to answer.
#[derive(Debug, Default)]
struct Answers {
    ends: Mutex<BTreeMap<u64, oneshot::Sender<()>>>,
    /// How often the spawner, or a shim that it has forked, was heard: it lives.
    heard: AtomicU64,
    /// A ping that is not answered yet: thousands of callers need one.
    pinged: AtomicBool,
    all_ended: Mutex<bool>,
    ended: Condvar,
}

impl Containment {
    /// Takes over the spawner, and finds the cgroup that the guard made, if it says that it did.
    ///
    /// # Errors
    /// The cgroup cannot be opened, or no thread can be had.
    pub(crate) fn find(worker: &WorkerId, hello: Hello, guard: Mark, spawned: Spawned) -> io::Result<Self> {
        let work = if hello.by_cgroup {
            let own = cgroup::own().ok_or_else(|| io::Error::other("the cgroup of this process cannot be found"))?;
            let work = Cgroup::open(cgroup::work_folder(&own, worker, hello.guard))?;
            work.remove_children();
            Some(work)
        } else {
            None
        };
        let answers = Arc::<Answers>::default();
        let orders = speak(&spawned, Arc::clone(&answers))?;
        Ok(Self {
            work,
            mark: guard.to_string(),
            runs: AtomicU64::new(0),
            ending: AtomicBool::new(false),
            orders,
            answers,
            places: Arc::new(Semaphore::new(PLACES)),
        })
    }

    /// The mark that every process bears in its environment.
    pub(crate) fn mark(&self) -> &str {
        &self.mark
    }

    /// Work may be let gain privileges: whatever user it becomes, it can be killed.
    pub(crate) fn ends_any_user(&self) -> bool {
        self.work.is_some() || procfs::may_kill_any_user()
    }

    /// A cell for one run, with a shim on its way. It must be called within a tokio runtime. The label is for people, and has no slash.
    ///
    /// # Errors
    /// Too few files, or everything is being ended. Nothing was started then.
    pub(crate) fn cell(self: &Arc<Self>, label: &str) -> io::Result<Cell> {
        if self.ending.load(Ordering::SeqCst) {
            return Err(io::Error::other("the guard has ended"));
        }
        let run = self.runs.fetch_add(1, Ordering::Relaxed) + 1;
        let cgroup = self.work.as_ref().map(|work| work.path().join(format!("r-{label:.200}-{run}")));
        fault::at("agent.socket")?;
        let (own, shims) = StdStream::pair()?;
        own.set_nonblocking(true)?;
        // Before anything is asked for: if the runtime cannot watch the socket, nothing has begun.
        fault::at("agent.epoll")?;
        let stream = UnixStream::from_std(own)?;
        self.orders.send((Order::Fork(run), Some(shims))).map_err(|_| io::Error::other("the spawner has ended"))?;
        let containment = Arc::clone(self);
        Ok(Cell { containment, run, stream, inbox: Inbox::default(), outbox: Vec::new(), cgroup, over: false, deaf: false })
    }

    /// Ends this process if the cgroup of all work was removed: nothing can be started in it any more. The guard makes another one before it
    /// starts the next agent.
    pub(crate) fn check_cgroup(&self) {
        if let Some(work) = self.work.as_ref().filter(|work| !work.exists()) {
            tracing::error!(cgroup = %work.path().display(), "the cgroup of all work was removed: the agent ends, and its guard makes another");
            end_this_agent();
        }
    }

    /// Kills all work and waits for its end: the guard has ended, and nobody else would. From now on there are no new cells, and what ends is not
    /// taken for an end of its own. Blocks, for two seconds at the most: when this process ends, the shims end what is left.
    pub(crate) fn kill_all(&self) {
        const DEADLINE: Duration = Duration::from_secs(2);
        const LOOK: Duration = Duration::from_millis(50);
        self.ending.store(true, Ordering::SeqCst);
        self.places.close();
        let asked = self.orders.send((Order::EndAll, None)).is_ok();
        let begun = Instant::now();
        let mut ended = self.answers.all_ended.lock().unwrap_or_else(PoisonError::into_inner);
        while asked && !*ended && begun.elapsed() < DEADLINE {
            // The guard stops this process's group before it kills the work, and may have died in between.
            let _ = killpg(getpgrp(), Signal::SIGCONT);
            if let Some(work) = &self.work {
                let _ = work.kill();
            }
            ended = self.answers.ended.wait_timeout(ended, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        if let Some(work) = &self.work {
            work.remove();
        }
    }

    /// Makes sure that the spawner lives and turns. If it does not, this process has lost its hold on the work: it ends, and the guard ends
    /// the work.
    pub(crate) async fn check_spawner(&self) {
        /// It forks a hundred shims a second at the very least, beside ten thousand others on a machine that has too much to do.
        const DEADLINE: Duration = Duration::from_secs(10);
        let before = self.answers.heard.load(Ordering::SeqCst);
        if !self.answers.pinged.swap(true, Ordering::SeqCst) {
            let _ = self.orders.send((Order::Ping, None));
        }
        let end = tokio::time::Instant::now() + DEADLINE;
        // Whatever is heard will do: orders are worked off one after another, and a ping may stand behind thousands.
        while self.answers.heard.load(Ordering::SeqCst) == before {
            if tokio::time::Instant::now() >= end {
                tracing::error!("the spawner does not answer: the guard ends all work");
                end_this_agent();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills whatever is left of a run whose shim does not say that nothing is. Returns when all of it is dead.
    async fn end(&self, run: u64, cgroup: Option<&PathBuf>) {
        let (told, ended) = oneshot::channel();
        self.answers.ends.lock().unwrap_or_else(PoisonError::into_inner).insert(run, told);
        let asked = self.orders.send((Order::End(run), None)).is_ok();
        self.check_spawner().await;
        if !asked || ended.await.is_err() {
            // The spawner has ended, and this process ends by that.
            std::future::pending::<()>().await;
        }
        let Some(path) = cgroup else { return };
        let mut pause = Duration::from_millis(1);
        loop {
            match Cgroup::open(path.clone()) {
                Ok(group) if group.is_empty().unwrap_or(false) => return group.remove(),
                Ok(group) => drop(group.kill_each()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return,
                // What cannot be asked may have somebody in it.
                Err(_) => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Everything is being killed for good: what ends now has not ended by itself.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    /// A place among those whose shims are on their way; none: everything is being ended. A start waits for one, so that no burst takes more files
    /// than one a run, nor stands in the way of what else the spawner is asked.
    pub(crate) async fn place_to_start(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).acquire_owned().await.ok()
    }
}

/// The guard ends all work, and starts another agent.
fn end_this_agent() -> ! {
    log_writer::flush();
    exit(i32::from(STATUS_AGAIN))
}

/// Two threads speak to the spawner, so that one that is slow holds up nobody else. Without it this process has lost its hold on the work:
/// it ends, and the guard ends the work.
fn speak(spawned: &Spawned, answers: Arc<Answers>) -> io::Result<mpsc::Sender<(Order, Option<StdStream>)>> {
    const STACK: usize = 128 << 10;
    let (to, from) = (spawned.0.try_clone()?, spawned.0.try_clone()?);
    let (orders, received) = mpsc::channel::<(Order, Option<StdStream>)>();
    std::thread::Builder::new().name("spawner-out".to_owned()).stack_size(STACK).spawn(move || {
        for (order, socket) in received {
            let socket = socket.as_ref().map(std::os::fd::AsFd::as_fd);
            // What the kernel has no room for now is tried again. Anything else is the spawner's end, and shows at the other thread, too.
            while let Err(error) = fault::at("agent.order").and_then(|()| order.send(&to, socket)) {
                if !may_pass(&error) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    })?;
    std::thread::Builder::new().name("spawner-in".to_owned()).stack_size(STACK).spawn(move || {
        loop {
            match Order::receive(&from) {
                Ok(Some((Order::End(run), _))) => {
                    answers.heard.fetch_add(1, Ordering::SeqCst);
                    let told = answers.ends.lock().unwrap_or_else(PoisonError::into_inner).remove(&run);
                    let _ = told.map(|told| told.send(()));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Some((Order::Ping, _))) => {
                    answers.heard.fetch_add(1, Ordering::SeqCst);
                    answers.pinged.store(false, Ordering::SeqCst);
                }
                Ok(Some((Order::Fork(_), _))) => {}
                Ok(Some((Order::EndAll, _))) => break,
                Ok(None) | Err(_) => {
                    tracing::error!("the spawner has ended: the guard ends all work");
                    end_this_agent();
                }
            }
        }
        *answers.all_ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        answers.ended.notify_all();
    })?;
    Ok(orders)
}

/// Whether the kernel may take it a moment later.
fn may_pass(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(
        errno,
        Some(Errno::EINTR | Errno::EAGAIN | Errno::ENOMEM | Errno::ENOBUFS | Errno::ETOOMANYREFS | Errno::EMFILE | Errno::ENFILE)
    )
}

/// What a run has to say.
#[derive(Debug)]
pub enum FromShim {
    /// Its shim said this.
    Said(ToAgent),
    /// Its shim has gone without a last word. What it left behind has to be ended when its cell is cleared.
    Gone,
}

/// Holds every process of one run: the agent's end of it.
#[derive(Debug)]
pub(crate) struct Cell {
    containment: Arc<Containment>,
    run: u64,
    stream: UnixStream,
    inbox: Inbox,
    /// What the socket has not taken yet.
    outbox: Vec<u8>,
    cgroup: Option<PathBuf>,
    /// Nothing of the run is left.
    over: bool,
    /// Its shim does not hear.
    deaf: bool,
}

impl Cell {
    /// Asks the shim to start this, with the cell's own cgroup.
    pub(crate) fn start(&mut self, mut start: Start) {
        if let Some(path) = &self.cgroup {
            start.cgroup = CString::new(path.clone().into_os_string().into_vec()).unwrap_or_default();
        }
        self.say(&ToShim::Start(start));
    }

    /// Sends a signal to the main process and its group.
    pub(crate) fn signal(&mut self, number: i32) {
        self.say(&ToShim::Signal(number));
    }

    /// Kills all of it.
    pub(crate) fn kill(&mut self) {
        self.say(&ToShim::Kill);
    }

    /// It is written as far as the socket takes it, and the rest while the shim is listened to: an order never waits for another.
    fn say(&mut self, said: &ToShim) {
        self.outbox.extend_from_slice(&said.encode());
        self.write();
    }

    fn write(&mut self) {
        while !self.deaf && !self.outbox.is_empty() {
            match self.stream.try_write(&self.outbox) {
                Ok(count) => drop(self.outbox.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // It hears nothing more. What it has said is read all the same.
                Err(_) => self.deaf = true,
            }
        }
        self.outbox = Vec::new();
    }

    /// What it says next. It may be dropped before it is ready, and loses nothing by that.
    pub(crate) async fn next(&mut self) -> FromShim {
        loop {
            match self.inbox.take() {
                Ok(Some(frame)) => match ToAgent::decode(frame) {
                    Some(said) => {
                        self.over |= said == ToAgent::Empty;
                        if matches!(said, ToAgent::Ready(_)) {
                            self.containment.answers.heard.fetch_add(1, Ordering::SeqCst);
                        }
                        return FromShim::Said(said);
                    }
                    None => return FromShim::Gone,
                },
                Ok(None) => {}
                Err(_) => return FromShim::Gone,
            }
            self.write();
            let interest = if self.outbox.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
            // Who hears nothing more may yet have something to say, and says it or goes.
            if self.stream.ready(interest).await.is_err() {
                return FromShim::Gone;
            }
            let mut room = [0; 16 << 10];
            match self.stream.try_read(&mut room) {
                Ok(0) => return FromShim::Gone,
                Ok(count) => self.inbox.add(&room[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return FromShim::Gone,
            }
        }
    }

    /// Makes sure that nothing of it is left: by the shim's own last word, or else by the spawner, which kills the shim and what it held.
    pub(crate) async fn clear(self) {
        if !self.over {
            self.containment.end(self.run, self.cgroup.as_ref()).await;
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests;

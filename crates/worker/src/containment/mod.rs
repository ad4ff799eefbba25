//! Cells: what holds every process of one run, so that all of them can be killed, and known to be dead.
//!
//! The wheel: under worker::driver. A cell is a cgroup where the guard has one. Elsewhere it is the session of the main process, its
//! descendants, and the orphans that the guard adopted and that bear the run's mark in their environment.
//! It decides nothing: it kills when it is told to.

pub(crate) mod cgroup;
pub(crate) mod procfs;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use evenkeel_model::{Epoch, ResourceName, WorkerId};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

use self::{
    cgroup::Cgroup,
    procfs::{Processes, Stat},
};
use crate::{
    guard::{Hello, Mark},
    sys::ChildSetup,
};

/// By which means a worker is to hold the processes of its work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContainmentMode {
    /// By a cgroup where it can be had, else as [`Self::Processes`].
    #[default]
    Auto,
    /// By a cgroup, or not at all: there is no guard without.
    Cgroup,
    /// By descent and the list of processes.
    Processes,
}

/// How a registration, a metric and the log call the means that is used.
#[must_use]
pub fn means_name(by_cgroup: bool) -> &'static str {
    if by_cgroup { "cgroup" } else { "processes" }
}

/// So many lists in a row without anybody in them.
const CLEAN_ROUNDS: u32 = 10;

/// The environment variable that tells the processes of one guard from those of another.
pub(crate) const GUARD_MARK: &str = "EVENKEEL_GUARD";

/// Makes cells.
#[derive(Debug)]
pub(crate) struct Containment {
    means: Means,
    mark: String,
    cells: AtomicU64,
    /// All work is being killed for good: nothing is started any more.
    ending: AtomicBool,
}

#[derive(Debug)]
enum Means {
    Cgroup(Cgroup),
    Groups(Arc<Groups>),
}

#[derive(Debug)]
struct Groups {
    guard: i32,
    mark: String,
    scans: Mutex<Scans>,
    /// The main processes of the cells, which are their sessions' names too.
    mains: Mutex<BTreeSet<i32>>,
}

#[derive(Debug)]
struct Scans {
    processes: Processes,
    begun: Option<Instant>,
    last: Arc<Scan>,
}

/// A list of all processes.
#[derive(Debug, Default)]
struct Scan {
    all: Vec<Stat>,
    /// The guard reaped nobody meanwhile. If it did, somebody may have made a child and ended while the list was read.
    steady: bool,
}

/// What one round of killing has found.
#[derive(Debug, Default)]
struct Round {
    /// How many still lived.
    live: usize,
    /// Nobody can have been missed.
    conclusive: bool,
}

impl Containment {
    /// Finds the cgroup that the guard made, if it says that it did.
    ///
    /// # Errors
    /// The cgroup, or the list of processes, cannot be opened.
    pub(crate) fn find(worker: &WorkerId, hello: Hello, guard: Mark) -> io::Result<Self> {
        let mark = format!("{GUARD_MARK}={guard}");
        let means = if hello.by_cgroup {
            let own = cgroup::own().ok_or_else(|| io::Error::other("the cgroup of this process cannot be found"))?;
            let work = Cgroup::open(cgroup::work_folder(&own, worker, hello.guard))?;
            work.remove_children();
            Means::Cgroup(work)
        } else {
            let scans = Mutex::new(Scans { processes: Processes::open()?, begun: None, last: Arc::default() });
            let guard = i32::try_from(guard.pid).unwrap_or_default();
            Means::Groups(Arc::new(Groups { guard, mark: mark.clone(), scans, mains: Mutex::default() }))
        };
        Ok(Self { means, mark, cells: AtomicU64::new(0), ending: AtomicBool::new(false) })
    }

    /// The mark that every process bears in its environment.
    pub(crate) fn mark(&self) -> &str {
        self.mark.split_once('=').map_or("", |(_, mark)| mark)
    }

    /// A cell for one run.
    ///
    /// # Errors
    /// Its cgroup cannot be made, or everything is being ended.
    pub(crate) fn cell(&self, name: &ResourceName, epoch: Epoch) -> io::Result<Cell> {
        if self.ending.load(Ordering::SeqCst) {
            return Err(io::Error::other("the guard has ended"));
        }
        let means = match &self.means {
            Means::Cgroup(work) => {
                let number = self.cells.fetch_add(1, Ordering::Relaxed);
                let made = Cgroup::create(work.path().join(format!("r-{:.200}-{number}", name.as_str())));
                CellMeans::Cgroup(made.inspect_err(|_| self.end_without(work))?)
            }
            Means::Groups(groups) => CellMeans::Groups {
                groups: Arc::clone(groups),
                marks: [format!("EVENKEEL_RESOURCE={name}"), format!("EVENKEEL_EPOCH={epoch}")],
                main: None,
                dead: BTreeSet::new(),
            },
        };
        Ok(Cell { means, pid: None })
    }

    /// Ends this process if the cgroup of all work was removed: nothing can be started in it any more. The guard makes another one before it
    /// starts the next agent.
    fn end_without(&self, work: &Cgroup) {
        if !work.exists() {
            tracing::error!(cgroup = %work.path().display(), "the cgroup of all work was removed: the agent ends, and its guard makes another");
            crate::log_writer::flush();
            std::process::exit(i32::from(crate::guard::STATUS_AGAIN));
        }
    }

    /// Kills all work and waits for its end: the guard has ended, and nobody else would. From now on there are no new cells. Blocks.
    pub(crate) fn kill_all(&self) {
        self.ending.store(true, Ordering::SeqCst);
        match &self.means {
            Means::Cgroup(work) => {
                while !work.is_empty().unwrap_or(true) {
                    let _ = work.kill();
                    std::thread::sleep(Duration::from_millis(1));
                }
                work.remove();
            }
            Means::Groups(groups) => {
                // A single list may miss somebody. There is no guard left that would know.
                let mut clean = 0;
                while clean < CLEAN_ROUNDS {
                    clean = if groups.kill_all() == 0 { clean + 1 } else { 0 };
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }
}

/// Holds every process of one run.
#[derive(Debug)]
pub(crate) struct Cell {
    means: CellMeans,
    /// The main process, until it is reaped: after that its number may be another's.
    pid: Option<i32>,
}

#[derive(Debug)]
enum CellMeans {
    Cgroup(Cgroup),
    Groups {
        groups: Arc<Groups>,
        marks: [String; 2],
        main: Option<i32>,
        /// Children of the guard that were dead when they were last seen.
        dead: BTreeSet<i32>,
    },
}

impl Cell {
    /// How a child is set up to be in the cell from its first instruction on.
    pub(crate) fn setup(&self) -> io::Result<ChildSetup> {
        let cgroup = match &self.means {
            CellMeans::Cgroup(group) => Some(group.procs()?),
            CellMeans::Groups { .. } => None,
        };
        let (parent, death_signal) = (Some(nix::unistd::getpid()), Some(Signal::SIGKILL));
        Ok(ChildSetup { own_session: true, parent, death_signal, cgroup, ..ChildSetup::default() })
    }

    /// The main process runs.
    pub(crate) fn started(&mut self, pid: i32) {
        self.pid = Some(pid);
        if let CellMeans::Groups { groups, main, .. } = &mut self.means {
            *main = Some(pid);
            lock(&groups.mains).insert(pid);
        }
    }

    /// The main process has ended and was reaped.
    pub(crate) fn reaped(&mut self) {
        self.pid = None;
    }

    /// Signals the main process and its group.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid {
            let _ = killpg(Pid::from_raw(pid), signal);
        }
    }

    /// Kills whatever is left.
    pub(crate) async fn kill(&mut self) {
        self.sweep().await;
    }

    /// Kills whatever is left until nothing is. As long as the kernel cannot end a process, it waits.
    pub(crate) async fn clear(&mut self) {
        let mut pause = Duration::from_millis(1);
        while !self.sweep().await {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        if let CellMeans::Groups { groups, main, dead, .. } = &mut self.means {
            dead.clear();
            if let Some(pid) = main.take() {
                lock(&groups.mains).remove(&pid);
            }
        }
    }

    /// One round: true if nothing was left.
    async fn sweep(&mut self) -> bool {
        match &mut self.means {
            CellMeans::Cgroup(group) => {
                let empty = group.is_empty().unwrap_or(false);
                if !empty {
                    let _ = group.kill();
                }
                empty
            }
            CellMeans::Groups { groups, marks, main, dead } => {
                let (groups, marks, main, pid) = (Arc::clone(groups), marks.clone(), *main, self.pid);
                let (asked, mut known) = (Instant::now(), std::mem::take(dead));
                let round = tokio::task::spawn_blocking(move || {
                    let round = groups.kill_cell(&marks, main, pid, asked, &mut known);
                    (round, known)
                });
                let Ok((round, known)) = round.await else { return false };
                *dead = known;
                round.live == 0 && round.conclusive
            }
        }
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        // What is not empty cannot be removed, and the guard sees to it.
        if let CellMeans::Cgroup(group) = &self.means {
            group.remove();
        }
    }
}

impl Groups {
    /// A list of processes that was begun after `asked`. Those who ask meanwhile share one.
    fn scan(&self, asked: Instant) -> Arc<Scan> {
        let mut scans = lock(&self.scans);
        if scans.begun.is_none_or(|begun| begun < asked) {
            scans.begun = Some(Instant::now());
            let before = reaped_by(self.guard);
            let mut all = Vec::new();
            let read = scans.processes.each(|stat| all.push(stat));
            if let Err(error) = &read {
                tracing::warn!(%error, "the list of processes cannot be read");
            }
            scans.last = Arc::new(Scan { all, steady: read.is_ok() && before.is_some() && before == reaped_by(self.guard) });
        }
        Arc::clone(&scans.last)
    }

    /// Kills what belongs to one cell.
    ///
    /// A list is read process by process, so that work which makes a child and ends, again and again, could slip through. But if
    /// anything of it lives when the list is begun, then something of it is a child of the guard (or the main process). That child is
    /// found alive; or it is found dead, and was not before; or the guard has reaped it meanwhile. Else nobody was missed.
    fn kill_cell(&self, marks: &[String; 2], main: Option<i32>, pid: Option<i32>, asked: Instant, known: &mut BTreeSet<i32>) -> Round {
        let scan = self.scan(asked);
        let mains = lock(&self.mains).clone();
        let own = i32::try_from(std::process::id()).unwrap_or_default();
        let belongs = |stat: &Stat| {
            if pid == Some(stat.pid) || main.is_some_and(|main| stat.session == main || stat.group == main) {
                return true;
            }
            // Only an orphan can have left the tree of its main process, and the guard adopts orphans.
            if stat.parent != self.guard || stat.pid == own || mains.contains(&stat.session) {
                return false;
            }
            // One that has lost its marks is nobody's, so it must not outlive anyone. Only whole marks of another run save it.
            !settled_environment(stat.pid).is_some_and(|text| self.is_marked_by_another(&text, marks))
        };
        let live = kill_with_descendants(&scan.all, belongs, own);
        let dead: BTreeSet<i32> = scan.all.iter().filter(|stat| stat.dead && stat.parent == self.guard).map(|stat| stat.pid).collect();
        let conclusive = scan.steady && dead.is_subset(known);
        *known = dead;
        Round { live, conclusive }
    }

    /// The environment of a process names another run than the one that these marks name.
    fn is_marked_by_another(&self, environment: &[u8], marks: &[String; 2]) -> bool {
        // The process may end while its environment is read. A last entry that is cut off says nothing.
        let Some(end) = environment.iter().rposition(|b| *b == 0) else { return false };
        let whole = &environment[..end];
        let entry = |mark: &str| {
            let name = &mark[..=mark.find('=').unwrap_or_default()];
            whole.split(|b| *b == 0).find(|entry| entry.starts_with(name.as_bytes()))
        };
        let differs = marks.iter().any(|mark| entry(mark).is_some_and(|found| found != mark.as_bytes()));
        differs && entry(&self.mark) == Some(self.mark.as_bytes()) && marks.iter().all(|mark| entry(mark).is_some())
    }

    /// Kills every descendant of this process and everything that bears its guard's mark, while the list is being read: what is forked
    /// meanwhile stands further on in it. Returns how many lived.
    fn kill_all(&self) -> usize {
        let own = i32::try_from(std::process::id()).unwrap_or_default();
        let mut sessions = lock(&self.mains).clone();
        let (mut found, mut live) = (BTreeSet::from([own]), 0);
        let read = lock(&self.scans).processes.each(|stat| {
            if stat.pid == own || stat.dead {
                return;
            }
            let is_known = found.contains(&stat.parent) || sessions.contains(&stat.session);
            if is_known || is_marked(&stat, &self.mark) {
                let _ = kill(Pid::from_raw(stat.pid), Signal::SIGKILL);
                found.insert(stat.pid);
                // Work has sessions of its own, and nobody joins one from outside.
                if stat.session == stat.pid {
                    sessions.insert(stat.pid);
                }
                live += 1;
            }
        });
        if let Err(error) = read {
            tracing::warn!(%error, "the list of processes cannot be read");
        }
        live
    }
}

/// Whether a process bears this mark. One that is just executing another program has no environment for a moment; a thread of the
/// kernel never has.
fn is_marked(stat: &Stat, mark: &str) -> bool {
    const KTHREADD: i32 = 2;
    for _ in 0..200 {
        match environment(stat.pid) {
            Some(text) if text.is_empty() && stat.parent != KTHREADD && stat.pid != KTHREADD => std::thread::yield_now(),
            text => return text.is_some_and(|text| has_line(&text, mark)),
        }
    }
    false
}

/// A number that grows with every child that a process reaps: the page faults of all of them. No program runs without one.
#[cfg(target_os = "linux")]
fn reaped_by(pid: i32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let after = stat.iter().rposition(|b| *b == b')')?;
    std::str::from_utf8(&stat[after + 1..]).ok()?.split_ascii_whitespace().nth(8)?.parse().ok()
}

#[cfg(not(target_os = "linux"))]
fn reaped_by(_: i32) -> Option<u64> {
    Some(0)
}

/// Kills all that belong and their descendants, but not `own`; how many of them live.
fn kill_with_descendants(all: &[Stat], belongs: impl Fn(&Stat) -> bool, own: i32) -> usize {
    let mut children: BTreeMap<i32, Vec<&Stat>> = BTreeMap::new();
    for stat in all {
        children.entry(stat.parent).or_default().push(stat);
    }
    let mut open: Vec<&Stat> = all.iter().filter(|stat| stat.pid != own && belongs(stat)).collect();
    let mut seen = BTreeSet::new();
    let mut live = 0;
    while let Some(stat) = open.pop() {
        if stat.pid == own || !seen.insert(stat.pid) {
            continue;
        }
        open.extend(children.get(&stat.pid).into_iter().flatten());
        if !stat.dead {
            live += 1;
            let _ = kill(Pid::from_raw(stat.pid), Signal::SIGKILL);
        }
    }
    live
}

/// Kills the descendants of a process while it still binds them together: this system has no subreaper.
#[cfg(not(target_os = "linux"))]
pub(crate) fn kill_tree(processes: &mut Processes, root: Option<Pid>) {
    let Some(root) = root else { return };
    let _ = kill(root, Signal::SIGSTOP);
    let mut all = Vec::new();
    let _ = processes.each(|stat| all.push(stat));
    kill_with_descendants(&all, |stat| stat.parent == root.as_raw(), root.as_raw());
}

#[cfg(target_os = "linux")]
fn environment(pid: i32) -> Option<Vec<u8>> {
    fs::read(format!("/proc/{pid}/environ")).ok()
}

#[cfg(not(target_os = "linux"))]
fn environment(_: i32) -> Option<Vec<u8>> {
    None
}

/// A process that is just executing another program has no environment for a moment.
fn settled_environment(pid: i32) -> Option<Vec<u8>> {
    for _ in 0..3 {
        match environment(pid) {
            Some(text) if text.is_empty() => std::thread::sleep(Duration::from_millis(1)),
            text => return text,
        }
    }
    environment(pid)
}

fn has_line(environment: &[u8], line: &str) -> bool {
    environment.split(|b| *b == 0).any(|entry| entry == line.as_bytes())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

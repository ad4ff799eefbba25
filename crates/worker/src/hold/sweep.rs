//! One round of killing whatever descends from this process, and what of it does not die.
//!
//! The wheel: under worker::hold. A round may miss a process that is being made. Nobody concludes from it that nothing is left: the
//! caller is a subreaper, and has no child any more when that is so.

use std::{collections::BTreeSet, fs, io, time::Duration};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::{Pid, getpid},
};

use super::procfs::{self, Processes};

/// After so many rounds along the tree that met new processes the list of all is read, now and then: it meets what forks and ends without end.
const DEEP_EVERY: u32 = 16;
/// How many of those that do not die are named.
const NAMED: usize = 10;
/// The pause after the first round; the longest while rounds meet new processes; the longest when nothing new is met, for what does not die costs
/// little then. A signal tells of every end at once.
const PAUSES: (Duration, Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20), Duration::from_secs(1));

/// Rounds of killing, until somebody else finds that nobody is left.
#[derive(Debug)]
pub(super) struct Rounds {
    met: BTreeSet<i32>,
    /// How many rounds met somebody new.
    churn: u32,
    pause: Duration,
}

impl Rounds {
    pub(super) fn new() -> Self {
        Self { met: BTreeSet::new(), churn: 0, pause: PAUSES.0 }
    }

    /// One round: kills what descends from this process but not `spared`, nor what descends from them. When the next one is due, and whether the
    /// processes could be listed.
    pub(super) fn round(&mut self, spared: impl Fn(i32) -> bool) -> (Duration, io::Result<()>) {
        let is_deep = self.churn % DEEP_EVERY == DEEP_EVERY - 1;
        let pause = self.pause;
        let (met, listed) = match kill_descendants(is_deep, spared) {
            Ok(met) => (met, Ok(())),
            Err(error) => (BTreeSet::new(), Err(error)),
        };
        let is_news = !met.is_subset(&self.met);
        self.churn = self.churn.wrapping_add(u32::from(is_news));
        self.pause = (pause * 2).min(if is_news { PAUSES.1 } else { PAUSES.2 });
        self.met = met;
        (pause, listed)
    }
}

/// Kills what descends from this process but not `spared`, nor what descends from them: whom it met.
///
/// # Errors
/// The processes cannot be listed: too few files, say. Nothing is known then.
fn kill_descendants(is_deep: bool, spared: impl Fn(i32) -> bool) -> io::Result<BTreeSet<i32>> {
    if is_deep || cfg!(not(target_os = "linux")) {
        return kill_by_list(&spared);
    }
    let mut open = match children(getpid().as_raw()) {
        Err(error) if is_unknown_here(&error) => return kill_by_list(&spared),
        found => found?,
    };
    open.retain(|pid| !spared(*pid));
    let mut met = BTreeSet::new();
    while let Some(pid) = open.pop() {
        // Read first: at its end its children become this process's, and are met in the next round.
        let below = children(pid);
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        met.insert(pid);
        open.extend(below?);
    }
    Ok(met)
}

/// The children of a process, as the kernel keeps them; none if it is gone. Of this process, which nobody else reaps, the list is whole:
/// a child leaves it only when it is reaped.
///
/// # Errors
/// They cannot be read.
#[cfg(not(target_os = "linux"))]
pub(super) fn children(pid: i32) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    Processes::open()?.each(|stat| found.extend((stat.parent == pid).then_some(stat.pid)))?;
    Ok(found)
}

/// The children of a process, as the kernel keeps them; none if it is gone. Of this process, which nobody else reaps, the list is whole:
/// a child leaves it only when it is reaped.
///
/// # Errors
/// They cannot be read.
#[cfg(target_os = "linux")]
pub(super) fn children(pid: i32) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    let tasks = match fs::read_dir(format!("/proc/{pid}/task")) {
        Ok(tasks) => tasks,
        Err(error) if procfs::is_gone(&error) => return Ok(found),
        Err(error) => return Err(error),
    };
    for task in tasks {
        let task = match task {
            Ok(task) => task,
            Err(error) if procfs::is_gone(&error) => break,
            Err(error) => return Err(error),
        };
        match fs::read_to_string(task.path().join("children")) {
            Ok(text) => found.extend(text.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok())),
            Err(error) if procfs::is_gone(&error) && !is_unknown_here(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Kernels that are built without the list of children are rare: there the file does not exist, for this process either.
fn is_unknown_here(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound && !fs::exists("/proc/thread-self/children").unwrap_or(false)
}

/// The same by the list of all processes, in the order of their numbers: a child that is made meanwhile has a higher one.
fn kill_by_list(spared: &impl Fn(i32) -> bool) -> io::Result<BTreeSet<i32>> {
    let own = getpid().as_raw();
    let mut seen = BTreeSet::new();
    Processes::open()?.each(|stat| {
        if stat.pid != own && !spared(stat.pid) && (stat.parent == own || seen.contains(&stat.parent)) {
            seen.insert(stat.pid);
            if !stat.dead {
                let _ = kill(Pid::from_raw(stat.pid), Signal::SIGKILL);
            }
        }
    })?;
    Ok(seen)
}

/// How many descendants of this process live; no more than so many are counted: who forks without end is to be killed soon.
pub(super) fn living(most: u32) -> u32 {
    let mut open = children(getpid().as_raw()).unwrap_or_default();
    let mut all = 0;
    while let Some(pid) = open.pop().filter(|_| all < most) {
        open.extend(children(pid).unwrap_or_default());
        all += u32::from(!procfs::is_zombie(pid));
    }
    all
}

/// The living descendants of this process in words: number, name, state, and what the kernel says to a signal.
pub(super) fn what_does_not_die() -> String {
    let mut open = children(getpid().as_raw()).unwrap_or_default();
    let mut named = Vec::new();
    let mut all = 0;
    while let Some(pid) = open.pop() {
        open.extend(children(pid).unwrap_or_default());
        let Some((name, state)) = procfs::name_and_state(pid).filter(|(_, state)| *state != 'Z') else { continue };
        all += 1;
        if named.len() < NAMED {
            let refusal = match kill(Pid::from_raw(pid), None) {
                Err(errno) if errno != Errno::ESRCH => format!(", {errno}"),
                _ => String::new(),
            };
            named.push(format!("{pid} ({name}, state {state}{refusal})"));
        }
    }
    let more = if all > named.len() { format!(" and {} more", all - named.len()) } else { String::new() };
    match all {
        0 => "its last process is dead and not reaped yet".to_owned(),
        1 => format!("a process does not die: {}", named.join(", ")),
        _ => format!("{all} processes do not die: {}{more}", named.join(", ")),
    }
}

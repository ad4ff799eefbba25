//! Kills all work, and knows when it is dead.
//!
//! The wheel: under worker::guard. It decides nothing and, on Linux, allocates nothing. The guard is a subreaper: whoever loses its
//! parent becomes the guard's child, so that all work is dead when the guard has no child left.

use std::{io, time::Duration};

use evenkeel_model::WorkerId;
use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill, killpg},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::{GuardError, system};
use crate::{
    hold::{
        ContainmentMode,
        cgroup::{self, Held},
        means_name,
        procfs::Processes,
    },
    sys,
};

#[derive(Debug)]
pub(super) struct Reaper {
    processes: Processes,
    /// Which means of holding work are tried, for whom.
    wanted: Wanted,
    /// Holds all work; none: it is held by descent and the list of processes.
    work: Option<Held>,
    /// The descendants that were met while the list is read.
    seen: PidSet,
    pid: i32,
    session: i32,
}

/// What is to be held, and how.
#[derive(Debug)]
struct Wanted {
    worker: WorkerId,
    guard: u64,
    mode: ContainmentMode,
}

/// A set of process numbers that never grows in memory.
#[derive(Debug)]
struct PidSet(Box<[u64]>);

impl PidSet {
    /// Room for every number that this system gives out.
    fn new() -> Self {
        /// What Linux never exceeds.
        const MOST: usize = 1 << 22;
        let most = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok().and_then(|text| text.trim().parse().ok());
        Self(vec![0; most.unwrap_or(MOST) / 64 + 1].into_boxed_slice())
    }

    fn clear(&mut self) {
        self.0.fill(0);
    }

    fn place(pid: i32) -> (usize, u64) {
        let number = usize::try_from(pid).unwrap_or_default();
        (number / 64, 1 << (number % 64))
    }

    fn add(&mut self, pid: i32) {
        let (word, bit) = Self::place(pid);
        if let Some(word) = self.0.get_mut(word) {
            *word |= bit;
        }
    }

    fn has(&self, pid: i32) -> bool {
        let (word, bit) = Self::place(pid);
        self.0.get(word).is_some_and(|word| word & bit != 0)
    }
}

/// What is left of the guard's children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Children {
    Some,
    None,
}

impl Reaper {
    /// Finds out how the work of this worker can be held by the guard of this id, and holds it so.
    pub(super) fn new(worker: WorkerId, guard: u64, mode: ContainmentMode) -> Result<Self, GuardError> {
        let hold = system("hold processes");
        sys::hear_of_children().map_err(&hold)?;
        #[cfg(target_os = "linux")]
        nix::sys::prctl::set_child_subreaper(true).map_err(io::Error::from).map_err(&hold)?;
        let wanted = Wanted { worker, guard, mode };
        let work = wanted.choose()?;
        let session = nix::unistd::getsid(None).map_err(io::Error::from).map_err(&hold)?.as_raw();
        let processes = Processes::open().map_err(&hold)?;
        Ok(Self { processes, wanted, work, seen: PidSet::new(), pid: nix::unistd::getpid().as_raw(), session })
    }

    pub(super) fn by_cgroup(&self) -> bool {
        self.work.is_some()
    }

    /// Makes the cgroup of all work anew if somebody has removed it. Nothing runs: it was empty.
    pub(super) fn renew(&mut self) -> Result<(), GuardError> {
        if self.work.as_ref().is_some_and(|work| !work.group().exists()) {
            tracing::warn!("the cgroup of all work was removed: another one is made");
            self.work = self.wanted.choose()?;
        }
        Ok(())
    }

    /// Reaps whoever has ended; `ended` hears of each.
    pub(super) fn reap(&self, mut ended: impl FnMut(Pid, WaitStatus)) -> Children {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => return Children::Some,
                Ok(status @ (WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _))) => ended(pid, status),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return Children::None,
            }
        }
    }

    /// Kills the agent and all work, and returns when all of it is dead and reaped: how the agent ended, if that was not known yet.
    pub(super) fn end_all(&mut self, agent: Option<Pid>) -> Option<WaitStatus> {
        #[cfg(not(target_os = "linux"))]
        kill_tree(&mut self.processes, agent);
        if let Some(agent) = agent {
            // The agent's group are the spawner and the shims as well, and every child until it begins a session of its own. They stand still
            // until the work is killed: time to die in is short where there is much of it, and nothing of that is for them.
            let _ = killpg(agent, Signal::SIGSTOP);
            self.kill_cgroup();
            self.kill_children(Some(agent));
            let _ = killpg(agent, Signal::SIGKILL);
            let _ = kill(agent, Signal::SIGKILL);
        }
        let mut status = None;
        let mut pause = Duration::from_micros(200);
        loop {
            let empty = self.kill_cgroup();
            self.kill_children(None);
            let children = self.reap(|pid, how| {
                if agent == Some(pid) {
                    status = Some(how);
                }
            });
            if empty && children == Children::None {
                return status;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    fn kill_cgroup(&self) -> bool {
        let Some(work) = &self.work else { return true };
        // What cannot be seen may live.
        let empty = work.group().is_empty().unwrap_or(false);
        if !empty {
            let _ = work.group().kill();
        }
        empty
    }

    /// Kills every descendant while the list of processes is being read. Whoever forks has children of higher numbers, which the list comes
    /// to later (but where numbers begin anew, and then the next round sees it): one that is forked a moment before its parent is killed
    /// is met further on. Killing after reading would always be late for one that forks and ends without end. A group that is spared is passed
    /// over, but not what descends from it.
    fn kill_children(&mut self, spared: Option<Pid>) {
        let (own, session) = (self.pid, self.session);
        let seen = &mut self.seen;
        seen.clear();
        let _ = self.processes.each(|stat| {
            if stat.pid == own || (stat.parent != own && !seen.has(stat.parent)) {
                return;
            }
            seen.add(stat.pid);
            if stat.dead || spared.is_some_and(|group| group.as_raw() == stat.group) {
                return;
            }
            let _ = kill(Pid::from_raw(stat.pid), Signal::SIGKILL);
            // Work runs in sessions of its own, and a group lies within one session. A group is killed at one stroke.
            if stat.session != session && stat.session > 1 && stat.group > 1 {
                let _ = killpg(Pid::from_raw(stat.group), Signal::SIGKILL);
            }
        });
    }

    /// The last step of the guard: nothing runs any more.
    pub(super) fn remove_cgroup(&self) {
        if let Some(work) = &self.work {
            work.group().remove();
        }
    }
}

/// Kills the descendants of a process while it still binds them together: this system has no subreaper.
#[cfg(not(target_os = "linux"))]
fn kill_tree(processes: &mut Processes, root: Option<Pid>) {
    let Some(root) = root else { return };
    let _ = kill(root, Signal::SIGSTOP);
    let mut all = Vec::new();
    let _ = processes.each(|stat| all.push(stat));
    let mut found = std::collections::BTreeSet::from([root.as_raw()]);
    // The list need not have a parent before its children.
    while let Some(stat) = all.iter().find(|stat| found.contains(&stat.parent) && !found.contains(&stat.pid)) {
        found.insert(stat.pid);
        let _ = kill(Pid::from_raw(stat.pid), Signal::SIGKILL);
    }
}

impl Wanted {
    /// Takes the means that work is held by from now on, and says which that is. None: descent and the list of processes.
    fn choose(&self) -> Result<Option<Held>, GuardError> {
        let (made, why_not) = match self.mode {
            ContainmentMode::Processes => (None, "as --containment says".to_owned()),
            ContainmentMode::Cgroup => (Some(self.make_cgroup().map_err(|source| GuardError::NoCgroup { source })?), String::new()),
            ContainmentMode::Auto => match self.make_cgroup() {
                Ok(held) => (Some(held), String::new()),
                Err(error) => (None, error.to_string()),
            },
        };
        let containment = means_name(made.is_some());
        if made.is_some() {
            tracing::info!(containment, "work is held by a cgroup");
            return Ok(made);
        }
        #[cfg(target_os = "linux")]
        if !sees_all(std::path::Path::new("/proc")) {
            let way_out = "let it see them (no hidepid= on /proc, no ProtectProc=), or give it a cgroup of its own (Delegate=)";
            let source = io::Error::other(format!("some processes are hidden from it, and so could work be that has to die: {way_out}"));
            return Err(GuardError::System { what: "hold processes", source });
        }
        tracing::warn!(containment, why = why_not, "work is not held by a cgroup, but by descent and the list of processes");
        Ok(None)
    }

    fn make_cgroup(&self) -> io::Result<Held> {
        let own = cgroup::own().ok_or_else(|| io::Error::other("this process sees no cgroup (v2) of its own"))?;
        let held = Held::make(&cgroup::work_folder(&own, &self.worker, self.guard))?;
        held.group().may_be_joined().inspect_err(|_| held.group().remove())?;
        Ok(held)
    }
}

/// Whether processes that are not this user's to look into are shown all the same: as long as the first one is, work is, whatever it does.
/// Without a cgroup the guard finds what it kills by looking.
#[cfg(target_os = "linux")]
fn sees_all(proc: &std::path::Path) -> bool {
    std::fs::read(proc.join("1/stat")).is_ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn hidden_processes_are_noticed() {
        assert!(sees_all(std::path::Path::new("/proc")));
        assert!(!sees_all(tempfile::tempdir().expect("a folder").path()));
    }

    /// The tests of a guard that kills run in processes of their own: this one only makes and removes folders.
    #[test]
    fn a_cgroup_that_was_removed_is_made_anew_and_one_that_stands_is_kept() {
        let wanted = |mode| Wanted { worker: WorkerId::new("reap-renew").expect("id"), guard: 7, mode };
        let held =
            wanted(ContainmentMode::Cgroup).choose().expect("this test needs a cgroup tree (v2) that it may write to").expect("held");
        let path = held.group().path().to_owned();
        let mut reaper = Reaper {
            processes: Processes::open().expect("processes"),
            wanted: wanted(ContainmentMode::Cgroup),
            work: Some(held),
            seen: PidSet(Box::default()),
            pid: 0,
            session: 0,
        };
        let number = |path: &std::path::Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).expect("it is there"));
        let first = number(&path);
        reaper.renew().expect("nothing to do");
        assert_eq!(number(&path), first);
        std::fs::remove_dir(&path).expect("removed");
        assert!(reaper.kill_cgroup(), "what was removed was empty");
        reaper.renew().expect("made anew");
        assert_ne!(number(&path), first);
        assert!(reaper.work.as_ref().is_some_and(|work| work.group().exists()));
        reaper.remove_cgroup();
    }

    #[test]
    fn processes_alone_hold_work_where_that_is_asked_for() {
        let wanted = Wanted { worker: WorkerId::new("reap-processes").expect("id"), guard: 8, mode: ContainmentMode::Processes };
        assert!(wanted.choose().expect("held").is_none());
    }
}

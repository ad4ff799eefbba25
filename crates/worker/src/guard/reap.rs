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

use crate::{
    containment::{
        self, ContainmentMode,
        cgroup::{self, Cgroup},
        procfs::{self, Processes},
    },
    sys,
};

#[derive(Debug)]
pub(super) struct Reaper {
    processes: Processes,
    /// Holds all work; none where there are no cgroups.
    work: Option<Cgroup>,
    /// The descendants that were met while the list is read.
    seen: PidSet,
    pid: i32,
    session: i32,
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
    pub(super) fn new(worker: &WorkerId, mode: ContainmentMode) -> io::Result<Self> {
        sys::hear_of_children()?;
        #[cfg(target_os = "linux")]
        nix::sys::prctl::set_child_subreaper(true)?;
        let work = match mode {
            ContainmentMode::Auto => make_cgroup(worker),
            ContainmentMode::Groups => None,
        };
        #[cfg(target_os = "linux")]
        if work.is_none() && !sees_all(std::path::Path::new("/proc")) {
            let way_out = "let it see them (no hidepid= on /proc, no ProtectProc=), or give it a cgroup of its own (Delegate=)";
            return Err(io::Error::other(format!("some processes are hidden from it, and so could work be that has to die: {way_out}")));
        }
        let session = nix::unistd::getsid(None)?.as_raw();
        Ok(Self { processes: Processes::open()?, work, seen: PidSet::new(), pid: nix::unistd::getpid().as_raw(), session })
    }

    pub(super) fn by_cgroup(&self) -> bool {
        self.work.is_some()
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
        containment::kill_tree(&mut self.processes, agent);
        if let Some(agent) = agent {
            // The group too: a child that is just being made is in it until it begins a session of its own.
            let _ = killpg(agent, Signal::SIGKILL);
            let _ = kill(agent, Signal::SIGKILL);
        }
        let mut status = None;
        let mut pause = Duration::from_micros(200);
        loop {
            let empty = self.kill_cgroup();
            self.kill_children();
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
        let empty = work.is_empty().unwrap_or(true);
        if !empty {
            let _ = work.kill();
        }
        empty
    }

    /// Kills every descendant while the list of processes is being read. Whoever forks has children of higher numbers, which the list comes
    /// to later (but where numbers begin anew, and then the next round sees it): one that is forked a moment before its parent is killed
    /// is met further on. Killing after reading would always be late for one that forks and ends without end.
    fn kill_children(&mut self) {
        let (own, session) = (self.pid, self.session);
        let seen = &mut self.seen;
        seen.clear();
        let _ = self.processes.each(|stat| {
            if stat.pid == own || (stat.parent != own && !seen.has(stat.parent)) {
                return;
            }
            seen.add(stat.pid);
            if stat.dead {
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
            work.remove();
        }
    }
}

/// Makes the cgroup of all work, or says why there is none.
fn make_cgroup(worker: &WorkerId) -> Option<Cgroup> {
    let own = cgroup::own()?;
    end_what_dead_guards_left(&own, worker);
    let made = Cgroup::create(containment::work_folder(own, worker, std::process::id()))
        .and_then(|group| group.may_be_joined().inspect_err(|_| group.remove()).map(|()| group));
    match made {
        Ok(group) => Some(group),
        Err(error) => {
            tracing::info!(%error, "no cgroup can be made here: work is held by process groups");
            None
        }
    }
}

/// A guard that was killed together with its agent could not end its work.
fn end_what_dead_guards_left(own: &std::path::Path, worker: &WorkerId) {
    let Ok(entries) = std::fs::read_dir(own) else { return };
    let prefix = containment::work_prefix(worker);
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.strip_prefix(&prefix)).and_then(|pid| pid.parse().ok()) else { continue };
        let is_own = u32::try_from(pid).is_ok_and(|pid| pid == std::process::id());
        if !is_own && !has_ended(pid) {
            continue;
        }
        if let Ok(group) = Cgroup::open(entry.path()) {
            tracing::warn!(cgroup = %entry.path().display(), "ending the work that a killed guard left behind");
            while !group.is_empty().unwrap_or(true) {
                let _ = group.kill_each();
                std::thread::sleep(Duration::from_millis(1));
            }
            group.remove();
        }
    }
}

/// Whether nothing of a process runs any more, reaped or not: a zombie ends nothing that it left, and its parent may be long in reaping it.
fn has_ended(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH) || procfs::is_zombie(pid)
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
    fn a_process_that_nobody_reaps_has_ended() {
        use nix::sys::wait::{Id, waitid};
        let mut child = std::process::Command::new("true").spawn().expect("started");
        let pid = i32::try_from(child.id()).expect("pid");
        waitid(Id::Pid(Pid::from_raw(pid)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).expect("its end");
        assert!(kill(Pid::from_raw(pid), None).is_ok(), "it is a zombie");
        assert!(has_ended(pid));
        child.wait().expect("reaped");
        assert!(!has_ended(Pid::this().as_raw()));
    }

    #[test]
    fn hidden_processes_are_noticed() {
        assert!(sees_all(std::path::Path::new("/proc")));
        assert!(!sees_all(tempfile::tempdir().expect("a folder").path()));
    }
}

//! Ends what dead guards left behind: work whose guard was killed together with everything that would have ended it.
//!
//! The wheel: under worker::guard, which asks for round after round before it starts its first agent, and starts none beside what still
//! lives. Such work is found in a cgroup whose lock nobody holds, and by the mark of a dead guard in its environment. What a living guard
//! holds, in whichever pid namespace, is left alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use evenkeel_model::WorkerId;
use nix::{
    errno::Errno,
    libc::{EACCES, ENOENT, EPERM, ESRCH},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::mark::Mark;
use crate::hold::{
    GUARD_MARK,
    cgroup::{self, Held, Maker},
    procfs::{self, Processes},
};

/// What one round has found alive, and killed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Left {
    pub(super) cgroups: Vec<PathBuf>,
    pub(super) pids: Vec<i32>,
    /// Of those, the ones that this guard may not kill.
    pub(super) refused: Vec<i32>,
}

impl Left {
    pub(super) fn is_empty(&self) -> bool {
        self.cgroups.is_empty() && self.pids.is_empty()
    }
}

/// Looks for what was left, again and again.
#[derive(Debug)]
pub(super) struct Leftovers {
    worker: WorkerId,
    own: Mark,
    processes: Processes,
    /// Where guards of this worker make their cgroups.
    folder: Option<PathBuf>,
}

impl Leftovers {
    pub(super) fn of(worker: WorkerId, own: Mark) -> io::Result<Self> {
        Ok(Self { worker, own, processes: Processes::open()?, folder: cgroup::own() })
    }

    /// One round: kills what is left, and tells what that was.
    ///
    /// # Errors
    /// Not everything could be looked at: nobody knows what is left.
    pub(super) fn round(&mut self) -> io::Result<Left> {
        let cgroups = self.folder.as_deref().map_or_else(|| Ok(Vec::new()), |folder| end_cgroups(folder, &self.worker))?;
        let (pids, refused) = self.end_processes()?;
        Ok(Left { cgroups, pids, refused })
    }

    /// Kills what bears the mark of a dead guard of this worker, its descendants and its sessions; but nothing before the whole list was read,
    /// or a child that has lost its mark would have lost its parent too. What is forked meanwhile is for the next round.
    fn end_processes(&mut self) -> io::Result<(Vec<i32>, Vec<i32>)> {
        let (worker, own) = (format!("EVENKEEL_WORKER={}", self.worker), self.own);
        let mut dead_guards = BTreeMap::new();
        let (mut found, mut sessions) = (BTreeSet::new(), BTreeSet::new());
        let (mut victims, mut failed) = (Vec::new(), None);
        self.processes.each(|stat| {
            if u32::try_from(stat.pid).is_ok_and(|pid| pid == own.pid) || stat.dead {
                return;
            }
            let is_known = found.contains(&stat.parent) || sessions.contains(&stat.session);
            let is_left = is_known
                || match guard_of(&stat, &worker) {
                    Ok(None) => false,
                    Ok(Some(guard)) => *dead_guards.entry(guard).or_insert_with(|| {
                        guard.is_dead_beside(&own).unwrap_or_else(|error| {
                            failed = Some(error);
                            false
                        })
                    }),
                    Err(error) => {
                        failed = Some(error);
                        false
                    }
                };
            if !is_left {
                return;
            }
            found.insert(stat.pid);
            // Work has sessions of its own, and nobody joins one from outside.
            if stat.session == stat.pid {
                sessions.insert(stat.session);
            }
            victims.push(stat.pid);
        })?;
        let (mut pids, mut refused) = (Vec::new(), Vec::new());
        for pid in victims {
            match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                Err(Errno::ESRCH) => continue,
                Err(_) => refused.push(pid),
                Ok(()) => {}
            }
            pids.push(pid);
        }
        failed.map_or(Ok((pids, refused)), Err)
    }
}

/// The guard that a process of this worker bears the mark of; none: it is no work of this worker. One that is just executing another program
/// has no environment for a moment; a thread of the kernel never has.
fn guard_of(stat: &procfs::Stat, worker: &str) -> io::Result<Option<Mark>> {
    const KTHREADD: i32 = 2;
    for _ in 0..200 {
        match fs::read(format!("/proc/{}/environ", stat.pid)) {
            Ok(text) if text.is_empty() && stat.parent != KTHREADD && stat.pid != KTHREADD => std::thread::yield_now(),
            Ok(text) => return Ok(guard_in(&text, worker)),
            // It has ended; or it is another user's, and so not work of a guard that this one could be followed by.
            Err(error) if matches!(error.raw_os_error(), Some(ENOENT | ESRCH | EACCES | EPERM)) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The guard that an environment names, if it names this worker.
fn guard_in(environment: &[u8], worker: &str) -> Option<Mark> {
    let mut entries = environment.split(|b| *b == 0);
    if !entries.clone().any(|entry| entry == worker.as_bytes()) {
        return None;
    }
    let mark = entries.find_map(|entry| entry.strip_prefix(GUARD_MARK.as_bytes())?.strip_prefix(b"="))?;
    std::str::from_utf8(mark).ok()?.parse().ok()
}

/// Ends the cgroups of work of this worker that no living guard holds, and removes those that are empty.
fn end_cgroups(folder: &Path, worker: &WorkerId) -> io::Result<Vec<PathBuf>> {
    let mut left = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Some(maker) = entry.file_name().to_str().and_then(|name| cgroup::maker(name, worker)) else { continue };
        if matches!(maker, Maker::Pid(pid) if !has_ended(pid)) {
            continue;
        }
        let held = match Held::take(&entry.path()) {
            Ok(Some(held)) => held,
            // A living guard's.
            Ok(None) => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if held.group().is_empty()? {
            held.group().remove();
        } else {
            held.group().kill_each()?;
            left.push(entry.path());
        }
    }
    Ok(left)
}

/// Whether nothing of a process runs any more, reaped or not: a zombie ends nothing that it left, and its parent may be long in reaping it. The
/// own number is a dead one's, too: this process had another name for its cgroup.
fn has_ended(pid: i32) -> bool {
    let is_own = u32::try_from(pid).is_ok_and(|pid| pid == std::process::id());
    is_own || kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH) || procfs::is_zombie(pid)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::process::{Child, Command};

    use nix::sys::wait::{Id, WaitPidFlag, waitid};

    use super::{super::tests::is_alone, *};

    #[test]
    fn a_process_that_nobody_reaps_has_ended() {
        let mut child = Command::new("true").spawn().expect("started");
        let pid = i32::try_from(child.id()).expect("pid");
        waitid(Id::Pid(Pid::from_raw(pid)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).expect("its end");
        assert!(kill(Pid::from_raw(pid), None).is_ok(), "it is a zombie");
        assert!(has_ended(pid));
        child.wait().expect("reaped");
        assert!(!has_ended(nix::unistd::getppid().as_raw()));
    }

    #[test]
    fn an_environment_names_a_guard_of_this_worker_or_none() {
        let mark = Mark { pid_namespace: 1, pid: 2, started: 3 };
        for (environment, expected) in [
            ("A=b\0EVENKEEL_WORKER=w\0EVENKEEL_GUARD=1-2-3\0", Some(mark)),
            ("EVENKEEL_GUARD=1-2-3\0EVENKEEL_WORKER=w\0", Some(mark)),
            ("EVENKEEL_WORKER=w-2\0EVENKEEL_GUARD=1-2-3\0", None),
            ("EVENKEEL_WORKER=w\0", None),
            ("EVENKEEL_GUARD=1-2-3\0", None),
            // Of 0.1.0, which did not say which guard.
            ("EVENKEEL_WORKER=w\0EVENKEEL_GUARD=00000000000000ab\0", None),
            ("EVENKEEL_WORKER=w\0EVENKEEL_GUARDS=1-2-3\0", None),
            ("", None),
        ] {
            assert_eq!(guard_in(environment.as_bytes(), "EVENKEEL_WORKER=w"), expected, "{environment:?}");
        }
    }

    /// Of this run alone: one that was broken off may have left something behind, too.
    fn worker(what: &str) -> WorkerId {
        WorkerId::new(&format!("leftovers-{what}-{}", std::process::id())).expect("id")
    }

    /// A process that ends with the test.
    struct Running(Child);

    impl Running {
        fn pid(&self) -> i32 {
            i32::try_from(self.0.id()).expect("pid")
        }

        fn lives(&mut self) -> bool {
            self.0.try_wait().expect("seen").is_none()
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill().and_then(|()| self.0.wait());
        }
    }

    fn work(worker: &WorkerId, guard: Mark, script: &str) -> Running {
        let mut command = Command::new("sh");
        command.args(["-c", script]).env("EVENKEEL_WORKER", worker.as_str()).env(GUARD_MARK, guard.to_string());
        Running(command.spawn().expect("started"))
    }

    /// Rounds until one finds nothing; everything that was found. The test reaps what is its own child.
    fn end_all(leftovers: &mut Leftovers) -> BTreeSet<i32> {
        let mut all = BTreeSet::new();
        let begun = std::time::Instant::now();
        loop {
            let left = leftovers.round().expect("looked at");
            assert_eq!(left.refused, Vec::<i32>::new());
            if left.is_empty() {
                return all;
            }
            all.extend(left.pids);
            assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{all:?}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_work_of_a_dead_guard_is_ended_and_nobody_elses() {
        if !is_alone("guard::leftovers::tests::the_work_of_a_dead_guard_is_ended_and_nobody_elses") {
            return;
        }
        let worker = worker("processes");
        let own = Mark::of_this_process().expect("mark");
        // Our own number, but another start: it was another process's.
        let dead = Mark { started: own.started + 1, ..own };
        let far = Mark { pid_namespace: 1, ..dead };
        let folder = tempfile::tempdir().expect("folder");
        let ready = folder.path().join("ready");
        let script = format!("env -i setsid sh -c ': > {}; exec sleep 300' & wait", ready.display());
        let mut left = work(&worker, dead, &script);
        let mut others = [
            work(&worker, own, "exec sleep 300"),
            work(&worker, far, "exec sleep 300"),
            work(&self::worker("others"), dead, "exec sleep 300"),
        ];
        while !ready.exists() {
            std::thread::yield_now();
        }
        let mut leftovers = Leftovers { folder: None, ..Leftovers::of(worker, own).expect("made") };
        let ended = end_all(&mut leftovers);
        assert!(ended.contains(&left.pid()) && ended.len() == 2, "with what it has started: {ended:?}");
        left.0.wait().expect("it is dead");
        for other in &mut others {
            assert!(other.lives(), "held by a guard that lives, or that cannot be judged from here");
        }
    }

    #[test]
    fn a_cgroup_whose_lock_nobody_holds_is_ended() {
        if !is_alone("guard::leftovers::tests::a_cgroup_whose_lock_nobody_holds_is_ended") {
            return;
        }
        let worker = worker("cgroups");
        let own = cgroup::own().expect("this test needs a cgroup tree (v2) that it may write to");
        let path = cgroup::work_folder(&own, &worker, 1);
        let living = Held::make(&cgroup::work_folder(&own, &worker, 2)).expect("made");
        let in_both = [Held::make(&path).expect("made"), Held::make(&cgroup::work_folder(&own, &worker, 3)).expect("made")];
        let join = |held: &Held, child: &Running| {
            fs::write(held.group().path().join("cgroup.procs"), child.pid().to_string()).expect("joined");
        };
        let mut children: Vec<Running> = (0..2).map(|_| Running(Command::new("sleep").arg("300").spawn().expect("started"))).collect();
        join(&in_both[0], &children[0]);
        join(&living, &children[1]);
        // Its guard is gone.
        drop(in_both);
        // And one of 0.1.0, which held no lock, of a number that still lives.
        let old = own.join(format!("evenkeel-{worker}-{}", nix::unistd::getppid()));
        fs::create_dir(&old).expect("made");

        let mut leftovers = Leftovers::of(worker, Mark::of_this_process().expect("mark")).expect("made");
        assert_eq!(leftovers.round().expect("looked at").cgroups, std::slice::from_ref(&path));
        children[0].0.wait().expect("it is dead");
        end_all(&mut leftovers);
        assert!(!path.exists() && living.group().exists() && old.exists());
        assert!(children[1].lives());
        drop(children);
        fs::remove_dir(old).expect("removed");
        living.group().remove();
    }
}

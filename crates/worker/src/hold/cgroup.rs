//! Cgroups (v2): sets of processes that none of their members leaves by forking, and that die as one.
//!
//! The wheel: under worker::guard, which owns the cgroup of all work, and worker::driver, which runs each resource in a child of it.
//! It decides nothing. Where there is none (another system, no right to make one), the caller holds work by descent and the list of processes.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use evenkeel_model::WorkerId;
use nix::{
    libc::{ENODEV, ENOENT},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::sys::{self, ChildSetup};

/// Where the guard of this id keeps all work of this worker. The id is random: two guards of one worker, be it in two pid namespaces that give
/// out the same numbers, never share a folder.
pub(crate) fn work_folder(own: &Path, worker: &WorkerId, guard: u64) -> PathBuf {
    own.join(format!("{}{guard:016x}", work_prefix(worker)))
}

/// How the names of such folders begin.
fn work_prefix(worker: &WorkerId) -> String {
    // A folder's name has at most 255 bytes.
    format!("evenkeel-{:.200}-", worker.as_str())
}

/// Who made a folder of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Maker {
    /// A guard that holds a lock on it for as long as it lives.
    Locks,
    /// A guard of 0.1.0 of this number, which held none.
    Pid(i32),
}

/// Who made the folder of this name for work of this worker; none: it is something else's.
pub(crate) fn maker(folder: &str, worker: &WorkerId) -> Option<Maker> {
    let rest = folder.strip_prefix(&work_prefix(worker))?;
    if rest.len() == 16 && rest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Some(Maker::Locks);
    }
    rest.bytes().all(|b| b.is_ascii_digit()).then(|| rest.parse().ok().map(Maker::Pid))?
}

/// The cgroup of all work of one guard. The lock on its folder is held as long as this process lives, and shows everybody who sees the folder
/// that it does, in whichever pid namespace. No child inherits it.
#[derive(Debug)]
pub(crate) struct Held {
    group: Cgroup,
    _lock: File,
}

impl Held {
    /// Makes the folder and takes it. Whoever ends leftovers may have been faster with the lock, or have removed the folder before it was locked.
    pub(crate) fn make(path: &Path) -> io::Result<Self> {
        const ATTEMPTS: u32 = 20;
        let mut refusal = io::Error::other("its folder was removed again and again");
        for _ in 0..ATTEMPTS {
            match fs::create_dir(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            match Self::take(path) {
                Ok(Some(held)) => return Ok(held),
                Ok(None) => refusal = io::Error::other("another guard holds its folder"),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    // Before Linux 5.14 there is no cgroup.kill.
                    remove_tree(path);
                    return Err(error);
                }
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Err(refusal)
    }

    /// Takes one that is there. None: a living guard holds it.
    pub(crate) fn take(path: &Path) -> io::Result<Option<Self>> {
        let lock = File::open(path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // What was locked must be what stands there now.
        if lock.metadata()?.ino() != fs::metadata(path)?.ino() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let group = Cgroup::open(path.to_owned()).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound if path.exists() => io::Error::other("the kernel has no cgroup.kill; it needs Linux 5.14"),
            _ => error,
        })?;
        Ok(Some(Self { group, _lock: lock }))
    }

    /// The cgroup.
    pub(crate) fn group(&self) -> &Cgroup {
        &self.group
    }
}

/// One cgroup whose files are open: killing it allocates nothing.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    kill: File,
    events: File,
}

impl Cgroup {
    /// Makes it, or takes the one that is there.
    pub(crate) fn create(path: PathBuf) -> io::Result<Self> {
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // Before Linux 5.14 there is no cgroup.kill.
        Self::open(path.clone()).inspect_err(|_| remove_tree(&path))
    }

    /// Opens one that is there.
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        let kill = OpenOptions::new().write(true).open(path.join("cgroup.kill"))?;
        let events = File::open(path.join("cgroup.events"))?;
        Ok(Self { path, kill, events })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What a process writes "0" to in order to join.
    pub(crate) fn procs(&self) -> io::Result<OwnedFd> {
        Ok(OpenOptions::new().write(true).open(self.path.join("cgroup.procs"))?.into())
    }

    /// Kills every process in it and below it, also those that fork meanwhile.
    pub(crate) fn kill(&self) -> io::Result<()> {
        (&self.kill).write_all(b"1")
    }

    /// Kills every process in it and below it by its number as well. `cgroup.kill` signals the first thread of each alone, and so passes over a
    /// process whose first thread has ended while others go on (seen with Linux 6.18). Allocates.
    pub(crate) fn kill_each(&self) -> io::Result<()> {
        self.kill()?;
        match kill_listed(&self.path) {
            // It ended meanwhile, and somebody removed its folder.
            Err(error) if is_gone(&error) => Ok(()),
            killed => killed,
        }
    }

    /// No live process is in it or below it. One that was removed was empty.
    pub(crate) fn is_empty(&self) -> io::Result<bool> {
        let mut text = [0_u8; 64];
        match self.events.read_at(&mut text, 0) {
            Ok(length) => Ok(text[..length].split(|b| *b == b'\n').any(|line| line == b"populated 0")),
            Err(error) if is_gone(&error) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Whether it is still there: an administrator, or a service manager, may have removed it while it was empty. Then nothing is started in it
    /// any more, be it that another was made under its name.
    pub(crate) fn exists(&self) -> bool {
        !self.events.read_at(&mut [0_u8; 64], 0).is_err_and(|error| is_gone(&error))
    }

    /// Removes it and those below it, which must be empty. What cannot be removed is left.
    pub(crate) fn remove(&self) {
        remove_tree(&self.path);
    }

    /// Removes those below it.
    pub(crate) fn remove_children(&self) {
        remove_children(&self.path);
    }

    /// Whether a child may join: a right that making the cgroup does not imply.
    pub(crate) fn may_be_joined(&self) -> io::Result<()> {
        // A path below a file cannot be executed. To fail in that is to have joined before.
        let mut command = std::process::Command::new("/dev/null/none");
        sys::set_up(&mut command, ChildSetup { cgroup: Some(self.procs()?), ..ChildSetup::default() });
        match command.spawn() {
            Ok(mut child) => child.wait().map(drop),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn kill_listed(path: &Path) -> io::Result<()> {
    for pid in fs::read_to_string(path.join("cgroup.procs"))?.lines().filter_map(|line| line.parse().ok()) {
        // One of another pid namespace is listed as 0, which here would be this process's own group. One that has ended needs no signal.
        if pid > 0 {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            kill_listed(&entry.path())?;
        }
    }
    Ok(())
}

/// Whether a file says that its cgroup was removed. Any other error says nothing of that.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(ENODEV | ENOENT))
}

fn remove_tree(path: &Path) {
    remove_children(path);
    let _ = fs::remove_dir(path);
}

fn remove_children(path: &Path) {
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
}

/// The cgroup (v2) that this process is in, as a folder.
pub(crate) fn own() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let membership = fs::read_to_string("/proc/self/cgroup").ok()?;
    folder(&mounts, &membership)
}

/// Finds the folder from the texts of `/proc/self/mountinfo` and `/proc/self/cgroup`.
fn folder(mounts: &str, membership: &str) -> Option<PathBuf> {
    let path = membership.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, mount) = (unescape(place.next()?), unescape(place.next()?));
        if kind.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let below = Path::new(path).strip_prefix(root).ok()?;
        Some(Path::new(&mount).join(below))
    })
}

/// Spaces and the like stand as three octal digits in mountinfo.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_folder_is_found() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let unified = "29 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let inner = "29 22 0:26 /box/a /my\\040mount rw - cgroup2 cgroup2 rw\n";
        let cases = [
            (hybrid, "4:memory:/x\n0::/\n", Some("/sys/fs/cgroup/unified")),
            (unified, "0::/user.slice/a.scope\n", Some("/sys/fs/cgroup/user.slice/a.scope")),
            (inner, "0::/box/a/b\n", Some("/my mount/b")),
            (inner, "0::/elsewhere\n", None),
            (unified, "4:memory:/x\n", None),
            ("", "0::/\n", None),
        ];
        for (mounts, membership, expected) in cases {
            assert_eq!(folder(mounts, membership), expected.map(PathBuf::from), "{membership}");
        }
    }

    #[test]
    fn a_folder_of_work_is_told_from_others_and_from_those_of_other_workers() {
        let id = |text: &str| WorkerId::new(text).expect("id");
        let name = |path: PathBuf| path.file_name().and_then(|n| n.to_str()).expect("name").to_owned();
        let own = Path::new("/sys/fs/cgroup");
        assert_eq!(name(work_folder(own, &id("a"), 0xab)), "evenkeel-a-00000000000000ab");
        for (folder, worker, expected) in [
            ("evenkeel-a-00000000000000ab", "a", Some(Maker::Locks)),
            ("evenkeel-a-1234567890123456", "a", Some(Maker::Locks)),
            ("evenkeel-a-77", "a", Some(Maker::Pid(77))),
            ("evenkeel-a-", "a", None),
            ("evenkeel-a-99999999999", "a", None),
            ("evenkeel-a-b-00000000000000ab", "a", None),
            ("evenkeel-a-00000000000000AB", "a", None),
            ("evenkeel-a-00000000000000abc", "a", None),
            ("evenkeel-a-b-77", "a", None),
            ("system.slice", "a", None),
        ] {
            assert_eq!(maker(folder, &id(worker)), expected, "{folder}");
        }
        let long = id(&"w".repeat(253));
        let folder = name(work_folder(own, &long, u64::MAX));
        assert!(folder.len() <= 255, "{folder}");
        assert_eq!(maker(&folder, &long), Some(Maker::Locks));
    }

    fn path_here(what: &str) -> PathBuf {
        own()
            .expect("these tests need a cgroup tree (v2) that they may write to")
            .join(format!("evenkeel-test-{what}-{}", std::process::id()))
    }

    /// Each opening has a lock of its own, so that one process can play two guards.
    #[test]
    fn one_guard_at_a_time_holds_a_folder() {
        let path = path_here("held");
        let held = Held::make(&path).expect("made");
        assert!(Held::take(&path).expect("seen").is_none(), "it lives");
        let refused = Held::make(&path).expect_err("it is another's").to_string();
        assert_eq!(refused, "another guard holds its folder");
        drop(held);
        let left = Held::take(&path).expect("seen").expect("nobody holds it any more");
        left.group().remove();
        assert!(!path.exists());
    }

    #[test]
    fn one_that_was_removed_is_empty_and_does_not_exist_whatever_stands_under_its_name() {
        let path = path_here("gone");
        let group = Cgroup::create(path.clone()).expect("made");
        assert!(group.exists() && group.is_empty().expect("seen"));
        group.remove();
        assert!(!group.exists() && group.is_empty().expect("seen"));
        let another = Cgroup::create(path).expect("made");
        assert!(!group.exists() && another.exists());
        another.remove();
        // Anything else is not known.
        assert!(!is_gone(&io::Error::from_raw_os_error(nix::libc::EMFILE)) && !is_gone(&io::Error::other("odd")));
    }
}

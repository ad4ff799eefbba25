//! Cgroups (v2): sets of processes that none of their members leaves by forking, and that die as one.
//!
//! The wheel: under worker::guard, which owns the cgroup of all work, and worker::driver, which runs each resource in a child of it.
//! It decides nothing. Where there is none (another system, no right to make one), the caller falls back on process groups.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::{fd::OwnedFd, unix::fs::FileExt},
    path::{Path, PathBuf},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::sys::{self, ChildSetup};

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
        kill_listed(&self.path)
    }

    /// No live process is in it or below it.
    pub(crate) fn is_empty(&self) -> io::Result<bool> {
        let mut text = [0_u8; 64];
        let length = self.events.read_at(&mut text, 0)?;
        Ok(text[..length].split(|b| *b == b'\n').any(|line| line == b"populated 0"))
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
}

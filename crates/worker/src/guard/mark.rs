//! Which guard: a mark that all of its work bears in its environment, so that what a dead guard left behind can be told from the work of a
//! living one.
//!
//! The wheel: under worker::guard, which hands it to the agent, which gives it to work. It kills nothing. A number of a process alone is no
//! proof of a living guard: another process may have it by now, and another pid namespace gives out the same numbers.

use std::{fmt, io, str::FromStr};

/// Text: `<inode of the pid namespace>-<pid>-<start time>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// The inode of its pid namespace; 0 where there are none.
    pub pid_namespace: u64,
    /// Its process in that namespace.
    pub pid: u32,
    /// When that process began, in ticks of the kernel since boot; 0 where the system does not say.
    pub started: u64,
}

impl Mark {
    /// The mark of this process.
    ///
    /// # Errors
    /// `/proc` does not show this process under its own number: it is not mounted, or it is that of another pid namespace.
    #[cfg(target_os = "linux")]
    pub fn of_this_process() -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;

        let pid = std::process::id();
        if std::fs::read_link("/proc/self")?.to_str() != Some(pid.to_string().as_str()) {
            return Err(io::Error::other("/proc shows the processes of another pid namespace; mount the own one there"));
        }
        let pid_namespace = std::fs::metadata("/proc/self/ns/pid")?.ino();
        let started = started_at(pid)?.ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { pid_namespace, pid, started })
    }

    /// The mark of this process.
    ///
    /// # Errors
    /// None here.
    #[cfg(not(target_os = "linux"))]
    pub fn of_this_process() -> io::Result<Self> {
        Ok(Self { pid_namespace: 0, pid: std::process::id(), started: 0 })
    }

    /// Whether the guard of this mark was one of the pid namespace of `own` and has ended: then nobody holds what bears the mark.
    ///
    /// # Errors
    /// That cannot be seen now.
    pub(super) fn is_dead_beside(&self, own: &Self) -> io::Result<bool> {
        // The numbers of another namespace say nothing here.
        Ok(self.pid_namespace == own.pid_namespace && started_at(self.pid)? != Some(self.started))
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.pid_namespace, self.pid, self.started)
    }
}

/// This is no mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMark;

impl FromStr for Mark {
    type Err = NoMark;

    fn from_str(text: &str) -> Result<Self, NoMark> {
        let mut parts = text.split('-').map(|part| part.parse::<u64>().map_err(|_| NoMark));
        let mut part = || parts.next().unwrap_or(Err(NoMark));
        let (pid_namespace, pid, started) = (part()?, u32::try_from(part()?).map_err(|_| NoMark)?, part()?);
        if parts.next().is_some() { Err(NoMark) } else { Ok(Self { pid_namespace, pid, started }) }
    }
}

/// When a process began that still runs; none: there is no such process, or it has ended and waits to be reaped.
#[cfg(target_os = "linux")]
fn started_at(pid: u32) -> io::Result<Option<u64>> {
    use nix::libc::{ENOENT, ESRCH};

    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => began(&stat).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat cannot be understood"))),
        Err(error) if matches!(error.raw_os_error(), Some(ENOENT | ESRCH)) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(not(target_os = "linux"))]
fn started_at(_: u32) -> io::Result<Option<u64>> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The start time in a line of `/proc/<pid>/stat`: inner none for a process that has ended with every thread of it.
#[cfg(target_os = "linux")]
fn began(stat: &str) -> Option<Option<u64>> {
    // Behind the name in brackets, which may hold brackets and spaces: the state, then (17 later) the threads, then (2 later) the start.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let threads: u64 = fields.nth(16)?.parse().ok()?;
    let started = fields.nth(1)?.parse().ok()?;
    let has_ended = matches!(state, "X" | "x") || (state == "Z" && threads <= 1);
    Some((!has_ended).then_some(started))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_mark_comes_back_and_nothing_else_is_one() {
        let mark = Mark { pid_namespace: 4_026_531_836, pid: 77, started: 123_456 };
        assert_eq!((mark.to_string().as_str(), "4026531836-77-123456".parse()), ("4026531836-77-123456", Ok(mark)));
        for text in ["", "1-2", "1-2-3-4", "00000000000000ab", "a-2-3", "1-99999999999-3", "1--3"] {
            assert_eq!(text.parse::<Mark>(), Err(NoMark), "{text}");
        }
    }

    #[test]
    fn the_start_is_read_whatever_the_program_is_called() {
        let line = |name: &str, state: &str, threads: u32| {
            format!("42 ({name}) {state} 1 2 3 0 -1 4194560 100 0 0 0 0 0 0 0 20 0 {threads} 0 12345 0 0")
        };
        assert_eq!(began(&line("sh", "S", 1)), Some(Some(12345)));
        assert_eq!(began(&line("a) R (b c", "S", 3)), Some(Some(12345)));
        assert_eq!(began(&line("sh", "Z", 1)), Some(None), "nobody has reaped it");
        assert_eq!(began(&line("sh", "Z", 4)), Some(Some(12345)), "other threads still run");
        assert_eq!(began("42 (sh"), None);
    }

    /// A number that another process has by now is no proof of a living guard, and neither is one of another namespace.
    #[test]
    fn a_guard_is_dead_when_its_number_is_gone_or_anothers() {
        let own = Mark::of_this_process().expect("mark");
        assert!(!own.is_dead_beside(&own).expect("seen"));
        assert!(Mark { started: own.started + 1, ..own }.is_dead_beside(&own).expect("seen"));
        assert!(!Mark { started: own.started + 1, pid_namespace: 1, ..own }.is_dead_beside(&own).expect("seen"));

        let mut child = std::process::Command::new("true").spawn().expect("started");
        let started = started_at(child.id()).expect("seen");
        let mark = Mark { pid: child.id(), started: started.unwrap_or_default(), ..own };
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("pid"));
        use nix::sys::wait::{Id, WaitPidFlag, waitid};
        waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).expect("its end");
        assert!(mark.is_dead_beside(&own).expect("seen"), "one that nobody has reaped has ended");
        child.wait().expect("reaped");
        assert!(mark.is_dead_beside(&own).expect("seen"));
    }
}

//! The processes of this machine, as the kernel lists them.
//!
//! The wheel: under worker::guard and worker::driver, which look for descendants to kill. It kills nothing. On Linux a scan allocates
//! nothing: the guard scans while memory may be short.

use nix::errno::Errno;

/// One process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    /// Zero where the system does not say.
    pub(crate) session: i32,
    /// It has ended, every thread of it, and waits to be reaped.
    pub(crate) dead: bool,
}

#[cfg(target_os = "linux")]
pub(crate) use linux::{Processes, is_zombie, name_and_state};
#[cfg(not(target_os = "linux"))]
pub(crate) use other::{Processes, is_zombie, name_and_state};

/// Whether this process may kill those of any user: its effective capabilities have CAP_KILL.
pub(crate) fn may_kill_any_user() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| has_cap_kill(&status))
}

fn has_cap_kill(status: &str) -> bool {
    const CAP_KILL: u32 = 5;
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    capabilities.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask >> CAP_KILL & 1 == 1)
}

/// Whether an error says that the process is gone. Anything else (too few files, no memory) says nothing of it.
pub(crate) fn is_gone(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::ENOENT | Errno::ESRCH))
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{io, mem::MaybeUninit, os::fd::OwnedFd};

    use evenkeel_model::shown::bare;
    use nix::{
        fcntl::{OFlag, open, openat},
        sys::stat::Mode,
        unistd::{Whence, lseek},
    };
    use rustix::fs::RawDir;

    use super::Stat;
    use crate::fault;

    /// The name of a process, and the letter of its state; none if it is gone.
    pub(crate) fn name_and_state(pid: i32) -> Option<(String, char)> {
        let line = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        let (open, close) = (line.iter().position(|b| *b == b'(')?, line.iter().rposition(|b| *b == b')')?);
        let name = bare(&String::from_utf8_lossy(line.get(open + 1..close)?)).to_string();
        Some((name, char::from(*line.get(close + 2)?)))
    }

    /// Whether a process has ended, every thread of it, and waits to be reaped. False if that cannot be seen.
    pub(crate) fn is_zombie(pid: i32) -> bool {
        std::fs::read(format!("/proc/{pid}/stat")).is_ok_and(|line| super::parse(&line).is_some_and(|stat| stat.dead))
    }

    /// An open `/proc`.
    #[derive(Debug)]
    pub(crate) struct Processes(OwnedFd);

    impl Processes {
        pub(crate) fn open() -> io::Result<Self> {
            Ok(Self(open("/proc", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?))
        }

        /// Visits every process once, the lower numbers first. One that comes or goes meanwhile may be missed.
        ///
        /// # Errors
        /// The first process that could not be looked at, although it is there: what was visited is not all. The others were visited.
        pub(crate) fn each(&mut self, mut visit: impl FnMut(Stat)) -> io::Result<()> {
            let mut room = [MaybeUninit::uninit(); 4096];
            lseek(&self.0, 0, Whence::SeekSet)?;
            let mut entries = RawDir::new(&self.0, &mut room);
            let mut whole = Ok(());
            while let Some(entry) = entries.next() {
                let entry = entry?;
                let name = entry.file_name().to_bytes();
                if !name.first().is_some_and(u8::is_ascii_digit) {
                    continue;
                }
                // "<pid>/stat": a pid has at most ten digits.
                let mut path = [0_u8; 16];
                let Some(room) = path.get_mut(..name.len() + 5) else { continue };
                room[..name.len()].copy_from_slice(name);
                room[name.len()..].copy_from_slice(b"/stat");
                match self.look_at(&path[..name.len() + 5]) {
                    Ok(stat) => stat.into_iter().for_each(&mut visit),
                    Err(error) => whole = whole.and(Err(error)),
                }
            }
            whole
        }

        /// One process by its path below `/proc`; none if it is gone.
        fn look_at(&self, path: &[u8]) -> io::Result<Option<Stat>> {
            let mut text = [0_u8; 512];
            let file =
                fault::at("procfs.open").and_then(|()| Ok(openat(&self.0, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?));
            match file.and_then(|file| Ok(nix::unistd::read(&file, &mut text)?)) {
                Ok(length) => Ok(super::parse(&text[..length])),
                Err(error) if super::is_gone(&error) => Ok(None),
                // Invisible is not gone.
                Err(error) => Err(error),
            }
        }
    }
}

/// Reads a line of `/proc/<pid>/stat`. The command's name, in brackets, may itself hold brackets and spaces.
#[cfg(any(target_os = "linux", test))]
fn parse(line: &[u8]) -> Option<Stat> {
    let open = line.iter().position(|b| *b == b'(')?;
    let close = line.iter().rposition(|b| *b == b')')?;
    let pid = number(line.get(..open)?.trim_ascii())?;
    let mut fields = line.get(close + 1..)?.trim_ascii_start().split(|b| *b == b' ');
    let state = *fields.next()?.first()?;
    let parent = number(fields.next()?)?;
    let group = number(fields.next()?)?;
    let session = number(fields.next()?)?;
    // A process whose first thread has ended is shown as a zombie while others of its threads still run.
    let threads = number(fields.nth(13)?)?;
    let dead = matches!(state, b'X' | b'x') || (state == b'Z' && threads <= 1);
    Some(Stat { pid, parent, group, session, dead })
}

#[cfg(any(target_os = "linux", test))]
fn number(text: &[u8]) -> Option<i32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(not(target_os = "linux"))]
mod other {
    use std::{io, process::Command};

    use super::Stat;

    /// Unknown here.
    pub(crate) fn name_and_state(_pid: i32) -> Option<(String, char)> {
        None
    }

    /// Unknown here: nothing that asks it is used but on Linux.
    pub(crate) fn is_zombie(_pid: i32) -> bool {
        false
    }

    /// Lists processes by asking `ps`.
    #[derive(Debug)]
    pub(crate) struct Processes(());

    impl Processes {
        pub(crate) fn open() -> io::Result<Self> {
            Ok(Self(()))
        }

        pub(crate) fn each(&mut self, mut visit: impl FnMut(Stat)) -> io::Result<()> {
            let output = Command::new("ps").args(["-A", "-o", "pid=,ppid=,pgid=,state="]).output()?;
            for line in String::from_utf8_lossy(&output.stdout).lines() {
                let mut fields = line.split_whitespace();
                let mut number = || fields.next().and_then(|f| f.parse().ok());
                let (Some(pid), Some(parent), Some(group)) = (number(), number(), number()) else { continue };
                let dead = fields.next().is_some_and(|state| state.starts_with('Z'));
                visit(Stat { pid, parent, group, session: 0, dead });
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_whatever_the_command_is_called() {
        let tail = " 1 2 3 0 -1 4194560 100 0 0 0 0 0 0 0 20 0 1 0 12345 0 0";
        let stat = |line: String| parse(line.as_bytes());
        let expected = Stat { pid: 42, parent: 1, group: 2, session: 3, dead: false };
        assert_eq!(stat(format!("42 (sh) S{tail}")), Some(expected));
        assert_eq!(stat(format!("42 (a) R (b c) S{tail}")), Some(expected));
        assert_eq!(stat(format!("42 (sh) Z{tail}")), Some(Stat { dead: true, ..expected }));
        assert_eq!(stat(format!("42 (sh) Z{}", tail.replace("20 0 1 0", "20 0 4 0"))), Some(expected), "other threads still run");
        assert_eq!(stat("42 (sh".to_owned()), None);
    }

    #[test]
    fn the_right_to_kill_is_read() {
        assert!(has_cap_kill("CapInh:\t0000000000000000\nCapEff:\t000001ffffffffff\n"));
        assert!(has_cap_kill("CapEff:\t0000000000000020\n"));
        for status in ["CapEff:\t0000000000000000\n", "CapEff:\t000001ffffffffdf\n", "CapPrm:\t0000000000000020\n", ""] {
            assert!(!has_cap_kill(status), "{status}");
        }
    }

    #[test]
    fn a_scan_finds_this_process() {
        let own = i32::try_from(std::process::id()).expect("pid");
        let mut found = None;
        let mut processes = Processes::open().expect("processes");
        for _ in 0..2 {
            processes
                .each(|stat| {
                    if stat.pid == own {
                        found = Some(stat);
                    }
                })
                .expect("scan");
            let stat = found.take().expect("found, each time");
            assert_eq!((stat.parent, stat.dead), (nix::unistd::getppid().as_raw(), false));
        }
    }
}

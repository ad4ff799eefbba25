//! The child of a shim, from the fork to its program: what it gets, what it does not inherit, and why it could not be started.
//!
//! The wheel: under worker::hold. Whatever here waits for a file system that does not answer holds up this process alone. It has no
//! thread beside it, so that it may do what it likes before it executes the program.

use std::{
    ffi::{CStr, CString, OsStr},
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::fchown},
    },
    path::{Path, PathBuf},
};

use evenkeel_model::shown::shown;
use nix::{
    errno::Errno,
    libc,
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::SigSet,
        stat::{Mode, umask},
    },
    unistd::{Gid, Pid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, execve, getppid, setsid},
};

use super::wire::{Account, Start};
use crate::{fault, sys};

/// What a program is searched in where its environment has no PATH: what the C library takes.
const USUAL_PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// The usual limit of open files (soft): what programs are written for that wait for files by `select`. systemd gives the same.
const USUAL_OPEN_FILES: u64 = 1024;
/// No core files: they are as large as the memory, and lie where nobody looks.
const USUAL_CORE: u64 = 0;
/// The usual limit of a stack (soft), by the kernel.
const USUAL_STACK: u64 = 8 << 20;

/// What the child tells its shim through a pipe that the program's execution closes: the step that it begins, or why there is none.
pub(super) mod report {
    /// It enters its folder.
    pub(in crate::hold) const CWD: u8 = b'd';
    /// It executes the program.
    pub(in crate::hold) const EXEC: u8 = b'x';
    /// The rest is the reason for which nothing was started.
    pub(in crate::hold) const FAILED: u8 = b'!';
}

/// What the shim hands over.
pub(super) struct Streams {
    /// Where stdout goes.
    pub(super) output: OwnedFd,
    /// Where stderr goes; none: where stdout does.
    pub(super) errors: Option<OwnedFd>,
    /// Where the steps are told.
    pub(super) report: File,
}

/// Becomes the program, or tells why not and ends.
pub(super) fn become_program(start: &Start, streams: Streams, shim: Pid) -> ! {
    let Streams { output, errors, mut report } = streams;
    let failed = match prepare(start, (output, errors), &mut report, shim) {
        Ok(()) => execute(start),
        Err(failed) => failed,
    };
    let _ = report.write_all(&[&[report::FAILED], failed.as_bytes()].concat());
    sys::exit_now(127)
}

fn prepare(start: &Start, (output, errors): (OwnedFd, Option<OwnedFd>), report: &mut File, shim: Pid) -> Result<(), String> {
    let system = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| format!("cannot {what}: {}", in_words(&error))
    };
    // A session and a group of its own: a signal to the group reaches all of it, and none of anybody else's.
    setsid().map_err(io::Error::from).map_err(system("begin a session"))?;
    join(&start.cgroup).map_err(system("join its cgroup"))?;
    let stdin = open_stdin(&start.stdin).map_err(system("open its stdin"))?;
    if let Some(account) = &start.account {
        let given = (!start.stdin.is_empty()).then(|| stdin.as_fd());
        let pipes = [&output].into_iter().chain(&errors).map(AsFd::as_fd);
        // As /dev/stdout and its like they are opened anew, as which account it then is.
        given
            .into_iter()
            .chain(pipes)
            .try_for_each(|file| fchown(file, Some(account.uid), Some(account.gid)))
            .map_err(system("give it its streams"))?;
    }
    streams(&stdin, &output, errors.as_ref().unwrap_or(&output)).map_err(system("set up its streams"))?;
    drop((stdin, output, errors));
    umask(Mode::from_bits_truncate(0o022));
    limits().map_err(system("set its limits"))?;
    if let Some(account) = &start.account {
        become_account(account).map_err(system("take on its account"))?;
    }
    #[cfg(target_os = "linux")]
    if !start.may_gain_privileges {
        // Who becomes another user could not be killed by this one.
        nix::sys::prctl::set_no_new_privs().map_err(io::Error::from).map_err(system("give up the right to gain privileges"))?;
    }
    let _ = report.write_all(&[report::CWD]);
    enter(start)?;
    sys::default_signals();
    SigSet::empty().thread_set_mask().map_err(io::Error::from).map_err(system("unblock signals"))?;
    // Last of all, as a change of credentials would clear it.
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(io::Error::from).map_err(system("be tied to its shim"))?;
    if getppid() != shim {
        return Err("its shim has ended".to_owned());
    }
    let _ = report.write_all(&[report::EXEC]);
    Ok(())
}

fn join(cgroup: &CStr) -> io::Result<()> {
    if cgroup.is_empty() {
        return Ok(());
    }
    fault::at("child.join")?;
    let procs = Path::new(OsStr::from_bytes(cgroup.to_bytes())).join("cgroup.procs");
    fs::OpenOptions::new().write(true).open(procs)?.write_all(b"0")
}

/// The file that it reads from: opened by the user of this worker, whatever account follows.
fn open_stdin(path: &CStr) -> io::Result<File> {
    File::open(if path.is_empty() { Path::new("/dev/null") } else { Path::new(OsStr::from_bytes(path.to_bytes())) })
}

/// All groups first: who has become another user may not set them any more.
fn become_account(account: &Account) -> io::Result<()> {
    fault::at("child.account")?;
    let groups: Vec<Gid> = account.groups.iter().map(|group| Gid::from_raw(*group)).collect();
    nix::unistd::setgroups(&groups)?;
    nix::unistd::setgid(Gid::from_raw(account.gid))?;
    nix::unistd::setuid(Uid::from_raw(account.uid))?;
    Ok(())
}

fn streams(stdin: &File, output: &OwnedFd, errors: &OwnedFd) -> io::Result<()> {
    dup2_stdin(stdin)?;
    dup2_stdout(output)?;
    dup2_stderr(errors)?;
    #[cfg(target_os = "linux")]
    sys::close_on_exec()?;
    Ok(())
}

/// Soft limits as a program finds them on a machine that nobody has changed; the hard ones stay, as they are what the machine's owner set.
fn limits() -> io::Result<()> {
    const EVERYWHERE: [Resource; 6] = [
        Resource::RLIMIT_CORE,
        Resource::RLIMIT_CPU,
        Resource::RLIMIT_DATA,
        Resource::RLIMIT_FSIZE,
        Resource::RLIMIT_NOFILE,
        Resource::RLIMIT_STACK,
    ];
    #[cfg(target_os = "linux")]
    const HERE: [Resource; 4] = [Resource::RLIMIT_AS, Resource::RLIMIT_MEMLOCK, Resource::RLIMIT_NPROC, Resource::RLIMIT_RSS];
    #[cfg(not(target_os = "linux"))]
    const HERE: [Resource; 0] = [];
    for resource in EVERYWHERE.into_iter().chain(HERE) {
        let (_, hard) = getrlimit(resource)?;
        let soft = match resource {
            Resource::RLIMIT_CORE => USUAL_CORE,
            Resource::RLIMIT_NOFILE => USUAL_OPEN_FILES.min(hard),
            Resource::RLIMIT_STACK => USUAL_STACK.min(hard),
            _ => hard,
        };
        setrlimit(resource, soft, hard)?;
    }
    Ok(())
}

fn enter(start: &Start) -> Result<(), String> {
    nix::unistd::chdir(start.cwd.as_c_str()).map_err(|errno| {
        let field = format!("{} {}", start.terms.cwd(), shown(&start.cwd.to_string_lossy()));
        match errno {
            Errno::ENOENT => format!("{field} does not exist on this worker"),
            Errno::ENOTDIR => format!("{field} is no folder on this worker"),
            Errno::EACCES => format!("{field} may not be entered by the user of this worker"),
            other => format!("{field} cannot be entered: {}", in_words(&other.into())),
        }
    })
}

/// Returns only if the program could not be executed: why.
fn execute(start: &Start) -> String {
    let Some(program) = start.command.first() else { return "spec.command: is empty".to_owned() };
    if program.as_bytes().contains(&b'/') {
        let Err(errno) = fault::at("child.exec").map_err(errno_of).and_then(|()| execve(program, &start.command, &start.environment));
        return why_not(program, errno, start);
    }
    let mut refused = None;
    for place in places(program, &path_of(start)) {
        match execve(&place, &start.command, &start.environment) {
            Err(Errno::ENOENT | Errno::ENOTDIR) if !Path::new(OsStr::from_bytes(place.as_bytes())).exists() => {}
            Err(errno) => {
                // As shells do it: a file that may not be executed may be followed by one that may.
                refused.get_or_insert((place, errno));
                if errno != Errno::EACCES {
                    break;
                }
            }
        }
    }
    match refused {
        Some((place, errno)) => why_not(&place, errno, start),
        None => {
            let field = start.terms.program();
            format!("{field} {} is in no folder of PATH ({})", shown(&program.to_string_lossy()), path_of(start).to_string_lossy())
        }
    }
}

fn errno_of(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn path_of(start: &Start) -> std::ffi::OsString {
    let path = start.environment.iter().rev().find_map(|entry| entry.as_bytes().strip_prefix(b"PATH="));
    path.map_or_else(|| OsStr::new(USUAL_PATH).to_owned(), |path| OsStr::from_bytes(path).to_owned())
}

/// Where the program may be, in the order of PATH. An empty entry is the folder that it starts in.
fn places(program: &CStr, path: &OsStr) -> Vec<CString> {
    let folders = path.as_bytes().split(|b| *b == b':').map(|folder| if folder.is_empty() { b".".as_slice() } else { folder });
    folders.filter_map(|folder| CString::new([folder, b"/", program.to_bytes()].concat()).ok()).collect()
}

/// Why the system did not execute a program, as far as its file shows.
fn why_not(program: &CStr, errno: Errno, start: &Start) -> String {
    let path = PathBuf::from(OsStr::from_bytes(program.to_bytes()));
    let shown_path = shown(&program.to_string_lossy());
    let field = format!("{} {shown_path}", start.terms.program());
    match errno {
        Errno::ENOENT | Errno::ENOTDIR => match fs::metadata(&path) {
            Ok(_) => format!("{field} {}", why_missing(&beginning(&path))),
            Err(_) if path.is_relative() => {
                let cwd = shown(&start.cwd.to_string_lossy());
                format!("{field} does not exist in {cwd} on this worker; set spec.cwd, or name it with its full path")
            }
            Err(_) => format!("{field} does not exist on this worker"),
        },
        Errno::ENOEXEC => {
            format!("{field} is neither a program for this machine nor a script that begins with #! and its interpreter")
        }
        Errno::EACCES if path.is_dir() => format!("{field} is a folder; name a program"),
        Errno::EACCES => {
            format!("{field} may not be executed by the user of this worker: its mode, a folder above it, or a mount with noexec")
        }
        Errno::E2BIG => {
            let size: usize = start.command.iter().chain(&start.environment).map(|text| text.as_bytes_with_nul().len() + 8).sum();
            format!(
                "{} {size} bytes of arguments and environment are more than this system takes (a quarter of the limit of the stack, and \
                 131072 bytes for each of them); put them in a file",
                start.terms.texts()
            )
        }
        other => format!("{field} cannot be executed: {}", in_words(&other.into())),
    }
}

/// Why a file that is there is not found: what it needs is not.
fn why_missing(beginning: &[u8]) -> String {
    let Some(line) = beginning.strip_prefix(b"#!") else {
        return "needs a loader that does not exist on this worker: it was built for another system or C library".to_owned();
    };
    let line = line.split(|b| *b == b'\n').next().unwrap_or_default();
    let interpreter = line.trim_ascii_start();
    if let Some(line) = interpreter.strip_suffix(b"\r") {
        let interpreter = shown(&String::from_utf8_lossy(line));
        return format!("is a script whose lines end in CR LF, so that its interpreter {interpreter} is not found; write it with LF alone");
    }
    let interpreter = interpreter.split(|b| b.is_ascii_whitespace()).next().unwrap_or_default();
    format!("is a script whose interpreter {} does not exist on this worker", shown(&String::from_utf8_lossy(interpreter)))
}

fn beginning(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = File::open(path).and_then(|file| file.take(512).read_to_end(&mut bytes));
    bytes
}

/// An error of the system without its number.
pub(crate) fn in_words(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

/// What a limit of processes says at a fork.
pub(super) fn fork_refused(error: &io::Error) -> String {
    let way_out = match errno_of(io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EIO))) {
        Errno::EAGAIN => "; a limit of processes is reached (pids.max of a cgroup, TasksMax=, pids_limit, or RLIMIT_NPROC of the user)",
        Errno::ENOMEM => "; memory is short",
        _ => "",
    };
    format!("no process can be made: {}{way_out}", in_words(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_interpreter_is_named() {
        let cases = [
            (
                &b"#!/bin/sh\r\necho"[..],
                "is a script whose lines end in CR LF, so that its interpreter \"/bin/sh\" is not found; write it with LF alone",
            ),
            (b"#! /opt/py3 -u\n", "is a script whose interpreter \"/opt/py3\" does not exist on this worker"),
            (
                b"#!/usr/bin/env  python\r\n",
                "is a script whose lines end in CR LF, so that its interpreter \"/usr/bin/env  python\" is not found; write it with LF alone",
            ),
            (b"\x7fELF\x02", "needs a loader that does not exist on this worker: it was built for another system or C library"),
        ];
        for (beginning, expected) in cases {
            assert_eq!(why_missing(beginning), expected);
        }
    }

    #[test]
    fn a_program_is_searched_in_the_path_of_its_environment() {
        let text = |text: &str| CString::new(text).expect("no NUL");
        let found = places(&text("crawl"), OsStr::new("/a::/b"));
        assert_eq!(found, [text("/a/crawl"), text("./crawl"), text("/b/crawl")]);
    }

    #[test]
    fn errors_are_told_in_words() {
        assert_eq!(in_words(&io::Error::from_raw_os_error(libc::ENOENT)), "no such file or directory");
        assert_eq!(in_words(&io::Error::other("Odd")), "odd");
    }
}

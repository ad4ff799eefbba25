//! The one unsafe corner: what a child does between fork and exec.
//!
//! The wheel: under worker::driver and worker::guard. Between fork and exec only system calls are made: no allocation, no lock.

use std::{io, os::fd::OwnedFd, os::unix::process::CommandExt, process::Command};

use nix::{sys::signal::SigSet, unistd::Pid};

/// How a child is set up before its program is executed.
#[derive(Debug, Default)]
pub(crate) struct ChildSetup {
    /// It gets a session and process group of its own, and is killed when the thread that started it ends.
    pub(crate) own_session: bool,
    /// The process that starts it: if that has ended meanwhile, the child ends too.
    pub(crate) parent: Option<Pid>,
    /// `cgroup.procs` of the cgroup that it joins.
    pub(crate) cgroup: Option<OwnedFd>,
    /// The limit of open files that it gets back (soft, hard).
    pub(crate) open_files: Option<(u64, u64)>,
}

/// Makes the command set up its child like this, and with no signal blocked.
pub(crate) fn set_up(command: &mut Command, setup: ChildSetup) {
    #[allow(unsafe_code, reason = "there is no safe way to act between fork and exec; enter makes system calls only")]
    unsafe {
        command.pre_exec(move || enter(&setup));
    }
}

fn enter(setup: &ChildSetup) -> io::Result<()> {
    SigSet::empty().thread_set_mask()?;
    if setup.own_session {
        nix::unistd::setsid()?;
        #[cfg(target_os = "linux")]
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    }
    // The signal comes only if the parent ends from now on.
    if setup.parent.is_some_and(|parent| parent != nix::unistd::getppid()) {
        return Err(nix::errno::Errno::ESRCH.into());
    }
    if let Some(procs) = &setup.cgroup {
        nix::unistd::write(procs, b"0")?;
    }
    if let Some((soft, hard)) = setup.open_files {
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, soft, hard)?;
    }
    Ok(())
}

/// Makes the ends of children be told. A parent that ignores them hands that on, and then nobody learns how a child ended.
pub(crate) fn hear_of_children() -> io::Result<()> {
    #[allow(unsafe_code, reason = "the default action runs no code of ours")]
    unsafe {
        nix::sys::signal::signal(nix::sys::signal::Signal::SIGCHLD, nix::sys::signal::SigHandler::SigDfl)?;
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
mod requests {
    use std::{
        io,
        sync::atomic::{AtomicI32, Ordering},
    };

    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

    static REQUEST: AtomicI32 = AtomicI32::new(0);

    extern "C" fn note(signal: i32) {
        REQUEST.store(signal, Ordering::SeqCst);
    }

    /// Makes SIGTERM, SIGINT and SIGHUP be noted instead of ending this process.
    pub(crate) fn catch_requests_to_end() -> io::Result<()> {
        let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            #[allow(unsafe_code, reason = "the handler stores one atomic number and nothing else")]
            unsafe {
                sigaction(signal, &action)?;
            }
        }
        Ok(())
    }

    /// The signal that came since the last call.
    pub(crate) fn take_request_to_end() -> Option<i32> {
        Some(REQUEST.swap(0, Ordering::SeqCst)).filter(|signal| *signal != 0)
    }
}
#[cfg(not(target_os = "linux"))]
pub(crate) use requests::{catch_requests_to_end, take_request_to_end};

//! The one unsafe corner: forks, what a child does between fork and exec, and calls of the kernel that have no safe form.
//!
//! The wheel: under worker::hold and worker::guard. It decides nothing.

use std::{io, os::fd::OwnedFd, os::unix::process::CommandExt, process::Command};

use nix::{
    sys::signal::{SigSet, Signal},
    unistd::Pid,
};

/// How a child is set up before its program is executed.
#[derive(Debug, Default)]
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "some of it is Linux's alone"))]
pub(crate) struct ChildSetup {
    /// The signals that it begins with blocked; none: no signal is.
    pub(crate) blocked: Option<SigSet>,
    /// What it is sent when the *thread* that started it ends (Linux).
    pub(crate) death_signal: Option<Signal>,
    /// The process that starts it: if that has ended meanwhile, the child ends too.
    pub(crate) parent: Option<Pid>,
    /// `cgroup.procs` of the cgroup that it joins.
    pub(crate) cgroup: Option<OwnedFd>,
    /// The score that it gets back (Linux).
    pub(crate) oom_score: Option<OomScore>,
}

/// How soon the kernel kills a process when memory runs out: from -1000, never, to 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "Linux alone has it"))]
pub(crate) struct OomScore(i32);

#[cfg(target_os = "linux")]
impl OomScore {
    /// After everything else that may be killed at all.
    pub(crate) const LAST_TO_GO: Self = Self(-999);
    const FILE: &'static std::ffi::CStr = c"/proc/self/oom_score_adj";

    /// Of this process.
    pub(crate) fn read() -> Option<Self> {
        let text = std::fs::read_to_string(Self::FILE.to_str().ok()?).ok()?;
        text.trim().parse().ok().map(Self)
    }

    /// Makes it this process's. Allocates nothing.
    pub(crate) fn write(self) -> io::Result<()> {
        use std::io::Write;

        use nix::{fcntl::OFlag, sys::stat::Mode};

        let mut text = [0_u8; 8];
        let mut room = &mut text[..];
        write!(room, "{}", self.0)?;
        let left = room.len();
        let file = nix::fcntl::open(Self::FILE, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        nix::unistd::write(&file, &text[..text.len() - left])?;
        Ok(())
    }
}

/// Makes the command set up its child like this.
pub(crate) fn set_up(command: &mut Command, setup: ChildSetup) {
    #[allow(unsafe_code, reason = "there is no safe way to act between fork and exec; enter makes system calls only")]
    unsafe {
        command.pre_exec(move || enter(&setup));
    }
}

fn enter(setup: &ChildSetup) -> io::Result<()> {
    setup.blocked.unwrap_or_else(SigSet::empty).thread_set_mask()?;
    #[cfg(target_os = "linux")]
    if let Some(signal) = setup.death_signal {
        nix::sys::prctl::set_pdeathsig(signal)?;
    }
    // The signal comes only if the parent ends from now on.
    if setup.parent.is_some_and(|parent| parent != nix::unistd::getppid()) {
        return Err(nix::errno::Errno::ESRCH.into());
    }
    if let Some(procs) = &setup.cgroup {
        nix::unistd::write(procs, b"0")?;
    }
    #[cfg(target_os = "linux")]
    if let Some(score) = setup.oom_score {
        // What may not be looked into may not write its own score either. The program that follows begins as any other.
        nix::sys::prctl::set_dumpable(true)?;
        score.write()?;
    }
    Ok(())
}

/// Every signal that can be held back. A fault tells a process of its own mistake, and cannot wait.
pub(crate) fn signals_to_hold() -> SigSet {
    const FAULTS: [Signal; 7] =
        [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL, Signal::SIGTRAP, Signal::SIGABRT, Signal::SIGSYS];
    let mut held = SigSet::all();
    FAULTS.into_iter().for_each(|fault| held.remove(fault));
    held
}

/// Keeps processes of this user from looking into this one, tracing it and taking its files: work has its worker's user, and could speak in its
/// name. What is forked from it has that as well; what is executed has not.
pub(crate) fn keep_out() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_dumpable(false)?;
    Ok(())
}

/// What became of this process at a fork.
pub(crate) enum Forked {
    /// It is the parent; the child has this number.
    Parent(Pid),
    /// It is the child.
    Child,
}

/// Forks this process. In the child only the calling thread exists: what another thread held locked stays locked there for ever. The C
/// library takes care of its own locks (of memory, say). So a process that has other threads may call this only if the child touches
/// nothing of theirs: no log, no runtime.
///
/// # Errors
/// The kernel refuses: too many processes, no memory.
pub(crate) fn fork() -> io::Result<Forked> {
    #[allow(unsafe_code, reason = "there is no safe form; its rule is in the text above, and each caller says how it keeps it")]
    let forked = unsafe { nix::unistd::fork() }?;
    Ok(match forked {
        nix::unistd::ForkResult::Parent { child } => Forked::Parent(child),
        nix::unistd::ForkResult::Child => Forked::Child,
    })
}

/// Ends this process at once: nothing of the parent that it was forked from is flushed or undone.
pub(crate) fn exit_now(status: i32) -> ! {
    #[allow(unsafe_code, reason = "it has no safe form; it ends the process")]
    unsafe {
        nix::libc::_exit(status)
    }
}

/// Gives every signal its default action, also those that a parent ignores, and the two that the C library keeps for itself.
#[cfg(target_os = "linux")]
pub(crate) fn default_signals() {
    use nix::libc;
    const SIGNALS: libc::c_int = 64;
    /// The kernel's form of an action, all zero: the default, no flags, an empty mask.
    const DEFAULT: [u64; 4] = [0; 4];
    for signal in 1..=SIGNALS {
        // SIGKILL and SIGSTOP have no other, and are refused.
        #[allow(unsafe_code, reason = "the C library would leave out its own two; the action outlives the call and runs no code of ours")]
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), std::ptr::null::<u64>(), size_of::<u64>());
        }
    }
}

/// Gives every signal its default action, also those that a parent ignores.
#[cfg(not(target_os = "linux"))]
pub(crate) fn default_signals() {
    for signal in Signal::iterator() {
        // SIGKILL and SIGSTOP have no other, and are refused.
        #[allow(unsafe_code, reason = "the default action runs no code of ours")]
        let _ = unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigDfl) };
    }
}

/// Closes every file of this process but its three streams and this one.
pub(crate) fn close_all_but(kept: std::os::fd::BorrowedFd<'_>) {
    let kept = u32::try_from(std::os::fd::AsRawFd::as_raw_fd(&kept)).unwrap_or(u32::MAX);
    #[cfg(target_os = "linux")]
    for (first, last) in [(3, kept.saturating_sub(1)), (kept.saturating_add(1).max(3), u32::MAX)] {
        if first <= last {
            #[allow(unsafe_code, reason = "it has no safe form; the caller is a fork that owns none of these files any more")]
            unsafe {
                nix::libc::close_range(first, last, 0);
            }
        }
    }
    #[cfg(not(target_os = "linux"))]
    {
        let most = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft.min(65_536));
        for file in (3..u32::try_from(most).unwrap_or(1024)).filter(|file| *file != kept) {
            #[allow(unsafe_code, reason = "it has no safe form; the caller is a fork that owns none of these files any more")]
            unsafe {
                nix::libc::close(i32::try_from(file).unwrap_or(-1));
            }
        }
    }
}

/// No child inherits a file that is open now, but for its three streams.
#[cfg(target_os = "linux")]
pub(crate) fn close_on_exec() -> io::Result<()> {
    use nix::libc;
    #[allow(unsafe_code, reason = "it has no safe form; it closes nothing in this process")]
    let result = unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) };
    Ok(nix::errno::Errno::result(result).map(drop)?)
}

/// Puts this process before all that is not of real time. Its children are ordinary again.
#[cfg(target_os = "linux")]
pub(crate) fn run_first() -> io::Result<()> {
    use nix::libc;
    let lowest = libc::sched_param { sched_priority: 1 };
    #[allow(unsafe_code, reason = "it has no safe form; the parameter outlives the call")]
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &raw const lowest) };
    Ok(nix::errno::Errno::result(result).map(drop)?)
}

/// Makes all threads of this process share one heap. Each would have 64 MiB of addresses of its own, which count against the limit of what may
/// be locked into memory.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn share_one_heap() {
    use nix::libc;
    #[allow(unsafe_code, reason = "it has no safe form; it sets a number")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
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

    /// Makes the requests to end be noted instead of ending this process.
    pub(crate) fn catch_requests_to_end() -> io::Result<()> {
        let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
        for signal in crate::guard::REQUESTS {
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

//! What wakes the guard: a signal, a message of the agent, or a time that has come.
//!
//! The wheel: under worker::guard. It decides nothing. On Linux everything is a file descriptor, and the time is CLOCK_BOOTTIME even
//! while the machine sleeps.

/// What has happened since the last wait. The time that has come is read from the clock.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Woken {
    /// A signal came that asks to end, as [`Wake`] has it: the last one's number.
    pub(super) asked_to_end: Option<i32>,
}

#[cfg(target_os = "linux")]
pub(super) use linux::Wake;
#[cfg(not(target_os = "linux"))]
pub(super) use other::Wake;

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        io,
        os::fd::{AsFd, BorrowedFd},
        time::Duration,
    };

    use nix::{
        errno::Errno,
        poll::{PollFd, PollFlags, PollTimeout, poll},
        sys::{
            signal::Signal,
            signalfd::{SfdFlags, SignalFd},
            time::TimeSpec,
            timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
        },
    };

    use super::Woken;
    use crate::{guard::REQUESTS, protocol::authority::BootTime, sys};

    /// Every signal that can be held back comes through here, so that none ends or stops the guard: not Ctrl+Z, and not one that somebody
    /// sends to learn something. The kernel lets SIGKILL and SIGSTOP through to it.
    #[derive(Debug)]
    pub(in crate::guard) struct Wake {
        signals: SignalFd,
        timer: TimerFd,
        /// SIGHUP was ignored at the start, as under `nohup`: it asks for nothing.
        hangup_ignored: bool,
    }

    impl Wake {
        pub(in crate::guard) fn new() -> io::Result<Self> {
            let mask = sys::signals_to_hold();
            mask.thread_block()?;
            let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
            let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
            let hangup_ignored = std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores(&status, Signal::SIGHUP));
            Ok(Self { signals, timer, hangup_ignored })
        }

        /// Waits until something happens, or until this time.
        pub(in crate::guard) fn wait(&self, link: Option<BorrowedFd<'_>>, until: Option<BootTime>) -> io::Result<Woken> {
            match until {
                // A time of zero would disarm the timer.
                Some(at) => {
                    let at = TimeSpec::from_duration(Duration::from_nanos(at.0.max(1)));
                    self.timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
                }
                None => self.timer.unset()?,
            }
            let signals = PollFd::new(self.signals.as_fd(), PollFlags::POLLIN);
            let timer = PollFd::new(self.timer.as_fd(), PollFlags::POLLIN);
            let result = match link {
                Some(link) => poll(&mut [signals, timer, PollFd::new(link, PollFlags::POLLIN)], PollTimeout::NONE),
                None => poll(&mut [signals, timer], PollTimeout::NONE),
            };
            match result {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let mut woken = Woken::default();
            while let Some(info) = self.signals.read_signal()? {
                let number = i32::try_from(info.ssi_signo).unwrap_or_default();
                let hangup = number == Signal::SIGHUP as i32;
                if REQUESTS.iter().any(|request| *request as i32 == number) && !(hangup && self.hangup_ignored) {
                    woken.asked_to_end = Some(number);
                }
            }
            Ok(woken)
        }
    }

    /// Whether a process ignores a signal, by its text in `/proc/<pid>/status`.
    fn ignores(status: &str, signal: Signal) -> bool {
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).map(|mask| u64::from_str_radix(mask.trim(), 16));
        matches!(mask, Some(Ok(mask)) if mask & (1 << (signal as u32 - 1)) != 0)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn an_ignored_signal_is_found() {
            let status = "Name:\tevenkeel\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000002\n";
            assert!(ignores(status, Signal::SIGHUP) && ignores(status, Signal::SIGPIPE));
            assert!(!ignores(status, Signal::SIGINT) && !ignores("", Signal::SIGHUP));
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use std::{io, os::fd::BorrowedFd};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::Woken;
    use crate::{protocol::authority::BootTime, sys};

    /// Looks at short intervals.
    #[derive(Debug)]
    pub(in crate::guard) struct Wake(());

    impl Wake {
        pub(in crate::guard) fn new() -> io::Result<Self> {
            sys::catch_requests_to_end()?;
            Ok(Self(()))
        }

        pub(in crate::guard) fn wait(&self, link: Option<BorrowedFd<'_>>, _until: Option<BootTime>) -> io::Result<Woken> {
            let pause = PollTimeout::from(20_u8);
            let _ = match link {
                Some(link) => poll(&mut [PollFd::new(link, PollFlags::POLLIN)], pause),
                None => poll(&mut [], pause),
            };
            Ok(Woken { asked_to_end: sys::take_request_to_end() })
        }
    }
}

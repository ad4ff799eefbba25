//! What wakes the guard: a signal, a message of the agent, or a time that has come.
//!
//! The wheel: under worker::guard. It decides nothing. On Linux everything is a file descriptor, and the time is CLOCK_BOOTTIME even
//! while the machine sleeps.

/// What has happened since the last wait. The time that has come is read from the clock.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Woken {
    /// SIGTERM, SIGINT or SIGHUP came: the last one's number.
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
            signal::{SigSet, Signal},
            signalfd::{SfdFlags, SignalFd},
            time::TimeSpec,
            timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
        },
    };

    use super::Woken;
    use crate::authority::BootTime;

    #[derive(Debug)]
    pub(in crate::guard) struct Wake {
        signals: SignalFd,
        timer: TimerFd,
    }

    impl Wake {
        pub(in crate::guard) fn new() -> io::Result<Self> {
            let mut mask = SigSet::empty();
            for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
                mask.add(signal);
            }
            mask.thread_block()?;
            let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
            let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
            Ok(Self { signals, timer })
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
                if number != Signal::SIGCHLD as i32 {
                    woken.asked_to_end = Some(number);
                }
            }
            Ok(woken)
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use std::{io, os::fd::BorrowedFd};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::Woken;
    use crate::{authority::BootTime, sys};

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

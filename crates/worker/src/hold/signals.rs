//! Signals as a file: what wakes a shim or a spawner when a child has ended.
//!
//! The wheel: under worker::hold. Nothing is read from a signal but that there was one: the kernel is asked what has happened.

#[cfg(target_os = "linux")]
pub(super) use linux::Signals;
#[cfg(not(target_os = "linux"))]
pub(super) use other::Signals;

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        io,
        os::fd::{AsFd, BorrowedFd},
        time::Duration,
    };

    use nix::sys::signalfd::{SfdFlags, SignalFd};

    use crate::sys;

    /// Holds every signal that can be held.
    pub(in crate::hold) struct Signals(SignalFd);

    impl Signals {
        /// How often is looked although nothing happens; none: a signal wakes.
        pub(in crate::hold) const PERIOD: Option<Duration> = None;

        pub(in crate::hold) fn hold() -> io::Result<Self> {
            let held = sys::signals_to_hold();
            held.thread_set_mask()?;
            Ok(Self(SignalFd::with_flags(&held, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
        }

        pub(in crate::hold) fn file(&self) -> Option<BorrowedFd<'_>> {
            Some(self.0.as_fd())
        }

        pub(in crate::hold) fn take(&self) {
            while matches!(self.0.read_signal(), Ok(Some(_))) {}
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use std::{io, os::fd::BorrowedFd, time::Duration};

    use crate::sys;

    /// Looks at short intervals.
    pub(in crate::hold) struct Signals(());

    impl Signals {
        /// How often is looked although nothing happens.
        pub(in crate::hold) const PERIOD: Option<Duration> = Some(Duration::from_millis(20));

        pub(in crate::hold) fn hold() -> io::Result<Self> {
            sys::signals_to_hold().thread_set_mask()?;
            Ok(Self(()))
        }

        pub(in crate::hold) fn file(&self) -> Option<BorrowedFd<'_>> {
            None
        }

        pub(in crate::hold) fn take(&self) {}
    }
}

//! Faults that tests inject: the kernel's refusals, at the places where they hurt.
//!
//! The wheel: under worker::hold, worker::driver and worker::guard. A build without debug assertions has none of it. It decides
//! nothing: a place that is told to fail fails as if the kernel had refused.
//!
//! `EVENKEEL_FAULTS` has items with commas between them: `PLACE=ERRNO`, or `PLACE=ERRNO@FILE` for as long as FILE exists. The agent, the
//! spawner and the shims have it by inheritance; work does not.

use std::io;

/// Fails where a test wants this place to fail.
///
/// # Errors
/// The injected one.
#[cfg(debug_assertions)]
pub(crate) fn at(place: &str) -> io::Result<()> {
    use std::{path::Path, sync::OnceLock};

    use nix::errno::Errno;

    static FAULTS: OnceLock<String> = OnceLock::new();
    let faults = FAULTS.get_or_init(|| std::env::var("EVENKEEL_FAULTS").unwrap_or_default());
    let wanted = faults.split(',').filter_map(|item| item.split_once('=')).find(|(name, _)| *name == place);
    let Some((_, how)) = wanted else { return Ok(()) };
    let (errno, file) = how.split_once('@').map_or((how, None), |(errno, file)| (errno, Some(file)));
    if file.is_some_and(|file| !Path::new(file).exists()) {
        return Ok(());
    }
    Err(match errno {
        "EMFILE" => Errno::EMFILE,
        "EAGAIN" => Errno::EAGAIN,
        "ENOSPC" => Errno::ENOSPC,
        "ENOMEM" => Errno::ENOMEM,
        "EPERM" => Errno::EPERM,
        "EIO" => Errno::EIO,
        // The process ends on the spot, as by `kill -9`.
        "KILL" => {
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
            Errno::ESRCH
        }
        other => panic!("EVENKEEL_FAULTS: unknown error {other:?}"),
    }
    .into())
}

/// Nothing fails on purpose in a build that is not for tests.
///
/// # Errors
/// None.
#[cfg(not(debug_assertions))]
#[allow(clippy::unnecessary_wraps, reason = "the same form as in builds for tests")]
pub(crate) fn at(_: &str) -> io::Result<()> {
    Ok(())
}

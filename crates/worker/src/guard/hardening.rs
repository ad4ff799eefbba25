//! What the guard secures for itself at its start, so that it can still kill when the machine is short of memory or of time.
//!
//! The wheel: under worker::guard. Each of these is taken where the system grants it, and the guard works without; none of it is handed
//! on to the agent or to work. It decides nothing.

use crate::sys::OomScore;

/// Secures what can be had, says once what was refused, and returns the score that the agent gets back.
#[cfg(target_os = "linux")]
pub(super) fn secure() -> Option<OomScore> {
    use crate::sys;

    // A file that whoever started this process left open is not for work to inherit: it may be a lock.
    let inherited = sys::close_on_exec();
    let before = OomScore::read();
    let oom = before.map_or(Ok(()), |before| before.min(OomScore::LAST_TO_GO).write());
    let steps = [
        ("keep inherited files from work", inherited),
        ("stay in memory", lock_memory()),
        ("be among the last to be killed for memory", oom),
        ("run before all else", sys::run_first()),
    ];
    for (what, result) in steps {
        if let Err(error) = result {
            tracing::info!(%error, "the guard may not {what}: it works without");
        }
    }
    before
}

#[cfg(not(target_os = "linux"))]
pub(super) fn secure() -> Option<OomScore> {
    None
}

/// What is mapped now stays in memory. What is mapped later does only where there is no limit: beyond one, the mapping itself would fail.
/// The kill needs nothing that is mapped later.
#[cfg(target_os = "linux")]
fn lock_memory() -> std::io::Result<()> {
    use nix::sys::{
        mman::{MlockAllFlags, mlockall},
        resource::{RLIM_INFINITY, Resource, getrlimit},
    };

    let unlimited = getrlimit(Resource::RLIMIT_MEMLOCK).is_ok_and(|(soft, _)| soft == RLIM_INFINITY);
    let future = if unlimited { MlockAllFlags::MCL_FUTURE } else { MlockAllFlags::empty() };
    Ok(mlockall(MlockAllFlags::MCL_CURRENT | future)?)
}

//! How many files this process may open: each connection is one.
//!
//! Under net::serve's limits. It is asked at a process's start; only a process without children may raise its limit, since they inherit it.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How many files this process may open.
#[must_use]
pub fn descriptors() -> u64 {
    // No limit at all is the most that there is.
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Lets this process open as many files as it may allow itself. Nothing changes where that is refused.
pub fn raise_descriptors() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

//! Whether etcd is there, and new enough.
//!
//! In the wheel this comes before the first turn: masters and workers wait here at their start. It asks and waits, and starts nothing.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::{client::Client, error::Error};

/// The oldest version of etcd that will do.
const OLDEST: (u32, u32) = (3, 4);
const READY_LOG_INTERVAL: Duration = Duration::from_secs(5);
const READY_RETRY: Duration = Duration::from_millis(100);

/// What a member says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// The URL that was asked.
    pub endpoint: String,
    /// Its version, such as `3.5.16`.
    pub version: String,
    /// The size of its database in bytes.
    pub db_size: i64,
    /// Whether it leads the others.
    pub leads: bool,
}

impl Client {
    /// Asks the member in use for its status.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn status(&self) -> Result<MemberStatus, Error> {
        let at = self.current();
        let status = self.try_member(at, Instant::now() + self.deadline(), self.deadline(), |member| member.status()).await;
        status.inspect_err(|error| self.left_because(at, error))
    }

    /// Checks that the member in use is new enough (3.4), and returns its status.
    ///
    /// # Errors
    /// [`Error::TooOld`], and those of a read.
    pub async fn require_version(&self) -> Result<MemberStatus, Error> {
        let status = self.status().await?;
        let needed = format!("{}.{}", OLDEST.0, OLDEST.1);
        if is_older(&status.version, OLDEST) {
            return Err(Error::TooOld { endpoint: status.endpoint, version: status.version, needed });
        }
        Ok(status)
    }

    /// Waits until etcd serves a linearizable read and is new enough, going round its members. Says every few seconds what it waits for.
    ///
    /// # Errors
    /// [`Error::NotReady`] with the last failure after `bound`; [`Error::TooOld`] at once.
    pub async fn wait_ready(&self, bound: Duration) -> Result<MemberStatus, Error> {
        self.wait_ready_noting(bound, |_| ()).await
    }

    /// The same; each failure is noted, for whoever asks meanwhile what is waited for.
    ///
    /// # Errors
    /// Those of [`Client::wait_ready`].
    pub async fn wait_ready_noting(&self, bound: Duration, mut noted: impl FnMut(&Error)) -> Result<MemberStatus, Error> {
        let start = Instant::now();
        let mut next_log = start + READY_LOG_INTERVAL.min(self.deadline());
        loop {
            let ready = match self.get(&[0]).await {
                Ok(_) => self.require_version().await,
                Err(error) => Err(error),
            };
            let last = match ready {
                Ok(status) => {
                    info!(endpoint = status.endpoint, version = status.version, "etcd is ready");
                    return Ok(status);
                }
                Err(error @ Error::TooOld { .. }) => return Err(error),
                Err(error) => error,
            };
            noted(&last);
            if start.elapsed() >= bound {
                return Err(Error::NotReady { waited: bound, last: Box::new(last) });
            }
            if Instant::now() >= next_log {
                warn!(waited_s = start.elapsed().as_secs(), error = %last, "waiting for etcd");
                next_log = Instant::now() + READY_LOG_INTERVAL;
            }
            sleep(READY_RETRY).await;
        }
    }
}

/// Whether a version such as `3.4.23` is older than the given major and minor. What is no version is not called old.
fn is_older(version: &str, oldest: (u32, u32)) -> bool {
    let mut parts = version.split('.').map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < oldest,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for (version, older) in [("3.3.25", true), ("3.4.0", false), ("3.10.1", false), ("2.9.9", true), ("4.0.0", false), ("?", false)] {
            assert_eq!(is_older(version, (3, 4)), older, "{version}");
        }
    }
}

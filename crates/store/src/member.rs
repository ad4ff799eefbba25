//! One member of etcd: its URL, checked, and its connections.
//!
//! In the wheel it is what the client rotates over. It makes connections and gives them up; which member to use is not its business.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use etcd_client as etcd;
use tonic::transport::Endpoint;

use crate::error::Error;

/// etcd closes a connection that is pinged more often than every 5 s, and counts a ping that comes a little early.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(6);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// A member of etcd.
pub(crate) struct Member {
    endpoint: String,
    /// Made at the first use, and again after the member was left: a connection that hangs is never used again. Watches have one of
    /// their own, so that what a slow reader leaves unread there holds up no call.
    connections: [Mutex<Option<Connection>>; 2],
}

/// What a connection is used for.
#[derive(Clone, Copy)]
pub(crate) enum Use {
    /// Calls, and the streams that keep leases alive.
    Calls,
    /// Watches.
    Watches,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.endpoint)
    }
}

/// The clients of one connection to one member.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) kv: etcd::KvClient,
    pub(crate) lease: etcd::LeaseClient,
    pub(crate) watch: etcd::WatchClient,
    pub(crate) maintenance: etcd::MaintenanceClient,
}

impl Member {
    /// Checks the URL. No connection is made before the first call.
    pub(crate) fn new(given: &str) -> Result<Self, Error> {
        Ok(Self { endpoint: checked_url(given)?, connections: Default::default() })
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The connection, which is prepared if there is none.
    pub(crate) async fn connection(&self, to: Use) -> Result<Connection, Error> {
        if let Some(connection) = self.slot(to).as_ref() {
            return Ok(connection.clone());
        }
        let made = connect(&self.endpoint).await?;
        Ok(self.slot(to).get_or_insert(made).clone())
    }

    /// Gives the connections up. Calls and streams that are under way on them go on.
    pub(crate) fn forget(&self) {
        self.slot(Use::Calls).take();
        self.slot(Use::Watches).take();
    }

    fn slot(&self, to: Use) -> MutexGuard<'_, Option<Connection>> {
        self.connections[to as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Prepares a connection. It is made by the first call, and made again by the next call after it broke.
async fn connect(endpoint: &str) -> Result<Connection, Error> {
    let invalid = |e: tonic::transport::Error| Error::InvalidEndpoint { given: endpoint.into(), reason: e.to_string() };
    let channel = Endpoint::from_shared(endpoint.to_owned())
        .map_err(invalid)?
        .connect_timeout(Duration::from_secs(2))
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(false)
        .connect_lazy();
    let options = etcd::ConnectOptions::new().with_require_leader(true);
    let client = etcd::Client::from_channel(etcd::Channel::Tonic(channel), Some(options)).await.map_err(|e| Error::of(e, endpoint))?;
    // The limit of 4 MiB is the client's own; etcd sends what was asked for, and a watch sends whole transactions.
    let largest = i32::MAX as usize;
    Ok(Connection {
        kv: client.kv_client().max_decoding_message_size(largest),
        lease: client.lease_client(),
        watch: client.watch_client().max_decoding_message_size(largest),
        maintenance: client.maintenance_client(),
    })
}

/// An endpoint as a URL: what has no scheme is taken for `http://`.
fn checked_url(given: &str) -> Result<String, Error> {
    let invalid = |reason: String| Error::InvalidEndpoint { given: given.into(), reason };
    let url = match given.trim().split_once("://").unwrap_or(("http", given.trim())) {
        ("http", rest) => format!("http://{}", rest.trim_end_matches('/')),
        ("https", _) => return Err(invalid("TLS is not built in; use http://".into())),
        (scheme, _) => return Err(invalid(format!("the scheme {scheme}:// is unknown; use http://"))),
    };
    let parsed = Endpoint::from_shared(url.clone()).map_err(|_| invalid("it is no URL; write http://host:port".into()))?;
    match parsed.uri() {
        uri if uri.host().is_none_or(str::is_empty) => Err(invalid("it has no host; write http://host:port".into())),
        uri if uri.port_u16().is_none() => {
            Err(invalid("it has no port (1 to 65535); write http://host:port, etcd's own port is 2379".into()))
        }
        uri if !matches!(uri.path(), "" | "/") || uri.query().is_some() => {
            Err(invalid("it goes on after the port; write http://host:port".into()))
        }
        _ => Ok(url),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_checked_before_anything_is_sent() {
        let good = [("127.0.0.1:2379", "http://127.0.0.1:2379"), ("http://[::1]:1/", "http://[::1]:1"), (" a:1 ", "http://a:1")];
        for (given, url) in good {
            assert_eq!(checked_url(given).unwrap(), url);
        }
        let bad = [
            ("https://a:1", "TLS is not built in"),
            ("ftp://a:1", "ftp:// is unknown"),
            ("", "no URL"),
            ("http://", "no URL"),
            ("http://a", "no port"),
            ("a b:1", "no URL"),
            ("a:99999", "no port"),
            ("http://a:1/v3", "goes on after the port"),
        ];
        for (given, why) in bad {
            let message = checked_url(given).unwrap_err().to_string();
            assert!(message.contains(why), "{given:?}: {message}");
        }
    }
}

//! One real member of etcd: its URL, checked, its connections, and the calls over them.
//!
//! In the wheel it is what the client rotates over. It makes connections and gives them up; which member to use is not its business.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use etcd_client as etcd;
use evenkeel_model::Revision;
use futures::{FutureExt, future::BoxFuture};
use tonic::transport::Endpoint;

use crate::{
    error::Error,
    ready::MemberStatus,
    transport::{Granted, KeepAlive, RangeReply, RangeRequest, Transport, Watch},
    types::{KeyRange, Txn, TxnReply},
    wire,
    wire_streams::{WireKeepAlive, WireWatch},
};

/// etcd closes a connection that is pinged more often than every 5 s, and counts a ping that comes a little early.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(6);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// One real member of etcd, for [`Client::over`](crate::Client::over). No connection is made before the first call.
///
/// # Errors
/// [`Error::InvalidEndpoint`] for an endpoint that is no `http://` URL.
pub fn connect(endpoint: &str) -> Result<Arc<dyn Transport>, Error> {
    Ok(Arc::new(Member { endpoint: checked_url(endpoint)?, connections: Default::default() }))
}

/// A member of etcd.
struct Member {
    endpoint: String,
    /// Made at the first use, and again after the member was left: a connection that hangs is never used again. Watches have one of
    /// their own, so that what a slow reader leaves unread there holds up no call.
    connections: [Mutex<Option<Connection>>; 2],
}

/// What a connection is used for.
#[derive(Clone, Copy)]
enum Use {
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
    /// The connection, which is prepared if there is none.
    async fn connection(&self, to: Use) -> Result<Connection, Error> {
        if let Some(connection) = self.slot(to).as_ref() {
            return Ok(connection.clone());
        }
        let made = prepare(&self.endpoint).await?;
        Ok(self.slot(to).get_or_insert(made).clone())
    }

    /// Makes one call.
    async fn call<T, Fut>(&self, run: impl FnOnce(Connection) -> Fut) -> Result<T, Error>
    where
        Fut: Future<Output = Result<T, etcd::Error>>,
    {
        let connection = self.connection(Use::Calls).await?;
        run(connection).await.map_err(|error| Error::of(error, &self.endpoint))
    }

    fn slot(&self, to: Use) -> MutexGuard<'_, Option<Connection>> {
        self.connections[to as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport for Member {
    fn endpoint(&self) -> &str {
        &self.endpoint
    }

    fn range(&self, request: RangeRequest) -> BoxFuture<'_, Result<RangeReply, Error>> {
        async {
            let (start, options) = wire::range(request);
            let mut found = self.call(async |mut connection: Connection| connection.kv.get(start, Some(options)).await).await?;
            Ok(RangeReply { more: found.more(), revision: wire::revision(found.header()), kvs: wire::kvs(found.take_kvs()) })
        }
        .boxed()
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnReply, Error>> {
        async {
            let reads = !(txn.then.is_empty() && txn.otherwise.is_empty());
            let txn = wire::txn(txn);
            let done = self.call(async |mut connection: Connection| connection.kv.txn(txn).await).await?;
            Ok(wire::reply(&done, reads))
        }
        .boxed()
    }

    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> BoxFuture<'_, Result<Revision, Error>> {
        async {
            let done = self.call(async |mut connection: Connection| connection.kv.put(key, value, None).await).await?;
            Ok(wire::revision(done.header()))
        }
        .boxed()
    }

    fn grant(&self, seconds: i64) -> BoxFuture<'_, Result<Granted, Error>> {
        async move {
            let granted = self.call(async |mut connection: Connection| connection.lease.grant(seconds, None).await).await?;
            Ok(Granted { lease: granted.id(), ttl: Duration::from_secs(granted.ttl().unsigned_abs()) })
        }
        .boxed()
    }

    fn revoke(&self, lease: i64) -> BoxFuture<'_, Result<(), Error>> {
        async move { self.call(async |mut connection: Connection| connection.lease.revoke(lease).await).await.map(drop) }.boxed()
    }

    fn time_to_live(&self, lease: i64) -> BoxFuture<'_, Result<Option<Duration>, Error>> {
        async move {
            let answer = self.call(async |mut connection: Connection| connection.lease.time_to_live(lease, None).await).await?;
            Ok(u64::try_from(answer.ttl()).ok().map(Duration::from_secs))
        }
        .boxed()
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), Error>> {
        async move { self.call(async |mut connection: Connection| connection.kv.compact(revision.0, None).await).await.map(drop) }.boxed()
    }

    fn status(&self) -> BoxFuture<'_, Result<MemberStatus, Error>> {
        async {
            let status = self.call(async |mut connection: Connection| connection.maintenance.status().await).await?;
            Ok(MemberStatus {
                endpoint: self.endpoint.clone(),
                version: status.version().to_owned(),
                db_size: status.db_size(),
                leads: status.header().is_some_and(|header| header.member_id() == status.leader()),
            })
        }
        .boxed()
    }

    fn watch(&self, range: KeyRange, start: Revision) -> BoxFuture<'_, Result<Box<dyn Watch>, Error>> {
        async move {
            let connection = self.connection(Use::Watches).await?;
            let watch = WireWatch::open(connection, &self.endpoint, range, start).await?;
            Ok(Box::new(watch) as Box<dyn Watch>)
        }
        .boxed()
    }

    fn keep_alive(&self, lease: i64) -> BoxFuture<'_, Result<Box<dyn KeepAlive>, Error>> {
        async move {
            let connection = self.connection(Use::Calls).await?;
            let stream = WireKeepAlive::open(connection, &self.endpoint, lease).await?;
            Ok(Box::new(stream) as Box<dyn KeepAlive>)
        }
        .boxed()
    }

    fn forget(&self) {
        self.slot(Use::Calls).take();
        self.slot(Use::Watches).take();
    }
}

/// Prepares a connection. It is made by the first call, and made again by the next call after it broke.
async fn prepare(endpoint: &str) -> Result<Connection, Error> {
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

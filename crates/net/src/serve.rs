//! The accept loop, and the life of one connection.
//!
//! Beside the wheel: masters and workers serve both of their ports by it. It answers no request itself, except the one sentence to whom
//! no place is left.

use std::{convert::Infallible, future::Future, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use evenkeel_model::limits::{CONNECTION_WINDOW, STREAM_WINDOW, TCP_PROBE_AGAIN_S, TCP_PROBE_S, TCP_PROBES};
use http::{Request, Response};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use rustix::{
    io::Errno,
    net::{self, SocketAddrAny, SocketFlags, sockopt},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tonic::Code;
use tower::Service;

use crate::{
    activity::{Activity, Verdict},
    answer::{Body, error_json},
    io::Watched,
    keeper::{Full, Keeper},
    limits::Limits,
    ports::OpenEnded,
    request::{Peer, Requests},
};

/// How long it is waited after a failure to accept that repeats itself until something has changed: no file is left, say.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
/// How often such failures and refusals are logged.
const LOG_AGAIN: Duration = Duration::from_secs(10);
/// How long a connection may take to end in order.
const END: Duration = Duration::from_secs(5);
/// How long it is waited, when all is to end, for the first bytes of who has just connected: what has sent a request is to be answered.
const FIRST_BYTES: Duration = Duration::from_millis(100);
/// How many that are refused are told why at the same time.
const TOLD: usize = 64;

/// Where connections come from. TLS and identity come in here: what accepts says which stream, and who is at its other end.
pub trait Accept: Send {
    /// What is read and written.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;

    /// A connection that was made already and waits to be accepted; none: nobody waits.
    fn waiting(&mut self) -> Option<io::Result<(Self::Stream, SocketAddr)>>;
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, peer) = TcpListener::accept(self).await?;
        set_options(&stream);
        Ok((stream, peer))
    }

    fn waiting(&mut self) -> Option<io::Result<(TcpStream, SocketAddr)>> {
        // The kernel is asked: what it has told the runtime of may be older.
        let accepted = match net::acceptfrom_with(&*self, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok((stream, peer)) => std_address(peer).and_then(|peer| Ok((TcpStream::from_std(stream.into())?, peer))),
            Err(Errno::AGAIN) => return None,
            Err(error) => Err(error.into()),
        };
        Some(accepted.inspect(|(stream, _)| set_options(stream)))
    }
}

fn std_address(peer: Option<SocketAddrAny>) -> io::Result<SocketAddr> {
    let peer = peer.ok_or(Errno::AFNOSUPPORT)?;
    Ok(SocketAddr::try_from(peer)?)
}

fn set_options(stream: &TcpStream) {
    // Answers are small: none is to wait for the next one. A peer that has gone already is seen later, and a system without one of these
    // options does without it.
    let _ = stream.set_nodelay(true);
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, Duration::from_secs(TCP_PROBE_S));
    let _ = sockopt::set_tcp_keepintvl(stream, Duration::from_secs(TCP_PROBE_AGAIN_S));
    let _ = sockopt::set_tcp_keepcnt(stream, TCP_PROBES);
}

/// Serves until `stop` becomes true or its sender has gone; then lets the requests in flight end. Dropped, it ends all connections at once.
pub async fn serve<A, S>(mut listener: A, service: S, keeper: Keeper, open_ended: OpenEnded, mut stop: watch::Receiver<bool>)
where
    A: Accept,
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let (end, ends) = watch::channel(false);
    let limits = Arc::new(keeper.limits().clone());
    let mut house =
        House { service, keeper, limits, open_ended, ends, connections: JoinSet::new(), refused: JoinSet::new(), log: Rarely::default() };
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            Some(_) = house.connections.join_next() => {}
            Some(_) = house.refused.join_next() => {}
            accepted = listener.accept() => {
                if !house.take(accepted) {
                    sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }
    // A listener that is closed over connections resets them, and who has sent something there already does not know what became of it.
    while let Some(accepted) = listener.waiting() {
        if !house.take(accepted) {
            break;
        }
    }
    drop(listener);
    // Only now: who is told connects anew at once.
    let _ = end.send(true);
    while house.connections.join_next().await.is_some() {}
}

/// What all connections have in common.
struct House<S> {
    service: S,
    keeper: Keeper,
    limits: Arc<Limits>,
    open_ended: OpenEnded,
    ends: watch::Receiver<bool>,
    connections: JoinSet<()>,
    refused: JoinSet<()>,
    log: Rarely,
}

impl<S> House<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    /// Seats who has come, or tells them why not. Whether the next can be accepted at once: false when a failure would repeat itself.
    fn take<T>(&mut self, accepted: io::Result<(T, SocketAddr)>) -> bool
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match accepted {
            Ok((stream, peer)) => self.seat(stream, peer),
            Err(error) => return self.passes_over(&error),
        }
        true
    }

    fn seat<T>(&mut self, stream: T, peer: SocketAddr)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match self.keeper.admit(peer) {
            Ok(seat) => {
                let activity = Arc::new(Activity::new(seat));
                let (limits, open_ended) = (Arc::clone(&self.limits), self.open_ended.clone());
                let peer = Peer(peer.ip().to_canonical());
                let service = Requests { service: self.service.clone(), activity, limits, open_ended, peer };
                self.connections.spawn(connection(stream, service, self.ends.clone()));
            }
            Err(full) => {
                self.log.warn(&format!("a connection from {peer} is refused: {full}"));
                if self.refused.len() < TOLD {
                    self.refused.spawn(tell(stream, full, self.limits.linger));
                }
            }
        }
    }

    /// Whether a failure to accept concerns one connection alone.
    fn passes_over(&mut self, error: &io::Error) -> bool {
        if is_of_one_connection(error) {
            return true;
        }
        self.log.warn(&format!("no connection can be accepted: {error}"));
        if is_of_this_process(error) {
            self.keeper.make_room();
        }
        false
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone means the same.
    let _ = stop.wait_for(|stopped| *stopped).await;
}

/// Whether only the connection that was to be accepted has failed. Linux hands on what has happened to it by then, see accept(2).
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, Interrupted, NetworkDown, NetworkUnreachable,
        PermissionDenied, TimedOut,
    };
    let is_known = matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionRefused
            | ConnectionReset
            | HostUnreachable
            | Interrupted
            | NetworkDown
            | NetworkUnreachable
            // By a rule of the firewall.
            | PermissionDenied
            | TimedOut
    );
    let others = [Errno::PROTO, Errno::NOPROTOOPT, Errno::OPNOTSUPP, Errno::HOSTDOWN];
    is_known || Errno::from_io_error(error).is_some_and(|number| others.contains(&number))
}

/// Whether this process has no file or memory left for another connection.
fn is_of_this_process(error: &io::Error) -> bool {
    let full = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    error.kind() == io::ErrorKind::OutOfMemory || Errno::from_io_error(error).is_some_and(|number| full.contains(&number))
}

/// Tells somebody for whom there is no place, by HTTP/1.1.
async fn tell<T: AsyncRead + AsyncWrite + Unpin>(mut stream: T, full: Full, linger: Duration) {
    let body = error_json(Code::Unavailable, &full.to_string());
    let head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close";
    let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let told = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // Closed before what it sends is read, its socket would be reset, and the answer lost.
        let mut scratch = [0; 1024];
        while stream.read(&mut scratch).await? > 0 {}
        io::Result::Ok(())
    };
    // A peer that has gone, or takes too long, is not told.
    let _ = timeout(linger, told).await;
}

/// Serves one connection until it ends, makes room for another, or does nothing for too long.
async fn connection<T, S>(stream: T, service: Requests<S>, mut ends: watch::Receiver<bool>)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let (activity, limits) = (Arc::clone(&service.activity), Arc::clone(&service.limits));
    let stream = TokioIo::new(Watched::new(stream, Arc::clone(&activity), limits.linger));
    let builder = builder(&limits);
    let mut connection = pin!(builder.serve_connection(stream, service));
    let mut look_again = pin!(sleep(Duration::ZERO));
    let mut is_ending = false;
    loop {
        tokio::select! {
            // How it ended is the caller's matter.
            _ = connection.as_mut() => return,
            () = activity.closed() => return,
            () = told_to_end(&mut ends, &activity), if !is_ending => {
                is_ending = true;
                connection.as_mut().graceful_shutdown();
            }
            () = look_again.as_mut() => match activity.judge(&limits) {
                Verdict::LookAgain(then) => look_again.as_mut().reset(then),
                Verdict::SlowHeader => return,
                Verdict::Idle if is_ending => return,
                Verdict::Idle => {
                    is_ending = true;
                    connection.as_mut().graceful_shutdown();
                    look_again.as_mut().reset(Instant::now() + END);
                }
            },
        }
    }
}

/// Completes when a connection is to end of which it is known what it speaks: hyper would break off any other, over what was sent.
async fn told_to_end(ends: &mut watch::Receiver<bool>, activity: &Activity) {
    stopped(ends).await;
    let _ = timeout(FIRST_BYTES, activity.speaks()).await;
}

fn builder(limits: &Limits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    // The activity of a connection has deadlines of its own: hyper's would end connections that wait for their next request as well.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(limits.header_bytes).max_headers(limits.headers);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.keep_alive)
        .keep_alive_timeout(limits.keep_alive_answer)
        .max_concurrent_streams(limits.streams)
        // A stream that is not read takes its own window, and never all of its connection's.
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(limits.pending_resets)
        .max_local_error_reset_streams(limits.local_resets);
    builder
}

/// Says what may happen a thousand times a second a few times a minute.
#[derive(Default)]
struct Rarely {
    last: Option<Instant>,
    kept: u64,
}

impl Rarely {
    fn warn(&mut self, message: &str) {
        if self.last.is_some_and(|last| last.elapsed() < LOG_AGAIN) {
            self.kept += 1;
            return;
        }
        tracing::warn!(unlogged = std::mem::take(&mut self.kept), "{message}");
        self.last = Some(Instant::now());
    }
}

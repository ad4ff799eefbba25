//! Connections and their limits, over streams in memory and on a paused clock: each bound is a promise, so each is asserted to the span.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant as RealInstant},
};

use bytes::Bytes;
use evenkeel_net::{Accept, Body, Keeper, Limits, OpenEnded, boxed, serve};
use futures::StreamExt;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, advance, sleep, timeout},
};
use tower::service_fn;

/// Where a test's connections come from.
struct InMemory(mpsc::UnboundedReceiver<(DuplexStream, SocketAddr)>);

impl Accept for InMemory {
    type Stream = DuplexStream;

    async fn accept(&mut self) -> io::Result<(DuplexStream, SocketAddr)> {
        match self.0.recv().await {
            Some(accepted) => Ok(accepted),
            None => std::future::pending().await,
        }
    }

    fn waiting(&mut self) -> Option<io::Result<(DuplexStream, SocketAddr)>> {
        self.0.try_recv().ok().map(Ok)
    }
}

/// A server of four pages: `/` answers with the length of the body that it was sent, `/stream` sends a line each second, `/endless` sends without
/// a pause, `/deaf` reads no body.
struct Server {
    connect: mpsc::UnboundedSender<(DuplexStream, SocketAddr)>,
    keeper: Keeper,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

async fn page(request: Request<Body>) -> Result<Response<Body>, Infallible> {
    if request.uri().path() == "/stream" {
        let lines = futures::stream::unfold((), |()| async {
            sleep(Duration::from_secs(1)).await;
            Some((Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"line\n"))), ()))
        });
        return Ok(Response::new(boxed(StreamBody::new(lines.boxed()))));
    }
    if request.uri().path() == "/endless" {
        let pieces = futures::stream::repeat_with(|| Ok::<_, Infallible>(Frame::data(Bytes::from(vec![b'x'; 65_536]))));
        return Ok(Response::new(boxed(StreamBody::new(pieces.boxed()))));
    }
    let length = match request.uri().path() {
        "/deaf" => 0,
        _ => request.into_body().collect().await.map_or(0, |body| body.to_bytes().len()),
    };
    Ok(Response::new(boxed(Full::from(format!("read {length}\n")))))
}

impl Server {
    fn start(limits: Limits) -> Self {
        let (connect, accepted) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(false);
        let keeper = Keeper::new(limits);
        let open_ended = OpenEnded::of(["/upload".to_owned()]);
        let task = tokio::spawn(serve(InMemory(accepted), service_fn(page), keeper.clone(), open_ended, stopped));
        Self { connect, keeper, stop, task }
    }

    fn from(&self, address: &str) -> DuplexStream {
        let (ours, theirs) = duplex(1 << 20);
        self.connect.send((theirs, SocketAddr::new(address.parse().expect(address), 1))).expect("it serves");
        ours
    }

    fn open(&self) -> DuplexStream {
        self.from("127.0.0.1")
    }
}

/// Sends text, and reads what comes until `end` is in it.
async fn exchange(stream: &mut DuplexStream, text: &str, end: &str) -> String {
    stream.write_all(text.as_bytes()).await.expect("sent");
    let mut said = Vec::new();
    while !String::from_utf8_lossy(&said).contains(end) {
        assert!(stream.read_buf(&mut said).await.expect("read") > 0, "ended: {}", String::from_utf8_lossy(&said));
    }
    String::from_utf8(said).expect("text")
}

/// Everything until the stream's end.
async fn rest(stream: &mut DuplexStream) -> String {
    let mut said = Vec::new();
    // A stream that is broken off has ended, too.
    let _ = stream.read_to_end(&mut said).await;
    String::from_utf8(said).expect("text")
}

async fn ends_after(stream: &mut DuplexStream, span: Duration) -> String {
    let begun = Instant::now();
    let said = rest(stream).await;
    let took = begun.elapsed();
    assert!(took >= span && took < span + Duration::from_millis(50), "it ended after {took:?}, not after {span:?}");
    said
}

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn a_header_that_does_not_end_ends_its_connection_after_ten_seconds() {
    let server = Server::start(Limits::default());
    let mut slow = server.open();
    sleep(Duration::from_secs(30)).await;
    slow.write_all(b"GET / HTTP/1.1\r\nx").await.expect("sent");
    let begun = Instant::now();
    let trickle = async {
        while slow.write_all(b"x").await.is_ok() {
            sleep(Duration::from_secs(1)).await;
        }
    };
    trickle.await;
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(10) && took <= Duration::from_secs(11), "{took:?}");
    // A second request on a connection that was good is no better.
    let mut second = server.open();
    exchange(&mut second, GET, "read 0").await;
    sleep(Duration::from_secs(25)).await;
    second.write_all(b"GET /").await.expect("sent");
    ends_after(&mut second, Duration::from_secs(10)).await;
    // Nor is a preface of HTTP/2 that does not end.
    let mut preface = server.open();
    preface.write_all(b"PRI * HTTP/2.0\r\n").await.expect("sent");
    ends_after(&mut preface, Duration::from_secs(10)).await;
    assert_eq!(server.keeper.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_end_is_answered_with_408_after_fifteen_seconds() {
    let server = Server::start(Limits::default());
    let mut slow = server.open();
    let begun = Instant::now();
    slow.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n").await.expect("sent");
    let (mut read, mut write) = tokio::io::split(slow);
    let trickle = tokio::spawn(async move {
        while write.write_all(b"x").await.is_ok() {
            sleep(Duration::from_secs(1)).await;
        }
    });
    let mut said = Vec::new();
    let _ = read.read_to_end(&mut said).await;
    let (said, took) = (String::from_utf8_lossy(&said).into_owned(), begun.elapsed());
    assert!(said.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{said}");
    assert!(
        said.ends_with(r#"{"code":4,"message":"the request's body did not arrive within 15 s; send it faster","details":[]}"#),
        "{said}"
    );
    // It lingers for a second, so that the answer arrives.
    assert!(took >= Duration::from_secs(15) && took <= Duration::from_secs(17), "{took:?}");
    trickle.abort();
    // A gRPC call is told in its own way.
    let mut call = server.open();
    call.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ncontent-length: 9\r\n\r\n").await.expect("sent");
    let said = rest(&mut call).await;
    assert!(said.starts_with("HTTP/1.1 200 OK\r\n") && said.contains("grpc-status: 4\r\n"), "{said}");
    // A body that comes in time is read, however many pieces it has.
    let mut quick = server.open();
    quick.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n").await.expect("sent");
    for _ in 0..9 {
        quick.write_all(b"x").await.expect("sent");
        sleep(Duration::from_secs(1)).await;
    }
    exchange(&mut quick, "x", "read 10").await;
}

#[tokio::test(start_paused = true)]
async fn a_call_that_streams_its_requests_takes_as_long_as_it_likes() {
    let server = Server::start(Limits::default());
    let mut upload = server.open();
    upload.write_all(b"POST /upload HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n").await.expect("sent");
    for _ in 0..99 {
        upload.write_all(b"x").await.expect("sent");
        sleep(Duration::from_secs(10)).await;
    }
    exchange(&mut upload, "x", "read 100").await;
}

#[tokio::test(start_paused = true)]
async fn what_asks_nothing_for_a_minute_is_closed_and_a_running_stream_never_is() {
    let server = Server::start(Limits::default());
    let mut silent = server.open();
    ends_after(&mut silent, Duration::from_secs(60)).await;
    let mut kept = server.open();
    exchange(&mut kept, GET, "read 0").await;
    sleep(Duration::from_secs(55)).await;
    exchange(&mut kept, GET, "read 0").await;
    assert_eq!(ends_after(&mut kept, Duration::from_secs(60)).await, "");
    let mut watching = server.open();
    exchange(&mut watching, "GET /stream HTTP/1.1\r\nhost: a\r\n\r\n", "line").await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(600) {
        exchange(&mut watching, "", "").await;
        assert!(watching.read(&mut [0; 64]).await.expect("read") > 0);
    }
    assert_eq!(server.keeper.connections(), 1);
}

#[tokio::test(start_paused = true)]
async fn http2_is_idle_without_a_request_too_and_is_told_before_it_is_closed() {
    let server = Server::start(Limits::default());
    let io = TokioIo::new(server.open());
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake::<_, _, Body>(TokioExecutor::new(), io).await.expect("a handshake");
    let connection = tokio::spawn(connection);
    let ask = |path: &str| Request::get(format!("http://a{path}")).body(boxed(Full::default())).expect("a request");
    let mut stream = sender.send_request(ask("/stream")).await.expect("an answer").into_body();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(200) {
        stream.frame().await.expect("a line").expect("no error");
    }
    drop(stream);
    let idle = Instant::now();
    assert!(connection.await.expect("it ended by itself").is_ok());
    let took = idle.elapsed();
    assert!(took >= Duration::from_secs(59) && took <= Duration::from_secs(66), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn countless_slow_headers_keep_nobody_out() {
    let server = Server::start(Limits { connections: 50, ..Limits::default() });
    let mut attackers = Vec::new();
    for round in 0..20 {
        for _ in 0..50 {
            let mut slow = server.open();
            slow.write_all(b"GET / HTTP/1.1\r\nx: ").await.expect("sent");
            attackers.push(slow);
        }
        let mut honest = server.open();
        exchange(&mut honest, GET, "read 0").await;
        assert!(server.keeper.connections() <= 50, "round {round}");
        advance(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn when_all_are_busy_the_next_is_told_so() {
    let server = Server::start(Limits { connections: 3, connections_of_address: 2, ..Limits::default() });
    let mut busy = Vec::new();
    for address in ["10.0.0.1", "10.0.0.1", "10.0.0.2"] {
        let mut stream = server.from(address);
        exchange(&mut stream, "GET /stream HTTP/1.1\r\nhost: a\r\n\r\n", "line").await;
        busy.push(stream);
        let said = rest(&mut server.from("10.0.0.1")).await;
        if busy.len() == 2 {
            assert!(
                said.starts_with("HTTP/1.1 503 Service Unavailable\r\n") && said.contains("all 2 connections from your address"),
                "{said}"
            );
        }
    }
    let said = rest(&mut server.from("10.0.0.9")).await;
    assert!(said.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{said}");
    assert!(
        said.ends_with(
            r#"{"code":14,"message":"all 3 connections of this server have a request in flight; try again later","details":[]}"#
        ),
        "{said}"
    );
    drop(busy.pop());
    sleep(Duration::from_secs(2)).await;
    exchange(&mut server.from("10.0.0.9"), GET, "read 0").await;
    // One who only sends waits as one who does not.
    let mut slow = server.from("10.0.0.9");
    slow.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nx").await.expect("sent");
    sleep(Duration::from_secs(1)).await;
    exchange(&mut server.from("10.0.0.8"), GET, "read 0").await;
}

const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// Who holds a stream open and says nothing on it, or only asks after the server itself, makes room for another.
#[tokio::test(start_paused = true)]
async fn streams_that_say_nothing_make_room() {
    // what is asked for, what of its body is sent, whether its connection is busy
    let cases = [
        ("/upload", "", false),
        ("/upload", "x", true),
        (REFLECTION, "", false),
        (REFLECTION, "x", false),
        ("/grpc.health.v1.Health/Watch", "", false),
        ("/grpc.health.v1.Health/Watch", "x", false),
    ];
    for (path, sent, is_busy) in cases {
        let server = Server::start(Limits { connections: 1, ..Limits::default() });
        let mut open = server.open();
        let text = format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{sent}");
        open.write_all(text.as_bytes()).await.expect("sent");
        sleep(Duration::from_secs(1)).await;
        let mut next = server.open();
        next.write_all(GET.as_bytes()).await.expect("sent");
        let mut said = [0; 12];
        next.read_exact(&mut said).await.expect("answered");
        let expected = if is_busy { "HTTP/1.1 503" } else { "HTTP/1.1 200" };
        assert_eq!(String::from_utf8_lossy(&said), expected, "{path} {sent:?}");
    }
}

/// A peer that does not read holds its place only as long as nobody else needs it.
#[tokio::test(start_paused = true)]
async fn who_does_not_read_makes_room_after_a_minute() {
    let server = Server::start(Limits { connections: 1, ..Limits::default() });
    let mut deaf = server.open();
    deaf.write_all(b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("sent");
    sleep(Duration::from_secs(55)).await;
    assert!(rest(&mut server.open()).await.starts_with("HTTP/1.1 503 "));
    sleep(Duration::from_secs(20)).await;
    exchange(&mut server.open(), GET, "read 0").await;
}

/// An error of one connection is nothing; one that repeats itself is waited out, and makes room where this process is full.
#[tokio::test(start_paused = true)]
async fn a_failure_to_accept_ends_nothing_and_does_not_spin() {
    struct Failing(Vec<io::Error>, InMemory, usize);
    impl Accept for Failing {
        type Stream = DuplexStream;

        async fn accept(&mut self) -> io::Result<(DuplexStream, SocketAddr)> {
            if self.2 > 0
                && let Some(error) = self.0.pop()
            {
                return Err(error);
            }
            self.2 += 1;
            self.1.accept().await
        }

        fn waiting(&mut self) -> Option<io::Result<(DuplexStream, SocketAddr)>> {
            self.1.waiting()
        }
    }
    use rustix::io::Errno;
    let of_peers = [
        Errno::PROTO,
        Errno::HOSTUNREACH,
        Errno::NETUNREACH,
        Errno::NETDOWN,
        Errno::TIMEDOUT,
        Errno::CONNABORTED,
        Errno::CONNRESET,
        Errno::PERM,
        Errno::NOPROTOOPT,
        Errno::OPNOTSUPP,
        Errno::HOSTDOWN,
    ];
    let full = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    // the error, whether it is waited for something to change, whether that closes a connection
    let cases = of_peers.map(|error| (error, false, false)).into_iter();
    for (error, waits, makes_room) in cases.chain(full.map(|error| (error, true, true))).chain([(Errno::INVAL, true, false)]) {
        let errors: Vec<io::Error> = (0..20).map(|_| error.into()).collect();
        let (connect, accepted) = mpsc::unbounded_channel();
        let (_stop, stopped) = watch::channel(false);
        let listener = Failing(errors, InMemory(accepted), 0);
        tokio::spawn(serve(listener, service_fn(page), Keeper::new(Limits::default()), OpenEnded::default(), stopped));
        let open = || {
            let (ours, theirs) = duplex(1 << 20);
            connect.send((theirs, SocketAddr::from(([127, 0, 0, 1], 1)))).expect("it serves");
            ours
        };
        let (mut first, begun) = (open(), Instant::now());
        let mut second = open();
        exchange(&mut second, GET, "read 0").await;
        let took = begun.elapsed();
        assert_eq!(took >= Duration::from_secs(1), waits, "{error}: 20 times 50 ms: {took:?}");
        if makes_room {
            assert_eq!(rest(&mut first).await, "", "{error}");
        } else {
            exchange(&mut first, GET, "read 0").await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn headers_that_are_too_large_or_too_many_are_refused() {
    let server = Server::start(Limits::default());
    let large = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(17 << 10));
    let many = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(100));
    for text in [large, many] {
        let said = exchange(&mut server.open(), &text, "\r\n\r\n").await;
        assert!(said.starts_with("HTTP/1.1 431 "), "{said}");
    }
    let good = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n{}\r\n", "x".repeat(12 << 10), "x: y\r\n".repeat(90));
    exchange(&mut server.open(), &good, "read 0").await;
    // By HTTP/2 the client may refuse to send it, since it was told the limit.
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake::<_, _, Body>(TokioExecutor::new(), TokioIo::new(server.open())).await.expect("a handshake");
    tokio::spawn(connection);
    let mut request = Request::get("http://a/");
    for _ in 0..101 {
        request = request.header("x", "y");
    }
    let answer = sender.send_request(request.body(boxed(Full::default())).expect("a request")).await.expect("an answer");
    assert_eq!(answer.status(), 431);
    let request = Request::get("http://a/").header("x", "x".repeat(17 << 10)).body(boxed(Full::default())).expect("a request");
    assert!(sender.send_request(request).await.is_ok_and(|answer| answer.status() == 431));
}

/// A request that is refused for its headers, with its body still to come, is over: what is asked next keeps the connection busy.
#[tokio::test(start_paused = true)]
async fn a_refused_request_is_not_waited_for() {
    let server = Server::start(Limits { connections: 1, ..Limits::default() });
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake::<_, _, Body>(TokioExecutor::new(), TokioIo::new(server.open())).await.expect("a handshake");
    tokio::spawn(connection);
    let mut request = Request::post("http://a/");
    for _ in 0..101 {
        request = request.header("x", "y");
    }
    let answer = sender.send_request(request.body(boxed(Full::from("body"))).expect("a request")).await.expect("an answer");
    assert_eq!(answer.status(), 431);
    answer.into_body().collect().await.expect("a body");
    let stream = Request::get("http://a/stream").body(boxed(Full::default())).expect("a request");
    let mut stream = sender.send_request(stream).await.expect("an answer").into_body();
    stream.frame().await.expect("a line").expect("no error");
    assert!(rest(&mut server.open()).await.starts_with("HTTP/1.1 503 "), "the one connection is busy");
    stream.frame().await.expect("a line").expect("no error");
}

#[tokio::test(start_paused = true)]
async fn an_answer_before_the_body_was_read_arrives() {
    let server = Server::start(Limits::default());
    let mut stream = server.open();
    let said = exchange(&mut stream, "POST /deaf HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n", "read 0").await;
    assert!(said.starts_with("HTTP/1.1 200 OK\r\n"), "{said}");
    // What it still sends is taken in for a second.
    let begun = Instant::now();
    while stream.write_all(&[b'x'; 1000]).await.is_ok() {
        sleep(Duration::from_millis(100)).await;
    }
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(1) && took <= Duration::from_millis(1200), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn requests_in_flight_end_in_order_and_the_rest_at_once() {
    let server = Server::start(Limits::default());
    let mut idle = server.open();
    exchange(&mut idle, GET, "read 0").await;
    let mut sending = server.open();
    sending.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nx").await.expect("sent");
    sleep(Duration::from_millis(10)).await;
    server.stop.send(true).expect("it serves");
    assert_eq!(ends_after(&mut idle, Duration::ZERO).await, "");
    exchange(&mut sending, "x", "read 2").await;
    timeout(Duration::from_secs(1), server.task).await.expect("it ends").expect("without a panic");
}

/// A connection that its server had not accepted, or not read from, was reset when the server ended, and its caller could not know whether its
/// request had an effect.
#[tokio::test]
async fn who_has_just_connected_is_answered_before_the_end() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let mut callers = Vec::new();
    for _ in 0..3 {
        let mut caller = tokio::net::TcpStream::connect(address).await.expect("connected");
        caller.write_all(GET.as_bytes()).await.expect("sent");
        callers.push(caller);
    }
    let (_, stopped) = watch::channel(true);
    serve(listener, service_fn(page), Keeper::new(Limits::default()), OpenEnded::default(), stopped).await;
    tokio::net::TcpStream::connect(address).await.expect_err("it serves no more");
    for mut caller in callers {
        let mut said = String::new();
        caller.read_to_string(&mut said).await.expect("not reset");
        assert!(said.ends_with("read 0\n"), "{said}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_first_bytes_are_on_their_way_is_answered_before_the_end() {
    let server = Server::start(Limits::default());
    let (mut silent, mut late) = (server.open(), server.open());
    sleep(Duration::from_millis(10)).await;
    server.stop.send(true).expect("it serves");
    sleep(Duration::from_millis(10)).await;
    exchange(&mut late, GET, "read 0").await;
    assert_eq!(ends_after(&mut late, Duration::ZERO).await, "");
    assert_eq!(ends_after(&mut silent, Duration::from_millis(90)).await, "");
    timeout(Duration::from_secs(1), server.task).await.expect("it ends").expect("without a panic");
}

/// Who is told that a connection ends makes another at once. It must not find the listener open: it would be reset there.
#[tokio::test(start_paused = true)]
async fn the_listener_is_closed_before_a_connection_is_told_to_end() {
    struct Noting(InMemory, Arc<AtomicBool>);
    impl Accept for Noting {
        type Stream = DuplexStream;

        async fn accept(&mut self) -> io::Result<(DuplexStream, SocketAddr)> {
            self.0.accept().await
        }

        fn waiting(&mut self) -> Option<io::Result<(DuplexStream, SocketAddr)>> {
            self.0.waiting()
        }
    }
    impl Drop for Noting {
        fn drop(&mut self) {
            self.1.store(false, Ordering::Relaxed);
        }
    }
    let is_open = Arc::<AtomicBool>::default();
    let (connect, accepted) = mpsc::unbounded_channel();
    let (stop, stopped) = watch::channel(false);
    let listener = Noting(InMemory(accepted), Arc::clone(&is_open));
    tokio::spawn(serve(listener, service_fn(page), Keeper::new(Limits::default()), OpenEnded::default(), stopped));
    let (mut ours, theirs) = duplex(1 << 20);
    connect.send((theirs, SocketAddr::from(([127, 0, 0, 1], 1)))).expect("it serves");
    exchange(&mut ours, GET, "read 0").await;
    is_open.store(true, Ordering::Relaxed);
    stop.send(true).expect("it serves");
    assert_eq!(rest(&mut ours).await, "");
    assert!(!is_open.load(Ordering::Relaxed), "told while the listener was open");
}

#[tokio::test(start_paused = true)]
async fn dropped_it_ends_all_connections() {
    let server = Server::start(Limits::default());
    let mut watching = server.open();
    exchange(&mut watching, "GET /stream HTTP/1.1\r\nhost: a\r\n\r\n", "line").await;
    server.task.abort();
    let _ = server.task.await;
    assert_eq!(ends_after(&mut watching, Duration::ZERO).await, "");
}

/// CVE-2023-44487: streams that are opened and reset at once, frame by frame, since no client does so.
#[tokio::test(start_paused = true)]
async fn rapid_resets_end_the_connection() {
    let server = Server::start(Limits::default());
    let (mut read, mut write) = tokio::io::split(server.open());
    // The preface, empty SETTINGS, then GET http://a/ and RST_STREAM (CANCEL) for each stream.
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for number in 0..1000_u32 {
        let stream = (2 * number + 1).to_be_bytes();
        bytes.extend([0, 0, 6, 1, 4].iter().chain(&stream).chain(b"\x82\x86\x84\x41\x01a"));
        bytes.extend([0, 0, 4, 3, 0].iter().chain(&stream).chain(&[0, 0, 0, 8]));
    }
    let attack = tokio::spawn(async move {
        let _ = write.write_all(&bytes).await;
        write
    });
    let mut said = Vec::new();
    let _ = read.read_to_end(&mut said).await;
    attack.abort();
    // GOAWAY is frame 7; its payload ends with ENHANCE_YOUR_CALM, 11, and what is wrong.
    let is_calming = |frame: &[u8]| frame[3] == 7 && frame[13..17] == [0, 0, 0, 11];
    assert!(said.windows(17).any(is_calming), "{said:?}");
}

/// A peer that only listens is never written to, so its machine may vanish unseen: TCP asks after it.
#[tokio::test]
async fn a_peer_that_vanishes_is_noticed() {
    use rustix::net::sockopt;
    let mut listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let _peer = tokio::net::TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
    let (stream, _) = Accept::accept(&mut listener).await.expect("accepted");
    assert!(sockopt::socket_keepalive(&stream).expect("read"));
    assert_eq!(sockopt::tcp_keepidle(&stream).expect("read"), Duration::from_secs(20));
    assert_eq!(sockopt::tcp_keepintvl(&stream).expect("read"), Duration::from_secs(10));
    assert_eq!(sockopt::tcp_keepcnt(&stream).expect("read"), 3);
}

/// The same over sockets, on the real clock: nothing spins, and the loop survives peers that are gone when they are accepted.
#[tokio::test]
async fn a_real_socket_is_served() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let (stop, stopped) = watch::channel(false);
    let keeper = Keeper::new(Limits { idle: Duration::from_millis(200), ..Limits::default() });
    let task = tokio::spawn(serve(listener, service_fn(page), keeper, OpenEnded::default(), stopped));
    for _ in 0..100 {
        drop(tokio::net::TcpStream::connect(address).await.expect("connected"));
    }
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connected");
    stream.write_all(GET.as_bytes()).await.expect("sent");
    let begun = RealInstant::now();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.expect("read");
    assert!(said.ends_with("read 0\n"), "{said}");
    assert!(begun.elapsed() >= Duration::from_millis(200));
    stop.send(true).expect("it serves");
    task.await.expect("it ends");
}

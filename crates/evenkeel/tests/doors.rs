//! The doors of masters, workers and etcd, from outside: what a page in a browser could send, what comes by the wrong port, what says two
//! things at once, who is slow or countless, and what is served before etcd answers.

mod support;

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use evenkeel_proto::v1::{
    AddResourceRequest, CordonWorkerRequest, GetResourceRequest, ListRunningRequest, ListWorkersRequest, Resource, WatchResourcesRequest,
    master_client::MasterClient, worker_client::WorkerClient,
};
use support::{PATIENCE, Stage, evenkeel, free_port};
use tokio::time::timeout;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

/// What `curl ARGUMENTS http://127.0.0.1:PORT/PATH` gets: status, headers, body. No header goes without saying.
fn curl(port: u16, path: &str, arguments: &[&str]) -> (u16, String, String) {
    let url = format!("http://127.0.0.1:{port}{path}");
    let mut command = Command::new("curl");
    let said = support::run(command.args(["-sS", "-i", "-m", "20", "--path-as-is"]).args(arguments).arg(url));
    let (mut headers, mut body) = said.split_once("\r\n\r\n").unwrap_or((&said, ""));
    while headers.starts_with("HTTP/1.1 100") {
        (headers, body) = body.split_once("\r\n\r\n").expect("more than an interim answer");
    }
    let status = headers.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{said}"));
    (status, headers.to_ascii_lowercase(), body.to_owned())
}

fn message(body: &str) -> String {
    let json: serde_json::Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("no JSON: {body}"));
    json["message"].as_str().unwrap_or_default().to_owned()
}

const JSON: &str = "content-type: application/json";
const RUN: &str = r#"{"name":"x","kind":"process","spec":{"command":["touch","/nowhere"]}}"#;

#[tokio::test]
async fn a_page_in_a_browser_commands_nothing() {
    let mut stage = Stage::start().await;
    stage.masters(2, &["--http-host", "evenkeel.example"]).await;
    stage.workers(1).await;
    let origin = ["-H", "origin: http://evil.example"];
    let plain = ["-H", "content-type: text/plain"];
    // path, arguments, status, what the message has in it
    let cases: Vec<(&str, Vec<&str>, u16, &str)> = vec![
        ("/v1/resources", [&origin[..], &plain, &["-d", RUN]].concat(), 403, "Origin: \"http://evil.example\""),
        ("/v1/resources", [&origin[..], &["-H", JSON, "-d", RUN]].concat(), 403, "another origin"),
        ("/v1/resources", vec!["-H", "origin: null", "-H", JSON, "-d", RUN], 403, "Origin: \"null\""),
        ("/v1/resources", vec!["-H", "sec-fetch-site: same-site", "-H", JSON, "-d", RUN], 403, "Sec-Fetch-Site: \"same-site\""),
        ("/v1/resources", origin.to_vec(), 403, "another origin"),
        ("/v1/resources", [&plain[..], &["-d", RUN]].concat(), 415, "Content-Type: application/json"),
        ("/v1/resources", vec!["-d", RUN], 415, "\"application/x-www-form-urlencoded\""),
        ("/v1/resources", vec!["-H", "host: evil.example", "-H", JSON, "-d", RUN], 421, "--http-host evil.example"),
        ("/v1/resources", vec!["-H", "host: evil.example"], 421, "does not answer to the host \"evil.example\""),
        ("/v1/resources", vec!["-H", "host:"], 400, "Host"),
        ("/crawler/resource", [&plain[..], &["-d", r#"{"name":"x"}"#]].concat(), 415, "application/json"),
        ("/v1/workers/worker-1:cordon", [&origin[..], &["-X", "POST"]].concat(), 403, "another origin"),
        ("/v1/workers/worker-1:cordon", vec!["-X", "POST", "-H", "sec-fetch-site: cross-site"], 403, "another origin"),
        ("/v1/workers/worker-1:drain", [&origin[..], &["-X", "POST"]].concat(), 403, "another origin"),
        ("/v1/brake:release", [&origin[..], &["-X", "POST"]].concat(), 403, "another origin"),
        ("/v1/resources", [&origin[..], &["-X", "OPTIONS", "-H", "access-control-request-method: POST"]].concat(), 403, "another origin"),
        ("/v1/resources", vec!["-X", "OPTIONS"], 405, "OPTIONS is not allowed"),
    ];
    for master in ["master-1", "master-2"] {
        let port = stage.process(master).http;
        for (path, arguments, status, says) in &cases {
            let (got, headers, body) = curl(port, path, arguments);
            assert_eq!(got, *status, "{path} {arguments:?}: {body}");
            assert!(message(&body).contains(says), "{path} {arguments:?}: {body}");
            assert!(!headers.contains("access-control-"), "{path} {arguments:?}: {headers}");
        }
        // A second Host is none; curl sends but one.
        let two = "GET /v1/resources HTTP/1.1\r\nhost: a\r\nhost: a\r\nconnection: close\r\n\r\n";
        assert!(raw(port, two).starts_with("HTTP/1.1 400 "));
    }
    assert_eq!(stage.etcdctl("/resources/"), "");
    assert_eq!(stage.etcdctl("/intents/"), "");
    let worker = stage.process("worker-1").http;
    assert_eq!(curl(worker, "/v1/resources", &["-H", "host: evil.example"]).0, 421);
    assert_eq!(curl(worker, "/metrics", &["-H", "host: evil.example"]).0, 200);
    assert_eq!(curl(worker, "/metrics", &origin).0, 403);
    // And who is no page is let in.
    let port = stage.process("master-1").http;
    for host in ["host: evenkeel.example", "host: Localhost.:8081", "host: master-1:1", "host: [::1]"] {
        assert_eq!(curl(port, "/v1/resources", &["-H", host]).0, 200, "{host}");
    }
    assert_eq!(curl(port, "/healthz", &["-H", "host: evil.example"]).0, 200);
    assert_eq!(curl(port, "/v1/workers/worker-1:cordon", &["-X", "POST"]).0, 200);
    assert!(stage.etcdctl("/intents/").contains("cordon"));
}

/// Sends text, and reads all that comes.
fn raw(port: u16, text: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connected");
    stream.write_all(text.as_bytes()).expect("sent");
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test]
async fn what_says_two_things_at_once_does_neither() {
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    stage.workers(1).await;
    let port = stage.process("master-1").http;
    for name in ["a", "b"] {
        let (status, _, body) = curl(port, "/crawler/resource", &["-H", JSON, "-d", &format!(r#"{{"name":"{name}"}}"#)]);
        assert_eq!(status, 200, "{body}");
    }
    stage.settled(2).await;
    let delete = |path: &str, body: &str| curl(port, path, &["-X", "DELETE", "-H", JSON, "-d", body]);
    let cases = [
        ("/crawler/resource?name=b", r#"{"name":"a"}"#, "name: the body says \"a\" and the query \"b\""),
        ("/crawler/resource?name=b&name=a", "", "name: the query says \"b\" and \"a\""),
        ("/v1/resources/a?name=b", "", "name: the query says \"b\" and the path \"a\""),
        ("/v1/resources/a", r#"{"name":"b"}"#, "body: this call takes none"),
        ("/v1/resources/%ff", "", "not UTF-8"),
    ];
    for (path, body, says) in cases {
        let (status, _, answer) = delete(path, body);
        assert_eq!(status, 400, "{path} {body}: {answer}");
        assert!(message(&answer).contains(says), "{path} {body}: {answer}");
    }
    assert_eq!(stage.settled(2).await.len(), 2);
    let (status, headers, body) = curl(port, "/crawler/resource", &[]);
    assert_eq!((status, message(&body).as_str()), (405, "GET is not allowed for /crawler/resource; allowed: POST, DELETE"));
    assert!(headers.contains("\r\nallow: post, delete\r\n") || headers.ends_with("\r\nallow: post, delete"), "{headers}");
    assert_eq!(delete("/crawler/resource?name=b", r#"{"name":"b"}"#).0, 200);
    stage.settled(1).await;
    // HEAD is GET without its body, also for what never ends.
    let (status, headers, body) = curl(port, "/v1/resources/a", &[]);
    let (head_status, head_headers, nothing) = curl(port, "/v1/resources/a", &["-I"]);
    let without_date = |headers: &str| headers.lines().filter(|line| !line.starts_with("date:")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!((status, head_status, nothing.as_str()), (200, 200, ""));
    assert_eq!(without_date(&head_headers), without_date(&headers));
    assert!(headers.contains(&format!("content-length: {}", body.len())), "{headers}");
    let (status, headers, _) = curl(port, "/v1/resources:watch", &["-I"]);
    assert_eq!(status, 200, "{headers}");
    assert!(headers.contains("application/x-ndjson"), "{headers}");
    assert_eq!(curl(port, "/v1/resources/none:logs", &["-I"]).0, 404);
    // A body that says that it is too large is refused before any of it has come.
    let large = "POST /v1/resources HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 1048577\r\n\r\n";
    assert!(raw(port, large).starts_with("HTTP/1.1 413 "));
}

#[tokio::test]
async fn no_more_of_a_request_is_shown_than_a_line_takes() {
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    stage.workers(1).await;
    let (long, method) = ("x".repeat(10_000), "X".repeat(3000));
    let resource = format!("/v1/resources/{long}");
    // path, method, status at a master, status at a worker
    let cases = [
        (format!("/{long}"), "GET", 404, 404),
        (format!("/{long}"), &method, 404, 404),
        ("/healthz".to_owned(), &method, 405, 405),
        (resource.clone(), "PATCH", 405, 404),
        (resource.clone(), &method, 405, 404),
        (format!("{resource}%ff"), "GET", 400, 404),
        (format!("/v1/resources/a?name={long}%ff"), "DELETE", 400, 404),
    ];
    for (path, method, at_master, at_worker) in &cases {
        for (name, expected) in [("master-1", at_master), ("worker-1", at_worker)] {
            let (status, _, body) = curl(stage.process(name).http, path, &["-X", method]);
            assert_eq!(status, *expected, "{name} {path}: {body}");
            assert!(!message(&body).is_empty() && body.len() < 400, "{name} {path}: {body}");
        }
    }
}

#[tokio::test]
async fn the_wrong_port_names_the_right_one() {
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    stage.workers(1).await;
    for name in ["master-1", "worker-1"] {
        let (grpc, http) = (stage.process(name).grpc, stage.process(name).http);
        let url = format!("http://127.0.0.1:{http}");
        let refused = if name == "master-1" {
            let mut client = MasterClient::connect(url).await.expect("connected");
            client.list_workers(ListWorkersRequest::default()).await.map(drop)
        } else {
            let mut client = WorkerClient::connect(url).await.expect("connected");
            client.list_running(ListRunningRequest::default()).await.map(drop)
        };
        let refused = refused.expect_err("HTTP");
        let expected = format!("this port speaks HTTP and JSON; gRPC is served at 127.0.0.1:{grpc}");
        assert_eq!((refused.code(), refused.message()), (Code::Unimplemented, expected.as_str()));
        // Health and reflection are asked for by the same kind of call.
        for path in ["/grpc.health.v1.Health/Check", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"] {
            let arguments = ["--http2-prior-knowledge", "-X", "POST", "-H", "content-type: application/grpc", "-H", "te: trailers"];
            let (status, headers, _) = curl(http, path, &arguments);
            assert!(status == 200 && headers.contains("grpc-status: 12"), "{path}: {headers}");
        }
        for (path, arguments) in [("/v1/resources", &[][..]), ("/metrics", &["--http2-prior-knowledge"]), ("/", &["-H", JSON, "-d", "{}"])]
        {
            let (status, _, body) = curl(grpc, path, arguments);
            assert_eq!(status, 400, "{path}: {body}");
            assert_eq!(message(&body), format!("this port speaks gRPC; HTTP and JSON are served at http://127.0.0.1:{http}"));
        }
    }
}

/// The bounds are promises, so each is waited for: 10 s for headers, 15 s for a body, 60 s for nothing at all.
#[tokio::test]
async fn slow_and_idle_connections_are_closed_in_time() {
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    stage.workers(1).await;
    // what is sent first, then each half second; how many seconds it takes; how the answer begins
    let cases: [(&'static str, &'static str, u64, &'static str); 3] = [
        ("GET /healthz HTTP/1.1\r\nx: ", "x", 10, ""),
        (
            "POST /v1/resources HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n",
            "x",
            15,
            "HTTP/1.1 408 ",
        ),
        ("GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n", "", 60, "HTTP/1.1 200 "),
    ];
    let mut tries = Vec::new();
    for name in ["master-1", "worker-1"] {
        let port = stage.process(name).http;
        for (first, more, seconds, begins) in cases {
            // A worker reads no body.
            if name == "worker-1" && seconds == 15 {
                continue;
            }
            tries.push(thread::spawn(move || {
                let (took, said) = trickle(port, first, more);
                let bound = Duration::from_secs(seconds);
                assert!(took + Duration::from_millis(50) >= bound && took < bound + Duration::from_secs(4), "{name} {first:?}: {took:?}");
                assert!(said.starts_with(begins), "{name} {first:?}: {said}");
            }));
        }
    }
    // Meanwhile who watches is left alone.
    let port = stage.process("master-1").http;
    let mut watcher = Command::new("curl");
    let mut watcher =
        watcher.args(["-sSN", &format!("http://127.0.0.1:{port}/v1/resources:watch")]).stdout(Stdio::null()).spawn().expect("started");
    for one in tries {
        one.join().expect("as promised");
    }
    assert!(watcher.try_wait().expect("waited").is_none());
    watcher.kill().expect("killed");
    watcher.wait().expect("waited");
}

/// Sends something, and more of it each half second, until the other side has closed; how long that took, and what it said.
fn trickle(port: u16, first: &str, more: &str) -> (Duration, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connected");
    stream.set_read_timeout(Some(Duration::from_millis(500))).expect("set");
    stream.write_all(first.as_bytes()).expect("sent");
    let (begun, mut said) = (Instant::now(), Vec::new());
    while begun.elapsed() < 2 * PATIENCE {
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => said.extend(&buffer[..count]),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                // Refused once the other side has closed, which the next read sees as well.
                let _ = stream.write_all(more.as_bytes());
            }
            Err(_) => break,
        }
    }
    (begun.elapsed(), String::from_utf8_lossy(&said).into_owned())
}

/// A process that ends with the test.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn countless_connections_keep_nobody_out() {
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    let etcd = stage.etcd.endpoint(0);
    // A master that may open few files: 256, of which half are for connections.
    let (grpc, http) = (free_port(), free_port());
    let line = format!("ulimit -n 256; exec \"$0\" master --id 9 --etcd {etcd} --grpc 127.0.0.1:{grpc} --http 127.0.0.1:{http}");
    let log = std::fs::File::create(stage.path().join("few.log")).expect("a log");
    let mut few = evenkeel();
    few.args([
        "tied",
        "--parent",
        &std::process::id().to_string(),
        "--signal",
        "kill",
        "--",
        "sh",
        "-c",
        &line,
        env!("CARGO_BIN_EXE_evenkeel"),
    ]);
    let _few = Ends(few.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log).spawn().expect("started"));
    stage.eventually("it serves", async || TcpStream::connect(("127.0.0.1", http)).ok()).await;
    let mut attackers = Vec::new();
    for round in 0..8 {
        for _ in 0..100 {
            let mut slow = TcpStream::connect(("127.0.0.1", if round % 2 == 0 { http } else { grpc })).expect("connected");
            // One that was closed to make room is no use to an attacker.
            let _ = slow.write_all(b"POST /v1/resources HTTP/1.1\r\nx: ");
            attackers.push(slow);
        }
        let begun = Instant::now();
        let (status, _, body) = curl(http, "/v1/workers", &["-m", "5"]);
        assert_eq!(status, 200, "round {round}: {body}");
        assert!(begun.elapsed() < Duration::from_secs(5), "round {round}");
        let mut client = MasterClient::connect(format!("http://127.0.0.1:{grpc}")).await.expect("connected");
        client.list_workers(ListWorkersRequest::default()).await.expect("answered");
        let (_, _, metrics) = curl(http, "/metrics", &[]);
        let open = metrics.lines().find_map(|line| line.strip_prefix("process_open_fds ")).expect("counted");
        assert!(open.parse::<f64>().expect("a number") < 230.0, "{open} files");
    }
}

/// What a call is answered whose message says that it is so long, and of which no more comes.
fn answer_to(stage: &Stage, name: &str, path: &str, length: u32) -> String {
    let request = stage.path().join("message");
    std::fs::write(&request, [&[0][..], &length.to_be_bytes()].concat()).expect("written");
    let data = format!("@{}", request.display());
    let headers = ["-H", "content-type: application/grpc", "-H", "te: trailers", "-i"];
    let url = format!("http://127.0.0.1:{}{path}", stage.process(name).grpc);
    support::run(Command::new("curl").args(["-sS", "-m", "20", "--http2-prior-knowledge", "--data-binary", &data]).args(headers).arg(url))
}

#[tokio::test]
async fn questions_are_small() {
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    stage.workers(1).await;
    // Reflection says nothing of a message that it cannot read: it ends its stream.
    let check = "/grpc.health.v1.Health/Check";
    let (running, logs) = ("/evenkeel.v1.Worker/ListRunning", "/evenkeel.v1.Worker/Logs");
    for (name, path) in [("master-1", check), ("worker-1", check), ("worker-1", running), ("worker-1", logs)] {
        for (length, is_refused) in [(65_536, false), (65_537, true)] {
            // OUT_OF_RANGE, before any of it has come.
            let said = answer_to(&stage, name, path, length);
            assert!(said.contains("grpc-status: ") && said.contains("grpc-status: 11") == is_refused, "{name} {path} {length}: {said}");
        }
    }
}

/// A client whose streams hold no more than 64 KiB that is not read.
async fn narrow(port: u16) -> MasterClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("an address");
    MasterClient::new(endpoint.initial_stream_window_size(64 << 10).connect().await.expect("connected"))
}

/// More streams than one connection to the leader carries, and some that are not read while much is written.
#[tokio::test(flavor = "multi_thread")]
async fn streams_through_a_standby_hold_up_no_other_call() {
    let mut stage = Stage::start().await;
    stage.masters(2, &[]).await;
    stage.workers(1).await;
    let leader = stage.leader().await;
    let standby = if leader == "master-1" { "master-2" } else { "master-1" };
    let port = stage.process(standby).grpc;
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut client = narrow(port).await;
        for _ in 0..70 {
            let nothing = WatchResourcesRequest { selector: "none=such".to_owned(), ..WatchResourcesRequest::default() };
            let watch = timeout(PATIENCE, client.watch_resources(nothing)).await;
            streams.push(watch.expect("in time").expect("a stream").into_inner());
        }
    }
    let mut unread = Vec::new();
    for _ in 0..8 {
        let everything = narrow(port).await.watch_resources(WatchResourcesRequest::default()).await;
        unread.push(everything.expect("a stream").into_inner());
    }
    let mut client = narrow(port).await;
    let text = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue("x".repeat(60_000))) };
    let spec = Some(prost_types::Struct { fields: [("a".to_owned(), text)].into() });
    for n in 0..120 {
        let resource = Some(Resource { name: format!("r{n}"), kind: "noop".to_owned(), spec: spec.clone(), ..Resource::default() });
        let added = timeout(PATIENCE, client.add_resource(AddResourceRequest { resource })).await;
        assert!(added.unwrap_or_else(|_| panic!("resource {n} in time")).expect("added").into_inner().created);
    }
    // A stream that begins only now has its place, too.
    let mut late = client.watch_resources(WatchResourcesRequest::default()).await.expect("a stream").into_inner();
    assert!(timeout(PATIENCE, late.message()).await.expect("in time").expect("an answer").is_some());
    let cordon = client.cordon_worker(CordonWorkerRequest { id: "worker-1".to_owned() });
    assert!(timeout(PATIENCE, cordon).await.expect("in time").expect("cordoned").into_inner().worker.is_some());
    let get = client.get_resource(GetResourceRequest { name: "r119".to_owned() });
    assert!(timeout(PATIENCE, get).await.expect("in time").expect("found").into_inner().resource.is_some());
    assert_eq!(curl(stage.process(standby).http, "/v1/resources/r0", &[]).0, 200);
    // Who was not read is none the worse.
    for mut stream in unread {
        for _ in 0..120 {
            timeout(PATIENCE, stream.message()).await.expect("in time").expect("it goes on").expect("an answer");
        }
    }
}

/// `dev`, `bench` and all tests start etcd in the same way.
#[tokio::test]
async fn no_page_writes_to_etcd() {
    let stage = Stage::start().await;
    let port = stage.etcd.endpoint(0).rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("a port");
    let body = r#"{"key":"L2ZvbwA=","value":"YmFy"}"#;
    for path in ["/v3/kv/put", "/v3beta/kv/put", "/v3alpha/kv/put"] {
        let (status, _, said) = curl(port, path, &["-H", "origin: http://evil.example", "-H", "content-type: text/plain", "-d", body]);
        assert_eq!(status, 404, "{path}: {said}");
    }
    assert_eq!(stage.etcdctl("/"), "");
}

#[tokio::test]
async fn a_master_and_a_worker_serve_before_etcd_answers() {
    let mut stage = Stage::start().await;
    stage.etcd.kill(0).expect("killed");
    let begun = Instant::now();
    for name in ["master-1", "worker-1"] {
        stage.spawn(name, &[]);
        let http = stage.process(name).http;
        stage.eventually("it listens", async || TcpStream::connect(("127.0.0.1", http)).ok()).await;
        assert_eq!(curl(http, "/healthz", &[]).0, 200);
        let etcd = stage.etcd.endpoint(0);
        let why = format!("not ready: etcd at {etcd} is not available: ");
        stage
            .eventually("it says why it is not ready", async || {
                let (status, _, body) = curl(http, "/readyz", &[]);
                assert_eq!(status, 503, "{body}");
                assert!(body.starts_with("not ready: etcd"), "{body}");
                body.starts_with(&why).then_some(())
            })
            .await;
    }
    let (http, grpc) = (stage.process("master-1").http, stage.process("master-1").grpc);
    let (status, _, body) = curl(http, "/v1/resources", &[]);
    assert_eq!(status, 503, "{body}");
    assert!(message(&body).starts_with("not ready: etcd at "), "{body}");
    // health.v1: an empty request; the answer's first field is 2, NOT_SERVING.
    let request = stage.path().join("check");
    std::fs::write(&request, [0; 5]).expect("written");
    let data = format!("@{}", request.display());
    let answer = stage.path().join("answer");
    let (out, url) = (answer.display().to_string(), format!("http://127.0.0.1:{grpc}/grpc.health.v1.Health/Check"));
    let headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"];
    support::run(
        Command::new("curl")
            .args(["-sS", "-m", "20", "--http2-prior-knowledge", "-o", &out, "--data-binary", &data])
            .args(headers)
            .arg(url),
    );
    assert_eq!(std::fs::read(&answer).expect("an answer"), [0, 0, 0, 0, 2, 8, 2]);
    assert!(begun.elapsed() < Duration::from_secs(18), "all of that before a master gives up waiting for etcd");
    stage.etcd.revive(0).expect("started");
    stage.ready(1).await;
    assert_eq!(curl(http, "/readyz", &[]).0, 200);
}

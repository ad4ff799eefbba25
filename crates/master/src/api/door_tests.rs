//! The door before a master's HTTP port, over every route that there is: those of the descriptors, and the pages beside them. Who gets in is
//! answered that nobody leads, since there is no etcd; no request reaches a control loop.

use std::{collections::BTreeSet, convert::Infallible, sync::Arc, time::Duration};

use evenkeel_model::MasterId;
use evenkeel_net::{Body, Front, Keeper, Limits, Names, OpenEnded, Ports, boxed};
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use prost_reflect::DescriptorPool;
use tokio::time::Instant;
use tower::{Service, ServiceExt};

use super::{
    Services,
    room::Turns,
    routes::Routes,
    service::{Service as Master, Store},
    services, tasks,
};
use crate::{
    config::MasterConfig,
    control::Queues,
    engine::Handle,
    leader_lease::Confirmed,
    state::{Leadership, Shared},
    time::SystemClock,
};

const PAGES: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

/// A master's HTTP port and gRPC port as they are served, and what has come to its control loop.
async fn ports() -> (impl Web, impl Web, Queues, Arc<Shared>) {
    let config = Arc::new(MasterConfig::new(MasterId::new("master-1").expect("an id"), Vec::new()));
    let shared = Arc::new(Shared::new(Arc::new(SystemClock::start())));
    shared.set_waits_for(Some("etcd at http://e:1 does not answer".to_owned()));
    let (engine, asked) = Handle::new(Arc::clone(&shared));
    let client = evenkeel_store::Client::new(evenkeel_store::Config::new(["http://127.0.0.1:1"])).expect("a client");
    let master = Master { config, engine, turns: Turns::default(), store: Store::new(client, ""), source: None };
    let Services { grpc, http, streaming } = services(master).await.expect("services");
    assert_eq!(streaming, ["/evenkeel.v1.Master/AddResources"]);
    let front = Front {
        keeper: Keeper::new(Limits::default()),
        ports: Ports { grpc: "m:9091".to_owned(), http: "m:8081".to_owned() },
        names: Names::of(["master-1.example"]).expect("a host").with("m.example"),
        open_ended: OpenEnded::of(streaming),
    };
    (front.before_http(http), front.before_grpc(grpc), asked, shared)
}

trait Web: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static {}

impl<S> Web for S where S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static {}

fn every_route() -> Vec<(Method, String)> {
    let routes = Routes::of(&DescriptorPool::decode(evenkeel_proto::DESCRIPTORS).expect("descriptors")).examples();
    assert!(routes.len() >= 20, "{routes:?}");
    // The pages first: `/healthz` looks at a clock that runs while calls wait for a leader.
    let own = tasks::door::ROUTES
        .iter()
        .flat_map(|(path, methods)| methods.iter().map(|method| (method.parse().expect("a method"), (*path).to_owned())));
    PAGES.map(|page| (Method::GET, page.to_owned())).into_iter().chain(routes).chain(own).collect()
}

/// It is answered as the system before did: 400 or 500, with the one text.
fn is_of_before(path: &str) -> bool {
    tasks::door::ROUTES.iter().any(|(route, _)| *route == path)
}

async fn ask(web: &impl Web, method: &Method, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, HeaderMap, String) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(boxed(Full::from(body.to_owned()))).expect("a request");
    let Ok(answer) = web.clone().oneshot(request).await;
    let (parts, body) = answer.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    (parts.status.as_u16(), parts.headers, String::from_utf8(body.to_vec()).expect("text"))
}

const JSON: (&str, &str) = ("content-type", "application/json");

/// What is tried, the headers, the body, the status, and whether the pages for probes are an exception.
type Refused<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str, u16, bool);

#[tokio::test(start_paused = true)]
async fn the_door_is_before_every_route() {
    let (web, _, mut asked, shared) = ports().await;
    let host = ("host", "127.0.0.1:8081");
    let refused: [Refused<'_>; 10] = [
        ("a foreign origin", &[host, JSON, ("origin", "http://evil.example")], "{}", 403, false),
        ("a foreign origin without a body", &[host, ("origin", "http://evil.example")], "", 403, false),
        ("no origin to speak of", &[host, ("origin", "null")], "", 403, false),
        ("another port of this machine", &[host, ("origin", "http://127.0.0.1:3000")], "", 403, false),
        ("another site", &[host, ("sec-fetch-site", "cross-site")], "", 403, false),
        ("another origin of this site", &[host, ("sec-fetch-site", "same-site")], "", 403, false),
        ("plain text", &[host, ("content-type", "text/plain")], "{}", 415, false),
        ("a body of no type", &[host], "{}", 415, false),
        ("a foreign host", &[("host", "evil.example:8081"), JSON], "", 421, true),
        ("no host", &[JSON], "", 400, true),
    ];
    for (method, path) in every_route() {
        for (name, headers, body, expected, probes_may) in refused {
            let (status, headers, said) = ask(&web, &method, &path, headers, body).await;
            let cors = headers.keys().any(|name| name.as_str().starts_with("access-control-"));
            assert!(!cors, "{method} {path} {name}: {headers:?}");
            if probes_may && PAGES.contains(&path.as_str()) {
                assert!([200, 503].contains(&status), "{method} {path} {name}: {status}");
                continue;
            }
            let said: serde_json::Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{method} {path} {name}: {status} {said}"));
            if is_of_before(&path) {
                assert_eq!(status, 400, "{method} {path} {name}: {said}");
                assert!(said["error"].as_str().is_some_and(|message| message.len() > 20), "{said}");
                continue;
            }
            assert_eq!(status, expected, "{method} {path} {name}: {said}");
            assert!(said["code"].is_i64() && said["details"].is_array(), "{said}");
            assert!(said["message"].as_str().is_some_and(|message| message.len() > 20), "{said}");
        }
    }
    assert!(asked.requests.try_recv().is_err() && asked.operations.try_recv().is_err());
    // A request that is let in comes as far as the control loop: so nothing of the above would have been overlooked.
    shared.lease.hold(|| Some(Confirmed { sent: Instant::now(), ttl: Duration::from_secs(3) }));
    shared.set_leadership(Leadership::Mine);
    let let_in = async |path: &str, body: &str| ask(&web, &Method::POST, path, &[host, JSON], body).await;
    tokio::select! {
        answer = let_in("/v1/resources", r#"{"name":"a"}"#) => panic!("answered without a control loop: {answer:?}"),
        request = asked.requests.recv() => assert!(request.is_some()),
    }
    tokio::select! {
        answer = let_in("/v1/workers/w:cordon", "") => panic!("answered without a control loop: {answer:?}"),
        request = asked.operations.recv() => assert!(request.is_some()),
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_no_page_gets_through_the_door() {
    let (web, _, _asked, _) = ports().await;
    let cases: [&[(&str, &str)]; 7] = [
        &[("host", "127.0.0.1:8081")],
        &[("host", "master-1")],
        &[("host", "localhost:8081"), ("origin", "http://localhost:8081"), ("sec-fetch-site", "same-origin")],
        &[("host", "master-1.example")],
        &[("host", "M.example.:8081")],
        &[("host", "[::1]:8081"), ("sec-fetch-site", "none")],
        &[("host", "a"), JSON],
    ];
    for (method, path) in every_route() {
        for headers in cases {
            let (status, _, said) = ask(&web, &method, &path, headers, "").await;
            match path.as_str() {
                "/healthz" | "/metrics" => assert_eq!(status, 200, "{path}: {said}"),
                "/readyz" => assert_eq!((status, said.as_str()), (503, "not ready: etcd at http://e:1 does not answer\n")),
                _ => {
                    let expected = "not ready: etcd at http://e:1 does not answer; try again";
                    let said: serde_json::Value = serde_json::from_str(&said).unwrap_or_default();
                    if is_of_before(&path) {
                        // What is wrong with a request that asks for nothing is found before anybody leads.
                        let expected =
                            if method == Method::GET { (500, expected) } else { (400, said["error"].as_str().expect("an error")) };
                        assert_eq!((status, said["error"].as_str()), (expected.0, Some(expected.1)), "{method} {path}: {said}");
                        continue;
                    }
                    assert_eq!((status, said["message"].as_str()), (503, Some(expected)), "{method} {path} {headers:?}: {said}");
                }
            }
        }
    }
}

/// HEAD is there wherever GET is, with its status and its headers; what is not there names what is.
#[tokio::test(start_paused = true)]
async fn every_path_knows_its_methods() {
    let (web, _, _asked, _) = ports().await;
    let host = ("host", "a");
    let all = every_route();
    let paths: BTreeSet<&str> = all.iter().map(|(_, path)| path.as_str()).collect();
    for path in paths {
        let mut expected: BTreeSet<String> = all.iter().filter(|(_, p)| p == path).map(|(method, _)| method.to_string()).collect();
        if expected.contains("GET") {
            expected.insert("HEAD".to_owned());
            let (status, headers, said) = ask(&web, &Method::GET, path, &[host], "").await;
            let (head_status, head_headers, nothing) = ask(&web, &Method::HEAD, path, &[host], "").await;
            assert_eq!((head_status, nothing.as_str()), (status, ""), "{path}");
            assert_eq!(head_headers.get("content-type"), headers.get("content-type"), "{path}");
            // A page that counts what the process uses differs from one time to the next.
            if path != "/metrics" {
                assert_eq!(head_headers["content-length"], said.len().to_string(), "{path}");
            }
        }
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
            if expected.contains(method) {
                continue;
            }
            let (status, headers, said) = ask(&web, &method.parse().expect("a method"), path, &[host], "").await;
            assert_eq!(status, if is_of_before(path) { 400 } else { 405 }, "{method} {path}: {said}");
            assert!(method == "HEAD" || !is_of_before(path) || said.starts_with(r#"{"error":""#), "{method} {path}: {said}");
            let allow = headers.get("allow").and_then(|value| value.to_str().ok()).unwrap_or_default();
            let allow: BTreeSet<String> = allow.split(',').map(|method| method.trim().to_owned()).collect();
            assert_eq!(allow, expected, "{method} {path}");
            assert!(
                method == "HEAD" || said.contains(&format!("{method} is not allowed for {path}; allowed: ")),
                "{method} {path}: {said}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_other_port_is_named() {
    let (web, calls, _asked, _) = ports().await;
    let grpc = [("content-type", "application/grpc"), ("te", "trailers"), ("host", "evil.example")];
    for path in
        ["/evenkeel.v1.Master/ListWorkers", "/grpc.health.v1.Health/Check", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"]
    {
        let (status, headers, _) = ask(&web, &Method::POST, path, &grpc, "").await;
        let status_of = tonic::Status::from_header_map(&headers).expect("a status");
        assert_eq!((status, status_of.code()), (200, tonic::Code::Unimplemented), "{path}");
        assert_eq!(status_of.message(), "this port speaks HTTP and JSON; gRPC is served at m:9091");
    }
    for (method, path) in every_route() {
        let (status, _, said) = ask(&calls, &method, &path, &[("host", "a")], "").await;
        assert_eq!(status, 400, "{path}");
        assert_eq!(
            said, r#"{"code":3,"message":"this port speaks gRPC; HTTP and JSON are served at http://m:8081","details":[]}"#,
            "{path}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_says_that_it_is_too_large_is_not_read() {
    struct Endless;
    impl http_body::Body for Endless {
        type Data = bytes::Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, Infallible>>> {
            unreachable!("it is read")
        }

        fn size_hint(&self) -> http_body::SizeHint {
            http_body::SizeHint::with_exact(2 << 20)
        }
    }
    let (web, _, _asked, _) = ports().await;
    let request = Request::post("/v1/resources").header("host", "a").header(JSON.0, JSON.1).body(boxed(Endless)).expect("a request");
    let Ok(answer) = web.oneshot(request).await;
    assert_eq!(answer.status(), 413);
}

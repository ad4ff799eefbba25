//! A standby between a caller and leaders that end, hang up and refuse: what is sent again, what never is, and who answers while leadership
//! changes.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use evenkeel_net::Peer;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::{net::TcpListener, time::Instant};
use tonic::{
    Code, Status,
    body::Body,
    server::NamedService,
    transport::{Server, server::TcpIncoming},
};
use tower::{Layer, Service, ServiceExt};

use super::forward::{FROM, Forward, ForwardLayer, Kinds, MARK, NO_EFFECT, without_effect};
use crate::{
    leader_lease::Confirmed,
    state::{Leadership, Shared},
    time::SystemClock,
};

const WRITE: &str = "/evenkeel.v1.Master/AddResource";
const READ: &str = "/evenkeel.v1.Master/GetResource";
const MESSAGE: &[u8] = b"\0\0\0\0\x03\x0a\x01a";

/// What a leader does with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Well,
    /// It has ceased to lead, and says that nothing was done.
    NothingDone,
    /// It does not know what became of the call.
    NotKnown,
    /// It is gone after it got the call.
    Dies,
}

/// A master that leads, which says one thing after the other, and the last one for ever.
#[derive(Clone)]
struct Fake {
    says: &'static [Says],
    asked: Arc<AtomicUsize>,
    heard: Arc<Mutex<Bytes>>,
    /// For whom it was asked.
    from: Arc<Mutex<Option<HeaderValue>>>,
}

impl Fake {
    fn that(says: &'static [Says]) -> Self {
        Self { says, asked: Arc::default(), heard: Arc::default(), from: Arc::default() }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    async fn answer(self, request: Request<Body>) -> Result<Response<Body>, Infallible> {
        let turn = self.asked.fetch_add(1, Ordering::SeqCst);
        *self.from.lock().expect("no panic") = request.headers().get(FROM).cloned();
        let heard = request.into_body().collect().await.expect("a whole message").to_bytes();
        *self.heard.lock().expect("no panic") = heard;
        Ok(match self.says[turn.min(self.says.len() - 1)] {
            Says::Well => Status::ok("").into_http(),
            Says::NothingDone => without_effect(Status::unavailable("no longer the leader")).into_http(),
            Says::NotKnown => Status::unavailable("it is not known").into_http(),
            Says::Dies => panic!("this master is gone"),
        })
    }

    /// Where it is served.
    async fn serve(&self) -> Leadership {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        tokio::spawn(Server::builder().add_service(self.clone()).serve_with_incoming(TcpIncoming::from(listener)));
        Leadership::Other { id: "leader".to_owned(), address }
    }
}

impl NamedService for Fake {
    const NAME: &'static str = "evenkeel.v1.Master";
}

impl Service<Request<Body>> for Fake {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().answer(request))
    }
}

/// A standby, and what it shares with its control loop.
struct Standby {
    shared: Arc<Shared>,
    /// Its own services.
    own: Fake,
    forward: Forward<Fake>,
}

impl Standby {
    fn new(own: &'static [Says]) -> Self {
        let shared = Arc::new(Shared::new(Arc::new(SystemClock::start())));
        let own = Fake::that(own);
        let kinds = Kinds { reads: [READ.to_owned()].into(), ..Kinds::default() };
        let forward = ForwardLayer::new(Arc::clone(&shared), "standby", kinds, true).layer(own.clone());
        Self { shared, own, forward }
    }

    /// Leads from now on; etcd has confirmed it so long ago.
    fn lead(&self, confirmed: Duration) {
        let sent = Instant::now() - confirmed;
        self.shared.lease.hold(move || Some(Confirmed { sent, ttl: Duration::from_secs(3) }));
        self.shared.set_leadership(Leadership::Mine);
    }

    async fn ask(&self, path: &str) -> Answer {
        self.ask_marked(path, false).await
    }

    async fn ask_marked(&self, path: &str, is_passed_on: bool) -> Answer {
        let mut request = Request::post(path).body(Body::new(Full::new(Bytes::from_static(MESSAGE)))).expect("a request");
        if is_passed_on {
            request.headers_mut().insert(MARK, "other".parse().expect("a value"));
        }
        let Ok(answer) = self.forward.clone().oneshot(request).await;
        let status = Status::from_header_map(answer.headers()).expect("a status");
        Answer { code: status.code(), message: status.message().to_owned(), says_no_effect: answer.headers().contains_key(NO_EFFECT) }
    }
}

#[derive(Debug)]
struct Answer {
    code: Code,
    message: String,
    says_no_effect: bool,
}

/// An address where nobody listens.
async fn nobody() -> Leadership {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    Leadership::Other { id: "gone".to_owned(), address: listener.local_addr().expect("its address").to_string() }
}

/// A header of that name counts for nothing where it comes from a caller.
#[tokio::test]
async fn the_address_of_who_asks_is_passed_on() {
    let (standby, leader) = (Standby::new(&[Says::Well]), Fake::that(&[Says::Well]));
    standby.shared.set_leadership(leader.serve().await);
    for (peer, expected) in [(Some("10.0.0.9"), Some("10.0.0.9")), (None, None)] {
        let mut request = Request::post(WRITE).body(Body::new(Full::new(Bytes::from_static(MESSAGE)))).expect("a request");
        request.headers_mut().insert(FROM, "10.6.6.6".parse().expect("a value"));
        peer.map(|peer| request.extensions_mut().insert(Peer(peer.parse().expect("an address"))));
        let Ok(answer) = standby.forward.clone().oneshot(request).await;
        assert_eq!(answer.status(), 200);
        let from = leader.from.lock().expect("no panic").clone();
        assert_eq!(from.as_ref().and_then(|from| from.to_str().ok()), expected);
    }
}

#[tokio::test]
async fn a_master_that_others_reach_serves_no_tasks() {
    let standby = Standby::new(&[Says::Well]);
    standby.lead(Duration::ZERO);
    let open = ForwardLayer::new(Arc::clone(&standby.shared), "open", Kinds::default(), false).layer(standby.own.clone());
    for (method, expected) in
        [("CreateTask", Code::PermissionDenied), ("ReadTaskOutput", Code::PermissionDenied), ("AddResource", Code::Ok)]
    {
        let request = Request::post(format!("/evenkeel.v1.Master/{method}")).body(Body::empty()).expect("a request");
        let Ok(answer) = open.clone().oneshot(request).await;
        assert_eq!(Status::from_header_map(answer.headers()).expect("a status").code(), expected, "{method}");
        assert_eq!(standby.ask(&format!("/evenkeel.v1.Master/{method}")).await.code, Code::Ok, "{method}");
    }
}

#[tokio::test]
async fn a_call_that_may_have_had_an_effect_is_not_sent_again() {
    for says in [&[Says::NotKnown, Says::Well], &[Says::Dies, Says::Well]] {
        let (standby, leader) = (Standby::new(&[Says::Well]), Fake::that(says));
        standby.shared.set_leadership(leader.serve().await);
        let answer = standby.ask(WRITE).await;
        assert_eq!(
            (answer.code, answer.says_no_effect, leader.asked(), standby.own.asked()),
            (Code::Unavailable, false, 1, 0),
            "{answer:?}"
        );
        assert!(answer.message.contains("it is not known"), "{answer:?}");
    }
}

#[tokio::test]
async fn a_read_is_sent_again_since_it_has_no_effect() {
    let (standby, leader) = (Standby::new(&[Says::Well]), Fake::that(&[Says::Dies, Says::Well]));
    standby.shared.set_leadership(leader.serve().await);
    let answer = standby.ask(READ).await;
    assert_eq!((answer.code, leader.asked()), (Code::Ok, 2), "{answer:?}");
}

#[tokio::test]
async fn a_call_without_effect_goes_to_the_next_leader_whole() {
    // The next leader is another one, or the standby itself; the one before says that it does not lead, or is not there any more.
    let (standby, before, next) = (Standby::new(&[Says::Well]), Fake::that(&[Says::NothingDone]), Fake::that(&[Says::Well]));
    for gone in [before.serve().await, nobody().await] {
        for next in [Some(next.serve().await), None] {
            standby.shared.set_leadership(gone.clone());
            let (answer, ()) = tokio::join!(standby.ask(WRITE), async {
                tokio::time::sleep(Duration::from_millis(60)).await;
                match next {
                    Some(next) => standby.shared.set_leadership(next),
                    None => standby.lead(Duration::ZERO),
                }
            });
            assert_eq!(answer.code, Code::Ok, "{answer:?}");
        }
    }
    assert!(before.asked() >= 2, "it was asked for each");
    assert_eq!((next.asked(), standby.own.asked()), (2, 2));
    for heard in [next.heard, standby.own.heard] {
        assert_eq!(&**heard.lock().expect("no panic"), MESSAGE);
    }
}

/// The master that steps down has callers of its own.
#[tokio::test]
async fn a_leader_that_steps_down_passes_its_own_calls_on_and_sends_those_of_others_back() {
    let (standby, next) = (Standby::new(&[Says::NothingDone]), Fake::that(&[Says::Well]));
    standby.lead(Duration::ZERO);
    let leadership = next.serve().await;
    let (answer, ()) = tokio::join!(standby.ask(WRITE), async {
        tokio::task::yield_now().await;
        standby.shared.set_leadership(Leadership::Nobody);
        standby.shared.end_by(Instant::now() + Duration::from_secs(1));
        let begun = Instant::now();
        let passed_on = standby.ask_marked(WRITE, true).await;
        assert!(passed_on.says_no_effect && passed_on.code == Code::Unavailable, "{passed_on:?}");
        assert!(begun.elapsed() < Duration::from_millis(200), "at once");
        standby.shared.set_leadership(leadership);
    });
    assert_eq!((answer.code, next.asked()), (Code::Ok, 1), "{answer:?}");
    let passed_on = standby.ask_marked(WRITE, true).await;
    assert!(passed_on.says_no_effect, "it is not passed on twice: {passed_on:?}");
    assert_eq!(next.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_master_that_ends_without_a_next_leader_says_so_in_time() {
    let standby = Standby::new(&[Says::Well]);
    let begun = Instant::now();
    standby.shared.end_by(begun + Duration::from_secs(1));
    let answer = standby.ask(WRITE).await;
    assert!(answer.says_no_effect && begun.elapsed() < Duration::from_millis(1_100), "{answer:?} after {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_lease_may_have_ended_answers_nothing_from_memory() {
    let standby = Standby::new(&[Says::Well]);
    standby.lead(Duration::from_secs(3));
    let answer = standby.ask(READ).await;
    assert_eq!((answer.code, standby.own.asked()), (Code::Unavailable, 0), "{answer:?}");
    assert!(answer.message.contains("no master leads at the moment"), "{answer:?}");
    standby.lead(Duration::from_secs(1));
    assert_eq!(standby.ask(READ).await.code, Code::Ok);
    // Who waits is answered as soon as the lease is confirmed.
    standby.lead(Duration::from_secs(3));
    let begun = Instant::now();
    let (answer, ()) = tokio::select! {
        joined = async { tokio::join!(standby.ask(READ), async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let sent = Instant::now();
            standby.shared.lease.hold(move || Some(Confirmed { sent, ttl: Duration::from_secs(3) }));
        }) } => joined,
        () = standby.shared.keep_looking_at_lease() => unreachable!("it goes on"),
    };
    assert!(answer.code == Code::Ok && begun.elapsed() < Duration::from_millis(500), "{answer:?} after {:?}", begun.elapsed());
}

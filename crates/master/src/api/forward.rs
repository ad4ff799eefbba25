//! Any master takes any call: a standby passes it on to the leader, whole and byte for byte, and the leader's answer back. Reads too, so
//! that a caller reads its own writes. When leadership changes under a call that certainly had no effect, it goes to the next leader.
//! Decision 0002. The connections to the leader are in `lanes`.

use std::{
    collections::BTreeSet,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use evenkeel_model::limits::MAX_MESSAGE;
use evenkeel_net::Peer;
use http::{HeaderMap, HeaderValue, Request, Response, Uri, request::Parts};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::{ConnectError, Status, body::Body, metadata::MetadataValue, transport::Channel};
use tower::{Layer, Service, ServiceExt};

use super::{
    lanes::{Lanes, Place},
    tasks,
};
use crate::{
    control::subjects::Subject,
    state::{Leadership, Shared},
};

/// How long a call waits for a leader.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one that was passed on does: as long as a new leader needs to see by itself that it leads. After that who passed it on looks
/// again who leads.
const PASSED_ON: Duration = Duration::from_millis(250);
/// The first and the longest pause before a call is sent again while nothing is heard of another leader. The first is longer than etcd needs
/// to tell of one; the longest leaves a leader that has just begun some peace from thousands of callers.
const AGAIN: std::ops::RangeInclusive<Duration> = Duration::from_millis(25)..=Duration::from_millis(400);
/// How long a leader that has been replaced may take to answer: as one that ends in order, finishing what it has begun. One that hangs is
/// not waited for.
const REPLACED: Duration = Duration::from_secs(1);
/// What comes before a message in a body of gRPC.
const PREFIX: usize = 5;
/// Marks a call that was passed on once: it is not passed on again.
pub(super) const MARK: &str = "evenkeel-forwarded-by";
/// The address of who asked, in a call that was passed on.
pub(super) const FROM: &str = "evenkeel-forwarded-for";
/// Marks the answer to a call that certainly had no effect, because who was asked does not lead: another may be asked.
pub const NO_EFFECT: &str = "evenkeel-no-effect";
/// The services whose calls only the leader can answer.
const LEADERS: [&str; 2] = ["/evenkeel.v1.Master/", "/CrawlerMaster/"];

/// The paths of the calls that are not passed on as any other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kinds {
    /// Those that stream their requests or their answers: they cannot be sent again.
    pub(crate) streams: BTreeSet<String>,
    /// Those that only read: they never have an effect.
    pub(crate) reads: BTreeSet<String>,
}

/// Wraps the services of a master.
#[derive(Clone)]
pub(crate) struct ForwardLayer {
    shared: Arc<Shared>,
    id: HeaderValue,
    kinds: Arc<Kinds>,
    /// Calls about tasks are taken here.
    takes_tasks: bool,
    lanes: Arc<Mutex<Option<Lanes>>>,
}

/// The services of a master, asked by itself while it leads, and those of the leader otherwise.
#[derive(Clone)]
pub(crate) struct Forward<S> {
    inner: S,
    layer: ForwardLayer,
}

/// A call that does not stream, read as a whole: so it can be sent again.
struct Call {
    parts: Parts,
    message: Bytes,
}

impl ForwardLayer {
    /// For a master of this id.
    pub(crate) fn new(shared: Arc<Shared>, id: &str, kinds: Kinds, takes_tasks: bool) -> Self {
        let id = HeaderValue::from_str(id).unwrap_or(HeaderValue::from_static("master"));
        Self { shared, id, kinds: Arc::new(kinds), takes_tasks, lanes: Arc::default() }
    }

    /// Waits for somebody to lead.
    async fn leader(&self, is_passed_on: bool, deadline: Instant) -> Result<Leadership, Status> {
        let mut leadership = self.shared.leadership.subscribe();
        let found = async {
            loop {
                let leader = self.shared.leader();
                if usable(&leader, is_passed_on) {
                    return leader;
                }
                if leadership.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        // A master that ends does not become the leader: what was passed on to it is sent back at once, and its own callers are told while
        // its servers still run.
        let ends = async {
            let last_answers = self.shared.ends().await;
            if !is_passed_on {
                sleep_until(last_answers).await;
            }
        };
        tokio::select! {
            biased;
            leader = found => return Ok(leader),
            () = ends => {}
            () = sleep_until(deadline) => {}
        }
        let why = self.shared.waits_for().map_or_else(|| "no master leads at the moment".to_owned(), |what| format!("not ready: {what}"));
        Err(without_effect(Status::unavailable(format!("{why}; try again"))))
    }

    /// What asks the lanes to this address; they are new where the leader is.
    fn lane<T>(&self, address: &str, choose: impl FnOnce(&mut Lanes) -> Result<T, Status>) -> Result<T, Status> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let current = match lanes.take().filter(|lanes| lanes.address() == address) {
            Some(current) => current,
            None => Lanes::to(address)?,
        };
        choose(lanes.insert(current))
    }

    /// Answers a call that does not stream: by the leader, or by the next one while it certainly had no effect.
    async fn answer<S>(&self, mut inner: S, call: Call) -> Result<Response<Body>, S::Error>
    where
        S: Service<Request<Body>, Response = Response<Body>>,
    {
        let is_passed_on = call.parts.headers.contains_key(MARK);
        let deadline = Instant::now() + if is_passed_on { PASSED_ON } else { PATIENCE };
        let mut pause = *AGAIN.start();
        loop {
            let mut leadership = self.shared.leadership.subscribe();
            let answer = match self.leader(is_passed_on, deadline).await {
                Ok(Leadership::Other { id, address }) => {
                    let leader = Leader { id: &id, address: &address };
                    self.pass_on(leader, &call).await.unwrap_or_else(Status::into_http)
                }
                Ok(Leadership::Mine | Leadership::Nobody) => inner.ready().await?.call(call.request()).await?,
                Err(status) => return Ok(status.into_http()),
            };
            // Who passed it on looks for the next leader itself.
            if is_passed_on || !had_no_effect(answer.headers()) || Instant::now() + pause >= deadline {
                return Ok(answer);
            }
            // Told of a change or not: who leads is looked up.
            let _ = timeout(pause, leadership.changed()).await;
            pause = (pause * 2).min(*AGAIN.end());
        }
    }

    /// Answers a call that streams: once, since what was read of it is gone.
    async fn answer_stream<S>(&self, mut inner: S, request: Request<Body>) -> Result<Response<Body>, S::Error>
    where
        S: Service<Request<Body>, Response = Response<Body>>,
    {
        let is_passed_on = request.headers().contains_key(MARK);
        let deadline = Instant::now() + if is_passed_on { PASSED_ON } else { PATIENCE };
        let answer = match self.leader(is_passed_on, deadline).await {
            Ok(Leadership::Other { id, address }) => self.pass_on_stream(Leader { id: &id, address: &address }, request).await,
            Ok(Leadership::Mine | Leadership::Nobody) => return inner.ready().await?.call(request).await,
            Err(status) => Err(status),
        };
        Ok(answer.unwrap_or_else(Status::into_http))
    }

    async fn pass_on(&self, leader: Leader<'_>, call: &Call) -> Result<Response<Body>, Status> {
        let path = call.parts.uri.path();
        let is_read = self.kinds.reads.contains(path);
        let again = if path.ends_with("/CreateTask") { Subject::Tasks.again() } else { "trying again is safe" };
        let failed = |failure: Failure| leader.failed(&failure, is_read, again);
        let channel = self.lane(leader.address, |lanes| Ok(lanes.unary()))?;
        let answer = async {
            let (parts, body) = ask(channel, self.marked(call.request())).await?.into_parts();
            // Who reads slowly keeps its answer here, and no place on the connection.
            let body = body.collect().await.map_err(|error| Failure::of(&error))?;
            Ok(Response::from_parts(parts, Body::new(body)))
        };
        tokio::select! {
            biased;
            answer = answer => answer.map_err(failed),
            () = self.replaced(leader) => {
                Err(failed(Failure { why: "it has not answered, and another master leads now".to_owned(), sent: true }))
            }
        }
    }

    /// Waits until another master leads, and for the last answers of this one.
    async fn replaced(&self, leader: Leader<'_>) {
        let mut leadership = self.shared.leadership.subscribe();
        loop {
            let is_another = match self.shared.leader() {
                Leadership::Nobody => false,
                Leadership::Mine => true,
                Leadership::Other { address, .. } => address != leader.address,
            };
            if is_another {
                return sleep(REPLACED).await;
            }
            if leadership.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    async fn pass_on_stream(&self, leader: Leader<'_>, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (channel, place) = self.lane(leader.address, Lanes::stream)?;
        let answer = ask(channel, self.marked(request)).await.map_err(|failure| leader.failed(&failure, false, "trying again is safe"))?;
        Ok(answer.map(|body| held(body, place)))
    }

    /// A request as another master takes it.
    fn marked(&self, mut request: Request<Body>) -> Request<Body> {
        request.headers_mut().insert(MARK, self.id.clone());
        request.headers_mut().remove(FROM);
        let peer = request.extensions().get::<Peer>().and_then(|Peer(address)| HeaderValue::try_from(address.to_string()).ok());
        if let Some(peer) = peer {
            request.headers_mut().insert(FROM, peer);
        }
        let path = request.uri().path_and_query().cloned();
        if let Some(path) = path {
            *request.uri_mut() = Uri::from(path);
        }
        request
    }
}

impl Call {
    /// All of a call: one that comes slowly has no place on a connection before it is there.
    async fn read(request: Request<Body>) -> Result<Self, Status> {
        let (parts, body) = request.into_parts();
        match Limited::new(body, MAX_MESSAGE + PREFIX).collect().await {
            Ok(body) => Ok(Self { parts, message: body.to_bytes() }),
            Err(error) if error.is::<LengthLimitError>() => {
                Err(Status::out_of_range(format!("the message is larger than {MAX_MESSAGE} bytes; send less at once")))
            }
            Err(error) => Err(Status::cancelled(format!("the request cannot be read: {error}"))),
        }
    }

    fn request(&self) -> Request<Body> {
        Request::from_parts(self.parts.clone(), Body::new(Full::new(self.message.clone())))
    }
}

/// Who leads, as it is named when it does not answer.
#[derive(Clone, Copy)]
struct Leader<'a> {
    id: &'a str,
    address: &'a str,
}

impl Leader<'_> {
    fn failed(&self, failure: &Failure, is_read: bool, again: &str) -> Status {
        let (Self { id, address }, Failure { why, sent }) = (self, failure);
        if !sent || is_read {
            let status = Status::unavailable(format!("the leader {id} at {address} cannot be reached: {why}; try again"));
            return without_effect(status);
        }
        Status::unavailable(format!("it is not known whether the leader {id} at {address} did this: {why}; {again}"))
    }
}

/// Why there is no answer.
struct Failure {
    why: String,
    /// The leader may have got the call, and done what it asks for.
    sent: bool,
}

impl Failure {
    fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        Self { why: innermost(error), sent: !is_unsent(error) }
    }
}

async fn ask(mut channel: Channel, request: Request<Body>) -> Result<Response<Body>, Failure> {
    let ready = channel.ready().await.map_err(|error| Failure { why: innermost(&error), sent: false })?;
    ready.call(request).await.map_err(|error| Failure::of(&error))
}

/// Whether the call certainly did not come to where it was sent: there was no connection, the connection had ended before the call had its
/// turn on it, or the other side has said that it does not look at it (RFC 9113, 6.8 and 8.7).
fn is_unsent(error: &(dyn std::error::Error + 'static)) -> bool {
    let is_refused = |error: &h2::Error| {
        let goes_in_order = error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR);
        goes_in_order || error.is_reset() && error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM)
    };
    let mut next = Some(error);
    while let Some(error) = next {
        let is_unsent = error.is::<ConnectError>()
            || error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled)
            || error.downcast_ref::<h2::Error>().is_some_and(is_refused);
        if is_unsent {
            return true;
        }
        next = error.source();
    }
    false
}

/// A refusal that says for certain that nothing was done.
pub(super) fn without_effect(mut status: Status) -> Status {
    status.metadata_mut().insert(NO_EFFECT, MetadataValue::from_static("true"));
    status
}

/// Errors stand in the headers, with what goes with them.
fn had_no_effect(headers: &HeaderMap) -> bool {
    headers.contains_key(NO_EFFECT)
}

/// A stream's answer keeps its place until it ends or is dropped.
fn held(body: Body, place: Place) -> Body {
    Body::new(body.map_frame(move |frame| {
        let _held = &place;
        frame
    }))
}

/// The innermost cause: the outer ones only say that the transport failed.
pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// A call is about tasks, by its name: whoever gets through with it runs what he likes on workers, or sees what others run.
fn is_of_tasks(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|method| method.contains("Task"))
}

/// A call can be answered by this leader, or be passed on to it.
fn usable(leader: &Leadership, is_passed_on: bool) -> bool {
    match leader {
        Leadership::Nobody => false,
        Leadership::Mine => true,
        // Who passed this on knew this master as the leader: it is about to become the leader, or has just ended.
        Leadership::Other { .. } => !is_passed_on,
    }
}

impl<S> Layer<S> for ForwardLayer {
    type Service = Forward<S>;

    fn layer(&self, inner: S) -> Forward<S> {
        Forward { inner, layer: self.clone() }
    }
}

impl<S> Service<Request<Body>> for Forward<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        // The service that was polled ready is the one that is called; its clone waits for the next call.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        if !LEADERS.iter().any(|service| path.starts_with(service)) {
            return Box::pin(inner.call(request));
        }
        if !self.layer.takes_tasks && is_of_tasks(path) {
            let why = "others reach this master without authentication, so it serves no tasks; start it with --insecure if that is meant";
            let status = Status::permission_denied(why);
            if !self.layer.kinds.reads.contains(path) {
                tasks::log_refusal(path, request.extensions().get(), &status);
            }
            return Box::pin(std::future::ready(Ok(status.into_http())));
        }
        let layer = self.layer.clone();
        let is_stream = layer.kinds.streams.contains(path);
        Box::pin(async move {
            if is_stream {
                return layer.answer_stream(inner, request).await;
            }
            match Call::read(request).await {
                Ok(call) => layer.answer(inner, call).await,
                Err(status) => Ok(status.into_http()),
            }
        })
    }
}

//! Any master takes any call: a standby passes it on to the leader, whole and byte for byte, and the leader's answer back. Reads too, so
//! that a caller reads its own writes. Decision 0002. The connections to the leader are in `lanes`.

use std::{
    collections::BTreeSet,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use evenkeel_model::limits::MAX_MESSAGE;
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::time::{Instant, timeout_at};
use tonic::{Status, body::Body, transport::Channel};
use tower::{Layer, Service, ServiceExt};

use super::lanes::{Lanes, Place};
use crate::state::{Leadership, Shared};

/// How long a call waits for a leader.
const PATIENCE: Duration = Duration::from_secs(5);
/// What comes before a message in a body of gRPC.
const PREFIX: usize = 5;
/// Marks a call that was passed on once: it is not passed on again.
const MARK: &str = "evenkeel-forwarded-by";
/// The services whose calls only the leader can answer.
const LEADERS: [&str; 2] = ["/evenkeel.v1.Master/", "/CrawlerMaster/"];

/// Wraps the services of a master.
#[derive(Clone)]
pub(crate) struct ForwardLayer {
    shared: Arc<Shared>,
    id: HeaderValue,
    /// The paths of calls that stream their requests or their answers.
    streams: Arc<BTreeSet<String>>,
    lanes: Arc<Mutex<Option<Lanes>>>,
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Forward<S> {
    inner: S,
    layer: ForwardLayer,
}

impl ForwardLayer {
    /// For a master of this id; `streams` are the paths of the calls that stream their requests or their answers.
    pub(crate) fn new(shared: Arc<Shared>, id: &str, streams: impl IntoIterator<Item = String>) -> Self {
        let id = HeaderValue::from_str(id).unwrap_or(HeaderValue::from_static("master"));
        Self { shared, id, streams: Arc::new(streams.into_iter().collect()), lanes: Arc::default() }
    }

    /// Waits for somebody to lead.
    async fn leader(&self, is_marked: bool) -> Result<Leadership, Status> {
        let deadline = Instant::now() + PATIENCE;
        let mut leadership = self.shared.leadership.subscribe();
        let usable = |leader: &Leadership| match leader {
            Leadership::Nobody => false,
            Leadership::Mine => true,
            // Who passed this on knew this master as the leader: it is about to become the leader, or has just ended.
            Leadership::Other { .. } => !is_marked,
        };
        // What wakes carries nothing: who leads is looked up.
        let found = timeout_at(deadline, leadership.wait_for(|_| usable(&self.shared.leader()))).await.is_ok();
        match self.shared.leader() {
            leader if found && usable(&leader) => Ok(leader),
            _ => {
                let why =
                    self.shared.waits_for().map_or_else(|| "no master leads at the moment".to_owned(), |what| format!("not ready: {what}"));
                Err(Status::unavailable(format!("{why}; try again")))
            }
        }
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

    async fn pass_on(&self, id: &str, address: &str, mut request: Request<Body>) -> Result<Response<Body>, Status> {
        let is_stream = self.streams.contains(request.uri().path());
        request.headers_mut().insert(MARK, self.id.clone());
        let path = request.uri().path_and_query().cloned();
        if let Some(path) = path {
            *request.uri_mut() = Uri::from(path);
        }
        let leader = Leader { id, address };
        if is_stream {
            let (channel, place) = self.lane(address, Lanes::stream)?;
            return Ok(leader.ask(channel, request).await?.map(|body| held(body, place)));
        }
        let (parts, body) = request.into_parts();
        let request = Request::from_parts(parts, whole(body).await?);
        let channel = self.lane(address, |lanes| Ok(lanes.unary()))?;
        let (parts, body) = leader.ask(channel, request).await?.into_parts();
        // Who reads slowly keeps its answer here, and no place on the connection.
        let body = body.collect().await.map_err(|error| leader.unreachable(&innermost(&error)))?;
        Ok(Response::from_parts(parts, Body::new(body)))
    }
}

/// Who leads, as it is named when it does not answer.
struct Leader<'a> {
    id: &'a str,
    address: &'a str,
}

impl Leader<'_> {
    fn unreachable(&self, why: &str) -> Status {
        Status::unavailable(format!("the leader {} at {} cannot be reached: {why}; try again", self.id, self.address))
    }

    async fn ask(&self, mut channel: Channel, request: Request<Body>) -> Result<Response<Body>, Status> {
        let ready = channel.ready().await.map_err(|e| self.unreachable(&e.to_string()))?;
        ready.call(request).await.map_err(|e| self.unreachable(&innermost(&e)))
    }
}

/// All of a call's request: one that comes slowly has no place on a connection before it is there.
async fn whole(body: Body) -> Result<Body, Status> {
    match Limited::new(body, MAX_MESSAGE + PREFIX).collect().await {
        Ok(body) => Ok(Body::new(body)),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(Status::out_of_range(format!("the message is larger than {MAX_MESSAGE} bytes; send less at once")))
        }
        Err(error) => Err(Status::cancelled(format!("the request cannot be read: {error}"))),
    }
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
        let is_mine = self.layer.shared.leads();
        if is_mine || !LEADERS.iter().any(|service| path.starts_with(service)) {
            return Box::pin(inner.call(request));
        }
        let layer = self.layer.clone();
        Box::pin(async move {
            let is_marked = request.headers().contains_key(MARK);
            let answer = match layer.leader(is_marked).await {
                Ok(Leadership::Other { id, address }) => layer.pass_on(&id, &address, request).await,
                Ok(Leadership::Mine | Leadership::Nobody) => return inner.call(request).await,
                Err(status) => Err(status),
            };
            Ok(answer.unwrap_or_else(Status::into_http))
        })
    }
}

//! Any master takes any call: a standby passes it on to the leader, whole and byte for byte, and the leader's answer back. Reads too, so
//! that a caller reads its own writes. Decision 0002.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderValue, Request, Response, Uri};
use tokio::time::{Instant, timeout_at};
use tonic::{
    Status,
    body::Body,
    transport::{Channel, Endpoint},
};
use tower::{Layer, Service, ServiceExt};

use crate::known::{Leadership, Shared};

/// How long a call waits for a leader.
const PATIENCE: Duration = Duration::from_secs(5);
const CONNECT: Duration = Duration::from_secs(1);
/// Marks a call that was passed on once: it is not passed on again.
const MARK: &str = "evenkeel-forwarded-by";
/// The services whose calls only the leader can answer.
const LEADERS: [&str; 2] = ["/evenkeel.v1.Master/", "/CrawlerMaster/"];

/// Wraps the services of a master.
#[derive(Clone)]
pub(crate) struct ForwardLayer {
    shared: Arc<Shared>,
    id: HeaderValue,
    route: Arc<Mutex<Option<(String, Channel)>>>,
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Forward<S> {
    inner: S,
    layer: ForwardLayer,
}

impl ForwardLayer {
    pub(crate) fn new(shared: Arc<Shared>, id: &str) -> Self {
        let id = HeaderValue::from_str(id).unwrap_or(HeaderValue::from_static("master"));
        Self { shared, id, route: Arc::default() }
    }

    /// Waits for somebody to lead.
    async fn leader(&self, is_marked: bool) -> Result<Leadership, Status> {
        let deadline = Instant::now() + PATIENCE;
        let mut leadership = self.shared.leadership.subscribe();
        let usable = |l: &Leadership| match l {
            Leadership::Nobody => false,
            Leadership::Mine => true,
            // Who passed this on knew this master as the leader: it is about to take office, or has just ended.
            Leadership::Other { .. } => !is_marked,
        };
        let found = timeout_at(deadline, leadership.wait_for(usable)).await;
        match found {
            Ok(Ok(leadership)) => Ok(leadership.clone()),
            Ok(Err(_)) | Err(_) => {
                let why =
                    self.shared.waits_for().map_or_else(|| "no master leads at the moment".to_owned(), |what| format!("not ready: {what}"));
                Err(Status::unavailable(format!("{why}; try again")))
            }
        }
    }

    fn channel(&self, address: &str) -> Result<Channel, Status> {
        let mut route = self.route.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, channel)) = route.as_ref()
            && known == address
        {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"));
        let endpoint = endpoint.map_err(|e| Status::unavailable(format!("the leader's address {address:?} is not usable: {e}")))?;
        let endpoint = endpoint.connect_timeout(CONNECT).tcp_nodelay(true);
        let channel = endpoint.http2_keep_alive_interval(Duration::from_secs(5)).keep_alive_timeout(Duration::from_secs(3)).connect_lazy();
        *route = Some((address.to_owned(), channel.clone()));
        Ok(channel)
    }

    async fn pass_on(&self, id: &str, address: &str, mut request: Request<Body>) -> Result<Response<Body>, Status> {
        let unreachable = |why: String| Status::unavailable(format!("the leader {id} at {address} cannot be reached: {why}; try again"));
        let mut channel = self.channel(address)?;
        request.headers_mut().insert(MARK, self.id.clone());
        let path = request.uri().path_and_query().cloned();
        if let Some(path) = path {
            *request.uri_mut() = Uri::from(path);
        }
        let ready = channel.ready().await.map_err(|e| unreachable(e.to_string()))?;
        ready.call(request).await.map_err(|e| unreachable(innermost(&e)))
    }
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
        let is_mine = *self.layer.shared.leadership.borrow() == Leadership::Mine;
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

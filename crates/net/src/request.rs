//! One request: it is counted until its answer has ended, its body has a deadline, and too many headers are refused.
//!
//! Under net::serve, around every service.

use std::{
    convert::Infallible,
    future::Future,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, sleep_until};
use tonic::Code;
use tower::{Service, ServiceExt};

use crate::{
    activity::{Activity, Arriving, InFlight},
    answer::{Body, Manner, boxed},
    limits::Limits,
    ports::{OpenEnded, never_busy},
};

/// The service of one connection.
#[derive(Clone)]
pub(crate) struct Requests<S> {
    pub(crate) service: S,
    pub(crate) activity: Arc<Activity>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) open_ended: OpenEnded,
    pub(crate) peer: Peer,
}

/// Who is at the other end of the connection that a request came by: an extension of each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub IpAddr);

impl<S> hyper::service::Service<Request<Incoming>> for Requests<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Counted>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let path = request.uri().path();
        let (is_stream, never_busy) = (self.open_ended.has(path), never_busy(path));
        let comes = !request.body().is_end_stream();
        let (in_flight, arriving) = self.activity.begin(comes && !never_busy, never_busy);
        let (manner, headers) = (Manner::of(&request), request.headers().len());
        if headers > self.limits.headers {
            let message = format!("{headers} headers are more than {}", self.limits.headers);
            let answer = manner.refusal(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, Code::ResourceExhausted, &message);
            return Box::pin(std::future::ready(Ok(answer.map(|body| Counted { body, _in_flight: in_flight }))));
        }
        let arrived = Arc::new(AtomicBool::new(!comes || is_stream));
        let mark = Arc::clone(&arrived);
        let mut request = request.map(|body| boxed(Timed { body, arriving, arrived: mark, is_stream }));
        request.extensions_mut().insert(self.peer);
        let answer = self.service.clone().oneshot(request);
        let bound = self.limits.body_read;
        Box::pin(async move {
            let answer = tokio::select! {
                biased;
                Ok(answer) = answer => answer,
                () = overdue(Instant::now() + bound, &arrived) => {
                    let message = format!("the request's body did not arrive within {} s; send it faster", bound.as_secs());
                    manner.refusal(StatusCode::REQUEST_TIMEOUT, Code::DeadlineExceeded, &message)
                }
            };
            Ok(answer.map(|body| Counted { body, _in_flight: in_flight }))
        })
    }
}

/// Completes at the deadline if the body has not arrived by then.
async fn overdue(deadline: Instant, arrived: &AtomicBool) {
    if !arrived.load(Ordering::Relaxed) {
        sleep_until(deadline).await;
        if !arrived.load(Ordering::Relaxed) {
            return;
        }
    }
    std::future::pending().await
}

/// A request's body, whose end is noted.
struct Timed {
    body: Incoming,
    arriving: Arriving,
    arrived: Arc<AtomicBool>,
    /// It is a stream of messages: with the first one the caller has asked.
    is_stream: bool,
}

impl http_body::Body for Timed {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if self.body.is_end_stream() || !matches!(frame, Some(Ok(_))) {
            self.arrived.store(true, Ordering::Relaxed);
            self.arriving.ended();
        }
        if self.is_stream && matches!(&frame, Some(Ok(frame)) if frame.data_ref().is_some_and(|data| !data.is_empty())) {
            self.arriving.ended();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body, with which the request ends.
pub(crate) struct Counted {
    body: Body,
    _in_flight: InFlight,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = <Body as http_body::Body>::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

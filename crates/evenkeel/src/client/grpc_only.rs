//! A connection that takes answers from gRPC servers alone, and says which port was meant when another answers.
//!
//! The wheel: under client::session. It looks at the head of an answer and changes nothing.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tonic::{
    Status,
    body::Body,
    codegen::{
        Service, StdError,
        http::{Request, Response, header::CONTENT_TYPE},
    },
    transport::Channel,
};

/// A channel to one master.
#[derive(Clone, Debug)]
pub(crate) struct GrpcOnly {
    channel: Channel,
    url: Arc<str>,
}

impl GrpcOnly {
    pub(super) fn new(channel: Channel, url: &str) -> Self {
        Self { channel, url: url.into() }
    }
}

impl Service<Request<Body>> for GrpcOnly {
    type Response = Response<Body>;
    type Error = StdError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, StdError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        self.channel.poll_ready(context).map_err(StdError::from)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.channel.call(request);
        let url = Arc::clone(&self.url);
        Box::pin(async move {
            let wrong = match answer.await {
                Ok(answer) if is_grpc(&answer) => return Ok(answer),
                Ok(answer) => format!("HTTP answers there, with status {}", answer.status().as_u16()),
                Err(error) if is_in_http1(&error) => "HTTP/1 answers there".to_owned(),
                Err(error) => return Err(error.into()),
            };
            Err(Status::failed_precondition(not_grpc(&url, &wrong)).into())
        })
    }
}

fn is_grpc<B>(answer: &Response<B>) -> bool {
    answer.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Whether the answer was a line of HTTP/1, which as the head of a frame of HTTP/2 announces four megabytes.
fn is_in_http1(error: &(dyn std::error::Error + 'static)) -> bool {
    let frame = error.downcast_ref::<h2::Error>().is_some_and(|error| error.reason() == Some(h2::Reason::FRAME_SIZE_ERROR));
    frame || error.source().is_some_and(is_in_http1)
}

/// What a person is told whose URL leads to an HTTP port.
fn not_grpc(url: &str, wrong: &str) -> String {
    format!("{url} is not a gRPC port: {wrong}; give the master's gRPC port, which is 9091 by default")
}

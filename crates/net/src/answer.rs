//! Answers that are given before any service is asked: JSON as the transcoder writes it, or the end of a gRPC call.
//!
//! Under net::door, net::ports and net::request. One sentence each, which says what would be right.

use std::fmt;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use tonic::{Code, Status};

use crate::ports::is_grpc;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's or an answer's body, whatever made it.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// Why a body has no end.
#[derive(Debug)]
pub struct BodyError(BoxError);

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for BodyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

/// A body as [`Body`].
pub fn boxed<B>(body: B) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(|error| BodyError(error.into())).boxed_unsync()
}

/// The JSON of an error, as gRPC gateways write it.
#[must_use]
pub fn error_json(code: Code, message: &str) -> String {
    format!(r#"{{"code":{},"message":{},"details":[]}}"#, code as i32, serde_json::Value::from(message))
}

/// An error as the answer to an HTTP request.
#[must_use]
pub fn refusal(status: StatusCode, code: Code, message: &str) -> Response<Body> {
    let mut answer = Response::new(boxed(Full::from(error_json(code, message))));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    answer
}

/// An error as the sender of a request with these headers understands it: the end of a gRPC call, or an HTTP status with JSON.
pub(crate) fn refusal_for(headers: &HeaderMap, status: StatusCode, code: Code, message: &str) -> Response<Body> {
    if is_grpc(headers) { grpc_refusal(code, message) } else { refusal(status, code, message) }
}

/// An error as the end of a gRPC call.
pub(crate) fn grpc_refusal(code: Code, message: &str) -> Response<Body> {
    Status::new(code, message).into_http()
}

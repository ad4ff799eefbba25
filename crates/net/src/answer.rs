//! Answers that are given before any service is asked: JSON as the transcoder writes it, or the end of a gRPC call.
//!
//! Under net::door, net::ports and net::request. One sentence each, which says what would be right.

use std::fmt;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
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
    json(status, error_json(code, message))
}

fn json(status: StatusCode, text: String) -> Response<Body> {
    let mut answer = Response::new(boxed(Full::from(text)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    answer
}

/// The calls of the system before. Who makes them knows of errors with 400, or 500, and the one text in them.
const OF_BEFORE: [&str; 2] = ["/api/v1/task", "/api/v1/kill-task"];

/// How an error is told to the sender of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// As the end of a gRPC call.
    Grpc,
    /// As the system before does.
    Before,
    /// By an HTTP status with JSON.
    Usual,
}

impl Manner {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        match request.uri().path() {
            _ if is_grpc(request.headers()) => Self::Grpc,
            path if OF_BEFORE.contains(&path) => Self::Before,
            _ => Self::Usual,
        }
    }

    /// An error that the sender can mend.
    pub(crate) fn refusal(self, status: StatusCode, code: Code, message: &str) -> Response<Body> {
        match self {
            Self::Grpc => grpc_refusal(code, message),
            Self::Before => json(StatusCode::BAD_REQUEST, format!(r#"{{"error":{}}}"#, serde_json::Value::from(message))),
            Self::Usual => refusal(status, code, message),
        }
    }
}

/// An error as the end of a gRPC call.
pub(crate) fn grpc_refusal(code: Code, message: &str) -> Response<Body> {
    Status::new(code, message).into_http()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_sender_is_told_in_its_own_way() {
        let cases = [
            ("/v1/resources", "", 421, r#"{"code":9,"message":"a \"b\"","details":[]}"#),
            ("/api/v1/task", "", 400, r#"{"error":"a \"b\""}"#),
            ("/api/v1/kill-task?task_id=1", "", 400, r#"{"error":"a \"b\""}"#),
            ("/api/v1/task", "application/grpc", 200, ""),
        ];
        for (path, media, expected, body) in cases {
            let request = Request::get(path).header(header::CONTENT_TYPE, media).body(()).expect(path);
            let answer = Manner::of(&request).refusal(StatusCode::MISDIRECTED_REQUEST, Code::FailedPrecondition, "a \"b\"");
            assert_eq!(answer.status().as_u16(), expected, "{path}");
            let said = answer.into_body().collect().await.expect("a body").to_bytes();
            assert_eq!(said, body, "{path}");
        }
    }
}

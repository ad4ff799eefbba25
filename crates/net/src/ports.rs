//! Which port speaks what: a gRPC call that comes by the HTTP port, or the other way round, is told where to go.
//!
//! Between net::serve and the services of a port. On gRPC's it keeps the deadline that a caller gives its call.

use std::{collections::BTreeSet, future::Future, sync::Arc, time::Duration};

use http::{HeaderMap, Request, Response, StatusCode, Version, header};
use tokio::time::sleep;
use tonic::Code;

use crate::answer::{Body, boxed, grpc_refusal, refusal};

/// The two addresses of a process, as others reach them.
#[derive(Clone, Debug)]
pub struct Ports {
    /// Where gRPC is served: HOST:PORT.
    pub grpc: String,
    /// Where HTTP is served: HOST:PORT.
    pub http: String,
}

/// Calls that go on for as long as their callers like, and from which nothing is missed that cannot be asked again.
const NEVER_BUSY: [&str; 3] = [
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// Whether a call keeps no connection busy: it makes room as soon as somebody else needs it.
pub(crate) fn never_busy(path: &str) -> bool {
    NEVER_BUSY.contains(&path)
}

/// The paths of gRPC calls that stream their requests: their bodies may take as long as they like.
#[derive(Clone, Debug, Default)]
pub struct OpenEnded {
    paths: Arc<BTreeSet<String>>,
}

impl OpenEnded {
    /// These paths, and those of reflection, which is on every gRPC port.
    #[must_use]
    pub fn of(paths: impl IntoIterator<Item = String>) -> Self {
        let reflection = NEVER_BUSY.into_iter().filter(|path| path.starts_with("/grpc.reflection.")).map(str::to_owned);
        Self { paths: Arc::new(paths.into_iter().chain(reflection).collect()) }
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        self.paths.contains(path)
    }
}

/// Whether a request with these headers is a gRPC call.
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

impl Ports {
    /// What a gRPC call is answered that came by the HTTP port.
    pub(crate) fn refuse_by_http(&self, request: &Request<Body>) -> Option<Response<Body>> {
        let message = || format!("this port speaks HTTP and JSON; gRPC is served at {}", self.grpc);
        is_grpc(request.headers()).then(|| grpc_refusal(Code::Unimplemented, &message()))
    }

    /// What anything else than a gRPC call is answered that came by the gRPC port.
    pub(crate) fn refuse_by_grpc(&self, request: &Request<Body>) -> Option<Response<Body>> {
        let message = || format!("this port speaks gRPC; HTTP and JSON are served at http://{}", self.http);
        let is_call = request.version() == Version::HTTP_2 && is_grpc(request.headers());
        (!is_call).then(|| refusal(StatusCode::BAD_REQUEST, Code::InvalidArgument, &message()))
    }
}

/// The answer of a gRPC call, or its end at the deadline that its caller gave it.
pub(crate) async fn in_time<E>(
    span: Option<Duration>,
    answer: impl Future<Output = Result<Response<tonic::body::Body>, E>>,
) -> Result<Response<Body>, E> {
    let Some(span) = span else { return answer.await.map(|answer| answer.map(boxed)) };
    tokio::select! {
        biased;
        answer = answer => answer.map(|answer| answer.map(boxed)),
        () = sleep(span) => Ok(grpc_refusal(Code::DeadlineExceeded, "the call's own deadline has passed")),
    }
}

/// How long the caller gives its call: `grpc-timeout`, by gRPC's "HTTP/2 Mapping". One that cannot be read is none.
pub(crate) fn deadline(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_deadline_is_read() {
        let cases = [
            ("5S", Some(Duration::from_secs(5))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("123456789S", None),
            ("S", None),
            ("+5S", None),
            ("5", None),
            ("5x", None),
            ("", None),
        ];
        for (text, expected) in cases {
            let headers = [(http::HeaderName::from_static("grpc-timeout"), text.parse().expect(text))].into_iter().collect();
            assert_eq!(deadline(&headers), expected, "{text}");
        }
        assert_eq!(deadline(&HeaderMap::new()), None);
    }
}

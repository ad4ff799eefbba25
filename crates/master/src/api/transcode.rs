//! HTTP and JSON by the `google.api.http` options of the protos, read from the descriptors at run time (decision 0003). Each call goes
//! through the same gRPC services as any other, so it is passed on to the leader in the same way.

use std::sync::Arc;

use axum::{
    body::Body as HttpBody,
    response::{IntoResponse, Response},
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use evenkeel_model::{limits::MAX_MESSAGE, shown::sentence};
use futures::{StreamExt, stream};
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::BodyExt;
use prost::Message;
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use tonic::{Code, Status, body::Body};
use tower::{ServiceExt, util::BoxCloneSyncService};

use super::routes::{Match, Routes};

/// The services of a master behind their gRPC interface.
pub(crate) type Grpc = BoxCloneSyncService<Request<Body>, http::Response<Body>, std::convert::Infallible>;

/// Turns HTTP calls into gRPC calls.
#[derive(Clone)]
pub(crate) struct Transcoder {
    routes: Arc<Routes>,
    grpc: Grpc,
}

impl Transcoder {
    pub(crate) fn new(pool: &DescriptorPool, grpc: Grpc) -> Self {
        Self { routes: Arc::new(Routes::of(pool)), grpc }
    }

    /// Answers any HTTP request: with JSON, or for a stream with one JSON object a line.
    pub(crate) async fn answer(self, request: Request<HttpBody>) -> Response {
        match self.call(request).await {
            Ok(response) => response,
            Err(Failure::Http(status, message)) => error(status, grpc_code(status), &message),
            Err(Failure::Grpc(status)) => error(http_status(status.code()), status.code(), status.message()),
        }
    }

    async fn call(self, request: Request<HttpBody>) -> Result<Response, Failure> {
        let (parts, body) = request.into_parts();
        let found = match self.routes.find(&parts.method, parts.uri.path()) {
            Match::Found(found) => found,
            Match::OtherMethods(allowed) => {
                let message = format!("{} is not allowed for {}; allowed: {}", parts.method, parts.uri.path(), allowed.join(", "));
                return Err(Failure::Http(StatusCode::METHOD_NOT_ALLOWED, message));
            }
            Match::None => {
                let message = format!("nothing is at {} {}; see /v1/resources", parts.method, parts.uri.path());
                return Err(Failure::Http(StatusCode::NOT_FOUND, message));
            }
        };
        let body = axum::body::to_bytes(body, MAX_MESSAGE).await;
        let body =
            body.map_err(|_| Failure::Http(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {MAX_MESSAGE} bytes")))?;
        let message = found.message(&body, parts.uri.query().unwrap_or_default())?;
        let call = grpc_request(&found.path, &message)?;
        let response = match self.grpc.oneshot(call).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        if let Some(status) = Status::from_header_map(response.headers()).filter(|s| s.code() != Code::Ok) {
            return Err(Failure::Grpc(status));
        }
        if found.is_streaming { Ok(lines(response.into_body(), found.output)) } else { single(response.into_body(), found.output).await }
    }
}

/// Why a call has no answer.
pub(super) enum Failure {
    /// It never became a gRPC call.
    Http(StatusCode, String),
    /// The gRPC call failed.
    Grpc(Status),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Grpc(status)
    }
}

fn grpc_request(path: &str, message: &DynamicMessage) -> Result<Request<Body>, Failure> {
    let encoded = message.encode_to_vec();
    let length =
        u32::try_from(encoded.len()).map_err(|_| Failure::Http(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large".to_owned()))?;
    let mut frame = BytesMut::with_capacity(encoded.len() + 5);
    frame.put_u8(0);
    frame.put_u32(length);
    frame.put_slice(&encoded);
    let body = Body::new(http_body_util::Full::new(frame.freeze()));
    let request = Request::post(path).header(header::CONTENT_TYPE, "application/grpc").header(header::TE, "trailers");
    request.body(body).map_err(|e| Failure::Http(StatusCode::BAD_REQUEST, e.to_string()))
}

/// The messages of a gRPC body, then its status if that is an error.
struct Frames {
    body: Body,
    buffer: BytesMut,
}

impl Frames {
    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(frame) = self.take_frame() {
                return Ok(Some(frame));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(status)) => return Err(status),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.buffer.put(data),
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        return match Status::from_header_map(&trailers) {
                            Some(status) if status.code() != Code::Ok => Err(status),
                            _ => Ok(None),
                        };
                    }
                },
            }
        }
    }

    /// A whole message, if one is in the buffer.
    fn take_frame(&mut self) -> Option<Bytes> {
        let length = usize::try_from(self.buffer.get(1..5)?.get_u32()).ok()?;
        if self.buffer.len() < length + 5 {
            return None;
        }
        self.buffer.advance(5);
        Some(self.buffer.split_to(length).freeze())
    }
}

async fn single(body: Body, output: MessageDescriptor) -> Result<Response, Failure> {
    let mut frames = Frames { body, buffer: BytesMut::new() };
    let message = frames.next().await?.unwrap_or_default();
    // The status follows the message, and may still be an error.
    while frames.next().await?.is_some() {}
    Ok(json(StatusCode::OK, to_json(&output, message)?))
}

fn lines(body: Body, output: MessageDescriptor) -> Response {
    let frames = Frames { body, buffer: BytesMut::new() };
    let lines = stream::unfold(Some((frames, output)), |state| async {
        let (mut frames, output) = state?;
        let (line, rest) = match frames.next().await {
            Ok(None) => return None,
            Ok(Some(message)) => (to_json(&output, message), Some((frames, output))),
            Err(status) => (Err(Failure::Grpc(status)), None),
        };
        let mut line = match line {
            Ok(line) => line,
            Err(Failure::Grpc(status)) => format!("{{\"error\":{}}}", error_json(status.code(), status.message())).into(),
            Err(Failure::Http(_, message)) => format!("{{\"error\":{}}}", error_json(Code::Internal, &message)).into(),
        };
        line.push(b'\n');
        Some((Ok::<_, std::convert::Infallible>(line), rest))
    });
    let mut response = Response::new(HttpBody::from_stream(lines.boxed()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

/// The canonical JSON of a message, with every field of its own, so that a reader need not know which have defaults.
fn to_json(output: &MessageDescriptor, message: Bytes) -> Result<Vec<u8>, Failure> {
    let internal = |why: String| Failure::Grpc(Status::internal(format!("the answer cannot be shown as JSON: {why}")));
    let message = DynamicMessage::decode(output.clone(), message).map_err(|e| internal(e.to_string()))?;
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut text);
    let options = SerializeOptions::new().skip_default_fields(false);
    message.serialize_with_options(&mut serializer, &options).map_err(|e| internal(e.to_string()))?;
    Ok(text)
}

/// Reads a message from JSON; what does not belong there is refused by its name.
pub(super) fn from_json(descriptor: MessageDescriptor, text: &[u8]) -> Result<DynamicMessage, Failure> {
    let wrong = |e: serde_json::Error| Failure::Grpc(Status::invalid_argument(format!("body: {}", sentence(&e))));
    super::convert::check_depth(text)?;
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let message = DynamicMessage::deserialize_with_options(descriptor, &mut deserializer, &options).map_err(wrong)?;
    deserializer.end().map_err(wrong)?;
    Ok(message)
}

fn json(status: StatusCode, text: impl Into<HttpBody>) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], text.into()).into_response()
}

/// The JSON of an error, as gRPC gateways write it.
fn error_json(code: Code, message: &str) -> String {
    format!(r#"{{"code":{},"message":{},"details":[]}}"#, code as i32, serde_json::Value::from(message))
}

fn error(status: StatusCode, code: Code, message: &str) -> Response {
    json(status, error_json(code, message))
}

/// The gRPC code of what never became a gRPC call.
fn grpc_code(status: StatusCode) -> Code {
    match status {
        StatusCode::NOT_FOUND => Code::NotFound,
        StatusCode::METHOD_NOT_ALLOWED => Code::Unimplemented,
        StatusCode::PAYLOAD_TOO_LARGE => Code::ResourceExhausted,
        _ => Code::InvalidArgument,
    }
}

/// The HTTP status of a gRPC code, as google.rpc.Code documents it.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

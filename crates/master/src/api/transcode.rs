//! HTTP and JSON by the `google.api.http` options of the protos, read from the descriptors at run time (decision 0003). Each call goes
//! through the same gRPC services as any other, so it is passed on to the leader in the same way.

use std::sync::Arc;

use axum::{
    body::Body as HttpBody,
    response::{IntoResponse, Response},
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use evenkeel_model::{
    limits::MAX_MESSAGE,
    shown::{bare, sentence},
};
use evenkeel_net::{Peer, error_json};
use futures::{StreamExt, stream};
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header, request::Parts};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use prost::Message;
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use tonic::{Code, Status, body::Body};
use tower::{ServiceExt, util::BoxCloneSyncService};

use super::{
    routes::{Match, Routes},
    tasks,
};

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

    /// Answers any HTTP request: with JSON, or for a stream with one JSON object a line. HEAD is answered as GET; who serves leaves the body
    /// out, and with it what runs for it.
    pub(crate) async fn answer(self, request: Request<HttpBody>) -> Response {
        match self.call(request).await {
            Ok(response) => response,
            Err(Failure::Http(status, message)) => error(status, grpc_code(status), &message),
            Err(Failure::Method(method, path, allowed)) => method_not_allowed(&method, &path, &allowed),
            Err(Failure::Grpc(status)) => error(http_status(status.code()), status.code(), status.message()),
        }
    }

    async fn call(self, request: Request<HttpBody>) -> Result<Response, Failure> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        let found = match self.routes.find(&parts.method, path) {
            Match::Found(found) => found,
            Match::OtherMethods(allowed) => return Err(Failure::Method(parts.method, path.to_owned(), allowed)),
            Match::None => {
                let message = format!("nothing is at {} {}; see /v1/resources", bare(parts.method.as_str()), bare(path));
                return Err(Failure::Http(StatusCode::NOT_FOUND, message));
            }
        };
        let body = read(body).await?;
        let message = found.message(&body, parts.uri.query().unwrap_or_default())?;
        let response = call(self.grpc, &found.path, message.encode_to_vec(), &Along::of(&parts)).await?;
        if found.is_streaming { Ok(lines(response.into_body(), found.output)) } else { single(response.into_body(), found.output).await }
    }
}

/// The whole body. One that says itself that it is too large is refused before it is read.
pub(super) async fn read(body: HttpBody) -> Result<Bytes, Failure> {
    let too_large = || Failure::Http(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {MAX_MESSAGE} bytes"));
    if http_body::Body::size_hint(&body).lower() > MAX_MESSAGE as u64 {
        return Err(too_large());
    }
    Limited::new(body, MAX_MESSAGE).collect().await.map(http_body_util::Collected::to_bytes).map_err(|error| {
        if error.is::<LengthLimitError>() {
            too_large()
        } else {
            Failure::Http(StatusCode::BAD_REQUEST, format!("the body cannot be read: {error}"))
        }
    })
}

/// Answers for a page that is there, but not for this method. The router names those that it has.
pub(super) async fn not_allowed(method: Method, uri: Uri) -> Response {
    let own = tasks::door::ROUTES.iter().find(|(path, _)| *path == uri.path());
    let methods = own.map_or(&["GET"][..], |(_, methods)| methods);
    let head = methods.contains(&"GET").then_some("HEAD");
    let allowed: Vec<String> = methods.iter().copied().chain(head).map(str::to_owned).collect();
    let answer = |message: &str| match own {
        Some(_) => tasks::door::refusal(message),
        None => error(StatusCode::METHOD_NOT_ALLOWED, Code::Unimplemented, message),
    };
    naming_methods(&method, uri.path(), &allowed, answer)
}

fn method_not_allowed(method: &Method, path: &str, allowed: &[String]) -> Response {
    naming_methods(method, path, allowed, |message| error(StatusCode::METHOD_NOT_ALLOWED, Code::Unimplemented, message))
}

fn naming_methods(method: &Method, path: &str, allowed: &[String], answer: impl FnOnce(&str) -> Response) -> Response {
    let allowed = allowed.join(", ");
    let mut answer = answer(&format!("{} is not allowed for {}; allowed: {allowed}", bare(method.as_str()), bare(path)));
    answer.headers_mut().extend(HeaderValue::try_from(allowed).ok().map(|allowed| (header::ALLOW, allowed)));
    answer
}

/// Why a call has no answer.
pub(super) enum Failure {
    /// It never became a gRPC call.
    Http(StatusCode, String),
    /// The path is there with other methods only: the method, the path, and those methods.
    Method(Method, String, Vec<String>),
    /// The gRPC call failed.
    Grpc(Status),
}

impl Failure {
    fn into_status(self) -> Status {
        match self {
            Self::Http(_, message) => Status::invalid_argument(message),
            Self::Method(..) => Status::unimplemented("the method is not allowed"),
            Self::Grpc(status) => status,
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Grpc(status)
    }
}

/// What a gRPC call takes along of the request that it is made from: who asks, and the key of a creation.
#[derive(Clone)]
pub(super) struct Along {
    peer: Option<Peer>,
    keys: Vec<HeaderValue>,
}

impl Along {
    pub(super) fn of(parts: &Parts) -> Self {
        Self { peer: parts.extensions.get().copied(), keys: parts.headers.get_all(tasks::KEY).iter().cloned().collect() }
    }
}

/// One call of a method of `evenkeel.v1.Master` that has one answer.
pub(super) async fn ask<T: Message + Default>(grpc: Grpc, method: &str, message: &impl Message, along: &Along) -> Result<T, Status> {
    let answer = call(grpc, &format!("/evenkeel.v1.Master/{method}"), message.encode_to_vec(), along).await;
    let answer = answer.map_err(Failure::into_status)?;
    let answer = one(answer.into_body()).await?;
    T::decode(answer).map_err(|error| Status::internal(error.to_string()))
}

async fn call(grpc: Grpc, path: &str, message: Vec<u8>, along: &Along) -> Result<http::Response<Body>, Failure> {
    let response = match grpc.oneshot(grpc_request(path, &message, along)?).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() != Code::Ok => Err(Failure::Grpc(status)),
        _ => Ok(response),
    }
}

fn grpc_request(path: &str, encoded: &[u8], along: &Along) -> Result<Request<Body>, Failure> {
    let length =
        u32::try_from(encoded.len()).map_err(|_| Failure::Http(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large".to_owned()))?;
    let mut frame = BytesMut::with_capacity(encoded.len() + 5);
    frame.put_u8(0);
    frame.put_u32(length);
    frame.put_slice(encoded);
    let body = Body::new(http_body_util::Full::new(frame.freeze()));
    let request = Request::post(path).header(header::CONTENT_TYPE, "application/grpc").header(header::TE, "trailers");
    let mut request = request.body(body).map_err(|e| Failure::Http(StatusCode::BAD_REQUEST, e.to_string()))?;
    request.headers_mut().extend(along.keys.iter().map(|key| (HeaderName::from_static(tasks::KEY), key.clone())));
    along.peer.map(|peer| request.extensions_mut().insert(peer));
    Ok(request)
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
    Ok(json(StatusCode::OK, to_json(&output, one(body).await?)?))
}

/// The only message of a body.
async fn one(body: Body) -> Result<Bytes, Status> {
    let mut frames = Frames { body, buffer: BytesMut::new() };
    let message = frames.next().await?.unwrap_or_default();
    // The status follows the message, and may still be an error.
    while frames.next().await?.is_some() {}
    Ok(message)
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
            Err(Failure::Method(..)) => return None,
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
    super::convert::check_body(&descriptor, text)?;
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let message = DynamicMessage::deserialize_with_options(descriptor, &mut deserializer, &options).map_err(wrong)?;
    deserializer.end().map_err(wrong)?;
    Ok(message)
}

fn json(status: StatusCode, text: impl Into<HttpBody>) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], text.into()).into_response()
}

fn error(status: StatusCode, code: Code, message: &str) -> Response {
    json(status, error_json(code, message))
}

/// The gRPC code of what never became a gRPC call.
fn grpc_code(status: StatusCode) -> Code {
    match status {
        StatusCode::NOT_FOUND => Code::NotFound,
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

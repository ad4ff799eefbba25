//! What must hold of a request to the API, over bytes: for tests alone, which give it whatever they like. It panics where it does not hold.

use evenkeel_model::Definition;
use evenkeel_proto::v1;
use http::Method;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, ReflectMessage};

use super::{
    convert,
    routes::{Match, Routes},
    transcode::{Failure, from_json},
};

/// The most characters of one refusal.
const REFUSAL: usize = 1000;

/// A definition, shown by the API, sent as bytes and taken in again.
///
/// # Errors
/// What the API says.
pub fn by_api(definition: &Definition) -> Result<Definition, String> {
    let request = v1::AddResourceRequest { resource: Some(convert::resource(definition)) };
    let request = v1::AddResourceRequest::decode(request.encode_to_vec().as_slice()).map_err(|e| e.to_string())?;
    convert::definition(request.resource).map_err(|status| status.message().to_owned())
}

/// An HTTP request: the first line is the method, the path and the query, and what follows is the body.
///
/// # Panics
/// When what must hold does not.
pub fn http_request(data: &[u8]) {
    thread_local! {
        static ROUTES: Routes = Routes::of(&DescriptorPool::decode(evenkeel_proto::DESCRIPTORS).unwrap_or_default());
    }
    let (line, body) = match data.iter().position(|byte| *byte == b'\n') {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &[][..]),
    };
    let Ok(line) = std::str::from_utf8(line) else { return };
    let (method, target) = line.split_once(' ').unwrap_or(("GET", line));
    let Ok(method) = Method::from_bytes(method.as_bytes()) else { return };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let found = ROUTES.with(|routes| match routes.find(&method, path) {
        Match::Found(found) => Some(found),
        Match::OtherMethods(_) | Match::None => None,
    });
    let Some(found) = found else { return };
    match found.message(body, query) {
        Ok(message) => accepted(&message),
        Err(Failure::Http(_, text)) => check_refusal(&text),
        Err(Failure::Grpc(status)) => check_refusal(status.message()),
        Err(Failure::Method(..)) => unreachable!("the method was found"),
    }
}

/// What is sent is the same as bytes and as JSON, and a definition in it is the same when it is read back.
fn accepted(message: &DynamicMessage) {
    let bytes = message.encode_to_vec();
    let decode = |bytes: &[u8]| DynamicMessage::decode(message.descriptor(), bytes);
    // The decoder's limit of depth answers the caller. A field that is given as its default is not sent.
    let Ok(sent) = decode(&bytes) else { return };
    assert_eq!(decode(&sent.encode_to_vec()).as_ref(), Ok(&sent), "it is the same as bytes");
    let json = serde_json::to_vec(message).unwrap_or_default();
    if let Ok(again) = from_json(message.descriptor(), &json) {
        assert_eq!(decode(&again.encode_to_vec()).as_ref(), Ok(&sent), "it is the same as JSON: {}", String::from_utf8_lossy(&json));
    }
    if message.descriptor().name() == "AddResourceRequest"
        && let Ok(request) = v1::AddResourceRequest::decode(bytes.as_slice())
    {
        match convert::definition(request.resource) {
            Ok(definition) => assert_eq!(by_api(&definition).as_ref(), Ok(&definition), "it is the same when it is read back"),
            Err(status) => check_refusal(status.message()),
        }
    }
}

fn check_refusal(text: &str) {
    let characters = text.chars().count();
    assert!(characters <= REFUSAL, "a refusal of {characters} characters: {}", text.chars().take(200).collect::<String>());
    assert!(!text.chars().any(char::is_control), "a refusal with a control character: {text:?}");
}

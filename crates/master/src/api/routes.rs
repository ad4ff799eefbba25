//! The table of HTTP routes, read from the `google.api.http` options of the protos, and how a request's parts become a message's fields.

use evenkeel_model::shown::{bare, shown};
use http::{Method, StatusCode};
use prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor, ReflectMessage, Value,
};
use tonic::Status;

use super::transcode::{Failure, from_json};

/// All routes.
pub(super) struct Routes {
    routes: Vec<Route>,
}

struct Route {
    method: Method,
    segments: Vec<Segment>,
    /// What follows a colon at the end of the path.
    verb: String,
    body: String,
    rpc: MethodDescriptor,
}

enum Segment {
    Text(String),
    /// The path of a field.
    Field(String),
}

/// What was found for a request.
pub(super) enum Match {
    Found(Found),
    /// The path is known, with other methods.
    OtherMethods(Vec<String>),
    None,
}

/// A call that was found, with the fields that its path gives.
pub(super) struct Found {
    /// The path of the gRPC call.
    pub(super) path: String,
    pub(super) is_streaming: bool,
    pub(super) output: MessageDescriptor,
    input: MessageDescriptor,
    body: String,
    fields: Vec<(String, String)>,
}

impl Routes {
    pub(super) fn of(pool: &DescriptorPool) -> Self {
        let Some(http) = pool.get_extension_by_name("google.api.http") else { return Self { routes: Vec::new() } };
        let mut routes = Vec::new();
        for rpc in pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
            let options = rpc.options();
            if let Value::Message(rule) = &*options.get_extension(&http) {
                routes.extend(Route::all_of(rule, &rpc));
            }
        }
        Self { routes }
    }

    pub(super) fn find(&self, method: &Method, path: &str) -> Match {
        let mut allowed = Vec::new();
        for route in &self.routes {
            let Some(fields) = route.fields(path) else { continue };
            if route.method == *method {
                return Match::Found(route.found(fields));
            }
            allowed.push(route.method.to_string());
        }
        if allowed.is_empty() { Match::None } else { Match::OtherMethods(allowed) }
    }
}

impl Route {
    /// The route of a rule, and those of its further bindings.
    fn all_of(rule: &DynamicMessage, rpc: &MethodDescriptor) -> Vec<Self> {
        let more = rule.get_field_by_name("additional_bindings");
        let more = more.as_deref().and_then(Value::as_list).unwrap_or_default();
        let more = more.iter().filter_map(Value::as_message).filter_map(|rule| Self::of(rule, rpc));
        Self::of(rule, rpc).into_iter().chain(more).collect()
    }

    fn of(rule: &DynamicMessage, rpc: &MethodDescriptor) -> Option<Self> {
        let text = |field: &str| rule.get_field_by_name(field).and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
        let methods =
            [("get", Method::GET), ("put", Method::PUT), ("post", Method::POST), ("delete", Method::DELETE), ("patch", Method::PATCH)];
        let (method, template) = methods.into_iter().map(|(field, m)| (m, text(field))).find(|(_, template)| !template.is_empty())?;
        let (path, verb) = match template.rsplit_once(':') {
            Some((path, verb)) => (path.to_owned(), verb.to_owned()),
            None => (template, String::new()),
        };
        let segment = |part: &str| match part.strip_prefix('{').and_then(|p| p.strip_suffix('}')) {
            Some(field) => Segment::Field(field.to_owned()),
            None => Segment::Text(part.to_owned()),
        };
        let segments = path.trim_start_matches('/').split('/').map(segment).collect();
        Some(Self { method, segments, verb, body: text("body"), rpc: rpc.clone() })
    }

    /// The fields that a path gives, if it is this route's.
    fn fields(&self, path: &str) -> Option<Vec<(String, String)>> {
        let path = path.strip_prefix('/')?;
        // A name has no colon, so one at the end begins the verb.
        let (path, verb) = match path.rsplit_once(':') {
            Some((path, verb)) if !verb.contains('/') => (path, verb),
            _ => (path, ""),
        };
        if verb != self.verb {
            return None;
        }
        let parts: Vec<&str> = path.split('/').collect();
        if parts.len() != self.segments.len() {
            return None;
        }
        let mut fields = Vec::new();
        for (segment, part) in self.segments.iter().zip(parts) {
            match segment {
                Segment::Text(text) if text == part => {}
                Segment::Text(_) => return None,
                Segment::Field(field) => fields.push((field.clone(), decode(part))),
            }
        }
        Some(fields)
    }

    fn found(&self, fields: Vec<(String, String)>) -> Found {
        Found {
            path: format!("/{}/{}", self.rpc.parent_service().full_name(), self.rpc.name()),
            is_streaming: self.rpc.is_server_streaming(),
            output: self.rpc.output(),
            input: self.rpc.input(),
            body: self.body.clone(),
            fields,
        }
    }
}

impl Found {
    /// The request's message: from the body, then the query, then the path, which has the last word.
    pub(super) fn message(&self, body: &[u8], query: &str) -> Result<DynamicMessage, Failure> {
        let mut message = match self.body.as_str() {
            "*" => from_json(self.input.clone(), if body.is_empty() { b"{}" } else { body })?,
            "" => DynamicMessage::new(self.input.clone()),
            field => self.with_body(field, body)?,
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            set(&mut message, &decode(key), &decode(&value.replace('+', " ")))?;
        }
        for (path, value) in &self.fields {
            let before = text_at(&message, path);
            if !before.is_empty() && before != *value {
                let why = format!(
                    "{path}: the body says {} and the path {}; let them agree, or leave it out of the body",
                    shown(&before),
                    shown(value)
                );
                return Err(Failure::Grpc(Status::invalid_argument(why)));
            }
            set(&mut message, path, value)?;
        }
        Ok(message)
    }

    fn with_body(&self, name: &str, body: &[u8]) -> Result<DynamicMessage, Failure> {
        let mut message = DynamicMessage::new(self.input.clone());
        let field = self.input.get_field_by_name(name).ok_or_else(|| unknown(name))?;
        if let Kind::Message(inner) = field.kind() {
            let inner = from_json(inner, if body.is_empty() { b"{}" } else { body })?;
            message.set_field(&field, Value::Message(inner));
        }
        Ok(message)
    }
}

fn unknown(name: &str) -> Failure {
    Failure::Http(StatusCode::BAD_REQUEST, format!("{}: no such field; leave it out", bare(name)))
}

/// Sets a field by its path, such as `resource.name`, from text.
fn set(message: &mut DynamicMessage, path: &str, text: &str) -> Result<(), Failure> {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    let descriptor = message.descriptor();
    let field = descriptor.get_field_by_name(first).or_else(|| descriptor.get_field_by_json_name(first)).ok_or_else(|| unknown(path))?;
    if let Some(rest) = rest {
        return match message.get_field_mut(&field) {
            Value::Message(inner) => set(inner, rest, text),
            _ => Err(unknown(path)),
        };
    }
    let value = parse(&field, text).ok_or_else(|| {
        Failure::Grpc(Status::invalid_argument(format!(
            "{}: {} is not a value for a field of type {:?}",
            bare(path),
            shown(text),
            field.kind()
        )))
    })?;
    message.set_field(&field, value);
    Ok(())
}

/// The text of a field by its path; empty where there is none.
fn text_at(message: &DynamicMessage, path: &str) -> String {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    match (message.get_field_by_name(first).as_deref(), rest) {
        (Some(Value::Message(inner)), Some(rest)) => text_at(inner, rest),
        (Some(Value::String(text)), None) => text.clone(),
        _ => String::new(),
    }
}

fn parse(field: &FieldDescriptor, text: &str) -> Option<Value> {
    if field.cardinality() == Cardinality::Repeated {
        return None;
    }
    Some(match field.kind() {
        Kind::String => Value::String(text.to_owned()),
        Kind::Bool if text.is_empty() => Value::Bool(true),
        Kind::Bool => Value::Bool(text.parse().ok()?),
        Kind::Int32 => Value::I32(text.parse().ok()?),
        Kind::Int64 => Value::I64(text.parse().ok()?),
        Kind::Uint32 => Value::U32(text.parse().ok()?),
        Kind::Uint64 => Value::U64(text.parse().ok()?),
        _ => return None,
    })
}

/// Undoes percent-encoding; what is not UTF-8 then becomes a replacement character, which no name has.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = (*first == b'%').then(|| tail.get(..2)).flatten().and_then(|h| std::str::from_utf8(h).ok());
        if let Some(byte) = hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            bytes.push(byte);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes() -> Routes {
        Routes::of(&DescriptorPool::decode(evenkeel_proto::DESCRIPTORS).expect("descriptors"))
    }

    fn found(method: Method, path: &str, query: &str, body: &str) -> Result<(String, String), String> {
        let found = match routes().find(&method, path) {
            Match::Found(found) => found,
            Match::OtherMethods(allowed) => return Err(format!("allowed: {}", allowed.join(" "))),
            Match::None => return Err("nothing".to_owned()),
        };
        match found.message(body.as_bytes(), query) {
            Ok(message) => Ok((found.path, serde_json::to_string(&message).expect("json"))),
            Err(Failure::Http(_, message)) => Err(message),
            Err(Failure::Grpc(status)) => Err(status.message().to_owned()),
        }
    }

    #[test]
    fn every_annotated_call_has_its_route() {
        let master = "/evenkeel.v1.Master/";
        let cases = [
            (
                Method::POST,
                "/crawler/resource",
                "",
                r#"{"id":"zjx","name":"a"}"#,
                "/CrawlerMaster/AddResource",
                r#"{"id":"zjx","name":"a"}"#,
            ),
            (Method::DELETE, "/crawler/resource", "", r#"{"name":"a"}"#, "/CrawlerMaster/DeleteResource", r#"{"name":"a"}"#),
            (Method::POST, "/v1/resources", "", r#"{"name":"a"}"#, "AddResource", r#"{"resource":{"name":"a"}}"#),
            (Method::PUT, "/v1/resources/b", "", r#"{"name":"b"}"#, "UpdateResource", r#"{"resource":{"name":"b"}}"#),
            (Method::PUT, "/v1/resources/b", "", "{}", "UpdateResource", r#"{"resource":{"name":"b"}}"#),
            (Method::DELETE, "/v1/resources/a.b", "", "", "DeleteResource", r#"{"name":"a.b"}"#),
            (Method::GET, "/v1/resources/a%2eb", "", "", "GetResource", r#"{"name":"a.b"}"#),
            (Method::GET, "/v1/resources", "selector=a%3Db&page_size=7", "", "ListResources", r#"{"selector":"a=b","pageSize":7}"#),
            (Method::GET, "/v1/resources", "pageToken=x", "", "ListResources", r#"{"pageToken":"x"}"#),
            (Method::GET, "/v1/resources:watch", "", "", "WatchResources", "{}"),
            (Method::GET, "/v1/resources/a:explain", "", "", "Explain", r#"{"name":"a"}"#),
            (Method::GET, "/v1/resources/a:logs", "follow=true&tail=3", "", "ReadLogs", r#"{"name":"a","follow":true,"tail":3}"#),
            (Method::POST, "/v1/workers/w:cordon", "", "", "CordonWorker", r#"{"id":"w"}"#),
            (Method::GET, "/v1/workers", "", "", "ListWorkers", "{}"),
            (Method::GET, "/v1/events:watch", "after=9", "", "WatchEvents", r#"{"after":"9"}"#),
            (Method::GET, "/v1/plan", "", "", "Plan", "{}"),
            (Method::GET, "/v1/plan", "drain=w", "", "Plan", r#"{"drain":"w"}"#),
            (Method::POST, "/v1/plan", "", r#"{"add":{"name":"a"}}"#, "Plan", r#"{"add":{"name":"a"}}"#),
            (Method::POST, "/v1/workers/w:drain", "", r#"{"deadlineMs":"5"}"#, "DrainWorker", r#"{"id":"w","deadlineMs":"5"}"#),
            (Method::POST, "/v1/brake:release", "", "", "ReleaseBrake", "{}"),
        ];
        for (method, path, query, body, rpc, message) in cases {
            let rpc = if rpc.starts_with('/') { rpc.to_owned() } else { format!("{master}{rpc}") };
            assert_eq!(found(method, path, query, body), Ok((rpc, message.to_owned())), "{path}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let cases = [
            (Method::GET, "/", "", "", "nothing"),
            (Method::GET, "/v1/resources/a/b", "", "", "nothing"),
            (Method::GET, "/v1/resources/a:fly", "", "", "nothing"),
            (Method::PATCH, "/v1/resources", "", "", "allowed: POST GET"),
            (Method::GET, "/v1/resources", "page_size=x", "", "page_size: \"x\" is not a value for a field of type int32"),
            (Method::GET, "/v1/resources", "sort=x", "", "sort: no such field; leave it out"),
            (Method::POST, "/v1/resources", "", "{", "body: EOF while parsing an object at line 1 column 1"),
            (Method::POST, "/v1/resources", "", r#"{"name":"a"} x"#, "body: trailing characters at line 1 column 14"),
        ];
        for (method, path, query, body, expected) in cases {
            assert_eq!(found(method, path, query, body), Err(expected.to_owned()), "{path}?{query} {body}");
        }
        let unknown = found(Method::POST, "/v1/resources", "", r#"{"nmae":"a"}"#).expect_err("unknown field");
        assert!(unknown.contains("nmae"), "{unknown}");
    }
}

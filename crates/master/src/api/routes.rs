//! The table of HTTP routes, read from the `google.api.http` options of the protos, and how a request's parts become a message's fields.

use std::collections::{BTreeMap, BTreeSet};

use evenkeel_model::shown::{bare, shown};
use http::{Method, StatusCode};
use prost::Message;
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

/// A call that was found, with the fields that its path gives, as the path has them.
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

    /// The paths of the calls that only read: those that HTTP has under GET.
    pub(super) fn reads(&self) -> BTreeSet<String> {
        self.routes.iter().filter(|route| route.method == Method::GET).map(Route::call).collect()
    }

    /// HEAD is GET: only what is sent of the answer differs.
    pub(super) fn find(&self, method: &Method, path: &str) -> Match {
        let wanted = if method == Method::HEAD { &Method::GET } else { method };
        let mut allowed = Vec::new();
        for route in &self.routes {
            let Some(fields) = route.fields(path) else { continue };
            if route.method == *wanted {
                return Match::Found(route.found(fields));
            }
            allowed.push(route.method.to_string());
        }
        if allowed.iter().any(|method| method == "GET") {
            allowed.push(Method::HEAD.to_string());
        }
        if allowed.is_empty() { Match::None } else { Match::OtherMethods(allowed) }
    }

    /// The method and a path of each route.
    #[cfg(test)]
    pub(super) fn examples(&self) -> Vec<(Method, String)> {
        let part = |segment: &Segment| match segment {
            Segment::Text(text) => text.clone(),
            // A name and a number.
            Segment::Field(_) => "1".to_owned(),
        };
        let path = |route: &Route| {
            let path: String = route.segments.iter().map(|segment| format!("/{}", part(segment))).collect();
            if route.verb.is_empty() { path } else { format!("{path}:{}", route.verb) }
        };
        self.routes.iter().map(|route| (route.method.clone(), path(route))).collect()
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
                Segment::Field(field) => fields.push((field.clone(), part.to_owned())),
            }
        }
        Some(fields)
    }

    /// The path of the gRPC call.
    fn call(&self) -> String {
        format!("/{}/{}", self.rpc.parent_service().full_name(), self.rpc.name())
    }

    fn found(&self, fields: Vec<(String, String)>) -> Found {
        Found {
            path: self.call(),
            is_streaming: self.rpc.is_server_streaming(),
            output: self.rpc.output(),
            input: self.rpc.input(),
            body: self.body.clone(),
            fields,
        }
    }
}

impl Found {
    /// The request's message, from the body, the query and the path. What one of them says of a field, the others may only repeat: who
    /// took one of two values would do to one thing what was meant for another.
    pub(super) fn message(&self, body: &[u8], query: &str) -> Result<DynamicMessage, Failure> {
        let mut message = match self.body.as_str() {
            "*" => from_json(self.input.clone(), if body.is_empty() { b"{}" } else { body })?,
            "" => DynamicMessage::new(self.input.clone()),
            field => self.with_body(field, body)?,
        };
        let mut given = Given::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            given.set(&mut message, &decode(key)?, &decode(&value.replace('+', " "))?, "query")?;
        }
        for (path, value) in &self.fields {
            given.set(&mut message, path, &decode(value)?, "path")?;
        }
        if self.body.is_empty() && !body.is_empty() {
            self.check_useless(body, &message)?;
        }
        Ok(message)
    }

    /// A call without a body takes one that says nothing else than path and query.
    fn check_useless(&self, body: &[u8], message: &DynamicMessage) -> Result<(), Failure> {
        let said = from_json(self.input.clone(), body)?;
        let mut both = message.clone();
        let merged = both.merge(said.encode_to_vec().as_slice());
        if merged.is_ok() && both == *message {
            return Ok(());
        }
        let why = "body: this call takes none, and it says something else than path and query; leave it out";
        Err(Failure::Grpc(Status::invalid_argument(why)))
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

/// Where the fields of a message that are not from its body were given.
#[derive(Default)]
struct Given(BTreeMap<String, (Value, &'static str)>);

impl Given {
    /// Sets a field by its path, such as `resource.name`, from text. What was given before must be the same.
    fn set(&mut self, message: &mut DynamicMessage, path: &str, text: &str, place: &'static str) -> Result<(), Failure> {
        let refused = |why: String| Err(Failure::Grpc(Status::invalid_argument(format!("{}: {why}", bare(path)))));
        let (message, field) = match at(message, path) {
            Place::Is(message, field) => (message, field),
            Place::Unknown => return Err(unknown(path)),
            Place::Beside(other) => return refused(format!("{} is given as well; leave out one of them", other.name())),
        };
        let Some(value) = parse(&field, text) else {
            return refused(format!("{} is not a value for a field of type {:?}", shown(text), field.kind()));
        };
        let in_body = || message.has_field(&field).then(|| (message.get_field(&field).into_owned(), "body"));
        if let Some((before, where_before)) = self.0.get(field.full_name()).cloned().or_else(in_body).filter(|(before, _)| *before != value)
        {
            let (before, value) = (value_text(&before), value_text(&value));
            return refused(match where_before == place {
                true => format!("the {place} says {before} and {value}; give it once"),
                false => format!("the {where_before} says {before} and the {place} {value}; let them agree, or give it once"),
            });
        }
        if let Some(other) = other_of_oneof(message, &field) {
            return refused(format!("{} is given as well; leave out one of them", other.name()));
        }
        message.set_field(&field, value.clone());
        self.0.insert(field.full_name().to_owned(), (value, place));
        Ok(())
    }
}

/// Another field that is set, of those of which one can be.
fn other_of_oneof(message: &DynamicMessage, field: &FieldDescriptor) -> Option<FieldDescriptor> {
    field.containing_oneof()?.fields().find(|other| other != field && message.has_field(other))
}

/// Where a path such as `resource.name` leads.
enum Place<'a> {
    /// To this field of this message.
    Is(&'a mut DynamicMessage, FieldDescriptor),
    /// Into a message that would take this field's place.
    Beside(FieldDescriptor),
    /// Nowhere.
    Unknown,
}

fn at<'a>(message: &'a mut DynamicMessage, path: &str) -> Place<'a> {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    let descriptor = message.descriptor();
    let Some(field) = descriptor.get_field_by_name(first).or_else(|| descriptor.get_field_by_json_name(first)) else {
        return Place::Unknown;
    };
    let Some(rest) = rest else { return Place::Is(message, field) };
    if let Some(other) = other_of_oneof(message, &field) {
        return Place::Beside(other);
    }
    match message.get_field_mut(&field) {
        Value::Message(inner) => at(inner, rest),
        _ => Place::Unknown,
    }
}

/// A value as an error shows it.
fn value_text(value: &Value) -> String {
    match value {
        Value::String(text) => shown(text),
        Value::Bool(value) => value.to_string(),
        Value::I32(value) => value.to_string(),
        Value::I64(value) => value.to_string(),
        Value::U32(value) => value.to_string(),
        Value::U64(value) => value.to_string(),
        _ => "another value".to_owned(),
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

/// Undoes percent-encoding; what is not UTF-8 then is refused.
fn decode(text: &str) -> Result<String, Failure> {
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
    String::from_utf8(bytes).map_err(|_| {
        let message = format!("{} in the path or the query is not UTF-8 when decoded; encode it as UTF-8", shown(text));
        Failure::Http(StatusCode::BAD_REQUEST, message)
    })
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
            Err(Failure::Method(..)) => unreachable!("it was found"),
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
            (Method::GET, "/v1/usage", "worker=w&onlyTotals=true", "", "ListUsage", r#"{"worker":"w","onlyTotals":true}"#),
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
            (Method::PATCH, "/v1/resources", "", "", "allowed: POST GET HEAD"),
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

    #[test]
    fn a_key_that_is_given_twice_and_a_second_choice_are_refused() {
        let cases = [
            (Method::GET, "/v1/plan", "drain=a&lose=a", "", "lose: drain is given as well; leave out one of them"),
            (Method::GET, "/v1/plan", "drain=a&add.name=a", "", "add.name: drain is given as well; leave out one of them"),
            (Method::GET, "/v1/plan", "add.name=a&drain=a", "", "drain: add is given as well; leave out one of them"),
            (
                Method::DELETE,
                "/crawler/resource",
                "",
                r#"{"name":"a","name":"b"}"#,
                "body: \"name\" is given twice; give it once at line 1 column 18",
            ),
            (
                Method::POST,
                "/v1/resources",
                "",
                r#"{"name":"a","spec":{"b":[{"c":1,"c":1}]}}"#,
                "body: \"c\" is given twice; give it once at line 1 column 35",
            ),
            (
                Method::POST,
                "/crawler/resource",
                "",
                r#"{"name":"a","creation_time":"1","creationTime":"1"}"#,
                "body: \"creation_time\" as \"creationTime\" is given twice; give it once at line 1 column 46",
            ),
            (Method::POST, "/v1/plan", "drain=a", r#"{"add":{"name":"a"}}"#, "drain: add is given as well; leave out one of them"),
        ];
        for (method, path, query, body, expected) in cases {
            assert_eq!(found(method, path, query, body), Err(expected.to_owned()), "{path}?{query} {body}");
        }
    }

    #[test]
    fn values_of_one_field_that_differ_are_refused() {
        let cases = [
            (
                Method::DELETE,
                "/crawler/resource",
                "name=b",
                r#"{"name":"a"}"#,
                "name: the body says \"a\" and the query \"b\"; let them agree, or give it once",
            ),
            (
                Method::DELETE,
                "/v1/resources/a",
                "name=b",
                "",
                "name: the query says \"b\" and the path \"a\"; let them agree, or give it once",
            ),
            (
                Method::DELETE,
                "/v1/resources/a",
                "",
                r#"{"name":"b"}"#,
                "body: this call takes none, and it says something else than path and query; leave it out",
            ),
            (
                Method::PUT,
                "/v1/resources/a",
                "",
                r#"{"name":"b"}"#,
                "resource.name: the body says \"b\" and the path \"a\"; let them agree, or give it once",
            ),
            (
                Method::PUT,
                "/v1/resources/a",
                "resource.name=b",
                "",
                "resource.name: the query says \"b\" and the path \"a\"; let them agree, or give it once",
            ),
            (Method::GET, "/v1/resources", "page_size=1&pageSize=2", "", "pageSize: the query says 1 and 2; give it once"),
            (Method::GET, "/v1/resources", "selector=&selector=a", "", "selector: the query says \"\" and \"a\"; give it once"),
            (Method::GET, "/v1/resources/a:logs", "follow=true&follow=false", "", "follow: the query says true and false; give it once"),
            (Method::GET, "/v1/resources/%ff", "", "", "\"%ff\" in the path or the query is not UTF-8 when decoded; encode it as UTF-8"),
            (
                Method::GET,
                "/v1/resources",
                "selector=%c3%28",
                "",
                "\"%c3%28\" in the path or the query is not UTF-8 when decoded; encode it as UTF-8",
            ),
        ];
        for (method, path, query, body, expected) in cases {
            assert_eq!(found(method, path, query, body), Err(expected.to_owned()), "{path}?{query} {body}");
        }
        let cases = [
            (Method::DELETE, "/crawler/resource", "name=a", r#"{"name":"a"}"#, r#"{"name":"a"}"#),
            (Method::DELETE, "/crawler/resource", "name=a", "", r#"{"name":"a"}"#),
            (Method::DELETE, "/v1/resources/a", "name=a&name=a", "{}", r#"{"name":"a"}"#),
            (Method::DELETE, "/v1/resources/a", "", r#"{"name":"a"}"#, r#"{"name":"a"}"#),
            (Method::PUT, "/v1/resources/a", "", r#"{"name":""}"#, r#"{"resource":{"name":"a"}}"#),
            (Method::HEAD, "/v1/resources/a", "", "", r#"{"name":"a"}"#),
        ];
        for (method, path, query, body, expected) in cases {
            assert_eq!(found(method, path, query, body).map(|(_, message)| message), Ok(expected.to_owned()), "{path}?{query} {body}");
        }
    }
}

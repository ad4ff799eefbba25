//! The tasks of the system before, to the letter: `POST` and `GET /api/v1/task`, and `POST /api/v1/kill-task`. Under api::tasks. The transcoder cannot give
//! a bare number, so these routes are written by hand; each is an adapter over the calls of the API, and any master takes it.
//!
//! 400 for what its caller can mend, 500 for all else, with one line that names the field and the rule.

use std::io;

use axum::{
    Router,
    body::{Body as HttpBody, Bytes},
    extract::Request,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use evenkeel_model::{
    limits::MAX_TASK_SPAN,
    shown::{sentence, shown},
};
use evenkeel_proto::v1;
use futures::{StreamExt, stream};
use http::{StatusCode, header::CONTENT_TYPE};
use serde::Serialize;
use serde_json::{Map, Value};
use tonic::{Code, Status};

use super::shown::rfc3339;
use crate::api::transcode::{Along, Failure, Grpc, ask, read};

/// The routes, and the methods of each beside HEAD.
pub(in crate::api) const ROUTES: [(&str, &[&str]); 2] = [("/api/v1/task", &["GET", "POST"]), ("/api/v1/kill-task", &["POST"])];
/// The most characters of `args`, as the original has it.
const MOST_ARGS: usize = 512;
/// What separates one argument from the next.
const NEXT_ARG: &str = ",,";
/// How many tasks are fetched at once for the list, each with its script of up to 64 KiB.
const AT_ONCE: usize = 4;
const PAGE: i32 = 100;

/// The routes over these services.
pub(in crate::api) fn routes<S: Clone + Send + Sync + 'static>(grpc: Grpc) -> Router<S> {
    let (adds, lists, kills) = (grpc.clone(), grpc.clone(), grpc);
    let add = move |request: Request| answered(add(adds.clone(), request));
    let list = move |request: Request| answered(list(lists.clone(), request));
    let kill = move |request: Request| answered(kill(kills.clone(), request));
    Router::new().route(ROUTES[0].0, get(list).post(add)).route(ROUTES[1].0, post(kill))
}

/// Why there is no answer.
struct Wrong(StatusCode, String);

impl Wrong {
    fn field(field: &str, rule: impl std::fmt::Display) -> Self {
        Self(StatusCode::BAD_REQUEST, format!("{field}: {rule}"))
    }
}

impl From<Status> for Wrong {
    fn from(status: Status) -> Self {
        let can_be_mended = matches!(
            status.code(),
            Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange | Code::NotFound | Code::AlreadyExists
        );
        let code = if can_be_mended { StatusCode::BAD_REQUEST } else { StatusCode::INTERNAL_SERVER_ERROR };
        Self(code, status.message().to_owned())
    }
}

impl From<Failure> for Wrong {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Http(_, message) => Self(StatusCode::BAD_REQUEST, message),
            Failure::Grpc(status) => status.into(),
            Failure::Method(..) => Self(StatusCode::BAD_REQUEST, "the method is not allowed".to_owned()),
        }
    }
}

async fn answered(answer: impl Future<Output = Result<Response, Wrong>>) -> Response {
    answer.await.unwrap_or_else(|Wrong(status, message)| error(status, &message))
}

/// What is answered before anything is asked for.
pub(in crate::api) fn refusal(message: &str) -> Response {
    error(StatusCode::BAD_REQUEST, message)
}

fn error(status: StatusCode, message: &str) -> Response {
    json(status, &serde_json::json!({ "error": message }))
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], evenkeel_model::json(value)).into_response()
}

/// Creates a task, and answers with its bare id.
async fn add(grpc: Grpc, request: Request) -> Result<Response, Wrong> {
    let (parts, body) = request.into_parts();
    let task = sent(&read(body).await?)?;
    let request = v1::CreateTaskRequest { task: Some(task), key: String::new() };
    let created: v1::CreateTaskResponse = ask(grpc, "CreateTask", &request, &Along::of(&parts)).await?;
    Ok(json(StatusCode::OK, &created.task.unwrap_or_default().id))
}

/// What was sent, as a task. What is not known of it is not looked at, nor are `created` and `done`, which the original takes and does not heed.
fn sent(body: &[u8]) -> Result<v1::Task, Wrong> {
    let sent: Value = serde_json::from_slice(body).map_err(|error| Wrong::field("body", sentence(&error)))?;
    let Value::Object(sent) = sent else { return Err(Wrong::field("body", "must be a JSON object")) };
    let (hosts, hosts_as_sent) = hosts(sent.get("hosts"))?;
    let args = text(&sent, "args")?;
    let length = args.chars().count();
    if length > MOST_ARGS {
        return Err(Wrong::field("args", format!("has {length} characters; at most {MOST_ARGS} are taken")));
    }
    let account = text(&sent, "account")?;
    if account.is_empty() {
        return Err(Wrong::field("account", "is missing; name the user that the script runs as"));
    }
    Ok(v1::Task {
        title: text(&sent, "title")?,
        script: text(&sent, "script")?,
        account,
        args: if args.is_empty() { Vec::new() } else { args.split(NEXT_ARG).map(str::to_owned).collect() },
        on: Some(v1::TaskTargets { hosts, ..v1::TaskTargets::default() }),
        timeout_ms: seconds(sent.get("timeout"))? * 1000,
        batch: "all".to_owned(),
        tolerance: "all".to_owned(),
        creator: text(&sent, "creator")?,
        hosts_as_sent,
        ..v1::Task::default()
    })
}

/// A text that may be left out.
fn text(sent: &Map<String, Value>, field: &str) -> Result<String, Wrong> {
    match sent.get(field) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(Wrong::field(field, format!("invalid {}: must be a text", shown(&other.to_string())))),
    }
}

/// 0: as long as is usual.
fn seconds(sent: Option<&Value>) -> Result<u64, Wrong> {
    let wrong = |value: &Value| {
        Wrong::field("timeout", format!("invalid {}: a number of seconds from 0 to {MAX_TASK_SPAN}", shown(&value.to_string())))
    };
    match sent {
        None | Some(Value::Null) => Ok(0),
        Some(value) => value.as_u64().filter(|seconds| *seconds <= MAX_TASK_SPAN).ok_or_else(|| wrong(value)),
    }
}

/// The hosts, and what they are shown as again: a text that holds a JSON array, or the array itself.
fn hosts(sent: Option<&Value>) -> Result<(Vec<String>, String), Wrong> {
    let wrong = |value: &str| {
        let rule = r#"must be a JSON array of texts, or a text that holds one, such as "[\"worker-1\",\"worker-2\"]""#;
        Wrong::field("hosts", format!("invalid {}: {rule}", shown(value)))
    };
    let (as_sent, list) = match sent {
        None | Some(Value::Null) => return Err(Wrong::field("hosts", "are missing; name the workers that run it")),
        Some(Value::String(text)) => (text.clone(), serde_json::from_str::<Vec<String>>(text)),
        Some(other) => (other.to_string(), serde_json::from_value(other.clone())),
    };
    let list = list.map_err(|_| wrong(&as_sent))?;
    if list.is_empty() {
        return Err(Wrong::field("hosts", "are missing; name the workers that run it"));
    }
    Ok((list, as_sent))
}

/// One row of the list, with the names and the order of the original.
#[derive(Serialize)]
struct Row {
    id: u32,
    title: String,
    account: String,
    timeout: u64,
    hosts: String,
    script: String,
    args: String,
    creator: String,
    created: String,
    done: u8,
}

impl Row {
    fn of(state: v1::TaskState) -> Self {
        let task = state.task.unwrap_or_default();
        let hosts = || evenkeel_model::json(&state.hosts.iter().map(|host| host.worker.as_str()).collect::<Vec<_>>());
        Self {
            id: state.id,
            title: task.title,
            account: task.account,
            timeout: task.timeout_ms / 1000,
            hosts: if task.hosts_as_sent.is_empty() { String::from_utf8(hosts()).unwrap_or_default() } else { task.hosts_as_sent },
            script: task.script,
            args: task.args.join(NEXT_ARG),
            creator: task.creator,
            created: rfc3339(state.created),
            done: u8::from(state.state == "done"),
        }
    }
}

/// All tasks that are kept, the oldest first. Only a few of them are in memory at a time.
async fn list(grpc: Grpc, request: Request) -> Result<Response, Wrong> {
    let along = Along::of(&request.into_parts().0);
    let mut ids = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListTasksRequest { states: Vec::new(), page_size: PAGE, page_token };
        let page: v1::ListTasksResponse = ask(grpc.clone(), "ListTasks", &request, &along).await?;
        ids.extend(page.tasks.into_iter().map(|task| task.id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    ids.reverse();
    let rows = stream::iter(ids).map(move |id| {
        let (grpc, along) = (grpc.clone(), along.clone());
        async move {
            let request = v1::GetTaskRequest { id, with_script: true };
            match ask::<v1::GetTaskResponse>(grpc, "GetTask", &request, &along).await {
                Ok(found) => Ok(found.task),
                // It was kept no longer when it was its turn.
                Err(status) if status.code() == Code::NotFound => Ok(None),
                Err(status) => Err(status),
            }
        }
    });
    let rows = rows.buffered(AT_ONCE).filter_map(async |found| found.transpose());
    Ok(rows_as_json(rows).into_response())
}

/// An array of rows, which breaks off where one of them cannot be read: half a list is none.
fn rows_as_json(rows: impl stream::Stream<Item = Result<v1::TaskState, Status>> + Send + 'static) -> Response {
    let mut before = "";
    let rows = rows.map(move |row| {
        let row = row.map_err(|status| {
            tracing::warn!(why = status.message(), "the list of tasks is broken off");
            io::Error::other(status.message().to_owned())
        })?;
        let separator = std::mem::replace(&mut before, ",");
        Ok::<_, io::Error>(Bytes::from([separator.as_bytes(), &evenkeel_model::json(&Row::of(row))].concat()))
    });
    let whole = |text: &'static str| stream::iter([Ok(Bytes::from_static(text.as_bytes()))]);
    let body = HttpBody::from_stream(whole("[").chain(rows).chain(whole("]")));
    ([(CONTENT_TYPE, "application/json")], body).into_response()
}

/// Kills a task.
async fn kill(grpc: Grpc, request: Request) -> Result<Response, Wrong> {
    let (parts, _) = request.into_parts();
    let query = parts.uri.query().unwrap_or_default();
    let given = query.split('&').find_map(|pair| pair.strip_prefix("task_id="));
    let given = given.ok_or_else(|| Wrong::field("task_id", "is missing; say which, as /api/v1/kill-task?task_id=1"))?;
    let id = given.parse().ok().filter(|id| *id > 0);
    let id = id.ok_or_else(|| Wrong::field("task_id", format!("invalid {}: the number of a task", shown(given))))?;
    let _: v1::KillTaskResponse = ask(grpc, "KillTask", &v1::KillTaskRequest { id }, &Along::of(&parts)).await?;
    Ok(json(StatusCode::OK, &serde_json::json!({ "message": "success" })))
}

#[cfg(test)]
#[path = "door_tests.rs"]
mod tests;

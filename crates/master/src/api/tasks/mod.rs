//! Tasks as callers ask for them: each call becomes a command, or a view of what is known. `shown.rs`: a task and its hosts; `reads.rs`: get and list;
//! `watch.rs`: a task as it goes on; `output.rs`: what a script wrote; `door.rs`: the HTTP of the system before.
//!
//! Under master::api. Whatever a person asks for is in the log, with who, from where, for how many hosts and the digest of the script, and never the
//! script itself.

pub(super) mod door;
mod output;
mod reads;
mod shown;
mod watch;

pub(super) use self::{
    output::read as read_output,
    reads::{get, list},
    watch::watch,
};

use std::net::IpAddr;

use evenkeel_model::{
    MasterRecord, TaskId,
    shown::bare,
    task::{NewTask, TaskDraft},
};
use evenkeel_net::{Peer, is_loopback};
use evenkeel_proto::v1;
use prost::Message;
use tonic::{Code, Request, Status};

use super::{
    forward::{FROM, MARK},
    service::{OVERHEAD, Service, settled, worker_id},
};
use crate::{
    control::{
        intake::Ticket,
        request::{self, Refusal, Reply},
        subjects::Subject,
        task::{Redone, TaskVerb},
    },
    state::State,
};

/// The header that gives a creation its key.
pub(super) const KEY: &str = "idempotency-key";

#[allow(clippy::result_large_err, reason = "tonic's own error type")]
fn task_id(id: u32) -> Result<TaskId, Status> {
    if id == 0 { Err(Status::invalid_argument("id: is missing; it is the number of a task, from 1")) } else { Ok(TaskId(id)) }
}

/// The address of who asks: of the connection, or what another master says of its own. Anybody can say that it comes from a master, so it has to come
/// from where that master is.
fn from<T>(state: &State, request: &Request<T>) -> Box<str> {
    let text = |name| request.metadata().get(name).and_then(|value| value.to_str().ok());
    let peer = request.extensions().get::<Peer>().map(|Peer(address)| address.to_canonical());
    let is_at = |record: &MasterRecord| peer.is_some_and(|peer| [&record.address, &record.http].into_iter().any(|at| is_host_of(peer, at)));
    let by_master = text(MARK).is_some_and(|id| state.masters.values().any(|(_, record)| record.id.as_str() == id && is_at(record)));
    let said = text(FROM).filter(|_| by_master).and_then(|address| address.parse::<IpAddr>().ok());
    said.or(peer).map(|address| address.to_canonical().to_string()).unwrap_or_default().into()
}

/// Whether this is the address in HOST:PORT. A name is resolved for nobody, but that of this machine needs no resolving.
fn is_host_of(peer: IpAddr, address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().map_or_else(|_| peer.is_loopback() && is_loopback(host), |host| host.to_canonical() == peer)
}

/// One thing that a person asks for, as the log has it.
struct Asked<'a> {
    action: &'a str,
    id: u32,
    host: &'a str,
    creator: &'a str,
    from: &'a str,
    account: &'a str,
    targets: usize,
    sha256: &'a str,
}

impl Asked<'_> {
    fn log<T>(&self, result: &Result<T, Status>) {
        let (outcome, why) = result.as_ref().err().map_or((Code::Ok, ""), |status| (status.code(), status.message()));
        let Self { action, id, host, creator, from, account, targets, sha256 } = self;
        tracing::info!(
            audit = true,
            action,
            task = id,
            host,
            creator,
            from,
            account,
            targets,
            sha256,
            ?outcome,
            why,
            "asked for by a person"
        );
    }
}

/// Says in the log that a call was refused before it was read. What only reads is not told.
pub(super) fn log_refusal(path: &str, peer: Option<&Peer>, status: &Status) {
    // As /evenkeel.v1.Master/KillTaskHost.
    let method = path.rsplit('/').next().unwrap_or_default();
    let action = method.split("Task").next().unwrap_or_default().to_ascii_lowercase();
    let from = peer.map(|Peer(address)| address.to_canonical().to_string()).unwrap_or_default();
    let asked = Asked { action: &action, id: 0, host: "", creator: "", from: &from, account: "", targets: 0, sha256: "" };
    asked.log(&Err::<(), _>(status.clone()));
}

/// Creates a task, or finds the one that its key has created before.
pub(super) async fn create(service: &Service, request: Request<v1::CreateTaskRequest>) -> Result<v1::CreateTaskResponse, Status> {
    let from = from(&service.shared().read(), &request);
    let bytes = request.get_ref().encoded_len();
    let task = request.get_ref().task.as_ref();
    let (creator, account) = task.map(|task| (task.creator.clone(), task.account.clone())).unwrap_or_default();
    let mut hosts = task.and_then(|task| task.on.as_ref()).map_or(0, |on| on.hosts.len());
    let checked = checked(request, &from);
    let (creator, account) = if checked.is_ok() { (creator, account) } else { (bare(&creator), bare(&account)) };
    let sha256 = checked.as_ref().map(|new| new.task.sha256.clone()).unwrap_or_default();
    let result = match checked {
        Ok(new) => create_checked(service, Box::new(new), bytes).await,
        Err(status) => Err(status),
    };
    if let Ok(v1::CreateTaskResponse { task: Some(task), .. }) = &result {
        hosts = task.hosts.len();
    }
    let id = result.as_ref().ok().and_then(|answer| answer.task.as_ref()).map_or(0, |task| task.id);
    let asked =
        Asked { action: "create", id, host: "", creator: &creator, from: &from, account: &account, targets: hosts, sha256: &sha256 };
    asked.log(&result);
    result
}

/// What is asked for, as far as it can be checked by itself.
#[allow(clippy::result_large_err, reason = "tonic's own error type")]
fn checked(request: Request<v1::CreateTaskRequest>, from: &str) -> Result<NewTask, Status> {
    let key = key(&request)?;
    let task = request.into_inner().task.ok_or_else(|| Status::invalid_argument("task: is missing"))?;
    let draft = TaskDraft { key, from: from.to_owned(), ..shown::draft(task) };
    draft.check().map_err(|error| Status::invalid_argument(error.to_string()))
}

async fn create_checked(service: &Service, new: Box<NewTask>, bytes: usize) -> Result<v1::CreateTaskResponse, Status> {
    let (reply, answer) = Reply::new(service.engine.intake.one(bytes + OVERHEAD)?);
    service.engine.ask(request::Request::create_task(new, reply))?;
    let created = settled(answer, || Refusal::Unknown(Subject::Tasks)).await?;
    Ok(v1::CreateTaskResponse { task: Some(shown::whole(service, created.id).await?), created: created.is_new })
}

/// The key of a creation: as a field, or as a header.
#[allow(clippy::result_large_err, reason = "tonic's own error type")]
fn key(request: &Request<v1::CreateTaskRequest>) -> Result<String, Status> {
    let mut key = request.get_ref().key.clone();
    for value in request.metadata().get_all(KEY) {
        let text = value.to_str().map_err(|_| Status::invalid_argument("Idempotency-Key: is no text; use letters and digits"))?;
        if !key.is_empty() && key != text {
            return Err(Status::invalid_argument("key: is given twice, and differs; give it once"));
        }
        text.clone_into(&mut key);
    }
    Ok(key)
}

/// Pauses, resumes, cancels or kills a task; then shows it.
pub(super) async fn want<T>(service: &Service, request: &Request<T>, id: u32, verb: TaskVerb) -> Result<Option<v1::TaskState>, Status> {
    let from = from(&service.shared().read(), request);
    let wanted = Wanted { action: verb.as_str(), id, host: "", from: &from };
    ask(service, wanted, Ok(verb), |id, verb, reply| request::Request::task_intent(id, verb, from.clone(), reply)).await
}

/// Runs hosts of a task once more; then shows it.
pub(super) async fn redo<T>(
    service: &Service,
    request: &Request<T>,
    id: u32,
    workers: &[String],
    failed: bool,
) -> Result<Option<v1::TaskState>, Status> {
    let from = from(&service.shared().read(), request);
    let host = if let [only] = workers { only.as_str() } else { "" };
    let wanted = Wanted { action: "redo", id, host, from: &from };
    let hosts = redone(workers, failed);
    ask(service, wanted, hosts, |id, hosts, reply| request::Request::redo_task(id, hosts, from.clone(), reply)).await
}

/// Which hosts run once more.
#[allow(clippy::result_large_err, reason = "tonic's own error type")]
fn redone(workers: &[String], failed: bool) -> Result<Redone, Status> {
    match (workers.is_empty(), failed) {
        (true, false) => Err(Status::invalid_argument("workers: are missing; name hosts of the task, or set failed for all that failed")),
        (false, true) => Err(Status::invalid_argument("failed: cannot be given beside workers; use one of them")),
        (true, true) => Ok(Redone::Failed),
        (false, false) => Ok(Redone::Hosts(workers.iter().map(|id| worker_id("workers", id)).collect::<Result<_, _>>()?)),
    }
}

/// Stops one host of a task; then shows it.
pub(super) async fn kill_host<T>(service: &Service, request: &Request<T>, id: u32, worker: &str) -> Result<Option<v1::TaskState>, Status> {
    let from = from(&service.shared().read(), request);
    let wanted = Wanted { action: "kill", id, host: worker, from: &from };
    let host = worker_id("worker", worker);
    ask(service, wanted, host, |id, host, reply| request::Request::kill_task_host(id, host, from.clone(), reply)).await
}

/// Counts one host of a task no more; then shows it.
pub(super) async fn ignore_host<T>(
    service: &Service,
    request: &Request<T>,
    id: u32,
    worker: &str,
) -> Result<Option<v1::TaskState>, Status> {
    let from = from(&service.shared().read(), request);
    let wanted = Wanted { action: "ignore", id, host: worker, from: &from };
    let host = worker_id("worker", worker);
    ask(service, wanted, host, |id, host, reply| request::Request::ignore_task_host(id, host, from.clone(), reply)).await
}

struct Wanted<'a> {
    action: &'a str,
    id: u32,
    host: &'a str,
    from: &'a str,
}

/// Asks the control loop for something of a task that there is, unless what was sent cannot be, and says either in the log.
async fn ask<C>(
    service: &Service,
    wanted: Wanted<'_>,
    checked: Result<C, Status>,
    command: impl FnOnce(TaskId, C, Reply<()>) -> request::Request,
) -> Result<Option<v1::TaskState>, Status> {
    let Wanted { action, id, host, from } = wanted;
    let shown_host = if checked.is_ok() { host.to_owned() } else { bare(host) };
    let asked = async {
        let (id, checked) = (task_id(id)?, checked?);
        let (reply, answer) = Reply::new(Ticket::default());
        service.engine.ask(command(id, checked, reply))?;
        settled(answer, || Refusal::Unknown(Subject::Task(id))).await.map(|()| id)
    };
    let result = asked.await;
    let (account, sha256, targets) = {
        let state = service.shared().read();
        let entry = state.cluster.tasks().get(TaskId(id));
        let task = entry.and_then(evenkeel_model::task::TaskEntry::task);
        let hosts = if host.is_empty() { entry.map_or(0, |entry| entry.order().len()) } else { 1 };
        (task.map(|task| task.account.clone()).unwrap_or_default(), task.map(|task| task.sha256.clone()).unwrap_or_default(), hosts)
    };
    Asked { action, id, host: &shown_host, creator: "", from, account: &account, targets, sha256: &sha256 }.log(&result);
    shown::whole(service, result?).await.map(Some)
}

#[cfg(test)]
mod tests {
    use evenkeel_model::{MasterId, Revision};
    use tonic::metadata::MetadataValue;

    use super::*;

    #[test]
    fn only_a_master_says_for_whom_it_asks_and_only_from_where_it_is() {
        let mut state = State::default();
        let mut request = Request::new(v1::KillTaskRequest { id: 1 });
        assert_eq!(&*from(&state, &request), "", "of a connection nothing is known");
        request.extensions_mut().insert(Peer("::ffff:10.0.0.1".parse().expect("an address")));
        request.metadata_mut().insert(FROM, MetadataValue::from_static("10.0.0.9"));
        assert_eq!(&*from(&state, &request), "10.0.0.1");
        request.metadata_mut().insert(MARK, MetadataValue::from_static("master-2"));
        assert_eq!(&*from(&state, &request), "10.0.0.1", "nobody knows that master");
        let cases = [
            ("10.0.0.1", "10.0.0.1:9091", "10.0.0.1:8081", "10.0.0.9"),
            ("10.0.0.1", "10.0.0.2:9091", "10.0.0.1:8081", "10.0.0.9"),
            ("10.0.0.1", "10.0.0.2:9091", "", "10.0.0.1"),
            ("10.0.0.1", "master-2:9091", "master-2.example:8081", "10.0.0.1"),
            ("fd00::1", "[fd00:0::1]:9091", "", "10.0.0.9"),
            ("127.0.0.1", "localhost:9091", "", "10.0.0.9"),
            ("10.0.0.1", "localhost:9091", "", "10.0.0.1"),
        ];
        for (peer, address, http, expected) in cases {
            let id = MasterId::new("master-2").expect("id");
            let record = MasterRecord { id, address: address.to_owned(), http: http.to_owned(), version: String::new(), leads_since: 0 };
            state.masters.insert(Revision(1), (String::new(), record));
            request.extensions_mut().insert(Peer(peer.parse().expect("an address")));
            assert_eq!(&*from(&state, &request), expected, "{peer} {address} {http}");
        }
    }

    #[test]
    fn a_key_is_a_field_or_a_header() {
        let asked = |field: &str, headers: &[&'static str]| {
            let mut request = Request::new(v1::CreateTaskRequest { task: None, key: field.to_owned() });
            for header in headers {
                request.metadata_mut().append(KEY, MetadataValue::from_static(header));
            }
            key(&request).map_err(|status| status.message().to_owned())
        };
        let differs = Err("key: is given twice, and differs; give it once".to_owned());
        let cases: [(&str, &[&'static str], Result<String, String>); 6] = [
            ("", &[], Ok(String::new())),
            ("a", &[], Ok("a".to_owned())),
            ("", &["a"], Ok("a".to_owned())),
            ("a", &["a"], Ok("a".to_owned())),
            ("a", &["b"], differs.clone()),
            ("", &["a", "b"], differs),
        ];
        for (field, headers, expected) in cases {
            assert_eq!(asked(field, headers), expected, "{field} {headers:?}");
        }
    }
}

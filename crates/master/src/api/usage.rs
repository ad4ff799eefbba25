//! What work uses, fetched from the workers that run it when somebody asks, and kept nowhere: etcd is for what is wanted and what is so, and a
//! figure that changes every second is neither.
//!
//! Beside the wheel. A worker is asked at the address that it says, by the same rules as for its output, and what it answers is passed on as its
//! own word. One that hangs costs its second and no more.

use std::time::Duration;

use evenkeel_model::{ResourceName, WorkerId};
use evenkeel_proto::v1::{self, worker_client::WorkerClient};
use futures::{StreamExt, stream};
use tokio::time::timeout;
use tonic::Status;

use super::{
    lists::page_token,
    logs,
    room::Room,
    service::{Service, name, worker_id},
    states,
};
use crate::{control::request::Refusal, state::State};

/// How long one worker may take, from the connection to the last byte. It answers from memory, or after one look at its processes.
const ANSWER: Duration = Duration::from_secs(1);
/// How many workers one call asks at once.
const AT_ONCE: usize = 16;
/// The workers of one page: when none of them answers, a page takes four seconds, and a client waits for fifteen.
const PAGE: usize = 64;
/// After so many resources a page takes no further worker. They have some fifty bytes each, and a page ends at 3 MiB.
const PAGE_RESOURCES: usize = 20_000;

/// A worker that is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    id: WorkerId,
    /// None: it is not registered.
    address: Option<String>,
}

/// Whom one page asks.
#[derive(Debug, Default, PartialEq, Eq)]
struct Targets {
    asked: Vec<Target>,
    /// There are more behind the last.
    has_more: bool,
}

/// What work uses, a page of workers by id.
pub(super) async fn list(service: &Service, request: &v1::ListUsageRequest) -> Result<v1::ListUsageResponse, Status> {
    let only_worker = if request.worker.is_empty() { None } else { Some(worker_id("worker", &request.worker)?) };
    let only_name = if request.name.is_empty() { None } else { Some(name(&request.name)?) };
    let after = page_token(&request.page_token, WorkerId::new)?;
    let _place = service.turns.usage()?;
    let targets = {
        let state = service.shared().read();
        targets(&state, only_worker.as_ref(), only_name.as_ref(), after.as_ref())?
    };
    let is_local = logs::is_local(&service.config);
    let ask = v1::ListRunningRequest { name: request.name.clone(), only_totals: request.only_totals };
    let answers = stream::iter(targets.asked).map(|target| {
        let ask = ask.clone();
        async move {
            let answer = answer(&target, ask, is_local).await;
            shown(&target.id, answer)
        }
    });
    let mut workers: Vec<v1::WorkerUsage> = answers.buffered(AT_ONCE).collect().await;
    let left_out = Room::of_a_page().cut(&mut workers);
    let has_more = targets.has_more || left_out > 0;
    let next_page_token = workers.last().filter(|_| has_more).map(|last| last.worker.clone()).unwrap_or_default();
    Ok(v1::ListUsageResponse { workers, next_page_token })
}

/// Whom a page asks: those behind a worker, or the only one that is asked for.
#[allow(clippy::result_large_err, reason = "tonic's own error type")]
fn targets(
    state: &State,
    only_worker: Option<&WorkerId>,
    only_name: Option<&ResourceName>,
    after: Option<&WorkerId>,
) -> Result<Targets, Status> {
    let target = |id: &WorkerId| {
        let registration = state.cluster.worker(id.as_str()).and_then(|worker| worker.registration());
        Target { id: id.clone(), address: registration.map(|registration| registration.address.clone()) }
    };
    let only = match (only_worker, only_name) {
        (None, None) => None,
        (Some(id), None) => {
            let worker = state.cluster.worker(id.as_str()).filter(|worker| states::is_shown(worker));
            worker.ok_or_else(|| Status::from(Refusal::NoWorker(id.clone())))?;
            Some(Some(id))
        }
        (_, Some(name)) => {
            let unit = state.cluster.unit(name.as_str()).filter(|unit| unit.record.is_some() || unit.unreadable.is_some());
            let unit = unit.ok_or_else(|| Status::from(Refusal::NotFound(name.clone())))?;
            let holder = unit.holders.first().map(|holder| &holder.worker);
            Some(holder.filter(|holder| only_worker.is_none_or(|only| only == *holder)))
        }
    };
    if let Some(only) = only {
        return Ok(Targets { asked: only.into_iter().map(target).collect(), has_more: false });
    }
    let (mut targets, mut resources) = (Targets::default(), 0);
    for id in state.cluster.workers_after(after.map_or("", WorkerId::as_str)) {
        let Some(worker) = state.cluster.worker(id.as_str()).filter(|worker| states::is_shown(worker)) else { continue };
        if targets.asked.len() == PAGE || resources > PAGE_RESOURCES {
            targets.has_more = true;
            break;
        }
        resources += worker.names.len();
        targets.asked.push(target(id));
    }
    Ok(targets)
}

/// What a worker says, or why it says nothing.
async fn answer(target: &Target, ask: v1::ListRunningRequest, is_local: bool) -> Result<v1::ListRunningResponse, String> {
    let Some(address) = &target.address else { return Err("it is not registered".to_owned()) };
    let answer = async {
        let channel = logs::connect(target.id.as_str(), address, is_local, "what it uses").await?;
        Ok::<_, Status>(WorkerClient::new(channel).list_running(ask).await?.into_inner())
    };
    match timeout(ANSWER, answer).await {
        Err(_) => Err(format!("{} at {address} has not answered within {} s", target.id, ANSWER.as_secs())),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Ok(Ok(answer)) if answer.worker != target.id.as_str() => Err(format!("another worker answers at {address}")),
        Ok(Ok(answer)) => Ok(answer),
    }
}

fn shown(id: &WorkerId, answer: Result<v1::ListRunningResponse, String>) -> v1::WorkerUsage {
    let unknown = |reason: String| v1::WorkerUsage { worker: id.to_string(), reason, ..v1::WorkerUsage::default() };
    let answer = match answer {
        Ok(answer) => answer,
        Err(reason) => return unknown(reason),
    };
    if !answer.unmeasured.is_empty() {
        return unknown(answer.unmeasured);
    }
    if answer.processes.is_none() {
        return unknown("its version does not measure what work uses".to_owned());
    }
    let resource = |running: v1::Running| {
        Some(v1::ResourceUsage {
            name: running.name,
            epoch: running.epoch,
            cpu_ns: running.cpu_ns?,
            memory_bytes: running.memory_bytes?,
            processes: running.processes?,
        })
    };
    v1::WorkerUsage {
        worker: id.to_string(),
        cpu_ns: answer.cpu_ns,
        memory_bytes: answer.memory_bytes,
        processes: answer.processes,
        reason: String::new(),
        resources: answer.running.into_iter().filter_map(resource).collect(),
    }
}

#[cfg(test)]
mod tests {
    use evenkeel_model::{Change, Definition, Entry, Moment, Record, Registration, Revision};

    use super::*;

    fn id(text: &str) -> WorkerId {
        WorkerId::new(text).expect("an id")
    }

    fn state(workers: usize) -> State {
        let mut state = State::default();
        for n in 0..workers {
            let id = id(&format!("w{n:03}"));
            let registration = Registration::bare(id.clone(), format!("127.0.0.1:{n}"));
            state.cluster.apply(Change::at(Revision(5), Entry::Worker(id, Some(registration))), Moment::default());
        }
        state
    }

    #[test]
    fn a_page_asks_so_many_workers_and_the_next_goes_on_behind_them() {
        let state = state(PAGE + 3);
        let first = targets(&state, None, None, None).expect("a page");
        assert_eq!((first.asked.len(), first.has_more), (PAGE, true));
        let rest = targets(&state, None, None, first.asked.last().map(|target| &target.id)).expect("a page");
        let ids: Vec<_> = rest.asked.iter().map(|target| target.id.as_str()).collect();
        assert_eq!((ids, rest.has_more), (vec!["w064", "w065", "w066"], false));
    }

    #[test]
    fn one_worker_or_one_resource_asks_one_and_what_is_unknown_is_refused() {
        let mut state = state(2);
        let pending = ResourceName::new("pending").expect("a name");
        let definition = Definition::named(pending.clone());
        let record =
            Record { id: 1, creation_time: 0, assigned_node: "".into(), source: "".into(), finished: None, failed: None, definition };
        state.cluster.apply(Change::at(Revision(6), Entry::Resource(pending.clone(), Some(record))), Moment::default());
        let one = targets(&state, Some(&id("w001")), None, None).expect("one");
        assert_eq!(one.asked, [Target { id: id("w001"), address: Some("127.0.0.1:1".to_owned()) }]);
        assert_eq!(targets(&state, None, Some(&pending), None).expect("none").asked, []);
        let code = |worker: Option<&str>, name: Option<&str>| {
            let (worker, name) = (worker.map(id), name.map(|name| ResourceName::new(name).expect("a name")));
            targets(&state, worker.as_ref(), name.as_ref(), None).expect_err("refused").code()
        };
        assert_eq!(code(Some("nobody"), None), tonic::Code::NotFound);
        assert_eq!(code(None, Some("nothing")), tonic::Code::NotFound);
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_hangs_costs_its_second_and_no_address_is_asked_that_output_is_not_asked_from() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let target = |address: Option<String>| Target { id: id("w"), address };
        let address = silent.local_addr().expect("an address").to_string();
        let began = tokio::time::Instant::now();
        let why = answer(&target(Some(address.clone())), v1::ListRunningRequest::default(), true).await.expect_err("nothing");
        assert_eq!(why, format!("w at {address} has not answered within 1 s"));
        assert!(began.elapsed() < 2 * ANSWER, "{:?}", began.elapsed());
        let why = answer(&target(Some(address)), v1::ListRunningRequest::default(), false).await.expect_err("refused");
        assert!(why.contains("is not asked for what it uses: 127.0.0.1 is a loopback address"), "{why}");
        let why = answer(&target(None), v1::ListRunningRequest::default(), true).await.expect_err("nowhere");
        assert_eq!(why, "it is not registered");
    }

    #[test]
    fn what_is_not_known_is_left_out_with_the_reason() {
        let running = |name: &str, processes: Option<u32>| v1::Running {
            name: name.to_owned(),
            cpu_ns: processes.map(|_| 5),
            memory_bytes: processes.map(|_| 6),
            processes,
            ..v1::Running::default()
        };
        let said = v1::ListRunningResponse {
            running: vec![running("held", None), running("runs", Some(2))],
            processes: Some(2),
            ..v1::ListRunningResponse::default()
        };
        let used = shown(&id("w"), Ok(said.clone()));
        assert_eq!(used.resources.iter().map(|r| (r.name.as_str(), r.processes)).collect::<Vec<_>>(), [("runs", 2)]);
        assert_eq!((used.processes, used.reason.as_str()), (Some(2), ""));
        let reason = |answer| {
            let used = shown(&id("w"), answer);
            assert_eq!((used.processes, used.resources.len()), (None, 0));
            used.reason
        };
        assert_eq!(reason(Err("it hangs".to_owned())), "it hangs");
        assert_eq!(reason(Ok(v1::ListRunningResponse { unmeasured: "no list".to_owned(), ..said.clone() })), "no list");
        assert_eq!(reason(Ok(v1::ListRunningResponse { processes: None, ..said })), "its version does not measure what work uses");
    }
}

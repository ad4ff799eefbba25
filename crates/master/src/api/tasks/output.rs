//! What a script wrote: fetched from its worker, and where that cannot be asked, the tail of it that etcd keeps. Under api::tasks. The worker's address
//! is judged as for the output of resources.

use std::time::Duration;

use evenkeel_model::{
    Key, Stored, TaskTail, WorkerId,
    task::{HostState, TaskHost},
};
use evenkeel_proto::v1::{self, worker_client::WorkerClient};
use futures::{StreamExt, stream};
use tokio::time::timeout;
use tonic::{Code, Status};

use super::{shown, task_id};
use crate::{
    api::{
        logs,
        room::with_place,
        service::{Answers, Service, worker_id},
    },
    control::request::Refusal,
};

/// How long a worker that takes the connection may take until the first of the output is there: one that is stopped takes connections, too.
const FIRST: Duration = Duration::from_secs(3);

/// Which output is read.
struct Wanted {
    id: evenkeel_model::TaskId,
    worker: WorkerId,
    attempt: u32,
    is_err: bool,
    lines: u32,
    /// How many bytes the script has written there; none: it goes on.
    written: Option<u64>,
}

/// The output of one host of a task.
pub(in crate::api) async fn read(
    service: &Service,
    request: v1::ReadTaskOutputRequest,
) -> Result<Answers<v1::ReadTaskOutputResponse>, Status> {
    let (wanted, address) = wanted(service, &request)?;
    let place = service.turns.watch()?;
    let ask = v1::TaskOutputRequest { id: request.id, attempt: wanted.attempt, stream: request.stream, tail: request.tail };
    let from_worker = match address {
        None => Err(Status::failed_precondition(format!("{} is not registered", wanted.worker))),
        Some(address) => ask_worker(service, &wanted.worker, &address, ask).await,
    };
    let answers = match from_worker {
        Ok(chunks) => chunks,
        Err(status) => from_etcd(service, &wanted, &status).await?,
    };
    Ok(with_place(answers, place).boxed())
}

#[allow(clippy::result_large_err, reason = "tonic's own error type")]
fn wanted(service: &Service, request: &v1::ReadTaskOutputRequest) -> Result<(Wanted, Option<String>), Status> {
    let (id, worker) = (task_id(request.id)?, worker_id("worker", &request.worker)?);
    let is_err = match request.stream.as_str() {
        "" | "stdout" => false,
        "stderr" => true,
        other => {
            let other = evenkeel_model::shown::shown(other);
            return Err(Status::invalid_argument(format!("stream: unknown {other}; use stdout or stderr")));
        }
    };
    let state = service.shared().read();
    let entry = shown::find(&state, id)?;
    let at = entry.state_of(&worker).ok_or_else(|| Status::from(Refusal::NoHost(id, worker.clone())))?;
    let result = entry.host(&worker).and_then(TaskHost::current).filter(|result| result.began != 0);
    let Some(result) = result else {
        let why = if matches!(at, HostState::Waiting | HostState::Pending) { "has not begun yet" } else { "was never begun there" };
        return Err(Status::failed_precondition(format!("{worker} is {at}: task {id} {why}, so there is no output")));
    };
    let attempt = entry.host(&worker).map_or(0, TaskHost::attempt);
    let written = result.end().map(|_| if is_err { result.err } else { result.out });
    let registration = state.cluster.worker(worker.as_str()).and_then(|worker| worker.registration());
    let address = registration.map(|registration| registration.address.clone());
    Ok((Wanted { id, worker, attempt, is_err, lines: request.tail, written }, address))
}

async fn ask_worker(
    service: &Service,
    worker: &WorkerId,
    address: &str,
    ask: v1::TaskOutputRequest,
) -> Result<Answers<v1::ReadTaskOutputResponse>, Status> {
    let channel = logs::connect(worker.as_str(), address, logs::is_local(&service.config), "its output").await?;
    let mut client = WorkerClient::new(channel);
    let id = worker.clone();
    let broken = move |status| logs::breaks_off(id.as_str(), status);
    let pass_on = |part: v1::TaskOutputResponse| v1::ReadTaskOutputResponse { chunk: part.chunk, note: part.note };
    let answer = async {
        let parts = client.task_output(ask).await.map_err(&broken)?.into_inner();
        Ok(parts.map(move |part| part.map(pass_on).map_err(&broken)).boxed())
    };
    in_time(worker, address, answer).await
}

/// What a worker answers, once the first part of it is there; whoever gets that waits for the rest as long as it takes.
async fn in_time<T: Send + 'static>(
    worker: &WorkerId,
    address: &str,
    answer: impl Future<Output = Result<Answers<T>, Status>>,
) -> Result<Answers<T>, Status> {
    let begun = async {
        let mut parts = answer.await?;
        let first = parts.next().await.transpose()?;
        Ok(stream::iter(first.map(Ok)).chain(parts).boxed())
    };
    timeout(FIRST, begun).await.unwrap_or_else(|_| {
        let why = format!("{worker} at {address} does not answer, {} s after it was asked for its output", FIRST.as_secs());
        Err(Status::unavailable(why))
    })
}

/// The end of it, as etcd has it.
async fn from_etcd(service: &Service, wanted: &Wanted, asked: &Status) -> Result<Answers<v1::ReadTaskOutputResponse>, Status> {
    let Wanted { id, worker, attempt, is_err, lines, written } = wanted;
    let why = asked.message();
    let read = service.store.get(&Key::TaskTail(worker.clone(), *id)).await.map_err(|error| neither(wanted, asked, false, &error))?;
    let nothing = |why_not: &dyn std::fmt::Display| neither(wanted, asked, true, why_not);
    let Some(kv) = read else {
        return Err(nothing(if written.is_some() { &"it keeps none of it" } else { &"the script has not ended" }));
    };
    let read = TaskTail::read(&(worker.clone(), *id), &kv.value);
    let Some(tail) = read.value else { return Err(nothing(&read.error.unwrap_or_default())) };
    if tail.attempt != *attempt {
        return Err(nothing(&format_args!("what it keeps is of attempt {}", tail.attempt)));
    }
    let kept = if *is_err { tail.err } else { tail.out };
    let has = kept.len() as u64;
    let of = written
        .filter(|written| *written > has)
        .map(|written| format!("the last {has} of {written} bytes"))
        .unwrap_or("all of it".to_owned());
    let note = format!("from etcd, {of}: {why}");
    let chunk = last_lines(&kept, *lines).to_vec();
    Ok(stream::iter([Ok(v1::ReadTaskOutputResponse { chunk, note })]).boxed())
}

/// Nobody has it. Asking again helps where the worker may answer then, or etcd.
fn neither(wanted: &Wanted, asked: &Status, has_etcd_answered: bool, why_not: &dyn std::fmt::Display) -> Status {
    let Wanted { id, worker, .. } = wanted;
    let why = asked.message();
    let text = format!("the output of task {id} on {worker} cannot be read: {why}, and etcd has no end of it: {why_not}");
    let is_certain = has_etcd_answered && matches!(asked.code(), Code::NotFound | Code::FailedPrecondition);
    if is_certain { Status::failed_precondition(text) } else { Status::unavailable(text) }
}

/// So many of the last lines; 0: all.
fn last_lines(text: &[u8], lines: u32) -> &[u8] {
    if lines == 0 {
        return text;
    }
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let ends = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    ends.take(lines as usize).nth(lines as usize - 1).map_or(text, |at| &text[at..])
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_does_not_begin_to_answer_is_not_waited_for() {
        let worker = WorkerId::new("worker-1").expect("an id");
        let said = async |answer: futures::future::BoxFuture<'static, Result<Answers<u8>, Status>>| -> Result<Vec<u8>, String> {
            let parts = in_time(&worker, "10.0.0.5:9071", answer).await.map_err(|status| status.message().to_owned())?;
            let parts: Vec<_> = parts.collect().await;
            Ok(parts.into_iter().map(|part| part.expect("no error")).collect())
        };
        let late = Err("worker-1 at 10.0.0.5:9071 does not answer, 3 s after it was asked for its output".to_owned());
        assert_eq!(said(std::future::pending().boxed()).await, late);
        let silent = async { Ok::<Answers<u8>, _>(stream::pending().boxed()) };
        assert_eq!(said(silent.boxed()).await, late);
        let slow = async {
            let rest = stream::once(async {
                tokio::time::sleep(2 * FIRST).await;
                Ok(2)
            });
            Ok::<Answers<u8>, _>(stream::iter([Ok(1)]).chain(rest).boxed())
        };
        assert_eq!(said(slow.boxed()).await, Ok(vec![1, 2]));
        let refused = async { Ok::<Answers<u8>, _>(stream::iter([Err(Status::not_found("none"))]).boxed()) };
        assert_eq!(said(refused.boxed()).await, Err("none".to_owned()));
    }

    #[test]
    fn what_nobody_has_is_not_asked_for_again() {
        let worker = WorkerId::new("worker-1").expect("an id");
        let wanted = Wanted { id: evenkeel_model::TaskId(7), worker, attempt: 1, is_err: false, lines: 0, written: None };
        let cases = [
            (Status::failed_precondition("worker-1 is not registered"), true, Code::FailedPrecondition),
            (Status::not_found("there is none"), true, Code::FailedPrecondition),
            (Status::failed_precondition("worker-1 is not registered"), false, Code::Unavailable),
            (Status::unavailable("it does not answer"), true, Code::Unavailable),
        ];
        for (asked, has_etcd_answered, expected) in cases {
            let said = neither(&wanted, &asked, has_etcd_answered, &"it keeps none of it");
            assert_eq!(said.code(), expected, "{asked} {has_etcd_answered}");
            let why = asked.message();
            let text = format!("the output of task 7 on worker-1 cannot be read: {why}, and etcd has no end of it: it keeps none of it");
            assert_eq!(said.message(), text);
        }
    }

    #[test]
    fn the_last_lines_are_whole() {
        for (text, lines, expected) in
            [("a\nb\nc\n", 2, "b\nc\n"), ("a\nb\nc", 1, "c"), ("a\n", 5, "a\n"), ("", 1, ""), ("a\nb", 0, "a\nb"), ("a\n\n", 1, "\n")]
        {
            assert_eq!(last_lines(text.as_bytes(), lines), expected.as_bytes(), "{text:?} {lines}");
        }
    }
}

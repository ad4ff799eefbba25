//! What a script wrote: fetched from its worker, and where that cannot be asked, the tail of it that etcd keeps. Under api::tasks. The worker's address
//! is judged as for the output of resources.

use evenkeel_model::{
    Key, Stored, TaskTail, WorkerId,
    task::{HostState, TaskHost},
};
use evenkeel_proto::v1::{self, worker_client::WorkerClient};
use futures::{StreamExt, stream};
use tonic::Status;

use super::{shown, task_id};
use crate::{
    api::{
        logs,
        room::with_place,
        service::{Answers, Service, worker_id},
    },
    control::request::Refusal,
};

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
        None => Err(Status::unavailable(format!("{} is not registered", wanted.worker))),
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
    let chunks =
        WorkerClient::new(channel).task_output(ask).await.map_err(|status| logs::breaks_off(worker.as_str(), status))?.into_inner();
    let worker = worker.clone();
    let pass_on = |part: v1::TaskOutputResponse| v1::ReadTaskOutputResponse { chunk: part.chunk, note: part.note };
    Ok(chunks.map(move |part| part.map(pass_on).map_err(|status| logs::breaks_off(worker.as_str(), status))).boxed())
}

/// The end of it, as etcd has it.
async fn from_etcd(service: &Service, wanted: &Wanted, asked: &Status) -> Result<Answers<v1::ReadTaskOutputResponse>, Status> {
    let Wanted { id, worker, attempt, is_err, lines, written } = wanted;
    let why = asked.message();
    let neither = |why_not: &dyn std::fmt::Display| {
        Status::unavailable(format!("the output of task {id} on {worker} cannot be read: {why}, and etcd has no end of it: {why_not}"))
    };
    let read = service.store.get(&Key::TaskTail(worker.clone(), *id)).await.map_err(|error| neither(&error))?;
    let Some(kv) = read else {
        return Err(neither(if written.is_some() { &"it keeps none of it" } else { &"the script has not ended" }));
    };
    let read = TaskTail::read(&(worker.clone(), *id), &kv.value);
    let Some(tail) = read.value else { return Err(neither(&read.error.unwrap_or_default())) };
    if tail.attempt != *attempt {
        return Err(neither(&format_args!("what it keeps is of attempt {}", tail.attempt)));
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
    use super::*;

    #[test]
    fn the_last_lines_are_whole() {
        for (text, lines, expected) in
            [("a\nb\nc\n", 2, "b\nc\n"), ("a\nb\nc", 1, "c"), ("a\n", 5, "a\n"), ("", 1, ""), ("a\nb", 0, "a\nb"), ("a\n\n", 1, "\n")]
        {
            assert_eq!(last_lines(text.as_bytes(), lines), expected.as_bytes(), "{text:?} {lines}");
        }
    }
}

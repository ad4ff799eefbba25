//! The service `evenkeel.v1.Worker`: what runs here, and its output.
//!
//! The wheel: under worker::server.

use std::time::Duration;

use evenkeel_model::{Epoch, ResourceName, TaskId, WorkerId, shown::shown};
use evenkeel_proto::v1::{
    ListRunningRequest, ListRunningResponse, LogsRequest, LogsResponse, Running, TaskOutputRequest, TaskOutputResponse,
    worker_server::Worker,
};
use tokio::{sync::mpsc, time::sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{
    agent::board::Shown,
    driver::{
        LogSource,
        log::{DiskError, From, Reader},
    },
    server,
    task::Stream,
    usage::{Usage, Used},
};

/// How often a log that is followed is looked at.
const FOLLOW_PERIOD: Duration = Duration::from_millis(200);
/// One message of the output of a script.
const CHUNK: usize = 64 << 10;

/// What serves.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub(super) served: server::Served,
    pub(super) usage: Usage,
}

type Chunks = mpsc::Sender<Result<LogsResponse, Status>>;

#[tonic::async_trait]
impl Worker for Service {
    async fn list_running(&self, request: Request<ListRunningRequest>) -> Result<Response<ListRunningResponse>, Status> {
        let ListRunningRequest { name, only_totals } = request.into_inner();
        let read = self.usage.read().await;
        let reading = read.as_deref().ok();
        let is_asked_for = |row: &(ResourceName, Shown)| !only_totals && (name.is_empty() || row.0.as_str() == name);
        let used = |name: &ResourceName| reading.and_then(|reading| reading.runs.get(name)).copied();
        let rows = self.served.board.all().into_iter().filter(is_asked_for);
        let running = rows.map(|(name, shown)| running(&name, shown, used(&name))).collect();
        let total = reading.map(|reading| reading.total);
        Ok(Response::new(ListRunningResponse {
            worker: self.served.board.worker.to_string(),
            running,
            cpu_ns: total.map(|total| nanos(total.cpu)),
            memory_bytes: total.map(|total| total.memory),
            processes: total.map(|total| total.processes),
            unmeasured: read.err().map(|error| error.to_string()).unwrap_or_default(),
        }))
    }

    type TaskOutputStream = ReceiverStream<Result<TaskOutputResponse, Status>>;

    async fn task_output(&self, request: Request<TaskOutputRequest>) -> Result<Response<Self::TaskOutputStream>, Status> {
        let TaskOutputRequest { id, attempt, stream, tail } = request.into_inner();
        let stream = match stream.as_str() {
            "" | "stdout" => Stream::Out,
            "stderr" => Stream::Err,
            _ => return Err(Status::invalid_argument(format!("stream: unknown stream {}; use one of stdout, stderr", shown(&stream)))),
        };
        let lines = (tail > 0).then(|| usize::try_from(tail).unwrap_or(usize::MAX));
        let read = self.served.outputs.read(TaskId(id), attempt, stream, lines).await;
        let text = read.map_err(|error| Status::internal(format!("the output of task {id} cannot be read: {error}")))?;
        let worker = &self.served.board.worker;
        let text = text.ok_or_else(|| Status::not_found(format!("worker {worker} keeps no output of task {id}")))?;
        let (chunks, answer) = mpsc::channel(4);
        tokio::spawn(async move {
            for chunk in text.chunks(CHUNK) {
                // It ends when the caller has gone.
                if chunks.send(Ok(TaskOutputResponse { chunk: chunk.to_vec(), note: String::new() })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answer)))
    }

    type LogsStream = ReceiverStream<Result<LogsResponse, Status>>;

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let request = request.into_inner();
        let name =
            ResourceName::new(&request.name).map_err(|error| Status::invalid_argument(format!("name: {:?} {error}", request.name)))?;
        let from = self.begin(&request)?;
        // Asked first: what a run writes before it ends is found then.
        let kind = self.served.board.kind(&name);
        let runs = kind.is_some();
        if let Some(LogSource::Elsewhere(why)) = kind.and_then(|kind| Some(self.served.registry.get(&kind)?.logs())) {
            return Err(Status::failed_precondition(format!("worker {} keeps no output of {name}: {why}", self.served.board.worker)));
        }
        let reader = self.served.logs.read(&name, from).await.map_err(unreadable)?;
        let note = if reader.has_file() {
            None
        } else if !runs {
            return Err(Status::not_found(format!("worker {} keeps no output of {name} and does not run it", self.served.board.worker)));
        } else if !request.follow {
            return Err(Status::not_found(format!(
                "{name} has written nothing on {} yet; --follow waits for it",
                self.served.board.worker
            )));
        } else {
            Some(format!("{name} has written nothing on {} yet", self.served.board.worker))
        };
        let (chunks, stream) = mpsc::channel(4);
        let service = self.clone();
        tokio::spawn(async move {
            if let Some(note) = note
                && chunks.send(Ok(LogsResponse { note, ..LogsResponse::default() })).await.is_err()
            {
                return;
            }
            // It ends when the caller has gone.
            let _ = service.send(&name, reader, request.follow, &chunks).await;
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// The caller has gone, or was told of an error.
struct Gone;

impl Service {
    /// Where the answer begins.
    fn begin(&self, request: &LogsRequest) -> Result<From, Status> {
        if let Some((worker, position)) = request.position.split_once('/') {
            let position = position.parse().ok().filter(|_| WorkerId::new(worker).is_ok());
            let unknown =
                || Status::invalid_argument(format!("position: unknown position {}; give back one of an answer", shown(&request.position)));
            let position = position.ok_or_else(unknown)?;
            if worker == self.served.board.worker.as_str() {
                return Ok(From::Position(position));
            }
        } else if !request.position.is_empty() {
            return Err(Status::invalid_argument(format!(
                "position: unknown position {}; give back one of an answer",
                shown(&request.position)
            )));
        }
        Ok(match (request.since_epoch, request.tail) {
            (epoch, _) if epoch != 0 => From::Epoch(Epoch(epoch)),
            (_, 0) => From::Start,
            (_, lines) => From::Tail(usize::try_from(lines).unwrap_or(usize::MAX)),
        })
    }

    /// Sends what there is; then, if it is followed, what comes, until the resource does not run here any more or the caller has gone.
    async fn send(&self, name: &ResourceName, mut reader: Reader, follow: bool, chunks: &Chunks) -> Result<(), Gone> {
        loop {
            // Asked before the last look: what a run wrote before it ended is sent.
            let runs = self.served.board.has(name);
            let chunk = match self.served.logs.more(reader).await {
                Ok((next, chunk)) => {
                    reader = next;
                    chunk
                }
                Err(error) => {
                    let _ = chunks.send(Err(unreadable(error))).await;
                    return Err(Gone);
                }
            };
            if !chunk.is_empty() {
                let position = reader.position().map(|at| format!("{}/{at}", self.served.board.worker)).unwrap_or_default();
                chunks.send(Ok(LogsResponse { chunk, position, note: String::new() })).await.map_err(|_| Gone)?;
                continue;
            }
            if !follow || !runs {
                return Ok(());
            }
            tokio::select! {
                () = sleep(FOLLOW_PERIOD) => {}
                () = chunks.closed() => return Err(Gone),
            }
        }
    }
}

fn unreadable(error: DiskError) -> Status {
    match error {
        DiskError::Place(error) => Status::internal(format!("the log cannot be read: {error}")),
        DiskError::Silent | DiskError::Busy => Status::unavailable(error.to_string()),
    }
}

/// Nanoseconds; those of 500 years fit.
fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

fn running(name: &ResourceName, shown: Shown, used: Option<Used>) -> Running {
    Running {
        name: name.to_string(),
        kind: shown.kind,
        epoch: shown.status.epoch.0,
        hash: shown.hash.to_string(),
        phase: shown.status.phase.as_str().to_owned(),
        pid: shown.pid,
        since: shown.status.since,
        restarts: shown.status.restarts,
        failures: shown.status.failures,
        message: shown.status.message,
        cpu_ns: used.map(|used| nanos(used.cpu)),
        memory_bytes: used.map(|used| used.memory),
        processes: used.map(|used| used.processes),
    }
}

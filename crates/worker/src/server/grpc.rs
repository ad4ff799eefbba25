//! The service `evenkeel.v1.Worker`: what runs here, and its output.
//!
//! The wheel: under worker::server.

use std::{io, sync::Arc, time::Duration};

use evenkeel_model::ResourceName;
use evenkeel_proto::v1::{ListRunningRequest, ListRunningResponse, LogsRequest, LogsResponse, Running, worker_server::Worker};
use tokio::{sync::mpsc, task::spawn_blocking, time::sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{
    agent::board::{Board, Shown},
    driver::process::log::{Follower, Logs, tail},
};

/// One message of output.
const CHUNK: usize = 64 * 1024;
/// How often a log that is followed is looked at.
const FOLLOW_PERIOD: Duration = Duration::from_millis(200);

/// What serves.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub(super) board: Arc<Board>,
    pub(super) logs: Logs,
}

type Chunks = mpsc::Sender<Result<LogsResponse, Status>>;

#[tonic::async_trait]
impl Worker for Service {
    async fn list_running(&self, _: Request<ListRunningRequest>) -> Result<Response<ListRunningResponse>, Status> {
        let running = self.board.all().into_iter().map(|(name, shown)| running(&name, shown)).collect();
        Ok(Response::new(ListRunningResponse { worker: self.board.worker.to_string(), running }))
    }

    type LogsStream = ReceiverStream<Result<LogsResponse, Status>>;

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let LogsRequest { name, follow, tail: lines } = request.into_inner();
        let name = ResourceName::new(&name).map_err(|error| Status::invalid_argument(format!("name: {name:?} {error}")))?;
        let (logs, read) = (self.logs.clone(), name.clone());
        let kept = blocking(move || logs.read(&read)).await?;
        if kept.is_none() && !self.board.has(&name) {
            return Err(Status::not_found(format!("worker {} keeps no output of {name} and does not run it", self.board.worker)));
        }
        let (chunks, stream) = mpsc::channel(4);
        let service = self.clone();
        tokio::spawn(async move {
            // It ends when the caller has gone.
            let _ = service.send(&name, kept, usize::try_from(lines).unwrap_or(usize::MAX), follow, &chunks).await;
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// The caller has gone, or was told of an error.
struct Gone;

impl Service {
    async fn send(
        &self,
        name: &ResourceName,
        kept: Option<(Vec<u8>, Follower)>,
        lines: usize,
        follow: bool,
        chunks: &Chunks,
    ) -> Result<(), Gone> {
        let mut follower = None;
        if let Some((bytes, at_end)) = kept {
            send_bytes(tail(&bytes, lines), chunks).await?;
            follower = Some(at_end);
        }
        if follow { self.follow(name, follower, chunks).await } else { Ok(()) }
    }

    /// Sends what comes, until the resource does not run here any more or the caller has gone.
    async fn follow(&self, name: &ResourceName, mut follower: Option<Follower>, chunks: &Chunks) -> Result<(), Gone> {
        loop {
            // Asked before the last look: what a run wrote before it ended is sent.
            let runs = self.board.has(name);
            let bytes = match follower.take() {
                Some(mut reader) => {
                    let (reader, bytes) = told(chunks, blocking(move || reader.more().map(|bytes| (reader, bytes))).await).await?;
                    follower = Some(reader);
                    bytes
                }
                None => {
                    let (logs, name) = (self.logs.clone(), name.clone());
                    match told(chunks, blocking(move || logs.read(&name)).await).await? {
                        Some((bytes, reader)) => {
                            follower = Some(reader);
                            bytes
                        }
                        None => Vec::new(),
                    }
                }
            };
            send_bytes(&bytes, chunks).await?;
            if bytes.is_empty() {
                if !runs {
                    return Ok(());
                }
                tokio::select! {
                    () = sleep(FOLLOW_PERIOD) => {}
                    () = chunks.closed() => return Err(Gone),
                }
            }
        }
    }
}

async fn send_bytes(bytes: &[u8], chunks: &Chunks) -> Result<(), Gone> {
    for chunk in bytes.chunks(CHUNK) {
        chunks.send(Ok(LogsResponse { chunk: chunk.to_vec() })).await.map_err(|_| Gone)?;
    }
    Ok(())
}

async fn told<T>(chunks: &Chunks, result: Result<T, Status>) -> Result<T, Gone> {
    match result {
        Ok(value) => Ok(value),
        Err(status) => {
            let _ = chunks.send(Err(status)).await;
            Err(Gone)
        }
    }
}

/// Reads from the disk on a thread that may wait for it.
async fn blocking<T: Send + 'static>(read: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, Status> {
    let result = spawn_blocking(read).await.map_err(|error| Status::internal(error.to_string()))?;
    result.map_err(|error| Status::internal(format!("the log cannot be read: {error}")))
}

fn running(name: &ResourceName, shown: Shown) -> Running {
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
    }
}

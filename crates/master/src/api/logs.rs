//! Output of a resource, fetched from the worker that runs it and passed on as it comes.

use std::time::Duration;

use evenkeel_proto::v1::{self, worker_client::WorkerClient};
use futures::StreamExt;
use tonic::{Response, Status, transport::Endpoint};

use super::{forward::innermost, service::Answers};

const CONNECT: Duration = Duration::from_secs(3);

/// Opens the worker's stream. A worker that cannot be reached is named with its address.
pub(super) async fn read(
    state: &v1::ResourceState,
    request: v1::ReadLogsRequest,
) -> Result<Response<Answers<v1::ReadLogsResponse>>, Status> {
    let (worker, address) = (&state.worker, &state.address);
    let unreachable = |why: String| Status::unavailable(format!("{worker} at {address} cannot be asked for its output: {why}"));
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| unreachable(e.to_string()))?;
    let channel = endpoint.connect_timeout(CONNECT).connect().await.map_err(|e| unreachable(innermost(&e)))?;
    let ask = v1::LogsRequest { name: request.name, follow: request.follow, tail: request.tail };
    let chunks = WorkerClient::new(channel).logs(ask).await?.into_inner();
    Ok(Response::new(chunks.map(|chunk| chunk.map(|c| v1::ReadLogsResponse { chunk: c.chunk })).boxed()))
}

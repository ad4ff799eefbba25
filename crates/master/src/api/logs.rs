//! Output of a resource, fetched from the worker that runs it and passed on as it comes.
//!
//! Beside the wheel. The worker's address is its own word: a master is not to be sent to its own machine, or to what only machines of its
//! network reach, by anybody who registers as a worker.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use evenkeel_net::is_loopback;
use evenkeel_proto::v1::{self, worker_client::WorkerClient};
use futures::StreamExt;
use tokio::{net::lookup_host, time::timeout};
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint},
};

use super::{forward::innermost, service::Answers};
use crate::config::MasterConfig;

const CONNECT: Duration = Duration::from_secs(3);
/// Where clouds hand out a machine's credentials, beside the link-local addresses (AWS, Google, Alibaba, Oracle).
const METADATA: [&str; 4] = ["fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "192.0.0.192"];

/// Opens the worker's stream. A worker that cannot be reached is named with its address.
pub(super) async fn read(
    state: &v1::ResourceState,
    request: v1::ReadLogsRequest,
    config: &MasterConfig,
) -> Result<Response<Answers<v1::ReadLogsResponse>>, Status> {
    if state.address.is_empty() {
        return Err(unregistered(&request.name, state));
    }
    let channel = connect(&state.worker, &state.address, is_local(config), "its output").await?;
    let v1::ReadLogsRequest { name, follow, tail, position, since_epoch } = request;
    let ask = v1::LogsRequest { name, follow, tail, position, since_epoch };
    let worker = state.worker.clone();
    let broken = move |status| breaks_off(&worker, status);
    let chunks = WorkerClient::new(channel).logs(ask).await.map_err(&broken)?.into_inner();
    let pass_on = |part: v1::LogsResponse| v1::ReadLogsResponse { chunk: part.chunk, position: part.position, note: part.note };
    Ok(Response::new(chunks.map(move |part| part.map(pass_on).map_err(&broken)).boxed()))
}

/// What is said where nobody knows how to reach the worker.
fn unregistered(name: &str, state: &v1::ResourceState) -> Status {
    let worker = &state.worker;
    if state.epoch == 0 {
        return Status::failed_precondition(format!(
            "{name} ran last on {worker}, which is not registered; its output is in that worker's --data-dir"
        ));
    }
    Status::unavailable(format!("{name} is on {worker}, which is not registered now"))
}

/// What a worker said, or that it says nothing more.
pub(super) fn breaks_off(worker: &str, status: Status) -> Status {
    if std::error::Error::source(&status).is_none() {
        return status;
    }
    Status::unavailable(format!("the connection to {worker} broke"))
}

/// Whether this master serves its own machine only: then its workers are there, too.
pub(super) fn is_local(config: &MasterConfig) -> bool {
    config.grpc_listen.ip().is_loopback() || is_loopback(&config.grpc_host)
}

/// A connection to a worker, to ask it for `what`.
pub(super) async fn connect(worker: &str, address: &str, is_local: bool, what: &str) -> Result<Channel, Status> {
    let unreachable = |why: String| Status::unavailable(format!("{worker} at {address} cannot be asked for {what}: {why}"));
    let found = timeout(CONNECT, lookup_host(address)).await.map_err(|_| unreachable("its name is not resolved in time".to_owned()))?;
    // What was judged is what is dialled: a name could mean something else the next time.
    let mut last = unreachable("its name has no address".to_owned());
    for found in found.map_err(|e| unreachable(e.to_string()))? {
        if let Some(kind) = forbidden(found.ip(), is_local) {
            last = Status::failed_precondition(format!(
                "{worker} at {address} is not asked for {what}: {} is {kind}; start the worker with --advertise HOST, by which masters reach it",
                found.ip()
            ));
            continue;
        }
        match dial(found).await {
            Ok(channel) => return Ok(channel),
            Err(error) => last = unreachable(innermost(&error)),
        }
    }
    Err(last)
}

async fn dial(address: SocketAddr) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_shared(format!("http://{address}"))?.connect_timeout(CONNECT).connect().await
}

/// What kind of address it is, if a master must not go there.
fn forbidden(address: IpAddr, is_local: bool) -> Option<&'static str> {
    let address = address.to_canonical();
    let is_link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    // To the unspecified address systems connect as to the loopback.
    let is_own = address.is_loopback() || address.is_unspecified();
    if is_link_local || METADATA.iter().any(|metadata| metadata.parse() == Ok(address)) {
        Some("a link-local or metadata address")
    } else if is_own && !is_local {
        Some("a loopback address, and this master is not on the loopback")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_worker_sends_a_master_to_its_own_machine_or_to_its_cloud() {
        // an address; whether a master elsewhere goes there, and one on the loopback
        let cases = [
            ("10.0.0.5", true, true),
            ("fd00::5", true, true),
            ("127.0.0.1", false, true),
            ("127.8.8.8", false, true),
            ("::1", false, true),
            ("::ffff:127.0.0.1", false, true),
            ("0.0.0.0", false, true),
            ("::", false, true),
            ("169.254.169.254", false, false),
            ("::ffff:169.254.169.254", false, false),
            ("169.254.7.7", false, false),
            ("fe80::1", false, false),
            ("fd00:ec2::254", false, false),
            ("100.100.100.200", false, false),
            ("224.0.0.1", false, false),
        ];
        for (address, elsewhere, local) in cases {
            let found = [false, true].map(|is_local| forbidden(address.parse().expect(address), is_local).is_none());
            assert_eq!(found, [elsewhere, local], "{address}");
        }
    }

    #[tokio::test]
    async fn a_worker_that_is_not_registered_is_not_looked_for() {
        let config = MasterConfig::new(evenkeel_model::MasterId::new("1").expect("an id"), Vec::new());
        let said = async |epoch| {
            let state = v1::ResourceState { worker: "worker-7".to_owned(), epoch, ..v1::ResourceState::default() };
            let request = v1::ReadLogsRequest { name: "fin".to_owned(), ..v1::ReadLogsRequest::default() };
            read(&state, request, &config).await.err().map(|status| (status.code(), status.message().to_owned()))
        };
        let last = "fin ran last on worker-7, which is not registered; its output is in that worker's --data-dir";
        assert_eq!(said(0).await, Some((tonic::Code::FailedPrecondition, last.to_owned())));
        assert_eq!(said(5).await, Some((tonic::Code::Unavailable, "fin is on worker-7, which is not registered now".to_owned())));
    }

    #[test]
    fn that_a_connection_broke_is_said_of_the_worker() {
        let broken = Status::from_error(Box::new(std::io::Error::other("error reading a body from connection")));
        assert_eq!(breaks_off("worker-6", broken).message(), "the connection to worker-6 broke");
        assert_eq!(breaks_off("worker-6", Status::not_found("none")).message(), "none");
    }

    #[tokio::test]
    async fn a_name_is_judged_by_its_addresses() {
        let refused = connect("worker-1", "localhost:1", false, "its output").await.expect_err("loopback");
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
        assert!(refused.message().starts_with("worker-1 at localhost:1 is not asked for its output: "), "{}", refused.message());
        assert!(refused.message().ends_with("--advertise HOST, by which masters reach it"), "{}", refused.message());
        let unreachable = connect("worker-1", "localhost:1", true, "its output").await.expect_err("nobody listens");
        assert_eq!(unreachable.code(), tonic::Code::Unavailable);
    }
}

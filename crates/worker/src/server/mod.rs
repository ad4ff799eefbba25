//! The worker's two servers: gRPC for masters and people, HTTP for probes and metrics.
//!
//! The wheel: beside it. They show what worker::agent has put on its board, what worker::usage reads, and the output of work where the driver of its
//! kind says that it is. Nothing here starts or stops work.

mod grpc;
mod http;

use std::{io, net::SocketAddr, sync::Arc};

use evenkeel_model::limits::MAX_QUESTION;
use evenkeel_net::{Front, Keeper, Limits, Names, OpenEnded, Ports, descriptors};
use evenkeel_proto::{DESCRIPTORS, v1::worker_server::WorkerServer};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tonic::service::Routes;

use crate::{
    agent::board::Board,
    config::WorkerError,
    driver::{Registry, log::Logs},
    task::Outputs,
    usage::Usage,
};

/// The two ports, taken before anything is registered.
pub(crate) struct Listeners {
    grpc: TcpListener,
    http: TcpListener,
    /// The real port of the gRPC server.
    pub(crate) grpc_port: u16,
    /// The real port of the HTTP server.
    pub(crate) http_port: u16,
}

impl Listeners {
    pub(crate) fn bind(grpc: SocketAddr, http: SocketAddr) -> Result<Self, WorkerError> {
        let (grpc, grpc_port) = bind("--grpc", grpc)?;
        let (http, http_port) = bind("--http", http)?;
        Ok(Self { grpc, http, grpc_port, http_port })
    }
}

fn bind(flag: &'static str, address: SocketAddr) -> Result<(TcpListener, u16), WorkerError> {
    let error = |source: io::Error| WorkerError::Listen { flag, address, source };
    let listener = evenkeel_net::bind(address).map_err(error)?;
    let port = listener.local_addr().map_err(error)?.port();
    Ok((listener, port))
}

/// What is served.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    pub(crate) board: Arc<Board>,
    pub(crate) logs: Logs,
    /// The output of scripts of tasks.
    pub(crate) outputs: Outputs,
    /// Each driver knows where the output of its kind is.
    pub(crate) registry: Registry,
}

/// Serves until what is returned is dropped.
pub(crate) fn serve(listeners: Listeners, names: Names, ports: Ports, served: Served, version: &str) -> JoinSet<()> {
    // Most files are for the work. No call of a worker streams its requests.
    let keeper = Keeper::new(Limits::default().within(descriptors(), 4));
    let front = Front { keeper, ports, names, open_ended: OpenEnded::of([]) };
    let board = Arc::clone(&served.board);
    let usage = Usage::new(move || board.roots());
    let web = http::routes(Arc::clone(&served.board), usage.clone(), version);
    let worker = grpc::Service { served, usage };
    let mut servers = JoinSet::new();
    servers.spawn(async move {
        match grpc_routes(worker).await {
            // Nobody tells it to stop but who drops it.
            Ok(calls) => {
                let (_stop, stopped) = watch::channel(false);
                front.serve((listeners.grpc, calls), (listeners.http, web), stopped).await;
            }
            Err(error) => tracing::error!(%error, "the servers cannot start"),
        }
    });
    servers
}

async fn grpc_routes(worker: grpc::Service) -> Result<Routes, tonic_reflection::server::Error> {
    let (health_reporter, health) = tonic_health::server::health_reporter();
    health_reporter.set_serving::<WorkerServer<grpc::Service>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("evenkeel.v1.Worker")
            .with_service_name("grpc.health.v1.Health")
    };
    let mut routes = Routes::builder();
    routes
        .add_service(health.max_decoding_message_size(MAX_QUESTION))
        .add_service(reflection().build_v1()?.max_decoding_message_size(MAX_QUESTION))
        .add_service(reflection().build_v1alpha()?.max_decoding_message_size(MAX_QUESTION))
        .add_service(WorkerServer::new(worker).max_decoding_message_size(MAX_QUESTION));
    Ok(routes.routes().prepare())
}

//! The worker's two servers: gRPC for masters and people, HTTP for probes and metrics.
//!
//! The wheel: beside it. They show what worker::agent has put on its board, and what is in the logs. Nothing here starts or stops work.

mod grpc;
mod http;

use std::{io, net::SocketAddr, sync::Arc};

use evenkeel_proto::{DESCRIPTORS, v1::worker_server::WorkerServer};
use tokio::{net::TcpListener, task::JoinSet};
use tonic::transport::{Server, server::TcpIncoming};

use crate::{agent::board::Board, config::WorkerError, driver::process::log::Logs};

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
    pub(crate) async fn bind(grpc: SocketAddr, http: SocketAddr) -> Result<Self, WorkerError> {
        let (grpc, grpc_port) = bind("--grpc", grpc).await?;
        let (http, http_port) = bind("--http", http).await?;
        Ok(Self { grpc, http, grpc_port, http_port })
    }
}

async fn bind(flag: &'static str, address: SocketAddr) -> Result<(TcpListener, u16), WorkerError> {
    let error = |source: io::Error| WorkerError::Listen { flag, address, source };
    let listener = TcpListener::bind(address).await.map_err(error)?;
    let port = listener.local_addr().map_err(error)?.port();
    Ok((listener, port))
}

/// Serves until what is returned is dropped.
pub(crate) fn serve(listeners: Listeners, board: &Arc<Board>, logs: &Logs, version: &str) -> JoinSet<()> {
    let mut servers = JoinSet::new();
    let worker = grpc::Service { board: Arc::clone(board), logs: logs.clone() };
    servers.spawn(async move {
        if let Err(error) = serve_grpc(listeners.grpc, worker).await {
            tracing::error!(error, "the gRPC server has ended");
        }
    });
    let routes = http::routes(Arc::clone(board), version);
    servers.spawn(async move {
        if let Err(error) = axum::serve(listeners.http, routes).await {
            tracing::error!(%error, "the HTTP server has ended");
        }
    });
    servers
}

async fn serve_grpc(listener: TcpListener, worker: grpc::Service) -> Result<(), String> {
    let (health_reporter, health) = tonic_health::server::health_reporter();
    health_reporter.set_serving::<WorkerServer<grpc::Service>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("evenkeel.v1.Worker")
            .with_service_name("grpc.health.v1.Health")
    };
    Server::builder()
        .add_service(health)
        .add_service(reflection().build_v1().map_err(|e| e.to_string())?)
        .add_service(reflection().build_v1alpha().map_err(|e| e.to_string())?)
        .add_service(WorkerServer::new(worker))
        .serve_with_incoming(TcpIncoming::from(listener))
        .await
        .map_err(|e| e.to_string())
}

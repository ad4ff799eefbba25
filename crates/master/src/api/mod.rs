//! How people and programs reach a master: gRPC with health and reflection on one port; JSON over HTTP, liveness, readiness and metrics
//! on the other. It only changes desired state, through the control loop, as anything else does.

mod convert;
mod crawler;
mod explain;
mod forward;
pub mod fuzzing;
mod lists;
mod logs;
mod measured;
mod plan;
pub(crate) mod room;
mod routes;
pub(crate) mod service;
mod sources;
mod states;
mod transcode;
mod watch;

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use evenkeel_model::limits::MAX_MESSAGE;
use evenkeel_proto::{crawler::crawler_master_server::CrawlerMasterServer, v1::master_server::MasterServer};
use prost_reflect::DescriptorPool;
use tokio::{net::TcpListener, sync::watch as signal};
use tonic::{
    service::Routes,
    transport::{Server, server::TcpIncoming},
};
use tower::{Layer, util::BoxCloneSyncService};

use self::{forward::ForwardLayer, measured::MeasuredLayer, service::Service, transcode::Transcoder};
use crate::{
    config::MasterError,
    known::{Leadership, Shared},
};

/// What reflection tells of.
const SERVED: [&str; 3] = ["CrawlerMaster", "evenkeel.v1.Master", "grpc.health.v1.Health"];

/// Serves until `stop` becomes true, then ends in order.
pub(crate) async fn serve(service: Service, grpc: TcpListener, http: TcpListener, stop: signal::Receiver<bool>) -> Result<(), MasterError> {
    let failed = |what: &'static str| move |e: Box<dyn std::error::Error + Send + Sync>| MasterError::Server(what, e.to_string());
    let shared = service.engine.shared.clone();
    let forward = ForwardLayer::new(shared.clone(), service.config.id.as_str());
    let routes = grpc_routes(&service).map_err(|e| failed("gRPC")(e.into()))?;
    let pool = DescriptorPool::decode(evenkeel_proto::DESCRIPTORS).map_err(|e| failed("HTTP")(e.into()))?;
    let measured = MeasuredLayer::new(shared.measures.clone(), &pool);
    let transcoder = Transcoder::new(&pool, BoxCloneSyncService::new(measured.layer(forward.layer(routes.clone()))));
    let server = Server::builder().layer(measured).layer(forward).add_routes(routes);
    let grpc = server.serve_with_incoming_shutdown(TcpIncoming::from(grpc).with_nodelay(Some(true)), until(stop.clone()));
    let http = axum::serve(http, http_router(shared, &service.config.version, transcoder)).with_graceful_shutdown(until(stop));
    let (grpc, http) = tokio::join!(grpc, http);
    grpc.map_err(|e| failed("gRPC")(e.into()))?;
    http.map_err(|e| failed("HTTP")(e.into()))
}

async fn until(mut stop: signal::Receiver<bool>) {
    // A sender that is gone means the same.
    let _ = stop.wait_for(|stopped| *stopped).await;
}

fn grpc_routes(service: &Service) -> Result<Routes, tonic_reflection::server::Error> {
    // The descriptors hold the worker's service too, which is not served here.
    let reflection = || {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(evenkeel_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        SERVED.iter().fold(builder, |builder, name| builder.with_service_name(*name))
    };
    let (health, health_service) = tonic_health::server::health_reporter();
    let mut routes = Routes::builder();
    routes
        .add_service(MasterServer::new(service.clone()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(CrawlerMasterServer::new(service.clone()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(health_service)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?);
    tokio::spawn(report_health(service.engine.shared.clone(), health));
    Ok(routes.routes())
}

/// Health follows readiness: a master serves when somebody leads, be it another.
async fn report_health(shared: Arc<Shared>, health: tonic_health::server::HealthReporter) {
    let mut leadership = shared.leadership.subscribe();
    loop {
        let status = match *leadership.borrow_and_update() {
            Leadership::Nobody => tonic_health::ServingStatus::NotServing,
            Leadership::Mine | Leadership::Other { .. } => tonic_health::ServingStatus::Serving,
        };
        for service in ["", "evenkeel.v1.Master", "CrawlerMaster"] {
            health.set_service_status(service, status).await;
        }
        if leadership.changed().await.is_err() {
            return;
        }
    }
}

fn http_router(shared: Arc<Shared>, version: &str, transcoder: Transcoder) -> Router {
    let registry = Arc::new(shared.measures.registry(version, shared.clone()));
    let page = async move || ([(CONTENT_TYPE, evenkeel_metrics::CONTENT_TYPE)], evenkeel_metrics::page(&registry));
    Router::new()
        .route("/healthz", get(liveness))
        .route("/readyz", get(readiness))
        .route("/metrics", get(page))
        .with_state(shared)
        .fallback(move |request| transcoder.clone().answer(request))
}

/// Alive: the control loop turns. It does so without etcd, too.
async fn liveness(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    match shared.hangs_for() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(span) => (StatusCode::SERVICE_UNAVAILABLE, format!("the control loop has not turned for {} s\n", span.as_secs())),
    }
}

/// Ready: the cluster's state has been read, and somebody leads.
async fn readiness(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    if !shared.read().is_synced {
        return (StatusCode::SERVICE_UNAVAILABLE, "not ready: the state of the cluster has not been read from etcd yet\n".to_owned());
    }
    match &*shared.leadership.borrow() {
        Leadership::Nobody => (StatusCode::SERVICE_UNAVAILABLE, "not ready: no master leads at the moment\n".to_owned()),
        Leadership::Mine => (StatusCode::OK, "ready: this master leads\n".to_owned()),
        Leadership::Other { id, address } => (StatusCode::OK, format!("ready: {id} at {address} leads\n")),
    }
}

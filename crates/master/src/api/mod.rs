//! How people and programs reach a master: gRPC with health and reflection on one port; JSON over HTTP, liveness, readiness and metrics
//! on the other. It only changes desired state, through the control loop, as anything else does.

mod convert;
mod crawler;
#[cfg(test)]
mod door_tests;
mod explain;
mod forward;
#[cfg(test)]
mod forward_tests;
pub mod fuzzing;
mod lanes;
mod lists;
mod logs;
mod measured;
mod plan;
pub(crate) mod room;
mod routes;
pub(crate) mod service;
mod sources;
mod states;
mod tasks;
mod transcode;
mod usage;
mod watch;

pub use forward::NO_EFFECT;

use std::sync::{Arc, Weak};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use evenkeel_model::limits::{MAX_MESSAGE, MAX_QUESTION};
use evenkeel_net::{Front, Keeper, Limits, OpenEnded, Ports, descriptors};
use evenkeel_proto::{crawler::crawler_master_server::CrawlerMasterServer, v1::master_server::MasterServer};
use prost_reflect::{DescriptorPool, MethodDescriptor};
use tokio::{net::TcpListener, sync::watch as signal};
use tonic::service::Routes;
use tonic_health::server::HealthReporter;
use tower::{Layer, util::BoxCloneSyncService};

use self::{
    forward::{Forward, ForwardLayer, Kinds},
    measured::{Measured, MeasuredLayer},
    routes::Routes as HttpRoutes,
    service::Service,
    transcode::{Grpc, Transcoder},
};
use crate::{
    config::MasterError,
    state::{Leadership, Shared},
};

/// What reflection tells of.
const SERVED: [&str; 3] = ["CrawlerMaster", "evenkeel.v1.Master", "grpc.health.v1.Health"];

/// Serves until `stop` becomes true, then ends in order.
pub(crate) async fn serve(
    service: Service,
    ports: Ports,
    grpc: TcpListener,
    http: TcpListener,
    stop: signal::Receiver<bool>,
) -> Result<(), MasterError> {
    let (config, shared) = (service.config.clone(), service.engine.shared.clone());
    let Services { grpc: calls, http: web, streaming } = services(service).await?;
    let front = Front {
        // Half of the files are for etcd, other masters and workers.
        keeper: Keeper::new(Limits::default().within(descriptors(), 2)),
        ports,
        names: config.http_names.clone().with(&config.http_host),
        open_ended: OpenEnded::of(streaming),
    };
    tokio::select! {
        () = front.serve((grpc, calls), (http, web), stop) => Ok(()),
        () = shared.keep_looking_at_lease() => Ok(()),
    }
}

/// What is served, on which port.
struct Services<G> {
    grpc: G,
    http: Router,
    /// The paths of the calls that stream their requests.
    streaming: Vec<String>,
}

async fn services(service: Service) -> Result<Services<Measured<Forward<Routes>>>, MasterError> {
    let failed = |what: &'static str| move |e: Box<dyn std::error::Error + Send + Sync>| MasterError::Server(what, e.to_string());
    let shared = service.engine.shared.clone();
    let routes = grpc_routes(&service).await.map_err(|e| failed("gRPC")(e.into()))?;
    let pool = DescriptorPool::decode(evenkeel_proto::DESCRIPTORS).map_err(|e| failed("HTTP")(e.into()))?;
    let streams = paths(&pool, |call| call.is_client_streaming() || call.is_server_streaming());
    let kinds = Kinds { streams: streams.into_iter().collect(), reads: HttpRoutes::of(&pool).reads() };
    let forward = ForwardLayer::new(shared.clone(), service.config.id.as_str(), kinds, service.config.tasks);
    let grpc = MeasuredLayer::new(shared.measures.clone(), &pool).layer(forward.layer(routes));
    let calls = BoxCloneSyncService::new(grpc.clone());
    let http = http_router(shared, &service.config.version, calls.clone(), Transcoder::new(&pool, calls));
    Ok(Services { grpc, http, streaming: paths(&pool, MethodDescriptor::is_client_streaming) })
}

/// The paths of such calls.
fn paths(pool: &DescriptorPool, are: impl Fn(&MethodDescriptor) -> bool) -> Vec<String> {
    let all = pool.services().flat_map(|service| service.methods().collect::<Vec<_>>());
    let path = |call: MethodDescriptor| format!("/{}/{}", call.parent_service().full_name(), call.name());
    all.filter(are).map(path).collect()
}

async fn grpc_routes(service: &Service) -> Result<Routes, tonic_reflection::server::Error> {
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
        .add_service(health_service.max_decoding_message_size(MAX_QUESTION))
        .add_service(reflection().build_v1()?.max_decoding_message_size(MAX_QUESTION))
        .add_service(reflection().build_v1alpha()?.max_decoding_message_size(MAX_QUESTION));
    let shared = service.engine.shared.clone();
    let leadership = shared.leadership.subscribe();
    report_health(&shared.leader(), &health).await;
    tokio::spawn(keep_reporting_health(Arc::downgrade(&shared), leadership, health));
    Ok(routes.routes().prepare())
}

/// Health follows readiness: a master serves when somebody leads, be it another.
async fn report_health(leadership: &Leadership, health: &HealthReporter) {
    let status = match leadership {
        Leadership::Nobody => tonic_health::ServingStatus::NotServing,
        Leadership::Mine | Leadership::Other { .. } => tonic_health::ServingStatus::Serving,
    };
    for service in ["", "evenkeel.v1.Master", "CrawlerMaster"] {
        health.set_service_status(service, status).await;
    }
}

/// Ends with what is shared.
async fn keep_reporting_health(shared: Weak<Shared>, mut leadership: signal::Receiver<Leadership>, health: HealthReporter) {
    while leadership.changed().await.is_ok() {
        let Some(now) = shared.upgrade().map(|shared| shared.leader()) else { return };
        report_health(&now, &health).await;
    }
}

fn http_router(shared: Arc<Shared>, version: &str, calls: Grpc, transcoder: Transcoder) -> Router {
    let registry = Arc::new(shared.measures.registry(version, shared.clone()));
    let page = async move || ([(CONTENT_TYPE, evenkeel_metrics::CONTENT_TYPE)], evenkeel_metrics::page(&registry));
    Router::new()
        .route("/healthz", get(liveness))
        .route("/readyz", get(readiness))
        .route("/metrics", get(page))
        .merge(tasks::door::routes(calls))
        .method_not_allowed_fallback(transcode::not_allowed)
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
    if let Some(what) = shared.waits_for() {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {what}\n"));
    }
    if !shared.read().is_synced {
        return (StatusCode::SERVICE_UNAVAILABLE, "not ready: the state of the cluster has not been read from etcd yet\n".to_owned());
    }
    match shared.leader() {
        Leadership::Nobody => (StatusCode::SERVICE_UNAVAILABLE, "not ready: no master leads at the moment\n".to_owned()),
        Leadership::Mine => (StatusCode::OK, "ready: this master leads\n".to_owned()),
        Leadership::Other { id, address } => (StatusCode::OK, format!("ready: {id} at {address} leads\n")),
    }
}

//! A master: control loop, API and sources.
//!
//! The wheel: **store::watch -> model::Cluster -> planner::plan -> model::check -> store::commit** -> etcd, and back by
//! worker::desired -> worker::reconcile -> worker::driver -> worker::report.
//!
//! The control loop is the one writer; the API and the sources ask, the planner decides, the pipeline writes. A master never talks to
//! a worker about what to run: that goes through etcd alone.

mod api;
pub use api::NO_EFFECT;
#[doc(hidden)]
pub use api::fuzzing;
mod config;
mod control;
pub mod engine;
mod leader_lease;
mod measures;
mod source;
mod state;
mod time;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use evenkeel_model::MasterRecord;
use evenkeel_net::Ports;
use evenkeel_store::{Client, Config};
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
    task::JoinSet,
    time::{Instant, timeout},
};

pub use self::config::{MASTER_LEASE, MasterConfig, MasterError};
use self::{
    api::{
        room::Turns,
        service::{Service, Store},
    },
    control::candidacy::follow_election,
    engine::Engine,
    source::FileSource,
    state::Shared,
    time::SystemClock,
};

/// How long etcd may take to answer at the start.
const ETCD_PATIENCE: Duration = Duration::from_secs(20);
/// How long calls that are under way may take when the master ends.
const LAST_CALLS: Duration = Duration::from_secs(2);
/// Of that, how long they may wait for the next leader: then they are told, while there is time for it.
const LAST_WAITS: Duration = Duration::from_millis(1_500);

/// Runs a master until `stop` completes; then hands leadership over, finishes the calls under way, and returns.
///
/// # Errors
/// When it cannot start: an address in use, a file of resources that is wrong, an etcd that cannot be used. Nothing is left behind.
pub async fn run(config: MasterConfig, stop: impl Future<Output = ()>) -> Result<(), MasterError> {
    if let Some(path) = &config.resources {
        source::read(path)?;
    }
    let grpc = listen("--grpc", config.grpc_listen)?;
    let http = listen("--http", config.http_listen)?;
    let client = Client::new(Config::new(config.etcd.clone()))?;
    let config = Arc::new(config);
    let record = MasterRecord {
        id: config.id.clone(),
        address: advertised(&config.grpc_host, &grpc),
        http: advertised(&config.http_host, &http),
        version: config.version.clone(),
        leads_since: 0,
    };
    tracing::info!(id = %record.id, grpc = %record.address, http = %record.http, "the master serves");
    let ports = Ports { grpc: record.address.clone(), http: record.http.clone() };
    let engine = Engine::new(config.clone(), client.clone(), record, Arc::new(SystemClock::start()));
    let (source, source_handle) = config.resources.clone().map(FileSource::new).unzip();
    let service = Service {
        config: config.clone(),
        engine: engine.handle(),
        turns: Turns::default(),
        store: Store::new(client.clone(), &config.prefix),
        source: source_handle,
    };
    let shared = service.engine.shared.clone();
    let (stop_servers, servers_stop) = watch::channel(false);
    // Dropped, it ends the servers. They serve before etcd answers: what is asked meanwhile is told what this master waits for.
    let mut servers = JoinSet::new();
    shared.set_waits_for(Some(format!("etcd at {} has not answered yet", config.etcd.join(","))));
    servers.spawn(api::serve(service.clone(), ports, grpc, http, servers_stop));
    tokio::pin!(stop);
    tokio::select! {
        ready = ready(&client, &shared) => ready?,
        ended = servers.join_next() => return flatten(ended),
        () = &mut stop => return Ok(()),
    }
    let (stop_control, control_stops) = oneshot::channel();
    let mut control = tokio::spawn(engine.run(control_stops));
    let source = source.map(|source| tokio::spawn(source.run(service)));
    let ended = tokio::select! {
        () = &mut stop => None,
        ended = servers.join_next() => Some(ended),
        // It ends by itself only when it cannot be.
        ended = &mut control => return Err(ended.map_or_else(|e| MasterError::Server("control", e.to_string()), refused)),
    };
    if let Some(source) = source {
        source.abort();
    }
    // The control loop may have ended already; then there is nothing to hand over.
    let _ = stop_control.send(());
    let _ = control.await;
    // What is still under way here is passed on to the next leader.
    shared.end_by(Instant::now() + LAST_WAITS);
    let _ = stop_servers.send(true);
    match ended {
        Some(ended) => flatten(ended),
        // A caller that does not end its stream is left behind.
        None => tokio::select! {
            ended = timeout(LAST_CALLS, servers.join_next()) => ended.map_or(Ok(()), flatten),
            never = follow_election(&client, &config.prefix, &shared) => match never {},
        },
    }
}

fn refused(ended: Result<(), engine::IdTaken>) -> MasterError {
    ended.map_or_else(MasterError::IdTaken, |()| MasterError::Server("control", "it ended by itself".to_owned()))
}

/// How the servers ended.
fn flatten(ended: Option<Result<Result<(), MasterError>, tokio::task::JoinError>>) -> Result<(), MasterError> {
    ended.unwrap_or(Ok(Ok(()))).unwrap_or_else(|e| Err(MasterError::Server("API", e.to_string())))
}

async fn ready(client: &Client, shared: &Shared) -> Result<(), MasterError> {
    client.wait_ready_noting(ETCD_PATIENCE, |error| shared.set_waits_for(Some(error.to_string()))).await?;
    client.require_version().await?;
    shared.set_waits_for(None);
    Ok(())
}

fn listen(flag: &'static str, address: SocketAddr) -> Result<TcpListener, MasterError> {
    evenkeel_net::bind(address).map_err(|source| MasterError::Listen { flag, address, source })
}

/// The address under which others reach a server that listens.
fn advertised(host: &str, listener: &TcpListener) -> String {
    let port = listener.local_addr().map_or(0, |address| address.port());
    format!("{host}:{port}")
}

//! Probes and metrics over HTTP.
//!
//! The wheel: under worker::server.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};

use crate::agent::board::Board;

/// `/healthz`, `/readyz` and `/metrics`.
pub(super) fn routes(board: Arc<Board>, version: &str) -> Router {
    let registry = Arc::new(board.registry(version));
    let page = async move || ([(CONTENT_TYPE, evenkeel_metrics::CONTENT_TYPE)], evenkeel_metrics::page(&registry));
    Router::new().route("/healthz", get(alive)).route("/readyz", get(ready)).route("/metrics", get(page)).with_state(board)
}

/// Alive: the agent turns. It does so without etcd, too.
async fn alive(State(board): State<Arc<Board>>) -> impl IntoResponse {
    match board.hangs_for() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(span) => (StatusCode::SERVICE_UNAVAILABLE, format!("the agent has not turned for {} s\n", span.as_secs())),
    }
}

async fn ready(State(board): State<Arc<Board>>) -> impl IntoResponse {
    if board.is_ready() { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not admitted, or without authority\n") }
}

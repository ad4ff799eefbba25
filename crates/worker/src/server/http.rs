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
pub(super) fn routes(board: Arc<Board>) -> Router {
    Router::new().route("/healthz", get(async || "ok\n")).route("/readyz", get(ready)).route("/metrics", get(metrics)).with_state(board)
}

async fn ready(State(board): State<Arc<Board>>) -> impl IntoResponse {
    if board.is_ready() { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not admitted, or without authority\n") }
}

async fn metrics(State(board): State<Arc<Board>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], board.metrics())
}

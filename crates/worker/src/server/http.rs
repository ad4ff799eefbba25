//! Probes and metrics over HTTP.
//!
//! The wheel: under worker::server.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{
        Method, StatusCode, Uri,
        header::{ALLOW, CONTENT_TYPE},
    },
    response::IntoResponse,
    routing::get,
};
use evenkeel_model::shown::bare;
use evenkeel_net::refusal;
use tonic::Code;

use crate::{agent::board::Board, usage::Usage};

/// `/healthz`, `/readyz` and `/metrics`.
pub(super) fn routes(board: Arc<Board>, usage: Usage, version: &str) -> Router {
    let mut registry = board.registry(version);
    registry.register_collector(Box::new(usage.clone()));
    let registry = Arc::new(registry);
    let page = async move || {
        // What cannot be read is logged there, and left out of the page.
        let _ = usage.read().await;
        ([(CONTENT_TYPE, evenkeel_metrics::CONTENT_TYPE)], evenkeel_metrics::page(&registry))
    };
    Router::new()
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", get(page))
        .method_not_allowed_fallback(not_allowed)
        .with_state(board)
        .fallback(nothing)
}

async fn not_allowed(method: Method, uri: Uri) -> impl IntoResponse {
    let message = format!("{} is not allowed for {}; allowed: GET, HEAD", bare(method.as_str()), bare(uri.path()));
    ([(ALLOW, "GET, HEAD")], refusal(StatusCode::METHOD_NOT_ALLOWED, Code::Unimplemented, &message).map(Body::new))
}

async fn nothing(method: Method, uri: Uri) -> impl IntoResponse {
    let (method, path) = (bare(method.as_str()), bare(uri.path()));
    let message = format!("nothing is at {method} {path}; a worker has /healthz, /readyz and /metrics");
    refusal(StatusCode::NOT_FOUND, Code::NotFound, &message).map(Body::new)
}

/// Alive: the agent turns. It does so without etcd, too.
async fn alive(State(board): State<Arc<Board>>) -> impl IntoResponse {
    match board.hangs_for() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(span) => (StatusCode::SERVICE_UNAVAILABLE, format!("the agent has not turned for {} s\n", span.as_secs())),
    }
}

/// Ready: admitted, with authority.
async fn ready(State(board): State<Arc<Board>>) -> impl IntoResponse {
    match board.waits_for() {
        _ if board.is_ready() => (StatusCode::OK, "ready\n".to_owned()),
        Some(what) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {what}\n")),
        None => (StatusCode::SERVICE_UNAVAILABLE, "not admitted, or without authority\n".to_owned()),
    }
}

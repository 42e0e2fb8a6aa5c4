//! How the hub stands, for people, load balancers and the reference's monitors. Open to everybody, so it tells
//! figures and no names.

use crate::{Hub, Stats, clock};
use axum::{Json, extract::State, http::StatusCode};
use fanfare_core::time::iso_8601;
use serde::Serialize;
use utoipa::ToSchema;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How the hub stands.
#[derive(Serialize, ToSchema)]
pub(super) struct HealthBody {
    #[schema(example = "healthy")]
    status: &'static str,
    /// Now, in ISO 8601.
    #[schema(example = "2026-11-23T09:30:00.125Z")]
    timestamp: String,
    connections: ConnectionsBody,
    redis: RedisBody,
    /// What holds the log: `memory` or `redis`.
    #[schema(example = "memory")]
    broker: &'static str,
    window: WindowBody,
    #[schema(example = "0.1.0")]
    version: &'static str,
}

#[derive(Serialize, ToSchema)]
struct ConnectionsBody {
    /// On all nodes.
    total: usize,
    /// On this node.
    local: usize,
    /// Of those here, the ones that answered their last heartbeat.
    alive: usize,
    /// Of those here, the ones that owe an answer.
    dead: usize,
}

/// Whether Redis is in use and reachable.
#[derive(Serialize, ToSchema)]
struct RedisBody {
    connected: bool,
    pubsub_connected: bool,
}

/// What this node can replay.
#[derive(Serialize, ToSchema)]
struct WindowBody {
    events: usize,
    bytes: usize,
    /// The place of the newest event.
    #[schema(example = "pos-1f00c3-42")]
    head: String,
}

/// The service and its version.
#[derive(Serialize, ToSchema)]
pub(super) struct ServiceBody {
    #[schema(example = "healthy")]
    status: &'static str,
    #[schema(example = "fanfare")]
    service: &'static str,
    #[schema(example = "0.1.0")]
    version: &'static str,
}

/// Whether a probe is answered well.
#[derive(Serialize, ToSchema)]
pub(super) struct ProbeBody {
    status: &'static str,
}

impl From<Stats> for HealthBody {
    fn from(stats: Stats) -> Self {
        let Stats { connections: total, local, alive, dead, .. } = stats;
        Self {
            status: "healthy",
            timestamp: iso_8601(clock::now().unix_ms),
            connections: ConnectionsBody { total, local, alive, dead },
            // The log in memory needs no Redis, so there is none to be connected to.
            redis: RedisBody { connected: false, pubsub_connected: false },
            broker: stats.broker,
            window: WindowBody { events: stats.window_events, bytes: stats.window_bytes, head: stats.head.to_string() },
            version: VERSION,
        }
    }
}

/// Connections, log and window
#[utoipa::path(
    get,
    path = "/ws/health",
    tag = "health",
    operation_id = "ws_health",
    responses((status = 200, description = "The hub serves.", body = HealthBody))
)]
pub(super) async fn connections(State(hub): State<Hub>) -> Json<HealthBody> {
    Json(hub.stats().into())
}

/// Service and version
#[utoipa::path(
    get,
    path = "/health",
    tag = "health",
    operation_id = "health",
    responses((status = 200, description = "The process answers.", body = ServiceBody))
)]
pub(super) async fn service() -> Json<ServiceBody> {
    Json(ServiceBody { status: "healthy", service: "fanfare", version: VERSION })
}

/// Whether the process lives
///
/// If it doesn't answer, restart it.
#[utoipa::path(
    get,
    path = "/health/live",
    tag = "health",
    operation_id = "health_live",
    responses((status = 200, description = "It lives.", body = ProbeBody, example = json!({"status": "live"})))
)]
pub(super) async fn live() -> Json<ProbeBody> {
    Json(ProbeBody { status: "live" })
}

/// Whether to send new clients here
#[utoipa::path(
    get,
    path = "/health/ready",
    tag = "health",
    operation_id = "health_ready",
    responses(
        (status = 200, description = "Send clients.", body = ProbeBody, example = json!({"status": "ready"})),
        (status = 503, description = "Send none: the hub is shutting down.", body = ProbeBody,
            example = json!({"status": "not_ready"})),
    )
)]
pub(super) async fn ready(State(hub): State<Hub>) -> (StatusCode, Json<ProbeBody>) {
    if hub.is_ready() {
        (StatusCode::OK, Json(ProbeBody { status: "ready" }))
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, Json(ProbeBody { status: "not_ready" }))
    }
}

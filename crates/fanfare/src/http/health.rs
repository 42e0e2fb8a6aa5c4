//! The status of the hub, for people, load balancers and monitors written for the FastAPI hub. The routes need no
//! token, so they return numbers and no names.

use crate::{Hub, Stats, clock};
use axum::{Json, extract::State, http::StatusCode};
use fanfare_core::time::iso_8601;
use serde::Serialize;
use utoipa::ToSchema;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The status of the hub.
#[derive(Serialize, ToSchema)]
pub(super) struct HealthBody {
    /// `healthy`, or `unhealthy` if there is a `problem`.
    #[schema(example = "healthy")]
    status: &'static str,
    /// The problem, if any. Connected clients are still served from the window.
    #[schema(nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    /// The current time, in ISO 8601.
    #[schema(example = "2026-11-23T09:30:00.125Z")]
    timestamp: String,
    connections: ConnectionsBody,
    redis: RedisBody,
    /// The backend of the log: `memory` or `redis`.
    #[schema(example = "memory")]
    broker: &'static str,
    log: LogBody,
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
    /// Local connections that answered their last ping.
    alive: usize,
    /// Local connections that have not answered their last ping yet.
    dead: usize,
}

/// Whether Redis is in use and reachable.
#[derive(Serialize, ToSchema)]
struct RedisBody {
    /// Whether Redis responds and the log in it is healthy.
    connected: bool,
    /// Whether the node is subscribed to Redis channels.
    pubsub_connected: bool,
}

/// The log, as seen by this node.
#[derive(Serialize, ToSchema)]
struct LogBody {
    /// Number of nodes that share the log.
    #[schema(example = 1)]
    nodes: usize,
    /// Time that the newest probe took through the log and back, in milliseconds. Absent for the in-memory log.
    #[schema(nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    lag_ms: Option<u64>,
    /// Age up to which a duplicate event is recognised, in milliseconds.
    #[schema(example = 7_200_000)]
    idempotency_ms: u64,
}

/// The events that this node can replay.
#[derive(Serialize, ToSchema)]
struct WindowBody {
    events: usize,
    bytes: usize,
    /// The position of the newest event.
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

/// The result of a probe.
#[derive(Serialize, ToSchema)]
pub(super) struct ProbeBody {
    status: &'static str,
}

impl From<Stats> for HealthBody {
    fn from(stats: Stats) -> Self {
        let Stats { connections: total, local, alive, dead, .. } = stats;
        let log = stats.log;
        Self {
            status: if log.problem.is_none() { "healthy" } else { "unhealthy" },
            problem: log.problem,
            timestamp: iso_8601(clock::now().unix_ms),
            connections: ConnectionsBody { total, local, alive, dead },
            redis: RedisBody { connected: log.connected, pubsub_connected: log.listening },
            log: LogBody {
                nodes: log.cluster.map_or(1, |(_, nodes)| nodes.max(1)),
                lag_ms: log.lag.map(clock::millis),
                idempotency_ms: clock::millis(log.horizon),
            },
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
    security(()),
    responses(
        (status = 200, description = "The hub is healthy.", body = HealthBody),
        (status = 503, description = "The log is unavailable, accepts no events, or is too slow; `problem` states the \
            cause. Connected clients are still served from the window.", body = HealthBody),
    )
)]
pub(super) async fn connections(State(hub): State<Hub>) -> (StatusCode, Json<HealthBody>) {
    let body = HealthBody::from(hub.stats());
    let status = if body.problem.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(body))
}

/// Service and version
#[utoipa::path(
    get,
    path = "/health",
    tag = "health",
    operation_id = "health",
    security(()),
    responses((status = 200, description = "The process responds.", body = ServiceBody))
)]
pub(super) async fn service() -> Json<ServiceBody> {
    Json(ServiceBody { status: "healthy", service: "fanfare", version: VERSION })
}

/// Liveness probe
///
/// Restart the process if it does not respond.
#[utoipa::path(
    get,
    path = "/health/live",
    tag = "health",
    operation_id = "health_live",
    security(()),
    responses(
        (status = 200, description = "The process responds.", body = ProbeBody, example = json!({"status": "live"})),
    )
)]
pub(super) async fn live() -> Json<ProbeBody> {
    Json(ProbeBody { status: "live" })
}

/// Readiness probe
#[utoipa::path(
    get,
    path = "/health/ready",
    tag = "health",
    operation_id = "health_ready",
    security(()),
    responses(
        (status = 200, description = "The node accepts clients.", body = ProbeBody,
            example = json!({"status": "ready"})),
        (status = 503, description = "The node is draining, or its log is unhealthy.", body = ProbeBody,
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

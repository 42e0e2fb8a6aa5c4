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
    /// `healthy`, or `unhealthy` where `problem` says why.
    #[schema(example = "healthy")]
    status: &'static str,
    /// What is wrong, where something is. Connected clients are served all the same, from the window.
    #[schema(nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    /// Now, in ISO 8601.
    #[schema(example = "2026-11-23T09:30:00.125Z")]
    timestamp: String,
    connections: ConnectionsBody,
    redis: RedisBody,
    /// What holds the log: `memory` or `redis`.
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
    /// Of those here, the ones that answered their last heartbeat.
    alive: usize,
    /// Of those here, the ones that owe an answer.
    dead: usize,
}

/// Whether Redis is in use and reachable.
#[derive(Serialize, ToSchema)]
struct RedisBody {
    /// It answers, and its log is in order.
    connected: bool,
    /// What is published on its channels is heard.
    pubsub_connected: bool,
}

/// The log as this node sees it.
#[derive(Serialize, ToSchema)]
struct LogBody {
    /// How many nodes share it.
    #[schema(example = 1)]
    nodes: usize,
    /// How long the newest probe took through it, in milliseconds; none where no network lies between.
    #[schema(nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    lag_ms: Option<u64>,
    /// For how many milliseconds back an event that is published again is recognised.
    #[schema(example = 7_200_000)]
    idempotency_ms: u64,
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
        (status = 200, description = "The hub serves.", body = HealthBody),
        (status = 503, description = "The log is away, takes no events or is late; `problem` says which. Connected \
            clients are served from the window.", body = HealthBody),
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
    security(()),
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
    security(()),
    responses(
        (status = 200, description = "Send clients.", body = ProbeBody, example = json!({"status": "ready"})),
        (status = 503, description = "Send none: the hub is shutting down, or its log is not in order.", body = ProbeBody,
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

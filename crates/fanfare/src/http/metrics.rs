//! The hub's metrics in the OpenMetrics 1.0 text format.

use super::{access::Admin, error::ApiError, responses::AdminErrors};
use crate::{
    ClientLag, Hub, Stats,
    metrics::{CONTENT_TYPE, Counters, Figure},
};
use axum::{
    extract::State,
    http::{HeaderName, header},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge, info::Info as InfoMetric},
    registry::Registry,
};
use std::fmt;

type Gauge = (&'static str, &'static str, fn(&Stats) -> usize);

/// Gauges: name, description and value.
const GAUGES: &[Gauge] = &[
    ("fanfare_connections", "Connections on this node.", |stats| stats.local),
    ("fanfare_window_events", "Events that this node can replay.", |stats| stats.window_events),
    ("fanfare_window_bytes", "Bytes of the events that this node can replay.", |stats| stats.window_bytes),
    ("fanfare_log_events", "Events in the log. For a log in Redis, as of the node's last heartbeat.", |stats| {
        stats.log.events
    }),
    ("fanfare_log_bytes", "Bytes of the events in the log.", |stats| stats.log.bytes),
    ("fanfare_log_head", "The sequence of the newest event that this node has.", |stats| {
        usize::try_from(stats.head.sequence).unwrap_or(usize::MAX)
    }),
    ("fanfare_overdue_connections", "Connections on this node that have not answered their last ping yet.", |stats| {
        stats.dead
    }),
    ("fanfare_healthy", "1 if the log is healthy, otherwise 0.", |stats| usize::from(stats.log.problem.is_none())),
    ("fanfare_redis_connected", "1 if the log is in Redis and Redis responds, otherwise 0.", |stats| {
        usize::from(stats.log.connected)
    }),
    ("fanfare_nodes", "Nodes that share the log.", |stats| stats.log.cluster.map_or(1, |(_, nodes)| nodes)),
    ("fanfare_cluster_connections", "Connections on all nodes, as of their last heartbeats.", |stats| {
        stats.connections
    }),
];

const LAG: (&str, &str) = (
    "fanfare_log_lag_seconds",
    "Round trip time of the newest probe through the log, or its age if it is still pending.",
);

const HORIZON: (&str, &str) = (
    "fanfare_idempotency_horizon_seconds",
    "Age up to which a duplicate event is recognised: up to idempotency_horizon; less after a start of the log, or if \
     idempotency_events is too small.",
);

const BEHIND: (&str, &str) = (
    "fanfare_clients_behind",
    "Lagging clients on this node: clients that read more slowly than events are published for them.",
);
const FARTHEST: (&str, &str) =
    ("fanfare_client_lag_events_max", "Largest lag of a client on this node, in events behind the head of the log.");
const BUSY: (&str, &str) =
    ("fanfare_shard_busy_seconds", "Busy time of each shard's thread; its rate is the utilisation.");
const BUILD: (&str, &str) = ("fanfare_build", "The version of the hub.");

#[derive(Debug)]
struct Gauges {
    stats: Stats,
    late: ClientLag,
    of_application: Vec<Figure>,
}

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, figure) in GAUGES {
            let gauge = ConstGauge::new(i64::try_from(figure(&self.stats)).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        for ((name, help), figure) in [(BEHIND, self.late.clients as u64), (FARTHEST, self.late.farthest)] {
            let gauge = ConstGauge::new(i64::try_from(figure).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        let horizon = ConstGauge::new(self.stats.log.horizon.as_secs_f64());
        horizon.encode(encoder.encode_descriptor(HORIZON.0, HORIZON.1, None, MetricType::Gauge)?)?;
        if let Some(lag) = self.stats.log.lag {
            let gauge = ConstGauge::new(lag.as_secs_f64());
            gauge.encode(encoder.encode_descriptor(LAG.0, LAG.1, None, MetricType::Gauge)?)?;
        }
        let mut busy = encoder.encode_descriptor(BUSY.0, BUSY.1, None, MetricType::Counter)?;
        for (shard, time) in self.stats.busy.iter().enumerate() {
            ConstCounter::new(time.as_secs_f64()).encode(busy.encode_family(&[("shard", shard)])?)?;
        }
        let version = InfoMetric::new([("version", env!("CARGO_PKG_VERSION"))]);
        version.encode(encoder.encode_descriptor(BUILD.0, BUILD.1, None, MetricType::Info)?)?;
        for Figure { name, help, counter, value } in &self.of_application {
            if *counter {
                let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
                ConstCounter::new(*value).encode(metric)?;
            } else {
                let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
                ConstGauge::new(*value).encode(metric)?;
            }
        }
        Ok(())
    }
}

/// Metrics for Prometheus
///
/// Needs an administrator's token. Prometheus sends it with `authorization` in its scrape configuration.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "operate",
    operation_id = "metrics",
    security(("bearer" = [])),
    responses(
        (status = 200, description = "The metrics.", body = String, content_type = CONTENT_TYPE,
            example = "# TYPE fanfare_connects counter\nfanfare_connects_total 3\n# EOF\n"),
        AdminErrors,
    )
)]
pub(super) async fn metrics(
    _: Admin,
    State(hub): State<Hub>,
) -> Result<([(HeaderName, &'static str); 1], String), ApiError> {
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], metrics_text(&hub).await))
}

/// All metrics with their current values.
pub(super) async fn metrics_text(hub: &Hub) -> String {
    let mut registry = Registry::default();
    let of_application = hub.figures();
    registry.register_collector(Box::new(Counters(hub.metrics().clone())));
    registry.register_collector(Box::new(Gauges { late: hub.lateness().await, stats: hub.stats(), of_application }));
    let mut text = String::new();
    // Writing to a string cannot fail.
    text::encode(&mut text, &registry).unwrap_or_default();
    text
}

//! The hub's figures in the text form that Prometheus reads (OpenMetrics 1.0).

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

/// What is not counted but stands at some figure now: name, help and figure.
const GAUGES: &[Gauge] = &[
    ("fanfare_connections", "Connections on this node.", |stats| stats.local),
    ("fanfare_window_events", "Events that this node can replay.", |stats| stats.window_events),
    ("fanfare_window_bytes", "Bytes of the events that this node can replay.", |stats| stats.window_bytes),
    ("fanfare_log_events", "Events that the log holds; of one in Redis as of the last beat.", |stats| stats.log.events),
    ("fanfare_log_bytes", "Bytes of the events that the log holds.", |stats| stats.log.bytes),
    ("fanfare_log_head", "The sequence of the newest event that this node has.", |stats| {
        usize::try_from(stats.head.sequence).unwrap_or(usize::MAX)
    }),
    ("fanfare_overdue_connections", "Connections on this node that owe an answer to a ping.", |stats| stats.dead),
    ("fanfare_healthy", "1 where the log takes and gives events in time, else 0.", |stats| {
        usize::from(stats.log.problem.is_none())
    }),
    ("fanfare_redis_connected", "1 where the log is in Redis and Redis answers.", |stats| {
        usize::from(stats.log.connected)
    }),
    ("fanfare_nodes", "Nodes that share the log.", |stats| stats.log.cluster.map_or(1, |(_, nodes)| nodes)),
    ("fanfare_cluster_connections", "Connections on all nodes, as of the last beat.", |stats| stats.connections),
];

const LAG: (&str, &str) =
    ("fanfare_log_lag_seconds", "How long the newest probe took through the log, or is under way.");

const HORIZON: (&str, &str) = (
    "fanfare_idempotency_horizon_seconds",
    "For how long back an event that is published again is recognised: up to idempotency_horizon, less since a start \
     of the log or where idempotency_events is too small.",
);

const BEHIND: (&str, &str) = (
    "fanfare_clients_behind",
    "Clients of this node that don't take events as fast as they come, and wait behind the log's head.",
);
const FARTHEST: (&str, &str) =
    ("fanfare_client_lag_events_max", "How many events of the log the last of the clients behind is behind its head.");
const BUSY: (&str, &str) =
    ("fanfare_shard_busy_seconds", "How long a shard's thread was busy, by shard: its rate is the busy share.");
const BUILD: (&str, &str) = ("fanfare_build", "The version that runs.");

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
/// Needs an administrator's token, which Prometheus sends with `authorization` in its scrape settings.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "operate",
    operation_id = "metrics",
    security(("bearer" = [])),
    responses(
        (status = 200, description = "The figures.", body = String, content_type = CONTENT_TYPE,
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

/// All figures as they are now.
pub(crate) async fn metrics_text(hub: &Hub) -> String {
    let mut registry = Registry::default();
    let of_application = hub.figures();
    registry.register_collector(Box::new(Counters(hub.metrics().clone())));
    registry.register_collector(Box::new(Gauges { late: hub.lateness().await, stats: hub.stats(), of_application }));
    let mut text = String::new();
    // Writing into a string can't fail.
    text::encode(&mut text, &registry).unwrap_or_default();
    text
}

//! The hub's figures in the text form that Prometheus reads (OpenMetrics 1.0).

use super::{access::Admin, error::ApiError, responses::AdminErrors};
use crate::{Hub, Stats, metrics::Counters};
use axum::{
    extract::State,
    http::{HeaderName, header},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Registry,
};
use std::fmt;

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Figure = (&'static str, &'static str, fn(&Stats) -> usize);

/// What is not counted but stands at some figure now: name, help and figure.
const GAUGES: &[Figure] = &[
    ("fanfare_connections", "Connections on this node.", |stats| stats.local),
    ("fanfare_window_events", "Events that this node can replay.", |stats| stats.window_events),
    ("fanfare_window_bytes", "Bytes of the events that this node can replay.", |stats| stats.window_bytes),
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

#[derive(Debug)]
struct Gauges(Stats);

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, figure) in GAUGES {
            let gauge = ConstGauge::new(i64::try_from(figure(&self.0)).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        if let Some(lag) = self.0.log.lag {
            let gauge = ConstGauge::new(lag.as_secs_f64());
            gauge.encode(encoder.encode_descriptor(LAG.0, LAG.1, None, MetricType::Gauge)?)?;
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
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Counters(hub.metrics().clone())));
    registry.register_collector(Box::new(Gauges(hub.stats())));
    let mut text = String::new();
    // Writing into a string can't fail.
    text::encode(&mut text, &registry).unwrap_or_default();
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text))
}

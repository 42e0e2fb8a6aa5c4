//! The status of a node, as it reports it to other nodes and to subscribers of `$sys`.

use crate::metrics::{Counter, Metrics};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Number of slow clients that a node reports.
pub(crate) const SLOW: usize = 10;

/// The fields that nodes of every version report.
#[derive(Debug, Deserialize)]
pub(crate) struct Named {
    pub(crate) node: String,
}

/// The status of a node.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct NodeFigures {
    pub(crate) node: String,
    pub(crate) version: String,
    /// When the status was taken, in milliseconds since 1970-01-01T00:00:00Z.
    pub(crate) at_ms: u64,
    pub(crate) ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) problem: Option<String>,
    pub(crate) connections: usize,
    pub(crate) overdue: usize,
    pub(crate) behind: usize,
    pub(crate) lag_ms: Option<f64>,
    pub(crate) window_events: usize,
    pub(crate) window_bytes: usize,
    pub(crate) log_events: usize,
    pub(crate) log_bytes: usize,
    /// Busy time of each shard since its start, in microseconds.
    pub(crate) busy_us: Vec<u64>,
    /// Every counter that is not 0, by family name, or by family name and label value.
    pub(crate) counters: BTreeMap<String, u64>,
    /// Count of each histogram bucket.
    pub(crate) latency: Vec<u64>,
    pub(crate) round_trip: Vec<u64>,
    /// The metrics that the application adds.
    pub(crate) process: BTreeMap<String, f64>,
    pub(crate) slow: Vec<SlowClient>,
}

/// A lagging client.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SlowClient {
    pub(crate) connection_id: String,
    pub(crate) user_id: String,
    pub(crate) behind_events: u64,
}

/// The lagging clients: clients that read more slowly than events are published for them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClientLag {
    /// Number of lagging clients.
    pub clients: usize,
    /// Largest lag of a client, in events of the log behind its head.
    pub farthest: u64,
}

/// The counters that are not 0, by name.
pub(crate) fn counters(metrics: &Metrics) -> BTreeMap<String, u64> {
    let named = Counter::ALL.iter().map(|&counter| {
        let family = counter.family().trim_start_matches("fanfare_");
        let name = counter.label().map_or_else(|| family.to_owned(), |(_, value)| format!("{family} {value}"));
        (name, metrics.get(counter))
    });
    named.filter(|(_, count)| *count > 0).collect()
}

//! The status messages for subscribers of `$sys`: metrics of all nodes, slow clients and recently published events.

use crate::{
    hub::Hub,
    metrics::{Counter, Measure},
    shard::Command,
    why::Question,
};
use fanfare_core::{Position, time::iso_8601};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};
use std::{
    collections::BTreeMap,
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};
use tokio::time::{MissedTickBehavior, interval};

/// Interval between status messages, while `$sys` has subscribers.
const PERIOD: Duration = Duration::from_secs(2);
/// Number of slow clients that a node reports.
pub(crate) const SLOW: usize = 10;
/// Maximum number of events in one status message; further events are only counted.
const EVENTS: usize = 50;

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

/// An event published since the previous status message.
#[derive(Debug, Serialize)]
struct EventSummary {
    event_id: String,
    event_type: String,
    audience: String,
    position: String,
    accepted_at: String,
    bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    publisher: Option<String>,
}

#[derive(Serialize)]
struct Sys<'a> {
    /// The node that sends the message.
    node: &'a str,
    nodes: Vec<Box<RawValue>>,
    silent_nodes: usize,
    /// Upper bounds of the buckets of `latency` and `round_trip`, in microseconds.
    latency_bounds_us: &'a [u64],
    round_trip_bounds_us: &'a [u64],
    events: Vec<EventSummary>,
    /// Number of events since the previous message that are not in `events`.
    more_events: u64,
}

/// The counters that are not 0, by name.
pub(crate) fn counters(metrics: &crate::metrics::Metrics) -> BTreeMap<String, u64> {
    let named = Counter::ALL.iter().map(|&counter| {
        let family = counter.family().trim_start_matches("fanfare_");
        let name = counter.label().map_or_else(|| family.to_owned(), |(_, value)| format!("{family} {value}"));
        (name, metrics.get(counter))
    });
    named.filter(|(_, count)| *count > 0).collect()
}

/// Sends status messages to the local subscribers of `$sys` until the hub is dropped.
pub(crate) async fn publish_status(hub: Weak<crate::hub::Inner>) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut cursor = None;
    loop {
        ticks.tick().await;
        let Some(inner) = hub.upgrade() else { return };
        let hub = Hub::of(inner);
        if hub.node().shards().iter().all(|shard| shard.watchers.load(Ordering::Relaxed) == 0) {
            cursor = None;
            continue;
        }
        let Some(text) = describe(&hub, &mut cursor).await else { continue };
        let text: Arc<str> = text.into();
        for shard in hub.node().shards() {
            shard.send(Command::SendStatus(text.clone()));
        }
    }
}

/// Queries all nodes, and adds the events published since `cursor`.
async fn describe(hub: &Hub, cursor: &mut Option<Position>) -> Option<String> {
    let asked = hub.ask::<Value>(Question::Figures).await;
    // If the other nodes cannot be queried, this node's status is sent alone.
    let (nodes, asked) = match asked {
        Ok((nodes, asked)) if !nodes.is_empty() => (nodes, asked),
        _ => (vec![serde_json::to_value(hub.node().figures().await).ok()?], 1),
    };
    let silent_nodes = asked.saturating_sub(nodes.len());
    let nodes = nodes.iter().filter_map(|node| serde_json::value::to_raw_value(node).ok()).collect();
    let (events, more_events) = recent_events(hub, cursor);
    let sys = Sys {
        node: &hub.node().name,
        nodes,
        silent_nodes,
        latency_bounds_us: Measure::AppendToWrite.bounds_us(),
        round_trip_bounds_us: Measure::RoundTrip.bounds_us(),
        events,
        more_events,
    };
    serde_json::to_string(&sys).ok()
}

fn recent_events(hub: &Hub, cursor: &mut Option<Position>) -> (Vec<EventSummary>, u64) {
    let (entries, head) = {
        let window = hub.node().window.read();
        let head = Position { epoch: window.epoch(), sequence: window.head() };
        let since = cursor.filter(|cursor| cursor.epoch == head.epoch).map_or(head.sequence, |cursor| cursor.sequence);
        let since = since.max(window.floor());
        let newest = since.max(head.sequence.saturating_sub(EVENTS as u64));
        let entries: Vec<_> = window.since(newest).cloned().collect();
        (entries, (head, newest - since))
    };
    let (head, more) = head;
    *cursor = Some(head);
    let summaries = entries.iter().map(|entry| EventSummary {
        event_id: entry.event_id.to_string(),
        event_type: entry.event_type.to_string(),
        audience: entry.audience.to_string(),
        position: Position { epoch: head.epoch, sequence: entry.sequence }.to_string(),
        accepted_at: iso_8601(entry.appended_ms),
        bytes: entry.json_len(),
        publisher: entry.publisher.as_deref().map(str::to_owned),
    });
    (summaries.collect(), more)
}

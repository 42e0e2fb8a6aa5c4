//! The status messages for subscribers of `$sys`: metrics of all nodes, slow clients and recently published events.

use crate::{hub::Hub, mailbox::Command, metrics::Measure, why::Question};
use fanfare_core::{Position, time::iso_8601};
use serde::Serialize;
use serde_json::{Value, value::RawValue};
use std::{
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    time::{MissedTickBehavior, interval},
};

/// Interval between status messages, while `$sys` has subscribers.
const PERIOD: Duration = Duration::from_secs(2);
/// Maximum number of events in one status message; further events are only counted.
const EVENTS: usize = 50;

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

/// Starts the status messages, once for a hub and only within a Tokio runtime.
pub(crate) fn start(hub: &Hub) {
    if let Ok(runtime) = Handle::try_current()
        && hub.starts_status()
    {
        runtime.spawn(publish_status(hub.downgrade()));
    }
}

/// Sends status messages to the local subscribers of `$sys` until the hub is dropped.
async fn publish_status(hub: Weak<crate::hub::Inner>) {
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

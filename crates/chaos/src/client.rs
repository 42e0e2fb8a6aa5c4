//! Clients: each holds a connection, resumes it after every disconnect, and records what it receives.

use crate::{
    load::{Load, Reader},
    oracle::Gap,
};
use fanfare::Position;
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{
    net::TcpSocket,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_tungstenite::{
    client_async,
    tungstenite::{Error, Message},
};

/// The time that a client waits for its first frame.
const FIRST: Duration = Duration::from_secs(5);

/// The delay before a client reconnects, unless a `goaway` contains another one.
const PAUSE_MS: u64 = 100;

/// The mean time for which a client is subscribed to the changing topic, or not subscribed.
const TOPIC_MS: u64 = 3_000;

/// The topic that every client subscribes to when it connects.
const TOPIC: &str = "chaos";

/// The topic that some clients repeatedly subscribe to and unsubscribe from.
pub(crate) const CHANGING_TOPIC: &str = "changing";

/// Reads until the load ends.
pub(crate) async fn run(load: Arc<Load>, reader: Arc<Reader>) {
    let mut state = ResumeState::default();
    while !load.ended() {
        state.reconnect_after = Duration::from_millis(fastrand::u64(PAUSE_MS / 2..PAUSE_MS * 2));
        // The client reconnects however its connection ended.
        let _ = connection(&load, &reader, &mut state).await;
        state.forget_topic(&reader);
        reader.live.store(false, Ordering::Relaxed);
        state.cut.get_or_insert_with(Instant::now);
        sleep(state.reconnect_after).await;
    }
}

/// The state of a client that survives a reconnect.
#[derive(Default)]
struct ResumeState {
    connection_id: Option<String>,
    last_event_id: Option<String>,
    topic: Topic,
    cut: Option<Instant>,
    reconnect_after: Duration,
}

/// Whether a client is subscribed to the changing topic.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Topic {
    #[default]
    No,
    /// The client sent `subscribe` or `unsubscribe`, and has not received the `ack` yet.
    Asked,
    Held,
}

impl ResumeState {
    /// A connection ended: whether a message without an `ack` took effect is unknown.
    fn forget_topic(&mut self, reader: &Reader) {
        if let Some(publisher) = reader.behaviour.changes_topic
            && self.topic == Topic::Asked
        {
            reader.ledger().release_topic(publisher, None);
            self.topic = Topic::No;
        }
    }

    /// The message that subscribes or unsubscribes.
    fn change_topic(&mut self, reader: &Reader) -> Option<&'static str> {
        let publisher = reader.behaviour.changes_topic?;
        let message = match self.topic {
            Topic::Asked => return None,
            Topic::No => "subscribe",
            Topic::Held => {
                reader.ledger().release_topic(publisher, None);
                "unsubscribe"
            }
        };
        self.topic = Topic::Asked;
        Some(message)
    }
}

async fn connection(load: &Load, reader: &Reader, state: &mut ResumeState) -> Result<(), Box<Error>> {
    let address = load.address();
    let topics = if state.topic == Topic::Held { format!("{TOPIC},{CHANGING_TOPIC}") } else { TOPIC.to_owned() };
    let mut url = format!("ws://{address}/ws?token={}&topics={topics}", reader.token);
    if let Some(last) = &state.last_event_id {
        url += &format!("&last_event_id={last}");
    }
    if let Some(id) = state.connection_id.as_ref().filter(|_| reader.behaviour.keeps_connection_id) {
        url += &format!("&connection_id={id}");
    }
    let open = async {
        let socket = TcpSocket::new_v4()?;
        // A small buffer, so that the hub soon notices a client that does not read.
        socket.set_recv_buffer_size(64 << 10)?;
        let stream = socket.connect(address).await?;
        client_async(url, stream).await
    };
    let (mut socket, _) = timeout(FIRST, open).await.map_err(|_| timed_out())??;
    let mut first = true;
    let mut changes = interval(Duration::from_millis(fastrand::u64(TOPIC_MS / 2..TOPIC_MS * 2)));
    changes.set_missed_tick_behavior(MissedTickBehavior::Delay);
    changes.tick().await;
    loop {
        if reader.paused.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(50)).await;
            continue;
        }
        let patience = if first { FIRST } else { Duration::from_secs(90) };
        let message = tokio::select! {
            message = timeout(patience, socket.next()) => message.map_err(|_| timed_out())?,
            // Without a close frame, as when a phone enters a tunnel.
            () = reader.cut.notified() => return Ok(()),
            _ = changes.tick(), if !first && reader.behaviour.changes_topic.is_some() => {
                if let Some(message) = state.change_topic(reader) {
                    let text = format!(r#"{{"type":"{message}","topic":"{CHANGING_TOPIC}"}}"#);
                    socket.send(Message::text(text)).await?;
                }
                continue;
            }
        };
        let Some(message) = message else { return Ok(()) };
        let Message::Text(text) = message? else { continue };
        let message: Value = serde_json::from_str(&text).map_err(|error| {
            load.note_anomaly(&format!("a frame is not valid JSON: {error}"));
            timed_out()
        })?;
        first = false;
        if message["type"] == "ping" {
            socket.send(Message::text(r#"{"type":"pong"}"#)).await?;
        }
        take(load, reader, state, &message);
    }
}

fn take(load: &Load, reader: &Reader, state: &mut ResumeState, message: &Value) {
    let (id, position) = (message["event_id"].as_str(), message["log_position"].as_str());
    // Clients of this project store the position, older ones the event ID.
    let cursor = if reader.behaviour.by_id { id } else { position.or(id) };
    state.last_event_id = cursor.map(str::to_owned);
    match message["type"].as_str().unwrap_or_default() {
        "chaos" => {
            let data = &message["data"];
            let event =
                (usize::try_from(data["p"].as_u64().unwrap_or(u64::MAX)).unwrap_or(usize::MAX), data["n"].as_u64());
            match (event, position.and_then(|position| position.parse().ok())) {
                ((publisher, Some(number)), Some(position)) => {
                    load.note_received(reader, (publisher, number), position);
                }
                _ => load.note_anomaly("an event has no number or no log_position"),
            }
            return;
        }
        "ack" if message["topic"] == CHANGING_TOPIC => acknowledged_topic(load, reader, state, message),
        "ack" => {
            let id = message["connection_id"].as_str().map(str::to_owned);
            if reader.behaviour.keeps_connection_id && state.connection_id.is_some() && state.connection_id != id {
                load.note_anomaly("a client that reconnected received another connection_id");
            }
            state.connection_id.clone_from(&id);
            reader.set_name(id);
            reader.live.store(true, Ordering::Relaxed);
            if let Some(cut) = state.cut.take() {
                load.note_resume(cut.elapsed());
            }
        }
        "gap" => {
            match id.and_then(|id| id.parse().ok()).zip(unix_ms(message)) {
                Some((at, sent_ms)) => {
                    let (reset, missed) = (message["reason"] == "reset", message["missed"].as_u64());
                    load.note_gap(reader, Gap { reset, at, missed, sent_ms });
                }
                None => load.note_anomaly(&format!("a gap has no position or no timestamp: {message}")),
            }
            return;
        }
        "goaway" => {
            load.note_goaway();
            state.reconnect_after = Duration::from_millis(message["reconnect_after_ms"].as_u64().unwrap_or(0));
        }
        "error" => load.note_anomaly(&format!("a client received an error: {message}")),
        _ => {}
    }
    // The ID of a message from the hub itself is the position up to which the hub has served this client.
    if let Some(position) = id.and_then(|id| id.parse::<Position>().ok()) {
        reader.ledger().served(position);
    }
}

/// A subscription, or its end, was acknowledged.
fn acknowledged_topic(load: &Load, reader: &Reader, state: &mut ResumeState, message: &Value) {
    let Some(publisher) = reader.behaviour.changes_topic else { return };
    let position = message["event_id"].as_str().and_then(|id| id.parse().ok());
    match (message["ack_event_id"].as_str(), position) {
        (Some("subscribe"), Some(position)) => {
            reader.ledger().hold_topic(publisher, position);
            state.topic = Topic::Held;
        }
        (Some("unsubscribe"), _) => state.topic = Topic::No,
        _ => load.note_anomaly(&format!("unexpected response to a subscription: {message}")),
    }
}

/// The timestamp of a message, in milliseconds since 1970.
fn unix_ms(message: &Value) -> Option<u64> {
    let time = OffsetDateTime::parse(message["timestamp"].as_str()?, &Rfc3339).ok()?;
    u64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()
}

fn timed_out() -> Box<Error> {
    Box::new(Error::Io(std::io::ErrorKind::TimedOut.into()))
}

//! Clients: each holds a connection, takes it up again where it was, and notes what it reads.

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

/// How long a client waits for its first frame.
const FIRST: Duration = Duration::from_secs(5);

/// How long a client waits before it comes back, unless the hub says otherwise.
const PAUSE_MS: u64 = 100;

/// How long a client keeps a topic, or does without it, about.
const TOPIC_MS: u64 = 3_000;

/// The topic that all hold.
const TOPIC: &str = "chaos";

/// The topic that some hold now and then.
pub(crate) const CHANGING_TOPIC: &str = "changing";

/// Reads until the load ends.
pub(crate) async fn run(load: Arc<Load>, reader: Arc<Reader>) {
    let mut place = Place::default();
    while !load.ended() {
        place.reconnect_after = Duration::from_millis(fastrand::u64(PAUSE_MS / 2..PAUSE_MS * 2));
        // However a connection ends, the client comes back.
        let _ = connection(&load, &reader, &mut place).await;
        place.forget_topic(&reader);
        reader.live.store(false, Ordering::Relaxed);
        place.cut.get_or_insert_with(Instant::now);
        sleep(place.reconnect_after).await;
    }
}

/// What a client remembers from one connection to the next.
#[derive(Default)]
struct Place {
    connection_id: Option<String>,
    last_event_id: Option<String>,
    topic: Topic,
    cut: Option<Instant>,
    reconnect_after: Duration,
}

/// Whether a client holds the topic that some hold now and then.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Topic {
    #[default]
    No,
    /// It asked for it, or gave it up, and was not answered yet.
    Asked,
    Held,
}

impl Place {
    /// A connection ended: what was asked for and not answered may be or not.
    fn forget_topic(&mut self, reader: &Reader) {
        if let Some(publisher) = reader.habits.changes_topic
            && self.topic == Topic::Asked
        {
            reader.ledger().release_topic(publisher, None);
            self.topic = Topic::No;
        }
    }

    /// The message that changes the topic.
    fn change_topic(&mut self, reader: &Reader) -> Option<&'static str> {
        let publisher = reader.habits.changes_topic?;
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

async fn connection(load: &Load, reader: &Reader, place: &mut Place) -> Result<(), Box<Error>> {
    let address = load.address();
    let topics = if place.topic == Topic::Held { format!("{TOPIC},{CHANGING_TOPIC}") } else { TOPIC.to_owned() };
    let mut url = format!("ws://{address}/ws?token={}&topics={topics}", reader.token);
    if let Some(last) = &place.last_event_id {
        url += &format!("&last_event_id={last}");
    }
    if let Some(id) = place.connection_id.as_ref().filter(|_| reader.habits.keeps_name) {
        url += &format!("&connection_id={id}");
    }
    let open = async {
        let socket = TcpSocket::new_v4()?;
        // Who stops reading is to be noticed soon.
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
        if reader.halted.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(50)).await;
            continue;
        }
        let patience = if first { FIRST } else { Duration::from_secs(90) };
        let message = tokio::select! {
            message = timeout(patience, socket.next()) => message.map_err(|_| timed_out())?,
            // Without a word, as a phone in a tunnel.
            () = reader.cut.notified() => return Ok(()),
            _ = changes.tick(), if !first && reader.habits.changes_topic.is_some() => {
                if let Some(message) = place.change_topic(reader) {
                    let text = format!(r#"{{"type":"{message}","topic":"{CHANGING_TOPIC}"}}"#);
                    socket.send(Message::text(text)).await?;
                }
                continue;
            }
        };
        let Some(message) = message else { return Ok(()) };
        let Message::Text(text) = message? else { continue };
        let message: Value = serde_json::from_str(&text).map_err(|error| {
            load.note_odd(&format!("a frame that is no JSON: {error}"));
            timed_out()
        })?;
        first = false;
        if message["type"] == "ping" {
            socket.send(Message::text(r#"{"type":"pong"}"#)).await?;
        }
        take(load, reader, place, &message);
    }
}

fn take(load: &Load, reader: &Reader, place: &mut Place, message: &Value) {
    let (id, position) = (message["event_id"].as_str(), message["log_position"].as_str());
    // This project's clients keep the position, older ones the id.
    let cursor = if reader.habits.by_id { id } else { position.or(id) };
    place.last_event_id = cursor.map(str::to_owned);
    match message["type"].as_str().unwrap_or_default() {
        "chaos" => {
            let data = &message["data"];
            let event =
                (usize::try_from(data["p"].as_u64().unwrap_or(u64::MAX)).unwrap_or(usize::MAX), data["n"].as_u64());
            match (event, position.and_then(|position| position.parse().ok())) {
                ((publisher, Some(number)), Some(position)) => {
                    load.note_received(reader, (publisher, number), position);
                }
                _ => load.note_odd("an event without a number or a log_position"),
            }
            return;
        }
        "ack" if message["topic"] == CHANGING_TOPIC => acknowledged_topic(load, reader, place, message),
        "ack" => {
            let id = message["connection_id"].as_str().map(str::to_owned);
            if reader.habits.keeps_name && place.connection_id.is_some() && place.connection_id != id {
                load.note_odd("a client came back and was given another name");
            }
            place.connection_id.clone_from(&id);
            reader.set_name(id);
            reader.live.store(true, Ordering::Relaxed);
            if let Some(cut) = place.cut.take() {
                load.note_resume(cut.elapsed());
            }
        }
        "gap" => {
            match id.and_then(|id| id.parse().ok()).zip(unix_ms(message)) {
                Some((at, told_ms)) => {
                    let (reset, missed) = (message["reason"] == "reset", message["missed"].as_u64());
                    load.note_gap(reader, Gap { reset, at, missed, told_ms });
                }
                None => load.note_odd(&format!("a gap without a place or a time: {message}")),
            }
            return;
        }
        "goaway" => {
            load.note_goaway();
            place.reconnect_after = Duration::from_millis(message["reconnect_after_ms"].as_u64().unwrap_or(0));
        }
        "error" => load.note_odd(&format!("a client was told of an error: {message}")),
        _ => {}
    }
    // What the hub says itself names the place up to which it has served this client.
    if let Some(position) = id.and_then(|id| id.parse::<Position>().ok()) {
        reader.ledger().served(position);
    }
}

/// A topic was given, or given up.
fn acknowledged_topic(load: &Load, reader: &Reader, place: &mut Place, message: &Value) {
    let Some(publisher) = reader.habits.changes_topic else { return };
    let position = message["event_id"].as_str().and_then(|id| id.parse().ok());
    match (message["ack_event_id"].as_str(), position) {
        (Some("subscribe"), Some(position)) => {
            reader.ledger().hold_topic(publisher, position);
            place.topic = Topic::Held;
        }
        (Some("unsubscribe"), _) => place.topic = Topic::No,
        _ => load.note_odd(&format!("an answer about a topic that can't be read: {message}")),
    }
}

/// When a message was made, in milliseconds since 1970.
fn unix_ms(message: &Value) -> Option<u64> {
    let time = OffsetDateTime::parse(message["timestamp"].as_str()?, &Rfc3339).ok()?;
    u64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()
}

fn timed_out() -> Box<Error> {
    Box::new(Error::Io(std::io::ErrorKind::TimedOut.into()))
}

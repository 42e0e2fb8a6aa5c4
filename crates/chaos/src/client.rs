//! Clients: each holds a connection, takes it up again where it was, and notes what it reads.

use crate::load::{Load, Reader};
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::{
    net::TcpSocket,
    time::{sleep, timeout},
};
use tokio_tungstenite::{
    client_async,
    tungstenite::{Error, Message},
};

/// How long a client waits for its first frame.
const FIRST: Duration = Duration::from_secs(5);

/// How long a client waits before it comes back, unless the hub says otherwise.
const PAUSE_MS: u64 = 100;

/// Reads until the load ends.
pub(crate) async fn run(load: Arc<Load>, reader: Arc<Reader>) {
    let mut place = Place::default();
    while !load.ended() {
        place.reconnect_after = Duration::from_millis(fastrand::u64(PAUSE_MS / 2..PAUSE_MS * 2));
        // However a connection ends, the client comes back.
        let _ = connection(&load, &reader, &mut place).await;
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
    cut: Option<Instant>,
    reconnect_after: Duration,
}

async fn connection(load: &Load, reader: &Reader, place: &mut Place) -> Result<(), Box<Error>> {
    let address = load.address();
    let mut url = format!("ws://{address}/ws?token={}&topics=chaos", reader.token);
    if let Some(last) = &place.last_event_id {
        url += &format!("&last_event_id={last}");
    }
    if let Some(id) = place.connection_id.as_ref().filter(|_| reader.keeps_name) {
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
    // Half of the cursors are positions, as this project's clients keep them, half are ids, as older clients do.
    let position = message["log_position"].as_str().filter(|_| fastrand::bool());
    place.last_event_id = position.or(message["event_id"].as_str()).map(str::to_owned);
    match message["type"].as_str().unwrap_or_default() {
        "chaos" => {
            let data = &message["data"];
            let (p, n) = (data["p"].as_u64().unwrap_or(u64::MAX), data["n"].as_u64().unwrap_or(0));
            reader.ledger().read(usize::try_from(p).unwrap_or(usize::MAX), n);
        }
        "ack" => {
            let id = message["connection_id"].as_str().map(str::to_owned);
            if reader.keeps_name && place.connection_id.is_some() && place.connection_id != id {
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
            reader.ledger().gap(|publisher| load.published[publisher].load(Ordering::Relaxed));
            load.note_gap(message["reason"] == "reset");
        }
        "goaway" => {
            load.note_goaway();
            place.reconnect_after = Duration::from_millis(message["reconnect_after_ms"].as_u64().unwrap_or(0));
        }
        "error" => load.note_odd(&format!("a client was told of an error: {message}")),
        _ => {}
    }
}

fn timed_out() -> Box<Error> {
    Box::new(Error::Io(std::io::ErrorKind::TimedOut.into()))
}

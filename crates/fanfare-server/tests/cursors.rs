//! Resuming with an `event_id` as the cursor, as clients of older hubs do, and with a position, after the event was
//! published again.

#![expect(clippy::unwrap_used, reason = "a failed precondition fails the test")]

use fanfare::{Minter, auth::Claims};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    thread,
    time::{Duration, SystemTime},
};
use testbed::{HubProcess, RedisServer, Relay};
use tokio_tungstenite::tungstenite::{Message, WebSocket, client};

const SECRET: &str = "a secret of thirty-two bytes, ok";
const TIMEOUT: Duration = Duration::from_secs(120);

fn start(arguments: &[&str]) -> HubProcess {
    HubProcess::start(Path::new(env!("CARGO_BIN_EXE_fanfare")), arguments, &[("SECRET_KEY", SECRET)])
}

fn token() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let claims = Claims { sub: "ann".to_owned(), publish: true, exp: Some(now + 3_600), ..Claims::default() };
    Minter::from_secret(SECRET).unwrap().mint(&claims)
}

/// Publishes events to everyone, each with its ID as its text. Returns the results.
fn publish(hub: &HubProcess, ids: &[&str]) -> Value {
    let event = |id: &&str| json!({ "type": "note", "audience": "everyone", "event_id": id, "data": { "id": id } });
    let body = Value::Array(ids.iter().map(event).collect()).to_string();
    let mut stream = TcpStream::connect(hub.address()).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    write!(
        stream,
        "POST /events/batch HTTP/1.1\r\nHost: hub\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        token(),
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 20"), "{answer}");
    serde_json::from_str(body).unwrap()
}

struct Client {
    socket: WebSocket<TcpStream>,
    ack: Value,
}

impl Client {
    fn open(hub: &HubProcess, query: &str) -> WebSocket<TcpStream> {
        let stream = TcpStream::connect(hub.address()).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let url = format!("ws://{}/ws?token={}{query}", hub.address(), token());
        client(url, stream).unwrap().0
    }

    fn connect(hub: &HubProcess, query: &str) -> Self {
        let mut client = Self { socket: Self::open(hub, query), ack: Value::Null };
        client.ack = client.next();
        assert_eq!(client.ack["type"], "ack");
        client
    }

    /// Reconnects with a cursor and a connection ID.
    fn resume(hub: &HubProcess, name: &str, cursor: &str) -> Self {
        Self::connect(hub, &format!("&connection_id={name}&last_event_id={cursor}"))
    }

    fn name(&self) -> String {
        self.ack["connection_id"].as_str().unwrap().to_owned()
    }

    fn next(&mut self) -> Value {
        loop {
            if let Message::Text(text) = self.socket.read().unwrap() {
                let message: Value = serde_json::from_str(&text).unwrap();
                if message["type"] != "ping" {
                    return message;
                }
            }
        }
    }
}

/// X, then 400 others in a window of 100, then X again.
fn repeats_after_eviction(arguments: &[&str]) {
    let hub = start(&[&["--window-events", "100"], arguments].concat());
    let mut client = Client::connect(&hub, "");
    let first = publish(&hub, &["x"]);
    let seen = client.next();
    assert_eq!((&seen["event_id"], &seen["log_position"]), (&json!("x"), &first["results"][0]["position"]), "{first}");
    let name = client.name();
    drop(client);
    let others: Vec<_> = (1..=400).map(|n| format!("e{n}")).collect();
    publish(&hub, &others.iter().map(String::as_str).collect::<Vec<_>>());
    let again = publish(&hub, &["x"]);
    let (first, again) = (&first["results"][0], &again["results"][0]);
    assert_eq!((&again["position"], &again["duplicate"]), (&first["position"], &json!(true)));
    for cursor in ["x", seen["log_position"].as_str().unwrap()] {
        let mut client = Client::resume(&hub, &name, cursor);
        assert_eq!((client.name(), &client.ack["resumed"]), (name.clone(), &json!(false)), "{cursor}");
        let gap = client.next();
        assert_eq!((&gap["type"], &gap["reason"]), (&json!("gap"), &json!("expired")), "{cursor}: {gap}");
    }
}

#[test]
fn an_evicted_event_is_a_duplicate_and_its_cursor_receives_a_gap() {
    repeats_after_eviction(&[]);
    let redis = RedisServer::start();
    repeats_after_eviction(&["--redis-url", &redis.url()]);
}

#[test]
fn a_cursor_unknown_to_a_node_is_looked_up_in_the_log() {
    let redis = RedisServer::start();
    let relay = Relay::to(redis.port());
    let through = format!("redis://127.0.0.1:{}", relay.port());
    let level = start(&["--redis-url", &redis.url()]);
    let behind = start(&["--redis-url", &through, "--handshake-timeout", "60s"]);
    let hasty = start(&["--redis-url", &through, "--handshake-timeout", "1s"]);
    let mut client = Client::connect(&level, "");
    relay.cut();
    publish(&level, &["x"]);
    let position = client.next()["log_position"].as_str().unwrap().to_owned();
    for cursor in ["x", &*position] {
        let mut refused = Client::open(&hasty, &format!("&connection_id={}&last_event_id={cursor}", client.name()));
        let Message::Close(Some(close)) = refused.read().unwrap() else { panic!("{cursor}: no close frame") };
        assert_eq!(u16::from(close.code), 1013, "{close}");
        assert!(close.reason.starts_with("log_unavailable: "), "{close}");
    }
    let name = client.name();
    let waiting = thread::spawn(move || {
        let mut client = Client::resume(&behind, &name, &position);
        let ack = client.ack.clone();
        publish(&behind, &["y"]);
        (ack, client.next())
    });
    relay.restore();
    let (ack, next) = waiting.join().unwrap();
    assert_eq!((&ack["resumed"], &ack["replayed"], &next["event_id"]), (&json!(true), &json!(0), &json!("y")));
}

/// A client receives X, the log loses it, and it is published again after three events that the client did not receive.
fn repeats_after_a_loss(lose: impl FnOnce(HubProcess) -> HubProcess, hub: HubProcess) {
    let mut client = Client::connect(&hub, "");
    publish(&hub, &["x"]);
    let seen = client.next();
    let name = client.name();
    drop(client);
    let hub = lose(hub);
    publish(&hub, &["y1", "y2", "y3", "x", "z"]);
    let cursor = seen["log_position"].as_str().unwrap();
    for query in [
        format!("&connection_id={name}&last_event_id=x"),
        // A client without a connection ID, and with the one that it then receives: it may disconnect before it reads
        // the gap.
        "&last_event_id=x".to_owned(),
        format!("&connection_id={}&last_event_id=x", Client::connect(&hub, "&last_event_id=x").name()),
        format!("&connection_id={name}&last_event_id={cursor}"),
    ] {
        let mut client = Client::connect(&hub, &query);
        assert_eq!(client.ack["resumed"], false, "{query}");
        let gap = client.next();
        assert_eq!((&gap["type"], &gap["reason"]), (&json!("gap"), &json!("reset")), "{query}: {gap}");
    }
    // A client that connected after the loss receives no gap.
    let client = Client::connect(&hub, "");
    let name = client.name();
    drop(client);
    publish(&hub, &["a", "b"]);
    let mut client = Client::resume(&hub, &name, "a");
    let event = client.next();
    assert_eq!((&client.ack["resumed"], &event["event_id"]), (&json!(true), &json!("b")));
}

#[test]
fn an_event_republished_after_a_loss_of_the_log_is_a_gap_for_its_receivers() {
    let restart = |mut hub: HubProcess| {
        hub.kill();
        start(&[])
    };
    repeats_after_a_loss(restart, start(&[]));
    let mut redis = RedisServer::start();
    let url = redis.url();
    let arguments = ["--redis-url", &url];
    let lose = |mut hub: HubProcess| {
        hub.kill();
        redis.kill();
        redis.restart();
        start(&arguments)
    };
    repeats_after_a_loss(lose, start(&arguments));
}

#[test]
fn an_event_lost_by_redis_is_a_gap_for_its_receivers() {
    let redis = RedisServer::start();
    let url = redis.url();
    let arguments = ["--redis-url", &url];
    let lose = |mut hub: HubProcess| {
        hub.kill();
        redis.cli(&["FLUSHALL"]);
        start(&arguments)
    };
    repeats_after_a_loss(lose, start(&arguments));
}

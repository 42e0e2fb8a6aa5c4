//! The hub over real sockets, with an independent WebSocket client.

#![expect(clippy::unwrap_used, reason = "a test ends where something that it relies on fails")]

use fanfare::{
    Audience, AuthError, BrokerError, CloseCode, Config, Draft, Hub, Minter, Revocation, RevocationStore, Verifier,
    auth::Claims,
    broker::{BrokerFuture, redis::RedisOptions},
    metrics::Counter,
    why::{ClientFate, EventOnNode, InAudience},
};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use testbed::RedisServer;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    time::{Instant, timeout_at},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{Message, protocol::frame::CloseFrame},
};

const SECRET: &str = "a secret of thirty-two bytes, ok";
const PATIENCE: Duration = Duration::from_secs(120);

/// A hub that listens on its own port.
struct Server {
    hub: Hub,
    address: SocketAddr,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

fn start(config: Config) -> Hub {
    Hub::builder(Verifier::from_secret(SECRET).unwrap()).config(config).start().unwrap()
}

async fn serve(config: Config) -> Server {
    listen(start(config)).await
}

async fn listen(hub: Hub) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = hub.router().into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, app).await });
    Server { hub, address }
}

fn token(user: &str) -> String {
    let claims = Claims { sub: user.to_owned(), topics: vec!["*".to_owned()], ..Claims::default() };
    Minter::from_secret(SECRET).unwrap().mint(&claims)
}

impl Server {
    fn path(&self, user: &str, query: &str) -> String {
        format!("ws://{}/ws?token={}{query}", self.address, token(user))
    }

    /// Connects a client and returns its first message.
    async fn connect(&self, user: &str, query: &str) -> (Socket, Value) {
        let (mut socket, _) = tokio_tungstenite::connect_async(self.path(user, query)).await.unwrap();
        let ack = next(&mut socket).await;
        assert_eq!(ack["type"], "ack");
        (socket, ack)
    }

    /// Connects a client with a small receive buffer, so that the hub soon notices when it stops reading.
    async fn connect_narrowly(&self, user: &str) -> WebSocketStream<TcpStream> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(32 << 10).unwrap();
        let stream = socket.connect(self.address).await.unwrap();
        let (mut socket, _) = tokio_tungstenite::client_async(self.path(user, ""), stream).await.unwrap();
        assert_eq!(next(&mut socket).await["type"], "ack");
        socket
    }

    async fn publish(&self, n: u64, pad: usize, audience: Audience) {
        let draft = Draft::new("note", &json!({ "n": n, "pad": "x".repeat(pad) })).unwrap();
        self.hub.publish(draft, audience).await.unwrap();
    }
}

/// The next message, which must arrive in time.
async fn next<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut WebSocketStream<S>) -> Value {
    match timeout_at(Instant::now() + PATIENCE, socket.next()).await.expect("a message in time") {
        Some(Ok(Message::Text(text))) => serde_json::from_str(&text).unwrap(),
        other => panic!("expected a text message, got {other:?}"),
    }
}

/// The close frame of the connection. Earlier messages are skipped.
async fn close<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut WebSocketStream<S>) -> CloseFrame {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match timeout_at(deadline, socket.next()).await.expect("a close in time") {
            Some(Ok(Message::Close(Some(frame)))) => return frame,
            Some(Ok(_)) => {}
            other => panic!("expected a close frame, got {other:?}"),
        }
    }
}

/// Waits until a condition holds, which must be soon.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_client_receives_replayed_and_live_events_without_loss_or_duplicates() {
    const EVENTS: u64 = 3_000;
    let server =
        serve(Config { connects_per_second_per_address: 0, connects_per_second_per_user: 0, ..Config::default() })
            .await;
    let (mut socket, ack) = server.connect("ann", "").await;
    let connection = ack["connection_id"].as_str().unwrap().to_owned();
    let hub = server.hub.clone();
    let publisher = tokio::spawn(async move {
        for n in 1..=EVENTS {
            let audience = if n % 3 == 0 { Audience::User("ann".into()) } else { Audience::Everyone };
            hub.publish(Draft::new("note", &json!({ "n": n })).unwrap(), audience).await.unwrap();
            if n % 20 == 0 {
                tokio::task::yield_now().await;
            }
        }
    });
    let (mut expected, mut resumes) = (1, 0);
    while expected <= EVENTS {
        let message = next(&mut socket).await;
        let last = message["event_id"].as_str().unwrap();
        assert_eq!(message["data"]["n"], expected, "{message}");
        expected += 1;
        // Drops the socket without a close, in the middle of the stream, after varying numbers of events.
        if expected % (40 + 7 * (resumes % 5)) == 0 {
            let query = format!("&connection_id={connection}&last_event_id={last}");
            let (again, ack) = server.connect("ann", &query).await;
            assert_eq!((&ack["resumed"], &ack["connection_id"]), (&json!(true), &json!(connection)));
            assert_eq!(ack["ack_event_id"], last);
            socket = again;
            resumes += 1;
        }
    }
    publisher.await.unwrap();
    assert!(resumes > 30, "{resumes}");
    assert_eq!(server.hub.metrics().get(Counter::GapsExpired) + server.hub.metrics().get(Counter::GapsReset), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_reading_delays_no_other_client_and_loses_no_events() {
    const EVENTS: u64 = 4_000;
    let server = serve(Config::default()).await;
    let mut slow = server.connect_narrowly("slow").await;
    let (mut quick, _) = server.connect("quick", "").await;
    for n in 1..=EVENTS {
        server.publish(n, 4_000, Audience::Everyone).await;
    }
    for n in 1..=EVENTS {
        assert_eq!(next(&mut quick).await["data"]["n"], n);
    }
    for n in 1..=EVENTS {
        assert_eq!(next(&mut slow).await["data"]["n"], n);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_lags_beyond_the_window_receives_a_gap() {
    const EVENTS: u64 = 4_000;
    let server = serve(Config { window_events: 100, ..Config::default() }).await;
    let mut slow = server.connect_narrowly("slow").await;
    for n in 1..=EVENTS {
        server.publish(n, 4_000, Audience::Everyone).await;
    }
    let (mut last, mut gaps, mut missed) = (0, 0, 0);
    while last < EVENTS {
        let message = next(&mut slow).await;
        if message["type"] == "gap" {
            assert_eq!(message["reason"], "expired");
            gaps += 1;
            missed = message["missed"].as_u64().unwrap();
        } else {
            let n = message["data"]["n"].as_u64().unwrap();
            assert_eq!(n, last + 1 + std::mem::take(&mut missed), "events outside the gap are delivered");
            last = n;
        }
    }
    assert!(gaps > 0);
    assert_eq!(server.hub.metrics().get(Counter::GapsExpired), gaps);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_socket_takes_over_the_connection() {
    let server = serve(Config { max_connections_per_user: 1, ..Config::default() }).await;
    let (mut old, ack) = server.connect("ann", "").await;
    let id = ack["connection_id"].as_str().unwrap();
    let (mut new, ack) = server.connect("ann", &format!("&connection_id={id}")).await;
    assert_eq!(ack["connection_id"], id);
    assert_eq!(u16::from(close(&mut old).await.code), CloseCode::Replaced.number());

    let audience = Audience::Connection(id.parse().unwrap());
    server.publish(1, 0, audience).await;
    assert_eq!(next(&mut new).await["data"]["n"], 1);

    let (_other, ack) = server.connect("bob", &format!("&connection_id={id}")).await;
    assert_ne!(ack["connection_id"], id, "a connection ID of another user is not accepted");
    until("both are counted", || server.hub.stats().local == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_sent_together_with_the_handshake_are_processed() {
    let server = serve(Config::default()).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let mut request = format!(
        "GET /ws?token={} HTTP/1.1\r\nHost: hub\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        token("ann")
    )
    .into_bytes();
    request.extend([0x89, 0x82, 0, 0, 0, 0, b'h', b'i']);
    stream.write_all(&request).await.unwrap();
    let (mut answer, pong) = (Vec::new(), [0x8a, 2, b'h', b'i']);
    let deadline = Instant::now() + PATIENCE;
    while !answer.ends_with(&pong) {
        let read = timeout_at(deadline, stream.read_buf(&mut answer)).await.expect("an answer in time").unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
    }
    let text = String::from_utf8_lossy(&answer);
    assert!(text.starts_with("HTTP/1.1 101 "), "{text}");
    // The example of RFC 6455 section 1.3.
    assert!(text.to_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_other_than_a_tcp_socket_is_bridged() {
    let hub = start(Config::default());
    let (ours, theirs) = tokio::io::duplex(1_000);
    let service = hyper_util::service::TowerToHyperService::new(hub.router());
    tokio::spawn(async move {
        let io = hyper_util::rt::TokioIo::new(theirs);
        hyper::server::conn::http1::Builder::new().serve_connection(io, service).with_upgrades().await
    });
    let url = format!("ws://hub/ws?token={}", token("ann"));
    let (mut socket, _) = tokio_tungstenite::client_async(url, ours).await.unwrap();
    assert_eq!(next(&mut socket).await["type"], "ack");
    for n in 0..500 {
        let draft = Draft::new("note", &json!({ "n": n, "pad": "x".repeat(500) })).unwrap();
        hub.publish(draft, Audience::Everyone).await.unwrap();
    }
    for n in 0..500 {
        assert_eq!(next(&mut socket).await["data"]["n"], n);
    }
    socket.send(Message::text(r#"{"type":"ping"}"#)).await.unwrap();
    assert_eq!(next(&mut socket).await["type"], "pong");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_sends_goaway_and_closes_with_1012() {
    let server = serve(Config::default()).await;
    let (mut socket, _) = server.connect("ann", "").await;
    server.publish(1, 0, Audience::Everyone).await;
    let hub = server.hub.clone();
    let ending = tokio::spawn(async move { hub.shutdown(PATIENCE).await });
    assert_eq!(next(&mut socket).await["data"]["n"], 1, "events published before the drain are delivered");
    let goaway = next(&mut socket).await;
    assert_eq!((&goaway["type"], &goaway["reason"]), (&json!("goaway"), &json!("shutdown")));
    assert!(goaway["reconnect_after_ms"].as_u64().unwrap() < 2_000);
    assert_eq!(u16::from(close(&mut socket).await.code), CloseCode::Restart.number());
    drop(socket);
    timeout_at(Instant::now() + PATIENCE, ending).await.expect("the shutdown returns").unwrap();
    assert!(!server.hub.is_ready());
    assert_eq!(server.hub.stats().local, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn lagging_clients_do_not_delay_the_drain_of_other_clients() {
    let server = serve(Config { shards: 2, drain_rate: 10, ..Config::default() }).await;
    let mut slow = [server.connect_narrowly("slow").await, server.connect_narrowly("slow").await];
    // Each shard has one client of either kind.
    let mut quick = [server.connect("quick", "").await.0, server.connect("quick", "").await.0];
    for n in 1..=4_000 {
        server.publish(n, 4_000, Audience::User("slow".into())).await;
    }
    let hub = server.hub.clone();
    let ending = tokio::spawn(async move { hub.shutdown(PATIENCE).await });
    for socket in &mut quick {
        assert_eq!(next(socket).await["type"], "goaway");
        assert_eq!(u16::from(close(socket).await.code), CloseCode::Restart.number());
    }
    for socket in &mut slow {
        for n in 1..=4_000 {
            assert_eq!(next(socket).await["data"]["n"], n, "a drained client has received all events");
        }
        assert_eq!(next(socket).await["type"], "goaway");
        assert_eq!(u16::from(close(socket).await.code), CloseCode::Restart.number());
    }
    drop((slow, quick));
    timeout_at(Instant::now() + PATIENCE, ending).await.expect("the shutdown returns").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_can_be_disconnected() {
    let server = serve(Config::default()).await;
    let (mut ann, _) = server.connect("ann", "").await;
    let (mut bob, ack) = server.connect("bob", "").await;
    server.hub.disconnect_user("ann", "banned").await.unwrap();
    let frame = close(&mut ann).await;
    assert_eq!((u16::from(frame.code), frame.reason.as_str()), (CloseCode::Disconnected.number(), "banned"));
    server.hub.disconnect(ack["connection_id"].as_str().unwrap().parse().unwrap(), "over").await.unwrap();
    assert_eq!(close(&mut bob).await.reason.as_str(), "over");
}

#[tokio::test(flavor = "multi_thread")]
async fn disconnected_clients_leave_no_state() {
    let server =
        serve(Config { connects_per_second_per_address: 0, connects_per_second_per_user: 0, ..Config::default() })
            .await;
    for round in 0..20 {
        let mut sockets = Vec::new();
        for i in 0..10 {
            sockets.push(server.connect(&format!("user-{round}-{i}"), "&topics=a,b").await.0);
        }
        drop(sockets);
    }
    until("all clients are disconnected", || server.hub.stats().local == 0).await;
    assert_eq!(server.hub.metrics().get(Counter::ClosedAbnormal), 200);
}

/// The delivery of an event on the only node.
async fn on_node(hub: &Hub, event_id: &str, user: Option<&str>) -> EventOnNode {
    let journey = hub.journey(event_id, user).await.unwrap().expect("the event is retained");
    assert_eq!((journey.nodes.len(), journey.silent_nodes), (1, 0));
    journey.nodes.into_iter().next().unwrap()
}

/// Waits until the event is counted as written to this many clients.
async fn until_written(hub: &Hub, event_id: &str, clients: usize) {
    let deadline = Instant::now() + PATIENCE;
    while on_node(hub, event_id, None).await.written < clients {
        assert!(Instant::now() < deadline, "never written to {clients} clients: {event_id}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_delivery_of_an_event_is_traced() {
    let server = serve(Config::default()).await;
    let (mut ann, _) = server.connect("ann", "&topics=t").await;
    let (mut bob, _) = server.connect("bob", "").await;
    let draft = |id: &str| Draft::parse(&format!(r#"{{"type":"note","event_id":"{id}","data":{{}}}}"#)).unwrap();
    for (id, audience) in
        [("all", Audience::Everyone), ("hers", Audience::User("ann".into())), ("topic", Audience::Topic("t".into()))]
    {
        server.hub.publish(draft(id), audience).await.unwrap();
    }
    for id in ["all", "hers", "topic"] {
        assert_eq!(next(&mut ann).await["event_id"], id);
    }
    assert_eq!(next(&mut bob).await["event_id"], "all");
    for ack in [r#"{"type":"ack","ack_event_id":"all"}"#, r#"{"type":"ack","ack_event_id":"no such event"}"#] {
        bob.send(Message::text(ack)).await.unwrap();
    }
    bob.send(Message::text(r#"{"type":"ping"}"#)).await.unwrap();
    assert_eq!(next(&mut bob).await["type"], "pong");
    let (_carol, _) = server.connect("carol", "").await;

    let journey = server.hub.journey("all", None).await.unwrap().unwrap();
    assert_eq!((&*journey.event_type, &*journey.audience), ("note", "everyone"));
    assert_eq!(journey.publisher.as_deref(), Some("application"));
    assert!(
        journey.position.ends_with("-1") && journey.accepted_at.ends_with('Z') && journey.bytes > 20,
        "{journey:?}"
    );
    // A shard counts a delivery only after the write.
    until_written(&server.hub, "all", 2).await;
    for id in ["hers", "topic"] {
        until_written(&server.hub, id, 1).await;
    }
    let all = on_node(&server.hub, "all", Some("carol")).await;
    assert_eq!((all.connected, all.matched, all.written, all.waiting, all.acknowledged), (3, 3, 2, 0, 1));
    assert_eq!((all.skipped.not_in_audience, all.skipped.came_later), (0, 1));
    assert_eq!(all.of_user[0].fate, ClientFate::CameLater);
    for id in ["hers", "topic"] {
        let hers = on_node(&server.hub, id, Some("bob")).await;
        assert_eq!((hers.connected, hers.matched, hers.written, hers.skipped.not_in_audience), (3, 1, 1, 2), "{id}");
        assert_eq!(hers.of_user[0].fate, ClientFate::NotInAudience);
        let hers = on_node(&server.hub, id, Some("ann")).await;
        assert_eq!(hers.of_user[0].fate, ClientFate::Written);
    }
    assert_eq!(server.hub.journey("no such event", None).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_reports_whether_a_user_is_in_the_audience_even_if_disconnected() {
    let server = serve(Config::default()).await;
    let (mut ann, ack) = server.connect("ann", "&topics=t").await;
    let (_dan, _) = server.connect("dan", "").await;
    let connection = ack["connection_id"].as_str().unwrap().parse().unwrap();
    let audiences = [
        ("everyone", Audience::Everyone),
        ("user", Audience::User("ann".into())),
        ("connection", Audience::Connection(connection)),
        ("topic", Audience::Topic("t".into())),
    ];
    for (id, audience) in audiences {
        let draft = Draft::parse(&format!(r#"{{"type":"note","event_id":"{id}","data":{{}}}}"#)).unwrap();
        server.hub.publish(draft, audience).await.unwrap();
        assert_eq!(next(&mut ann).await["event_id"], id);
    }
    let (mut bob, _) = server.connect("bob", "").await;
    bob.close(None).await.unwrap();
    drop(bob);
    until("bob is disconnected", || server.hub.stats().local == 2).await;
    // Users that are connected, that have disconnected, and that are unknown.
    for user in ["ann", "dan", "bob", "eve"] {
        for (id, of_ann, of_others) in [
            ("everyone", InAudience::Yes, InAudience::Yes),
            ("user", InAudience::Yes, InAudience::No),
            ("connection", InAudience::Yes, InAudience::No),
            ("topic", InAudience::Subscribers, InAudience::Subscribers),
        ] {
            let journey = server.hub.journey(id, Some(user)).await.unwrap().unwrap();
            let expected = if user == "ann" { of_ann } else { of_others };
            assert_eq!(journey.user_in_audience, Some(expected), "{user} {id}");
            let fates: Vec<_> = journey.nodes[0].of_user.iter().map(|client| client.fate).collect();
            match user {
                "ann" => assert_eq!(fates, [ClientFate::Written]),
                "dan" if id == "everyone" => assert_eq!(fates, [ClientFate::Written]),
                "dan" => assert_eq!(fates, [ClientFate::NotInAudience]),
                _ => assert!(fates.is_empty()),
            }
        }
    }
    assert_eq!(server.hub.journey("user", None).await.unwrap().unwrap().user_in_audience, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_reports_waiting_clients() {
    const EVENTS: u64 = 600;
    let server = serve(Config::default()).await;
    let mut slow = server.connect_narrowly("slow").await;
    let (mut quick, ack) = server.connect("quick", "").await;
    for n in 1..=EVENTS {
        server.publish(n, 16_000, Audience::Everyone).await;
    }
    let mut last = String::new();
    for _ in 0..EVENTS {
        last = next(&mut quick).await["event_id"].as_str().unwrap().to_owned();
    }
    until_written(&server.hub, &last, 1).await;
    let event = on_node(&server.hub, &last, Some("slow")).await;
    assert_eq!((event.matched, event.written, event.waiting), (2, 1, 1));
    assert_eq!(event.of_user[0].fate, ClientFate::Waiting);
    let waiting = event.of_user[0].connection_id.parse().unwrap();
    let details = server.hub.client(waiting).await.unwrap().unwrap();
    assert!(details.behind_events > 0 && details.live.unwrap().waiting_bytes > 0);
    assert_eq!(server.hub.lateness().await.clients, 1);
    let quick = server.hub.client(ack["connection_id"].as_str().unwrap().parse().unwrap()).await.unwrap().unwrap();
    assert_eq!((quick.behind_events, quick.live.unwrap().last_event_id), (0, Some(last.clone())));
    while next(&mut slow).await["event_id"] != *last {}
    let details = server.hub.client(waiting).await.unwrap().unwrap();
    assert_eq!((details.behind_events, details.live.unwrap().last_event_id), (0, Some(last)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_can_be_inspected_after_it_disconnected() {
    let server = serve(Config::default()).await;
    let (mut socket, ack) = server.connect("ann", "&topics=t").await;
    let id = ack["connection_id"].as_str().unwrap();
    let connection = id.parse().unwrap();
    let details = server.hub.client(connection).await.unwrap().unwrap();
    assert_eq!((&*details.user_id, &*details.address, &*details.connection_id), ("ann", "127.0.0.1", id));
    let live = details.live.unwrap();
    assert_eq!((live.topics, live.admin, live.overdue, live.last_event_id), (vec!["t".to_owned()], false, false, None));
    server.hub.disconnect(connection, "enough").await.unwrap();
    assert_eq!(u16::from(close(&mut socket).await.code), 4003);
    drop(socket);
    until("the client is disconnected", || server.hub.stats().local == 0).await;
    let closed = loop {
        // The socket is dropped once the client has answered the close.
        let details = server.hub.client(connection).await.unwrap().unwrap();
        if let Some(closed) = details.closed {
            assert_eq!((details.live, &*details.user_id), (None, "ann"));
            break closed;
        }
    };
    assert_eq!(closed.code, 4003);
    assert!(closed.meaning.contains("operator"), "{closed:?}");
    assert_eq!(server.hub.client(fanfare::ConnectionId(1)).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_administrators_receive_the_status_of_all_nodes() {
    let server = serve(Config::default()).await;
    let claims = Claims { sub: "ops".to_owned(), admin: true, ..Claims::default() };
    let admin = Minter::from_secret(SECRET).unwrap().mint(&claims);
    let url = format!("ws://{}/ws?token={admin}&topics=$sys", server.address);
    let (mut ops, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    assert_eq!(next(&mut ops).await["type"], "ack");
    // A pattern that matches every topic does not match topics reserved for the hub.
    let (mut ann, _) = server.connect("ann", "&topics=$sys").await;
    assert_eq!(next(&mut ann).await["error"], "forbidden");
    let first = next(&mut ops).await;
    assert_eq!((&first["type"], &first["event_id"]), (&json!("$sys"), &Value::Null), "it has no position in the log");
    server.publish(1, 10, Audience::Everyone).await;
    assert_eq!(next(&mut ops).await["data"]["n"], 1);
    let status = loop {
        let status = next(&mut ops).await;
        if status["data"]["events"][0].is_object() {
            break status["data"].clone();
        }
    };
    let node = &status["nodes"][0];
    assert_eq!((&node["connections"], &node["ready"], &status["silent_nodes"]), (&json!(2), &json!(true), &json!(0)));
    assert_eq!((&node["counters"]["events"], &node["window_events"]), (&json!(1), &json!(1)), "{status}");
    assert_eq!(status["events"][0]["publisher"], "application");
    assert_eq!(node["latency"].as_array().unwrap().len(), status["latency_bounds_us"].as_array().unwrap().len() + 1);
    // Status messages are not appended to the log.
    assert_eq!(server.hub.stats().head.sequence, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_can_be_requested_to_drain() {
    let server = serve(Config::default()).await;
    let claims = Claims { sub: "ops".to_owned(), admin: true, ..Claims::default() };
    let admin = Minter::from_secret(SECRET).unwrap().mint(&claims);
    let (mut ops, _) =
        tokio_tungstenite::connect_async(format!("ws://{}/ws?token={admin}&topics=$sys", server.address))
            .await
            .unwrap();
    assert_eq!(next(&mut ops).await["type"], "ack");
    let name = next(&mut ops).await["data"]["node"].as_str().unwrap().to_owned();
    assert_eq!(server.hub.drain("no such node").await, Ok(false));
    assert_eq!(server.hub.drain(&name).await, Ok(true));
    tokio::time::timeout(PATIENCE, server.hub.drain_wanted()).await.expect("the node is notified");
}

#[tokio::test(flavor = "multi_thread")]
async fn absent_values_of_scripts_count_as_no_cursor_and_no_topic() {
    let server = serve(Config::default()).await;
    for n in 1..=5 {
        server.publish(n, 0, Audience::Everyone).await;
    }
    for absent in ["", "null", "undefined", "NaN", "None", "%20%09", "%20null%20"] {
        let query = format!("&last_event_id={absent}&connection_id={absent}&topics={absent}");
        let (mut socket, ack) = server.connect("ann", &query).await;
        assert_eq!(
            (&ack["ack_event_id"], &ack["replayed"], &ack["resumed"]),
            (&"initial_connect".into(), &0.into(), &false.into())
        );
        socket.send(Message::text(r#"{"type":"ping"}"#)).await.unwrap();
        assert_eq!(next(&mut socket).await["type"], "pong", "neither a gap nor an event nor an error: {absent:?}");
        let url = format!("ws://{}/ws?token={absent}", server.address);
        let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
        assert!(close(&mut socket).await.reason.starts_with("token_missing: "), "{absent:?}");
    }
    let (mut socket, _) = server.connect("ann", "&topics=null,nan").await;
    server
        .hub
        .publish(Draft::parse(r#"{"type":"note","data":{}}"#).unwrap(), Audience::Topic("null".into()))
        .await
        .unwrap();
    assert_eq!(next(&mut socket).await["type"], "note", "in a list it is a topic");
}

// attack: repeated connects with an unknown cursor for the whole window => replay is limited by user and address
#[tokio::test(flavor = "multi_thread")]
async fn a_client_beyond_the_replay_limit_receives_only_its_gap_and_live_events() {
    const EVENTS: u64 = 10;
    let server = serve(Config { gap_replay_bytes_per_second: 1, window_events: 8, ..Config::default() }).await;
    let (_, ack) = server.connect("ann", "").await;
    let begin = ack["event_id"].as_str().unwrap();
    let mut last = String::new();
    for n in 1..=EVENTS {
        let draft = Draft::new("note", &json!({ "n": n })).unwrap();
        last = server.hub.publish(draft, Audience::Everyone).await.unwrap().position.to_string();
    }
    let cursor = |id: &str| format!("&last_event_id={id}");
    let (mut first, ack) = server.connect("ann", &cursor("unknown")).await;
    assert_eq!((&ack["replayed"], next(&mut first).await["type"].as_str()), (&8.into(), Some("gap")));
    for (user, id, missed) in
        [("ann", "unknown", Value::Null), ("bob", "unknown", Value::Null), ("ann", begin, (EVENTS + 2).into())]
    {
        let (mut socket, ack) = server.connect(user, &cursor(id)).await;
        assert_eq!((&ack["replayed"], &ack["resumed"]), (&0.into(), &false.into()));
        let gap = next(&mut socket).await;
        assert_eq!((&gap["type"], &gap["missed"]), (&"gap".into(), &missed), "{gap}");
        server.publish(0, 0, Audience::User(user.into())).await;
        assert_eq!(next(&mut socket).await["data"]["n"], 0, "live");
    }
    assert_eq!(server.hub.metrics().get(Counter::LimitGapReplay), 3);
    let (_, ack) = server.connect("ann", &cursor(&last)).await;
    assert_eq!((&ack["replayed"], &ack["resumed"]), (&2.into(), &true.into()), "a replay without a gap is not limited");
}

/// A store that fails while it is full.
#[derive(Debug, Default)]
struct Disk {
    full: AtomicBool,
    kept: Mutex<Vec<Revocation>>,
}

impl RevocationStore for Disk {
    fn keep<'a>(&'a self, revocation: &'a Revocation) -> BrokerFuture<'a, ()> {
        Box::pin(async move {
            if self.full.load(Ordering::Relaxed) {
                return Err(BrokerError::NotKept("the disk is full".to_owned()));
            }
            self.kept.lock().unwrap().push(revocation.clone());
            Ok(())
        })
    }
}

// attack: use a token revoked while the accounts database or Redis is unavailable => rejected immediately on that node
#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_that_cannot_be_stored_or_announced_takes_effect_and_can_be_retried() {
    let mut redis = tokio::task::block_in_place(RedisServer::start);
    let (disk, hub) = (Arc::new(Disk::default()), Hub::builder(Verifier::from_secret(SECRET).unwrap()));
    let options = || RedisOptions::new(redis.url().parse().unwrap());
    let (first, second) = tokio::join!(
        hub.keep_revocations(disk.clone()).start_with_redis(options()),
        Hub::builder(Verifier::from_secret(SECRET).unwrap()).start_with_redis(options())
    );
    let (first, second) = (first.unwrap(), second.unwrap());
    let revoked = async |hub: &Hub, user: &str| hub.authenticate(&token(user)).await == Err(AuthError::Revoked);
    let everywhere = async |user: &str| {
        let deadline = Instant::now() + PATIENCE;
        while !revoked(&second, user).await {
            assert!(Instant::now() < deadline, "the other node never receives the revocation of {user}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let of = |user: &str| Revocation::User { user: user.into(), before: u64::MAX / 2 };

    disk.full.store(true, Ordering::Relaxed);
    assert!(matches!(first.revoke(of("ann")).await, Err(BrokerError::NotKept(_))));
    assert!(revoked(&first, "ann").await);
    everywhere("ann").await;
    assert!(first.revoke(of("ann")).await.is_err(), "it is still not stored");
    disk.full.store(false, Ordering::Relaxed);
    assert_eq!(first.revoke(of("ann")).await, Ok(()));
    assert_eq!(first.revoke(of("ann")).await, Ok(()));
    assert_eq!(*disk.kept.lock().unwrap(), [of("ann")], "stored once");

    tokio::task::block_in_place(|| redis.kill());
    assert!(matches!(first.revoke(of("bob")).await, Err(BrokerError::Unavailable(_))));
    assert!(revoked(&first, "bob").await);
    tokio::task::block_in_place(|| redis.restart());
    everywhere("bob").await;
    assert!(!revoked(&first, "eve").await && !revoked(&second, "eve").await);
}

/// A hub with its log in Redis, on its own port.
async fn serve_with_redis(redis: &RedisServer) -> Server {
    let options = RedisOptions::new(redis.url().parse().unwrap());
    let hub = Hub::builder(Verifier::from_secret(SECRET).unwrap()).start_with_redis(options).await.unwrap();
    listen(hub).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_closed_with_4001_only_if_the_one_on_another_node_is_known_to_be_newer() {
    let redis = tokio::task::block_in_place(RedisServer::start);
    let cli = |arguments: &[&str]| tokio::task::block_in_place(|| redis.cli(arguments));
    let server = serve_with_redis(&redis).await;
    let (mut socket, ack) = server.connect("ann", "").await;
    let id = ack["connection_id"].as_str().unwrap().to_owned();
    let key = format!("ws:connection:{id}");
    let listed = |field: &str| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let held = cli(&["HGET", &key, field]);
            if !held.is_empty() {
                return held;
            }
            assert!(Instant::now() < deadline, "the connection is never listed");
        }
    };
    let (node, came) = (listed("node"), listed("came"));
    let replace = |came: &str, doubt: &str| {
        let order = ["k", "replaced", "n", &node, "c", &id, "s", came, "d", doubt];
        cli(&[&["XADD", "ws:control", "*"][..], &order].concat());
    };
    replace("1", "");
    replace(&came, "1");
    let frame = close(&mut socket).await;
    assert_eq!(
        (u16::from(frame.code), frame.reason.as_str()),
        (1012, CloseCode::UNDECIDED),
        "the first message concerns an earlier connection"
    );

    let (mut socket, _) = server.connect("ann", &format!("&connection_id={id}")).await;
    let deadline = Instant::now() + PATIENCE;
    while listed("came") == came {
        assert!(Instant::now() < deadline, "the new connection is never listed");
    }
    replace(&listed("came"), "");
    let frame = close(&mut socket).await;
    assert_eq!((u16::from(frame.code), frame.reason.as_str()), (4001, CloseCode::REPLACED));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_waits_for_the_log_does_not_take_over_a_later_one() {
    let redis = tokio::task::block_in_place(RedisServer::start);
    let server = serve_with_redis(&redis).await;
    server.publish(1, 0, Audience::Everyone).await;
    let (first, ack) = server.connect("ann", "").await;
    let id = ack["connection_id"].as_str().unwrap().to_owned();
    drop(first);
    redis.stop();
    // Its cursor is unknown, so the hub queries the log, which does not respond.
    let path = server.path("ann", &format!("&connection_id={id}&last_event_id=unknown"));
    let (mut early, _) = tokio_tungstenite::connect_async(path).await.unwrap();
    let (mut late, ack) = server.connect("ann", &format!("&connection_id={id}")).await;
    assert_eq!(ack["connection_id"], *id);
    redis.cont();
    let frame = close(&mut early).await;
    assert_eq!((u16::from(frame.code), frame.reason.as_str()), (4001, CloseCode::REPLACED));
    server.publish(2, 0, Audience::Connection(id.parse().unwrap())).await;
    assert_eq!(next(&mut late).await["data"]["n"], 2);
}

//! Tests of the listener against a hub, over real sockets that break.

#![expect(clippy::unwrap_used, reason = "a failed precondition fails the test")]

use axum::Router;
use fanfare::{Audience, Config, Draft, Hub, Minter, Verifier, auth::Claims, metrics::Counter};
use fanfare_client::{Cursor, Gap, Listener, Notification, Options, State, Token, TokenReason};
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};

const SECRET: &str = "a secret of thirty-two bytes, ok";
const TIMEOUT: Duration = Duration::from_secs(120);

struct Server {
    hub: Hub,
    address: SocketAddr,
}

fn config() -> Config {
    Config { connects_per_second_per_address: 0, connects_per_second_per_user: 0, ..Config::default() }
}

async fn serve(config: Config) -> Server {
    let hub = Hub::builder(Verifier::from_secret(SECRET).unwrap()).config(config).start().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().nest("/hub", hub.router()).into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, app).await });
    Server { hub, address }
}

/// Mints a token of a user that expires after the given number of seconds.
fn token(user: &str, seconds: u64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let topics = vec!["*".to_owned()];
    let claims = Claims { sub: user.to_owned(), topics, exp: Some(now + seconds), ..Claims::default() };
    Minter::from_secret(SECRET).unwrap().mint(&claims)
}

impl Server {
    fn options(&self) -> Options {
        options(self.address, token("ann", 3_600))
    }

    async fn publish(&self, n: u64, audience: Audience) {
        self.hub.publish(Draft::new("note", &json!({ "n": n })).unwrap(), audience).await.unwrap();
    }
}

fn options(address: SocketAddr, token: impl Into<Token>) -> Options {
    Options::new(format!("http://{address}/hub"), token)
}

/// Returns the next notification. Fails after [`TIMEOUT`].
async fn next(listener: &mut Listener) -> Notification {
    timeout(TIMEOUT, listener.next()).await.expect("a notification in time").expect("no rejection")
}

async fn live(listener: &mut Listener) -> (bool, u64) {
    loop {
        match next(listener).await {
            Notification::State(State::Live { resumed, replayed, .. }) => return (resumed, replayed),
            Notification::State(_) => {}
            other => panic!("expected a live connection, got {other:?}"),
        }
    }
}

/// Returns the number in the next event. Changes of state are skipped.
async fn number(listener: &mut Listener) -> u64 {
    loop {
        match next(listener).await {
            Notification::Event(event) => return event.data::<Value>().unwrap()["n"].as_u64().unwrap(),
            Notification::State(_) => {}
            other => panic!("expected an event, got {other:?}"),
        }
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !holds() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A TCP proxy to the hub whose connections can be cut.
struct Proxy {
    address: SocketAddr,
    cut: watch::Sender<u64>,
}

impl Proxy {
    async fn to(hub: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, cuts) = watch::channel(0);
        tokio::spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                let mut cuts = cuts.clone();
                cuts.mark_unchanged();
                open.spawn(async move {
                    let mut far = TcpStream::connect(hub).await.unwrap();
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { address, cut }
    }

    fn cut(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }
}

/// Reads the events with the `expected` numbers. Calls of `next` are cancelled after some microseconds, as in a select.
/// Returns the number of cancelled calls.
async fn read_events(listener: &mut Listener, expected: std::ops::RangeInclusive<u64>) -> usize {
    let mut cancelled = 0;
    for n in expected {
        loop {
            match timeout(Duration::from_micros(20), listener.next()).await {
                Err(_) => cancelled += 1,
                Ok(Ok(Notification::Event(event))) => {
                    assert_eq!(event.data::<Value>().unwrap()["n"], n);
                    break;
                }
                Ok(Ok(Notification::State(_))) => {}
                Ok(other) => panic!("{other:?}"),
            }
        }
    }
    cancelled
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_arrives_in_order_once_over_connections_that_break() {
    const ROUNDS: u64 = 12;
    let server = serve(config()).await;
    let proxy = Proxy::to(server.address).await;
    let options = options(proxy.address, token("ann", 3_600)).longest_pause(Duration::from_millis(50));
    let mut listener = options.listen().unwrap();
    live(&mut listener).await;
    let mut cancelled = 0;
    for round in 0..ROUNDS {
        let (first, last) = (round * 250 + 1, round * 250 + 250);
        let hub = server.hub.clone();
        let publisher = tokio::spawn(async move {
            for n in first..last {
                let audience = if n % 3 == 0 { Audience::User("ann".into()) } else { Audience::Everyone };
                hub.publish(Draft::new("note", &json!({ "n": n })).unwrap(), audience).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        cancelled += read_events(&mut listener, first..=first + 99).await;
        proxy.cut();
        until("the hub has closed the connection", || server.hub.stats().local == 0).await;
        publisher.await.unwrap();
        server.publish(last, Audience::Everyone).await;
        cancelled += read_events(&mut listener, first + 100..=last).await;
    }
    assert_eq!(server.hub.metrics().get(Counter::Resumes), ROUNDS);
    assert!(cancelled > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_are_not_taken_wait_at_the_hub() {
    let server = serve(config()).await;
    let mut listener = server.options().listen().unwrap();
    live(&mut listener).await;
    for n in 1..=20_000 {
        server.publish(n, Audience::Everyone).await;
    }
    for n in 1..=20_000 {
        assert_eq!(number(&mut listener).await, n);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_can_be_subscribed_to_and_unsubscribed_from() {
    let server = serve(config()).await;
    let mut listener = server.options().topics(["a"]).listen().unwrap();
    live(&mut listener).await;
    server.publish(1, Audience::Topic("a".into())).await;
    assert_eq!(number(&mut listener).await, 1);
    listener.subscribe("b").unwrap();
    listener.unsubscribe("a");
    assert!(matches!(next(&mut listener).await, Notification::Subscribed { topic } if topic == "b"));
    tokio::select! {
        notification = listener.next() => panic!("{notification:?}"),
        () = until("the hub has processed both messages", || server.hub.metrics().get(Counter::Messages) == 2) => {}
    }
    server.publish(2, Audience::Topic("a".into())).await;
    server.publish(3, Audience::Topic("b".into())).await;
    assert_eq!(number(&mut listener).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_token_is_sent_before_the_current_one_expires() {
    // The first token must not expire before the connect, even on a busy machine.
    const FIRST: Duration = Duration::from_secs(8);
    let server = serve(Config { token_warning: FIRST - Duration::from_secs(1), ..config() }).await;
    let reasons = Arc::new(Mutex::new(Vec::new()));
    let asked = reasons.clone();
    let source = Token::asked(move |reason| {
        asked.lock().unwrap().push(reason);
        let seconds = if reason == TokenReason::Connect { FIRST.as_secs() } else { 3_600 };
        async move { Ok(token("ann", seconds)) }
    });
    let mut listener = options(server.address, source).listen().unwrap();
    live(&mut listener).await;
    tokio::select! {
        notification = listener.next() => panic!("the connection must stay open: {notification:?}"),
        () = until("a newer token was requested", || reasons.lock().unwrap().len() == 2) => {}
    }
    assert_eq!(*reasons.lock().unwrap(), [TokenReason::Connect, TokenReason::Expiring]);
    let end = SystemTime::now() + FIRST;
    tokio::select! {
        notification = listener.next() => panic!("the connection must stay open: {notification:?}"),
        () = until("the first token has expired", || SystemTime::now() > end) => {}
    }
    server.publish(1, Audience::User("ann".into())).await;
    assert_eq!(number(&mut listener).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_is_final_until_a_retry_with_another_token() {
    let server = serve(config()).await;
    let mut listener = options(server.address, "no token at all").listen().unwrap();
    for _ in 0..2 {
        let refused = timeout(TIMEOUT, listener.next()).await.unwrap().unwrap_err();
        assert_eq!(refused.code, Some(1008));
        assert!(refused.reason.contains("token_invalid"), "{refused}");
    }
    assert_eq!(server.hub.metrics().get(Counter::AuthInvalid), 1, "one attempt");
    listener.retry(Some(token("ann", 3_600).into()));
    assert_eq!(live(&mut listener).await, (false, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_is_returned_before_the_events_that_follow_it() {
    let server = serve(Config { window_events: 10, ..config() }).await;
    for n in 1..=30 {
        server.publish(n, Audience::Everyone).await;
    }
    let head = server.hub.stats().head;
    let first = fanfare::Position { sequence: 1, ..head };
    let cursor = Cursor { connection_id: None, last_event_id: Some(first.to_string()) };
    let mut listener = server.options().cursor(cursor).listen().unwrap();
    live(&mut listener).await;
    match next(&mut listener).await {
        Notification::Gap(Gap { reason, .. }) => assert_eq!(reason, "expired"),
        other => panic!("{other:?}"),
    }
    for n in 21..=30 {
        assert_eq!(number(&mut listener).await, n);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_saved_while_a_gap_is_handled_leads_to_the_gap_again() {
    let server = serve(Config { window_events: 10, ..config() }).await;
    for n in 1..=30 {
        server.publish(n, Audience::Everyone).await;
    }
    let first = fanfare::Position { sequence: 1, ..server.hub.stats().head };
    let mut cursor = Cursor { connection_id: None, last_event_id: Some(first.to_string()) };
    for ends_after in ["the connect", "the gap"] {
        let mut listener = server.options().cursor(cursor).listen().unwrap();
        live(&mut listener).await;
        if ends_after == "the gap" {
            assert!(matches!(next(&mut listener).await, Notification::Gap(_)));
        }
        cursor = listener.cursor().clone();
    }
    let mut listener = server.options().cursor(cursor).listen().unwrap();
    live(&mut listener).await;
    assert!(
        matches!(next(&mut listener).await, Notification::Gap(_)),
        "the gap is returned until the application calls next again"
    );
    assert_eq!(number(&mut listener).await, 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_is_acknowledged_or_rejected() {
    let server = serve(config()).await;
    let claims = Claims { sub: "ann".to_owned(), topics: vec!["a".to_owned(), "b".to_owned()], ..Claims::default() };
    let token = Minter::from_secret(SECRET).unwrap().mint(&claims);
    let mut listener = options(server.address, token).topics(["a", "forbidden-before"]).listen().unwrap();
    live(&mut listener).await;
    let rejected = async |listener: &mut Listener| match next(listener).await {
        Notification::Problem(problem) => (problem.error, problem.topic.unwrap()),
        other => panic!("{other:?}"),
    };
    assert_eq!(rejected(&mut listener).await, ("forbidden".to_owned(), "forbidden-before".to_owned()));
    listener.subscribe("b").unwrap();
    assert!(matches!(next(&mut listener).await, Notification::Subscribed { topic } if topic == "b"));
    listener.subscribe("forbidden").unwrap();
    assert_eq!(rejected(&mut listener).await, ("forbidden".to_owned(), "forbidden".to_owned()));
    server.publish(1, Audience::Topic("b".into())).await;
    assert_eq!(number(&mut listener).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_source_that_fails_times_out_or_returns_no_token_is_called_again() {
    let server = serve(config()).await;
    let asked = Arc::new(Mutex::new(Vec::new()));
    let reasons = asked.clone();
    let source = Token::asked(move |reason| {
        let mut reasons = reasons.lock().unwrap();
        reasons.push(reason);
        let turn = reasons.len();
        async move {
            match turn {
                1 => Err("the login service is unavailable".into()),
                2 => std::future::pending().await,
                3 => Ok("<html>a page with a secret</html>".to_owned()),
                4 => Ok(token("ann", 0)),
                _ => Ok(token("ann", 3_600)),
            }
        }
    });
    let options = options(server.address, source).token_timeout(Duration::from_millis(50));
    let mut listener = options.longest_pause(Duration::from_millis(10)).listen().unwrap();
    for expected in [
        "the login service is unavailable",
        "did not answer within 0.05 s",
        "neither a JWT nor an access key",
        "token_expired",
    ] {
        match next(&mut listener).await {
            Notification::State(State::Connecting { reason, .. }) => {
                assert!(reason.contains(expected) && !reason.contains("secret"), "{expected}: {reason}");
            }
            other => panic!("{other:?}"),
        }
    }
    live(&mut listener).await;
    let connect = TokenReason::Connect;
    assert_eq!(*asked.lock().unwrap(), [connect, connect, connect, connect, TokenReason::Rejected]);
}

/// A TLS server (rustls).
async fn tls_server() -> SocketAddr {
    let key = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let private = rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![key.cert.der().clone()], private).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move { drop(acceptor.accept(stream).await) });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheme_mismatch_is_final() {
    let (tls, plain) = (tls_server().await, serve(config()).await.address);
    for (url, expected) in [
        (format!("ws://{tls}/ws"), "speaks TLS: use wss:// or https:// in its URL"),
        (format!("http://{tls}"), "speaks TLS: use wss:// or https:// in its URL"),
        (format!("wss://{plain}/hub/ws"), "does not speak TLS: use ws:// or http:// in its URL"),
    ] {
        let mut listener = Options::new(&url, token("ann", 3_600)).listen().unwrap();
        let refused = timeout(TIMEOUT, listener.next()).await.unwrap().expect_err(&url);
        assert!(refused.reason.contains(expected), "{url}: {refused}");
    }
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = other.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = other.accept().await {
            let _ = stream.write_all(b"-ERR unknown command\r\n").await;
            let _ = stream.read(&mut [0; 4_096]).await;
        }
    });
    let mut listener = options(address, token("ann", 3_600)).listen().unwrap();
    let refused = timeout(TIMEOUT, listener.next()).await.unwrap().unwrap_err();
    assert!(refused.reason.contains("is not a fanfare hub: the response is not HTTP"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_listener_resumes_from_a_saved_cursor() {
    let server = serve(config()).await;
    let mut listener = server.options().listen().unwrap();
    live(&mut listener).await;
    server.publish(1, Audience::Everyone).await;
    assert_eq!(number(&mut listener).await, 1);
    let cursor = listener.cursor().clone();
    listener.close().await;
    until("the hub has closed the connection", || server.hub.stats().local == 0).await;
    for n in 2..=4 {
        server.publish(n, Audience::User("ann".into())).await;
    }
    let mut listener = server.options().cursor(cursor.clone()).listen().unwrap();
    assert_eq!(live(&mut listener).await, (true, 3));
    assert_eq!(listener.cursor().connection_id, cursor.connection_id);
    let events = listener.into_stream().take(3).map(|notification| match notification {
        Ok(Notification::Event(event)) => event.data::<Value>().unwrap()["n"].as_u64().unwrap(),
        other => panic!("{other:?}"),
    });
    assert_eq!(timeout(TIMEOUT, events.collect::<Vec<_>>()).await.unwrap(), [2, 3, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_hub_is_retried_and_another_server_is_not() {
    let closed = SocketAddr::from(([127, 0, 0, 1], testbed::free_port()));
    let mut listener = options(closed, "t").listen().unwrap();
    for _ in 0..2 {
        match next(&mut listener).await {
            Notification::State(State::Connecting { reason, .. }) => {
                let expected = format!("failed to connect to the hub at {closed}: Connection refused");
                assert!(reason.starts_with(&expected), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
    let server = serve(config()).await;
    let mut listener = Options::new(format!("ws://{}/elsewhere", server.address), "t").listen().unwrap();
    let refused = timeout(TIMEOUT, listener.next()).await.unwrap().unwrap_err();
    assert_eq!(refused.code, None);
    assert!(refused.reason.contains("/elsewhere/ws is not a fanfare hub: HTTP status 404"), "{refused}");
}

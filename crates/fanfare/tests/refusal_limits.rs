//! Clients that are rejected repeatedly, over real sockets: the delay of their close frames, and the limits on held
//! sockets.

#![expect(clippy::unwrap_used, reason = "a test ends where something that it relies on fails")]

use axum::http::{StatusCode, header};
use fanfare::{Config, Hub, Minter, Verifier, auth::Claims, metrics::Counter};
use futures_util::StreamExt;
use std::{net::SocketAddr, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{self, Message, client::IntoClientRequest},
};

const SECRET: &str = "a secret of thirty-two bytes, ok";
const PATIENCE: Duration = Duration::from_secs(60);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn serve(config: Config) -> (Hub, SocketAddr) {
    let hub = Hub::builder(Verifier::from_secret(SECRET).unwrap()).config(config).start().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = hub.router().into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, app).await });
    (hub, address)
}

fn token(user: &str, exp: Option<u64>) -> String {
    Minter::from_secret(SECRET).unwrap().mint(&Claims { sub: user.to_owned(), exp, ..Claims::default() })
}

fn expired(user: &str) -> String {
    token(user, Some(1_000))
}

async fn connect(address: SocketAddr, token: &str) -> Result<Socket, tungstenite::Error> {
    let url = format!("ws://{address}/ws?token={token}");
    timeout(PATIENCE, tokio_tungstenite::connect_async(url)).await.expect("an answer in time").map(|(socket, _)| socket)
}

/// The code and reason of the close frame.
async fn rejection(socket: &mut Socket) -> (u16, String) {
    match timeout(PATIENCE, socket.next()).await.expect("a close in time") {
        Some(Ok(Message::Close(Some(frame)))) => (frame.code.into(), frame.reason.to_string()),
        other => panic!("expected a close frame, got {other:?}"),
    }
}

/// How long a rejected client's socket was open.
async fn held(address: SocketAddr, token: &str, reason: &str) -> Duration {
    let mut socket = connect(address, token).await.unwrap();
    let opened = Instant::now();
    let (_, why) = rejection(&mut socket).await;
    assert!(why.starts_with(reason), "{why}");
    opened.elapsed()
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

// attack: a client that reconnects after every rejection => close frames are delayed more and more, up to refusal_delay
#[tokio::test(flavor = "multi_thread")]
async fn the_close_frame_of_a_client_that_is_rejected_repeatedly_is_delayed_more_each_time() {
    let (_hub, address) = serve(Config { refusal_delay: Duration::from_secs(2), ..Config::default() }).await;
    held(address, &expired("ann"), "token_expired").await;
    // A frame may arrive late, but never early.
    for (n, seconds) in [1, 2, 2].into_iter().enumerate() {
        let delay = held(address, &expired("ann"), "token_expired").await;
        assert!(delay + Duration::from_millis(100) >= Duration::from_secs(seconds), "{n}: {delay:?}");
    }

    // Another user from the same address is not delayed.
    let mut ann = connect(address, &expired("ann")).await.unwrap();
    let anns = async {
        assert!(rejection(&mut ann).await.1.starts_with("token_expired"));
        Instant::now()
    };
    let bobs = async {
        held(address, &expired("bob"), "token_expired").await;
        Instant::now()
    };
    let (ann, bob) = tokio::join!(anns, bobs);
    assert!(bob < ann, "bob's first rejection precedes ann's fifth");

    // A successful connect resets the delay.
    let mut socket = connect(address, &token("ann", None)).await.unwrap();
    assert!(matches!(socket.next().await, Some(Ok(Message::Text(text))) if text.contains("ack")));
    let mut again = connect(address, &expired("ann")).await.unwrap();
    let mut bob = connect(address, &expired("bob")).await.unwrap();
    let ann_first = async {
        rejection(&mut again).await;
        Instant::now()
    };
    let bob_later = async {
        rejection(&mut bob).await;
        Instant::now()
    };
    let (ann, bob) = tokio::join!(ann_first, bob_later);
    assert!(ann < bob, "ann's first rejection precedes bob's second");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_rejection_is_delayed() {
    let config = Config { max_connections_per_user: 1, refusal_delay: Duration::from_secs(1), ..Config::default() };
    let (_hub, address) = serve(config).await;
    let ann = token("ann", None);
    let mut first = connect(address, &ann).await.unwrap();
    assert!(matches!(first.next().await, Some(Ok(Message::Text(_)))), "it counts from its first frame on");
    let wait = Duration::from_millis(900);
    held(address, &ann, "max_connections_per_user").await;
    assert!(held(address, &ann, "max_connections_per_user").await >= wait);

    let foreign = async || {
        let mut request = format!("ws://{address}/ws?token={ann}").into_client_request().unwrap();
        request.headers_mut().insert(header::ORIGIN, "https://evil.example.org".parse().unwrap());
        let (mut socket, _) = tokio_tungstenite::connect_async(request).await.unwrap();
        let opened = Instant::now();
        assert!(rejection(&mut socket).await.1.starts_with("origin_not_allowed"));
        opened.elapsed()
    };
    foreign().await;
    assert!(foreign().await >= wait);

    // A returning client whose place was taken is rejected by its shard.
    let Some(Ok(Message::Text(ack))) = connect(address, &token("cid", None)).await.unwrap().next().await else {
        panic!("no ack");
    };
    let ack: serde_json::Value = serde_json::from_str(&ack).unwrap();
    let cid = token("cid", None);
    // The place is free once the hub has noticed the disconnect.
    let mut second = None;
    until("the place is taken", async || {
        let mut socket = connect(address, &cid).await.unwrap();
        let taken = matches!(socket.next().await, Some(Ok(Message::Text(_))));
        second = Some(socket);
        taken
    })
    .await;
    let returning = format!("{cid}&connection_id={}", ack["connection_id"].as_str().unwrap());
    held(address, &returning, "max_connections_per_user").await;
    assert!(held(address, &returning, "max_connections_per_user").await >= wait);
    drop(second);
    until("there is room for it again", async || {
        let mut socket = connect(address, &returning).await.unwrap();
        matches!(socket.next().await, Some(Ok(Message::Text(text))) if text.contains("ack"))
    })
    .await;

    assert!(
        held(address, "no.such.token", "token_invalid").await >= wait,
        "counted by address, which was rejected before"
    );
}

// attack: one address opens many sockets that are rejected => few are held, the others receive an HTTP error
#[tokio::test(flavor = "multi_thread")]
async fn held_sockets_are_limited_and_a_disconnect_frees_a_place() {
    let config = Config { max_connections: 10, refusal_delay: Duration::from_secs(600), ..Config::default() };
    let (hub, address) = serve(config).await;
    let mut sockets = Vec::new();
    let refused = loop {
        match connect(address, "no.such.token").await {
            Ok(socket) => sockets.push(socket),
            Err(tungstenite::Error::Http(answer)) => break answer,
            Err(other) => panic!("{other}"),
        }
        // The first rejections have short delays, and each frees a place.
        assert!(sockets.len() < 20, "no bound");
    };
    assert!(sockets.len() >= 4, "{}", sockets.len());
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.headers().contains_key(header::RETRY_AFTER));
    assert!(hub.metrics().get(Counter::LimitRefusals) > 0);

    // A user with a valid token is not affected.
    let mut good = connect(address, &token("ann", None)).await.unwrap();
    assert!(matches!(good.next().await, Some(Ok(Message::Text(_)))));

    drop(sockets);
    until("there is room for another", async || connect(address, "no.such.token").await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_does_not_wait_for_held_sockets() {
    let config = Config { refusal_delay: Duration::from_secs(600), ..Config::default() };
    let (hub, address) = serve(config).await;
    let mut held = Vec::new();
    for _ in 0..12 {
        held.push(connect(address, &expired("ann")).await.unwrap());
    }
    let begun = Instant::now();
    hub.shutdown(Duration::from_secs(300)).await;
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    let mut last = held.pop().unwrap();
    let end = timeout(PATIENCE, last.next()).await.expect("an end in time");
    assert!(!matches!(end, Some(Ok(Message::Text(_)))), "{end:?}");
}

//! Floods of connects, unfinished handshakes, pings and ambiguous requests. Connected clients are served meanwhile, and
//! no resources leak.

#![expect(clippy::unwrap_used, reason = "a failed precondition fails the test")]

use fanfare::{Minter, auth::Claims};
use futures_util::{SinkExt, StreamExt};
use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};
use testbed::{HubProcess, until};
use tokio::{task::block_in_place, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{self, Message},
};

const SECRET: &str = "a secret of thirty-two bytes, ok";
const TIMEOUT: Duration = Duration::from_secs(120);

type Socket = WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>;

fn start(arguments: &[&str]) -> HubProcess {
    let program = Path::new(env!("CARGO_BIN_EXE_fanfare"));
    block_in_place(|| HubProcess::start(program, arguments, &[("SECRET_KEY", SECRET)]))
}

fn token() -> String {
    Minter::from_secret(SECRET).unwrap().mint(&Claims { sub: "ann".to_owned(), ..Claims::default() })
}

async fn connect(hub: &HubProcess) -> Socket {
    timeout(TIMEOUT, try_connect(hub)).await.unwrap().unwrap()
}

async fn try_connect(hub: &HubProcess) -> Result<Socket, tungstenite::Error> {
    let (mut socket, _) = connect_async(format!("ws://{}/ws?token={}", hub.address(), token())).await?;
    let first = socket.next().await.ok_or(tungstenite::Error::ConnectionClosed)??;
    assert!(first.to_text()?.contains("\"ack\""), "{first}");
    Ok(socket)
}

/// Connects with retries, because a busy machine may exceed the short handshake timeout.
async fn connect_with_retries(hub: &HubProcess) -> Socket {
    let accepted = async {
        loop {
            match try_connect(hub).await {
                Ok(socket) => return socket,
                Err(error) => println!("retrying: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(TIMEOUT, accepted).await.expect("timed out: a connect")
}

/// The round trip times of a connected client during a flood, sorted.
async fn round_trips(socket: &mut Socket, ongoing: impl Fn() -> bool) -> Vec<Duration> {
    let mut times = Vec::new();
    while ongoing() || times.is_empty() {
        let asked = Instant::now();
        socket.send(Message::text(r#"{"type":"ping"}"#)).await.unwrap();
        let answer = timeout(TIMEOUT, socket.next()).await.expect("timed out: a response").unwrap().unwrap();
        assert!(answer.into_text().unwrap().contains("\"pong\""));
        times.push(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    times.sort_unstable();
    times
}

fn files(hub: &HubProcess) -> usize {
    fs::read_dir(format!("/proc/{}/fd", hub.id())).unwrap().count()
}

/// Requests an upgrade. Returns the status of the response, and whether it has Retry-After.
fn ask(address: SocketAddr, path: &str) -> Option<(u16, bool)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(TIMEOUT)).ok()?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: hub\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = vec![0; 512];
    let read = stream.read(&mut answer).ok()?;
    let text = String::from_utf8_lossy(&answer[..read]).to_ascii_lowercase();
    Some((text.split(' ').nth(1)?.parse().ok()?, text.contains("retry-after: 1")))
}

fn metrics(address: SocketAddr) -> String {
    let claims = Claims { sub: "root".to_owned(), admin: true, ..Claims::default() };
    let token = Minter::from_secret(SECRET).unwrap().mint(&claims);
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: hub\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

// attack: 4,000 connects from one address => those over the rate get 429 with Retry-After or a close code; connected clients are served; no descriptor leaks
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_connects_is_rejected_without_affecting_other_clients() {
    const CONNECTS: usize = 4_000;
    let hub = start(&["--connects-per-second-per-address", "20"]);
    let mut served = connect(&hub).await;
    let before = files(&hub);
    let (address, over) = (hub.address(), AtomicBool::new(false));
    let statuses = thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let path = format!("/ws?token={}", token());
            let mut statuses = BTreeMap::new();
            for _ in 0..CONNECTS {
                *statuses.entry(ask(address, &path)).or_insert(0) += 1;
            }
            over.store(true, Ordering::Relaxed);
            statuses
        });
        let times = block_in_place(|| {
            tokio::runtime::Handle::current().block_on(round_trips(&mut served, || !over.load(Ordering::Relaxed)))
        });
        let at = |part: usize| times[(times.len() - 1) * part / 100];
        println!("round trips during the flood: p50 {:?}, p99 {:?}, of {}", at(50), at(99), times.len());
        flood.join().unwrap()
    });
    let refused: usize = statuses.iter().filter(|(status, _)| **status == Some((429, true))).map(|(_, n)| n).sum();
    let upgraded: usize = statuses.iter().filter(|(status, _)| **status == Some((101, false))).map(|(_, n)| n).sum();
    assert_eq!(refused + upgraded, CONNECTS, "each request receives a response: {statuses:?}");
    assert!(refused > CONNECTS / 2, "{statuses:?}");
    block_in_place(|| until("the files of the flood are closed", || files(&hub) <= before));
    let metrics = block_in_place(|| metrics(address));
    let counted = metrics.lines().find_map(|line| {
        line.strip_prefix("fanfare_refusals_total{limit=\"connects_per_second_per_address\"} ")?.trim().parse().ok()
    });
    // Some are rejected with a close code after the upgrade.
    assert!(counted.is_some_and(|counted: usize| counted >= refused), "{counted:?} of {refused}");
}

// attack: 300 connections that never finish their request => closed at handshake_timeout; connected clients are served meanwhile
#[tokio::test(flavor = "multi_thread")]
async fn unfinished_handshakes_time_out() {
    let hub = start(&["--handshake-timeout", "1s", "--connects-per-second-per-address", "0"]);
    let mut served = connect_with_retries(&hub).await;
    let before = files(&hub);
    let mut slow = Vec::new();
    for i in 0..300 {
        let mut stream = TcpStream::connect(hub.address()).unwrap();
        // No data, half a line, and an unfinished head.
        stream.write_all([&b""[..], b"GET /ws", b"GET /ws HTTP/1.1\r\nHost: hub\r\nX-Slow: "][i % 3]).unwrap();
        slow.push(stream);
    }
    assert!(!round_trips(&mut served, || false).await.is_empty());
    block_in_place(|| until("the connections are closed", || files(&hub) <= before));
    drop(slow);
}

// attack: a client that floods with pings, fragments or messages => closed; other clients are served
#[tokio::test(flavor = "multi_thread")]
async fn a_flooding_client_is_closed_and_others_are_served() {
    let hub = start(&[]);
    let mut served = connect(&hub).await;
    let fragment = |fin: bool, text: &str| {
        use tokio_tungstenite::tungstenite::protocol::frame::{
            Frame,
            coding::{Data, OpCode},
        };
        Message::Frame(Frame::message(text.to_owned(), OpCode::Data(Data::Text), fin))
    };
    for flood in [Message::Ping(vec![b'x'; 125].into()), fragment(false, "x"), Message::text("{}")] {
        let (mut sending, mut hearing) = connect(&hub).await.split();
        let closed = async {
            loop {
                tokio::select! {
                    sent = sending.send(flood.clone()) => if sent.is_err() { break },
                    heard = hearing.next() => if matches!(heard, None | Some(Err(_) | Ok(Message::Close(_)))) { break },
                }
            }
        };
        timeout(TIMEOUT, closed).await.expect("closed");
    }
    assert!(!round_trips(&mut served, || false).await.is_empty());
}

// attack: request smuggling by ambiguous lengths and headers, and path traversal => never a second answer; 404 or 400
#[test]
fn an_ambiguous_request_is_never_answered_twice() {
    let hub = HubProcess::start(Path::new(env!("CARGO_BIN_EXE_fanfare")), &[], &[("SECRET_KEY", SECRET)]);
    let answers = |text: &str| {
        let mut stream = TcpStream::connect(hub.address()).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).matches("HTTP/1.1 ").count()
    };
    let hidden = "GET /health HTTP/1.1\r\nHost: hub\r\n\r\n";
    for (head, most) in [
        // Every recipient must agree on the length (RFC 9112 section 6.3).
        (format!("POST /events HTTP/1.1\r\nHost: hub\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{hidden}"), 1),
        (format!("POST /events HTTP/1.1\r\nHost: hub\r\nContent-Length: +5\r\n\r\n{hidden}"), 1),
        (
            format!(
                "POST /events HTTP/1.1\r\nHost: hub\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{hidden}"
            ),
            1,
        ),
        (format!("POST /events HTTP/1.1\r\nHost: hub\r\nContent-Length : 5\r\n\r\n{hidden}"), 1),
        (format!("GET /health HTTP/1.1\r\nHost: hub\r\nX: a\r\n b: c\r\n\r\n{hidden}"), 1),
        (format!("GET /health\u{0} HTTP/1.1\r\nHost: hub\r\n\r\n{hidden}"), 1),
    ] {
        assert!(answers(&head) <= most, "{head:?}");
    }
    for path in [
        "/../etc/passwd",
        "/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/health/../metrics",
        "/ws/../health",
        "/.env",
        "/fanfare.db",
    ] {
        let answer = hub.get(path).unwrap();
        assert!(answer.starts_with("HTTP/1.1 404") || answer.starts_with("HTTP/1.1 400"), "{path}: {answer}");
    }
}

//! A hub that is stopped for longer than `heartbeat_timeout` and then resumed closes no client that responds.

#![expect(clippy::unwrap_used, reason = "a failed precondition fails the test")]

use fanfare::{Minter, auth::Claims};
use futures_util::{SinkExt, StreamExt, future::join_all};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};
use testbed::{HubProcess, RedisServer};
use tokio::{
    sync::watch,
    task::block_in_place,
    time::{interval, sleep, timeout},
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

const SECRET: &str = "a secret of thirty-two bytes, ok";
const TIMEOUT: Duration = Duration::from_secs(60);
const CLIENTS: usize = 40;

type Socket = WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>;

async fn connect(hub: &HubProcess, user: &str) -> Socket {
    let token = Minter::from_secret(SECRET).unwrap().mint(&Claims { sub: user.to_owned(), ..Claims::default() });
    let url = format!("ws://{}/ws?token={token}", hub.address());
    let (mut socket, _) = timeout(TIMEOUT, connect_async(url)).await.unwrap().unwrap();
    assert!(timeout(TIMEOUT, socket.next()).await.unwrap().unwrap().unwrap().into_text().unwrap().contains("\"ack\""));
    socket
}

/// Responds to pings, and sends some of its own if `busy`, until the pause is over and two more pings have arrived.
/// Returns how the hub closed the connection, if it did.
async fn respond(mut socket: Socket, busy: bool, over: watch::Receiver<bool>) -> Option<String> {
    let (mut since, mut ticks) = (0, interval(Duration::from_millis(250)));
    while since < 2 {
        tokio::select! {
            _ = ticks.tick(), if busy => socket.send(Message::text(r#"{"type":"ping"}"#)).await.unwrap(),
            message = timeout(TIMEOUT, socket.next()) => match message.expect("timed out: a message") {
                Some(Ok(Message::Text(text))) if text.contains(r#""type":"ping""#) => {
                    socket.send(Message::text(r#"{"type":"pong"}"#)).await.unwrap();
                    since += usize::from(*over.borrow());
                }
                Some(Ok(Message::Text(_))) => {}
                other => return Some(format!("{other:?}")),
            },
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_hub_closes_only_clients_that_do_not_respond() {
    let program = Path::new(env!("CARGO_BIN_EXE_fanfare"));
    let settings = ["--heartbeat-interval", "1s", "--heartbeat-timeout", "3s", "--max-messages-per-second", "10"];
    let hub = block_in_place(|| HubProcess::start(program, &settings, &[("SECRET_KEY", SECRET)]));
    let (pause_over, over) = watch::channel(false);
    let mut clients = Vec::new();
    for n in 0..CLIENTS {
        clients.push(tokio::spawn(respond(connect(&hub, "ann").await, n % 2 == 0, over.clone())));
    }
    let mut gone = connect(&hub, "bob").await;
    hub.signal(Signal::SIGSTOP);
    // A fixed time: it is not visible from outside that the hub was stopped for long enough.
    sleep(Duration::from_secs(8)).await;
    hub.signal(Signal::SIGCONT);
    pause_over.send(true).unwrap();
    let closed: Vec<_> = join_all(clients).await.into_iter().filter_map(Result::unwrap).collect();
    assert!(closed.is_empty(), "{closed:?}\n{}", hub.log());
    let close = async {
        loop {
            match gone.next().await {
                Some(Ok(Message::Close(frame))) => return frame.map(|frame| u16::from(frame.code)),
                Some(Ok(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    assert_eq!(timeout(TIMEOUT, close).await.expect("timed out: the close"), Some(4000));
}

/// A child that is killed at the end of the test.
struct Tail(Child);

impl Drop for Tail {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_stopped_client_reads_queued_data_before_it_times_out() {
    let program = Path::new(env!("CARGO_BIN_EXE_fanfare"));
    let settings = ["--heartbeat-interval", "1s", "--heartbeat-timeout", "60s"];
    let hub = HubProcess::start(program, &settings, &[("SECRET_KEY", SECRET)]);
    let claims = Claims { sub: "ann".to_owned(), publish: true, ..Claims::default() };
    let token = Minter::from_secret(SECRET).unwrap().mint(&claims);
    let url = format!("http://{}", hub.address());
    let mut tail = Command::new(program);
    tail.args(["tail", "--url", &url, "--token", &token, "--count", "1"]).env_clear();
    let mut tail = Tail(tail.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(tail.0.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.next().unwrap().contains("connected as"));
    let id = Pid::from_raw(i32::try_from(tail.0.id()).unwrap());
    kill(id, Signal::SIGSTOP).unwrap();
    // With this heartbeat the client gives up a hub after 6.5 s of silence. It is not visible from outside when they
    // have passed.
    thread::sleep(Duration::from_secs(9));
    let mut publish = Command::new(program);
    publish.args(["publish", "--url", &url, "--token", &token, "--type", "note", "--audience", "everyone"]).env_clear();
    assert!(publish.output().unwrap().status.success());
    kill(id, Signal::SIGCONT).unwrap();
    let rest: Vec<_> = lines.collect();
    assert!(rest.is_empty(), "{rest:?}");
    assert!(tail.0.wait().unwrap().success());
}

/// The close code that ends a connection; `None` if it ended without a close frame.
async fn close_code(mut socket: Socket) -> Option<u16> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Close(frame))) => return frame.map(|frame| frame.code.into()),
            Some(Ok(Message::Text(text))) if text.contains(r#""type":"ping""#) => {
                let _ = socket.send(Message::text(r#"{"type":"pong"}"#)).await;
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return None,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connect_queued_at_a_stopped_hub_does_not_permanently_replace_the_clients_newer_connection() {
    let program = Path::new(env!("CARGO_BIN_EXE_fanfare"));
    let redis = block_in_place(RedisServer::start);
    let start = || HubProcess::start(program, &["--redis-url", &redis.url()], &[("SECRET_KEY", SECRET)]);
    let (stopped, other) = block_in_place(|| (start(), start()));
    // The shorter pause does not end the hub's connection to Redis, the longer one does.
    for secs in [1, 4] {
        let token = Minter::from_secret(SECRET).unwrap().mint(&Claims { sub: "ann".to_owned(), ..Claims::default() });
        let (mut first, _) = connect_async(format!("ws://{}/ws?token={token}", other.address())).await.unwrap();
        let ack = timeout(TIMEOUT, first.next()).await.unwrap().unwrap().unwrap().into_text().unwrap();
        let ack: serde_json::Value = serde_json::from_str(&ack).unwrap();
        let id = ack["connection_id"].as_str().unwrap().to_owned();
        drop(first);
        stopped.signal(Signal::SIGSTOP);
        let url = |hub: &HubProcess| format!("ws://{}/ws?token={token}&connection_id={id}", hub.address());
        let early = tokio::spawn(connect_async(url(&stopped)));
        sleep(Duration::from_millis(300)).await;
        let (late, _) = connect_async(url(&other)).await.unwrap();
        // The duration of the pause is the case that this test is about.
        sleep(Duration::from_secs(secs)).await;
        stopped.signal(Signal::SIGCONT);
        let (early, _) = timeout(TIMEOUT, early).await.unwrap().unwrap().unwrap();
        let ended = timeout(TIMEOUT, async {
            tokio::select! {
                code = close_code(early) => ("early", code),
                code = close_code(late) => ("late", code),
            }
        });
        let (which, code) = ended.await.expect("timed out: one of two connections with one connection_id is closed");
        assert!(which == "early" || code == Some(1012), "{secs} s: {which} {code:?}\n{}", stopped.log());
    }
}

//! Several workers with one log in Redis, as in a deployment.

#![expect(clippy::unwrap_used, reason = "a failed precondition fails the test")]

use fanfare::{Minter, auth::Claims};
use fanfare_client::{Listener, Notification, Options, State};
use futures_util::StreamExt;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
    net::TcpStream,
    path::Path,
    time::{Duration, SystemTime},
};
use testbed::{Certificates, HubProcess, RedisServer, post_event, until};
use tokio::{
    task::{JoinSet, block_in_place},
    time::timeout,
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

const SECRET: &str = "a secret of thirty-two bytes, ok";
const TIMEOUT: Duration = Duration::from_secs(120);

type Socket = WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>;

fn start(redis: &RedisServer, arguments: &[&str]) -> HubProcess {
    let url = redis.url();
    let all = [&["--redis-url", &url][..], arguments].concat();
    block_in_place(|| HubProcess::start(program(), &all, &[("SECRET_KEY", SECRET)]))
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_fanfare"))
}

fn token(user: &str) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let claims = Claims { sub: user.to_owned(), publish: true, exp: Some(now + 600), ..Claims::default() };
    Minter::from_secret(SECRET).unwrap().mint(&claims)
}

/// A client and its `ack`.
async fn connect(hub: &HubProcess, user: &str, query: &str) -> (Socket, Value) {
    let url = format!("ws://{}/ws?token={}{query}", hub.address(), token(user));
    let (mut socket, _) = timeout(TIMEOUT, connect_async(url)).await.unwrap().unwrap();
    let ack = next(&mut socket).await;
    assert_eq!(ack["type"], "ack");
    (socket, ack)
}

async fn next(socket: &mut Socket) -> Value {
    match timeout(TIMEOUT, socket.next()).await.expect("timed out: a message") {
        Some(Ok(Message::Text(text))) => serde_json::from_str(&text).unwrap(),
        other => panic!("expected a text message, got {other:?}"),
    }
}

/// The code that the hub closes the connection with.
async fn close_code(socket: &mut Socket) -> u16 {
    loop {
        match timeout(TIMEOUT, socket.next()).await.expect("timed out: the close") {
            Some(Ok(Message::Close(Some(frame)))) => return frame.code.into(),
            Some(Ok(_)) => {}
            other => panic!("expected a close frame, got {other:?}"),
        }
    }
}

/// The response to publishing an event.
fn publish(hub: &HubProcess, n: u64) -> String {
    try_publish(hub, n).unwrap()
}

/// Publishes until the response confirms the event, as backends do.
fn publish_surely(hub: &HubProcess, n: u64) {
    let there = || try_publish(hub, n).is_ok_and(|answer| answer.starts_with("HTTP/1.1 20"));
    block_in_place(|| until("the event is in the log", there));
}

fn try_publish(hub: &HubProcess, n: u64) -> io::Result<String> {
    let body =
        json!({ "type": "note", "audience": "everyone", "event_id": format!("e{n}"), "data": { "n": n } }).to_string();
    block_in_place(|| post_event(hub.address(), &token("backend"), &body, TIMEOUT))
}

fn until_there_are(hub: &HubProcess, workers: usize) -> Vec<u32> {
    block_in_place(|| until("all workers are running", || hub.workers().len() == workers));
    hub.workers()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_is_restarted_and_its_clients_lose_no_events() {
    let redis = block_in_place(RedisServer::start);
    let hub = start(&redis, &["--workers", "3"]);
    let before = until_there_are(&hub, 3);
    let mut clients = Vec::new();
    for i in 0..12 {
        clients.push((connect(&hub, &format!("user-{i}"), "").await.0, String::new()));
    }
    assert!(publish(&hub, 1).starts_with("HTTP/1.1 201"));
    for (socket, last) in &mut clients {
        *last = next(socket).await["log_position"].as_str().unwrap().to_owned();
    }
    HubProcess::signal_to(before[0], Signal::SIGKILL);
    block_in_place(|| until("the worker is restarted", || hub.log().contains("was killed by signal 9; restarting")));
    assert!(publish(&hub, 2).starts_with("HTTP/1.1 201"));
    let mut cut = 0;
    for (i, (socket, last)) in clients.iter_mut().enumerate() {
        let message = match timeout(TIMEOUT, socket.next()).await.unwrap() {
            Some(Ok(Message::Text(text))) => serde_json::from_str(&text).unwrap(),
            _ => {
                cut += 1;
                let query = format!("&last_event_id={last}");
                let (mut again, ack) = connect(&hub, &format!("user-{i}"), &query).await;
                assert_eq!(ack["resumed"], true, "{ack}");
                next(&mut again).await
            }
        };
        assert_eq!(message["data"]["n"], 2, "{message}");
    }
    assert!((1..12).contains(&cut), "the clients were spread over the workers; {cut} lost their connection");
    block_in_place(|| until("three workers run again", || hub.workers().len() == 3 && hub.workers() != before));
    assert_eq!(
        hub.workers().iter().filter(|worker| before.contains(worker)).count(),
        2,
        "the other workers were not restarted"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_worker_outlives_its_supervisor() {
    let redis = block_in_place(RedisServer::start);
    let mut hub = start(&redis, &["--workers", "2"]);
    let workers = until_there_are(&hub, 2);
    let (mut client, _) = connect(&hub, "ann", "").await;
    hub.kill();
    assert_eq!(next(&mut client).await["type"], "goaway", "clients are drained in this case too");
    block_in_place(|| until("the workers have exited", || workers.iter().all(|&id| has_ended(id))));
}

fn has_ended(id: u32) -> bool {
    !Path::new(&format!("/proc/{id}/cmdline")).exists() || is_zombie(id)
}

/// A process that has exited and was not reaped.
fn is_zombie(id: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_drains_all_clients_and_exits_with_code_0() {
    let redis = block_in_place(RedisServer::start);
    let mut hub = start(&redis, &["--workers", "2", "--drain-rate", "200"]);
    until_there_are(&hub, 2);
    let mut clients = Vec::new();
    for i in 0..40 {
        clients.push(connect(&hub, &format!("user-{i}"), "").await.0);
    }
    hub.signal(Signal::SIGTERM);
    let mut pauses = BTreeSet::new();
    for socket in &mut clients {
        let goaway = next(socket).await;
        assert_eq!(goaway["type"], "goaway");
        pauses.insert(goaway["reconnect_after_ms"].as_u64().unwrap());
        assert_eq!(close_code(socket).await, 1012);
    }
    assert!(pauses.len() > 10 && *pauses.last().unwrap() < 2_000, "each has its own time: {pauses:?}");
    drop(clients);
    assert_eq!(block_in_place(|| hub.wait()).code(), Some(0), "{}", hub.log());
    assert_eq!(redis.cli(&["ZCOUNT", "ws:nodes", "(0", "+inf"]), "0", "the nodes have deregistered");
    assert_eq!(redis.cli(&["EXISTS", "ws:members"]), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_exits_immediately() {
    let redis = block_in_place(RedisServer::start);
    // At this rate the drain would take a minute.
    let mut hub = start(&redis, &["--workers", "2", "--drain-rate", "1"]);
    until_there_are(&hub, 2);
    let mut clients = Vec::new();
    for i in 0..60 {
        clients.push(connect(&hub, &format!("user-{i}"), "").await.0);
    }
    hub.signal(Signal::SIGTERM);
    block_in_place(|| until("the hub shuts down", || hub.log().contains("a second signal exits immediately")));
    hub.signal(Signal::SIGINT);
    assert_eq!(block_in_place(|| hub.wait()).code(), Some(1), "{}", hub.log());
}

/// Connects, which must succeed, and disconnects. A worker that shuts down at that moment closes with 1012.
async fn connect_briefly(hub: &HubProcess) {
    let url = format!("ws://{}/ws?token={}", hub.address(), token("passer-by"));
    let (mut socket, _) = timeout(TIMEOUT, connect_async(url)).await.unwrap().expect("a connect failed");
    match timeout(TIMEOUT, socket.next()).await.expect("timed out: the first message") {
        Some(Ok(Message::Text(text))) => assert!(text.contains(r#""type":"ack""#), "{text}"),
        Some(Ok(Message::Close(Some(frame)))) => assert_eq!(u16::from(frame.code), 1012),
        other => panic!("expected an ack or a close, got {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_replaces_the_workers_and_no_connect_fails() {
    let redis = block_in_place(RedisServer::start);
    let limits = ["--connects-per-second-per-address", "--connects-per-second-per-user"].map(|limit| [limit, "0"]);
    let hub = start(&redis, &[&["--workers", "3"][..], &limits.concat()].concat());
    let before = until_there_are(&hub, 3);
    let (mut client, ack) = connect(&hub, "ann", "").await;
    let name = ack["connection_id"].clone();
    hub.signal(Signal::SIGHUP);
    let mut connects = 0;
    while !hub.log().contains("all workers are replaced") {
        connect_briefly(&hub).await;
        connects += 1;
    }
    assert!(connects > 0, "the workers are not replaced before the first connect");
    let after = until_there_are(&hub, 3);
    assert!(after.iter().all(|worker| !before.contains(worker)), "{before:?} {after:?}");
    assert_eq!(close_code(&mut client).await, 1012);
    assert!(publish(&hub, 1).starts_with("HTTP/1.1 201"));
    let query =
        format!("&connection_id={}&last_event_id={}", name.as_str().unwrap(), ack["event_id"].as_str().unwrap());
    let (mut again, back) = connect(&hub, "ann", &query).await;
    assert_eq!((&back["connection_id"], &back["resumed"]), (&name, &json!(true)));
    assert_eq!(next(&mut again).await["data"]["n"], 1);
}

/// Receives events up to `last`. Returns how often the listener resumed.
async fn count(mut listener: Listener, last: u64) -> u64 {
    let (mut expected, mut resumes) = (1, 0);
    while expected <= last {
        match timeout(TIMEOUT, listener.next())
            .await
            .expect("timed out: a notification")
            .expect("the hub rejected the listener")
        {
            Notification::Event(event) => {
                assert_eq!(event.data::<Value>().unwrap()["n"], expected);
                expected += 1;
            }
            Notification::State(State::Live { resumed: true, .. }) => resumes += 1,
            Notification::State(_) => {}
            other => panic!("{other:?}"),
        }
    }
    resumes
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_receive_every_event_once_during_a_rollout() {
    let redis = block_in_place(RedisServer::start);
    let limits = ["--connects-per-second-per-address", "--connects-per-second-per-user"].map(|limit| [limit, "0"]);
    let hub = start(&redis, &[&["--workers", "2"][..], &limits.concat()].concat());
    let before = until_there_are(&hub, 2);
    const LAST: u64 = 400;
    let mut listeners = JoinSet::new();
    for user in ["ann", "bob", "cleo", "dan"] {
        let mut listener = Options::new(format!("http://{}", hub.address()), token(user)).listen().unwrap();
        let live = timeout(TIMEOUT, listener.next()).await.unwrap().unwrap();
        assert!(matches!(live, Notification::State(State::Live { resumed: false, .. })), "{live:?}");
        listeners.spawn(count(listener, LAST));
    }
    hub.signal(Signal::SIGHUP);
    for n in 1..LAST {
        publish_surely(&hub, n);
    }
    block_in_place(|| until("the workers are replaced", || hub.log().contains("all workers are replaced")));
    publish_surely(&hub, LAST);
    assert!(until_there_are(&hub, 2).iter().all(|worker| !before.contains(worker)));
    let resumes = listeners.join_all().await;
    assert!(resumes.iter().all(|&resumes| resumes > 0), "each was drained and resumed: {resumes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_clients_connect_and_publishers_receive_503() {
    let mut redis = block_in_place(|| RedisServer::setup().persistent().start());
    let hub = start(&redis, &[]);
    let (mut client, _) = connect(&hub, "ann", "").await;
    let mut places = Vec::new();
    for n in 1..=3 {
        assert!(publish(&hub, n).starts_with("HTTP/1.1 201"));
        let event = next(&mut client).await;
        assert_eq!(event["data"]["n"], n);
        places.push(event["log_position"].as_str().unwrap().to_owned());
    }
    redis.kill();
    block_in_place(|| until("the hub is not ready", || !hub.is_ready()));
    let refused = publish(&hub, 4);
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("retry-after: 1"), "{refused}");
    let health = hub.get("/ws/health").unwrap();
    assert!(health.starts_with("HTTP/1.1 503") && health.contains(r#""status":"unhealthy","problem":""#), "{health}");
    assert!(health.contains(r#""redis":{"connected":false,"pubsub_connected":false}"#), "{health}");

    let (mut other, ack) = connect(&hub, "bob", &format!("&last_event_id={}", places[0])).await;
    assert_eq!((&ack["resumed"], &ack["replayed"]), (&json!(true), &json!(2)));
    assert_eq!(
        (next(&mut other).await["data"]["n"].as_u64(), next(&mut other).await["data"]["n"].as_u64()),
        (Some(2), Some(3))
    );

    block_in_place(|| redis.restart());
    block_in_place(|| until("the hub is ready again", || hub.is_ready()));
    assert!(publish(&hub, 4).starts_with("HTTP/1.1 201"));
    for socket in [&mut client, &mut other] {
        assert_eq!(next(socket).await["data"]["n"], 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_reached_over_tls() {
    let redis = block_in_place(|| RedisServer::setup().tls().password("hush").start());
    let (url, authority) = (redis.url(), redis.authority());
    let environment = [("SECRET_KEY", SECRET), ("SSL_CERT_FILE", authority.to_str().unwrap())];
    let hub = block_in_place(|| HubProcess::start(program(), &["--redis-url", &url, "--workers", "2"], &environment));
    let (mut client, _) = connect(&hub, "ann", "").await;
    assert!(publish(&hub, 1).starts_with("HTTP/1.1 201"));
    assert_eq!(next(&mut client).await["data"]["n"], 1);
    assert!(!hub.log().contains("hush"), "{}", hub.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_reached_with_a_client_certificate() {
    let certificates = Certificates::issued(true);
    let redis = block_in_place(|| RedisServer::setup().certificates(&certificates).start());
    let path = |path: std::path::PathBuf| path.display().to_string();
    let (url, authority) = (redis.url(), path(certificates.authority()));
    let (certificate, key) = (path(certificates.client()), path(certificates.client_key()));
    let files = ["--redis-ca-file", &authority, "--redis-certificate-file", &certificate, "--redis-key-file", &key];
    let arguments = [&["--redis-url", &url, "--workers", "2"][..], &files].concat();
    let hub = block_in_place(|| HubProcess::start(program(), &arguments, &[("SECRET_KEY", SECRET)]));
    let (mut client, _) = connect(&hub, "ann", "").await;
    assert!(publish(&hub, 1).starts_with("HTTP/1.1 201"));
    assert_eq!(next(&mut client).await["data"]["n"], 1);
    let mut check = std::process::Command::new(program());
    check.arg("check").args(&arguments[..2]).args(files).env("SECRET_KEY", SECRET);
    let output = block_in_place(|| check.output()).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(&format!("at localhost:{}", redis.port())), "{text}");

    for (files, expected) in [
        (&files[..2], "set redis_certificate_file and redis_key_file"),
        (&["--redis-ca-file", &key], "redis_key_file: there is no certificate in PEM form"),
        (&["--redis-ca-file", "missing.pem"], "redis_ca_file: missing.pem: "),
    ] {
        let arguments = [&["--redis-url", &url][..], files].concat();
        let mut hub = block_in_place(|| HubProcess::launch(program(), &arguments, &[("SECRET_KEY", SECRET)]));
        assert!(!block_in_place(|| hub.wait()).success());
        assert!(hub.log().contains(expected), "{expected}: {}", hub.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_redis_stops_the_start_with_advice() {
    let redis = block_in_place(|| RedisServer::setup().password("hush").start());
    let closed = testbed::free_port();
    for (url, workers, expected) in [
        (format!("redis://:wrong@127.0.0.1:{}", redis.port()), "1", "check user and password in redis_url (REDIS_URL)"),
        (format!("redis://:wrong@127.0.0.1:{}", redis.port()), "2", "check user and password in redis_url (REDIS_URL)"),
        (format!("redis://127.0.0.1:{closed}"), "1", "can't be reached: Connection refused"),
    ] {
        let arguments = ["--redis-url", &url, "--workers", workers];
        let mut hub = block_in_place(|| HubProcess::launch(program(), &arguments, &[("SECRET_KEY", SECRET)]));
        assert_eq!(block_in_place(|| hub.wait()).code(), Some(1), "{}", hub.log());
        assert!(hub.log().contains(expected) && !hub.log().contains("wrong@"), "{}", hub.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_policy_that_could_evict_the_log_causes_a_warning() {
    let redis = block_in_place(|| RedisServer::setup().line("maxmemory-policy allkeys-lru").start());
    let hub = start(&redis, &[]);
    for expected in ["maxmemory-policy of Redis is allkeys-lru", "set maxmemory-policy noeviction"] {
        block_in_place(|| until(expected, || hub.log().contains(expected)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_during_a_rollout_shuts_everything_down() {
    let redis = block_in_place(RedisServer::start);
    let mut hub = start(&redis, &["--workers", "2", "--drain-rate", "1", "--drain-timeout", "4s"]);
    let before = until_there_are(&hub, 2);
    let mut clients = Vec::new();
    for i in 0..30 {
        clients.push(connect(&hub, &format!("user-{i}"), "").await.0);
    }
    hub.signal(Signal::SIGHUP);
    // The replacement runs while the old worker drains.
    let during = until_there_are(&hub, 3);
    hub.signal(Signal::SIGTERM);
    assert_eq!(block_in_place(|| hub.wait()).code(), Some(0), "{}", hub.log());
    assert!(before.iter().chain(&during).all(|&id| has_ended(id)), "all processes have exited");
}

/// A hub that takes a minute to drain its clients, which are returned with it.
async fn start_with_slow_drain(redis: &RedisServer, workers: &str) -> (HubProcess, Vec<Socket>) {
    let hub = start(redis, &["--workers", workers, "--drain-rate", "1"]);
    let mut clients = Vec::new();
    for i in 0..60 {
        clients.push(connect(&hub, &format!("user-{i}"), "").await.0);
    }
    (hub, clients)
}

/// Waits until connects are refused instead of queued.
fn until_connects_are_refused(hub: &HubProcess) {
    let refused = || {
        let second = Duration::from_secs(1);
        TcpStream::connect_timeout(&hub.address(), second)
            .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    };
    block_in_place(|| until("connects are refused", refused));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_shuts_down_refuses_connects() {
    let redis = block_in_place(RedisServer::start);
    for workers in ["1", "2"] {
        let (hub, clients) = start_with_slow_drain(&redis, workers).await;
        hub.signal(Signal::SIGTERM);
        until_connects_are_refused(&hub);
        assert!(!hub.log().contains("exited with"), "its clients are still being drained: {}", hub.log());
        drop((hub, clients));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_without_a_supervisor_accept_no_connects_of_the_next_one() {
    let redis = block_in_place(RedisServer::start);
    let (mut hub, clients) = start_with_slow_drain(&redis, "2").await;
    let workers = hub.workers();
    hub.kill();
    until_connects_are_refused(&hub);
    assert!(workers.iter().all(|&id| !has_ended(id)), "they still drain their clients");
    drop(clients);
    workers.iter().for_each(|&id| HubProcess::signal_to(id, Signal::SIGKILL));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_during_a_rollout_is_restarted() {
    let redis = block_in_place(RedisServer::start);
    let (hub, _clients) = start_with_slow_drain(&redis, "2").await;
    let before = until_there_are(&hub, 2);
    hub.signal(Signal::SIGHUP);
    until_there_are(&hub, 3);
    HubProcess::signal_to(before[1], Signal::SIGKILL);
    let again = || starts_of(&hub, 1) == 2;
    block_in_place(|| until("the worker is restarted", again));
    assert!(!hub.log().contains("drained"), "the rollout has not continued: {}", hub.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_to_a_worker_does_not_interrupt_its_drain() {
    let redis = block_in_place(RedisServer::start);
    let hub = start(&redis, &["--workers", "2", "--drain-rate", "20"]);
    let mut clients = Vec::new();
    for i in 0..40 {
        clients.push(connect(&hub, &format!("user-{i}"), "").await.0);
    }
    let before = until_there_are(&hub, 2);
    let terminate = |id: u32| (0..2).for_each(|_| HubProcess::signal_to(id, Signal::SIGTERM));
    terminate(before[0]);
    block_in_place(|| {
        until("the worker drains, and another is started", || hub.log().contains("worker is draining after a signal"));
    });
    terminate(before[0]);
    block_in_place(|| until("the worker has exited", || hub.log().contains("worker drained and exited with code 0")));
    terminate(before[1]);
    for socket in &mut clients {
        assert_eq!(next(socket).await["type"], "goaway");
        assert_eq!(close_code(socket).await, 1012);
    }
    block_in_place(|| until("both workers are replaced", || starts_of(&hub, 0) == 2 && starts_of(&hub, 1) == 2));
}

/// How often a worker was started.
fn starts_of(hub: &HubProcess, worker: usize) -> usize {
    let name = format!("worker={worker} ");
    hub.log().lines().filter(|line| line.contains("started") && line.contains(&name)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connections_of_a_user_are_limited_over_all_workers() {
    let redis = block_in_place(RedisServer::start);
    let hub = start(&redis, &["--workers", "3", "--max-connections-per-user", "5"]);
    let mut clients = Vec::new();
    for _ in 0..15 {
        let url = format!("ws://{}/ws?token={}", hub.address(), token("ann"));
        let (mut socket, _) = timeout(TIMEOUT, connect_async(url)).await.unwrap().unwrap();
        // Each worker rejects connections beyond its own count of a user.
        if let Some(Ok(Message::Text(_))) = timeout(TIMEOUT, socket.next()).await.expect("timed out: the first frame") {
            clients.push(socket);
        }
    }
    let surplus = clients.len() - 5;
    let root = Claims { sub: "root".to_owned(), admin: true, ..Claims::default() };
    let root = Minter::from_secret(SECRET).unwrap().mint(&root);
    let mut operators = Vec::new();
    for _ in 0..10 {
        let url = format!("ws://{}/ws?token={root}", hub.address());
        let (mut socket, _) = timeout(TIMEOUT, connect_async(url)).await.unwrap().unwrap();
        assert_eq!(next(&mut socket).await["type"], "ack");
        operators.push(socket);
    }
    let (mut other, _) = connect(&hub, "bob", "").await;
    let disconnected = || redis.cli(&["XRANGE", "ws:control", "-", "+"]).matches("surplus").count() == surplus;
    let held = || redis.cli(&["SCARD", "ws:user:ann:connections"]) == "5";
    block_in_place(|| until("the connections beyond the limit are closed", || disconnected() && held()));
    assert!(publish(&hub, 1).starts_with("HTTP/1.1 201"));
    let (mut stay, mut closed) = (0, 0);
    for socket in &mut clients {
        loop {
            match timeout(TIMEOUT, socket.next()).await.expect("timed out: a message") {
                Some(Ok(Message::Text(text))) if text.contains(r#""type":"note""#) => break stay += 1,
                Some(Ok(Message::Close(Some(frame)))) => {
                    assert_eq!(u16::from(frame.code), 1013);
                    assert!(frame.reason.starts_with("max_connections_per_user: "), "{}", frame.reason);
                    break closed += 1;
                }
                Some(Ok(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!((stay, closed), (5, surplus));
    assert_eq!(next(&mut other).await["data"]["n"], 1, "other users are not affected");
    for socket in &mut operators {
        assert_eq!(next(socket).await["data"]["n"], 1, "an administrator may have any number");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn why_queries_all_workers() {
    let redis = RedisServer::start();
    let hub = start(&redis, &["--workers", "2"]);
    // Enough that both workers have some.
    let mut clients = Vec::new();
    for n in 0..12 {
        clients.push(connect(&hub, &format!("user-{n}"), "").await);
    }
    publish_surely(&hub, 1);
    for (socket, _) in &mut clients {
        assert_eq!(next(socket).await["event_id"], "e1");
    }
    let url = format!("http://{}", hub.address());
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(program());
        command.args(["why", "--url", &url]).args(arguments).env("SECRET_KEY", SECRET);
        block_in_place(|| command.output()).unwrap()
    };
    let summary = || serde_json::from_slice::<Value>(&run(&["e1", "--user", "user-3", "--json"]).stdout).unwrap();
    let sum = |summary: &Value, field: &str| {
        summary["nodes"].as_array().unwrap().iter().map(|node| node[field].as_u64().unwrap()).sum::<u64>()
    };
    // A worker counts deliveries after it has written them.
    block_in_place(|| {
        until("both workers respond with their counts", || {
            let summary = summary();
            summary["nodes"].as_array().is_some_and(|nodes| nodes.len() == 2) && sum(&summary, "written") == 12
        });
    });
    let summary = summary();
    let sums = ["connected", "matched", "written", "waiting"].map(|field| sum(&summary, field));
    assert_eq!(sums, [12, 12, 12, 0], "{summary}");
    assert_eq!((&summary["publisher"], &summary["silent_nodes"]), (&json!("user:backend"), &json!(0)));
    let text = String::from_utf8(run(&["e1", "--user", "user-3"]).stdout).unwrap();
    let connection = clients[3].1["connection_id"].as_str().unwrap();
    assert!(text.contains(&format!("{connection} on ")) && text.contains(": written\n"), "{text}");
    let text = String::from_utf8(run(&["--connection", connection]).stdout).unwrap();
    assert!(text.starts_with(&format!("{connection} of user-3, from 127.0.0.1, on ")), "{text}");
    assert!(text.contains("last event   e1\n") && text.contains("at the head"), "{text}");
    let unknown = run(&["e2"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("no node has an event \"e2\""), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_worker_is_replaced() {
    let redis = RedisServer::start();
    let hub = start(&redis, &["--workers", "2"]);
    let (_socket, ack) = connect(&hub, "ann", "").await;
    let connection = ack["connection_id"].as_str().unwrap();
    let claims = Claims { sub: "ops".to_owned(), admin: true, ..Claims::default() };
    let admin = Minter::from_secret(SECRET).unwrap().mint(&claims);
    let client = reqwest::Client::new();
    let base = format!("http://{}", hub.address());
    let before = hub.workers();
    let node = {
        let details = client.get(format!("{base}/connections/{connection}")).bearer_auth(&admin).send().await.unwrap();
        let details: Value = serde_json::from_str(&details.text().await.unwrap()).unwrap();
        details["node"].as_str().unwrap().to_owned()
    };
    let drained = client.post(format!("{base}/nodes/{node}/drain")).bearer_auth(&admin).send().await.unwrap();
    assert_eq!(drained.status(), 202);
    block_in_place(|| {
        until("the worker is replaced", || {
            let now = hub.workers();
            now.len() == 2 && now.iter().filter(|id| before.contains(id)).count() == 1
        });
    });
    let drain_logged = || hub.log().contains("an administrator requested a drain");
    block_in_place(|| until("the cause is logged", drain_logged));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_level_changes_on_all_workers() {
    let redis = RedisServer::start();
    let hub = start(&redis, &["--workers", "2"]);
    let url = format!("http://{}", hub.address());
    let switch = |level: &str| {
        let mut command = std::process::Command::new(program());
        command.args(["log-level", level, "--url", &url]).env("SECRET_KEY", SECRET);
        block_in_place(|| command.output()).unwrap()
    };
    let lines = |what: &str| hub.log().lines().filter(|line| line.contains(what)).count();
    // A malformed request is logged at level debug only.
    let nonsense = || {
        let mut stream = TcpStream::connect(hub.address()).unwrap();
        stream.write_all(b"nonsense\r\n\r\n").unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    };
    block_in_place(nonsense);
    assert_eq!(lines("HTTP connection closed early"), 0);
    assert!(switch("debug").status.success());
    block_in_place(|| until("both workers have switched", || lines("log_level is now debug") == 2));
    block_in_place(|| {
        until("the malformed request is logged", || {
            nonsense();
            lines("HTTP connection closed early") > 0
        });
    });
    let wrong = switch("loud");
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("error, warn, info, debug or trace"), "{wrong:?}");
}

//! Many connections at once: the hub's workers hold them, and every connection receives every event. Several processes
//! run the clients, because of the limit on open files for each process.

use crate::{Options, SECRET, UNLIMITED, mint, program, storm::user_memory_kib};
use anyhow::{Context, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use testbed::{HubProcess, RedisServer, post_event, until};
use tokio::{net::TcpSocket, runtime::Runtime, time::timeout};
use tokio_tungstenite::{client_async, tungstenite::Message};

/// Connections of one client process.
const PART: usize = 12_500;

/// Connects a second, over all client processes.
const RATE: usize = 1_000;

/// Events that every client must receive.
const EVENTS: usize = 10;

/// The time for which all connections are held before the events are published.
const HOLD: Duration = Duration::from_secs(30);

/// The time within which a connection must be accepted.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Holds connections and publishes to them.
pub(crate) fn run(options: &Options, connections: usize) -> anyhow::Result<ExitCode> {
    let redis = RedisServer::start();
    let (url, workers) = (redis.url(), options.workers.to_string());
    let mut arguments = vec!["--redis-url", &url, "--workers", &workers];
    arguments.extend(UNLIMITED);
    arguments.extend(["--max-connections", "0"]);
    let hub = HubProcess::start(&program(options)?, &arguments, &[("SECRET_KEY", SECRET)]);
    let memory = || -> anyhow::Result<i64> {
        let processes = if options.workers == 1 { vec![hub.id()] } else { hub.workers() };
        processes.into_iter().map(user_memory_kib).sum()
    };
    let (empty, begun) = (memory()?, Instant::now());
    let parts = connections.div_ceil(PART);
    let mut children = Vec::new();
    for part in 0..parts {
        let count = PART.min(connections - part * PART);
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--hold-part", &count.to_string(), "--rate", &(RATE / parts).max(1).to_string()])
            .args(["--address", &hub.address().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = BufReader::new(child.stdout.take().context("a client process has no stdout")?);
        children.push((child, output));
    }
    let connected: usize = each(&mut children, "connected")?;
    let took = begun.elapsed();
    println!(
        "{connected} of {connections} connected after {:.1} s, {} failed",
        took.as_secs_f64(),
        connections - connected
    );
    thread::sleep(HOLD);
    let held = memory()? - empty;
    let health = hub.get("/ws/health").context("no response from the hub")?;
    let body: Value = serde_json::from_str(health.split("\r\n\r\n").nth(1).context("a response has no body")?)?;
    println!(
        "after {} s the hub reports {} on {} nodes",
        HOLD.as_secs(),
        body["connections"]["total"],
        body["log"]["nodes"]
    );
    println!(
        "user memory of {} workers above empty: {:.1} MB, {:.2} KiB a connection",
        options.workers,
        held as f64 / 1_024.0,
        held as f64 / connected as f64
    );
    for n in 1..=EVENTS {
        let body =
            json!({ "type": "note", "audience": "everyone", "event_id": format!("hold-{n}"), "data": { "n": n } })
                .to_string();
        publish(hub.address(), &body)?;
    }
    for (child, _) in &mut children {
        // End of input is the signal to report.
        drop(child.stdin.take());
    }
    let received: usize = each(&mut children, "received")?;
    println!("{received} of {} events received", connected * EVENTS);
    for (mut child, _) in children {
        child.wait()?;
    }
    let fine = connected == connections && received == connected * EVENTS;
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Reads one line `WORD NUMBER` from each client process, and returns the sum.
fn each(children: &mut [(Child, BufReader<std::process::ChildStdout>)], word: &str) -> anyhow::Result<usize> {
    let mut sum = 0;
    for (_, output) in children {
        let mut line = String::new();
        output.read_line(&mut line)?;
        let Some(n) = line.trim().strip_prefix(word).and_then(|n| n.trim().parse::<usize>().ok()) else {
            bail!("unexpected output of a client process: {line:?}");
        };
        sum += n;
    }
    Ok(sum)
}

fn publish(address: SocketAddr, body: &str) -> anyhow::Result<()> {
    let answer = post_event(address, &mint("publisher".to_owned(), true)?, body, TIMEOUT)?;
    let line = answer.lines().next().unwrap_or_default();
    ensure!(line.starts_with("HTTP/1.1 201"), "the hub rejected an event: {line}");
    Ok(())
}

/// One client process: connects its clients, prints how many are live, and, at the end of its input, how many events
/// they received.
pub(crate) fn part(count: usize, rate: u32, address: SocketAddr) -> anyhow::Result<ExitCode> {
    let runtime = Runtime::new()?;
    let (live, failed, received) =
        (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    for i in 0..count {
        let token = mint(format!("user-{}-{i}", std::process::id()), false)?;
        let (live, failed, received) = (live.clone(), failed.clone(), received.clone());
        runtime.spawn(async move {
            if client(address, &token, &live, &received).await.is_none() {
                failed.fetch_add(1, Ordering::Relaxed);
            }
        });
        thread::sleep(Duration::from_secs(1) / rate);
    }
    let settled = || live.load(Ordering::Relaxed) + failed.load(Ordering::Relaxed) == count;
    until("every client is connected or rejected", settled);
    println!("connected {}", live.load(Ordering::Relaxed));
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let wanted = live.load(Ordering::Relaxed) * EVENTS;
    let deadline = Instant::now() + TIMEOUT;
    while received.load(Ordering::Relaxed) < wanted && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
    println!("received {}", received.load(Ordering::Relaxed));
    runtime.shutdown_timeout(Duration::from_millis(100));
    Ok(ExitCode::SUCCESS)
}

/// Holds one connection. `None` if it was rejected or lost.
async fn client(address: SocketAddr, token: &str, live: &AtomicUsize, received: &AtomicUsize) -> Option<()> {
    let open = async {
        let socket = TcpSocket::new_v4().ok()?;
        socket.set_recv_buffer_size(4 << 10).ok()?;
        let stream = socket.connect(address).await.ok()?;
        Some(client_async(format!("ws://{address}/ws?token={token}"), stream).await.ok()?.0)
    };
    let mut socket = timeout(TIMEOUT, open).await.ok()??;
    while let Some(Ok(message)) = socket.next().await {
        let Message::Text(text) = message else { continue };
        if text.starts_with(r#"{"type":"ping""#) {
            socket.send(Message::text(r#"{"type":"pong"}"#)).await.ok()?;
        } else if text.starts_with(r#"{"type":"ack""#) {
            live.fetch_add(1, Ordering::Relaxed);
        } else {
            received.fetch_add(1, Ordering::Relaxed);
        }
    }
    None
}

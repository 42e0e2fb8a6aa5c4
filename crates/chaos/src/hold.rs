//! Many connections at once: the hub's workers hold them, and every one gets every event. The clients are in processes of
//! their own, because a process may open too few files for all.

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

/// Connections that one process of clients holds.
const PART: usize = 12_500;

/// Connections a second, all processes together.
const RATE: usize = 1_000;

/// Events that every client must get.
const EVENTS: usize = 10;

/// How long all are held before the events.
const HOLD: Duration = Duration::from_secs(30);

/// How long a client may take to be let in.
const PATIENCE: Duration = Duration::from_secs(20);

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
        let said = BufReader::new(child.stdout.take().context("it has an output")?);
        children.push((child, said));
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
    let health = hub.get("/ws/health").context("the hub answers")?;
    let body: Value = serde_json::from_str(health.split("\r\n\r\n").nth(1).context("an answer has a body")?)?;
    println!(
        "after {} s the hub counts {} on {} nodes",
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
        // Its input ends, and so it reports.
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

/// The sum of what each child says.
fn each(children: &mut [(Child, BufReader<std::process::ChildStdout>)], word: &str) -> anyhow::Result<usize> {
    let mut sum = 0;
    for (_, said) in children {
        let mut line = String::new();
        said.read_line(&mut line)?;
        let Some(n) = line.trim().strip_prefix(word).and_then(|n| n.trim().parse::<usize>().ok()) else {
            bail!("a process of clients said {line:?}");
        };
        sum += n;
    }
    Ok(sum)
}

fn publish(address: SocketAddr, body: &str) -> anyhow::Result<()> {
    let answer = post_event(address, &mint("publisher".to_owned(), true)?, body, PATIENCE)?;
    let line = answer.lines().next().unwrap_or_default();
    ensure!(line.starts_with("HTTP/1.1 201"), "an event was refused: {line}");
    Ok(())
}

/// One process of clients: connects them, says how many are live, and how many events they got once its input ends.
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
    until("every client is in or was refused", settled);
    println!("connected {}", live.load(Ordering::Relaxed));
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let wanted = live.load(Ordering::Relaxed) * EVENTS;
    let deadline = Instant::now() + PATIENCE;
    while received.load(Ordering::Relaxed) < wanted && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
    println!("received {}", received.load(Ordering::Relaxed));
    runtime.shutdown_timeout(Duration::from_millis(100));
    Ok(ExitCode::SUCCESS)
}

/// Holds one connection. `None` if it was not let in, or lost.
async fn client(address: SocketAddr, token: &str, live: &AtomicUsize, received: &AtomicUsize) -> Option<()> {
    let open = async {
        let socket = TcpSocket::new_v4().ok()?;
        socket.set_recv_buffer_size(4 << 10).ok()?;
        let stream = socket.connect(address).await.ok()?;
        Some(client_async(format!("ws://{address}/ws?token={token}"), stream).await.ok()?.0)
    };
    let mut socket = timeout(PATIENCE, open).await.ok()??;
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

//! Connection flood, instead of faults: one address opens thousands of connections a second, which the hub rejects,
//! while clients from another address are served. Prints the latency of these clients with and without the flood, and
//! the memory and files that the hub uses before and after it.

use crate::{Options, SECRET, program, storm::user_memory_kib};
use fanfare::{Minter, auth::Claims};
use futures_util::{SinkExt, StreamExt};
use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use testbed::{HubProcess, until};
use tokio::{
    net::TcpSocket,
    runtime::Builder,
    time::{sleep, timeout},
};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

/// The duration of each part.
const PART: Duration = Duration::from_secs(10);

/// Clients that are served during the flood.
const CLIENTS: usize = 100;

/// The timeout of each operation.
const TIMEOUT: Duration = Duration::from_secs(20);

type Socket = WebSocketStream<tokio::net::TcpStream>;

/// Floods a hub with `rate` connects a second.
pub(crate) fn run(options: &Options, rate: usize) -> anyhow::Result<ExitCode> {
    let hub = HubProcess::start(&program(options)?, &[], &[("SECRET_KEY", SECRET)]);
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(runtime.block_on(connect(&hub))?);
    }
    let state = || -> anyhow::Result<(i64, usize)> {
        Ok((user_memory_kib(hub.id())?, fs::read_dir(format!("/proc/{}/fd", hub.id()))?.count()))
    };
    let before = state()?;
    let quiet = runtime.block_on(round_trips(&mut clients, PART))?;
    println!("idle:    round trip of a connected client p50 {:.2?}, p99 {:.2?}", quiet.0, quiet.1);
    let (address, answers, over) = (hub.address(), Mutex::new(BTreeMap::new()), AtomicBool::new(false));
    let begun = Instant::now();
    let flooded = thread::scope(|scope| {
        // One thread opens about 5,000 connections a second.
        let threads = rate.div_ceil(5_000);
        let (each, answers, over) = (rate / threads.max(1), &answers, &over);
        for _ in 0..threads {
            scope.spawn(move || flood(address, each, answers, over));
        }
        let flooded = runtime.block_on(round_trips(&mut clients, PART));
        over.store(true, Ordering::Relaxed);
        flooded
    })?;
    let secs = begun.elapsed().as_secs_f64();
    let answers = answers.into_inner().unwrap_or_else(PoisonError::into_inner);
    let all: u64 = answers.values().sum();
    println!("flooded: round trip of a connected client p50 {:.2?}, p99 {:.2?}", flooded.0, flooded.1);
    #[expect(clippy::cast_precision_loss, reason = "fewer than 2^52")]
    let a_second = all as f64 / secs;
    println!(
        "{all} connects in {secs:.1} s, {a_second:.0} a second ({rate} requested); responses by status: {answers:?}"
    );
    until("the flood's files are closed", || state().is_ok_and(|(_, files)| files <= before.1));
    let after = state()?;
    println!("memory {} KiB before, {} KiB after; files {} before, {} after", before.0, after.0, before.1, after.1);
    runtime.block_on(round_trips(&mut clients, Duration::from_secs(1)))?;
    println!("all {CLIENTS} clients are still served");
    Ok(ExitCode::SUCCESS)
}

fn token(user: &str) -> anyhow::Result<String> {
    Ok(Minter::from_secret(SECRET)?.mint(&Claims { sub: user.to_owned(), ..Claims::default() }))
}

/// Connects a client from an address that is not flooded from.
async fn connect(hub: &HubProcess) -> anyhow::Result<Socket> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), 0)))?;
    let stream = socket.connect(hub.address()).await?;
    stream.set_nodelay(true)?;
    let url = format!("ws://{}/ws?token={}", hub.address(), token("ann")?);
    let (mut client, _) = timeout(TIMEOUT, client_async(url, stream)).await??;
    let first = timeout(TIMEOUT, client.next()).await?;
    anyhow::ensure!(matches!(&first, Some(Ok(Message::Text(text))) if text.contains("\"ack\"")), "{first:?}");
    Ok(client)
}

/// The median and the 99th percentile of the clients' round trips, one after the other.
async fn round_trips(clients: &mut [Socket], span: Duration) -> anyhow::Result<(Duration, Duration)> {
    let (begun, mut times) = (Instant::now(), Vec::new());
    for client in (0..clients.len()).cycle() {
        let asked = Instant::now();
        clients[client].send(Message::text(r#"{"type":"ping"}"#)).await?;
        let answer = timeout(TIMEOUT, clients[client].next()).await?;
        anyhow::ensure!(matches!(&answer, Some(Ok(Message::Text(_)))), "{answer:?}");
        times.push(asked.elapsed());
        if begun.elapsed() >= span {
            break;
        }
        sleep(Duration::from_millis(5)).await;
    }
    times.sort_unstable();
    Ok((times[times.len() / 2], times[times.len() * 99 / 100]))
}

/// Opens up to `rate` connections a second until `over` is set. Counts the responses by status.
fn flood(address: SocketAddr, rate: usize, answers: &Mutex<BTreeMap<String, u64>>, over: &AtomicBool) {
    let (begun, mut own, mut n) = (Instant::now(), BTreeMap::new(), 0_u32);
    let each = Duration::from_secs(1) / u32::try_from(rate.max(1)).unwrap_or(u32::MAX);
    let request = format!(
        "GET /ws?token={} HTTP/1.1\r\nHost: hub\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        token("flood").unwrap_or_default()
    );
    while !over.load(Ordering::Relaxed) {
        *own.entry(ask(address, &request).unwrap_or_else(|error| error.kind().to_string())).or_insert(0) += 1;
        n += 1;
        thread::sleep((each * n).saturating_sub(begun.elapsed()));
    }
    let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
    own.into_iter().for_each(|(status, count)| *answers.entry(status).or_insert(0) += count);
}

fn ask(address: SocketAddr, request: &str) -> std::io::Result<String> {
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = [0; 64];
    let read = stream.read(&mut answer)?;
    let text = String::from_utf8_lossy(&answer[..read]);
    Ok(text.split(' ').nth(1).unwrap_or("no status").to_owned())
}

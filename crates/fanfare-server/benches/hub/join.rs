//! A client that connects, waits for its `ack`, disconnects and repeats this: the latency of a new client at a busy
//! hub.

use crate::{args::Values, client, frame, stats::percentile, token};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

/// The timeout of an `ack`.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Connects repeatedly for a while, and reports the latencies of the `ack`.
pub(crate) fn run(values: &Values) -> Result<Value> {
    let address = values.get("hub")?;
    let end = Instant::now() + Duration::from_millis(values.get("for_ms")?);
    let mut acks_us = vec![];
    while Instant::now() < end {
        let request = client::upgrade(address, &token::mint(&format!("joiner-{}", acks_us.len()), false)?);
        let start = Instant::now();
        join(address, &request)?;
        acks_us.push(u64::try_from(start.elapsed().as_micros())?);
    }
    acks_us.sort_unstable();
    let percentiles = [50, 99, 100].map(|percent| percentile(&acks_us, percent));
    Ok(json!({"joins": acks_us.len(), "p50_us": percentiles[0], "p99_us": percentiles[1], "max_us": percentiles[2]}))
}

/// Connects and reads the first message, which must be the `ack`.
fn join(address: SocketAddr, request: &[u8]) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(request)?;
    let (mut bytes, mut scratch) = (vec![], [0; 4096]);
    loop {
        let count = stream.read(&mut scratch).context("waiting for an ack")?;
        ensure!(count > 0, "the hub closed a connection: {}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&scratch[..count]);
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
            continue;
        };
        if let Some(first) = frame::parse(&bytes[end + 4..])? {
            return match client::kind(first.payload)? {
                "ack" => Ok(()),
                other => bail!("the first message was of type {other}"),
            };
        }
    }
}

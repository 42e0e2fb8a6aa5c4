//! The inspection of a Redis for `fanfare check`: it connects once, and does not register as a node.

use super::{
    RedisUrl,
    connection::read,
    error::LinkError,
    keys::Keys,
    link::{Link, field},
};
use crate::{clock, metrics::NoMetrics};
use redis::cmd;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// The number of pings for the latency.
const PINGS: usize = 20;

/// The properties of a Redis that can hold the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// The address of the server that would hold the log.
    pub address: String,
    /// The product and its version: `Redis 7.0.15`, `Valkey 9.1.2`.
    pub product: String,
    /// The URL has a password.
    pub authenticated: bool,
    /// The eviction policy (`maxmemory-policy`).
    pub eviction: String,
    /// The memory limit, in bytes. 0: no limit.
    pub max_memory: u64,
    /// The memory in use, in bytes.
    pub used_memory: u64,
    /// The limit on connections, and the current number.
    pub clients: (u64, u64),
    /// The append-only file is enabled.
    pub append_only: bool,
    /// The number of connected replicas.
    pub replicas: u64,
    /// The server rejects writes if no replica is connected (`min-replicas-to-write`).
    pub needs_replicas: bool,
    /// The number of sentinels in the URL, and the number that monitor the master according to the sentinels that
    /// responded. `None` without Sentinel.
    pub sentinels: Option<(usize, usize)>,
    /// The median round trip time.
    pub latency: Duration,
    /// The offset of the server's clock from this machine's, in milliseconds. Positive if the server is ahead.
    pub clock_skew_ms: i64,
}

/// Inspects the Redis at `url`, whose keys begin with `namespace`.
///
/// # Errors
/// If the Redis cannot be reached, or cannot hold the log.
pub async fn inspect(url: &RedisUrl, namespace: &str) -> Result<Inspection, LinkError> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let keys = Keys::new(namespace, url.is_cluster());
    let (link, facts) = Link::open(url, &keys, Arc::new(NoMetrics)).await?;
    let info: String = read(link.call(&cmd("INFO")).await?)?;
    let number = |name: &str| field(&info, name).and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut times = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let asked = Instant::now();
        link.call(&cmd("PING")).await?;
        times.push(asked.elapsed());
    }
    times.sort_unstable();
    let before = clock::now().unix_ms;
    let there = link.clock_ms().await?;
    let here = before.midpoint(clock::now().unix_ms);
    Ok(Inspection {
        address: link.located.address.to_string(),
        product: facts.product,
        authenticated: url.has_password(),
        eviction: facts.eviction,
        max_memory: number("maxmemory"),
        used_memory: number("used_memory"),
        clients: (number("maxclients"), number("connected_clients")),
        append_only: number("aof_enabled") == 1,
        replicas: number("connected_slaves"),
        // Redis reports this field only if `min-replicas-to-write` is set.
        needs_replicas: field(&info, "min_slaves_good_slaves").is_some(),
        sentinels: url.count_sentinels().await,
        latency: times[PINGS / 2],
        clock_skew_ms: i64::try_from(there).unwrap_or(0) - i64::try_from(here).unwrap_or(0),
    })
}

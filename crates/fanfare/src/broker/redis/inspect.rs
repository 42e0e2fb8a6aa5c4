//! What somebody who checks a setup should know of a Redis: asked once, without becoming a node.

use super::{
    RedisUrl,
    keys::Keys,
    link::{Link, LinkError, field, read},
};
use crate::clock;
use redis::cmd;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// How many questions the latency is of.
const QUESTIONS: usize = 20;

/// A Redis that can hold the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// The server that would hold it.
    pub address: String,
    /// What it is, with its version: `Redis 7.0.15`, `Valkey 9.1.2`.
    pub product: String,
    /// Who connects shows a password.
    pub authenticated: bool,
    /// What it throws away when its memory is full (`maxmemory-policy`).
    pub eviction: String,
    /// How much memory it may use, in bytes; 0: no limit.
    pub max_memory: u64,
    /// How much memory it uses, in bytes.
    pub used_memory: u64,
    /// How many connections it takes, and how many it has.
    pub clients: (u64, u64),
    /// Every write goes to a file.
    pub append_only: bool,
    /// Replicas that follow it.
    pub replicas: u64,
    /// It takes no writes that no replica follows soon (`min-replicas-to-write`).
    pub needs_replicas: bool,
    /// How many sentinels the URL names and how many watch the master, as far as those know that answer; `None` without
    /// Sentinel.
    pub sentinels: Option<(usize, usize)>,
    /// How long an answer takes: the median.
    pub latency: Duration,
    /// How far its clock is from this machine's, in milliseconds; positive: ahead.
    pub clock_skew_ms: i64,
}

/// Asks the Redis at `url`, whose keys begin with `namespace`.
///
/// # Errors
/// If it can't be reached, or can't hold the log.
pub async fn inspect(url: &RedisUrl, namespace: &str) -> Result<Inspection, LinkError> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let keys = Keys::new(namespace, url.is_cluster());
    let (link, facts) = Link::open(url, &keys, Arc::default()).await?;
    let info: String = read(link.call(&cmd("INFO")).await?)?;
    let number = |name: &str| field(&info, name).and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut times = Vec::with_capacity(QUESTIONS);
    for _ in 0..QUESTIONS {
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
        // Told where that is asked for.
        needs_replicas: field(&info, "min_slaves_good_slaves").is_some(),
        sentinels: url.count_sentinels().await,
        latency: times[QUESTIONS / 2],
        clock_skew_ms: i64::try_from(there).unwrap_or(0) - i64::try_from(here).unwrap_or(0),
    })
}

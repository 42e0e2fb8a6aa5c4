//! Reconnect storm, instead of faults: a node is killed, and all its clients resume at once on another. Measures the
//! time until the last client is live, and the load on Redis and on the node.

use crate::{
    Options, SECRET, UNLIMITED, client,
    load::{Behaviour, Load, Reader},
    mint,
    oracle::{Kind, Ledger, Lineage, Wrong},
    program,
    publisher::{self, Style, Way},
};
use anyhow::Context;
use serde_json::json;
use std::{
    collections::BTreeMap,
    fs,
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};
use testbed::{HubProcess, RedisServer, until};
use tokio::runtime::Runtime;

/// Events a second during the storm.
const RATE: u32 = 20;

/// The time for which Redis commands are counted. It does not depend on the number of clients, so that counts are
/// comparable.
const COUNTED: Duration = Duration::from_secs(10);

/// Commands of the list of connections: batches of changes, independent of when clients connect.
const REGISTRY: &[&str] = &["expire", "sadd", "srem", "spop", "sismember"];

/// Prints a line for each number of clients.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    println!(
        "| clients | last live after | resumed | lost, duplicated, reordered | gaps | XRANGE and XREAD | \
         scripts | inside scripts, for the list of connections | user \
         memory of the node |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    let mut clean = true;
    for &clients in &options.storm {
        clean &= storm(options, clients)?;
    }
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn storm(options: &Options, clients: usize) -> anyhow::Result<bool> {
    let program = program(options)?;
    let redis = RedisServer::start();
    let url = redis.url();
    let node = || {
        let mut arguments = vec!["--redis-url", &url];
        arguments.extend(UNLIMITED);
        HubProcess::start(&program, &arguments, &[("SECRET_KEY", SECRET)])
    };
    let (mut dying, other) = (node(), node());
    let runtime = Runtime::new()?;
    let (run, token) = (format!("{:08x}", fastrand::u32(..)), mint("publisher".into(), true)?);
    let mut load = Load::new(run, vec![other.address()], token, RATE, &[Kind::InTurn]);
    for i in 0..clients {
        let mut ledger = Ledger::default();
        ledger.expect(0);
        let behaviour = Behaviour { keeps_connection_id: true, ..Behaviour::default() };
        load.readers.push(Arc::new(Reader::new(mint(format!("user-{i}"), false)?, behaviour, ledger)));
    }
    let load = Arc::new(load);
    load.move_to(dying.address());
    for (i, reader) in load.readers.iter().enumerate() {
        runtime.spawn(client::run(load.clone(), reader.clone()));
        if i % 100 == 99 {
            thread::sleep(Duration::from_millis(20));
        }
    }
    until("all clients are connected", || load.live() == clients);
    // The publisher moves to the surviving node now, the clients when their node is killed.
    load.move_to(other.address());
    let way = Way::Http { audience: json!("everyone"), style: Style::InTurn };
    runtime.spawn(publisher::run(load.clone(), 0, way));
    until("events are published", || load.targets()[0] >= 20);
    let lineage = || Lineage::read(&redis.cli(&["HGET", "ws:epoch", "lineage"])).unwrap_or_default();
    until("clients receive events", || load.behind(&[20], &lineage()) == 0);
    load.take_results(&[20], &lineage());

    let idle = user_memory_kib(other.id())?;
    let before = commands(&redis);
    let begun = Instant::now();
    dying.kill();
    until("the clients disconnect", || load.live() < clients);
    until("all clients are live again", || load.live() == clients);
    let took = begun.elapsed();
    thread::sleep(COUNTED.saturating_sub(begun.elapsed()));
    let after = commands(&redis);
    let targets = load.targets();
    until("all clients have caught up", || load.behind(&targets, &lineage()) == 0);
    let memory = user_memory_kib(other.id())? - idle;
    let results = load.take_results(&targets, &lineage());
    load.ended.store(true, Ordering::Relaxed);
    runtime.shutdown_timeout(Duration::from_secs(2));

    let used = |names: &[&str]| -> u64 {
        names.iter().map(|name| after.get(*name).unwrap_or(&0) - before.get(*name).unwrap_or(&0)).sum()
    };
    println!(
        "| {clients} | {:.2} s | {} | {}, {}, {} | {} | {} | {} | {} | {:.2} KiB a client |",
        took.as_secs_f64(),
        results.resumes.len(),
        results.wrong.lost,
        results.wrong.doubled,
        results.wrong.reordered,
        results.gaps_expired + results.gaps_reset,
        used(&["xrange", "xread"]),
        used(&["evalsha"]),
        used(REGISTRY),
        memory as f64 / clients as f64,
    );
    Ok(results.wrong == Wrong::default())
}

/// The number of calls of each command.
fn commands(redis: &RedisServer) -> BTreeMap<String, u64> {
    let stats = redis.cli(&["INFO", "commandstats"]);
    let line = |line: &str| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))
    };
    stats.lines().filter_map(line).collect()
}

/// Private memory of a process (RssAnon).
pub(crate) fn user_memory_kib(id: u32) -> anyhow::Result<i64> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let line =
        status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("/proc/PID/status has no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}

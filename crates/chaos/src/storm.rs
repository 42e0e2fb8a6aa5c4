//! A node dies, and all its clients resume at once on another: how long until the last is live, and what that asks of
//! Redis and of the node.

use crate::{
    Options, SECRET, UNLIMITED, client,
    load::{Habits, Load, Reader},
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

/// Events a second while it happens.
const RATE: u32 = 20;

/// How long Redis' commands are counted: the same for every number of clients, so that counts compare.
const COUNTED: Duration = Duration::from_secs(10);

/// Commands that serve the list of who is connected: batches of what changed, behind the clients' backs.
const REGISTRY: &[&str] = &["expire", "sadd", "srem", "spop", "sismember"];

/// Prints a line for each number of clients.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    println!(
        "| clients | last live after | resumed | lost, doubled, reordered | gaps | XRANGE and XREAD | scripts | inside scripts, for the list of who is connected | user memory of the node |"
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
        let habits = Habits { keeps_name: true, ..Habits::default() };
        load.readers.push(Arc::new(Reader::new(mint(format!("user-{i}"), false)?, habits, ledger)));
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
    // From here on everyone goes to the node that lives: the publisher now, the clients once theirs has died.
    load.move_to(other.address());
    let way = Way::Http { audience: json!("everyone"), style: Style::InTurn };
    runtime.spawn(publisher::run(load.clone(), 0, way));
    until("events are published", || load.targets()[0] >= 20);
    let lineage = || Lineage::read(&redis.cli(&["HGET", "ws:epoch", "lineage"])).unwrap_or_default();
    until("events arrive", || load.behind(&[20], &lineage()) == 0);
    load.take_figures(&[20], &lineage());

    let idle = user_memory_kib(other.id())?;
    let before = commands(&redis);
    let begun = Instant::now();
    dying.kill();
    until("the clients notice", || load.live() < clients);
    until("all clients are live again", || load.live() == clients);
    let took = begun.elapsed();
    thread::sleep(COUNTED.saturating_sub(begun.elapsed()));
    let after = commands(&redis);
    let targets = load.targets();
    until("all clients are level", || load.behind(&targets, &lineage()) == 0);
    let memory = user_memory_kib(other.id())? - idle;
    let figures = load.take_figures(&targets, &lineage());
    load.ended.store(true, Ordering::Relaxed);
    runtime.shutdown_timeout(Duration::from_secs(2));

    let used = |names: &[&str]| -> u64 {
        names.iter().map(|name| after.get(*name).unwrap_or(&0) - before.get(*name).unwrap_or(&0)).sum()
    };
    println!(
        "| {clients} | {:.2} s | {} | {}, {}, {} | {} | {} | {} | {} | {:.2} KiB a client |",
        took.as_secs_f64(),
        figures.resumes.len(),
        figures.wrong.lost,
        figures.wrong.doubled,
        figures.wrong.reordered,
        figures.gaps_expired + figures.gaps_reset,
        used(&["xrange", "xread"]),
        used(&["evalsha"]),
        used(REGISTRY),
        memory as f64 / clients as f64,
    );
    Ok(figures.wrong == Wrong::default())
}

/// How often each command was called.
fn commands(redis: &RedisServer) -> BTreeMap<String, u64> {
    let told = redis.cli(&["INFO", "commandstats"]);
    let line = |line: &str| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))
    };
    told.lines().filter_map(line).collect()
}

/// Memory that is a process's own (RssAnon).
pub(crate) fn user_memory_kib(id: u32) -> anyhow::Result<i64> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("the system tells no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}

//! The benchmarks, their order, and their rows in the table.

use crate::{
    args::Options,
    child::{self, Listening, Running},
    report::{Row, Target},
    stats::spread,
    token,
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    process::{Command, Stdio},
};
use testbed::RedisServer;

/// Runs the selected benchmarks.
pub(crate) fn all(options: &Options) -> Result<Vec<Row>> {
    let mut rows = vec![];
    let broadcasts: Vec<_> =
        ["quiet", "saturated", "fairness"].into_iter().filter(|name| options.wants(name)).collect();
    if !broadcasts.is_empty() {
        rows.extend(broadcast(&broadcasts.join(","), options.self_check)?);
    }
    if options.wants("connect") {
        rows.extend(connect()?);
    }
    if options.wants("publish") {
        rows.extend(publish()?);
    }
    if options.wants("redis") {
        rows.extend(redis()?);
    }
    Ok(rows)
}

fn broadcast(measure: &str, self_check: bool) -> Result<Vec<Row>> {
    let floor = floor()?;
    let hub = if self_check { self::floor()? } else { hub()? };
    let report = load(
        "broadcast",
        &[
            format!("measure={measure}"),
            "connections=5000".to_owned(),
            "rounds=4".to_owned(),
            "ticks=40".to_owned(),
            "interval_ms=60".to_owned(),
            "saturated_ms=3000".to_owned(),
            format!("floor={}", floor.address),
            format!("floor_pid={}", floor.pid()),
            format!("hub={}", hub.address),
            format!("hub_pid={}", hub.pid()),
        ],
    )?;
    let mut rows = vec![];
    if let Some(quiet) = report.get("quiet") {
        let target = Some(Target::AtMost(1.05));
        rows.push(against_floor("CPU a delivery, quiet", "us", quiet, "cpu_us_a_delivery", target)?);
    }
    if let Some(saturated) = report.get("saturated") {
        let target = Some(Target::AtLeast(5.0));
        let name = "deliveries a second, saturated";
        rows.push(against_floor(name, "thousand", saturated, "thousand_deliveries_a_second", target)?);
        rows.push(against_floor("CPU a delivery, saturated", "us", saturated, "cpu_us_a_delivery", None)?);
    }
    if let Some(fairness) = report.get("fairness") {
        let [p50, max, joins] = ["p50_us", "max_us", "joins"].map(|name| number(fairness, name));
        let joins = joins?;
        rows.push(Row::single(format!("connect to ack in a storm, p50 of {joins}"), "ms", p50? / 1e3, None));
        let target = Some(Target::AtMost(1_000.0));
        rows.push(Row::single(format!("connect to ack in a storm, worst of {joins}"), "ms", max? / 1e3, target));
    }
    Ok(rows)
}

/// The same hub twice: with its log in memory in place of the floor, and with its log in Redis.
fn redis() -> Result<Vec<Row>> {
    let server = RedisServer::setup().persistent().start();
    let (memory, redis) = (hub()?, hub_with(Some(&server.url()))?);
    let report = load(
        "broadcast",
        &[
            "measure=quiet,saturated".to_owned(),
            "connections=5000".to_owned(),
            "rounds=4".to_owned(),
            "ticks=40".to_owned(),
            "interval_ms=60".to_owned(),
            "saturated_ms=3000".to_owned(),
            format!("floor={}", memory.address),
            format!("floor_pid={}", memory.pid()),
            format!("hub={}", redis.address),
            format!("hub_pid={}", redis.pid()),
        ],
    )?;
    let of = |name: &str| report.get(name).with_context(|| format!("no {name}"));
    let mut rows = vec![
        against_floor("log in Redis: CPU a delivery, quiet", "us", of("quiet")?, "cpu_us_a_delivery", None)?,
        against_floor(
            "log in Redis: deliveries a second, saturated",
            "thousand",
            of("saturated")?,
            "thousand_deliveries_a_second",
            None,
        )?,
    ];
    drop((memory, redis, server));
    let mut latencies: [Vec<Value>; 2] = [vec![], vec![]];
    for round in 1..=3 {
        for (name, reports) in ["memory", "Redis"].into_iter().zip(&mut latencies) {
            eprintln!("publish with the log in {name}, round {round} of 3");
            // A new server each time: the load numbers its events from 1, and a log accepts each ID once.
            let server = (name == "Redis").then(|| RedisServer::setup().persistent().start());
            let hub = hub_with(server.as_ref().map(RedisServer::url).as_deref())?;
            reports.push(load(
                "publish",
                &[
                    "connections=100".to_owned(),
                    "events=150".to_owned(),
                    "interval_ms=25".to_owned(),
                    "inside=false".to_owned(),
                    "to_one=false".to_owned(),
                    format!("hub={}", hub.address),
                ],
            )?);
        }
    }
    let [memory, redis] = latencies;
    for (name, key) in [("p50", "p50_us"), ("p99", "p99_us")] {
        let figures = json!({ "floor": memory, "hub": redis });
        rows.push(against_floor(&format!("log in Redis: publish to receipt, {name}"), "us", &figures, key, None)?);
    }
    Ok(rows)
}

fn connect() -> Result<Vec<Row>> {
    let mut reports = vec![];
    for round in 1..=3 {
        eprintln!("connect: round {round} of 3, 10,000 connections");
        // A new hub each time, because the allocator does not return freed memory.
        let hub = hub()?;
        reports.push(load(
            "connect",
            &[
                "connections=10000".to_owned(),
                "rate=2000".to_owned(),
                format!("hub={}", hub.address),
                format!("hub_pid={}", hub.pid()),
            ],
        )?);
    }
    Ok(vec![
        over_rounds("user memory an idle connection (RssAnon)", "KiB", "anonymous_kib", &reports, Some(0.40))?,
        over_rounds("resident memory an idle connection (VmRSS)", "KiB", "resident_kib", &reports, None)?,
        over_rounds("CPU an authenticated connect", "us", "cpu_us", &reports, Some(60.0))?,
        over_rounds("connect to ack, p50", "us", "ack_p50_us", &reports, None)?,
        over_rounds("connect to ack, p99", "us", "ack_p99_us", &reports, None)?,
    ])
}

fn publish() -> Result<Vec<Row>> {
    let mut rows = vec![];
    for way in [Way::Floor, Way::Post, Way::Inside { to_one: false }, Way::Inside { to_one: true }] {
        let name = way.name();
        let mut reports = vec![];
        for round in 1..=3 {
            eprintln!("publish: {name}, round {round} of 3");
            let hub = way.start()?;
            reports.push(load(
                "publish",
                &[
                    "connections=100".to_owned(),
                    "events=150".to_owned(),
                    "interval_ms=25".to_owned(),
                    format!("inside={}", matches!(way, Way::Inside { .. })),
                    format!("to_one={}", way.to_one()),
                    format!("hub={}", hub.address),
                ],
            )?);
        }
        let target = |us| matches!(way, Way::Inside { .. }).then_some(us);
        rows.push(over_rounds(&format!("publish to receipt, {name}, p50"), "us", "p50_us", &reports, target(300.0))?);
        rows.push(over_rounds(&format!("publish to receipt, {name}, p99"), "us", "p99_us", &reports, target(2000.0))?);
    }
    Ok(rows)
}

/// How an event is published to 100 connections, or to one of them.
#[derive(Clone, Copy)]
enum Way {
    /// By HTTP through the floor: the cost of the writes and of the load's reads alone.
    Floor,
    /// By HTTP through the hub.
    Post,
    /// By `Hub::publish` in the hub's own process.
    Inside { to_one: bool },
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Floor => "POST to the floor, to all",
            Self::Post => "POST, to all",
            Self::Inside { to_one: false } => "in process, to all",
            Self::Inside { to_one: true } => "in process, to one",
        }
    }

    const fn to_one(self) -> bool {
        matches!(self, Self::Inside { to_one: true })
    }

    fn start(self) -> Result<Listening> {
        match self {
            Self::Floor => floor(),
            Self::Post => hub(),
            Self::Inside { to_one } => hub_inside(to_one),
        }
    }
}

fn floor() -> Result<Listening> {
    Listening::start("floor", |address| {
        let mut command = child::myself("floor")?;
        command.arg(format!("listen={address}"));
        Ok(command)
    })
}

/// The release build of the program, without the limits that a load from one address would exceed.
fn hub() -> Result<Listening> {
    hub_with(None)
}

/// The same program, with its log in Redis if one is given.
fn hub_with(redis: Option<&str>) -> Result<Listening> {
    Listening::start("hub", |address| {
        let listen = address.to_string();
        let mut command = child::guarded(env!("CARGO_BIN_EXE_fanfare"), ["serve", "--listen", &listen])?;
        command.env_clear().current_dir(child::scratch()).env("SECRET_KEY", token::SECRET);
        command.envs(redis.map(|url| ("REDIS_URL", url)));
        for limit in [
            "MAX_CONNECTIONS",
            "MAX_CONNECTIONS_PER_USER",
            "MAX_CONNECTIONS_PER_ADDRESS",
            "CONNECTS_PER_SECOND_PER_ADDRESS",
        ] {
            command.env(format!("FANFARE_{limit}"), "0");
        }
        Ok(command)
    })
}

/// A hub within a process of the benchmark, which publishes there.
fn hub_inside(to_one: bool) -> Result<Listening> {
    Listening::start("hub-inside", |address: SocketAddr| {
        let mut command = child::myself("inside")?;
        command.arg(format!("listen={address}")).arg(format!("to_one={to_one}"));
        Ok(command)
    })
}

/// Runs a part of the load as a separate process, and parses its report.
fn load(part: &str, values: &[String]) -> Result<Value> {
    let mut command: Command = child::myself(part)?;
    command.args(values).stdout(Stdio::piped());
    let text = Running::start_with_stderr(part, &mut command)?.output()?;
    serde_json::from_str(&text).with_context(|| format!("{part} reported: {text}"))
}

fn number(report: &Value, name: &str) -> Result<f64> {
    report[name].as_f64().with_context(|| format!("no {name} in {report}"))
}

/// The hub's results against the floor's, and the ratios of each round.
fn against_floor(name: &str, unit: &'static str, report: &Value, key: &str, target: Option<Target>) -> Result<Row> {
    let figures = |side: &str| -> Result<Vec<f64>> {
        report[side].as_array().into_iter().flatten().map(|round| number(round, key)).collect()
    };
    let (hub, floor) = (figures("hub")?, figures("floor")?);
    let ratios: Vec<_> = hub.iter().zip(&floor).map(|(hub, floor)| hub / floor).collect();
    let spread = |values: &[f64]| spread(values).context("no rounds");
    Ok(Row::rounds(name.to_owned(), unit, spread(&hub)?, target).against(spread(&floor)?, spread(&ratios)?))
}

fn over_rounds(name: &str, unit: &'static str, key: &str, reports: &[Value], at_most: Option<f64>) -> Result<Row> {
    let values = reports.iter().map(|report| number(report, key)).collect::<Result<Vec<_>>>()?;
    let measured = spread(&values).context("no rounds")?;
    Ok(Row::rounds(name.to_owned(), unit, measured, at_most.map(Target::AtMost)))
}

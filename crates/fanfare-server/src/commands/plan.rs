//! `fanfare plan`: computes the machines that a load requires, and their utilisation, from measurements.
//!
//! The model is linear in each cost. Its constants are fitted to the runs in `assets/measured.json` (`fanfare
//! bench`), and a test compares the two.

use crate::{
    bench::outcome::Outcome,
    settings::kind,
    util::{UsageError, print},
};
use anyhow::Context;
use clap::ArgMatches;
use serde::{Deserialize, Serialize};
use std::fmt::Write;

const MEASURED: &str = include_str!("../../assets/measured.json");

/// The costs of each operation on the measured machine, which has 2 cores and also runs Redis and all clients.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Costs {
    /// CPU time to deliver an event to one client, in microseconds, with 5,000 connections on the machine.
    delivery_us: f64,
    /// Growth of `delivery_us` for each factor of ten in connections, because of cache misses.
    delivery_growth_us: f64,
    /// CPU time of a ping and its pong, in microseconds.
    heartbeat_us: f64,
    /// CPU time of an authenticated connect with a log in Redis, and its growth for each factor of ten in connections.
    connect_us: f64,
    connect_growth_us: f64,
    /// CPU time that TLS adds to a connect.
    tls_connect_us: f64,
    /// CPU time of an idle process, in milliseconds a second.
    idle_ms: f64,
    /// User memory of a connection without and with TLS, and of a process without clients, in KiB.
    connection_kib: f64,
    tls_connection_kib: f64,
    process_kib: f64,
    /// Kernel memory of an idle socket, in KiB.
    socket_kib: f64,
    /// Memory in Redis for a connection, in KiB.
    redis_connection_kib: f64,
}

/// The number of connections on a machine beyond which costs grow.
const GROWTH_FROM: f64 = 5_000.0;

impl Default for Costs {
    fn default() -> Self {
        Self {
            delivery_us: 5.8,
            delivery_growth_us: 2.85,
            heartbeat_us: 16.7,
            connect_us: 86.0,
            connect_growth_us: 46.0,
            tls_connect_us: 180.0,
            idle_ms: 2.3,
            connection_kib: 0.55,
            tls_connection_kib: 7.9,
            process_kib: 3_200.0,
            socket_kib: 3.0,
            redis_connection_kib: 0.68,
        }
    }
}

/// One run of `fanfare bench`.
#[derive(Debug, Clone, Deserialize)]
struct Point {
    connections: f64,
    processes: f64,
    events: f64,
    deliveries: f64,
    pings: f64,
    seconds: f64,
    cpu_seconds: f64,
    connect_us: f64,
    memory_kib: f64,
}

impl Costs {
    fn decades(connections: f64) -> f64 {
        (connections / GROWTH_FROM).max(1.0).log10()
    }

    fn delivery(&self, connections: f64) -> f64 {
        self.delivery_us + self.delivery_growth_us * Self::decades(connections)
    }

    fn connect(&self, connections: f64) -> f64 {
        self.connect_us + self.connect_growth_us * Self::decades(connections)
    }

    /// The CPU time of a run according to the model, in seconds.
    fn cpu_seconds(&self, point: &Point) -> f64 {
        let deliveries = point.deliveries * self.delivery(point.connections) + point.pings * self.heartbeat_us;
        deliveries / 1e6 + point.processes * point.seconds * self.idle_ms / 1e3
    }

    fn memory_kib(&self, point: &Point) -> f64 {
        point.connections * self.connection_kib
    }

    /// Scales the costs to another machine, by the ratio between a run there and the model.
    fn scaled_to(mut self, point: &Point) -> Self {
        let factor = point.cpu_seconds / self.cpu_seconds(point);
        let all = [&mut self.delivery_us, &mut self.delivery_growth_us, &mut self.heartbeat_us, &mut self.idle_ms];
        all.into_iter().for_each(|cost| *cost *= factor);
        let factor = point.connect_us / self.connect(point.connections);
        let all = [&mut self.connect_us, &mut self.connect_growth_us, &mut self.tls_connect_us];
        all.into_iter().for_each(|cost| *cost *= factor);
        self.connection_kib = point.memory_kib / point.connections.max(1.0);
        self
    }
}

/// The load, and the machines for it.
#[derive(Debug, Clone, Serialize)]
struct Load {
    connections: f64,
    events: f64,
    receivers: f64,
    payload: f64,
    connects: f64,
    heartbeat: f64,
    tls: bool,
    cores: f64,
    memory_gib: f64,
    files: f64,
    busy: f64,
    spare: f64,
    window_mib: f64,
}

/// The result for a load.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Plan {
    machines: f64,
    workers_a_machine: f64,
    connections_a_machine: f64,
    /// The resource that determines the number of machines.
    because: &'static str,
    /// Utilisation of all cores of a machine after the spare machines have failed.
    busy_percent: f64,
    memory_gib_a_machine: f64,
    deliveries_a_second: f64,
    megabits_out_a_machine: f64,
    /// The shortest time in which a broadcast reaches the last client.
    broadcast_seconds: f64,
    /// The shortest time in which the clients of a failed machine reconnect to the others.
    readmission_seconds: f64,
    redis_memory_mib: f64,
    redis_appends_a_second: f64,
    redis_megabits_out: f64,
}

/// Overhead of a packet in bytes: frame, TCP, IP and Ethernet headers, and an acknowledgement for every other packet.
const PACKET: f64 = 4.0 + 32.0 + 20.0 + 18.0 + 35.0;
/// Size of a ping with its packet, in bytes.
const PING: f64 = 110.0 + PACKET;

fn plan(load: &Load, costs: &Costs) -> Plan {
    let deliveries = load.events * load.receivers;
    let most = load.files - 500.0;
    let fits = |machines: f64| {
        let carrying = (machines - load.spare).max(1.0);
        let each = load.connections / carrying;
        let workers = workers(each, most, load.cores);
        (cpu(load, costs, carrying, workers), memory_gib(load, costs, each, workers))
    };
    let (mut machines, mut because) = (1.0 + load.spare, "minimum");
    loop {
        let (cpu, memory) = fits(machines);
        let reason = if cpu > load.cores * load.busy {
            "CPU"
        } else if memory > load.memory_gib * 0.8 {
            "memory"
        } else {
            break;
        };
        because = reason;
        // No number of machines suffices, because each of them has a constant part of the work.
        if machines >= 10_000.0 {
            break;
        }
        machines += 1.0;
    }
    let carrying = (machines - load.spare).max(1.0);
    let each = load.connections / carrying;
    let workers = workers(each, most, load.cores);
    let used = cpu(load, costs, carrying, workers);
    let free = (load.cores - cpu(load, costs, machines, workers)).max(load.cores * 0.05);
    let back = costs.connect(each) + if load.tls { costs.tls_connect_us } else { 0.0 };
    let pings = load.connections / load.heartbeat;
    Plan {
        machines,
        workers_a_machine: workers,
        connections_a_machine: load.connections / machines,
        because,
        busy_percent: 100.0 * used / load.cores,
        memory_gib_a_machine: memory_gib(load, costs, each, workers),
        deliveries_a_second: deliveries,
        megabits_out_a_machine: 8.0 * (deliveries * (load.payload + PACKET) + pings * PING) / carrying / 1e6,
        // Half of the cores run shards; the others run the kernel and HTTP.
        broadcast_seconds: each * costs.delivery(each) / 1e6 / (load.cores / 2.0).max(1.0).min(workers),
        readmission_seconds: load.connections / machines * back / 1e6 / (free * (machines - 1.0).max(1.0)),
        redis_memory_mib: load.connections * costs.redis_connection_kib / 1_024.0 + 3.0 * load.window_mib,
        redis_appends_a_second: load.events,
        redis_megabits_out: 8.0 * load.events * (load.payload + 150.0) * machines * workers / 1e6,
    }
}

/// Workers of a machine: one for every two cores, or more if the limit on open files requires it.
fn workers(connections: f64, files: f64, cores: f64) -> f64 {
    (connections / files).ceil().max((cores / 2.0).floor()).max(1.0)
}

/// Number of cores that a machine uses.
fn cpu(load: &Load, costs: &Costs, machines: f64, workers: f64) -> f64 {
    let each = load.connections / machines;
    let connect = costs.connect(each) + if load.tls { costs.tls_connect_us } else { 0.0 };
    let deliveries = load.events * load.receivers / machines * costs.delivery(each);
    let heartbeats = each / load.heartbeat * costs.heartbeat_us;
    (deliveries + heartbeats + load.connects / machines * connect) / 1e6 + workers * costs.idle_ms / 1e3
}

fn memory_gib(load: &Load, costs: &Costs, connections: f64, workers: f64) -> f64 {
    let connection = if load.tls { costs.tls_connection_kib } else { costs.connection_kib };
    let kib = connections * (connection + costs.socket_kib) + workers * (costs.process_kib + load.window_mib * 1_024.0);
    kib / 1_048_576.0
}

pub(super) fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let costs = match matches.get_one::<String>("from") {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("--from {path}"))?;
            let outcome: Outcome = serde_json::from_str(&text)
                .with_context(|| format!("--from {path}: the file was not written by `fanfare bench --json`"))?;
            Costs::default().scaled_to(&point(&outcome)?)
        }
        None => Costs::default(),
    };
    if matches.get_flag("check") {
        return print(&check(&costs, &points()?));
    }
    let load = load(matches)?;
    let plan = plan(&load, &costs);
    if matches.get_flag("json") {
        let all = serde_json::json!({ "load": load, "costs": costs, "plan": plan });
        return print(&format!("{all:#}\n"));
    }
    print(&describe(&load, &plan))
}

fn points() -> anyhow::Result<Vec<Point>> {
    serde_json::from_str(MEASURED).context("failed to parse the measurements")
}

/// A run of the benchmark as a point of the model.
fn point(outcome: &Outcome) -> Result<Point, UsageError> {
    let missing =
        || UsageError("--from: the run used a hub on another machine, so the costs of the hub are unknown".to_owned());
    let server = outcome.server.as_ref().ok_or_else(missing)?;
    let connections = outcome.plan.connections as f64;
    let ramp = connections / outcome.plan.ramp;
    let cpu = |from: std::time::Duration, to: std::time::Duration| to.saturating_sub(from).as_secs_f64();
    Ok(Point {
        connections,
        processes: server.processes as f64,
        events: outcome.published.events as f64,
        deliveries: outcome.tally.deliveries as f64,
        pings: outcome.tally.pings as f64,
        seconds: outcome.timeline.last().map_or(0.0, |second| second.at - ramp),
        cpu_seconds: cpu(server.connected.cpu, server.after.cpu),
        connect_us: 1e6 * cpu(server.before.cpu, server.connected.cpu) / connections,
        memory_kib: server.connected.memory_kib - server.before.memory_kib,
    })
}

fn load(matches: &ArgMatches) -> Result<Load, UsageError> {
    let number = |name: &str| matches.get_one::<f64>(name).copied();
    let connections = number("connections").unwrap_or(0.0);
    let size = |name: &str| {
        let text = matches.get_one::<String>(name).map_or("", String::as_str);
        kind::size::parse(text).map(|bytes| bytes as f64 / 1_048_576.0).ok_or_else(|| {
            UsageError(format!("--{name}: {text:?} is not a valid size; expected {}", kind::size::expected()))
        })
    };
    let text = matches.get_one::<String>("heartbeat").map_or("30s", String::as_str);
    let heartbeat = kind::parse_duration(text).filter(|period| !period.is_zero());
    let heartbeat = heartbeat.ok_or_else(|| {
        UsageError(format!("--heartbeat: {text:?} is not a valid duration; expected one such as 30s"))
    })?;
    Ok(Load {
        connections,
        events: number("events").unwrap_or(0.0),
        receivers: number("receivers").unwrap_or(1.0).min(connections),
        payload: number("payload").unwrap_or(300.0),
        connects: number("connects").unwrap_or(connections / 3_600.0),
        heartbeat: heartbeat.as_secs_f64(),
        tls: matches.get_flag("tls"),
        cores: number("cores").unwrap_or(2.0).max(0.5),
        memory_gib: size("memory")? / 1_024.0,
        files: number("files").unwrap_or(1_000_000.0).max(1_000.0),
        busy: number("busy").unwrap_or(60.0) / 100.0,
        spare: number("spare").unwrap_or(1.0),
        window_mib: size("window")?,
    })
}

fn describe(load: &Load, plan: &Plan) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        let _ = writeln!(out, "{name:<22}{text}");
    };
    let spare = if load.spare > 0.0 { format!(", {} of them spare", load.spare) } else { String::new() };
    let because = if plan.because == "minimum" { String::new() } else { format!(", limited by {}", plan.because) };
    line(
        "machines",
        format!("{} of {} cores and {:.0} GiB{spare}{because}", plan.machines, load.cores, load.memory_gib),
    );
    line("on each", format!("{} workers, {} connections", plan.workers_a_machine, grouped(plan.connections_a_machine)));
    line("CPU", format!("{:.0} % of all cores, after the spare machines have failed", plan.busy_percent));
    line(
        "memory",
        format!(
            "{:.2} GiB a machine, for the hub, its window and its sockets in the kernel",
            plan.memory_gib_a_machine
        ),
    );
    line("deliveries", format!("{} a second in total", grouped(plan.deliveries_a_second)));
    line("network", format!("{:.1} Mbit/s out of each machine", plan.megabits_out_a_machine));
    line("broadcast", format!("at least {} until the last client has it", seconds(plan.broadcast_seconds)));
    line(
        "failed machine",
        format!("at least {} until its clients have reconnected to the others", seconds(plan.readmission_seconds)),
    );
    line(
        "Redis",
        format!(
            "{:.0} MiB, {} appends a second, {:.1} Mbit/s out",
            plan.redis_memory_mib,
            grouped(plan.redis_appends_a_second),
            plan.redis_megabits_out
        ),
    );
    if plan.busy_percent > 100.0 * load.busy + 1.0 {
        line("", "No number of such machines is sufficient: use larger ones.".to_owned());
    }
    out += "\nComputed from measurements on 2 cores, with Redis and all clients on the same machine;\n\
        `fanfare plan --check` compares the model with them. To scale the plan to your machines,\n\
        use --from with the result of a `fanfare bench --json` there.\n";
    out
}

fn seconds(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.0} ms", seconds * 1e3) } else { format!("{seconds:.1} s") }
}

fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Compares the model with the measurements.
fn check(costs: &Costs, points: &[Point]) -> String {
    let mut out = format!(
        "{:>11} {:>9} {:>8} {:>11} {:>10} {:>9} {:>6} {:>9} {:>9} {:>6} {:>9} {:>9} {:>6}\n",
        "connections",
        "processes",
        "events",
        "deliveries",
        "CPU s",
        "model",
        "x",
        "connect",
        "model",
        "x",
        "MiB",
        "model",
        "x"
    );
    for point in points {
        let (cpu, connect, memory) =
            (costs.cpu_seconds(point), costs.connect(point.connections), costs.memory_kib(point));
        let _ = writeln!(
            out,
            "{:>11} {:>9} {:>8} {:>11} {:>10.2} {:>9.2} {:>6.2} {:>6.0} us {:>6.0} us {:>6.2} {:>9.1} {:>9.1} {:>6.2}",
            grouped(point.connections),
            point.processes,
            grouped(point.events),
            grouped(point.deliveries),
            point.cpu_seconds,
            cpu,
            cpu / point.cpu_seconds,
            point.connect_us,
            connect,
            connect / point.connect_us,
            point.memory_kib / 1_024.0,
            memory / 1_024.0,
            memory / point.memory_kib
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load() -> Load {
        Load {
            connections: 50_000.0,
            events: 5.0,
            receivers: 5_000.0,
            payload: 400.0,
            connects: 10.0,
            heartbeat: 30.0,
            tls: false,
            cores: 2.0,
            memory_gib: 8.0,
            files: 20_000.0,
            busy: 0.6,
            spare: 0.0,
            window_mib: 64.0,
        }
    }

    #[test]
    fn the_model_fits_the_measurements() {
        let (costs, points) = (Costs::default(), points().unwrap());
        assert!(points.len() >= 10);
        for point in &points {
            for (what, model, measured) in [
                ("CPU", costs.cpu_seconds(point), point.cpu_seconds),
                ("connect", costs.connect(point.connections), point.connect_us),
            ] {
                let factor = model / measured;
                assert!((0.7..1.4).contains(&factor), "{what}: {factor:.2} of {point:?}");
            }
            // With few connections, the memory for a process's first client dominates.
            let factor = costs.memory_kib(point) / point.memory_kib;
            assert!(point.connections < 5_000.0 || (0.8..1.25).contains(&factor), "memory: {factor:.2} of {point:?}");
        }
    }

    #[test]
    fn a_load_that_one_machine_carried_needs_one_machine() {
        let plan = plan(&load(), &Costs::default());
        assert_eq!((plan.machines, plan.workers_a_machine), (1.0, 3.0));
        // 25,000 deliveries a second use about half of two cores.
        assert!((10.0..30.0).contains(&plan.busy_percent), "{plan:?}");
        assert!(plan.memory_gib_a_machine < 0.6, "{plan:?}");
    }

    #[test]
    fn a_larger_load_needs_more_machines() {
        let base = plan(&load(), &Costs::default());
        let more = [
            Load { connections: 2_000_000.0, ..load() },
            Load { events: 500.0, ..load() },
            Load { tls: true, connects: 20_000.0, ..load() },
            Load { memory_gib: 0.3, ..load() },
            Load { spare: 2.0, ..load() },
        ];
        for more in more {
            let plan = plan(&more, &Costs::default());
            assert!(plan.machines > base.machines, "{more:?}: {plan:?}");
        }
    }

    #[test]
    fn a_run_on_another_machine_scales_the_costs() {
        let costs = Costs::default();
        let slow = Point { cpu_seconds: 0.0, ..points().unwrap()[4].clone() };
        let slow = Point { cpu_seconds: 2.0 * costs.cpu_seconds(&slow), ..slow };
        let scaled = costs.clone().scaled_to(&slow);
        assert!((scaled.delivery_us / costs.delivery_us - 2.0).abs() < 1e-9);
        assert!((scaled.cpu_seconds(&slow) - slow.cpu_seconds).abs() < 1e-9);
    }
}

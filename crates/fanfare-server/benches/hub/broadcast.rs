//! The load of the broadcast benchmarks: quiet, saturated, and saturated while other clients join.

use crate::{
    args::Values,
    child::{self, Running},
    load::Load,
    proc,
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    process::Stdio,
    time::{Duration, Instant},
};

/// Connections opened each second.
const RAMP: u32 = 2_000;

/// The events in one batch, and how far a publisher may be ahead of the slowest client.
const BATCH: u64 = 20;
const AHEAD: u64 = 200;

/// A server under load, and the process whose CPU time is measured.
struct Side {
    name: &'static str,
    target: usize,
    address: SocketAddr,
    pid: u32,
}

/// The cost of one round.
struct Cost {
    seconds: f64,
    deliveries: f64,
    cpu_us: f64,
}

/// Runs the benchmark that `measure` names, against the floor and the hub in turn.
pub(crate) fn run(values: &Values) -> Result<Value> {
    let measure: String = values.get("measure")?;
    let (connections, rounds) = (values.get("connections")?, values.get("rounds")?);
    let mut load = Load::new()?;
    let mut sides = vec![];
    for name in ["floor", "hub"] {
        let (address, pid) = (values.get(name)?, values.get(&format!("{name}_pid"))?);
        let target = load.add_target(address)?;
        eprintln!("{name}: {connections} connections");
        load.connect(target, connections, RAMP)?;
        sides.push(Side { name, target, address, pid });
    }
    let mut report = json!({});
    if measure.contains("quiet") {
        let (ticks, interval) = (values.get("ticks")?, Duration::from_millis(values.get("interval_ms")?));
        report["quiet"] = in_rounds(rounds, "quiet", &sides, || quiet(&mut load, &sides, ticks, interval))?;
    }
    if measure.contains("saturated") {
        let duration = Duration::from_millis(values.get("saturated_ms")?);
        report["saturated"] = in_rounds(rounds, "saturated", &sides, || {
            sides.iter().map(|side| saturated(&mut load, side, duration)).collect()
        })?;
    }
    if measure.contains("fairness") {
        eprintln!("fairness: joining a storm");
        report["fairness"] = fairness(&mut load, &sides[1], Duration::from_millis(values.get("saturated_ms")?))?;
    }
    Ok(report)
}

/// Runs the rounds, after a warm-up round that does not count. A round returns the cost of each side.
fn in_rounds(rounds: usize, name: &str, sides: &[Side], mut round: impl FnMut() -> Result<Vec<Cost>>) -> Result<Value> {
    let mut report = json!({});
    for number in 0..=rounds {
        let costs = round().with_context(|| format!("{name}, round {number}"))?;
        for (side, cost) in sides.iter().zip(costs) {
            let (us, rate) = (cost.cpu_us / cost.deliveries, cost.deliveries / cost.seconds / 1e3);
            eprintln!("{name}: round {number} of {rounds}, {}: {us:.2} us a delivery, {rate:.0} thousand/s", side.name);
            if number > 0 {
                let figures = json!({"cpu_us_a_delivery": us, "thousand_deliveries_a_second": rate});
                let so_far = report[side.name].as_array().cloned().unwrap_or_default();
                report[side.name] = so_far.into_iter().chain([figures]).collect();
            }
        }
    }
    Ok(report)
}

/// Publishes one event at a time, to each side in turn: the next one when every client has the last, but not before
/// `interval`. The sides take turns, so that other load on the machine affects both alike.
fn quiet(load: &mut Load, sides: &[Side], ticks: u32, interval: Duration) -> Result<Vec<Cost>> {
    let meters = sides.iter().map(|side| Meter::start(load, side)).collect::<Result<Vec<_>>>()?;
    let mut due = Instant::now();
    for _ in 0..ticks {
        for side in sides {
            load.publish(side.target)?;
            load.wait_all_received(side.target)?;
            due = Instant::now().max(due + interval);
            load.pump_until(due)?;
        }
    }
    meters.iter().zip(sides).map(|(meter, side)| meter.read(load, side)).collect()
}

/// Publishes as fast as the slowest client allows.
fn saturated(load: &mut Load, side: &Side, duration: Duration) -> Result<Cost> {
    let meter = Meter::start(load, side)?;
    let end = Instant::now() + duration;
    while Instant::now() < end {
        load.publish_batch(side.target, BATCH, AHEAD)?;
        load.pump(Duration::from_millis(10))?;
    }
    load.wait_all_received(side.target).context(side.name)?;
    meter.read(load, side)
}

/// The counters of a side at one time.
struct Meter {
    at: Instant,
    cpu: Duration,
    frames: u64,
}

impl Meter {
    fn start(load: &Load, side: &Side) -> Result<Self> {
        Ok(Self { at: Instant::now(), cpu: proc::cpu(side.pid)?, frames: load.frames(side.target) })
    }

    fn read(&self, load: &Load, side: &Side) -> Result<Cost> {
        Ok(Cost {
            seconds: self.at.elapsed().as_secs_f64(),
            deliveries: (load.frames(side.target) - self.frames) as f64,
            cpu_us: (proc::cpu(side.pid)? - self.cpu).as_secs_f64() * 1e6,
        })
    }
}

/// Saturates a side while another process joins and leaves.
fn fairness(load: &mut Load, side: &Side, duration: Duration) -> Result<Value> {
    let mut joins = child::myself("join")?;
    joins.arg(format!("hub={}", side.address)).arg(format!("for_ms={}", duration.as_millis()));
    let start = Instant::now();
    // The load has reached its maximum before the first client joins.
    saturated(load, side, duration / 4)?;
    let joining = Running::start("join", joins.stdout(Stdio::piped()))?;
    saturated(load, side, duration + Duration::from_millis(500))?;
    eprintln!("fairness: {:.1} s", start.elapsed().as_secs_f64());
    Ok(serde_json::from_str(&joining.output()?)?)
}

//! The load's part in measuring broadcasts: quiet, saturated, and with others joining meanwhile.

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

/// Events in one batch, and how far a publisher may be ahead of the slowest client.
const BATCH: u64 = 100;
const AHEAD: u64 = 400;

/// A server under load, and the process to charge.
struct Side {
    name: &'static str,
    target: usize,
    address: SocketAddr,
    pid: u32,
}

/// What one round cost.
struct Cost {
    seconds: f64,
    deliveries: f64,
    cpu_ns: f64,
}

/// Measures what `measure` names, one round of the floor and one of the hub in turn.
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
        let round = |load: &mut Load, side: &Side| quiet(load, side, ticks, interval);
        report["quiet"] = in_turn(&mut load, &sides, rounds, "quiet", round)?;
    }
    if measure.contains("saturated") {
        let duration = Duration::from_millis(values.get("saturated_ms")?);
        let round = |load: &mut Load, side: &Side| saturated(load, side, duration);
        report["saturated"] = in_turn(&mut load, &sides, rounds, "saturated", round)?;
    }
    if measure.contains("fairness") {
        eprintln!("fairness: joining a storm");
        report["fairness"] = fairness(&mut load, &sides[1], Duration::from_millis(values.get("saturated_ms")?))?;
    }
    Ok(report)
}

/// Runs the rounds of all sides in turn, the order turned round each time, after one of each that does not count.
fn in_turn(
    load: &mut Load,
    sides: &[Side],
    rounds: usize,
    name: &str,
    round: impl Fn(&mut Load, &Side) -> Result<Cost>,
) -> Result<Value> {
    let mut report = json!({});
    for number in 0..=rounds {
        let order: Vec<_> = if number % 2 == 0 { sides.iter().collect() } else { sides.iter().rev().collect() };
        for side in order {
            let cost = round(load, side).with_context(|| format!("{name}, {}, round {number}", side.name))?;
            let (ns, rate) = (cost.cpu_ns / cost.deliveries, cost.deliveries / cost.seconds);
            eprintln!("{name}: round {number} of {rounds}, {}: {ns:.0} ns a delivery, {rate:.0} a second", side.name);
            if number > 0 {
                let figures = json!({"cpu_us_a_delivery": ns / 1e3, "thousand_deliveries_a_second": rate / 1e3});
                let so_far = report[side.name].as_array().cloned().unwrap_or_default();
                report[side.name] = so_far.into_iter().chain([figures]).collect();
            }
        }
    }
    Ok(report)
}

/// One event at a time: the next only when all have the last, and `interval` after it at the earliest.
fn quiet(load: &mut Load, side: &Side, ticks: u32, interval: Duration) -> Result<Cost> {
    charge(load, side, |load| {
        let mut due = Instant::now();
        for _ in 0..ticks {
            load.publish(side.target)?;
            load.wait_all_received(side.target)?;
            due = Instant::now().max(due + interval);
            load.pump_until(due)?;
        }
        Ok(())
    })
}

/// As fast as the slowest client allows.
fn saturated(load: &mut Load, side: &Side, duration: Duration) -> Result<Cost> {
    let end = Instant::now() + duration;
    charge(load, side, |load| {
        while Instant::now() < end {
            load.publish_batch(side.target, BATCH, AHEAD)?;
            load.pump(Duration::from_millis(10))?;
        }
        load.wait_all_received(side.target)
    })
}

fn charge(load: &mut Load, side: &Side, work: impl FnOnce(&mut Load) -> Result<()>) -> Result<Cost> {
    let (cpu, frames, start) = (proc::cpu(side.pid)?, load.frames(side.target), Instant::now());
    work(load)?;
    let cpu = proc::cpu(side.pid)? - cpu;
    Ok(Cost {
        seconds: start.elapsed().as_secs_f64(),
        deliveries: (load.frames(side.target) - frames) as f64,
        cpu_ns: cpu.as_secs_f64() * 1e9,
    })
}

/// A storm for as long as another process joins and leaves.
fn fairness(load: &mut Load, side: &Side, duration: Duration) -> Result<Value> {
    let mut joins = child::myself("join")?;
    joins.arg(format!("hub={}", side.address)).arg(format!("for_ms={}", duration.as_millis()));
    let start = Instant::now();
    // The storm is at its height when the first joins.
    saturated(load, side, duration / 4)?;
    let joining = Running::start("join", joins.stdout(Stdio::piped()))?;
    saturated(load, side, duration + Duration::from_millis(500))?;
    eprintln!("fairness: {:.1} s", start.elapsed().as_secs_f64());
    Ok(serde_json::from_str(&joining.output()?)?)
}

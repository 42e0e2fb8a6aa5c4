//! The load of the connection benchmark: the cost of opening a connection, and the resources that it uses afterwards.

use crate::{args::Values, load::Load, proc, stats::percentile};
use anyhow::Result;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Connections that are opened and closed before the measurement.
const WARM_UP: usize = 50;

/// The time for a server to become idle.
const REST: Duration = Duration::from_millis(1_500);

/// Opens connections to a server that has just been started.
pub(crate) fn run(values: &Values) -> Result<Value> {
    let (pid, connections, rate) = (values.get("hub_pid")?, values.get("connections")?, values.get("rate")?);
    let mut load = Load::new()?;
    let hub = load.add_target(values.get("hub")?)?;
    load.connect(hub, WARM_UP, rate)?;
    load.disconnect_all();
    load.pump_until(Instant::now() + REST)?;

    let (memory, cpu) = (proc::memory(pid)?, proc::cpu(pid)?);
    let acks_us = load.connect(hub, connections, rate)?;
    let cpu = proc::cpu(pid)? - cpu;
    load.pump_until(Instant::now() + REST)?;
    let after = proc::memory(pid)?;
    let count = connections as f64;
    Ok(json!({
        "anonymous_kib": (after.anonymous - memory.anonymous) / count,
        "resident_kib": (after.resident - memory.resident) / count,
        "before_kib": memory.anonymous,
        "cpu_us": cpu.as_secs_f64() * 1e6 / count,
        "ack_p50_us": percentile(&acks_us, 50),
        "ack_p99_us": percentile(&acks_us, 99),
    }))
}

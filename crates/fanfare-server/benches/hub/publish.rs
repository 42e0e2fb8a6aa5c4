//! The load of the publish benchmark: the time from publish to receipt.

use crate::{args::Values, load::Load, stats::percentile};
use anyhow::Result;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Events before the measurement.
const WARM_UP: u32 = 20;

/// Publishes events one by one, from the load or from the hub's own process, and records their delivery times.
pub(crate) fn run(values: &Values) -> Result<Value> {
    let (events, interval) = (values.get("events")?, Duration::from_millis(values.get("interval_ms")?));
    let (inside, to_one): (bool, bool) = (values.get("inside")?, values.get("to_one")?);
    let mut load = Load::new()?;
    let hub = load.add_target(values.get("hub")?)?;
    load.connect(hub, values.get("connections")?, 1_000)?;
    if to_one {
        load.expect_one_reader(hub);
    }
    for (events, noted) in [(WARM_UP, false), (events, true)] {
        if noted {
            load.note_receipts();
        }
        let mut due = Instant::now();
        for _ in 0..events {
            if inside {
                load.have_published(hub)?;
            } else {
                load.publish(hub)?;
            }
            due += interval;
            load.pump_until(due)?;
        }
        load.wait_all_received(hub)?;
    }
    let receipts = load.take_receipts();
    let us = |percent| percentile(&receipts, percent) as f64 / 1e3;
    Ok(json!({"receipts": receipts.len(), "p50_us": us(50), "p99_us": us(99), "max_us": us(100)}))
}

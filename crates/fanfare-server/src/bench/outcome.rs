//! The results of a run, which can be printed, written, read and compared.

use super::{
    plan::Plan,
    publisher::Published,
    tally::{Tally, Times},
    usage::{Machine, Usage},
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The content of `--json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// The version of the program.
    pub(crate) version: String,
    /// When the run began, in seconds since 1970-01-01T00:00:00Z.
    pub(crate) began_at: u64,
    pub(crate) machine: Machine,
    pub(crate) plan: Plan,
    /// Whether the run was interrupted.
    pub(crate) interrupted: bool,
    /// All results that are single numbers.
    pub(crate) figures: Vec<Figure>,
    /// The measured times, as pairs of microseconds and counts.
    pub(crate) tally: Tally,
    pub(crate) spread: Times,
    pub(crate) published: Published,
    pub(crate) server: Option<Server>,
    pub(crate) timeline: Vec<Second>,
    /// The same load on a bare write loop.
    pub(crate) floor: Option<Floor>,
}

/// A number with its name and unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) unit: String,
}

/// Resource usage of the hub's processes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Server {
    pub(crate) processes: usize,
    pub(crate) before: Usage,
    pub(crate) connected: Usage,
    pub(crate) after: Usage,
    /// Samples while events were published, with the seconds since the load began.
    #[serde(default)]
    pub(crate) samples: Vec<(f64, Usage)>,
}

/// The smallest number of samples for a trend.
const ENOUGH: usize = 6;

/// The results of the bare write loop.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Floor {
    pub(crate) connections: u64,
    pub(crate) cpu_us_a_delivery: f64,
    pub(crate) latency: Times,
    pub(crate) spread: Times,
}

/// One second of the timeline.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Second {
    pub(crate) at: f64,
    pub(crate) live: u64,
    pub(crate) failed: u64,
    pub(crate) deliveries_per_second: f64,
    pub(crate) megabytes_per_second: f64,
    /// In microseconds; `None` without deliveries.
    pub(crate) p50: Option<u64>,
    pub(crate) p99: Option<u64>,
    /// Total so far.
    pub(crate) deliveries: u64,
    pub(crate) bytes: u64,
}

impl Server {
    /// Growth of user memory in the second half of the run (least squares), when caches and buffers are filled.
    pub(crate) fn memory_kib_a_minute(&self) -> Option<f64> {
        let half = &self.samples[self.samples.len() / 2..];
        if half.len() < ENOUGH / 2 {
            return None;
        }
        let n = half.len() as f64;
        let mean = |of: fn(&(f64, Usage)) -> f64| half.iter().map(of).sum::<f64>() / n;
        let (minutes, memory) = (mean(|(at, _)| at / 60.0), mean(|(_, usage)| usage.memory_kib));
        let (mut above, mut below) = (0.0, 0.0);
        for (at, usage) in half {
            let aside = at / 60.0 - minutes;
            above += aside * (usage.memory_kib - memory);
            below += aside * aside;
        }
        (below > 0.0).then(|| above / below)
    }

    pub(crate) fn cpu_us_a_delivery(&self, deliveries: u64) -> f64 {
        per(self.after.cpu.saturating_sub(self.connected.cpu), deliveries)
    }
}

/// CPU time of each operation in microseconds.
pub(crate) fn per(time: Duration, count: u64) -> f64 {
    if count == 0 { 0.0 } else { time.as_secs_f64() * 1e6 / count as f64 }
}

/// The percentiles in reports, with their names.
pub(crate) const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

/// All results that are single numbers.
pub(crate) fn figures(outcome: &Outcome) -> Vec<Figure> {
    let Outcome { plan, tally, spread, published, server, timeline, floor, .. } = outcome;
    let mut all = Vec::new();
    let mut add = |name: &str, value: f64, unit: &str| {
        all.push(Figure { name: name.to_owned(), value, unit: unit.to_owned() });
    };
    let live = plan.connections - tally.absent.min(plan.connections);
    add("connections", live as f64, "");
    add("failed connects", tally.failed as f64, "");
    add("broken connections", tally.broken as f64, "");
    let times = [
        ("connect to ack", &tally.connects),
        ("publish to receipt", &tally.latency),
        ("publish to the last receiver", spread),
        ("reconnect to ack", &tally.resumes),
        ("publish to the hub's answer", &published.answers),
    ];
    for (name, times) in times {
        if times.count() > 0 {
            QUANTILES
                .iter()
                .for_each(|(q, share)| add(&format!("{name}, {q}"), times.quantile(*share) as f64 / 1e3, "ms"));
            add(&format!("{name}, max"), times.max() as f64 / 1e3, "ms");
        }
    }
    if let Some(longest) = tally.storms.iter().max() {
        add("from a storm until all were back", *longest as f64 / 1e6, "s");
    }
    add("events published", published.events as f64, "");
    add("deliveries", tally.deliveries as f64, "");
    add("deliveries made up for after a reconnect", tally.replayed as f64, "");
    let most = |of: fn(&Second) -> f64| timeline.iter().map(of).fold(0.0, f64::max);
    add("deliveries in the best second", most(|second| second.deliveries_per_second), "/s");
    add("most bytes in a second", most(|second| second.megabytes_per_second), "MB/s");
    add("lost", tally.lost as f64, "");
    add("doubled", tally.doubled as f64, "");
    add("reordered", tally.reordered as f64, "");
    add("gaps", tally.gaps as f64, "");
    if let Some(server) = server {
        let connected = server.connected.cpu.saturating_sub(server.before.cpu);
        add("hub: user memory", server.connected.memory_kib / 1_024.0, "MiB");
        add("hub: resident memory", server.connected.resident_kib / 1_024.0, "MiB");
        add(
            "hub: user memory a connection",
            (server.connected.memory_kib - server.before.memory_kib).max(0.0) / (live.max(1) as f64),
            "KiB",
        );
        add("hub: user memory at the end", server.after.memory_kib / 1_024.0, "MiB");
        add("hub: CPU a connect", per(connected, tally.connects.count()), "us");
        if let Some(slope) = server.memory_kib_a_minute() {
            add("hub: growth of user memory in the second half", slope, "KiB/min");
        }
        // After a storm it would include the reconnects.
        if tally.deliveries > 0 && tally.resumes.count() == 0 {
            add("hub: CPU a delivery", server.cpu_us_a_delivery(tally.deliveries), "us");
        }
    }
    if let Some(floor) = floor {
        add("floor: CPU a delivery", floor.cpu_us_a_delivery, "us");
        if let Some(server) = server
            && floor.cpu_us_a_delivery > 0.0
            && tally.resumes.count() == 0
        {
            add(
                "hub's CPU a delivery in floors",
                server.cpu_us_a_delivery(tally.deliveries) / floor.cpu_us_a_delivery,
                "x",
            );
        }
        for (name, times) in [("publish to receipt", &floor.latency), ("publish to the last receiver", &floor.spread)] {
            add(&format!("floor: {name}, p50"), times.quantile(0.5) as f64 / 1e3, "ms");
            add(&format!("floor: {name}, p99"), times.quantile(0.99) as f64 / 1e3, "ms");
        }
    }
    all
}

impl Outcome {
    pub(crate) fn figure(&self, name: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.name == name)
    }

    /// Whether all clients are connected, and each event arrived exactly once and in order.
    pub(crate) fn is_flawless(&self) -> bool {
        let Tally { lost, doubled, reordered, absent, .. } = self.tally;
        lost + doubled + reordered + absent == 0 && self.published.refused.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_that_of_the_second_half() {
        let sample = |at: f64, memory_kib: f64| (at, Usage { memory_kib, ..Usage::default() });
        let mut samples: Vec<_> = (0..10).map(|n| sample(f64::from(n) * 30.0, f64::from(n) * 500.0)).collect();
        samples.extend((10..20).map(|n| sample(f64::from(n) * 30.0, 5_000.0 + f64::from(n))));
        let usage = Usage::default();
        let server = Server { processes: 1, before: usage, connected: usage, after: usage, samples };
        let slope = server.memory_kib_a_minute().unwrap();
        assert!((slope - 2.0).abs() < 1e-6, "{slope}");
        assert_eq!(Server { samples: server.samples[..4].to_vec(), ..server }.memory_kib_a_minute(), None);
    }
}

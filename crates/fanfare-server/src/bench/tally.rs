//! Measurements, in a form that can be merged across processes.

use super::plan::Kind;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The longest time that is distinguished, in microseconds: ten minutes.
const LONGEST_US: u64 = 600_000_000;

/// A histogram of times in microseconds, with three significant digits.
#[derive(Debug, Clone)]
pub(crate) struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        #[expect(clippy::expect_used, reason = "the bounds are valid constants")]
        Self(Histogram::new_with_bounds(1, LONGEST_US, 3).expect("the bounds are valid"))
    }
}

impl Times {
    pub(crate) fn add(&mut self, us: u64) {
        self.0.saturating_record(us.clamp(1, LONGEST_US));
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        // Both have the same bounds.
        let _ = self.0.add(&other.0);
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The quantile of the times, in microseconds.
    pub(crate) fn quantile(&self, share: f64) -> u64 {
        if self.0.is_empty() { 0 } else { self.0.value_at_quantile(share) }
    }

    pub(crate) fn max(&self) -> u64 {
        self.0.max()
    }

    pub(crate) fn clear(&mut self) {
        self.0.reset();
    }

    /// The distinct values and their counts, ascending.
    pub(crate) fn pairs(&self) -> Vec<(u64, u64)> {
        self.0.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
    }
}

impl Serialize for Times {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.pairs().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Times {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut times = Self::default();
        for (us, count) in Vec::<(u64, u64)>::deserialize(deserializer)? {
            times.0.saturating_record_n(us.clamp(1, LONGEST_US), count);
        }
        Ok(times)
    }
}

/// A stream of consecutively numbered events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Stream {
    pub(crate) kind: Kind,
    /// The number of the topic or user.
    pub(crate) index: u64,
}

/// The measurements of a load.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Tally {
    /// Times from the start of a connect to its `ack`.
    pub(crate) connects: Times,
    /// The same for clients that reconnected after a storm.
    pub(crate) resumes: Times,
    /// Times from publish to receipt, for clients that were live and do not read slowly.
    pub(crate) latency: Times,
    /// The same since the last report.
    #[serde(skip)]
    pub(crate) recent: Times,
    /// Events received, and the part of them that was replayed after a reconnect.
    pub(crate) deliveries: u64,
    pub(crate) replayed: u64,
    pub(crate) bytes: u64,
    pub(crate) pings: u64,
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) reordered: u64,
    /// Number of `gap` messages, and of the events that they cover.
    pub(crate) gaps: u64,
    pub(crate) told: u64,
    /// Errors by text, with their counts.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Attempts that failed, and connections that ended unexpectedly.
    pub(crate) failed: u64,
    pub(crate) broken: u64,
    /// Clients that are not connected at the end.
    pub(crate) absent: u64,
    /// Clients that reconnected because of the churn.
    #[serde(default)]
    pub(crate) churned: u64,
    /// For each storm: the time until all clients had reconnected, in microseconds.
    pub(crate) storms: Vec<u64>,
    /// For each event with several receivers: when the last one received it, in microseconds, and how many received it.
    #[serde(skip)]
    pub(crate) spread: BTreeMap<(Stream, u32), (u64, u64)>,
}

impl Tally {
    pub(crate) fn error(&mut self, what: impl Into<String>) {
        *self.errors.entry(what.into()).or_default() += 1;
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.connects.merge(&other.connects);
        self.resumes.merge(&other.resumes);
        self.latency.merge(&other.latency);
        self.deliveries += other.deliveries;
        self.replayed += other.replayed;
        self.bytes += other.bytes;
        self.pings += other.pings;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.reordered += other.reordered;
        self.gaps += other.gaps;
        self.told += other.told;
        self.failed += other.failed;
        self.broken += other.broken;
        self.absent += other.absent;
        self.churned += other.churned;
        self.storms.resize(self.storms.len().max(other.storms.len()), 0);
        self.storms.iter_mut().zip(other.storms).for_each(|(longest, us)| *longest = us.max(*longest));
        for (what, count) in other.errors {
            *self.errors.entry(what).or_default() += count;
        }
        self.merge_spread(other.spread);
    }

    pub(crate) fn merge_spread(&mut self, spread: impl IntoIterator<Item = ((Stream, u32), (u64, u64))>) {
        for (event, (last_us, receivers)) in spread {
            let known = self.spread.entry(event).or_default();
            *known = (known.0.max(last_us), known.1 + receivers);
        }
    }

    /// Times until the last receiver had an event.
    pub(crate) fn to_the_last(&self) -> Times {
        let mut times = Times::default();
        self.spread.values().filter(|(_, receivers)| *receivers > 1).for_each(|&(last_us, _)| times.add(last_us));
        times
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_processes_measured_adds_up() {
        let (mut one, mut two) = (Tally::default(), Tally::default());
        (1..=99).for_each(|us| one.latency.add(us));
        two.latency.add(5_000_000);
        two.error("x");
        one.error("x");
        let event = (Stream { kind: Kind::Everyone, index: 0 }, 1);
        one.spread.insert(event, (10, 3));
        two.spread.insert(event, (30, 2));
        let sent: Tally = serde_json::from_str(&serde_json::to_string(&two).unwrap()).unwrap();
        one.merge(sent);
        one.merge_spread(two.spread);
        assert_eq!((one.latency.count(), one.latency.quantile(0.5), one.errors["x"]), (100, 50, 2));
        assert!((4_990_000..=5_010_000).contains(&one.latency.max()), "{}", one.latency.max());
        assert_eq!((one.spread[&event], one.to_the_last().max()), ((30, 5), 30));
    }
}

//! When this process did not run: it was stopped, or had no processor. A client that is found waiting afterwards may have
//! connected at any time meanwhile.

use crate::clock;
use std::time::Duration;

/// How often the process shows that it runs.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// A process that is later than this has not run meanwhile, in milliseconds. Less is the scheduler's usual delay.
const LATE_MS: u64 = 30;

/// For at most how long after a stop, in milliseconds, a client may be accepted that waited meanwhile.
const BACKLOG_MS: u64 = 2_000;

/// The last stop of this process, on its monotonic clock in milliseconds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Stops {
    ran_ms: Option<u64>,
    /// From when to when.
    last: Option<(u64, u64)>,
}

impl Stops {
    /// The process runs at `now_ms`.
    pub(super) fn tick(&mut self, now_ms: u64) {
        let before_ms = self.ran_ms.replace(now_ms).unwrap_or(now_ms);
        if now_ms.saturating_sub(before_ms) > clock::millis(TICK) + LATE_MS {
            // A stop that follows soon continues the one before: not all clients that waited were accepted in between.
            let same = self.last.filter(|(_, until)| before_ms < until + backlog_ms(self.last));
            self.last = Some((same.map_or(before_ms, |(from, _)| from), now_ms));
        }
    }

    /// Since when a client that was seen at `seen_ms` may have been waiting.
    pub(super) fn waiting_since(&self, seen_ms: u64) -> u64 {
        let waited = |(from, until): &(u64, u64)| *from < seen_ms && seen_ms < until + backlog_ms(self.last);
        self.last.filter(waited).map_or(seen_ms, |(from, _)| from)
    }
}

/// How long the clients that waited during a stop take to be accepted.
fn backlog_ms(stop: Option<(u64, u64)>) -> u64 {
    stop.map_or(0, |(from, until)| (until - from).min(BACKLOG_MS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_seen_after_a_stop_may_have_waited_since_it_began() {
        let mut stops = Stops::default();
        for tick in 10..=20 {
            stops.tick(100 * tick);
        }
        assert_eq!(stops.waiting_since(1_950), 1_950, "no stop so far");
        stops.tick(8_000);
        assert_eq!(stops.waiting_since(1_900), 1_900, "it was seen before");
        assert_eq!(stops.waiting_since(8_001), 2_000);
        assert_eq!(stops.waiting_since(10_100), 10_100, "what waited is accepted by then");
        stops.tick(8_100);
        stops.tick(9_500);
        assert_eq!(stops.waiting_since(9_500), 2_000, "it may have waited since the first stop");
        for tick in 96..=200 {
            stops.tick(100 * tick);
        }
        stops.tick(20_400);
        assert_eq!((stops.waiting_since(20_401), stops.waiting_since(20_900)), (20_000, 20_900), "a short stop");
    }
}

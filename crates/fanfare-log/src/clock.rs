//! The clocks. This is the only module of the library that reads them.

use crate::environment;
use fanfare_core::time::Now;
use std::{
    sync::OnceLock,
    time::{Duration, Instant, SystemTime},
};

/// The current time of the monotonic clock and of the wall clock.
pub fn now() -> Now {
    if let Some(now) = environment::now() {
        return now;
    }
    static START: OnceLock<Instant> = OnceLock::new();
    // The monotonic clock starts at one second, so that 0 precedes every event.
    let mono = START.get_or_init(Instant::now).elapsed() + Duration::from_secs(1);
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Now { mono_ms: millis(mono), unix_ms: millis(unix) }
}

/// Converts a duration to milliseconds, saturating.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

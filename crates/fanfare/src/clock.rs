//! The only place of the library that reads clocks.

use crate::environment;
use fanfare_core::time::Now;
use std::{
    sync::OnceLock,
    time::{Duration, Instant, SystemTime},
};

/// The time on both clocks.
pub(crate) fn now() -> Now {
    if let Some(now) = environment::now() {
        return now;
    }
    static START: OnceLock<Instant> = OnceLock::new();
    // One second in, so that 0 is before everything.
    let mono = START.get_or_init(Instant::now).elapsed() + Duration::from_secs(1);
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Now { mono_ms: millis(mono), unix_ms: millis(unix) }
}

/// A duration in milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

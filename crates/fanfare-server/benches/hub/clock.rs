//! The clock of the events' timestamps.

use anyhow::Result;
use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Nanoseconds of a monotonic clock that all processes of the machine share.
pub(crate) fn monotonic_ns() -> Result<u64> {
    let now: Duration = clock_gettime(ClockId::CLOCK_MONOTONIC)?.into();
    Ok(u64::try_from(now.as_nanos())?)
}

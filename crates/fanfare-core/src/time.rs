//! Instants as arguments, and their text form. This module reads no clock.

use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};

const ISO_8601: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// The time of an input. The driver reads it once for each input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds on a monotonic clock, from an arbitrary fixed start.
    pub mono_ms: u64,
    /// Milliseconds since 1970-01-01T00:00:00Z.
    pub unix_ms: u64,
}

/// Smallest step of the wall clock that counts as a step, in milliseconds. Slewing accumulates until it reaches this.
const STEP_MS: u64 = 1_000;

/// Detects pauses of the driver (a stopped process, a frozen or migrated machine) and steps of the wall clock.
#[derive(Debug, Default)]
pub struct ClockWatch {
    /// The monotonic time of the last check.
    checked_ms: Option<u64>,
    /// The difference between the wall clock and the monotonic clock at the last step.
    offset_ms: Option<u64>,
}

impl ClockWatch {
    /// Returns by how many milliseconds the driver is late, if it was due to run at `wanted_ms` of the monotonic clock.
    ///
    /// Each delay is returned once: the next call counts from this one.
    pub fn late_ms(&mut self, wanted_ms: u64, now: Now) -> u64 {
        let since = self.checked_ms.replace(now.mono_ms).unwrap_or(now.mono_ms).max(wanted_ms);
        now.mono_ms.saturating_sub(since)
    }

    /// Returns whether the wall clock was stepped since the last call.
    pub fn has_stepped(&mut self, now: Now) -> bool {
        let offset_ms = now.unix_ms.wrapping_sub(now.mono_ms);
        let before_ms = *self.offset_ms.get_or_insert(offset_ms);
        let stepped = offset_ms.wrapping_sub(before_ms).cast_signed().unsigned_abs() >= STEP_MS;
        if stepped {
            self.offset_ms = Some(offset_ms);
        }
        stepped
    }
}

/// Formats an instant as ISO 8601 in UTC with milliseconds: `2026-11-23T09:30:00.125Z`.
pub fn iso_8601(unix_ms: u64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000)
        .ok()
        .and_then(|at| at.format(ISO_8601).ok())
        // Only instants after the year 9999 cannot be formatted.
        .unwrap_or_else(|| "9999-12-31T23:59:59.999Z".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_driver_and_a_step_of_the_wall_clock_are_detected() {
        let mut watch = ClockWatch::default();
        let at = |mono_ms, unix_ms| Now { mono_ms, unix_ms };
        assert!(!watch.has_stepped(at(1_000, 50_000)));
        assert_eq!(watch.late_ms(0, at(1_000, 0)), 0, "first call");
        assert_eq!(watch.late_ms(u64::MAX, at(2_000, 0)), 0, "no timer was due");
        assert_eq!(watch.late_ms(4_000, at(3_000, 0)), 0, "woken before the timer");
        assert_eq!(watch.late_ms(4_000, at(9_000, 0)), 5_000);
        assert_eq!(watch.late_ms(4_000, at(9_500, 0)), 500, "a delay is returned once");
        assert!(!watch.has_stepped(at(9_000, 58_999)));
        assert!(watch.has_stepped(at(9_000, 59_000)));
        assert!(!watch.has_stepped(at(10_000, 60_000)));
        assert!(watch.has_stepped(at(11_000, 1_000)), "a step back");
    }

    #[test]
    fn writes_utc_with_milliseconds() {
        assert_eq!(iso_8601(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(iso_8601(1_795_426_200_125), "2026-11-23T09:30:00.125Z");
        assert_eq!(iso_8601(u64::MAX), "9999-12-31T23:59:59.999Z");
    }
}

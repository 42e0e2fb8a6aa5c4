//! Instants as arguments. Knows how to write one down, and not what time it is.

use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};

const ISO_8601: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// The time of an input, read once by whoever drives the core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds on a clock that never goes back, from any fixed start.
    pub mono_ms: u64,
    /// Milliseconds since 1970-01-01T00:00:00Z.
    pub unix_ms: u64,
}

/// Writes an instant as ISO 8601 in UTC with milliseconds: `2026-11-23T09:30:00.125Z`.
pub fn iso_8601(unix_ms: u64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000)
        .ok()
        .and_then(|at| at.format(ISO_8601).ok())
        // Only an instant past the year 9999 gets here.
        .unwrap_or_else(|| "9999-12-31T23:59:59.999Z".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_utc_with_milliseconds() {
        assert_eq!(iso_8601(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(iso_8601(1_795_426_200_125), "2026-11-23T09:30:00.125Z");
        assert_eq!(iso_8601(u64::MAX), "9999-12-31T23:59:59.999Z");
    }
}

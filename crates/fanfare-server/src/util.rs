//! Helpers without knowledge of the hub: output, identifiers, random numbers and times.

use crate::terminal;
use aws_lc_rs::rand;
use fanfare::ConnectionId;
use std::{
    io::{self, Write},
    time::SystemTime,
};

/// A wrong command line. Exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

/// Writes text to standard output, with control characters escaped.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    write(&terminal::text(text))
}

/// Writes JSON to standard output, with control characters escaped inside it.
pub(crate) fn print_json(text: &str) -> anyhow::Result<()> {
    write(&terminal::json(text))
}

fn write(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

/// Writes a status message to standard error.
pub(crate) fn print_status(text: &str) {
    // Standard error may be closed.
    let _ = writeln!(io::stderr(), "fanfare: {}", terminal::text(&terminal::without_credentials(text)));
}

/// A table with aligned columns.
pub(crate) fn columns<const N: usize>(rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<_> = rows.collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; N]| {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// A time in ISO 8601.
pub(crate) fn date(unix_secs: u64) -> String {
    fanfare::iso_8601(unix_secs.saturating_mul(1_000))
}

/// A random number from 0 to 1.
pub(crate) fn random() -> anyhow::Result<f64> {
    let mut bytes = [0; 4];
    rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("failed to generate a random number"))?;
    Ok(f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX))
}

/// Seconds since 1970-01-01T00:00:00Z.
pub(crate) fn unix_secs() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A random UUID (RFC 9562 version 4).
pub(crate) fn random_id() -> anyhow::Result<String> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("failed to generate a random number"))?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(ConnectionId(u128::from_be_bytes(bytes)).to_string())
}

//! What a process costs, as the kernel counts it. Knows process ids, and not whose they are.

use anyhow::{Context, Result};
use nix::{
    time::{clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};
use std::time::Duration;

/// User and system time that all threads of a process have used, ended threads included.
///
/// The process's CPU clock counts in nanoseconds and is exact at the moment of the call, where `/proc/PID/stat`
/// counts in hundredths of a second and `/proc/PID/schedstat` lags by a tick and forgets threads that ended.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?))
        .and_then(clock_gettime)
        .with_context(|| format!("can't read the CPU clock of process {pid}"))?;
    Ok(clock.into())
}

/// Memory of a process, in KiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// Memory of its own, without files and what is shared.
    pub(crate) anonymous: f64,
    /// All that is resident.
    pub(crate) resident: f64,
}

/// Reads `RssAnon` and `VmRSS` of a process.
pub(crate) fn memory(pid: u32) -> Result<Memory> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("can't read {path}"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        kib.with_context(|| format!("no {name} in {path}"))
    };
    Ok(Memory { anonymous: field("RssAnon:")?, resident: field("VmRSS:")? })
}

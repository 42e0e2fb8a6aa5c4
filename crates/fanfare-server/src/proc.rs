//! Resource usage of processes, as reported by the kernel. Knows process IDs, and not what the processes are.

use anyhow::{Context, Result};
use nix::{
    time::{clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};
use std::time::Duration;

/// User and system time of all threads of a process, including threads that have ended.
///
/// The CPU clock of a process counts nanoseconds and is exact at the time of the call. `/proc/PID/stat` counts
/// hundredths of a second, and `/proc/PID/schedstat` lags by a tick and omits threads that have ended.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?))
        .and_then(clock_gettime)
        .with_context(|| format!("failed to read the CPU clock of process {pid}"))?;
    Ok(clock.into())
}

/// Memory of a process, in KiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// Anonymous memory (user memory), without files and shared memory.
    pub(crate) anonymous: f64,
    /// Resident memory.
    pub(crate) resident: f64,
}

/// Reads `RssAnon` and `VmRSS` of a process.
pub(crate) fn memory(pid: u32) -> Result<Memory> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        kib.with_context(|| format!("no {name} in {path}"))
    };
    Ok(Memory { anonymous: field("RssAnon:")?, resident: field("VmRSS:")? })
}

//! Resource usage of the hub's processes, if they run on this machine.

use crate::proc;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fs, time::Duration};

/// The processes that listen on a port of this machine.
#[derive(Debug, Clone)]
pub(crate) struct Processes {
    ids: Vec<u32>,
}

/// Resource usage so far.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    /// User memory (RssAnon), in KiB.
    pub(crate) memory_kib: f64,
    /// Resident memory (VmRSS), in KiB.
    pub(crate) resident_kib: f64,
    pub(crate) files: u64,
    #[serde(default)]
    pub(crate) threads: u64,
}

impl Processes {
    /// Returns `None` if there are no such processes, or their files are not readable.
    pub(crate) fn listening_on(port: u16) -> Option<Self> {
        let inodes: BTreeSet<_> =
            ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().flat_map(|path| listeners(path, port)).collect();
        let processes = fs::read_dir("/proc").ok()?.flatten();
        let ids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
        let ids: Vec<u32> = ids.filter(|&id| sockets(id).any(|inode| inodes.contains(&inode))).collect();
        (!ids.is_empty()).then_some(Self { ids })
    }

    pub(crate) fn count(&self) -> usize {
        self.ids.len()
    }

    /// The sum over all processes. Processes that have exited are omitted.
    pub(crate) fn usage(&self) -> Usage {
        let mut sum = Usage::default();
        for &id in &self.ids {
            sum.cpu += proc::cpu(id).unwrap_or_default();
            if let Ok(memory) = proc::memory(id) {
                sum.memory_kib += memory.anonymous;
                sum.resident_kib += memory.resident;
            }
            let entries = |what| fs::read_dir(format!("/proc/{id}/{what}")).map_or(0, |entries| entries.count() as u64);
            sum.files += entries("fd");
            sum.threads += entries("task");
        }
        sum
    }
}

/// The inodes of the sockets that listen on a port (proc(5): state 0A, addresses in hexadecimal).
fn listeners(path: &str, port: u16) -> Vec<u64> {
    let table = fs::read_to_string(path).unwrap_or_default();
    let inode = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, _, state) = (fields.next()?, fields.next()?, fields.next()?);
        let here = u16::from_str_radix(local.rsplit(':').next()?, 16).ok()? == port;
        if here && state == "0A" { fields.nth(5)?.parse().ok() } else { None }
    };
    table.lines().skip(1).filter_map(inode).collect()
}

fn sockets(process: u32) -> impl Iterator<Item = u64> {
    let files = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    files.filter_map(|file| {
        let target = fs::read_link(file.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    })
}

/// A description of this machine for reports.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cores: usize,
    pub(crate) memory_gib: u64,
    pub(crate) system: String,
    pub(crate) files: u64,
}

impl Machine {
    pub(crate) fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let meminfo = read("/proc/meminfo");
        let kib =
            meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: kib.map_or(0, |kib: u64| (kib + (1 << 19)) >> 20),
            system: format!("Linux {}", read("/proc/sys/kernel/osrelease").trim()),
            files: rlimit::Resource::NOFILE.get_hard().unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_that_listens_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let found = Processes::listening_on(port).unwrap();
        assert_eq!(found.ids, [std::process::id()]);
        let usage = found.usage();
        assert!(
            usage.memory_kib > 0.0 && usage.files > 2 && usage.threads > 0 && usage.cpu > Duration::ZERO,
            "{usage:?}"
        );
        drop(listener);
        assert!(Processes::listening_on(port).is_none());
    }
}

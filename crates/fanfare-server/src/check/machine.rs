//! The machine: open files, kernel queues and ports, memory, and the clock.

use super::{Check, Finding};
use crate::{
    serve::file_budget::{FileBudget, files_needed},
    settings::Settings,
};
use std::{fs, path::Path, process::Command};

const FILES: Check =
    Check { name: "files", why: "Each connection is an open file; at the limit, clients are rejected." };
const SOMAXCONN: Check = Check {
    name: "accept queue",
    why: "After a restart all clients reconnect at once and wait in this queue; connects beyond it are dropped.",
};
const SYN: Check =
    Check { name: "syn queue", why: "Half-open connections wait in this queue during a reconnect storm." };
const PORTS: Check = Check {
    name: "ports",
    why: "A proxy or load generator on this machine needs one port for each connection to an address.",
};
const CONNTRACK: Check = Check {
    name: "conntrack",
    why: "The firewall has an entry for each connection, and drops new connections when its table is full.",
};
const MEMORY: Check =
    Check { name: "memory", why: "Without enough memory the machine swaps, or the kernel kills a process." };
const CLOCK: Check =
    Check { name: "clock", why: "Tokens expire by the clock; a machine with a wrong clock rejects valid tokens." };

pub(super) fn check(settings: &Settings) -> Vec<Finding> {
    let connections = settings.hub.max_connections as u64;
    let workers = match settings.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    } as u64;
    let mut findings = vec![
        files(settings, workers),
        queue(&SOMAXCONN, "net.core.somaxconn", 4_096),
        queue(&SYN, "net.ipv4.tcp_max_syn_backlog", 4_096),
        ports(connections),
    ];
    findings.extend(conntrack(connections * workers));
    findings.push(memory(settings, connections, workers));
    findings.push(clock());
    findings
}

fn files(settings: &Settings, workers: u64) -> Finding {
    let connections = settings.hub.max_connections as u64;
    let (soft, hard) = match rlimit::Resource::NOFILE.get() {
        Ok(limits) => limits,
        Err(error) => return FILES.unknown(format!("failed to read the limit: {error}")),
    };
    // The hub raises its soft limit to the hard limit.
    let each = soft.max(hard);
    let state = format!(
        "{each} files for each of {workers} {}, and max_connections is {connections}",
        plural(workers, "process", "processes")
    );
    // As at the start of the hub.
    let fit = FileBudget::new(Some(each), settings).clients as u64;
    if connections == 0 || fit >= connections {
        return FILES.ok(state);
    }
    let need = files_needed(settings);
    let wanted = connections * workers;
    let more = format!(
        "fanfare serve --workers {} --max-connections {fit}    # with a Redis",
        wanted.div_ceil(fit.max(1)).max(2)
    );
    FILES.warn(state, &[&format!("ulimit -n {need}"), &format!("LimitNOFILE={need}    # in the systemd unit"), &more])
}

fn queue(check: &Check, name: &str, wanted: u64) -> Finding {
    match kernel(name) {
        None => check.unknown(format!("failed to read {name}")),
        Some(value) if value >= wanted => check.ok(format!("{name} is {value}")),
        Some(value) => check.warn(
            format!("{name} is {value}; at least {wanted} is recommended"),
            &sysctl(name, wanted).each_ref().map(String::as_str),
        ),
    }
}

fn sysctl(name: &str, value: impl std::fmt::Display) -> [String; 2] {
    [format!("sysctl -w {name}=\"{value}\""), format!("echo '{name} = {value}' >> /etc/sysctl.d/60-fanfare.conf")]
}

fn ports(connections: u64) -> Finding {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut numbers = range.split_whitespace().filter_map(|text| text.parse::<u64>().ok());
    let (Some(first), Some(last)) = (numbers.next(), numbers.next()) else {
        return PORTS.unknown("failed to read net.ipv4.ip_local_port_range");
    };
    let count = last.saturating_sub(first) + 1;
    let state = format!("{count} ports for outgoing connections ({first} to {last})");
    if count >= connections.min(60_000) {
        return PORTS.ok(state);
    }
    PORTS.warn(
        format!("{state}; max_connections is {connections}"),
        &sysctl("net.ipv4.ip_local_port_range", "1024 65535").each_ref().map(String::as_str),
    )
}

fn conntrack(connections: u64) -> Option<Finding> {
    let max = kernel("net.netfilter.nf_conntrack_max")?;
    let state = format!("entries for {max} connections");
    Some(if max >= connections.saturating_mul(2) {
        CONNTRACK.ok(state)
    } else {
        let wanted = connections.saturating_mul(4);
        CONNTRACK.warn(
            format!("{state}; twice the {connections} configured connections are recommended"),
            &sysctl("net.netfilter.nf_conntrack_max", wanted).each_ref().map(String::as_str),
        )
    })
}

/// Compares the most memory that windows and connections take with the available memory.
fn memory(settings: &Settings, connections: u64, workers: u64) -> Finding {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let Some(free_mib) = free.map(|kib| kib >> 10) else {
        return MEMORY.unknown("failed to read the available memory");
    };
    // A log entry takes about twice its event. A connection takes half a KiB here and 3 KiB in the kernel.
    let each = 2 * settings.hub.window_bytes as u64 + connections * 3_600 + (30 << 20);
    let need_mib = (workers * each) >> 20;
    let state = format!("windows and connections take up to {need_mib} MiB, and {free_mib} MiB are available");
    if need_mib < free_mib {
        MEMORY.ok(state)
    } else {
        MEMORY.warn(state, &["window_bytes = \"16MiB\"    # in fanfare.toml, or more memory"])
    }
}

fn clock() -> Finding {
    let asked = Command::new("timedatectl").args(["show", "--property=NTPSynchronized", "--value"]).output();
    let said = asked
        .ok()
        .filter(|output| output.status.success())
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    match said.as_deref() {
        Some("yes") => CLOCK.ok("synchronised by NTP"),
        Some("no") => {
            CLOCK.warn("not synchronised by NTP", &["apt-get install systemd-timesyncd", "timedatectl set-ntp true"])
        }
        _ if Path::new("/run/systemd/timesync/synchronized").exists() => CLOCK.ok("synchronised by systemd-timesyncd"),
        _ => CLOCK.unknown(
            "timedatectl is not available, so the synchronisation is unknown; a container uses the \
            clock of its host",
        ),
    }
}

/// The value of a kernel parameter.
fn kernel(name: &str) -> Option<u64> {
    fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok()?.trim().parse().ok()
}

fn plural<'a>(n: u64, one: &'a str, many: &'a str) -> &'a str {
    if n == 1 { one } else { many }
}

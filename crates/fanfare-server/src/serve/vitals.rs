//! Metrics of the process, with the names that Prometheus client libraries use, and the expiry of its certificate.

use crate::proc;
use fanfare::metrics::{Figure, Figures};
use std::{
    fs,
    sync::Arc,
    sync::atomic::{AtomicI64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::runtime::Handle;

/// When the certificate expires, as Unix time in seconds. 0: there is no certificate.
pub(super) type CertificateEnd = Arc<AtomicI64>;

/// The metrics of this process.
#[derive(Debug)]
pub(super) struct Vitals {
    started: f64,
    certificate_end: CertificateEnd,
    /// The runtime of HTTP requests and background jobs. Clients run on the shards.
    tasks: Option<Handle>,
}

impl Vitals {
    pub(super) fn new(certificate_end: CertificateEnd) -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        Self { started, certificate_end, tasks: Handle::try_current().ok() }
    }
}

impl Figures for Vitals {
    fn figures(&self) -> Vec<Figure> {
        let gauge = |name, help, value| Figure { name, help, counter: false, value };
        let cpu = proc::cpu(std::process::id()).map(|cpu| Figure {
            name: "process_cpu_seconds",
            help: "User and system time that the process has used.",
            counter: true,
            value: cpu.as_secs_f64(),
        });
        let memory = proc::memory(std::process::id());
        let resident = memory.map(|memory| {
            gauge("process_resident_memory_bytes", "Memory of the process that is resident.", memory.resident * 1024.0)
        });
        let open = open_files().map(|n| gauge("process_open_fds", "Files and sockets that the process has open.", n));
        let limit = rlimit::getrlimit(rlimit::Resource::NOFILE);
        let limit = limit.map(|(soft, _)| {
            gauge("process_max_fds", "Files and sockets that the process may have open.", soft as f64)
        });
        let started =
            gauge("process_start_time_seconds", "When the process started, in seconds since 1970.", self.started);
        let tasks = self.tasks.as_ref().map(|handle| {
            let help = "Tasks of the HTTP server and of background jobs; connected clients have none.";
            gauge("fanfare_tasks", help, handle.metrics().num_alive_tasks() as f64)
        });
        let end = self.certificate_end.load(Ordering::Relaxed);
        let certificate = (end != 0).then(|| {
            gauge(
                "fanfare_certificate_end_seconds",
                "When the TLS certificate expires, in seconds since 1970.",
                end as f64,
            )
        });
        cpu.into_iter()
            .chain(resident)
            .chain(open)
            .chain(limit)
            .chain([started])
            .chain(tasks)
            .chain(certificate)
            .collect()
    }
}

fn open_files() -> Option<f64> {
    // Since Linux 6.2 the size of the directory is the number of its entries. Counting many entries takes long.
    let reported = fs::metadata("/proc/self/fd").ok()?.len();
    if reported > 0 {
        return Some(reported as f64);
    }
    // The listing includes the directory itself.
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
}

//! What the process itself costs, by the names that Prometheus' client libraries agree on, and how long its certificate is good.

use crate::bench::proc;
use fanfare::metrics::{Figure, Figures};
use std::{
    fs,
    sync::Arc,
    sync::atomic::{AtomicI64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::runtime::Handle;

/// When the certificate ends, in seconds since 1970-01-01T00:00:00Z; 0: there is none.
pub(super) type CertificateEnd = Arc<AtomicI64>;

/// The figures of this process.
#[derive(Debug)]
pub(super) struct Vitals {
    started: f64,
    certificate_end: CertificateEnd,
    /// That of the process's own tasks: requests on their way, and what goes on in the background.
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
            let help = "Tasks of the HTTP server and of what goes on in the background; a client is none.";
            gauge("fanfare_tasks", help, handle.metrics().num_alive_tasks() as f64)
        });
        let end = self.certificate_end.load(Ordering::Relaxed);
        let certificate = (end != 0).then(|| {
            gauge(
                "fanfare_certificate_end_seconds",
                "When the TLS certificate ends, in seconds since 1970.",
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
    // Since Linux 6.2 the directory's size is their number; to count them takes long where there are many.
    let told = fs::metadata("/proc/self/fd").ok()?.len();
    if told > 0 {
        return Some(told as f64);
    }
    // The directory is itself open while it is read.
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
}

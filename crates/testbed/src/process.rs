//! A child process that does not outlive its value.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    net::TcpListener,
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::{Duration, Instant},
};

/// How long anything may take to come about.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until something holds, which must be soon.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A port that nobody listens on, and that nobody else in this process is given. Below those that the system gives to
/// outgoing connections, and apart for each process, so that tests that run at once do not meet.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let start = u16::try_from(std::process::id() % 170).unwrap() * 50;
        // Cluster nodes take the port 10,000 higher too.
        let port = 11_000 + (start + n) % 8_500;
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if free(port) && free(port + 10_000) {
            return port;
        }
    }
}

/// A process that ends with this value, however that ends: a guard beside it waits for its parent's end.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    guard: Child,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::null()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        // The guard reads from a pipe that nobody writes to: it ends when this process does, even by SIGKILL.
        let script = format!("read -r _; kill -CONT {0} 2>/dev/null; kill -KILL {0} 2>/dev/null", child.id());
        let guard = Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap();
        Self { child, guard }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // One that has ended already needs none.
        let _ = kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal);
    }

    pub(crate) fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        until("the process ends", || self.has_ended().is_some());
        self.has_ended().unwrap()
    }

    pub(crate) fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.guard.kill();
        let _ = self.guard.wait();
        self.kill();
    }
}

//! A child process that ends when its value is dropped.

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::{Pid, Uid},
};
use std::{
    env,
    fs::{self, File},
    net::TcpListener,
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// The timeout of every wait. It is generous, because it only bounds failures: a busy machine may need most of it.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(120);

/// Waits until a condition holds. Panics after two minutes.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !holds() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A free port, reserved until this process ends.
pub fn free_port() -> u16 {
    free_ports(1)
}

/// The first of `count` consecutive free ports, reserved until this process ends.
///
/// The ports are below those that the kernel assigns to outgoing connections. A locked file for each port prevents
/// other test processes of this user from taking the same port before its server listens.
pub fn free_ports(count: u16) -> u16 {
    const PORTS: u32 = 8_500;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // A lock is released when its file is closed, at the latest at the end of this process.
    static RESERVED: Mutex<Vec<File>> = Mutex::new(Vec::new());
    // Processes start at different ports, so that they seldom meet a locked file.
    let start = std::process::id() % 170 * 50;
    for _ in 0..PORTS {
        let n = start + NEXT.fetch_add(count.into(), Ordering::Relaxed);
        let first = 11_000 + u16::try_from(n % (PORTS - u32::from(count))).unwrap();
        let locks: Option<Vec<File>> = (first..first + count).map(reserve).collect();
        if let Some(mut locks) = locks {
            RESERVED.lock().unwrap().append(&mut locks);
            return first;
        }
    }
    panic!("no free port between 11000 and 19500: stop the servers that earlier tests left running")
}

/// A lock on a free port; `None` if the port is in use or locked.
fn reserve(port: u16) -> Option<File> {
    let folder = env::temp_dir().join(format!("fanfare-test-ports-{}", Uid::effective()));
    fs::create_dir_all(&folder).unwrap();
    let lock = File::create(folder.join(port.to_string())).unwrap();
    lock.try_lock().ok()?;
    let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    // Cluster nodes also use the port that is 10,000 higher.
    (free(port) && free(port + 10_000)).then_some(lock)
}

/// A process that kills a process group when this process ends, even by SIGKILL: its `read` returns when the pipe is
/// closed.
fn guard(group: u32) -> Child {
    // Debian's sh does not support `kill --`.
    let script = format!("read -r _; kill -KILL -{group} 2>/dev/null");
    Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).process_group(0).spawn().unwrap()
}

/// A process whose whole process group is killed when this value is dropped. If this process is killed, a guard process
/// does that.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    guard: Child,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        // In a process group of its own: Ctrl-C ends this process, and the guard ends the child.
        let child = command
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let guard = guard(child.id());
        Self { child, guard }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // The signal fails if the process has exited already.
        let _ = kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal);
    }

    pub(crate) fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits until the process exits.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        until("the process exits", || self.has_ended().is_some());
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
        // Workers notice the end of their supervisor a moment later. A test that is given the same ports would connect
        // to them.
        let _ = killpg(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    #[test]
    fn a_guard_kills_the_whole_process_group_even_if_it_is_stopped() {
        // A child that outlives its parent, as the worker of a supervisor does.
        let mut command = Command::new("sh");
        let mut parent =
            command.args(["-c", "sleep 300 & echo $!; wait"]).stdout(Stdio::piped()).process_group(0).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let child = Pid::from_raw(line.trim().parse().unwrap());
        kill(child, Signal::SIGSTOP).unwrap();
        let mut guard = guard(parent.id());
        // The pipe is closed, as when this process ends.
        drop(guard.stdin.take());
        guard.wait().unwrap();
        until("the parent exits", || parent.try_wait().unwrap().is_some());
        // The child may be a zombie until it is reaped.
        let state = || fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        until("the child exits", || state().is_empty() || state().contains(") Z "));
    }
}

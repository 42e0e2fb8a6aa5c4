//! The hub under a service manager: notifications and socket activation.

#![expect(clippy::unwrap_used, reason = "a failed precondition fails the test")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::{
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};
use testbed::{HubProcess, RedisServer, get, until};

const SECRET: &str = "a secret of thirty-two bytes, ok";
const TIMEOUT: Duration = Duration::from_secs(120);

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_fanfare"))
}

/// The notification socket of a service manager.
struct Manager {
    socket: UnixDatagram,
    _home: tempfile::TempDir,
    path: String,
}

impl Manager {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self { socket, path: path.display().to_string(), _home: home }
    }

    fn next(&self) -> String {
        let mut buffer = [0; 256];
        let n = self.socket.recv(&mut buffer).expect("timed out: a notification");
        String::from_utf8(buffer[..n].to_vec()).unwrap().trim().to_owned()
    }

    /// The next notification that is not for the watchdog.
    fn next_state(&self) -> String {
        loop {
            let word = self.next();
            if word != "WATCHDOG=1" {
                break word;
            }
        }
    }
}

fn notifies_its_state(more: &[&str]) {
    let manager = Manager::new();
    let environment = [("SECRET_KEY", SECRET), ("NOTIFY_SOCKET", &manager.path), ("WATCHDOG_USEC", "200000")];
    let mut hub = HubProcess::launch(program(), more, &environment);
    assert_eq!(manager.next(), "READY=1");
    assert!(
        hub.get("/health/live").unwrap().starts_with("HTTP/1.1 200"),
        "the hub serves once it has notified that it is ready"
    );
    for _ in 0..3 {
        assert_eq!(manager.next(), "WATCHDOG=1");
    }
    hub.signal(Signal::SIGTERM);
    assert_eq!(manager.next_state(), "STOPPING=1");
    assert!(hub.wait().success());
}

/// The socket queues about ten notifications. Further ones must not block the hub.
fn serves_while_notifications_are_not_read(more: &[&str]) {
    let manager = Manager::new();
    let environment = [("SECRET_KEY", SECRET), ("NOTIFY_SOCKET", &manager.path), ("WATCHDOG_USEC", "2000")];
    let mut hub = HubProcess::launch(program(), more, &environment);
    assert_eq!(manager.next(), "READY=1");
    until("the manager's socket is full", || {
        let probe = UnixDatagram::unbound().unwrap();
        probe.set_nonblocking(true).unwrap();
        probe.send_to(b"PROBE=1", &manager.path).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    });
    assert!(hub.get("/health/live").unwrap().starts_with("HTTP/1.1 200"));
    hub.signal(Signal::SIGTERM);
    assert!(hub.wait().success(), "it exits although the notification is not read");
}

#[test]
fn a_service_manager_that_does_not_read_does_not_block_the_hub() {
    serves_while_notifications_are_not_read(&[]);
    let redis = RedisServer::start();
    serves_while_notifications_are_not_read(&["--redis-url", &redis.url(), "--workers", "2"]);
}

#[test]
fn a_single_process_notifies_its_state() {
    notifies_its_state(&[]);
}

#[test]
fn only_the_supervisor_notifies_the_service_manager() {
    let redis = RedisServer::start();
    notifies_its_state(&["--redis-url", &redis.url(), "--workers", "2"]);
}

/// A hub with an inherited socket.
struct Given {
    child: Child,
    log: tempfile::NamedTempFile,
}

impl Given {
    fn start(listener: &TcpListener, more: &[&str]) -> Self {
        let log = tempfile::NamedTempFile::new().unwrap();
        let socket = OwnedFd::from(listener.try_clone().unwrap());
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"", "sh"]);
        shell.arg(program()).args(["serve", "--database-url", "none"]).args(more).env("SECRET_KEY", SECRET);
        shell.stdin(Stdio::from(socket)).stdout(Stdio::null()).stderr(log.reopen().unwrap());
        Self { child: shell.spawn().unwrap(), log }
    }

    fn logged(&self, what: &str) -> bool {
        std::fs::read_to_string(self.log.path()).unwrap().contains(what)
    }

    fn end(&mut self) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        // The hub may have exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serves_on_an_inherited_socket(more: &[&str], ready: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut hub = Given::start(&listener, more);
    until("the hub is ready", || hub.logged(ready));
    assert!(get(address, "/health/ready").unwrap().starts_with("HTTP/1.1 200"));
    hub.end();
    // A connection that arrives between two hubs waits and is served by the next one.
    let mut waiting = TcpStream::connect(address).unwrap();
    waiting.set_read_timeout(Some(TIMEOUT)).unwrap();
    waiting.write_all(b"GET /health/live HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n\r\n").unwrap();
    let _next = Given::start(&listener, more);
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn a_single_process_serves_on_an_inherited_socket() {
    serves_on_an_inherited_socket(&[], "listens on");
}

#[test]
fn workers_serve_on_an_inherited_socket() {
    let redis = RedisServer::start();
    serves_on_an_inherited_socket(&["--redis-url", &redis.url(), "--workers", "2"], "all workers are ready");
}

#[test]
fn health_is_an_exit_status() {
    let ask = |url: &str| Command::new(program()).args(["health", "--url", url]).output().unwrap();
    let hub = HubProcess::start(program(), &[], &[("SECRET_KEY", SECRET)]);
    let there = ask(&format!("http://{}", hub.address()));
    assert!(there.status.success() && there.stdout == b"ready\n", "{there:?}");
    let address = hub.address();
    drop(hub);
    let gone = ask(&format!("http://{address}"));
    assert_eq!(gone.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&gone.stderr).contains("failed to reach"), "{gone:?}");
}

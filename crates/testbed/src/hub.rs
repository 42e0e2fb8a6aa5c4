//! The hub's program, as its users run it.

use crate::process::{PATIENCE, Process, free_port, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    env,
    fs::{self, File},
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};
use tempfile::TempDir;

/// A hub on a port of its own.
#[derive(Debug)]
pub struct HubProcess {
    address: SocketAddr,
    process: Process,
    home: TempDir,
}

/// The whole answer to a request, unless nobody listens or the connection breaks off.
pub fn get(address: SocketAddr, path: &str) -> Option<String> {
    get_within(address, path, PATIENCE)
}

fn get_within(address: SocketAddr, path: &str, patience: Duration) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, patience).ok()?;
    stream.set_read_timeout(Some(patience)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// The whole answer to publishing an event, given as JSON. Each byte of it may take up to `patience`.
///
/// # Errors
/// If nobody listens, or the answer does not come in time or breaks off.
pub fn post_event(address: SocketAddr, token: &str, event: &str, patience: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(patience))?;
    write!(
        stream,
        "POST /events HTTP/1.1\r\nHost: hub\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{event}",
        event.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

impl HubProcess {
    /// Starts `fanfare serve` with further arguments and environment variables, without waiting for it.
    pub fn launch(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::launch_command(&mut Command::new(program), arguments, environment)
    }

    /// The same of a program that may open only so many files.
    pub fn launch_with_files(files: u32, program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("ulimit -n {files}; exec \"$@\"")).arg("sh").arg(program);
        Self::launch_command(&mut command, arguments, environment)
    }

    fn launch_command(command: &mut Command, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::launch_at(SocketAddr::from(([127, 0, 0, 1], free_port())), command, arguments, environment)
    }

    /// The same at another address, with a command that runs the program, such as in a network of its own.
    pub fn launch_at(
        address: SocketAddr,
        command: &mut Command,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let home = tempfile::Builder::new().prefix("hub-").tempdir().unwrap();
        let log = File::create(home.path().join("log")).unwrap();
        command.arg("serve").arg("--listen").arg(address.to_string()).args(arguments).current_dir(home.path());
        // What is set for the test is not meant for the hub.
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FANFARE_")) {
            command.env_remove(name);
        }
        command.env_remove("REDIS_URL").env_remove("SECRET_KEY").env("RUST_BACKTRACE", "0");
        // Tests are refused on purpose, again and again from one address; the delay of that has tests of its own.
        command.env("FANFARE_REFUSAL_DELAY", "0");
        command.envs(environment.iter().copied()).stdout(log.try_clone().unwrap()).stderr(log);
        Self { address, process: Process::start(command), home }
    }

    /// Starts it, and waits until it is ready, with all of its workers.
    pub fn start(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let hub = Self::launch(program, arguments, environment);
        hub.wait_until_ready(arguments)
    }

    /// Waits until it is ready, with all of its workers.
    pub fn wait_until_ready(mut self, arguments: &[&str]) -> Self {
        let hub = &mut self;
        let several = arguments.windows(2).any(|pair| pair[0] == "--workers" && pair[1] != "1");
        until("the hub is ready", || {
            let ended = hub.process.has_ended();
            assert_eq!(ended, None, "the hub ended: {}", hub.log());
            hub.is_ready() && (!several || hub.log().contains("all workers are ready"))
        });
        self
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether `/health/ready` says so within a second. One that is halted is not ready.
    pub fn is_ready(&self) -> bool {
        let answer = get_within(self.address, "/health/ready", Duration::from_secs(1));
        answer.is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    /// The whole answer to a request, unless nobody listens or the connection breaks off.
    pub fn get(&self, path: &str) -> Option<String> {
        get(self.address, path)
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }

    /// Where it logs to.
    pub fn log_path(&self) -> PathBuf {
        self.home.path().join("log")
    }

    /// The process that was started.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Its children.
    pub fn workers(&self) -> Vec<u32> {
        let id = self.process.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        children.split_whitespace().map(|id| id.parse().unwrap()).collect()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Sends a signal to one of its children, or to any other process.
    pub fn signal_to(id: u32, signal: Signal) {
        let _ = kill(Pid::from_raw(i32::try_from(id).unwrap()), signal);
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.process.has_ended().is_some()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait()
    }

    /// Ends it at once, as a crash does.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

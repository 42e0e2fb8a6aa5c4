//! The fanfare program as a process.

use crate::process::{Process, TIMEOUT, free_port, until};
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

/// The complete response to a GET request; `None` if the connection is refused or ends early.
pub fn get(address: SocketAddr, path: &str) -> Option<String> {
    get_within(address, path, TIMEOUT)
}

fn get_within(address: SocketAddr, path: &str, read_timeout: Duration) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, read_timeout).ok()?;
    stream.set_read_timeout(Some(read_timeout)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// The complete response to the publish of an event, given as JSON. `read_timeout` applies to each read.
///
/// # Errors
/// If the connection is refused or ends early, or a read times out.
pub fn post_event(address: SocketAddr, token: &str, event: &str, read_timeout: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(read_timeout))?;
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
    /// Starts `fanfare serve` with further arguments and environment variables, without waiting until it is ready.
    pub fn launch(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::launch_command(&mut Command::new(program), arguments, environment)
    }

    /// As [`HubProcess::launch`], for a process that may open at most `files` files.
    pub fn launch_with_files(files: u32, program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("ulimit -n {files}; exec \"$@\"")).arg("sh").arg(program);
        Self::launch_command(&mut command, arguments, environment)
    }

    fn launch_command(command: &mut Command, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::launch_at(SocketAddr::from(([127, 0, 0, 1], free_port())), command, arguments, environment)
    }

    /// As [`HubProcess::launch`], at another address, with a command that runs the program, such as in a network
    /// namespace.
    pub fn launch_at(
        address: SocketAddr,
        command: &mut Command,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let home = tempfile::Builder::new().prefix("hub-").tempdir().unwrap();
        let log = File::create(home.path().join("log")).unwrap();
        command.arg("serve").arg("--listen").arg(address.to_string()).args(arguments).current_dir(home.path());
        // Variables of the test itself are not settings of the hub.
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FANFARE_")) {
            command.env_remove(name);
        }
        command.env_remove("REDIS_URL").env_remove("SECRET_KEY").env("RUST_BACKTRACE", "0");
        // Tests provoke rejections repeatedly from one address; the delay of rejections has tests of its own.
        command.env("FANFARE_REFUSAL_DELAY", "0");
        command.envs(environment.iter().copied()).stdout(log.try_clone().unwrap()).stderr(log);
        Self { address, process: Process::start(command), home }
    }

    /// Starts the program, and waits until it is ready, with all of its workers.
    pub fn start(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let hub = Self::launch(program, arguments, environment);
        hub.wait_until_ready(arguments)
    }

    /// Waits until the program is ready, with all of its workers.
    pub fn wait_until_ready(mut self, arguments: &[&str]) -> Self {
        let hub = &mut self;
        let several = arguments.windows(2).any(|pair| pair[0] == "--workers" && pair[1] != "1");
        until("the hub is ready", || {
            let ended = hub.process.has_ended();
            assert_eq!(ended, None, "the hub exited: {}", hub.log());
            hub.is_ready() && (!several || hub.log().contains("all workers are ready"))
        });
        self
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether `/health/ready` returns 200 within a second. A stopped process is not ready.
    pub fn is_ready(&self) -> bool {
        let answer = get_within(self.address, "/health/ready", Duration::from_secs(1));
        answer.is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    /// The complete response to a GET request; `None` if the connection is refused or ends early.
    pub fn get(&self, path: &str) -> Option<String> {
        get(self.address, path)
    }

    /// The log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }

    /// The path of the log.
    pub fn log_path(&self) -> PathBuf {
        self.home.path().join("log")
    }

    /// The process ID of the program: of the supervisor, if there are workers.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The process IDs of its children.
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

    /// Whether the process has exited.
    pub fn has_ended(&mut self) -> bool {
        self.process.has_ended().is_some()
    }

    /// Waits until the process exits.
    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait()
    }

    /// Kills the process (SIGKILL).
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

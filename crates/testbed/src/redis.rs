//! A Redis server.

use crate::{
    Certificates,
    process::{Process, free_port, until},
};
use nix::sys::signal::Signal;
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};
use tempfile::TempDir;

/// The configuration of a server.
#[derive(Debug, Clone, Default)]
pub struct RedisSetup {
    lines: Vec<String>,
    password: Option<String>,
    tls: Option<Certificates>,
    program: Option<PathBuf>,
    port: Option<u16>,
    within: Option<PathBuf>,
}

/// All data files of a server, for [`RedisServer::restart_with`].
#[derive(Debug, Clone)]
pub struct RedisFiles(Vec<(PathBuf, Vec<u8>)>);

/// A Redis server on a port of its own.
#[derive(Debug)]
pub struct RedisServer {
    setup: RedisSetup,
    port: u16,
    home: TempDir,
    process: Option<Process>,
    is_halted: AtomicBool,
}

impl RedisSetup {
    /// Adds a line to the configuration, such as `appendonly yes`.
    #[must_use]
    pub fn line(mut self, line: &str) -> Self {
        self.lines.push(line.to_owned());
        self
    }

    /// Enables the append-only file, synced every second.
    #[must_use]
    pub fn persistent(self) -> Self {
        self.line("appendonly yes").line("appendfsync everysec")
    }

    /// Requires a password.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        let line = format!("requirepass \"{password}\"");
        self.line(&line).line(&format!("masterauth \"{password}\""))
    }

    /// Accepts only TLS, with a certificate for `localhost` from a new authority.
    #[must_use]
    pub fn tls(self) -> Self {
        self.certificates(&Certificates::issued(false))
    }

    /// Accepts only TLS, with these certificates.
    #[must_use]
    pub fn certificates(mut self, certificates: &Certificates) -> Self {
        self.tls = Some(certificates.clone());
        self
    }

    /// Runs another program than `redis-server`, such as Valkey.
    #[must_use]
    pub fn program(mut self, program: &Path) -> Self {
        self.program = Some(program.to_owned());
        self
    }

    /// Sets the port.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Sets the directory of its files.
    #[must_use]
    pub fn within(mut self, directory: &Path) -> Self {
        self.within = Some(directory.to_owned());
        self
    }

    /// Starts the server, and waits until it responds.
    pub fn start(self) -> RedisServer {
        let within = self.within.clone().unwrap_or_else(env::temp_dir);
        let home = tempfile::Builder::new().prefix("redis-").tempdir_in(within).unwrap();
        let port = self.port.unwrap_or_else(free_port);
        let mut server = RedisServer { setup: self, port, home, process: None, is_halted: AtomicBool::new(false) };
        server.launch();
        server
    }
}

/// The default program: the one in REDIS_SERVER, or `redis-server` on the PATH.
pub(crate) fn redis_server() -> PathBuf {
    env::var_os("REDIS_SERVER").filter(|path| !path.is_empty()).map_or_else(|| "redis-server".into(), PathBuf::from)
}

/// All installed programs that speak Redis' protocol: `redis-server` and `valkey-server` on the PATH, and those in
/// REDIS_SERVERS, separated by colons.
pub fn redis_programs() -> Vec<PathBuf> {
    let named = env::var_os("REDIS_SERVERS").unwrap_or_default();
    let mut found: Vec<PathBuf> = env::split_paths(&named).filter(|path| !path.as_os_str().is_empty()).collect();
    let path = env::var_os("PATH").unwrap_or_default();
    for name in ["redis-server", "valkey-server"] {
        found.extend(env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file()));
    }
    // Debian's valkey-compat installs one as a link to the other.
    let mut real = Vec::new();
    found.retain(|program| {
        let path = program.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let is_new = !real.contains(&path);
        real.push(path);
        is_new
    });
    found
}

impl RedisServer {
    /// Starts a server with the default configuration and without persistence.
    pub fn start() -> Self {
        RedisSetup::default().start()
    }

    /// Begins to configure a server.
    pub fn setup() -> RedisSetup {
        RedisSetup::default()
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL, with the password.
    pub fn url(&self) -> String {
        let password = self.setup.password.as_ref().map_or_else(String::new, |password| format!(":{password}@"));
        let (scheme, host) = if self.setup.tls.is_some() { ("rediss", "localhost") } else { ("redis", "127.0.0.1") };
        format!("{scheme}://{password}{host}:{}/0", self.port)
    }

    /// The path of the certificate of the authority that issued the server's certificate.
    pub fn authority(&self) -> PathBuf {
        self.setup.tls.as_ref().expect("the server uses TLS").authority()
    }

    /// Kills the server (SIGKILL).
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Stops the server (SIGSTOP): it keeps its connections, and does not respond.
    pub fn stop(&self) {
        self.is_halted.store(true, Ordering::Relaxed);
        self.signal(Signal::SIGSTOP);
    }

    /// Resumes the server (SIGCONT).
    pub fn cont(&self) {
        self.signal(Signal::SIGCONT);
        self.is_halted.store(false, Ordering::Relaxed);
    }

    /// Starts the server again on the same port with its files.
    pub fn restart(&mut self) {
        self.process = None;
        self.launch();
    }

    /// Deletes the data files. The server must not be running.
    pub fn forget(&self) {
        assert!(self.process.is_none(), "the server is running");
        for entry in fs::read_dir(self.home.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                fs::remove_dir_all(path).unwrap();
            } else if is_data(&path) {
                fs::remove_file(path).unwrap();
            }
        }
    }

    /// A snapshot of all data, for [`RedisServer::restart_from`].
    pub fn snapshot(&self) -> Vec<u8> {
        assert_eq!(self.cli(&["SAVE"]), "OK");
        fs::read(self.home.path().join("dump.rdb")).unwrap()
    }

    /// Restarts the server with the data of a snapshot. The server must have no append-only file.
    pub fn restart_from(&mut self, snapshot: &[u8]) {
        self.process = None;
        fs::write(self.home.path().join("dump.rdb"), snapshot).unwrap();
        self.launch();
    }

    /// A copy of the data files as they are, as a backup of the disk takes it. The server may be running.
    pub fn files(&self) -> RedisFiles {
        let mut files = Vec::new();
        let mut folders = vec![self.home.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if is_data(&path)
                    // A file that is replaced in the meantime is gone.
                    && let Ok(bytes) = fs::read(&path)
                {
                    files.push((path, bytes));
                }
            }
        }
        RedisFiles(files)
    }

    /// Starts the server with other data files. The server must not be running.
    pub fn restart_with(&mut self, files: &RedisFiles) {
        self.forget();
        for (path, bytes) in &files.0 {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        self.launch();
    }

    /// The directory of its files.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Whether the server is running.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Runs a command, and returns the output of `redis-cli`; empty while the server is stopped.
    pub fn cli(&self, arguments: &[&str]) -> String {
        if self.is_halted.load(Ordering::Relaxed) {
            return String::new();
        }
        let mut command = Command::new("redis-cli");
        command.args(["-p", &self.port.to_string()]);
        if let Some(password) = &self.setup.password {
            command.args(["--no-auth-warning", "-a", password]);
        }
        if let Some(certificates) = &self.setup.tls {
            command.args(certificates.arguments());
        }
        let output = command.args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("the server is running").signal(signal);
    }

    fn launch(&mut self) {
        self.is_halted.store(false, Ordering::Relaxed);
        let port = self.port;
        let ports = self.setup.tls.as_ref().map_or_else(|| format!("port {port}\n"), |tls| tls.lines(port));
        let common = "bind 127.0.0.1 127.0.0.2\nsave \"\"\nlogfile redis.log\n";
        let config = self.home.path().join("redis.conf");
        // A server under Sentinel stores its role in its configuration file, so that file must not be overwritten.
        if !config.exists() {
            fs::write(&config, format!("{ports}{common}{}\n", self.setup.lines.join("\n"))).unwrap();
        }
        let mut command = Command::new(self.setup.program.clone().unwrap_or_else(redis_server));
        command.arg(&config).current_dir(self.home.path()).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(Process::start(&mut command));
        until("Redis responds", || {
            let ended = self.process.as_mut().and_then(Process::has_ended);
            assert_eq!(
                ended,
                None,
                "Redis exited: {}",
                fs::read_to_string(self.home.path().join("redis.log")).unwrap()
            );
            self.cli(&["PING"]) == "PONG"
        });
    }
}

/// Whether a file is data, and not the configuration or the log.
fn is_data(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["rdb", "aof", "manifest"].iter().any(|data| extension == *data))
}

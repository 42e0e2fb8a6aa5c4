//! A PostgreSQL server.

use crate::process::{Process, free_port, until};
use nix::unistd::{Uid, User, chown};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use tempfile::TempDir;

const PASSWORD: &str = "a database's password";

/// A PostgreSQL server on a port of its own, with a user and a database `hub`.
#[derive(Debug)]
pub struct Postgres {
    programs: PathBuf,
    port: u16,
    home: TempDir,
    process: Option<Process>,
}

impl Postgres {
    /// Starts a server with an empty database, and waits until it responds.
    pub fn start() -> Self {
        let home = tempfile::Builder::new().prefix("postgres-").tempdir().unwrap();
        if let Some(owner) = owner() {
            chown(home.path(), Some(owner.uid), Some(owner.gid)).unwrap();
        }
        let mut server = Self { programs: programs(), port: free_port(), home, process: None };
        let password = server.home.path().join("password");
        fs::write(&password, PASSWORD).unwrap();
        if let Some(owner) = owner() {
            chown(&password, Some(owner.uid), Some(owner.gid)).unwrap();
        }
        let made = server
            .command("initdb")
            .args(["--username", "hub", "--auth", "scram-sha-256", "--encoding", "UTF8", "--no-sync", "--pwfile"])
            .arg(&password)
            .arg("--pgdata")
            .arg(server.data())
            .output()
            .unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        server.launch();
        let made = server.psql("postgres", "CREATE DATABASE hub");
        assert_eq!(made, "CREATE DATABASE");
        server
    }

    /// The URL, with the password.
    pub fn url(&self) -> String {
        format!("postgres://hub:{}@127.0.0.1:{}/hub", PASSWORD.replace(' ', "%20"), self.port)
    }

    /// Kills the server (SIGKILL), and waits until its data directory is free.
    pub fn kill(&mut self) {
        self.process = None;
        // The children of the server end a moment later, and hold the data directory until then.
        let lock = self.data().join("postmaster.pid");
        until("PostgreSQL exits", || !self.answers());
        let _ = fs::remove_file(lock);
    }

    /// Starts the server again with its data.
    pub fn restart(&mut self) {
        self.kill();
        self.launch();
    }

    /// The output of a statement.
    pub fn psql(&self, database: &str, statement: &str) -> String {
        let output = Command::new(self.programs.join("psql"))
            .args(["--no-psqlrc", "--tuples-only", "--no-align", "-h", "127.0.0.1", "-U", "hub", "-d", database])
            .args(["-p", &self.port.to_string(), "-c", statement])
            .env("PGPASSWORD", PASSWORD)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    fn launch(&mut self) {
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).args(["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
        command.arg("-k").arg(self.home.path()).args(["-c", "fsync=off"]).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(Process::start(&mut command));
        until("PostgreSQL responds", || self.answers());
    }

    fn answers(&self) -> bool {
        let mut ready = Command::new(self.programs.join("pg_isready"));
        ready.args(["-h", "127.0.0.1", "-p", &self.port.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
        ready.status().unwrap().success()
    }

    fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// A command of PostgreSQL. PostgreSQL does not run as root.
    fn command(&self, name: &str) -> Command {
        let program = self.programs.join(name);
        let mut command = match owner() {
            Some(owner) => {
                let mut command = Command::new("setpriv");
                let (user, group) = (format!("--reuid={}", owner.uid), format!("--regid={}", owner.gid));
                command.args([&user, &group, "--clear-groups"]).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.current_dir(self.home.path());
        command
    }
}

/// The user that runs it, if this process runs as root.
fn owner() -> Option<User> {
    Uid::effective()
        .is_root()
        .then(|| User::from_name("postgres").unwrap().expect("there is no user postgres: install Debian's postgresql"))
}

/// The directory of the programs: Debian's, or the one on the PATH.
fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let debians = versions.map(|version| version.path().join("bin")).filter(|path| path.join("initdb").exists()).max();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let others = || std::env::split_paths(&path).find(|path: &PathBuf| Path::new(path).join("initdb").exists());
    debians.or_else(others).expect("PostgreSQL is not installed: run scripts/setup")
}

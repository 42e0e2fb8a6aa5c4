//! A master, two replicas, and three sentinels that watch them.

use crate::{
    RedisServer,
    process::{Process, free_port, until},
};
use std::{
    fs,
    process::{Command, Stdio},
};
use tempfile::TempDir;

const NAME: &str = "hub";

/// Servers under Sentinel.
#[derive(Debug)]
pub struct Sentinels {
    servers: Vec<RedisServer>,
    sentinels: Vec<(u16, Process, TempDir)>,
}

impl Sentinels {
    /// Starts them, and waits until they know each other.
    pub fn start() -> Self {
        let master = RedisServer::setup().persistent().start();
        let follow = format!("replicaof 127.0.0.1 {}", master.port());
        let replica = || RedisServer::setup().persistent().line(&follow).line("repl-diskless-sync-delay 0").start();
        let servers = vec![master, replica(), replica()];
        let sentinels = (0..3).map(|_| sentinel(servers[0].port())).collect();
        let all = Self { servers, sentinels };
        all.until_settled();
        all
    }

    /// The URL that names the sentinels and the master.
    pub fn url(&self) -> String {
        let sentinels: Vec<_> = self.sentinels.iter().map(|(port, ..)| format!("127.0.0.1:{port}")).collect();
        format!("redis+sentinel://{}/{NAME}", sentinels.join(","))
    }

    /// Waits until there is a master that all running servers follow, and that the sentinels agree on.
    pub fn until_settled(&self) {
        until("the replicas follow, and the sentinels know it", || {
            let Some(master) = self.known_master() else { return false };
            let running = self.servers.iter().filter(|server| server.is_running()).count();
            let info = master.cli(&["INFO", "replication"]);
            let level = info.matches("state=online").count() == running - 1 && info.contains("role:master");
            let agreed = self.sentinels.iter().all(|(port, ..)| {
                let told = ask(*port, &["SENTINEL", "MASTER", NAME]);
                let slaves = field(&told, "num-slaves").and_then(|n| n.parse::<usize>().ok());
                let others = field(&told, "num-other-sentinels");
                field(&told, "flags") == Some("master")
                    && slaves.is_some_and(|slaves| slaves >= running - 1)
                    && others == Some("2")
                    && field(&told, "port").and_then(|port| port.parse().ok()) == Some(master.port())
            });
            level && agreed
        });
    }

    /// The master, as the first sentinel knows it.
    pub fn master(&mut self) -> &mut RedisServer {
        let port = self.known_master().expect("the sentinels know a master").port();
        self.servers.iter_mut().find(|server| server.port() == port).unwrap()
    }

    /// Every server.
    pub fn servers(&mut self) -> &mut [RedisServer] {
        &mut self.servers
    }

    /// Has a sentinel make a replica the master, as for maintenance. Returns whether it began.
    pub fn failover(&self) -> bool {
        ask(self.sentinels[0].0, &["SENTINEL", "FAILOVER", NAME]) == "OK"
    }

    /// Has every sentinel name another server as the master, which none of the servers hears of.
    pub fn name_another(&self, port: u16) {
        for (sentinel, ..) in &self.sentinels {
            ask(*sentinel, &["SENTINEL", "REMOVE", NAME]);
            assert_eq!(ask(*sentinel, &["SENTINEL", "MONITOR", NAME, "127.0.0.1", &port.to_string(), "2"]), "OK");
        }
    }

    /// Waits until another server than the one of this port is the master.
    pub fn until_master_is_not(&self, port: u16) {
        until("a replica becomes the master", || {
            self.known_master()
                .is_some_and(|master| master.port() != port && master.cli(&["ROLE"]).starts_with("master"))
        });
    }

    fn known_master(&self) -> Option<&RedisServer> {
        let told = ask(self.sentinels[0].0, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME]);
        let port: u16 = told.lines().nth(1)?.parse().ok()?;
        self.servers.iter().find(|server| server.port() == port && server.is_running())
    }
}

fn sentinel(master: u16) -> (u16, Process, TempDir) {
    let home = tempfile::Builder::new().prefix("sentinel-").tempdir().unwrap();
    let port = free_port();
    let config = home.path().join("sentinel.conf");
    let text = format!(
        "port {port}\nbind 127.0.0.1\nlogfile sentinel.log\nsentinel monitor {NAME} 127.0.0.1 {master} 2\n\
         sentinel down-after-milliseconds {NAME} 1000\nsentinel failover-timeout {NAME} 5000\n\
         sentinel parallel-syncs {NAME} 2\n"
    );
    fs::write(&config, text).unwrap();
    let mut command = Command::new("redis-server");
    command.arg(&config).arg("--sentinel").current_dir(home.path()).stdout(Stdio::null()).stderr(Stdio::null());
    let process = Process::start(&mut command);
    until("a sentinel answers", || ask(port, &["PING"]) == "PONG");
    (port, process, home)
}

fn ask(port: u16, arguments: &[&str]) -> String {
    let output = Command::new("redis-cli").args(["-p", &port.to_string()]).args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// The value behind a name in an answer of names and values.
fn field<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = answer.lines();
    lines.find(|line| *line == name)?;
    lines.next()
}

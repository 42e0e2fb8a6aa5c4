//! Redis with Sentinel: a master, two replicas, and three sentinels.

use crate::{
    Certificates, RedisServer, Relay,
    process::{Process, free_port, until},
    redis::redis_server,
};
use std::{
    fs,
    process::{Command, Stdio},
};
use tempfile::TempDir;

const NAME: &str = "hub";

/// The servers under Sentinel, and the sentinels.
#[derive(Debug)]
pub struct Sentinels {
    servers: Vec<RedisServer>,
    sentinels: Vec<(u16, Process, TempDir)>,
    certificates: Option<Certificates>,
    /// A relay in front of each server, for all other processes.
    relays: Vec<Relay>,
}

impl Sentinels {
    /// Starts them, and waits until the sentinels agree on the master.
    pub fn start() -> Self {
        Self::start_with(None, false)
    }

    /// As [`Sentinels::start`], with each server behind a relay, to which all other processes connect.
    pub fn start_with_relay() -> Self {
        Self::start_with(None, true)
    }

    /// As [`Sentinels::start`], with servers that accept only TLS.
    pub fn start_with_tls(certificates: &Certificates) -> Self {
        Self::start_with(Some(certificates.clone()), false)
    }

    fn start_with(certificates: Option<Certificates>, behind_relay: bool) -> Self {
        let setup = || match &certificates {
            Some(certificates) => RedisServer::setup().persistent().certificates(certificates),
            None => RedisServer::setup().persistent(),
        };
        let ports = [free_port(), free_port(), free_port()];
        let relays: Vec<Relay> = if behind_relay { ports.map(Relay::to).into() } else { Vec::new() };
        let known = |i: usize| relays.get(i).map_or(ports[i], Relay::port);
        let announced = |i: usize| format!("replica-announce-ip 127.0.0.1\nreplica-announce-port {}", known(i));
        let follow = format!("replicaof 127.0.0.1 {}", known(0));
        let server = |i: usize| setup().port(ports[i]).line(&announced(i));
        let replica = |i: usize| server(i).line(&follow).line("repl-diskless-sync-delay 0").start();
        let servers = vec![server(0).start(), replica(1), replica(2)];
        let mut all = Self { servers, sentinels: Vec::new(), certificates, relays };
        for _ in 0..3 {
            all.sentinels.push(all.sentinel());
        }
        all.until_settled();
        all
    }

    /// The URL that names the sentinels and the master.
    pub fn url(&self) -> String {
        let sentinels: Vec<_> = self.sentinels.iter().map(|(port, ..)| format!("127.0.0.1:{port}")).collect();
        let scheme = if self.certificates.is_some() { "rediss" } else { "redis" };
        format!("{scheme}+sentinel://{}/{NAME}", sentinels.join(","))
    }

    /// Waits until all running servers follow one master, and the sentinels agree on it.
    pub fn until_settled(&self) {
        until("the replicas are in sync, and the sentinels agree", || self.is_settled());
    }

    /// Whether all running servers follow one master, and the sentinels agree on it.
    pub fn is_settled(&self) -> bool {
        let Some(master) = self.known_master() else { return false };
        let running = self.servers.iter().filter(|server| server.is_running()).count();
        let info = master.cli(&["INFO", "replication"]);
        let level = info.matches("state=online").count() == running - 1 && info.contains("role:master");
        let agreed = self.sentinels.iter().all(|(port, ..)| {
            let told = self.ask(*port, &["SENTINEL", "MASTER", NAME]);
            let slaves = field(&told, "num-slaves").and_then(|n| n.parse::<usize>().ok());
            let others = field(&told, "num-other-sentinels");
            field(&told, "flags") == Some("master")
                && slaves.is_some_and(|slaves| slaves >= running - 1)
                && others == Some("2")
                && field(&told, "port").and_then(|port| port.parse().ok()) == Some(self.known_port(master))
        });
        level && agreed
    }

    /// The ports of the sentinels.
    pub fn ports(&self) -> Vec<u16> {
        self.sentinels.iter().map(|(port, ..)| *port).collect()
    }

    /// The URL that names the sentinels at other ports, such as those of relays.
    pub fn url_at(&self, ports: &[u16]) -> String {
        let sentinels: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!("redis+sentinel://{}/{NAME}", sentinels.join(","))
    }

    /// The master, according to the first sentinel.
    pub fn master(&mut self) -> &mut RedisServer {
        let port = self.known_master().expect("the sentinels know a master").port();
        self.servers.iter_mut().find(|server| server.port() == port).unwrap()
    }

    /// All servers.
    pub fn servers(&mut self) -> &mut [RedisServer] {
        &mut self.servers
    }

    /// Requests a failover, as for maintenance. Returns whether it began.
    pub fn failover(&self) -> bool {
        self.ask(self.sentinels[0].0, &["SENTINEL", "FAILOVER", NAME]) == "OK"
    }

    /// Makes every sentinel name another server as the master. The servers' roles do not change.
    pub fn name_another(&self, port: u16) {
        for (sentinel, ..) in &self.sentinels {
            self.ask(*sentinel, &["SENTINEL", "REMOVE", NAME]);
            assert_eq!(self.ask(*sentinel, &["SENTINEL", "MONITOR", NAME, "127.0.0.1", &port.to_string(), "2"]), "OK");
        }
    }

    /// Waits until another server than the one at this port is the master.
    pub fn until_master_is_not(&self, port: u16) {
        until("a replica becomes the master", || self.master_is_not(port));
    }

    fn known_master(&self) -> Option<&RedisServer> {
        let told = self.ask(self.sentinels[0].0, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME]);
        let port: u16 = told.lines().nth(1)?.parse().ok()?;
        self.servers.iter().find(|server| self.known_port(server) == port && server.is_running())
    }

    /// The port of the master itself, according to the first sentinel.
    pub fn master_port(&self) -> Option<u16> {
        self.known_master().map(RedisServer::port)
    }

    /// Whether another server than the one at this port is the master, and has that role itself.
    pub fn master_is_not(&self, port: u16) -> bool {
        self.known_master().is_some_and(|master| master.port() != port && master.cli(&["ROLE"]).starts_with("master"))
    }

    /// Whether the first sentinel knows a server, by its own port, as a replica in sync with a priority.
    pub fn is_replica(&self, port: u16, priority: u32) -> bool {
        let Some(server) = self.servers.iter().find(|server| server.port() == port) else { return false };
        let told = self.ask(self.sentinels[0].0, &["SENTINEL", "REPLICAS", NAME]);
        let name = format!("name\n127.0.0.1:{}\n", self.known_port(server));
        let Some((_, rest)) = told.split_once(&*name) else { return false };
        let this = rest.split_once("\nname\n").map_or(rest, |(this, _)| this);
        field(this, "flags") == Some("slave")
            && field(this, "master-link-status") == Some("ok")
            && field(this, "slave-priority") == Some(&*priority.to_string())
    }

    /// The port at which other processes reach a server.
    fn known_port(&self, server: &RedisServer) -> u16 {
        self.relay_of(server.port()).map_or(server.port(), Relay::port)
    }

    /// The relay of the first server.
    pub fn relay(&self) -> &Relay {
        self.relays.first().expect("started with relays")
    }

    /// The relays of all servers.
    pub fn relays(&self) -> &[Relay] {
        &self.relays
    }

    /// The relay of the server at a port, if the servers have relays.
    pub fn relay_of(&self, port: u16) -> Option<&Relay> {
        let at = self.servers.iter().position(|server| server.port() == port)?;
        self.relays.get(at)
    }

    fn sentinel(&self) -> (u16, Process, TempDir) {
        let home = tempfile::Builder::new().prefix("sentinel-").tempdir().unwrap();
        let (port, master) = (free_port(), self.known_port(&self.servers[0]));
        let ports = self.certificates.as_ref().map_or_else(|| format!("port {port}\n"), |tls| tls.lines(port));
        let config = home.path().join("sentinel.conf");
        let text = format!(
            "{ports}bind 127.0.0.1\nlogfile sentinel.log\nsentinel monitor {NAME} 127.0.0.1 {master} 2\n\
             sentinel down-after-milliseconds {NAME} 1000\nsentinel failover-timeout {NAME} 5000\n\
             sentinel parallel-syncs {NAME} 2\n"
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new(redis_server());
        command.arg(&config).arg("--sentinel").current_dir(home.path()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = Process::start(&mut command);
        until("a sentinel responds", || self.ask(port, &["PING"]) == "PONG");
        (port, process, home)
    }

    fn ask(&self, port: u16, arguments: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &port.to_string()]);
        command.args(self.certificates.iter().flat_map(Certificates::arguments));
        let output = command.args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }
}

/// The value of a name in a list of names and values.
fn field<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = answer.lines();
    lines.find(|line| *line == name)?;
    lines.next()
}

//! A Redis Cluster: three masters, each with a replica.

use crate::{Certificates, RedisServer, process::until};
use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// The servers of a Cluster.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<RedisServer>,
    tls: bool,
}

impl Cluster {
    /// Starts the servers, and waits until the Cluster is healthy.
    pub fn start() -> Self {
        Self::start_with(None)
    }

    /// As [`Cluster::start`], with servers that accept only TLS.
    pub fn start_with_tls(certificates: &Certificates) -> Self {
        Self::start_with(Some(certificates))
    }

    fn start_with(certificates: Option<&Certificates>) -> Self {
        let node = || {
            let setup = RedisServer::setup().persistent();
            let setup = match certificates {
                Some(certificates) => setup.certificates(certificates).line("tls-cluster yes"),
                None => setup,
            };
            setup
                .line("cluster-enabled yes")
                .line("cluster-node-timeout 1500")
                .line("repl-diskless-sync-delay 0")
                .start()
        };
        let nodes: Vec<_> = (0..6).map(|_| node()).collect();
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]).args(nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())));
        create.args(["--cluster-replicas", "1", "--cluster-yes"]).stdout(Stdio::null());
        create.args(certificates.into_iter().flat_map(Certificates::arguments));
        assert!(create.status().unwrap().success(), "failed to create the Cluster");
        let cluster = Self { nodes, tls: certificates.is_some() };
        cluster.until_settled();
        cluster
    }

    /// The URL that names the nodes.
    pub fn url(&self) -> String {
        let nodes: Vec<_> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        let scheme = if self.tls { "rediss" } else { "redis" };
        format!("{scheme}+cluster://{}", nodes.join(","))
    }

    /// Waits until every running node is healthy, and every master has a replica in sync.
    pub fn until_settled(&self) {
        until("the Cluster is healthy", || self.is_settled());
    }

    /// Whether every running node is healthy, and every master has a replica in sync.
    pub fn is_settled(&self) -> bool {
        let running: Vec<_> = self.nodes.iter().filter(|node| node.is_running()).collect();
        let serves = |node: &&RedisServer| node.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok");
        let level = |node: &&RedisServer| {
            let info = node.cli(&["INFO", "replication"]);
            info.contains("role:slave") && info.contains("master_link_status:up")
                || info.contains("role:master") && info.contains("state=online")
        };
        let masters = running.iter().filter(|node| node.cli(&["ROLE"]).starts_with("master")).count();
        running.iter().all(serves) && (running.len() < 6 || running.iter().all(level)) && masters == 3
    }

    /// The node that holds a key.
    pub fn owner(&mut self, key: &str) -> &mut RedisServer {
        let port = self.owner_port(key).expect("a node holds the key");
        self.node(port)
    }

    /// The port of the node that holds a key, according to the other nodes.
    pub fn owner_port(&self, key: &str) -> Option<u16> {
        let asked = self.nodes.iter().filter(|node| node.is_running());
        asked.into_iter().find_map(|node| {
            let slot: u16 = node.cli(&["CLUSTER", "KEYSLOT", key]).parse().ok()?;
            let told = node.cli(&["CLUSTER", "NODES"]);
            let line =
                told.lines().find(|line| line.contains("master") && !line.contains("fail") && holds(line, slot))?;
            let address = line.split(' ').nth(1)?.split('@').next()?;
            address.rsplit(':').next()?.parse().ok()
        })
    }

    /// Makes the replica of a key's owner take over, as for maintenance, and waits for it.
    pub fn failover(&mut self, key: &str) {
        let owner = self.owner_port(key).expect("a node holds the key");
        let replica = self.nodes.iter().find(|node| {
            node.is_running() && node.cli(&["INFO", "replication"]).contains(&format!("master_port:{owner}"))
        });
        let replica = replica.expect("the owner has a replica");
        let mut asked: Option<Instant> = None;
        until("a replica takes over", || {
            // Redis gives up a manual failover after five seconds, for example because the masters voted just before.
            if asked.is_none_or(|at| at.elapsed() > Duration::from_secs(6)) {
                asked = Some(Instant::now());
                replica.cli(&["CLUSTER", "FAILOVER"]);
            }
            self.owner_port(key).is_some_and(|now| now != owner)
        });
    }

    /// Requests the failover to the replica of a key's owner, without waiting for it.
    pub fn begin_failover(&mut self, key: &str) {
        let Some(owner) = self.owner_port(key) else { return };
        let follows = format!("master_port:{owner}");
        let replicas = self.nodes.iter().filter(|node| node.is_running());
        for replica in replicas.filter(|node| node.cli(&["INFO", "replication"]).contains(&follows)) {
            replica.cli(&["CLUSTER", "FAILOVER"]);
        }
    }

    /// All nodes.
    pub fn nodes(&mut self) -> &mut [RedisServer] {
        &mut self.nodes
    }

    /// Moves the slot of a key to another master, key by key, as a rebalance does. `between` runs before each key.
    pub fn migrate(&self, key: &str, mut between: impl FnMut()) {
        let source = self.owner_port(key).expect("a node holds the key");
        let source = self.nodes.iter().find(|node| node.port() == source).unwrap();
        let masters: Vec<_> = self.nodes.iter().filter(|node| node.cli(&["ROLE"]).starts_with("master")).collect();
        let target = masters.iter().find(|node| node.port() != source.port()).expect("there are three masters");
        let slot = source.cli(&["CLUSTER", "KEYSLOT", key]);
        let (from, to) = (source.cli(&["CLUSTER", "MYID"]), target.cli(&["CLUSTER", "MYID"]));
        assert_eq!(target.cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from]), "OK");
        assert_eq!(source.cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to]), "OK");
        let port = target.port().to_string();
        loop {
            let keys = source.cli(&["CLUSTER", "GETKEYSINSLOT", &slot, "1"]);
            if keys.is_empty() {
                break;
            }
            between();
            let moved = source.cli(&["MIGRATE", "127.0.0.1", &port, &keys, "0", "5000"]);
            // A key that expired in the meantime yields `NOKEY`.
            assert!(matches!(&*moved, "OK" | "NOKEY"), "{keys}: {moved}");
        }
        for node in [target, &source].into_iter().chain(&masters) {
            assert_eq!(node.cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &to]), "OK");
        }
        until("all nodes know the new owner", || {
            self.nodes.iter().all(|node| {
                let told = node.cli(&["CLUSTER", "NODES"]);
                let line = told.lines().find(|line| holds(line, slot.parse().unwrap()));
                line.is_some_and(|line| line.starts_with(&to))
            })
        });
    }

    /// Waits until another node than the one at this port holds a key.
    pub fn until_owner_is_not(&self, key: &str, port: u16) {
        until("a replica takes over", || self.owner_port(key).is_some_and(|owner| owner != port));
    }

    /// The node at a port.
    pub fn node(&mut self, port: u16) -> &mut RedisServer {
        self.nodes.iter_mut().find(|node| node.port() == port).expect("a node of this Cluster")
    }
}

/// Whether a line of `CLUSTER NODES` contains a slot.
fn holds(line: &str, slot: u16) -> bool {
    line.split(' ').skip(8).any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        matches!((first.parse::<u16>(), last.parse::<u16>()), (Ok(first), Ok(last)) if (first..=last).contains(&slot))
    })
}

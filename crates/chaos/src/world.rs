//! The servers under test: Redis in one of its topologies, and the hub with its workers or nodes.

mod clients;
mod cluster;
mod disk;
mod guard;
mod networks;
mod nodes;
mod redis;
mod sentinel;

use crate::{
    UNLIMITED,
    fault::{Fault, Topology},
    oracle::Lineage,
    steps,
};
use disk::Disk;
use networks::Networks;
use nix::sys::signal::Signal;
use std::{net::SocketAddr, path::Path, time::Duration};
use testbed::{Cluster, HubProcess, RedisServer, Relay, Sentinels};

/// The key that names the confirmed server of a Cluster.
const LOG: &str = "{ws}:log";

/// The `drain_rate` of each worker: goaways a second.
pub(crate) const DRAIN_RATE: usize = 10;

#[derive(Debug)]
enum Redis {
    /// One server; nodes connect through the relay, if there is one.
    One(Box<RedisServer>, Option<Relay>),
    Sentinel(Sentinels),
    Cluster(Cluster),
}

/// The steps of a fault in this world.
pub(crate) type Steps = steps::Steps<World>;

/// Redis and a hub.
#[derive(Debug)]
pub(crate) struct World {
    // Dropped in this order: nodes, servers, then the disk of the servers.
    hub: Nodes,
    redis: Redis,
    disk: Option<Disk>,
    /// The lineage of the log after the last fault.
    pub(crate) known: Option<Lineage>,
    /// How many lines of each node's log were read.
    read: Vec<usize>,
}

#[derive(Debug)]
enum Nodes {
    /// One hub with workers.
    Workers { hub: HubProcess, count: usize },
    /// Hubs in network namespaces of their own.
    Networks(Networks),
}

/// Why a topology is not available on this machine.
pub(crate) type Unavailable = String;

impl World {
    /// Starts Redis and the hub. `window`: the number of events that the hub retains.
    pub(crate) fn start(
        topology: Topology,
        program: &Path,
        workers: usize,
        window: Option<usize>,
        secret: &str,
    ) -> Result<Self, Unavailable> {
        let mut disk = None;
        let redis = match topology {
            Topology::Standalone | Topology::Networks => {
                // A file that is rewritten while it is copied would yield an invalid copy.
                let mut setup = RedisServer::setup().persistent().line("auto-aof-rewrite-percentage 0");
                if topology == Topology::Networks {
                    setup = Networks::listens(setup);
                } else {
                    disk = Disk::mount();
                    if let Some(disk) = &disk {
                        setup = setup.within(disk.path());
                    }
                }
                let server = setup.start();
                let relay = (topology == Topology::Standalone).then(|| Relay::to(server.port()));
                Redis::One(Box::new(server), relay)
            }
            Topology::Sentinel => Redis::Sentinel(Sentinels::start_with_relay()),
            Topology::Cluster => Redis::Cluster(Cluster::start()),
        };
        let (count, rate) = (workers.to_string(), DRAIN_RATE.to_string());
        let window = window.map(|window| window.to_string());
        let mut arguments = vec!["--drain-rate", &rate];
        arguments.extend(window.iter().flat_map(|window| ["--window-events", window]));
        arguments.extend(UNLIMITED);
        let environment = [("SECRET_KEY", secret)];
        let hub = if let (Topology::Networks, Redis::One(server, _)) = (topology, &redis) {
            Nodes::Networks(Networks::start(program, &arguments, &environment, server.port())?)
        } else {
            let url = match &redis {
                Redis::One(server, relay) => {
                    format!("redis://127.0.0.1:{}", relay.as_ref().map_or(server.port(), Relay::port))
                }
                Redis::Sentinel(sentinels) => sentinels.url(),
                Redis::Cluster(cluster) => cluster.url(),
            };
            arguments.extend(["--redis-url", &url, "--workers", &count]);
            Nodes::Workers { hub: HubProcess::start(program, &arguments, &environment), count: workers }
        };
        let read = vec![0; if let Nodes::Networks(_) = hub { networks::COUNT } else { 1 }];
        Ok(Self { hub, redis, disk, known: None, read })
    }

    /// The steps of a fault. An error states why the fault is not available on this machine.
    pub(crate) fn steps(&self, fault: Fault, random: &mut fastrand::Rng) -> Result<Steps, Unavailable> {
        if fault == Fault::DiskFull && self.disk.is_none() {
            return Err("cannot mount a file system (root is required)".to_owned());
        }
        let steps = clients::steps(fault, random).or_else(|| nodes::steps(fault, random));
        let steps = steps.or_else(|| redis::steps(fault, random)).or_else(|| sentinel::steps(fault, random));
        steps.or_else(|| cluster::steps(fault, random)).ok_or_else(|| "unknown fault".to_owned())
    }

    /// The addresses for clients and publishers.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        match &self.hub {
            Nodes::Workers { hub, .. } => vec![hub.address()],
            Nodes::Networks(networks) => networks.addresses(),
        }
    }

    /// The process IDs of running nodes.
    fn nodes(&self) -> Vec<u32> {
        match &self.hub {
            Nodes::Workers { hub, .. } => hub.workers(),
            Nodes::Networks(networks) => networks.processes(),
        }
    }

    /// The process ID of a running node, chosen by `random`.
    fn a_node(&self, random: u64) -> Option<u32> {
        let nodes = self.nodes();
        let at = usize::try_from(random % nodes.len().max(1) as u64).unwrap_or(0);
        nodes.get(at).copied()
    }

    /// The logs of the nodes.
    pub(crate) fn logs(&self) -> Vec<String> {
        match &self.hub {
            Nodes::Workers { hub, .. } => vec![hub.log()],
            Nodes::Networks(networks) => networks.logs(),
        }
    }

    /// The last lines of the nodes' logs.
    pub(crate) fn last_lines(&self) -> String {
        let last = |log: &String| {
            let lines: Vec<_> = log.lines().collect();
            lines[lines.len().saturating_sub(20)..].join("\n")
        };
        self.logs().iter().map(last).collect::<Vec<_>>().join("\n---\n")
    }

    /// The number of events that the nodes restored since the last call, according to their logs.
    pub(crate) fn restored(&mut self) -> u64 {
        let logs = self.logs();
        let mut sum = 0;
        for (log, read) in logs.iter().zip(&mut self.read) {
            // The log of a restarted node begins again.
            let new = log.get(*read..).unwrap_or(log);
            sum += new.lines().filter_map(restored).sum::<u64>();
            *read = log.len();
        }
        sum
    }

    /// The server, if there is only one.
    fn server(&mut self) -> Option<&mut RedisServer> {
        match &mut self.redis {
            Redis::One(server, _) => Some(server),
            Redis::Sentinel(_) | Redis::Cluster(_) => None,
        }
    }

    /// The relays between nodes and servers.
    fn relays(&self) -> Vec<&Relay> {
        match &self.redis {
            Redis::One(_, relay) => relay.iter().collect(),
            Redis::Sentinel(sentinels) => sentinels.relays().iter().collect(),
            Redis::Cluster(_) => Vec::new(),
        }
    }

    /// The lineage, from the server that holds the log; empty if no server answers.
    pub(crate) fn lineage(&mut self) -> Lineage {
        let ask = |server: &RedisServer, key: &str| server.cli(&["HGET", key, "lineage"]);
        let text = match &mut self.redis {
            Redis::One(server, _) => ask(server, "ws:epoch"),
            Redis::Sentinel(sentinels) => ask(sentinels.master(), "ws:epoch"),
            Redis::Cluster(cluster) => ask(cluster.owner(LOG), "{ws}:epoch"),
        };
        Lineage::read(&text).unwrap_or_default()
    }

    /// The port of the server that holds the log.
    pub(crate) fn redis_port(&mut self) -> u16 {
        match &mut self.redis {
            Redis::One(server, _) => server.port(),
            Redis::Sentinel(sentinels) => sentinels.master().port(),
            Redis::Cluster(cluster) => cluster.owner(LOG).port(),
        }
    }

    /// Ends the remaining effects of faults, and waits until all servers are healthy.
    pub(crate) fn heal(&mut self) {
        for relay in self.relays() {
            relay.restore();
            relay.limit(0);
        }
        if let Some(disk) = &self.disk {
            disk.make_room();
        }
        self.nodes().into_iter().for_each(|node| HubProcess::signal_to(node, Signal::SIGCONT));
        match &mut self.redis {
            Redis::One(server, _) => revive(server),
            Redis::Sentinel(sentinels) => {
                sentinels.servers().iter_mut().for_each(revive);
                sentinel::forget_priorities(sentinels);
                sentinels.until_settled();
            }
            Redis::Cluster(cluster) => {
                cluster.nodes().iter_mut().for_each(revive);
                cluster::let_follow(cluster);
                cluster.until_settled();
            }
        }
        if let Nodes::Networks(networks) = &mut self.hub {
            networks.heal();
        }
    }

    /// Whether all workers in `before` were replaced, or the rollout was stopped because another fault killed a new
    /// worker. `logged`: the number of log lines before the rollout.
    fn has_rolled(&self, before: &[u32], logged: usize) -> bool {
        let Nodes::Workers { hub, count } = &self.hub else { return true };
        let (now, log) = (hub.workers(), hub.log());
        let given_up = log.get(logged..).is_some_and(|new| new.contains("the rollout is stopped"));
        now.len() == *count && (given_up || now.iter().all(|worker| !before.contains(worker)))
    }
}

/// Starts a killed server, and resumes a stopped one.
fn revive(server: &mut RedisServer) {
    if server.is_running() {
        server.cont();
    } else {
        server.restart();
    }
}

/// The number of restored events in a log line about them.
fn restored(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("this node restored them")?;
    let digits = rest.chars().skip_while(|c| *c != '=').skip(1).skip_while(|c| !c.is_ascii_digit() || *c == '\u{1b}');
    digits.take_while(char::is_ascii_digit).collect::<String>().parse().ok()
}

/// A random duration between two bounds, in milliseconds.
fn between(random: &mut fastrand::Rng, from: u64, to: u64) -> Duration {
    Duration::from_millis(random.u64(from..to))
}

#[cfg(test)]
mod tests {
    use super::restored;

    #[test]
    fn the_number_of_restored_events_is_read_from_the_log() {
        let line = "2026-11-27T02:02:22Z  WARN fanfare: the log had lost events; this node restored them events=412";
        assert_eq!(restored(line), Some(412));
        assert_eq!(restored("another line events=3"), None);
    }
}

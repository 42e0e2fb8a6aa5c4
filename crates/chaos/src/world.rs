//! The servers under test: Redis in one of its topologies, and the hub with its workers.

use crate::{UNLIMITED, oracle::Lineage};
use nix::sys::signal::Signal;
use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};
use testbed::{Cluster, HubProcess, RedisServer, Sentinels, until};

/// The key that tells which server of a Cluster counts.
const LOG: &str = "{ws}:log";

/// How clients a second may be told to go, for each worker.
pub(crate) const DRAIN_RATE: usize = 10;

/// How Redis is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Topology {
    Standalone,
    Sentinel,
    Cluster,
}

#[derive(Debug)]
enum Redis {
    Standalone(Box<RedisServer>),
    Sentinel(Sentinels),
    Cluster(Cluster),
}

/// Redis and a hub.
#[derive(Debug)]
pub(crate) struct World {
    redis: Redis,
    pub(crate) hub: HubProcess,
    workers: usize,
    /// The log's history, after the last fault.
    pub(crate) known: Option<Lineage>,
}

macro_rules! faults {
    ($($(#[doc = $doc:literal])+ $name:ident = $word:literal, $topology:ident;)+) => {
        /// Something that goes wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Fault { $($(#[doc = $doc])+ $name,)+ }

        impl Fault {
            /// Every fault, those of one topology together.
            pub(crate) const ALL: &[Self] = &[$(Self::$name),+];

            pub(crate) const fn word(self) -> &'static str {
                match self { $(Self::$name => $word),+ }
            }

            pub(crate) const fn help(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii()),+ }
            }

            /// Whether it cuts connections to Redis, so that what is published on its channels is heard by some nodes
            /// and not by others.
            pub(crate) const fn cuts_channels(self) -> bool {
                !matches!(self, Self::KillWorker | Self::StopWorker | Self::Roll | Self::Cut | Self::Halt)
            }

            pub(crate) const fn topology(self) -> Topology {
                match self { $(Self::$name => Topology::$topology),+ }
            }
        }
    };
}

faults! {
    /// A worker is killed (SIGKILL).
    KillWorker = "kill-worker", Standalone;
    /// A worker is halted for ten seconds (SIGSTOP).
    StopWorker = "stop-worker", Standalone;
    /// Redis is killed, its append-only file on, and started again after one to five seconds.
    KillRedis = "kill-redis", Standalone;
    /// Redis is halted for ten seconds (SIGSTOP).
    StopRedis = "stop-redis", Standalone;
    /// Redis closes every connection of every node (CLIENT KILL).
    ClientKill = "client-kill", Standalone;
    /// Redis answers nobody for three seconds (CLIENT PAUSE).
    ClientPause = "client-pause", Standalone;
    /// Redis loses everything it has, while the nodes live.
    ForgetRedis = "forget-redis", Standalone;
    /// All workers are replaced, one at a time (SIGHUP).
    Roll = "rolling-restart", Standalone;
    /// A third of the clients are cut off, and again.
    Cut = "cut-clients", Standalone;
    /// A third of the clients stop reading for six seconds.
    Halt = "stop-reading", Standalone;
    /// Sentinel makes a replica the master.
    SentinelFailover = "sentinel-failover", Sentinel;
    /// The master under Sentinel is killed.
    SentinelKill = "sentinel-kill", Sentinel;
    /// The master under Sentinel is halted until it is replaced, and then comes back.
    SentinelStop = "sentinel-stop", Sentinel;
    /// The replica of the node that holds the log takes over.
    ClusterFailover = "cluster-failover", Cluster;
    /// The node of the Cluster that holds the log is killed.
    ClusterKill = "cluster-kill", Cluster;
}

impl World {
    pub(crate) fn start(topology: Topology, program: &Path, workers: usize, secret: &str) -> Self {
        let redis = match topology {
            Topology::Standalone => Redis::Standalone(Box::new(RedisServer::setup().persistent().start())),
            Topology::Sentinel => Redis::Sentinel(Sentinels::start()),
            Topology::Cluster => Redis::Cluster(Cluster::start()),
        };
        let url = match &redis {
            Redis::Standalone(server) => server.url(),
            Redis::Sentinel(sentinels) => sentinels.url(),
            Redis::Cluster(cluster) => cluster.url(),
        };
        let (count, rate) = (workers.to_string(), DRAIN_RATE.to_string());
        let arguments = [&["--redis-url", &url, "--workers", &count, "--drain-rate", &rate][..], &UNLIMITED].concat();
        let hub = HubProcess::start(program, &arguments, &[("SECRET_KEY", secret)]);
        Self { redis, hub, workers, known: None }
    }

    /// The log's history, as the server that holds it says.
    pub(crate) fn lineage(&mut self) -> Lineage {
        let text = match &mut self.redis {
            Redis::Standalone(server) => server.cli(&["HGET", "ws:epoch", "lineage"]),
            Redis::Sentinel(sentinels) => sentinels.master().cli(&["HGET", "ws:epoch", "lineage"]),
            Redis::Cluster(cluster) => cluster.owner(LOG).cli(&["HGET", "{ws}:epoch", "lineage"]),
        };
        Lineage::read(&text).unwrap_or_default()
    }

    /// The port of the server that holds the log.
    pub(crate) fn redis_port(&mut self) -> u16 {
        match &mut self.redis {
            Redis::Standalone(server) => server.port(),
            Redis::Sentinel(sentinels) => sentinels.master().port(),
            Redis::Cluster(cluster) => cluster.owner(LOG).port(),
        }
    }

    /// Does something to the servers, and mends it. `None` for what is done to clients.
    pub(crate) fn suffer(&mut self, fault: Fault, random: &mut fastrand::Rng) -> Option<()> {
        let pause = Duration::from_millis(random.u64(1_000..5_000));
        match (fault, &mut self.redis) {
            (Fault::KillWorker, _) => HubProcess::signal_to(self.a_worker(random), Signal::SIGKILL),
            (Fault::StopWorker, _) => {
                let worker = self.a_worker(random);
                HubProcess::signal_to(worker, Signal::SIGSTOP);
                thread::sleep(Duration::from_secs(10));
                HubProcess::signal_to(worker, Signal::SIGCONT);
            }
            (Fault::KillRedis, Redis::Standalone(server)) => {
                server.kill();
                thread::sleep(pause);
                server.restart();
            }
            (Fault::ForgetRedis, Redis::Standalone(server)) => {
                server.kill();
                server.forget();
                server.restart();
            }
            (Fault::StopRedis, Redis::Standalone(server)) => {
                server.stop();
                thread::sleep(Duration::from_secs(10));
                server.cont();
            }
            (Fault::ClientKill, Redis::Standalone(server)) => {
                for kind in ["normal", "pubsub"] {
                    server.cli(&["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"]);
                }
            }
            (Fault::ClientPause, Redis::Standalone(server)) => {
                server.cli(&["CLIENT", "PAUSE", "3000", "ALL"]);
                thread::sleep(Duration::from_secs(3));
            }
            (Fault::Roll, _) => self.roll(),
            (Fault::SentinelFailover, Redis::Sentinel(sentinels)) => {
                let master = sentinels.master().port();
                until("a failover begins", || sentinels.failover());
                sentinels.until_master_is_not(master);
                sentinels.until_settled();
            }
            (Fault::SentinelKill, Redis::Sentinel(sentinels)) => {
                let master = sentinels.master().port();
                sentinels.master().kill();
                sentinels.until_master_is_not(master);
                thread::sleep(pause);
                sentinels.servers().iter_mut().find(|server| server.port() == master)?.restart();
                sentinels.until_settled();
            }
            (Fault::SentinelStop, Redis::Sentinel(sentinels)) => {
                let master = sentinels.master().port();
                sentinels.master().stop();
                sentinels.until_master_is_not(master);
                thread::sleep(pause);
                sentinels.servers().iter_mut().find(|server| server.port() == master)?.cont();
                sentinels.until_settled();
            }
            (Fault::ClusterFailover, Redis::Cluster(cluster)) => {
                cluster.failover(LOG);
                cluster.until_settled();
            }
            (Fault::ClusterKill, Redis::Cluster(cluster)) => {
                let owner = cluster.owner(LOG).port();
                cluster.node(owner).kill();
                cluster.until_owner_is_not(LOG, owner);
                thread::sleep(pause);
                cluster.node(owner).restart();
                cluster.until_settled();
            }
            _ => return None,
        }
        Some(())
    }

    fn a_worker(&self, random: &mut fastrand::Rng) -> u32 {
        until("there are workers", || !self.hub.workers().is_empty());
        let workers = self.hub.workers();
        workers[random.usize(..workers.len())]
    }

    fn roll(&self) {
        let before = self.hub.workers();
        self.hub.signal(Signal::SIGHUP);
        let deadline = Instant::now() + Duration::from_secs(300);
        loop {
            let now = self.hub.workers();
            if now.len() == self.workers && now.iter().all(|worker| !before.contains(worker)) {
                return;
            }
            assert!(Instant::now() < deadline, "the workers were not replaced:\n{}", self.hub.log());
            thread::sleep(Duration::from_millis(100));
        }
    }
}

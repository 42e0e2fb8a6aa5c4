//! The faults: their names, the topologies that they apply to, and the gaps that they may cause.

/// The topology of Redis and the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Topology {
    /// One Redis, and workers.
    Standalone,
    /// One Redis, and nodes in network namespaces of their own.
    Networks,
    Sentinel,
    Cluster,
}

impl Topology {
    pub(crate) const ALL: [Self; 4] = [Self::Standalone, Self::Networks, Self::Sentinel, Self::Cluster];

    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Standalone => "standalone",
            Self::Networks => "networks",
            Self::Sentinel => "sentinel",
            Self::Cluster => "cluster",
        }
    }
}

/// What a fault affects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Clients,
    /// All nodes, briefly and gracefully.
    Nodes,
    /// A node that may have acknowledged events that no other node knows.
    OneNode,
    /// The link between nodes and Redis.
    Link,
    /// Redis: the number of times that another server continues the log, or the same server with other data.
    Redis(u64),
}

macro_rules! faults {
    ($(
        $(#[doc = $doc:literal])+
        $name:ident = $word:literal, [$($topology:ident),+], $lasts:literal, $target:expr;
    )+) => {
        /// A fault.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Fault { $($(#[doc = $doc])+ $name,)+ }

        impl Fault {
            /// All faults.
            pub(crate) const ALL: &[Self] = &[$(Self::$name),+];

            pub(crate) const fn word(self) -> &'static str {
                match self { $(Self::$name => $word),+ }
            }

            pub(crate) const fn help(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii()),+ }
            }

            /// The topologies to which the fault applies.
            pub(crate) const fn topologies(self) -> &'static [Topology] {
                match self { $(Self::$name => &[$(Topology::$topology),+]),+ }
            }

            /// Its approximate duration, in milliseconds.
            pub(crate) const fn lasts_ms(self) -> u64 {
                match self { $(Self::$name => $lasts),+ }
            }

            const fn target(self) -> Target {
                match self { $(Self::$name => $target),+ }
            }
        }
    };
}

faults! {
    /// A third of the clients are disconnected, twice.
    CutClients = "cut-clients", [Standalone, Networks, Sentinel, Cluster], 2_000, Target::Clients;
    /// A third of the clients stop reading for six seconds.
    StopReading = "stop-reading", [Standalone, Networks, Sentinel, Cluster], 6_000, Target::Clients;
    /// All workers are replaced, one at a time (SIGHUP).
    RollingRestart = "rolling-restart", [Standalone, Sentinel, Cluster], 8_000, Target::Nodes;
    /// A worker is killed (SIGKILL).
    KillWorker = "kill-worker", [Standalone, Networks, Sentinel, Cluster], 1_000, Target::OneNode;
    /// A worker is stopped for ten seconds (SIGSTOP).
    StopWorker = "stop-worker", [Standalone, Networks, Sentinel, Cluster], 10_000, Target::OneNode;
    /// A worker is stopped for twenty seconds.
    StopWorkerLong = "stop-worker-long", [Standalone, Networks, Sentinel, Cluster], 20_000, Target::OneNode;
    /// Redis, with its append-only file, is killed and restarted after one to five seconds.
    KillRedis = "kill-redis", [Standalone, Networks], 3_000, Target::Redis(1);
    /// Redis loses all its data while the nodes keep running.
    ForgetRedis = "forget-redis", [Standalone, Networks], 1_000, Target::Redis(1);
    /// Redis loses what it did not write to the disk in the last second or two.
    PowerLoss = "power-loss", [Standalone, Networks], 3_000, Target::Redis(1);
    /// Redis is restarted from a copy of its files that is three seconds old.
    OldCopy = "old-copy", [Standalone, Networks], 4_000, Target::Redis(1);
    /// Redis is restarted from an older copy, runs for a while, and is restarted from the newer one.
    OldThenNew = "old-then-new", [Standalone, Networks], 7_000, Target::Redis(2);
    /// All workers but one are stopped for three seconds. Then that one is killed, Redis restarts empty, and the others
    /// continue.
    AloneThenKilled = "alone-then-killed", [Standalone, Networks], 4_000, Target::Redis(1);
    /// As alone-then-killed, but the one worker is stopped for three seconds instead of killed.
    AloneThenStopped = "alone-then-stopped", [Standalone, Networks], 7_000, Target::Redis(1);
    /// Redis is stopped for ten seconds (SIGSTOP).
    StopRedis = "stop-redis", [Standalone, Networks], 10_000, Target::Link;
    /// Redis is stopped for twenty seconds.
    StopRedisLong = "stop-redis-long", [Standalone, Networks], 20_000, Target::Link;
    /// Redis closes every connection of every node (CLIENT KILL).
    ClientKill = "client-kill", [Standalone, Networks], 100, Target::Link;
    /// Redis answers no client for three seconds (CLIENT PAUSE).
    ClientPause = "client-pause", [Standalone, Networks], 3_000, Target::Link;
    /// The disk of Redis is full for eight seconds.
    DiskFull = "disk-full", [Standalone], 8_000, Target::Link;
    /// Each node is limited to 20 KB a second to and from Redis, for ten seconds.
    SlowLink = "slow-link", [Standalone, Sentinel], 10_000, Target::Link;
    /// All data between the nodes and Redis is held back, for eight seconds.
    CutLinks = "cut-links", [Standalone], 8_000, Target::Link;
    /// All data between one worker and Redis is held back, for eight seconds.
    CutWorker = "cut-worker", [Standalone, Sentinel], 8_000, Target::OneNode;
    /// All data from one worker to Redis is held back, for eight seconds.
    CutWorkerThere = "cut-worker-there", [Standalone, Sentinel], 8_000, Target::OneNode;
    /// All data from Redis to one worker is held back, for eight seconds.
    CutWorkerBack = "cut-worker-back", [Standalone, Sentinel], 8_000, Target::OneNode;
    /// All packets between one node and Redis are dropped, for eight seconds.
    Partition = "partition", [Networks], 8_000, Target::OneNode;
    /// All packets from one node to Redis are dropped, for eight seconds.
    PartitionThere = "partition-there", [Networks], 8_000, Target::OneNode;
    /// All packets from Redis to one node are dropped, for eight seconds.
    PartitionBack = "partition-back", [Networks], 8_000, Target::OneNode;
    /// All packets between one node and Redis are dropped, for twenty seconds.
    PartitionLong = "partition-long", [Networks], 20_000, Target::OneNode;
    /// Sentinel promotes a replica that lags by a second.
    SentinelFailover = "sentinel-failover", [Sentinel], 5_000, Target::Redis(1);
    /// The master under Sentinel is killed; its replicas lag by a second.
    SentinelKill = "sentinel-kill", [Sentinel], 7_000, Target::Redis(1);
    /// The master under Sentinel is stopped until a replica that lags by a second has replaced it, and is then resumed.
    SentinelStop = "sentinel-stop", [Sentinel], 8_000, Target::Redis(1);
    /// Sentinel promotes a replica, and then the old master again.
    SentinelThereAndBack = "sentinel-there-and-back", [Sentinel], 25_000, Target::Redis(2);
    /// The master is replaced while only one worker can reach it.
    SentinelSplit = "sentinel-split", [Sentinel], 12_000, Target::Redis(1);
    /// Sentinel promotes a replica, and then the old master again while only one worker can reach the replica.
    SentinelSplitBack = "sentinel-split-back", [Sentinel], 25_000, Target::Redis(2);
    /// The replica of the Cluster node that holds the log takes over.
    ClusterFailover = "cluster-failover", [Cluster], 3_000, Target::Redis(1);
    /// The Cluster node that holds the log is killed; its replica lags by a second.
    ClusterKill = "cluster-kill", [Cluster], 8_000, Target::Redis(1);
    /// The Cluster node that holds the log is stopped until it has been replaced, and is then resumed.
    ClusterStop = "cluster-stop", [Cluster], 8_000, Target::Redis(1);
}

impl Fault {
    /// Whether the fault cuts connections to Redis, so that some nodes receive a message that is published on a channel
    /// and others do not.
    pub(crate) fn cuts_channels(self) -> bool {
        !matches!(self.target(), Target::Clients | Target::Nodes) && !matches!(self, Self::KillWorker)
    }

    /// Whether the log loses events that the nodes retain, so that the nodes have to restore them.
    pub(crate) fn requires_restore(self) -> bool {
        matches!(
            self,
            Self::ForgetRedis
                | Self::PowerLoss
                | Self::OldCopy
                | Self::OldThenNew
                | Self::AloneThenKilled
                | Self::AloneThenStopped
                | Self::SentinelFailover
                | Self::SentinelKill
                | Self::SentinelStop
                | Self::ClusterKill
        )
    }
}

/// The maximum number of resets that a client whose cursor is a position may receive, after faults that occur together.
/// The rules follow from docs/recovery.md. The maximum is 0, except in these cases:
///
/// - A server changes while a node is away or ends, because that node may have acknowledged events that no other node
///   knows. The same applies if no node can know for how long others were away, or if the windows hold too little. A
///   client that reaches a node which has not detected the change yet receives another reset.
/// - The only node that knows some acknowledged events is killed together with Redis.
/// - A client reaches a node that is away from Redis and lacks events that the client received.
pub(crate) fn budget(faults: &[Fault], small_window: bool) -> u64 {
    let any = |of: fn(Target) -> bool| faults.iter().any(|fault| of(fault.target()));
    let changes: u64 =
        faults.iter().map(|fault| if let Target::Redis(changes) = fault.target() { changes } else { 0 }).sum();
    let others = faults.iter().filter(|fault| fault.target() != Target::Clients).count();
    let reconnects = any(|target| matches!(target, Target::Clients | Target::Nodes | Target::OneNode))
        || faults.contains(&Fault::AloneThenKilled);
    let away = any(|target| matches!(target, Target::OneNode | Target::Link));
    let of_changes = match (others > 1 || small_window, reconnects) {
        // The events that only the killed worker acknowledged are lost. Its clients reach nodes that have not detected
        // that yet.
        (false, true) if faults.contains(&Fault::AloneThenKilled) => 2 * changes,
        (false, true) if faults.len() > 1 => changes,
        (false, _) => 0,
        (true, false) => changes,
        (true, true) => 2 * changes,
    };
    of_changes + u64::from(faults.len() > 1 && reconnects && away)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resets_are_allowed_only_if_a_server_changes_during_another_fault() {
        for (faults, resets) in [
            (&[Fault::KillRedis][..], 0),
            (&[Fault::OldThenNew], 0),
            (&[Fault::KillWorker], 0),
            (&[Fault::StopWorkerLong], 0),
            (&[Fault::AloneThenKilled], 2),
            (&[Fault::AloneThenKilled, Fault::StopRedisLong], 3),
            (&[Fault::AloneThenStopped], 0),
            (&[Fault::StopRedisLong, Fault::SlowLink], 0),
            (&[Fault::KillWorker, Fault::StopRedisLong], 1),
            (&[Fault::CutWorker, Fault::CutClients], 1),
            (&[Fault::KillRedis, Fault::CutClients], 1),
            (&[Fault::KillRedis, Fault::StopWorker], 3),
            (&[Fault::KillRedis, Fault::StopRedis], 1),
            (&[Fault::KillRedis, Fault::OldThenNew, Fault::RollingRestart], 6),
        ] {
            assert_eq!(budget(faults, false), resets, "{faults:?}");
        }
        assert_eq!((budget(&[Fault::KillRedis], true), budget(&[Fault::KillWorker], true)), (1, 0));
    }

    #[test]
    fn words_are_distinct() {
        for (i, fault) in Fault::ALL.iter().enumerate() {
            assert!(Fault::ALL[..i].iter().all(|other| other.word() != fault.word()), "{}", fault.word());
        }
    }
}

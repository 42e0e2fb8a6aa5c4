//! The faults: what they are called, where there are any, and what may be told of them.

/// How Redis and the hub are set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Topology {
    /// One Redis, and workers.
    Standalone,
    /// One Redis, and nodes in networks of their own.
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

/// What a fault concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hits {
    Clients,
    /// Every node, for a moment and in order.
    Nodes,
    /// A node that may have acknowledged what nobody else knows.
    ANode,
    /// The link between nodes and Redis.
    Link,
    /// Redis, so often that another server goes on with the log, or the same one with other data.
    Redis(u64),
}

macro_rules! faults {
    ($($(#[doc = $doc:literal])+ $name:ident = $word:literal, [$($topology:ident),+], $lasts:literal, $hits:expr;)+) => {
        /// Something that goes wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Fault { $($(#[doc = $doc])+ $name,)+ }

        impl Fault {
            /// Every fault.
            pub(crate) const ALL: &[Self] = &[$(Self::$name),+];

            pub(crate) const fn word(self) -> &'static str {
                match self { $(Self::$name => $word),+ }
            }

            pub(crate) const fn help(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii()),+ }
            }

            /// Where there is such a fault.
            pub(crate) const fn topologies(self) -> &'static [Topology] {
                match self { $(Self::$name => &[$(Topology::$topology),+]),+ }
            }

            /// About how long it lasts, in milliseconds.
            pub(crate) const fn lasts_ms(self) -> u64 {
                match self { $(Self::$name => $lasts),+ }
            }

            const fn hits(self) -> Hits {
                match self { $(Self::$name => $hits),+ }
            }
        }
    };
}

faults! {
    /// A third of the clients are cut off, and again.
    CutClients = "cut-clients", [Standalone, Networks, Sentinel, Cluster], 2_000, Hits::Clients;
    /// A third of the clients stop reading for six seconds.
    StopReading = "stop-reading", [Standalone, Networks, Sentinel, Cluster], 6_000, Hits::Clients;
    /// All workers are replaced, one at a time (SIGHUP).
    RollingRestart = "rolling-restart", [Standalone, Sentinel, Cluster], 8_000, Hits::Nodes;
    /// A worker is killed (SIGKILL).
    KillWorker = "kill-worker", [Standalone, Networks, Sentinel, Cluster], 1_000, Hits::ANode;
    /// A worker is halted for ten seconds (SIGSTOP).
    StopWorker = "stop-worker", [Standalone, Networks, Sentinel, Cluster], 10_000, Hits::ANode;
    /// A worker is halted for twenty seconds.
    StopWorkerLong = "stop-worker-long", [Standalone, Networks, Sentinel, Cluster], 20_000, Hits::ANode;
    /// Redis is killed, its append-only file on, and started again after one to five seconds.
    KillRedis = "kill-redis", [Standalone, Networks], 3_000, Hits::Redis(1);
    /// Redis loses everything it has, while the nodes live.
    ForgetRedis = "forget-redis", [Standalone, Networks], 1_000, Hits::Redis(1);
    /// Redis loses what it did not bring to the disk in the last second or two.
    PowerLoss = "power-loss", [Standalone, Networks], 3_000, Hits::Redis(1);
    /// Redis is started again from a copy of its files that is three seconds old.
    OldCopy = "old-copy", [Standalone, Networks], 4_000, Hits::Redis(1);
    /// Redis is started from an older copy, goes on for a while, and is started from the newer one.
    OldThenNew = "old-then-new", [Standalone, Networks], 7_000, Hits::Redis(2);
    /// All workers but one are halted for three seconds; then that one is killed, Redis comes back empty, and the others
    /// go on.
    AloneThenKilled = "alone-then-killed", [Standalone, Networks], 4_000, Hits::Redis(1);
    /// The same, but that one is halted, for three seconds.
    AloneThenStopped = "alone-then-stopped", [Standalone, Networks], 7_000, Hits::Redis(1);
    /// Redis is halted for ten seconds (SIGSTOP).
    StopRedis = "stop-redis", [Standalone, Networks], 10_000, Hits::Link;
    /// Redis is halted for twenty seconds.
    StopRedisLong = "stop-redis-long", [Standalone, Networks], 20_000, Hits::Link;
    /// Redis closes every connection of every node (CLIENT KILL).
    ClientKill = "client-kill", [Standalone, Networks], 100, Hits::Link;
    /// Redis answers nobody for three seconds (CLIENT PAUSE).
    ClientPause = "client-pause", [Standalone, Networks], 3_000, Hits::Link;
    /// The disk of Redis is full for eight seconds.
    DiskFull = "disk-full", [Standalone], 8_000, Hits::Link;
    /// Only 20 KB a second pass between each node and Redis, for ten seconds.
    SlowLink = "slow-link", [Standalone, Sentinel], 10_000, Hits::Link;
    /// Nothing passes between any node and Redis, for eight seconds.
    CutLinks = "cut-links", [Standalone], 8_000, Hits::Link;
    /// Nothing passes between one worker and Redis, for eight seconds.
    CutWorker = "cut-worker", [Standalone, Sentinel], 8_000, Hits::ANode;
    /// Nothing passes from one worker to Redis, for eight seconds.
    CutWorkerThere = "cut-worker-there", [Standalone, Sentinel], 8_000, Hits::ANode;
    /// Nothing passes from Redis to one worker, for eight seconds.
    CutWorkerBack = "cut-worker-back", [Standalone, Sentinel], 8_000, Hits::ANode;
    /// No packet passes between the network of one node and Redis, for eight seconds.
    Partition = "partition", [Networks], 8_000, Hits::ANode;
    /// No packet passes from the network of one node to Redis, for eight seconds.
    PartitionThere = "partition-there", [Networks], 8_000, Hits::ANode;
    /// No packet passes from Redis to the network of one node, for eight seconds.
    PartitionBack = "partition-back", [Networks], 8_000, Hits::ANode;
    /// A partition of one node that lasts twenty seconds.
    PartitionLong = "partition-long", [Networks], 20_000, Hits::ANode;
    /// Sentinel makes a replica the master that lags by a second.
    SentinelFailover = "sentinel-failover", [Sentinel], 5_000, Hits::Redis(1);
    /// The master under Sentinel is killed; its replicas lag by a second.
    SentinelKill = "sentinel-kill", [Sentinel], 7_000, Hits::Redis(1);
    /// The master under Sentinel is halted until it is replaced by a replica that lags by a second, and then comes back.
    SentinelStop = "sentinel-stop", [Sentinel], 8_000, Hits::Redis(1);
    /// Sentinel makes a replica the master, and then the old master again.
    SentinelThereAndBack = "sentinel-there-and-back", [Sentinel], 25_000, Hits::Redis(2);
    /// One worker alone reaches the master, which is replaced meanwhile.
    SentinelSplit = "sentinel-split", [Sentinel], 12_000, Hits::Redis(1);
    /// Sentinel makes a replica the master, and then the old master again while one worker alone reaches the new one.
    SentinelSplitBack = "sentinel-split-back", [Sentinel], 25_000, Hits::Redis(2);
    /// The replica of the node that holds the log takes over.
    ClusterFailover = "cluster-failover", [Cluster], 3_000, Hits::Redis(1);
    /// The node of the Cluster that holds the log is killed; its replica lags by a second.
    ClusterKill = "cluster-kill", [Cluster], 8_000, Hits::Redis(1);
    /// The node of the Cluster that holds the log is halted until it is replaced, and then comes back.
    ClusterStop = "cluster-stop", [Cluster], 8_000, Hits::Redis(1);
}

impl Fault {
    /// Whether it cuts connections to Redis, so that what is published on its channels is heard by some nodes and not by
    /// others.
    pub(crate) fn cuts_channels(self) -> bool {
        !matches!(self.hits(), Hits::Clients | Hits::Nodes) && !matches!(self, Self::KillWorker)
    }

    /// Whether the log loses events by it that the nodes have, so that they have to put them back.
    pub(crate) fn has_to_be_put_back(self) -> bool {
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

/// The most resets that a client whose cursor is a position may be told of faults that happen together; docs/recovery.md
/// has the rules. None, unless
///
/// - a server changes while a node is away or ends, which may have acknowledged what nobody else knows, or while nobody can
///   know for how long others were away, or while the windows hold too little. A client that comes to a node that has not
///   heard of the change yet is told once more;
/// - the only node that knows what it acknowledged is killed together with Redis;
/// - a client comes to a node that is away from Redis, and lacks what the client has seen.
pub(crate) fn budget(faults: &[Fault], small_window: bool) -> u64 {
    let any = |of: fn(Hits) -> bool| faults.iter().any(|fault| of(fault.hits()));
    let changes: u64 =
        faults.iter().map(|fault| if let Hits::Redis(changes) = fault.hits() { changes } else { 0 }).sum();
    let others = faults.iter().filter(|fault| fault.hits() != Hits::Clients).count();
    let reconnects = any(|hits| matches!(hits, Hits::Clients | Hits::Nodes | Hits::ANode))
        || faults.contains(&Fault::AloneThenKilled);
    let away = any(|hits| matches!(hits, Hits::ANode | Hits::Link));
    let of_changes = match (others > 1 || small_window, reconnects) {
        // What the killed one acknowledged alone is lost; its clients come to nodes that have not heard of that.
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
    fn a_reset_may_be_told_only_where_a_server_changes_while_something_else_is_wrong() {
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

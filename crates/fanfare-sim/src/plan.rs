//! The plan that a seed determines: servers and nodes, events, and faults.

use fanfare_core::window::Bounds;
use std::fmt;

use crate::{
    net::Machine,
    server::{End, Persistence},
};

/// The server that a fault affects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// The master at that time.
    Master,
    /// Another server.
    Other,
}

/// The directions in which packets between two machines are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ways {
    Both,
    There,
    Back,
}

/// The data with which a server restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Back {
    /// The data that its persistence kept.
    Kept,
    Empty,
    /// An older copy: the number of copies back.
    Copy(usize),
}

/// A fault. Times are in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    PauseNode {
        node: usize,
        ms: u64,
    },
    KillNode {
        node: usize,
        ms: u64,
    },
    /// The node shuts down gracefully, and restarts this long after its end.
    StopNode {
        node: usize,
        ms: u64,
    },
    CutNode {
        node: usize,
        which: Which,
        ways: Ways,
        ms: u64,
    },
    CutNodeFromSentinels {
        node: usize,
        ms: u64,
    },
    LagNode {
        node: usize,
        by: u64,
        ms: u64,
    },
    StepNodeClock {
        node: usize,
        by: i64,
    },
    ResetConnections {
        node: usize,
    },
    LoseAnswers {
        count: u32,
    },
    PauseServer {
        which: Which,
        ms: u64,
    },
    KillServer {
        which: Which,
        end: End,
        back: Back,
        ms: u64,
    },
    OldThenNew {
        copies: usize,
        ms: u64,
    },
    StepServerClock {
        which: Which,
        by: i64,
    },
    FullDisk {
        memory: bool,
        ms: u64,
    },
    LagReplicas {
        by: u64,
        ms: u64,
    },
    Failover {
        level: bool,
    },
    ThereAndBack {
        ms: u64,
    },
    /// The sentinels name another master, then the previous one, and so on: `times` in all, each for a while. No server
    /// is demoted in between.
    Waver {
        times: u64,
        ms: u64,
    },
    /// Neither sentinels nor other servers reach the master. Nodes reach it; with `split`, only the first of them.
    IsolateMaster {
        split: bool,
        ms: u64,
    },
}

impl Fault {
    /// The kind of the fault, for statistics.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::PauseNode { .. } => "node paused",
            Self::KillNode { .. } => "node killed",
            Self::StopNode { .. } => "node shut down",
            Self::CutNode { ways: Ways::Both, .. } => "node cut off",
            Self::CutNode { .. } => "node cut off one way",
            Self::CutNodeFromSentinels { .. } => "node cut off from sentinels",
            Self::LagNode { .. } => "node lags",
            Self::StepNodeClock { .. } => "node's clock set",
            Self::ResetConnections { .. } => "connections reset",
            Self::LoseAnswers { .. } => "answers lost",
            Self::PauseServer { .. } => "server paused",
            Self::KillServer { back: Back::Kept, end: End::Killed, .. } => "server killed",
            Self::KillServer { back: Back::Kept, end: End::PowerLoss, .. } => "power loss",
            Self::KillServer { back: Back::Empty, .. } => "server back empty",
            Self::KillServer { back: Back::Copy(_), .. } => "server back from a copy",
            Self::OldThenNew { .. } => "server back old, then new",
            Self::StepServerClock { .. } => "server's clock set",
            Self::FullDisk { .. } => "server full",
            Self::LagReplicas { .. } => "replicas lag",
            Self::Failover { .. } => "failover",
            Self::ThereAndBack { .. } => "failover there and back",
            Self::Waver { .. } => "sentinels waver",
            Self::IsolateMaster { .. } => "master isolated",
        }
    }

    /// Its duration.
    pub(crate) fn lasts(&self) -> u64 {
        match *self {
            Self::PauseNode { ms, .. }
            | Self::KillNode { ms, .. }
            | Self::CutNode { ms, .. }
            | Self::CutNodeFromSentinels { ms, .. }
            | Self::LagNode { ms, .. }
            | Self::PauseServer { ms, .. }
            | Self::KillServer { ms, .. }
            | Self::FullDisk { ms, .. }
            | Self::LagReplicas { ms, .. }
            | Self::ThereAndBack { ms }
            | Self::IsolateMaster { ms, .. } => ms,
            Self::StopNode { ms, .. } => SHUTDOWN + ms,
            Self::OldThenNew { ms, .. } => 1_500 + ms,
            Self::Waver { times, ms } => times * ms,
            Self::StepNodeClock { .. }
            | Self::ResetConnections { .. }
            | Self::LoseAnswers { .. }
            | Self::StepServerClock { .. }
            | Self::Failover { .. } => 0,
        }
    }

    /// Whether it ends the process of a server.
    pub(crate) fn ends_servers(&self) -> bool {
        matches!(self, Self::KillServer { .. } | Self::OldThenNew { .. })
    }

    /// Whether servers respond to no node during the fault.
    pub(crate) fn silences_servers(&self) -> bool {
        self.ends_servers()
            || matches!(self, Self::PauseServer { .. } | Self::FullDisk { .. } | Self::IsolateMaster { .. })
    }

    /// Whether it prevents a node from working.
    pub(crate) fn hinders_nodes(&self) -> bool {
        matches!(
            self,
            Self::PauseNode { .. }
                | Self::KillNode { .. }
                | Self::StopNode { .. }
                | Self::CutNode { .. }
                | Self::CutNodeFromSentinels { .. }
                | Self::LagNode { .. }
                | Self::IsolateMaster { .. }
        )
    }
}

/// The audience of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EventAudience {
    Everyone,
    User(usize),
    Topic(usize),
    Client(usize),
}

/// Events that are published at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Publish {
    pub(crate) at: u64,
    pub(crate) publisher: usize,
    pub(crate) events: Vec<EventAudience>,
}

/// A named schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Case {
    /// Redis restarts empty. One node was stopped; the other one, which acknowledged events alone in the meantime, is
    /// killed.
    NodeAndRedis,
    /// As node-and-redis, but the other node is only stopped, and returns second.
    NobodyDies,
    /// A lagging replica is promoted, and then the old master again before the hubs have confirmed the replica.
    ThereAndBack,
    /// One node reaches only the deposed master, and no sentinel.
    SplitBrain,
    /// As split-brain, and the clock of the new master is set forward while it waits for that node.
    SplitBrainAndClock,
    /// Redis restarts empty, and a node that has just started connects first.
    FreshNode,
    /// Redis restarts from an older copy, continues, and restarts from the newer data.
    OldThenNew,
    /// Sentinels name a second master, then the first one again, which only one node reaches, and then the second one.
    Waver,
    /// Sentinels name a second master, where one node acknowledges events before it is killed, and then the first one
    /// again.
    NamedAgain,
    /// All nodes shut down gracefully. One restarts, acknowledges events, and is killed together with Redis, which
    /// restarts with the data of the time when no node ran.
    OrderlyEnd,
    /// Several failovers, back and forth, and masters that only one node reaches, for up to 40 s.
    Failovers,
}

/// The size of a simulation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// Faults in a group: 2 or 3; 0: no faults.
    pub(crate) faults: usize,
    /// Clients of each node.
    pub(crate) clients: usize,
}

/// The plan of a simulation.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) nodes: usize,
    pub(crate) servers: usize,
    pub(crate) sentinels: usize,
    pub(crate) version: (u32, u32),
    pub(crate) persistence: Persistence,
    pub(crate) min_replicas: bool,
    /// How long the sentinels do not reach a master before they replace it.
    pub(crate) down_after: u64,
    pub(crate) clients: usize,
    pub(crate) users: usize,
    pub(crate) topics: usize,
    pub(crate) publishers: usize,
    /// Whether the publisher publishes its next event without waiting for the response.
    pub(crate) pipelined: Vec<bool>,
    pub(crate) bounds: Bounds,
    pub(crate) publishes: Vec<Publish>,
    pub(crate) faults: Vec<(u64, Fault)>,
    /// When the last fault is over.
    pub(crate) calm_at: u64,
    /// When the last event is published.
    pub(crate) until: u64,
}

/// How long a node may take to shut down, in milliseconds.
pub(crate) const SHUTDOWN: u64 = 1_200;

/// The earliest time of a fault: every node is connected to Redis, and every client to a node, by then.
const WARM: u64 = 4_000;

impl Plan {
    pub(crate) fn new(seed: u64, size: Size) -> Self {
        let mut random = fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed);
        let r = &mut random;
        let sentinel = r.u8(0..10) < 6;
        let servers = if sentinel { r.usize(2..=3) } else { 1 };
        let nodes = r.usize(2..=3);
        let persistence = match r.u8(0..10) {
            0..4 => Persistence::None,
            4..8 => Persistence::EverySecond,
            _ => Persistence::Always,
        };
        let version = [(7, 0), (7, 2), (6, 2), (8, 0)][r.usize(0..4)];
        let events = [150, 400, 2_000][r.usize(0..3)];
        let clients = nodes * size.clients;
        let mut plan = Self {
            seed,
            nodes,
            servers,
            sentinels: if sentinel { 3 } else { 0 },
            version,
            persistence,
            min_replicas: sentinel && r.u8(0..8) == 0,
            down_after: r.u64(500..4_000),
            clients,
            users: (clients / 2).max(1),
            topics: 4,
            publishers: 0,
            pipelined: Vec::new(),
            bounds: Bounds { events, bytes: 8 << 20, age_ms: 600_000, ids: 100_000, ids_ms: 1_200_000 },
            publishes: Vec::new(),
            faults: Vec::new(),
            calm_at: WARM,
            until: WARM,
        };
        let groups = if size.faults == 0 { 0 } else { r.usize(1..=3) };
        let mut at = WARM;
        for _ in 0..groups {
            let begin = at + r.u64(0..2_000);
            for _ in 0..size.faults {
                let spread = [300, 1_500, 5_000][r.usize(0..3)];
                let begin = begin + r.u64(0..spread);
                let fault = plan.fault(r);
                plan.calm_at = plan.calm_at.max(begin + fault.lasts());
                plan.faults.push((begin, fault));
            }
            at = if r.bool() { plan.calm_at } else { begin + 4_000 };
        }
        plan.faults.sort_by_key(|(at, _)| *at);
        plan.calm_at += 500;
        plan.until = plan.calm_at + 3_000 + if groups == 0 { 20_000 } else { 0 };
        plan.load(r);
        plan
    }

    /// A schedule in which an earlier version of the hub failed.
    pub(crate) fn case(case: Case, seed: u64, clients: usize) -> Self {
        let mut plan = Self::new(seed, Size { faults: 0, clients });
        let sentinel = matches!(
            case,
            Case::ThereAndBack
                | Case::SplitBrain
                | Case::SplitBrainAndClock
                | Case::Waver
                | Case::NamedAgain
                | Case::Failovers
        );
        (plan.nodes, plan.clients, plan.users) = (2, 2 * clients, clients.max(1));
        (plan.servers, plan.sentinels) = if sentinel { (2, 3) } else { (1, 0) };
        plan.persistence = if case == Case::OldThenNew { Persistence::Always } else { Persistence::None };
        (plan.min_replicas, plan.version, plan.down_after) = (false, (7, 0), 1_000);
        plan.bounds.events = if case == Case::OldThenNew { 100 } else { 2_000 };
        let which = Which::Master;
        let empty = |ms| Fault::KillServer { which, end: End::Killed, back: Back::Empty, ms };
        plan.faults = match case {
            Case::NodeAndRedis => vec![
                (6_000, Fault::PauseNode { node: 1, ms: 4_000 }),
                (8_000, Fault::KillNode { node: 0, ms: 15_000 }),
                (8_050, empty(300)),
            ],
            Case::NobodyDies => vec![
                (6_000, Fault::PauseNode { node: 1, ms: 3_000 }),
                (8_000, Fault::PauseNode { node: 0, ms: 4_500 }),
                (8_050, empty(300)),
            ],
            Case::ThereAndBack => {
                vec![(6_000, Fault::LagReplicas { by: 1_000, ms: 10_000 }), (8_000, Fault::ThereAndBack { ms: 700 })]
            }
            Case::SplitBrain => vec![
                (6_000, Fault::IsolateMaster { split: true, ms: 12_000 }),
                (6_000, Fault::CutNodeFromSentinels { node: 0, ms: 12_000 }),
            ],
            Case::SplitBrainAndClock => vec![
                (6_000, Fault::IsolateMaster { split: true, ms: 12_000 }),
                (6_000, Fault::CutNodeFromSentinels { node: 0, ms: 12_000 }),
                (8_600, Fault::StepServerClock { which: Which::Master, by: 60_000 }),
            ],
            Case::FreshNode => vec![
                (6_000, Fault::KillNode { node: 0, ms: 600 }),
                (6_050, Fault::LagNode { node: 1, by: 40, ms: 6_000 }),
                (6_100, empty(300)),
            ],
            // More events are lost than the windows hold.
            Case::OldThenNew => vec![(9_000, Fault::OldThenNew { copies: 3, ms: 1_700 })],
            Case::Waver => {
                let mut r = fastrand::Rng::with_seed(seed ^ 0x3a7e);
                (plan.nodes, plan.clients) = (3, 3 * clients);
                let ms = r.u64(700..2_000);
                let cut = |node| Fault::CutNode { node, which, ways: Ways::Both, ms: ms + 3_000 };
                vec![(6_000, Fault::Waver { times: 3, ms }), (6_010 + ms, cut(0)), (6_010 + ms, cut(1))]
            }
            // Node 0 reports to the second master and loses contact; node 1 acknowledges events there, and is killed.
            Case::NamedAgain => {
                let mut r = fastrand::Rng::with_seed(seed ^ 0xa6a1);
                let (cut, kill) = (6_000 + r.u64(700..2_000), 9_500 + r.u64(0..450));
                vec![
                    (6_000, Fault::Waver { times: 2, ms: 4_000 }),
                    (cut, Fault::CutNode { node: 0, which, ways: Ways::Both, ms: 10_050 - cut }),
                    (kill, Fault::KillNode { node: 1, ms: 20_000 }),
                ]
            }
            Case::OrderlyEnd => vec![
                (6_000, Fault::StopNode { node: 0, ms: 2_000 }),
                (6_100, Fault::StopNode { node: 1, ms: 12_000 }),
                (11_000, Fault::KillNode { node: 0, ms: 3_000 }),
                (11_050, Fault::KillServer { which, end: End::Killed, back: Back::Copy(2), ms: 300 }),
            ],
            Case::Failovers => {
                let mut r = fastrand::Rng::with_seed(seed ^ 0xfa11);
                (plan.nodes, plan.servers) = (r.usize(2..=4), r.usize(2..=3));
                plan.clients = plan.nodes * clients;
                plan.users = (plan.clients / 2).max(1);
                plan.down_after = r.u64(500..4_000);
                let mut at = 5_000;
                let number = r.usize(2..=4);
                let mut faults = Vec::new();
                for _ in 0..number {
                    faults.push((at, plan.failover(&mut r)));
                    at += r.u64(0..16_000);
                }
                faults
            }
        };
        let ends = plan.faults.iter().map(|(at, fault)| at + fault.lasts());
        plan.calm_at = ends.max().unwrap_or(WARM) + 500;
        plan.until = plan.calm_at + 3_000;
        plan.publishes.clear();
        plan.load(&mut fastrand::Rng::with_seed(seed));
        plan
    }

    /// Draws the events to publish.
    fn load(&mut self, r: &mut fastrand::Rng) {
        self.publishers = r.usize(2..=4);
        self.pipelined = (0..self.publishers).map(|_| r.u8(0..3) == 0).collect();
        for publisher in 0..self.publishers {
            let every = r.u64(10..120);
            let mut at = 1_500 + r.u64(0..500);
            while at < self.until {
                let count = if r.u8(0..20) == 0 { r.usize(2..20) } else { 1 };
                let events = (0..count).map(|_| self.audience(r)).collect();
                self.publishes.push(Publish { at, publisher, events });
                at += 1 + r.u64(0..2 * every);
            }
        }
        self.publishes.sort_by_key(|publish| publish.at);
    }

    fn audience(&self, r: &mut fastrand::Rng) -> EventAudience {
        match r.u8(0..20) {
            0..16 => EventAudience::Everyone,
            16 => EventAudience::User(r.usize(0..self.users)),
            17..19 => EventAudience::Topic(r.usize(0..self.topics)),
            _ => EventAudience::Client(r.usize(0..self.clients)),
        }
    }

    fn fault(&self, r: &mut fastrand::Rng) -> Fault {
        let node = r.usize(0..self.nodes);
        let sentinel = self.sentinels > 0;
        let which = if sentinel && r.u8(0..4) == 0 { Which::Other } else { Which::Master };
        let ms = match r.u8(0..4) {
            0 => r.u64(50..800),
            1 | 2 => r.u64(800..5_000),
            _ => r.u64(5_000..15_000),
        };
        loop {
            return match r.u8(0..26) {
                0..3 => Fault::PauseNode { node, ms },
                3..6 => Fault::KillNode { node, ms },
                6 => Fault::CutNode { node, which, ways: Ways::Both, ms },
                7 => Fault::CutNode { node, which, ways: if r.bool() { Ways::There } else { Ways::Back }, ms },
                8 if sentinel => Fault::CutNodeFromSentinels { node, ms },
                9 => Fault::LagNode { node, by: r.u64(5..900), ms },
                10 if r.bool() => Fault::StepNodeClock { node, by: r.i64(-120_000..120_000) },
                10 => Fault::StepServerClock { which, by: r.i64(-120_000..120_000) },
                11 => Fault::ResetConnections { node },
                12 => Fault::LoseAnswers { count: r.u32(1..4) },
                13 => Fault::PauseServer { which, ms },
                14 | 15 => {
                    let end = if r.bool() { End::Killed } else { End::PowerLoss };
                    Fault::KillServer { which, end, back: Back::Kept, ms: ms.min(6_000) }
                }
                16 => Fault::KillServer { which, end: End::Killed, back: Back::Empty, ms: ms.min(3_000) },
                17 => Fault::KillServer { which, end: End::Killed, back: Back::Copy(r.usize(1..4)), ms: ms.min(3_000) },
                18 if !sentinel => Fault::OldThenNew { copies: r.usize(1..4), ms: ms.min(6_000) },
                19 => Fault::FullDisk { memory: r.bool(), ms },
                20 if sentinel => Fault::LagReplicas { by: r.u64(20..2_500), ms },
                21 if sentinel => Fault::Failover { level: r.bool() },
                22 if sentinel => Fault::ThereAndBack { ms: r.u64(100..3_000) },
                23 if sentinel => Fault::IsolateMaster { split: r.bool(), ms },
                25 => Fault::StopNode { node, ms },
                24 if sentinel => Fault::Waver { times: r.u64(2..6), ms: r.u64(300..5_000) },
                _ => continue,
            };
        }
    }

    /// A fault that makes another server the master, or hides the change from some nodes.
    fn failover(&self, r: &mut fastrand::Rng) -> Fault {
        let node = r.usize(0..self.nodes);
        match r.u8(0..10) {
            8 | 9 => Fault::Waver { times: r.u64(2..6), ms: r.u64(300..5_000) },
            0 => Fault::Failover { level: r.bool() },
            1 | 2 => Fault::ThereAndBack { ms: r.u64(100..4_000) },
            3 | 4 => Fault::IsolateMaster { split: true, ms: r.u64(3_000..40_000) },
            5 => Fault::LagReplicas { by: r.u64(200..2_500), ms: r.u64(2_000..30_000) },
            6 => Fault::CutNodeFromSentinels { node, ms: r.u64(1_000..30_000) },
            _ => Fault::CutNode { node, which: Which::Master, ways: Ways::Both, ms: r.u64(500..35_000) },
        }
    }

    /// The URL of the log.
    pub(crate) fn url(&self) -> String {
        if self.sentinels == 0 {
            return format!("redis://sim:{}", Machine::Server(0).port());
        }
        let sentinels: Vec<String> =
            (0..self.sentinels).map(|i| format!("sim:{}", Machine::Sentinel(i).port())).collect();
        format!("redis+sentinel://{}/mymaster", sentinels.join(","))
    }

    /// Keeps only some of the plan's faults.
    pub(crate) fn keep_faults(&mut self, keep: impl Fn(usize) -> bool) {
        let mut number = 0;
        self.faults.retain(|_| {
            number += 1;
            keep(number - 1)
        });
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "seed {}: {} nodes, {} servers of Redis {}.{} ({:?}), {} sentinels, {} clients, a window of {} events",
            self.seed,
            self.nodes,
            self.servers,
            self.version.0,
            self.version.1,
            self.persistence,
            self.sentinels,
            self.clients,
            self.bounds.events
        )?;
        for (number, (at, fault)) in self.faults.iter().enumerate() {
            write!(f, "\n  fault {number} at {at} ms: {fault:?}")?;
        }
        Ok(())
    }
}

//! The simulated world: servers that replicate, sentinels that choose a master, nodes, clients, publishers and faults,
//! all driven by one queue.

use crate::{
    client::Client,
    net::{Chunk, Conn, Event, Machine, Net, View},
    node::{EPOCH_MS, Input, Node, machine_of},
    oracle::Oracle,
    plan::{Back, EventAudience, Fault, Plan, Publish, SHUTDOWN, Ways, Which},
    server::{Done, End, Persistence, Server, Unit, address_reply, epoch_reply, fresh_name, take_commands},
    store::{Data, Facts, Reply, text},
};
use fanfare::{Audience, Draft, metrics::Counter};
use fanfare_core::{ConnectionId, Position, session::ConnectRequest};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::time::{sleep_until, timeout};

/// The maximum number of times that the comparison of the list of connections is repeated.
const PRESENCE_TRIES: usize = 2;

/// The interval of the periodic checks of servers and sentinels, in milliseconds.
const TICK: u64 = 100;

/// A node that is prevented from working for this long, in milliseconds, may be given up by the others: they wait for
/// 13 s, and the node is informed for up to 12 s after its last answer.
const GIVEN_UP: u64 = 8_000;

/// If less than this is between two faults, in milliseconds, a node may have had no answer to a heartbeat: it has to
/// find the server, and the server has to be confirmed.
const MIN_INTERVAL: u64 = 4_000;

/// The time after the last fault within which nodes must be ready, in milliseconds.
const READY_WITHIN: u64 = 30_000;

/// The maximum number of commands in a second for each node, in addition to those that writes explain.
const COMMANDS: u64 = 300;

/// The replication state of a server.
#[derive(Debug, Default)]
struct Replication {
    /// The master that it follows.
    of: Option<usize>,
    attached: bool,
    /// The current attempt to attach; earlier ones are void.
    attempt: u64,
    attaching: bool,
    inbox: VecDeque<(u64, u64, Unit)>,
    lag: u64,
    demotion: bool,
}

/// The results of a run.
#[derive(Debug, Default, Clone)]
pub(crate) struct Outcome {
    pub(crate) violations: Vec<String>,
    pub(crate) deliveries: u64,
    pub(crate) published: u64,
    pub(crate) acknowledged: u64,
    pub(crate) duplicates: u64,
    pub(crate) gaps_expired: u64,
    pub(crate) gaps_reset: u64,
    /// The resets of clients whose cursor was an `event_id`.
    pub(crate) uncertain: u64,
    pub(crate) restored: u64,
    pub(crate) lost: u64,
    pub(crate) failovers: u64,
    pub(crate) lossy: bool,
    pub(crate) commands: u64,
    pub(crate) commands_in_a_second: u64,
    pub(crate) ready_after: u64,
    pub(crate) faults: BTreeMap<&'static str, u64>,
    pub(crate) simulated_ms: u64,
    /// A hash over everything that clients received and servers ran, in order.
    pub(crate) trace: u64,
}

/// A simulated world.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) net: Arc<Net>,
    pub(crate) clients: RefCell<Vec<Client>>,
    pub(crate) oracle: RefCell<Oracle>,
    nodes: RefCell<Vec<Rc<Node>>>,
    servers: RefCell<Vec<Server>>,
    replication: RefCell<Vec<Replication>>,
    master: Cell<usize>,
    /// The time since which the sentinels do not reach the master.
    missed: Cell<Option<u64>>,
    views: RefCell<Vec<View>>,
    sentinel_input: RefCell<BTreeMap<Conn, Vec<u8>>>,
    random: RefCell<fastrand::Rng>,
    /// What the end of each fault has to undo.
    undo: RefCell<BTreeMap<usize, Undo>>,
    attempts: Cell<u64>,
    calm: Cell<bool>,
    /// Whether the master lost acknowledged events, or may have.
    lossy: Cell<bool>,
    /// Whether a node gave up starting.
    pub(crate) gave_up: Cell<bool>,
    publishing: Cell<usize>,
    /// The current second, and its commands and writes.
    second: Cell<(u64, u64, u64)>,
    verbose: bool,
    outcome: RefCell<Outcome>,
    trace: Cell<u64>,
}

#[derive(Debug)]
enum Undo {
    Cuts(Vec<(Machine, Machine)>),
    Pause(Machine),
    Restart {
        server: usize,
        back: Back,
        held: Data,
    },
    /// The server ends and starts a second time.
    Newer {
        server: usize,
        held: Data,
    },
    Lag(Machine),
    Full(usize),
    Replicas,
    Return(usize),
    /// The node has shut down gracefully; its process ends now.
    ShutDown(Rc<Node>),
    Revive(usize),
}

impl World {
    fn new(plan: Plan, verbose: bool) -> Rc<Self> {
        let mut random = fastrand::Rng::with_seed(plan.seed ^ 0x0017_a11e);
        let net = Net::new(random.fork());
        let servers: Vec<Server> = (0..plan.servers)
            .map(|i| {
                let facts = Facts {
                    run_id: fresh_name(&mut random),
                    version: plan.version,
                    replica: i > 0,
                    master: ("sim".to_owned(), Machine::Server(0).port()),
                    link_up: true,
                    replid: "0".repeat(40),
                    replid2: "0".repeat(40),
                    offset: 0,
                    second_offset: -1,
                    replicas: plan.servers - 1,
                    aof: plan.persistence != Persistence::None,
                    uptime_ms: 0,
                    refuses_writes: None,
                };
                let mut server = Server::new(facts, plan.persistence, random.fork());
                server.store.facts.replid = if i == 0 { fresh_name(&mut random) } else { String::new() };
                server.clock_offset = random.i64(-200..200);
                server
            })
            .collect();
        let replication =
            (0..plan.servers).map(|i| Replication { of: (i > 0).then_some(0), ..Replication::default() }).collect();
        let clients = (0..plan.clients).map(|i| Client::new(i, plan.users, plan.topics, random.fork())).collect();
        Rc::new(Self {
            net,
            clients: RefCell::new(clients),
            oracle: RefCell::new(Oracle::new(plan.clients, plan.users, plan.topics)),
            nodes: RefCell::default(),
            servers: RefCell::new(servers),
            replication: RefCell::new(replication),
            master: Cell::new(0),
            missed: Cell::new(None),
            views: RefCell::new(vec![View::default(); plan.sentinels]),
            sentinel_input: RefCell::default(),
            random: RefCell::new(random),
            undo: RefCell::default(),
            attempts: Cell::new(0),
            calm: Cell::new(false),
            lossy: Cell::new(false),
            gave_up: Cell::new(false),
            publishing: Cell::new(0),
            second: Cell::new((0, 0, 0)),
            verbose,
            outcome: RefCell::default(),
            trace: Cell::new(0xcbf2_9ce4_8422_2325),
            plan,
        })
    }

    /// Runs a plan.
    pub(crate) async fn run(plan: Plan, verbose: bool) -> Outcome {
        let world = Self::new(plan, verbose);
        world.note(|| world.plan.to_string());
        for i in 0..world.plan.nodes {
            let node = Node::start(&world, i, world.fork(), world.pick(0..400) as i64 - 200);
            world.nodes.borrow_mut().push(node);
        }
        for i in 0..world.plan.clients {
            world.net.schedule(500 + world.pick(0..2_000), Event::Client(i));
        }
        for (i, (at, _)) in world.plan.faults.iter().enumerate() {
            world.net.schedule(*at, Event::Fault(i));
        }
        world.net.schedule(0, Event::Tick);
        for publisher in 0..world.plan.publishers {
            world.publishing.set(world.publishing.get() + 1);
            tokio::task::spawn_local(publish_all(world.clone(), publisher));
        }
        world.pump(world.plan.calm_at).await;
        world.calm_down();
        world.pump_until_ready().await;
        world.pump(world.plan.until).await;
        world.pump_until_quiet().await;
        world.pump_until_read().await;
        world.check().await;
        world.finish()
    }

    /// A random number from the schedule's own generator.
    fn pick(&self, range: std::ops::Range<u64>) -> u64 {
        self.random.borrow_mut().u64(range)
    }

    fn fork(&self) -> fastrand::Rng {
        self.random.borrow_mut().fork()
    }

    pub(crate) fn note(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            println!("{:>7} {}", self.net.now(), text());
        }
    }

    pub(crate) fn fail(&self, text: String) {
        self.note(|| format!("VIOLATED {text}"));
        self.oracle.borrow_mut().violated(|| text);
    }

    fn count(&self, change: impl FnOnce(&mut Outcome)) {
        change(&mut self.outcome.borrow_mut());
    }

    fn trace(&self, what: u64) {
        self.trace.set((self.trace.get() ^ what).wrapping_mul(0x0100_0000_01b3).rotate_left(17));
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.calm.get()
    }

    pub(crate) fn fresh_attempt(&self) -> u64 {
        self.attempts.set(self.attempts.get() + 1);
        self.attempts.get()
    }

    pub(crate) fn tell_node(&self, node: usize, input: Input) {
        let node = self.nodes.borrow()[node].clone();
        if node.is_alive() {
            node.input(input);
        }
    }

    /// Whether a node is paused, so that its clients receive nothing.
    pub(crate) fn node_hangs(&self, node: usize) -> bool {
        self.nodes.borrow()[node].is_paused()
    }

    pub(crate) fn connect(&self, node: usize, request: ConnectRequest, client: usize, attempt: u64) {
        let node = self.nodes.borrow()[node].clone();
        if node.is_alive() {
            node.connect(request, client, attempt);
        }
    }

    pub(crate) fn delivered(&self, client: usize, event: u32, position: Option<Position>, now: u64) {
        self.trace((client as u64) << 40 ^ u64::from(event) << 20 ^ now);
        let mut oracle = self.oracle.borrow_mut();
        oracle.received(client, event, now);
        if let Some(position) = position {
            oracle.note_position(event, (position.epoch, position.sequence));
        }
    }

    pub(crate) fn acknowledged_client(&self, client: usize, now: u64) {
        self.oracle.borrow_mut().clients[client].since.get_or_insert(now);
    }

    pub(crate) fn told_of_gap(&self, client: usize, epoch: u64, reset: bool, now: u64) {
        self.oracle.borrow_mut().told_of_gap(client, epoch, reset, now);
    }

    pub(crate) fn count_gaps(&self, expired: u64, reset: u64) {
        if expired + reset > 0 {
            self.count(|outcome| {
                outcome.gaps_expired += expired;
                outcome.gaps_reset += reset;
            });
        }
    }

    pub(crate) fn count_uncertain(&self) {
        self.count(|outcome| outcome.uncertain += 1);
    }

    /// Processes all events up to a time.
    async fn pump(self: &Rc<Self>, until: u64) {
        loop {
            while let Some(event) = self.net.pop() {
                self.handle(event);
                if self.random.borrow_mut().u8(0..4) == 0 {
                    tokio::task::yield_now().await;
                }
            }
            if self.net.now() >= until {
                return;
            }
            let next = self.net.next_at().unwrap_or(until).min(until);
            tokio::select! {
                biased;
                () = self.net.news.notified() => {}
                () = sleep_until(self.net.instant(next)) => {}
            }
        }
    }

    fn handle(self: &Rc<Self>, event: Event) {
        match event {
            Event::Open(conn) => self.open(conn),
            Event::ToServer(conn) => self.arrive(conn),
            Event::ToNode(conn) => self.net.arrive_at_node(conn),
            Event::Timeout(server, conn, token) => {
                if self.net.is_paused(Machine::Server(server)) {
                    self.net.schedule(self.net.now() + TICK, Event::Timeout(server, conn, token));
                } else {
                    self.at_server(server, |server, done| server.time_out(conn, token, done));
                }
            }
            Event::Replicate(server) => self.replicate(server),
            Event::Attach(server, attempt) => self.attach(server, attempt),
            Event::View(sentinel, view) => {
                // A sentinel does not return to an earlier configuration epoch.
                if self.views.borrow()[sentinel].config_epoch < view.config_epoch {
                    self.views.borrow_mut()[sentinel] = view;
                    self.note(|| format!("sentinel {sentinel} names server {}", view.server));
                }
            }
            Event::Demote(server) => self.demote(server),
            Event::Name(server) => self.name(server),
            Event::Tick => self.tick(),
            Event::Fault(number) => self.begin(number),
            Event::Heal(number) => self.heal(number),
            Event::Client(client) => self.clients.borrow_mut()[client].step(self),
        }
    }

    fn open(&self, conn: Conn) {
        let Some((_, to)) = self.net.arrives_at_server(conn) else { return };
        let up = match to {
            Machine::Server(i) => {
                let server = &mut self.servers.borrow_mut()[i];
                if server.up {
                    server.accept(conn);
                }
                server.up
            }
            _ => {
                self.sentinel_input.borrow_mut().insert(conn, Vec::new());
                true
            }
        };
        self.net.send_back(conn, if up { Chunk::Accepted } else { Chunk::End });
    }

    fn arrive(&self, conn: Conn) {
        let Some((_, to)) = self.net.arrives_at_server(conn) else { return };
        for chunk in self.net.take_out(conn) {
            match (chunk, to) {
                (Chunk::Bytes(bytes), Machine::Server(i)) => self.feed(i, conn, &bytes),
                (Chunk::Bytes(bytes), Machine::Sentinel(i)) => self.ask_sentinel(i, conn, &bytes),
                (_, Machine::Server(i)) => self.servers.borrow_mut()[i].hang_up(conn),
                _ => drop(self.sentinel_input.borrow_mut().remove(&conn)),
            }
        }
    }

    fn feed(&self, server: usize, conn: Conn, bytes: &[u8]) {
        if !self.servers.borrow()[server].knows(conn) {
            return self.net.send_back(conn, Chunk::End);
        }
        self.trace((server as u64) << 56 ^ conn << 32 ^ self.net.now() << 8 ^ bytes.len() as u64);
        self.at_server(server, |server, done| server.feed(conn, bytes, done));
    }

    /// Runs a closure at a server, and delivers its effects.
    fn at_server(&self, at: usize, act: impl FnOnce(&mut Server, &mut Done)) {
        let mut done = Done::default();
        let (mut breaks, up) = (None, self.servers.borrow()[at].up);
        if !up {
            return;
        }
        {
            let server = &mut self.servers.borrow_mut()[at];
            server.store.now_ms = (EPOCH_MS + self.net.now()).saturating_add_signed(server.clock_offset);
            server.store.facts.uptime_ms = self.net.now() - server.started;
            act(server, &mut done);
            if server.lose_answers > 0 && !done.units.is_empty() && !done.answers.is_empty() {
                server.lose_answers -= 1;
                breaks = done.answers.first().map(|(conn, _)| *conn);
                breaks.into_iter().for_each(|conn| server.hang_up(conn));
            }
        }
        for (conn, answer) in done.answers {
            let chunk = if breaks == Some(conn) { Chunk::End } else { Chunk::Bytes(answer) };
            self.net.send_back(conn, chunk);
        }
        let now = self.net.now();
        for (conn, token, ms) in done.timeouts {
            self.net.schedule(now + ms, Event::Timeout(at, conn, token));
        }
        if !done.units.is_empty() && at != self.master.get() {
            // The writes that a deposed master accepts are lost when it becomes a replica.
            self.lossy.set(true);
        }
        let writes = done.units.len() as u64;
        for (offset, unit) in done.units {
            self.send_to_replicas(at, offset, &unit);
        }
        if at == self.master.get() {
            self.count_commands(done.commands, writes, now);
        }
    }

    fn count_commands(&self, commands: u64, writes: u64, now: u64) {
        let (second, count, explained) = self.second.get();
        if now / 1_000 == second {
            self.second.set((second, count + commands, explained + writes));
            return;
        }
        self.count(|outcome| {
            outcome.commands += count;
            outcome.commands_in_a_second = outcome.commands_in_a_second.max(count);
        });
        // Each write is read by every node.
        let nodes = self.plan.nodes as u64;
        let most = COMMANDS * (nodes + 1) + explained * (nodes + 2);
        if count > most {
            self.fail(format!("busy: {count} commands in the second before {now} ms, more than {most}"));
        }
        self.second.set((now / 1_000, commands, writes));
    }

    fn send_to_replicas(&self, from: usize, offset: u64, unit: &Unit) {
        let (now, mut all) = (self.net.now(), self.replication.borrow_mut());
        for (i, replica) in all.iter_mut().enumerate() {
            if replica.of != Some(from) || !replica.attached {
                continue;
            }
            if self.net.is_cut(Machine::Server(from), Machine::Server(i)) || self.net.is_off(Machine::Server(i)) {
                replica.attached = false;
                continue;
            }
            let due = now + 1 + replica.lag;
            let due = replica.inbox.back().map_or(due, |(last, ..)| due.max(*last));
            replica.inbox.push_back((due, offset, unit.clone()));
            self.net.schedule(due, Event::Replicate(i));
        }
    }

    fn replicate(&self, at: usize) {
        let machine = Machine::Server(at);
        if self.net.is_paused(machine) {
            return self.net.schedule(self.net.now() + TICK, Event::Replicate(at));
        }
        let (mut applied, of) = (None, self.replication.borrow()[at].of);
        loop {
            let now = self.net.now();
            let next = self.replication.borrow_mut()[at].inbox.pop_front_if(|(due, ..)| *due <= now);
            let Some((_, offset, unit)) = next else { break };
            self.servers.borrow_mut()[at].apply(&unit, offset);
            applied = Some(offset);
        }
        if let (Some(offset), Some(master)) = (applied, of)
            && !self.net.is_cut(machine, Machine::Server(master))
        {
            self.at_server(master, |server, done| {
                server.acked.insert(at, offset);
                server.check_waits(done);
            });
        }
    }

    /// Whether a server runs and the sentinels reach it.
    fn is_seen(&self, server: usize) -> bool {
        let machine = Machine::Server(server);
        let votes = (0..self.plan.sentinels).filter(|i| self.net.reachable(Machine::Sentinel(*i), machine)).count();
        self.servers.borrow()[server].up
            && !self.net.is_paused(machine)
            && !self.net.is_off(machine)
            && votes * 2 > self.plan.sentinels
    }

    fn tick(&self) {
        let now = self.net.now();
        self.net.schedule(now + TICK, Event::Tick);
        for server in self.servers.borrow_mut().iter_mut().filter(|server| server.up) {
            server.store.now_ms = (EPOCH_MS + now).saturating_add_signed(server.clock_offset);
            if now % 1_000 < TICK {
                server.sync();
            }
            if now % 2_000 < TICK {
                server.copies.push_back(server.store.data.clone());
                if server.copies.len() > 8 {
                    server.copies.pop_front();
                }
            }
        }
        if self.plan.sentinels > 0 {
            self.watch(now);
        }
        if self.plan.min_replicas {
            self.count_replicas();
        }
        self.reattach(now);
    }

    /// The periodic check of the sentinels.
    fn watch(&self, now: u64) {
        let master = self.master.get();
        if self.is_seen(master) {
            self.missed.set(None);
        } else {
            let since = self.missed.get().unwrap_or(now);
            self.missed.set(Some(since));
            if now >= since + self.plan.down_after
                && let Some(next) = self.best_replica(master)
            {
                self.missed.set(None);
                self.promote(next, false);
            }
        }
        for i in 0..self.plan.servers {
            let astray = i != self.master.get() && !self.servers.borrow()[i].store.facts.replica;
            let waits = std::mem::replace(&mut self.replication.borrow_mut()[i].demotion, astray);
            if astray && !waits {
                let at = now + self.pick(500..8_000);
                self.net.schedule(at, Event::Demote(i));
            }
        }
    }

    /// A master without a replica rejects writes (`min-replicas-to-write`).
    fn count_replicas(&self) {
        let replication = self.replication.borrow();
        for (i, server) in self.servers.borrow_mut().iter_mut().enumerate() {
            let good = replication.iter().any(|replica| replica.of == Some(i) && replica.attached);
            let refuses = &mut server.store.facts.refuses_writes;
            match refuses.as_deref() {
                None if !good => *refuses = Some("NOREPLICAS Not enough good replicas to write.".to_owned()),
                Some(why) if good && why.starts_with("NOREPLICAS") => *refuses = None,
                _ => {}
            }
        }
    }

    fn best_replica(&self, master: usize) -> Option<usize> {
        let servers = self.servers.borrow();
        let there = |i: &usize| *i != master && self.is_seen(*i) && servers[*i].store.facts.replica;
        (0..self.plan.servers).filter(there).max_by_key(|i| servers[*i].store.facts.offset)
    }

    /// Replicas without a master attach to the current one.
    fn reattach(&self, now: u64) {
        let random = |range| self.pick(range);
        let mut later = Vec::new();
        for (i, replica) in self.replication.borrow_mut().iter_mut().enumerate() {
            if i == self.master.get() || replica.of.is_none() || replica.attached || replica.attaching {
                continue;
            }
            let master = if self.plan.sentinels > 0 { self.master.get() } else { 0 };
            replica.of = Some(master);
            replica.attaching = true;
            replica.attempt += 1;
            later.push((now + random(50..600), Event::Attach(i, replica.attempt)));
        }
        later.into_iter().for_each(|(at, event)| self.net.schedule(at, event));
    }

    fn attach(&self, at: usize, attempt: u64) {
        let master = {
            let replica = &mut self.replication.borrow_mut()[at];
            if replica.attempt != attempt {
                return;
            }
            replica.attaching = false;
            let Some(master) = replica.of else { return };
            master
        };
        let (here, there) = (Machine::Server(at), Machine::Server(master));
        let mut servers = self.servers.borrow_mut();
        let runs = |i: usize, machine| servers[i].up && !self.net.is_paused(machine) && !self.net.is_off(machine);
        if !runs(at, here)
            || !runs(master, there)
            || !self.net.reachable(here, there)
            || servers[master].store.facts.replica
        {
            return;
        }
        let (data, facts) = (servers[master].store.data.clone(), servers[master].store.facts.clone());
        let server = &mut servers[at];
        server.take_over(data);
        let own = &mut server.store.facts;
        (own.offset, own.replid, own.replid2) = (facts.offset, facts.replid, facts.replid2);
        (own.second_offset, own.replica, own.link_up) = (facts.second_offset, true, true);
        own.master = ("sim".to_owned(), there.port());
        servers[master].acked.insert(at, facts.offset);
        let replica = &mut self.replication.borrow_mut()[at];
        replica.attached = true;
        replica.inbox.clear();
        drop(servers);
        self.note(|| format!("server {at} has the data of server {master}"));
    }

    /// Promotes a replica. `level`: it applies everything that it received from its master first.
    fn promote(&self, at: usize, level: bool) {
        let (now, old) = (self.net.now(), self.master.get());
        if at == old {
            return;
        }
        {
            let mut replication = self.replication.borrow_mut();
            let replica = &mut replication[at];
            let inbox = std::mem::take(&mut replica.inbox);
            (replica.of, replica.attached) = (None, false);
            let server = &mut self.servers.borrow_mut()[at];
            if level {
                for (_, offset, unit) in inbox {
                    server.apply(&unit, offset);
                }
            }
            let facts = &mut server.store.facts;
            // A server that was never demoted keeps its replication ID.
            if facts.replica {
                facts.replid2 = std::mem::replace(&mut facts.replid, fresh_name(&mut self.random.borrow_mut()));
                facts.second_offset = facts.offset.cast_signed() + 1;
                facts.replica = false;
            }
            server.acked.clear();
            for (i, other) in replication.iter_mut().enumerate().filter(|(i, _)| *i != at && *i != old) {
                (other.of, other.attached, other.attaching) = (Some(at), false, false);
                other.attempt += 1;
                other.inbox.clear();
                let _ = i;
            }
        }
        let behind = {
            let servers = self.servers.borrow();
            servers[at].store.facts.offset < servers[old].store.facts.offset
        };
        self.lossy.set(self.lossy.get() || behind);
        self.master.set(at);
        self.count(|outcome| outcome.failovers += 1);
        let view = View { server: at, config_epoch: self.outcome.borrow().failovers };
        self.note(|| format!("server {at} replaces server {old} as the master; in sync: {}", !behind));
        self.kick(at);
        let first = self.pick(0..self.plan.sentinels.max(1) as u64) as usize;
        for sentinel in 0..self.plan.sentinels {
            let later = if sentinel == first { 0 } else { self.pick(0..1_500) };
            self.net.schedule(now + later, Event::View(sentinel, view));
        }
    }

    /// The sentinels name another master.
    fn name(&self, at: usize) {
        if self.is_seen(at) {
            self.promote(at, false);
        }
    }

    /// Closes a server's connections, as a sentinel does when it changes a server's role; in one of five cases it does
    /// not.
    fn kick(&self, at: usize) {
        if self.pick(0..5) == 0 {
            return self.at_server(at, Server::unblock_all);
        }
        let conns = self.servers.borrow_mut()[at].close_all();
        conns.into_iter().for_each(|conn| self.net.send_back(conn, Chunk::End));
    }

    /// Demotes a former master to a replica.
    fn demote(&self, at: usize) {
        self.replication.borrow_mut()[at].demotion = false;
        if at == self.master.get() || !self.is_seen(at) || self.servers.borrow()[at].store.facts.replica {
            return;
        }
        let master = self.master.get();
        self.servers.borrow_mut()[at].store.facts.replica = true;
        {
            let replica = &mut self.replication.borrow_mut()[at];
            (replica.of, replica.attached, replica.attaching) = (Some(master), false, false);
            replica.attempt += 1;
        }
        self.note(|| format!("server {at} is a replica of server {master} now"));
        self.kick(at);
    }

    fn ask_sentinel(&self, sentinel: usize, conn: Conn, bytes: &[u8]) {
        let mut inputs = self.sentinel_input.borrow_mut();
        let Some(input) = inputs.get_mut(&conn) else { return self.net.send_back(conn, Chunk::End) };
        input.extend_from_slice(bytes);
        let mut out = Vec::new();
        for command in take_commands(input) {
            let part = |at: usize| command.get(at).map(|part| text(part).to_ascii_uppercase()).unwrap_or_default();
            let reply = match (&*part(0), &*part(1)) {
                ("SENTINEL", "GET-MASTER-ADDR-BY-NAME") => {
                    address_reply(Machine::Server(self.views.borrow()[sentinel].server).port())
                }
                ("SENTINEL", "MASTER") => epoch_reply(self.views.borrow()[sentinel].config_epoch),
                ("CLIENT" | "SELECT" | "AUTH", _) => Reply::Status("OK"),
                ("PING", _) => Reply::Status("PONG"),
                _ => Reply::Error("ERR unknown command".to_owned()),
            };
            reply.write(&mut out);
        }
        if !out.is_empty() {
            self.net.send_back(conn, Chunk::Bytes(out));
        }
    }

    fn which(&self, which: Which) -> usize {
        match which {
            Which::Master => self.master.get(),
            Which::Other => (self.master.get() + 1) % self.plan.servers,
        }
    }

    fn begin(self: &Rc<Self>, number: usize) {
        let (_, fault) = self.plan.faults[number];
        let now = self.net.now();
        self.note(|| format!("fault {number}: {fault:?}"));
        self.count(|outcome| *outcome.faults.entry(fault.kind()).or_insert(0) += 1);
        let mut lasts = fault.lasts();
        let undo = match fault {
            Fault::PauseNode { node, .. } => {
                if !self.nodes.borrow()[node].is_alive() {
                    return;
                }
                self.nodes.borrow()[node].set_paused(true);
                self.net.pause(machine_of(node));
                Undo::Pause(machine_of(node))
            }
            Fault::KillNode { node, .. } => {
                if !self.nodes.borrow()[node].is_alive() {
                    return;
                }
                self.end_node(node);
                Undo::Revive(node)
            }
            Fault::StopNode { node, .. } => {
                let node = self.nodes.borrow()[node].clone();
                if !node.is_alive() {
                    return;
                }
                if !node.shut_down() {
                    // The process ends before the node has started, but it may have become a member already.
                    self.gave_up.set(true);
                }
                lasts = SHUTDOWN;
                Undo::ShutDown(node)
            }
            Fault::CutNode { node, which, ways, .. } => {
                let (node, server) = (machine_of(node), Machine::Server(self.which(which)));
                self.cut(match ways {
                    Ways::Both => vec![(node, server), (server, node)],
                    Ways::There => vec![(node, server)],
                    Ways::Back => vec![(server, node)],
                })
            }
            Fault::CutNodeFromSentinels { node, .. } => {
                let sentinels = (0..self.plan.sentinels).map(Machine::Sentinel);
                self.cut(sentinels.flat_map(|s| [(machine_of(node), s), (s, machine_of(node))]).collect())
            }
            Fault::LagNode { node, by, .. } => {
                self.net.set_lag(machine_of(node), by);
                Undo::Lag(machine_of(node))
            }
            Fault::StepNodeClock { node, by } => return self.nodes.borrow()[node].step_clock(by),
            Fault::ResetConnections { node } => return self.net.drop_node(node),
            Fault::LoseAnswers { count } => {
                self.servers.borrow_mut()[self.master.get()].lose_answers = count;
                return;
            }
            Fault::PauseServer { which, .. } => {
                let machine = Machine::Server(self.which(which));
                self.net.pause(machine);
                Undo::Pause(machine)
            }
            Fault::KillServer { which, end, back, .. } => {
                let server = self.which(which);
                match self.stop(server, end) {
                    Some(held) => Undo::Restart { server, back, held },
                    None => return,
                }
            }
            Fault::OldThenNew { copies, .. } => {
                let server = self.master.get();
                lasts = 500;
                match self.stop(server, End::Killed) {
                    Some(held) => Undo::Restart { server, back: Back::Copy(copies), held },
                    None => return,
                }
            }
            Fault::StepServerClock { which, by } => {
                self.servers.borrow_mut()[self.which(which)].clock_offset += by;
                return;
            }
            Fault::FullDisk { memory, .. } => {
                let server = self.master.get();
                let why = if memory {
                    "OOM command not allowed when used memory > 'maxmemory'."
                } else {
                    "MISCONF Errors writing to the AOF file: No space left on device"
                };
                self.servers.borrow_mut()[server].store.facts.refuses_writes = Some(why.to_owned());
                Undo::Full(server)
            }
            Fault::LagReplicas { by, .. } => {
                self.replication.borrow_mut().iter_mut().for_each(|replica| replica.lag = by);
                Undo::Replicas
            }
            Fault::Failover { level } => {
                let old = self.master.get();
                if let Some(next) = self.best_replica(old) {
                    self.promote(next, level);
                    let later = if level { 0 } else { self.pick(1..1_500) };
                    self.net.schedule(now + later, Event::Demote(old));
                }
                return;
            }
            Fault::Waver { times, ms } => {
                let old = self.master.get();
                let Some(other) = self.best_replica(old) else { return };
                self.promote(other, false);
                for (time, server) in (1..times).zip([old, other].into_iter().cycle()) {
                    self.net.schedule(now + time * ms, Event::Name(server));
                }
                // The server that is not the master by then is demoted.
                for server in [old, other] {
                    self.net.schedule(now + times * ms, Event::Demote(server));
                }
                return;
            }
            Fault::ThereAndBack { .. } => {
                let old = self.master.get();
                let Some(next) = self.best_replica(old) else { return };
                self.promote(next, false);
                self.net.schedule(now + 1, Event::Demote(old));
                Undo::Return(old)
            }
            Fault::IsolateMaster { split, .. } => {
                let master = Machine::Server(self.master.get());
                let mut others: Vec<Machine> = (0..self.plan.sentinels).map(Machine::Sentinel).collect();
                others.extend((0..self.plan.servers).map(Machine::Server).filter(|machine| *machine != master));
                if split {
                    others.extend((1..self.plan.nodes).map(machine_of));
                }
                self.cut(others.into_iter().flat_map(|machine| [(master, machine), (machine, master)]).collect())
            }
        };
        self.undo.borrow_mut().insert(number, undo);
        self.net.schedule(now + lasts.max(1), Event::Heal(number));
    }

    fn cut(&self, ways: Vec<(Machine, Machine)>) -> Undo {
        ways.iter().for_each(|(from, to)| self.net.cut(*from, *to));
        Undo::Cuts(ways)
    }

    /// Ends a server's process. Returns the data that it had.
    fn stop(&self, at: usize, end: End) -> Option<Data> {
        let mut servers = self.servers.borrow_mut();
        let server = &mut servers[at];
        if !server.up {
            return None;
        }
        let held = server.store.data.clone();
        server.end(end, &mut self.random.borrow_mut());
        drop(servers);
        let machine = Machine::Server(at);
        if end == End::PowerLoss {
            self.net.switch(machine, false);
        } else {
            self.net.conns_to(machine).into_iter().for_each(|conn| self.net.send_back(conn, Chunk::End));
        }
        let replica = &mut self.replication.borrow_mut()[at];
        replica.attached = false;
        if end == End::PowerLoss {
            replica.inbox.clear();
        }
        Some(held)
    }

    fn start(&self, at: usize, data: Option<Data>) {
        let random = &mut self.random.borrow_mut();
        {
            let server = &mut self.servers.borrow_mut()[at];
            if let Some(data) = data {
                server.take_over(data);
            }
            (server.up, server.started) = (true, self.net.now());
            server.lose_answers = 0;
            server.acked.clear();
            let facts = &mut server.store.facts;
            (facts.run_id, facts.replid) = (fresh_name(random), fresh_name(random));
            facts.replid2 = "0".repeat(40);
            (facts.second_offset, facts.refuses_writes) = (-1, None);
        }
        let mut replication = self.replication.borrow_mut();
        for (i, replica) in replication.iter_mut().enumerate() {
            if i == at || replica.of == Some(at) {
                replica.attached = false;
                replica.inbox.clear();
            }
        }
    }

    fn heal(self: &Rc<Self>, number: usize) {
        let Some(undo) = self.undo.borrow_mut().remove(&number) else { return };
        let now = self.net.now();
        self.note(|| format!("fault {number} is over"));
        match undo {
            Undo::Cuts(ways) => ways.into_iter().for_each(|(from, to)| self.net.restore(from, to)),
            Undo::Pause(machine) => {
                self.net.resume(machine);
                if let Machine::Node(i) = machine
                    && !self.net.is_paused(machine)
                {
                    self.nodes.borrow()[i].set_paused(false);
                }
            }
            Undo::Restart { server, back, held } => {
                let data = match back {
                    Back::Kept => None,
                    Back::Empty => Some(Data::default()),
                    Back::Copy(n) => {
                        let copies = &self.servers.borrow()[server].copies;
                        Some(copies.get(copies.len().saturating_sub(n)).cloned().unwrap_or_default())
                    }
                };
                let off = self.net.is_off(Machine::Server(server));
                let kept = match self.plan.persistence {
                    Persistence::None => false,
                    Persistence::EverySecond => !off,
                    Persistence::Always => true,
                };
                if server == self.master.get() && (back != Back::Kept || !kept) {
                    self.lossy.set(true);
                }
                if off {
                    self.net.switch(Machine::Server(server), true);
                }
                self.start(server, data);
                self.note(|| format!("server {server} has restarted: {back:?}"));
                if let Fault::OldThenNew { ms, .. } = self.plan.faults[number].1 {
                    self.undo.borrow_mut().insert(number, Undo::Newer { server, held });
                    self.net.schedule(now + ms, Event::Heal(number));
                }
            }
            Undo::Newer { server, held } => {
                if self.stop(server, End::Killed).is_some() {
                    self.start(server, Some(held));
                    self.note(|| format!("server {server} has restarted with its newer data"));
                }
            }
            Undo::Lag(machine) => self.net.set_lag(machine, 0),
            Undo::Full(server) => self.servers.borrow_mut()[server].store.facts.refuses_writes = None,
            Undo::Replicas => self.replication.borrow_mut().iter_mut().for_each(|replica| replica.lag = 0),
            Undo::Return(old) => {
                if old != self.master.get() && self.is_seen(old) && self.servers.borrow()[old].store.facts.replica {
                    let before = self.master.get();
                    self.promote(old, false);
                    self.net.schedule(now + 1, Event::Demote(before));
                }
            }
            Undo::ShutDown(node) => {
                let index = node.index;
                // The node may have been killed and restarted in the meantime.
                if node.is_alive() {
                    self.end_node(index);
                    if let Fault::StopNode { ms, .. } = self.plan.faults[number].1 {
                        self.undo.borrow_mut().insert(number, Undo::Revive(index));
                        self.net.schedule(now + ms, Event::Heal(number));
                    }
                }
            }
            Undo::Revive(node) => self.revive(node),
        }
    }

    /// Ends a node's process.
    fn end_node(&self, node: usize) {
        self.nodes.borrow()[node].kill();
        self.count_node(node);
        for client in self.clients.borrow_mut().iter_mut() {
            client.node_ended(node, self);
        }
    }

    fn revive(self: &Rc<Self>, node: usize) {
        let offset = self.nodes.borrow()[node].clock_offset();
        let fresh = Node::start(self, node, self.fork(), offset);
        self.nodes.borrow_mut()[node] = fresh;
    }

    /// Adds the counters of a node to the results, before it ends.
    fn count_node(&self, node: usize) {
        let node = self.nodes.borrow()[node].clone();
        self.count(|outcome| {
            outcome.restored += node.metrics.get(Counter::EventsRestored);
            outcome.lost += node.metrics.get(Counter::EventsLost);
        });
    }

    /// Ends all remaining faults.
    fn calm_down(self: &Rc<Self>) {
        let left: Vec<usize> = self.undo.borrow().keys().copied().collect();
        left.into_iter().for_each(|number| self.heal(number));
        let left: Vec<usize> = self.undo.borrow().keys().copied().collect();
        left.into_iter().for_each(|number| self.heal(number));
        self.net.heal();
        for node in self.nodes.borrow().iter() {
            node.set_paused(false);
        }
        for server in self.servers.borrow_mut().iter_mut() {
            server.lose_answers = 0;
        }
        self.calm.set(true);
        self.note(|| "the last fault is over".to_owned());
    }

    async fn pump_until_ready(self: &Rc<Self>) {
        let calm = self.net.now();
        loop {
            let nodes = self.nodes.borrow().clone();
            let problem = nodes.iter().find_map(|node| Some((node.index, node.problem()?)));
            let now = self.net.now();
            match problem {
                None => {
                    self.count(|outcome| outcome.ready_after = now - calm);
                    return;
                }
                Some((node, problem)) if now > calm + READY_WITHIN => {
                    return self.fail(format!(
                        "not ready: node {node} is not ready {READY_WITHIN} ms after the last fault: {problem}"
                    ));
                }
                Some(_) => self.pump(now + 100).await,
            }
        }
    }

    /// Waits until all publishers are done and all clients are connected.
    async fn pump_until_quiet(self: &Rc<Self>) {
        let deadline = self.net.now() + READY_WITHIN;
        loop {
            let away = self.clients.borrow().iter().filter(|client| !client.is_online()).count();
            if self.publishing.get() == 0 && away == 0 {
                return;
            }
            if self.net.now() > deadline {
                let publishing = self.publishing.get();
                return self
                    .fail(format!("not quiet: {publishing} publishers still retry, {away} clients are not connected"));
            }
            self.pump(self.net.now() + 100).await;
        }
    }

    /// Waits until slow clients have read their backlog. The oracle then judges what is missing.
    async fn pump_until_read(self: &Rc<Self>) {
        let deadline = self.net.now() + READY_WITHIN;
        self.pump(self.net.now() + 3_000).await;
        while self.oracle.borrow().misses_any() && self.net.now() < deadline {
            self.pump(self.net.now() + 500).await;
        }
    }

    /// Checks the final state, when nothing is left to do.
    async fn check(self: &Rc<Self>) {
        let nodes = self.nodes.borrow().clone();
        for node in &nodes {
            let (epoch, head, entries) = node.window();
            self.note(|| format!("node {} is at {}", node.index, crate::node::position_text(epoch, head)));
            for (sequence, id) in entries {
                if let Some(event) = id.strip_prefix('e').and_then(|number| number.parse().ok()) {
                    self.oracle.borrow_mut().note_position(event, (epoch, sequence));
                }
            }
        }
        let stands: Vec<(u64, u64)> = nodes.iter().map(|node| (node.window().0, node.window().1)).collect();
        if stands.iter().any(|stand| *stand != stands[0]) {
            self.fail(format!("not level: the nodes are at different positions at the end: {stands:x?}"));
        }
        self.oracle.borrow_mut().check();
        let mut presence = self.presence(&nodes[0]).await;
        // A client that has stopped reading may be about to be closed.
        for _ in 0..PRESENCE_TRIES {
            if presence.is_ok() {
                break;
            }
            self.pump(self.net.now() + 2_000).await;
            self.pump_until_quiet().await;
            presence = self.presence(&nodes[0]).await;
        }
        if let Err(why) = presence {
            self.fail(format!("presence: {why}"));
        }
        let outcome = self.outcome.borrow().clone();
        let hindered = self.plan.faults.iter().any(|(_, fault)| fault.hinders_nodes());
        // Once IDs of evicted events are lost, an `event_id` is an uncertain cursor.
        let ids_lost = nodes.iter().any(|node| node.lineage().contains('?'));
        let resets = outcome.gaps_reset - if ids_lost { outcome.uncertain.min(outcome.gaps_reset) } else { 0 };
        // No node knows what an ended node was acknowledged by a server that is gone. A node that is away for long is
        // given up, and a node that the server does not answer for long is no longer informed.
        let faults = || self.plan.faults.iter().map(|(_, fault)| fault);
        // A node that could not start in time has ended too, possibly after it became a member.
        let killed = self.gave_up.get() || faults().any(|fault| matches!(fault, Fault::KillNode { .. }));
        let silent = longest_disruption(&self.plan.faults);
        // After a takeover by the only replica, the new master rejects writes until the old one is its replica.
        let alone = self.plan.min_replicas && self.plan.servers == 2 && outcome.failovers > 0;
        let silent = alone || silent + outcome.failovers * self.plan.down_after >= GIVEN_UP;
        let replaced = outcome.failovers > 0 || faults().any(Fault::ends_servers);
        if resets > 0 && !self.lossy.get() && !(replaced && (killed || silent)) {
            self.fail(format!("budget: {resets} resets, although Redis lost nothing"));
        } else if resets > 0 && !hindered && !killed && !silent {
            self.fail(format!("budget: {resets} resets, although a node that could restore everything kept running"));
        }
        if self.plan.faults.is_empty() && outcome.gaps_expired > 0 {
            self.fail(format!("budget: {} gaps without a fault", outcome.gaps_expired));
        }
    }

    /// Whether the list of connections matches the connections.
    async fn presence(self: &Rc<Self>, node: &Rc<Node>) -> Result<(), String> {
        for user in 0..self.plan.users {
            let (name, mut wanted) = {
                let clients = self.clients.borrow();
                let of_user: Vec<_> = clients.iter().skip(user).step_by(self.plan.users).collect();
                let Some(first) = of_user.first() else { continue };
                (first.user().clone(), of_user.iter().map(|client| client.connection()).collect::<Vec<_>>())
            };
            let answer = Rc::new(RefCell::new(None));
            let (to, asked) = (answer.clone(), node.clone());
            let of = name.clone();
            tokio::task::spawn_local(async move {
                let there = asked.of_user(of).await;
                *to.borrow_mut() = Some(there);
            });
            self.pump(self.net.now() + 20).await;
            let Some(Some(there)) = answer.take() else {
                return Err(format!("no list of connections of {name}"));
            };
            let mut there: Vec<_> = there.into_iter().map(|client| client.connection).collect();
            there.sort();
            wanted.sort();
            if there != wanted {
                let differs = |one: &ConnectionId| there.contains(one) != wanted.contains(one);
                let wrong: Vec<_> =
                    there.iter().chain(&wanted).filter(|one| differs(one)).map(ToString::to_string).collect();
                let (there, wanted, wrong) = (there.len(), wanted.len(), wrong.join(", "));
                return Err(format!(
                    "{there} connections of {name} are listed, but there are {wanted}; they differ in: {wrong}"
                ));
            }
        }
        Ok(())
    }

    fn finish(&self) -> Outcome {
        for node in 0..self.plan.nodes {
            self.count_node(node);
        }
        let mut outcome = self.outcome.borrow().clone();
        let oracle = self.oracle.borrow();
        outcome.violations.clone_from(&oracle.violations);
        outcome.deliveries = oracle.clients.iter().map(|client| client.deliveries).sum();
        outcome.published = oracle.events.len() as u64;
        outcome.acknowledged = oracle.events.iter().filter(|event| event.acknowledged.is_some()).count() as u64;
        outcome.duplicates = oracle.duplicates_acknowledged;
        outcome.lossy = self.lossy.get();
        outcome.simulated_ms = self.net.now();
        outcome.trace = self.trace.get();
        outcome
    }
}

/// The longest time, in milliseconds, for which nodes were without answers or prevented from working, with no more than
/// [`MIN_INTERVAL`] in between.
fn longest_disruption(faults: &[(u64, Fault)]) -> u64 {
    let hinders = |fault: &Fault| fault.silences_servers() || fault.hinders_nodes();
    let (mut longest, mut stretch) = (0, (0, 0));
    // The faults are sorted by their beginning.
    for (begin, fault) in faults.iter().filter(|(_, fault)| hinders(fault)) {
        let end = begin + fault.lasts();
        stretch = if longest > 0 && *begin <= stretch.1 + MIN_INTERVAL {
            (stretch.0, stretch.1.max(end))
        } else {
            (*begin, end)
        };
        longest = longest.max(stretch.1 - stretch.0);
    }
    longest
}

/// Publishes all events of one publisher, each until it is acknowledged.
async fn publish_all(world: Rc<World>, publisher: usize) {
    let own: Vec<Publish> =
        world.plan.publishes.iter().filter(|publish| publish.publisher == publisher).cloned().collect();
    for publish in own {
        sleep_until(world.net.instant(publish.at)).await;
        if world.plan.pipelined[publisher] {
            world.publishing.set(world.publishing.get() + 1);
            let world = world.clone();
            tokio::task::spawn_local(async move {
                publish_one(&world, &publish.events).await;
                world.publishing.set(world.publishing.get() - 1);
            });
        } else {
            publish_one(&world, &publish.events).await;
        }
    }
    world.publishing.set(world.publishing.get() - 1);
}

async fn publish_one(world: &Rc<World>, events: &[EventAudience]) {
    let now = world.net.now();
    let numbers: Vec<u32> = events.iter().map(|audience| world.oracle.borrow_mut().publish(*audience, now)).collect();
    let batch: Vec<_> = numbers
        .iter()
        .zip(events)
        .filter_map(|(number, audience)| {
            let text = format!(r#"{{"type":"sim","event_id":"e{number}","data":{{"n":{number}}}}}"#);
            let event = Draft::parse(&text).and_then(|draft| draft.finish(EPOCH_MS, String::new)).ok()?;
            Some((event, audience_of(*audience, &world.clients.borrow())))
        })
        .collect();
    loop {
        let node = world.nodes.borrow()[world.pick(0..world.plan.nodes as u64) as usize].clone();
        let answer = if node.is_alive() {
            timeout(Duration::from_secs(7), node.publish(batch.clone())).await.ok().flatten()
        } else {
            None
        };
        match answer {
            Some(Ok(places)) => {
                let now = world.net.now();
                for (number, outcome) in numbers.iter().zip(places) {
                    let position = (outcome.position.epoch, outcome.position.sequence);
                    world.oracle.borrow_mut().acknowledged(*number, position, outcome.duplicate, now);
                }
                world.note(|| format!("e{numbers:?} acknowledged by node {}", node.index));
                return;
            }
            Some(Err(error)) => world.note(|| format!("e{numbers:?} not accepted by node {}: {error}", node.index)),
            None => {}
        }
        let pause = world.pick(20..400);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

fn audience_of(audience: EventAudience, clients: &[Client]) -> Audience {
    match audience {
        EventAudience::Everyone => Audience::Everyone,
        EventAudience::User(user) => Audience::User(format!("u{user}").into()),
        EventAudience::Topic(topic) => Audience::Topic(format!("t{topic}").into()),
        EventAudience::Client(client) => Audience::Connection(clients[client].connection()),
    }
}

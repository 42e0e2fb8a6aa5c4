//! A node: the real backend, window, session table and sessions, driven by the simulation instead of the hub's threads.

use crate::{
    client::connection_of,
    net::{Machine, Net},
    world::World,
};
use fanfare::{
    Audience, BrokerError, Event, Revocation,
    broker::{
        BrokerFuture, ControlMessage, Log, LogFollower, Record, SharedWindow,
        redis::{RedisBroker, RedisOptions, RedisUrl},
    },
    environment::{self, Dialing, Environment, Task},
    metrics::Metrics,
    presence::{ConnectionInfo, Presence},
};
use fanfare_core::{
    CloseCode, ConnectionId, Grant, Lineage, Position,
    lineage::tag,
    session::{ConnectRequest, Denied, Settings},
    session_table::{Served, SessionTable, Slot},
    time::Now,
    window::Window,
    ws,
};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    rc::{Rc, Weak},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{sync::Notify, time::sleep_until};

/// The wall clock at the start of the simulation, in milliseconds since 1970.
pub(crate) const EPOCH_MS: u64 = 1_800_000_000_000;

/// The process of a node, which can be paused: all tasks of the node run inside it.
#[derive(Debug)]
pub(crate) struct Process {
    net: Arc<Net>,
    node: usize,
    paused: Cell<bool>,
    dead: Cell<bool>,
    wakers: RefCell<BTreeMap<u64, Waker>>,
    tasks: Cell<u64>,
    random: RefCell<fastrand::Rng>,
    clock_offset: Cell<i64>,
    own: RefCell<Weak<Self>>,
}

impl Process {
    fn new(net: Arc<Net>, node: usize, random: fastrand::Rng, clock_offset: i64) -> Rc<Self> {
        let process = Rc::new(Self {
            net,
            node,
            paused: Cell::new(false),
            dead: Cell::new(false),
            wakers: RefCell::default(),
            tasks: Cell::new(0),
            random: RefCell::new(random),
            clock_offset: Cell::new(clock_offset),
            own: RefCell::default(),
        });
        *process.own.borrow_mut() = Rc::downgrade(&process);
        process
    }

    /// Runs a closure as this process.
    pub(crate) fn enter<T>(self: &Rc<Self>, act: impl FnOnce() -> T) -> T {
        let world: Rc<dyn Environment> = self.clone();
        environment::enter(&world, act)
    }

    pub(crate) fn run(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        self.tasks.set(self.tasks.get() + 1);
        tokio::task::spawn_local(Gated { process: self.clone(), number: self.tasks.get(), task: Some(Box::pin(task)) });
    }

    fn wake(&self) {
        let wakers: Vec<Waker> = self.wakers.borrow().values().cloned().collect();
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Environment for Process {
    fn now(&self) -> Now {
        let ms = self.net.now();
        Now { mono_ms: ms + 1_000, unix_ms: (EPOCH_MS + ms).saturating_add_signed(self.clock_offset.get()) }
    }

    fn fill(&self, bytes: &mut [u8]) {
        self.random.borrow_mut().fill(bytes);
    }

    fn dial(&self, _host: &str, port: u16) -> Dialing {
        self.net.dial(self.node, port)
    }

    fn spawn(&self, task: Task) {
        if let Some(own) = self.own.borrow().upgrade() {
            own.run(task);
        }
    }
}

/// A task that is polled only while its process runs.
struct Gated {
    process: Rc<Process>,
    number: u64,
    task: Option<Task>,
}

impl Future for Gated {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let process = self.process.clone();
        if process.dead.get() {
            let task = self.task.take();
            process.enter(|| drop(task));
            return Poll::Ready(());
        }
        let mut wakers = process.wakers.borrow_mut();
        if !wakers.get(&self.number).is_some_and(|held| held.will_wake(cx.waker())) {
            wakers.insert(self.number, cx.waker().clone());
        }
        drop(wakers);
        if process.paused.get() {
            return Poll::Pending;
        }
        let Some(task) = self.task.as_mut() else { return Poll::Ready(()) };
        process.enter(|| task.as_mut().poll(cx))
    }
}

impl Drop for Gated {
    fn drop(&mut self) {
        self.process.wakers.borrow_mut().remove(&self.number);
    }
}

/// Input of a node from its clients.
#[derive(Debug)]
pub(crate) enum Input {
    Connect(Box<ConnectRequest>, usize, u64),
    Bytes(u64, Vec<u8>),
    /// The client can accept more bytes.
    Writable(u64),
    /// The client's socket has ended.
    Gone(u64),
}

/// The node as the backend sees it.
#[derive(Debug)]
pub(crate) struct Follower {
    window: SharedWindow,
    wake: Arc<Notify>,
    orders: Mutex<VecDeque<ControlMessage>>,
    open: AtomicUsize,
    present: Mutex<Vec<Option<ConnectionInfo>>>,
}

impl LogFollower for Follower {
    fn window(&self) -> &SharedWindow {
        &self.window
    }

    fn wake(&self) {
        self.wake.notify_one();
    }

    fn handle_control(&self, order: ControlMessage) {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).push_back(order);
        self.wake.notify_one();
    }

    fn revocations(&self) -> Vec<Revocation> {
        Vec::new()
    }

    fn connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    fn clients(&self, of_user: Option<&str>) -> BrokerFuture<'_, Vec<ConnectionInfo>> {
        let present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = |client: &&ConnectionInfo| of_user.is_none_or(|user| *client.user == *user);
        let clients = present.iter().flatten().filter(wanted).cloned().collect();
        Box::pin(std::future::ready(Ok(clients)))
    }

    fn clients_from(&self, place: u64, count: usize) -> BrokerFuture<'_, (Vec<ConnectionInfo>, Option<u64>)> {
        let present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        let from = usize::try_from(place).unwrap_or(usize::MAX).min(present.len());
        let to = from.saturating_add(count).min(present.len());
        let clients = present[from..to].iter().flatten().cloned().collect();
        let next = (to < present.len()).then_some(to as u64);
        Box::pin(std::future::ready(Ok((clients, next))))
    }

    fn answer(&self, _question: String) -> BrokerFuture<'_, Option<String>> {
        Box::pin(std::future::ready(Ok(None)))
    }
}

/// A process of a node, from its start to its end.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) index: usize,
    pub(crate) process: Rc<Process>,
    pub(crate) follower: Arc<Follower>,
    pub(crate) metrics: Arc<Metrics>,
    broker: RefCell<Option<Rc<RedisBroker>>>,
    inputs: RefCell<VecDeque<Input>>,
    wake: Arc<Notify>,
}

/// A client's socket at a node.
#[derive(Debug)]
struct Socket {
    client: usize,
    attempt: u64,
}

impl Node {
    /// Starts a process, which connects to Redis and then serves clients.
    pub(crate) fn start(world: &Rc<World>, index: usize, random: fastrand::Rng, clock_offset: i64) -> Rc<Self> {
        let process = Process::new(world.net.clone(), index, random, clock_offset);
        let wake = Arc::new(Notify::new());
        let bounds = world.plan.bounds;
        let node = Rc::new(Self {
            index,
            process: process.clone(),
            follower: Arc::new(Follower {
                window: SharedWindow::new(Window::new(Lineage::new(0), 0, bounds)),
                wake: wake.clone(),
                orders: Mutex::default(),
                open: AtomicUsize::new(0),
                present: Mutex::default(),
            }),
            metrics: Arc::default(),
            broker: RefCell::default(),
            inputs: RefCell::default(),
            wake,
        });
        process.run(node.clone().live(world.clone()));
        node
    }

    async fn live(self: Rc<Self>, world: Rc<World>) {
        let url: RedisUrl = match world.plan.url().parse() {
            Ok(url) => url,
            Err(error) => return world.fail(format!("invalid URL: {error}")),
        };
        let name = loop {
            let random = u64::from_be_bytes(self.random());
            let name = format!("node{}-{random:016x}", self.index);
            let options = RedisOptions::new(url.clone());
            let connecting = RedisBroker::connect(
                options,
                world.plan.bounds,
                name.clone(),
                self.follower.clone(),
                self.metrics.clone(),
            );
            match connecting.await {
                Ok(broker) => {
                    *self.broker.borrow_mut() = Some(Rc::new(broker));
                    break name;
                }
                // A service manager would restart it: another process, with another name.
                Err(error) => {
                    world.note(|| format!("node {} did not start: {error}", self.index));
                    world.gave_up.set(true);
                }
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        };
        world.note(|| format!("node {} serves clients as {name}", self.index));
        self.serve(world).await;
    }

    fn random(&self) -> [u8; 8] {
        let mut bytes = [0; 8];
        self.process.fill(&mut bytes);
        bytes
    }

    /// The work of the hub's shards.
    async fn serve(self: Rc<Self>, world: Rc<World>) {
        let (epoch, head) = {
            let window = self.follower.window.read();
            (window.epoch(), window.head())
        };
        let mut shard = Shard {
            sessions: SessionTable::new(settings(), epoch, head),
            sockets: Vec::new(),
            slots: BTreeMap::new(),
            node: self.clone(),
            world,
        };
        let mut wanted_ms = u64::MAX;
        loop {
            let now = self.process.now();
            shard.turn(wanted_ms, now);
            wanted_ms = shard.sessions.next_due().unwrap_or(u64::MAX);
            if shard.sessions.has_ready() {
                tokio::task::yield_now().await;
                continue;
            }
            let due = self.process.net.instant(wanted_ms.saturating_sub(1_000).min(1 << 40));
            tokio::select! {
                biased;
                () = self.wake.notified() => {}
                () = sleep_until(due) => {}
            }
        }
    }

    pub(crate) fn input(&self, input: Input) {
        self.inputs.borrow_mut().push_back(input);
        self.wake.notify_one();
    }

    pub(crate) fn broker(&self) -> Option<Rc<RedisBroker>> {
        self.broker.borrow().clone()
    }

    /// Why the node is not ready; `None` if it is.
    pub(crate) fn problem(&self) -> Option<String> {
        match self.broker() {
            None => Some("the node has not started".to_owned()),
            Some(broker) => self.process.enter(|| broker.status().problem),
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        !self.process.dead.get()
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.process.paused.get()
    }

    pub(crate) fn set_paused(&self, paused: bool) {
        self.process.paused.set(paused);
        if !paused {
            self.process.wake();
        }
    }

    pub(crate) fn step_clock(&self, by_ms: i64) {
        self.process.clock_offset.set(self.process.clock_offset.get() + by_ms);
    }

    pub(crate) fn clock_offset(&self) -> i64 {
        self.process.clock_offset.get()
    }

    /// Shuts down the backend, as at the end of a graceful shutdown. Returns whether the node had started.
    pub(crate) fn shut_down(&self) -> bool {
        let broker = self.broker();
        if let Some(broker) = &broker {
            self.process.enter(|| broker.stop());
        }
        broker.is_some()
    }

    /// Kills the process.
    pub(crate) fn kill(&self) {
        self.process.dead.set(true);
        self.process.wake();
        self.process.net.drop_node(self.index);
        let broker = self.broker.take();
        self.process.enter(|| drop(broker));
    }

    /// The part of the upgrade of a client that comes before its shard.
    pub(crate) fn connect(self: &Rc<Self>, mut request: ConnectRequest, client: usize, attempt: u64) {
        if request.connection.epoch_tag() == 0 && request.last_event_id.is_none() {
            request.connection = connection_of(client, tag(self.follower.window.read().epoch()));
        }
        let node = self.clone();
        self.process.run(async move {
            // The listener opens once the node is connected to Redis.
            let Some(broker) = node.broker() else { return };
            if let Some(last) = request.last_event_id.as_deref() {
                let gap = node.follower.window.read().start(Some(last), request.connection).gap;
                // If that takes long, the client disconnects and tries another node.
                if gap.is_some_and(|gap| gap.missed.is_none()) && broker.catch_up().await.is_err() {
                    return;
                }
            }
            node.input(Input::Connect(Box::new(request), client, attempt));
        });
    }

    /// Publishes, as a publisher's request does; `None`: the process ended without a response.
    pub(crate) async fn publish(
        self: &Rc<Self>,
        events: Vec<(Event, Audience)>,
    ) -> Option<Result<Vec<fanfare::broker::Appended>, BrokerError>> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let node = self.clone();
        self.process.run(async move {
            let Some(broker) = node.broker() else { return };
            let record = |(event, audience)| Record { event, audience, publisher: None, trace: None };
            let _ = reply.send(broker.append(events.into_iter().map(record).collect()).await);
        });
        answer.await.ok()
    }

    /// The connections of a user, as this node reads them from Redis.
    pub(crate) async fn of_user(self: &Rc<Self>, user: Arc<str>) -> Option<Vec<ConnectionInfo>> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let node = self.clone();
        self.process.run(async move {
            let Some(broker) = node.broker() else { return };
            let _ = reply.send(broker.of_user(&user).await.ok());
        });
        answer.await.ok().flatten()
    }

    pub(crate) fn lineage(&self) -> String {
        self.follower.window.read().lineage().to_string()
    }

    /// The window's epoch, its head, and its entries as sequence and event ID.
    pub(crate) fn window(&self) -> (u64, u64, Vec<(u64, String)>) {
        let window = self.follower.window.read();
        let entries = window.since(window.floor()).map(|entry| (entry.sequence, entry.event_id.to_string())).collect();
        (window.epoch(), window.head(), entries)
    }
}

fn settings() -> Settings {
    Settings {
        heartbeat_ms: 10_000,
        timeout_ms: 25_000,
        close_ms: 2_000,
        limits: ws::Limits { max_frame_bytes: 65_536, max_message_bytes: 65_536 },
        frames_per_second: 0,
        max_topics: 10,
        warn_ms: 60_000,
        echo: false,
    }
}

/// The sessions of a node, and the state of their delivery.
struct Shard {
    sessions: SessionTable,
    sockets: Vec<Option<Socket>>,
    slots: BTreeMap<u64, Slot>,
    node: Rc<Node>,
    world: Rc<World>,
}

impl Shard {
    fn turn(&mut self, wanted_ms: u64, now: Now) {
        self.sessions.woken(wanted_ms, now);
        self.pull(now);
        self.handle_control(now);
        self.take_inputs(now);
        self.sessions.timeouts(now, &mut |_, _| true);
        for _ in 0..256 {
            let Some(slot) = self.sessions.next_ready() else { break };
            self.serve(slot, now);
        }
        self.node.follower.open.store(self.sessions.len(), Ordering::Relaxed);
        self.sessions.take_deliveries();
        self.sessions.take_acknowledged();
        let tally = self.sessions.take_tally();
        self.world.count_gaps(tally.gaps_expired, tally.gaps_reset);
    }

    /// Takes new entries from the window, as the hub's shards do.
    fn pull(&mut self, now: Now) {
        let mut entries = Vec::new();
        let news = self.sessions.look(&self.node.follower.window.read(), now, &mut entries);
        self.sessions.take_news(news, &entries);
    }

    fn handle_control(&mut self, now: Now) {
        loop {
            let order = self.node.follower.orders.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            match order {
                None => return,
                Some(ControlMessage::Replaced { connection, came_ms, sure }) => {
                    let Some(slot) = self.sessions.holder(connection) else { continue };
                    if self.present(slot).is_some_and(|present| present.came_ms == came_ms) {
                        let (code, reason) = CloseCode::of_duplicate(sure);
                        self.sessions.close(slot, code, reason, now);
                    }
                }
                Some(_) => {}
            }
        }
    }

    fn present(&self, slot: Slot) -> Option<ConnectionInfo> {
        let present = self.node.follower.present.lock().unwrap_or_else(PoisonError::into_inner);
        present.get(slot as usize).cloned().flatten()
    }

    fn take_inputs(&mut self, now: Now) {
        let inputs = self.node.inputs.take();
        for input in inputs {
            match input {
                Input::Connect(request, client, attempt) => self.connect(*request, client, attempt, now),
                Input::Bytes(attempt, mut bytes) => {
                    if let Some(&slot) = self.slots.get(&attempt) {
                        self.sessions.input(slot, &mut bytes, now, &|_| {
                            Err(Denied { code: "token_invalid", message: String::new() })
                        });
                    }
                }
                Input::Writable(attempt) => {
                    if let Some(&slot) = self.slots.get(&attempt) {
                        self.sessions.writable(slot);
                    }
                }
                Input::Gone(attempt) => {
                    if let Some(&slot) = self.slots.get(&attempt) {
                        self.drop_socket(slot);
                    }
                }
            }
        }
    }

    fn connect(&mut self, request: ConnectRequest, client: usize, attempt: u64, now: Now) {
        let (connection, user) = (request.connection, request.grant.user.clone());
        let (start, replayed) = {
            let window = self.node.follower.window.read();
            if window.epoch() != self.sessions.epoch() {
                self.sessions.adopt(&window, now);
            }
            let start = window.start(request.last_event_id.as_deref(), connection);
            (start, window.count(start.cursor, request.viewer()))
        };
        let slot = self.sessions.connect(request, start, replayed, now);
        let at = slot as usize;
        if self.sockets.len() <= at {
            self.sockets.resize_with(at + 1, || None);
        }
        self.sockets[at] = Some(Socket { client, attempt });
        self.slots.insert(attempt, slot);
        let node = format!("{}", self.node.index);
        let present = ConnectionInfo {
            connection,
            user,
            node: node.into(),
            since_ms: now.unix_ms,
            came_ms: now.mono_ms,
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            unlimited: false,
        };
        {
            let mut all = self.node.follower.present.lock().unwrap_or_else(PoisonError::into_inner);
            if all.len() <= at {
                all.resize(at + 1, None);
            }
            all[at] = Some(present.clone());
        }
        if let Some(broker) = self.node.broker() {
            broker.arrived(present);
        }
    }

    fn serve(&mut self, slot: Slot, now: Now) {
        let Some(Some(Socket { client, attempt })) = self.sockets.get(slot as usize) else { return };
        let (client, attempt) = (*client, *attempt);
        let (mut broken, mut clients) = (false, self.world.clients.borrow_mut());
        let served = self.sessions.serve(slot, &self.node.follower.window, now, &mut |slices| match clients[client]
            .take(attempt, slices, &self.world)
        {
            Some(taken) => taken,
            None => {
                broken = true;
                0
            }
        });
        drop(clients);
        let deaf = self.sessions.session(slot).is_some_and(|session| session.is_deaf() && !session.has_output());
        if broken || deaf || served == Served::Finished {
            self.drop_socket(slot);
        }
    }

    fn drop_socket(&mut self, slot: Slot) {
        self.sessions.remove(slot);
        let Some(Socket { client, attempt }) = self.sockets.get_mut(slot as usize).and_then(Option::take) else {
            return;
        };
        self.slots.remove(&attempt);
        let present = self.node.follower.present.lock().unwrap_or_else(PoisonError::into_inner)[slot as usize].take();
        if let (Some(broker), Some(present)) = (self.node.broker(), present)
            && self.sessions.holder(present.connection).is_none()
        {
            broker.left(present.connection, &present.user, present.came_ms);
        }
        self.world.clients.borrow_mut()[client].socket_ended(attempt, &self.world);
    }
}

/// The text form of a position, for messages.
pub(crate) fn position_text(epoch: u64, sequence: u64) -> String {
    Position { epoch, sequence }.to_string()
}

/// The connect request of a client with its token.
pub(crate) fn request(
    user: &Arc<str>,
    topics: &[Arc<str>],
    connection: ConnectionId,
    last_event_id: Option<String>,
) -> ConnectRequest {
    let grant = Grant { user: user.clone(), topics: vec!["*".into()], ..Grant::default() };
    ConnectRequest::new(grant, connection, last_event_id, topics.iter().map(|topic| &**topic), 10)
}

/// The machine of a node.
pub(crate) fn machine_of(index: usize) -> Machine {
    Machine::Node(index)
}

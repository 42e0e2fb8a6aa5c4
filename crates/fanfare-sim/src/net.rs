//! The network, and the queue of all future events. Knows bytes and machines, and nothing of the protocols.

use fanfare::environment::{Dialing, Stream};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    time::Instant,
};

/// A machine: a node, a server of Redis, or a sentinel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Machine {
    Node(usize),
    Server(usize),
    Sentinel(usize),
}

impl Machine {
    /// The port of a server or sentinel.
    pub(crate) fn port(self) -> u16 {
        match self {
            Self::Node(i) => 8_000 + i as u16,
            Self::Server(i) => 7_000 + i as u16,
            Self::Sentinel(i) => 9_000 + i as u16,
        }
    }

    fn at(port: u16) -> Option<Self> {
        match port {
            7_000..8_000 => Some(Self::Server(usize::from(port - 7_000))),
            9_000.. => Some(Self::Sentinel(usize::from(port - 9_000))),
            _ => None,
        }
    }
}

/// The number of a connection.
pub(crate) type Conn = u64;

/// A sentinel's view of the master.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) server: usize,
    /// The number of failovers that led to it.
    pub(crate) config_epoch: u64,
}

/// A future event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The first packet of a connection arrives at the server.
    Open(Conn),
    /// Bytes arrive at the server.
    ToServer(Conn),
    /// Bytes, or the response to the first packet, arrive at the node.
    ToNode(Conn),
    /// A blocking command times out.
    Timeout(usize, Conn, u64),
    /// A replica may have commands to apply.
    Replicate(usize),
    /// A replica receives the data set of its master. The second number identifies the attempt.
    Attach(usize, u64),
    /// A sentinel learns which server is the master.
    View(usize, View),
    /// A server becomes a replica, if another server is the master by then.
    Demote(usize),
    /// The sentinels name a server as the master.
    Name(usize),
    /// Servers and sentinels run their periodic checks.
    Tick,
    /// A fault begins.
    Fault(usize),
    /// A fault ends.
    Heal(usize),
    /// A client takes the steps that are due.
    Client(usize),
}

/// A packet.
#[derive(Debug)]
pub(crate) enum Chunk {
    Bytes(Vec<u8>),
    /// The other end accepted the connection.
    Accepted,
    /// The other end closed or refused the connection, or no longer knows it.
    End,
}

#[derive(Debug)]
struct Wire {
    node: usize,
    to: Machine,
    out: VecDeque<(u64, Chunk)>,
    back: VecDeque<(u64, Chunk)>,
    inbox: VecDeque<u8>,
    accepted: bool,
    /// The node's end has received the end of the connection.
    ended: bool,
    /// The node's end has been closed.
    dropped: bool,
    /// Packets are held by a cut or a pause, on the way to the server or back.
    parked: (bool, bool),
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Inner {
    start: Instant,
    queue: BinaryHeap<Reverse<(u64, u32, u64, Queued)>>,
    sequence: u64,
    wires: BTreeMap<Conn, Wire>,
    next: Conn,
    random: fastrand::Rng,
    /// The number of cuts of each direction.
    cuts: BTreeMap<(Machine, Machine), u32>,
    /// The latency that each machine adds to a packet, in milliseconds.
    lag: BTreeMap<Machine, u64>,
    /// Machines that are paused.
    paused: BTreeMap<Machine, u32>,
    /// Machines that are switched off: no packet arrives there.
    off: BTreeMap<Machine, u32>,
}

/// Always equal in comparisons: the queue is ordered by the fields before it.
#[derive(Debug)]
struct Queued(Event);

impl PartialEq for Queued {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

/// The network.
#[derive(Debug)]
pub(crate) struct Net {
    inner: Mutex<Inner>,
    pub(crate) news: Notify,
}

impl Net {
    pub(crate) fn new(random: fastrand::Rng) -> Arc<Self> {
        let inner = Inner {
            start: Instant::now(),
            queue: BinaryHeap::new(),
            sequence: 0,
            wires: BTreeMap::new(),
            next: 0,
            random,
            cuts: BTreeMap::new(),
            lag: BTreeMap::new(),
            paused: BTreeMap::new(),
            off: BTreeMap::new(),
        };
        Arc::new(Self { inner: Mutex::new(inner), news: Notify::new() })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Milliseconds since the simulation began.
    pub(crate) fn now(&self) -> u64 {
        self.inner().now()
    }

    /// Converts a simulated time to an instant.
    pub(crate) fn instant(&self, ms: u64) -> Instant {
        self.inner().start + std::time::Duration::from_millis(ms)
    }

    pub(crate) fn schedule(&self, at: u64, event: Event) {
        self.inner().schedule(at, event);
        self.news.notify_one();
    }

    /// The time of the next event.
    pub(crate) fn next_at(&self) -> Option<u64> {
        self.inner().queue.peek().map(|Reverse((at, ..))| *at)
    }

    /// The next event, if it is due.
    pub(crate) fn pop(&self) -> Option<Event> {
        let mut inner = self.inner();
        let now = inner.now();
        if inner.queue.peek().is_none_or(|Reverse((at, ..))| *at > now) {
            return None;
        }
        inner.queue.pop().map(|Reverse((.., Queued(event)))| event)
    }

    /// Opens a connection from a node.
    pub(crate) fn dial(self: &Arc<Self>, node: usize, port: u16) -> Dialing {
        let net = self.clone();
        Box::pin(async move {
            let to = Machine::at(port).ok_or_else(|| io::Error::other("no such machine"))?;
            let conn = {
                let mut inner = net.inner();
                inner.next += 1;
                let conn = inner.next;
                let wire = Wire {
                    node,
                    to,
                    out: VecDeque::new(),
                    back: VecDeque::new(),
                    inbox: VecDeque::new(),
                    accepted: false,
                    ended: false,
                    dropped: false,
                    parked: (false, false),
                    waker: None,
                };
                inner.wires.insert(conn, wire);
                let at = inner.now() + inner.delay(Machine::Node(node), to);
                inner.schedule(at, Event::Open(conn));
                conn
            };
            net.news.notify_one();
            let stream = SimStream { net, conn };
            std::future::poll_fn(|cx| stream.poll_accepted(cx)).await?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }

    /// Returns where a packet arrives, if it can arrive now. Otherwise it waits until [`release`](Self::release).
    pub(crate) fn arrives_at_server(&self, conn: Conn) -> Option<(usize, Machine)> {
        let mut inner = self.inner();
        let (node, to) = inner.wires.get(&conn).map(|wire| (wire.node, wire.to))?;
        let passes = inner.passes(Machine::Node(node), to);
        if let Some(wire) = inner.wires.get_mut(&conn)
            && !passes
        {
            wire.parked.0 = true;
        }
        passes.then_some((node, to))
    }

    /// Takes the packets that arrived at the server.
    pub(crate) fn take_out(&self, conn: Conn) -> Vec<Chunk> {
        let mut inner = self.inner();
        let now = inner.now();
        let Some(wire) = inner.wires.get_mut(&conn) else { return Vec::new() };
        let mut chunks = Vec::new();
        while let Some((_, chunk)) = wire.out.pop_front_if(|(due, _)| *due <= now) {
            chunks.push(chunk);
        }
        chunks
    }

    /// Sends a packet back to the node.
    pub(crate) fn send_back(&self, conn: Conn, chunk: Chunk) {
        let mut inner = self.inner();
        let Some((node, to)) = inner.wires.get(&conn).map(|wire| (wire.node, wire.to)) else { return };
        let at = inner.now() + inner.delay(to, Machine::Node(node));
        let Some(wire) = inner.wires.get_mut(&conn) else { return };
        let at = wire.back.back().map_or(at, |(due, _)| at.max(*due));
        wire.back.push_back((at, chunk));
        inner.schedule(at, Event::ToNode(conn));
        drop(inner);
        self.news.notify_one();
    }

    /// A packet arrives at a node.
    pub(crate) fn arrive_at_node(&self, conn: Conn) {
        let mut inner = self.inner();
        let now = inner.now();
        let Some((node, to)) = inner.wires.get(&conn).map(|wire| (wire.node, wire.to)) else { return };
        // The kernel receives packets while its process is stopped.
        let passes = !inner.is_cut(to, Machine::Node(node));
        let Some(wire) = inner.wires.get_mut(&conn) else { return };
        if !passes {
            wire.parked.1 = true;
            return;
        }
        while let Some((_, chunk)) = wire.back.pop_front_if(|(due, _)| *due <= now) {
            match chunk {
                Chunk::Bytes(bytes) => wire.inbox.extend(bytes),
                Chunk::Accepted => wire.accepted = true,
                Chunk::End => wire.ended = true,
            }
        }
        let waker = wire.waker.take();
        inner.forget(conn);
        drop(inner);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Closes a node's ends of its connections, because its process ended, and notifies the servers.
    pub(crate) fn drop_node(&self, node: usize) {
        let wakers: Vec<Waker> = {
            let mut inner = self.inner();
            let now = inner.now();
            let conns: Vec<Conn> =
                inner.wires.iter().filter(|(_, wire)| wire.node == node && !wire.dropped).map(|(c, _)| *c).collect();
            let mut wakers = Vec::new();
            for conn in conns {
                let Some(wire) = inner.wires.get_mut(&conn) else { continue };
                wire.ended = true;
                wakers.extend(wire.waker.take());
                let to = wire.to;
                let at = now + inner.delay(Machine::Node(node), to);
                if let Some(wire) = inner.wires.get_mut(&conn) {
                    wire.out.push_back((at, Chunk::End));
                }
                inner.schedule(at, Event::ToServer(conn));
            }
            wakers
        };
        wakers.into_iter().for_each(Waker::wake);
        self.news.notify_one();
    }

    /// The connections to a server.
    pub(crate) fn conns_to(&self, to: Machine) -> Vec<Conn> {
        self.inner().wires.iter().filter(|(_, wire)| wire.to == to).map(|(conn, _)| *conn).collect()
    }

    pub(crate) fn is_cut(&self, from: Machine, to: Machine) -> bool {
        self.inner().is_cut(from, to)
    }

    /// Whether packets pass between two machines in both directions.
    pub(crate) fn reachable(&self, a: Machine, b: Machine) -> bool {
        let inner = self.inner();
        !inner.is_cut(a, b) && !inner.is_cut(b, a)
    }

    pub(crate) fn cut(&self, from: Machine, to: Machine) {
        *self.inner().cuts.entry((from, to)).or_insert(0) += 1;
    }

    pub(crate) fn restore(&self, from: Machine, to: Machine) {
        self.inner().lower(|inner| &mut inner.cuts, (from, to));
        self.release();
    }

    pub(crate) fn pause(&self, machine: Machine) {
        *self.inner().paused.entry(machine).or_insert(0) += 1;
    }

    pub(crate) fn resume(&self, machine: Machine) {
        self.inner().lower(|inner| &mut inner.paused, machine);
        self.release();
    }

    pub(crate) fn is_paused(&self, machine: Machine) -> bool {
        self.inner().paused.contains_key(&machine)
    }

    /// Switches a machine on or off. Packets to a machine that is off are lost.
    pub(crate) fn switch(&self, machine: Machine, on: bool) {
        if on {
            self.inner().lower(|inner| &mut inner.off, machine);
        } else {
            *self.inner().off.entry(machine).or_insert(0) += 1;
        }
    }

    pub(crate) fn is_off(&self, machine: Machine) -> bool {
        self.inner().off.contains_key(&machine)
    }

    pub(crate) fn set_lag(&self, machine: Machine, ms: u64) {
        self.inner().lag.insert(machine, ms);
    }

    /// Ends all cuts, latencies and pauses, and switches all machines on.
    pub(crate) fn heal(&self) {
        {
            let mut inner = self.inner();
            inner.cuts.clear();
            inner.lag.clear();
            inner.paused.clear();
            inner.off.clear();
        }
        self.release();
    }

    /// Delivers held packets that can pass now.
    fn release(&self) {
        let mut inner = self.inner();
        let now = inner.now();
        let parked: Vec<(Conn, usize, Machine, (bool, bool))> = inner
            .wires
            .iter()
            .filter(|(_, wire)| wire.parked != (false, false))
            .map(|(conn, wire)| (*conn, wire.node, wire.to, wire.parked))
            .collect();
        for (conn, node, to, (out, back)) in parked {
            let node = Machine::Node(node);
            if out && inner.passes(node, to) {
                let at = now + inner.delay(node, to);
                let accepted = inner.wires.get_mut(&conn).is_some_and(|wire| {
                    wire.parked.0 = false;
                    wire.accepted || !wire.out.is_empty()
                });
                inner.schedule(at, if accepted { Event::ToServer(conn) } else { Event::Open(conn) });
            }
            if back && !inner.is_cut(to, node) {
                let at = now + inner.delay(to, node);
                if let Some(wire) = inner.wires.get_mut(&conn) {
                    wire.parked.1 = false;
                }
                inner.schedule(at, Event::ToNode(conn));
            }
        }
        drop(inner);
        self.news.notify_one();
    }
}

impl Inner {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn schedule(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        // Events of the same time occur in random order.
        let tie = self.random.u32(..);
        self.queue.push(Reverse((at, tie, self.sequence, Queued(event))));
    }

    fn delay(&mut self, from: Machine, to: Machine) -> u64 {
        let lag = |machine| self.lag.get(&machine).copied().unwrap_or(0);
        let (base, jitter) = (lag(from) + lag(to), self.random.u64(0..16));
        // Usually a millisecond; sometimes a few more.
        base + if jitter == 0 { self.random.u64(1..8) } else { 1 }
    }

    fn is_cut(&self, from: Machine, to: Machine) -> bool {
        self.cuts.contains_key(&(from, to))
    }

    fn passes(&self, from: Machine, to: Machine) -> bool {
        !self.is_cut(from, to) && !self.paused.contains_key(&to) && !self.off.contains_key(&to)
    }

    fn lower<K: Ord + Copy>(&mut self, map: impl FnOnce(&mut Self) -> &mut BTreeMap<K, u32>, key: K) {
        let map = map(self);
        if let Some(count) = map.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                map.remove(&key);
            }
        }
    }

    /// Removes a connection that both ends have closed.
    fn forget(&mut self, conn: Conn) {
        if self.wires.get(&conn).is_some_and(|wire| wire.dropped && wire.ended) {
            self.wires.remove(&conn);
        }
    }
}

/// A node's end of a connection.
#[derive(Debug)]
struct SimStream {
    net: Arc<Net>,
    conn: Conn,
}

impl SimStream {
    fn poll_accepted(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.net.inner();
        let Some(wire) = inner.wires.get_mut(&self.conn) else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        };
        if wire.ended {
            return Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into()));
        }
        if wire.accepted {
            return Poll::Ready(Ok(()));
        }
        wire.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncRead for SimStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.net.inner();
        let Some(wire) = inner.wires.get_mut(&self.conn) else { return Poll::Ready(Ok(())) };
        if wire.inbox.is_empty() {
            if wire.ended {
                return Poll::Ready(Ok(()));
            }
            wire.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let (front, _) = wire.inbox.as_slices();
        let n = front.len().min(buf.remaining());
        buf.put_slice(&front[..n]);
        wire.inbox.drain(..n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.net.inner();
        let ends = inner.wires.get(&self.conn).filter(|wire| !wire.ended).map(|wire| (wire.node, wire.to));
        let Some((node, to)) = ends else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
        let at = inner.now() + inner.delay(Machine::Node(node), to);
        let at = inner.wires.get_mut(&self.conn).map_or(at, |wire| {
            let at = wire.out.back().map_or(at, |(due, _)| at.max(*due));
            wire.out.push_back((at, Chunk::Bytes(buf.to_vec())));
            at
        });
        inner.schedule(at, Event::ToServer(self.conn));
        drop(inner);
        self.net.news.notify_one();
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        let mut inner = self.net.inner();
        let Some(wire) = inner.wires.get_mut(&self.conn) else { return };
        wire.dropped = true;
        let (node, to, ended) = (wire.node, wire.to, wire.ended);
        if !ended {
            let at = inner.now() + inner.delay(Machine::Node(node), to);
            if let Some(wire) = inner.wires.get_mut(&self.conn) {
                let at = wire.out.back().map_or(at, |(due, _)| at.max(*due));
                wire.out.push_back((at, Chunk::End));
                wire.ended = true;
                inner.schedule(at, Event::ToServer(self.conn));
            }
        }
        drop(inner);
        self.net.news.notify_one();
    }
}

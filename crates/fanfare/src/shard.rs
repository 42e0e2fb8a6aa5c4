//! A thread that runs a poll loop and owns sockets and their sessions. No other thread accesses them.
//!
//! The protocol is implemented by the sessions in `fanfare_core`. A shard passes them the bytes it reads, and offers
//! them the sockets to write to.

use crate::{
    clock,
    config::held_sockets,
    mailbox::{Command, DeliverySummary, NewConnection, Rejection, RequestTime, ShardHandle},
    metrics::{ByType, Counter, Measure, Metrics},
    node::Node,
    presence::ConnectionInfo,
    refusals::Identity,
    socket::Socket,
    status::{ClientLag, SLOW, SlowClient},
    trace::Written,
    why::{ClientAndEvent, ClientDetails, ClientFate, ClosedConnection, LiveDetails},
};
use fanfare_core::{
    CloseCode, ConnectionId, Position,
    audience::SYSTEM_TOPIC,
    session::{ConnectRequest, DeliveryState, SessionCounters, Settings},
    session_table::{DeliveryCount, Served, SessionTable, Slot},
    time::{Now, iso_8601},
    window::{Entry, GapReason},
};
use mio::{Events, Interest, Poll, Token, Waker, event::Event};
use std::{
    collections::VecDeque,
    io,
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

/// Maximum number of bytes read at once. One buffer serves all sockets of a shard.
const READ_BYTES: usize = 64 << 10;
/// Number of reads from one socket before the other sockets are read.
const READS_IN_A_ROW: usize = 4;
/// Number of served sessions after which the clock is read.
const SERVES_PER_CLOCK_READ: usize = 32;
/// Time limit for a delivery pass, after which the shard reads its sockets again.
const DELIVERY_PASS: Duration = Duration::from_millis(2);
/// Close reason for a client whose token was revoked.
const REVOKED: &str = "token_revoked: the token was revoked; get a new one";

/// Time for which a draining shard without clients keeps running. Clients whose upgrade was in progress when the drain
/// began then receive a close code instead of a reset.
const LINGER_MS: u64 = 250;
/// Interval of the node's housekeeping.
const HOUSEKEEPING_MS: u64 = 1_000;

const WAKER: Token = Token(usize::MAX);

/// A socket, with the state that its session does not have.
#[derive(Debug)]
struct Conn {
    socket: Socket,
    /// The address that it counts against, while it counts against the limits.
    counted: Option<IpAddr>,
    /// When its request was read.
    came: Now,
    /// The number of its request.
    request: u32,
    /// The socket may have more bytes to read.
    unread: bool,
    /// The sending side was shut down.
    shut: bool,
}

impl Conn {
    /// Reads until a frame arrives or the socket is empty. Returns false if the socket is closed.
    fn read_before_timeout(
        &mut self,
        slot: Slot,
        sessions: &mut SessionTable,
        scratch: &mut [u8],
        node: &Node,
        now: Now,
    ) -> bool {
        for _ in 0..READS_IN_A_ROW {
            let silent = sessions.session(slot).is_some_and(|session| session.heard_ms() < now.mono_ms);
            if !silent || !sessions.wants_input(slot) {
                break;
            }
            match self.socket.read(scratch) {
                Ok(0) => return false,
                Ok(n) => {
                    sessions.input(slot, &mut scratch[..n], now, &|token| node.verify_in_band(token));
                    self.unread = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.unread = false;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}

/// The state of a shard's thread.
pub(crate) struct Shard {
    node: Arc<Node>,
    handle: Arc<ShardHandle>,
    poll: Poll,
    sessions: SessionTable,
    conns: Vec<Option<Conn>>,
    /// Sockets to read again although no readiness event is pending for them.
    unread: Vec<Slot>,
    /// Sockets that count against no limit and are not closed yet, oldest first: sockets of rejected clients, and
    /// sockets that a newer one replaced.
    closing: VecDeque<Slot>,
    entries: Vec<Arc<Entry>>,
    scratch: Box<[u8]>,
    /// Runs the node's housekeeping. Set for the first shard only.
    housekeeping: Option<Box<dyn Fn(u64) + Send>>,
    housekeeping_due: u64,
    draining: Option<Draining>,
}

/// The state of a drain.
#[derive(Debug)]
struct Draining {
    /// The earliest time at which the shard may end.
    from_ms: u64,
    until_ms: u64,
    reason: String,
    /// Clients that are not disconnected yet. A client is disconnected only after it was served up to `head`, so that
    /// it receives all events published before the drain.
    leaving: Vec<Slot>,
    head: u64,
    /// The remaining capacity of the current wave. `None` once no further client can be disconnected in it.
    wave: Option<usize>,
}

impl Drop for Shard {
    /// Runs however the shard ended, also after a panic. Dropping the inbox drops the reply channels of its commands.
    fn drop(&mut self) {
        self.handle.close();
    }
}

impl Shard {
    pub(crate) fn new(node: Arc<Node>, settings: Settings, head: Position) -> io::Result<Self> {
        let poll = Poll::new()?;
        let handle = Arc::new(ShardHandle::new(Waker::new(poll.registry(), WAKER)?));
        Ok(Self {
            node,
            handle,
            poll,
            sessions: SessionTable::new(settings, head.epoch, head.sequence),
            conns: Vec::new(),
            unread: Vec::new(),
            closing: VecDeque::new(),
            entries: Vec::new(),
            scratch: vec![0; READ_BYTES].into(),
            housekeeping: None,
            housekeeping_due: 0,
            draining: None,
        })
    }

    pub(crate) fn handle(&self) -> &Arc<ShardHandle> {
        &self.handle
    }

    /// Makes this shard run the node's housekeeping. `act` receives the time in Unix milliseconds.
    pub(crate) fn set_housekeeping(&mut self, act: impl Fn(u64) + Send + 'static) {
        self.housekeeping = Some(Box::new(act));
    }

    /// Runs the loop until the shard is drained.
    ///
    /// The order of the steps matters. Sockets are read before timeouts are handled, so that frames that have arrived
    /// count as a sign of life. Sessions are served before a drain wave, which disconnects only clients that have
    /// received all events. Counters are reported last, so that they include the whole iteration.
    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(1_024);
        let mut now = clock::now();
        while !self.is_drained() {
            let wanted_ms = self.wake_ms(now);
            let wait =
                (wanted_ms < u64::MAX).then(|| Duration::from_millis(wanted_ms.saturating_sub(clock::now().mono_ms)));
            if let Err(error) = self.poll.poll(&mut events, wait)
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "a shard failed to poll its sockets and ends; its clients are disconnected");
                return;
            }
            let woken = Instant::now();
            now = clock::now();
            self.note_pause(wanted_ms, now);
            // The wake-up flag is cleared before the window and the inbox are read: a later wake-up is not lost.
            self.handle.clear_wake_up();
            self.pull(now);
            self.handle_commands(now);
            for event in &events {
                self.react(event, now);
            }
            self.read_on(now);
            self.timeouts(now);
            self.run_housekeeping(now);
            self.serve_ready(now);
            self.drain_wave(now);
            self.report();
            let busy_us = u64::try_from(woken.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.handle.busy_us.fetch_add(busy_us, Ordering::Relaxed);
            self.node.metrics.measure(Measure::Loop, busy_us);
        }
    }

    /// The time until which the loop may sleep, on the monotonic clock. `now` is the time of the previous iteration.
    fn wake_ms(&self, now: Now) -> u64 {
        if self.sessions.has_ready() || !self.unread.is_empty() {
            return now.mono_ms;
        }
        let due = self.sessions.next_due().unwrap_or(u64::MAX);
        let due = if self.housekeeping.is_some() { due.min(self.housekeeping_due) } else { due };
        let end = |draining: &Draining| {
            let empty = self.sessions.occupied() == 0;
            if empty { draining.from_ms.min(draining.until_ms) } else { draining.until_ms }
        };
        due.min(self.draining.as_ref().map_or(u64::MAX, end))
    }

    /// Records a pause of the process or the machine. The paused time does not count towards any timeout.
    fn note_pause(&mut self, wanted_ms: u64, now: Now) {
        let paused_ms = self.sessions.woken(wanted_ms, now);
        if paused_ms > 0 {
            self.node.metrics.add(Counter::Pauses, 1);
            tracing::warn!(
                paused_ms,
                "a shard was paused: the process was stopped, or the machine was frozen or overloaded; timeouts of its \
                 clients are extended by the pause"
            );
            if let Some(draining) = &mut self.draining {
                draining.until_ms = draining.until_ms.saturating_add(paused_ms);
            }
        }
    }

    /// Handles the timers that are due. The socket of a silent client is read before the client is timed out: after a
    /// pause many sockets hold unread frames.
    fn timeouts(&mut self, now: Now) {
        let Self { sessions, conns, scratch, node, unread, .. } = self;
        let mut gone = Vec::new();
        sessions.timeouts(now, &mut |sessions, slot| {
            let Some(Some(conn)) = conns.get_mut(slot as usize) else { return true };
            let there = conn.read_before_timeout(slot, sessions, scratch, node, now);
            if !there {
                gone.push(slot);
            } else if conn.unread {
                unread.push(slot);
            }
            there
        });
        gone.into_iter().for_each(|slot| self.drop_conn(slot));
    }

    fn is_drained(&self) -> bool {
        let over = |draining: &Draining| {
            let now = clock::now().mono_ms;
            now >= draining.until_ms || (now >= draining.from_ms && self.sessions.occupied() == 0)
        };
        self.draining.as_ref().is_some_and(over)
    }

    /// Reads new entries from the window.
    fn pull(&mut self, now: Now) {
        let mut entries = std::mem::take(&mut self.entries);
        let epoch = self.sessions.epoch();
        let news = self.sessions.look(&self.node.window.read(), now, &mut entries);
        if let Some(draining) = &mut self.draining
            && self.sessions.epoch() != epoch
        {
            // Entries that the log lost can never be delivered, so the drain must not wait for them.
            draining.head = draining.head.min(self.sessions.head());
        }
        self.sessions.take_news(news, &entries);
        entries.clear();
        self.entries = entries;
    }

    fn handle_commands(&mut self, now: Now) {
        let commands = self.handle.take_commands();
        for command in commands {
            match command {
                Command::Register(new) => self.register(new, now),
                Command::Close(connection, code, reason) => {
                    if let Some(slot) = self.sessions.holder(connection) {
                        self.sessions.close(slot, code, &reason, now);
                    }
                }
                Command::CloseIfOlder { connection, came_ms, sure } => {
                    self.close_if_older(connection, came_ms, sure, now);
                }
                Command::MeasureLag(reply) => {
                    let (clients, farthest) = self.sessions.behind();
                    // The requester may have stopped waiting.
                    let _ = reply.send(ClientLag { clients, farthest });
                }
                Command::SendStatus(text) => self.sessions.tell_sys(&text, now),
                Command::Slowest(reply) => {
                    let slow = self.sessions.slowest(SLOW).into_iter().map(|(session, behind_events)| SlowClient {
                        connection_id: session.connection().to_string(),
                        user_id: session.user().to_string(),
                        behind_events,
                    });
                    let _ = reply.send(slow.collect());
                }
                Command::Trace(entry, user, reply) => {
                    let _ = reply.send(self.trace(&entry, user.as_deref()));
                }
                Command::Inspect(connection, reply) => {
                    let _ = reply.send(self.inspect(connection, now));
                }
                Command::List(user, reply) => {
                    // The requester may have stopped waiting.
                    let _ = reply.send(self.list(user.as_deref()));
                }
                Command::ListFrom(from, count, reply) => {
                    let _ = reply.send(self.list_from(from, count));
                }
                Command::Revoke(revocation) => {
                    let ended = self.sessions.revoke(&revocation, REVOKED, now);
                    self.node.metrics.add(Counter::TokensRevoked, ended as u64);
                }
                Command::CloseUser(user, code, reason) => {
                    self.sessions.close_user(&user, code, &reason, now);
                }
                Command::Drain { reason, until_ms } => self.drain(reason, until_ms, now),
                Command::DrainWave(wave) => {
                    if let Some(draining) = &mut self.draining {
                        draining.wave = Some(wave);
                    }
                }
            }
        }
    }

    fn close_if_older(&mut self, connection: ConnectionId, came_ms: u64, sure: bool, now: Now) {
        let Some(slot) = self.sessions.holder(connection) else { return };
        let came = self.conns.get(slot as usize).and_then(Option::as_ref).map(|conn| conn.came.mono_ms);
        if came == Some(came_ms) {
            self.node.metrics.add(Counter::Takeovers, 1);
            let (code, reason) = CloseCode::of_duplicate(sure);
            self.sessions.close(slot, code, reason, now);
        }
    }

    fn trace(&self, entry: &Entry, user: Option<&str>) -> DeliverySummary {
        let head = self.sessions.head();
        let mut summary = DeliverySummary { connected: self.sessions.len(), ..DeliverySummary::default() };
        for session in self.sessions.concerned(&entry.audience) {
            summary.matched += 1;
            match session.delivery_state(entry.sequence, head) {
                DeliveryState::Before => summary.came_later += 1,
                DeliveryState::Waiting => summary.waiting += 1,
                DeliveryState::Passed => {}
            }
        }
        let slots = user.into_iter().flat_map(|user| self.sessions.slots_of(user));
        let sessions = slots.filter_map(|slot| self.sessions.session(slot)).filter(|session| session.is_open());
        let of_user = sessions.map(|session| ClientAndEvent {
            connection_id: session.connection().to_string(),
            fate: match session.delivery_state(entry.sequence, head) {
                _ if !session.viewer().sees(&entry.audience) => ClientFate::NotInAudience,
                DeliveryState::Before => ClientFate::CameLater,
                DeliveryState::Waiting => ClientFate::Waiting,
                DeliveryState::Passed => ClientFate::Written,
            },
        });
        DeliverySummary { of_user: of_user.collect(), ..summary }
    }

    fn inspect(&self, connection: ConnectionId, now: Now) -> Option<ClientDetails> {
        let slot = self.sessions.holder(connection)?;
        let (session, present) = (self.sessions.session(slot)?, self.present(slot)?);
        let head = self.sessions.head();
        let cursor = session.position(Position { epoch: self.sessions.epoch(), sequence: head });
        let window = self.node.window.read();
        let last = window.last_seen(cursor.sequence, session.viewer());
        let last = last.filter(|entry| session.delivery_state(entry.sequence, head) == DeliveryState::Passed);
        let live = LiveDetails {
            admin: session.is_admin(),
            topics: session.topics().iter().map(ToString::to_string).collect(),
            last_frame_ms_ago: now.mono_ms.saturating_sub(session.heard_ms()),
            overdue: session.is_overdue(),
            waiting_bytes: session.waiting_bytes(),
            last_event_id: last.map(|entry| entry.event_id.to_string()),
        };
        Some(ClientDetails {
            connection_id: connection.to_string(),
            user_id: present.user.to_string(),
            node: present.node.to_string(),
            connected_at: iso_8601(present.since_ms),
            address: present.address.to_string(),
            cursor: cursor.to_string(),
            behind_events: head.saturating_sub(cursor.sequence),
            round_trip_ms: session.round_trip_ms(),
            live: Some(live),
            closed: None,
        })
    }

    fn list(&self, user: Option<&str>) -> Vec<ConnectionInfo> {
        let of_user = user.map(|user| self.sessions.slots_of(user).collect::<Vec<_>>());
        let slots = of_user.unwrap_or_else(|| self.sessions.slots().collect());
        slots.into_iter().filter_map(|slot| self.present(slot)).collect()
    }

    fn list_from(&self, from: usize, count: usize) -> (Vec<ConnectionInfo>, Option<usize>) {
        let slots = from..self.conns.len().min(from.saturating_add(count));
        let next = Some(slots.end).filter(|next| *next < self.conns.len());
        (slots.filter_map(|slot| self.present(Slot::try_from(slot).ok()?)).collect(), next)
    }

    fn present(&self, slot: Slot) -> Option<ConnectionInfo> {
        let session = self.sessions.session(slot).filter(|session| session.is_open())?;
        let conn = self.conns.get(slot as usize)?.as_ref()?;
        Some(ConnectionInfo {
            connection: session.connection(),
            user: session.user().clone(),
            node: self.node.name.clone(),
            since_ms: conn.came.unix_ms,
            came_ms: conn.came.mono_ms,
            address: conn.counted?,
            unlimited: session.is_admin(),
        })
    }

    fn register(&mut self, new: Box<NewConnection>, now: Now) {
        let NewConnection { socket, mut leftover, address, came, client } = *new;
        let (slot, counted) = match client.and_then(|request| self.admit(request, address, came, now)) {
            Ok((request, older)) => {
                let slot = self.connect(request, address, now);
                older.into_iter().for_each(|older| self.note_closing(older, now));
                (slot, Some(address))
            }
            Err(Rejection { code, reason }) => (self.sessions.refuse(code, &reason, now), None),
        };
        let at = slot as usize;
        if self.conns.len() <= at {
            self.conns.resize_with(at + 1, || None);
        }
        let conn = self.conns[at].insert(Conn {
            socket,
            counted,
            came: came.at,
            request: came.number,
            unread: false,
            shut: false,
        });
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(conn.socket.source(), Token(at), interest) {
            tracing::warn!(%error, "failed to register a socket with the poller; the connection is dropped");
            return self.drop_conn(slot);
        }
        if conn.socket.may_hold_input() {
            conn.unread = true;
            self.unread.push(slot);
        }
        if counted.is_none() {
            self.note_closing(slot, now);
        }
        if let (Some(presence), Some(client)) = (self.node.presence(), self.present(slot)) {
            presence.arrived(client);
        }
        if !leftover.is_empty() {
            self.sessions.input(slot, &mut leftover, now, &|token| self.node.verify_in_band(token));
        }
    }

    /// Records a closing connection. The number of file descriptors for closing connections is limited: beyond it, the
    /// oldest one is closed immediately. Its close frame is sent, but the hub does not wait until the client has read
    /// it.
    fn note_closing(&mut self, slot: Slot, now: Now) {
        let shards = self.node.shards().len().max(1);
        let most = (held_sockets(self.node.config.max_connections).0 / shards).max(1);
        self.closing.push_back(slot);
        if self.closing.len() > most
            && let Some(&oldest) = self.closing.front()
        {
            self.serve(oldest, now);
            // Serving it may already have closed it.
            if self.closing.front() == Some(&oldest) {
                self.drop_conn(oldest);
            }
        }
    }

    /// Counts a client against the limits. If the connection has an older socket, the client takes over its place: the
    /// older socket, if any, is returned and counts no longer.
    fn admit(
        &mut self,
        request: ConnectRequest,
        address: IpAddr,
        came: RequestTime,
        now: Now,
    ) -> Result<(ConnectRequest, Option<Slot>), Rejection> {
        if self.draining.is_some() {
            return Err(Rejection { code: CloseCode::Restart, reason: "the hub is shutting down".to_owned() });
        }
        if self.node.is_revoked(&request.grant) {
            // The token was revoked after the handshake verified it. Revocations are stored before the shards are
            // notified, so a revocation is found either here or by `Command::Revoke`.
            return Err(Rejection { code: CloseCode::Policy, reason: REVOKED.to_owned() });
        }
        let holder = self.sessions.holder(request.connection);
        let older = holder.and_then(|slot| self.conns.get_mut(slot as usize)?.as_mut());
        if older.as_ref().is_some_and(|held| came.is_before(held.came, held.request)) {
            // This request waited for the log, and its client has connected again since.
            return Err(Rejection { code: CloseCode::Replaced, reason: CloseCode::REPLACED.to_owned() });
        }
        let replaced = older.as_ref().and_then(|conn| conn.counted);
        let user = &request.grant.user;
        let may_have_any = request.grant.admin;
        let (node, identity) = (&self.node, Identity::Connection(request.connection));
        node.admission.admit(user, may_have_any, address, replaced, &node.config).map_err(|limit| {
            node.metrics.add(limit.counter(), 1);
            node.refusals.note(identity, now.mono_ms, node.config.refusal_delay);
            Rejection::from(limit)
        })?;
        node.refusals.forget(identity);
        if let Some(older) = older
            && let Some(address) = older.counted.take()
        {
            self.node.admission.release(user, address);
            self.node.metrics.add(Counter::Takeovers, 1);
        }
        Ok((request, holder))
    }

    fn connect(&mut self, request: ConnectRequest, address: IpAddr, now: Now) -> Slot {
        let viewer = request.viewer();
        let (start, replayed) = {
            let window = self.node.window.read();
            if window.epoch() != self.sessions.epoch() {
                self.sessions.adopt(&window, now);
            }
            let start = window.start(request.last_event_id.as_deref(), request.connection);
            if start.gap.is_some_and(|gap| gap.reason == GapReason::Reset) {
                self.node.note_foreign_cursor(&request, &window);
            }
            let start = match request.grant.replay_from {
                Some(secs) => window.not_before(start, secs.saturating_mul(1_000)),
                None => start,
            };
            let start = match start.gap {
                Some(_) => self.node.start_behind_gap(&window, start, viewer, address, now),
                None => start,
            };
            (start, window.count(start.cursor, viewer))
        };
        self.node.metrics.add(Counter::Connects, 1);
        self.node.metrics.add(Counter::Resumes, u64::from(start.asked && start.gap.is_none()));
        self.sessions.connect(request, start, replayed, now)
    }

    fn drain(&mut self, reason: String, until_ms: u64, now: Now) {
        let leaving: Vec<_> = self.sessions.slots().collect();
        self.handle.leaving.store(leaving.len(), Ordering::Relaxed);
        let from_ms = now.mono_ms + LINGER_MS;
        self.draining = Some(Draining { from_ms, until_ms, reason, leaving, head: self.sessions.head(), wave: None });
    }

    /// Disconnects the clients of this wave that have received all events published before the drain, and counts the
    /// clients that a further wave could disconnect.
    fn drain_wave(&mut self, now: Now) {
        let Some(Draining { wave, leaving, head, reason, .. }) = &mut self.draining else { return };
        let Some(mut left) = *wave else { return };
        let (sessions, mut waiting) = (&mut self.sessions, 0);
        leaving.retain(|&slot| {
            let Some(session) = sessions.session(slot).filter(|session| session.is_open()) else { return false };
            if session.behind().is_some_and(|cursor| cursor < *head) {
                return true;
            }
            if left == 0 {
                waiting += 1;
                return true;
            }
            left -= 1;
            // Reconnects are spread over two seconds, so that they do not reach another node all at once.
            let reconnect_after_ms = u64::from(slot) * 7_919 % 2_000;
            sessions.go_away(slot, reconnect_after_ms, CloseCode::Restart, reason, now);
            false
        });
        *wave = (left > 0).then_some(left);
        // Clients that are still lagging must not use up the other shards' share of a wave.
        self.handle.leaving.store(waiting, Ordering::Relaxed);
    }

    fn react(&mut self, event: &Event, now: Now) {
        if event.token() == WAKER {
            return;
        }
        let Ok(slot) = Slot::try_from(event.token().0) else { return };
        if event.is_writable() && self.flush(slot) {
            self.sessions.writable(slot);
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.read(slot, event.is_read_closed(), now);
        }
    }

    /// Sends the encrypted bytes that the socket still buffers. Returns whether it accepts more.
    fn flush(&mut self, slot: Slot) -> bool {
        let conn = self.conns.get_mut(slot as usize).and_then(Option::as_mut);
        conn.is_none_or(|conn| conn.socket.flush())
    }

    /// Reads a socket. With `to_the_end` a short read does not mean that the socket is empty, because its end may
    /// follow.
    fn read(&mut self, slot: Slot, to_the_end: bool, now: Now) {
        let Some(Some(conn)) = self.conns.get_mut(slot as usize) else { return };
        for _ in 0..READS_IN_A_ROW {
            if !self.sessions.wants_input(slot) {
                // Reading continues once the client has read its replies.
                conn.unread = true;
                return;
            }
            match conn.socket.read(&mut self.scratch) {
                Ok(0) => return self.drop_conn(slot),
                Ok(n) => {
                    self.sessions.input(slot, &mut self.scratch[..n], now, &|token| self.node.verify_in_band(token));
                    if n < READ_BYTES && !to_the_end {
                        conn.unread = false;
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    conn.unread = false;
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.drop_conn(slot),
            }
        }
        conn.unread = true;
        self.unread.push(slot);
    }

    fn read_on(&mut self, now: Now) {
        for slot in std::mem::take(&mut self.unread) {
            if matches!(self.conns.get(slot as usize), Some(Some(conn)) if conn.unread) {
                self.read(slot, true, now);
            }
        }
    }

    /// Serves sessions that are ready, for at most `DELIVERY_PASS`.
    fn serve_ready(&mut self, now: Now) {
        let start = Instant::now();
        let mut served = 0;
        while let Some(slot) = self.sessions.next_ready() {
            self.serve(slot, now);
            served += 1;
            if served % SERVES_PER_CLOCK_READ == 0 && start.elapsed() >= DELIVERY_PASS {
                return;
            }
        }
    }

    fn serve(&mut self, slot: Slot, now: Now) {
        let Some(Some(conn)) = self.conns.get_mut(slot as usize) else { return };
        let mut broken = false;
        let socket = &mut conn.socket;
        let served = self.sessions.serve(slot, &self.node.window, now, &mut |slices| {
            socket.send(slices).unwrap_or_else(|error| {
                broken = error.kind() != io::ErrorKind::WouldBlock;
                0
            })
        });
        if broken || served == Served::Finished {
            return self.drop_conn(slot);
        }
        if served != Served::Blocked && conn.unread {
            self.unread.push(slot);
        }
        let deaf = self.sessions.session(slot).is_some_and(|session| session.is_deaf() && !session.has_output());
        if deaf && !std::mem::replace(&mut conn.shut, true) {
            // Only the sending side is shut down. A client with unsent data would receive a reset from a full close,
            // and could lose the close frame.
            let _ = conn.socket.shut();
        }
    }

    fn drop_conn(&mut self, slot: Slot) {
        self.closing.retain(|closing| *closing != slot);
        let head = Position { epoch: self.sessions.epoch(), sequence: self.sessions.head() };
        let who = self.sessions.session(slot).map(|session| {
            let cursor = session.position(head);
            (session.user().clone(), session.connection(), cursor, session.round_trip_ms())
        });
        let code = self.sessions.remove(slot);
        self.node.metrics.add(close_counter(code), 1);
        if let Some(conn) = self.conns.get_mut(slot as usize).and_then(Option::take)
            && let Some((user, connection, cursor, round_trip_ms)) = who
        {
            if let Some(address) = conn.counted {
                let (since_ms, until_ms) = (conn.came.unix_ms, clock::now().unix_ms);
                let user = user.clone();
                let closed_connection =
                    ClosedConnection { connection, user, since_ms, until_ms, address, cursor, round_trip_ms, code };
                self.node.recently_closed().add(closed_connection);
            }
            if let Some(presence) = self.node.presence()
                && connection != ConnectionId(0)
                // A newer socket of the connection may have been registered here, perhaps within the same millisecond.
                && self.sessions.holder(connection).is_none()
            {
                presence.left(connection, &user, conn.came.mono_ms);
            }
            if let Some(address) = conn.counted {
                self.node.admission.release(&user, address);
            }
        }
    }

    fn run_housekeeping(&mut self, now: Now) {
        if let Some(act) = &self.housekeeping
            && now.mono_ms >= self.housekeeping_due
        {
            act(now.unix_ms);
            self.housekeeping_due = now.mono_ms + HOUSEKEEPING_MS;
        }
    }

    /// Counts the events that clients acknowledged.
    fn note_acknowledged(&mut self) {
        let acknowledged = self.sessions.take_acknowledged();
        if acknowledged.is_empty() {
            return;
        }
        let window = self.node.window.read();
        for entry in acknowledged.iter().filter_map(|event_id| window.get(event_id)) {
            entry.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Publishes the shard's counters to the node.
    fn report(&mut self) {
        self.note_acknowledged();
        self.handle.open.store(self.sessions.len(), Ordering::Relaxed);
        self.handle.watchers.store(self.sessions.holders_of_topic(SYSTEM_TOPIC), Ordering::Relaxed);
        self.handle.overdue.store(self.sessions.overdue(), Ordering::Relaxed);
        let tally = self.sessions.take_tally();
        if tally != SessionCounters::default() {
            add_tally(&self.node.metrics, &tally);
        }
        self.report_deliveries();
    }

    fn report_deliveries(&mut self) {
        let metrics = &self.node.metrics;
        let deliveries = self.sessions.take_deliveries();
        let now_ms = if deliveries.is_empty() { 0 } else { clock::now().unix_ms };
        let by_type = deliveries.iter().map(|count| (&*count.entry.event_type, u64::from(count.clients)));
        metrics.add_all_of_type(ByType::Deliveries, by_type);
        // Replayed events are excluded, because they do not measure the delivery latency.
        for DeliveryCount { entry, clients, .. } in deliveries.iter().filter(|count| count.live) {
            metrics.measure(Measure::AppendToWrite, 1_000 * now_ms.saturating_sub(entry.appended_ms));
            if let (Some(tracer), Some(context)) = (&self.node.tracer, &entry.trace) {
                tracer.written(&Written {
                    context,
                    event_type: &entry.event_type,
                    event_id: &entry.event_id,
                    node: &self.node.name,
                    clients: u64::from(*clients),
                    appended_ms: entry.appended_ms,
                    written_ms: now_ms,
                });
            }
        }
    }
}

fn add_tally(metrics: &Metrics, tally: &SessionCounters) {
    let round_trips = &tally.round_trips;
    let mut sum_us = 1_000 * round_trips.sum_ms;
    for (bucket, &count) in round_trips.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        metrics.measure_many(Measure::RoundTrip, bucket, u64::from(count), std::mem::take(&mut sum_us));
    }
    for (counter, n) in [
        (Counter::Deliveries, tally.deliveries),
        (Counter::BytesSent, tally.bytes_sent),
        (Counter::BytesReceived, tally.bytes_received),
        (Counter::Messages, tally.messages),
        (Counter::BadMessages, tally.bad_messages),
        (Counter::Pings, tally.pings),
        (Counter::GapsExpired, tally.gaps_expired),
        (Counter::GapsReset, tally.gaps_reset),
        (Counter::LimitTopics, tally.limit_topics),
        (Counter::LimitMessages, tally.limit_frames),
        (Counter::LimitMessageBytes, tally.limit_bytes),
        (Counter::AuthForbidden, tally.forbidden),
        (Counter::TokensExpiring, tally.tokens_expiring),
        (Counter::TokensExpired, tally.tokens_expired),
    ] {
        if n > 0 {
            metrics.add(counter, n);
        }
    }
}

fn close_counter(code: Option<CloseCode>) -> Counter {
    match code {
        None => Counter::ClosedAbnormal,
        Some(CloseCode::Normal) => Counter::ClosedNormal,
        Some(CloseCode::GoingAway) => Counter::ClosedGoingAway,
        Some(CloseCode::Protocol) => Counter::ClosedProtocol,
        Some(CloseCode::Unsupported) => Counter::ClosedUnsupported,
        Some(CloseCode::InvalidText) => Counter::ClosedInvalidText,
        Some(CloseCode::Policy) => Counter::ClosedPolicy,
        Some(CloseCode::TooBig) => Counter::ClosedTooBig,
        Some(CloseCode::Internal) => Counter::ClosedInternal,
        Some(CloseCode::Restart) => Counter::ClosedRestart,
        Some(CloseCode::TryAgainLater) => Counter::ClosedTryAgainLater,
        Some(CloseCode::HeartbeatTimeout) => Counter::ClosedHeartbeat,
        Some(CloseCode::Replaced) => Counter::ClosedReplaced,
        Some(CloseCode::TooManyMessages) => Counter::ClosedTooManyMessages,
        Some(CloseCode::Disconnected) => Counter::ClosedDisconnected,
    }
}

//! All sessions of one shard: the indexes of users, topics and connections, the queue of ready sessions, and timers.
//!
//! The table knows no socket, thread or clock. A driver owns the sockets, passes input and time to the table, and
//! serves the sessions that are ready. Live, lagging and resuming sessions are all served by the same path.
//!
//! # Order of calls
//!
//! For each wakeup the driver calls, in this order:
//!
//! 1. [`SessionTable::woken`], so that a pause does not count as silence of the clients;
//! 2. [`SessionTable::look`] and [`SessionTable::take_news`], for new entries of the window;
//! 3. [`SessionTable::connect`], [`SessionTable::input`], [`SessionTable::writable`] and [`SessionTable::close`];
//! 4. [`SessionTable::timeouts`];
//! 5. [`SessionTable::next_ready`] and [`SessionTable::serve`], until no session is ready or the driver's time slice is
//!    over;
//! 6. [`SessionTable::take_deliveries`], [`SessionTable::take_acknowledged`] and [`SessionTable::take_tally`].

use crate::{
    Audience, CloseCode, ConnectionId, Grant, Position, Revocation,
    audience::SYSTEM_TOPIC,
    session::{
        ConnectRequest, Context, Denied, Effect, MAX_SLICES, MAX_TURN_BYTES, Session, SessionCounters, Settings,
    },
    time::{ClockWatch, Now},
    window::{Entry, ResumePoint, Viewer, Window},
    wire::Outgoing,
};
use hashbrown::{HashMap, HashSet, HashTable};
use slab::Slab;
use smallvec::SmallVec;
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    hash::{BuildHasher, Hash},
    io::IoSlice,
    sync::{Arc, atomic::Ordering},
};

/// The index of a session in the table. It is reused after [`SessionTable::remove`].
pub type Slot = u32;

/// Number of newest entries that the table keeps itself, so that clients close to the head are served without a lock.
const TAIL_ENTRIES: usize = 1_024;

/// How long after a pause of the driver frames from clients count as sent during the pause, in milliseconds.
const AFTER_PAUSE_MS: u64 = 5_000;

/// Shortest delay of the driver that counts as a pause, in milliseconds, regardless of the heartbeat interval.
const MIN_PAUSE_MS: u64 = 50;

type Hasher = foldhash::fast::RandomState;

/// A fixed seed is safe, because slots are assigned densely and no client can choose slots whose hashes collide. It
/// makes the order of a set's slots the same in every run.
type SlotHasher = foldhash::fast::FixedState;

/// The entries beyond the table's own tail: the node's window.
pub trait History {
    /// Appends the entries for `viewer` after `cursor` and up to the sequence `until` to `out`, limited to the amount
    /// of one turn. Returns the sequence that was reached.
    ///
    /// If the history has another epoch than `cursor`, no entry is appended and the sequence of `cursor` is returned.
    /// The table [adopts](SessionTable::adopt) the new epoch with its next [`look`](SessionTable::look).
    ///
    /// # Errors
    /// If entries after the cursor were evicted: where the client resumes, with the gap.
    fn read(
        &self,
        cursor: Position,
        until: u64,
        viewer: Viewer<'_>,
        out: &mut Vec<Arc<Entry>>,
    ) -> Result<u64, ResumePoint>;
}

impl History for Window {
    fn read(
        &self,
        cursor: Position,
        until: u64,
        viewer: Viewer<'_>,
        out: &mut Vec<Arc<Entry>>,
    ) -> Result<u64, ResumePoint> {
        let Position { epoch, sequence: cursor } = cursor;
        if epoch != self.epoch() {
            return Ok(cursor);
        }
        if cursor < self.floor() {
            return Err(self.continue_from(cursor));
        }
        let mut bytes = 0;
        for entry in self.view(cursor, viewer).take_while(|entry| entry.sequence <= until) {
            bytes += entry.frame.len();
            out.push(entry.clone());
            if out.len() == MAX_SLICES || bytes >= MAX_TURN_BYTES {
                return Ok(entry.sequence);
            }
        }
        Ok(until)
    }
}

/// The state of a session after its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// All output was written.
    Idle,
    /// The socket accepts no more data. The driver calls [`SessionTable::writable`] when it does.
    Blocked,
    /// More output is available, and the session is ready again.
    More,
    /// The session does not exist, or its socket can be closed. The driver calls [`SessionTable::remove`].
    Finished,
}

/// The result of [`SessionTable::look`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// The new entries were copied.
    Entries,
    /// Some of the new entries were already evicted. The head of the window is at this sequence.
    Jump(u64),
}

/// All sessions of one shard.
#[derive(Debug)]
pub struct SessionTable {
    settings: Settings,
    epoch: u64,
    head: u64,
    /// The newest entries up to the head. Empty while no session is ready.
    tail: VecDeque<Arc<Entry>>,
    /// For each entry of `tail`, the number of clients it was written to since the last report.
    written: VecDeque<WriteCount>,
    /// Number of ready sessions that have not had their turn in the current delivery pass.
    in_pass: usize,
    /// The head at the start of the current delivery pass.
    pass_head: u64,
    /// Delivery counts that [`take_deliveries`](Self::take_deliveries) has not returned yet.
    deliveries: Vec<DeliveryCount>,
    /// IDs of events that clients acknowledged.
    acknowledged: Vec<Box<str>>,
    states: Slab<SlotState>,
    users: HashMap<Arc<str>, Members, Hasher>,
    topics: HashMap<Arc<str>, Members, Hasher>,
    /// The open session of each connection. The table stores only slots; the key is in the session.
    connections: HashTable<Slot>,
    hasher: Hasher,
    ready: VecDeque<Slot>,
    timers: BinaryHeap<Reverse<(u64, Slot)>>,
    scratch: Vec<Arc<Entry>>,
    open: usize,
    overdue: usize,
    tally: SessionCounters,
    clocks: ClockWatch,
    /// The last pause of the driver: its duration, and until when frames count as sent during it, in milliseconds.
    paused_ms: u64,
    paused_until_ms: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct WriteCount {
    clients: u32,
    /// Whether the writes to live clients have been reported.
    reported: bool,
}

/// The number of clients to which an entry was written since the last report.
#[derive(Debug, Clone)]
pub struct DeliveryCount {
    /// The entry.
    pub entry: Arc<Entry>,
    /// Number of clients.
    pub clients: u32,
    /// Whether the clients were live, as opposed to a replay. True at most once for each entry.
    pub live: bool,
}

#[derive(Debug)]
struct SlotState {
    session: Session,
    /// The valid timer of this session. Other timers of the session in the queue are stale. 0: none.
    due_ms: u64,
    queued: bool,
    blocked: bool,
    /// Whether the session is counted in `SessionTable::open`.
    counted: bool,
    /// Whether the session is counted in `SessionTable::overdue`.
    overdue: bool,
}

impl SlotState {
    /// Marks the session as behind the head, from `head` on. Returns whether the session must be queued.
    fn mark(&mut self, head: u64) -> bool {
        self.session.mark(head) && !self.blocked && !std::mem::replace(&mut self.queued, true)
    }
}

/// The sessions of one user or topic. Most sets have one member.
#[derive(Debug)]
enum Members {
    One(Slot),
    Many(Box<HashSet<Slot, SlotHasher>>),
}

impl SessionTable {
    /// Creates an empty table at the head of a log.
    pub fn new(settings: Settings, epoch: u64, head: u64) -> Self {
        Self {
            settings,
            epoch,
            head,
            tail: VecDeque::new(),
            written: VecDeque::new(),
            in_pass: 0,
            pass_head: head,
            deliveries: Vec::new(),
            acknowledged: Vec::new(),
            states: Slab::new(),
            users: HashMap::default(),
            topics: HashMap::default(),
            connections: HashTable::new(),
            hasher: Hasher::default(),
            ready: VecDeque::new(),
            timers: BinaryHeap::new(),
            scratch: Vec::new(),
            open: 0,
            overdue: 0,
            tally: SessionCounters::default(),
            clocks: ClockWatch::default(),
            paused_ms: 0,
            paused_until_ms: 0,
        }
    }

    /// Detects pauses of the driver and steps of the wall clock.
    ///
    /// The driver calls this whenever it wakes, before any other method. `wanted_ms` is when it was due to run, on the
    /// monotonic clock, or `u64::MAX` if it waited for I/O only.
    ///
    /// During a pause (a stopped process, a frozen machine) no client is pinged or read, so a pause does not count as
    /// silence of the clients. After a step of the wall clock, tokens expire by the new time or by the monotonic clock,
    /// whichever is earlier.
    ///
    /// Returns the duration of the pause in milliseconds, or 0 for a delay that is too short to count.
    pub fn woken(&mut self, wanted_ms: u64, now: Now) -> u64 {
        let stepped = self.clocks.has_stepped(now);
        let late_ms = Some(self.clocks.late_ms(wanted_ms, now)).filter(|late_ms| *late_ms >= self.longest_delay_ms());
        if let Some(late_ms) = late_ms {
            (self.paused_ms, self.paused_until_ms) = (late_ms, now.mono_ms + AFTER_PAUSE_MS);
        }
        if stepped || late_ms.is_some() {
            let slots: Vec<Slot> = self.slots().collect();
            for slot in slots {
                self.with_session(slot, now, |session, ctx| {
                    session.excuse_silence(late_ms.unwrap_or(0), now);
                    session.clock_stepped(ctx.settings, now);
                });
            }
        }
        late_ms.unwrap_or(0)
    }

    /// The shortest delay that counts as a pause. A shorter delay leaves a client at least half of the time that it has
    /// to answer a ping.
    fn longest_delay_ms(&self) -> u64 {
        let Settings { heartbeat_ms, timeout_ms, .. } = self.settings;
        (timeout_ms.saturating_sub(heartbeat_ms) / 2).max(MIN_PAUSE_MS)
    }

    fn paused_ms(&self, now: Now) -> u64 {
        if now.mono_ms < self.paused_until_ms { self.paused_ms } else { 0 }
    }

    /// Returns the sequence of the newest entry that this table has taken.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// Returns the number of connected clients.
    pub fn len(&self) -> usize {
        self.open
    }

    /// Returns whether no client is connected.
    pub fn is_empty(&self) -> bool {
        self.open == 0
    }

    /// Returns the number of clients with an unanswered ping.
    pub fn overdue(&self) -> usize {
        self.overdue
    }

    /// Returns the number of occupied slots, including closing sessions.
    pub fn occupied(&self) -> usize {
        self.states.len()
    }

    /// Returns the counters since the last call, and resets them.
    pub fn take_tally(&mut self) -> SessionCounters {
        std::mem::take(&mut self.tally)
    }

    /// Returns the session of a slot, if the slot is occupied.
    pub fn session(&self, slot: Slot) -> Option<&Session> {
        self.states.get(slot as usize).map(|state| &state.session)
    }

    /// Returns the slot of the open session of a connection.
    pub fn holder(&self, connection: ConnectionId) -> Option<Slot> {
        let hash = self.hasher.hash_one(connection);
        self.connections.find(hash, |&slot| connection_at(&self.states, slot) == Some(connection)).copied()
    }

    /// Makes a session the recipient of its connection's events.
    fn claim_connection(&mut self, connection: ConnectionId, slot: Slot) {
        let (states, hasher) = (&self.states, &self.hasher);
        let hash_of = |&slot: &Slot| hasher.hash_one(connection_at(states, slot).unwrap_or(ConnectionId(0)));
        self.connections.insert_unique(hasher.hash_one(connection), slot, hash_of);
    }

    /// Releases the connection of a session, unless a newer session has claimed it.
    fn release_connection(&mut self, slot: Slot) {
        let Some(connection) = connection_at(&self.states, slot) else { return };
        if let Ok(held) = self.connections.find_entry(self.hasher.hash_one(connection), |&holder| holder == slot) {
            held.remove();
        }
    }

    /// Opens a session. An older session of the same connection is closed with [`CloseCode::Replaced`].
    ///
    /// `start` and `replayed` are where the client resumes and how many events are retained for it. They must be read
    /// from a window in this table's epoch: call [`adopt`](Self::adopt) first if the epochs differ. The window may be
    /// ahead of the table's head.
    pub fn connect(&mut self, request: ConnectRequest, start: ResumePoint, replayed: usize, now: Now) -> Slot {
        if let Some(old) = self.holder(request.connection) {
            self.close(old, CloseCode::Replaced, CloseCode::REPLACED, now);
        }
        let session = self.with_context(now, |ctx| Session::open(request, start, replayed, ctx));
        let (user, connection, topics) = (session.user().clone(), session.connection(), session.topics().to_vec());
        let slot = self.insert(session);
        Members::join(&mut self.users, user, slot);
        for topic in topics {
            Members::join(&mut self.topics, topic, slot);
        }
        self.claim_connection(connection, slot);
        self.settle_first(slot);
        slot
    }

    /// Rejects a client: sends only a close frame with a code and reason.
    pub fn refuse(&mut self, code: CloseCode, reason: &str, now: Now) -> Slot {
        let session = self.with_context(now, |ctx| Session::refused(code, reason, ctx));
        let slot = self.insert(session);
        self.settle_first(slot);
        slot
    }

    fn insert(&mut self, session: Session) -> Slot {
        let state = SlotState { session, due_ms: 0, queued: false, blocked: false, counted: false, overdue: false };
        // A process cannot have 2^32 sockets.
        Slot::try_from(self.states.insert(state)).unwrap_or(Slot::MAX)
    }

    /// Queues a new session first, so that its first frame does not wait for the rest of the delivery pass.
    fn settle_first(&mut self, slot: Slot) {
        self.settle(slot);
        if self.ready.pop_back_if(|last| *last == slot).is_some() {
            self.ready.push_front(slot);
            self.in_pass += usize::from(self.in_pass > 0);
        }
    }

    /// Processes bytes from a client. They are unmasked in place. `verify` verifies a token that the client presents.
    pub fn input(&mut self, slot: Slot, bytes: &mut [u8], now: Now, verify: &dyn Fn(&str) -> Result<Grant, Denied>) {
        let paused_ms = self.paused_ms(now);
        let Some(state) = self.states.get_mut(slot as usize) else { return };
        let mut effects = SmallVec::new();
        let head = Position { epoch: self.epoch, sequence: self.head };
        let ctx = &mut Context { now, settings: &self.settings, head, paused_ms, verify, tally: &mut self.tally };
        state.session.input(bytes, ctx, &mut effects);
        for effect in effects {
            match effect {
                Effect::Subscribed(topic) => Members::join(&mut self.topics, topic, slot),
                Effect::Unsubscribed(topic) => Members::leave(&mut self.topics, &topic, slot),
                Effect::Acknowledged(event_id) => self.acknowledged.push(event_id),
            }
        }
        self.settle(slot);
    }

    /// Returns whether the driver should read from a client.
    pub fn wants_input(&self, slot: Slot) -> bool {
        self.session(slot).is_some_and(Session::wants_input)
    }

    /// Closes a connection with a code and a reason.
    pub fn close(&mut self, slot: Slot, code: CloseCode, reason: &str, now: Now) {
        self.with_session(slot, now, |session, ctx| session.close(code, reason, ctx));
    }

    /// Closes every connection of a user. Returns the number of the user's connections.
    pub fn close_user(&mut self, user: &str, code: CloseCode, reason: &str, now: Now) -> usize {
        let slots: Vec<Slot> = self.users.get(user).map_or_else(Vec::new, |members| members.iter().collect());
        for &slot in &slots {
            self.close(slot, code, reason, now);
        }
        slots.len()
    }

    /// Closes every connection whose token is revoked. Returns the number of closed connections.
    pub fn revoke(&mut self, revocation: &Revocation, reason: &str, now: Now) -> usize {
        let concerned = |slot: &Slot| {
            self.session(*slot).is_some_and(|session| session.is_open() && session.is_concerned_by(revocation))
        };
        let slots: Vec<Slot> = match revocation {
            Revocation::User { user, .. } => self.slots_of(user).filter(concerned).collect(),
            Revocation::Token { .. } | Revocation::Session { .. } | Revocation::Everyone { .. } => {
                self.slots().filter(concerned).collect()
            }
        };
        for &slot in &slots {
            self.close(slot, CloseCode::Policy, reason, now);
        }
        slots.len()
    }

    /// Drains a client: sends a `goaway`, then closes the connection.
    ///
    /// `reconnect_after_ms` is the time after which the client reconnects, in milliseconds. Events after the client's
    /// cursor are not sent; the client receives them when it resumes.
    pub fn go_away(&mut self, slot: Slot, reconnect_after_ms: u64, code: CloseCode, reason: &str, now: Now) {
        self.with_session(slot, now, |session, ctx| {
            if session.is_open() {
                session.enqueue(Outgoing::Goaway { reconnect_after_ms, reason }, ctx);
                session.close(code, reason, ctx);
            }
        });
    }

    /// Iterates over the slots of a user's connections.
    pub fn slots_of(&self, user: &str) -> impl Iterator<Item = Slot> {
        self.users.get(user).into_iter().flat_map(Members::iter)
    }

    /// Iterates over all occupied slots.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        self.states.iter().map(|(slot, _)| Slot::try_from(slot).unwrap_or(Slot::MAX))
    }

    /// Takes the next entries of the log. The sessions in their audiences become ready.
    pub fn advance(&mut self, entries: &[Arc<Entry>]) {
        let before = self.head;
        let mut everyone = false;
        for entry in entries {
            match &entry.audience {
                Audience::Everyone => everyone = true,
                Audience::User(user) => self.mark_members(|r| &r.users, user, before),
                Audience::Topic(topic) => self.mark_members(|r| &r.topics, topic, before),
                Audience::Connection(id) => {
                    if let Some(slot) = self.holder(*id) {
                        self.mark(slot, before);
                    }
                }
            }
            self.head = entry.sequence;
        }
        if everyone {
            self.mark_everyone(before);
        }
        if self.ready.is_empty() {
            // A session that becomes ready later is marked at a later head, or reads the window.
            self.drop_from_tail(self.tail.len());
        } else {
            self.tail.extend(entries.iter().cloned());
            self.written.resize(self.tail.len(), WriteCount::default());
            self.drop_from_tail(self.tail.len().saturating_sub(TAIL_ENTRIES));
            if self.in_pass == 0 {
                self.begin_pass();
            }
        }
    }

    /// Moves to a head that is not contiguous with the tail. All sessions then read the window.
    pub fn jump(&mut self, head: u64) {
        self.mark_everyone(self.head);
        self.drop_from_tail(self.tail.len());
        self.head = head;
    }

    /// Returns the epoch of this table's positions.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Copies the new entries of the window into `entries`, for [`take_news`](Self::take_news). Adopts the window's
    /// epoch first, if it is a new one.
    ///
    /// The two steps are separate so that the lock on the window is released before sessions are marked.
    pub fn look(&mut self, window: &Window, now: Now, entries: &mut Vec<Arc<Entry>>) -> News {
        if window.epoch() != self.epoch() {
            self.adopt(window, now);
        }
        if self.head < window.floor() {
            return News::Jump(window.head());
        }
        entries.extend(window.since(self.head).cloned());
        News::Entries
    }

    /// Takes the result of [`look`](Self::look). It must follow `look` before the table changes in any other way.
    pub fn take_news(&mut self, news: News, entries: &[Arc<Entry>]) {
        match news {
            // Each session reads the retained entries, and receives a `gap` if some of its own were evicted.
            News::Jump(head) => self.jump(head),
            News::Entries if !entries.is_empty() => self.advance(entries),
            News::Entries => {}
        }
    }

    /// Continues in the window's epoch. Clients whose position is no longer valid receive a `gap` with the reason
    /// `reset`; other clients are not affected.
    pub fn adopt(&mut self, window: &Window, now: Now) {
        let before = Position { epoch: self.epoch, sequence: self.head };
        let starts: Vec<(Slot, ResumePoint)> = self
            .states
            .iter()
            .filter(|(_, state)| state.session.is_open())
            .filter_map(|(slot, state)| {
                let start = window.restart(state.session.position(before))?;
                Some((Slot::try_from(slot).unwrap_or(Slot::MAX), start))
            })
            .collect();
        // The tail is of the old epoch. Its deliveries are counted before the epoch changes.
        self.drop_from_tail(self.tail.len());
        self.epoch = window.epoch();
        self.head = window.restart(before).map_or(self.head, |start| start.cursor);
        for (slot, start) in starts {
            self.with_session(slot, now, |session, ctx| session.skip_to(start, ctx));
        }
    }

    fn mark_everyone(&mut self, head: u64) {
        for (slot, state) in &mut self.states {
            if state.mark(head) {
                self.ready.push_back(Slot::try_from(slot).unwrap_or(Slot::MAX));
            }
        }
    }

    fn mark_members(&mut self, group: impl Fn(&Self) -> &HashMap<Arc<str>, Members, Hasher>, name: &str, head: u64) {
        let slots: SmallVec<[Slot; 16]> = match group(self).get(name) {
            Some(members) => members.iter().collect(),
            None => return,
        };
        for slot in slots {
            self.mark(slot, head);
        }
    }

    fn mark(&mut self, slot: Slot, head: u64) {
        if self.states.get_mut(slot as usize).is_some_and(|state| state.mark(head)) {
            self.ready.push_back(slot);
        }
    }

    /// Returns the next session to [`serve`](Self::serve); `None` if no session is ready.
    pub fn next_ready(&mut self) -> Option<Slot> {
        if self.in_pass == 0 && !self.tail.is_empty() && !self.ready.is_empty() {
            self.report_written();
            self.begin_pass();
        }
        while let Some(slot) = self.ready.pop_front() {
            self.in_pass = self.in_pass.saturating_sub(1);
            if let Some(state) = self.states.get_mut(slot as usize)
                && std::mem::take(&mut state.queued)
            {
                return Some(slot);
            }
        }
        self.drop_from_tail(self.tail.len());
        None
    }

    /// Begins a delivery pass, in which each session that is ready now has one turn. Writes are reported after each
    /// pass: a replay keeps a session ready for many passes, and the counts of live clients must not wait for it.
    fn begin_pass(&mut self) {
        (self.in_pass, self.pass_head) = (self.ready.len(), self.head);
    }

    /// Reports the writes of the tail's entries up to `pass_head`. The entries stay in the tail.
    fn report_written(&mut self) {
        for (entry, written) in self.tail.iter().zip(&mut self.written) {
            if entry.sequence > self.pass_head {
                return;
            }
            self.deliveries.extend(written.take(entry));
        }
    }

    /// Drops the oldest `count` entries of the tail, and reports their writes.
    fn drop_from_tail(&mut self, count: usize) {
        for (entry, mut written) in self.tail.drain(..count).zip(self.written.drain(..count)) {
            self.deliveries.extend(written.take(&entry));
        }
    }

    /// Returns the writes since the last call, for each entry.
    pub fn take_deliveries(&mut self) -> Vec<DeliveryCount> {
        std::mem::take(&mut self.deliveries)
    }

    /// Returns the IDs of the events that clients acknowledged since the last call.
    pub fn take_acknowledged(&mut self) -> Vec<Box<str>> {
        std::mem::take(&mut self.acknowledged)
    }

    /// Iterates over the open sessions in `audience`.
    pub fn concerned<'a>(&'a self, audience: &'a Audience) -> impl Iterator<Item = &'a Session> {
        let everyone =
            matches!(audience, Audience::Everyone).then(|| self.states.iter().map(|(_, state)| &state.session));
        let (members, one) = match audience {
            Audience::Everyone => (None, None),
            Audience::User(user) => (self.users.get(user), None),
            Audience::Topic(topic) => (self.topics.get(topic), None),
            Audience::Connection(id) => (None, self.holder(*id)),
        };
        let slots = members.into_iter().flat_map(Members::iter).chain(one);
        let addressed = slots.filter_map(|slot| self.session(slot));
        everyone.into_iter().flatten().chain(addressed).filter(|session| session.is_open())
    }

    /// Returns the number of clients that are subscribed to a topic.
    pub fn holders_of_topic(&self, topic: &str) -> usize {
        self.topics.get(topic).map_or(0, |members| members.iter().count())
    }

    /// Sends the status of all nodes to the subscribers of `$sys`. A subscriber with pending output is skipped: it
    /// receives the next status.
    ///
    /// `data` is a JSON object.
    pub fn tell_sys(&mut self, data: &str, now: Now) {
        let slots: Vec<Slot> = self.topics.get(SYSTEM_TOPIC).map_or_else(Vec::new, |members| members.iter().collect());
        for slot in slots {
            self.with_session(slot, now, |session, ctx| {
                if session.is_open() && !session.has_output() {
                    session.enqueue(Outgoing::Sys { data }, ctx);
                }
            });
        }
    }

    /// Returns the `count` blocked sessions that lag most, each with its distance from the head in entries.
    pub fn slowest(&self, count: usize) -> Vec<(&Session, u64)> {
        let blocked = self.states.iter().filter(|(_, state)| state.blocked);
        let mut slow: Vec<_> = blocked
            .filter_map(|(_, state)| Some((&state.session, self.head.saturating_sub(state.session.behind()?))))
            .collect();
        slow.sort_by_key(|(_, distance)| Reverse(*distance));
        slow.truncate(count);
        slow
    }

    /// Returns the number of blocked sessions, and the maximum distance of a blocked session from the head in entries.
    pub fn behind(&self) -> (usize, u64) {
        let blocked = self.states.iter().filter(|(_, state)| state.blocked);
        let distances =
            blocked.map(|(_, state)| state.session.behind().map_or(0, |cursor| self.head.saturating_sub(cursor)));
        distances.fold((0, 0), |(count, farthest), distance| (count + 1, farthest.max(distance)))
    }

    /// Returns whether a session is ready.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Serves a session for one turn: writes its pending output, then entries after its cursor, to `sink`.
    ///
    /// `sink` returns the number of bytes that the socket accepted.
    pub fn serve(
        &mut self,
        slot: Slot,
        history: &impl History,
        now: Now,
        sink: &mut impl FnMut(&[IoSlice<'_>]) -> usize,
    ) -> Served {
        let Some(cursor) = self.states.get(slot as usize).map(|state| state.session.behind()) else {
            return Served::Finished;
        };
        let all = match cursor {
            None => self.flush_output(slot, sink),
            Some(cursor) if self.tail_reaches(cursor) => self.serve_from_tail(slot, cursor, sink),
            Some(cursor) => self.serve_from_history(slot, cursor, history, now, sink),
        };
        self.after_turn(slot, all)
    }

    fn tail_reaches(&self, cursor: u64) -> bool {
        self.tail.front().is_some_and(|first| first.sequence <= cursor + 1)
    }

    fn flush_output(&mut self, slot: Slot, sink: &mut impl FnMut(&[IoSlice<'_>]) -> usize) -> bool {
        self.states[slot as usize].session.flush(&[], 0, &mut self.tally, sink)
    }

    fn serve_from_tail(&mut self, slot: Slot, cursor: u64, sink: &mut impl FnMut(&[IoSlice<'_>]) -> usize) -> bool {
        let session = &mut self.states[slot as usize].session;
        let served = self.tail.front().map_or(0, |first| cursor + 1 - first.sequence);
        let (mut chosen, mut bytes, mut reached) = (SmallVec::<[&Entry; 64]>::new(), 0, self.head);
        for entry in self.tail.range(usize::try_from(served).unwrap_or(usize::MAX)..) {
            if session.viewer().sees(&entry.audience) {
                chosen.push(entry);
                bytes += entry.frame.len();
                if chosen.len() == MAX_SLICES || bytes >= MAX_TURN_BYTES {
                    reached = entry.sequence;
                    break;
                }
            }
        }
        let before = self.tally.deliveries;
        let all = session.flush(&chosen, reached, &mut self.tally, sink);
        let delivered = usize::try_from(self.tally.deliveries - before).unwrap_or(0);
        let first = self.tail.front().map_or(0, |first| first.sequence);
        for entry in &chosen[..delivered] {
            self.written[usize::try_from(entry.sequence - first).unwrap_or(0)].clients += 1;
        }
        all
    }

    fn serve_from_history(
        &mut self,
        slot: Slot,
        cursor: u64,
        history: &impl History,
        now: Now,
        sink: &mut impl FnMut(&[IoSlice<'_>]) -> usize,
    ) -> bool {
        let mut entries = std::mem::take(&mut self.scratch);
        let viewer = self.states[slot as usize].session.viewer();
        let place = Position { epoch: self.epoch, sequence: cursor };
        let read = history.read(place, self.head, viewer, &mut entries);
        let all = match read {
            Ok(reached) => {
                let chosen: SmallVec<[&Entry; 64]> = entries.iter().map(|entry| &**entry).collect();
                let before = self.tally.deliveries;
                let all = self.states[slot as usize].session.flush(&chosen, reached, &mut self.tally, sink);
                let delivered = usize::try_from(self.tally.deliveries - before).unwrap_or(0);
                drop(chosen);
                for entry in entries.drain(..delivered) {
                    entry.written.fetch_add(1, Ordering::Relaxed);
                    self.deliveries.push(DeliveryCount { entry, clients: 1, live: false });
                }
                all
            }
            Err(start) => {
                self.with_session(slot, now, |session, ctx| session.skip_to(start, ctx));
                self.flush_output(slot, sink)
            }
        };
        entries.clear();
        self.scratch = entries;
        all
    }

    fn after_turn(&mut self, slot: Slot, all: bool) -> Served {
        let head = self.head;
        let state = &mut self.states[slot as usize];
        state.blocked = !all;
        if state.session.is_finished() {
            return Served::Finished;
        }
        if !all {
            return Served::Blocked;
        }
        match state.session.behind() {
            Some(cursor) if cursor < head => {
                if !std::mem::replace(&mut state.queued, true) {
                    self.ready.push_back(slot);
                }
                Served::More
            }
            _ => {
                state.session.caught_up();
                Served::Idle
            }
        }
    }

    /// Makes a blocked session ready again. The driver calls this when the socket accepts more data.
    pub fn writable(&mut self, slot: Slot) {
        if let Some(state) = self.states.get_mut(slot as usize)
            && std::mem::take(&mut state.blocked)
        {
            self.settle(slot);
        }
    }

    /// Updates the queue, the timer and the counts after a change of a session. It must follow every such change.
    fn settle(&mut self, slot: Slot) {
        let Some(state) = self.states.get_mut(slot as usize) else { return };
        let session = &state.session;
        // A finished session has no output left.
        state.blocked &= !session.is_finished();
        let has_turn = session.has_output() || session.behind().is_some() || session.is_finished();
        if has_turn && !state.blocked && !std::mem::replace(&mut state.queued, true) {
            self.ready.push_back(slot);
        }
        // A timer that fires early is set again. A timer that would fire late is replaced.
        let due = session.due_ms(&self.settings);
        if due < u64::MAX && (state.due_ms == 0 || due < state.due_ms) {
            state.due_ms = due;
            self.timers.push(Reverse((due, slot)));
        }
        count(&mut self.open, &mut state.counted, session.is_open());
        count(&mut self.overdue, &mut state.overdue, session.is_open() && session.is_overdue());
        if !session.is_open() {
            self.release_connection(slot);
        }
    }

    /// Returns when [`timeouts`](Self::timeouts) must be called next, in the monotonic milliseconds of [`Now`].
    pub fn next_due(&self) -> Option<u64> {
        self.timers.peek().map(|Reverse((due, _))| *due)
    }

    /// Handles all timers that are due: pings, expiring tokens, silent clients and closing clients.
    ///
    /// Before a silent client is closed, `read` must pass the bytes that its socket has received to
    /// [`input`](Self::input). `read` returns whether the session still exists; if not, nothing more is done for it.
    pub fn timeouts(&mut self, now: Now, read: &mut dyn FnMut(&mut Self, Slot) -> bool) {
        while let Some(&Reverse((due, slot))) = self.timers.peek()
            && due <= now.mono_ms
        {
            self.timers.pop();
            let Some(state) = self.states.get_mut(slot as usize).filter(|state| state.due_ms == due) else { continue };
            state.due_ms = 0;
            if !state.session.is_silent(&self.settings, now) || read(self, slot) {
                self.with_session(slot, now, Session::timeout);
            }
        }
    }

    /// Removes a session whose socket is closed or can be closed. Returns the close code; `None` if the connection
    /// broke without a close.
    pub fn remove(&mut self, slot: Slot) -> Option<CloseCode> {
        self.release_connection(slot);
        let mut state = self.states.try_remove(slot as usize)?;
        let session = &state.session;
        Members::leave(&mut self.users, session.user(), slot);
        for topic in session.topics() {
            Members::leave(&mut self.topics, topic, slot);
        }
        count(&mut self.open, &mut state.counted, false);
        count(&mut self.overdue, &mut state.overdue, false);
        state.session.ended()
    }

    fn with_context<T>(&mut self, now: Now, act: impl FnOnce(&mut Context<'_>) -> T) -> T {
        let head = Position { epoch: self.epoch, sequence: self.head };
        let (settings, paused_ms) = (&self.settings, self.paused_ms(now));
        act(&mut Context { now, settings, head, paused_ms, verify: &no_token, tally: &mut self.tally })
    }

    fn with_session(&mut self, slot: Slot, now: Now, act: impl FnOnce(&mut Session, &mut Context<'_>)) {
        let head = Position { epoch: self.epoch, sequence: self.head };
        let paused_ms = self.paused_ms(now);
        if let Some(state) = self.states.get_mut(slot as usize) {
            let (settings, tally) = (&self.settings, &mut self.tally);
            let mut ctx = Context { now, settings, head, paused_ms, verify: &no_token, tally };
            act(&mut state.session, &mut ctx);
            self.settle(slot);
        }
    }
}

fn connection_at(states: &Slab<SlotState>, slot: Slot) -> Option<ConnectionId> {
    states.get(slot as usize).map(|state| state.session.connection())
}

/// Rejects every token: clients present tokens only in input.
fn no_token(_: &str) -> Result<Grant, Denied> {
    Err(Denied { code: "token_invalid", message: "no token is expected here".to_owned() })
}

/// Adds an item to a count, or removes it. `counted` is whether it is counted, and `now` whether it should be.
fn count(total: &mut usize, counted: &mut bool, now: bool) {
    match (std::mem::replace(counted, now), now) {
        (false, true) => *total += 1,
        (true, false) => *total -= 1,
        _ => {}
    }
}

impl WriteCount {
    fn take(&mut self, entry: &Arc<Entry>) -> Option<DeliveryCount> {
        let clients = std::mem::take(&mut self.clients);
        if clients == 0 {
            return None;
        }
        entry.written.fetch_add(clients, Ordering::Relaxed);
        Some(DeliveryCount { entry: entry.clone(), clients, live: !std::mem::replace(&mut self.reported, true) })
    }
}

impl Members {
    fn join<K: Hash + Eq>(groups: &mut HashMap<K, Self, Hasher>, name: K, slot: Slot) {
        match groups.entry(name) {
            hashbrown::hash_map::Entry::Vacant(entry) => {
                entry.insert(Self::One(slot));
            }
            hashbrown::hash_map::Entry::Occupied(mut entry) => match entry.get_mut() {
                Self::One(first) => {
                    let both = HashSet::from_iter([*first, slot]);
                    entry.insert(Self::Many(Box::new(both)));
                }
                Self::Many(set) => {
                    set.insert(slot);
                }
            },
        }
    }

    fn leave(groups: &mut HashMap<Arc<str>, Self, Hasher>, name: &str, slot: Slot) {
        let gone = match groups.get_mut(name) {
            Some(Self::One(only)) => *only == slot,
            Some(Self::Many(set)) => {
                set.remove(&slot);
                set.is_empty()
            }
            None => false,
        };
        if gone {
            groups.remove(name);
        }
    }

    fn iter(&self) -> impl Iterator<Item = Slot> {
        let (one, many) = match self {
            Self::One(slot) => (Some(*slot), None),
            Self::Many(set) => (None, Some(set.iter().copied())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

//! All sessions of one shard: who sees what, whose turn it is to be served, and what is due when.
//!
//! Knows no socket, no thread and no clock. A driver owns the sockets, offers input and time, and serves the sessions
//! that are ready; every session is served by the same walk, whether it is live, slow or comes back.

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

/// Where a session sits. Reused after it left.
pub type Slot = u32;

/// How many of the newest entries a roster keeps at hand, so that serving who is nearly live takes no lock.
const TAIL_ENTRIES: usize = 1_024;

/// For how long after a pause of the driver the clients' frames count as sent during it, in milliseconds.
const AFTER_PAUSE_MS: u64 = 5_000;

/// The shortest pause that is acted upon, in milliseconds, however short the heartbeat is.
const SHORTEST_PAUSE_MS: u64 = 50;

type Hasher = foldhash::fast::RandomState;

/// Slots are given out densely, so that no client can choose some whose hashes collide; and the order of a set's slots
/// is the same in every run.
type SlotHasher = foldhash::fast::FixedState;

/// What lies behind a roster's own tail: the node's window.
pub trait History {
    /// Adds to `out` what `viewer` may see behind `cursor`, a place of its `epoch`, and not beyond `until`, at most as
    /// many entries as one turn can send, and returns the place that was reached. That is the cursor itself while the
    /// past is of another epoch, which the roster is about to [adopt](Roster::adopt).
    ///
    /// # Errors
    /// If history behind the cursor is gone: where the client goes on, and what it is to be told.
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

/// How a session stands after its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// It has all there is for it.
    Idle,
    /// It takes no more for now: call [`SessionTable::writable`] when it does.
    Blocked,
    /// There is more; it is ready again.
    More,
    /// It has left, or its socket can be dropped: call [`SessionTable::remove`].
    Finished,
}

/// What [`SessionTable::look`] found in the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// The entries that it gave, if any.
    Entries,
    /// More came than the window holds; its head is at this sequence.
    Jump(u64),
}

/// All sessions of one shard.
#[derive(Debug)]
pub struct SessionTable {
    settings: Settings,
    epoch: u64,
    head: u64,
    /// The newest entries up to the head, while somebody is being served from them.
    tail: VecDeque<Arc<Entry>>,
    /// To how many clients each of them was written since that was last told.
    written: VecDeque<Written>,
    /// How many of those that are ready have not had their turn in this pass.
    in_pass: usize,
    /// The newest entry that all who were ready then come to in this pass.
    pass_head: u64,
    /// Entries that are no longer in the tail, or were read from the window, and what became of them here.
    deliveries: Vec<DeliveryCount>,
    /// Events that clients said they have handled.
    acknowledged: Vec<Box<str>>,
    states: Slab<SlotState>,
    users: HashMap<Arc<str>, Members, Hasher>,
    topics: HashMap<Arc<str>, Members, Hasher>,
    /// The open session of each connection. The table holds slots alone; the session itself knows its connection.
    connections: HashTable<Slot>,
    hasher: Hasher,
    ready: VecDeque<Slot>,
    timers: BinaryHeap<Reverse<(u64, Slot)>>,
    scratch: Vec<Arc<Entry>>,
    open: usize,
    overdue: usize,
    tally: SessionCounters,
    clocks: ClockWatch,
    /// The last pause of the driver: how long it was, and until when it counts, in milliseconds.
    paused_ms: u64,
    paused_until_ms: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Written {
    clients: u32,
    /// Those whom it was written to as it came have been told of.
    told: bool,
}

/// An entry that was written to clients.
#[derive(Debug, Clone)]
pub struct DeliveryCount {
    /// Which.
    pub entry: Arc<Entry>,
    /// How many clients it was written to.
    pub clients: u32,
    /// They were served as it came, not from what the window holds.
    pub live: bool,
}

#[derive(Debug)]
struct SlotState {
    session: Session,
    /// The one of this session's timers that counts; others in the queue are stale.
    due_ms: u64,
    queued: bool,
    blocked: bool,
    /// Counted among the open ones.
    counted: bool,
    /// Counted among the overdue ones.
    overdue: bool,
}

impl SlotState {
    /// Lets the session know that there is more for it behind `head`. Returns whether it now waits for its turn.
    fn mark(&mut self, head: u64) -> bool {
        self.session.mark(head) && !self.blocked && !std::mem::replace(&mut self.queued, true)
    }
}

/// The sessions of one user or topic; mostly there is one.
#[derive(Debug)]
enum Members {
    One(Slot),
    Many(Box<HashSet<Slot, SlotHasher>>),
}

impl SessionTable {
    /// No session yet, at the head of a log.
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

    /// To be called whenever the driver wakes, before anything else. It wanted to run at `wanted_ms`, on the monotonic
    /// clock, or `u64::MAX`: whenever something happens.
    ///
    /// If it did not run for long, because the process was stopped or the machine frozen, nobody could be pinged and nothing
    /// read: that time does not count as the clients' silence. If the wall clock was set, tokens end as it has it now, unless
    /// they end earlier. Returns for how long it did not run, in milliseconds; 0 if that is not long.
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

    /// A driver that is late by less leaves a client half of the time that it has for answering a ping.
    fn longest_delay_ms(&self) -> u64 {
        let Settings { heartbeat_ms, timeout_ms, .. } = self.settings;
        (timeout_ms.saturating_sub(heartbeat_ms) / 2).max(SHORTEST_PAUSE_MS)
    }

    fn paused_ms(&self, now: Now) -> u64 {
        if now.mono_ms < self.paused_until_ms { self.paused_ms } else { 0 }
    }

    /// The sequence of the newest entry known here.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// How many clients are connected.
    pub fn len(&self) -> usize {
        self.open
    }

    /// Whether no client is connected.
    pub fn is_empty(&self) -> bool {
        self.open == 0
    }

    /// How many clients owe an answer to a ping.
    pub fn overdue(&self) -> usize {
        self.overdue
    }

    /// How many sockets are held, those that are ending included.
    pub fn occupied(&self) -> usize {
        self.states.len()
    }

    /// What was counted since the last call.
    pub fn take_tally(&mut self) -> SessionCounters {
        std::mem::take(&mut self.tally)
    }

    /// A session, if the slot is taken.
    pub fn session(&self, slot: Slot) -> Option<&Session> {
        self.states.get(slot as usize).map(|state| &state.session)
    }

    /// The open session of a connection.
    pub fn holder(&self, connection: ConnectionId) -> Option<Slot> {
        let hash = self.hasher.hash_one(connection);
        self.connections.find(hash, |&slot| connection_at(&self.states, slot) == Some(connection)).copied()
    }

    /// Makes a session the one that its connection's events go to.
    fn hold(&mut self, connection: ConnectionId, slot: Slot) {
        let (states, hasher) = (&self.states, &self.hasher);
        let hash_of = |&slot: &Slot| hasher.hash_one(connection_at(states, slot).unwrap_or(ConnectionId(0)));
        self.connections.insert_unique(hasher.hash_one(connection), slot, hash_of);
    }

    /// Lets a session's connection go, if it still holds it.
    fn let_go(&mut self, slot: Slot) {
        let Some(connection) = connection_at(&self.states, slot) else { return };
        if let Ok(held) = self.connections.find_entry(self.hasher.hash_one(connection), |&holder| holder == slot) {
            held.remove();
        }
    }

    /// Lets a client in. An older socket of the same connection is closed.
    ///
    /// `start` and `replayed` are what the window found for it at this roster's head.
    pub fn connect(&mut self, request: ConnectRequest, start: ResumePoint, replayed: usize, now: Now) -> Slot {
        if let Some(old) = self.holder(request.connection) {
            self.close(old, CloseCode::Replaced, CloseCode::REPLACED, now);
        }
        let session = self.with_context(now, |ctx| Session::open(request, start, replayed, ctx));
        let (user, connection, topics) = (session.user().clone(), session.connection(), session.topics().to_vec());
        let slot = self.state(session);
        Members::join(&mut self.users, user, slot);
        for topic in topics {
            Members::join(&mut self.topics, topic, slot);
        }
        self.hold(connection, slot);
        self.settle_first(slot);
        slot
    }

    /// Turns a client away with a close code that it can read.
    pub fn refuse(&mut self, code: CloseCode, reason: &str, now: Now) -> Slot {
        let session = self.with_context(now, |ctx| Session::refused(code, reason, ctx));
        let slot = self.state(session);
        self.settle_first(slot);
        slot
    }

    fn state(&mut self, session: Session) -> Slot {
        let state = SlotState { session, due_ms: 0, queued: false, blocked: false, counted: false, overdue: false };
        // More than 2^32 sockets do not fit a process.
        Slot::try_from(self.states.insert(state)).unwrap_or(Slot::MAX)
    }

    /// Who is new gets its first frame before those who are being swept, however many they are.
    fn settle_first(&mut self, slot: Slot) {
        self.settle(slot);
        if self.ready.pop_back_if(|last| *last == slot).is_some() {
            self.ready.push_front(slot);
            self.in_pass += usize::from(self.in_pass > 0);
        }
    }

    /// Handles bytes from a client.
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

    /// Whether to read from a client.
    pub fn wants_input(&self, slot: Slot) -> bool {
        self.session(slot).is_some_and(Session::wants_input)
    }

    /// Closes a connection with a code and a reason.
    pub fn close(&mut self, slot: Slot, code: CloseCode, reason: &str, now: Now) {
        self.with_session(slot, now, |session, ctx| session.close(code, reason, ctx));
    }

    /// Closes every connection of a user. Returns how many there were.
    pub fn close_user(&mut self, user: &str, code: CloseCode, reason: &str, now: Now) -> usize {
        let slots: Vec<Slot> = self.users.get(user).map_or_else(Vec::new, |members| members.iter().collect());
        for &slot in &slots {
            self.close(slot, code, reason, now);
        }
        slots.len()
    }

    /// Closes every connection whose token is no longer believed. Returns how many there were.
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

    /// Tells a client when to come back, and closes it.
    pub fn go_away(&mut self, slot: Slot, reconnect_after_ms: u64, code: CloseCode, reason: &str, now: Now) {
        self.with_session(slot, now, |session, ctx| {
            if session.is_open() {
                session.enqueue(Outgoing::Goaway { reconnect_after_ms, reason }, ctx);
                session.close(code, reason, ctx);
            }
        });
    }

    /// The slots of a user's connections.
    pub fn slots_of(&self, user: &str) -> impl Iterator<Item = Slot> {
        self.users.get(user).into_iter().flat_map(Members::iter)
    }

    /// Every slot that is taken.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        self.states.iter().map(|(slot, _)| Slot::try_from(slot).unwrap_or(Slot::MAX))
    }

    /// Takes the next entries of the log; those whom they concern become ready.
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
            // Whoever becomes ready later was marked at a later head, or reads the window.
            self.let_go_of_tail(self.tail.len());
        } else {
            self.tail.extend(entries.iter().cloned());
            self.written.resize(self.tail.len(), Written::default());
            self.let_go_of_tail(self.tail.len().saturating_sub(TAIL_ENTRIES));
            if self.in_pass == 0 {
                self.begin_pass();
            }
        }
    }

    /// Takes over a head that the tail does not lead up to: everyone reads the window.
    pub fn jump(&mut self, head: u64) {
        self.mark_everyone(self.head);
        self.let_go_of_tail(self.tail.len());
        self.head = head;
    }

    /// The epoch that this roster's positions are of.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Looks for what is new in the window: goes on in its log if that is another one by now, and puts the entries to
    /// [`take_news`](Self::take_news) into `entries`, so that the window need not be locked meanwhile.
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

    /// Takes what [`look`](Self::look) found.
    pub fn take_news(&mut self, news: News, entries: &[Arc<Entry>]) {
        match news {
            // More came than the window holds: each session reads what is left, and is told what is not.
            News::Jump(head) => self.jump(head),
            News::Entries if !entries.is_empty() => self.advance(entries),
            News::Entries => {}
        }
    }

    /// Goes on in the log that the window has become the tail of. Clients whose cursor is no longer what it was are told
    /// (`gap: reset`); the others don't notice.
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
        self.let_go_of_tail(self.tail.len());
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

    /// The next session whose turn it is.
    pub fn next_ready(&mut self) -> Option<Slot> {
        if self.in_pass == 0 && !self.tail.is_empty() && !self.ready.is_empty() {
            self.tell_written();
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
        self.let_go_of_tail(self.tail.len());
        None
    }

    /// All who are ready now have a turn before it is told what they were written. A client that is replayed is ready
    /// for long, and those that are live must not wait for it.
    fn begin_pass(&mut self) {
        (self.in_pass, self.pass_head) = (self.ready.len(), self.head);
    }

    /// Tells what was written of the tail, which goes on being served from.
    fn tell_written(&mut self) {
        for (entry, written) in self.tail.iter().zip(&mut self.written) {
            if entry.sequence > self.pass_head {
                return;
            }
            self.deliveries.extend(written.take(entry));
        }
    }

    /// Nobody is served from the oldest of the tail any more.
    fn let_go_of_tail(&mut self, count: usize) {
        for (entry, mut written) in self.tail.drain(..count).zip(self.written.drain(..count)) {
            self.deliveries.extend(written.take(&entry));
        }
    }

    /// What was written since the last call, entry by entry.
    pub fn take_deliveries(&mut self) -> Vec<DeliveryCount> {
        std::mem::take(&mut self.deliveries)
    }

    /// The events that clients said they have handled since the last call.
    pub fn take_acknowledged(&mut self) -> Vec<Box<str>> {
        std::mem::take(&mut self.acknowledged)
    }

    /// The open sessions that may see what is for `audience`.
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

    /// How many clients hold a topic.
    pub fn holders_of_topic(&self, topic: &str) -> usize {
        self.topics.get(topic).map_or(0, |members| members.iter().count())
    }

    /// Tells who holds `$sys` how all nodes stand; who does not take it as fast is told the next time.
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

    /// The sessions that are farthest behind the head and wait for their sockets, at most `count`, with how far they are.
    pub fn slowest(&self, count: usize) -> Vec<(&Session, u64)> {
        let blocked = self.states.iter().filter(|(_, state)| state.blocked);
        let mut slow: Vec<_> = blocked
            .filter_map(|(_, state)| Some((&state.session, self.head.saturating_sub(state.session.behind()?))))
            .collect();
        slow.sort_by_key(|(_, distance)| Reverse(*distance));
        slow.truncate(count);
        slow
    }

    /// How many sessions wait for their sockets to take more, and how many entries the last of them is behind the head.
    pub fn behind(&self) -> (usize, u64) {
        let blocked = self.states.iter().filter(|(_, state)| state.blocked);
        let distances =
            blocked.map(|(_, state)| state.session.behind().map_or(0, |cursor| self.head.saturating_sub(cursor)));
        distances.fold((0, 0), |(count, farthest), distance| (count + 1, farthest.max(distance)))
    }

    /// Whether a session waits for its turn.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Lets a session send what waits for it and what lies behind its cursor, up to one turn's worth.
    pub fn serve(
        &mut self,
        slot: Slot,
        past: &impl History,
        now: Now,
        sink: &mut impl FnMut(&[IoSlice<'_>]) -> usize,
    ) -> Served {
        let Some(cursor) = self.states.get(slot as usize).map(|state| state.session.behind()) else {
            return Served::Finished;
        };
        let all = match cursor {
            None => self.flush_output(slot, sink),
            Some(cursor) if self.tail_reaches(cursor) => self.serve_from_tail(slot, cursor, sink),
            Some(cursor) => self.serve_from_past(slot, cursor, past, now, sink),
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

    fn serve_from_past(
        &mut self,
        slot: Slot,
        cursor: u64,
        past: &impl History,
        now: Now,
        sink: &mut impl FnMut(&[IoSlice<'_>]) -> usize,
    ) -> bool {
        let mut entries = std::mem::take(&mut self.scratch);
        let viewer = self.states[slot as usize].session.viewer();
        let place = Position { epoch: self.epoch, sequence: cursor };
        let read = past.read(place, self.head, viewer, &mut entries);
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

    /// Lets a session that was blocked have its turn again.
    pub fn writable(&mut self, slot: Slot) {
        if let Some(state) = self.states.get_mut(slot as usize)
            && std::mem::take(&mut state.blocked)
        {
            self.settle(slot);
        }
    }

    /// Brings queue, timer and counts in line with what a session has become.
    fn settle(&mut self, slot: Slot) {
        let Some(state) = self.states.get_mut(slot as usize) else { return };
        let session = &state.session;
        // A finished session has nothing left that could be blocked.
        state.blocked &= !session.is_finished();
        let has_turn = session.has_output() || session.behind().is_some() || session.is_finished();
        if has_turn && !state.blocked && !std::mem::replace(&mut state.queued, true) {
            self.ready.push_back(slot);
        }
        // A timer that fires early finds nothing due and is set anew; one that would fire late is replaced.
        let due = session.due_ms(&self.settings);
        if due < u64::MAX && (state.due_ms == 0 || due < state.due_ms) {
            state.due_ms = due;
            self.timers.push(Reverse((due, slot)));
        }
        count(&mut self.open, &mut state.counted, session.is_open());
        count(&mut self.overdue, &mut state.overdue, session.is_open() && session.is_overdue());
        if !session.is_open() {
            self.let_go(slot);
        }
    }

    /// When [`timeouts`](Self::timeouts) is to be called, in the monotonic milliseconds of [`Now`].
    pub fn next_due(&self) -> Option<u64> {
        self.timers.peek().map(|Reverse((due, _))| *due)
    }

    /// Does all that is due: pings, the ends of silent and of closing clients.
    ///
    /// Before a silent client is closed, `read` gives this roster what its socket holds, and says whether the socket is still
    /// there; of one that is not, nothing is done.
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

    /// Takes a session out whose socket is gone or can go. Returns why it ended; `None` if the socket just broke.
    pub fn remove(&mut self, slot: Slot) -> Option<CloseCode> {
        self.let_go(slot);
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

/// Only input brings tokens.
fn no_token(_: &str) -> Result<Grant, Denied> {
    Err(Denied { code: "token_invalid", message: "no token is read here".to_owned() })
}

/// Keeps a count in line with one that may be counted in it.
fn count(total: &mut usize, counted: &mut bool, now: bool) {
    match (std::mem::replace(counted, now), now) {
        (false, true) => *total += 1,
        (true, false) => *total -= 1,
        _ => {}
    }
}

impl Written {
    fn take(&mut self, entry: &Arc<Entry>) -> Option<DeliveryCount> {
        let clients = std::mem::take(&mut self.clients);
        if clients == 0 {
            return None;
        }
        entry.written.fetch_add(clients, Ordering::Relaxed);
        Some(DeliveryCount { entry: entry.clone(), clients, live: !std::mem::replace(&mut self.told, true) })
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

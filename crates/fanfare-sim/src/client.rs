//! A simulated client: connects, reconnects with its cursor, answers pings, reads slowly at times, and disconnects at
//! random.

use crate::{
    net::Event,
    node::{Input, request},
    world::World,
};
use fanfare_client::{
    Notification, State as Standing,
    machine::{End, Link},
};
use fanfare_core::{ConnectionId, Position, ws};
use std::{io::IoSlice, sync::Arc, time::Instant};

/// What a client stores as its cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stores {
    /// The `event_id` of every frame.
    EveryId,
    /// The position of each event, and that of the first `ack` until there is an event.
    Positions,
    /// What the Rust client stores. This client is the Rust client without its socket.
    Listener,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Cursor {
    None,
    Event(u32),
    At(Position),
    Text(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Disconnected until this time.
    Away(u64),
    /// Waiting for its `ack` until this time.
    Connecting(u64),
    /// Connected until the first time, unless no frame arrives until the second.
    Online(u64),
}

#[derive(Debug)]
pub(crate) struct Client {
    number: usize,
    user: Arc<str>,
    topics: Vec<Arc<str>>,
    connection: ConnectionId,
    stores: Stores,
    cursor: Cursor,
    link: Link,
    state: State,
    node: usize,
    attempt: u64,
    input: Vec<u8>,
    /// Reads nothing until this time.
    busy_until: u64,
    blocked: bool,
    last_frame_at: u64,
    random: fastrand::Rng,
}

impl Client {
    pub(crate) fn new(number: usize, users: usize, topics: usize, mut random: fastrand::Rng) -> Self {
        let stores = match random.u8(0..4) {
            0 | 1 => Stores::EveryId,
            2 => Stores::Positions,
            _ => Stores::Listener,
        };
        let topic = format!("t{}", number % topics);
        let mut link = Link::new("ws://hub", Some("a token"), instant()).expect("a valid URL");
        link.subscribe(&topic).expect("a valid topic");
        Self {
            number,
            user: format!("u{}", number % users).into(),
            topics: vec![topic.into()],
            link,
            connection: connection_of(number, 0),
            stores,
            cursor: Cursor::None,
            state: State::Away(0),
            node: 0,
            attempt: 0,
            input: Vec::new(),
            busy_until: 0,
            blocked: false,
            last_frame_at: 0,
            random,
        }
    }

    pub(crate) fn user(&self) -> &Arc<str> {
        &self.user
    }

    pub(crate) fn connection(&self) -> ConnectionId {
        self.connection
    }

    pub(crate) fn is_online(&self) -> bool {
        matches!(self.state, State::Online(_))
    }

    /// Takes the steps that are due.
    pub(crate) fn step(&mut self, world: &World) {
        let now = world.net.now();
        if self.blocked && now >= self.busy_until {
            self.blocked = false;
            world.tell_node(self.node, Input::Writable(self.attempt));
        }
        match self.state {
            State::Away(until) if now >= until => self.connect(world, now),
            State::Connecting(until) if now >= until => self.leave(world, now),
            State::Online(until) if now >= until && !world.is_calm() => self.leave(world, now),
            // No ping arrived, as from a stopped node.
            State::Online(_) if now > self.last_frame_at + 13_000 => self.leave(world, now),
            State::Online(_) if world.node_hangs(self.node) && self.random.u8(0..6) == 0 => self.leave(world, now),
            _ => {}
        }
        world.net.schedule(now + 500 + self.random.u64(0..1_000), Event::Client(self.number));
    }

    fn connect(&mut self, world: &World, now: u64) {
        self.node = self.random.usize(0..world.plan.nodes);
        self.attempt = world.fresh_attempt();
        self.input.clear();
        (self.blocked, self.last_frame_at) = (false, now);
        self.state = State::Connecting(now + 3_000);
        let last = match &self.cursor {
            _ if self.stores == Stores::Listener => self.listener_cursor(),
            Cursor::None => None,
            Cursor::Event(number) => Some(format!("e{number}")),
            Cursor::At(position) => Some(position.to_string()),
            Cursor::Text(text) => Some(text.clone()),
        };
        world.note(|| format!("client {} connects to node {} with {last:?}", self.number, self.node));
        let request = request(&self.user, &self.topics, self.connection, last);
        world.connect(self.node, request, self.number, self.attempt);
    }

    /// The cursor in the URL that the Rust client builds.
    fn listener_cursor(&mut self) -> Option<String> {
        let url = self.link.address();
        self.link.opened(instant());
        url.query_pairs().find(|(name, _)| name == "last_event_id").map(|(_, value)| value.into_owned())
    }

    /// Closes its socket.
    fn leave(&mut self, world: &World, now: u64) {
        world.tell_node(self.node, Input::Gone(self.attempt));
        self.away(world, now);
    }

    fn away(&mut self, world: &World, now: u64) {
        let long = if !world.is_calm() && self.random.u8(0..8) == 0 { 6_000 } else { 400 };
        let until = now + self.random.u64(0..long);
        if self.stores == Stores::Listener {
            let _ = self.link.ended(End::Lost("gone".to_owned()), instant(), 0.5);
        }
        self.attempt = 0;
        self.state = State::Away(until);
        world.net.schedule(until, Event::Client(self.number));
    }

    /// The node closed the socket, or its process ended.
    pub(crate) fn socket_ended(&mut self, attempt: u64, world: &World) {
        if attempt == self.attempt && attempt != 0 {
            self.away(world, world.net.now());
        }
    }

    /// The node's process ended.
    pub(crate) fn node_ended(&mut self, node: usize, world: &World) {
        if node == self.node && !matches!(self.state, State::Away(_)) {
            self.away(world, world.net.now());
        }
    }

    /// Accepts bytes from a node. Returns how many were accepted; `None` if the socket is closed.
    pub(crate) fn take(&mut self, attempt: u64, slices: &[IoSlice<'_>], world: &World) -> Option<usize> {
        if attempt != self.attempt {
            return None;
        }
        let now = world.net.now();
        if now < self.busy_until {
            self.wait(world);
            return Some(0);
        }
        let all: usize = slices.iter().map(|slice| slice.len()).sum();
        let mut left = all;
        if self.random.u8(..) == 0 {
            // The socket buffer is full in the middle of a frame.
            left = self.random.usize(0..=all);
            self.busy_until = now + if self.random.u8(0..8) == 0 { self.random.u64(0..3_000) } else { 2 };
        }
        let taken = left;
        for slice in slices {
            let part = &slice[..left.min(slice.len())];
            left -= part.len();
            self.feed(part, now, world);
        }
        if taken < all {
            self.wait(world);
        }
        Some(taken)
    }

    fn wait(&mut self, world: &World) {
        self.blocked = true;
        world.net.schedule(self.busy_until + 1, Event::Client(self.number));
    }

    fn feed(&mut self, bytes: &[u8], now: u64, world: &World) {
        if self.input.is_empty() {
            let mut rest = bytes;
            while let Some((opcode, payload, used)) = frame(rest) {
                self.frame(opcode, payload, now, world);
                rest = &rest[used..];
            }
            self.input.extend_from_slice(rest);
            return;
        }
        self.input.extend_from_slice(bytes);
        let input = std::mem::take(&mut self.input);
        self.feed(&input, now, world);
    }

    /// An `ack` arrived: the first one of the connection, or a later one.
    fn acknowledged(&mut self, name: Option<&str>, now: u64, world: &World) {
        if let Some(given) = name.and_then(|given| given.parse().ok()) {
            self.connection = given;
        }
        if !self.is_online() {
            let stay = if self.random.u8(0..4) == 0 { 3_000 } else { 40_000 };
            self.state = State::Online(now + self.random.u64(500..stay));
        }
        world.acknowledged_client(self.number, now);
    }

    /// Passes a frame to the Rust client.
    fn receive(&mut self, payload: &[u8], now: u64, world: &World) {
        let text = str::from_utf8(payload).unwrap_or_default();
        // The application has processed the previous notification.
        self.link.go_on();
        let notification = self.link.receive(text, instant());
        while let Some(message) = self.link.next_message() {
            let mut frame = Vec::new();
            ws::push_client_frame(&mut frame, ws::Opcode::Text, message.as_bytes(), [1, 2, 3, 4]);
            world.tell_node(self.node, Input::Bytes(self.attempt, frame));
        }
        match notification {
            Some(Notification::Event(event)) => {
                let number = event.event_id().strip_prefix('e').and_then(|number| number.parse().ok());
                let position = event.log_position().and_then(|text| text.parse().ok());
                world.delivered(self.number, number.unwrap_or(u32::MAX), position, now);
            }
            Some(Notification::Gap(gap)) => {
                world.note(|| format!("client {} receives {gap:?}", self.number));
                let place = field(payload, b"\"event_id\":\"").unwrap_or_default();
                let epoch = place.parse::<Position>().map_or(0, |position| position.epoch);
                world.told_of_gap(self.number, epoch, gap.reason == "reset", now);
            }
            Some(Notification::State(Standing::Live { connection_id, .. })) => {
                self.acknowledged(Some(&connection_id), now, world);
            }
            Some(Notification::Problem(problem)) => world.fail(format!("client: {} reports {problem:?}", self.number)),
            _ => {}
        }
    }

    fn frame(&mut self, opcode: u8, payload: &[u8], now: u64, world: &World) {
        self.last_frame_at = now;
        if opcode != 1 {
            return;
        }
        if self.stores == Stores::Listener {
            self.receive(payload, now, world);
            return;
        }
        let kind = field(payload, b"\"type\":\"").unwrap_or_default();
        let id = field(payload, b"\"event_id\":\"").unwrap_or_default();
        if kind == "sim" {
            let number = id.strip_prefix('e').and_then(|number| number.parse().ok()).unwrap_or(u32::MAX);
            let position = field(payload, b"\"log_position\":\"").and_then(|text| text.parse::<Position>().ok());
            self.cursor = match (self.stores, position) {
                (Stores::Positions, Some(position)) => Cursor::At(position),
                _ => Cursor::Event(number),
            };
            world.delivered(self.number, number, position, now);
            return;
        }
        world.note(|| format!("client {} reads {}", self.number, String::from_utf8_lossy(payload)));
        match kind {
            "ping" => {
                let mut pong = Vec::new();
                ws::push_client_frame(&mut pong, ws::Opcode::Text, br#"{"type":"pong"}"#, [1, 2, 3, 4]);
                world.tell_node(self.node, Input::Bytes(self.attempt, pong));
            }
            "ack" => self.acknowledged(field(payload, b"\"connection_id\":\""), now, world),
            "gap" => {
                let epoch = id.parse::<Position>().map_or(0, |position| position.epoch);
                let reset = field(payload, b"\"reason\":\"") == Some("reset");
                if reset && matches!(self.cursor, Cursor::Event(_)) {
                    world.count_uncertain();
                }
                world.told_of_gap(self.number, epoch, reset, now);
            }
            _ => {}
        }
        if !id.is_empty() && (self.stores == Stores::EveryId || self.cursor == Cursor::None) {
            self.cursor = match id.strip_prefix('e').and_then(|number| number.parse().ok()) {
                Some(number) => Cursor::Event(number),
                None => Cursor::Text(id.to_owned()),
            };
        }
    }
}

/// The current simulated time.
fn instant() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The ID of the connection that a node issued to a client in the epoch with this tag; tag 0: none was issued yet.
pub(crate) fn connection_of(number: usize, tag: u32) -> ConnectionId {
    ConnectionId::from_halves([u64::from(tag) << 44 | 0x8000 | (number as u64) << 16, 1 << 63 | number as u64])
}

/// Parses the first frame from a server: its opcode, its payload and its length.
fn frame(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let (opcode, length) = (bytes.first()? & 15, usize::from(*bytes.get(1)?));
    let (length, head) = match length {
        126 => (usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
        127 => (usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?, 10),
        length => (length, 2),
    };
    Some((opcode, bytes.get(head..head + length)?, head + length))
}

/// The value of a string field without escaped characters.
fn field<'a>(json: &'a [u8], name: &[u8]) -> Option<&'a str> {
    let begin = json.windows(name.len()).position(|part| part == name)? + name.len();
    let length = json[begin..].iter().position(|byte| *byte == b'"')?;
    str::from_utf8(&json[begin..begin + length]).ok()
}

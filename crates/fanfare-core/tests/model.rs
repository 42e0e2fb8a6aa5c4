//! Window, session table and sessions under virtual time, against a reference model.
//!
//! For any sequence of publishes, stalls, disconnects and reconnects, every client receives exactly its events, in
//! order, each once, or a `gap` if events are no longer available.
//!
//! The model is the view of the client. It decodes the bytes that a session sent. At every message it checks against
//! the full history, including evicted events, that no event for the client lies between its last position and the
//! position of the message.

#![expect(clippy::unwrap_used, reason = "a failed precondition fails the test")]

use fanfare_core::{
    Audience, ConnectionId, Draft, Grant, Lineage, Position,
    audience::TAG_BITS,
    lineage::{Loss, tag},
    session::{ConnectRequest, Denied, Settings},
    session_table::{Served, SessionTable, Slot},
    time::Now,
    window::{Bounds, Entry, Window},
    ws,
};
use proptest::prelude::*;
use serde_json::Value;
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

const EPOCH: u64 = 0xfa;
const USERS: [&str; 2] = ["ann", "bob"];
const TOPICS: [&str; 3] = ["a", "b", "c"];
const CLIENTS: usize = 4;
const HORIZON_MS: u64 = 120_000;

#[derive(Debug, Clone)]
enum Op {
    /// Appends events, each for one of a few audiences.
    Publish(Vec<u8>),
    /// Publishes an event again under the n-th last `event_id`, unless the log recognises it as a duplicate.
    Repeat(u8, usize),
    /// The shard takes the new entries of the window.
    Pull,
    /// A client connects, with the n-th last position or `event_id` that it received as its cursor, or another one.
    Connect { client: usize, resume: Resume, topics: u8 },
    /// A client's socket breaks.
    Cut(usize),
    /// A client's socket accepts this number of further bytes.
    Drain(usize, usize),
    /// The shard serves this number of turns.
    Serve(usize),
    /// A client subscribes or unsubscribes.
    Topic { client: usize, topic: usize, subscribe: bool },
    /// A client sends a `ping`.
    Ping(usize),
    /// Time passes, in milliseconds.
    Wait(u64),
    /// The log loses its newest entries and continues under a new epoch. If `whole`, no other event can be lost.
    Lose { newest: usize, whole: bool },
}

#[derive(Debug, Clone)]
enum Resume {
    No,
    Seen(usize),
    /// By the `event_id`, as clients of the FastAPI hub do.
    Bare(usize),
    Unknown,
    OtherLog,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let client = 0..CLIENTS;
    let resume = prop_oneof![
        1 => Just(Resume::No),
        4 => (0usize..8).prop_map(Resume::Seen),
        4 => (0usize..8).prop_map(Resume::Bare),
        1 => Just(Resume::Unknown),
        1 => Just(Resume::OtherLog),
    ];
    let op = prop_oneof![
        5 => prop::collection::vec(any::<u8>(), 1..6).prop_map(Op::Publish),
        1 => prop::collection::vec(any::<u8>(), 60..110).prop_map(Op::Publish),
        2 => (any::<u8>(), 0usize..150).prop_map(|(kind, back)| Op::Repeat(kind, back)),
        4 => Just(Op::Pull),
        3 => (client.clone(), resume, 0u8..8)
            .prop_map(|(client, resume, topics)| Op::Connect { client, resume, topics }),
        1 => client.clone().prop_map(Op::Cut),
        4 => (client.clone(), prop_oneof![0usize..200, 0usize..20_000]).prop_map(|(c, n)| Op::Drain(c, n)),
        4 => (1usize..6).prop_map(Op::Serve),
        2 => (client.clone(), 0..TOPICS.len(), any::<bool>())
            .prop_map(|(client, topic, subscribe)| Op::Topic { client, topic, subscribe }),
        1 => client.prop_map(Op::Ping),
        1 => prop_oneof![0u64..2_000, 0u64..40_000, 0u64..200_000].prop_map(Op::Wait),
        1 => (0usize..40, any::<bool>()).prop_map(|(newest, whole)| Op::Lose { newest, whole }),
    ];
    prop::collection::vec(op, 1..120)
}

/// The node under test, the model of every client, and the full history of the log.
struct World {
    window: Window,
    sessions: SessionTable,
    now: Now,
    /// Each event, with its audience and the time of its append.
    history: Vec<(String, Audience, u64)>,
    /// The epochs of the log, each with the last surviving sequence of earlier epochs and the possible loss.
    epochs: Vec<(u64, u64, Loss)>,
    /// The IDs that the log remembers, each with the time from which it remembers it.
    ids: HashMap<String, u64>,
    /// All IDs that were ever published.
    made: Vec<String>,
    /// When an event was last appended under each ID.
    published: HashMap<String, u64>,
    /// IDs that were reused after the horizon. Only a position identifies their events.
    reused: BTreeSet<String>,
    clients: Vec<Client>,
}

struct Client {
    user: Arc<str>,
    connection: ConnectionId,
    slot: Option<Slot>,
    /// Number of bytes that its socket still accepts.
    room: usize,
    bytes: Vec<u8>,
    /// The topics of the client at the position up to which it has received messages.
    topics: BTreeSet<String>,
    wanted: Vec<Arc<str>>,
    /// The expected answer to its connect: the sequence, and whether a gap must follow.
    expected: Option<(u64, bool)>,
    /// Whether the last `ack` announced a gap, which must be the next message.
    owed_gap: bool,
    /// Whether the client received, or may have received, events that the log lost. A `gap` must precede newer events.
    due_reset: bool,
    /// The number of epochs at the client's last connect or `reset`.
    known_epochs: usize,
    /// The sequence of the last message.
    place: u64,
    /// The position and the ID of each message.
    seen: Vec<(Position, String)>,
    gaps: usize,
    /// The cursor of its connect, and the position at which the client received it.
    sent: Option<(Position, String)>,
}

impl World {
    fn new() -> Self {
        let settings = Settings {
            heartbeat_ms: 10_000,
            timeout_ms: 25_000,
            close_ms: 1_000,
            limits: ws::Limits { max_frame_bytes: 1_000, max_message_bytes: 1_000 },
            frames_per_second: 0,
            max_topics: TOPICS.len(),
            warn_ms: 5_000,
            echo: false,
        };
        let clients = (0..CLIENTS).map(|i| Client::new(USERS[i % USERS.len()], i)).collect();
        let bounds = Bounds { events: 90, bytes: 40_000, age_ms: 60_000, ids: 10_000, ids_ms: HORIZON_MS };
        Self {
            window: Window::new(Lineage::new(EPOCH), 0, bounds),
            sessions: SessionTable::new(settings, EPOCH, 0),
            now: Now { mono_ms: 1_000, unix_ms: 1_000_000 },
            history: Vec::new(),
            epochs: vec![(EPOCH, 0, Loss::Nothing)],
            ids: HashMap::new(),
            made: Vec::new(),
            published: HashMap::new(),
            reused: BTreeSet::new(),
            clients,
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Publish(audiences) => {
                for kind in audiences {
                    let id = format!("e{}", self.made.len() + 1);
                    self.made.push(id.clone());
                    self.publish(kind, id);
                }
            }
            Op::Repeat(kind, back) => {
                if let Some(id) = self.made.iter().rev().nth(back).cloned() {
                    self.repeat(kind, id);
                }
            }
            Op::Pull => self.pull(),
            Op::Connect { client, resume, topics } => self.connect(client, &resume, topics),
            Op::Cut(client) => self.cut(client),
            Op::Drain(client, n) => self.drain(client, n),
            Op::Serve(turns) => self.serve(turns),
            Op::Topic { client, topic, subscribe } => {
                let kind = if subscribe { "subscribe" } else { "unsubscribe" };
                self.send(client, &format!(r#"{{"type":"{kind}","topic":"{}"}}"#, TOPICS[topic]));
            }
            Op::Ping(client) => self.send(client, r#"{"type":"ping"}"#),
            Op::Wait(ms) => self.wait(ms),
            Op::Lose { newest, whole } => self.lose(newest, whole),
        }
    }

    /// Publishes an event under an ID that was used before, as a log does: an ID is a duplicate within the horizon.
    fn repeat(&mut self, kind: u8, id: String) {
        let now = self.now.unix_ms;
        if self.ids.get(&id).is_some_and(|learned| now - learned <= HORIZON_MS) {
            return;
        }
        if now - self.published[&id] > HORIZON_MS {
            self.reused.insert(id.clone());
        }
        self.publish(kind, id);
    }

    fn publish(&mut self, kind: u8, id: String) {
        let audience = match kind % 8 {
            0..=2 => Audience::Everyone,
            3 | 4 => Audience::User(USERS[kind as usize / 8 % USERS.len()].into()),
            5 => Audience::Connection(self.clients[kind as usize / 8 % CLIENTS].connection),
            _ => Audience::Topic(TOPICS[kind as usize / 8 % TOPICS.len()].into()),
        };
        let pad = "x".repeat(kind as usize * 2);
        let draft = Draft::new("note", &serde_json::json!({ "pad": pad })).unwrap();
        let event = draft.finish(self.now.unix_ms, || id.clone()).unwrap();
        let place = Position { epoch: self.window.epoch(), sequence: self.window.head() + 1 };
        self.window.push(Arc::new(Entry::new(place, self.now.unix_ms, audience.clone(), &event)));
        self.ids.insert(id.clone(), self.now.unix_ms);
        self.published.insert(id.clone(), self.now.unix_ms);
        self.history.push((id, audience, self.now.unix_ms));
    }

    fn lose(&mut self, newest: usize, whole: bool) {
        let survived = self.history.len().saturating_sub(newest);
        let began_ms = self.now.unix_ms;
        let loss = match (whole, newest) {
            (false, _) => Loss::Events { began_ms },
            (true, 0) => Loss::Nothing,
            (true, _) => Loss::Ids { began_ms },
        };
        self.history.truncate(survived);
        let (survived, epoch) = (survived as u64, EPOCH + 100 + self.epochs.len() as u64);
        self.epochs.push((epoch, survived, loss));
        let mut lineage = self.window.lineage().clone();
        lineage.begin(epoch, survived, loss);
        self.window.adopt(lineage, survived);
        if loss != Loss::Nothing {
            // The IDs of lost events and of evicted events are forgotten.
            let held: BTreeSet<_> = self.window.since(0).map(|entry| entry.event_id.to_string()).collect();
            self.ids.retain(|id, _| held.contains(id));
        }
        for client in &mut self.clients {
            let place = client.expected.map_or(client.place, |(place, _)| place);
            client.due_reset |= !whole || place > survived;
        }
    }

    /// Returns up to which sequence an epoch is part of the log, and whether no event of it can be lost beyond that.
    fn end_of(&self, epoch: u64) -> Option<(u64, bool)> {
        let at = self.epochs.iter().position(|(id, ..)| *id == epoch)?;
        let later = &self.epochs[at + 1..];
        let end = later.iter().map(|(_, after, _)| *after).fold(self.window.head(), u64::min);
        Some((end, !later.iter().any(|(_, _, loss)| matches!(loss, Loss::Events { .. }))))
    }

    /// Takes the new entries of the window, as a shard does.
    fn pull(&mut self) {
        let mut entries = Vec::new();
        let news = self.sessions.look(&self.window, self.now, &mut entries);
        self.sessions.take_news(news, &entries);
    }

    fn connect(&mut self, index: usize, resume: &Resume, topics: u8) {
        // A shard adopts a new epoch before it accepts a connection.
        if self.sessions.epoch() != self.window.epoch() {
            self.pull();
        }
        if matches!(resume, Resume::No) {
            // A client without a cursor is a new client: its connection ID is issued in this epoch.
            self.cut(index);
            let issued_in = u128::from(tag(self.window.epoch())) << (u128::BITS - TAG_BITS);
            self.clients[index].connection = ConnectionId(issued_in | index as u128);
            self.clients[index].seen.clear();
        }
        let client = &mut self.clients[index];
        let old = client.slot.take();
        let mut truth = None;
        let last = match resume {
            Resume::No => None,
            Resume::Seen(back) => client.seen.iter().rev().nth(*back).map(|(place, _)| place.to_string()),
            Resume::Bare(back) => client.seen.iter().rev().nth(*back).map(|(place, id)| {
                truth = Some(*place);
                // An ID that is reused after the horizon is not a valid cursor.
                if self.reused.contains(id) { place.to_string() } else { id.clone() }
            }),
            Resume::Unknown => Some("unknown-id".to_owned()),
            Resume::OtherLog => Some(Position { epoch: EPOCH + 1, sequence: 3 }.to_string()),
        };
        let head = self.window.head();
        let issued_in = self.clients[index].connection.epoch_tag();
        let expected = last.as_deref().map_or((head, false), |id| self.expected_start(id, issued_in));
        let client = &mut self.clients[index];
        client.sent = truth.zip(last.clone());
        client.expected = Some(expected);
        client.due_reset = false;
        client.known_epochs = self.epochs.len();
        client.wanted = (0..TOPICS.len()).filter(|i| topics >> i & 1 == 1).map(|i| TOPICS[i].into()).collect();
        client.topics = client.wanted.iter().map(|topic| topic.to_string()).collect();
        (client.room, client.owed_gap) = (0, false);
        client.bytes.clear();
        let grant = Grant { user: client.user.clone(), topics: vec!["*".into()], ..Grant::default() };
        let wanted = client.wanted.clone();
        let request =
            ConnectRequest::new(grant, client.connection, last.clone(), wanted.iter().map(|t| &**t), TOPICS.len());
        let start = self.window.start(last.as_deref(), request.connection);
        if let (Some(truth), None) = (truth, start.gap) {
            let (end, _) = self.end_of(truth.epoch).unwrap();
            assert!(
                truth.sequence <= end && truth.sequence == start.cursor,
                "{last:?} was received at {truth}, but resumes at {start:?} without a gap"
            );
        }
        let replayed = self.window.count(start.cursor, request.viewer());
        let visible = (start.cursor + 1..=head).filter(|s| self.sees(index, *s)).count();
        assert_eq!(replayed, visible, "the ack has the number of retained events for the client");
        self.clients[index].slot = Some(self.sessions.connect(request, start, replayed, self.now));
        // The older session of the same connection is closed. Its client no longer uses it.
        if let Some(old) = old {
            assert!(!self.sessions.session(old).unwrap().is_open());
            self.sessions.remove(old);
        }
    }

    /// Returns where a client with the cursor `id` must resume, and whether it must receive a gap.
    fn expected_start(&self, id: &str, issued_in: u32) -> (u64, bool) {
        let floor = self.window.floor();
        let place = match id.parse::<Position>() {
            Ok(position) => self.end_of(position.epoch).map(|(end, whole)| {
                let broken = position.sequence > end || !whole;
                (position.sequence.min(end), broken)
            }),
            Err(_) => self.history_place(id).filter(|(place, _)| *place >= floor).map(|(place, appended_ms)| {
                let since = self.epochs.iter().position(|(epoch, ..)| tag(*epoch) == issued_in).map_or(0, |at| at + 1);
                let uncertain = |(_, after, loss): &(u64, u64, Loss)| match *loss {
                    Loss::Nothing => false,
                    Loss::Ids { .. } if place <= *after => false,
                    Loss::Events { .. } if place <= *after => true,
                    Loss::Ids { began_ms } | Loss::Events { began_ms } => appended_ms <= began_ms + HORIZON_MS,
                };
                (place, self.epochs[since..].iter().any(uncertain))
            }),
        };
        place.map_or((floor, true), |(place, gap)| (place.max(floor), gap || place < floor))
    }

    /// Returns the newest sequence of an ID, and the time of its append.
    fn history_place(&self, id: &str) -> Option<(u64, u64)> {
        let at = self.history.iter().rposition(|(known, ..)| known == id)?;
        Some((at as u64 + 1, self.history[at].2))
    }

    /// Returns whether the log lost the event at a position.
    fn is_lost(&self, place: Position) -> bool {
        place.sequence > self.end_of(place.epoch).expect("only positions of this log are sent").0
    }

    fn sees(&self, index: usize, sequence: u64) -> bool {
        let client = &self.clients[index];
        match &self.history[usize::try_from(sequence).unwrap() - 1].1 {
            Audience::Everyone => true,
            Audience::User(user) => *user == client.user,
            Audience::Connection(id) => *id == client.connection,
            Audience::Topic(topic) => client.topics.contains(&**topic),
        }
    }

    fn cut(&mut self, index: usize) {
        if let Some(slot) = self.clients[index].slot.take() {
            self.sessions.remove(slot);
        }
    }

    fn drain(&mut self, index: usize, n: usize) {
        self.clients[index].room += n;
        if let Some(slot) = self.clients[index].slot {
            self.sessions.writable(slot);
        }
    }

    fn send(&mut self, index: usize, text: &str) {
        let Some(slot) = self.clients[index].slot else { return };
        let mut frame = masked(text);
        self.sessions.input(slot, &mut frame, self.now, &|_| Err(Denied { code: "no", message: String::new() }));
    }

    fn wait(&mut self, ms: u64) {
        self.now.mono_ms += ms;
        self.now.unix_ms += ms;
        self.window.expire(self.now.unix_ms);
        self.sessions.timeouts(self.now, &mut |_, _| true);
    }

    fn serve(&mut self, turns: usize) {
        for _ in 0..turns {
            let Some(slot) = self.sessions.next_ready() else { return };
            self.turn(slot);
        }
    }

    fn turn(&mut self, slot: Slot) -> Served {
        let index = self.clients.iter().position(|client| client.slot == Some(slot));
        let Some(index) = index else {
            return self
                .sessions
                .serve(slot, &self.window, self.now, &mut |slices| slices.iter().map(|s| s.len()).sum());
        };
        let client = &mut self.clients[index];
        let (room, bytes) = (&mut client.room, &mut client.bytes);
        let served = self.sessions.serve(slot, &self.window, self.now, &mut |slices| {
            let mut taken = 0;
            for slice in slices {
                let n = slice.len().min(*room);
                bytes.extend_from_slice(&slice[..n]);
                *room -= n;
                taken += n;
            }
            taken
        });
        self.read(index);
        if served == Served::Finished {
            self.cut(index);
        }
        served
    }

    /// Decodes all complete frames that the client has received, and checks each.
    fn read(&mut self, index: usize) {
        while let Some((opcode, payload)) = next_frame(&mut self.clients[index].bytes) {
            if opcode != 1 {
                continue;
            }
            let message: Value = serde_json::from_slice(&payload).unwrap();
            let id = message["event_id"].as_str().unwrap().to_owned();
            let kind = message["type"].as_str().unwrap();
            let position = message["log_position"].as_str().unwrap_or(&id).parse::<Position>();
            assert_eq!(kind == "note", message.get("log_position").is_some(), "{message}");
            let (place, old, lost) = match self.clients[index].expected {
                // A client that stores this cursor and is disconnected before the gap receives the gap again.
                Some((place, true)) if kind == "ack" => {
                    assert_eq!(
                        message["event_id"], message["ack_event_id"],
                        "an ack before a gap has the cursor of the request"
                    );
                    (place, true, false)
                }
                _ => {
                    let position = position.unwrap();
                    let survived = self.epochs.last().map_or(0, |(_, after, _)| *after);
                    let old =
                        position.epoch != self.window.epoch() || (kind == "note" && position.sequence <= survived);
                    (position.sequence, old, self.is_lost(position))
                }
            };
            if self.clients[index].due_reset && kind != "gap" {
                assert!(old, "{message} before the required gap");
            }
            match kind {
                "ack" if self.clients[index].expected.is_some() => self.check_connected(index, &message, place),
                "gap" => self.check_gap(index, place, &message),
                "note" => {
                    assert!(place > self.clients[index].place, "{id} duplicated or out of order");
                    if lost {
                        self.clients[index].due_reset = true;
                    } else if !self.clients[index].due_reset {
                        assert!(self.sees(index, place), "{id} is not for this client");
                        self.check_nothing_missed(index, place - 1);
                    }
                }
                kind => {
                    let survived = self.epochs.last().map_or(0, |(_, after, _)| *after);
                    self.clients[index].due_reset |= old && place > survived;
                    if !self.clients[index].due_reset {
                        self.check_nothing_missed(index, place);
                    }
                    self.follow_topics(index, kind, &message);
                }
            }
            let client = &mut self.clients[index];
            assert!(!client.owed_gap || message["type"] == "ack", "a gap is required before {message}");
            client.place = place;
            match position {
                Ok(position) => client.seen.push((position, id)),
                // The first `ack` before a gap has the cursor of the request.
                Err(_) => client.seen.extend(client.sent.clone()),
            }
        }
    }

    fn check_connected(&mut self, index: usize, ack: &Value, place: u64) {
        let client = &mut self.clients[index];
        let (expected, gap) = client.expected.take().unwrap();
        assert_eq!(place, expected, "{ack}");
        let resumed = ack["ack_event_id"] != "initial_connect" && !gap;
        assert_eq!(ack["resumed"], resumed, "{ack}");
        client.owed_gap = gap;
    }

    fn check_gap(&mut self, index: usize, place: u64, gap: &Value) {
        let floor = self.window.floor();
        let position: Position = gap["event_id"].as_str().unwrap().parse().unwrap();
        let known_epochs = self.epochs.iter().position(|(id, ..)| *id == position.epoch).unwrap() + 1;
        let (end, whole) = self.end_of(position.epoch).unwrap();
        let client = &mut self.clients[index];
        client.gaps += 1;
        let owed = std::mem::take(&mut client.owed_gap);
        match gap["reason"].as_str().unwrap() {
            "reset" => {
                // The session may have skipped events for other clients, so it cannot know that its client missed none.
                assert!(owed || client.due_reset || known_epochs > client.known_epochs, "a reset without a loss");
                client.due_reset = place > end || !whole;
                client.known_epochs = known_epochs;
            }
            _ => {
                let stale = position.epoch != self.window.epoch();
                assert!(place <= floor || stale, "the events after {place} are retained from {floor} on");
                assert!(owed || place > client.place, "a gap without missing events");
            }
        }
    }

    /// Checks that no event for the client lies between its position and `until`.
    fn check_nothing_missed(&self, index: usize, until: u64) {
        let place = self.clients[index].place;
        assert!(until >= place, "the position went back from {place} to {until}");
        let missed = (place + 1..=until).find(|sequence| self.sees(index, *sequence));
        assert_eq!(missed, None, "client {index} at {place} did not receive an event before {until}");
    }

    /// Updates the client's topics: a subscription begins and ends at the position of its `ack`.
    fn follow_topics(&mut self, index: usize, kind: &str, message: &Value) {
        let topics = &mut self.clients[index].topics;
        if let ("ack", Some(topic)) = (kind, message["topic"].as_str()) {
            match message["ack_event_id"].as_str().unwrap() {
                "subscribe" => drop(topics.insert(topic.to_owned())),
                _ => drop(topics.remove(topic)),
            }
        }
    }

    /// Delivers everything, and checks that every client has received all its events.
    fn settle(&mut self) {
        self.pull();
        for index in 0..CLIENTS {
            self.drain(index, 1 << 30);
        }
        let mut turns = 0;
        while let Some(slot) = self.sessions.next_ready() {
            self.turn(slot);
            turns += 1;
            assert!(turns < 10_000, "serving does not end");
        }
        let head = self.window.head();
        for index in 0..CLIENTS {
            if self.clients[index].slot.is_some_and(|slot| self.sessions.session(slot).unwrap().is_open()) {
                assert!(self.clients[index].expected.is_none(), "client {index} did not receive its first ack");
                self.check_nothing_missed(index, head);
                assert_eq!(self.sessions.session(self.clients[index].slot.unwrap()).unwrap().behind(), None);
            }
        }
    }

    /// Disconnects all clients, and checks that the session table is empty.
    fn leave(&mut self) {
        for index in 0..CLIENTS {
            self.cut(index);
        }
        assert_eq!((self.sessions.len(), self.sessions.overdue(), self.sessions.occupied()), (0, 0, 0));
    }
}

impl Client {
    fn new(user: &str, i: usize) -> Self {
        Self {
            user: user.into(),
            connection: ConnectionId(i as u128),
            slot: None,
            room: 0,
            bytes: Vec::new(),
            topics: BTreeSet::new(),
            wanted: Vec::new(),
            expected: None,
            owed_gap: false,
            due_reset: false,
            known_epochs: 1,
            place: 0,
            seen: Vec::new(),
            gaps: 0,
            sent: None,
        }
    }
}

/// Removes a complete server frame from the start of `bytes`. Returns its opcode and payload.
fn next_frame(bytes: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let (&[first, second], rest) = bytes.split_first_chunk::<2>()?;
    let (head, length) = match second {
        126 => (4, usize::from(u16::from_be_bytes(*rest.first_chunk()?))),
        127 => (10, usize::try_from(u64::from_be_bytes(*rest.first_chunk()?)).unwrap()),
        short => (2, usize::from(short)),
    };
    let payload = bytes.get(head..head + length)?.to_vec();
    bytes.drain(..head + length);
    Some((first & 0xf, payload))
}

/// Returns a client's text frame of at most 125 bytes.
fn masked(text: &str) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let mut frame = vec![0x81, 0x80 | u8::try_from(text.len()).unwrap()];
    frame.extend(mask);
    frame.extend(text.bytes().zip(mask.into_iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1_000,
        max_shrink_iters: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_client_receives_its_events_in_order_once_or_a_gap(ops in ops()) {
        let mut world = World::new();
        for op in ops {
            world.run(op);
        }
        world.settle();
        world.leave();
    }
}

/// The property above would also hold for a hub that answers every cursor with a gap.
#[test]
fn a_republished_event_id_makes_no_client_skip_events_without_a_gap() {
    let again = |lose: Option<bool>, others: usize| {
        let mut world = World::new();
        world.run(Op::Connect { client: 0, resume: Resume::No, topics: 0 });
        world.run(Op::Publish(vec![0]));
        world.settle();
        world.run(Op::Cut(0));
        if let Some(whole) = lose {
            world.run(Op::Lose { newest: 1, whole });
        }
        world.run(Op::Publish(vec![0; others]));
        // The first ID.
        world.run(Op::Repeat(0, others));
        world.run(Op::Connect { client: 0, resume: Resume::Bare(0), topics: 0 });
        world.settle();
        (world.history.len(), world.clients[0].gaps)
    };
    // It is a duplicate, whether its event is retained or not.
    assert_eq!((again(None, 3), again(None, 200)), ((4, 0), (201, 1)));
    // Three events that the client has not received precede it.
    assert_eq!((again(Some(true), 3), again(Some(false), 3)), ((4, 1), (4, 1)));

    // A client that connected after the loss received it at its current position.
    let mut world = World::new();
    world.run(Op::Lose { newest: 0, whole: false });
    world.run(Op::Connect { client: 0, resume: Resume::No, topics: 0 });
    world.run(Op::Publish(vec![0; 2]));
    world.settle();
    world.run(Op::Cut(0));
    world.run(Op::Connect { client: 0, resume: Resume::Bare(0), topics: 0 });
    world.settle();
    assert_eq!((world.clients[0].place, world.clients[0].gaps), (2, 0));
}

#[test]
fn only_clients_that_received_lost_events_receive_a_gap() {
    let mut world = World::new();
    for client in 0..2 {
        world.run(Op::Connect { client, resume: Resume::No, topics: 0 });
    }
    world.run(Op::Publish(vec![0; 10]));
    // The second client receives about five of ten events.
    world.pull();
    world.drain(0, 1 << 30);
    let frame = 140;
    world.drain(1, 6 * frame);
    world.serve(20);
    let (all, some) = (world.clients[0].place, world.clients[1].place);
    assert!(all == 10 && (2..8).contains(&some), "{all} {some}");
    world.run(Op::Lose { newest: 2, whole: true });
    world.run(Op::Publish(vec![0; 3]));
    world.settle();
    assert_eq!((world.clients[0].place, world.clients[0].gaps), (11, 1));
    assert_eq!((world.clients[1].place, world.clients[1].gaps), (11, 0));
    world.run(Op::Lose { newest: 0, whole: false });
    world.settle();
    assert_eq!((world.clients[0].gaps, world.clients[1].gaps), (2, 1));
}

/// The property above would also hold if nothing was delivered.
#[test]
fn the_model_observes_deliveries_replays_and_gaps() {
    let mut world = World::new();
    world.run(Op::Connect { client: 0, resume: Resume::No, topics: 1 });
    world.run(Op::Publish(vec![0; 10]));
    world.settle();
    assert_eq!(world.clients[0].place, 10);
    world.run(Op::Cut(0));
    world.run(Op::Publish(vec![0; 10]));
    world.run(Op::Connect { client: 0, resume: Resume::Seen(0), topics: 1 });
    world.settle();
    assert_eq!((world.clients[0].place, world.clients[0].gaps), (20, 0));
    // A client that stops reading falls behind the window and receives a gap.
    world.clients[0].room = 0;
    world.run(Op::Publish(vec![0; 200]));
    world.settle();
    assert_eq!((world.clients[0].place, world.clients[0].gaps), (220, 1));
}

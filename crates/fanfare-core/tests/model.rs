//! Window, roster and sessions under virtual time against a reference model: whatever is published to whomever, however
//! clients stall, leave and come back, every client reads exactly its events, in order, once, or a `gap` where history
//! is gone.
//!
//! The model is the client's own view. It reads the bytes a session sent, and at every frame asks the full history
//! (which the window has long let go of) whether anything it should have had lies between its last place and this one.

#![expect(clippy::unwrap_used, reason = "a test ends where something that it relies on fails")]

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
    /// Appends an event under the id of the n-th last one there ever was, if the log does not know that id.
    Repeat(u8, usize),
    /// The shard takes what is new in the window.
    Pull,
    /// A client connects, naming the n-th last place or id it saw, or a made-up one.
    Connect { client: usize, resume: Resume, topics: u8 },
    /// A client's socket breaks.
    Cut(usize),
    /// A client's socket takes so many bytes more.
    Drain(usize, usize),
    /// So many turns are served.
    Serve(usize),
    /// A client subscribes or unsubscribes.
    Topic { client: usize, topic: usize, subscribe: bool },
    /// A client asks for a pong.
    Ping(usize),
    /// Time passes, in milliseconds.
    Wait(u64),
    /// The log loses its newest entries, for all anyone knows these alone if it says so, and goes on.
    Lose { newest: usize, whole: bool },
}

#[derive(Debug, Clone)]
enum Resume {
    No,
    Seen(usize),
    /// As older clients do: by the id alone.
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
        3 => (client.clone(), resume, 0u8..8).prop_map(|(client, resume, topics)| Op::Connect { client, resume, topics }),
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

/// The world: the node's side as it is, every client as the model sees it, and the full history.
struct World {
    window: Window,
    sessions: SessionTable,
    now: Now,
    /// Each event with the time at which it was appended.
    history: Vec<(String, Audience, u64)>,
    /// The epochs of the log, each with what survived of the ones before, and what may be lost beyond that.
    epochs: Vec<(u64, u64, Loss)>,
    /// The ids that the log knows, with the time at which it learned them.
    ids: HashMap<String, u64>,
    /// Every id there ever was, and when an event was last appended under it.
    made: Vec<String>,
    published: HashMap<String, u64>,
    /// Ids that were published again after the log may have forgotten them: only a position names their places.
    reused: BTreeSet<String>,
    clients: Vec<Client>,
}

struct Client {
    user: Arc<str>,
    connection: ConnectionId,
    slot: Option<Slot>,
    /// How many bytes its socket still takes.
    room: usize,
    bytes: Vec<u8>,
    /// The topics it holds at the place up to which it has read.
    topics: BTreeSet<String>,
    wanted: Vec<Arc<str>>,
    /// What its connect must be answered with: the place, and whether a gap must follow.
    expected: Option<(u64, bool)>,
    /// It was told of a gap that must come next.
    owed_gap: bool,
    /// It has seen what the log lost, or may have: of what is newer, a `gap` comes first.
    due_reset: bool,
    /// The epochs there were when it was last told where it stands.
    told: usize,
    place: u64,
    /// The place and the id of each frame.
    seen: Vec<(Position, String)>,
    gaps: usize,
    /// The cursor that it connected with, and the place where it saw that.
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

    /// As a log does it: within the horizon an id is known again.
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
            // Of what was lost, and of what the window holds no more, no id is known.
            let held: BTreeSet<_> = self.window.since(0).map(|entry| entry.event_id.to_string()).collect();
            self.ids.retain(|id, _| held.contains(id));
        }
        for client in &mut self.clients {
            let place = client.expected.map_or(client.place, |(place, _)| place);
            client.due_reset |= !whole || place > survived;
        }
    }

    /// Up to which sequence a position's epoch is part of the log, and whether more may be lost behind it.
    fn end_of(&self, epoch: u64) -> Option<(u64, bool)> {
        let at = self.epochs.iter().position(|(id, ..)| *id == epoch)?;
        let later = &self.epochs[at + 1..];
        let end = later.iter().map(|(_, after, _)| *after).fold(self.window.head(), u64::min);
        Some((end, !later.iter().any(|(_, _, loss)| matches!(loss, Loss::Events { .. }))))
    }

    /// As a shard does it.
    fn pull(&mut self) {
        let mut entries = Vec::new();
        let news = self.sessions.look(&self.window, self.now, &mut entries);
        self.sessions.take_news(news, &entries);
    }

    fn connect(&mut self, who: usize, resume: &Resume, topics: u8) {
        // A shard takes a new epoch in before it lets anyone in.
        if self.sessions.epoch() != self.window.epoch() {
            self.pull();
        }
        if matches!(resume, Resume::No) {
            // A client without a cursor receives a connection id of this epoch, and has seen nothing before.
            self.cut(who);
            let name = u128::from(tag(self.window.epoch())) << (u128::BITS - TAG_BITS);
            self.clients[who].connection = ConnectionId(name | who as u128);
            self.clients[who].seen.clear();
        }
        let client = &mut self.clients[who];
        let old = client.slot.take();
        let mut truth = None;
        let last = match resume {
            Resume::No => None,
            Resume::Seen(back) => client.seen.iter().rev().nth(*back).map(|(place, _)| place.to_string()),
            Resume::Bare(back) => client.seen.iter().rev().nth(*back).map(|(place, id)| {
                truth = Some(*place);
                // An id that is published again beyond the horizon can't be recognised.
                if self.reused.contains(id) { place.to_string() } else { id.clone() }
            }),
            Resume::Unknown => Some("nobody-knows".to_owned()),
            Resume::OtherLog => Some(Position { epoch: EPOCH + 1, sequence: 3 }.to_string()),
        };
        let head = self.window.head();
        let named_in = self.clients[who].connection.epoch_tag();
        let expected = last.as_deref().map_or((head, false), |id| self.expected_start(id, named_in));
        let client = &mut self.clients[who];
        client.sent = truth.zip(last.clone());
        client.expected = Some(expected);
        client.due_reset = false;
        client.told = self.epochs.len();
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
            let what = format!("{last:?} was seen at {truth}");
            assert!(
                truth.sequence <= end && truth.sequence == start.cursor,
                "{what}, and goes on at {start:?} without a gap"
            );
        }
        let replayed = self.window.count(start.cursor, request.viewer());
        let visible = (start.cursor + 1..=head).filter(|s| self.sees(who, *s)).count();
        assert_eq!(replayed, visible, "the ack announces what is held for the client");
        self.clients[who].slot = Some(self.sessions.connect(request, start, replayed, self.now));
        // The older socket of the same connection is closed; its client has given it up.
        if let Some(old) = old {
            assert!(!self.sessions.session(old).unwrap().is_open());
            self.sessions.remove(old);
        }
    }

    /// Where a client goes on that names `id`, and whether it is told of a gap.
    fn expected_start(&self, id: &str, named_in: u32) -> (u64, bool) {
        let floor = self.window.floor();
        let place = match id.parse::<Position>() {
            Ok(position) => self.end_of(position.epoch).map(|(end, whole)| {
                let broken = position.sequence > end || !whole;
                (position.sequence.min(end), broken)
            }),
            Err(_) => self.history_place(id).filter(|(place, _)| *place >= floor).map(|(place, appended_ms)| {
                let since = self.epochs.iter().position(|(epoch, ..)| tag(*epoch) == named_in).map_or(0, |at| at + 1);
                let doubtful = |(_, after, loss): &(u64, u64, Loss)| match *loss {
                    Loss::Nothing => false,
                    Loss::Ids { .. } if place <= *after => false,
                    Loss::Events { .. } if place <= *after => true,
                    Loss::Ids { began_ms } | Loss::Events { began_ms } => appended_ms <= began_ms + HORIZON_MS,
                };
                (place, self.epochs[since..].iter().any(doubtful))
            }),
        };
        place.map_or((floor, true), |(place, gap)| (place.max(floor), gap || place < floor))
    }

    /// The newest place of an id, and when it was appended.
    fn history_place(&self, id: &str) -> Option<(u64, u64)> {
        let at = self.history.iter().rposition(|(known, ..)| known == id)?;
        Some((at as u64 + 1, self.history[at].2))
    }

    /// Whether a place is one of what the log lost.
    fn is_lost(&self, place: Position) -> bool {
        place.sequence > self.end_of(place.epoch).expect("only positions of this log are sent").0
    }

    fn sees(&self, who: usize, sequence: u64) -> bool {
        let client = &self.clients[who];
        match &self.history[usize::try_from(sequence).unwrap() - 1].1 {
            Audience::Everyone => true,
            Audience::User(user) => *user == client.user,
            Audience::Connection(id) => *id == client.connection,
            Audience::Topic(topic) => client.topics.contains(&**topic),
        }
    }

    fn cut(&mut self, who: usize) {
        if let Some(slot) = self.clients[who].slot.take() {
            self.sessions.remove(slot);
        }
    }

    fn drain(&mut self, who: usize, n: usize) {
        self.clients[who].room += n;
        if let Some(slot) = self.clients[who].slot {
            self.sessions.writable(slot);
        }
    }

    fn send(&mut self, who: usize, text: &str) {
        let Some(slot) = self.clients[who].slot else { return };
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
        let who = self.clients.iter().position(|client| client.slot == Some(slot));
        let Some(who) = who else {
            return self
                .sessions
                .serve(slot, &self.window, self.now, &mut |slices| slices.iter().map(|s| s.len()).sum());
        };
        let client = &mut self.clients[who];
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
        self.read(who);
        if served == Served::Finished {
            self.cut(who);
        }
        served
    }

    /// The client reads all whole frames it has, and checks each.
    fn read(&mut self, who: usize) {
        while let Some((opcode, payload)) = next_frame(&mut self.clients[who].bytes) {
            if opcode != 1 {
                continue;
            }
            let message: Value = serde_json::from_slice(&payload).unwrap();
            let id = message["event_id"].as_str().unwrap().to_owned();
            let kind = message["type"].as_str().unwrap();
            let position = message["log_position"].as_str().unwrap_or(&id).parse::<Position>();
            assert_eq!(kind == "note", message.get("log_position").is_some(), "{message}");
            let (place, old, lost) = match self.clients[who].expected {
                // Who stores this and never reads the gap is told of the gap again.
                Some((place, true)) if kind == "ack" => {
                    assert_eq!(
                        message["event_id"], message["ack_event_id"],
                        "an ack stands before the gap it announces"
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
            if self.clients[who].due_reset && kind != "gap" {
                assert!(old, "{message} before the gap that is due");
            }
            match kind {
                "ack" if self.clients[who].expected.is_some() => self.check_connected(who, &message, place),
                "gap" => self.check_gap(who, place, &message),
                "note" => {
                    assert!(place > self.clients[who].place, "{id} doubled or out of order");
                    if lost {
                        self.clients[who].due_reset = true;
                    } else if !self.clients[who].due_reset {
                        assert!(self.sees(who, place), "{id} is not for this client");
                        self.check_nothing_missed(who, place - 1);
                    }
                }
                kind => {
                    let survived = self.epochs.last().map_or(0, |(_, after, _)| *after);
                    self.clients[who].due_reset |= old && place > survived;
                    if !self.clients[who].due_reset {
                        self.check_nothing_missed(who, place);
                    }
                    self.follow_topics(who, kind, &message);
                }
            }
            let client = &mut self.clients[who];
            assert!(!client.owed_gap || message["type"] == "ack", "a gap was due before {message}");
            client.place = place;
            match position {
                Ok(position) => client.seen.push((position, id)),
                // The first ack before a gap says the cursor that was sent.
                Err(_) => client.seen.extend(client.sent.clone()),
            }
        }
    }

    fn check_connected(&mut self, who: usize, ack: &Value, place: u64) {
        let client = &mut self.clients[who];
        let (expected, gap) = client.expected.take().unwrap();
        assert_eq!(place, expected, "{ack}");
        let resumed = ack["ack_event_id"] != "initial_connect" && !gap;
        assert_eq!(ack["resumed"], resumed, "{ack}");
        client.owed_gap = gap;
    }

    fn check_gap(&mut self, who: usize, place: u64, gap: &Value) {
        let floor = self.window.floor();
        let position: Position = gap["event_id"].as_str().unwrap().parse().unwrap();
        let told = self.epochs.iter().position(|(id, ..)| *id == position.epoch).unwrap() + 1;
        let (end, whole) = self.end_of(position.epoch).unwrap();
        let client = &mut self.clients[who];
        client.gaps += 1;
        let owed = std::mem::take(&mut client.owed_gap);
        match gap["reason"].as_str().unwrap() {
            "reset" => {
                // The session may have passed what was not for its client, and can't tell that it missed nothing.
                assert!(owed || client.due_reset || told > client.told, "a reset where nothing was lost");
                client.due_reset = place > end || !whole;
                client.told = told;
            }
            _ => {
                let stale = position.epoch != self.window.epoch();
                assert!(place <= floor || stale, "history behind {place} is still held from {floor} on");
                assert!(owed || place > client.place, "a gap that hides nothing");
            }
        }
    }

    /// Everything the client may see up to `until` must lie before its place.
    fn check_nothing_missed(&self, who: usize, until: u64) {
        let place = self.clients[who].place;
        assert!(until >= place, "the position went back from {place} to {until}");
        let missed = (place + 1..=until).find(|sequence| self.sees(who, *sequence));
        assert_eq!(missed, None, "client {who} at {place} was never sent an event before {until}");
    }

    /// A subscription begins and ends at the place of its ack.
    fn follow_topics(&mut self, who: usize, kind: &str, message: &Value) {
        let topics = &mut self.clients[who].topics;
        if let ("ack", Some(topic)) = (kind, message["topic"].as_str()) {
            match message["ack_event_id"].as_str().unwrap() {
                "subscribe" => drop(topics.insert(topic.to_owned())),
                _ => drop(topics.remove(topic)),
            }
        }
    }

    /// Lets everything drain, after which every client has all that it may see.
    fn settle(&mut self) {
        self.pull();
        for who in 0..CLIENTS {
            self.drain(who, 1 << 30);
        }
        let mut turns = 0;
        while let Some(slot) = self.sessions.next_ready() {
            self.turn(slot);
            turns += 1;
            assert!(turns < 10_000, "serving never ends");
        }
        let head = self.window.head();
        for who in 0..CLIENTS {
            if self.clients[who].slot.is_some_and(|slot| self.sessions.session(slot).unwrap().is_open()) {
                assert!(self.clients[who].expected.is_none(), "client {who} never got its ack");
                self.check_nothing_missed(who, head);
                assert_eq!(self.sessions.session(self.clients[who].slot.unwrap()).unwrap().behind(), None);
            }
        }
    }

    /// When everybody has left nothing is left of them.
    fn leave(&mut self) {
        for who in 0..CLIENTS {
            self.cut(who);
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
            told: 1,
            place: 0,
            seen: Vec::new(),
            gaps: 0,
            sent: None,
        }
    }
}

/// Takes a whole frame of a server off the front of `bytes`.
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

/// A client's text frame of at most 125 bytes.
fn masked(text: &str) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let mut frame = vec![0x81, 0x80 | u8::try_from(text.len()).unwrap()];
    frame.extend(mask);
    frame.extend(text.bytes().zip(mask.into_iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, max_shrink_iters: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_client_reads_its_events_in_order_once_or_a_gap(ops in ops()) {
        let mut world = World::new();
        for op in ops {
            world.run(op);
        }
        world.settle();
        world.leave();
    }
}

/// The property above would hold of a hub that answers every cursor with a gap.
#[test]
fn an_id_that_is_published_again_leads_nobody_past_what_it_has_not_seen() {
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
        // The first id there was.
        world.run(Op::Repeat(0, others));
        world.run(Op::Connect { client: 0, resume: Resume::Bare(0), topics: 0 });
        world.settle();
        (world.history.len(), world.clients[0].gaps)
    };
    // It is a duplicate, whether the window holds its place or not.
    assert_eq!((again(None, 3), again(None, 200)), ((4, 0), (201, 1)));
    // It stands behind three others that the client has not seen.
    assert_eq!((again(Some(true), 3), again(Some(false), 3)), ((4, 1), (4, 1)));

    // A client that came after the loss saw it where it stands now.
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
fn who_saw_what_the_log_lost_is_told_and_nobody_else() {
    let mut world = World::new();
    for client in 0..2 {
        world.run(Op::Connect { client, resume: Resume::No, topics: 0 });
    }
    world.run(Op::Publish(vec![0; 10]));
    // The second one reads five of ten, and then no more.
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

/// The property above would hold of a world in which nothing happens.
#[test]
fn the_model_sees_deliveries_replays_and_gaps() {
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
    // A client that stops reading falls out of the window and is told.
    world.clients[0].room = 0;
    world.run(Op::Publish(vec![0; 200]));
    world.settle();
    assert_eq!((world.clients[0].place, world.clients[0].gaps), (220, 1));
}

//! Window, roster and sessions under virtual time against a reference model: whatever is published to whomever, however
//! clients stall, leave and come back, every client reads exactly its events, in order, once, or a `gap` where history
//! is gone.
//!
//! The model is the client's own view. It reads the bytes a session sent, and at every frame asks the full history
//! (which the window has long let go of) whether anything it should have had lies between its last place and this one.

#![expect(clippy::unwrap_used, reason = "a test ends where something that it relies on fails")]

use fanfare_core::{
    Audience, ConnectionId, Draft, Grant, Lineage, Position,
    roster::{Roster, Served, Slot},
    session::{Arrival, Denied, Settings},
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

#[derive(Debug, Clone)]
enum Op {
    /// Appends events, each for one of a few audiences.
    Publish(Vec<u8>),
    /// The shard takes what is new in the window.
    Pull,
    /// A client connects, naming the n-th last id it saw, or a made-up one.
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
    Unknown,
    OtherLog,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let client = 0..CLIENTS;
    let resume = prop_oneof![
        1 => Just(Resume::No),
        6 => (0usize..8).prop_map(Resume::Seen),
        1 => Just(Resume::Unknown),
        1 => Just(Resume::OtherLog),
    ];
    let op = prop_oneof![
        5 => prop::collection::vec(any::<u8>(), 1..6).prop_map(Op::Publish),
        1 => prop::collection::vec(any::<u8>(), 60..110).prop_map(Op::Publish),
        4 => Just(Op::Pull),
        3 => (client.clone(), resume, 0u8..8).prop_map(|(client, resume, topics)| Op::Connect { client, resume, topics }),
        1 => client.clone().prop_map(Op::Cut),
        4 => (client.clone(), prop_oneof![0usize..200, 0usize..20_000]).prop_map(|(c, n)| Op::Drain(c, n)),
        4 => (1usize..6).prop_map(Op::Serve),
        2 => (client.clone(), 0..TOPICS.len(), any::<bool>())
            .prop_map(|(client, topic, subscribe)| Op::Topic { client, topic, subscribe }),
        1 => client.prop_map(Op::Ping),
        1 => prop_oneof![0u64..2_000, 0u64..40_000].prop_map(Op::Wait),
        1 => (0usize..40, any::<bool>()).prop_map(|(newest, whole)| Op::Lose { newest, whole }),
    ];
    prop::collection::vec(op, 1..120)
}

/// The world: the node's side as it is, every client as the model sees it, and the full history.
struct World {
    window: Window,
    roster: Roster,
    now: Now,
    history: Vec<(String, Audience)>,
    /// What the log lost, with the place that it had.
    lost: HashMap<String, u64>,
    /// The epochs of the log, each with what survived of the ones before, and whether nothing else can be lost.
    epochs: Vec<(u64, u64, bool)>,
    /// How many events there ever were, so that no two get the same id.
    made: usize,
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
    seen: Vec<String>,
    gaps: usize,
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
        let bounds = Bounds { events: 90, bytes: 40_000, age_ms: 60_000 };
        Self {
            window: Window::new(Lineage::new(EPOCH), 0, bounds),
            roster: Roster::new(settings, EPOCH, 0),
            now: Now { mono_ms: 1_000, unix_ms: 1_000_000 },
            history: Vec::new(),
            lost: HashMap::new(),
            epochs: vec![(EPOCH, 0, true)],
            made: 0,
            clients,
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Publish(audiences) => audiences.into_iter().for_each(|kind| self.publish(kind)),
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

    fn publish(&mut self, kind: u8) {
        let audience = match kind % 8 {
            0..=2 => Audience::Everyone,
            3 | 4 => Audience::User(USERS[kind as usize / 8 % USERS.len()].into()),
            5 => Audience::Connection(ConnectionId(u128::from(kind) / 8 % CLIENTS as u128)),
            _ => Audience::Topic(TOPICS[kind as usize / 8 % TOPICS.len()].into()),
        };
        self.made += 1;
        let id = format!("e{}", self.made);
        let pad = "x".repeat(kind as usize * 2);
        let draft = Draft::new("note", &serde_json::json!({ "pad": pad })).unwrap();
        let event = draft.finish(self.now.unix_ms, || id.clone()).unwrap();
        let place = Position { epoch: self.window.epoch(), sequence: self.window.head() + 1 };
        self.window.push(Arc::new(Entry::new(place, self.now.unix_ms, audience.clone(), &event)));
        self.history.push((id, audience));
    }

    fn lose(&mut self, newest: usize, whole: bool) {
        let survived = self.history.len().saturating_sub(newest);
        for (i, (id, _)) in self.history.drain(survived..).enumerate() {
            self.lost.insert(id, (survived + i + 1) as u64);
        }
        let (survived, epoch) = (survived as u64, EPOCH + 100 + self.epochs.len() as u64);
        self.epochs.push((epoch, survived, whole));
        let mut lineage = self.window.lineage().clone();
        lineage.begin(epoch, survived, whole);
        self.window.adopt(lineage, survived);
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
        Some((end, later.iter().all(|(_, _, whole)| *whole)))
    }

    /// As a shard does it.
    fn pull(&mut self) {
        if self.roster.epoch() != self.window.epoch() {
            self.roster.adopt(&self.window, self.now);
        }
        if self.roster.head() < self.window.floor() {
            self.roster.jump(self.window.head());
        } else {
            let entries: Vec<_> = self.window.since(self.roster.head()).cloned().collect();
            self.roster.advance(&entries);
        }
    }

    fn connect(&mut self, who: usize, resume: &Resume, topics: u8) {
        let client = &mut self.clients[who];
        let old = client.slot.take();
        let last = match resume {
            Resume::No => None,
            Resume::Seen(back) => client.seen.iter().rev().nth(*back).cloned(),
            Resume::Unknown => Some("nobody-knows".to_owned()),
            Resume::OtherLog => Some(Position { epoch: EPOCH + 1, sequence: 3 }.to_string()),
        };
        // A shard takes a new epoch in before it lets anyone in.
        if self.roster.epoch() != self.window.epoch() {
            self.pull();
        }
        let head = self.window.head();
        let expected = last.as_deref().map_or((head, false), |id| self.expected_start(id));
        let client = &mut self.clients[who];
        client.expected = Some(expected);
        client.due_reset = false;
        client.told = self.epochs.len();
        client.wanted = (0..TOPICS.len()).filter(|i| topics >> i & 1 == 1).map(|i| TOPICS[i].into()).collect();
        client.topics = client.wanted.iter().map(|topic| topic.to_string()).collect();
        (client.room, client.owed_gap) = (0, false);
        client.bytes.clear();
        let grant = Grant { user: client.user.clone(), topics: vec!["*".into()], ..Grant::default() };
        let wanted = client.wanted.clone();
        let arrival = Arrival::new(grant, client.connection, last.clone(), wanted.iter().map(|t| &**t), TOPICS.len());
        let start = self.window.start(last.as_deref());
        let replayed = self.window.count(start.cursor, arrival.viewer());
        let visible = (start.cursor + 1..=head).filter(|s| self.sees(who, *s)).count();
        assert_eq!(replayed, visible, "the ack announces what is held for the client");
        self.clients[who].slot = Some(self.roster.connect(arrival, start, replayed, self.now));
        // The older socket of the same connection is closed; its client has given it up.
        if let Some(old) = old {
            assert!(!self.roster.session(old).unwrap().is_open());
            self.roster.remove(old);
        }
    }

    /// Where a client goes on that names `id`, and whether it is told of a gap.
    fn expected_start(&self, id: &str) -> (u64, bool) {
        let floor = self.window.floor();
        let place = match id.parse::<Position>() {
            Ok(position) => self.end_of(position.epoch).map(|(end, whole)| {
                let broken = position.sequence > end || !whole;
                (position.sequence.min(end), broken)
            }),
            Err(_) => self.history_place(id).filter(|place| *place >= floor).map(|place| {
                let doubtful = |(_, after, whole): &(u64, u64, bool)| !whole && place <= *after;
                (place, self.epochs.iter().any(doubtful))
            }),
        };
        place.map_or((floor, true), |(place, gap)| (place.max(floor), gap || place < floor))
    }

    fn history_place(&self, id: &str) -> Option<u64> {
        self.history.iter().position(|(known, _)| known == id).map(|i| i as u64 + 1)
    }

    /// The place that a frame's id names, and whether it is one of what the log lost or had before its last loss.
    fn place_of(&self, id: &str) -> (u64, bool) {
        match id.parse::<Position>() {
            Ok(position) => {
                assert!(self.end_of(position.epoch).is_some(), "only positions of this log are sent");
                (position.sequence, position.epoch != self.window.epoch())
            }
            Err(_) => match self.lost.get(id) {
                Some(place) => (*place, true),
                None => {
                    let place = self.history_place(id).expect("only events of this log are sent");
                    (place, self.epochs.last().is_some_and(|(_, after, _)| place <= *after))
                }
            },
        }
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
            self.roster.remove(slot);
        }
    }

    fn drain(&mut self, who: usize, n: usize) {
        self.clients[who].room += n;
        if let Some(slot) = self.clients[who].slot {
            self.roster.writable(slot);
        }
    }

    fn send(&mut self, who: usize, text: &str) {
        let Some(slot) = self.clients[who].slot else { return };
        let mut frame = masked(text);
        self.roster.input(slot, &mut frame, self.now, &|_| Err(Denied { code: "no", message: String::new() }));
    }

    fn wait(&mut self, ms: u64) {
        self.now.mono_ms += ms;
        self.now.unix_ms += ms;
        self.window.expire(self.now.unix_ms);
        self.roster.timeouts(self.now, &mut |_, _| true);
    }

    fn serve(&mut self, turns: usize) {
        for _ in 0..turns {
            let Some(slot) = self.roster.next_ready() else { return };
            self.turn(slot);
        }
    }

    fn turn(&mut self, slot: Slot) -> Served {
        let who = self.clients.iter().position(|client| client.slot == Some(slot));
        let Some(who) = who else {
            return self.roster.serve(slot, &self.window, self.now, &mut |slices| slices.iter().map(|s| s.len()).sum());
        };
        let client = &mut self.clients[who];
        let (room, bytes) = (&mut client.room, &mut client.bytes);
        let served = self.roster.serve(slot, &self.window, self.now, &mut |slices| {
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
            let (place, old) = match self.clients[who].expected {
                // Who stores this and never reads the gap is told of the gap again.
                Some((place, true)) if kind == "ack" => {
                    assert_eq!(
                        message["event_id"], message["ack_event_id"],
                        "an ack stands before the gap it announces"
                    );
                    (place, true)
                }
                _ => self.place_of(&id),
            };
            if self.clients[who].due_reset && kind != "gap" {
                assert!(old, "{message} before the gap that is due");
            }
            match kind {
                "ack" if self.clients[who].expected.is_some() => self.check_connected(who, &message, place),
                "gap" => self.check_gap(who, place, &message),
                "note" => {
                    assert!(place > self.clients[who].place, "{id} doubled or out of order");
                    if self.lost.contains_key(&id) {
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
            client.seen.push(id);
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
        while let Some(slot) = self.roster.next_ready() {
            self.turn(slot);
            turns += 1;
            assert!(turns < 10_000, "serving never ends");
        }
        let head = self.window.head();
        for who in 0..CLIENTS {
            if self.clients[who].slot.is_some_and(|slot| self.roster.session(slot).unwrap().is_open()) {
                assert!(self.clients[who].expected.is_none(), "client {who} never got its ack");
                self.check_nothing_missed(who, head);
                assert_eq!(self.roster.session(self.clients[who].slot.unwrap()).unwrap().behind(), None);
            }
        }
    }

    /// When everybody has left nothing is left of them.
    fn leave(&mut self) {
        for who in 0..CLIENTS {
            self.cut(who);
        }
        assert_eq!((self.roster.len(), self.roster.overdue(), self.roster.seats()), (0, 0, 0));
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

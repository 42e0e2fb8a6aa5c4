//! A session against the protocol. A client sends any bytes, split in any way, while events are published, time passes
//! and the socket accepts only a few bytes at a time. The session must send valid frames (as decoded by tungstenite in
//! the client role) with valid JSON, must answer each client frame in order, and must send nothing after a close.

use std::{
    io::{self, Cursor},
    sync::Arc,
};

use fanfare_core::{
    Audience, CloseCode, ConnectionId, Draft, Grant, Lineage, Position,
    session::{ConnectRequest, Denied, Settings},
    session_table::{Served, SessionTable, Slot},
    time::Now,
    window::{Bounds, Entry, Window},
    wire, ws,
};
use serde_json::Value;
use tungstenite::{Error, Message, WebSocket, protocol::Role};

use crate::frames::{End, Wire, WsMessage, decode};

const LIMITS: ws::Limits = ws::Limits { max_frame_bytes: 300, max_message_bytes: 400 };
const BOUNDS: Bounds = Bounds { events: 10_000, bytes: 1 << 24, age_ms: u64::MAX, ids: 1_000, ids_ms: 0 };
const EPOCH: u64 = 0xfa;
const USER: &str = "ann";

/// The answer of a session to one client frame.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Pong(Vec<u8>),
    Message(Kind),
    Close(Option<u16>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ack,
    Error,
    Pong,
    /// An `ack` or an `error`, depending on the permissions and the number of topics.
    AckOrError,
}

/// The session of one client, with its input and its output.
struct World {
    sessions: SessionTable,
    window: Window,
    now: Now,
    /// `None` once the session has ended.
    slot: Option<Slot>,
    /// Number of bytes that the socket still accepts.
    room: usize,
    sent: Vec<u8>,
    received: Vec<u8>,
    /// Number of events whose audience includes the client.
    visible: u64,
}

/// Panics if a session violates the protocol.
///
/// The lowest bit of the first byte of `input` determines whether the client's rate is limited. The other bytes are a
/// script: each step is a byte, followed by the bytes that the step takes.
#[allow(unreachable_pub, reason = "a test includes this file as a private module")]
pub fn check(input: &[u8]) {
    let Some((&first, mut script)) = input.split_first() else { return };
    let mut world = World::new(if first & 1 == 0 { 0 } else { 3 });
    while let Some((&step, rest)) = script.split_first() {
        script = rest;
        let few = usize::from(step & 0x0f);
        match step {
            0x00..=0xbf => {
                let size = if step == 0 { rest.len() } else { rest.len().min(step.into()) };
                let (bytes, rest) = rest.split_at(size);
                world.send(bytes);
                script = rest;
            }
            0xc0..=0xcf => world.publish(few),
            0xd0..=0xdf => world.drain(few * few),
            0xe0..=0xef => world.wait(few as u64 * 1_000),
            0xf0..=0xff => world.drain(1 << 20),
        }
    }
    world.drain(usize::MAX >> 1);
    world.check_output();
}

impl World {
    fn new(frames_per_second: u32) -> Self {
        let settings = Settings {
            heartbeat_ms: 10_000,
            timeout_ms: 25_000,
            close_ms: 3_000,
            limits: LIMITS,
            frames_per_second,
            max_topics: 2,
            warn_ms: 5_000,
            echo: false,
        };
        let now = Now { mono_ms: 1_000, unix_ms: 1_000_000 };
        let (window, mut sessions) =
            (Window::new(Lineage::new(EPOCH), 0, BOUNDS), SessionTable::new(settings, EPOCH, 0));
        let request = ConnectRequest::new(grant(USER), ConnectionId(1), None, std::iter::empty(), 2);
        let slot = Some(sessions.connect(request, window.start(None, ConnectionId(0)), 0, now));
        Self { sessions, window, now, slot, room: 0, sent: Vec::new(), received: Vec::new(), visible: 0 }
    }

    fn send(&mut self, bytes: &[u8]) {
        // As in a shard, a client that does not read the answers is not read from.
        if self.slot.is_some_and(|slot| !self.sessions.wants_input(slot)) {
            self.drain(1 << 20);
        }
        let Some(slot) = self.slot.filter(|&slot| self.sessions.wants_input(slot)) else { return };
        self.sent.extend_from_slice(bytes);
        self.sessions.input(slot, &mut bytes.to_vec(), self.now, &verify);
        self.serve();
    }

    fn publish(&mut self, number: usize) {
        let audience = match number % 3 {
            0 => Audience::Everyone,
            1 => Audience::User(USER.into()),
            _ => Audience::User("bob".into()),
        };
        let visible = number % 3 < 2;
        self.visible += u64::from(visible);
        let draft = Draft::new("note", &serde_json::json!({ "n": self.visible })).expect("an object");
        let event = draft.finish(self.now.unix_ms, || format!("e{}", self.window.head())).expect("a plain event");
        let entry = Arc::new(Entry::new(
            Position { epoch: self.window.epoch(), sequence: self.window.head() + 1 },
            self.now.unix_ms,
            audience,
            &event,
        ));
        self.window.push(entry.clone());
        self.sessions.advance(&[entry]);
        self.serve();
    }

    fn drain(&mut self, bytes: usize) {
        self.room = self.room.saturating_add(bytes);
        if let Some(slot) = self.slot {
            self.sessions.writable(slot);
        }
        self.serve();
    }

    fn wait(&mut self, ms: u64) {
        self.now.mono_ms += ms;
        self.now.unix_ms += ms;
        self.sessions.timeouts(self.now, &mut |_, _| true);
        self.serve();
    }

    fn serve(&mut self) {
        while let Some(slot) = self.sessions.next_ready() {
            let (room, received) = (&mut self.room, &mut self.received);
            let served = self.sessions.serve(slot, &self.window, self.now, &mut |slices| {
                let before = *room;
                for slice in slices {
                    let taken = slice.len().min(*room);
                    received.extend_from_slice(&slice[..taken]);
                    *room -= taken;
                }
                before - *room
            });
            if served == Served::Finished {
                self.sessions.remove(slot);
                self.slot = None;
            }
        }
    }

    fn check_output(self) {
        let expected = expected_answers(&self.sent);
        let (answers, events) = read(self.received);
        let unasked = [CloseCode::HeartbeatTimeout, CloseCode::TooManyMessages].map(|code| Some(code.number()));
        match answers.split_last() {
            Some((Answer::Close(code), before)) if unasked.contains(code) => {
                assert_answers(before, &expected[..before.len()]);
            }
            Some((Answer::Close(_), _)) => assert_answers(&answers, &expected),
            // A client that does not read its close frame in time is disconnected without it.
            _ if self.slot.is_none() => assert_answers(&answers, &expected[..answers.len()]),
            _ => {
                assert_answers(&answers, &expected);
                assert_eq!(events, self.visible, "events lost");
            }
        }
    }
}

fn assert_answers(given: &[Answer], expected: &[Answer]) {
    let matches = |(given, expected): (&Answer, &Answer)| match (given, expected) {
        (Answer::Message(Kind::Ack | Kind::Error), Answer::Message(Kind::AckOrError)) => true,
        _ => given == expected,
    };
    let equal = given.len() == expected.len() && given.iter().zip(expected).all(matches);
    assert!(equal, "given {given:?}, expected {expected:?}");
}

fn grant(user: &str) -> Grant {
    Grant { user: user.into(), topics: vec!["a*".into()], ..Grant::default() }
}

fn verify(token: &str) -> Result<Grant, Denied> {
    match token {
        "good" => Ok(grant(USER)),
        "bob's" => Ok(grant("bob")),
        other => Err(Denied { code: "bad_token", message: other.to_owned() }),
    }
}

/// Returns the expected answers to a client that sent these bytes, beginning with the `ack` of its connect.
fn expected_answers(sent: &[u8]) -> Vec<Answer> {
    let decoded = decode(sent, &[], &LIMITS);
    let mut expected = vec![Answer::Message(Kind::Ack)];
    for message in decoded.messages {
        match message {
            WsMessage::Text(text) => expected.extend(answer(&text).map(Answer::Message)),
            WsMessage::Ping(payload) => expected.push(Answer::Pong(payload)),
            WsMessage::Pong(_) => {}
            WsMessage::Binary(_) => {
                expected.push(Answer::Close(Some(CloseCode::Unsupported.number())));
                return expected;
            }
            WsMessage::Close(close) => expected.push(Answer::Close(close.map(|(code, _)| as_read(code)))),
        }
    }
    if let End::Failed(error) = decoded.end {
        expected.push(Answer::Close(Some(error.close_code().number())));
    }
    expected
}

/// Returns a close code as reported by tungstenite, which does not accept 1014 (see `frames`).
fn as_read(code: u16) -> u16 {
    if code == 1014 { 1002 } else { code }
}

fn answer(text: &str) -> Option<Kind> {
    match wire::read(text) {
        Ok((wire::Incoming::Pong | wire::Incoming::Ack { .. }, _)) => None,
        Ok((wire::Incoming::Ping, _)) => Some(Kind::Pong),
        Ok((wire::Incoming::Unsubscribe { .. }, _)) => Some(Kind::Ack),
        Ok((wire::Incoming::Subscribe { .. } | wire::Incoming::Auth { .. }, _)) => Some(Kind::AckOrError),
        Err(_) => Some(Kind::Error),
    }
}

/// Returns the answers that a client receives, and the number of events among them.
fn read(received: Vec<u8>) -> (Vec<Answer>, u64) {
    let mut client = WebSocket::from_raw_socket(Wire(Cursor::new(received)), Role::Client, None);
    let (mut answers, mut events) = (Vec::new(), 0);
    loop {
        match client.read() {
            Ok(Message::Text(text)) => answers.extend(read_message(&text, &mut events).map(Answer::Message)),
            Ok(Message::Pong(payload)) => answers.push(Answer::Pong(payload.into())),
            Ok(Message::Close(close)) => answers.push(Answer::Close(close.map(|close| close.code.into()))),
            Ok(other) => panic!("unexpected message {other:?}"),
            // This holds after a close too: any data after it would be a protocol error.
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return (answers, events),
            Err(error) => panic!("the client failed to decode the output: {error}"),
        }
    }
}

fn read_message(text: &str, events: &mut u64) -> Option<Kind> {
    let message: Value = serde_json::from_str(text).expect("messages are JSON");
    let field = |name: &str| message[name].as_str().unwrap_or_else(|| panic!("no {name:?} in {text}"));
    assert!(!field("event_id").is_empty() && field("timestamp").ends_with('Z'), "{text}");
    match field("type") {
        "ack" => Some(Kind::Ack),
        "error" => Some(Kind::Error),
        "pong" => Some(Kind::Pong),
        "ping" => None,
        "note" => {
            *events += 1;
            assert_eq!(message["data"]["n"], *events, "events in order, each once");
            None
        }
        other => panic!("unexpected type {other:?}: {text}"),
    }
}

//! Expiry, renewal and revocation of tokens: a session table under virtual time.

#![expect(clippy::unwrap_used, reason = "a failed precondition fails the test")]

use fanfare_core::{
    Audience, CloseCode, ConnectionId, Draft, Grant, Lineage, Position, Revocation,
    session::{ConnectRequest, Denied, Settings},
    session_table::{Served, SessionTable, Slot},
    time::Now,
    window::{Bounds, Entry, Window},
    ws,
};
use serde_json::Value;
use std::{ops::ControlFlow, sync::Arc};

const UNIX_SECS: u64 = 1_800_000_000;

/// A hub with one client, and the messages that the client has received.
struct World {
    window: Window,
    sessions: SessionTable,
    now: Now,
    slot: Slot,
    decoder: ws::Decoder,
    messages: Vec<Value>,
    closed: Option<(u16, String)>,
}

fn grant(secs: u64) -> Grant {
    Grant {
        user: "ann".into(),
        topics: vec!["a".into(), "b".into()],
        expires_at: Some(UNIX_SECS + secs),
        issued_at: Some(UNIX_SECS),
        token: Some(7),
        session: Some(9),
        ..Grant::default()
    }
}

impl World {
    fn new(grant: Grant) -> Self {
        let settings = Settings {
            heartbeat_ms: 3_600_000,
            timeout_ms: 7_200_000,
            close_ms: 1_000,
            limits: ws::Limits { max_frame_bytes: 1_000, max_message_bytes: 1_000 },
            frames_per_second: 0,
            max_topics: 10,
            warn_ms: 60_000,
            echo: false,
        };
        let now = Now { mono_ms: 5_000, unix_ms: UNIX_SECS * 1_000 };
        let bounds = Bounds { events: 10, bytes: 10_000, age_ms: 60_000, ids: 1_000, ids_ms: 120_000 };
        let window = Window::new(Lineage::new(1), 0, bounds);
        let mut sessions = SessionTable::new(settings, 1, 0);
        sessions.woken(u64::MAX, now);
        let request = ConnectRequest::new(grant, ConnectionId(1), None, ["a", "b"].into_iter(), 10);
        let slot = sessions.connect(request, window.start(None, ConnectionId(1)), 0, now);
        let mut world =
            Self { window, sessions, now, slot, decoder: ws::Decoder::default(), messages: Vec::new(), closed: None };
        world.serve();
        world
    }

    /// Advances the time by `secs`, and handles each timer when it is due.
    fn pass(&mut self, secs: u64) {
        let end = self.now.mono_ms + secs * 1_000;
        while let Some(due) = self.sessions.next_due().filter(|due| *due <= end) {
            self.to(due.max(self.now.mono_ms));
            self.sessions.timeouts(self.now, &mut |_, _| true);
            self.serve();
        }
        self.to(end);
    }

    /// Steps the wall clock by `secs`.
    fn step(&mut self, secs: i64) {
        self.now.unix_ms = self.now.unix_ms.checked_add_signed(1_000 * secs).unwrap();
        self.sessions.woken(u64::MAX, self.now);
    }

    fn to(&mut self, mono_ms: u64) {
        self.now.unix_ms += mono_ms - self.now.mono_ms;
        self.now.mono_ms = mono_ms;
    }

    fn serve(&mut self) {
        let mut bytes = Vec::new();
        while let Some(slot) = self.sessions.next_ready() {
            let served = self.sessions.serve(slot, &self.window, self.now, &mut |slices| {
                slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
                slices.iter().map(|slice| slice.len()).sum()
            });
            assert_ne!(served, Served::Blocked);
        }
        let limits = ws::Limits { max_frame_bytes: 10_000, max_message_bytes: 10_000 };
        let (messages, closed) = (&mut self.messages, &mut self.closed);
        mask(&mut bytes);
        let read = self.decoder.feed(&mut bytes, &limits, &mut |incoming| {
            match incoming {
                ws::Incoming::Text(text) => messages.push(serde_json::from_str(text).unwrap()),
                ws::Incoming::Close(close) => *closed = close.map(|(code, reason)| (code, reason.to_owned())),
                other => panic!("{other:?}"),
            }
            ControlFlow::Continue(())
        });
        read.unwrap();
    }

    /// Sends a message from the client. The token `good` is verified as `grant`.
    fn send(&mut self, text: &str, grant: &Grant) {
        let mut frame = Vec::new();
        ws::push_frame(&mut frame, ws::Opcode::Text, text.as_bytes());
        mask(&mut frame);
        let verify = |token: &str| match token {
            "good" => Ok(grant.clone()),
            _ => Err(Denied { code: "token_invalid", message: "no".to_owned() }),
        };
        self.sessions.input(self.slot, &mut frame, self.now, &verify);
        self.serve();
    }

    fn kinds(&self) -> Vec<&str> {
        self.messages.iter().map(|message| message["type"].as_str().unwrap()).collect()
    }
}

/// Converts short server frames to client frames, with a mask of zeros, so that the decoder accepts them.
fn mask(bytes: &mut Vec<u8>) {
    let (mut masked, mut rest) = (Vec::new(), &bytes[..]);
    while let [first, second, ..] = *rest {
        let (header, length) = match second {
            126 => (4, usize::from(u16::from_be_bytes([rest[2], rest[3]]))),
            short => (2, usize::from(short)),
        };
        masked.extend([first, second | 0x80]);
        masked.extend_from_slice(&rest[2..header]);
        masked.extend([0; 4]);
        masked.extend_from_slice(&rest[header..header + length]);
        rest = &rest[header + length..];
    }
    *bytes = masked;
}

#[test]
fn a_client_receives_auth_expiring_before_its_token_expires_and_is_closed_when_it_does() {
    let mut world = World::new(grant(300));
    world.pass(239);
    assert_eq!(world.kinds(), ["ack"]);
    world.pass(1);
    assert_eq!(world.kinds(), ["ack", "auth_expiring"]);
    assert_eq!(world.messages[1]["expires_in"], 60);
    world.pass(59);
    assert_eq!((world.kinds().len(), &world.closed), (2, &None));
    world.pass(1);
    let (code, reason) = world.closed.clone().expect("closed");
    assert_eq!(code, CloseCode::Policy.number());
    assert!(reason.starts_with("token_expired: "), "{reason}");
    let tally = world.sessions.take_tally();
    assert_eq!((tally.tokens_expiring, tally.tokens_expired), (1, 1));
}

// attack: extend a session beyond its token's expiry by a step of the wall clock => the earlier clock counts
#[test]
fn a_wall_clock_set_forward_expires_tokens_early_and_one_set_back_extends_none() {
    let mut ahead = World::new(grant(90));
    ahead.step(3_600);
    ahead.pass(0);
    assert!(ahead.closed.as_ref().is_some_and(|(_, reason)| reason.starts_with("token_expired: ")));

    let mut some = World::new(grant(3_600));
    some.step(3_560);
    some.pass(19);
    assert_eq!(some.kinds(), ["ack"]);
    some.pass(1);
    assert_eq!((some.kinds().last(), &some.messages[1]["expires_in"]), (Some(&"auth_expiring"), &20.into()));
    some.pass(20);
    assert!(some.closed.is_some());

    let mut back = World::new(grant(90));
    back.step(-3_600);
    back.pass(89);
    assert_eq!(back.closed, None);
    back.pass(1);
    assert!(back.closed.is_some());

    let mut back_and_forward = World::new(grant(90));
    back_and_forward.step(-3_600);
    back_and_forward.step(3_600);
    back_and_forward.pass(89);
    assert_eq!(back_and_forward.closed, None);

    let mut renewed_while_wrong = World::new(grant(90));
    renewed_while_wrong.step(-3_600);
    renewed_while_wrong.send(r#"{"type":"auth","token":"good"}"#, &grant(100));
    renewed_while_wrong.step(3_600);
    renewed_while_wrong.pass(99);
    assert_eq!(renewed_while_wrong.closed, None);
    renewed_while_wrong.pass(1);
    assert!(renewed_while_wrong.closed.is_some());
}

#[test]
fn a_short_lived_token_is_announced_to_expire_at_half_of_its_time() {
    let mut world = World::new(grant(10));
    world.pass(4);
    assert_eq!(world.kinds(), ["ack"]);
    world.pass(1);
    assert_eq!(world.messages[1]["expires_in"], 5);
}

#[test]
fn a_newer_token_keeps_the_connection_open() {
    let mut world = World::new(grant(100));
    world.pass(50);
    assert_eq!(world.kinds(), ["ack", "auth_expiring"]);
    world.send(r#"{"type":"auth","token":"bad"}"#, &grant(0));
    world.send(r#"{"type":"auth","token":"good"}"#, &grant(400));
    assert_eq!(world.kinds(), ["ack", "auth_expiring", "error", "ack"]);
    world.pass(289);
    assert_eq!(world.messages.len(), 4);
    world.pass(1);
    assert_eq!(world.kinds().last(), Some(&"auth_expiring"));
    assert_eq!(world.closed, None);
    world.pass(60);
    assert!(world.closed.is_some());
}

#[test]
fn an_error_has_the_ack_event_id_of_the_message_and_the_topic() {
    let mut world = World::new(grant(100));
    for message in [
        r#"{"type":"subscribe","topic":"secret","event_id":"m1"}"#,
        r#"{"type":"subscribe","topic":"secret"}"#,
        r#"{"type":"subscribe","topic":"a,secret","event_id":"m2"}"#,
        r#"{"type":"auth","token":"bad","event_id":"m3"}"#,
        r#"{"type":"auth","token":"bad"}"#,
        r#"{"type":"nonsense"}"#,
        "nonsense",
    ] {
        world.send(message, &grant(0));
    }
    world.send(r#"{"type":"auth","token":"good","event_id":"m4"}"#, &Grant { topics: vec!["b".into()], ..grant(400) });
    let errors = world.messages.iter().filter(|message| message["type"] == "error");
    let named: Vec<_> = errors.map(|error| (error["ack_event_id"].as_str(), error["topic"].as_str())).collect();
    assert_eq!(
        named,
        [
            (Some("m1"), Some("secret")),
            (Some("subscribe"), Some("secret")),
            (Some("m2"), Some("a,secret")),
            (Some("m3"), None),
            (Some("auth"), None),
            (Some("nonsense"), None),
            (None, None),
            (Some("m4"), Some("a")),
        ]
    );
}

#[test]
fn each_rejected_topic_of_a_connect_is_answered_with_an_error_after_the_ack() {
    for (last_event_id, answered) in [(None, "initial_connect"), (Some("pos-1-0".to_owned()), "pos-1-0")] {
        let mut world = World::new(grant(100));
        let request =
            ConnectRequest::new(grant(100), ConnectionId(2), last_event_id, ["a", "secret", "a*"].into_iter(), 10);
        let start = world.window.start(request.last_event_id.as_deref(), request.connection);
        world.sessions.connect(request, start, 0, world.now);
        world.messages.clear();
        world.serve();
        let messages = world.messages.iter();
        let named: Vec<_> = messages.map(|message| (message["type"].as_str(), message["topic"].as_str())).collect();
        assert_eq!(named, [(Some("ack"), None), (Some("error"), Some("secret")), (Some("error"), Some("a*"))]);
        assert!(world.messages.iter().all(|message| message["ack_event_id"] == answered));
    }
}

// attack: an auth message with another user's token => answered with `wrong_user`, does not extend the connection
#[test]
fn a_token_of_another_user_does_not_extend_the_connection() {
    let mut world = World::new(grant(100));
    world.send(r#"{"type":"auth","token":"good"}"#, &Grant { user: "bob".into(), ..grant(400) });
    assert_eq!(world.messages[1]["error"], "wrong_user");
    world.pass(100);
    assert!(world.closed.is_some());
}

// attack: keeping topics after a token that allows fewer => the subscriptions end
#[test]
fn a_newer_token_that_allows_fewer_topics_ends_the_other_subscriptions() {
    let mut world = World::new(grant(100));
    world.send(r#"{"type":"auth","token":"good"}"#, &Grant { topics: vec!["b".into()], ..grant(400) });
    assert_eq!(world.kinds(), ["ack", "ack", "error"]);
    assert_eq!(world.messages[2]["error"], "forbidden");
    let topics: Vec<_> = world.sessions.session(world.slot).unwrap().topics().iter().map(|topic| &**topic).collect();
    assert_eq!(topics, ["b"]);
    for (n, topic) in (1..).zip(["a", "b"]) {
        let draft = Draft::new("note", &serde_json::json!({ "topic": topic })).unwrap();
        let event = draft.finish(world.now.unix_ms, || format!("e{n}")).unwrap();
        let entry = Arc::new(Entry::new(
            Position { epoch: 1, sequence: n },
            world.now.unix_ms,
            Audience::Topic(topic.into()),
            &event,
        ));
        world.window.push(entry.clone());
        world.sessions.advance(&[entry]);
        world.serve();
    }
    let events: Vec<_> = world.messages.iter().filter(|message| message["type"] == "note").collect();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0]["data"]["topic"], "b");
}

#[test]
fn a_revocation_closes_only_the_connections_that_it_applies_to() {
    for (revocation, concerned) in [
        (Revocation::User { user: "ann".into(), before: UNIX_SECS + 1 }, true),
        (Revocation::User { user: "ann".into(), before: UNIX_SECS }, false),
        (Revocation::User { user: "bob".into(), before: UNIX_SECS + 1 }, false),
        (Revocation::Token { token: 7 }, true),
        (Revocation::Token { token: 8 }, false),
        (Revocation::Session { session: 9, until: UNIX_SECS }, true),
        (Revocation::Session { session: 7, until: UNIX_SECS }, false),
        (Revocation::Everyone { before: UNIX_SECS + 1 }, true),
    ] {
        let mut world = World::new(grant(100));
        assert_eq!(world.sessions.revoke(&revocation, "token_revoked: gone", world.now), usize::from(concerned));
        world.serve();
        let closed = concerned.then(|| (CloseCode::Policy.number(), "token_revoked: gone".to_owned()));
        assert_eq!(world.closed, closed, "{revocation:?}");
    }
}

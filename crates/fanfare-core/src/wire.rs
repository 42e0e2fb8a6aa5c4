//! The JSON messages of the protocol: what a hub says besides events, and what clients say.

use crate::{ConnectionId, Position, event::MAX_DEPTH, json, time::iso_8601, window::Gap};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;

/// What a hub says besides events. Each message has `type`, `event_id` (a place to resume from) and `timestamp`;
/// the rest is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outgoing<'a> {
    /// Answers a connect, subscribe, unsubscribe or auth.
    Ack(Ack<'a>),
    /// How all nodes stand, for who holds the topic `$sys`. It has no place in the log, and so no `event_id`.
    Sys {
        /// A JSON object.
        data: &'a str,
    },
    /// Asks whether the client is there.
    Ping,
    /// Answers a client's ping.
    Pong,
    /// The client's message was not understood or not allowed; the connection stays.
    Error(ErrorFrame<'a>),
    /// History for this cursor is gone.
    Gap(Gap),
    /// The connection's token ends soon: show a newer one.
    AuthExpiring {
        /// When, in milliseconds from now; written in seconds.
        expires_in_ms: u64,
    },
    /// The node drains.
    Goaway {
        /// When to come back, in milliseconds from now.
        reconnect_after_ms: u64,
        /// Why.
        reason: &'a str,
    },
}

/// The fields of an `ack`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack<'a> {
    /// The `event_id`, where it is not the connection's position: what was sent as `last_event_id`, if a gap follows.
    pub event_id: Option<&'a str>,
    /// What is answered: the `last_event_id` sent, `initial_connect`, or the `event_id` or type of a message.
    pub ack_event_id: &'a str,
    /// The client's name, to come back with.
    pub connection_id: ConnectionId,
    /// The client goes on from its cursor without a gap.
    pub resumed: bool,
    /// How many held events follow before live ones do.
    pub replayed: usize,
    /// Milliseconds between pings; written in seconds.
    pub heartbeat_ms: u64,
    /// The topic that was subscribed to or unsubscribed from.
    pub topic: Option<&'a str>,
}

/// The fields of an `error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorFrame<'a> {
    /// What is wrong, as a word.
    pub error: &'a str,
    /// What is wrong, as a sentence with what to do.
    pub message: &'a str,
    /// What is answered, by the same rule as in an [`Ack`]; `None` where the message has no readable `type`.
    pub ack_event_id: Option<&'a str>,
    /// The topic that the message or the rejection is about.
    pub topic: Option<&'a str>,
}

#[derive(Serialize)]
struct Message<B> {
    #[serde(rename = "type")]
    kind: &'static str,
    event_id: String,
    timestamp: String,
    #[serde(flatten)]
    body: B,
}

#[derive(Serialize)]
struct AckBody<'a> {
    ack_event_id: &'a str,
    connection_id: String,
    resumed: bool,
    replayed: usize,
    heartbeat: serde_json::Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<&'a str>,
}

/// The reference's clients read `details` as an object.
#[derive(Serialize)]
struct Details<'a> {
    message: &'a str,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: &'a str,
    details: Details<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ack_event_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<&'a str>,
}

#[derive(Serialize)]
struct GapBody {
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    missed: Option<u64>,
}

#[derive(Serialize)]
struct ExpiringBody {
    expires_in: serde_json::Value,
}

#[derive(Serialize)]
struct GoawayBody<'a> {
    reconnect_after_ms: u64,
    reason: &'a str,
}

impl Outgoing<'_> {
    /// The message's JSON, for a connection that stands at `position`.
    pub fn to_json(self, position: Position, unix_ms: u64) -> String {
        let (event_id, timestamp) = (position.to_string(), iso_8601(unix_ms));
        match self {
            // Pings are most of what an idle hub says; their text needs no serializer.
            Self::Ping => bare("ping", &event_id, &timestamp),
            Self::Pong => bare("pong", &event_id, &timestamp),
            Self::Sys { data } => format!(r#"{{"type":"$sys","timestamp":"{timestamp}","data":{data}}}"#),
            Self::Ack(ack) => json("ack", ack.event_id.map_or(event_id, str::to_owned), timestamp, ack.body()),
            Self::Error(frame) => json("error", event_id, timestamp, frame.body()),
            Self::Gap(gap) => {
                json("gap", event_id, timestamp, GapBody { reason: gap.reason.as_str(), missed: gap.missed })
            }
            Self::AuthExpiring { expires_in_ms } => {
                json("auth_expiring", event_id, timestamp, ExpiringBody { expires_in: seconds(expires_in_ms) })
            }
            Self::Goaway { reconnect_after_ms, reason } => {
                json("goaway", event_id, timestamp, GoawayBody { reconnect_after_ms, reason })
            }
        }
    }
}

fn bare(kind: &str, event_id: &str, timestamp: &str) -> String {
    format!(r#"{{"type":"{kind}","event_id":"{event_id}","timestamp":"{timestamp}"}}"#)
}

fn json<B: Serialize>(kind: &'static str, event_id: String, timestamp: String, body: B) -> String {
    // Strings, numbers and booleans under fixed names always have a JSON form.
    serde_json::to_string(&Message { kind, event_id, timestamp, body }).unwrap_or_default()
}

impl<'a> Ack<'a> {
    fn body(self) -> AckBody<'a> {
        AckBody {
            ack_event_id: self.ack_event_id,
            connection_id: self.connection_id.to_string(),
            resumed: self.resumed,
            replayed: self.replayed,
            heartbeat: seconds(self.heartbeat_ms),
            topic: self.topic,
        }
    }
}

impl<'a> ErrorFrame<'a> {
    fn body(self) -> ErrorBody<'a> {
        let Self { error, message, ack_event_id, topic } = self;
        ErrorBody { error, details: Details { message }, ack_event_id, topic }
    }
}

/// Whole seconds as an integer, others with their fraction.
#[expect(clippy::cast_precision_loss, reason = "a period of 2^53 milliseconds is 285,000 years")]
fn seconds(ms: u64) -> serde_json::Value {
    if ms.is_multiple_of(1_000) { (ms / 1_000).into() } else { (ms as f64 / 1_000.0).into() }
}

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// Answers a ping.
    Pong,
    /// Asks for a pong.
    Ping,
    /// Says that it has handled an event.
    Ack {
        /// Which, by its `event_id`; `None` where it does not say, or not with a text.
        ack_event_id: Option<Cow<'a, str>>,
    },
    /// Wants a topic.
    Subscribe {
        /// Which.
        topic: Cow<'a, str>,
    },
    /// No longer wants a topic.
    Unsubscribe {
        /// Which.
        topic: Cow<'a, str>,
    },
    /// Shows a newer token.
    Auth {
        /// The token.
        token: Cow<'a, str>,
    },
}

/// Why a client's message was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    /// Not a JSON object with a string `type`.
    #[error("send a JSON object with a string \"type\": {0}")]
    Malformed(String),
    /// Not a type that clients send.
    #[error("unknown type {0:?}: a client sends {known}", known = KNOWN_TYPES)]
    UnknownType(String),
    /// A field that the type needs is not there.
    #[error("a message of type {kind:?} needs a string {field:?}")]
    Missing {
        /// The message's type.
        kind: &'static str,
        /// The field.
        field: &'static str,
    },
}

/// A client's message that is rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedMessage<'a> {
    /// Why.
    pub reason: BadMessage,
    /// What the rejection answers: the message's `event_id`, or its `type` if it has none.
    pub ack_event_id: Option<Cow<'a, str>>,
}

const KNOWN_TYPES: &str = "ping, pong, ack, subscribe, unsubscribe or auth";

impl BadMessage {
    /// The reason as a word.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::UnknownType(_) => "unknown_type",
            Self::Missing { .. } => "missing_field",
        }
    }
}

#[derive(Deserialize)]
struct RawMessage<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    event_id: Option<Cow<'a, str>>,
    /// Not looked at before it is known that this is an `ack`, and nothing wrong if it is something else.
    #[serde(borrow, default)]
    ack_event_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    topic: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    token: Option<Cow<'a, str>>,
}

/// A text that is borrowed where it can be.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// What names a message of which the rest can't be read.
#[derive(Deserialize)]
struct Name<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    event_id: Option<&'a RawValue>,
}

/// Reads a client's message, and the `event_id` it gave it.
///
/// # Errors
/// If it is not one that the protocol knows; it then must change nothing.
pub fn read(text: &str) -> Result<(Incoming<'_>, Option<Cow<'_, str>>), RejectedMessage<'_>> {
    let unnamed = |why: String| RejectedMessage { reason: BadMessage::Malformed(why), ack_event_id: None };
    if !text.trim_ascii_start().starts_with('{') {
        return Err(unnamed("not an object".to_owned()));
    }
    let depth = json::depth(text);
    if depth > MAX_DEPTH {
        return Err(unnamed(format!("nested {depth} deep; at most {MAX_DEPTH} are allowed")));
    }
    let raw: RawMessage<'_> = serde_json::from_str(text)
        .map_err(|error| RejectedMessage { ack_event_id: name(text), ..unnamed(error.to_string()) })?;
    let (kind, event_id) = (raw.kind.clone(), raw.event_id.clone());
    match understand(raw) {
        Ok(incoming) => Ok((incoming, event_id)),
        Err(reason) => Err(RejectedMessage { reason, ack_event_id: Some(event_id.unwrap_or(kind)) }),
    }
}

/// The `event_id` of a message with a field of the wrong type, or its `type` if the `event_id` is not a string.
fn name(text: &str) -> Option<Cow<'_, str>> {
    let Name { kind, event_id } = serde_json::from_str(text).ok()?;
    let event_id = event_id.and_then(|id| serde_json::from_str::<Text<'_>>(id.get()).ok());
    Some(event_id.map_or(kind, |Text(id)| id))
}

fn understand(raw: RawMessage<'_>) -> Result<Incoming<'_>, BadMessage> {
    let need = |value: Option<_>, kind, field| value.ok_or(BadMessage::Missing { kind, field });
    Ok(match &*raw.kind {
        "pong" => Incoming::Pong,
        "ping" => Incoming::Ping,
        "ack" => {
            let id = raw.ack_event_id.and_then(|id| serde_json::from_str::<Text<'_>>(id.get()).ok());
            Incoming::Ack { ack_event_id: id.map(|Text(id)| id) }
        }
        "subscribe" => Incoming::Subscribe { topic: need(raw.topic, "subscribe", "topic")? },
        "unsubscribe" => Incoming::Unsubscribe { topic: need(raw.topic, "unsubscribe", "topic")? },
        "auth" => Incoming::Auth { token: need(raw.token, "auth", "token")? },
        other => return Err(BadMessage::UnknownType(other.chars().take(40).collect())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::window::GapReason;

    const AT: Position = Position { epoch: 0xab, sequence: 5 };

    #[test]
    fn a_hub_says() {
        let ack = Ack {
            event_id: None,
            ack_event_id: "initial_connect",
            connection_id: ConnectionId(1),
            resumed: false,
            replayed: 2,
            heartbeat_ms: 30_000,
            topic: None,
        };
        let head =
            |kind: &str| format!(r#"{{"type":"{kind}","event_id":"pos-ab-5","timestamp":"1970-01-01T00:00:00.000Z""#);
        for (message, kind, rest) in [
            (Outgoing::Ping, "ping", "}"),
            (Outgoing::Pong, "pong", "}"),
            (
                Outgoing::Ack(ack),
                "ack",
                r#","ack_event_id":"initial_connect","connection_id":"00000000-0000-0000-0000-000000000001","resumed":false,"replayed":2,"heartbeat":30}"#,
            ),
            (
                Outgoing::Error(ErrorFrame {
                    error: "malformed",
                    message: "say \"it\"",
                    ack_event_id: None,
                    topic: None,
                }),
                "error",
                r#","error":"malformed","details":{"message":"say \"it\""}}"#,
            ),
            (
                Outgoing::Error(ErrorFrame {
                    error: "forbidden",
                    message: "no",
                    ack_event_id: Some("m\"1"),
                    topic: Some("a"),
                }),
                "error",
                r#","error":"forbidden","details":{"message":"no"},"ack_event_id":"m\"1","topic":"a"}"#,
            ),
            (
                Outgoing::Gap(Gap { reason: GapReason::Expired, missed: Some(3) }),
                "gap",
                r#","reason":"expired","missed":3}"#,
            ),
            (Outgoing::Gap(Gap { reason: GapReason::Reset, missed: None }), "gap", r#","reason":"reset"}"#),
            (
                Outgoing::Goaway { reconnect_after_ms: 250, reason: "restart" },
                "goaway",
                r#","reconnect_after_ms":250,"reason":"restart"}"#,
            ),
        ] {
            assert_eq!(message.to_json(AT, 0), format!("{}{rest}", head(kind)));
        }
    }

    #[test]
    fn a_heartbeat_of_half_a_second_keeps_its_fraction() {
        assert_eq!(seconds(30_000), 30);
        assert_eq!(seconds(500), 0.5);
    }

    #[test]
    fn a_client_says() {
        let (message, id) =
            read(r#"{"type":"subscribe","topic":"a","event_id":"m1","timestamp":"x","n":[1]}"#).unwrap();
        assert_eq!((message, id.as_deref()), (Incoming::Subscribe { topic: "a".into() }, Some("m1")));
        for (text, expected) in [
            (r#"{"type":"pong"}"#, Incoming::Pong),
            (r#"{"type":"ack","ack_event_id":"e1"}"#, Incoming::Ack { ack_event_id: Some("e1".into()) }),
            (r#"{"type":"ack","ack_event_id":7}"#, Incoming::Ack { ack_event_id: None }),
            (r#"{"type":"ack"}"#, Incoming::Ack { ack_event_id: None }),
            (r#"{"type":"auth","token":"t\u0041"}"#, Incoming::Auth { token: "tA".into() }),
        ] {
            assert_eq!(read(text).unwrap().0, expected);
        }
    }

    #[test]
    fn what_a_client_must_not_say() {
        for (text, code) in [
            ("", "malformed"),
            ("[]", "malformed"),
            ("7", "malformed"),
            (r#"["ping", null, null, null]"#, "malformed"),
            (r#"{"topic":"a"}"#, "malformed"),
            (r#"{"type":7}"#, "malformed"),
            (r#"{"type":"ping"} x"#, "malformed"),
            (r#"{"type":"ping","type":"pong"}"#, "malformed"),
            (r#"{"type":"publish"}"#, "unknown_type"),
            (r#"{"type":"subscribe"}"#, "missing_field"),
            (r#"{"type":"subscribe","topic":null}"#, "missing_field"),
            (r#"{"type":"auth"}"#, "missing_field"),
        ] {
            assert_eq!(read(text).unwrap_err().reason.code(), code, "{text}");
        }
        let deep = |depth| format!(r#"{{"type":"ping","unread":{}1{}}}"#, "[".repeat(depth), "]".repeat(depth));
        assert_eq!(read(&deep(MAX_DEPTH)).unwrap_err().reason.code(), "malformed");
        assert_eq!(read(&deep(MAX_DEPTH - 1)).unwrap().0, Incoming::Ping);
    }
}

//! The JSON messages of the protocol: messages from the hub other than events, and messages from clients.

use crate::{ConnectionId, Position, event::MAX_DEPTH, json, time::iso_8601, window::Gap};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;

/// A message from the hub other than an event.
///
/// Each message also has `type`, `timestamp` and, except for `$sys`, an `event_id`: the position of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outgoing<'a> {
    /// Acknowledges a connect, `subscribe`, `unsubscribe` or `auth`.
    Ack(Ack<'a>),
    /// The status of all nodes, for subscribers of the topic `$sys`. It has no position, and so no `event_id`.
    Sys {
        /// A JSON object.
        data: &'a str,
    },
    /// Requests a `pong` from the client.
    Ping,
    /// Answers a `ping` of the client.
    Pong,
    /// A client message was not valid or not allowed. The connection stays open.
    Error(ErrorFrame<'a>),
    /// Events after the client's cursor are no longer available.
    Gap(Gap),
    /// The connection's token expires soon.
    AuthExpiring {
        /// Time until the token expires, in milliseconds. Serialised in seconds.
        expires_in_ms: u64,
    },
    /// The hub is shutting down or being replaced.
    Goaway {
        /// Time after which the client reconnects, in milliseconds.
        reconnect_after_ms: u64,
        /// Why the hub disconnects the client.
        reason: &'a str,
    },
}

/// The fields of an `ack`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack<'a> {
    /// The `event_id` if it is not the connection's position: the request's `last_event_id`, if a `gap` follows.
    pub event_id: Option<&'a str>,
    /// The acknowledged message: the request's `last_event_id`, `initial_connect`, or a message's `event_id` or `type`.
    pub ack_event_id: &'a str,
    /// The connection ID, which the client sends when it reconnects.
    pub connection_id: ConnectionId,
    /// Whether the client resumes from its cursor without a gap.
    pub resumed: bool,
    /// Number of retained events that follow before live events.
    pub replayed: usize,
    /// Milliseconds between pings. Serialised in seconds.
    pub heartbeat_ms: u64,
    /// The topic of an acknowledged `subscribe` or `unsubscribe`.
    pub topic: Option<&'a str>,
}

/// The fields of an `error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorFrame<'a> {
    /// The error code.
    pub error: &'a str,
    /// The cause, and how to fix it, as a sentence.
    pub message: &'a str,
    /// The rejected message, by the same rule as in an [`Ack`]; `None` if the message has no readable `type`.
    pub ack_event_id: Option<&'a str>,
    /// The topic that the message or the rejection concerns.
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

/// Clients of the FastAPI hub expect `details` to be an object.
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
    /// Serialises the message as JSON for a connection at `position`. `unix_ms` is the `timestamp`, in milliseconds
    /// since 1970-01-01T00:00:00Z.
    pub fn to_json(self, position: Position, unix_ms: u64) -> String {
        let (event_id, timestamp) = (position.to_string(), iso_8601(unix_ms));
        match self {
            // Pings are most of the output of an idle hub, and need no serialiser.
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
    // Objects of strings, numbers and booleans can always be serialised.
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

/// Converts milliseconds to seconds: an integer for whole seconds, otherwise a fraction.
#[expect(clippy::cast_precision_loss, reason = "a period of 2^53 milliseconds is 285,000 years")]
fn seconds(ms: u64) -> serde_json::Value {
    if ms.is_multiple_of(1_000) { (ms / 1_000).into() } else { (ms as f64 / 1_000.0).into() }
}

/// A message from a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// Answers a `ping`.
    Pong,
    /// Requests a `pong`.
    Ping,
    /// Acknowledges that the client processed an event.
    Ack {
        /// The `event_id` of the event; `None` if it is missing or not a string.
        ack_event_id: Option<Cow<'a, str>>,
    },
    /// Subscribes to a topic.
    Subscribe {
        /// The topic. It is not checked yet.
        topic: Cow<'a, str>,
    },
    /// Unsubscribes from a topic.
    Unsubscribe {
        /// The topic. It is not checked yet.
        topic: Cow<'a, str>,
    },
    /// Presents a newer token.
    Auth {
        /// The token. It is not verified yet.
        token: Cow<'a, str>,
    },
}

/// Why a client's message is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    /// The message is not a JSON object with a string `type`.
    #[error("the message is not valid ({0}): send a JSON object with a string \"type\"")]
    Malformed(String),
    /// The `type` is not a type of client messages.
    #[error("unknown type {0:?}: expected {known}", known = KNOWN_TYPES)]
    UnknownType(String),
    /// A field that the type requires is missing.
    #[error("a message of type {kind:?} requires a string {field:?}")]
    Missing {
        /// The message's type.
        kind: &'static str,
        /// The field.
        field: &'static str,
    },
}

/// A rejected client message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedMessage<'a> {
    /// Why the message is rejected.
    pub reason: BadMessage,
    /// The message's `event_id`, or its `type` if it has no `event_id`; `None` if it has no readable `type`.
    pub ack_event_id: Option<Cow<'a, str>>,
}

const KNOWN_TYPES: &str = "ping, pong, ack, subscribe, unsubscribe or auth";

impl BadMessage {
    /// Returns the error code.
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
    /// Interpreted only in an `ack`. A value that is not a string is not an error.
    #[serde(borrow, default)]
    ack_event_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    topic: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    token: Option<Cow<'a, str>>,
}

/// A string that is borrowed if it contains no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The fields that identify a message whose other fields cannot be parsed.
#[derive(Deserialize)]
struct MessageId<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    event_id: Option<&'a RawValue>,
}

/// Parses a client's message. Returns the message and its `event_id`.
///
/// # Errors
/// If the message is not valid. A rejected message has no effect.
pub fn read(text: &str) -> Result<(Incoming<'_>, Option<Cow<'_, str>>), RejectedMessage<'_>> {
    let unnamed = |why: String| RejectedMessage { reason: BadMessage::Malformed(why), ack_event_id: None };
    if !text.trim_ascii_start().starts_with('{') {
        return Err(unnamed("not an object".to_owned()));
    }
    let depth = json::depth(text);
    if depth > MAX_DEPTH {
        return Err(unnamed(format!("nested {depth} levels deep; at most {MAX_DEPTH} are allowed")));
    }
    let raw: RawMessage<'_> = serde_json::from_str(text)
        .map_err(|error| RejectedMessage { ack_event_id: message_id(text), ..unnamed(error.to_string()) })?;
    let (kind, event_id) = (raw.kind.clone(), raw.event_id.clone());
    match interpret(raw) {
        Ok(incoming) => Ok((incoming, event_id)),
        Err(reason) => Err(RejectedMessage { reason, ack_event_id: Some(event_id.unwrap_or(kind)) }),
    }
}

/// Returns the `event_id` of a message that has a field of the wrong type, or its `type` if the `event_id` is not a
/// string.
fn message_id(text: &str) -> Option<Cow<'_, str>> {
    let MessageId { kind, event_id } = serde_json::from_str(text).ok()?;
    let event_id = event_id.and_then(|id| serde_json::from_str::<Text<'_>>(id.get()).ok());
    Some(event_id.map_or(kind, |Text(id)| id))
}

fn interpret(raw: RawMessage<'_>) -> Result<Incoming<'_>, BadMessage> {
    let require = |value: Option<_>, kind, field| value.ok_or(BadMessage::Missing { kind, field });
    Ok(match &*raw.kind {
        "pong" => Incoming::Pong,
        "ping" => Incoming::Ping,
        "ack" => {
            let id = raw.ack_event_id.and_then(|id| serde_json::from_str::<Text<'_>>(id.get()).ok());
            Incoming::Ack { ack_event_id: id.map(|Text(id)| id) }
        }
        "subscribe" => Incoming::Subscribe { topic: require(raw.topic, "subscribe", "topic")? },
        "unsubscribe" => Incoming::Unsubscribe { topic: require(raw.topic, "unsubscribe", "topic")? },
        "auth" => Incoming::Auth { token: require(raw.token, "auth", "token")? },
        other => return Err(BadMessage::UnknownType(other.chars().take(40).collect())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::window::GapReason;

    const AT: Position = Position { epoch: 0xab, sequence: 5 };

    #[test]
    fn hub_messages_are_serialised_as_documented() {
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
                concat!(
                    r#","ack_event_id":"initial_connect","connection_id":"00000000-0000-0000-0000-000000000001","#,
                    r#""resumed":false,"replayed":2,"heartbeat":30}"#
                ),
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
    fn a_heartbeat_interval_of_half_a_second_keeps_its_fraction() {
        assert_eq!(seconds(30_000), 30);
        assert_eq!(seconds(500), 0.5);
    }

    #[test]
    fn client_messages_are_parsed() {
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
    fn invalid_client_messages_are_rejected_with_their_error_code() {
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

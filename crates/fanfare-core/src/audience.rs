//! Who an event is for. Knows names, and not who is connected.

use crate::json;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::{fmt, str::FromStr, sync::Arc};

/// Who an event is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Audience {
    /// Every connection.
    Everyone,
    /// Every connection of one user, by the `sub` of its token.
    User(Arc<str>),
    /// One connection.
    Connection(ConnectionId),
    /// Every connection that subscribed to the topic.
    Topic(Arc<str>),
}

/// The name of one client, kept across reconnects. Written as a UUID (RFC 9562).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u128);

/// How many bits of a name say in which epoch it was given.
pub const TAG_BITS: u32 = 20;

/// The text is not a connection id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a connection id: expected 32 hexadecimal digits in the form of a UUID")]
pub struct NotAConnectionId;

/// The longest topic, in bytes.
pub const MAX_TOPIC_BYTES: usize = 128;

/// The longest user id, in bytes.
pub const MAX_USER_BYTES: usize = 256;

/// Why a name can't be a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// No name at all.
    #[error("a topic must not be empty")]
    Empty,
    /// Longer than [`MAX_TOPIC_BYTES`].
    #[error("a topic has at most {MAX_TOPIC_BYTES} bytes")]
    TooLong,
    /// A character that a list of topics or a pattern gives a meaning to, or that can't be seen.
    #[error("a topic has no comma, asterisk, white space or control character")]
    Character,
}

/// Why nothing can be published to an audience.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AudienceError {
    /// Not one of the four forms.
    #[error("must be \"everyone\", {{\"user\": ID}}, {{\"connection\": UUID}} or {{\"topic\": NAME}}")]
    Form,
    /// A user's id that is empty or longer than [`MAX_USER_BYTES`].
    #[error("can't be used: a user's id must have 1 to {MAX_USER_BYTES} bytes")]
    User,
    /// Not a connection id.
    #[error("can't be used: {0}")]
    Connection(#[from] NotAConnectionId),
    /// Not the name of a topic.
    #[error("can't be used: {0}")]
    Topic(#[from] TopicError),
    /// A topic that is reserved for the hub.
    #[error("can't be used: topics that begin with $ are reserved for the hub")]
    ReservedTopic,
}

/// What the names of the hub's own topics begin with. Only administrators hold them, and nobody publishes to them.
pub const OWN_TOPICS: char = '$';

/// The hub's own topic: how all nodes stand, every few seconds.
pub const SYSTEM_TOPIC: &str = "$sys";

/// Whether `name` can be a topic.
pub fn check_topic(name: &str) -> Result<(), TopicError> {
    if name.is_empty() {
        Err(TopicError::Empty)
    } else if name.len() > MAX_TOPIC_BYTES {
        Err(TopicError::TooLong)
    } else if name.contains(|c: char| c == ',' || c == '*' || c.is_whitespace() || c.is_control()) {
        Err(TopicError::Character)
    } else {
        Ok(())
    }
}

impl Audience {
    /// Reads an audience from JSON: `"everyone"`, `{"user": ID}`, `{"connection": UUID}` or `{"topic": NAME}`. The id
    /// of a user may be a number.
    ///
    /// # Errors
    /// If it is anything else, null included: a publisher that lost a user's id must not reach everyone.
    pub fn from_json(raw: &RawValue) -> Result<Self, AudienceError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum Form<'a> {
            Everyone,
            #[serde(borrow)]
            User(&'a RawValue),
            Connection(String),
            Topic(String),
        }
        let audience = match serde_json::from_str(raw.get()).map_err(|_| AudienceError::Form)? {
            Form::Everyone => Self::Everyone,
            Form::User(id) => Self::User(user_id(id).ok_or(AudienceError::Form)?),
            Form::Connection(id) => Self::Connection(id.parse()?),
            Form::Topic(name) => Self::Topic(name.into()),
        };
        audience.check().map(|()| audience)
    }

    /// Whether events can be published to it.
    ///
    /// # Errors
    /// If a name in it is not valid, or reserved for the hub.
    pub fn check(&self) -> Result<(), AudienceError> {
        match self {
            Self::Everyone | Self::Connection(_) => Ok(()),
            Self::User(id) if id.is_empty() || id.len() > MAX_USER_BYTES => Err(AudienceError::User),
            Self::User(_) => Ok(()),
            Self::Topic(name) if name.starts_with(OWN_TOPICS) => Err(AudienceError::ReservedTopic),
            Self::Topic(name) => Ok(check_topic(name)?),
        }
    }
}

/// A user's id: a string, or the digits of a whole number, as in a token's `sub`.
fn user_id(raw: &RawValue) -> Option<Arc<str>> {
    match json::number(raw) {
        Some(digits) => digits.parse::<i64>().ok().map(|number| number.to_string().into()),
        None => serde_json::from_str::<String>(raw.get()).ok().map(Arc::from),
    }
}

impl ConnectionId {
    /// The upper and the lower half.
    #[expect(clippy::cast_possible_truncation, reason = "each half is one of 64 bits")]
    pub const fn halves(self) -> [u64; 2] {
        [(self.0 >> 64) as u64, self.0 as u64]
    }

    /// In which epoch a hub gave this name, as [`tag`](crate::lineage::tag) shortens it: the first [`TAG_BITS`]. 0:
    /// that is not known. What others made up says nothing here.
    pub const fn epoch_tag(self) -> u32 {
        (self.0 >> (u128::BITS - TAG_BITS)) as u32
    }

    /// The id of an upper and a lower half.
    pub const fn from_halves([upper, lower]: [u64; 2]) -> Self {
        Self((upper as u128) << 64 | lower as u128)
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.0;
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            id >> 96,
            (id >> 80) & 0xffff,
            (id >> 64) & 0xffff,
            (id >> 48) & 0xffff,
            id & 0xffff_ffff_ffff
        )
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ConnectionId {
    type Err = NotAConnectionId;

    fn from_str(text: &str) -> Result<Self, NotAConnectionId> {
        let bytes = text.as_bytes();
        let mut id = 0u128;
        for (i, &byte) in bytes.iter().enumerate() {
            if matches!(i, 8 | 13 | 18 | 23) {
                if byte != b'-' {
                    return Err(NotAConnectionId);
                }
            } else {
                let digit = char::from(byte).to_digit(16).ok_or(NotAConnectionId)?;
                id = id << 4 | u128::from(digit);
            }
        }
        (bytes.len() == 36).then_some(Self(id)).ok_or(NotAConnectionId)
    }
}

/// For people: `everyone`, `user:ID`, `connection:ID` or `topic:NAME`, as `fanfare publish --audience` reads it.
impl fmt::Display for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everyone => f.write_str("everyone"),
            Self::User(user) => write!(f, "user:{user}"),
            Self::Connection(id) => write!(f, "connection:{id}"),
            Self::Topic(topic) => write!(f, "topic:{topic}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_id_is_written_as_a_uuid() {
        let id = ConnectionId(0x0123_4567_89ab_8def_8123_4567_89ab_cdef);
        assert_eq!(id.to_string(), "01234567-89ab-8def-8123-456789abcdef");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().to_uppercase().parse(), Ok(id));
        assert_eq!(ConnectionId::from_halves(id.halves()), id);
    }

    #[test]
    fn other_text_is_no_connection_id() {
        for text in ["", "0123", "0123456789ab8def81234567 9abcdef", "01234567-89ab-8def-8123-456789abcdeg"] {
            assert_eq!(text.parse::<ConnectionId>(), Err(NotAConnectionId), "{text}");
        }
        assert!("01234567-89ab-8def-8123-456789abcdef0".parse::<ConnectionId>().is_err());
    }

    #[test]
    fn audiences_are_read_from_json() {
        let read = |text: &str| Audience::from_json(&RawValue::from_string(text.to_owned()).expect(text));
        assert_eq!(read("\"everyone\""), Ok(Audience::Everyone));
        assert_eq!(read("{\"user\":\"ann\"}"), Ok(Audience::User("ann".into())));
        assert_eq!(read("{\"user\": 42}"), Ok(Audience::User("42".into())));
        assert_eq!(read("{\"topic\":\"project:7\"}"), Ok(Audience::Topic("project:7".into())));
        let id = ConnectionId(7);
        assert_eq!(read(&format!("{{\"connection\":\"{id}\"}}")), Ok(Audience::Connection(id)));
        for text in [
            "null",
            "\"ann\"",
            "\"user:ann\"",
            "{}",
            "[]",
            "42",
            "{\"user\":null}",
            "{\"user\":1.5}",
            "{\"user\":true}",
            "{\"user\":\"a\",\"topic\":\"b\"}",
            "{\"users\":[\"a\"]}",
            "{\"connection\":7}",
            "{\"everyone\":true}",
        ] {
            assert_eq!(read(text), Err(AudienceError::Form), "{text}");
        }
        assert_eq!(read("{\"user\":\"\"}"), Err(AudienceError::User));
        assert_eq!(read("{\"connection\":\"7\"}"), Err(AudienceError::Connection(NotAConnectionId)));
        assert_eq!(read("{\"topic\":\"a*\"}"), Err(AudienceError::Topic(TopicError::Character)));
        assert_eq!(read("{\"topic\":\"$sys\"}"), Err(AudienceError::ReservedTopic));
    }

    #[test]
    fn topics_are_checked() {
        assert_eq!(check_topic("project:7/board"), Ok(()));
        assert_eq!(check_topic(""), Err(TopicError::Empty));
        assert_eq!(check_topic(&"x".repeat(129)), Err(TopicError::TooLong));
        for name in ["a,b", "project:*", "a b", "a\u{7f}"] {
            assert_eq!(check_topic(name), Err(TopicError::Character), "{name}");
        }
    }
}

//! Audiences of events, connection IDs and topic names. This module does not know which clients are connected.

use crate::json;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::{fmt, str::FromStr, sync::Arc};

/// The audience of an event.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Audience {
    /// Every connection.
    Everyone,
    /// Every connection of one user, identified by the claim `sub`.
    User(Arc<str>),
    /// One connection.
    Connection(ConnectionId),
    /// Every connection that is subscribed to the topic.
    Topic(Arc<str>),
}

/// Identifies a client across reconnects. The text form is a UUID (RFC 9562).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u128);

/// Number of leading bits of a connection ID that hold the tag of the epoch in which the ID was issued.
pub const TAG_BITS: u32 = 20;

/// The text is not a connection ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a connection ID: expected a UUID of 32 hexadecimal digits")]
pub struct NotAConnectionId;

/// Maximum length of a topic, in bytes.
pub const MAX_TOPIC_BYTES: usize = 128;

/// Maximum length of a user ID, in bytes.
pub const MAX_USER_BYTES: usize = 256;

/// Why a name is not a valid topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// The name is empty.
    #[error("a topic must not be empty")]
    Empty,
    /// The name is longer than [`MAX_TOPIC_BYTES`].
    #[error("a topic has at most {MAX_TOPIC_BYTES} bytes")]
    TooLong,
    /// The name contains a separator of lists, a wildcard of patterns, white space or a control character.
    #[error("a topic must not contain a comma, asterisk, white space or control character")]
    Character,
}

/// Why an audience is not valid for publishing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AudienceError {
    /// Not one of the four forms.
    #[error("must be \"everyone\", {{\"user\": ID}}, {{\"connection\": UUID}} or {{\"topic\": NAME}}")]
    Form,
    /// The user ID is empty or longer than [`MAX_USER_BYTES`].
    #[error("is not valid: a user ID must have 1 to {MAX_USER_BYTES} bytes")]
    User,
    /// The connection ID is not valid.
    #[error("is not valid: {0}")]
    Connection(#[from] NotAConnectionId),
    /// The topic is not valid.
    #[error("is not valid: {0}")]
    Topic(#[from] TopicError),
    /// The topic is reserved for the hub.
    #[error("is not valid: topics that begin with $ are reserved for the hub")]
    ReservedTopic,
}

/// First character of topics that are reserved for the hub. Only administrators can subscribe to them, and no event can
/// be published to them.
pub const OWN_TOPICS: char = '$';

/// The topic of the periodic status messages (`$sys`) of all nodes.
pub const SYSTEM_TOPIC: &str = "$sys";

/// Checks whether `name` is a valid topic: 1 to [`MAX_TOPIC_BYTES`] bytes without comma, asterisk, white space or
/// control character.
///
/// # Errors
/// The first rule that `name` violates.
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
    /// Parses an audience from JSON: `"everyone"`, `{"user": ID}`, `{"connection": UUID}` or `{"topic": NAME}`.
    ///
    /// A user ID may be an integer.
    ///
    /// # Errors
    /// If the value has any other form, including null: a publisher without a user ID must not reach every client.
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

    /// Checks whether events can be published to this audience.
    ///
    /// # Errors
    /// If the user ID or topic is not valid, or the topic is reserved for the hub.
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

/// Parses a user ID: a string, or an integer, which is converted to its digits as in the claim `sub`.
fn user_id(raw: &RawValue) -> Option<Arc<str>> {
    match json::number(raw) {
        Some(digits) => digits.parse::<i64>().ok().map(|number| number.to_string().into()),
        None => serde_json::from_str::<String>(raw.get()).ok().map(Arc::from),
    }
}

impl ConnectionId {
    /// Returns the upper and the lower half of the ID.
    #[expect(clippy::cast_possible_truncation, reason = "each half is one of 64 bits")]
    pub const fn halves(self) -> [u64; 2] {
        [(self.0 >> 64) as u64, self.0 as u64]
    }

    /// Returns the tag ([`tag`](crate::lineage::tag)) of the epoch in which a hub issued this ID: its first
    /// [`TAG_BITS`] bits. 0 means unknown. The tag of an ID that no hub issued has no meaning.
    pub const fn epoch_tag(self) -> u32 {
        (self.0 >> (u128::BITS - TAG_BITS)) as u32
    }

    /// Builds an ID from its upper and lower half.
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

/// `everyone`, `user:ID`, `connection:ID` or `topic:NAME`, the form that `fanfare publish --audience` accepts.
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
    fn a_connection_id_is_formatted_as_a_uuid() {
        let id = ConnectionId(0x0123_4567_89ab_8def_8123_4567_89ab_cdef);
        assert_eq!(id.to_string(), "01234567-89ab-8def-8123-456789abcdef");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().to_uppercase().parse(), Ok(id));
        assert_eq!(ConnectionId::from_halves(id.halves()), id);
    }

    #[test]
    fn other_text_is_not_a_connection_id() {
        for text in ["", "0123", "0123456789ab8def81234567 9abcdef", "01234567-89ab-8def-8123-456789abcdeg"] {
            assert_eq!(text.parse::<ConnectionId>(), Err(NotAConnectionId), "{text}");
        }
        assert!("01234567-89ab-8def-8123-456789abcdef0".parse::<ConnectionId>().is_err());
    }

    #[test]
    fn audiences_are_parsed_from_json() {
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

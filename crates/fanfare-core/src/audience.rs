//! Who an event is for. Knows names, and not who is connected.

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

/// What the names of the hub's own topics begin with. Only administrators hold them, and nobody publishes to them.
pub const OWN_TOPICS: char = '$';

/// The hub's own topic: how all nodes stand, every few seconds.
pub const SYS_TOPIC: &str = "$sys";

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

impl ConnectionId {
    /// The upper and the lower half.
    #[expect(clippy::cast_possible_truncation, reason = "each half is one of 64 bits")]
    pub const fn halves(self) -> [u64; 2] {
        [(self.0 >> 64) as u64, self.0 as u64]
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
    fn topics_are_checked() {
        assert_eq!(check_topic("project:7/board"), Ok(()));
        assert_eq!(check_topic(""), Err(TopicError::Empty));
        assert_eq!(check_topic(&"x".repeat(129)), Err(TopicError::TooLong));
        for name in ["a,b", "project:*", "a b", "a\u{7f}"] {
            assert_eq!(check_topic(name), Err(TopicError::Character), "{name}");
        }
    }
}

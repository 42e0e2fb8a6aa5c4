//! What a listener hears.

use crate::closes;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use std::time::Duration;

/// Something that a listener heard.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Notification {
    /// An event, in order and once.
    Event(Event),
    /// History was lost between what came before and what comes next: fetch the state anew, and then ask for more. The
    /// cursor stays before the gap until then, so that one saved meanwhile leads to the same gap again.
    Gap(Gap),
    /// How the connection stands has changed.
    State(State),
    /// The hub has taken a [`subscribe`](crate::Listener::subscribe): events of the topic follow from here on. Topics
    /// that were asked for before the connection was live are subscribed to with it, unless a [`Problem`] names them.
    Subscribed {
        /// The topic.
        topic: String,
    },
    /// Something went wrong that didn't end the connection.
    Problem(Problem),
}

/// An event as the hub delivered it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub(crate) event_type: Box<str>,
    pub(crate) event_id: Box<str>,
    pub(crate) timestamp: Box<str>,
    pub(crate) log_position: Option<Box<str>>,
    pub(crate) json: Box<str>,
}

/// History was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// `expired`: it is older than what the hub holds. `reset`: the hub's log is a new one.
    pub reason: String,
    /// How many events are missing, where the hub knows.
    pub missed: Option<u64>,
}

/// How a connection stands.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// There was no connection yet, and the next attempt follows.
    Connecting {
        /// Why the last attempt failed.
        reason: String,
        /// When the next one begins.
        retry_in: Duration,
    },
    /// The connection is lost; the next one goes on where this one was.
    Resuming {
        /// Why it ended.
        reason: String,
        /// When the next attempt begins.
        retry_in: Duration,
    },
    /// Events arrive as they are published.
    Live {
        /// What the hub calls this client.
        connection_id: String,
        /// Whether it goes on where the last connection was.
        resumed: bool,
        /// How many held events follow.
        replayed: u64,
    },
}

/// Something that the hub refused, or that went wrong without ending the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What a program can tell apart: the hub's own word, or `malformed`, `token`, `token_expiring`.
    pub error: String,
    /// What a person can read.
    pub message: String,
    /// What the hub rejected: the message's type (`subscribe`, `auth`), or what the connect's `ack` answered.
    pub ack_event_id: Option<String>,
    /// The topic that was rejected.
    pub topic: Option<String>,
}

/// Another attempt would end as the last one did.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refused {
    /// The close code, if the hub closed the connection (RFC 6455 section 7.4).
    pub code: Option<u16>,
    /// Why, in words.
    pub reason: String,
}

impl Event {
    /// The value of `type`.
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// The value of `event_id`.
    pub fn event_id(&self) -> &str {
        &self.event_id
    }

    /// Where the event stands in the log, to go on from with [`Cursor`](crate::Cursor); `None` from a hub of an older
    /// version.
    pub fn log_position(&self) -> Option<&str> {
        self.log_position.as_deref()
    }

    /// The value of `timestamp`: ISO 8601 if the hub wrote it, otherwise whatever the publisher sent, a number as its
    /// digits.
    pub fn timestamp(&self) -> &str {
        &self.timestamp
    }

    /// The whole event as it came: a JSON object, with its place in the log as `log_position`.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// The value of `data`, or of `payload` in an event that has no `data`.
    ///
    /// # Errors
    /// If it is of another shape.
    pub fn data<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        #[derive(Deserialize)]
        struct Whole<'a> {
            #[serde(borrow)]
            data: Option<&'a RawValue>,
            #[serde(borrow)]
            payload: Option<&'a RawValue>,
        }
        let whole: Whole<'_> = serde_json::from_str(&self.json)?;
        serde_json::from_str(whole.data.or(whole.payload).map_or("null", RawValue::get))
    }
}

impl State {
    /// When the next attempt begins, unless the connection is live.
    pub fn retry_in(&self) -> Option<Duration> {
        match self {
            Self::Connecting { retry_in, .. } | Self::Resuming { retry_in, .. } => Some(*retry_in),
            Self::Live { .. } => None,
        }
    }
}

impl Refused {
    pub(crate) fn closed(code: u16, reason: &str) -> Self {
        Self { code: Some(code), reason: closes::words(code, reason) }
    }

    pub(crate) fn because(reason: impl Into<String>) -> Self {
        Self { code: None, reason: reason.into() }
    }
}

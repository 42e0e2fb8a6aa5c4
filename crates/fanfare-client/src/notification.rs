//! The values that a listener returns: events, gaps, changes of state and problems.

use crate::closes;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use std::time::Duration;

/// A result of [`Listener::next`](crate::Listener::next).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Notification {
    /// An event. Events are returned in order, each once.
    Event(Event),
    /// Events between the previous and the next event are missing. Reload your data, then call
    /// [`next`](crate::Listener::next) again. The cursor stays before the gap until that call, so a cursor that is
    /// saved in the meantime leads to the same gap again.
    Gap(Gap),
    /// The state of the connection has changed.
    State(State),
    /// The hub acknowledged a [`subscribe`](crate::Listener::subscribe). Events of the topic follow from here on.
    /// Topics that were requested before the connection was live are part of the connect; they are subscribed to unless
    /// a [`Problem`] names them.
    Subscribed {
        /// The topic.
        topic: String,
    },
    /// An error that did not end the connection.
    Problem(Problem),
}

/// An event as it was received from the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub(crate) event_type: Box<str>,
    pub(crate) event_id: Box<str>,
    pub(crate) timestamp: Box<str>,
    pub(crate) log_position: Option<Box<str>>,
    pub(crate) json: Box<str>,
}

/// Events after the cursor are missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// `expired`: the events were evicted from the window. `reset`: the hub's log is a new one, or lost events.
    pub reason: String,
    /// The number of skipped events of the log, regardless of their audience, if it is known.
    pub missed: Option<u64>,
}

/// The state of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// No connection has been established yet. Another attempt follows.
    Connecting {
        /// Why the last attempt failed.
        reason: String,
        /// Time until the next attempt.
        retry_in: Duration,
    },
    /// The connection was lost. The next connection resumes from the cursor.
    Resuming {
        /// Why the connection or the last attempt failed.
        reason: String,
        /// Time until the next attempt.
        retry_in: Duration,
    },
    /// The connection is established, and events arrive as they are published.
    Live {
        /// The connection ID.
        connection_id: String,
        /// Whether the connection resumed from the cursor without a gap.
        resumed: bool,
        /// The number of retained events that follow before live events.
        replayed: u64,
    },
}

/// A rejection by the hub, or another error that did not end the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The error code: a code of the hub, or `malformed`, `token` or `token_expiring`.
    pub error: String,
    /// A human-readable message.
    pub message: String,
    /// The rejected message: its type (`subscribe`, `auth`), or the `ack_event_id` of the connect's `ack`.
    pub ack_event_id: Option<String>,
    /// The rejected topic.
    pub topic: Option<String>,
}

/// A failure that another attempt cannot fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refused {
    /// The close code, if the hub closed the connection (RFC 6455 section 7.4).
    pub code: Option<u16>,
    /// The cause, as a sentence.
    pub reason: String,
}

impl Event {
    /// Returns the value of `type`.
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// Returns the value of `event_id`.
    pub fn event_id(&self) -> &str {
        &self.event_id
    }

    /// Returns the position of the event in the log, for [`Cursor::last_event_id`](crate::Cursor::last_event_id);
    /// `None` if a hub of an older version sent the event.
    pub fn log_position(&self) -> Option<&str> {
        self.log_position.as_deref()
    }

    /// Returns the value of `timestamp`: ISO 8601 if the hub set it, otherwise the publisher's value. A number is
    /// returned as its digits.
    pub fn timestamp(&self) -> &str {
        &self.timestamp
    }

    /// Returns the whole event as it was received: a JSON object, with the position in the log as `log_position`.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// Deserialises the value of `data`, or of `payload` if the event has no `data`.
    ///
    /// # Errors
    /// If the value does not match `T`.
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
    /// Returns the time until the next attempt; `None` if the connection is live.
    pub fn retry_in(&self) -> Option<Duration> {
        match self {
            Self::Connecting { retry_in, .. } | Self::Resuming { retry_in, .. } => Some(*retry_in),
            Self::Live { .. } => None,
        }
    }
}

impl Refused {
    pub(crate) fn closed(code: u16, reason: &str) -> Self {
        Self { code: Some(code), reason: closes::describe(code, reason) }
    }

    pub(crate) fn because(reason: impl Into<String>) -> Self {
        Self { code: None, reason: reason.into() }
    }
}

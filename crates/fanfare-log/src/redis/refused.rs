//! The reasons for rejecting messages on channels. They are stored in Redis, where the publisher can read them, because
//! a channel has no response.

use super::{link::Link, shared::Shared};
use fanfare_core::event::MAX_EVENT_ID_BYTES;
use redis::cmd;
use serde::{Deserialize, Serialize};
use std::{convert::Infallible, fmt::Display};
use tokio::sync::mpsc;

/// How long a reason is stored, in seconds.
const KEPT_SECS: u64 = 60;

/// The maximum number of reasons that wait to be stored. Further ones are dropped; they are still in the hub's log and
/// metrics.
const MAX_WAITING: usize = 1_000;

/// Why a message was rejected. The code is the one with which `POST /events` rejects the same event.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Rejection {
    pub(super) code: &'static str,
    pub(super) message: String,
    #[serde(skip)]
    event_id: Option<String>,
}

/// The only field that is read of a message that may be invalid otherwise.
#[derive(Deserialize)]
struct Name {
    event_id: String,
}

impl Rejection {
    pub(super) fn new(code: &'static str, message: &dyn Display) -> Self {
        Self { code, message: message.to_string(), event_id: None }
    }

    /// Records the `event_id` in `payload`, if it has one.
    pub(super) fn of(mut self, payload: &[u8]) -> Self {
        let name = serde_json::from_slice::<Name>(payload).ok().map(|name| name.event_id);
        self.event_id = name.filter(|id| (1..=MAX_EVENT_ID_BYTES).contains(&id.len()));
        self
    }
}

/// The queue of reasons for [`write`].
pub(super) fn queue() -> (mpsc::Sender<Rejection>, mpsc::Receiver<Rejection>) {
    mpsc::channel(MAX_WAITING)
}

/// Stores each reason under the `event_id` until the link ends. All nodes do so, with the same result.
pub(super) async fn write<E>(
    shared: &Shared,
    link: &Link,
    mut reasons: mpsc::Receiver<Rejection>,
) -> Result<Infallible, E> {
    while let Some(rejection) = reasons.recv().await {
        let Some(event_id) = &rejection.event_id else { continue };
        let Ok(text) = serde_json::to_string(&rejection) else { continue };
        let mut command = cmd("SET");
        command.arg(shared.keys.refused(event_id)).arg(text).arg("EX").arg(KEPT_SECS);
        if let Err(error) = link.call(&command).await {
            tracing::debug!(%error, "failed to store the reason for a rejected message");
        }
    }
    // The sender lives as long as the channels are read.
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_stored_under_the_event_id_of_the_message() {
        let named = |payload: &str| Rejection::new("invalid", &"x").of(payload.as_bytes()).event_id;
        assert_eq!(named(r#"{"data":7,"event_id":"e1"}"#), Some("e1".to_owned()));
        for payload in ["", "[]", r#"{"event_id":7}"#, r#"{"event_id":""}"#, r#"{"type":"note"}"#] {
            assert_eq!(named(payload), None, "{payload}");
        }
        let long = format!(r#"{{"event_id":"{}"}}"#, "x".repeat(MAX_EVENT_ID_BYTES + 1));
        assert_eq!(named(&long), None);
    }

    #[test]
    fn the_reason_is_encoded_as_publishers_expect() {
        let text = serde_json::to_string(&Rejection::new("invalid", &"no")).unwrap();
        assert_eq!(text, r#"{"code":"invalid","message":"no"}"#);
    }
}

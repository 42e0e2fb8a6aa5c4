//! Why a message on a channel was rejected, written where its publisher looks: a channel carries no answer.

use super::{link::Link, shared::Shared};
use fanfare_core::event::MAX_EVENT_ID_BYTES;
use redis::cmd;
use serde::{Deserialize, Serialize};
use std::{convert::Infallible, fmt::Display};
use tokio::sync::mpsc;

/// How long the reason is kept, in seconds.
const KEPT_SECS: u64 = 60;

/// How many reasons wait to be written. More are dropped: the hub's log and its metrics have them too.
const MAX_WAITING: usize = 1_000;

/// Why a message is not an event. The code is the one with which `POST /events` rejects the same.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Refused {
    pub(super) code: &'static str,
    pub(super) message: String,
    #[serde(skip)]
    event_id: Option<String>,
}

/// The one field of a message that is read whatever else is wrong with it.
#[derive(Deserialize)]
struct Name {
    event_id: String,
}

impl Refused {
    pub(super) fn new(code: &'static str, message: &dyn Display) -> Self {
        Self { code, message: message.to_string(), event_id: None }
    }

    /// Notes which event `payload` was to be, if it names one.
    pub(super) fn of(mut self, payload: &[u8]) -> Self {
        let name = serde_json::from_slice::<Name>(payload).ok().map(|name| name.event_id);
        self.event_id = name.filter(|id| (1..=MAX_EVENT_ID_BYTES).contains(&id.len()));
        self
    }
}

/// Where reasons wait for [`write`].
pub(super) fn queue() -> (mpsc::Sender<Refused>, mpsc::Receiver<Refused>) {
    mpsc::channel(MAX_WAITING)
}

/// Writes each reason under the event's id until the link ends. Every node does: the first one is enough for the publisher.
pub(super) async fn write<E>(
    shared: &Shared,
    link: &Link,
    mut reasons: mpsc::Receiver<Refused>,
) -> Result<Infallible, E> {
    while let Some(refused) = reasons.recv().await {
        let Some(event_id) = &refused.event_id else { continue };
        let Ok(text) = serde_json::to_string(&refused) else { continue };
        let mut command = cmd("SET");
        command.arg(shared.keys.refused(event_id)).arg(text).arg("EX").arg(KEPT_SECS);
        if let Err(error) = link.call(&command).await {
            tracing::debug!(%error, "the reason for a rejected message was not written");
        }
    }
    // The sender lives as long as the channels are heard.
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_kept_under_the_id_that_the_message_names() {
        let named = |payload: &str| Refused::new("invalid", &"x").of(payload.as_bytes()).event_id;
        assert_eq!(named(r#"{"data":7,"event_id":"e1"}"#), Some("e1".to_owned()));
        for payload in ["", "[]", r#"{"event_id":7}"#, r#"{"event_id":""}"#, r#"{"type":"note"}"#] {
            assert_eq!(named(payload), None, "{payload}");
        }
        let long = format!(r#"{{"event_id":"{}"}}"#, "x".repeat(MAX_EVENT_ID_BYTES + 1));
        assert_eq!(named(&long), None);
    }

    #[test]
    fn the_reason_is_written_as_a_publisher_reads_it() {
        let text = serde_json::to_string(&Refused::new("invalid", &"no")).unwrap();
        assert_eq!(text, r#"{"code":"invalid","message":"no"}"#);
    }
}

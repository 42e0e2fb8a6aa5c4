//! The counters of a log. The application decides where they are kept.

use std::fmt;

/// A counter of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogCounter {
    /// Commands sent to Redis.
    RedisCommands,
    /// Commands of Redis that failed or timed out.
    RedisErrors,
    /// Reconnects to Redis.
    Reconnects,
    /// Events that Redis had lost and this node restored.
    EventsRestored,
    /// Events that Redis lost and this node could not restore.
    EventsLost,
    /// Messages on channels that were dropped because the buffer was full.
    PublicationsLost,
    /// Messages on channels that are not valid events.
    BadPublications,
    /// Foreign entries in the streams of the log.
    BadLogEntries,
}

/// Keeps the counters of a log.
pub trait LogMetrics: Send + Sync + fmt::Debug {
    /// Adds to a counter. Must not block.
    fn add(&self, counter: LogCounter, count: u64);

    /// Counts an event that this node appended for a publisher on a channel. Must not block.
    fn add_event(&self, event_type: &str);
}

/// Counts nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoMetrics;

impl LogMetrics for NoMetrics {
    fn add(&self, _counter: LogCounter, _count: u64) {}

    fn add_event(&self, _event_type: &str) {}
}

//! Where the log lives. Knows events and positions, and not who is connected.

mod memory;

pub use memory::MemoryBroker;

use fanfare_core::{Audience, Event, window::Entry};
use std::{fmt, pin::Pin, sync::Arc};

/// A future that a broker answers with.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, BrokerError>> + Send + 'a>>;

/// An event and whom it is for, on its way into the log.
#[derive(Debug, Clone)]
pub struct Record {
    /// The event, complete.
    pub event: Event,
    /// Whom it is for.
    pub audience: Audience,
}

/// An event's place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The place.
    pub sequence: u64,
    /// The log had an event of this id already, at this place; nothing was appended.
    pub duplicate: bool,
}

/// Why the log could not take or give an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// The log can't be reached; nothing was appended.
    #[error("the log can't be reached: {0}")]
    Unavailable(String),
}

/// Takes the log's entries as they come: a node.
pub trait Tail: Send + Sync + fmt::Debug {
    /// Takes the next entries, in order and without a hole. Must not block.
    fn take(&self, entries: &[Arc<Entry>]);

    /// Says that entries were taken, once no lock is held any more.
    fn wake(&self);
}

/// A log: one order for all events of all publishers.
pub trait Broker: Send + Sync + fmt::Debug + 'static {
    /// What holds the log, as `/ws/health` names it.
    fn name(&self) -> &'static str;

    /// Which log this is. Another epoch is another log, of which no cursor is good.
    fn epoch(&self) -> u64;

    /// Appends records in their order. A record whose `event_id` the log still has is not appended again.
    ///
    /// An answer means that every record is in the log; an error, that none of them was acknowledged.
    fn append(&self, records: Vec<Record>) -> Answer<'_, Vec<Appended>>;

    /// Gives `tail` every entry from the head on that is returned: the sequence of the newest entry before.
    fn tail(&self, tail: Arc<dyn Tail>) -> Answer<'_, u64>;

    /// The entries behind a place, oldest first, at most `limit`.
    fn range(&self, after: u64, limit: usize) -> Answer<'_, Vec<Arc<Entry>>>;

    /// Lets go of what is too old at `unix_ms`.
    fn expire(&self, unix_ms: u64);
}

//! The oracle: what was published, what each client received, and the rules that relate the two. Knows nothing of how
//! events are published or received.

mod bits;
mod ledger;
mod lineage;
mod truth;

pub(crate) use ledger::{Gap, Ledger};
pub(crate) use lineage::Lineage;
pub(crate) use truth::{Kind, Truth};

use serde::Serialize;

/// The maximum number of examples.
const EXAMPLES: usize = 3;

/// An event: its publisher, and its number there.
pub(crate) type Event = (usize, u64);

/// The number of violations of each rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Wrong {
    /// Acknowledged events that a client did not receive, and that no gap explains.
    pub(crate) lost: u64,
    /// Events that a client received again, or that were for another audience.
    pub(crate) doubled: u64,
    /// Events at an earlier position than the event before, or after a later one of the same publisher.
    pub(crate) reordered: u64,
    /// Positions that identify two events, and events that have two positions.
    pub(crate) conflicts: u64,
    /// Events received after a later one of a publisher without acknowledgement. Nodes whose connections were cut
    /// received different messages of the channel.
    pub(crate) late: u64,
}

impl std::ops::AddAssign for Wrong {
    fn add_assign(&mut self, other: Self) {
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.reordered += other.reordered;
        self.conflicts += other.conflicts;
        self.late += other.late;
    }
}

#[cfg(test)]
mod tests;

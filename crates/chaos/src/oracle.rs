//! What is known to have been published, what each client read, and the rules that the two must keep. Knows nothing of how
//! events are published or received.

mod bits;
mod ledger;
mod lineage;
mod truth;

pub(crate) use ledger::{Gap, Ledger};
pub(crate) use lineage::Lineage;
pub(crate) use truth::{Kind, Truth};

use serde::Serialize;

/// One event: its publisher, and its number there.
pub(crate) type Event = (usize, u64);

/// What went wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Wrong {
    /// Acknowledged events that a client never received, and was told of no gap that explains it.
    pub(crate) lost: u64,
    /// Events that came again, or that were for another client.
    pub(crate) doubled: u64,
    /// Events that came at an earlier place than what came before, or after a later one of the same publisher.
    pub(crate) reordered: u64,
    /// Places of the log that name two events, and events that stand at two places.
    pub(crate) conflicts: u64,
    /// Events after a later one of a publisher that nobody acknowledges: nodes whose connections were cut heard different
    /// parts.
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

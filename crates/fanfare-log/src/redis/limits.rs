//! Times that several parts of the backend depend on.

use std::time::Duration;

/// The timeout of a command.
pub(super) const ANSWER: Duration = Duration::from_secs(2);

/// How long a read of the tail blocks.
pub(super) const BLOCK: Duration = Duration::from_secs(1);

/// How long the answer of a majority of the sentinels is valid. A server that replaces another one is confirmed only
/// after this time, so that the answer has expired at every node that has not reported.
pub(super) const LEASE: Duration = Duration::from_secs(4);

/// The time for which a node without heartbeats counts as alive, in milliseconds.
pub(super) const ALIVE_MS: u64 = 10_000;

/// Any node removes a member that has been silent for this time by the server's clock, in milliseconds.
pub(super) const REMOVED_MS: u64 = 30_000;

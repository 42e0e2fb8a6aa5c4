//! Detects clients that alternate between this hub and another hub with its own log, for example behind one proxy.
//!
//! After a restart each client connects once with a cursor of the previous log. A client that connects again with a
//! different cursor of another log was served by another hub in between.

use fanfare_core::ConnectionId;
use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Mutex, PoisonError},
};

/// Number of repeated foreign cursors after which a warning is logged.
const WARN_AFTER: u32 = 3;
/// Number of connections that are remembered.
const MAX_CONNECTIONS: usize = 10_000;

/// The foreign cursors that clients connected with.
#[derive(Debug, Default)]
pub(crate) struct ForeignCursors(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// By connection: the hash of its last foreign cursor.
    last: HashMap<ConnectionId, u64>,
    hasher: RandomState,
    repeated: u32,
}

impl ForeignCursors {
    /// Records a client that connected with a cursor of another log. Returns true once, when the warning is due.
    pub(crate) fn note(&self, connection: ConnectionId, cursor: &str) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.repeated >= WARN_AFTER {
            return false;
        }
        let cursor = seen.hasher.hash_one(cursor);
        match seen.last.get_mut(&connection) {
            Some(last) if *last == cursor => return false,
            Some(last) => *last = cursor,
            None => {
                if seen.last.len() < MAX_CONNECTIONS {
                    seen.last.insert(connection, cursor);
                }
                return false;
            }
        }
        seen.repeated += 1;
        if seen.repeated < WARN_AFTER {
            return false;
        }
        seen.last = HashMap::new();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_that_alternate_between_two_logs_are_reported_once() {
        let (cursors, a, b) = (ForeignCursors::default(), ConnectionId(1), ConnectionId(2));
        assert!(!cursors.note(a, "pos-7-1") && !cursors.note(b, "pos-7-1"), "as after a restart");
        assert!(!cursors.note(a, "pos-7-1"), "a client that repeats its old cursor");
        assert!(!cursors.note(a, "pos-7-2") && !cursors.note(b, "pos-7-3"));
        assert!(cursors.note(a, "pos-7-4"));
        assert!(!cursors.note(a, "pos-7-5") && !cursors.note(b, "pos-7-6"), "the warning is due only once");
    }

    // attack: invented cursors of other logs on many connections => a bounded number is remembered, one line is logged
    #[test]
    fn a_restart_and_invented_cursors_cause_no_warning() {
        let cursors = ForeignCursors::default();
        assert!((0..50_000_u128).all(|id| !cursors.note(ConnectionId(id), "pos-7-1")));
        assert_eq!(cursors.0.lock().unwrap().last.len(), MAX_CONNECTIONS);
    }
}

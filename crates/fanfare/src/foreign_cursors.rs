//! Clients that alternate between this hub and another one with a log of its own: a proxy in front of both.
//!
//! After a restart each client comes once with a cursor of the log before. One that comes again with another cursor of
//! another log has been served by another hub meanwhile.

use fanfare_core::ConnectionId;
use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Mutex, PoisonError},
};

/// How often that must be seen before the log says so.
const ENOUGH: u32 = 3;
/// How many connections are remembered.
const MAX_CONNECTIONS: usize = 10_000;

/// Which cursors of other logs clients came with.
#[derive(Debug, Default)]
pub(crate) struct ForeignCursors(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// By connection: the hash of the last one.
    last: HashMap<ConnectionId, u64>,
    hasher: RandomState,
    repeated: u32,
}

impl ForeignCursors {
    /// Notes a client that came with a cursor of another log. Returns whether it is time to say so, which is once.
    pub(crate) fn note(&self, connection: ConnectionId, cursor: &str) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.repeated >= ENOUGH {
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
        if seen.repeated < ENOUGH {
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
    fn clients_that_alternate_between_two_logs_are_noticed_once() {
        let (cursors, a, b) = (ForeignCursors::default(), ConnectionId(1), ConnectionId(2));
        assert!(!cursors.note(a, "pos-7-1") && !cursors.note(b, "pos-7-1"), "as after a restart");
        assert!(!cursors.note(a, "pos-7-1"), "a client that keeps an old cursor");
        assert!(!cursors.note(a, "pos-7-2") && !cursors.note(b, "pos-7-3"));
        assert!(cursors.note(a, "pos-7-4"));
        assert!(!cursors.note(a, "pos-7-5") && !cursors.note(b, "pos-7-6"), "once is enough");
    }

    // attack: invented cursors of other logs on many connections => a bounded number is remembered, and one line is logged
    #[test]
    fn a_restart_and_invented_cursors_say_nothing() {
        let cursors = ForeignCursors::default();
        assert!((0..50_000_u128).all(|id| !cursors.note(ConnectionId(id), "pos-7-1")));
        assert_eq!(cursors.0.lock().unwrap().last.len(), MAX_CONNECTIONS);
    }
}

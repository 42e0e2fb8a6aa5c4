//! The changes of the list of connected clients that have not been written yet.

use crate::presence::ConnectionInfo;
use fanfare_core::ConnectionId;
use std::{collections::BTreeMap, sync::Arc};

/// A change of a connection.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Arrived(ConnectionInfo),
    Left { user: Arc<str>, came_ms: u64 },
}

/// The changes that have not been written yet: the newest of each connection.
#[derive(Debug, Default)]
pub(super) struct Pending {
    changes: BTreeMap<ConnectionId, Change>,
    /// There is no link. Changes are not collected, because all connections are rewritten on the next link.
    idle: bool,
}

impl Pending {
    pub(super) fn note(&mut self, connection: ConnectionId, change: Change) {
        if !self.idle {
            // The departure of an older socket must not replace the arrival of a newer socket with the same connection
            // ID.
            let newer = match (&change, self.changes.get(&connection)) {
                (Change::Left { came_ms, .. }, Some(Change::Arrived(held))) => held.came_ms > *came_ms,
                _ => false,
            };
            if !newer {
                self.changes.insert(connection, change);
            }
        }
    }

    pub(super) fn set_idle(&mut self, idle: bool) {
        *self = Self { changes: BTreeMap::new(), idle };
    }

    pub(super) fn take(&mut self) -> BTreeMap<ConnectionId, Change> {
        std::mem::take(&mut self.changes)
    }
}

//! A node's window, shared between its broker, which writes it, and its shards, which read it.

use fanfare_core::{
    Position,
    session_table::History,
    window::{Entry, ResumePoint, Viewer, Window},
};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A window behind a lock. The lock is held for look-ups and pushes, and never across an await or a call on a socket.
#[derive(Debug)]
pub struct SharedWindow(RwLock<Window>);

impl SharedWindow {
    /// Wraps a window.
    pub fn new(window: Window) -> Self {
        Self(RwLock::new(window))
    }

    /// Locks the window for reading.
    pub fn read(&self) -> RwLockReadGuard<'_, Window> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the window for writing.
    pub fn write(&self) -> RwLockWriteGuard<'_, Window> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl History for SharedWindow {
    fn read(
        &self,
        cursor: Position,
        until: u64,
        viewer: Viewer<'_>,
        out: &mut Vec<Arc<Entry>>,
    ) -> Result<u64, ResumePoint> {
        History::read(&*self.read(), cursor, until, viewer, out)
    }
}

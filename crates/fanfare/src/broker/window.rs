//! A node's window, which its broker writes and its shards read.

use fanfare_core::{
    Position,
    session_table::History,
    window::{Entry, ResumePoint, Viewer, Window},
};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A window behind a lock that is held for look-ups and pushes, never across a system call.
#[derive(Debug)]
pub struct SharedWindow(RwLock<Window>);

impl SharedWindow {
    /// Shares a window.
    pub fn new(window: Window) -> Self {
        Self(RwLock::new(window))
    }

    /// The window as it is.
    pub fn read(&self) -> RwLockReadGuard<'_, Window> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The window, to change it.
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

//! The log of a single process, in its memory.

use super::{Answer, Appended, Broker, Record, Tail};
use crate::clock;
use fanfare_core::window::{Bounds, Entry, Window};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A log in this process's memory. It ends with the process; the next one has another epoch.
#[derive(Debug)]
pub struct MemoryBroker {
    epoch: u64,
    log: Mutex<Log>,
}

#[derive(Debug)]
struct Log {
    /// A log that is bounded like a window is one.
    entries: Window,
    tails: Vec<Arc<dyn Tail>>,
}

impl MemoryBroker {
    /// An empty log. `epoch` must not have been another log's.
    pub fn new(epoch: u64, bounds: Bounds) -> Self {
        Self { epoch, log: Mutex::new(Log { entries: Window::new(epoch, 0, bounds), tails: Vec::new() }) }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        // Nothing in the lock's reach leaves the log half changed.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives `tail` every entry from the head on, whose sequence is returned.
    pub(crate) fn follow(&self, tail: Arc<dyn Tail>) -> u64 {
        let mut log = self.log();
        log.tails.push(tail);
        log.entries.head()
    }

    fn append_now(&self, records: Vec<Record>) -> Vec<Appended> {
        let now = clock::now().unix_ms;
        let mut log = self.log();
        let mut fresh = Vec::with_capacity(records.len());
        let appended = records.into_iter().map(|record| log.append(record, now, &mut fresh)).collect();
        if fresh.is_empty() {
            return appended;
        }
        for tail in &log.tails {
            tail.take(&fresh);
        }
        let tails = log.tails.clone();
        drop(log);
        for tail in tails {
            tail.wake();
        }
        appended
    }
}

impl Log {
    fn append(&mut self, record: Record, now: u64, fresh: &mut Vec<Arc<Entry>>) -> Appended {
        if let Some(sequence) = self.entries.find(record.event.event_id()) {
            return Appended { sequence, duplicate: true };
        }
        let sequence = self.entries.head() + 1;
        let entry = Arc::new(Entry::new(sequence, now, record.audience, &record.event));
        self.entries.push(entry.clone());
        fresh.push(entry);
        Appended { sequence, duplicate: false }
    }
}

impl Broker for MemoryBroker {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn append(&self, records: Vec<Record>) -> Answer<'_, Vec<Appended>> {
        Box::pin(std::future::ready(Ok(self.append_now(records))))
    }

    fn tail(&self, tail: Arc<dyn Tail>) -> Answer<'_, u64> {
        Box::pin(std::future::ready(Ok(self.follow(tail))))
    }

    fn range(&self, after: u64, limit: usize) -> Answer<'_, Vec<Arc<Entry>>> {
        let entries = self.log().entries.since(after).take(limit).cloned().collect();
        Box::pin(std::future::ready(Ok(entries)))
    }

    fn expire(&self, unix_ms: u64) {
        self.log().entries.expire(unix_ms);
    }
}

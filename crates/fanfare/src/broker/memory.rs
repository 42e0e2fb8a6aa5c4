//! The log of a single process, in its memory.

use super::{
    Appended, BackendStatus, Broker, BrokerError, BrokerFuture, ControlMessage, LogFollower, Record, ids::Ids,
};
use crate::{
    clock,
    presence::{ConnectionInfo, Presence},
    why::Question,
};
use fanfare_core::{
    ConnectionId, Lineage, Position,
    window::{Bounds, Entry, Window},
};
use std::{
    future::ready,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

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
    ids: Ids,
    tails: Vec<Arc<dyn LogFollower>>,
}

impl MemoryBroker {
    /// An empty log. `epoch` must not have been another log's.
    pub fn new(epoch: u64, bounds: Bounds) -> Self {
        let now = clock::now().unix_ms;
        // It is unknown what an earlier process published, and which clients received it.
        let entries = Window::new(Lineage::begun(epoch, now), 0, bounds);
        Self { epoch, log: Mutex::new(Log { entries, ids: Ids::new(bounds, now), tails: Vec::new() }) }
    }

    /// Has `tail` follow the log from its head on. Its window must be empty.
    pub fn follow(&self, tail: Arc<dyn LogFollower>) {
        let mut log = self.log();
        {
            let mut window = tail.window().write();
            window.adopt(log.entries.lineage().clone(), 0);
            window.jump(log.entries.head());
        }
        log.tails.push(tail);
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        // Nothing in the lock's reach leaves the log half changed.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append_now(&self, records: Vec<Record>) -> Vec<Appended> {
        let now = clock::now().unix_ms;
        let mut log = self.log();
        let mut fresh = Vec::with_capacity(records.len());
        let appended = records.into_iter().map(|record| log.append(record, self.epoch, now, &mut fresh)).collect();
        if fresh.is_empty() {
            return appended;
        }
        for tail in &log.tails {
            let mut window = tail.window().write();
            fresh.iter().for_each(|entry| window.push(entry.clone()));
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
    fn append(&mut self, record: Record, epoch: u64, now: u64, fresh: &mut Vec<Arc<Entry>>) -> Appended {
        let event_id = record.event.event_id();
        if let Some(sequence) = self.ids.find(event_id, now).or_else(|| self.entries.find(event_id)) {
            return Appended { position: Position { epoch, sequence }, duplicate: true };
        }
        let position = Position { epoch, sequence: self.entries.head() + 1 };
        let entry =
            Arc::new(Entry::new(position, now, record.audience, &record.event).by(record.publisher, record.trace));
        self.ids.insert(&entry.event_id, position.sequence, now);
        self.entries.push(entry.clone());
        fresh.push(entry);
        Appended { position, duplicate: false }
    }
}

impl MemoryBroker {
    async fn clients(&self, of_user: Option<&str>) -> Result<Vec<ConnectionInfo>, BrokerError> {
        let tails = self.log().tails.clone();
        let mut clients = Vec::new();
        for tail in tails {
            clients.extend(tail.clients(of_user).await?);
        }
        clients.sort_by_key(|client| (client.since_ms, client.connection));
        Ok(clients)
    }
}

/// The nodes themselves know who is connected.
impl Presence for MemoryBroker {
    fn arrived(&self, _client: ConnectionInfo) {}

    fn left(&self, _connection: ConnectionId, _user: &Arc<str>, _came_ms: u64) {}

    fn of_user(&self, user: &str) -> BrokerFuture<'_, Vec<ConnectionInfo>> {
        let user = user.to_owned();
        Box::pin(async move { self.clients(Some(&user)).await })
    }

    fn find(&self, connection: ConnectionId) -> BrokerFuture<'_, Option<ConnectionInfo>> {
        Box::pin(async move {
            let clients = self.clients(None).await?;
            Ok(clients.into_iter().find(|client| client.connection == connection))
        })
    }
}

impl Broker for MemoryBroker {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn status(&self) -> BackendStatus {
        let log = self.log();
        let horizon = Duration::from_millis(log.ids.covered_ms(clock::now().unix_ms));
        BackendStatus { events: log.entries.len(), bytes: log.entries.bytes(), horizon, ..BackendStatus::default() }
    }

    fn append(&self, records: Vec<Record>) -> BrokerFuture<'_, Vec<Appended>> {
        Box::pin(ready(Ok(self.append_now(records))))
    }

    /// The windows never lag behind.
    fn catch_up(&self) -> BrokerFuture<'_, ()> {
        Box::pin(ready(Ok(())))
    }

    fn range(&self, after: u64, limit: usize) -> BrokerFuture<'_, Vec<Arc<Entry>>> {
        let entries = self.log().entries.since(after).take(limit).cloned().collect();
        Box::pin(ready(Ok(entries)))
    }

    fn ask(&self, question: Question) -> BrokerFuture<'_, (Vec<String>, usize)> {
        let tails = self.log().tails.clone();
        Box::pin(async move {
            let mut answers = Vec::new();
            for tail in &tails {
                answers.extend(tail.answer(question.clone()).await?);
            }
            Ok((answers, tails.len()))
        })
    }

    fn order(&self, order: ControlMessage) -> BrokerFuture<'_, ()> {
        let tails = self.log().tails.clone();
        for tail in tails {
            tail.handle_control(order.clone());
        }
        Box::pin(ready(Ok::<_, BrokerError>(())))
    }

    fn expire(&self, unix_ms: u64) {
        self.log().entries.expire(unix_ms);
    }

    fn stop(&self) {}
}

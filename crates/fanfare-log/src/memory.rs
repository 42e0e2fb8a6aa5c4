//! The in-memory log of a single process.

use super::{
    Appended, BackendStatus, BrokerError, BrokerFuture, ControlMessage, ControlPlane, Log, LogFollower, Record,
    ids::Ids,
};
use crate::{
    clock,
    presence::{ConnectionInfo, Presence},
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

/// A log in the memory of this process. It is lost when the process exits; the log of the next process has another
/// epoch.
#[derive(Debug)]
pub struct MemoryBroker {
    epoch: u64,
    log: Mutex<Entries>,
}

#[derive(Debug)]
struct Entries {
    /// The log has the same bounds as a window, so it is one.
    entries: Window,
    ids: Ids,
    followers: Vec<Arc<dyn LogFollower>>,
}

impl MemoryBroker {
    /// Creates an empty log. `epoch` must not have been used by another log.
    pub fn new(epoch: u64, bounds: Bounds) -> Self {
        let now = clock::now().unix_ms;
        // It is unknown what an earlier process published, and which clients received it: the lineage starts with a
        // loss.
        let entries = Window::new(Lineage::begun(epoch, now), 0, bounds);
        Self { epoch, log: Mutex::new(Entries { entries, ids: Ids::new(bounds, now), followers: Vec::new() }) }
    }

    /// Adds a follower, from the head of the log on. Its window must be empty.
    pub fn follow(&self, follower: Arc<dyn LogFollower>) {
        let mut log = self.log();
        {
            let mut window = follower.window().write();
            window.adopt(log.entries.lineage().clone(), 0);
            window.jump(log.entries.head());
        }
        log.followers.push(follower);
    }

    fn log(&self) -> MutexGuard<'_, Entries> {
        // No code under the lock leaves the log in an inconsistent state, so a poisoned lock can be used.
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
        for follower in &log.followers {
            let mut window = follower.window().write();
            fresh.iter().for_each(|entry| window.push(entry.clone()));
        }
        let followers = log.followers.clone();
        drop(log);
        for follower in followers {
            follower.wake();
        }
        appended
    }
}

impl Entries {
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
        let followers = self.log().followers.clone();
        let mut clients = Vec::new();
        for follower in followers {
            clients.extend(follower.clients(of_user).await?);
        }
        clients.sort_by_key(|client| (client.since_ms, client.connection));
        Ok(clients)
    }
}

/// The nodes in this process are asked for their clients.
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

impl Log for MemoryBroker {
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

    /// Returns immediately: `append` pushes into all windows before it returns.
    fn catch_up(&self) -> BrokerFuture<'_, ()> {
        Box::pin(ready(Ok(())))
    }

    fn range(&self, after: u64, limit: usize) -> BrokerFuture<'_, Vec<Arc<Entry>>> {
        let entries = self.log().entries.since(after).take(limit).cloned().collect();
        Box::pin(ready(Ok(entries)))
    }

    fn expire(&self, unix_ms: u64) {
        self.log().entries.expire(unix_ms);
    }

    fn stop(&self) {}
}

impl ControlPlane for MemoryBroker {
    fn send(&self, message: ControlMessage) -> BrokerFuture<'_, ()> {
        let followers = self.log().followers.clone();
        for follower in followers {
            follower.handle_control(message.clone());
        }
        Box::pin(ready(Ok::<_, BrokerError>(())))
    }

    fn survey(&self, question: String) -> BrokerFuture<'_, (Vec<String>, usize)> {
        let followers = self.log().followers.clone();
        Box::pin(async move {
            let mut answers = Vec::new();
            for follower in &followers {
                answers.extend(follower.answer(question.clone()).await?);
            }
            Ok((answers, followers.len()))
        })
    }
}

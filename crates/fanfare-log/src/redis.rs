//! The log in Redis, shared by all nodes. The log is a stream; a script appends to it and accepts each `event_id` once.

mod address;
mod appender;
mod bus;
mod connection;
mod error;
mod heartbeat;
mod inspect;
mod joining;
mod keys;
mod limits;
mod link;
mod members;
mod page_size;
mod parameters;
mod pending;
mod presence;
mod pubsub;
mod questions;
mod record;
mod recovery;
mod refused;
mod revoked;
mod scripts;
mod shared;
mod stops;
mod tail;
mod tls;
mod topology;
mod url;

pub use address::BadRedisUrl;
pub use error::LinkError;
pub use inspect::{Inspection, inspect};
pub use tls::{BadRedisTls, RedisTls};
pub use url::RedisUrl;

use super::{
    Appended, BackendStatus, BrokerError, BrokerFuture, ControlMessage, ControlPlane, Log, LogFollower, Record,
};
use crate::{
    metrics::LogMetrics,
    presence::{ConnectionInfo, Presence},
};
use bus::{Bus, Waiter};
use fanfare_core::{
    ConnectionId, Position,
    window::{Bounds, Entry},
};
use keys::CONTROL_ENTRIES;
use page_size::PageSize;
use pending::Change;
use redis::cmd;
use revoked::Announce;
use shared::{Job, Shared};
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

/// The maximum number of appends that wait for the link.
const MAX_JOBS: usize = 10_000;

/// The timeout of an append, including its time in the queue.
const APPEND: Duration = Duration::from_secs(5);

/// The point at which an event counts as published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Redis has executed the append.
    #[default]
    Log,
    /// At least one replica has acknowledged the append, so a failover does not lose the event.
    Replica,
}

/// The configuration of a log in Redis.
///
/// ```
/// use fanfare_log::redis::{Durability, RedisOptions};
///
/// let mut options = RedisOptions::new("redis+sentinel://10.0.0.1,10.0.0.2,10.0.0.3/mymaster".parse()?);
/// options.durability = Durability::Replica;
/// # Ok::<(), fanfare_log::redis::BadRedisUrl>(())
/// ```
///
/// `HubBuilder::start_with_redis` of the crate `fanfare` sets `max_event_bytes`, `validate_events` and
/// `max_connections_per_user` from the configuration of the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisOptions {
    /// The URL of Redis.
    pub url: RedisUrl,
    /// The prefix of all keys and channels. Compatible publishers use `ws`.
    pub namespace: String,
    /// Further channels on which events are published, by their full names. Events on them are for everyone, unless
    /// they have an `audience`. The channel's name is the type of an event without `type`.
    pub channels: Vec<String>,
    /// The point at which an event counts as published.
    pub durability: Durability,
    /// The maximum delay of a probe through the log. A node beyond it is unhealthy and reconnects to Redis.
    pub lag_limit: Duration,
    /// The maximum size of an event on a channel, in bytes of JSON.
    pub max_event_bytes: usize,
    /// Apply [`Draft::validate`](fanfare_core::Draft::validate) to events on channels.
    pub validate_events: bool,
    /// The maximum number of connections of a user on all nodes. 0: no limit.
    pub max_connections_per_user: usize,
}

impl RedisOptions {
    /// The default options.
    ///
    /// ```
    /// use fanfare_log::redis::{RedisOptions, RedisUrl};
    ///
    /// let url: RedisUrl = "rediss://hub:password@redis.example:6380/0".parse()?;
    /// assert!(url.is_tls());
    /// assert_eq!(RedisOptions::new(url).namespace, "ws");
    /// # Ok::<(), fanfare_log::redis::BadRedisUrl>(())
    /// ```
    pub fn new(url: RedisUrl) -> Self {
        Self {
            url,
            namespace: "ws".to_owned(),
            channels: Vec::new(),
            durability: Durability::Log,
            lag_limit: Duration::from_secs(5),
            max_event_bytes: 64 << 10,
            validate_events: false,
            max_connections_per_user: 0,
        }
    }
}

/// A log in Redis.
pub struct RedisBroker {
    shared: Arc<Shared>,
    jobs: mpsc::Sender<Job>,
    waiters: mpsc::UnboundedSender<Waiter>,
    stop: watch::Sender<bool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl RedisBroker {
    /// Connects to Redis as `node`, fills the window of `follower` from the log, and follows the log. `node` must be
    /// unique: no other node may have this name, now or earlier.
    ///
    /// # Errors
    /// If Redis cannot be reached for ten seconds, or cannot hold the log.
    pub async fn connect(
        options: RedisOptions,
        bounds: Bounds,
        node: String,
        follower: Arc<dyn LogFollower>,
        metrics: Arc<dyn LogMetrics>,
    ) -> Result<Self, LinkError> {
        // The provider is global to the process. An error means that the application has installed one already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let shared = Arc::new(Shared::new(options, bounds, node, follower, metrics));
        let (jobs, jobs_in) = mpsc::channel(MAX_JOBS);
        let (waiters, waiters_in) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(false);
        let (received, received_in) = pubsub::queue();
        let (started, warm) = oneshot::channel();
        let bus = Bus::new(shared.clone(), jobs_in, waiters_in, received, stopped);
        let thread = bus
            .spawn(pubsub::forward(shared.clone(), received_in, jobs.clone()), started)
            .map_err(|error| LinkError::Unreachable(format!("failed to start the thread for Redis: {error}")))?;
        match warm.await {
            Ok(result) => result?,
            Err(_) => return Err(LinkError::Unreachable("the thread for Redis exited unexpectedly".to_owned())),
        }
        Ok(Self { shared, jobs, waiters, stop, thread: Mutex::new(thread) })
    }

    async fn append_now(&self, records: Vec<Record>) -> Result<Vec<Appended>, BrokerError> {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        self.shared.link()?;
        self.shared.check_writable()?;
        let (reply, answer) = oneshot::channel();
        let sent = self.jobs.try_send(Job { records, reply });
        sent.map_err(|_| BrokerError::Unavailable(format!("the queue of {MAX_JOBS} appends to Redis is full")))?;
        match timeout(APPEND, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => {
                Err(BrokerError::Unavailable("the connection to Redis was lost during the append".to_owned()))
            }
            Err(_) => Err(BrokerError::Unavailable("Redis did not respond in time".to_owned())),
        }
    }

    async fn send_control(&self, message: ControlMessage) -> Result<(), BrokerError> {
        let link = self.shared.link()?;
        if let ControlMessage::Revoke(revocation) = &message {
            let one = std::slice::from_ref(revocation);
            return Ok(revoked::store(&link, &self.shared.keys, one, Announce::All).await?);
        }
        let mut command = cmd("XADD");
        command.arg(&self.shared.keys.control).arg("MAXLEN").arg("~").arg(CONTROL_ENTRIES).arg("*");
        for (name, value) in tail::control_fields(&message) {
            command.arg(name).arg(value);
        }
        link.call(&command).await?;
        Ok(())
    }

    async fn range_now(&self, after: u64, limit: usize) -> Result<Vec<Arc<Entry>>, BrokerError> {
        let link = self.shared.link()?;
        let (mut from, mut page_size, mut entries) = (after.saturating_add(1), PageSize::default(), Vec::new());
        while entries.len() < limit {
            let count = page_size.count().min(limit - entries.len());
            let mut page = cmd("XRANGE");
            page.arg(&self.shared.keys.log).arg(record::stream_id(from)).arg("+");
            let epoch = self.shared.epoch();
            let items = record::items(link.call(page.arg("COUNT").arg(count)).await?, epoch)?;
            let read = items.len();
            let entry = |item| match item {
                record::Item::Event(entry, _) => Some(entry),
                record::Item::Foreign(foreign) => {
                    foreign.sequence.map(|sequence| record::placeholder(Position { epoch, sequence }))
                }
            };
            let before = entries.len();
            entries.extend(items.into_iter().filter_map(entry));
            page_size.adapt(read, entries[before..].iter().map(|entry: &Arc<Entry>| entry.frame.len()).sum());
            match entries.last() {
                Some(last) if read == count => from = last.sequence + 1,
                _ => break,
            }
        }
        Ok(entries)
    }

    async fn catch_up_now(&self) -> Result<(), BrokerError> {
        let (waiter, caught_up) = oneshot::channel();
        // If sending fails, the bus has ended and dropped the receiver, so the next line returns the error.
        let _ = self.waiters.send(waiter);
        caught_up.await.map_err(|_| BrokerError::Unavailable("the hub is shutting down".to_owned()))
    }
}

impl Log for RedisBroker {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn status(&self) -> BackendStatus {
        self.shared.status()
    }

    fn append(&self, records: Vec<Record>) -> BrokerFuture<'_, Vec<Appended>> {
        Box::pin(self.append_now(records))
    }

    fn catch_up(&self) -> BrokerFuture<'_, ()> {
        Box::pin(self.catch_up_now())
    }

    fn range(&self, after: u64, limit: usize) -> BrokerFuture<'_, Vec<Arc<Entry>>> {
        Box::pin(self.range_now(after, limit))
    }

    /// Does nothing: the scripts evict by Redis' own clock.
    fn expire(&self, _unix_ms: u64) {}

    fn stop(&self) {
        self.stop.send_replace(true);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the thread for Redis panicked");
        }
    }
}

impl ControlPlane for RedisBroker {
    fn send(&self, message: ControlMessage) -> BrokerFuture<'_, ()> {
        Box::pin(self.send_control(message))
    }

    fn survey(&self, question: String) -> BrokerFuture<'_, (Vec<String>, usize)> {
        Box::pin(async move {
            let link = self.shared.link()?;
            let (answers, nodes) = questions::ask(&self.shared, &link, &question).await?;
            Ok((answers.into_iter().filter(|answer| !answer.is_empty()).collect(), nodes))
        })
    }
}

impl Presence for RedisBroker {
    fn arrived(&self, client: ConnectionInfo) {
        self.shared.pending().note(client.connection, Change::Arrived(client));
    }

    fn left(&self, connection: ConnectionId, user: &Arc<str>, came_ms: u64) {
        self.shared.pending().note(connection, Change::Left { user: user.clone(), came_ms });
    }

    fn of_user(&self, user: &str) -> BrokerFuture<'_, Vec<ConnectionInfo>> {
        let user = user.to_owned();
        Box::pin(async move { presence::of_user(&self.shared, &user).await })
    }

    fn find(&self, connection: ConnectionId) -> BrokerFuture<'_, Option<ConnectionInfo>> {
        Box::pin(presence::find(&self.shared, connection))
    }
}

impl Drop for RedisBroker {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

impl fmt::Debug for RedisBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBroker").field("url", &self.shared.options.url).finish_non_exhaustive()
    }
}

//! A minimal node: a window, and a record of the commands that it received.

use fanfare_core::{
    Audience, Draft, Lineage, Revocation,
    window::{Bounds, Window},
};
use fanfare_log::{
    Broker, BrokerFuture, ControlMessage, LogFollower, Record, SharedWindow,
    metrics::{LogCounter, LogMetrics},
    presence::ConnectionInfo,
    redis::{LinkError, RedisBroker, RedisOptions},
};
use std::{
    collections::BTreeMap,
    future::ready,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

pub(crate) const BOUNDS: Bounds =
    Bounds { events: 5_000, bytes: 8 << 20, age_ms: 3_600_000, ids: 10_000, ids_ms: 7_200_000 };

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) window: SharedWindow,
    pub(crate) commands: Mutex<Vec<ControlMessage>>,
    pub(crate) clients: Mutex<Vec<ConnectionInfo>>,
}

/// Counters in memory.
#[derive(Debug, Default)]
pub(crate) struct Metrics(Mutex<BTreeMap<LogCounter, u64>>);

impl Metrics {
    pub(crate) fn get(&self, counter: LogCounter) -> u64 {
        self.0.lock().unwrap().get(&counter).copied().unwrap_or(0)
    }
}

impl LogMetrics for Metrics {
    fn add(&self, counter: LogCounter, count: u64) {
        *self.0.lock().unwrap().entry(counter).or_default() += count;
    }

    fn add_event(&self, _event_type: &str) {}
}

impl LogFollower for Node {
    fn window(&self) -> &SharedWindow {
        &self.window
    }

    fn wake(&self) {}

    fn handle_control(&self, command: ControlMessage) {
        self.commands.lock().unwrap().push(command);
    }

    fn revocations(&self) -> Vec<Revocation> {
        let commands = self.commands.lock().unwrap();
        let revocations = commands.iter().filter_map(|command| match command {
            ControlMessage::Revoke(revocation) => Some(revocation.clone()),
            _ => None,
        });
        revocations.collect()
    }

    fn answer(&self, question: String) -> BrokerFuture<'_, Option<String>> {
        Box::pin(ready(Ok(Some(format!("{} heard {question:?}", self.name)))))
    }

    fn connections(&self) -> usize {
        self.clients.lock().unwrap().len()
    }

    fn clients(&self, of_user: Option<&str>) -> BrokerFuture<'_, Vec<ConnectionInfo>> {
        let mut clients = self.clients.lock().unwrap().clone();
        clients.retain(|client| of_user.is_none_or(|user| user == &*client.user));
        Box::pin(ready(Ok(clients)))
    }

    fn clients_from(&self, place: u64, count: usize) -> BrokerFuture<'_, (Vec<ConnectionInfo>, Option<u64>)> {
        let (clients, place) = (self.clients.lock().unwrap(), usize::try_from(place).unwrap());
        let page: Vec<_> = clients.iter().skip(place).take(count).cloned().collect();
        let next = place + page.len();
        Box::pin(ready(Ok((page, (next < clients.len()).then_some(next as u64)))))
    }
}

impl Node {
    pub(crate) fn new(bounds: Bounds) -> Arc<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        Arc::new(Self {
            name: format!("node-{}", COUNT.fetch_add(1, Ordering::Relaxed)),
            window: SharedWindow::new(Window::new(Lineage::new(0), 0, bounds)),
            commands: Mutex::default(),
            clients: Mutex::default(),
        })
    }

    /// The IDs of the events in the window.
    pub(crate) fn ids(&self) -> Vec<String> {
        let window = self.window.read();
        window.since(window.floor()).map(|entry| entry.event_id.to_string()).collect()
    }

    pub(crate) fn head(&self) -> u64 {
        self.window.read().head()
    }
}

/// Connects a new node to the log in a Redis.
pub(crate) async fn linked(url: &str) -> (Arc<RedisBroker>, Arc<Node>) {
    linked_with(RedisOptions::new(url.parse().unwrap()), BOUNDS).await.unwrap()
}

pub(crate) async fn linked_with(
    options: RedisOptions,
    bounds: Bounds,
) -> Result<(Arc<RedisBroker>, Arc<Node>), LinkError> {
    linked_as(options, Node::new(bounds), bounds).await
}

/// Connects an existing node to the log in a Redis.
pub(crate) async fn linked_as(
    options: RedisOptions,
    node: Arc<Node>,
    bounds: Bounds,
) -> Result<(Arc<RedisBroker>, Arc<Node>), LinkError> {
    let metrics = Arc::new(Metrics::default());
    let broker = RedisBroker::connect(options, bounds, node.name.clone(), node.clone(), metrics).await?;
    Ok((Arc::new(broker), node))
}

pub(crate) fn record(id: &str, audience: Audience) -> Record {
    let draft = Draft::new("note", &serde_json::json!({ "id": id })).unwrap();
    Record { event: draft.finish(0, || id.to_owned()).unwrap(), audience, publisher: None, trace: None }
}

/// Appends events for everyone, one at a time.
pub(crate) async fn append(broker: &dyn Broker, ids: impl IntoIterator<Item = String>) {
    for id in ids {
        broker.append(vec![record(&id, Audience::Everyone)]).await.unwrap();
    }
}

/// Appends an event, and retries until the log accepts it, as publishers do.
pub(crate) async fn append_with_retries(broker: &dyn Broker, id: &str) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while let Err(error) = broker.append(vec![record(id, Audience::Everyone)]).await {
        assert!(Instant::now() < deadline, "the log never accepted {id}: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) fn ids(prefix: &str, range: std::ops::RangeInclusive<u64>) -> Vec<String> {
    range.map(|n| format!("{prefix}{n}")).collect()
}

/// Waits until a condition holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !holds() {
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

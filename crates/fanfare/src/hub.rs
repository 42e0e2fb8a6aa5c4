//! The handle an application holds, and how a hub is put together.

use crate::{
    admission::Admission,
    auth::{AuthError, Verifier},
    broker::{
        Appended, BackendStatus, Broker, BrokerError, BrokerFuture, ControlMessage, LogFollower, MemoryBroker, Record,
        SharedWindow,
        redis::{LinkError, RedisBroker, RedisOptions},
    },
    clock,
    config::Config,
    drain::{Pace, WAVE_MS, share_out},
    foreign_cursors::ForeignCursors,
    identity::{ConnectionIdIssuer, fresh_event_id, random},
    metrics::{Counter, Figure, Figures, Metrics},
    node::Node,
    origin::LoggedOrigins,
    presence::{ConnectionInfo, Presence},
    refusals::Refusals,
    shard::{Command, Shard},
    sys::{self, Named},
    trace::{PublishOutcome, Tracer},
    why::{self, ClientDetails, InAudience, Journey, Question},
};
use fanfare_core::{
    Audience, AudienceError, ConnectionId, Draft, Event, EventError, Grant, Lineage, Position, Revocation, Revocations,
    session::Settings,
    window::{Bounds, Window},
    ws,
};
use serde::de::DeserializeOwned;
use std::{
    collections::HashSet,
    convert::Infallible,
    fmt, io,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::{sync::Notify, time::MissedTickBehavior};

/// How many revocations that could not be kept or told are remembered; beyond, a repetition is not tried again.
const MAX_UNFINISHED: usize = 10_000;

/// Who publishes, and under which trace.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) publisher: Arc<str>,
    /// The `traceparent` of the request.
    pub(crate) trace: Option<String>,
}

impl Origin {
    /// The application itself.
    fn application() -> Self {
        Self { publisher: "application".into(), trace: None }
    }
}

/// A running hub: publish, look at it, mount it, end it. Cheap to clone.
#[derive(Clone)]
pub struct Hub {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    node: Arc<Node>,
    broker: Arc<dyn Broker>,
    presence: Arc<dyn Presence>,
    revocation_store: Option<Arc<dyn RevocationStore>>,
    /// Revocations that could not be kept, or not be told to all nodes.
    unfinished: Mutex<HashSet<Revocation>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Somebody tells who holds `$sys` how all nodes stand.
    told: AtomicBool,
}

/// How a hub is to be.
#[derive(Debug)]
pub struct HubBuilder {
    verifier: Verifier,
    config: Config,
    identity_secret: Option<Vec<u8>>,
    revocations: Revocations,
    revocation_store: Option<Arc<dyn RevocationStore>>,
    figures: Vec<Arc<dyn Figures>>,
    log_switch: Option<Arc<dyn LogSwitch>>,
    tracer: Option<Arc<dyn Tracer>>,
    echo: bool,
}

/// Keeps revocations where a restart finds them.
pub trait RevocationStore: Send + Sync + fmt::Debug + 'static {
    /// Writes one down. It takes effect also if that fails, until a restart; `revoke` then returns the error.
    fn keep<'a>(&'a self, revocation: &'a Revocation) -> BrokerFuture<'a, ()>;
}

/// Switches what the application logs, while it runs.
pub trait LogSwitch: Send + Sync + fmt::Debug + 'static {
    /// Whether it understands a filter.
    ///
    /// # Errors
    /// If not: what it expects, as a sentence.
    fn check(&self, filter: &str) -> Result<(), String>;

    /// Logs by this filter from now on. Must not block.
    fn set(&self, filter: &str);
}

/// An event that stands in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The event's id, as given or as made.
    pub event_id: String,
    /// Where it stands.
    pub position: Position,
    /// The log already had an event of this id; nothing was appended, and `position` is that event's.
    pub duplicate: bool,
}

/// Why a batch was not published. Nothing was appended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{error}", .index.map(|index| format!("event {index} of the batch: ")).unwrap_or_default())]
pub struct BatchError {
    /// Which event is not valid, counted from 0. `None`: the failure is not the fault of one event.
    pub index: Option<usize>,
    /// What is wrong.
    pub error: PublishError,
}

/// Why an event was not published. Nothing was appended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The event is not valid.
    #[error(transparent)]
    Invalid(#[from] EventError),
    /// Nothing can be published to this audience.
    #[error("the audience {0}")]
    Audience(#[from] AudienceError),
    /// The event is too large.
    #[error("the event has {bytes} bytes; at most {limit} are allowed (max_event_bytes)")]
    TooLarge {
        /// How large it is.
        bytes: usize,
        /// How large it may be.
        limit: usize,
    },
    /// The log did not take it.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// Why a hub did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The system gave no thread or no poll.
    #[error("a shard can't start: {0}")]
    Shard(#[from] io::Error),
    /// Redis can't hold the log.
    #[error(transparent)]
    Redis(#[from] LinkError),
}

/// A hub in figures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// Connections on all nodes.
    pub connections: usize,
    /// Connections on this node.
    pub local: usize,
    /// Of those here, the ones that answered their last ping, or had none yet.
    pub alive: usize,
    /// Of those here, the ones that owe an answer.
    pub dead: usize,
    /// Events in the window.
    pub window_events: usize,
    /// Bytes of events in the window.
    pub window_bytes: usize,
    /// The log's head.
    pub head: Position,
    /// What holds the log: `memory` or `redis`.
    pub broker: &'static str,
    /// How long each shard was busy since the start.
    pub busy: Vec<Duration>,
    /// How the log stands.
    pub log: BackendStatus,
}

/// Clients that do not take what there is for them as fast as it comes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClientLag {
    /// How many there are.
    pub clients: usize,
    /// How many events of the log the last of them is behind its head.
    pub farthest: u64,
}

impl HubBuilder {
    /// Sets limits and periods.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Sets the secret that connection ids are made with, so that clients keep theirs across restarts and on every
    /// node. Without it a random one is made.
    #[must_use]
    pub fn identity_secret(mut self, secret: impl Into<Vec<u8>>) -> Self {
        self.identity_secret = Some(secret.into());
        self
    }

    /// Believes some tokens no longer from the start: those that [`Hub::revoke`] named in an earlier run.
    #[must_use]
    pub fn revocations(mut self, revocations: impl IntoIterator<Item = Revocation>) -> Self {
        for revocation in revocations {
            self.revocations.add(revocation);
        }
        self
    }

    /// Sets where [`Hub::revoke`] writes down what it does. A log in Redis keeps it too.
    #[must_use]
    pub fn keep_revocations(mut self, store: Arc<dyn RevocationStore>) -> Self {
        self.revocation_store = Some(store);
        self
    }

    /// Adds figures to those that [`Hub::metrics_text`] and `/metrics` give.
    #[must_use]
    pub fn figures(mut self, figures: Arc<dyn Figures>) -> Self {
        self.figures.push(figures);
        self
    }

    /// Sets what `/log-level` switches, on whichever node it is called.
    #[must_use]
    pub fn log_switch(mut self, switch: Arc<dyn LogSwitch>) -> Self {
        self.log_switch = Some(switch);
        self
    }

    /// Sets who makes spans of publishes and writes. Without, nothing is traced.
    #[must_use]
    pub fn tracer(mut self, tracer: Arc<dyn Tracer>) -> Self {
        self.tracer = Some(tracer);
        self
    }

    /// Sends each message back instead of reading it: for conformance tests of the WebSocket layer.
    #[doc(hidden)]
    #[must_use]
    pub fn echo(mut self) -> Self {
        self.echo = true;
        self
    }

    /// Starts the hub, with its log in this process's memory.
    ///
    /// # Errors
    /// If the system gives no thread or no poll.
    pub fn start(self) -> Result<Hub, StartError> {
        let node = Arc::new(self.node());
        let broker = Arc::new(MemoryBroker::new(u64::from_be_bytes(random()), bounds(&self.config)));
        broker.follow(node.clone());
        self.run(node, broker.clone(), broker)
    }

    /// Starts the hub, with its log in Redis. The hub serves once it has what the log has.
    ///
    /// # Errors
    /// If Redis can't be reached or can't hold the log, or the system gives no thread or no poll.
    pub async fn start_with_redis(self, mut options: RedisOptions) -> Result<Hub, StartError> {
        options.max_event_bytes = self.config.max_event_bytes;
        options.validate_events = self.config.validate_events;
        options.max_connections_per_user = self.config.max_connections_per_user;
        let node = Arc::new(self.node());
        let metrics = node.metrics.clone();
        let (bounds, name) = (bounds(&self.config), node.name.to_string());
        let broker = Arc::new(RedisBroker::connect(options, bounds, name, node.clone(), metrics).await?);
        self.run(node, broker.clone(), broker)
    }

    fn node(&self) -> Node {
        let secret = self.identity_secret.clone().unwrap_or_else(|| random::<32>().to_vec());
        Node {
            verifier: self.verifier.clone(),
            revocations: RwLock::new(self.revocations.clone()),
            metrics: Arc::new(Metrics::default()),
            admission: Admission::new(),
            refusals: Arc::new(Refusals::new()),
            logged_origins: LoggedOrigins::default(),
            foreign_cursors: ForeignCursors::default(),
            names: ConnectionIdIssuer::new(&secret),
            name: format!("{:016x}", u64::from_be_bytes(random())).into(),
            // The broker says which log it is.
            window: SharedWindow::new(Window::new(Lineage::new(0), 0, bounds(&self.config))),
            shards: OnceLock::new(),
            broker: OnceLock::new(),
            presence: OnceLock::new(),
            ready: AtomicBool::new(true),
            figures: self.figures.clone(),
            log_switch: self.log_switch.clone(),
            tracer: self.tracer.clone(),
            recently_closed: Mutex::default(),
            drain_wanted: Notify::new(),
            config: self.config.clone(),
        }
    }

    /// Starts the shards' threads.
    fn run(self, node: Arc<Node>, broker: Arc<dyn Broker>, presence: Arc<dyn Presence>) -> Result<Hub, StartError> {
        if self.config.compat {
            tracing::warn!(
                connects_per_second_per_address = self.config.connects_per_second_per_address,
                "compat is on: anybody who reaches this hub can publish without a token at POST /tasks/{{task_id}}/update, \
                 /users/{{user_id}}/notify and /agents/{{agent_id}}/activity"
            );
        }
        let shards = self.shards(&node)?;
        let handles = shards.iter().map(|shard| shard.handle().clone()).collect();
        // Nothing else sets them.
        let _ = node.shards.set(handles);
        let _ = node.broker.set(Arc::downgrade(&broker));
        let _ = node.presence.set(Arc::downgrade(&presence));
        let threads = Self::spawn(shards, &node, &broker)?;
        let revocation_store = self.revocation_store;
        Ok(Hub {
            inner: Arc::new(Inner {
                node,
                broker,
                presence,
                revocation_store,
                unfinished: Mutex::default(),
                threads: Mutex::new(threads),
                told: AtomicBool::new(false),
            }),
        })
    }

    fn shards(&self, node: &Arc<Node>) -> io::Result<Vec<Shard>> {
        let count = match self.config.shards {
            // The kernel's side of each delivery, and the HTTP server, want the other half.
            0 => thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2)),
            n => n,
        };
        let head = {
            let window = node.window.read();
            Position { epoch: window.epoch(), sequence: window.head() }
        };
        (0..count).map(|_| Shard::new(node.clone(), settings(&self.config, self.echo), head)).collect()
    }

    fn spawn(shards: Vec<Shard>, node: &Arc<Node>, broker: &Arc<dyn Broker>) -> io::Result<Vec<JoinHandle<()>>> {
        let mut threads = Vec::with_capacity(shards.len());
        for (i, mut shard) in shards.into_iter().enumerate() {
            if i == 0 {
                let (node, broker) = (node.clone(), broker.clone());
                shard.set_housekeeping(move |unix_ms| {
                    node.window.write().expire(unix_ms);
                    broker.expire(unix_ms);
                });
            }
            let ends = EndsReadiness(node.clone());
            let run = move || {
                let _ends = ends;
                shard.run();
            };
            threads.push(thread::Builder::new().name(format!("fanfare-{i}")).spawn(run)?);
        }
        Ok(threads)
    }
}

/// A hub without one of its shards is not ready any more, however that shard ended.
struct EndsReadiness(Arc<Node>);

impl Drop for EndsReadiness {
    fn drop(&mut self) {
        self.0.ready.store(false, Ordering::Relaxed);
        if thread::panicking() {
            tracing::error!("a shard ended by a panic: its clients are cut off, and the hub is not ready any more");
        }
    }
}

fn bounds(config: &Config) -> Bounds {
    Bounds {
        events: config.window_events,
        bytes: config.window_bytes,
        age_ms: clock::millis(config.window_age),
        ids: config.idempotency_events.max(config.window_events),
        ids_ms: clock::millis(config.idempotency_horizon.max(config.window_age)),
    }
}

fn settings(config: &Config, echo: bool) -> Settings {
    Settings {
        heartbeat_ms: clock::millis(config.heartbeat_interval).max(1),
        timeout_ms: clock::millis(config.heartbeat_timeout).max(1),
        close_ms: clock::millis(config.handshake_timeout).max(1),
        limits: ws::Limits { max_frame_bytes: config.max_frame_bytes, max_message_bytes: config.max_message_bytes },
        frames_per_second: config.max_messages_per_second,
        max_topics: config.max_topics_per_connection,
        warn_ms: clock::millis(config.token_warning),
        echo,
    }
}

impl Hub {
    /// Begins a hub whose clients and publishers show tokens that `verifier` knows.
    pub fn builder(verifier: Verifier) -> HubBuilder {
        HubBuilder {
            verifier,
            config: Config::default(),
            identity_secret: None,
            revocations: Revocations::default(),
            revocation_store: None,
            figures: Vec::new(),
            log_switch: None,
            tracer: None,
            echo: false,
        }
    }

    /// Publishes an event: completes and checks it, and appends it to the log.
    ///
    /// # Errors
    /// If the event or its audience is not valid, or the log did not take it; then nothing was appended.
    pub async fn publish(&self, draft: Draft, audience: Audience) -> Result<Published, PublishError> {
        self.publish_by(draft, audience, Origin::application()).await
    }

    pub(crate) async fn publish_by(
        &self,
        draft: Draft,
        audience: Audience,
        origin: Origin,
    ) -> Result<Published, PublishError> {
        let published = self.publish_all_by(vec![(draft, audience)], origin).await.map_err(|failure| failure.error);
        published?.pop().ok_or_else(|| BrokerError::Unavailable("the log gave no answer".to_owned()).into())
    }

    /// Publishes events in their order, all or none.
    ///
    /// # Errors
    /// If one is not valid, with its index, or the log did not take them; then nothing was appended.
    pub async fn publish_all(&self, drafts: Vec<(Draft, Audience)>) -> Result<Vec<Published>, BatchError> {
        self.publish_all_by(drafts, Origin::application()).await
    }

    pub(crate) async fn publish_all_by(
        &self,
        drafts: Vec<(Draft, Audience)>,
        origin: Origin,
    ) -> Result<Vec<Published>, BatchError> {
        let span = self.inner.node.tracer.as_ref().and_then(|tracer| tracer.publish(origin.trace.as_deref()));
        let trace: Option<Arc<str>> = span.as_ref().map(|span| span.context().into());
        let now = clock::now().unix_ms;
        let mut records = Vec::with_capacity(drafts.len());
        for (i, (draft, audience)) in drafts.into_iter().enumerate() {
            let event = self.finish(draft, &audience, now);
            let event = event.map_err(|error| BatchError { index: Some(i), error })?;
            records.push(Record { event, audience, publisher: Some(origin.publisher.clone()), trace: trace.clone() });
        }
        let name = |record: &Record| (record.event.event_id().to_owned(), record.event.event_type().to_owned());
        let names: Vec<_> = records.iter().map(name).collect();
        let appended = self.inner.broker.append(records).await;
        if let Some(span) = span {
            let (event_id, event_type) = names.first().map_or(("", ""), |(id, kind)| (id, kind));
            let first =
                |appended: &Vec<Appended>| appended.first().map_or_else(String::new, |a| a.position.to_string());
            let result = appended.as_ref().map(first).map_err(ToString::to_string);
            span.end(&PublishOutcome {
                event_type,
                event_id,
                events: names.len(),
                publisher: &origin.publisher,
                result,
            });
        }
        let appended = appended.map_err(|error| BatchError { index: None, error: error.into() })?;
        let published = names.into_iter().zip(appended).map(|((event_id, event_type), appended)| {
            if appended.duplicate {
                self.metrics().add(Counter::Duplicates, 1);
            } else {
                self.metrics().add_event(&event_type);
            }
            Published { event_id, position: appended.position, duplicate: appended.duplicate }
        });
        Ok(published.collect())
    }

    fn finish(&self, draft: Draft, audience: &Audience, unix_ms: u64) -> Result<Event, PublishError> {
        let event =
            self.complete(draft, audience, unix_ms).inspect_err(|_| self.metrics().add(Counter::BadEvents, 1))?;
        let (bytes, limit) = (event.json().len(), self.config().max_event_bytes);
        if bytes > limit {
            self.metrics().add(Counter::LimitEventBytes, 1);
            return Err(PublishError::TooLarge { bytes, limit });
        }
        Ok(event)
    }

    fn complete(&self, draft: Draft, audience: &Audience, unix_ms: u64) -> Result<Event, PublishError> {
        audience.check()?;
        if self.config().validate_events {
            draft.validate()?;
        }
        Ok(draft.finish(unix_ms, fresh_event_id)?)
    }

    /// The routes of the hub: `/ws`, the HTTP API and its description.
    pub fn router(&self) -> axum::Router {
        self.router_with(utoipa_axum::router::OpenApiRouter::new())
    }

    /// The routes of the hub and further ones, in one description.
    ///
    /// To be called where there is a Tokio runtime, or who holds the topic `$sys` is told nothing.
    pub fn router_with(&self, more: utoipa_axum::router::OpenApiRouter<Self>) -> axum::Router {
        if let Ok(runtime) = tokio::runtime::Handle::try_current()
            && !self.inner.told.swap(true, Ordering::Relaxed)
        {
            runtime.spawn(sys::tell(Arc::downgrade(&self.inner)));
        }
        axum::Router::new()
            .route("/ws", axum::routing::any(crate::upgrade::upgrade).with_state(self.inner.node.clone()))
            .merge(crate::http::router(self.clone(), more))
    }

    /// How many clients this process has. Costs no lock.
    pub fn open_connections(&self) -> usize {
        self.inner.node.shards().iter().map(|shard| shard.open.load(Ordering::Relaxed)).sum()
    }

    /// How the hub stands now.
    pub fn stats(&self) -> Stats {
        let shards = self.inner.node.shards();
        let local = self.open_connections();
        let dead: usize = shards.iter().map(|shard| shard.overdue.load(Ordering::Relaxed)).sum();
        let log = self.inner.broker.status();
        let window = self.inner.node.window.read();
        Stats {
            // What a node says of itself is newer than what all of them have said.
            connections: log.cluster.map_or(local, |(all, _)| all.max(local)),
            local,
            alive: local.saturating_sub(dead),
            dead,
            window_events: window.len(),
            window_bytes: window.bytes(),
            head: Position { epoch: window.epoch(), sequence: window.head() },
            broker: self.inner.broker.name(),
            busy: shards.iter().map(|shard| Duration::from_micros(shard.busy_us.load(Ordering::Relaxed))).collect(),
            log,
        }
    }

    /// How far this node's clients are behind the log's head.
    pub async fn lateness(&self) -> ClientLag {
        self.inner.node.lateness().await
    }

    /// All figures in the text form that Prometheus reads (OpenMetrics 1.0), as `/metrics` gives them.
    pub async fn metrics_text(&self) -> String {
        crate::http::metrics_text(self).await
    }

    /// Whether the hub takes connections and events.
    pub fn is_ready(&self) -> bool {
        self.inner.node.is_ready() && self.inner.broker.status().problem.is_none()
    }

    /// The hub's counters.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.inner.node.metrics
    }

    pub(crate) fn figures(&self) -> Vec<Figure> {
        self.inner.node.figures.iter().flat_map(|figures| figures.figures()).collect()
    }

    /// What was set.
    pub fn config(&self) -> &Config {
        &self.inner.node.config
    }

    /// What verifies tokens.
    pub fn verifier(&self) -> &Verifier {
        &self.inner.node.verifier
    }

    /// A user's connections on all nodes, the longest connected first.
    ///
    /// # Errors
    /// If the list can't be reached.
    pub async fn connections_of(&self, user: &str) -> Result<Vec<ConnectionInfo>, BrokerError> {
        self.inner.presence.of_user(user).await
    }

    /// One connection, on whichever node it is.
    ///
    /// # Errors
    /// If the list can't be reached.
    pub async fn connection(&self, connection: ConnectionId) -> Result<Option<ConnectionInfo>, BrokerError> {
        self.inner.presence.find(connection).await
    }

    /// The journey of an event over all nodes, and with each connection of a user if one is named. `None`: no node holds
    /// it; it was never published, or is older than what the windows hold.
    ///
    /// # Errors
    /// If the nodes can't be asked.
    pub async fn journey(&self, event_id: &str, user: Option<&str>) -> Result<Option<Journey>, BrokerError> {
        let question = Question::Event { event_id: event_id.to_owned(), user: user.map(str::to_owned) };
        let (answers, asked) = self.ask(question).await?;
        let mut journey = why::journey(event_id.to_owned(), answers, asked);
        if let (Some(journey), Some(user)) = (&mut journey, user) {
            let is_of_user = |connection| self.inner.node.names.is_of_user(connection, user);
            journey.user_in_audience = Some(InAudience::of(&journey.audience, user, is_of_user));
        }
        Ok(journey)
    }

    /// How a client stands, on whichever node it is, or how it ended the last time, if a node still remembers it.
    ///
    /// # Errors
    /// If the nodes can't be asked.
    pub async fn client(&self, connection: ConnectionId) -> Result<Option<ClientDetails>, BrokerError> {
        let (answers, _) = self.ask(Question::Client { connection: connection.to_string() }).await?;
        Ok(why::client(answers))
    }

    pub(crate) fn of(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    pub(crate) fn node(&self) -> &Node {
        &self.inner.node
    }

    pub(crate) async fn ask<T: DeserializeOwned>(&self, question: Question) -> Result<(Vec<T>, usize), BrokerError> {
        let (answers, asked) = self.inner.broker.ask(question).await?;
        // A node of another version may say what is not understood.
        Ok((answers.iter().filter_map(|answer| serde_json::from_str(answer).ok()).collect(), asked))
    }

    /// Ends one connection with [`CloseCode::Disconnected`](fanfare_core::CloseCode::Disconnected), on whichever node it
    /// is; nothing happens if it is on none.
    ///
    /// # Errors
    /// If the other nodes can't be told.
    pub async fn disconnect(&self, connection: ConnectionId, reason: &str) -> Result<(), BrokerError> {
        self.inner.broker.order(ControlMessage::Disconnect { connection, reason: reason.to_owned() }).await
    }

    /// Ends every connection of a user with [`CloseCode::Disconnected`](fanfare_core::CloseCode::Disconnected), on all
    /// nodes.
    ///
    /// # Errors
    /// If the other nodes can't be told.
    pub async fn disconnect_user(&self, user: &str, reason: &str) -> Result<(), BrokerError> {
        self.inner.broker.order(ControlMessage::DisconnectUser { user: user.into(), reason: reason.to_owned() }).await
    }

    /// What switches the application's log, if there is such.
    pub(crate) fn log_switch(&self) -> Option<&Arc<dyn LogSwitch>> {
        self.inner.node.log_switch.as_ref()
    }

    /// Has all nodes log by this filter from now on.
    ///
    /// # Errors
    /// If the other nodes can't be told.
    pub async fn set_log_level(&self, filter: &str) -> Result<(), BrokerError> {
        self.inner.broker.order(ControlMessage::LogLevel { filter: filter.to_owned() }).await
    }

    /// Asks a node to see its clients off and end, as [`drain_wanted`](Self::drain_wanted) then says there. Returns whether
    /// there is such a node.
    ///
    /// # Errors
    /// If the nodes can't be asked.
    pub async fn drain(&self, node: &str) -> Result<bool, BrokerError> {
        if node == &*self.inner.node.name {
            self.inner.node.drain_wanted.notify_one();
            return Ok(true);
        }
        let (nodes, _) = self.ask::<Named>(Question::Figures).await?;
        let known = nodes.iter().any(|named| named.node == node);
        if known {
            self.inner.broker.order(ControlMessage::Drain { node: node.to_owned() }).await?;
        }
        Ok(known)
    }

    /// Returns once an administrator wants this node to end. What is to be done then is the application's business:
    /// [`shutdown`](Self::shutdown), and the end of the process.
    pub async fn drain_wanted(&self) {
        self.inner.node.drain_wanted.notified().await;
    }

    /// What a token allows.
    ///
    /// # Errors
    /// If it allows nothing.
    pub async fn authenticate(&self, token: &str) -> Result<Grant, AuthError> {
        self.inner.node.authenticate(Some(token)).await
    }

    /// Whether a publisher may publish so many events more now; if not, in how many milliseconds.
    pub(crate) fn publisher_keeps_pace(&self, user: &str, events: usize) -> Result<(), u64> {
        self.inner.node.admission.publisher_keeps_pace(user, events, clock::now().mono_ms, self.config())
    }

    /// Believes some tokens no longer, on all nodes, and ends the connections that they opened. On this node that takes
    /// effect in any case.
    ///
    /// # Errors
    /// If it can't be kept, or the other nodes can't be told: those hear of it once this node has a link to the log again.
    /// The same call tries again.
    pub async fn revoke(&self, revocation: Revocation) -> Result<(), BrokerError> {
        if self.inner.node.revoked().contains(&revocation) && !self.unfinished().contains(&revocation) {
            return Ok(());
        }
        if self.unfinished().len() < MAX_UNFINISHED {
            self.unfinished().insert(revocation.clone());
        }
        self.inner.node.handle_control(ControlMessage::Revoke(revocation.clone()));
        let keep = async {
            match &self.inner.revocation_store {
                Some(revocation_store) => revocation_store.keep(&revocation).await,
                None => Ok(()),
            }
        };
        let (kept, told) = tokio::join!(keep, self.inner.broker.order(ControlMessage::Revoke(revocation.clone())));
        told.and(kept)?;
        self.unfinished().remove(&revocation);
        Ok(())
    }

    fn unfinished(&self) -> MutexGuard<'_, HashSet<Revocation>> {
        self.inner.unfinished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a token that allows `grant` was revoked, as far as this node has heard.
    pub fn is_revoked(&self, grant: &Grant) -> bool {
        self.inner.node.is_revoked(grant)
    }

    /// From which time of issue on new tokens of a user are believed, in seconds since 1970-01-01T00:00:00Z; 0: any.
    pub fn tokens_valid_from(&self, user: &str) -> u64 {
        self.inner.node.revoked().tokens_valid_from(user)
    }

    /// Ends the hub: it is no longer ready and takes nobody in, tells its clients to come back, in waves of
    /// [`Config::drain_rate`], closes each with [`CloseCode::Restart`](fanfare_core::CloseCode::Restart), and returns
    /// once they have left, after `limit` at the latest. Those who have not been told yet go on being served.
    pub async fn shutdown(&self, limit: Duration) {
        self.inner.node.ready.store(false, Ordering::Relaxed);
        self.inner.node.refusals.end();
        let until_ms = clock::now().mono_ms + clock::millis(limit);
        for shard in self.inner.node.shards() {
            shard.send(Command::Drain { reason: "shutdown".to_owned(), until_ms });
        }
        let threads = std::mem::take(&mut *self.inner.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let joined = tokio::task::spawn_blocking(move || threads.into_iter().try_for_each(JoinHandle::join));
        tokio::select! {
            joined = joined => {
                if !matches!(joined, Ok(Ok(()))) {
                    tracing::error!("a shard ended by a panic");
                }
            }
            never = self.drain_wave() => match never {},
        }
        let broker = self.inner.broker.clone();
        // Only a panic would be an error, and that was told.
        let _ = tokio::task::spawn_blocking(move || broker.stop()).await;
    }

    /// Sends the shards their share of each wave.
    async fn drain_wave(&self) -> Infallible {
        let mut pace = Pace::new(self.config().drain_rate);
        let mut waves = tokio::time::interval(Duration::from_millis(WAVE_MS));
        // A wave that is late must not be followed by another at once.
        waves.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            waves.tick().await;
            let shards = self.inner.node.shards();
            let waiting = shards.iter().map(|shard| shard.leaving.load(Ordering::Relaxed));
            for (shard, share) in shards.iter().zip(share_out(pace.wave(), waiting)) {
                shard.send(Command::DrainWave(share));
            }
        }
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    /// A hub that is let go without a shutdown closes its connections and ends its threads.
    fn drop(&mut self) {
        self.node.refusals.end();
        for shard in self.node.shards() {
            shard.send(Command::Drain { reason: "shutdown".to_owned(), until_ms: 0 });
        }
    }
}

//! The state that the parts of one node share: the window, the counters, the limits, and the shards' inboxes.
//!
//! Every lock here is held for a look-up or a push only, never across an await or a call on a socket. Limits and counters
//! may be locked while the window is locked, and never the other way round.

use crate::{
    admission::{Admission, ExceededLimit},
    auth::{AuthError, Flaw, Verifier},
    broker::{Broker, BrokerError, BrokerFuture, ControlMessage, LogFollower, SharedWindow},
    clock,
    config::Config,
    foreign_cursors::ForeignCursors,
    identity::ConnectionIdIssuer,
    log_switch::LogSwitch,
    mailbox::{Command, DeliverySummary, ShardHandle},
    metrics::{Counter, Figures, Measure, Metrics},
    origin::{ForeignOrigin, LoggedOrigins},
    presence::{ConnectionInfo, Presence},
    refusals::Refusals,
    status::{self, ClientLag, NodeFigures, SLOW},
    trace::Tracer,
    why::{ClientDetails, EventAnswer, EventFacts, EventOnNode, Question, RecentlyClosed, Skipped},
};
use axum::http::HeaderMap;
use fanfare_core::{
    CloseCode, ConnectionId, Grant, Position, Revocation, Revocations,
    event::is_absent,
    session::{ConnectRequest, Denied},
    time::Now,
    window::{ResumePoint, Viewer, Window},
};
use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
};

use tokio::sync::{Notify, oneshot};

/// The shared state of one node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) verifier: Verifier,
    pub(crate) revocations: RwLock<Revocations>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) admission: Admission,
    pub(crate) refusals: Arc<Refusals>,
    pub(crate) logged_origins: LoggedOrigins,
    pub(crate) foreign_cursors: ForeignCursors,
    pub(crate) names: ConnectionIdIssuer,
    /// The name by which other nodes identify this one.
    pub(crate) name: Arc<str>,
    pub(crate) window: SharedWindow,
    pub(crate) shards: OnceLock<Vec<Arc<ShardHandle>>>,
    /// Weak, because the hub that owns both also owns this node.
    pub(crate) broker: OnceLock<Weak<dyn Broker>>,
    pub(crate) presence: OnceLock<Weak<dyn Presence>>,
    pub(crate) ready: AtomicBool,
    /// How many requests to connect were read.
    pub(crate) requests: AtomicU32,
    /// Metrics that the application adds.
    pub(crate) figures: Vec<Arc<dyn Figures>>,
    pub(crate) log_switch: Option<Arc<dyn LogSwitch>>,
    pub(crate) tracer: Option<Arc<dyn Tracer>>,
    pub(crate) recently_closed: Mutex<RecentlyClosed>,
    /// Notified when an administrator requests that the node drains.
    pub(crate) drain_wanted: Notify,
}

impl LogFollower for Node {
    fn window(&self) -> &SharedWindow {
        &self.window
    }

    fn wake(&self) {
        for shard in self.shards() {
            shard.wake();
        }
    }

    fn handle_control(&self, message: ControlMessage) {
        match message {
            ControlMessage::Disconnect { connection, reason } => {
                if let Some(shard) = self.shard_of(connection) {
                    shard.send(Command::Close(connection, CloseCode::Disconnected, reason));
                }
            }
            ControlMessage::OverUserLimit { connection } => {
                if let Some(shard) = self.shard_of(connection) {
                    self.metrics.add(Counter::LimitPerUser, 1);
                    let reason = ExceededLimit::PerUser.to_string();
                    shard.send(Command::Close(connection, CloseCode::TryAgainLater, reason));
                }
            }
            ControlMessage::Replaced { connection, came_ms, sure } => {
                if let Some(shard) = self.shard_of(connection) {
                    shard.send(Command::CloseIfOlder { connection, came_ms, sure });
                }
            }
            ControlMessage::Revoke(revocation) => {
                let is_new = {
                    let mut revocations = self.revocations.write().unwrap_or_else(PoisonError::into_inner);
                    revocations.drop_expired(clock::now().unix_ms / 1_000);
                    revocations.add(revocation.clone())
                };
                // Shards are notified after the revocation is stored. A client that connects meanwhile is checked
                // either at its admission or by the shards.
                for shard in self.shards().iter().filter(|_| is_new) {
                    shard.send(Command::Revoke(revocation.clone()));
                }
            }
            ControlMessage::LogLevel { filter } => {
                if let Some(switch) = &self.log_switch {
                    switch.set(&filter);
                }
            }
            ControlMessage::Drain { node } => {
                if *node == *self.name {
                    self.drain_wanted.notify_one();
                }
            }
            ControlMessage::DisconnectUser { user, reason } => {
                for shard in self.shards() {
                    shard.send(Command::CloseUser(user.clone(), CloseCode::Disconnected, reason.clone()));
                }
            }
        }
    }

    fn revocations(&self) -> Vec<Revocation> {
        self.revoked().iter().collect()
    }

    fn clients(&self, of_user: Option<&str>) -> BrokerFuture<'_, Vec<ConnectionInfo>> {
        let user: Option<Arc<str>> = of_user.map(Arc::from);
        Box::pin(async move {
            let mut all = Vec::new();
            for shard in self.shards() {
                let (reply, answer) = oneshot::channel();
                shard.send(Command::List(user.clone(), reply));
                // A shard that has ended has no clients.
                all.extend(answer.await.unwrap_or_default());
            }
            Ok::<_, BrokerError>(all)
        })
    }

    fn clients_from(&self, place: u64, count: usize) -> BrokerFuture<'_, (Vec<ConnectionInfo>, Option<u64>)> {
        // A place is the index of a shard in the upper 32 bits, and a slot in the lower 32 bits.
        let (index, from) = (place >> 32, place & u64::from(u32::MAX));
        Box::pin(async move {
            let Some(shard) = usize::try_from(index).ok().and_then(|index| self.shards().get(index)) else {
                return Ok::<_, BrokerError>((Vec::new(), None));
            };
            let (reply, answer) = oneshot::channel();
            shard.send(Command::ListFrom(usize::try_from(from).unwrap_or(usize::MAX), count, reply));
            // A shard that has ended has no clients.
            let (clients, next) = answer.await.unwrap_or_default();
            let next = match next {
                Some(slot) => index << 32 | slot as u64,
                None => (index + 1) << 32,
            };
            Ok((clients, (next >> 32 < self.shards().len() as u64).then_some(next)))
        })
    }

    fn answer(&self, question: String) -> BrokerFuture<'_, Option<String>> {
        Box::pin(async move {
            // A node of another version may ask what this one does not know.
            let Ok(question) = serde_json::from_str::<Question>(&question) else { return Ok(None) };
            let reply = match question {
                Question::Event { event_id, user } => {
                    serde_json::to_string(&self.trace(&event_id, user.map(Arc::from)).await).ok()
                }
                Question::Figures => serde_json::to_string(&self.figures().await).ok(),
                Question::Client { connection } => {
                    let found = match connection.parse() {
                        Ok(connection) => self.inspect(connection).await,
                        Err(_) => None,
                    };
                    found.and_then(|details| serde_json::to_string(&details).ok())
                }
            };
            Ok::<_, BrokerError>(reply)
        })
    }

    fn connections(&self) -> usize {
        self.shards().iter().map(|shard| shard.open.load(Ordering::Relaxed)).sum()
    }
}

impl Node {
    /// The recently closed connections.
    pub(crate) fn recently_closed(&self) -> MutexGuard<'_, RecentlyClosed> {
        self.recently_closed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The delivery of an event on this node.
    async fn trace(&self, event_id: &str, user: Option<Arc<str>>) -> EventAnswer {
        let (entry, epoch) = {
            let window = self.window.read();
            (window.get(event_id).cloned(), window.epoch())
        };
        let mut node = EventOnNode {
            node: self.name.to_string(),
            held: entry.is_some(),
            connected: LogFollower::connections(self),
            matched: 0,
            written: 0,
            waiting: 0,
            acknowledged: 0,
            skipped: Skipped::default(),
            of_user: Vec::new(),
        };
        let Some(entry) = entry else { return EventAnswer { node, event: None } };
        node.connected = 0;
        for shard in self.shards() {
            let (reply, answer) = oneshot::channel();
            shard.send(Command::Trace(entry.clone(), user.clone(), reply));
            // A shard that has ended has no clients.
            let DeliverySummary { connected, matched, waiting, came_later, of_user } = answer.await.unwrap_or_default();
            node.connected += connected;
            node.matched += matched;
            node.waiting += waiting;
            node.skipped.came_later += came_later;
            node.of_user.extend(of_user);
        }
        node.skipped.not_in_audience = node.connected.saturating_sub(node.matched);
        node.written = entry.written.load(Ordering::Relaxed) as usize;
        node.acknowledged = entry.acknowledged.load(Ordering::Relaxed) as usize;
        let event = EventFacts {
            event_type: entry.event_type.to_string(),
            audience: entry.audience.to_string(),
            position: Position { epoch, sequence: entry.sequence }.to_string(),
            accepted_ms: entry.appended_ms,
            publisher: entry.publisher.as_deref().map(str::to_owned),
            bytes: entry.json_len(),
        };
        EventAnswer { node, event: Some(event) }
    }

    /// The details of a client that is connected to this node, or was.
    async fn inspect(&self, connection: ConnectionId) -> Option<ClientDetails> {
        if let Some(shard) = self.shard_of(connection) {
            let (reply, answer) = oneshot::channel();
            shard.send(Command::Inspect(connection, reply));
            if let Ok(Some(details)) = answer.await {
                return Some(details);
            }
        }
        let (lineage, head) = {
            let window = self.window.read();
            (window.lineage().clone(), window.head())
        };
        Some(self.recently_closed().find(connection)?.details(&self.name, &lineage, head))
    }

    /// The lag of this node's clients behind the head of the log.
    pub(crate) async fn client_lag(&self) -> ClientLag {
        let mut all = ClientLag::default();
        for shard in self.shards() {
            let (reply, answer) = oneshot::channel();
            shard.send(Command::MeasureLag(reply));
            // A shard that has ended has no clients.
            let ClientLag { clients, farthest } = answer.await.unwrap_or_default();
            all = ClientLag { clients: all.clients + clients, farthest: all.farthest.max(farthest) };
        }
        all
    }

    /// The node's status.
    pub(crate) async fn figures(&self) -> NodeFigures {
        let status = self.broker.get().and_then(Weak::upgrade).map(|broker| broker.status()).unwrap_or_default();
        let mut slow = Vec::new();
        for shard in self.shards() {
            let (reply, answer) = oneshot::channel();
            shard.send(Command::Slowest(reply));
            slow.extend(answer.await.unwrap_or_default());
        }
        slow.sort_by_key(|client| std::cmp::Reverse(client.behind_events));
        let sum = |of: fn(&ShardHandle) -> &AtomicUsize| {
            self.shards().iter().map(|shard| of(shard).load(Ordering::Relaxed)).sum::<usize>()
        };
        let figures = self.figures.iter().flat_map(|figures| figures.figures());
        let (window_events, window_bytes) = {
            let window = self.window.read();
            (window.len(), window.bytes())
        };
        NodeFigures {
            node: self.name.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            at_ms: clock::now().unix_ms,
            ready: self.is_ready(),
            problem: status.problem,
            connections: sum(|shard| &shard.open),
            overdue: sum(|shard| &shard.overdue),
            behind: self.client_lag().await.clients,
            lag_ms: status.lag.map(|lag| lag.as_secs_f64() * 1e3),
            window_events,
            window_bytes,
            log_events: status.events,
            log_bytes: status.bytes,
            busy_us: self.shards().iter().map(|shard| shard.busy_us.load(Ordering::Relaxed)).collect(),
            counters: status::counters(&self.metrics),
            latency: self.metrics.buckets(Measure::AppendToWrite),
            round_trip: self.metrics.buckets(Measure::RoundTrip),
            process: figures.map(|figure| (figure.name.to_owned(), figure.value)).collect(),
            slow: slow.into_iter().take(SLOW).collect(),
        }
    }

    /// The list of connections, until the hub is dropped.
    pub(crate) fn presence(&self) -> Option<Arc<dyn Presence>> {
        self.presence.get().and_then(Weak::upgrade)
    }

    pub(crate) fn shards(&self) -> &[Arc<ShardHandle>] {
        self.shards.get().map_or(&[], Vec::as_slice)
    }

    /// The shard of a connection. It depends on the connection ID alone, so that a reconnecting client finds its older
    /// socket on the same shard.
    pub(crate) fn shard_of(&self, connection: ConnectionId) -> Option<&Arc<ShardHandle>> {
        let shards = self.shards();
        let at = connection.halves()[0] % shards.len().max(1) as u64;
        shards.get(usize::try_from(at).unwrap_or(0))
    }

    /// The revoked tokens.
    pub(crate) fn revoked(&self) -> RwLockReadGuard<'_, Revocations> {
        self.revocations.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_revoked(&self, grant: &Grant) -> bool {
        self.revoked().concern(grant)
    }

    /// Verifies a token. May wait for a key to be fetched.
    pub(crate) async fn authenticate(&self, token: Option<&str>) -> Result<Grant, AuthError> {
        let token = token.and_then(given).ok_or(AuthError::Missing)?;
        self.check_revoked(self.verifier.verify_or_refresh(token, clock::now().unix_ms / 1_000).await)
    }

    fn check_revoked(&self, result: Result<Grant, AuthError>) -> Result<Grant, AuthError> {
        result.and_then(|grant| if self.is_revoked(&grant) { Err(AuthError::Revoked) } else { Ok(grant) })
    }

    /// Checks the origin of a request. A rejected origin is counted and logged.
    pub(crate) fn check_origin(&self, headers: &HeaderMap, peer: Option<IpAddr>) -> Result<(), ForeignOrigin> {
        self.config.allowed_origins.check(headers, &self.config.trusted_proxies, peer).inspect_err(|error| {
            self.metrics.add(Counter::ForeignOrigin, 1);
            if self.logged_origins.is_new(&error.origin, clock::now().mono_ms) {
                tracing::warn!("{error}");
            }
        })
    }

    /// Records a client whose cursor belongs to no log that this node knows, and logs a warning once if such clients
    /// return repeatedly. Not needed with Redis, where all nodes share one log.
    pub(crate) fn note_foreign_cursor(&self, connect_request: &ConnectRequest, window: &Window) {
        let Some(cursor) = connect_request.last_event_id.as_deref() else { return };
        if window.find(cursor).is_some() {
            // The cursor belongs to this log, and is only uncertain because of a loss.
            return;
        }
        let in_memory = self.broker.get().and_then(Weak::upgrade).is_some_and(|broker| broker.name() == "memory");
        if in_memory && self.foreign_cursors.note(connect_request.connection, cursor) {
            tracing::warn!(
                "clients alternate between this hub and another one: they return with cursors of another log (this one \
                 has epoch {:x}), and each hub serves a part of the clients with a part of the events; set redis_url \
                 (REDIS_URL) to the same Redis on all hubs behind this address, or run only one hub there",
                window.epoch()
            );
        }
    }

    /// The resume point of a client after a gap: the oldest retained event, or the head if its user or address exceeded
    /// the limit on replays. The `gap` is sent in either case, so no event is lost silently.
    pub(crate) fn start_behind_gap(
        &self,
        window: &Window,
        start: ResumePoint,
        viewer: Viewer<'_>,
        address: IpAddr,
        now: Now,
    ) -> ResumePoint {
        if !self.admission.may_be_replayed(viewer.user, address, now.mono_ms, &self.config) {
            self.metrics.add(Counter::LimitGapReplay, 1);
            return window.without_replay(start);
        }
        let bytes = window.bytes_behind(start.cursor, viewer);
        self.admission.count_replay(viewer.user, address, bytes, now.mono_ms, &self.config);
        start
    }

    /// Verifies the token of an `auth` message. A rejection is counted.
    pub(crate) fn verify_in_band(&self, token: &str) -> Result<Grant, Denied> {
        let verified = given(token).ok_or(AuthError::Missing);
        let verified = verified.and_then(|token| self.verifier.verify(token, clock::now().unix_ms / 1_000));
        if verified == Err(Flaw::AccessKey.into()) {
            // A shard must not block. The look-up runs in the background, and the client's next attempt finds its
            // result.
            self.verifier.look_up_soon(token);
        }
        let result = self.check_revoked(verified);
        result.map_err(|error| {
            self.metrics.add(auth_counter(&error), 1);
            Denied { code: error.code(), message: error.to_string() }
        })
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }
}

/// The counter of a rejected token.
pub(crate) fn auth_counter(error: &AuthError) -> Counter {
    match error.code() {
        "token_missing" => Counter::AuthMissing,
        "token_expired" => Counter::AuthExpired,
        "token_not_yet_valid" => Counter::AuthNotYetValid,
        "token_revoked" => Counter::AuthRevoked,
        "keys_unavailable" => Counter::AuthUnavailable,
        _ => Counter::AuthInvalid,
    }
}

/// Returns the value if it is present. Scripts that have no value write their language's absent value (`null`,
/// `undefined`, `None`) into the URL.
pub(crate) fn given(value: &str) -> Option<&str> {
    (!is_absent(value)).then_some(value)
}

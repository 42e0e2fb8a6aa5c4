//! What the parts of one node share: the window, the counters, the limits, and the shards' inboxes.
//!
//! Every lock here is held for the time of a look-up or a push, never across a system call.

use crate::{
    admission::{Admission, ExceededLimit},
    auth::{AuthError, Flaw, Verifier},
    broker::{Broker, BrokerError, BrokerFuture, ControlMessage, LogFollower, SharedWindow},
    clock,
    config::Config,
    foreign_cursors::ForeignCursors,
    hub::{ClientLag, LogSwitch},
    identity::ConnectionIdIssuer,
    metrics::{Counter, Figures, Measure, Metrics},
    origin::{ForeignOrigin, LoggedOrigins},
    presence::{ConnectionInfo, Presence},
    refusals::Refusals,
    shard::{Command, DeliverySummary, ShardHandle},
    sys::{self, NodeFigures, SLOW},
    trace::Tracer,
    upgrade::given,
    why::{ClientDetails, EventAnswer, EventFacts, EventOnNode, Question, RecentlyClosed, Skipped},
};
use axum::http::HeaderMap;
use fanfare_core::{
    CloseCode, ConnectionId, Grant, Position, Revocation, Revocations,
    session::{ConnectRequest, Denied},
    time::Now,
    window::{ResumePoint, Viewer, Window},
};
use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use tokio::sync::{Notify, oneshot};

/// What the parts of one node share.
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
    /// What other nodes call this one.
    pub(crate) name: Arc<str>,
    pub(crate) window: SharedWindow,
    pub(crate) shards: OnceLock<Vec<Arc<ShardHandle>>>,
    /// Both held by the hub, whose node this is.
    pub(crate) broker: OnceLock<Weak<dyn Broker>>,
    pub(crate) presence: OnceLock<Weak<dyn Presence>>,
    pub(crate) ready: AtomicBool,
    /// The application's.
    pub(crate) figures: Vec<Arc<dyn Figures>>,
    pub(crate) log_switch: Option<Arc<dyn LogSwitch>>,
    pub(crate) tracer: Option<Arc<dyn Tracer>>,
    pub(crate) recently_closed: Mutex<RecentlyClosed>,
    /// An administrator wants it to end.
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

    fn handle_control(&self, order: ControlMessage) {
        match order {
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
                let news = {
                    let mut revocations = self.revocations.write().unwrap_or_else(PoisonError::into_inner);
                    revocations.drop_expired(clock::now().unix_ms / 1_000);
                    revocations.add(revocation.clone())
                };
                // After that, so that whoever is let in meanwhile is looked at by either.
                for shard in self.shards().iter().filter(|_| news) {
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
                // A shard that has ended has nobody.
                all.extend(answer.await.unwrap_or_default());
            }
            Ok::<_, BrokerError>(all)
        })
    }

    fn clients_from(&self, place: u64, count: usize) -> BrokerFuture<'_, (Vec<ConnectionInfo>, Option<u64>)> {
        // The number of a shard, and then of a slot.
        let (index, from) = (place >> 32, place & u64::from(u32::MAX));
        Box::pin(async move {
            let Some(shard) = usize::try_from(index).ok().and_then(|index| self.shards().get(index)) else {
                return Ok::<_, BrokerError>((Vec::new(), None));
            };
            let (reply, answer) = oneshot::channel();
            shard.send(Command::ListFrom(usize::try_from(from).unwrap_or(usize::MAX), count, reply));
            // A shard that has ended has nobody.
            let (clients, next) = answer.await.unwrap_or_default();
            let next = match next {
                Some(slot) => index << 32 | slot as u64,
                None => (index + 1) << 32,
            };
            Ok((clients, (next >> 32 < self.shards().len() as u64).then_some(next)))
        })
    }

    fn answer(&self, question: Question) -> BrokerFuture<'_, Option<String>> {
        Box::pin(async move {
            let said = match question {
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
            Ok::<_, BrokerError>(said)
        })
    }

    fn connections(&self) -> usize {
        self.shards().iter().map(|shard| shard.open.load(Ordering::Relaxed)).sum()
    }
}

impl Node {
    /// The clients that have left.
    pub(crate) fn recently_closed(&self) -> MutexGuard<'_, RecentlyClosed> {
        self.recently_closed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What became of an event here.
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
            // A shard that has ended has nobody.
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

    /// How a client stands here, or how it ended here.
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

    /// How far its clients are behind the log's head.
    pub(crate) async fn lateness(&self) -> ClientLag {
        let mut all = ClientLag::default();
        for shard in self.shards() {
            let (reply, answer) = oneshot::channel();
            shard.send(Command::Survey(reply));
            // A shard that has ended has nobody.
            let ClientLag { clients, farthest } = answer.await.unwrap_or_default();
            all = ClientLag { clients: all.clients + clients, farthest: all.farthest.max(farthest) };
        }
        all
    }

    /// How it stands.
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
            counters: sys::counters(&self.metrics),
            latency: self.metrics.buckets(Measure::AppendToWrite),
            round_trip: self.metrics.buckets(Measure::RoundTrip),
            process: figures.map(|figure| (figure.name.to_owned(), figure.value)).collect(),
            slow: slow.into_iter().take(SLOW).collect(),
        }
    }

    /// Who keeps the list of who is connected, while there is one.
    pub(crate) fn presence(&self) -> Option<Arc<dyn Presence>> {
        self.presence.get().and_then(Weak::upgrade)
    }

    pub(crate) fn shards(&self) -> &[Arc<ShardHandle>] {
        self.shards.get().map_or(&[], Vec::as_slice)
    }

    /// The shard of a connection. A client that comes back finds its lingering older socket on the same one.
    pub(crate) fn shard_of(&self, connection: ConnectionId) -> Option<&Arc<ShardHandle>> {
        let shards = self.shards();
        let at = connection.halves()[0] % shards.len().max(1) as u64;
        shards.get(usize::try_from(at).unwrap_or(0))
    }

    /// The tokens that are no longer believed.
    pub(crate) fn revoked(&self) -> RwLockReadGuard<'_, Revocations> {
        self.revocations.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_revoked(&self, grant: &Grant) -> bool {
        self.revoked().concern(grant)
    }

    /// What a token allows, which may have to wait until a key was fetched.
    pub(crate) async fn authenticate(&self, token: Option<&str>) -> Result<Grant, AuthError> {
        let token = token.and_then(given).ok_or(AuthError::Missing)?;
        self.believe(self.verifier.verify_or_refresh(token, clock::now().unix_ms / 1_000).await)
    }

    fn believe(&self, result: Result<Grant, AuthError>) -> Result<Grant, AuthError> {
        result.and_then(|grant| if self.is_revoked(&grant) { Err(AuthError::Revoked) } else { Ok(grant) })
    }

    /// Whether the page that makes a request may. If not, that is counted and told in the log.
    pub(crate) fn check_origin(&self, headers: &HeaderMap, peer: Option<IpAddr>) -> Result<(), ForeignOrigin> {
        self.config.allowed_origins.check(headers, &self.config, peer).inspect_err(|error| {
            self.metrics.add(Counter::ForeignOrigin, 1);
            if self.logged_origins.is_new(&error.origin, clock::now().mono_ms) {
                tracing::warn!("{error}");
            }
        })
    }

    /// Notes a client whose cursor is of no log that this node knows, and says once what that means if such clients come
    /// again and again. With the log in Redis all nodes have the same.
    pub(crate) fn note_foreign_cursor(&self, connect_request: &ConnectRequest, window: &Window) {
        let Some(cursor) = connect_request.last_event_id.as_deref() else { return };
        if window.find(cursor).is_some() {
            // It is of this log, and only doubtful after a loss.
            return;
        }
        let in_memory = self.broker.get().and_then(Weak::upgrade).is_some_and(|broker| broker.name() == "memory");
        if in_memory && self.foreign_cursors.note(connect_request.connection, cursor) {
            tracing::warn!(
                "clients alternate between this hub and another one: they return with cursors of another log (here it is \
                 epoch {:x}), and each hub serves a part of the clients with a part of the events; set redis_url (REDIS_URL) \
                 to the same Redis on all hubs behind this address, or leave one hub there",
                window.epoch()
            );
        }
    }

    /// Where a client starts behind its gap: at what is held, or, after too much of that for its user or address, at the
    /// head. The gap says in either case that there is more than what follows.
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

    /// Verifies a token that a connected client shows, and counts it if it is refused.
    pub(crate) fn verify_in_band(&self, token: &str) -> Result<Grant, Denied> {
        let verified = given(token).ok_or(AuthError::Missing);
        let verified = verified.and_then(|token| self.verifier.verify(token, clock::now().unix_ms / 1_000));
        if verified == Err(Flaw::AccessKey.into()) {
            // The shard can't wait; the client's next attempt finds it.
            self.verifier.look_up_soon(token);
        }
        let result = self.believe(verified);
        result.map_err(|error| {
            self.metrics.add(auth_counter(&error), 1);
            Denied { code: error.code(), message: error.to_string() }
        })
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }
}

/// Where a refused token is counted.
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

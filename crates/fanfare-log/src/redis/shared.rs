//! The state that the tasks of the bus share: the options, the current link, and the status.

use super::{RedisOptions, error::LinkError, keys::Keys, link::Link, members::Members, pending::Pending, stops::Stops};
use crate::{Appended, BackendStatus, BrokerError, LogFollower, Record, clock, metrics::LogMetrics};
use fanfare_core::window::{Bounds, Entry};
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, oneshot, watch},
    time::Instant,
};

/// An append that waits for the link.
pub(super) struct Job {
    pub(super) records: Vec<Record>,
    pub(super) reply: oneshot::Sender<Result<Vec<Appended>, BrokerError>>,
}

/// The response of the heartbeat script.
pub(super) struct HeartbeatAnswer {
    pub(super) head: u64,
    pub(super) nodes: usize,
    pub(super) connections: usize,
    pub(super) first: bool,
    pub(super) events: usize,
    pub(super) bytes: usize,
    /// How far back all event IDs are remembered, in milliseconds.
    pub(super) ids_ms: u64,
}

pub(super) struct Shared {
    pub(super) options: RedisOptions,
    pub(super) bounds: Bounds,
    pub(super) keys: Keys,
    /// This node's name. It is unique for each start.
    pub(super) node: String,
    pub(super) follower: Arc<dyn LogFollower>,
    pub(super) metrics: Arc<dyn LogMetrics>,
    state: Mutex<State>,
    /// Acknowledged entries that the tail has not read yet. Only the bus thread locks this list, and never across an
    /// await; its lock order with the window therefore does not matter.
    unseen: Mutex<VecDeque<Arc<Entry>>>,
    /// The unconfirmed server that this node reports to, and since when, on the monotonic clock.
    reporting: Mutex<Option<(String, u64)>>,
    /// The members of the log. If the window's lock is needed too, this one is taken first.
    members: Mutex<Members>,
    /// The server's list of members has this node, either as joining or as a member.
    pub(super) listed: AtomicBool,
    /// This node is a member, and may acknowledge.
    pub(super) joined: watch::Sender<bool>,
    /// The expiry of the lease: the server certainly holds the log until then, on the monotonic clock. Unlimited
    /// without Sentinel.
    lease_ms: AtomicU64,
    /// When the sentinels that granted the lease were asked, on the monotonic clock. Unlimited without Sentinel.
    sentinel_ms: AtomicU64,
    /// Triggers a heartbeat immediately.
    pub(super) heartbeat_now: Notify,
    /// When this process did not run.
    stops: Mutex<Stops>,
    /// Why no majority of the sentinels confirmed the master when they were last asked.
    no_majority: Mutex<Option<String>>,
    /// Clients that connected and disconnected since the last write of the list.
    pending: Mutex<Pending>,
    /// When the last heartbeat was answered, on the monotonic clock.
    last_heartbeat_ms: AtomicU64,
    /// This node has been subscribed to the channels for longest, and appends messages immediately.
    pub(super) is_channel_leader: AtomicBool,
    /// Other nodes treated this node as dead, for example because the server's clock was set, and removed its
    /// connections from the list.
    pub(super) unlisted: AtomicBool,
    /// The warning about a short horizon was logged.
    warned_horizon: AtomicBool,
    /// The window's head. Tasks wait on it for new entries.
    pub(super) head: watch::Sender<u64>,
}

const NO_MAJORITY: &str =
    "events are rejected, because no majority of the sentinels confirms the master and it may have been replaced";

const SENTINELS_AWAY: &str = "check that this host reaches the sentinels";

const JOINING: &str =
    "events are rejected: other members of the log do not respond but may still run, and this node waits for them";

/// The current link and its status.
#[derive(Default)]
struct State {
    link: Option<Link>,
    /// When it was established.
    since: Option<Instant>,
    /// The reason why there is no link.
    down: Option<String>,
    /// The reason why Redis rejects writes although there is a link.
    full: Option<String>,
    listening: bool,
    lag: Option<Duration>,
    /// The probes that the tail has not received yet, oldest first.
    probes: VecDeque<(u64, Instant)>,
    /// The probes that the channels have not returned yet, oldest first.
    echoes: VecDeque<(u64, Instant)>,
    cluster: Option<(usize, usize)>,
    /// The size of the log, as of the last heartbeat.
    events: usize,
    bytes: usize,
    /// How far back the log remembers all event IDs in milliseconds, as of the last heartbeat.
    ids_ms: u64,
}

impl Shared {
    pub(super) fn new(
        options: RedisOptions,
        bounds: Bounds,
        node: String,
        follower: Arc<dyn LogFollower>,
        metrics: Arc<dyn LogMetrics>,
    ) -> Self {
        let keys = Keys::new(&options.namespace, options.url.is_cluster());
        let down = Some("no connection to Redis has been established yet".to_owned());
        let members = Mutex::new(Members::new(&node));
        Self {
            options,
            bounds,
            keys,
            node,
            follower,
            metrics,
            state: Mutex::new(State { down, ..State::default() }),
            unseen: Mutex::default(),
            reporting: Mutex::default(),
            members,
            listed: AtomicBool::new(false),
            joined: watch::channel(false).0,
            lease_ms: AtomicU64::new(u64::MAX),
            sentinel_ms: AtomicU64::new(u64::MAX),
            heartbeat_now: Notify::new(),
            stops: Mutex::default(),
            no_majority: Mutex::default(),
            pending: Mutex::default(),
            last_heartbeat_ms: AtomicU64::new(0),
            is_channel_leader: AtomicBool::new(false),
            unlisted: AtomicBool::new(false),
            warned_horizon: AtomicBool::new(false),
            head: watch::channel(0).0,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn unseen(&self) -> MutexGuard<'_, VecDeque<Arc<Entry>>> {
        self.unseen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long this node has been reporting to an unconfirmed server, in milliseconds. The first call for a server
    /// starts the measurement.
    pub(super) fn reporting_ms(&self, server: &str) -> u64 {
        let now_ms = clock::now().mono_ms;
        let mut reporting = self.reporting.lock().unwrap_or_else(PoisonError::into_inner);
        match &*reporting {
            Some((held, since_ms)) if held == server => now_ms.saturating_sub(*since_ms),
            _ => {
                *reporting = Some((server.to_owned(), now_ms));
                0
            }
        }
    }

    pub(super) fn stop_reporting(&self) {
        *self.reporting.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Grants the lease for `lasts` from `mono_ms`, when the sentinels were asked.
    pub(super) fn set_lease(&self, mono_ms: u64, lasts: Duration) {
        self.lease_ms.store(mono_ms + clock::millis(lasts), Ordering::Relaxed);
        self.sentinel_ms.store(mono_ms, Ordering::Relaxed);
    }

    /// Records that this node was a member at `mono_ms`. With Sentinel this counts only up to the time at which a
    /// majority last confirmed the server, because a node could join at another server after that.
    pub(super) fn informed(&self, members: &mut Members, mono_ms: u64) {
        members.informed(mono_ms.min(self.sentinel_ms.load(Ordering::Relaxed)));
    }

    /// Fails if the lease has expired: another server may hold the log.
    pub(super) fn check_lease(&self) -> Result<(), LinkError> {
        if clock::now().mono_ms < self.lease_ms.load(Ordering::Relaxed) {
            Ok(())
        } else {
            let why = self.no_majority.lock().unwrap_or_else(PoisonError::into_inner).clone();
            Err(LinkError::NoMaster(format!("{NO_MAJORITY}: {}", why.as_deref().unwrap_or(SENTINELS_AWAY))))
        }
    }

    /// Why no majority of the sentinels confirms the master; `None`: one does.
    pub(super) fn note_sentinels(&self, why: Option<String>) {
        *self.no_majority.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Notes that this process runs. Returns when it did not.
    pub(super) fn tick(&self) -> Stops {
        let mut stops = self.stops.lock().unwrap_or_else(PoisonError::into_inner);
        stops.tick(clock::now().mono_ms);
        *stops
    }

    pub(super) fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The epoch of the log, as far as this node knows.
    pub(super) fn epoch(&self) -> u64 {
        self.follower.window().read().epoch()
    }

    /// When the last heartbeat was answered, in milliseconds on the monotonic clock.
    pub(super) fn last_heartbeat(&self) -> u64 {
        self.last_heartbeat_ms.load(Ordering::Relaxed)
    }

    pub(super) fn note_heartbeat(&self) {
        self.last_heartbeat_ms.store(clock::now().mono_ms, Ordering::Relaxed);
    }

    /// The current link.
    pub(super) fn link(&self) -> Result<Link, BrokerError> {
        let state = self.state();
        let why = || state.down.clone().unwrap_or_else(|| "there is no connection to Redis".to_owned());
        state.link.clone().ok_or_else(|| BrokerError::Unavailable(why()))
    }

    /// When the current link was established, if there is one.
    pub(super) fn up_since(&self) -> Option<Instant> {
        self.state().since
    }

    pub(super) fn up(&self, link: Link) {
        self.pending().set_idle(false);
        self.note_heartbeat();
        let mut state = self.state();
        *state = State {
            link: Some(link),
            since: Some(Instant::now()),
            listening: true,
            cluster: state.cluster,
            ..State::default()
        };
    }

    /// Records that there is no link. Returns whether this is a new condition that should be logged.
    pub(super) fn down(&self, why: &str) -> bool {
        self.is_channel_leader.store(false, Ordering::Relaxed);
        self.pending().set_idle(true);
        let mut state = self.state();
        let news = state.link.is_some() || state.down.as_deref() != Some(why);
        *state = State { down: Some(why.to_owned()), cluster: state.cluster, ..State::default() };
        news
    }

    /// Records that Redis rejects writes.
    pub(super) fn note_full(&self, why: &str) {
        let text = LinkError::Full(why.to_owned()).to_string();
        if self.state().full.replace(text).is_none() {
            tracing::error!("Redis rejects writes, so publishing fails: {why}");
        }
    }

    /// Records that Redis accepts writes.
    pub(super) fn note_writable(&self) {
        if self.state().full.take().is_some() {
            tracing::info!("Redis accepts writes again");
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.state().full.is_some()
    }

    /// Fails if no event can be appended although there is a link.
    pub(super) fn check_writable(&self) -> Result<(), BrokerError> {
        // A member attempts the append: Redis may accept writes again. A node that is still joining does not append.
        let full = if *self.joined.borrow() { None } else { self.state().full.clone() };
        full.map_or(Ok(()), |why| Err(BrokerError::Unavailable(why)))
    }

    pub(super) fn note_heartbeat_answer(&self, answer: &HeartbeatAnswer) {
        let mut state = self.state();
        state.cluster = Some((answer.connections, answer.nodes));
        (state.events, state.bytes) = (answer.events, answer.bytes);
        state.ids_ms = answer.ids_ms.min(self.bounds.ids_ms);
    }

    /// Warns once if event IDs are forgotten before the horizon.
    pub(super) fn note_horizon(&self, ids_ms: u64, forgotten: bool) {
        let horizon_ms = self.bounds.ids_ms;
        if forgotten && ids_ms < horizon_ms && !self.warned_horizon.swap(true, Ordering::Relaxed) {
            crate::warn_of_short_horizon(ids_ms, horizon_ms);
        }
    }

    pub(super) fn probe_sent(&self, number: u64) {
        let (now, mut state) = (Instant::now(), self.state());
        state.probes.push_back((number, now));
        state.echoes.push_back((number, now));
    }

    /// Removes a probe that was not sent.
    pub(super) fn probe_failed(&self, number: u64) {
        let mut state = self.state();
        state.probes.retain(|(sent, _)| *sent != number);
        state.echoes.retain(|(sent, _)| *sent != number);
    }

    pub(super) fn probe_returned(&self, number: u64) {
        let mut state = self.state();
        if let Some((_, sent)) = state.probes.iter().find(|(sent, _)| *sent == number) {
            state.lag = Some(sent.elapsed());
        }
        state.probes.retain(|(sent, _)| *sent > number);
    }

    pub(super) fn echo_returned(&self, number: u64) {
        self.state().echoes.retain(|(sent, _)| *sent > number);
    }

    /// Extends the deadlines of probes by a time in which this process did not run.
    pub(super) fn extend_probes(&self, late: Duration) {
        let (now, mut state) = (Instant::now(), self.state());
        let State { probes, echoes, lag, .. } = &mut *state;
        for (_, sent) in probes.iter_mut().chain(echoes) {
            *sent = (*sent + late).min(now);
        }
        *lag = lag.map(|lag| lag.saturating_sub(late));
    }

    /// The age of the oldest probe that has not returned: through the log, and through the channels.
    pub(super) fn overdue(&self) -> (Duration, Duration) {
        let state = self.state();
        let age = |probes: &VecDeque<(u64, Instant)>| probes.front().map_or(Duration::ZERO, |(_, at)| at.elapsed());
        (age(&state.probes), age(&state.echoes))
    }

    pub(super) fn status(&self) -> BackendStatus {
        let (overdue, _) = self.overdue();
        let lease = self.check_lease().err().map(|error| error.to_string());
        let joining = (!*self.joined.borrow()).then(|| JOINING.to_owned());
        let state = self.state();
        let lag = state.lag.max(Some(overdue).filter(|overdue| *overdue > Duration::ZERO));
        let late = lag
            .filter(|lag| *lag > self.options.lag_limit)
            .map(|lag| format!("the log is slow: a probe took {} ms, more than bus_lag_limit allows", lag.as_millis()));
        BackendStatus {
            problem: state.down.clone().or(lease).or_else(|| state.full.clone()).or(joining).or(late),
            connected: state.link.is_some(),
            listening: state.link.is_some() && state.listening,
            lag,
            events: state.events,
            bytes: state.bytes,
            horizon: Duration::from_millis(state.ids_ms),
            cluster: state.cluster,
        }
    }
}

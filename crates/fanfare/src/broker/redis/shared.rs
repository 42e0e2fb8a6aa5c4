//! What the parts of the bus share: the options, the link while there is one, and how things stand.

use super::{
    RedisOptions,
    heartbeat::HeartbeatAnswer,
    keys::Keys,
    link::{Link, LinkError},
    members::Members,
    presence::Pending,
};
use crate::{
    broker::{Appended, BackendStatus, BrokerError, LogFollower, Record},
    clock,
    metrics::Metrics,
};
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

/// Records on their way into the log, and who waits for them.
pub(super) struct Job {
    pub(super) records: Vec<Record>,
    pub(super) reply: oneshot::Sender<Result<Vec<Appended>, BrokerError>>,
}

pub(super) struct Shared {
    pub(super) options: RedisOptions,
    pub(super) bounds: Bounds,
    pub(super) keys: Keys,
    /// This node's name, made anew at each start.
    pub(super) node: String,
    pub(super) follower: Arc<dyn LogFollower>,
    pub(super) metrics: Arc<Metrics>,
    state: Mutex<State>,
    /// Acknowledged entries that have not come back by the tail yet.
    unseen: Mutex<VecDeque<Arc<Entry>>>,
    /// The server that is not confirmed, and since when this node reports to it, on the monotonic clock.
    reporting: Mutex<Option<(String, u64)>>,
    /// The nodes that may acknowledge.
    members: Mutex<Members>,
    /// The server has this node on its list of members, as one that joins or has joined.
    pub(super) listed: AtomicBool,
    /// This node is a member, and may acknowledge.
    pub(super) joined: watch::Sender<bool>,
    /// Until when the server is known to be the one, on the monotonic clock; always, where none can take its place.
    lease_ms: AtomicU64,
    /// When that was last asked; always, where nobody is to be asked.
    sentinel_ms: AtomicU64,
    /// Something waits for this node's next beat.
    pub(super) heartbeat_now: Notify,
    /// Who came and left since that was last written.
    pending: Mutex<Pending>,
    /// When the last beat was answered, on the monotonic clock.
    last_heartbeat_ms: AtomicU64,
    /// This node has heard the channels for longest, and puts what it hears into the log at once.
    pub(super) is_channel_leader: AtomicBool,
    /// Others took this node for dead, perhaps because the server's clock was set, and what it had registered was swept away.
    pub(super) unlisted: AtomicBool,
    /// It was said that ids are forgotten before their time.
    warned_horizon: AtomicBool,
    /// The window's head.
    pub(super) head: watch::Sender<u64>,
}

const NO_MAJORITY: &str = "no majority of the sentinels confirms the master, so another may have taken its place: no events \
                          are taken; check that this host reaches the sentinels";

const JOINING: &str =
    "this node waits for other nodes of the log that are silent and may still live, and takes no events yet";

/// How things stand.
#[derive(Default)]
struct State {
    link: Option<Link>,
    /// Since when there is one.
    since: Option<Instant>,
    /// Why there is no link.
    down: Option<String>,
    /// Why Redis takes no writes, though there is one.
    full: Option<String>,
    listening: bool,
    lag: Option<Duration>,
    /// The probes that have not come back by the tail, oldest first.
    probes: VecDeque<(u64, Instant)>,
    /// Those that have not come back by the channels.
    echoes: VecDeque<(u64, Instant)>,
    cluster: Option<(usize, usize)>,
    /// What the log holds, as of the last beat.
    events: usize,
    bytes: usize,
    /// For how long back the log knows all ids, as of the last beat.
    ids_ms: u64,
}

impl Shared {
    pub(super) fn new(
        options: RedisOptions,
        bounds: Bounds,
        node: String,
        follower: Arc<dyn LogFollower>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let keys = Keys::new(&options.namespace, options.url.is_cluster());
        let down = Some("Redis was not reached yet".to_owned());
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
            word_ms: AtomicU64::new(u64::MAX),
            beat_now: Notify::new(),
            pending: Mutex::default(),
            last_beat_ms: AtomicU64::new(0),
            is_channel_leader: AtomicBool::new(false),
            unlisted: AtomicBool::new(false),
            told_horizon: AtomicBool::new(false),
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

    /// For how many milliseconds this node has been reporting to a server that is not confirmed.
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

    pub(super) fn reports_no_more(&self) {
        *self.reporting.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The server is the one for so long after `mono_ms`.
    pub(super) fn set_lease(&self, mono_ms: u64, lasts: Duration) {
        self.lease_ms.store(mono_ms + clock::millis(lasts), Ordering::Relaxed);
        self.word_ms.store(mono_ms, Ordering::Relaxed);
    }

    /// This node was a member at `mono_ms`, of the server that was the one when that was last asked.
    pub(super) fn informed(&self, members: &mut Members, mono_ms: u64) {
        members.informed(mono_ms.min(self.word_ms.load(Ordering::Relaxed)));
    }

    /// Whether the server is surely the one that holds the log.
    pub(super) fn check_lease(&self) -> Result<(), LinkError> {
        if clock::now().mono_ms < self.lease_ms.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err(LinkError::NoMaster(NO_MAJORITY.to_owned()))
        }
    }

    pub(super) fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The epoch that the log is in, as far as this node knows.
    pub(super) fn epoch(&self) -> u64 {
        self.follower.window().read().epoch()
    }

    /// When the last beat was answered, in milliseconds on the monotonic clock.
    pub(super) fn last_beat(&self) -> u64 {
        self.last_beat_ms.load(Ordering::Relaxed)
    }

    pub(super) fn note_beat(&self) {
        self.last_beat_ms.store(clock::now().mono_ms, Ordering::Relaxed);
    }

    /// The link, if there is one.
    pub(super) fn link(&self) -> Result<Link, BrokerError> {
        let state = self.state();
        let why = || state.down.clone().unwrap_or_else(|| "there is no link to Redis".to_owned());
        state.link.clone().ok_or_else(|| BrokerError::Unavailable(why()))
    }

    /// Since when there is a link, if there is one.
    pub(super) fn up_since(&self) -> Option<Instant> {
        self.state().since
    }

    pub(super) fn up(&self, link: Link) {
        self.pending().set_idle(false);
        self.note_beat();
        let mut state = self.state();
        *state = State {
            link: Some(link),
            since: Some(Instant::now()),
            listening: true,
            cluster: state.cluster,
            ..State::default()
        };
    }

    /// Returns whether that is news.
    pub(super) fn down(&self, why: &str) -> bool {
        self.is_channel_leader.store(false, Ordering::Relaxed);
        self.pending().set_idle(true);
        let mut state = self.state();
        let news = state.link.is_some() || state.down.as_deref() != Some(why);
        *state = State { down: Some(why.to_owned()), cluster: state.cluster, ..State::default() };
        news
    }

    /// Redis takes no writes.
    pub(super) fn note_full(&self, why: &str) {
        let text = LinkError::Full(why.to_owned()).to_string();
        if self.state().full.replace(text).is_none() {
            tracing::error!("Redis takes no writes, so publishing fails: {why}");
        }
    }

    /// Redis takes writes.
    pub(super) fn note_room(&self) {
        if self.state().full.take().is_some() {
            tracing::info!("Redis takes writes again");
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.state().full.is_some()
    }

    /// Why no event can be put into the log now, though there is a link.
    pub(super) fn check_room(&self) -> Result<(), BrokerError> {
        // A node that has joined asks: there may be room again.
        let full = if *self.joined.borrow() { None } else { self.state().full.clone() };
        full.map_or(Ok(()), |why| Err(BrokerError::Unavailable(why)))
    }

    pub(super) fn note_beat_answer(&self, answer: &BeatAnswer) {
        let mut state = self.state();
        state.cluster = Some((answer.connections, answer.nodes));
        (state.events, state.bytes) = (answer.events, answer.bytes);
        state.ids_ms = answer.ids_ms.min(self.bounds.ids_ms);
    }

    /// Says once that ids are forgotten before their time.
    pub(super) fn note_horizon(&self, ids_ms: u64, forgotten: bool) {
        let horizon_ms = self.bounds.ids_ms;
        if forgotten && ids_ms < horizon_ms && !self.told_horizon.swap(true, Ordering::Relaxed) {
            crate::broker::warn_of_short_horizon(ids_ms, horizon_ms);
        }
    }

    pub(super) fn probe_sent(&self, number: u64) {
        let (now, mut state) = (Instant::now(), self.state());
        state.probes.push_back((number, now));
        state.echoes.push_back((number, now));
    }

    /// The probe was not sent after all.
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

    /// This process did not run for a while: that does not count as the probes' time.
    pub(super) fn excuse_probes(&self, late: Duration) {
        let (now, mut state) = (Instant::now(), self.state());
        let State { probes, echoes, lag, .. } = &mut *state;
        for (_, sent) in probes.iter_mut().chain(echoes) {
            *sent = (*sent + late).min(now);
        }
        *lag = lag.map(|lag| lag.saturating_sub(late));
    }

    /// How long the oldest probe that has not come back is under way: by the tail, and by the channels.
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
            .map(|lag| format!("news takes {} ms through the log, more than bus_lag_limit allows", lag.as_millis()));
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

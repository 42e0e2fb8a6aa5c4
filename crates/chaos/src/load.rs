//! The state that publishers, clients and faults share: addresses, clients, and the results so far.

use crate::oracle::{Event, Gap, Kind, Ledger, Lineage, Truth, Wrong};
use fanfare::Position;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::Notify;

/// The load on the hub.
#[derive(Debug)]
pub(crate) struct Load {
    /// The prefix of every event ID, so that no two runs share an ID.
    pub(crate) run: String,
    /// The addresses of the hub's nodes.
    addresses: Mutex<Vec<SocketAddr>>,
    pub(crate) publisher_token: String,
    /// Events a second of each publisher.
    pub(crate) rate: u32,
    truth: Mutex<Truth>,
    /// The number of publishers.
    publishers: usize,
    pub(crate) readers: Vec<Arc<Reader>>,
    /// The port of Redis for the publisher that uses channels, as the publishers of the FastAPI hub do.
    pub(crate) redis_port: AtomicU16,
    /// Attempts to publish that were not acknowledged.
    pub(crate) refused: AtomicU64,
    /// The former positions of events that were published again and appended a second time, not answered as duplicates.
    forgotten: Mutex<Vec<Position>>,
    pub(crate) ended: AtomicBool,
    results: Mutex<Results>,
}

/// A client.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) token: String,
    pub(crate) behaviour: Behaviour,
    pub(crate) live: AtomicBool,
    /// The client does not read.
    pub(crate) paused: AtomicBool,
    pub(crate) cut: Notify,
    name: Mutex<Option<String>>,
    ledger: Mutex<Ledger>,
}

/// The behaviour of a client.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Behaviour {
    /// It reconnects under the same `connection_id`.
    pub(crate) keeps_connection_id: bool,
    /// Its cursor is the `event_id` of the last event, as that of older clients, and not its position.
    pub(crate) by_id: bool,
    /// It repeatedly subscribes to the topic of this publisher and unsubscribes from it.
    pub(crate) changes_topic: Option<usize>,
}

/// The results of one item of the plan.
#[derive(Debug, Default, Clone)]
pub(crate) struct Results {
    pub(crate) wrong: Wrong,
    pub(crate) published: u64,
    pub(crate) delivered: u64,
    pub(crate) gaps_expired: u64,
    pub(crate) gaps_reset: u64,
    /// The most resets that a client whose cursor is a position received.
    pub(crate) most_resets: u64,
    /// The gaps that this client received.
    pub(crate) most_gaps: Vec<String>,
    /// The most resets of clients whose cursor is an `event_id`, which is uncertain after a loss.
    pub(crate) most_resets_by_id: u64,
    /// Epochs of the log that began after a possible loss.
    pub(crate) losses: usize,
    /// Whether a cursor that is an `event_id` is uncertain by now.
    pub(crate) ids_uncertain: bool,
    /// Events that nodes restored.
    pub(crate) restored: u64,
    pub(crate) resumes: Vec<Duration>,
    /// The longest wait of any publisher for one acknowledgement.
    pub(crate) outages: Vec<Duration>,
    /// The most clients that received a `goaway` within a second.
    pub(crate) largest_wave: usize,
    /// Unexpected observations, and how often each occurred.
    pub(crate) anomalies: BTreeMap<String, u64>,
    /// Examples of violations, and the number of clients that each affected.
    pub(crate) examples: BTreeMap<String, u64>,
    pub(crate) longest_wait: Duration,
    pub(crate) goaways: Vec<Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The wall clock, in milliseconds since 1970.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Reader {
    pub(crate) fn new(token: String, behaviour: Behaviour, ledger: Ledger) -> Self {
        Self {
            token,
            behaviour,
            live: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            cut: Notify::new(),
            name: Mutex::default(),
            ledger: Mutex::new(ledger),
        }
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    pub(crate) fn name(&self) -> Option<String> {
        lock(&self.name).clone()
    }

    pub(crate) fn set_name(&self, name: Option<String>) {
        *lock(&self.name) = name;
    }
}

impl Load {
    pub(crate) fn new(
        run: String,
        addresses: Vec<SocketAddr>,
        publisher_token: String,
        rate: u32,
        kinds: &[Kind],
    ) -> Self {
        Self {
            run,
            addresses: Mutex::new(addresses),
            publisher_token,
            rate,
            truth: Mutex::new(Truth::new(kinds)),
            publishers: kinds.len(),
            readers: Vec::new(),
            redis_port: AtomicU16::new(0),
            refused: AtomicU64::new(0),
            forgotten: Mutex::default(),
            ended: AtomicBool::new(false),
            results: Mutex::default(),
        }
    }

    /// A random node of the hub.
    pub(crate) fn address(&self) -> SocketAddr {
        let addresses = lock(&self.addresses);
        addresses[fastrand::usize(..addresses.len())]
    }

    /// Moves all clients and publishers to another node, from their next connection on.
    pub(crate) fn move_to(&self, address: SocketAddr) {
        *lock(&self.addresses) = vec![address];
    }

    pub(crate) fn live(&self) -> usize {
        self.readers.iter().filter(|reader| reader.live.load(Ordering::Relaxed)).count()
    }

    pub(crate) fn ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// A publisher begins to publish its next event. Returns the event.
    pub(crate) fn next_event(&self, publisher: usize) -> Event {
        (publisher, lock(&self.truth).begin(publisher, now_ms()))
    }

    /// An event was acknowledged at a position. `again`: not for the first time; `duplicate`: the hub answered that the
    /// log has it.
    pub(crate) fn note_acknowledged(&self, event: Event, position: Position, again: bool, duplicate: bool) {
        let mut truth = lock(&self.truth);
        let before = truth.get(event).and_then(|event| event.acknowledged);
        truth.acknowledge(event, position);
        drop(truth);
        if !again {
            lock(&self.results).published += 1;
        } else if let Some(before) = before.filter(|_| !duplicate) {
            lock(&self.forgotten).push(before);
        }
    }

    /// A client received an event at a position.
    pub(crate) fn note_received(&self, reader: &Reader, event: Event, position: Position) {
        let mut truth = lock(&self.truth);
        truth.note_seen(event, position);
        let kind = truth.kind(event.0);
        drop(truth);
        reader.ledger().read(event, position, kind);
    }

    pub(crate) fn note_wait(&self, wait: Duration) {
        let mut results = lock(&self.results);
        results.longest_wait = results.longest_wait.max(wait);
    }

    pub(crate) fn note_resume(&self, took: Duration) {
        lock(&self.results).resumes.push(took);
    }

    pub(crate) fn note_goaway(&self) {
        lock(&self.results).goaways.push(Instant::now());
    }

    /// A client received a gap.
    pub(crate) fn note_gap(&self, reader: &Reader, gap: Gap) {
        reader.ledger().gap(gap);
        let mut results = lock(&self.results);
        *(if gap.reset { &mut results.gaps_reset } else { &mut results.gaps_expired }) += 1;
    }

    pub(crate) fn note_anomaly(&self, what: &str) {
        *lock(&self.results).anomalies.entry(what.to_owned()).or_default() += 1;
    }

    /// Takes the results since the last call. Events up to `targets` that were not received by now are lost.
    pub(crate) fn take_results(&self, targets: &[u64], lineage: &Lineage) -> Results {
        let mut results = std::mem::take(&mut *lock(&self.results));
        let waves = results.goaways.iter().enumerate().map(|(i, first)| {
            results.goaways[i..].iter().take_while(|at| at.duration_since(*first) < Duration::from_secs(1)).count()
        });
        results.largest_wave = waves.max().unwrap_or(0);
        results.outages.push(results.longest_wait);
        let forgotten = std::mem::take(&mut *lock(&self.forgotten));
        let unexplained = forgotten
            .iter()
            .filter(|position| lineage.holds(**position) && !lineage.forgot_ids_since(**position))
            .count();
        if unexplained > 0 {
            *results.anomalies.entry("the log appended an event a second time".to_owned()).or_default() +=
                unexplained as u64;
        }
        let mut truth = lock(&self.truth);
        for reader in &self.readers {
            let mut ledger = reader.ledger();
            let (wrong, examples) = ledger.settle(targets, &truth, lineage);
            results.wrong += wrong;
            for example in examples {
                *results.examples.entry(example).or_default() += 1;
            }
            results.delivered += std::mem::take(&mut ledger.delivered);
            let gaps = ledger.take_gaps();
            let resets = gaps.iter().filter(|gap| gap.reset).count() as u64;
            if reader.behaviour.by_id {
                results.most_resets_by_id = results.most_resets_by_id.max(resets);
            } else if resets > results.most_resets {
                (results.most_resets, results.most_gaps) = (resets, gaps.iter().map(Gap::to_string).collect());
            }
        }
        let (wrong, examples) = truth.settle(lineage);
        results.wrong += wrong;
        for example in examples {
            *results.examples.entry(example).or_default() += 1;
        }
        results
    }

    /// The number of clients that have not received every acknowledged event up to `targets`.
    pub(crate) fn behind(&self, targets: &[u64], lineage: &Lineage) -> usize {
        let truth = lock(&self.truth);
        self.readers.iter().filter(|reader| !reader.ledger().has_caught_up(targets, &truth, lineage)).count()
    }

    /// For each publisher, the number up to which all its events are acknowledged.
    pub(crate) fn targets(&self) -> Vec<u64> {
        let truth = lock(&self.truth);
        (0..self.publishers).map(|publisher| truth.acknowledged(publisher)).collect()
    }

    /// The publishers whose events are acknowledged.
    pub(crate) fn acknowledged_publishers(&self) -> Vec<usize> {
        let truth = lock(&self.truth);
        (0..self.publishers).filter(|&publisher| truth.kind(publisher) != Some(Kind::Unacknowledged)).collect()
    }
}

impl Results {
    pub(crate) fn add(&mut self, other: Self) {
        self.wrong += other.wrong;
        self.published += other.published;
        self.delivered += other.delivered;
        self.gaps_expired += other.gaps_expired;
        self.gaps_reset += other.gaps_reset;
        self.most_resets = self.most_resets.max(other.most_resets);
        self.most_resets_by_id = self.most_resets_by_id.max(other.most_resets_by_id);
        self.losses += other.losses;
        self.ids_uncertain |= other.ids_uncertain;
        self.restored += other.restored;
        self.resumes.extend(other.resumes);
        self.outages.extend(other.outages);
        self.largest_wave = self.largest_wave.max(other.largest_wave);
        for (what, n) in other.anomalies {
            *self.anomalies.entry(what).or_default() += n;
        }
    }
}

//! What publishers, clients and faults share: who there is, and what was counted.

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

/// The load, as all see it.
#[derive(Debug)]
pub(crate) struct Load {
    /// Begins every event's id, so that no two runs share one.
    pub(crate) run: String,
    /// Where the hub's nodes are.
    addresses: Mutex<Vec<SocketAddr>>,
    pub(crate) publisher_token: String,
    /// Events a second of each publisher.
    pub(crate) rate: u32,
    truth: Mutex<Truth>,
    /// How many publishers there are.
    publishers: usize,
    pub(crate) readers: Vec<Arc<Reader>>,
    /// Where the reference's publisher finds its Redis.
    pub(crate) redis_port: AtomicU16,
    /// Attempts to publish that were not acknowledged.
    pub(crate) refused: AtomicU64,
    /// Where events stood that were repeated, and that the log did not know again.
    forgotten: Mutex<Vec<Position>>,
    pub(crate) ended: AtomicBool,
    figures: Mutex<Figures>,
}

/// One client.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) token: String,
    pub(crate) habits: Habits,
    pub(crate) live: AtomicBool,
    /// It does not read.
    pub(crate) halted: AtomicBool,
    pub(crate) cut: Notify,
    name: Mutex<Option<String>>,
    ledger: Mutex<Ledger>,
}

/// What a client does.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Habits {
    /// It comes back under the same name.
    pub(crate) keeps_name: bool,
    /// Its cursor is the `event_id` of the last event, as that of older clients, and not its position.
    pub(crate) by_id: bool,
    /// It subscribes to a topic, whose publisher is this one, and unsubscribes, again and again.
    pub(crate) changes_topic: Option<usize>,
}

/// What was counted during one fault.
#[derive(Debug, Default, Clone)]
pub(crate) struct Figures {
    pub(crate) wrong: Wrong,
    pub(crate) published: u64,
    pub(crate) delivered: u64,
    pub(crate) gaps_expired: u64,
    pub(crate) gaps_reset: u64,
    /// The most resets that one client was told whose cursor is a position.
    pub(crate) most_resets: u64,
    /// What that client was told.
    pub(crate) most_told: Vec<String>,
    /// The most resets of clients whose cursor is an `event_id`, which is doubtful after a loss.
    pub(crate) most_resets_by_id: u64,
    /// Epochs of the log that began behind a possible loss.
    pub(crate) losses: usize,
    /// Whether a cursor that is an `event_id` is doubtful by now.
    pub(crate) doubts_ids: bool,
    /// Events that nodes put back into the log.
    pub(crate) put_back: u64,
    pub(crate) resumes: Vec<Duration>,
    /// The longest that a publisher waited for one event to be acknowledged.
    pub(crate) outages: Vec<Duration>,
    /// The most clients told to go within a second.
    pub(crate) largest_wave: usize,
    /// What should not happen, and how often it did.
    pub(crate) odd: BTreeMap<String, u64>,
    /// What went wrong, and to how many clients.
    pub(crate) examples: BTreeMap<String, u64>,
    pub(crate) longest_wait: Duration,
    pub(crate) goaways: Vec<Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The time in milliseconds since 1970.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Reader {
    pub(crate) fn new(token: String, habits: Habits, ledger: Ledger) -> Self {
        Self {
            token,
            habits,
            live: AtomicBool::new(false),
            halted: AtomicBool::new(false),
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
            figures: Mutex::default(),
        }
    }

    /// Any of the hub's nodes.
    pub(crate) fn address(&self) -> SocketAddr {
        let addresses = lock(&self.addresses);
        addresses[fastrand::usize(..addresses.len())]
    }

    /// Sends everyone elsewhere, from their next connection on.
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

    /// An event was acknowledged at a place. `again`: for a second time; `duplicate`: the log says that it had it.
    pub(crate) fn note_acknowledged(&self, event: Event, place: Position, again: bool, duplicate: bool) {
        let mut truth = lock(&self.truth);
        let before = truth.get(event).and_then(|event| event.acknowledged);
        truth.acknowledge(event, place);
        drop(truth);
        if !again {
            lock(&self.figures).published += 1;
        } else if let Some(before) = before.filter(|_| !duplicate) {
            lock(&self.forgotten).push(before);
        }
    }

    /// A client received an event at a place.
    pub(crate) fn note_received(&self, reader: &Reader, event: Event, place: Position) {
        let mut truth = lock(&self.truth);
        truth.stands(event, place);
        let kind = truth.kind(event.0);
        drop(truth);
        reader.ledger().read(event, place, kind);
    }

    pub(crate) fn note_wait(&self, wait: Duration) {
        let mut figures = lock(&self.figures);
        figures.longest_wait = figures.longest_wait.max(wait);
    }

    pub(crate) fn note_resume(&self, took: Duration) {
        lock(&self.figures).resumes.push(took);
    }

    pub(crate) fn note_goaway(&self) {
        lock(&self.figures).goaways.push(Instant::now());
    }

    /// A client was told of a gap.
    pub(crate) fn note_gap(&self, reader: &Reader, gap: Gap) {
        reader.ledger().gap(gap);
        let mut figures = lock(&self.figures);
        *(if gap.reset { &mut figures.gaps_reset } else { &mut figures.gaps_expired }) += 1;
    }

    pub(crate) fn note_odd(&self, what: &str) {
        *lock(&self.figures).odd.entry(what.to_owned()).or_default() += 1;
    }

    /// Takes what was counted since the last time; what has not come up to `targets` is lost by now.
    pub(crate) fn take_figures(&self, targets: &[u64], lineage: &Lineage) -> Figures {
        let mut figures = std::mem::take(&mut *lock(&self.figures));
        let waves = figures.goaways.iter().enumerate().map(|(i, first)| {
            figures.goaways[i..].iter().take_while(|at| at.duration_since(*first) < Duration::from_secs(1)).count()
        });
        figures.largest_wave = waves.max().unwrap_or(0);
        figures.outages.push(figures.longest_wait);
        let forgotten = std::mem::take(&mut *lock(&self.forgotten));
        let unduly =
            forgotten.iter().filter(|place| lineage.holds(**place) && !lineage.forgot_ids_since(**place)).count();
        if unduly > 0 {
            *figures.odd.entry("the log took an event a second time".to_owned()).or_default() += unduly as u64;
        }
        let mut truth = lock(&self.truth);
        for reader in &self.readers {
            let mut ledger = reader.ledger();
            let (wrong, examples) = ledger.settle(targets, &truth, lineage);
            figures.wrong += wrong;
            for example in examples {
                *figures.examples.entry(example).or_default() += 1;
            }
            figures.delivered += std::mem::take(&mut ledger.delivered);
            let told = ledger.take_told();
            let resets = told.iter().filter(|gap| gap.reset).count() as u64;
            if reader.habits.by_id {
                figures.most_resets_by_id = figures.most_resets_by_id.max(resets);
            } else if resets > figures.most_resets {
                (figures.most_resets, figures.most_told) = (resets, told.iter().map(Gap::to_string).collect());
            }
        }
        let (wrong, examples) = truth.settle(lineage);
        figures.wrong += wrong;
        for example in examples {
            *figures.examples.entry(example).or_default() += 1;
        }
        figures
    }

    /// The clients that have not read all up to `targets` that was acknowledged.
    pub(crate) fn behind(&self, targets: &[u64], lineage: &Lineage) -> usize {
        let truth = lock(&self.truth);
        self.readers.iter().filter(|reader| !reader.ledger().is_level(targets, &truth, lineage)).count()
    }

    /// Up to which number all events of each publisher are acknowledged.
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

impl Figures {
    pub(crate) fn add(&mut self, other: Self) {
        self.wrong += other.wrong;
        self.published += other.published;
        self.delivered += other.delivered;
        self.gaps_expired += other.gaps_expired;
        self.gaps_reset += other.gaps_reset;
        self.most_resets = self.most_resets.max(other.most_resets);
        self.most_resets_by_id = self.most_resets_by_id.max(other.most_resets_by_id);
        self.losses += other.losses;
        self.doubts_ids |= other.doubts_ids;
        self.put_back += other.put_back;
        self.resumes.extend(other.resumes);
        self.outages.extend(other.outages);
        self.largest_wave = self.largest_wave.max(other.largest_wave);
        for (what, n) in other.odd {
            *self.odd.entry(what).or_default() += n;
        }
    }
}

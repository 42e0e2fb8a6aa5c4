//! What publishers, clients and faults share: who there is, and what was counted.

use crate::oracle::{Ledger, Wrong};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// The load, as all see it.
#[derive(Debug)]
pub(crate) struct Load {
    /// Begins every event's id, so that no two runs share one.
    pub(crate) run: String,
    /// Where the hub is.
    address: Mutex<SocketAddr>,
    pub(crate) publisher_token: String,
    /// Events a second of each publisher.
    pub(crate) rate: u32,
    /// The newest number of each publisher: acknowledged, or sent where nobody acknowledges.
    pub(crate) published: Vec<AtomicU64>,
    pub(crate) readers: Vec<std::sync::Arc<Reader>>,
    /// Where the reference's publisher finds its Redis.
    pub(crate) redis_port: AtomicU16,
    /// Attempts to publish that were not acknowledged.
    pub(crate) refused: AtomicU64,
    /// Repeated events that the log did not know again.
    pub(crate) forgotten: AtomicU64,
    pub(crate) ended: AtomicBool,
    figures: Mutex<Figures>,
}

/// One client.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) token: String,
    /// It comes back under the same name.
    pub(crate) keeps_name: bool,
    pub(crate) live: AtomicBool,
    /// It does not read.
    pub(crate) halted: AtomicBool,
    pub(crate) cut: Notify,
    name: Mutex<Option<String>>,
    ledger: Mutex<Ledger>,
}

/// What was counted during one fault.
#[derive(Debug, Default, Clone)]
pub(crate) struct Figures {
    pub(crate) wrong: Wrong,
    pub(crate) published: u64,
    pub(crate) delivered: u64,
    pub(crate) gaps_expired: u64,
    pub(crate) gaps_reset: u64,
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

impl Reader {
    pub(crate) fn new(token: String, keeps_name: bool, ledger: Ledger) -> Self {
        Self {
            token,
            keeps_name,
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
    pub(crate) fn new(run: String, address: SocketAddr, publisher_token: String, rate: u32) -> Self {
        Self {
            run,
            address: Mutex::new(address),
            publisher_token,
            rate,
            published: Vec::new(),
            readers: Vec::new(),
            redis_port: AtomicU16::new(0),
            refused: AtomicU64::new(0),
            forgotten: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            figures: Mutex::default(),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        *lock(&self.address)
    }

    /// Sends everyone elsewhere, from their next connection on.
    pub(crate) fn move_to(&self, address: SocketAddr) {
        *lock(&self.address) = address;
    }

    pub(crate) fn live(&self) -> usize {
        self.readers.iter().filter(|reader| reader.live.load(Ordering::Relaxed)).count()
    }

    pub(crate) fn ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    pub(crate) fn note_taken(&self, publisher: usize, number: u64) {
        self.published[publisher].store(number, Ordering::Relaxed);
        lock(&self.figures).published += 1;
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

    pub(crate) fn note_gap(&self, reset: bool) {
        let mut figures = lock(&self.figures);
        *(if reset { &mut figures.gaps_reset } else { &mut figures.gaps_expired }) += 1;
    }

    pub(crate) fn note_odd(&self, what: &str) {
        *lock(&self.figures).odd.entry(what.to_owned()).or_default() += 1;
    }

    /// Takes what was counted since the last time.
    pub(crate) fn take_figures(&self) -> Figures {
        let mut figures = std::mem::take(&mut *lock(&self.figures));
        let waves = figures.goaways.iter().enumerate().map(|(i, first)| {
            figures.goaways[i..].iter().take_while(|at| at.duration_since(*first) < Duration::from_secs(1)).count()
        });
        figures.largest_wave = waves.max().unwrap_or(0);
        figures.outages.push(figures.longest_wait);
        for reader in &self.readers {
            let mut ledger = reader.ledger();
            figures.wrong += ledger.settle();
            for example in ledger.take_examples() {
                *figures.examples.entry(example).or_default() += 1;
            }
            figures.delivered += std::mem::take(&mut ledger.delivered);
        }
        figures
    }

    /// The clients that have not read all that was acknowledged when `targets` were taken.
    pub(crate) fn behind(&self, targets: &[u64]) -> usize {
        let behind = |reader: &&std::sync::Arc<Reader>| {
            let ledger = reader.ledger();
            ledger.publishers().any(|(publisher, strict)| strict && ledger.newest(publisher) < targets[publisher])
        };
        self.readers.iter().filter(behind).count()
    }

    pub(crate) fn targets(&self) -> Vec<u64> {
        self.published.iter().map(|newest| newest.load(Ordering::Relaxed)).collect()
    }

    /// Counts what those lack who never became level.
    pub(crate) fn give_up(&self, targets: &[u64]) {
        for reader in &self.readers {
            let mut ledger = reader.ledger();
            let publishers: Vec<usize> = ledger.publishers().map(|(publisher, _)| publisher).collect();
            for publisher in publishers {
                ledger.give_up(publisher, targets[publisher]);
            }
        }
    }
}

impl Figures {
    pub(crate) fn add(&mut self, other: Self) {
        self.wrong += other.wrong;
        self.published += other.published;
        self.delivered += other.delivered;
        self.gaps_expired += other.gaps_expired;
        self.gaps_reset += other.gaps_reset;
        self.resumes.extend(other.resumes);
        self.outages.extend(other.outages);
        self.largest_wave = self.largest_wave.max(other.largest_wave);
        for (what, n) in other.odd {
            *self.odd.entry(what).or_default() += n;
        }
    }
}

//! Access keys that are not known yet: they may have been added a moment ago. Knows when their source is to be asked, and not
//! what it is.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

/// How long a request waits for the source.
const PATIENCE: Duration = Duration::from_secs(3);

/// What a verifier knows of the source of its access keys.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    wanted: Notify,
    /// How many times the source was asked.
    begun: AtomicU64,
    /// The last of them that has ended.
    ended: watch::Sender<u64>,
    down: AtomicBool,
}

/// Feeds a verifier with access keys. Made by [`Verifier::with_access_key_source`](super::Verifier::with_access_key_source).
///
/// However many requests show unknown keys, they share a look-up: the caller decides how often it makes one.
#[derive(Debug)]
pub struct AccessKeySource(Arc<Lookups>);

impl Lookups {
    /// Waits until the source was asked: not before now, or the key may have been added meanwhile.
    pub(super) async fn ask(&self) {
        if self.is_down() {
            // The next look-up that succeeds tells.
            return;
        }
        let (next, mut ended) = (self.begun.load(Ordering::SeqCst) + 1, self.ended.subscribe());
        self.wanted.notify_one();
        // Where it takes long, the keys at hand decide.
        let _ = timeout(PATIENCE, ended.wait_for(|ended| *ended >= next)).await;
    }

    pub(super) fn ask_soon(&self) {
        self.wanted.notify_one();
    }

    /// Whether the source could not be asked the last time.
    pub(super) fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }
}

impl AccessKeySource {
    pub(super) fn new(lookups: Arc<Lookups>) -> Self {
        Self(lookups)
    }

    /// Waits until a request shows a key that is not known.
    pub async fn wanted(&self) {
        self.0.wanted.notified().await;
    }

    /// Notes that the source is asked now. Returns what [`end`](Self::end) is told.
    pub fn begin(&self) -> u64 {
        self.0.begun.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Answers the requests that waited before a look-up began. `reached`: the source could be asked, and
    /// [`Verifier::replace_access_keys`](super::Verifier::replace_access_keys) has what it has.
    pub fn end(&self, begun: u64, reached: bool) {
        self.0.down.store(!reached, Ordering::Relaxed);
        self.0.ended.send_replace(begun);
    }
}

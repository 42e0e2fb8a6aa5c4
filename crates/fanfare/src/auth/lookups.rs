//! Look-ups of unknown access keys, which may have been added a moment ago. Knows when the source is to be queried, and
//! not what it is.

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
const WAIT: Duration = Duration::from_secs(3);

/// The state of a verifier's source of access keys.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    wanted: Notify,
    /// Number of look-ups that have begun.
    begun: AtomicU64,
    /// Number of the last look-up that has ended.
    ended: watch::Sender<u64>,
    down: AtomicBool,
}

/// Feeds a verifier with access keys. Created by
/// [`Verifier::with_access_key_source`](super::Verifier::with_access_key_source).
///
/// All requests with unknown keys share a look-up: the caller decides how often it makes one.
#[derive(Debug)]
pub struct AccessKeySource(Arc<Lookups>);

impl Lookups {
    /// Waits for a look-up that begins after this call. An earlier one may have missed a key that was added since.
    pub(super) async fn ask(&self) {
        if self.is_down() {
            // The next successful look-up clears the flag.
            return;
        }
        let (next, mut ended) = (self.begun.load(Ordering::SeqCst) + 1, self.ended.subscribe());
        self.wanted.notify_one();
        // After a timeout the known keys decide.
        let _ = timeout(WAIT, ended.wait_for(|ended| *ended >= next)).await;
    }

    pub(super) fn ask_soon(&self) {
        self.wanted.notify_one();
    }

    /// Whether the last look-up failed.
    pub(super) fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }
}

impl AccessKeySource {
    pub(super) fn new(lookups: Arc<Lookups>) -> Self {
        Self(lookups)
    }

    /// Waits until a request presents an unknown key.
    pub async fn wanted(&self) {
        self.0.wanted.notified().await;
    }

    /// Records the start of a look-up. Returns the number to pass to [`end`](Self::end).
    pub fn begin(&self) -> u64 {
        self.0.begun.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Records the end of a look-up, and wakes the requests that waited since before it began. `reached` is true if the
    /// source was available. Call [`Verifier::replace_access_keys`](super::Verifier::replace_access_keys) with the
    /// result first.
    pub fn end(&self, begun: u64, reached: bool) {
        self.0.down.store(!reached, Ordering::Relaxed);
        self.0.ended.send_replace(begun);
    }
}

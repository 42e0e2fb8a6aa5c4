//! Verification keys from an external source that change over time, such as the JWKS of an identity provider. Knows
//! when keys are wanted, and not how they are fetched.

use super::Keys;
use arc_swap::ArcSwap;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

/// How long a request with an unknown key waits for the keys to be fetched again.
const WAIT: Duration = Duration::from_secs(3);

/// The state of a verifier's source of keys.
#[derive(Debug, Default)]
pub(super) struct Source {
    wanted: Notify,
    /// Number of attempts to fetch, successful or not.
    attempts: watch::Sender<u64>,
    down: AtomicBool,
}

/// Feeds a verifier with keys. Created by [`Verifier::with_source`](super::Verifier::with_source).
#[derive(Debug)]
pub struct KeySource {
    source: Arc<Source>,
    keys: Arc<ArcSwap<Keys>>,
    /// The verifier's own keys, which never change.
    own: Arc<Keys>,
}

impl Source {
    /// Waits for the next attempt to fetch the keys.
    pub(super) async fn refresh(&self) {
        let mut attempts = self.attempts.subscribe();
        attempts.mark_unchanged();
        self.wanted.notify_one();
        // After a timeout the known keys decide.
        let _ = timeout(WAIT, attempts.changed()).await;
    }

    /// Whether the last attempt failed.
    pub(super) fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }
}

impl KeySource {
    pub(super) fn new(source: Arc<Source>, keys: Arc<ArcSwap<Keys>>) -> Self {
        let own = keys.load_full();
        Self { source, keys, own }
    }

    /// Waits until a request presents a token with an unknown key. The caller then calls [`renew`](Self::renew),
    /// [`fail`](Self::fail) or [`keep`](Self::keep), which wakes the waiting requests.
    pub async fn wanted(&self) {
        self.source.wanted.notified().await;
    }

    /// Replaces the keys of the source after a successful fetch.
    pub fn renew(&self, keys: Keys) {
        self.keys.store(Arc::new(Keys::clone(&self.own).and(keys)));
        self.source.down.store(false, Ordering::Relaxed);
        self.keep();
    }

    /// Records a failed fetch. The previous keys of the source remain in use.
    pub fn fail(&self) {
        self.source.down.store(true, Ordering::Relaxed);
        self.keep();
    }

    /// Wakes the waiting requests without a fetch, because the last one was a moment ago.
    pub fn keep(&self) {
        self.source.attempts.send_modify(|attempts| *attempts += 1);
    }
}

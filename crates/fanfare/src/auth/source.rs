//! Keys that come from elsewhere and change: a JWKS that an identity provider serves. Knows when they are wanted, and
//! not how they are fetched.

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

/// How long somebody whose key is not known waits for the keys to be fetched anew.
const PATIENCE: Duration = Duration::from_secs(3);

/// What a verifier knows of the source of its keys.
#[derive(Debug, Default)]
pub(super) struct Source {
    wanted: Notify,
    /// Changes with each attempt to fetch, whatever came of it.
    attempts: watch::Sender<u64>,
    down: AtomicBool,
}

/// Feeds a verifier with keys. Made by [`Verifier::with_source`](super::Verifier::with_source).
#[derive(Debug)]
pub struct KeySource {
    source: Arc<Source>,
    keys: Arc<ArcSwap<Keys>>,
    /// Those that the verifier had before.
    own: Arc<Keys>,
}

impl Source {
    /// Waits until there was an attempt to fetch the keys.
    pub(super) async fn refresh(&self) {
        let mut attempts = self.attempts.subscribe();
        attempts.mark_unchanged();
        self.wanted.notify_one();
        // Where it takes long, the keys at hand decide.
        let _ = timeout(PATIENCE, attempts.changed()).await;
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

    /// Waits until somebody shows a token whose key is not known. Who asks is answered by [`renew`](Self::renew),
    /// [`fail`](Self::fail) or [`keep`](Self::keep).
    pub async fn wanted(&self) {
        self.source.wanted.notified().await;
    }

    /// Replaces what came from the source before.
    pub fn renew(&self, keys: Keys) {
        self.keys.store(Arc::new(Keys::clone(&self.own).and(keys)));
        self.source.down.store(false, Ordering::Relaxed);
        self.keep();
    }

    /// The source could not be asked. The keys that came from it before stay.
    pub fn fail(&self) {
        self.source.down.store(true, Ordering::Relaxed);
        self.keep();
    }

    /// The source was not asked: it was a moment ago.
    pub fn keep(&self) {
        self.source.attempts.send_modify(|attempts| *attempts += 1);
    }
}

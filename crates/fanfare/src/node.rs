//! What the parts of one node share: the window, the counters, the limits, and the shards' inboxes.
//!
//! Every lock here is held for the time of a look-up or a push, never across a system call.

use crate::{
    admission::Admission,
    auth::{AuthError, Verifier},
    broker::{Broker, Order, SharedWindow, Tail},
    clock,
    config::Config,
    identity::Names,
    metrics::{Counter, Metrics},
    shard::{Command, ShardHandle},
};
use fanfare_core::{CloseCode, ConnectionId, Grant, session::Denied};
use std::sync::{
    Arc, OnceLock, Weak,
    atomic::{AtomicBool, Ordering},
};

/// What the parts of one node share.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) verifier: Verifier,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) admission: Admission,
    pub(crate) names: Names,
    pub(crate) window: SharedWindow,
    pub(crate) shards: OnceLock<Vec<Arc<ShardHandle>>>,
    /// Held by the hub, whose node this is.
    pub(crate) broker: OnceLock<Weak<dyn Broker>>,
    pub(crate) ready: AtomicBool,
}

impl Tail for Node {
    fn window(&self) -> &SharedWindow {
        &self.window
    }

    fn wake(&self) {
        for shard in self.shards() {
            shard.wake();
        }
    }

    fn obey(&self, order: Order) {
        match order {
            Order::Disconnect { connection, reason } => {
                if let Some(shard) = self.shard_of(connection) {
                    shard.send(Command::Close(connection, CloseCode::Disconnected, reason));
                }
            }
            Order::DisconnectUser { user, reason } => {
                for shard in self.shards() {
                    shard.send(Command::CloseUser(user.clone(), CloseCode::Disconnected, reason.clone()));
                }
            }
        }
    }

    fn connections(&self) -> usize {
        self.shards().iter().map(|shard| shard.open.load(Ordering::Relaxed)).sum()
    }
}

impl Node {
    pub(crate) fn shards(&self) -> &[Arc<ShardHandle>] {
        self.shards.get().map_or(&[], Vec::as_slice)
    }

    /// The shard of a connection. A client that comes back finds its lingering older socket on the same one.
    pub(crate) fn shard_of(&self, connection: ConnectionId) -> Option<&Arc<ShardHandle>> {
        let shards = self.shards();
        let at = connection.halves()[0] % shards.len().max(1) as u64;
        shards.get(usize::try_from(at).unwrap_or(0))
    }

    /// Verifies a token, and counts it if it is refused.
    pub(crate) fn verify(&self, token: Option<&str>) -> Result<Grant, AuthError> {
        let unix_secs = clock::now().unix_ms / 1_000;
        let result = token.ok_or(AuthError::Missing).and_then(|token| self.verifier.verify(token, unix_secs));
        if let Err(error) = &result {
            self.metrics.add(auth_counter(error), 1);
        }
        result
    }

    /// Verifies a token that a connected client shows.
    pub(crate) fn verify_in_band(&self, token: &str) -> Result<Grant, Denied> {
        self.verify(Some(token)).map_err(|error| Denied { code: error.code(), message: error.to_string() })
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
        "forbidden" => Counter::AuthForbidden,
        _ => Counter::AuthInvalid,
    }
}

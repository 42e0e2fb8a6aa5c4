//! What the parts of one node share: the window, the counters, the limits, and the shards' inboxes.
//!
//! Every lock here is held for the time of a look-up or a push, never across a system call.

use crate::{
    admission::{Admission, Refusal},
    auth::{AuthError, Verifier},
    broker::{Answer, Broker, BrokerError, Order, SharedWindow, Tail},
    clock,
    config::Config,
    identity::Names,
    metrics::{Counter, Figures, Metrics},
    registry::{Present, Registry},
    shard::{Command, ShardHandle},
};
use fanfare_core::{CloseCode, ConnectionId, Grant, Revocation, Revocations, session::Denied};
use std::sync::{
    Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, Weak,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::oneshot;

/// What the parts of one node share.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) verifier: Verifier,
    pub(crate) revocations: RwLock<Revocations>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) admission: Admission,
    pub(crate) names: Names,
    /// What other nodes call this one.
    pub(crate) name: Arc<str>,
    pub(crate) window: SharedWindow,
    pub(crate) shards: OnceLock<Vec<Arc<ShardHandle>>>,
    /// Both held by the hub, whose node this is.
    pub(crate) broker: OnceLock<Weak<dyn Broker>>,
    pub(crate) registry: OnceLock<Weak<dyn Registry>>,
    pub(crate) ready: AtomicBool,
    /// The application's.
    pub(crate) figures: Vec<Arc<dyn Figures>>,
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
            Order::Surplus { connection } => {
                if let Some(shard) = self.shard_of(connection) {
                    self.metrics.add(Counter::LimitPerUser, 1);
                    let reason = Refusal::PerUser.to_string();
                    shard.send(Command::Close(connection, CloseCode::TryAgainLater, reason));
                }
            }
            Order::Replaced { connection, before_ms } => {
                if let Some(shard) = self.shard_of(connection) {
                    shard.send(Command::LetGo(connection, before_ms));
                }
            }
            Order::Revoke(revocation) => {
                let news = self.revocations.write().unwrap_or_else(PoisonError::into_inner).add(revocation.clone());
                // After that, so that whoever is let in meanwhile is looked at by either.
                for shard in self.shards().iter().filter(|_| news) {
                    shard.send(Command::Revoke(revocation.clone()));
                }
            }
            Order::DisconnectUser { user, reason } => {
                for shard in self.shards() {
                    shard.send(Command::CloseUser(user.clone(), CloseCode::Disconnected, reason.clone()));
                }
            }
        }
    }

    fn revocations(&self) -> Vec<Revocation> {
        self.revoked().iter().collect()
    }

    fn clients(&self, of_user: Option<&str>) -> Answer<'_, Vec<Present>> {
        let user: Option<Arc<str>> = of_user.map(Arc::from);
        Box::pin(async move {
            let mut all = Vec::new();
            for shard in self.shards() {
                let (reply, answer) = oneshot::channel();
                shard.send(Command::List(user.clone(), reply));
                // A shard that has ended has nobody.
                all.extend(answer.await.unwrap_or_default());
            }
            Ok::<_, BrokerError>(all)
        })
    }

    fn connections(&self) -> usize {
        self.shards().iter().map(|shard| shard.open.load(Ordering::Relaxed)).sum()
    }
}

impl Node {
    /// Who keeps the list of who is connected, while there is one.
    pub(crate) fn registry(&self) -> Option<Arc<dyn Registry>> {
        self.registry.get().and_then(Weak::upgrade)
    }

    pub(crate) fn shards(&self) -> &[Arc<ShardHandle>] {
        self.shards.get().map_or(&[], Vec::as_slice)
    }

    /// The shard of a connection. A client that comes back finds its lingering older socket on the same one.
    pub(crate) fn shard_of(&self, connection: ConnectionId) -> Option<&Arc<ShardHandle>> {
        let shards = self.shards();
        let at = connection.halves()[0] % shards.len().max(1) as u64;
        shards.get(usize::try_from(at).unwrap_or(0))
    }

    /// The tokens that are no longer believed.
    pub(crate) fn revoked(&self) -> RwLockReadGuard<'_, Revocations> {
        self.revocations.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_revoked(&self, grant: &Grant) -> bool {
        self.revoked().concern(grant)
    }

    /// What a token allows, which may have to wait until a key was fetched.
    pub(crate) async fn authenticate(&self, token: Option<&str>) -> Result<Grant, AuthError> {
        let token = token.filter(|token| !token.is_empty()).ok_or(AuthError::Missing)?;
        self.believe(self.verifier.verify_or_refresh(token, clock::now().unix_ms / 1_000).await)
    }

    fn believe(&self, result: Result<Grant, AuthError>) -> Result<Grant, AuthError> {
        result.and_then(|grant| if self.is_revoked(&grant) { Err(AuthError::Revoked) } else { Ok(grant) })
    }

    /// Verifies a token that a connected client shows, and counts it if it is refused.
    pub(crate) fn verify_in_band(&self, token: &str) -> Result<Grant, Denied> {
        let result = self.believe(self.verifier.verify(token, clock::now().unix_ms / 1_000));
        result.map_err(|error| {
            self.metrics.add(auth_counter(&error), 1);
            Denied { code: error.code(), message: error.to_string() }
        })
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
        "token_revoked" => Counter::AuthRevoked,
        "keys_unavailable" => Counter::AuthUnavailable,
        "forbidden" => Counter::AuthForbidden,
        _ => Counter::AuthInvalid,
    }
}

//! Applies changes in the database to the hub within a second: access keys and revocations.

use super::Store;
use fanfare::{
    BrokerError, Hub, Revocation, RevocationStore,
    auth::{AccessKey, AccessKeySource, AccessKeys},
    broker::BrokerFuture,
};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

/// The polling interval of the database.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// How soon after a poll an unknown access key may cause another one. Invented keys can arrive at any rate.
const MIN_POLL_PAUSE: Duration = Duration::from_millis(50);

/// The interval at which expired rows are deleted.
const PURGE_INTERVAL: Duration = Duration::from_secs(600);

/// Applies the current content of the database, and then polls for changes in the background. Every node does this.
/// Revocations also reach nodes with other databases, through the log.
pub(crate) async fn follow(store: Arc<Store>, hub: Hub, unknown: AccessKeySource) {
    let mut follower = Follower { store, hub, unknown, revision: 0, down: false };
    follower.poll().await;
    tokio::spawn(async move { follower.run().await });
}

struct Follower {
    store: Arc<Store>,
    hub: Hub,
    /// Requests for access keys that are unknown, because they may have been created since the last poll.
    unknown: AccessKeySource,
    /// The revision that was applied last.
    revision: u64,
    down: bool,
}

impl Follower {
    async fn run(&mut self) {
        let (mut ticks, mut purged) = (interval(POLL_INTERVAL), Instant::now());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut polled = Instant::now();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.unknown.wanted() => sleep_until(polled + MIN_POLL_PAUSE).await,
            }
            self.poll().await;
            polled = Instant::now();
            if purged.elapsed() >= PURGE_INTERVAL {
                // After an error the rows remain until the next time.
                let _ = self.store.purge(crate::util::unix_secs().saturating_mul(1_000)).await;
                purged = Instant::now();
            }
        }
    }

    async fn poll(&mut self) {
        let begun = self.unknown.begin();
        let applied = self.apply().await;
        self.unknown.end(begun, applied.is_ok());
        match applied {
            Ok(()) => {
                if std::mem::take(&mut self.down) {
                    tracing::info!("the accounts database is available again");
                }
            }
            Err(error) => {
                // Logged once, because an outage may last.
                if !std::mem::replace(&mut self.down, true) {
                    tracing::error!("failed to read changes from the accounts database: {error:#}");
                }
            }
        }
    }

    async fn apply(&mut self) -> anyhow::Result<()> {
        let revision = self.store.revision().await?;
        if revision == self.revision {
            return Ok(());
        }
        let keys = self.store.keys().await?.into_iter().map(|key| AccessKey {
            digest: key.digest,
            name: key.name,
            publish: true,
            admin: key.admin,
            created_at: key.created_at,
        });
        self.hub.verifier().replace_access_keys(keys.collect::<AccessKeys>());
        for revocation in self.store.revocations().await? {
            self.hub.revoke(revocation).await?;
        }
        self.revision = revision;
        Ok(())
    }
}

/// Stores the revocations that a hub receives in the accounts database.
impl RevocationStore for Store {
    fn keep<'a>(&'a self, revocation: &'a Revocation) -> BrokerFuture<'a, ()> {
        Box::pin(async move {
            let kept = self.revoke(revocation).await;
            kept.map_err(|error| BrokerError::NotKept(error.to_string()))
        })
    }
}

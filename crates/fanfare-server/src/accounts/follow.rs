//! What is changed in the database reaches the hub within a second: access keys, and tokens that are no longer believed.

use super::Store;
use fanfare::{
    BrokerError, Hub, Revocation, RevocationStore,
    auth::{AccessKey, AccessKeySource, AccessKeys},
    broker::BrokerFuture,
};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

/// How often the database is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How long after a look an unknown access key may cause another one: keys are made up faster than that.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How often what has ended is thrown away.
const SWEEP: Duration = Duration::from_secs(600);

/// Takes over what is in the database now, and goes on doing so in the background. Each node does; that all nodes hear of
/// a revocation that only some of their databases have is the log's business.
pub(crate) async fn follow(store: Arc<Store>, hub: Hub, unknown: AccessKeySource) {
    let mut follower = Follower { store, hub, unknown, revision: 0, down: false };
    follower.look().await;
    tokio::spawn(async move { follower.run().await });
}

struct Follower {
    store: Arc<Store>,
    hub: Hub,
    /// Access keys that were shown and are not known: they may be a moment old.
    unknown: AccessKeySource,
    /// The one that was taken over.
    revision: u64,
    down: bool,
}

impl Follower {
    async fn run(&mut self) {
        let (mut looks, mut swept) = (interval(LOOK), Instant::now());
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked = Instant::now();
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                () = self.unknown.wanted() => sleep_until(looked + LOOK_AGAIN).await,
            }
            self.look().await;
            looked = Instant::now();
            if swept.elapsed() >= SWEEP {
                // What is left lying does no harm until the next time.
                let _ = self.store.sweep(crate::commands::access::unix_secs().saturating_mul(1_000)).await;
                swept = Instant::now();
            }
        }
    }

    async fn look(&mut self) {
        let begun = self.unknown.begin();
        let taken = self.take_over().await;
        self.unknown.end(begun, taken.is_ok());
        match taken {
            Ok(()) => {
                if std::mem::take(&mut self.down) {
                    tracing::info!("the accounts' database answers again");
                }
            }
            Err(error) => {
                // Once is enough: it may go on for a while.
                if !std::mem::replace(&mut self.down, true) {
                    tracing::error!("what is changed in the accounts is not heard of: {error:#}");
                }
            }
        }
    }

    async fn take_over(&mut self) -> anyhow::Result<()> {
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

/// Revocations that a hub receives are also stored in the accounts' database.
impl RevocationStore for Store {
    fn keep<'a>(&'a self, revocation: &'a Revocation) -> BrokerFuture<'a, ()> {
        Box::pin(async move {
            let kept = self.revoke(revocation).await;
            kept.map_err(|error| BrokerError::NotKept(error.to_string()))
        })
    }
}

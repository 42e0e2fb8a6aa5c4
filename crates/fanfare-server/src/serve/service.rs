//! What a service manager is told (sd_notify(3)): that the hub serves, that it ends, and every so often that it is alive.
//! Without one, nothing happens. Workers say nothing: their supervisor does.

use sd_notify::NotifyState;
use tokio::time::sleep;

/// The hub serves.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The hub sees its clients off.
pub(super) fn ending() {
    tell(&[NotifyState::Stopping]);
}

/// Says that this process is alive for as long as its event loop goes round, where a watchdog asks for it.
pub(super) fn keep_alive() {
    let Some(patience) = sd_notify::watchdog_enabled() else { return };
    tokio::spawn(async move {
        loop {
            tell(&[NotifyState::Watchdog]);
            // sd_watchdog_enabled(3) recommends half of what is allowed.
            sleep(patience / 2).await;
        }
    });
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager can't be told");
    }
}

//! What a service manager is told (sd_notify(3)): that the hub serves, that it ends, and every so often that it is alive.
//! Without one, nothing happens. Workers say nothing: their supervisor does.

use sd_notify::NotifyState;
use std::{
    sync::{
        LazyLock,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    thread,
    time::Duration,
};
use tokio::time::sleep;

/// How long the hub waits until the service manager's socket takes that it serves or ends.
const PATIENCE: Duration = Duration::from_secs(1);

/// A state, and who waits until it is told.
type Told = (NotifyState<'static>, SyncSender<()>);

/// A thread of its own tells: the socket of a service manager that does not read blocks its sender.
static TELLER: LazyLock<Option<Sender<Told>>> = LazyLock::new(|| {
    let (sender, states) = channel();
    let thread = thread::Builder::new().name("sd-notify".to_owned()).spawn(move || tell_all(&states));
    thread.is_ok().then_some(sender)
});

/// A sign of life waits to be told. Another one would say no more, and only states may wait beside it.
static ALIVE: AtomicBool = AtomicBool::new(false);

/// The hub serves.
pub(super) fn ready() {
    tell(NotifyState::Ready, PATIENCE);
}

/// The hub sees its clients off.
pub(super) fn ending() {
    tell(NotifyState::Stopping, PATIENCE);
}

/// Says that this process is alive for as long as its event loop goes round, where a watchdog asks for it.
pub(super) fn keep_alive() {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    tokio::spawn(async move {
        loop {
            if !ALIVE.swap(true, Ordering::Relaxed) {
                tell(NotifyState::Watchdog, Duration::ZERO);
            }
            // sd_watchdog_enabled(3) recommends half of what is allowed.
            sleep(period / 2).await;
        }
    });
}

fn tell(state: NotifyState<'static>, period: Duration) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let (done, told) = sync_channel(1);
    if TELLER.as_ref().is_some_and(|teller| teller.send((state, done)).is_ok()) && !period.is_zero() {
        // Where nobody reads, it is told once somebody does.
        let _ = told.recv_timeout(period);
    }
}

fn tell_all(states: &Receiver<Told>) {
    for (state, done) in states {
        let is_alive = matches!(state, NotifyState::Watchdog);
        if let Err(error) = sd_notify::notify(&[state]) {
            tracing::warn!(%error, "the service manager can't be told");
        }
        if is_alive {
            ALIVE.store(false, Ordering::Relaxed);
        }
        let _ = done.try_send(());
    }
}

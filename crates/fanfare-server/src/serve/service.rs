//! Notifies the service manager (sd_notify(3)) when the hub is ready, when it stops, and periodically that it is alive.
//! Without a service manager nothing is sent. Workers send nothing; their supervisor does.

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

/// How long the hub waits for the service manager to accept a change of state.
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(1);

/// A state, and a channel that reports that it was sent.
type Notification = (NotifyState<'static>, SyncSender<()>);

/// Notifications are sent by their own thread, because a send blocks while the service manager does not read.
static NOTIFIER: LazyLock<Option<Sender<Notification>>> = LazyLock::new(|| {
    let (sender, states) = channel();
    let thread = thread::Builder::new().name("sd-notify".to_owned()).spawn(move || send_all(&states));
    thread.is_ok().then_some(sender)
});

/// Whether a watchdog notification is queued. Another one is then left out, so that the queue stays short.
static WATCHDOG_QUEUED: AtomicBool = AtomicBool::new(false);

/// The hub accepts clients.
pub(super) fn ready() {
    notify(NotifyState::Ready, NOTIFY_TIMEOUT);
}

/// The hub drains its clients.
pub(super) fn stopping() {
    notify(NotifyState::Stopping, NOTIFY_TIMEOUT);
}

/// Sends watchdog notifications as long as the event loop runs, if the service manager requests them.
pub(super) fn keep_alive() {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    tokio::spawn(async move {
        loop {
            if !WATCHDOG_QUEUED.swap(true, Ordering::Relaxed) {
                notify(NotifyState::Watchdog, Duration::ZERO);
            }
            // sd_watchdog_enabled(3) recommends half of the interval.
            sleep(period / 2).await;
        }
    });
}

fn notify(state: NotifyState<'static>, wait: Duration) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let (done, sent) = sync_channel(1);
    if NOTIFIER.as_ref().is_some_and(|notifier| notifier.send((state, done)).is_ok()) && !wait.is_zero() {
        // If nothing reads the socket, the thread sends it later.
        let _ = sent.recv_timeout(wait);
    }
}

fn send_all(states: &Receiver<Notification>) {
    for (state, done) in states {
        let is_watchdog = matches!(state, NotifyState::Watchdog);
        if let Err(error) = sd_notify::notify(&[state]) {
            tracing::warn!(%error, "failed to notify the service manager");
        }
        if is_watchdog {
            WATCHDOG_QUEUED.store(false, Ordering::Relaxed);
        }
        let _ = done.try_send(());
    }
}

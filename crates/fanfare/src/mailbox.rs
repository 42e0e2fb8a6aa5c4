//! How other threads reach a shard: its handle, the commands that it executes, and what it reports. Knows neither the
//! shard's loop nor the node.

use crate::{
    admission::ExceededLimit,
    presence::ConnectionInfo,
    socket::Socket,
    status::{ClientLag, SlowClient},
    why::{ClientAndEvent, ClientDetails},
};
use fanfare_core::{CloseCode, ConnectionId, Revocation, session::ConnectRequest, time::Now, window::Entry};
use mio::Waker;
use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};
use tokio::sync::oneshot;

/// The handle through which other threads reach a shard.
#[derive(Debug)]
pub(crate) struct ShardHandle {
    /// `None` once the shard has ended. Commands are then dropped, and with them their reply channels, so that no
    /// sender waits.
    inbox: Mutex<Option<Vec<Command>>>,
    waker: Waker,
    /// Whether a wake-up is pending.
    awake: AtomicBool,
    pub(crate) open: AtomicUsize,
    pub(crate) overdue: AtomicUsize,
    /// Clients that the next wave can disconnect.
    pub(crate) leaving: AtomicUsize,
    /// Total busy time, in microseconds.
    pub(crate) busy_us: AtomicU64,
    /// Clients that are subscribed to the topic `$sys`.
    pub(crate) watchers: AtomicUsize,
}

impl ShardHandle {
    /// Creates the handle of a shard that `waker` wakes.
    pub(crate) fn new(waker: Waker) -> Self {
        Self {
            inbox: Mutex::new(Some(Vec::new())),
            waker,
            awake: AtomicBool::new(false),
            open: AtomicUsize::new(0),
            overdue: AtomicUsize::new(0),
            leaving: AtomicUsize::new(0),
            busy_us: AtomicU64::new(0),
            watchers: AtomicUsize::new(0),
        }
    }

    /// Sends a command to the shard.
    pub(crate) fn send(&self, command: Command) {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(inbox) = &mut *inbox else { return };
        inbox.push(command);
        self.wake();
    }

    /// Wakes the shard, so that it reads the window and its inbox.
    pub(crate) fn wake(&self) {
        if !self.awake.swap(true, Ordering::SeqCst) {
            // Waking fails only if the shard has ended.
            let _ = self.waker.wake();
        }
    }

    /// Clears the pending wake-up. The shard calls it before it reads the window and its inbox, so that a later wake-up
    /// is not lost.
    pub(crate) fn clear_wake_up(&self) {
        self.awake.store(false, Ordering::SeqCst);
    }

    /// The commands that have arrived since the last call.
    pub(crate) fn take_commands(&self) -> Vec<Command> {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Closes the inbox: the shard has ended.
    pub(crate) fn close(&self) {
        *self.inbox.lock().unwrap_or_else(PoisonError::into_inner) = None;
        for count in [&self.open, &self.overdue, &self.leaving, &self.watchers] {
            count.store(0, Ordering::Relaxed);
        }
    }
}

/// The delivery of one event to the clients of a shard.
#[derive(Debug, Default)]
pub(crate) struct DeliverySummary {
    pub(crate) connected: usize,
    pub(crate) matched: usize,
    pub(crate) waiting: usize,
    pub(crate) came_later: usize,
    pub(crate) of_user: Vec<ClientAndEvent>,
}

/// A command to a shard.
#[derive(Debug)]
pub(crate) enum Command {
    /// Take over a new client's socket.
    Register(Box<NewConnection>),
    /// Close a connection.
    Close(ConnectionId, CloseCode, String),
    /// Close the connection if it is the one that was opened at `came_ms`: another node has a connection of the same
    /// ID. `sure`: the other connection is known to be newer.
    CloseIfOlder { connection: ConnectionId, came_ms: u64, sure: bool },
    /// Reply with the lag of the shard's clients.
    MeasureLag(oneshot::Sender<ClientLag>),
    /// Send the status of all nodes to the subscribers of `$sys`.
    SendStatus(Arc<str>),
    /// Reply with the clients that lag most.
    Slowest(oneshot::Sender<Vec<SlowClient>>),
    /// Reply with the delivery of an event, and its state for each connection of a user.
    Trace(Arc<Entry>, Option<Arc<str>>, oneshot::Sender<DeliverySummary>),
    /// Reply with the details of a client.
    Inspect(ConnectionId, oneshot::Sender<Option<ClientDetails>>),
    /// Reply with all connections, or those of one user.
    List(Option<Arc<str>>, oneshot::Sender<Vec<ConnectionInfo>>),
    /// Reply with the connections in up to `count` slots from a slot on, and the first slot after them, if any.
    ListFrom(usize, usize, oneshot::Sender<(Vec<ConnectionInfo>, Option<usize>)>),
    /// Close the connections whose tokens were revoked.
    Revoke(Revocation),
    /// Close every connection of a user.
    CloseUser(Arc<str>, CloseCode, String),
    /// Reject new connections, and end once all clients have disconnected, or at `until_ms`.
    Drain { reason: String, until_ms: u64 },
    /// Disconnect up to this many clients. Replaces the unused rest of the previous wave.
    DrainWave(usize),
}

/// An upgraded socket on its way to its shard.
#[derive(Debug)]
pub(crate) struct NewConnection {
    pub(crate) socket: Socket,
    /// Bytes that were read beyond the handshake.
    pub(crate) leftover: Vec<u8>,
    pub(crate) address: IpAddr,
    /// When its request was read. Of two sockets of one connection the one with the later request is kept, regardless
    /// of which handshake finished first.
    pub(crate) came: RequestTime,
    pub(crate) client: Result<ConnectRequest, Rejection>,
}

/// When a request was read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestTime {
    pub(crate) at: Now,
    /// Consecutive, for those of the same millisecond. Wraps.
    pub(crate) number: u32,
}

impl RequestTime {
    pub(crate) fn is_before(self, at: Now, number: u32) -> bool {
        let (own, other) = (self.at.mono_ms, at.mono_ms);
        own < other || own == other && number.wrapping_sub(self.number).cast_signed() > 0
    }
}

/// The reason why a client is rejected after its upgrade. Browsers show a page nothing else than a close code and a
/// reason.
#[derive(Debug)]
pub(crate) struct Rejection {
    pub(crate) code: CloseCode,
    pub(crate) reason: String,
}

impl From<ExceededLimit> for Rejection {
    fn from(limit: ExceededLimit) -> Self {
        Self { code: CloseCode::TryAgainLater, reason: limit.to_string() }
    }
}

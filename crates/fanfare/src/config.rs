//! The limits and intervals of a hub, as plain values. The application decides where they come from.

use crate::origin::{Origins, Proxies};
use axum::http::HeaderName;
use std::time::Duration;

/// Bounds of the number of held sockets. In between it is a share of `max_connections`.
const MIN_HELD: usize = 16;
const MAX_HELD: usize = 256;
/// Maximum number of held sockets of one network.
const MAX_HELD_OF_NETWORK: usize = 64;

/// The limits and intervals of a hub. Every limit has a safe default; 0 means no limit where the field says so.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Threads that own connections. 0: one for every two cores.
    pub shards: usize,
    /// Interval between the `ping`s that each connection is sent.
    pub heartbeat_interval: Duration,
    /// A client from which no frame arrives for this long is closed. Any frame counts.
    pub heartbeat_timeout: Duration,
    /// Time limit for a client to send a request's body, to upgrade, or to answer a close frame. A body may take a
    /// second more for each KiB.
    pub handshake_timeout: Duration,
    /// The largest frame that a client may send, in bytes of payload.
    pub max_frame_bytes: usize,
    /// The largest message that a client may send, over all its frames, in bytes.
    pub max_message_bytes: usize,
    /// Frames a second that one client may send; twice as many in a burst. 0: no limit.
    pub max_messages_per_second: u32,
    /// Connections in total. 0: no limit.
    pub max_connections: usize,
    /// Connections of one user. Administrators are not limited. 0: no limit.
    pub max_connections_per_user: usize,
    /// Connections from one address. 0: no limit.
    pub max_connections_per_address: usize,
    /// New connections a second from one address; twice as many in a burst. 0: no limit.
    pub connects_per_second_per_address: u32,
    /// New connections a second of one user; twice as many in a burst. Administrators are not limited. 0: no limit.
    pub connects_per_second_per_user: u32,
    /// Events a second that the user of a token or an access key may publish over HTTP; twice as many in a burst. 0: no
    /// limit.
    pub publishes_per_second: u32,
    /// Bytes of events a second that are replayed after a `gap`, to one user and to one address. A client beyond the
    /// limit receives only the `gap` and continues with live events. 0: no limit.
    pub gap_replay_bytes_per_second: u32,
    /// Upper bound of the delay before the close frame of a client that is rejected repeatedly. The first rejection is
    /// sent immediately; the delay of each further one doubles up to this value. 0: no delay.
    pub refusal_delay: Duration,
    /// Time between `auth_expiring` and the expiry of a client's token. Half of the remaining lifetime is used if that
    /// is less.
    pub token_warning: Duration,
    /// Topics that one connection may subscribe to.
    pub max_topics_per_connection: usize,
    /// The largest event that may be published, in bytes of JSON.
    pub max_event_bytes: usize,
    /// The largest number of events in one batch.
    pub max_batch_events: usize,
    /// Reject events whose fields do not have the documented types
    /// ([`Draft::validate`](fanfare_core::Draft::validate)).
    pub validate_events: bool,
    /// Accept requests without a token at three endpoints of the FastAPI hub, and bodies that only that hub accepts:
    /// `POST /tasks/{task_id}/update`, `/users/{user_id}/notify` and `/agents/{agent_id}/activity`.
    pub compat: bool,
    /// Origins whose pages may connect, besides the hub's own.
    pub allowed_origins: Origins,
    /// Further request headers that pages of `allowed_origins` may send (CORS).
    pub cors_headers: Vec<HeaderName>,
    /// Whether pages of `allowed_origins` may send cookies and other credentials (CORS). Not allowed if
    /// `allowed_origins` is every origin.
    pub cors_credentials: bool,
    /// Reverse proxies in front of the hub. The hub trusts the client address and the host that they report
    /// (`X-Forwarded-For`, `X-Forwarded-Host`).
    pub trusted_proxies: Proxies,
    /// Clients a second that are disconnected during a drain. 0: all at once.
    pub drain_rate: u32,
    /// Number of events that the window retains.
    pub window_events: usize,
    /// Bytes of events that the window retains.
    pub window_bytes: usize,
    /// Age up to which the window retains an event.
    pub window_age: Duration,
    /// Time for which a republished event is recognised by its `event_id` and not appended again, even if the log has
    /// evicted it. If `window_age` is larger, `window_age` applies.
    pub idempotency_horizon: Duration,
    /// Number of event IDs that are remembered for `idempotency_horizon`, at least; up to half as many again may be
    /// remembered. If `window_events` is larger, `window_events` applies. An ID takes about 50 bytes in memory, and 100
    /// bytes plus its own length in Redis.
    pub idempotency_events: usize,
}

impl Config {
    /// Number of sockets that a hub may have open beyond `max_connections`: sockets of rejected clients that wait for
    /// their close frame, and sockets that were sent a close frame, or replaced by a newer socket, and are not closed
    /// yet.
    pub fn uncounted_sockets(&self) -> usize {
        2 * held_sockets(self.max_connections).0
    }
}

/// The maximum numbers of held sockets, in total and of one network. They scale with `max_connections`, because file
/// descriptors do.
pub(crate) fn held_sockets(max_connections: usize) -> (usize, usize) {
    let all = if max_connections == 0 { MAX_HELD } else { (max_connections / 8).clamp(MIN_HELD, MAX_HELD) };
    (all, (all / 4).min(MAX_HELD_OF_NETWORK))
}

impl Default for Config {
    fn default() -> Self {
        Self {
            shards: 0,
            heartbeat_interval: Duration::from_secs(30),
            heartbeat_timeout: Duration::from_secs(60),
            handshake_timeout: Duration::from_secs(10),
            max_frame_bytes: 64 << 10,
            max_message_bytes: 64 << 10,
            max_messages_per_second: 100,
            max_connections: 50_000,
            max_connections_per_user: 100,
            max_connections_per_address: 1_000,
            connects_per_second_per_address: 100,
            connects_per_second_per_user: 100,
            publishes_per_second: 0,
            gap_replay_bytes_per_second: 1 << 20,
            refusal_delay: Duration::from_secs(30),
            token_warning: Duration::from_secs(60),
            max_topics_per_connection: 100,
            max_event_bytes: 64 << 10,
            max_batch_events: 1_000,
            validate_events: false,
            compat: false,
            allowed_origins: Origins::Same,
            cors_headers: Vec::new(),
            cors_credentials: false,
            trusted_proxies: Proxies::default(),
            drain_rate: 1_000,
            window_events: 100_000,
            window_bytes: 64 << 20,
            window_age: Duration::from_secs(3_600),
            idempotency_horizon: Duration::from_secs(7_200),
            idempotency_events: 1_000_000,
        }
    }
}

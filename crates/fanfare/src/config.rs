//! What can be set on a hub. Plain values; where they come from is the application's business.

use crate::origin::{Origins, Proxies};
use axum::http::HeaderName;
use std::time::Duration;

/// What can be set on a hub. Every limit has a safe default; where it says so, 0 means no limit.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Threads that own connections. 0: one for every two cores.
    pub shards: usize,
    /// How often each connection is sent a `ping`.
    pub heartbeat_interval: Duration,
    /// How long a client may be silent before it is closed; any frame counts.
    pub heartbeat_timeout: Duration,
    /// How long a client may take to send a request's body, to upgrade, or to answer a close. A body has a second more
    /// for each KiB.
    pub handshake_timeout: Duration,
    /// The largest frame that a client may send, in bytes of payload.
    pub max_frame_bytes: usize,
    /// The largest message that a client may send, over all its frames, in bytes.
    pub max_message_bytes: usize,
    /// Frames a second that one client may send; twice as many in a burst. 0: no limit.
    pub max_messages_per_second: u32,
    /// Connections in all. 0: no limit.
    pub max_connections: usize,
    /// Connections of one user; administrators may have any number. 0: no limit.
    pub max_connections_per_user: usize,
    /// Connections from one address. 0: no limit.
    pub max_connections_per_address: usize,
    /// New connections a second from one address; twice as many in a burst. 0: no limit.
    pub connects_per_second_per_address: u32,
    /// New connections a second of one user; twice as many in a burst, administrators any number. 0: no limit.
    pub connects_per_second_per_user: u32,
    /// Events a second that one token's user or one access key may publish over HTTP; twice as many in a burst. 0: no
    /// limit.
    pub publishes_per_second: u32,
    /// Bytes of events a second that are replayed behind a `gap` to one user, and to one address; what goes beyond is
    /// left out, and the client goes on live behind its `gap`. 0: no limit.
    pub gap_replay_bytes_per_second: u32,
    /// The longest that a client which is refused again and again waits for its answer: the first comes at once, and
    /// each further one after a delay that doubles up to this. 0: no delay.
    pub refusal_delay: Duration,
    /// How long before its token ends a client is told; half of what is left, if that is less.
    pub token_warning: Duration,
    /// Topics that one connection may hold.
    pub max_topics_per_connection: usize,
    /// The largest event that may be published, in bytes of JSON.
    pub max_event_bytes: usize,
    /// The most events in one batch.
    pub max_batch_events: usize,
    /// Reject events whose fields do not have the documented types
    /// ([`Draft::validate`](fanfare_core::Draft::validate)).
    pub validate_events: bool,
    /// Accept requests without a token at three endpoints of the FastAPI hub, and bodies that only that hub accepts:
    /// `POST /tasks/{task_id}/update`, `/users/{user_id}/notify` and `/agents/{agent_id}/activity`.
    pub compat: bool,
    /// Sites whose pages may connect, beside the hub's own.
    pub allowed_origins: Origins,
    /// Further request headers that pages of `allowed_origins` may send (CORS).
    pub cors_headers: Vec<HeaderName>,
    /// Pages of `allowed_origins` may send cookies and other credentials (CORS); not if those are every site.
    pub cors_credentials: bool,
    /// Proxies in front of the hub, which are believed when they say whose request it is (`X-Forwarded-For`,
    /// `X-Forwarded-Host`).
    pub trusted_proxies: Proxies,
    /// Clients a second that are told to go when the hub ends. 0: all at once.
    pub drain_rate: u32,
    /// How many events the window keeps.
    pub window_events: usize,
    /// How many bytes of events the window keeps.
    pub window_bytes: usize,
    /// How long the window keeps an event.
    pub window_age: Duration,
    /// For how long an event that is published again is recognised by its `event_id` and not appended again, also when
    /// the log no longer has it. At least `window_age`: the larger of the two counts.
    pub idempotency_horizon: Duration,
    /// How many ids of events are remembered for that, at least; up to half as many again may be. At least
    /// `window_events`: the larger of the two counts. An id takes about 50 bytes in memory, and 100 and its own length
    /// in Redis.
    pub idempotency_events: usize,
}

impl Config {
    /// How many sockets a hub may have open beside `max_connections`: those of rejected clients that wait for their
    /// close code, and those that were sent one, or that another socket took over, and have not left.
    pub fn uncounted_sockets(&self) -> usize {
        2 * crate::refusals::bounds(self.max_connections).0
    }
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

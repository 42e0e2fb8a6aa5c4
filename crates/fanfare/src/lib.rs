//! fanfare: a realtime event hub. An application publishes an event once, and every authorised client receives it over
//! WebSocket, in order and exactly once.
//!
//! The library mounts into any axum application ([`Hub::router`]). It starts its own shard threads. It handles no
//! process concerns: no signals, no files, no command line.

#![forbid(unsafe_code)]

mod address;
mod admission;
pub mod auth;
pub mod broker;
mod clock;
pub mod config;
mod drain;
#[doc(hidden)]
pub mod environment;
mod foreign_cursors;
mod http;
pub mod hub;
mod identity;
pub mod metrics;
mod node;
pub mod origin;
pub mod presence;
mod refusals;
mod shard;
mod socket;
mod sys;
mod timed_stream;
pub mod trace;
mod upgrade;
pub mod why;

pub use address::address_group;
pub use auth::{Algorithm, AuthError, Minter, Verifier};
pub use broker::{Broker, BrokerError};
pub use config::Config;
pub use fanfare_core::{
    Audience, AudienceError, CloseCode, ConnectionId, Draft, Event, EventError, Grant, Position, Reconnect, Revocation,
    event::{AgentActivityUpdate, CalendarEventCreated, TaskStatus, TaskStatusUpdate},
    time::iso_8601,
};
pub use http::{BodyTimeout, limit_body, not_found, problem};
pub use hub::{
    BatchError, ClientLag, Hub, HubBuilder, LogSwitch, PublishError, Published, RevocationStore, StartError, Stats,
};
pub use timed_stream::TimedStream;

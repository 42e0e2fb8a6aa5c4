//! fanfare: a realtime event hub. An application publishes an event once, and every authorised client receives it over
//! WebSocket, in order and exactly once.
//!
//! The library mounts into any axum application ([`Hub::router`]). It starts its own shard threads. It handles no
//! process concerns: no signals, no files, no command line.
//!
//! ```
//! use axum::{Router, routing::get};
//! use fanfare::{Audience, Draft, Hub, Verifier};
//! use std::{net::SocketAddr, time::Duration};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // Clients send tokens that are signed with this secret. Connection IDs are derived from it too.
//!     let secret = "a secret of thirty-two bytes, ok";
//!     let hub = Hub::builder(Verifier::from_secret(secret)?).identity_secret(secret).start()?;
//!
//!     // The hub's routes (`/ws`, `/events`, `/health`, ...) and the application's own.
//!     let app = Router::new().route("/", get(|| async { "hello" })).merge(hub.router());
//!     let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//!     let server = axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>());
//!     tokio::spawn(server.into_future());
//!
//!     // In any handler or task: every connection of the user `ann` receives the event.
//!     let draft = Draft::new("order_placed", &serde_json::json!({ "item": "bell" }))?;
//!     let published = hub.publish(draft, Audience::User("ann".into())).await?;
//!     assert_eq!(published.position.sequence, 1);
//!
//!     // Disconnects the clients in waves.
//!     hub.shutdown(Duration::from_secs(5)).await;
//!     Ok(())
//! }
//! ```
//!
//! - [`Verifier`] verifies the tokens of clients and publishers; [`Minter`] issues tokens.
//! - [`HubBuilder`] and [`Config`] configure a hub. [`HubBuilder::start_with_redis`] shares one log among several
//!   processes.
//! - [`Draft`] is an event before it is published, and [`Audience`] is the set of clients that receive it.
//! - The crate `fanfare-client` is the client.

#![forbid(unsafe_code)]

mod address;
mod admission;
pub mod auth;
pub mod config;
mod drain;
mod foreign_cursors;
mod http;
pub mod hub;
mod identity;
mod log_switch;
mod mailbox;
pub mod metrics;
mod node;
pub mod origin;
mod problem;
mod refusals;
mod shard;
mod socket;
mod status;
mod sys;
mod timed_stream;
pub mod trace;
mod upgrade;
pub mod why;

pub use fanfare_log as broker;
use fanfare_log::clock;
#[doc(hidden)]
pub use fanfare_log::environment;
pub use fanfare_log::presence;

pub use address::address_group;
pub use auth::{Algorithm, AuthError, Minter, Verifier};
pub use broker::{Broker, BrokerError};
pub use config::Config;
pub use fanfare_core::{
    Audience, AudienceError, CloseCode, ConnectionId, Draft, Event, EventError, Grant, Position, Reconnect, Revocation,
    event::{AgentActivityUpdate, CalendarEventCreated, TaskStatus, TaskStatusUpdate},
    time::iso_8601,
};
pub use http::{BodyTimeout, limit_body, not_found};
pub use hub::{BatchError, Hub, HubBuilder, PublishError, Published, RevocationStore, StartError, Stats};
pub use log_switch::LogSwitch;
pub use problem::problem;
pub use status::ClientLag;
pub use timed_stream::TimedStream;

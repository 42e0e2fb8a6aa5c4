//! The core of fanfare: events, the window, sessions and WebSocket frames.
//!
//! This crate does no I/O. It contains no socket, clock, source of randomness or async runtime. Time and bytes are
//! arguments; actions are returned as values, and a driver carries them out.

#![forbid(unsafe_code)]

pub mod audience;
pub mod close;
pub mod event;
pub mod grant;
pub mod json;
pub mod lineage;
pub mod position;
pub mod revocation;
pub mod session;
pub mod session_table;
pub mod time;
pub mod window;
pub mod wire;
pub mod ws;

pub use audience::{Audience, AudienceError, ConnectionId};
pub use close::{CloseCode, Reconnect};
pub use event::{Draft, Event, EventError};
pub use grant::Grant;
pub use lineage::Lineage;
pub use position::Position;
pub use revocation::{Revocation, Revocations};

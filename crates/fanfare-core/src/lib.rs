//! The core of fanfare: events, the window, sessions and WebSocket frames.
//!
//! This crate does no I/O. It contains no socket, clock, source of randomness or async runtime. Time and bytes are
//! arguments; actions are returned as values, and a driver carries them out.
//!
//! The [`window`] holds the newest events of the log, and a client is a cursor in it:
//!
//! ```
//! use fanfare_core::{
//!     Audience, ConnectionId, Draft, Lineage, Position,
//!     window::{Bounds, Entry, Viewer, Window},
//! };
//! use std::sync::Arc;
//!
//! let bounds = Bounds { events: 100, bytes: 1 << 20, age_ms: 60_000, ids: 100, ids_ms: 60_000 };
//! let mut window = Window::new(Lineage::new(0x1f00c3), 0, bounds);
//!
//! // An event for one user, completed at a given time and appended at the next position.
//! let now_ms = 1_800_000_000_000;
//! let event = Draft::parse(r#"{"type":"note","data":{"text":"hi"}}"#)?.finish(now_ms, || "n1".to_owned())?;
//! let place = Position { epoch: window.epoch(), sequence: window.head() + 1 };
//! window.push(Arc::new(Entry::new(place, now_ms, Audience::User("ann".into()), &event)));
//!
//! // The number of events for each user after the cursor 0.
//! let (ann, ben): (Arc<str>, Arc<str>) = ("ann".into(), "ben".into());
//! let connection = ConnectionId(1);
//! assert_eq!(window.count(0, Viewer { user: &ann, connection, topics: &[] }), 1);
//! assert_eq!(window.count(0, Viewer { user: &ben, connection, topics: &[] }), 0);
//!
//! // A client that received the event resumes after it, without a gap.
//! let start = window.start(Some("n1"), connection);
//! assert_eq!((start.cursor, start.gap), (1, None));
//! # Ok::<(), fanfare_core::EventError>(())
//! ```
//!
//! A [`session`] is the state of one client. A [`session_table`] has all sessions of one thread, and offers their bytes
//! to the sockets. The crate `fanfare` is the driver.

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

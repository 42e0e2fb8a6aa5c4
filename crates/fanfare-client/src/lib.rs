//! Listens to a fanfare hub: events in order, each once, across reconnects.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use fanfare_client::{Heard, Options};
//!
//! let mut listener = Options::new("wss://hub.example/ws", "a token").topics(["project:7"]).listen()?;
//! loop {
//!     match listener.next().await? {
//!         Heard::Event(event) => println!("{}: {}", event.event_type(), event.json()),
//!         Heard::Gap(gap) => println!("history was lost ({}): fetch the state anew", gap.reason),
//!         _ => {}
//!     }
//! }
//! # }
//! ```
//!
//! A [`Listener`] is a cursor, as the hub's own clients are: what has not been taken with [`Listener::next`] waits at the
//! hub, so that a slow reader needs no queue, and events after a gap wait until the next call. It comes back by itself,
//! with full jitter and without an upper count, resumes where it was, and drops what it saw already. Where another
//! attempt would end as the last one did, it gives [`Refused`].
//!
//! Behaviour, pauses and states are those of the TypeScript client; the hub's `docs/protocol.md` says what is on the wire.

#![forbid(unsafe_code)]

mod closes;
mod link;
mod listener;
mod mismatch;
mod notification;
mod token;

/// A client without I/O. It is no part of the library: the project's simulator drives it against simulated hubs.
#[doc(hidden)]
pub mod machine {
    pub use crate::link::{End, Link};
}

pub use link::Cursor;
pub use listener::{Listener, Options};
pub use mismatch::scheme_mismatch;
pub use notification::{Event, Gap, Notification, Problem, Refused, State};
pub use token::{Token, TokenReason};

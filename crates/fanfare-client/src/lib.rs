//! Client of a fanfare hub: receives events in order, each once, across reconnects.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use fanfare_client::{Notification, Options};
//!
//! let mut listener = Options::new("wss://hub.example/ws", "a token").topics(["project:7"]).listen()?;
//! loop {
//!     match listener.next().await? {
//!         Notification::Event(event) => println!("{}: {}", event.event_type(), event.json()),
//!         Notification::Gap(gap) => println!("events were lost ({}): reload your data", gap.reason),
//!         _ => {}
//!     }
//! }
//! # }
//! ```
//!
//! A [`Listener`] holds a cursor. Events that have not been taken with [`Listener::next`] wait at the hub, so a slow
//! reader needs no queue. Events after a gap wait until the next call.
//!
//! The listener reconnects automatically, with full jitter and no limit on the number of attempts. It resumes from its
//! cursor and drops duplicate events. A failure that another attempt cannot fix is returned as [`Refused`].
//!
//! Behaviour, pauses and states are the same as in the TypeScript client. `docs/protocol.md` of the hub specifies the
//! wire protocol.

#![forbid(unsafe_code)]

mod closes;
mod link;
mod listener;
mod mismatch;
mod notification;
mod token;

/// The client state machine without I/O, for the project's simulator. It is not part of the public API.
#[doc(hidden)]
pub mod machine {
    pub use crate::link::{End, Link};
}

pub use link::Cursor;
pub use listener::{Listener, Options};
pub use mismatch::scheme_mismatch;
pub use notification::{Event, Gap, Notification, Problem, Refused, State};
pub use token::{Token, TokenReason};

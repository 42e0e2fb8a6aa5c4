//! Client of a fanfare hub: receives events in order, each once, across reconnects.
//!
//! ```
//! use fanfare_client::{Notification, Options, State};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # use fanfare::{Audience, Draft, Hub, Minter, Verifier, auth::Claims};
//! # let secret = "a secret of thirty-two bytes, ok";
//! # let hub = Hub::builder(Verifier::from_secret(secret)?).start()?;
//! # let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! # let url = format!("ws://{}/ws", socket.local_addr()?);
//! # let app = hub.router().into_make_service_with_connect_info::<std::net::SocketAddr>();
//! # tokio::spawn(axum::serve(socket, app).into_future());
//! # let topics = vec!["project:*".to_owned()];
//! # let token = Minter::from_secret(secret)?.mint(&Claims { sub: "ann".to_owned(), topics, ..Claims::default() });
//! // `url` is the hub's, such as "wss://hub.example/ws"; `token` is from your backend.
//! let mut listener = Options::new(url, token).topics(["project:7"]).listen()?;
//! loop {
//!     match listener.next().await? {
//!         Notification::Event(event) => {
//!             println!("{}: {}", event.event_type(), event.json());
//! #           assert_eq!(event.event_type(), "note");
//! #           break;
//!         }
//!         Notification::Gap(gap) => println!("events were lost ({}): reload your data", gap.reason),
//!         Notification::State(State::Live { resumed, .. }) => {
//!             println!("live (resumed: {resumed})");
//! #           hub.publish(Draft::new("note", &"hi")?, Audience::Topic("project:7".into())).await?;
//!         }
//!         _ => {}
//!     }
//! }
//! # Ok(())
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

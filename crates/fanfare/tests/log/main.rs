//! The log: one suite over memory and Redis in every topology, and what Redis alone can do to it.

#![expect(clippy::unwrap_used, reason = "a test ends where something that it relies on fails")]

mod node;
mod redis;
mod suite;
mod tls;

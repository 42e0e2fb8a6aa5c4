//! The recovery protocol of the log in Redis (docs/recovery.md) as a model: a few nodes, two servers, a few events, and
//! every order in which their steps, pauses, crashes, losses and promotions can come.
//!
//! Knows the protocol and nothing of Redis, sockets or clocks. A node that takes no step is paused, a message that is late
//! is a step not taken. Time is in the model only where the protocol relies on it: what a node takes for granted, and the word
//! of a majority, lapse at any moment, and what has to outlast them waits until they have.

mod explore;
mod log;
mod state;

pub use explore::{Found, explore, walk};
pub use state::{Budget, Rules};

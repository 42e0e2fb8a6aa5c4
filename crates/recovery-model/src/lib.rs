//! A model of the recovery protocol of the log in Redis (docs/recovery.md): a few nodes, two servers and a few events,
//! with every order in which their steps, pauses, crashes, losses and promotions can occur.
//!
//! The model knows the protocol, and nothing of Redis, sockets or clocks. A paused node is one whose steps are not
//! taken. A late message is a step that is not taken yet. Time is modelled only where the protocol relies on it: a node
//! can stop being informed, and a lease can end, at any moment. A step that has to wait for one of these is possible
//! only after it.

mod explore;
mod log;
mod state;

pub use explore::{Violation, explore, walk};
pub use state::{Budget, Rules};

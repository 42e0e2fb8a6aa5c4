//! Tests of the log: one suite for memory and for Redis in every topology, and tests of failures that only Redis has.

#![expect(clippy::unwrap_used, reason = "a failed precondition ends the test")]

mod node;
mod redis;
mod suite;
mod tls;

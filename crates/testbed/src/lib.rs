//! Processes that tests start: Redis alone, under Sentinel and as a Cluster, PostgreSQL, and the hub itself. Each has a
//! free port of 127.0.0.1 and a directory of its own, and ends when its value is dropped.
//!
//! Functions panic on failure, as a failed assertion of the test does.

#![expect(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a test fails if its servers do")]

mod authority;
mod certificates;
mod cluster;
mod hub;
mod postgres;
mod process;
mod redis;
mod relay;
mod sentinel;

pub use authority::Authority;
pub use certificates::Certificates;
pub use cluster::Cluster;
pub use hub::{HubProcess, get, post_event};
pub use postgres::Postgres;
pub use process::{free_port, free_ports, until};
pub use redis::{RedisFiles, RedisServer, RedisSetup, redis_programs};
pub use relay::{CutId, Relay, Ways};
pub use sentinel::Sentinels;

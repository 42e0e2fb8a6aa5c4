//! The Lua scripts that run in Redis, addressed by hash. Each script has a header that documents it.

use super::{
    connection::{Connection, call, read},
    error::LinkError,
};
use redis::cmd;

const PUT: &str = include_str!("scripts/put.lua");

/// A script. The order is that of [`BODIES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Script {
    Append,
    Restore,
    Confirm,
    Beat,
    Join,
    Leave,
    Doubt,
    Register,
    Sweep,
    ListConnections,
    Remove,
    Revoke,
}

const BODIES: [&str; 12] = [
    include_str!("scripts/append.lua"),
    include_str!("scripts/restore.lua"),
    include_str!("scripts/confirm.lua"),
    include_str!("scripts/beat.lua"),
    include_str!("scripts/join.lua"),
    include_str!("scripts/leave.lua"),
    include_str!("scripts/doubt.lua"),
    include_str!("scripts/register.lua"),
    include_str!("scripts/sweep.lua"),
    include_str!("scripts/present.lua"),
    include_str!("scripts/remove.lua"),
    include_str!("scripts/revoke.lua"),
];

/// The hashes of the scripts that are loaded into a server.
#[derive(Debug, Clone)]
pub(super) struct Scripts([String; BODIES.len()]);

impl Scripts {
    /// Loads the scripts into a server, which caches them until it restarts. Each body is preceded by the shared
    /// functions of `put.lua`.
    pub(super) async fn load(connection: &mut Connection) -> Result<Self, LinkError> {
        let mut hashes = [const { String::new() }; BODIES.len()];
        for (hash, body) in hashes.iter_mut().zip(BODIES) {
            let answer = call(connection, cmd("SCRIPT").arg("LOAD").arg(format!("{PUT}\n{body}"))).await?;
            *hash = read(answer)?;
        }
        Ok(Self(hashes))
    }

    pub(super) fn hash(&self, script: Script) -> &str {
        &self.0[script as usize]
    }
}

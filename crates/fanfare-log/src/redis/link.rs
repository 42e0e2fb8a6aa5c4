//! The connections to the server that holds the log. A link belongs to one server process: if that process restarts,
//! loses its role or does not respond, the link ends and another one is opened.

use super::{
    address::Address,
    connection::{Connection, call, read},
    error::{LinkError, OLDEST},
    keys::Keys,
    limits::ANSWER,
    scripts::{Script, Scripts},
    topology::Located,
    url::RedisUrl,
};
use crate::metrics::{LogCounter, LogMetrics};
use redis::{Cmd, Value, cmd};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// How long a command waits for the migration of its slot, and the interval between the attempts.
const MIGRATION: Duration = Duration::from_secs(10);
const MIGRATING: Duration = Duration::from_millis(20);

/// Sends a command, waits for the response, and counts both. Retries while the slot is being migrated.
pub(super) async fn counted(
    connection: &mut Connection,
    command: &Cmd,
    metrics: &dyn LogMetrics,
) -> Result<Value, LinkError> {
    let begun = Instant::now();
    loop {
        metrics.add(LogCounter::RedisCommands, 1);
        let answer = call(connection, command).await.inspect_err(|_| metrics.add(LogCounter::RedisErrors, 1));
        match answer {
            // The target of the migration cannot execute the command before it has all keys.
            Err(LinkError::Migrating(_)) if begun.elapsed() < MIGRATION => sleep(MIGRATING).await,
            answer => return answer,
        }
    }
}

/// The connections to one server process.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) located: Located,
    /// The name of the server: `run_id:master_replid`, the process and its replication history. With Sentinel the
    /// configuration epoch follows, after another colon.
    pub(super) server: String,
    run_id: String,
    /// For commands that do not block.
    pub(super) commands: Connection,
    scripts: Scripts,
    metrics: Arc<dyn LogMetrics>,
}

/// The properties of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    /// The product and its version: `Valkey 9.1.2`.
    pub(super) product: String,
    /// The version of Redis that it is compatible with.
    pub(super) version: String,
    pub(super) eviction: String,
    /// The uptime of the process in seconds.
    pub(super) uptime: u64,
    role: String,
    /// `standalone`, `cluster` or `sentinel`.
    mode: String,
    run_id: String,
    replication_id: String,
}

impl Facts {
    /// Parses the response to `INFO`.
    fn of(info: &str) -> Self {
        let field = |name: &str| field(info, name).unwrap_or_default().to_owned();
        let has = |name: &str| self::field(info, name).is_some();
        let (name, own) = match () {
            () if has("dragonfly_version") => ("Dragonfly", "dragonfly_version"),
            () if has("mvcc_depth") => ("KeyDB", "redis_version"),
            () if has("valkey_version") => ("Valkey", "valkey_version"),
            () => ("Redis", "redis_version"),
        };
        Self {
            product: format!("{name} {}", field(own)),
            version: field("redis_version"),
            eviction: field("maxmemory_policy"),
            uptime: field("uptime_in_seconds").parse().unwrap_or(0),
            role: field("role"),
            // The second name is that of Valkey.
            mode: [field("redis_mode"), field("server_mode")].concat(),
            run_id: field("run_id"),
            replication_id: field("master_replid"),
        }
    }
}

/// A field of the response to `INFO`.
pub(super) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

impl Link {
    /// Finds the server and connects to it.
    pub(super) async fn open(
        url: &RedisUrl,
        keys: &Keys,
        metrics: Arc<dyn LogMetrics>,
    ) -> Result<(Self, Facts), LinkError> {
        let located = url.locate(&keys.log).await?;
        let mut commands = url.connect(&located.address, url.credentials(), ANSWER).await?;
        let info: String = read(call(&mut commands, &cmd("INFO")).await?)?;
        let facts = Facts::of(&info);
        check(&facts, &located.address, url.is_cluster())?;
        let scripts = Scripts::load(&mut commands).await?;
        let run_id = facts.run_id.clone();
        let mut server = format!("{run_id}:{}", facts.replication_id);
        if let Some(epoch) = located.config_epoch {
            server += &format!(":{epoch}");
        }
        Ok((Self { located, server, run_id, commands, scripts, metrics }, facts))
    }

    /// Opens another connection to the same process, for commands that block.
    pub(super) async fn another(&self, url: &RedisUrl, timeout: Duration) -> Result<Connection, LinkError> {
        let mut connection = url.connect(&self.located.address, url.credentials(), timeout).await?;
        self.same_process(&mut connection).await?;
        Ok(connection)
    }

    /// Opens a connection for channels.
    pub(super) async fn pubsub(&self, url: &RedisUrl) -> Result<redis::aio::PubSub, LinkError> {
        url.pubsub(&self.located.address, url.credentials(), ANSWER).await
    }

    /// Checks that the connection leads to the process of this link: another process may listen at the address by now.
    async fn same_process(&self, connection: &mut Connection) -> Result<(), LinkError> {
        let info: String = read(call(connection, cmd("INFO").arg("server")).await?)?;
        if info.contains(&format!("run_id:{}", self.run_id)) {
            Ok(())
        } else {
            Err(LinkError::NotMaster("it was restarted while the node connected".to_owned()))
        }
    }

    /// Creates a command that runs a script.
    pub(super) fn script(&self, script: Script, keys: &[&str]) -> Cmd {
        let mut command = cmd("EVALSHA");
        command.arg(self.scripts.hash(script)).arg(keys.len()).arg(keys);
        command
    }

    /// The server's time, in milliseconds since 1970-01-01T00:00:00Z.
    pub(super) async fn clock_ms(&self) -> Result<u64, LinkError> {
        let (secs, micros): (u64, u64) = read(self.call(&cmd("TIME")).await?)?;
        Ok(secs * 1_000 + micros / 1_000)
    }

    /// Sends a command and waits for the response.
    pub(super) async fn call(&self, command: &Cmd) -> Result<Value, LinkError> {
        counted(&mut self.commands.clone(), command, &*self.metrics).await
    }

    /// Sends a pipeline of commands and waits for all responses.
    pub(super) async fn call_all(&self, commands: &redis::Pipeline) -> Result<Vec<Value>, LinkError> {
        self.metrics.add(LogCounter::RedisCommands, commands.len() as u64);
        let answers = self.commands.clone().call_all(commands).await;
        answers.inspect_err(|_| self.metrics.add(LogCounter::RedisErrors, 1))
    }
}

fn check(facts: &Facts, address: &Address, cluster: bool) -> Result<(), LinkError> {
    if facts.product.starts_with("Dragonfly") {
        return Err(LinkError::Unsupported { address: address.to_string(), product: facts.product.clone() });
    }
    let mut numbers = facts.version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < OLDEST {
        return Err(LinkError::TooOld { found: facts.version.clone(), address: address.to_string() });
    }
    let other = |kind, scheme| Err(LinkError::OtherKind { address: address.to_string(), kind, scheme });
    match &*facts.mode {
        "sentinel" => return other("a sentinel", "redis+sentinel"),
        "cluster" if !cluster => return other("part of a Cluster", "redis+cluster"),
        _ => {}
    }
    match &*facts.role {
        "master" if facts.run_id.is_empty() || facts.replication_id.is_empty() => {
            Err(LinkError::Unsupported { address: address.to_string(), product: facts.product.clone() })
        }
        "master" => Ok(()),
        role => Err(LinkError::NotMaster(format!("{address} is a {role}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_servers_and_replicas_are_rejected() {
        let address = Address { host: "h".to_owned(), port: 1 };
        let facts = |version: &str, role: &str| {
            let server = format!("redis_version:{version}\r\nredis_mode:standalone\r\nrun_id:a\r\nmaster_replid:b\r\n");
            Facts::of(&format!("{server}role:{role}\r\nuptime_in_seconds:1\r\n"))
        };
        let check = |facts: &Facts, address| check(facts, address, false);
        assert_eq!(check(&facts("6.2.0", "master"), &address), Ok(()));
        assert_eq!(check(&facts("7.0.15", "master"), &address), Ok(()));
        let old = check(&facts("5.0.14", "master"), &address).unwrap_err();
        assert_eq!(old.to_string(), "Redis 5.0.14 at h:1 is too old: fanfare needs 6.2 or later");
        assert!(old.is_final());
        assert!(matches!(check(&facts("7.0.0", "slave"), &address), Err(LinkError::NotMaster(_))));
        for (mode, says) in
            [("cluster", "h:1 is part of a Cluster: use redis+cluster://"), ("sentinel", "h:1 is a sentinel")]
        {
            let facts = Facts { mode: mode.to_owned(), ..facts("7.0.0", "master") };
            let error = check(&facts, &address).unwrap_err();
            assert!(error.is_final() && error.to_string().starts_with(says), "{error}");
        }
    }

    #[test]
    fn compatible_servers_are_identified() {
        let address = Address { host: "h".to_owned(), port: 1 };
        let server = "redis_version:7.4.0\r\nredis_mode:standalone\r\nrun_id:a\r\nmaster_replid:b\r\nrole:master\r\n";
        let check = |info: &str| check(&Facts::of(info), &address, false);
        let product = |info: &str| Facts::of(info).product;
        assert_eq!((check(server), &*product(server)), (Ok(()), "Redis 7.4.0"));
        let valkey = format!("{server}server_name:valkey\r\nvalkey_version:9.1.2\r\n");
        assert_eq!((check(&valkey), &*product(&valkey)), (Ok(()), "Valkey 9.1.2"));
        let keydb = format!("{server}# KeyDB\r\nmvcc_depth:0\r\n");
        assert_eq!((check(&keydb), &*product(&keydb)), (Ok(()), "KeyDB 7.4.0"));
        let dragonfly = format!("{server}dragonfly_version:df-v1.30.0\r\n");
        for (info, says) in [
            (dragonfly, "h:1 is Dragonfly df-v1.30.0, which"),
            (server.replace("run_id", "x"), "h:1 is Redis 7.4.0, which"),
        ] {
            let error = check(&info).unwrap_err();
            assert!(error.is_final() && error.to_string().starts_with(says), "{error}");
        }
    }
}

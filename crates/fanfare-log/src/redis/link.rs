//! The connections to the server that holds the log. A link belongs to one server process: if that process restarts,
//! loses its role or does not respond, the link ends and another one is opened.

use super::{
    connection::Connection,
    keys::Keys,
    scripts::{Script, Scripts},
    topology::Located,
    url::{Address, RedisUrl},
};
use crate::metrics::{LogCounter, LogMetrics};
use redis::{Cmd, RedisError, Value, cmd};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// The timeout of a command.
pub(super) const ANSWER: Duration = Duration::from_secs(2);

/// How long a read of the tail blocks.
pub(super) const BLOCK: Duration = Duration::from_secs(1);

/// How long a command waits for the migration of its slot, and the interval between the attempts.
const MIGRATION: Duration = Duration::from_secs(10);
const MIGRATING: Duration = Duration::from_millis(20);

/// The oldest supported version of Redis.
const OLDEST: (u32, u32) = (6, 2);

/// Why a link failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// No process listens at the address, or it is still loading its data. No node can write to the server meanwhile.
    #[error("{0}")]
    Down(String),
    /// The server is unreachable, or the connection was lost.
    #[error("{0}")]
    Unreachable(String),
    /// A timeout.
    #[error("{0}")]
    Silent(String),
    /// The credentials are wrong, or the user lacks permissions.
    #[error("Redis denied access: {0}; check user and password in redis_url (REDIS_URL) and the ACL of the user")]
    Refused(String),
    /// No server is known to hold the log.
    #[error("{0}")]
    NoMaster(String),
    /// The log's slot is being migrated to another server of the Cluster. The command was not executed.
    #[error("the log's slot is being migrated: {0}")]
    Migrating(String),
    /// Another server of the Cluster serves the log's slot now. The command was not executed.
    #[error("the log's slot moved to another server: {0}")]
    Moved(String),
    /// Another server holds the log, or the log continues in another epoch.
    #[error("the server does not currently hold the log: {0}")]
    NotMaster(String),
    /// The server is not confirmed, or no longer confirmed, for this node's epoch.
    #[error("this server is not confirmed to hold the log")]
    Fenced,
    /// The version of Redis is too old.
    #[error("Redis {found} at {address} is too old: fanfare needs {}.{} or later", OLDEST.0, OLDEST.1)]
    TooOld {
        /// Its version.
        found: String,
        /// Its address.
        address: String,
    },
    /// The server speaks the protocol of Redis, but lacks features that the log needs.
    #[error(
        "{address} is {product}, which does not report run_id and master_replid (INFO) as the log needs: use Redis 6.2 \
         or later, or Valkey"
    )]
    Unsupported {
        /// Its address.
        address: String,
        /// The product and its version.
        product: String,
    },
    /// The server is of another kind than the URL states.
    #[error("{address} is {kind}: use {scheme}://")]
    OtherKind {
        /// Its address.
        address: String,
        /// The kind of the server.
        kind: &'static str,
        /// The scheme of the right URL.
        scheme: &'static str,
    },
    /// A key has data of another program, or of another version of fanfare.
    #[error("{0}; delete it, or keep fanfare's keys apart with another redis_namespace (FANFARE_REDIS_NAMESPACE)")]
    NotOurs(String),
    /// Redis currently rejects writes. The link itself is healthy.
    #[error("Redis rejects writes: {0}")]
    Full(String),
    /// Any other unexpected response.
    #[error("unexpected response from Redis: {0}")]
    Answer(String),
}

impl LinkError {
    /// Whether a retry is pointless, because the configuration must be changed.
    pub(super) fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Refused(_)
                | Self::TooOld { .. }
                | Self::Unsupported { .. }
                | Self::OtherKind { .. }
                | Self::NotOurs(_)
        )
    }

    pub(super) fn connecting(at: &Address, error: RedisError) -> Self {
        match error.into() {
            Self::Unreachable(why) => Self::unreachable(at, &why),
            Self::Down(why) => Self::Down(format!("{at} can't be reached: {why}")),
            other => other,
        }
    }

    pub(super) fn unreachable(at: &Address, why: &str) -> Self {
        Self::Unreachable(format!("{at} can't be reached: {why}{}", advice(why)))
    }
}

/// Advice for the usual failures of TLS.
fn advice(why: &str) -> &'static str {
    if why.contains("UnknownIssuer") || why.contains("CaUsedAsEndEntity") {
        "; set redis_ca_file to the authority of its certificate, or to the certificate itself"
    } else if why.contains("CertificateRequired") || why.contains("HandshakeFailure") {
        "; it may require a client certificate: set redis_certificate_file and redis_key_file"
    } else if why.contains("InvalidMessage") || why.contains("InvalidContentType") {
        "; it may not speak TLS: use redis:// instead of rediss:// in redis_url"
    } else {
        ""
    }
}

impl From<RedisError> for LinkError {
    fn from(error: RedisError) -> Self {
        let text = || error.detail().map_or_else(|| error.to_string(), str::to_owned);
        match code(&error) {
            Some("NOAUTH" | "WRONGPASS" | "NOPERM") => return Self::Refused(error.to_string()),
            Some("OOM" | "MISCONF" | "NOREPLICAS") => return Self::Full(text()),
            Some("FENCED") => return Self::Fenced,
            Some("WRONGTYPE" | "FOREIGN") => return Self::NotOurs(error.to_string()),
            Some("READONLY" | "CLUSTERDOWN" | "MASTERDOWN" | "UNBLOCKED" | "NOSCRIPT") => {
                return Self::NotMaster(error.to_string());
            }
            Some("LOADING") => return Self::Down(error.to_string()),
            Some("ASK" | "TRYAGAIN") => return Self::Migrating(error.to_string()),
            Some("MOVED") => return Self::Moved(error.to_string()),
            _ => {}
        }
        if error.kind() == redis::ErrorKind::AuthenticationFailed {
            Self::Refused(error.to_string())
        } else if error.is_timeout() {
            Self::Silent(format!("Redis did not respond within {} s", ANSWER.as_secs()))
        } else if error.is_connection_refusal() {
            Self::Down(error.to_string())
        } else if error.is_io_error() || error.is_connection_dropped() {
            Self::Unreachable(error.to_string())
        } else {
            Self::Answer(error.to_string())
        }
    }
}

/// The code of an error. Redis before 7.0 wraps errors that occur in a script in a sentence.
fn code(error: &RedisError) -> Option<&str> {
    let wrapped = error.detail().filter(|detail| detail.starts_with("Error running script"));
    match wrapped.and_then(|detail| detail.rsplit_once(": -")) {
        Some((_, raised)) => raised.split(' ').next(),
        None => error.code(),
    }
}

/// Sends a command and waits for the response.
pub(super) async fn call(connection: &mut Connection, command: &Cmd) -> Result<Value, LinkError> {
    connection.call(command).await
}

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

/// Decodes a response. The error does not contain the response, because it may contain events.
pub(super) fn read<T: redis::FromRedisValue>(answer: Value) -> Result<T, LinkError> {
    redis::from_redis_value(answer).map_err(|_| LinkError::Answer(format!("not a {}", std::any::type_name::<T>())))
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

    #[test]
    fn errors_in_a_script_are_classified_by_their_code_in_every_version() {
        let of = |detail: &str| LinkError::from(redis::make_extension_error("ERR".to_owned(), Some(detail.to_owned())));
        let wrapped = |raised: &str| {
            of(&format!("Error running script (call to f_85bb9f42): @user_script:75: @user_script: 75: -{raised}"))
        };
        assert!(matches!(wrapped("OOM command not allowed when used memory > 'maxmemory'."), LinkError::Full(_)));
        assert!(matches!(wrapped("READONLY You can't write against a read only replica."), LinkError::NotMaster(_)));
        assert!(matches!(wrapped("WRONGTYPE Operation against a key"), LinkError::NotOurs(_)));
        assert!(matches!(of("unknown command: -OOM"), LinkError::Answer(_)));
    }
}

//! The connections to the one server that holds the log. A link is to one process: when that one restarts, loses its
//! role or falls silent, the link ends and another is made.

use super::{
    connection::Connection,
    keys::Keys,
    scripts::{Script, Scripts},
    topology::Located,
    url::{Address, RedisUrl},
};
use crate::metrics::{Counter, Metrics};
use redis::{Cmd, RedisError, Value, cmd};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// How long Redis may take to answer a command.
pub(super) const ANSWER: Duration = Duration::from_secs(2);

/// How long the tail waits for news before it asks again.
pub(super) const BLOCK: Duration = Duration::from_secs(1);

/// How long a command waits for the migration of its slot, and how often it is tried again meanwhile.
const MIGRATION: Duration = Duration::from_secs(10);
const MIGRATING: Duration = Duration::from_millis(20);

/// The oldest Redis with everything that is used here.
const OLDEST: (u32, u32) = (6, 2);

/// Why a link can't be made, or has ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// No process listens there, or it has not read its data yet: nobody can write to it.
    #[error("{0}")]
    Down(String),
    /// There is nobody, or the connection broke.
    #[error("{0}")]
    Unreachable(String),
    /// No answer in time.
    #[error("{0}")]
    Silent(String),
    /// The password, or what the user may do.
    #[error("Redis refuses: {0}; check user and password in redis_url (REDIS_URL) and the user's permissions (ACL)")]
    Refused(String),
    /// No server holds the log now.
    #[error("{0}")]
    NoMaster(String),
    /// The log's slot is on its way to another server of the Cluster. The command was not executed.
    #[error("the log's slot is being migrated: {0}")]
    Migrating(String),
    /// Another server of the Cluster has the log's slot now. The command was not executed.
    #[error("the log's slot is at another server: {0}")]
    Moved(String),
    /// Another server holds the log now.
    #[error("the server is not, or not yet, the one that takes writes: {0}")]
    NotMaster(String),
    /// The server was not confirmed, or is no longer.
    #[error("the server's log was not confirmed")]
    Fenced,
    /// Too old.
    #[error("Redis {found} at {address} is too old: fanfare needs {}.{} or later", OLDEST.0, OLDEST.1)]
    TooOld {
        /// Its version.
        found: String,
        /// Where it is.
        address: String,
    },
    /// A server that only speaks like Redis.
    #[error(
        "{address} is {product}, which does not say what a log needs to know of its server (INFO: run_id, master_replid): \
         fanfare needs Redis 6.2 or later, or Valkey"
    )]
    Unsupported {
        /// Where it is.
        address: String,
        /// What it is.
        product: String,
    },
    /// A server of another kind than the URL says.
    #[error("{address} is {kind}: use {scheme}://")]
    OtherKind {
        /// Where it is.
        address: String,
        /// What it is.
        kind: &'static str,
        /// What its URL begins with.
        scheme: &'static str,
    },
    /// A key is in use for something else.
    #[error("{0}; delete it, or keep fanfare's keys apart with another redis_namespace (FANFARE_REDIS_NAMESPACE)")]
    NotOurs(String),
    /// Redis takes no writes for now; nothing is wrong with the link.
    #[error("Redis takes no writes: {0}")]
    Full(String),
    /// Any other answer.
    #[error("an answer of Redis that was not expected: {0}")]
    Answer(String),
}

impl LinkError {
    /// Trying again can't help: somebody has to change something.
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

/// What helps against the usual failures of TLS.
fn advice(why: &str) -> &'static str {
    if why.contains("UnknownIssuer") || why.contains("CaUsedAsEndEntity") {
        "; name the authority of its certificate, or the certificate itself, with redis_ca_file"
    } else if why.contains("CertificateRequired") || why.contains("HandshakeFailure") {
        "; it may want a client certificate: set redis_certificate_file and redis_key_file"
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
            Self::Silent(format!("Redis gave no answer within {} s", ANSWER.as_secs()))
        } else if error.is_connection_refusal() {
            Self::Down(error.to_string())
        } else if error.is_io_error() || error.is_connection_dropped() {
            Self::Unreachable(error.to_string())
        } else {
            Self::Answer(error.to_string())
        }
    }
}

/// The code of an error. Redis before 7.0 wraps those that come up in a script into a sentence.
fn code(error: &RedisError) -> Option<&str> {
    let wrapped = error.detail().filter(|detail| detail.starts_with("Error running script"));
    match wrapped.and_then(|detail| detail.rsplit_once(": -")) {
        Some((_, raised)) => raised.split(' ').next(),
        None => error.code(),
    }
}

/// Sends a command and waits for its answer.
pub(super) async fn call(connection: &mut Connection, command: &Cmd) -> Result<Value, LinkError> {
    connection.call(command).await
}

/// Sends a command, waits for its answer, and counts both.
pub(super) async fn counted(connection: &mut Connection, command: &Cmd, metrics: &Metrics) -> Result<Value, LinkError> {
    let begun = Instant::now();
    loop {
        metrics.add(Counter::RedisCommands, 1);
        let answer = call(connection, command).await.inspect_err(|_| metrics.add(Counter::RedisErrors, 1));
        match answer {
            // Where the keys go can't serve it before it has all of them.
            Err(LinkError::Migrating(_)) if begun.elapsed() < MIGRATION => sleep(MIGRATING).await,
            answer => return answer,
        }
    }
}

/// Reads an answer as what it is expected to be. What it is instead is not told: it may hold events.
pub(super) fn read<T: redis::FromRedisValue>(answer: Value) -> Result<T, LinkError> {
    redis::from_redis_value(answer).map_err(|_| LinkError::Answer(format!("not a {}", std::any::type_name::<T>())))
}

/// Connections to one server process.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) located: Located,
    /// `run_id:master_replid`: the process, and the history that it holds. With Sentinel the configuration epoch follows, after
    /// another colon.
    pub(super) server: String,
    run_id: String,
    /// For commands that are answered at once.
    pub(super) commands: Connection,
    scripts: Scripts,
    metrics: Arc<Metrics>,
}

/// What an operator should know of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    /// What it is, and of which version: `Valkey 9.1.2`.
    pub(super) product: String,
    /// The version of Redis that it is compatible with.
    pub(super) version: String,
    pub(super) eviction: String,
    /// For how many seconds the process has run.
    pub(super) uptime: u64,
    role: String,
    /// `standalone`, `cluster` or `sentinel`.
    mode: String,
    run_id: String,
    replication_id: String,
}

impl Facts {
    /// Reads what `INFO` says.
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
            // Valkey's name comes second.
            mode: [field("redis_mode"), field("server_mode")].concat(),
            run_id: field("run_id"),
            replication_id: field("master_replid"),
        }
    }
}

/// A value in the answer to `INFO`.
pub(super) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

impl Link {
    /// Finds the server and connects to it.
    pub(super) async fn open(url: &RedisUrl, keys: &Keys, metrics: Arc<Metrics>) -> Result<(Self, Facts), LinkError> {
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

    /// Another connection to the same process, for a command that waits.
    pub(super) async fn another(&self, url: &RedisUrl, timeout: Duration) -> Result<Connection, LinkError> {
        let mut connection = url.connect(&self.located.address, url.credentials(), timeout).await?;
        self.same_process(&mut connection).await?;
        Ok(connection)
    }

    /// A connection that hears channels.
    pub(super) async fn pubsub(&self, url: &RedisUrl) -> Result<redis::aio::PubSub, LinkError> {
        url.pubsub(&self.located.address, url.credentials(), ANSWER).await
    }

    /// An address may have become another process's between two connections.
    async fn same_process(&self, connection: &mut Connection) -> Result<(), LinkError> {
        let info: String = read(call(connection, cmd("INFO").arg("server")).await?)?;
        if info.contains(&format!("run_id:{}", self.run_id)) {
            Ok(())
        } else {
            Err(LinkError::NotMaster("it was restarted meanwhile".to_owned()))
        }
    }

    /// The command that runs a script.
    pub(super) fn script(&self, script: Script, keys: &[&str]) -> Cmd {
        let mut command = cmd("EVALSHA");
        command.arg(self.scripts.hash(script)).arg(keys.len()).arg(keys);
        command
    }

    /// The server's time, in milliseconds.
    pub(super) async fn clock_ms(&self) -> Result<u64, LinkError> {
        let (secs, micros): (u64, u64) = read(self.call(&cmd("TIME")).await?)?;
        Ok(secs * 1_000 + micros / 1_000)
    }

    /// Sends a command and waits for its answer.
    pub(super) async fn call(&self, command: &Cmd) -> Result<Value, LinkError> {
        counted(&mut self.commands.clone(), command, &self.metrics).await
    }

    /// Sends commands at once and waits for all their answers.
    pub(super) async fn call_all(&self, commands: &redis::Pipeline) -> Result<Vec<Value>, LinkError> {
        self.metrics.add(Counter::RedisCommands, commands.len() as u64);
        let answers = self.commands.clone().call_all(commands).await;
        answers.inspect_err(|_| self.metrics.add(Counter::RedisErrors, 1))
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
    fn old_servers_and_replicas_are_refused() {
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
    fn servers_that_only_speak_like_redis_are_known() {
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
    fn errors_that_come_up_in_a_script_are_known_by_their_code_in_every_version() {
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

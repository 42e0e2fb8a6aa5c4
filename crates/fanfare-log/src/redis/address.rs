//! Addresses of servers, and the errors of a URL that names them.

use std::fmt;

/// A host and a port, or the path of a Unix socket and port 0.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

/// Why a text is not a valid Redis URL. The message never contains a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRedisUrl {
    /// The host or the port is malformed.
    #[error("{0}")]
    Malformed(String),
    /// The scheme is unknown.
    #[error(
        "the scheme must be redis, redis+sentinel or redis+cluster; rediss, rediss+sentinel or rediss+cluster for \
         TLS; or unix for a socket"
    )]
    Scheme,
    /// A Sentinel URL has no master name.
    #[error("the path must name the master that the sentinels watch: redis+sentinel://host:26379/mymaster")]
    NoMaster,
    /// A Unix socket has no absolute path.
    #[error("the socket must be named by its absolute path: unix:///run/redis/redis.sock")]
    NoSocket,
    /// The database is not a number.
    #[error("the database must be a number: redis://host:6379/0 or redis://host:6379?db=0")]
    Database,
    /// A Cluster URL has a database. A Cluster has only database 0.
    #[error("a Cluster has no databases: remove the path and the parameter db")]
    ClusterDatabase,
}

impl Address {
    /// Whether this is the path of a Unix socket.
    pub(super) fn is_path(&self) -> bool {
        self.host.starts_with('/')
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_path() {
            f.write_str(&self.host)
        } else if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

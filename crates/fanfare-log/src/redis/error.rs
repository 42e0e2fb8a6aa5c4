//! Why a link to Redis failed.

use super::{address::Address, limits::ANSWER};
use redis::RedisError;

/// The oldest supported version of Redis.
pub(super) const OLDEST: (u32, u32) = (6, 2);

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

#[cfg(test)]
mod tests {
    use super::*;

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

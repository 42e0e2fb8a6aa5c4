//! The URL of Redis. One format covers every topology.

use super::{
    address::{Address, BadRedisUrl},
    parameters::Parameters,
    tls::RedisTls,
};
use std::{fmt, str::FromStr};
use url::Url;

const DEFAULT_PORT: u16 = 6379;
const DEFAULT_SENTINEL_PORT: u16 = 26379;

/// The servers of a Redis, the transport, and the credentials.
///
/// ```text
/// redis://[[user]:password@]host[:port][/database]
/// redis+sentinel://[[user]:password@]host[:port][,host[:port]...]/master[/database]
/// redis+cluster://[[user]:password@]host[:port][,host[:port]...]
/// unix://[[user]:password@]/path/of/the/socket
/// ```
///
/// With `rediss` instead of `redis` all connections use TLS. Reserved characters are percent-encoded. Of the query
/// parameters of redis-py, `db`, `username` and `password` are used; all others are [ignored](Self::ignored).
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    pub(super) topology: Topology,
    pub(super) tls: bool,
    pub(super) certificates: Option<RedisTls>,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: i64,
    ignored: Vec<String>,
}

/// The known servers, and how the server that holds the log is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Topology {
    /// A single server.
    Standalone(Address),
    /// Sentinels, and the name of the master that they monitor.
    Sentinel { sentinels: Vec<Address>, master: String },
    /// Some nodes of a Cluster. The others are discovered.
    Cluster(Vec<Address>),
}

impl RedisUrl {
    /// Sets the certificates for TLS.
    #[must_use]
    pub fn with_tls(mut self, certificates: RedisTls) -> Self {
        self.certificates = Some(certificates);
        self
    }

    /// The names of the query parameters that have no effect, such as `socket_timeout`.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// Whether connections use TLS (`rediss`).
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// The host and the port of the first server: the only one, the first sentinel, or the first node of a Cluster.
    /// For a Unix socket these are its path and 0.
    pub fn first_server(&self) -> (&str, u16) {
        let address = match &self.topology {
            Topology::Standalone(address) => address,
            // The parser accepts no empty list of hosts.
            Topology::Sentinel { sentinels: addresses, .. } | Topology::Cluster(addresses) => &addresses[0],
        };
        (&address.host, address.port)
    }
}

impl FromStr for RedisUrl {
    type Err = BadRedisUrl;

    fn from_str(text: &str) -> Result<Self, BadRedisUrl> {
        let (scheme, rest) = text.split_once("://").ok_or(BadRedisUrl::Scheme)?;
        let (rest, query) = without_query(rest);
        let parameters = Parameters::read(query)?;
        if scheme == "unix" {
            return unix(rest, parameters);
        }
        let (transport, topology) = scheme.split_once('+').unwrap_or((scheme, ""));
        let tls = match transport {
            "redis" => false,
            "rediss" => true,
            _ => return Err(BadRedisUrl::Scheme),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (credentials, hosts) = authority.rsplit_once('@').map_or(("", authority), |(who, hosts)| (who, hosts));
        let default_port = if topology == "sentinel" { DEFAULT_SENTINEL_PORT } else { DEFAULT_PORT };
        let addresses = hosts.split(',').map(|host| address(host, default_port)).collect::<Result<Vec<_>, _>>()?;
        let (user, password) = credentials_of(credentials)?;
        let (topology, database) = topology_of(topology, addresses, path)?;
        let url = Self { topology, tls, certificates: None, user, password, database, ignored: Vec::new() };
        url.with_parameters(parameters)
    }
}

impl RedisUrl {
    /// Applies the query parameters with the precedence of redis-py: the database of the query overrides that of the
    /// path, and the user of the query applies only to a URL without one.
    fn with_parameters(mut self, parameters: Parameters) -> Result<Self, BadRedisUrl> {
        if let Some(database) = parameters.database {
            if matches!(self.topology, Topology::Cluster(_)) && database != 0 {
                return Err(BadRedisUrl::ClusterDatabase);
            }
            self.database = database;
        }
        self.user = self.user.or(parameters.user);
        self.password = self.password.or(parameters.password);
        self.ignored = parameters.ignored;
        Ok(self)
    }
}

/// Splits off the query. A password may contain a question mark, so the query begins after the credentials.
fn without_query(rest: &str) -> (&str, &str) {
    let authority = rest.split('/').next().unwrap_or_default();
    let hosts = authority.rfind('@').map_or(0, |at| at + 1);
    match rest[hosts..].find('?') {
        Some(at) => (&rest[..hosts + at], &rest[hosts + at + 1..]),
        None => (rest, ""),
    }
}

fn unix(rest: &str, parameters: Parameters) -> Result<RedisUrl, BadRedisUrl> {
    let at = rest.find('/').ok_or(BadRedisUrl::NoSocket)?;
    let (credentials, path) = rest.split_at(at);
    if path == "/" || !(credentials.is_empty() || credentials.ends_with('@')) {
        return Err(BadRedisUrl::NoSocket);
    }
    let path = percent_encoding::percent_decode_str(path).decode_utf8().map_err(|_| BadRedisUrl::NoSocket)?;
    let (user, password) = credentials_of(credentials.trim_end_matches('@'))?;
    let topology = Topology::Standalone(Address { host: path.into_owned(), port: 0 });
    RedisUrl { topology, tls: false, certificates: None, user, password, database: 0, ignored: Vec::new() }
        .with_parameters(parameters)
}

fn address(text: &str, default_port: u16) -> Result<Address, BadRedisUrl> {
    let malformed = |why: &str| BadRedisUrl::Malformed(format!("{text:?} is not a host and a port: {why}"));
    // The url crate validates hosts only of special schemes such as http.
    let url = Url::parse(&format!("http://{text}")).map_err(|error| malformed(&error.to_string()))?;
    let host = url.host_str().ok_or_else(|| malformed("the host is missing"))?;
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(malformed("only a host and a port are allowed"));
    }
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    // The url crate drops port 80, because it is the default of http.
    let port = url.port().or_else(|| text.ends_with(":80").then_some(80)).unwrap_or(default_port);
    Ok(Address { host, port })
}

fn credentials_of(text: &str) -> Result<(Option<String>, Option<String>), BadRedisUrl> {
    let decode = |part: &str| {
        let decoded = percent_encoding::percent_decode_str(part).decode_utf8();
        let decoded =
            decoded.map_err(|_| BadRedisUrl::Malformed("the user or the password is not UTF-8".to_owned()))?;
        Ok((!decoded.is_empty()).then(|| decoded.into_owned()))
    };
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    Ok((decode(user)?, decode(password)?))
}

fn topology_of(name: &str, addresses: Vec<Address>, path: &str) -> Result<(Topology, i64), BadRedisUrl> {
    let path = path.trim_end_matches('/');
    let number = |text: &str| if text.is_empty() { Ok(0) } else { text.parse().map_err(|_| BadRedisUrl::Database) };
    match (name, addresses) {
        ("", addresses) => match <[Address; 1]>::try_from(addresses) {
            Ok([only]) => Ok((Topology::Standalone(only), number(path)?)),
            Err(_) => {
                Err(BadRedisUrl::Malformed("several hosts need redis+sentinel:// or redis+cluster://".to_owned()))
            }
        },
        ("sentinel", sentinels) => {
            let (master, database) = path.split_once('/').unwrap_or((path, ""));
            if master.is_empty() {
                return Err(BadRedisUrl::NoMaster);
            }
            Ok((Topology::Sentinel { sentinels, master: master.to_owned() }, number(database)?))
        }
        ("cluster", nodes) if path.is_empty() || path == "0" => Ok((Topology::Cluster(nodes), 0)),
        ("cluster", _) => Err(BadRedisUrl::ClusterDatabase),
        _ => Err(BadRedisUrl::Scheme),
    }
}

/// Omits the password, and the user, because some services use it as a secret.
impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "rediss" } else { "redis" };
        let secret = if self.user.is_some() || self.password.is_some() { "***@" } else { "" };
        let join = |addresses: &[Address]| addresses.iter().map(Address::to_string).collect::<Vec<_>>().join(",");
        match &self.topology {
            Topology::Standalone(address) if address.is_path() => {
                write!(f, "unix://{secret}{address}?db={}", self.database)
            }
            Topology::Standalone(address) => write!(f, "{scheme}://{secret}{address}/{}", self.database),
            Topology::Sentinel { sentinels, master } => {
                write!(f, "{scheme}+sentinel://{secret}{}/{master}/{}", join(sentinels), self.database)
            }
            Topology::Cluster(nodes) => write!(f, "{scheme}+cluster://{secret}{}", join(nodes)),
        }
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_topology_has_a_url() {
        for (text, shown) in [
            ("redis://localhost", "redis://localhost:6379/0"),
            ("redis://h:80/", "redis://h:80/0"),
            ("redis://:p%40ss@10.0.0.1:7000/3", "redis://***@10.0.0.1:7000/3"),
            ("rediss://me:hush@[::1]:7000", "rediss://***@[::1]:7000/0"),
            ("redis+sentinel://a,b:1/mymaster", "redis+sentinel://a:26379,b:1/mymaster/0"),
            ("redis+sentinel://:x@a/mymaster/2", "redis+sentinel://***@a:26379/mymaster/2"),
            ("rediss+cluster://a,b,c:7000", "rediss+cluster://a:6379,b:6379,c:7000"),
        ] {
            assert_eq!(text.parse::<RedisUrl>().expect(text).to_string(), shown);
        }
        let url: RedisUrl = "redis://me:p%40ss@h".parse().unwrap();
        assert_eq!((url.user.as_deref(), url.password.as_deref()), (Some("me"), Some("p@ss")));
        assert!(!format!("{url:?}").contains("p@ss"));
    }

    #[test]
    fn parameters_of_redis_py_are_applied_or_reported_as_ignored() {
        for (text, shown, ignored) in [
            ("redis://h?db=2", "redis://h:6379/2", ""),
            ("redis://h/1?db=2&protocol=3", "redis://h:6379/2", "protocol"),
            (
                "redis://h:1/1?socket_timeout=5&health_check_interval=30",
                "redis://h:1/1",
                "socket_timeout,health_check_interval",
            ),
            (
                "redis://h/?decode_responses=True&max_connections=10",
                "redis://h:6379/0",
                "decode_responses,max_connections",
            ),
            ("rediss://h?ssl_cert_reqs=required", "rediss://h:6379/0", ""),
            ("rediss://:x@h?ssl_cert_reqs=none", "rediss://***@h:6379/0", "ssl_cert_reqs"),
            ("redis://h?username=me&password=hush", "redis://***@h:6379/0", ""),
            ("redis+sentinel://a/mymaster?db=3", "redis+sentinel://a:26379/mymaster/3", ""),
            ("unix:///run/redis.sock?db=2", "unix:///run/redis.sock?db=2", ""),
            ("unix://me:hush@/run/my%20redis.sock", "unix://***@/run/my redis.sock?db=0", ""),
        ] {
            let url = text.parse::<RedisUrl>().expect(text);
            assert_eq!((url.to_string().as_str(), url.ignored().join(",").as_str()), (shown, ignored), "{text}");
        }
        let url: RedisUrl = "redis://h?username=me&password=p%40ss".parse().unwrap();
        assert_eq!((url.user.as_deref(), url.password.as_deref()), (Some("me"), Some("p@ss")));
        let url: RedisUrl = "redis://:wh?t@h".parse().unwrap();
        assert_eq!((url.password.as_deref(), url.ignored().len()), (Some("wh?t"), 0));
    }

    // attack: reading a password that ended up as a parameter's name in the Redis URL => the warning does not repeat it
    #[test]
    fn an_unknown_parameter_is_not_repeated_in_messages() {
        let url: RedisUrl = "redis://h?hush&x=hush".parse().unwrap();
        assert_eq!(url.ignored().join(","), "a parameter that redis-py does not have");
    }

    #[test]
    fn an_invalid_url_is_rejected_with_the_cause() {
        for (text, says) in [
            ("localhost:6379", "scheme"),
            ("http://localhost", "scheme"),
            ("redis+ring://a", "scheme"),
            ("redis://", "host"),
            ("redis://a,b", "several hosts"),
            ("redis://a/zero", "number"),
            ("redis://a:port", "a:port"),
            ("redis+sentinel://a,b", "mymaster"),
            ("redis+cluster://a/1", "no databases"),
            ("redis://h?db=two", "number"),
            ("redis+cluster://a?db=1", "no databases"),
            ("unix://redis.sock", "unix:///run/redis"),
            ("unix:///", "absolute path"),
        ] {
            let error = text.parse::<RedisUrl>().expect_err(text).to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}

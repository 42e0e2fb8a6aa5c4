//! The query parameters of a Redis URL, as in redis-py: applications share one `REDIS_URL` among their clients.

use super::address::BadRedisUrl;

/// Parameters of redis-py that have no effect here.
const OF_OTHER_CLIENTS: &[&str] = &[
    "client_name",
    "decode_responses",
    "encoding",
    "encoding_errors",
    "health_check_interval",
    "lib_name",
    "lib_version",
    "max_connections",
    "protocol",
    "retry_on_error",
    "retry_on_timeout",
    "socket_connect_timeout",
    "socket_keepalive",
    "socket_read_size",
    "socket_timeout",
    "socket_type",
    "ssl_ca_certs",
    "ssl_ca_data",
    "ssl_ca_path",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_ciphers",
    "ssl_keyfile",
    "ssl_min_version",
    "ssl_password",
    "timeout",
];

/// Reported instead of an unknown name, because the name may be part of a password.
const UNKNOWN: &str = "a parameter that redis-py does not have";

/// The parsed parameters.
#[derive(Default)]
pub(super) struct Parameters {
    pub(super) database: Option<i64>,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    /// The names of parameters that have no effect.
    pub(super) ignored: Vec<String>,
}

impl Parameters {
    pub(super) fn read(query: &str) -> Result<Self, BadRedisUrl> {
        let mut parameters = Self::default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "db" => parameters.database = Some(value.parse().map_err(|_| BadRedisUrl::Database)?),
                "username" => parameters.user = Some(value.into_owned()),
                "password" => parameters.password = Some(value.into_owned()),
                // This is the hub's behaviour in any case.
                "ssl_cert_reqs" if value == "required" => {}
                name => parameters.ignore(OF_OTHER_CLIENTS.iter().find(|known| **known == name).unwrap_or(&UNKNOWN)),
            }
        }
        Ok(parameters)
    }

    fn ignore(&mut self, name: &str) {
        if !self.ignored.iter().any(|known| known == name) {
            self.ignored.push(name.to_owned());
        }
    }
}

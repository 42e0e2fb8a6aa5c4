//! The table of all settings. Flags, environment names, TOML keys, help texts and documentation derive from it.

use super::kind::{self, LogFormat, Secret};
use crate::settings::DatabaseUrl;
use fanfare::{
    Algorithm, Config,
    auth::Family,
    broker::redis::{Durability, RedisUrl},
    origin::{Origins, Proxies},
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// The value of every setting, parsed. The hub and `fanfare check` read the same value.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) listen: SocketAddr,
    pub(crate) workers: usize,
    pub(crate) metrics_listen: Option<SocketAddr>,
    pub(crate) max_http_connections: usize,
    pub(crate) max_http_connections_per_address: usize,
    pub(crate) tls_certificate_file: Option<PathBuf>,
    pub(crate) tls_key_file: Option<PathBuf>,
    pub(crate) hsts_max_age: Duration,
    pub(crate) proxy_protocol_from: Proxies,
    pub(crate) secret_key: Option<Secret>,
    pub(crate) secret_key_file: Option<PathBuf>,
    pub(crate) previous_secret_key: Option<Secret>,
    pub(crate) algorithm: Algorithm,
    pub(crate) private_key_file: Option<PathBuf>,
    pub(crate) public_key_file: Option<PathBuf>,
    pub(crate) jwks_url: Option<String>,
    pub(crate) jwks_refresh: Duration,
    pub(crate) token_issuer: Option<String>,
    pub(crate) token_audience: Option<String>,
    pub(crate) leeway: Duration,
    pub(crate) require_exp: bool,
    pub(crate) access_token_expire_minutes: u64,
    pub(crate) refresh_token_expire_days: u64,
    pub(crate) database_url: DatabaseUrl,
    pub(crate) logins_per_minute_per_address: u32,
    pub(crate) logins_per_minute_per_account: u32,
    pub(crate) redis_url: Option<RedisUrl>,
    pub(crate) redis_ca_file: Option<PathBuf>,
    pub(crate) redis_certificate_file: Option<PathBuf>,
    pub(crate) redis_key_file: Option<PathBuf>,
    pub(crate) redis_namespace: String,
    pub(crate) redis_channels: Vec<String>,
    pub(crate) durability: Durability,
    pub(crate) bus_lag_limit: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) log_level: String,
    pub(crate) log_format: LogFormat,
    pub(crate) otlp_endpoint: Option<String>,
    pub(crate) trace_share: f64,
    pub(crate) hub: Config,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8000)),
            workers: 1,
            metrics_listen: None,
            max_http_connections: 0,
            max_http_connections_per_address: 0,
            tls_certificate_file: None,
            tls_key_file: None,
            hsts_max_age: Duration::ZERO,
            proxy_protocol_from: Proxies::default(),
            secret_key: None,
            secret_key_file: None,
            previous_secret_key: None,
            algorithm: Algorithm::Hs256,
            private_key_file: None,
            public_key_file: None,
            jwks_url: None,
            jwks_refresh: Duration::from_secs(600),
            token_issuer: None,
            token_audience: None,
            leeway: Duration::ZERO,
            require_exp: false,
            access_token_expire_minutes: 30,
            refresh_token_expire_days: 30,
            database_url: DatabaseUrl::File("fanfare.db".into()),
            logins_per_minute_per_address: 30,
            logins_per_minute_per_account: 10,
            redis_url: None,
            redis_ca_file: None,
            redis_certificate_file: None,
            redis_key_file: None,
            redis_namespace: "ws".to_owned(),
            redis_channels: Vec::new(),
            durability: Durability::Log,
            bus_lag_limit: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(60),
            log_level: "info".to_owned(),
            log_format: LogFormat::Text,
            otlp_endpoint: None,
            trace_share: 1.0,
            hub: Config::default(),
        }
    }
}

/// One setting.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) key: &'static str,
    /// The environment name that the FastAPI hub uses for it, without the prefix.
    pub(crate) alias: Option<&'static str>,
    /// Its description: one or more sentences.
    pub(crate) help: &'static str,
    /// The placeholder for its value in help texts.
    pub(crate) value_name: &'static str,
    /// Whether its value is never shown.
    pub(crate) hidden: bool,
    /// The values that it accepts, as the end of the sentence "expected ...".
    pub(crate) expected: fn() -> String,
    /// Sets it from text. Returns `None` if the text is not a valid value.
    pub(crate) set: fn(&mut Settings, &str) -> Option<()>,
    pub(crate) show: fn(&Settings) -> String,
}

impl Setting {
    pub(crate) fn environment(&self) -> String {
        format!("FANFARE_{}", self.key.to_uppercase())
    }

    pub(crate) fn flag(&self) -> String {
        self.key.replace('_', "-")
    }

    pub(crate) fn default_text(&self) -> String {
        (self.show)(&Settings::default())
    }
}

macro_rules! settings {
    ($(
        $(#[doc = $doc:literal])+
        $key:ident: $kind:ident $(($($path:ident).+))? $(, alias = $alias:literal)? $(, hidden = $hidden:literal)?;
    )+) => {
        /// Every setting, in the order of the documentation.
        pub(crate) const TABLE: &[Setting] = &[$(Setting {
            key: stringify!($key),
            alias: settings!(@alias $($alias)?),
            help: concat!($($doc),+).trim_ascii(),
            value_name: kind::$kind::NAME,
            hidden: settings!(@hidden $($hidden)?),
            expected: kind::$kind::expected,
            set: |settings, text| {
                settings$(.$($path).+)?.$key = kind::$kind::parse(text)?;
                Some(())
            },
            show: |settings| kind::$kind::show(&settings$(.$($path).+)?.$key),
        }),+];
    };
    (@alias $alias:literal) => { Some($alias) };
    (@alias) => { None };
    (@hidden $hidden:literal) => { $hidden };
    (@hidden) => { false };
}

settings! {
    /// The address and port to listen on.
    listen: address;
    /// Number of worker processes that share the port, started and monitored by a supervisor. More than one requires
    /// redis_url. 0: one for every core.
    workers: count;
    /// A separate address for /metrics, served there without authentication. On the main address /metrics requires an
    /// administrator's token. The first worker uses this port, and each other worker the next one.
    metrics_listen: own_address;
    /// The TLS certificate, followed by its chain, as PEM; reloaded when it changes. If not set, TLS is off.
    tls_certificate_file: file;
    /// The private key of the certificate, as PEM; reloaded when it changes.
    tls_key_file: file;
    /// How long browsers use only TLS for this host after a response over TLS (the max-age of
    /// Strict-Transport-Security), such as 365d. 0s: the header is not sent. If a proxy terminates TLS, configure it
    /// there.
    hsts_max_age: span;
    /// Load balancers, as addresses or networks, whose connections must begin with a PROXY header (version 1 or 2) that
    /// names the client's address.
    proxy_protocol_from: proxies;
    /// The secret that signs and verifies tokens, shared with your backend; at least 32 random bytes. If not set, a
    /// random secret is generated for each run.
    secret_key: secret, alias = "SECRET_KEY", hidden = true;
    /// A file with the secret, instead of secret_key. Further lines are previous secrets, which still verify tokens
    /// during a rotation.
    secret_key_file: file;
    /// The previous secret, which still verifies tokens while secret_key replaces it.
    previous_secret_key: secret, hidden = true;
    /// The algorithm that signs tokens. Tokens with another algorithm are rejected.
    algorithm: algorithm, alias = "ALGORITHM";
    /// For algorithms with public keys: the private key that signs the hub's own tokens, as PEM. Its public key is
    /// served at /.well-known/jwks.json.
    private_key_file: file;
    /// For algorithms with public keys: further keys that verify tokens, as PEM, JWK or JWKS.
    public_key_file: file;
    /// The URL of an identity provider's public keys (JWKS). The keys are fetched again when a token names an unknown
    /// key.
    jwks_url: web_url;
    /// The interval at which the keys at jwks_url are fetched again.
    jwks_refresh: duration;
    /// The issuer (iss) that tokens must have. The hub's own tokens get it too.
    token_issuer: text;
    /// The audience (aud) that tokens must have. The hub's own tokens get it too. If not set, tokens with an audience
    /// are rejected.
    token_audience: text;
    /// The accepted clock difference between the hub and the issuers of tokens.
    leeway: span;
    /// Reject tokens without an expiry (exp).
    require_exp: switch;
    /// How long before its token expires a client receives auth_expiring.
    token_warning: duration(hub);
    /// Lifetime of the hub's own tokens (logins and `fanfare token`), in minutes.
    access_token_expire_minutes: minutes, alias = "ACCESS_TOKEN_EXPIRE_MINUTES";
    /// How long a login can be renewed without the password (POST /auth/refresh), in days since the last renewal.
    refresh_token_expire_days: days;
    /// The database for accounts and access keys: sqlite://FILE (created on first use), postgres://..., or none for a
    /// hub without accounts.
    database_url: database_url, hidden = true;
    /// Login attempts a minute from one address. 0: no limit.
    logins_per_minute_per_address: rate;
    /// Login attempts a minute to one account from one address. All addresses that have not logged in to the account
    /// before share ten times as many. 0: no limit.
    logins_per_minute_per_account: rate;
    /// The Redis that stores the log, so that several processes share it: redis://, redis+sentinel:// or
    /// redis+cluster://, or with rediss for TLS. If not set, the log is kept in the memory of this process.
    redis_url: redis_url, alias = "REDIS_URL", hidden = true;
    /// The certificate authorities that verify the certificate of Redis, as PEM, or that certificate itself if it is
    /// self-signed. If not set, the system's authorities are used.
    redis_ca_file: file;
    /// The client certificate for Redis, followed by its chain, as PEM. Read when a process starts.
    redis_certificate_file: file;
    /// The private key of the client certificate for Redis, as PEM. Read when a process starts.
    redis_key_file: file;
    /// Prefix of the names of all keys and channels in Redis. Publishers of the FastAPI hub use ws.
    redis_namespace: word;
    /// Further Redis channels, by their full names, such as task_status_update,agent_activity_update. Their messages
    /// are published as events, to everyone or to the audience that they name.
    redis_channels: channels;
    /// When a publish is confirmed: log (once Redis has the event) or replica (once a replica has it too, so that a
    /// failover does not lose it).
    durability: durability;
    /// The highest delay of the log in Redis. Beyond it the hub reports that it is not ready, and reconnects to Redis.
    bus_lag_limit: duration;
    /// The log level, globally or by module: error, warn, info, debug or trace.
    log_level: log_level;
    /// The format of log lines: text or json.
    log_format: log_format;
    /// The OpenTelemetry collector that receives traces over OTLP (HTTP, JSON), such as http://127.0.0.1:4318. If not
    /// set, tracing is off.
    otlp_endpoint: web_url, alias = "OTEL_EXPORTER_OTLP_ENDPOINT";
    /// The share of publishes that is traced, from 0 to 1, if the publisher's trace context (traceparent) does not
    /// decide.
    trace_share: share;
    /// Number of threads that own connections. 0: one for every two cores.
    shards: count(hub);
    /// The interval at which each client is sent a ping.
    heartbeat_interval: duration(hub);
    /// A client from which no frame arrives for this long is closed. Any frame counts.
    heartbeat_timeout: duration(hub);
    /// The time limit for each step of a connection: the TLS handshake, the head and the body of a request, reading the
    /// response, idling until the next request, the upgrade, and answering a close frame. Bodies and responses get one
    /// more second for each KiB.
    handshake_timeout: duration(hub);
    /// The largest frame that a client may send.
    max_frame_bytes: size(hub);
    /// The largest message that a client may send, over all its frames.
    max_message_bytes: size(hub);
    /// Frames a second from one client; twice as many in a burst. 0: no limit.
    max_messages_per_second: rate(hub);
    /// Number of connected clients. 0: no limit.
    max_connections: count(hub);
    /// Connections of one user, over all nodes; administrators are exempt. 0: no limit.
    max_connections_per_user: count(hub);
    /// Connections from one address. 0: no limit.
    max_connections_per_address: count(hub);
    /// HTTP connections that are not (yet) upgraded. At the limit, a new connection closes the oldest one of the
    /// address with the most. 0: up to 8,192, as long as clients leave enough open files, and at least 512.
    max_http_connections: count;
    /// HTTP connections from one address (IPv6: one /64) that is not a proxy. At the limit, a new connection closes the
    /// oldest one. 0: half of max_http_connections, or all of it if max_connections_per_address is 0.
    max_http_connections_per_address: count;
    /// New connections a second from one address; twice as many in a burst. 0: no limit.
    connects_per_second_per_address: rate(hub);
    /// New connections a second of one user; twice as many in a burst; administrators are exempt. 0: no limit.
    connects_per_second_per_user: rate(hub);
    /// Events a second that one user or access key may publish over HTTP; twice as many in a burst. 0: no limit.
    publishes_per_second: rate(hub);
    /// Bytes a second that are replayed after a gap, for each user and for each address. A client beyond the limit
    /// receives the gap and then only live events. 0: no limit.
    gap_replay_bytes_per_second: rate(hub);
    /// The longest delay before a repeatedly rejected client (by its token, its origin or a limit) receives its close
    /// frame. The first rejection is immediate, and the next ones wait 1s, 2s, 4s and so on. 0: no delay.
    refusal_delay: span(hub);
    /// Number of topics that one connection may subscribe to.
    max_topics_per_connection: count(hub);
    /// The largest event that may be published, as JSON.
    max_event_bytes: size(hub);
    /// Number of events in one batch.
    max_batch_events: positive_count(hub);
    /// Reject events whose fields do not have the documented form, such as a task_status_update without a task_id or
    /// with an unknown status. If false, any JSON object with a type is an event.
    validate_events: switch(hub);
    /// Behave like the FastAPI hub where fanfare is stricter: POST /tasks/{task_id}/update, /users/{user_id}/notify and
    /// /agents/{agent_id}/activity need no token, tasks need no status, the ID in the path takes precedence over the
    /// one in the body, and connects_per_second_per_address is 0 unless set. With it, any client that reaches the hub
    /// can publish.
    compat: switch(hub);
    /// Sites whose pages may connect in addition to the hub's own, separated by commas, such as
    /// https://app.example.org, https://*.example.org (every subdomain) or capacitor://localhost. *: every site.
    allowed_origins: origins(hub);
    /// Request headers, separated by commas, that pages of allowed_origins may send in addition to authorization,
    /// content-type and those of tracing libraries (CORS).
    cors_headers: headers(hub);
    /// Allow pages of allowed_origins to send cookies and other credentials (CORS), which a proxy in front of the hub
    /// may require. Not possible with *.
    cors_credentials: switch(hub);
    /// Proxies in front of the hub, as addresses or networks such as 10.0.0.0/8, whose X-Forwarded-For and
    /// X-Forwarded-Host headers are trusted.
    trusted_proxies: proxies(hub);
    /// Clients a second that are disconnected while a process shuts down. 0: all at once.
    drain_rate: rate(hub);
    /// How long a process that shuts down waits for its clients to disconnect.
    drain_timeout: duration;
    /// Number of events that are retained for clients that reconnect.
    window_events: positive_count(hub);
    /// Size of the events that are retained for clients that reconnect.
    window_bytes: size(hub);
    /// Age up to which events are retained for clients that reconnect.
    window_age: duration(hub);
    /// How long event IDs are remembered: an event that is published again with the same event_id is not delivered
    /// again, even if the first one is no longer retained. If it is less than window_age, window_age applies. The
    /// metric fanfare_idempotency_horizon_seconds shows how far back the IDs currently reach.
    idempotency_horizon: duration(hub);
    /// Number of event IDs that are remembered for idempotency_horizon. With more events in that time the horizon is
    /// shorter, which is logged. If it is less than window_events, window_events applies. An ID takes about 50 bytes of
    /// memory, or 100 bytes and its length in Redis, and up to half as many again are kept.
    idempotency_events: positive_count(hub);
}

/// Returns the key of a setting that conflicts with another one, and a message. Each of the two is valid by itself.
pub(crate) fn conflict(settings: &Settings) -> Option<(&'static str, String)> {
    let hub = &settings.hub;
    let (timeout, interval) = (hub.heartbeat_timeout, hub.heartbeat_interval);
    if timeout <= interval {
        let (timeout, interval) = (kind::show_duration(timeout), kind::show_duration(interval));
        let text = format!(
            "heartbeat_timeout ({timeout}) must be longer than heartbeat_interval ({interval}): otherwise every \
             client that only receives is closed before it can answer a ping"
        );
        return Some(("heartbeat_timeout", text));
    }
    if settings.tls_certificate_file.is_some() != settings.tls_key_file.is_some() {
        let there = if settings.tls_key_file.is_some() { "tls_key_file" } else { "tls_certificate_file" };
        return Some((there, "TLS needs both tls_certificate_file and tls_key_file: set the other one too".to_owned()));
    }
    key_conflict(settings)
        .or_else(|| workers_conflict(settings))
        .or_else(|| channels_conflict(settings))
        .or_else(|| redis_conflict(settings))
        .or_else(|| cors_conflict(settings))
}

fn key_conflict(settings: &Settings) -> Option<(&'static str, String)> {
    let algorithm = settings.algorithm;
    let key_settings = [
        ("private_key_file", settings.private_key_file.is_some()),
        ("public_key_file", settings.public_key_file.is_some()),
        ("jwks_url", settings.jwks_url.is_some()),
    ];
    let named = key_settings.iter().find(|(_, set)| *set).map(|(key, _)| *key);
    let secret = settings.algorithm.family() == Family::Secret;
    match named {
        Some(key) if secret => {
            let text = format!(
                "{algorithm} signs with a secret, but {key} is set: set algorithm to the algorithm of the key, such \
                 as RS256, or remove {key}"
            );
            return Some((key, text));
        }
        None if !secret => {
            let text = format!(
                "{algorithm} needs keys: set private_key_file to sign tokens, or public_key_file or jwks_url only to \
                 verify them"
            );
            return Some(("algorithm", text));
        }
        _ => {}
    }
    if settings.secret_key.is_some() && settings.secret_key_file.is_some() {
        let text = "secret_key and secret_key_file are both set: remove one of them".to_owned();
        return Some(("secret_key_file", text));
    }
    if settings.redis_url.is_some() && !secret && settings.private_key_file.is_none() && settings.secret_key.is_none() {
        let text = "several nodes authenticate connection IDs with a shared secret, which public keys do not provide: \
            set secret_key too (SECRET_KEY), to the same value on all nodes"
            .to_owned();
        return Some(("secret_key", text));
    }
    None
}

fn redis_conflict(settings: &Settings) -> Option<(&'static str, String)> {
    let files = [
        ("redis_ca_file", settings.redis_ca_file.is_some()),
        ("redis_certificate_file", settings.redis_certificate_file.is_some()),
        ("redis_key_file", settings.redis_key_file.is_some()),
    ];
    let (named, _) = files.into_iter().find(|(_, set)| *set)?;
    if !settings.redis_url.as_ref().is_some_and(RedisUrl::is_tls) {
        let text = format!(
            "{named} requires TLS: set redis_url (REDIS_URL) to a URL that begins with rediss, or remove {named}"
        );
        return Some((named, text));
    }
    if settings.redis_certificate_file.is_some() != settings.redis_key_file.is_some() {
        let there = if settings.redis_key_file.is_some() { "redis_key_file" } else { "redis_certificate_file" };
        let text = "a client certificate needs both redis_certificate_file and redis_key_file: set the other one too"
            .to_owned();
        return Some((there, text));
    }
    None
}

fn cors_conflict(settings: &Settings) -> Option<(&'static str, String)> {
    let every = settings.hub.cors_credentials && settings.hub.allowed_origins == Origins::Every;
    every.then(|| {
        let text = "cors_credentials requires allowed_origins to list the sites: with * every page that a user opens \
            could use the user's credentials";
        ("cors_credentials", text.to_owned())
    })
}

fn workers_conflict(settings: &Settings) -> Option<(&'static str, String)> {
    if settings.workers != 1 && settings.redis_url.is_none() {
        let text = "several workers need a shared log, otherwise clients miss the events of the other workers: \
            set redis_url (REDIS_URL), or set workers to 1"
            .to_owned();
        return Some(("workers", text));
    }
    None
}

fn channels_conflict(settings: &Settings) -> Option<(&'static str, String)> {
    let own = format!("{}:", settings.redis_namespace);
    let name = settings.redis_channels.iter().find(|name| name.starts_with(&own))?;
    let text = format!("the hub always subscribes to its own channel {name}: remove it from redis_channels");
    Some(("redis_channels", text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_the_hubs_config_is_a_setting() {
        let shown = format!("{:?}", Config::default());
        let fields = shown.split(['{', ',']).skip(1).filter_map(|part| part.split_once(':'));
        let fields: Vec<_> = fields.map(|(name, _)| name.trim()).collect();
        assert!(fields.len() > 10, "{shown}");
        for field in fields {
            assert!(TABLE.iter().any(|setting| setting.key == field), "{field}");
        }
    }

    #[test]
    fn every_shown_default_can_be_parsed() {
        for setting in TABLE.iter().filter(|setting| setting.default_text() != "not set") {
            let mut settings = Settings::default();
            assert!((setting.set)(&mut settings, &setting.default_text()).is_some(), "{}", setting.key);
            assert_eq!((setting.show)(&settings), setting.default_text(), "{}", setting.key);
        }
    }

    #[test]
    fn descriptions_are_sentences() {
        for setting in TABLE {
            assert!(setting.help.ends_with('.') && !setting.help.contains('|'), "{}", setting.key);
        }
    }

    #[test]
    fn conflicting_settings_are_rejected() {
        assert_eq!(conflict(&Settings::default()), None);
        let mut settings = Settings::default();
        settings.hub.heartbeat_timeout = Duration::from_secs(30);
        let (key, text) = conflict(&settings).expect("as long as the interval");
        assert!(key == "heartbeat_timeout" && text.contains("(30s) must be longer"), "{text}");

        let mut settings = Settings::default();
        (settings.hub.cors_credentials, settings.hub.allowed_origins) = (true, Origins::Every);
        let (key, text) = conflict(&settings).expect("credentials of every site");
        assert!(key == "cors_credentials" && text.contains("list the sites"), "{text}");

        let mut settings = Settings { redis_key_file: Some("k.pem".into()), ..Settings::default() };
        let (key, text) = conflict(&settings).expect("a key without TLS");
        assert!(key == "redis_key_file" && text.contains("begins with rediss"), "{text}");
        settings.redis_url = Some("rediss://h".parse().unwrap());
        let (key, text) = conflict(&settings).expect("a key without a certificate");
        assert!(key == "redis_key_file" && text.contains("needs both"), "{text}");
        settings.redis_certificate_file = Some("c.pem".into());
        assert_eq!(conflict(&settings), None);
    }
}

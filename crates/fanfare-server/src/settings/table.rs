//! Every setting, once: flags, environment names, TOML keys, help and documentation come from here.

use super::kind::{self, LogFormat, Secret};
use crate::accounts::DatabaseUrl;
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

/// What runs: every setting with its value, parsed.
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
    /// The name that the reference has for it, without a prefix.
    pub(crate) alias: Option<&'static str>,
    /// What it sets, in a sentence.
    pub(crate) help: &'static str,
    /// What stands for a value in help texts.
    pub(crate) value_name: &'static str,
    /// No value of it may be shown.
    pub(crate) hidden: bool,
    /// Which values there are, as the end of the sentence "expected ...".
    pub(crate) expected: fn() -> String,
    /// Sets it from text. None: the text is no value of it.
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
    ($($(#[doc = $doc:literal])+ $key:ident: $kind:ident $(($($path:ident).+))? $(, alias = $alias:literal)? $(, hidden = $hidden:literal)?;)+) => {
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
    /// Where to listen.
    listen: address;
    /// Processes that share the port, which a supervisor keeps alive; more than one need a Redis. 0: one for every core.
    workers: count;
    /// Where to serve /metrics to everybody, beside /metrics on the main address with an administrator's token. The first worker takes this port, each other one the next.
    metrics_listen: own_address;
    /// The certificate for TLS as PEM, with the chain behind it; read anew when it changes. Without one there is no TLS.
    tls_certificate_file: file;
    /// The key of the certificate, as PEM.
    tls_key_file: file;
    /// How long browsers keep to TLS for this host after a response over it (Strict-Transport-Security), such as 365d. 0s: they are not told. Behind a proxy that speaks TLS, the proxy says it.
    hsts_max_age: span;
    /// Load balancers whose connections begin with a PROXY header (version 1 or 2) that says whose they are, as addresses or networks.
    proxy_protocol_from: proxies;
    /// The secret that tokens are signed with, the same as your backend's; at least 32 random bytes. Without one, a random secret is made for each run.
    secret_key: secret, alias = "SECRET_KEY", hidden = true;
    /// A file with the secret, instead of the secret itself. Further lines are secrets that are still believed, while it is being replaced.
    secret_key_file: file;
    /// A secret that is still believed while secret_key replaces it.
    previous_secret_key: secret, hidden = true;
    /// How tokens are signed. A token that says otherwise is refused.
    algorithm: algorithm, alias = "ALGORITHM";
    /// A private key as PEM, for an algorithm with public keys: what our own tokens are signed with. Its public half is served at /.well-known/jwks.json.
    private_key_file: file;
    /// Public keys as PEM, JWK or JWKS, for an algorithm with public keys: what tokens are verified with, beside private_key_file's.
    public_key_file: file;
    /// Where an identity provider serves its public keys as JWKS; they are fetched again when a token names a new one.
    jwks_url: web_url;
    /// How often the keys at jwks_url are fetched again.
    jwks_refresh: duration;
    /// The issuer (iss) that tokens must have; ours get it.
    token_issuer: text;
    /// The audience (aud) that tokens must have; ours get it. Without it, tokens with an audience are refused.
    token_audience: text;
    /// How far the clock of whoever makes tokens may differ from ours.
    leeway: span;
    /// Reject tokens that never expire: those without exp.
    require_exp: switch;
    /// How long before its token ends a client is told (auth_expiring).
    token_warning: duration(hub);
    /// How long our own tokens are valid, those of a login and of `fanfare token`, in minutes.
    access_token_expire_minutes: minutes, alias = "ACCESS_TOKEN_EXPIRE_MINUTES";
    /// How long a login can be renewed without the password (POST /auth/refresh), in days since it was last.
    refresh_token_expire_days: days;
    /// Where users and access keys are: sqlite://FILE (made when it is first needed), postgres://..., or none for a hub without accounts.
    database_url: database_url, hidden = true;
    /// Logins a minute from one address. 0: no limit.
    logins_per_minute_per_address: rate;
    /// Logins a minute to one account from one address. From all addresses from which it has not logged in, ten times as many. 0: no limit.
    logins_per_minute_per_account: rate;
    /// Where the Redis is that holds the log, so that several processes share it: redis://, redis+sentinel:// or redis+cluster://, with rediss for TLS. Without one the log is in this process's memory.
    redis_url: redis_url, alias = "REDIS_URL", hidden = true;
    /// The authorities of Redis' certificate as PEM, or that certificate itself if it is self-signed. Without it, the system's authorities are trusted.
    redis_ca_file: file;
    /// The client certificate for Redis as PEM, with its chain behind it. Read when a process starts.
    redis_certificate_file: file;
    /// The key of the client certificate for Redis, as PEM.
    redis_key_file: file;
    /// What the names of all keys and channels in Redis begin with; ws is what the reference's publishers use.
    redis_namespace: word;
    /// Further Redis channels, by their whole names, whose messages are events for everyone, or for the audience that they name; such as task_status_update,agent_activity_update.
    redis_channels: channels;
    /// When a publish is answered: log (Redis has the event) or replica (a replica has it too, so that a failover can't lose it).
    durability: durability;
    /// How long news may take through Redis before health and readiness say so and the link is made anew.
    bus_lag_limit: duration;
    /// What is logged: error, warn, info, debug or trace, for all or by module.
    log_level: log_level;
    /// How log lines are written: text or json.
    log_format: log_format;
    /// Where traces from publish to write go: an OpenTelemetry collector that takes OTLP over HTTP, such as http://127.0.0.1:4318. Without one nothing is traced.
    otlp_endpoint: web_url, alias = "OTEL_EXPORTER_OTLP_ENDPOINT";
    /// The share of publishes that is traced, from 0 to 1, where the publisher's own trace (traceparent) does not say.
    trace_share: share;
    /// Threads that own connections. 0: one for every two cores.
    shards: count(hub);
    /// How often each connection is sent a ping.
    heartbeat_interval: duration(hub);
    /// How long a client may be silent before it is closed; any frame counts.
    heartbeat_timeout: duration(hub);
    /// How long a client may take for TLS, to send a request's head, its body, to read the response, to send the next request, to upgrade, or to answer a close. Bodies and responses have a second more for each KiB.
    handshake_timeout: duration(hub);
    /// The largest frame that a client may send.
    max_frame_bytes: size(hub);
    /// The largest message that a client may send, over all its frames.
    max_message_bytes: size(hub);
    /// Frames a second that one client may send; twice as many in a burst. 0: no limit.
    max_messages_per_second: rate(hub);
    /// Connections in all. 0: no limit.
    max_connections: count(hub);
    /// Connections of one user; administrators may have any number. 0: no limit.
    max_connections_per_user: count(hub);
    /// Connections from one address. 0: no limit.
    max_connections_per_address: count(hub);
    /// HTTP connections in all: those that have not become clients. A new one closes the oldest of the busiest address. 0: up to 8,192 in files that no client uses, and 512 in any case.
    max_http_connections: count;
    /// HTTP connections from one address (IPv6: from one /64) that is no proxy. A new one closes the oldest. 0: half of all, or all where max_connections_per_address is 0.
    max_http_connections_per_address: count;
    /// New connections a second from one address; twice as many in a burst. 0: no limit.
    connects_per_second_per_address: rate(hub);
    /// New connections a second of one user; twice as many in a burst, administrators any number. 0: no limit.
    connects_per_second_per_user: rate(hub);
    /// Events a second that one user or access key may publish over HTTP; twice as many in a burst. 0: no limit.
    publishes_per_second: rate(hub);
    /// Bytes of events a second that are replayed behind a gap to one user, and to one address; beyond, a client goes on live behind its gap. 0: no limit.
    gap_replay_bytes_per_second: rate(hub);
    /// The longest that a client which is refused again and again, by its token, origin or a limit, waits for its answer: the first comes at once, then after 1s, 2s, 4s and so on. 0: no delay.
    refusal_delay: span(hub);
    /// Topics that one connection may hold.
    max_topics_per_connection: count(hub);
    /// The largest event that may be published, as JSON.
    max_event_bytes: size(hub);
    /// The most events in one batch.
    max_batch_events: positive_count(hub);
    /// Reject events whose fields do not have the documented types, such as a task_status_update without a task_id or with an unknown status. Off: any JSON object with a type is published.
    validate_events: switch(hub);
    /// Behave as the FastAPI hub where fanfare is stricter: POST /tasks/{task_id}/update, /users/{user_id}/notify and /agents/{agent_id}/activity need no token, tasks need no status, an id in a body yields to that of the path, and connects_per_second_per_address is 0 unless set. Anybody who reaches the hub can then publish.
    compat: switch(hub);
    /// Sites whose pages may connect beside the hub's own, such as https://app.example.org, https://*.example.org (every subdomain) or capacitor://localhost, with commas between them; * for every one.
    allowed_origins: origins(hub);
    /// Request headers that pages of allowed_origins may send beside authorization, content-type and those of tracing libraries (CORS), with commas between them.
    cors_headers: headers(hub);
    /// Let pages of allowed_origins send cookies and other credentials (CORS), which a proxy in front may need; not with *.
    cors_credentials: switch(hub);
    /// Proxies in front of the hub, as addresses or networks such as 10.0.0.0/8, which are believed when they say whose request it is (X-Forwarded-For).
    trusted_proxies: proxies(hub);
    /// Clients a second that are told to go when a process ends or is replaced. 0: all at once.
    drain_rate: rate(hub);
    /// How long a process that ends waits for its clients to have gone.
    drain_timeout: duration;
    /// How many events are kept for clients that come back.
    window_events: positive_count(hub);
    /// How many bytes of events are kept for clients that come back.
    window_bytes: size(hub);
    /// How long an event is kept for clients that come back.
    window_age: duration(hub);
    /// For how long an event that is published again under its event_id is recognised and not delivered again, also when it is no longer kept. Never less than window_age: the larger of the two counts. /metrics has how far back it reaches now (fanfare_idempotency_horizon_seconds).
    idempotency_horizon: duration(hub);
    /// How many event ids are remembered for idempotency_horizon; with more events in that time it is shorter, which is logged. Never less than window_events. An id takes about 50 bytes of memory, or 100 and its length in Redis, and up to half as many again are kept.
    idempotency_events: positive_count(hub);
}

/// What is wrong between two settings that are each all right.
pub(crate) fn contradiction(settings: &Settings) -> Option<(&'static str, String)> {
    let hub = &settings.hub;
    let (timeout, interval) = (hub.heartbeat_timeout, hub.heartbeat_interval);
    if timeout <= interval {
        let (timeout, interval) = (kind::show_duration(timeout), kind::show_duration(interval));
        let text = format!(
            "heartbeat_timeout ({timeout}) must be longer than heartbeat_interval ({interval}), or every client that is \
             only listening is closed before it can answer a ping"
        );
        return Some(("heartbeat_timeout", text));
    }
    if settings.tls_certificate_file.is_some() != settings.tls_key_file.is_some() {
        let there = if settings.tls_key_file.is_some() { "tls_key_file" } else { "tls_certificate_file" };
        return Some((there, "TLS needs both, tls_certificate_file and tls_key_file".to_owned()));
    }
    keys_contradiction(settings)
        .or_else(|| workers_contradiction(settings))
        .or_else(|| channels_contradiction(settings))
        .or_else(|| redis_contradiction(settings))
        .or_else(|| cors_contradiction(settings))
}

fn keys_contradiction(settings: &Settings) -> Option<(&'static str, String)> {
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
                "{algorithm} signs with a secret, and {key} names a key: set algorithm to what the key is for, such as RS256, \
                 or remove {key}"
            );
            return Some((key, text));
        }
        None if !secret => {
            let text = format!(
                "{algorithm} needs keys: set private_key_file to sign tokens here, or public_key_file or jwks_url to verify \
                 those of others"
            );
            return Some(("algorithm", text));
        }
        _ => {}
    }
    if settings.secret_key.is_some() && settings.secret_key_file.is_some() {
        let text = "secret_key and secret_key_file both name the secret: remove one of them".to_owned();
        return Some(("secret_key_file", text));
    }
    if settings.redis_url.is_some() && !secret && settings.private_key_file.is_none() && settings.secret_key.is_none() {
        let text = "several nodes know each other's clients by names that are made with a secret, which a public key is not: set \
            secret_key too (SECRET_KEY), the same on all of them"
            .to_owned();
        return Some(("secret_key", text));
    }
    None
}

fn redis_contradiction(settings: &Settings) -> Option<(&'static str, String)> {
    let files = [
        ("redis_ca_file", settings.redis_ca_file.is_some()),
        ("redis_certificate_file", settings.redis_certificate_file.is_some()),
        ("redis_key_file", settings.redis_key_file.is_some()),
    ];
    let (named, _) = files.into_iter().find(|(_, set)| *set)?;
    if !settings.redis_url.as_ref().is_some_and(RedisUrl::is_tls) {
        let text = format!(
            "{named} is for TLS: set redis_url (REDIS_URL) to a URL that begins with rediss, or remove {named}"
        );
        return Some((named, text));
    }
    if settings.redis_certificate_file.is_some() != settings.redis_key_file.is_some() {
        let there = if settings.redis_key_file.is_some() { "redis_key_file" } else { "redis_certificate_file" };
        let text = "a client certificate needs both, redis_certificate_file and redis_key_file".to_owned();
        return Some((there, text));
    }
    None
}

fn cors_contradiction(settings: &Settings) -> Option<(&'static str, String)> {
    let every = settings.hub.cors_credentials && settings.hub.allowed_origins == Origins::Every;
    every.then(|| {
        let text = "cors_credentials needs allowed_origins to list the sites: with * every page that a user opens could use \
            the user's credentials";
        ("cors_credentials", text.to_owned())
    })
}

fn workers_contradiction(settings: &Settings) -> Option<(&'static str, String)> {
    if settings.workers != 1 && settings.redis_url.is_none() {
        let text = "several workers need a log that they share, or each would have events that the others' clients never see: \
            set redis_url (REDIS_URL), or leave it at one worker"
            .to_owned();
        return Some(("workers", text));
    }
    None
}

fn channels_contradiction(settings: &Settings) -> Option<(&'static str, String)> {
    let own = format!("{}:", settings.redis_namespace);
    let name = settings.redis_channels.iter().find(|name| name.starts_with(&own))?;
    let text = format!("the channel {name} is one of the hub's own, which it subscribes to anyway: remove it");
    Some(("redis_channels", text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_the_hub_is_a_setting() {
        let shown = format!("{:?}", Config::default());
        let fields = shown.split(['{', ',']).skip(1).filter_map(|part| part.split_once(':'));
        let fields: Vec<_> = fields.map(|(name, _)| name.trim()).collect();
        assert!(fields.len() > 10, "{shown}");
        for field in fields {
            assert!(TABLE.iter().any(|setting| setting.key == field), "{field}");
        }
    }

    #[test]
    fn every_default_can_be_written_as_it_is_shown() {
        for setting in TABLE.iter().filter(|setting| setting.default_text() != "not set") {
            let mut settings = Settings::default();
            assert!((setting.set)(&mut settings, &setting.default_text()).is_some(), "{}", setting.key);
            assert_eq!((setting.show)(&settings), setting.default_text(), "{}", setting.key);
        }
    }

    #[test]
    fn help_texts_are_sentences() {
        for setting in TABLE {
            assert!(setting.help.ends_with('.') && !setting.help.contains('|'), "{}", setting.key);
        }
    }

    #[test]
    fn contradictions_are_found() {
        assert_eq!(contradiction(&Settings::default()), None);
        let mut settings = Settings::default();
        settings.hub.heartbeat_timeout = Duration::from_secs(30);
        let (key, text) = contradiction(&settings).expect("as long as the interval");
        assert!(key == "heartbeat_timeout" && text.contains("(30s) must be longer"), "{text}");

        let mut settings = Settings::default();
        (settings.hub.cors_credentials, settings.hub.allowed_origins) = (true, Origins::Every);
        let (key, text) = contradiction(&settings).expect("credentials of every site");
        assert!(key == "cors_credentials" && text.contains("list the sites"), "{text}");

        let mut settings = Settings { redis_key_file: Some("k.pem".into()), ..Settings::default() };
        let (key, text) = contradiction(&settings).expect("a key without TLS");
        assert!(key == "redis_key_file" && text.contains("begins with rediss"), "{text}");
        settings.redis_url = Some("rediss://h".parse().unwrap());
        let (key, text) = contradiction(&settings).expect("a key without a certificate");
        assert!(key == "redis_key_file" && text.contains("needs both"), "{text}");
        settings.redis_certificate_file = Some("c.pem".into());
        assert_eq!(contradiction(&settings), None);
    }
}

//! The metrics of a hub: one table, from which the code, the Prometheus text and the documentation are generated.

use fanfare_log::metrics::{LogCounter, LogMetrics};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident = $family:literal $(, $label:literal = $value:literal)?;)+) => {
        /// A counter of a hub.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Counter { $($(#[doc = $doc])+ $name,)+ }

        impl Counter {
            /// Every counter, grouped by family.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The family's name, without the `_total` that Prometheus adds.
            pub const fn family(self) -> &'static str {
                match self { $(Self::$name => $family),+ }
            }

            /// The label that distinguishes the counters of a family, and its value.
            pub const fn label(self) -> Option<(&'static str, &'static str)> {
                match self { $(Self::$name => counters!(@label $($label = $value)?)),+ }
            }

            /// A description, as a sentence.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii()),+ }
            }
        }
    };
    (@label $label:literal = $value:literal) => { Some(($label, $value)) };
    (@label) => { None };
}

counters! {
    /// Connections that were accepted.
    Connects = "fanfare_connects";
    /// Connections that resumed from a cursor without a gap.
    Resumes = "fanfare_resumes";
    /// Connections that were replaced by a newer socket.
    Takeovers = "fanfare_takeovers";
    /// Events that this node appended to the log.
    Events = "fanfare_events";
    /// Events that were not appended because their `event_id` is already in the log.
    Duplicates = "fanfare_duplicate_events";
    /// Events that the log in Redis had lost and this node restored.
    EventsRestored = "fanfare_restored_events";
    /// Events that the log in Redis lost and this node could not restore; clients received a gap.
    EventsLost = "fanfare_lost_events";
    /// Messages on Redis channels that were dropped because the buffer was full while the log was unavailable.
    PublicationsLost = "fanfare_lost_publications";
    /// Commands sent to Redis.
    RedisCommands = "fanfare_redis_commands";
    /// Redis commands that failed or timed out.
    RedisErrors = "fanfare_redis_errors";
    /// Reconnects to Redis.
    BusReconnects = "fanfare_bus_reconnects";
    /// Events written to a connection.
    Deliveries = "fanfare_deliveries";
    /// Bytes written to connections.
    BytesSent = "fanfare_sent_bytes";
    /// Bytes read from connections.
    BytesReceived = "fanfare_received_bytes";
    /// Messages that clients sent.
    Messages = "fanfare_messages";
    /// Pings sent.
    Pings = "fanfare_pings";
    /// Pauses of a shard that were long enough to extend the timeouts of its clients.
    Pauses = "fanfare_shard_pauses";
    /// Gaps sent because events after the cursor were evicted.
    GapsExpired = "fanfare_gaps", "reason" = "expired";
    /// Gaps sent because the cursor belongs to another log, or the log lost events.
    GapsReset = "fanfare_gaps", "reason" = "reset";
    /// Rejected: no token.
    AuthMissing = "fanfare_auth_failures", "reason" = "token_missing";
    /// Rejected: the token has expired.
    AuthExpired = "fanfare_auth_failures", "reason" = "token_expired";
    /// Rejected: the token is not valid yet.
    AuthNotYetValid = "fanfare_auth_failures", "reason" = "token_not_yet_valid";
    /// Rejected: the token is not valid.
    AuthInvalid = "fanfare_auth_failures", "reason" = "token_invalid";
    /// Rejected: the token was revoked.
    AuthRevoked = "fanfare_auth_failures", "reason" = "token_revoked";
    /// Rejected: the keys that verify tokens were unavailable.
    AuthUnavailable = "fanfare_auth_failures", "reason" = "keys_unavailable";
    /// Rejected: the page belongs to a site that is not allowed (`allowed_origins`).
    ForeignOrigin = "fanfare_auth_failures", "reason" = "origin_not_allowed";
    /// Rejected: the token does not permit the operation.
    AuthForbidden = "fanfare_auth_failures", "reason" = "forbidden";
    /// Clients notified that their token expires soon.
    TokensExpiring = "fanfare_expiring_tokens";
    /// Clients closed because their token expired.
    TokensExpired = "fanfare_expired_tokens";
    /// Clients closed because their token was revoked.
    TokensRevoked = "fanfare_revoked_tokens";
    /// Rejected: too many connections in total.
    LimitConnections = "fanfare_refusals", "limit" = "max_connections";
    /// Rejected: too many connections of one user.
    LimitPerUser = "fanfare_refusals", "limit" = "max_connections_per_user";
    /// Rejected: too many connections from one address.
    LimitPerAddress = "fanfare_refusals", "limit" = "max_connections_per_address";
    /// Rejected: too many new connections a second from one address.
    LimitConnectRate = "fanfare_refusals", "limit" = "connects_per_second_per_address";
    /// Rejected: too many new connections a second of one user.
    LimitUserConnectRate = "fanfare_refusals", "limit" = "connects_per_second_per_user";
    /// Rejected without an upgrade: too many rejected clients wait for their close frame.
    LimitRefusals = "fanfare_refusals", "limit" = "refusal_delay";
    /// Rejected: too many events a second from one publisher.
    LimitPublishes = "fanfare_refusals", "limit" = "publishes_per_second";
    /// Skipped: replays after a gap, beyond the limit of a user or an address.
    LimitGapReplay = "fanfare_refusals", "limit" = "gap_replay_bytes_per_second";
    /// Rejected: too many topics on one connection.
    LimitTopics = "fanfare_refusals", "limit" = "max_topics_per_connection";
    /// Closed: too many messages a second from one client.
    LimitMessages = "fanfare_refusals", "limit" = "max_messages_per_second";
    /// Closed: a frame or message that is too large.
    LimitMessageBytes = "fanfare_refusals", "limit" = "max_message_bytes";
    /// Rejected: an event that is too large.
    LimitEventBytes = "fanfare_refusals", "limit" = "max_event_bytes";
    /// Rejected: a batch of too many events.
    LimitBatch = "fanfare_refusals", "limit" = "max_batch_events";
    /// Closed: HTTP connections, to make room for a new one.
    LimitHttpConnections = "fanfare_refusals", "limit" = "max_http_connections";
    /// Closed: HTTP connections of one address, to make room for a new one from the same address.
    LimitHttpPerAddress = "fanfare_refusals", "limit" = "max_http_connections_per_address";
    /// Closed: a TLS handshake, a request or its upgrade that took too long, or a response that was not read in time.
    LimitHandshake = "fanfare_refusals", "limit" = "handshake_timeout";
    /// Messages answered with an error: not JSON, of an unknown type, or with a missing field.
    BadMessages = "fanfare_bad_input", "kind" = "message";
    /// Requests that are not HTTP.
    BadRequests = "fanfare_bad_input", "kind" = "request";
    /// Connections of a load balancer without a PROXY header.
    BadIntroductions = "fanfare_bad_input", "kind" = "proxy";
    /// TLS handshakes that failed.
    BadTls = "fanfare_bad_input", "kind" = "tls";
    /// Upgrade requests that violate RFC 6455 section 4.2.1.
    BadUpgrades = "fanfare_bad_input", "kind" = "upgrade";
    /// Events rejected because they are malformed.
    BadEvents = "fanfare_bad_input", "kind" = "event";
    /// Messages on Redis channels that are not events.
    BadPublications = "fanfare_bad_input", "kind" = "publication";
    /// Entries of the log in Redis that are not events and were skipped.
    BadLogEntries = "fanfare_bad_input", "kind" = "log_entry";
    /// 1000: the client requested the close.
    ClosedNormal = "fanfare_closes", "code" = "1000";
    /// 1001: the hub shut down, or the browser left the page.
    ClosedGoingAway = "fanfare_closes", "code" = "1001";
    /// 1002: the client violated the protocol.
    ClosedProtocol = "fanfare_closes", "code" = "1002";
    /// 1003: the client sent a binary message.
    ClosedUnsupported = "fanfare_closes", "code" = "1003";
    /// 1006: the socket ended without a close frame.
    ClosedAbnormal = "fanfare_closes", "code" = "1006";
    /// 1007: the client sent text that is not UTF-8.
    ClosedInvalidText = "fanfare_closes", "code" = "1007";
    /// 1008: the token was rejected, or the origin is not allowed.
    ClosedPolicy = "fanfare_closes", "code" = "1008";
    /// 1009: a frame or message was too large.
    ClosedTooBig = "fanfare_closes", "code" = "1009";
    /// 1011: the hub failed.
    ClosedInternal = "fanfare_closes", "code" = "1011";
    /// 1012: the hub was replaced.
    ClosedRestart = "fanfare_closes", "code" = "1012";
    /// 1013: a limit on connections was reached, or keys or the log were unavailable.
    ClosedTryAgainLater = "fanfare_closes", "code" = "1013";
    /// 4000: the client was silent for too long.
    ClosedHeartbeat = "fanfare_closes", "code" = "4000";
    /// 4001: a newer socket took over the connection.
    ClosedReplaced = "fanfare_closes", "code" = "4001";
    /// 4002: the client sent too many messages a second.
    ClosedTooManyMessages = "fanfare_closes", "code" = "4002";
    /// 4003: an operator or the application closed the connection.
    ClosedDisconnected = "fanfare_closes", "code" = "4003";
}

/// Descriptions of the families with a label.
const FAMILIES: &[(&str, &str)] = &[
    ("fanfare_gaps", "Gaps sent to clients, by reason."),
    ("fanfare_auth_failures", "Tokens and origins rejected, by reason."),
    ("fanfare_refusals", "Rejections and closes because of a limit, by limit."),
    ("fanfare_bad_input", "Malformed input, by kind."),
    ("fanfare_closes", "Closed connections, by close code."),
];

fn family_help(family: &str) -> &'static str {
    FAMILIES.iter().find(|(name, _)| *name == family).map_or("", |(_, help)| help)
}

/// A histogram of a hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Delivery latency: from the append of an event to the write to the last client that is not lagging, by the log's
    /// clock, for each shard.
    AppendToWrite,
    /// Round trip time: from a ping to the client's pong.
    RoundTrip,
    /// Duration of one iteration of a shard's loop, without the wait.
    Loop,
}

impl Measure {
    /// Every histogram.
    pub const ALL: &[Self] = &[Self::AppendToWrite, Self::RoundTrip, Self::Loop];

    /// The name in the Prometheus text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AppendToWrite => "fanfare_append_to_write_seconds",
            Self::RoundTrip => "fanfare_round_trip_seconds",
            Self::Loop => "fanfare_shard_loop_seconds",
        }
    }

    /// A description, as a sentence.
    pub const fn help(self) -> &'static str {
        match self {
            Self::AppendToWrite => {
                "From the append of an event to the write to the last client that is not lagging, for each shard."
            }
            Self::RoundTrip => "From a ping to the client's pong.",
            Self::Loop => "Duration of one iteration of a shard's loop, without the wait.",
        }
    }

    /// The upper bounds of the buckets, in microseconds.
    pub const fn bounds_us(self) -> &'static [u64] {
        match self {
            Self::AppendToWrite => {
                &[1_000, 2_000, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000]
            }
            Self::RoundTrip => {
                &[1_000, 2_000, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000]
            }
            Self::Loop => &[50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 1_000_000],
        }
    }
}

/// A counter by event type. Publishers choose the types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByType {
    /// Events appended to the log by this node.
    Events,
    /// Events written to clients.
    Deliveries,
}

impl ByType {
    /// Every counter by event type.
    pub const ALL: &[Self] = &[Self::Events, Self::Deliveries];

    /// The name in the Prometheus text, without the `_total` that Prometheus adds.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Events => "fanfare_events_by_type",
            Self::Deliveries => "fanfare_deliveries_by_type",
        }
    }

    /// A description, as a sentence.
    pub const fn help(self) -> &'static str {
        match self {
            Self::Events => "Events appended to the log by this node, by type; after 64 types, other.",
            Self::Deliveries => "Events written to clients, by type; after 64 types, other.",
        }
    }
}

/// The media type of [`Hub::metrics_text`](crate::Hub::metrics_text).
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A metric that the application adds to the hub's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// The name in the Prometheus text; for a counter without the `_total` that Prometheus adds.
    pub name: &'static str,
    /// A description, as a sentence.
    pub help: &'static str,
    /// Whether it is a counter: it only grows, from 0 at the start of the process.
    pub counter: bool,
    /// The current value.
    pub value: f64,
}

/// Metrics that the application provides for its process. They are collected whenever the hub's metrics are read.
pub trait Figures: Send + Sync + fmt::Debug + 'static {
    /// All current metrics. Must not block for long.
    fn figures(&self) -> Vec<Figure>;
}

/// Maximum number of event types with their own series, because publishers can use any number of types.
const MAX_TYPES: usize = 64;
/// The type that further types are counted as.
const OTHER: &str = "other";
/// Number of buckets of a histogram, including the one above all bounds.
const BUCKETS: usize = 12;

/// The metrics of one hub.
pub struct Metrics {
    counts: [AtomicU64; Counter::ALL.len()],
    measures: [Distribution; Measure::ALL.len()],
    types: Mutex<BTreeMap<Box<str>, [u64; ByType::ALL.len()]>>,
}

impl LogMetrics for Metrics {
    fn add(&self, counter: LogCounter, count: u64) {
        let counter = match counter {
            LogCounter::RedisCommands => Counter::RedisCommands,
            LogCounter::RedisErrors => Counter::RedisErrors,
            LogCounter::Reconnects => Counter::BusReconnects,
            LogCounter::EventsRestored => Counter::EventsRestored,
            LogCounter::EventsLost => Counter::EventsLost,
            LogCounter::PublicationsLost => Counter::PublicationsLost,
            LogCounter::BadPublications => Counter::BadPublications,
            LogCounter::BadLogEntries => Counter::BadLogEntries,
        };
        Self::add(self, counter, count);
    }

    fn add_event(&self, event_type: &str) {
        self.add_appended(event_type);
    }
}

#[derive(Default)]
struct Distribution {
    /// The last bucket counts values above all bounds.
    counts: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            measures: std::array::from_fn(|_| Distribution::default()),
            types: Mutex::default(),
        }
    }
}

impl Metrics {
    /// The value of a counter since the hub started.
    pub fn get(&self, counter: Counter) -> u64 {
        self.counts[counter as usize].load(Ordering::Relaxed)
    }

    /// Adds to a counter.
    pub fn add(&self, counter: Counter, n: u64) {
        self.counts[counter as usize].fetch_add(n, Ordering::Relaxed);
    }

    /// Records a value in microseconds.
    pub fn measure(&self, measure: Measure, us: u64) {
        let bucket = measure.bounds_us().partition_point(|bound| *bound < us);
        self.measure_many(measure, bucket, 1, us);
    }

    /// Records `count` values in one bucket. `sum_us` is their sum in microseconds.
    pub(crate) fn measure_many(&self, measure: Measure, bucket: usize, count: u64, sum_us: u64) {
        let distribution = &self.measures[measure as usize];
        distribution.counts[bucket.min(BUCKETS - 1)].fetch_add(count, Ordering::Relaxed);
        distribution.sum_us.fetch_add(sum_us, Ordering::Relaxed);
    }

    /// Number of recorded values since the hub started.
    pub fn measured(&self, measure: Measure) -> u64 {
        self.measures[measure as usize].counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// The count of each bucket. The last bucket counts values above all bounds.
    pub fn buckets(&self, measure: Measure) -> Vec<u64> {
        self.measures[measure as usize].counts.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    /// Counts an event that was appended to the log.
    pub(crate) fn add_appended(&self, event_type: &str) {
        self.add(Counter::Events, 1);
        self.add_of_type(ByType::Events, event_type, 1);
    }

    /// Adds to the counter of an event type.
    pub fn add_of_type(&self, what: ByType, event_type: &str, n: u64) {
        let mut types = self.types.lock().unwrap_or_else(PoisonError::into_inner);
        let name = if types.contains_key(event_type) || types.len() < MAX_TYPES { event_type } else { OTHER };
        match types.get_mut(name) {
            Some(counts) => counts[what as usize] += n,
            None => types.entry(name.into()).or_default()[what as usize] += n,
        }
    }

    /// Adds to the counters of the types of many events. Adjacent events of one type take the lock once.
    pub(crate) fn add_all_of_type<'a>(&self, what: ByType, all: impl Iterator<Item = (&'a str, u64)>) {
        let mut all = all.peekable();
        while let Some((event_type, mut n)) = all.next() {
            while let Some((_, more)) = all.next_if(|(next, _)| *next == event_type) {
                n += more;
            }
            self.add_of_type(what, event_type, n);
        }
    }

    /// The counter of an event type.
    pub fn of_type(&self, what: ByType, event_type: &str) -> u64 {
        let types = self.types.lock().unwrap_or_else(PoisonError::into_inner);
        types.get(event_type).map_or(0, |counts| counts[what as usize])
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(Counter::ALL.iter().map(|&c| (c, self.get(c))).filter(|(_, n)| *n > 0)).finish()
    }
}

/// Exports a hub's metrics to a Prometheus registry.
#[derive(Debug)]
pub(crate) struct Counters(pub(crate) std::sync::Arc<Metrics>);

impl Collector for Counters {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in Counter::ALL.chunk_by(|a, b| a.family() == b.family()) {
            let labelled = family[0].label().is_some();
            let help = if labelled { family_help(family[0].family()) } else { family[0].help() };
            let mut metric = encoder.encode_descriptor(family[0].family(), help, None, MetricType::Counter)?;
            if !labelled {
                ConstCounter::new(self.0.get(family[0])).encode(metric)?;
                continue;
            }
            for &counter in family {
                let labels = [counter.label().unwrap_or_default()];
                ConstCounter::new(self.0.get(counter)).encode(metric.encode_family(&labels)?)?;
            }
        }
        let types = self.0.types.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for &what in ByType::ALL {
            let mut metric = encoder.encode_descriptor(what.name(), what.help(), None, MetricType::Counter)?;
            for (event_type, counts) in &types {
                let labels = [("type", &**event_type)];
                ConstCounter::new(counts[what as usize]).encode(metric.encode_family(&labels)?)?;
            }
        }
        for &measure in Measure::ALL {
            let Distribution { counts, sum_us } = &self.0.measures[measure as usize];
            let counts = counts.iter().map(|count| count.load(Ordering::Relaxed));
            let bounds = measure.bounds_us().iter().map(|&us| us as f64 / 1e6).chain([f64::INFINITY]);
            let buckets: Vec<_> = bounds.zip(counts).collect();
            let count = buckets.iter().map(|(_, count)| count).sum();
            let sum = sum_us.load(Ordering::Relaxed) as f64 / 1e6;
            let mut metric = encoder.encode_descriptor(measure.name(), measure.help(), None, MetricType::Histogram)?;
            metric.encode_histogram::<prometheus_client::encoding::NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn the_table_becomes_prometheus_text() {
        let metrics = Arc::new(Metrics::default());
        metrics.add(Counter::Connects, 3);
        metrics.add(Counter::GapsReset, 2);
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register_collector(Box::new(Counters(metrics)));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("fanfare_connects_total 3\n"), "{text}");
        assert!(text.contains("fanfare_gaps_total{reason=\"reset\"} 2\n"), "{text}");
        assert!(text.contains("fanfare_gaps_total{reason=\"expired\"} 0\n"), "{text}");
    }

    #[test]
    fn distributions_and_types_become_prometheus_text() {
        let metrics = Arc::new(Metrics::default());
        for us in [10, 60, 70, 2_000_000] {
            metrics.measure(Measure::Loop, us);
        }
        metrics.add_of_type(ByType::Events, "note", 2);
        metrics.add_of_type(ByType::Deliveries, "a \"b\"", 3);
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register_collector(Box::new(Counters(metrics)));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "fanfare_shard_loop_seconds_bucket{le=\"0.00005\"} 1",
            "fanfare_shard_loop_seconds_bucket{le=\"0.0001\"} 3",
            "fanfare_shard_loop_seconds_bucket{le=\"1.0\"} 3",
            "fanfare_shard_loop_seconds_bucket{le=\"+Inf\"} 4",
            "fanfare_shard_loop_seconds_count 4",
            "fanfare_events_by_type_total{type=\"note\"} 2",
            "fanfare_deliveries_by_type_total{type=\"a \\\"b\\\"\"} 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert!(Measure::ALL.iter().all(|measure| measure.bounds_us().len() == BUCKETS - 1));
    }

    // attack: publishing any number of different event types => the number of metric series stays bounded
    #[test]
    fn publishers_cannot_create_unbounded_series() {
        let metrics = Metrics::default();
        for n in 0..1_000 {
            metrics.add_of_type(ByType::Events, &format!("type-{n}"), 1);
        }
        metrics.add_of_type(ByType::Events, "type-1", 1);
        assert_eq!(metrics.types.lock().unwrap().len(), MAX_TYPES + 1);
        assert_eq!((metrics.of_type(ByType::Events, "type-1"), metrics.of_type(ByType::Events, OTHER)), (2, 936));
    }

    #[test]
    fn every_family_with_a_label_has_a_description() {
        for counter in Counter::ALL.iter().filter(|counter| counter.label().is_some()) {
            assert!(!family_help(counter.family()).is_empty(), "{}", counter.family());
        }
    }

    #[test]
    fn the_counters_of_a_family_are_adjacent() {
        let mut families: Vec<_> = Counter::ALL.iter().map(|c| c.family()).collect();
        families.dedup();
        let count = families.len();
        families.sort_unstable();
        families.dedup();
        assert_eq!(families.len(), count);
    }
}

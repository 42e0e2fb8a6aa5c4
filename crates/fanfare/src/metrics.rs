//! What a hub counts: one table, from which the code, the Prometheus text and the documentation come.

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
};
use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident = $family:literal $(, $label:literal = $value:literal)?;)+) => {
        /// Something a hub counts.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Counter { $($(#[doc = $doc])+ $name,)+ }

        impl Counter {
            /// Every counter, those of one family together.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The family's name, without the `_total` that Prometheus adds.
            pub const fn family(self) -> &'static str {
                match self { $(Self::$name => $family),+ }
            }

            /// The label that tells the family's members apart, and its value.
            pub const fn label(self) -> Option<(&'static str, &'static str)> {
                match self { $(Self::$name => counters!(@label $($label = $value)?)),+ }
            }

            /// What is counted, in a sentence.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii()),+ }
            }
        }
    };
    (@label $label:literal = $value:literal) => { Some(($label, $value)) };
    (@label) => { None };
}

counters! {
    /// Connections that became live.
    Connects = "fanfare_connects";
    /// Connections that went on from a cursor.
    Resumes = "fanfare_resumes";
    /// Connections that a newer socket took over.
    Takeovers = "fanfare_takeovers";
    /// Events appended to the log.
    Events = "fanfare_events";
    /// Events refused because their `event_id` is already in the log.
    Duplicates = "fanfare_duplicate_events";
    /// Events that the log in Redis had lost and this node put back.
    EventsRestored = "fanfare_restored_events";
    /// Events that the log in Redis lost and this node could not put back; clients were told of a gap.
    EventsLost = "fanfare_lost_events";
    /// Messages on Redis' channels that found no room while the log was away.
    HeardLost = "fanfare_lost_publications";
    /// Times that the link to Redis was made anew.
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
    /// Gaps told: the history behind a cursor was no longer held.
    GapsExpired = "fanfare_gaps", "reason" = "expired";
    /// Gaps told: the cursor is of another log.
    GapsReset = "fanfare_gaps", "reason" = "reset";
    /// Upgrades refused: no token.
    AuthMissing = "fanfare_auth_failures", "reason" = "token_missing";
    /// Refused: the token has expired.
    AuthExpired = "fanfare_auth_failures", "reason" = "token_expired";
    /// Refused: the token is not valid yet.
    AuthNotYetValid = "fanfare_auth_failures", "reason" = "token_not_yet_valid";
    /// Refused: the token is not valid.
    AuthInvalid = "fanfare_auth_failures", "reason" = "token_invalid";
    /// Refused: the token was revoked.
    AuthRevoked = "fanfare_auth_failures", "reason" = "token_revoked";
    /// Refused: the keys that tokens are verified with could not be had.
    AuthUnavailable = "fanfare_auth_failures", "reason" = "keys_unavailable";
    /// Refused: a page of another site made the request (`allowed_origins`).
    ForeignOrigin = "fanfare_auth_failures", "reason" = "origin_not_allowed";
    /// Refused: the token does not allow it.
    AuthForbidden = "fanfare_auth_failures", "reason" = "forbidden";
    /// Clients told that their token ends soon.
    TokensExpiring = "fanfare_expiring_tokens";
    /// Clients closed because their token had ended.
    TokensExpired = "fanfare_expired_tokens";
    /// Clients closed because their token was revoked.
    TokensRevoked = "fanfare_revoked_tokens";
    /// Refused: too many connections in all.
    LimitConnections = "fanfare_refusals", "limit" = "max_connections";
    /// Refused: too many connections of one user.
    LimitPerUser = "fanfare_refusals", "limit" = "max_connections_per_user";
    /// Refused: too many connections from one address.
    LimitPerAddress = "fanfare_refusals", "limit" = "max_connections_per_address";
    /// Refused: too many new connections a second from one address.
    LimitConnectRate = "fanfare_refusals", "limit" = "connects_per_second_per_address";
    /// Refused: too many new connections a second of one user.
    LimitUserConnectRate = "fanfare_refusals", "limit" = "connects_per_second_per_user";
    /// Refused: too many events a second of one publisher.
    LimitPublishes = "fanfare_refusals", "limit" = "publishes_per_second";
    /// Refused: too many topics on one connection.
    LimitTopics = "fanfare_refusals", "limit" = "max_topics_per_connection";
    /// Closed: too many messages a second from one client.
    LimitMessages = "fanfare_refusals", "limit" = "max_messages_per_second";
    /// Closed: a frame or message too large.
    LimitMessageBytes = "fanfare_refusals", "limit" = "max_message_bytes";
    /// Refused: an event too large.
    LimitEventBytes = "fanfare_refusals", "limit" = "max_event_bytes";
    /// Refused: a batch of too many events.
    LimitBatch = "fanfare_refusals", "limit" = "max_batch_events";
    /// Dropped: no request or no end of the upgrade within the handshake's time.
    LimitHandshake = "fanfare_refusals", "limit" = "handshake_timeout";
    /// Messages answered with an error: not JSON, of an unknown type, or with something missing.
    BadMessages = "fanfare_bad_input", "kind" = "message";
    /// Requests that are no HTTP.
    BadRequests = "fanfare_bad_input", "kind" = "request";
    /// Connections of a load balancer without a PROXY header.
    BadIntroductions = "fanfare_bad_input", "kind" = "proxy";
    /// TLS handshakes that failed.
    BadTls = "fanfare_bad_input", "kind" = "tls";
    /// Upgrade requests that broke RFC 6455 section 4.2.1.
    BadUpgrades = "fanfare_bad_input", "kind" = "upgrade";
    /// Events refused because they are malformed.
    BadEvents = "fanfare_bad_input", "kind" = "event";
    /// Messages on Redis' channels that are no events.
    BadPublications = "fanfare_bad_input", "kind" = "publication";
    /// Closes, 1000: the client asked.
    ClosedNormal = "fanfare_closes", "code" = "1000";
    /// Closes, 1001: shutdown, or the browser left.
    ClosedGoingAway = "fanfare_closes", "code" = "1001";
    /// Closes, 1002: the protocol was broken.
    ClosedProtocol = "fanfare_closes", "code" = "1002";
    /// Closes, 1003: a binary message.
    ClosedUnsupported = "fanfare_closes", "code" = "1003";
    /// Closes, 1006: the socket ended without a close frame.
    ClosedAbnormal = "fanfare_closes", "code" = "1006";
    /// Closes, 1007: not UTF-8.
    ClosedInvalidText = "fanfare_closes", "code" = "1007";
    /// Closes, 1008: the token.
    ClosedPolicy = "fanfare_closes", "code" = "1008";
    /// Closes, 1009: too big.
    ClosedTooBig = "fanfare_closes", "code" = "1009";
    /// Closes, 1011: the hub failed.
    ClosedInternal = "fanfare_closes", "code" = "1011";
    /// Closes, 1012: restart.
    ClosedRestart = "fanfare_closes", "code" = "1012";
    /// Closes, 1013: a limit on connections.
    ClosedTryAgainLater = "fanfare_closes", "code" = "1013";
    /// Closes, 4000: silent for too long.
    ClosedHeartbeat = "fanfare_closes", "code" = "4000";
    /// Closes, 4001: taken over.
    ClosedReplaced = "fanfare_closes", "code" = "4001";
    /// Closes, 4002: too many messages.
    ClosedTooManyMessages = "fanfare_closes", "code" = "4002";
    /// Closes, 4003: by an operator or the application.
    ClosedDisconnected = "fanfare_closes", "code" = "4003";
}

/// The counters of one hub.
pub struct Metrics {
    counts: [AtomicU64; Counter::ALL.len()],
}

impl Default for Metrics {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl Metrics {
    /// How often something was counted since the hub started.
    pub fn get(&self, counter: Counter) -> u64 {
        self.counts[counter as usize].load(Ordering::Relaxed)
    }

    /// Counts something.
    pub fn add(&self, counter: Counter, n: u64) {
        self.counts[counter as usize].fetch_add(n, Ordering::Relaxed);
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(Counter::ALL.iter().map(|&c| (c, self.get(c))).filter(|(_, n)| *n > 0)).finish()
    }
}

/// Gives a hub's counters to a Prometheus registry.
#[derive(Debug)]
pub(crate) struct Counters(pub(crate) std::sync::Arc<Metrics>);

impl Collector for Counters {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in Counter::ALL.chunk_by(|a, b| a.family() == b.family()) {
            let labelled = family[0].label().is_some();
            let help = if labelled { "By what the label says." } else { family[0].help() };
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
    fn every_family_stands_together() {
        let mut families: Vec<_> = Counter::ALL.iter().map(|c| c.family()).collect();
        families.dedup();
        let count = families.len();
        families.sort_unstable();
        families.dedup();
        assert_eq!(families.len(), count);
    }
}

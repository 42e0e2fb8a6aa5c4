//! The servers that a hub needs: Redis, the accounts database, and the identity provider.

use super::{Check, Finding};
use crate::{
    accounts::Store,
    redis,
    serve::jwks,
    settings::{DatabaseUrl, Settings},
};
use fanfare::broker::redis::{Durability, Inspection, RedisUrl, inspect};

const REDIS: Check = Check { name: "redis", why: "Redis stores the log; without it no event can be published." };
const PERSISTENCE: Check = Check {
    name: "redis: files",
    why: "Data that Redis has only in memory is lost when it exits. Hubs that are still running restore the log, but \
        not after all of them have exited.",
};
const EVICTION: Check = Check { name: "redis: eviction", why: "When its memory is full, Redis would evict the log." };
const MEMORY: Check =
    Check { name: "redis: memory", why: "A full Redis rejects writes: no event can be published until it has room." };
const CLIENTS: Check = Check { name: "redis: clients", why: "Each process of the hub has four connections to Redis." };
const REPLICAS: Check =
    Check { name: "redis: replicas", why: "With durability = replica a publish fails without a replica." };
const FAILOVER: Check = Check {
    name: "redis: failover",
    why: "A master that is cut off from its replicas continues to accept writes, which are lost once a replica is \
          promoted: events of the hub for up to 4 s, and events published on Redis channels for longer.",
};
const SENTINELS: Check = Check {
    name: "redis: sentinels",
    why: "A hub accepts events while a majority of the sentinels in its URL confirm the master. If there are others, \
        they can elect another master meanwhile, and events that the hub acknowledges then are lost.",
};
const LATENCY: Check = Check { name: "redis: latency", why: "Each publish waits for a response from Redis." };
const SKEW: Check = Check { name: "redis: clock", why: "Token expiry and the age of events depend on the clocks." };
const DATABASE: Check =
    Check { name: "database", why: "Without it logins fail, and changes to accounts have no effect." };
const JWKS: Check = Check { name: "jwks", why: "Without its keys no token can be verified." };

pub(super) async fn check(settings: &Settings) -> Vec<Finding> {
    let mut findings = of_log(settings).await;
    findings.push(database(settings).await);
    if let Some(url) = &settings.jwks_url {
        findings.push(keys(url, settings).await);
    }
    findings
}

async fn of_log(settings: &Settings) -> Vec<Finding> {
    let url = match redis::url(settings) {
        Ok(url) => url,
        Err(error) => return vec![REDIS.fail(format!("{error:#}"), &["openssl x509 -noout -text -in FILE"])],
    };
    let Some(url) = &url else {
        return vec![REDIS.ok("none: one process with the log in its memory, which is lost at a restart")];
    };
    match inspect(url, &settings.redis_namespace).await {
        Err(error) => vec![REDIS.fail(error.to_string(), &[&ping(url)])],
        Ok(found) => of_redis(&found, settings),
    }
}

/// The command that tests a connection to the first server of a URL. redis-cli knows only the schemes of single servers.
fn ping(url: &RedisUrl) -> String {
    let (host, port) = url.first_server();
    let tls = if url.is_tls() { " --tls" } else { "" };
    match url.to_string().split_once("://") {
        Some(("redis" | "rediss", _)) => "redis-cli -u \"$REDIS_URL\" ping".to_owned(),
        Some(("unix", _)) => format!("redis-cli -s {host} ping"),
        _ => format!("redis-cli -h {host} -p {port}{tls} ping"),
    }
}

fn of_redis(found: &Inspection, settings: &Settings) -> Vec<Finding> {
    let Inspection { address, product, eviction, latency, .. } = found;
    let local = address.starts_with("127.") || address.starts_with("localhost") || address.starts_with("[::1]");
    let mut findings = vec![if product.starts_with("KeyDB") {
        REDIS.warn(
            format!(
                "{product} at {address}: fanfare is not tested with it, and its active replication has no total order"
            ),
            &["# use Redis 6.2 or later, or Valkey; with KeyDB, disable active-replica"],
        )
    } else if found.authenticated || local {
        REDIS.ok(format!("{product} at {address}"))
    } else {
        REDIS.warn(
            format!("{product} at {address} requires no password"),
            &["requirepass ...    # in redis.conf, and REDIS_URL=redis://:...@host"],
        )
    }];
    findings.extend(memory(found));
    findings.push(if eviction.starts_with("allkeys") {
        EVICTION.fail(
            format!("maxmemory-policy is {eviction}"),
            &["redis-cli config set maxmemory-policy noeviction", "maxmemory-policy noeviction    # in redis.conf"],
        )
    } else if found.max_memory > 0 && found.max_memory < 3 * settings.hub.window_bytes as u64 {
        EVICTION.warn(
            format!("maxmemory is {} MiB, but the log takes about three times window_bytes", found.max_memory >> 20),
            &["redis-cli config set maxmemory 1gb"],
        )
    } else {
        EVICTION.ok(format!("maxmemory-policy is {eviction}"))
    });
    findings.push(if found.append_only {
        PERSISTENCE.ok("every write is saved to a file (appendonly)")
    } else {
        PERSISTENCE.warn(
            "writes are not saved to a file (appendonly is off)",
            &["redis-cli config set appendonly yes", "appendonly yes    # in redis.conf", "appendfsync everysec"],
        )
    });
    let (max, now) = found.clients;
    let needed = 4 * settings.workers.max(1) as u64;
    findings.push(if max >= now + needed + 32 {
        CLIENTS.ok(format!("{now} of {max} connected"))
    } else {
        CLIENTS.warn(
            format!("{now} of {max} connected, and this hub needs {needed}"),
            &["redis-cli config set maxclients 10000"],
        )
    });
    let replicas = format!("{} connected", found.replicas);
    findings.push(match (settings.durability, found.replicas) {
        (Durability::Replica, 0) => REPLICAS
            .fail("none, but durability is replica", &["durability = \"log\"    # in fanfare.toml, or a replica"]),
        _ => REPLICAS.ok(replicas),
    });
    findings.extend(of_sentinels(found));
    let shown = format!("{:.1} ms", latency.as_secs_f64() * 1_000.0);
    findings.push(if latency.as_millis() < 5 {
        LATENCY.ok(shown)
    } else {
        LATENCY.warn(shown, &["# move Redis and the hub closer to each other"])
    });
    let skew = found.clock_skew_ms;
    findings.push(if skew.abs() < 1_000 {
        SKEW.ok(format!("{skew} ms from this machine's clock"))
    } else {
        SKEW.warn(format!("{skew} ms from this machine's clock"), &["timedatectl set-ntp true    # on both machines"])
    });
    findings
}

/// Checks whether a failover can lose acknowledged events.
fn of_sentinels(found: &Inspection) -> Vec<Finding> {
    let Some((named, known)) = found.sentinels else { return Vec::new() };
    let failover = if found.needs_replicas {
        FAILOVER.ok("the master rejects writes without a replica (min-replicas-to-write)")
    } else {
        FAILOVER.fail(
            "the master accepts writes without a replica (min-replicas-to-write is 0)",
            &[
                "redis-cli config set min-replicas-to-write 1    # on each server",
                "min-replicas-to-write 1    # in redis.conf of each server",
                "min-replicas-max-lag 5",
            ],
        )
    };
    let count = format!("the URL names {named}, and {known} monitor the master");
    let sentinels =
        if named >= known { SENTINELS.ok(count) } else { SENTINELS.fail(count, &["# list all of them in REDIS_URL"]) };
    vec![failover, sentinels]
}

/// Checks the free memory. With an evicting policy there is always some; that policy is a finding of its own.
fn memory(found: &Inspection) -> Option<Finding> {
    let (used, max) = (found.used_memory, found.max_memory);
    if max == 0 || found.eviction.starts_with("allkeys") {
        return None;
    }
    let state = format!("{} of {} MiB (maxmemory) are in use", used.div_ceil(1 << 20), max >> 20);
    let fixes = [
        &*format!("redis-cli config set maxmemory {}mb    # if the host has enough memory", (max >> 20).max(512) * 2),
        "redis-cli --bigkeys    # find other data: the log needs its own Redis",
        "# or reduce the log: window_bytes, window_events and window_age in fanfare.toml",
    ];
    Some(if used >= max / 20 * 19 {
        MEMORY.fail(format!("full: {state}; Redis rejects events"), &fixes)
    } else if used >= max / 5 * 4 {
        MEMORY.warn(state, &fixes)
    } else {
        MEMORY.ok(state)
    })
}

async fn database(settings: &Settings) -> Finding {
    let url = &settings.database_url;
    if *url == DatabaseUrl::None {
        return DATABASE.ok("none: accounts and logins are disabled");
    }
    let fixes = &["database_url = \"sqlite://fanfare.db\"    # in fanfare.toml: in a writable directory, or none"];
    let store = Store::new(url.clone());
    if let Some(error) = store.creation_error() {
        return DATABASE.fail(format!("{error}; POST /tokens/revoke fails too"), fixes);
    }
    match store.users_now().await {
        Ok(Some(users)) => DATABASE.ok(format!("{url} has the current schema and {users} users")),
        Ok(None) => DATABASE.ok(format!("{url} is created with the first account")),
        Err(error) => DATABASE.fail(error.to_string(), fixes),
    }
}

async fn keys(url: &str, settings: &Settings) -> Finding {
    let plain = url.starts_with("http://") && !url.starts_with("http://127.") && !url.starts_with("http://localhost");
    match jwks::try_fetch(url, settings.algorithm).await {
        Err(error) => JWKS.fail(format!("{url}: {error:#}"), &[&format!("curl {url}")]),
        Ok(_) if plain => {
            JWKS.fail(format!("{url} has no TLS: keys can be replaced in transit"), &["# use an https:// URL"])
        }
        Ok(keys) => {
            JWKS.ok(format!("{keys} {} for {} at {url}", if keys == 1 { "key" } else { "keys" }, settings.algorithm))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreachable_redis_is_fixed_with_a_command_that_redis_cli_accepts() {
        for (url, command) in [
            ("redis://:hush@a:1/2", "redis-cli -u \"$REDIS_URL\" ping"),
            ("rediss://a:1", "redis-cli -u \"$REDIS_URL\" ping"),
            ("redis+sentinel://:hush@a,b:1/hub", "redis-cli -h a -p 26379 ping"),
            ("rediss+sentinel://a:1,b/hub", "redis-cli -h a -p 1 --tls ping"),
            ("redis+cluster://[::1]:7000,b", "redis-cli -h ::1 -p 7000 ping"),
            ("unix:///run/redis.sock?db=2", "redis-cli -s /run/redis.sock ping"),
        ] {
            assert_eq!(ping(&url.parse().unwrap()), command, "{url}");
        }
    }
}

//! The servers that a hub needs: Redis, the accounts' database, the identity provider's keys.

use super::{Check, Finding};
use crate::{
    accounts::{DatabaseUrl, Store},
    redis,
    serve::jwks,
    settings::Settings,
};
use fanfare::broker::redis::{Durability, Inspection, inspect};

const REDIS: Check = Check { name: "redis", why: "The log is there; without it nothing can be published." };
const PERSISTENCE: Check = Check {
    name: "redis: files",
    why: "What Redis has only in memory is gone when it ends; hubs that are still there give it back, but not after all of them ended.",
};
const EVICTION: Check =
    Check { name: "redis: eviction", why: "When its memory is full, Redis would throw the log away." };
const MEMORY: Check =
    Check { name: "redis: memory", why: "A full Redis rejects writes: no event can be published until it has room." };
const CLIENTS: Check =
    Check { name: "redis: clients", why: "Each process of the hub holds four connections to Redis." };
const REPLICAS: Check =
    Check { name: "redis: replicas", why: "With durability = replica a publish fails unless a replica has it." };
const FAILOVER: Check = Check {
    name: "redis: failover",
    why: "A master that is cut off from its replicas goes on taking writes, which are lost once a replica takes its place: for up to 4 s \
          what hubs publish, for longer what others publish on the channels.",
};
const SENTINELS: Check = Check {
    name: "redis: sentinels",
    why: "A hub takes events while more than half of the sentinels that its URL names confirm the master. If there are others, those can \
          choose another master meanwhile, and what the hub acknowledges then is lost.",
};
const LATENCY: Check = Check { name: "redis: latency", why: "Each publish waits for an answer of Redis." };
const SKEW: Check = Check { name: "redis: clock", why: "Tokens and the age of events go by the clock." };
const DATABASE: Check =
    Check { name: "database", why: "Without it nobody logs in, and changes of accounts are not heard of." };
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
        return vec![REDIS.ok("none: one process with the log in its memory, which a restart empties")];
    };
    match inspect(url, &settings.redis_namespace).await {
        Err(error) => vec![REDIS.fail(error.to_string(), &["redis-cli -u \"$REDIS_URL\" ping"])],
        Ok(found) => of_redis(&found, settings),
    }
}

fn of_redis(found: &Inspection, settings: &Settings) -> Vec<Finding> {
    let Inspection { address, product, eviction, latency, .. } = found;
    let local = address.starts_with("127.") || address.starts_with("localhost") || address.starts_with("[::1]");
    let mut findings = vec![if product.starts_with("KeyDB") {
        REDIS.warn(
            format!(
                "{product} at {address}: fanfare is not tested with it, and its active replication has no one order"
            ),
            &["# Redis 6.2 or later, or Valkey; with KeyDB no active-replica"],
        )
    } else if found.authenticated || local {
        REDIS.ok(format!("{product} at {address}"))
    } else {
        REDIS.warn(
            format!("{product} at {address} asks for no password"),
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
            format!(
                "maxmemory is {} MiB, and the log of window_bytes takes about three times that much",
                found.max_memory >> 20
            ),
            &["redis-cli config set maxmemory 1gb"],
        )
    } else {
        EVICTION.ok(format!("maxmemory-policy is {eviction}"))
    });
    findings.push(if found.append_only {
        PERSISTENCE.ok("every write goes to a file (appendonly)")
    } else {
        PERSISTENCE.warn(
            "writes go to no file",
            &["redis-cli config set appendonly yes", "appendonly yes    # in redis.conf", "appendfsync everysec"],
        )
    });
    let (max, now) = found.clients;
    let needed = 4 * settings.workers.max(1) as u64;
    findings.push(if max >= now + needed + 32 {
        CLIENTS.ok(format!("{now} of {max}"))
    } else {
        CLIENTS.warn(format!("{now} of {max}, and this hub needs {needed}"), &["redis-cli config set maxclients 10000"])
    });
    let replicas = format!("{} follow it", found.replicas);
    findings.push(match (settings.durability, found.replicas) {
        (Durability::Replica, 0) => REPLICAS
            .fail("none, and durability is replica", &["durability = \"log\"    # in fanfare.toml, or a replica"]),
        _ => REPLICAS.ok(replicas),
    });
    findings.extend(of_sentinels(found));
    let shown = format!("{:.1} ms", latency.as_secs_f64() * 1_000.0);
    findings.push(if latency.as_millis() < 5 {
        LATENCY.ok(shown)
    } else {
        LATENCY.warn(shown, &["# have Redis and the hub nearer to each other"])
    });
    let skew = found.clock_skew_ms;
    findings.push(if skew.abs() < 1_000 {
        SKEW.ok(format!("{skew} ms from ours"))
    } else {
        SKEW.warn(format!("{skew} ms from ours"), &["timedatectl set-ntp true    # on both machines"])
    });
    findings
}

/// Whether a failover can lose what was acknowledged.
fn of_sentinels(found: &Inspection) -> Vec<Finding> {
    let Some((named, known)) = found.sentinels else { return Vec::new() };
    let failover = if found.needs_replicas {
        FAILOVER.ok("the master takes no writes without a replica (min-replicas-to-write)")
    } else {
        FAILOVER.fail(
            "the master takes writes that no replica has (min-replicas-to-write is 0)",
            &[
                "redis-cli config set min-replicas-to-write 1    # on each server",
                "min-replicas-to-write 1    # in redis.conf of each server",
                "min-replicas-max-lag 5",
            ],
        )
    };
    let count = format!("the URL names {named}, and {known} watch the master");
    let sentinels =
        if named >= known { SENTINELS.ok(count) } else { SENTINELS.fail(count, &["# all of them in REDIS_URL"]) };
    vec![failover, sentinels]
}

/// Whether there is room for the next event. With an evicting policy there always is, which is a fault of its own.
fn memory(found: &Inspection) -> Option<Finding> {
    let (used, max) = (found.used_memory, found.max_memory);
    if max == 0 || found.eviction.starts_with("allkeys") {
        return None;
    }
    let so = format!("{} of maxmemory's {} MiB are in use", used.div_ceil(1 << 20), max >> 20);
    let mend = [
        &*format!("redis-cli config set maxmemory {}mb    # if the host has as much", (max >> 20).max(512) * 2),
        "redis-cli --bigkeys    # what else is in there: the log needs a Redis of its own",
        "# or a smaller log: window_bytes, window_events and window_age in fanfare.toml",
    ];
    Some(if used >= max / 20 * 19 {
        MEMORY.fail(format!("full: {so}; Redis rejects events"), &mend)
    } else if used >= max / 5 * 4 {
        MEMORY.warn(so, &mend)
    } else {
        MEMORY.ok(so)
    })
}

async fn database(settings: &Settings) -> Finding {
    let url = &settings.database_url;
    if *url == DatabaseUrl::None {
        return DATABASE.ok("none: nobody logs in here");
    }
    let mend =
        &["database_url = \"sqlite://fanfare.db\"    # in fanfare.toml, in a folder that may be written to, or none"];
    let store = Store::new(url.clone());
    if let Some(error) = store.obstacle() {
        return DATABASE.fail(format!("{error}; POST /tokens/revoke fails, too"), mend);
    }
    match store.users_now().await {
        Ok(Some(users)) => DATABASE.ok(format!("{url} has the newest tables and {users} users")),
        Ok(None) => DATABASE.ok(format!("{url} is made when the first account is")),
        Err(error) => DATABASE.fail(error.to_string(), mend),
    }
}

async fn keys(url: &str, settings: &Settings) -> Finding {
    let plain = url.starts_with("http://") && !url.starts_with("http://127.") && !url.starts_with("http://localhost");
    match jwks::try_fetch(url, settings.algorithm).await {
        Err(error) => JWKS.fail(format!("{url}: {error:#}"), &[&format!("curl {url}")]),
        Ok(_) if plain => JWKS
            .fail(format!("{url} has no TLS: anybody on the way can put in keys of its own"), &["# an https:// URL"]),
        Ok(keys) => {
            JWKS.ok(format!("{keys} {} for {} at {url}", if keys == 1 { "key" } else { "keys" }, settings.algorithm))
        }
    }
}

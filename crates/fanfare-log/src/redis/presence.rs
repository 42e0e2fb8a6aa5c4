//! The list of connected clients in Redis. Changes are written in batches in the background, so that no connect waits
//! for Redis.

use super::{
    connection::read, error::LinkError, keys::Keys, limits::ALIVE_MS, link::Link, pending::Change, scripts::Script,
    shared::Shared, stops::Stops,
};
use crate::{BrokerError, clock, presence::ConnectionInfo};
use fanfare_core::ConnectionId;
use redis::{Cmd, cmd};
use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr},
    sync::atomic::Ordering,
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// How often changes are written.
const FLUSH: Duration = Duration::from_millis(200);

/// The maximum number of changes in one command, which blocks Redis for about 2 ms.
const BATCH: usize = 250;

/// How long Redis retains a connection that is not refreshed, in seconds.
const TTL_SECS: u64 = 3_600;

/// How often all connections are rewritten. Must be well below [`TTL_SECS`].
const REFRESH: Duration = Duration::from_secs(TTL_SECS / 3);

/// How often the connections of dead nodes are removed.
const SWEEP: Duration = Duration::from_secs(3);

/// A larger deviation of the server's clock means that the clock was set, in milliseconds. A smaller one is drift or
/// measurement error.
const SET_MS: i64 = 500;

/// The pause after a rejected write: Redis is full, or has too few replicas.
const REJECTED: Duration = Duration::from_secs(1);

/// Writes all connections of this node, and then the changes, until the link ends.
pub(super) async fn run(shared: &Shared, link: &Link) -> Result<Infallible, LinkError> {
    let mut writer = Writer::new(shared);
    loop {
        match writer.turn(shared, link).await {
            Ok(()) => sleep(FLUSH).await,
            // Pending changes would accumulate without bound, so everything is rewritten instead.
            Err(LinkError::Full(_)) => {
                (writer.resync, writer.rewrite_all) = (None, true);
                sleep(REJECTED).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The schedule of writes.
struct Writer {
    refresh: Instant,
    sweep: Instant,
    heartbeat: u64,
    resync: Option<Resync>,
    clock: ServerClock,
    /// The list in Redis is not correct, so all connections must be rewritten immediately.
    rewrite_all: bool,
}

impl Writer {
    fn new(shared: &Shared) -> Self {
        let now = Instant::now();
        let (heartbeat, clock) = (shared.last_heartbeat(), ServerClock::default());
        let (refresh, sweep) = (now + REFRESH, now + SWEEP);
        Self { refresh, sweep, heartbeat, resync: None, clock, rewrite_all: true }
    }

    async fn turn(&mut self, shared: &Shared, link: &Link) -> Result<(), LinkError> {
        // If this node was silent for too long, another one treated it as dead and removed its connections.
        let heartbeat = shared.last_heartbeat();
        self.rewrite_all |=
            heartbeat.saturating_sub(self.heartbeat) >= ALIVE_MS || shared.unlisted.swap(false, Ordering::Relaxed);
        self.heartbeat = heartbeat;
        if self.rewrite_all || Instant::now() >= self.sweep {
            // After the server's clock was set, times that this node wrote earlier are not comparable with new ones.
            self.rewrite_all |= self.clock.measure(link).await?;
        }
        if self.rewrite_all || (self.resync.is_none() && Instant::now() >= self.refresh) {
            self.refresh = Instant::now() + REFRESH;
            self.resync = Some(Resync::begin(shared, link).await?);
        }
        // A periodic refresh is not urgent, so it proceeds by one batch a turn.
        advance(shared, link, self.clock, &mut self.resync, if self.rewrite_all { usize::MAX } else { 1 }).await?;
        self.rewrite_all = false;
        let changes = shared.pending().take();
        write(shared, link, self.clock, changes.into_iter()).await?;
        if Instant::now() >= self.sweep {
            self.sweep = Instant::now() + SWEEP;
            sweep_dead(shared, link).await?;
        }
        Ok(())
    }
}

/// An estimate of the server's clock. It decides which of two connections of a client is the newer one: the wall clocks
/// of two nodes may differ by more than the time that a client needs to reconnect to another node.
#[derive(Debug, Clone, Copy, Default)]
struct ServerClock {
    /// Its offset from this node's monotonic clock in milliseconds: the lower and the upper bound.
    ahead: Option<(i64, i64)>,
}

/// A time of the server's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Moment {
    /// In milliseconds since 1970-01-01T00:00:00Z.
    at: u64,
    /// The maximum error in either direction, in milliseconds.
    spread: u64,
}

impl ServerClock {
    /// Reads the server's time. Returns whether the clock was set since the last reading.
    async fn measure(&mut self, link: &Link) -> Result<bool, LinkError> {
        let asked = clock::now().mono_ms;
        let there = link.clock_ms().await?;
        Ok(self.note(asked, there, clock::now().mono_ms))
    }

    /// Records a reading `there` that was taken between `asked` and `answered`. Returns whether the clock was set since
    /// the last reading.
    fn note(&mut self, asked: u64, there: u64, answered: u64) -> bool {
        let seen = (there.wrapping_sub(answered).cast_signed(), there.wrapping_sub(asked).cast_signed());
        let both = |(low, high): (i64, i64)| (low.max(seen.0), high.min(seen.1));
        let (low, high) = self.ahead.map_or(seen, both);
        // The bounds also become inconsistent through drift. The new reading replaces them then.
        self.ahead = Some(if low <= high { (low, high) } else { seen });
        low - high > SET_MS
    }

    /// When a client connected that this node accepted at a time of its monotonic clock.
    fn of(self, mono_ms: u64, stops: &Stops) -> Moment {
        let (low, high) = self.ahead.unwrap_or_default();
        let earliest = stops.waiting_since(mono_ms).saturating_add_signed(low);
        let latest = mono_ms.saturating_add_signed(high);
        // Readings are rounded to milliseconds.
        Moment { at: earliest.midpoint(latest), spread: latest.saturating_sub(earliest) / 2 + 2 }
    }
}

/// Rewrites all connections of this node in batches, and then removes those that are no longer connected.
#[derive(Debug)]
struct Resync {
    own: String,
    /// The key for the set of connections that were written before.
    old: String,
    /// The place of the next batch. `None` once all connections are written.
    place: Option<u64>,
}

impl Resync {
    async fn begin(shared: &Shared, link: &Link) -> Result<Self, LinkError> {
        let own = shared.keys.connections_of_node(&shared.node);
        let old = format!("{own}:old");
        link.call(cmd("SUNIONSTORE").arg(&old).arg(&old).arg(&own)).await?;
        link.call(cmd("DEL").arg(&own)).await?;
        Ok(Self { own, old, place: Some(0) })
    }

    /// Processes one batch. Returns whether there is more to do.
    async fn step(&mut self, shared: &Shared, link: &Link, clock: ServerClock) -> Result<bool, LinkError> {
        let Some(place) = self.place else {
            return Ok(sweep_some(shared, link, &shared.node, &self.old, &self.own).await? > 0);
        };
        let (here, next) = shared.follower.clients_from(place, BATCH).await.unwrap_or_default();
        self.place = next;
        write(shared, link, clock, here.into_iter().map(|client| (client.connection, Change::Arrived(client)))).await?;
        Ok(true)
    }
}

/// Advances a resync by a number of batches.
async fn advance(
    shared: &Shared,
    link: &Link,
    clock: ServerClock,
    resync: &mut Option<Resync>,
    batches: usize,
) -> Result<(), LinkError> {
    for _ in 0..batches {
        let Some(running) = resync else { return Ok(()) };
        if !running.step(shared, link, clock).await? {
            *resync = None;
        }
    }
    Ok(())
}

async fn write(
    shared: &Shared,
    link: &Link,
    clock: ServerClock,
    mut changes: impl ExactSizeIterator<Item = (ConnectionId, Change)>,
) -> Result<(), LinkError> {
    let keys = &shared.keys;
    let own = keys.connections_of_node(&shared.node);
    let stops = shared.tick();
    while changes.len() > 0 {
        let names = [&*keys.log, &keys.epoch, &keys.ids, &keys.control, &own];
        let mut command = link.script(Script::Register, &names);
        names_of(command.arg(&shared.node), keys).arg(TTL_SECS).arg(shared.options.max_connections_per_user);
        command.arg(clock::now().mono_ms).arg(&link.server);
        for (connection, change) in changes.by_ref().take(BATCH) {
            let id = connection.to_string();
            match change {
                Change::Arrived(ConnectionInfo { user, since_ms, came_ms, address, unlimited, .. }) => {
                    let (mark, Moment { at, spread }) = (if unlimited { "*" } else { "+" }, clock.of(came_ms, &stops));
                    command.arg(mark).arg(id).arg(&*user).arg(came_ms).arg(at).arg(spread);
                    command.arg(since_ms).arg(address.to_string())
                }
                Change::Left { user, came_ms } => {
                    command.arg("-").arg(id).arg(&*user).arg(came_ms).arg(&["", "", "", ""])
                }
            };
        }
        link.call(&command).await?;
    }
    Ok(())
}

fn names_of<'a>(command: &'a mut Cmd, keys: &Keys) -> &'a mut Cmd {
    command.arg(&keys.connection).arg(&keys.user).arg(Keys::USER_SUFFIX)
}

/// Removes the connections of dead nodes, and their names.
async fn sweep_dead(shared: &Shared, link: &Link) -> Result<(), LinkError> {
    let keys = &shared.keys;
    let long_ago = link.clock_ms().await?.saturating_sub(ALIVE_MS);
    let dead = cmd("ZRANGEBYSCORE").arg(&keys.nodes).arg("-inf").arg(format!("({long_ago}")).take();
    let dead: Vec<String> = read(link.call(&dead).await?)?;
    for node in dead {
        let left = keys.connections_of_node(&node);
        while sweep_some(shared, link, &node, &left, "").await? > 0 {}
        while sweep_some(shared, link, &node, &format!("{left}:old"), "").await? > 0 {}
        link.call(cmd("ZREM").arg(&keys.nodes).arg(&node)).await?;
    }
    Ok(())
}

async fn sweep_some(shared: &Shared, link: &Link, node: &str, from: &str, but: &str) -> Result<usize, LinkError> {
    let keys = &shared.keys;
    let nobody = format!("{}nobody", keys.node);
    let but = if but.is_empty() { &*nobody } else { but };
    let mut command = link.script(Script::Sweep, &[&keys.log, &keys.epoch, &keys.ids, &keys.nodes, from, but]);
    names_of(command.arg(node), keys).arg(BATCH);
    read(link.call(&command).await?)
}

/// The clients of a user on all nodes, the oldest connection first.
pub(super) async fn of_user(shared: &Shared, user: &str) -> Result<Vec<ConnectionInfo>, BrokerError> {
    let set = shared.keys.connections_of_user(user);
    let mut clients = present(shared, &set, None).await?;
    clients.sort_by_key(|client| (client.since_ms, client.connection));
    Ok(clients)
}

/// Finds a client on any node.
pub(super) async fn find(shared: &Shared, connection: ConnectionId) -> Result<Option<ConnectionInfo>, BrokerError> {
    let nothing = format!("{}nobody", shared.keys.node);
    Ok(present(shared, &nothing, Some(connection)).await?.pop())
}

async fn present(shared: &Shared, set: &str, one: Option<ConnectionId>) -> Result<Vec<ConnectionInfo>, BrokerError> {
    let (link, keys) = (shared.link()?, &shared.keys);
    let mut command = link.script(Script::ListConnections, &[&keys.log, &keys.epoch, &keys.ids, &keys.nodes, set]);
    command.arg(&keys.connection).arg(ALIVE_MS).arg(one.map(|id| id.to_string()));
    let found: Vec<(String, String, String, u64, u64, String)> = read(link.call(&command).await?)?;
    let client = |(id, user, node, since_ms, came_ms, address): (String, String, String, u64, u64, String)| {
        let address = address.parse::<IpAddr>().unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        Some(ConnectionInfo {
            connection: id.parse().ok()?,
            user: user.into(),
            node: node.into(),
            since_ms,
            came_ms,
            address,
            unlimited: false,
        })
    };
    Ok(found.into_iter().filter_map(client).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const THERE: u64 = 1_790_000_000_000;

    #[test]
    fn the_fastest_response_determines_the_precision_of_the_servers_clock() {
        let mut clock = ServerClock::default();
        // The server's clock is ahead by THERE - 100: asked at 1,000, it showed THERE + 1,000 - 100 at 1,100.
        clock.note(1_000, THERE + 1_000, 5_000);
        clock.note(7_098, THERE + 7_000, 7_102);
        clock.note(9_000, THERE + 9_000, 9_900);
        assert_eq!(clock.of(500, &Stops::default()), Moment { at: THERE + 400, spread: 4 });
        assert_eq!(clock.of(10_000, &Stops::default()).at, THERE + 9_900);
    }

    #[test]
    fn a_server_clock_that_was_set_replaces_the_estimate() {
        for set in [THERE - 3_600_000, THERE + 3_600_000] {
            let mut clock = ServerClock::default();
            assert!(!clock.note(1_000, THERE, 1_002));
            assert!(clock.note(3_000, set, 3_002));
            assert_eq!(clock.of(3_001, &Stops::default()).at, set);
            assert!(!clock.note(5_000, set + 2_001, 5_002));
            assert!(!clock.note(7_000, set + 4_005, 7_000), "drift");
            assert_eq!(clock.of(7_000, &Stops::default()).at, set + 4_005);
        }
    }
}

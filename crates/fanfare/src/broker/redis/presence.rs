//! Who is connected, in Redis: written in batches behind the clients' backs, so that no connect waits for it.

use super::{
    keys::Keys,
    link::{Link, LinkError, read},
    recovery::ALIVE_MS,
    scripts::Script,
    shared::Shared,
};
use crate::{broker::BrokerError, clock, presence::ConnectionInfo};
use fanfare_core::ConnectionId;
use redis::{Cmd, cmd};
use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// How often changes are written.
const FLUSH: Duration = Duration::from_millis(200);

/// The most changes in one command: it holds Redis up for about 2 ms.
const BATCH: usize = 250;

/// How long Redis keeps a connection that nobody refreshes, in seconds.
const TTL_SECS: u64 = 3_600;

/// How often all are written anew, long before they would end.
const REFRESH: Duration = Duration::from_secs(TTL_SECS / 3);

/// How often it is looked for what dead nodes left.
const SWEEP: Duration = Duration::from_secs(3);

/// A clock that differs by more than this from what is expected was set, in milliseconds. Less is drift and measurement error.
const SET_MS: i64 = 500;

/// A process that does for so long, in milliseconds, nothing of what it does every [`FLUSH`] was stopped, or had no processor.
const STOPPED_MS: u64 = 1_000;

/// For how long after that, in milliseconds, a client may be one that waited meanwhile.
const BACKLOG_MS: u64 = 2_000;

/// What became of a connection.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Arrived(ConnectionInfo),
    Left { user: Arc<str>, came_ms: u64 },
}

/// Changes that are not written yet, the newest of each connection.
#[derive(Debug, Default)]
pub(super) struct Pending {
    changes: BTreeMap<ConnectionId, Change>,
    /// There is no link, and so no use in collecting: with the next one all are written anew.
    idle: bool,
}

impl Pending {
    pub(super) fn note(&mut self, connection: ConnectionId, change: Change) {
        if !self.idle {
            // An older socket that leaves does not take the newer one of its connection with it.
            let newer = match (&change, self.changes.get(&connection)) {
                (Change::Left { came_ms, .. }, Some(Change::Arrived(held))) => held.came_ms > *came_ms,
                _ => false,
            };
            if !newer {
                self.changes.insert(connection, change);
            }
        }
    }

    pub(super) fn set_idle(&mut self, idle: bool) {
        *self = Self { changes: BTreeMap::new(), idle };
    }

    fn take(&mut self) -> BTreeMap<ConnectionId, Change> {
        std::mem::take(&mut self.changes)
    }
}

/// How long after a refused write it is tried again: Redis is full, or has too few replicas.
const REFUSED: Duration = Duration::from_secs(1);

/// Writes all who are here, then what changes, until the link ends.
pub(super) async fn run(shared: &Shared, link: &Link) -> Result<Infallible, LinkError> {
    let mut listing = Writer::new(shared);
    loop {
        match listing.turn(shared, link).await {
            Ok(()) => sleep(FLUSH).await,
            // Changes are not collected meanwhile, there may be any number of them.
            Err(LinkError::Full(_)) => {
                (listing.resync, listing.whole) = (None, true);
                sleep(REFUSED).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// What is written when.
struct Writer {
    /// Since when this turn and the pause before it last, on the monotonic clock.
    turn_ms: u64,
    refresh: Instant,
    sweep: Instant,
    beat: u64,
    resync: Option<Resync>,
    clock: ServerClock,
    /// What is listed is not the truth: all are to be written anew, at once.
    whole: bool,
}

impl Writer {
    fn new(shared: &Shared) -> Self {
        let now = Instant::now();
        let (beat, clock) = (shared.last_heartbeat(), ServerClock::default());
        Self {
            turn_ms: clock::now().mono_ms,
            refresh: now + REFRESH,
            sweep: now + SWEEP,
            beat,
            resync: None,
            clock,
            whole: true,
        }
    }

    async fn turn(&mut self, shared: &Shared, link: &Link) -> Result<(), LinkError> {
        let now_ms = clock::now().mono_ms;
        self.clock.ran(std::mem::replace(&mut self.turn_ms, now_ms), now_ms);
        // A node that was silent for long was taken for dead, and what it had written was swept away.
        let beat = shared.last_heartbeat();
        self.whole |= beat.saturating_sub(self.beat) >= ALIVE_MS || shared.unlisted.swap(false, Ordering::Relaxed);
        self.beat = beat;
        if self.whole || Instant::now() >= self.sweep {
            // After the clock was set, the times that this node has written can't be compared with new ones.
            self.whole |= self.clock.measure(link).await?;
        }
        if self.whole || (self.resync.is_none() && Instant::now() >= self.refresh) {
            self.refresh = Instant::now() + REFRESH;
            self.resync = Some(Resync::begin(shared, link).await?);
        }
        // Nobody waits for a refresh, so it takes its time, and the memory of one piece.
        advance(shared, link, self.clock, &mut self.resync, if self.whole { usize::MAX } else { 1 }).await?;
        self.whole = false;
        let changes = shared.pending().take();
        write(shared, link, self.clock, changes.into_iter()).await?;
        if Instant::now() >= self.sweep {
            self.sweep = Instant::now() + SWEEP;
            sweep_dead(shared, link).await?;
        }
        Ok(())
    }
}

/// An estimate of the server's clock. The wall clocks of nodes may differ by more than a client needs to reconnect to another node,
/// so they can't decide which of its two connections is the newer one.
#[derive(Debug, Clone, Copy, Default)]
struct ServerClock {
    /// Its offset from this node's monotonic clock in milliseconds: at least, and at most.
    ahead: Option<(i64, i64)>,
    /// From when to when this process did not run, the last time that it did not. A client that is found waiting afterwards may have come
    /// at any time since.
    stopped_ms: Option<(u64, u64)>,
}

/// When something was, by the server's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Moment {
    /// In milliseconds since 1970-01-01T00:00:00Z.
    at: u64,
    /// By how many milliseconds that may be wrong, either way.
    spread: u64,
}

impl ServerClock {
    /// Asks for the time. Returns whether the clock was set since.
    async fn measure(&mut self, link: &Link) -> Result<bool, LinkError> {
        let asked = clock::now().mono_ms;
        let there = link.clock_ms().await?;
        Ok(self.note(asked, there, clock::now().mono_ms))
    }

    /// Takes a reading `there` that was made between `asked` and `answered`. Returns whether the clock was set since the last one.
    fn note(&mut self, asked: u64, there: u64, answered: u64) -> bool {
        let seen = (there.wrapping_sub(answered).cast_signed(), there.wrapping_sub(asked).cast_signed());
        let both = |(low, high): (i64, i64)| (low.max(seen.0), high.min(seen.1));
        let (low, high) = self.ahead.map_or(seen, both);
        // Two clocks drift apart a little all the time.
        self.ahead = Some(if low <= high { (low, high) } else { seen });
        low - high > SET_MS
    }

    /// What is done every [`FLUSH`] was done at two times of this node's monotonic clock, and not in between.
    fn ran(&mut self, before_ms: u64, now_ms: u64) {
        if now_ms.saturating_sub(before_ms) > STOPPED_MS {
            // One that follows soon belongs to it: not all that waited was seen in between.
            let same = self.stopped_ms.filter(|(_, until)| before_ms < until + BACKLOG_MS);
            self.stopped_ms = Some((same.map_or(before_ms, |(from, _)| from), now_ms));
        }
    }

    /// When a client came that this node saw at a moment of its monotonic clock.
    fn of(self, mono_ms: u64) -> Moment {
        let waited = self.stopped_ms.filter(|(from, until)| *from < mono_ms && mono_ms < until + BACKLOG_MS);
        let (low, high) = self.ahead.unwrap_or_default();
        let earliest = waited.map_or(mono_ms, |(from, _)| from).saturating_add_signed(low);
        let latest = mono_ms.saturating_add_signed(high);
        // Each of the readings is of a whole millisecond.
        Moment { at: earliest.midpoint(latest), spread: latest.saturating_sub(earliest) / 2 + 2 }
    }
}

/// A walk over all connections of this node, to write each anew and then take away what is no longer here.
#[derive(Debug)]
struct Resync {
    own: String,
    /// What was written before.
    old: String,
    /// Where the next piece begins; `None`: all were written.
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

    /// One piece. Returns whether there is more to do.
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

/// Goes on with a walk by so many pieces, or to its end.
async fn advance(
    shared: &Shared,
    link: &Link,
    clock: ServerClock,
    resync: &mut Option<Resync>,
    pieces: usize,
) -> Result<(), LinkError> {
    for _ in 0..pieces {
        let Some(under_way) = resync else { return Ok(()) };
        if !under_way.step(shared, link, clock).await? {
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
    while changes.len() > 0 {
        let names = [&*keys.log, &keys.epoch, &keys.ids, &keys.control, &own];
        let mut command = link.script(Script::Register, &names);
        names_of(command.arg(&shared.node), keys).arg(TTL_SECS).arg(shared.options.max_connections_per_user);
        command.arg(clock::now().mono_ms);
        for (connection, change) in changes.by_ref().take(BATCH) {
            let id = connection.to_string();
            match change {
                Change::Arrived(ConnectionInfo { user, since_ms, came_ms, address, unlimited, .. }) => {
                    let (mark, Moment { at, spread }) = (if unlimited { "*" } else { "+" }, clock.of(came_ms));
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

/// Takes away what dead nodes left.
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

/// A user's clients on all nodes.
pub(super) async fn of_user(shared: &Shared, user: &str) -> Result<Vec<ConnectionInfo>, BrokerError> {
    let set = shared.keys.connections_of_user(user);
    let mut clients = present(shared, &set, None).await?;
    clients.sort_by_key(|client| (client.since_ms, client.connection));
    Ok(clients)
}

/// One client, on whichever node it is.
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
    fn the_servers_clock_is_known_the_better_the_faster_it_once_answered() {
        let mut clock = ServerClock::default();
        // It is ahead by THERE - 100: asked at 1,000, it showed THERE + 1,000 - 100 at 1,100.
        clock.note(1_000, THERE + 1_000, 5_000);
        clock.note(7_098, THERE + 7_000, 7_102);
        clock.note(9_000, THERE + 9_000, 9_900);
        assert_eq!(clock.of(500), Moment { at: THERE + 400, spread: 4 });
        assert_eq!(clock.of(10_000).at, THERE + 9_900);
    }

    #[test]
    fn a_client_that_waited_while_its_node_was_stopped_may_have_come_at_any_time_since() {
        let mut clock = ServerClock { ahead: Some((0, 0)), ..ServerClock::default() };
        for turn in 1..=10 {
            clock.ran(200 * (turn - 1), 200 * turn);
        }
        clock.ran(2_000, 8_000);
        assert_eq!(clock.of(1_900), Moment { at: 1_900, spread: 2 }, "it came before");
        assert_eq!(clock.of(8_001), Moment { at: 5_000, spread: 3_002 });
        assert_eq!(clock.of(10_100), Moment { at: 10_100, spread: 2 });
        clock.ran(8_000, 8_200);
        clock.ran(8_200, 10_000);
        assert_eq!(clock.of(10_000), Moment { at: 6_000, spread: 4_002 }, "it may wait since the first time");
    }

    #[test]
    fn a_clock_that_was_set_is_believed() {
        for set in [THERE - 3_600_000, THERE + 3_600_000] {
            let mut clock = ServerClock::default();
            assert!(!clock.note(1_000, THERE, 1_002));
            assert!(clock.note(3_000, set, 3_002));
            assert_eq!(clock.of(3_001).at, set);
            assert!(!clock.note(5_000, set + 2_001, 5_002));
            assert!(!clock.note(7_000, set + 4_005, 7_000), "drift");
            assert_eq!(clock.of(7_000).at, set + 4_005);
        }
    }
}

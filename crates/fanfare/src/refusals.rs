//! Delays the close frame of clients that are rejected repeatedly, and limits the number of sockets that wait for one.
//!
//! A client whose backoff restarts whenever its socket opens would otherwise reconnect every second forever. The first
//! rejection is immediate. For each further one the socket is held without a session first. Knows identities and
//! counts, and nothing of tokens or sessions.

use crate::{
    address_group, clock,
    config::{Config, held_sockets},
};
use fanfare_core::ConnectionId;
use hashbrown::HashMap;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::{
    hash::BuildHasher,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::watch,
    time::sleep,
};

type Hasher = foldhash::fast::RandomState;

/// Time for which a rejection is remembered after its close frame, in milliseconds.
const REMEMBERED_MS: u64 = 60_000;
/// Maximum number of rejected clients that are remembered.
const MAX_REMEMBERED: usize = 100_000;
/// Maximum number of bytes that a client may send while it is held.
const MAX_SENT: usize = 4 << 10;

/// Remembers rejected clients, and counts held sockets.
#[derive(Debug)]
pub(crate) struct Refusals {
    hasher: Hasher,
    remembered: Mutex<Remembered>,
    held: Mutex<Held>,
    ended: watch::Sender<bool>,
}

/// The identity that rejections are counted by.
#[derive(Debug, Clone, Copy, Hash)]
pub(crate) enum Identity<'a> {
    /// The user of a genuine token.
    User(&'a str),
    /// A client that presents its connection ID, and exceeds a limit.
    Connection(ConnectionId),
    /// A client without a genuine token, by its address.
    Address(IpAddr),
}

/// No further socket can be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// The limit of the network is reached.
    Network,
    /// The total limit is reached.
    All,
}

/// The reservation of a held socket. Dropping it releases the place.
#[derive(Debug)]
pub(crate) struct Hold {
    refusals: Arc<Refusals>,
    network: IpAddr,
    delay: Duration,
}

#[derive(Debug, Default)]
struct Remembered {
    /// Number of rejections, and the time until which they count, by the hash of the identity.
    clients: HashMap<u64, (u32, u64), Hasher>,
    clean_up_at: usize,
    /// Earliest time of the next clean-up, if the last one freed no entry.
    clean_up_from_ms: u64,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    networks: HashMap<IpAddr, usize, Hasher>,
}

impl Refusals {
    pub(crate) fn new() -> Self {
        let (hasher, ended) = (Hasher::default(), watch::channel(false).0);
        Self { hasher, remembered: Mutex::default(), held: Mutex::default(), ended }
    }

    /// Records a rejection, and returns the delay of its close frame: zero at first, then a second, doubling each time
    /// up to `longest`.
    pub(crate) fn note(&self, identity: Identity<'_>, mono_ms: u64, longest: Duration) -> Duration {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.drop_expired(mono_ms);
        let identity = self.hasher.hash_one(identity);
        if remembered.clients.len() >= MAX_REMEMBERED && !remembered.clients.contains_key(&identity) {
            return Duration::ZERO;
        }
        let (times, until_ms) = remembered.clients.entry(identity).or_insert((0, 0));
        *times = if *until_ms > mono_ms { times.saturating_add(1) } else { 0 };
        let delay = delay(*times).min(longest);
        *until_ms = mono_ms + clock::millis(delay) + REMEMBERED_MS;
        delay
    }

    /// The delay of the next rejection of an identity, without recording one.
    pub(crate) fn next_delay(&self, identity: Identity<'_>, mono_ms: u64, longest: Duration) -> Duration {
        let identity = self.hasher.hash_one(identity);
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        match remembered.clients.get(&identity) {
            Some(&(times, until_ms)) if until_ms > mono_ms => delay(times.saturating_add(1)).min(longest),
            _ => Duration::ZERO,
        }
    }

    /// Forgets the rejections of an identity after a successful connect.
    pub(crate) fn forget(&self, identity: Identity<'_>) {
        let identity = self.hasher.hash_one(identity);
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).clients.remove(&identity);
    }

    /// Reserves a place for a socket of an address.
    pub(crate) fn hold(self: &Arc<Self>, address: IpAddr, delay: Duration, config: &Config) -> Result<Hold, Full> {
        let (all, of_a_network) = held_sockets(config.max_connections);
        let network = address_group(address);
        let mut held = self.held();
        if held.all >= all {
            return Err(Full::All);
        }
        let count = held.networks.entry(network).or_insert(0);
        if *count >= of_a_network {
            return Err(Full::Network);
        }
        *count += 1;
        held.all += 1;
        Ok(Hold { refusals: self.clone(), network, delay })
    }

    /// Drops all held sockets, so that a shutdown does not wait for them.
    pub(crate) fn end(&self) {
        self.ended.send_replace(true);
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hold {
    /// Holds a socket for its delay. Returns it, unless the client disconnects or the hub shuts down.
    pub(crate) async fn wait(self, upgraded: Upgraded) -> Option<Upgraded> {
        let mut io = TokioIo::new(upgraded);
        let mut ended = self.refusals.ended.subscribe();
        tokio::select! {
            () = sleep(self.delay) => Some(io.into_inner()),
            () = until_gone(&mut io) => None,
            _ = ended.wait_for(|ended| *ended) => None,
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = self.refusals.held();
        held.all -= 1;
        if let Some(count) = held.networks.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                held.networks.remove(&self.network);
            }
        }
    }
}

impl Remembered {
    /// Drops expired entries, each time the number of entries has doubled.
    fn drop_expired(&mut self, mono_ms: u64) {
        if self.clients.len() >= self.clean_up_at.min(MAX_REMEMBERED) && mono_ms >= self.clean_up_from_ms {
            self.clients.retain(|_, (_, until_ms)| *until_ms > mono_ms);
            self.clean_up_at = 2 * self.clients.len().max(512);
            self.clean_up_from_ms = if self.clients.len() >= MAX_REMEMBERED { mono_ms + 1_000 } else { 0 };
        }
    }
}

fn delay(times: u32) -> Duration {
    match times {
        0 => Duration::ZERO,
        _ => Duration::from_secs(1 << (times - 1).min(16)),
    }
}

/// Returns once the client has disconnected, sent a close frame, or sent more than `MAX_SENT` bytes.
async fn until_gone(io: &mut (impl AsyncRead + Unpin)) {
    let (mut buffer, mut sent) = ([0; 128], 0);
    while let Ok(n @ 1..) = io.read(&mut buffer).await {
        sent += n;
        // The opcode of a close frame (RFC 6455 section 5.5.1).
        if sent > MAX_SENT || buffer[0] & 0x0f == 8 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn the_delay_grows_and_is_reset_by_a_connect_or_by_time() {
        let refusals = Refusals::new();
        let longest = Duration::from_secs(30);
        let mut now = 0;
        for seconds in [0, 1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(refusals.note(Identity::User("ann"), now, longest), Duration::from_secs(seconds));
            now += 1_000 * seconds + 1_000;
        }
        assert_eq!(refusals.note(Identity::User("bob"), now, longest), Duration::ZERO);
        assert_eq!(refusals.note(Identity::Address(HOME), now, longest), Duration::ZERO);
        refusals.forget(Identity::User("ann"));
        assert_eq!(refusals.note(Identity::User("ann"), now, longest), Duration::ZERO);
        assert_eq!(refusals.note(Identity::User("ann"), now, longest), Duration::from_secs(1));
        assert_eq!(refusals.note(Identity::User("ann"), now + 61_000, longest), Duration::ZERO);
        assert_eq!(refusals.note(Identity::User("ann"), now + 61_000, Duration::ZERO), Duration::ZERO);
        let (tab, other) = (Identity::Connection(ConnectionId(1)), Identity::Connection(ConnectionId(2)));
        for seconds in [0, 1, 2, 4] {
            assert_eq!(refusals.next_delay(tab, now, longest), Duration::from_secs(seconds));
            refusals.note(tab, now, longest);
        }
        assert_eq!(refusals.next_delay(tab, now, Duration::from_secs(3)), Duration::from_secs(3));
        assert_eq!(
            [other, Identity::User("ann")].map(|identity| refusals.next_delay(identity, now + 122_000, longest)),
            [Duration::ZERO; 2]
        );
        assert_eq!(refusals.next_delay(tab, now + 64_000, longest), Duration::ZERO);
    }

    #[test]
    fn held_sockets_are_limited_in_total_and_by_network() {
        let (refusals, config) = (Arc::new(Refusals::new()), Config { max_connections: 10, ..Config::default() });
        let hold = |address| refusals.hold(address, Duration::ZERO, &config);
        let v6 = |interface| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, interface));
        let mut holds: Vec<_> = (0..4).map(|interface| hold(v6(interface)).unwrap()).collect();
        assert_eq!(hold(v6(9)).unwrap_err(), Full::Network);
        holds.extend((0..12).map(|n| hold(IpAddr::V4(Ipv4Addr::new(10, 0, 0, n))).unwrap()));
        assert_eq!(hold(HOME).unwrap_err(), Full::All);
        holds.pop();
        assert!(hold(HOME).is_ok());
        drop(holds);
        let held = refusals.held();
        assert_eq!((held.all, held.networks.len()), (0, 0));
    }

    #[test]
    fn the_number_of_remembered_rejections_is_bounded() {
        let refusals = Refusals::new();
        for n in 0..u32::try_from(MAX_REMEMBERED).unwrap() + 10 {
            refusals.note(Identity::Address(IpAddr::V4(n.into())), 0, Duration::from_secs(30));
        }
        let count = || refusals.remembered.lock().unwrap().clients.len();
        assert_eq!(count(), MAX_REMEMBERED);
        refusals.note(Identity::User("ann"), 100_000, Duration::from_secs(30));
        assert_eq!(count(), 1);
    }
}

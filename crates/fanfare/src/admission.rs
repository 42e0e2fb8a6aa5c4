//! Limits on the number of connections (in total, by user and by address) and on the rates of connects, publishes and
//! replays.
//!
//! Knows counts, and nothing of sockets or sessions.

use crate::{address_group, config::Config, metrics::Counter};
use hashbrown::HashMap;
use std::{
    hash::{BuildHasher, Hash},
    net::IpAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

type Hasher = foldhash::fast::RandomState;

/// Counts connections and actions against their limits.
#[derive(Debug)]
pub(crate) struct Admission {
    total: AtomicUsize,
    /// By a keyed 64-bit hash of the user. A collision is negligibly unlikely, and storing the name would cost three
    /// times the memory for each connection.
    users: Mutex<HashMap<u64, u32, Hasher>>,
    hasher: Hasher,
    addresses: Mutex<HashMap<IpAddr, u32, Hasher>>,
    /// The connect rate of each address.
    address_paces: Mutex<RateLimiters<IpAddr>>,
    /// The rate of upgraded rejections of each address.
    upgraded_rejections: Mutex<RateLimiters<IpAddr>>,
    /// The connect rate of each user, by the hash of the user.
    user_paces: Mutex<RateLimiters<u64>>,
    /// The publish rate of each publisher, by the hash of its name.
    publisher_paces: Mutex<RateLimiters<u64>>,
    /// Bytes replayed after a gap to each address, and to each user.
    address_replays: Mutex<RateLimiters<IpAddr>>,
    user_replays: Mutex<RateLimiters<u64>>,
}

/// Rate limiters by key (generic cell rate algorithm).
#[derive(Debug)]
struct RateLimiters<K> {
    /// Theoretical arrival time of each key, in microseconds.
    paces: HashMap<K, u64, Hasher>,
    /// Number of entries at which idle ones are dropped.
    clean_up_at: usize,
}

/// An exceeded limit. Its text is a close reason: the setting's name, then a sentence that says what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ExceededLimit {
    #[error("max_connections: the hub has reached its limit; try again later")]
    Connections,
    #[error("max_connections_per_user: close another connection of this user first")]
    PerUser,
    #[error("max_connections_per_address: close another connection from this address first")]
    PerAddress,
    #[error("connects_per_second_per_address: connect less often; try again in a second")]
    ConnectRate,
    #[error("connects_per_second_per_user: connect less often; try again in a second")]
    UserConnectRate,
}

impl ExceededLimit {
    pub(crate) const fn counter(self) -> Counter {
        match self {
            Self::Connections => Counter::LimitConnections,
            Self::PerUser => Counter::LimitPerUser,
            Self::PerAddress => Counter::LimitPerAddress,
            Self::ConnectRate => Counter::LimitConnectRate,
            Self::UserConnectRate => Counter::LimitUserConnectRate,
        }
    }
}

impl Admission {
    pub(crate) fn new() -> Self {
        Self {
            total: AtomicUsize::new(0),
            users: Mutex::default(),
            hasher: Hasher::default(),
            addresses: Mutex::default(),
            address_paces: Mutex::default(),
            upgraded_rejections: Mutex::default(),
            user_paces: Mutex::default(),
            publisher_paces: Mutex::default(),
            address_replays: Mutex::default(),
            user_replays: Mutex::default(),
        }
    }

    /// Checks and counts a connect of an address at `mono_ms`.
    pub(crate) fn check_connect_rate(
        &self,
        address: IpAddr,
        mono_ms: u64,
        config: &Config,
    ) -> Result<(), ExceededLimit> {
        let address = address_group(address);
        let wait = step(&self.address_paces, address, config.connects_per_second_per_address, 1, mono_ms);
        wait.map_or(Ok(()), |_| Err(ExceededLimit::ConnectRate))
    }

    /// Checks and counts a rejection that is upgraded, for an address that exceeded its connect rate.
    pub(crate) fn may_upgrade_rejection(&self, address: IpAddr, mono_ms: u64, config: &Config) -> bool {
        let address = address_group(address);
        step(&self.upgraded_rejections, address, config.connects_per_second_per_address, 1, mono_ms).is_none()
    }

    /// Checks and counts a connect of a user at `mono_ms`.
    pub(crate) fn check_user_connect_rate(
        &self,
        user: &str,
        mono_ms: u64,
        config: &Config,
    ) -> Result<(), ExceededLimit> {
        let user = self.hasher.hash_one(user);
        let wait = step(&self.user_paces, user, config.connects_per_second_per_user, 1, mono_ms);
        wait.map_or(Ok(()), |_| Err(ExceededLimit::UserConnectRate))
    }

    /// Checks and counts the publish of `events` events at `mono_ms`. The error is the wait time in milliseconds.
    pub(crate) fn check_publish_rate(
        &self,
        bearer: &str,
        events: usize,
        mono_ms: u64,
        config: &Config,
    ) -> Result<(), u64> {
        let bearer = self.hasher.hash_one(bearer);
        let wait = step(&self.publisher_paces, bearer, config.publishes_per_second, events as u64, mono_ms);
        wait.map_or(Ok(()), Err)
    }

    /// Whether events may be replayed to a client after a gap, given the earlier replays to its user and address.
    pub(crate) fn may_be_replayed(&self, user: &str, address: IpAddr, mono_ms: u64, config: &Config) -> bool {
        let address = address_group(address);
        let user = self.hasher.hash_one(user);
        config.gap_replay_bytes_per_second == 0
            || !(is_ahead(&self.address_replays, &address, mono_ms) || is_ahead(&self.user_replays, &user, mono_ms))
    }

    /// Counts the bytes replayed to a client after a gap.
    pub(crate) fn count_replay(&self, user: &str, address: IpAddr, bytes: usize, mono_ms: u64, config: &Config) {
        let address = address_group(address);
        let rate = config.gap_replay_bytes_per_second;
        charge(&self.address_replays, address, rate, bytes as u64, mono_ms);
        charge(&self.user_replays, self.hasher.hash_one(user), rate, bytes as u64, mono_ms);
    }

    /// Checks whether a further connection would exceed a limit now. Counts nothing: [`admit`](Self::admit) decides.
    /// This early result only serves to delay the close frame.
    pub(crate) fn has_room(
        &self,
        user: &str,
        unlimited: bool,
        address: Option<IpAddr>,
        config: &Config,
    ) -> Result<(), ExceededLimit> {
        let address = address.map(address_group);
        let full = |limit: usize, count: usize| limit != 0 && count >= limit;
        let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let of_address = address.and_then(|address| addresses.get(&address).copied()).unwrap_or(0);
        drop(addresses);
        if full(config.max_connections_per_address, of_address as usize) {
            return Err(ExceededLimit::PerAddress);
        }
        let users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let of_user = users.get(&self.hasher.hash_one(user)).copied().unwrap_or(0);
        drop(users);
        if !unlimited && full(config.max_connections_per_user, of_user as usize) {
            return Err(ExceededLimit::PerUser);
        }
        if full(config.max_connections, self.total.load(Ordering::Relaxed)) {
            return Err(ExceededLimit::Connections);
        }
        Ok(())
    }

    /// Counts a new connection, or returns the limit that it exceeds. `replaced` is the address of the older connection
    /// of the same user whose place it takes over, and which is already counted. `unlimited` exempts an administrator
    /// from the limit by user.
    ///
    /// Locks are taken one after the other, never nested.
    pub(crate) fn admit(
        &self,
        user: &str,
        unlimited: bool,
        address: IpAddr,
        replaced: Option<IpAddr>,
        config: &Config,
    ) -> Result<(), ExceededLimit> {
        let address = address_group(address);
        let replaced = replaced.map(address_group);
        let spare = usize::from(replaced.is_some());
        let within = |limit: usize, count: usize, spare: usize| limit == 0 || count < limit + spare;
        {
            let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
            let count = addresses.entry(address).or_insert(0);
            let spare = usize::from(replaced == Some(address));
            if !within(config.max_connections_per_address, *count as usize, spare) {
                return Err(ExceededLimit::PerAddress);
            }
            *count += 1;
        }
        {
            let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
            let count = users.entry(self.hasher.hash_one(user)).or_insert(0);
            if !unlimited && !within(config.max_connections_per_user, *count as usize, spare) {
                drop(users);
                self.leave_address(address);
                return Err(ExceededLimit::PerUser);
            }
            *count += 1;
        }
        if !within(config.max_connections, self.total.fetch_add(1, Ordering::Relaxed), spare) {
            self.release(user, address);
            return Err(ExceededLimit::Connections);
        }
        Ok(())
    }

    /// Removes a connection from the counts.
    pub(crate) fn release(&self, user: &str, address: IpAddr) {
        let address = address_group(address);
        self.total.fetch_sub(1, Ordering::Relaxed);
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let user = self.hasher.hash_one(user);
        if let Some(count) = users.get_mut(&user) {
            *count -= 1;
            if *count == 0 {
                users.remove(&user);
            }
        }
        drop(users);
        self.leave_address(address);
    }

    fn leave_address(&self, address: IpAddr) {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = addresses.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&address);
            }
        }
    }
}

/// Counts `n` actions against `rate` a second, with bursts of two seconds' worth. Returns the wait time in milliseconds
/// if they exceed it. A key that was idle may exceed the burst once, with a single request.
fn step<K: Hash + Eq>(paces: &Mutex<RateLimiters<K>>, key: K, rate: u32, n: u64, mono_ms: u64) -> Option<u64> {
    let rate = u64::from(rate);
    if rate == 0 {
        return None;
    }
    let now_us = mono_ms * 1_000;
    let mut paces = paces.lock().unwrap_or_else(PoisonError::into_inner);
    paces.drop_idle(now_us);
    let pace = paces.paces.entry(key).or_insert(0);
    let (begin, cost) = ((*pace).max(now_us), n * 1_000_000 / rate);
    // A request larger than a burst is allowed if the key was idle, apart from the cost of one action.
    let allowed = now_us + 2_000_000_u64.max(cost + 1_000_000 / rate);
    if begin + cost > allowed {
        return Some((begin + cost - allowed).div_ceil(1_000));
    }
    *pace = begin + cost;
    None
}

/// Whether a key is ahead of its rate by more than two seconds' worth.
fn is_ahead<K: Hash + Eq>(paces: &Mutex<RateLimiters<K>>, key: &K, mono_ms: u64) -> bool {
    let paces = paces.lock().unwrap_or_else(PoisonError::into_inner);
    paces.paces.get(key).is_some_and(|pace| *pace > mono_ms * 1_000 + 2_000_000)
}

/// Counts `n` actions against `rate` a second, without a limit.
fn charge<K: Hash + Eq>(paces: &Mutex<RateLimiters<K>>, key: K, rate: u32, n: u64, mono_ms: u64) {
    if rate == 0 || n == 0 {
        return;
    }
    let now_us = mono_ms * 1_000;
    let mut paces = paces.lock().unwrap_or_else(PoisonError::into_inner);
    paces.drop_idle(now_us);
    let pace = paces.paces.entry(key).or_insert(0);
    *pace = (*pace).max(now_us) + n.saturating_mul(1_000_000) / u64::from(rate);
}

impl<K> Default for RateLimiters<K> {
    fn default() -> Self {
        Self { paces: HashMap::default(), clean_up_at: 0 }
    }
}

impl<K: Hash + Eq> RateLimiters<K> {
    /// Drops idle entries, each time the number of entries has doubled.
    fn drop_idle(&mut self, now_us: u64) {
        if self.paces.len() >= self.clean_up_at {
            self.paces.retain(|_, pace| *pace > now_us);
            self.clean_up_at = 2 * self.paces.len().max(512);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const AWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

    fn config(all: usize, user: usize, address: usize) -> Config {
        Config {
            max_connections: all,
            max_connections_per_user: user,
            max_connections_per_address: address,
            ..Config::default()
        }
    }

    // attack: more connections than the limits by user, by address and in total => rejected with the limit's own reason
    #[test]
    fn each_limit_is_enforced_with_its_own_reason() {
        let (ann, bob) = ("ann", "bob");
        for (config, second, refusal) in [
            (config(1, 0, 0), (bob, AWAY), ExceededLimit::Connections),
            (config(0, 1, 0), (ann, AWAY), ExceededLimit::PerUser),
            (config(0, 0, 1), (bob, HOME), ExceededLimit::PerAddress),
        ] {
            let admission = Admission::new();
            assert_eq!(admission.admit(ann, false, HOME, None, &config), Ok(()));
            assert_eq!(admission.admit(second.0, false, second.1, None, &config), Err(refusal));
            assert_eq!(
                admission.admit(ann, false, HOME, Some(HOME), &config),
                Ok(()),
                "taking over counts once: {refusal:?}"
            );
            let unlimited = admission.admit(second.0, true, second.1, None, &config);
            assert_eq!(unlimited.is_ok(), refusal == ExceededLimit::PerUser, "{refusal:?}");
            unlimited.into_iter().for_each(|()| admission.release(second.0, second.1));
            admission.release(ann, HOME);
            admission.release(ann, HOME);
            assert_eq!(admission.admit(second.0, false, second.1, None, &config), Ok(()));
        }
    }

    #[test]
    fn nothing_is_left_of_who_left() {
        let (ann, config) = ("ann", config(1, 1, 1));
        let admission = Admission::new();
        admission.admit(ann, false, HOME, None, &config).unwrap();
        admission.admit("bob", false, AWAY, None, &config).unwrap_err();
        admission.release(ann, HOME);
        assert_eq!(admission.total.load(Ordering::Relaxed), 0);
        assert!(admission.users.lock().unwrap().is_empty());
        assert!(admission.addresses.lock().unwrap().is_empty());
    }

    // attack: connections from many addresses of one IPv6 network (/64) => they count as one address
    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let (config, admission) = (config(0, 0, 1), Admission::new());
        let of = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(admission.admit("ann", false, of("2001:db8::1"), None, &config), Ok(()));
        assert_eq!(admission.admit("bob", false, of("2001:db8::2"), None, &config), Err(ExceededLimit::PerAddress));
        assert_eq!(admission.admit("bob", false, of("2001:db8:0:1::2"), None, &config), Ok(()));
        admission.release("ann", of("2001:db8::1"));
        assert_eq!(admission.admit("ann", false, of("2001:db8::3"), None, &config), Ok(()));
    }

    #[test]
    fn connects_come_at_their_rate() {
        let config = Config { connects_per_second_per_address: 10, ..Config::default() };
        let admission = Admission::new();
        let burst = (0..30).filter(|_| admission.check_connect_rate(HOME, 1_000, &config).is_ok()).count();
        assert_eq!(burst, 20);
        assert_eq!(admission.check_connect_rate(AWAY, 1_000, &config), Ok(()));
        assert_eq!(admission.check_connect_rate(HOME, 1_100, &config), Ok(()));
        assert_eq!(admission.check_connect_rate(HOME, 1_100, &config), Err(ExceededLimit::ConnectRate));
    }

    // attack: repeated connects with an unknown cursor for the whole window => replay is limited by user and address
    #[test]
    fn replays_behind_gaps_are_counted_by_user_and_by_address() {
        let config = Config { gap_replay_bytes_per_second: 1_000, ..Config::default() };
        let admission = Admission::new();
        let may = |user, address, ms| admission.may_be_replayed(user, address, ms, &config);
        assert!(may("ann", HOME, 1_000), "a whole window, once");
        admission.count_replay("ann", HOME, 10_000, 1_000, &config);
        assert_eq!((may("ann", AWAY, 1_000), may("bob", HOME, 1_000), may("bob", AWAY, 1_000)), (false, false, true));
        assert_eq!((may("ann", HOME, 8_999), may("ann", HOME, 9_000)), (false, true));
        let free = Config { gap_replay_bytes_per_second: 0, ..Config::default() };
        assert!(admission.may_be_replayed("ann", HOME, 1_000, &free));
    }

    #[test]
    fn publishers_keep_their_rate_and_batches_count_as_what_is_in_them() {
        let config = Config { publishes_per_second: 10, ..Config::default() };
        let admission = Admission::new();
        let publish = |events, ms| admission.check_publish_rate("ci", events, ms, &config);
        assert_eq!((publish(20, 1_000), publish(1, 1_000), publish(1, 1_100)), (Ok(()), Err(100), Ok(())));
        assert_eq!(admission.check_publish_rate("other", 1, 1_000, &config), Ok(()));
        assert_eq!((publish(50, 10_000), publish(1, 12_000), publish(1, 13_100)), (Ok(()), Err(1_100), Ok(())));
        assert_eq!((publish(1, 20_000), publish(49, 20_000), publish(49, 20_000)), (Ok(()), Ok(()), Err(5_000 - 100)));
        assert_eq!(admission.check_publish_rate("ci", 1_000, 1_000, &Config::default()), Ok(()));
    }
}

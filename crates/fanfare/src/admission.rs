//! How many connections there may be: in all, of a user, from an address, and how fast they may come.
//!
//! Knows counts, and nothing of sockets or sessions.

use crate::{config::Config, metrics::Counter};
use hashbrown::HashMap;
use std::{
    hash::BuildHasher,
    net::IpAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

type Hasher = foldhash::fast::RandomState;

/// Counts connections against their limits.
#[derive(Debug)]
pub(crate) struct Admission {
    total: AtomicUsize,
    /// By the hash of the user, which is keyed and wide enough that two users share a count only by a miracle; a name
    /// would cost each connection three times as much.
    users: Mutex<HashMap<u64, u32, Hasher>>,
    hasher: Hasher,
    addresses: Mutex<Addresses>,
}

#[derive(Debug, Default)]
struct Addresses {
    connections: HashMap<IpAddr, u32, Hasher>,
    /// When the connects of an address so far would have been all right at its rate, in microseconds.
    paces: HashMap<IpAddr, u64, Hasher>,
    /// How many paces there may be before those that no longer matter are dropped.
    sweep_at: usize,
}

/// A limit that is reached. The text is a close reason: the setting's name, then what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("max_connections: the hub is full; try again later")]
    Connections,
    #[error("max_connections_per_user: close another connection of this user first")]
    PerUser,
    #[error("max_connections_per_address: close another connection from this address first")]
    PerAddress,
    #[error("connects_per_second_per_address: connect less often; try again in a second")]
    ConnectRate,
}

impl Refusal {
    pub(crate) const fn counter(self) -> Counter {
        match self {
            Self::Connections => Counter::LimitConnections,
            Self::PerUser => Counter::LimitPerUser,
            Self::PerAddress => Counter::LimitPerAddress,
            Self::ConnectRate => Counter::LimitConnectRate,
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
        }
    }

    /// Whether an address may connect once more at `mono_ms` (a generic cell rate algorithm).
    pub(crate) fn keeps_pace(&self, address: IpAddr, mono_ms: u64, config: &Config) -> Result<(), Refusal> {
        let rate = u64::from(config.connects_per_second_per_address);
        if rate == 0 {
            return Ok(());
        }
        let now_us = mono_ms * 1_000;
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.sweep(now_us);
        let pace = addresses.paces.entry(address).or_insert(0);
        let next = (*pace).max(now_us) + 1_000_000 / rate;
        if next > now_us + 2_000_000 {
            return Err(Refusal::ConnectRate);
        }
        *pace = next;
        Ok(())
    }

    /// Counts a connection in, or says which limit is reached. `replaced` is where the connection comes from whose
    /// place it takes: the same user's, and counted already.
    pub(crate) fn admit(
        &self,
        user: &str,
        address: IpAddr,
        replaced: Option<IpAddr>,
        config: &Config,
    ) -> Result<(), Refusal> {
        let spare = usize::from(replaced.is_some());
        let within = |limit: usize, count: usize, spare: usize| limit == 0 || count < limit + spare;
        {
            let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
            let count = addresses.connections.entry(address).or_insert(0);
            let spare = usize::from(replaced == Some(address));
            if !within(config.max_connections_per_address, *count as usize, spare) {
                return Err(Refusal::PerAddress);
            }
            *count += 1;
        }
        {
            let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
            let count = users.entry(self.hasher.hash_one(user)).or_insert(0);
            if !within(config.max_connections_per_user, *count as usize, spare) {
                drop(users);
                self.leave_address(address);
                return Err(Refusal::PerUser);
            }
            *count += 1;
        }
        if !within(config.max_connections, self.total.fetch_add(1, Ordering::Relaxed), spare) {
            self.release(user, address);
            return Err(Refusal::Connections);
        }
        Ok(())
    }

    /// Counts a connection out.
    pub(crate) fn release(&self, user: &str, address: IpAddr) {
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
        if let Some(count) = addresses.connections.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                addresses.connections.remove(&address);
            }
        }
    }
}

impl Addresses {
    /// Forgets addresses that have not connected lately, whenever their number has doubled.
    fn sweep(&mut self, now_us: u64) {
        if self.paces.len() >= self.sweep_at {
            self.paces.retain(|_, pace| *pace > now_us);
            self.sweep_at = 2 * self.paces.len().max(512);
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

    #[test]
    fn each_limit_counts_its_own() {
        let (ann, bob) = ("ann", "bob");
        for (config, second, refusal) in [
            (config(1, 0, 0), (bob, AWAY), Refusal::Connections),
            (config(0, 1, 0), (ann, AWAY), Refusal::PerUser),
            (config(0, 0, 1), (bob, HOME), Refusal::PerAddress),
        ] {
            let admission = Admission::new();
            assert_eq!(admission.admit(ann, HOME, None, &config), Ok(()));
            assert_eq!(admission.admit(second.0, second.1, None, &config), Err(refusal));
            assert_eq!(admission.admit(ann, HOME, Some(HOME), &config), Ok(()), "taking over counts once: {refusal:?}");
            admission.release(ann, HOME);
            admission.release(ann, HOME);
            assert_eq!(admission.admit(second.0, second.1, None, &config), Ok(()));
        }
    }

    #[test]
    fn nothing_is_left_of_who_left() {
        let (ann, config) = ("ann", config(1, 1, 1));
        let admission = Admission::new();
        admission.admit(ann, HOME, None, &config).unwrap();
        admission.admit("bob", AWAY, None, &config).unwrap_err();
        admission.release(ann, HOME);
        assert_eq!(admission.total.load(Ordering::Relaxed), 0);
        assert!(admission.users.lock().unwrap().is_empty());
        assert!(admission.addresses.lock().unwrap().connections.is_empty());
    }

    #[test]
    fn connects_come_at_their_rate() {
        let config = Config { connects_per_second_per_address: 10, ..Config::default() };
        let admission = Admission::new();
        let burst = (0..30).filter(|_| admission.keeps_pace(HOME, 1_000, &config).is_ok()).count();
        assert_eq!(burst, 20);
        assert_eq!(admission.keeps_pace(AWAY, 1_000, &config), Ok(()));
        assert_eq!(admission.keeps_pace(HOME, 1_100, &config), Ok(()));
        assert_eq!(admission.keeps_pace(HOME, 1_100, &config), Err(Refusal::ConnectRate));
    }
}

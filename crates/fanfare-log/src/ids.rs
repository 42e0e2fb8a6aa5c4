//! The event IDs that an in-memory log remembers, including those of evicted events.

use fanfare_core::window::Bounds;
use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
};

/// The number of generations that are retained besides the current one.
const OLDER: usize = 2;

/// The IDs of the newest events of a log, each as a keyed hash of 128 bits.
///
/// IDs are stored in generations. A generation ends after half of the horizon, or when it has half of [`Bounds::ids`],
/// and the two generations before the current one are retained. An ID is therefore remembered for the whole horizon,
/// unless more than [`Bounds::ids`] events are published in that time. At most one and a half times that number is
/// stored.
#[derive(Debug)]
pub(crate) struct Ids {
    /// Two independent hashers, so that a publisher that chooses IDs cannot construct collisions.
    hashers: [RandomState; 2],
    /// Oldest first. Never empty.
    generations: VecDeque<Generation>,
    /// The maximum number of IDs in a generation. `period_ms` is its maximum age in milliseconds.
    max_ids: usize,
    period_ms: u64,
    horizon_ms: u64,
    /// The warning about a short horizon was logged.
    warned: bool,
}

#[derive(Debug)]
struct Generation {
    /// When it was started, in milliseconds since 1970-01-01T00:00:00Z.
    began_ms: u64,
    sequences: HashMap<(u64, u64), u64>,
}

impl Ids {
    /// Creates an empty list: IDs of events published before `unix_ms` are unknown.
    pub(crate) fn new(bounds: Bounds, unix_ms: u64) -> Self {
        Self {
            hashers: [RandomState::new(), RandomState::new()],
            generations: VecDeque::from([Generation::new(unix_ms)]),
            max_ids: (bounds.ids / 2).max(1),
            period_ms: bounds.ids_ms / 2,
            horizon_ms: bounds.ids_ms,
            warned: false,
        }
    }

    /// The sequence of the event with this ID. A match in an older generation is copied to the current one, so the ID
    /// is remembered for another horizon.
    pub(crate) fn find(&mut self, event_id: &str, unix_ms: u64) -> Option<u64> {
        let key = self.key(event_id);
        let (age, sequence) = self
            .generations
            .iter()
            .rev()
            .map(|one| one.sequences.get(&key).copied())
            .enumerate()
            .find_map(|(age, found)| Some((age, found?)))?;
        if age > 0 {
            self.put(key, sequence, unix_ms);
        }
        Some(sequence)
    }

    /// Remembers the sequence of an event.
    pub(crate) fn insert(&mut self, event_id: &str, sequence: u64, unix_ms: u64) {
        self.put(self.key(event_id), sequence, unix_ms);
    }

    /// How far back all IDs are remembered, in milliseconds. At most the horizon.
    pub(crate) fn covered_ms(&self, unix_ms: u64) -> u64 {
        let oldest = self.generations.front().map_or(unix_ms, |oldest| oldest.began_ms);
        unix_ms.saturating_sub(oldest).min(self.horizon_ms)
    }

    fn key(&self, event_id: &str) -> (u64, u64) {
        let [first, second] = &self.hashers;
        (first.hash_one(event_id), second.hash_one(event_id))
    }

    fn put(&mut self, key: (u64, u64), sequence: u64, unix_ms: u64) {
        let Some(current) = self.generations.back() else { return };
        let (full, old) =
            (current.sequences.len() >= self.max_ids, unix_ms.saturating_sub(current.began_ms) >= self.period_ms);
        if full || old {
            self.rotate(unix_ms);
        }
        if let Some(current) = self.generations.back_mut() {
            current.sequences.insert(key, sequence);
        }
    }

    fn rotate(&mut self, unix_ms: u64) {
        self.generations.push_back(Generation::new(unix_ms));
        if self.generations.len() <= OLDER + 1 {
            return;
        }
        self.generations.pop_front();
        let covered_ms = self.covered_ms(unix_ms);
        if covered_ms < self.horizon_ms && !std::mem::replace(&mut self.warned, true) {
            super::warn_of_short_horizon(covered_ms, self.horizon_ms);
        }
    }
}

impl Generation {
    fn new(began_ms: u64) -> Self {
        Self { began_ms, sequences: HashMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: usize, ids_ms: u64) -> Ids {
        Ids::new(Bounds { events: 1, bytes: 1, age_ms: 1, ids, ids_ms }, 0)
    }

    #[test]
    fn an_id_is_remembered_for_the_horizon_and_forgotten_some_time_after() {
        let mut ids = ids(1_000, 100);
        let mut known_for = Vec::new();
        for n in 0..1_000_u64 {
            ids.insert(&format!("e{n}"), n + 1, n);
            let oldest = (0..=n).rev().take_while(|n| {
                ids.generations.iter().any(|one| one.sequences.contains_key(&ids.key(&format!("e{n}"))))
            });
            known_for.push(oldest.count() as u64);
        }
        assert!(known_for.iter().skip(200).all(|known| (100..=151).contains(known)), "{known_for:?}");
        assert_eq!((ids.covered_ms(1_000), ids.find("e900", 1_000), ids.find("e800", 1_000)), (100, Some(901), None));
    }

    #[test]
    fn a_duplicate_extends_the_time_that_its_id_is_remembered() {
        let mut ids = ids(1_000, 100);
        ids.insert("a", 1, 0);
        for n in 1..100 {
            assert_eq!(ids.find("a", 20 * n), Some(1), "{n}");
            ids.insert(&format!("e{n}"), n + 1, 20 * n);
        }
        assert_eq!(ids.find("e1", 2_000), None);
    }

    #[test]
    fn memory_is_bounded_and_a_short_horizon_is_logged() {
        let mut ids = ids(100, 1_000);
        for n in 0..10_000_u64 {
            ids.insert(&format!("e{n}"), n + 1, n);
            let held: usize = ids.generations.iter().map(|one| one.sequences.len()).sum();
            assert!(held <= 150, "{held}");
            let hundredth = ids.key(&format!("e{}", n.saturating_sub(99)));
            let known = ids.generations.iter().any(|one| one.sequences.contains_key(&hundredth));
            assert!(known, "the newest hundred IDs are remembered");
        }
        assert!((100..=150).contains(&ids.covered_ms(9_999)), "{}", ids.covered_ms(9_999));
        assert!(ids.warned);
    }
}

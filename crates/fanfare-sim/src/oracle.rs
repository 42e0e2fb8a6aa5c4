//! The oracle: records what was published, acknowledged and received, and reports violations.

use crate::plan::EventAudience;
use std::collections::{BTreeMap, HashMap};

/// A bitmap of numbers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bits(Vec<u64>);

impl Bits {
    pub(crate) fn has(&self, at: usize) -> bool {
        self.0.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }

    /// Sets a bit. Returns whether it was not set before.
    fn set(&mut self, at: usize) -> bool {
        if self.0.len() <= at / 64 {
            self.0.resize(at / 64 + 1, 0);
        }
        let (word, bit) = (&mut self.0[at / 64], 1 << (at % 64));
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

/// A published event.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    pub(crate) audience: EventAudience,
    /// When its publish began.
    pub(crate) began: u64,
    /// When it was first acknowledged.
    pub(crate) acknowledged: Option<u64>,
}

/// The record of a client.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) user: usize,
    pub(crate) topic: usize,
    /// When it first connected.
    pub(crate) since: Option<u64>,
    all: Bits,
    /// The events received since its last reset.
    since_reset: Bits,
    /// When it received gaps.
    gaps: Vec<u64>,
    last: Option<u32>,
    /// The order that it follows. After a reset, a client may receive events again, in another order.
    order: usize,
    pub(crate) deliveries: u64,
}

/// The record of a run.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    pub(crate) events: Vec<Published>,
    pub(crate) clients: Vec<Seen>,
    /// Which events directly followed which, for each order.
    orders: Vec<HashMap<u32, Vec<u32>>>,
    eras: HashMap<u64, usize>,
    positions: HashMap<(u64, u64), u32>,
    pub(crate) violations: Vec<String>,
    pub(crate) duplicates_acknowledged: u64,
}

/// The maximum number of recorded violations of each kind.
const MAX_OF_A_KIND: usize = 3;

impl Oracle {
    pub(crate) fn new(clients: usize, users: usize, topics: usize) -> Self {
        let client = |i: usize| Seen { user: i % users, topic: i % topics, ..Seen::default() };
        let eras = HashMap::from([(0, 0)]);
        Self { clients: (0..clients).map(client).collect(), orders: vec![HashMap::new()], eras, ..Self::default() }
    }

    pub(crate) fn violated(&mut self, text: impl FnOnce() -> String) {
        let text = text();
        let kind = |violation: &String| violation.split_once(':').map(|(kind, _)| kind.to_owned());
        if self.violations.iter().filter(|held| kind(held) == kind(&text)).count() < MAX_OF_A_KIND {
            self.violations.push(text);
        }
    }

    /// A publish begins. Returns the number of the event.
    pub(crate) fn publish(&mut self, audience: EventAudience, now: u64) -> u32 {
        self.events.push(Published { audience, began: now, acknowledged: None });
        (self.events.len() - 1) as u32
    }

    pub(crate) fn acknowledged(&mut self, event: u32, position: (u64, u64), duplicate: bool, now: u64) {
        self.events[event as usize].acknowledged.get_or_insert(now);
        self.duplicates_acknowledged += u64::from(duplicate);
        self.note_position(event, position);
    }

    /// An event was seen at a position.
    pub(crate) fn note_position(&mut self, event: u32, position: (u64, u64)) {
        let held = *self.positions.entry(position).or_insert(event);
        if held != event {
            let (epoch, sequence) = position;
            self.violated(|| {
                format!("position: {} identifies e{held} and e{event}", crate::node::position_text(epoch, sequence))
            });
        }
    }

    fn is_for(&self, client: usize, audience: EventAudience) -> bool {
        let seen = &self.clients[client];
        match audience {
            EventAudience::Everyone => true,
            EventAudience::User(user) => seen.user == user,
            EventAudience::Topic(topic) => seen.topic == topic,
            EventAudience::Client(other) => other == client,
        }
    }

    pub(crate) fn received(&mut self, client: usize, event: u32, now: u64) {
        let number = event as usize;
        if self.events.get(number).is_none_or(|published| !self.is_for(client, published.audience)) {
            self.violated(|| {
                format!("audience: client {client} received e{event}, which is for another audience, at {now} ms")
            });
            return;
        }
        let seen = &mut self.clients[client];
        seen.deliveries += 1;
        seen.all.set(number);
        let new = seen.since_reset.set(number);
        let (last, order) = (seen.last.replace(event), seen.order);
        if !new {
            self.violated(|| format!("twice: client {client} received e{event} again at {now} ms, without a reset"));
        } else if let Some(last) = last {
            let next = self.orders[order].entry(last).or_default();
            if !next.contains(&event) {
                next.push(event);
            }
        }
    }

    pub(crate) fn told_of_gap(&mut self, client: usize, epoch: u64, reset: bool, now: u64) {
        let order = if reset {
            let next = self.orders.len();
            let order = *self.eras.entry(epoch).or_insert(next);
            if order == next {
                self.orders.push(HashMap::new());
            }
            Some(order)
        } else {
            None
        };
        let seen = &mut self.clients[client];
        seen.gaps.push(now);
        // The next event may be anywhere in the log.
        seen.last = None;
        if let Some(order) = order {
            seen.since_reset.clear();
            seen.order = order;
        }
    }

    /// Whether an acknowledged event is for a client, was not received, and no gap explains that since its publish
    /// began.
    fn misses(&self, client: usize, number: usize, event: &Published) -> bool {
        let seen = &self.clients[client];
        let waited = seen.since.is_some_and(|since| since < event.began);
        let excused = seen.gaps.last().is_some_and(|gap| *gap >= event.began);
        waited && !excused && !seen.all.has(number) && self.is_for(client, event.audience)
    }

    /// Whether any client still misses an acknowledged event.
    pub(crate) fn misses_any(&self) -> bool {
        let acknowledged = || self.events.iter().enumerate().filter(|(_, event)| event.acknowledged.is_some());
        (0..self.clients.len()).any(|client| acknowledged().any(|(number, event)| self.misses(client, number, event)))
    }

    /// Searches for silent losses and contradictory orders, once nothing is left to do.
    pub(crate) fn check(&mut self) {
        for client in 0..self.clients.len() {
            let (mut lost, mut first) = (0, None);
            for (number, event) in self.events.iter().enumerate() {
                if let Some(acknowledged) = event.acknowledged
                    && self.misses(client, number, event)
                {
                    lost += 1;
                    first.get_or_insert((number, event.began, acknowledged));
                }
            }
            if let Some((number, began, acknowledged)) = first {
                let more = lost - 1;
                self.violated(|| {
                    format!(
                        "lost: client {client} did not receive e{number} (published at {began} ms, acknowledged at \
                         {acknowledged} ms) and {more} others, and received no gap after that"
                    )
                });
            }
        }
        for order in 0..self.orders.len() {
            if let Some((a, b)) = circle(&self.orders[order]) {
                self.violated(|| format!("order: some clients received e{a} before e{b}, others after it"));
            }
        }
    }
}

/// Two events of a cycle, if the order has one.
fn circle(next: &HashMap<u32, Vec<u32>>) -> Option<(u32, u32)> {
    let mut before: BTreeMap<u32, usize> = BTreeMap::new();
    for (from, to) in next {
        before.entry(*from).or_insert(0);
        for to in to {
            *before.entry(*to).or_insert(0) += 1;
        }
    }
    let mut free: Vec<u32> = before.iter().filter(|(_, count)| **count == 0).map(|(event, _)| *event).collect();
    while let Some(event) = free.pop() {
        before.remove(&event);
        for to in next.get(&event).into_iter().flatten() {
            if let Some(count) = before.get_mut(to) {
                *count -= 1;
                if *count == 0 {
                    free.push(*to);
                }
            }
        }
    }
    let (&from, _) = before.iter().find(|(event, _)| next.contains_key(event))?;
    let to = next[&from].iter().find(|to| before.contains_key(to)).copied().unwrap_or(from);
    Some((from.min(to), from.max(to)))
}

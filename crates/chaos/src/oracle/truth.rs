//! All events: when each was published, and where it was acknowledged or seen to stand.

use super::{Event, Lineage, Wrong};
use fanfare::Position;
use std::collections::{BTreeSet, HashMap};

/// How a publisher works, as far as the rules depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One event is acknowledged before the next is published: places rise with numbers.
    InTurn,
    /// Several are under way at once: any order is right.
    Pipelined,
    /// Nobody acknowledges: it can't be asked what was lost.
    Unacknowledged,
}

/// What is known of all events.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    publishers: Vec<Publisher>,
    places: HashMap<Position, Event>,
    /// Events that were seen at more than one place.
    moved: BTreeSet<Event>,
    wrong: Wrong,
    examples: Vec<String>,
}

#[derive(Debug)]
struct Publisher {
    kind: Kind,
    events: Vec<Published>,
    /// All events up to this number are acknowledged.
    acknowledged: u64,
}

/// One event.
#[derive(Debug, Default, Clone)]
pub(crate) struct Published {
    /// When its publish began, in milliseconds since 1970.
    pub(crate) began_ms: u64,
    /// Where it was acknowledged last.
    pub(crate) acknowledged: Option<Position>,
    /// Where it was seen to stand; mostly one place.
    places: Vec<Position>,
}

impl Truth {
    pub(crate) fn new(kinds: &[Kind]) -> Self {
        let publisher = |&kind| Publisher { kind, events: Vec::new(), acknowledged: 0 };
        Self { publishers: kinds.iter().map(publisher).collect(), ..Self::default() }
    }

    pub(crate) fn kind(&self, publisher: usize) -> Option<Kind> {
        self.publishers.get(publisher).map(|publisher| publisher.kind)
    }

    /// A publish begins. Returns the number of the event, the first of a publisher being 1.
    pub(crate) fn begin(&mut self, publisher: usize, now_ms: u64) -> u64 {
        let publisher = &mut self.publishers[publisher];
        publisher.events.push(Published { began_ms: now_ms, ..Published::default() });
        publisher.events.len() as u64
    }

    pub(crate) fn get(&self, (publisher, number): Event) -> Option<&Published> {
        let index = usize::try_from(number.checked_sub(1)?).ok()?;
        self.publishers.get(publisher)?.events.get(index)
    }

    fn get_mut(&mut self, (publisher, number): Event) -> Option<&mut Published> {
        let index = usize::try_from(number.checked_sub(1)?).ok()?;
        self.publishers.get_mut(publisher)?.events.get_mut(index)
    }

    /// An event was acknowledged at a place.
    pub(crate) fn acknowledge(&mut self, event: Event, place: Position) {
        self.stands(event, place);
        let (publisher, number) = event;
        let before = self.get((publisher, number.saturating_sub(1))).and_then(|before| before.acknowledged);
        if self.kind(publisher) == Some(Kind::InTurn)
            && let Some(before) = before
            && before.epoch == place.epoch
            && before.sequence >= place.sequence
        {
            self.wrong.conflicts += 1;
            self.note(format!("{event:?} was acknowledged at {place}, the one before it at {before}"));
        }
        let Some(published) = self.get_mut(event) else { return };
        published.acknowledged = Some(place);
        let publisher = &mut self.publishers[publisher];
        let next = |acknowledged: u64| usize::try_from(acknowledged).unwrap_or(usize::MAX);
        while publisher.events.get(next(publisher.acknowledged)).is_some_and(|event| event.acknowledged.is_some()) {
            publisher.acknowledged += 1;
        }
    }

    /// An event was seen at a place.
    pub(crate) fn stands(&mut self, event: Event, place: Position) {
        let held = *self.places.entry(place).or_insert(event);
        if held != event {
            self.wrong.conflicts += 1;
            self.note(format!("{place} names {held:?} and {event:?}"));
        }
        let Some(published) = self.get_mut(event) else {
            self.wrong.conflicts += 1;
            return self.note(format!("{event:?} was received at {place}, and nobody published it"));
        };
        if published.places.contains(&place) {
            return;
        }
        published.places.push(place);
        if published.places.len() > 1 {
            self.moved.insert(event);
        }
    }

    /// Whether an event may rightly come again at another place: its first one, or its id, was lost.
    pub(crate) fn may_move(&self, event: Event, to: Position, lineage: &Lineage) -> bool {
        let places = self.get(event).map_or(&[][..], |published| &published.places);
        places.iter().all(|place| *place == to || !lineage.holds(*place) || lineage.forgot_ids_since(*place))
    }

    /// Whether an event came to its place from another one, and rightly.
    pub(crate) fn has_moved(&self, event: Event, to: Position, lineage: &Lineage) -> bool {
        self.get(event).is_some_and(|published| published.places.len() > 1) && self.may_move(event, to, lineage)
    }

    /// Up to which number all events of a publisher are acknowledged.
    pub(crate) fn acknowledged(&self, publisher: usize) -> u64 {
        self.publishers[publisher].acknowledged
    }

    /// How many events of each publisher have begun.
    #[cfg(test)]
    pub(super) fn begun(&self, publisher: usize) -> u64 {
        self.publishers[publisher].events.len() as u64
    }

    /// Takes what was wrong since the last time, and examples of it.
    pub(crate) fn settle(&mut self, lineage: &Lineage) -> (Wrong, Vec<String>) {
        for event in std::mem::take(&mut self.moved) {
            let places = self.get(event).map_or_else(Vec::new, |published| published.places.clone());
            // Each place by itself: an event that moved rightly has one that holds, or ids were lost between.
            let stands: Vec<_> = places.iter().filter(|place| lineage.holds(**place)).collect();
            let forgotten = stands.iter().any(|place| lineage.forgot_ids_since(**place));
            // A place may be told under a later epoch, too.
            let two = stands.windows(2).find(|two| two[0].sequence != two[1].sequence);
            if let Some(two) = two.filter(|_| !forgotten) {
                let example = format!("{event:?} stands at {} and at {}", two[0], two[1]);
                self.wrong.conflicts += 1;
                self.note(example);
            }
        }
        (std::mem::take(&mut self.wrong), std::mem::take(&mut self.examples))
    }

    fn note(&mut self, example: String) {
        if self.examples.len() < super::ledger::EXAMPLES {
            self.examples.push(example);
        }
    }
}

//! All events: when each was published, and the positions at which it was acknowledged or received.

use super::{EXAMPLES, Event, Lineage, Wrong};
use fanfare::Position;
use std::collections::{BTreeSet, HashMap};

/// The properties of a publisher on which the rules depend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Each event is acknowledged before the next is published: positions increase with numbers.
    InTurn,
    /// Several publishes are in flight at once: any order is correct.
    Pipelined,
    /// Publishes are not acknowledged: loss cannot be determined.
    Unacknowledged,
}

/// All published events.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    publishers: Vec<Publisher>,
    positions: HashMap<Position, Event>,
    /// Events that were seen at more than one position.
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

/// A published event.
#[derive(Debug, Default, Clone)]
pub(crate) struct Published {
    /// When its publish began, in milliseconds since 1970.
    pub(crate) began_ms: u64,
    /// Its last acknowledged position.
    pub(crate) acknowledged: Option<Position>,
    /// The positions at which it was seen; usually one.
    positions: Vec<Position>,
}

impl Truth {
    pub(crate) fn new(kinds: &[Kind]) -> Self {
        let publisher = |&kind| Publisher { kind, events: Vec::new(), acknowledged: 0 };
        Self { publishers: kinds.iter().map(publisher).collect(), ..Self::default() }
    }

    pub(crate) fn kind(&self, publisher: usize) -> Option<Kind> {
        self.publishers.get(publisher).map(|publisher| publisher.kind)
    }

    /// A publish begins. Returns the number of the event. The first number of a publisher is 1.
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

    /// An event was acknowledged at a position.
    pub(crate) fn acknowledge(&mut self, event: Event, position: Position) {
        self.note_seen(event, position);
        let (publisher, number) = event;
        let before = self.get((publisher, number.saturating_sub(1))).and_then(|before| before.acknowledged);
        if self.kind(publisher) == Some(Kind::InTurn)
            && let Some(before) = before
            && before.epoch == position.epoch
            && before.sequence >= position.sequence
        {
            self.wrong.conflicts += 1;
            self.note(format!("{event:?} was acknowledged at {position}, the event before it at {before}"));
        }
        let Some(published) = self.get_mut(event) else { return };
        published.acknowledged = Some(position);
        let publisher = &mut self.publishers[publisher];
        let next = |acknowledged: u64| usize::try_from(acknowledged).unwrap_or(usize::MAX);
        while publisher.events.get(next(publisher.acknowledged)).is_some_and(|event| event.acknowledged.is_some()) {
            publisher.acknowledged += 1;
        }
    }

    /// An event was seen at a position.
    pub(crate) fn note_seen(&mut self, event: Event, position: Position) {
        let held = *self.positions.entry(position).or_insert(event);
        if held != event {
            self.wrong.conflicts += 1;
            self.note(format!("{position} identifies {held:?} and {event:?}"));
        }
        let Some(published) = self.get_mut(event) else {
            self.wrong.conflicts += 1;
            return self.note(format!("{event:?} was received at {position}, but was not published"));
        };
        if published.positions.contains(&position) {
            return;
        }
        published.positions.push(position);
        if published.positions.len() > 1 {
            self.moved.insert(event);
        }
    }

    /// Whether an event may be received again at another position, because its first position or its ID was lost.
    pub(crate) fn may_move(&self, event: Event, to: Position, lineage: &Lineage) -> bool {
        let positions = self.get(event).map_or(&[][..], |published| &published.positions);
        positions
            .iter()
            .all(|position| *position == to || !lineage.holds(*position) || lineage.forgot_ids_since(*position))
    }

    /// Whether an event moved to its position from another one, and was allowed to.
    pub(crate) fn has_moved(&self, event: Event, to: Position, lineage: &Lineage) -> bool {
        self.get(event).is_some_and(|published| published.positions.len() > 1) && self.may_move(event, to, lineage)
    }

    /// The number up to which all events of a publisher are acknowledged.
    pub(crate) fn acknowledged(&self, publisher: usize) -> u64 {
        self.publishers[publisher].acknowledged
    }

    /// The number of publishes that a publisher has begun.
    #[cfg(test)]
    pub(super) fn begun(&self, publisher: usize) -> u64 {
        self.publishers[publisher].events.len() as u64
    }

    /// Takes the violations since the last call, and examples of them.
    pub(crate) fn settle(&mut self, lineage: &Lineage) -> (Wrong, Vec<String>) {
        for event in std::mem::take(&mut self.moved) {
            let positions = self.get(event).map_or_else(Vec::new, |published| published.positions.clone());
            // Each position is judged by itself: of an event that was allowed to move, one position is valid, or IDs
            // were lost in between.
            let seen: Vec<_> = positions.iter().filter(|position| lineage.holds(**position)).collect();
            let forgotten = seen.iter().any(|position| lineage.forgot_ids_since(**position));
            // A position may be reported under a later epoch, too.
            let two = seen.windows(2).find(|two| two[0].sequence != two[1].sequence);
            if let Some(two) = two.filter(|_| !forgotten) {
                let example = format!("{event:?} has the positions {} and {}", two[0], two[1]);
                self.wrong.conflicts += 1;
                self.note(example);
            }
        }
        (std::mem::take(&mut self.wrong), std::mem::take(&mut self.examples))
    }

    fn note(&mut self, example: String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(example);
        }
    }
}

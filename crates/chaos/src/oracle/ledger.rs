//! What one client was to receive, and what it did receive.

use super::{Event, Lineage, Truth, Wrong, bits::Bits, truth::Kind};
use fanfare::Position;
use std::collections::BTreeMap;

/// How many examples are kept.
pub(super) const EXAMPLES: usize = 3;

/// By how much a hub's time of a gap may lag behind a publisher's clock on the same machine, in milliseconds: a hub asks for
/// the time once for all that it does in one go.
const SLACK_MS: u64 = 250;

/// What one client has read.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    publishers: BTreeMap<usize, Numbers>,
    /// Events read, whatever they were.
    pub(crate) delivered: u64,
    /// The place up to which all was served, since the last reset.
    last: Option<Position>,
    gaps: Vec<Gap>,
    /// How many of these were taken.
    taken: usize,
    /// Events that came again at another place, to be judged once it is known what the log lost.
    again: Vec<(Event, Position)>,
    /// Events that came after a later one of their publisher, to be judged likewise.
    late: Vec<(Event, Position)>,
    wrong: Wrong,
    /// The first things that went wrong, in words.
    examples: Vec<String>,
}

/// A gap that the client was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) reset: bool,
    /// From where on the client receives everything.
    pub(crate) at: Position,
    /// How many places before that were skipped, if known.
    pub(crate) missed: Option<u64>,
    /// When the hub told it, in milliseconds since 1970.
    pub(crate) told_ms: u64,
}

/// One publisher's events, as one client reads them.
#[derive(Debug)]
struct Numbers {
    audience: Audience,
    ever: Bits,
    since_reset: Bits,
    /// The greatest number since the last reset.
    newest: u64,
    /// Up to this number everything was received, or is judged already.
    judged: u64,
}

/// Which of a publisher's events are for a client.
#[derive(Debug, PartialEq, Eq)]
enum Audience {
    All,
    /// Those behind a place, and up to another one, in between of which the client held a topic.
    Topic {
        held: Vec<(Position, Option<Position>)>,
    },
}

impl Ledger {
    /// Expects all events of a publisher.
    pub(crate) fn expect(&mut self, publisher: usize) {
        self.publishers.insert(publisher, Numbers::new(Audience::All));
    }

    /// Expects the events of a publisher while a topic is held.
    pub(crate) fn expect_topic(&mut self, publisher: usize) {
        self.publishers.insert(publisher, Numbers::new(Audience::Topic { held: Vec::new() }));
    }

    /// From a place on the client holds the topic of a publisher.
    pub(crate) fn hold_topic(&mut self, publisher: usize, from: Position) {
        self.release_topic(publisher, None);
        if let Some(Audience::Topic { held }) = self.audience(publisher) {
            held.push((from, None));
        }
    }

    /// Up to a place the client held the topic. `None`: it is unknown up to where, so nothing more is asked of it.
    pub(crate) fn release_topic(&mut self, publisher: usize, to: Option<Position>) {
        let last = self.last;
        if let Some(Audience::Topic { held }) = self.audience(publisher)
            && let Some((from, end @ None)) = held.last_mut()
        {
            *end = Some(to.or(last).unwrap_or(*from));
        }
    }

    fn audience(&mut self, publisher: usize) -> Option<&mut Audience> {
        self.publishers.get_mut(&publisher).map(|numbers| &mut numbers.audience)
    }

    /// Notes an event that was read at a place.
    pub(crate) fn read(&mut self, event: Event, place: Position, kind: Option<Kind>) {
        self.delivered += 1;
        let (publisher, number) = event;
        let last = self.last;
        let Some(numbers) = self.publishers.get_mut(&publisher) else {
            // It was not for this client; that is a fault of its own, and as bad as one too many.
            self.wrong.doubled += 1;
            return self.note(format!("{event:?} was for others"));
        };
        numbers.ever.insert(number);
        let (new, newest) = (numbers.since_reset.insert(number), numbers.newest);
        numbers.newest = newest.max(number);
        let fallen = last.filter(|last| last.sequence >= place.sequence);
        if !new {
            if fallen.is_some() {
                self.wrong.doubled += 1;
                self.note(format!("{event:?} came again at {place}"));
            } else {
                self.again.push((event, place));
            }
        } else if let Some(last) = fallen {
            self.wrong.reordered += 1;
            self.note(format!("{event:?} came at {place}, behind {last}"));
        } else if number < newest && kind == Some(Kind::InTurn) {
            self.late.push((event, place));
        } else if number < newest && kind == Some(Kind::Unacknowledged) {
            self.wrong.late += 1;
        }
        if fallen.is_none() {
            self.last = Some(place);
        }
    }

    /// The hub said that all up to a place was served.
    pub(crate) fn served(&mut self, place: Position) {
        match self.last {
            Some(last) if last.sequence > place.sequence => {
                self.wrong.reordered += 1;
                self.note(format!("the connection stood at {last}, then at {place}"));
            }
            _ => self.last = Some(place),
        }
    }

    /// The client was told that history is gone.
    pub(crate) fn gap(&mut self, gap: Gap) {
        self.gaps.push(gap);
        if !gap.reset {
            return self.served(gap.at);
        }
        self.last = Some(gap.at);
        for numbers in self.publishers.values_mut() {
            numbers.since_reset.clear();
            numbers.newest = 0;
            numbers.audience.restart(gap.at);
        }
    }

    /// Takes the gaps that were told since the last time.
    pub(crate) fn take_told(&mut self) -> Vec<Gap> {
        let told = self.gaps[self.taken..].to_vec();
        self.taken = self.gaps.len();
        told
    }

    /// Goes on with what is known to have come. Returns whether everything up to `targets` came, was not for this client,
    /// or was told to be gone.
    pub(crate) fn is_level(&mut self, targets: &[u64], truth: &Truth, lineage: &Lineage) -> bool {
        let mut level = true;
        let publishers: Vec<usize> = self.publishers.keys().copied().collect();
        for publisher in publishers {
            let Some(&target) = targets.get(publisher) else { continue };
            let mut at = self.publishers[&publisher].judged;
            while at < target && self.is_settled((publisher, at + 1), truth, lineage) {
                at += 1;
            }
            if let Some(numbers) = self.publishers.get_mut(&publisher) {
                numbers.judged = at;
            }
            level &= at >= target;
        }
        level
    }

    /// Whether nothing is to be asked about an event.
    fn is_settled(&self, event: Event, truth: &Truth, lineage: &Lineage) -> bool {
        let Some(numbers) = self.publishers.get(&event.0) else { return true };
        if numbers.ever.has(event.1) || truth.kind(event.0) == Some(Kind::Unacknowledged) {
            return true;
        }
        let Some((published, place)) = truth.get(event).and_then(|event| Some((event, event.acknowledged?))) else {
            return true;
        };
        !numbers.audience.has(place) || self.gaps.iter().any(|gap| gap.explains(published.began_ms, place, lineage))
    }

    /// Takes what was wrong since the last time. What did not come up to `targets` is lost by now.
    pub(crate) fn settle(&mut self, targets: &[u64], truth: &Truth, lineage: &Lineage) -> (Wrong, Vec<String>) {
        for (event, place) in std::mem::take(&mut self.again) {
            if !truth.may_move(event, place, lineage) {
                self.wrong.doubled += 1;
                self.note(format!("{event:?} came again at {place}"));
            }
        }
        for (event, place) in std::mem::take(&mut self.late) {
            if !truth.has_moved(event, place, lineage) {
                self.wrong.reordered += 1;
                self.note(format!("{event:?} came at {place}, after a later one"));
            }
        }
        let publishers: Vec<usize> = self.publishers.keys().copied().collect();
        for publisher in publishers {
            let target = targets.get(publisher).copied().unwrap_or(0);
            let from = self.publishers[&publisher].judged;
            let lost: Vec<u64> =
                (from + 1..=target).filter(|&n| !self.is_settled((publisher, n), truth, lineage)).collect();
            if let Some(numbers) = self.publishers.get_mut(&publisher) {
                numbers.judged = from.max(target);
            }
            if let Some(&first) = lost.first() {
                self.wrong.lost += lost.len() as u64;
                let place = truth.get((publisher, first)).and_then(|event| event.acknowledged);
                let place = place.map_or_else(String::new, |place| place.to_string());
                let told: Vec<_> = self.gaps.iter().rev().take(3).map(Gap::to_string).collect();
                self.examples.push(format!(
                    "publisher {publisher}: {} never came, the first {first} at {place}; gaps told: {}",
                    lost.len(),
                    if told.is_empty() { "none".to_owned() } else { told.join(", ") }
                ));
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

impl Numbers {
    fn new(audience: Audience) -> Self {
        Self { audience, ever: Bits::default(), since_reset: Bits::default(), newest: 0, judged: 0 }
    }
}

impl Audience {
    /// After a reset, events behind its position are for a client that holds the topic at that time, whatever it held before.
    fn restart(&mut self, at: Position) {
        let Self::Topic { held } = self else { return };
        let holds = held.last().is_some_and(|(_, to)| to.is_none());
        held.retain(|(from, _)| from.sequence < at.sequence);
        for (_, to) in held.iter_mut() {
            *to = Some(to.filter(|to| to.sequence <= at.sequence).unwrap_or(at));
        }
        if holds {
            held.push((at, None));
        }
    }

    fn has(&self, place: Position) -> bool {
        match self {
            Self::All => true,
            Self::Topic { held } => held
                .iter()
                .any(|(from, to)| from.sequence < place.sequence && to.is_none_or(|to| place.sequence <= to.sequence)),
        }
    }
}

impl Gap {
    /// Whether this is why an event did not come whose publish began at a time and that was acknowledged at a place.
    fn explains(&self, began_ms: u64, place: Position, lineage: &Lineage) -> bool {
        if began_ms > self.told_ms + SLACK_MS {
            return false;
        }
        // Two places of one epoch, or of one history, can be compared; what is lost can be told by a reset alone.
        let comparable = place.epoch == self.at.epoch || lineage.holds(place) && lineage.holds(self.at);
        if !comparable {
            return self.reset;
        }
        let from = self.missed.filter(|_| !self.reset).map_or(0, |missed| self.at.sequence.saturating_sub(missed));
        from < place.sequence && place.sequence <= self.at.sequence
    }
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { reset, at, missed, told_ms } = self;
        let missed = missed.map_or_else(String::new, |missed| format!(", {missed} missed"));
        write!(
            f,
            "{} at {at}{missed}, {}.{:03}",
            if *reset { "reset" } else { "expired" },
            told_ms / 1_000,
            told_ms % 1_000
        )
    }
}

//! The events that one client has to receive, and those that it received.

use super::{EXAMPLES, Event, Lineage, Truth, Wrong, bits::Bits, truth::Kind};
use fanfare::Position;
use std::collections::BTreeMap;

/// The maximum difference between the timestamp of a gap and the clock of a publisher on the same machine, in
/// milliseconds. A hub reads the clock once for all that it does in one pass.
const SLACK_MS: u64 = 250;

/// The record of one client.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    publishers: BTreeMap<usize, Numbers>,
    /// Events received, including duplicates.
    pub(crate) delivered: u64,
    /// The position up to which the client was served, since the last reset.
    last: Option<Position>,
    gaps: Vec<Gap>,
    /// How many of these were returned by `take_gaps`.
    taken: usize,
    /// Events received again at another position, to be judged once it is known what the log lost.
    again: Vec<(Event, Position)>,
    /// Events received after a later one of their publisher, to be judged likewise.
    late: Vec<(Event, Position)>,
    wrong: Wrong,
    /// The first violations.
    examples: Vec<String>,
}

/// A gap that the client received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) reset: bool,
    /// The position after which the client receives everything.
    pub(crate) at: Position,
    /// The number of positions skipped before it, if known.
    pub(crate) missed: Option<u64>,
    /// When the hub sent it, in milliseconds since 1970.
    pub(crate) sent_ms: u64,
}

/// One publisher's events, as one client receives them.
#[derive(Debug)]
struct Numbers {
    audience: Audience,
    ever: Bits,
    since_reset: Bits,
    /// The greatest number since the last reset.
    newest: u64,
    /// Every event up to this number was received or has been judged.
    judged: u64,
}

/// The events of a publisher that a client has to receive.
#[derive(Debug, PartialEq, Eq)]
enum Audience {
    All,
    /// Those within ranges of positions, during which the client was subscribed to a topic.
    Topic {
        held: Vec<(Position, Option<Position>)>,
    },
}

impl Ledger {
    /// Expects all events of a publisher.
    pub(crate) fn expect(&mut self, publisher: usize) {
        self.publishers.insert(publisher, Numbers::new(Audience::All));
    }

    /// Expects the events of a publisher while the client is subscribed to its topic.
    pub(crate) fn expect_topic(&mut self, publisher: usize) {
        self.publishers.insert(publisher, Numbers::new(Audience::Topic { held: Vec::new() }));
    }

    /// The client is subscribed to the topic of a publisher after a position.
    pub(crate) fn hold_topic(&mut self, publisher: usize, from: Position) {
        self.release_topic(publisher, None);
        if let Some(Audience::Topic { held }) = self.audience(publisher) {
            held.push((from, None));
        }
    }

    /// The client was subscribed up to a position. `None`: the position is unknown, so no further events are expected.
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

    /// Records an event that was received at a position.
    pub(crate) fn read(&mut self, event: Event, position: Position, kind: Option<Kind>) {
        self.delivered += 1;
        let (publisher, number) = event;
        let last = self.last;
        let Some(numbers) = self.publishers.get_mut(&publisher) else {
            // An event for another audience counts as a duplicate: the client must not receive it.
            self.wrong.doubled += 1;
            return self.note(format!("{event:?} was for another audience"));
        };
        numbers.ever.insert(number);
        let (new, newest) = (numbers.since_reset.insert(number), numbers.newest);
        numbers.newest = newest.max(number);
        let fallen = last.filter(|last| last.sequence >= position.sequence);
        if !new {
            if fallen.is_some() {
                self.wrong.doubled += 1;
                self.note(format!("{event:?} was received again at {position}"));
            } else {
                self.again.push((event, position));
            }
        } else if let Some(last) = fallen {
            self.wrong.reordered += 1;
            self.note(format!("{event:?} was received at {position}, after {last}"));
        } else if number < newest && kind == Some(Kind::InTurn) {
            self.late.push((event, position));
        } else if number < newest && kind == Some(Kind::Unacknowledged) {
            self.wrong.late += 1;
        }
        if fallen.is_none() {
            self.last = Some(position);
        }
    }

    /// The hub reported that everything up to a position was served.
    pub(crate) fn served(&mut self, position: Position) {
        match self.last {
            Some(last) if last.sequence > position.sequence => {
                self.wrong.reordered += 1;
                self.note(format!("the connection was at {last}, then at {position}"));
            }
            _ => self.last = Some(position),
        }
    }

    /// The client received a gap.
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

    /// Takes the gaps received since the last call.
    pub(crate) fn take_gaps(&mut self) -> Vec<Gap> {
        let gaps = self.gaps[self.taken..].to_vec();
        self.taken = self.gaps.len();
        gaps
    }

    /// Advances over the events that are settled. Returns whether all up to `targets` are: received, not for this
    /// client, or explained by a gap.
    pub(crate) fn has_caught_up(&mut self, targets: &[u64], truth: &Truth, lineage: &Lineage) -> bool {
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

    /// Whether an event does not have to be received any more.
    fn is_settled(&self, event: Event, truth: &Truth, lineage: &Lineage) -> bool {
        let Some(numbers) = self.publishers.get(&event.0) else { return true };
        if numbers.ever.has(event.1) || truth.kind(event.0) == Some(Kind::Unacknowledged) {
            return true;
        }
        let Some((published, position)) = truth.get(event).and_then(|event| Some((event, event.acknowledged?))) else {
            return true;
        };
        !numbers.audience.has(position)
            || self.gaps.iter().any(|gap| gap.explains(published.began_ms, position, lineage))
    }

    /// Takes the violations since the last call. Events up to `targets` that were not received by now are lost.
    pub(crate) fn settle(&mut self, targets: &[u64], truth: &Truth, lineage: &Lineage) -> (Wrong, Vec<String>) {
        for (event, position) in std::mem::take(&mut self.again) {
            if !truth.may_move(event, position, lineage) {
                self.wrong.doubled += 1;
                self.note(format!("{event:?} was received again at {position}"));
            }
        }
        for (event, position) in std::mem::take(&mut self.late) {
            if !truth.has_moved(event, position, lineage) {
                self.wrong.reordered += 1;
                self.note(format!("{event:?} was received at {position}, after a later event"));
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
                let position = truth.get((publisher, first)).and_then(|event| event.acknowledged);
                let position = position.map_or_else(String::new, |position| position.to_string());
                let gaps: Vec<_> = self.gaps.iter().rev().take(3).map(Gap::to_string).collect();
                self.examples.push(format!(
                    "publisher {publisher}: {} events were not received, the first {first} at {position}; gaps \
                     received: {}",
                    lost.len(),
                    if gaps.is_empty() { "none".to_owned() } else { gaps.join(", ") }
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
    /// After a reset, events after its position are for a client that is subscribed at that time, regardless of earlier
    /// subscriptions.
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

    fn has(&self, position: Position) -> bool {
        match self {
            Self::All => true,
            Self::Topic { held } => held.iter().any(|(from, to)| {
                from.sequence < position.sequence && to.is_none_or(|to| position.sequence <= to.sequence)
            }),
        }
    }
}

impl Gap {
    /// Whether the gap explains the absence of an event that was acknowledged at a position, and whose publish began at
    /// a time.
    fn explains(&self, began_ms: u64, position: Position, lineage: &Lineage) -> bool {
        if began_ms > self.sent_ms + SLACK_MS {
            return false;
        }
        // Positions are comparable within an epoch or within the current history. A position that the log lost is
        // explained by a reset only.
        let comparable = position.epoch == self.at.epoch || lineage.holds(position) && lineage.holds(self.at);
        if !comparable {
            return self.reset;
        }
        let from = self.missed.filter(|_| !self.reset).map_or(0, |missed| self.at.sequence.saturating_sub(missed));
        from < position.sequence && position.sequence <= self.at.sequence
    }
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { reset, at, missed, sent_ms } = self;
        let missed = missed.map_or_else(String::new, |missed| format!(", {missed} missed"));
        write!(
            f,
            "{} at {at}{missed}, {}.{:03}",
            if *reset { "reset" } else { "expired" },
            sent_ms / 1_000,
            sent_ms % 1_000
        )
    }
}

//! What a client should have read, and what it did read. Knows numbers of events, and nothing of how they came.

use std::collections::{BTreeMap, BTreeSet};

/// What went wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// Events that never came.
    pub(crate) lost: u64,
    /// Events that came again.
    pub(crate) doubled: u64,
    /// Events that came after a later one of the same publisher.
    pub(crate) reordered: u64,
    /// The same, of a publisher that nobody acknowledges: nodes whose connections were cut heard different parts.
    pub(crate) late: u64,
}

/// What one client has read.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    publishers: BTreeMap<usize, Numbers>,
    /// Events read, whatever they were.
    pub(crate) delivered: u64,
    wrong: Wrong,
    /// The first things that went wrong, in words.
    examples: Vec<String>,
}

/// How many numbers of a publisher without acknowledgement are remembered.
const RECENT: usize = 10_000;

/// How many examples are kept.
const EXAMPLES: usize = 3;

/// One publisher's numbers, as one client read them.
#[derive(Debug)]
struct Numbers {
    /// The number that comes next; none where anything may come, because a gap was told.
    next: Option<u64>,
    /// After a gap: the first number that was not asked for yet when it was told. From there on everything has to come.
    after_gap: u64,
    /// The greatest number read.
    newest: u64,
    /// Skipped, and not read since.
    missing: BTreeSet<u64>,
    /// Whether what is missing counts: of a publisher without acknowledgement it can't.
    strict: bool,
    /// Of such a publisher, what was read last: something that is not among it came late, and not again.
    recent: BTreeSet<u64>,
}

impl Ledger {
    /// Expects a publisher's numbers, from `next` on.
    pub(crate) fn expect(&mut self, publisher: usize, next: u64, strict: bool) {
        let (missing, recent) = (BTreeSet::new(), BTreeSet::new());
        let numbers = Numbers { next: Some(next), after_gap: next, newest: next - 1, missing, strict, recent };
        self.publishers.insert(publisher, numbers);
    }

    /// Notes an event.
    pub(crate) fn read(&mut self, publisher: usize, number: u64) {
        self.delivered += 1;
        let Some(numbers) = self.publishers.get_mut(&publisher) else {
            // It was not for this client; that is a fault of its own, and as bad as one too many.
            self.wrong.doubled += 1;
            return;
        };
        if !numbers.strict && numbers.remember(number) {
            self.wrong.late += 1;
            return;
        }
        match numbers.next {
            None => numbers.missing.extend(numbers.after_gap..number),
            Some(next) if number >= next => numbers.missing.extend(next..number),
            Some(next) if numbers.missing.remove(&number) => {
                self.wrong.reordered += 1;
                self.note(format!("publisher {publisher}: {number} came after {}", next - 1));
                return;
            }
            Some(next) => {
                self.wrong.doubled += 1;
                self.note(format!("publisher {publisher}: {number} came again, after {}", next - 1));
                return;
            }
        }
        numbers.next = Some(number + 1);
        numbers.newest = numbers.newest.max(number);
    }

    fn note(&mut self, example: String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(example);
        }
    }

    /// Takes the examples of what went wrong since the last time.
    pub(crate) fn take_examples(&mut self) -> Vec<String> {
        std::mem::take(&mut self.examples)
    }

    /// The client was told that history is gone: it reads its state anew, and what follows may repeat or skip what was
    /// published before; `published` tells how far each publisher had come.
    pub(crate) fn gap(&mut self, published: impl Fn(usize) -> u64) {
        for (&publisher, numbers) in &mut self.publishers {
            numbers.next = None;
            // The next one is under way.
            numbers.after_gap = published(publisher) + 2;
            numbers.missing.clear();
            numbers.recent.clear();
        }
    }

    /// The greatest number read of a publisher.
    pub(crate) fn newest(&self, publisher: usize) -> u64 {
        self.publishers.get(&publisher).map_or(0, |numbers| numbers.newest)
    }

    /// The publishers whose events this client gets.
    pub(crate) fn publishers(&self) -> impl Iterator<Item = (usize, bool)> {
        self.publishers.iter().map(|(publisher, numbers)| (*publisher, numbers.strict))
    }

    /// Takes what was wrong since the last time. What is missing is lost by now.
    pub(crate) fn settle(&mut self) -> Wrong {
        for (publisher, numbers) in &mut self.publishers {
            let missing = std::mem::take(&mut numbers.missing);
            if numbers.strict
                && let Some(first) = missing.first()
            {
                self.wrong.lost += missing.len() as u64;
                self.examples.push(format!("publisher {publisher}: {} never came, the first {first}", missing.len()));
            }
        }
        std::mem::take(&mut self.wrong)
    }

    /// Counts what a client that never became level lacks, and goes on behind it.
    pub(crate) fn give_up(&mut self, publisher: usize, target: u64) {
        if let Some(numbers) = self.publishers.get_mut(&publisher)
            && numbers.strict
        {
            self.wrong.lost += target.saturating_sub(numbers.newest);
            numbers.newest = target;
            numbers.next = None;
        }
    }
}

impl Numbers {
    /// Notes a number that nobody acknowledges. Returns whether it came late.
    fn remember(&mut self, number: u64) -> bool {
        let late = self.next.is_some_and(|next| number < next) && self.recent.insert(number);
        self.recent.insert(number);
        self.missing.remove(&number);
        if self.recent.len() > RECENT {
            self.recent.pop_first();
        }
        late
    }
}

impl std::ops::AddAssign for Wrong {
    fn add_assign(&mut self, other: Self) {
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.reordered += other.reordered;
        self.late += other.late;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(lost: u64, doubled: u64, reordered: u64) -> Wrong {
        Wrong { lost, doubled, reordered, late: 0 }
    }

    fn judge(numbers: &[u64]) -> Wrong {
        let mut ledger = Ledger::default();
        ledger.expect(0, 1, true);
        numbers.iter().for_each(|&number| ledger.read(0, number));
        ledger.settle()
    }

    #[test]
    fn what_is_in_order_is_right() {
        assert_eq!(judge(&[1, 2, 3]), Wrong::default());
    }

    #[test]
    fn each_fault_is_found() {
        assert_eq!(judge(&[1, 3]), wrong(1, 0, 0));
        assert_eq!(judge(&[2, 3]), wrong(1, 0, 0));
        assert_eq!(judge(&[1, 2, 2, 3]), wrong(0, 1, 0));
        assert_eq!(judge(&[1, 2, 1]), wrong(0, 1, 0));
        assert_eq!(judge(&[1, 3, 2, 4]), wrong(0, 0, 1));
        assert_eq!(judge(&[1, 3, 2, 2, 6]), wrong(2, 1, 1));
    }

    #[test]
    fn what_is_for_others_is_wrong() {
        let mut ledger = Ledger::default();
        ledger.expect(0, 1, true);
        ledger.read(1, 1);
        assert_eq!(ledger.settle(), wrong(0, 1, 0));
    }

    #[test]
    fn a_gap_forgives_what_lies_around_it_and_nothing_later() {
        let mut ledger = Ledger::default();
        ledger.expect(0, 1, true);
        [1, 2, 5].iter().for_each(|&number| ledger.read(0, number));
        ledger.gap(|_| 5);
        [4, 5, 6, 8, 8].iter().for_each(|&number| ledger.read(0, number));
        assert_eq!(ledger.settle(), wrong(1, 1, 0));
        assert_eq!(ledger.newest(0), 8);
        ledger.gap(|_| 10);
        [15, 16].iter().for_each(|&number| ledger.read(0, number));
        assert_eq!(ledger.settle(), wrong(3, 0, 0), "12 to 14 were published after it");
    }

    #[test]
    fn of_a_publisher_without_acknowledgement_nothing_is_lost() {
        let mut ledger = Ledger::default();
        ledger.expect(0, 1, false);
        [1, 4, 4, 3, 3].iter().for_each(|&number| ledger.read(0, number));
        assert_eq!(ledger.settle(), Wrong { late: 1, ..wrong(0, 2, 0) });
        ledger.gap(|_| 8);
        [8, 6, 6].iter().for_each(|&number| ledger.read(0, number));
        assert_eq!(ledger.settle(), Wrong { late: 1, ..wrong(0, 1, 0) });
    }

    #[test]
    fn a_client_that_stays_behind_has_lost() {
        let mut ledger = Ledger::default();
        ledger.expect(0, 1, true);
        ledger.read(0, 1);
        ledger.give_up(0, 5);
        assert_eq!(ledger.settle(), wrong(4, 0, 0));
    }
}

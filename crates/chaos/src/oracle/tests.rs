use super::*;
use fanfare::Position;

const NOW: u64 = 1_790_000_000_000;

/// One client, and one publisher that publishes an event every second from [`NOW`] on.
struct Trial {
    truth: Truth,
    ledger: Ledger,
    lineage: Lineage,
    kind: Kind,
}

fn at(epoch: u64, sequence: u64) -> Position {
    Position { epoch, sequence }
}

impl Trial {
    fn new(kind: Kind) -> Self {
        let mut ledger = Ledger::default();
        ledger.expect(0);
        Self { truth: Truth::new(&[kind]), ledger, lineage: Lineage::read("1:0!0").unwrap(), kind }
    }

    /// `count` acknowledged events, each at the position of its number.
    fn published(count: u64) -> Self {
        let mut trial = Self::new(Kind::InTurn);
        (1..=count).for_each(|n| trial.publish(at(1, n)));
        trial
    }

    fn publish(&mut self, position: Position) {
        let number = self.truth.begin(0, NOW + self.truth.begun(0) * 1_000);
        self.truth.acknowledge((0, number), position);
    }

    fn lineage(mut self, text: &str) -> Self {
        self.lineage = Lineage::read(text).unwrap();
        self
    }

    fn read(&mut self, number: u64, position: Position) -> &mut Self {
        self.truth.note_seen((0, number), position);
        self.ledger.read((0, number), position, Some(self.kind));
        self
    }

    fn read_all(&mut self, numbers: &[u64]) -> &mut Self {
        numbers.iter().for_each(|&number| {
            self.read(number, at(1, number));
        });
        self
    }

    fn gap(&mut self, reset: bool, at: Position, sent_s: u64) -> &mut Self {
        self.ledger.gap(Gap { reset, at, missed: None, sent_ms: NOW + sent_s * 1_000 });
        self
    }

    fn judge(&mut self) -> Wrong {
        let targets = [self.truth.acknowledged(0)];
        let level = self.ledger.has_caught_up(&targets, &self.truth, &self.lineage);
        let (mut wrong, _) = self.ledger.settle(&targets, &self.truth, &self.lineage);
        assert_eq!(level, wrong.lost == 0);
        wrong += self.truth.settle(&self.lineage).0;
        wrong
    }
}

fn wrong(lost: u64, doubled: u64, reordered: u64) -> Wrong {
    Wrong { lost, doubled, reordered, ..Wrong::default() }
}

fn conflicts(conflicts: u64) -> Wrong {
    Wrong { conflicts, ..Wrong::default() }
}

#[test]
fn a_correct_run_has_no_violations() {
    assert_eq!(Trial::published(3).read_all(&[1, 2, 3]).judge(), Wrong::default());
}

#[test]
fn each_violation_by_a_client_is_counted() {
    for (numbers, expected) in [
        (&[1, 3][..], wrong(1, 0, 0)),
        (&[2, 3], wrong(1, 0, 0)),
        (&[1, 2], wrong(1, 0, 0)),
        (&[], wrong(3, 0, 0)),
        (&[1, 2, 2, 3], wrong(0, 1, 0)),
        (&[1, 3, 2], wrong(0, 0, 1)),
        (&[3, 2, 2, 1], wrong(0, 1, 2)),
    ] {
        assert_eq!(Trial::published(3).read_all(numbers).judge(), expected, "{numbers:?}");
    }
}

#[test]
fn an_event_received_at_two_positions_is_a_duplicate() {
    let mut trial = Trial::published(2);
    trial.read_all(&[1, 2]).read(1, at(1, 3));
    assert_eq!(trial.judge(), Wrong { conflicts: 1, ..wrong(0, 1, 0) });
}

#[test]
fn an_event_may_be_received_again_if_its_position_or_its_id_was_lost() {
    for (lineage, expected) in [
        ("1:0!0,2:0!5", Wrong::default()),
        ("1:0!0,2:2?5", Wrong::default()),
        ("1:0!0,2:2", Wrong { conflicts: 1, ..wrong(0, 1, 0) }),
    ] {
        let mut trial = Trial::published(2).lineage(lineage);
        trial.read_all(&[1, 2]).read(1, at(2, 3));
        assert_eq!(trial.judge(), expected, "{lineage}");
    }
}

#[test]
fn numbers_of_one_publisher_increase_regardless_of_positions() {
    let mut trial = Trial::new(Kind::InTurn);
    let numbers = [trial.truth.begin(0, NOW), trial.truth.begin(0, NOW)];
    trial.truth.acknowledge((0, numbers[1]), at(1, 1));
    trial.read(2, at(1, 1)).read(1, at(1, 2));
    assert_eq!(trial.judge(), wrong(0, 0, 1));
    let mut pipelined = Trial::new(Kind::Pipelined);
    pipelined.truth.begin(0, NOW);
    pipelined.truth.begin(0, NOW);
    pipelined.read(2, at(1, 1)).read(1, at(1, 2));
    assert_eq!(pipelined.judge(), Wrong::default());
}

#[test]
fn acknowledged_positions_of_one_publisher_increase() {
    let mut trial = Trial::new(Kind::InTurn);
    trial.publish(at(1, 2));
    trial.publish(at(1, 1));
    assert_eq!(trial.truth.settle(&trial.lineage).0, conflicts(1));
}

#[test]
fn a_position_identifies_one_event_for_all_clients() {
    let mut trial = Trial::published(2);
    trial.read_all(&[1, 2]);
    assert_eq!(trial.judge(), Wrong::default());
    let mut other = Ledger::default();
    other.expect(0);
    // It received the events in the opposite order, at the same positions.
    for (number, position) in [(2, at(1, 1)), (1, at(1, 2))] {
        trial.truth.note_seen((0, number), position);
        other.read((0, number), position, Some(Kind::Pipelined));
    }
    assert_eq!(
        trial.truth.settle(&trial.lineage).0.conflicts,
        2 + 2,
        "two positions of two events, two events at two positions"
    );
}

#[test]
fn an_event_that_was_not_published_is_a_violation() {
    let mut trial = Trial::published(1);
    trial.read_all(&[1]).read(7, at(1, 7));
    assert_eq!(trial.judge(), conflicts(1));
}

#[test]
fn an_event_for_another_audience_is_a_violation() {
    let mut trial = Trial::published(1);
    trial.read_all(&[1]);
    trial.ledger.read((1, 1), at(1, 2), None);
    assert_eq!(trial.judge(), wrong(0, 1, 0));
}

#[test]
fn events_before_a_position_reported_as_served_must_not_follow() {
    let mut trial = Trial::published(3);
    trial.read_all(&[1]).ledger.served(at(1, 3));
    trial.read_all(&[2]);
    assert_eq!(trial.judge(), wrong(1, 0, 1));
    let mut trial = Trial::published(3);
    trial.read_all(&[1, 2, 3]).ledger.served(at(1, 2));
    assert_eq!(trial.judge(), wrong(0, 0, 1));
}

#[test]
fn a_gap_explains_events_up_to_its_position_only() {
    for reset in [false, true] {
        let mut trial = Trial::published(6);
        trial.read_all(&[1]).gap(reset, at(1, 4), 100).read_all(&[6]);
        assert_eq!(trial.judge(), wrong(1, 0, 0), "reset: {reset}; 5 is after its position");
    }
}

#[test]
fn a_gap_explains_only_the_events_that_it_counts_as_missed() {
    let mut trial = Trial::published(6);
    trial.read_all(&[1]);
    trial.ledger.gap(Gap { reset: false, at: at(1, 5), missed: Some(3), sent_ms: NOW + 100_000 });
    trial.read_all(&[6]);
    assert_eq!(trial.judge(), wrong(1, 0, 0), "it skipped 3 to 5, but not 2");
}

#[test]
fn a_gap_does_not_explain_events_published_after_it_was_sent() {
    // The log lost everything after 2: the events 3 to 6.
    for (sent_s, lost) in [(0, 3), (3, 2), (100, 0)] {
        let mut trial = Trial::published(6).lineage("1:0!0,2:2!5");
        trial.read_all(&[1, 2]).gap(true, at(2, 2), sent_s);
        // Event 3 was published after two seconds, event 6 after five.
        trial.read(3, at(2, 3));
        assert_eq!(trial.judge(), wrong(lost, 0, 0), "sent after {sent_s} s");
    }
}

#[test]
fn events_that_the_log_lost_are_explained_by_a_reset_only() {
    for (reset, lost) in [(true, 0), (false, 1)] {
        let mut trial = Trial::published(3).lineage("1:0!0,2:2!5");
        trial.read_all(&[1, 2]).gap(reset, at(2, 5), 100);
        assert_eq!(trial.judge(), wrong(lost, 0, 0), "reset: {reset}");
    }
}

#[test]
fn events_that_survived_a_loss_after_the_position_of_the_gap_must_be_received() {
    let mut trial = Trial::published(4).lineage("1:0!0,2:4!5");
    trial.read_all(&[1]).gap(true, at(2, 2), 100).read_all(&[4]);
    assert_eq!(trial.judge(), wrong(1, 0, 0), "3 is in the log");
}

#[test]
fn after_a_reset_events_may_be_received_again_and_in_another_order() {
    let mut trial = Trial::published(3).lineage("1:0!0,2:1!5");
    trial.read_all(&[1, 2, 3]).gap(true, at(2, 0), 100);
    trial.read(1, at(1, 1)).read(3, at(2, 2)).read(3, at(2, 2));
    assert_eq!(trial.judge(), wrong(0, 1, 0));
}

#[test]
fn events_of_a_topic_are_expected_during_the_subscription_only() {
    let mut trial = Trial::published(6);
    trial.ledger = Ledger::default();
    trial.ledger.expect_topic(0);
    trial.ledger.hold_topic(0, at(1, 1));
    trial.read_all(&[3]).ledger.release_topic(0, None);
    trial.ledger.hold_topic(0, at(1, 5));
    assert_eq!(trial.judge(), wrong(2, 0, 0), "2 and 6");
}

#[test]
fn a_topic_unsubscribed_before_a_reset_is_not_expected_after_it() {
    let mut trial = Trial::new(Kind::InTurn).lineage("1:0!0,2:2!5");
    // Three events, of which the log loses the last, and two more at the positions after that.
    for position in [at(1, 1), at(1, 2), at(1, 9), at(2, 3), at(2, 4)] {
        trial.publish(position);
    }
    trial.ledger = Ledger::default();
    trial.ledger.expect_topic(0);
    trial.ledger.hold_topic(0, at(1, 0));
    trial.read_all(&[1, 2]).read(3, at(1, 9)).ledger.release_topic(0, None);
    trial.gap(true, at(2, 2), 100);
    assert_eq!(trial.judge(), Wrong::default(), "it is not subscribed after the reset");
}

#[test]
fn a_subscription_continues_across_a_reset() {
    for (numbers, lost) in [(&[1][..], 1), (&[1, 4], 0), (&[4], 0)] {
        let mut trial = Trial::published(3).lineage("1:0!0,2:2!5");
        trial.publish(at(2, 3));
        trial.ledger = Ledger::default();
        trial.ledger.expect_topic(0);
        trial.ledger.hold_topic(0, at(1, 0));
        let (before, behind): (Vec<u64>, Vec<u64>) = numbers.iter().partition(|&&n| n < 4);
        trial.read_all(&before).gap(true, at(2, 2), 100);
        behind.iter().for_each(|&n| {
            trial.read(n, at(2, 3));
        });
        assert_eq!(trial.judge(), wrong(lost, 0, 0), "{numbers:?}");
    }
}

#[test]
fn events_of_a_publisher_without_acknowledgement_cannot_be_lost() {
    let mut trial = Trial::new(Kind::Unacknowledged);
    for _ in 0..4 {
        trial.truth.begin(0, NOW);
    }
    trial.read(1, at(1, 1)).read(4, at(1, 2)).read(3, at(1, 3)).read(3, at(1, 3));
    assert_eq!(trial.judge(), Wrong { late: 1, ..wrong(0, 1, 0) });
}

#[test]
fn a_lineage_identifies_lost_positions() {
    let lineage = Lineage::read("1f:0!1790000000000,a7:812,b:900?5,c:700!6").unwrap();
    for (position, holds) in [
        (at(0x1f, 700), true),
        (at(0x1f, 701), false),
        (at(0xa7, 813), false),
        (at(0xc, 10_000), true),
        (at(9, 1), false),
    ] {
        assert_eq!(lineage.holds(position), holds, "{position}");
    }
    assert_eq!(Lineage::read("1f:0!1790000000000,a7:812").map(|before| lineage.losses_since(&before)), Some(1));
    assert!(lineage.forgot_ids_since(at(0xa7, 1)) && !lineage.forgot_ids_since(at(0xc, 1)));
    assert_eq!(Lineage::read("nonsense"), None);
}

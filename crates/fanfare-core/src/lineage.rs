//! Which epochs a log is made of, and what a position of each of them is still worth.
//!
//! A log that was cut short, because what held it lost its newest entries, goes on under a new epoch. Its sequences go
//! on from where the cut left them, so the same number can stand for one event in the old epoch and for another in the
//! new one. The lineage tells which of the old positions still mean what they meant.

use crate::Position;
use std::{fmt, str::FromStr};

/// How many epochs are remembered. A cursor of an older one is of another log.
const MAX_EPOCHS: usize = 64;

/// The epochs of one log, oldest first. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage(Vec<Epoch>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Epoch {
    id: u64,
    /// The sequence behind which it began: what survived of the epochs before it.
    after: u64,
    /// Everything that was ever acknowledged before it has survived, as far as anyone can know.
    whole: bool,
    /// When it began, in milliseconds since 1970-01-01T00:00:00Z, where it is not whole and that is known.
    began_ms: u64,
}

/// What a cursor is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It stands at this sequence.
    At(u64),
    /// Something behind it is lost, or may be; what is known to be good goes on from this sequence.
    Broken(u64),
    /// It is of another log.
    Unknown,
}

/// The text is not the text form of a [`Lineage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a lineage: expected EPOCH:AFTER or EPOCH:AFTER!MS, with commas between")]
pub struct NotALineage;

impl Lineage {
    /// A log that begins.
    pub fn new(epoch: u64) -> Self {
        Self(vec![Epoch { id: epoch, after: 0, whole: true, began_ms: 0 }])
    }

    /// The epoch that the newest entries are of.
    pub fn current(&self) -> u64 {
        self.0.last().map_or(0, |epoch| epoch.id)
    }

    /// Goes on under a new epoch behind the sequence `after`. `whole`: nothing that was acknowledged is known to be lost,
    /// or could be without anyone knowing.
    pub fn begin(&mut self, epoch: u64, after: u64, whole: bool) {
        self.0.push(Epoch { id: epoch, after, whole, began_ms: 0 });
        let surplus = self.0.len().saturating_sub(MAX_EPOCHS);
        self.0.drain(..surplus);
    }

    /// What a position is worth in this log, whose head is at `head`.
    pub fn place(&self, position: Position, head: u64) -> Place {
        let Some(at) = self.0.iter().rposition(|epoch| epoch.id == position.epoch) else {
            return Place::Unknown;
        };
        let later = &self.0[at + 1..];
        let end = later.iter().map(|epoch| epoch.after).fold(head, u64::min);
        if position.sequence > end || later.iter().any(|epoch| !epoch.whole) {
            Place::Broken(position.sequence.min(end))
        } else {
            Place::At(position.sequence)
        }
    }

    /// What the place of an event is worth that is held, and that a client saw last.
    pub fn place_of_event(&self, sequence: u64) -> Place {
        let doubtful = self.0.iter().any(|epoch| !epoch.whole && sequence <= epoch.after);
        if doubtful { Place::Broken(sequence) } else { Place::At(sequence) }
    }

    /// Up to which sequence this log, whose head is at `head`, and another hold the same; `None` if they have nothing in
    /// common.
    pub fn shared_with(&self, head: u64, other: &Self, other_head: u64) -> Option<u64> {
        let common = self.0.iter().rev().find(|epoch| other.0.contains(epoch))?;
        Some(self.end_of(common.id, head).min(other.end_of(common.id, other_head)))
    }

    /// Whether this log knows how the other one's newest epoch goes on.
    pub fn extends(&self, other: &Self) -> bool {
        other.0.last().is_some_and(|newest| self.0.contains(newest))
    }

    /// The epoch of an entry at `sequence`; `None` if it is older than all that is remembered.
    pub fn epoch_at(&self, sequence: u64) -> Option<u64> {
        self.0.iter().rev().find(|epoch| epoch.after < sequence).map(|epoch| epoch.id)
    }

    /// The newest epoch that another log has too.
    pub fn newest_shared(&self, other: &Self) -> Option<u64> {
        self.0.iter().rev().find(|epoch| other.0.contains(epoch)).map(|epoch| epoch.id)
    }

    /// Up to where this log goes on with the other one's newest epoch; `None`: as far as that goes.
    pub fn cut_of(&self, other: &Self) -> Option<u64> {
        Some(self.end_of(other.current(), u64::MAX)).filter(|end| *end < u64::MAX)
    }

    fn end_of(&self, epoch: u64, head: u64) -> u64 {
        let later = self.0.iter().rev().take_while(|later| later.id != epoch);
        later.map(|later| later.after).fold(head, u64::min)
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Epoch { id, after, whole, began_ms }) in self.0.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma}{id:x}:{after}")?;
            if !*whole {
                write!(f, "!{began_ms}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for Lineage {
    type Err = NotALineage;

    fn from_str(text: &str) -> Result<Self, NotALineage> {
        let epochs = text.split(',').map(|part| {
            let (id, after) = part.split_once(':')?;
            let (after, began) = after.split_once('!').map_or((after, None), |(after, ms)| (after, Some(ms)));
            let began_ms = match began {
                None | Some("") => 0,
                Some(ms) => ms.parse().ok()?,
            };
            Some(Epoch {
                id: u64::from_str_radix(id, 16).ok()?,
                after: after.parse().ok()?,
                whole: began.is_none(),
                began_ms,
            })
        });
        epochs.collect::<Option<Vec<_>>>().map(Self).ok_or(NotALineage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(lineage: &Lineage, epoch: u64, sequence: u64) -> Place {
        lineage.place(Position { epoch, sequence }, 200)
    }

    #[test]
    fn positions_of_what_survived_stay_good() {
        let mut lineage = Lineage::new(1);
        lineage.begin(2, 95, true);
        assert_eq!(lineage.current(), 2);
        assert_eq!((place(&lineage, 1, 95), place(&lineage, 1, 96)), (Place::At(95), Place::Broken(95)));
        assert_eq!((place(&lineage, 2, 200), place(&lineage, 2, 201)), (Place::At(200), Place::Broken(200)));
        assert_eq!(place(&lineage, 3, 1), Place::Unknown);
    }

    #[test]
    fn a_later_and_deeper_cut_counts() {
        let mut lineage = Lineage::new(1);
        lineage.begin(2, 95, true);
        lineage.begin(3, 90, true);
        assert_eq!(place(&lineage, 1, 93), Place::Broken(90));
        assert_eq!(place(&lineage, 2, 97), Place::Broken(90));
    }

    #[test]
    fn behind_a_loss_that_nobody_can_rule_out_every_older_cursor_is_told() {
        let mut lineage = Lineage::new(1);
        lineage.begin(2, 95, false);
        assert_eq!(place(&lineage, 1, 50), Place::Broken(50));
        assert_eq!((place(&lineage, 2, 95), place(&lineage, 2, 100)), (Place::At(95), Place::At(100)));
        let events = (lineage.place_of_event(95), lineage.place_of_event(96));
        assert_eq!(events, (Place::Broken(95), Place::At(96)));
    }

    #[test]
    fn logs_are_the_same_up_to_the_first_cut_that_one_of_them_does_not_know() {
        let old = Lineage::new(1);
        let mut new = old.clone();
        new.begin(2, 95, true);
        assert_eq!(old.shared_with(100, &new, 120), Some(95));
        assert_eq!(new.shared_with(120, &old, 90), Some(90));
        assert!(new.extends(&old) && !old.extends(&new) && new.extends(&new));
        let mut other = old.clone();
        other.begin(3, 97, true);
        assert_eq!(other.shared_with(100, &new, 120), Some(95));
        assert!(!other.extends(&new));
        assert_eq!(old.shared_with(100, &Lineage::new(9), 100), None);
    }

    #[test]
    fn text_form_comes_back() {
        let mut lineage = Lineage::new(0xfa);
        lineage.begin(0xfb, 95, false);
        assert_eq!(lineage.to_string(), "fa:0,fb:95!0");
        assert_eq!("fa:0,fb:95!".parse(), Ok(lineage.clone()));
        assert_eq!("fa:0,fb:95!17".parse::<Lineage>().unwrap().to_string(), "fa:0,fb:95!17");
        assert_eq!(lineage.to_string().parse(), Ok(lineage));
        for text in ["", "fa", "fa:", "x:1", "fa:1,"] {
            assert_eq!(text.parse::<Lineage>(), Err(NotALineage), "{text}");
        }
    }

    #[test]
    fn the_oldest_epochs_are_forgotten() {
        let mut lineage = Lineage::new(0);
        (1..100).for_each(|epoch| lineage.begin(epoch, epoch, true));
        assert_eq!((place(&lineage, 35, 1), place(&lineage, 36, 1)), (Place::Unknown, Place::At(1)));
    }
}

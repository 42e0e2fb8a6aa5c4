//! Which epochs a log is made of, and what a position of each of them is still worth.
//!
//! A log that was cut short, because what held it lost its newest entries, goes on under a new epoch. Its sequences go
//! on from where the cut left them, so the same number can stand for one event in the old epoch and for another in the
//! new one. The lineage tells which of the old positions still mean what they meant.

use crate::{Position, audience::TAG_BITS};
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
    loss: Loss,
}

/// What of the epochs before may be lost where an epoch began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Nothing that was acknowledged, as far as anyone can know.
    Nothing,
    /// What lay behind the cut, or ids that the log remembered of events it had evicted: such an event may be published
    /// again, and then stands behind the cut.
    Ids {
        /// When the epoch began, in milliseconds since 1970-01-01T00:00:00Z of the log's clock.
        began_ms: u64,
    },
    /// Any event that was acknowledged.
    Events {
        /// As above.
        began_ms: u64,
    },
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
#[error("not a lineage: expected EPOCH:AFTER, EPOCH:AFTER?MS or EPOCH:AFTER!MS, with commas between")]
pub struct NotALineage;

impl Lineage {
    /// A log that begins.
    pub fn new(epoch: u64) -> Self {
        Self(vec![Epoch { id: epoch, after: 0, loss: Loss::Nothing }])
    }

    /// A log that begins at a time, in milliseconds since 1970-01-01T00:00:00Z: it is unknown what was
    /// published before that, and which clients received it.
    pub fn begun(epoch: u64, unix_ms: u64) -> Self {
        Self(vec![Epoch { id: epoch, after: 0, loss: Loss::Events { began_ms: unix_ms } }])
    }

    /// The epoch that the newest entries are of.
    pub fn current(&self) -> u64 {
        self.0.last().map_or(0, |epoch| epoch.id)
    }

    /// Goes on under a new epoch behind the sequence `after`.
    pub fn begin(&mut self, epoch: u64, after: u64, loss: Loss) {
        self.0.push(Epoch { id: epoch, after, loss });
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
        if position.sequence > end || later.iter().any(|epoch| matches!(epoch.loss, Loss::Events { .. })) {
            Place::Broken(position.sequence.min(end))
        } else {
            Place::At(position.sequence)
        }
    }

    /// What the place of an event is worth that is held, for a client that names the event as the last one it saw: the
    /// client may have seen it at another place, which is lost. `horizon_ms`: how long the log knows an id again.
    /// `tag`: the epoch in which the client was named ([`tag`]); what was lost before that it has not seen.
    pub fn place_of_event(&self, sequence: u64, appended_ms: u64, horizon_ms: u64, tag: u32) -> Place {
        let known = self.0.iter().position(|epoch| self::tag(epoch.id) == tag).map_or(0, |at| at + 1);
        let doubtful = self.0[known..].iter().any(|epoch| {
            let (Loss::Ids { began_ms } | Loss::Events { began_ms }) = epoch.loss else { return false };
            if sequence <= epoch.after {
                return matches!(epoch.loss, Loss::Events { .. });
            }
            appended_ms <= began_ms.saturating_add(horizon_ms)
        });
        if doubtful { Place::Broken(sequence) } else { Place::At(sequence) }
    }

    /// Whether events may have been lost since a client was named, as of which epoch `tag` says; 0: at any time since the log began.
    pub fn lost_since(&self, tag: u32) -> bool {
        let known = self.0.iter().position(|epoch| self::tag(epoch.id) == tag).unwrap_or(0);
        self.0[known + 1..].iter().any(|epoch| matches!(epoch.loss, Loss::Events { .. }))
    }

    /// Up to which sequence this log, whose head is at `head`, and another hold the same; `None` if they have nothing
    /// in common.
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

    /// Up to where this log goes on with the other one's newest epoch; `None`: as far as that goes.
    pub fn cut_of(&self, other: &Self) -> Option<u64> {
        Some(self.end_of(other.current(), u64::MAX)).filter(|end| *end < u64::MAX)
    }

    fn end_of(&self, epoch: u64, head: u64) -> u64 {
        let later = self.0.iter().rev().take_while(|later| later.id != epoch);
        later.map(|later| later.after).fold(head, u64::min)
    }
}

/// A short name of an epoch, which fits into the name of a connection ([`ConnectionId::epoch_tag`]). Never 0.
///
/// [`ConnectionId::epoch_tag`]: crate::ConnectionId::epoch_tag
pub const fn tag(epoch: u64) -> u32 {
    1 + (epoch % ((1 << TAG_BITS) - 1)) as u32
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Epoch { id, after, loss }) in self.0.iter().enumerate() {
            write!(f, "{}{id:x}:{after}", if i > 0 { "," } else { "" })?;
            match loss {
                Loss::Nothing => {}
                Loss::Ids { began_ms } => write!(f, "?{began_ms}")?,
                Loss::Events { began_ms } => write!(f, "!{began_ms}")?,
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
            let end = after.find(['?', '!']).unwrap_or(after.len());
            let (after, mark) = after.split_at(end);
            let loss = match mark.as_bytes().first() {
                None => Loss::Nothing,
                Some(b'?') => Loss::Ids { began_ms: mark[1..].parse().ok()? },
                // Nodes of an older version wrote no time.
                Some(_) if mark.len() == 1 => Loss::Events { began_ms: 0 },
                Some(_) => Loss::Events { began_ms: mark[1..].parse().ok()? },
            };
            Some(Epoch { id: u64::from_str_radix(id, 16).ok()?, after: after.parse().ok()?, loss })
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
        lineage.begin(2, 95, Loss::Nothing);
        assert_eq!(lineage.current(), 2);
        assert_eq!((place(&lineage, 1, 95), place(&lineage, 1, 96)), (Place::At(95), Place::Broken(95)));
        assert_eq!((place(&lineage, 2, 200), place(&lineage, 2, 201)), (Place::At(200), Place::Broken(200)));
        assert_eq!(place(&lineage, 3, 1), Place::Unknown);
    }

    #[test]
    fn a_later_and_deeper_cut_counts() {
        let mut lineage = Lineage::new(1);
        lineage.begin(2, 95, Loss::Nothing);
        lineage.begin(3, 90, Loss::Nothing);
        assert_eq!(place(&lineage, 1, 93), Place::Broken(90));
        assert_eq!(place(&lineage, 2, 97), Place::Broken(90));
    }

    #[test]
    fn behind_a_loss_that_nobody_can_rule_out_every_older_cursor_is_told() {
        let mut lineage = Lineage::new(1);
        lineage.begin(2, 95, Loss::Events { began_ms: 1_000 });
        assert_eq!(place(&lineage, 1, 50), Place::Broken(50));
        assert_eq!((place(&lineage, 2, 95), place(&lineage, 2, 100)), (Place::At(95), Place::At(100)));
        let events = (lineage.place_of_event(95, 2_000, 100, 0), lineage.place_of_event(96, 2_000, 100, 0));
        assert_eq!(events, (Place::Broken(95), Place::At(96)));
    }

    #[test]
    fn an_event_behind_a_loss_is_doubtful_for_the_horizon_unless_its_client_came_later() {
        for loss in [Loss::Events { began_ms: 1_000 }, Loss::Ids { began_ms: 1_000 }] {
            let mut lineage = Lineage::new(1);
            lineage.begin(2, 95, loss);
            lineage.begin(3, 97, Loss::Nothing);
            for (sequence, appended_ms, named_in, good) in [
                (95, 900, None, loss != Loss::Events { began_ms: 1_000 }),
                (95, 900, Some(2), true),
                (96, 1_100, None, false),
                (96, 1_100, Some(1), false),
                (96, 1_100, Some(9), false),
                (96, 1_100, Some(2), true),
                (99, 1_100, Some(3), true),
                (99, 1_101, None, true),
            ] {
                let place = lineage.place_of_event(sequence, appended_ms, 100, named_in.map_or(0, tag));
                let expected = if good { Place::At(sequence) } else { Place::Broken(sequence) };
                assert_eq!(place, expected, "{loss:?} {sequence} {appended_ms} {named_in:?}");
            }
        }
        let begun = Lineage::begun(7, 1_000);
        assert_eq!(begun.place_of_event(1, 1_001, 100, 0), Place::Broken(1));
        assert_eq!(begun.place_of_event(1, 1_001, 100, tag(7)), Place::At(1));
        assert_eq!(place(&begun, 7, 0), Place::At(0));
    }

    #[test]
    fn logs_are_the_same_up_to_the_first_cut_that_one_of_them_does_not_know() {
        let old = Lineage::new(1);
        let mut new = old.clone();
        new.begin(2, 95, Loss::Nothing);
        assert_eq!(old.shared_with(100, &new, 120), Some(95));
        assert_eq!(new.shared_with(120, &old, 90), Some(90));
        assert!(new.extends(&old) && !old.extends(&new) && new.extends(&new));
        let mut other = old.clone();
        other.begin(3, 97, Loss::Nothing);
        assert_eq!(other.shared_with(100, &new, 120), Some(95));
        assert!(!other.extends(&new));
        assert_eq!(old.shared_with(100, &Lineage::new(9), 100), None);
    }

    #[test]
    fn text_form_comes_back() {
        let mut lineage = Lineage::new(0xfa);
        lineage.begin(0xfb, 95, Loss::Events { began_ms: 7 });
        lineage.begin(0xfc, 96, Loss::Ids { began_ms: 8 });
        assert_eq!(lineage.to_string(), "fa:0,fb:95!7,fc:96?8");
        assert_eq!(lineage.to_string().parse(), Ok(lineage));
        let older: Lineage = "fa:0,fb:95!".parse().unwrap();
        assert_eq!(older.to_string(), "fa:0,fb:95!0");
        for text in ["", "fa", "fa:", "x:1", "fa:1,", "fa:1?", "fa:1!x", "fa:1!7!", "fa:!7"] {
            assert_eq!(text.parse::<Lineage>(), Err(NotALineage), "{text}");
        }
    }

    #[test]
    fn the_oldest_epochs_are_forgotten() {
        let mut lineage = Lineage::new(0);
        (1..100).for_each(|epoch| lineage.begin(epoch, epoch, Loss::Nothing));
        assert_eq!((place(&lineage, 35, 1), place(&lineage, 36, 1)), (Place::Unknown, Place::At(1)));
    }
}

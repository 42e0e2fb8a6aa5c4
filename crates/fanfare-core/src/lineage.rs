//! The epochs of a log, and the validity of positions from each of them.
//!
//! A log whose backend lost its newest entries continues under a new epoch. Its sequences continue from the cut, so the
//! same sequence can identify one event in the old epoch and a different event in the new one. The lineage determines
//! which positions of old epochs still identify the same event.

use crate::{Position, audience::TAG_BITS};
use std::{fmt, str::FromStr};

/// Maximum number of epochs that a lineage retains. A cursor of an older epoch counts as a cursor of another log.
const MAX_EPOCHS: usize = 64;

/// The epochs of one log, oldest first. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage(Vec<Epoch>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Epoch {
    id: u64,
    /// The sequence after which the epoch began: the last entry of the earlier epochs that survived.
    after: u64,
    loss: Loss,
}

/// What may have been lost from earlier epochs at the start of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// No acknowledged event.
    Nothing,
    /// Entries after the cut, or remembered IDs of evicted events. Such an event may be published again, and is then
    /// appended after the cut.
    Ids {
        /// When the epoch began, by the log's clock, in milliseconds since 1970-01-01T00:00:00Z.
        began_ms: u64,
    },
    /// Any acknowledged event.
    Events {
        /// When the epoch began, by the log's clock, in milliseconds since 1970-01-01T00:00:00Z.
        began_ms: u64,
    },
}

/// The place of a cursor in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The cursor is valid, at this sequence.
    At(u64),
    /// Events after the cursor are lost or may be lost. Delivery can continue after this sequence, behind a gap.
    Broken(u64),
    /// The cursor belongs to another log.
    Unknown,
}

/// The text is not the text form of a [`Lineage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a lineage: expected EPOCH:AFTER, EPOCH:AFTER?MS or EPOCH:AFTER!MS, separated by commas")]
pub struct NotALineage;

impl Lineage {
    /// Creates the lineage of a new log with a single epoch.
    pub fn new(epoch: u64) -> Self {
        Self(vec![Epoch { id: epoch, after: 0, loss: Loss::Nothing }])
    }

    /// Creates the lineage of a log that begins at `unix_ms`, in milliseconds since 1970-01-01T00:00:00Z. It is unknown
    /// which events were published before that time, and which clients received them.
    pub fn begun(epoch: u64, unix_ms: u64) -> Self {
        Self(vec![Epoch { id: epoch, after: 0, loss: Loss::Events { began_ms: unix_ms } }])
    }

    /// Returns the epoch of the newest entries.
    pub fn current(&self) -> u64 {
        self.0.last().map_or(0, |epoch| epoch.id)
    }

    /// Continues the log under a new epoch after the sequence `after`.
    pub fn begin(&mut self, epoch: u64, after: u64, loss: Loss) {
        self.0.push(Epoch { id: epoch, after, loss });
        let surplus = self.0.len().saturating_sub(MAX_EPOCHS);
        self.0.drain(..surplus);
    }

    /// Returns the place of a position in this log, whose head is at `head`.
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

    /// Returns the place of a retained event for a client whose cursor is the `event_id` of that event.
    ///
    /// The event may have been published again after a loss, and the client may have received it at an earlier
    /// position that is lost. `sequence` and `appended_ms` are the event's current sequence and time of append.
    /// `horizon_ms` is how long the log recognises an ID. `tag` is the epoch in which the client's connection ID was
    /// issued ([`tag`]): the client cannot have received events that were lost before that epoch.
    pub fn place_of_event(&self, sequence: u64, appended_ms: u64, horizon_ms: u64, tag: u32) -> Place {
        let known = self.0.iter().position(|epoch| self::tag(epoch.id) == tag).map_or(0, |at| at + 1);
        let uncertain = self.0[known..].iter().any(|epoch| {
            let (Loss::Ids { began_ms } | Loss::Events { began_ms }) = epoch.loss else { return false };
            if sequence <= epoch.after {
                return matches!(epoch.loss, Loss::Events { .. });
            }
            // Publishers do not reuse an ID after the horizon, so a later append does not repeat a lost event.
            appended_ms <= began_ms.saturating_add(horizon_ms)
        });
        if uncertain { Place::Broken(sequence) } else { Place::At(sequence) }
    }

    /// Returns whether events may have been lost since the epoch `tag`, in which a connection ID was issued. A `tag` of
    /// 0 covers the whole lifetime of the log.
    pub fn lost_since(&self, tag: u32) -> bool {
        let known = self.0.iter().position(|epoch| self::tag(epoch.id) == tag).unwrap_or(0);
        self.0[known + 1..].iter().any(|epoch| matches!(epoch.loss, Loss::Events { .. }))
    }

    /// Returns the last sequence that this log, whose head is at `head`, has in common with another log; `None` if they
    /// share no epoch.
    pub fn shared_with(&self, head: u64, other: &Self, other_head: u64) -> Option<u64> {
        let common = self.0.iter().rev().find(|epoch| other.0.contains(epoch))?;
        Some(self.end_of(common.id, head).min(other.end_of(common.id, other_head)))
    }

    /// Returns whether this lineage contains the newest epoch of `other`.
    pub fn extends(&self, other: &Self) -> bool {
        other.0.last().is_some_and(|newest| self.0.contains(newest))
    }

    /// Returns the epoch of the entry at `sequence`; `None` if the entry is older than all retained epochs.
    pub fn epoch_at(&self, sequence: u64) -> Option<u64> {
        self.0.iter().rev().find(|epoch| epoch.after < sequence).map(|epoch| epoch.id)
    }

    /// Returns the sequence at which this lineage ends the newest epoch of `other`; `None` if it does not end it.
    pub fn cut_of(&self, other: &Self) -> Option<u64> {
        Some(self.end_of(other.current(), u64::MAX)).filter(|end| *end < u64::MAX)
    }

    fn end_of(&self, epoch: u64, head: u64) -> u64 {
        let later = self.0.iter().rev().take_while(|later| later.id != epoch);
        later.map(|later| later.after).fold(head, u64::min)
    }
}

/// Returns a short identifier of an epoch that fits into a connection ID ([`ConnectionId::epoch_tag`]). It is never 0.
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
                // Nodes of older versions write no time.
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
    fn positions_of_surviving_entries_stay_valid() {
        let mut lineage = Lineage::new(1);
        lineage.begin(2, 95, Loss::Nothing);
        assert_eq!(lineage.current(), 2);
        assert_eq!((place(&lineage, 1, 95), place(&lineage, 1, 96)), (Place::At(95), Place::Broken(95)));
        assert_eq!((place(&lineage, 2, 200), place(&lineage, 2, 201)), (Place::At(200), Place::Broken(200)));
        assert_eq!(place(&lineage, 3, 1), Place::Unknown);
    }

    #[test]
    fn a_later_and_deeper_cut_applies_to_all_earlier_epochs() {
        let mut lineage = Lineage::new(1);
        lineage.begin(2, 95, Loss::Nothing);
        lineage.begin(3, 90, Loss::Nothing);
        assert_eq!(place(&lineage, 1, 93), Place::Broken(90));
        assert_eq!(place(&lineage, 2, 97), Place::Broken(90));
    }

    #[test]
    fn a_possible_loss_of_events_breaks_every_older_cursor() {
        let mut lineage = Lineage::new(1);
        lineage.begin(2, 95, Loss::Events { began_ms: 1_000 });
        assert_eq!(place(&lineage, 1, 50), Place::Broken(50));
        assert_eq!((place(&lineage, 2, 95), place(&lineage, 2, 100)), (Place::At(95), Place::At(100)));
        let events = (lineage.place_of_event(95, 2_000, 100, 0), lineage.place_of_event(96, 2_000, 100, 0));
        assert_eq!(events, (Place::Broken(95), Place::At(96)));
    }

    #[test]
    fn an_event_id_after_a_loss_is_broken_for_the_horizon_unless_the_connection_id_was_issued_later() {
        for loss in [Loss::Events { began_ms: 1_000 }, Loss::Ids { began_ms: 1_000 }] {
            let mut lineage = Lineage::new(1);
            lineage.begin(2, 95, loss);
            lineage.begin(3, 97, Loss::Nothing);
            for (sequence, appended_ms, issued_in, valid) in [
                (95, 900, None, loss != Loss::Events { began_ms: 1_000 }),
                (95, 900, Some(2), true),
                (96, 1_100, None, false),
                (96, 1_100, Some(1), false),
                (96, 1_100, Some(9), false),
                (96, 1_100, Some(2), true),
                (99, 1_100, Some(3), true),
                (99, 1_101, None, true),
            ] {
                let place = lineage.place_of_event(sequence, appended_ms, 100, issued_in.map_or(0, tag));
                let expected = if valid { Place::At(sequence) } else { Place::Broken(sequence) };
                assert_eq!(place, expected, "{loss:?} {sequence} {appended_ms} {issued_in:?}");
            }
        }
        let begun = Lineage::begun(7, 1_000);
        assert_eq!(begun.place_of_event(1, 1_001, 100, 0), Place::Broken(1));
        assert_eq!(begun.place_of_event(1, 1_001, 100, tag(7)), Place::At(1));
        assert_eq!(place(&begun, 7, 0), Place::At(0));
    }

    #[test]
    fn two_logs_are_equal_up_to_the_first_cut_that_only_one_of_them_has() {
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
    fn the_text_form_round_trips() {
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
    fn the_oldest_epochs_are_dropped() {
        let mut lineage = Lineage::new(0);
        (1..100).for_each(|epoch| lineage.begin(epoch, epoch, Loss::Nothing));
        assert_eq!((place(&lineage, 35, 1), place(&lineage, 36, 1)), (Place::Unknown, Place::At(1)));
    }
}

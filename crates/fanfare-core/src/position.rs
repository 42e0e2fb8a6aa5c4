//! Positions in the log and their text form.

use std::{fmt, str::FromStr};

/// A position in the log: the log's `epoch` and the `sequence` of an event.
///
/// Sequences are dense. The first event of a log has sequence 1, and sequence 0 is the position before it. Positions of
/// different epochs cannot be compared. The epoch changes only when a log was lost or cut.
///
/// The text form (`pos-1f00c3-42`) is the `event_id` of the messages that the hub creates. A client that stores the
/// `event_id` of such a message therefore resumes at exactly that position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// The epoch of the log.
    pub epoch: u64,
    /// The number of events of that log up to and including this place.
    pub sequence: u64,
}

/// The text is not the text form of a [`Position`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a position: expected pos-EPOCH-SEQUENCE, for example pos-1f00c3-42")]
pub struct NotAPosition;

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pos-{:x}-{}", self.epoch, self.sequence)
    }
}

impl FromStr for Position {
    type Err = NotAPosition;

    fn from_str(text: &str) -> Result<Self, NotAPosition> {
        let (epoch, sequence) = text.strip_prefix("pos-").and_then(|rest| rest.split_once('-')).ok_or(NotAPosition)?;
        let position = Self {
            epoch: u64::from_str_radix(epoch, 16).map_err(|_| NotAPosition)?,
            sequence: sequence.parse().map_err(|_| NotAPosition)?,
        };
        // Each position has one text form: `+1`, `007` or upper-case digits are identifiers of publishers.
        (position.to_string() == text).then_some(position).ok_or(NotAPosition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_round_trips() {
        for (epoch, sequence) in [(0, 0), (0x1f_00c3, 42), (u64::MAX, u64::MAX)] {
            let position = Position { epoch, sequence };
            assert_eq!(position.to_string().parse(), Ok(position));
        }
    }

    #[test]
    fn other_text_is_rejected() {
        for text in ["", "pos-", "pos-1", "pos-1-", "pos--1", "pos-1-+2", "pos-01-2", "pos-A-2", "pos-1-2-3", "evt_1"] {
            assert_eq!(text.parse::<Position>(), Err(NotAPosition), "{text}");
        }
    }
}

//! A place in the log. Knows its text form, and nothing of what stands there.

use std::{fmt, str::FromStr};

/// A place in the log: which log (`epoch`) and how many events it held up to here (`sequence`).
///
/// Sequences are dense: the first event of a log has 1, and 0 is the place before it. Two positions of different
/// epochs can't be compared; an epoch changes only when a log was lost.
///
/// The text form (`pos-1f00c3-42`) serves as the `event_id` of the frames a hub makes itself, so that a client that
/// stores the last `event_id` it saw resumes exactly, whatever that frame was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// Which log this is a place in.
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
        // One text a position: `+1`, `007` or upper-case digits are somebody else's identifiers.
        (position.to_string() == text).then_some(position).ok_or(NotAPosition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_comes_back() {
        for (epoch, sequence) in [(0, 0), (0x1f_00c3, 42), (u64::MAX, u64::MAX)] {
            let position = Position { epoch, sequence };
            assert_eq!(position.to_string().parse(), Ok(position));
        }
    }

    #[test]
    fn other_text_is_refused() {
        for text in ["", "pos-", "pos-1", "pos-1-", "pos--1", "pos-1-+2", "pos-01-2", "pos-A-2", "pos-1-2-3", "evt_1"] {
            assert_eq!(text.parse::<Position>(), Err(NotAPosition), "{text}");
        }
    }
}

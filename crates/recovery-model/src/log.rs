//! A log: its lineage and its entries.

use std::collections::BTreeMap;

/// The number of an entry. It continues across epochs.
pub(crate) type Sequence = u8;

/// The ID of an epoch.
pub(crate) type Epoch = u8;

/// The ID of an event.
pub(crate) type Event = u8;

/// What a log can serve after a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResumePoint {
    /// All events after it.
    At(Sequence),
    /// The events after this sequence, and a gap before them.
    Lost(Sequence),
    /// The epoch is not in the lineage.
    Unknown,
}

/// The data of a server, or the window of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Log {
    /// Each epoch, the sequence after which it began, and whether no acknowledged event is missing before it (no `!`).
    pub(crate) lineage: Vec<(Epoch, Sequence, bool)>,
    pub(crate) entries: BTreeMap<Sequence, (Epoch, Event)>,
    pub(crate) head: Sequence,
}

impl Log {
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        self.lineage.last().map(|(epoch, ..)| *epoch)
    }

    pub(crate) fn rank(&self, epoch: Option<Epoch>) -> Option<usize> {
        self.lineage.iter().position(|(id, ..)| Some(*id) == epoch)
    }

    /// Whether this log contains the newest epoch of the other log.
    pub(crate) fn extends(&self, other: &Self) -> bool {
        other.lineage.last().is_some_and(|newest| self.lineage.contains(newest))
    }

    fn end_of(&self, epoch: Epoch, head: Sequence) -> Sequence {
        self.lineage.iter().rev().take_while(|(id, ..)| *id != epoch).map(|(_, after, _)| *after).fold(head, u8::min)
    }

    /// The sequence at which this log ends the other log's newest epoch, if it does.
    pub(crate) fn cut_of(&self, other: &Self) -> Option<Sequence> {
        Some(self.end_of(other.epoch().unwrap_or(0), u8::MAX)).filter(|end| *end < u8::MAX)
    }

    fn newest_shared(&self, other: &Self) -> Option<Epoch> {
        self.lineage.iter().rev().find(|epoch| other.lineage.contains(epoch)).map(|(epoch, ..)| *epoch)
    }

    pub(crate) fn shared_with(&self, head: Sequence, other: &Self) -> Option<Sequence> {
        let common = self.newest_shared(other)?;
        Some(self.end_of(common, head).min(other.end_of(common, other.head)))
    }

    pub(crate) fn epoch_at(&self, sequence: Sequence) -> Option<Epoch> {
        self.lineage.iter().rev().find(|(_, after, _)| *after < sequence).map(|(epoch, ..)| *epoch)
    }

    pub(crate) fn resume_point(&self, (epoch, sequence): (Epoch, Sequence)) -> ResumePoint {
        let Some(at) = self.rank(Some(epoch)) else { return ResumePoint::Unknown };
        let later = &self.lineage[at + 1..];
        let end = later.iter().map(|(_, after, _)| *after).fold(self.head, u8::min);
        if sequence > end || later.iter().any(|(.., complete)| !complete) {
            ResumePoint::Lost(sequence.min(end))
        } else {
            ResumePoint::At(sequence)
        }
    }

    /// Removes the entries after a sequence.
    pub(crate) fn cut(&mut self, sequence: Sequence) {
        self.entries.split_off(&(sequence + 1));
        self.head = self.head.min(sequence);
    }

    /// The sequence before the first entry.
    pub(crate) fn floor(&self) -> Sequence {
        self.entries.first_key_value().map_or(self.head, |(first, _)| first - 1)
    }
}

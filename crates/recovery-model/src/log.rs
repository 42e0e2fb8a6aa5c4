//! A log: its lineage, and what stands in it.

use std::collections::BTreeMap;

/// A position in an epoch's numbering.
pub(crate) type Sequence = u8;

/// Names an epoch.
pub(crate) type Epoch = u8;

/// Names an event.
pub(crate) type Event = u8;

/// What a cursor is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    At(Sequence),
    Broken(Sequence),
    Unknown,
}

/// A data set, or a node's window.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Log {
    /// Each epoch with the sequence behind which it began, and whether nothing acknowledged is known to be lost before it.
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

    /// Whether this log knows how the other one's newest epoch goes on.
    pub(crate) fn extends(&self, other: &Self) -> bool {
        other.lineage.last().is_some_and(|newest| self.lineage.contains(newest))
    }

    fn end_of(&self, epoch: Epoch, head: Sequence) -> Sequence {
        self.lineage.iter().rev().take_while(|(id, ..)| *id != epoch).map(|(_, after, _)| *after).fold(head, u8::min)
    }

    /// Up to where this log goes on with the other one's newest epoch.
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

    pub(crate) fn place(&self, (epoch, sequence): (Epoch, Sequence)) -> Place {
        let Some(at) = self.rank(Some(epoch)) else { return Place::Unknown };
        let later = &self.lineage[at + 1..];
        let end = later.iter().map(|(_, after, _)| *after).fold(self.head, u8::min);
        if sequence > end || later.iter().any(|(.., whole)| !whole) {
            Place::Broken(sequence.min(end))
        } else {
            Place::At(sequence)
        }
    }

    /// Removes what stands behind a place.
    pub(crate) fn cut(&mut self, place: Sequence) {
        self.entries.split_off(&(place + 1));
        self.head = self.head.min(place);
    }

    /// The sequence before the first entry.
    pub(crate) fn floor(&self) -> Sequence {
        self.entries.first_key_value().map_or(self.head, |(first, _)| first - 1)
    }
}

//! The lineage of the log (docs/recovery.md): it distinguishes positions that are still valid from positions that were
//! lost.

use fanfare::Position;

/// The epochs of the log, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Lineage(Vec<Epoch>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Epoch {
    id: u64,
    /// The sequence after which the epoch began.
    after: u64,
    mark: Mark,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Nothing,
    /// IDs of evicted events are lost.
    Ids,
    /// Acknowledged events may be lost.
    Events,
}

impl Lineage {
    /// Parses `EPOCH:AFTER[?MS|!MS],...`. `None` if the text is malformed.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let epochs = text.split(',').map(|part| {
            let (id, rest) = part.split_once(':')?;
            let (after, mark) = match rest.find(['?', '!']) {
                Some(at) if rest[at..].starts_with('?') => (&rest[..at], Mark::Ids),
                Some(at) => (&rest[..at], Mark::Events),
                None => (rest, Mark::Nothing),
            };
            Some(Epoch { id: u64::from_str_radix(id, 16).ok()?, after: after.parse().ok()?, mark })
        });
        epochs.collect::<Option<Vec<_>>>().map(Self)
    }

    /// Whether the log still has the entry that was at a position.
    pub(crate) fn holds(&self, position: Position) -> bool {
        let Some(at) = self.0.iter().rposition(|epoch| epoch.id == position.epoch) else { return false };
        self.0[at + 1..].iter().all(|later| position.sequence <= later.after)
    }

    /// Whether event IDs may have been lost after an event was appended at a position.
    pub(crate) fn forgot_ids_since(&self, position: Position) -> bool {
        let at = self.0.iter().rposition(|epoch| epoch.id == position.epoch).map_or(0, |at| at + 1);
        self.0[at..].iter().any(|epoch| epoch.mark != Mark::Nothing)
    }

    /// The number of epochs that began after a possible loss and are absent from another lineage.
    pub(crate) fn losses_since(&self, before: &Self) -> usize {
        self.0.iter().filter(|epoch| epoch.mark == Mark::Events && !before.0.contains(epoch)).count()
    }

    /// Whether a cursor that is an `event_id` may be uncertain for a client whose `connection_id` was issued in the
    /// first epoch.
    pub(crate) fn ids_uncertain(&self) -> bool {
        self.0.iter().skip(1).any(|epoch| epoch.mark != Mark::Nothing)
    }
}

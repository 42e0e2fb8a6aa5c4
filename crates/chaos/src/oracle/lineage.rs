//! Which epochs the log is made of, as it says itself (docs/recovery.md): what tells a place that is still good from one that
//! was lost.

use fanfare::Position;

/// The epochs of the log, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Lineage(Vec<Epoch>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Epoch {
    id: u64,
    /// The sequence behind which it began.
    after: u64,
    mark: Mark,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Nothing,
    /// Ids of evicted events are lost.
    Ids,
    /// Acknowledged events may be lost.
    Events,
}

impl Lineage {
    /// Reads `EPOCH:AFTER[?MS|!MS],...`. `None` if it is something else.
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

    /// Whether what stood at a place stands there still.
    pub(crate) fn holds(&self, place: Position) -> bool {
        let Some(at) = self.0.iter().rposition(|epoch| epoch.id == place.epoch) else { return false };
        self.0[at + 1..].iter().all(|later| place.sequence <= later.after)
    }

    /// Whether ids of events may have been lost after an event was appended at a place.
    pub(crate) fn forgot_ids_since(&self, place: Position) -> bool {
        let at = self.0.iter().rposition(|epoch| epoch.id == place.epoch).map_or(0, |at| at + 1);
        self.0[at..].iter().any(|epoch| epoch.mark != Mark::Nothing)
    }

    /// How many epochs began behind a possible loss that another lineage does not have.
    pub(crate) fn losses_since(&self, before: &Self) -> usize {
        self.0.iter().filter(|epoch| epoch.mark == Mark::Events && !before.0.contains(epoch)).count()
    }

    /// Whether a cursor that is an `event_id` may be doubtful for a client that was named in the first epoch.
    pub(crate) fn doubts_ids(&self) -> bool {
        self.0.iter().skip(1).any(|epoch| epoch.mark != Mark::Nothing)
    }
}

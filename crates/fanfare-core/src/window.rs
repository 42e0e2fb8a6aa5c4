//! The window: the newest entries of the log in memory, each with its encoded frame and its audience.
//!
//! The window knows positions and audiences. It does not know which clients are connected, or where entries come from.

use crate::{Audience, ConnectionId, Event, Lineage, Position, event::LOG_POSITION, json, lineage::Place, ws};
use hashbrown::{HashMap, HashTable};
use serde::Deserialize;
use serde_json::value::RawValue;
use smallvec::SmallVec;
use std::{
    borrow::Cow,
    collections::VecDeque,
    hash::BuildHasher,
    sync::{Arc, atomic::AtomicU32},
};

/// An event at its position in the log, encoded once for all clients of a node.
#[derive(Debug)]
pub struct Entry {
    /// The sequence of the entry. Sequences are dense and start at 1.
    pub sequence: u64,
    /// When the event was appended, in milliseconds since 1970-01-01T00:00:00Z.
    pub appended_ms: u64,
    /// The audience of the event.
    pub audience: Audience,
    /// The event's `event_id`.
    pub event_id: Box<str>,
    /// The event's `type`; empty if it cannot be parsed.
    pub event_type: Box<str>,
    /// The whole WebSocket frame: the event, with its position as the last field, `log_position`.
    pub frame: Box<[u8]>,
    /// The publisher, as human-readable text.
    pub publisher: Option<Arc<str>>,
    /// The trace context of the publish, as opaque text.
    pub trace: Option<Arc<str>>,
    /// Number of clients of this node to which the event was written.
    pub written: AtomicU32,
    /// Number of acknowledgements of the event by clients of this node.
    pub acknowledged: AtomicU32,
}

/// Limits on the events that a window or an in-memory log retains. The first limit reached applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Maximum number of events.
    pub events: usize,
    /// Maximum number of bytes, as counted by [`Entry::weight`].
    pub bytes: usize,
    /// Maximum age of an event, in milliseconds since it was appended.
    pub age_ms: u64,
    /// Maximum number of event IDs that are remembered, including those of evicted events.
    pub ids: usize,
    /// How long an event ID is remembered, in milliseconds.
    pub ids_ms: u64,
}

/// The properties of a client that determine which events it may receive.
#[derive(Debug, Clone, Copy)]
pub struct Viewer<'a> {
    /// The user of the client's token.
    pub user: &'a Arc<str>,
    /// The client's connection ID.
    pub connection: ConnectionId,
    /// The topics that the client is subscribed to.
    pub topics: &'a [Arc<str>],
}

/// Maximum difference between the clocks of two nodes, in milliseconds.
const MAX_CLOCK_SKEW_MS: u64 = 60_000;

/// Why a client receives a `gap`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapReason {
    /// The events after the cursor were evicted.
    Expired,
    /// The cursor belongs to another log, or the log lost or may have lost events after the cursor.
    Reset,
}

impl GapReason {
    /// Returns the value of the field `reason`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Reset => "reset",
        }
    }
}

/// Missing events after a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// Why events are missing.
    pub reason: GapReason,
    /// Number of skipped events of the log, regardless of their audience; `None` if the position of the cursor is
    /// unknown.
    pub missed: Option<u64>,
}

/// Where a client resumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResumePoint {
    /// The sequence after which delivery begins.
    pub cursor: u64,
    /// The gap before the cursor, if any.
    pub gap: Option<Gap>,
    /// Whether the client sent a cursor.
    pub asked: bool,
}

/// The newest entries of the log, without holes, from after the floor up to the head.
#[derive(Debug)]
pub struct Window {
    lineage: Lineage,
    /// The sequence before the first entry: the oldest cursor that can be served without a gap.
    floor: u64,
    /// The ID of the event at the floor, and when it was appended, if the window had that event. A client with this
    /// cursor has missed nothing.
    floor_id: Option<(Box<str>, u64)>,
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    bounds: Bounds,
    hasher: foldhash::fast::RandomState,
    /// Sequences by the hash of their `event_id`. The ID itself is in the entry.
    ids: HashTable<u64>,
    everyone: VecDeque<u64>,
    addressed: HashMap<Audience, VecDeque<u64>, foldhash::fast::RandomState>,
}

/// Distance from the head, in entries, up to which a scan is cheaper than a merge of the audiences' lists.
const MAX_SCAN_ENTRIES: u64 = 64;

impl Entry {
    /// Encodes an event with its position `place` in the log.
    pub fn new(place: Position, appended_ms: u64, audience: Audience, event: &Event) -> Self {
        Self::of_type(place, appended_ms, audience, event.event_id(), event.event_type(), event.json().as_bytes())
    }

    /// Encodes an event that was checked before it was appended to the log, from its ID and its JSON.
    pub fn from_parts(place: Position, appended_ms: u64, audience: Audience, event_id: &str, json: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Head<'a> {
            #[serde(borrow)]
            r#type: Cow<'a, str>,
            #[serde(borrow, default)]
            log_position: Option<&'a RawValue>,
        }
        let head = serde_json::from_slice(json);
        let Ok(Head { r#type, log_position }) = head else {
            return Self::of_type(place, appended_ms, audience, event_id, "", json);
        };
        // Hubs of older versions accepted this field from publishers.
        let without = log_position.and_then(|_| json::without(json, LOG_POSITION));
        Self::of_type(place, appended_ms, audience, event_id, &r#type, without.as_deref().unwrap_or(json))
    }

    fn of_type(
        place: Position,
        appended_ms: u64,
        audience: Audience,
        event_id: &str,
        event_type: &str,
        json: &[u8],
    ) -> Self {
        let sequence = place.sequence;
        let frame = encode(json, place);
        let (written, acknowledged) = (AtomicU32::new(0), AtomicU32::new(0));
        let (event_id, event_type) = (event_id.into(), event_type.into());
        Self {
            sequence,
            appended_ms,
            audience,
            event_id,
            event_type,
            frame,
            publisher: None,
            trace: None,
            written,
            acknowledged,
        }
    }

    /// Sets the publisher and the trace context.
    #[must_use]
    pub fn by(self, publisher: Option<Arc<str>>, trace: Option<Arc<str>>) -> Self {
        Self { publisher, trace, ..self }
    }

    /// Returns the event's JSON as it was published: without the frame header and without `log_position`.
    pub fn json(&self) -> Vec<u8> {
        let (event, end) = self.json_parts();
        [event, end].concat()
    }

    /// Returns the length of the event's JSON, in bytes.
    pub fn json_len(&self) -> usize {
        let (event, end) = self.json_parts();
        event.len() + end.len()
    }

    /// Returns the event's JSON up to `log_position`, and the closing brace after it.
    fn json_parts(&self) -> (&[u8], &'static [u8]) {
        let payload = self.payload();
        match payload.windows(FIELD.len()).rposition(|window| window == FIELD) {
            Some(at) => {
                let event = payload.get(..at).unwrap_or_default();
                (event.strip_suffix(b",").unwrap_or(event), b"}")
            }
            None => (payload, b""),
        }
    }

    /// Returns the payload of the frame: the JSON that clients receive.
    pub fn payload(&self) -> &[u8] {
        // RFC 6455 section 5.2: the second byte of an unmasked frame is the length, or the form of the length.
        let head = match self.frame.get(1) {
            Some(126) => 4,
            Some(127) => 10,
            _ => 2,
        };
        self.frame.get(head..).unwrap_or_default()
    }

    /// Returns the memory that an entry takes, in bytes: its frame, its texts and a constant for the indexes.
    pub fn weight(&self) -> usize {
        let length = |text: &Option<Arc<str>>| text.as_ref().map_or(0, |text| text.len());
        let texts = self.event_id.len() + self.event_type.len() + length(&self.publisher) + length(&self.trace);
        self.frame.len() + texts + 240
    }
}

impl Viewer<'_> {
    /// Returns whether the client belongs to `audience`.
    pub fn sees(&self, audience: &Audience) -> bool {
        match audience {
            Audience::Everyone => true,
            Audience::User(user) => user == self.user,
            Audience::Connection(id) => *id == self.connection,
            Audience::Topic(topic) => self.topics.contains(topic),
        }
    }
}

impl Window {
    /// Creates an empty window of a log whose head is at `head`.
    pub fn new(lineage: Lineage, head: u64, bounds: Bounds) -> Self {
        Self {
            lineage,
            floor: head,
            floor_id: None,
            entries: VecDeque::new(),
            bytes: 0,
            bounds,
            hasher: foldhash::fast::RandomState::default(),
            ids: HashTable::new(),
            everyone: VecDeque::new(),
            addressed: HashMap::default(),
        }
    }

    /// Returns the epoch of the log's newest entries.
    pub fn epoch(&self) -> u64 {
        self.lineage.current()
    }

    /// Returns the lineage of the log.
    pub fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    /// Continues as the window of a log that has this window's entries up to the sequence `shared`, and none after it.
    pub fn adopt(&mut self, lineage: Lineage, shared: u64) {
        self.lineage = lineage;
        while self.head() > shared && self.pop_newest() {}
        if self.head() > shared {
            self.jump(shared);
        }
    }

    /// Drops all entries and continues after `floor`. Used if the entries up to `floor` are unavailable.
    pub fn jump(&mut self, floor: u64) {
        while self.pop_newest() {}
        (self.floor, self.floor_id) = (floor, None);
    }

    /// Returns the sequence of the newest entry.
    pub fn head(&self) -> u64 {
        self.floor + self.entries.len() as u64
    }

    /// Returns the oldest cursor that can be served: all entries after it are retained.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// Returns the number of retained events.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether no event is retained.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the memory of the retained events, in bytes, as counted by [`Entry::weight`].
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends the next entry, and evicts the entries that exceed the bounds.
    ///
    /// Shards are not notified. After the push the caller wakes them, so that they read the window
    /// ([`SessionTable::look`](crate::session_table::SessionTable::look)).
    ///
    /// # Panics
    /// If the entry's sequence does not follow the head: a hole in the window would be a loss without a `gap`.
    pub fn push(&mut self, entry: Arc<Entry>) {
        assert_eq!(entry.sequence, self.head() + 1, "the window has no holes");
        self.bytes += entry.weight();
        let hash = self.hasher.hash_one(&*entry.event_id);
        let (entries, floor, hasher) = (&self.entries, self.floor, &self.hasher);
        self.ids.insert_unique(hash, entry.sequence, |&sequence| {
            hasher.hash_one(&*entries[index(floor, sequence)].event_id)
        });
        match &entry.audience {
            Audience::Everyone => self.everyone.push_back(entry.sequence),
            other => self.addressed.entry_ref(other).or_default().push_back(entry.sequence),
        }
        let now = entry.appended_ms;
        self.entries.push_back(entry);
        self.expire(now);
    }

    /// Evicts the entries that exceed the bounds at `unix_ms`, in milliseconds since 1970-01-01T00:00:00Z.
    pub fn expire(&mut self, unix_ms: u64) {
        while let Some(oldest) = self.entries.front() {
            // The newest entry is exempt from the limits on size, or it could be evicted before it is delivered.
            let several = self.entries.len() > 1;
            let too_many = several && (self.entries.len() > self.bounds.events || self.bytes > self.bounds.bytes);
            if !too_many && unix_ms.saturating_sub(oldest.appended_ms) <= self.bounds.age_ms {
                return;
            }
            self.pop_oldest();
        }
    }

    fn pop_oldest(&mut self) {
        let Some(oldest) = self.entries.pop_front() else { return };
        self.forget(&oldest, VecDeque::pop_front);
        self.floor_id = Some((oldest.event_id.clone(), oldest.appended_ms));
        self.floor = oldest.sequence;
    }

    /// Removes the newest entry. Returns whether there was one.
    fn pop_newest(&mut self) -> bool {
        let Some(newest) = self.entries.pop_back() else { return false };
        self.forget(&newest, VecDeque::pop_back);
        true
    }

    /// Removes an entry from the indexes. The entry must be the oldest or the newest one, and `pop` must match.
    fn forget(&mut self, entry: &Entry, pop: fn(&mut VecDeque<u64>) -> Option<u64>) {
        self.bytes -= entry.weight();
        let hash = self.hasher.hash_one(&*entry.event_id);
        if let Ok(found) = self.ids.find_entry(hash, |&sequence| sequence == entry.sequence) {
            found.remove();
        }
        match &entry.audience {
            Audience::Everyone => drop(pop(&mut self.everyone)),
            other => {
                if let Some(list) = self.addressed.get_mut(other) {
                    pop(list);
                    if list.is_empty() {
                        self.addressed.remove(other);
                    }
                }
            }
        }
    }

    /// Returns the sequence of an event, if it is retained or at the floor.
    pub fn find(&self, event_id: &str) -> Option<u64> {
        self.find_appended(event_id).map(|(sequence, _)| sequence)
    }

    /// As [`find`](Self::find), with the time of the append.
    fn find_appended(&self, event_id: &str) -> Option<(u64, u64)> {
        let hash = self.hasher.hash_one(event_id);
        let held = self.ids.find(hash, |&s| &*self.entries[index(self.floor, s)].event_id == event_id);
        let held = held.map(|&sequence| (sequence, self.entries[index(self.floor, sequence)].appended_ms));
        let at_floor = || self.floor_id.as_ref().filter(|(id, _)| **id == *event_id).map(|(_, ms)| (self.floor, *ms));
        held.or_else(at_floor)
    }

    /// Returns the entry of an event, if it is retained.
    pub fn get(&self, event_id: &str) -> Option<&Arc<Entry>> {
        self.find(event_id)
            .filter(|sequence| *sequence > self.floor)
            .and_then(|sequence| self.entries.get(index(self.floor, sequence)))
    }

    /// Returns the newest entry for a client, up to the sequence `until`.
    pub fn last_seen(&self, until: u64, viewer: Viewer<'_>) -> Option<&Arc<Entry>> {
        let last = self.lists(viewer).filter_map(|list| {
            let at = list.partition_point(|&sequence| sequence <= until);
            list.get(at.checked_sub(1)?).copied()
        });
        last.max().and_then(|sequence| self.entries.get(index(self.floor, sequence)))
    }

    /// Iterates over the entries after a cursor, oldest first. The cursor must not be before the
    /// [`floor`](Self::floor).
    pub fn since(&self, cursor: u64) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries
            .range(usize::try_from(cursor.saturating_sub(self.floor)).map_or(usize::MAX, |n| n.min(self.len()))..)
    }

    /// Iterates over the entries for a client after a cursor, oldest first.
    pub fn view<'a>(&'a self, cursor: u64, viewer: Viewer<'a>) -> impl Iterator<Item = &'a Arc<Entry>> {
        let near = self.head().saturating_sub(cursor) <= MAX_SCAN_ENTRIES;
        let scan = near.then(|| self.since(cursor).filter(move |entry| viewer.sees(&entry.audience)));
        let merge = (!near).then(|| self.merge(cursor, viewer));
        scan.into_iter().flatten().chain(merge.into_iter().flatten())
    }

    /// Merges the lists of the audiences that a client belongs to, by sequence.
    fn merge<'a>(&'a self, cursor: u64, viewer: Viewer<'a>) -> impl Iterator<Item = &'a Arc<Entry>> {
        let mut lists: SmallVec<[_; 4]> =
            self.lists(viewer).map(|list| list.range(list.partition_point(|&s| s <= cursor)..).peekable()).collect();
        std::iter::from_fn(move || {
            let next = lists.iter_mut().filter_map(|list| Some((*list.peek().copied()?, list))).min_by_key(|(s, _)| *s);
            let (sequence, list) = next?;
            list.next();
            self.entries.get(index(self.floor, sequence))
        })
    }

    /// Returns the number of entries for a client after a cursor.
    pub fn count(&self, cursor: u64, viewer: Viewer<'_>) -> usize {
        self.lists(viewer).map(|list| list.len() - list.partition_point(|&s| s <= cursor)).sum()
    }

    fn lists<'a>(&'a self, viewer: Viewer<'a>) -> impl Iterator<Item = &'a VecDeque<u64>> {
        let own = [Audience::User(viewer.user.clone()), Audience::Connection(viewer.connection)];
        let topics = viewer.topics.iter().map(|topic| Audience::Topic(topic.clone()));
        let addressed = own.into_iter().chain(topics).filter_map(|audience| self.addressed.get(&audience));
        std::iter::once(&self.everyone).chain(addressed)
    }

    /// Returns where a client resumes. `last_event_id` is the client's cursor: an `event_id`, or the text form of a
    /// position.
    ///
    /// - Without a cursor the client starts at the head.
    /// - If the event of the cursor is not retained, it is older than all retained events. The client resumes after the
    ///   floor, behind a gap.
    /// - If the cursor is a position of another log, the client resumes after the floor, behind a gap, because it has
    ///   received no event of this log.
    /// - If the cursor is the `event_id` of an event that may have been published again after a loss, the client may
    ///   have received it at another position. It resumes after that event, behind a gap, unless its `connection` ID
    ///   was issued after the loss.
    pub fn start(&self, last_event_id: Option<&str>, connection: ConnectionId) -> ResumePoint {
        let Some(id) = last_event_id else {
            return ResumePoint { cursor: self.head(), gap: None, asked: false };
        };
        let place = match id.parse::<Position>() {
            Ok(position) => self.lineage.place(position, self.head()),
            Err(_) => match self.find_appended(id) {
                Some((sequence, appended_ms)) => {
                    let (horizon_ms, tag) = (self.bounds.ids_ms, connection.epoch_tag());
                    self.lineage.place_of_event(sequence, appended_ms, horizon_ms, tag)
                }
                // A log that never evicted an event never had this event. A log that lost events may have had it. In
                // both cases the client's history may differ from this log.
                None if self.floor == 0 || self.lineage.lost_since(connection.epoch_tag()) => Place::Unknown,
                None => return self.start_behind_gap(self.floor, GapReason::Expired),
            },
        };
        match place {
            Place::At(sequence) => self.continue_from(sequence),
            Place::Broken(sequence) => self.start_behind_gap(sequence, GapReason::Reset),
            Place::Unknown => self.start_behind_gap(self.floor, GapReason::Reset),
        }
    }

    /// Returns where a client resumes if its position is not valid in the current lineage; `None` if it is valid.
    pub(crate) fn restart(&self, position: Position) -> Option<ResumePoint> {
        match self.lineage.place(position, self.head()) {
            Place::At(_) => None,
            Place::Broken(sequence) => Some(self.start_behind_gap(sequence, GapReason::Reset)),
            Place::Unknown => Some(self.start_behind_gap(self.floor, GapReason::Reset)),
        }
    }

    /// Returns a resume point at the head, without replay. The skipped entries are added to `missed` of the gap.
    pub fn without_replay(&self, start: ResumePoint) -> ResumePoint {
        let skipped = self.head().saturating_sub(start.cursor);
        let gap = start.gap.map(|gap| Gap { missed: gap.missed.map(|missed| missed + skipped), ..gap });
        ResumePoint { cursor: start.cursor.max(self.head()), gap, ..start }
    }

    /// Returns a resume point after all entries that were appended before `unix_ms`, in milliseconds since
    /// 1970-01-01T00:00:00Z. Skipped entries count as a gap.
    pub fn not_before(&self, start: ResumePoint, unix_ms: u64) -> ResumePoint {
        let behind = usize::try_from(start.cursor.saturating_sub(self.floor)).unwrap_or(usize::MAX);
        let entries = || self.entries.iter().skip(behind);
        // The clocks of nodes differ, so the times of entries need not be in order.
        let may_be_older = |entry: &Arc<Entry>| entry.appended_ms < unix_ms.saturating_add(MAX_CLOCK_SKEW_MS);
        if !entries().next().is_some_and(may_be_older) {
            return start;
        }
        let Some(older) = entries().rev().find(|entry| entry.appended_ms < unix_ms) else { return start };
        let skipped = older.sequence - start.cursor;
        let missed = start.gap.map_or(Some(0), |gap| gap.missed).map(|missed| missed + skipped);
        let reason = start.gap.map_or(GapReason::Expired, |gap| gap.reason);
        ResumePoint { cursor: older.sequence, gap: Some(Gap { reason, missed }), ..start }
    }

    /// Returns the size of the frames for a client after a cursor, in bytes.
    pub fn bytes_behind(&self, cursor: u64, viewer: Viewer<'_>) -> usize {
        self.view(cursor, viewer).map(|entry| entry.frame.len()).sum()
    }

    fn start_behind_gap(&self, cursor: u64, reason: GapReason) -> ResumePoint {
        ResumePoint { cursor: cursor.max(self.floor), gap: Some(Gap { reason, missed: None }), asked: true }
    }

    /// Returns where a client resumes that has received all its events up to `cursor` of this log.
    pub fn continue_from(&self, cursor: u64) -> ResumePoint {
        let missed = self.floor.saturating_sub(cursor);
        let gap = (missed > 0).then_some(Gap { reason: GapReason::Expired, missed: Some(missed) });
        ResumePoint { cursor: cursor.max(self.floor), gap, asked: true }
    }
}

/// The field `log_position` up to its value. Its last occurrence in a frame is the field that [`encode`] added, because
/// it is the last field and quotes within strings are escaped.
const FIELD: &[u8] = br#""log_position":""#;

/// Encodes the frame of an event, with its position as the last field.
fn encode(json: &[u8], place: Position) -> Box<[u8]> {
    let Some(event) = json.trim_ascii_end().strip_suffix(b"}") else {
        return ws::frame(ws::Opcode::Text, &[json]);
    };
    let comma: &[u8] = if event.trim_ascii_end() == b"{" { b"" } else { b"," };
    ws::frame(ws::Opcode::Text, &[event, comma, FIELD, place.to_string().as_bytes(), b"\"}"])
}

/// Returns the index of a sequence in a queue whose first entry has the sequence `floor + 1`.
fn index(floor: u64, sequence: u64) -> usize {
    usize::try_from(sequence - floor - 1).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Draft, lineage::Loss};

    const PLACE: Position = Position { epoch: 0xab, sequence: 7 };

    const WIDE: Bounds = Bounds { events: 1_000, bytes: 1 << 20, age_ms: 1_000_000, ids: 1_000, ids_ms: 1_000_000 };

    const UNTAGGED: ConnectionId = ConnectionId(0);

    fn entry(sequence: u64, appended_ms: u64, audience: Audience) -> Arc<Entry> {
        let event = Draft::parse(r#"{"type":"note"}"#).unwrap().finish(0, || format!("e{sequence}")).unwrap();
        Arc::new(Entry::new(Position { epoch: 7, sequence }, appended_ms, audience, &event))
    }

    fn window(bounds: Bounds, entries: u64) -> Window {
        let mut window = Window::new(Lineage::new(7), 0, bounds);
        for sequence in 1..=entries {
            let audience = match sequence % 3 {
                0 => Audience::Everyone,
                1 => Audience::User("ann".into()),
                _ => Audience::Topic("t".into()),
            };
            window.push(entry(sequence, sequence, audience));
        }
        window
    }

    #[test]
    fn each_bound_evicts_the_oldest_entries() {
        let weight = entry(1, 0, Audience::Everyone).weight();
        for bounds in [Bounds { events: 5, ..WIDE }, Bounds { bytes: 5 * weight, ..WIDE }, Bounds { age_ms: 4, ..WIDE }]
        {
            let window = window(bounds, 9);
            assert_eq!((window.len(), window.floor(), window.head()), (5, 4, 9), "{bounds:?}");
            assert_eq!((window.find("e3"), window.find("e4"), window.find("e5")), (None, Some(4), Some(5)));
        }
    }

    #[test]
    fn the_newest_entry_is_retained_regardless_of_its_size() {
        let window = window(Bounds { bytes: 1, ..WIDE }, 9);
        assert_eq!((window.len(), window.find("e9")), (1, Some(9)));
    }

    #[test]
    fn entries_expire_by_age_alone() {
        let mut window = window(WIDE, 9);
        window.expire(2_000_000);
        assert!(window.is_empty() && window.bytes() == 0 && window.addressed.is_empty() && window.ids.is_empty());
        assert_eq!((window.floor(), window.head()), (9, 9));
    }

    // attack: replay of events from before the account was created => the client resumes at its creation, behind a gap
    #[test]
    fn entries_from_before_the_given_time_are_not_replayed() {
        let bounds = Bounds { events: 7, ..WIDE };
        let window = window(bounds, 9);
        let gap = |missed| Some(Gap { reason: GapReason::Expired, missed });
        for (last, unix_ms, cursor, missed) in [
            (Some("e4"), 0, 4, None),
            (Some("e4"), 5, 4, None),
            (Some("e4"), 7, 6, gap(Some(2))),
            (Some("e4"), 100, 9, gap(Some(5))),
            (Some("pos-7-1"), 7, 6, gap(Some(5))),
            (Some("elsewhere"), 7, 6, gap(None)),
            (Some("e9"), 100, 9, None),
            (None, 100, 9, None),
        ] {
            let start = window.not_before(window.start(last, UNTAGGED), unix_ms);
            assert_eq!((start.cursor, start.gap), (cursor, missed), "{last:?} {unix_ms}");
        }
        let mut far_later = window;
        far_later.push(entry(10, 1_000_000, Audience::Everyone));
        let start = far_later.start(Some("e9"), UNTAGGED);
        assert_eq!(far_later.not_before(start, 1_000_000), start, "no older entry follows the cursor");
    }

    #[test]
    fn scan_and_merge_return_the_same_entries() {
        let window = window(WIDE, 200);
        let (user, topics): (Arc<str>, _) = ("ann".into(), ["t".into()]);
        for topics in [&topics[..], &[]] {
            let viewer = Viewer { user: &user, connection: ConnectionId(1), topics };
            for cursor in [0, 1, 100, 136, 150, 199, 200] {
                let sequences: Vec<_> = window.view(cursor, viewer).map(|e| e.sequence).collect();
                let expected: Vec<_> = (cursor + 1..=200).filter(|s| s % 3 != 2 || !topics.is_empty()).collect();
                assert_eq!(sequences, expected, "{cursor}");
                assert_eq!(window.count(cursor, viewer), expected.len());
            }
        }
    }

    #[test]
    fn a_client_resumes_at_its_cursor_or_behind_a_gap() {
        let window = window(Bounds { events: 5, ..WIDE }, 9);
        let gap = |reason, missed| Some(Gap { reason, missed });
        for (id, cursor, expected) in [
            ("e7", 7, None),
            ("pos-7-4", 4, None),
            ("pos-7-9", 9, None),
            ("pos-7-1", 4, gap(GapReason::Expired, Some(3))),
            ("pos-7-10", 9, gap(GapReason::Reset, None)),
            ("pos-8-6", 4, gap(GapReason::Reset, None)),
            ("e2", 4, gap(GapReason::Expired, None)),
            ("unknown", 4, gap(GapReason::Expired, None)),
        ] {
            assert_eq!(window.start(Some(id), UNTAGGED), ResumePoint { cursor, gap: expected, asked: true }, "{id}");
        }
        assert_eq!(window.start(None, UNTAGGED), ResumePoint { cursor: 9, gap: None, asked: false });
    }

    #[test]
    fn a_log_that_was_cut_continues_without_the_lost_entries() {
        let mut window = window(WIDE, 9);
        let mut lineage = window.lineage().clone();
        lineage.begin(8, 6, Loss::Nothing);
        window.adopt(lineage, 6);
        assert_eq!((window.head(), window.find("e6"), window.find("e7")), (6, Some(6), None));
        window.push(entry(7, 0, Audience::Everyone));
        let reset = Some(Gap { reason: GapReason::Reset, missed: None });
        for (id, cursor, gap) in
            [("pos-7-6", 6, None), ("pos-7-7", 6, reset), ("pos-8-7", 7, None), ("e7", 7, None), ("e8", 0, reset)]
        {
            assert_eq!(window.start(Some(id), UNTAGGED), ResumePoint { cursor, gap, asked: true }, "{id}");
        }
        let viewer = Viewer { user: &"ann".into(), connection: ConnectionId(1), topics: &["t".into()] };
        assert_eq!(window.count(0, viewer), 7);
    }

    #[test]
    fn a_cursor_of_a_republished_event_receives_a_gap_unless_the_connection_id_was_issued_after_the_loss() {
        let mut window = window(Bounds { events: 3, ids_ms: 50, ..WIDE }, 9);
        let mut lineage = window.lineage().clone();
        lineage.begin(8, 9, Loss::Events { began_ms: 100 });
        window.adopt(lineage, 9);
        for (sequence, appended_ms) in [(10, 101), (11, 150), (12, 151)] {
            window.push(entry(sequence, appended_ms, Audience::Everyone));
        }
        let issued_in = |epoch| ConnectionId(u128::from(crate::lineage::tag(epoch)) << 108 | 7);
        let reset = Some(Gap { reason: GapReason::Reset, missed: None });
        for (id, connection, cursor, gap) in [
            // The event at the floor.
            ("e9", UNTAGGED, 9, reset),
            ("e9", issued_in(8), 9, None),
            ("e11", UNTAGGED, 11, reset),
            ("e11", issued_in(7), 11, reset),
            ("e11", issued_in(8), 11, None),
            ("e12", UNTAGGED, 12, None),
            // The event may have been lost, or evicted before the loss.
            ("e1", UNTAGGED, 9, reset),
            ("e1", issued_in(7), 9, reset),
            ("e1", issued_in(8), 9, Some(Gap { reason: GapReason::Expired, missed: None })),
            ("pos-8-11", UNTAGGED, 11, None),
        ] {
            let start = window.start(Some(id), connection);
            assert_eq!(start, ResumePoint { cursor, gap, asked: true }, "{id} {connection}");
        }
    }

    #[test]
    fn a_cut_below_the_floor_leaves_an_empty_window() {
        let mut window = window(Bounds { events: 3, ..WIDE }, 9);
        window.adopt(Lineage::new(8), 4);
        assert_eq!((window.floor(), window.head(), window.len(), window.bytes()), (4, 4, 0, 0));
        assert!(window.ids.is_empty() && window.addressed.is_empty() && window.everyone.is_empty());
    }

    #[test]
    fn the_published_json_is_restored_from_a_frame_of_any_length() {
        for length in [0, 100, 125, 126, 65_535, 65_536] {
            let json = [&b"{\"a\":\""[..], &vec![b'x'; length], b"\"}"].concat();
            let entry = Entry::from_parts(PLACE, 0, Audience::Everyone, "e", &json);
            assert_eq!((entry.json_len(), entry.json()), (json.len(), json), "{length}");
        }
    }

    #[test]
    fn a_frame_ends_with_the_position_of_its_event() {
        let frame = |json: &str| {
            let entry = Entry::from_parts(PLACE, 0, Audience::Everyone, "e", json.as_bytes());
            (String::from_utf8(entry.payload().to_vec()).unwrap(), String::from_utf8(entry.json()).unwrap())
        };
        for (event, delivered) in [
            ("{}", r#"{"log_position":"pos-ab-7"}"#),
            (r#"{"type":"a"}"#, r#"{"type":"a","log_position":"pos-ab-7"}"#),
            // A string that looks like the field, and the field of a nested object, are part of the event.
            (
                r#"{"type":"a","t":",\"log_position\":\""}"#,
                r#"{"type":"a","t":",\"log_position\":\"","log_position":"pos-ab-7"}"#,
            ),
            (
                r#"{"type":"a","data":{"log_position":"x"}}"#,
                r#"{"type":"a","data":{"log_position":"x"},"log_position":"pos-ab-7"}"#,
            ),
        ] {
            assert_eq!(frame(event), (delivered.to_owned(), event.to_owned()));
        }
        let replaced = frame(r#"{"type":"a","log_position":"pos-1-1","z": 1}"#);
        assert_eq!(
            (&*replaced.0, &*replaced.1),
            (r#"{"type":"a","z":1,"log_position":"pos-ab-7"}"#, r#"{"type":"a","z":1}"#)
        );
    }

    #[test]
    fn an_unknown_event_id_in_a_log_without_evictions_belongs_to_another_log() {
        let start = window(WIDE, 3).start(Some("elsewhere"), UNTAGGED);
        assert_eq!((start.cursor, start.gap.unwrap().reason), (0, GapReason::Reset));
    }
}

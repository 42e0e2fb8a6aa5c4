//! The recent tail of the log in memory: every event as the bytes to send, and who it is for.
//!
//! Knows positions and audiences. Does not know who is connected, nor how entries come to it.

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

/// One event at its place in the log, encoded once for a whole node.
#[derive(Debug)]
pub struct Entry {
    /// Its place: dense, from 1 on.
    pub sequence: u64,
    /// When it was appended, in milliseconds since 1970-01-01T00:00:00Z.
    pub appended_ms: u64,
    /// Who it is for.
    pub audience: Audience,
    /// Its name.
    pub event_id: Box<str>,
    /// Its `type`; empty where it has none that can be read.
    pub event_type: Box<str>,
    /// The whole WebSocket frame: the event, and its place as the field `log_position` at its end.
    pub frame: Box<[u8]>,
    /// Who published it, as a text for people.
    pub publisher: Option<Arc<str>>,
    /// What its publish is traced as, as a text for whoever traces it.
    pub trace: Option<Arc<str>>,
    /// How many clients of this node it was written to.
    pub written: AtomicU32,
    /// How often clients of this node said that they have handled it.
    pub acknowledged: AtomicU32,
}

/// How much a window or a log in memory keeps. What comes first counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Events.
    pub events: usize,
    /// Bytes, as [`Entry::weight`] counts them.
    pub bytes: usize,
    /// Milliseconds since an event was appended.
    pub age_ms: u64,
    /// How many ids of events are known again, also when the events are no longer kept.
    pub ids: usize,
    /// For how many milliseconds an id is known again.
    pub ids_ms: u64,
}

/// Who a client is to the log: what it may see.
#[derive(Debug, Clone, Copy)]
pub struct Viewer<'a> {
    /// The user of its token.
    pub user: &'a Arc<str>,
    /// Its own name.
    pub connection: ConnectionId,
    /// What it subscribed to.
    pub topics: &'a [Arc<str>],
}

/// How far the clocks of two nodes may be apart.
const CLOCKS_DIFFER_MS: u64 = 60_000;

/// Why a cursor can't be continued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapReason {
    /// What came after it is no longer held.
    Expired,
    /// It is of another log.
    Reset,
}

impl GapReason {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Reset => "reset",
        }
    }
}

/// History that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// Why.
    pub reason: GapReason,
    /// How many events of the log lie between the cursor and the oldest that is held, whoever they were for; `None`
    /// where the cursor's place is not known.
    pub missed: Option<u64>,
}

/// Where a client starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResumePoint {
    /// The sequence up to which the client has been served.
    pub cursor: u64,
    /// What it must be told is missing before that.
    pub gap: Option<Gap>,
    /// It asked to go on from a place.
    pub asked: bool,
}

/// A node's recent tail of the log.
#[derive(Debug)]
pub struct Window {
    lineage: Lineage,
    /// The sequence before the first entry: the oldest cursor that can be served.
    floor: u64,
    /// The id of the event at the floor, and when it was appended, where it was held: who saw it last has missed
    /// nothing.
    floor_id: Option<(Box<str>, u64)>,
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    bounds: Bounds,
    hasher: foldhash::fast::RandomState,
    /// Sequences by the hash of their event's id; the entry itself has the id.
    ids: HashTable<u64>,
    everyone: VecDeque<u64>,
    addressed: HashMap<Audience, VecDeque<u64>, foldhash::fast::RandomState>,
}

/// Up to here a scan of each entry is cheaper than looking the audiences up.
const SCAN_AT_MOST: u64 = 64;

impl Entry {
    /// Encodes an event for its place, which its frame carries.
    pub fn new(place: Position, appended_ms: u64, audience: Audience, event: &Event) -> Self {
        Self::of_type(place, appended_ms, audience, event.event_id(), event.event_type(), event.json().as_bytes())
    }

    /// Encodes an event that was checked before it came into the log: its id and its JSON.
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
        // An older hub let publishers set the field.
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

    /// Notes who published it, and what that is traced as.
    #[must_use]
    pub fn by(self, publisher: Option<Arc<str>>, trace: Option<Arc<str>>) -> Self {
        Self { publisher, trace, ..self }
    }

    /// The event's JSON as it was published: without the frame's head, and without its place.
    pub fn json(&self) -> Vec<u8> {
        let (event, end) = self.json_parts();
        [event, end].concat()
    }

    /// How long the event's JSON is, in bytes.
    pub fn json_len(&self) -> usize {
        let (event, end) = self.json_parts();
        event.len() + end.len()
    }

    /// The event's JSON up to where its place was put, and its end.
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

    /// What a client reads: the frame without its head.
    pub fn payload(&self) -> &[u8] {
        // RFC 6455 section 5.2: the second byte of an unmasked frame is its length, or says how wide the length is.
        let head = match self.frame.get(1) {
            Some(126) => 4,
            Some(127) => 10,
            _ => 2,
        };
        self.frame.get(head..).unwrap_or_default()
    }

    /// What an entry costs in memory, in bytes: its frame, its texts and a fixed part for the indexes.
    pub fn weight(&self) -> usize {
        let length = |text: &Option<Arc<str>>| text.as_ref().map_or(0, |text| text.len());
        let texts = self.event_id.len() + self.event_type.len() + length(&self.publisher) + length(&self.trace);
        self.frame.len() + texts + 240
    }
}

impl Viewer<'_> {
    /// Whether the client may see what is for `audience`.
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
    /// An empty window of a log whose head is at `head`.
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

    /// The epoch of the log's newest entries.
    pub fn epoch(&self) -> u64 {
        self.lineage.current()
    }

    /// Which log this is the tail of.
    pub fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    /// Goes on as the tail of a log that holds of this window what lies up to `shared`, and nothing behind it.
    pub fn adopt(&mut self, lineage: Lineage, shared: u64) {
        self.lineage = lineage;
        while self.head() > shared && self.pop_newest() {}
        if self.head() > shared {
            self.jump(shared);
        }
    }

    /// Goes on behind `floor`, where what lies between is not to be had. Nothing is held then.
    pub fn jump(&mut self, floor: u64) {
        while self.pop_newest() {}
        (self.floor, self.floor_id) = (floor, None);
    }

    /// The sequence of the newest entry.
    pub fn head(&self) -> u64 {
        self.floor + self.entries.len() as u64
    }

    /// The oldest cursor that can be served: what came after it is all here.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// How many events are held.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no event is held.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many bytes are held, as [`Entry::weight`] counts them.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes the next entry, and lets go of what the bounds no longer allow.
    ///
    /// # Panics
    /// If the entry isn't the next one: a hole in the window would be a loss that nobody is told of.
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

    /// Lets go of what the bounds no longer allow at `unix_ms`.
    pub fn expire(&mut self, unix_ms: u64) {
        while let Some(oldest) = self.entries.front() {
            // The newest is kept however large it is, or it would be gone before anyone was served.
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

    /// Takes the newest entry back. Returns whether there was one.
    fn pop_newest(&mut self) -> bool {
        let Some(newest) = self.entries.pop_back() else { return false };
        self.forget(&newest, VecDeque::pop_back);
        true
    }

    /// Takes an entry, which stands at one end, out of the indexes.
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

    /// The place of an event, if it is held or was the last to go.
    pub fn find(&self, event_id: &str) -> Option<u64> {
        self.find_appended(event_id).map(|(sequence, _)| sequence)
    }

    /// The same, with the time at which it was appended.
    fn find_appended(&self, event_id: &str) -> Option<(u64, u64)> {
        let hash = self.hasher.hash_one(event_id);
        let held = self.ids.find(hash, |&s| &*self.entries[index(self.floor, s)].event_id == event_id);
        let held = held.map(|&sequence| (sequence, self.entries[index(self.floor, sequence)].appended_ms));
        let at_floor = || self.floor_id.as_ref().filter(|(id, _)| **id == *event_id).map(|(_, ms)| (self.floor, *ms));
        held.or_else(at_floor)
    }

    /// An event's entry, if it is held.
    pub fn get(&self, event_id: &str) -> Option<&Arc<Entry>> {
        self.find(event_id)
            .filter(|sequence| *sequence > self.floor)
            .and_then(|sequence| self.entries.get(index(self.floor, sequence)))
    }

    /// The newest entry up to a place that a client may see.
    pub fn last_seen(&self, until: u64, viewer: Viewer<'_>) -> Option<&Arc<Entry>> {
        let last = self.lists(viewer).filter_map(|list| {
            let at = list.partition_point(|&sequence| sequence <= until);
            list.get(at.checked_sub(1)?).copied()
        });
        last.max().and_then(|sequence| self.entries.get(index(self.floor, sequence)))
    }

    /// The entries behind a cursor, oldest first. The cursor must not lie before the [`floor`](Self::floor).
    pub fn since(&self, cursor: u64) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries
            .range(usize::try_from(cursor.saturating_sub(self.floor)).map_or(usize::MAX, |n| n.min(self.len()))..)
    }

    /// The entries behind a cursor that a client may see, oldest first.
    pub fn view<'a>(&'a self, cursor: u64, viewer: Viewer<'a>) -> impl Iterator<Item = &'a Arc<Entry>> {
        let near = self.head().saturating_sub(cursor) <= SCAN_AT_MOST;
        let scan = near.then(|| self.since(cursor).filter(move |entry| viewer.sees(&entry.audience)));
        let merge = (!near).then(|| self.merge(cursor, viewer));
        scan.into_iter().flatten().chain(merge.into_iter().flatten())
    }

    /// Walks the lists of the audiences a client belongs to, always the one whose next entry is the oldest.
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

    /// How many entries behind a cursor a client may see.
    pub fn count(&self, cursor: u64, viewer: Viewer<'_>) -> usize {
        self.lists(viewer).map(|list| list.len() - list.partition_point(|&s| s <= cursor)).sum()
    }

    fn lists<'a>(&'a self, viewer: Viewer<'a>) -> impl Iterator<Item = &'a VecDeque<u64>> {
        let own = [Audience::User(viewer.user.clone()), Audience::Connection(viewer.connection)];
        let topics = viewer.topics.iter().map(|topic| Audience::Topic(topic.clone()));
        let addressed = own.into_iter().chain(topics).filter_map(|audience| self.addressed.get(&audience));
        std::iter::once(&self.everyone).chain(addressed)
    }

    /// Where a client starts that names the last `event_id` it saw: an event's, or the text form of a position.
    ///
    /// An event that is not held lies before all that is held, so its client goes on from the oldest entry and is
    /// told of the gap. The same holds for a position of another log: to that client all of this log is new. An event
    /// that was published again after a loss may stand at another place than the one where the client saw it: unless
    /// the name of its connection was given after the loss, it goes on from there behind a gap.
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
                // A log that never let go of anything can't have held the event, and one that lost some may have: then the client has seen
                // what this log never had, and perhaps all that is held.
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

    /// Where a client goes on whose cursor, as it was a place of the roster's `epoch`, is no longer what it was.
    pub(crate) fn restart(&self, position: Position) -> Option<ResumePoint> {
        match self.lineage.place(position, self.head()) {
            Place::At(_) => None,
            Place::Broken(sequence) => Some(self.start_behind_gap(sequence, GapReason::Reset)),
            Place::Unknown => Some(self.start_behind_gap(self.floor, GapReason::Reset)),
        }
    }

    /// The same start without what is held behind its gap: the client goes on at the head.
    pub fn without_replay(&self, start: ResumePoint) -> ResumePoint {
        let skipped = self.head().saturating_sub(start.cursor);
        let gap = start.gap.map(|gap| Gap { missed: gap.missed.map(|missed| missed + skipped), ..gap });
        ResumePoint { cursor: start.cursor.max(self.head()), gap, ..start }
    }

    /// The same start, not before what was appended at `unix_ms`: what is older is not for the client, and counts as a
    /// gap.
    pub fn not_before(&self, start: ResumePoint, unix_ms: u64) -> ResumePoint {
        let behind = usize::try_from(start.cursor.saturating_sub(self.floor)).unwrap_or(usize::MAX);
        let entries = || self.entries.iter().skip(behind);
        // Nodes append with clocks that differ a little, so that times need not be in order.
        let may_be_older = |entry: &Arc<Entry>| entry.appended_ms < unix_ms.saturating_add(CLOCKS_DIFFER_MS);
        if !entries().next().is_some_and(may_be_older) {
            return start;
        }
        let Some(older) = entries().rev().find(|entry| entry.appended_ms < unix_ms) else { return start };
        let skipped = older.sequence - start.cursor;
        let missed = start.gap.map_or(Some(0), |gap| gap.missed).map(|missed| missed + skipped);
        let reason = start.gap.map_or(GapReason::Expired, |gap| gap.reason);
        ResumePoint { cursor: older.sequence, gap: Some(Gap { reason, missed }), ..start }
    }

    /// How many bytes of frames behind a cursor a client may see.
    pub fn bytes_behind(&self, cursor: u64, viewer: Viewer<'_>) -> usize {
        self.view(cursor, viewer).map(|entry| entry.frame.len()).sum()
    }

    fn start_behind_gap(&self, cursor: u64, reason: GapReason) -> ResumePoint {
        ResumePoint { cursor: cursor.max(self.floor), gap: Some(Gap { reason, missed: None }), asked: true }
    }

    /// Where a client goes on that has been served up to `cursor` of this log.
    pub fn continue_from(&self, cursor: u64) -> ResumePoint {
        let missed = self.floor.saturating_sub(cursor);
        let gap = (missed > 0).then_some(Gap { reason: GapReason::Expired, missed: Some(missed) });
        ResumePoint { cursor: cursor.max(self.floor), gap, asked: true }
    }
}

/// The field of an event's place, up to its value. It is the last of a frame, and text in an event has its quotes
/// escaped.
const FIELD: &[u8] = br#""log_position":""#;

/// The frame of an event, with its place as the last field.
fn encode(json: &[u8], place: Position) -> Box<[u8]> {
    let Some(event) = json.trim_ascii_end().strip_suffix(b"}") else {
        return ws::frame(ws::Opcode::Text, &[json]);
    };
    let comma: &[u8] = if event.trim_ascii_end() == b"{" { b"" } else { b"," };
    ws::frame(ws::Opcode::Text, &[event, comma, FIELD, place.to_string().as_bytes(), b"\"}"])
}

/// Where the entry of a sequence stands in a queue whose first entry comes right after `floor`.
fn index(floor: u64, sequence: u64) -> usize {
    usize::try_from(sequence - floor - 1).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Draft, lineage::Loss};

    const PLACE: Position = Position { epoch: 0xab, sequence: 7 };

    const WIDE: Bounds = Bounds { events: 1_000, bytes: 1 << 20, age_ms: 1_000_000, ids: 1_000, ids_ms: 1_000_000 };

    const NAMELESS: ConnectionId = ConnectionId(0);

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
    fn each_bound_lets_the_oldest_go() {
        let weight = entry(1, 0, Audience::Everyone).weight();
        for bounds in [Bounds { events: 5, ..WIDE }, Bounds { bytes: 5 * weight, ..WIDE }, Bounds { age_ms: 4, ..WIDE }]
        {
            let window = window(bounds, 9);
            assert_eq!((window.len(), window.floor(), window.head()), (5, 4, 9), "{bounds:?}");
            assert_eq!((window.find("e3"), window.find("e4"), window.find("e5")), (None, Some(4), Some(5)));
        }
    }

    #[test]
    fn the_newest_is_kept_however_large_it_is() {
        let window = window(Bounds { bytes: 1, ..WIDE }, 9);
        assert_eq!((window.len(), window.find("e9")), (1, Some(9)));
    }

    #[test]
    fn time_alone_empties_it() {
        let mut window = window(WIDE, 9);
        window.expire(2_000_000);
        assert!(window.is_empty() && window.bytes() == 0 && window.addressed.is_empty() && window.ids.is_empty());
        assert_eq!((window.floor(), window.head()), (9, 9));
    }

    // attack: replay from before the account was made => the cursor moves to its beginning, behind a gap
    #[test]
    fn a_start_is_not_before_a_time() {
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
            let start = window.not_before(window.start(last, NAMELESS), unix_ms);
            assert_eq!((start.cursor, start.gap), (cursor, missed), "{last:?} {unix_ms}");
        }
        let mut far_later = window;
        far_later.push(entry(10, 1_000_000, Audience::Everyone));
        let start = far_later.start(Some("e9"), NAMELESS);
        assert_eq!(far_later.not_before(start, 1_000_000), start, "nothing behind it is older");
    }

    #[test]
    fn near_and_far_cursors_see_the_same() {
        let window = window(WIDE, 200);
        let (user, topics): (Arc<str>, _) = ("ann".into(), ["t".into()]);
        for topics in [&topics[..], &[]] {
            let viewer = Viewer { user: &user, connection: ConnectionId(1), topics };
            for cursor in [0, 1, 100, 136, 150, 199, 200] {
                let seen: Vec<_> = window.view(cursor, viewer).map(|e| e.sequence).collect();
                let expected: Vec<_> = (cursor + 1..=200).filter(|s| s % 3 != 2 || !topics.is_empty()).collect();
                assert_eq!(seen, expected, "{cursor}");
                assert_eq!(window.count(cursor, viewer), expected.len());
            }
        }
    }

    #[test]
    fn a_client_starts_where_it_was() {
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
            assert_eq!(window.start(Some(id), NAMELESS), ResumePoint { cursor, gap: expected, asked: true }, "{id}");
        }
        assert_eq!(window.start(None, NAMELESS), ResumePoint { cursor: 9, gap: None, asked: false });
    }

    #[test]
    fn a_log_that_was_cut_short_goes_on_without_what_it_lost() {
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
            assert_eq!(window.start(Some(id), NAMELESS), ResumePoint { cursor, gap, asked: true }, "{id}");
        }
        let viewer = Viewer { user: &"ann".into(), connection: ConnectionId(1), topics: &["t".into()] };
        assert_eq!(window.count(0, viewer), 7);
    }

    #[test]
    fn an_event_that_was_published_again_after_a_loss_is_doubtful_for_those_who_may_have_seen_it_before() {
        let mut window = window(Bounds { events: 3, ids_ms: 50, ..WIDE }, 9);
        let mut lineage = window.lineage().clone();
        lineage.begin(8, 9, Loss::Events { began_ms: 100 });
        window.adopt(lineage, 9);
        for (sequence, appended_ms) in [(10, 101), (11, 150), (12, 151)] {
            window.push(entry(sequence, appended_ms, Audience::Everyone));
        }
        let named = |epoch| ConnectionId(u128::from(crate::lineage::tag(epoch)) << 108 | 7);
        let reset = Some(Gap { reason: GapReason::Reset, missed: None });
        for (id, connection, cursor, gap) in [
            // The one at the floor, too.
            ("e9", NAMELESS, 9, reset),
            ("e9", named(8), 9, None),
            ("e11", NAMELESS, 11, reset),
            ("e11", named(7), 11, reset),
            ("e11", named(8), 11, None),
            ("e12", NAMELESS, 12, None),
            // It may have been lost, or evicted before that.
            ("e1", NAMELESS, 9, reset),
            ("e1", named(7), 9, reset),
            ("e1", named(8), 9, Some(Gap { reason: GapReason::Expired, missed: None })),
            ("pos-8-11", NAMELESS, 11, None),
        ] {
            let start = window.start(Some(id), connection);
            assert_eq!(start, ResumePoint { cursor, gap, asked: true }, "{id} {connection}");
        }
    }

    #[test]
    fn a_cut_below_the_floor_leaves_nothing() {
        let mut window = window(Bounds { events: 3, ..WIDE }, 9);
        window.adopt(Lineage::new(8), 4);
        assert_eq!((window.floor(), window.head(), window.len(), window.bytes()), (4, 4, 0, 0));
        assert!(window.ids.is_empty() && window.addressed.is_empty() && window.everyone.is_empty());
    }

    #[test]
    fn the_json_is_found_again_in_a_frame_of_any_length() {
        for length in [0, 100, 125, 126, 65_535, 65_536] {
            let json = [&b"{\"a\":\""[..], &vec![b'x'; length], b"\"}"].concat();
            let entry = Entry::from_parts(PLACE, 0, Audience::Everyone, "e", &json);
            assert_eq!((entry.json_len(), entry.json()), (json.len(), json), "{length}");
        }
    }

    #[test]
    fn a_frame_ends_with_its_place() {
        let frame = |json: &str| {
            let entry = Entry::from_parts(PLACE, 0, Audience::Everyone, "e", json.as_bytes());
            (String::from_utf8(entry.payload().to_vec()).unwrap(), String::from_utf8(entry.json()).unwrap())
        };
        for (event, delivered) in [
            ("{}", r#"{"log_position":"pos-ab-7"}"#),
            (r#"{"type":"a"}"#, r#"{"type":"a","log_position":"pos-ab-7"}"#),
            // Text that looks like the field, and the field of an inner object, are the event's own.
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
        let twice = frame(r#"{"type":"a","log_position":"pos-1-1","z": 1}"#);
        assert_eq!(
            (&*twice.0, &*twice.1),
            (r#"{"type":"a","z":1,"log_position":"pos-ab-7"}"#, r#"{"type":"a","z":1}"#)
        );
    }

    #[test]
    fn an_unknown_id_in_a_log_that_is_whole_is_of_another_log() {
        let start = window(WIDE, 3).start(Some("elsewhere"), NAMELESS);
        assert_eq!((start.cursor, start.gap.unwrap().reason), (0, GapReason::Reset));
    }
}

//! One client of the load without I/O: parses frames, checks that each event arrives once and in order, and tracks its
//! cursor.

use super::{
    frame,
    plan::Kind,
    tally::{Stream, Tally},
};
use fanfare::{ConnectionId, Position};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, fmt::Write};

/// The type of the load's events.
pub(crate) const TYPE: &str = "bench";

/// The `data` of the load's events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Payload<'a> {
    /// The run that the event belongs to.
    pub(crate) run: u64,
    pub(crate) stream: Stream,
    /// Its number in the stream, from 1.
    pub(crate) n: u32,
    /// When it was published, in microseconds since 1970-01-01T00:00:00Z.
    pub(crate) at: u64,
    #[serde(borrow)]
    pub(crate) pad: Cow<'a, str>,
}

/// The `event_id` of an event of the load.
pub(crate) fn event_id(run: u64, stream: Stream, n: u32) -> String {
    format!("bench-{run:x}-{}-{}-{n}", stream.kind.name(), stream.index)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Without a socket.
    Away,
    /// In the upgrade handshake.
    Upgrading,
    /// Waiting for the `ack`.
    Joining,
    Live,
}

/// Its cursor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Nowhere,
    Position(Position),
    Event(Stream, u32),
    /// An event of another publisher.
    Other(Box<str>),
}

/// Its progress in one stream.
#[derive(Debug, Clone, Copy, Default)]
struct Line {
    last: u32,
    /// Events that were skipped and may still arrive.
    missing: u32,
}

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) phase: Phase,
    /// The beginning of a frame that is not complete yet.
    pub(crate) rest: Vec<u8>,
    /// The streams of everyone, of its topic and of its user, in the order of [`Kind::ALL`].
    streams: [Stream; 3],
    lines: [Line; 3],
    place: Place,
    connection: Option<ConnectionId>,
    /// When the attempt began and when the `ack` arrived, in microseconds since 1970-01-01T00:00:00Z.
    pub(crate) began_us: u64,
    live_us: u64,
    /// Whether it was connected before, and resumes.
    pub(crate) back: bool,
    /// Whether the next event of a stream may have any number, because events were published before.
    late: bool,
    slow: bool,
}

/// An action that the caller must perform.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Send a frame.
    Send(Vec<u8>),
    /// The client is live.
    Joined,
}

/// The cause of the end of a connection, in words by which ends are counted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) why: String,
    /// The hub requested a reconnect after this time.
    pub(crate) back_after_ms: Option<u64>,
}

/// Parses frames. An event that many clients of a process receive is parsed once.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    run: u64,
    /// The last frame and its content.
    last: Option<(Box<[u8]>, Read)>,
}

#[derive(Debug, Clone)]
enum Read {
    Event { stream: Stream, n: u32, at: u64, place: Place },
    Foreign(Place),
    Own(Box<str>),
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow, default)]
    event_id: Cow<'a, str>,
    #[serde(borrow, default)]
    log_position: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow)]
    data: Payload<'a>,
}

#[derive(Deserialize)]
struct Own {
    event_id: Option<String>,
    connection_id: Option<String>,
    error: Option<String>,
    reconnect_after_ms: Option<u64>,
}

impl Reader {
    pub(crate) fn new(run: u64) -> Self {
        Self { run, last: None }
    }

    fn read(&mut self, text: &[u8]) -> Result<Read, Ended> {
        if let Some((known, read)) = &self.last
            && **known == *text
        {
            return Ok(read.clone());
        }
        let bad = |error: serde_json::Error| ended(format!("a message that is not of the protocol: {error}"));
        let head: Head<'_> = serde_json::from_slice(text).map_err(bad)?;
        let read = match &*head.r#type {
            TYPE => {
                let Payload { run, stream, n, at, .. } = serde_json::from_slice::<Event<'_>>(text).map_err(bad)?.data;
                if run == self.run {
                    Read::Event { stream, n, at, place: head.place(Place::Event(stream, n)) }
                } else {
                    Read::Foreign(head.foreign_place())
                }
            }
            "ack" | "ping" | "pong" | "error" | "gap" | "goaway" | "auth_expiring" => {
                return Ok(Read::Own(head.r#type.into()));
            }
            _ => Read::Foreign(head.foreign_place()),
        };
        self.last = Some((text.into(), read.clone()));
        Ok(read)
    }
}

impl Head<'_> {
    /// The cursor after the frame, or `otherwise` if the hub does not send it.
    fn place(&self, otherwise: Place) -> Place {
        self.log_position.parse().map_or(otherwise, Place::Position)
    }

    fn foreign_place(&self) -> Place {
        self.place(Place::Other((&*self.event_id).into()))
    }
}

impl Client {
    pub(crate) fn new(topic: u64, user: u64, slow: bool) -> Self {
        let streams = [(Kind::Everyone, 0), (Kind::Topic, topic), (Kind::User, user)];
        Self {
            phase: Phase::Away,
            rest: Vec::new(),
            streams: streams.map(|(kind, index)| Stream { kind, index }),
            lines: [Line::default(); 3],
            place: Place::Nowhere,
            connection: None,
            began_us: 0,
            live_us: 0,
            back: false,
            late: false,
            slow,
        }
    }

    /// Begins a new attempt.
    pub(crate) fn begin(&mut self, now_us: u64) {
        self.phase = Phase::Upgrading;
        self.began_us = now_us;
        self.rest = Vec::new();
    }

    /// Records that events are published before its first connect.
    pub(crate) fn connects_late(&mut self) {
        if self.connection.is_none() {
            self.late = true;
        }
    }

    /// The request for an upgrade, at the path and host of the hub.
    pub(crate) fn request(&self, run: u64, path: &str, host: &str, token: &str, topics: bool) -> Vec<u8> {
        let mut request = format!("GET {path}?");
        if topics {
            let _ = write!(request, "&topics={}", topic_name(self.streams[1].index));
        }
        // Writing to a string never fails.
        if let Some(connection) = &self.connection {
            let _ = write!(request, "&connection_id={connection}");
        }
        let place = match &self.place {
            Place::Nowhere => None,
            Place::Position(position) => Some(position.to_string()),
            Place::Event(stream, n) => Some(event_id(run, *stream, *n)),
            Place::Other(id) => Some(form_urlencoded::byte_serialize(id.as_bytes()).collect()),
        };
        if let Some(place) = place {
            let _ = write!(request, "&last_event_id={place}");
        }
        let _ = write!(
            request,
            " HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nUpgrade: websocket\r\nConnection: \
             Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        request.into_bytes()
    }

    /// Handles the complete frames in `bytes` and returns their length. Adds actions for the caller to `needs`.
    ///
    /// # Errors
    /// If the connection has ended, or the bytes are not what a hub sends.
    pub(crate) fn take(
        &mut self,
        bytes: &[u8],
        now_us: u64,
        reader: &mut Reader,
        tally: &mut Tally,
        needs: &mut Vec<Need>,
    ) -> Result<usize, Ended> {
        let mut used = 0;
        if self.phase == Phase::Upgrading {
            let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(0) };
            upgraded(&bytes[..end])?;
            self.phase = Phase::Joining;
            used = end + 4;
        }
        while let Some(frame) = frame::parse(&bytes[used..]).map_err(|bad| ended(bad.to_string()))? {
            used += frame.length;
            tally.bytes += frame.length as u64;
            match frame.opcode {
                frame::TEXT => self.text(frame.payload, now_us, reader, tally, needs)?,
                frame::CLOSE => return Err(closed(frame.payload)),
                frame::PING => needs.push(Need::Send(frame::masked(frame::PONG, frame.payload))),
                _ => {}
            }
        }
        Ok(used)
    }

    fn text(
        &mut self,
        text: &[u8],
        now_us: u64,
        reader: &mut Reader,
        tally: &mut Tally,
        needs: &mut Vec<Need>,
    ) -> Result<(), Ended> {
        match reader.read(text)? {
            Read::Event { stream, n, at, place } => {
                self.place = place;
                self.event(stream, n, at, now_us, tally);
            }
            Read::Foreign(place) => self.place = place,
            Read::Own(kind) => {
                let bad = |error: serde_json::Error| ended(format!("a message that is not of the protocol: {error}"));
                let own: Own = serde_json::from_slice(text).map_err(bad)?;
                if let Some(position) = own.event_id.as_deref().and_then(|id| id.parse().ok()) {
                    self.place = Place::Position(position);
                }
                match &*kind {
                    "ack" if self.phase == Phase::Joining => self.joined(&own, now_us, tally, needs),
                    "ping" => {
                        tally.pings += 1;
                        needs.push(Need::Send(frame::masked(frame::TEXT, br#"{"type":"pong"}"#)));
                    }
                    "gap" => self.gap(tally),
                    "error" => tally.error(format!("error {}", own.error.unwrap_or_default())),
                    "goaway" => {
                        return Err(Ended {
                            why: "goaway".to_owned(),
                            back_after_ms: Some(own.reconnect_after_ms.unwrap_or(0)),
                        });
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn joined(&mut self, own: &Own, now_us: u64, tally: &mut Tally, needs: &mut Vec<Need>) {
        self.phase = Phase::Live;
        self.live_us = now_us;
        let times = if self.back { &mut tally.resumes } else { &mut tally.connects };
        times.add(now_us.saturating_sub(self.began_us));
        if let Some(connection) = own.connection_id.as_deref().and_then(|id| id.parse().ok()) {
            self.connection = Some(connection);
        }
        self.back = true;
        needs.push(Need::Joined);
    }

    /// Handles a gap. Missing events are announced by it, so the next event may have any number.
    fn gap(&mut self, tally: &mut Tally) {
        tally.gaps += 1;
        self.late = true;
    }

    fn event(&mut self, stream: Stream, n: u32, at: u64, now_us: u64, tally: &mut Tally) {
        let Some(line) = self.streams.iter().position(|own| *own == stream).map(|at| &mut self.lines[at]) else {
            return tally.error("an event for another audience");
        };
        tally.deliveries += 1;
        if n <= line.last {
            if line.missing > 0 {
                line.missing -= 1;
                tally.lost -= 1;
                tally.reordered += 1;
            } else {
                tally.doubled += 1;
            }
            return;
        }
        let missing = n - line.last - 1;
        if self.late {
            tally.told += u64::from(missing) * u64::from(line.last > 0);
        } else {
            line.missing += missing;
            tally.lost += u64::from(missing);
        }
        line.last = n;
        if at < self.live_us {
            tally.replayed += 1;
        } else if !self.slow {
            let us = now_us.saturating_sub(at);
            tally.latency.add(us);
            tally.recent.add(us);
            if stream.kind != Kind::User {
                tally.merge_spread([((stream, n), (us, 1))]);
            }
        }
    }

    /// Number of outstanding events, given the totals of the streams.
    pub(crate) fn due(&self, total: impl Fn(Stream) -> u32) -> u64 {
        // A client that never connected has lost nothing; it is counted as absent.
        if self.connection.is_none() && !self.back {
            return 0;
        }
        let due = |at: usize| {
            let (stream, Line { last, .. }) = (self.streams[at], self.lines[at]);
            // After a late connect it is unknown which events of an unseen stream were due.
            if self.late && last == 0 { 0 } else { u64::from(total(stream).saturating_sub(last)) }
        };
        (0..3).map(due).sum()
    }
}

/// The name of a topic of the load.
pub(crate) fn topic_name(index: u64) -> String {
    format!("bench:{index}")
}

fn ended(why: impl Into<String>) -> Ended {
    Ended { why: why.into(), back_after_ms: None }
}

fn closed(payload: &[u8]) -> Ended {
    let Some((&[high, low], reason)) = payload.split_first_chunk() else { return ended("closed without a code") };
    let reason = String::from_utf8_lossy(reason);
    // The part before the colon is a code; the rest may differ between connections.
    let word = reason.split(':').next().unwrap_or_default();
    ended(format!("closed {} {word}", u16::from_be_bytes([high, low])).trim_end())
}

fn upgraded(head: &[u8]) -> Result<(), Ended> {
    let head = String::from_utf8_lossy(head);
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    if status == "101" { Ok(()) } else { Err(ended(format!("HTTP status {status}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: u64 = 0xab;
    const EVERYONE: Stream = Stream { kind: Kind::Everyone, index: 0 };
    const ACK: &str =
        r#"{"type":"ack","event_id":"pos-1-4","timestamp":"","connection_id":"00000000-0000-0000-0000-000000000001"}"#;

    struct Subject {
        client: Client,
        reader: Reader,
        tally: Tally,
        needs: Vec<Need>,
    }

    impl Subject {
        fn live() -> Self {
            let mut subject = Self {
                client: Client::new(3, 7, false),
                reader: Reader::new(RUN),
                tally: Tally::default(),
                needs: vec![],
            };
            subject.client.begin(100);
            let upgrade = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";
            assert_eq!(subject.bytes(&upgrade[..20], 200), Ok(0));
            assert_eq!(subject.bytes(upgrade, 200), Ok(upgrade.len()));
            subject.says(ACK, 350).unwrap();
            assert_eq!((subject.needs.as_slice(), subject.client.phase), (&[Need::Joined][..], Phase::Live));
            subject
        }

        fn bytes(&mut self, bytes: &[u8], now_us: u64) -> Result<usize, Ended> {
            let Self { client, reader, tally, needs } = self;
            client.take(bytes, now_us, reader, tally, needs)
        }

        fn says(&mut self, text: &str, now_us: u64) -> Result<usize, Ended> {
            self.bytes(&frame::unmasked(frame::TEXT, text.as_bytes()), now_us)
        }

        fn event(&mut self, stream: Stream, n: u32, at: u64) {
            let data = Payload { run: RUN, stream, n, at, pad: "x".into() };
            let id = event_id(RUN, stream, n);
            let text = serde_json::json!({"type": TYPE, "event_id": id, "timestamp": "", "data": data}).to_string();
            self.says(&text, at + 50).unwrap();
        }
    }

    #[test]
    fn events_are_counted_by_stream() {
        let mut subject = Subject::live();
        for n in 1..=3 {
            subject.event(EVERYONE, n, 1_000);
            subject.event(Stream { kind: Kind::User, index: 7 }, n, 1_000);
        }
        assert_eq!((subject.tally.deliveries, subject.tally.lost, subject.tally.latency.max()), (6, 0, 50));
        assert_eq!((subject.tally.spread.len(), subject.tally.connects.max()), (3, 250));
        assert_eq!(subject.client.due(|stream| if stream.kind == Kind::Topic { 2 } else { 4 }), 1 + 2 + 1);
        subject.event(Stream { kind: Kind::User, index: 8 }, 1, 1_000);
        assert_eq!(subject.tally.errors["an event for another audience"], 1);
    }

    #[test]
    fn what_is_lost_doubled_or_late_is_told_apart() {
        let mut subject = Subject::live();
        let counts = |subject: &Subject| (subject.tally.lost, subject.tally.doubled, subject.tally.reordered);
        subject.event(EVERYONE, 1, 1_000);
        subject.event(EVERYONE, 4, 1_000);
        assert_eq!(counts(&subject), (2, 0, 0));
        subject.event(EVERYONE, 2, 1_000);
        assert_eq!(counts(&subject), (1, 0, 1));
        subject.event(EVERYONE, 3, 1_000);
        subject.event(EVERYONE, 3, 1_000);
        assert_eq!(counts(&subject), (0, 1, 2));
        subject.says(r#"{"type":"gap","event_id":"pos-1-9","timestamp":"","reason":"expired"}"#, 0).unwrap();
        subject.event(EVERYONE, 9, 1_000);
        assert_eq!((counts(&subject), subject.tally.gaps, subject.tally.told), ((0, 1, 2), 1, 4));
    }

    #[test]
    fn who_connects_late_begins_anywhere() {
        let mut subject = Subject::live();
        subject.client.connection = None;
        subject.client.connects_late();
        subject.event(EVERYONE, 5, 1_000);
        assert_eq!((subject.tally.lost, subject.tally.told), (0, 0));
    }

    #[test]
    fn it_comes_back_to_where_it_was() {
        let mut subject = Subject::live();
        let request =
            |subject: &Subject| String::from_utf8(subject.client.request(RUN, "/ws", "h", "t", true)).unwrap();
        assert!(request(&subject).starts_with(
            "GET /ws?&topics=bench:3&connection_id=00000000-0000-0000-0000-000000000001&last_event_id=pos-1-4 \
             HTTP/1.1\r\n"
        ));
        subject.event(EVERYONE, 1, 1_000);
        assert!(request(&subject).contains("last_event_id=bench-ab-everyone-0-1 "), "{}", request(&subject));
        subject.says(r#"{"type":"note","event_id":"a b","timestamp":"","data":{}}"#, 0).unwrap();
        assert!(request(&subject).contains("last_event_id=a+b "), "{}", request(&subject));
        let placed = r#"{"type":"note","event_id":"n","timestamp":"","data":{},"log_position":"pos-1-6"}"#;
        subject.says(placed, 0).unwrap();
        assert!(request(&subject).contains("last_event_id=pos-1-6 "), "{}", request(&subject));
        subject.client.begin(2_000);
        subject.bytes(b"HTTP/1.1 101 x\r\n\r\n", 2_100).unwrap();
        subject.says(ACK, 2_500).unwrap();
        assert_eq!((subject.tally.connects.count(), subject.tally.resumes.max()), (1, 500));
        subject.event(EVERYONE, 2, 2_200);
        assert_eq!((subject.tally.replayed, subject.tally.latency.count()), (1, 1));
    }

    #[test]
    fn ends_are_named_so_that_they_can_be_counted() {
        let mut subject = Subject::live();
        let close = [&1013_u16.to_be_bytes()[..], b"max_connections: the hub is full"].concat();
        let why = |result: Result<usize, Ended>| result.unwrap_err().why;
        assert_eq!(why(subject.bytes(&frame::unmasked(frame::CLOSE, &close), 0)), "closed 1013 max_connections");
        let goaway = subject.says(r#"{"type":"goaway","event_id":"pos-1-9","reconnect_after_ms":30}"#, 0).unwrap_err();
        assert_eq!(goaway, Ended { why: "goaway".to_owned(), back_after_ms: Some(30) });
        subject.client.begin(0);
        assert_eq!(why(subject.bytes(b"HTTP/1.1 429 Too Many Requests\r\n\r\n", 0)), "HTTP status 429");
    }
}

//! The session of one client as a state machine: its identity, its topics, its cursor and its pending output.
//!
//! A session knows no socket and no clock. Received bytes and the time are arguments. Output is offered to a sink,
//! which returns the number of bytes that it accepted.

use crate::{
    CloseCode, ConnectionId, Grant, Position, Revocation,
    audience::{MAX_TOPIC_BYTES, OWN_TOPICS, TopicError, check_topic},
    time::Now,
    window::{Entry, ResumePoint, Viewer},
    wire::{self, Ack, ErrorFrame, Incoming, Outgoing, RejectedMessage},
    ws,
};
use smallvec::SmallVec;
use std::{io::IoSlice, ops::ControlFlow, sync::Arc};

/// Maximum number of events in one write. Pending output is one slice more.
pub const MAX_SLICES: usize = 63;

/// Approximate number of bytes that a session may send in one turn.
pub const MAX_TURN_BYTES: usize = 256 << 10;

/// Number of bytes of pending output beyond which no more input is read from the client.
const MAX_PENDING_BYTES: usize = 16 << 10;

/// How long a rejected client may take to answer its close, in milliseconds. A flood of rejected clients must not
/// occupy sockets for longer.
const REJECTED_CLOSE_MS: u64 = 2_000;

/// Settings of all sessions of a hub.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Milliseconds between pings.
    pub heartbeat_ms: u64,
    /// Milliseconds of silence after which a client is closed.
    pub timeout_ms: u64,
    /// Milliseconds that a client may take to answer a close.
    pub close_ms: u64,
    /// Limits on the size of frames and messages from clients.
    pub limits: ws::Limits,
    /// Average number of frames that a client may send a second. Twice as many are allowed in a burst. 0: no limit.
    pub frames_per_second: u32,
    /// Maximum number of topics of a client.
    pub max_topics: usize,
    /// Milliseconds before the expiry of its token at which a client receives `auth_expiring`. If the token has less
    /// than twice that time left, half of the time left is used.
    pub warn_ms: u64,
    /// For conformance tests: echo each text or binary message instead of interpreting it.
    pub echo: bool,
}

/// Counters of sessions. The driver adds them to its metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SessionCounters {
    /// Events written to a sink.
    pub deliveries: u64,
    /// Bytes written to a sink.
    pub bytes_sent: u64,
    /// Bytes received.
    pub bytes_received: u64,
    /// Messages received.
    pub messages: u64,
    /// Messages answered with an error.
    pub bad_messages: u64,
    /// Pings sent.
    pub pings: u64,
    /// Gaps with the reason `expired`.
    pub gaps_expired: u64,
    /// Gaps with the reason `reset`.
    pub gaps_reset: u64,
    /// Topics rejected because the client had too many.
    pub limit_topics: u64,
    /// Clients closed because they sent too many frames a second.
    pub limit_frames: u64,
    /// Clients closed because a frame or message was too large.
    pub limit_bytes: u64,
    /// Topics that the token does not allow, and tokens of another user.
    pub forbidden: u64,
    /// Sent `auth_expiring` messages.
    pub tokens_expiring: u64,
    /// Clients closed because their token expired.
    pub tokens_expired: u64,
    /// Round trip times from a ping to its pong.
    pub round_trips: RoundTrips,
}

/// A histogram of round trip times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RoundTrips {
    /// Counts by bucket. The upper bounds are [`ROUND_TRIP_MS`], inclusive; the last bucket has no upper bound.
    pub counts: [u32; ROUND_TRIP_MS.len() + 1],
    /// Sum of all round trip times, in milliseconds.
    pub sum_ms: u64,
}

/// Upper bounds of the buckets of [`RoundTrips`], in milliseconds.
pub const ROUND_TRIP_MS: [u64; 11] = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 5_000];

impl RoundTrips {
    fn add(&mut self, ms: u64) {
        let bucket = ROUND_TRIP_MS.partition_point(|bound| *bound < ms);
        self.counts[bucket] += 1;
        self.sum_ms += ms;
    }
}

/// Why a token from an `auth` message was rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// The error code.
    pub code: &'static str,
    /// The cause as a sentence.
    pub message: String,
}

/// The environment of a session for one input.
#[expect(missing_debug_implementations, reason = "it borrows a function")]
pub struct Context<'a> {
    /// The time of the input.
    pub now: Now,
    /// The settings of all sessions.
    pub settings: &'a Settings,
    /// The head of the log that this shard has taken.
    pub head: Position,
    /// The duration of a recent pause of the driver, in milliseconds; 0 if there was none recently.
    pub paused_ms: u64,
    /// Verifies a token from an `auth` message.
    pub verify: &'a dyn Fn(&str) -> Result<Grant, Denied>,
    /// The counters.
    pub tally: &'a mut SessionCounters,
}

/// A change by an input that affects more than the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The session subscribed to a topic.
    Subscribed(Arc<str>),
    /// The session unsubscribed from a topic, or lost it with a newer token.
    Unsubscribed(Arc<str>),
    /// The client acknowledged the event with this `event_id`.
    Acknowledged(Box<str>),
}

/// An authenticated request to open a session.
#[derive(Debug, Clone)]
pub struct ConnectRequest {
    /// The permissions of the client's token.
    pub grant: Grant,
    /// The connection ID.
    pub connection: ConnectionId,
    /// The requested topics that are accepted.
    pub topics: Vec<Arc<str>>,
    /// The requested topics that are rejected.
    pub refused: Vec<TopicRefused>,
    /// The `last_event_id` of the request.
    pub last_event_id: Option<String>,
}

/// Why a topic is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicRefused {
    /// The name is not a valid topic.
    #[error("{0:?} is not a valid topic: {1}")]
    Invalid(String, TopicError),
    /// No pattern of the token matches the topic.
    #[error("{}", forbidden(.0))]
    Forbidden(String),
    /// The client has the maximum number of topics.
    #[error("cannot subscribe to {0:?}: a connection has at most {1} topics; unsubscribe from one first")]
    TooMany(String, usize),
}

/// The message of [`TopicRefused::Forbidden`]. No pattern matches a reserved topic, so its message mentions no pattern.
fn forbidden(topic: &str) -> String {
    if topic.starts_with(OWN_TOPICS) {
        return format!(
            "the token does not allow the topic {topic:?}: topics that begin with {OWN_TOPICS} are reserved for the \
             hub, and only administrators (claim \"admin\": true) can subscribe to them"
        );
    }
    format!("the token does not allow the topic {topic:?}: its claim \"topics\" needs a pattern that matches it")
}

impl TopicRefused {
    /// Returns the error code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Invalid(..) => "invalid_topic",
            Self::Forbidden(_) => "forbidden",
            Self::TooMany(..) => "too_many_topics",
        }
    }

    /// Returns the topic, truncated to [`MAX_TOPIC_BYTES`] characters.
    pub fn topic(&self) -> &str {
        match self {
            Self::Invalid(topic, _) | Self::Forbidden(topic) | Self::TooMany(topic, _) => topic,
        }
    }

    fn count(&self, tally: &mut SessionCounters) {
        match self {
            Self::Invalid(..) => tally.bad_messages += 1,
            Self::Forbidden(_) => tally.forbidden += 1,
            Self::TooMany(..) => tally.limit_topics += 1,
        }
    }
}

/// Checks whether a client with the topics `current` may subscribe to `topic`.
fn check(topic: &str, current: &[Arc<str>], allowed: bool, max_topics: usize) -> Result<(), TopicRefused> {
    if let Err(error) = check_topic(topic) {
        Err(TopicRefused::Invalid(topic.chars().take(MAX_TOPIC_BYTES).collect(), error))
    } else if !allowed {
        Err(TopicRefused::Forbidden(topic.to_owned()))
    } else if current.len() >= max_topics && !current.iter().any(|name| **name == *topic) {
        Err(TopicRefused::TooMany(topic.to_owned(), max_topics))
    } else {
        Ok(())
    }
}

impl ConnectRequest {
    /// Creates a request, and accepts or rejects each of the `wanted` topics.
    pub fn new<'a>(
        grant: Grant,
        connection: ConnectionId,
        last_event_id: Option<String>,
        wanted: impl Iterator<Item = &'a str>,
        max_topics: usize,
    ) -> Self {
        let (mut topics, mut refused) = (Vec::<Arc<str>>::new(), Vec::new());
        for topic in wanted {
            match check(topic, &topics, grant.may_subscribe(topic), max_topics) {
                Ok(()) if topics.iter().any(|name| **name == *topic) => {}
                Ok(()) => topics.push(topic.into()),
                // The number of rejections is limited, because each is answered with an `error`.
                Err(_) if refused.len() > max_topics => break,
                Err(error) => refused.push(error),
            }
        }
        Self { grant, connection, topics, refused, last_event_id }
    }

    /// Returns the `ack_event_id` of the messages that answer the connect.
    fn acknowledged_as(&self) -> &str {
        self.last_event_id.as_deref().unwrap_or("initial_connect")
    }

    /// Returns the properties that determine which events the client receives.
    pub fn viewer(&self) -> Viewer<'_> {
        Viewer { user: &self.grant.user, connection: self.connection, topics: &self.topics }
    }
}

/// The delivery state of an entry for a client in its audience.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryState {
    /// The entry was appended before the client connected, and the client had no cursor or a cursor after the entry.
    Before,
    /// The client's cursor is after the entry. The entry was written, if the client was subscribed to its topic then.
    Passed,
    /// The entry is not written yet.
    Waiting,
}

/// The session of one client.
#[derive(Debug)]
pub struct Session {
    user: Arc<str>,
    /// In two halves, because a `u128` would align every session to 16 bytes.
    connection: [u64; 2],
    /// `None` if the token allows no topic.
    rights: Option<Box<Rights>>,
    #[expect(clippy::box_collection, reason = "most sessions have no topic, and the size of a session matters")]
    topics: Option<Box<Vec<Arc<str>>>>,
    /// If `behind`, the session was served up to this sequence. Otherwise it was served up to the head, or up to this
    /// sequence if that is later.
    cursor: u64,
    /// The sequence at which the session began. No entry up to it was sent.
    began: u64,
    out: Option<Box<Outbox>>,
    decoder: ws::Decoder,
    heard_ms: u64,
    /// When the next ping is due. In a closing session, when the wait for the client ends.
    due_ms: u64,
    /// The theoretical arrival time of the next frame (generic cell rate algorithm), in microseconds.
    pace_us: u64,
    token: Token,
    state: State,
    ended: Option<CloseCode>,
    /// The round trip time of the last answered ping; 0 if there was none, or if it was shorter than a millisecond.
    round_trip_ms: u32,
    behind: bool,
    overdue: bool,
    /// When the oldest unanswered ping was sent; 0 if there is none.
    pinged_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// A close frame was sent, and the client's close frame is awaited.
    Closing,
    /// A close frame was sent to a client that violated the protocol. Its input can no longer be decoded, so the end of
    /// its stream is awaited.
    AwaitingEof,
    /// No more input is read. Pending output is still sent.
    Closed,
}

/// The parts of the session's current token that are needed for expiry and revocation. `due_ms` and `ends_ms` are in
/// the monotonic milliseconds of [`Now`].
#[derive(Debug)]
struct Token {
    /// As [`Grant::token`]; 0 if absent.
    id: u64,
    /// As [`Grant::session`]; 0 if absent.
    session: u64,
    /// As [`Grant::issued_at`]; 0 if absent. 32 bits suffice until 2106.
    issued_at: u32,
    /// As [`Grant::expires_at`]; 0 if absent. 32 bits suffice until 2106.
    expires_at: u32,
    /// When `auth_expiring` is due; after it was sent, the same as `ends_ms`.
    due_ms: u64,
    /// When the token expires and the connection is closed.
    ends_ms: u64,
}

#[derive(Debug)]
struct Rights {
    topics: Vec<Box<str>>,
    admin: bool,
}

/// Pending output: the rest of a partially written frame, then messages other than events.
#[derive(Debug, Default)]
struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
}

impl Session {
    /// Opens a session that resumes at `start`. Enqueues the first `ack`, a `gap` if there is one, and an `error` for
    /// each rejected topic. `replayed` is the number of retained events that follow.
    pub fn open(mut request: ConnectRequest, start: ResumePoint, replayed: usize, ctx: &mut Context<'_>) -> Self {
        let mut session = Self::new(&request.grant, request.connection, ctx);
        session.topics = (!request.topics.is_empty()).then(|| Box::new(std::mem::take(&mut request.topics)));
        (session.cursor, session.began) = (start.cursor, start.cursor);
        session.behind = start.cursor < ctx.head.sequence;
        session.enqueue(
            Outgoing::Ack(Ack {
                // A client that is disconnected before it receives the gap stores this cursor, and receives the gap
                // again when it reconnects.
                event_id: start.gap.and(request.last_event_id.as_deref()),
                ack_event_id: request.acknowledged_as(),
                connection_id: request.connection,
                resumed: start.asked && start.gap.is_none(),
                replayed,
                heartbeat_ms: ctx.settings.heartbeat_ms,
                topic: None,
            }),
            ctx,
        );
        session.enqueue_gap(start, ctx);
        for error in &request.refused {
            session.reject_topic(error, request.acknowledged_as(), ctx);
        }
        session
    }

    /// Creates the session of a rejected client, which only sends a close frame.
    pub fn refused(code: CloseCode, reason: &str, ctx: &mut Context<'_>) -> Self {
        let mut session = Self::new(&Grant::default(), ConnectionId(0), ctx);
        session.close(code, reason, ctx);
        session.due_ms = ctx.now.mono_ms + ctx.settings.close_ms.min(REJECTED_CLOSE_MS);
        session
    }

    fn new(grant: &Grant, connection: ConnectionId, ctx: &Context<'_>) -> Self {
        Self {
            user: grant.user.clone(),
            connection: connection.halves(),
            rights: Rights::of(grant),
            topics: None,
            cursor: 0,
            began: 0,
            round_trip_ms: 0,
            out: None,
            decoder: ws::Decoder::default(),
            heard_ms: ctx.now.mono_ms,
            due_ms: ctx.now.mono_ms + ctx.settings.heartbeat_ms,
            pace_us: 0,
            token: Token::of(grant, ctx),
            state: State::Open,
            ended: None,
            behind: false,
            overdue: false,
            pinged_ms: 0,
        }
    }

    /// Returns whether the token has all permissions.
    pub fn is_admin(&self) -> bool {
        self.rights.as_ref().is_some_and(|rights| rights.admin)
    }

    /// Returns the user.
    pub fn user(&self) -> &Arc<str> {
        &self.user
    }

    /// Returns the connection ID.
    pub fn connection(&self) -> ConnectionId {
        ConnectionId::from_halves(self.connection)
    }

    /// Returns the topics that the client is subscribed to.
    pub fn topics(&self) -> &[Arc<str>] {
        self.topics.as_deref().map_or(&[], Vec::as_slice)
    }

    /// Returns the properties that determine which events the client receives.
    pub fn viewer(&self) -> Viewer<'_> {
        Viewer { user: &self.user, connection: self.connection(), topics: self.topics() }
    }

    /// Returns whether a revocation applies to the current token.
    pub fn is_concerned_by(&self, revocation: &Revocation) -> bool {
        let Token { id, session, issued_at, .. } = self.token;
        let present = |id: u64| (id > 0).then_some(id);
        revocation.covers(&self.user, present(id), present(session), Some(issued_at.into()))
    }

    /// Returns whether the session is open: events are delivered to it.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Returns whether the client's input can no longer be decoded. The driver shuts down its side of the stream after
    /// all output was written.
    pub fn is_deaf(&self) -> bool {
        self.state == State::AwaitingEof
    }

    /// Returns whether the socket can be closed.
    pub fn is_finished(&self) -> bool {
        self.state == State::Closed && self.out.is_none()
    }

    /// Returns whether output other than entries is pending.
    pub fn has_output(&self) -> bool {
        self.out.is_some()
    }

    /// Returns whether input should be read: not while the client does not read the answers to its messages.
    pub fn wants_input(&self) -> bool {
        self.state != State::Closed && self.out.as_ref().is_none_or(|out| out.rest().len() <= MAX_PENDING_BYTES)
    }

    /// Returns when a frame from the client was last received, in the monotonic milliseconds of [`Now`].
    pub fn heard_ms(&self) -> u64 {
        self.heard_ms
    }

    /// Returns the round trip time of the last answered ping, in milliseconds.
    pub fn round_trip_ms(&self) -> u32 {
        self.round_trip_ms
    }

    /// Returns the size of the pending output, in bytes, without entries after the cursor.
    pub fn waiting_bytes(&self) -> usize {
        self.out.as_ref().map_or(0, |out| out.rest().len())
    }

    /// Returns the delivery state of an entry in the client's audience, while the log's head is at `head`.
    pub fn delivery_state(&self, sequence: u64, head: u64) -> DeliveryState {
        let served = if self.behind { self.cursor } else { self.cursor.max(head) };
        if sequence <= self.began {
            DeliveryState::Before
        } else if sequence <= served {
            DeliveryState::Passed
        } else {
            DeliveryState::Waiting
        }
    }

    /// Returns whether a ping is unanswered for longer than a heartbeat interval.
    pub fn is_overdue(&self) -> bool {
        self.overdue
    }

    /// Returns the close code, once a close frame was sent or received.
    pub fn ended(&self) -> Option<CloseCode> {
        self.ended
    }

    /// Returns the cursor of an open session that has not been served up to the head; `None` otherwise.
    pub fn behind(&self) -> Option<u64> {
        (self.behind && self.state == State::Open).then_some(self.cursor)
    }

    /// Marks a session that was served up to `head` as behind, because an entry after `head` is for it. Returns whether
    /// it was not behind before.
    pub fn mark(&mut self, head: u64) -> bool {
        let newly_behind = !self.behind && self.state == State::Open;
        if newly_behind {
            self.cursor = self.cursor.max(head);
            self.behind = true;
        }
        newly_behind
    }

    /// Returns the position up to which the client was sent all entries for it.
    pub fn position(&self, head: Position) -> Position {
        let sequence = if self.behind { self.cursor } else { self.cursor.max(head.sequence) };
        Position { epoch: head.epoch, sequence }
    }

    /// Enqueues a `gap`, and continues at `start`.
    pub fn skip_to(&mut self, start: ResumePoint, ctx: &mut Context<'_>) {
        self.cursor = start.cursor;
        // If the log was cut before `began`, the entries that follow are new to the client.
        self.began = self.began.min(start.cursor);
        // The window may be ahead of this shard.
        self.behind = start.cursor < ctx.head.sequence;
        self.enqueue_gap(start, ctx);
    }

    fn enqueue_gap(&mut self, start: ResumePoint, ctx: &mut Context<'_>) {
        use crate::window::GapReason::{Expired, Reset};
        let Some(gap) = start.gap else { return };
        match gap.reason {
            Expired => ctx.tally.gaps_expired += 1,
            Reset => ctx.tally.gaps_reset += 1,
        }
        self.enqueue(Outgoing::Gap(gap), ctx);
    }

    /// Processes bytes from the client. They are unmasked in place. Changes that affect more than this session are
    /// added to `effects`.
    pub fn input(&mut self, bytes: &mut [u8], ctx: &mut Context<'_>, effects: &mut SmallVec<[Effect; 2]>) {
        ctx.tally.bytes_received += bytes.len() as u64;
        if matches!(self.state, State::Closed | State::AwaitingEof) {
            return;
        }
        let mut decoder = std::mem::take(&mut self.decoder);
        let limits = ctx.settings.limits;
        let result = decoder.feed(bytes, &limits, &mut |incoming| {
            self.handle(incoming, ctx, effects);
            if self.state == State::Closed { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        self.decoder = decoder;
        if let Err(error) = result {
            let code = error.close_code();
            ctx.tally.limit_bytes += u64::from(code == CloseCode::TooBig);
            self.close(code, &error.to_string(), ctx);
            self.state = State::AwaitingEof;
        }
    }

    fn handle(&mut self, incoming: ws::Incoming<'_>, ctx: &mut Context<'_>, effects: &mut SmallVec<[Effect; 2]>) {
        if let ws::Incoming::Close(close) = incoming {
            return self.handle_close(close.map(|(code, _)| code), ctx);
        }
        if self.state != State::Open {
            return;
        }
        self.heard_ms = ctx.now.mono_ms;
        self.overdue = false;
        if !self.is_within_rate(ctx) {
            ctx.tally.limit_frames += 1;
            return self.close(
                CloseCode::TooManyMessages,
                "max_messages_per_second: the client sends too many messages a second; send fewer",
                ctx,
            );
        }
        match incoming {
            ws::Incoming::Text(text) if ctx.settings.echo => self.push(ws::Opcode::Text, text.as_bytes()),
            ws::Incoming::Binary(bytes) if ctx.settings.echo => self.push(ws::Opcode::Binary, bytes),
            ws::Incoming::Text(text) => self.handle_message(text, ctx, effects),
            ws::Incoming::Binary(_) => {
                self.close(
                    CloseCode::Unsupported,
                    "binary messages are not supported; send JSON in text messages",
                    ctx,
                );
            }
            ws::Incoming::Ping(payload) => self.push(ws::Opcode::Pong, payload),
            ws::Incoming::Pong(_) | ws::Incoming::Fragment | ws::Incoming::Close(_) => {}
        }
    }

    /// Answers a close frame with the same code, after which the server closes the connection (RFC 6455 section 5.5.1).
    fn handle_close(&mut self, code: Option<u16>, ctx: &mut Context<'_>) {
        if self.state == State::Open {
            let mut frame = Vec::new();
            match code {
                Some(code) => ws::push_close(&mut frame, code, ""),
                None => ws::push_frame(&mut frame, ws::Opcode::Close, &[]),
            }
            self.push_bytes(&frame);
            let left = code == Some(CloseCode::GoingAway.number());
            self.ended = Some(if left { CloseCode::GoingAway } else { CloseCode::Normal });
            self.due_ms = ctx.now.mono_ms + ctx.settings.close_ms;
        }
        self.state = State::Closed;
    }

    /// Counts a frame, and returns whether the client is within its rate limit (generic cell rate algorithm).
    fn is_within_rate(&mut self, ctx: &Context<'_>) -> bool {
        let rate = u64::from(ctx.settings.frames_per_second);
        if rate == 0 {
            return true;
        }
        let now_us = ctx.now.mono_ms * 1_000;
        // Frames that were sent during a pause of the driver count as sent over its whole duration.
        let since_us = ctx.now.mono_ms.saturating_sub(ctx.paused_ms) * 1_000;
        self.pace_us = self.pace_us.max(since_us) + 1_000_000 / rate;
        self.pace_us <= now_us + 2_000_000
    }

    fn handle_message(&mut self, text: &str, ctx: &mut Context<'_>, effects: &mut SmallVec<[Effect; 2]>) {
        ctx.tally.messages += 1;
        match wire::read(text) {
            Ok((Incoming::Pong, _)) => self.handle_pong(ctx),
            Ok((Incoming::Ack { ack_event_id }, _)) => {
                effects.extend(ack_event_id.map(|id| Effect::Acknowledged(id.into())));
            }
            Ok((Incoming::Ping, _)) => self.enqueue(Outgoing::Pong, ctx),
            Ok((Incoming::Subscribe { topic }, id)) => effects.extend(self.subscribe(&topic, id.as_deref(), ctx)),
            Ok((Incoming::Unsubscribe { topic }, id)) => effects.extend(self.unsubscribe(&topic, id.as_deref(), ctx)),
            Ok((Incoming::Auth { token }, id)) => {
                let lost = self.authenticate(&token, id.as_deref(), ctx);
                effects.extend(lost.into_iter().map(Effect::Unsubscribed));
            }
            Err(RejectedMessage { reason, ack_event_id }) => {
                ctx.tally.bad_messages += 1;
                let (error, message) = (reason.code(), &*reason.to_string());
                let ack_event_id = ack_event_id.as_deref();
                self.enqueue(Outgoing::Error(ErrorFrame { error, message, ack_event_id, topic: None }), ctx);
            }
        }
    }

    /// Subscribes to a topic. The subscription begins at the session's cursor, which is the position of the `ack`.
    fn subscribe(&mut self, topic: &str, id: Option<&str>, ctx: &mut Context<'_>) -> Option<Effect> {
        let allowed = self.rights.as_ref().is_some_and(|rights| rights.allow(topic));
        let ack_event_id = id.unwrap_or("subscribe");
        if let Err(error) = check(topic, self.topics(), allowed, ctx.settings.max_topics) {
            self.reject_topic(&error, ack_event_id, ctx);
            return None;
        }
        let subscribed = self.topics().iter().any(|current| **current == *topic);
        self.acknowledge(ack_event_id, Some(topic), ctx);
        (!subscribed).then(|| {
            let topic: Arc<str> = topic.into();
            self.topics.get_or_insert_default().push(topic.clone());
            Effect::Subscribed(topic)
        })
    }

    fn reject_topic(&mut self, error: &TopicRefused, ack_event_id: &str, ctx: &mut Context<'_>) {
        error.count(ctx.tally);
        let frame = ErrorFrame {
            error: error.code(),
            message: &error.to_string(),
            ack_event_id: Some(ack_event_id),
            topic: Some(error.topic()),
        };
        self.enqueue(Outgoing::Error(frame), ctx);
    }

    fn unsubscribe(&mut self, topic: &str, id: Option<&str>, ctx: &mut Context<'_>) -> Option<Effect> {
        self.acknowledge(id.unwrap_or("unsubscribe"), Some(topic), ctx);
        let topics = self.topics.as_mut()?;
        let at = topics.iter().position(|current| **current == *topic)?;
        let topic = topics.swap_remove(at);
        if topics.is_empty() {
            self.topics = None;
        }
        Some(Effect::Unsubscribed(topic))
    }

    /// Replaces the current token by a newer token of the same user. Returns the topics that the newer token does not
    /// allow.
    fn authenticate(&mut self, token: &str, id: Option<&str>, ctx: &mut Context<'_>) -> Vec<Arc<str>> {
        let ack_event_id = id.unwrap_or("auth");
        let denied = match (ctx.verify)(token) {
            Ok(grant) if grant.user == self.user => {
                self.rights = Rights::of(&grant);
                self.token = Token::of(&grant, ctx);
                self.acknowledge(ack_event_id, None, ctx);
                return self.drop_forbidden_topics(ack_event_id, ctx);
            }
            Ok(_) => {
                ctx.tally.forbidden += 1;
                let message = "the token belongs to another user; open a separate connection for that user".to_owned();
                Denied { code: "wrong_user", message }
            }
            Err(denied) => denied,
        };
        let (error, message) = (denied.code, &*denied.message);
        self.enqueue(
            Outgoing::Error(ErrorFrame { error, message, ack_event_id: Some(ack_event_id), topic: None }),
            ctx,
        );
        Vec::new()
    }

    fn drop_forbidden_topics(&mut self, ack_event_id: &str, ctx: &mut Context<'_>) -> Vec<Arc<str>> {
        let Some(mut topics) = self.topics.take() else { return Vec::new() };
        let allowed = |topic: &Arc<str>| self.rights.as_ref().is_some_and(|rights| rights.allow(topic));
        let lost: Vec<_> = topics.extract_if(.., |topic| !allowed(topic)).collect();
        self.topics = (!topics.is_empty()).then_some(topics);
        for topic in &lost {
            self.reject_topic(&TopicRefused::Forbidden(topic.to_string()), ack_event_id, ctx);
        }
        lost
    }

    fn acknowledge(&mut self, ack_event_id: &str, topic: Option<&str>, ctx: &mut Context<'_>) {
        let ack = Ack {
            event_id: None,
            ack_event_id,
            connection_id: self.connection(),
            resumed: false,
            replayed: 0,
            heartbeat_ms: ctx.settings.heartbeat_ms,
            topic,
        };
        self.enqueue(Outgoing::Ack(ack), ctx);
    }

    /// Closes the connection with a code and a reason. Has no effect if the session is not open.
    pub fn close(&mut self, code: CloseCode, reason: &str, ctx: &Context<'_>) {
        if self.state != State::Open {
            return;
        }
        let mut frame = Vec::new();
        ws::push_close(&mut frame, code.number(), reason);
        self.push_bytes(&frame);
        self.state = State::Closing;
        self.ended = Some(code);
        self.due_ms = ctx.now.mono_ms + ctx.settings.close_ms;
    }

    /// Enqueues a message from the hub after the entries that were already sent. Its `event_id` is the session's
    /// position at this time, so messages must be enqueued before the cursor moves further.
    pub fn enqueue(&mut self, message: Outgoing<'_>, ctx: &Context<'_>) {
        if ctx.settings.echo {
            return;
        }
        let json = message.to_json(self.position(ctx.head), ctx.now.unix_ms);
        self.push(ws::Opcode::Text, json.as_bytes());
    }

    /// Returns whether the client was silent for longer than the heartbeat timeout.
    pub fn is_silent(&self, settings: &Settings, now: Now) -> bool {
        self.state == State::Open && now.mono_ms >= self.heard_ms + settings.timeout_ms
    }

    /// Excludes a pause of the driver of `late_ms` milliseconds from the client's silence. During the pause no ping was
    /// sent and no input was read.
    pub fn excuse_silence(&mut self, late_ms: u64, now: Now) {
        self.heard_ms = (self.heard_ms + late_ms).min(now.mono_ms);
    }

    /// Handles a step of the wall clock: the token expires by the wall clock or by the monotonic clock, whichever is
    /// earlier.
    pub fn clock_stepped(&mut self, settings: &Settings, now: Now) {
        self.token.bring_forward(settings.warn_ms, now);
    }

    /// Returns when [`timeout`](Self::timeout) must be called, in the monotonic milliseconds of [`Now`]; `u64::MAX` for
    /// a finished session.
    pub fn due_ms(&self, settings: &Settings) -> u64 {
        match self.state {
            State::Open => self.due_ms.min(self.heard_ms + settings.timeout_ms).min(self.token.due_ms),
            State::Closing | State::AwaitingEof => self.due_ms,
            State::Closed if self.out.is_some() => self.due_ms,
            State::Closed => u64::MAX,
        }
    }

    /// Handles the timer that is due: a ping, the expiry of the token, a silent client, or the end of the wait for the
    /// answer to a close.
    pub fn timeout(&mut self, ctx: &mut Context<'_>) {
        let now = ctx.now.mono_ms;
        match self.state {
            State::Open if self.is_silent(ctx.settings, ctx.now) => {
                let reason =
                    format!("silent for {} s: the client must answer pings", ctx.settings.timeout_ms.div_ceil(1_000));
                self.close(CloseCode::HeartbeatTimeout, &reason, ctx);
            }
            State::Open if now >= self.token.due_ms => self.handle_expiry(ctx),
            State::Open if now >= self.due_ms => self.ping(ctx),
            State::Closing | State::AwaitingEof | State::Closed if now >= self.due_ms => {
                self.state = State::Closed;
                self.out = None;
            }
            _ => {}
        }
    }

    /// Warns the client that its token expires soon, or closes the connection because it has expired.
    fn handle_expiry(&mut self, ctx: &mut Context<'_>) {
        let left_ms = self.token.ends_ms.saturating_sub(ctx.now.mono_ms);
        self.token.due_ms = self.token.ends_ms;
        if left_ms > 0 {
            ctx.tally.tokens_expiring += 1;
            self.enqueue(Outgoing::AuthExpiring { expires_in_ms: left_ms }, ctx);
        } else {
            ctx.tally.tokens_expired += 1;
            self.close(CloseCode::Policy, "token_expired: the token has expired; reconnect with a new one", ctx);
        }
    }

    /// Measures the round trip time of the oldest unanswered ping.
    fn handle_pong(&mut self, ctx: &mut Context<'_>) {
        let pinged_ms = std::mem::take(&mut self.pinged_ms);
        if pinged_ms > 0 {
            let took_ms = ctx.now.mono_ms.saturating_sub(pinged_ms);
            self.round_trip_ms = u32::try_from(took_ms).unwrap_or(u32::MAX);
            ctx.tally.round_trips.add(took_ms);
        }
    }

    fn ping(&mut self, ctx: &mut Context<'_>) {
        let now = ctx.now.mono_ms;
        self.overdue = self.heard_ms + ctx.settings.heartbeat_ms < self.due_ms;
        // Missed intervals are skipped, so that the pings of all sessions stay spread over an interval.
        let period = ctx.settings.heartbeat_ms.max(1);
        self.due_ms += (now.saturating_sub(self.due_ms) / period + 1) * period;
        // A ping behind pending output would not be delivered either.
        if self.out.is_none() {
            ctx.tally.pings += 1;
            if self.pinged_ms == 0 {
                self.pinged_ms = now;
            }
            self.enqueue(Outgoing::Ping, ctx);
        }
    }

    /// Writes the pending output and then `entries` to the sink, which returns the number of bytes that it accepted.
    /// Returns whether everything was accepted; the cursor then moves to `reached`.
    ///
    /// If a frame is accepted in part, its rest becomes pending output. This is the only memory that a slow client
    /// takes: entries are never queued.
    pub fn flush(
        &mut self,
        entries: &[&Entry],
        reached: u64,
        tally: &mut SessionCounters,
        sink: &mut impl FnMut(&[IoSlice<'_>]) -> usize,
    ) -> bool {
        let mut out = self.out.take();
        let mut taken = {
            let pending = out.as_deref().map(Outbox::rest);
            let frames = entries.iter().map(|entry| &*entry.frame);
            let slices: SmallVec<[IoSlice<'_>; 64]> = pending.into_iter().chain(frames).map(IoSlice::new).collect();
            if slices.is_empty() { 0 } else { sink(&slices) }
        };
        tally.bytes_sent += taken as u64;
        if let Some(pending) = &mut out {
            let rest = pending.rest().len();
            if taken < rest {
                pending.sent += taken;
                self.out = out;
                return false;
            }
            taken -= rest;
        }
        for entry in entries {
            let length = entry.frame.len();
            if taken < length {
                if taken > 0 {
                    self.out = Some(Box::new(Outbox { bytes: entry.frame[taken..].to_vec(), sent: 0 }));
                    self.cursor = entry.sequence;
                    tally.deliveries += 1;
                }
                return false;
            }
            taken -= length;
            self.cursor = entry.sequence;
            tally.deliveries += 1;
        }
        self.cursor = self.cursor.max(reached);
        true
    }

    /// Marks the session as served up to the head.
    pub fn caught_up(&mut self) {
        self.behind = false;
    }

    fn push(&mut self, opcode: ws::Opcode, payload: &[u8]) {
        ws::push_frame(&mut self.out.get_or_insert_default().bytes, opcode, payload);
    }

    fn push_bytes(&mut self, bytes: &[u8]) {
        self.out.get_or_insert_default().bytes.extend_from_slice(bytes);
    }
}

impl Outbox {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }
}

impl Token {
    fn of(grant: &Grant, ctx: &Context<'_>) -> Self {
        let left_ms = |ends: u64| ends.saturating_mul(1_000).saturating_sub(ctx.now.unix_ms);
        let left_ms = grant.expires_at.map_or(u64::MAX, left_ms);
        let ends_ms = ctx.now.mono_ms.saturating_add(left_ms);
        let due_ms = ends_ms.saturating_sub(ctx.settings.warn_ms.min(left_ms / 2));
        let secs = |at: Option<u64>| at.map_or(0, |at| u32::try_from(at).unwrap_or(u32::MAX));
        let (issued_at, expires_at) = (secs(grant.issued_at), secs(grant.expires_at));
        let (id, session) = (grant.token.unwrap_or(0), grant.session.unwrap_or(0));
        Self { id, session, issued_at, expires_at, due_ms, ends_ms }
    }

    fn bring_forward(&mut self, warn_ms: u64, now: Now) {
        let left_ms = (u64::from(self.expires_at) * 1_000).saturating_sub(now.unix_ms);
        let ends_ms = now.mono_ms.saturating_add(left_ms);
        if self.expires_at == 0 || ends_ms >= self.ends_ms {
            return;
        }
        let warned = self.due_ms == self.ends_ms;
        let due_ms = ends_ms.saturating_sub(warn_ms.min(left_ms / 2)).min(self.due_ms);
        (self.due_ms, self.ends_ms) = (if warned { ends_ms } else { due_ms }, ends_ms);
    }
}

impl Rights {
    fn of(grant: &Grant) -> Option<Box<Self>> {
        (grant.admin || !grant.topics.is_empty())
            .then(|| Box::new(Self { topics: grant.topics.clone(), admin: grant.admin }))
    }

    fn allow(&self, topic: &str) -> bool {
        self.admin || crate::grant::allows(&self.topics, topic)
    }
}

#[cfg(test)]
mod tests {
    use super::TopicRefused;

    #[test]
    fn the_error_for_a_reserved_topic_mentions_administrators_and_no_pattern() {
        let text = |topic: &str| TopicRefused::Forbidden(topic.to_owned()).to_string();
        let reserved = text("$sys");
        assert!(
            reserved.contains("reserved for the hub")
                && reserved.contains("only administrators")
                && !reserved.contains("pattern"),
            "{reserved}"
        );
        assert!(text("project:7").contains("its claim \"topics\" needs a pattern that matches it"));
    }
}

//! One client as a state machine: who it is, what it sees, up to where it has been served, and what waits to be sent.
//!
//! Knows no socket and no clock. Bytes that came in and the time are arguments; bytes to send are offered to a sink
//! that says how many it took.

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

/// The most events one write is made of; what waits already is one piece more.
pub const MAX_SLICES: usize = 63;

/// About how many bytes one session may send in one turn.
pub const MAX_TURN_BYTES: usize = 256 << 10;

/// How many bytes of answers may wait before no more is read from a client that doesn't take them.
const MAX_WAITING_BYTES: usize = 16 << 10;

/// How long a client that is turned away may take to answer, in milliseconds: a flood of them must not hold sockets.
const REFUSED_MS: u64 = 2_000;

/// What holds for every session of a hub.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Milliseconds between pings.
    pub heartbeat_ms: u64,
    /// Milliseconds of silence after which a client is closed.
    pub timeout_ms: u64,
    /// Milliseconds a client may take to answer a close.
    pub close_ms: u64,
    /// How large frames and messages may be.
    pub limits: ws::Limits,
    /// How many frames a second a client may send on average, and twice as many in a burst. 0: no limit.
    pub frames_per_second: u32,
    /// How many topics a client may hold.
    pub max_topics: usize,
    /// How many milliseconds before its token ends a client is told; half of what is left, if that is less.
    pub warn_ms: u64,
    /// For conformance tests: sends each text or binary message back instead of reading it.
    pub echo: bool,
}

/// What sessions count; a driver takes it over into its metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SessionCounters {
    /// Events given to a sink.
    pub deliveries: u64,
    /// Bytes given to a sink.
    pub bytes_sent: u64,
    /// Bytes read.
    pub bytes_received: u64,
    /// Messages read.
    pub messages: u64,
    /// Messages answered with an error.
    pub bad_messages: u64,
    /// Pings made.
    pub pings: u64,
    /// Gaps told because history was no longer held.
    pub gaps_expired: u64,
    /// Gaps told because the cursor was of another log.
    pub gaps_reset: u64,
    /// Topics refused because a client held too many.
    pub limit_topics: u64,
    /// Clients closed because they sent too much a second.
    pub limit_frames: u64,
    /// Clients closed because a frame or message was too large.
    pub limit_bytes: u64,
    /// Topics or tokens refused.
    pub forbidden: u64,
    /// Clients told that their token ends soon.
    pub tokens_expiring: u64,
    /// Clients closed because their token had ended.
    pub tokens_expired: u64,
    /// From a ping to its pong.
    pub round_trips: RoundTrips,
}

/// How long clients took to answer a ping.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RoundTrips {
    /// How many took no longer than each of [`ROUND_TRIP_MS`], but longer than the one before; the last took longer.
    pub counts: [u32; ROUND_TRIP_MS.len() + 1],
    /// All of them together, in milliseconds.
    pub sum_ms: u64,
}

/// Bounds of round trips, in milliseconds.
pub const ROUND_TRIP_MS: [u64; 11] = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 5_000];

impl RoundTrips {
    fn add(&mut self, ms: u64) {
        let bucket = ROUND_TRIP_MS.partition_point(|bound| *bound < ms);
        self.counts[bucket] += 1;
        self.sum_ms += ms;
    }
}

/// Why a token shown in band was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// The reason as a word.
    pub code: &'static str,
    /// The reason as a sentence.
    pub message: String,
}

/// What a session is given with each input.
#[expect(missing_debug_implementations, reason = "it lends a function")]
pub struct Context<'a> {
    /// The time of the input.
    pub now: Now,
    /// What holds for every session.
    pub settings: &'a Settings,
    /// The log's head as this shard knows it.
    pub head: Position,
    /// For how long nothing was read before, because the driver did not run, in milliseconds; 0 if that was long ago.
    pub paused_ms: u64,
    /// Verifies a token shown in band.
    pub verify: &'a dyn Fn(&str) -> Result<Grant, Denied>,
    /// Counts.
    pub tally: &'a mut SessionCounters,
}

/// What an input changed that others must know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The session now sees a topic.
    Subscribed(Arc<str>),
    /// The session no longer sees a topic.
    Unsubscribed(Arc<str>),
    /// The client says that it has handled an event.
    Acknowledged(Box<str>),
}

/// A client that comes.
#[derive(Debug, Clone)]
pub struct ConnectRequest {
    /// What its token allows.
    pub grant: Grant,
    /// Its name.
    pub connection: ConnectionId,
    /// The topics that it wants from the start and may have.
    pub topics: Vec<Arc<str>>,
    /// The topics that it wants and may not have.
    pub refused: Vec<TopicRefused>,
    /// The `last_event_id` it sent.
    pub last_event_id: Option<String>,
}

/// Why a client does not get a topic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicRefused {
    /// No topic can have this name.
    #[error("{0:?} can't be a topic: {1}")]
    Invalid(String, TopicError),
    /// The token has no pattern for it.
    #[error("{}", forbidden(.0))]
    Forbidden(String),
    /// The client holds as many as it may.
    #[error("no room for the topic {0:?}: a connection holds at most {1} topics; unsubscribe from one first")]
    TooMany(String, usize),
}

/// No pattern matches the hub's own topics, so that a hint at patterns would mislead.
fn forbidden(topic: &str) -> String {
    if topic.starts_with(OWN_TOPICS) {
        return format!(
            "the token does not allow the topic {topic:?}: topics that begin with {OWN_TOPICS} are the hub's own, and only \
             administrators (claim \"admin\": true) may subscribe to them"
        );
    }
    format!("the token does not allow the topic {topic:?}: its claim \"topics\" needs a pattern that matches it")
}

impl TopicRefused {
    /// The reason as a word.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Invalid(..) => "invalid_topic",
            Self::Forbidden(_) => "forbidden",
            Self::TooMany(..) => "too_many_topics",
        }
    }

    /// The topic; of a name that is too long for one, the beginning.
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

/// Whether a client that holds `held` may have `topic` too.
fn check(topic: &str, held: &[Arc<str>], allowed: bool, max_topics: usize) -> Result<(), TopicRefused> {
    if let Err(error) = check_topic(topic) {
        Err(TopicRefused::Invalid(topic.chars().take(MAX_TOPIC_BYTES).collect(), error))
    } else if !allowed {
        Err(TopicRefused::Forbidden(topic.to_owned()))
    } else if held.len() >= max_topics && !held.iter().any(|name| **name == *topic) {
        Err(TopicRefused::TooMany(topic.to_owned(), max_topics))
    } else {
        Ok(())
    }
}

impl ConnectRequest {
    /// A client that wants the topics named, of which it gets those that it may have.
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
                // One refusal more than there can be topics tells enough.
                Err(_) if refused.len() > max_topics => break,
                Err(error) => refused.push(error),
            }
        }
        Self { grant, connection, topics, refused, last_event_id }
    }

    /// What the frames that answer the connect name as the message they answer.
    fn acknowledged_as(&self) -> &str {
        self.last_event_id.as_deref().unwrap_or("initial_connect")
    }

    /// What it may see.
    pub fn viewer(&self) -> Viewer<'_> {
        Viewer { user: &self.grant.user, connection: self.connection, topics: &self.topics }
    }
}

/// How an entry stands with a client that may see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryState {
    /// The client came when it was there already, with a cursor behind it or with none.
    Before,
    /// The client's cursor is behind it: it was sent, if the client held its topic then.
    Passed,
    /// The client has not come to it.
    Waiting,
}

/// One client.
#[derive(Debug)]
pub struct Session {
    user: Arc<str>,
    /// In two halves: a number of 128 bits would align every session to 16 bytes.
    connection: [u64; 2],
    /// `None` where no topic is allowed.
    rights: Option<Box<Rights>>,
    #[expect(clippy::box_collection, reason = "most sessions hold no topic, and each counts its bytes")]
    topics: Option<Box<Vec<Arc<str>>>>,
    /// Served up to here, if `behind`; else up to the head, or to here if that is further.
    cursor: u64,
    /// Where it began: nothing up to here was sent to it.
    began: u64,
    out: Option<Box<Outbox>>,
    decoder: ws::Decoder,
    heard_ms: u64,
    /// When the next ping is due; once closing, when to stop waiting for the client.
    due_ms: u64,
    /// When the client's frames so far would have been all right at its rate, in microseconds.
    pace_us: u64,
    token: Token,
    state: State,
    ended: Option<CloseCode>,
    /// From its last ping that was answered to the answer; 0: there was none, or it took less than half a millisecond.
    round_trip_ms: u32,
    behind: bool,
    overdue: bool,
    /// When the ping was sent that is not answered yet; 0: none is.
    pinged_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// A close frame was sent; the client's answer is awaited.
    Closing,
    /// A close frame was sent to a client whose frames can't be read any more; the end of its stream is awaited.
    AwaitingEof,
    /// Nothing more will be read; what waits is still to be sent.
    Closed,
}

/// What is kept of the token that a session was last shown. Times are in the monotonic milliseconds of [`Now`].
#[derive(Debug)]
struct Token {
    /// As [`Grant::token`]; 0: it has none.
    id: u64,
    /// As [`Grant::session`]; 0: it has none.
    session: u64,
    /// As [`Grant::issued_at`]; 0: it does not say. Until 2106.
    issued_at: u32,
    /// As [`Grant::expires_at`]; 0: never. Until 2106.
    expires_at: u32,
    /// When something is to be done about its end: to tell the client, and then to close.
    due_ms: u64,
    ends_ms: u64,
}

#[derive(Debug)]
struct Rights {
    topics: Vec<Box<str>>,
    admin: bool,
}

/// The rest of a half-sent frame, and what the hub says itself.
#[derive(Debug, Default)]
struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
}

impl Session {
    /// A client that is let in, at the start that the window found for it. `replayed` events are held for it.
    pub fn open(mut request: ConnectRequest, start: ResumePoint, replayed: usize, ctx: &mut Context<'_>) -> Self {
        let mut session = Self::new(&request.grant, request.connection, ctx);
        session.topics = (!request.topics.is_empty()).then(|| Box::new(std::mem::take(&mut request.topics)));
        (session.cursor, session.began) = (start.cursor, start.cursor);
        session.behind = start.cursor < ctx.head.sequence;
        session.enqueue(
            Outgoing::Ack(Ack {
                // A client that is cut before it reads the gap has stored this, and is told of the gap again.
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
        session.tell_gap(start, ctx);
        for error in &request.refused {
            session.refuse_topic(error, request.acknowledged_as(), ctx);
        }
        session
    }

    /// A client that is turned away with a close code it can read.
    pub fn refused(code: CloseCode, reason: &str, ctx: &mut Context<'_>) -> Self {
        let mut session = Self::new(&Grant::default(), ConnectionId(0), ctx);
        session.close(code, reason, ctx);
        session.due_ms = ctx.now.mono_ms + ctx.settings.close_ms.min(REFUSED_MS);
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

    /// Whether its token allows everything.
    pub fn is_admin(&self) -> bool {
        self.rights.as_ref().is_some_and(|rights| rights.admin)
    }

    /// The user it belongs to.
    pub fn user(&self) -> &Arc<str> {
        &self.user
    }

    /// Its name.
    pub fn connection(&self) -> ConnectionId {
        ConnectionId::from_halves(self.connection)
    }

    /// The topics it holds.
    pub fn topics(&self) -> &[Arc<str>] {
        self.topics.as_deref().map_or(&[], Vec::as_slice)
    }

    /// What it may see.
    pub fn viewer(&self) -> Viewer<'_> {
        Viewer { user: &self.user, connection: self.connection(), topics: self.topics() }
    }

    /// Whether a revocation concerns the token that it was last shown.
    pub fn is_concerned_by(&self, revocation: &Revocation) -> bool {
        let Token { id, session, issued_at, .. } = self.token;
        let there = |id: u64| (id > 0).then_some(id);
        revocation.covers(&self.user, there(id), there(session), Some(issued_at.into()))
    }

    /// Whether it takes events.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Whether the client's frames can't be read any more, so that its stream is to be ended once all is sent.
    pub fn is_deaf(&self) -> bool {
        self.state == State::AwaitingEof
    }

    /// Whether its socket can be dropped.
    pub fn is_finished(&self) -> bool {
        self.state == State::Closed && self.out.is_none()
    }

    /// Whether something waits to be sent besides events.
    pub fn has_output(&self) -> bool {
        self.out.is_some()
    }

    /// Whether to read from it: not while it leaves the answers it asked for lying.
    pub fn wants_input(&self) -> bool {
        self.state != State::Closed && self.out.as_ref().is_none_or(|out| out.rest().len() <= MAX_WAITING_BYTES)
    }

    /// When a frame of the client was last read, in the monotonic milliseconds of [`Now`].
    pub fn heard_ms(&self) -> u64 {
        self.heard_ms
    }

    /// From its last ping that was answered to the answer, in milliseconds.
    pub fn round_trip_ms(&self) -> u32 {
        self.round_trip_ms
    }

    /// How many bytes wait to be sent, beside events that it has not come to.
    pub fn waiting_bytes(&self) -> usize {
        self.out.as_ref().map_or(0, |out| out.rest().len())
    }

    /// How an entry stands that it may see, while the log's head is at `head`.
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

    /// Whether it owes an answer to a ping.
    pub fn is_overdue(&self) -> bool {
        self.overdue
    }

    /// Why it ended, once it does.
    pub fn ended(&self) -> Option<CloseCode> {
        self.ended
    }

    /// The cursor of a session that has not been served up to the head.
    pub fn behind(&self) -> Option<u64> {
        (self.behind && self.state == State::Open).then_some(self.cursor)
    }

    /// Lets a session that stood at `head` know that there is more for it behind. Returns whether that is news.
    pub fn mark(&mut self, head: u64) -> bool {
        let news = !self.behind && self.state == State::Open;
        if news {
            self.cursor = self.cursor.max(head);
            self.behind = true;
        }
        news
    }

    /// The place up to which all was served that this client may see.
    pub fn position(&self, head: Position) -> Position {
        let sequence = if self.behind { self.cursor } else { self.cursor.max(head.sequence) };
        Position { epoch: head.epoch, sequence }
    }

    /// Says that history is gone, and goes on behind it.
    pub fn skip_to(&mut self, start: ResumePoint, ctx: &mut Context<'_>) {
        self.cursor = start.cursor;
        // In a log that goes on from an earlier place, what comes is new to it.
        self.began = self.began.min(start.cursor);
        // The window may be further than this shard has heard.
        self.behind = start.cursor < ctx.head.sequence;
        self.tell_gap(start, ctx);
    }

    fn tell_gap(&mut self, start: ResumePoint, ctx: &mut Context<'_>) {
        use crate::window::GapReason::{Expired, Reset};
        let Some(gap) = start.gap else { return };
        match gap.reason {
            Expired => ctx.tally.gaps_expired += 1,
            Reset => ctx.tally.gaps_reset += 1,
        }
        self.enqueue(Outgoing::Gap(gap), ctx);
    }

    /// Handles bytes that the client sent. They are unmasked in place.
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
        if !self.keeps_pace(ctx) {
            ctx.tally.limit_frames += 1;
            return self.close(CloseCode::TooManyMessages, "max_messages_per_second: send less often", ctx);
        }
        match incoming {
            ws::Incoming::Text(text) if ctx.settings.echo => self.push(ws::Opcode::Text, text.as_bytes()),
            ws::Incoming::Binary(bytes) if ctx.settings.echo => self.push(ws::Opcode::Binary, bytes),
            ws::Incoming::Text(text) => self.handle_message(text, ctx, effects),
            ws::Incoming::Binary(_) => {
                self.close(CloseCode::Unsupported, "send JSON in text messages, not binary ones", ctx);
            }
            ws::Incoming::Ping(payload) => self.push(ws::Opcode::Pong, payload),
            ws::Incoming::Pong(_) | ws::Incoming::Fragment | ws::Incoming::Close(_) => {}
        }
    }

    /// RFC 6455 section 5.5.1: a close is answered with the same code, and then the server ends the connection.
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

    /// Whether the client stays within its frames a second (a generic cell rate algorithm).
    fn keeps_pace(&mut self, ctx: &Context<'_>) -> bool {
        let rate = u64::from(ctx.settings.frames_per_second);
        if rate == 0 {
            return true;
        }
        let now_us = ctx.now.mono_ms * 1_000;
        // What came while nothing was read came at its own pace.
        let since_us = ctx.now.mono_ms.saturating_sub(ctx.paused_ms) * 1_000;
        self.pace_us = self.pace_us.max(since_us) + 1_000_000 / rate;
        self.pace_us <= now_us + 2_000_000
    }

    fn handle_message(&mut self, text: &str, ctx: &mut Context<'_>, effects: &mut SmallVec<[Effect; 2]>) {
        ctx.tally.messages += 1;
        match wire::read(text) {
            Ok((Incoming::Pong, _)) => self.answered(ctx),
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

    /// A subscription begins at the session's cursor.
    fn subscribe(&mut self, topic: &str, id: Option<&str>, ctx: &mut Context<'_>) -> Option<Effect> {
        let allowed = self.rights.as_ref().is_some_and(|rights| rights.allow(topic));
        let ack_event_id = id.unwrap_or("subscribe");
        if let Err(error) = check(topic, self.topics(), allowed, ctx.settings.max_topics) {
            self.refuse_topic(&error, ack_event_id, ctx);
            return None;
        }
        let held = self.topics().iter().any(|held| **held == *topic);
        self.acknowledge(ack_event_id, Some(topic), ctx);
        (!held).then(|| {
            let topic: Arc<str> = topic.into();
            self.topics.get_or_insert_default().push(topic.clone());
            Effect::Subscribed(topic)
        })
    }

    fn refuse_topic(&mut self, error: &TopicRefused, ack_event_id: &str, ctx: &mut Context<'_>) {
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
        let at = topics.iter().position(|held| **held == *topic)?;
        let topic = topics.swap_remove(at);
        if topics.is_empty() {
            self.topics = None;
        }
        Some(Effect::Unsubscribed(topic))
    }

    /// A newer token of the same user takes the place of the old one. Returns the topics that it does not allow any more.
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
                let message = "the token is another user's: open a connection of its own for it".to_owned();
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
            self.refuse_topic(&TopicRefused::Forbidden(topic.to_string()), ack_event_id, ctx);
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

    /// Ends the connection with a code and a reason that a program can read. A second close changes nothing.
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

    /// Says something of the hub's own, at its place behind what was served.
    pub fn enqueue(&mut self, message: Outgoing<'_>, ctx: &Context<'_>) {
        if ctx.settings.echo {
            return;
        }
        let json = message.to_json(self.position(ctx.head), ctx.now.unix_ms);
        self.push(ws::Opcode::Text, json.as_bytes());
    }

    /// Whether it has been silent for too long.
    pub fn is_silent(&self, settings: &Settings, now: Now) -> bool {
        self.state == State::Open && now.mono_ms >= self.heard_ms + settings.timeout_ms
    }

    /// The driver did not run for `late_ms`: no ping was sent and nothing was read then, so it does not count as silence.
    pub fn excuse_silence(&mut self, late_ms: u64, now: Now) {
        self.heard_ms = (self.heard_ms + late_ms).min(now.mono_ms);
    }

    /// The wall clock was set: the token ends as both clocks have it, whichever is earlier.
    pub fn clock_stepped(&mut self, settings: &Settings, now: Now) {
        self.token.bring_forward(settings.warn_ms, now);
    }

    /// When [`timeout`](Self::timeout) is to be called, in the monotonic milliseconds of [`Now`]; never for a session
    /// that is finished.
    pub fn due_ms(&self, settings: &Settings) -> u64 {
        match self.state {
            State::Open => self.due_ms.min(self.heard_ms + settings.timeout_ms).min(self.token.due_ms),
            State::Closing | State::AwaitingEof => self.due_ms,
            State::Closed if self.out.is_some() => self.due_ms,
            State::Closed => u64::MAX,
        }
    }

    /// Does what is due: a ping, the end of a silent client, the end of waiting for a closing one.
    pub fn timeout(&mut self, ctx: &mut Context<'_>) {
        let now = ctx.now.mono_ms;
        match self.state {
            State::Open if self.is_silent(ctx.settings, ctx.now) => {
                let reason = format!("silent for {} s: answer pings", ctx.settings.timeout_ms.div_ceil(1_000));
                self.close(CloseCode::HeartbeatTimeout, &reason, ctx);
            }
            State::Open if now >= self.token.due_ms => self.token_due(ctx),
            State::Open if now >= self.due_ms => self.ping(ctx),
            State::Closing | State::AwaitingEof | State::Closed if now >= self.due_ms => {
                self.state = State::Closed;
                self.out = None;
            }
            _ => {}
        }
    }

    /// Tells the client that its token ends soon, or closes because it has.
    fn token_due(&mut self, ctx: &mut Context<'_>) {
        let left_ms = self.token.ends_ms.saturating_sub(ctx.now.mono_ms);
        self.token.due_ms = self.token.ends_ms;
        if left_ms > 0 {
            ctx.tally.tokens_expiring += 1;
            self.enqueue(Outgoing::AuthExpiring { expires_in_ms: left_ms }, ctx);
        } else {
            ctx.tally.tokens_expired += 1;
            self.close(CloseCode::Policy, "token_expired: the token has ended; get a new one", ctx);
        }
    }

    /// The first pong after a ping tells how long the way to the client and back is.
    fn answered(&mut self, ctx: &mut Context<'_>) {
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
        // Periods that were missed are left out, so that sessions keep their places within a period.
        let period = ctx.settings.heartbeat_ms.max(1);
        self.due_ms += (now.saturating_sub(self.due_ms) / period + 1) * period;
        // A client that doesn't take what waits for it would not take a ping either.
        if self.out.is_none() {
            ctx.tally.pings += 1;
            if self.pinged_ms == 0 {
                self.pinged_ms = now;
            }
            self.enqueue(Outgoing::Ping, ctx);
        }
    }

    /// Offers what waits and then `entries` to the sink, which says how many bytes it took. `reached` is the place
    /// that the session has come to if all is taken. Returns whether all was.
    ///
    /// Of a frame that was taken in part the rest is kept; that is all the memory a slow client costs.
    pub fn flush(
        &mut self,
        entries: &[&Entry],
        reached: u64,
        tally: &mut SessionCounters,
        sink: &mut impl FnMut(&[IoSlice<'_>]) -> usize,
    ) -> bool {
        let mut out = self.out.take();
        let mut taken = {
            let waiting = out.as_deref().map(Outbox::rest);
            let frames = entries.iter().map(|entry| &*entry.frame);
            let slices: SmallVec<[IoSlice<'_>; 64]> = waiting.into_iter().chain(frames).map(IoSlice::new).collect();
            if slices.is_empty() { 0 } else { sink(&slices) }
        };
        tally.bytes_sent += taken as u64;
        if let Some(waiting) = &mut out {
            let rest = waiting.rest().len();
            if taken < rest {
                waiting.sent += taken;
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

    /// Says that the session has been served up to the head.
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
        let told = self.due_ms == self.ends_ms;
        let due_ms = ends_ms.saturating_sub(warn_ms.min(left_ms / 2)).min(self.due_ms);
        (self.due_ms, self.ends_ms) = (if told { ends_ms } else { due_ms }, ends_ms);
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
    fn a_forbidden_topic_of_the_hub_names_administrators_and_no_pattern() {
        let text = |topic: &str| TopicRefused::Forbidden(topic.to_owned()).to_string();
        let own = text("$sys");
        assert!(
            own.contains("the hub's own") && own.contains("only administrators") && !own.contains("pattern"),
            "{own}"
        );
        assert!(text("project:7").contains("its claim \"topics\" needs a pattern that matches it"));
    }
}

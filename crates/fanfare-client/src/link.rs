//! The client state machine without I/O: the cursor, and the reaction to each message and to the end of a connection.
//! Time and randomness are arguments.

use crate::{
    closes::{describe, pause, reconnect_policy},
    notification::{Event, Gap, Notification, Problem, Refused, State},
    token::TokenReason,
};
use fanfare_core::{audience::check_topic, close::Reconnect};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use std::{
    borrow::Cow,
    collections::{BTreeSet, HashSet, VecDeque},
    time::{Duration, Instant},
};
use url::Url;

/// Number of the newest event IDs that are remembered to drop duplicates.
const REMEMBERED_IDS: usize = 1_000;
/// Duration of a connection after which the pauses start from the minimum again.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// How long a connect may take, and how long the first message may take after it.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How late a ping may be beyond one and a half heartbeat intervals.
const PING_GRACE: Duration = Duration::from_secs(5);

/// The cursor of a client: the values from which it resumes, including after a restart of the application.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The connection ID that the hub issued.
    pub connection_id: Option<String>,
    /// The position of the last message received, of any type: its `log_position`, or its `event_id` if it has none.
    pub last_event_id: Option<String>,
}

/// How an attempt or a connection ended.
#[derive(Debug)]
pub enum End {
    /// The hub closed the connection.
    Closed {
        /// The close code.
        code: u16,
        /// The reason in the close frame.
        reason: String,
    },
    /// The connection broke, or could not be established.
    Lost(String),
    /// The hub is currently unavailable.
    Busy {
        /// The cause.
        why: String,
        /// The value of `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// The token source returned no token.
    NoToken(String),
}

/// The state of one client.
#[derive(Debug)]
pub struct Link {
    url: Url,
    /// The cursor from which the client resumes.
    pub(crate) cursor: Cursor,
    /// The position after a gap that was returned. It becomes the cursor when the application asks for more.
    after_gap: Option<String>,
    topics: BTreeSet<String>,
    /// The topics in the URL of the current attempt.
    requested: BTreeSet<String>,
    pub(crate) max_pause: Duration,
    token: Option<String>,
    /// Whether there is a token source.
    renewable: bool,
    /// Whether the token was obtained for this attempt, and the hub has not accepted or rejected it yet.
    fresh: bool,
    /// Whether the hub rejected the last token.
    rejected: bool,
    live_since: Option<Instant>,
    /// Number of failures in a row, including connections shorter than [`STABLE_AFTER`].
    attempts: u32,
    last_received: Instant,
    /// How long the hub may be silent.
    silence_limit: Duration,
    /// When the client reconnects after a `goaway`. The client closes the connection then, if the hub has not.
    goaway: Option<Instant>,
    /// Whether the token expires soon, so that a newer one must be requested.
    pub(crate) expiring: bool,
    /// Messages to send.
    pub(crate) outbox: VecDeque<String>,
    /// The newest event IDs.
    remembered: HashSet<Box<str>>,
    /// The same IDs, oldest first.
    remembered_order: VecDeque<Box<str>>,
}

/// The fields that are read of every message.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    event_id: Option<String>,
    /// The position of an event. Hubs of older versions do not send it.
    log_position: Option<String>,
    /// Publishers may send any value. The hub sets a string.
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
}

/// The fields of the protocol's own messages. They are not parsed from events, whose fields of these names may have
/// any value.
#[derive(Deserialize)]
struct Body<'a> {
    connection_id: Option<String>,
    resumed: Option<bool>,
    replayed: Option<u64>,
    heartbeat: Option<f64>,
    reason: Option<String>,
    missed: Option<u64>,
    error: Option<String>,
    ack_event_id: Option<String>,
    topic: Option<String>,
    #[serde(borrow)]
    details: Option<&'a RawValue>,
    reconnect_after_ms: Option<u64>,
}

impl Link {
    /// Creates a client for the URL of a hub, or of its endpoint. `http` and `https` mean `ws` and `wss`.
    ///
    /// # Errors
    /// If the URL is not valid.
    pub fn new(url: &str, token: Option<&str>, now: Instant) -> Result<Self, Refused> {
        Ok(Self {
            url: endpoint(url)?,
            cursor: Cursor::default(),
            after_gap: None,
            topics: BTreeSet::new(),
            requested: BTreeSet::new(),
            max_pause: Duration::from_secs(30),
            token: token.map(str::to_owned),
            renewable: token.is_none(),
            fresh: false,
            rejected: false,
            live_since: None,
            attempts: 0,
            last_received: now,
            silence_limit: CONNECT_TIMEOUT,
            goaway: None,
            expiring: false,
            outbox: VecDeque::new(),
            remembered: HashSet::new(),
            remembered_order: VecDeque::new(),
        })
    }

    pub(crate) fn is_live(&self) -> bool {
        self.live_since.is_some()
    }

    pub(crate) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Returns why a token is requested for the next attempt.
    pub(crate) fn token_reason(&self) -> TokenReason {
        if self.rejected { TokenReason::Rejected } else { TokenReason::Connect }
    }

    /// Moves the cursor after a gap that was returned: the application asks for more, so it has handled the gap.
    pub fn go_on(&mut self) {
        if let Some(position) = self.after_gap.take() {
            self.cursor.last_event_id = Some(position);
        }
    }

    /// Takes a new token. If the connection is live, the token is sent with `auth`.
    pub(crate) fn use_token(&mut self, token: String) {
        if self.is_live() {
            self.send(&json!({"type": "auth", "token": token}));
        } else {
            self.fresh = true;
        }
        self.token = Some(token);
    }

    /// Replaces the token. `None` means that there is a token source.
    pub(crate) fn replace_token(&mut self, token: Option<&str>) {
        (self.renewable, self.fresh, self.rejected) = (token.is_none(), false, false);
        self.attempts = 0;
        self.token = token.map(str::to_owned);
    }

    /// Handles a failed renewal of the token. The hub closes the connection when the token expires; a token is then
    /// requested again.
    pub(crate) fn forget_token(&mut self, why: &str) -> Notification {
        self.token = None;
        problem("token", format!("failed to get a token: {why}"))
    }

    /// Returns the URL of the next attempt.
    pub fn address(&mut self) -> Url {
        let mut url = self.url.clone();
        self.requested.clone_from(&self.topics);
        let topics = self.topics.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        let Cursor { connection_id, last_event_id } = &self.cursor;
        let parameters = [
            ("connection_id", connection_id.as_deref()),
            ("last_event_id", last_event_id.as_deref()),
            ("topics", Some(&*topics).filter(|topics| !topics.is_empty())),
        ];
        for (name, value) in parameters {
            if let Some(value) = value {
                url.query_pairs_mut().append_pair(name, value);
            }
        }
        url
    }

    /// Handles an open socket: the hub's first message is awaited.
    pub fn opened(&mut self, now: Instant) {
        (self.last_received, self.silence_limit) = (now, CONNECT_TIMEOUT);
    }

    /// Returns when the connection is closed unless a message arrives.
    pub(crate) fn deadline(&self) -> Instant {
        let silent = self.last_received + self.silence_limit;
        self.goaway.map_or(silent, |reconnect_at| silent.min(reconnect_at))
    }

    /// Returns how the connection ends at the deadline.
    pub(crate) fn expired(&self, now: Instant) -> End {
        match self.goaway {
            Some(reconnect_at) if reconnect_at <= now => End::Closed { code: 1012, reason: String::new() },
            _ => End::Lost(format!("no message from the hub for {} s", self.silence_limit.as_secs())),
        }
    }

    /// Subscribes to a topic, now and after each reconnect.
    ///
    /// # Errors
    /// If the topic is not valid. It is checked here because a comma would split it in the list of the URL.
    pub fn subscribe(&mut self, topic: &str) -> Result<(), Refused> {
        check_topic(topic).map_err(|error| Refused::because(format!("{topic:?} is not a valid topic: {error}")))?;
        if self.topics.insert(topic.to_owned()) {
            self.request_topic("subscribe", topic);
        }
        Ok(())
    }

    pub(crate) fn unsubscribe(&mut self, topic: &str) {
        if self.topics.remove(topic) {
            self.request_topic("unsubscribe", topic);
        }
    }

    /// Processes one text message.
    pub fn receive(&mut self, text: &str, now: Instant) -> Option<Notification> {
        self.last_received = now;
        self.read(text, now).unwrap_or_else(|error| {
            Some(problem("malformed", format!("ignored a message that does not follow the protocol: {error}")))
        })
    }

    fn read(&mut self, text: &str, now: Instant) -> serde_json::Result<Option<Notification>> {
        let head: Head<'_> = serde_json::from_str(text)?;
        if head.r#type == "gap" {
            let Body { reason, missed, .. } = serde_json::from_str(text)?;
            self.after_gap = head.event_id;
            return Ok(Some(Notification::Gap(Gap { reason: reason.unwrap_or_default(), missed })));
        }
        // Every other message moves the cursor, except a first `ack` that a `gap` follows: if the connection breaks
        // between the two, the client must receive the gap again.
        let position = head.log_position.as_ref().or(head.event_id.as_ref());
        if position.is_some() && !(head.r#type == "ack" && self.gap_follows(text)?) {
            self.cursor.last_event_id = position.cloned();
        }
        Ok(match &*head.r#type {
            "pong" => None,
            "ping" => {
                self.send(&json!({"type": "pong", "event_id": head.event_id}));
                None
            }
            "auth_expiring" if self.renewable => {
                self.expiring = true;
                None
            }
            "auth_expiring" => {
                Some(problem("token_expiring", "the token expires soon; the hub then closes the connection"))
            }
            "ack" => self.acknowledged(serde_json::from_str(text)?, now),
            "goaway" => {
                let body: Body<'_> = serde_json::from_str(text)?;
                self.goaway = Some(now + Duration::from_millis(body.reconnect_after_ms.unwrap_or(0)));
                None
            }
            "error" => Some(rejection(serde_json::from_str(text)?)),
            _ => self.event(text, head),
        })
    }

    /// Returns the next message to send.
    pub fn next_message(&mut self) -> Option<String> {
        self.outbox.pop_front()
    }

    /// Returns whether an `ack` is the first one of a connection that did not resume from the cursor.
    fn gap_follows(&self, text: &str) -> serde_json::Result<bool> {
        let body: Body<'_> = serde_json::from_str(text)?;
        Ok(!self.is_live() && self.cursor.last_event_id.is_some() && body.resumed == Some(false))
    }

    /// Handles the end of an attempt or a connection. Returns the new state, with the time until the next attempt.
    /// `random` is a number from 0 to 1.
    ///
    /// # Errors
    /// If another attempt cannot succeed.
    pub fn ended(&mut self, end: End, now: Instant, random: f64) -> Result<State, Refused> {
        if self.live_since.take().is_some_and(|since| now.saturating_duration_since(since) >= STABLE_AFTER) {
            self.attempts = 0;
        }
        self.outbox.clear();
        self.expiring = false;
        let goaway = self.goaway.take().map(|reconnect_at| reconnect_at.saturating_duration_since(now));
        let (policy, least, reason) = match end {
            End::Closed { code, reason } => (self.handle_close(code, &reason)?, None, describe(code, &reason)),
            End::Lost(why) => (None, None, why),
            End::Busy { why, retry_after } => (Some(Reconnect::Later), retry_after, why),
            End::NoToken(why) => (Some(Reconnect::Later), None, format!("failed to get a token: {why}")),
        };
        let pause = pause(policy, self.attempts, self.max_pause, random);
        self.attempts = self.attempts.saturating_add(1);
        let retry_in = goaway.or(least).unwrap_or_default() + pause;
        Ok(match self.cursor.connection_id {
            Some(_) => State::Resuming { reason, retry_in },
            None => State::Connecting { reason, retry_in },
        })
    }

    /// Returns the reconnect policy after a close, given the token that was sent.
    fn handle_close(&mut self, code: u16, reason: &str) -> Result<Option<Reconnect>, Refused> {
        match reconnect_policy(code, reason) {
            Some(Reconnect::Never) => Err(Refused::closed(code, reason)),
            Some(Reconnect::WithNewToken) => {
                let time_fixes = ["token_expired", "token_not_yet_valid"].iter().any(|code| reason.starts_with(code));
                // If a token that was just obtained is rejected, another token from the same source is too.
                if !self.renewable || (self.fresh && !time_fixes) {
                    return Err(Refused::closed(code, reason));
                }
                (self.token, self.rejected) = (None, true);
                Ok(Some(if self.fresh { Reconnect::Later } else { Reconnect::WithNewToken }))
            }
            other => Ok(other),
        }
    }

    fn acknowledged(&mut self, body: Body<'_>, now: Instant) -> Option<Notification> {
        // On a live connection, an `ack` answers a `subscribe`, an `unsubscribe` or an `auth`.
        if self.is_live() {
            let topic = body.topic.filter(|_| body.ack_event_id.as_deref() == Some("subscribe"))?;
            return Some(Notification::Subscribed { topic });
        }
        self.live_since = Some(now);
        (self.fresh, self.rejected) = (false, false);
        let interval = Duration::try_from_secs_f64(body.heartbeat.unwrap_or(30.0)).unwrap_or(Duration::from_secs(30));
        self.silence_limit = interval.mul_f64(1.5) + PING_GRACE;
        // The hub issues a new connection ID if it does not accept the one of the request.
        let connection_id = body.connection_id.unwrap_or_default();
        self.cursor.connection_id = Some(connection_id.clone()).filter(|id| !id.is_empty());
        let (topics, requested) = (self.topics.clone(), std::mem::take(&mut self.requested));
        // Requests for topics that were made during the connect are sent now.
        topics.difference(&requested).for_each(|topic| self.request_topic("subscribe", topic));
        requested.difference(&topics).for_each(|topic| self.request_topic("unsubscribe", topic));
        let (resumed, replayed) = (body.resumed == Some(true), body.replayed.unwrap_or(0));
        Some(Notification::State(State::Live { connection_id, resumed, replayed }))
    }

    fn event(&mut self, text: &str, head: Head<'_>) -> Option<Notification> {
        let event_id: Box<str> = head.event_id.unwrap_or_default().into();
        if !self.is_new(&event_id) {
            return None;
        }
        Some(Notification::Event(Event {
            event_type: head.r#type.into(),
            event_id,
            timestamp: head.timestamp.map(plain_text).unwrap_or_default().into(),
            log_position: head.log_position.map(Into::into),
            json: text.into(),
        }))
    }

    fn is_new(&mut self, event_id: &str) -> bool {
        if event_id.is_empty() {
            return true;
        }
        if !self.remembered.insert(event_id.into()) {
            return false;
        }
        self.remembered_order.push_back(event_id.into());
        if self.remembered_order.len() > REMEMBERED_IDS
            && let Some(oldest) = self.remembered_order.pop_front()
        {
            self.remembered.remove(&oldest);
        }
        true
    }

    /// Sends a request for a topic. While the connection is not live, the request is part of the next connect instead.
    fn request_topic(&mut self, kind: &str, topic: &str) {
        if self.is_live() {
            self.send(&json!({"type": kind, "topic": topic}));
        }
    }

    fn send(&mut self, message: &serde_json::Value) {
        self.outbox.push_back(message.to_string());
    }
}

fn endpoint(text: &str) -> Result<Url, Refused> {
    // The part before an @ may be a password, which must not be logged.
    let shown = if text.contains('@') { "the given URL".to_owned() } else { format!("{text:?}") };
    let invalid = |why: &str| Refused::because(format!("{shown} is not a valid URL of a hub: {why}"));
    let mut url = Url::parse(text.trim()).map_err(|error| invalid(&error.to_string()))?;
    let scheme = match url.scheme() {
        "ws" | "http" => "ws",
        "wss" | "https" => "wss",
        _ => return Err(invalid("it must begin with http://, https://, ws:// or wss://")),
    };
    url.set_scheme(scheme).map_err(|()| invalid("its scheme cannot be changed to ws:// or wss://"))?;
    let path = url.path().trim_end_matches('/').to_owned();
    let suffix = if path.ends_with("/ws") { "" } else { "/ws" };
    url.set_path(&format!("{path}{suffix}"));
    url.set_fragment(None);
    Ok(url)
}

fn rejection(body: Body<'_>) -> Notification {
    #[derive(Deserialize)]
    struct Details {
        message: String,
    }
    let details = body.details.map_or("", RawValue::get);
    let message = serde_json::from_str(details).map_or_else(|_| details.to_owned(), |Details { message }| message);
    let error = body.error.unwrap_or_else(|| "error".to_owned());
    Notification::Problem(Problem { error, message, ack_event_id: body.ack_event_id, topic: body.topic })
}

fn problem(error: &str, message: impl Into<String>) -> Notification {
    Notification::Problem(Problem { error: error.to_owned(), message: message.into(), ack_event_id: None, topic: None })
}

/// Returns the value of a string, or the JSON text of any other value.
fn plain_text(raw: &RawValue) -> String {
    serde_json::from_str(raw.get()).unwrap_or_else(|_| raw.get().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use fanfare_core::wire::{self, Incoming};
    use serde_json::Value;

    const FIRST_ACK: &str = concat!(
        r#"{"type":"ack","event_id":"pos-1-4","timestamp":"","ack_event_id":"initial_connect","connection_id":"c&d","#,
        r#""resumed":false,"replayed":0,"heartbeat":30}"#
    );

    struct Subject {
        link: Link,
        now: Instant,
    }

    impl Subject {
        fn new(token: Option<&str>) -> Self {
            let now = Instant::now();
            Self { link: Link::new("ws://h:1/hub/ws", token, now).unwrap(), now }
        }

        fn live(token: Option<&str>) -> Self {
            let mut subject = Self::new(token);
            let notification = subject.receives(FIRST_ACK);
            assert!(matches!(notification, Some(Notification::State(State::Live { .. }))), "{notification:?}");
            subject
        }

        fn receives(&mut self, text: &str) -> Option<Notification> {
            self.link.receive(text, self.now)
        }

        fn sends(&mut self) -> Vec<Value> {
            self.link.outbox.drain(..).map(|text| serde_json::from_str(&text).unwrap()).collect()
        }

        fn closed(&mut self, code: u16, reason: &str) -> Result<Duration, Refused> {
            let end = End::Closed { code, reason: reason.to_owned() };
            self.link.ended(end, self.now, 1.0).map(|state| state.retry_in().unwrap())
        }
    }

    fn cases(text: &str) -> Vec<Value> {
        let file: Value = serde_json::from_str(text).unwrap();
        let cases = file["cases"].as_array().unwrap().clone();
        assert!(cases.len() > 5, "{file}");
        cases
    }

    #[test]
    fn messages_are_handled_as_in_the_vectors() {
        for case in cases(include_str!("../../../tests/wire/frames.json")) {
            let mut subject = Subject::live(None);
            let notification = subject.receives(case["text"].as_str().unwrap());
            let client = &case["client"];
            if std::mem::take(&mut subject.link.expiring) {
                subject.link.use_token("a newer token".to_owned());
            }
            assert_eq!(subject.sends().first().unwrap_or(&Value::Null), &client["sends"], "{case}");
            match notification {
                Some(Notification::Problem(Problem { error, message, ack_event_id, topic })) => {
                    let problem = &client["problem"];
                    assert_eq!((&problem["error"], &problem["message"]), (&json!(error), &json!(message)), "{case}");
                    let expected = [&case["say"]["ack_event_id"], &case["say"]["topic"]];
                    assert_eq!(expected, [&json!(ack_event_id), &json!(topic)], "{case}");
                }
                Some(Notification::Gap(Gap { reason, missed })) => {
                    let mut gap = json!({"reason": reason});
                    missed.into_iter().for_each(|missed| gap["missed"] = json!(missed));
                    assert_eq!(client["gap"], gap, "{case}");
                }
                Some(other) => panic!("{case}: {other:?}"),
                None => assert!(client.get("problem").or(client.get("gap")).is_none(), "{case}"),
            }
            if let Some(ms) = client["returns_after_ms"].as_u64() {
                let reconnect_at = subject.now + Duration::from_millis(ms);
                assert_eq!(subject.link.deadline(), reconnect_at);
                assert!(matches!(subject.link.expired(reconnect_at), End::Closed { code: 1012, .. }));
            }
            subject.link.go_on();
            let position = case["say"]["event_id"].as_str().unwrap_or("pos-ab-5");
            assert_eq!(subject.link.cursor.last_event_id.as_deref(), Some(position), "{case}");
        }
    }

    #[test]
    fn events_are_returned_as_in_the_vectors() {
        let mut subject = Subject::live(None);
        for case in cases(include_str!("../../../tests/wire/events.json")) {
            let Some(delivered) = case["delivered"].as_str() else { continue };
            let Some(Notification::Event(event)) = subject.receives(delivered) else { panic!("{case}") };
            let whole: Value = serde_json::from_str(delivered).unwrap();
            assert_eq!(event.json(), delivered);
            assert_eq!(
                (event.event_type(), event.event_id()),
                (whole["type"].as_str().unwrap(), whole["event_id"].as_str().unwrap())
            );
            let timestamp = whole["timestamp"].as_str().map_or_else(|| whole["timestamp"].to_string(), str::to_owned);
            let data = whole.get("data").unwrap_or_else(|| &whole["payload"]);
            assert_eq!((event.timestamp(), &event.data::<Value>().unwrap()), (&*timestamp, data), "{case}");
        }
    }

    #[test]
    fn the_cursor_is_the_one_of_the_vectors() {
        let mut subject = Subject::live(None);
        for case in cases(include_str!("../../../tests/wire/cursors.json")) {
            let frame = case["frame"].as_str().unwrap();
            if let Some(Notification::Event(event)) = subject.receives(frame) {
                assert_eq!(event.json(), frame);
            }
            assert_eq!(subject.link.cursor.last_event_id.as_deref(), case["cursor"].as_str(), "{case}");
        }
    }

    #[test]
    fn fields_of_an_event_may_have_any_name_and_value() {
        let odd =
            r#"{"type":"note","event_id":"n","timestamp":"","data":{},"reason":[1],"heartbeat":"x","details":null}"#;
        assert!(matches!(Subject::live(None).receives(odd), Some(Notification::Event(_))));
    }

    #[test]
    fn every_message_moves_the_cursor() {
        let mut subject = Subject::new(None);
        subject.link.subscribe("a").unwrap();
        subject.link.subscribe("b").unwrap();
        assert_eq!(subject.link.address().as_str(), "ws://h:1/hub/ws?topics=a%2Cb");
        subject.receives(FIRST_ACK);
        subject.receives(r#"{"type":"ping","event_id":"pos-1-7","timestamp":""}"#);
        let expected = "ws://h:1/hub/ws?connection_id=c%26d&last_event_id=pos-1-7&topics=a%2Cb";
        assert_eq!(subject.link.address().as_str(), expected);
    }

    #[test]
    fn the_cursor_stays_before_a_gap_until_the_next_call() {
        let mut subject = Subject::new(None);
        subject.link.cursor.last_event_id = Some("pos-1-2".to_owned());
        let cursor = |subject: &Subject| subject.link.cursor.last_event_id.clone().unwrap();
        subject.receives(FIRST_ACK);
        assert_eq!(cursor(&subject), "pos-1-2", "the ack has the position after the gap that follows it");
        // If the connection breaks before the gap arrives, the next connection must receive the gap.
        subject.link.ended(End::Lost(String::new()), subject.now, 1.0).unwrap();
        subject.receives(FIRST_ACK);
        let gap = r#"{"type":"gap","event_id":"pos-1-9","timestamp":"","reason":"expired","missed":7}"#;
        assert!(matches!(subject.receives(gap), Some(Notification::Gap(_))));
        assert_eq!(cursor(&subject), "pos-1-2", "a cursor saved while the data is reloaded leads to the gap again");
        subject.link.go_on();
        assert_eq!(cursor(&subject), "pos-1-9");
    }

    #[test]
    fn duplicate_events_are_dropped() {
        let mut subject = Subject::live(None);
        let note = |n: usize| format!(r#"{{"type":"note","event_id":"n-{n}","timestamp":"","data":{{}}}}"#);
        assert!(subject.receives(&note(0)).is_some() && subject.receives(&note(0)).is_none());
        for n in 1..=REMEMBERED_IDS {
            assert!(subject.receives(&note(n)).is_some());
        }
        assert!(subject.receives(&note(0)).is_some(), "only the newest IDs are remembered");
        assert_eq!(subject.link.remembered.len(), REMEMBERED_IDS);
    }

    #[test]
    fn an_invalid_topic_is_rejected_before_it_is_sent() {
        let mut subject = Subject::new(None);
        for name in ["project:7,secret", "", "a b", "project:*"] {
            let error = subject.link.subscribe(name).unwrap_err();
            assert!(error.reason.contains("is not a valid topic"), "{error}");
        }
        assert_eq!(subject.link.address().as_str(), "ws://h:1/hub/ws");
    }

    #[test]
    fn changes_of_topics_during_a_connect_are_sent_after_it() {
        let mut subject = Subject::new(None);
        subject.link.subscribe("early").unwrap();
        subject.link.subscribe("never-mind").unwrap();
        subject.link.address();
        subject.link.subscribe("late").unwrap();
        subject.link.unsubscribe("never-mind");
        assert!(subject.sends().is_empty());
        subject.receives(FIRST_ACK);
        let expected =
            [json!({"type": "subscribe", "topic": "late"}), json!({"type": "unsubscribe", "topic": "never-mind"})];
        assert_eq!(subject.sends(), expected);
        subject.link.subscribe("late").unwrap();
        assert!(subject.sends().is_empty(), "already subscribed");
    }

    #[test]
    fn sent_messages_are_valid_for_the_hub() {
        let mut subject = Subject::live(None);
        subject.link.subscribe("t").unwrap();
        subject.link.unsubscribe("t");
        subject.link.use_token("k".to_owned());
        subject.receives(r#"{"type":"ping","event_id":"pos-1-7","timestamp":""}"#);
        let texts: Vec<_> = subject.link.outbox.drain(..).collect();
        let read: Vec<_> = texts.iter().map(|text| wire::read(text).unwrap().0).collect();
        let expected = [
            Incoming::Subscribe { topic: "t".into() },
            Incoming::Unsubscribe { topic: "t".into() },
            Incoming::Auth { token: "k".into() },
            Incoming::Pong,
        ];
        assert_eq!(format!("{read:?}"), format!("{expected:?}"));
    }

    #[test]
    fn a_rejected_token_is_replaced_once() {
        let mut fixed = Subject::live(Some("given"));
        assert_eq!(fixed.closed(1008, "token_expired").unwrap_err().code, Some(1008));

        let mut sourced = Subject::new(None);
        assert_eq!(sourced.link.token(), None);
        sourced.link.use_token("one".to_owned());
        sourced.receives(FIRST_ACK);
        assert!(sourced.closed(1008, "token_revoked").unwrap() <= Duration::from_millis(250));
        assert_eq!(sourced.link.token(), None, "another token is requested");
        sourced.link.use_token("two".to_owned());
        assert!(sourced.closed(1008, "token_not_yet_valid").unwrap() > Duration::from_secs(4), "time may fix it");
        sourced.link.use_token("three".to_owned());
        assert!(sourced.closed(1008, "token_invalid").is_err(), "another token would not help");
        assert!(Subject::live(None).closed(1008, "forbidden: no").is_err());
    }

    #[test]
    fn pauses_are_reset_after_a_stable_connection() {
        let mut subject = Subject::new(Some("t"));
        let lost = |subject: &mut Subject| {
            subject.link.ended(End::Lost(String::new()), subject.now, 1.0).unwrap().retry_in().unwrap().as_secs()
        };
        assert_eq!([(); 4].map(|()| lost(&mut subject)), [1, 2, 4, 8]);
        subject.receives(FIRST_ACK);
        assert_eq!(lost(&mut subject), 16, "the connection was not stable");
        subject.receives(FIRST_ACK);
        subject.now += STABLE_AFTER;
        assert_eq!(lost(&mut subject), 1);
    }

    #[test]
    fn a_client_reconnects_after_the_time_of_a_goaway() {
        let goaway =
            r#"{"type":"goaway","event_id":"pos-1-1","timestamp":"","reconnect_after_ms":1000,"reason":"drain"}"#;
        let mut subject = Subject::live(Some("t"));
        subject.receives(goaway);
        subject.now += Duration::from_millis(400);
        let pause = subject.closed(1012, "").unwrap();
        assert_eq!(pause, Duration::from_millis(600 + 250), "the rest of that time, and a spread");
        assert!(subject.link.goaway.is_none());
    }

    #[test]
    fn a_connection_to_a_silent_hub_is_closed() {
        let mut subject = Subject::live(Some("t"));
        let silence = Duration::from_secs(45) + PING_GRACE;
        assert_eq!(subject.link.deadline(), subject.now + silence);
        subject.now += silence;
        assert!(matches!(subject.link.expired(subject.now), End::Lost(_)));
        subject.receives(r#"{"type":"pong","event_id":"pos-1-1","timestamp":""}"#);
        assert_eq!(subject.link.deadline(), subject.now + silence);
    }

    #[test]
    fn the_url_of_a_hub_or_of_its_endpoint_is_accepted() {
        for url in ["http://[::1]:8000/hub/", "ws://[::1]:8000/hub/ws", "http://[::1]:8000/hub#x"] {
            assert_eq!(endpoint(url).unwrap().as_str(), "ws://[::1]:8000/hub/ws");
        }
        assert_eq!(endpoint("https://host?site=1").unwrap().as_str(), "wss://host/ws?site=1");
        for url in ["ftp://host", "host:8000", "http://", ""] {
            assert!(endpoint(url).is_err(), "{url}");
        }
        assert!(endpoint("ftp://host").unwrap_err().reason.contains("must begin with http://"));
    }
}

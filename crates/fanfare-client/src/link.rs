//! One client without I/O: where it is, and what it does about each frame and each end. Time and randomness are arguments.

use crate::{
    closes::{pause, verdict, words},
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

/// How many of the newest events are known again.
const KNOWN: usize = 1_000;
/// A connection that lasted so long begins anew with its pauses.
const STEADY: Duration = Duration::from_secs(10);
/// How long the first frame may take.
pub(crate) const FIRST: Duration = Duration::from_secs(10);
/// How late a ping may be beyond one and a half periods.
const LATE: Duration = Duration::from_secs(5);

/// Where a client is: what it shows to go on there, also after a restart of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursor {
    /// What the hub called it.
    pub connection_id: Option<String>,
    /// The place of the last frame that it took, of whatever type: its `log_position` or its `event_id`.
    pub last_event_id: Option<String>,
}

/// How an attempt or a connection ended.
#[derive(Debug)]
pub enum End {
    /// The hub closed it.
    Closed {
        /// The close code.
        code: u16,
        /// The reason in the close frame.
        reason: String,
    },
    /// It broke off, or there was none.
    Lost(String),
    /// The hub has no room now.
    Busy {
        /// What it said.
        why: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// Nobody gave a token.
    NoToken(String),
}

/// One client: where it is, and what it wants.
#[derive(Debug)]
pub struct Link {
    url: Url,
    /// Where it goes on.
    pub(crate) cursor: Cursor,
    /// The place behind a gap that was handed out, and that is not yet known to be dealt with.
    behind_gap: Option<String>,
    topics: BTreeSet<String>,
    /// The topics that stood in the URL.
    asked: BTreeSet<String>,
    pub(crate) longest: Duration,
    token: Option<String>,
    /// Whether another can be had.
    renewable: bool,
    /// The token was given for this attempt, and nothing is known of it yet.
    fresh: bool,
    /// The hub rejected the last token.
    rejected: bool,
    live_since: Option<Instant>,
    /// Attempts in a row that led to nothing lasting.
    attempts: u32,
    heard: Instant,
    /// How long the hub may be silent.
    patience: Duration,
    /// When a hub that goes away wants its clients back. It is left then, if it hasn't closed before.
    goaway: Option<Instant>,
    /// The token in use ends soon.
    pub(crate) expiring: bool,
    /// What is to be sent.
    pub(crate) outbox: VecDeque<String>,
    known: HashSet<Box<str>>,
    /// The same, oldest first.
    order: VecDeque<Box<str>>,
}

/// What is read of every frame.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    event_id: Option<String>,
    /// Where an event stands in the log. A hub of an older version says it of none.
    log_position: Option<String>,
    /// Publishers may send any value; the hub itself writes a string.
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
}

/// What is read of the hub's own frames. An event may have fields of these names, and of any shape.
#[derive(Deserialize)]
struct Own<'a> {
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
    /// The URL of a hub, or of its endpoint; `http` and `https` mean `ws` and `wss`.
    ///
    /// # Errors
    /// If it is no such URL.
    pub fn new(url: &str, token: Option<&str>, now: Instant) -> Result<Self, Refused> {
        Ok(Self {
            url: endpoint(url)?,
            cursor: Cursor::default(),
            behind_gap: None,
            topics: BTreeSet::new(),
            asked: BTreeSet::new(),
            longest: Duration::from_secs(30),
            token: token.map(str::to_owned),
            renewable: token.is_none(),
            fresh: false,
            rejected: false,
            live_since: None,
            attempts: 0,
            heard: now,
            patience: FIRST,
            goaway: None,
            expiring: false,
            outbox: VecDeque::new(),
            known: HashSet::new(),
            order: VecDeque::new(),
        })
    }

    pub(crate) fn is_live(&self) -> bool {
        self.live_since.is_some()
    }

    pub(crate) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Why a token is asked for to connect.
    pub(crate) fn token_reason(&self) -> TokenReason {
        if self.rejected { TokenReason::Rejected } else { TokenReason::Connect }
    }

    /// The application asks for more: it has dealt with a gap that was handed out.
    pub fn go_on(&mut self) {
        if let Some(place) = self.behind_gap.take() {
            self.cursor.last_event_id = Some(place);
        }
    }

    /// A token was given: to connect with, or to show over this connection.
    pub(crate) fn use_token(&mut self, token: String) {
        if self.is_live() {
            self.say(&json!({"type": "auth", "token": token}));
        } else {
            self.fresh = true;
        }
        self.token = Some(token);
    }

    /// Another token is to be used, or another way to get one.
    pub(crate) fn replace_token(&mut self, token: Option<&str>) {
        (self.renewable, self.fresh, self.rejected) = (token.is_none(), false, false);
        self.attempts = 0;
        self.token = token.map(str::to_owned);
    }

    /// None was given in time; the hub will close, and then it is asked for again.
    pub(crate) fn forget_token(&mut self, why: &str) -> Notification {
        self.token = None;
        problem("token", format!("no token was given: {why}"))
    }

    /// The address of the next attempt.
    pub fn address(&mut self) -> Url {
        let mut url = self.url.clone();
        self.asked.clone_from(&self.topics);
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

    /// The socket is open, and the hub's first frame is to come.
    pub fn opened(&mut self, now: Instant) {
        (self.heard, self.patience) = (now, FIRST);
    }

    /// When the connection is to be given up unless something is heard.
    pub(crate) fn deadline(&self) -> Instant {
        let silent = self.heard + self.patience;
        self.goaway.map_or(silent, |back| silent.min(back))
    }

    /// The deadline is there.
    pub(crate) fn expired(&self, now: Instant) -> End {
        match self.goaway {
            Some(back) if back <= now => End::Closed { code: 1012, reason: String::new() },
            _ => End::Lost(format!("nothing was heard for {} s", self.patience.as_secs())),
        }
    }

    /// A name that is no topic is rejected here: in the list of the URL, a comma would make two topics of it.
    ///
    /// # Errors
    /// If it is no name of a topic.
    pub fn subscribe(&mut self, topic: &str) -> Result<(), Refused> {
        check_topic(topic).map_err(|error| Refused::because(format!("{topic:?} is not a topic: {error}")))?;
        if self.topics.insert(topic.to_owned()) {
            self.ask("subscribe", topic);
        }
        Ok(())
    }

    pub(crate) fn unsubscribe(&mut self, topic: &str) {
        if self.topics.remove(topic) {
            self.ask("unsubscribe", topic);
        }
    }

    /// Takes in one frame.
    pub fn receive(&mut self, text: &str, now: Instant) -> Option<Notification> {
        self.heard = now;
        self.read(text, now).unwrap_or_else(|error| {
            Some(problem("malformed", format!("a message is not of fanfare's protocol, and left out: {error}")))
        })
    }

    fn read(&mut self, text: &str, now: Instant) -> serde_json::Result<Option<Notification>> {
        let head: Head<'_> = serde_json::from_str(text)?;
        if head.r#type == "gap" {
            let Own { reason, missed, .. } = serde_json::from_str(text)?;
            self.behind_gap = head.event_id;
            return Ok(Some(Notification::Gap(Gap { reason: reason.unwrap_or_default(), missed })));
        }
        // Any other frame names a place to go on from, except an ack that stands behind a gap still to be told.
        let place = head.log_position.as_ref().or(head.event_id.as_ref());
        if place.is_some() && !(head.r#type == "ack" && self.gap_follows(text)?) {
            self.cursor.last_event_id = place.cloned();
        }
        Ok(match &*head.r#type {
            "pong" => None,
            "ping" => {
                self.say(&json!({"type": "pong", "event_id": head.event_id}));
                None
            }
            "auth_expiring" if self.renewable => {
                self.expiring = true;
                None
            }
            "auth_expiring" => Some(problem("token_expiring", "the token ends soon, and with it the connection")),
            "ack" => self.acknowledged(serde_json::from_str(text)?, now),
            "goaway" => {
                let own: Own<'_> = serde_json::from_str(text)?;
                self.goaway = Some(now + Duration::from_millis(own.reconnect_after_ms.unwrap_or(0)));
                None
            }
            "error" => Some(refused(serde_json::from_str(text)?)),
            _ => self.event(text, head),
        })
    }

    /// What is to be sent next.
    pub fn next_message(&mut self) -> Option<String> {
        self.outbox.pop_front()
    }

    /// Whether this `ack` says that the connection does not go on where the cursor is.
    fn gap_follows(&self, text: &str) -> serde_json::Result<bool> {
        let own: Own<'_> = serde_json::from_str(text)?;
        Ok(!self.is_live() && self.cursor.last_event_id.is_some() && own.resumed == Some(false))
    }

    /// What follows from an end: how long to wait, or that there is no use in it. `random`: from 0 to 1.
    ///
    /// # Errors
    /// If another attempt would end as this one.
    pub fn ended(&mut self, end: End, now: Instant, random: f64) -> Result<State, Refused> {
        if self.live_since.take().is_some_and(|since| now.saturating_duration_since(since) >= STEADY) {
            self.attempts = 0;
        }
        self.outbox.clear();
        self.expiring = false;
        let goaway = self.goaway.take().map(|back| back.saturating_duration_since(now));
        let (verdict, least, reason) = match end {
            End::Closed { code, reason } => (self.obey(code, &reason)?, None, words(code, &reason)),
            End::Lost(why) => (None, None, why),
            End::Busy { why, retry_after } => (Some(Reconnect::Later), retry_after, why),
            End::NoToken(why) => (Some(Reconnect::Later), None, format!("no token was given: {why}")),
        };
        let pause = pause(verdict, self.attempts, self.longest, random);
        self.attempts = self.attempts.saturating_add(1);
        let retry_in = goaway.or(least).unwrap_or_default() + pause;
        Ok(match self.cursor.connection_id {
            Some(_) => State::Resuming { reason, retry_in },
            None => State::Connecting { reason, retry_in },
        })
    }

    /// What a close asks for, given which token was shown.
    fn obey(&mut self, code: u16, reason: &str) -> Result<Option<Reconnect>, Refused> {
        match verdict(code, reason) {
            Some(Reconnect::Never) => Err(Refused::closed(code, reason)),
            Some(Reconnect::WithNewToken) => {
                let time_mends = ["token_expired", "token_not_yet_valid"].iter().any(|word| reason.starts_with(word));
                // One that was just given and is refused all the same is not mended by another.
                if !self.renewable || (self.fresh && !time_mends) {
                    return Err(Refused::closed(code, reason));
                }
                (self.token, self.rejected) = (None, true);
                Ok(Some(if self.fresh { Reconnect::Later } else { Reconnect::WithNewToken }))
            }
            other => Ok(other),
        }
    }

    fn acknowledged(&mut self, own: Own<'_>, now: Instant) -> Option<Notification> {
        // Others answer a subscribe, an unsubscribe or an auth.
        if self.is_live() {
            let topic = own.topic.filter(|_| own.ack_event_id.as_deref() == Some("subscribe"))?;
            return Some(Notification::Subscribed { topic });
        }
        self.live_since = Some(now);
        (self.fresh, self.rejected) = (false, false);
        let period = Duration::try_from_secs_f64(own.heartbeat.unwrap_or(30.0)).unwrap_or(Duration::from_secs(30));
        self.patience = period.mul_f64(1.5) + LATE;
        // Another id in the answer means that the old one is lost.
        let connection_id = own.connection_id.unwrap_or_default();
        self.cursor.connection_id = Some(connection_id.clone()).filter(|id| !id.is_empty());
        let (topics, asked) = (self.topics.clone(), std::mem::take(&mut self.asked));
        // What was wanted, and no longer wanted, while the socket opened.
        topics.difference(&asked).for_each(|topic| self.ask("subscribe", topic));
        asked.difference(&topics).for_each(|topic| self.ask("unsubscribe", topic));
        let (resumed, replayed) = (own.resumed == Some(true), own.replayed.unwrap_or(0));
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
        if !self.known.insert(event_id.into()) {
            return false;
        }
        self.order.push_back(event_id.into());
        if self.order.len() > KNOWN
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }

    fn ask(&mut self, what: &str, topic: &str) {
        if self.is_live() {
            self.say(&json!({"type": what, "topic": topic}));
        }
    }

    fn say(&mut self, message: &serde_json::Value) {
        self.outbox.push_back(message.to_string());
    }
}

fn endpoint(text: &str) -> Result<Url, Refused> {
    // What is before an @ could be a password.
    let shown = if text.contains('@') { "what was given".to_owned() } else { format!("{text:?}") };
    let wrong = |why: &str| Refused::because(format!("{shown} can't be a hub's URL: {why}"));
    let mut url = Url::parse(text.trim()).map_err(|error| wrong(&error.to_string()))?;
    let scheme = match url.scheme() {
        "ws" | "http" => "ws",
        "wss" | "https" => "wss",
        _ => return Err(wrong("it must begin with http://, https://, ws:// or wss://")),
    };
    url.set_scheme(scheme).map_err(|()| wrong("it has another scheme"))?;
    let path = url.path().trim_end_matches('/').to_owned();
    let suffix = if path.ends_with("/ws") { "" } else { "/ws" };
    url.set_path(&format!("{path}{suffix}"));
    url.set_fragment(None);
    Ok(url)
}

fn refused(own: Own<'_>) -> Notification {
    #[derive(Deserialize)]
    struct Details {
        message: String,
    }
    let details = own.details.map_or("", RawValue::get);
    let message = serde_json::from_str(details).map_or_else(|_| details.to_owned(), |Details { message }| message);
    let error = own.error.unwrap_or_else(|| "error".to_owned());
    Notification::Problem(Problem { error, message, ack_event_id: own.ack_event_id, topic: own.topic })
}

fn problem(error: &str, message: impl Into<String>) -> Notification {
    Notification::Problem(Problem { error: error.to_owned(), message: message.into(), ack_event_id: None, topic: None })
}

/// A string without its quotes; any other value as it is written.
fn plain_text(raw: &RawValue) -> String {
    serde_json::from_str(raw.get()).unwrap_or_else(|_| raw.get().to_owned())
}

#[cfg(test)]
mod notificationtests {
    use super::*;
    use fanfare_core::wire::{self, Incoming};
    use serde_json::Value;

    const FIRST_ACK: &str = r#"{"type":"ack","event_id":"pos-1-4","timestamp":"","ack_event_id":"initial_connect","connection_id":"c&d","resumed":false,"replayed":0,"heartbeat":30}"#;

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
            let heard = subject.hears(FIRST_ACK);
            assert!(matches!(heard, Some(Notification::State(State::Live { .. }))), "{notification:?}");
            subject
        }

        fn hears(&mut self, text: &str) -> Option<Notification> {
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
    fn frames_are_answered_as_the_vectors_say() {
        for case in cases(include_str!("../../../tests/wire/frames.json")) {
            let mut subject = Subject::live(None);
            let heard = subject.hears(case["text"].as_str().unwrap());
            let client = &case["client"];
            if std::mem::take(&mut subject.link.expiring) {
                subject.link.use_token("a newer token".to_owned());
            }
            assert_eq!(subject.sends().first().unwrap_or(&Value::Null), &client["sends"], "{case}");
            match heard {
                Some(Notification::Problem(Problem { error, message, ack_event_id, topic })) => {
                    let problem = &client["problem"];
                    assert_eq!((&problem["error"], &problem["message"]), (&json!(error), &json!(message)), "{case}");
                    let said = [&case["say"]["ack_event_id"], &case["say"]["topic"]];
                    assert_eq!(said, [&json!(ack_event_id), &json!(topic)], "{case}");
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
                let back = subject.now + Duration::from_millis(ms);
                assert_eq!(subject.link.deadline(), back);
                assert!(matches!(subject.link.expired(back), End::Closed { code: 1012, .. }));
            }
            subject.link.go_on();
            let place = case["say"]["event_id"].as_str().unwrap_or("pos-ab-5");
            assert_eq!(subject.link.cursor.last_event_id.as_deref(), Some(place), "{case}");
        }
    }

    #[test]
    fn events_are_handed_on_as_the_vectors_say() {
        let mut subject = Subject::live(None);
        for case in cases(include_str!("../../../tests/wire/events.json")) {
            let Some(delivered) = case["delivered"].as_str() else { continue };
            let Some(Notification::Event(event)) = subject.hears(delivered) else { panic!("{case}") };
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
    fn the_cursor_is_the_place_that_the_vectors_say() {
        let mut subject = Subject::live(None);
        for case in cases(include_str!("../../../tests/wire/cursors.json")) {
            let frame = case["frame"].as_str().unwrap();
            if let Some(Notification::Event(event)) = subject.hears(frame) {
                assert_eq!(event.json(), frame);
            }
            assert_eq!(subject.link.cursor.last_event_id.as_deref(), case["cursor"].as_str(), "{case}");
        }
    }

    #[test]
    fn an_events_own_fields_may_have_any_name_and_shape() {
        let odd =
            r#"{"type":"note","event_id":"n","timestamp":"","data":{},"reason":[1],"heartbeat":"x","details":null}"#;
        assert!(matches!(Subject::live(None).hears(odd), Some(Notification::Event(_))));
    }

    #[test]
    fn every_frames_id_is_a_place_to_go_on_from() {
        let mut subject = Subject::new(None);
        subject.link.subscribe("a").unwrap();
        subject.link.subscribe("b").unwrap();
        assert_eq!(subject.link.address().as_str(), "ws://h:1/hub/ws?topics=a%2Cb");
        subject.hears(FIRST_ACK);
        subject.hears(r#"{"type":"ping","event_id":"pos-1-7","timestamp":""}"#);
        let expected = "ws://h:1/hub/ws?connection_id=c%26d&last_event_id=pos-1-7&topics=a%2Cb";
        assert_eq!(subject.link.address().as_str(), expected);
    }

    #[test]
    fn a_cursor_stays_before_a_gap_until_more_is_asked_for() {
        let mut subject = Subject::new(None);
        subject.link.cursor.last_event_id = Some("pos-1-2".to_owned());
        let place = |subject: &Subject| subject.link.cursor.last_event_id.clone().unwrap();
        subject.hears(FIRST_ACK);
        assert_eq!(place(&subject), "pos-1-2", "the ack stands behind the gap that follows it");
        // The connection breaks off in between: the next one must hear of the gap.
        subject.link.ended(End::Lost(String::new()), subject.now, 1.0).unwrap();
        subject.hears(FIRST_ACK);
        let gap = r#"{"type":"gap","event_id":"pos-1-9","timestamp":"","reason":"expired","missed":7}"#;
        assert!(matches!(subject.hears(gap), Some(Notification::Gap(_))));
        assert_eq!(place(&subject), "pos-1-2", "what is saved while the state is fetched leads to the gap again");
        subject.link.go_on();
        assert_eq!(place(&subject), "pos-1-9");
    }

    #[test]
    fn what_was_seen_is_dropped() {
        let mut subject = Subject::live(None);
        let note = |n: usize| format!(r#"{{"type":"note","event_id":"n-{n}","timestamp":"","data":{{}}}}"#);
        assert!(subject.hears(&note(0)).is_some() && subject.hears(&note(0)).is_none());
        for n in 1..=KNOWN {
            assert!(subject.hears(&note(n)).is_some());
        }
        assert!(subject.hears(&note(0)).is_some(), "no more than the newest are remembered");
        assert_eq!(subject.link.known.len(), KNOWN);
    }

    #[test]
    fn a_name_that_is_no_topic_is_rejected_before_it_is_sent() {
        let mut subject = Subject::new(None);
        for name in ["project:7,secret", "", "a b", "project:*"] {
            let error = subject.link.subscribe(name).unwrap_err();
            assert!(error.reason.contains("is not a topic"), "{error}");
        }
        assert_eq!(subject.link.address().as_str(), "ws://h:1/hub/ws");
    }

    #[test]
    fn topics_that_changed_while_it_connected_are_asked_for_after_it() {
        let mut subject = Subject::new(None);
        subject.link.subscribe("early").unwrap();
        subject.link.subscribe("never-mind").unwrap();
        subject.link.address();
        subject.link.subscribe("late").unwrap();
        subject.link.unsubscribe("never-mind");
        assert!(subject.sends().is_empty());
        subject.hears(FIRST_ACK);
        let asked =
            [json!({"type": "subscribe", "topic": "late"}), json!({"type": "unsubscribe", "topic": "never-mind"})];
        assert_eq!(subject.sends(), asked);
        subject.link.subscribe("late").unwrap();
        assert!(subject.sends().is_empty(), "it is asked for already");
    }

    #[test]
    fn a_hub_reads_what_is_sent() {
        let mut subject = Subject::live(None);
        subject.link.subscribe("t").unwrap();
        subject.link.unsubscribe("t");
        subject.link.use_token("k".to_owned());
        subject.hears(r#"{"type":"ping","event_id":"pos-1-7","timestamp":""}"#);
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
    fn a_refused_token_is_asked_for_anew_once() {
        let mut given = Subject::live(Some("given"));
        assert_eq!(given.closed(1008, "token_expired").unwrap_err().code, Some(1008));

        let mut asked = Subject::new(None);
        assert_eq!(asked.link.token(), None);
        asked.link.use_token("one".to_owned());
        asked.hears(FIRST_ACK);
        assert!(asked.closed(1008, "token_revoked").unwrap() <= Duration::from_millis(250));
        assert_eq!(asked.link.token(), None, "another is asked for");
        asked.link.use_token("two".to_owned());
        assert!(asked.closed(1008, "token_not_yet_valid").unwrap() > Duration::from_secs(4), "time may mend it");
        asked.link.use_token("three".to_owned());
        assert!(asked.closed(1008, "token_invalid").is_err(), "nothing mends it");
        assert!(Subject::live(None).closed(1008, "forbidden: no").is_err());
    }

    #[test]
    fn pauses_begin_anew_after_a_connection_that_lasted() {
        let mut subject = Subject::new(Some("t"));
        let lost = |subject: &mut Subject| {
            subject.link.ended(End::Lost(String::new()), subject.now, 1.0).unwrap().retry_in().unwrap().as_secs()
        };
        assert_eq!([(); 4].map(|()| lost(&mut subject)), [1, 2, 4, 8]);
        subject.hears(FIRST_ACK);
        assert_eq!(lost(&mut subject), 16, "it broke off at once");
        subject.hears(FIRST_ACK);
        subject.now += STEADY;
        assert_eq!(lost(&mut subject), 1);
    }

    #[test]
    fn a_hub_that_goes_away_is_found_again_when_it_said() {
        let goaway =
            r#"{"type":"goaway","event_id":"pos-1-1","timestamp":"","reconnect_after_ms":1000,"reason":"drain"}"#;
        let mut subject = Subject::live(Some("t"));
        subject.hears(goaway);
        subject.now += Duration::from_millis(400);
        let pause = subject.closed(1012, "").unwrap();
        assert_eq!(pause, Duration::from_millis(600 + 250), "what is left of it, and a spread");
        assert!(subject.link.goaway.is_none());
    }

    #[test]
    fn a_silent_hub_is_given_up() {
        let mut subject = Subject::live(Some("t"));
        let silence = Duration::from_secs(45) + LATE;
        assert_eq!(subject.link.deadline(), subject.now + silence);
        subject.now += silence;
        assert!(matches!(subject.link.expired(subject.now), End::Lost(_)));
        subject.hears(r#"{"type":"pong","event_id":"pos-1-1","timestamp":""}"#);
        assert_eq!(subject.link.deadline(), subject.now + silence);
    }

    #[test]
    fn the_hub_and_its_endpoint_are_the_same_place() {
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

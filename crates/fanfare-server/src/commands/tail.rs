//! `fanfare tail`: prints events as they come. It reconnects, and goes on where it was.

use super::{Usage, access::Access, backoff::Backoff, http::Server, print, random, say};
use crate::settings::Settings;
use anyhow::{Context, bail};
use clap::ArgMatches;
use fanfare::{CloseCode, Reconnect, auth::Claims};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use std::{borrow::Cow, time::Duration};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, client_async_tls,
    tungstenite::{
        self, Message,
        client::IntoClientRequest,
        http::{HeaderValue, StatusCode, header::AUTHORIZATION},
        protocol::{CloseFrame, frame::coding::CloseCode as WireCode},
    },
};

const PATIENCE: Duration = Duration::from_secs(10);
/// What the hub's own answer to `Later` is: a pause of some seconds with random spread.
const LATER: Duration = Duration::from_secs(5);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// What was asked for, and how far it got.
struct Tail {
    server: Server,
    access: Access,
    topics: String,
    types: Vec<String>,
    pretty: bool,
    remaining: Option<u64>,
    connection_id: Option<String>,
    last_event_id: Option<String>,
    backoff: Backoff,
    /// Tokens refused in a row.
    refusals: u32,
    /// What `goaway` said.
    come_back_after: Option<Duration>,
    /// How long the hub may be silent.
    silence: Duration,
}

/// Why a connection ended.
enum End {
    /// Everything that was asked for is printed.
    Done,
    /// The hub closed it.
    Closed { code: u16, reason: String },
    /// The network did, or there was none.
    Lost(String),
}

/// What is read of a frame; the rest is printed as it came.
#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    event_id: Option<String>,
    #[serde(borrow)]
    timestamp: Option<Cow<'a, str>>,
    connection_id: Option<String>,
    ack_event_id: Option<String>,
    resumed: Option<bool>,
    replayed: Option<u64>,
    heartbeat: Option<f64>,
    reason: Option<String>,
    missed: Option<u64>,
    error: Option<String>,
    #[serde(borrow)]
    details: Option<&'a RawValue>,
    reconnect_after_ms: Option<u64>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

pub(super) async fn run(matches: &ArgMatches, settings: &Settings) -> anyhow::Result<()> {
    let mut tail = Tail::new(matches, settings)?;
    tokio::select! {
        result = tail.follow() => result,
        // Asked to end, it has done what it should.
        result = tokio::signal::ctrl_c() => Ok(result?),
    }
}

impl Tail {
    fn new(matches: &ArgMatches, settings: &Settings) -> anyhow::Result<Self> {
        let url = matches.get_one::<String>("url").map_or("", String::as_str);
        let all = vec!["*".to_owned()];
        let claims = Claims { sub: "fanfare tail".to_owned(), topics: all, ..Claims::default() };
        Ok(Self {
            server: Server::parse(url)?,
            access: Access::new(matches, settings, claims)?,
            topics: super::texts(matches, "topics").join(","),
            types: super::texts(matches, "type"),
            pretty: matches.get_flag("pretty"),
            remaining: matches.get_one("count").copied(),
            connection_id: None,
            last_event_id: matches.get_one::<String>("since").cloned(),
            backoff: Backoff::default(),
            refusals: 0,
            come_back_after: None,
            silence: 3 * PATIENCE,
        })
    }

    /// Connects again and again, until all is printed or the hub doesn't want it.
    async fn follow(&mut self) -> anyhow::Result<()> {
        loop {
            let end = match self.connect().await? {
                Ok(mut socket) => self.listen(&mut socket).await?,
                Err(why) => End::Lost(why),
            };
            let (why, pause) = match end {
                End::Done => return Ok(()),
                End::Lost(why) => (why, self.backoff.next(random()?)),
                End::Closed { code, reason } => (closed(code, &reason), self.pause_after(code, &reason)?),
            };
            say(&format!("{why}; connecting again in {:.1} s", pause.as_secs_f64()));
            tokio::time::sleep(pause).await;
        }
    }

    /// The pause that the table of close codes asks for. An error: there is no use in coming back.
    fn pause_after(&mut self, code: u16, reason: &str) -> anyhow::Result<Duration> {
        let known = CloseCode::ALL.iter().find(|known| known.number() == code);
        let pause = self.backoff.next(random()?);
        match known.map_or(Reconnect::Now, |known| known.reconnect()) {
            Reconnect::Never => bail!("{}", closed(code, reason)),
            Reconnect::Now => Ok(self.come_back_after.take().unwrap_or(pause)),
            Reconnect::Later => Ok(LATER.mul_f64(0.5 + random()?).max(pause)),
            Reconnect::WithNewToken => match &self.access {
                // A token of our own making may just have expired; twice in a row it is the secret.
                Access::Made { .. } if self.refusals == 0 => {
                    self.refusals += 1;
                    Ok(pause)
                }
                Access::Made { .. } => bail!("{}; is this the hub's secret?", closed(code, reason)),
                Access::Given(_) => bail!("{}", closed(code, reason)),
            },
        }
    }

    /// The inner error is the network's, and may pass; the outer one doesn't.
    async fn connect(&self) -> anyhow::Result<Result<Socket, String>> {
        let unreachable = |why: String| Ok(Err(format!("there is no hub at {}: {why}", self.server)));
        let stream = match self.server.connect().await {
            Ok(stream) => stream,
            Err(error) => return unreachable(format!("{error:#}")),
        };
        let mut request = self.address().into_client_request().context("the URL can't be used")?;
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", self.access.token()?))
            .map_err(|_| Usage("the token has characters that no token has".to_owned()))?;
        bearer.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, bearer);
        match timeout(PATIENCE, client_async_tls(request, stream)).await {
            Ok(Ok((socket, _))) => Ok(Ok(socket)),
            Ok(Err(tungstenite::Error::Http(answer))) if is_final(answer.status()) => {
                bail!("what is at {} is no hub: HTTP status {}", self.server.websocket_url(), answer.status())
            }
            Ok(Err(error)) => unreachable(error.to_string()),
            Err(_) => unreachable("it does not answer".to_owned()),
        }
    }

    fn address(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        let parameters = [("connection_id", &self.connection_id), ("last_event_id", &self.last_event_id)];
        for (name, value) in parameters {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        if !self.topics.is_empty() {
            query.append_pair("topics", &self.topics);
        }
        let query = query.finish();
        let mark = if query.is_empty() { "" } else { "?" };
        format!("{}{mark}{query}", self.server.websocket_url())
    }

    async fn listen(&mut self, socket: &mut Socket) -> anyhow::Result<End> {
        loop {
            let message = match timeout(self.silence, socket.next()).await {
                Err(_) => return Ok(End::Lost(format!("nothing was heard for {} s", self.silence.as_secs()))),
                Ok(None) => return Ok(End::Lost("the connection ended".to_owned())),
                Ok(Some(Err(error))) => return Ok(End::Lost(error.to_string())),
                Ok(Some(Ok(message))) => message,
            };
            match message {
                Message::Text(text) => {
                    if let Some(answer) = self.frame(&text)?
                        && let Err(error) = socket.send(Message::text(answer.into_owned())).await
                    {
                        return Ok(End::Lost(error.to_string()));
                    }
                    if self.remaining == Some(0) {
                        self.leave(socket).await;
                        return Ok(End::Done);
                    }
                }
                Message::Close(Some(CloseFrame { code, reason })) => {
                    return Ok(End::Closed { code: code.into(), reason: reason.to_string() });
                }
                Message::Close(None) => return Ok(End::Lost("the hub closed the connection".to_owned())),
                Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    /// Takes in one frame, and gives what is to be answered.
    fn frame(&mut self, text: &str) -> anyhow::Result<Option<Cow<'static, str>>> {
        let Ok(frame) = serde_json::from_str::<Frame<'_>>(text) else {
            say("a message is not of fanfare's protocol, and left out");
            return Ok(None);
        };
        let mut answer = None;
        match &*frame.r#type {
            "pong" => {}
            "ping" => answer = Some(Cow::Borrowed(r#"{"type":"pong"}"#)),
            "auth_expiring" => answer = self.newer_token()?,
            "ack" => self.acknowledged(&frame),
            "gap" => say(&gap(&frame)),
            "error" => say(&error(&frame)),
            "goaway" => {
                self.come_back_after = frame.reconnect_after_ms.map(Duration::from_millis);
                say(&format!("the hub is going away ({})", frame.reason.as_deref().unwrap_or("no reason given")));
            }
            _ => self.event(text, &frame)?,
        }
        // Any frame's id is a place to go on from.
        if frame.event_id.is_some() {
            self.last_event_id = frame.event_id;
        }
        Ok(answer)
    }

    /// Shows a newer token before the last one ends, if there can be one.
    fn newer_token(&self) -> anyhow::Result<Option<Cow<'static, str>>> {
        match &self.access {
            Access::Made { .. } => Ok(Some(json!({"type": "auth", "token": self.access.token()?}).to_string().into())),
            Access::Given(_) => {
                say("the token ends soon, and with it the connection");
                Ok(None)
            }
        }
    }

    fn acknowledged(&mut self, frame: &Frame<'_>) {
        if frame.ack_event_id.as_deref() == Some("auth") {
            return;
        }
        self.backoff.reset();
        self.refusals = 0;
        if let Some(secs) = frame.heartbeat.filter(|secs| *secs > 0.0) {
            self.silence = Duration::try_from_secs_f64(2.0 * secs).unwrap_or(Duration::MAX).saturating_add(PATIENCE);
        }
        let id = frame.connection_id.as_deref().unwrap_or("no name");
        match (frame.resumed, frame.replayed) {
            (Some(true), replayed) => {
                say(&format!("connected as {id}, going on where it was: {} held events follow", replayed.unwrap_or(0)));
            }
            _ => say(&format!("connected as {id}")),
        }
        // Another id in the answer means that the old one is lost.
        self.connection_id = frame.connection_id.clone();
        debug_assert!(frame.ack_event_id.is_some(), "an ack says what it answers");
    }

    fn event(&mut self, text: &str, frame: &Frame<'_>) -> anyhow::Result<()> {
        if !self.types.is_empty() && !self.types.iter().any(|kind| *kind == frame.r#type) {
            return Ok(());
        }
        if self.pretty {
            let data = frame.data.map_or("{}", RawValue::get);
            let at = frame.timestamp.as_deref().unwrap_or("");
            print(&format!("{at}  {}  {}\n", frame.r#type, one_line(data)))?;
        } else {
            print(&format!("{}\n", one_line(text)))?;
        }
        self.remaining = self.remaining.map(|remaining| remaining.saturating_sub(1));
        Ok(())
    }

    async fn leave(&self, socket: &mut Socket) {
        let goodbye = CloseFrame { code: WireCode::Normal, reason: "".into() };
        // The hub notices an end without a goodbye too.
        let _ = timeout(PATIENCE, socket.close(Some(goodbye))).await;
    }
}

/// JSON has line breaks between its parts only, never in them.
fn one_line(json: &str) -> Cow<'_, str> {
    if json.contains(['\n', '\r']) { json.replace(['\n', '\r'], " ").into() } else { json.into() }
}

/// Whether the same request would be answered so again.
fn is_final(status: StatusCode) -> bool {
    status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS
}

fn closed(code: u16, reason: &str) -> String {
    let known = CloseCode::ALL.iter().find(|known| known.number() == code);
    match (known, reason) {
        (_, reason) if !reason.is_empty() => format!("the hub closed the connection ({code}): {reason}"),
        (Some(known), _) => format!("the hub closed the connection ({code}): {}", known.meaning()),
        (None, _) => format!("the hub closed the connection ({code})"),
    }
}

fn gap(frame: &Frame<'_>) -> String {
    let missed = frame.missed.map_or_else(|| "events".to_owned(), |missed| format!("{missed} events"));
    let why = match frame.reason.as_deref() {
        Some("expired") => "they are older than what the hub holds",
        Some("reset") => "the hub's log is a new one",
        _ => "the hub does not say why",
    };
    format!("gap: {missed} may be missing here, for {why}")
}

fn error(frame: &Frame<'_>) -> String {
    let details = frame.details.map_or("", RawValue::get);
    format!("the hub says: {} {details}", frame.error.as_deref().unwrap_or("error"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli;

    fn tail(arguments: &[&str]) -> Tail {
        let arguments = ["fanfare", "tail", "--token", "t"].iter().chain(arguments);
        let matches = cli::command().try_get_matches_from(arguments).unwrap();
        let (_, matches) = matches.subcommand().unwrap();
        Tail::new(matches, &Settings::default()).unwrap()
    }

    #[test]
    fn every_frames_id_is_a_place_to_go_on_from() {
        let mut tail = tail(&["--topics", "a,b", "--url", "ws://h:1/hub/ws"]);
        assert_eq!(tail.address(), "ws://h:1/hub/ws?topics=a%2Cb");
        tail.frame(r#"{"type":"ack","event_id":"pos-1-1","connection_id":"c&d","ack_event_id":"initial_connect"}"#)
            .unwrap();
        assert_eq!(tail.address(), "ws://h:1/hub/ws?connection_id=c%26d&last_event_id=pos-1-1&topics=a%2Cb");
        let answer = tail.frame(r#"{"type":"ping","event_id":"pos-1-7","timestamp":""}"#).unwrap();
        assert_eq!((answer.as_deref(), tail.last_event_id.as_deref()), (Some(r#"{"type":"pong"}"#), Some("pos-1-7")));
    }

    #[test]
    fn close_codes_are_obeyed() {
        let mut tail = tail(&[]);
        for &code in CloseCode::ALL {
            let back = tail.pause_after(code.number(), "why");
            let comes_back = matches!(code.reconnect(), Reconnect::Now | Reconnect::Later);
            assert_eq!(back.is_ok(), comes_back, "{code:?}");
            if code.reconnect() == Reconnect::Later {
                assert!(back.unwrap() >= LATER / 2, "{code:?}");
            }
        }
        tail.frame(r#"{"type":"goaway","event_id":"pos-1-1","reconnect_after_ms":1234,"reason":"drain"}"#).unwrap();
        assert_eq!(tail.pause_after(1012, "").unwrap(), Duration::from_millis(1234));
        assert!(tail.pause_after(1006, "").is_ok());
    }

    #[test]
    fn what_is_said_of_gaps_and_closes_helps() {
        let frame: Frame<'_> = serde_json::from_str(r#"{"type":"gap","reason":"expired","missed":3}"#).unwrap();
        assert!(gap(&frame).contains("3 events may be missing"));
        assert!(closed(4001, "").contains("A newer socket took this"));
        assert!(closed(1008, "token_expired: x").ends_with("(1008): token_expired: x"));
        assert_eq!(one_line("{\n \"a\":\r\n1}"), "{  \"a\":  1}");
    }
}

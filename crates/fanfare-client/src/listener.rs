//! The socket around a [`Link`]: connects, reads, writes and waits for it. Every wait can be given up and taken up again.

use crate::{
    link::{Cursor, End, FIRST, Link},
    mismatch,
    notification::{Notification, Refused},
    token::{Token, TokenFuture, TokenReason},
};
use futures_util::{SinkExt, Stream, StreamExt, stream};
use rustls::ClientConfig;
use std::{
    collections::VecDeque,
    fmt,
    future::{Future, pending},
    io::ErrorKind,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    net::TcpStream,
    time::{Sleep, sleep, sleep_until, timeout},
};
use tokio_tungstenite::{
    Connector, MaybeTlsStream, WebSocketStream, client_async_tls_with_config,
    tungstenite::{
        self, Message, Utf8Bytes,
        client::IntoClientRequest,
        http::{
            HeaderValue, Response, StatusCode,
            header::{AUTHORIZATION, RETRY_AFTER},
        },
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};
use url::{Position, Url};

/// What lies in the socket was said in time, however late it is read.
const UNREAD: Duration = Duration::from_secs(1);
/// How long is looked for what came before a deadline.
const LAST_LOOK: Duration = Duration::from_millis(250);
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// How long a token may take that is asked for.
const TOKEN: Duration = Duration::from_secs(30);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;
type Opening = Pin<Box<dyn Future<Output = Result<Socket, Failure>> + Send>>;

/// What a [`Listener`] is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    url: String,
    token: Token,
    topics: Vec<String>,
    cursor: Cursor,
    longest: Option<Duration>,
    token_timeout: Duration,
    tls: Option<Arc<ClientConfig>>,
}

/// A client of a hub. It connects when [`next`](Self::next) is first called, and moves while that is waited for.
pub struct Listener {
    link: Link,
    token: Token,
    token_timeout: Duration,
    tls: Option<Arc<ClientConfig>>,
    phase: Phase,
    /// A token to show over the open connection.
    renewal: Option<TokenFuture>,
}

enum Phase {
    Resting(Pin<Box<Sleep>>),
    Asking(TokenFuture),
    Opening(Opening),
    Open(Box<Socket>),
    Over(Refused),
}

/// Why there is no socket.
enum Failure {
    Passing(End),
    Final(Refused),
}

impl Options {
    /// A hub, or its endpoint (`wss://host/ws`; `http` and `https` do as well), and a token for it.
    pub fn new(url: impl Into<String>, token: impl Into<Token>) -> Self {
        let (url, token) = (url.into(), token.into());
        let (topics, cursor) = (Vec::new(), Cursor::default());
        Self { url, token, topics, cursor, longest: None, token_timeout: TOKEN, tls: None }
    }

    /// The topics to subscribe to.
    #[must_use]
    pub fn topics<T: Into<String>>(mut self, topics: impl IntoIterator<Item = T>) -> Self {
        self.topics = topics.into_iter().map(Into::into).collect();
        self
    }

    /// Where an earlier listener was, to go on there.
    #[must_use]
    pub fn cursor(mut self, cursor: Cursor) -> Self {
        self.cursor = cursor;
        self
    }

    /// The longest pause between two attempts that the hub didn't ask for; 30 s unless set.
    #[must_use]
    pub fn longest_pause(mut self, longest: Duration) -> Self {
        self.longest = Some(longest);
        self
    }

    /// How long a token that is [asked](Token::asked) for may take; 30 s unless set.
    #[must_use]
    pub fn token_timeout(mut self, patience: Duration) -> Self {
        self.token_timeout = patience;
        self
    }

    /// How to trust the hub's certificate; the system's authorities unless set.
    #[must_use]
    pub fn tls(mut self, config: Arc<ClientConfig>) -> Self {
        self.tls = Some(config);
        self
    }

    /// A listener, which connects when it is first asked for what it heard.
    ///
    /// # Errors
    /// If the URL can't be a hub's, or a name can't be a topic's.
    pub fn listen(self) -> Result<Listener, Refused> {
        let Self { url, token, topics, cursor, longest, token_timeout, tls } = self;
        let mut link = Link::new(&url, token.given(), Instant::now())?;
        link.cursor = cursor;
        link.longest = longest.unwrap_or(link.longest);
        topics.iter().try_for_each(|topic| link.subscribe(topic))?;
        Ok(Listener {
            link,
            token,
            token_timeout,
            tls,
            phase: Phase::Resting(Box::pin(sleep(Duration::ZERO))),
            renewal: None,
        })
    }
}

impl Listener {
    /// What it hears next; waits for it. May be given up, as in `tokio::select!`, without losing anything.
    ///
    /// What is not taken waits at the hub. Who takes nothing for longer than the heartbeat's timeout (60 s unless the hub
    /// is set otherwise) is disconnected there, and goes on where it was with the next call.
    ///
    /// # Errors
    /// If another attempt would end as the last one did. So does every further call, until [`retry`](Self::retry).
    pub async fn next(&mut self) -> Result<Notification, Refused> {
        self.link.go_on();
        loop {
            if let Some(heard) = self.step().await? {
                return Ok(heard);
            }
        }
    }

    /// The same as a stream, which ends after the first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Notification, Refused>> + Send {
        stream::unfold(Some(self), |listener| async {
            let mut listener = listener?;
            match listener.next().await {
                Ok(heard) => Some((Ok(heard), Some(listener))),
                Err(refused) => Some((Err(refused), None)),
            }
        })
    }

    /// Asks for the events of a topic, now and whenever it connects. Sent with the next call of [`next`](Self::next), which
    /// later gives [`Notification::Subscribed`], or a [`Notification::Problem`] that names the topic.
    ///
    /// # Errors
    /// If the name can't be a topic's: 1 to 128 bytes without comma, asterisk or white space.
    pub fn subscribe(&mut self, topic: &str) -> Result<(), Refused> {
        self.link.subscribe(topic)
    }

    /// No longer wants the events of a topic.
    pub fn unsubscribe(&mut self, topic: &str) {
        self.link.unsubscribe(topic);
    }

    /// Tries at once, also after a refusal, and with another token if one is given.
    pub fn retry(&mut self, token: Option<Token>) {
        if let Some(token) = token {
            self.link.replace_token(token.given());
            self.token = token;
        }
        if !self.link.is_live() {
            self.phase = Phase::Resting(Box::pin(sleep(Duration::ZERO)));
        }
    }

    /// Whether events arrive as they are published.
    pub fn is_live(&self) -> bool {
        self.link.is_live()
    }

    /// Where it is, for [`Options::cursor`] of another one.
    pub fn cursor(&self) -> &Cursor {
        &self.link.cursor
    }

    /// Says goodbye. The hub notices too where a listener is only dropped.
    pub async fn close(mut self) {
        if let Phase::Open(socket) = &mut self.phase {
            let goodbye = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            // Whatever comes of it, this end is left.
            let _ = timeout(GOODBYE, socket.send(Message::Close(Some(goodbye)))).await;
        }
    }

    /// Goes on by one wait.
    async fn step(&mut self) -> Result<Option<Notification>, Refused> {
        match &mut self.phase {
            Phase::Over(refused) => return Err(refused.clone()),
            Phase::Resting(rest) => {
                rest.await;
                self.phase = match self.link.token() {
                    None => self.ask(self.link.token_reason()).map_or_else(no_token, Phase::Asking),
                    Some(_) => self.opening(),
                };
            }
            Phase::Asking(token) => match token.await {
                Ok(token) => {
                    self.link.use_token(token);
                    self.phase = self.opening();
                }
                Err(why) => return self.ended(End::NoToken(why.to_string())),
            },
            Phase::Opening(opening) => match opening.await {
                Ok(socket) => {
                    self.link.opened(Instant::now());
                    self.phase = Phase::Open(Box::new(socket));
                }
                Err(Failure::Passing(end)) => return self.ended(end),
                Err(Failure::Final(refused)) => return self.over(refused),
            },
            Phase::Open(socket) => {
                let heard = match converse(socket, &mut self.link, &mut self.renewal).await {
                    Ok(heard) => heard,
                    Err(end) => return self.ended(end),
                };
                if std::mem::take(&mut self.link.expiring) {
                    self.renewal = self.ask(TokenReason::Expiring);
                }
                return Ok(heard);
            }
        }
        Ok(None)
    }

    fn ask(&self, reason: TokenReason) -> Option<TokenFuture> {
        self.token.ask(reason, self.token_timeout)
    }

    fn opening(&mut self) -> Phase {
        let token = self.link.token().unwrap_or_default().to_owned();
        Phase::Opening(Box::pin(open(self.link.address(), token, self.tls.clone())))
    }

    fn ended(&mut self, end: End) -> Result<Option<Notification>, Refused> {
        self.renewal = None;
        match self.link.ended(end, Instant::now(), fastrand::f64()) {
            Ok(state) => {
                self.phase = Phase::Resting(Box::pin(sleep(state.retry_in().unwrap_or_default())));
                Ok(Some(Notification::State(state)))
            }
            Err(refused) => self.over(refused),
        }
    }

    fn over(&mut self, refused: Refused) -> Result<Option<Notification>, Refused> {
        self.phase = Phase::Over(refused.clone());
        Err(refused)
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("cursor", self.cursor()).field("live", &self.is_live()).finish_non_exhaustive()
    }
}

/// The token that was given was refused, and nobody gives another.
fn no_token() -> Phase {
    Phase::Over(Refused::because("there is no token"))
}

/// Shows a newer token, sends what is to be sent, reads one message: whichever is possible first.
async fn converse(
    socket: &mut Socket,
    link: &mut Link,
    renewal: &mut Option<TokenFuture>,
) -> Result<Option<Notification>, End> {
    let deadline = link.deadline().max(Instant::now() + UNREAD);
    let renewed = async {
        match renewal {
            Some(token) => token.await,
            None => pending().await,
        }
    };
    tokio::select! {
        biased;
        token = renewed => {
            *renewal = None;
            Ok(match token {
                Ok(token) => {
                    link.use_token(token);
                    None
                }
                Err(why) => Some(link.forget_token(&why.to_string())),
            })
        }
        text = exchange(socket, &mut link.outbox) => Ok(link.receive(&text?, Instant::now())),
        () = sleep_until(deadline.into()) => last_look(socket, link).await,
    }
}

/// The deadline is there. In a process that was stopped, timers fire before what came meanwhile is known to be there.
async fn last_look(socket: &mut Socket, link: &mut Link) -> Result<Option<Notification>, End> {
    match timeout(LAST_LOOK, exchange(socket, &mut link.outbox)).await {
        Ok(text) => Ok(link.receive(&text?, Instant::now())),
        Err(_) => Err(link.expired(Instant::now())),
    }
}

/// Sends all that is to be sent, and reads the next text. Nothing is lost where it is given up.
async fn exchange(socket: &mut Socket, outbox: &mut VecDeque<String>) -> Result<Utf8Bytes, End> {
    while let Some(text) = outbox.front() {
        let text = Message::text(text.clone());
        socket.feed(text).await.map_err(lost)?;
        outbox.pop_front();
    }
    socket.flush().await.map_err(lost)?;
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => return Ok(text),
            Some(Ok(Message::Close(Some(CloseFrame { code, reason })))) => {
                return Err(End::Closed { code: code.into(), reason: reason.to_string() });
            }
            Some(Ok(Message::Close(None))) | None => return Err(End::Lost("the connection ended".to_owned())),
            Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Err(error)) => return Err(lost(error)),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it stands where errors are mapped")]
fn lost(error: tungstenite::Error) -> End {
    End::Lost(error.to_string())
}

/// Connects, and asks for the upgrade.
async fn open(url: Url, token: String, tls: Option<Arc<ClientConfig>>) -> Result<Socket, Failure> {
    let host = url.host_str().unwrap_or_default().to_owned();
    let port = url.port_or_known_default().unwrap_or_default();
    let unreachable = |why: String| Failure::Passing(End::Lost(format!("there is no hub at {host}:{port}: {why}")));
    let mut request = url.as_str().into_client_request().map_err(|error| Failure::Final(unusable(&error)))?;
    let mut bearer = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| {
        Failure::Final(Refused::because(
            "the token has a control character or one beyond ASCII: give the JWT or the access key alone",
        ))
    })?;
    bearer.set_sensitive(true);
    request.headers_mut().insert(AUTHORIZATION, bearer);
    let opening = async {
        // IPv6 addresses stand in brackets in a URL, and without when connecting.
        let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
        stream.set_nodelay(true)?;
        Ok(client_async_tls_with_config(request, stream, None, tls.map(Connector::Rustls)).await?.0)
    };
    match timeout(FIRST, opening).await {
        Ok(Ok(socket)) => Ok(socket),
        Ok(Err(tungstenite::Error::Http(answer))) => Err(answered(&url, &answer)),
        Ok(Err(error)) => Err(match not_a_hub(&url, &error).await {
            Some(why) => Failure::Final(Refused::because(why)),
            None => unreachable(match error {
                tungstenite::Error::Io(error) => error.to_string(),
                other => other.to_string(),
            }),
        }),
        Err(_) => Err(unreachable("it does not answer".to_owned())),
    }
}

/// What is wrong with a server that is there, if another attempt would end in the same way.
async fn not_a_hub(url: &Url, error: &tungstenite::Error) -> Option<String> {
    use tungstenite::{Error, error::ProtocolError};
    if matches!(error, Error::Io(error) if error.kind() == ErrorKind::ConnectionRefused) {
        return None;
    }
    let scheme = mismatch::scheme_mismatch(url, error).await;
    // It answered, with something that is not HTTP.
    let other = matches!(error, Error::Protocol(ProtocolError::HttparseError(_)));
    let address = &url[Position::BeforeHost..Position::AfterPort];
    scheme.or_else(|| other.then(|| format!("what is at {address} is no hub: its answer is not HTTP")))
}

/// What an answer other than the upgrade means.
fn answered(url: &Url, answer: &Response<Option<Vec<u8>>>) -> Failure {
    let (status, address) = (answer.status(), &url[..Position::AfterPath]);
    if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS && status != StatusCode::REQUEST_TIMEOUT {
        return Failure::Final(Refused::because(format!("what is at {address} is no hub: HTTP status {status}")));
    }
    let seconds = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let why = format!("the hub at {address} has no room now: HTTP status {status}");
    Failure::Passing(End::Busy { why, retry_after: seconds.map(Duration::from_secs) })
}

fn unusable(error: &tungstenite::Error) -> Refused {
    Refused::because(format!("the URL can't be used: {error}"))
}

//! The driver of a [`Link`]: connects its socket, reads, writes and waits. Every wait is cancel safe.

use crate::{
    link::{CONNECT_TIMEOUT, Cursor, End, Link},
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

/// Minimum time to read after a deadline has passed. Frames that wait in the socket arrived in time, even if
/// [`Listener::next`] is called late.
const MIN_READ_TIME: Duration = Duration::from_secs(1);
/// How long a last read may take after a deadline.
const LAST_READ_TIMEOUT: Duration = Duration::from_millis(250);
/// How long sending the close frame may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Default of [`Options::token_timeout`].
const TOKEN_TIMEOUT: Duration = Duration::from_secs(30);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;
type Connecting = Pin<Box<dyn Future<Output = Result<Socket, ConnectError>> + Send>>;

/// The configuration of a [`Listener`].
#[derive(Debug, Clone)]
pub struct Options {
    url: String,
    token: Token,
    topics: Vec<String>,
    cursor: Cursor,
    max_pause: Option<Duration>,
    token_timeout: Duration,
    tls: Option<Arc<ClientConfig>>,
}

/// A client of a hub. It connects with the first call of [`next`](Self::next), and makes progress only during such
/// calls.
///
/// [`Options::listen`] creates a listener. The next one resumes from the [`cursor`](Self::cursor) of an earlier one, so
/// it receives the events that were published in between:
///
/// ```
/// use fanfare_client::{Event, Listener, Notification, Options};
///
/// async fn next_event(listener: &mut Listener) -> Result<Event, Box<dyn std::error::Error>> {
///     loop {
///         match listener.next().await? {
///             Notification::Event(event) => return Ok(event),
///             Notification::Gap(gap) => return Err(format!("events were lost: {}", gap.reason).into()),
///             _ => {}
///         }
///     }
/// }
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use fanfare::{Audience, Draft, Hub, Minter, Verifier, auth::Claims};
/// # let secret = "a secret of thirty-two bytes, ok";
/// # let hub = Hub::builder(Verifier::from_secret(secret)?).start()?;
/// # let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
/// # let url = format!("ws://{}/ws", socket.local_addr()?);
/// # let app = hub.router().into_make_service_with_connect_info::<std::net::SocketAddr>();
/// # tokio::spawn(axum::serve(socket, app).into_future());
/// # let token = Minter::from_secret(secret)?.mint(&Claims { sub: "ann".to_owned(), ..Claims::default() });
/// let mut listener = Options::new(url.as_str(), token.as_str()).listen()?;
/// # while !listener.is_live() {
/// #     listener.next().await?;
/// # }
/// # hub.publish(Draft::new("first", &1)?, Audience::Everyone).await?;
/// assert_eq!(next_event(&mut listener).await?.event_type(), "first");
/// let cursor = listener.cursor().clone();
/// listener.close().await;
///
/// # hub.publish(Draft::new("second", &2)?, Audience::Everyone).await?;
/// // An event `second` is published here. No listener is connected.
/// let mut listener = Options::new(url, token).cursor(cursor).listen()?;
/// assert_eq!(next_event(&mut listener).await?.event_type(), "second");
/// # Ok(())
/// # }
/// ```
pub struct Listener {
    link: Link,
    token: Token,
    token_timeout: Duration,
    tls: Option<Arc<ClientConfig>>,
    phase: Phase,
    /// A request for a token that is sent over the open connection.
    renewal: Option<TokenFuture>,
}

enum Phase {
    Waiting(Pin<Box<Sleep>>),
    RequestingToken(TokenFuture),
    Connecting(Connecting),
    Open(Box<Socket>),
    Failed(Refused),
}

/// Why a connect failed.
enum ConnectError {
    Temporary(End),
    Permanent(Refused),
}

impl Options {
    /// Creates a configuration from the URL of a hub, or of its endpoint (`wss://host/ws`), and a token. The schemes
    /// `http` and `https` are accepted too.
    pub fn new(url: impl Into<String>, token: impl Into<Token>) -> Self {
        let (url, token) = (url.into(), token.into());
        let (topics, cursor) = (Vec::new(), Cursor::default());
        Self { url, token, topics, cursor, max_pause: None, token_timeout: TOKEN_TIMEOUT, tls: None }
    }

    /// Sets the topics to subscribe to.
    #[must_use]
    pub fn topics<T: Into<String>>(mut self, topics: impl IntoIterator<Item = T>) -> Self {
        self.topics = topics.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the cursor of an earlier listener, to resume from it.
    #[must_use]
    pub fn cursor(mut self, cursor: Cursor) -> Self {
        self.cursor = cursor;
        self
    }

    /// Sets the maximum pause between two attempts, apart from a time that the hub requests. Default: 30 s.
    #[must_use]
    pub fn longest_pause(mut self, max_pause: Duration) -> Self {
        self.max_pause = Some(max_pause);
        self
    }

    /// Sets how long a [token source](Token::asked) may take to return a token. Default: 30 s.
    #[must_use]
    pub fn token_timeout(mut self, limit: Duration) -> Self {
        self.token_timeout = limit;
        self
    }

    /// Sets the TLS configuration, such as the trusted certificate authorities. Default: those of the system.
    #[must_use]
    pub fn tls(mut self, config: Arc<ClientConfig>) -> Self {
        self.tls = Some(config);
        self
    }

    /// Creates the listener. It connects with the first call of [`Listener::next`].
    ///
    /// # Errors
    /// If the URL or a topic is not valid.
    pub fn listen(self) -> Result<Listener, Refused> {
        let Self { url, token, topics, cursor, max_pause, token_timeout, tls } = self;
        let mut link = Link::new(&url, token.given(), Instant::now())?;
        link.cursor = cursor;
        link.max_pause = max_pause.unwrap_or(link.max_pause);
        topics.iter().try_for_each(|topic| link.subscribe(topic))?;
        Ok(Listener {
            link,
            token,
            token_timeout,
            tls,
            phase: Phase::Waiting(Box::pin(sleep(Duration::ZERO))),
            renewal: None,
        })
    }
}

impl Listener {
    /// Waits for the next notification.
    ///
    /// This method is cancel safe: if it is used in `tokio::select!` and another branch completes first, no
    /// notification is lost.
    ///
    /// Events that are not taken wait at the hub. If `next` is not called for longer than the heartbeat timeout (60 s
    /// by default), the hub disconnects the client, and the next call resumes from the cursor.
    ///
    /// # Errors
    /// If another attempt cannot succeed. Further calls return the same error until [`retry`](Self::retry) is called.
    pub async fn next(&mut self) -> Result<Notification, Refused> {
        self.link.go_on();
        loop {
            if let Some(notification) = self.step().await? {
                return Ok(notification);
            }
        }
    }

    /// Converts the listener into a stream of notifications, which ends after the first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Notification, Refused>> + Send {
        stream::unfold(Some(self), |listener| async {
            let mut listener = listener?;
            match listener.next().await {
                Ok(notification) => Some((Ok(notification), Some(listener))),
                Err(refused) => Some((Err(refused), None)),
            }
        })
    }

    /// Subscribes to a topic, now and after each reconnect.
    ///
    /// The request is sent by the next call of [`next`](Self::next). A later call returns
    /// [`Notification::Subscribed`], or a [`Notification::Problem`] that names the topic.
    ///
    /// # Errors
    /// If the topic is not valid. A topic has 1 to 128 bytes without comma, asterisk, white space or control character.
    pub fn subscribe(&mut self, topic: &str) -> Result<(), Refused> {
        self.link.subscribe(topic)
    }

    /// Unsubscribes from a topic. The request is sent by the next call of [`next`](Self::next).
    pub fn unsubscribe(&mut self, topic: &str) {
        self.link.unsubscribe(topic);
    }

    /// Starts the next attempt immediately, including after a [`Refused`], and with another token if one is given.
    pub fn retry(&mut self, token: Option<Token>) {
        if let Some(token) = token {
            self.link.replace_token(token.given());
            self.token = token;
        }
        if !self.link.is_live() {
            self.phase = Phase::Waiting(Box::pin(sleep(Duration::ZERO)));
        }
    }

    /// Returns whether the connection is live: events arrive as they are published.
    pub fn is_live(&self) -> bool {
        self.link.is_live()
    }

    /// Returns the cursor, for [`Options::cursor`] of another listener.
    pub fn cursor(&self) -> &Cursor {
        &self.link.cursor
    }

    /// Closes the connection with a close frame. If a listener is dropped instead, the hub only sees that the socket
    /// was closed.
    pub async fn close(mut self) {
        if let Phase::Open(socket) = &mut self.phase {
            let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            // The socket is dropped in any case.
            let _ = timeout(CLOSE_TIMEOUT, socket.send(Message::Close(Some(close)))).await;
        }
    }

    /// Advances by one wait.
    async fn step(&mut self) -> Result<Option<Notification>, Refused> {
        match &mut self.phase {
            Phase::Failed(refused) => return Err(refused.clone()),
            Phase::Waiting(rest) => {
                rest.await;
                self.phase = match self.link.token() {
                    None => self.ask(self.link.token_reason()).map_or_else(no_token, Phase::RequestingToken),
                    Some(_) => self.connecting(),
                };
            }
            Phase::RequestingToken(token) => match token.await {
                Ok(token) => {
                    self.link.use_token(token);
                    self.phase = self.connecting();
                }
                Err(why) => return self.ended(End::NoToken(why.to_string())),
            },
            Phase::Connecting(connecting) => match connecting.await {
                Ok(socket) => {
                    self.link.opened(Instant::now());
                    self.phase = Phase::Open(Box::new(socket));
                }
                Err(ConnectError::Temporary(end)) => return self.ended(end),
                Err(ConnectError::Permanent(refused)) => return self.fail(refused),
            },
            Phase::Open(socket) => {
                let notification = match drive(socket, &mut self.link, &mut self.renewal).await {
                    Ok(notification) => notification,
                    Err(end) => return self.ended(end),
                };
                if std::mem::take(&mut self.link.expiring) {
                    self.renewal = self.ask(TokenReason::Expiring);
                }
                return Ok(notification);
            }
        }
        Ok(None)
    }

    fn ask(&self, reason: TokenReason) -> Option<TokenFuture> {
        self.token.ask(reason, self.token_timeout)
    }

    fn connecting(&mut self) -> Phase {
        let token = self.link.token().unwrap_or_default().to_owned();
        Phase::Connecting(Box::pin(connect(self.link.address(), token, self.tls.clone())))
    }

    fn ended(&mut self, end: End) -> Result<Option<Notification>, Refused> {
        self.renewal = None;
        match self.link.ended(end, Instant::now(), fastrand::f64()) {
            Ok(state) => {
                self.phase = Phase::Waiting(Box::pin(sleep(state.retry_in().unwrap_or_default())));
                Ok(Some(Notification::State(state)))
            }
            Err(refused) => self.fail(refused),
        }
    }

    fn fail(&mut self, refused: Refused) -> Result<Option<Notification>, Refused> {
        self.phase = Phase::Failed(refused.clone());
        Err(refused)
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("cursor", self.cursor()).field("live", &self.is_live()).finish_non_exhaustive()
    }
}

/// The fixed token was rejected, and there is no token source.
fn no_token() -> Phase {
    Phase::Failed(Refused::because("no token: the last one was rejected; call `retry` with a new token"))
}

/// Takes a newer token, sends pending messages, and reads one message, whichever is possible first.
async fn drive(
    socket: &mut Socket,
    link: &mut Link,
    renewal: &mut Option<TokenFuture>,
) -> Result<Option<Notification>, End> {
    let deadline = link.deadline().max(Instant::now() + MIN_READ_TIME);
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
        () = sleep_until(deadline.into()) => read_after_deadline(socket, link).await,
    }
}

/// Reads once more after the deadline. In a process that was stopped, timers fire before the socket becomes readable.
async fn read_after_deadline(socket: &mut Socket, link: &mut Link) -> Result<Option<Notification>, End> {
    match timeout(LAST_READ_TIMEOUT, exchange(socket, &mut link.outbox)).await {
        Ok(text) => Ok(link.receive(&text?, Instant::now())),
        Err(_) => Err(link.expired(Instant::now())),
    }
}

/// Sends all pending messages, and reads the next text message. Cancel safe: a message leaves `outbox` only after it
/// was passed to the socket.
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
            Some(Ok(Message::Close(None))) | None => {
                return Err(End::Lost("the connection was closed without a close code".to_owned()));
            }
            Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Err(error)) => return Err(lost(error)),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "used in map_err")]
fn lost(error: tungstenite::Error) -> End {
    End::Lost(error.to_string())
}

/// Connects, and requests the upgrade.
async fn connect(url: Url, token: String, tls: Option<Arc<ClientConfig>>) -> Result<Socket, ConnectError> {
    let host = url.host_str().unwrap_or_default().to_owned();
    let port = url.port_or_known_default().unwrap_or_default();
    let unreachable = |why: String| {
        let why = format!("failed to connect to the hub at {host}:{port}: {why}");
        ConnectError::Temporary(End::Lost(why))
    };
    let mut request = url.as_str().into_client_request().map_err(|error| ConnectError::Permanent(unusable(&error)))?;
    let mut bearer = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| {
        ConnectError::Permanent(Refused::because(
            "the token contains a control character or a non-ASCII character; use only the JWT or the access key",
        ))
    })?;
    bearer.set_sensitive(true);
    request.headers_mut().insert(AUTHORIZATION, bearer);
    let connecting = async {
        // IPv6 addresses have brackets in a URL, but not in a socket address.
        let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
        stream.set_nodelay(true)?;
        Ok(client_async_tls_with_config(request, stream, None, tls.map(Connector::Rustls)).await?.0)
    };
    match timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(socket)) => Ok(socket),
        Ok(Err(tungstenite::Error::Http(response))) => Err(upgrade_rejected(&url, &response)),
        Ok(Err(error)) => Err(match not_a_hub(&url, &error).await {
            Some(why) => ConnectError::Permanent(Refused::because(why)),
            None => unreachable(match error {
                tungstenite::Error::Io(error) => error.to_string(),
                other => other.to_string(),
            }),
        }),
        Err(_) => Err(unreachable(format!("timed out after {} s", CONNECT_TIMEOUT.as_secs()))),
    }
}

/// Returns a message if a failed connect means that the server is not a hub, so that another attempt cannot succeed.
async fn not_a_hub(url: &Url, error: &tungstenite::Error) -> Option<String> {
    use tungstenite::{Error, error::ProtocolError};
    if matches!(error, Error::Io(error) if error.kind() == ErrorKind::ConnectionRefused) {
        return None;
    }
    let scheme = mismatch::scheme_mismatch(url, error).await;
    let not_http = matches!(error, Error::Protocol(ProtocolError::HttparseError(_)));
    let address = &url[Position::BeforeHost..Position::AfterPort];
    scheme.or_else(|| not_http.then(|| format!("{address} is not a fanfare hub: the response is not HTTP")))
}

/// Interprets a response other than the upgrade.
fn upgrade_rejected(url: &Url, response: &Response<Option<Vec<u8>>>) -> ConnectError {
    let (status, address) = (response.status(), &url[..Position::AfterPath]);
    if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS && status != StatusCode::REQUEST_TIMEOUT {
        let why = format!("{address} is not a fanfare hub: HTTP status {status}");
        return ConnectError::Permanent(Refused::because(why));
    }
    let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let why = format!("the hub at {address} is currently unavailable: HTTP status {status}");
    ConnectError::Temporary(End::Busy { why, retry_after: seconds.map(Duration::from_secs) })
}

fn unusable(error: &tungstenite::Error) -> Refused {
    Refused::because(format!("the URL is not valid: {error}"))
}

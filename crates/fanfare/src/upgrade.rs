//! Upgrades an HTTP request to a socket on a shard: the handshake of RFC 6455 section 4.2, authentication, and the
//! limits that apply before there is a session.
//!
//! Knows requests and sockets. The messages of a connection are the business of its shard and session.

use crate::{
    TimedStream,
    admission::ExceededLimit,
    auth::AuthError,
    clock,
    mailbox::{Command, NewConnection, Rejection, RequestTime},
    metrics::Counter,
    node::{Node, auth_counter, given},
    problem::problem,
    refusals::{Full, Hold, Identity},
    socket::{Socket, Tls},
};
use aws_lc_rs::digest;
use axum::{
    body::Body,
    extract::{Query, Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
        header::{
            AUTHORIZATION, CONNECTION, RETRY_AFTER, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
            SEC_WEBSOCKET_VERSION, UPGRADE,
        },
    },
    response::Response,
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use fanfare_core::{CloseCode, ConnectionId, Grant, Position, lineage::tag, session::ConnectRequest};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use socket2::SockRef;
use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

/// The subprotocol that a client offers besides its token, and that the hub selects.
const SUBPROTOCOL: &str = "fanfare";
/// Prefix of a token that is offered as a subprotocol.
const BEARER_PROTOCOL: &str = "bearer.";
/// Maximum number of unsent bytes that the kernel buffers for a client, beyond those in flight.
const UNSENT_BYTES: u32 = 128 << 10;
/// RFC 6455 section 1.3.
const HANDSHAKE_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The parameters in the query of `/ws`. Each may occur once.
#[derive(Deserialize)]
struct Parameters {
    token: Option<String>,
    connection_id: Option<String>,
    last_event_id: Option<String>,
    topics: Option<String>,
}

/// The reason why a request is not upgraded. These responses are for programs: a browser does not show them to its
/// page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum BadUpgrade {
    #[error(
        "this is a WebSocket endpoint: connect with ws:// or wss://, or send Connection: Upgrade and Upgrade: websocket"
    )]
    NotAnUpgrade,
    #[error("unsupported WebSocket version: send Sec-WebSocket-Version: 13")]
    Version,
    #[error("Sec-WebSocket-Key must be 16 bytes in base64")]
    Key,
    #[error("the query is not valid: token, connection_id, last_event_id and topics may each occur once")]
    Query,
    #[error("the connection cannot be upgraded: use HTTP/1.1")]
    Transport,
    #[error(transparent)]
    Flood(ExceededLimit),
    #[error("refusal_delay: too many rejected clients{of} already wait for their close frame; \
             connect again after the time in Retry-After", of = match .full {
        Full::Network => " from this address",
        Full::All => "",
    })]
    Held { full: Full, delay: Duration },
}

/// The address of clients whose transport has no address.
const NO_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Close reason for a client whose cursor cannot be looked up.
const LOG_UNAVAILABLE: &str =
    "log_unavailable: the log is currently unavailable, so the cursor cannot be looked up; connect again later";

/// A rejected client, and the user of its token if the token is genuine.
struct RejectedClient {
    rejection: Rejection,
    user: Option<Arc<str>>,
}

/// The endpoint `GET /ws`.
///
/// Every valid WebSocket request is upgraded, and then accepted, or rejected with a close code and a reason: a browser
/// shows its page no other response.
pub(crate) async fn upgrade(State(node): State<Arc<Node>>, mut request: Request) -> Response {
    match begin(&node, &mut request).await {
        Ok(response) => response,
        Err(error) => {
            if !matches!(error, BadUpgrade::Flood(_) | BadUpgrade::Held { .. }) {
                node.metrics.add(Counter::BadUpgrades, 1);
            }
            error_response(error)
        }
    }
}

fn error_response(error: BadUpgrade) -> Response {
    let mut response = problem(StatusCode::UPGRADE_REQUIRED, "upgrade_required", &error.to_string());
    match error {
        BadUpgrade::NotAnUpgrade | BadUpgrade::Transport => {}
        BadUpgrade::Version => {
            response.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        BadUpgrade::Key | BadUpgrade::Query => *response.status_mut() = StatusCode::BAD_REQUEST,
        BadUpgrade::Flood(_) => {
            return reject_without_upgrade(StatusCode::TOO_MANY_REQUESTS, "too_many_connects", error, 1);
        }
        BadUpgrade::Held { full, delay } => {
            let status = match full {
                Full::Network => StatusCode::TOO_MANY_REQUESTS,
                Full::All => StatusCode::SERVICE_UNAVAILABLE,
            };
            return reject_without_upgrade(status, "too_many_refusals", error, delay.as_secs().max(1));
        }
    }
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response
}

/// A response without an upgrade, after which the connection is closed.
fn reject_without_upgrade(status: StatusCode, code: &'static str, error: BadUpgrade, retry_after: u64) -> Response {
    let mut response = problem(status, code, &error.to_string());
    response.headers_mut().insert(RETRY_AFTER, retry_after.into());
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

async fn begin(node: &Arc<Node>, request: &mut Request) -> Result<Response, BadUpgrade> {
    let came = RequestTime { at: clock::now(), number: node.requests.fetch_add(1, Ordering::Relaxed) };
    let headers = request.headers();
    let accept = check_handshake(request.method(), headers)?;
    let Query(parameters) = Query::<Parameters>::try_from_uri(request.uri()).map_err(|_| BadUpgrade::Query)?;
    let (offered, selected) = subprotocols(headers);
    let from_headers = bearer(headers).and_then(given).or(offered.and_then(given));
    let token = from_headers.map(str::to_owned).or_else(|| parameters.token.clone());
    let peer = crate::origin::peer(request.extensions());
    let address = peer.map(|peer| node.config.trusted_proxies.client(peer, headers));
    let client = match reject_early(node, address, peer, headers)? {
        Some(rejection) => Err(RejectedClient { rejection, user: None }),
        None => identify(node, token.as_deref(), &parameters, address).await,
    };
    let hold = match &client {
        Ok(connect_request) => {
            node.refusals.forget(Identity::User(&connect_request.grant.user));
            // Its shard may have rejected it for a limit. Such rejections are counted by connection.
            let identity = Identity::Connection(connect_request.connection);
            hold(node, node.refusals.next_delay(identity, clock::now().mono_ms, node.config.refusal_delay), address)?
        }
        Err(rejected) => hold_rejected(node, rejected, address)?,
    };
    let client = client.map_err(|rejected| rejected.rejection);

    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let to = response.headers_mut();
    to.insert(UPGRADE, HeaderValue::from_static("websocket"));
    to.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    to.insert(SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(selected) = selected {
        to.insert(SEC_WEBSOCKET_PROTOCOL, selected);
    }
    let on_upgrade = request.extensions_mut().remove::<OnUpgrade>().ok_or(BadUpgrade::Transport)?;
    tokio::spawn(hand_over(node.clone(), on_upgrade, address, came, hold, client));
    Ok(response)
}

/// Counts a rejection, and reserves a place for the socket if its close frame is to be delayed.
fn hold_rejected(node: &Node, rejected: &RejectedClient, address: Option<IpAddr>) -> Result<Option<Hold>, BadUpgrade> {
    let identity = rejected.user.as_deref().map_or(Identity::Address(address.unwrap_or(NO_ADDRESS)), Identity::User);
    hold(node, node.refusals.note(identity, clock::now().mono_ms, node.config.refusal_delay), address)
}

fn hold(node: &Node, delay: Duration, address: Option<IpAddr>) -> Result<Option<Hold>, BadUpgrade> {
    if delay.is_zero() || !node.is_ready() {
        return Ok(None);
    }
    node.refusals.hold(address.unwrap_or(NO_ADDRESS), delay, &node.config).map(Some).map_err(|full| {
        node.metrics.add(Counter::LimitRefusals, 1);
        BadUpgrade::Held { full, delay }
    })
}

/// Checks the connect rate of the address and the origin, before authentication. Each upgraded rejection costs a socket
/// for a while. The number of upgraded rejections is therefore limited by the same rate, and further requests are not
/// upgraded.
fn reject_early(
    node: &Node,
    address: Option<IpAddr>,
    peer: Option<IpAddr>,
    headers: &HeaderMap,
) -> Result<Option<Rejection>, BadUpgrade> {
    let mono_ms = clock::now().mono_ms;
    if let Some(address) = address
        && let Err(limit) = node.admission.check_connect_rate(address, mono_ms, &node.config)
    {
        node.metrics.add(limit.counter(), 1);
        let upgrade = node.admission.may_upgrade_rejection(address, mono_ms, &node.config);
        return if upgrade { Ok(Some(limit.into())) } else { Err(BadUpgrade::Flood(limit)) };
    }
    let foreign = node.check_origin(headers, peer).err();
    Ok(foreign.map(|error| Rejection { code: CloseCode::Policy, reason: error.reason() }))
}

/// Validates the handshake (RFC 6455 section 4.2.1). Returns the value of `Sec-WebSocket-Accept`.
fn check_handshake(method: &Method, headers: &HeaderMap) -> Result<HeaderValue, BadUpgrade> {
    let websocket = has_token(headers, &UPGRADE, "websocket");
    if method != Method::GET || !has_token(headers, &CONNECTION, "upgrade") || !websocket {
        return Err(BadUpgrade::NotAnUpgrade);
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(BadUpgrade::Version);
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or(BadUpgrade::Key)?.as_bytes();
    if BASE64.decode(key).map_or(0, |nonce| nonce.len()) != 16 {
        return Err(BadUpgrade::Key);
    }
    let mut sha1 = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    sha1.update(key);
    sha1.update(HANDSHAKE_GUID);
    HeaderValue::from_str(&BASE64.encode(sha1.finish())).map_err(|_| BadUpgrade::Key)
}

/// Whether a list header has an entry, ignoring ASCII case.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    list(headers, name).any(|entry| entry.eq_ignore_ascii_case(token))
}

/// The entries of a list header, over all its lines.
fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|entry| !entry.is_empty())
}

/// The token of an `Authorization: Bearer` header (RFC 6750 section 2.1).
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The token among the offered subprotocols, and the subprotocol to select. A browser requires that the selected one is
/// among those that it offered.
fn subprotocols(headers: &HeaderMap) -> (Option<&str>, Option<HeaderValue>) {
    let (mut token, mut other) = (None, None);
    for entry in list(headers, &SEC_WEBSOCKET_PROTOCOL) {
        if let Some(bearer) = entry.strip_prefix(BEARER_PROTOCOL) {
            token = Some((bearer, entry));
        } else if entry.split('.').filter(|part| !part.is_empty()).count() == 3 && token.is_none() {
            // A bare token: three parts separated by dots (RFC 7515 section 3.1).
            token = Some((entry, entry));
        } else if entry == SUBPROTOCOL || other.is_none() {
            other = Some(entry);
        }
    }
    let selected = other.or(token.map(|(_, entry)| entry)).and_then(|entry| HeaderValue::from_str(entry).ok());
    (token.map(|(token, _)| token), selected)
}

/// Authenticates a client, applies the limits of its user, and builds its connect request.
async fn identify(
    node: &Node,
    token: Option<&str>,
    parameters: &Parameters,
    address: Option<IpAddr>,
) -> Result<ConnectRequest, RejectedClient> {
    let grant = node.authenticate(token).await.map_err(|error| {
        node.metrics.add(auth_counter(&error), 1);
        let genuine = matches!(error, AuthError::Expired { .. } | AuthError::NotYetValid { .. } | AuthError::Revoked);
        let user = token.filter(|_| genuine).and_then(|token| node.verifier.genuine_user(token));
        RejectedClient { rejection: auth_rejection(&error), user }
    })?;
    let returning = returning(node, parameters, &grant);
    check_limits(node, &grant, returning.is_some(), address).map_err(|limit| {
        node.metrics.add(limit.counter(), 1);
        RejectedClient { rejection: limit.into(), user: Some(grant.user.clone()) }
    })?;
    let last_event_id = parameters.last_event_id.as_deref().and_then(given).map(str::to_owned);
    let connection = returning.unwrap_or_else(|| {
        // An event ID as a cursor may date from before any loss of the log, so the new connection ID carries no epoch.
        let new = last_event_id.as_deref().is_none_or(|last| last.parse::<Position>().is_ok());
        node.names.issue((&grant).into(), if new { tag(node.window.read().epoch()) } else { 0 })
    });
    let wanted = parameters.topics.as_deref().and_then(given).unwrap_or_default();
    let wanted = wanted.split(',').map(str::trim).filter(|topic| !topic.is_empty());
    Ok(ConnectRequest::new(grant, connection, last_event_id, wanted, node.config.max_topics_per_connection))
}

/// Checks the limits that are known before there is a session. A returning client may take over the place of an older
/// socket, which only its shard knows.
fn check_limits(node: &Node, grant: &Grant, returning: bool, address: Option<IpAddr>) -> Result<(), ExceededLimit> {
    let (user, config) = (&grant.user, &node.config);
    if !grant.admin {
        node.admission.check_user_connect_rate(user, clock::now().mono_ms, config)?;
    }
    if returning { Ok(()) } else { node.admission.has_room(user, grant.admin, address, config) }
}

/// The connection ID that the client presents, if it was issued to its user.
fn returning(node: &Node, parameters: &Parameters, grant: &Grant) -> Option<ConnectionId> {
    let id = parameters.connection_id.as_deref()?.parse().ok()?;
    node.names.belongs_to(id, grant.into()).then_some(id)
}

fn auth_rejection(error: &AuthError) -> Rejection {
    let code = match error {
        AuthError::KeysUnavailable => CloseCode::TryAgainLater,
        _ => CloseCode::Policy,
    };
    Rejection { code, reason: format!("{}: {error}", error.code()) }
}

/// Waits until the HTTP server has released the socket, and passes it to its shard.
async fn hand_over(
    node: Arc<Node>,
    on_upgrade: OnUpgrade,
    address: Option<IpAddr>,
    came: RequestTime,
    hold: Option<Hold>,
    mut client: Result<ConnectRequest, Rejection>,
) {
    let timeout = node.config.handshake_timeout.max(Duration::from_millis(1));
    let upgraded = match tokio::time::timeout(timeout, on_upgrade).await {
        Ok(Ok(upgraded)) => upgraded,
        Ok(Err(_)) | Err(_) => return node.metrics.add(Counter::LimitHandshake, 1),
    };
    let upgraded = match hold {
        Some(hold) => match hold.wait(upgraded).await {
            Some(upgraded) => upgraded,
            None => return,
        },
        None => upgraded,
    };
    if let Ok(connect_request) = &client
        && let Err(later) = catch_up_to(&node, connect_request).await
    {
        client = Err(later);
    }
    match take_socket(upgraded) {
        Ok((socket, leftover, peer)) => {
            let rate_checked = address.is_some();
            let address = address.or(peer).unwrap_or(NO_ADDRESS);
            assign(&node, NewConnection { socket, leftover, address, came, client }, rate_checked);
        }
        Err(error) => tracing::debug!(%error, "a client left during its upgrade"),
    }
}

/// Lets the window catch up with the log, for a client whose cursor is unknown to this node: another node may be ahead
/// of it. All waiting clients share one request to the log. If the log is unavailable, it is unknown whether the client
/// missed events, so the client is rejected and reconnects later.
async fn catch_up_to(node: &Node, connect_request: &ConnectRequest) -> Result<(), Rejection> {
    let Some(last) = connect_request.last_event_id.as_deref() else { return Ok(()) };
    let known =
        node.window.read().start(Some(last), connect_request.connection).gap.is_none_or(|gap| gap.missed.is_some());
    let Some(broker) = node.broker.get().and_then(Weak::upgrade).filter(|_| !known) else { return Ok(()) };
    match tokio::time::timeout(node.config.handshake_timeout, broker.catch_up()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Rejection { code: CloseCode::TryAgainLater, reason: LOG_UNAVAILABLE.to_owned() }),
    }
}

/// Passes a socket to the shard of its connection; rejected clients are distributed over all shards. `rate_checked`:
/// the connect rate of the address was already checked.
fn assign(node: &Node, mut new: NewConnection, rate_checked: bool) {
    let mono_ms = clock::now().mono_ms;
    if !rate_checked && let Err(limit) = node.admission.check_connect_rate(new.address, mono_ms, &node.config) {
        node.metrics.add(limit.counter(), 1);
        new.client = Err(limit.into());
    }
    let connection = new
        .client
        .as_ref()
        .map_or(ConnectionId(u128::from(mono_ms) << 64), |connect_request| connect_request.connection);
    if let Some(shard) = node.shard_of(connection) {
        shard.send(Command::Register(Box::new(new)));
    }
}

/// The socket of an upgraded connection, the bytes read beyond the handshake, and the peer address.
fn take_socket(upgraded: Upgraded) -> io::Result<(Socket, Vec<u8>, Option<IpAddr>)> {
    let upgraded = match downcast_timed::<TcpStream>(upgraded) {
        Ok((stream, leftover)) => {
            let (tcp, peer) = take_stream(stream)?;
            return Ok((Socket::Tcp(tcp), leftover, peer));
        }
        Err(upgraded) => upgraded,
    };
    match downcast_timed::<TlsStream<TcpStream>>(upgraded) {
        Ok((stream, leftover)) => {
            let (stream, session) = stream.into_inner();
            let (tcp, peer) = take_stream(stream)?;
            Ok((Socket::Tls(Box::new(Tls { tcp, session })), leftover, peer))
        }
        Err(other) => Ok((bridge(other)?, Vec::new(), None)),
    }
}

/// As [`downcast`], with or without a [`TimedStream`] around the stream.
fn downcast_timed<T>(upgraded: Upgraded) -> Result<(T, Vec<u8>), Upgraded>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let timed = downcast::<TimedStream<T>>(upgraded).map(|(stream, leftover)| (stream.into_inner(), leftover));
    timed.or_else(downcast::<T>)
}

/// The stream of the HTTP server, as wrapped by hyper or hyper-util, and the bytes read beyond the handshake.
fn downcast<T>(upgraded: Upgraded) -> Result<(T, Vec<u8>), Upgraded>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (io, leftover) = match upgraded.downcast::<TokioIo<T>>() {
        Ok(parts) => (parts.io, parts.read_buf),
        Err(upgraded) => {
            let parts = hyper_util::server::conn::auto::upgrade::downcast::<TokioIo<T>>(upgraded)?;
            (parts.io, parts.read_buf)
        }
    };
    Ok((io.into_inner(), leftover.to_vec()))
}

/// The socket of a stream, configured for a shard, and its peer address.
fn take_stream(stream: TcpStream) -> io::Result<(mio::net::TcpStream, Option<IpAddr>)> {
    let stream = stream.into_std()?;
    let peer = stream.peer_addr().ok().map(|peer| peer.ip().to_canonical());
    // Events are small, and Nagle's algorithm would delay them.
    stream.set_nodelay(true)?;
    // Unsent events belong in the window, which all clients share, and not in the socket buffer of each lagging client.
    SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_BYTES)?;
    Ok((mio::net::TcpStream::from_std(stream), peer))
}

/// Connects a stream that is not a TCP socket to one end of a socket pair, and returns the other end.
fn bridge(upgraded: Upgraded) -> io::Result<Socket> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    let mut theirs = tokio::net::UnixStream::from_std(theirs)?;
    tokio::spawn(async move {
        // If either end fails, both are closed. There is nothing else to handle.
        let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(upgraded), &mut theirs).await;
    });
    Ok(Socket::Bridge(mio::net::UnixStream::from_std(ours)))
}

impl fmt::Debug for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parameters").field("connection_id", &self.connection_id).finish_non_exhaustive()
    }
}

//! Accepts connections and serves HTTP on them until they are upgraded or closed. Knows sockets and time limits;
//! [`HttpConnections`] decides which connection is closed at a limit.

use super::{
    FIRST_REQUEST_TIMEOUT, MAX_HTTP_BUFFER,
    http_connections::{HttpConnections, Limits, Slot},
    listener, proxy_protocol,
};
use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    http::{
        HeaderValue, StatusCode, Version,
        header::{HOST, STRICT_TRANSPORT_SECURITY},
    },
    middleware::from_fn_with_state,
    response::Response,
};
use fanfare::{
    Hub, TimedStream,
    metrics::{Counter, Metrics},
    origin::Proxies,
};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tower::ServiceExt;

/// The pause after a failed accept, if there is no HTTP connection to close.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How a connection begins, before HTTP.
#[derive(Clone, Default)]
pub(super) struct Preamble {
    pub(super) tls: Option<TlsAcceptor>,
    /// The `max-age` of `Strict-Transport-Security` (RFC 6797). Zero: the header is not sent.
    pub(super) hsts_max_age: Duration,
    /// Load balancers whose connections begin with a PROXY header.
    pub(super) proxy_protocol_from: Proxies,
    /// Proxies whose connections belong to many clients.
    pub(super) trusted_proxies: Proxies,
}

impl Preamble {
    /// The value of `Strict-Transport-Security`, which must not be sent over plain HTTP (RFC 6797 section 7.2).
    fn hsts(&self) -> Option<HeaderValue> {
        let sent = self.tls.is_some() && !self.hsts_max_age.is_zero();
        sent.then(|| HeaderValue::from_str(&format!("max-age={}", self.hsts_max_age.as_secs())).ok()).flatten()
    }
}

/// Serves HTTP on the connections of a listener.
pub(super) struct Acceptor {
    connections: Arc<HttpConnections>,
    preamble: Preamble,
    server: Server,
}

/// Everything that one connection needs.
#[derive(Clone)]
struct Server {
    app: Router,
    /// Answers requests without exactly one `Host` header.
    bad_host: Router,
    http: http1::Builder,
    metrics: Arc<Metrics>,
    hsts: Option<HeaderValue>,
    /// The time limit for each step of a connection.
    time_limit: Duration,
    /// Changes at shutdown. Each connection holds a clone until it closes, which the shutdown waits for.
    shutdown: watch::Receiver<()>,
}

impl Acceptor {
    pub(super) fn new(
        hub: &Hub,
        app: Router,
        preamble: Preamble,
        limits: Limits,
        shutdown: watch::Receiver<()>,
    ) -> Self {
        let (metrics, time_limit) = (hub.metrics().clone(), hub.config().handshake_timeout);
        let mut http = http1::Builder::new();
        // This is also the limit for idling between two requests.
        http.timer(TokioTimer::new()).header_read_timeout(time_limit).max_buf_size(MAX_HTTP_BUFFER);
        let clients = hub.clone();
        let connections = HttpConnections::new(limits, move || clients.open_connections(), metrics.clone());
        let hsts = preamble.hsts();
        let bad_host = Router::new().fallback(bad_host).layer(from_fn_with_state(time_limit, fanfare::limit_body));
        Self { connections, preamble, server: Server { app, bad_host, http, metrics, hsts, time_limit, shutdown } }
    }

    /// Accepts connections forever.
    pub(super) async fn run(&self, listener: &TcpListener) -> Infallible {
        let mut failing = false;
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    failing = false;
                    if self.accept(stream, peer) {
                        // The task of the closed connection must run to close its socket before another one is opened.
                        tokio::task::yield_now().await;
                    }
                }
                Err(error) if listener::concerns_one_connection(&error) => {}
                Err(error) => {
                    // Logged once, because the shortage may last.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!(%error, "failed to accept connections; closing HTTP connections, or waiting \
                            until some close");
                    }
                    if self.connections.close_one() {
                        tokio::task::yield_now().await;
                    } else {
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
    }

    /// Serves a connection. Returns true if another connection was closed to make room.
    pub(super) fn accept(&self, stream: TcpStream, peer: SocketAddr) -> bool {
        let (server, ip) = (self.server.clone(), peer.ip().to_canonical());
        let has_proxy_header = self.preamble.proxy_protocol_from.contains(ip);
        let proxy = has_proxy_header || self.preamble.trusted_proxies.contains(ip);
        let tls = self.preamble.tls.clone();
        self.connections.spawn((!proxy).then_some(ip), |slot| async move {
            if tls.is_none() && !has_proxy_header {
                return server.serve(stream, peer).await;
            }
            match timeout(server.time_limit, open(stream, peer, has_proxy_header, tls, &slot)).await {
                Ok(Ok((Opened::Plain(stream), peer))) => server.serve(stream, peer).await,
                Ok(Ok((Opened::Tls(stream), peer))) => server.serve(*stream, peer).await,
                Ok(Err((counter, error))) => {
                    server.metrics.add(counter, 1);
                    tracing::debug!(%peer, %error, kind = counter.label().map(|(_, kind)| kind), "connection rejected");
                }
                Err(_) => server.metrics.add(Counter::LimitHandshake, 1),
            }
            drop(slot);
        })
    }
}

/// A connection on which HTTP begins.
enum Opened {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Reads the PROXY header if one must precede, and performs the TLS handshake if TLS is set. A failure comes with its
/// counter.
async fn open(
    mut stream: TcpStream,
    mut peer: SocketAddr,
    has_proxy_header: bool,
    tls: Option<TlsAcceptor>,
    slot: &Slot,
) -> Result<(Opened, SocketAddr), (Counter, io::Error)> {
    if has_proxy_header {
        let client = proxy_protocol::read(&mut stream).await.map_err(|error| (Counter::BadIntroductions, error))?;
        if let Some(client) = client {
            peer = client;
            slot.set_address(peer.ip().to_canonical());
        }
    }
    match tls {
        None => Ok((Opened::Plain(stream), peer)),
        Some(tls) => {
            let stream = tls.accept(stream).await.map_err(|error| (Counter::BadTls, error))?;
            Ok((Opened::Tls(Box::new(stream)), peer))
        }
    }
}

impl Server {
    async fn serve(mut self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: SocketAddr) {
        let (requested, mut first_request) = watch::channel(false);
        let service = service_fn(move |request: Request<Incoming>| {
            requested.send_replace(true);
            let app = if has_one_host(&request) { &self.app } else { &self.bad_host };
            answer(app.clone(), request, peer, self.hsts.clone())
        });
        let stream = TokioIo::new(TimedStream::new(stream, self.time_limit));
        let mut connection = pin!(self.http.serve_connection(stream, service).with_upgrades());
        let result = tokio::select! {
            result = connection.as_mut() => result,
            // A connection that was accepted just before the shutdown still gets a response.
            () = async {
                // An error means that the sender was dropped, which is a shutdown too.
                let _ = self.shutdown.changed().await;
                let _ = timeout(FIRST_REQUEST_TIMEOUT, first_request.wait_for(|requested| *requested)).await;
            } => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            let (metrics, requested) = (&self.metrics, *first_request.borrow());
            count(metrics, &error, requested);
            tracing::debug!(%peer, %error, "HTTP connection closed early");
        }
    }
}

async fn answer(
    app: Router,
    mut request: Request<Incoming>,
    peer: SocketAddr,
    hsts: Option<HeaderValue>,
) -> Result<Response, Infallible> {
    request.extensions_mut().insert(ConnectInfo(peer));
    let mut response = app.oneshot(request.map(Body::new)).await?;
    if let Some(hsts) = hsts {
        response.headers_mut().insert(STRICT_TRANSPORT_SECURITY, hsts);
    }
    Ok(response)
}

async fn bad_host() -> Response {
    let detail = "a request must have exactly one Host header (RFC 9112 section 3.2)";
    fanfare::problem(StatusCode::BAD_REQUEST, "bad_host", detail)
}

/// RFC 9112 section 3.2: exactly one `Host`, which only HTTP/1.0 may omit.
fn has_one_host(request: &Request<Incoming>) -> bool {
    let hosts = request.headers().get_all(HOST).iter().count();
    hosts == 1 || (hosts == 0 && request.version() < Version::HTTP_11)
}

/// Counts the cause of an early close. Timing out while idle after a request is no error.
fn count(metrics: &Metrics, error: &hyper::Error, requested: bool) {
    let mut source = std::error::Error::source(error);
    let stalled = std::iter::from_fn(|| {
        let this = source?;
        source = this.source();
        Some(this)
    })
    .any(|error| error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut));
    if stalled || (error.is_timeout() && !requested) {
        metrics.add(Counter::LimitHandshake, 1);
    } else if error.is_parse() {
        metrics.add(Counter::BadRequests, 1);
    }
}

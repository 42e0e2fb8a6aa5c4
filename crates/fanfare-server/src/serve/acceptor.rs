//! Accepts connections and serves HTTP on them, until they become clients or end. Knows sockets and limits of time; which
//! connection has to go when there are too many is [`HttpConnections`]' business.

use super::{
    LAST_MOMENT, MAX_HTTP_BUFFER,
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

/// How long to wait after the system gave no connection and there was none to close for it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What comes before HTTP on a connection.
#[derive(Clone, Default)]
pub(super) struct Preamble {
    pub(super) tls: Option<TlsAcceptor>,
    /// How long browsers are told to use nothing but TLS (RFC 6797). Zero: they are not told.
    pub(super) hsts_max_age: Duration,
    /// Load balancers whose connections begin with a PROXY header.
    pub(super) proxy_protocol_from: Proxies,
    /// Proxies that many clients share.
    pub(super) trusted_proxies: Proxies,
}

impl Preamble {
    /// The value of `Strict-Transport-Security`, which must not come over plain HTTP (RFC 6797 section 7.2).
    fn hsts(&self) -> Option<HeaderValue> {
        let told = self.tls.is_some() && !self.hsts_max_age.is_zero();
        told.then(|| HeaderValue::from_str(&format!("max-age={}", self.hsts_max_age.as_secs())).ok()).flatten()
    }
}

/// Serves HTTP on the connections of a listener.
pub(super) struct Acceptor {
    connections: Arc<HttpConnections>,
    preamble: Preamble,
    server: Server,
}

/// What serves a connection.
#[derive(Clone)]
struct Server {
    app: Router,
    /// Answers requests that no route sees.
    bad_host: Router,
    http: http1::Builder,
    metrics: Arc<Metrics>,
    hsts: Option<HeaderValue>,
    /// How long each part of a request and of a response may take, and what comes before them.
    time_limit: Duration,
    /// Each connection has one, and ends what it is doing when it changes.
    end: watch::Receiver<()>,
}

impl Acceptor {
    pub(super) fn new(hub: &Hub, app: Router, preamble: Preamble, limits: Limits, end: watch::Receiver<()>) -> Self {
        let (metrics, time_limit) = (hub.metrics().clone(), hub.config().handshake_timeout);
        let mut http = http1::Builder::new();
        // Also the time that a connection may be idle between two requests.
        http.timer(TokioTimer::new()).header_read_timeout(time_limit).max_buf_size(MAX_HTTP_BUFFER);
        let clients = hub.clone();
        let connections = HttpConnections::new(limits, move || clients.open_connections(), metrics.clone());
        let hsts = preamble.hsts();
        let bad_host = Router::new().fallback(bad_host).layer(from_fn_with_state(time_limit, fanfare::limit_body));
        Self { connections, preamble, server: Server { app, bad_host, http, metrics, hsts, time_limit, end } }
    }

    /// Accepts connections for ever.
    pub(super) async fn run(&self, listener: &TcpListener) -> Infallible {
        let mut failing = false;
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    failing = false;
                    if self.accept(stream, peer) {
                        // The socket of the one that went is closed before another one is opened.
                        tokio::task::yield_now().await;
                    }
                }
                Err(error) if listener::is_of_one_connection(&error) => {}
                Err(error) => {
                    // Once is enough: it may go on for a while.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!(%error, "the system gives no more connections; closing HTTP connections, or waiting for some to end");
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

    /// Serves a connection. True if another one was closed for it.
    pub(super) fn accept(&self, stream: TcpStream, peer: SocketAddr) -> bool {
        let (server, ip) = (self.server.clone(), peer.ip().to_canonical());
        let introduced = self.preamble.proxy_protocol_from.contains(ip);
        let proxy = introduced || self.preamble.trusted_proxies.contains(ip);
        let tls = self.preamble.tls.clone();
        self.connections.spawn((!proxy).then_some(ip), |slot| async move {
            if tls.is_none() && !introduced {
                return server.serve(stream, peer).await;
            }
            match timeout(server.time_limit, open(stream, peer, introduced, tls, &slot)).await {
                Ok(Ok((Opened::Plain(stream), peer))) => server.serve(stream, peer).await,
                Ok(Ok((Opened::Tls(stream), peer))) => server.serve(*stream, peer).await,
                Ok(Err((counter, error))) => {
                    server.metrics.add(counter, 1);
                    tracing::debug!(%peer, %error, kind = counter.label().map(|(_, kind)| kind), "a connection was rejected");
                }
                Err(_) => server.metrics.add(Counter::LimitHandshake, 1),
            }
            drop(slot);
        })
    }
}

/// A connection after what comes before HTTP.
enum Opened {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Reads whose connection it is, if that comes first, and speaks TLS, if it is set. Returns what is counted if that fails.
async fn open(
    mut stream: TcpStream,
    mut peer: SocketAddr,
    introduced: bool,
    tls: Option<TlsAcceptor>,
    slot: &Slot,
) -> Result<(Opened, SocketAddr), (Counter, io::Error)> {
    if introduced {
        let whose = proxy_protocol::read(&mut stream).await.map_err(|error| (Counter::BadIntroductions, error))?;
        if let Some(whose) = whose {
            peer = whose;
            slot.comes_from(peer.ip().to_canonical());
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
        let (asked, mut first_request) = watch::channel(false);
        let service = service_fn(move |request: Request<Incoming>| {
            asked.send_replace(true);
            let app = if has_one_host(&request) { &self.app } else { &self.bad_host };
            answer(app.clone(), request, peer, self.hsts.clone())
        });
        let stream = TokioIo::new(TimedStream::new(stream, self.time_limit));
        let mut connection = pin!(self.http.serve_connection(stream, service).with_upgrades());
        let result = tokio::select! {
            result = connection.as_mut() => result,
            // A connection that was accepted in the last moment is still answered.
            () = async {
                // An error means that the end has come, or the connection's.
                let _ = self.end.changed().await;
                let _ = timeout(LAST_MOMENT, first_request.wait_for(|asked| *asked)).await;
            } => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            let (metrics, asked) = (&self.metrics, *first_request.borrow());
            count(metrics, &error, asked);
            tracing::debug!(%peer, %error, "an HTTP connection ended early");
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
    let detail = "a request has one Host header (RFC 9112 section 3.2): send it once";
    fanfare::problem(StatusCode::BAD_REQUEST, "bad_host", detail)
}

/// RFC 9112 section 3.2: one `Host`, which only HTTP/1.0 may leave out.
fn has_one_host(request: &Request<Incoming>) -> bool {
    let hosts = request.headers().get_all(HOST).iter().count();
    hosts == 1 || (hosts == 0 && request.version() < Version::HTTP_11)
}

/// Counts what ended a connection early. One that was answered and is idle then has done nothing wrong.
fn count(metrics: &Metrics, error: &hyper::Error, asked: bool) {
    let mut source = std::error::Error::source(error);
    let stalled = std::iter::from_fn(|| {
        let this = source?;
        source = this.source();
        Some(this)
    })
    .any(|error| error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut));
    if stalled || (error.is_timeout() && !asked) {
        metrics.add(Counter::LimitHandshake, 1);
    } else if error.is_parse() {
        metrics.add(Counter::BadRequests, 1);
    }
}

//! `fanfare serve`: a hub behind a listener, until a signal ends it.
//!
//! Knows sockets, signals and files. What is sent to whom is the hub's business.

mod banner;
mod introduction;
pub(crate) mod jwks;
mod listener;
mod otlp;
mod page;
mod scrape;
mod service;
mod supervisor;
pub(crate) mod tls;
mod vitals;
mod worker;

use crate::{
    accounts::{self, DatabaseUrl, Logins, Store},
    keyring::Keyring,
    logging, redis,
    settings::{Settings, SettingsError, kind::LogFormat},
};
use anyhow::Context;
use axum::{Router, body::Body, extract::ConnectInfo};
use banner::Banner;
use fanfare::{
    Hub,
    broker::redis::RedisOptions,
    metrics::{Counter, Metrics},
    origin::Proxies,
};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use otlp::Traces;
use socket2::Socket;
use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::pin,
    process,
    sync::Arc,
    time::{Duration, Instant},
};
use supervisor::Supervisor;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tower::ServiceExt;
use utoipa_axum::router::OpenApiRouter;
use vitals::{CertificateEnd, Vitals};
use worker::{EVERYTHING_ENDS, Word, Worker};

/// How long requests may take to be answered at the end.
const GRACE: Duration = Duration::from_secs(10);

/// What is logged when the end begins.
const ENDING: &str = "ending: clients are told to come back; once more, and it ends at once";

/// How long a client that was just accepted may take to send its request once the end has begun.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// How long requests take at the end, all in all.
const LONGEST_REQUESTS: Duration = Duration::from_secs(2 * LAST_MOMENT.as_secs() + GRACE.as_secs());

/// What one HTTP connection may hold in memory: a request's head with the longest token in it, twice over.
const MAX_HTTP_BUFFER: usize = 32 << 10;

/// How long to wait after the system gave no connection, for example because it has no more files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until SIGINT or SIGTERM: in this process, or in several that it starts and looks after.
pub(crate) fn run(settings: &Settings) -> anyhow::Result<()> {
    logging::start(settings);
    let given = listener::given()?;
    let settings = &match &given {
        Some((_, address)) => Settings { listen: *address, ..settings.clone() },
        None => settings.clone(),
    };
    let given = given.map(|(socket, _)| socket);
    let worker = Worker::of_this_process()?;
    let workers = match settings.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let files = raise_file_limit();
    if workers > 1 && worker.is_none() {
        let runtime = Builder::new_current_thread().enable_all().build().context("the system gives no event loop")?;
        return runtime.block_on(supervise(settings, given, workers, files));
    }
    runtime().context("the system gives no threads")?.block_on(serve(settings, given, worker, files))
}

/// Serves in several processes.
async fn supervise(
    settings: &Settings,
    given: Option<Socket>,
    workers: usize,
    files: Option<u64>,
) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let keyring = keyring(settings)?;
    let mut supervisor = Supervisor::new(settings, given, workers, keyring.made.clone())?;
    warn(settings, files, &keyring);
    if supervisor.start(&mut signals).await? {
        announce(settings, supervisor.address(), &keyring)?;
        service::ready();
        service::keep_alive();
        supervisor.run(&mut signals).await;
    }
    tracing::info!("{ENDING}");
    service::ending();
    supervisor.end(&mut signals).await
}

/// The keys. A secret that was made for this run is for trying things out, which nobody does for strangers.
fn keyring(settings: &Settings) -> anyhow::Result<Keyring> {
    let keyring = Keyring::load_or_make(settings)?;
    if keyring.made.is_some() && !settings.listen.ip().is_loopback() {
        return Err(SettingsError::key(
            "secret_key",
            "",
            format!(
                "there is none, and without one the hub is for trying it out, on 127.0.0.1 alone: to listen on {}, set SECRET_KEY \
                 (make one with: openssl rand -hex 32)",
                settings.listen
            ),
        )
        .into());
    }
    Ok(keyring)
}

fn announce(settings: &Settings, address: SocketAddr, keyring: &Keyring) -> anyhow::Result<()> {
    match settings.log_format {
        LogFormat::Text => Banner { address, settings, keyring }.print()?,
        LogFormat::Json => tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "listening"),
    }
    Ok(())
}

/// Half the cores take HTTP requests, as the other half take connections. Where that is one, it is this thread: no
/// connect then changes threads before its shard has it.
fn runtime() -> io::Result<Runtime> {
    match std::thread::available_parallelism().map_or(1, usize::from) {
        ..=2 => Builder::new_current_thread().enable_all().build(),
        cores => Builder::new_multi_thread().worker_threads(cores.div_ceil(2)).enable_all().build(),
    }
}

async fn serve(
    settings: &Settings,
    given: Option<Socket>,
    worker: Option<Worker>,
    files: Option<u64>,
) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    // What is wrong with the settings is told before anything is taken.
    let certificate_end = CertificateEnd::default();
    let (keyring, tls) = (keyring(settings)?, tls::acceptor(settings, &certificate_end)?);
    let bound = match (worker, given) {
        (Some(_), _) => None,
        (None, Some(socket)) => Some(listener::listen(socket).context("the socket of the service can't be used")?),
        (None, None) => Some(listener::bind(settings.listen)?),
    };
    let store = Arc::new(Store::new(settings.database_url.clone()));
    store.open().await?;
    let traces = Traces::start(settings, &format!("{}", process::id()))?.map(Arc::new);
    let hub = start_hub(settings, &keyring, &store, Vitals::new(certificate_end), traces.clone()).await?;
    accounts::follow(store.clone(), hub.clone()).await;
    let listener = match bound {
        Some(listener) => listener,
        // Not before: clients are given to a worker as soon as it listens, and must not wait for one that fails.
        None => Worker::listener()?,
    };
    let address = listener.local_addr().context("the listener has no address")?;

    match worker {
        Some(_) => Worker::say(Word::Ready { patience: settings.drain_timeout.max(LONGEST_REQUESTS) }),
        None => {
            warn(settings, files, &keyring);
            announce(settings, address, &keyring)?;
            service::ready();
            service::keep_alive();
        }
    }
    let scrapes = match settings.metrics_listen {
        Some(address) => Some(scrape::start(address, worker, hub.clone())?),
        None => None,
    };
    let (end, requests) = watch::channel(());
    let app = hub.router_with(account_routes(settings, &keyring, &store, &hub));
    let door = Door::new(&hub, app, tls, settings.proxy_protocol_from.clone(), requests);
    let ending = tokio::select! {
        never = door.keep_open(&listener) => match never {},
        ending = signals.end_of(worker) => ending,
        () = hub.drain_wanted() => {
            tracing::info!("an administrator wants this process to end");
            if worker.is_some() { Ending::Replaced } else { Ending::Alone }
        }
    };

    let begun = Instant::now();
    match worker {
        Some(Worker { index }) => {
            Worker::say(Word::Ending);
            tracing::info!(worker = index, "ending: clients are told to come back");
        }
        None => {
            tracing::info!("{ENDING}");
            service::ending();
            tokio::spawn(async move {
                signals.end_of(None).await;
                process::exit(1);
            });
        }
    }
    if worker.is_some() {
        // The one that takes its place wants the address.
        drop(scrapes);
    }
    door.close(listener, ending);
    end.send_replace(());
    // Each HTTP connection holds a receiver until it is done. Those that are about to become clients still find the hub.
    let _ = timeout(2 * LAST_MOMENT, end.closed()).await;
    let requests = timeout(GRACE, end.closed());
    let clients = hub.shutdown(settings.drain_timeout.saturating_sub(begun.elapsed()));
    let (requests, ()) = tokio::join!(requests, clients);
    if requests.is_err() {
        tracing::warn!("requests were cut off after {} s", GRACE.as_secs());
    }
    if let Some(traces) = traces {
        // Only a panic would be an error.
        let _ = tokio::task::spawn_blocking(move || traces.end()).await;
    }
    let left = hub.stats().local;
    if left > 0 {
        tracing::warn!(clients = left, "clients were cut off at the end of drain_timeout");
    }
    Ok(())
}

async fn start_hub(
    settings: &Settings,
    keyring: &Keyring,
    store: &Arc<Store>,
    vitals: Vitals,
    traces: Option<Arc<Traces>>,
) -> anyhow::Result<Hub> {
    let mut verifier = keyring.verifier(settings);
    if let Some(url) = &settings.jwks_url {
        let (with_source, source) = verifier.with_source();
        verifier = with_source;
        jwks::follow(url, settings.algorithm, settings.jwks_refresh, source).await?;
    }
    let mut builder = Hub::builder(verifier)
        .config(settings.hub.clone())
        .figures(Arc::new(vitals))
        .log_switch(Arc::new(logging::Switch));
    if let Some(traces) = traces {
        builder = builder.tracer(traces);
    }
    if let Some(identity) = &keyring.identity {
        builder = builder.identity_secret(identity.clone());
    }
    if settings.database_url != DatabaseUrl::None {
        builder = builder.revocations(store.revocations().await?).keep_revocations(store.clone());
    }
    let Some(url) = redis::url(settings)? else { return Ok(builder.start()?) };
    let options = RedisOptions {
        namespace: settings.redis_namespace.clone(),
        channels: settings.redis_channels.clone(),
        durability: settings.durability,
        lag_limit: settings.bus_lag_limit,
        ..RedisOptions::new(url.clone())
    };
    // Never the memory instead: other nodes would not see it, and it ends with the process.
    let context = || format!("the log can't be in Redis at {url} (redis_url, REDIS_URL)");
    builder.start_with_redis(options).await.with_context(context)
}

/// Logging in, where there are accounts and a key to sign their tokens with.
fn account_routes(settings: &Settings, keyring: &Keyring, store: &Arc<Store>, hub: &Hub) -> OpenApiRouter<Hub> {
    match &keyring.minter {
        Some(minter) if settings.database_url != DatabaseUrl::None => {
            let logins = Logins::new(store.clone(), minter.clone(), hub.clone(), settings.clone());
            accounts::http::router(Arc::new(logins))
        }
        _ => OpenApiRouter::new(),
    }
}

fn warn(settings: &Settings, files: Option<u64>, keyring: &Keyring) {
    if keyring.made.is_some() && settings.log_format == LogFormat::Json {
        tracing::warn!(
            "there is no SECRET_KEY: a random secret was made for this run, and nobody else can make tokens"
        );
    }
    let wanted = settings.hub.max_connections as u64;
    if let Some(files) = files.filter(|&files| wanted > 0 && files < wanted.saturating_add(100)) {
        tracing::warn!(
            "this process may open {files} files, and max_connections is {wanted}: raise the limit (ulimit -n, \
             LimitNOFILE) or lower max_connections"
        );
    }
}

/// Each connection is a file. Gives how many there may be.
fn raise_file_limit() -> Option<u64> {
    rlimit::increase_nofile_limit(u64::MAX).ok()
}

/// Where connections come in.
struct Door {
    app: Router,
    tls: Option<TlsAcceptor>,
    /// Balancers, which say first whose connection it is.
    balancers: Proxies,
    /// How long that and the TLS handshake may take.
    patience: Duration,
    http: http1::Builder,
    metrics: Arc<Metrics>,
    /// Each connection has one, and ends what it is doing when it changes.
    end: watch::Receiver<()>,
}

impl Door {
    /// A door to a hub's routes.
    fn new(hub: &Hub, app: Router, tls: Option<TlsAcceptor>, balancers: Proxies, end: watch::Receiver<()>) -> Self {
        let app = app.merge(page::router()).fallback(fanfare::not_found);
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(hub.config().handshake_timeout).max_buf_size(MAX_HTTP_BUFFER);
        Self {
            app,
            tls,
            balancers,
            patience: hub.config().handshake_timeout,
            http,
            metrics: hub.metrics().clone(),
            end,
        }
    }

    /// Takes connections for ever.
    async fn keep_open(&self, listener: &TcpListener) -> Infallible {
        let mut failing = false;
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    failing = false;
                    self.let_in(stream, peer);
                }
                Err(error) if listener::is_of_one_connection(&error) => {}
                Err(error) => {
                    // Once is enough: it may go on for a while.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!(%error, "the system gives no more connections; waiting for some to end");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn let_in(&self, stream: TcpStream, peer: SocketAddr) {
        let (app, http, metrics, end) = (self.app.clone(), self.http.clone(), self.metrics.clone(), self.end.clone());
        let (tls, introduced) = (self.tls.clone(), self.balancers.contains(peer.ip()));
        if tls.is_none() && !introduced {
            tokio::spawn(serve_connection(stream, peer, app, http, metrics, end));
            return;
        }
        let opened = timeout(self.patience, open(stream, peer, introduced, tls));
        tokio::spawn(async move {
            match opened.await {
                Ok(Ok((Opened::Plain(stream), peer))) => serve_connection(stream, peer, app, http, metrics, end).await,
                Ok(Ok((Opened::Tls(stream), peer))) => serve_connection(*stream, peer, app, http, metrics, end).await,
                Ok(Err((counter, error))) => {
                    metrics.add(counter, 1);
                    tracing::debug!(%peer, %error, kind = counter.label().map(|(_, kind)| kind), "a connection was refused");
                }
                Err(_) => metrics.add(Counter::LimitHandshake, 1),
            }
        });
    }

    /// Takes nobody in any more, except those who wait already and whom nobody else would take.
    fn close(self, listener: TcpListener, ending: Ending) {
        if ending == Ending::Replaced {
            return;
        }
        match listener::those_who_wait(listener) {
            Ok(waiting) => waiting.into_iter().for_each(|(stream, peer)| self.let_in(stream, peer)),
            Err(error) => tracing::warn!(%error, "those who waited for a connection are not answered"),
        }
    }
}

/// A connection after what comes before HTTP.
enum Opened {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Hears whose connection it is, if that is said first, and speaks TLS, if it is set. Gives what is counted if that fails.
async fn open(
    mut stream: TcpStream,
    mut peer: SocketAddr,
    introduced: bool,
    tls: Option<TlsAcceptor>,
) -> Result<(Opened, SocketAddr), (Counter, io::Error)> {
    if introduced {
        let whose = introduction::read(&mut stream).await.map_err(|error| (Counter::BadIntroductions, error))?;
        peer = whose.unwrap_or(peer);
    }
    match tls {
        None => Ok((Opened::Plain(stream), peer)),
        Some(tls) => {
            let stream = tls.accept(stream).await.map_err(|error| (Counter::BadTls, error))?;
            Ok((Opened::Tls(Box::new(stream)), peer))
        }
    }
}

async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    app: Router,
    http: http1::Builder,
    metrics: Arc<Metrics>,
    mut end: watch::Receiver<()>,
) {
    let (asked, mut first_request) = watch::channel(false);
    let service = service_fn(move |mut request: Request<Incoming>| {
        asked.send_replace(true);
        request.extensions_mut().insert(ConnectInfo(peer));
        app.clone().oneshot(request.map(Body::new))
    });
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service).with_upgrades());
    let result = tokio::select! {
        result = connection.as_mut() => result,
        // Whoever was let in in the last moment is still answered.
        () = async {
            // An error means that the end has come, or the connection's.
            let _ = end.changed().await;
            let _ = timeout(LAST_MOMENT, first_request.wait_for(|asked| *asked)).await;
        } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        // Who had an answer and asks nothing more was no handshake.
        if error.is_timeout() && !*first_request.borrow() {
            metrics.add(Counter::LimitHandshake, 1);
        } else if error.is_parse() {
            metrics.add(Counter::BadRequests, 1);
        }
        tracing::debug!(%peer, %error, "an HTTP connection ended early");
    }
}

/// What a server is told from outside.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    everything_ends: Signal,
}

/// Who takes the clients that wait at the listening socket of a process that ends.
#[derive(Clone, Copy, PartialEq)]
enum Ending {
    /// It does itself.
    Alone,
    /// Another, which has the same socket.
    Replaced,
}

/// What a supervisor is told.
enum Told {
    Stop,
    Replace,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let signal = |kind| signal(kind).context("signals can't be listened to");
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            everything_ends: signal(SignalKind::from_raw(EVERYTHING_ENDS.as_raw()))?,
        })
    }

    /// What a supervisor is told.
    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.terminate.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::Replace,
        }
    }

    /// What ends a process that serves. A terminal's and a service manager's signals may go to a supervisor and its workers
    /// alike, and it is the supervisor that says what they mean.
    async fn end_of(&mut self, worker: Option<Worker>) -> Ending {
        match worker {
            Some(_) => tokio::select! {
                _ = self.terminate.recv() => Ending::Replaced,
                _ = self.everything_ends.recv() => Ending::Alone,
            },
            None => tokio::select! {
                _ = self.interrupt.recv() => Ending::Alone,
                _ = self.terminate.recv() => Ending::Alone,
                _ = self.hangup.recv() => Ending::Alone,
            },
        }
    }
}

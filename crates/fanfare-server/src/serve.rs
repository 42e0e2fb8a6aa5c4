//! `fanfare serve`: runs a hub behind a listener until a signal arrives.
//!
//! Owns sockets, signals and files. Does not know events or their audiences: the hub does.

mod acceptor;
mod banner;
pub(crate) mod file_budget;
mod http_connections;
pub(crate) mod jwks;
mod listener;
mod otlp;
mod page;
mod proxy_protocol;
mod scrape;
mod service;
mod supervisor;
pub(crate) mod tls;
mod vitals;
mod worker;

use crate::{
    accounts::{self, Logins, Store},
    keyring::Keyring,
    logging, redis,
    settings::{DatabaseUrl, Loaded, Settings, SettingsError, kind::LogFormat},
};
use acceptor::{Acceptor, Preamble};
use anyhow::Context;
use axum::middleware::from_fn_with_state;
use banner::Banner;
use fanfare::{Config, Hub, HubBuilder, broker::redis::RedisOptions};
use file_budget::FileBudget;
use otlp::Traces;
use socket2::Socket;
use std::{
    io,
    net::SocketAddr,
    process,
    sync::Arc,
    time::{Duration, Instant},
};
use supervisor::Supervisor;
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::timeout,
};
use utoipa_axum::router::OpenApiRouter;
use vitals::{CertificateEnd, Vitals};
use worker::{SHUTDOWN_SIGNAL, Worker, WorkerMessage};

/// The time limit for HTTP requests in progress at shutdown.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The log message at the start of a shutdown.
const SHUTTING_DOWN: &str = "shutting down: draining clients; a second signal exits immediately";

/// How long a connection that was accepted just before a shutdown may take to send its first request.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// The longest time that HTTP connections take at shutdown.
const MAX_REQUEST_TIME: Duration = Duration::from_secs(2 * FIRST_REQUEST_TIMEOUT.as_secs() + REQUEST_TIMEOUT.as_secs());

/// The buffer limit of one HTTP connection, in bytes: twice a request head with a token of maximum length.
const MAX_HTTP_BUFFER: usize = 32 << 10;

/// Serves until SIGINT or SIGTERM, in this process or in several workers that it supervises.
pub(crate) fn run(loaded: &Loaded) -> anyhow::Result<()> {
    let settings = &loaded.settings;
    logging::start(settings);
    let inherited = listener::inherited()?;
    let settings = &match &inherited {
        Some((_, address)) => Settings { listen: *address, ..settings.clone() },
        None => settings.clone(),
    };
    let inherited = inherited.map(|(socket, _)| socket);
    let worker = Worker::of_this_process()?;
    if worker.is_none() {
        log_setting_sources(loaded);
    }
    let workers = match settings.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let files = raise_file_limit();
    if workers > 1 && worker.is_none() {
        let runtime = Builder::new_current_thread().enable_all().build().context("failed to start the event loop")?;
        return runtime.block_on(supervise(settings, inherited, workers, files));
    }
    runtime().context("failed to start threads")?.block_on(serve(settings, inherited, worker, files))
}

/// Logs the source of each setting, because an application's environment or `.env` may set more than intended.
fn log_setting_sources(loaded: &Loaded) {
    let taken = loaded.taken();
    if !taken.is_empty() {
        tracing::info!("settings: {taken}");
    }
    for note in &loaded.notes {
        tracing::warn!("{note}");
    }
}

/// Serves in several processes.
async fn supervise(
    settings: &Settings,
    inherited: Option<Socket>,
    workers: usize,
    files: Option<u64>,
) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let keyring = keyring(settings)?;
    let mut supervisor = Supervisor::new(settings, inherited, workers, keyring.generated.clone())?;
    warn(settings, files, &keyring);
    if supervisor.start(&mut signals).await? {
        announce(settings, supervisor.address(), &keyring)?;
        service::ready();
        service::keep_alive();
        supervisor.run(&mut signals).await;
    }
    tracing::info!("{SHUTTING_DOWN}");
    service::stopping();
    supervisor.shut_down(&mut signals).await
}

/// Loads the keys. A secret that was generated for this run is accepted only on loopback addresses.
fn keyring(settings: &Settings) -> anyhow::Result<Keyring> {
    let keyring = Keyring::load_or_generate(settings)?;
    if keyring.generated.is_some() && !settings.listen.ip().is_loopback() {
        return Err(SettingsError::key(
            "secret_key",
            "",
            format!(
                "it is not set, and without it the hub listens only on loopback addresses: to listen on {}, \
                 set SECRET_KEY (generate one with: openssl rand -hex 32)",
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

/// One HTTP thread for every two cores; the shards use the other half. With one such thread it is the main thread, so
/// that a new connection does not change threads before it reaches its shard.
fn runtime() -> io::Result<Runtime> {
    match std::thread::available_parallelism().map_or(1, usize::from) {
        ..=2 => Builder::new_current_thread().enable_all().build(),
        cores => Builder::new_multi_thread().worker_threads(cores.div_ceil(2)).enable_all().build(),
    }
}

async fn serve(
    settings: &Settings,
    inherited: Option<Socket>,
    worker: Option<Worker>,
    files: Option<u64>,
) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let budget = FileBudget::new(files, settings);
    // Errors in the settings are reported before any socket or file is opened.
    let certificate_end = CertificateEnd::default();
    let (keyring, tls) = (keyring(settings)?, tls::acceptor(settings, &certificate_end)?);
    let bound = match (worker, inherited) {
        (Some(_), _) => None,
        (None, Some(socket)) => {
            Some(listener::listen(socket).context("failed to listen on the socket of the service manager")?)
        }
        (None, None) => Some(listener::bind(settings.listen)?),
    };
    let store = Arc::new(Store::new(settings.database_url.clone()));
    store.open().await?;
    let traces = Traces::start(settings, &format!("{}", process::id()))?.map(Arc::new);
    let hub = start_hub(settings, budget, &keyring, &store, Vitals::new(certificate_end), traces.clone()).await?;
    let listener = match bound {
        Some(listener) => listener,
        // Only now: the kernel assigns clients to a worker as soon as it listens, and a worker may still fail before.
        None => Worker::listener()?,
    };
    let address = listener.local_addr().context("the listener has no address")?;

    match worker {
        Some(_) => Worker::report(WorkerMessage::Ready { drain_timeout: settings.drain_timeout.max(MAX_REQUEST_TIME) }),
        None => {
            warn(settings, files, &keyring);
            announce(settings, address, &keyring)?;
            service::ready();
            service::keep_alive();
        }
    }
    let (end, requests) = watch::channel(());
    let scrapes = match settings.metrics_listen {
        Some(address) => Some(scrape::start(address, worker, hub.clone(), requests.clone())?),
        None => None,
    };
    let app = hub.router_with(account_routes(settings, &keyring, &store, &hub));
    let pages = page::router()
        .fallback(fanfare::not_found)
        .layer(from_fn_with_state(settings.hub.handshake_timeout, fanfare::limit_body));
    let app = app.merge(pages);
    let preamble = Preamble {
        tls,
        hsts_max_age: settings.hsts_max_age,
        proxy_protocol_from: settings.proxy_protocol_from.clone(),
        trusted_proxies: settings.hub.trusted_proxies.clone(),
    };
    let acceptor = Acceptor::new(&hub, app, preamble, budget.http, requests);
    let shutdown = tokio::select! {
        never = acceptor.run(&listener) => match never {},
        shutdown = signals.shutdown_signal(worker) => shutdown,
        () = hub.drain_wanted() => {
            tracing::info!("an administrator requested a drain");
            if worker.is_some() { Shutdown::Replaced } else { Shutdown::Last }
        }
    };

    let begun = Instant::now();
    match worker {
        Some(Worker { index }) => {
            Worker::report(WorkerMessage::Draining);
            tracing::info!(worker = index, "shutting down: draining clients");
        }
        None => {
            tracing::info!("{SHUTTING_DOWN}");
            service::stopping();
            tokio::spawn(async move {
                signals.shutdown_signal(None).await;
                process::exit(1);
            });
        }
    }
    if worker.is_some() {
        // The replacement waits for this address.
        drop(scrapes);
    }
    if shutdown == Shutdown::Last {
        accept_queued(&acceptor, listener);
    }
    drop(acceptor);
    end.send_replace(());
    // Each HTTP connection holds a receiver until it closes. The hub still accepts those that are being upgraded.
    let _ = timeout(2 * FIRST_REQUEST_TIMEOUT, end.closed()).await;
    let requests = timeout(REQUEST_TIMEOUT, end.closed());
    let clients = hub.shutdown(settings.drain_timeout.saturating_sub(begun.elapsed()));
    let (requests, ()) = tokio::join!(requests, clients);
    if requests.is_err() {
        tracing::warn!("aborted HTTP requests that did not finish within {} s", REQUEST_TIMEOUT.as_secs());
    }
    if let Some(traces) = traces {
        // Only a panic is an error here.
        let _ = tokio::task::spawn_blocking(move || traces.end()).await;
    }
    let left = hub.stats().local;
    if left > 0 {
        tracing::warn!(clients = left, "drain_timeout reached: closed the remaining clients");
    }
    Ok(())
}

async fn start_hub(
    settings: &Settings,
    budget: FileBudget,
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
    let (verifier, unknown) = verifier.with_access_key_source();
    let mut builder = Hub::builder(verifier)
        .config(Config { max_connections: budget.clients, ..settings.hub.clone() })
        .figures(Arc::new(vitals))
        .log_switch(Arc::new(logging::Switch));
    if let Some(traces) = traces {
        builder = builder.tracer(traces);
    }
    if let Some(identity) = &keyring.identity {
        builder = builder.identity_secret(identity.clone());
    }
    if let Some(error) = store.creation_error() {
        tracing::warn!(
            "accounts, access keys and POST /tokens/revoke are unavailable: {error}; to run without accounts, set it \
             to none"
        );
    }
    if settings.database_url != DatabaseUrl::None {
        builder = builder.revocations(store.revocations().await?).keep_revocations(store.clone());
    }
    let hub = start_log(settings, builder).await?;
    accounts::follow(store.clone(), hub.clone(), unknown).await;
    Ok(hub)
}

async fn start_log(settings: &Settings, builder: HubBuilder) -> anyhow::Result<Hub> {
    let Some(url) = redis::url(settings)? else { return Ok(builder.start()?) };
    let options = RedisOptions {
        namespace: settings.redis_namespace.clone(),
        channels: settings.redis_channels.clone(),
        durability: settings.durability,
        lag_limit: settings.bus_lag_limit,
        ..RedisOptions::new(url.clone())
    };
    // No fallback to memory: other nodes would not see that log, and it is lost with the process.
    let context = || format!("failed to open the log in Redis at {url} (redis_url, REDIS_URL)");
    builder.start_with_redis(options).await.with_context(context)
}

/// The routes for logins, if there are accounts and a key that signs tokens.
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
    if keyring.generated.is_some() && settings.log_format == LogFormat::Json {
        tracing::warn!(
            "SECRET_KEY is not set: a random secret was generated for this run, and no other program can sign tokens"
        );
    }
    let (wanted, clients) = (settings.hub.max_connections, FileBudget::new(files, settings).clients);
    if let Some(files) = files.filter(|_| wanted > clients) {
        tracing::warn!(
            "the limit of {files} open files allows {clients} clients, but max_connections is {wanted}: \
             raise the limit (ulimit -n, LimitNOFILE), or set max_connections to {clients}"
        );
    }
}

/// Raises the limit on open files, because each connection is a file. Returns the new limit.
fn raise_file_limit() -> Option<u64> {
    rlimit::increase_nofile_limit(u64::MAX).ok()
}

/// Serves the connections in the queue of a listening socket that no other process has, and closes the socket.
fn accept_queued(acceptor: &Acceptor, listener: TcpListener) {
    match listener::queued_connections(listener) {
        Ok(waiting) => {
            for (stream, peer) in waiting {
                acceptor.accept(stream, peer);
            }
        }
        Err(error) => tracing::warn!(%error, "failed to accept the connections that were queued"),
    }
}

/// The signals that a process handles.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    shutdown: Signal,
}

/// Whether another process accepts the connections that are queued at the socket of a process that shuts down.
#[derive(Clone, Copy, PartialEq)]
enum Shutdown {
    /// No other process has the socket, so this one accepts them.
    Last,
    /// A replacement has the same socket.
    Replaced,
}

/// A signal to a supervisor.
enum SupervisorSignal {
    Stop,
    Replace,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let signal = |kind| signal(kind).context("failed to install a signal handler");
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            shutdown: signal(SignalKind::from_raw(SHUTDOWN_SIGNAL.as_raw()))?,
        })
    }

    /// Waits for a signal to the supervisor.
    async fn next(&mut self) -> SupervisorSignal {
        tokio::select! {
            _ = self.interrupt.recv() => SupervisorSignal::Stop,
            _ = self.terminate.recv() => SupervisorSignal::Stop,
            _ = self.hangup.recv() => SupervisorSignal::Replace,
        }
    }

    /// Waits for a signal that shuts down a process that serves. A worker ignores SIGINT and SIGHUP, because terminals
    /// and service managers send them to the whole process group; only the supervisor interprets them.
    async fn shutdown_signal(&mut self, worker: Option<Worker>) -> Shutdown {
        match worker {
            Some(_) => tokio::select! {
                _ = self.terminate.recv() => Shutdown::Replaced,
                _ = self.shutdown.recv() => Shutdown::Last,
            },
            None => tokio::select! {
                _ = self.interrupt.recv() => Shutdown::Last,
                _ = self.terminate.recv() => Shutdown::Last,
                _ = self.hangup.recv() => Shutdown::Last,
            },
        }
    }
}

//! `fanfare serve`: a hub behind a listener, until a signal ends it.
//!
//! Knows sockets, signals and files. What is sent to whom is the hub's business.

mod acceptor;
mod banner;
mod file_budget;
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
    accounts::{self, DatabaseUrl, Logins, Store},
    keyring::Keyring,
    logging, redis,
    settings::{Loaded, Settings, SettingsError, kind::LogFormat},
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

/// Serves until SIGINT or SIGTERM: in this process, or in several that it starts and looks after.
pub(crate) fn run(loaded: &Loaded) -> anyhow::Result<()> {
    let settings = &loaded.settings;
    logging::start(settings);
    let given = listener::given()?;
    let settings = &match &given {
        Some((_, address)) => Settings { listen: *address, ..settings.clone() },
        None => settings.clone(),
    };
    let given = given.map(|(socket, _)| socket);
    let worker = Worker::of_this_process()?;
    if worker.is_none() {
        say_where_from(loaded);
    }
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

/// What was taken from where, because an application's environment and `.env` may say more than was meant for the hub.
fn say_where_from(loaded: &Loaded) {
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
    let budget = FileBudget::new(files, settings);
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
    let hub = start_hub(settings, budget, &keyring, &store, Vitals::new(certificate_end), traces.clone()).await?;
    let listener = match bound {
        Some(listener) => listener,
        // Not before: clients are given to a worker as soon as it listens, and must not wait for one that fails.
        None => Worker::listener()?,
    };
    let address = listener.local_addr().context("the listener has no address")?;

    match worker {
        Some(_) => Worker::say(WorkerMessage::Ready { drain_timeout: settings.drain_timeout.max(LONGEST_REQUESTS) }),
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
    let ending = tokio::select! {
        never = acceptor.run(&listener) => match never {},
        ending = signals.end_of(worker) => ending,
        () = hub.drain_wanted() => {
            tracing::info!("an administrator wants this process to end");
            if worker.is_some() { Ending::Replaced } else { Ending::Alone }
        }
    };

    let begun = Instant::now();
    match worker {
        Some(Worker { index }) => {
            Worker::say(WorkerMessage::Ending);
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
    if ending == Ending::Alone {
        accept_waiting(&acceptor, listener);
    }
    drop(acceptor);
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
    if let Some(error) = store.obstacle() {
        tracing::warn!(
            "neither accounts nor access keys nor POST /tokens/revoke work: {error}; without accounts set it to none"
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
    let (wanted, clients) = (settings.hub.max_connections, FileBudget::new(files, settings).clients);
    if let Some(files) = files.filter(|_| wanted > clients) {
        tracing::warn!(
            "a process may open {files} files, which is enough for {clients} clients and not for max_connections = {wanted}: \
             raise the limit (ulimit -n, LimitNOFILE), or set max_connections to {clients}"
        );
    }
}

/// Each connection is a file. Gives how many there may be.
fn raise_file_limit() -> Option<u64> {
    rlimit::increase_nofile_limit(u64::MAX).ok()
}

/// Serves those who wait at a listening socket that nobody else has, and closes it.
fn accept_waiting(acceptor: &Acceptor, listener: TcpListener) {
    match listener::those_who_wait(listener) {
        Ok(waiting) => {
            for (stream, peer) in waiting {
                acceptor.accept(stream, peer);
            }
        }
        Err(error) => tracing::warn!(%error, "those who waited for a connection are not answered"),
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

/// What a signal asks a supervisor to do.
enum SupervisorSignal {
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
            everything_ends: signal(SignalKind::from_raw(SHUTDOWN_SIGNAL.as_raw()))?,
        })
    }

    /// What a signal asks a supervisor to do.
    async fn next(&mut self) -> SupervisorSignal {
        tokio::select! {
            _ = self.interrupt.recv() => SupervisorSignal::Stop,
            _ = self.terminate.recv() => SupervisorSignal::Stop,
            _ = self.hangup.recv() => SupervisorSignal::Replace,
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

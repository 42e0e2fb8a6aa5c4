//! Serves `/metrics` on its own address without authentication, for a Prometheus server in the same network.

use super::{
    acceptor::{Acceptor, Preamble},
    http_connections::Limits,
    listener,
    worker::Worker,
};
use anyhow::Context;
use axum::{Router, http::header::CONTENT_TYPE, middleware::from_fn_with_state, routing::get};
use fanfare::Hub;
use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::{net::TcpListener, sync::watch, time::sleep};

/// How often a replacement retries to bind the address of its predecessor.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// How long the predecessor may take to release it: its replacement must become ready before it is drained.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(65);

/// The limit on HTTP connections. Prometheus opens one.
const CONNECTIONS: usize = 32;

/// The address of a worker's metrics: the configured one for the first worker, and the next port for each other one.
fn address(first: SocketAddr, worker: Option<Worker>) -> anyhow::Result<SocketAddr> {
    let index = worker.map_or(0, |worker| worker.index);
    let port = u16::try_from(index).ok().and_then(|index| first.port().checked_add(index));
    let port = port.with_context(|| {
        format!("metrics_listen: no port is left for worker {index} after {first}: use a lower port")
    })?;
    Ok(SocketAddr::new(first.ip(), port))
}

/// Serves the metrics until the returned handle is dropped.
///
/// # Errors
/// If the address can't be bound. A worker retries instead, because its predecessor may still use the address.
pub(super) fn start(
    first: SocketAddr,
    worker: Option<Worker>,
    hub: Hub,
    end: watch::Receiver<()>,
) -> anyhow::Result<MetricsServer> {
    let address = address(first, worker)?;
    let listener = match listener::bind(address) {
        Err(_) if worker.is_some() => None,
        bound => Some(bound.context("metrics_listen")?),
    };
    let task = tokio::spawn(async move {
        let listener = match listener {
            Some(listener) => listener,
            None => bind_when_free(address).await,
        };
        let scraped = hub.clone();
        let app = Router::new()
            .route(
                "/metrics",
                get(async move || ([(CONTENT_TYPE, fanfare::metrics::CONTENT_TYPE)], scraped.metrics_text().await)),
            )
            .layer(from_fn_with_state(hub.config().handshake_timeout, fanfare::limit_body));
        let acceptor = Acceptor::new(&hub, app, Preamble::default(), Limits::fixed(CONNECTIONS), end);
        match acceptor.run(&listener).await {}
    });
    Ok(MetricsServer(task))
}

/// Releases the address when it is dropped.
pub(super) struct MetricsServer(tokio::task::JoinHandle<()>);

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Binds the address once the previous worker has released it.
async fn bind_when_free(address: SocketAddr) -> TcpListener {
    let (mut logged, begun) = (false, Instant::now());
    loop {
        match listener::bind(address) {
            Ok(listener) => return listener,
            Err(error) => {
                let in_use =
                    error.downcast_ref().is_some_and(|error: &io::Error| error.kind() == io::ErrorKind::AddrInUse);
                let unexpected = !in_use || begun.elapsed() > RELEASE_TIMEOUT;
                if unexpected && !std::mem::replace(&mut logged, true) {
                    tracing::error!("metrics_listen: {error:#}; retrying");
                }
                sleep(RETRY_INTERVAL).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_worker_has_a_port() {
        let first = "127.0.0.1:9464".parse().unwrap();
        assert_eq!(address(first, None).unwrap(), first);
        assert_eq!(address(first, Some(Worker { index: 3 })).unwrap(), "127.0.0.1:9467".parse().unwrap());
        let last = "127.0.0.1:65535".parse().unwrap();
        let error = address(last, Some(Worker { index: 1 })).unwrap_err().to_string();
        assert!(error.contains("no port is left for worker 1"), "{error}");
    }
}

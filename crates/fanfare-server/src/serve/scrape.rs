//! `/metrics` on an address of its own, open to everybody who reaches it: for a Prometheus in the same network.

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

/// How often a worker looks whether the one that it replaces has let go of the address.
const AGAIN: Duration = Duration::from_millis(250);

/// How long that takes at most: until this one is ready, and the other was told.
const REPLACED: Duration = Duration::from_secs(65);

/// How many connections there may be. A Prometheus has one.
const CONNECTIONS: usize = 32;

/// Where one of several workers is asked for its figures: the first at the address that is set, each other one a port on.
fn address(first: SocketAddr, worker: Option<Worker>) -> anyhow::Result<SocketAddr> {
    let index = worker.map_or(0, |worker| worker.index);
    let port = u16::try_from(index).ok().and_then(|index| first.port().checked_add(index));
    let port = port.with_context(|| format!("metrics_listen: no port is left for worker {index} behind {first}"))?;
    Ok(SocketAddr::new(first.ip(), port))
}

/// Serves the figures until the task is ended.
///
/// # Errors
/// If the address can't be had, for a process that is nobody's replacement.
pub(super) fn start(
    first: SocketAddr,
    worker: Option<Worker>,
    hub: Hub,
    end: watch::Receiver<()>,
) -> anyhow::Result<Scrapes> {
    let address = address(first, worker)?;
    let listener = match listener::bind(address) {
        Err(_) if worker.is_some() => None,
        bound => Some(bound.context("metrics_listen")?),
    };
    let task = tokio::spawn(async move {
        let listener = match listener {
            Some(listener) => listener,
            None => when_free(address).await,
        };
        let figures = hub.clone();
        let app = Router::new()
            .route(
                "/metrics",
                get(async move || ([(CONTENT_TYPE, fanfare::metrics::CONTENT_TYPE)], figures.metrics_text().await)),
            )
            .layer(from_fn_with_state(hub.config().handshake_timeout, fanfare::limit_body));
        let acceptor = Acceptor::new(&hub, app, Preamble::default(), Limits::fixed(CONNECTIONS), end);
        match acceptor.run(&listener).await {}
    });
    Ok(Scrapes(task))
}

/// The address is let go when this is.
pub(super) struct Scrapes(tokio::task::JoinHandle<()>);

impl Drop for Scrapes {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The worker before this one lets the address go when it ends.
async fn when_free(address: SocketAddr) -> TcpListener {
    let (mut told, begun) = (false, Instant::now());
    loop {
        match listener::bind(address) {
            Ok(listener) => return listener,
            Err(error) => {
                let in_use =
                    error.downcast_ref().is_some_and(|error: &io::Error| error.kind() == io::ErrorKind::AddrInUse);
                let wrong = !in_use || begun.elapsed() > REPLACED;
                if wrong && !std::mem::replace(&mut told, true) {
                    tracing::error!("metrics_listen: {error:#}; trying again");
                }
                sleep(AGAIN).await;
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

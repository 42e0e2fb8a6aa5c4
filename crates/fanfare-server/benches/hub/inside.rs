//! A hub within a process of the benchmark: an application that publishes from its own code.

use crate::{args::Values, clock::monotonic_ns, event, token};
use anyhow::{Context, Result};
use axum::{extract::State, http::StatusCode, routing::post};
use fanfare::{Audience, Config, Draft, Hub, Verifier};
use std::{net::SocketAddr, time::Duration};

/// The delay between the request to publish and the publish, so that the response does not delay the receipt of the
/// event.
const PAUSE: Duration = Duration::from_millis(5);

/// Runs until the process is killed.
pub(crate) fn run(values: &Values) -> Result<()> {
    let listen: SocketAddr = values.get("listen")?;
    let audience = if values.get("to_one")? { Audience::User("user-0".into()) } else { Audience::Everyone };
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(listen, audience))
}

async fn serve(listen: SocketAddr, audience: Audience) -> Result<()> {
    let config = Config { max_connections_per_address: 0, connects_per_second_per_address: 0, ..Config::default() };
    let hub = Hub::builder(Verifier::from_secret(token::SECRET)?).config(config).start()?;
    let bench = axum::Router::new().route("/bench/publish", post(publish_soon)).with_state((hub.clone(), audience));
    let app = hub.router().merge(bench).into_make_service_with_connect_info::<SocketAddr>();
    Ok(axum::serve(tokio::net::TcpListener::bind(listen).await?, app).await?)
}

/// Responds immediately, and publishes the event of the given number after [`PAUSE`].
async fn publish_soon(State((hub, audience)): State<(Hub, Audience)>, counter: String) -> StatusCode {
    let Ok(counter) = counter.parse() else {
        return StatusCode::BAD_REQUEST;
    };
    tokio::spawn(async move {
        tokio::time::sleep(PAUSE).await;
        if let Err(error) = publish(&hub, audience, counter).await {
            // The load times out while it waits for this event, and reports that.
            eprintln!("{error:?}");
        }
    });
    StatusCode::OK
}

async fn publish(hub: &Hub, audience: Audience, counter: u64) -> Result<()> {
    let json = String::from_utf8(event::write(counter, monotonic_ns()?))?;
    hub.publish(Draft::parse(&json)?, audience).await.context("publishing")?;
    Ok(())
}

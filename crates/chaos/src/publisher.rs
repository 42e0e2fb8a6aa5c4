//! Publishers: each publishes its numbers in order, one after the other, and each until it is acknowledged.

use crate::load::Load;
use anyhow::{Context, ensure};
use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode, body::Bytes, header};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};
use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// How long a publisher waits for an answer before it asks again.
const ANSWER: Duration = Duration::from_secs(8);

/// How a publisher works.
#[derive(Debug, Clone)]
pub(crate) enum Way {
    /// Over HTTP, to an audience.
    Http { audience: Value, twice: bool },
    /// As the reference does it: `PUBLISH` on `ws:broadcast`, which nobody acknowledges.
    Channel,
}

/// Publishes until the load ends.
pub(crate) async fn run(load: Arc<Load>, number: usize, way: Way) {
    let mut ticks = interval(Duration::from_secs(1) / load.rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let http = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let mut connection = None;
    // One publishes large events, so that who does not read has more waiting than sockets take.
    let pad = "x".repeat(if number == 2 { 8_000 } else { 120 });
    for n in 1.. {
        ticks.tick().await;
        if load.ended() {
            return;
        }
        let event = json!({
            "type": "chaos",
            "event_id": format!("{}-{number}-{n}", load.run),
            "data": { "p": number, "n": n, "pad": pad },
        });
        match &way {
            Way::Http { audience, twice } => {
                let mut event = event;
                event["audience"] = audience.clone();
                let body = event.to_string();
                until_taken(&load, &http, &body, false).await;
                if *twice {
                    until_taken(&load, &http, &body, true).await;
                }
                load.note_taken(number, n);
            }
            Way::Channel => {
                // Nobody says whether it arrived.
                let _ = publish(&load, &mut connection, &event.to_string()).await;
                load.published[number].store(n, Ordering::Relaxed);
            }
        }
    }
}

/// Publishes again and again under the same id until that is acknowledged.
async fn until_taken(load: &Load, http: &Client<HttpConnector, Full<Bytes>>, body: &str, known: bool) {
    let begun = Instant::now();
    loop {
        match timeout(ANSWER, post(load, http, body)).await {
            Ok(Ok(duplicate)) => {
                if known && !duplicate {
                    load.forgotten.fetch_add(1, Ordering::Relaxed);
                }
                break;
            }
            Ok(Err(_)) | Err(_) => load.refused.fetch_add(1, Ordering::Relaxed),
        };
        if load.ended() {
            return;
        }
        sleep(Duration::from_millis(50)).await;
    }
    load.note_wait(begun.elapsed());
}

/// Publishes once. Returns whether the log had it already.
async fn post(load: &Load, http: &Client<HttpConnector, Full<Bytes>>, body: &str) -> anyhow::Result<bool> {
    let request = Request::post(format!("http://{}/events", load.address()))
        .header(header::AUTHORIZATION, format!("Bearer {}", load.publisher_token))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::from(body.to_owned()))?;
    let answer = http.request(request).await?;
    let status = answer.status();
    let text = answer.into_body().collect().await?.to_bytes();
    if !matches!(status, StatusCode::OK | StatusCode::CREATED | StatusCode::SERVICE_UNAVAILABLE) {
        load.note_odd(&format!("{status}: {}", String::from_utf8_lossy(&text)));
    }
    ensure!(status.is_success(), "{status}");
    Ok(status == StatusCode::OK)
}

async fn publish(
    load: &Load,
    connection: &mut Option<(u16, redis::aio::MultiplexedConnection)>,
    text: &str,
) -> anyhow::Result<()> {
    let port = load.redis_port.load(Ordering::Relaxed);
    if connection.as_ref().is_none_or(|(there, _)| *there != port) {
        let client = redis::Client::open(format!("redis://127.0.0.1:{port}"))?;
        *connection = Some((port, client.get_multiplexed_async_connection().await?));
    }
    let (_, open) = connection.as_mut().context("there is a connection")?;
    let mut command = redis::cmd("PUBLISH");
    let result = timeout(ANSWER, command.arg("ws:broadcast").arg(text).query_async::<i64>(open)).await;
    if !matches!(result, Ok(Ok(_))) {
        *connection = None;
    }
    Ok(())
}

//! Publishers: each publishes its events until they are acknowledged, one after the other, in batches, or several at
//! once.

use crate::{load::Load, oracle::Event};
use anyhow::{Context, ensure};
use fanfare::Position;
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
use tokio::{
    sync::Semaphore,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

/// The timeout of a request, after which the publisher repeats it.
const ANSWER: Duration = Duration::from_secs(8);

/// The number of requests that the pipelining publisher has in flight.
const PIPELINE: usize = 8;

/// The most events in a batch.
const BATCH: usize = 12;

/// Every how many events an old one is repeated, and how many events ago it was published.
const REPEAT_EVERY: u64 = 20;
const REPEAT_BACK: u64 = 300;

/// How a publisher publishes.
#[derive(Debug, Clone)]
pub(crate) enum Way {
    /// Over HTTP, to an audience.
    Http { audience: Value, style: Style },
    /// As publishers of the FastAPI hub do: `PUBLISH` on `ws:broadcast`, which is not acknowledged.
    Channel,
}

/// How a publisher uses HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// Each event is acknowledged before the next is published.
    InTurn,
    /// As `InTurn`, with events of 8 KB, so that socket buffers do not absorb the backlog of a client that does not
    /// read.
    Large,
    /// As `InTurn`, but each event is published a second time after its acknowledgement, and some a third time much
    /// later.
    Again,
    /// `POST /events/batch`.
    Batches,
    /// Several requests at once.
    Pipelined,
}

type Http = Client<HttpConnector, Full<Bytes>>;

/// The hub's response for one event.
struct Answer {
    position: Position,
    duplicate: bool,
}

/// Publishes until the load ends.
pub(crate) async fn run(load: Arc<Load>, number: usize, way: Way) {
    let mut ticks = interval(Duration::from_secs(1) / load.rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let http = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let mut connection = None;
    let under_way = Arc::new(Semaphore::new(PIPELINE));
    loop {
        ticks.tick().await;
        if load.ended() {
            return;
        }
        match &way {
            Way::Http { audience, style: Style::Batches } => {
                let count = fastrand::usize(2..=BATCH);
                let events: Vec<Event> = (0..count).map(|_| load.next_event(number)).collect();
                let bodies = events.iter().map(|&event| body(&load, event, audience, Style::Batches));
                until_acknowledged(&load, &http, &Value::Array(bodies.collect()), &events, false).await;
                // At the same total rate as the other publishers.
                for _ in 1..count {
                    ticks.tick().await;
                }
            }
            Way::Http { audience, style: Style::Pipelined } => {
                let Ok(permit) = under_way.clone().acquire_owned().await else { return };
                let event = load.next_event(number);
                let body = body(&load, event, audience, Style::Pipelined);
                let (load, http) = (load.clone(), http.clone());
                tokio::spawn(async move {
                    until_acknowledged(&load, &http, &body, &[event], false).await;
                    drop(permit);
                });
            }
            Way::Http { audience, style } => {
                let event = load.next_event(number);
                let text = body(&load, event, audience, *style);
                until_acknowledged(&load, &http, &text, &[event], false).await;
                if *style == Style::Again {
                    until_acknowledged(&load, &http, &text, &[event], true).await;
                    if event.1 > REPEAT_BACK && event.1.is_multiple_of(REPEAT_EVERY) {
                        let old = (number, event.1 - REPEAT_BACK);
                        until_acknowledged(&load, &http, &body(&load, old, audience, *style), &[old], true).await;
                    }
                }
            }
            Way::Channel => {
                // The hub does not acknowledge messages of the channel.
                let event = body(&load, load.next_event(number), &Value::Null, Style::InTurn);
                let _ = publish(&load, &mut connection, &event.to_string()).await;
            }
        }
    }
}

fn body(load: &Load, (publisher, number): Event, audience: &Value, style: Style) -> Value {
    let pad = "x".repeat(if style == Style::Large { 8_000 } else { 120 });
    let mut event = json!({
        "type": "chaos",
        "event_id": format!("{}-{publisher}-{number}", load.run),
        "data": { "p": publisher, "n": number, "pad": pad },
    });
    if !audience.is_null() {
        event["audience"] = audience.clone();
    }
    event
}

/// Publishes under the same IDs until the hub acknowledges.
async fn until_acknowledged(load: &Load, http: &Http, body: &Value, events: &[Event], again: bool) {
    let begun = Instant::now();
    loop {
        match timeout(ANSWER, post(load, http, body, events.len())).await {
            Ok(Ok(answers)) => {
                for (&event, answer) in events.iter().zip(answers) {
                    load.note_acknowledged(event, answer.position, again, answer.duplicate);
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

/// Sends one publish request with one or several events.
async fn post(load: &Load, http: &Http, body: &Value, count: usize) -> anyhow::Result<Vec<Answer>> {
    let path = if body.is_array() { "/events/batch" } else { "/events" };
    let request = Request::post(format!("http://{}{path}", load.address()))
        .header(header::AUTHORIZATION, format!("Bearer {}", load.publisher_token))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::from(body.to_string()))?;
    let answer = http.request(request).await?;
    let status = answer.status();
    let text = answer.into_body().collect().await?.to_bytes();
    if !matches!(status, StatusCode::OK | StatusCode::CREATED | StatusCode::SERVICE_UNAVAILABLE) {
        load.note_anomaly(&format!("{status}: {}", String::from_utf8_lossy(&text)));
    }
    ensure!(status.is_success(), "{status}");
    let value: Value = serde_json::from_slice(&text)?;
    let results = value["results"].as_array().cloned().unwrap_or_else(|| vec![value]);
    let read = |result: &Value| {
        let position = result["position"].as_str()?.parse().ok()?;
        Some(Answer { position, duplicate: result["duplicate"].as_bool()? })
    };
    let answers: Option<Vec<Answer>> = results.iter().map(read).collect();
    let answers = answers.filter(|answers| answers.len() == count);
    if answers.is_none() {
        load.note_anomaly(&format!("unexpected response: {}", String::from_utf8_lossy(&text)));
    }
    answers.context("unexpected response")
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
    let (_, open) = connection.as_mut().context("no connection")?;
    let mut command = redis::cmd("PUBLISH");
    let result = timeout(ANSWER, command.arg("ws:broadcast").arg(text).query_async::<i64>(open)).await;
    if !matches!(result, Ok(Ok(_))) {
        *connection = None;
    }
    Ok(())
}

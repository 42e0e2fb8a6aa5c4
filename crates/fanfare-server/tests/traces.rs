//! Traces from publish to write, as an OpenTelemetry collector receives them.

#![expect(clippy::unwrap_used, reason = "a failed precondition fails the test")]

use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use fanfare::{Minter, auth::Claims};
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};
use testbed::{HubProcess, RedisServer, until};
use tokio::{net::TcpListener, task::block_in_place, time::timeout};
use tokio_tungstenite::{connect_async, tungstenite::Message};

const SECRET: &str = "a secret of thirty-two bytes, ok";
const TIMEOUT: Duration = Duration::from_secs(120);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_fanfare"))
}

fn token() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let claims = Claims { sub: "ann".to_owned(), publish: true, exp: Some(now + 600), ..Claims::default() };
    Minter::from_secret(SECRET).unwrap().mint(&claims)
}

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Value>>>);

impl Collector {
    /// A collector and its URL.
    async fn start() -> (Self, String) {
        let collector = Self::default();
        let app = Router::new().route(
            "/v1/traces",
            post(async |State(collector): State<Self>, Json(body): Json<Value>| collector.take(&body)),
        );
        let app = app.with_state(collector.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        (collector, url)
    }

    fn take(&self, body: &Value) -> (StatusCode, Json<Value>) {
        for resource in body["resourceSpans"].as_array().unwrap() {
            assert!(resource["resource"].to_string().contains("fanfare"), "{resource}");
            for scope in resource["scopeSpans"].as_array().unwrap() {
                self.0.lock().unwrap().extend(scope["spans"].as_array().unwrap().iter().cloned());
            }
        }
        (StatusCode::OK, Json(json!({})))
    }

    fn of_event(&self, name: &str, event_id: &str) -> Vec<Value> {
        let spans = self.0.lock().unwrap();
        let of = |span: &&Value| span["name"] == name && attribute(span, "fanfare.event.id")["stringValue"] == event_id;
        spans.iter().filter(of).cloned().collect()
    }
}

fn attribute<'a>(span: &'a Value, key: &str) -> &'a Value {
    let mut all = span["attributes"].as_array().into_iter().flatten();
    all.find(|attribute| attribute["key"] == key).map_or(&Value::Null, |attribute| &attribute["value"])
}

async fn publish(hub: &HubProcess, event_id: &str, traceparent: Option<&str>) {
    let body = json!({ "type": "note", "audience": "everyone", "event_id": event_id, "data": {} }).to_string();
    let request = reqwest::Client::new().post(format!("http://{}/events", hub.address())).bearer_auth(token());
    let mut request = request.header("content-type", "application/json").body(body);
    if let Some(traceparent) = traceparent {
        request = request.header("traceparent", traceparent);
    }
    assert_eq!(request.send().await.unwrap().status(), 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publishers_trace_includes_the_writes_of_all_workers() {
    let (collector, url) = Collector::start().await;
    let redis = RedisServer::start();
    let redis_url = redis.url();
    // Publishes without a trace are not traced, because trace_share is 0.
    let arguments = ["--redis-url", &redis_url, "--workers", "2", "--otlp-endpoint", &url, "--trace-share", "0"];
    let environment = [("SECRET_KEY", SECRET), ("OTEL_BSP_SCHEDULE_DELAY", "100")];
    let hub = block_in_place(|| HubProcess::start(program(), &arguments, &environment));
    let mut clients = Vec::new();
    for _ in 0..8 {
        let url = format!("ws://{}/ws?token={}", hub.address(), token());
        clients.push(timeout(TIMEOUT, connect_async(url)).await.unwrap().unwrap().0);
    }
    publish(&hub, "untraced", None).await;
    publish(&hub, "traced", Some(&format!("00-{TRACE}-{PARENT}-01"))).await;
    for client in &mut clients {
        loop {
            let message = timeout(TIMEOUT, client.next()).await.unwrap().unwrap().unwrap();
            if matches!(&message, Message::Text(text) if text.contains("\"traced\"")) {
                break;
            }
        }
    }
    let count = |span: &Value| {
        let clients = &attribute(span, "fanfare.clients")["intValue"];
        clients.as_i64().or_else(|| clients.as_str()?.parse().ok()).unwrap()
    };
    let written = || collector.of_event("write", "traced").iter().map(count).sum::<i64>();
    block_in_place(|| until("all writes are reported", || written() == 8));
    block_in_place(|| until("the publish is reported", || !collector.of_event("publish", "traced").is_empty()));
    let published = &collector.of_event("publish", "traced")[0];
    assert_eq!((&published["traceId"], &published["parentSpanId"]), (&json!(TRACE), &json!(PARENT)));
    assert_eq!(attribute(published, "fanfare.publisher")["stringValue"], "user:ann");
    for write in collector.of_event("write", "traced") {
        assert_eq!((&write["traceId"], &write["parentSpanId"]), (&json!(TRACE), &published["spanId"]));
    }
    assert!(collector.of_event("publish", "untraced").is_empty() && collector.of_event("write", "untraced").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn queued_spans_are_sent_at_shutdown_and_a_missing_collector_blocks_nothing() {
    let (collector, url) = Collector::start().await;
    // Long enough that only the shutdown sends it.
    let environment = [("SECRET_KEY", SECRET), ("OTEL_BSP_SCHEDULE_DELAY", "3600000")];
    let mut hub = block_in_place(|| HubProcess::start(program(), &["--otlp-endpoint", &url], &environment));
    publish(&hub, "e1", None).await;
    hub.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(block_in_place(|| hub.wait()).success());
    assert_eq!(collector.of_event("publish", "e1").len(), 1);
    let closed = ["--otlp-endpoint", "http://127.0.0.1:9"];
    let mut hub = block_in_place(|| HubProcess::start(program(), &closed, &environment));
    publish(&hub, "e2", None).await;
    hub.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(block_in_place(|| hub.wait()).success());
}

//! The HTTP API from the outside: every route and every error, against a running hub. Each response is checked against
//! `/openapi.json`.

#![expect(clippy::unwrap_used, reason = "a test ends where something that it relies on fails")]

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, header},
};
use fanfare::{Audience, AudienceError, BatchError, Config, Draft, Hub, PublishError, Verifier, metrics::Counter};
use futures_util::StreamExt;
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, tungstenite::Message};
use tower::ServiceExt;

const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";
const DEADLINE: Duration = Duration::from_secs(120);

const SECRET: &str = "a secret that is long enough for a test of HS256";

/// The callers. The name is also the user's ID.
const NOBODY: &str = "";
const READER: &str = "reader";
const PUBLISHER: &str = "publisher";
const ADMIN: &str = "admin";
const EXPIRED: &str = "expired";
const STRANGER: &str = "stranger";

fn hub(config: Config) -> Hub {
    Hub::builder(Verifier::from_secret(SECRET).unwrap()).config(config).start().unwrap()
}

/// A token of a caller, created without the hub's own minter, as an application would.
fn token(who: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let expires = if who == EXPIRED { now - 3_600 } else { now + 3_600 };
    let (publish, admin) = (who == PUBLISHER, who == ADMIN);
    let claims = json!({"sub": who, "exp": expires, "publish": publish, "admin": admin, "topics": ["project:*"]});
    let secret = if who == STRANGER { "a secret that the hub does not know, as long" } else { SECRET };
    jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
}

struct TestResponse {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl TestResponse {
    fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), JSON, "{}", self.text);
        serde_json::from_str(&self.text).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| std::str::from_utf8(value.as_bytes()).unwrap())
    }
}

fn request(method: &str, path: &str, who: &str, media_type: &str, body: impl Into<Body>) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    if who != NOBODY {
        request = request.header(header::AUTHORIZATION, format!("Bearer {}", token(who)));
    }
    if !media_type.is_empty() {
        request = request.header(header::CONTENT_TYPE, media_type);
    }
    request.body(body.into()).unwrap()
}

async fn send(app: &Router, request: Request<Body>) -> TestResponse {
    let response = app.clone().oneshot(request).await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    TestResponse { status, headers, text: String::from_utf8_lossy(&bytes).into_owned() }
}

async fn get(app: &Router, path: &str) -> TestResponse {
    call(app, request("GET", path, NOBODY, "", "")).await
}

async fn post(app: &Router, path: &str, body: &str) -> TestResponse {
    call(app, request("POST", path, PUBLISHER, JSON, body.to_owned())).await
}

/// Sends a request, and checks that the response is documented.
async fn call(app: &Router, request: Request<Body>) -> TestResponse {
    let (method, path) = (request.method().as_str().to_ascii_lowercase(), request.uri().path().to_owned());
    let answer = send(app, request).await;
    if let Some(operation) = operation(&spec(app).await, &method, &path) {
        let documented = &operation["responses"][answer.status.to_string()];
        assert!(documented.is_object(), "{method} {path} answers {} undocumented: {}", answer.status, answer.text);
    }
    answer
}

async fn spec(app: &Router) -> Value {
    send(app, request("GET", "/openapi.json", NOBODY, "", "")).await.json()
}

/// The documented operation of a path.
fn operation<'a>(spec: &'a Value, method: &str, path: &str) -> Option<&'a Value> {
    let path: Vec<_> = path.split('/').collect();
    let fits = |template: &str| {
        let template: Vec<_> = template.split('/').collect();
        template.len() == path.len() && template.iter().zip(&path).all(|(t, p)| t == p || t.starts_with('{'))
    };
    let (_, item) = spec["paths"].as_object()?.iter().find(|(template, _)| fits(template))?;
    item.get(method)
}

/// A server on a free port, for clients that receive the published events.
async fn serve(app: &Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = app.clone();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    id: String,
}

impl Client {
    /// Connects, and waits until the hub serves the connection.
    async fn connect(address: SocketAddr, who: &str, more: &str) -> Self {
        let url = format!("ws://{address}/ws?token={}{more}", token(who));
        let (socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
        let mut client = Self { socket, id: String::new() };
        let (text, ack) = client.next().await;
        assert_eq!(ack["type"], "ack", "{text}");
        ack["connection_id"].as_str().unwrap().clone_into(&mut client.id);
        client
    }

    /// The next message, as text and as JSON.
    async fn next(&mut self) -> (String, Value) {
        loop {
            let message = tokio::time::timeout(DEADLINE, self.socket.next()).await.expect("in time").unwrap().unwrap();
            if let Message::Text(text) = message {
                return (text.to_string(), serde_json::from_str(&text).unwrap());
            }
        }
    }

    /// The IDs of the events received up to now. An event to this client marks the end.
    async fn received(&mut self, app: &Router) -> Vec<Value> {
        let mark = json!({"type": "mark", "audience": {"connection": self.id}}).to_string();
        let mark = post(app, "/events", &mark).await.json()["event_id"].clone();
        let mut ids = Vec::new();
        loop {
            let frame = self.next().await.1;
            if frame["event_id"] == mark {
                return ids;
            }
            if frame["type"] != "ping" {
                ids.push(frame["event_id"].clone());
            }
        }
    }
}

#[tokio::test]
async fn an_event_is_published_once_and_passes_through_unchanged() {
    let app = hub(Config::default()).router();
    let mut reader = Client::connect(serve(&app).await, READER, "").await;

    let body = r#"{"z": [1.0, 2e5], "type": "note", "event_id": "n-é", "audience": "everyone",
        "timestamp": "2026-01-01T00:00:00Z", "data": {"b": 12345678901234567890, "a": null}, "a": true}"#;
    let first = post(&app, "/events", body).await;
    assert_eq!(first.status, 201, "{}", first.text);
    let position = first.json()["position"].clone();
    assert!(position.as_str().unwrap().starts_with("pos-"), "{position}");
    assert_eq!(first.json(), json!({"event_id": "n-é", "position": position, "duplicate": false}));

    let again = post(&app, "/events", body).await;
    assert_eq!(again.status, 200);
    assert_eq!(again.json(), json!({"event_id": "n-é", "position": position, "duplicate": true}));

    let made = post(&app, "/events", r#"{"type":"note","audience":"everyone"}"#).await;
    assert_eq!(made.status, 201);
    assert_eq!(made.json()["event_id"].as_str().unwrap().len(), 36);

    let (text, _) = reader.next().await;
    let place = position.as_str().unwrap();
    let passed = r#"{"z":[1.0, 2e5],"type":"note","event_id":"n-é","timestamp":"2026-01-01T00:00:00Z","data":{"b": 12345678901234567890, "a": null},"a":true"#;
    assert_eq!(text, format!(r#"{passed},"log_position":"{place}"}}"#));
    assert_eq!(reader.received(&app).await, [made.json()["event_id"].clone()]);
}

#[tokio::test]
async fn each_audience_reaches_its_clients_only() {
    let app = hub(Config::default()).router();
    let address = serve(&app).await;
    let mut reader = Client::connect(address, READER, "&topics=project:7").await;
    let mut admin = Client::connect(address, ADMIN, "").await;

    for (audience, to_reader, to_admin) in [
        (json!("everyone"), true, true),
        (json!({"user": READER}), true, false),
        (json!({"user": ADMIN}), false, true),
        (json!({"connection": reader.id.clone()}), true, false),
        (json!({"connection": admin.id.to_uppercase()}), false, true),
        (json!({"topic": "project:7"}), true, false),
        (json!({"topic": "project:8"}), false, false),
    ] {
        let body = json!({"type": "note", "audience": audience}).to_string();
        let id = post(&app, "/events", &body).await.json()["event_id"].clone();
        for (client, reached) in [(&mut reader, to_reader), (&mut admin, to_admin)] {
            let expected = if reached { vec![id.clone()] } else { vec![] };
            assert_eq!(client.received(&app).await, expected, "{audience}");
        }
    }
}

#[tokio::test]
async fn a_batch_is_published_in_order_or_not_at_all() {
    let hub = hub(Config::default());
    let app = hub.router();
    let mut reader = Client::connect(serve(&app).await, READER, "").await;
    let event = |id: &str| json!({"type": "note", "event_id": id, "audience": "everyone"});
    for (body, ids) in [
        (json!([event("a"), event("b"), event("a")]), vec![("a", false), ("b", false), ("a", true)]),
        (json!({"events": [event("b"), event("c")]}), vec![("b", true), ("c", false)]),
        (json!([]), vec![]),
    ] {
        let answer = post(&app, "/events/batch", &body.to_string()).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let answer = answer.json();
        let result = |r: &Value| (r["event_id"].as_str().unwrap().to_owned(), r["duplicate"].as_bool().unwrap());
        let results: Vec<_> = answer["results"].as_array().unwrap().iter().map(result).collect();
        assert_eq!(results, ids.into_iter().map(|(id, again)| (id.to_owned(), again)).collect::<Vec<_>>());
    }

    for (bad, says) in [
        (json!([event("d"), {"type": "ack", "audience": "everyone"}]), "events[1]: the field `type` must not be `ack`"),
        (json!([event("d"), 7]), "events[1]: not a JSON object"),
        (json!([event("d"), {"type": "note", "audience": "nobody"}]), "events[1]: the field `audience` must be"),
        (json!([event("d"), {"type": "note"}]), "events[1]: the field `audience` is missing"),
        (json!([event("d"), {"type": "note", "audience": "everyone", "user": "ann"}]), "events[1]: the field `user`"),
        (
            json!([event("d"), {"type": "note", "audience": "everyone", "data": {"x": "y".repeat(70_000)}}]),
            "max_event_bytes",
        ),
    ] {
        let answer = post(&app, "/events/batch", &bad.to_string()).await;
        assert!(matches!(answer.status, 413 | 422), "{}", answer.text);
        assert_eq!(answer.json()["index"], 1);
        assert!(answer.json()["detail"].as_str().unwrap().contains(says), "{}", answer.text);
    }
    assert_eq!(reader.received(&app).await, ["a", "b", "c"], "no event of a rejected batch is published");
    assert_eq!(hub.metrics().get(Counter::BadEvents), 5);
    assert_eq!(hub.metrics().get(Counter::LimitEventBytes), 1);
}

#[tokio::test]
async fn the_endpoints_of_the_fastapi_hub_publish_the_same_events() {
    let app = hub(Config::default()).router();
    let mut reader = Client::connect(serve(&app).await, READER, "").await;
    let (status, activity, created) = ("task_status_update", "agent_activity_update", "calendar_event_created");
    let (updated, sent) = (r#"{"status":"updated"}"#, r#"{"status":"sent"}"#);
    let broadcast = r#"{"message":"Task update broadcasted","task_id":"t 1"}"#;
    let notified = r#"{"message":"Notification sent","user_id":"reader"}"#;
    let calendar = r#"{"message":"Calendar event created","event_id":"c1"}"#;

    #[rustfmt::skip]
    let cases = [
        ("/tasks/t1/update?status=running&progress=50", "", updated, status,
            r#"{"task_id":"t1","status":"running","progress":50}"#),
        ("/tasks/t1/update", r#"{"step":2,"progress":40.0,"status":"in_progress"}"#, updated, status,
            r#"{"task_id":"t1","status":"in_progress","progress":40.0,"step":2}"#),
        ("/tasks/t1/update?status=running&progress=1", r#"{"status":"failed","task_id":"t1"}"#, updated, status,
            r#"{"task_id":"t1","status":"failed","progress":1}"#),
        ("/tasks/t1/update?status=paused", "null", updated, status, r#"{"task_id":"t1","status":"paused"}"#),
        ("/tasks/t%201/broadcast-update?status=queued", "", broadcast, status,
            r#"{"task_id":"t 1","status":"queued"}"#),
        ("/users/reader/notify?message=hello+you", "", sent, activity, r#"{"message":"hello you"}"#),
        ("/users/reader/notify", r#"{"b":1,"a":2.0}"#, sent, activity, r#"{"b":1,"a":2.0}"#),
        ("/users/reader/notify", r#"{"type":"info","level":1}"#, sent, activity, r#"{"type":"info","level":1}"#),
        ("/users/reader/notify", r#"{"type":"alarm","data":{"x":1}}"#, sent, "alarm", r#"{"x":1}"#),
        ("/users/reader/send-notification", r#"{"title":"T"}"#, notified, activity, r#"{"title":"T"}"#),
        ("/calendar/events/create", r#"{"event_id":"c1","title":"T"}"#, calendar, created,
            r#"{"event_id":"c1","title":"T"}"#),
        ("/agents/a1/activity", r#"{"action":"think"}"#, sent, activity, r#"{"agent_id":"a1","action":"think"}"#),
        // Input that the FastAPI hub accepts: numbers as IDs, any status, any progress, and fields that name an
        // audience in other requests.
        ("/tasks/t1/update?status=disabled&progress=150", "", updated, status,
            r#"{"task_id":"t1","status":"disabled","progress":150}"#),
        ("/tasks/t1/update?status=a%22b&progress=half", "", updated, status,
            r#"{"task_id":"t1","status":"a\"b","progress":"half"}"#),
        ("/tasks/7/update", r#"{"status":null,"progress":"50","task_id":7}"#, updated, status,
            r#"{"task_id":"7","status":null,"progress":"50"}"#),
        ("/calendar/events/create", r#"{"event_id":7,"title":""}"#,
            r#"{"message":"Calendar event created","event_id":"7"}"#, created, r#"{"event_id":7,"title":""}"#),
        ("/agents/3/activity", r#"{"agent_id":3,"user":"u"}"#, sent, activity, r#"{"agent_id":"3","user":"u"}"#),
        ("/users/reader/notify", r#"{"type":"alarm","data":1,"user":"u"}"#, sent, "alarm", "1"),
    ];
    for (path, body, answers, event_type, data) in cases {
        let answer = post(&app, path, body).await;
        assert_eq!((answer.status, answer.text.as_str()), (200, answers), "{path}");
        let (text, event) = reader.next().await;
        assert_eq!(event["type"], event_type, "{path}");
        assert!(text.contains(&format!(r#""data":{data}"#)), "{path}: {text}");
        assert_eq!(event["event_id"], answer.header("fanfare-event-id"), "{path}");
        assert!(answer.header("fanfare-position").starts_with("pos-"), "{path}");
    }

    let made = post(&app, "/calendar/events/create", r#"{"title":"T"}"#).await.json();
    let (text, event) = reader.next().await;
    assert_eq!(event["data"]["event_id"], made["event_id"]);
    assert_eq!(made["event_id"].as_str().unwrap().len(), 36);
    assert!(text.contains(r#""data":{"event_id":""#), "the ID is the first field: {text}");
}

// attack: receiving another user's notifications, even as an administrator => delivered to their user only
#[tokio::test]
async fn a_notification_reaches_only_its_user() {
    let app = hub(Config::default()).router();
    let address = serve(&app).await;
    let mut reader = Client::connect(address, READER, "").await;
    let mut admin = Client::connect(address, ADMIN, "").await;
    for endpoint in ["notify", "send-notification"] {
        assert_eq!(post(&app, &format!("/users/{READER}/{endpoint}"), "{}").await.status, 200);
        assert_eq!((reader.received(&app).await.len(), admin.received(&app).await.len()), (1, 0), "{endpoint}");
    }
}

#[tokio::test]
async fn an_event_without_an_explicit_audience_is_rejected_with_the_right_form() {
    let hub = hub(Config::default());
    let app = hub.router();
    for (fields, says) in [
        (json!({}), r#"send "audience": "everyone""#),
        (json!({"user": "bob"}), r#"send "audience": {"user": "bob"}"#),
        (json!({"user": 42}), r#"send "audience": {"user": 42}"#),
        (json!({"users": ["a", "b"]}), r#"send "audience": {"user": ...}, one event for each"#),
        (json!({"topic": "project:7"}), r#"send "audience": {"topic": "project:7"}"#),
        (json!({"topics": ["a"]}), "`topics`"),
        (json!({"connection": "x"}), r#"send "audience": {"connection": "x"}"#),
        (json!({"connections": []}), "`connections`"),
        (json!({"channel": "a"}), r#"send "audience": {"topic": "a"}"#),
        (json!({"audiences": ["everyone"]}), "`audiences`"),
    ] {
        let mut event = fields.clone();
        event["type"] = json!("note");
        let mut with_audience = event.clone();
        with_audience["audience"] = json!("everyone");
        for body in [&event, &with_audience]
            .into_iter()
            .filter(|body| **body != json!({"type": "note", "audience": "everyone"}))
        {
            let answer = post(&app, "/events", &body.to_string()).await;
            assert_eq!((answer.status, &answer.json()["code"]), (422, &json!("invalid")), "{body}");
            assert!(answer.json()["detail"].as_str().unwrap().contains(says), "{body}: {}", answer.text);
            let answer = post(&app, "/events/batch", &json!([body]).to_string()).await;
            assert_eq!((answer.status, &answer.json()["index"]), (422, &json!(0)), "{body}");
        }
    }
    assert_eq!(hub.stats().window_events, 0, "no event is published");
}

#[tokio::test]
async fn events_pass_through_as_in_the_wire_vectors() {
    let vectors: Value = serde_json::from_str(include_str!("../../../tests/wire/events.json")).unwrap();
    let (lenient, strict) = (hub(Config::default()), hub(Config { validate_events: true, ..Config::default() }));
    let (app, strict) = (lenient.router(), strict.router());
    let mut reader = Client::connect(serve(&app).await, READER, "").await;
    for case in vectors["cases"].as_array().unwrap() {
        let published = case["published"].as_str().unwrap();
        // Rejected by the events endpoint because it resembles an audience, but passed through by Redis channels.
        let Some(body) = published.strip_suffix('}').filter(|_| !published.contains(r#""user""#)) else { continue };
        let body = format!(r#"{body},"audience":"everyone"}}"#);
        let answer = post(&app, "/events", &body).await;
        let Some(delivered) = case["delivered"].as_str() else {
            assert_eq!((answer.status, case["refused"].clone()), (422, json!(true)), "{case}: {}", answer.text);
            continue;
        };
        assert_eq!(answer.status, 201, "{case}: {}", answer.text);
        let (_, mut event) = reader.next().await;
        let mut expected: Value = serde_json::from_str(delivered).unwrap();
        assert_eq!(event["event_id"], answer.json()["event_id"], "{case}");
        let place = event.as_object_mut().unwrap().remove("log_position");
        assert_eq!(place.as_ref(), answer.json().get("position"), "{case}");
        for (field, made) in [("event_id", "fresh"), ("timestamp", "1970-01-01T00:00:00.000Z")] {
            if expected[field] == made {
                expected[field] = json!("made");
                event[field] = json!("made");
            }
        }
        assert_eq!(event, expected, "{case}");
        let status = post(&strict, "/events", &body).await.status;
        assert_eq!(status, if case["strict"] == "refused" { 422 } else { 201 }, "validate_events: {case}");
    }
}

#[tokio::test]
async fn a_number_is_a_users_id_as_in_a_token() {
    let app = hub(Config::default()).router();
    let address = serve(&app).await;
    let mut user = Client::connect(address, "42", "").await;
    let mut other = Client::connect(address, READER, "").await;
    let body = r#"{"type":"note","event_id":"n","audience":{"user":42}}"#;
    assert_eq!(post(&app, "/events", body).await.status, 201);
    assert_eq!((user.received(&app).await, other.received(&app).await), (vec![json!("n")], vec![]));
}

// attack: an application publishes to a topic or with a type that begins with $ => rejected, nothing is published
#[tokio::test]
async fn the_library_rejects_topics_and_types_that_are_reserved_for_the_hub() {
    let hub = hub(Config::default());
    let draft = |kind: &str| Draft::new(kind, &json!({})).unwrap();
    let topic = hub.publish(draft("note"), Audience::Topic("$sys".into())).await.unwrap_err();
    assert_eq!(topic, PublishError::Audience(AudienceError::ReservedTopic));
    assert_eq!(topic.to_string(), "the audience is not valid: topics that begin with $ are reserved for the hub");
    let kind = hub.publish(draft("$sys"), Audience::Everyone).await.unwrap_err();
    assert!(matches!(kind, PublishError::Invalid(_)), "{kind}");
    let all = vec![(draft("note"), Audience::Everyone), (draft("note"), Audience::User("".into()))];
    let BatchError { index, error } = hub.publish_all(all).await.unwrap_err();
    assert_eq!((index, error), (Some(1), PublishError::Audience(AudienceError::User)));
    assert_eq!(hub.stats().window_events, 0);
}

/// Method, path, caller, media type and body; then the status, the code and a part of the detail in the response.
type ExceededLimit<'a> = (&'a str, &'a str, &'a str, &'a str, &'a str, u16, &'a str, &'a str);

#[tokio::test]
async fn each_rejection_has_its_code_and_is_counted() {
    let hub = hub(Config::default());
    let app = hub.router();
    let deep = format!(r#"{{"type":"note","data":{}1{}}}"#, r#"{"a":"#.repeat(70), "}".repeat(70));
    let large = format!(r#"{{"type":"note","audience":"everyone","data":{{"a":"{}"}}}}"#, "x".repeat(65_600));
    let larger = format!(r#"{{"type":"note","data":{{"a":"{}"}}}}"#, "x".repeat(80_000));
    let many = format!("[{}]", vec![r#"{"type":"note"}"#; 1_001].join(","));
    let user = "u".repeat(257);
    let long_user = format!("/users/{user}/notify");
    let long_audience = format!(r#"{{"type":"a","audience":{{"user":"{user}"}}}}"#);

    #[rustfmt::skip]
    let refusals: &[ExceededLimit<'_>] = &[
        ("POST", "/events", NOBODY, JSON, "{}", 401, "token_missing", ""),
        ("POST", "/events", STRANGER, JSON, "{}", 401, "token_invalid", ""),
        ("POST", "/events", EXPIRED, JSON, "{}", 401, "token_expired", ""),
        ("POST", "/events", READER, "text/plain", "{", 403, "forbidden", "\"publish\": true"),
        ("POST", "/events/batch", READER, JSON, "[]", 403, "forbidden", "publish"),
        ("POST", "/tasks/t/update", READER, JSON, "", 403, "forbidden", "publish"),
        ("POST", "/tasks/t/broadcast-update", NOBODY, JSON, "", 401, "token_missing", ""),
        ("POST", "/users/u/notify", NOBODY, JSON, "{}", 401, "token_missing", ""),
        ("POST", "/users/u/send-notification", READER, JSON, "{}", 403, "forbidden", ""),
        ("POST", "/calendar/events/create", READER, JSON, "{}", 403, "forbidden", ""),
        ("POST", "/agents/a/activity", NOBODY, JSON, "{}", 401, "token_missing", ""),
        ("GET", "/metrics", NOBODY, "", "", 401, "token_missing", ""),
        ("GET", "/metrics", PUBLISHER, "", "", 403, "forbidden", "administrator"),
        ("GET", "/events/e1", PUBLISHER, "", "", 403, "forbidden", "administrator"),
        ("GET", "/events/e1", ADMIN, "", "", 404, "not_found", "no node has an event \"e1\""),
        ("POST", "/events", PUBLISHER, JSON, r#"{"type":"a","audience":{"topic":"$sys"}}"#, 422, "invalid", "reserved for the hub"),
        ("POST", "/log-level", PUBLISHER, JSON, "{}", 403, "forbidden", "administrator"),
        ("POST", "/log-level", ADMIN, JSON, r#"{"log_level":"debug"}"#, 404, "not_found", "does not support"),
        ("POST", "/nodes/n1/drain", PUBLISHER, "", "", 403, "forbidden", "administrator"),
        ("POST", "/nodes/n1/drain", ADMIN, "", "", 404, "not_found", "no node \"n1\""),
        ("GET", "/connections/c1", PUBLISHER, "", "", 403, "forbidden", "administrator"),
        ("GET", "/connections/c1", ADMIN, "", "", 404, "not_found", "no connection \"c1\""),
        ("POST", "/events", PUBLISHER, JSON, "{", 400, "not_json", "not JSON"),
        ("POST", "/events", PUBLISHER, JSON, "", 400, "not_json", "empty"),
        ("POST", "/events/batch", PUBLISHER, JSON, "", 400, "not_json", "empty"),
        ("POST", "/events/batch", PUBLISHER, JSON, "[{]", 400, "not_json", "not JSON"),
        ("POST", "/agents/a/activity", PUBLISHER, JSON, "nope", 400, "not_json", "not JSON"),
        ("POST", "/users/u/send-notification", PUBLISHER, JSON, "", 400, "not_json", "empty"),
        ("POST", "/tasks/%ff/update", PUBLISHER, JSON, "", 400, "bad_request", "UTF-8"),
        ("POST", "/events", PUBLISHER, "text/plain", "{}", 415, "unsupported_media_type", "application/json"),
        ("POST", "/tasks/t/update", PUBLISHER, FORM, "a=1", 415, "unsupported_media_type", "form"),
        ("POST", "/events", PUBLISHER, JSON, &large, 413, "event_too_large", "max_event_bytes"),
        ("POST", "/events", PUBLISHER, JSON, &larger, 413, "body_too_large", "max_event_bytes"),
        ("POST", "/agents/a/activity", PUBLISHER, JSON, &larger, 413, "body_too_large", "max_event_bytes"),
        ("POST", "/events/batch", PUBLISHER, JSON, &many, 413, "batch_too_large", "1001 events; at most 1000"),
        ("POST", "/events", PUBLISHER, JSON, "[]", 422, "invalid", "not a JSON object"),
        ("POST", "/events", PUBLISHER, JSON, "{}", 422, "invalid", "\"audience\": \"everyone\""),
        ("POST", "/events", PUBLISHER, JSON, r#"{"type":"a"}"#, 422, "invalid", "\"audience\": \"everyone\""),
        ("POST", "/events", PUBLISHER, JSON, r#"{"audience":"everyone"}"#, 422, "invalid", "`type` is missing"),
        ("POST", "/events", PUBLISHER, JSON, r#"{"type":"$sys","audience":"everyone"}"#, 422, "invalid", "reserved for the hub"),
        ("POST", "/users/u/notify", PUBLISHER, JSON, r#"{"type":"$sys","data":{}}"#, 422, "invalid", "reserved for the hub"),
        ("POST", "/events", PUBLISHER, JSON, r#"{"type":"a","type":"b"}"#, 422, "invalid", "duplicate field"),
        ("POST", "/events", PUBLISHER, JSON, &deep, 422, "invalid", "nested"),
        ("POST", "/events", PUBLISHER, JSON, r#"{"type":"a","audience":null}"#, 422, "invalid", "`audience`"),
        ("POST", "/events", PUBLISHER, JSON, &long_audience, 422, "invalid", "256 bytes"),
        ("POST", "/events", PUBLISHER, JSON, r#"{"type":"a","audience":{"connection":"x"}}"#, 422, "invalid", "UUID"),
        ("POST", "/events", PUBLISHER, JSON, r#"{"type":"a","audience":{"topic":"a*"}}"#, 422, "invalid", "asterisk"),
        ("POST", "/events/batch", PUBLISHER, JSON, r#"{"event":[]}"#, 422, "invalid", "`event`"),
        ("POST", "/tasks/t/update", PUBLISHER, JSON, "", 422, "invalid", "`status` is missing"),
        ("POST", "/tasks/t/update?status=a&status=b", PUBLISHER, JSON, "", 422, "invalid", "status"),
        ("POST", "/tasks/t/update", PUBLISHER, JSON, r#"{"status":"running","task_id":"u"}"#, 422, "invalid", "`task_id`"),
        ("POST", "/tasks/t/broadcast-update", PUBLISHER, JSON, "[]", 422, "invalid", "JSON object"),
        ("POST", "/users/u/notify", PUBLISHER, JSON, "", 422, "invalid", "`message`"),
        ("POST", "/users/u/notify", PUBLISHER, JSON, r#"{"type":"a","data":{},"audience":1}"#, 422, "invalid", "`audience`"),
        ("POST", &long_user, PUBLISHER, JSON, "{}", 422, "invalid", "256 bytes"),
        ("POST", "/agents/a/activity", PUBLISHER, JSON, r#"{"agent_id":"b"}"#, 422, "invalid", "`agent_id`"),
        ("GET", "/ws", READER, "", "", 426, "upgrade_required", "ws://"),
        ("GET", "/events", PUBLISHER, "", "", 405, "method_not_allowed", "/events does not support GET"),
        ("DELETE", "/ws/health", NOBODY, "", "", 405, "method_not_allowed", "DELETE"),
        ("POST", "/docs", NOBODY, "", "", 405, "method_not_allowed", "POST"),
        ("GET", "/docs/nothing.js", NOBODY, "", "", 404, "not_found", "nothing.js"),
    ];
    for &(method, path, who, media_type, body, status, code, says) in refusals {
        let answer = call(&app, request(method, path, who, media_type, body.to_owned())).await;
        let what = format!("{method} {path} {body:.60}: {}", answer.text);
        assert_eq!((answer.status, &answer.json()["code"]), (status, &json!(code)), "{what}");
        assert!(answer.json()["detail"].as_str().unwrap().contains(says), "{what}");
        let challenge = answer.header("www-authenticate");
        assert_eq!(challenge.starts_with("Bearer"), matches!(status, 401 | 403), "{what}");
        assert_eq!(answer.headers.contains_key(header::ALLOW), status == 405, "{what}");
    }
    assert_eq!(hub.stats().window_events, 0, "no rejected event is published");

    let refused = |code: &str| u64::try_from(refusals.iter().filter(|r| r.6 == code).count()).unwrap();
    for (counter, codes) in [
        (Counter::AuthMissing, &["token_missing"] as &[_]),
        (Counter::AuthInvalid, &["token_invalid"]),
        (Counter::AuthExpired, &["token_expired"]),
        (Counter::AuthForbidden, &["forbidden"]),
        (Counter::LimitEventBytes, &["event_too_large", "body_too_large"]),
        (Counter::LimitBatch, &["batch_too_large"]),
        (Counter::BadEvents, &["not_json", "invalid", "unsupported_media_type"]),
    ] {
        let expected = codes.iter().map(|code| refused(code)).sum::<u64>();
        assert_eq!(hub.metrics().get(counter), expected, "{counter:?}");
    }
}

#[tokio::test]
async fn limits_follow_the_settings() {
    let app = hub(Config { max_event_bytes: 200, max_batch_events: 2, ..Config::default() }).router();
    let event =
        |bytes: usize| json!({"type": "note", "audience": "everyone", "data": {"x": "x".repeat(bytes)}}).to_string();
    for (path, body, status) in [
        ("/events", event(50), 201),
        ("/events", event(150), 413),
        ("/events", event(5_000), 413),
        ("/events/batch", format!("[{},{}]", event(50), event(50)), 200),
        ("/events/batch", format!("[{},{}]", event(50), event(150)), 413),
        ("/events/batch", format!("[{0},{0},{0}]", event(5)), 413),
        ("/events/batch", format!("[{}]", event(9_000)), 413),
    ] {
        assert_eq!(post(&app, path, &body).await.status, status, "{path} {body:.80}");
    }
}

// attack: an endless request body => 413 at the limit
#[tokio::test]
async fn a_body_is_not_read_beyond_its_limit() {
    let app = hub(Config::default()).router();
    let endless = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(" ".repeat(1_000)));
    let broken = futures_util::stream::iter([Ok("{"), Err(std::io::Error::other("gone"))]);
    for (body, status, code) in [
        (Body::from_stream(endless), 413, "body_too_large"),
        (Body::from_stream(broken), 400, "bad_request"),
        (Body::from(vec![b'{', 0xff, b'}']), 400, "not_json"),
    ] {
        let answer = call(&app, request("POST", "/events", PUBLISHER, JSON, body)).await;
        assert_eq!((answer.status, &answer.json()["code"]), (status, &json!(code)));
    }
}

#[tokio::test]
async fn json_media_types_and_no_media_type_are_accepted() {
    let app = hub(Config::default()).router();
    for media_type in ["", "application/json; charset=utf-8", "Application/JSON", "application/cloudevents+json"] {
        let answer =
            call(&app, request("POST", "/events", PUBLISHER, media_type, r#"{"type":"note","audience":"everyone"}"#))
                .await;
        assert_eq!(answer.status, 201, "{media_type} {}", answer.text);
    }
    let empty_form = request("POST", "/tasks/t/update?status=running", PUBLISHER, FORM, "");
    assert_eq!(call(&app, empty_form).await.status, 200);
}

#[tokio::test]
async fn health_has_the_fields_of_the_fastapi_hub_and_correct_values() {
    let hub = hub(Config::default());
    let app = hub.router();
    let _client = Client::connect(serve(&app).await, READER, "").await;
    post(&app, "/events", r#"{"type":"note","audience":"everyone"}"#).await;

    let health = get(&app, "/ws/health").await.json();
    assert_eq!(health["status"], "healthy");
    assert_eq!(health["connections"], json!({"total": 1, "local": 1, "alive": 1, "dead": 0}));
    assert_eq!(health["redis"], json!({"connected": false, "pubsub_connected": false}));
    assert_eq!((&health["broker"], &health["window"]["events"]), (&json!("memory"), &json!(1)));
    assert!(health["window"]["bytes"].as_u64().unwrap() > 50, "{health}");
    assert!(health["window"]["head"].as_str().unwrap().ends_with("-1"), "{health}");
    assert!(health["timestamp"].as_str().unwrap().ends_with('Z'), "{health}");
    let keys: Vec<_> = health.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["status", "timestamp", "connections", "redis", "broker", "log", "window", "version"]);
    let ids_ms = health["log"]["idempotency_ms"].as_u64().expect("a number");
    assert!(ids_ms < 3_600_000, "the log has just been created: {ids_ms}");
    assert_eq!(health["log"], json!({"nodes": 1, "idempotency_ms": ids_ms}));

    let version = env!("CARGO_PKG_VERSION");
    let service = json!({"status": "healthy", "service": "fanfare", "version": version});
    assert_eq!(get(&app, "/health").await.json(), service);
    assert_eq!(get(&app, "/health/live").await.json(), json!({"status": "live"}));
    let ready = get(&app, "/health/ready").await;
    assert_eq!((ready.status, ready.json()), (200, json!({"status": "ready"})));

    hub.shutdown(Duration::ZERO).await;
    let ready = get(&app, "/health/ready").await;
    assert_eq!((ready.status, ready.json()), (503, json!({"status": "not_ready"})));
    assert_eq!(get(&app, "/health/live").await.status, 200);
}

#[tokio::test]
async fn metrics_are_for_administrators() {
    let app = hub(Config::default()).router();
    post(&app, "/events", r#"{"type":"note","event_id":"m","audience":"everyone"}"#).await;
    post(&app, "/events", "{").await;
    let answer = call(&app, request("GET", "/metrics", ADMIN, "", "")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    for line in [
        "fanfare_events_total 1",
        r#"fanfare_bad_input_total{kind="event"} 1"#,
        "fanfare_connections 0",
        "fanfare_window_events 1",
        "# TYPE fanfare_window_bytes gauge",
        "# EOF",
    ] {
        assert!(answer.text.lines().any(|l| l == line), "{line} in {}", answer.text);
    }
}

#[tokio::test]
async fn the_description_is_complete() {
    let spec = spec(&hub(Config::default()).router()).await;
    assert_eq!(spec["openapi"], "3.1.0");
    let mut operations = BTreeSet::new();
    for (path, item) in spec["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let what = format!("{} {path}", method.to_uppercase());
            assert!(operation["summary"].is_string() && operation["operationId"].is_string(), "{what}");
            let parameters = operation["parameters"].as_array().map_or(0, Vec::len);
            assert!(parameters >= path.matches('{').count(), "{what}");
            for (status, response) in operation["responses"].as_object().unwrap() {
                assert!(response["description"].as_str().is_some_and(|text| !text.is_empty()), "{what} {status}");
                assert!(status == "101" || response["content"].is_object(), "{what} {status}");
            }
            let needs_token = operation["responses"]["401"].is_object();
            assert_eq!(needs_token, operation["security"] == json!([{"bearer": []}]), "{what}");
            assert!(operation["security"].as_array().is_some_and(|ways| !ways.is_empty()), "{what}: no security");
            operations.insert(what);
        }
    }
    assert_eq!(spec["servers"][0]["url"], ".", "where the description is, also behind a proxy and under a prefix");
    let expected = [
        "DELETE /connections/{connection_id}",
        "GET /.well-known/jwks.json",
        "GET /connections/{connection_id}",
        "GET /events/{event_id}",
        "GET /health",
        "GET /health/live",
        "GET /health/ready",
        "GET /metrics",
        "GET /users/{user_id}/connections",
        "GET /ws",
        "GET /ws/health",
        "POST /agents/{agent_id}/activity",
        "POST /calendar/events/create",
        "POST /events",
        "POST /events/batch",
        "POST /log-level",
        "POST /nodes/{node}/drain",
        "POST /tasks/{task_id}/broadcast-update",
        "POST /tasks/{task_id}/update",
        "POST /tokens/revoke",
        "POST /users/{user_id}/disconnect",
        "POST /users/{user_id}/notify",
        "POST /users/{user_id}/send-notification",
    ];
    assert_eq!(operations.iter().map(String::as_str).collect::<Vec<_>>(), expected);

    let mut closed = Vec::new();
    collect_closed_objects(&spec, "", &mut closed);
    assert_eq!(closed, [""; 0], "a generated client cannot fill an object without properties");

    let mut references = Vec::new();
    collect_references(&spec, &mut references);
    assert!(!references.is_empty());
    for reference in references {
        assert!(spec.pointer(reference.strip_prefix('#').unwrap()).is_some(), "{reference} is not defined");
    }
}

/// The schemas of objects that are documented as empty.
fn collect_closed_objects(value: &Value, at: &str, found: &mut Vec<String>) {
    let Some(fields) = value.as_object() else {
        return value.as_array().into_iter().flatten().for_each(|value| collect_closed_objects(value, at, found));
    };
    let open = fields.contains_key("properties") || fields.contains_key("additionalProperties");
    if fields.get("type") == Some(&json!("object")) && !open {
        found.push(at.to_owned());
    }
    fields.iter().for_each(|(name, value)| collect_closed_objects(value, &format!("{at}/{name}"), found));
}

fn collect_references(value: &Value, found: &mut Vec<String>) {
    if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
        found.push(reference.to_owned());
    }
    match value {
        Value::Object(fields) => fields.values().for_each(|field| collect_references(field, found)),
        Value::Array(items) => items.iter().for_each(|item| collect_references(item, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[tokio::test]
async fn the_docs_page_loads_nothing_from_other_hosts() {
    let app = hub(Config::default()).router();
    // Also if an application nests the hub under a prefix.
    for (app, prefix) in [(app.clone(), ""), (Router::new().nest("/hub", app), "/hub")] {
        let file = async |name: &str| send(&app, request("GET", &format!("{prefix}/{name}"), NOBODY, "", "")).await;
        let page = file("docs").await;
        assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
        assert!(page.header("content-security-policy").starts_with("default-src 'self'"));
        assert!(!page.text.contains("//"), "the page refers to another host: {}", page.text);
        let links: Vec<_> = page.text.split('"').filter(|part| part.starts_with("docs/")).collect();
        assert_eq!(links.len(), 5, "{links:?}");
        for link in links {
            let part = file(link).await;
            assert_eq!(part.status, 200, "{link}");
            assert!(!part.text.is_empty() && !part.header("content-type").is_empty(), "{link}");
        }
        assert!(file("docs/start.js").await.text.contains(r#"url: "openapi.json""#));
        assert_eq!(file("openapi.json").await.json()["info"]["title"], "fanfare");
        let slash = file("docs/").await;
        assert_eq!((slash.status, slash.header("location")), (308, "../docs"));
    }
}

#[tokio::test]
async fn the_routes_merge_into_an_application_with_its_own_fallback() {
    let own = Router::new().route("/own", axum::routing::get(async || "own")).fallback(async || "theirs");
    let app = own.merge(hub(Config::default()).router());
    for (path, text) in [("/own", "own"), ("/nowhere", "theirs"), ("/tasks/nowhere", "theirs")] {
        assert_eq!(send(&app, request("GET", path, NOBODY, "", "")).await.text, text);
    }
    assert_eq!(get(&app, "/health/live").await.status, 200);

    let app = hub(Config::default()).router().fallback(fanfare::not_found);
    let answer = send(&app, request("GET", "/nowhere", NOBODY, "", "")).await;
    assert_eq!(answer.status, 404);
    assert_eq!(answer.json(), json!({"detail": "no route /nowhere", "code": "not_found"}));
}

// attack: with compat, a request without a token to other endpoints, or with an invalid token => 401
#[tokio::test]
async fn compat_accepts_what_the_fastapi_hub_accepted_and_no_more() {
    let app = hub(Config { compat: true, ..Config::default() }).router();
    for (path, body) in [
        ("/tasks/t/update?status=running", ""),
        ("/tasks/t/update", r#"{"task_id":"another","step":1}"#),
        ("/users/u/notify?message=x", ""),
        ("/agents/a/activity", r#"{"agent_id":"another"}"#),
    ] {
        let answer = send(&app, request("POST", path, NOBODY, JSON, body)).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        let answer = send(&app, request("POST", path, STRANGER, JSON, body)).await;
        assert_eq!(answer.status, 401, "{path}: {}", answer.text);
    }
    for (path, body) in [
        ("/tasks/t/broadcast-update?status=running", ""),
        ("/users/u/send-notification", "{}"),
        ("/calendar/events/create", "{}"),
        ("/events", r#"{"type":"a","audience":"everyone"}"#),
        ("/events/batch", r#"[{"type":"a","audience":"everyone"}]"#),
        ("/tokens/revoke", r#"{"user":"u"}"#),
    ] {
        assert_eq!(send(&app, request("POST", path, NOBODY, JSON, body)).await.status, 401, "{path}");
    }
    let spec = spec(&app).await;
    let paths = spec["paths"].as_object().unwrap();
    let open = paths.iter().filter(|(_, item)| item["post"]["security"] == json!([{}, {"bearer": []}]));
    let open: Vec<_> = open.map(|(path, _)| path.as_str()).collect();
    assert_eq!(open, ["/agents/{agent_id}/activity", "/tasks/{task_id}/update", "/users/{user_id}/notify"]);
}

#[tokio::test]
async fn a_path_with_extra_slashes_is_answered_with_the_right_path() {
    let app = hub(Config::default()).router().fallback(fanfare::not_found);
    for (method, path, right) in [
        ("GET", "/ws/", "/ws"),
        ("POST", "/events/", "/events"),
        ("GET", "/ws/health/", "/ws/health"),
        ("GET", "//ws//health", "/ws/health"),
        ("POST", "/users/ann/notify/", "/users/ann/notify"),
        ("GET", "/openapi.json/", "/openapi.json"),
    ] {
        let answer = send(&app, request(method, path, NOBODY, "", "")).await;
        let detail = format!("no route {path}; did you mean {right}?");
        assert_eq!(answer.status, 404, "{path}");
        assert_eq!(answer.json(), json!({"detail": detail, "code": "not_found"}));
    }
    let upgrade =
        axum::http::Request::get("/ws/?token=x").header("upgrade", "websocket").header("connection", "upgrade");
    let answer = send(&app, upgrade.body(axum::body::Body::empty()).unwrap()).await;
    assert_eq!((answer.status, answer.json()["detail"].as_str()), (404, Some("no route /ws/; did you mean /ws?")));
    for path in ["/nowhere/", "/users/ann/notify/x/", "//"] {
        let detail = format!("no route {path}");
        assert_eq!(send(&app, request("GET", path, NOBODY, "", "")).await.json()["detail"], detail);
    }
}

/// A token of a user, with further claims.
fn token_with(user: &str, more: &Value) -> String {
    let mut claims = json!({"sub": user, "topics": ["*"]});
    claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
}

async fn connect_with(address: SocketAddr, token: &str) -> WebSocketStream<MaybeTlsStream<TcpStream>> {
    tokio_tungstenite::connect_async(format!("ws://{address}/ws?token={token}")).await.unwrap().0
}

/// The type of the next message, or the code and reason of a close.
async fn received(socket: &mut WebSocketStream<MaybeTlsStream<TcpStream>>) -> String {
    match tokio::time::timeout(DEADLINE, socket.next()).await.expect("a message in time") {
        Some(Ok(Message::Text(text))) => {
            serde_json::from_str::<Value>(&text).unwrap()["type"].as_str().unwrap().to_owned()
        }
        Some(Ok(Message::Close(Some(frame)))) => format!("{} {}", u16::from(frame.code), frame.reason.as_str()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_tokens_open_no_connections_and_existing_ones_are_closed() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    for (input, token, later) in [
        (
            json!({"user": "ann"}),
            token_with("ann", &json!({"iat": now - 5})),
            token_with("ann", &json!({"iat": now + 30})),
        ),
        (json!({"user": "ann"}), token_with("ann", &json!({})), token_with("bob", &json!({}))),
        (
            json!({"user": "ann", "issued_before": now - 10}),
            token_with("ann", &json!({"iat": now - 11})),
            token_with("ann", &json!({"iat": now - 10})),
        ),
        (json!({"jti": "j1"}), token_with("ann", &json!({"jti": "j1"})), token_with("ann", &json!({"jti": "j2"}))),
        (
            json!({"sid": "s1"}),
            token_with("ann", &json!({"sid": "s1", "jti": "j1"})),
            token_with("ann", &json!({"sid": "s2", "jti": "s1"})),
        ),
        (
            json!({"user": "ann", "issued_before": now + 30}),
            token_with("ann", &json!({"iat": now + 29})),
            token_with("ann", &json!({"iat": now + 30})),
        ),
        (
            json!({"issued_before": now - 10}),
            token_with("bob", &json!({"iat": now - 11})),
            token_with("bob", &json!({"iat": now - 10})),
        ),
    ] {
        let hub = hub(Config::default());
        let app = hub.router();
        let address = serve(&app).await;
        let (mut ended, mut stays) = (connect_with(address, &token).await, connect_with(address, &later).await);
        assert_eq!((received(&mut ended).await.as_str(), received(&mut stays).await.as_str()), ("ack", "ack"));
        // A separate administrator, whose token is not revoked here.
        let admin = token_with("root", &json!({"admin": true, "iat": now + 2, "jti": "root"}));
        let revoke = || {
            Request::builder()
                .method("POST")
                .uri("/tokens/revoke")
                .header(header::AUTHORIZATION, format!("Bearer {admin}"))
                .header(header::CONTENT_TYPE, JSON)
                .body(Body::from(input.to_string()))
                .unwrap()
        };
        for _ in 0..2 {
            let answer = call(&app, revoke()).await;
            assert_eq!((answer.status, answer.json()), (200, json!({"status": "revoked"})), "{input}");
        }
        assert!(received(&mut ended).await.starts_with("1008 token_revoked: "), "{input}");
        let mut again = connect_with(address, &token).await;
        assert!(received(&mut again).await.starts_with("1008 token_revoked: "), "{input}");
        let mut other = connect_with(address, &later).await;
        assert_eq!(received(&mut other).await, "ack", "{input}");
        assert_eq!(hub.metrics().get(Counter::TokensRevoked), 1);
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while hub.stats().local != 2 {
            assert!(tokio::time::Instant::now() < deadline, "{input}: {:?}", hub.stats());
            tokio::task::yield_now().await;
        }
    }
}

// attack: a revocation with a time in the far future, which locks a user out permanently => 422
#[tokio::test]
async fn invalid_revocations_are_rejected() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let hub = hub(Config::default());
    let app = hub.router();
    for (who, body, status, says) in [
        (NOBODY, json!({"user": "ann"}), 401, "no token"),
        (PUBLISHER, json!({"user": "ann"}), 403, "administrator"),
        (ADMIN, json!({}), 422, "expected one of `user`"),
        (ADMIN, json!({"user": "ann", "jti": "j"}), 422, "expected one of `user`"),
        (ADMIN, json!({"user": ""}), 422, "`user` must be"),
        (ADMIN, json!({"user": "x".repeat(257)}), 422, "`user` must be"),
        (ADMIN, json!({"jti": ""}), 422, "`jti` must be"),
        (ADMIN, json!({"jti": 7}), 422, "expected a string"),
        (ADMIN, json!({"user": "ann", "jti": "j", "sid": "s"}), 422, "expected one of `user`"),
        (ADMIN, json!({"sid": ""}), 422, "`sid` must be"),
        (ADMIN, json!({"issued_before": 99_999_999_999_u64}), 422, "future"),
        (ADMIN, json!({"issued_before": u64::MAX}), 422, "future"),
        (ADMIN, json!({"issued_before": now + 120}), 422, "at most"),
        (ADMIN, json!({"user": "ann", "issued_before": 9_999_999_999_u64}), 422, "future"),
        (ADMIN, json!({"user": "ann", "issued_before": now * 1_000}), 422, "in seconds"),
        (ADMIN, json!({"issued_before": -1}), 422, "expected u64"),
        (ADMIN, json!({"users": "ann"}), 422, "unknown field"),
    ] {
        let answer = call(&app, request("POST", "/tokens/revoke", who, JSON, body.to_string())).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text);
        assert!(answer.json()["detail"].as_str().unwrap().contains(says), "{body}: {}", answer.text);
    }
    let answer = call(&app, request("POST", "/tokens/revoke", ADMIN, JSON, "{")).await;
    assert_eq!((answer.status, &answer.json()["code"]), (400, &json!("not_json")));
}

#[tokio::test]
async fn a_hub_with_a_secret_serves_no_keys() {
    let answer = get(&hub(Config::default()).router(), "/.well-known/jwks.json").await;
    assert_eq!((answer.status, answer.json()), (200, json!({"keys": []})));
    assert_eq!(answer.header("cache-control"), "public, max-age=300");
}

/// Connects as a browser does for a page of `origin`, and returns the first message or close.
async fn first_message_from(address: SocketAddr, origin: &str) -> String {
    let mut request = tokio_tungstenite::tungstenite::client::IntoClientRequest::into_client_request(format!(
        "ws://{address}/ws?token={}",
        token(READER)
    ))
    .unwrap();
    request.headers_mut().insert(header::ORIGIN, origin.parse().unwrap());
    let (mut socket, _) = tokio_tungstenite::connect_async(request).await.unwrap();
    received(&mut socket).await
}

// attack: a page of another site that opens a socket => closed with origin_not_allowed and counted
#[tokio::test]
async fn pages_of_other_sites_are_rejected() {
    let listed = Config { allowed_origins: "https://app.example.org".parse().unwrap(), ..Config::default() };
    for (config, app_may) in [(Config::default(), false), (listed, true)] {
        let hub = hub(config);
        let address = serve(&hub.router()).await;
        for (origin, may) in [
            (format!("http://{address}"), true),
            ("https://app.example.org".to_owned(), app_may),
            ("https://evil.example.org".to_owned(), false),
            ("null".to_owned(), false),
        ] {
            let heard = first_message_from(address, &origin).await;
            if may {
                assert_eq!(heard, "ack", "{origin}");
            } else {
                assert!(heard.starts_with(&format!("1008 origin_not_allowed: {origin} at {address}")), "{heard}");
                assert!(heard.contains("allowed_origins"), "{heard}");
            }
        }
        assert_eq!(hub.metrics().get(Counter::ForeignOrigin), if app_may { 2 } else { 3 });
    }
}

// attack: a page of another site that calls the HTTP API => its preflight is answered 403, without a CORS permission
#[tokio::test]
async fn pages_of_allowed_sites_may_call_the_api() {
    let preflight = |origin: &str| {
        let request = Request::builder().method("OPTIONS").uri("/events").header(header::ORIGIN, origin);
        let request = request.header("access-control-request-method", "POST");
        request.header("access-control-request-headers", "authorization,content-type").body(Body::empty()).unwrap()
    };
    let listed = Config { allowed_origins: "https://app.example.org".parse().unwrap(), ..Config::default() };
    let app = hub(listed).router();
    let answer = send(&app, preflight("https://app.example.org")).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, "https://app.example.org"));
    assert!(answer.header("access-control-allow-headers").contains("authorization"));
    assert_eq!(answer.header("access-control-allow-credentials"), "", "never with credentials that a browser adds");
    let own = hub(Config::default());
    for (app, origin) in [(&app, "https://evil.example.org"), (&own.router(), "https://other.example.org")] {
        let answer = send(app, preflight(origin)).await;
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (403, ""));
        let body: Value = serde_json::from_str(&answer.text).unwrap();
        let detail = body["detail"].as_str().unwrap();
        assert_eq!(body["code"], "origin_not_allowed");
        assert!(detail.contains(origin) && detail.contains("allowed_origins") && !detail.contains("app."), "{detail}");
    }
    assert_eq!(own.metrics().get(Counter::ForeignOrigin), 1);
    let every = hub(Config { allowed_origins: "*".parse().unwrap(), ..Config::default() }).router();
    let answer = send(&every, preflight("https://any.example.org")).await;
    assert_eq!(
        (answer.header("access-control-allow-origin"), answer.header("access-control-allow-credentials")),
        ("*", "")
    );
}

#[tokio::test]
async fn pages_of_allowed_sites_may_send_tracing_headers_and_those_configured() {
    let preflight = |origin: &str| {
        let request = Request::builder().method("OPTIONS").uri("/events").header(header::ORIGIN, origin);
        let request = request.header("access-control-request-method", "POST");
        request.header("access-control-request-headers", "authorization,traceparent").body(Body::empty()).unwrap()
    };
    let config = Config {
        allowed_origins: "capacitor://localhost, https://*.example.org".parse().unwrap(),
        cors_headers: vec!["x-tenant".parse().unwrap()],
        cors_credentials: true,
        ..Config::default()
    };
    let app = hub(config.clone()).router();
    for origin in ["capacitor://localhost", "https://a.example.org"] {
        let answer = send(&app, preflight(origin)).await;
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, origin));
        let allowed = answer.header("access-control-allow-headers").to_owned();
        for name in ["authorization", "content-type", "traceparent", "tracestate", "baggage", "sentry-trace"] {
            assert!(allowed.contains(name), "{name}: {allowed}");
        }
        assert!(allowed.contains("x-request-id") && allowed.contains("x-tenant"), "{allowed}");
        assert_eq!(answer.header("access-control-allow-credentials"), "true");
    }
    let answer = send(&app, preflight("https://example.org")).await;
    assert_eq!(answer.header("access-control-allow-origin"), "");
    let every = Config { allowed_origins: "*".parse().unwrap(), ..config };
    let answer = send(&hub(every).router(), preflight("https://any.example.org")).await;
    assert_eq!(answer.header("access-control-allow-credentials"), "", "never for every site");
}

// attack: a publisher over its rate => 429 with Retry-After; other publishers are not affected
#[tokio::test]
async fn publishers_beyond_their_rate_are_rejected_with_retry_after() {
    let hub = hub(Config { publishes_per_second: 5, ..Config::default() });
    let app = hub.router();
    let batch =
        json!((0..8).map(|n| json!({"type": "note", "audience": "everyone", "data": {"n": n}})).collect::<Vec<_>>())
            .to_string();
    assert_eq!(post(&app, "/events/batch", &batch).await.status, 200);
    let refused = loop {
        // Two events are left of the burst, and at most one more accumulates during the test.
        let answer = post(&app, "/events", r#"{"type":"note","audience":"everyone"}"#).await;
        if answer.status != 201 {
            break answer;
        }
        assert!(hub.metrics().get(Counter::Events) < 14, "never rejected");
    };
    assert_eq!((refused.status, &refused.json()["code"]), (429, &json!("too_many_events")));
    assert_eq!(refused.header("retry-after"), "1");
    assert!(hub.metrics().get(Counter::LimitPublishes) > 0);
    let other = request("POST", "/events", ADMIN, JSON, r#"{"type":"note","audience":"everyone"}"#);
    assert_eq!(call(&app, other).await.status, 201, "other publishers are not affected");
}

#[tokio::test]
async fn a_batch_larger_than_the_burst_is_accepted_when_nothing_else_was_published() {
    let hub = hub(Config { publishes_per_second: 5, ..Config::default() });
    let app = hub.router();
    let batch = json!(vec![json!({"type": "note", "audience": "everyone"}); 100]).to_string();
    assert_eq!(post(&app, "/events/batch", &batch).await.status, 200);
    let next = post(&app, "/events/batch", &batch).await;
    assert_eq!((next.status, next.json()["code"].as_str()), (429, Some("too_many_events")));
    let seconds: u64 = next.header("retry-after").parse().unwrap();
    assert!((10..=20).contains(&seconds), "the time of the first batch at this rate: {seconds}");
}

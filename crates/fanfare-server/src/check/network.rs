//! The public address: opens a connection through it, and holds it for longer than the idle timeouts of proxies.

use super::{Check, Finding};
use crate::{access::Access, api_client::Server, settings::Settings, util::print_status};
use fanfare::{Position, auth::Claims};
use fanfare_client::scheme_mismatch;
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use tokio::time::timeout;
use tokio_tungstenite::{
    client_async_tls,
    tungstenite::{self, Message, client::IntoClientRequest, http::header::AUTHORIZATION},
};

const ADDRESS: Check = Check { name: "address", why: "Clients connect to this address." };
const UPGRADE: Check = Check {
    name: "upgrade",
    why: "A proxy that does not forward Upgrade and Connection supports no WebSocket connections.",
};
const ONE_LOG: Check = Check {
    name: "one log",
    why: "Hubs with separate logs behind one address serve some of the clients each: an event reaches only the \
        clients of the hub that accepted it, and a client that changes hubs loses its position.",
};
const HOLD: Check = Check {
    name: "hold",
    why: "A proxy whose idle timeout is shorter than the heartbeat interval disconnects every client repeatedly.",
};

/// The time limit for everything but holding the connection.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Number of requests that determine which logs are behind the address.
const LOG_REQUESTS: usize = 12;

/// The interval of progress messages.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

pub(super) async fn check(url: &str, hold: Duration, settings: &Settings) -> anyhow::Result<Vec<Finding>> {
    let server = Server::parse(url)?;
    let claims = Claims { sub: "fanfare-check".to_owned(), ..Claims::default() };
    let token = Access::signed(settings, claims)?.token()?;
    let stream = match server.connect().await {
        Ok(stream) => stream,
        Err(error) => return Ok(vec![ADDRESS.fail(format!("{server}: {error:#}"), &[&format!("curl -v {url}")])]),
    };
    let mut request = server.websocket_url().into_client_request()?;
    request.headers_mut().insert(AUTHORIZATION, format!("Bearer {token}").parse()?);
    let begun = Instant::now();
    let mut socket = match timeout(REQUEST_TIMEOUT, client_async_tls(request, stream)).await {
        Ok(Ok((socket, _))) => socket,
        Ok(Err(tungstenite::Error::Http(answer))) => {
            let what = format!("{} answers {} instead of 101", server.websocket_url(), answer.status());
            let nginx = [
                "proxy_http_version 1.1;    # in nginx",
                "proxy_set_header Upgrade $http_upgrade;",
                "proxy_set_header Connection \"upgrade\";",
            ];
            return Ok(vec![UPGRADE.fail(what, &nginx)]);
        }
        Ok(Err(error)) => {
            let why = match server.websocket_url().parse() {
                Ok(url) => scheme_mismatch(&url, &error).await,
                Err(_) => None,
            };
            let why = why.unwrap_or_else(|| format!("{server}: {error}"));
            return Ok(vec![ADDRESS.fail(why, &[&format!("curl -v {url}")])]);
        }
        Err(_) => return Ok(vec![ADDRESS.fail(format!("{server} does not respond"), &[&format!("curl -v {url}")])]),
    };
    let opened = begun.elapsed();
    let mut findings =
        vec![ADDRESS.ok(format!("{server} is reachable")), UPGRADE.ok(format!("{} ms", opened.as_millis()))];
    findings.push(one_log(url).await?);
    let (begun, mut reported, mut pings) = (Instant::now(), Instant::now(), 0);
    let ended = loop {
        let left = hold.saturating_sub(begun.elapsed());
        if left.is_zero() {
            break None;
        }
        if reported.elapsed() >= PROGRESS_INTERVAL {
            reported = Instant::now();
            print_status(&format!(
                "holding a connection to {server}: {} of {} s",
                begun.elapsed().as_secs(),
                hold.as_secs()
            ));
        }
        match timeout(left.min(PROGRESS_INTERVAL), socket.next()).await {
            Err(_) => {}
            Ok(Some(Ok(Message::Text(text)))) => {
                if serde_json::from_str::<Value>(&text).is_ok_and(|frame| frame["type"] == "ping") {
                    pings += 1;
                    if let Err(error) = socket.send(Message::text(r#"{"type":"pong"}"#)).await {
                        break Some(error.to_string());
                    }
                }
            }
            Ok(Some(Ok(Message::Close(Some(frame))))) => {
                break Some(format!("closed with {}: {}", u16::from(frame.code), frame.reason));
            }
            Ok(Some(Ok(Message::Close(None))) | None) => break Some("it was closed without a code".to_owned()),
            Ok(Some(Ok(_))) => {}
            Ok(Some(Err(error))) => break Some(error.to_string()),
        }
    };
    let held = begun.elapsed().as_secs();
    findings.push(match ended {
        None => HOLD.ok(format!("held for {held} s, with {pings} pings")),
        Some(why) => HOLD.fail(
            format!("ended after {held} s and {pings} pings: {why}"),
            &[
                "proxy_read_timeout 75s;    # in nginx: longer than heartbeat_interval",
                "heartbeat_interval = \"20s\"    # or in fanfare.toml: shorter than the proxy waits",
            ],
        ),
    });
    // The result is known, so errors do not matter.
    let _ = timeout(REQUEST_TIMEOUT, socket.close(None)).await;
    Ok(findings)
}

/// Requests the log of the hub over several connections, which a proxy distributes to its hubs.
async fn one_log(url: &str) -> anyhow::Result<Finding> {
    let mut logs = BTreeMap::<String, String>::new();
    for _ in 0..LOG_REQUESTS {
        // A new connection for each request: a `Server` keeps its connection open.
        let body = match Server::parse(url)?.get("/ws/health", None).await {
            Ok(answer) => serde_json::from_slice::<Value>(&answer.body).unwrap_or_default(),
            Err(error) => return Ok(ONE_LOG.unknown(format!("failed to read /ws/health: {error:#}"))),
        };
        let epoch = body["window"]["head"].as_str().and_then(|head| head.parse::<Position>().ok());
        let (Some(Position { epoch, .. }), Some(broker)) = (epoch, body["broker"].as_str()) else {
            return Ok(ONE_LOG.unknown("/ws/health is not forwarded to the hub, so its log is unknown"));
        };
        logs.insert(format!("{epoch:x}"), broker.to_owned());
    }
    Ok(match logs.len() {
        1 => ONE_LOG.ok(format!("{LOG_REQUESTS} responses from one log")),
        several => {
            let shown: Vec<_> = logs.iter().map(|(epoch, broker)| format!("{epoch} in {broker}")).collect();
            ONE_LOG.fail(
                format!("{several} hubs with separate logs respond at this address: {}", shown.join(", ")),
                &[
                    "redis_url = \"redis://...\"    # in fanfare.toml: the same Redis for every hub",
                    "# or only one hub behind this address",
                ],
            )
        }
    })
}

//! The way in: a connection through the public address, held for longer than proxies wait.

use super::{Check, Finding};
use crate::{
    commands::{access::Access, http::Server, say},
    settings::Settings,
};
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

const ADDRESS: Check = Check { name: "address", why: "Clients come this way." };
const UPGRADE: Check =
    Check { name: "upgrade", why: "A proxy that does not pass Upgrade and Connection on lets no WebSocket through." };
const ONE_LOG: Check = Check {
    name: "one log",
    why: "Hubs with logs of their own behind one address serve a part of the clients each: an event reaches only those of the hub that took it, and a client that changes hubs loses its place.",
};
const HOLD: Check = Check {
    name: "hold",
    why: "A proxy that ends quiet connections sooner than the heartbeat cuts every client again and again.",
};

/// How long anything but holding may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many connections ask which log is behind the address.
const QUESTIONS: usize = 12;

/// How often somebody who waits hears that it goes on.
const NEWS: Duration = Duration::from_secs(10);

pub(super) async fn check(url: &str, hold: Duration, settings: &Settings) -> anyhow::Result<Vec<Finding>> {
    let server = Server::parse(url)?;
    let claims = Claims { sub: "fanfare-check".to_owned(), ..Claims::default() };
    let token = Access::made(settings, claims)?.token()?;
    let stream = match server.connect().await {
        Ok(stream) => stream,
        Err(error) => return Ok(vec![ADDRESS.fail(format!("{server}: {error:#}"), &[&format!("curl -v {url}")])]),
    };
    let mut request = server.websocket_url().into_client_request()?;
    request.headers_mut().insert(AUTHORIZATION, format!("Bearer {token}").parse()?);
    let begun = Instant::now();
    let mut socket = match timeout(PATIENCE, client_async_tls(request, stream)).await {
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
        Err(_) => return Ok(vec![ADDRESS.fail(format!("{server} does not answer"), &[&format!("curl -v {url}")])]),
    };
    let opened = begun.elapsed();
    let mut findings =
        vec![ADDRESS.ok(format!("{server} is reached")), UPGRADE.ok(format!("{} ms", opened.as_millis()))];
    findings.push(one_log(url).await?);
    let (begun, mut news, mut pings) = (Instant::now(), Instant::now(), 0);
    let ended = loop {
        let left = hold.saturating_sub(begun.elapsed());
        if left.is_zero() {
            break None;
        }
        if news.elapsed() >= NEWS {
            news = Instant::now();
            say(&format!("holding a connection to {server}: {} of {} s", begun.elapsed().as_secs(), hold.as_secs()));
        }
        match timeout(left.min(NEWS), socket.next()).await {
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
            Ok(Some(Ok(Message::Close(None))) | None) => break Some("it was closed without a reason".to_owned()),
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
    // It is over either way.
    let _ = timeout(PATIENCE, socket.close(None)).await;
    Ok(findings)
}

/// Asks over many connections, which a proxy spreads over its hubs, which log each hub has.
async fn one_log(url: &str) -> anyhow::Result<Finding> {
    let mut logs = BTreeMap::<String, String>::new();
    for _ in 0..QUESTIONS {
        // A server of its own for each question, because one goes on with its connection.
        let body = match Server::parse(url)?.get("/ws/health", None).await {
            Ok(answer) => serde_json::from_slice::<Value>(&answer.body).unwrap_or_default(),
            Err(error) => return Ok(ONE_LOG.unknown(format!("/ws/health: {error:#}"))),
        };
        let epoch = body["window"]["head"].as_str().and_then(|head| head.parse::<Position>().ok());
        let (Some(Position { epoch, .. }), Some(broker)) = (epoch, body["broker"].as_str()) else {
            return Ok(ONE_LOG.unknown("/ws/health is not passed on to the hub, which says there which log it has"));
        };
        logs.insert(format!("{epoch:x}"), broker.to_owned());
    }
    Ok(match logs.len() {
        1 => ONE_LOG.ok(format!("{QUESTIONS} answers from one log")),
        several => {
            let shown: Vec<_> = logs.iter().map(|(epoch, broker)| format!("{epoch} in {broker}")).collect();
            ONE_LOG.fail(
                format!("{several} hubs with logs of their own answer here: {}", shown.join(", ")),
                &[
                    "redis_url = \"redis://...\"    # in fanfare.toml of every hub, the same one",
                    "# or one hub alone behind this address",
                ],
            )
        }
    })
}

//! `fanfare publish`: publishes one event, or one from each line of standard input.

use super::backoff::Backoff;
use crate::{
    access::Access,
    api_client::{HubResponse, Server},
    settings::Settings,
    terminal,
    util::{UsageError, print_json, print_status, random, random_id},
};
use anyhow::{Context, bail};
use clap::ArgMatches;
use fanfare::auth::Claims;
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};
use std::{collections::BTreeMap, io::BufRead, thread, time::Duration};
use tokio::sync::mpsc;

/// Attempts at one request, over about 15 seconds on average.
const ATTEMPTS: u32 = 8;
const MAX_BATCH_EVENTS: usize = 100;
const MAX_BATCH_BYTES: usize = 4 << 20;

struct Publisher {
    server: Server,
    access: Access,
}

/// The result of publishing an event.
#[derive(Deserialize, Serialize)]
struct Published {
    event_id: String,
    position: String,
    #[serde(default)]
    duplicate: bool,
}

#[derive(Deserialize)]
struct Batch {
    results: Vec<Published>,
}

/// The hub's response to a rejected request.
#[derive(Deserialize)]
struct ErrorBody {
    detail: String,
    code: String,
    index: Option<usize>,
}

/// An event as it is sent.
#[derive(Serialize)]
struct Event<'a> {
    r#type: &'a str,
    event_id: &'a str,
    audience: &'a Value,
    data: &'a RawValue,
}

/// The event of a line of standard input. Lines are numbered from 1.
struct Line {
    number: usize,
    event: String,
}

pub(super) async fn run(matches: &ArgMatches, settings: &Settings) -> anyhow::Result<()> {
    let url = matches.get_one::<String>("url").map_or("", String::as_str);
    let server = Server::parse(url)?;
    let claims = Claims { sub: "fanfare publish".to_owned(), publish: true, ..Claims::default() };
    let publisher = Publisher { server, access: Access::new(matches, settings, claims)? };
    if matches.get_flag("stdin") {
        let audience = matches.get_one::<String>("audience").map(|text| audience(text)).transpose()?;
        publisher.publish_lines(audience).await
    } else {
        publisher.publish_one(&event(matches)?).await
    }
}

/// The event that the flags describe.
fn event(matches: &ArgMatches) -> anyhow::Result<String> {
    let text = |name: &str| matches.get_one::<String>(name).map_or("", String::as_str);
    let data: &RawValue =
        serde_json::from_str(text("data")).map_err(|error| UsageError(format!("--data is not valid JSON: {error}")))?;
    if !data.get().starts_with('{') {
        return Err(UsageError("--data must be a JSON object, such as '{\"text\":\"hi\"}'".to_owned()).into());
    }
    let audience = audience(matches.get_one::<String>("audience").map_or("everyone", String::as_str))?;
    // An ID that is chosen here makes it safe to retry.
    let event_id = matches.get_one::<String>("event-id").cloned().map_or_else(random_id, Ok)?;
    let event = Event { r#type: text("type"), event_id: &event_id, audience: &audience, data };
    Ok(serde_json::to_string(&event)?)
}

fn audience(text: &str) -> Result<Value, UsageError> {
    match text.split_once(':') {
        None if text == "everyone" => Ok(json!("everyone")),
        Some((kind @ ("user" | "connection" | "topic"), id)) if !id.is_empty() => Ok(json!({ kind: id })),
        _ => Err(UsageError(format!(
            "--audience: {text:?} is not a valid audience; expected everyone, user:ID, \
                connection:ID or topic:NAME"
        ))),
    }
}

impl Publisher {
    async fn publish_one(&self, event: &str) -> anyhow::Result<()> {
        let response = self.post("/events", event).await?;
        if !response.status.is_success() {
            bail!("{}", rejection(&response).0);
        }
        report(&[serde_json::from_slice(&response.body).context("failed to parse the hub's response")?])
    }

    /// Publishes the lines read so far as one batch, while further lines are read.
    async fn publish_lines(&self, audience: Option<Value>) -> anyhow::Result<()> {
        let mut lines = read_lines(audience);
        let mut waiting = Vec::new();
        while lines.recv_many(&mut waiting, MAX_BATCH_EVENTS).await > 0 {
            let mut broken = None;
            let mut batch = Vec::new();
            for line in waiting.drain(..) {
                match line {
                    Ok(line) => batch.push(line),
                    Err(error) => {
                        broken = Some(error);
                        break;
                    }
                }
            }
            for part in parts(&batch) {
                self.publish_batch(part).await?;
            }
            if let Some(error) = broken {
                return Err(error);
            }
        }
        Ok(())
    }

    async fn publish_batch(&self, lines: &[Line]) -> anyhow::Result<()> {
        let events: Vec<_> = lines.iter().map(|line| line.event.as_str()).collect();
        let response = self.post("/events/batch", &format!("[{}]", events.join(","))).await?;
        if !response.status.is_success() {
            let (text, index) = rejection(&response);
            let (first, last) =
                (lines.first().map_or(0, |line| line.number), lines.last().map_or(0, |line| line.number));
            match index.and_then(|index| lines.get(index)) {
                Some(line) => bail!("line {}: {text}; no event from line {first} on was published", line.number),
                None => bail!("lines {first} to {last}: {text}; no event from line {first} on was published"),
            }
        }
        let batch: Batch = serde_json::from_slice(&response.body).context("failed to parse the hub's response")?;
        report(&batch.results)
    }

    /// Posts until there is a final response. The events have IDs, so a retry publishes none twice.
    async fn post(&self, path: &str, json: &str) -> anyhow::Result<HubResponse> {
        let mut backoff = Backoff::default();
        loop {
            let error = match self.server.post(path, &self.access.token()?, json.to_owned()).await {
                Ok(response) if !is_transient(response.status) => return Ok(response),
                Ok(response) => anyhow::anyhow!("{}", rejection(&response).0),
                Err(error) if error.is::<UsageError>() => return Err(error),
                Err(error) => error.context(format!("failed to reach the hub at {}", self.server)),
            };
            let pause = backoff.next(random()?).max(Duration::from_millis(100));
            if backoff.failures() >= ATTEMPTS {
                return Err(error.context("gave up after repeated failures"));
            }
            print_status(&format!("{error:#}; retrying in {:.1} s", pause.as_secs_f64()));
            tokio::time::sleep(pause).await;
        }
    }
}

/// Whether a retry of the same request may succeed.
fn is_transient(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}

/// The hub's error, and the index of the event in the batch that it concerns.
fn rejection(response: &HubResponse) -> (String, Option<usize>) {
    match serde_json::from_slice::<ErrorBody>(&response.body) {
        Ok(ErrorBody { detail, code, index }) => {
            // The line number identifies the event better than its index.
            let place = index.map(|index| format!("events[{index}]: ")).unwrap_or_default();
            let detail = detail.strip_prefix(&place).unwrap_or(&detail);
            (format!("the hub rejected it: {} ({})", terminal::line(detail), terminal::line(&code)), index)
        }
        Err(_) => (format!("unexpected response, not from a hub: HTTP status {}", response.status), None),
    }
}

fn report(published: &[Published]) -> anyhow::Result<()> {
    let mut text = String::new();
    for published in published {
        text.push_str(&serde_json::to_string(published)?);
        text.push('\n');
    }
    print_json(&text)
}

/// Reads lines on a separate thread, because standard input has no asynchronous reads.
fn read_lines(audience: Option<Value>) -> mpsc::Receiver<anyhow::Result<Line>> {
    let (sender, receiver) = mpsc::channel(MAX_BATCH_EVENTS);
    thread::spawn(move || {
        for (index, line) in std::io::stdin().lock().lines().enumerate() {
            let line = match line {
                Ok(line) if line.trim().is_empty() => continue,
                Ok(line) => {
                    complete_event(line.trim(), audience.as_ref()).map(|event| Line { number: index + 1, event })
                }
                Err(error) => Err(error.into()),
            };
            let line = line.with_context(|| format!("line {}", index + 1));
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Adds an ID and `audience` to an event that has none. Everything else stays unchanged.
fn complete_event(text: &str, audience: Option<&Value>) -> anyhow::Result<String> {
    let fields: BTreeMap<String, &RawValue> = serde_json::from_str(text).context("not a JSON object")?;
    let mut added = String::new();
    if !fields.contains_key("event_id") {
        added = format!("\"event_id\":\"{}\",", random_id()?);
    }
    if let Some(audience) = audience.filter(|_| !fields.contains_key("audience")) {
        added = format!("{added}\"audience\":{audience},");
    }
    if fields.is_empty() {
        added.pop();
    }
    Ok(format!("{{{added}{}", &text[1..]))
}

/// Splits a batch that is too large for one request.
fn parts(mut lines: &[Line]) -> Vec<&[Line]> {
    let mut parts = Vec::new();
    while !lines.is_empty() {
        let mut bytes = 0;
        let fitting = lines.iter().take_while(|line| {
            bytes += line.event.len();
            bytes <= MAX_BATCH_BYTES
        });
        let (part, rest) = lines.split_at(fitting.count().max(1));
        parts.push(part);
        lines = rest;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audiences_are_parsed() {
        for (text, audience_json) in [
            ("everyone", json!("everyone")),
            ("user:u1", json!({"user": "u1"})),
            ("topic:project:7", json!({"topic": "project:7"})),
            ("connection:c", json!({"connection": "c"})),
        ] {
            assert_eq!(audience(text).unwrap(), audience_json);
        }
        for text in ["", "all", "user:", "group:x", "Everyone"] {
            assert!(audience(text).is_err(), "{text}");
        }
    }

    #[test]
    fn missing_fields_are_added_and_the_rest_stays_unchanged() {
        let named = complete_event(r#"{"type":"a","data":{"n":1.00}}"#, None).unwrap();
        assert!(
            named.starts_with(r#"{"event_id":""#) && named.ends_with(r#"","type":"a","data":{"n":1.00}}"#),
            "{named}"
        );
        let given = r#"{"type":"a","event_id":"x"}"#;
        assert_eq!(complete_event(given, None).unwrap(), given);
        let everyone = json!("everyone");
        let addressed = complete_event(given, Some(&everyone)).unwrap();
        assert_eq!(addressed, r#"{"audience":"everyone","type":"a","event_id":"x"}"#);
        assert_eq!(complete_event(&addressed, Some(&json!({"user": "ann"}))).unwrap(), addressed);
        for audience in [None, Some(&everyone)] {
            assert!(serde_json::from_str::<Value>(&complete_event("{}", audience).unwrap()).is_ok());
        }
        assert!(complete_event("[1]", None).is_err() && complete_event("{", None).is_err());
    }

    #[test]
    fn large_batches_are_split() {
        let line = |number| Line { number, event: "x".repeat(MAX_BATCH_BYTES / 2) };
        let lines: Vec<_> = (1..=5).map(line).collect();
        assert_eq!(parts(&lines).iter().map(|part| part.len()).collect::<Vec<_>>(), [2, 2, 1]);
        let huge = [Line { number: 1, event: "x".repeat(MAX_BATCH_BYTES + 1) }];
        assert_eq!(parts(&huge).len(), 1);
    }
}

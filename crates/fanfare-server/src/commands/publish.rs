//! `fanfare publish`: one event, or one from each line of the standard input.

use super::{
    Usage,
    access::{Access, random_id},
    backoff::Backoff,
    http::{HubResponse, Server},
    print_json, random, say,
};
use crate::{settings::Settings, terminal};
use anyhow::{Context, bail};
use clap::ArgMatches;
use fanfare::auth::Claims;
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};
use std::{collections::BTreeMap, io::BufRead, thread, time::Duration};
use tokio::sync::mpsc;

/// Attempts at one request, some 15 seconds in all on the average.
const ATTEMPTS: u32 = 8;
const MAX_BATCH_EVENTS: usize = 100;
const MAX_BATCH_BYTES: usize = 4 << 20;

struct Publisher {
    server: Server,
    access: Access,
}

/// What became of an event.
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

/// The hub's answer to what it refuses.
#[derive(Deserialize)]
struct ExceededLimit {
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

/// A line of the standard input, counted from 1, as the event to send.
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
        serde_json::from_str(text("data")).map_err(|error| Usage(format!("--data is no JSON: {error}")))?;
    if !data.get().starts_with('{') {
        return Err(Usage("--data must be a JSON object, such as '{\"text\":\"hi\"}'".to_owned()).into());
    }
    let audience = audience(matches.get_one::<String>("audience").map_or("everyone", String::as_str))?;
    // An id of our own makes it safe to try again.
    let event_id = matches.get_one::<String>("event-id").cloned().map_or_else(random_id, Ok)?;
    let event = Event { r#type: text("type"), event_id: &event_id, audience: &audience, data };
    Ok(serde_json::to_string(&event)?)
}

fn audience(text: &str) -> Result<Value, Usage> {
    match text.split_once(':') {
        None if text == "everyone" => Ok(json!("everyone")),
        Some((kind @ ("user" | "connection" | "topic"), id)) if !id.is_empty() => Ok(json!({ kind: id })),
        _ => {
            Err(Usage(format!("--audience can't be {text:?}; expected everyone, user:ID, connection:ID or topic:NAME")))
        }
    }
}

impl Publisher {
    async fn publish_one(&self, event: &str) -> anyhow::Result<()> {
        let answer = self.post("/events", event).await?;
        if !answer.status.is_success() {
            bail!("{}", refusal(&answer).0);
        }
        report(&[serde_json::from_slice(&answer.body).context("the hub's answer can't be read")?])
    }

    /// Sends what has come in as one batch, while the next lines come in.
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
        let answer = self.post("/events/batch", &format!("[{}]", events.join(","))).await?;
        if !answer.status.is_success() {
            let (text, index) = refusal(&answer);
            let (first, last) =
                (lines.first().map_or(0, |line| line.number), lines.last().map_or(0, |line| line.number));
            match index.and_then(|index| lines.get(index)) {
                Some(line) => bail!("line {}: {text}; nothing from line {first} on was published", line.number),
                None => bail!("lines {first} to {last}: {text}; nothing from line {first} on was published"),
            }
        }
        let batch: Batch = serde_json::from_slice(&answer.body).context("the hub's answer can't be read")?;
        report(&batch.results)
    }

    /// Posts until there is an answer. The events have their ids, so none is published twice.
    async fn post(&self, path: &str, json: &str) -> anyhow::Result<HubResponse> {
        let mut backoff = Backoff::default();
        loop {
            let error = match self.server.post(path, &self.access.token()?, json.to_owned()).await {
                Ok(answer) if !is_passing(answer.status) => return Ok(answer),
                Ok(answer) => anyhow::anyhow!("{}", refusal(&answer).0),
                Err(error) if error.is::<Usage>() => return Err(error),
                Err(error) => error.context(format!("there is no hub at {}", self.server)),
            };
            let pause = backoff.next(random()?).max(Duration::from_millis(100));
            if backoff.failures() >= ATTEMPTS {
                return Err(error.context("given up"));
            }
            say(&format!("{error:#}; trying again in {:.1} s", pause.as_secs_f64()));
            tokio::time::sleep(pause).await;
        }
    }
}

/// Whether the same request may be answered differently a little later.
fn is_passing(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}

/// What the hub says against it, and about which event of a batch.
fn refusal(answer: &HubResponse) -> (String, Option<usize>) {
    match serde_json::from_slice::<ExceededLimit>(&answer.body) {
        Ok(ExceededLimit { detail, code, index }) => {
            // The line says better which event it is.
            let place = index.map(|index| format!("events[{index}]: ")).unwrap_or_default();
            let detail = detail.strip_prefix(&place).unwrap_or(&detail);
            (format!("the hub refuses it: {} ({})", terminal::line(detail), terminal::line(&code)), index)
        }
        Err(_) => (format!("what answers is no hub, or stands before it: HTTP status {}", answer.status), None),
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

/// Reads lines on a thread of its own: the standard input can't be waited for in any other way.
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

/// The event with an id and an audience, if it came without and there is one to give. All else stays as it is.
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

/// Cuts a batch where it would be too large for one request.
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
    fn audiences_are_read() {
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
    fn an_event_is_completed_and_otherwise_stays_as_it_is() {
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
    fn large_batches_are_cut() {
        let line = |number| Line { number, event: "x".repeat(MAX_BATCH_BYTES / 2) };
        let lines: Vec<_> = (1..=5).map(line).collect();
        assert_eq!(parts(&lines).iter().map(|part| part.len()).collect::<Vec<_>>(), [2, 2, 1]);
        let huge = [Line { number: 1, event: "x".repeat(MAX_BATCH_BYTES + 1) }];
        assert_eq!(parts(&huge).len(), 1);
    }
}

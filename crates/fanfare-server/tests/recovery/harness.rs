//! Hubs, and clients that record what they receive. For each client the rule holds: it receives each acknowledged
//! event, or a `gap` after the publish of the event began.

use fanfare::{Minter, auth::Claims};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};
use testbed::{HubProcess, post_event};
use tokio_tungstenite::tungstenite::{Error, Message, client};

const SECRET: &str = "a secret of thirty-two bytes, ok";

/// The time within which a hub must be ready again after the last fault, and an event must reach its clients.
pub(crate) const RECOVERY: Duration = Duration::from_secs(60);

/// The timeout of a publish request.
const ANSWER: Duration = Duration::from_secs(8);

/// The interval at which a client checks whether it should end.
const POLL: Duration = Duration::from_millis(50);

/// Starts a hub on a log in Redis, and waits until it is ready.
pub(crate) fn start(redis_url: &str, arguments: &[&str]) -> HubProcess {
    launch(redis_url, arguments).wait_until_ready(&[])
}

/// Starts a hub without waiting for it.
pub(crate) fn launch(redis_url: &str, arguments: &[&str]) -> HubProcess {
    let program = Path::new(env!("CARGO_BIN_EXE_fanfare"));
    HubProcess::launch(program, &[&["--redis-url", redis_url], arguments].concat(), &[("SECRET_KEY", SECRET)])
}

fn token(user: &str) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let claims = Claims { sub: user.to_owned(), publish: true, exp: Some(now + 3_600), ..Claims::default() };
    Minter::from_secret(SECRET).unwrap().mint(&claims)
}

/// An acknowledged event.
#[derive(Debug, Clone)]
struct Published {
    id: String,
    began: Instant,
}

/// The acknowledged events, in the order of their acknowledgement.
#[derive(Debug, Default)]
pub(crate) struct Publisher {
    published: Vec<Published>,
    next: BTreeMap<String, u64>,
    pad: usize,
}

impl Publisher {
    /// Publishes events with `pad` more bytes of data.
    pub(crate) fn padded(pad: usize) -> Self {
        Self { pad, ..Self::default() }
    }

    /// Publishes the next event of `name` once. Returns whether it was acknowledged.
    pub(crate) fn try_next(&mut self, hub: &HubProcess, name: &str) -> bool {
        let number = self.next.entry(name.to_owned()).or_default();
        *number += 1;
        let (id, began) = (format!("{name}-{number}"), Instant::now());
        let acknowledged = self.post(hub, &id).is_ok_and(|acknowledged| acknowledged);
        if acknowledged {
            self.published.push(Published { id, began });
        }
        acknowledged
    }

    /// Publishes the next `count` events of `name`, each once. All must be acknowledged.
    pub(crate) fn publish(&mut self, hub: &HubProcess, name: &str, count: usize) {
        for _ in 0..count {
            assert!(self.try_next(hub, name), "an event was not acknowledged:\n{}", hub.log());
        }
    }

    /// Publishes the next event of `name` until it is acknowledged, as backends do. Returns its ID.
    pub(crate) fn publish_surely(&mut self, hub: &HubProcess, name: &str) -> String {
        let number = self.next.entry(name.to_owned()).or_default();
        *number += 1;
        let (id, began) = (format!("{name}-{number}"), Instant::now());
        while !self.post(hub, &id).is_ok_and(|acknowledged| acknowledged) {
            assert!(began.elapsed() < RECOVERY, "{id} was not acknowledged:\n{}", hub.log());
            thread::sleep(POLL);
        }
        self.published.push(Published { id: id.clone(), began });
        id
    }

    fn post(&self, hub: &HubProcess, id: &str) -> io::Result<bool> {
        let data = json!({ "pad": "x".repeat(self.pad) });
        let body = json!({ "type": "note", "audience": "everyone", "event_id": id, "data": data }).to_string();
        let answer = post_event(hub.address(), &token("backend"), &body, ANSWER)?;
        Ok(answer.starts_with("HTTP/1.1 20"))
    }
}

/// A message that a client received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Received {
    Event(String),
    Gap(String),
}

/// A client of one hub, which reconnects with its cursor after each disconnect.
#[derive(Debug)]
pub(crate) struct Client {
    name: String,
    notes: Arc<Notes>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Notes {
    received: Mutex<Vec<(Instant, Received)>>,
    /// The position of each event.
    positions: Mutex<BTreeMap<String, String>>,
    live: AtomicBool,
    ended: AtomicBool,
}

impl Client {
    /// Connects, and waits for the first `ack`.
    pub(crate) fn connect(hub: &HubProcess, name: &str) -> Self {
        Self::resume(hub, name, None)
    }

    /// Connects with the cursor of an earlier connection.
    pub(crate) fn resume(hub: &HubProcess, name: &str, last: Option<&str>) -> Self {
        let notes = Arc::new(Notes::default());
        let (address, user, shared) = (hub.address(), name.to_owned(), notes.clone());
        let mut last = last.map(str::to_owned);
        let thread = thread::spawn(move || {
            while !shared.ended.load(Ordering::Relaxed) {
                // The client reconnects however its connection ended.
                let _ = receive(&shared, address, &user, &mut last);
                thread::sleep(POLL);
            }
        });
        let client = Self { name: name.to_owned(), notes, thread: Some(thread) };
        testbed::until("the client is connected", || client.notes.live.load(Ordering::Relaxed));
        client
    }

    /// The messages received so far.
    pub(crate) fn received(&self) -> Vec<Received> {
        self.notes.received.lock().unwrap().iter().map(|(_, received)| received.clone()).collect()
    }

    /// The position of a received event, for use as a cursor: an event ID is uncertain after a loss.
    pub(crate) fn position_of(&self, id: &str) -> String {
        self.notes.positions.lock().unwrap()[id].clone()
    }

    /// The number of gaps received.
    pub(crate) fn gaps(&self) -> usize {
        self.received().iter().filter(|received| matches!(received, Received::Gap(_))).count()
    }

    /// Waits until an event has arrived, for at most [`RECOVERY`].
    pub(crate) fn await_event(&self, id: &str) {
        let deadline = Instant::now() + RECOVERY;
        let came = || self.received().iter().any(|received| matches!(received, Received::Event(event) if event == id));
        while !came() && Instant::now() < deadline {
            thread::sleep(POLL);
        }
    }

    /// The violations of the rule.
    pub(crate) fn verdict(&self, publisher: &Publisher) -> Vec<String> {
        let received = self.notes.received.lock().unwrap();
        let mut wrong = Vec::new();
        let (mut ever, mut since_gap, mut newest) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
        for (_, received) in &*received {
            match received {
                Received::Gap(_) => {
                    since_gap.clear();
                    newest.clear();
                }
                Received::Event(id) => {
                    let (name, number) = id.rsplit_once('-').unwrap_or((id, "0"));
                    let number: u64 = number.parse().unwrap_or(0);
                    let before = newest.entry(name).or_insert(0);
                    if !since_gap.insert(id) {
                        wrong.push(format!("{id} was received twice"));
                    } else if number < *before {
                        wrong.push(format!("{id} was received after {name}-{before}"));
                    }
                    *before = number.max(*before);
                    ever.insert(id);
                }
            }
        }
        let last_gap = received.iter().rev().find(|(_, received)| matches!(received, Received::Gap(_)));
        let lost = publisher.published.iter().filter(|event| {
            let explained = last_gap.is_some_and(|(at, _)| *at > event.began);
            !ever.contains(&event.id) && !explained
        });
        let lost: Vec<_> = lost.map(|event| &*event.id).collect();
        if !lost.is_empty() {
            wrong.push(format!("{} acknowledged events were lost silently: {}", lost.len(), shortened(&lost)));
        }
        wrong.iter().map(|what| format!("client {}: {what}", self.name)).collect()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.notes.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The IDs, or the first and the last of many.
fn shortened(ids: &[&str]) -> String {
    match ids {
        [first, .., last] if ids.len() > 8 => format!("{first} to {last}"),
        ids => ids.join(", "),
    }
}

/// Reads from one connection until it ends.
fn receive(notes: &Notes, address: SocketAddr, user: &str, last: &mut Option<String>) -> Result<(), Box<Error>> {
    let stream = TcpStream::connect(address).map_err(Error::from)?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).map_err(Error::from)?;
    let cursor = last.as_ref().map_or_else(String::new, |last| format!("&last_event_id={last}"));
    let url = format!("ws://{address}/ws?token={}{cursor}", token(user));
    let (mut socket, _) = client(url, stream).map_err(|error| Error::Io(io::Error::other(error.to_string())))?;
    socket.get_ref().set_read_timeout(Some(POLL)).map_err(Error::from)?;
    while !notes.ended.load(Ordering::Relaxed) {
        let message = match socket.read() {
            Ok(Message::Text(text)) => serde_json::from_str::<Value>(&text).unwrap(),
            Ok(_) => continue,
            Err(Error::Io(error)) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                continue;
            }
            Err(error) => return Err(Box::new(error)),
        };
        *last = message["log_position"].as_str().or(message["event_id"].as_str()).map(str::to_owned);
        let note = |received| notes.received.lock().unwrap().push((Instant::now(), received));
        match message["type"].as_str().unwrap_or_default() {
            "note" => {
                let id = message["event_id"].as_str().unwrap_or_default().to_owned();
                notes.positions.lock().unwrap().extend(last.clone().map(|position| (id.clone(), position)));
                note(Received::Event(id));
            }
            "gap" => note(Received::Gap(message["reason"].as_str().unwrap_or_default().to_owned())),
            "ack" => notes.live.store(true, Ordering::Relaxed),
            "ping" => socket.send(Message::text(r#"{"type":"pong"}"#)).map_err(Box::new)?,
            _ => {}
        }
    }
    Ok(())
}

/// Waits until every hub is ready and has delivered one more event to every client, and judges what they received.
pub(crate) fn conclude(publisher: &mut Publisher, hubs: &[&HubProcess], clients: &[&Client]) {
    let begun = Instant::now();
    while !hubs.iter().all(|hub| hub.is_ready()) {
        let logs: Vec<_> = hubs.iter().map(|hub| hub.log()).collect();
        assert!(begun.elapsed() < RECOVERY, "not ready again within {RECOVERY:?}:\n{}", logs.join("\n---\n"));
        thread::sleep(POLL);
    }
    eprintln!("ready again after {:.1} s", begun.elapsed().as_secs_f64());
    for (n, hub) in hubs.iter().enumerate() {
        let last = publisher.publish_surely(hub, &format!("last{n}"));
        for client in clients {
            client.await_event(&last);
        }
    }
    let wrong: Vec<_> = clients.iter().flat_map(|client| client.verdict(publisher)).collect();
    let summaries: Vec<_> = clients.iter().map(|client| format!("{}: {}", client.name, summary(client))).collect();
    let logs: Vec<_> = hubs.iter().map(|hub| hub.log()).collect();
    assert!(wrong.is_empty(), "{}\n{}\n{}", wrong.join("\n"), summaries.join("\n"), logs.join("\n---\n"));
}

/// The received messages, with runs of events abbreviated.
fn summary(client: &Client) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut run: Option<(String, u64, u64)> = None;
    let close = |run: &mut Option<(String, u64, u64)>, parts: &mut Vec<String>| match run.take() {
        Some((name, first, last)) if first == last => parts.push(format!("{name}-{first}")),
        Some((name, first, last)) => parts.push(format!("{name}-{first}..{last}")),
        None => {}
    };
    for received in client.received() {
        match received {
            Received::Gap(reason) => {
                close(&mut run, &mut parts);
                parts.push(format!("gap({reason})"));
            }
            Received::Event(id) => {
                let (name, number) = id.rsplit_once('-').unwrap_or((&id, "0"));
                let number = number.parse().unwrap_or(0);
                match &mut run {
                    Some((of, _, last)) if of == name && *last + 1 == number => *last = number,
                    _ => {
                        close(&mut run, &mut parts);
                        run = Some((name.to_owned(), number, number));
                    }
                }
            }
        }
    }
    close(&mut run, &mut parts);
    parts.join(" ")
}

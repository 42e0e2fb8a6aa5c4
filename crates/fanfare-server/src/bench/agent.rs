//! A client process of the load: many clients on one thread with one epoll instance. It reads orders from standard
//! input, one line of JSON each, and writes reports to standard output in the same way.

use super::{
    client::{Client, Ended, Need, Phase, Reader},
    plan::Plan,
    socket::{Connector, Socket},
    tally::{Stream, Tally, Times},
};
use crate::access::TokenSigner;
use anyhow::Context;
use mio::{Events, Interest, Poll, Token, Waker};
use serde::{Deserialize, Serialize};
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant, SystemTime},
};

const WAKE: Token = Token(usize::MAX);
/// The interval of reports.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);
/// How long the hub may take to send the `ack`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The interval at which slow clients read.
const SLOW_READ_INTERVAL: Duration = Duration::from_secs(1);
/// The receive buffer of a slow client, in bytes.
const SLOW_BUFFER: usize = 4 << 10;
/// Events that have not arrived after this time without any arrival are lost.
const LOSS_TIMEOUT: Duration = Duration::from_secs(5);
/// The average pause before a rejected client retries. It varies by half in both directions.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// An order from the parent process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// The first line.
    Start(Box<Setup>),
    /// Publishing begins.
    Publishing,
    /// All clients disconnect and reconnect.
    Storm,
    /// Publishing has ended, with this number of events in each stream.
    Finish(Vec<(Stream, u32)>),
}

/// The configuration of a client process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) plan: Plan,
    pub(crate) run: u64,
    /// The index of the process.
    pub(crate) process: u64,
    /// The token, if all clients share one.
    pub(crate) token: Option<String>,
}

/// A report to the parent process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    Progress(Progress),
    /// For each event, when the last client of this process received it, and how many received it.
    Spread(Vec<((Stream, u32), (u64, u64))>),
    Done(Box<Tally>),
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub(crate) live: u64,
    pub(crate) failed: u64,
    pub(crate) broken: u64,
    pub(crate) deliveries: u64,
    pub(crate) bytes: u64,
    /// Latencies since the last report.
    pub(crate) latency: Times,
}

/// A client and its socket.
struct Slot {
    client: Client,
    socket: Option<Socket>,
    /// Whether the request for the upgrade was sent.
    asked: bool,
    slow: bool,
    /// Whether it reads only at its timer.
    dozing: bool,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Retry,
    /// It must be live by now, unless a later attempt than the one begun then is in progress.
    Live(u64),
    Read,
}

struct Agent {
    setup: Setup,
    signer: Option<TokenSigner>,
    connector: Connector,
    poll: Poll,
    slots: Vec<Slot>,
    /// The clients to connect next, the rate, and the time and count that the rate is measured from.
    queue: VecDeque<usize>,
    pace: f64,
    paced: (Instant, u64),
    timers: BinaryHeap<Reverse<(Instant, usize, Due)>>,
    reader: Reader,
    tally: Tally,
    live: u64,
    publishing: bool,
    /// When the churn began, and how many clients have reconnected since.
    churn: Option<(Instant, u64)>,
    storm: Option<Instant>,
    scratch: Vec<u8>,
    needs: Vec<Need>,
    finish: Option<HashMap<Stream, u32>>,
    /// When data last arrived, and the number of deliveries at that time.
    moved: (Instant, u64),
}

/// Runs until standard input ends. `signer` signs a token for each client, unless they share one.
pub(crate) fn run(signer: Option<TokenSigner>) -> anyhow::Result<()> {
    let mut lines = BufReader::new(io::stdin()).lines();
    let first = lines.next().context("standard input has no orders")??;
    let Order::Start(setup) = serde_json::from_str(&first)? else { anyhow::bail!("the first order is not Start") };
    let poll = Poll::new()?;
    let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
    let (orders, taken) = mpsc::channel();
    thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let Ok(order) = serde_json::from_str(&line) else { break };
            if orders.send(order).is_err() || waker.wake().is_err() {
                break;
            }
        }
        // The parent process has exited.
        std::process::exit(0);
    });
    Agent::new(*setup, signer, poll)?.work(&taken)
}

fn now_us() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

impl Agent {
    fn new(setup: Setup, signer: Option<TokenSigner>, poll: Poll) -> anyhow::Result<Self> {
        let plan = &setup.plan;
        let part = plan.part(setup.process);
        let one_user = setup.token.is_some();
        let slots = part.clone().map(|n| {
            let slow = plan.is_slow(n);
            let client = Client::new(plan.topic_of(n), if one_user { 0 } else { n }, slow);
            Slot { client, socket: None, asked: false, slow, dozing: false }
        });
        let slots: Vec<_> = slots.collect();
        let pace = plan.ramp * (part.end - part.start) as f64 / plan.connections as f64;
        Ok(Self {
            connector: Connector::new(plan)?,
            signer,
            poll,
            queue: (0..slots.len()).collect(),
            slots,
            pace,
            paced: (Instant::now(), 0),
            timers: BinaryHeap::new(),
            reader: Reader::new(setup.run),
            tally: Tally::default(),
            live: 0,
            publishing: false,
            churn: None,
            storm: None,
            scratch: vec![0; 256 << 10],
            needs: vec![],
            finish: None,
            moved: (Instant::now(), 0),
            setup,
        })
    }

    fn work(mut self, orders: &mpsc::Receiver<Order>) -> anyhow::Result<()> {
        let mut events = Events::with_capacity(1_024);
        let mut report = Instant::now() + REPORT_INTERVAL;
        loop {
            let wake = self.next_due().into_iter().chain([report]).min().unwrap_or(report);
            match self.poll.poll(&mut events, Some(wake.saturating_duration_since(Instant::now()))) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => result?,
            }
            for event in &events {
                if event.token() != WAKE {
                    self.ready(event.token().0);
                }
            }
            orders.try_iter().for_each(|order| self.obey(order));
            self.timers();
            self.connect_due();
            self.churn();
            if Instant::now() >= report {
                report = Instant::now() + REPORT_INTERVAL;
                self.report()?;
                if self.has_finished() {
                    break;
                }
            }
        }
        self.done()?;
        // The connections stay open until the parent has measured the hub.
        loop {
            thread::park();
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Start(_) => {}
            Order::Publishing => {
                self.publishing = true;
                self.churn = (self.churn_pace() > 0.0).then(|| (Instant::now(), 0));
            }
            Order::Storm => self.storm(),
            Order::Finish(totals) => {
                self.churn = None;
                self.finish = Some(totals.into_iter().collect());
            }
        }
    }

    fn storm(&mut self) {
        let now = Instant::now();
        let spread = self.setup.plan.storm_spread.as_secs_f64().max(0.001);
        let mut away = Vec::new();
        for (at, slot) in self.slots.iter_mut().enumerate() {
            if slot.client.phase == Phase::Live {
                slot.socket = None;
                slot.client.phase = Phase::Away;
                away.push(at);
            }
        }
        self.live -= away.len() as u64;
        fastrand::shuffle(&mut away);
        self.pace = away.len() as f64 / spread;
        self.paced = (now, 0);
        self.queue.extend(away);
        self.storm = Some(now);
    }

    /// Clients of this process that reconnect a second.
    fn churn_pace(&self) -> f64 {
        let Plan { churn, connections, .. } = self.setup.plan;
        churn * self.slots.len() as f64 / connections.max(1) as f64
    }

    /// Disconnects the next clients of the churn without a close frame. They reconnect within a second, with their
    /// cursors.
    fn churn(&mut self) {
        let Some((since, left)) = self.churn else { return };
        let due = (since.elapsed().as_secs_f64() * self.churn_pace()) as u64;
        for _ in left..due {
            let at = fastrand::usize(..self.slots.len());
            let slot = &mut self.slots[at];
            if slot.client.phase == Phase::Live {
                slot.socket = None;
                slot.client.phase = Phase::Away;
                self.live -= 1;
                self.tally.churned += 1;
                self.timers.push(Reverse((Instant::now() + RETRY_PAUSE.mul_f64(fastrand::f64()), at, Due::Retry)));
            }
        }
        self.churn = Some((since, left.max(due)));
    }

    /// When the next client connects or the next timer expires.
    fn next_due(&self) -> Option<Instant> {
        let (since, started) = self.paced;
        let connect =
            (!self.queue.is_empty()).then(|| since + Duration::from_secs_f64((started + 1) as f64 / self.pace));
        let timer = self.timers.peek().map(|Reverse((at, ..))| *at);
        let churn =
            self.churn.map(|(since, left)| since + Duration::from_secs_f64((left + 1) as f64 / self.churn_pace()));
        connect.into_iter().chain(timer).chain(churn).min()
    }

    fn connect_due(&mut self) {
        let (since, started) = self.paced;
        let allowed = (since.elapsed().as_secs_f64() * self.pace) as u64;
        // Sockets are read in between, even if this process is late.
        for _ in 0..allowed.saturating_sub(started).min(64) {
            let Some(at) = self.queue.pop_front() else { break };
            self.paced.1 += 1;
            self.connect(at);
        }
    }

    fn connect(&mut self, at: usize) {
        let slot = &mut self.slots[at];
        let began = now_us();
        slot.client.begin(began);
        slot.asked = false;
        let source = self.setup.plan.part(self.setup.process).start as usize + at;
        let narrow = slot.slow.then_some(SLOW_BUFFER);
        let socket = self.connector.connect(source, narrow).and_then(|mut socket| {
            self.poll.registry().register(socket.tcp(), Token(at), Interest::READABLE | Interest::WRITABLE)?;
            Ok(socket)
        });
        match socket {
            Ok(socket) => {
                slot.socket = Some(socket);
                self.timers.push(Reverse((Instant::now() + CONNECT_TIMEOUT, at, Due::Live(began))));
            }
            Err(error) => self.ended(at, Ended { why: describe(&error), back_after_ms: None }),
        }
    }

    fn timers(&mut self) {
        let now = Instant::now();
        while let Some(Reverse((at, ..))) = self.timers.peek()
            && *at <= now
            && let Some(Reverse((_, at, due))) = self.timers.pop()
        {
            let slot = &mut self.slots[at];
            match due {
                Due::Retry if slot.client.phase == Phase::Away && slot.socket.is_none() => self.connect(at),
                Due::Live(began) if slot.client.began_us == began && slot.client.phase != Phase::Live => {
                    let why = if slot.client.phase == Phase::Away { continue } else { "no ack in time" };
                    self.ended(at, Ended { why: why.to_owned(), back_after_ms: None });
                }
                Due::Read => {
                    slot.dozing = false;
                    self.read(at);
                }
                Due::Retry | Due::Live(_) => {}
            }
        }
    }

    fn ready(&mut self, at: usize) {
        let Some(slot) = self.slots.get_mut(at) else { return };
        if !slot.asked && !self.ask(at) {
            return;
        }
        let slot = &mut self.slots[at];
        if slot.slow && slot.client.phase == Phase::Live {
            if !std::mem::replace(&mut slot.dozing, true) {
                self.timers.push(Reverse((Instant::now() + SLOW_READ_INTERVAL, at, Due::Read)));
            }
            return;
        }
        self.read(at);
    }

    /// Sends the upgrade request as soon as the socket is connected. Returns whether it was sent.
    fn ask(&mut self, at: usize) -> bool {
        let token = match self.token(at) {
            Ok(token) => token,
            Err(error) => {
                self.ended(at, Ended { why: format!("no token: {error}"), back_after_ms: None });
                return false;
            }
        };
        let slot = &mut self.slots[at];
        let Some(socket) = &mut slot.socket else { return false };
        let Connector { path, host, .. } = &self.connector;
        let request = slot.client.request(self.setup.run, path, host, &token, self.setup.plan.topics > 0);
        match socket.write(&request) {
            Ok(written) if written == request.len() => {
                slot.asked = true;
                true
            }
            Ok(_) => {
                self.ended(at, Ended { why: "the request was not written".to_owned(), back_after_ms: None });
                false
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => false,
            Err(error) => {
                self.ended(at, Ended { why: describe(&error), back_after_ms: None });
                false
            }
        }
    }

    fn token(&self, at: usize) -> anyhow::Result<String> {
        match (&self.setup.token, &self.signer) {
            (Some(token), _) => Ok(token.clone()),
            (None, Some(signer)) => {
                let n = self.setup.plan.part(self.setup.process).start + at as u64;
                signer.token_of(&user_name(n))
            }
            // The bare write loop needs no token.
            (None, None) => Ok(String::new()),
        }
    }

    fn read(&mut self, at: usize) {
        let Self { slots, reader, tally, scratch, needs, .. } = self;
        let Slot { client, socket: Some(socket), .. } = &mut slots[at] else { return };
        let result = read(client, socket, scratch, reader, tally, needs).and_then(|()| {
            for need in needs.drain(..) {
                match need {
                    Need::Send(frame) => send(socket, &frame)?,
                    Need::Joined => {
                        self.live += 1;
                        if self.publishing {
                            client.connects_late();
                        }
                    }
                }
            }
            Ok(())
        });
        needs.clear();
        if let Err(ended) = result {
            self.ended(at, ended);
        }
        self.storm_over();
    }

    fn storm_over(&mut self) {
        if let Some(began) = self.storm
            && self.live == self.slots.len() as u64
        {
            self.storm = None;
            self.tally.storms.push(began.elapsed().as_micros() as u64);
        }
    }

    /// Handles a connection that ended or was never established. The client reconnects.
    fn ended(&mut self, at: usize, ended: Ended) {
        let slot = &mut self.slots[at];
        slot.socket = None;
        if std::mem::replace(&mut slot.client.phase, Phase::Away) == Phase::Live {
            self.live -= 1;
            self.tally.broken += 1;
        } else {
            self.tally.failed += 1;
        }
        // A retry with the same rejected token fails too.
        let rejected = ended.why.starts_with("closed 1008 ");
        self.tally.error(ended.why);
        if rejected {
            return;
        }
        let pause =
            ended.back_after_ms.map_or_else(|| RETRY_PAUSE.mul_f64(0.5 + fastrand::f64()), Duration::from_millis);
        self.timers.push(Reverse((Instant::now() + pause, at, Due::Retry)));
    }

    fn report(&mut self) -> anyhow::Result<()> {
        let Tally { failed, broken, deliveries, bytes, .. } = self.tally;
        let latency = std::mem::take(&mut self.tally.recent);
        print_status(&Report::Progress(Progress { live: self.live, failed, broken, deliveries, bytes, latency }))
    }

    /// Whether all events have arrived, or none has arrived for a while.
    fn has_finished(&mut self) -> bool {
        let Some(totals) = &self.finish else { return false };
        if self.tally.deliveries != self.moved.1 {
            self.moved = (Instant::now(), self.tally.deliveries);
        }
        let total = |stream| totals.get(&stream).copied().unwrap_or(0);
        let due: u64 = self.slots.iter().map(|slot| slot.client.due(total)).sum();
        // Clients of the churn that are disconnected reconnect first.
        let complete = self.setup.plan.churn == 0.0 || self.live == self.slots.len() as u64;
        let over = due == 0 && complete || self.moved.0.elapsed() > LOSS_TIMEOUT;
        if over {
            self.tally.lost += due;
        }
        over
    }

    fn done(&mut self) -> anyhow::Result<()> {
        self.tally.absent = self.slots.len() as u64 - self.live;
        let spread: Vec<_> = std::mem::take(&mut self.tally.spread).into_iter().collect();
        for part in spread.chunks(10_000) {
            print_status(&Report::Spread(part.to_vec()))?;
        }
        print_status(&Report::Done(Box::new(std::mem::take(&mut self.tally))))
    }
}

/// Reads until the socket is empty.
fn read(
    client: &mut Client,
    socket: &mut Socket,
    scratch: &mut [u8],
    reader: &mut Reader,
    tally: &mut Tally,
    needs: &mut Vec<Need>,
) -> Result<(), Ended> {
    loop {
        let kept = client.rest.len();
        scratch[..kept].copy_from_slice(&client.rest);
        let filled = match socket.read(&mut scratch[kept..]) {
            Ok(0) => return Err(Ended { why: "closed without a close frame".to_owned(), back_after_ms: None }),
            Ok(count) => kept + count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(Ended { why: describe(&error), back_after_ms: None }),
        };
        let used = client.take(&scratch[..filled], now_us(), reader, tally, needs)?;
        client.rest.clear();
        client.rest.extend_from_slice(&scratch[used..filled]);
        if client.rest.is_empty() {
            // An idle client needs no buffer.
            client.rest = Vec::new();
        }
        // On Linux a read that does not fill the buffer has emptied the socket, and epoll reports later data.
        if filled < scratch.len() && socket.is_plain() {
            return Ok(());
        }
    }
}

fn send(socket: &mut Socket, frame: &[u8]) -> Result<(), Ended> {
    match socket.write(frame) {
        Ok(written) if written == frame.len() => Ok(()),
        Ok(_) => Err(Ended { why: "a pong was not written".to_owned(), back_after_ms: None }),
        Err(error) => Err(Ended { why: describe(&error), back_after_ms: None }),
    }
}

fn describe(error: &io::Error) -> String {
    match error.kind() {
        // Without the error number that the system adds.
        ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        ErrorKind::ConnectionReset => "connection reset".to_owned(),
        ErrorKind::BrokenPipe => "connection broken".to_owned(),
        _ => error.to_string(),
    }
}

/// The user of a client, unless all clients share one.
pub(crate) fn user_name(client: u64) -> String {
    format!("bench-{client}")
}

fn print_status(report: &Report) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(&line)?;
    Ok(stdout.flush()?)
}

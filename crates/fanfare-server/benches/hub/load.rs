//! The load: many clients of several servers, and a publisher for each server, on one thread with one epoll instance.

use crate::{
    client::{self, Client},
    clock::monotonic_ns,
    event,
    publisher::Publisher,
    token,
};
use anyhow::{Context, Result, ensure};
use mio::{Events, Poll, Token};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use std::{
    io::ErrorKind,
    net::SocketAddr,
    time::{Duration, Instant},
};

/// The timeout of every wait.
const DEADLINE: Duration = Duration::from_secs(30);

/// epoll tokens from here on are publishers.
const PUBLISHERS: usize = 1 << 32;

/// Many clients of several servers, and a publisher for each server.
#[derive(Debug)]
pub(crate) struct Load {
    poll: Poll,
    events: Events,
    scratch: Vec<u8>,
    clients: Vec<(usize, Client)>,
    targets: Vec<Target>,
    /// The time from sending to receipt in nanoseconds, for each event since [`Load::take_receipts`].
    receipts: Option<Vec<u64>>,
    acks_us: Vec<u64>,
}

/// A server under load.
#[derive(Debug)]
struct Target {
    address: SocketAddr,
    publisher: Publisher,
    /// The epoll tokens of its clients in `Load::clients`.
    clients: Vec<usize>,
    published: u64,
    /// The number of its clients that receive each event.
    readers: u64,
    /// The number of deliveries to its clients that are expected, in total.
    due: u64,
    frames: u64,
    events: u64,
}

impl Target {
    fn note_published(&mut self, count: u64) {
        self.published += count;
        self.due += count * self.readers;
    }
}

impl Load {
    /// Pins the load to the last core. Otherwise the scheduler would move it to the core of the server that wakes it,
    /// and its reads would wait for the server's writes.
    pub(crate) fn new() -> Result<Self> {
        let this = Pid::from_raw(0);
        let mut cores = CpuSet::new();
        let allowed = sched_getaffinity(this)?;
        if let Some(last) = (0..CpuSet::count()).rev().find(|&core| allowed.is_set(core).unwrap_or(false)) {
            cores.set(last)?;
            sched_setaffinity(this, &cores)?;
        }
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            scratch: vec![0; 256 << 10],
            clients: vec![],
            targets: vec![],
            receipts: None,
            acks_us: vec![],
        })
    }

    /// Adds a server. Returns its number.
    pub(crate) fn add_target(&mut self, address: SocketAddr) -> Result<usize> {
        let number = self.targets.len();
        let bearer = token::mint("publisher", true)?;
        let publisher = Publisher::connect(address, &bearer, self.poll.registry(), Token(PUBLISHERS + number))?;
        self.targets.push(Target {
            address,
            publisher,
            clients: vec![],
            published: 0,
            readers: 0,
            due: 0,
            frames: 0,
            events: 0,
        });
        Ok(number)
    }

    /// Opens `count` connections at `rate` a second, each of a user of its own, and waits for their `ack`. Returns the
    /// sorted times from connect to `ack`, in microseconds.
    pub(crate) fn connect(&mut self, target: usize, count: usize, rate: u32) -> Result<Vec<u64>> {
        let address = self.targets[target].address;
        let last = self.targets[target].published;
        let requests = (0..count)
            .map(|n| Ok(client::upgrade(address, &token::mint(&format!("user-{n}"), false)?)))
            .collect::<Result<Vec<_>>>()?;
        let start = Instant::now();
        for (request, n) in requests.iter().zip(0u32..) {
            self.pump_until(start + Duration::from_secs(1) * n / rate)?;
            let at = self.clients.len();
            let client = Client::connect(address, request, self.poll.registry(), Token(at), last)?;
            self.clients.push((target, client));
            self.targets[target].clients.push(at);
        }
        self.targets[target].readers += count as u64;
        self.wait_for("all acks", |load| load.acks_us.len() == count)?;
        let mut acks = std::mem::take(&mut self.acks_us);
        acks.sort_unstable();
        Ok(acks)
    }

    /// Publishes one event as soon as the publisher is idle.
    pub(crate) fn publish(&mut self, target: usize) -> Result<()> {
        self.wait_for("the response to the publisher", |load| load.targets[target].publisher.is_idle())?;
        let target = &mut self.targets[target];
        target.note_published(1);
        target.publisher.post("/events", &event::to_everyone(event::write(target.published, monotonic_ns()?)))
    }

    /// Publishes up to `most` events in one batch, if the publisher is idle and the slowest client would then lag by at
    /// most `ahead` events.
    pub(crate) fn publish_batch(&mut self, number: usize, most: u64, ahead: u64) -> Result<()> {
        let target = &mut self.targets[number];
        // The average is checked first: it is cheap, and the slowest client cannot be ahead of it.
        if !target.publisher.is_idle() || target.due - target.events > ahead * target.clients.len() as u64 {
            return Ok(());
        }
        let slowest = target.clients.iter().map(|&at| self.clients[at].1.last).min().unwrap_or(0);
        let count = most.min((slowest + ahead).saturating_sub(target.published));
        // Small batches would measure HTTP.
        if count < most.min(ahead) / 2 {
            return Ok(());
        }
        let sent = monotonic_ns()?;
        let first = target.published + 1;
        target.note_published(count);
        let body =
            event::batch((first..=target.published).map(|counter| event::to_everyone(event::write(counter, sent))));
        target.publisher.post("/events/batch", &body)
    }

    /// Makes a target that is part of the benchmark publish the next event from within its process.
    pub(crate) fn have_published(&mut self, target: usize) -> Result<()> {
        self.wait_for("the response to the publisher", |load| load.targets[target].publisher.is_idle())?;
        let target = &mut self.targets[target];
        target.note_published(1);
        target.publisher.post("/bench/publish", target.published.to_string().as_bytes())
    }

    /// From now on, the target's events are for only one of its clients.
    pub(crate) fn expect_one_reader(&mut self, target: usize) {
        self.targets[target].readers = 1;
    }

    /// Waits until every client of the target has received all its events.
    pub(crate) fn wait_all_received(&mut self, target: usize) -> Result<()> {
        self.wait_for("the last event at every client", |load| {
            let target = &load.targets[target];
            target.publisher.is_idle() && target.events == target.due
        })
    }

    /// The number of frames that the target's clients have received.
    pub(crate) fn frames(&self, target: usize) -> u64 {
        self.targets[target].frames
    }

    /// Starts to record the delivery times.
    pub(crate) fn note_receipts(&mut self) {
        self.receipts = Some(vec![]);
    }

    /// The sorted delivery times of the events since [`Load::note_receipts`], in nanoseconds.
    pub(crate) fn take_receipts(&mut self) -> Vec<u64> {
        let mut receipts = self.receipts.take().unwrap_or_default();
        receipts.sort_unstable();
        receipts
    }

    /// Closes the connections of a target.
    pub(crate) fn disconnect_all(&mut self) {
        self.clients.clear();
        for target in &mut self.targets {
            target.clients.clear();
        }
    }

    /// Serves all connections until `instant`, and at least once: a load that is late must continue to read.
    pub(crate) fn pump_until(&mut self, instant: Instant) -> Result<()> {
        loop {
            let left = instant.saturating_duration_since(Instant::now());
            self.pump(left)?;
            if left.is_zero() {
                return Ok(());
            }
        }
    }

    /// Waits at most `timeout` for I/O events, and handles them.
    pub(crate) fn pump(&mut self, timeout: Duration) -> Result<()> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            result => result?,
        }
        for event in &self.events {
            let Token(at) = event.token();
            if let Some(number) = at.checked_sub(PUBLISHERS) {
                self.targets[number].publisher.drive()?;
                continue;
            }
            let Some((number, client)) = self.clients.get_mut(at) else {
                continue;
            };
            let receipts = &mut self.receipts;
            let got = client.read(&mut self.scratch, &mut |payload| {
                if let Some(receipts) = receipts {
                    let now = monotonic_ns().unwrap_or(u64::MAX);
                    receipts.push(now - event::sent_ns(payload).unwrap_or(0));
                }
            });
            let got = got.with_context(|| format!("connection {at} to {}", self.targets[*number].address))?;
            self.acks_us.extend(got.ack_us);
            let target = &mut self.targets[*number];
            target.frames += got.frames;
            target.events += got.events;
        }
        Ok(())
    }

    fn wait_for(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<()> {
        let deadline = Instant::now() + DEADLINE;
        while !done(self) {
            ensure!(Instant::now() < deadline, "timed out after {DEADLINE:?}: {what}");
            self.pump(Duration::from_millis(100))?;
        }
        Ok(())
    }
}

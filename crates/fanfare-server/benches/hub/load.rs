//! The load: many clients of several servers and a publisher for each, on one thread with one epoll.

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

/// How long anything that must happen may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// Tokens from here on are publishers.
const PUBLISHERS: usize = 1 << 32;

/// Many clients of several servers, and a publisher for each.
#[derive(Debug)]
pub(crate) struct Load {
    poll: Poll,
    events: Events,
    scratch: Vec<u8>,
    clients: Vec<(usize, Client)>,
    targets: Vec<Target>,
    /// From sending to receipt in nanoseconds, for each event since [`Load::take_receipts`].
    receipts: Option<Vec<u64>>,
    acks_us: Vec<u64>,
}

/// A server under load.
#[derive(Debug)]
struct Target {
    address: SocketAddr,
    publisher: Publisher,
    /// The tokens of its clients in `Load::clients`.
    clients: Vec<usize>,
    published: u64,
    /// How many of its clients each event is for.
    readers: u64,
    /// Events that its clients have to receive, all together.
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
    /// The load keeps to the last core, or the scheduler would move it under the server that wakes it: what it reads
    /// would then wait for what is still being written.
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

    /// Adds a server; the number it gets names it from then on.
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

    /// Opens `count` connections at `rate` a second, each of a user of its own, and waits for their acks. Gives the
    /// sorted microseconds from connect to ack.
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

    /// Publishes one event as soon as the publisher is free.
    pub(crate) fn publish(&mut self, target: usize) -> Result<()> {
        self.wait_for("the publisher's answer", |load| load.targets[target].publisher.is_idle())?;
        let target = &mut self.targets[target];
        target.note_published(1);
        target.publisher.post("/events", &event::to_everyone(event::write(target.published, monotonic_ns()?)))
    }

    /// Publishes up to `most` events in one batch if the publisher is free and the slowest client would then be no
    /// more than `ahead` events behind.
    pub(crate) fn publish_batch(&mut self, number: usize, most: u64, ahead: u64) -> Result<()> {
        let target = &mut self.targets[number];
        // The average first: it costs nothing, and the slowest can't be better.
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

    /// Has a target that is the benchmark's own publish the next event from within its process.
    pub(crate) fn have_published(&mut self, target: usize) -> Result<()> {
        self.wait_for("the publisher's answer", |load| load.targets[target].publisher.is_idle())?;
        let target = &mut self.targets[target];
        target.note_published(1);
        target.publisher.post("/bench/publish", target.published.to_string().as_bytes())
    }

    /// From now on the target's events are for one of its clients alone.
    pub(crate) fn expect_one_reader(&mut self, target: usize) {
        self.targets[target].readers = 1;
    }

    /// Waits until every client of the target has every event that is for it.
    pub(crate) fn wait_all_received(&mut self, target: usize) -> Result<()> {
        self.wait_for("the last event at every client", |load| {
            let target = &load.targets[target];
            target.publisher.is_idle() && target.events == target.due
        })
    }

    /// Frames that the target's clients have received.
    pub(crate) fn frames(&self, target: usize) -> u64 {
        self.targets[target].frames
    }

    /// Starts to note how long each event was on its way.
    pub(crate) fn note_receipts(&mut self) {
        self.receipts = Some(vec![]);
    }

    /// The sorted nanoseconds that the events since [`Load::note_receipts`] were on their way.
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

    /// Serves all connections until `instant`, and once if that is past: a load that is late must go on reading.
    pub(crate) fn pump_until(&mut self, instant: Instant) -> Result<()> {
        loop {
            let left = instant.saturating_duration_since(Instant::now());
            self.pump(left)?;
            if left.is_zero() {
                return Ok(());
            }
        }
    }

    /// Waits at most `timeout` for something to do and does it.
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
            ensure!(Instant::now() < deadline, "waited {DEADLINE:?} in vain for {what}");
            self.pump(Duration::from_millis(100))?;
        }
        Ok(())
    }
}

//! Pauses of the driver, during which the hub does not run: a session table under virtual time.

#![expect(clippy::unwrap_used, reason = "a failed precondition fails the test")]

use fanfare_core::{
    CloseCode, ConnectionId, Grant, Lineage,
    session::{ConnectRequest, Denied, Settings},
    session_table::{Served, SessionTable, Slot},
    time::Now,
    window::{Bounds, Window},
    ws,
};
use std::collections::HashMap;

const HEARTBEAT_MS: u64 = 1_000;
const TIMEOUT_MS: u64 = 3_000;
const PAUSE_MS: u64 = 8_000;
const CLIENTS: usize = 40;

/// A driver, and the unread bytes in the sockets of its clients.
struct World {
    window: Window,
    sessions: SessionTable,
    now: Now,
    slots: Vec<Slot>,
    /// Bytes that clients have sent and the driver has not read.
    unread: HashMap<Slot, Vec<u8>>,
    /// Returns whether the client of a slot answers pings.
    answer: fn(usize) -> bool,
    /// Whether the driver reads when a socket becomes readable. If not, it reads only before closing a silent client.
    events: bool,
    pings: usize,
    closed: HashMap<Slot, u64>,
}

impl World {
    fn new(frames_per_second: u32, answer: fn(usize) -> bool) -> Self {
        let settings = Settings {
            heartbeat_ms: HEARTBEAT_MS,
            timeout_ms: TIMEOUT_MS,
            close_ms: 60_000,
            limits: ws::Limits { max_frame_bytes: 1_000, max_message_bytes: 1_000 },
            frames_per_second,
            max_topics: 10,
            warn_ms: 60_000,
            echo: false,
        };
        let window = Window::new(
            Lineage::new(1),
            0,
            Bounds { events: 10, bytes: 10_000, age_ms: 60_000, ids: 1_000, ids_ms: 120_000 },
        );
        let now = Now { mono_ms: 5_000, unix_ms: 1_000_000 };
        let mut sessions = SessionTable::new(settings, 1, 0);
        sessions.woken(u64::MAX, now);
        let slots = (0..CLIENTS).map(|n| {
            let grant = Grant { user: "ann".into(), ..Grant::default() };
            let request = ConnectRequest::new(grant, ConnectionId(n as u128), None, [].into_iter(), 10);
            sessions.connect(request, window.start(None, ConnectionId(1)), 0, now)
        });
        let slots = slots.collect();
        let mut world = Self {
            window,
            sessions,
            now,
            slots,
            unread: HashMap::new(),
            answer,
            events: true,
            pings: 0,
            closed: HashMap::new(),
        };
        world.serve();
        world
    }

    /// Runs the driver for `ms` milliseconds, and handles each timer when it is due.
    fn run(&mut self, ms: u64) {
        let end = self.now.mono_ms + ms;
        while let Some(due) = self.sessions.next_due().filter(|due| *due <= end) {
            self.pass(due.saturating_sub(self.now.mono_ms));
            self.wake(due);
        }
        self.pass(end - self.now.mono_ms);
    }

    fn pass(&mut self, ms: u64) {
        self.now.mono_ms += ms;
        self.now.unix_ms += ms;
    }

    /// Wakes the driver, which was due to run at `wanted_ms`.
    fn wake(&mut self, wanted_ms: u64) -> u64 {
        let paused_ms = self.sessions.woken(wanted_ms, self.now);
        if self.events {
            self.slots.clone().into_iter().for_each(|slot| self.read(slot));
        }
        let (now, unread) = (self.now, &mut self.unread);
        self.sessions.timeouts(now, &mut |sessions, slot| {
            input(sessions, slot, unread.remove(&slot), now);
            true
        });
        self.serve();
        paused_ms
    }

    fn read(&mut self, slot: Slot) {
        input(&mut self.sessions, slot, self.unread.remove(&slot), self.now);
    }

    fn send(&mut self, slot: Slot, text: &str) {
        let bytes = self.unread.entry(slot).or_default();
        bytes.extend([0x81, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0]);
        bytes.extend_from_slice(text.as_bytes());
    }

    fn serve(&mut self) {
        while let Some(slot) = self.sessions.next_ready() {
            let mut bytes = Vec::new();
            let served = self.sessions.serve(slot, &self.window, self.now, &mut |slices| {
                slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
                slices.iter().map(|slice| slice.len()).sum()
            });
            assert_ne!(served, Served::Blocked);
            let pings = String::from_utf8_lossy(&bytes).matches(r#""type":"ping""#).count();
            self.pings += pings;
            if pings > 0 && (self.answer)(slot as usize) {
                self.send(slot, r#"{"type":"pong"}"#);
            }
            if let Some(code) = self.sessions.session(slot).unwrap().ended() {
                assert_eq!(code, CloseCode::HeartbeatTimeout);
                self.closed.entry(slot).or_insert(self.now.mono_ms);
            }
        }
    }

    /// Stops the process for [`PAUSE_MS`]. Timers become due in the meantime.
    fn pause(&mut self) {
        let wanted_ms = self.sessions.next_due().unwrap();
        self.pass(PAUSE_MS);
        assert!(self.wake(wanted_ms) >= PAUSE_MS - HEARTBEAT_MS);
    }
}

fn input(sessions: &mut SessionTable, slot: Slot, bytes: Option<Vec<u8>>, now: Now) {
    let denied = |_: &str| Err(Denied { code: "no", message: String::new() });
    sessions.input(slot, &mut bytes.unwrap_or_default(), now, &denied);
}

#[test]
fn a_pause_closes_no_client_that_answers_pings() {
    for (before_ms, events) in [(0, true), (999, true), (1_500, true), (1_500, false)] {
        let mut world = World::new(0, |_| true);
        world.run(before_ms);
        world.events = events;
        world.pings = 0;
        world.pause();
        assert_eq!(world.pings, CLIENTS, "each client is pinged once, immediately");
        world.run(20_000);
        assert_eq!(world.closed, HashMap::new(), "{before_ms} {events}");
    }
}

#[test]
fn a_client_that_does_not_answer_is_closed_within_the_heartbeat_timeout_after_a_pause() {
    let mut world = World::new(0, |slot| slot % 2 == 0);
    world.run(1_500);
    world.pause();
    let woken_ms = world.now.mono_ms;
    assert_eq!(world.closed.len(), 0);
    world.run(20_000);
    assert_eq!(world.closed.len(), CLIENTS / 2);
    assert!(world.closed.iter().all(|(slot, at)| slot % 2 == 1 && *at <= woken_ms + TIMEOUT_MS), "{:?}", world.closed);
}

#[test]
fn a_client_that_does_not_answer_is_closed_at_the_heartbeat_timeout() {
    let mut world = World::new(0, |slot| slot % 2 == 0);
    let begin_ms = world.now.mono_ms;
    world.run(20_000);
    assert_eq!(world.closed.len(), CLIENTS / 2);
    assert!(world.closed.values().all(|at| *at == begin_ms + TIMEOUT_MS), "{:?}", world.closed);
}

#[test]
fn repeated_short_delays_of_the_driver_close_only_the_clients_that_do_not_answer() {
    let mut world = World::new(0, |slot| slot % 2 == 0);
    let end = world.now.mono_ms + 30_000;
    while world.now.mono_ms < end {
        let wanted_ms = world.sessions.next_due().unwrap();
        world.pass(wanted_ms.saturating_sub(world.now.mono_ms) + 700);
        assert_eq!(world.wake(wanted_ms), 0);
    }
    assert_eq!(world.closed.len(), CLIENTS / 2);
    assert!(world.closed.keys().all(|slot| slot % 2 == 1));
}

#[test]
fn the_socket_of_a_silent_client_is_read_before_the_client_is_closed() {
    let mut world = World::new(0, |_| true);
    world.events = false;
    world.run(30_000);
    assert_eq!(world.closed, HashMap::new());
}

#[test]
fn frames_that_were_sent_during_a_pause_do_not_exceed_the_rate() {
    let mut world = World::new(10, |_| true);
    world.run(1_500);
    let count = PAUSE_MS / 1_000 * 10;
    for slot in world.slots.clone() {
        (0..count).for_each(|_| world.send(slot, r#"{"type":"pong"}"#));
    }
    world.pause();
    assert_eq!(world.closed, HashMap::new());
    assert_eq!(world.sessions.take_tally().limit_frames, 0);
    let flood = world.slots[0];
    (0..60).for_each(|_| world.send(flood, r#"{"type":"pong"}"#));
    world.read(flood);
    assert_eq!(world.sessions.take_tally().limit_frames, 1, "frames after the pause are limited as usual");
}

#[test]
fn the_pings_of_sessions_stay_spread_over_the_heartbeat_interval() {
    let mut world = World::new(0, |_| true);
    let due = |world: &World| world.sessions.next_due().unwrap() % HEARTBEAT_MS;
    world.run(1_500);
    let before = due(&world);
    world.pause();
    assert_eq!(due(&world), before);
}

//! Delivery counts of events that are written to live clients while another client receives a replay.

#![expect(clippy::unwrap_used, reason = "a failed precondition fails the test")]

use fanfare_core::{
    Audience, ConnectionId, Draft, Grant, Lineage, Position,
    session::{ConnectRequest, Settings},
    session_table::{Served, SessionTable, Slot},
    time::Now,
    window::{Bounds, Entry, Window},
    ws,
};
use std::sync::{Arc, atomic::Ordering};

const RETAINED: u64 = 2_000;
const NOW: Now = Now { mono_ms: 5_000, unix_ms: 1_000_000 };

struct World {
    window: Window,
    sessions: SessionTable,
}

impl World {
    fn new() -> Self {
        let settings = Settings {
            heartbeat_ms: 30_000,
            timeout_ms: 60_000,
            close_ms: 1_000,
            limits: ws::Limits { max_frame_bytes: 1_000, max_message_bytes: 1_000 },
            frames_per_second: 0,
            max_topics: 10,
            warn_ms: 60_000,
            echo: false,
        };
        let bounds = Bounds { events: 10_000, bytes: 100_000_000, age_ms: 60_000, ids: 1_000, ids_ms: 120_000 };
        let mut window = Window::new(Lineage::new(1), 0, bounds);
        (1..=RETAINED).for_each(|n| window.push(entry(n, Audience::Everyone)));
        Self { window, sessions: SessionTable::new(settings, 1, RETAINED) }
    }

    fn connect(&mut self, n: u128, user: &str, cursor: Option<&str>) -> Slot {
        let grant = Grant { user: user.into(), ..Grant::default() };
        let request = ConnectRequest::new(grant, ConnectionId(n), cursor.map(str::to_owned), [].into_iter(), 10);
        let start = self.window.start(cursor, request.connection);
        self.sessions.connect(request, start, 0, NOW)
    }

    fn publish(&mut self, audience: Audience) -> Arc<Entry> {
        let entry = entry(self.window.head() + 1, audience);
        self.window.push(entry.clone());
        self.sessions.advance(std::slice::from_ref(&entry));
        entry
    }

    fn turn(&mut self) -> Option<(Slot, Served)> {
        let slot = self.sessions.next_ready()?;
        let take_all = &mut |slices: &[std::io::IoSlice<'_>]| slices.iter().map(|slice| slice.len()).sum();
        Some((slot, self.sessions.serve(slot, &self.window, NOW, take_all)))
    }

    fn live_of(&mut self, wanted: &Entry) -> Vec<(u32, bool)> {
        let deliveries = self.sessions.take_deliveries().into_iter();
        let of_it = deliveries.filter(|deliveries| deliveries.entry.sequence == wanted.sequence);
        of_it.map(|deliveries| (deliveries.clients, deliveries.live)).collect()
    }
}

fn entry(sequence: u64, audience: Audience) -> Arc<Entry> {
    let draft = Draft::new("note", &serde_json::json!({ "n": sequence })).unwrap();
    let event = draft.finish(0, || format!("e{sequence}")).unwrap();
    Arc::new(Entry::new(Position { epoch: 1, sequence }, 0, audience, &event))
}

#[test]
fn deliveries_to_live_clients_are_reported_during_a_replay() {
    let mut world = World::new();
    let live: Vec<_> = (1..=3).map(|n| world.connect(n, "ann", None)).collect();
    while world.turn().is_some() {}
    let slow = world.connect(9, "bob", Some("pos-1-0"));
    for _ in 0..5 {
        let entry = world.publish(Audience::Everyone);
        let mut turns = Vec::new();
        // One turn for each session, and the first turn of the next pass.
        while turns.len() <= live.len() + 1 {
            turns.push(world.turn().expect("a replay is in progress"));
        }
        assert!(turns.contains(&(slow, Served::More)), "{turns:?}");
        assert_eq!(world.live_of(&entry), [(3, true)]);
        assert_eq!(entry.written.load(Ordering::Relaxed), 3);
    }
    let newest = world.publish(Audience::Everyone);
    while world.turn().is_some() {}
    assert_eq!(newest.written.load(Ordering::Relaxed), 4, "the replayed client receives it in the end");
    let reported = world.live_of(&newest);
    assert_eq!(reported.iter().filter(|(_, live)| *live).count(), 1, "an entry is live once: {reported:?}");
    assert_eq!(reported.iter().map(|(clients, _)| clients).sum::<u32>(), 4);
}

#[test]
fn every_event_of_a_burst_is_reported_as_live_once() {
    let mut world = World::new();
    world.connect(1, "ann", None);
    world.connect(2, "bob", None);
    while world.turn().is_some() {}
    world.sessions.take_deliveries();
    let burst: Vec<_> = (1..=500).map(|n| entry(RETAINED + n, Audience::Everyone)).collect();
    burst.iter().for_each(|entry| world.window.push(entry.clone()));
    world.sessions.advance(&burst);
    while world.turn().is_some() {}
    let deliveries = world.sessions.take_deliveries();
    for entry in &burst {
        let of_it: Vec<_> =
            deliveries.iter().filter(|deliveries| deliveries.entry.sequence == entry.sequence).collect();
        assert_eq!(of_it.iter().map(|deliveries| deliveries.clients).sum::<u32>(), 2);
        assert_eq!(of_it.iter().filter(|deliveries| deliveries.live).count(), 1);
    }
}

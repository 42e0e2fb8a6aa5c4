//! The checks of the fuzz targets on their stored corpora and on generated inputs.

#![allow(clippy::unwrap_used, reason = "a failed helper fails the test")]

use std::{fs, path::Path};

use fanfare_core::ws::{Opcode, push_client_frame};
use proptest::{collection::vec, prelude::*, sample::select};

#[path = "../../../fuzz/src/frames.rs"]
mod frames;
#[path = "../../../fuzz/src/session.rs"]
mod session;

/// Payloads that are valid UTF-8, invalid, or valid only together with the next one.
const PAYLOADS: &[&[u8]] = &[
    b"",
    b"a",
    b"Hello",
    "€🎉".as_bytes(),
    b"\xe2\x82",
    b"\xac",
    b"\xf0\x9f",
    b"\x8e\x89",
    b"\xed\xa0\x80",
    b"\xff",
    b"\x03",
    b"\x03\xe8",
    b"\x03\xe8bye",
    b"\x03\xe9\xff",
    b"\x03\xed",
    b"\x03\xf6",
    b"\x0f\xa1moved",
    &[0x61; 125],
    &[0x61; 126],
    &[0x61; 200],
    &[0x61; 300],
    &[0x61; 301],
];

/// First bytes of valid frames, and occasionally any byte.
fn first() -> impl Strategy<Value = u8> {
    prop_oneof![20 => select(&b"\x01\x02\x00\x80\x81\x82\x88\x89\x8a"[..]), 1 => any::<u8>()]
}

fn client_frame() -> impl Strategy<Value = Vec<u8>> {
    (first(), select(PAYLOADS), any::<[u8; 4]>(), 0_u8..40).prop_map(|(first, payload, mask, fault)| {
        let mut out = Vec::new();
        push_client_frame(&mut out, Opcode::Binary, payload, mask);
        out[0] = first;
        match fault {
            0 => out[1] &= 0x7f,
            1 => out[1] = 0xfe,
            2 => out[1] = 0xff,
            3 => out.truncate(out.len() / 2),
            _ => {}
        }
        out
    })
}

fn input() -> impl Strategy<Value = Vec<u8>> {
    let sizes = vec(prop_oneof![0_u8..10, any::<u8>()], 0..20);
    (any::<bool>(), sizes, vec(client_frame(), 0..10), 0..20_usize).prop_map(|(small, sizes, frames, missing)| {
        let count = u8::try_from(sizes.len()).expect("at most 20");
        let mut input = [vec![count << 1 | u8::from(small)], sizes, frames.concat()].concat();
        input.truncate(input.len().saturating_sub(missing).max(1));
        input
    })
}

/// Valid and invalid client messages.
const TEXTS: &[&str] = &[
    r#"{"type":"ping"}"#,
    r#"{"type":"pong"}"#,
    r#"{"type":"ack","ack_event_id":"e1"}"#,
    r#"{"type":"subscribe","topic":"abc","event_id":"m1"}"#,
    r#"{"type":"subscribe","topic":"forbidden"}"#,
    r#"{"type":"unsubscribe","topic":"abc"}"#,
    r#"{"type":"auth","token":"good"}"#,
    r#"{"type":"auth","token":"bad\u0000"}"#,
    r#"{"type":"made up"}"#,
    r#"{"type":"ping"} "#,
    r#"{"type":"#,
    "[]",
];

fn text_frame() -> impl Strategy<Value = Vec<u8>> {
    (select(TEXTS), any::<[u8; 4]>()).prop_map(|(text, mask)| {
        let mut out = Vec::new();
        push_client_frame(&mut out, Opcode::Text, text.as_bytes(), mask);
        out
    })
}

/// Client frames, split into pieces, with steps between them.
fn script() -> impl Strategy<Value = Vec<u8>> {
    let step = prop_oneof![4 => 1_u8..=0xbf, 1 => 0xc0_u8..=0xff];
    let frame = prop_oneof![4 => text_frame(), 1 => client_frame()];
    (0_u8..8, vec(step, 0..40), vec(frame, 0..10)).prop_map(|(limited, steps, frames)| {
        let bytes = frames.concat();
        let mut bytes = bytes.iter().copied();
        let mut input = vec![u8::from(limited == 0)];
        for step in steps {
            if step >= 0xc0 {
                input.push(step);
                continue;
            }
            let piece: Vec<_> = bytes.by_ref().take(step.into()).collect();
            if let Ok(size @ 1..) = u8::try_from(piece.len()) {
                input.push(size);
                input.extend(piece);
            }
        }
        input
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5000, failure_persistence: None, ..ProptestConfig::default() })]

    // attack: random frames in random pieces => decoded or rejected as an independent implementation does
    #[test]
    fn generated_frames_are_decoded_as_by_tungstenite(input in input()) {
        frames::check(&input);
    }

    // attack: random sessions of messages, pauses and stalls => the session's invariants hold; never a panic
    #[test]
    fn generated_sessions_keep_the_invariants(input in script()) {
        session::check(&input);
    }

    // attack: random bytes instead of frames => decoded or rejected as an independent implementation does; no panic
    #[test]
    fn generated_bytes_are_decoded_as_by_tungstenite(input in vec(any::<u8>(), 0..100)) {
        frames::check(&input);
    }
}

/// Runs `check` on every file of a stored corpus.
fn check_corpus(target: &str, check: impl Fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let files: Vec<_> = fs::read_dir(corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 20, "{} files", files.len());
    for file in files {
        println!("{}", file.display());
        check(&fs::read(&file).unwrap());
    }
}

// attack: every frame input that fuzzing found => decoded or rejected as an independent implementation does
#[test]
fn the_corpus_of_frames_is_decoded_as_by_tungstenite() {
    check_corpus("frames", frames::check);
}

// attack: every session input that fuzzing found => the session's invariants hold
#[test]
fn the_corpus_of_sessions_keeps_the_invariants() {
    check_corpus("session", session::check);
}

//! The codec against an independent implementation: our decoder against tungstenite as the client's encoder, and our
//! encoder against tungstenite as the client's decoder.

#![allow(clippy::unwrap_used, reason = "a failed helper fails the test")]

use std::{
    collections::VecDeque,
    io::{self, Cursor, Read, Write},
    ops::ControlFlow,
};

use fanfare_core::ws::{Decoder, Incoming, Limits, Opcode, frame, push_close};
use proptest::{collection::vec, prelude::*, sample::Index};
use tungstenite::{
    Message, WebSocket,
    protocol::{
        CloseFrame, Role,
        frame::{
            Frame,
            coding::{Data, OpCode},
        },
    },
};

const LIMITS: Limits = Limits { max_frame_bytes: 1 << 20, max_message_bytes: 1 << 20 };

/// A message in a form that is common to both implementations.
#[derive(Debug, Clone, PartialEq, Eq)]
enum WsMessage {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
}

/// A message, and where a data message is split into fragments.
#[derive(Debug, Clone)]
struct Step {
    message: WsMessage,
    cuts: Vec<Index>,
}

fn step() -> impl Strategy<Value = Step> {
    let message = prop_oneof![
        text().prop_map(WsMessage::Text),
        binary().prop_map(WsMessage::Binary),
        control().prop_map(WsMessage::Ping),
        control().prop_map(WsMessage::Pong),
    ];
    (message, vec(any::<Index>(), 0..4)).prop_map(|(message, cuts)| Step { message, cuts })
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["\\PC{0,100}", "[a-zß€🎉]{120,130}"]
}

fn binary() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![vec(any::<u8>(), 0..200), (65_530_usize..65_540).prop_map(|len| vec![0xa5; len])]
}

fn control() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..=125)
}

fn ending() -> impl Strategy<Value = Option<WsMessage>> {
    let code = prop_oneof![1000_u16..=1003, 1007_u16..=1013, 3000_u16..=4999];
    let close = prop_oneof![Just(None), (code, "[a-zß€🎉]{0,30}").prop_map(Some)];
    prop::option::of(close.prop_map(WsMessage::Close))
}

/// Sends `step` from the client, with a ping between fragments, and appends the expected messages to `expected`.
fn perform(step: &Step, client: &mut WebSocket<Wire>, expected: &mut Vec<WsMessage>) {
    let (opcode, payload) = match &step.message {
        WsMessage::Text(text) => (Data::Text, text.as_bytes()),
        WsMessage::Binary(bytes) => (Data::Binary, &bytes[..]),
        control => {
            client.send(to_message(control)).unwrap();
            return expected.push(control.clone());
        }
    };
    let fragments = fragments(payload, &step.cuts);
    let last = fragments.len() - 1;
    for (i, fragment) in fragments.into_iter().enumerate() {
        let opcode = if i == 0 { opcode } else { Data::Continue };
        let frame = Frame::message(fragment.to_vec(), OpCode::Data(opcode), i == last);
        client.send(Message::Frame(frame)).unwrap();
        if i < last {
            let between = WsMessage::Ping(vec![u8::try_from(i).unwrap()]);
            client.send(to_message(&between)).unwrap();
            expected.push(between);
        }
    }
    expected.push(step.message.clone());
}

fn fragments<'a>(payload: &'a [u8], cuts: &[Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<_> = cuts.iter().map(|index| index.index(payload.len() + 1)).collect();
    at.extend([0, payload.len()]);
    at.sort_unstable();
    at.windows(2).map(|pair| &payload[pair[0]..pair[1]]).collect()
}

fn to_message(message: &WsMessage) -> Message {
    match message.clone() {
        WsMessage::Text(text) => Message::text(text),
        WsMessage::Binary(bytes) => Message::binary(bytes),
        WsMessage::Ping(bytes) => Message::Ping(bytes.into()),
        WsMessage::Pong(bytes) => Message::Pong(bytes.into()),
        WsMessage::Close(frame) => {
            Message::Close(frame.map(|(code, reason)| CloseFrame { code: code.into(), reason: reason.into() }))
        }
    }
}

fn from_message(message: Message) -> WsMessage {
    match message {
        Message::Text(text) => WsMessage::Text(text.as_str().to_owned()),
        Message::Binary(bytes) => WsMessage::Binary(bytes.into()),
        Message::Ping(bytes) => WsMessage::Ping(bytes.into()),
        Message::Pong(bytes) => WsMessage::Pong(bytes.into()),
        Message::Close(frame) => {
            WsMessage::Close(frame.map(|frame| (frame.code.into(), frame.reason.as_str().to_owned())))
        }
        Message::Frame(frame) => panic!("a raw frame was read: {frame}"),
    }
}

fn from_incoming(incoming: Incoming<'_>) -> Option<WsMessage> {
    Some(match incoming {
        Incoming::Text(text) => WsMessage::Text(text.to_owned()),
        Incoming::Binary(bytes) => WsMessage::Binary(bytes.to_vec()),
        Incoming::Ping(bytes) => WsMessage::Ping(bytes.to_vec()),
        Incoming::Pong(bytes) => WsMessage::Pong(bytes.to_vec()),
        Incoming::Close(frame) => WsMessage::Close(frame.map(|(code, reason)| (code, reason.to_owned()))),
        Incoming::Fragment => return None,
    })
}

fn to_frame(message: &WsMessage) -> Box<[u8]> {
    match message {
        WsMessage::Text(text) => frame(Opcode::Text, &[text.as_bytes()]),
        WsMessage::Binary(bytes) => frame(Opcode::Binary, &[bytes]),
        WsMessage::Ping(bytes) => frame(Opcode::Ping, &[bytes]),
        WsMessage::Pong(bytes) => frame(Opcode::Pong, &[bytes]),
        WsMessage::Close(None) => frame(Opcode::Close, &[]),
        WsMessage::Close(Some((code, reason))) => {
            let mut out = Vec::new();
            push_close(&mut out, *code, reason);
            out.into()
        }
    }
}

/// The connection of a client: delivers `incoming` in reads of the sizes in `reads`, and stores all writes.
#[derive(Debug, Default)]
struct Wire {
    incoming: Cursor<Vec<u8>>,
    reads: VecDeque<usize>,
    written: Vec<u8>,
}

impl Read for Wire {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let size = self.reads.pop_front().unwrap_or(usize::MAX).clamp(1, buf.len());
        self.incoming.read(&mut buf[..size])
    }
}

impl Write for Wire {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.written.extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Decodes `bytes` in reads of the given sizes.
fn decode(mut bytes: &mut [u8], sizes: Vec<usize>) -> (Vec<WsMessage>, Decoder) {
    let mut decoder = Decoder::default();
    let mut decoded = Vec::new();
    let mut sizes = sizes.into_iter();
    while !bytes.is_empty() {
        let size = sizes.next().unwrap_or(usize::MAX).min(bytes.len());
        let (chunk, rest) = bytes.split_at_mut(size);
        let result = decoder.feed(chunk, &LIMITS, &mut |incoming| {
            decoded.extend(from_incoming(incoming));
            ControlFlow::Continue(())
        });
        result.unwrap();
        bytes = rest;
    }
    (decoded, decoder)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn frames_of_a_client_are_decoded(
        steps in vec(step(), 0..12),
        ending in ending(),
        sizes in vec(1_usize..2000, 0..40),
    ) {
        let mut client = WebSocket::from_raw_socket(Wire::default(), Role::Client, None);
        let mut sent = Vec::new();
        for step in steps.into_iter().chain(ending.map(|message| Step { message, cuts: Vec::new() })) {
            perform(&step, &mut client, &mut sent);
        }
        let (decoded, decoder) = decode(&mut client.get_mut().written, sizes);
        prop_assert_eq!(decoded, sent);
        prop_assert!(decoder.is_idle());
    }

    #[test]
    fn encoded_frames_are_decoded_by_a_client(
        steps in vec(step(), 0..12),
        ending in ending(),
        reads in vec(1_usize..2000, 0..40),
    ) {
        let message: Vec<_> = steps.into_iter().map(|step| step.message).chain(ending).collect();
        let bytes: Vec<u8> = message.iter().flat_map(to_frame).collect();
        let wire = Wire { incoming: Cursor::new(bytes), reads: reads.into(), written: Vec::new() };
        let mut client = WebSocket::from_raw_socket(wire, Role::Client, None);
        for expected in message {
            prop_assert_eq!(from_message(client.read().unwrap()), expected);
        }
        let read = client.get_ref().incoming.position();
        prop_assert_eq!(read, client.get_ref().incoming.get_ref().len() as u64);
    }
}

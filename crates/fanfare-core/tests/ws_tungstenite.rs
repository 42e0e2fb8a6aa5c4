//! The codec against an independent one: tungstenite writes what we read, and reads what we write.

#![allow(clippy::unwrap_used, reason = "the helpers of a test fail it")]

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

/// A message as either side tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
}

/// A message, and where a data message is cut into fragments.
#[derive(Debug, Clone)]
struct Step {
    said: Said,
    cuts: Vec<Index>,
}

fn step() -> impl Strategy<Value = Step> {
    let said = prop_oneof![
        text().prop_map(Said::Text),
        binary().prop_map(Said::Binary),
        control().prop_map(Said::Ping),
        control().prop_map(Said::Pong),
    ];
    (said, vec(any::<Index>(), 0..4)).prop_map(|(said, cuts)| Step { said, cuts })
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

fn ending() -> impl Strategy<Value = Option<Said>> {
    let code = prop_oneof![1000_u16..=1003, 1007_u16..=1013, 3000_u16..=4999];
    let close = prop_oneof![Just(None), (code, "[a-zß€🎉]{0,30}").prop_map(Some)];
    prop::option::of(close.prop_map(Said::Close))
}

/// Has the client send `step`, with a ping between fragments; `heard` is what the server is to hear of it.
fn perform(step: &Step, client: &mut WebSocket<Wire>, heard: &mut Vec<Said>) {
    let (opcode, payload) = match &step.said {
        Said::Text(text) => (Data::Text, text.as_bytes()),
        Said::Binary(bytes) => (Data::Binary, &bytes[..]),
        control => {
            client.send(to_message(control)).unwrap();
            return heard.push(control.clone());
        }
    };
    let fragments = fragments(payload, &step.cuts);
    let last = fragments.len() - 1;
    for (i, fragment) in fragments.into_iter().enumerate() {
        let opcode = if i == 0 { opcode } else { Data::Continue };
        let frame = Frame::message(fragment.to_vec(), OpCode::Data(opcode), i == last);
        client.send(Message::Frame(frame)).unwrap();
        if i < last {
            let between = Said::Ping(vec![u8::try_from(i).unwrap()]);
            client.send(to_message(&between)).unwrap();
            heard.push(between);
        }
    }
    heard.push(step.said.clone());
}

fn fragments<'a>(payload: &'a [u8], cuts: &[Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<_> = cuts.iter().map(|index| index.index(payload.len() + 1)).collect();
    at.extend([0, payload.len()]);
    at.sort_unstable();
    at.windows(2).map(|pair| &payload[pair[0]..pair[1]]).collect()
}

fn to_message(said: &Said) -> Message {
    match said.clone() {
        Said::Text(text) => Message::text(text),
        Said::Binary(bytes) => Message::binary(bytes),
        Said::Ping(bytes) => Message::Ping(bytes.into()),
        Said::Pong(bytes) => Message::Pong(bytes.into()),
        Said::Close(frame) => {
            Message::Close(frame.map(|(code, reason)| CloseFrame { code: code.into(), reason: reason.into() }))
        }
    }
}

fn from_message(message: Message) -> Said {
    match message {
        Message::Text(text) => Said::Text(text.as_str().to_owned()),
        Message::Binary(bytes) => Said::Binary(bytes.into()),
        Message::Ping(bytes) => Said::Ping(bytes.into()),
        Message::Pong(bytes) => Said::Pong(bytes.into()),
        Message::Close(frame) => Said::Close(frame.map(|frame| (frame.code.into(), frame.reason.as_str().to_owned()))),
        Message::Frame(frame) => panic!("a raw frame was read: {frame}"),
    }
}

fn from_incoming(incoming: Incoming<'_>) -> Option<Said> {
    Some(match incoming {
        Incoming::Text(text) => Said::Text(text.to_owned()),
        Incoming::Binary(bytes) => Said::Binary(bytes.to_vec()),
        Incoming::Ping(bytes) => Said::Ping(bytes.to_vec()),
        Incoming::Pong(bytes) => Said::Pong(bytes.to_vec()),
        Incoming::Close(frame) => Said::Close(frame.map(|(code, reason)| (code, reason.to_owned()))),
        Incoming::Fragment => return None,
    })
}

fn to_frame(said: &Said) -> Box<[u8]> {
    match said {
        Said::Text(text) => frame(Opcode::Text, &[text.as_bytes()]),
        Said::Binary(bytes) => frame(Opcode::Binary, &[bytes]),
        Said::Ping(bytes) => frame(Opcode::Ping, &[bytes]),
        Said::Pong(bytes) => frame(Opcode::Pong, &[bytes]),
        Said::Close(None) => frame(Opcode::Close, &[]),
        Said::Close(Some((code, reason))) => {
            let mut out = Vec::new();
            push_close(&mut out, *code, reason);
            out.into()
        }
    }
}

/// The connection of a client: gives `incoming` in reads of the sizes in `reads`, and keeps what is written.
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

/// What the server hears of `bytes` when its reads have these sizes.
fn hear(mut bytes: &mut [u8], sizes: Vec<usize>) -> (Vec<Said>, Decoder) {
    let mut decoder = Decoder::default();
    let mut heard = Vec::new();
    let mut sizes = sizes.into_iter();
    while !bytes.is_empty() {
        let size = sizes.next().unwrap_or(usize::MAX).min(bytes.len());
        let (chunk, rest) = bytes.split_at_mut(size);
        let result = decoder.feed(chunk, &LIMITS, &mut |incoming| {
            heard.extend(from_incoming(incoming));
            ControlFlow::Continue(())
        });
        result.unwrap();
        bytes = rest;
    }
    (heard, decoder)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_a_client_writes_arrives(
        steps in vec(step(), 0..12),
        ending in ending(),
        sizes in vec(1_usize..2000, 0..40),
    ) {
        let mut client = WebSocket::from_raw_socket(Wire::default(), Role::Client, None);
        let mut sent = Vec::new();
        for step in steps.into_iter().chain(ending.map(|said| Step { said, cuts: Vec::new() })) {
            perform(&step, &mut client, &mut sent);
        }
        let (heard, decoder) = hear(&mut client.get_mut().written, sizes);
        prop_assert_eq!(heard, sent);
        prop_assert!(decoder.is_idle());
    }

    #[test]
    fn what_we_write_a_client_reads(
        steps in vec(step(), 0..12),
        ending in ending(),
        reads in vec(1_usize..2000, 0..40),
    ) {
        let said: Vec<_> = steps.into_iter().map(|step| step.said).chain(ending).collect();
        let bytes: Vec<u8> = said.iter().flat_map(to_frame).collect();
        let wire = Wire { incoming: Cursor::new(bytes), reads: reads.into(), written: Vec::new() };
        let mut client = WebSocket::from_raw_socket(wire, Role::Client, None);
        for expected in said {
            prop_assert_eq!(from_message(client.read().unwrap()), expected);
        }
        let read = client.get_ref().incoming.position();
        prop_assert_eq!(read, client.get_ref().incoming.get_ref().len() as u64);
    }
}

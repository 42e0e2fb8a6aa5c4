//! The event that is broadcast: always [`LENGTH`] bytes, with a counter and a timestamp at fixed offsets.

/// The length of the event's JSON, in bytes.
pub(crate) const LENGTH: usize = 200;

const HEAD: &[u8] = br#"{"type":"bench","event_id":"b-"#;
const MIDDLE: &[u8] = br#"","timestamp":"2026-01-01T00:00:00.000Z","data":{"sent_ns":""#;
const PAD: &[u8] = br#"","pad":""#;
const END: &[u8] = br#""}}"#;
const COUNTER: usize = 12;
const SENT: usize = 20;
const SENT_AT: usize = HEAD.len() + COUNTER + MIDDLE.len();
const PAD_AT: usize = SENT_AT + SENT + PAD.len();

/// The event number `counter`, sent at `sent_ns` of the monotonic clock.
pub(crate) fn write(counter: u64, sent_ns: u64) -> Vec<u8> {
    let mut json = Vec::with_capacity(LENGTH);
    json.extend_from_slice(HEAD);
    json.extend_from_slice(format!("{counter:0COUNTER$}").as_bytes());
    json.extend_from_slice(MIDDLE);
    json.extend_from_slice(format!("{sent_ns:0SENT$}").as_bytes());
    json.extend_from_slice(PAD);
    json.resize(LENGTH - END.len(), b'x');
    json.extend_from_slice(END);
    json
}

/// The event as published: with its audience, which the hub does not deliver.
pub(crate) fn to_everyone(mut json: Vec<u8>) -> Vec<u8> {
    json.pop();
    json.extend_from_slice(br#","audience":"everyone"}"#);
    json
}

/// The counter of an event, if `payload` is an unmodified event.
pub(crate) fn counter(payload: &[u8]) -> Option<u64> {
    let whole = payload.len() == LENGTH && payload.starts_with(HEAD) && payload.ends_with(END);
    let padded = whole && payload[PAD_AT..LENGTH - END.len()].iter().all(|&byte| byte == b'x');
    padded.then(|| number(&payload[HEAD.len()..][..COUNTER])).flatten()
}

/// The time at which an event was sent, in nanoseconds of the monotonic clock.
pub(crate) fn sent_ns(payload: &[u8]) -> Option<u64> {
    number(payload.get(SENT_AT..SENT_AT + SENT)?)
}

/// A JSON array of events.
pub(crate) fn batch(events: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut json = vec![b'['];
    for event in events {
        json.extend_from_slice(&event);
        json.push(b',');
    }
    if let Some(last) = json.last_mut() {
        *last = b']';
    }
    json
}

fn number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0u64, |n, &digit| digit.is_ascii_digit().then(|| n * 10 + u64::from(digit - b'0')))
}

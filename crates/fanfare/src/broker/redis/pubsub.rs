//! Hears what the reference's publishers `PUBLISH`, and puts it into the log. Every node hears; the one that has done so
//! for longest appends at once, and the others what has not come by the log after a while. The log keeps one of each.

use super::{
    link::{Link, LinkError},
    refused::{self, Refused},
    shared::{Job, Shared},
};
use crate::{
    broker::{BrokerError, Record},
    clock,
    metrics::Counter,
};
use aws_lc_rs::digest;
use fanfare_core::{Audience, Draft};
use futures_util::StreamExt;
use redis::{Msg, aio::PubSub};
use std::{
    collections::VecDeque,
    convert::Infallible,
    fmt::Display,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep},
};

/// How many messages wait while the log can't be reached; more are lost.
const MAX_WAITING: usize = 10_000;

/// The most records in one append.
const BATCH: usize = 256;

/// How long to wait before something that Redis did not take is tried again.
const AGAIN: Duration = Duration::from_millis(200);

/// How long a node that is not the foremost leaves a message to that one.
const HOLD: Duration = Duration::from_millis(700);

/// How often a node looks whether what it heard has come by the log.
const LOOK: Duration = Duration::from_millis(50);

/// Listens on the channels of a new link.
pub(super) async fn listen(shared: &Shared, pubsub: &mut PubSub) -> Result<(), LinkError> {
    pubsub.subscribe(&[shared.keys.broadcast_channel(), shared.keys.probe_channel(&shared.node)]).await?;
    if !shared.options.channels.is_empty() {
        pubsub.subscribe(&shared.options.channels).await?;
    }
    Ok(pubsub.psubscribe(&shared.keys.addressed_channels()).await?)
}

/// Hears messages until the link ends, and puts them where [`forward`] finds them. The publishers of what is no event are told why.
pub(super) async fn run(
    shared: &Shared,
    link: &Link,
    pubsub: PubSub,
    heard: &mpsc::Sender<Record>,
) -> Result<Infallible, LinkError> {
    let (reasons, waiting) = refused::queue();
    tokio::try_join!(hear(shared, pubsub, heard, &reasons), refused::write(shared, link, waiting))
        .map(|(never, _)| never)
}

async fn hear(
    shared: &Shared,
    mut pubsub: PubSub,
    heard: &mpsc::Sender<Record>,
    reasons: &mpsc::Sender<Refused>,
) -> Result<Infallible, LinkError> {
    let probe = shared.keys.probe_channel(&shared.node);
    let mut messages = pubsub.on_message();
    while let Some(message) = messages.next().await {
        if message.get_channel_name() == probe {
            let number = str::from_utf8(message.get_payload_bytes()).ok().and_then(|text| text.parse().ok());
            shared.echo_returned(number.unwrap_or(0));
            continue;
        }
        match record(shared, &message) {
            Ok(record) => {
                if heard.try_send(record).is_err() {
                    shared.metrics.add(Counter::HeardLost, 1);
                    tracing::error!("a message on a channel is lost: {MAX_WAITING} wait for the log already");
                }
            }
            Err(refused) => {
                shared.metrics.add(Counter::BadPublications, 1);
                let why = &refused.message;
                tracing::warn!(channel = message.get_channel_name(), "a message on a channel is no event: {why}");
                // A full queue drops it: the line above has said why.
                let _ = reasons.try_send(refused.of(message.get_payload_bytes()));
            }
        }
    }
    Err(LinkError::Unreachable("the connection for channels ended".to_owned()))
}

/// Where messages wait on their way into the log.
pub(super) fn queue() -> (mpsc::Sender<Record>, mpsc::Receiver<Record>) {
    mpsc::channel(MAX_WAITING)
}

/// Puts what was heard into the log, in order, however long that takes.
pub(super) async fn forward(shared: Arc<Shared>, mut heard: mpsc::Receiver<Record>, jobs: mpsc::Sender<Job>) {
    let mut waiting: VecDeque<(Instant, Record)> = VecDeque::new();
    loop {
        if waiting.is_empty() {
            match heard.recv().await {
                Some(record) => waiting.push_back((Instant::now(), record)),
                None => return,
            }
        }
        while waiting.len() < MAX_WAITING
            && let Ok(record) = heard.try_recv()
        {
            waiting.push_back((Instant::now(), record));
        }
        forget_known(&shared, &mut waiting);
        let due = due(&shared, &waiting);
        if due == 0 {
            sleep(LOOK).await;
            continue;
        }
        let (reply, answer) = oneshot::channel();
        let records = waiting.iter().take(due).map(|(_, record)| record.clone()).collect();
        if jobs.send(Job { records, reply }).await.is_err() {
            return;
        }
        match answer.await {
            Ok(Ok(appended)) => {
                for ((_, record), appended) in waiting.drain(..due).zip(appended) {
                    if !appended.duplicate {
                        shared.metrics.add_event(record.event.event_type());
                    }
                }
            }
            Ok(Err(BrokerError::NotReplicated { .. })) => drop(waiting.drain(..due)),
            Ok(Err(BrokerError::Unavailable(_) | BrokerError::NotKept(_))) | Err(_) => sleep(AGAIN).await,
        }
    }
}

/// Forgets what has come by the log meanwhile.
fn forget_known(shared: &Shared, waiting: &mut VecDeque<(Instant, Record)>) {
    let window = shared.follower.window().read();
    waiting.retain(|(_, record)| window.find(record.event.event_id()).is_none());
}

/// How many of those that wait are to be appended now.
fn due(shared: &Shared, waiting: &VecDeque<(Instant, Record)>) -> usize {
    let Some(up) = shared.up_since() else { return 0 };
    if shared.is_channel_leader.load(Ordering::Relaxed) {
        return waiting.len().min(BATCH);
    }
    let held = waiting.iter().take_while(|(heard, _)| up.max(*heard).elapsed() >= HOLD);
    held.count().min(BATCH)
}

fn record(shared: &Shared, message: &Msg) -> Result<Record, Refused> {
    let invalid = |error: &dyn Display| Refused::new("invalid", error);
    let channel = message.get_channel_name();
    let payload = message.get_payload_bytes();
    let text = str::from_utf8(payload).map_err(|error| Refused::new("not_json", &error))?;
    let draft = Draft::parse(text).map_err(|error| invalid(&error))?;
    let (draft, audience) = if shared.options.channels.iter().any(|extra| extra == channel) {
        on_extra_channel(channel, draft).map_err(|why| invalid(&why))?
    } else {
        let audience = shared.keys.audience_of(channel);
        (draft, audience.ok_or_else(|| invalid(&"the channel's name ends in no user, connection id or topic"))?)
    };
    if shared.options.validate_events {
        draft.validate().map_err(|error| invalid(&error))?;
    }
    // Every node hears the message, and all have to give it the same id.
    let event = draft.finish(clock::now().unix_ms, || id_of(channel, payload)).map_err(|error| invalid(&error))?;
    let (bytes, limit) = (event.json().len(), shared.options.max_event_bytes);
    if bytes > limit {
        let message = format!("it has {bytes} bytes; at most {limit} are allowed (max_event_bytes)");
        return Err(Refused::new("event_too_large", &message));
    }
    Ok(Record { event, audience, publisher: Some(format!("channel:{channel}").into()), trace: None })
}

/// An event on a channel of `redis_channels`: for everyone, unless it names an audience, and of the channel's type, unless
/// it names one.
fn on_extra_channel(channel: &str, mut draft: Draft) -> Result<(Draft, Audience), String> {
    let audience = match draft.take("audience") {
        Some(raw) => Audience::from_json(&raw).map_err(|error| format!("the field `audience` {error}"))?,
        None => Audience::Everyone,
    };
    if draft.field("type").is_none() {
        draft = draft.with("type", &channel).map_err(|error| error.to_string())?;
    }
    Ok((draft, audience))
}

/// An id for a message that has none: by its channel and content.
fn id_of(channel: &str, payload: &[u8]) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(channel.as_bytes());
    context.update(&[0]);
    context.update(payload);
    let digest = context.finish();
    let hex: String = digest.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("heard-{hex}")
}

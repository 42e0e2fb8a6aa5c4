//! Receives messages that compatible publishers `PUBLISH` on channels, and appends them to the log. Every node receives
//! every message. The node that has been subscribed for longest, the channel leader, appends it immediately. The other
//! nodes append it after a while if it is not in the log by then. The log removes the duplicates.

use super::{
    error::LinkError,
    link::Link,
    refused::{self, Rejection},
    shared::{Job, Shared},
};
use crate::{BrokerError, Record, clock, metrics::LogCounter};
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

/// The maximum number of messages that wait while the log is unavailable. Further messages are lost.
const MAX_WAITING: usize = 10_000;

/// The maximum number of records in one append.
const BATCH: usize = 256;

/// The pause before a failed append is retried.
const RETRY: Duration = Duration::from_millis(200);

/// How long a node that is not the channel leader waits for the leader to append a message.
const HOLD: Duration = Duration::from_millis(700);

/// How often a node checks whether the messages that it received are in the log.
const CHECK: Duration = Duration::from_millis(50);

/// Subscribes to the channels on a new link.
pub(super) async fn subscribe(shared: &Shared, pubsub: &mut PubSub) -> Result<(), LinkError> {
    pubsub.subscribe(&[shared.keys.broadcast_channel(), shared.keys.probe_channel(&shared.node)]).await?;
    if !shared.options.channels.is_empty() {
        pubsub.subscribe(&shared.options.channels).await?;
    }
    Ok(pubsub.psubscribe(&shared.keys.addressed_channels()).await?)
}

/// Receives messages until the link ends, and queues them for [`forward`]. The reasons for rejected messages are stored
/// for their publishers.
pub(super) async fn run(
    shared: &Shared,
    link: &Link,
    pubsub: PubSub,
    received: &mpsc::Sender<Record>,
) -> Result<Infallible, LinkError> {
    let (reasons, waiting) = refused::queue();
    tokio::try_join!(receive(shared, pubsub, received, &reasons), refused::write(shared, link, waiting))
        .map(|(never, _)| never)
}

async fn receive(
    shared: &Shared,
    mut pubsub: PubSub,
    received: &mpsc::Sender<Record>,
    reasons: &mpsc::Sender<Rejection>,
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
                if received.try_send(record).is_err() {
                    shared.metrics.add(LogCounter::PublicationsLost, 1);
                    tracing::error!("a message on a channel was lost: the queue of {MAX_WAITING} messages is full");
                }
            }
            Err(rejection) => {
                shared.metrics.add(LogCounter::BadPublications, 1);
                let why = &rejection.message;
                tracing::warn!(channel = message.get_channel_name(), "rejected a message on a channel: {why}");
                // If the queue is full the reason is dropped; the log line above has it.
                let _ = reasons.try_send(rejection.of(message.get_payload_bytes()));
            }
        }
    }
    Err(LinkError::Unreachable("the connection for channels was closed".to_owned()))
}

/// The queue of messages for [`forward`].
pub(super) fn queue() -> (mpsc::Sender<Record>, mpsc::Receiver<Record>) {
    mpsc::channel(MAX_WAITING)
}

/// Appends the received messages in order. Retries until the log has accepted them.
pub(super) async fn forward(shared: Arc<Shared>, mut received: mpsc::Receiver<Record>, jobs: mpsc::Sender<Job>) {
    let mut waiting: VecDeque<(Instant, Record)> = VecDeque::new();
    loop {
        if waiting.is_empty() {
            match received.recv().await {
                Some(record) => waiting.push_back((Instant::now(), record)),
                None => return,
            }
        }
        while waiting.len() < MAX_WAITING
            && let Ok(record) = received.try_recv()
        {
            waiting.push_back((Instant::now(), record));
        }
        forget_known(&shared, &mut waiting);
        let due = due(&shared, &waiting);
        if due == 0 {
            sleep(CHECK).await;
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
            Ok(Err(BrokerError::Unavailable(_) | BrokerError::NotKept(_))) | Err(_) => sleep(RETRY).await,
        }
    }
}

/// Removes the messages that are in the log by now.
fn forget_known(shared: &Shared, waiting: &mut VecDeque<(Instant, Record)>) {
    let window = shared.follower.window().read();
    waiting.retain(|(_, record)| window.find(record.event.event_id()).is_none());
}

/// The number of waiting messages that this node must append now. The channel leader appends all of them. Any other
/// node waits for [`HOLD`] after it received a message and after the link was established, so that the leader's append
/// can arrive first.
fn due(shared: &Shared, waiting: &VecDeque<(Instant, Record)>) -> usize {
    let Some(up) = shared.up_since() else { return 0 };
    if shared.is_channel_leader.load(Ordering::Relaxed) {
        return waiting.len().min(BATCH);
    }
    let overdue = waiting.iter().take_while(|(received, _)| up.max(*received).elapsed() >= HOLD);
    overdue.count().min(BATCH)
}

fn record(shared: &Shared, message: &Msg) -> Result<Record, Rejection> {
    let invalid = |error: &dyn Display| Rejection::new("invalid", error);
    let channel = message.get_channel_name();
    let payload = message.get_payload_bytes();
    let text = str::from_utf8(payload).map_err(|error| Rejection::new("not_json", &error))?;
    let draft = Draft::parse(text).map_err(|error| invalid(&error))?;
    let (draft, audience) = if shared.options.channels.iter().any(|extra| extra == channel) {
        on_extra_channel(channel, draft).map_err(|why| invalid(&why))?
    } else {
        let audience = shared.keys.audience_of(channel);
        (
            draft,
            audience
                .ok_or_else(|| invalid(&"the channel's name does not end with a valid user, connection ID or topic"))?,
        )
    };
    if shared.options.validate_events {
        draft.validate().map_err(|error| invalid(&error))?;
    }
    // Every node receives the message, so the generated ID must be the same on all of them.
    let event = draft.finish(clock::now().unix_ms, || id_of(channel, payload)).map_err(|error| invalid(&error))?;
    let (bytes, limit) = (event.json().len(), shared.options.max_event_bytes);
    if bytes > limit {
        let message = format!("it has {bytes} bytes; at most {limit} are allowed (max_event_bytes)");
        return Err(Rejection::new("event_too_large", &message));
    }
    Ok(Record { event, audience, publisher: Some(format!("channel:{channel}").into()), trace: None })
}

/// An event on a channel of `redis_channels`. Without an `audience` it is for everyone. Without a `type` it has the
/// channel's name as its type.
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

/// The ID of a message that has none: a hash of its channel and content.
fn id_of(channel: &str, payload: &[u8]) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(channel.as_bytes());
    context.update(&[0]);
    context.update(payload);
    let digest = context.finish();
    let hex: String = digest.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("heard-{hex}")
}

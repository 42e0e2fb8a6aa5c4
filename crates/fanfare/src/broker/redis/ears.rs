//! Hears what the reference's publishers `PUBLISH`, and puts it into the log. Every node does; the log keeps one.

use super::{
    link::LinkError,
    shared::{Job, Shared},
};
use crate::{
    broker::{BrokerError, Record},
    clock,
    metrics::Counter,
};
use aws_lc_rs::digest;
use fanfare_core::Draft;
use futures_util::StreamExt;
use redis::{Msg, aio::PubSub};
use std::{collections::VecDeque, convert::Infallible, time::Duration};
use tokio::sync::{mpsc, oneshot};

/// How many messages wait while the log can't be reached; more are lost.
const MAX_WAITING: usize = 10_000;

/// The most records in one append.
const BATCH: usize = 256;

/// How long to wait before something that Redis did not take is tried again.
const AGAIN: Duration = Duration::from_millis(200);

/// Listens on the channels of a new link.
pub(super) async fn listen(shared: &Shared, ears: &mut PubSub) -> Result<(), LinkError> {
    ears.subscribe(&[shared.keys.broadcast_channel(), shared.keys.probe_channel(&shared.node)]).await?;
    Ok(ears.psubscribe(&shared.keys.addressed_channels()).await?)
}

/// Hears messages until the link ends, and puts them where [`forward`] finds them.
pub(super) async fn run(
    shared: &Shared,
    mut ears: PubSub,
    heard: &mpsc::Sender<Record>,
) -> Result<Infallible, LinkError> {
    let probe = shared.keys.probe_channel(&shared.node);
    let mut messages = ears.on_message();
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
            Err(why) => {
                shared.metrics.add(Counter::BadPublications, 1);
                tracing::warn!(channel = message.get_channel_name(), "a message on a channel is no event: {why}");
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
pub(super) async fn forward(mut heard: mpsc::Receiver<Record>, jobs: mpsc::Sender<Job>) {
    let mut waiting = VecDeque::new();
    loop {
        if waiting.is_empty() {
            match heard.recv().await {
                Some(record) => waiting.push_back(record),
                None => return,
            }
        }
        while waiting.len() < BATCH
            && let Ok(record) = heard.try_recv()
        {
            waiting.push_back(record);
        }
        let (reply, answer) = oneshot::channel();
        if jobs.send(Job { records: waiting.iter().cloned().collect(), reply }).await.is_err() {
            return;
        }
        match answer.await {
            Ok(Ok(_) | Err(BrokerError::NotReplicated { .. })) => waiting.clear(),
            Ok(Err(BrokerError::Unavailable(_))) | Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}

fn record(shared: &Shared, message: &Msg) -> Result<Record, String> {
    let channel = message.get_channel_name();
    let audience = shared.keys.audience_of(channel).ok_or("the channel's name ends in no user or connection id")?;
    let payload = message.get_payload_bytes();
    let text = str::from_utf8(payload).map_err(|error| error.to_string())?;
    let draft = Draft::parse(text).map_err(|error| error.to_string())?;
    // Every node hears the message, and all have to give it the same id.
    let event = draft.finish(clock::now().unix_ms, || id_of(channel, payload)).map_err(|error| error.to_string())?;
    let (bytes, limit) = (event.json().len(), shared.options.max_event_bytes);
    if bytes > limit {
        return Err(format!("it has {bytes} bytes; at most {limit} are allowed (max_event_bytes)"));
    }
    Ok(Record { event, audience })
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

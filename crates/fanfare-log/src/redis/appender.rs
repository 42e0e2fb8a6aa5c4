//! Appends records to the log. All waiting records are sent in one command, so the cost does not grow with the number
//! of publishers.

use super::{
    Durability,
    connection::read,
    error::LinkError,
    link::Link,
    record::audience_text,
    scripts::Script,
    shared::{Job, Shared},
};
use crate::{Appended, BrokerError, Record, clock};
use fanfare_core::{Position, window::Entry};
use redis::{Cmd, Value};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::sleep};

/// The maximum number of records in one command. A single batch may exceed it.
const MAX_RECORDS: usize = 512;

/// The maximum size of the events in one command, in bytes. A single batch may exceed it.
const MAX_BYTES: usize = 1 << 20;

/// The pause after a rejected write.
const FULL: Duration = Duration::from_millis(25);

/// The timeout for acknowledgements of replicas.
const REPLICATION: Duration = Duration::from_secs(1);

/// Processes jobs until the link ends. The epoch is read once: the log continues in another epoch only with another
/// link.
pub(super) async fn run(shared: &Shared, link: &Link, jobs: &mut mpsc::Receiver<Job>) -> Result<Infallible, LinkError> {
    let epoch = shared.epoch();
    // A node must be a member before it acknowledges: otherwise no recovery would wait for it. The sender is part of
    // `Shared`, so waiting cannot fail.
    let _ = shared.joined.subscribe().wait_for(|joined| *joined).await;
    loop {
        let Some(first) = jobs.recv().await else {
            return Err(LinkError::Unreachable("the hub is shutting down".to_owned()));
        };
        let batch = gather(first, jobs);
        if let Err(error) = shared.check_lease() {
            fail(batch, &error);
            continue;
        }
        let result = append(shared, link, &batch, epoch).await;
        // The lease is checked again: another server may have replaced this one since the command was sent.
        if let (Ok(_), Err(error)) = (&result, shared.check_lease()) {
            fail(batch, &error);
            continue;
        }
        match result {
            Ok(results) => {
                shared.note_writable();
                answer(batch, results);
            }
            Err(LinkError::Full(why)) => {
                shared.note_full(&why);
                fail(batch, &LinkError::Full(why));
                // A pause, because publishers retry each event separately, which would add to the load of a server in
                // trouble.
                sleep(FULL).await;
            }
            Err(error) => {
                fail(batch, &error);
                return Err(error);
            }
        }
    }
}

/// Collects the job and the jobs that are waiting behind it.
fn gather(first: Job, jobs: &mut mpsc::Receiver<Job>) -> Vec<Job> {
    let weight = |job: &Job| job.records.iter().map(|record| record.event.json().len()).sum::<usize>();
    let (mut records, mut bytes, mut batch) = (first.records.len(), weight(&first), vec![first]);
    while records < MAX_RECORDS
        && bytes < MAX_BYTES
        && let Ok(job) = jobs.try_recv()
    {
        records += job.records.len();
        bytes += weight(&job);
        batch.push(job);
    }
    batch
}

/// Appends the records of all jobs. The inner result is an error if too few replicas acknowledged the records.
async fn append(
    shared: &Shared,
    link: &Link,
    batch: &[Job],
    epoch: u64,
) -> Result<Result<Vec<Appended>, BrokerError>, LinkError> {
    let records: Vec<&Record> = batch.iter().flat_map(|job| &job.records).collect();
    let command = command(shared, link, &records, epoch);
    let (places, replicas) = match shared.options.durability {
        Durability::Log => (link.call(&command).await?, 1),
        Durability::Replica => {
            let mut pipe = redis::pipe();
            pipe.add_command(command).cmd("WAIT").arg(1).arg(clock::millis(REPLICATION));
            let answers: Vec<Value> = link.call_all(&pipe).await?;
            let [places, replicas] = <[Value; 2]>::try_from(answers)
                .map_err(|answers| LinkError::Answer(format!("{} responses to two commands", answers.len())))?;
            (places, read(replicas)?)
        }
    };
    let places: Vec<i64> = read(places)?;
    let Some((&now, places)) = places.split_first().filter(|(_, places)| places.len() == records.len()) else {
        return Err(LinkError::Answer(format!("{} sequences for {} records", places.len(), records.len())));
    };
    remember(shared, &records, places, epoch, now.unsigned_abs());
    if replicas == 0 {
        return Ok(Err(BrokerError::NotReplicated { replicas, wanted: 1 }));
    }
    // The position of a duplicate has the epoch of the first append. The epoch is 0 if no lineage has that sequence any
    // more; a client that resumes there receives a `gap`. Only a duplicate locks the window.
    let first_epoch = |sequence| shared.follower.window().read().lineage().epoch_at(sequence).unwrap_or(0);
    let appended = |&place: &i64| {
        let (sequence, duplicate) = (place.unsigned_abs(), place < 0);
        let epoch = if duplicate { first_epoch(sequence) } else { epoch };
        Appended { position: Position { epoch, sequence }, duplicate }
    };
    Ok(Ok(places.iter().map(appended).collect()))
}

fn command(shared: &Shared, link: &Link, records: &[&Record], epoch: u64) -> Cmd {
    let (keys, bounds) = (&shared.keys, &shared.bounds);
    let [older, oldest] = &keys.older_ids;
    let names = [&*keys.log, &keys.epoch, &keys.ids, &keys.members, older, oldest];
    let mut command = link.script(Script::Append, &names);
    let touch = shared.options.durability == Durability::Replica;
    command.arg(&link.server).arg(format!("{epoch:x}")).arg(shared.members().name()).arg(*shared.head.borrow());
    command.arg(bounds.events).arg(bounds.bytes).arg(bounds.age_ms).arg(u8::from(touch));
    command.arg(bounds.ids).arg(bounds.ids_ms);
    for Record { event, audience, publisher, trace } in records {
        command.arg(event.event_id()).arg(audience_text(audience)).arg(event.json());
        command.arg(publisher.as_deref().unwrap_or_default()).arg(trace.as_deref().unwrap_or_default());
    }
    command
}

/// Retains acknowledged entries until the tail has read them. Until then they are in no window, and a recovery must be
/// able to restore them.
fn remember(shared: &Shared, records: &[&Record], places: &[i64], epoch: u64, now: u64) {
    let head = *shared.head.borrow();
    let mut unseen = shared.unseen();
    for (record, &place) in records.iter().zip(places) {
        let sequence = place.unsigned_abs();
        if place > 0 && sequence > head {
            let entry = Entry::new(Position { epoch, sequence }, now, record.audience.clone(), &record.event);
            unseen.push_back(Arc::new(entry.by(record.publisher.clone(), record.trace.clone())));
        }
    }
}

fn answer(batch: Vec<Job>, results: Result<Vec<Appended>, BrokerError>) {
    match results {
        Ok(places) => {
            let mut places = places.into_iter();
            for job in batch {
                let own = places.by_ref().take(job.records.len()).collect();
                // A publisher that no longer waits can retry with the same `event_id`.
                let _ = job.reply.send(Ok(own));
            }
        }
        Err(error) => batch.into_iter().for_each(|job| drop(job.reply.send(Err(error.clone())))),
    }
}

/// Fails all jobs. It is unknown whether their events are in the log.
pub(super) fn fail(batch: Vec<Job>, error: &LinkError) {
    for job in batch {
        let _ = job.reply.send(Err(BrokerError::Unavailable(error.to_string())));
    }
}

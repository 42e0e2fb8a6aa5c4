//! Publishes at a rate, one request after another, so that events are numbered in the order of the log.

use super::{
    agent::user_name,
    client::{Payload, TYPE, event_id, topic_name},
    plan::{Kind, Plan},
    tally::{Stream, Times},
};
use crate::{
    access::Access,
    api_client::{HubResponse, Server},
    util::UsageError,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, SystemTime},
};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

/// If more than one event is due in this time, they are published in batches.
const TICK: Duration = Duration::from_millis(5);
const MAX_BATCH: u64 = 100;
/// The pause before a retry when the hub is temporarily unavailable.
const PAUSE: Duration = Duration::from_millis(200);

pub(crate) struct Publisher {
    pub(crate) server: Server,
    pub(crate) access: Access,
    pub(crate) plan: Plan,
    pub(crate) run: u64,
    /// The user of user events, if all clients share one.
    pub(crate) user: Option<String>,
    turns: Turns,
    totals: HashMap<Stream, u32>,
    pub(crate) published: Published,
}

/// The results of publishing.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Published {
    pub(crate) events: u64,
    pub(crate) by_audience: BTreeMap<Kind, u64>,
    /// Times from request to response.
    pub(crate) answers: Times,
    /// Number of retries by cause.
    pub(crate) retries: BTreeMap<String, u64>,
    /// The error, if the hub rejects events permanently.
    pub(crate) refused: Option<String>,
}

/// Selects the next audience by smooth weighted round robin, so that each appears evenly and as often as its weight.
struct Turns {
    weights: [u32; 3],
    credit: [i64; 3],
}

impl Turns {
    fn next(&mut self) -> Kind {
        let sum: i64 = self.weights.iter().map(|&weight| i64::from(weight)).sum();
        for (credit, &weight) in self.credit.iter_mut().zip(&self.weights) {
            *credit += i64::from(weight);
        }
        let first = (0..3).max_by_key(|&at| (self.credit[at], std::cmp::Reverse(at))).unwrap_or(0);
        self.credit[first] -= sum;
        Kind::ALL[first]
    }
}

impl Publisher {
    pub(crate) fn new(server: Server, access: Access, plan: &Plan, run: u64, user: Option<String>) -> Self {
        let turns = Turns { weights: plan.mix, credit: [0; 3] };
        let (totals, published) = (HashMap::new(), Published::default());
        Self { server, access, plan: plan.clone(), run, user, turns, totals, published }
    }

    /// Number of events in each stream.
    pub(crate) fn totals(&self) -> Vec<(Stream, u32)> {
        self.totals.iter().map(|(&stream, &count)| (stream, count)).collect()
    }

    /// Publishes until `end` becomes true or the hub rejects an event.
    pub(crate) async fn run(&mut self, end: watch::Receiver<bool>) -> anyhow::Result<()> {
        if self.plan.rate <= 0.0 {
            return Ok(());
        }
        let began = Instant::now();
        let mut ticks = interval(TICK.max(Duration::from_secs_f64(1.0 / self.plan.rate)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !*end.borrow() && self.published.refused.is_none() {
            ticks.tick().await;
            let due = (began.elapsed().as_secs_f64() * self.plan.rate) as u64 + 1;
            let count = due.saturating_sub(self.published.events).min(MAX_BATCH);
            if count > 0 && !*end.borrow() {
                self.publish(count, &end).await?;
            }
        }
        Ok(())
    }

    async fn publish(&mut self, count: u64, end: &watch::Receiver<bool>) -> anyhow::Result<()> {
        let events: Vec<_> = (0..count).map(|_| self.next_stream()).collect();
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_micros() as u64;
        let bodies: Vec<_> = events.iter().map(|&(stream, n)| self.event(stream, n, at).to_string()).collect();
        let (path, body) = match bodies.as_slice() {
            [one] => ("/events", one.clone()),
            several => ("/events/batch", format!("[{}]", several.join(","))),
        };
        loop {
            let asked = Instant::now();
            let why = match self.server.post(path, &self.access.token()?, body.clone()).await {
                Ok(response) if response.status.is_success() => {
                    self.published.answers.add(asked.elapsed().as_micros() as u64);
                    break;
                }
                Ok(response) if response.status.is_client_error() && response.status != 429 => {
                    self.published.refused = Some(rejection(&response));
                    // No event of the batch is in the log.
                    events.iter().for_each(|(stream, _)| *self.totals.entry(*stream).or_default() -= 1);
                    return Ok(());
                }
                Ok(response) => format!("HTTP status {}", response.status.as_u16()),
                Err(error) if error.is::<UsageError>() => return Err(error),
                Err(error) => error.to_string(),
            };
            *self.published.retries.entry(why).or_default() += 1;
            if *end.borrow() {
                // It is unknown whether they are in the log, so they are not counted as lost.
                events.iter().for_each(|(stream, _)| *self.totals.entry(*stream).or_default() -= 1);
                return Ok(());
            }
            sleep(PAUSE).await;
        }
        self.published.events += count;
        events.iter().for_each(|(stream, _)| *self.published.by_audience.entry(stream.kind).or_default() += 1);
        Ok(())
    }

    fn next_stream(&mut self) -> (Stream, u32) {
        let kind = self.turns.next();
        let index = match kind {
            Kind::Everyone => 0,
            Kind::Topic => fastrand::u64(..self.plan.topics.max(1)),
            Kind::User if self.user.is_some() => 0,
            Kind::User => fastrand::u64(..self.plan.connections),
        };
        let stream = Stream { kind, index };
        let n = self.totals.entry(stream).or_default();
        *n += 1;
        (stream, *n)
    }

    fn event(&self, stream: Stream, n: u32, at: u64) -> Value {
        let audience = match stream.kind {
            Kind::Everyone => json!("everyone"),
            Kind::Topic => json!({ "topic": topic_name(stream.index) }),
            Kind::User => json!({ "user": self.user.clone().unwrap_or_else(|| user_name(stream.index)) }),
        };
        let data = Payload { run: self.run, stream, n, at, pad: "x".repeat(self.plan.payload).into() };
        json!({ "type": TYPE, "event_id": event_id(self.run, stream, n), "audience": audience, "data": data })
    }
}

fn rejection(response: &HubResponse) -> String {
    let body: Value = serde_json::from_slice(&response.body).unwrap_or_default();
    let detail = body["detail"].as_str().unwrap_or("no detail");
    format!("HTTP status {}: {detail}", response.status.as_u16())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_taken_as_the_weights_say() {
        let mut turns = Turns { weights: [1, 2, 7], credit: [0; 3] };
        let taken: Vec<_> = (0..100).map(|_| turns.next()).collect();
        let count = |kind| taken.iter().filter(|&&taken| taken == kind).count();
        assert_eq!(Kind::ALL.map(count), [10, 20, 70]);
        assert!(taken.windows(12).all(|some| some.contains(&Kind::Everyone)), "evenly");
    }
}

//! The thread that maintains the link to Redis. It opens a link, runs all tasks of the link, and opens the next one
//! when the link ends. It is a separate thread so that many simultaneous connects do not delay the log.

use super::{
    appender,
    connection::read,
    error::LinkError,
    heartbeat,
    joining::Joining,
    limits::{ANSWER, BLOCK, LEASE},
    link::{Facts, Link},
    presence, pubsub, recovery, revoked,
    scripts::Script,
    shared::{Job, Shared},
    stops, tail,
};
use crate::{BrokerError, clock, environment, metrics::LogCounter};
use redis::{Value, cmd};
use std::{
    convert::Infallible,
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};
use tokio::{
    runtime::Builder,
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout},
};

/// The pause before the next attempt: at first, and at most.
const SOON: Duration = Duration::from_millis(50);
const LATER: Duration = Duration::from_secs(1);

/// How long the hub waits for Redis at startup.
const START: Duration = Duration::from_secs(10);

/// How often Sentinel is asked for the master. Must be well below the time for which nodes on the new master wait for
/// the other nodes, so that events that were acknowledged at the old master can still be restored.
const ASK_SENTINEL: Duration = Duration::from_secs(1);

/// The timeout for removing this node from the lists in Redis.
const LEAVE: Duration = Duration::from_secs(1);

/// A caller that waits until the window has every event of the log.
pub(super) type Waiter = oneshot::Sender<()>;

pub(super) struct Bus {
    pub(super) shared: Arc<Shared>,
    pub(super) jobs: mpsc::Receiver<Job>,
    pub(super) waiters: mpsc::UnboundedReceiver<Waiter>,
    /// The waiters that were received and not yet answered.
    waiting: Vec<Waiter>,
    pub(super) received: mpsc::Sender<crate::Record>,
    pub(super) stop: watch::Receiver<bool>,
    /// The ID of the last entry that was read from the control stream.
    control_id: Option<String>,
    heartbeats: u64,
    /// The node has not followed a log yet.
    fresh: bool,
}

impl Bus {
    pub(super) fn new(
        shared: Arc<Shared>,
        jobs: mpsc::Receiver<Job>,
        waiters: mpsc::UnboundedReceiver<Waiter>,
        received: mpsc::Sender<crate::Record>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        Self {
            shared,
            jobs,
            waiters,
            waiting: Vec::new(),
            received,
            stop,
            control_id: None,
            heartbeats: 0,
            fresh: true,
        }
    }

    /// Starts the thread. In a simulation it spawns a task instead. `started` receives the result of the first connect:
    /// success once the window is filled, or the error.
    pub(super) fn spawn(
        self,
        forward: impl Future<Output = ()> + Send + 'static,
        started: oneshot::Sender<Result<(), LinkError>>,
    ) -> std::io::Result<Option<thread::JoinHandle<()>>> {
        let (shared, mut stop) = (self.shared.clone(), self.stop.clone());
        let task = async move || {
            environment::spawn(forward);
            // Whether or not there is a link: a stop may end it.
            environment::spawn(async move {
                while timeout(stops::TICK, stopped(&mut stop)).await.is_err() {
                    shared.tick();
                }
            });
            self.run(started).await;
        };
        if let Some(environment) = environment::current() {
            environment.spawn(Box::pin(task()));
            return Ok(None);
        }
        let runtime = Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("fanfare-bus".to_owned()).spawn(move || runtime.block_on(task())).map(Some)
    }

    async fn run(mut self, started: oneshot::Sender<Result<(), LinkError>>) {
        let (mut started, deadline) = (Some(started), Instant::now() + START);
        let mut stop = self.stop.clone();
        let mut pause = SOON;
        loop {
            let tried = clock::now().mono_ms;
            let ended = tokio::select! {
                biased;
                ended = self.run_link(&mut started) => ended,
                () = stopped(&mut stop) => return self.leave().await,
            };
            let Err(error) = ended;
            if let LinkError::Down(_) = error {
                self.shared.members().no_joins_until(tried);
            }
            // The new owner of a slot is known within moments, so there is no backoff.
            if self.shared.up_since().is_some() || matches!(error, LinkError::Migrating(_) | LinkError::Moved(_)) {
                pause = SOON;
            }
            self.note_down(&error);
            if let Some(waiting) = started.take() {
                if error.is_final() || Instant::now() >= deadline {
                    let _ = waiting.send(Err(error));
                    return;
                }
                started = Some(waiting);
            }
            // Random spread, so that the nodes do not reconnect simultaneously after a restart of Redis.
            let jitter = Duration::from_millis(u64::from(crate::random::random::<1>()[0]) / 4);
            tokio::select! {
                biased;
                () = sleep(pause + jitter) => {}
                () = stopped(&mut stop) => return,
            }
            pause = (pause * 2).min(LATER);
        }
    }

    fn note_down(&mut self, error: &LinkError) {
        self.shared.joined.send_replace(false);
        self.shared.listed.store(false, Ordering::Relaxed);
        if self.shared.down(&error.to_string()) && !*self.stop.borrow() {
            tracing::warn!(%error, "no link to Redis; retrying");
        }
        let mut batch = Vec::new();
        while let Ok(job) = self.jobs.try_recv() {
            batch.push(job);
        }
        appender::fail(batch, error);
        // Waiters remain queued for the next link, unless their callers have given up.
        while let Ok(waiter) = self.waiters.try_recv() {
            self.waiting.push(waiter);
        }
        self.waiting.retain(|waiter| !waiter.is_closed());
    }

    /// Opens a link and runs its tasks until one of them fails.
    ///
    /// The order of the steps matters. The channels are subscribed first, so that no message is lost that is published
    /// during the recovery. The recovery (`settle`) completes before the window is filled, because it decides which
    /// part of the window remains valid. The node joins after its window has been filled. Revocations are applied
    /// before the node reports that it is up.
    async fn run_link(
        &mut self,
        started: &mut Option<oneshot::Sender<Result<(), LinkError>>>,
    ) -> Result<Infallible, LinkError> {
        let shared = self.shared.clone();
        let (url, keys) = (&shared.options.url, &shared.keys);
        let asked = clock::now().mono_ms;
        let (link, facts) = Link::open(url, keys, shared.metrics.clone()).await?;
        if url.is_sentinel() {
            shared.set_lease(asked, LEASE);
        }
        check_key(&link, &keys.log, "stream").await?;
        let tail_connection = link.another(url, BLOCK + ANSWER).await?;
        let mut pubsub = link.pubsub(url).await?;
        pubsub::subscribe(&shared, &mut pubsub).await?;
        let since = link.clock_ms().await?;
        let fresh = self.fresh.then_some(facts.uptime);
        let head = tokio::select! {
            biased;
            head = recovery::settle(&shared, &link, since, fresh) => head?,
            // A recovery can take long, and another server may replace this one in the meantime.
            ended = watch_master(&shared, &link) => match ended { Err(error) => return Err(error) },
        };
        let mut control_id = self.control_start(&link).await?;
        revoked::synchronise(&shared, &link).await?;
        tail::catch_up(&shared, &link, head).await?;
        let mut joining = Joining::new();
        joining.first(&shared, &link).await?;
        if std::mem::take(&mut self.fresh) {
            warn(&facts);
        } else {
            shared.metrics.add(LogCounter::Reconnects, 1);
        }
        shared.up(link.clone());
        let (head, epoch) = (*shared.head.borrow(), shared.epoch());
        let (address, epoch) = (&link.located.address, format!("{epoch:x}"));
        tracing::info!(%address, version = facts.version, head, epoch, "linked to Redis");
        if let Some(started) = started.take() {
            // The receiver is gone if the caller has given up.
            let _ = started.send(Ok(()));
        }
        let result = tokio::try_join!(
            appender::run(&shared, &link, &mut self.jobs),
            tail::run(&shared, &link, tail_connection, &mut control_id),
            pubsub::run(&shared, &link, pubsub, &self.received),
            heartbeat::run(&shared, &link, since, &mut self.heartbeats),
            presence::run(&shared, &link),
            watch_master(&shared, &link),
            joining.run(&shared, &link),
            answer_waiters(&shared, &link, &mut self.waiters, &mut self.waiting),
        );
        self.control_id = Some(control_id);
        result.map(|(never, ..)| never)
    }

    /// The ID after which the control stream is read: the last ID that was read, or the newest ID if the stream has
    /// been replaced by a shorter one.
    async fn control_start(&self, link: &Link) -> Result<String, LinkError> {
        let newest = cmd("XREVRANGE").arg(&self.shared.keys.control).arg("+").arg("-").arg("COUNT").arg(1).take();
        let newest: Vec<(String, Value)> = read(link.call(&newest).await?)?;
        let newest = newest.into_iter().next().map_or_else(|| "0-0".to_owned(), |(id, _)| id);
        let number = |id: &str| {
            let (ms, n) = id.split_once('-')?;
            Some((ms.parse::<u64>().ok()?, n.parse::<u64>().ok()?))
        };
        Ok(match &self.control_id {
            Some(read) if number(read) <= number(&newest) => read.clone(),
            _ => newest,
        })
    }

    /// Removes this node from the lists in Redis, so that no other node waits for it.
    async fn leave(&mut self) {
        let held = self.shared.link();
        self.note_down(&LinkError::Unreachable("the hub is shutting down".to_owned()));
        let keys = &self.shared.keys;
        let leave = async {
            // Opening another link takes many round trips, and the answers of the sentinels.
            let link = match held {
                Ok(link) => link,
                Err(_) => Link::open(&self.shared.options.url, keys, self.shared.metrics.clone()).await?.0,
            };
            let own = format!("{}{}", keys.node, self.shared.node);
            let names = [&*keys.log, &keys.epoch, &keys.ids, &keys.members, &keys.nodes, &keys.pubsub, &own];
            let mut command = link.script(Script::Leave, &names);
            let epoch = self.shared.epoch();
            command.arg(&link.server).arg(format!("{epoch:x}")).arg(&self.shared.node);
            {
                let members = self.shared.members();
                command.arg(members.name()).arg(members.former());
            }
            link.call(&command).await
        };
        if !matches!(timeout(LEAVE, leave).await, Ok(Ok(_))) {
            tracing::debug!("could not remove this node from the lists in Redis; the entry expires");
        }
    }
}

/// Waits until the bus is stopped.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender was dropped, which also stops the bus.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Asks Sentinel for the master periodically, and ends the link if the master is no longer the server of this link. A
/// master that was isolated and has not been demoted yet would accept events that no other node receives. A master that
/// is named again, under a later configuration epoch, ends the link too: other nodes may have acknowledged events at
/// another server in between.
async fn watch_master(shared: &Shared, link: &Link) -> Result<Infallible, LinkError> {
    let url = &shared.options.url;
    if !url.is_sentinel() {
        return std::future::pending().await;
    }
    let mut expired = false;
    loop {
        sleep(ASK_SENTINEL).await;
        let asked = clock::now().mono_ms;
        match url.locate(&shared.keys.log).await {
            Ok(master) if master != link.located => {
                let (now, before) = (&master.address, &link.located.address);
                return Err(LinkError::NotMaster(if now == before {
                    format!("Sentinel named another master in between, and now names {now} again")
                } else {
                    format!("Sentinel names {now} as the master instead of {before}")
                }));
            }
            Ok(_) => {
                shared.set_lease(asked, LEASE);
                shared.note_sentinels(None);
                if std::mem::take(&mut expired) {
                    tracing::info!("a majority of the sentinels confirms the master again; events are accepted");
                }
            }
            // The link stays open, but the node accepts no events once the lease has expired.
            Err(error) => {
                shared.note_sentinels(Some(error.to_string()));
                if let Err(error) = shared.check_lease()
                    && !std::mem::replace(&mut expired, true)
                {
                    tracing::warn!("{error}");
                }
            }
        }
    }
}

/// Answers the waiters for the head of the log. One query serves all callers that wait at the time. A node without a
/// valid lease does not answer: other nodes may have appended at another server, and may restore those events at this
/// server later.
async fn answer_waiters(
    shared: &Shared,
    link: &Link,
    waiters: &mut mpsc::UnboundedReceiver<Waiter>,
    waiting: &mut Vec<Waiter>,
) -> Result<Infallible, LinkError> {
    let mut head = shared.head.subscribe();
    loop {
        if waiting.is_empty() {
            let Some(first) = waiters.recv().await else {
                return Err(LinkError::Unreachable("the hub is shutting down".to_owned()));
            };
            waiting.push(first);
        }
        while let Ok(waiter) = waiters.try_recv() {
            waiting.push(waiter);
        }
        let _ = shared.joined.subscribe().wait_for(|joined| *joined).await;
        let there: Option<u64> = read(link.call(cmd("HGET").arg(&shared.keys.epoch).arg("head")).await?)?;
        // The sender is part of `Shared`, so waiting cannot fail.
        let _ = head.wait_for(|here| *here >= there.unwrap_or(0)).await;
        if shared.check_lease().is_err() {
            sleep(ASK_SENTINEL).await;
            continue;
        }
        for waiter in waiting.drain(..) {
            let _ = waiter.send(());
        }
    }
}

async fn check_key(link: &Link, key: &str, wanted: &str) -> Result<(), LinkError> {
    let kind: String = read(link.call(cmd("TYPE").arg(key)).await?)?;
    if kind == wanted || kind == "none" {
        Ok(())
    } else {
        Err(LinkError::NotOurs(format!("the key {key} holds a {kind}, not the {wanted} of the log")))
    }
}

fn warn(facts: &Facts) {
    if facts.eviction.starts_with("allkeys") {
        tracing::warn!(
            "maxmemory-policy of Redis is {}: Redis may evict the log under memory pressure; set maxmemory-policy \
             noeviction (or volatile-lru, if other keys of that server are a cache)",
            facts.eviction
        );
    }
}

impl From<LinkError> for BrokerError {
    fn from(error: LinkError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

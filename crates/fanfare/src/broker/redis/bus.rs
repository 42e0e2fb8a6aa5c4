//! The thread that keeps a link to Redis: it makes one, runs everything that lives on it, and makes the next when
//! that ends. A thread of its own, so that no storm of connects delays the log.

use super::{
    appender, heartbeat,
    link::{ANSWER, BLOCK, Facts, Link, LinkError},
    members::Joining,
    presence, pubsub, recovery, revoked,
    scripts::Script,
    shared::{Job, Shared},
    stops, tail,
};
use crate::{broker::BrokerError, clock, environment, metrics::Counter};
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

/// How long to wait before the next attempt: at first, and at most.
const SOON: Duration = Duration::from_millis(50);
const LATER: Duration = Duration::from_secs(1);

/// How long Redis may be out of reach at the start.
const START: Duration = Duration::from_secs(10);

/// How often Sentinel is asked. Well below the time that nodes which are on the new master wait for the others, so that
/// what went to the old one meanwhile can still be put back.
const ASK_SENTINEL: Duration = Duration::from_secs(1);

/// For how long the word of a majority of the sentinels counts. A server that takes the place of another is not confirmed
/// before that has run out for every node that is not there.
pub(super) const LEASE: Duration = Duration::from_secs(4);

/// How long taking leave may take.
const LEAVE: Duration = Duration::from_secs(1);

/// Who waits until the window has all that the log has.
pub(super) type Waiter = oneshot::Sender<()>;

pub(super) struct Bus {
    pub(super) shared: Arc<Shared>,
    pub(super) jobs: mpsc::Receiver<Job>,
    pub(super) waiters: mpsc::UnboundedReceiver<Waiter>,
    /// Those that were taken and wait for an answer.
    waiting: Vec<Waiter>,
    pub(super) heard: mpsc::Sender<crate::broker::Record>,
    pub(super) stop: watch::Receiver<bool>,
    /// The place up to which orders were read.
    orders: Option<String>,
    beats: u64,
    /// No log was followed yet.
    fresh: bool,
}

impl Bus {
    pub(super) fn new(
        shared: Arc<Shared>,
        jobs: mpsc::Receiver<Job>,
        waiters: mpsc::UnboundedReceiver<Waiter>,
        heard: mpsc::Sender<crate::broker::Record>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        Self { shared, jobs, waiters, waiting: Vec::new(), heard, stop, orders: None, beats: 0, fresh: true }
    }

    /// Starts the thread; a simulation has none. `started` hears once the window is warm, or why that can't be.
    pub(super) fn spawn(
        self,
        forward: impl Future<Output = ()> + Send + 'static,
        started: oneshot::Sender<Result<(), LinkError>>,
    ) -> std::io::Result<Option<thread::JoinHandle<()>>> {
        let (shared, mut stop) = (self.shared.clone(), self.stop.clone());
        let live = async move || {
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
            environment.spawn(Box::pin(live()));
            return Ok(None);
        }
        let runtime = Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("fanfare-bus".to_owned()).spawn(move || runtime.block_on(live())).map(Some)
    }

    async fn run(mut self, started: oneshot::Sender<Result<(), LinkError>>) {
        let (mut started, deadline) = (Some(started), Instant::now() + START);
        let mut stop = self.stop.clone();
        let mut pause = SOON;
        loop {
            let tried = clock::now().mono_ms;
            let ended = tokio::select! {
                biased;
                ended = self.live(&mut started) => ended,
                () = stopped(&mut stop) => return self.leave().await,
            };
            let Err(error) = ended;
            if let LinkError::Down(_) = error {
                self.shared.members().nobody_could(tried);
            }
            // The new owner of a slot is known within moments.
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
            // So that the nodes of a server that comes back don't all knock at once.
            let jitter = Duration::from_millis(u64::from(crate::identity::random::<1>()[0]) / 4);
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
            tracing::warn!(%error, "no link to Redis; trying again until there is one");
        }
        let mut batch = Vec::new();
        while let Ok(job) = self.jobs.try_recv() {
            batch.push(job);
        }
        appender::refuse(batch, error);
        // Those that wait for the log wait for the next link, unless they have given up.
        while let Ok(waiter) = self.waiters.try_recv() {
            self.waiting.push(waiter);
        }
        self.waiting.retain(|waiter| !waiter.is_closed());
    }

    /// Makes a link and lives on it until it ends.
    async fn live(
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
        pubsub::listen(&shared, &mut pubsub).await?;
        let since = link.clock_ms().await?;
        let fresh = self.fresh.then_some(facts.uptime);
        let head = tokio::select! {
            biased;
            head = recovery::settle(&shared, &link, since, fresh) => head?,
            // Another server may take this one's place meanwhile.
            ended = watch_master(&shared, &link) => match ended { Err(error) => return Err(error) },
        };
        let mut orders = self.place_of_orders(&link).await?;
        revoked::level(&shared, &link).await?;
        tail::catch_up(&shared, &link, head).await?;
        let mut joining = Joining::new();
        joining.first(&shared, &link).await?;
        if std::mem::take(&mut self.fresh) {
            warn(&facts);
        } else {
            shared.metrics.add(Counter::BusReconnects, 1);
        }
        shared.up(link.clone());
        let (head, epoch) = (*shared.head.borrow(), shared.epoch());
        tracing::info!(address = %link.located.address, version = facts.version, head, epoch = format!("{epoch:x}"), "linked to Redis");
        if let Some(started) = started.take() {
            // Who started the hub may have given up.
            let _ = started.send(Ok(()));
        }
        let result = tokio::try_join!(
            appender::run(&shared, &link, &mut self.jobs),
            tail::run(&shared, &link, tail_connection, &mut orders),
            pubsub::run(&shared, &link, pubsub, &self.heard),
            heartbeat::run(&shared, &link, since, &mut self.beats),
            presence::run(&shared, &link),
            watch_master(&shared, &link),
            joining.run(&shared, &link),
            answer_waiters(&shared, &link, &mut self.waiters, &mut self.waiting),
        );
        self.orders = Some(orders);
        result.map(|(never, ..)| never)
    }

    /// Where orders are read from: where they were read to, unless that is further than they go.
    async fn place_of_orders(&self, link: &Link) -> Result<String, LinkError> {
        let newest = cmd("XREVRANGE").arg(&self.shared.keys.control).arg("+").arg("-").arg("COUNT").arg(1).take();
        let newest: Vec<(String, Value)> = super::link::read(link.call(&newest).await?)?;
        let newest = newest.into_iter().next().map_or_else(|| "0-0".to_owned(), |(id, _)| id);
        let number = |id: &str| {
            let (ms, n) = id.split_once('-')?;
            Some((ms.parse::<u64>().ok()?, n.parse::<u64>().ok()?))
        };
        Ok(match &self.orders {
            Some(read) if number(read) <= number(&newest) => read.clone(),
            _ => newest,
        })
    }

    /// Takes this node off the list, so that nobody waits for it.
    async fn leave(&mut self) {
        let held = self.shared.link();
        self.note_down(&LinkError::Unreachable("the hub ends".to_owned()));
        let keys = &self.shared.keys;
        let leave = async {
            // Another one takes many round trips, and so does the majority of the sentinels.
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
            tracing::debug!("Redis was not told that this node leaves; it notices by itself");
        }
    }
}

/// Waits until the bus is to end.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that nobody is left who could stop it.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Asks Sentinel again and again who the master is, until it is another one than this link leads to. A master that was
/// away and has not been told yet that it is none any more would take events that nobody else gets. A master that is named again,
/// under a later configuration epoch, ends the link too: other nodes may have acknowledged events at another server meanwhile.
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
                    format!("Sentinel names {now} again, and named another one in between")
                } else {
                    format!("Sentinel names {now}, and not {before} any more")
                }));
            }
            Ok(_) => {
                shared.set_lease(asked, LEASE);
                shared.note_word(None);
                if std::mem::take(&mut expired) {
                    tracing::info!("a majority of the sentinels confirms the master again; events are accepted");
                }
            }
            // The link stays, and rejects events once the last word of a majority is too old.
            Err(error) => {
                shared.note_word(Some(error.to_string()));
                if let Err(error) = shared.check_lease()
                    && !std::mem::replace(&mut expired, true)
                {
                    tracing::warn!("{error}");
                }
            }
        }
    }
}

/// Answers the clients that wait for the head of the log, all that wait at that time with one question. A node that may not
/// acknowledge does not answer: other nodes may have appended at another server, and put that back at this one later.
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
                return Err(LinkError::Unreachable("the hub ends".to_owned()));
            };
            waiting.push(first);
        }
        while let Ok(waiter) = waiters.try_recv() {
            waiting.push(waiter);
        }
        let _ = shared.joined.subscribe().wait_for(|joined| *joined).await;
        let there: Option<u64> = super::link::read(link.call(cmd("HGET").arg(&shared.keys.epoch).arg("head")).await?)?;
        // The sender lives as long as what is shared.
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
    let kind: String = super::link::read(link.call(cmd("TYPE").arg(key)).await?)?;
    if kind == wanted || kind == "none" {
        Ok(())
    } else {
        Err(LinkError::NotOurs(format!("the key {key} holds a {kind}, and not the log (a {wanted})")))
    }
}

fn warn(facts: &Facts) {
    if facts.eviction.starts_with("allkeys") {
        tracing::warn!(
            "Redis' maxmemory-policy is {}: under memory pressure it would throw the log away; set maxmemory-policy \
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

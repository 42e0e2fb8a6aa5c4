//! `fanfare bench`: generates load and measures it. Clients run in separate processes, because of the limit on open
//! files of a process. This process publishes, monitors and reports.

#![expect(clippy::cast_possible_truncation, reason = "times and counts of a load are far below what a number can hold")]

mod agent;
mod client;
mod floor;
mod frame;
mod html;
pub(crate) mod outcome;
mod plan;
mod publisher;
mod report;
mod socket;
mod tally;
mod usage;

pub(crate) use plan::PRESETS;

use crate::{
    access::{Access, TokenSigner, parts},
    api_client::Server as Http,
    settings::Settings,
    util::{UsageError, print, print_status},
};
use agent::{Order, Progress, Report, Setup};
use anyhow::Context;
use clap::ArgMatches;
use fanfare::auth::Claims;
use fanfare_client::Options;
use indicatif::{ProgressBar, ProgressStyle};
use outcome::{Floor, Outcome, Second, Server};
use plan::Plan;
use publisher::Publisher;
use serde_json::Value;
use socket::Target;
use std::{io::IsTerminal, process::Stdio, time::Duration};
use tally::{Tally, Times};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use usage::{Machine, Processes, Usage};

/// Lifetime of the load's tokens.
const TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 3_600);
/// Limits of the ramp. After a multiple of the planned time, or after some seconds without a new client, the load
/// continues with the clients that are connected.
const RAMP_LIMIT: f64 = 2.0;
const RAMP_GRACE: Duration = Duration::from_secs(30);
const RAMP_STALL_SECS: usize = 10;
/// The interval at which the resource usage of the hub is sampled, in seconds.
const SAMPLE_SECS: usize = 10;
/// The time limit for outstanding events and for the results of the client processes.
const REPORT_TIMEOUT: Duration = Duration::from_secs(60);

/// The run was interrupted. Exit code 130, as in shells after SIGINT.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

/// The users of the clients.
struct Users {
    /// The user of all clients, if they share one token.
    user: Option<String>,
    token: Option<String>,
    /// The token of the first client.
    first: String,
    publisher: Access,
}

/// Runs the load that the flags describe, or one process of it.
pub(crate) fn run(matches: &ArgMatches, settings: &Settings) -> anyhow::Result<()> {
    // Raises the limit on open files as far as the system allows.
    let files = rlimit::increase_nofile_limit(u64::MAX).context("failed to read the limit on open files")?;
    match matches.get_one::<String>("part").map(String::as_str) {
        Some("floor") => return floor(),
        Some("clients") => return agent::run(signer(matches, settings)?),
        // The bare write loop checks no tokens.
        Some(_) => return agent::run(None),
        None => {}
    }
    let target = Target::parse(matches.get_one::<String>("url").map_or("", String::as_str))?;
    let mut plan = Plan::read(matches, target.address.ip(), files)?;
    let who = who(matches, settings, &mut plan)?;
    let earlier = matches.get_one::<String>("compare").map(|path| report::read(path)).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(measure(plan, who, target))?;
    print(&report::table(&outcome, earlier.as_ref()))?;
    if let Some(path) = matches.get_one::<String>("json") {
        report::write_file(path, &serde_json::to_string(&outcome)?)?;
    }
    if let Some(path) = matches.get_one::<String>("html") {
        report::write_file(path, &html::page(&outcome, earlier.as_ref())?)?;
    }
    if outcome.interrupted {
        return Err(Interrupted.into());
    }
    anyhow::ensure!(
        outcome.is_flawless(),
        "some clients did not connect, or did not receive every event exactly once and in order"
    );
    Ok(())
}

/// Runs the bare write loop on a free port until standard input ends.
fn floor() -> anyhow::Result<()> {
    let listener = mio::net::TcpListener::bind(([127, 0, 0, 1], 0).into())?;
    print(&format!("{}\n", listener.local_addr()?))?;
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    floor::serve(listener)
}

fn claims() -> Claims {
    Claims { topics: vec!["bench:*".to_owned()], ..Claims::default() }
}

/// Signs the tokens of the clients, unless they share one.
fn signer(matches: &ArgMatches, settings: &Settings) -> anyhow::Result<Option<TokenSigner>> {
    match matches.get_one::<String>("token") {
        Some(_) => Ok(None),
        None => TokenSigner::new(settings, claims(), TOKEN_LIFETIME).map(Some),
    }
}

/// Reads the rights of a shared token, and removes from the plan what they do not allow.
fn who(matches: &ArgMatches, settings: &Settings, plan: &mut Plan) -> anyhow::Result<Users> {
    let Some(token) = matches.get_one::<String>("token").map(|token| token.trim().to_owned()) else {
        let publisher = Claims { sub: "bench".to_owned(), publish: true, ..claims() };
        let first = TokenSigner::new(settings, claims(), TOKEN_LIFETIME)?.token_of(&agent::user_name(0))?;
        return Ok(Users { user: None, token: None, first, publisher: Access::signed(settings, publisher)? });
    };
    let claims = parts(&token).map(|(_, claims)| claims).unwrap_or_default();
    let admin = claims["admin"] == true;
    let topics = claims["topics"].as_array().into_iter().flatten().filter_map(Value::as_str);
    if !admin && !topics.into_iter().any(|pattern| ["*", "bench:*"].contains(&pattern)) {
        plan.topics = 0;
        plan.mix[1] = 0;
    }
    let user = claims["sub"].as_str().map(str::to_owned);
    if user.is_none() {
        plan.mix[2] = 0;
    }
    if !admin && claims.is_object() && claims["publish"] != true {
        plan.rate = 0.0;
        print_status("the token may not publish (claims `publish` or `admin`), so no events are published");
    } else if plan.mix == [0; 3] {
        return Err(UsageError("the token allows none of the audiences of --mix".to_owned()).into());
    }
    let user = user.or_else(|| Some(String::new()));
    Ok(Users { user, publisher: Access::Given(token.clone()), first: token.clone(), token: Some(token) })
}

/// Connects one client first, so that an error which concerns all clients is reported once.
async fn try_out(plan: &Plan, who: &Users) -> anyhow::Result<()> {
    let server = Http::parse(&plan.url)?;
    server.connect().await.with_context(|| format!("failed to reach the hub at {server}"))?;
    let mut listener = Options::new(&plan.url, who.first.as_str()).listen()?;
    match listener.next().await {
        Err(rejected) if rejected.code == Some(1008) && who.token.is_none() => {
            anyhow::bail!("{rejected}; set SECRET_KEY to the hub's secret, or use --token")
        }
        Err(rejected) => return Err(rejected.into()),
        // Connected, or rejected by a limit, which the clients wait for.
        Ok(_) => listener.close().await,
    }
    Ok(())
}

/// Runs the load on the hub, and then on the bare write loop if requested.
async fn measure(plan: Plan, who: Users, target: Target) -> anyhow::Result<Outcome> {
    try_out(&plan, &who).await?;
    let began_at = crate::util::unix_secs();
    let Users { user, token, publisher, .. } = who;
    let load = Load::start(&plan, "clients", token, target.address.port()).await?;
    let publisher = Publisher::new(Http::parse(&plan.url)?, publisher, &plan, load.run, user);
    let measured = load.run(publisher).await?;
    let spread = measured.tally.to_the_last();
    let floor = if plan.floor > 0 && !measured.interrupted { Some(beside(&plan).await?) } else { None };
    let mut outcome = Outcome {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        began_at,
        machine: Machine::this(),
        interrupted: measured.interrupted,
        figures: vec![],
        tally: measured.tally,
        spread,
        published: measured.published,
        server: measured.server,
        timeline: measured.timeline,
        floor,
        plan,
    };
    outcome.figures = outcome::figures(&outcome);
    Ok(outcome)
}

/// Runs the same load on a bare write loop, which supports only one audience.
async fn beside(plan: &Plan) -> anyhow::Result<Floor> {
    let mut server = Command::new(std::env::current_exe()?)
        .args(["bench", "--part", "floor"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(server.stdout.take().context("the write loop has no output")?).lines();
    let address: std::net::SocketAddr = lines.next_line().await?.context("the write loop did not start")?.parse()?;
    let plan = Plan {
        url: format!("ws://{address}/ws"),
        connections: plan.floor,
        processes: plan.processes.min(plan.floor),
        topics: 0,
        storms: 0,
        slow_percent: 0,
        ..plan.clone()
    };
    let load = Load::start(&plan, "floor-clients", None, address.port()).await?;
    let access = Access::Given("none".to_owned());
    let publisher = Publisher::new(Http::parse(&plan.url)?, access, &plan, load.run, None);
    let measured = load.run(publisher).await?;
    Ok(Floor {
        connections: plan.connections,
        cpu_us_a_delivery: measured.server.map_or(0.0, |server| server.cpu_us_a_delivery(measured.tally.deliveries)),
        spread: measured.tally.to_the_last(),
        latency: measured.tally.latency,
    })
}

/// The client processes, and their reports.
struct Load {
    plan: Plan,
    /// Identifies the events of this run.
    run: u64,
    agents: Vec<(Child, ChildStdin)>,
    reports: mpsc::Receiver<(usize, Report)>,
    latest: Vec<Progress>,
    done: usize,
    tally: Tally,
    /// Latencies since the last second of the timeline.
    recent: Times,
    timeline: Vec<Second>,
    began: Instant,
    processes: Option<Processes>,
    before: Usage,
    /// Resource usage of the hub while events were published.
    samples: Vec<(f64, Usage)>,
    publishing: bool,
}

/// The results of a load.
struct Measured {
    tally: Tally,
    published: publisher::Published,
    server: Option<Server>,
    timeline: Vec<Second>,
    interrupted: bool,
}

/// How a stage of the load ended.
#[derive(PartialEq, Eq)]
enum Stage {
    Reached,
    TimeUp,
    Interrupted,
}

impl Load {
    async fn start(plan: &Plan, part: &str, token: Option<String>, port: u16) -> anyhow::Result<Self> {
        let run = u64::from_str_radix(&crate::util::random_id()?[..8], 16)?;
        let processes = Processes::listening_on(port);
        let before = processes.as_ref().map(Processes::usage).unwrap_or_default();
        let (say, reports) = mpsc::channel(256);
        let mut agents = Vec::new();
        for process in 0..plan.processes {
            let mut child = Command::new(std::env::current_exe()?)
                .args(std::env::args_os().skip(1))
                .args(["--part", part])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                // Ctrl-C is handled by this process, which then stops the others.
                .process_group(0)
                .kill_on_drop(true)
                .spawn()
                .context("failed to start a client process")?;
            let mut orders = child.stdin.take().context("the client process has no input")?;
            let setup = Setup { plan: plan.clone(), run, process, token: token.clone() };
            give(&mut orders, &Order::Start(Box::new(setup))).await?;
            let said = child.stdout.take().context("the client process has no output")?;
            let say = say.clone();
            tokio::spawn(async move {
                let mut lines = BufReader::new(said).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    let Ok(report) = serde_json::from_str(&line) else { break };
                    if say.send((process as usize, report)).await.is_err() {
                        break;
                    }
                }
            });
            agents.push((child, orders));
        }
        Ok(Self {
            latest: vec![Progress::default(); agents.len()],
            plan: plan.clone(),
            run,
            agents,
            reports,
            done: 0,
            tally: Tally::default(),
            recent: Times::default(),
            timeline: vec![],
            began: Instant::now(),
            processes,
            before,
            samples: vec![],
            publishing: false,
        })
    }

    async fn run(mut self, mut publisher: Publisher) -> anyhow::Result<Measured> {
        let Plan { connections, hold, storms, .. } = self.plan;
        let ramp = Duration::from_secs_f64(connections as f64 / self.plan.ramp * RAMP_LIMIT) + RAMP_GRACE;
        let bar = bar("connecting", connections);
        let everybody = |load: &Self| load.live() >= connections || load.is_stalled();
        let mut stage = self.watch(&bar, Instant::now() + ramp, Self::live, everybody).await?;
        bar.finish_and_clear();
        let connected = self.usage();

        let bar = self::bar("publishing", hold.as_secs());
        if stage != Stage::Interrupted {
            self.order(&Order::Publishing).await?;
            self.publishing = true;
            let load = &mut self;
            (publisher, stage) = tokio::task::LocalSet::new()
                .run_until(async {
                    let (end, ends) = watch::channel(false);
                    let publishing = tokio::task::spawn_local(async move {
                        let result = publisher.run(ends).await;
                        (publisher, result)
                    });
                    let stage = load.hold(&bar, hold, storms).await?;
                    // Fails only if the publisher has stopped already.
                    let _ = end.send(true);
                    let (publisher, result) = publishing.await?;
                    result.map(|()| (publisher, stage))
                })
                .await?;
        }
        bar.finish_and_clear();
        self.publishing = false;

        let bar = self::bar("outstanding", self.agents.len() as u64);
        self.order(&Order::Finish(publisher.totals())).await?;
        let all = |load: &Self| load.done == load.agents.len();
        let finished = self.watch(&bar, Instant::now() + REPORT_TIMEOUT, |load| load.done as u64, all).await?;
        bar.finish_and_clear();
        let after = self.usage();
        anyhow::ensure!(
            finished != Stage::TimeUp,
            "a client process did not report within {} s",
            REPORT_TIMEOUT.as_secs()
        );
        let interrupted = stage == Stage::Interrupted || finished == Stage::Interrupted;
        self.end().await;
        let server = self.processes.as_ref().map(|processes| Server {
            processes: processes.count(),
            before: self.before,
            connected,
            after,
            samples: self.samples,
        });
        Ok(Measured { tally: self.tally, published: publisher.published, server, timeline: self.timeline, interrupted })
    }

    /// Monitors the load for `hold`, with storms evenly distributed over it.
    async fn hold(&mut self, bar: &ProgressBar, hold: Duration, storms: u32) -> anyhow::Result<Stage> {
        let began = Instant::now();
        for storm in 1..=storms + 1 {
            let until = began + hold.mul_f64(f64::from(storm) / f64::from(storms + 1));
            let stage = self.watch(bar, until, |_| began.elapsed().as_secs(), |_| false).await?;
            if stage == Stage::Interrupted {
                return Ok(stage);
            }
            if storm <= storms {
                self.order(&Order::Storm).await?;
            }
        }
        Ok(Stage::TimeUp)
    }

    /// Whether no new client has connected for a while although some tried.
    fn is_stalled(&self) -> bool {
        let Some(before) = self.timeline.len().checked_sub(RAMP_STALL_SECS).and_then(|at| self.timeline.get(at)) else {
            return false;
        };
        self.timeline.last().is_some_and(|last| last.live == before.live && last.failed > before.failed)
    }

    fn live(&self) -> u64 {
        self.latest.iter().map(|progress| progress.live).sum()
    }

    fn usage(&self) -> Usage {
        self.processes.as_ref().map(Processes::usage).unwrap_or_default()
    }

    /// Processes reports until `reached`, until the deadline, or until an interrupt.
    async fn watch(
        &mut self,
        bar: &ProgressBar,
        deadline: Instant,
        position: impl Fn(&Self) -> u64,
        reached: impl Fn(&Self) -> bool,
    ) -> anyhow::Result<Stage> {
        let mut seconds = interval(Duration::from_secs(1));
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        seconds.reset();
        while !reached(self) {
            tokio::select! {
                report = self.reports.recv() => {
                    let (process, report) = report.context("the client processes have exited")?;
                    self.take(process, report);
                }
                _ = seconds.tick() => {
                    self.note_second();
                    self.check()?;
                    bar.set_position(position(self));
                    bar.set_message(self.summary());
                    if bar.is_hidden() && self.timeline.len().is_multiple_of(10) {
                        print_status(&format!("{:.0} s: {}", self.began.elapsed().as_secs_f64(), self.summary()));
                    }
                }
                () = sleep_until(deadline) => return Ok(Stage::TimeUp),
                _ = tokio::signal::ctrl_c() => return Ok(Stage::Interrupted),
            }
        }
        Ok(Stage::Reached)
    }

    fn take(&mut self, process: usize, report: Report) {
        match report {
            Report::Progress(progress) => {
                self.recent.merge(&progress.latency);
                self.latest[process] = progress;
            }
            Report::Spread(part) => self.tally.merge_spread(part),
            Report::Done(tally) => {
                self.tally.merge(*tally);
                self.done += 1;
            }
        }
    }

    /// Checks that no client process has exited early.
    fn check(&mut self) -> anyhow::Result<()> {
        for (child, _) in &mut self.agents {
            if let Some(status) = child.try_wait()? {
                anyhow::bail!("a client process exited early: {status}");
            }
        }
        Ok(())
    }

    fn note_second(&mut self) {
        let sum = |of: fn(&Progress) -> u64| self.latest.iter().map(of).sum::<u64>();
        let (deliveries, bytes) = (sum(|progress| progress.deliveries), sum(|progress| progress.bytes));
        let at = self.began.elapsed().as_secs_f64();
        let (before, deliveries_before, bytes_before) = self.counted();
        let passed = (at - before).max(0.001);
        let known = self.recent.count() > 0;
        let quantile = |share| known.then(|| self.recent.quantile(share));
        self.timeline.push(Second {
            at,
            live: self.live(),
            failed: sum(|progress| progress.failed),
            deliveries_per_second: deliveries.saturating_sub(deliveries_before) as f64 / passed,
            megabytes_per_second: bytes.saturating_sub(bytes_before) as f64 / passed / 1e6,
            p50: quantile(0.5),
            p99: quantile(0.99),
            deliveries,
            bytes,
        });
        self.recent.clear();
        if self.publishing && self.timeline.len().is_multiple_of(SAMPLE_SECS) {
            self.samples.push((at, self.usage()));
        }
    }

    /// When the last second of the timeline ended, and the deliveries until then.
    fn counted(&self) -> (f64, u64, u64) {
        self.timeline.last().map_or((0.0, 0, 0), |second| (second.at, second.deliveries, second.bytes))
    }

    fn summary(&self) -> String {
        let Some(second) = self.timeline.last() else { return String::new() };
        let failed = if second.failed > 0 { format!(", {} failed", second.failed) } else { String::new() };
        let p99 = second.p99.map_or(String::new(), |us| format!(", p99 {:.1} ms", us as f64 / 1e3));
        format!("{} live{failed}, {:.0} deliveries/s{p99}", second.live, second.deliveries_per_second)
    }

    async fn order(&mut self, order: &Order) -> anyhow::Result<()> {
        for (_, orders) in &mut self.agents {
            give(orders, order).await?;
        }
        Ok(())
    }

    /// Closes the inputs of the client processes, which then exit.
    async fn end(&mut self) {
        for (mut child, orders) in self.agents.drain(..) {
            drop(orders);
            if timeout(Duration::from_secs(10), child.wait()).await.is_err() {
                // Dropping it kills the process.
                drop(child);
            }
        }
    }
}

async fn give(orders: &mut ChildStdin, order: &Order) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(order)?;
    line.push(b'\n');
    orders.write_all(&line).await.context("a client process has exited")?;
    Ok(orders.flush().await?)
}

/// A progress bar, drawn only on a terminal.
fn bar(what: &'static str, length: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{prefix:>20} {wide_bar} {pos}/{len}  {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(length).with_style(style).with_prefix(what);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

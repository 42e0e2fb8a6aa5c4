//! Several workers on one port: starts them, starts a dead one again, replaces them one at a time, and ends them.
//!
//! Each worker has a listening socket of its own (SO_REUSEPORT), which the supervisor opened and keeps: clients that wait
//! in its queue outlive the worker, and its replacement takes them. A worker that fails again and again has its socket
//! closed until it is started again, so that the kernel gives its share of the clients to the others meanwhile.

use super::{
    Signals, Told, listener,
    worker::{READY, WORKER},
};
use crate::settings::Settings;
use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use socket2::Socket;
use std::{
    env,
    net::SocketAddr,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    select,
    time::{Instant, sleep, sleep_until, timeout},
};

/// How long to wait before a worker that died is started again: at first, and at most.
const SOON: Duration = Duration::from_millis(100);
const LATER: Duration = Duration::from_secs(10);

/// A worker that lived this long starts with a clean slate.
const PROVEN: Duration = Duration::from_secs(30);

/// So many failures in a row, and the worker's clients are given to the others.
const FAILURES: u32 = 3;

/// How long a worker may take to be ready.
const READINESS: Duration = Duration::from_secs(60);

/// How much longer than it may drain a worker may take to end.
const MARGIN: Duration = Duration::from_secs(5);

/// What a worker's process inherits beside the environment.
pub(super) struct Supervisor<'a> {
    settings: &'a Settings,
    address: SocketAddr,
    /// Where the program is: what stands there when a worker is started is what it runs.
    program: PathBuf,
    /// The secret of this run, if one was made for it.
    secret: Option<String>,
    seats: Vec<Seat>,
    /// Workers that drain, and whose seat another has.
    leaving: Vec<Running>,
}

/// One of the workers, and the socket that stays while it is replaced.
struct Seat {
    index: usize,
    socket: Option<Socket>,
    running: Option<Running>,
    failures: u32,
    /// When it is to be started again.
    due: Option<Instant>,
}

struct Running {
    child: Child,
    pid: Pid,
    since: Instant,
}

/// What the supervisor has to see to next.
enum Event {
    Ended(usize, ExitStatus),
    Due(usize),
    Stop,
    Replace,
}

impl<'a> Supervisor<'a> {
    pub(super) fn new(settings: &'a Settings, workers: usize, secret: Option<String>) -> anyhow::Result<Self> {
        let first = listener::open_shared(settings.listen)?;
        let address = first.local_addr()?.as_socket().context("the listener has no address")?;
        let mut seats = vec![Seat::new(0, first)];
        for index in 1..workers {
            // With port 0 the others share the one that the first was given.
            seats.push(Seat::new(index, listener::open_shared(address)?));
        }
        // Asked later, the system would name the file that this process was started from, even if it is gone.
        let program = env::current_exe().context("the program does not find itself")?;
        Ok(Self { settings, address, program, secret, seats, leaving: Vec::new() })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts the workers; says how the first one fails, if it does, because the others would too.
    pub(super) async fn start(&mut self, signals: &mut Signals) -> anyhow::Result<()> {
        for index in 0..self.seats.len() {
            let started = select! {
                started = self.bring_up(index) => started?,
                () = signals.stop() => bail!("ended while the workers started"),
            };
            if let Err(status) = started {
                self.end(signals).await?;
                bail!("worker {index} {} before it was ready; it said why", describe(status));
            }
        }
        tracing::info!(workers = self.seats.len(), "all workers are ready");
        Ok(())
    }

    /// Keeps them alive until a signal.
    pub(super) async fn run(&mut self, signals: &mut Signals) -> anyhow::Result<()> {
        loop {
            match self.next(signals).await {
                Event::Ended(index, status) => self.note_end(index, status),
                Event::Due(index) => {
                    self.seats[index].due = None;
                    if let Err(error) = self.launch(index) {
                        tracing::error!(worker = index, "it can't be started: {error:#}");
                        self.seats[index].fail();
                    }
                }
                Event::Replace => {
                    if !self.replace_all(signals).await? {
                        return Ok(());
                    }
                }
                Event::Stop => return Ok(()),
            }
        }
    }

    async fn next(&mut self, signals: &mut Signals) -> Event {
        let due = self.seats.iter().filter_map(|seat| Some((seat.due?, seat.index))).min();
        let wait = async {
            match due {
                Some((at, index)) => {
                    sleep_until(at).await;
                    index
                }
                None => std::future::pending().await,
            }
        };
        select! {
            (index, status) = any_end(&mut self.seats) => Event::Ended(index, status),
            index = wait => Event::Due(index),
            told = signals.next() => match told {
                Told::Stop => Event::Stop,
                Told::Replace => Event::Replace,
            },
        }
    }

    fn note_end(&mut self, index: usize, status: ExitStatus) {
        let seat = &mut self.seats[index];
        let lived = seat.running.take().map_or(Duration::ZERO, |running| running.since.elapsed());
        if lived >= PROVEN {
            seat.failures = 0;
        }
        let pause = seat.fail();
        tracing::error!(worker = index, "it {}; starting it again in {} ms", describe(status), pause.as_millis());
    }

    /// Starts a worker and waits until it is ready, or has ended.
    async fn bring_up(&mut self, index: usize) -> anyhow::Result<Result<(), ExitStatus>> {
        let ready = self.launch(index)?;
        let running = self.seats[index].running.as_mut().context("it was just started")?;
        select! {
            () = ready => Ok(Ok(())),
            status = running.child.wait() => {
                self.seats[index].running = None;
                Ok(Err(status?))
            }
        }
    }

    /// Starts a worker's process. What is returned ends once it is ready, and says so.
    fn launch(&mut self, index: usize) -> anyhow::Result<impl Future<Output = ()> + use<>> {
        let address = self.address;
        let seat = &mut self.seats[index];
        let socket = match &seat.socket {
            Some(socket) => socket.try_clone()?,
            None => seat.socket.insert(listener::open_shared(address)?).try_clone()?,
        };
        let mut command = Command::new(&self.program);
        command.args(env::args_os().skip(1));
        command.env(WORKER, format!("{index}/{}", std::process::id()));
        if let Some(secret) = &self.secret {
            command.env("FANFARE_SECRET_KEY", secret);
        }
        command.stdin(Stdio::from(OwnedFd::from(socket))).stdout(Stdio::piped());
        let mut child = command.spawn().context("the system starts no process")?;
        let id = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)).context("it has no process id")?;
        let said = child.stdout.take().context("its output is not there")?;
        seat.running = Some(Running { child, pid: id, since: Instant::now() });
        tracing::info!(worker = index, pid = id.as_raw_pid(), "started");
        let (ready, heard) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let mut lines = BufReader::new(said).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if line == READY {
                    tracing::info!(worker = index, pid = id.as_raw_pid(), "ready");
                    // Who started it may not be waiting.
                    let _ = ready.send(());
                    break;
                }
            }
        });
        Ok(async move {
            if heard.await.is_err() {
                // It ended instead, which is seen elsewhere.
                std::future::pending::<()>().await;
            }
        })
    }

    /// Replaces the workers one at a time: the next one's replacement is started once the last one's clients have gone.
    /// Returns whether to go on.
    async fn replace_all(&mut self, signals: &mut Signals) -> anyhow::Result<bool> {
        tracing::info!("replacing the workers, one at a time");
        for index in 0..self.seats.len() {
            let old = self.seats[index].running.take();
            self.seats[index].due = None;
            let started = select! {
                started = timeout(READINESS, self.bring_up(index)) => started,
                () = signals.stop() => {
                    self.leave_to(index, old).await;
                    return Ok(false);
                }
            };
            match started {
                Ok(Ok(Ok(()))) => {}
                failed => {
                    let why = match failed {
                        Ok(Ok(Err(status))) => describe(status),
                        Ok(Err(error)) => format!("can't be started: {error:#}"),
                        _ => format!("was not ready within {} s", READINESS.as_secs()),
                    };
                    tracing::error!(worker = index, "its replacement {why}; the workers stay as they are");
                    self.leave_to(index, old).await;
                    return Ok(true);
                }
            }
            if let Some(old) = old
                && !self.see_off(index, old, signals).await
            {
                return Ok(false);
            }
            self.seats[index].failures = 0;
        }
        tracing::info!("all workers are replaced");
        Ok(true)
    }

    /// Gives a seat back to the one that was to be replaced.
    async fn leave_to(&mut self, index: usize, old: Option<Running>) {
        if let Some(mut new) = std::mem::replace(&mut self.seats[index].running, old) {
            // One that has ended already is what was wanted.
            let _ = new.child.kill().await;
        }
        if self.seats[index].running.is_none() {
            self.seats[index].fail();
        }
    }

    /// Waits until a worker's clients have gone. Returns whether to go on.
    async fn see_off(&mut self, index: usize, mut old: Running, signals: &mut Signals) -> bool {
        old.tell(Signal::TERM);
        let limit = self.settings.drain_timeout + MARGIN;
        let ended = select! {
            ended = timeout(limit, old.child.wait()) => ended,
            () = signals.stop() => {
                self.leaving.push(old);
                return false;
            }
        };
        match ended {
            Ok(_) => tracing::info!(worker = index, pid = old.pid.as_raw_pid(), "drained"),
            Err(_) => {
                tracing::warn!(worker = index, pid = old.pid.as_raw_pid(), "it did not end in time, and is killed");
                let _ = old.child.kill().await;
            }
        }
        true
    }

    /// Ends all workers. A second signal ends them at once, which is an error.
    pub(super) async fn end(&mut self, signals: &mut Signals) -> anyhow::Result<()> {
        let mut forced = false;
        let tell = |seats: &[Seat], signal| {
            seats.iter().filter_map(|seat| seat.running.as_ref()).for_each(|running| running.tell(signal));
        };
        // Those that drain already would take another signal for impatience.
        tell(&self.seats, Signal::TERM);
        let next_seat = self.seats.len();
        for (i, running) in self.leaving.drain(..).enumerate() {
            self.seats.push(Seat {
                index: next_seat + i,
                socket: None,
                running: Some(running),
                failures: 0,
                due: None,
            });
        }
        let mut deadline = Instant::now() + self.settings.drain_timeout + MARGIN;
        while self.seats.iter().any(|seat| seat.running.is_some()) {
            select! {
                (index, status) = any_end(&mut self.seats) => {
                    self.seats[index].running = None;
                    tracing::info!(worker = index, "it {}", describe(status));
                }
                () = signals.stop() => {
                    forced = true;
                    tell(&self.seats, Signal::KILL);
                }
                () = sleep_until(deadline) => {
                    tracing::warn!("some workers did not end in time, and are killed");
                    tell(&self.seats, Signal::KILL);
                    deadline += MARGIN;
                }
            }
        }
        anyhow::ensure!(!forced, "ended at once, as a second signal asked");
        Ok(())
    }
}

impl Seat {
    fn new(index: usize, socket: Socket) -> Self {
        Self { index, socket: Some(socket), running: None, failures: 0, due: None }
    }

    /// Notes a failure, and when to try again. Returns how long that is.
    fn fail(&mut self) -> Duration {
        let pause = (SOON * 2u32.saturating_pow(self.failures)).min(LATER);
        self.failures += 1;
        self.due = Some(Instant::now() + pause);
        if self.failures >= FAILURES {
            self.socket = None;
        }
        pause
    }
}

impl Running {
    fn tell(&self, signal: Signal) {
        // One that has ended already needs no telling.
        let _ = kill_process(self.pid, signal);
    }
}

/// Waits for the end of any worker.
async fn any_end(seats: &mut [Seat]) -> (usize, ExitStatus) {
    let ends = seats.iter_mut().filter_map(|seat| {
        let (index, running) = (seat.index, seat.running.as_mut()?);
        Some(Box::pin(async move {
            loop {
                match running.child.wait().await {
                    Ok(status) => return (index, status),
                    Err(error) => {
                        tracing::error!(worker = index, %error, "its end can't be waited for");
                        sleep(LATER).await;
                    }
                }
            }
        }))
    });
    let ends: Vec<_> = ends.collect();
    if ends.is_empty() {
        return std::future::pending().await;
    }
    futures_util::future::select_all(ends).await.0
}

/// How a process ended, as the rest of a sentence.
fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

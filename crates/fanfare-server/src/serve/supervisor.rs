//! Several workers on one port: starts them, restarts workers that fail, replaces them one at a time, and shuts them
//! down.
//!
//! Each worker has its own listening socket (SO_REUSEPORT). The supervisor opens it and keeps it open, so that the
//! connections in its queue outlive the worker and reach its replacement. The socket of a worker that fails repeatedly
//! is closed until the next attempt, so that the kernel distributes its share of connections to the other workers.

use super::{
    MAX_REQUEST_TIME, Signals, SupervisorSignal, listener,
    worker::{SHUTDOWN_SIGNAL, WORKER, WorkerMessage},
};
use crate::settings::Settings;
use anyhow::{Context, bail, ensure};
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
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::{Instant, sleep, sleep_until},
};

/// The pause before a failed worker is restarted: at first, and at most.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// A worker that ran for this long resets its count of failures.
const STABLE_AFTER: Duration = Duration::from_secs(30);

/// After this many failures in a row the worker's socket is closed.
const MAX_FAILURES: u32 = 3;

/// How long a worker may take to become ready.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// How much longer than its drain timeout a worker may take to exit.
const EXIT_MARGIN: Duration = Duration::from_secs(5);

/// The processes and sockets of all workers.
pub(super) struct Supervisor<'a> {
    settings: &'a Settings,
    /// The one socket of all workers, if a service manager owns it.
    inherited: Option<Socket>,
    address: SocketAddr,
    /// The path of the program file. A worker runs the version that is there when it is started.
    program: PathBuf,
    /// The secret that was generated for this run, if any.
    secret: Option<String>,
    slots: Vec<SlotState>,
    processes: Vec<Process>,
    /// Number of processes started so far, which is the ID of the next one.
    started: u64,
    rollout: Option<Rollout>,
    /// Another rollout was requested during this one.
    rollout_again: bool,
    /// All workers have been ready at least once.
    all_were_ready: bool,
    sender: UnboundedSender<(u64, WorkerMessage)>,
    messages: UnboundedReceiver<(u64, WorkerMessage)>,
}

/// The slot of one worker. Its processes are replaced; the slot stays.
struct SlotState {
    socket: Option<Socket>,
    failures: u32,
    /// When a process is to be started in it.
    due: Option<Instant>,
}

/// A worker's process.
struct Process {
    id: u64,
    slot: usize,
    child: Child,
    pid: Pid,
    state: State,
    since: Instant,
    /// When it is killed, unless its state changes before.
    limit: Option<Instant>,
    /// How long it may take to exit by itself.
    drain_timeout: Duration,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Starting,
    Ready,
    Draining,
}

/// The replacement of all workers, one at a time.
struct Rollout {
    slot: usize,
    /// The new process of the slot. Older processes of the slot are drained once it is ready.
    id: u64,
    ready: bool,
}

/// The next event for the supervisor.
enum Event {
    /// A process exited, by its index in the list.
    Exited(usize, ExitStatus),
    Overdue(usize),
    Message(u64, WorkerMessage),
    /// A slot needs a process.
    Due(usize),
    Signal(SupervisorSignal),
}

impl<'a> Supervisor<'a> {
    pub(super) fn new(
        settings: &'a Settings,
        inherited: Option<Socket>,
        workers: usize,
        secret: Option<String>,
    ) -> anyhow::Result<Self> {
        let first = socket_of_worker(inherited.as_ref(), settings.listen)?;
        let address = first.local_addr()?.as_socket().context("the listener has no address")?;
        let mut slots = vec![SlotState::new(first)];
        for _ in 1..workers {
            // With port 0 all others share the port that the first socket was assigned.
            slots.push(SlotState::new(socket_of_worker(inherited.as_ref(), address)?));
        }
        // Resolved now: later the path would be that of the running file, even if it was replaced or deleted.
        let program = env::current_exe().context("failed to find the program file")?;
        let (sender, messages) = unbounded_channel();
        Ok(Self {
            settings,
            inherited,
            address,
            program,
            secret,
            slots,
            processes: Vec::new(),
            started: 0,
            rollout: None,
            rollout_again: false,
            all_were_ready: false,
            sender,
            messages,
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts the first worker and waits until it is ready. Returns false if a signal arrived first.
    ///
    /// # Errors
    /// If the worker exits before it is ready, because the other workers would exit too.
    pub(super) async fn start(&mut self, signals: &mut Signals) -> anyhow::Result<bool> {
        self.launch(0)?;
        loop {
            match self.next(signals).await {
                Event::Exited(place, status) => {
                    self.processes.remove(place);
                    bail!("worker 0 {} before it was ready; its log lines above state the cause", describe(status));
                }
                Event::Message(id, WorkerMessage::Ready { drain_timeout }) => {
                    self.note_ready(id, drain_timeout);
                    return Ok(true);
                }
                Event::Overdue(place) => self.processes[place].kill_overdue(),
                Event::Signal(SupervisorSignal::Stop) => return Ok(false),
                Event::Message(_, WorkerMessage::Draining)
                | Event::Due(_)
                | Event::Signal(SupervisorSignal::Replace) => {}
            }
        }
    }

    /// Starts the other workers, and restarts and replaces workers until a signal stops the program.
    pub(super) async fn run(&mut self, signals: &mut Signals) {
        for slot in 1..self.slots.len() {
            self.launch_or_retry(slot);
        }
        loop {
            match self.next(signals).await {
                Event::Exited(place, status) => self.note_exit(place, status),
                Event::Overdue(place) => self.processes[place].kill_overdue(),
                Event::Message(id, WorkerMessage::Ready { drain_timeout }) => self.note_ready(id, drain_timeout),
                Event::Message(id, WorkerMessage::Draining) => self.note_draining(id),
                Event::Due(slot) => self.launch_or_retry(slot),
                Event::Signal(SupervisorSignal::Replace) => self.replace_all(),
                Event::Signal(SupervisorSignal::Stop) => return,
            }
        }
    }

    async fn next(&mut self, signals: &mut Signals) -> Event {
        let slots = self.slots.iter().enumerate().filter_map(|(i, slot)| Some((slot.due?, Event::Due(i))));
        let limits = self.processes.iter().enumerate();
        let limits = limits.filter_map(|(i, process)| Some((process.limit?, Event::Overdue(i))));
        let first = slots.chain(limits).min_by_key(|&(at, _)| at);
        let timer = async {
            match first {
                Some((at, event)) => {
                    sleep_until(at).await;
                    event
                }
                None => std::future::pending().await,
            }
        };
        select! {
            (place, status) = any_exit(&mut self.processes) => Event::Exited(place, status),
            event = timer => event,
            // Never `None`: this value holds a sender itself.
            Some((id, message)) = self.messages.recv() => Event::Message(id, message),
            signal = signals.next() => Event::Signal(signal),
        }
    }

    /// Starts a process in a slot. [`Self::next`] returns its messages.
    fn launch(&mut self, index: usize) -> anyhow::Result<u64> {
        let address = self.address;
        let slot = &mut self.slots[index];
        let socket = match &slot.socket {
            Some(socket) => socket.try_clone()?,
            None => slot.socket.insert(socket_of_worker(self.inherited.as_ref(), address)?).try_clone()?,
        };
        let mut command = Command::new(&self.program);
        command.args(env::args_os().skip(1));
        command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC").env_remove("LISTEN_FDS");
        command.env(WORKER, format!("{index}/{}", std::process::id()));
        if let Some(secret) = &self.secret {
            command.env("FANFARE_SECRET_KEY", secret);
        }
        command.stdin(Stdio::from(OwnedFd::from(socket))).stdout(Stdio::piped());
        let mut child = command.spawn().context("failed to start a process")?;
        let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)).context("the process has no ID")?;
        let output = child.stdout.take().context("the process has no output")?;
        tracing::info!(worker = index, pid = pid.as_raw_pid(), "started");
        let (id, now) = (self.started, Instant::now());
        self.started += 1;
        self.processes.push(Process {
            id,
            slot: index,
            child,
            pid,
            state: State::Starting,
            since: now,
            limit: Some(now + READY_TIMEOUT),
            drain_timeout: self.settings.drain_timeout.max(MAX_REQUEST_TIME),
        });
        let sender = self.sender.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(output).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some(message) = WorkerMessage::parse(&line) {
                    // Fails only if the supervisor exits.
                    let _ = sender.send((id, message));
                }
            }
        });
        Ok(id)
    }

    fn launch_or_retry(&mut self, index: usize) {
        self.slots[index].due = None;
        if let Err(error) = self.launch(index) {
            tracing::error!(worker = index, "failed to start the worker: {error:#}");
            self.slots[index].record_failure();
        }
    }

    fn note_ready(&mut self, id: u64, drain_timeout: Duration) {
        let Some(process) = self.processes.iter_mut().find(|process| process.id == id) else { return };
        if process.state != State::Starting {
            return;
        }
        (process.state, process.limit, process.drain_timeout) = (State::Ready, None, drain_timeout);
        tracing::info!(worker = process.slot, pid = process.pid.as_raw_pid(), "ready");
        let ready = self.processes.iter().filter(|process| process.state == State::Ready).count();
        if ready == self.slots.len() && !std::mem::replace(&mut self.all_were_ready, true) {
            tracing::info!(workers = ready, "all workers are ready");
        }
        if let Some(rollout) = self.rollout.as_mut().filter(|rollout| rollout.id == id) {
            rollout.ready = true;
            let slot = rollout.slot;
            self.slots[slot].failures = 0;
            for old in self.processes.iter_mut().filter(|process| process.slot == slot && process.id < id) {
                old.drain(Signal::TERM);
            }
            self.continue_rollout();
        }
    }

    /// Starts another process in the slot of a worker that got a signal from outside, because it accepts no more
    /// clients.
    fn note_draining(&mut self, id: u64) {
        let Some(process) = self.processes.iter_mut().find(|process| process.id == id) else { return };
        if process.state == State::Draining {
            return;
        }
        (process.state, process.limit) = (State::Draining, Some(Instant::now() + process.drain_timeout + EXIT_MARGIN));
        let (slot, pid) = (process.slot, process.pid.as_raw_pid());
        if !self.is_occupied(slot) {
            tracing::info!(worker = slot, pid, "worker is draining after a signal; starting another");
            self.slots[slot].due = Some(Instant::now() + MIN_PAUSE);
        }
    }

    fn note_exit(&mut self, place: usize, status: ExitStatus) {
        let process = self.processes.remove(place);
        let (index, pid, how) = (process.slot, process.pid.as_raw_pid(), describe(status));
        let taken = self.is_occupied(index);
        let slot = &mut self.slots[index];
        if self.rollout.as_ref().is_some_and(|rollout| rollout.id == process.id && !rollout.ready) {
            tracing::error!(
                worker = index,
                pid,
                "the replacement {how}; the rollout is stopped, and the old workers keep running"
            );
            self.stop_rollout();
        } else if process.state == State::Draining {
            tracing::info!(worker = index, pid, "worker drained and {how}");
        } else if taken {
            tracing::error!(worker = index, pid, "worker {how}; its replacement is already running");
        } else {
            if process.since.elapsed() >= STABLE_AFTER {
                slot.failures = 0;
            }
            let pause = slot.record_failure();
            tracing::error!(worker = index, pid, "worker {how}; restarting in {} ms", pause.as_millis());
        }
        self.continue_rollout();
    }

    /// Replaces the workers one at a time. The next replacement is started once the previous worker has drained.
    fn replace_all(&mut self) {
        if self.rollout.is_some() {
            tracing::info!("the workers are already being replaced; they will be replaced once more afterwards");
            self.rollout_again = true;
            return;
        }
        tracing::info!("replacing the workers, one at a time");
        self.replace(0);
    }

    fn replace(&mut self, slot: usize) {
        self.slots[slot].due = None;
        match self.launch(slot) {
            Ok(id) => self.rollout = Some(Rollout { slot, id, ready: false }),
            Err(error) => {
                tracing::error!(
                    worker = slot,
                    "failed to start the replacement: {error:#}; the rollout is stopped, and the old workers keep \
                     running"
                );
                self.rollout = Some(Rollout { slot, id: self.started, ready: false });
                self.stop_rollout();
            }
        }
    }

    fn stop_rollout(&mut self) {
        self.rollout_again = false;
        if let Some(Rollout { slot, .. }) = self.rollout.take()
            && !self.is_occupied(slot)
        {
            self.slots[slot].record_failure();
        }
    }

    /// Continues with the next worker once the previous one has drained.
    fn continue_rollout(&mut self) {
        let Some(Rollout { slot, id, ready }) = self.rollout else { return };
        if !ready || self.processes.iter().any(|process| process.slot == slot && process.id < id) {
            return;
        }
        self.rollout = None;
        if slot + 1 < self.slots.len() {
            return self.replace(slot + 1);
        }
        tracing::info!("all workers are replaced");
        if std::mem::take(&mut self.rollout_again) {
            self.replace_all();
        }
    }

    /// Whether the slot has a process that is not draining.
    fn is_occupied(&self, slot: usize) -> bool {
        self.processes.iter().any(|process| process.slot == slot && process.state != State::Draining)
    }

    /// Shuts all workers down. A second signal kills them, which is an error.
    pub(super) async fn shut_down(&mut self, signals: &mut Signals) -> anyhow::Result<()> {
        // New connections are refused once the workers have closed their copies of the sockets too.
        self.slots.clear();
        for process in &mut self.processes {
            process.drain(SHUTDOWN_SIGNAL);
        }
        let mut forced = false;
        while !self.processes.is_empty() {
            match self.next(signals).await {
                Event::Exited(place, status) => {
                    let process = self.processes.remove(place);
                    tracing::info!(
                        worker = process.slot,
                        pid = process.pid.as_raw_pid(),
                        "worker {}",
                        describe(status)
                    );
                }
                Event::Overdue(place) => self.processes[place].kill_overdue(),
                Event::Signal(SupervisorSignal::Stop) => {
                    forced = true;
                    self.processes.iter().for_each(|process| process.signal(Signal::KILL));
                }
                Event::Message(..) | Event::Due(_) | Event::Signal(SupervisorSignal::Replace) => {}
            }
        }
        ensure!(!forced, "killed the workers after a second signal");
        Ok(())
    }
}

/// A socket for a worker: its own, unless all share one of a service manager.
fn socket_of_worker(inherited: Option<&Socket>, address: SocketAddr) -> anyhow::Result<Socket> {
    inherited.map_or_else(|| listener::open_shared(address), |inherited| Ok(inherited.try_clone()?))
}

impl SlotState {
    fn new(socket: Socket) -> Self {
        Self { socket: Some(socket), failures: 0, due: None }
    }

    /// Counts a failure and schedules the next attempt. Returns the pause until then.
    fn record_failure(&mut self) -> Duration {
        let pause = (MIN_PAUSE * 2u32.saturating_pow(self.failures)).min(MAX_PAUSE);
        self.failures += 1;
        self.due = Some(Instant::now() + pause);
        if self.failures >= MAX_FAILURES {
            self.socket = None;
        }
        pause
    }
}

impl Process {
    fn signal(&self, signal: Signal) {
        // Fails only if the process has exited already.
        let _ = kill_process(self.pid, signal);
    }

    /// Sends a signal that makes the process drain and exit.
    fn drain(&mut self, signal: Signal) {
        self.signal(signal);
        if self.state != State::Draining {
            (self.state, self.limit) = (State::Draining, Some(Instant::now() + self.drain_timeout + EXIT_MARGIN));
        }
    }

    fn kill_overdue(&mut self) {
        let late = match self.state {
            State::Starting => format!("was not ready within {} s", READY_TIMEOUT.as_secs()),
            State::Ready | State::Draining => "did not exit in time".to_owned(),
        };
        tracing::error!(worker = self.slot, pid = self.pid.as_raw_pid(), "worker {late}; killing it");
        self.limit = None;
        self.signal(Signal::KILL);
    }
}

/// Waits until any process exits.
async fn any_exit(processes: &mut [Process]) -> (usize, ExitStatus) {
    let exits = processes.iter_mut().enumerate().map(|(place, process)| {
        Box::pin(async move {
            loop {
                match process.child.wait().await {
                    Ok(status) => return (place, status),
                    Err(error) => {
                        tracing::error!(worker = process.slot, %error, "failed to wait for the worker to exit");
                        sleep(MAX_PAUSE).await;
                    }
                }
            }
        })
    });
    let exits: Vec<_> = exits.collect();
    if exits.is_empty() {
        return std::future::pending().await;
    }
    futures_util::future::select_all(exits).await.0
}

/// How a process ended, as the rest of a sentence.
fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "exited".to_owned(),
    }
}

//! Several workers on one port: starts them, starts a dead one again, replaces them one at a time, and ends them.
//!
//! Each worker has a listening socket of its own (SO_REUSEPORT), which the supervisor opened and keeps: clients that wait
//! in its queue outlive the worker, and its replacement takes them. A worker that fails again and again has its socket
//! closed until it is ready again, so that the kernel gives its share of the clients to the others meanwhile.

use super::{
    LONGEST_REQUESTS, Signals, SupervisorSignal, listener,
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

/// How long to wait before a worker that died is started again: at first, and at most.
const SOON: Duration = Duration::from_millis(100);
const LATER: Duration = Duration::from_secs(10);

/// A worker that lived this long starts with a clean slate.
const PROVEN: Duration = Duration::from_secs(30);

/// So many failures in a row, and the worker's clients are given to the others.
const FAILURES: u32 = 3;

/// How long a worker may take to be ready.
const READINESS: Duration = Duration::from_secs(60);

/// How much longer than it said a worker may take to end.
const MARGIN: Duration = Duration::from_secs(5);

/// The workers' processes and sockets.
pub(super) struct Supervisor<'a> {
    settings: &'a Settings,
    /// The one socket of all workers, if a service manager holds it.
    given: Option<Socket>,
    address: SocketAddr,
    /// Where the program is: what stands there when a worker is started is what it runs.
    program: PathBuf,
    /// The secret of this run, if one was made for it.
    secret: Option<String>,
    slots: Vec<SlotState>,
    processes: Vec<Process>,
    /// Processes started so far: the name of the next one.
    started: u64,
    roll: Option<Roll>,
    /// Another roll was asked for during this one.
    again: bool,
    /// All workers have been ready once.
    complete: bool,
    tell: UnboundedSender<(u64, WorkerMessage)>,
    words: UnboundedReceiver<(u64, WorkerMessage)>,
}

/// The place of one worker, which stays while its processes come and go.
struct SlotState {
    socket: Option<Socket>,
    failures: u32,
    /// When a process is to be started for it.
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
    /// When it is killed, if nothing changes before.
    limit: Option<Instant>,
    /// How long it takes at most to end by itself.
    drain_timeout: Duration,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Starting,
    Ready,
    Leaving,
}

/// The replacement of all workers, one at a time.
struct Roll {
    slot: usize,
    /// The seat's new process. Those before it have to go once it is ready.
    id: u64,
    ready: bool,
}

/// What the supervisor has to see to next.
enum Event {
    /// A process, by its place in the list.
    Ended(usize, ExitStatus),
    Overdue(usize),
    Said(u64, WorkerMessage),
    /// A seat.
    Due(usize),
    Signal(SupervisorSignal),
}

impl<'a> Supervisor<'a> {
    pub(super) fn new(
        settings: &'a Settings,
        given: Option<Socket>,
        workers: usize,
        secret: Option<String>,
    ) -> anyhow::Result<Self> {
        let first = socket_of_worker(given.as_ref(), settings.listen)?;
        let address = first.local_addr()?.as_socket().context("the listener has no address")?;
        let mut slots = vec![SlotState::new(first)];
        for _ in 1..workers {
            // With port 0 the others share the one that the first was given.
            slots.push(SlotState::new(socket_of_worker(given.as_ref(), address)?));
        }
        // Asked later, the system would name the file that this process was started from, even if it is gone.
        let program = env::current_exe().context("the program does not find itself")?;
        let (tell, words) = unbounded_channel();
        Ok(Self {
            settings,
            given,
            address,
            program,
            secret,
            slots,
            processes: Vec::new(),
            started: 0,
            roll: None,
            again: false,
            complete: false,
            tell,
            words,
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts the first worker and waits until it is ready. Returns whether to go on.
    ///
    /// # Errors
    /// If it ends instead, because the others would too.
    pub(super) async fn start(&mut self, signals: &mut Signals) -> anyhow::Result<bool> {
        self.launch(0)?;
        loop {
            match self.next(signals).await {
                Event::Ended(place, status) => {
                    self.processes.remove(place);
                    bail!("worker 0 {} before it was ready; it said why", describe(status));
                }
                Event::Said(id, WorkerMessage::Ready { drain_timeout }) => {
                    self.note_ready(id, drain_timeout);
                    return Ok(true);
                }
                Event::Overdue(place) => self.processes[place].kill_overdue(),
                Event::Signal(SupervisorSignal::Stop) => return Ok(false),
                Event::Said(_, WorkerMessage::Ending) | Event::Due(_) | Event::Signal(SupervisorSignal::Replace) => {}
            }
        }
    }

    /// Starts the other workers, and keeps all alive until a signal.
    pub(super) async fn run(&mut self, signals: &mut Signals) {
        for slot in 1..self.slots.len() {
            self.launch_or_retry(slot);
        }
        loop {
            match self.next(signals).await {
                Event::Ended(place, status) => self.note_end(place, status),
                Event::Overdue(place) => self.processes[place].kill_overdue(),
                Event::Said(id, WorkerMessage::Ready { drain_timeout }) => self.note_ready(id, drain_timeout),
                Event::Said(id, WorkerMessage::Ending) => self.note_ending(id),
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
            (place, status) = any_end(&mut self.processes) => Event::Ended(place, status),
            event = timer => event,
            // There is always a sender: our own.
            Some((id, word)) = self.words.recv() => Event::Said(id, word),
            told = signals.next() => Event::Signal(told),
        }
    }

    /// Starts a seat's process. What it says is heard by [`Self::next`].
    fn launch(&mut self, index: usize) -> anyhow::Result<u64> {
        let address = self.address;
        let slot = &mut self.slots[index];
        let socket = match &slot.socket {
            Some(socket) => socket.try_clone()?,
            None => slot.socket.insert(socket_of_worker(self.given.as_ref(), address)?).try_clone()?,
        };
        let mut command = Command::new(&self.program);
        command.args(env::args_os().skip(1));
        command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC").env_remove("LISTEN_FDS");
        command.env(WORKER, format!("{index}/{}", std::process::id()));
        if let Some(secret) = &self.secret {
            command.env("FANFARE_SECRET_KEY", secret);
        }
        command.stdin(Stdio::from(OwnedFd::from(socket))).stdout(Stdio::piped());
        let mut child = command.spawn().context("the system starts no process")?;
        let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)).context("it has no process id")?;
        let said = child.stdout.take().context("its output is not there")?;
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
            limit: Some(now + READINESS),
            drain_timeout: self.settings.drain_timeout.max(LONGEST_REQUESTS),
        });
        let tell = self.tell.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(said).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some(word) = WorkerMessage::read(&line) {
                    // A supervisor that ends does not listen any more.
                    let _ = tell.send((id, word));
                }
            }
        });
        Ok(id)
    }

    fn launch_or_retry(&mut self, index: usize) {
        self.slots[index].due = None;
        if let Err(error) = self.launch(index) {
            tracing::error!(worker = index, "it can't be started: {error:#}");
            self.slots[index].fail();
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
        if ready == self.slots.len() && !std::mem::replace(&mut self.complete, true) {
            tracing::info!(workers = ready, "all workers are ready");
        }
        if let Some(roll) = self.roll.as_mut().filter(|roll| roll.id == id) {
            roll.ready = true;
            let slot = roll.slot;
            self.slots[slot].failures = 0;
            for old in self.processes.iter_mut().filter(|process| process.slot == slot && process.id < id) {
                old.leave(Signal::TERM);
            }
            self.go_on_with_roll();
        }
    }

    /// Starts another in the place of one that somebody else told to end: it takes nobody in any more.
    fn note_ending(&mut self, id: u64) {
        let Some(process) = self.processes.iter_mut().find(|process| process.id == id) else { return };
        if process.state == State::Leaving {
            return;
        }
        (process.state, process.limit) = (State::Leaving, Some(Instant::now() + process.drain_timeout + MARGIN));
        let (slot, pid) = (process.slot, process.pid.as_raw_pid());
        if !self.is_taken(slot) {
            tracing::info!(worker = slot, pid, "it was told to end; starting another");
            self.slots[slot].due = Some(Instant::now() + SOON);
        }
    }

    fn note_end(&mut self, place: usize, status: ExitStatus) {
        let process = self.processes.remove(place);
        let (index, pid, how) = (process.slot, process.pid.as_raw_pid(), describe(status));
        let taken = self.is_taken(index);
        let slot = &mut self.slots[index];
        if self.roll.as_ref().is_some_and(|roll| roll.id == process.id && !roll.ready) {
            tracing::error!(worker = index, pid, "its replacement {how}; the workers stay as they are");
            self.stop_roll();
        } else if process.state == State::Leaving {
            tracing::info!(worker = index, pid, "drained: it {how}");
        } else if taken {
            tracing::error!(worker = index, pid, "it {how}; its replacement takes its place");
        } else {
            if process.since.elapsed() >= PROVEN {
                slot.failures = 0;
            }
            let pause = slot.fail();
            tracing::error!(worker = index, pid, "it {how}; starting it again in {} ms", pause.as_millis());
        }
        self.go_on_with_roll();
    }

    /// Replaces the workers one at a time: the next one's replacement is started once the last one's clients have gone.
    fn replace_all(&mut self) {
        if self.roll.is_some() {
            tracing::info!("the workers are being replaced; that is done once more afterwards");
            self.again = true;
            return;
        }
        tracing::info!("replacing the workers, one at a time");
        self.replace(0);
    }

    fn replace(&mut self, slot: usize) {
        self.slots[slot].due = None;
        match self.launch(slot) {
            Ok(id) => self.roll = Some(Roll { slot, id, ready: false }),
            Err(error) => {
                tracing::error!(
                    worker = slot,
                    "its replacement can't be started: {error:#}; the workers stay as they are"
                );
                self.roll = Some(Roll { slot, id: self.started, ready: false });
                self.stop_roll();
            }
        }
    }

    fn stop_roll(&mut self) {
        self.again = false;
        if let Some(Roll { slot, .. }) = self.roll.take()
            && !self.is_taken(slot)
        {
            self.slots[slot].fail();
        }
    }

    /// Turns to the next worker once the last one's clients have gone.
    fn go_on_with_roll(&mut self) {
        let Some(Roll { slot, id, ready }) = self.roll else { return };
        if !ready || self.processes.iter().any(|process| process.slot == slot && process.id < id) {
            return;
        }
        self.roll = None;
        if slot + 1 < self.slots.len() {
            return self.replace(slot + 1);
        }
        tracing::info!("all workers are replaced");
        if std::mem::take(&mut self.again) {
            self.replace_all();
        }
    }

    /// Whether a process has the seat, and stays.
    fn is_taken(&self, slot: usize) -> bool {
        self.processes.iter().any(|process| process.slot == slot && process.state != State::Leaving)
    }

    /// Ends all workers. A second signal ends them at once, which is an error.
    pub(super) async fn end(&mut self, signals: &mut Signals) -> anyhow::Result<()> {
        // Whoever comes now is refused at once, once the workers have closed theirs too.
        self.slots.clear();
        for process in &mut self.processes {
            process.leave(SHUTDOWN_SIGNAL);
        }
        let mut forced = false;
        while !self.processes.is_empty() {
            match self.next(signals).await {
                Event::Ended(place, status) => {
                    let process = self.processes.remove(place);
                    tracing::info!(worker = process.slot, pid = process.pid.as_raw_pid(), "it {}", describe(status));
                }
                Event::Overdue(place) => self.processes[place].kill_overdue(),
                Event::Signal(SupervisorSignal::Stop) => {
                    forced = true;
                    self.processes.iter().for_each(|process| process.tell(Signal::KILL));
                }
                Event::Said(..) | Event::Due(_) | Event::Signal(SupervisorSignal::Replace) => {}
            }
        }
        ensure!(!forced, "ended at once, as a second signal asked");
        Ok(())
    }
}

/// A socket for a worker: one of its own, unless all have one that was given.
fn socket_of_worker(given: Option<&Socket>, address: SocketAddr) -> anyhow::Result<Socket> {
    given.map_or_else(|| listener::open_shared(address), |given| Ok(given.try_clone()?))
}

impl SlotState {
    fn new(socket: Socket) -> Self {
        Self { socket: Some(socket), failures: 0, due: None }
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

impl Process {
    fn tell(&self, signal: Signal) {
        // One that has ended already needs no telling.
        let _ = kill_process(self.pid, signal);
    }

    /// Tells it to end by itself.
    fn leave(&mut self, signal: Signal) {
        self.tell(signal);
        if self.state != State::Leaving {
            (self.state, self.limit) = (State::Leaving, Some(Instant::now() + self.drain_timeout + MARGIN));
        }
    }

    fn kill_overdue(&mut self) {
        let late = match self.state {
            State::Starting => format!("was not ready within {} s", READINESS.as_secs()),
            State::Ready | State::Leaving => "did not end in time".to_owned(),
        };
        tracing::error!(worker = self.slot, pid = self.pid.as_raw_pid(), "it {late}, and is killed");
        self.limit = None;
        self.tell(Signal::KILL);
    }
}

/// Waits for the end of any process.
async fn any_end(processes: &mut [Process]) -> (usize, ExitStatus) {
    let ends = processes.iter_mut().enumerate().map(|(place, process)| {
        Box::pin(async move {
            loop {
                match process.child.wait().await {
                    Ok(status) => return (place, status),
                    Err(error) => {
                        tracing::error!(worker = process.slot, %error, "its end can't be waited for");
                        sleep(LATER).await;
                    }
                }
            }
        })
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

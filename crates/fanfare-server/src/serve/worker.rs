//! A worker's side of the supervisor: what it is given, and what it says.

use super::listener;
use anyhow::Context;
use rustix::{
    process::{Pid, Signal, getppid, set_parent_process_death_signal},
    stdio::dup2_stdin,
};
use std::{
    env,
    fs::File,
    io::{self, Write},
    os::fd::AsFd,
    time::Duration,
};
use tokio::net::TcpListener;

/// Says which worker a process is, and whose.
pub(super) const WORKER: &str = "_FANFARE_WORKER";

/// Tells a worker to end when no other takes the clients that wait at its socket: all end, or the supervisor has. SIGTERM
/// tells one that is replaced.
pub(super) const SHUTDOWN_SIGNAL: Signal = Signal::USR1;

/// What a worker says to its supervisor: lines of its standard output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum WorkerMessage {
    /// It serves. Told to end, it takes no longer than this.
    Ready { drain_timeout: Duration },
    /// It takes nobody in any more.
    Ending,
}

/// A process that a supervisor started. Its standard input is its listening socket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Worker {
    pub(super) index: usize,
}

impl Worker {
    /// Whether this process is one. It then ends with its supervisor.
    pub(super) fn of_this_process() -> anyhow::Result<Option<Self>> {
        let Some(text) = env::var(WORKER).ok() else { return Ok(None) };
        let parsed = text.split_once('/').and_then(|(index, parent)| Some((index.parse().ok()?, parent.parse().ok()?)));
        let (index, parent) = parsed.with_context(|| format!("{WORKER} is for the program's own use"))?;
        set_parent_process_death_signal(Some(SHUTDOWN_SIGNAL)).context("the supervisor's end can't be watched")?;
        // It may have ended before that was in place.
        anyhow::ensure!(getppid() == Pid::from_raw(parent), "the supervisor has ended");
        Ok(Some(Self { index }))
    }

    /// Listens on the socket that the supervisor opened. It stays open there, so nobody who waits in its queue is lost with
    /// this process. May be called once.
    pub(super) fn listener() -> anyhow::Result<TcpListener> {
        let socket = io::stdin().as_fd().try_clone_to_owned().context("the listening socket is not there")?;
        // As the standard input it would stay open until the process has ended, and clients would wait for nobody.
        dup2_stdin(File::open("/dev/null")?).context("the standard input can't be let go")?;
        listener::listen(socket.into()).context("the listening socket can't be used")
    }

    /// A supervisor that is gone needs no word; its end is noticed otherwise.
    pub(super) fn say(word: WorkerMessage) {
        let mut out = io::stdout();
        let _ = writeln!(out, "{}", word.line()).and_then(|()| out.flush());
    }
}

impl WorkerMessage {
    fn line(self) -> String {
        match self {
            Self::Ready { drain_timeout } => format!("ready {}", drain_timeout.as_millis()),
            Self::Ending => "ending".to_owned(),
        }
    }

    pub(super) fn read(line: &str) -> Option<Self> {
        match line.split_once(' ') {
            Some(("ready", ms)) => Some(Self::Ready { drain_timeout: Duration::from_millis(ms.parse().ok()?) }),
            None if line == "ending" => Some(Self::Ending),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_worker_says_is_understood() {
        for word in [WorkerMessage::Ready { drain_timeout: Duration::from_millis(60_000) }, WorkerMessage::Ending] {
            assert_eq!(WorkerMessage::read(&word.line()), Some(word));
        }
        for line in ["", "ready", "ready soon", "ready -1", "ending soon", "hello"] {
            assert_eq!(WorkerMessage::read(line), None, "{line}");
        }
    }
}

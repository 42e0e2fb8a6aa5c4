//! The worker's side of the supervisor: its socket, and the messages that it sends.

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

/// The environment variable that names a worker's index and its supervisor's process ID.
pub(super) const WORKER: &str = "_FANFARE_WORKER";

/// Shuts a worker down without a replacement: all workers exit, or the supervisor has exited. A worker that is replaced
/// gets SIGTERM instead.
pub(super) const SHUTDOWN_SIGNAL: Signal = Signal::USR1;

/// A message from a worker to its supervisor: a line of its standard output. The words must not change, because a
/// supervisor may run workers of a newer version of the program.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum WorkerMessage {
    /// It accepts clients. It exits at most `drain_timeout` after a signal.
    Ready { drain_timeout: Duration },
    /// It accepts no more clients.
    Draining,
}

/// A process that a supervisor started. Its standard input is its listening socket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Worker {
    pub(super) index: usize,
}

impl Worker {
    /// Returns the worker that this process is, if it is one. It then shuts down when its supervisor exits.
    pub(super) fn of_this_process() -> anyhow::Result<Option<Self>> {
        let Some(text) = env::var(WORKER).ok() else { return Ok(None) };
        let parsed = text.split_once('/').and_then(|(index, parent)| Some((index.parse().ok()?, parent.parse().ok()?)));
        let (index, parent) = parsed.with_context(|| format!("{WORKER} is reserved for the supervisor: unset it"))?;
        set_parent_process_death_signal(Some(SHUTDOWN_SIGNAL)).context("failed to watch the supervisor")?;
        // The supervisor may have exited before the signal was set.
        anyhow::ensure!(getppid() == Pid::from_raw(parent), "the supervisor has exited");
        Ok(Some(Self { index }))
    }

    /// Listens on the socket that the supervisor opened. The supervisor keeps it open, so the connections in its queue
    /// outlive this process. May be called once.
    pub(super) fn listener() -> anyhow::Result<TcpListener> {
        let socket = io::stdin().as_fd().try_clone_to_owned().context("the listening socket is missing")?;
        // Standard input would keep the socket open until the process exits, and new connections would wait in its
        // queue.
        dup2_stdin(File::open("/dev/null")?).context("failed to replace the standard input")?;
        listener::listen(socket.into()).context("failed to listen on the supervisor's socket")
    }

    /// Sends a message to the supervisor. Errors are ignored: a supervisor that has exited is detected by its signal.
    pub(super) fn report(message: WorkerMessage) {
        let mut out = io::stdout();
        let _ = writeln!(out, "{}", message.line()).and_then(|()| out.flush());
    }
}

impl WorkerMessage {
    fn line(self) -> String {
        match self {
            Self::Ready { drain_timeout } => format!("ready {}", drain_timeout.as_millis()),
            Self::Draining => "ending".to_owned(),
        }
    }

    pub(super) fn parse(line: &str) -> Option<Self> {
        match line.split_once(' ') {
            Some(("ready", ms)) => Some(Self::Ready { drain_timeout: Duration::from_millis(ms.parse().ok()?) }),
            None if line == "ending" => Some(Self::Draining),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_a_round_trip() {
        for message in [WorkerMessage::Ready { drain_timeout: Duration::from_millis(60_000) }, WorkerMessage::Draining]
        {
            assert_eq!(WorkerMessage::parse(&message.line()), Some(message));
        }
        for line in ["", "ready", "ready soon", "ready -1", "ending soon", "hello"] {
            assert_eq!(WorkerMessage::parse(line), None, "{line}");
        }
    }
}

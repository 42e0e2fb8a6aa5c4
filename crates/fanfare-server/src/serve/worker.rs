//! A worker's side of the supervisor: what it is given, and how it says that it is ready.

use anyhow::Context;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use socket2::Socket;
use std::{
    env,
    io::{self, Write},
    os::fd::AsFd,
};
use tokio::net::TcpListener;

/// Says which worker a process is, and whose.
pub(super) const WORKER: &str = "_FANFARE_WORKER";

/// What a ready worker writes to its standard output.
pub(super) const READY: &str = "ready";

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
        set_parent_process_death_signal(Some(Signal::TERM)).context("the supervisor's end can't be watched")?;
        // It may have ended before that was in place.
        anyhow::ensure!(getppid() == Pid::from_raw(parent), "the supervisor has ended");
        Ok(Some(Self { index }))
    }

    /// The socket that the supervisor opened. It stays open there, so nobody who waits in its queue is lost with this
    /// process.
    pub(super) fn listener() -> anyhow::Result<TcpListener> {
        let socket = io::stdin().as_fd().try_clone_to_owned().context("the listening socket is not there")?;
        Ok(TcpListener::from_std(Socket::from(socket).into())?)
    }

    /// Tells the supervisor that this worker serves.
    pub(super) fn say_ready() {
        // A supervisor that is gone needs no word; its end is noticed otherwise.
        let _ = writeln!(io::stdout(), "{READY}");
    }
}

//! Time, randomness, connections and tasks for the log in Redis. A deterministic simulation replaces them for the
//! current thread. Otherwise they are those of the operating system and of tokio.

use fanfare_core::time::Now;
use std::{cell::RefCell, fmt, io, pin::Pin, rc::Rc};
use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream to a server.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection attempt.
pub type Dialing = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// A background task. It is polled on the thread that spawned it.
pub type Task = Pin<Box<dyn Future<Output = ()>>>;

/// A simulated environment.
pub trait Environment: fmt::Debug {
    /// The current time of the monotonic clock and of the wall clock.
    fn now(&self) -> Now;

    /// Fills `bytes` with random bytes.
    fn fill(&self, bytes: &mut [u8]);

    /// Opens a connection to a server.
    fn dial(&self, host: &str, port: u16) -> Dialing;

    /// Spawns a task that runs to completion.
    fn spawn(&self, task: Task);
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<dyn Environment>>> = const { RefCell::new(None) };
}

/// Calls `act` with `environment` as the environment of this thread.
pub fn enter<T>(environment: &Rc<dyn Environment>, act: impl FnOnce() -> T) -> T {
    /// Restores the previous environment, even after a panic.
    struct Restore(Option<Rc<dyn Environment>>);

    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.set(self.0.take());
        }
    }

    let _restore = Restore(CURRENT.replace(Some(environment.clone())));
    act()
}

/// The simulated environment of this thread, if any.
pub(crate) fn current() -> Option<Rc<dyn Environment>> {
    CURRENT.with_borrow(Clone::clone)
}

/// The simulated time, in a simulation.
pub(crate) fn now() -> Option<Now> {
    current().map(|environment| environment.now())
}

/// Fills `bytes` with simulated randomness. Returns `false` outside of a simulation.
pub(crate) fn fill(bytes: &mut [u8]) -> bool {
    current().inspect(|environment| environment.fill(bytes)).is_some()
}

/// Opens a simulated connection. `None` outside of a simulation.
pub(crate) fn dial(host: &str, port: u16) -> Option<Dialing> {
    current().map(|environment| environment.dial(host, port))
}

/// Spawns a background task, in the simulation or on tokio.
pub fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    match current() {
        Some(environment) => environment.spawn(Box::pin(task)),
        None => drop(tokio::spawn(task)),
    }
}

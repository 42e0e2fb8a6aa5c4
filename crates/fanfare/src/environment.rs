//! What the log in Redis takes from the world around it: time, randomness, connections and tasks. A deterministic
//! simulation puts its own in their place, for the thread that it runs on. Everything else has the system's.

use fanfare_core::time::Now;
use std::{cell::RefCell, fmt, io, pin::Pin, rc::Rc};
use tokio::io::{AsyncRead, AsyncWrite};

/// A stream to a server.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection on its way.
pub type Dialing = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// A task in the background. It stays on its thread.
pub type Task = Pin<Box<dyn Future<Output = ()>>>;

/// A simulated world.
pub trait Environment: fmt::Debug {
    /// The time on both clocks.
    fn now(&self) -> Now;

    /// Fills `bytes` with randomness.
    fn fill(&self, bytes: &mut [u8]);

    /// Opens a connection to a server.
    fn dial(&self, host: &str, port: u16) -> Dialing;

    /// Runs a task until it ends.
    fn spawn(&self, task: Task);
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<dyn Environment>>> = const { RefCell::new(None) };
}

/// Does something in a simulated world.
pub fn enter<T>(environment: &Rc<dyn Environment>, act: impl FnOnce() -> T) -> T {
    /// Puts the world of before back, also after a panic.
    struct Leave(Option<Rc<dyn Environment>>);

    impl Drop for Leave {
        fn drop(&mut self) {
            CURRENT.set(self.0.take());
        }
    }

    let _leave = Leave(CURRENT.replace(Some(environment.clone())));
    act()
}

/// The simulated world, if there is one.
pub(crate) fn current() -> Option<Rc<dyn Environment>> {
    CURRENT.with_borrow(Clone::clone)
}

/// The simulated time, if there is one.
pub(crate) fn now() -> Option<Now> {
    current().map(|environment| environment.now())
}

/// Fills `bytes` with simulated randomness. Returns whether there is some.
pub(crate) fn fill(bytes: &mut [u8]) -> bool {
    current().inspect(|environment| environment.fill(bytes)).is_some()
}

/// A simulated connection, in a simulated world.
pub(crate) fn dial(host: &str, port: u16) -> Option<Dialing> {
    current().map(|environment| environment.dial(host, port))
}

/// Runs a task in the background, in whichever world.
pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    match current() {
        Some(environment) => environment.spawn(Box::pin(task)),
        None => drop(tokio::spawn(task)),
    }
}

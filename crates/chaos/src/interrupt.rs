//! Ctrl-C: the first one ends the run gracefully and prints its table; a second one exits immediately.

use std::{
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};

/// Installs the handler. Returns a function that reports whether Ctrl-C was pressed.
pub(crate) fn watch() -> anyhow::Result<impl Fn() -> bool> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let (mut interrupts, mut terminations) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let seen = Arc::new(AtomicBool::new(false));
    let noted = seen.clone();
    thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupts.recv() => {}
                    _ = terminations.recv() => {}
                }
                if noted.swap(true, Ordering::Relaxed) {
                    process::exit(130);
                }
                println!("\nstopping; press Ctrl-C again to exit immediately");
            }
        });
    });
    Ok(move || seen.load(Ordering::Relaxed))
}

//! Faults of clients.

use super::Steps;
use crate::{
    fault::Fault,
    load::{Load, Reader},
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// The steps of a fault of clients; `None` for other faults.
pub(super) fn steps(fault: Fault, random: &mut fastrand::Rng) -> Option<Steps> {
    let mut chosen = random.fork();
    let steps = Steps::default();
    Some(match fault {
        Fault::CutClients => (0..3).fold(steps, |steps, _| {
            let mut chosen = random.fork();
            steps
                .act(move |_, load| some(load, &mut chosen).iter().for_each(|reader| reader.cut.notify_one()))
                .wait(Duration::from_millis(700))
        }),
        Fault::StopReading => {
            let mut same = chosen.clone();
            steps
                .act(move |_, load| pause(&some(load, &mut chosen), true))
                .wait(Duration::from_secs(6))
                .act(move |_, load| pause(&some(load, &mut same), false))
        }
        _ => return None,
    })
}

/// A random third of the clients.
fn some(load: &Load, random: &mut fastrand::Rng) -> Vec<Arc<Reader>> {
    load.readers.iter().filter(|_| random.u8(0..3) == 0).cloned().collect()
}

fn pause(readers: &[Arc<Reader>], paused: bool) {
    readers.iter().for_each(|reader| reader.paused.store(paused, Ordering::Relaxed));
}

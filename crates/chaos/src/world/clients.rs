//! What is done to clients.

use crate::{
    fault::Fault,
    load::{Load, Reader},
    steps::Steps,
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// The steps of a fault, if it is one of clients.
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
                .act(move |_, load| halt(&some(load, &mut chosen), true))
                .wait(Duration::from_secs(6))
                .act(move |_, load| halt(&some(load, &mut same), false))
        }
        _ => return None,
    })
}

/// A third of the clients.
fn some(load: &Load, random: &mut fastrand::Rng) -> Vec<Arc<Reader>> {
    load.readers.iter().filter(|_| random.u8(0..3) == 0).cloned().collect()
}

fn halt(readers: &[Arc<Reader>], halted: bool) {
    readers.iter().for_each(|reader| reader.halted.store(halted, Ordering::Relaxed));
}
